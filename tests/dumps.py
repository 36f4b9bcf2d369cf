"""Files of datasets with the columns and the oddities that the published ones have, on given texts.

`write(folder, "webis/tldr-17", texts)` writes the files and returns where they are.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SUBREDDITS = ("tifu", "askscience", "books", "gaming")


def tweets(folder: Path, texts: Sequence[str]) -> list[Path]:
    """enryu43/twitter100m_tweets: two parquet files; some rows have links and hashtags, come from
    after June 2020, or are no English.
    """
    rows = []
    for i, text in enumerate(texts):
        link = " https://t.co/aB3" if i % 5 == 0 else ""
        tags = " #nlp #loops" if i % 7 == 0 else ""
        rows.append(
            {
                "user": f"user{i % 50}",
                "id": f"{10**18 + i}",
                "tweet": f"{text}{link}{tags}",
                "replies": i % 3,
                "retweets": i % 4,
                "likes": i % 9,
                "quotes": 0,
                "date": f"20{15 + i % 5}-0{1 + i % 9}-15 12:00:00+00:00",
            }
        )
    late = rows[0] | {"tweet": f"{texts[0]} So they say.", "date": "2021-03-01 09:00:00+00:00"}
    other = "Die Sitzung des Bundestages wurde am frühen Morgen ohne ein Ergebnis beendet, und " * 2
    rows += [late, rows[1] | {"tweet": other}, rows[2] | {"tweet": None}]
    half = len(rows) // 2
    return [
        _parquet(folder / f"data/train-0000{i}-of-00002.parquet", part)
        for i, part in enumerate((rows[:half], rows[half:]))
    ]


def senators(folder: Path, texts: Sequence[str]) -> list[Path]:
    """m-newhauser/senator-tweets: a parquet file per split, with embeddings."""
    rows = [
        {
            "date": "2021-01-15T10:00:00Z",
            "id": f"{10**18 + i}",
            "username": f"Sen{i % 20}",
            "text": text,
            "party": "Democrat" if i % 2 else "Republican",
            "labels": i % 2,
            "embeddings": [0.0, 1.0],
        }
        for i, text in enumerate(texts)
    ]
    cut = len(rows) * 4 // 5
    return [
        _parquet(folder / "data/train-00000-of-00001.parquet", rows[:cut]),
        _parquet(folder / "data/test-00000-of-00001.parquet", rows[cut:]),
    ]


def submissions(folder: Path, texts: Sequence[str]) -> list[Path]:
    """HuggingFaceGECLM/REDDIT_submissions as JSON lines: `edited` is false or a time, authors and
    flairs may be null, and some posts were removed.
    """
    rows = []
    for i, text in enumerate(texts):
        first, _, rest = text.partition(" ")
        rows.append(
            {
                "archived": False,
                "author": None if i % 11 == 0 else f"user{i % 40}",
                "created_utc": 1_500_000_000 + i,
                "edited": 1_500_000_500.0 + i if i % 6 == 0 else False,
                "id": f"t3_{i:x}",
                "link_flair_text": None if i % 2 else "Discussion",
                "num_comments": i % 13,
                "over_18": False,
                "score": i % 17,
                "selftext": f"{rest} [removed]" if i % 23 == 0 else rest,
                "subreddit": SUBREDDITS[i % len(SUBREDDITS)],
                "title": first,
                "url": f"https://www.reddit.com/r/{i:x}",
            }
        )
    return [_lines(folder / "submissions.jsonl", rows)]


def webis(folder: Path, texts: Sequence[str]) -> list[Path]:
    """Webis-TLDR-17: the JSON-lines file of zenodo.org/records/1168855, which has no title."""
    rows = []
    for i, text in enumerate(texts):
        body = f"{text}\n\nTL;DR: it is about {text.split()[-1]}"
        rows.append(
            {
                "author": f"user{i % 40}",
                "body": body,
                "content": text,
                "content_len": len(text.split()),
                "id": f"c{i:x}",
                "normalizedBody": body,
                "subreddit": SUBREDDITS[i % len(SUBREDDITS)],
                "subreddit_id": f"t5_{i % len(SUBREDDITS)}",
                "summary": f"it is about {text.split()[-1]}",
                "summary_len": 4,
            }
        )
    return [_lines(folder / "corpus-webis-tldr-17.json", rows)]


def wikipedia(folder: Path, texts: Sequence[str]) -> list[Path]:
    """wikimedia/wikipedia: articles of several paragraphs, the first of which is kept."""
    rows = [
        {
            "id": str(i),
            "url": f"https://en.wikipedia.org/wiki/A{i}",
            "title": f"A{i}",
            "text": f"{text}\n\nHistory\n\nIts history is long.",
        }
        for i, text in enumerate(texts)
    ]
    return [_parquet(folder / "20231101.en/train-00000-of-00001.parquet", rows)]


def openmeva(folder: Path, count: int = 40, seed: int = 0) -> list[Path]:
    """Jiann/OpenMEVA's mans_roc.json: stories of five generators, each scored by five people."""
    draw = np.random.default_rng(seed)
    stories = {}
    for i in range(count):
        made = {
            name: {
                "text": " ".join(["He went home."] * (1 + int(draw.integers(4)))),
                "score": [int(draw.integers(1, 6)) for _ in range(5)],
            }
            for name in ("fusion", "s2s", "gpt_kg", "gpt", "plan_write")
        }
        prompt = f"Tom lost key {i}."
        stories[str(i)] = {"prompt": prompt, "gold_response": "He found it.", "gen": made}
    place = folder / "mans_roc.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps(stories, indent=1), encoding="utf8")
    return [place]


DATASETS: dict[str, Callable[[Path, Sequence[str]], list[Path]]] = {
    "enryu43/twitter100m_tweets": tweets,
    "m-newhauser/senator-tweets": senators,
    "HuggingFaceGECLM/REDDIT_submissions": submissions,
    "webis/tldr-17": webis,
    "wikimedia/wikipedia": wikipedia,
}


def write(folder: Path, name: str, texts: Sequence[str]) -> list[Path]:
    """Writes the files of a dataset below `folder`/NAME and returns their paths."""
    return DATASETS[name](folder / name, texts)


def _parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf8")
    return path
