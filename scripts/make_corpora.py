"""Makes the corpora that come with jaxloop (jaxloop/assets/corpora) from their raw data.

    python scripts/make_corpora.py --raw=FOLDER

FOLDER holds what jaxloop/assets/corpora/ORIGIN.md names as origins, one JSON object a line:
presidential/paragraphs.jsonl (text, corpus, speech), aesop_fables/fables.jsonl (title, text),
gutenberg_books/paragraphs.jsonl (text, book, chapter), gsm8k/gsm8k.jsonl (question, answer, split)
and goemotions/comments.jsonl (text, emotions). The same raw data and the same pyarrow give the same
files, byte for byte; another pyarrow gives the same texts. `--docs` makes the two parts of `docs`
too, from the libraries that are installed, and LICENSES.txt from their licence files; without it
they stay as they are, for other versions of the libraries have other texts.
"""

import argparse
import functools
import hashlib
import importlib.metadata
import itertools
import json
import re
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import _root  # noqa: F401
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import corpora, docs
from jaxloop.data.digest import digest_texts
from jaxloop.data.sentences import sentences
from jaxloop.runtime.atomic_io import write_atomic

FOLDER = Path(corpora.__file__).resolve().parents[1] / "assets" / "corpora"

# Who spoke, by the name in the raw data, and of which party; the same name twice is told apart by
# the year.
# Lincoln's second election was on
# the ticket of the National Union, which his party had renamed itself for it.
PRESIDENTS: dict[str, tuple[str, str] | dict[int, tuple[str, str]]] = {
    "Washington": ("George Washington", "none"),
    "Adams": {1797: ("John Adams", "Federalist"), 1825: ("John Quincy Adams", "D-R")},
    "Jefferson": ("Thomas Jefferson", "D-R"),
    "Madison": ("James Madison", "D-R"),
    "Monroe": ("James Monroe", "D-R"),
    "Jackson": ("Andrew Jackson", "D"),
    "VanBuren": ("Martin Van Buren", "D"),
    "Harrison": {1841: ("William Henry Harrison", "Whig"), 1889: ("Benjamin Harrison", "R")},
    "Polk": ("James K. Polk", "D"),
    "Taylor": ("Zachary Taylor", "Whig"),
    "Pierce": ("Franklin Pierce", "D"),
    "Buchanan": ("James Buchanan", "D"),
    "Lincoln": ("Abraham Lincoln", "R"),
    "Grant": ("Ulysses S. Grant", "R"),
    "Hayes": ("Rutherford B. Hayes", "R"),
    "Garfield": ("James A. Garfield", "R"),
    "Cleveland": ("Grover Cleveland", "D"),
    "McKinley": ("William McKinley", "R"),
    "Roosevelt": {1905: ("Theodore Roosevelt", "R"), 1933: ("Franklin D. Roosevelt", "D")},
    "Taft": ("William Howard Taft", "R"),
    "Wilson": ("Woodrow Wilson", "D"),
    "Harding": ("Warren G. Harding", "R"),
    "Coolidge": ("Calvin Coolidge", "R"),
    "Hoover": ("Herbert Hoover", "R"),
    "Truman": ("Harry S. Truman", "D"),
    "Eisenhower": ("Dwight D. Eisenhower", "R"),
    "Kennedy": ("John F. Kennedy", "D"),
    "Johnson": ("Lyndon B. Johnson", "D"),
    "Nixon": ("Richard Nixon", "R"),
    "Ford": ("Gerald R. Ford", "R"),
    "Carter": ("Jimmy Carter", "D"),
    "Reagan": ("Ronald Reagan", "R"),
    "Bush": {1989: ("George H. W. Bush", "R"), 2001: ("George W. Bush", "R")},
    "GWBush": ("George W. Bush", "R"),
    "Clinton": ("Bill Clinton", "D"),
    "Obama": ("Barack Obama", "D"),
    "Trump": ("Donald Trump", "R"),
    "Biden": ("Joe Biden", "D"),
}
KINDS = {"inaugural": "Inaugural address", "state_union": "State of the Union address"}
# Speeches since this year are a corpus of their own: before, the parties' names did not stand for
# left and right as they do today.
SINCE = 1981
NOVELS = ("jane-austen_pride-and-prejudice", "mary-shelley_frankenstein")
ADVENTURES = (
    "arthur-conan-doyle_the-adventures-of-sherlock-holmes",
    "h-g-wells_the-war-of-the-worlds",
)
PER_BOOK, COMMENTS = 900, 3000
SPEECH_WORDS, BOOK_WORDS, COMMENT_WORDS = (40, 80), (25, 60), (14, 30)
PROBLEM_WORDS = 72  # of question and answer together: what tiny models can hold
LEFT_OUT = frozenset({"neutral", "anger", "annoyance", "disgust", "disapproval", "embarrassment"})
# What vaderSentiment's raters found this bad, from -4 to 4, does not belong in comments that
# everybody is to read.
HARSHEST = -2.0
_CALCULATION = re.compile(r"<<[^<>]*>>")
# People and places by handle, addresses, mark-up, and shouting.
_NO_COMMENT = re.compile(
    r"https?:|www\.|/?\b[ur]/\w|@\w|\S+\.(?:com|org|net)\b|[*_^~|<>{}\\#]|\[RELIGION\]|\b[A-Z]{4,}\b|\d{5,}"
    r"|[^\x20-\x7e’‘“”—–…]"
)
_WORD = re.compile(r"[a-z]+")
_APACHE = (
    "Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0), which is also jaxloop's "
    "own: see LICENSE"
)
_BUNDLED = re.compile(
    r"\n(?:-{4,}\n+)?(?:={4,} \w|-{4,}\n+\w+\n|This binary|The (?:SciPy|NumPy) repository and "
    r"source)|\n-{4,}\n",
    re.IGNORECASE,
)
# Slurs and obscenities, whole or within longer words, and (in comments alone) words of sex, drugs,
# violence,
# politics and religion. Nobody wants
# to read them in a program either: SHA-256, first ten hexadecimal digits.
_LISTS = (Path(__file__).parent / "unwanted_words.txt").read_text().split("\n\n")
WITHIN, EVERYWHERE, IN_COMMENTS = (frozenset(part.split()[1:]) for part in _LISTS)

