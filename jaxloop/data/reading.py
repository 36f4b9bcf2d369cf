"""Reads the rows of local files, in batches and without loss.

The formats are jsonl, json, csv, tsv, parquet and txt, compressed (gz, bz2, xz, zst, zip) or not.
A reader holds a few thousand rows in memory. Texts are yielded as they are in the file: "NA",
"null" and "" stay strings, NUL, carriage returns and escaped lone surrogates are kept, and a line
may have any length. If a file is not valid UTF-8 or not well-formed, the error names the file and
the line.
"""

import difflib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import containers, delimited
from jaxloop.data.batches import ROWS_OF_A_BATCH, Batch, Columns, Row, needed, rows_of
from jaxloop.data.containers import Peekable
from jaxloop.data.delimited_rows import decoded
from jaxloop.data.dialect import Dialect
from jaxloop.runtime.tables import unescape

EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_BLOCK = 1 << 22
_SMALL_BLOCK = 1 << 16
_HEAD = 512
_HEAD_ROWS = 4
# Of more different keys in a block it is slower to count each than to parse the block again.
_MANY_KEYS = 64


def extension(path: str | Path) -> str | None:
    """Return the extension of a file name, in lower case; None if it is not in `EXTENSIONS`.

    `.gz` and other extensions of compression are skipped.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    compressed = bool(suffixes) and suffixes[-1] in containers.COMPRESSED
    if compressed:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in EXTENSIONS:
        return None
    return None if compressed and suffixes[-1] == ".parquet" else suffixes[-1]


def read_rows(
    path: str | Path, *, columns: Sequence[str] | None = None, dialect: Dialect = Dialect()
) -> Iterator[Row]:
    """Yield the rows of a file in their order; arguments and errors as of `read_batches`."""
    return rows_of(read_batches(path, columns=columns, dialect=dialect))


def read_batches(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    dialect: Dialect = Dialect(),
) -> Iterator[Batch]:
    """Yield the rows of a file in batches, in their order.

    A batch is columns if all rows have the same columns, else rows (JSON). Values of csv, tsv and
    txt are str; txt has only the column text.

    Args:
        path: a file with one of `EXTENSIONS`, to which a compression may be added (not to parquet),
            or a zip that holds one.
        columns: the columns that are needed; parquet, csv and tsv files that have all of them are
            spared the others; other formats yield whole rows.
        optional: columns that are read too where the file has them.
        dialect: of csv and tsv.

    Raises:
        ValueError: naming the file and the line: the file is absent, empty, of another kind, not
            UTF-8 or malformed.
    """
    path = Path(path)
    kind = _kind_of_file(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path, columns or (), optional)
            return
        with containers.opened(path) as stream:
            if kind in (".csv", ".tsv"):
                yield from delimited.batches(
                    path,
                    stream,
                    tabs=kind == ".tsv",
                    dialect=dialect,
                    columns=columns or (),
                    optional=optional,
                )
            elif kind == ".txt":
                yield from _paragraphs(path, stream)
            elif kind == ".json":
                yield from _json(path, stream)
            else:
                yield from _json_lines(path, stream)
    except containers.DAMAGE as error:
        raise ValueError(
            f"data.source = '{path}': cannot be read ({getattr(error, 'strerror', None) or error})."
        ) from error


def _kind_of_file(path: Path) -> str:
    """The file's extension out of `EXTENSIONS`; ValueError if it is absent or of another kind."""
    if path.exists() and not path.is_file():
        raise ValueError(f"data.source = '{path}': is not a file.")
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"data.source = '{path}': the file is empty.")
    kind = extension(path)
    if kind is None and path.is_file() and path.suffix.lower() == ".zip":
        kind = extension(_name_inside(path))
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
    return kind


def _name_inside(path: Path) -> str:
    try:
        return containers.inner_name(path) or path.name
    except containers.DAMAGE as error:
        raise ValueError(f"data.source = '{path}': cannot be read ({error}).") from error


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f", nor a folder '{path.parent}'"
    names = [p.name for p in path.parent.iterdir() if extension(p)]
    close = difflib.get_close_matches(path.name, names, 1, 0.6)
    return f"; the nearest name is '{path.parent / close[0]}'" if close else ""


def _lines(path: Path, stream: Peekable) -> Iterator[tuple[int, str]]:
    """(line number, text with its line end) of a UTF-8 file; lines end at "\\n" alone."""
    offset = 0
    for number, raw in enumerate(stream, 1):
        line = decoded(path, raw, number, offset)
        offset += len(raw)
        yield number, line


def _parse(path: Path, line: str, number: int) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        problem = f"{error.msg} at character {error.colno}"
    except (ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0]
    raise ValueError(f"data.source = '{path}': line {number} is not valid JSON ({problem}).")


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object; ValueError where it has a key twice."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the key {repeated!r} twice")
    return row


