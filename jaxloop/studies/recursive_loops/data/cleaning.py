"""Cleaning rules as pure steps over streams of rows, and a report of what each step dropped.

A row is a dict with the text under "text". A step never changes a row that it was given; steps that
look at one row at a time hold one batch in memory, `distinct` 64 bits per text, `sample` two
numbers per row that it keeps (the rows themselves wait in a temporary file). The datasets of the
paper are sequences of such steps: `recipes.py`.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import duplicates
from jaxloop.data.filters import count_safely
from jaxloop.runtime.tables import escape

Row = dict[str, Any]
Counter = Callable[[list[str]], Sequence[int]]

_BATCH = 1024
_AHEAD = 10_000
_LINK = re.compile(r"http\S+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclasses.dataclass(frozen=True)
class Step:
    """One named step of cleaning.

    Attributes:
        name: its name in the report.
        run: function from a stream of rows to a stream of rows.
        reads: the columns that it reads.
    """

    name: str
    run: Callable[[Iterator[Row]], Iterator[Row]]
    reads: tuple[str, ...] = ("text",)


class AllDropped(ValueError):
    """A rule drops every row that reaches it."""


def clean(rows: Iterable[Row], steps: Sequence[Step], report: dict) -> Iterator[Row]:
    """Yield the rows that are left after all steps.

    Args:
        rows: dicts; nothing is read before the first clean row is asked for.
        steps: applied in their order.
        report: filled while the rows are read, complete at their end: {step name: {"in": rows,
            "dropped": rows, "out": rows}}.

    Raises ValueError where a step's name occurs twice, where a row lacks a column that a step
    reads, and, at the end, where there were no rows or a step dropped all that reached it.
    """
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"cleaning: two steps are named {name!r}; every step needs its own name in the "
                "report."
            )
    report.clear()
    report.update({name: {"in": 0, "dropped": 0, "out": 0} for name in names})
    stream = iter(rows)
    for step in steps:
        stream = _counted(step, stream, report[step.name])
    count = 0
    for row in stream:
        count += 1
        yield row
    if count == 0:
        guilty = next(
            (name for name, counts in report.items() if counts["in"] and not counts["out"]), None
        )
        if guilty is None:
            raise ValueError("cleaning: there are no rows to clean.")
        raise AllDropped(
            f"cleaning: the rule {guilty!r} drops all {report[guilty]['in']} rows that reach it."
        )


def _counted(step: Step, rows: Iterator[Row], counts: dict[str, int]) -> Iterator[Row]:
    columns = set(step.reads)

    def incoming() -> Iterator[Row]:
        # A column is one of the rows if one of the first `_AHEAD` has it; the others have no value
        # there.
        missing, seen = set(step.reads), dict[str, None]()
        waiting: list[Row] = []
        for row in rows:
            if missing:
                seen |= dict.fromkeys(row)
                missing.difference_update(row)
                waiting.append(row)
                if len(waiting) == _AHEAD:
                    _require(seen, step)
            if not missing:
                for ready in waiting or [row]:
                    counts["in"] += 1
                    yield ready if ready.keys() >= columns else dict.fromkeys(step.reads) | ready
                waiting = []
        if waiting:
            _require(seen, step)

    for row in step.run(incoming()):
        counts["out"] += 1
        counts["dropped"] = counts["in"] - counts["out"]
        yield row
    counts["dropped"] = counts["in"] - counts["out"]


def _require(row: Mapping[str, Any], step: Step) -> None:
    missing = [column for column in step.reads if column not in row]
    if missing:
        raise ValueError(
            f"cleaning: the rule {step.name!r} reads the column {missing[0]!r}; the rows have "
            f"{', '.join(map(str, row))}."
        )


def report_table(report: Mapping) -> dict[str, list]:
    """Return a report as columns rule, rows_in, dropped, rows_out."""
    return {
        "rule": list(report),
        "rows_in": [counts["in"] for counts in report.values()],
        "dropped": [counts["dropped"] for counts in report.values()],
        "rows_out": [counts["out"] for counts in report.values()],
    }


def rule(
    name: str, function: Callable[[Row], Row | None], reads: tuple[str, ...] = ("text",)
) -> Step:
    """Return a step that turns each row into a row, or drops it (None)."""

    def run(rows: Iterator[Row]) -> Iterator[Row]:
        return (new for new in map(function, rows) if new is not None)

    return Step(name, run, reads)


def rewrite(name: str, function: Callable[[str], str]) -> Step:
    """Return a step that changes the text of each row."""
    return rule(name, lambda row: {**row, "text": function(row["text"])})


def keep(name: str, test: Callable[[Row], bool], reads: tuple[str, ...] = ("text",)) -> Step:
    """Return a step that keeps the rows that pass a test."""
    return Step(name, lambda rows: filter(test, rows), reads)


def keep_batches(name: str, test: Callable[[list[str]], Sequence[bool]]) -> Step:
    """Return a step that keeps the rows whose text passes a test, such as a classifier's.

    test: takes a thousand texts at a time and returns a truth value for each.
    """

    def run(rows: Iterator[Row]) -> Iterator[Row]:
        while batch := list(itertools.islice(rows, _BATCH)):
            passed = test([row["text"] for row in batch])
            if len(passed) != len(batch):
                raise ValueError(
                    f"cleaning: the rule {name!r} gave {len(passed)} answers for {len(batch)} "
                    "texts; it must give one per text."
                )
            yield from (row for row, ok in zip(batch, passed, strict=True) if ok)

    return Step(name, run)


def texts_from(*columns: str, separator: str = "\n\n", strip: bool = False) -> Step:
    """Return a step that makes the text by joining columns.

    A column that is absent, null or empty is skipped; a row where all are null is dropped.
    """

    def function(row: Row) -> Row | None:
        parts = [row.get(column) for column in columns]
        for column, part in zip(columns, parts, strict=True):
            if part is not None and not isinstance(part, str):
                raise ValueError(
                    f"cleaning: the column {column!r} holds {type(part).__name__} "
                    f"{str(part)[:40]!r}; it must hold text."
                )
        if all(part is None for part in parts):
            return None
        text = separator.join(part for part in parts if part)
        return {**row, "text": text.strip() if strip else text}

    # The last column is the body; a title may be absent.
    return rule("no text", function, (columns[-1],))


def drop_links() -> Step:
    """Return a step that deletes links, then white space at the end of the text.

    A link is `http` with everything after it up to white space.
    """
    return rewrite("links deleted", lambda text: _LINK.sub("", text).rstrip())


def strip_trailing_hashtags() -> Step:
    r"""Return a step that deletes hashtags at the end of texts, with the white space before them.

    It deletes what `(\s*#\w+)+$` matches, in time linear in the text.
    """
    return rewrite("trailing hashtags deleted", without_trailing_hashtags)


def without_trailing_hashtags(text: str) -> str:
    """Return a text without the hashtags that it ends with."""
    end = len(text)
    while True:
        start = end
        while start and (text[start - 1].isalnum() or text[start - 1] == "_"):
            start -= 1
        if start == end or not start or text[start - 1] != "#":
            return text[:end]
        end = start - 1
        if text[end - 1 : end].isspace():
            end = len(text[:end].rstrip())


def length(count: Counter, low: int, high: int | None, unit: str = "tokens") -> Step:
    """Return a step that keeps texts with low < count < high; `high` None: no upper bound."""
    name = f"not more than {low} {unit}" if high is None else f"not between {low} and {high} {unit}"

    def test(texts: list[str]) -> list[bool]:
        return [low < n and (high is None or n < high) for n in count_safely(count, texts)]

    return keep_batches(name, test)


def before(date: str, column: str = "date") -> Step:
    """Return a step that keeps rows dated before a day (YYYY-MM-DD).

    Dates are ISO text or datetimes; rows without one are dropped.
    """

    def test(row: Row) -> bool:
        day = _iso_date(row[column])
        if day and not _DATE.match(day):
            raise ValueError(f"cleaning: the {column} {day[:40]!r} does not begin like 2020-05-31.")
        return "" < day[:10] < date

    return keep(f"not before {date}", test, (column,))


def _iso_date(value: Any) -> str:
    """A date as ISO text, "" for None."""
    if value is None:
        return ""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def fewer(mark: str, than: int) -> Step:
    """Return a step that keeps texts with fewer than so many occurrences of a mark."""
    return keep(f"{than} or more {mark!r}", lambda row: row["text"].count(mark) < than)


def delete(marks: Collection[str]) -> Step:
    """Return a step that deletes these strings from the texts and drops no row."""

    def function(text: str) -> str:
        for mark in marks:
            text = text.replace(mark, "")
        return text

    return rewrite(f"{' and '.join(marks)} deleted", function)


def drop_containing(marks: Collection[str]) -> Step:
    """Return a step that drops texts that contain one of these strings."""
    return keep(
        f"contains {' or '.join(marks)}", lambda row: not any(mark in row["text"] for mark in marks)
    )


def cut_before(pattern: str, name: str) -> Step:
    """Return a step that cuts texts before the first match of a pattern.

    Texts of which nothing is left are dropped by the rules of length.
    """
    compiled = re.compile(pattern, re.IGNORECASE)

    def function(text: str) -> str:
        match = compiled.search(text)
        return text if match is None else text[: match.start()]

    return rewrite(name, function)


def first_paragraph() -> Step:
    """Return a step that keeps the text up to its first empty line, without white space around."""
    return rewrite("first paragraph", lambda text: text.strip().split("\n\n", 1)[0].rstrip())


def not_in(column: str, values: Collection[str], name: str) -> Step:
    """Return a step that drops rows whose value in a column is one of these."""
    values = frozenset(values)
    return keep(name, lambda row: row[column] not in values, (column,))


def strip_right() -> Step:
    """Return a step that deletes white space at the end of the texts."""
    return rewrite("white space at the end deleted", str.rstrip)


def without(columns: Collection[str]) -> Step:
    """Return a step that leaves out columns."""
    columns = frozenset(columns)
    return rule(
        f"without {', '.join(sorted(columns))}",
        lambda row: {c: v for c, v in row.items() if c not in columns},
        (),
    )


def distinct(content: bool = False) -> Step:
    """Return a step that keeps the first of equal texts.

    Texts are compared by 64 bits of a hash: among 10 million, a false match has probability 3e-6.
    content: whether texts that differ only in case, spaces and punctuation are equal too.
    """

    def run(rows: Iterator[Row]) -> Iterator[Row]:
        seen = set()
        for row in rows:
            text = duplicates.content(row["text"]) if content else row["text"]
            key = int.from_bytes(
                hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
                "little",
            )
            if key not in seen:
                seen.add(key)
                yield row

    return Step("repeated content" if content else "repeated text", run)


def sample(count: int, seed: int, group: str | None = None) -> Step:
    """Return a step that keeps a uniform random sample of rows, in random order.

    It keeps `count` rows, or `count` for each value of the column `group` if that is given; all if
    there are fewer. What happens to a row depends on the seed and its number in the stream alone.
    Rows are kept in a temporary file, so that memory grows by only 48 bytes per row of the sample;
    values that JSON does not have are turned into text.
    """
    name = f"not in the sample of {count}" + (f" of each {group}" if group else "")

    def run(rows: Iterator[Row]) -> Iterator[Row]:
        with tempfile.TemporaryFile() as spool:
            chosen: dict[Any, _Smallest] = {}
            for index, row in enumerate(rows):
                pool = chosen.setdefault(row[group] if group else None, _Smallest(count))
                digest = hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=16).digest()
                priority, place = (
                    int.from_bytes(half, "little") for half in (digest[:8], digest[8:])
                )
                if priority < pool.bound:
                    offset = spool.seek(0, os.SEEK_END)
                    spool.write(json.dumps(row, default=str).encode() + b"\n")
                    pool.add(priority, place, offset)
            rest = [pool.rest() for pool in chosen.values()]
            table = np.concatenate(rest) if rest else np.zeros((0, 3), np.uint64)
            for offset in table[np.argsort(table[:, 1], kind="stable"), 2].tolist():
                spool.seek(offset)
                yield json.loads(spool.readline())

    return Step(name, run, (group,) if group else ())


class _Smallest:
    """The `count` triples (priority, place, offset) with the smallest priorities seen so far.

    bound: the priority below which a new triple is among them.
    """

    def __init__(self, count: int):
        self.count = count
        self.table = np.zeros((min(2 * count, 1024), 3), np.uint64)
        self.size = 0
        self.bound = 2**64

    def add(self, *triple: int) -> None:
        """Take a triple whose priority is below the bound."""
        if self.size == len(self.table):
            self.table = np.resize(self.table, (min(2 * self.count, 2 * self.size), 3))
        self.table[self.size] = np.array(triple, np.uint64)
        self.size += 1
        if self.size == 2 * self.count:
            self.table[: self.count] = self.rest()
            self.size = self.count
            self.bound = int(self.table[: self.count, 0].max())

    def rest(self) -> np.ndarray:
        """Return the triples, [count, 3] or fewer."""
        table = self.table[: self.size]
        return (
            table
            if self.size <= self.count
            else table[np.argpartition(table[:, 0], self.count - 1)[: self.count]]
        )


def write_parquet(path: str | Path, rows: Iterable[Row], report: Mapping | None = None) -> int:
    """Write a stream of rows to a parquet file (zstd, page checksums); return the number of rows.

    A few thousand rows are in memory at a time. The columns are those of the first row, in its
    order; each holds text or numbers. The file appears when it is complete. `report`, filled by
    then, goes into its metadata under "cleaning". Lone surrogates are escaped (see
    `runtime/tables.py`).

    Raises ValueError where there are no rows or a later row has values of another type.
    """
    path = Path(path)
    stream = iter(rows)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"{path}: there are no rows to write.")
    stream = itertools.chain([first], stream)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        with open(partial, "wb") as sink:
            count = _write_batches(path, sink, stream, list(first), report)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return count


def _write_batches(
    path: Path,
    sink: BinaryIO,
    stream: Iterator[Row],
    names: Sequence[str],
    report: Mapping | None,
) -> int:
    """Write a stream of at least one row to an open file; return how many rows there were.

    path: for messages.
    """
    batches = iter(lambda: list(itertools.islice(stream, 16 * _BATCH)), [])
    table = _table(path, next(batches), names, None, 0)
    # A column without a value in the first batch is one of text.
    fields = [
        pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in table.schema
    ]
    schema = pa.schema(fields)
    count = len(table)
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(table.cast(schema))
        for batch in batches:
            writer.write_table(_table(path, batch, names, schema, count))
            count += len(batch)
        metadata = {"cleaning": json.dumps(report), "jaxloop.escaped": "1"}
        writer.add_key_value_metadata(metadata)
    return count


def _table(
    path: Path, rows: list[Row], names: Sequence[str], schema: pa.Schema | None, before: int
) -> pa.Table:
    """Rows as a table. before: how many rows there were before them, for the refusal."""
    columns = {name: [_plain(row.get(name)) for row in rows] for name in names}
    try:
        return pa.table(columns, schema=schema)
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"{path}: the rows from {before} on do not have one type per column ({error})."
        ) from None


def _plain(value: Any) -> Any:
    return escape(value) if isinstance(value, str) else value
