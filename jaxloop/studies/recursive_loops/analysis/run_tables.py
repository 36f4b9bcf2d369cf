"""The files of a recursive-loops study that its analysis reads, all in the run's directory.

metrics.csv          study, chain, <factors>, entity, generation, metric, value, as the driver
                     writes it. A metric of the texts that a multi-domain chain generated for one
                     domain is called `<metric>@<domain>`; a domain has the name of its dataset
chains.csv           one row per planned chain, those that failed too: chain, dataset ("" in a
                     multi-domain study), ratio, seed, and where they apply cluster, one
                     `cluster.<domain>` per domain, and factors: quality_level, length_level, mix,
                     bases, models, gen0_size, bias, overlap, accumulate
properties.csv       one row per cluster: dataset, cluster, size, and the properties of
                     `studies.recursive_loops.properties.NAMES`; empty where not measured
members.parquet      dataset, cluster, row: one line per text of each cluster; or overlap.csv:
                     dataset, cluster_a, cluster_b, shared, size_a, size_b. Without either nothing
                     is known of overlap, except between chains on one cluster
text_scores.parquet  chain, generation, metric, value: one line per scored text, metric
                     "political_lean" from 0 (left) to 100 (right), -1 for a text judged not to be
                     political, empty where a judge gave no score; generation -1 holds the human
                     texts that generation 0 was trained on
ledger.parquet       as the driver writes it
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.runtime.tables import read_parquet, unescape
from jaxloop.studies.recursive_loops.analysis import overlap
from jaxloop.studies.recursive_loops.analysis.overlap import Overlap

NEEDED = {
    "metrics.csv": ("chain", "generation", "metric", "value"),
    "chains.csv": ("chain", "ratio"),
    "properties.csv": ("dataset", "cluster"),
    "members.parquet": ("dataset", "cluster", "row"),
    "overlap.csv": ("dataset", "cluster_a", "cluster_b", "shared", "size_a", "size_b"),
    "text_scores.parquet": ("chain", "generation", "metric", "value"),
    "ledger.parquet": ("chain", "generation", "source", "from_generation", "count"),
}
_NUMBERS = (
    "value",
    "ratio",
    "generation",
    "seed",
    "size",
    "models",
    "gen0_size",
    "shared",
    "size_a",
    "size_b",
    "row",
    "count",
    "from_generation",
)
# Factors of the histogram toy.
TOY_FACTORS = ("accumulate", "bias", "overlap")
# Columns of properties.csv that are text; all others are numbers.
_TEXT_PROPERTIES = ("dataset", "cluster", "kind", "clustering")

# Columns of chains.csv that are no factors, or those of every study or of the histogram simulation.
_NO_FACTORS = (
    "chain",
    "ratio",
    "seed",
    "human_texts",
    "status",
    "cluster",
    *TOY_FACTORS,
)


class Run(NamedTuple):
    """The tables of a run; None for a file that the run does not have."""

    root: Path
    metrics: pd.DataFrame
    chains: pd.DataFrame
    properties: pd.DataFrame | None = None
    overlaps: dict[str, Overlap] | None = None
    scores: pd.DataFrame | None = None
    ledger: pd.DataFrame | None = None


def factors(run: Run) -> list[str]:
    """Return the columns of chains.csv with several values, without ratio, seed and clusters."""
    names = [c for c in run.chains.columns if c not in _NO_FACTORS and not c.startswith("cluster.")]
    return [c for c in names if run.chains[c].astype(str).nunique() > 1]


def read(root: str | Path) -> Run:
    """Read the tables of a run.

    Raises ValueError, in one sentence, for a missing metrics.csv or chains.csv, a missing column,
    an unreadable file.
    """
    root = Path(root)
    tables = {name: _read(root / name) for name in NEEDED if (root / name).exists()}
    for name in ("metrics.csv", "chains.csv"):
        if name not in tables:
            raise ValueError(f"{root / name} is missing, the analysis of a study needs it")
    for name, table in tables.items():
        if missing := [column for column in NEEDED[name] if column not in table]:
            raise ValueError(
                f"{root / name} has no column {missing[0]!r}, which the analysis needs beside "
                f"{', '.join(NEEDED[name])}"
            )
    chains = tables["chains.csv"]
    if "dataset" not in chains:
        chains = chains.assign(dataset="")
    overlaps = None
    if "members.parquet" in tables:
        overlaps = overlap.from_members(tables["members.parquet"])
    elif "overlap.csv" in tables:
        overlaps = overlap.from_pairs(tables["overlap.csv"])
    return Run(
        root=root,
        metrics=tables["metrics.csv"],
        chains=chains,
        properties=tables.get("properties.csv"),
        overlaps=overlaps,
        scores=tables.get("text_scores.parquet"),
        ledger=tables.get("ledger.parquet"),
    )


def _read(path: Path) -> pd.DataFrame:
    if path.name == "members.parquet":
        return _members(path)
    table = pd.DataFrame(read_parquet(path)) if path.suffix == ".parquet" else _csv(path)
    if path.name == "chains.csv" and "ratio" in table:
        _check_ratios(path, table["ratio"])
    for name in table.columns:
        if _is_number(path, name):
            table[name] = pd.to_numeric(table[name], errors="coerce")
        elif name in TOY_FACTORS and table[name].dtype != bool:
            table[name] = [str(v).lower() in ("true", "1", "1.0") for v in table[name]]
    if path.name == "metrics.csv" and "generation" in table:
        table = table.dropna(subset=["generation"]).astype({"generation": int})
    return table


def _csv(path: Path) -> pd.DataFrame:
    """A CSV file with every value as text."""
    try:
        table = pd.read_csv(path, keep_default_na=False, dtype=str)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV ({str(error).splitlines()[0]})") from error
    for name in table.columns:
        table[name] = [unescape(value) for value in table[name]]
    return table


def _check_ratios(path: Path, ratios: pd.Series) -> None:
    for ratio in ratios:
        if str(ratio) != "" and pd.isna(pd.to_numeric(ratio, errors="coerce")):
            raise ValueError(f"{path} has the ratio {ratio!r}, a number is needed")


def _is_number(path: Path, column: str) -> bool:
    if path.name == "properties.csv":
        return column not in _TEXT_PROPERTIES
    return column in _NUMBERS


def _members(path: Path) -> pd.DataFrame:
    """Read members.parquet with names as categories, since it may have tens of millions of rows."""
    try:
        present = pq.read_schema(path).names
        names = [name for name in NEEDED[path.name] if name in present]
        table = pq.read_table(
            path,
            columns=names,
            read_dictionary=[n for n in ("dataset", "cluster") if n in names],
            page_checksum_verification=True,
        )
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})"
        ) from error
    frame = table.to_pandas()
    for name in ("dataset", "cluster"):
        if name in frame:
            frame[name] = frame[name].cat.rename_categories(lambda text: unescape(str(text)))
    return frame
