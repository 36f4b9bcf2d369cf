"""Rows of csv and tsv files: exactly as the file has them, or refused with what was found and the
option that reads it.

Blocks of whole rows are read by Arrow where their bytes show that it reads them as RFC 4180 has it:
every quotation mark opens a cell, closes one, or is doubled inside one, and lines end in one way.
Every other block goes through the csv module, which is strict and slower by ten times, and knows
the line of what it refuses.
"""

import csv
import dataclasses
import io
import itertools
import re
import sys
import threading
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from jaxloop.data.containers import DAMAGE

OPTIONS = ("no_header", "quotes", "no_quotes", "backslash", "spaces", "short_rows")
_BLOCK = 1 << 22
_ROWS = 1024
_SAMPLE = 1 << 16
_MANY_LINES = (
    500  # in one cell: rows are seen among them even if some of their texts hold delimiters
)
_FEW_LINES = 4  # between the first and the last of a cell: fewer may look like rows by chance
_CSV_LOCK = threading.Lock()
_NOTE = re.compile(r"sep=([,;|\t])\r?\n")


@dataclass(frozen=True)
class Dialect:
    """How cells are told apart.

    delimiter: one character; none: by the lines themselves, where only one fits, else a comma
    (.csv) or a tab (.tsv). options: of `OPTIONS`. `no_header`: the first line is a row, columns are
    called 0, 1, …; `quotes`, `no_quotes`: quotation marks enclose cells, or are text (neither: text
    where tabs part the cells, else they enclose); `backslash`: a backslash takes the meaning from
    what follows; `spaces`: spaces after a delimiter are no text; `short_rows`: cells missing at a
    row's end have no value. Raises ValueError for what is none of these.
    """

    delimiter: str | None = None
    options: tuple[str, ...] = ()

    def __post_init__(self):
        named = {
            "tab": "\t",
            "\\t": "\t",
            "comma": ",",
            "semicolon": ";",
            "pipe": "|",
            "space": " ",
        }
        object.__setattr__(self, "delimiter", named.get(self.delimiter, self.delimiter))
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in '"\r\n\\\x1a' or ord(self.delimiter) > 127
        ):
            raise ValueError(
                f"data.delimiter = {self.delimiter!r} is not allowed: one ASCII character other "
                "than a quotation mark, or tab."
            )
        if unknown := [o for o in self.options if o not in OPTIONS]:
            raise ValueError(
                f"data.csv_options has {unknown[0]!r}, which is none of {', '.join(OPTIONS)}."
            )
        if {"quotes", "no_quotes"} <= set(self.options):
            raise ValueError("data.csv_options has both 'quotes' and 'no_quotes': one of them.")


@dataclass(frozen=True)
class _Table:
    """One file: what its rows are held to; columns are known once the header is read."""

    path: Path
    delimiter: str
    quoted: bool
    options: frozenset[str]
    row_end: str
    columns: tuple[str, ...] = ()

    def refuse(self, problem: str):
        raise ValueError(f"data.source = '{self.path}': {problem}.")


def in_section(message: str, section: str) -> str:
    """A refusal, its fields and flags being those of another section of a config than `data`."""
    message = re.sub(r"^data\.(delimiter|csv_options)\b", rf"config.{section}.\1", message)
    return message.replace("--config.data.", f"--config.{section}.")


def flag(option: str) -> str:
    """What to write on the command line for an option."""
    return f"--config.data.csv_options={option}"


def batches(
    path: Path,
    stream: IO[bytes],
    *,
    tabs: bool,
    dialect: Dialect,
    columns: Sequence[str] | None = None,
) -> Iterator[dict[str, list[str | None]]]:
    """Columns of some rows at a time, in the order of the file.

    tabs: whether the file is called .tsv; columns: those that are needed, if it has them all (the
    others may come too). Rows end as the header line does, with CR LF or with LF alone, or all with
    CR LF under a header that does not; any other carriage return is text. Raises ValueError, one
    sentence with the line, for rows that are not those of one table.
    """
    table = _table(path, stream.peek(_SAMPLE)[:_SAMPLE], tabs, dialect)
    place = _Place()
    blocks = _blocks(table, stream, place)
    first = next(blocks, b"")
    table = _with_columns(table, first, place)
    if not table.columns:
        return
    wanted = (
        [c for c in table.columns if c in columns]
        if columns and set(columns) <= set(table.columns)
        else table.columns
    )

    def read(block):
        """What Arrow makes of a block, `place` then being behind it, or the block itself."""
        fast = _fast(table, block, wanted)
        if fast is None:
            return block
        place.line, place.offset = place.line + fast.lines, place.offset + fast.size
        return fast.rows

    def read_next():
        block = next(blocks, None)
        return None if block is None else read(block)

    # Arrow reads a block in a thread while the texts of the one before are made.
    with ThreadPoolExecutor(1) as beside:
        found = read(first[place.offset :])
        while found is not None:
            if isinstance(found, pa.Table):
                coming = beside.submit(read_next)
                if found.num_rows:
                    yield {name: found.column(name).to_pylist() for name in wanted}
                found = coming.result()
            else:
                yield from _slow(
                    table, itertools.chain([found], blocks), place, place.offset + len(found)
                )
                found = read_next()


