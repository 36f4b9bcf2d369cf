"""One regression per neuron, all at once: slopes with Newey-West errors, and what they look like
when outcomes change places.

Dimensions: n rows (versions, or their differences), J neurons, R outcomes, B permutations, L lags.
Everything is computed in float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from jaxloop.core.checks import check_whole

BLOCK = 1 << 12  # neurons in one program, at most: what a core's cache holds
MAX_NULL_VALUES = 1 << 23  # t values of permuted outcomes in memory at once


class Fit(NamedTuple):
    """y = a + b x of every neuron and outcome, each [R, J]. `flat`: the neuron or the outcome has
    no variance; then slope 0, se NaN, t 0, p 1.
    """

    r: np.ndarray
    slope: np.ndarray
    se: np.ndarray
    t: np.ndarray
    p: np.ndarray
    flat: np.ndarray


def newey_west(
    x_nJ: ArrayLike,
    y_nR: ArrayLike,
    series: ArrayLike | None = None,
    *,
    lags: int = 1,
    size_J: np.ndarray | None = None,
    size_R: np.ndarray | None = None,
) -> Fit:
    """Regress every outcome on every neuron with a constant.

    Standard errors are those of Newey and West (1987) with Bartlett weights 1 - l / (L + 1) and no
    small-sample correction, p is two-sided of the normal distribution: statsmodels'
    `OLS(...).fit(cov_type="HAC")`.

    Args:
        x_nJ: neurons, in any unit.
        y_nR: outcomes, in any unit.
        series: [n] integers, equal for rows of one uninterrupted series, which stand next to each
            other in order of time; None: all rows are one series. Products of residuals at a lag
            are taken inside a series.
        lags: L.
        size_J: largest magnitude of the numbers that x was computed from (None: its own); a spread
            below their rounding counts as none.
        size_R: the same of y.

    Raises:
        ValueError: shapes that do not agree, values that are not finite, fewer than 3 rows, or
            lags that no series is longer than.
    """
    x, y = _finite("x", x_nJ), _finite("y", y_nR)
    n = len(x)
    series_n = np.zeros(n, np.int64) if series is None else np.asarray(series)
    if x.ndim != 2 or y.ndim != 2 or len(y) != n or series_n.shape != (n,):
        raise ValueError(
            f"x, y and series have shapes {x.shape}, {y.shape} and {series_n.shape}; [n, J], [n, "
            "R] and [n] are needed"
        )
    if n < 3:
        raise ValueError(f"x has {n} rows, a slope and a constant need at least 3")
    check_lags(lags, longest_series(series_n))
    still = no_variance(x, size_J)
    flat = no_variance(y, size_R)[:, None] | still[None]
    weights = lag_weights(series_n, lags)
    with jax.enable_x64(True):
        parts = [
            _fit(*blocks, jnp.asarray(y), jnp.asarray(weights)) for blocks in _blocks(x, still)
        ]
        r, slope, se = (
            np.concatenate([np.asarray(piece) for piece in pieces], -1)[:, : x.shape[1]]
            for pieces in zip(*parts, strict=True)
        )
    r, slope, se = np.where(flat, 0.0, r), np.where(flat, 0.0, slope), np.where(flat, np.nan, se)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(slope == 0, 0.0, slope / se)
    return Fit(r, slope, se, t, 2 * ndtr(-np.abs(t)), flat)


def check_lags(lags: int, rows: int) -> None:
    """Raise ValueError where `lags` is not an integer from 0 to below `rows`, the length of the
    longest series.
    """
    check_whole("lags", lags, 0)
    if lags >= rows:
        raise ValueError(
            f"lags={lags}: no series is longer than {rows} rows, lags must be below that"
        )


def longest_series(series: np.ndarray) -> int:
    """Return the rows of the longest series."""
    return int(np.unique(series, return_counts=True)[1].max())


def lag_weights(series: np.ndarray, lags: int) -> np.ndarray:
    """Return [L + 1, n]: what the product of row t and row t - l counts in the long-run variance;
    0 where the two are not of one series.
    """
    weights = np.zeros((lags + 1, len(series)))
    weights[0] = 1.0
    for lag in range(1, lags + 1):
        weights[lag, lag:] = 2 * (1 - lag / (lags + 1)) * (series[lag:] == series[:-lag])
    return weights


def no_variance(x: np.ndarray, size_J: np.ndarray | None = None) -> np.ndarray:
    """Return [J], True where x [n, J] varies by no more than rounding.

    That is the rounding of float64 numbers of its own size, or of `size_J`.
    """
    size = np.abs(x).max(0) if size_J is None else np.maximum(np.abs(x).max(0), size_J)
    return np.ptp(x, axis=0) <= 4 * np.finfo(np.float64).eps * size


def _finite(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values, np.float64)
    broken = int((~np.isfinite(array)).sum())
    if broken:
        raise ValueError(f"{name} holds {broken} values that are not finite")
    return array


def _blocks(x: np.ndarray, flat: np.ndarray) -> Iterator[tuple[jax.Array, jax.Array]]:
    """x and flat in pieces of one size, the last filled up with neurons that are flat."""
    count = -(-x.shape[1] // BLOCK)
    size = -(-x.shape[1] // count)
    for at in range(0, x.shape[1], size):
        piece, still = x[:, at : at + size], flat[at : at + size]
        missing = size - piece.shape[1]
        if missing:
            piece = np.pad(piece, ((0, 0), (0, missing)))
            still = np.pad(still, (0, missing), constant_values=True)
        yield jnp.asarray(piece), jnp.asarray(still)


def _standard(x_nJ: jax.Array, flat_J: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Columns with mean 0 and variance 1 (flat ones 0), and their standard deviations (flat ones
    1).
    """
    x = x_nJ - x_nJ.mean(0, keepdims=True)
    x = x - x.mean(0, keepdims=True)  # once more: the first mean is rounded
    sd = jnp.where(flat_J, 1.0, jnp.sqrt((x * x).mean(0)))
    return jnp.where(flat_J[None], 0.0, x / sd[None]), sd


