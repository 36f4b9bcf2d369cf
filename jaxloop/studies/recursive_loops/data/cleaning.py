"""Cleaning rules as pure steps over streams of batches, and a report of what each step dropped.

A batch is {column: values} of a thousand rows, the text under "text". A step never changes a list
that it was given; steps that look at one row at a time hold one batch in memory, `distinct` 64 bits
per text, `sampling.sample` two numbers per row that it keeps (the rows themselves wait in a
temporary file). The datasets of the paper are sequences of such steps: `recipes.py`.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jaxloop.data import duplicates
from jaxloop.data.batches import Columns, count_of, larger, selected
from jaxloop.data.filters import count_safely

Counter = Callable[[list[str]], Sequence[int]]
# {rule: {"in": rows, "dropped": rows, "out": rows}}
Report = dict[str, dict[str, int]]

_AHEAD = 10_000
_LINK = re.compile(r"http\S+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclasses.dataclass(frozen=True)
class Step:
    """One named step of cleaning.

    Attributes:
        name: its name in the report.
        run: function from a stream of batches to a stream of batches.
        reads: the columns that it reads.
        by_row: whether what becomes of a row depends on this row alone.
    """

    name: str
    run: Callable[[Iterator[Columns]], Iterator[Columns]]
    reads: tuple[str, ...] = ("text",)
    by_row: bool = True


class AllDropped(ValueError):
    """A rule drops every row that reaches it."""


def clean(batches: Iterable[Columns], steps: Sequence[Step], report: Report) -> Iterator[Columns]:
    """Yield the rows that are left after all steps, in batches.

    Args:
        batches: nothing is read before the first clean batch is asked for.
        steps: applied in their order.
        report: filled while the rows are read, complete at their end: {step name: {"in": rows,
            "dropped": rows, "out": rows}}.

    Raises ValueError where a step's name occurs twice, where a row lacks a column that a step
    reads, and, at the end, where there were no rows or a step dropped all that reached it.
    """
    yield from apply(batches, steps, report)
    check_left(report)


def apply(batches: Iterable[Columns], steps: Sequence[Step], report: Report) -> Iterator[Columns]:
    """Yield the rows that are left after all steps, which may be none; arguments as of `clean`."""
    names = [step.name for step in steps]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"cleaning: two steps are named {name!r}; every step needs its own name in the "
                "report."
            )
    report.clear()
    report.update({name: {"in": 0, "dropped": 0, "out": 0} for name in names})
    stream = iter(batches)
    for step in steps:
        stream = _counted(step, stream, report[step.name])
    yield from stream


def check_left(report: Report) -> None:
    """Raise ValueError where a complete report says that no row is left."""
    if not report or list(report.values())[-1]["out"]:
        return
    guilty = next(
        (name for name, counts in report.items() if counts["in"] and not counts["out"]), None
    )
    if guilty is None:
        raise ValueError("cleaning: there are no rows to clean.")
    raise AllDropped(
        f"cleaning: the rule {guilty!r} drops all {report[guilty]['in']} rows that reach it."
    )


def _counted(step: Step, batches: Iterator[Columns], counts: dict[str, int]) -> Iterator[Columns]:
    for batch in step.run(_incoming(step, batches, counts)):
        counts["out"] += count_of(batch)
        counts["dropped"] = counts["in"] - counts["out"]
        if count_of(batch):
            yield batch
    counts["dropped"] = counts["in"] - counts["out"]


def _incoming(step: Step, batches: Iterator[Columns], counts: dict[str, int]) -> Iterator[Columns]:
    """The batches, counted, each with all columns that the step reads.

    A column is one of the rows if one of the first `_AHEAD` has it; the others have no value there.
    """
    missing, seen = set(step.reads), dict[str, None]()
    waiting: list[Columns] = []
    ahead = 0
    for batch in batches:
        if missing:
            seen |= dict.fromkeys(batch)
            missing.difference_update(batch)
            waiting.append(batch)
            ahead += count_of(batch)
            if ahead >= _AHEAD:
                _require(seen, step)
        if not missing:
            for ready in waiting or [batch]:
                counts["in"] += count_of(ready)
                yield _with_columns(ready, step.reads)
            waiting = []
    if waiting:
        _require(seen, step)


def _with_columns(batch: Columns, names: Sequence[str]) -> Columns:
    absent = [name for name in names if name not in batch]
    return {**{name: [None] * count_of(batch) for name in absent}, **batch} if absent else batch


def _require(columns: Collection[str], step: Step) -> None:
    missing = [column for column in step.reads if column not in columns]
    if missing:
        raise ValueError(
            f"cleaning: the rule {step.name!r} reads the column {missing[0]!r}; the rows have "
            f"{', '.join(map(str, columns))}."
        )


def report_table(report: Mapping) -> dict[str, list]:
    """Return a report as columns rule, rows_in, dropped, rows_out."""
    return {
        "rule": list(report),
        "rows_in": [counts["in"] for counts in report.values()],
        "dropped": [counts["dropped"] for counts in report.values()],
        "rows_out": [counts["out"] for counts in report.values()],
    }


def each(
    name: str, function: Callable[[Columns], Columns], reads: tuple[str, ...] = ("text",)
) -> Step:
    """Return a step that turns each batch into a batch, whatever the other batches hold."""

    def run(batches: Iterator[Columns]) -> Iterator[Columns]:
        return map(function, batches)

    return Step(name, run, reads)


def rewrite(name: str, function: Callable[[str], str]) -> Step:
    """Return a step that changes the text of each row."""
    return each(name, lambda batch: {**batch, "text": list(map(function, batch["text"]))})


def keep(name: str, test: Callable[[Any], bool], column: str = "text") -> Step:
    """Return a step that keeps the rows whose value in a column passes a test."""
    return each(name, lambda batch: selected(batch, map(test, batch[column])), (column,))


def keep_batches(name: str, test: Callable[[list[str]], Sequence[bool]]) -> Step:
    """Return a step that keeps the rows whose text passes a test, such as a classifier's.

    test: takes a batch of texts and returns a truth value for each.
    """

    def function(batch: Columns) -> Columns:
        passed = test(batch["text"])
        if len(passed) != len(batch["text"]):
            raise ValueError(
                f"cleaning: the rule {name!r} gave {len(passed)} answers for "
                f"{len(batch['text'])} texts; it must give one per text."
            )
        return selected(batch, passed)

    def run(batches: Iterator[Columns]) -> Iterator[Columns]:
        # Classifiers are faster with many texts, of which earlier rules may have left a few.
        return map(function, larger(batches))

    return Step(name, run)


def texts_from(*columns: str, separator: str = "\n\n", strip: bool = False) -> Step:
    """Return a step that makes the text by joining columns.

    A column that is absent, null or empty is skipped; a row where all are null is dropped.
    """

    def function(batch: Columns) -> Columns:
        parts = [batch[column] for column in columns if column in batch]
        for column in columns:
            check_texts(batch.get(column, ()), column)
        if len(parts) == 1:
            texts = list(parts[0])
        else:
            texts = [_joined(row, separator) for row in zip(*parts, strict=True)]
        if strip:
            texts = [None if text is None else text.strip() for text in texts]
        return selected({**batch, "text": texts}, [text is not None for text in texts])

    # The last column is the body; a title may be absent.
    return each("no text", function, (columns[-1],))


def _joined(parts: tuple[str | None, ...], separator: str) -> str | None:
    if all(part is None for part in parts):
        return None
    return separator.join(part for part in parts if part)


def check_texts(values: Sequence[Any], column: str, where: str = "", first: int = 0) -> None:
    """Raise ValueError for a value of a column that is neither text nor null.

    Args:
        values: of some rows.
        column: its name, for the message.
        where: the source; "": unknown, as is the row.
        first: the number of rows before these.
    """
    if set(map(type, values)) <= {str, type(None)}:
        return
    for number, value in enumerate(values, first + 1):
        if value is not None and not isinstance(value, str):
            at = f" in row {number} of '{where}'" if where else ""
            raise ValueError(
                f"cleaning: the column {column!r} holds {type(value).__name__} "
                f"{str(value)[:40]!r}{at}; it must hold text."
            )


def check_labels(
    values: Sequence[Any], column: str, where: str, first: int = 0
) -> list[str | None]:
    """Return the values of a column of labels as text, null as None; arguments as of `check_texts`.

    Raises ValueError for a value that is neither text nor a number nor a date.
    """
    if set(map(type, values)) <= {str, type(None)}:
        return list(values)
    for number, value in enumerate(values, first + 1):
        if isinstance(value, Mapping | Collection) and not isinstance(value, str):
            raise ValueError(
                f"cleaning: the column {column!r} holds {type(value).__name__} "
                f"{str(value)[:40]!r} in row {number} of '{where}'; it must hold labels."
            )
    return [None if value is None else str(value) for value in values]


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
    if "#" not in text:
        return text
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

    def test(value: Any) -> bool:
        day = iso_date(value)
        if day:
            check_date(day, column)
        return "" < day[:10] < date

    return keep(f"not before {date}", test, column)


def iso_date(value: Any) -> str:
    """Return a date as ISO text, "" for None."""
    if value is None:
        return ""
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def check_date(day: str, column: str, at: str = "") -> None:
    """Raise ValueError for a date that does not begin as ISO says; at: words for where it is."""
    if not _DATE.match(day):
        raise ValueError(f"cleaning: the {column} {day[:40]!r}{at} does not begin like 2020-05-31.")


def fewer(mark: str, than: int) -> Step:
    """Return a step that keeps texts with fewer than so many occurrences of a mark."""
    return keep(f"{than} or more {mark!r}", lambda text: text.count(mark) < than)


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
        f"contains {' or '.join(marks)}", lambda text: not any(mark in text for mark in marks)
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
    return keep(name, lambda value: value not in values, column)


def strip_right() -> Step:
    """Return a step that deletes white space at the end of the texts."""
    return rewrite("white space at the end deleted", str.rstrip)


def without(columns: Collection[str]) -> Step:
    """Return a step that leaves out columns."""
    columns = frozenset(columns)
    return each(
        f"without {', '.join(sorted(columns))}",
        lambda batch: {c: v for c, v in batch.items() if c not in columns},
        (),
    )


def distinct(content: bool = False) -> Step:
    """Return a step that keeps the first of equal texts.

    Texts are compared by 64 bits of a hash: among 10 million, a false match has probability 3e-6.
    content: whether texts that differ only in case, spaces and punctuation are equal too.
    """

    def run(batches: Iterator[Columns]) -> Iterator[Columns]:
        seen: set[int] = set()
        for batch in batches:
            mask = []
            for text in batch["text"]:
                key = _hash(duplicates.content(text) if content else text)
                mask.append(key not in seen)
                seen.add(key)
            yield selected(batch, mask)

    return Step("repeated content" if content else "repeated text", run, by_row=False)


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
