"""Means and covariances of chains of weighted Beta fits to second order in 1 / N.

A fit is a smooth function of three means over N independent draws x: of the weight w, of w log x
and of w log(1 - x). Its Taylor series and the cumulants of these means (whose order in 1 / N falls
with their degree) give its bias to 1 / N and its covariance to 1 / N^2; the cumulants are
derivatives of ln B, as a weighted Beta density is a Beta density again. From one generation to the
next the population moves linearly, theta -> theta + lambda (weight's theta - 1), and both the
sample's and the weight's parameters are those of earlier, random fits: what that adds is carried
along by the derivatives of bias and covariance.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.special
from numpy.typing import ArrayLike

from jaxloop.simulators import beta

# Of finite differences, relative: errors are 1e-6 of what is itself a correction.
STEP = 1e-3


class Expansion(NamedTuple):
    """Chains of fits, up to terms of 1 / N^2 (shift) and 1 / N^3 (first + second).

    shift: [T+1, 2] mean of (alpha, beta) minus that of infinitely many draws.
    first: [T+1, 2, 2] covariance to first order, that of `beta.asymptotic_cov`.
    second: [T+1, 2, 2] what the second order adds to it.
    """

    shift: np.ndarray
    first: np.ndarray
    second: np.ndarray


class _Fit(NamedTuple):
    """Of one fit: bias [2], in units of 1 / N, and covariance [2, 2] in those of 1 / N and of
    1 / N^2.
    """

    bias: np.ndarray
    first: np.ndarray
    second: np.ndarray


class _State(NamedTuple):
    """Of z = (last fit, pre-trained fit) [4]: where it is for infinitely many draws, its mean away
    from there (1 / N), and its covariance (1 / N, 1 / N^2).
    """

    at: np.ndarray
    shift: np.ndarray
    first: np.ndarray
    second: np.ndarray


def expand(
    n: int,
    *,
    real: Sequence[float] = (2.0, 2.0),
    pretrained: Sequence[float] = (3.0, 2.0),
    generations: int,
    weighting: str = "model",
    exponent: float = 1.0,
) -> Expansion:
    """Return the expansion of the chains that `beta.simulate` draws [D].

    Raises:
        ValueError: as `beta.asymptotic_cov`, or weights have no third moment.
    """
    options: dict[str, Any] = dict(
        real=real,
        pretrained=pretrained,
        generations=generations,
        weighting=weighting,
        exponent=exponent,
    )
    beta.check_n(n)
    path = beta.population(**options)
    rate = 0.0 if weighting == "none" else float(exponent)
    start = np.array([*real, *pretrained], float)
    source = np.vstack([start[:2], path[:-1]])
    weight = np.tile(start[2:], (len(path), 1))
    if weighting == "model":
        weight[1:] = path[:-1]
    for power, name in ((2, "second"), (3, "third")):
        beta.check_integrable(
            source + power * rate * (weight - 1),
            f"weights of generation {{}} have no {name} moment",
        )
    last = (False, *[weighting == "model"] * generations)
    shift, first, second = _states(tuple(start.tolist()), last, rate)
    return Expansion(shift[:, :2] / n, first[:, :2, :2] / n, second[:, :2, :2] / n**2)


@functools.lru_cache(maxsize=64)
def _states(
    start: tuple[float, ...], last: tuple[bool, ...], rate: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shift [T+1, 4], first and second [T+1, 4, 4] of every generation's state, for any n.

    last: whether a generation's weights are the last fit's, [T+1].
    """
    z = np.array(start)
    base = _fit(z[2:], np.zeros(2))
    state = _State(
        at=z,
        shift=np.pad(base.bias, (2, 0)),
        first=np.pad(base.first, (2, 0)),
        second=np.pad(base.second, (2, 0)),
    )
    states = []
    for by_last in last:
        state = _next(state, by_last, rate)
        states.append(state)
    shift, first, second = (
        np.stack([getattr(one, name) for one in states]) for name in ("shift", "first", "second")
    )
    return shift, first, second


def expected(
    value: Callable[[np.ndarray], np.ndarray], path: ArrayLike, expansion: Expansion
) -> np.ndarray:
    """Return the mean [T+1] of a function of fits, up to terms of 1 / N^2.

    Args:
        value: of parameters [..., 2] -> [...], smooth.
        path: [T+1, 2] parameters for infinitely many draws.
    """
    path = np.asarray(path, float)
    first, second = _derivatives(value, path)
    found = value(path) + sum(expansion.shift[:, i] * first[i] for i in range(2))
    return found + sum(
        expansion.first[:, i, j] * second[i, j] / 2
        for i, j in itertools.product(range(2), repeat=2)
    )


