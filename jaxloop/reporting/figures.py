"""Figures by matplotlib: PNG files, and inline SVG that takes its colours from the page."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Metric -> (title, one sentence on its meaning); a name may have options, as in distinct_n(n=2).
TITLES: dict[str, tuple[str, str]] = {
    "cosine_diversity": (
        "Semantic diversity",
        "mean cosine distance between sentence embeddings of two texts",
    ),
    "knn_cosine_diversity": (
        "Local semantic diversity",
        "mean cosine distance to the nearest texts",
    ),
    "distinct_n": ("Distinct n-grams", "distinct word sequences / all of them"),
    "distinct_n(n=1)": ("Distinct words", "distinct words / all words"),
    "distinct_n(n=2)": ("Distinct word pairs", "distinct word pairs / all word pairs"),
    "self_bleu": (
        "Self-BLEU",
        "how much of a text the other texts already say; higher is less diverse",
    ),
    "lexical_diversity": ("Lexical diversity", "1 - self-BLEU"),
    "text_length": ("Length", "characters per text"),
    "held_out_loss": ("Held-out loss", "nats per token on human text that no chain has seen"),
    "held_out_perplexity": ("Held-out perplexity", "on human text that no chain has seen"),
    "own_perplexity": ("Own perplexity", "of a generation's texts under the model that wrote them"),
    "finished": ("Finished texts", "share of texts that ended by themselves"),
    "type_token_ratio": (
        "Type-token ratio",
        "distinct words / words in the first 150 characters, mean over texts",
    ),
    "word_entropy": ("Word entropy", "nats, over all words of a generation"),
    "vocabulary_size": ("Vocabulary", "distinct words in a generation"),
    "quality": ("Quality", "0 to 100, as a judge scores it"),
    "share": ("Label share", "share of articles that the classifier gives the label"),
    "text_quality_index": ("Text quality index", "0 noise to 3 clean, mean over texts"),
    "perplexity_base": (
        "Perplexity under the base",
        "of a generation's articles, mean over articles",
    ),
    "perplexity_own": (
        "Perplexity under the writer",
        "of a generation's articles, mean over articles",
    ),
    "projection": (
        "Bias projection",
        "derivative of the loss along the bias direction, on what the next generation trains on; "
        "below 0, a step adds to the bias",
    ),
    "bias_component": (
        "Bias component",
        "how far the weights have moved from the base along the bias direction",
    ),
    "positivity": ("Positivity", "VADER compound, mean over texts"),
}

# From little synthetic text (blue) to much (red); each pair is the colour on a light and on a dark
# page.
_RAMP = (
    ("#1f6fb4", "#6cb3f0"),
    ("#2a9d8f", "#5fd0c2"),
    ("#7a9a2e", "#b5d463"),
    ("#c98a12", "#f0c05a"),
    ("#d9622b", "#ff9a62"),
    ("#b3243c", "#ff6f86"),
)
INK, MUTED, GRID, _PAPER = "#1b1f24", "#6a737d", "#e3e6ea", "#ffffff"
# Markers of curves, and the characters that stand for them on a page.
_MARKERS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚"}
# Characters of a metric's options in a title, and of its name in a file's: an address or a path can
# be longer than a figure is wide, and than a file's name may be.
_OPTIONS, _NAME = 40, 120
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxloop",
}


def title(metric: str) -> tuple[str, str]:
    """Return the title of a metric, and a sentence on its meaning ("" if there is none).

    A name that is not in `TITLES` is its own title; options follow the title, long ones cut.
    """
    if metric in TITLES:
        return TITLES[metric]
    name, bracket, options = metric.partition("(")
    heading, note = TITLES.get(name, (name.replace("_", " ").capitalize(), ""))
    if len(options) > _OPTIONS:
        options = f"{options[:_OPTIONS]}…)"
    return (f"{heading} ({options}" if bracket else heading), note


def palette(count: int) -> list[tuple[str, str]]:
    """Return `count` pairs (colour on a light page, on a dark page), spread over the colour ramp.

    They repeat if there are more than the ramp has: `marker` tells those of one colour apart.
    """
    if count <= 1:
        return [_RAMP[0]][:count]
    if count <= len(_RAMP):
        return [_RAMP[round(i * (len(_RAMP) - 1) / (count - 1))] for i in range(count)]
    return [_RAMP[i % len(_RAMP)] for i in range(count)]


def marker(i: int) -> tuple[str, str]:
    """Return the marker of the i-th of several lines, and a character that looks like it.

    Up to six lines that have one colour, since there are more than `palette` has, have different
    markers.
    """
    return list(_MARKERS.items())[(i + i // len(_RAMP)) % len(_MARKERS)]


def printable(text: object) -> str:
    """Return `text` with lone surrogates, control and text-direction characters as escapes.

    So every file and every page can show it.
    """
    pictures = {i: chr(0x2400 + i) for i in range(32) if i not in (9, 10)} | {127: "\u2421"}
    hidden = [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFFFE, 0xFFFF]
    spelled = {i: f"\\u{i:04x}" for i in hidden}
    return (
        str(text)
        .replace("\r\n", "\n")
        .translate(pictures | spelled)
        .encode("utf-8", "backslashreplace")
        .decode("utf-8")
    )


def curve(
    summary: pd.DataFrame,
    metric: str,
    *,
    reference: float | None = None,
    size: tuple[float, float] = (4.2, 2.7),
    titled: bool = True,
    note: str = "",
) -> Figure:
    """Return one panel: the metric by generation, one line per value of `line`.

    A band shows one standard error where there are replicates.

    Args:
        summary: what `scores.by_generation` returns.
        reference: value of the metric on human text, drawn as a dotted line.
        size: in inches.
        note: follows the name of the axis of generations.
    """
    rows = summary[summary["metric"] == metric]
    names = list(summary["line"].cat.categories)
    colours = [light for light, _ in palette(len(names))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        if reference is not None and reference == reference:
            axes.axhline(reference, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        _draw_lines(axes, rows, names, colours)
        whole_ticks(axes, rows["generation"])
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.tick_params(length=0)
        axes.margins(x=0.03)
        axes.set_xlabel(f"generation{note}")
        _mark_collapsed(axes, rows, names, colours)
        if titled:
            axes.set_title(printable(title(metric)[0]), loc="left", fontweight="bold", fontsize=11)
            if len(names) > 1:
                axes.legend(frameon=False, fontsize=8, labelcolor=INK)
        return figure


def whole_ticks(axes: Axes, generations: pd.Series) -> None:
    """Put the ticks of the x axis at whole generations, also where there is a single one."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if generations.nunique() == 1:
        axes.set_xticks([generations.iloc[0]])


