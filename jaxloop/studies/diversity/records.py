"""Real records of the diversity study's tasks: read, shortened and split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from jaxloop.data.dialect import Dialect, in_section
from jaxloop.data.stories import concatenate, read_qa, read_stories
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.sets import COLUMNS, contexts, draw

# Texts -> tokens of each.
TokenCounter = Callable[[list[str]], Sequence[int]]


class Tables(NamedTuple):
    """One task's records, with the columns of `sets.COLUMNS`.

    train, test, reserve: real records; outside: records from elsewhere; summary: a line about them.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    reserve: pd.DataFrame
    outside: pd.DataFrame
    summary: str


def read(settings: DiversityConfig, task: str, count: TokenCounter) -> Tables:
    """Return a task's records, split.

    Raises ValueError as `data.stories` does, and where there are too few.
    """
    try:
        return _read_story(settings, count) if task == "story" else _read_qa(settings, count)
    except ValueError as error:
        text = in_section(str(error), task)
        raise ValueError(text if text.startswith("config.") else f"config.{task}: {text}") from None


def _read_story(settings: DiversityConfig, count: TokenCounter) -> Tables:

    s = settings.story
    options: dict[str, Any] = {
        "text_column": s.text_column,
        "count": s.sentences,
        "windows": s.windows,
        "dialect": Dialect(s.delimiter, s.csv_options),
    }

    def table(sources, split, **more):
        whole = concatenate(
            read_stories(source, split=split, **options, **more) for source in sources
        )
        named = whole.rename(columns={"beginning": "head", "ending": "text"}).assign(
            context="stories", passage="", topic=whole["title"], origin="real"
        )
        return _short_enough(named, s.max_tokens, count, "story"), whole.attrs["report"]

    column = {"split_column": s.split_column}
    everything, report = table(s.sources, s.split, **column)
    everything = everything.iloc[draw("story", "order").permutation(len(everything))].reset_index(
        drop=True
    )
    if s.test_split is None:
        test, everything = _held_out(everything, s.test, "story")
    else:
        test = table(s.sources, s.test_split, **column)[0]
        test = test.iloc[draw("story", "test").permutation(len(test))[: s.test]].reset_index(
            drop=True
        )
    outside = table(s.outside, "train")[0] if s.outside else everything.iloc[:0]
    return _tables(everything, test, outside, s.train, "story", report)


def _read_qa(settings: DiversityConfig, count: TokenCounter) -> Tables:

    s = settings.qa
    options: dict[str, Any] = {
        "question_column": s.question_column,
        "passage": s.passage,
        "dialect": Dialect(s.delimiter, s.csv_options),
    }
    options |= {
        "context_column": s.context_column,
        "passage_column": s.passage_column,
        "answer_column": s.answer_column,
    }

    def table(source, split, most=s.max_tokens, **more):
        frame = read_qa(source, split=split, **(options | more))
        shown = {
            text: _first_tokens(text, s.passage_tokens, count)
            for text in dict.fromkeys(frame["passage"])
            if text
        }
        named = frame.rename(columns={"question": "head", "answer": "text"}).assign(
            topic="", origin="real", passage=[shown.get(p, "") for p in frame["passage"]]
        )
        return _short_enough(named, most, count, "qa"), frame.attrs["report"]

    def blocks(frame):
        """Records without a document in blocks of `per_context`; every other context keeps its
        first records.
        """
        if (frame["context"] == "").all():
            return frame.assign(
                context=[f"block-{i // s.per_context:05d}" for i in range(len(frame))]
            )
        return frame[frame.groupby("context", sort=False).cumcount() < s.per_context].reset_index(
            drop=True
        )

    whole, report = table(s.source, s.split, split_column=s.split_column)
    shuffled = whole.iloc[draw("qa", "order").permutation(len(whole))].reset_index(drop=True)
    if s.test_split is None and (shuffled["context"] == "").all():
        test, shuffled = _held_out(shuffled, s.test, "qa")
        everything = blocks(shuffled)
    else:
        everything = blocks(shuffled)
        everything = everything.iloc[
            [row for rows in contexts(everything).values() for row in rows]
        ].reset_index(drop=True)
        if s.test_split is None:
            test, everything = _held_out(everything, s.test, "qa")
            # A document is either trained on or tested on.
            everything = everything[~everything["context"].isin(set(test["context"]))].reset_index(
                drop=True
            )
        else:
            test = table(s.source, s.test_split, split_column=s.split_column)[0]
            test = test.iloc[draw("qa", "test").permutation(len(test))[: s.test]].reset_index(
                drop=True
            )
    outside = whole.iloc[:0]
    if s.outside is not None:
        plain: dict[str, str | None] = {
            "question_column": s.outside_question_column,
            "answer_column": s.outside_answer_column,
        }
        plain |= {"passage": "none", "context_column": None, "passage_column": None}
        outside = table(s.outside, "train", s.outside_max_tokens, **plain)[0]
    return _tables(everything, test, pd.DataFrame(outside), s.train, "qa", report)


def _short_enough(
    frame: pd.DataFrame, most: int | None, count: TokenCounter, task: str
) -> pd.DataFrame:
    if most is None or not len(frame):
        return frame
    fits = [
        n <= most
        for n in count([f"{h} {t}" for h, t in zip(frame["head"], frame["text"], strict=True)])
    ]
    if not any(fits):
        raise ValueError(
            f"config.{task}.max_tokens = {most}: leaves none of {len(frame):,} records"
        )
    return frame[fits].reset_index(drop=True)


def _first_tokens(text: str, most: int, count: TokenCounter) -> str:
    """The longest found beginning of a text, in whole words, of at most so many tokens."""
    words = text.split()
    # A word has one token at least, so more words than tokens never fit.
    word_count = min(len(words), most)
    while word_count > 1 and (tokens := count([" ".join(words[:word_count])])[0]) > most:
        word_count = max(1, min(word_count - 1, word_count * most // tokens))
    return " ".join(words[:word_count])


def _held_out(frame: pd.DataFrame, count: int, task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    if len(frame) <= count:
        raise ValueError(
            f"config.{task}.test = {count}: the data have only {len(frame):,} records, and "
            "training needs some"
        )
    return frame.iloc[:count].reset_index(drop=True), frame.iloc[count:].reset_index(drop=True)


def _tables(
    everything: pd.DataFrame,
    test: pd.DataFrame,
    outside: pd.DataFrame,
    train: int,
    task: str,
    report: Mapping[str, int],
) -> Tables:
    columns = list(COLUMNS)
    if not len(everything) or not len(test):
        raise ValueError(
            f"config.{task}: there are {len(everything):,} records to train on and {len(test):,} "
            "to test on, some of both are needed"
        )
    train_rows, test_rows, reserve, elsewhere = (
        frame[columns].reset_index(drop=True)
        for frame in (everything.iloc[:train], test, everything.iloc[train:], outside)
    )
    counts = ", ".join(f"{reason}: {number:,}" for reason, number in report.items())
    summary = (
        f"{len(train_rows):,} real records to train on, {len(test_rows):,} to test on, "
        f"{len(reserve):,} in reserve, {len(elsewhere):,} from elsewhere ({counts})"
    )
    return Tables(
        train=train_rows, test=test_rows, reserve=reserve, outside=elsewhere, summary=summary
    )
