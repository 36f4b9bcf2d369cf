"""Self-BLEU: how much of a text stands, n-gram by n-gram, in the others of its set.

Exact, in time linear in the number of n-grams.
"""

from typing import NamedTuple

import numpy as np

from jaxloop.metrics.base import TEXTS, UNIT_INTERVAL, Metric
from jaxloop.metrics.corpus import ChainValues, Corpus, Texts, TextValues
from jaxloop.metrics.tokens import Tokens, factorize, group

ORDER = 4


def self_bleu(texts: Texts) -> TextValues:
    """Sentence BLEU of each text against all others of its chain, in [0, 1]: [n] float64.

    For a sequence of chains, a list of [n_c] arrays. sacrebleu's definition: 13a tokens, case kept,
    orders 1 to 4 with equal weights, effective order, exponential smoothing, brevity penalty
    against the closest reference length (ties: the shorter); the hypothesis is text i, its
    references are all other texts of its chain, empty ones included. Equal to
    `sacrebleu.BLEU(effective_order=True).sentence_score(...).score / 100` to 1e-9. A text with no
    word in common with the others, an empty text, and a single text without others score 0; []
    gives an empty array.

    Source: Zhu et al. 2018 (Texygen) for self-BLEU; arXiv 2504.03814 for these settings.
    """
    corpus = Corpus.of(texts)
    return corpus.by_text(scores_from_tokens(corpus.chain_tokens, corpus.owners))


