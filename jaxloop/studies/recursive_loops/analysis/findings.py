"""Analyses a recursive-loops experiment: writes tables/, figures/ and the page findings.html.

It reads only files of the run directory (`run_tables` says which). A study calls
`write_report(workdir, experiment)` when its chains are done. It can be called again, also on a run
that was copied elsewhere; it needs no model and no accelerator, and gives the same bytes for the
same files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import report, scores
from jaxloop.reporting.report import Drawing, Section
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies.common.report import slug
from jaxloop.studies.recursive_loops.analysis import (
    page_political,
    page_regression,
    page_sweep,
    paper_figures,
    paper_figures_political,
    paper_values,
    regression_robust,
    run_tables,
)
from jaxloop.studies.recursive_loops.analysis.output import save_figure
from jaxloop.studies.recursive_loops.analysis.paper_figures import FigureOptions
from jaxloop.studies.recursive_loops.analysis.run_tables import Run, factors
from jaxloop.studies.recursive_loops.analysis.settings import Setting, settings


class PaperFigure(NamedTuple):
    """A figure of the paper.

    Attributes:
        draw: draws it from a run's tables.
        caption: what it shows.
        shows: the factors whose values are its lines, panels or places on an axis; it is drawn
            for each combination of the others. None: it shows all of them, or says that it does
            not.
    """

    draw: Callable[[Run, FigureOptions], Figure]
    caption: str
    shows: tuple[str, ...] | None = None


# What bands and bars of the figures are.
_ERROR = " Bands and bars: one standard error over chains."
_OF_SPLITS = ("ratio", "dataset", "quality_level", "length_level")
FIGURES: dict[str, PaperFigure] = {
    "figure_2": PaperFigure(
        paper_figures.figure_2,
        "Quality (left) and diversity (right) by generation, a line per ratio; a row of panels per "
        "dataset and per level of what else is varied." + _ERROR,
    ),
    "figure_3": PaperFigure(
        paper_figures.figure_3,
        "Late values against the ratio, absolute (top) and relative to generation 0 (bottom), a "
        "line per dataset, or per level and a column per dataset." + _ERROR,
    ),
    "figure_5": PaperFigure(
        paper_figures_political.figure_5,
        "(a) mean lean by generation, a line per mix; (b) lean of the last generation against that "
        "of the human texts." + _ERROR,
        ("mix",),
    ),
    "figure_6": PaperFigure(
        paper_figures_political.figure_6,
        "Shares of eight bins of lean by generation, a panel per mix.",
        ("mix",),
    ),
    "figure_8": PaperFigure(
        paper_figures.figure_8,
        "What every generation trained on, by the ledger, in place of the pseudocode: share of "
        "human and of synthetic items (by their age), of all chains of a ratio together, whatever "
        "else they differ in.",
    ),
    "figure_9": PaperFigure(
        paper_figures.figure_9,
        "Late values against the number of models per generation, a line per ratio." + _ERROR,
        ("ratio", "models"),
    ),
    "figure_10": PaperFigure(
        paper_figures.figure_10,
        "Quality against the ratio for data split by quality (or by length), a column per dataset; "
        "hollow: the digits in the released code." + _ERROR,
        _OF_SPLITS,
    ),
    "figure_11": PaperFigure(
        paper_figures.figure_11,
        "As Figure 10, for semantic diversity." + _ERROR,
        _OF_SPLITS,
    ),
    "figure_12": PaperFigure(
        paper_figures.figure_12,
        "The toy: entropy of the last generation relative to generation 0 against the ratio; with "
        "and without accumulation (rows)." + _ERROR,
        ("ratio",),
    ),
    "figure_13": PaperFigure(
        paper_figures_political.figure_13,
        "Share of neutral texts among the political ones (a), and of texts that are not political "
        "(b), by generation." + _ERROR,
        ("mix",),
    ),
    "figure_14": PaperFigure(
        paper_figures_political.figure_14,
        "Figure 5b without neutral texts." + _ERROR,
        ("mix",),
    ),
    "figure_15": PaperFigure(
        paper_figures_political.figure_15,
        "Figure 5b for chains that train one base model in every generation, a line per base "
        "model." + _ERROR,
        ("mix", "bases"),
    ),
}


class Analysis(NamedTuple):
    """How the runs of an experiment are analysed.

    Attributes:
        title: heading of the page.
        kind: which analysis; "toy" is that of the histogram simulation.
        figures: keys of `FIGURES` that are drawn.
        factor: what is varied beside the ratio and the dataset.
    """

    title: str
    kind: Literal["regression", "sweep", "political", "toy"]
    figures: tuple[str, ...]
    factor: str | None = None


_SWEEP_FIGURES = ("figure_2", "figure_3", "figure_8")
_SPLIT_FIGURES = ("figure_10", "figure_11", "figure_8")
# By experiment of the config.
ANALYSES: dict[str, Analysis] = {
    "ratio_sweep": Analysis("Synthetic ratio", "sweep", _SWEEP_FIGURES),
    "datasets": Analysis("Datasets", "sweep", ("figure_3", "figure_2", "figure_8")),
    "clusters": Analysis("Properties of human data", "regression", ("figure_8",)),
    "multi_domain": Analysis("Several domains", "regression", ("figure_8",)),
    "quality_splits": Analysis("Data split by quality", "sweep", _SPLIT_FIGURES, "quality_level"),
    "length_splits": Analysis("Data split by length", "sweep", _SPLIT_FIGURES, "length_level"),
    "political": Analysis(
        "Political lean",
        "political",
        ("figure_5", "figure_6", "figure_13", "figure_14", "figure_8"),
    ),
    "political_bases": Analysis(
        "Political lean by base model", "political", ("figure_15", "figure_6"), "bases"
    ),
    "models_per_generation": Analysis(
        "Models per generation", "sweep", ("figure_9", "figure_8"), "models"
    ),
    "gen0_size": Analysis("Size of generation 0", "sweep", _SWEEP_FIGURES, "gen0_size"),
    "interventions": Analysis(
        "Selection of synthetic text", "sweep", ("figure_2", "figure_8"), "selection"
    ),
    "fit_modes": Analysis(
        "From scratch, full fine-tuning and LoRA", "sweep", ("figure_2", "figure_8")
    ),
    "toy": Analysis("Histogram toy", "toy", ("figure_12",)),
}
# If a figure had more lines than this, its curves are averaged over all factors but the ratio.
_MOST_LINES = 16


def write_report(
    workdir: str | Path,
    experiment: str,
    *,
    quality: str | Sequence[str] | None = None,
    diversity: str | Sequence[str] | None = None,
    last: int = scores.LAST,
    bound: float = regression_robust.BOUND,
    effect: float = 0.01,
    neutral: tuple[float, float] = paper_figures.NEUTRAL,
    title: str | None = None,
    run_info: Sequence[tuple[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    versions: Sequence[tuple[str, str]] = (),
) -> Path:
    """Analyse a finished run and return the path of findings.html.

    Writes tables/*.csv, tables/*.tex, figures/figure_*.png and findings.html. The page names what
    could not be computed (a constant predictor, too few chains, a missing chain).

    Args:
        workdir: the run directory.
        experiment: a key of `ANALYSES`.
        quality: metrics that may stand for quality; the first that the run has is taken.
        diversity: metrics that may stand for diversity, likewise.
        last: how many last generations are averaged to the late value of a chain.
        bound: equivalence tests ask whether an effect is smaller than this.
        effect: the effect, per standard deviation of a property, for which the table of power says
            how many chains would show it.
        neutral: (low, high): leanings in between count as neutral.
        title: heading of the page; None: that of the analysis.
        run_info: (name, value) lines about the run, shown on the page.
        config: the run's config, shown on the page.
        versions: (library, version) pairs, shown on the page.

    Raises ValueError where metrics.csv or chains.csv are missing or unusable.
    """
    if experiment not in ANALYSES:
        raise ValueError(f"experiment {experiment!r} is not one of {', '.join(ANALYSES)}")
    analysis, run = ANALYSES[experiment], run_tables.read(workdir)
    for folder in ("tables", "figures"):
        (run.root / folder).mkdir(exist_ok=True)
    options = FigureOptions(
        quality=_names(quality, paper_figures.QUALITY),
        diversity=_names(diversity, paper_figures.DIVERSITY),
        last=last,
        neutral=neutral,
    )
    sections = _sections(run, analysis, options, bound=bound, effect=effect)
    drawings, problems = _draw(run, analysis, options)
    if drawings:
        sections.insert(1, Section("Figures", drawings=drawings))
    if problems:
        sections.append(Section("What could not be drawn", paragraphs=problems))
    curves, note = _few_lines(run)
    page = report.render(
        curves,
        title=title or analysis.title,
        subtitle=f"{len(run.chains)} planned chains, {_generations(run)} generations{note}",
        sections=sections,
        run_info=[("experiment", experiment), *_measured_by(run, options), *run_info],
        config=config,
        versions=versions,
    )
    path = run.root / "findings.html"
    write_atomic(path, page.encode("utf-8"), durable=False)
    return path


def _sections(
    run: Run, analysis: Analysis, options: FigureOptions, *, bound: float, effect: float
) -> list[Section]:
    if analysis.kind == "political":
        return page_political.sections(run, neutral=options.neutral)
    if analysis.kind == "toy":
        return page_sweep.toy_sections(run)
    notes = [_quality_note(run, options)]
    if analysis.kind == "regression":
        sections = page_regression.sections(run, options, bound=bound, effect=effect)
        notes.append(_pooled_note(run))
    else:
        sections = page_sweep.sections(run, options, factor=analysis.factor)
    if notes := [note for note in notes if note]:
        sections[1] = sections[1]._replace(paragraphs=[*sections[1].paragraphs, *notes])
    return sections


def _pooled_note(run: Run) -> str:
    """A sentence that says which factors the regressions pool; "" for none."""
    pooled = [name.replace("_", " ") for name in factors(run) if name != "dataset"]
    if not pooled:
        return ""
    return (
        f"Chains that differ in {', '.join(pooled)} are rows of the same regressions, without a "
        "predictor for it: coefficients are means over its levels."
    )


def _names(given: str | Sequence[str] | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    return (given,) if isinstance(given, str) else tuple(given)


def _measured_by(run: Run, options: FigureOptions) -> list[tuple[str, str]]:
    """Pairs ("quality", metric) and ("diversity", metric), as far as the run has them.

    The names of the metrics are without `@domain`.
    """
    plain = {metric.partition("@")[0]: None for metric in run.metrics["metric"].unique()}
    table = pd.DataFrame({"metric": list(plain)})
    metrics = {
        name: paper_figures.find_metric(table, called) for name, called in options.dependents
    }
    return [(name, metric) for name, metric in metrics.items() if metric]


def _quality_note(run: Run, options: FigureOptions) -> str:
    """A sentence that says what measured quality; "" if it was a judge, as in the paper."""
    metric = dict(_measured_by(run, options)).get("quality")
    if metric is None:
        return "No metric of quality was measured, so nothing is said about it."
    if metric.partition("(")[0] in ("judge_quality", "judge_quality_level", "quality"):
        return ""
    return (
        f"Quality is {metric} here, not a judge's score: what is said of it is not comparable "
        "with the paper's quality."
    )


def _generations(run: Run) -> int:
    return int(run.metrics["generation"].max()) + 1 if len(run.metrics) else 0


def _few_lines(run: Run) -> tuple[pd.DataFrame, str]:
    """The metrics as the curves show them, and a note that says over what they are averaged.

    Chains on different clusters are replicates. If there would be too many lines, the curves are
    averaged over all factors but the ratio.
    """
    varied = (*factors(run), *run_tables.TOY_FACTORS, "ratio")
    names = [c for c in (*scores.FIXED, "seed", *varied) if c in run.metrics]
    if "entity" in names and run.metrics["entity"].nunique() <= 1:
        names.remove("entity")
    table = run.metrics[list(dict.fromkeys(names))]
    over = [name for name in ("cluster",) if run.metrics.get(name, pd.Series()).nunique() > 1]
    over += [str(name) for name in run.metrics if str(name).startswith("cluster.")]
    if scores.with_lines(table.drop_duplicates("chain"))["line"].nunique() > _MOST_LINES:
        kept = [c for c in table.columns if c in (*scores.FIXED, "seed", "ratio")]
        over += [str(c) for c in table.columns if c not in kept]
        table = table[kept]
    return table, scores.averaged_over(over)


def _draw(run: Run, analysis: Analysis, options: FigureOptions) -> tuple[list[Drawing], list[str]]:
    """Draw the figures of the experiment, and write them as PNG files too.

    Returns the drawings, and a sentence for each figure that the run's tables do not allow.
    """
    factor = analysis.factor or next((f for f in factors(run) if f != "dataset"), None)
    if factor is not None and factor in run.chains:
        options = options._replace(factor=factor)
    drawings, problems = [], []
    for name, chains in _figures(run, analysis):
        try:
            for setting in _settings(chains, FIGURES[name]):
                drawings.append(_drawing(name, setting, options))
        except ValueError as error:
            problems.append(f"Figure {name.removeprefix('figure_')}: {error}.")
    return drawings, problems


def _settings(run: Run, figure: PaperFigure) -> list[Setting]:
    return [Setting(run, (), "")] if figure.shows is None else settings(run, figure.shows)


def _drawing(name: str, setting: Setting, options: FigureOptions) -> Drawing:
    """A figure of the chains of a setting, which is written as a PNG file too."""
    figure = FIGURES[name]
    drawn = figure.draw(setting.run, options)
    save_figure(setting.run, ".".join(filter(None, (name, slug(setting.label)))), drawn)
    note = paper_values.note(name)
    return Drawing(
        " · ".join(filter(None, (f"Figure {name.removeprefix('figure_')}", setting.label))),
        figure.caption + (f" The paper: {note}" if note else ""),
        drawn,
        wide=True,
    )


def _figures(run: Run, analysis: Analysis) -> Iterator[tuple[str, Run]]:
    """The figures of an experiment, each with the chains that it shows."""
    if analysis.kind != "political" or not page_political.has_several_bases(run):
        yield from ((name, run) for name in analysis.figures)
        return
    for name in dict.fromkeys((*analysis.figures, "figure_15")):
        # The other figures of the paper are of chains that draw their base models.
        yield name, run if name == "figure_15" else page_political.with_mixed_bases(run)
