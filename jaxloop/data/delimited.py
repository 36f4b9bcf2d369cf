"""Reads the rows of csv and tsv files exactly as the file has them, or refuses the file.

The error says what was found and which option reads it. Blocks of whole rows are read by Arrow
(`delimited_arrow.py`) if their bytes show that it reads them as RFC 4180 says: every quotation mark
opens a cell, closes one, or is doubled inside one, and all lines end in the same way. Every other
block goes through the csv module (`delimited_rows.py`), which is strict, ten times slower, and
knows the line of an error.
"""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from jaxloop.data import delimited_arrow
from jaxloop.data.batches import needed
from jaxloop.data.containers import DAMAGE, Peekable
from jaxloop.data.delimited_rows import Buffer, Place, Table, rows_of, strict_batches
from jaxloop.data.dialect import Dialect, flag, like_data

_BLOCK = 1 << 22
_SAMPLE = 1 << 16
_NOTE = re.compile(r"sep=([,;|\t])\r?\n")


def batches(
    path: Path,
    stream: Peekable,
    *,
    tabs: bool,
    dialect: Dialect,
    columns: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Iterator[dict[str, list[str | None]]]:
    """Yield columns of some rows at a time, in the order of the file.

    Rows end as the header line does, with CR LF or with LF alone, or all with CR LF under a header
    that does not; any other carriage return is text.

    Args:
        tabs: whether the file is called .tsv.
        columns: the columns that are needed, if the file has all of them (others may come too).
        optional: columns that are read too where the file has them.

    Raises:
        ValueError: in one sentence with the line: rows that are not those of one table.
    """
    table = _table(path, stream.peek(_SAMPLE)[:_SAMPLE], tabs, dialect)
    place = Place()
    blocks = _blocks(table, stream, place)
    first = next(blocks, b"")
    table = _with_columns(table, first, place)
    if not table.columns:
        return
    wanted = needed(table.columns, columns, optional)

    def read(block: Buffer) -> pa.Table | Buffer:
        """What Arrow makes of a block, `place` then being behind it, or the block itself."""
        fast = delimited_arrow.read_block(table, block, wanted)
        if fast is None:
            return block
        place.line, place.offset = place.line + fast.lines, place.offset + fast.size
        return fast.rows

    def read_next() -> pa.Table | Buffer | None:
        block = next(blocks, None)
        return None if block is None else read(block)

    # Arrow reads a block in a thread while the texts of the one before are made.
    with ThreadPoolExecutor(1) as thread:
        rows = read(first[place.offset :])
        while rows is not None:
            if isinstance(rows, pa.Table):
                coming = thread.submit(read_next)
                if rows.num_rows:
                    yield {name: rows.column(name).to_pylist() for name in wanted}
                rows = coming.result()
            else:
                rest = itertools.chain([rows], blocks)
                yield from strict_batches(table, rest, place, place.offset + len(rows))
                rows = read_next()


def _table(path: Path, head: bytes, tabs: bool, dialect: Dialect) -> Table:
    """The description of a file, found from its first bytes."""
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
    windows = ends and (first.endswith("\r") or 0 < both == ends - 1)
    table = Table(path, delimiter, quoted, options, "\r\n" if windows else "\n")
    if not ends and len(lines.split("\r")) > 2:
        table.refuse(
            "its lines end with carriage returns alone, as on old Macs; save it with ordinary "
            "line ends first"
        )
    return table


def _sniffed(lines: str, own: str) -> str:
    """The delimiter `own` of the file's kind, or the only other one that fits where it does not.

    A delimiter fits if it splits every line of the sample into equally many cells.
    """
    widths = {mark: _widths(lines, mark) for mark in dict.fromkeys((own, ",", ";", "\t", "|"))}
    if widths[own] and min(widths[own]) > 1 and len(widths[own]) == 1:
        return own
    fitting = []
    for mark, cells in widths.items():
        if mark != own and len(cells) == 1 and min(cells) > 1:
            fitting.append(mark)
    return fitting[0] if len(fitting) == 1 else own


def _widths(lines: str, mark: str) -> set[int]:
    """The numbers of cells that rows have; empty for fewer than two rows, or what is no table."""
    reader = csv.reader(
        io.StringIO(lines),
        delimiter=mark,
        quoting=csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL,
    )
    try:
        rows = [len(row) for row in itertools.islice(reader, 200) if row]
    except csv.Error:
        return set()
    # The sample may end inside a quoted cell, so its last row does not count.
    return set(rows[:-1] if len(rows) > 2 else rows) if len(rows) > 1 else set()


def _blocks(table: Table, stream: Peekable, place: Place) -> Iterator[memoryview]:
    """Yield pieces of the file from `place` on, each ending where a line ends.

    All pieces use the same buffer: a piece is overwritten when the next one is asked for.
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


def _fill(table: Table, stream: Peekable, room: memoryview) -> int:
    """Fill `room` from the stream and return the number of bytes.

    It is the size of `room`, except at the end of the file.
    """
    count = 0
    try:
        while count < len(room) and (more := stream.readinto(room[count:])):
            count += more
    except DAMAGE as error:
        table.refuse(f"cannot be read ({getattr(error, 'strerror', None) or error})")
    return count


def _with_columns(table: Table, block: Buffer, place: Place) -> Table:
    """The table with the names of its columns; `place` is then behind the header line."""
    at = dataclasses.replace(place)
    names: list[str] = []
    for row, _ in rows_of(table, [block], at):
        if row and not _is_note(table, row):
            names = row
            break
    if "no_header" in table.options:
        return dataclasses.replace(table, columns=tuple(map(str, range(len(names)))))
    place.line, place.offset = at.line, at.offset
    # pandas' default writes the row numbers under no name: such columns are called as pandas calls
    # them.
    names = [name if name.strip() else f"Unnamed: {i}" for i, name in enumerate(names)]
    if twice := [name for name in names if names.count(name) > 1]:
        hint = ""
        if any(map(like_data, names)):
            hint = f"; a file without a header is read with {flag('no_header')}"
        table.refuse(f"the header line has {twice[0]!r} twice; name every column once{hint}")
    return dataclasses.replace(table, columns=tuple(names))


def _is_note(table: Table, row: list[str]) -> bool:
    return row in ([f"sep={table.delimiter}"], ["sep=", ""])
