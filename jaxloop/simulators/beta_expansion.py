"""Means and covariances of chains of weighted Beta fits to second order in 1 / N.

A fit is a smooth function of three means over N independent draws x: of the weight w, of w log x
and of w log(1 - x). Its Taylor series and the cumulants of these means (whose order in 1 / N falls
with their degree) give its bias to 1 / N and its covariance to 1 / N^2; the cumulants are
derivatives of ln B, as a weighted Beta density is a Beta density again. From one generation to the
next the population moves linearly, theta -> theta + lambda (weight's theta - 1), and both the
sample's and the weight's parameters are those of earlier, random fits: what that adds is carried
along by the derivatives of bias and covariance.
"""

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
    base = _fit(start[2:], np.zeros(2))
    state = _State(
        at=start,
        shift=np.pad(base.bias, (2, 0)),
        first=np.pad(base.first, (2, 0)),
        second=np.pad(base.second, (2, 0)),
    )
    states = []
    for t in range(generations + 1):
        by_last = weighting == "model" and t > 0
        state = _next(state, by_last, rate)
        states.append(state)
    shift, first, second = (
        np.stack([getattr(one, name) for one in states]) for name in ("shift", "first", "second")
    )
    return Expansion(shift[:, :2] / n, first[:, :2, :2] / n, second[:, :2, :2] / n**2)


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
        fit = _fit(*_sampled(at, by_last, rate))
        return np.concatenate([fit.bias, fit.first.ravel()])

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
    means, covariance, third = _cumulants(source, tilt)
    g_ia, g_iab, g_iabc = _of_means(means, source + tilt)
    skewed = np.einsum("ia,jbc,abc->ij", g_ia, g_iab, third) / 2
    cubic = np.einsum("ia,jbcd,ab,cd->ij", g_ia, g_iabc, covariance, covariance) / 2
    square = np.einsum("iab,jcd,ac,bd->ij", g_iab, g_iab, covariance, covariance) / 2
    return _Fit(
        bias=np.einsum("iab,ab->i", g_iab, covariance) / 2,
        first=g_ia @ covariance @ g_ia.T,
        second=skewed + skewed.T + cubic + cubic.T + square,
    )


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


def _of_means(means: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First, second and third derivatives [2, 3, ...] of a fit, which is `at`, by the means [3] of
    w, w log x and w log(1 - x), that of w being 1.
    """
    inverse = np.linalg.inv(_of_log_partition(at, 2))
    third, fourth = _of_log_partition(at, 3), _of_log_partition(at, 4)
    # Of the fit by the two ratios of means: derivatives of the inverse of the gradient of ln B.
    g_p = inverse
    g_pq = -np.einsum("ip,pqr,qa,rb->iab", inverse, third, inverse, inverse)
    g_pqr = -np.einsum("ip,pqrs,qa,rb,sc->iabc", inverse, fourth, inverse, inverse, inverse)
    g_pqr -= _three(np.einsum("ip,pqr,qa,rbc->ibca", inverse, third, inverse, g_pq))
    # Of the ratios m_i / m_0 by the means.
    y = means[1:]
    y_a = np.concatenate([-y[:, None], np.eye(2)], 1)
    y_ab, y_abc = np.zeros((2, 3, 3)), np.zeros((2, 3, 3, 3))
    y_ab[:, 0, 0], y_abc[:, 0, 0, 0] = 2 * y, -6 * y
    for i in range(2):
        y_ab[i, i + 1, 0] = y_ab[i, 0, i + 1] = -1
        y_abc[i, i + 1, 0, 0] = y_abc[i, 0, i + 1, 0] = y_abc[i, 0, 0, i + 1] = 2
    one = g_p @ y_a
    two = np.einsum("ipq,pa,qb->iab", g_pq, y_a, y_a) + np.einsum("ip,pab->iab", g_p, y_ab)
    three = np.einsum("ipqr,pa,qb,rc->iabc", g_pqr, y_a, y_a, y_a)
    three += _three(np.einsum("ipq,pab,qc->iabc", g_pq, y_ab, y_a))
    return one, two, three + np.einsum("ip,pabc->iabc", g_p, y_abc)


def _cumulants(source: np.ndarray, tilt: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [3], covariance [3, 3] and third cumulant [3, 3, 3] of w (1, log x, log(1 - x)), the
    weight w being scaled to a mean of 1.
    """
    scale = _log_partition(source + tilt) - _log_partition(source)

    def power(k: int) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """E[w^k], and the first three cumulants of (1, log x, log(1 - x)) under w^k."""
        at = source + k * tilt
        size = np.exp(_log_partition(at) - _log_partition(source) - k * scale)
        mean = np.array([1.0, *_of_log_partition(at, 1)])
        spread, skew = (np.pad(_of_log_partition(at, order), (1, 0)) for order in (2, 3))
        return size, mean, spread, skew

    mean = power(1)[1]
    size, m, spread, _ = power(2)
    second = size * (spread + np.outer(m, m))
    size, m, spread, skew = power(3)
    third = size * (skew + _three(_times(spread, m)) + _times(np.outer(m, m), m))
    cube = _times(np.outer(mean, mean), mean)
    return mean, second - np.outer(mean, mean), third - _three(_times(second, mean)) + 2 * cube


def _times(pair: np.ndarray, one: np.ndarray) -> np.ndarray:
    return np.einsum("ab,c->abc", pair, one)


def _three(x: np.ndarray) -> np.ndarray:
    """Sum over which of the last three axes is the one that stands last; x is symmetric in the
    other two.
    """
    return x + np.swapaxes(x, -1, -2) + np.moveaxis(x, -1, -3)
