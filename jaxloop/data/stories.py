"""Stories and question-answer records: ROCStories and NarrativeQA as their archives and the hub
have them, ARC, prose, or plain columns.

A story becomes a beginning and its last sentence, a question-answer record a question, an answer
and (where it has one) the document that it is about; both as tables that the diversity study (arXiv
2506.19262) trains on.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.data.delimited import Dialect
from jaxloop.data.qa_tasks import TASKS
from jaxloop.data.sources import label, rows

PASSAGES = ("none", "summary", "full", "column")
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+[\"'“‘(\[]*[A-Z0-9]|\s*$)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Rev|Hon|Capt|Col|Gen|Lt|Messrs|vs|etc|e\.g|i\.e|No|Mt)|\b[A-Z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of English prose, white space collapsed. Abbreviations such as "Mr." and
    initials end none.
    """
    text = " ".join(text.split())
    found, begin = [], 0
    for match in _END.finditer(text):
        if _ABBREVIATION.search(text[begin : match.end()]) and match.end() < len(text):
            continue
        found.append(text[begin : match.end()].strip())
        begin = match.end()
    if text[begin:].strip():
        found.append(text[begin:].strip())
    return found


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
    """Stories of `count` sentences: columns beginning (all sentences but the last), ending (the
    last), title, source.

    Rows with the columns sentence1 … sentence`count` (ROCStories' files; storytitle or title is the
    title) are taken as they are. Of other rows
    `text_column` is cut into sentences; texts with fewer are left out, longer ones give their first
    `count` sentences, or with `windows` one
    story for every `count` sentences in a row.
    split_column: the column of a file that names the split, where one file holds several; split,
    name, revision as in `load_texts`; limit: stop
    after so many stories; dialect: of csv and tsv files. `frame.attrs["report"]` counts rows,
    stories and what was left out.
    Raises ValueError, one sentence, for what cannot be read, a missing column, an empty sentence,
    or no story at all.
    """
    if count < 2:
        raise ValueError(
            f"story.sentences = {count}: must be at least 2, a beginning and an ending."
        )
    columns = [f"sentence{i + 1}" for i in range(count)]
    found, report = [], {"rows": 0, f"fewer than {count} sentences": 0}
    for number, row in _rows(source, split, split_column, name, revision, dialect):
        report["rows"] += 1
        title = str(row.get("storytitle") or row.get("title") or "")
        if set(columns) <= set(row):
            parts = [_clean(row[c]) for c in columns]
            if not all(parts):
                empty = columns[[bool(p) for p in parts].index(False)]
                raise ValueError(
                    f"story.sources: row {number} of '{source}' has no {empty}; a story needs "
                    f"{count} sentences."
                )
            pieces = [parts]
        else:
            if text_column not in row:
                raise ValueError(
                    f"story.text_column = {text_column!r}: '{source}' has neither it nor "
                    f"sentence1 to sentence{count}, but {', '.join(map(str, row))}."
                )
            parts = sentences(_clean(row[text_column]))
            steps = (
                range(0, len(parts) - count + 1, count)
                if windows
                else range(min(1, max(0, len(parts) - count + 1)))
            )
            pieces = [parts[i : i + count] for i in steps]
            report[f"fewer than {count} sentences"] += not pieces
        found += [(" ".join(p[:-1]), p[-1], title) for p in pieces]
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise ValueError(
            f"story.sources: '{source}' has no story of {count} sentences among its "
            f"{report['rows']} rows."
        )
    found = found[:limit]
    frame = pd.DataFrame(found, columns=["beginning", "ending", "title"], dtype=object).assign(
        source=label(source)
    )
    frame.attrs["report"] = report | {"stories": len(found)}
    return frame


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
    """Question-answer records: columns context (name of the document, "" where there is none),
    passage (its text, or ""), question, answer.

    Understood are NarrativeQA on the hub (`document`, `question` and `answers` with texts inside)
    and as its archive has it (qaps.csv, beside
    it summaries.csv and, for the full text, tmp/<document_id>.content); ARC (`choices` with `gold`
    or `answerKey`); and plain columns. Of several
    answers the first counts.
    passage: "none", "summary" or "full" (of NarrativeQA), or "column": the text of
    `passage_column`, which also names the context unless
    `context_column` does. Other arguments as in `read_stories`.
    Raises ValueError, one sentence, for what cannot be read, a missing column or passage, and a
    record without question or answer.
    """
    if passage not in PASSAGES:
        raise ValueError(f"qa.passage = {passage!r}: must be one of {', '.join(PASSAGES)}.")
    archive = _Archive(source, passage)
    found, report = [], {"rows": 0}
    for number, row in _rows(source, split, split_column, name, revision, dialect):
        report["rows"] += 1
        if isinstance(row.get("document"), dict):
            context, text, question, answer = _from_hub(row, passage)
        elif {"document_id", "answer1"} <= set(row):
            context, question, answer = row["document_id"], row.get("question"), row["answer1"]
            text = archive.text(context)
        else:
            missing = [
                c
                for c in (question_column, context_column, passage_column)
                if c is not None and c not in row
            ]
            if answer_column not in row and "choices" not in row:
                missing.append(answer_column)
            if missing:
                raise ValueError(
                    f"qa.source: '{source}' has no column {missing[0]!r}, but "
                    f"{', '.join(map(str, row))}."
                )
            question, answer = (
                row[question_column],
                _choice(row)
                if "choices" in row and answer_column not in row
                else row[answer_column],
            )
            text = _clean(row[passage_column]) if passage == "column" and passage_column else ""
            context = str(row[context_column]) if context_column else text
        question, answer = (
            _clean(question),
            _clean(answer[0] if isinstance(answer, list | tuple) and len(answer) else answer),
        )
        if not question:
            raise ValueError(
                f"qa.source: record {number} of '{source}' has no question; every record needs one."
            )
        if not answer:
            raise ValueError(
                f"qa.source: record {number} of '{source}' ({question[:60]!r}) has no answer; "
                "every record needs one."
            )
        found.append((context, text, question, answer))
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise ValueError(f"qa.source: '{source}' has no record.")
    frame = pd.DataFrame(found, columns=["context", "passage", "question", "answer"], dtype=object)
    if passage == "column" and not context_column:
        # A passage names its own context; a number is a handier name.
        frame["context"] = frame["passage"].map(
            {text: f"passage-{i}" for i, text in enumerate(dict.fromkeys(frame["passage"]))}
        )
    frame.attrs["report"] = report | {"records": len(found), "contexts": frame["context"].nunique()}
    return frame


