"""The analysis of a recursive-loops experiment, from the files of its run alone: tables/, figures/
and one page, findings.html.

`run_tables` says which files these are. A study calls `write_report(workdir, experiment)` when its
chains are done; it can be called again on a run that was copied elsewhere, needs no model and no
accelerator, and gives the same bytes for the same files.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures, report, scores
from jaxloop.reporting.report import Drawing, Section, Table
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.recursive_loops.analysis import (
    findings_regression,
    findings_sweep,
    paper_figures,
    paper_figures_political,
    paper_figures_regression,
    paper_values,
    regression,
    regression_honest,
    regression_tables,
    regression_tasks,
    run_tables,
)
from jaxloop.studies.recursive_loops.analysis.run_tables import Run

FIGURES: dict[str, Callable[..., Figure]] = {
    "figure_2": paper_figures.figure_2,
    "figure_3": paper_figures.figure_3,
    "figure_5": paper_figures_political.figure_5,
    "figure_6": paper_figures_political.figure_6,
    "figure_8": paper_figures.figure_8,
    "figure_9": paper_figures.figure_9,
    "figure_10": paper_figures.figure_10,
    "figure_11": paper_figures.figure_11,
    "figure_12": paper_figures.figure_12,
    "figure_13": paper_figures_political.figure_13,
    "figure_14": paper_figures_political.figure_14,
    "figure_15": paper_figures_political.figure_15,
}


class Experiment(NamedTuple):
    """kind: which analysis ("regression", "sweep", "political", "toy"); figures: of the paper,
    drawn from `FIGURES`; factor: what is varied beside the ratio and the dataset.
    """

    title: str
    kind: str
    figures: tuple[str, ...]
    factor: str | None = None


EXPERIMENTS: dict[str, Experiment] = {
    "ratio_sweep": Experiment("Synthetic ratio", "sweep", ("figure_2", "figure_3", "figure_8")),
    "datasets": Experiment("Datasets", "sweep", ("figure_3", "figure_2", "figure_8")),
    "clusters": Experiment("Properties of human data", "regression", ("figure_8",)),
    "multi_domain": Experiment("Several domains", "regression", ("figure_8",)),
    "quality_splits": Experiment(
        "Data split by quality", "sweep", ("figure_10", "figure_11", "figure_8"), "quality_level"
    ),
    "length_splits": Experiment(
        "Data split by length", "sweep", ("figure_10", "figure_11", "figure_8"), "length_level"
    ),
    "political": Experiment(
        "Political lean",
        "political",
        ("figure_5", "figure_6", "figure_13", "figure_14", "figure_8"),
    ),
    "political_bases": Experiment(
        "Political lean by base model", "political", ("figure_15", "figure_6"), "bases"
    ),
    "models_per_generation": Experiment(
        "Models per generation", "sweep", ("figure_9", "figure_8"), "models"
    ),
    "gen0_size": Experiment(
        "Size of generation 0", "sweep", ("figure_2", "figure_3", "figure_8"), "gen0_size"
    ),
    "interventions": Experiment(
        "Selection of synthetic text", "sweep", ("figure_2", "figure_8"), "selection"
    ),
    "fit_modes": Experiment(
        "From scratch, full fine-tuning and LoRA", "sweep", ("figure_2", "figure_8")
    ),
    "toy": Experiment("Histogram toy", "toy", ("figure_12",)),
}
_NO_FACTORS = (
    "chain",
    "ratio",
    "seed",
    "human_texts",
    "status",
    "cluster",
    "overlap",
    "accumulate",
    "bias",
)
_LINES = 16


def figure(run: Run, name: str, **options) -> Figure:
    """A figure of the paper from a run's tables. ValueError for a name that is not in `FIGURES`,
    and for tables that lack what it shows.
    """
    if name not in FIGURES:
        raise ValueError(
            f"{name!r} is no figure that is drawn from chains alone; there are {', '.join(FIGURES)}"
        )
    return FIGURES[name](run, **options)


def write_report(
    workdir: str | Path,
    experiment: str,
    *,
    quality: str | Sequence[str] | None = None,
    diversity: str | Sequence[str] | None = None,
    last: int = scores.LAST,
    bound: float = regression_honest.BOUND,
    effect: float = 0.01,
    neutral: tuple[float, float] = paper_figures_political.NEUTRAL,
    title: str | None = None,
    facts: Sequence[tuple[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    versions: Sequence[tuple[str, str]] = (),
) -> Path:
    """Writes tables/*.csv, tables/*.tex, figures/figure_*.png and findings.html of a finished run;
    returns the page's path.

    experiment: one of `EXPERIMENTS`; quality, diversity: names of the metrics that stand for them
    (the first that the run has); last: generations whose mean is the late value; bound: largest
    effect that counts as none; effect: whose number of chains is asked for; neutral: interval of
    neutral leans; title, facts, config, versions: shown on the page. What cannot be computed (a
    constant predictor, too few chains, a missing chain) is said on the page, named and counted.
    ValueError where metrics.csv or chains.csv are missing or unusable.
    """
    if experiment not in EXPERIMENTS:
        raise ValueError(f"experiment {experiment!r} is not one of {', '.join(EXPERIMENTS)}")
    about, run = EXPERIMENTS[experiment], run_tables.read(workdir)
    for folder in ("tables", "figures"):
        (run.root / folder).mkdir(exist_ok=True)
    names = {
        "quality": _names(quality, paper_figures.QUALITY),
        "diversity": _names(diversity, paper_figures.DIVERSITY),
    }
    if about.kind == "regression":
        sections = _regressions(run, names, last=last, bound=bound, effect=effect)
    elif about.kind == "political":
        sections = _political(run, about, neutral)
    else:
        sections = _sweep(run, about, names, last=1 if about.kind == "toy" else last)
    if about.kind in ("regression", "sweep") and (said := _stand_in(run, names)):
        sections[1] = sections[1]._replace(paragraphs=[*sections[1].paragraphs, said])
    drawings, problems = _figures(run, about, names, last=last, neutral=neutral)
    if problems:
        sections.append(Section("What could not be drawn", paragraphs=problems))
    page = report.render(
        _few_lines(run),
        title=title or about.title,
        subtitle=f"{len(run.chains)} planned chains, {_generations(run)} generations",
        sections=[
            sections[0],
            *([Section("Figures", drawings=drawings)] if drawings else []),
            *sections[1:],
        ],
        facts=[("experiment", experiment), *_measured_by(run, names), *facts],
        config=config,
        versions=versions,
    )
    path = run.root / "findings.html"
    write_atomic(path, page.encode("utf-8"), durable=False)
    return path


def _names(given: str | Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    return default if given is None else (given,) if isinstance(given, str) else tuple(given)


def _measured_by(run: Run, names: Mapping[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """("quality", metric), ("diversity", metric) of those that the run has; `@domain` is left out."""
    held = {metric.partition("@")[0]: metric for metric in run.metrics["metric"].unique()}
    plain = pd.DataFrame({"metric": list(held)})
    found = {name: paper_figures.find_metric(plain, called) for name, called in names.items()}
    return [(name, metric) for name, metric in found.items() if metric]


def _stand_in(run: Run, names: Mapping[str, tuple[str, ...]]) -> str:
    """What is said where quality is not the score of a judge."""
    metric = dict(_measured_by(run, names)).get("quality")
    if metric is None:
        return "No metric of quality was measured, so nothing is said about it."
    if metric.partition("(")[0] in ("judge_quality", "quality"):
        return ""
    return (
        f"Quality is {metric} here, not a judge's score: what is said of it is not comparable "
        "with the paper's quality."
    )


def _generations(run: Run) -> int:
    return int(run.metrics["generation"].max()) + 1 if len(run.metrics) else 0


def _few_lines(run: Run) -> pd.DataFrame:
    """Metrics for the curves: chains on different clusters are replicates, and factors that would
    give too many lines are averaged over.
    """
    keep = [*scores.FIXED, "seed", *factors(run), "ratio"]
    table = run.metrics[
        [
            c
            for c in dict.fromkeys(keep)
            if c in run.metrics and not (c == "entity" and run.metrics[c].nunique() <= 1)
        ]
    ]
    if scores.with_lines(table.drop_duplicates("chain"))["line"].nunique() > _LINES:
        table = table[[c for c in table.columns if c in (*scores.FIXED, "seed", "ratio")]]
    return table


def factors(run: Run) -> list[str]:
    """Columns of chains.csv that tell levels apart: those with several values, without ratio, seed
    and clusters.
    """
    names = [c for c in run.chains.columns if c not in _NO_FACTORS and not c.startswith("cluster.")]
    return [c for c in names if run.chains[c].astype(str).nunique() > 1]


def _save(run: Run, name: str, table: pd.DataFrame, index: bool = False) -> None:
    table = table.reset_index() if index else table
    columns = {
        str(c): [None if v is pd.NA or v is None or v != v else v for v in table[c]]
        for c in table.columns
    }
    write_atomic(run.root / "tables" / f"{name}.csv", to_csv(columns), durable=False)


def _save_tex(run: Run, name: str, text: str) -> None:
    write_atomic(run.root / "tables" / f"{name}.tex", text.encode("utf-8"), durable=False)


def _save_figure(run: Run, name: str, drawing: Figure) -> None:
    write_atomic(run.root / "figures" / f"{name}.png", figures.png(drawing), durable=False)


def _figures(
    run: Run, about: Experiment, names: Mapping[str, tuple[str, ...]], *, last: int, neutral
) -> tuple[list[Drawing], list[str]]:
    """Figures of the experiment, drawn twice: as PNG and for the page; sentences for those that the
    tables do not allow.
    """
    drawings, problems = [], []
    whole, several = (
        run,
        about.kind == "political" and "bases" in run.chains and run.chains["bases"].nunique() > 1,
    )
    for name in (
        *about.figures,
        *(["figure_15"] if several and "figure_15" not in about.figures else []),
    ):
        # The other figures of the paper are of chains that draw their base models.
        run = _mixed(whole) if several and name != "figure_15" else whole
        options: dict[str, Any] = (
            {} if about.kind in ("political", "toy") or name == "figure_8" else dict(names)
        )
        if about.kind == "political" and name != "figure_8":
            options["neutral"] = neutral
        if name in ("figure_3", "figure_9", "figure_10", "figure_11"):
            options["last"] = last
        factor = about.factor or next((f for f in factors(run) if f != "dataset"), None)
        if name in ("figure_2", "figure_3") and factor is not None and factor in run.chains:
            options["factor"] = factor
        try:
            drawing = figure(run, name, **options)
        except ValueError as error:
            problems.append(str(error))
            continue
        _save_figure(run, name, drawing)
        first = " ".join((FIGURES[name].__doc__ or "").split("\n\n")[0].split())
        said = paper_values.reading(name)
        drawings.append(
            Drawing(
                f"Figure {name.removeprefix('figure_')}",
                first + (f" The paper: {said}" if said else ""),
                drawing,
                wide=True,
            )
        )
    return drawings, problems


def _mixed(run: Run) -> Run:
    """The chains that draw their base models, where there are some beside chains of one base each."""
    bases = (
        run.chains["bases"].astype(str)
        if "bases" in run.chains
        else pd.Series("", run.chains.index)
    )
    return run._replace(chains=run.chains[bases == "mixed"]) if (bases == "mixed").any() else run


# ---- regressions
# ------------------------------------------------------------------------------------------------------


def _regressions(
    run: Run, names: Mapping[str, tuple[str, ...]], *, last: int, bound: float, effect: float
) -> list[Section]:
    if run.properties is None:
        raise ValueError(
            f"{run.root / 'properties.csv'} is missing, the regressions need the properties of "
            "the clusters"
        )
    overlaps = run.overlaps or {}
    tasks = regression_tasks.build(
        run.metrics,
        run.chains,
        run.properties,
        overlaps,
        {k: names[k] for k in ("diversity", "quality")},
        last=last,
    )
    tables = regression_tables.evaluate(
        tasks.tasks, negentropy=_negentropy(run, tasks), bound=bound, effect=effect
    )
    domains = regression_tasks.domains_of(run.chains)
    skipped = tasks.skipped
    _save(run, "coefficients", tables.coefficients)
    _save(run, "fits", tables.fits)
    _save(run, "equivalence", tables.equivalence)
    _save(run, "power", tables.power)
    _save(run, "skipped", skipped)
    _save(
        run,
        "outcomes",
        pd.concat(
            [
                t.rows.assign(dependent=t.dependent)
                for t in tasks.tasks
                if t.column == regression_tasks.ALL or domains or _alone(tasks, t)
            ]
        ),
    )
    words = findings_regression.found(tasks, tables)
    words = findings_regression.cross_domain(tasks, tables) + words if domains else words
    seeds = int(
        run.chains.groupby(
            [c for c in run.chains.columns if c.startswith("cluster") or c in ("dataset", "ratio")],
            dropna=False,
        )
        .size()
        .max()
    )
    limits = findings_regression.cannot(
        tasks,
        tables,
        run.overlaps,
        planned=len(run.chains),
        seeds=seeds,
        bound=bound,
        effect=effect,
    )
    sections = [
        Section("What was found", paragraphs=words),
        Section("What cannot be concluded", paragraphs=limits),
    ]
    sections.append(_vif_section(run, tasks.properties))
    if len(tables.fits):
        sections += _regression_tables(run, tables, bool(domains))
    if run.overlaps:
        overlapping = pd.DataFrame(findings_regression.overlap_table(run.overlaps))
        _save(run, "overlap", overlapping)
        sections.append(Section("Overlap of clusters", tables=[_table("", "", overlapping)]))
    sections += _unfitted(tables.problems)
    if len(skipped):
        note = f"{skipped['chain'].nunique()} of {len(run.chains)} planned chains."
        sections.append(Section("Chains that were skipped", note, tables=[_table("", "", skipped)]))
    return sections


def _alone(tasks: regression_tasks.Tasks, task: regression_tasks.Task) -> bool:
    return not any(
        t.dependent == task.dependent and t.column == regression_tasks.ALL for t in tasks.tasks
    )


def _unfitted(problems: Sequence[str]) -> list[Section]:
    """The fits that could not be made, a line each; those that only lack a bootstrap are counted."""
    boot = [p for p in problems if "bootstrap" in p]
    rest = [[p] for p in problems if p not in boot]
    paragraphs = (
        [
            f"Groups of overlapping clusters are too few to be drawn anew for {len(boot)} fits; "
            f"of the first: {boot[0]}."
        ]
        if boot
        else []
    )
    tables = [Table("", "", ["reason"], rest)] if rest else []
    return (
        [Section("Fits that were not made", paragraphs=paragraphs, tables=tables)]
        if paragraphs or tables
        else []
    )


def _negentropy(run: Run, tasks: regression_tasks.Tasks):
    """Puts negentropy in the place of Gaussianity; None where one of them was not measured for
    every cluster.
    """
    if (
        "gaussian_aic" not in tasks.properties
        or "negentropy" not in run.properties
        or run.properties["negentropy"].isna().any()
    ):
        return None

    def replace(task: regression_tasks.Task) -> regression_tasks.Task:
        for term in [t for t in task.x.columns if t.partition("@")[0] == "gaussian_aic"]:
            domain = term.partition("@")[2]
            values = regression.property_table(
                task.rows, run.properties, ["negentropy"], [domain] if domain else ()
            )
            task = task.replacing(
                term, values.iloc[:, 0], term.replace("gaussian_aic", "negentropy")
            )
        return task

    return replace


def _vif_section(run: Run, used: Sequence[str]) -> Section:
    candidates, _ = regression_tasks.measured(run.properties, tuple(regression.CANDIDATES))
    before, after = (
        regression_tables.vif_table(run.properties, names) for names in (candidates, used)
    )
    _save(run, "vif_candidates", before.rename_axis("property"), index=True)
    _save(run, "vif", after.rename_axis("property"), index=True)
    first, _ = regression_tasks.measured(run.properties, regression.FIRST_STEP)
    _save(
        run,
        "vif_first_step",
        regression_tables.vif_table(run.properties, first).rename_axis("property"),
        index=True,
    )
    numeric = run.properties[list(candidates)].apply(pd.to_numeric, errors="coerce")
    drawings = []
    for name, table, columns, what in (
        ("figure_7a", before, candidates, "All candidates"),
        ("figure_7b", after, used, "Used in the fits"),
    ):
        drawing = paper_figures_regression.figure_7(
            table, regression.rank_correlations(numeric[list(columns)])
        )
        _save_figure(run, name, drawing)
        drawings.append(
            Drawing(
                f"Figure 7: {what.lower()}",
                "Variance inflation by dataset, and rank correlation over all clusters.",
                drawing,
                wide=True,
            )
        )
    paragraphs = []
    complete = numeric.dropna(axis=1)
    complete = complete.loc[
        :,
        [np.ptp(complete[c]) > 1e-12 * max(1.0, complete[c].abs().max()) for c in complete.columns],
    ]
    if complete.shape[1] > 1 and len(complete) > complete.shape[1] + 1:
        chosen = regression.select_by_vif(
            complete, most=10.0, keep=[n for n in ("text_length",) if n in complete]
        )
        left = findings_regression.listed([f"{regression.title(n)} ({v:.1f})" for n, v in chosen])
        paragraphs.append(
            "Dropping the property of largest VIF until none exceeds 10, text length kept as a "
            f"control for quality, would leave {left}."
        )
    else:
        paragraphs.append(
            f"{len(complete)} clusters are too few for the variance inflation of "
            f"{complete.shape[1]} candidates together."
        )
    return Section("Which properties go together", drawings=drawings, paragraphs=paragraphs)


def _regression_tables(run: Run, tables: regression_tables.Tables, domains: bool) -> list[Section]:
    shown, labels = (
        [],
        {
            "classical": "classical standard errors, as in the paper",
            "overlap": "overlap-aware errors",
            "bootstrap": "bootstrap over groups of clusters",
        },
    )
    aware = "overlap" if (tables.coefficients["errors"] == "overlap").any() else "classical"
    for errors in dict.fromkeys(tables.coefficients["errors"]):
        for shape in dict.fromkeys(tables.coefficients["form"]):
            rows = tables.coefficients[
                (tables.coefficients["form"] == shape) & (tables.coefficients["errors"] == errors)
            ]
            if rows.empty:
                continue
            values, shades = regression_tables.table_1(tables.coefficients, shape, errors)
            name = f"table_{'figure_4' if domains else '1'}_{shape}_{errors}"
            caption = (
                f"Coefficients, form {shape}, {labels[errors]}; blue less, red more detrimental, "
                "p < .05, .01, .001"
            )
            _save_tex(
                run,
                name,
                regression_tables.to_latex(values, shades, caption=caption, label=f"tab:{name}"),
            )
            if (
                shape == "relative"
                or (shape == "ancova" and errors != "bootstrap")
                or (shape == "negentropy" and errors == aware)
            ):
                title = (
                    f"{'ANCOVA' if shape == 'ancova' else shape.capitalize()} form, "
                    f"{labels[errors]}"
                )
                shown.append(
                    _table(title, "*, **, ***: p < .05, .01, .001, not corrected.", _starred(rows))
                )
    r2 = regression_tables.r_squared(tables.fits)
    _save(run, "table_4" if domains else "table_3", r2, index=True)
    _save_tex(
        run,
        "table_4" if domains else "table_3",
        regression_tables.to_latex(r2, caption="R squared", label="tab:r2", digits=3),
    )
    shown.append(_significant(tables.coefficients, aware, domains))
    known = paper_values.values("table_4" if domains else "table_3")
    compare = tables.fits[
        ["dependent", "column", "n", "predictors", "r2", "adjusted_r2", "f", "p", "cv_r2"]
    ]
    compare = compare.assign(
        paper=[
            _paper_r2(known, d, c)
            for d, c in zip(compare["dependent"], compare["column"], strict=True)
        ]
    )
    draw = paper_figures_regression.figure_4 if domains else paper_figures_regression.figure_table_1
    drawings = []
    kinds = [e for e in ("classical", "overlap") if (tables.coefficients["errors"] == e).any()]
    for errors in kinds if domains else ["both"]:
        drawing = draw(tables.coefficients, errors=errors) if domains else draw(tables.coefficients)
        name = f"figure_4_{errors}" if domains else "figure_table_1"
        _save_figure(run, name, drawing)
        note = "With 95 % intervals; grey or faint: p ≥ .05." + (
            "" if domains else " Thick: classical, thin: overlap-aware; diamond: the paper."
        )
        drawings.append(
            Drawing(
                f"Figure 4, {errors} errors" if domains else "Table 1", note, drawing, wide=True
            )
        )
    return [
        Section(
            "Coefficients",
            "Change of the relative metric per standard deviation of the property.",
            drawings=drawings,
            tables=shown,
        ),
        Section(
            "Explained variance",
            "cv_r2: mean R2 of ten folds; paper: its R2 of the fit of the same name.",
            tables=[_table("", "", compare)],
        ),
        Section(
            "Power and equivalence",
            "least: effect per standard deviation found in 80 %; needed: chains for the effect "
            "asked about (power.csv, equivalence.csv).",
            tables=[_table("", "", tables.power)],
        ),
    ]


def _significant(coefficients: pd.DataFrame, aware: str, domains: bool) -> Table:
    """How often each property has p < .05, by sign, with classical and with the best errors, beside
    the paper's counts.
    """
    rows = coefficients[coefficients["form"] == "relative"]
    rows = rows.assign(property=rows["term"].str.partition("@")[0], found=rows["p"] < 0.05)
    counted = paper_values.values("table_1_count").set_index("level")["value"]
    lines = []
    for name, own in rows.groupby("property", sort=False):
        classical, best = own[own["errors"] == "classical"], own[own["errors"] == aware]
        signs = [
            int((classical["found"] & (classical["coefficient"] * sign > 0)).sum())
            for sign in (1, -1)
        ]
        said = "" if domains or name not in counted.index else f"{counted[name]:g} of 18"
        lines.append(
            [regression.title(str(name)), *signs, len(classical), int(best["found"].sum()), said]
        )
    header = [
        "property",
        "positive",
        "negative",
        "coefficients",
        f"significant with {aware} errors",
        "paper",
    ]
    return Table(
        "Significant coefficients by property",
        "p < .05, classical errors, relative form.",
        header,
        lines,
    )


def _paper_r2(known: pd.DataFrame, dependent: str, column: str) -> float:
    metric, _, domain = dependent.partition("@")
    dataset, _, ratio = (column, "", "") if domain or " " not in column else column.rpartition(" ")
    row = known[
        (known["metric"] == metric) & (known["dataset"] == dataset) & (known["ratio"] == ratio)
    ]
    return float(row["value"].iloc[0]) if len(row) else float("nan")


def _starred(rows: pd.DataFrame) -> pd.DataFrame:
    cells = [
        f"{b:.4f}{regression.stars(p)}" for b, p in zip(rows["coefficient"], rows["p"], strict=True)
    ]
    values = regression_tables.wide(rows.assign(cell=cells), "cell").fillna("").reset_index()
    return values.assign(term=[regression.title(t) for t in values["term"]]).rename(
        columns={"term": "property"}
    )


def _table(title: str, note: str, rows: pd.DataFrame) -> Table:
    plain = [
        [v.item() if isinstance(v, np.generic) else v for v in row]
        for row in rows.itertuples(index=False, name=None)
    ]
    return Table(title, note, [str(c) for c in rows.columns], plain)


# ---- sweeps and politics
# ----------------------------------------------------------------------------------------------


def _sweep(
    run: Run, about: Experiment, names: Mapping[str, tuple[str, ...]], *, last: int
) -> list[Section]:
    if about.kind == "toy":
        metrics = [
            m for m in dict.fromkeys(run.metrics["metric"]) if m.startswith("entropy")
        ] or list(dict.fromkeys(run.metrics["metric"]))[:1]
        levels = [f for f in ("accumulate", "bias", "overlap") if f in run.chains]
    else:
        metrics = [metric for _, metric in paper_figures.dependents(run, **names)]
        levels = factors(run)
    if about.factor is not None and about.factor not in run.chains:
        raise ValueError(f"chains.csv has no column {about.factor!r}, which this experiment varies")
    everything, skipped = findings_sweep.cells(
        run, list(dict.fromkeys(run.metrics["metric"])), levels, last=last
    )
    table = everything[everything["metric"].isin(metrics)]
    _save(run, "cells", everything)
    _save(run, "skipped", skipped)
    words = findings_sweep.found(run, metrics, levels, table, last=last)
    own = skipped[skipped["metric"].isin(metrics)]
    compared, tables = _levels(run, about, metrics, levels, last=last)
    words = compared + words
    sections = [
        Section("What was found", paragraphs=words or ["No chain has a relative value."]),
        Section(
            "What cannot be concluded",
            paragraphs=findings_sweep.cannot(table, len(run.chains), own, levels),
        ),
        Section(
            "Relative values",
            "Late over generation 0, mean over chains with a 95 % t interval; p of no change, q "
            "after Benjamini-Hochberg.",
            tables=[_table("", "", table), *tables],
        ),
    ]
    if len(own):
        sections.append(
            Section(
                "Chains that were skipped",
                f"{own['chain'].nunique()} of {len(run.chains)} planned chains.",
                tables=[_table("", "", own)],
            )
        )
    return sections


def _levels(
    run: Run, about: Experiment, metrics: Sequence[str], levels: Sequence[str], *, last: int
) -> tuple[list[str], list[Table]]:
    """Sentences and tables that set the levels of the experiment's own factor against each other."""
    path = run.root / "interventions.csv"
    if about.factor == "selection" and path.exists():
        # Chains of one seed share their human texts, bases and draws: the study compares them in
        # pairs.
        paired = pd.read_csv(path)
        return findings_sweep.against_control(paired, metrics), [
            _table(
                "Policies against the random control",
                "Paired t, not corrected for the number of tests.",
                paired,
            )
        ]
    factor = about.factor or next(
        (f for f in levels if f not in ("dataset", "accumulate", "bias", "overlap")), None
    )
    if factor is None or factor not in levels:
        return [], []
    table = findings_sweep.contrasts(run, metrics, factor, levels, last=last)
    _save(run, "contrasts", table)
    note = (
        "Difference of relative values at the same ratio, 95 % interval (Welch), q after "
        "Benjamini-Hochberg."
    )
    return findings_sweep.differ(table, factor), [
        _table(f"Levels of {factor.replace('_', ' ')}", note, table)
    ]


def _political(run: Run, about: Experiment, neutral: tuple[float, float]) -> list[Section]:
    factor = about.factor or (
        "bases" if "bases" in run.chains and run.chains["bases"].nunique() > 1 else None
    )
    words, table = findings_sweep.political(run, neutral=neutral, factor=factor)
    _save(run, "lean", table)
    per_chain = paper_figures_political.by_chain(paper_figures_political.leans(run), neutral)
    _save(run, "lean_by_generation", per_chain)
    _save(
        run, "lean_bins", paper_figures_political.bins(paper_figures_political.leans(_mixed(run)))
    )
    present = set(per_chain[per_chain["generation"] == per_chain["generation"].max()]["chain"])
    missing = [c for c in run.chains["chain"] if c not in present]
    limits = [
        f"{len(run.chains)} chains were planned; {len(missing)} have no scored text in the last "
        "generation"
        + (
            f": {', '.join(map(str, missing[:20]))}{', …' if len(missing) > 20 else ''}."
            if missing
            else "."
        ),
        f"A mix has {findings_regression.spread(table['n'])} chains: a shift inside its interval "
        "in the table is not told from none.",
        *_scorer(run),
        "The lean is what the scorer says it is. A classifier fitted on party labels measures "
        "which party's texts these are like, not a position; it may "
        "read shorter or plainer text as neutral, which alone gives a shift towards 50.",
        f"Neutral is a score from {neutral[0]:g} to {neutral[1]:g}; shares of neutral text "
        "follow this choice.",
        "The mixes come from one dataset: the regimes (reduced, amplified, reversed) are "
        "described for it alone.",
    ]
    if (per_chain["generation"] == -1).sum() == 0:
        limits.append(
            "The human texts were not scored, so the initial lean is that of generation 0, which "
            "already holds a first shift."
        )
    found = Section(
        "What was found", paragraphs=words or ["No mix has a lean at the start and at the end."]
    )
    return [
        found,
        Section("What cannot be concluded", paragraphs=limits),
        Section("Lean of the mixes", tables=[_table("", "", table)]),
    ]


def _scorer(run: Run) -> list[str]:
    """How well the classifier of lean does, where one was fitted."""
    path = run.root / "lean_classifier.json"
    if not path.exists():
        return []
    report = json.loads(path.read_bytes())
    test, larger = report["test"], report["majority"]["accuracy"]
    texts = sum(scored["texts"] for scored in test["by_class"].values())
    return [
        f"Of {texts} human texts that it never saw the classifier names the side of "
        f"{100 * test['accuracy']:.0f} % ({100 * larger:.0f} % by always naming the "
        "larger): its errors draw every mean towards 50, that of the human texts too."
    ]
