"""Reads question-answering tasks and plain corpora as pairs (prompt, text).

They come from a Hugging Face id or a local file. Each row is read into named fields (question,
answer, choices, ...), of which two format strings make the prompt and the text. The multi-entity
study (arXiv 2505.21677) names its data sets, but neither their formats, nor ARC's subset, nor how
BookCorpus is cut into prompts and continuations: these are defaults here, and all can be set.
"""

import itertools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.data import duplicates, filters, sources
from jaxloop.data.batches import ROWS_OF_A_BATCH, Report, Row, counted
from jaxloop.data.dialect import Dialect

QUESTION, ANSWER = "Question: {question}\nAnswer:", " {answer}"


class Task(NamedTuple):
    """Where a task comes from, how its rows are read, and its default formats.

    Attributes:
        source: Hugging Face id; "" where a file must be given.
        name, revision: its configuration and revision.
        read: function from a row to the fields that formats may name; it raises ValueError if the
            row has no answer.
        prompt, text: format strings over these fields.
        subset: column of a local file that holds the configuration.
        test: name of the test split; None: there is none, and test rows are held out of the others.
    """

    source: str
    name: str | None
    revision: str | None
    read: Callable[[Mapping[str, Any]], dict[str, str]]
    prompt: str
    text: str
    subset: str = ""
    test: str | None = "test"


def _qa(row: Mapping[str, Any]) -> dict[str, str]:
    return {"question": _text(row, "question"), "answer": _text(row, "answer")}


def _sciq(row: Mapping[str, Any]) -> dict[str, str]:
    wrong = [_text(row, f"distractor{i}") for i in (1, 2, 3)]
    return {
        "question": _text(row, "question"),
        "answer": _text(row, "correct_answer"),
        "distractors": "; ".join(wrong),
        "support": str(row.get("support") or "").strip(),
    }


def _gsm8k(row: Mapping[str, Any]) -> dict[str, str]:
    answer = _text(row, "answer")
    solution, _, final = answer.partition("####")
    return {
        "question": _text(row, "question"),
        "answer": answer,
        "solution": solution.strip(),
        "final": final.strip(),
    }


def _arc(row: Mapping[str, Any]) -> dict[str, str]:
    """Read rows of the hub, and of files with a list of choices and the index of the right one.

    The hub's have choices {text, label} and answerKey, the files' the index `gold`.
    """
    choices = row.get("choices")
    if isinstance(choices, Mapping):
        texts, labels = list(choices["text"]), list(choices["label"])
    else:
        texts = list(choices or ())
        labels = list(string.ascii_uppercase[: len(texts)])
    key = row.get("answerKey", _label_at(labels, row.get("gold")))
    if key not in labels:
        raise ValueError("has no answer among its choices")
    lettered = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    return {
        "question": _text(row, "question"),
        "answer": str(texts[labels.index(key)]),
        "letter": str(key),
        "choices": lettered,
    }


def _label_at(labels: Sequence[str], place: Any) -> str | None:
    """The label at a place, a number or its digits; None at -1, where the place is not told."""
    return next((label for i, label in enumerate(labels) if place in (i, str(i))), None)


def _plain(row: Mapping[str, Any]) -> dict[str, str]:
    return {"text": _text(row, "text")}


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(
            f"has no {column}"
            if column in row
            else f"has no column {column!r}; its columns are {', '.join(map(str, row))}"
        )
    return value.strip() if column != "text" else value


TASKS: dict[str, Task] = {
    "sciq": Task("allenai/sciq", None, None, _sciq, QUESTION, ANSWER),
    "gsm8k": Task("openai/gsm8k", "main", None, _gsm8k, QUESTION, ANSWER),
    # The paper does not say which of ARC's two sets: the larger one.
    "arc": Task("allenai/ai2_arc", "ARC-Easy", None, _arc, QUESTION, ANSWER, subset="set"),
    # The hub's converted files: the repository itself holds a loading script.
    "bookcorpus": Task(
        "bookcorpus/bookcorpus", None, "refs/convert/parquet", _plain, "", "{text}", test=None
    ),
    "qa": Task("", None, None, _qa, QUESTION, ANSWER),
    "text": Task("", None, None, _plain, "", "{text}"),
}


