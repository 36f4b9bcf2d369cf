"""Training sets of the diversity study as pure functions: which rows, which near-duplicates, how
much of what (arXiv 2506.19262, section 3.2).

A set is a table with the columns context (the document or block that a record belongs to), passage,
  head (question, or all sentences but the
last), text (answer, or the last sentence), topic and origin ("real", "generated", "paraphrase",
"repeat", "outside"); a training set has the
column part ("real" or "generated") besides. Draws are NumPy generators
seeded with names, so that no draw depends on another.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

COLUMNS = ("context", "passage", "head", "text", "topic", "origin")
LEVELS = tuple(range(7))


class Counts(NamedTuple):
    """Records of a training set."""

    real: int
    generated: int


class Replacement(NamedTuple):
    """Which records of a context are replaced: slot [m_r] by version [m_r] of the paraphrases of
    record source [m_r].
    """

    slot: np.ndarray
    source: np.ndarray
    version: np.ndarray


def draw(*names) -> np.random.Generator:
    """A generator that these names, and nothing else, decide."""
    return np.random.default_rng([zlib.crc32(repr(name).encode()) for name in names])


def mixture(rho: float, mixing: str, size: int) -> Counts:
    """Real and generated records at mixing ratio rho = generated / (generated + real), equation 7.

    mixing "fixed": `size` records in all; "variable": `size` real ones, to which rho / (1 - rho) as
    many generated ones are added. Raises ValueError for rho outside [0, 1], and for rho = 1 at
    variable size.
    """
    if not 0 <= rho <= 1 or (mixing == "variable" and rho == 1):
        raise ValueError(
            f"rho = {rho:g}: must be in [0, 1{')' if mixing == 'variable' else ']'} at {mixing} "
            "size."
        )
    if mixing == "fixed":
        generated = round(rho * size)
        return Counts(size - generated, generated)
    return Counts(size, round(rho / (1 - rho) * size))


def replacement(
    records: int, replaced: int, versions: int, rng: np.random.Generator
) -> Replacement:
    """Equations 2 and 3 in one context of K records: m_r = `replaced` of them give way to
    paraphrases of m_r / m_p of them (m_p = `versions`).

    The sources are among the replaced records, so each is there as its paraphrases alone. With one
    generator state, the sources and slots of a smaller m_r are among those of a larger one. More to
    replace than there are records: all of them are.
    """
    order = rng.permutation(records)
    count = min(replaced, records)
    number = np.arange(count)
    return Replacement(order[:count], order[number // versions], number % versions)


def paraphrased(
    table: pd.DataFrame, replaced: int, versions: int, paraphrase, *names
) -> pd.DataFrame:
    """A set with near-duplicates: in every context `replacement`, texts by `paraphrase(row of the
    table, version) -> (head, text)`.
    """
    heads, texts, origins = list(table["head"]), list(table["text"]), list(table["origin"])
    for context, rows in contexts(table).items():
        chosen = replacement(len(rows), replaced, versions, draw(*names, context))
        for slot, source, version in zip(*chosen, strict=True):
            heads[rows[slot]], texts[rows[slot]] = paraphrase(int(rows[source]), int(version))
            origins[rows[slot]] = "paraphrase"
    return table.assign(head=heads, text=texts, origin=origins)


def sources(table: pd.DataFrame, replaced: int, versions: int, *names) -> list[tuple[int, int]]:
    """(row, version) of every paraphrase that `paraphrased` asks for, in order, each once."""
    asked: dict[tuple[int, int], None] = {}
    for context, rows in contexts(table).items():
        chosen = replacement(len(rows), replaced, versions, draw(*names, context))
        asked |= dict.fromkeys(
            zip(rows[chosen.source].tolist(), chosen.version.tolist(), strict=True)
        )
    return list(asked)


def contexts(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Rows of every context, contexts in order of appearance."""
    codes, names = pd.factorize(table["context"])
    order = np.argsort(codes, kind="stable")
    return (
        dict(zip(names, np.split(order, np.flatnonzero(np.diff(codes[order])) + 1), strict=True))
        if len(table)
        else {}
    )


