"""What the reports of all studies share.

Metrics and texts are read back from the run directory, figures and report.html are written into it.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop.reporting import figures, report, scores
from jaxloop.reporting.run_files import read_metrics, read_texts
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import redact
from jaxloop.runtime.tables import to_csv

__all__ = [
    "dated",
    "first_and_last_texts",
    "read_metrics",
    "read_texts",
    "save_drawings",
    "slug",
    "write_page",
]

# Texts of a generation that a report shows.
TEXTS = 10


def first_and_last_texts(root: Path, metrics: pd.DataFrame) -> list[report.Samples]:
    """Return texts of the first and the last generation for every curve of the figures.

    They come from the first of the curve's chains that reached the latest generation.
    """
    table = scores.with_lines(metrics)
    samples = []
    for line in table["line"].cat.categories:
        reached = table[table["line"] == line].groupby("chain", sort=False)["generation"].max()
        if len(reached) and reached.max() > 0:
            chain, last = reached.idxmax(), int(reached.max())
            samples.append(
                report.Samples(
                    line,
                    chain,
                    0,
                    read_texts(root, chain, 0)[:TEXTS],
                    last,
                    read_texts(root, chain, last)[:TEXTS],
                )
            )
    return samples


def dated(line: str) -> str:
    """Return a line with the present time after it, as the report shows it under its title."""
    now = datetime.datetime.now().astimezone()
    return f"{line} · {now.day} {now:%B %Y, %H:%M}"


def slug(title: str) -> str:
    """Return a title as a file name: lower case, other characters than letters and digits as _."""
    return "_".join("".join(ch if ch.isalnum() else " " for ch in title.lower()).split())


def save_drawings(folder: Path, drawings: Mapping[str, report.Drawing]) -> None:
    """Write PNG files into a folder, which is created; drawings: {file name without .png: ...}."""
    folder.mkdir(exist_ok=True)
    for name, drawing in drawings.items():
        write_atomic(folder / f"{name}.png", figures.png(drawing.figure), durable=False)


def save_table(folder: Path, name: str, table: pd.DataFrame) -> None:
    """Write name.csv into a folder, which is created; missing values become empty cells."""
    folder.mkdir(exist_ok=True)
    columns = {str(c): [None if pd.isna(v) else v for v in table[c]] for c in table.columns}
    write_atomic(folder / f"{name}.csv", to_csv(columns), durable=False)


def write_page(
    root: Path,
    metrics: pd.DataFrame,
    *,
    subtitle: str,
    run_info: Sequence[tuple[str, object]],
    failed: Mapping[str, Mapping[str, Any]] | None = None,
    **page: Any,
) -> Path:
    """Write report.html into a run directory and return its path.

    Secrets (API keys, access tokens) are removed from what it shows.

    Args:
        root: the run directory.
        metrics: the table behind the curves.
        subtitle: the line under the title.
        run_info: (name, value) lines about the run.
        failed: {chain: {"generation": ..., "reason": ...}}.
        page: further arguments of `reporting.report.render`.
    """
    failures = [
        report.Failure(chain, int(why["generation"]), str(why["reason"]))
        for chain, why in (failed or {}).items()
    ]
    shown = [(name, redact(str(value))) for name, value in run_info]
    text = report.render(metrics, subtitle=subtitle, failures=failures, run_info=shown, **page)
    path = root / "report.html"
    write_atomic(path, redact(text).encode("utf-8"))
    return path