def _derivatives(
    value: Callable[[np.ndarray], np.ndarray], at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First [d, ...] and second [d, d, ...] derivatives of a function of [..., d], by central
    differences.
    """
    d = at.shape[-1]
    steps = STEP * np.abs(at)[..., None] * np.eye(d)
    heights = [STEP * np.abs(at[..., i]) for i in range(d)]
    here = value(at)
    there = [[value(at + sign * steps[..., i, :]) for sign in (1, -1)] for i in range(d)]

    def over(x: np.ndarray, by: np.ndarray) -> np.ndarray:
        return x / by.reshape(by.shape + (1,) * (x.ndim - by.ndim))

    first = [over(up - down, 2 * h) for (up, down), h in zip(there, heights, strict=True)]
    second = np.empty((d, d, *here.shape))
    for i, (up, down) in enumerate(there):
        second[i, i] = over(up - 2 * here + down, heights[i] ** 2)
        for j in range(i):
            one, other = steps[..., i, :], steps[..., j, :]
            corners = value(at + one + other) + value(at - one - other)
            corners = corners - value(at + one - other) - value(at - one + other)
            second[i, j] = second[j, i] = over(corners, 4 * heights[i] * heights[j])
    return np.stack(first), second


# ---- one generation


def _sampled(at: np.ndarray, by_last: bool, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The parameters of the sampled distribution, and the exponents of its weights."""
    return at[:2], rate * ((at[:2] if by_last else at[2:]) - 1)


def _next(state: _State, by_last: bool, rate: float) -> _State:
    """The state after one more fit."""

    def numbers(at: np.ndarray) -> np.ndarray:
        """Bias [2] and first-order covariance [4] of a fit, in a row."""
        source, tilt = _sampled(at, by_last, rate)
        means, covariance = _cumulants(source, tilt)
        bias, first = _leading(covariance, *_of_means(means, source + tilt))
        return np.concatenate([bias, first.ravel()])

    fit = _fit(*_sampled(state.at, by_last, rate))
    slope, bend = _derivatives(numbers, state.at)
    move = np.eye(4)
    move[:2, (0 if by_last else 2) : (2 if by_last else 4)] += rate * np.eye(2)
    tilted = np.pad(slope[:, :2].T, ((0, 2), (0, 0)))
    mixed = move @ state.first @ tilted.T
    drifted = state.shift @ slope[:, 2:] + np.einsum("ab,abn->n", state.first, bend[..., 2:]) / 2
    population = move @ state.at
    population[:2] -= rate
    return _State(
        at=population,
        shift=move @ state.shift + np.pad(fit.bias, (0, 2)),
        first=move @ state.first @ move.T + np.pad(fit.first, (0, 2)),
        second=move @ state.second @ move.T
        + mixed
        + mixed.T
        + np.pad(fit.second + drifted.reshape(2, 2), (0, 2)),
    )


def _fit(source: np.ndarray, tilt: np.ndarray) -> _Fit:
    """Bias and covariance of a fit to N draws of Beta(source) with the weight x^tilt_0
    (1 - x)^tilt_1.
    """
    means, covariance = _cumulants(source, tilt)
    third = _third_cumulant(source, tilt, means)
    g_ia, g_iab = _of_means(means, source + tilt)
    g_iabc = _third_of_means(means, source + tilt)
    skewed = np.einsum("ia,jbc,abc->ij", g_ia, g_iab, third) / 2
    cubic = np.einsum("ia,jbcd,ab,cd->ij", g_ia, g_iabc, covariance, covariance) / 2
    square = np.einsum("iab,jcd,ac,bd->ij", g_iab, g_iab, covariance, covariance) / 2
    bias, first = _leading(covariance, g_ia, g_iab)
    return _Fit(bias, first, second=skewed + skewed.T + cubic + cubic.T + square)


def _leading(
    covariance: np.ndarray, g_ia: np.ndarray, g_iab: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bias of `_fit` and its covariance to first order, which need no third derivatives."""
    return np.einsum("iab,ab->i", g_iab, covariance) / 2, g_ia @ covariance @ g_ia.T


def _log_partition(theta: np.ndarray) -> float:
    return float(scipy.special.betaln(*theta))


def _of_log_partition(theta: np.ndarray, order: int) -> np.ndarray:
    """The tensor [2, ...] of derivatives of ln B of an order: a function of each parameter, less
    one of their sum.
    """
    own = scipy.special.polygamma(order - 1, theta)
    found = np.full((2,) * order, -float(scipy.special.polygamma(order - 1, theta.sum())))
    for i in range(2):
        found[(i,) * order] += own[i]
    return found


def _of_means(means: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives [2, 3, ...] of a fit, which is `at`, by the means [3] of w,
    w log x and w log(1 - x), that of w being 1.
    """
    g_p, g_pq = _of_ratios(at)
    y_a, y_ab, _ = _ratios(means)
    two = np.einsum("ipq,pa,qb->iab", g_pq, y_a, y_a) + np.einsum("ip,pab->iab", g_p, y_ab)
    return g_p @ y_a, two


def _third_of_means(means: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The third derivatives [2, 3, 3, 3] of `_of_means`."""
    inverse, g_pq = _of_ratios(at)
    third, fourth = _of_log_partition(at, 3), _of_log_partition(at, 4)
    g_pqr = -np.einsum("ip,pqrs,qa,rb,sc->iabc", inverse, fourth, inverse, inverse, inverse)
    g_pqr -= _three(np.einsum("ip,pqr,qa,rbc->ibca", inverse, third, inverse, g_pq))
    y_a, y_ab, y_abc = _ratios(means)
    three = np.einsum("ipqr,pa,qb,rc->iabc", g_pqr, y_a, y_a, y_a)
    three += _three(np.einsum("ipq,pab,qc->iabc", g_pq, y_ab, y_a))
    return three + np.einsum("ip,pabc->iabc", inverse, y_abc)


def _of_ratios(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivatives [2, 2, ...] of a fit by the two ratios of means: those of the
    inverse of the gradient of ln B.
    """
    inverse = np.linalg.inv(_of_log_partition(at, 2))
    third = _of_log_partition(at, 3)
    return inverse, -np.einsum("ip,pqr,qa,rb->iab", inverse, third, inverse, inverse)


def _ratios(means: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First to third derivatives [2, 3, ...] of the ratios m_i / m_0 by the means, m_0 being 1."""
    y = means[1:]
    y_a = np.concatenate([-y[:, None], np.eye(2)], 1)
    y_ab, y_abc = np.zeros((2, 3, 3)), np.zeros((2, 3, 3, 3))
    y_ab[:, 0, 0], y_abc[:, 0, 0, 0] = 2 * y, -6 * y
    for i in range(2):
        y_ab[i, i + 1, 0] = y_ab[i, 0, i + 1] = -1
        y_abc[i, i + 1, 0, 0] = y_abc[i, 0, i + 1, 0] = y_abc[i, 0, 0, i + 1] = 2
    return y_a, y_ab, y_abc


def _cumulants(source: np.ndarray, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [3] and covariance [3, 3] of w (1, log x, log(1 - x)), the weight w being scaled to a
    mean of 1.
    """
    mean = _mean_under(source + tilt)
    return mean, _second_moment(source, tilt) - np.outer(mean, mean)


def _third_cumulant(source: np.ndarray, tilt: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The third cumulant [3, 3, 3] beside those of `_cumulants`."""
    at = source + 3 * tilt
    size, m, spread = _mean_power(source, tilt, 3), _mean_under(at), _spread_under(at)
    skew = np.pad(_of_log_partition(at, 3), (1, 0))
    third = size * (skew + _three(_times(spread, m)) + _times(np.outer(m, m), m))
    cube = _times(np.outer(mean, mean), mean)
    return third - _three(_times(_second_moment(source, tilt), mean)) + 2 * cube


def _second_moment(source: np.ndarray, tilt: np.ndarray) -> np.ndarray:
    at = source + 2 * tilt
    m = _mean_under(at)
    return _mean_power(source, tilt, 2) * (_spread_under(at) + np.outer(m, m))


def _mean_power(source: np.ndarray, tilt: np.ndarray, k: int) -> float:
    """E[w^k] of the scaled weight w."""
    scale = _log_partition(source + tilt) - _log_partition(source)
    return np.exp(_log_partition(source + k * tilt) - _log_partition(source) - k * scale)


def _mean_under(at: np.ndarray) -> np.ndarray:
    """The mean [3] of (1, log x, log(1 - x)) under Beta(at)."""
    return np.array([1.0, *_of_log_partition(at, 1)])


def _spread_under(at: np.ndarray) -> np.ndarray:
    """Their covariance [3, 3]."""
    return np.pad(_of_log_partition(at, 2), (1, 0))


def _times(pair: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.einsum("ab,c->abc", pair, one)


def _three(x: np.ndarray) -> np.ndarray:
    """Sum over which of the last three axes is the one that stands last; x is symmetric in the
    other two.
    """
    return x + np.swapaxes(x, -1, -2) + np.moveaxis(x, -1, -3)
