"""Types for rows that readers yield in batches, and small functions on them."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

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
