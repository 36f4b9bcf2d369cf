"""The texts and tables of a run for other libraries: a directory for `datasets`, or CSV files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.exports import cards, target
from jaxloop.recursion import saved_run
from jaxloop.recursion.sources import texts_path
from jaxloop.reporting import scores
from jaxloop.reporting.run_files import read_table
from jaxloop.runtime.tables import read_parquet, to_csv

# Columns of the texts that not every run has are left out where none of its chains has them.
_COLUMNS = {
    "entity": pa.int64(),
    "row": pa.int64(),
    "prompt": pa.string(),
    "text": pa.string(),
    "tokens": pa.int64(),
    "finished": pa.bool_(),
    "selected": pa.int64(),
}


class Written(NamedTuple):
    """What a chain wrote in one generation, with what the rows have in common."""

    path: Path
    generation: int
    chain: str
    factors: dict[str, Any]


def dataset(
    root: Path,
    directory: Path,
    *,
    chain: str | None = None,
    generation: int | None = None,
    licence: str | None = None,
) -> Path:
    """Write the texts of a run as a directory that `datasets.load_dataset` reads, with its card.

    Its configuration "texts" has a row per text, "metrics", where there are any, a row per value.

    Args:
        root: the run directory.
        directory: new or empty.
        chain, generation: only these; None: all.
        licence: of sources that do not come with jaxloop.

    Raises:
        ValueError: there are no such texts, or `directory` is not empty.
    """
    target.check(directory)
    metrics = pd.DataFrame()
    if (root / "metrics.csv").exists():
        metrics = read_table(root / "metrics.csv")
    pieces = _pieces(root, chain, generation, metrics)
    bases = _bases(root)
    schema = _schema(pieces)
    with target.written(directory, sum(2 * piece.path.stat().st_size for piece in pieces)) as work:
        (work / "data").mkdir()
        rows = 0
        path = work / "data" / "texts.parquet"
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for piece in pieces:
                table = _table(piece, schema, bases)
                rows += len(table)
                writer.write_table(table)
        kept = metrics
        if len(metrics) and chain is not None:
            kept = kept[kept["chain"] == chain]
        if len(metrics) and generation is not None:
            kept = kept[kept["generation"] == generation]
        if len(kept):
            pq.write_table(pa.Table.from_pandas(kept, preserve_index=False), work / _METRICS)
        names = {piece.chain for piece in pieces}
        used = {bases[key] for key in bases if key[0] in names}
        card = cards.of_dataset(
            saved_run.read_config(root),
            rows=rows,
            chains=len(names),
            generations=sorted({piece.generation for piece in pieces}),
            bases=sorted(used),
            factors={
                name: [piece.factors[name] for piece in pieces if name in piece.factors]
                for name in dict.fromkeys(name for piece in pieces for name in piece.factors)
            },
            columns=schema.names,
            measured=len(kept) > 0,
            given=licence,
        )
        (work / "README.md").write_text(card, encoding="utf-8")
    return directory


_METRICS = "data/metrics.parquet"


def _pieces(
    root: Path, chain: str | None, generation: int | None, metrics: pd.DataFrame
) -> list[Written]:
    chains = saved_run.read_chains(root)
    generations = saved_run.finished_generations(root)
    if chain is not None or generation is not None:
        saved_run.read_ledger_row(  # says what there is instead
            root, saved_run.ModelId(chain or next(iter(chains)), generation or 0)
        )
    factors = _factors(chains, metrics)
    found = []
    for name in chains if chain is None else [chain]:
        for number in generations if generation is None else [generation]:
            path = root / texts_path(name, number)
            if path.exists():
                found.append(Written(path, number, name, factors[name]))
    if not found:
        raise ValueError(f"export {root}: the run has no texts")
    return found


def _factors(
    chains: Mapping[str, Mapping[str, Any]], metrics: pd.DataFrame
) -> dict[str, dict[str, Any]]:
    """{chain: its factors}, the seed included, and other columns of metrics.csv; None where it has
    none. A factor has one type in all chains: text where any of its values is text.
    """
    stored = {name: dict(map(tuple, of.get("factors", ()))) for name, of in chains.items()}
    factors: dict[str, dict[str, Any]] = {name: {} for name in chains}
    for factor in dict.fromkeys(name for of in stored.values() for name in of):
        kinds = {type(of[factor]) for of in stored.values() if of.get(factor) is not None}
        plain = kinds <= {int, float} or kinds == {bool}
        for name, of in stored.items():
            value = of.get(factor)
            factors[name][factor] = value if plain or value is None else str(value)
    known = {*scores.FIXED, *(name for of in stored.values() for name in of)}
    more = [name for name in metrics.columns if name not in known]
    if more:
        table = metrics.drop_duplicates("chain")
        # A missing cell is a float, which columns of text cannot hold.
        for row in table.astype(object).where(table.notna(), None).to_dict("records"):
            factors[row["chain"]] |= {name: row[name] for name in more}
    return factors


def _bases(root: Path) -> dict[tuple[str, int, int], str]:
    """{(chain, generation, entity): base model}."""
    ledger = read_parquet(root / "ledger.parquet", ["chain", "generation", "entity", "base"])
    keys = zip(ledger["chain"], ledger["generation"], ledger["entity"], strict=True)
    found = zip(keys, ledger["base"], strict=True)
    return {(str(c), int(g), int(e)): str(base) for (c, g, e), base in found}


def _schema(pieces: Sequence[Written]) -> pa.Schema:
    factors = dict.fromkeys(name for piece in pieces for name in piece.factors)
    fields = [("chain", pa.string()), ("generation", pa.int64()), ("base", pa.string())]
    for name in factors:
        values = [piece.factors.get(name) for piece in pieces]
        fields.append((name, pa.array(values, from_pandas=True).type))
    there = {name for piece in pieces for name in pq.read_schema(piece.path).names}
    fields += [(name, kind) for name, kind in _COLUMNS.items() if name in there]
    return pa.schema(fields)


def _table(piece: Written, schema: pa.Schema, bases: dict[tuple[str, int, int], str]) -> pa.Table:
    """The rows of a piece in the columns of all pieces; what it lacks is null."""
    stored = pq.read_table(piece.path)
    count = len(stored)
    entities = stored["entity"].to_pylist()
    base = [bases.get((piece.chain, piece.generation, entity), "") for entity in entities]
    common = {"chain": piece.chain, "generation": piece.generation, **piece.factors}
    columns = []
    for field in schema:
        if field.name == "base":
            columns.append(pa.array(base, field.type))
        elif field.name in common:
            columns.append(pa.array([common[field.name]] * count, field.type))
        elif field.name in stored.column_names:
            columns.append(stored[field.name].cast(field.type))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.table(columns, schema=schema)


def csv(root: Path, directory: Path) -> list[Path]:
    """Write the tables of a run as CSV files: metrics, ledger, losses and texts, where it has them.

    Raises:
        ValueError: it has none, or `directory` is not empty.
    """
    target.check(directory)
    tables = dict(_tables(root))
    if not tables:
        raise ValueError(f"export {root}: the run has no tables yet")
    with target.written(directory) as work:
        for name, data in tables.items():
            (work / name).write_bytes(data)
    return [directory / name for name in tables]


def _tables(root: Path) -> Iterator[tuple[str, bytes]]:
    if (root / "metrics.csv").exists():
        yield "metrics.csv", (root / "metrics.csv").read_bytes()
    for path in sorted(root.glob("*.parquet")):
        yield f"{path.stem}.csv", to_csv(read_parquet(path))
    for path in sorted(root.glob("*.csv")):
        if path.name != "metrics.csv":
            yield path.name, path.read_bytes()
    # The other tables have no rows of a generation that is not finished either.
    finished = {
        Path(texts_path("", number)).name for number in saved_run.finished_generations(root)
    }
    there = sorted((root / "texts").rglob("*.parquet")) if (root / "texts").is_dir() else []
    texts = [path for path in there if path.name in finished]
    if texts:
        yield "texts.csv", b"".join(_texts(texts))


def _texts(paths: Sequence[Path]) -> Iterator[bytes]:
    """CSV of all texts, one file after another, with the chain in front."""
    names = list(dict.fromkeys(name for path in paths for name in pq.read_schema(path).names))
    for i, path in enumerate(paths):
        table = read_parquet(path)
        count = len(table["text"])
        chain = path.parent.name.removeprefix("chain=")
        columns = {"chain": [chain] * count} | {n: table.get(n, [None] * count) for n in names}
        data = to_csv(columns)
        yield data if i == 0 else data.partition(b"\n")[2]
