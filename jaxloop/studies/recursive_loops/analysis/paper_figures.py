"""Figures of arXiv 2504.03814 that show a metric against the generation or the ratio (2, 3, 8 to
12), drawn from a run's tables.

Mean and standard error over seeds; late values are means of the last five generations; the point at
r = 0 is generation 0 of the chains at r = 1, as in the released code (recursive_loops.md, section
0), so its relative value is 1 by construction. Hollow marks are the paper's.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.figures import mean_line, panels, printable, title
from jaxloop.reporting.scores import LAST, share
from jaxloop.studies.recursive_loops.analysis import paper_values
from jaxloop.studies.recursive_loops.analysis.relative import find_metric, outcomes
from jaxloop.studies.recursive_loops.analysis.run_tables import Run

DIVERSITY = ("cosine_diversity",)
QUALITY = ("judge_quality", "quality", "text_quality_index", "class_probability")
MARKERS = "osD^vP"


def dependents(
    run: Run, quality: Sequence[str] = QUALITY, diversity: Sequence[str] = DIVERSITY
) -> list[tuple[str, str]]:
    """("quality", metric) and ("diversity", metric), those that the run has, in the paper's order.
    ValueError where it has neither.
    """
    found = [
        (name, find_metric(run.metrics, tuple(called)))
        for name, called in (("quality", quality), ("diversity", diversity))
    ]
    if not any(metric for _, metric in found):
        raise ValueError(
            f"metrics.csv holds neither {' nor '.join([*quality, *diversity])}, so there is "
            "nothing to draw"
        )
    return [(name, metric) for name, metric in found if metric]


def with_factors(run: Run, metric: str) -> pd.DataFrame:
    """Rows of one metric by chain and generation (mean over entities), with the columns of
    chains.csv.
    """
    rows = run.metrics[run.metrics["metric"] == metric]
    mean = rows.groupby(["chain", "generation"], as_index=False)["value"].mean()
    return mean.merge(run.chains, on="chain", how="inner")


def ordered(levels: pd.Series) -> list:
    """Different values of a factor: numbers by size, the paper's words in their order, else by
    name.
    """
    words = {
        w: i
        for i, w in enumerate(
            ("short", "medium", "long", "100l0r", "75l25r", "50l50r", "25l75r", "0l100r", "mixed")
        )
    }
    held = list(dict.fromkeys(levels.astype(str)))
    numeric = pd.to_numeric(pd.Series(held), errors="coerce")
    return sorted(
        held,
        key=lambda v: (
            words.get(v, 99),
            float(numeric[held.index(v)]) if np.isfinite(numeric[held.index(v)]) else 0.0,
            v,
        ),
    )


def sweep(run: Run, metric: str, factors: Sequence[str], last: int = LAST) -> pd.DataFrame:
    """Late (absolute) and relative values of every chain by ratio, and at ratio 0 those of
    generation 0 of the chains at r = 1.
    """
    table = outcomes(run.metrics, run.chains, metric, last=last).table
    for name in factors:
        if name not in table:
            raise ValueError(f"chains.csv has no column {name!r}, which this figure draws")
    zero = table[table["ratio"] == 1]
    zero = zero.assign(ratio=0.0, late=zero["first"], relative=1.0)
    return pd.concat([zero, table], ignore_index=True)[
        ["chain", "ratio", "late", "relative", *factors]
    ]


def _ratio_axis(axes, ratios: pd.Series) -> None:
    held = sorted(set(ratios))
    axes.set_xlabel("synthetic ratio r")
    if 0 < len(held) <= 8:
        # Labels of near ratios would overprint each other.
        spread = held[-1] - held[0]
        axes.set_xticks(
            [
                r
                for i, r in enumerate(held)
                if i == 0 or not spread or r - held[i - 1] > 0.09 * spread or i == len(held) - 1
            ]
        )
        axes.set_xticklabels([share(t) for t in axes.get_xticks()])


def _legend(axes, name: str = "") -> None:
    axes.legend(
        frameon=False,
        fontsize=7.5,
        title=printable(name) or None,
        title_fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )


def figure_2(run: Run, *, factor: str = "ratio", **options) -> Figure:
    """Quality (left) and diversity (right) by generation, a line per ratio or level; one row of
    panels per dataset.

    factor: the column of chains.csv that lines stand for.
    """
    shown, datasets = dependents(run, **options), ordered(run.chains["dataset"])
    with figures.style():
        figure, axes = panels(len(datasets), len(shown))
        for row, dataset in enumerate(datasets):
            for column, (_, metric) in enumerate(shown):
                table = with_factors(run, metric)
                table = table[table["dataset"].astype(str) == dataset]
                _by_generation(axes[row, column], table, factor)
                axes[row, column].set_title(
                    printable(title(metric)[0] + (f" · {dataset}" if len(datasets) > 1 else "")),
                    loc="left",
                    fontsize=10,
                )
        _legend(axes[0, -1], "synthetic ratio" if factor == "ratio" else factor.replace("_", " "))
    return figure


def _by_generation(axes, table: pd.DataFrame, factor: str) -> None:
    levels = ordered(table[factor])
    for i, (level, (colour, _)) in enumerate(
        zip(levels, figures.palette(len(levels)), strict=True)
    ):
        name = f"r = {share(float(level))}" if factor == "ratio" else str(level)
        mean_line(
            axes,
            table[table[factor].astype(str) == level],
            "generation",
            "value",
            colour=colour,
            name=name,
            marker=MARKERS[i % 6],
        )
    axes.set_xlabel("generation")


def figure_3(run: Run, *, factor: str = "dataset", last: int = LAST, **options) -> Figure:
    """Late values against the ratio, absolute (top) and relative to generation 0 (bottom), a line
    per dataset or level.

    factor: the column of chains.csv that lines stand for.
    """
    return _sweep_figure(run, factor, [("", run)], dependents(run, **options), last)


def _sweep_figure(
    run: Run,
    factor: str,
    groups: Sequence[tuple[str, Run]],
    shown: Sequence[tuple[str, str]],
    last: int,
    item: str = "",
) -> Figure:
    """Two rows (absolute, relative); a column per dependent and group of chains."""
    columns = [(name, metric, label, group) for name, metric in shown for label, group in groups]
    levels = ordered(run.chains[factor]) if factor in run.chains else []
    colours = {
        level: pair[0] for level, pair in zip(levels, figures.palette(len(levels)), strict=True)
    }
    with figures.style():
        figure, axes = panels(2, len(columns), sharex="col")
        for place, (name, metric, label, group) in enumerate(columns):
            table = sweep(group, metric, [factor], last)
            for i, level in enumerate(levels):
                own = table[table[factor].astype(str) == level]
                if len(own):
                    for row, value in enumerate(("late", "relative")):
                        mean_line(
                            axes[row, place],
                            own,
                            "ratio",
                            value,
                            colour=colours[level],
                            name=level,
                            marker=MARKERS[i % 6],
                        )
                    _overlay(axes[1, place], item, name, label, level, colours[level])
            axes[0, place].set_title(
                printable(title(metric)[0] + (f" · {label}" if label else "")),
                loc="left",
                fontsize=10,
            )
            axes[1, place].axhline(1, color="0.6", linewidth=0.8, linestyle=(0, (1, 2)))
            _ratio_axis(axes[1, place], table["ratio"])
        axes[0, 0].set_ylabel("absolute")
        axes[1, 0].set_ylabel("relative to generation 0")
        if axes[0, -1].get_legend_handles_labels()[0]:
            _legend(axes[0, -1], factor.replace("_", " "))
    return figure


def paper_level(level: str) -> str:
    """20 -> "Q20": a quality level as the paper's table calls it; everything else as it is."""
    return f"Q{float(level):g}" if level.replace(".", "", 1).isdigit() else level