def scores_from_tokens(tokens: Tokens, chains: np.ndarray) -> np.ndarray:
    """Self-BLEU of coded texts: [n] float64.

    For text i an n-gram's clip is its largest count in any *other* text: the largest count over
    texts, or the second largest where text i alone holds the largest. An n-gram found in one text
    only matches nothing, and nor does any longer n-gram around it, so each order looks only at
    positions whose n-gram of the order before is shared by at least two texts.

    Args:
        chains: the chain of each text [n], sorted; texts of a chain are each other's references.
    """
    lengths = tokens.lengths
    texts = len(lengths)
    grams = _Grams(tokens.codes, tokens.size, tokens.owners, np.arange(len(tokens.codes)))
    log_precision, orders, halvings = np.zeros(texts), np.zeros(texts), np.zeros(texts)
    matched = np.zeros(texts, bool)
    for order in range(1, ORDER + 1):
        matches, shared = _clipped_matches(grams, texts)
        totals = lengths - order + 1
        has_grams = totals > 0
        matched |= matches > 0
        halvings += has_grams & (matches == 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            smoothed = -np.log(totals) - halvings * np.log(2)
            step = np.where(matches > 0, np.log(matches / totals), smoothed)
        log_precision += np.where(has_grams, step, 0)
        orders += has_grams
        if order < ORDER:
            grams = _longer_grams(grams, shared)
    reference = _closest_lengths(lengths, chains)
    with np.errstate(divide="ignore", invalid="ignore"):
        brevity = np.minimum(0.0, 1 - reference / lengths)
        return np.where(matched, np.minimum(np.exp(brevity + log_precision / orders), 1.0), 0.0)


class _Grams(NamedTuple):
    """n-grams of one order: their codes [T] in [0, size), texts [T] and positions [T]."""

    codes: np.ndarray
    size: int
    owners: np.ndarray
    at: np.ndarray


def _longer_grams(grams: _Grams, shared: np.ndarray) -> _Grams:
    """The n-grams of the next order of which both parts are shared [T] with another text."""
    codes, size, owners, at = grams
    neighbours = (at[1:] == at[:-1] + 1) & (owners[1:] == owners[:-1])
    index = np.flatnonzero(shared[:-1] & shared[1:] & neighbours)
    longer, unique = factorize(codes[index].astype(np.int64) * size + codes[index + 1])
    return _Grams(longer, len(unique), owners[index], at[index])


def _clipped_matches(grams: _Grams, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Matched n-grams of each text [texts] int64, and whether each n-gram is shared [T] bool.

    An n-gram is shared where another text holds it too.
    """
    codes, size, owners, _ = grams
    if not len(codes):
        return np.zeros(texts, np.int64), np.zeros(0, bool)
    order, edges = group(codes, size)
    owner = owners[order]
    # Grouping is stable and owners ascend: a repeat of an n-gram inside one text stands right
    # behind its predecessor.
    again = np.empty(len(codes), bool)
    again[0] = False
    np.equal(owner[1:], owner[:-1], out=again[1:])
    again[edges[:-1]] = False
    again = np.flatnonzero(again)
    again_code = codes[order[again]]
    holders = np.diff(edges) - np.bincount(again_code, minlength=size)
    shared = (holders > 1)[codes]
    matches = np.bincount(owners[shared], minlength=texts)

    # So far every shared position counts. A text that holds an n-gram c > 1 times gets at most the
    # largest count elsewhere.
    run_at = np.flatnonzero(np.diff(again, prepend=-2) != 1)
    run_code, run_owner = again_code[run_at], owner[again[run_at]]
    run_count = np.diff(run_at, append=len(again)) + 1
    inside = holders[run_code] > 1
    if inside.any():
        excess = _excess(run_code[inside], run_count[inside])
        matches -= np.bincount(run_owner[inside], excess, minlength=texts).astype(np.int64)
    return matches, shared


def _excess(run_code: np.ndarray, run_count: np.ndarray) -> np.ndarray:
    """How far each count exceeds the largest count of its n-gram in another text.

    Args:
        run_code: n-grams [r] that some text holds more than once, sorted.
        run_count: how often that text holds it [r].
    """
    gram_at = np.flatnonzero(np.diff(run_code, prepend=-1))
    runs = np.diff(gram_at, append=len(run_code))
    largest = np.maximum.reduceat(run_count, gram_at)
    top = run_count == np.repeat(largest, runs)
    alone = np.add.reduceat(top.astype(np.int64), gram_at) == 1
    second = np.maximum(np.maximum.reduceat(np.where(top, 0, run_count), gram_at), 1)
    others = np.where(
        top & np.repeat(alone, runs), np.repeat(second, runs), np.repeat(largest, runs)
    )
    return np.maximum(run_count - others, 0)


def _closest_lengths(lengths: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """For each text the closest length of another text of its chain: [n] float64.

    Of two equally close lengths it is the shorter.
    """
    reference = lengths.astype(np.float64)
    edges = np.append(np.flatnonzero(np.diff(chains, prepend=-1)), len(chains))
    for begin, end in zip(edges[:-1], edges[1:], strict=True):
        unique, where, times = np.unique(
            lengths[begin:end], return_inverse=True, return_counts=True
        )
        below = np.append(-np.inf, unique[:-1].astype(np.float64))
        above = np.append(unique[1:].astype(np.float64), np.inf)
        nearest = np.where(unique - below <= above - unique, below, above)
        nearest = np.where((times > 1) | ~np.isfinite(nearest), unique, nearest)
        reference[begin:end] = nearest[where]
    return reference


def lexical_diversity(texts: Texts) -> ChainValues:
    """1 - mean self-BLEU, in [0, 1]; higher is more diverse (arXiv 2504.03814): [c] float64.

    As in the paper, texts are stripped and empty ones dropped first. Fewer than two texts left: 0,
    nothing differs from anything.
    """
    corpus = Corpus.of(texts)
    if any(map(_is_blank, corpus.texts)):
        chains = [[text for text in chain if not _is_blank(text)] for chain in corpus.chains]
        filled = Corpus(tuple(map(tuple, chains)))
    else:
        filled = corpus
    # Stripping changes no 13a token: white space at the end is dropped by the tokeniser, at the
    # start it only separates.
    diversity = 1 - filled.mean(scores_from_tokens(filled.chain_tokens, filled.owners))
    return corpus.by_chain(np.where(filled.sizes > 1, diversity, 0.0))


def _is_blank(text: str) -> bool:
    return not text or text.isspace()


def mean_self_bleu(texts: Texts) -> ChainValues:
    """Mean self-BLEU, in [0, 1]; higher is less diverse: [c] float64.

    1 - `lexical_diversity`, with the same treatment of empty texts.
    """
    return 1 - lexical_diversity(texts)


METRICS = (
    Metric("self_bleu", mean_self_bleu, TEXTS, UNIT_INTERVAL, per_text=self_bleu),
    Metric("lexical_diversity", lexical_diversity, TEXTS, UNIT_INTERVAL),
)
