"""Figures 2, 3 and 8 to 12 of arXiv 2504.03814, drawn from a run's tables.

They show a metric against the generation or the ratio, as mean and standard error over seeds. Late
values are means of the last five generations. The point at r = 0 is generation 0 of the chains at
r = 1, as in the released code, so its relative value is 1 by construction. Hollow marks are the
paper's values.
"""

import itertools
import textwrap
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.figures import mean_line, panels, printable, title
from jaxloop.reporting.scores import LAST, complete_means, share
from jaxloop.studies.recursive_loops.analysis import paper_values
from jaxloop.studies.recursive_loops.analysis.relative import find_metric, outcomes
from jaxloop.studies.recursive_loops.analysis.run_tables import Run
from jaxloop.studies.recursive_loops.analysis.settings import ordered, settings

DIVERSITY = ("cosine_diversity",)
QUALITY = (
    "judge_quality",
    "judge_quality_level",
    "quality",
    "text_quality_index",
    "class_probability",
)
# Interval of leans that count as neutral.
NEUTRAL = (50.0, 50.0)
MARKERS = "osD^vP"


class FigureOptions(NamedTuple):
    """How the figures of the paper are drawn.

    Attributes:
        quality: metrics that may stand for quality; the first that the run has is drawn.
        diversity: metrics that may stand for diversity, likewise.
        last: how many last generations are averaged to the late value.
        factor: the column of chains.csv with a line for each value; None: as in the paper's figure.
        neutral: (low, high): leanings in between count as neutral.
    """

    quality: tuple[str, ...] = QUALITY
    diversity: tuple[str, ...] = DIVERSITY
    last: int = LAST
    factor: str | None = None
    neutral: tuple[float, float] = NEUTRAL

    @property
    def dependents(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Pairs (dependent, metrics that may stand for it), in the paper's order."""
        return ("quality", self.quality), ("diversity", self.diversity)


_DEFAULTS = FigureOptions()
_TITLE = 36  # characters that fit over a panel


def dependents(run: Run, options: FigureOptions = _DEFAULTS) -> list[tuple[str, str]]:
    """Return the pairs (dependent, metric) that the run has, in the paper's order.

    A dependent is "quality" or "diversity". Raises ValueError where the run has neither.
    """
    pairs = [(name, find_metric(run.metrics, called)) for name, called in options.dependents]
    metrics = [(name, metric) for name, metric in pairs if metric]
    if not metrics:
        names = " nor ".join([*options.quality, *options.diversity])
        raise ValueError(f"metrics.csv holds neither {names}, so there is nothing to draw")
    return metrics


def with_factors(run: Run, metric: str) -> pd.DataFrame:
    """Return one metric by chain and generation, with the columns of chains.csv.

    Its value is the mean over entities, nan where one of them has none.
    """
    rows = run.metrics[run.metrics["metric"] == metric]
    mean = complete_means(rows, ["chain", "generation"]).reset_index()
    return mean.merge(run.chains, on="chain", how="inner")


def sweep(run: Run, metric: str, factors: Sequence[str], last: int = LAST) -> pd.DataFrame:
    """Return the late (absolute) and the relative value of every chain, by ratio.

    At ratio 0 they are those of generation 0 of the chains at r = 1. Relative values are nan for a
    metric that has none (`relative.outcomes`).
    """
    table = outcomes(run.metrics, run.chains, metric, last=last).table
    for name in factors:
        if name not in table:
            raise ValueError(f"chains.csv has no column {name!r}, which this figure draws")
    zero = table[table["ratio"] == 1]
    one = zero["relative"].where(zero["relative"].isna(), 1.0)
    zero = zero.assign(ratio=0.0, late=zero["first"], relative=one)
    return pd.concat([zero, table], ignore_index=True)[
        ["chain", "ratio", "late", "relative", *factors]
    ]


def _ratio_axis(axes: Axes, ratios: pd.Series) -> None:
    values = sorted(set(ratios))
    axes.set_xlabel("synthetic ratio r")
    if 0 < len(values) <= 8:
        # Labels of near ratios would overprint each other.
        least = 0.09 * (values[-1] - values[0])
        inner = [b for a, b in itertools.pairwise(values[:-1]) if b - a > least]
        axes.set_xticks([values[0], *inner, *values[1:][-1:]])
        axes.set_xticklabels([share(tick) for tick in axes.get_xticks()])


def legend(axes: Axes, name: str = "") -> None:
    """Put a legend, called `name`, to the right of a panel."""
    axes.legend(
        frameon=False,
        fontsize=7.5,
        title=printable(name) or None,
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )


def figure_2(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw quality (left) and diversity (right) by generation, a line for every ratio.

    A row of panels has the chains that are alike in everything but ratio and seed: no line is a
    mean over chains that differ in more than their seed. Raises ValueError where that makes more
    rows than a figure can show.
    """
    shown = dependents(run, options)
    rows = settings(run, ("ratio",))
    with figures.style():
        figure, axes = panels(len(rows), len(shown))
        for row, setting in enumerate(rows):
            for column, (_, metric) in enumerate(shown):
                table = with_factors(setting.run, metric)
                _by_generation(axes[row, column], table)
                _name_panel(axes[row, column], metric, setting.label)
        legend(axes[0, -1], "synthetic ratio")
    return figure


def _name_panel(axes: Axes, metric: str, label: str) -> None:
    """Name a panel after its metric and its chains, in lines that are no longer than it is wide."""
    heading = title(metric)[0]
    lines = [f"{heading} · {label}" if label else heading]
    if len(lines[0]) > _TITLE:
        unbroken = ", ".join(part.replace(" ", "\u00a0") for part in label.split(", "))
        lines = [heading, *textwrap.wrap(unbroken, _TITLE)]
    axes.set_title("\n".join(map(printable, lines)), loc="left", fontsize=10)


def _by_generation(axes: Axes, table: pd.DataFrame) -> None:
    levels = ordered(table["ratio"])
    for i, (level, (colour, _)) in enumerate(
        zip(levels, figures.palette(len(levels)), strict=True)
    ):
        mean_line(
            axes,
            table[table["ratio"].astype(str) == level],
            "generation",
            "value",
            colour=colour,
            name=f"r = {share(float(level))}",
            marker=MARKERS[i % 6],
        )
    axes.set_xlabel("generation")


def figure_3(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw late values against the ratio, a line per dataset, or per level and a column of panels
    per dataset.

    The top row is absolute, the bottom row relative to generation 0.
    """
    factor = options.factor or "dataset"
    columns = [
        _SweepColumn(name, metric, setting.label, setting.run)
        for setting in settings(run, ("ratio", factor))
        for name, metric in dependents(run, options)
    ]
    return _sweep_figure(run, factor, columns, options.last)


class _SweepColumn(NamedTuple):
    """A column of panels: a dependent and its metric, for some chains of a run.

    item: the figure of the paper whose values are drawn over the panels; "" for none.
    """

    dependent: str
    metric: str
    label: str
    run: Run
    item: str = ""


def _sweep_figure(run: Run, factor: str, columns: Sequence[_SweepColumn], last: int) -> Figure:
    """Two rows of panels, absolute and relative."""
    levels = ordered(run.chains[factor]) if factor in run.chains else []
    colours = colours_of(levels)
    with figures.style():
        figure, axes = panels(2, len(columns), sharex="col")
        for place, column in enumerate(columns):
            table = sweep(column.run, column.metric, [factor], last)
            for i, level in enumerate(levels):
                rows = table[table[factor].astype(str) == level]
                if len(rows):
                    style = {"colour": colours[level], "marker": MARKERS[i % 6]}
                    for row, value in enumerate(("late", "relative")):
                        mean_line(axes[row, place], rows, "ratio", value, name=level, **style)
                    _overlay(axes[1, place], column, level, colours[level])
            _name_panel(axes[0, place], column.metric, column.label)
            axes[1, place].axhline(1, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
            _ratio_axis(axes[1, place], table["ratio"])
        axes[0, 0].set_ylabel("absolute")
        axes[1, 0].set_ylabel("relative to generation 0")
        if axes[0, -1].get_legend_handles_labels()[0]:
            legend(axes[0, -1], factor.replace("_", " "))
    return figure


def colours_of(levels: Iterable[str]) -> dict[str, str]:
    """Return a colour for each level, spread over the palette."""
    names = list(levels)
    pairs = zip(names, figures.palette(len(names)), strict=True)
    return {name: on_light for name, (on_light, _) in pairs}


def paper_level(level: str) -> str:
    """Return a quality level under its name in the paper ("Q20" for "20"); others unchanged."""
    return f"Q{float(level):g}" if level.replace(".", "", 1).isdigit() else level


def _overlay(axes: Axes, column: _SweepColumn, level: str, colour: str) -> None:
    """Draw the paper's values of a level, if there are any."""
    if not column.item:
        return
    published = paper_values.values(
        column.item,
        metric=column.dependent,
        dataset=column.label,
        level=paper_level(level),
    )
    if len(published):
        axes.plot(
            [float(Fraction(ratio)) for ratio in published["ratio"]],
            published["value"],
            color=colour,
            marker="o",
            fillstyle="none",
            linestyle=(0, (3, 2)),
            linewidth=0.9,
            markersize=4.5,
            label="paper",
        )


def _splits(run: Run, dependent: str, item: str, options: FigureOptions) -> Figure:
    """A column of panels per dataset, for data split by quality or by length."""
    factors = [
        name
        for name in ("quality_level", "length_level")
        if name in run.chains and run.chains[name].astype(str).str.len().gt(0).any()
    ]
    if not factors:
        raise ValueError(
            "chains.csv has neither a column quality_level nor length_level, which this figure "
            "draws"
        )
    metric = dict(dependents(run, options)).get(dependent)
    if metric is None:
        raise ValueError(f"metrics.csv has no metric of {dependent}, which this figure draws")
    columns = [
        _SweepColumn(dependent, metric, dataset, one, item) for dataset, one in _datasets(run)
    ]
    return _sweep_figure(run, factors[0], columns, options.last)


def _datasets(run: Run) -> list[tuple[str, Run]]:
    """(name, the chains on it) of every dataset."""
    names = run.chains["dataset"].astype(str)
    return [
        (name, run._replace(chains=run.chains[names == name]))
        for name in ordered(run.chains["dataset"])
    ]


def figure_10(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw quality against the ratio for data split by quality or length, a column per dataset.

    Hollow marks are the values in the released code.
    """
    return _splits(run, "quality", "figure_10", options)


def figure_11(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw semantic diversity as figure 10 draws quality."""
    return _splits(run, "diversity", "figure_11", options)


def figure_9(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw late values against the number of models per generation, a line per ratio."""
    shown = dependents(run, options)
    with figures.style():
        figure, axes = panels(1, len(shown))
        for place, (_, metric) in enumerate(shown):
            table = sweep(run, metric, ["models"], options.last)
            table = table[table["ratio"] > 0]
            levels = sorted(set(table["ratio"]))
            for i, (level, (colour, _)) in enumerate(
                zip(levels, figures.palette(len(levels)), strict=True)
            ):
                mean_line(
                    axes[0, place],
                    table[table["ratio"] == level],
                    "models",
                    "late",
                    colour=colour,
                    name=f"r = {share(level)}",
                    marker=MARKERS[i % 6],
                )
            axes[0, place].set_title(printable(title(metric)[0]), loc="left", fontsize=10)
            axes[0, place].set_xlabel("models per generation")
            axes[0, place].set_xticks(sorted(set(table["models"])))
        legend(axes[0, -1], "synthetic ratio")
    return figure


def figure_8(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw what every generation trained on: shares of human items and of synthetic ones by age.

    It takes the place of the paper's pseudocode and reads the ledger. It has no options.
    """
    if run.ledger is None:
        raise ValueError(f"{run.root / 'ledger.parquet'} is missing, which this figure draws")
    ledger = run.ledger.merge(
        run.chains[["chain", "ratio"]].drop_duplicates("chain"), on="chain", suffixes=("_", "")
    )
    ratios = sorted(set(ledger["ratio"].dropna()))
    kinds = (
        ("human", figures.palette(6)[0][0]),
        ("synthetic, newest", figures.palette(6)[5][0]),
        ("synthetic, older", figures.palette(6)[4][0]),
    )
    with figures.style():
        figure, axes = panels(1, max(len(ratios), 1), panel=(2.6, 2.4), sharey=True)
        for one, ratio in zip(axes[0], ratios, strict=False):
            rows = ledger[(ledger["ratio"] == ratio) & (ledger["generation"] > 0)]
            newest = rows["from_generation"] == rows["generation"] - 1
            kind = np.where(
                rows["source"] != "synthetic",
                kinds[0][0],
                np.where(newest, kinds[1][0], kinds[2][0]),
            )
            counts = rows.assign(kind=kind).pivot_table(
                index="generation", columns="kind", values="count", aggfunc="sum", fill_value=0
            )
            shares = counts.div(counts.sum(axis=1), axis=0).reindex(
                columns=[k for k, _ in kinds], fill_value=0.0
            )
            one.stackplot(
                shares.index,
                shares.to_numpy().T,
                colors=[c for _, c in kinds],
                labels=[k for k, _ in kinds],
                alpha=0.75,
                linewidth=0,
            )
            one.axhline(
                1 - ratio, color=figures.INK, linewidth=1, linestyle=(0, (3, 2)), label="1 - r"
            )
            one.set_title(f"r = {share(ratio)}", loc="left", fontsize=10)
            one.set_xlabel("generation")
            one.set_ylim(0, 1)
        axes[0, 0].set_ylabel("share of the training set")
        legend(axes[0, -1])
    return figure


# Name, bias and overlap of the columns of figure 12; None: whatever the overlap.
_TOY = (
    ("unbiased", False, None),
    ("biased, overlap", True, True),
    ("biased, no overlap", True, False),
)


def figure_12(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw the histogram simulation: relative entropy of the last generation against the ratio.

    It is relative to generation 0; the rows are with and without accumulation. It has no options.
    """
    metric = find_metric(run.metrics, ("relative_entropy", "entropy"))
    if metric is None:
        raise ValueError(
            "metrics.csv holds neither relative_entropy nor entropy, which this figure draws"
        )
    for name in ("bias", "overlap", "accumulate"):
        if name not in run.chains:
            raise ValueError(f"chains.csv has no column {name!r}, which this figure draws")
    value = "late" if metric.startswith("relative") else "relative"
    table = outcomes(run.metrics, run.chains, metric, last=1).table
    with figures.style():
        figure, axes = panels(2, 3, sharex=True, sharey=True)
        for row, accumulate in enumerate((True, False)):
            for column, (name, bias, overlap) in enumerate(_TOY):
                rows = table[(table["accumulate"] == accumulate) & (table["bias"] == bias)]
                if overlap is not None:
                    rows = rows[rows["overlap"] == overlap]
                if len(rows):
                    mean_line(
                        axes[row, column],
                        rows,
                        "ratio",
                        value,
                        colour=figures.palette(1)[0][0],
                        name=name,
                    )
                axes[row, column].set_title(
                    f"{name} · {'accumulation' if accumulate else 'no accumulation'}",
                    loc="left",
                    fontsize=9,
                )
                axes[1, column].set_xlabel("synthetic ratio r")
            axes[row, 0].set_ylabel("relative entropy")
    return figure