@dataclass
class _Place:
    """How far a file is read: lines and bytes, and the lines of the row that is being read."""

    line: int = 0
    offset: int = 0
    row: list[str] = dataclasses.field(default_factory=list)


def _table(path, head, tabs, dialect):
    lines = head.decode("utf-8", "ignore").removeprefix("\ufeff")
    cut = lines.rfind("\n") + 1
    lines = lines[:cut] if cut and len(head) == _SAMPLE else lines
    own = "\t" if tabs else ","
    # Spreadsheets note the delimiter in a first line of its own.
    noted = _NOTE.match(lines)
    delimiter = dialect.delimiter or (noted[1] if noted else _sniffed(lines, own))
    options = frozenset(dialect.options)
    quoted = "quotes" in options or (delimiter != "\t" and "no_quotes" not in options)
    first, both, ends = lines.split("\n", 1)[0], lines.count("\r\n"), lines.count("\n")
    table = _Table(
        path,
        delimiter,
        quoted,
        options,
        "\r\n" if ends and (first.endswith("\r") or 0 < both == ends - 1) else "\n",
    )
    if not ends and len(lines.split("\r")) > 2:
        table.refuse(
            "its lines end with carriage returns alone, as on old Macs; save it with ordinary "
            "line ends first"
        )
    return table


def _sniffed(lines, own):
    """The file's own delimiter, or the one other that parts every line of the sample into equally
    many cells, where its own does not.
    """
    widths = {mark: _widths(lines, mark) for mark in dict.fromkeys((own, ",", ";", "\t", "|"))}
    if widths[own] and min(widths[own]) > 1 and len(widths[own]) == 1:
        return own
    fitting = [
        mark for mark, found in widths.items() if mark != own and len(found) == 1 and min(found) > 1
    ]
    return fitting[0] if len(fitting) == 1 else own


def _widths(lines, mark):
    """How many cells the rows have; empty where there are no two rows or they are no table."""
    quoting = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
    try:
        rows = [
            len(row)
            for row in itertools.islice(
                csv.reader(io.StringIO(lines), delimiter=mark, quoting=quoting), 200
            )
            if row
        ]
    except csv.Error:
        return set()
    # The sample may end inside a quoted cell, so its last row does not count.
    return set(rows[:-1] if len(rows) > 2 else rows) if len(rows) > 1 else set()


def _blocks(table, stream, place):
    """Pieces of the file from `place` on that end where a line ends. They lie in one buffer: a
    piece is gone when the next is asked for.
    """
    buffer, held, start = bytearray(_BLOCK), 0, 0
    while True:
        used = place.offset - start
        buffer[: held - used] = buffer[used:held]
        held, start, cut = held - used, place.offset, 0
        while not cut:
            if held == len(buffer):
                buffer = buffer + bytearray(len(buffer))
            more = _fill(table, stream, memoryview(buffer)[held:])
            held += more
            cut = buffer.rfind(b"\n", 0, held) + 1 if held == len(buffer) else held
            if not held:
                return
        yield memoryview(buffer)[:cut]


