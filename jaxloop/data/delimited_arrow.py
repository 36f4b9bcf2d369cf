"""Rows of csv and tsv files by Arrow, where it reads them exactly as the csv module would."""

from codecs import BOM_UTF8
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc

from jaxloop.data.delimited_rows import FEW_LINES, Buffer, Table, swallows


class ArrowRows(NamedTuple):
    """What Arrow has read of a block: its first `size` bytes, which are `lines` lines."""

    rows: pa.Table
    size: int
    lines: int


def read_block(table: Table, block: Buffer, wanted: Sequence[str]) -> ArrowRows | None:
    """Return the rows that end in a block, of the wanted columns at least.

    None where Arrow might not read them exactly as the csv module would.
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
    if table.quoted:
        clear = _well_quoted(bytes_N, marks, ord(table.delimiter))
    else:
        clear = bool((np.diff(marks) > 1).all())
    if not clear:
        return None
    whole = pa.py_buffer(block[: len(bytes_N)])
    rows = _read_by_arrow(table, whole, wanted)
    if rows is None:
        return None
    # Most blocks have as many lines as rows: no cell has a line end, so none swallowed other rows.
    if table.quoted and lines > rows.num_rows:
        line_ends = {name: _line_ends(rows.column(name)) for name in wanted}
        inside = sum(map(len, line_ends.values()))
        if len(wanted) < len(table.columns) and lines > rows.num_rows + inside:
            return read_block(table, memoryview(whole), table.columns)
        if any(_has_swallowed(table, rows.column(name), at) for name, at in line_ends.items()):
            return None
    return ArrowRows(rows, len(bytes_N), lines)


def _read_by_arrow(table: Table, block: pa.Buffer, wanted: Sequence[str]) -> pa.Table | None:
    # All of it is looked at, also in columns that are not wanted.
    offsets = pa.py_buffer(np.array([0, block.size], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, offsets, block).validate(full=True)
        return pc.read_csv(
            pa.BufferReader(block),
            read_options=pc.ReadOptions(
                column_names=table.columns, block_size=block.size + 1, use_threads=False
            ),
            parse_options=pc.ParseOptions(
                delimiter=table.delimiter,
                quote_char='"' if table.quoted else False,
                newlines_in_values=table.quoted,
            ),
            convert_options=pc.ConvertOptions(
                column_types=dict.fromkeys(table.columns, pa.string()),
                strings_can_be_null=False,
                check_utf8=False,
                include_columns=wanted,
            ),
        )
    except pa.ArrowException:
        return None


def _has_swallowed(table: Table, column: pa.ChunkedArray, line_ends: np.ndarray) -> bool:
    """Whether a cell of the column looks like many rows; `line_ends`: the row of each in it."""
    if not len(line_ends):
        return False
    several = np.flatnonzero(np.bincount(line_ends) > FEW_LINES)
    return any(swallows(table, column[int(row)].as_py()) for row in several)


def _lines(table: Table, bytes_N: np.ndarray) -> int | None:
    """The number of line ends; None where the block has other controls than Arrow can read.

    These are NUL, U+001A, and carriage returns other than before every line end.
    """
    lines = int(np.count_nonzero(bytes_N == 10))
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


def _line_ends(column: pa.ChunkedArray) -> np.ndarray:
    """The row of every line end in a column of texts, int64."""
    texts = column.combine_chunks()
    _, offsets, data = texts.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.int64)
    offset_N = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    bytes_N = np.frombuffer(data, np.uint8)[offset_N[0] : offset_N[-1]]
    places = np.flatnonzero(bytes_N == 10) + offset_N[0]
    return np.searchsorted(offset_N, places, side="right") - 1


def _well_quoted(bytes_N: np.ndarray, marks: np.ndarray, delimiter: int) -> bool:
    """Whether every quotation mark opens a cell, closes one, or is doubled inside one.

    `marks` are their places.
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
