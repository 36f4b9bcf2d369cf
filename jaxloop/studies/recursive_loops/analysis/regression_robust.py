"""Robustness of the paper's regressions: other errors, other forms of the outcome, other tests.

forms        The paper's outcome, late / generation 0, has generation 0 in its denominator, with its
             noise and with everything that a property does to generation 0. The difference, late -
             generation 0, still contains them. In the regression of late on generation 0 and the
             properties (ANCOVA), a property must explain the late values of chains that began
             alike. All three forms are in units of the mean of generation 0.
errors       "classical" (the paper's), "overlap" (`overlap.fit_overlap`), "bootstrap" (whole groups
             of overlapping source clusters are drawn)
corrections  Benjamini-Hochberg over all coefficients that are shown together
equivalence  That a property has no influence is shown by an interval inside bounds (two one-sided
             tests), not by the lack of a significant coefficient
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import ArrayLike
from scipy import stats

from jaxloop.studies.recursive_loops.analysis.overlap import Mixture
from jaxloop.studies.recursive_loops.analysis.regression import (
    COEFFICIENTS,
    Fit,
    checked_design,
    shown_rows,
)

FORMS = ("relative", "difference", "ancova")
# Draws of the bootstrap.
DRAWS = 2000
# Equivalence tests ask whether an effect per standard deviation is smaller than this.
BOUND = 0.02


def form(table: pd.DataFrame, name: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Return the outcome [n] in one form, and its covariates [n, 0 or 1].

    table: that of `relative.outcomes`, with the columns first and late. name: "relative" is late /
    first; "difference" is (late - first) / mean(first); "ancova" is late / mean(first), with first
    as a covariate. Raises ValueError for another name.
    """
    if name not in FORMS:
        raise ValueError(f"form {name!r} is not one of {', '.join(FORMS)}")
    first, late = table["first"].to_numpy(float), table["late"].to_numpy(float)
    none = pd.DataFrame(index=table.index)
    if name == "relative":
        return late / first, none
    unit = abs(first.mean())
    if name == "difference":
        return (late - first) / unit, none
    return late / unit, none.assign(first=first)


# ---- bootstrap over source clusters


