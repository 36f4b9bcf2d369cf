"""Diversity and repetition of words: metrics that need nothing but the texts.

Every function takes the texts of one chain (a sequence of strings) and returns a float, or a
sequence of chains and returns [chains] float64, and never lets one chain's value depend on another
chain. A chain without texts, or whose texts are all empty, has no words: each docstring says what
its value is then.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from jaxloop.core.checks import is_whole
from jaxloop.metrics.base import NOT_NEGATIVE, TEXTS, TEXTS_AND_REFERENCE, UNIT_INTERVAL, Metric
from jaxloop.metrics.corpus import ChainValues, Corpus, Texts, TextValues, check_reference
from jaxloop.metrics.tokens import Tokens, factorize, ngrams, per_chain
from jaxloop.metrics.words import word_punct


def text_lengths(texts: Texts) -> TextValues:
    """Length of each text in characters, [n] float64 (or a list of arrays, one a chain)."""
    corpus = Corpus.of(texts)
    return corpus.by_text(_lengths(corpus))


def text_length(texts: Texts) -> ChainValues:
    """Mean length in characters, >= 0 (arXiv 2504.03814). No texts: 0."""
    corpus = Corpus.of(texts)
    return corpus.by_chain(corpus.mean(_lengths(corpus)))


def _lengths(corpus: Corpus) -> np.ndarray:
    return np.fromiter(map(len, corpus.texts), np.float64, len(corpus.texts))


def type_token_ratios(texts: Texts, characters: int = 150) -> TextValues:
    """Different words / words in the first `characters` characters of each text: [n] in [0, 1].

    0 for a text without words.
    """
    _at_least_one("characters", characters)
    corpus = Corpus.of(texts)
    return corpus.by_text(_distinct_shares(corpus.prefix_words(characters)))


def type_token_ratio(texts: Texts, characters: int = 150) -> ChainValues:
    """Mean over texts of (different words / words) in the first 150 characters, in [0, 1].

    Source: arXiv 2504.03814. The released code cuts at 150 characters, the paper says 200:
    `characters` chooses. Words are NLTK's (`words.words`), case kept. A text without words counts
    as 0; no texts: 0.
    """
    _at_least_one("characters", characters)
    corpus = Corpus.of(texts)
    return corpus.by_chain(corpus.mean(_distinct_shares(corpus.prefix_words(characters))))


def word_entropy(texts: Texts) -> ChainValues:
    """Shannon entropy of the word frequencies of all texts, in nats, >= 0 (arXiv 2504.03814).

    Texts are joined by spaces. H = -sum_w p_w ln p_w over NLTK's words, case kept. One word only,
    or none: 0.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(corpus.words)
    weighted = np.bincount(chain, counts * np.log(counts), minlength=len(total))
    entropy = np.log(np.maximum(total, 1)) - weighted / np.maximum(total, 1)
    return corpus.by_chain(np.maximum(entropy, 0.0))


def vocabulary_size(texts: Texts) -> ChainValues:
    """Number of different words (NLTK's, case kept) in a chain's texts, >= 0.

    It grows with the number of texts.
    """
    corpus = Corpus.of(texts)
    _, chain, total = _frequencies(corpus.words)
    return corpus.by_chain(np.bincount(chain, minlength=len(total)).astype(np.float64))


