"""Rows of local files, one at a time and without loss: jsonl, json, csv, tsv, parquet and txt, gzip-compressed or not.

Every reader is a generator of dicts that holds one row (parquet: one batch) in memory. Texts come out as they are in the file: "NA", "null"
and "" stay strings, NUL, carriage returns and escaped lone surrogates survive, and a line may be of any length. What is not valid
UTF-8 or not well-formed is refused with the file and the line.
"""

import csv
import difflib
import gzip
import io
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.runtime.tables import unescape

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_COMPRESSED = ".gz"
_BATCH = 1024
_CSV_LOCK = threading.Lock()


def extension(path: str | Path) -> str | None:
    """The known extension of a file name (lower case, `.gz` left out); None for any other name."""
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] == _COMPRESSED:
        suffixes.pop()
        return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS and suffixes[-1] != ".parquet" else None
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else None


def read_rows(path: str | Path, *, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """The rows of a file in their order, each a dict from column to value (text of csv, tsv and txt: str; `txt` has the column text alone).

    Args:
      path: a file with one of `EXTENSIONS`, to which `.gz` may be added (not to parquet).
      columns: for parquet, the columns to read, if the file has all of them; every other format yields whole rows.

    Raises: ValueError, naming the file and the line, where the file is absent, empty, of another kind, not UTF-8 or malformed.
    """
    path = Path(path)
    kind = extension(path)
    if kind is None:
        raise ValueError(f"data.source = '{path}': not a file type that is read; allowed are {', '.join(EXTENSIONS)}, also with .gz.")
    if not path.exists():
        raise ValueError(f"data.source = '{path}': there is no such file{_nearby(path)}.")
    if not path.is_file():
        raise ValueError(f"data.source = '{path}': is not a file.")
    if path.stat().st_size == 0:
        raise ValueError(f"data.source = '{path}': the file is empty.")
    readers = {".parquet": _parquet, ".txt": _paragraphs, ".csv": _delimited, ".tsv": _delimited, ".json": _json}
    reader = readers.get(kind, _json_lines)
    try:
        if kind == ".parquet":
            yield from reader(path, columns)
        else:
            with gzip.open(path) if path.suffix.lower() == _COMPRESSED else open(path, "rb") as stream:
                yield from reader(path, stream)
    except (OSError, EOFError) as error:
        raise ValueError(f"data.source = '{path}': cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _nearby(path):
    if not path.parent.is_dir():
        return f", nor a folder '{path.parent}'"
    names = [p.name for p in path.parent.iterdir() if extension(p)]
    close = difflib.get_close_matches(path.name, names, 1, 0.6)
    return f"; the nearest name is '{path.parent / close[0]}'" if close else ""


def _lines(path, stream):
    """(line number, text with its line end) of a UTF-8 file; lines end at "\\n" alone."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            where = f"line {number}, byte {offset + error.start} (0x{raw[error.start]:02x})"
            raise ValueError(f"data.source = '{path}': not UTF-8 at {where}; convert the file to UTF-8 first.") from None
        offset += len(raw)
        yield number, line


def _parse(path, line, number):
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"{error.msg} at character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error).splitlines()[0]
        raise ValueError(f"data.source = '{path}': line {number} is not valid JSON ({problem}).") from None


def _json_lines(path, stream):
    for number, line in _lines(path, stream):
        if not line.strip():
            continue
        row = _parse(path, line, number)
        if not isinstance(row, dict):
            raise ValueError(f"data.source = '{path}': line {number} is a JSON {_kind(row)}; every line must be an object.")
        yield row


def _json(path, stream):
    """An array of objects, one object of equally long columns, or (as many archives are named) one object per line."""
    stream = io.BufferedReader(stream) if not hasattr(stream, "peek") else stream
    lines = _lines(path, stream)
    first = next(((n, line) for n, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("{"):
        try:
            row = json.loads(first[1])
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            yield from _rest_of_json_lines(path, row, lines)
            return
    value = _parse(path, first[1] + "".join(line for _, line in lines), first[0])
    if isinstance(value, dict):
        yield from _columns(path, value)
        return
    if not isinstance(value, list):
        raise ValueError(f"data.source = '{path}': holds a JSON {_kind(value)}; it must hold an array of objects.")
    for index, row in enumerate(value):
        if not isinstance(row, dict):
            raise ValueError(f"data.source = '{path}': entry {index} of the array is a JSON {_kind(row)}; every entry must be an object.")
        yield row


def _rest_of_json_lines(path, row, lines):
    second = next(((n, line) for n, line in lines if line.strip()), None)
    if second is None and any(isinstance(v, list) for v in row.values()):
        yield from _columns(path, row)
        return
    yield row
    while second is not None:
        number, line = second
        row = _parse(path, line, number)
        if not isinstance(row, dict):
            raise ValueError(f"data.source = '{path}': line {number} is a JSON {_kind(row)}; every line must be an object.")
        yield row
        second = next(((n, line) for n, line in lines if line.strip()), None)


def _columns(path, table: Mapping):
    lengths = {len(v) if isinstance(v, list) else None for v in table.values()}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"data.source = '{path}': holds one JSON object whose values are not equally long columns; give an array of objects.")
    for values in zip(*table.values(), strict=True):
        yield dict(zip(table, values, strict=True))


def _kind(value):
    names = {list: "array", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _delimited(path, stream):
    """Rows of a csv or tsv file (RFC 4180).

    Rows end as the header line does, with CR LF or with LF alone; any other carriage return is text.
    """
    numbers = [0]

    def protected():
        row_end = None
        for number, line in _lines(path, stream):
            numbers[0] = number
            row_end = row_end or ("\r\n" if line.endswith("\r\n") else "\n")
            end = row_end if line.endswith(row_end) else "\n" if line.endswith("\n") else ""
            body = line.removesuffix(end)
            # The csv module ends rows at carriage returns: they travel as U+001A "r", and U+001A itself as U+001A "z".
            yield body.replace("\x1a", "\x1az").replace("\r", "\x1ar") + end

    rows = csv.reader(protected(), delimiter="\t" if extension(path) == ".tsv" else ",", strict=True)
    header = _next_row(path, rows, numbers)
    if header is None:
        return
    if len(set(header)) < len(header) or "" in header:
        bad = next(name for name in header if name == "" or header.count(name) > 1)
        raise ValueError(f"data.source = '{path}': the header line has {'an empty name' if not bad else f'{bad!r} twice'}; name every column once.")
    while True:
        row = _next_row(path, rows, numbers)
        if row is None:
            return
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(f"data.source = '{path}': the row that ends at line {numbers[0]} has {len(row)} cells, the header {len(header)}.")
        yield dict(zip(header, row, strict=True))


def _next_row(path, rows, numbers):
    # The limit on a cell's size is one number for the whole process: raised for this row, then put back.
    with _CSV_LOCK:
        limit = csv.field_size_limit(sys.maxsize)
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise ValueError(f"data.source = '{path}': line {numbers[0]} is not well-formed ({error}).") from None
        finally:
            csv.field_size_limit(limit)
    return row if row is None else [cell.replace("\x1ar", "\r").replace("\x1az", "\x1a") if "\x1a" in cell else cell for cell in row]


def _paragraphs(path, stream):
    block = []
    for _, line in _lines(path, stream):
        line = line.removesuffix("\n").removesuffix("\r")
        if line.strip():
            block.append(line)
        elif block:
            yield {"text": "\n".join(block)}
            block = []
    if block:
        yield {"text": "\n".join(block)}


def _parquet(path, columns):
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        # Where a column asked for is not there, whole rows tell the caller what the file has instead.
        chosen = [name for name in names if name in columns] if columns and set(columns) <= set(names) else names
        escaped = b"jaxloop.escaped" in (file.metadata.metadata or {})
        for batch in file.iter_batches(_BATCH, columns=chosen):
            batch_columns = [_values(path, batch.column(i), batch.schema.names[i], escaped) for i in range(batch.num_columns)]
            for values in zip(*batch_columns, strict=True):
                yield dict(zip(batch.schema.names, values, strict=True))
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"data.source = '{path}': cannot be read as parquet ({str(error).splitlines()[0].rstrip('.')}).") from error


def _values(path, column, name, escaped):
    try:
        values = column.to_pylist()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            values = [None if v is None else v.decode() for v in values]
    except UnicodeDecodeError:
        raise ValueError(f"data.source = '{path}': column {name!r} is not UTF-8.") from None
    return [unescape(v) if isinstance(v, str) else v for v in values] if escaped else values
