"""Finds the columns that a config names in the batches of a reader."""

import difflib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxloop.data import chat, dialect, reading
from jaxloop.data.batches import Batch, Columns, Report, counted

_ABSENT = object()


@dataclass(frozen=True)
class Wanted:
    """The columns that a config names; None where it names none."""

    text: str
    prompt: str | None
    domain: str | None
    others: tuple[str, ...]

    def by_field(self) -> dict[str, list[str]]:
        """Return {field of the config: columns}."""
        return {
            "data.text_column": [self.text],
            "data.prompt_column": [] if self.prompt is None else [self.prompt],
            "data.domain_column": [] if self.domain is None else [self.domain],
            "data.keep_columns": list(self.others),
        }

    def names(self) -> list[str]:
        """Return every column once."""
        return list(dict.fromkeys(c for columns in self.by_field().values() for c in columns))


@dataclass
class _Search:
    """What is known of a source's columns so far.

    Attributes:
        source: the source, for error messages.
        wanted: the columns that the config names.
        seen: names of columns that some row had, in order.
        missing: pairs (field of the config, column) of columns that no row had yet.
        form: the form of conversations or completions, if the text is in them (see `chat`).
    """

    source: str
    wanted: Wanted
    seen: dict[str, None] = field(default_factory=dict)
    missing: set[tuple[str, str]] = field(default_factory=set)
    form: str | None = None

    def look_into(self, batch: Batch) -> None:
        """Look in a batch for the columns that are still missing.

        Raises:
            ValueError: all rows have the columns of the batch, and one is missing there.
        """
        if isinstance(batch, list):
            self.seen |= dict.fromkeys(column for row in batch for column in row)
        else:
            self.seen |= dict.fromkeys(batch)
        # A text that no column is named for may be found in turns or completions.
        unnamed = self.wanted.text == "text" and not self.wanted.prompt
        if unnamed and self.form is None and "text" not in self.seen:
            self.form = chat.form_of(self.seen)
        self.missing = {
            (name, column)
            for name, column in self.missing
            if not (self.form and name == "data.text_column")
            and not _is_there(column, batch, self.seen)
        }
        if self.missing and not isinstance(batch, list):
            raise self.refusal()

    def refusal(self) -> ValueError:
        """Return the error for the first column, in the order of the fields, that no row has."""
        name, column = next(
            (name, column)
            for name, columns in self.wanted.by_field().items()
            for column in columns
            if (name, column) in self.missing
        )
        close = difflib.get_close_matches(str(column), list(map(str, self.seen)), 1, 0.6)
        hint = ""
        if reading.extension(self.source) in (".csv", ".tsv"):
            hint = dialect.hint(list(self.seen))
        if not hint and close:
            hint = f"; did you mean {close[0]!r}"
        names = [name if len(name) <= 40 else f"{name[:40]}…" for name in map(str, self.seen)]
        return ValueError(
            f"{name} = {column!r}: '{self.source}' has the columns {', '.join(names)}{hint}."
        )


def wanted_columns(
    stream: Iterable[Batch], source: str, wanted: Wanted, report: Report
) -> Iterator[Columns]:
    """Yield the wanted columns alone: `text`, and `prompt` where there is one.

    The names of all other columns get an underscore in front. A column that some rows lack is None
    there. Nothing is yielded before every column was seen in some row, so that a wrong name is not
    taken for rows without a text.

    Raises:
        ValueError: no row has a column, in one sentence with the columns of all rows.
    """
    search = _Search(source, wanted)
    search.missing = {(name, c) for name, columns in wanted.by_field().items() for c in columns}
    if wanted.text in ("messages", "conversations"):
        search.form = wanted.text
    waiting: list[Columns] = []
    for batch in stream:
        if search.missing:
            search.look_into(batch)
        waiting.append(_chosen(batch, wanted, search.form, report))
        if not search.missing:
            yield from waiting
            waiting = []
    if waiting:
        raise search.refusal()


def _chosen(batch: Batch, wanted: Wanted, form: str | None, report: Report) -> Columns:
    count = len(batch) if isinstance(batch, list) else len(next(iter(batch.values()), ()))
    others = dict.fromkeys([*filter(None, [wanted.domain]), *wanted.others])
    columns = {f"_{name}": column_of(batch, name, count) for name in others}
    if form:
        parts = {name: column_of(batch, name, count) for name in ("prompt", "completion", form)}
        columns["text"], columns["prompt"] = chat.pair(form, parts)
        counted(report, f"read from {form}", count)
    else:
        columns["text"] = column_of(batch, wanted.text, count)
    if wanted.prompt:
        columns["prompt"] = column_of(batch, wanted.prompt, count)
    return columns


def _is_there(column: str, batch: Batch, seen: Collection[str]) -> bool:
    """Whether a column is found by its name, or as a path into nested ones."""
    if column in seen:
        return True
    head, *path = column.split(".")
    if not path or head not in seen:
        return False
    values: Iterable[Any]
    if isinstance(batch, list):
        values = (row.get(head) for row in batch)
    else:
        values = batch.get(head, ())
    return any(_at_path(value, path, _ABSENT) is not _ABSENT for value in values)


def _at_path(value: Any, path: Sequence[str], absent: Any = None) -> Any:
    """The value at a path of keys and of positions in lists; `absent` if there is none."""
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return absent
    return value


def column_of(batch: Batch, column: str, count: int) -> list[Any]:
    """Return the values of a column, or of a path into nested ones, in the `count` rows."""
    head, *path = column.split(".")
    if isinstance(batch, Mapping):
        if column in batch:
            return batch[column]
        if path and head in batch:
            return [_at_path(value, path) for value in batch[head]]
        return [None] * count
    if not path:
        return [row.get(column) for row in batch]
    return [row[column] if column in row else _at_path(row.get(head), path) for row in batch]
