"""Reads stories and question-answer records as tables, for the diversity study.

It reads ROCStories and NarrativeQA, from their archives or the hub, ARC, prose, and plain columns.
A story becomes a beginning and a last sentence. A question-answer record becomes a question, an
answer and, if it has one, the document that it is about. The study is arXiv 2506.19262.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.data.batches import Report, Row
from jaxloop.data.dialect import Dialect
from jaxloop.data.qa_tasks import TASKS
from jaxloop.data.sentences import sentences
from jaxloop.data.sources import label, rows

PASSAGES = ("none", "summary", "full", "column")


def read_stories(
    source: str | Path,
    *,
    text_column: str = "text",
    count: int = 5,
    windows: bool = False,
    split: str = "train",
    split_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    dialect: Dialect = Dialect(),
) -> pd.DataFrame:
    """Return stories of `count` sentences.

    Rows with the columns sentence1 … sentence`count` (ROCStories' files; storytitle or title is the
    title) are taken as they are. Of other rows `text_column` is cut into sentences; texts with
    fewer are left out, longer ones give their first `count` sentences.

    Args:
        windows: longer texts give one story for every `count` sentences in a row.
        split_column: the column of a file that names the split, where one file holds several.
        split, name, revision: as in `load_texts`.
        limit: stop after so many stories.
        dialect: of csv and tsv files.

    Returns:
        Columns beginning (all sentences but the last), ending (the last), title, source.
        `frame.attrs["report"]` counts rows, stories and what was left out.

    Raises:
        ValueError: in one sentence: what cannot be read, a missing column, an empty sentence, or no
            story at all.
    """
    if count < 2:
        raise ValueError(
            f"story.sentences = {count}: must be at least 2, a beginning and an ending."
        )
    columns = [f"sentence{i + 1}" for i in range(count)]
    too_short = f"fewer than {count} sentences"
    stories: list[tuple[str, str, str]] = []
    report: Report = {"rows": 0, too_short: 0}
    stream = _rows(source, split, split_column, name, revision, dialect, limit is not None)
    for number, row in stream:
        report["rows"] += 1
        title = str(row.get("storytitle") or row.get("title") or "")
        if set(columns) <= set(row):
            pieces = [_sentence_columns(row, columns, number, source)]
        elif text_column in row:
            pieces = _windows(sentences(_clean(row[text_column])), count, windows)
            report[too_short] += not pieces
        else:
            raise ValueError(
                f"story.text_column = {text_column!r}: '{source}' has neither it nor "
                f"sentence1 to sentence{count}, but {', '.join(map(str, row))}."
            )
        stories += [(" ".join(piece[:-1]), piece[-1], title) for piece in pieces]
        if limit is not None and len(stories) >= limit:
            break
    if not stories:
        raise ValueError(
            f"story.sources: '{source}' has no story of {count} sentences among its "
            f"{report['rows']} rows."
        )
    stories = stories[:limit]
    frame = pd.DataFrame(stories, columns=["beginning", "ending", "title"], dtype=object)
    frame = frame.assign(source=label(source))
    frame.attrs["report"] = report | {"stories": len(stories)}
    return frame


def _sentence_columns(
    row: Row, columns: Sequence[str], number: int, source: str | Path
) -> list[str]:
    parts = [_clean(row[column]) for column in columns]
    for column, part in zip(columns, parts, strict=True):
        if not part:
            raise ValueError(
                f"story.sources: row {number} of '{source}' has no {column}; a story needs "
                f"{len(columns)} sentences."
            )
    return parts


def _windows(parts: list[str], count: int, several: bool) -> list[list[str]]:
    """The first `count` sentences; if `several`, all consecutive groups of `count`."""
    starts = range(0, len(parts) - count + 1, count)
    return [parts[i : i + count] for i in (starts if several else starts[:1])]


def read_qa(
    source: str | Path,
    *,
    passage: str = "summary",
    question_column: str = "question",
    answer_column: str = "answer",
    context_column: str | None = None,
    passage_column: str | None = None,
    split: str = "train",
    split_column: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    dialect: Dialect = Dialect(),
) -> pd.DataFrame:
    """Return question-answer records.

    Understood are NarrativeQA on the hub (`document`, `question` and `answers` with texts inside)
    and as its archive has it (qaps.csv, beside it summaries.csv and, for the full text,
    tmp/<document_id>.content); ARC (`choices` with `gold` or `answerKey`); and plain columns. Of
    several answers the first counts.

    Args:
        passage: "none", "summary" or "full" (of NarrativeQA), or "column": the text of
            `passage_column`, which also names the context unless `context_column` does.
        split, split_column, name, revision, limit, dialect: as in `read_stories`.

    Returns:
        Columns context (name of the document, "" where there is none), passage (its text, or ""),
        question, answer. `frame.attrs["report"]` counts rows, records and contexts.

    Raises:
        ValueError: in one sentence: what cannot be read, a missing column or passage, and a record
            without question or answer.
    """
    if passage not in PASSAGES:
        raise ValueError(f"qa.passage = {passage!r}: must be one of {', '.join(PASSAGES)}.")
    archive = _Archive(source, passage)
    documents = _Documents()
    columns = _QAColumns(question_column, answer_column, context_column, passage_column)
    records: list[_Record] = []
    report: Report = {"rows": 0}
    stream = _rows(source, split, split_column, name, revision, dialect, limit is not None)
    for number, row in stream:
        report["rows"] += 1
        if isinstance(row.get("document"), dict):
            record = _from_hub(row, passage, documents)
        elif {"document_id", "answer1"} <= set(row):
            text = archive.text(row["document_id"])
            record = _record(row["document_id"], text, row.get("question"), row["answer1"])
        else:
            record = _from_columns(row, columns, passage, source, documents)
        _check_record(record, number, source)
        records.append(record)
        if limit is not None and len(records) >= limit:
            break
    if not records:
        raise ValueError(f"qa.source: '{source}' has no record.")
    frame = pd.DataFrame(records, columns=list(_Record._fields), dtype=object)
    if passage == "column" and not context_column:
        # A passage names its own context; a number is a handier name.
        passages = dict.fromkeys(frame["passage"])
        frame["context"] = frame["passage"].map(
            {text: f"passage-{i}" for i, text in enumerate(passages)}
        )
    frame.attrs["report"] = report | {
        "records": len(records),
        "contexts": frame["context"].nunique(),
    }
    return frame


class _Record(NamedTuple):
    context: str
    passage: str
    question: str
    answer: str


class _QAColumns(NamedTuple):
    """Names of the columns of plain files; None where there is none."""

    question: str
    answer: str
    context: str | None
    passage: str | None


def _record(context: str, passage: str, question: Any, answer: Any) -> _Record:
    """A record, white space collapsed; of several answers the first."""
    if isinstance(answer, list | tuple) and answer:
        answer = answer[0]
    return _Record(context, passage, _clean(question), _clean(answer))


def _check_record(record: _Record, number: int, source: str | Path) -> None:
    if not record.question:
        raise ValueError(
            f"qa.source: record {number} of '{source}' has no question; every record needs one."
        )
    if not record.answer:
        raise ValueError(
            f"qa.source: record {number} of '{source}' ({record.question[:60]!r}) has no answer; "
            "every record needs one."
        )


def _from_columns(
    row: Row, columns: _QAColumns, passage: str, source: str | Path, documents: "_Documents"
) -> _Record:
    named = (columns.question, columns.context, columns.passage)
    missing = [name for name in named if name is not None and name not in row]
    if columns.answer not in row and "choices" not in row:
        missing.append(columns.answer)
    if missing:
        raise ValueError(
            f"qa.source: '{source}' has no column {missing[0]!r}, but {', '.join(map(str, row))}."
        )
    answer = row[columns.answer] if columns.answer in row else _choice(row)
    text = documents.clean(row[columns.passage]) if passage == "column" and columns.passage else ""
    context = str(row[columns.context]) if columns.context else text
    return _record(context, text, row[columns.question], answer)


def _rows(
    source: str | Path,
    split: str,
    split_column: str | None,
    name: str | None,
    revision: str | None,
    dialect: Dialect,
    streaming: bool,
) -> Iterator[tuple[int, Row]]:
    """Yield (row number from 1 on, row); with a split column only the rows of the split."""
    seen: set[str] = set()
    stream = rows(
        source, split=split, name=name, revision=revision, streaming=streaming, dialect=dialect
    )
    for number, row in enumerate(stream, 1):
        if split_column is not None:
            if split_column not in row:
                raise ValueError(
                    f"split_column = {split_column!r}: '{source}' has the columns "
                    f"{', '.join(map(str, row))}."
                )
            seen.add(str(row[split_column]))
            if str(row[split_column]) != split:
                continue
        yield number, row
    if split_column is not None and split not in seen:
        raise ValueError(
            f"split = {split!r}: '{source}' has {', '.join(sorted(seen)) or 'no row'} in its "
            f"column {split_column!r}."
        )


def _clean(value: Any) -> str:
    """A text with white space collapsed; "" for what is no single value."""
    if value is None or isinstance(value, list | tuple | dict):
        return ""
    return " ".join(value.split()) if isinstance(value, str) else str(value)


class _Documents:
    """The documents of many records: each is cleaned, and held, once."""

    def __init__(self) -> None:
        self.known: dict[bytes, str] = {}

    def clean(self, value: Any) -> str:
        """As `_clean`; the same string for the same document."""
        if not isinstance(value, str):
            return _clean(value)
        digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if digest not in self.known:
            self.known[digest] = _clean(value)
        return self.known[digest]


def _from_hub(row: Row, passage: str, documents: _Documents) -> _Record:
    document, question = row["document"], row.get("question")
    text: Any = ""
    if passage in ("summary", "full"):
        text = document.get("summary" if passage == "summary" else "text")
        if isinstance(text, dict) and passage == "summary":
            text = text.get("text")
        if not text:
            raise ValueError(
                f"qa.passage = {passage!r}: document {document.get('id')!r} has none; choose "
                f"another of {', '.join(PASSAGES)}."
            )
    if isinstance(question, dict):
        question = question.get("text")
    answers = [a.get("text") if isinstance(a, dict) else a for a in row.get("answers") or ()]
    return _record(str(document.get("id")), documents.clean(text), question, answers[:1])


def _choice(row: Row) -> str | None:
    """The right answer of a multiple-choice record, as `qa_tasks` reads ARC; None without one."""
    try:
        return TASKS["arc"].read(row)["answer"]
    except ValueError:
        return None


class _Archive:
    """The document texts in the files beside qaps.csv, each read once, when it is asked for."""

    def __init__(self, source: str | Path, passage: str) -> None:
        self.folder, self.passage = Path(str(source)).parent, passage
        self.summaries: dict[str, str] | None = None
        self.full_texts: dict[str, str] = {}

    def text(self, document: str) -> str:
        if self.passage == "summary":
            if self.summaries is None:
                path = self.folder / "summaries.csv"
                if not path.is_file():
                    raise ValueError(
                        f"qa.passage = 'summary': there is no {path}, which holds the summaries "
                        "of qaps.csv."
                    )
                self.summaries = _summaries(path)
            if document not in self.summaries:
                raise ValueError(
                    f"qa.passage = 'summary': summaries.csv has none of document {document!r}."
                )
            return self.summaries[document]
        if self.passage == "full":
            if document in self.full_texts:
                return self.full_texts[document]
            path = self.folder / "tmp" / f"{Path(document).name}.content"
            if not path.is_file():
                raise ValueError(
                    f"qa.passage = 'full': there is no {path}, where NarrativeQA's script puts "
                    "the text of a document."
                )
            text = _clean(path.read_text(encoding="utf-8", errors="replace"))
            self.full_texts[document] = text
            return text
        return ""


def _summaries(path: Path) -> dict[str, str]:
    columns = ("document_id", "summary")
    summaries = {}
    for row in rows(path, columns=columns):
        if missing := [column for column in columns if column not in row]:
            raise ValueError(
                f"qa.passage = 'summary': {path} has no column {missing[0]!r}, but "
                f"{', '.join(map(str, row))}."
            )
        summaries[row["document_id"]] = _clean(row["summary"])
    return summaries


def concatenate(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of several sources as one; their reports are added up."""
    frames = list(frames)
    report: dict[str, int] = {}
    for frame in frames:
        for reason, number in frame.attrs["report"].items():
            report[reason] = report.get(reason, 0) + number
    whole = pd.concat([frame.assign() for frame in frames], ignore_index=True)
    whole.attrs["report"] = report
    return whole