def _rows(source, split, split_column, name, revision, dialect) -> Iterator[tuple[int, dict]]:
    """(row number from 1 on, row) of a source; of those with a split column only the split's."""
    seen: set[str] = set()
    for number, row in enumerate(
        rows(source, split=split, name=name, revision=revision, dialect=dialect), 1
    ):
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


def _clean(value) -> str:
    return (
        ""
        if value is None
        else " ".join(value.split())
        if isinstance(value, str)
        else ""
        if isinstance(value, list | tuple | dict)
        else str(value)
    )


def _from_hub(row, passage):
    document, question = row["document"], row.get("question")
    summary = document.get("summary")
    text = {
        "summary": summary.get("text") if isinstance(summary, dict) else summary,
        "full": document.get("text"),
    }.get(passage, "")
    answers = [a.get("text") if isinstance(a, dict) else a for a in row.get("answers") or ()]
    if passage in ("summary", "full") and not text:
        raise ValueError(
            f"qa.passage = {passage!r}: document {document.get('id')!r} has none; choose another "
            f"of {', '.join(PASSAGES)}."
        )
    return (
        str(document.get("id")),
        _clean(text),
        question.get("text") if isinstance(question, dict) else question,
        answers[:1],
    )


def _choice(row) -> str | None:
    """The right answer of a multiple-choice record, as `tasks` reads ARC; None where it has none."""
    try:
        return TASKS["arc"].read(row)["answer"]
    except ValueError:
        return None


class _Archive:
    """The texts beside qaps.csv, read when one is asked for."""

    def __init__(self, source, passage):
        self.folder, self.passage, self.summaries = Path(str(source)).parent, passage, None

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
            path = self.folder / "tmp" / f"{Path(document).name}.content"
            if not path.is_file():
                raise ValueError(
                    f"qa.passage = 'full': there is no {path}, where NarrativeQA's script puts "
                    "the text of a document."
                )
            return _clean(path.read_text(encoding="utf-8", errors="replace"))
        return ""


def _summaries(path: Path) -> dict[str, str]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as stream:
        return {row["document_id"]: _clean(row["summary"]) for row in csv.DictReader(stream)}


def concatenate(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of several sources as one, their reports added up."""
    frames = list(frames)
    report: dict[str, int] = {}
    for frame in frames:
        for reason, number in frame.attrs["report"].items():
            report[reason] = report.get(reason, 0) + number
    whole = pd.concat([frame.assign() for frame in frames], ignore_index=True)
    whole.attrs["report"] = report
    return whole


def word_topics(texts: Sequence[str], count: int) -> tuple[list[str], list[int]]:
    """(topics, topic of each text): the `count` words that most texts hold, words of more than a
    tenth of them left out, and for each text the one that tells most about it (by TF-IDF; -1: none
    of them). A stand-in for topics that nobody named.

    Raises ValueError where the texts have fewer such words.
    """
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
    """The first `words` words of a text and the rest, which begins with the white space between;
    ("", text) where the first sentence has no more.
    """
    found = re.match(rf"\s*(?:\S+\s+){{{words - 1}}}\S+", text)
    if found is None or found.end() >= len(sentences(text)[0]):
        return "", text
    return text[: found.end()], text[found.end() :]
