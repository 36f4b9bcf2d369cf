"""Figures 5, 6, 13, 14 and 15 of arXiv 2504.03814, drawn from the lean of every scored text.

A lean is between 0 (left) and 100 (right); texts judged not to be political, and texts of which a
judge gave no score, have none and are left out of averages. A text is neutral if its lean is inside
the interval `neutral`. In the paper that is exactly 50; the probabilities of a classifier need a
wider interval. The paper does not give the edges of the eight bins of Figure 6: here they divide 0
to 100 evenly.
"""

from collections.abc import Iterable, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.metrics.judge_replies import DOES_NOT_APPLY
from jaxloop.reporting import figures
from jaxloop.reporting.figures import mean_line, panels, printable
from jaxloop.studies.recursive_loops.analysis.paper_figures import (
    MARKERS,
    NEUTRAL,
    FigureOptions,
    colours_of,
    legend,
)
from jaxloop.studies.recursive_loops.analysis.run_tables import Run, factors
from jaxloop.studies.recursive_loops.analysis.settings import ordered

METRIC = "political_lean"
BINS = 8
_DEFAULTS = FigureOptions()


def leans(run: Run) -> pd.DataFrame:
    """Return a row for every scored text: chain, generation, lean, and the columns of chains.csv.

    Also none, 1 for a text judged not to be political, else 0, nan where there is no score; and
    no_score, 1 or 0. lean is nan for both.
    Generation -1 holds the human texts of generation 0. Raises ValueError where text_scores.parquet
    or its metric is missing, chains.csv has no column mix, or a lean is outside [0, 100].
    """
    if run.scores is None:
        raise ValueError(
            f"{run.root / 'text_scores.parquet'} is missing, which the political figures draw"
        )
    rows = run.scores[run.scores["metric"] == METRIC]
    if rows.empty:
        raise ValueError(f"{run.root / 'text_scores.parquet'} has no rows of the metric {METRIC!r}")
    if "mix" not in run.chains:
        raise ValueError("chains.csv has no column 'mix', which the political figures draw")
    value = rows["value"].astype(float)
    none = value == DOES_NOT_APPLY
    wrong = ((value < 0) & ~none) | (value > 100)
    if wrong.any():
        bad = value[wrong].iloc[0]
        raise ValueError(
            f"text_scores.parquet holds a {METRIC} of {bad:g}: must lie between 0 and 100, be "
            "-1 for a text that is not political, or empty where there is no score"
        )
    replies = rows[["chain", "generation"]].assign(
        lean=value.mask(none),
        none=none.astype(float).where(value.notna()),
        no_score=value.isna().astype(float),
    )
    return replies.merge(run.chains, on="chain", how="inner")


def by_chain(table: pd.DataFrame, neutral: tuple[float, float] = NEUTRAL) -> pd.DataFrame:
    """Return a row for every chain and generation; table: that of `leans`.

    Columns: chain, generation, the factors, lean (mean), lean_without_neutral (mean), neutral
    (share of the political texts), non_political (share of the texts that have a score or are not
    political), no_score (share of all texts).
    """
    is_neutral = table["lean"].between(*neutral)
    work = table.assign(
        other=table["lean"].where(~is_neutral),
        flag=is_neutral.astype(float).where(table["lean"].notna()),
    )
    means = work.groupby(["chain", "generation"]).agg(
        lean=("lean", "mean"),
        lean_without_neutral=("other", "mean"),
        neutral=("flag", "mean"),
        non_political=("none", "mean"),
        no_score=("no_score", "mean"),
    )
    factors = [c for c in table.columns if c not in ("lean", "none", "no_score", "generation")]
    return means.reset_index().merge(table[factors].drop_duplicates("chain"), on="chain")


def cells(run: Run) -> list[str]:
    """Return the columns of chains.csv in which chains differ, without the seed; mix is first."""
    names = ["mix", *factors(run), *(["ratio"] if run.chains["ratio"].nunique() > 1 else [])]
    return list(dict.fromkeys(names))


def bins(table: pd.DataFrame, keys: Sequence[str] = ("mix",), count: int = BINS) -> pd.DataFrame:
    """Return which share of the political texts falls into each of `count` equal bins of lean.

    There is a row for every level of `keys` and generation; columns keys, generation, 0 .. count -
    1.
    """
    political = table.dropna(subset="lean")
    place = np.clip((political["lean"] / 100 * count).astype(int), 0, count - 1)
    rows = [political[name] for name in (*keys, "generation")]
    shares = pd.crosstab(rows, place, normalize="index").reindex(
        columns=range(count), fill_value=0.0
    )
    return shares.rename_axis(columns=None).reset_index()


