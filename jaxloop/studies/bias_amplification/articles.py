"""Reads labelled articles, and makes prompts and training examples of them.

Source: arXiv 2410.15234, section 4.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from jaxloop.data import duplicates, load_texts
from jaxloop.data.dialect import Dialect
from jaxloop.data.sentences import sentences
from jaxloop.studies.bias_amplification.config import ArticlesConfig

_LINK = re.compile(r"\s*https?://\S+")
_COLUMNS = ["id", "title", "body", "label"]


class Codec(Protocol):
    """Texts to token ids without special ones, and back."""

    def encode(self, texts: Sequence[str], /) -> list[list[int]]:
        """Return the token ids of every text."""

    def decode(self, rows: Sequence[Sequence[int]], /) -> list[str]:
        """Return the text of every row of token ids."""


class AnyLength:
    """Stands in for the codec of a model that cannot be read, where only what is wrong with the
    articles is to be said: every text has as many tokens as a block.
    """

    def __init__(self, block: int):
        self._block = block

    def encode(self, texts: Sequence[str], /) -> list[list[int]]:
        """Return `block` ids for every text."""
        return [[0] * self._block for _ in texts]

    def decode(self, rows: Sequence[Sequence[int]], /) -> list[str]:
        """Return a word for every id."""
        return [" ".join("a" * len(row)) for row in rows]


class Articles(NamedTuple):
    """The articles of a study.

    Attributes:
        chosen: those that every generation continues, one row each (id, title, body, label).
        rest: the others of the source, which no chain sees; the same columns. Each content (see
            `data.duplicates`) is there once, and none that is among the chosen.
        labels: all classes of the source, in order.
        dropped: how many articles were too short.
        copies: how many of the others were left out as copies.
        fingerprint: checksum of the source.
    """

    chosen: pd.DataFrame
    rest: pd.DataFrame
    labels: tuple[str, ...]
    dropped: int
    copies: int
    fingerprint: str

    def text(self, row: int) -> str:
        """Return a whole chosen article, as it is trained on."""
        return article_text(self.chosen["title"].iloc[row], self.chosen["body"].iloc[row])

    def texts(self) -> list[str]:
        """Return all chosen articles, whole."""
        return article_texts(self.chosen)


def article_text(title: str, body: str) -> str:
    """Return `title: T`, a line end, `body: B`: the form of the released data."""
    return f"title: {title}\nbody: {body}"


def article_texts(table: pd.DataFrame) -> list[str]:
    """Return the articles of a table with columns title and body, whole."""
    rows = zip(table["title"], table["body"], strict=True)
    return [article_text(title, body) for title, body in rows]


def body_of(text: str) -> str:
    """Return the body of an article in the form of `article_text`: what a model generated."""
    return text.partition("\nbody: ")[2]


def read_articles(config: ArticlesConfig, codec: Codec, block: int) -> Articles:
    """Read the articles of a source: as many of each label as the config says, shuffled.

    Raises:
        ValueError: the source has one class, a label has too few articles, an article is shorter
            than `block` tokens (unless these are dropped or kept), or `load_texts` refuses it.
    """
    rows, fingerprint = _labelled_rows(config)
    table = _joined_posts(rows, config) if config.author_column else _titled(rows, config)
    table, dropped = _in_length(_cut(table, config, codec), config, codec, block)
    left = table["label"].unique().tolist()
    if len(left) < 2:
        word = f"all have the one label {left[0]!r}" if left else "none is left"
        raise ValueError(
            f"config.data.label_column = '{config.label_column}': of the articles that are not "
            f"shorter than a block of {block} tokens {word}; at least two labels are needed"
        )
    chosen = _draw(table, config)
    others = table.drop(chosen.index)
    rest = _new(others, chosen)
    return Articles(
        chosen=chosen.reset_index(drop=True),
        rest=rest.reset_index(drop=True),
        labels=config.labels or tuple(sorted(table["label"].unique())),
        dropped=dropped,
        copies=len(others) - len(rest),
        fingerprint=fingerprint,
    )


def _labelled_rows(config: ArticlesConfig) -> tuple[pd.DataFrame, str]:
    """The rows of the source that have a wanted label, with a column `label`, and a checksum."""
    other = [config.title_column]
    if config.author_column is not None:
        other = [config.author_column, config.date_column]
    frame = load_texts(
        config.source,
        text_column=config.body_column,
        keep_columns=[config.label_column, *(column for column in other if column is not None)],
        name=config.name,
        split=config.split,
        revision=config.revision,
        dialect=Dialect(config.delimiter, config.csv_options),
    )
    fingerprint = frame.attrs["fingerprint"]
    labels = frame[config.label_column].map(lambda v: "" if v is None else str(v).strip())
    frame = frame.assign(label=labels)
    if config.labels:
        present = set(labels)
        missing = [label for label in config.labels if label not in present]
        if missing:
            raise ValueError(
                f"config.data.labels has {missing[0]!r}, which column '{config.label_column}' "
                f"never holds; it holds {', '.join(map(repr, sorted(present)))}"
            )
        frame = frame[labels.isin(config.labels)]
    frame = frame[frame["label"] != ""]
    if frame["label"].nunique() < 2:
        only = f"the one label {frame['label'].iloc[0]!r}" if len(frame) else "no label at all"
        raise ValueError(
            f"config.data.label_column = '{config.label_column}': the {len(frame):,} articles "
            f"have {only}; at least two labels are needed"
        )
    return frame, fingerprint


def _draw(table: pd.DataFrame, config: ArticlesConfig) -> pd.DataFrame:
    """The articles that the chains see."""
    parts = []
    for label in [config.only] if config.only else sorted(table["label"].unique()):
        of_label = table[table["label"] == label]
        count = len(of_label) if config.per_label is None else config.per_label
        if len(of_label) < max(count, 1):
            raise ValueError(
                f"config.data.per_label = {config.per_label}: '{config.source}' has only "
                f"{len(of_label)} articles labelled {label!r}"
            )
        parts.append(of_label.sample(n=count, random_state=config.seed))
    return pd.concat(parts).sample(frac=1, random_state=config.seed)


def _new(table: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The first article of each content that is not among the known ones."""
    seen = set(duplicates.keys(article_texts(known)))
    keys = duplicates.keys(article_texts(table))
    firsts = duplicates.firsts(keys)
    new = [first and key not in seen for first, key in zip(firsts, keys, strict=True)]
    return table[np.array(new, bool)]


