"""Regressions of a chain's relative change on the properties of its human data.

They are made as in arXiv 2504.03814 (sections 4.3, 4.4, B.7) and its released code. The outcome is
y = late value / value of generation 0 of a chain, not standardised. Every regressor is standardised
within the rows of its fit (ddof 0), so a coefficient is the change of the relative metric per
standard deviation of the property. Ordinary least squares with intercept, classical standard
errors, two-sided t tests, no correction for the number of tests. `regression_robust` has other
errors, other forms of the outcome and such corrections.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import ArrayLike
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold

# The six properties of the final study, as they are called in tables, and as the paper prints them.
PROPERTIES: dict[str, str] = {
    "cosine_diversity": "Semantic diversity",
    "lexical_diversity": "Lexical diversity",
    "gaussian_aic": "Gaussianity",
    "quality": "Quality",
    "positivity": "Positivity",
    "text_length": "Text length",
}
# All properties that the paper considered (B.3.1); near and far: 50 and 1000 neighbours at 10,000
# texts.
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
# A column of floats is constant where its range is this small a share of its largest value:
# rounding alone gives it some spread.
_CONSTANT = 1e-12


class Fit(NamedTuple):
    """The result of one regression.

    Attributes:
        name: how sentences refer to the fit.
        coefficients: columns `COEFFICIENTS`, a row per shown term; low, high: 95 % interval.
        n: number of chains.
        regressors: names of all regressors, shown or not.
        r2: of all regressors, as is adjusted_r2.
        f: statistic of the F test of all regressors, and p its p value.
        cv_r2: mean R2 over ten unshuffled folds; nan below 20 chains.
        residual_sd: with n - regressors - 1 degrees of freedom.
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
    """Return a regressor as it is printed, such as `Lexical diversity`, with its domain if any."""
    name, _, domain = term.partition("@")
    return TITLES.get(name, name) + (f" ({domain})" if domain else "")


def is_constant(values: np.ndarray, scale: float | None = None) -> bool:
    """Return whether finite values [n] vary by no more than rounding.

    scale: the size of numbers to which the range is compared; the largest of `values` if None.
    """
    if not len(values):
        return False
    largest = float(np.abs(values).max()) if scale is None else scale
    return bool(np.ptp(values) <= _CONSTANT * max(1.0, largest))


def standardise(x: pd.DataFrame, fit: str = "the fit") -> pd.DataFrame:
    """Return the columns with mean 0 and standard deviation 1 (ddof 0).

    Raises ValueError naming the column that is constant, or has a value that is no finite number.
    """
    for name in x.columns:
        values = pd.to_numeric(x[name], errors="coerce").to_numpy(float)
        if not np.isfinite(values).all():
            raise ValueError(
                f"predictor {name!r} has no value for {int((~np.isfinite(values)).sum())} of the "
                f"{len(x)} chains of {fit}, every chain needs one"
            )
        if is_constant(values):
            raise ValueError(
                f"predictor {name!r} is {values[0]:g} for all {len(x)} chains of {fit}, a "
                "predictor must vary"
            )
    numbers = x.astype(float)
    return (numbers - numbers.mean()) / numbers.std(ddof=0)


def dummies(labels: pd.Series, base: str | None = None) -> pd.DataFrame:
    """Return one 0/1 column `dataset=<label>` for each label but one.

    The fit over all datasets uses them as regressors. base: the label without a column; the first
    by name if None or not among the labels.
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


def check_outcome(y: ArrayLike, fit: str, names: Sequence | pd.Series | None = None) -> None:
    """Raise ValueError naming the chains whose outcome in y [n] is NaN or infinite.

    names: of the chains [n]; if None the index of y where it is a Series, else their places.
    """
    outcome = np.asarray(y, float)
    bad = np.flatnonzero(~np.isfinite(outcome))
    if not len(bad):
        return
    if names is not None:
        labels = list(names)
    else:
        labels = list(y.index if isinstance(y, pd.Series) else range(len(outcome)))
    listed = ", ".join(f"{labels[i]} ({outcome[i]:g})" for i in bad[:5])
    more = ", ..." if len(bad) > 5 else ""
    raise ValueError(
        f"{fit}: the outcome is no finite number for {len(bad)} of {len(outcome)} chains, "
        f"{listed}{more}; leave them out or measure them again"
    )


def check_rows(n: int, x: pd.DataFrame, fit: str) -> None:
    """Raise ValueError where n chains are too few, or the regressors are linearly dependent.

    x: the standardised regressors; fit: name of the fit, for the message.
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


def checked_design(y: ArrayLike, x: pd.DataFrame, name: str) -> tuple[np.ndarray, pd.DataFrame]:
    """Return (outcome [n], standardised regressors [n, p]).

    Raises ValueError as `fit_ols`, but for an outcome that is no finite number.
    """
    outcome = np.asarray(y, float)
    if len(outcome) < x.shape[1] + 2:
        check_rows(len(outcome), x, name)
    z = standardise(x, name)
    check_rows(len(outcome), z, name)
    if is_constant(outcome):
        raise ValueError(
            f"{name}: the outcome is {outcome[0]:g} for all {len(outcome)} chains, so that nothing "
            "can be explained"
        )
    return outcome, z


