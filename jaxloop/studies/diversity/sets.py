"""Builds the training sets of the diversity study by pure functions.

They choose rows, near-duplicates and shares (arXiv 2506.19262, section 3.2). A set is a table with
the columns context (the document or block that a record belongs to), passage, head (question, or
all sentences but the last), text (answer, or the last sentence), topic and origin ("real",
"generated", "paraphrase", "repeat", "outside"); a training set also has the column part ("real" or
"generated"). Draws are NumPy generators seeded with names, so that no draw depends on another.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

COLUMNS = ("context", "passage", "head", "text", "topic", "origin")
LEVELS = tuple(range(7))
# (row of a table, version) -> (head, text).
Paraphrase = Callable[[int, int], tuple[str, str]]


class Counts(NamedTuple):
    """Records of a training set."""

    real: int
    generated: int


class Replacement(NamedTuple):
    """Which records of a context are replaced.

    Slot [m_r] gets version [m_r] of the paraphrases of record source [m_r].
    """

    slot: np.ndarray
    source: np.ndarray
    version: np.ndarray


def draw(*names: object) -> np.random.Generator:
    """Return a generator that is seeded with these names and nothing else."""
    return np.random.default_rng([zlib.crc32(repr(name).encode()) for name in names])


def mixture(rho: float, mixing: str, size: int) -> Counts:
    """Return how many real and generated records a mixture has (equation 7).

    rho = generated / (generated + real).

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
    """Choose which of K records of a context are replaced, and by what (equations 2 and 3).

    m_r = `replaced` records give way to paraphrases of m_r / m_p of them (m_p = `versions`).

    The sources are among the replaced records, so each is there as its paraphrases alone. With one
    generator state, the sources and slots of a smaller m_r are among those of a larger one. More to
    replace than there are records: all of them are.
    """
    order = rng.permutation(records)
    count = min(replaced, records)
    number = np.arange(count)
    return Replacement(order[:count], order[number // versions], number % versions)


def paraphrased(
    table: pd.DataFrame, replaced: int, versions: int, paraphrase: Paraphrase, *names: object
) -> pd.DataFrame:
    """Return a set with near-duplicates, `replacement` in every context.

    Their texts are `paraphrase(row of the table, version) -> (head, text)`.
    """
    heads, texts, origins = list(table["head"]), list(table["text"]), list(table["origin"])
    for context, rows in contexts(table).items():
        chosen = replacement(len(rows), replaced, versions, draw(*names, context))
        for slot, source, version in zip(*chosen, strict=True):
            heads[rows[slot]], texts[rows[slot]] = paraphrase(int(rows[source]), int(version))
            origins[rows[slot]] = "paraphrase"
    return table.assign(head=heads, text=texts, origin=origins)


def sources(
    table: pd.DataFrame, replaced: int, versions: int, *names: object
) -> list[tuple[int, int]]:
    """Return each (row, version) that `paraphrased` asks for once, in order."""
    pairs: dict[tuple[int, int], None] = {}
    for context, rows in contexts(table).items():
        chosen = replacement(len(rows), replaced, versions, draw(*names, context))
        pairs |= dict.fromkeys(
            zip(rows[chosen.source].tolist(), chosen.version.tolist(), strict=True)
        )
    return list(pairs)


def contexts(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the rows of every context, contexts in order of appearance."""
    if not len(table):
        return {}
    codes, names = pd.factorize(table["context"])
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return dict(zip(names, np.split(order, starts), strict=True))


def round_robin(table: pd.DataFrame, rng: np.random.Generator) -> np.ndarray:
    """Return rows in an order of which every beginning holds the contexts evenly.

    One record of each context, then a second, and so on; contexts and records are shuffled.

    Where every record has the same context it is a plain shuffle.
    """
    groups = [rng.permutation(rows) for rows in contexts(table).values()]
    groups = [groups[i] for i in rng.permutation(len(groups))]
    if not groups:
        return np.zeros(0, int)
    turn = np.concatenate([np.arange(len(rows)) for rows in groups])
    return np.concatenate(groups)[np.argsort(turn, kind="stable")]


def mix(
    real: pd.DataFrame, generated: pd.DataFrame, counts: Counts, *names: object
) -> pd.DataFrame:
    """Return a training set of `counts` real and generated records.

    With the same names, the records of a smaller count are among those of a larger one.

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
    """Return `text` without about `share` of its words.

    At least one word goes where there are two. Share 0 returns the text itself.
    """
    words = text.split()
    if share == 0 or len(words) < 2:
        return text
    dropped = rng.choice(
        len(words), min(len(words) - 1, max(1, round(share * len(words)))), replace=False
    )
    return " ".join(w for i, w in enumerate(words) if i not in set(dropped.tolist()))


def edited(table: pd.DataFrame, share: float, *names: object) -> Paraphrase:
    """Return a `paraphrase` for `paraphrased` that needs no model.

    The head becomes a `near_duplicate`; the text stays as it is.
    """
    heads, texts = table["head"].tolist(), table["text"].tolist()

    def paraphrase(row: int, version: int) -> tuple[str, str]:
        return near_duplicate(heads[row], share, draw(*names, row, version)), texts[row]

    return paraphrase


def topical_rows(
    topics: Sequence[int] | np.ndarray,
    size: int,
    num_topics: int,
    repertoire: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows [size], version [size]) of a set of `num_topics` topics.

    Each topic has at most `repertoire` different stories; topics are drawn as evenly as can be.

    topics: the topic of each story of the pool, from 0 on (-1: none). Version 0 is a story's first
    appearance, 1 its first repeat, …. So min(size, stories of these topics) stories are
    different. With one generator state, smaller topic sets are inside larger ones.
    """
    topic_of = np.asarray(topics)
    topic_count = topic_of.max() + 1
    order = rng.permutation(topic_count)[:num_topics]
    stories_of = [
        rng.permutation(np.flatnonzero(topic_of == topic)) for topic in range(topic_count)
    ]
    lists = [stories_of[topic][:repertoire] for topic in order]
    turn = np.concatenate([np.arange(len(rows)) for rows in lists])
    stories = np.concatenate(lists)[np.argsort(turn, kind="stable")]
    number = np.arange(size)
    return stories[number % len(stories)], number // len(stories)


def topical(
    pool: pd.DataFrame,
    topics: Sequence[int] | np.ndarray,
    size: int,
    num_topics: int,
    repertoire: int,
    share: float,
    *names: object,
) -> pd.DataFrame:
    """Return the set of `topical_rows`. Repeats are near-duplicates of the stories they repeat."""
    rows, versions = topical_rows(topics, size, num_topics, repertoire, draw(*names))
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
    *names: object,
) -> pd.DataFrame:
    """Return `size` records in which near-duplicates and records from elsewhere vary independently.

    round(shift size) different records come from `outside`, the others from `pool`; of both, the
    share `duplicates` gives way to near-duplicates, `versions` of each source. Diversity and shift
    are so crossed by design, which real generators confound (arXiv 2506.19262, table 2).
    """
    outside_count = round(shift * size)
    parts = []
    for name, table, count in (
        ("pool", pool, size - outside_count),
        ("outside", outside, outside_count),
    ):
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
    """Return the topic [n] of each text, numbered by size.

    k-means on the first 50 singular directions of TF-IDF, `count` clusters. Equal texts give equal
    topics.
    """
    # scikit-learn (these four) takes seconds to import, which other commands do without.
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
    """Return the texts that diversity and distance are measured on.

    Question and answer, or the whole story; never the document.
    """
    return [f"{head} {text}" for head, text in zip(table["head"], table["text"], strict=True)]
