"""Statistics that several studies report."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return adjusted p values [n] (Benjamini and Hochberg 1995).

    Rejecting the tests whose adjusted value is at most q keeps the expected share of false
    rejections at most q. nan stays nan and is not counted as a test.
    """
    # statsmodels takes a second to import.
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, float)
    tested = np.isfinite(values)
    adjusted = np.full(values.shape, np.nan)
    if tested.any():
        adjusted[tested] = multipletests(values[tested], method="fdr_bh")[1]
    return adjusted


def benjamini_hochberg_rejects(p: np.ndarray, alpha: float) -> np.ndarray:
    """Return which of the tests Benjamini and Hochberg reject at the level alpha: [n] bool."""
    # statsmodels takes a second to import.
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, alpha, method="fdr_bh")[0]


class Interval(NamedTuple):
    """Standard error of a mean, its 95 % t interval, and p of the mean being a given number."""

    se: float
    low: float
    high: float
    p: float


# Values whose range is this small a share of the largest differ by rounding alone.
_ROUNDING = 1e-12


def no_spread(values: np.ndarray) -> bool:
    """Return whether values [n] are equal but for rounding."""
    if not len(values):
        return True
    finite = bool(np.isfinite(values).all())
    return finite and bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def t_interval(values: np.ndarray, null: float) -> Interval:
    """Return the interval of the mean of values [n], and p of the mean being `null`.

    All are nan for fewer than two values. Values that are equal but for rounding have the standard
    error 0 and no p: a t test of them would divide by nothing.
    """
    n = len(values)
    if n < 2:
        return Interval(*(float("nan"),) * 4)
    mean = float(values.mean())
    if no_spread(values):
        return Interval(se=0.0, low=mean, high=mean, p=float("nan"))
    se = float(values.std(ddof=1) / np.sqrt(n))
    half = float(stats.t.isf(0.025, n - 1)) * se
    p = float(2 * stats.t.sf(abs(mean - null) / se, n - 1))
    return Interval(se=se, low=mean - half, high=mean + half, p=p)


def share_se(share: float, n: int) -> float:
    """Return the standard error of a share of n units, for t intervals with n - 1 degrees.

    It is that of the mean of n numbers 0 or 1, sqrt(share (1 - share) / (n - 1)). Where all units
    agree that is 0, as if they said all about the others; there it is such that the 95 % t interval
    reaches as far as the exact one (Clopper and Pearson 1934). nan for fewer than two units.
    """
    if n < 2 or np.isnan(share):
        return float("nan")
    if share in (0, 1):
        return float((1 - 0.025 ** (1 / n)) / stats.t.isf(0.025, n - 1))
    return float(np.sqrt(share * (1 - share) / (n - 1)))


# Up to as many pairs all orders are counted: 7! of them.
_EXACT = 7


class Correlation(NamedTuple):
    """A rank correlation, and its two-sided p of no association."""

    value: float
    p: float


def spearman(a: np.ndarray, b: np.ndarray) -> Correlation:
    """Return Spearman's rho of a [n] and b [n]; nan where either does not vary or has a nan.

    p is exact up to seven pairs, from all their orders, and from Student's t beyond, which for a
    few pairs is far too small: three in one order have p = 1/3, not 0.
    """
    if not _both_vary(a, b):
        return Correlation(float("nan"), float("nan"))
    rho, p = stats.spearmanr(a, b)
    ranks, centred = stats.rankdata(a), stats.rankdata(b) - (len(b) + 1) / 2

    def covariance(shuffled: np.ndarray, axis: int = -1) -> np.ndarray:
        return (np.moveaxis(shuffled, axis, -1) * centred).sum(-1)

    return Correlation(float(rho), _exact_p(ranks, covariance) if len(a) <= _EXACT else float(p))


def kendall(a: np.ndarray, b: np.ndarray) -> Correlation:
    """Return Kendall's tau-b of a [n] and b [n]; nan where either does not vary or has a nan.

    p is exact up to seven pairs, with ties too, and scipy's beyond.
    """
    if not _both_vary(a, b):
        return Correlation(float("nan"), float("nan"))
    tau, p = stats.kendalltau(a, b)
    one, other = np.triu_indices(len(b), 1)
    signs = np.sign(b[one] - b[other])

    def concordant(shuffled: np.ndarray, axis: int = -1) -> np.ndarray:
        x = np.moveaxis(shuffled, axis, -1)
        return (np.sign(x[..., one] - x[..., other]) * signs).sum(-1)

    return Correlation(float(tau), _exact_p(a, concordant) if len(a) <= _EXACT else float(p))


def _both_vary(a: np.ndarray, b: np.ndarray) -> bool:
    known = not (np.isnan(a).any() or np.isnan(b).any())
    return known and len(a) > 1 and not (no_spread(a) or no_spread(b))


def _exact_p(values: np.ndarray, statistic: Callable[..., np.ndarray]) -> float:
    """The two-sided p of a statistic of values [n], over all their orders."""
    found = stats.permutation_test(
        (values,), statistic, permutation_type="pairings", n_resamples=np.inf, vectorized=True
    )
    return float(found.pvalue)
