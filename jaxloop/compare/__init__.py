"""Runs side by side: one page and one CSV file about what differs in them.

`jaxloop compare runs/a runs/b`, or `compare_runs(["runs/a", "runs/b"])`.
"""

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from jaxloop.compare import differences, page, reading
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import redact
from jaxloop.runtime.tables import to_csv
from jaxloop.runtime.user_path import user_path

__all__ = ["Comparison", "compare_runs", "run_action"]

OUT = "comparison"
USAGE = "compare RUN RUN … [--out=NAME], which writes NAME.html and NAME.csv"


class Comparison(NamedTuple):
    """A comparison of runs.

    Attributes:
        page: path of the page.
        csv: path of the table.
        differences: the table: `differences.COLUMNS`, of the values and of the costs.
        configs: {field: its value in every run} of the fields that differ.
    """

    page: Path
    csv: Path
    differences: pd.DataFrame
    configs: dict[str, list[str]]


def compare_runs(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] = OUT
) -> Comparison:
    """Compare runs, finished or not, and write a page and a table.

    Args:
        runs: run directories, two at least; the first is the baseline of all differences. Their
            studies, generations and factors may differ.
        out: path of the page and of the table without .html and .csv; both are replaced.

    Raises:
        ValueError: a directory is no run or cannot be read by this version, or two runs have no
            metric in common; nothing is written then.
    """
    compared = reading.read([Path(run) for run in runs])
    differences.common_metrics(compared)
    changes = differences.of_values(compared)
    table = pd.concat([changes, differences.of_costs(compared)], ignore_index=True)
    stem = user_path(out)
    if stem.suffix in (".html", ".csv"):
        stem = stem.with_suffix("")
    html, csv = (stem.with_name(f"{stem.name}.{kind}") for kind in ("html", "csv"))
    now = datetime.datetime.now().astimezone()
    text = page.render(compared, changes, csv=csv.name, written=f"{now.day} {now:%B %Y, %H:%M}")
    stem.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(csv, to_csv(_columns(table)))
    write_atomic(html, redact(text).encode("utf-8"))
    return Comparison(html, csv, table, differences.of_configs(compared))


def _columns(table: pd.DataFrame) -> dict[str, list]:
    """The columns of a table with None for what is missing."""
    return {
        name: [None if pd.isna(value) else value for value in table[name].tolist()]
        for name in table.columns
    }


def run_action(words: Sequence[str]) -> str:
    """Return what `jaxloop compare WORDS` prints, after doing it.

    Raises:
        ValueError: as `compare_runs`, or a word is not understood.
    """
    runs, out = [], OUT
    for word in words:
        if word.startswith("--out="):
            out = word.removeprefix("--out=")
        elif word.startswith("-"):
            raise ValueError(f"compare {word}: is not understood; it is {USAGE}")
        else:
            runs.append(word)
    if not out:
        raise ValueError("compare --out=: needs a path, such as --out=comparison")
    done = compare_runs(runs, out)
    return f"{done.page}\n{done.csv}"
