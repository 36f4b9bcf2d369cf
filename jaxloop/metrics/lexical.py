"""Diversity and repetition of words: measures that need nothing but the texts.

Every function takes the texts of one chain (a sequence of strings) and returns a float, or a
sequence of chains and returns [chains] float64, and never lets one chain's value depend on another
chain. A chain without texts, or whose texts are all empty, has no words: each docstring says what
its value is then.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.tokens import Tokens, factorize, ngrams, per_chain
from jaxloop.metrics.words import word_punct

Texts = Sequence[str] | Sequence[Sequence[str]] | Corpus


def text_lengths(texts: Texts):
    """Length of each text in characters, [n] float64 (or a list of arrays, one a chain)."""
    corpus = Corpus.of(texts)
    return corpus.by_text(np.fromiter(map(len, corpus.texts), np.float64, len(corpus.texts)))


def text_length(texts: Texts):
    """Mean length in characters, >= 0 (arXiv 2504.03814). No texts: 0."""
    corpus = Corpus.of(texts)
    return corpus.by_chain(
        corpus.mean(np.fromiter(map(len, corpus.texts), np.float64, len(corpus.texts)))
    )


def type_token_ratios(texts: Texts, characters: int = 150):
    """Different words / words among the first `characters` characters of each text, [n] in [0, 1];
    0 for a text without words.
    """
    if characters < 1:
        raise ValueError(f"characters is {characters}, at least 1 is needed.")
    corpus = Corpus.of(texts)
    return corpus.by_text(_distinct_shares(corpus.prefix_words(characters)))


def type_token_ratio(texts: Texts, characters: int = 150):
    """Mean over texts of (different words / words) in the first 150 characters, in [0, 1] (arXiv
    2504.03814).

    The released code cuts at 150 characters, the paper says 200: `characters` chooses. Words are
    NLTK's (`words.words`), case kept. A text without words counts as 0; no texts: 0.
    """
    if characters < 1:
        raise ValueError(f"characters is {characters}, at least 1 is needed.")
    corpus = Corpus.of(texts)
    return corpus.by_chain(corpus.mean(_distinct_shares(corpus.prefix_words(characters))))


def word_entropy(texts: Texts):
    """Shannon entropy of the word frequencies of all texts joined by spaces, in nats, >= 0 (arXiv
    2504.03814).

    H = -sum_w p_w ln p_w over NLTK's words, case kept. One word only, or none: 0.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(corpus.words)
    weighted = np.bincount(chain, counts * np.log(counts), minlength=len(total))
    entropy = np.log(np.maximum(total, 1)) - weighted / np.maximum(total, 1)
    return corpus.by_chain(np.maximum(entropy, 0.0))


def vocabulary_size(texts: Texts):
    """How many different words (NLTK's, case kept) a chain's texts hold, >= 0. It grows with the
    number of texts.
    """
    corpus = Corpus.of(texts)
    _, chain, total = _frequencies(corpus.words)
    return corpus.by_chain(np.bincount(chain, minlength=len(total)).astype(np.float64))


def zipf_slope(texts: Texts):
    """Slope of ln(frequency) on ln(rank) of the words, least squares over all ranks; about -1 in
    human text, 0 if all are equally frequent.

    Words are NLTK's, case kept; ties get consecutive ranks. Steeper (more negative) is more
    concentrated on few words. Fewer than two different words: nan, there is no slope.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(corpus.words)
    order = np.lexsort((-counts, chain))
    counts, chain = counts[order].astype(np.float64), chain[order]
    types = np.bincount(chain, minlength=len(total))
    rank = np.arange(len(counts)) - np.repeat(np.cumsum(types) - types, types) + 1
    x, y = np.log(rank), np.log(counts)
    mean = lambda v: (np.bincount(chain, v, minlength=len(total)) / np.maximum(types, 1))[chain]  # noqa: E731
    dx, dy = x - mean(x), y - mean(y)
    with np.errstate(invalid="ignore"):
        slope = np.bincount(chain, dx * dy, minlength=len(total)) / np.bincount(
            chain, dx * dx, minlength=len(total)
        )
    return corpus.by_chain(np.where(types > 1, slope, np.nan))


def distinct_n(texts: Texts, n: int = 5):
    """Different n-grams / n-grams over all texts of a chain, in [0, 1] (arXiv 2506.19262, equations
    4 and 6).

    n-grams of 13a tokens, case kept, never across two texts. The ratio falls with the size of the
    corpus: compare equal sizes, or use `distinct_n_size_matched`. No n-gram at all: 0.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(_chain_ngrams(corpus, n))
    return corpus.by_chain(np.bincount(chain, minlength=len(total)) / np.maximum(total, 1))


