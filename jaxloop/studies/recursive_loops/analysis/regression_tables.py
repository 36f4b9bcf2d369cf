"""Tables of the regressions: the paper's (Table 1, 3, 4, Figure 4) and the honest ones beside them,
as data frames, CSV and LaTeX.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.studies.recursive_loops.analysis import power, regression_honest
from jaxloop.studies.recursive_loops.analysis.overlap import fit_overlap
from jaxloop.studies.recursive_loops.analysis.regression import (
    COEFFICIENTS,
    Fit,
    fit_ols,
    shade,
    title,
    vif,
)
from jaxloop.studies.recursive_loops.analysis.regression_tasks import Task

KEYS = ("dependent", "column", "form", "errors")
# Background of a cell by sign and significance (less and more detrimental), as HTML colours.
SHADES = {
    "plus1": "d6e6f4", "plus2": "abd0e6", "plus3": "6aaed6",
    "minus1": "fdd5c4", "minus2": "fcab8f", "minus3": "f6694c",
}  # fmt: skip


class Tables(NamedTuple):
    """What all fits gave.

    coefficients   KEYS, n, COEFFICIENTS and q (Benjamini-Hochberg within a form and errors), one row per shown term of each fit
    fits           dependent, column, n, predictors, r2, adjusted_r2, f, p, cv_r2, residual_sd of the paper's fits
    equivalence    dependent, column, errors, term, coefficient, p, least: two one-sided tests of every coefficient of the paper's form
    power          dependent, column, term, n, vif, effect (estimated), power (of that effect), least (effect found in 80 %), needed (chains)
    problems       sentences: fits that could not be made, and why
    """

    coefficients: pd.DataFrame
    fits: pd.DataFrame
    equivalence: pd.DataFrame
    power: pd.DataFrame
    problems: list[str]


def evaluate(
    tasks: Sequence[Task],
    *,
    negentropy: Callable[[Task], Task] | None = None,
    bound: float = regression_honest.BOUND,
    effect: float = 0.01,
    progress: Callable[[str], None] = lambda line: None,
) -> Tables:
    """All fits in all forms, with all errors that their data allow.

    negentropy: a task with negentropy in the place of Gaussianity (form "negentropy"); bound:
    largest effect that counts as none; effect: per standard deviation, whose number of chains the
    table of power gives. A fit that is not possible becomes a sentence in `problems`.
    """
    coefficients, fits, equivalence, powers, problems = [], [], [], [], []

    def attempt(make: Callable[[], None]) -> None:
        try:
            make()
        except ValueError as error:
            problems.append(str(error))

    def add(task: Task, shape: str, errors: str, n: int, table: pd.DataFrame) -> None:
        coefficients.append(
            table.assign(
                dependent=task.dependent, column=task.column, form=shape, errors=errors, n=n
            )
        )

    for task in tasks:
        progress(task.name)
        forms = [(shape, task, shape) for shape in regression_honest.FORMS]
        if negentropy is not None:
            forms.append(("negentropy", negentropy(task), "relative"))
        for shape, chosen, outcome in forms:
            y, x = chosen.data(outcome)
            shown = chosen.shown
            first = shape == "relative"

            def classical(task=chosen, shape=shape, y=y, x=x, shown=shown, first=first):
                fit = fit_ols(y, x, name=task.name, shown=shown)
                add(task, shape, "classical", fit.n, fit.coefficients)
                if first:
                    fits.append(_summary(task, fit))
                    equivalence.append(
                        _equivalence(
                            task, "classical", fit, regression_honest.equivalence(fit, bound)
                        )
                    )
                    powers.append(_power(task, fit, x, effect))

            before = len(problems)
            attempt(classical)
            if len(problems) > before:
                # What the paper's own form cannot bear, the forms with a regressor more cannot
                # either.
                if first:
                    break
                continue
            if chosen.kernels:

                def overlapping(task=chosen, shape=shape, y=y, x=x, shown=shown, first=first):
                    fit, posterior = fit_overlap(y, x, task.kernels, name=task.name, shown=shown)
                    add(task, shape, "overlap", fit.n, fit.coefficients)
                    if first:
                        equivalence.append(
                            _equivalence(
                                task,
                                "overlap",
                                fit,
                                regression_honest.equivalence_overlap(fit, posterior, bound),
                            )
                        )

                attempt(overlapping)

            def bootstrap(task=chosen, shape=shape, y=y, x=x, shown=shown):
                add(
                    task,
                    shape,
                    "bootstrap",
                    len(y),
                    regression_honest.fit_bootstrap(y, x, task.groups, name=task.name, shown=shown),
                )

            attempt(bootstrap)
    table = (
        pd.concat(coefficients, ignore_index=True)
        if coefficients
        else pd.DataFrame(columns=[*KEYS, "n", *COEFFICIENTS])
    )
    table["q"] = (
        table.groupby(["form", "errors"])["p"].transform(
            lambda p: regression_honest.benjamini_hochberg(p)
        )
        if len(table)
        else []
    )
    return Tables(
        table[[*KEYS, "n", *COEFFICIENTS, "q"]],
        pd.DataFrame(
            fits,
            columns=[
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
            ],
        ),
        _stack(equivalence, ["dependent", "column", "errors", "term", "coefficient", "p", "least"]),
        _stack(
            powers,
            ["dependent", "column", "term", "n", "vif", "effect", "power", "least", "needed"],
        ),
        list(dict.fromkeys(problems)),
    )


def _stack(tables: list[pd.DataFrame], columns: list[str]) -> pd.DataFrame:
    return (
        pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)
    )


def _summary(task: Task, fit: Fit) -> tuple:
    return (
        task.dependent,
        task.column,
        fit.n,
        len(fit.regressors),
        fit.r2,
        fit.adjusted_r2,
        fit.f,
        fit.p,
        fit.cv_r2,
        fit.residual_sd,
    )


def _equivalence(
    task: Task, errors: str, fit: Fit, found: regression_honest.Equivalence
) -> pd.DataFrame:
    values = {
        "term": found.terms,
        "coefficient": fit.coefficients["coefficient"],
        "p": found.p,
        "least": found.least,
    }
    return pd.DataFrame(values).assign(dependent=task.dependent, column=task.column, errors=errors)


def _power(task: Task, fit: Fit, x: pd.DataFrame, effect: float) -> pd.DataFrame:
    inflation, sd, p = vif(x), fit.residual_sd, x.shape[1]
    rows = []
    for term, estimate in zip(
        fit.coefficients["term"], fit.coefficients["coefficient"], strict=True
    ):
        about = {"vif": float(inflation[term])}
        if not sd > 0 or not np.isfinite(about["vif"]):
            continue
        rows.append(
            {
                "term": term,
                "n": fit.n,
                **about,
                "effect": estimate,
                "power": power.power(estimate, fit.n, p, sd, **about),
                "least": power.least_effect(fit.n, p, sd, **about),
                "needed": power.chains_needed(effect, p, sd, **about),
            }
        )
    return pd.DataFrame(
        rows, columns=["term", "n", "vif", "effect", "power", "least", "needed"]
    ).assign(dependent=task.dependent, column=task.column)


# ---- as the paper prints them
# -----------------------------------------------------------------------------------------


def wide(table: pd.DataFrame, value: str, rows: str = "term") -> pd.DataFrame:
    """`value` with one line per (dependent, rows) and one column per column of the table, all in
    order of first appearance.
    """
    index = [dict.fromkeys(table["dependent"]), dict.fromkeys(table[rows])]
    spread = table.pivot(index=["dependent", rows], columns="column", values=value)
    lines = [pair for pair in ((d, r) for d in index[0] for r in index[1]) if pair in spread.index]
    return spread.loc[lines, list(dict.fromkeys(table["column"]))]


def table_1(
    coefficients: pd.DataFrame, shape: str = "relative", errors: str = "classical"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(coefficients, shades) of one form and errors, as in Table 1: lines dependent and property,
    columns of fits; shades as `regression.shade`.
    """
    chosen = coefficients[(coefficients["form"] == shape) & (coefficients["errors"] == errors)]
    shades = chosen.assign(
        shade=[shade(b, p) for b, p in zip(chosen["coefficient"], chosen["p"], strict=True)]
    )
    return wide(chosen, "coefficient"), wide(shades, "shade")