def word_topics(texts: Sequence[str], count: int) -> tuple[list[str], list[int]]:
    """Return topics of texts for a data set that names none: each topic is a word.

    Returns:
        The `count` words that occur in most texts, without words that occur in more than a tenth of
        them; and for each text the index of the word with the highest TF-IDF in it (-1: none of
        them occurs).

    Raises:
        ValueError: the texts have fewer such words.
    """
    # sklearn takes a second to import.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        stop_words="english", token_pattern=r"(?u)\b[a-zA-Z]{4,}\b", min_df=2, max_df=0.1
    )
    try:
        weights = vectorizer.fit_transform(texts).tocsc()
    except ValueError:  # no word is left
        weights = None
    words = vectorizer.get_feature_names_out() if weights is not None else []
    if len(words) < count:
        raise ValueError(
            f"generator.topics = 'data': the {len(texts)} stories share only {len(words)} words, "
            f"{count} topics are needed."
        )
    spread = np.diff(weights.indptr)
    chosen = np.lexsort((words, -spread))[:count]
    held = weights[:, chosen].tocsr()
    best = np.asarray(held.argmax(axis=1)).ravel()
    return [str(words[b]) for b in chosen], np.where(np.diff(held.indptr) > 0, best, -1).tolist()


def opening(text: str, words: int) -> tuple[str, str]:
    """Return the first `words` words of a text, and the rest with the white space before it.

    ("", text) if the first sentence has no more than `words` words.
    """
    match = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+", text)
    if match is None or match.end() >= len(sentences(text)[0]):
        return "", text
    return text[: match.end()], text[match.end() :]
