"""Whether a curve of simulated means is the curve of a formula, in one p-value per curve.

The entries of a curve (generations, ratios, ...) are measured on the same replicates and err
together, so they are not judged one by one. Three tests share a curve's level:

* scale: is the whole formula off by a factor? The factor is estimated with the weights that the
  covariance of the entries makes best (Rao 1965, "The theory of least squares when the parameters
  are stochastic", covariance adjustment); t with R - q degrees of freedom.
* shape: is it off anywhere? Hotelling's T^2 of all entries; F with q and R - q.
* entries: is one entry off? The largest |t| with R - 1, times the number of entries.

R replicates, n entries, q directions in which they vary. All three are exact for normal samples
from two replicates on: where R is below 4 n, entries are averaged in R // 4 blocks of neighbours
first, so that the covariance can be estimated.

Samples that are skewed make |t| too large in one tail: with squared normal numbers and 50
replicates p <= 0.01 comes 20 times as often as it should. Each statistic is therefore shrunk
(`shrunk`) by the transformation of Hall (1992, "On the removal of skewness by transformation",
J. R. Stat. Soc. B 54), the entries' with their own skewness, the others with the largest of a
curve's entries. What that leaves is counted in tests/studies/theory/test_skewed.py.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.stats

# Differences of rounding: relative, and absolute.
ROUNDING, NOTHING = 1e-9, 1e-12
# Directions whose share of the variance, in units of the entries' deviations, is below this one
# are not compared: rounding decides what they are.
NEGLIGIBLE = 1e-6
REPLICATES_PER_BLOCK = 4
# Replicates below which skewness is not estimated well enough: p then holds for samples that are
# about normal.
FEW = 50
TESTS = 3


class Moments(NamedTuple):
    """Of samples [R, n]: R, mean [n], covariance [n, n] (over R - 1) and third central moment [n]
    (over R).
    """

    replicates: int
    mean: np.ndarray
    cov: np.ndarray
    third: np.ndarray


class Agreement(NamedTuple):
    """How a curve compares with its formula.

    Attributes:
        error: estimated relative error of the formula as a whole; NaN where it is zero everywhere.
        t: of that error, beyond the tolerance.
        f: of all entries together, beyond the tolerance.
        directions: q, the first number of degrees of freedom of f.
        freedom: R - q, the second one.
        largest: largest |t| of an entry.
        p: of the three tests together; 0 where numbers without spread differ, or are not finite.
        unit: standard deviation of the estimated error times sqrt(R), from which follows what R
            replicates find; NaN where there is no estimate.
        skew: largest |skewness| of an entry, by which the statistics are shrunk in p.
    """

    error: float
    t: float
    f: float
    directions: int
    freedom: int
    largest: float
    p: float
    unit: float
    skew: float = 0.0


def moments(samples: np.ndarray) -> Moments:
    """Return the moments of samples [R, n], R >= 2."""
    samples = np.asarray(samples, float)
    mean = samples.mean(0)
    away = samples - mean
    return Moments(len(samples), mean, away.T @ away / (len(samples) - 1), (away**3).mean(0))


def merge(one: Moments, other: Moments) -> Moments:
    """Return the moments of both sets of samples together."""
    count = one.replicates + other.replicates
    step = other.mean - one.mean
    squares = one.cov * (one.replicates - 1) + other.cov * (other.replicates - 1)
    squares = squares + np.outer(step, step) * (one.replicates * other.replicates / count)
    first, second = (m.replicates * m.third for m in (one, other))
    spread = np.diag(other.cov) * (other.replicates - 1) * one.replicates
    spread = spread - np.diag(one.cov) * (one.replicates - 1) * other.replicates
    lever = one.replicates * other.replicates * (one.replicates - other.replicates) / count**2
    third = (first + second + step**3 * lever + 3 * step * spread / count) / count
    mean = one.mean + step * (other.replicates / count)
    return Moments(count, mean, squares / (count - 1), third)


def skewness(found: Moments) -> np.ndarray:
    """Return the skewness [n] of the samples; 0 for an entry that does not vary."""
    variance = np.diag(found.cov) * (found.replicates - 1) / found.replicates
    varies = np.sqrt(variance) > ROUNDING * np.abs(found.mean) + NOTHING
    return np.where(varies, found.third / np.where(varies, variance, 1.0) ** 1.5, 0.0)


def shrunk(t: np.ndarray | float, skew: np.ndarray | float, replicates: float) -> np.ndarray:
    """Return |t| less what skewed samples add to it in their heavier tail.

    Hall's transformation, in the direction that makes |t| smaller whatever the sign of either: with
    a = |skew| / (3 sqrt(R)), (1 - (1 - a |t|)^3) / (3 a) - |skew| / (6 sqrt(R)). It is increasing,
    never above |t|, and |t| itself without skewness.
    """
    size, skew = np.abs(t), np.abs(skew)
    # Zero, and what is next to it, would be divided by.
    a = np.maximum(skew / (3 * np.sqrt(replicates)), 1e-9)
    with np.errstate(invalid="ignore", over="ignore"):
        hall = size - a * size**2 + a**2 * size**3 / 3 - skew / (6 * np.sqrt(replicates))
        return np.where(np.isfinite(size), np.clip(hall, 0, size), size)


def entries(analytic: np.ndarray, found: Moments, tolerance: float = 0.0) -> np.ndarray:
    """Return t [n] of every entry, beyond the tolerance; 0 where both agree to rounding, inf where
    they differ without any spread.
    """
    away = found.mean - analytic
    allowed = (tolerance + ROUNDING) * np.abs(analytic) + NOTHING
    beyond = np.sign(away) * np.maximum(np.abs(away) - allowed, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(beyond == 0, 0.0, beyond / np.sqrt(np.diag(found.cov) / found.replicates))


def agreement(analytic: np.ndarray, found: Moments, tolerance: float = 0.0) -> Agreement:
    """Compare a curve with its formula.

    Args:
        analytic: [n] what the formula says.
        found: moments of the samples.
        tolerance: relative error that the formula is known to have.
    """
    t = entries(analytic, found, tolerance)
    varies = np.sqrt(np.diag(found.cov)) > ROUNDING * np.abs(found.mean) + NOTHING
    contradicted = not (np.isfinite(t) & (varies | (t == 0))).all()
    largest = float(np.abs(t).max(initial=0.0)) if not np.isnan(t).any() else float("nan")
    n = int(varies.sum())
    if contradicted or not n:
        p = 0.0 if contradicted else 1.0
        return Agreement(float("nan"), 0.0, 0.0, 0, 0, largest, p, float("nan"))
    count = found.replicates
    part = Moments(
        count, found.mean[varies], found.cov[np.ix_(varies, varies)], found.third[varies]
    )
    compared = _compared(analytic[varies], part, tolerance)
    skews = skewness(part)
    skew = float(np.abs(skews).max())
    compared = compared._replace(largest=largest, skew=skew)
    single = 2 * scipy.stats.t.sf(shrunk(t[varies], skews, count).max(), count - 1) * n
    if n == 1:
        return compared._replace(p=min(float(single), 1.0))
    freedom = count - 1 if tolerance else compared.freedom
    scale = 2 * scipy.stats.t.sf(shrunk(compared.t, skew, count), freedom)
    # F is T^2 but for a factor, and T the largest |t| of any direction.
    factor = compared.directions * (count - 1) / compared.freedom
    length = shrunk(np.sqrt(compared.f * factor), skew, count)
    shape = scipy.stats.f.sf(length**2 / factor, compared.directions, compared.freedom)
    p = TESTS * min(scale, shape, single)
    return compared._replace(p=min(float(p), 1.0))


def _compared(analytic: np.ndarray, found: Moments, tolerance: float) -> Agreement:
    """Scale and shape of entries that all vary."""
    count, size = found.replicates, np.abs(analytic)
    sized = size > NOTHING
    # Relative errors, where there is something to be relative to.
    unit = np.where(sized, size, max(size.max(), NOTHING) if sized.any() else 1.0)
    blocks = np.array_split(
        np.arange(len(unit)), max(1, min(len(unit), count // REPLICATES_PER_BLOCK))
    )
    average = np.zeros((len(blocks), len(unit)))
    for i, block in enumerate(blocks):
        average[i, block] = 1 / (len(block) * unit[block])
    white = _whitening(average @ found.cov @ average.T) @ average
    away, along = white @ (found.mean - analytic), white @ analytic
    if tolerance:
        allowed = np.where(sized, tolerance * size, 0) + NOTHING
        fitted = scipy.optimize.lsq_linear(white * allowed, away, bounds=(-1.0, 1.0))
        rest = away - white @ (allowed * fitted.x)
    else:
        rest = away
    q, t2 = len(white), float(count * (rest @ rest))
    freedom = count - q
    f = t2 * freedom / (q * (count - 1))
    if not sized.any():
        error = t = per_root = float("nan")
        t = 0.0
    elif tolerance:
        error, t, per_root = _plain_scale(analytic, found, sized, tolerance)
    else:
        error, t, per_root = _best_scale(away, along, count, freedom)
    return Agreement(error, t, f, q, freedom, 0.0, 1.0, per_root)


def _whitening(cov: np.ndarray) -> np.ndarray:
    """[q, m] such that its product with numbers of this covariance [m, m] has covariance 1."""
    sd = np.sqrt(np.diag(cov))
    sd = np.where(sd > 0, sd, 1.0)
    values, vectors = np.linalg.eigh(cov / np.outer(sd, sd))
    kept = values > NEGLIGIBLE * values[-1]
    return (vectors[:, kept] / np.sqrt(values[kept])).T / sd


def _best_scale(
    away: np.ndarray, along: np.ndarray, count: int, freedom: int
) -> tuple[float, float, float]:
    """(error, t, unit) of a factor, with the other directions as covariates."""
    information = float(along @ along)
    error = float(along @ away) / information
    others = count * max(float(away @ away) - error**2 * information, 0.0)
    # What was estimated of the covariance makes the weights look better than they are.
    variance = (count - 1) / (freedom * information)
    t = error / np.sqrt(variance * (1 + others / (count - 1)) / count)
    return error, float(t), float(np.sqrt(variance))


def _plain_scale(
    analytic: np.ndarray, found: Moments, sized: np.ndarray, tolerance: float
) -> tuple[float, float, float]:
    """(error, t, unit) of the mean relative error: whatever the formula's own error within its
    tolerance, it moves this mean by no more than the tolerance.
    """
    weights = np.where(sized, 1 / np.where(sized, analytic, 1.0), 0.0) / sized.sum()
    error = float(weights @ (found.mean - analytic))
    per_root = float(np.sqrt(weights @ found.cov @ weights))
    beyond = np.sign(error) * max(abs(error) - tolerance, 0.0)
    return error, float(beyond / (per_root / np.sqrt(found.replicates))), per_root


# ---- how much is found


class Power(NamedTuple):
    """What is asked of a table: that an error of `detect` in any of its `curves` formulas is found
    with probability `power`, where the chance of any false alarm is at most `level`.
    """

    detect: float
    power: float
    level: float
    curves: int


def finds(found: Agreement, power: Power, count: float) -> float:
    """Return the relative error of the whole formula, beyond its tolerance, that `count` replicates
    find with the wanted probability; NaN where the formula is zero everywhere.

    Found means: the scale test alone falls below its part of the level, before Holm's steps give
    the curve more.
    """
    freedom = max(found.freedom, 1)
    share = power.level / max(power.curves, 1) / (TESTS if found.directions > 1 else 1)
    limit = scipy.stats.t.isf(share / 2, freedom)
    # What is left of |t| after it was shrunk must be above the limit.
    limit = _before_shrinking(limit, found.skew, count) + scipy.stats.t.ppf(power.power, freedom)
    return float(limit * found.unit / np.sqrt(count))


def _before_shrinking(t: float, skew: float, replicates: float) -> float:
    """The |t| of which `shrunk` leaves t."""
    a = max(abs(skew) / (3 * np.sqrt(replicates)), 1e-9)
    before = (1 - np.cbrt(1 - 3 * a * (t + abs(skew) / (6 * np.sqrt(replicates))))) / a
    # From there on nothing is taken off.
    return float(max(t, before)) if a * before <= 3 else float(t)


def needed(found: Agreement, power: Power, tolerance: float = 0.0) -> int:
    """Return the replicates that `power` asks for, judged by what has been drawn so far.

    Where a formula is only right to a tolerance, half of that is error enough to look for. The
    spread of a few replicates may look small by luck: two standard errors are added. A formula
    that may be off by all of itself says nothing that more replicates would contradict.
    """
    if not np.isfinite(found.unit) or found.freedom < 1 or tolerance >= 1:
        return 0
    luck = 1 + 2 * np.sqrt(2 / found.freedom) if found.freedom < 10_000 else 1.03
    wanted = wanted_error(power, tolerance)
    count = luck * (finds(found._replace(skew=0.0), power, 1) / wanted) ** 2
    # With more replicates skewness takes less: its part at this number is enough.
    count = luck * (finds(found, power, max(count, 2)) * np.sqrt(max(count, 2)) / wanted) ** 2
    return int(np.ceil(count))


def wanted_error(power: Power, tolerance: float) -> float:
    """Return the error beyond the tolerance that is looked for."""
    return max(power.detect, tolerance / 2)


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values [m] adjusted for their number by Holm's steps: those at or below a level are
    false with at most that probability, all together.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
