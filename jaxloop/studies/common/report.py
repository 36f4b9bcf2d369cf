"""figures/ and report.html of a chain study, from the files of its run directory alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxloop.reporting import figures, report, scores
from jaxloop.runtime.tables import read_parquet, unescape
from jaxloop.studies.common import run as running

# In this order; a metric that is not listed comes after them.
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
TEXTS = 10


def read_metrics(root: Path) -> pd.DataFrame:
    """metrics.csv with every text column as it was written ("NA" is a text) and numbers as numbers."""
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
    """The texts that a chain wrote in a generation, in the order of their rows; empty where the
    file is absent.
    """
    path = root / f"texts/chain={chain}/generation={generation:04d}.parquet"
    return list(read_parquet(path, ["text"])["text"]) if path.exists() else []


def side_by_side(root: Path, metrics: pd.DataFrame) -> list[report.Samples]:
    """For every line the first chain that reached the last generation, or the one that came
    furthest: its first and last texts.
    """
    table = scores.with_lines(metrics)
    found = []
    for line in table["line"].cat.categories:
        reached = table[table["line"] == line].groupby("chain", sort=False)["generation"].max()
        if len(reached) and reached.max() > 0:
            chain, last = reached.idxmax(), int(reached.max())
            found.append(
                report.Samples(
                    line,
                    chain,
                    0,
                    read_texts(root, chain, 0)[:TEXTS],
                    last,
                    read_texts(root, chain, last)[:TEXTS],
                )
            )
    return found


def write(
    root: Path,
    *,
    title: str,
    subtitle: str,
    config: Mapping,
    facts: Sequence[tuple[str, str]],
    versions: Sequence[tuple[str, str]],
    failed: Mapping[str, Mapping],
    references: Mapping[str, float] | None = None,
) -> Path:
    """Writes figures/*.png and report.html into a run directory and returns the page's path.

    failed: chain -> {generation, reason}; references: metric -> its value on human text. Keys and
    tokens are left out of what is shown.
    """
    metrics = read_metrics(root)
    known = {name: value for name, value in (references or {}).items() if math.isfinite(value)}
    figures.write(scores.by_generation(metrics), root / "figures", known)
    return running.write_page(
        root,
        metrics,
        title=title,
        subtitle=running.dated(subtitle),
        samples=side_by_side(root, metrics),
        failed=failed,
        facts=facts,
        config=config,
        versions=versions,
        references=known,
    )
