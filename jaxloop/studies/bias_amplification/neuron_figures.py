"""Figures of a neuron study: correlations by layer (Figures 12-15 of arXiv 2410.15234), and what
its counts are worth.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from jaxloop.reporting.figures import GRID, INK, MUTED, palette, png, printable, style
from jaxloop.studies.bias_amplification.neuron_null import PERMUTATION_RULES, RULES
from jaxloop.studies.bias_amplification.neuron_study import NeuronStudy

# name -> (title, what it says)
CAPTIONS = {
    "correlations": (
        "Correlation of every neuron with the outcome",
        "Pearson's r over all versions, one dot per neuron; large: significant after Bonferroni "
        "(in differences where these were tested)",
    ),
    "layers": (
        "Significant neurons by layer",
        "tests of differences; full colour: more of the neuron goes with more of the outcome",
    ),
    "counts": (
        "Significant neurons against chance",
        "dot: found; line: nominal expectation; band: up to the 95th percentile with outcomes "
        "exchanged between seeds",
    ),
    "p_values": ("Distribution of p", "share of neurons below p; dotted: if p were uniform"),
    "overlap": (
        "Neurons in both sets",
        "found against what independent sets would share, at the uncorrected level; p: "
        "hypergeometric, two-sided",
    ),
}
_RULE_NAMES = {
    "p<alpha": "uncorrected",
    "bonferroni": "Bonferroni",
    "bh": "Benjamini-Hochberg",
    "permutation": "permutation p",
    "familywise": "familywise p",
}


def figures(study: NeuronStudy, mode: str | None = None) -> dict[str, Figure]:
    """Draw what `CAPTIONS` lists, by name, of one mode of the tests.

    None is differences where they were made. Correlations are shown in levels where these were
    made, as the paper does. Raises ValueError for a mode that the study does not have.
    """
    modes = study.settings["modes"]
    mode = mode or ("differences" if "differences" in modes else modes[0])
    if mode not in modes:
        raise ValueError(f"mode={mode!r}: the study has {', '.join(modes)}")
    with style():
        by_name = {
            "correlations": _correlations(study, "levels" if "levels" in modes else mode, mode),
            "layers": _layers(study, mode),
            "counts": _counts(study),
            "p_values": _p_values(study, mode),
        }
        if len(study.overlap):
            by_name["overlap"] = _overlap(study, mode)
    return by_name


def write(study: NeuronStudy, folder: Path, mode: str | None = None) -> list[Path]:
    """Write `folder`/neurons_<name>.png of every figure and return the paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, figure in figures(study, mode).items():
        paths.append(folder / f"neurons_{name}.png")
        paths[-1].write_bytes(png(figure))
    return paths


