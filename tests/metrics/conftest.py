"""Texts for the metrics' tests: hostile ones made here, human ones from the optional data beside
the repository.
"""

import functools
import json
import random
from pathlib import Path

import pytest

SNIPPETS = [
    "cannot",
    "can't",
    "won't",
    "'tis",
    "'twas",
    "wanna",
    "gonna go",
    "don't",
    "d'ye",
    "more'n",
    "I'll",
    "dogs'",
    "''",
    '"',
    "``",
    "--",
    "...",
    "..",
    ".",
    ",",
    ":",
    "foo",
    "bar.",
    "(x)",
    "U.S.",
    "a.m.",
    "  ",
    "\n",
    "\t",
    "n't",
    "3,000",
    "5:30",
    "1.5",
    "5.",
    ".5",
    "5-6",
    "foo,bar",
    "é",
    "x.)",
    "”",
    "»",
    "&amp;",
    "&quot;",
    "&lt;b&gt;",
    "&amp;lt;",
    "-\n",
    "<skipped>",
    "https://t.co/aB3",
    "#tag",
    "@user",
    "مرحبا",
    "שלום",
    "😀",
    "👩‍👩‍👧",
    "\u2003",
    "\u00a0",
    "\u3000",
    "\x00",
    "\x1c",
    "\ud800",
    "ﬁ",
    "x" * 70,
    "5..5",
    "5,.",
    "-5",
    "a--b",
    "!?",
]


@pytest.fixture
def hostile():
    """2,000 texts glued from pieces that tokenisers treat in special ways; some are empty."""
    draw = random.Random(0)
    glue = ["", " ", " ", "\n"]
    texts = [
        "".join(draw.choice(SNIPPETS) + draw.choice(glue) for _ in range(draw.randint(0, 8)))
        for _ in range(1990)
    ]
    return texts + [
        "",
        " ",
        "\n",
        "abc-\n",
        "a-\nb",
        "<skip<skipped>ped>",
        "abcdefgh",
        "abcdefgh\0",
        "abcdefghi",
        "x" * 200,
    ]


@pytest.fixture
def human(shared):
    """human(folder_and_file, n): the first n texts of a file of the optional data, spread over the
    file.
    """

    return lambda relative, n: list(spread(shared(f"data/{relative}"), n))


@functools.cache
def spread(path: Path, n: int) -> tuple[str, ...]:
    with path.open(encoding="utf-8") as file:
        lines = file.readlines()
    return tuple(json.loads(line)["text"] for line in lines[:: max(1, len(lines) // n)][:n])


@pytest.fixture
def tweets(human):
    return human("senate_tweets/tweets.jsonl", 1500) + human("tweeteval/tweets.jsonl", 1500)


@pytest.fixture
def prose(human):
    return (
        human("reddit_top/selfposts.jsonl", 300)
        + human("gutenberg_books/paragraphs.jsonl", 500)
        + human("wikitext/paragraphs.jsonl", 300)
    )
