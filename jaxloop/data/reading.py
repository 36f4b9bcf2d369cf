"""Rows of local files, in batches and without loss: jsonl, json, csv, tsv, parquet and txt,
compressed (gz, bz2, xz, zst, zip) or not.

Every reader holds some thousand rows in memory. Texts come out as they are in the file: "NA",
"null" and "" stay strings, NUL, carriage returns and escaped lone surrogates survive, and a line
may be of any length. What is not valid UTF-8 or not well-formed is refused with the file and the
line.
"""

import difflib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import containers, delimited
from jaxloop.data.delimited import Dialect, decoded
from jaxloop.runtime.tables import unescape

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_BATCH = 1024
_BLOCK = 1 << 22
_HEAD = 512


def extension(path: str | Path) -> str | None:
    """The known extension of a file name (lower case, `.gz` and the like left out); None for any
    other name.
    """
    suffixes = [s.lower() for s in Path(path).suffixes]
    if suffixes and suffixes[-1] in containers.COMPRESSED:
        suffixes.pop()
        return (
            suffixes[-1]
            if suffixes and suffixes[-1] in EXTENSIONS and suffixes[-1] != ".parquet"
            else None
        )
    return suffixes[-1] if suffixes and suffixes[-1] in EXTENSIONS else None


def read_rows(
    path: str | Path, *, columns: Sequence[str] | None = None, dialect: Dialect = Dialect()
) -> Iterator[dict]:
    """The rows of a file in their order, each a dict from column to value; arguments and errors as
    `read_batches`.
    """
    for batch in read_batches(path, columns=columns, dialect=dialect):
        if isinstance(batch, list):
            yield from batch
        else:
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def read_batches(
    path: str | Path, *, columns: Sequence[str] | None = None, dialect: Dialect = Dialect()
) -> Iterator[dict[str, list] | list[dict]]:
    """Some rows of a file at a time, in their order: columns where all rows have the same, rows
    where each has its own (JSON).

    Text of csv, tsv and txt is str; `txt` has the column text alone.

    Args:
      path: a file with one of `EXTENSIONS`, to which a compression may be added (not to parquet),
      or a zip that holds one. columns: of parquet, csv and tsv, the columns that are needed, if the
      file has all of them; other formats yield whole rows. dialect: of csv and tsv.

    Raises: ValueError, naming the file and the line, where the file is absent, empty, of another
    kind, not UTF-8 or malformed.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"data.source = '{path}': is not a file.")
    kind = extension(path)
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"data.source = '{path}': the file is empty.")
    if kind is None and path.is_file() and path.suffix.lower() == ".zip":
        kind = extension(_inside(path))
    if kind is None:
        allowed = f"{', '.join(EXTENSIONS)}, also with {', '.join(containers.COMPRESSED)}"
        raise ValueError(
            f"data.source = '{path}': not a file type that is read; allowed are {allowed}."
        )
    if path.is_symlink() and not path.exists():
        raise ValueError(
            f"data.source = '{path}': is a link to '{path.readlink()}', which is not there."
        )
    if not path.exists():
        raise ValueError(f"data.source = '{path}': there is no such file{_nearby(path)}.")
    readers = {".txt": _paragraphs, ".json": _json}
    try:
        if kind == ".parquet":
            yield from _parquet(path, columns)
        else:
            with containers.opened(path) as stream:
                if kind in (".csv", ".tsv"):
                    yield from delimited.batches(
                        path, stream, tabs=kind == ".tsv", dialect=dialect, columns=columns
                    )
                else:
                    yield from readers.get(kind, _json_lines)(path, stream)
    except containers.DAMAGE as error:
        raise ValueError(
            f"data.source = '{path}': cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error


def _inside(path):
    try:
        return containers.inner_name(path) or path.name
    except containers.DAMAGE as error:
        raise ValueError(f"data.source = '{path}': cannot be read ({error}).") from error


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
        line = decoded(path, raw, number, offset)
        offset += len(raw)
        yield number, line


def _parse(path, line, number):
    try:
        return json.loads(line, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        problem = (
            f"{error.msg} at character {error.colno}"
            if isinstance(error, json.JSONDecodeError)
            else str(error).splitlines()[0]
        )
        raise ValueError(
            f"data.source = '{path}': line {number} is not valid JSON ({problem})."
        ) from None


def _once(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(
            f"an object has the key {next(n for n in names if names.count(n) > 1)!r} twice"
        )
    return row


def _row(path, value, where, every):
    """A row: an object, or a string, which is a text."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(
            f"data.source = '{path}': {where} is a JSON {_kind(value)}; every {every} must be an "
            "object, or a string."
        )
    return value


