"""The part of findings.html on clusters: which properties of human data are related to change.

It has tables of coefficients, explained variance, power and equivalence, variance inflation between
properties, and the overlap of clusters. They are written as files too.
"""

from collections.abc import Callable, Sequence

import pandas as pd

from jaxloop.reporting.report import Drawing, Section, Table
from jaxloop.studies.recursive_loops.analysis import (
    findings_regression,
    paper_figures_regression,
    paper_values,
    regression,
    regression_tables,
    regression_tasks,
)
from jaxloop.studies.recursive_loops.analysis.output import (
    page_table,
    save_figure,
    save_table,
    save_tex,
)
from jaxloop.studies.recursive_loops.analysis.paper_figures import FigureOptions
from jaxloop.studies.recursive_loops.analysis.regression_tables import Tables
from jaxloop.studies.recursive_loops.analysis.regression_tasks import Task, Tasks
from jaxloop.studies.recursive_loops.analysis.run_tables import Run

_ERRORS = {
    "classical": "classical standard errors, as in the paper",
    "overlap": "overlap-aware errors",
    "bootstrap": "bootstrap over groups of clusters",
}
# Columns of the fits that the page shows beside the paper's R2.
_SHOWN_FITS = ["dependent", "column", "n", "predictors", "r2", "adjusted_r2", "f", "p", "cv_r2"]


def sections(run: Run, options: FigureOptions, *, bound: float, effect: float) -> list[Section]:
    """Write the tables and figures of the regressions; return the page's sections.

    bound, effect: as in `findings.write_report`. Raises ValueError where properties.csv is missing
    or has the cluster of no chain.
    """
    if run.properties is None:
        raise ValueError(
            f"{run.root / 'properties.csv'} is missing, the regressions need the properties of "
            "the clusters"
        )
    properties, domains = run.properties, regression_tasks.domains_of(run.chains)
    tasks = regression_tasks.build(
        run.metrics,
        run.chains,
        properties,
        run.overlaps or {},
        {"diversity": options.diversity, "quality": options.quality},
        last=options.last,
    )
    tables = regression_tables.evaluate(
        tasks.tasks, negentropy=_negentropy(properties, tasks), bound=bound, effect=effect
    )
    _save_tables(run, tasks, tables)
    if domains:
        save_table(run, "influence", findings_regression.influence_table(tables))
    words = findings_regression.conclusions(tasks, tables)
    if domains:
        words = findings_regression.cross_domain(tasks, tables) + words
    limits = findings_regression.limits(
        tasks,
        tables,
        run.overlaps,
        planned=len(run.chains),
        seeds=_chains_per_cell(run.chains),
        bound=bound,
        effect=effect,
    )
    sections = [
        Section("What was found", "In brackets: classical 95 % intervals.", paragraphs=words),
        Section("What cannot be concluded", paragraphs=limits),
        _vif_section(run, properties, tasks.properties),
    ]
    if len(tables.fits):
        sections += _result_sections(run, tables, bool(domains))
    if run.overlaps:
        overlap = pd.DataFrame(findings_regression.overlap_table(run.overlaps))
        save_table(run, "overlap", overlap)
        sections.append(Section("Overlap of clusters", tables=[page_table("", "", overlap)]))
    sections += _problem_section(tables.problems)
    if len(tasks.skipped):
        note = f"{tasks.skipped['chain'].nunique()} of {len(run.chains)} planned chains."
        table = page_table("", "", tasks.skipped)
        sections.append(Section("Chains that were skipped", note, tables=[table]))
    return sections


def _save_tables(run: Run, tasks: Tasks, tables: Tables) -> None:
    save_table(run, "coefficients", tables.coefficients)
    save_table(run, "fits", tables.fits)
    save_table(run, "equivalence", tables.equivalence)
    save_table(run, "power", tables.power)
    save_table(run, "skipped", tasks.skipped)
    # The chains of every outcome once: those of its fit over all chains, where it has one.
    over_all = {task.dependent for task in tasks.tasks if task.column == regression_tasks.ALL}
    outcomes = [
        task.rows.assign(dependent=task.dependent)
        for task in tasks.tasks
        if task.column == regression_tasks.ALL or task.dependent not in over_all
    ]
    save_table(run, "outcomes", pd.concat(outcomes))


def _chains_per_cell(chains: pd.DataFrame) -> int:
    """The largest number of chains with the same cluster and ratio."""
    names = [c for c in chains.columns if c.startswith("cluster") or c in ("dataset", "ratio")]
    return int(chains.groupby(names, dropna=False).size().max())