def _fill(table, stream, room):
    """How many bytes of the stream were put into `room`: all that it holds, except at the end of
    the file.
    """
    count = 0
    try:
        while count < len(room) and (more := stream.readinto(room[count:])):
            count += more
    except DAMAGE as error:
        table.refuse(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    return count


def _with_columns(table, block, place):
    """The table with the names of its columns; `place` is then behind the header line."""
    at = dataclasses.replace(place)
    names = next(
        (row for row, _ in _rows(table, [block], at) if row and not _is_note(table, row)), []
    )
    if "no_header" in table.options:
        return dataclasses.replace(table, columns=tuple(map(str, range(len(names)))))
    place.line, place.offset = at.line, at.offset
    # pandas' default writes the row numbers under no name: such columns are called as pandas calls
    # them.
    names = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(names)]
    if twice := [name for name in names if names.count(name) > 1]:
        known = (
            f"; a file without a header is read with {flag('no_header')}"
            if any(map(_like_data, names))
            else ""
        )
        table.refuse(f"the header line has {twice[0]!r} twice; name every column once{known}")
    return dataclasses.replace(table, columns=tuple(names))


def _is_note(table, row):
    return row in ([f"sep={table.delimiter}"], ["sep=", ""])


def _like_data(name):
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", name)) or len(name) > 60


def hint(columns: tuple[str, ...] | list[str]) -> str:
    """What may be the matter with a file whose header has these names and not the one asked for;
    empty where nothing comes to mind.
    """
    names = list(map(str, columns))
    if len(names) == 1 and (marks := [m for m in ";\t|," if m in names[0]]):
        said = "tab" if marks[0] == "\t" else marks[0]
        return (
            f"; its first line looks as if {said!r} parted the cells: "
            f"--config.data.delimiter={said}"
        )
    if any(n.startswith('"') and n.endswith('"') and len(n) > 1 for n in names):
        return f"; its names stand in quotation marks, which {flag('quotes')} takes off"
    if any(n != n.lstrip() for n in names):
        return f"; some begin with a space, which {flag('spaces')} takes off"
    if any(map(_like_data, names)):
        return (
            f"; a file without a header is read with {flag('no_header')}, its columns are then "
            "called 0, 1, …"
        )
    return ""


# ---- the fast way
# -----------------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """What Arrow has read of a block: its first `size` bytes, which are `lines` lines."""

    rows: pa.Table
    size: int
    lines: int


def _fast(table, block, wanted):
    """The rows that end in a block, of the wanted columns at least, where Arrow reads them exactly
    as the csv module would; None where it might not.
    """
    if {"backslash", "spaces", "short_rows"} & table.options or block[: len(BOM_UTF8)] == BOM_UTF8:
        return None
    bytes_N = np.frombuffer(block, np.uint8)
    marks = np.flatnonzero(bytes_N == 34)
    if table.quoted and len(marks) % 2:
        # The last row goes on in the next block.
        ends = np.flatnonzero(bytes_N == 10)
        outside = ends[np.searchsorted(marks, ends) % 2 == 0]
        bytes_N = bytes_N[: outside[-1] + 1 if len(outside) else 0]
        marks = marks[: np.searchsorted(marks, len(bytes_N))]
    lines = _lines(table, bytes_N)
    if lines is None or not len(bytes_N):
        return None
    if not (
        _well_quoted(bytes_N, marks, ord(table.delimiter))
        if table.quoted
        else (np.diff(marks) > 1).all()
    ):
        return None
    # All of it is looked at, also in columns that are not wanted.
    convert = dict(
        column_types=dict.fromkeys(table.columns, pa.string()),
        strings_can_be_null=False,
        check_utf8=False,
    )
    block = pa.py_buffer(block[: len(bytes_N)])
    try:
        pa.LargeStringArray.from_buffers(
            1, pa.py_buffer(np.array([0, len(bytes_N)])), block
        ).validate(full=True)
        found = pc.read_csv(
            pa.BufferReader(block),
            read_options=pc.ReadOptions(
                column_names=table.columns, block_size=len(bytes_N) + 1, use_threads=False
            ),
            parse_options=pc.ParseOptions(
                delimiter=table.delimiter,
                quote_char='"' if table.quoted else False,
                newlines_in_values=table.quoted,
            ),
            convert_options=pc.ConvertOptions(**convert, include_columns=wanted),
        )
    except pa.ArrowException:
        return None
    # Most blocks have as many lines as rows: no cell has a line end, so none swallowed other rows.
    if table.quoted and lines > found.num_rows:
        ends = [_line_ends(found.column(name)) for name in wanted]
        if len(wanted) < len(table.columns) and lines > found.num_rows + sum(
            len(each) for each in ends
        ):
            return _fast(table, memoryview(block), table.columns)
        for name, each in zip(wanted, ends, strict=True):
            several = np.flatnonzero(np.bincount(each) > _FEW_LINES) if len(each) else ()
            if any(_swallows(table, found.column(name)[int(row)].as_py()) for row in several):
                return None
    return _Read(found, len(bytes_N), lines)


