"""Clean rows on the disk, and cleaning that goes on where it was stopped.

The rows of a dataset are cleaned in parts of a million, each a file of its own until all are there:
what was cleaned before a run was stopped is not cleaned again.
"""

import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import containers, reading
from jaxloop.data.batches import (
    ROWS_OF_A_BATCH,
    Columns,
    Shard,
    after,
    count_of,
    first,
    larger,
    tables,
)
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import escape, is_plain
from jaxloop.studies.recursive_loops.data import cleaning
from jaxloop.studies.recursive_loops.data.cleaning import Report, Step

ROWS_OF_A_PART = 1_000_000
# What a row of a limited number of rows takes at most, in parts and in the end.
_BYTES_OF_A_ROW = 8192
_ROWS_WRITTEN = 16 * ROWS_OF_A_BATCH


class _Part(NamedTuple):
    """What the file of a part says of itself.

    Attributes:
        shard: name of the part's shard.
        rows: rows of the source that it was cleaned from.
        whole: whether the shard ends with it.
        report: what its rules dropped.
    """

    shard: str
    rows: int
    whole: bool
    report: Report


def room_needed(
    places: Sequence[str | Path], columns: Sequence[str], limit: int | None = None
) -> int:
    """Return the bytes that the clean rows of files need while they are made, about.

    They lie there twice at the end, in parts and as one file, compressed: so they take twice the
    bytes of the columns that are read of a parquet file, or of a compressed file, and those of a
    file of plain text once. Places that are no files count as nothing.

    Args:
        places: files, folders or ids on the hub.
        columns: those that are read.
        limit: rows that are read; None: all.
    """
    files = [Path(place) for place in places if Path(place).is_file()]
    needed = sum(_room_of(file, columns) for file in files)
    return needed if limit is None else min(needed, limit * _BYTES_OF_A_ROW)


def _room_of(file: Path, columns: Sequence[str]) -> int:
    if reading.extension(file.name) == ".parquet":
        try:
            metadata = pq.read_metadata(file)
        except (OSError, pa.ArrowException):
            return 0  # what is wrong with it is said where it is read
        groups = map(metadata.row_group, range(metadata.num_row_groups))
        chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
        wanted = [c for c in chunks if c.path_in_schema.partition(".")[0] in columns]
        return 2 * sum(chunk.total_compressed_size for chunk in wanted)
    compressed = file.suffix.lower() in containers.COMPRESSED
    return file.stat().st_size * (2 if compressed else 1)