def _row(path: Path, value: Any, where: str, every: str) -> Row:
    """A row from a JSON value: an object, or a string, which becomes the text of a row."""
    if isinstance(value, str):
        return {"text": value}
    if not isinstance(value, dict):
        raise ValueError(
            f"data.source = '{path}': {where} is a JSON {_kind(value)}; every {every} must be an "
            "object, or a string."
        )
    return value


def _json_lines(path: Path, stream: Peekable) -> Iterator[list[Row]]:
    """Yield the rows of a file with a JSON object on each line.

    A block of lines is parsed at once, as one array; line by line if that fails or if it is not
    sure that the result is the same. A file that is one array instead is read as by `_json`.
    """
    if stream.peek(_HEAD)[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _json(path, stream)
        return
    number = offset = 0
    size = _SMALL_BLOCK
    while lines := stream.readlines(size):
        rows = _at_once(lines)
        if rows is None:
            yield from _line_by_line(path, lines, number, offset)
        else:
            yield rows
        length = sum(map(len, lines))
        # A block is in memory several times while it is parsed: a small one where lines are long.
        size = _BLOCK if length < len(lines) * _SMALL_BLOCK // 4 else _SMALL_BLOCK
        number, offset = number + len(lines), offset + length


def _line_by_line(
    path: Path, lines: Iterable[bytes], number: int, offset: int
) -> Iterator[list[Row]]:
    """Yield the rows of some lines; number, offset: how many lines and bytes come before them."""
    rows: list[Row] = []
    try:
        for raw in lines:
            number += 1
            line = decoded(path, raw, number, offset)
            offset += len(raw)
            if line.strip():
                rows.append(_row(path, _parse(path, line, number), f"line {number}", "line"))
    except ValueError:
        # The rows before the error are yielded first, since the caller may need no more than these.
        if rows:
            yield rows
        raise
    if rows:
        yield rows


def _at_once(lines: list[bytes]) -> list[Row] | None:
    """The rows of some lines of JSON if every line is one object; None where that is not sure."""
    if not all(line.startswith(b"{") and line.rstrip().endswith(b"}") for line in lines):
        return None
    block = b",".join(lines)
    try:
        rows = json.loads(b"[" + block + b"]")
        if len(rows) != len(lines) or not all(type(row) is dict for row in rows):
            return None
        # A key that stands more often than rows have it may be twice in one of them, of which the
        # parser alone keeps the last.
        rows_with = Counter(itertools.chain.from_iterable(rows))
        counts = ((block.count(_in_file(key)), rows) for key, rows in rows_with.items())
        if len(rows_with) > _MANY_KEYS or any(count > rows for count, rows in counts):
            return json.loads(b"[" + block + b"]", object_pairs_hook=_object)
        return rows
    except (ValueError, RecursionError):
        return None


def _in_file(key: str) -> bytes:
    """A key as a file of JSON has it."""
    return json.dumps(key, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _json(path: Path, stream: Peekable) -> Iterator[Any]:
    """Yield the rows of a .json file.

    It is an array of objects or of strings, a single object (equally long columns, or a form that
    pandas writes), or one object per line, since many such archives are named .json.
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
        yield _columns(path, value)
        return
    if not isinstance(value, list):
        raise ValueError(
            f"data.source = '{path}': holds a JSON {_kind(value)}; it must hold an array of "
            "objects."
        )
    for start in range(0, len(value), ROWS_OF_A_BATCH):
        rows = enumerate(value[start : start + ROWS_OF_A_BATCH], start)
        yield [_row(path, row, f"entry {index} of the array", "entry") for index, row in rows]


def _rest_of_json_lines(path: Path, row: Row, lines: Iterator[tuple[int, str]]) -> Iterator[Batch]:
    rest = ((n, line) for n, line in lines if line.strip())
    second = next(rest, None)
    if second is None and row and all(isinstance(v, list | dict) for v in row.values()):
        yield _columns(path, row)
        return
    yield [row]
    following = itertools.chain([] if second is None else [second], rest)
    while group := list(itertools.islice(following, ROWS_OF_A_BATCH)):
        yield from _parsed(path, group)


def _parsed(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[list[Row]]:
    """Yield the rows of some numbered lines, those before an error first."""
    rows: list[Row] = []
    try:
        for number, line in lines:
            rows.append(_row(path, _parse(path, line, number), f"line {number}", "line"))
    except ValueError:
        if rows:
            yield rows
        raise
    yield rows


def _columns(path: Path, table: Row) -> Batch:
    """The rows in a single object: columns as lists, or what `DataFrame.to_json` writes."""
    values = list(table.values())
    batch: Batch | None = None
    if {"columns", "data"} <= set(table) <= {"columns", "index", "data"} and _all(list, values):
        batch = _split_frame(table["columns"], table["data"])
    elif set(table) == {"schema", "data"} and _all(dict, table["data"]):
        batch = table["data"]
    elif _all(dict, values) and _is_frame(table, values):
        # A frame by columns, or by rows (orient index); which, its row numbers say.
        batch = values
        if _numbers(values[0]):
            rows = zip(*(column.values() for column in values), strict=True)
            batch = [dict(zip(table, row, strict=True)) for row in rows]
    elif values and _all(list, values) and len(set(map(len, values))) == 1:
        batch = dict(table)
    if batch is None:
        raise ValueError(
            f"data.source = '{path}': holds one JSON object whose values are not equally long "
            "columns; give an array of objects."
        )
    return batch


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _split_frame(names: list[Any], rows: list[Any]) -> list[Row] | None:
    """What `to_json(orient="split")` writes; None where it is no table."""
    columns = list(map(str, names))
    if len(set(columns)) < len(columns):
        return None
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        return None
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _is_frame(table: Row, values: list[Row]) -> bool:
    """Whether all values have the same keys, and of these and the names one are row numbers."""
    alike = bool(values) and all(value and list(value) == list(values[0]) for value in values)
    return alike and _numbers(values[0]) != _numbers(table)


def _numbers(names: Iterable[str]) -> bool:
    return all(name.removeprefix("-").isdecimal() for name in names)


def _kind(value: object) -> str:
    names = {list: "array", dict: "object", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _paragraphs(path: Path, stream: Peekable) -> Iterator[Columns]:
    """Yield the blocks of lines that are separated by empty lines."""
    block: list[str] = []
    texts: list[str] = []
    for _, line in _lines(path, stream):
        line = line.removesuffix("\n").removesuffix("\r")
        if line.strip():
            block.append(line)
        elif block:
            texts.append("\n".join(block))
            block = []
            if len(texts) == ROWS_OF_A_BATCH:
                yield {"text": texts}
                texts = []
    if block:
        texts.append("\n".join(block))
    if texts:
        yield {"text": texts}


def _parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Columns]:
    if bad := containers.problem(containers.head_of(path)):
        raise ValueError(f"data.source = '{path}': {bad}.")
    try:
        # Without a buffer a column of a whole row group, which may be all of a file, is in memory.
        file = pq.ParquetFile(path, page_checksum_verification=True, buffer_size=_BLOCK)
        names = file.schema_arrow.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(
                f"data.source = '{path}': has two columns called {twice[0]!r}; name every column "
                "once."
            )
        chosen = needed(names, columns, optional)
        escaped = b"jaxloop.escaped" in (file.metadata.metadata or {})
        labels = class_names((file.schema_arrow.metadata or {}).get(b"huggingface"))
        for batch in file.iter_batches(_rows_at_once(file, chosen), columns=chosen):
            table = {}
            for i, name in enumerate(batch.schema.names):
                values = _values(path, batch.column(i), name, escaped)
                table[name] = named(values, labels[name]) if name in labels else values
            yield table
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"data.source = '{path}': cannot be read as parquet "
            f"({str(error).splitlines()[0].rstrip('.')})."
        ) from error


def _rows_at_once(file: pq.ParquetFile, columns: Sequence[str]) -> int:
    """How many rows of a file are read at once: few where they hold whole documents.

    The first rows tell how long rows are. What the file's metadata says of a column counts its
    repeated values once.
    """
    head = next(file.iter_batches(_HEAD_ROWS, columns=columns), None)
    if head is None or not head.num_rows:
        return ROWS_OF_A_BATCH
    return max(1, min(ROWS_OF_A_BATCH, _BLOCK * head.num_rows // max(1, head.nbytes)))


def class_names(metadata: bytes | None) -> dict[str, list[str]]:
    """Return the names of the classes of each column that `datasets` wrote as a ClassLabel.

    Args:
        metadata: what `datasets` writes into a parquet file's metadata.
    """
    try:
        features: Mapping[str, Any] = (
            json.loads(metadata or b"{}").get("info", {}).get("features", {})
        )
    except ValueError:
        return {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }


def named(values: Sequence[Any], names: Sequence[str]) -> list[Any]:
    """Return class numbers by their names; -1 is how `datasets` writes that there is none."""
    texts: list[Any] = []
    for value in values:
        if value == -1:
            texts.append(None)
        elif isinstance(value, int) and 0 <= value < len(names):
            texts.append(names[value])
        else:
            texts.append(value)
    return texts


def _values(path: Path, column: pa.Array, name: str, escaped: bool) -> list[Any]:
    try:
        values = column.to_pylist()
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            values = [None if v is None else v.decode() for v in values]
    except UnicodeDecodeError:
        raise ValueError(f"data.source = '{path}': column {name!r} is not UTF-8.") from None
    return [unescape(v) if isinstance(v, str) else v for v in values] if escaped else values