def _lines(table, bytes_N):
    """The number of line ends; None where there are NUL, U+001A, or carriage returns other than
    before every line end.
    """
    lines = np.count_nonzero(bytes_N == 10)
    controls = bytes_N < 32
    if np.count_nonzero(controls) == lines:
        return lines
    at = np.flatnonzero(controls)
    counts = np.bincount(bytes_N[at], minlength=32)
    if counts[0] or counts[26]:
        return None
    if counts[13] and (
        table.row_end == "\n"
        or counts[13] != lines
        or bytes_N[-1] == 13
        or (bytes_N[at[bytes_N[at] == 13] + 1] != 10).any()
    ):
        return None
    return lines


def _line_ends(column):
    """The row of every line end in a column of texts, int64."""
    texts = column.combine_chunks()
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.int64)
    offset_N = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    places = (
        np.flatnonzero(np.frombuffer(data, np.uint8)[offset_N[0] : offset_N[-1]] == 10)
        + offset_N[0]
    )
    return np.searchsorted(offset_N, places, side="right") - 1


def _well_quoted(bytes_N, marks, delimiter):
    """Whether every quotation mark (at the places `marks`) opens a cell, closes one, or is doubled
    inside one.
    """
    opening, closing = marks[0::2], marks[1::2]
    edges = np.array([10, delimiter], np.uint8)
    before = bytes_N[np.maximum(opening - 1, 0)]
    doubled = np.zeros(len(opening), bool)
    doubled[1:] = opening[1:] == closing[:-1] + 1
    after = bytes_N[np.minimum(closing + 1, len(bytes_N) - 1)]
    followed = np.zeros(len(closing), bool)
    followed[:-1] = doubled[1:]
    starts = doubled | (opening == 0) | np.isin(before, edges)
    ends = followed | (closing == len(bytes_N) - 1) | np.isin(after, edges) | (after == 13)
    return bool(starts.all() and ends.all())


def _swallows(table, cell):
    """Whether a cell looks as if a lone quotation mark had made one cell of many rows."""
    if not table.quoted or "quotes" in table.options or "\n" not in cell:
        return False
    inside, parts = cell.split("\n")[1:-1], len(table.columns) - 1
    alike = sum(line.count(table.delimiter) == parts for line in inside)
    if len(inside) > _MANY_LINES:
        return 2 * alike > len(inside)
    return parts > 0 and len(inside) >= _FEW_LINES and alike == len(inside)


# ---- the strict way
# ---------------------------------------------------------------------------------------------------


def _slow(table, blocks, place, until):
    """Rows through the csv module, some at a time, up to the first that ends at byte `until` of the
    file or behind it.
    """
    rows, width = _rows(table, blocks, place), len(table.columns)
    while place.offset < until:
        batch, problem = [], None
        try:
            for row, start in itertools.islice(rows, _ROWS):
                if row:
                    batch.append(
                        _cells(table, row, start, place)
                        if len(row) != width or any(map(_doubtful, row))
                        else row
                    )
                if place.offset >= until:
                    break
        except ValueError as error:
            problem = error
        if batch:
            yield dict(zip(table.columns, map(list, zip(*batch, strict=True)), strict=True))
        if problem is not None:
            raise problem


def _doubtful(cell):
    return "\n" in cell or '"' in cell


def _cells(table, row, start, place):
    """A row of as many cells as there are columns. Refuses one of other length, and cells that show
    that the file is to be read otherwise.
    """
    width, where = len(table.columns), f"the row that ends at line {place.line}"
    if len(row) < width and "short_rows" in table.options:
        row = [*row, *[None] * (width - len(row))]
    if len(row) != width:
        table.refuse(f"{where} has {len(row)} cells, the header {width}{_why(table, row)}")
    for cell in filter(None, row):
        if _swallows(table, cell):
            table.refuse(
                f"a quotation mark in the row that begins at line {start} makes one cell of "
                f"{cell.count(chr(10)) + 1:,} lines; "
                f"if it is text read it with {flag('no_quotes')}, if the cell is that long with "
                f"{flag('quotes')}"
            )
        # A cell that is not quoted stands in the file as it is.
        spaced = (
            table.quoted
            and "spaces" not in table.options
            and re.fullmatch(r' +".*"', cell, re.DOTALL)
        )
        if spaced and f"{table.delimiter}{cell}" in "".join(place.row):
            table.refuse(
                f"{where} has a space before a quotation mark, which {flag('spaces')} takes off"
            )
        if (
            not table.quoted
            and "no_quotes" not in table.options
            and re.fullmatch(r'"(?:[^"]|"")*""(?:[^"]|"")*"', cell)
        ):
            table.refuse(
                f"{where} has a cell in quotation marks; they enclose cells with "
                f"{flag('quotes')}, and are text with {flag('no_quotes')}"
            )
    return row


