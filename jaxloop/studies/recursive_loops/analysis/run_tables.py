"""The files of a recursive-loops study that its analysis reads, all in the run's directory.

metrics.csv          study, chain, <factors>, entity, generation, metric, value, as the driver writes it. A metric of the texts that a
                     multi-domain chain wrote for one domain is called `<metric>@<domain>`; a domain
                     has the name of its dataset.
chains.csv           one row per planned chain, those that failed too: chain, dataset ("" in a multi-domain study), ratio, seed, and where they
                     apply cluster, one `cluster.<domain>` per domain, and factors: quality_level,
                     length_level, mix, bases, models, gen0_size, bias, overlap, accumulate
properties.csv       one row per cluster: dataset, cluster, size, and the properties of `studies.recursive_loops.properties.NAMES`; empty where not measured
members.parquet      dataset, cluster, row: one line per text of each cluster; or overlap.csv: dataset, cluster_a, cluster_b, shared, size_a,
                     size_b. Without either nothing is known of overlap, except between chains on
                     one cluster
text_scores.parquet  chain, generation, metric, value: one line per scored text, metric
"political_lean" from 0 (left) to 100 (right), empty for a
                     text judged not to be political; generation -1 holds the human texts that
                     generation 0 was trained on
ledger.parquet       as the driver writes it
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

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
_LEVELS = ("bias", "overlap", "accumulate")


class Run(NamedTuple):
    """A study's tables; None for a file that the run does not have."""

    root: Path
    metrics: pd.DataFrame
    chains: pd.DataFrame
    properties: pd.DataFrame | None = None
    overlaps: dict[str, Overlap] | None = None
    scores: pd.DataFrame | None = None
    ledger: pd.DataFrame | None = None


def read(root: str | Path) -> Run:
    """The tables of a run. ValueError, in one sentence, for a missing metrics.csv or chains.csv, a
    missing column, an unreadable file.
    """
    root = Path(root)
    found = {name: _read(root / name) for name in NEEDED if (root / name).exists()}
    for name in ("metrics.csv", "chains.csv"):
        if name not in found:
            raise ValueError(f"{root / name} is missing, the analysis of a study needs it")
    for name, table in found.items():
        if lost := [column for column in NEEDED[name] if column not in table]:
            raise ValueError(
                f"{root / name} has no column {lost[0]!r}, which the analysis needs beside "
                f"{', '.join(NEEDED[name])}"
            )
    chains = found["chains.csv"]
    chains = chains.assign(**{name: "" for name in ("dataset",) if name not in chains})
    if "members.parquet" in found:
        overlaps = overlap.from_members(found["members.parquet"])
    elif "overlap.csv" in found:
        overlaps = overlap.from_pairs(found["overlap.csv"])
    else:
        overlaps = None
    return Run(
        root,
        found["metrics.csv"],
        chains,
        found.get("properties.csv"),
        overlaps,
        found.get("text_scores.parquet"),
        found.get("ledger.parquet"),
    )


def _read(path: Path) -> pd.DataFrame:
    if path.name == "members.parquet":
        return _members(path)
    if path.suffix == ".parquet":
        table = pd.DataFrame(read_parquet(path))
    else:
        try:
            table = pd.read_csv(path, keep_default_na=False, dtype=str)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path} cannot be read as CSV ({str(error).splitlines()[0]})"
            ) from error
        for name in table.columns:
            table[name] = [unescape(v) for v in table[name]]
    text = {"properties.csv": ("dataset", "cluster", "kind", "clustering")}.get(path.name)
    if path.name == "chains.csv" and "ratio" in table:
        bad = [
            v for v in table["ratio"] if str(v) != "" and pd.isna(pd.to_numeric(v, errors="coerce"))
        ]
        if bad:
            raise ValueError(f"{path} has the ratio {bad[0]!r}, a number is needed")
    for name in table.columns:
        if name in _NUMBERS or (text is not None and name not in text):
            table[name] = pd.to_numeric(table[name], errors="coerce")
        elif name in _LEVELS and table[name].dtype != bool:
            table[name] = [str(v).lower() in ("true", "1", "1.0") for v in table[name]]
    if path.name == "metrics.csv" and "generation" in table:
        table = table.dropna(subset=["generation"]).astype({"generation": int})
    return table


def _members(path: Path) -> pd.DataFrame:
    """members.parquet with its names as categories: at the paper's scale it has tens of millions of
    rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        held = pq.read_schema(path).names
        names = [name for name in NEEDED[path.name] if name in held]
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
    found = table.to_pandas()
    for name in ("dataset", "cluster"):
        if name in found:
            found[name] = found[name].cat.rename_categories(lambda text: unescape(str(text)))
    return found
