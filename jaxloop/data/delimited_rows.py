"""Reads csv and tsv files with the csv module, strictly; errors name the line."""

import csv
import io
import itertools
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from jaxloop.data.dialect import flag

Buffer = bytes | memoryview

_ROWS = 1024
# In one cell: rows are seen among them even if some of their texts hold delimiters.
_MANY_LINES = 500
# Between the first and the last of a cell: fewer may look like rows by chance.
FEW_LINES = 4
_CSV_LOCK = threading.Lock()


@dataclass(frozen=True)
class Table:
    """One file and how its rows must look; `columns` is empty until the header is read."""

    path: Path
    delimiter: str
    quoted: bool
    options: frozenset[str]
    row_end: str
    columns: tuple[str, ...] = ()

    def refuse(self, problem: str) -> NoReturn:
        """Raise ValueError with the problem."""
        raise ValueError(f"data.source = '{self.path}': {problem}.")


@dataclass
class Place:
    """How far a file has been read: lines, bytes, and the lines of the current row."""

    line: int = 0
    offset: int = 0
    row: list[str] = field(default_factory=list)


def swallows(table: Table, cell: str) -> bool:
    """Return whether a cell looks as if an unclosed quotation mark had joined many rows in it."""
    if not table.quoted or "quotes" in table.options or "\n" not in cell:
        return False
    inside, parts = cell.split("\n")[1:-1], len(table.columns) - 1
    alike = sum(line.count(table.delimiter) == parts for line in inside)
    if len(inside) > _MANY_LINES:
        return 2 * alike > len(inside)
    return parts > 0 and len(inside) >= FEW_LINES and alike == len(inside)


def strict_batches(
    table: Table, blocks: Iterable[Buffer], place: Place, until: int
) -> Iterator[dict[str, list[str | None]]]:
    """Yield rows in batches, read with the csv module.

    The last row is the first one that ends at or behind byte `until` of the file.
    """
    rows, width = rows_of(table, blocks, place), len(table.columns)
    while place.offset < until:
        batch: list[list[str | None]] = []
        problem: ValueError | None = None
        try:
            for row, start in itertools.islice(rows, _ROWS):
                if row:
                    doubtful = len(row) != width or any(map(_doubtful, row))
                    batch.append(_cells(table, row, start, place) if doubtful else [*row])
                if place.offset >= until:
                    break
        except ValueError as error:
            problem = error
        if batch:
            yield dict(zip(table.columns, map(list, zip(*batch, strict=True)), strict=True))
        if problem is not None:
            raise problem


def _doubtful(cell: str) -> bool:
    return "\n" in cell or '"' in cell


def _cells(table: Table, row: list[str], start: int, place: Place) -> list[str | None]:
    """A row with as many cells as there are columns.

    Raises ValueError for another number of cells, and for cells that show that the file must be
    read with another option.
    """
    width, where = len(table.columns), f"the row that ends at line {place.line}"
    missing = width - len(row) if "short_rows" in table.options else 0
    if len(row) != width and missing <= 0:
        table.refuse(f"{where} has {len(row)} cells, the header {width}{_why(table, row)}")
    for cell in filter(None, row):
        _check_cell(table, cell, start, place, where)
    return [*row, *[None] * missing]


def _check_cell(table: Table, cell: str, start: int, place: Place, where: str) -> None:
    if swallows(table, cell):
        table.refuse(
            f"a quotation mark in the row that begins at line {start} makes one cell of "
            f"{cell.count(chr(10)) + 1:,} lines; "
            f"if it is text read it with {flag('no_quotes')}, if the cell is that long with "
            f"{flag('quotes')}"
        )
    # A cell that is not quoted stands in the file as it is.
    strict_spaces = table.quoted and "spaces" not in table.options
    spaced = strict_spaces and re.fullmatch(r' +".*"', cell, re.DOTALL)
    if spaced and f"{table.delimiter}{cell}" in "".join(place.row):
        table.refuse(
            f"{where} has a space before a quotation mark, which {flag('spaces')} takes off"
        )
    unasked = not table.quoted and "no_quotes" not in table.options
    if unasked and re.fullmatch(r'"(?:[^"]|"")*""(?:[^"]|"")*"', cell):
        table.refuse(
            f"{where} has a cell in quotation marks; they enclose cells with "
            f"{flag('quotes')}, and are text with {flag('no_quotes')}"
        )