Rows = Iterable[Mapping]


def clean(text: str) -> str:
    """The text with white space collapsed."""
    return " ".join(text.split())


def _hashed(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()[:10]


@functools.cache
def unwanted(word: str) -> bool:
    """Whether a word is unwanted everywhere, or one of the worst stems lies within it."""
    return _hashed(word) in EVERYWHERE or any(
        _hashed(word[i : i + n]) in WITHIN for n in (4, 5) for i in range(len(word) - n + 1)
    )


def decent(text: str) -> bool:
    """Whether none of the words of a text is unwanted."""
    return not any(map(unwanted, _WORD.findall(text.lower())))


def passages(text: str, low: int, high: int) -> Iterator[str]:
    """Whole sentences in a row that have `low` to `high` words together, cut as soon as they have
    enough; what does not fit is left out.
    """
    held: list[str] = []
    count = 0
    for sentence in sentences(text):
        words = len(sentence.split())
        if count + words > high:
            held, count = [], 0
            if words > high:
                continue
        held.append(sentence)
        count += words
        if count >= low:
            yield " ".join(held)
            held, count = [], 0


def spaced(items: Sequence, most: int) -> list:
    """At most so many of the items, evenly spaced."""
    return (
        [items[i * len(items) // most] for i in range(most)] if len(items) > most else list(items)
    )


def president(name: str, year: int) -> tuple[str, str]:
    """(full name, party) of the speaker of a year. Raises ValueError for a name that is not among
    `PRESIDENTS`.
    """
    found = PRESIDENTS.get(name)
    if found is None:
        raise ValueError(
            f"speeches: {name!r} is not one of the presidents; known are {', '.join(PRESIDENTS)}."
        )
    return (
        found if isinstance(found, tuple) else found[max(since for since in found if since <= year)]
    )


def speeches(rows: Rows, wanted: Callable[[str, int], bool]) -> dict[str, list]:
    """Passages of presidents' speeches: text, president, party, year, speech. wanted: of (kind,
    year).
    """
    found: dict[str, list] = {name: [] for name in ("text", "president", "party", "year", "speech")}
    for (kind, speech), paragraphs in itertools.groupby(
        rows, lambda row: (row["corpus"], row["speech"])
    ):
        year, name = speech.split("-")[:2]
        if not wanted(kind, int(year)):
            continue
        who, party = president(name, int(year))
        texts = [
            t
            for p in paragraphs
            for t in passages(p["text"].replace(" -- ", " – "), *SPEECH_WORDS)
            if decent(t)
        ]
        for text in texts:
            for column, value in zip(
                found, (text, who, party, int(year), KINDS[kind]), strict=True
            ):
                found[column].append(value)
    return found


def fables(rows: Rows) -> dict[str, list]:
    """Whole fables: text, title."""
    kept = [(clean(row["text"]), row["title"]) for row in rows if decent(row["text"])]
    return {"text": [text for text, _ in kept], "title": [title for _, title in kept]}


def books(rows: Rows, wanted: Sequence[str]) -> dict[str, list]:
    """Passages of some books, none across the end of a chapter: text, book, author."""
    texts: dict[str, list[str]] = {name: [] for name in wanted}
    for (book, _), paragraphs in itertools.groupby(rows, lambda row: (row["book"], row["chapter"])):
        if book in texts:
            texts[book] += [
                t
                for t in passages(" ".join(p["text"] for p in paragraphs), *BOOK_WORDS)
                if decent(t)
            ]
    found: dict[str, list] = {"text": [], "book": [], "author": []}
    for name, whole in texts.items():
        author, title = (
            part.replace("-", " ")
            .title()
            .replace(" Of ", " of ")
            .replace(" The ", " the ")
            .replace(" And ", " and ")
            for part in name.split("_")
        )
        for text in spaced(whole, PER_BOOK):
            for column, value in zip(
                found, (text, title, author.replace("H G ", "H. G. ")), strict=True
            ):
                found[column].append(value)
    return found


def problems(rows: Rows) -> dict[str, list]:
    """Short problems of grade-school mathematics: question, answer (worked out, without the notes
    for a calculator), split.
    """
    found: dict[str, list] = {"question": [], "answer": [], "split": []}
    for row in rows:
        question, answer = clean(row["question"]), _CALCULATION.sub("", row["answer"]).strip()
        if len(question.split()) + len(answer.split()) <= PROBLEM_WORDS and decent(
            question + " " + answer
        ):
            for column, value in zip(found, (question, answer, row["split"]), strict=True):
                found[column].append(value)
    return found


def emotions(rows: Rows, harsh: Callable[[str], bool]) -> dict[str, list]:
    """Comments that harm nobody: text, emotion (the first that raters named; comments of none are
    left out). harsh: a word too bad to be in one.
    """
    found: dict[str, str] = {}
    for row in rows:
        text, named = clean(row["text"]), row["emotions"]
        if not named or LEFT_OUT & set(named) or _NO_COMMENT.search(text) or not text[0].isupper():
            continue
        words = _WORD.findall(text.lower())
        if COMMENT_WORDS[0] <= len(text.split()) <= COMMENT_WORDS[1] and not any(
            unwanted(w) or _hashed(w) in IN_COMMENTS or harsh(w) for w in words
        ):
            found.setdefault(text, named[0])
    # In the order of a hash, so that what is kept is a random sample that needs no generator.
    chosen = sorted(found, key=lambda text: hashlib.sha256(text.encode()).digest())[:COMMENTS]
    return {"text": chosen, "emotion": [found[text] for text in chosen]}


def vader_harsh() -> Callable[[str], bool]:
    """Whether vaderSentiment's raters found a word at most `HARSHEST`."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    lexicon = SentimentIntensityAnalyzer().lexicon
    return lambda word: lexicon.get(word, 0.0) <= HARSHEST


def read(path: Path) -> Iterator[dict]:
    """Rows of a file of JSON objects."""
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def from_raw(raw: Path) -> dict[str, dict[str, list]]:
    """Every corpus but `docs`, columns by name."""
    return {
        "speeches": speeches(
            read(raw / "presidential" / "paragraphs.jsonl"), lambda kind, year: year >= SINCE
        ),
        "inaugurals": speeches(
            read(raw / "presidential" / "paragraphs.jsonl"),
            lambda kind, year: kind == "inaugural" and year < SINCE,
        ),
        "fables": fables(read(raw / "aesop_fables" / "fables.jsonl")),
        "novels": books(read(raw / "gutenberg_books" / "paragraphs.jsonl"), NOVELS),
        "adventures": books(read(raw / "gutenberg_books" / "paragraphs.jsonl"), ADVENTURES),
        "gsm8k": problems(read(raw / "gsm8k" / "gsm8k.jsonl")),
        "emotions": emotions(read(raw / "goemotions" / "comments.jsonl"), vader_harsh()),
    }


def from_libraries() -> dict[str, dict[str, list]]:
    """The two parts of `docs`, from the libraries that are installed. Raises ValueError where one
    of them is not.
    """
    table = docs.load_installed(docs.LIBRARIES)
    parts = {"docs": docs.HELD_OUT, "docs_pretrain": docs.PRETRAIN}
    return {
        name: {
            column: table.loc[table["domain"].isin(part), column].tolist()
            for column in ("text", "domain", "module")
        }
        for name, part in parts.items()
    }


def licences() -> str:
    """The licence files of the libraries whose text is shipped; the one that several have, once."""
    found: dict[str, list[str]] = {}
    for library, version in docs.versions().items():
        if library == "python":
            text = next(
                p
                for p in (
                    Path(sysconfig.get_path("stdlib")) / "LICENSE.txt",
                    Path(sys.base_prefix) / "LICENSE",
                )
                if p.exists()
            ).read_text()
        else:
            files = importlib.metadata.files(docs.distribution(library)) or ()
            mine = [
                f
                for f in files
                if re.fullmatch(r"(LICEN[CS]E|COPYING)(\.txt|\.rst|\.md)?", f.name)
                and ".dist-info" in str(f.parent)
            ]
            text = min(mine, key=lambda f: (len(f.parts), str(f))).read_text(encoding="utf-8")
        # What follows is of parts in other languages, whose text is not here.
        text = text.strip() if library == "python" else _BUNDLED.split(text)[0].strip()
        found.setdefault(
            _APACHE
            if "Version 2.0, January 2004" in text[:400] or "Apache License" in text[:400]
            else text,
            [],
        ).append(f"{library} {version}")
    return (
        f"\n\n{'=' * 100}\n\n".join(
            f"{', '.join(names)}\n\n{text}" for text, names in found.items()
        )
        + "\n"
    )


def to_parquet(columns: Mapping[str, Sequence]) -> bytes:
    """The columns as one compressed group of rows: the smallest file that pandas reads alone."""
    long = [name for name in columns if name in ("text", "question", "answer")]
    table = pa.table({name: pa.array(list(values)) for name, values in columns.items()})
    sink = pa.BufferOutputStream()
    short = [name for name in columns if name not in long]
    encoding = {name: "DELTA_LENGTH_BYTE_ARRAY" for name in long}
    packing = dict(
        compression="zstd", compression_level=22, use_dictionary=short, column_encoding=encoding
    )
    pq.write_table(
        table,
        sink,
        write_statistics=False,
        row_group_size=2**24,
        data_page_size=2**27,
        write_page_checksum=True,
        store_schema=False,
        **packing,
    )
    return sink.getvalue().to_pybytes()


def texts(columns: Mapping[str, Sequence]) -> list[str]:
    """What a fingerprint is taken over: the texts, or questions each with its answer."""
    return (
        list(columns["text"])
        if "text" in columns
        else [f"{q}\n{a}" for q, a in zip(columns["question"], columns["answer"], strict=True)]
    )


def entry(columns: Mapping[str, Sequence], data: bytes) -> dict:
    """What index.json says of a corpus."""
    return {
        "rows": len(next(iter(columns.values()))),
        "columns": list(columns),
        "fingerprint": digest_texts(texts(columns)),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def write(
    made: Mapping[str, Mapping[str, Sequence]],
    folder: Path,
    about: Mapping[str, dict] | None = None,
) -> None:
    """One parquet file a corpus, and index.json, in which what is not made stays as it was. about:
    more fields of an entry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = (
        json.loads((folder / "index.json").read_text()) if (folder / "index.json").exists() else {}
    )
    for name, columns in made.items():
        data = to_parquet(columns)
        write_atomic(folder / f"{name}.parquet", data)
        index[name] = entry(columns, data) | (about or {}).get(name, {})
    write_atomic(
        folder / "index.json", (json.dumps(dict(sorted(index.items())), indent=1) + "\n").encode()
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw data")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the corpora")
    parser.add_argument(
        "--docs", action="store_true", help="make docs from the installed libraries too"
    )
    options = parser.parse_args(argv)
    made, about = from_raw(options.raw), {}
    if options.docs:
        made |= from_libraries()
        found = docs.versions()
        about = {
            name: {"libraries": {k: v for k, v in found.items() if k in set(made[name]["domain"])}}
            for name in ("docs", "docs_pretrain")
        }
        write_atomic(options.out / "LICENSES.txt", licences().encode())
    write(made, options.out, about)
    print(
        "\n".join(
            f"{name}: {row['rows']:,} rows, {row['bytes']:,} bytes"
            for name, row in json.loads((options.out / "index.json").read_text()).items()
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
