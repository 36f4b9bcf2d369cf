"""Question-answering tasks and plain corpora as pairs (prompt, text), by Hugging Face id or local
file, with the formats stated.

A task is read row by row into named fields (question, answer, choices, ...); two format strings
make the prompt and the text of them. The multi-entity study (arXiv 2505.21677) names its data sets
but neither their formats nor ARC's subset nor how BookCorpus is cut into prompts and continuations:
what stands here are defaults, and everything can be given.
"""

import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.data import duplicates, sources
from jaxloop.data.delimited import Dialect

QUESTION, ANSWER = "Question: {question}\nAnswer:", " {answer}"


class Task(NamedTuple):
    """Where a task comes from, how its rows are read, and its default formats.

    source, name, revision   Hugging Face id, configuration and revision; source "" where a file must be given
    read                     row -> fields that formats may name; ValueError where the row has no answer
    prompt, text             format strings over these fields
    subset                   column of a local file that holds the configuration
    test                     name of the test split; None: there is none, test rows are held out of the others
    """

    source: str
    name: str | None
    revision: str | None
    read: Callable[[Mapping], dict]
    prompt: str
    text: str
    subset: str = ""
    test: str | None = "test"


def _qa(row: Mapping) -> dict:
    return {"question": _text(row, "question"), "answer": _text(row, "answer")}


def _sciq(row: Mapping) -> dict:
    wrong = [_text(row, f"distractor{i}") for i in (1, 2, 3)]
    return {
        "question": _text(row, "question"),
        "answer": _text(row, "correct_answer"),
        "distractors": "; ".join(wrong),
        "support": str(row.get("support") or "").strip(),
    }


def _gsm8k(row: Mapping) -> dict:
    answer = _text(row, "answer")
    solution, _, final = answer.partition("####")
    return {
        "question": _text(row, "question"),
        "answer": answer,
        "solution": solution.strip(),
        "final": final.strip(),
    }


def _arc(row: Mapping) -> dict:
    """Rows of the hub (choices {text, label}, answerKey) and of files with a list of choices and
    the index `gold`.
    """
    choices = row.get("choices")
    texts = list(choices["text"]) if isinstance(choices, Mapping) else list(choices or ())
    labels = (
        list(choices["label"])
        if isinstance(choices, Mapping)
        else list(string.ascii_uppercase[: len(texts)])
    )
    key = row.get(
        "answerKey",
        None
        if row.get("gold") is None
        else labels[int(row["gold"])]
        if int(row["gold"]) < len(labels)
        else None,
    )
    if key not in labels:
        raise ValueError("has no answer among its choices")
    lettered = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    return {
        "question": _text(row, "question"),
        "answer": str(texts[labels.index(key)]),
        "letter": str(key),
        "choices": lettered,
    }


def _plain(row: Mapping) -> dict:
    return {"text": _text(row, "text")}