def _lagged(u: jax.Array, lag: int) -> jax.Array:
    """u [n, ...] of `lag` rows before, 0 where there is none."""
    return u if lag == 0 else jnp.concatenate([jnp.zeros_like(u[:lag]), u[:-lag]])


@jax.jit
def _fit(
    x_nJ: jax.Array, flat_J: jax.Array, y_nR: jax.Array, weights_Ln: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pearson r, slope and its standard error, each [R, J]. The bread of the sandwich is diagonal
    once x is centred.
    """
    n = x_nJ.shape[0]
    x, sx = _standard(x_nJ, flat_J)
    y, sy = _standard(y_nR, jnp.max(y_nR, 0) == jnp.min(y_nR, 0))

    def one(y_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = y_n @ x / n
        u = x * (y_n[:, None] - r[None] * x)
        meat = sum(
            (weights_Ln[lag][:, None] * u * _lagged(u, lag)).sum(0)
            for lag in range(weights_Ln.shape[0])
        )
        return r, jnp.sqrt(jnp.maximum(meat, 0.0)) / n

    r, se = jax.vmap(one, in_axes=1)(y)
    scale = sy[:, None] / sx[None]
    return r, r * scale, se * scale


def null_statistics(
    x_nJ: ArrayLike, y_BnR: ArrayLike, series: ArrayLike, *, lags: int, flat: np.ndarray
) -> Iterator[np.ndarray]:
    """Yield the squared t of every neuron for every permuted outcome, in pieces [b, R, J] along B;
    0 where `flat` [R, J] (`Fit.flat`).

    The meat of the sandwich is a quadratic form in y whose matrix is banded, so that all
    permutations are a few matrix products.
    """
    x, y = np.asarray(x_nJ, np.float64), np.asarray(y_BnR, np.float64)
    y = y - y.mean(1, keepdims=True)
    sd = y.std(1, keepdims=True)
    y = np.moveaxis(np.divide(y, sd, out=np.zeros_like(y), where=sd > 0), 2, 1)  # [B, R, n]
    permutations, outcomes, n = y.shape
    size = max(1, min(permutations, MAX_NULL_VALUES // (outcomes * x.shape[1])))
    weights = lag_weights(np.asarray(series), lags)
    with jax.enable_x64(True):
        designs = [
            _quadratic(*blocks, jnp.asarray(weights))
            for blocks in _blocks(x, np.asarray(flat.all(0)))
        ]
    for at in range(0, permutations, size):
        piece = y[at : at + size]
        filled = np.pad(piece, ((0, size - len(piece)), (0, 0), (0, 0))).reshape(size * outcomes, n)
        with jax.enable_x64(True):
            t2 = np.concatenate(
                [np.asarray(_null(jnp.asarray(filled), *design)) for design in designs], -1
            )
        t2_BRJ = t2.reshape(size, outcomes, -1)[: len(piece), :, : x.shape[1]]
        yield np.where(flat[None], 0.0, t2_BRJ)


@jax.jit
def _quadratic(
    x_nJ: jax.Array, flat_J: jax.Array, weights_Ln: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """What of the meat depends on x alone. With u = x (y - r x) and K the matrix of lag weights,
    u'Ku = (xy)'K(xy) - 2 r (xy)'K(xx) + r r (xx)'K(xx).
    """
    x, _ = _standard(x_nJ, flat_J)
    square = x * x
    lags = range(weights_Ln.shape[0])
    bands = jnp.concatenate([weights_Ln[lag][:, None] * x * _lagged(x, lag) for lag in lags])
    forth = back = jnp.zeros_like(x)
    if len(lags) > 1:
        forth = sum(
            (weights_Ln[lag][:, None] * _lagged(square, lag) for lag in lags[2:]),
            start=weights_Ln[1][:, None] * _lagged(square, 1),
        )
        back = _back(square, weights_Ln)
    spread = square + (forth + back) / 2
    return x, bands, x * spread, (square * spread).sum(0)


def _back(square: jax.Array, weights_Ln: jax.Array) -> jax.Array:
    """Sum over lags of weight[t + l] square[t + l]: the other half of the symmetric K."""
    total = jnp.zeros_like(square)
    for lag in range(1, weights_Ln.shape[0]):
        weighted = weights_Ln[lag][:, None] * square
        total = total + jnp.concatenate([weighted[lag:], jnp.zeros_like(weighted[:lag])])
    return total


@jax.jit
def _null(
    y_Bn: jax.Array,
    x_nJ: jax.Array,
    bands_LnJ: jax.Array,
    cross_nJ: jax.Array,
    last_J: jax.Array,
) -> jax.Array:
    n = x_nJ.shape[0]
    r = y_Bn @ x_nJ / n
    pairs = jnp.concatenate(
        [y_Bn * _lagged(y_Bn.T, lag).T for lag in range(bands_LnJ.shape[0] // n)], -1
    )
    first = pairs @ bands_LnJ
    meat = first - 2 * r * (y_Bn @ cross_nJ) + r * r * last_J[None]
    floor = 1e-14 * jnp.maximum(jnp.abs(first), 1e-300)
    return jnp.where(r == 0, 0.0, (n * r) ** 2 / jnp.maximum(meat, floor))
