"""What the reports of all studies share.

Metrics and texts are read back from the run directory, figures and report.html are written into it.
"""

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop.reporting import figures, report, scores
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import redact
from jaxloop.runtime.tables import read_parquet, unescape

# Order of metrics in a report; a metric that is not listed comes after these.
ORDER = (
    "cosine_diversity",
    "lexical_diversity",
    "self_bleu",
    "distinct_n(n=1)",
    "distinct_n(n=2)",
    "distinct_n",
    "held_out_loss",
    "text_length",
)
# Texts of a generation that a report shows.
TEXTS = 10


def read_metrics(root: Path) -> pd.DataFrame:
    """Read metrics.csv of a run directory, its rows sorted by metric (see `ORDER`).

    Text columns keep their text ("NA" is not a missing value); `value` is numeric.
    """
    table = pd.read_csv(
        root / "metrics.csv", keep_default_na=False, na_values={"value": ["", "nan"]}
    )
    for name in table.columns:
        if table[name].dtype == object or isinstance(table[name].dtype, pd.StringDtype):
            table[name] = [unescape(v) if isinstance(v, str) else v for v in table[name]]
    place = {metric: i for i, metric in enumerate(ORDER)}
    return table.sort_values(
        "metric",
        key=lambda m: m.map(lambda name: place.get(name, len(place))),
        kind="stable",
        ignore_index=True,
    )


def read_texts(root: Path, chain: str, generation: int) -> list[str]:
    """Read the texts that a chain wrote in one generation, in the order of their rows.

    An empty list where the file is absent.
    """
    path = root / f"texts/chain={chain}/generation={generation:04d}.parquet"
    return list(read_parquet(path, ["text"])["text"]) if path.exists() else []


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
