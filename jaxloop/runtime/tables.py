"""Tables on disk: parquet for text (zstd, page checksums, lossless for any Python string), CSV for
numbers.

Parquet text is UTF-8, which has no lone surrogates. In string columns a lone surrogate is written
as U+001A and its four hexadecimal digits, and U+001A itself as U+001A and "001a"; every other text
is stored as it is and can be read with pandas alone.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.runtime.atomic_io import write_atomic

_UNSAFE = re.compile("[\ud800-\udfff\x1a]")
_ESCAPED = re.compile("\x1a([0-9a-f]{4})")


def escape(text: str) -> str:
    """The text with lone surrogates (and U+001A) written in characters that UTF-8 has; see the
    module.
    """
    return _UNSAFE.sub(lambda m: f"\x1a{ord(m[0]):04x}", text)


def unescape(text: str) -> str:
    """Inverse of `escape`."""
    return _ESCAPED.sub(lambda m: chr(int(m[1], 16)), text)


def to_parquet(columns: Mapping[str, Sequence], metadata: Mapping[str, str] | None = None) -> bytes:
    """Parquet file of equally long columns: lists of str (or None), or of numbers, or NumPy arrays.
    Same columns, same bytes.

    Raises ValueError where lengths differ.
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


def _array(values):
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
    columns: Mapping[str, Sequence],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = False,
) -> None:
    """`to_parquet`, written atomically (durable: see `write_atomic`)."""
    write_atomic(path, to_parquet(columns, metadata), durable=durable)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> dict[str, list | np.ndarray]:
    """Columns of a table: lists of str (or None) for text, NumPy arrays for numbers (lists with
    None where some are missing).

    Raises ValueError, naming the file, where it is truncated or a page fails its checksum.
    """
    try:
        table = pq.ParquetFile(path, page_checksum_verification=True).read(columns)
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})"
        ) from error
    return {name: _plain(table[name]) for name in table.column_names}


def _plain(column):
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return [None if v is None else unescape(v) for v in column.to_pylist()]
    return column.to_pylist() if column.null_count else column.to_numpy()


def concatenate(tables: Sequence[Mapping[str, Sequence]]) -> dict[str, list]:
    """Rows of several tables one after the other; a column that a table lacks is None there."""
    names = list(dict.fromkeys(name for table in tables for name in table))
    out = {name: [] for name in names}
    for table in tables:
        length = len(next(iter(table.values()), ()))
        for name in names:
            values = table.get(name)
            out[name].extend(
                [None] * length
                if values is None
                else (values.tolist() if isinstance(values, np.ndarray) else list(values))
            )
    return out


def to_csv(columns: Mapping[str, Sequence]) -> bytes:
    """CSV (RFC 4180, "\\n" line ends) of columns; floats with as many digits as they need to be
    read back exactly, missing values empty.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([_cell(value) for value in row])
    return stream.getvalue().encode()


def _cell(value):
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