def shown_rows(table: pd.DataFrame, shown: Sequence[str] | None) -> pd.DataFrame:
    """Return the rows of a table of coefficients whose term is one of `shown` (None: all)."""
    if shown is None:
        return table.reset_index(drop=True)
    return table[table["term"].isin(list(shown))].reset_index(drop=True)


def fit_ols(
    y: ArrayLike,
    x: pd.DataFrame,
    *,
    name: str = "the fit",
    shown: Sequence[str] | None = None,
) -> Fit:
    """Fit ordinary least squares of y [n] on the standardised columns of x [n, p] and an intercept.

    shown: the terms that the table of coefficients holds (default: all).

    Raises ValueError, in one sentence, for fewer than p + 2 chains, a constant outcome or
    predictor, a value that is missing or infinite (an outcome's by its chains: the index of a
    Series, or places), or predictors that depend on each other.
    """
    check_outcome(y, name)
    outcome, z = checked_design(y, x, name)
    result = sm.OLS(outcome, sm.add_constant(z.to_numpy(float), has_constant="add")).fit()
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
    return Fit(
        name=name,
        coefficients=shown_rows(table, shown),
        n=len(outcome),
        regressors=tuple(x.columns),
        r2=float(result.rsquared),
        adjusted_r2=float(result.rsquared_adj),
        f=float(result.fvalue),
        p=float(result.f_pvalue),
        cv_r2=_cross_validated(z.to_numpy(float), outcome),
        residual_sd=float(np.sqrt(result.mse_resid)),
    )


def _cross_validated(z: np.ndarray, y: np.ndarray) -> float:
    if len(y) < 2 * _FOLDS:
        return float("nan")
    design, scores = np.column_stack([z, np.ones(len(z))]), []
    for rest, fold in KFold(_FOLDS).split(z):
        coefficients = np.linalg.lstsq(design[rest], y[rest], rcond=None)[0]
        # Of a fold with equal outcomes it is 0, and not minus infinity.
        scores.append(r2_score(y[fold], design[fold] @ coefficients))
    return float(np.mean(scores))


def stars(p: float) -> str:
    """Return "***", "**", "*" for p below .001, .01, .05, else ""."""
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))


def shade(coefficient: float, p: float) -> str:
    """Return the name of a cell's colour, such as "plus2"; "" for p >= .05.

    It is "plus" (less detrimental) or "minus" (more detrimental) and the number of stars.
    """
    level = len(stars(p))
    return f"{'plus' if coefficient > 0 else 'minus'}{level}" if level else ""


# ---- choice of predictors


def vif(x: pd.DataFrame) -> pd.Series:
    """Return the variance inflation factor of every column.

    It is 1 / (1 - R2) of the column's regression on the others; inf where they determine it. Equal
    to statsmodels' on standardised columns without a constant, which gives the same value as with
    a constant, but warns of the very collinearity that is measured here. Raises ValueError as
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
    """Drop the column with the largest VIF until none exceeds `most`; return the rest, (name, VIF).

    keep: columns that are never dropped (the paper kept text length as a control for quality).
    Raises ValueError for an unknown name in it.
    """
    if unknown := [name for name in keep if name not in x.columns]:
        raise ValueError(
            f"keep holds {unknown[0]!r}, which is not among the properties {', '.join(x.columns)}"
        )
    left = [str(name) for name in x.columns]
    while True:
        inflation = vif(x[left])
        droppable = inflation.drop(labels=[name for name in keep if name in left])
        if droppable.empty or not droppable.max() > most:
            return [(name, float(inflation[name])) for name in left]
        left.remove(str(droppable.idxmax()))


def rank_correlations(x: pd.DataFrame) -> pd.DataFrame:
    """Return |Spearman rho| of every pair of columns; nan for a constant column.

    The released code draws it beside the VIF.
    """
    return x.astype(float).corr(method="spearman").abs()


def property_table(
    chains: pd.DataFrame,
    properties: pd.DataFrame,
    names: Sequence[str],
    domains: Sequence[str] = (),
) -> pd.DataFrame:
    """Return the predictors of every chain: a row per chain, a column per property.

    They are the properties of the chain's cluster. With `domains` there are columns `name@domain`,
    from the cluster that the column `cluster.<domain>` of `chains` names. Raises ValueError for a
    cluster that `properties` does not list, or lists twice.
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
    listed = pd.MultiIndex.from_frame(keyed[["dataset", "cluster"]])
    values = {name: pd.to_numeric(keyed[name], errors="coerce").to_numpy(float) for name in names}
    # Suffix of the predictors -> (dataset, cluster) of every chain.
    places: Mapping[str, tuple[pd.Series, pd.Series]]
    if domains:
        places = {f"@{d}": (pd.Series(d, chains.index), chains[f"cluster.{d}"]) for d in domains}
    else:
        places = {"": (chains["dataset"], chains["cluster"])}
    out = {}
    for suffix, (dataset, cluster) in places.items():
        keys = pd.MultiIndex.from_arrays([dataset.astype(str), cluster.astype(str)])
        rows = listed.get_indexer(keys)
        if (lost := keys[rows < 0]).size:
            raise ValueError(
                f"properties.csv has no row for cluster {lost[0][1]!r} of {lost[0][0]!r}, which "
                "a chain of chains.csv was run on"
            )
        for name in names:
            out[name + suffix] = values[name][rows]
    return pd.DataFrame(out, index=chains.index)