def _problem_section(problems: Sequence[str]) -> list[Section]:
    """A section on the fits that could not be made, with a line for each.

    Fits of which only the bootstrap failed are counted together.
    """
    bootstrap = [problem for problem in problems if "bootstrap" in problem]
    others = [[problem] for problem in problems if problem not in bootstrap]
    if not problems:
        return []
    paragraphs = []
    if bootstrap:
        paragraphs.append(
            f"Groups of overlapping clusters are too few to be drawn anew for {len(bootstrap)} "
            f"fits; of the first: {bootstrap[0]}."
        )
    tables = [Table("", "", ["reason"], others)] if others else []
    return [Section("Fits that were not made", paragraphs=paragraphs, tables=tables)]


def _negentropy(properties: pd.DataFrame, tasks: Tasks) -> Callable[[Task], Task] | None:
    """A function that replaces Gaussianity by negentropy in a task.

    None where one of them was not measured for every cluster.
    """
    if "gaussian_aic" not in tasks.properties or "negentropy" not in properties:
        return None
    if properties["negentropy"].isna().any():
        return None

    def replace(task: Task) -> Task:
        for term in [t for t in task.x.columns if t.partition("@")[0] == "gaussian_aic"]:
            domain = term.partition("@")[2]
            values = regression.property_table(
                task.rows, properties, ["negentropy"], [domain] if domain else ()
            )
            name = term.replace("gaussian_aic", "negentropy")
            task = task.replacing(term, values.iloc[:, 0], name)
        return task

    return replace


# ---- which properties go together


def _vif_section(run: Run, properties: pd.DataFrame, used: Sequence[str]) -> Section:
    candidates, _ = regression_tasks.measured(properties, tuple(regression.CANDIDATES))
    first_step, _ = regression_tasks.measured(properties, regression.FIRST_STEP)
    before, after, first = (
        regression_tables.vif_table(properties, names) for names in (candidates, used, first_step)
    )
    for name, table in (("vif_candidates", before), ("vif", after), ("vif_first_step", first)):
        save_table(run, name, table.rename_axis("property").reset_index())
    numbers = properties[list(candidates)].apply(pd.to_numeric, errors="coerce")
    drawings = []
    for name, inflation, columns, what in (
        ("figure_7a", before, candidates, "all candidates"),
        ("figure_7b", after, used, "used in the fits"),
    ):
        drawing = paper_figures_regression.figure_7(
            inflation, regression.rank_correlations(numbers[list(columns)])
        )
        save_figure(run, name, drawing)
        note = (
            "Variance inflation by dataset (All: within datasets), and rank correlation over all "
            "clusters."
        )
        drawings.append(Drawing(f"Figure 7: {what}", note, drawing, wide=True))
    return Section(
        "Which properties go together", drawings=drawings, paragraphs=[_selection(numbers)]
    )


def _selection(numbers: pd.DataFrame) -> str:
    """A sentence on the properties that a selection by VIF would leave."""
    complete = numbers.dropna(axis=1)
    varying = [c for c in complete if not regression.is_constant(complete[c].to_numpy(float))]
    complete = complete[varying]
    if complete.shape[1] <= 1 or len(complete) <= complete.shape[1] + 1:
        return (
            f"{len(complete)} clusters are too few for the variance inflation of "
            f"{complete.shape[1]} candidates together."
        )
    keep = [name for name in ("text_length",) if name in complete]
    chosen = regression.select_by_vif(complete, most=10.0, keep=keep)
    listed = findings_regression.listed([f"{regression.title(n)} ({v:.1f})" for n, v in chosen])
    return (
        "Over all clusters together, dropping the property of largest VIF until none exceeds 10, "
        f"text length kept as a control for quality, would leave {listed}."
    )


# ---- coefficients, explained variance, power


def _result_sections(run: Run, tables: Tables, by_domain: bool) -> list[Section]:
    has_overlap = (tables.coefficients["errors"] == "overlap").any()
    aware = "overlap" if has_overlap else "classical"
    shown = _coefficient_tables(run, tables, aware, by_domain)
    _save_r_squared(run, tables, by_domain)
    shown.append(_significant(tables.coefficients, aware, by_domain))
    published = paper_values.values("table_4" if by_domain else "table_3")
    fits = tables.fits[_SHOWN_FITS]
    pairs = zip(fits["dependent"], fits["column"], strict=True)
    fits = fits.assign(paper=[_paper_r2(published, *pair) for pair in pairs])
    return [
        Section(
            "Coefficients",
            "Change of the relative metric per standard deviation of the property.",
            drawings=_coefficient_drawings(run, tables, by_domain),
            tables=shown,
        ),
        Section(
            "Explained variance",
            "cv_r2: mean R2 of ten folds; paper: its R2 of the fit of the same name.",
            tables=[page_table("", "", fits)],
        ),
        Section(
            "Power and equivalence",
            "least: effect per standard deviation found in 80 %; needed: chains for the effect "
            "asked about (power.csv, equivalence.csv).",
            tables=[page_table("", "", tables.power)],
        ),
    ]