def _json_lines(path, stream):
    """A block of lines at a time as one array, which the parser reads at once; line by line where
    that fails or says something else.

    An array under the name of lines is read as `_json` reads it.
    """
    if stream.peek(_HEAD)[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json(path, stream)
        return
    number = offset = 0
    while lines := stream.readlines(_BLOCK):
        rows = _at_once(lines)
        if rows is not None:
            number, offset = number + len(lines), offset + sum(map(len, lines))
            yield rows
            continue
        rows = []
        try:
            for raw in lines:
                number += 1
                line = decoded(path, raw, number, offset)
                offset += len(raw)
                if line.strip():
                    rows.append(_row(path, _parse(path, line, number), f"line {number}", "line"))
        except ValueError:
            # Who wants no more than these does not meet the error.
            if rows:
                yield rows
            raise
        if rows:
            yield rows


def _at_once(lines):
    """The rows of some lines of JSON if every line is one object; None where that is not sure."""
    if not all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines):
        return None
    block = b",".join(lines)
    try:
        rows = json.loads(b"[" + block + b"]")
        if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
            return None
        # A key that stands more often than there are rows may be twice in one of them, of which the
        # parser alone keeps the last.
        often = any(
            block.count(json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            > len(rows)
            for key in rows[0]
        )
        return json.loads(b"[" + block + b"]", object_pairs_hook=_once) if often else rows
    except (ValueError, RecursionError):
        return None


def _json(path, stream):
    """An array of objects or of strings, one object of equally long columns or in a form that
    pandas writes, or (as many archives are named) one object per line.
    """
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
            row = _parse(path, first[1], first[0])
            yield from _rest_of_json_lines(path, row, lines)
            return
    value = _parse(path, first[1] + "".join(line for _, line in lines), first[0])
    if isinstance(value, dict):
        yield from _columns(path, value)
        return
    if not isinstance(value, list):
        raise ValueError(
            f"data.source = '{path}': holds a JSON {_kind(value)}; it must hold an array of "
            "objects."
        )
    for start in range(0, len(value), _BATCH):
        rows = enumerate(value[start : start + _BATCH], start)
        yield [_row(path, row, f"entry {index} of the array", "entry") for index, row in rows]


def _rest_of_json_lines(path, row, lines):
    rest = ((n, line) for n, line in lines if line.strip())
    second = next(rest, None)
    if second is None and row and all(isinstance(v, list | dict) for v in row.values()):
        yield from _columns(path, row)
        return
    yield [row]
    for number, line in itertools.chain([] if second is None else [second], rest):
        yield [_row(path, _parse(path, line, number), f"line {number}", "line")]


def _columns(path, table: Mapping):
    """Rows of one object: columns as lists, or what `DataFrame.to_json` writes (orient columns,
    index, split or table).
    """
    refused = (
        f"data.source = '{path}': holds one JSON object whose values are not equally long "
        "columns; give an array of objects."
    )
    values = list(table.values())
    if {"columns", "data"} <= set(table) <= {"columns", "index", "data"} and all(
        isinstance(v, list) for v in values
    ):
        table, rows = table["columns"], table["data"]
        if not all(isinstance(row, list) and len(row) == len(table) for row in rows) or len(
            set(map(str, table))
        ) < len(table):
            raise ValueError(refused)
        yield [dict(zip(map(str, table), row, strict=True)) for row in rows]
    elif (
        set(table) == {"schema", "data"}
        and isinstance(table["data"], list)
        and all(isinstance(row, dict) for row in table["data"])
    ):
        yield table["data"]
    elif (
        values
        and all(isinstance(v, dict) and v and list(v) == list(values[0]) for v in values)
        and _numbers(values[0]) != _numbers(table)
    ):
        # A frame by columns, or by rows (orient index); which, its row numbers say.
        yield (
            [
                dict(zip(table, row, strict=True))
                for row in zip(*(v.values() for v in values), strict=True)
            ]
            if _numbers(values[0])
            else values
        )
    elif values and all(isinstance(v, list) and len(v) == len(values[0]) for v in values):
        yield dict(table)
    else:
        raise ValueError(refused)


def _numbers(names):
    return all(name.removeprefix("-").isdecimal() for name in names)


def _kind(value):
    names = {list: "array", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _paragraphs(path, stream):
    """Blocks of lines that empty lines part."""
    block, texts = [], []
    for _, line in _lines(path, stream):
        line = line.removesuffix("\n").removesuffix("\r")
        if line.strip():
            block.append(line)
        elif block:
            texts.append("\n".join(block))
            block = []
            if len(texts) == _BATCH:
                yield {"text": texts}
                texts = []
    if texts or block:
        yield {"text": texts + (["\n".join(block)] if block else [])}


def _parquet(path, columns):
    if bad := containers.problem(containers.head_of(path)):
        raise ValueError(f"data.source = '{path}': {bad}.")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"data.source = '{path}': has two columns called {twice[0]!r}; name every column "
                "once."
            )
        # Where a column asked for is not there, whole rows tell the caller what the file has
        # instead.
        chosen = (
            [name for name in names if name in columns]
            if columns and set(columns) <= set(names)
            else names
        )
        escaped = b"jaxloop.escaped" in (file.metadata.metadata or {})
        labels = class_names((file.schema_arrow.metadata or {}).get(b"huggingface"))
        for batch in file.iter_batches(_BATCH, columns=chosen):
            found = {
                name: _values(path, batch.column(i), name, escaped)
                for i, name in enumerate(batch.schema.names)
            }
            yield {
                name: named(values, labels[name]) if name in labels else values
                for name, values in found.items()
            }
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"data.source = '{path}': cannot be read as parquet "
            f"({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """The names of the classes of each column that `datasets` wrote as a ClassLabel, from the
    metadata that it leaves in a file.
    """
    try:
        features = json.loads(metadata or b"{}").get("info", {}).get("features", {})
    except ValueError:
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def named(values: list, names: Sequence[str]) -> list:
    """Class numbers by their names; -1 is how `datasets` writes that there is none."""
    return [
        None
        if v is None or v == -1
        else names[v]
        if isinstance(v, int) and 0 <= v < len(names)
        else v
        for v in values
    ]


def _values(path, column, name, escaped):
    try:
        values = column.to_pylist()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            values = [None if v is None else v.decode() for v in values]
    except UnicodeDecodeError:
        raise ValueError(f"data.source = '{path}': column {name!r} is not UTF-8.") from None
    return [unescape(v) if isinstance(v, str) else v for v in values] if escaped else values
