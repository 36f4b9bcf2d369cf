"""Regressions of a chain's relative change on the properties of its human data, as the paper and
its released code make them.

y = late / generation 0 of a chain, not standardised. Every regressor is standardised within the
rows of its fit (ddof 0), so a coefficient is the change of the relative metric per standard
deviation of the property. Ordinary least squares with intercept, classical standard errors,
two-sided t, no correction for the number of tests (arXiv 2504.03814, sections 4.3, 4.4, B.7;
recursive_loops.md, section 5). The versions that can be believed stand in `regression_honest`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

# The six properties of the final study, as they are called in tables, and as the paper prints them.
PROPERTIES: dict[str, str] = {
    "cosine_diversity": "Semantic diversity",
    "lexical_diversity": "Lexical diversity",
    "gaussian_aic": "Gaussianity",
    "quality": "Quality",
    "positivity": "Positivity",
    "text_length": "Text length",
}
# Everything that was considered (B.3.1); near and far are 50 and 1000 neighbours at 10,000 texts.
# The first step of the selection kept `FIRST_STEP`.
CANDIDATES: dict[str, str] = {
    "text_length": "Text length",
    "type_token_ratio": "TTR",
    "vocabulary_size": "Vocabulary size",
    "quality": "Quality",
    "word_entropy": "Word entropy",
    "lexical_diversity": "Lexical diversity",
    "cosine_diversity": "Semantic diversity",
    "knn_cosine_diversity_near": "k-nn diversity (near)",
    "knn_cosine_diversity_far": "k-nn diversity (far)",
    "kl_entropy_near": "KL entropy (near)",
    "kl_entropy_far": "KL entropy (far)",
    "gaussian_aic": "Gaussianity",
    "toxicity": "Toxicity",
    "positivity": "Positivity",
}
FIRST_STEP = (
    "word_entropy",
    "kl_entropy_near",
    "quality",
    "text_length",
    "lexical_diversity",
    "cosine_diversity",
    "gaussian_aic",
    "positivity",
)
TITLES = CANDIDATES | {
    "negentropy": "Negentropy",
    "ratio": "Synthetic ratio",
    "first": "Generation 0",
}
COEFFICIENTS = ("term", "coefficient", "se", "t", "p", "low", "high")
_FOLDS = 10


class Fit(NamedTuple):
    """One regression. coefficients: columns `COEFFICIENTS`, one row per shown term (low, high: 95 %
    interval); n: chains; r2 of all regressors, shown or not; p: of the F test; cv_r2: mean R2 of
    ten unshuffled folds (nan below 20 chains); residual_sd: with n - regressors - 1 below.
    """

    name: str
    coefficients: pd.DataFrame
    n: int
    regressors: tuple[str, ...]
    r2: float
    adjusted_r2: float
    f: float
    p: float
    cv_r2: float
    residual_sd: float


def title(term: str) -> str:
    """How a regressor is printed: `Lexical diversity`, with its domain where it has one."""
    name, _, domain = term.partition("@")
    return TITLES.get(name, name) + (f" ({domain})" if domain else "")


def standardise(x: pd.DataFrame, fit: str = "the fit") -> pd.DataFrame:
    """Columns with mean 0 and standard deviation 1 (ddof 0).

    ValueError naming the column that holds something else than finite numbers, or that is constant.
    """
    for name in x.columns:
        values = pd.to_numeric(x[name], errors="coerce").to_numpy(float)
        if not np.isfinite(values).all():
            raise ValueError(
                f"predictor {name!r} has no value for {int((~np.isfinite(values)).sum())} of the "
                f"{len(x)} chains of {fit}, every chain needs one"
            )
        # A constant column of floats can have a spread of rounding errors.
        if len(values) and np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()):
            raise ValueError(
                f"predictor {name!r} is {values[0]:g} for all {len(x)} chains of {fit}, a "
                "predictor must vary"
            )
    values = x.astype(float)
    return (values - values.mean()) / values.std(ddof=0)


def dummies(labels: pd.Series, base: str | None = None) -> pd.DataFrame:
    """One 0/1 column `dataset=<label>` per label but the base (default: the first in order of
    names), as the fit over all datasets has.
    """
    levels = sorted(labels.astype(str).unique())
    base = levels[0] if base is None or base not in levels else base
    return pd.DataFrame(
        {
            f"dataset={level}": (labels.astype(str) == level).astype(float)
            for level in levels
            if level != base
        },
        index=labels.index,
    )


def check_outcome(y: Sequence[float], fit: str, names: Sequence | None = None) -> None:
    """ValueError that names the chains (by `names` [n], an index, or their places) whose outcome is
    NaN or infinite.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(y, float)))
    if not len(bad):
        return
    names = (
        list(y.index)
        if names is None and isinstance(y, pd.Series)
        else list(range(len(y)) if names is None else names)
    )
    listed = ", ".join(f"{names[i]} ({np.asarray(y, float)[i]:g})" for i in bad[:5]) + (
        ", ..." if len(bad) > 5 else ""
    )
    raise ValueError(
        f"{fit}: the outcome is no finite number for {len(bad)} of {len(y)} chains, {listed}; "
        "leave them out or measure them again"
    )