def _titled(frame: pd.DataFrame, config: ArticlesConfig) -> pd.DataFrame:
    """One article per row; without a column of titles its first sentence is the title."""
    if config.title_column is None:
        parts = [sentences(text) for text in frame["text"]]
        titles = [part[0] if part else "" for part in parts]
        bodies = [" ".join(part[1:]) for part in parts]
    else:
        columns = frame[config.title_column]
        titles = ["" if title is None else " ".join(str(title).split()) for title in columns]
        bodies = frame["text"].str.strip().tolist()
    ids = [str(i) for i in frame.index]
    return frame.assign(id=ids, title=titles, body=bodies)[_COLUMNS]


def _joined_posts(frame: pd.DataFrame, config: ArticlesConfig) -> pd.DataFrame:
    """One article per author and calendar week: the first post is its title, the others are the
    lines of its body. Links are left out.
    """
    week = (
        _dates(frame, str(config.date_column))
        .dt.to_period("W")
        .dt.start_time.dt.strftime("%Y-%m-%d")
    )
    line = frame["text"].map(lambda text: " ".join(_LINK.sub("", text).split()))
    frame = frame.assign(line=line, week=week)[line.str.len() > 0]
    rows = []
    for group, posts in frame.groupby([config.author_column, "week"], sort=True):
        author, start = group
        lines = posts.sort_values(config.date_column, kind="stable")["line"].tolist()
        if len(lines) > 1:
            body = "\n".join(lines[1:])
            rows.append((f"{author} {start}", lines[0], body, posts["label"].iloc[0]))
    return pd.DataFrame(rows, columns=_COLUMNS)


def _dates(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as dates. Raises ValueError for the first value that is none."""
    try:
        return pd.to_datetime(frame[column], format="mixed")
    except (ValueError, TypeError):
        for number, value in enumerate(frame[column], 1):
            try:
                pd.to_datetime(pd.Series([value], dtype=object), format="mixed")
            except (ValueError, TypeError):
                raise ValueError(
                    f"config.data.date_column = '{column}': {str(value)[:40]!r}, of the "
                    f"{number:,}. article with a wanted label, cannot be read as a date"
                ) from None
        raise ValueError(
            f"config.data.date_column = '{column}': holds dates with and without time zones; "
            "they must be of one kind"
        ) from None


def _cut(table: pd.DataFrame, config: ArticlesConfig, codec: Codec) -> pd.DataFrame:
    """Bodies cut to `body_tokens`, titles to `title_tokens`."""
    for column, limit in (("body", config.body_tokens), ("title", config.title_tokens)):
        if limit is None:
            continue
        texts = table[column].tolist()
        ids = codec.encode(texts)
        longer = [i for i, tokens in enumerate(ids) if len(tokens) > limit]
        for i, text in zip(longer, codec.decode([ids[i][:limit] for i in longer]), strict=True):
            texts[i] = text.rstrip("\ufffd")
        table = table.assign(**{column: texts})
    return table


def _in_length(
    table: pd.DataFrame, config: ArticlesConfig, codec: Codec, block: int
) -> tuple[pd.DataFrame, int]:
    """The articles without those whose body is shorter than a block, unless these are kept; and
    how many were dropped.
    """
    short = [len(ids) < block for ids in codec.encode(table["body"].tolist())]
    if config.short == "refuse" and any(short):
        first = table[short].iloc[0]
        raise ValueError(
            f"config.data.short = 'refuse': article {first['id']} ({first['title'][:40]!r}) and "
            f"{sum(short) - 1} others are shorter than a block of {block} tokens; take longer "
            "ones, a smaller chain.block, or 'drop' or 'keep'"
        )
    if config.short != "drop":
        return table.reset_index(drop=True), 0
    long_enough = table[[not s for s in short]].reset_index(drop=True)
    if not len(long_enough):
        raise ValueError(
            f"config.data.short = 'drop': every article of '{config.source}' is shorter than a "
            f"block of {block} tokens"
        )
    return long_enough, sum(short)


def blocks(
    title: Sequence[int], body: Sequence[int], size: int, start: Sequence[int] = ()
) -> list[tuple[int, ...]]:
    """Return the prompts of an article, as token ids.

    Its title is one block; its body is cut into blocks of `size` tokens, the last one shorter.
    `start` (BOS) stands before each.
    """
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return [(*start, *part) for part in (title, *parts)]


def examples(
    text: str, variant: str, codec: Codec, start: Sequence[int] = (), blank: int = 0
) -> list[tuple[int, ...]]:
    """Return the token ids of the training examples of an article.

    Variant "paper" has the whole article as one example, "released" every line, as the released
    code's loader makes them. There a blank line is an example without any token to learn (the
    token `blank`), and one separates articles: they lengthen an epoch.
    """
    lines = [text] if variant == "paper" else [*text.split("\n"), ""]
    encoded = iter(codec.encode([line for line in lines if line.strip()]))
    return [(*start, *next(encoded)) if line.strip() else (blank,) for line in lines]
