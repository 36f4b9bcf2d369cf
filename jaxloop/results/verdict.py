"""From a measure with its interval to a verdict on a claim."""

import functools
import math
from typing import NamedTuple

import scipy.optimize
import scipy.stats

from jaxloop.results.expectations import BELOW, NEAR, Claim

REPLICATED = "replicated"
SMALLER = "replicated, but smaller than expected"
NOT_REPLICATED = "not replicated"
UNDECIDED = "undecided"
# A claim of the verdict in words that stand on every page.
RULES = {
    REPLICATED: "the whole interval lies on the expected side, and reaches or passes the smallest "
    "effect that was said to count (`by … at least`); or, where ± stands, it lies within that "
    "distance",
    SMALLER: "the whole interval lies on the expected side, and stays short of the smallest effect "
    "that was said to count",
    NOT_REPLICATED: "the interval stays short of the smallest effect that was said to count, and "
    "reaches or passes the number that the claim is compared with (0 in `above 0`); or, where ± "
    "stands, it lies outside that distance",
    UNDECIDED: "the interval holds both what was expected and its contrary, or there is none",
}
POWER = 0.8
# An end of an interval that is this near to a limit, of the numbers' size, lies on it: 0.35 - 0.05
# is a little less than 0.3.
_ROUNDING = 1e-12


class Estimate(NamedTuple):
    """A measure of a run.

    Attributes:
        value: the estimate.
        se: its standard error; 0 for a number without chance, nan where it is unknown.
        n: independent units behind it (seeds, replicates, clusters); 0: it is exact.
        unit: what such a unit is, in the plural.
    """

    value: float
    se: float
    n: int
    unit: str = "seeds"


class Interval(NamedTuple):
    """Limits of an interval; both nan where there are too few units."""

    low: float
    high: float


def interval(estimate: Estimate, confidence: float) -> Interval:
    """Return the t-interval of an estimate; the value itself where it is exact."""
    if estimate.n == 0:
        return Interval(estimate.value, estimate.value)
    if estimate.n < 2 or not math.isfinite(estimate.se):
        return Interval(math.nan, math.nan)
    wide = float(scipy.stats.t.ppf((1 + confidence) / 2, estimate.n - 1)) * estimate.se
    return Interval(estimate.value - wide, estimate.value + wide)


def smallest_detectable(estimate: Estimate, confidence: float) -> float:
    """Return the effect that such an interval excludes zero for with probability `POWER`.

    By the noncentral t distribution, with the standard error as if it was known. nan where that is
    unknown.
    """
    if estimate.n == 0:
        return 0.0
    if estimate.n < 2 or not math.isfinite(estimate.se):
        return math.nan
    return _errors_found(estimate.n - 1, confidence) * estimate.se


@functools.cache
def _errors_found(freedom: int, confidence: float) -> float:
    """The effect in standard errors that is found with probability `POWER`; nan if unknown."""
    limit = float(scipy.stats.t.ppf((1 + confidence) / 2, freedom))
    # To first order, and 14 % too little with one degree of freedom.
    start = limit + float(scipy.stats.t.ppf(POWER, freedom))

    def missing(effect: float) -> float:
        # The square of t is F, whose noncentral distribution scipy computes more accurately.
        return POWER - float(scipy.stats.ncf.sf(limit**2, 1, freedom, effect**2))

    if not missing(start / 2) > 0 > missing(2 * start):
        return math.nan  # two units at a confidence so near 1 that scipy's numbers end
    return float(scipy.optimize.brentq(missing, start / 2, 2 * start))


def judge(claim: Claim, interval: Interval, target: float) -> str:
    """Return the verdict on a claim, a key of `RULES`.

    target: what its measure is compared with.
    """
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return UNDECIDED
    low, high = (_beyond(end, target, claim.by) for end in interval)
    if claim.expect == NEAR:
        if -claim.by <= low and high <= claim.by:
            return REPLICATED
        return NOT_REPLICATED if low > claim.by or high < -claim.by else UNDECIDED
    if claim.expect == BELOW:
        low, high = -high, -low
    excludes = high < claim.by
    if low > 0:
        return SMALLER if excludes else REPLICATED
    return NOT_REPLICATED if excludes or high <= 0 else UNDECIDED


def _beyond(end: float, target: float, by: float) -> float:
    """How far an end of an interval lies above the target; a limit where rounding alone differs."""
    distance = end - target
    near = _ROUNDING * max(abs(end), abs(target), by)
    return next((limit for limit in (0.0, by, -by) if abs(distance - limit) <= near), distance)
