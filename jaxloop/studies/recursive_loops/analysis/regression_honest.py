"""What the regressions of the paper can and cannot bear: the same fits with other errors, other
forms of the outcome, and other questions.

forms        late / generation 0 puts the same noise, and everything that a property does to generation 0, into the denominator. The
             difference late - generation 0 still holds it; in late ~ generation 0 + properties
             (ANCOVA) a property must explain the late value of chains that began alike. All three
             are in units of the mean of generation 0.
errors       "classical" (the paper's), "overlap" (`overlap.fit_overlap`), "bootstrap" (whole groups of overlapping source clusters are drawn)
corrections  Benjamini-Hochberg over all coefficients that are shown together
equivalence  "no influence" is shown by an interval inside bounds (two one-sided tests), never by tests that are not significant
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from jaxloop.studies.recursive_loops.analysis.overlap import Mixture
from jaxloop.studies.recursive_loops.analysis.regression import (
    COEFFICIENTS,
    Fit,
    check_rows,
    standardise,
)

FORMS = ("relative", "difference", "ancova")
DRAWS = 2000
BOUND = 0.02


def form(table: pd.DataFrame, name: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Outcome [n], and the covariates that belong to it [n, 0 or 1], from the columns first, late
    of `relative.outcomes`.

    "relative": late / first; "difference": (late - first) / mean first; "ancova": late / mean
    first, with the covariate first. ValueError for another name.
    """
    if name not in FORMS:
        raise ValueError(f"form {name!r} is not one of {', '.join(FORMS)}")
    first, late = table["first"].to_numpy(float), table["late"].to_numpy(float)
    none = pd.DataFrame(index=table.index)
    if name == "relative":
        return late / first, none
    unit = abs(first.mean())
    return (
        ((late - first) / unit, none)
        if name == "difference"
        else (late / unit, none.assign(first=first))
    )


# ---- bootstrap over source clusters
# -----------------------------------------------------------------------------------


def fit_bootstrap(
    y: Sequence[float],
    x: pd.DataFrame,
    groups: Sequence,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    name: str = "the fit",
    shown: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Columns `COEFFICIENTS` of least squares, with errors from drawing whole groups of chains with
    replacement.

    groups [n]: chains of one group are drawn together: those of one source cluster, or of clusters
    that overlap (`overlap.groups`). x is standardised once, on all chains. se: of the draws; low,
    high: percentiles 2.5 and 97.5; p: twice the smaller share of draws on one side of 0. ValueError
    as `regression.fit_ols`, and for fewer groups than p + 2, from which a bootstrap says nothing.
    """
    y, (codes, labels) = np.asarray(y, float), pd.factorize(np.asarray(groups))
    if len(y) < x.shape[1] + 2:
        check_rows(len(y), x, name)
    z = standardise(x, name)
    check_rows(len(y), z, name)
    design = np.column_stack([np.ones(len(y)), z.to_numpy(float)])
    p = design.shape[1]
    if len(labels) < p + 1:
        raise ValueError(
            f"{name} has {len(labels)} groups of overlapping clusters for {p - 1} predictors, a "
            f"bootstrap needs at least {p + 1}"
        )
    grams, products = np.zeros((len(labels), p * p)), np.zeros((len(labels), p))
    np.add.at(grams, codes, np.einsum("ni,nj->nij", design, design).reshape(len(y), -1))
    np.add.at(products, codes, design * y[:, None])
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
    found = np.linalg.solve(gram[solvable], (counts @ products)[solvable][..., None])[..., 0][:, 1:]
    coefficient = np.linalg.lstsq(design, y, rcond=None)[0][1:]
    above = (found > 0).mean(0)
    se = found.std(0, ddof=1)
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    columns = (
        list(x.columns),
        coefficient,
        se,
        coefficient / se,
        np.clip(2 * np.minimum(above, 1 - above), 1 / len(found), 1),
        low,
        high,
    )
    table = pd.DataFrame(dict(zip(COEFFICIENTS, columns, strict=True)))
    return table[table["term"].isin(list(x.columns) if shown is None else list(shown))].reset_index(
        drop=True
    )


# ---- many tests
# -------------------------------------------------------------------------------------------------------


def benjamini_hochberg(p: Sequence[float]) -> np.ndarray:
    """Adjusted p values [n]: rejecting those below q keeps the expected share of false rejections
    below q. nan stays nan.
    """
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p, float)
    known = np.isfinite(p)
    out = np.full(p.shape, np.nan)
    if known.any():
        out[known] = multipletests(p[known], method="fdr_bh")[1]
    return out


def by_chance(found: int, tests: int, level: float = 0.05) -> float:
    """Probability of at least `found` significant results among independent tests of true null
    hypotheses (one more if none: 1).
    """
    return float(stats.binom.sf(found - 1, tests, level))


# ---- equivalence
# ------------------------------------------------------------------------------------------------------


class Equivalence(NamedTuple):
    """term; p of the two one-sided tests of |b| >= bound; least: the smallest bound at which they
    would both reject at the level.
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
    """Two one-sided t tests per coefficient of an OLS fit that its effect lies within ± bound
    (Schuirmann 1987). ValueError for bound <= 0.
    """
    _check_bound(bound)
    b, se = (fit.coefficients[c].to_numpy(float) for c in ("coefficient", "se"))
    df = fit.n - len(fit.regressors) - 1
    p = np.maximum(stats.t.sf((b + bound) / se, df), stats.t.cdf((b - bound) / se, df))
    return Equivalence(tuple(fit.coefficients["term"]), p, np.abs(b) + stats.t.isf(level, df) * se)


def equivalence_overlap(
    fit: Fit, posterior: Mixture, bound: float = BOUND, level: float = 0.05
) -> Equivalence:
    """The same from a fit with overlap-aware errors: posterior probabilities beyond the bounds, and
    the larger end of the 1 - 2 level interval.
    """
    _check_bound(bound)
    place = [fit.regressors.index(term) for term in fit.coefficients["term"]]
    p = np.maximum(posterior.below(-bound), 1 - posterior.below(bound))[place, 0]
    ends = np.abs([posterior.quantile(level)[place, 0], posterior.quantile(1 - level)[place, 0]])
    return Equivalence(tuple(fit.coefficients["term"]), p, ends.max(0))


def joint_f(y: Sequence[float], x: pd.DataFrame, terms: Sequence[str]) -> tuple[float, float, int]:
    """F, p and number of restrictions of the hypothesis that all of `terms` have coefficient 0 in
    the OLS fit of y on x.
    """
    import statsmodels.api as sm

    z = standardise(x)
    result = sm.OLS(
        np.asarray(y, float), sm.add_constant(z.to_numpy(float), has_constant="add")
    ).fit()
    restrictions = np.zeros((len(terms), x.shape[1] + 1))
    restrictions[np.arange(len(terms)), [list(x.columns).index(term) + 1 for term in terms]] = 1
    test = result.f_test(restrictions)
    return float(test.fvalue), float(test.pvalue), len(terms)