def _why(table, row):
    """What may be the matter with a row of other length than the header's, and the option that
    reads it.
    """
    if any(cell.startswith(' "') for cell in row) and table.quoted:
        return f"; a space before a quotation mark is taken off with {flag('spaces')}"
    if any('\\"' in cell or cell.endswith("\\") for cell in row):
        return f"; marks escaped by a backslash are read with {flag('backslash')}"
    if not table.quoted and any(cell.startswith('"') or cell.endswith('"') for cell in row):
        return f"; cells in quotation marks are read with {flag('quotes')}"
    if len(row) < len(table.columns):
        return f"; rows that lack cells at their end are read with {flag('short_rows')}"
    return (
        f"; a cell that holds a {table.delimiter!r} must stand in quotation marks"
        if table.quoted
        else ""
    )


def _rows(table, blocks, place):
    """(cells, number of its first line) of each row; [] for an empty line."""
    options = dict(
        delimiter=table.delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE,
    )
    options |= dict(escapechar="\\") if "backslash" in table.options else {}
    reader = csv.reader(
        _protected(table, blocks, place), skipinitialspace="spaces" in table.options, **options
    )
    while True:
        place.row.clear()
        start = place.line + 1
        # The limit on a cell's size is one number for the whole process: raised for this row, then
        # put back.
        with _CSV_LOCK:
            limit = csv.field_size_limit(sys.maxsize)
            try:
                row = next(reader, None)
            except csv.Error as error:
                problem = error
            else:
                problem = None
            finally:
                csv.field_size_limit(limit)
        if problem is not None:
            table.refuse(_malformed(table, str(problem), start, place))
        if row is None:
            return
        yield (
            [
                cell.replace("\x1ar", "\r").replace("\x1az", "\x1a") if "\x1a" in cell else cell
                for cell in row
            ],
            start,
        )


def _malformed(table, message, start, place):
    text = "".join(place.row)
    known = ""
    if '\\"' in text and "backslash" not in table.options:
        known = f"; quotation marks escaped by a backslash are read with {flag('backslash')}"
    elif re.search(re.escape(table.delimiter) + ' +"', text) and "spaces" not in table.options:
        known = f"; a space before a quotation mark is taken off with {flag('spaces')}"
    if "unexpected end" in message:
        known = known or f"; if it is text read it with {flag('no_quotes')}"
        return (
            f"the row that begins at line {start} is not well-formed (a quotation mark opens a "
            f"cell that never ends){known}"
        )
    return f"line {place.line} is not well-formed ({message}){known}"


def _protected(table, blocks, place):
    """Lines of UTF-8 text. The csv module ends rows at carriage returns: they travel as U+001A "r",
    and U+001A itself as U+001A "z".
    """
    for block in blocks:
        for raw in io.BytesIO(block):
            place.line += 1
            line = decoded(table.path, raw, place.line, place.offset)
            place.offset += len(raw)
            place.row.append(line)
            end = (
                table.row_end
                if line.endswith(table.row_end)
                else "\n"
                if line.endswith("\n")
                else ""
            )
            body = line.removesuffix(end)
            yield body.replace("\x1a", "\x1az").replace("\r", "\x1ar") + end


def decoded(path: Path, raw: bytes, line: int, offset: int) -> str:
    """A line of a UTF-8 file. Raises ValueError with the line and the byte, `offset` being that of
    the line's first.
    """
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where = f"line {line}, byte {offset + error.start} (0x{raw[error.start]:02x})"
        raise ValueError(
            f"data.source = '{path}': not UTF-8 at {where}; convert the file to UTF-8 first."
        ) from None
