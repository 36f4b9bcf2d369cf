"""Figures of a bias-amplification study: how the values of articles are distributed."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.reporting import figures, report

# Measured column of an article -> title and note of its figure.
MEASURES = {
    "quality": ("Text quality of articles", "3 clean to 0 noise, mean over an article's sentences"),
    "quality_released": (
        "Text quality, released reading",
        "class value times the detector's confidence, cut at full stops",
    ),
    "perplexity_base": ("Perplexity under the base model", "of articles, before any fine-tuning"),
    "perplexity_own": ("Perplexity under the model that wrote", "of articles"),
}


def distribution_drawings(table: pd.DataFrame) -> dict[str, report.Drawing]:
    """Draw every measure of a table of `tables.distributions`, by the measure's name."""
    drawings = {}
    for name, (title, note) in MEASURES.items():
        rows = table[(table["measure"] == name) & table["q50"].notna()]
        if len(rows):
            drawings[name] = report.Drawing(title, note, quantile_boxes(rows), wide=True)
    return drawings


def quantile_boxes(table: pd.DataFrame) -> Figure:
    """Draw one panel per setup: quantiles by generation, on one scale, logarithmic where the values
    span more than two powers of ten.
    """
    setups = list(dict.fromkeys(table["setup"]))
    low, high = table["q05"].min(), table["q95"].max()
    with figures.style():
        figure = Figure(figsize=(1.9 * len(setups) + 0.6, 2.6), layout="constrained")
        panels = figure.subplots(1, len(setups), sharey=True, squeeze=False)[0]
        colours = figures.palette(len(setups))
        for axes, setup, (colour, _) in zip(panels, setups, colours, strict=True):
            _draw_boxes(axes, table[table["setup"] == setup], colour)
            axes.set_title(figures.printable(setup), loc="left", fontsize=10)
            if low > 0 and high / low > 100:
                axes.set_yscale("log")
        return figure


def _draw_boxes(axes: Axes, rows: pd.DataFrame, colour: str) -> None:
    generation = rows["generation"].to_numpy(float)
    axes.vlines(generation, rows["q05"], rows["q95"], color=colour, linewidth=1)
    axes.bar(
        generation,
        rows["q75"] - rows["q25"],
        bottom=rows["q25"],
        width=0.55,
        color=colour,
        alpha=0.35,
        linewidth=0,
    )
    axes.plot(
        generation,
        rows["q50"],
        color=colour,
        linewidth=0,
        marker="_",
        markersize=9,
        markeredgewidth=1.8,
    )
    axes.set_xlabel("generation")
    axes.tick_params(length=0)