def fit_bootstrap(
    y: ArrayLike,
    x: pd.DataFrame,
    groups: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    name: str = "the fit",
    shown: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return least-squares coefficients with errors from a bootstrap over groups of chains.

    Whole groups are drawn with replacement; x is standardised once, on all chains.

    Args:
        y: outcomes [n].
        x: regressors [n, p].
        groups: [n]; chains of one group are drawn together: those of one source cluster, or of
            clusters that overlap (`overlap.groups`).
        draws: bootstrap samples.
        seed: of the draws.
        name: of the fit, for messages.
        shown: the terms to return; None: all.

    Returns:
        The columns `COEFFICIENTS`. se: standard deviation over the draws; low, high: percentiles
        2.5 and 97.5; p: twice the smaller share of draws on one side of 0.

    Raises ValueError as `regression.fit_ols`, and for fewer than p + 2 groups, which are too few
    for a bootstrap.
    """
    codes, labels = pd.factorize(np.asarray(groups))
    outcome, z = checked_design(y, x, name)
    design = np.column_stack([np.ones(len(outcome)), z.to_numpy(float)])
    p = design.shape[1]
    if len(labels) < p + 1:
        raise ValueError(
            f"{name} has {len(labels)} groups of overlapping clusters for {p - 1} predictors, a "
            f"bootstrap needs at least {p + 1}"
        )
    grams, products = np.zeros((len(labels), p * p)), np.zeros((len(labels), p))
    np.add.at(grams, codes, np.einsum("ni,nj->nij", design, design).reshape(len(outcome), -1))
    np.add.at(products, codes, design * outcome[:, None])
    counts = (
        np.random.default_rng(seed)
        .multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=draws)
        .astype(float)
    )
    gram = (counts @ grams).reshape(draws, p, p)
    solvable = np.linalg.cond(gram) < 1e10
    if solvable.mean() < 0.9:
        raise ValueError(
            f"{name}: {100 * (1 - solvable.mean()):.0f} % of the bootstrap's draws of "
            f"{len(labels)} groups leave a predictor without spread"
        )
    product = (counts @ products)[solvable]
    drawn = np.linalg.solve(gram[solvable], product[..., None])[..., 0][:, 1:]
    coefficient = np.linalg.lstsq(design, outcome, rcond=None)[0][1:]
    above = (drawn > 0).mean(0)
    se = drawn.std(0, ddof=1)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    columns = (
        list(x.columns),
        coefficient,
        se,
        coefficient / se,
        np.clip(2 * np.minimum(above, 1 - above), 1 / len(drawn), 1),
        low,
        high,
    )
    table = pd.DataFrame(dict(zip(COEFFICIENTS, columns, strict=True)))
    return shown_rows(table, shown)


# ---- many tests


def by_chance(significant: int, tests: int, level: float = 0.05) -> float:
    """Return the probability of at least `significant` significant results by chance.

    It is that of `tests` independent tests of true null hypotheses.
    """
    return float(stats.binom.sf(significant - 1, tests, level))


# ---- equivalence


class Equivalence(NamedTuple):
    """Equivalence tests of the coefficients of a fit.

    Attributes:
        terms: the coefficients.
        p: p values of the two one-sided tests of |b| >= bound (the larger of the two).
        least: the smallest bounds at which both tests would reject at the level.
    """

    terms: tuple[str, ...]
    p: np.ndarray
    least: np.ndarray


def _check_bound(bound: float) -> None:
    if not bound > 0:
        raise ValueError(
            f"bound={bound}: must be above 0, it is the largest effect that counts as none"
        )


def equivalence(fit: Fit, bound: float = BOUND, level: float = 0.05) -> Equivalence:
    """Test whether each coefficient of an OLS fit lies within ± bound.

    By two one-sided t tests (Schuirmann 1987). Raises ValueError for bound <= 0.
    """
    _check_bound(bound)
    b, se = (fit.coefficients[c].to_numpy(float) for c in ("coefficient", "se"))
    df = fit.n - len(fit.regressors) - 1
    p = np.maximum(stats.t.sf((b + bound) / se, df), stats.t.cdf((b - bound) / se, df))
    return Equivalence(tuple(fit.coefficients["term"]), p, np.abs(b) + stats.t.isf(level, df) * se)


def equivalence_overlap(
    fit: Fit, posterior: Mixture, bound: float = BOUND, level: float = 0.05
) -> Equivalence:
    """Test the same for a fit with overlap-aware errors.

    p is the larger posterior probability beyond one of the bounds; least is the larger end, in
    absolute value, of the 1 - 2 level interval.
    """
    _check_bound(bound)
    place = [fit.regressors.index(term) for term in fit.coefficients["term"]]
    p = np.maximum(posterior.below(-bound), 1 - posterior.below(bound))[place, 0]
    ends = np.abs([posterior.quantile(level)[place, 0], posterior.quantile(1 - level)[place, 0]])
    return Equivalence(tuple(fit.coefficients["term"]), p, ends.max(0))


def joint_f(y: ArrayLike, x: pd.DataFrame, terms: Sequence[str]) -> tuple[float, float, int]:
    """Return F, p and the number of restrictions of a joint test in the OLS fit of y on x.

    The hypothesis is that all of `terms` have coefficient 0. Raises ValueError as
    `regression.fit_ols`.
    """
    outcome, z = checked_design(y, x, "the joint test")
    result = sm.OLS(outcome, sm.add_constant(z.to_numpy(float), has_constant="add")).fit()
    restrictions = np.zeros((len(terms), x.shape[1] + 1))
    restrictions[np.arange(len(terms)), [list(x.columns).index(term) + 1 for term in terms]] = 1
    test = result.f_test(restrictions)
    return float(test.fvalue), float(test.pvalue), len(terms)
