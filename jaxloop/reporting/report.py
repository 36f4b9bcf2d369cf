"""One page per study: self-contained HTML that loads nothing, runs nothing and shows any text
safely.
"""

import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
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
FILES = """import pathlib, pandas as pd
metrics = pd.read_csv("metrics.csv")        # study, chain, its factors, entity, generation, metric, value
ledger = pd.read_parquet("ledger.parquet")  # which data, from where, trained which model, for how many steps
texts = pd.concat({str(p): pd.read_parquet(p) for p in sorted(pathlib.Path("texts").rglob("*.parquet"))})  # every text that was written"""


class Samples(NamedTuple):
    """Texts of one chain: the same rows of its first and of its last generation. line: as
    `scores.with_lines` names it.
    """

    line: str
    chain: str
    first_generation: int
    first: Sequence[str]
    last_generation: int
    last: Sequence[str]


class Drawing(NamedTuple):
    """A figure of a `Section`, its title and what it says; `wide`: over the whole width of the
    page.
    """

    title: str
    note: str
    figure: Figure
    wide: bool = False


class Table(NamedTuple):
    """A table of a `Section`: a row is a list of cells, text or numbers, the first one a heading."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]


class Section(NamedTuple):
    """What a study shows of its own: paragraphs, figures, then tables, under a heading."""

    title: str
    note: str = ""
    drawings: Sequence[Drawing] = ()
    tables: Sequence[Table] = ()
    paragraphs: Sequence[str] = ()


class Failure(NamedTuple):
    """A chain that stopped: in which generation, and why."""

    chain: str
    generation: int
    reason: str


def render(
    metrics: pd.DataFrame,
    *,
    title: str,
    subtitle: str = "",
    samples: Sequence[Samples] = (),
    failures: Sequence[Failure] = (),
    facts: Sequence[tuple[str, str]] = (),
    config: Mapping[str, Any] | None = None,
    versions: Sequence[tuple[str, str]] = (),
    references: Mapping[str, float] | None = None,
    sections: Sequence[Section] = (),
    headline: str | None = None,
    files: str = FILES,
) -> str:
    """The page as text; equal arguments give equal text.

    metrics: tidy table (chain, factors, generation, metric, value); facts: (name, value) lines
    about the run; references: metric -> its value on human text; sections: what the study shows of
    its own, before the curves of its metrics; headline: the metric of the tiles (None: the first of
    `HEADLINES`); files: how the run's files are read, in Python. Metrics are shown in the order of
    their first appearance. Texts longer than `LONGEST` characters are cut, and say so.
    """
    summary = scores.by_generation(metrics)
    lines = list(summary["line"].cat.categories)
    colours = [figures.colour_name(light) for light, _ in figures.palette(len(lines))]
    key = [
        {"line": printable(line), "colour": colour}
        for line, colour in zip(lines, colours, strict=True)
    ]
    names = list(dict.fromkeys(metrics["metric"]))
    relative, without = (
        scores.relative(metrics).set_index(["metric", "line"]),
        scores.crossing(metrics),
    )
    gone = (
        summary[summary["generation"] > int(metrics["generation"].max()) - scores.LAST]
        if len(metrics)
        else summary
    )
    relative = relative.assign(
        collapsed=gone.groupby(["metric", "line"], observed=True)["collapsed"]
        .max()
        .reindex(relative.index)
        .fillna(0)
    )
    final = int(metrics["generation"].max()) if len(metrics) else 0
    values = summary.set_index(["metric", "line", "generation"])
    references = references or {}
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=False, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        importlib.resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )
    page = template.render(
        title=printable(title),
        subtitle=printable(subtitle),
        colours=figures.colours_css(),
        failures=[
            {"chain": printable(f.chain), "generation": f.generation, "reason": printable(f.reason)}
            for f in failures
        ],
        chains=max(metrics["chain"].nunique(), len({f.chain for f in failures})),
        tiles=_tiles(relative, names if headline is None else [headline], lines, key, final),
        key=key,
        sections=[_section(section, f"s{i}") for i, section in enumerate(sections)],
        banded=bool((summary["n"] > 1).any()),
        dotted=any(name in references for name in names),
        panels=[_panel(summary, name, i, references.get(name)) for i, name in enumerate(names)],
        window=_window(final),
        scores=[
            {
                "title": printable(figures.title(n)[0]),
                "cells": [_cell(relative, (n, line), 3) for line in lines],
            }
            for n in names
            if n not in without
        ]
        if final
        else [],
        without=[printable(figures.title(n)[0]) for n in without],
        samples=[_samples(s) for s in samples],
        tables=[_table(values, name, lines, final) for name in names],
        facts=[(printable(name), printable(value)) for name, value in facts],
        config=printable(json.dumps(config or {}, indent=2, ensure_ascii=False, default=str)),
        versions=[(printable(name), printable(value)) for name, value in versions],
        files=printable(files),
    )
    return page + "\n"


def _window(final: int) -> str:
    first = max(final - scores.LAST + 1, 1)
    return f"{first} to {final}" if final > first else str(final)


def _tiles(
    relative: pd.DataFrame, names: list[str], lines: list[str], key: list[dict], final: int
) -> list[dict]:
    name = next((n for n in HEADLINES if n in names), names[0] if names else None)
    if name is None or final == 0 or len(lines) > 12:
        return []
    note = f"of generation 0's {figures.title(name)[0].lower()}, generations {_window(final)}"
    tiles = []
    for line, entry in zip(lines, key, strict=True):
        if (name, line) in relative.index and math.isfinite(relative.loc[(name, line), "mean"]):
            row = relative.loc[(name, line)]
            error = f"{100 * row['se']:.1f}" if math.isfinite(row["se"]) else ""
            tiles.append(
                entry
                | {"value": f"{100 * row['mean']:.0f} %", "error": error, "note": printable(note)}
            )
    return tiles


def _section(section: Section, name: str) -> dict:
    drawings = [
        {
            "title": printable(d.title),
            "note": printable(d.note),
            "svg": Markup(figures.svg(d.figure, f"{name}d{i}")),
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
    return {
        "title": printable(section.title),
        "note": printable(section.note),
        "drawings": drawings,
        "tables": tables,
        "paragraphs": paragraphs,
    }


def _entry(value: object) -> str:
    """A cell: a float with the digits that say something, `–` where it is no number, anything else
    as it is.
    """
    if isinstance(value, float):
        return _number(value, value) if math.isfinite(value) else "–"
    return printable(value)


def _panel(summary: pd.DataFrame, name: str, number: int, reference: float | None) -> dict:
    heading, note = figures.title(name)
    figure = figures.curve(summary, name, reference=reference, titled=False)
    return {
        "title": printable(heading),
        "note": printable(note),
        "svg": Markup(figures.svg(figure, f"p{number}")),
    }


def _cell(table: pd.DataFrame, at: tuple, decimals: int | None = None) -> dict:
    if at not in table.index:
        return {"mean": "–", "se": ""}
    row = table.loc[at]
    mean, se, collapsed = row["mean"], row["se"], int(row.get("collapsed", 0))
    if not math.isfinite(mean):
        return {"mean": "collapsed" if collapsed else "–", "se": ""}
    some = f" ({collapsed} more collapsed)" if collapsed else ""
    return {
        "mean": _number(mean, mean, decimals) + some,
        "se": _number(se, mean, decimals) if math.isfinite(se) else "",
    }


def _number(value: float, like: float, decimals: int | None = None) -> str:
    """`value` with the decimals that show four significant digits of `like`, or with so many."""
    if decimals is not None and abs(like) < 1e4:
        return f"{value:.{decimals}f}"
    scale = abs(like)
    if scale != 0 and not 1e-4 <= scale < 1e7:
        return f"{value:.3g}"
    decimals = 3 if scale == 0 else min(max(0, 3 - math.floor(math.log10(scale))), 5)
    return f"{value:,.{decimals}f}"


def _samples(s: Samples) -> dict:
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


def _table(values: pd.DataFrame, name: str, lines: list[str], final: int) -> dict:
    rows = [
        {"generation": g, "cells": [_cell(values, (name, line, g)) for line in lines]}
        for g in range(final + 1)
    ]
    return {"title": printable(figures.title(name)[0]), "name": printable(name), "rows": rows}