def zipf_slope(texts: Texts) -> ChainValues:
    """Slope of ln(frequency) on ln(rank) of the words, least squares over all ranks, <= 0.

    It is about -1 in human text, 0 if all words are equally frequent. Words are NLTK's, case kept;
    ties get consecutive ranks. Steeper (more negative) is more concentrated on few words. Fewer
    than two different words: nan, there is no slope.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(corpus.words)
    order = np.lexsort((-counts, chain))
    counts, chain = counts[order].astype(np.float64), chain[order]
    types = np.bincount(chain, minlength=len(total))
    rank = np.arange(len(counts)) - np.repeat(np.cumsum(types) - types, types) + 1
    x, y = np.log(rank), np.log(counts)

    def chain_sum(values):
        return np.bincount(chain, values, minlength=len(total))

    dx, dy = (v - (chain_sum(v) / np.maximum(types, 1))[chain] for v in (x, y))
    with np.errstate(invalid="ignore"):
        slope = chain_sum(dx * dy) / chain_sum(dx * dx)
    return corpus.by_chain(np.where(types > 1, slope, np.nan))


def distinct_n(texts: Texts, n: int = 5) -> ChainValues:
    """Different n-grams / n-grams over all texts of a chain, in [0, 1].

    Source: arXiv 2506.19262, equations 4 and 6. n-grams of 13a tokens, case kept, never across two
    texts. The ratio falls with the size of the corpus: compare equal sizes, or use
    `distinct_n_size_matched`. No n-gram at all: 0.
    """
    corpus = Corpus.of(texts)
    counts, chain, total = _frequencies(_chain_ngrams(corpus, n))
    return corpus.by_chain(np.bincount(chain, minlength=len(total)) / np.maximum(total, 1))


def distinct_n_size_matched(texts: Texts, n: int = 5, size: int = 1000) -> ChainValues:
    """Expected distinct-n of `size` n-grams drawn without replacement, in [0, 1].

    It is exact, no draw is made: E = (1 / size) sum_g [1 - C(N - c_g, size) / C(N, size)] with c_g
    the count of n-gram g and N their sum (rarefaction, Hurlbert 1971). Chains of different lengths
    can be compared. Fewer than `size` n-grams: nan.
    """
    _at_least_one("size", size, " n-gram")
    corpus = Corpus.of(texts)
    return corpus.by_chain(_rarefied(_chain_ngrams(corpus, n), size, short=np.nan) / size)


def distinct_n_by_context(
    texts: Texts, contexts: Sequence[Hashable] | Sequence[Sequence[Hashable]], n: int = 5
) -> ChainValues:
    """Sum over contexts of distinct-n of the texts of that context, in [0, contexts].

    Source: arXiv 2506.19262, equation 5. The sum grows with the number of contexts; divide by it
    for a mean.

    Args:
        contexts: the context of every text (for question answering: the document; the text is
            question and answer, without the document).

    Raises:
        ValueError: the lengths differ.
    """
    corpus = Corpus.of(texts)
    of_chains = [contexts] if corpus.single else contexts
    keys = [list(chain) for chain in of_chains]  # type: ignore[call-overload]  # single decides
    sizes = [len(chain) for chain in keys]
    if sizes != corpus.sizes.tolist():
        raise ValueError(
            f"contexts has {sizes} entries, one for each text is needed: {corpus.sizes.tolist()}."
        )
    table: dict[tuple[int, Hashable], int] = {}
    group = np.array(
        [table.setdefault((c, key), len(table)) for c, chain in enumerate(keys) for key in chain],
        np.int32,
    )
    rows = ngrams(per_chain(corpus.tokens, group), _order(n))
    counts, owner = _counts(rows, group, len(table))
    total = np.bincount(group, rows.lengths, minlength=len(table))
    ratio = np.bincount(owner, minlength=len(table)) / np.maximum(total, 1)
    chain = np.array([c for c, _ in table], np.int64)
    return corpus.by_chain(np.bincount(chain, ratio, minlength=len(corpus.chains)))


def ngram_ttr(texts: Texts, sample: int = 200_000) -> ChainValues:
    """Mean of the type-token ratios of 1-, 2- and 3-grams of a chain, in [0, 1].

    Each is over at most `sample` n-grams. Guo et al. (arXiv 2311.09807): WordPunct tokens,
    lower-case, single punctuation marks dropped, n-grams inside a text, 200,000 drawn at random.
    Here the expectation over all such draws is taken (see `distinct_n_size_matched`), so there is
    no seed. An order without n-grams counts as 0.
    """
    _at_least_one("sample", sample, " n-gram")
    corpus = Corpus.of(texts)
    tokens = per_chain(word_punct(corpus.texts), corpus.owners)
    ratios = []
    for n in (1, 2, 3):
        rows = ngrams(tokens, n)
        of_chains = _rows_of_chains(rows, corpus)
        ratios.append(_rarefied(of_chains, sample) / np.clip(of_chains.lengths, 1, sample))
    return corpus.by_chain(np.mean(ratios, 0))


def repetitions(texts: Texts, n: int = 4) -> TextValues:
    """Share of each text's n-grams that repeat an earlier one of the text: [n] in [0, 1).

    0 for a text without n-grams.
    """
    corpus = Corpus.of(texts)
    return corpus.by_text(_repetitions(corpus, n))


def repetition(texts: Texts, n: int = 4) -> ChainValues:
    """Mean over texts of 1 - (different n-grams / n-grams) inside the text, in [0, 1).

    seq-rep-n of Welleck et al. 2020 (arXiv 1908.04319), n-grams of 13a tokens. A text that loops
    tends to 1. Texts shorter than n tokens count as 0; no texts: 0.
    """
    corpus = Corpus.of(texts)
    return corpus.by_chain(corpus.mean(_repetitions(corpus, n)))


def memorised_ngrams(texts: Texts, reference_texts: Texts, n: int = 10) -> ChainValues:
    """Share of a chain's n-grams that stand word for word in the reference, in [0, 1].

    The reference is, say, its training texts. n-grams of 13a tokens, every position counted, never
    across two texts. No n-gram: 0. Cf. Taori and Hashimoto 2022 (arXiv 2209.03942).

    Args:
        reference_texts: one set for all chains, or one set for each chain.
    """
    corpus, reference = Corpus.of(texts), Corpus.of(reference_texts)
    check_reference(reference, corpus)
    count, chains = len(corpus.texts), len(corpus.chains)
    both = Corpus((tuple(corpus.texts + reference.texts),), single=True)
    rows = ngrams(both.tokens, _order(n))
    generated = rows.owners < count
    chain = corpus.owners[rows.owners[generated]].astype(np.int64)
    codes, reference_codes = rows.codes[generated], rows.codes[~generated]
    if reference.single:
        in_reference = np.zeros(max(rows.size, 1), bool)
        in_reference[reference_codes] = True
        memorised = in_reference[codes]
    else:
        of_chain = reference.owners[rows.owners[~generated] - count].astype(np.int64)
        memorised = np.isin(chain * rows.size + codes, of_chain * rows.size + reference_codes)
    total = np.bincount(chain, minlength=chains)
    return corpus.by_chain(np.bincount(chain, memorised, minlength=chains) / np.maximum(total, 1))


def _at_least_one(name: str, value: int, unit: str = "") -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, at least 1{unit} is needed.")


def _order(n: int) -> int:
    if not is_whole(n):
        raise ValueError(f"n is {n!r}, a whole number of at least 1 is needed.")
    return int(n)


def _chain_ngrams(corpus: Corpus, n: int) -> Tokens:
    """The n-grams of each chain, one row a chain."""
    return _rows_of_chains(ngrams(corpus.chain_tokens, _order(n)), corpus)


def _rows_of_chains(rows: Tokens, corpus: Corpus) -> Tokens:
    """Tokens of texts as one row for each chain."""
    total = np.bincount(corpus.owners, rows.lengths, minlength=len(corpus.chains)).astype(np.int64)
    return Tokens(rows.codes, np.concatenate([[0], np.cumsum(total)]).astype(np.int64), rows.size)


def _counts(rows: Tokens, groups: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Count of every code [size], and the group it is in [size].

    Codes must not be shared between groups.
    """
    owner = np.zeros(rows.size, np.int64)
    owner[rows.codes] = groups[rows.owners]
    return np.bincount(rows.codes, minlength=rows.size), owner


