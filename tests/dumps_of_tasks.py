"""Snapshots of the data sets of the other three papers, with the files, columns and configurations
that their repositories have, on given sentences.

`write(folder, "allenai/sciq", texts)` writes the files below `folder`, where a run whose working
directory it is finds them under the name that the hub has. Every row is made of whole sentences.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]
LEANINGS = ("From the Right", "From the Left", "From the Center")


def sciq(folder: Path, texts: Sequence[str]) -> None:
    """allenai/sciq: questions, three distractors, and a text that supports the answer."""
    rows = [
        {
            "question": _question(text),
            "distractor3": _word(text, 1),
            "distractor1": _word(text, 2),
            "distractor2": _word(text, 3),
            "correct_answer": _word(text, 0),
            "support": text,
        }
        for text in texts
    ]
    _splits(folder / "data", rows)


def gsm8k(folder: Path, texts: Sequence[str]) -> None:
    """openai/gsm8k: two configurations, named in the card; answers end in ####."""
    rows = [
        {"question": _question(text), "answer": f"{text} <<{i}+1={i + 1}>>\n#### {i + 1}"}
        for i, text in enumerate(texts)
    ]
    files = {name: _splits(folder / name, rows) for name in ("main", "socratic")}
    _card(folder, files)


def arc(folder: Path, texts: Sequence[str]) -> None:
    """allenai/ai2_arc: two sets; choices with their labels, letters or numbers."""
    rows = []
    for i, text in enumerate(texts):
        labels = list("ABCD" if i % 3 else "1234")
        choices = {"text": [f"{_word(text, k)} {k}" for k in range(4)], "label": labels}
        about = {"id": f"Mercury_{i}", "question": _question(text), "choices": choices}
        rows.append(about | {"answerKey": labels[i % 4]})
    files = {name: _splits(folder / name, rows) for name in ("ARC-Challenge", "ARC-Easy")}
    _card(folder, files)


def bookcorpus(folder: Path, texts: Sequence[str]) -> None:
    """bookcorpus/bookcorpus at refs/convert/parquet: sentences in lower case, tokens apart."""
    lines = [text.lower().replace(",", " ,").replace(".", " .") for text in texts]
    half = len(lines) // 2
    for number, part in enumerate((lines[:half], lines[half:])):
        _parquet(folder / f"plain_text/train/000{number}.parquet", [{"text": t} for t in part])


def narrativeqa(folder: Path, texts: Sequence[str]) -> None:
    """deepmind/narrativeqa: the whole document in every row, tokens beside all texts."""
    rows = []
    for i, text in enumerate(texts):
        number = i // 6
        about = " ".join(texts[6 * number : 6 * number + 4])
        summary = {"text": about, "tokens": about.split(), "url": "http://x", "title": "A book"}
        document: dict[str, Any] = {"id": f"{number:040x}", "kind": "gutenberg", "url": "http://x"}
        document |= {"file_size": 9, "word_count": 9, "start": "The", "end": "end."}
        document |= {"summary": summary, "text": f"<html> {about} " * 20}
        answers = [_tokens(_word(text, 0)), _tokens(f"It is {_word(text, 0)}.")]
        question = _tokens(_question(text))
        rows.append({"document": document, "question": question, "answers": answers})
    _splits(folder / "data", rows)


def rocstories(folder: Path, texts: Sequence[str]) -> None:
    """mintujupally/ROCStories: five sentences in one text, some of which quote others."""
    rows = []
    for i in range(len(texts) // 4):
        first, *others = texts[4 * i : 4 * i + 4]
        spoken = f'"Is it {_word(first, 0)}?" Tom asked.'
        rows.append({"text": " ".join([first, spoken, *others])})
    _splits(folder / "data", rows)


def bias_flipper(folder: Path, texts: Sequence[str]) -> None:
    """Webis-Bias-Flipper-18: data_public.csv, as many articles of each label, in several lines."""
    path = folder / "data_public.csv"
    header = ["story_id", "event_id", "bias", "source", "original_title", "original_body"]
    with open(path, "w", encoding="utf-8", newline="") as stream:
        lines = csv.writer(stream)
        lines.writerow(header)
        for i in range(len(texts) // 12):
            title, *body = texts[12 * i : 12 * i + 12]
            told = " ".join(body[:6]) + "\n\n" + " ".join(body[6:])
            lines.writerow([i, i // 3, LEANINGS[i % 3], "AllSides", title, told])


DATASETS: Mapping[str, Callable[[Path, Sequence[str]], None]] = {
    "allenai/sciq": sciq,
    "openai/gsm8k": gsm8k,
    "allenai/ai2_arc": arc,
    "bookcorpus/bookcorpus": bookcorpus,
    "deepmind/narrativeqa": narrativeqa,
    "mintujupally/ROCStories": rocstories,
    "data_public.csv": bias_flipper,
}


def write(folder: Path, name: str, texts: Sequence[str]) -> None:
    """Write the files of a data set below `folder`/NAME, or the file of that name."""
    DATASETS[name](folder if name.endswith(".csv") else folder / name, texts)


def _question(text: str) -> str:
    return f"What of {' '.join(text.rstrip('.!?').split()[:8])}?"


def _word(text: str, place: int) -> str:
    words = text.rstrip(".!?").split()
    return words[-1 - place % len(words)]


def _tokens(text: str) -> dict[str, Any]:
    return {"text": text, "tokens": text.split()}


def _splits(folder: Path, rows: Rows) -> dict[str, Path]:
    """Write three quarters as the split train, the others as test; {split: file}."""
    cut = len(rows) * 3 // 4
    # Rows of a document stay together.
    cut -= cut % 6
    end = "-00000-of-00001"
    parts = {"train": rows[:cut], "test": rows[cut:]}
    return {
        split: _parquet(folder / f"{split}{end}.parquet", part) for split, part in parts.items()
    }


def _card(folder: Path, files: Mapping[str, Mapping[str, Path]]) -> None:
    """Write the head of README.md, which names the configurations and their files."""
    lines = ["---", "license: mit", "configs:"]
    for name, of_split in files.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in of_split:
            lines += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "# A data set", ""]))


def _parquet(path: Path, rows: Rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