def distinct_n_size_matched(texts: Texts, n: int = 5, size: int = 1000):
    """Expected distinct-n of `size` n-grams drawn without replacement from a chain's n-grams, in
    [0, 1]: exact, no draw is made.

    E = (1 / size) sum_g [1 - C(N - c_g, size) / C(N, size)] with c_g the count of n-gram g and N
    their sum (rarefaction, Hurlbert 1971). Chains of different lengths can be compared. Fewer than
    `size` n-grams: nan.
    """
    if size < 1:
        raise ValueError(f"size is {size}, at least 1 n-gram is needed.")
    corpus = Corpus.of(texts)
    return corpus.by_chain(_rarefied(_chain_ngrams(corpus, n), size, short=np.nan) / size)


def distinct_n_by_context(
    texts: Texts, contexts: Sequence[Hashable] | Sequence[Sequence[Hashable]], n: int = 5
):
    """Sum over contexts of distinct-n of the texts of that context, in [0, contexts] (arXiv
    2506.19262, equation 5).

    `contexts` names the context of every text (for question answering: the document; the text is
    question and answer, without the document). The sum grows with the number of contexts; divide by
    it for a mean. ValueError if the lengths differ.
    """
    corpus = Corpus.of(texts)
    given = [list(contexts)] if corpus.single else [list(chain) for chain in contexts]
    sizes = [len(chain) for chain in given]
    if sizes != corpus.sizes.tolist():
        raise ValueError(
            f"contexts has {sizes} entries, one for each text is needed: {corpus.sizes.tolist()}."
        )
    table: dict[tuple[int, Hashable], int] = {}
    group = np.array(
        [table.setdefault((c, key), len(table)) for c, chain in enumerate(given) for key in chain],
        np.int32,
    )
    rows = ngrams(per_chain(corpus.tokens, group), _order(n))
    counts, owner = _counts(rows, group, len(table))
    total = np.bincount(group, rows.lengths, minlength=len(table))
    ratio = np.bincount(owner, minlength=len(table)) / np.maximum(total, 1)
    chain = np.array([c for c, _ in table], np.int64)
    return corpus.by_chain(np.bincount(chain, ratio, minlength=len(corpus.chains)))


def ngram_ttr(texts: Texts, sample: int = 200_000):
    """Mean of the type-token ratios of 1-, 2- and 3-grams, each over at most `sample` n-grams of a
    chain, in [0, 1] (arXiv 2311.09807).

    Guo et al.: WordPunct tokens, lower-case, single punctuation marks dropped, n-grams inside a
    text, 200,000 drawn at random. Here the expectation over all such draws is taken (see
    `distinct_n_size_matched`), so there is no seed. An order without n-grams counts as 0.
    """
    if sample < 1:
        raise ValueError(f"sample is {sample}, at least 1 n-gram is needed.")
    corpus = Corpus.of(texts)
    tokens = per_chain(word_punct(corpus.texts), corpus.owners)
    ratios = []
    for n in (1, 2, 3):
        rows = ngrams(tokens, n)
        total = np.bincount(corpus.owners, rows.lengths, minlength=len(corpus.chains))
        chain_rows = Tokens(
            rows.codes, np.concatenate([[0], np.cumsum(total)]).astype(np.int64), rows.size
        )
        ratios.append(_rarefied(chain_rows, sample) / np.clip(total, 1, sample))
    return corpus.by_chain(np.mean(ratios, 0))


def repetitions(texts: Texts, n: int = 4):
    """Share of each text's n-grams that repeat an earlier n-gram of the same text, [n] in [0, 1); 0
    for a text without n-grams.
    """
    corpus = Corpus.of(texts)
    return corpus.by_text(_repetitions(corpus, n))


def repetition(texts: Texts, n: int = 4):
    """Mean over texts of 1 - (different n-grams / n-grams) inside the text, in [0, 1): seq-rep-n of
    Welleck et al. 2020 (arXiv 1908.04319).

    n-grams of 13a tokens. A text that loops tends to 1. Texts shorter than n tokens count as 0; no
    texts: 0.
    """
    corpus = Corpus.of(texts)
    return corpus.by_chain(corpus.mean(_repetitions(corpus, n)))