def check_rows(n: int, x: pd.DataFrame, fit: str) -> None:
    """ValueError where there are fewer chains than a regression needs, or the regressors
    (standardised) depend on each other.
    """
    if n < x.shape[1] + 2:
        raise ValueError(
            f"{fit} has {n} chain{'s' * (n != 1)} for {x.shape[1]} predictors and an intercept, "
            f"at least {x.shape[1] + 2} are needed"
        )
    if np.linalg.matrix_rank(x.to_numpy(float)) < x.shape[1]:
        raise ValueError(
            f"{fit}: a predictor is a linear combination of the others ({', '.join(x.columns)}), "
            "leave one out"
        )


def fit_ols(
    y: Sequence[float],
    x: pd.DataFrame,
    *,
    name: str = "the fit",
    shown: Sequence[str] | None = None,
) -> Fit:
    """Ordinary least squares of y [n] on the standardised columns of x [n, p] and an intercept.

    shown: the terms that the table of coefficients holds (default: all). ValueError, in one
    sentence, for fewer than p + 2 chains, a constant predictor, a value that is missing or infinite
    (an outcome's by its chains: the index of a Series, or places), or predictors that depend on
    each other.
    """
    import statsmodels.api as sm

    check_outcome(y, name)
    y = np.asarray(y, float)
    if len(y) < x.shape[1] + 2:
        check_rows(len(y), x, name)
    z = standardise(x, name)
    check_rows(len(y), z, name)
    result = sm.OLS(y, sm.add_constant(z.to_numpy(float), has_constant="add")).fit()
    interval = result.conf_int()
    table = pd.DataFrame(
        {
            "term": list(x.columns),
            "coefficient": result.params[1:],
            "se": result.bse[1:],
            "t": result.tvalues[1:],
            "p": result.pvalues[1:],
            "low": interval[1:, 0],
            "high": interval[1:, 1],
        }
    )
    kept = table[table["term"].isin(list(x.columns) if shown is None else list(shown))].reset_index(
        drop=True
    )
    return Fit(
        name, kept, len(y), tuple(x.columns), float(result.rsquared), float(result.rsquared_adj), float(result.fvalue), float(result.f_pvalue),
        _cross_validated(z.to_numpy(float), y), float(np.sqrt(result.mse_resid)),
    )  # fmt: skip


def _cross_validated(z: np.ndarray, y: np.ndarray) -> float:
    if len(y) < 2 * _FOLDS:
        return float("nan")
    from sklearn.model_selection import KFold

    design, scores = np.column_stack([z, np.ones(len(z))]), []
    for rest, fold in KFold(_FOLDS).split(z):
        residual = y[fold] - design[fold] @ np.linalg.lstsq(design[rest], y[rest], rcond=None)[0]
        scores.append(1 - residual @ residual / ((y[fold] - y[fold].mean()) ** 2).sum())
    return float(np.mean(scores))


def stars(p: float) -> str:
    """ "***", "**", "*" for p below .001, .01, .05, else ""."""
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))