def r_squared(fits: pd.DataFrame) -> pd.DataFrame:
    """R2 as in Tables 3 and 4: a line per dependent, a column per fit; for a study of domains
    (dependent `diversity@wikipedia`) a column each.
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
    """A LaTeX table (packages booktabs, multirow, and xcolor with the option table) with coloured
    cells; missing values stay empty.
    """
    shown = values.copy()
    shown.columns = [_tex(c) for c in values.columns]
    if isinstance(shown.index, pd.MultiIndex):
        shown.index = pd.MultiIndex.from_tuples(
            [(_tex(a).capitalize(), _tex(title(str(b)))) for a, b in shown.index]
        )
    else:
        shown.index = [_tex(a).capitalize() for a in shown.index]
    style = shown.style.format(lambda v: f"{v:.{digits}f}" if np.isfinite(v) else "")
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
    """VIF of the properties `names`, one column per dataset, as Figure 7; nan where a property is
    missing or constant in a dataset.

    With several datasets the column "All" comes first: that of all clusters in a fit with a dummy
    per dataset.
    """
    x = properties[[n for n in names if n in properties]].apply(pd.to_numeric, errors="coerce")
    groups = {
        str(dataset): x.loc[rows.index]
        for dataset, rows in properties.groupby("dataset", sort=False)
    }
    if len(groups) > 1:
        groups = {"All": x - x.groupby(properties["dataset"]).transform("mean")} | groups
    out = {}
    for dataset, own in groups.items():
        usable = [
            n
            for n in own.columns
            if own[n].notna().all() and np.ptp(own[n]) > 1e-12 * max(1.0, x[n].abs().max())
        ]
        found = vif(own[usable]) if usable else pd.Series(dtype=float)
        out[dataset] = [float(found.get(name, np.nan)) for name in names]
    return pd.DataFrame(out, index=list(names))
