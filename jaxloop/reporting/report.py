"""One page per study: self-contained HTML that loads nothing, runs nothing and is safe to open."""

import functools
import importlib.resources
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxloop.reporting import figures, scores
from jaxloop.reporting.figures import printable

LONGEST = 2000
# The first of these that was measured is the headline.
HEADLINES = ("cosine_diversity", "lexical_diversity", "distinct_n(n=2)", "distinct_n", "self_bleu")
# How the files of a run of chains are read.
FILES = (
    "import pathlib, pandas as pd\n"
    'metrics = pd.read_csv("metrics.csv")        '
    "# study, chain, its factors, entity, generation, metric, value\n"
    'ledger = pd.read_parquet("ledger.parquet")  '
    "# which data, from where, trained which model, for how many steps\n"
    "texts = pd.concat({str(p): pd.read_parquet(p) for p in "
    'sorted(pathlib.Path("texts").rglob("*.parquet"))})  # every text that was written'
)


class Samples(NamedTuple):
    """Texts of one chain: the same rows of its first and of its last generation.

    line: as `scores.with_lines` names it.
    """

    line: str
    chain: str
    first_generation: int
    first: Sequence[str]
    last_generation: int
    last: Sequence[str]


class Drawing(NamedTuple):
    """A figure of a `Section`, with its title and a note.

    wide: whether it takes the whole width of the page.
    """

    title: str
    note: str
    figure: Figure
    wide: bool = False


class Table(NamedTuple):
    """A table of a `Section`; a row is a list of cells (text or numbers), the first its heading."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


class Section(NamedTuple):
    """A part of the page that a study adds: a heading, paragraphs, figures, then tables.

    key: (name of a line, its colour on a light page) of lines that several figures share.
    """

    title: str
    note: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()
    key: Sequence[tuple[str, str]] = ()


class Failure(NamedTuple):
    """A chain that stopped, in which generation, and the reason."""

    chain: str
    generation: int
    reason: str


class Progress(NamedTuple):
    """What the page of a run that is not finished says of it, in a box at the top.

    Attributes:
        title: the first words of the box.
        lines: what follows them, a paragraph each.
        done: finished generations.
        total: all of them.
        reload: seconds after which a browser loads the page again; None: never.
    """

    title: str
    lines: Sequence[str]
    done: int
    total: int
    reload: int | None = None


@functools.cache
def _template() -> jinja2.Template:
    """The page, compiled once a process."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(
        importlib.resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )


def render(
    metrics: pd.DataFrame,
    *,
    title: str,
    subtitle: str = "",
    samples: Sequence[Samples] = (),
    failures: Sequence[Failure] = (),
    run_info: Sequence[tuple[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    versions: Sequence[tuple[str, str]] = (),
    references: Mapping[str, float] | None = None,
    sections: Sequence[Section] = (),
    later: Sequence[Section] = (),
    headline: str | None = None,
    files: str = FILES,
    progress: Progress | None = None,
) -> str:
    """Return the page as text; equal arguments give equal text.

    Metrics are shown in the order of their first appearance. Texts longer than `LONGEST` characters
    are cut, and say so.

    Args:
        metrics: tidy table (chain, factors, generation, metric, value).
        run_info: (name, value) lines about the run.
        references: {metric: its value on human text}.
        sections: parts that the study adds before the curves of its metrics.
        later: parts that it adds behind them and the relative scores.
        headline: the metric of the boxes at the top; None: the first of `HEADLINES` that there is.
        files: Python code that reads the run's files, shown on the page.
        progress: how far the run is; None: it is finished.
    """
    measured = _measured(metrics, references or {})
    names = measured.names
    page = _template().render(
        title=printable(title),
        subtitle=printable(subtitle),
        colours=figures.colours_css(),
        failures=[
            {"chain": printable(f.chain), "generation": f.generation, "reason": printable(f.reason)}
            for f in failures
        ],
        # One that stopped in generation 0 has no metrics.
        chains=len({*metrics["chain"], *(f.chain for f in failures)}),
        tiles=_tiles(measured, names if headline is None else [headline]),
        key=measured.key,
        sections=[_section(section, f"s{i}") for i, section in enumerate(sections)],
        later=[_section(section, f"l{i}") for i, section in enumerate(later)],
        banded=bool((measured.summary["n"] > 1).any()),
        dotted=any(name in measured.references for name in names),
        panels=[_panel(measured, name, i) for i, name in enumerate(names)],
        window=_window(measured.final),
        scores=_relative_scores(measured),
        without=[printable(figures.title(name)[0]) for name in measured.crossing],
        samples=[_samples(s) for s in samples],
        tables=[_table(measured, name) for name in names],
        run_info=[(printable(name), printable(value)) for name, value in run_info],
        config=printable(json.dumps(config or {}, indent=2, ensure_ascii=False, default=str)),
        versions=[(printable(name), printable(value)) for name, value in versions],
        files=printable(files),
        progress=None if progress is None else _progress(progress),
    )
    return page + "\n"


def _progress(progress: Progress) -> dict[str, Any]:
    return progress._asdict() | {
        "title": printable(progress.title),
        "lines": [printable(line) for line in progress.lines],
    }


class _Measured(NamedTuple):
    """The metrics of a run, summarised.

    Attributes:
        names: of the metrics, in the order of their first appearance.
        lines: names of lines.
        key: line and colour of each, as the page shows them.
        final: the last generation.
        summary: `scores.by_generation`.
        relative: `scores.relative` by metric and line, with `scores.collapsed_chains`.
        crossing: metrics of which no relative score is shown.
        references: metric -> its value on human text.
    """

    names: list[str]
    lines: list[str]
    key: list[dict[str, str]]
    final: int
    summary: pd.DataFrame
    relative: pd.DataFrame
    crossing: list[str]
    references: Mapping[str, float]


def _measured(metrics: pd.DataFrame, references: Mapping[str, float]) -> _Measured:
    summary = scores.by_generation(metrics)
    lines = list(summary["line"].cat.categories)
    colours = [figures.colour_name(light) for light, _ in figures.palette(len(lines))]
    repeat = len(set(colours)) < len(colours)
    key = []
    for i, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        mark = f"{figures.marker(i)[1]} " if repeat else ""
        key.append({"line": mark + printable(line), "colour": colour})
    relative = scores.relative(metrics).set_index(["metric", "line"])
    final = int(metrics["generation"].max()) if len(metrics) else 0
    collapsed = scores.collapsed_chains(metrics)
    return _Measured(
        names=list(dict.fromkeys(metrics["metric"])),
        lines=lines,
        key=key,
        final=final,
        summary=summary,
        relative=relative.assign(collapsed=collapsed.reindex(relative.index).fillna(0)),
        crossing=scores.crossing(metrics),
        references={name: value for name, value in references.items() if math.isfinite(value)},
    )


def _relative_scores(measured: _Measured) -> list[dict[str, Any]]:
    if not measured.final:
        return []
    rows = []
    for name in measured.names:
        if name not in measured.crossing:
            cells = [_cell(measured.relative, (name, line), 3) for line in measured.lines]
            rows.append({"title": printable(figures.title(name)[0]), "cells": cells})
    return rows


def _window(final: int) -> str:
    first = max(final - scores.LAST + 1, 1)
    return f"{first} to {final}" if final > first else str(final)


def _tiles(measured: _Measured, names: Sequence[str]) -> list[dict[str, str]]:
    name = next((n for n in HEADLINES if n in names), names[0] if names else None)
    if name is None or name in measured.crossing or not measured.final or len(measured.lines) > 12:
        return []
    of = f"of generation 0's {figures.title(name)[0].lower()}"
    note = printable(f"{of}, generations {_window(measured.final)}")
    tiles = []
    for line, entry in zip(measured.lines, measured.key, strict=True):
        mean, se = _mean_and_error(measured.relative, (name, line))
        if math.isfinite(mean):
            error = f"{100 * se:.1f}" if math.isfinite(se) else ""
            tiles.append(entry | {"value": f"{100 * mean:.0f} %", "error": error, "note": note})
    return tiles


def _mean_and_error(table: pd.DataFrame, at: tuple[Hashable, ...]) -> tuple[float, float]:
    """The columns mean and se of one row; nan where there is no such row."""
    if at not in table.index:
        return math.nan, math.nan
    place = table.index.get_loc(at)
    mean, se = (table[column].to_numpy(float)[place] for column in ("mean", "se"))
    return float(mean), float(se)


def _section(section: Section, name: str) -> dict[str, Any]:
    drawings = [
        {
            "title": printable(d.title),
            "note": printable(d.note),
            "svg": Markup(figures.svg(d.figure, f"{name}d{i}", _alt(d.title, d.note))),
            "wide": d.wide,
        }
        for i, d in enumerate(section.drawings)
    ]
    tables = [
        {
            "title": printable(t.title),
            "note": printable(t.note),
            "header": [printable(h) for h in t.header],
            "rows": [[_entry(c) for c in row] for row in t.rows],
        }
        for t in section.tables
    ]
    paragraphs = [printable(text) for text in section.paragraphs]
    key = [
        {"line": printable(name), "colour": figures.colour_name(light)}
        for name, light in section.key
    ]
    return {
        "key": key,
        "title": printable(section.title),
        "note": printable(section.note),
        "drawings": drawings,
        "tables": tables,
        "paragraphs": paragraphs,
    }


def _entry(value: object) -> str:
    """A cell as text: a float with its significant digits, `–` for nan, anything else as it is."""
    if isinstance(value, float):
        return _number(value, value) if math.isfinite(value) else "–"
    return printable(value)


def _panel(measured: _Measured, name: str, number: int) -> dict[str, Any]:
    heading, note = figures.title(name)
    figure = figures.curve(
        measured.summary, name, reference=measured.references.get(name), titled=False
    )
    return {
        "title": printable(heading),
        "note": printable(note),
        "svg": Markup(figures.svg(figure, f"p{number}", _curves_alt(measured, name))),
    }


def _alt(title: str, note: str) -> str:
    """A figure in words: its title and its note."""
    return ". ".join(text.rstrip(".") for text in (title, note) if text) or "Figure"


def _curves_alt(measured: _Measured, name: str) -> str:
    """A metric's panel in words: the first and the last mean of every line."""
    rows = measured.summary[measured.summary["metric"] == name]
    rows = rows[rows["mean"].notna()]
    parts = []
    for line in measured.lines:
        of_line = rows[rows["line"] == line]
        if len(of_line):
            (first, last), (start, end) = (
                of_line[column].iloc[[0, -1]] for column in ("mean", "generation")
            )
            values = f"{_number(first, first)} in generation {start}"
            if end != start:
                values += f", {_number(last, last)} in generation {end}"
            parts.append(f"{line}: {values}")
    return f"{figures.title(name)[0]} by generation. {'; '.join(parts) or 'No value'}"


def _cell(
    table: pd.DataFrame, at: tuple[Hashable, ...], decimals: int | None = None
) -> dict[str, str]:
    if at not in table.index:
        return {"mean": "–", "se": ""}
    mean, se = _mean_and_error(table, at)
    collapsed = int(table["collapsed"].to_numpy()[table.index.get_loc(at)])
    if not math.isfinite(mean):
        return {"mean": "collapsed" if collapsed else "–", "se": ""}
    some = f" ({collapsed} more collapsed)" if collapsed else ""
    return {
        "mean": _number(mean, mean, decimals) + some,
        "se": _number(se, mean, decimals) if math.isfinite(se) else "",
    }


def _number(value: float, like: float, decimals: int | None = None) -> str:
    """`value` with `decimals` decimals; None: as many as show four significant digits of `like`."""
    if decimals is not None and abs(like) < 1e4:
        return f"{value:.{decimals}f}"
    scale = abs(like)
    if scale != 0 and not 1e-4 <= scale < 1e7:
        return f"{value:.3g}"
    decimals = 3 if scale == 0 else min(max(0, 3 - math.floor(math.log10(scale))), 5)
    return f"{value:,.{decimals}f}"


def _samples(s: Samples) -> dict[str, Any]:
    rows = [(_short(a), _short(b)) for a, b in zip(s.first, s.last, strict=False)]
    return {
        "line": printable(s.line),
        "chain": printable(s.chain),
        "first_generation": s.first_generation,
        "last_generation": s.last_generation,
        "rows": rows,
    }


def _short(text: str) -> str:
    shown = printable(text[:LONGEST]).strip("\n")
    return shown if len(text) <= LONGEST else f"{shown}… ({len(text) - LONGEST:,} more characters)"


def _table(measured: _Measured, name: str) -> dict[str, Any]:
    values = measured.summary.set_index(["metric", "line", "generation"])
    rows = []
    for generation in range(measured.final + 1):
        cells = [_cell(values, (name, line, generation)) for line in measured.lines]
        rows.append({"generation": generation, "cells": cells})
    human = measured.references.get(name)
    of_human = "" if human is None else f" · human text: {_number(human, human)}"
    title = printable(figures.title(name)[0])
    return {"title": title, "name": f"{printable(name)}{of_human}", "rows": rows}