def clean_parts(
    shards: Iterable[Shard],
    steps: Sequence[Step],
    report: Report,
    folder: Path,
    *,
    limit: int | None = None,
    rows_of_a_part: int = ROWS_OF_A_PART,
) -> Iterator[Columns]:
    """Yield the rows of shards that are left after steps, each part cleaned once.

    Args:
        shards: of one source or of several, in their order; each shard is read where a part of it
            is not in the folder.
        steps: every one `by_row`.
        report: filled as by `cleaning.apply`, complete when all rows were read.
        folder: where the parts are kept; of this source and these steps alone.
        limit: rows of the source that are read; None: all.
        rows_of_a_part: rows of the source that a part is cleaned from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    list(cleaning.apply((), steps, report))
    left = limit
    for number, shard in enumerate(shards):
        done = 0
        for index in itertools.count():
            path = folder / f"{number:05d}-{index:05d}.parquet"
            most = rows_of_a_part if left is None else min(rows_of_a_part, left)
            part = _described(path, shard)
            if part is None:
                part = _write_part(path, shard, done, most, steps)
            for name, counts in part.report.items():
                for key, value in counts.items():
                    report[name][key] += value
            for batch in reading.read_batches(path):
                if isinstance(batch, dict) and count_of(batch):
                    yield batch
            done += part.rows
            left = None if left is None else left - part.rows
            if part.whole or left == 0:
                break
        if left == 0:
            return


def _described(path: Path, shard: Shard) -> _Part | None:
    """What a part says of itself; None where there is none, or that of another shard."""
    if not path.exists():
        return None
    try:
        part = _Part(*json.loads((pq.read_metadata(path).metadata or {})[b"part"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None
    return part if part.shard == shard.name else None


def _write_part(path: Path, shard: Shard, done: int, most: int, steps: Sequence[Step]) -> _Part:
    """Clean up to `most` rows that follow the first `done` of a shard."""
    report: Report = {}
    counts = {"rows": 0}

    def incoming() -> Iterator[Columns]:
        for columns in tables(first(after(shard.read(), done), most)):
            counts["rows"] += count_of(columns)
            yield columns

    def metadata() -> dict[str, str]:
        whole = counts["rows"] < most
        part = _Part(shard.name, counts["rows"], whole, report)
        return {"part": json.dumps(part)}

    kept = _write(path, cleaning.apply(incoming(), steps, report), metadata)
    LOGGER.info(
        "cleaned %s rows of %s, %s left", f"{done + counts['rows']:,}", shard.name, f"{kept:,}"
    )
    return _Part(*json.loads(metadata()["part"]))


def write_parquet(
    path: str | Path, batches: Iterable[Columns], report: Report | None = None
) -> int:
    """Write batches of rows to a parquet file (zstd, page checksums); return the number of rows.

    A few thousand rows are in memory at a time. The columns are those of the first batch, in its
    order; each holds text or numbers. The file appears when it is complete. `report`, filled by
    then, goes into its metadata under "cleaning". Lone surrogates are escaped (see
    `runtime/tables.py`).

    Raises ValueError where there are no rows or a later row has values of another type.
    """
    path = Path(path)
    stream = iter(batches)
    start = next(stream, None)
    if start is None:
        raise ValueError(f"{path}: there are no rows to write.")
    return _write(path, itertools.chain([start], stream), lambda: {"cleaning": json.dumps(report)})


def _write(
    path: Path, batches: Iterable[Columns], metadata: Callable[[], Mapping[str, str]]
) -> int:
    """Write batches to a file that appears when it is complete; return how many rows there were.

    metadata: is asked when all batches were read.
    """
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        with open(partial, "wb") as sink:
            count = _write_batches(path, sink, larger(batches, _ROWS_WRITTEN), metadata)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return count


def _write_batches(
    path: Path,
    sink: BinaryIO,
    batches: Iterator[Columns],
    metadata: Callable[[], Mapping[str, str]],
) -> int:
    """Write batches to an open file; return how many rows there were. path: for messages."""
    table = _table(path, next(batches, {"text": []}), None, 0)
    # A column without a value in the first batch is one of text.
    fields = [
        pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in table.schema
    ]
    schema = pa.schema(fields)
    count = len(table)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table.cast(schema))
        for batch in batches:
            same = {name: batch.get(name, [None] * count_of(batch)) for name in schema.names}
            table = _table(path, same, schema, count)
            writer.write_table(table)
            count += len(table)
        writer.add_key_value_metadata({**metadata(), "jaxloop.escaped": "1"})
    return count


def _table(path: Path, batch: Columns, schema: pa.Schema | None, before: int) -> pa.Table:
    """Rows as a table; before: how many rows there were before them, for the refusal."""
    columns = {name: _escaped(values) for name, values in batch.items()}
    try:
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, TypeError) as error:
        for name, values in columns.items():
            _check_type(path, name, values, None if schema is None else schema.field(name), before)
        raise ValueError(
            f"{path}: the rows from {before} on do not have one type per column ({error})."
        ) from None


def _check_type(
    path: Path, name: str, values: Sequence[Any], field: pa.Field | None, before: int
) -> None:
    """Raise ValueError for the first value of a column that is not of its type."""
    known = None if field is None else field.type
    for number, value in enumerate(values, before + 1):
        if value is None:
            continue
        try:
            known = pa.array([value], known).type
        except (pa.ArrowException, TypeError):
            raise ValueError(
                f"{path}: the column {name!r} holds {type(value).__name__} {str(value)[:40]!r} in "
                f"clean row {number}, and values of another type before it; the rows must have "
                f"one type per column."
            ) from None


def _escaped(values: Sequence[Any]) -> list[Any]:
    if set(map(type, values)) <= {str} and is_plain("\n".join(values)):
        return list(values)
    return [escape(value) if isinstance(value, str) else value for value in values]
