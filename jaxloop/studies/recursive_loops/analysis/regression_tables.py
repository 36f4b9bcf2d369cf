"""Tables of the regressions, as data frames and LaTeX.

They are the paper's (Tables 1, 3, 4, Figure 4), and the same with other forms of the outcome and
other kinds of errors.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.statistics import benjamini_hochberg
from jaxloop.studies.recursive_loops.analysis import power, regression_robust
from jaxloop.studies.recursive_loops.analysis.overlap import fit_overlap
from jaxloop.studies.recursive_loops.analysis.regression import (
    COEFFICIENTS,
    Fit,
    fit_ols,
    is_constant,
    shade,
    title,
    vif,
)
from jaxloop.studies.recursive_loops.analysis.regression_tasks import Task

KEYS = ("dependent", "column", "form", "errors")
FITS = (
    "dependent",
    "column",
    "n",
    "predictors",
    "r2",
    "adjusted_r2",
    "f",
    "p",
    "cv_r2",
    "residual_sd",
)
EQUIVALENCE = ("dependent", "column", "errors", "term", "coefficient", "p", "least")
POWER = ("dependent", "column", "term", "n", "vif", "effect", "power", "least", "needed")
# Background of a cell by sign and significance (less and more detrimental), as HTML colours.
SHADES = {
    "plus1": "d6e6f4", "plus2": "abd0e6", "plus3": "6aaed6",
    "minus1": "fdd5c4", "minus2": "fcab8f", "minus3": "f6694c",
}  # fmt: skip


class Tables(NamedTuple):
    """The results of all fits.

    Attributes:
        coefficients: columns KEYS, n, COEFFICIENTS and q (Benjamini-Hochberg over the fits with the
            same form and errors); a row for each shown term of each fit.
        fits: columns FITS; a row for each of the paper's fits.
        equivalence: columns EQUIVALENCE; two one-sided tests of every coefficient in the paper's
            form.
        power: columns POWER, a row for each coefficient in the paper's form: vif, effect
            (estimated), power (of that effect), least (the effect that is detected with
            probability .8), needed (chains).
        problems: sentences on the fits that could not be made, and why.
    """

    coefficients: pd.DataFrame
    fits: pd.DataFrame
    equivalence: pd.DataFrame
    power: pd.DataFrame
    problems: list[str]


@dataclasses.dataclass
class _Results:
    """Rows of `Tables` while fits are made."""

    coefficients: list[pd.DataFrame] = dataclasses.field(default_factory=list)
    fits: list[dict[str, object]] = dataclasses.field(default_factory=list)
    equivalence: list[pd.DataFrame] = dataclasses.field(default_factory=list)
    power: list[pd.DataFrame] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


class _Regression(NamedTuple):
    """One task in one form: outcome y [n] and regressors x [n, p]."""

    task: Task
    form: str
    y: np.ndarray
    x: pd.DataFrame

    @property
    def is_paper_form(self) -> bool:
        return self.form == "relative"

    def coefficients(self, errors: str, n: int, table: pd.DataFrame) -> pd.DataFrame:
        """The table of one fit's coefficients, with the columns that name the fit."""
        return table.assign(
            dependent=self.task.dependent,
            column=self.task.column,
            form=self.form,
            errors=errors,
            n=n,
        )


def evaluate(
    tasks: Sequence[Task],
    *,
    negentropy: Callable[[Task], Task] | None = None,
    bound: float = regression_robust.BOUND,
    effect: float = 0.01,
    progress: Callable[[str], None] = lambda line: None,
) -> Tables:
    """Make all fits in all forms, with all kinds of errors that their data allow.

    A fit that cannot be made becomes a sentence in `Tables.problems`.

    Args:
        tasks: the regressions.
        negentropy: replaces Gaussianity by negentropy in a task (form "negentropy"); None: that
            form is left out.
        bound: equivalence tests ask whether an effect is smaller than this.
        effect: the effect, per standard deviation, for which the table of power gives the number of
            chains that it needs.
        progress: called with the name of each task.
    """
    results = _Results()
    for task in tasks:
        progress(task.name)
        for regression in _regressions(task, negentropy):
            number_of_problems = len(results.problems)
            _attempt(_fit_classical, regression, results, bound=bound, effect=effect)
            if len(results.problems) > number_of_problems:
                # Data that do not allow the paper's own form do not allow those with a regressor
                # more either.
                if regression.is_paper_form:
                    break
                continue
            if regression.task.kernels:
                _attempt(_fit_overlap, regression, results, bound=bound)
            _attempt(_fit_bootstrap, regression, results)
    return Tables(
        coefficients=_with_q(_stack(results.coefficients, [*KEYS, "n", *COEFFICIENTS])),
        fits=pd.DataFrame(results.fits, columns=FITS),
        equivalence=_stack(results.equivalence, EQUIVALENCE),
        power=_stack(results.power, POWER),
        problems=list(dict.fromkeys(results.problems)),
    )