def _panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure and its axes [count], `columns` to a row."""
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * min(columns, count), size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, min(columns, count), squeeze=False).ravel())
    for spare in axes[count:]:
        spare.set_visible(False)
    for one in axes:
        one.tick_params(length=0)
    return figure, axes[:count]


def _title(axes: Axes, text: str) -> None:
    axes.set_title(printable(text), loc="left", fontweight="bold", fontsize=10)


def _relations(study: NeuronStudy) -> list[str]:
    return list(dict.fromkeys(study.tests["relation"]))


def _colours(study: NeuronStudy) -> dict[str, str]:
    names = _relations(study)
    return {name: light for name, (light, _) in zip(names, palette(len(names)), strict=True)}


def _correlations(study: NeuronStudy, mode: str, tested: str) -> Figure:
    """Correlations in `mode`; neurons that are significant in mode `tested` are marked."""
    names, colours = _relations(study), _colours(study)
    figure, panels = _panels(len(names), 2, (4.6, 2.9))
    for axes, name in zip(panels, names, strict=True):
        of_relation = study.tests[study.tests["relation"] == name]
        rows = of_relation[of_relation["mode"] == mode]
        r = rows["r"].to_numpy()
        significant = of_relation.loc[of_relation["mode"] == tested, "bonferroni"].to_numpy()
        _draw_dots(axes, rows, significant, colours[name])
        axes.set_ylim(-1.02, 1.02)
        axes.set_xlim(0.4, int(rows["layer"].max()) + 0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"r ({mode})")
        _title(axes, f"{name}: {int((np.abs(r) > 0.5).sum()):,} of {len(r):,} beyond ± 0.5")
    return figure


def _draw_dots(axes: Axes, rows: pd.DataFrame, significant: np.ndarray, colour: str) -> None:
    # Dots of a layer are spread over its width by their number, so that the same neuron stands
    # at the same place in every panel.
    unit = rows["unit"].to_numpy()
    x = rows["layer"].to_numpy() + 0.8 * (unit / max(1, unit.max()) - 0.5)
    r = rows["r"].to_numpy()
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.plot(
        x[~significant],
        r[~significant],
        ".",
        color=colour,
        alpha=0.7,
        markersize=1.8,
        markeredgewidth=0,
        rasterized=True,
    )
    axes.plot(
        x[significant],
        r[significant],
        "o",
        color=colour,
        markersize=3,
        markeredgecolor=INK,
        markeredgewidth=0.4,
        rasterized=True,
    )


def _layers(study: NeuronStudy, mode: str) -> Figure:
    names, colours = _relations(study), _colours(study)
    figure, panels = _panels(len(names), 2, (4.6, 2.5))
    rows = study.layers[(study.layers["mode"] == mode) & (study.layers["rule"] == "p<alpha")]
    chance = study.counts[
        (study.counts["mode"] == mode) & (study.counts["rule"] == "p<alpha")
    ].set_index("relation")
    for axes, name in zip(panels, names, strict=True):
        of_relation = rows[rows["relation"] == name]
        layer, total, positive = (
            of_relation[column].to_numpy() for column in ("layer", "significant", "positive")
        )
        axes.bar(layer, positive, color=colours[name], width=0.72, label="positive slope")
        axes.bar(
            layer,
            total - positive,
            bottom=positive,
            color=colours[name],
            alpha=0.4,
            width=0.72,
            label="negative slope",
        )
        expected = float(chance["null_mean"][name])
        if np.isnan(expected):
            expected = float(chance["nominal"][name])
        axes.axhline(
            expected / len(layer),
            color=INK,
            linewidth=1,
            linestyle=(0, (1, 2)),
            label="expected by chance",
        )
        axes.set_ylim(0, max(total.max(), expected / len(layer), 1) * 1.45)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("layer")
        axes.set_ylabel(f"p < {study.settings['alpha']:g}")
        axes.legend(
            frameon=False,
            fontsize=7.5,
            ncols=3,
            loc="upper left",
            labelcolor=INK,
            handlelength=1.2,
            columnspacing=1,
        )
        _title(axes, name)
    return figure


def _counts(study: NeuronStudy) -> Figure:
    """One panel per mode and rule that has a null, relations below each other, logarithmic with a
    place for 0.
    """
    modes, names = study.settings["modes"], _relations(study)
    rules = len(RULES)
    if study.settings["permutations"]:
        rules += len(PERMUTATION_RULES)
    figure, panels = _panels(len(modes), 1, (7.4, 0.9 + 0.26 * len(names) * rules))
    for axes, mode in zip(panels, modes, strict=True):
        rows = study.counts[study.counts["mode"] == mode]
        labels, at = [], 0.0
        for rule, of_rule in rows.groupby("rule", sort=False):
            for name, colour in _colours(study).items():
                _draw_count(axes, of_rule[of_rule["relation"] == name].iloc[0], at, colour)
                labels.append((at, f"{name}, {_RULE_NAMES[str(rule)]}"))
                at += 1
            at += 0.5
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlim(0, rows["tests"].max() * 2.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_yticks([y for y, _ in labels], [text for _, text in labels], fontsize=8)
        axes.set_ylim(at - 0.5, -1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("neurons")
        _title(axes, mode.capitalize())
    return figure


def _draw_count(axes: Axes, row: pd.Series, at: float, colour: str) -> None:
    """One line of the panel: a count, its nominal expectation, and the band of shuffled ones."""
    if not np.isnan(row["null_high"]):
        axes.barh(at, row["null_high"], height=0.8, color=MUTED, alpha=0.25, linewidth=0)
    if not np.isnan(row["nominal"]):
        axes.plot([row["nominal"]] * 2, [at - 0.4, at + 0.4], color=INK, linewidth=1.2)
    axes.plot(row["observed"], at, "o", color=colour, markersize=5, clip_on=False, zorder=3)
    axes.annotate(
        f"{row['observed']:,}",
        (row["observed"], at),
        (7, 0),
        textcoords="offset points",
        va="center",
        fontsize=7.5,
        color=INK,
    )


def _p_values(study: NeuronStudy, mode: str) -> Figure:
    names, colours = _relations(study), _colours(study)
    with_null = study.settings["permutations"] > 0
    figure, panels = _panels(1 + with_null, 2, (4.4, 3.3))
    rows = study.tests[study.tests["mode"] == mode]
    for axes, column, title in zip(
        panels, ("p", "p_permutation"), ("Newey-West p, normal", "Permutation p")
    ):
        for name in names:
            p = np.maximum(np.sort(rows[rows["relation"] == name][column].to_numpy()), 1e-300)
            axes.plot(
                p, np.arange(1, len(p) + 1) / len(p), color=colours[name], linewidth=1.6, label=name
            )
        least = 1e-8 if column == "p" else 1 / (1 + study.settings["permutations"])
        axes.plot([least, 1], [least, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
        axes.set_xlim(least, 1)
        axes.set_ylim(0.5 / rows.groupby("relation").size().max(), 1.3)
        axes.set_xlabel("p")
        axes.set_ylabel("share of neurons below")
        _title(axes, f"{title} ({mode})")
    panels[0].legend(frameon=False, fontsize=8, loc="upper left", labelcolor=INK)
    return figure


def _overlap(study: NeuronStudy, mode: str) -> Figure:
    rows = study.overlap[(study.overlap["mode"] == mode) & (study.overlap["rule"] == "p<alpha")]
    figure, (axes,) = _panels(1, 1, (7.4, 0.9 + 0.36 * len(rows)))
    y = np.arange(len(rows))
    colour = palette(1)[0][0]
    axes.barh(y, rows["observed"], color=colour, height=0.6, label="found")
    axes.plot(
        rows["expected"],
        y,
        "|",
        color=INK,
        markersize=16,
        markeredgewidth=1.6,
        label="independent sets",
    )
    if rows["null_mean"].notna().all():
        axes.plot(
            rows["null_mean"],
            y,
            "D",
            color=GRID,
            markeredgecolor=INK,
            markersize=5,
            label="outcomes exchanged",
        )
    words = [f"p = {min(1.0, 2 * min(a, b)):.2g}" for a, b in zip(rows["p_more"], rows["p_fewer"])]
    for at, word, value in zip(y, words, np.maximum(rows["observed"], rows["expected"])):
        axes.annotate(
            word,
            (value, at),
            (12, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=MUTED,
        )
    axes.set_yticks(
        y, [printable(f"{a} and {b}") for a, b in zip(rows["first"], rows["second"])], fontsize=8
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, max(1.0, 1.2 * rows[["observed", "expected", "null_mean"]].max().max()))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("neurons in both sets")
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        labelcolor=INK,
    )
    return figure
