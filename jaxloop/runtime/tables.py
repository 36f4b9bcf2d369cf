"""Tables on disk: parquet, lossless for any Python string, and CSV for numbers.

Parquet text is UTF-8, which has no lone surrogates. In string columns a lone surrogate is written
as U+001A and its four hexadecimal digits, and U+001A itself as U+001A and "001a"; every other text
is stored as it is and can be read with pandas alone.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.runtime.atomic_io import write_atomic

_UNSAFE = re.compile("[\ud800-\udfff\x1a]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")
# A column: str or None, or numbers.
Column = Sequence[Any] | np.ndarray


def escape(text: str) -> str:
    """Return the text with lone surrogates and U+001A written as this module's docstring says."""
    return _UNSAFE.sub(lambda m: f"\x1a{ord(m[0]):04x}", text)


def is_plain(text: str) -> bool:
    """Return whether `escape` leaves the text as it is; faster than comparing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x1a" not in text


def unescape(text: str) -> str:
    """Undo `escape`."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)


def to_parquet(columns: Mapping[str, Column], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the bytes of a parquet file (zstd, page checksums); equal columns give equal bytes.

    Args:
        columns: equally long lists of str or None, lists of numbers, or NumPy arrays.

    Raises:
        ValueError: their lengths differ.
    """
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns: lengths differ, {lengths}")
    table = pa.table({name: _array(values) for name, values in columns.items()})
    table = table.replace_schema_metadata(
        {escape(k): escape(v) for k, v in (metadata or {}).items()}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue().to_pybytes()


def _array(values: Sequence | np.ndarray) -> pa.Array:
    if isinstance(values, np.ndarray) and values.dtype != object:
        return pa.array(values)
    values = list(values)
    if any(isinstance(v, str) for v in values):
        return pa.array([escape(v) if isinstance(v, str) else v for v in values], pa.string())
    if all(v is None for v in values):
        return pa.array(values, pa.string())
    return pa.array(values)


def write_parquet(
    path: Path,
    columns: Mapping[str, Column],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """Write what `to_parquet` returns, atomically; `durable` as in `write_atomic`."""
    write_atomic(path, to_parquet(columns, metadata), durable=durable)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> dict[str, list | np.ndarray]:
    """Return the columns of a table, all of them or those named.

    Text is a list of str and None, numbers are a NumPy array, or a list with None where some are
    missing.

    Raises:
        ValueError: the file, which is named, is truncated or a page fails its checksum.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})"
        ) from error
    return {name: _values(table[name]) for name in table.column_names}


def _values(column: pa.ChunkedArray) -> list | np.ndarray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [None if v is None else unescape(v) for v in column.to_pylist()]
    return column.to_pylist() if column.null_count else column.to_numpy()


def concatenate(tables: Sequence[Mapping[str, Column]]) -> dict[str, list]:
    """Return the rows of several tables in order; a column that a table lacks is None there."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    out: dict[str, list] = {name: [] for name in names}
    for table in tables:
        length = len(next(iter(table.values()), ()))
        for name in names:
            values = table.get(name)
            if values is None:
                values = [None] * length
            out[name].extend(values.tolist() if isinstance(values, np.ndarray) else values)
    return out


def to_csv(columns: Mapping[str, Column]) -> bytes:
    """Return the columns as CSV (RFC 4180, line ends of "\\n").

    Floats have as many digits as reading them back exactly needs; missing values are empty.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return stream.getvalue().encode()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        # A carriage return inside a quoted cell splits rows in some readers.
        return escape(value).replace("\r", "\x1a000d")
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, float | np.floating):
        return repr(float(value))
    return str(value)