def _regressions(task: Task, negentropy: Callable[[Task], Task] | None) -> Iterator[_Regression]:
    """A task in every form."""
    for form in regression_robust.FORMS:
        yield _Regression(task, form, *task.data(form))
    if negentropy is not None:
        replaced = negentropy(task)
        yield _Regression(replaced, "negentropy", *replaced.data("relative"))


def _attempt(
    fit: Callable[..., None], regression: _Regression, results: _Results, **options: float
) -> None:
    try:
        fit(regression, results, **options)
    except ValueError as error:
        results.problems.append(str(error))


def _fit_classical(
    regression: _Regression, results: _Results, *, bound: float, effect: float
) -> None:
    task = regression.task
    fit = fit_ols(regression.y, regression.x, name=task.name, shown=task.shown)
    results.coefficients.append(regression.coefficients("classical", fit.n, fit.coefficients))
    if regression.is_paper_form:
        results.fits.append(_summary(task, fit))
        tests = regression_robust.equivalence(fit, bound)
        results.equivalence.append(_equivalence(task, "classical", fit, tests))
        results.power.append(_power(task, fit, regression.x, effect))


def _fit_overlap(regression: _Regression, results: _Results, *, bound: float) -> None:
    task = regression.task
    fit, posterior = fit_overlap(
        regression.y, regression.x, task.kernels, name=task.name, shown=task.shown
    )
    results.coefficients.append(regression.coefficients("overlap", fit.n, fit.coefficients))
    if regression.is_paper_form:
        tests = regression_robust.equivalence_overlap(fit, posterior, bound)
        results.equivalence.append(_equivalence(task, "overlap", fit, tests))


def _fit_bootstrap(regression: _Regression, results: _Results) -> None:
    task = regression.task
    table = regression_robust.fit_bootstrap(
        regression.y, regression.x, task.groups, name=task.name, shown=task.shown
    )
    results.coefficients.append(regression.coefficients("bootstrap", len(regression.y), table))


def _with_q(table: pd.DataFrame) -> pd.DataFrame:
    """Coefficients with the column q: Benjamini-Hochberg within each form and kind of errors."""
    q = pd.Series(np.nan, table.index, float)
    for _, rows in table.groupby(["form", "errors"]):
        q.loc[rows.index] = benjamini_hochberg(rows["p"].to_numpy(float))
    return table.assign(q=q if len(table) else [])