def shade(coefficient: float, p: float) -> str:
    """Significance colour of a cell: "" for p >= .05, else "plus" or "minus" (less and more
    detrimental) and the number of stars.
    """
    level = len(stars(p))
    return f"{'plus' if coefficient > 0 else 'minus'}{level}" if level else ""


# ---- which predictors
# -------------------------------------------------------------------------------------------------


def vif(x: pd.DataFrame) -> pd.Series:
    """Variance inflation factor of every column, 1 / (1 - R2) of its regression on the others; inf
    where they determine it.

    Equal to statsmodels' on standardised columns without a constant, which is the same as with one
    (and which warns of properties that go together, where this is asked for). ValueError as
    `standardise`.
    """
    z = standardise(x, "the table of properties").to_numpy(float)
    if z.shape[1] == 1:
        return pd.Series([1.0], index=x.columns)
    rank = np.linalg.matrix_rank(z)
    values = []
    for i in range(z.shape[1]):
        others = np.delete(z, i, axis=1)
        rest = z[:, i] - others @ np.linalg.lstsq(others, z[:, i], rcond=None)[0]
        determined = np.linalg.matrix_rank(others) == rank
        inflation = float("inf") if determined else float(z[:, i] @ z[:, i] / (rest @ rest))
        # Beyond this, what is left of a column is rounding.
        values.append(inflation if inflation < 1e10 else np.inf)
    return pd.Series(values, index=x.columns)


def select_by_vif(
    x: pd.DataFrame, *, most: float = 10.0, keep: Sequence[str] = ()
) -> list[tuple[str, float]]:
    """The columns that are left when the one of largest VIF is dropped until none exceeds `most`,
    with their VIF.

    keep: columns that are never dropped (the paper kept text length as a control for quality).
    ValueError for an unknown name in it.
    """
    if unknown := [name for name in keep if name not in x.columns]:
        raise ValueError(
            f"keep holds {unknown[0]!r}, which is not among the properties {', '.join(x.columns)}"
        )
    left = list(x.columns)
    while True:
        found = vif(x[left])
        free = found.drop(labels=[name for name in keep if name in left])
        if free.empty or not free.max() > most:
            return [(name, float(found[name])) for name in left]
        left.remove(free.idxmax())


def rank_correlations(x: pd.DataFrame) -> pd.DataFrame:
    """|Spearman rho| of every pair of columns, as the released code draws beside the VIF; nan for a constant column."""
    return x.astype(float).corr(method="spearman").abs()


def property_table(
    chains: pd.DataFrame,
    properties: pd.DataFrame,
    names: Sequence[str],
    domains: Sequence[str] = (),
) -> pd.DataFrame:
    """Predictors of every chain [chains, names], or, with domains, `name@domain` of the cluster
    that the column `cluster.<domain>` names.

    ValueError for a cluster that properties.csv does not list, or lists twice.
    """
    keyed = properties.assign(
        dataset=properties["dataset"].astype(str), cluster=properties["cluster"].astype(str)
    )
    if (twice := keyed.duplicated(["dataset", "cluster"])).any():
        row = keyed[twice].iloc[0]
        raise ValueError(
            f"properties.csv lists cluster {row['cluster']!r} of {row['dataset']!r} twice, one "
            "row for each cluster is needed"
        )
    keyed = keyed.set_index(["dataset", "cluster"])
    places: Mapping[str, tuple[pd.Series, pd.Series]] = (
        {f"@{d}": (pd.Series(d, chains.index), chains[f"cluster.{d}"]) for d in domains}
        if domains
        else {"": (chains["dataset"], chains["cluster"])}
    )
    out = {}
    for suffix, (dataset, cluster) in places.items():
        keys = list(zip(dataset.astype(str), cluster.astype(str), strict=True))
        if lost := [key for key in keys if key not in keyed.index]:
            raise ValueError(
                f"properties.csv has no row for cluster {lost[0][1]!r} of {lost[0][0]!r}, which "
                "a chain of chains.csv was run on"
            )
        for name in names:
            out[name + suffix] = (
                pd.to_numeric(keyed[name], errors="coerce").loc[keys].to_numpy(float)
            )
    return pd.DataFrame(out, index=chains.index)