def initial_and_final(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return a row for every chain: its initial and final `value`, and its factors.

    initial is that of the human texts if they were scored, else of generation 0; final is that of
    the last generation.
    """
    last = table["generation"].max()
    start = table[table["generation"] == table["generation"].min()].set_index("chain")[value]
    end = table[table["generation"] == last].set_index("chain")
    both = end.assign(initial=start, final=end[value])
    return both.dropna(subset=["initial", "final"]).reset_index()


def _diagonal(axes: Axes, values: Iterable[float]) -> None:
    leans = list(values)
    low, high = min(30.0, *leans), max(70.0, *leans)
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, linestyle=(0, (3, 2)))
    axes.axhline(50, color="0.7", alpha=0.5, linewidth=0.8)
    axes.axvline(50, color="0.7", alpha=0.5, linewidth=0.8)
    axes.set_xlabel("initial lean (0 left, 100 right)")
    axes.set_ylabel("final lean")


def _initial_final(axes: Axes, table: pd.DataFrame, value: str, factor: str | None = None) -> None:
    """Draw chains as dots, and the means of the mixes as a line for each level of a factor."""
    ends = initial_and_final(table, value)
    if ends.empty:
        raise ValueError(
            "no chain has a political lean both at the start and in the last generation"
        )
    levels = [""] if factor is None else ordered(ends[factor])
    for i, (level, colour) in enumerate(colours_of(levels).items()):
        rows = ends if factor is None else ends[ends[factor].astype(str) == level]
        axes.plot(
            rows["initial"], rows["final"], MARKERS[i % 6], color=colour, markersize=3.2, alpha=0.5
        )
        means = (
            rows.groupby("mix")[["initial", "final"]]
            .agg(["mean", "sem"])
            .sort_values(("initial", "mean"))
        )
        axes.errorbar(
            means["initial"]["mean"],
            means["final"]["mean"],
            yerr=means["final"]["sem"].fillna(0),
            color=colour,
            linewidth=1.6,
            label=printable(level),
        )
    _diagonal(axes, [*ends["initial"], *ends["final"]])


def figure_5(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw (a) mean lean by generation, a line per mix; (b) lean of the last generation against
    that of the human texts.
    """
    table = by_chain(leans(run), options.neutral)
    with figures.style():
        figure, axes = panels(1, 2, panel=(4.0, 3.2))
        _lines(axes[0, 0], table[table["generation"] >= 0], "lean")
        axes[0, 0].axhline(50, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
        axes[0, 0].set_title("(a) Mean lean", loc="left", fontsize=10)
        legend(axes[0, 0], "left and right")
        _initial_final(axes[0, 1], table, "lean")
        axes[0, 1].set_title("(b) Initial and final lean", loc="left", fontsize=10)
    return figure


def _lines(axes: Axes, table: pd.DataFrame, value: str) -> None:
    levels = ordered(table["mix"])
    for i, (mix, colour) in enumerate(colours_of(levels).items()):
        mean_line(
            axes,
            table[table["mix"].astype(str) == mix],
            "generation",
            value,
            colour=colour,
            name=mix,
            marker=MARKERS[i % 6],
        )
    axes.set_xlabel("generation")


def figure_6(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw the shares of eight bins of lean by generation, a panel per mix; it has no options."""
    shares = bins(leans(run))
    shares = shares[shares["generation"] >= 0]
    mixes = ordered(shares["mix"])
    colours = matplotlib.colormaps["coolwarm"](np.linspace(0.02, 0.98, BINS))
    with figures.style():
        figure, axes = panels(1, len(mixes), panel=(2.5, 2.6), sharey=True)
        for one, mix in zip(axes[0], mixes, strict=True):
            rows = shares[shares["mix"].astype(str) == mix].sort_values("generation")
            names = [f"{100 * b / BINS:g} to {100 * (b + 1) / BINS:g}" for b in range(BINS)]
            one.stackplot(
                rows["generation"],
                rows[list(range(BINS))].to_numpy().T,
                colors=colours,
                labels=names,
                linewidth=0,
            )
            one.set_title(printable(mix), loc="left", fontsize=10)
            one.set_xlabel("generation")
            one.set_ylim(0, 1)
        axes[0, 0].set_ylabel("share of political texts")
        legend(axes[0, -1], "lean")
    return figure


def figure_13(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw the share of neutral texts among the political ones (a), and of texts that are not
    political (b), by generation; where a judge gave texts no score, also their share (c).
    """
    table = by_chain(leans(run), options.neutral)
    table = table[table["generation"] >= 0]
    with figures.style():
        drawn = [("neutral", "(a) Neutral"), ("non_political", "(b) Not political")]
        if table["no_score"].any():
            drawn.append(("no_score", "(c) No score"))
        figure, axes = panels(1, len(drawn))
        for one, (value, name) in zip(axes[0], drawn, strict=True):
            _lines(one, table, value)
            one.set_title(name, loc="left", fontsize=10)
            one.set_ylabel("share of texts")
            one.set_ylim(bottom=max(0.0, one.get_ylim()[0]))
        legend(axes[0, -1])
    return figure


def figure_14(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw figure 5b without neutral texts."""
    table = by_chain(leans(run), options.neutral)
    with figures.style():
        figure, axes = panels(1, 1, panel=(4.0, 3.2))
        _initial_final(axes[0, 0], table, "lean_without_neutral")
        axes[0, 0].set_title("Without neutral texts", loc="left", fontsize=10)
    return figure


def figure_15(run: Run, options: FigureOptions = _DEFAULTS) -> Figure:
    """Draw figure 5b for chains that train one base model in every generation, a line per base
    model.
    """
    table = by_chain(leans(run), options.neutral)
    if "bases" not in table:
        raise ValueError("chains.csv has no column 'bases', which this figure draws")
    with figures.style():
        figure, axes = panels(1, 1, panel=(4.6, 3.6))
        _initial_final(axes[0, 0], table, "lean", "bases")
        legend(axes[0, 0], "base model")
    return figure