def _text(row: Mapping, column: str) -> str:
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
    """Training rows and test rows of a task: two frames with columns prompt and text, in the order
    of the source.

    task          a name of `TASKS`: sciq, gsm8k, arc, bookcorpus; qa and text for any file with columns question and answer, or text
    source        a file, folder or Hugging Face id instead of the task's own; name, revision: of a Hugging Face data set (default: the task's)
    test_source   where the test rows are, if not in `source`
    splits        names of the two splits: of the data set, or in the column `split` of a file (default: train and the task's). Without a test
                  split (None, or a file without that column) and without a test_source, `held_out`
                  rows go to the test, drawn at random, the same ones every time
    dialect       of csv and tsv files
    prompt, text  formats over the fields of the task (default: the task's)
    prompt_words  the first so many words of prompt and text together are the prompt, the rest is
    the text; shorter ones are dropped
    join_words    for plain text: rows are joined with a space until they have this many words; 0: each is a text
    held_out      test rows at most; None: all of the test split
    limit         training rows at most
    max_prompt_tokens   rows whose prompt is longer are dropped; needs count_tokens
    `attrs["report"]` of both frames counts what was read and dropped. Raises ValueError in one
    sentence: no such task, a row without an
    answer (its number is named), a format that names no field, nothing left.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r}: must be one of {', '.join(TASKS)}")
    known = TASKS[task]
    if not (source or known.source):
        raise ValueError(
            f"task {task!r}: has no source of its own; give a file or a Hugging Face id"
        )
    if max_prompt_tokens is not None and count_tokens is None:
        raise ValueError(
            "max_prompt_tokens needs count_tokens, a function that counts the tokens of a list "
            "of texts"
        )
    formats = (known.prompt if prompt is None else prompt, known.text if text is None else text)
    about = {
        "name": name or (known.name if source is None or known.subset else None),
        "revision": revision or (known.revision if source is None else None),
    }
    place = source or known.source
    first, second = splits or ("train", known.test)
    joined = join_words if known.read is _plain else 0
    options = {
        "known": known,
        "formats": formats,
        "words": prompt_words,
        "join": joined,
        "dialect": dialect,
        **about,
    }
    # Where there is no test split, what is held out comes from the same rows: no more of a large
    # corpus is read than both need.
    most = (
        limit + (held_out or 0)
        if limit is not None and second is None and max_prompt_tokens is None
        else None
    )
    copies: dict[str, int] = {}
    whole, has_splits = _pairs(task, place, first, most=most, **options)
    if test_source is not None or (has_splits and second is not None):
        train, test = whole, _pairs(task, test_source or place, second, **options)[0]
        if test_source is None and not len(test):
            raise ValueError(
                f"task {task!r}: '{place}' has no row of split '{second}'; name the split, or "
                "give a test source"
            )
    else:
        if held_out is None or not 0 < held_out < len(whole):
            raise ValueError(
                f"task {task!r}: '{place}' has {len(whole):,} rows and no test split: give a "
                "test source, or how many of them are held out for the test"
            )
        order = np.random.default_rng(0).permutation(len(whole))
        train, test = whole.iloc[np.sort(order[held_out:])], whole.iloc[order[:held_out]]
        # Test sets that somebody published stay what they are; of rows that are parted here, none
        # is on both sides.
        keys = np.array(duplicates.keys(list(whole["text"]), list(whole["prompt"])), object)
        copied = np.isin(keys[np.sort(order[held_out:])], keys[order[:held_out]])
        train, copies = (
            train[~copied],
            {"copies of test rows": int(copied.sum())} if copied.any() else {},
        )
    made = []
    for frame, most in ((train, limit), (test, held_out)):
        report = dict(whole.attrs["report"]) | copies if frame is train else {"rows": len(frame)}
        frame = frame.reset_index(drop=True)
        if max_prompt_tokens is not None and len(frame):
            fits = (
                np.asarray(sources.count_safely(count_tokens, frame["prompt"])) <= max_prompt_tokens
            )
            report[f"prompt longer than {max_prompt_tokens} tokens"] = int((~fits).sum())
            frame = frame[fits].reset_index(drop=True)
        frame = frame.iloc[:most] if most is not None else frame
        if not len(frame):
            raise ValueError(
                f"task {task!r}: '{place}' leaves no row "
                f"({', '.join(f'{k}: {v}' for k, v in report.items())})"
            )
        frame.attrs = {"source": place, "report": report | {"kept": len(frame)}}
        made.append(frame)
    return made[0], made[1]


def _pairs(
    task, place, split, *, known, formats, words, join, name, revision, dialect, most=None
) -> tuple[pd.DataFrame, bool]:
    """(prompts and texts of one split, `most` at most; whether the source has splits)."""
    rows, report, found, local = [], {"rows": 0}, {"split": False}, sources.is_local(place)
    hub = {} if local else {"name": name, "revision": revision, "streaming": most is not None}
    stream = sources.rows(place, split=split or "train", dialect=dialect, **hub)
    stream = _chosen(stream, split if local else None, known.subset if local else "", name, found)
    for number, row in enumerate(_joined(stream, join) if join else stream, 1):
        report["rows"] += 1
        try:
            fields = {
                k: v for k, v in row.items() if isinstance(v, str | int | float)
            } | known.read(row)
        except ValueError as error:
            raise ValueError(f"task {task!r}: row {number} of '{place}' {error}") from None
        pair = _format(task, formats, fields)
        if words:
            pair = _cut(pair[0] + pair[1], words)
            if pair is None:
                report[f"at most {words} words"] = report.get(f"at most {words} words", 0) + 1
                continue
        rows.append(pair)
        if len(rows) == most:
            break
    frame = pd.DataFrame(
        {
            "prompt": pd.Series([p for p, _ in rows], dtype=object),
            "text": pd.Series([t for _, t in rows], dtype=object),
        }
    )
    frame.attrs = {"report": report}
    return frame, found["split"] or not local


def _chosen(stream: Iterator[dict], split, subset, name, found) -> Iterator[dict]:
    for row in stream:
        if split is not None and "split" in row:
            found["split"] = True
            if row["split"] != split:
                continue
        if subset and name and row.get(subset, name) != name:
            continue
        yield row


def _joined(stream: Iterator[dict], words: int) -> Iterator[dict]:
    """Texts of at least `words` words; what is left at the end is a text too if it has half as
    many.
    """
    held: list[str] = []
    for row in stream:
        held.append(_text(row, "text").strip())
        if sum(len(t.split()) for t in held) >= words:
            yield {"text": " ".join(held)}
            held = []
    if sum(len(t.split()) for t in held) * 2 >= words:
        yield {"text": " ".join(held)}


def _format(task, formats, fields) -> tuple[str, str]:
    try:
        return formats[0].format(**fields), formats[1].format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        named = error.args[0] if isinstance(error, KeyError) else error
        raise ValueError(
            f"task {task!r}: a format names {named!r}, which is no field of it; there are "
            f"{', '.join(sorted(map(str, fields)))}"
        ) from None


def _cut(text: str, words: int) -> tuple[str, str] | None:
    """The first `words` words, and the rest with the space before it; None where there is no rest."""
    match = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+(?=\s+\S)", text)
    return None if match is None else (text[: match.end()].lstrip(), text[match.end() :])
