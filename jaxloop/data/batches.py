"""Types for rows that readers yield in batches, and small functions on them."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]
# {column: values}, all lists of equal length.
Columns = dict[str, list[Any]]
# Columns if all rows have the same columns, else a dict for each row.
Batch = Columns | list[Row]
# How many rows were read, and how many were left out for which reason: {reason: rows}.
Report = dict[str, int]

ROWS_OF_A_BATCH = 1024
# Characters of such a batch, about, where its rows hold whole documents.
CHARACTERS_OF_A_BATCH = 1 << 20


class Shard(NamedTuple):
    """A part of a source: its name, and a function that reads its rows from the beginning."""

    name: str
    read: Callable[[], Iterator[Batch]]


def grouped(rows: Iterable[Row]) -> Iterator[Columns]:
    """Yield batches of rows as columns; all rows must have the same columns."""
    group: list[Row] = []
    characters = 0
    for row in rows:
        group.append(row)
        characters += length_of(row)
        if len(group) == ROWS_OF_A_BATCH or characters >= CHARACTERS_OF_A_BATCH:
            yield {column: [row[column] for row in group] for column in group[0]}
            group, characters = [], 0
    if group:
        yield {column: [row[column] for row in group] for column in group[0]}


def rows_of(batches: Iterable[Batch]) -> Iterator[Row]:
    """Yield the rows of batches, one dict each."""
    for batch in batches:
        if isinstance(batch, list):
            yield from batch
        else:
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def as_columns(rows: Iterable[Row]) -> Iterator[Columns]:
    """Yield batches of rows as columns; a column that a row of the batch lacks is None there."""
    stream = iter(rows)
    while group := list(itertools.islice(stream, ROWS_OF_A_BATCH)):
        yield {name: [row.get(name) for row in group] for name in all_names(group)}


def count_of(columns: Columns) -> int:
    """Return the number of rows of a batch."""
    return len(next(iter(columns.values()), ()))


def all_names(rows: Iterable[Row]) -> list[str]:
    """Return the names of all columns that some row has."""
    return list(dict.fromkeys(name for row in rows for name in row))


def chosen(batch: Batch, names: Iterable[str]) -> Columns:
    """Return those of some columns that a batch has; None where a row lacks one of these."""
    if isinstance(batch, dict):
        return {name: batch[name] for name in names if name in batch}
    there = [name for name in names if any(name in row for row in batch)]
    return {name: [row.get(name) for row in batch] for name in there}


def tables(batches: Iterable[Batch]) -> Iterator[Columns]:
    """Yield each batch as columns; a column that a row of a batch lacks is None there."""
    for batch in batches:
        yield batch if isinstance(batch, dict) else chosen(batch, all_names(batch))


def after(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yield what follows the first so many rows."""
    for batch in batches:
        count = len(batch) if isinstance(batch, list) else count_of(batch)
        if count > rows:
            yield batch if not rows else _cut(batch, slice(rows, None))
        rows = max(0, rows - count)


def needed(names: Sequence[str], columns: Sequence[str], optional: Sequence[str]) -> list[str]:
    """Return those columns of a table that are read.

    Where a column asked for is not there, all are, since whole rows tell the caller what the table
    has instead.

    Args:
        names: all columns of the table.
        columns: the columns asked for; none: all.
        optional: columns that are read too where the table has them.
    """
    if not columns or not set(columns) <= set(names):
        return list(names)
    return [name for name in names if name in columns or name in optional]


def first(batches: Iterable[Batch], rows: int) -> Iterator[Batch]:
    """Yield the first so many rows, and ask for no batch behind them."""
    if not rows:
        return
    for batch in batches:
        count = len(batch) if isinstance(batch, list) else count_of(batch)
        yield batch if count <= rows else _cut(batch, slice(rows))
        rows -= count
        if rows <= 0:
            return


def larger(batches: Iterable[Columns], rows: int = ROWS_OF_A_BATCH) -> Iterator[Columns]:
    """Yield the rows in batches of at least so many, but for the last and where columns change."""
    table: Columns = {}
    for batch in batches:
        if table and table.keys() != batch.keys():
            yield table
            table = {}
        if not table and count_of(batch) >= rows:
            yield batch
            continue
        # Lists of a reader may be kept by others, and are not added to.
        table = {name: [*table.get(name, ()), *values] for name, values in batch.items()}
        if count_of(table) >= rows:
            yield table
            table = {}
    if count_of(table):
        yield table


def _cut(batch: Batch, rows: slice) -> Batch:
    if isinstance(batch, list):
        return batch[rows]
    return {name: values[rows] for name, values in batch.items()}


def length_of(value: object) -> int:
    """Return the characters of all strings in a row or a value, about."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(length_of, value.values()))
    return sum(map(length_of, value)) if isinstance(value, list) else 8


def selected(columns: Columns, mask: Iterable[bool]) -> Columns:
    """Return columns with only the rows for which the mask is true."""
    mask = list(mask)
    return {name: list(itertools.compress(values, mask)) for name, values in columns.items()}


def counted(report: Report, reason: str, rows: int) -> None:
    """Add a number of rows to the report's count for a reason."""
    report[reason] = report.get(reason, 0) + rows


def described(value: object) -> str:
    """Return a value's type and its beginning, for an error message."""
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