def _overlay(axes, item: str, name: str, dataset: str, level: str, colour: str) -> None:
    known = (
        paper_values.values(item, metric=name, dataset=dataset, level=paper_level(level))
        if item
        else ()
    )
    if len(known):
        at = [float(Fraction(r)) for r in known["ratio"]]
        axes.plot(
            at,
            known["value"],
            color=colour,
            marker="o",
            fillstyle="none",
            linestyle=(0, (3, 2)),
            linewidth=0.9,
            markersize=4.5,
            label="paper",
        )


def _splits(run: Run, name: str, item: str, last: int, options: dict) -> Figure:
    factor = next(
        (
            f
            for f in ("quality_level", "length_level")
            if f in run.chains and run.chains[f].astype(str).str.len().gt(0).any()
        ),
        None,
    )
    if factor is None:
        raise ValueError(
            "chains.csv has neither a column quality_level nor length_level, which this figure "
            "draws"
        )
    shown = [pair for pair in dependents(run, **options) if pair[0] == name]
    if not shown:
        raise ValueError(f"metrics.csv has no metric of {name}, which this figure draws")
    held = ordered(run.chains["dataset"])
    groups = [
        (d, run._replace(chains=run.chains[run.chains["dataset"].astype(str) == d])) for d in held
    ]
    return _sweep_figure(run, factor, groups, shown, last, item)


def figure_10(run: Run, *, last: int = LAST, **options) -> Figure:
    """Quality against the ratio for data split by quality (or by length), a column per dataset;
    hollow: the digits in the released code.
    """
    return _splits(run, "quality", "figure_10", last, options)


def figure_11(run: Run, *, last: int = LAST, **options) -> Figure:
    """As Figure 10, for semantic diversity."""
    return _splits(run, "diversity", "figure_11", last, options)


def figure_9(run: Run, *, last: int = LAST, **options) -> Figure:
    """Late values against the number of models per generation, a line per ratio."""
    shown = dependents(run, **options)
    with figures.style():
        figure, axes = panels(1, len(shown))
        for place, (_, metric) in enumerate(shown):
            table = sweep(run, metric, ["models"], last)
            table = table[table["ratio"] > 0]
            levels = sorted(set(table["ratio"]))
            for i, (level, (colour, _)) in enumerate(
                zip(levels, figures.palette(len(levels)), strict=True)
            ):
                own = table[table["ratio"] == level]
                mean_line(
                    axes[0, place],
                    own,
                    "models",
                    "late",
                    colour=colour,
                    name=f"r = {share(level)}",
                    marker=MARKERS[i % 6],
                )
            axes[0, place].set_title(printable(title(metric)[0]), loc="left", fontsize=10)
            axes[0, place].set_xlabel("models per generation")
            axes[0, place].set_xticks(sorted(set(table["models"])))
        _legend(axes[0, -1], "synthetic ratio")
    return figure


def figure_8(run: Run, **_) -> Figure:
    """What every generation trained on, by the ledger, in place of the pseudocode: share of human
    and of synthetic items (by their age).
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
        _legend(axes[0, -1])
    return figure


_TOY = (
    ("unbiased", False, None),
    ("biased, overlap", True, True),
    ("biased, no overlap", True, False),
)


def figure_12(run: Run, **_) -> Figure:
    """The toy: entropy of the last generation relative to generation 0 against the ratio; with and
    without accumulation (rows).
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
                own = table[(table["accumulate"] == accumulate) & (table["bias"] == bias)]
                own = own if overlap is None else own[own["overlap"] == overlap]
                if len(own):
                    mean_line(
                        axes[row, column],
                        own,
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
