"""From a measure with its interval to a verdict on a claim."""

import math
from typing import NamedTuple

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

    To first order: (t(confidence) + t(power)) standard errors. nan where the error is unknown.
    """
    if estimate.n == 0:
        return 0.0
    if estimate.n < 2:
        return math.nan
    t = scipy.stats.t(estimate.n - 1)
    return float((t.ppf((1 + confidence) / 2) + t.ppf(POWER)) * estimate.se)


def judge(claim: Claim, interval: Interval, target: float) -> str:
    """Return the verdict on a claim, a key of `RULES`.

    target: what its measure is compared with.
    """
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return UNDECIDED
    low, high = interval.low - target, interval.high - target
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