def _stack(tables: list[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    if not tables:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(tables, ignore_index=True)[list(columns)]


def _summary(task: Task, fit: Fit) -> dict[str, object]:
    return {
        "dependent": task.dependent,
        "column": task.column,
        "n": fit.n,
        "predictors": len(fit.regressors),
        "r2": fit.r2,
        "adjusted_r2": fit.adjusted_r2,
        "f": fit.f,
        "p": fit.p,
        "cv_r2": fit.cv_r2,
        "residual_sd": fit.residual_sd,
    }


def _equivalence(
    task: Task, errors: str, fit: Fit, tests: regression_robust.Equivalence
) -> pd.DataFrame:
    values = {
        "term": tests.terms,
        "coefficient": fit.coefficients["coefficient"],
        "p": tests.p,
        "least": tests.least,
    }
    return pd.DataFrame(values).assign(dependent=task.dependent, column=task.column, errors=errors)


def _power(task: Task, fit: Fit, x: pd.DataFrame, effect: float) -> pd.DataFrame:
    inflation, sd, p = vif(x), fit.residual_sd, x.shape[1]
    rows = []
    for term, estimate in zip(
        fit.coefficients["term"], fit.coefficients["coefficient"], strict=True
    ):
        term_vif = float(inflation[term])
        if not sd > 0 or not np.isfinite(term_vif):
            continue
        rows.append(
            {
                "term": term,
                "n": fit.n,
                "vif": term_vif,
                "effect": estimate,
                "power": power.power(estimate, fit.n, p, sd, vif=term_vif),
                "least": power.least_effect(fit.n, p, sd, vif=term_vif),
                "needed": power.chains_needed(effect, p, sd, vif=term_vif),
            }
        )
    return pd.DataFrame(
        rows, columns=["term", "n", "vif", "effect", "power", "least", "needed"]
    ).assign(dependent=task.dependent, column=task.column)


# ---- as the paper prints them


def wide(table: pd.DataFrame, value: str, rows: str = "term") -> pd.DataFrame:
    """Return the column `value` as a matrix: a line per (dependent, `rows`), a column per fit.

    Both are in the order of their first appearance.
    """
    pairs = itertools.product(dict.fromkeys(table["dependent"]), dict.fromkeys(table[rows]))
    spread = table.pivot(index=["dependent", rows], columns="column", values=value)
    lines = [pair for pair in pairs if pair in spread.index]
    return spread.loc[lines, list(dict.fromkeys(table["column"]))]


def table_1(
    coefficients: pd.DataFrame, shape: str = "relative", errors: str = "classical"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return Table 1 for one form and kind of errors: coefficients, and their colours.

    Both have a line per dependent and property and a column per fit. Colours are those of
    `regression.shade`. shape: the form.
    """
    chosen = coefficients[(coefficients["form"] == shape) & (coefficients["errors"] == errors)]
    shades = chosen.assign(
        shade=[shade(b, p) for b, p in zip(chosen["coefficient"], chosen["p"], strict=True)]
    )
    return wide(chosen, "coefficient"), wide(shades, "shade")


def r_squared(fits: pd.DataFrame) -> pd.DataFrame:
    """Return R2 as in Tables 3 and 4: a line per dependent, a column per fit.

    A multi-domain study (dependent `diversity@wikipedia`) has a column per domain.
    """
    plain = fits.assign(dependent=fits["dependent"].str.partition("@")[0])
    return plain.pivot(index="dependent", columns="column", values="r2").loc[
        list(dict.fromkeys(plain["dependent"])), list(dict.fromkeys(plain["column"]))
    ]


def to_latex(
    values: pd.DataFrame,
    shades: pd.DataFrame | None = None,
    *,
    caption: str,
    label: str,
    digits: int = 4,
) -> str:
    """Return a LaTeX table with coloured cells; missing values stay empty.

    It needs the packages booktabs, multirow, and xcolor with the option table.
    """
    shown = values.copy()
    shown.columns = [_tex(c) for c in values.columns]
    if isinstance(shown.index, pd.MultiIndex):
        shown.index = pd.MultiIndex.from_tuples(
            [(_tex(a).capitalize(), _tex(title(str(b)))) for a, b in shown.index]
        )
    else:
        shown.index = [_tex(a).capitalize() for a in shown.index]

    def cell(value: float) -> str:
        return f"{value:.{digits}f}" if np.isfinite(value) else ""

    # The stubs of pandas say that a formatter takes any object.
    style = shown.style.format(cell)  # type: ignore[arg-type]
    if shades is not None:
        css = [
            [
                f"background-color: #{SHADES[s]}; font-weight: bold" if s in SHADES else ""
                for s in row
            ]
            for row in shades.to_numpy()
        ]
        style = style.apply(
            lambda _: pd.DataFrame(css, index=shown.index, columns=shown.columns), axis=None
        )
    return style.to_latex(
        hrules=True,
        convert_css=True,
        caption=_tex(caption),
        label=label,
        column_format="l" * shown.index.nlevels + "r" * shown.shape[1],
    )


def _tex(text: object) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
        c: "\\" + c for c in "&%$#_{}"
    }
    return "".join(special.get(c, c) for c in str(text))


def vif_table(properties: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return the VIF of the properties `names`, a column per dataset, as in Figure 7.

    It is nan where a property is missing or constant in a dataset. With several datasets the column
    "All" comes first: that of the deviations from the mean of their dataset. The VIF of the fit
    over all (power.csv) is larger, by the variance of a property over that of its deviations.
    """
    x = properties[[n for n in names if n in properties]].apply(pd.to_numeric, errors="coerce")
    groups = {
        str(dataset): x.loc[rows.index]
        for dataset, rows in properties.groupby("dataset", sort=False)
    }
    if len(groups) > 1:
        groups = {"All": x - x.groupby(properties["dataset"]).transform("mean")} | groups
    out = {}
    for dataset, rows in groups.items():
        usable = [
            n
            for n in rows.columns
            if rows[n].notna().all()
            and not is_constant(rows[n].to_numpy(float), float(x[n].abs().max()))
        ]
        inflation = vif(rows[usable]) if usable else pd.Series(dtype=float)
        out[dataset] = [float(inflation[n]) if n in inflation else np.nan for n in names]
    return pd.DataFrame(out, index=list(names))