def _why(table: Table, row: list[str]) -> str:
    """A likely reason why a row has another number of cells than the header."""
    if any(cell.startswith(' "') for cell in row) and table.quoted:
        return f"; a space before a quotation mark is taken off with {flag('spaces')}"
    if any('\\"' in cell or cell.endswith("\\") for cell in row):
        return f"; marks escaped by a backslash are read with {flag('backslash')}"
    if not table.quoted and any(cell.startswith('"') or cell.endswith('"') for cell in row):
        return f"; cells in quotation marks are read with {flag('quotes')}"
    if len(row) < len(table.columns):
        return f"; rows that lack cells at their end are read with {flag('short_rows')}"
    if table.quoted:
        return f"; a cell that holds a {table.delimiter!r} must stand in quotation marks"
    return ""


def rows_of(
    table: Table, blocks: Iterable[Buffer], place: Place
) -> Iterator[tuple[list[str], int]]:
    """Yield (cells, number of its first line) of each row; [] for an empty line."""
    reader = csv.reader(
        _protected(table, blocks, place),
        delimiter=table.delimiter,
        strict=True,
        quoting=csv.QUOTE_MINIMAL if table.quoted else csv.QUOTE_NONE,
        escapechar="\\" if "backslash" in table.options else None,
        skipinitialspace="spaces" in table.options,
    )
    while True:
        place.row.clear()
        start = place.line + 1
        # The limit on a cell's size is one number for the whole process: raised for this row, then
        # put back.
        with _CSV_LOCK:
            limit = csv.field_size_limit(sys.maxsize)
            row, problem = None, ""
            try:
                row = next(reader, None)
            except csv.Error as error:
                problem = str(error) or "an error"
            finally:
                csv.field_size_limit(limit)
        if problem:
            table.refuse(_malformed(table, problem, start, place))
        if row is None:
            return
        yield list(map(_restored, row)), start


def _restored(cell: str) -> str:
    """A cell with the replacements of `_protected` undone."""
    if "\x1a" not in cell:
        return cell
    return cell.replace("\x1ar", "\r").replace("\x1az", "\x1a")


def _malformed(table: Table, message: str, start: int, place: Place) -> str:
    text = "".join(place.row)
    hint = ""
    if '\\"' in text and "backslash" not in table.options:
        hint = f"; quotation marks escaped by a backslash are read with {flag('backslash')}"
    elif re.search(re.escape(table.delimiter) + ' +"', text) and "spaces" not in table.options:
        hint = f"; a space before a quotation mark is taken off with {flag('spaces')}"
    if "unexpected end" in message:
        hint = hint or f"; if it is text read it with {flag('no_quotes')}"
        return (
            f"the row that begins at line {start} is not well-formed (a quotation mark opens a "
            f"cell that never ends){hint}"
        )
    return f"line {place.line} is not well-formed ({message}){hint}"


def _protected(table: Table, blocks: Iterable[Buffer], place: Place) -> Iterator[str]:
    """Yield lines of UTF-8 text in a form that the csv module reads correctly.

    The module would end rows at carriage returns, so these are replaced by U+001A "r", and U+001A
    itself by U+001A "z".
    """
    for block in blocks:
        for raw in io.BytesIO(block):
            place.line += 1
            line = decoded(table.path, raw, place.line, place.offset)
            place.offset += len(raw)
            place.row.append(line)
            end = table.row_end if line.endswith(table.row_end) else line[-1:]
            end = end if end.endswith("\n") else ""
            body = line.removesuffix(end)
            yield body.replace("\x1a", "\x1az").replace("\r", "\x1ar") + end


def decoded(path: Path, raw: bytes, line: int, offset: int) -> str:
    """Return a line of a UTF-8 file.

    Args:
        offset: the byte of the file at which the line begins.

    Raises:
        ValueError: the line is not UTF-8; with the line and the byte.
    """
    try:
        return raw.decode("utf-8-sig" if line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        where = f"line {line}, byte {offset + error.start} (0x{raw[error.start]:02x})"
        raise ValueError(
            f"data.source = '{path}': not UTF-8 at {where}; convert the file to UTF-8 first."
        ) from None