def load(
    task: str,
    *,
    source: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    test_source: str | None = None,
    splits: tuple[str, str | None] | None = None,
    prompt: str | None = None,
    text: str | None = None,
    prompt_words: int = 0,
    join_words: int = 0,
    held_out: int | None = None,
    limit: int | None = None,
    count_tokens: Callable[[list[str]], Sequence[int]] | None = None,
    max_prompt_tokens: int | None = None,
    dialect: Dialect = Dialect(),
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training rows and test rows of a task: columns prompt and text, in the source's order.

    `attrs["report"]` of both frames counts what was read and dropped.

    Args:
        task: a name of `TASKS`: sciq, gsm8k, arc, bookcorpus; qa and text for any file with columns
            question and answer, or text.
        source: a file, folder or Hugging Face id instead of the task's own.
        name, revision: of a Hugging Face data set (default: the task's).
        dialect: of csv and tsv files.
        test_source: where the test rows are, if not in `source`.
        splits: names of the two splits: of the data set, or in the column `split` of a file
            (default: train and the task's). Without a test split (None, or a file without that
            column) and without a test_source, `held_out` rows go to the test, drawn at random, the
            same ones every time.
        prompt, text: formats over the fields of the task (default: the task's).
        prompt_words: the first so many words of prompt and text together are the prompt, the rest
            is the text; shorter ones are dropped.
        join_words: for plain text: rows are joined with a space until they have this many words; 0:
            each is a text.
        held_out: test rows at most; None: all of the test split.
        limit: training rows at most. No more of the source is read than they need, and of a
            Hugging Face data set no more is downloaded; rows that are held out for the test come
            from the same beginning of the source.
        max_prompt_tokens: rows whose prompt is longer are dropped; needs count_tokens.

    Raises:
        ValueError: in one sentence: no such task, a row without an answer (its number is named), a
            format that names no field, nothing left.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}: must be one of {', '.join(TASKS)}")
    known = TASKS[task]
    place = source or known.source
    if not place:
        raise ValueError(
            f"task {task!r}: has no source of its own; give a file or a Hugging Face id"
        )
    longest = _longest_prompt(max_prompt_tokens, count_tokens)
    training_split, test_split = splits or ("train", known.test)
    reader = _Reader(
        task=task,
        known=known,
        prompt=known.prompt if prompt is None else prompt,
        text=known.text if text is None else text,
        name=name or (known.name if source is None or known.subset else None),
        revision=revision or (known.revision if source is None else None),
        prompt_words=prompt_words,
        join_words=join_words if known.read is _plain else 0,
        longest=longest,
        dialect=dialect,
    )
    apart = test_source is not None
    pairs = reader.read(
        place,
        training_split,
        _Wanted(limit, 0 if apart else held_out or 0, divided=not apart and test_split is None),
    )
    if not len(pairs.table):
        raise _nothing_left(task, place, pairs.report)
    if apart or (pairs.has_splits and test_split is not None):
        train, train_report = pairs.table, pairs.report
        test = reader.read(test_source or place, test_split, _Wanted(held_out)).table
        if not apart and not len(test):
            raise ValueError(
                f"task {task!r}: '{place}' has no row of split '{test_split}'; name the split, or "
                "give a test source"
            )
    else:
        train, test, copies = _divided(pairs.table, held_out, task, place)
        train_report = pairs.report | copies
    return (
        _first_rows(train, limit, train_report, task, place),
        _first_rows(test, held_out, {"rows": len(test)}, task, test_source or place),
    )


class _Wanted(NamedTuple):
    """How many pairs of a source are wanted at most.

    Attributes:
        rows: None: all.
        spare: as many more, where the source has no splits, for a test that is held out.
        divided: whether the test is held out though the source has splits.
    """

    rows: int | None
    spare: int = 0
    divided: bool = False

    def most(self, has_splits: bool) -> int | None:
        if self.rows is None:
            return None
        return self.rows + (self.spare if self.divided or not has_splits else 0)


class _LongestPrompt(NamedTuple):
    tokens: int
    count_tokens: filters.CountTokens


def _longest_prompt(
    tokens: int | None, count_tokens: filters.CountTokens | None
) -> _LongestPrompt | None:
    if tokens is None:
        return None
    if count_tokens is None:
        raise ValueError(
            "max_prompt_tokens needs count_tokens, a function that counts the tokens of a list "
            "of texts"
        )
    return _LongestPrompt(tokens, count_tokens)


def _divided(
    whole: pd.DataFrame, held_out: int | None, task: str, place: str
) -> tuple[pd.DataFrame, pd.DataFrame, Report]:
    """Training rows, `held_out` random test rows, and how many copies of these were dropped.

    Published test sets are not changed. Where rows are divided here, no text is on both sides.
    """
    if held_out is None or not 0 < held_out < len(whole):
        raise ValueError(
            f"task {task!r}: '{place}' has {len(whole):,} rows and no test split: give a "
            "test source, or how many of them are held out for the test"
        )
    order = np.random.default_rng(0).permutation(len(whole))
    training_rows, test_rows = np.sort(order[held_out:]), order[:held_out]
    keys = np.array(duplicates.keys(list(whole["text"]), list(whole["prompt"])), object)
    copied = np.isin(keys[training_rows], keys[test_rows])
    report = {"copies of test rows": int(copied.sum())} if copied.any() else {}
    return whole.iloc[training_rows[~copied]], whole.iloc[test_rows], report


def _first_rows(
    frame: pd.DataFrame, most: int | None, report: Report, task: str, place: str
) -> pd.DataFrame:
    frame = frame.reset_index(drop=True)
    frame = frame.iloc[:most] if most is not None else frame
    if not len(frame):
        raise _nothing_left(task, place, report)
    frame.attrs = {"source": place, "report": report | {"kept": len(frame)}}
    return frame


def _nothing_left(task: str, place: str, report: Report) -> ValueError:
    reasons = ", ".join(f"{reason}: {rows}" for reason, rows in report.items())
    return ValueError(f"task {task!r}: '{place}' leaves no row ({reasons})")


class _Pairs(NamedTuple):
    """Prompts and texts of one split, and whether the source has splits."""

    table: pd.DataFrame
    report: Report
    has_splits: bool


@dataclass
class _SplitColumn:
    """Selects the rows of a split in a local file, by its column `split`.

    `seen`: whether the file has such a column.
    """

    split: str | None
    subset: str
    name: str | None
    seen: bool = field(default=False)

    def rows(self, stream: Iterable[Row]) -> Iterator[Row]:
        for row in stream:
            if self.split is not None and "split" in row:
                self.seen = True
                if row["split"] != self.split:
                    continue
            if self.subset and self.name and row.get(self.subset, self.name) != self.name:
                continue
            yield row


@dataclass(frozen=True)
class _Reader:
    """How rows of a source become pairs: see `load`."""

    task: str
    known: Task
    prompt: str
    text: str
    name: str | None
    revision: str | None
    prompt_words: int
    join_words: int
    longest: _LongestPrompt | None
    dialect: Dialect

    def read(self, place: str, split: str | None, wanted: _Wanted) -> _Pairs:
        """Read the pairs of one split, and no more of the source than is wanted."""
        local = sources.is_local(place)
        chosen = _SplitColumn(
            split=split if local else None,
            subset=self.known.subset if local else "",
            name=self.name,
        )
        stream = chosen.rows(
            sources.rows(
                place,
                split=split or "train",
                name=None if local else self.name,
                revision=None if local else self.revision,
                streaming=not local and wanted.rows is not None,
                dialect=self.dialect,
            )
        )
        if self.join_words:
            stream = _joined(stream, self.join_words)
        report: Report = {"rows": 0}
        prompts: list[str] = []
        texts: list[str] = []
        pairs = self._pairs(place, stream, report)
        # The first row says whether the source has splits.
        size = 1
        while size and (group := list(itertools.islice(pairs, size))):
            for prompt, text in self._short_enough(group, report):
                prompts.append(prompt)
                texts.append(text)
            most = wanted.most(chosen.seen or not local)
            size = ROWS_OF_A_BATCH if most is None else min(ROWS_OF_A_BATCH, most - len(texts))
        table = pd.DataFrame(
            {"prompt": pd.Series(prompts, dtype=object), "text": pd.Series(texts, dtype=object)}
        )
        return _Pairs(table, report, chosen.seen or not local)

    def _pairs(
        self, place: str, stream: Iterable[Row], report: Report
    ) -> Iterator[tuple[str, str]]:
        for number, row in enumerate(stream, 1):
            report["rows"] += 1
            pair = self._pair(place, number, row)
            if pair is None:
                counted(report, f"at most {self.prompt_words} words", 1)
            else:
                yield pair

    def _short_enough(self, pairs: list[tuple[str, str]], report: Report) -> list[tuple[str, str]]:
        if self.longest is None:
            return pairs
        most, prompts = self.longest.tokens, [prompt for prompt, _ in pairs]
        counts = filters.count_safely(self.longest.count_tokens, prompts)
        fits = [pair for pair, count in zip(pairs, counts, strict=True) if count <= most]
        counted(report, f"prompt longer than {most} tokens", len(pairs) - len(fits))
        return fits

    def _pair(self, place: str, number: int, row: Row) -> tuple[str, str] | None:
        """The prompt and the text of a row; None where it has too few words."""
        fields = {k: v for k, v in row.items() if isinstance(v, str | int | float)}
        try:
            fields |= self.known.read(row)
        except ValueError as error:
            raise ValueError(f"task {self.task!r}: row {number} of '{place}' {error}") from None
        prompt, text = (self._format(form, fields) for form in (self.prompt, self.text))
        return _cut(prompt + text, self.prompt_words) if self.prompt_words else (prompt, text)

    def _format(self, form: str, fields: Mapping[str, Any]) -> str:
        try:
            return form.format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            named = error.args[0] if isinstance(error, KeyError) else error
            raise ValueError(
                f"task {self.task!r}: a format names {named!r}, which is no field of it; there are "
                f"{', '.join(sorted(map(str, fields)))}"
            ) from None


def _joined(stream: Iterable[Row], words: int) -> Iterator[Row]:
    """Texts of at least `words` words, joined from rows.

    What is left at the end is a text too if it has half as many.
    """
    parts: list[str] = []
    count = 0
    for row in stream:
        parts.append(_text(row, "text").strip())
        count += len(parts[-1].split())
        if count >= words:
            yield {"text": " ".join(parts)}
            parts, count = [], 0
    if count * 2 >= words:
        yield {"text": " ".join(parts)}


def _cut(text: str, words: int) -> tuple[str, str] | None:
    """The first `words` words, and the rest with the space before it; None if there is no rest."""
    match = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(?=\s+\S)", text)
    return None if match is None else (text[: match.end()].lstrip(), text[match.end() :])