def _coefficient_tables(run: Run, tables: Tables, aware: str, by_domain: bool) -> list[Table]:
    """Write the coefficients of every form and kind of errors as LaTeX; return the shown ones.

    aware: the kind of errors that accounts best for overlap, of those that were computed.
    """
    shown = []
    coefficients = tables.coefficients
    for errors in dict.fromkeys(coefficients["errors"]):
        for form in dict.fromkeys(coefficients["form"]):
            rows = coefficients[(coefficients["form"] == form) & (coefficients["errors"] == errors)]
            if rows.empty:
                continue
            values, shades = regression_tables.table_1(coefficients, form, errors)
            name = f"table_{'figure_4' if by_domain else '1'}_{form}_{errors}"
            caption = (
                f"Coefficients, form {form}, {_ERRORS[errors]}; blue less, red more detrimental, "
                "p < .05, .01, .001"
            )
            label = f"tab:{name}"
            tex = regression_tables.to_latex(values, shades, caption=caption, label=label)
            save_tex(run, name, tex)
            if _is_shown(form, errors, aware):
                heading = "ANCOVA" if form == "ancova" else form.capitalize()
                shown.append(
                    page_table(
                        f"{heading} form, {_ERRORS[errors]}",
                        "*, **, ***: p < .05, .01, .001, not corrected.",
                        _starred(rows),
                    )
                )
    return shown


def _is_shown(form: str, errors: str, aware: str) -> bool:
    if form == "ancova":
        return errors != "bootstrap"
    return form == "relative" or (form == "negentropy" and errors == aware)


def _save_r_squared(run: Run, tables: Tables, by_domain: bool) -> None:
    name = "table_4" if by_domain else "table_3"
    r2 = regression_tables.r_squared(tables.fits)
    save_table(run, name, r2.reset_index())
    tex = regression_tables.to_latex(r2, caption="R squared", label="tab:r2", digits=3)
    save_tex(run, name, tex)


def _coefficient_drawings(run: Run, tables: Tables, by_domain: bool) -> list[Drawing]:
    note = "With 95 % intervals; grey or faint: p ≥ .05."
    if not by_domain:
        drawing = paper_figures_regression.figure_table_1(tables.coefficients)
        save_figure(run, "figure_table_1", drawing)
        note += " Thick: classical, thin: overlap-aware; diamond: the paper."
        return [Drawing("Table 1", note, drawing, wide=True)]
    drawings = []
    for errors in ("classical", "overlap"):
        if (tables.coefficients["errors"] == errors).any():
            drawing = paper_figures_regression.figure_4(tables.coefficients, errors=errors)
            save_figure(run, f"figure_4_{errors}", drawing)
            drawings.append(Drawing(f"Figure 4, {errors} errors", note, drawing, wide=True))
    return drawings


def _significant(coefficients: pd.DataFrame, aware: str, by_domain: bool) -> Table:
    """How often each property has p < .05, by sign, beside the paper's counts.

    It is counted with classical errors and with those of kind `aware`.
    """
    rows = coefficients[coefficients["form"] == "relative"]
    rows = rows.assign(property=rows["term"].str.partition("@")[0], is_significant=rows["p"] < 0.05)
    counted = paper_values.values("table_1_count").set_index("level")["value"]
    lines = []
    for name, group in rows.groupby("property", sort=False):
        classical = group[group["errors"] == "classical"]
        signs = [
            int((classical["is_significant"] & (classical["coefficient"] * sign > 0)).sum())
            for sign in (1, -1)
        ]
        best = int(group[group["errors"] == aware]["is_significant"].sum())
        paper = "" if by_domain or name not in counted.index else f"{counted[name]:g} of 18"
        lines.append([regression.title(str(name)), *signs, len(classical), best, paper])
    header = [
        "property",
        "positive",
        "negative",
        "coefficients",
        f"significant with {aware} errors",
        "paper",
    ]
    note = "p < .05, classical errors, relative form."
    return Table("Significant coefficients by property", note, header, lines)


def _paper_r2(published: pd.DataFrame, dependent: str, column: str) -> float:
    """R2 of the paper's fit of the same name; nan where the paper has no such fit."""
    metric, _, domain = dependent.partition("@")
    if domain or " " not in column:
        dataset, ratio = column, ""
    else:
        dataset, _, ratio = column.rpartition(" ")
    row = published[
        (published["metric"] == metric)
        & (published["dataset"] == dataset)
        & (published["ratio"] == ratio)
    ]
    return float(row["value"].iloc[0]) if len(row) else float("nan")


def _starred(rows: pd.DataFrame) -> pd.DataFrame:
    """Coefficients with stars of significance; a row for each property, a column for each fit."""
    cells = [
        f"{b:.4f}{regression.stars(p)}" for b, p in zip(rows["coefficient"], rows["p"], strict=True)
    ]
    values = regression_tables.wide(rows.assign(cell=cells), "cell").fillna("").reset_index()
    values = values.assign(term=[regression.title(term) for term in values["term"]])
    return values.rename(columns={"term": "property"})