def _frequencies(rows: Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of tokens with one row a chain: count of every code, its chain, and each chain's tokens."""
    counts, chain = _counts(rows, np.arange(len(rows.lengths)), len(rows.lengths))
    return counts, chain, rows.lengths


def _rarefied(rows: Tokens, size: int, short: float | None = None) -> np.ndarray:
    """Expected number of different codes among `size` drawn without replacement: [rows] float64.

    A row with fewer than `size` codes: all of them are taken, or the value is `short`.
    """
    counts, chain, total = _frequencies(rows)
    expected = np.zeros(len(total))
    order = np.argsort(chain, kind="stable")
    edges = np.searchsorted(chain[order], np.arange(len(total) + 1))
    for row, drawable in enumerate(total.tolist()):
        in_row = counts[order[edges[row] : edges[row + 1]]]
        if drawable < size and short is not None:
            expected[row] = short
        elif drawable <= size:
            expected[row] = len(in_row)
        else:
            expected[row] = _expected_different(in_row, drawable, size)
    return expected


def _expected_different(counts: np.ndarray, total: int, size: int) -> float:
    """Expected number of different codes among `size` of `total` with these counts [codes]."""
    distinct, times = np.unique(counts, return_counts=True)
    # ln of C(total - c, size) / C(total, size) for c = 1, 2, ..., as a running sum of
    # ln((total - size - i) / (total - i)).
    i = np.arange(distinct[-1], dtype=np.float64)
    with np.errstate(divide="ignore"):
        missed = np.cumsum(np.log(np.maximum(total - size - i, 0) / (total - i)))
    return (times * -np.expm1(missed[distinct - 1])).sum()


def _distinct_shares(rows: Tokens) -> np.ndarray:
    """Different codes / codes of each row, [rows]; 0 for an empty row."""
    _, unique = factorize(rows.owners.astype(np.int64) * max(rows.size, 1) + rows.codes)
    different = np.bincount(unique // max(rows.size, 1), minlength=len(rows.lengths))
    return different / np.maximum(rows.lengths, 1)


def _repetitions(corpus: Corpus, n: int) -> np.ndarray:
    rows = ngrams(corpus.tokens, _order(n))
    return np.where(rows.lengths > 0, 1 - _distinct_shares(rows), 0.0)


METRICS = (
    Metric("distinct_n", distinct_n, TEXTS, UNIT_INTERVAL),
    Metric("distinct_n_size_matched", distinct_n_size_matched, TEXTS, UNIT_INTERVAL),
    Metric("distinct_n_by_context", distinct_n_by_context, ("texts", "contexts"), NOT_NEGATIVE),
    Metric("type_token_ratio", type_token_ratio, TEXTS, UNIT_INTERVAL, per_text=type_token_ratios),
    Metric("ngram_ttr", ngram_ttr, TEXTS, UNIT_INTERVAL),
    Metric("word_entropy", word_entropy, TEXTS, NOT_NEGATIVE, "nats"),
    Metric("vocabulary_size", vocabulary_size, TEXTS, NOT_NEGATIVE, "words"),
    Metric("text_length", text_length, TEXTS, NOT_NEGATIVE, "characters", per_text=text_lengths),
    Metric("zipf_slope", zipf_slope, TEXTS, (None, 0)),
    Metric("repetition", repetition, TEXTS, UNIT_INTERVAL, per_text=repetitions),
    Metric("memorised_ngrams", memorised_ngrams, TEXTS_AND_REFERENCE, UNIT_INTERVAL),
)
