"""Statistics that several studies report."""

from collections.abc import Sequence
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


def t_interval(values: np.ndarray, null: float) -> Interval:
    """Return the interval of the mean of values [n], and p of the mean being `null`.

    All are nan for fewer than two values; p is 0 or 1 where there is no spread.
    """
    n = len(values)
    if n < 2:
        return Interval(*(float("nan"),) * 4)
    mean, se = values.mean(), values.std(ddof=1) / np.sqrt(n)
    half = stats.t.isf(0.025, n - 1) * se
    if se > 0:
        p = 2 * stats.t.sf(abs(mean - null) / se, n - 1)
    else:
        p = mean == null
    return Interval(se=float(se), low=float(mean - half), high=float(mean + half), p=float(p))


def agreeing_se(n: int) -> float:
    """Return the standard error of a share that is 0 or 1 because all n units agree.

    The usual one is 0 there, as if n units said all about the others. With this one the 95 % t
    interval reaches as far as the exact one (Clopper and Pearson 1934). nan for fewer than two.
    """
    if n < 2:
        return float("nan")
    return float((1 - 0.025 ** (1 / n)) / stats.t.isf(0.025, n - 1))