def _draw_lines(
    axes: Axes, rows: pd.DataFrame, names: Sequence[str], colours: Sequence[str]
) -> None:
    for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
        line = rows[rows["line"] == name]
        x, mean, se = (line[c].to_numpy(float) for c in ("generation", "mean", "se"))
        axes.fill_between(x, mean - se, mean + se, color=colour, alpha=0.18, linewidth=0)
        axes.plot(
            x,
            mean,
            color=colour,
            linewidth=1.8,
            marker=marker(i)[0],
            markersize=3.6,
            label=printable(name),
        )


def _mark_collapsed(
    axes: Axes, rows: pd.DataFrame, names: Sequence[str], colours: Sequence[str]
) -> None:
    """Mark the generations whose set of texts has collapsed, or write that there is no value.

    The marks are on the lower edge, since a collapsed set has no value that could be drawn.
    """
    gone = rows[rows["collapsed"] > 0] if "collapsed" in rows else rows[:0]
    for name, colour in zip(names, colours, strict=True):
        at = gone.loc[gone["line"] == name, "generation"].to_numpy(float)
        axes.plot(
            at,
            np.full(len(at), 0.03),
            transform=axes.get_xaxis_transform(),
            color=colour,
            marker="x",
            markersize=5,
            linestyle="none",
        )
    where = axes.transAxes
    if len(gone):
        axes.text(1, 0.06, "x: collapsed", transform=where, ha="right", fontsize=8, color=MUTED)
    elif not rows["mean"].notna().any():
        axes.text(0.5, 0.5, "no value", transform=where, ha="center", va="center", color=MUTED)
        axes.set_yticks([])


def style() -> AbstractContextManager[None]:
    """Return the look of every figure, as a context: `with figures.style(): ...`."""
    return matplotlib.rc_context(STYLE)