def round_robin(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Rows in an order whose every beginning holds the contexts evenly: one record of each, then a
    second, …; contexts and records shuffled.

    Where every record has the same context it is a plain shuffle.
    """
    groups = [rng.permutation(rows) for rows in contexts(table).values()]
    groups = [groups[i] for i in rng.permutation(len(groups))]
    turn = np.concatenate([np.arange(len(rows)) for rows in groups]) if groups else np.zeros(0, int)
    return np.concatenate(groups)[np.argsort(turn, kind="stable")] if groups else turn


def mix(real: pd.DataFrame, generated: pd.DataFrame, counts: Counts, *names) -> pd.DataFrame:
    """`counts` records of both; with the same names, the records of a smaller count are among those
    of a larger one.

    Raises ValueError where there are too few.
    """
    parts = []
    for name, table, count in (
        ("real", real, counts.real),
        ("generated", generated, counts.generated),
    ):
        if len(table) < count:
            raise ValueError(
                f"a training set needs {count:,} {name} records, there are {len(table):,}."
            )
        if count:
            parts.append(
                table.iloc[round_robin(table, draw(*names, name))[:count]].assign(part=name)
            )
    return pd.concat(parts, ignore_index=True)


def near_duplicate(text: str, share: float, rng: np.random.Generator) -> str:
    """`text` with about `share` of its words taken out, one at least where there are two; share 0:
    the text itself.
    """
    words = text.split()
    if share == 0 or len(words) < 2:
        return text
    gone = rng.choice(
        len(words), min(len(words) - 1, max(1, round(share * len(words)))), replace=False
    )
    return " ".join(w for i, w in enumerate(words) if i not in set(gone.tolist()))


def edited(table: pd.DataFrame, share: float, *names):
    """A `paraphrase` for `paraphrased` that needs no model: the head as a `near_duplicate`, the
    text as it is.
    """

    def paraphrase(row: int, version: int) -> tuple[str, str]:
        return near_duplicate(table["head"].iat[row], share, draw(*names, row, version)), table[
            "text"
        ].iat[row]

    return paraphrase


def topical_rows(
    topics: Sequence[int], size: int, kept: int, repertoire: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(rows [size], version [size]) of a set of `kept` topics, each with at most `repertoire`
    different stories, drawn as evenly as can be.

    topics: the topic of each story of the pool, from 0 on (-1: none). Version 0 is a story's first
    appearance, 1 its first repeat, …. So min(size, stories of the kept topics) stories are
    different. With one generator state, smaller topic sets are inside larger ones.
    """
    topics = np.asarray(topics)
    order = rng.permutation(topics.max() + 1)[:kept]
    held = [rng.permutation(np.flatnonzero(topics == topic)) for topic in range(topics.max() + 1)]
    lists = [held[topic][:repertoire] for topic in order]
    turn = np.concatenate([np.arange(len(rows)) for rows in lists])
    stories = np.concatenate(lists)[np.argsort(turn, kind="stable")]
    number = np.arange(size)
    return stories[number % len(stories)], number // len(stories)


def topical(
    pool: pd.DataFrame,
    topics: Sequence[int],
    size: int,
    kept: int,
    repertoire: int,
    share: float,
    *names,
) -> pd.DataFrame:
    """The set of `topical_rows`; repeats are near-duplicates (`near_duplicate`) of the stories that
    they repeat.
    """
    rows, versions = topical_rows(topics, size, kept, repertoire, draw(*names))
    table = pool.iloc[rows].reset_index(drop=True)
    heads = [
        head if version == 0 else near_duplicate(head, share, draw(*names, int(row), int(version)))
        for head, row, version in zip(table["head"], rows, versions, strict=True)
    ]
    origins = np.where(versions == 0, table["origin"], "repeat")
    return table.assign(
        head=heads, origin=origins, topic=[f"cluster-{topics[row]}" for row in rows]
    )


def crossed(
    pool: pd.DataFrame,
    outside: pd.DataFrame,
    size: int,
    duplicates: float,
    shift: float,
    versions: int,
    share: float,
    *names,
) -> pd.DataFrame:
    """`size` records in which the share of near-duplicates and the share of records from elsewhere
    are set apart from each other.

    round(shift size) different records come from `outside`, the others from `pool`; of both, the
    share `duplicates` gives way to near-duplicates, `versions` of each source. Diversity and shift
    are so crossed by design, which real generators confound (diversity.md, section 6).
    """
    away = round(shift * size)
    parts = []
    for name, table, count in (("pool", pool, size - away), ("outside", outside, away)):
        if len(table) < count:
            raise ValueError(
                f"control: a set needs {count:,} {name} records, there are {len(table):,}."
            )
        if not count:
            continue
        drawn = table.iloc[draw(*names, name).permutation(len(table))[:count]].reset_index(
            drop=True
        )
        drawn = drawn.assign(context=f"{name}", origin="real" if name == "pool" else "outside")
        marked = paraphrased(
            drawn,
            round(duplicates * count),
            versions,
            edited(drawn, share, *names, name),
            *names,
            name,
        )
        parts.append(marked.assign(part="generated"))
    return pd.concat(parts, ignore_index=True)


def clusters(texts: Sequence[str], count: int, seed: int = 0) -> np.ndarray:
    """Topic [n] of each text: k-means on the first 50 singular directions of TF-IDF, `count`
    clusters, numbered by size. Same texts, same topics.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.preprocessing import normalize

    weights = TfidfVectorizer(stop_words="english", sublinear_tf=True).fit_transform(texts)
    width = min(50, weights.shape[1] - 1, len(texts) - 1)
    points = normalize(TruncatedSVD(width, random_state=seed).fit_transform(weights))
    labels = KMeans(min(count, len(texts)), n_init=1, random_state=seed).fit_predict(points)
    place = {label: i for i, label in enumerate(pd.Series(labels).value_counts(sort=True).index)}
    return np.array([place[label] for label in labels])


def bodies(table: pd.DataFrame) -> list[str]:
    """What diversity and distance are measured on: question and answer, or the whole story; never
    the document (section 2 of the spec).
    """
    return [f"{head} {text}" for head, text in zip(table["head"], table["text"], strict=True)]
