"""Power of the t test of one coefficient: which effects a number of chains can show.

A coefficient b per standard deviation of its predictor, in a regression of n chains on p predictors
with residual standard deviation s, has the t statistic's noncentrality b sqrt(n / VIF) / s with n -
p - 1 degrees of freedom.
"""

import functools
import math

import numpy as np
from scipy import optimize, stats

# Chains from which on the t distribution is normal to a part in ten million.
_MANY = 1e7


def _check(residual_sd: float, vif: float, level: float) -> None:
    if not residual_sd > 0:
        raise ValueError(f"residual_sd={residual_sd}: must be above 0")
    if not vif >= 1:
        raise ValueError(f"vif={vif}: must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie in (0, 1)")


def power(
    effect: float,
    n: int,
    predictors: int,
    residual_sd: float,
    *,
    vif: float = 1.0,
    level: float = 0.05,
) -> float:
    """Return the probability that the two-sided t test at `level` rejects b = 0 if b = `effect`.

    n: chains; 0 where they leave no degrees of freedom.
    """
    _check(residual_sd, vif, level)
    df = n - predictors - 1
    if df < 1:
        return 0.0
    if not effect:
        return level
    # The two-sided t test is the F test with one degree of freedom, whose noncentral distribution
    # scipy computes more accurately.
    noncentrality = effect**2 * n / vif / residual_sd**2
    found = float(stats.ncf.sf(_limit(level, df), 1, df, noncentrality))
    # scipy has no number for an effect of a million standard deviations.
    return 1.0 if math.isnan(found) else found


@functools.lru_cache(maxsize=4096)
def _limit(level: float, df: int) -> float:
    """F from which on the test at `level` rejects: one for all effects and variances."""
    return float(stats.f.isf(level, 1, df))


def least_effect(
    n: int,
    predictors: int,
    residual_sd: float,
    *,
    vif: float = 1.0,
    level: float = 0.05,
    wanted: float = 0.8,
) -> float:
    """Return the effect per standard deviation that is detected with probability `wanted`.

    n: chains; inf where they leave no degrees of freedom.
    """
    _check(residual_sd, vif, level)
    if not level < wanted < 1:
        raise ValueError(f"wanted={wanted}: must lie between the level {level} and 1")
    if n - predictors - 1 < 1:
        return float("inf")
    unit = residual_sd * np.sqrt(vif / n)
    high = 1.0
    while power(high * unit, n, predictors, residual_sd, vif=vif, level=level) < wanted:
        high *= 2
    units = optimize.brentq(
        lambda b: power(b * unit, n, predictors, residual_sd, vif=vif, level=level) - wanted,
        1e-9,
        high,
    )
    return float(units * unit)


def chains_needed(
    effect: float,
    predictors: int,
    residual_sd: float,
    *,
    vif: float = 1.0,
    level: float = 0.05,
    wanted: float = 0.8,
) -> int:
    """Return the smallest number of chains that detects `effect` with probability `wanted`.

    Raises ValueError for an effect of 0, which no number of chains detects.
    """
    _check(residual_sd, vif, level)
    if not abs(effect) > 0:
        raise ValueError("effect=0: no number of chains finds it")

    # With so many the variance counts as known, and scipy's F takes no such degrees of freedom.
    many = _noncentrality(level, wanted) * vif * (residual_sd / effect) ** 2
    if many > _MANY:
        return math.ceil(many)

    def enough(chains: int) -> bool:
        return power(effect, chains, predictors, residual_sd, vif=vif, level=level) >= wanted

    low = high = predictors + 2
    while not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if enough(middle):
            high = middle
        else:
            low = middle
    return low if enough(low) else high


@functools.lru_cache
def _noncentrality(level: float, wanted: float) -> float:
    """That of the chi-squared test at `level` with one degree of freedom and the power `wanted`."""
    limit = stats.chi2.isf(level, 1)
    return float(optimize.brentq(lambda nc: stats.ncx2.sf(limit, 1, nc) - wanted, 1e-9, 1e3))