def memorised_ngrams(texts: Texts, reference_texts: Texts, n: int = 10):
    """Share of a chain's n-grams that stand word for word in the reference (its training texts,
    say), in [0, 1].

    n-grams of 13a tokens, every position counted, never across two texts. `reference_texts` is one
    set for all chains, or one set for each chain. No n-gram: 0. Cf. Taori and Hashimoto 2022 (arXiv
    2209.03942).
    """
    corpus, reference = Corpus.of(texts), Corpus.of(reference_texts)
    if not reference.single and len(reference.chains) != len(corpus.chains):
        raise ValueError(
            f"reference_texts has {len(reference.chains)} chains, texts has "
            f"{len(corpus.chains)}: the same number is needed."
        )
    own, chains = len(corpus.texts), len(corpus.chains)
    both = Corpus((tuple(corpus.texts + reference.texts),), single=True)
    rows = ngrams(both.tokens, _order(n))
    owners = rows.owners
    mine = owners < own
    chain = corpus.owners[owners[mine]].astype(np.int64)
    if reference.single:
        known = np.zeros(max(rows.size, 1), bool)
        known[rows.codes[~mine]] = True
        hit = known[rows.codes[mine]]
    else:
        place = reference.owners[owners[~mine] - own].astype(np.int64)
        hit = np.isin(chain * rows.size + rows.codes[mine], place * rows.size + rows.codes[~mine])
    total = np.bincount(chain, minlength=chains)
    return corpus.by_chain(np.bincount(chain, hit, minlength=chains) / np.maximum(total, 1))


def _order(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise ValueError(f"n is {n!r}, a whole number of at least 1 is needed.")
    return int(n)


def _chain_ngrams(corpus: Corpus, n: int) -> Tokens:
    """The n-grams of each chain, one row a chain."""
    rows = ngrams(corpus.chain_tokens, _order(n))
    total = np.bincount(corpus.owners, rows.lengths, minlength=len(corpus.chains)).astype(np.int64)
    return Tokens(rows.codes, np.concatenate([[0], np.cumsum(total)]).astype(np.int64), rows.size)


def _counts(rows: Tokens, groups: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Count of every code [size], and the group it is in [size]; codes must not be shared between
    groups.
    """
    owner = np.zeros(rows.size, np.int64)
    owner[rows.codes] = groups[rows.owners]
    return np.bincount(rows.codes, minlength=rows.size), owner


def _frequencies(rows: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of tokens with one row a chain: count of every code, its chain, and the tokens of each chain."""
    counts, chain = _counts(rows, np.arange(len(rows.lengths)), len(rows.lengths))
    return counts, chain, rows.lengths


def _rarefied(rows: Tokens, size: int, short: float | None = None) -> np.ndarray:
    """Expected number of different codes among `size` drawn without replacement from each row,
    [rows] float64.

    A row with fewer than `size` codes: all of them are taken, or the value is `short`.
    """
    counts, chain, total = _frequencies(rows)
    expected = np.zeros(len(total))
    order = np.argsort(chain, kind="stable")
    edges = np.searchsorted(chain[order], np.arange(len(total) + 1))
    for row, all_ in enumerate(total.tolist()):
        held, times = np.unique(counts[order[edges[row] : edges[row + 1]]], return_counts=True)
        if all_ < size and short is not None:
            expected[row] = short
        elif all_ <= size:
            expected[row] = times.sum()
        else:
            # ln of C(all - c, size) / C(all, size) for c = 1, 2, ..., as a running sum of ln((all -
            # size - i) / (all - i)).
            i = np.arange(held[-1], dtype=np.float64)
            with np.errstate(divide="ignore"):
                missed = np.cumsum(np.log(np.maximum(all_ - size - i, 0) / (all_ - i)))
            expected[row] = (times * -np.expm1(missed[held - 1])).sum()
    return expected


def _distinct_shares(rows: Tokens) -> np.ndarray:
    """Different codes / codes of each row, [rows]; 0 for an empty row."""
    _, unique = factorize(rows.owners.astype(np.int64) * max(rows.size, 1) + rows.codes)
    different = np.bincount(unique // max(rows.size, 1), minlength=len(rows.lengths))
    return different / np.maximum(rows.lengths, 1)


def _repetitions(corpus: Corpus, n: int) -> np.ndarray:
    rows = ngrams(corpus.tokens, _order(n))
    return np.where(rows.lengths > 0, 1 - _distinct_shares(rows), 0.0)