def panels(
    rows: int, columns: int, *, panel: tuple[float, float] = (3.4, 2.6), **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return an empty figure and its axes [rows, columns]; to be called within `style`.

    Args:
        panel: the size of each in inches.
        options: of matplotlib's `Figure.subplots`.
    """
    figure = Figure(figsize=(panel[0] * columns, panel[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.tick_params(length=0)
    return figure, axes


def mean_line(
    axes: Axes, table: pd.DataFrame, x: str, y: str, *, colour: str, name: str, marker: str = "o"
) -> None:
    """Draw the mean of y at each x, with a band of one standard error where there are several y.

    The standard error is sd / sqrt(n), ddof 1.
    """
    means = table.groupby(x)[y].agg(["mean", "sem"])
    at = means.index.to_numpy(float)
    mean, se = means["mean"].to_numpy(float), means["sem"].fillna(0).to_numpy(float)
    axes.fill_between(at, mean - se, mean + se, color=colour, alpha=0.18, linewidth=0)
    axes.plot(
        at, mean, color=colour, linewidth=1.8, marker=marker, markersize=3.6, label=printable(name)
    )


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG file; equal figures give equal bytes."""
    out = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure).print_png(out, metadata={"Software": None}, pil_kwargs=None)
    _keep_layout(figure)
    return out.getvalue()


def _keep_layout(figure: Figure) -> None:
    """What is drawn stays where it is: to lay a figure out again takes longer than to draw it."""
    figure.set_layout_engine("none")


def svg(figure: Figure, name: str, alt: str = "Figure") -> str:
    """Return the figure as an `<svg>` element; equal figures drawn alike before give equal text.

    Once drawn, also by `png`, a figure is not laid out again. The element is for a page that
    defines the CSS variables of `colours_css`. It is never drawn so small that its words could not
    be read.

    Args:
        name: prefix of the element ids, so that several figures can stand on one page.
        alt: what the figure shows, for those who cannot see it.
    """
    out = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(
            out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    _keep_layout(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    # The size comes from the page, and a style element in an inline SVG would apply to the whole
    # page.
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    opening, rest = text.split(">", 1)
    text = re.sub(r' (?:width|height)="[^"]*"', "", opening) + ' role="img">' + rest
    text = re.sub(r'(id="|url\(#|href="#)', lambda m: m[1] + name + "-", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    colours = {INK: "ink", MUTED: "muted", GRID: "grid"} | {
        light: colour_name(light) for light, _ in _RAMP
    }
    text = re.sub("|".join(colours), lambda m: f"var(--{colours[m[0]]})", text)
    width = f"min-width: {_pixels(figure, 1.1)}px; max-width: {_pixels(figure, 2)}px"
    about = f'aria-label="{escape(printable(alt))}" style="{width}"'
    return text.replace(' role="img"', f' role="img" {about}', 1)


def _pixels(figure: Figure, per_point: float) -> int:
    """A figure's width where a point of its letters has so many pixels.

    Letters of ten points have 11 pixels at the least, where a panel of 4.2 inches still fits a page
    of 400 pixels and a third of a wide one, and 20 at the most: few panels do not fill a page.
    """
    return round(per_point * 72 * figure.get_figwidth())


def colour_name(light: str) -> str:
    """Return the name of the CSS variable of a colour (as on a light page), without dashes."""
    return "c" + light.lstrip("#")


def colours_css() -> Mapping[str, tuple[str, str]]:
    """Return {CSS variable: (colour on light, colour on dark)} for all that `svg` refers to."""
    fixed = {
        "ink": (INK, "#e8eaed"),
        "muted": (MUTED, "#9aa3ad"),
        "grid": (GRID, "#31363d"),
        "paper": (_PAPER, "#15181c"),
    }
    return fixed | {colour_name(pair[0]): pair for pair in _RAMP}


def _file_name(metric: str) -> str:
    name = re.sub(r"[^\w.-]", "_", metric)
    if len(name) <= _NAME:
        return name
    return f"{name[:_NAME]}-{hashlib.sha256(metric.encode()).hexdigest()[:8]}"


def write(
    metrics_summary: pd.DataFrame,
    folder: Path,
    references: Mapping[str, float] | None = None,
    *,
    note: str = "",
) -> list[Path]:
    """Write `folder`/<metric>.png for every metric of a summary, and return the paths.

    note: follows the name of the axis of generations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for metric in dict.fromkeys(metrics_summary["metric"]):
        path = folder / f"{_file_name(metric)}.png"
        reference = (references or {}).get(metric)
        figure = curve(metrics_summary, metric, reference=reference, size=(6.4, 4.0), note=note)
        path.write_bytes(png(figure))
        paths.append(path)
    return paths
