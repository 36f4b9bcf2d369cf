"""Positivity: the VADER compound score, by the `vaderSentiment` package's lexicon and rules."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from vaderSentiment import vaderSentiment as package

from jaxloop.metrics.base import TEXTS, Metric
from jaxloop.metrics.corpus import ChainValues, Corpus, Texts, TextValues

_PARALLEL_FROM = 200_000  # distinct texts from which starting processes (seconds each) pays


def positivities(texts: Texts, processes: int | None = None) -> TextValues:
    """VADER compound score of each text: [n] in [-1, 1] (or a list of arrays, one a chain).

    Equal to `SentimentIntensityAnalyzer().polarity_scores(text)["compound"]` of vaderSentiment 3.3
    (Hutto and Gilbert 2014): four decimals. Equal texts are scored once. A text without known
    words: 0.

    Args:
        processes: over which the work is shared out; None takes one per core from 200,000 different
            texts on.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}, at least 1 is needed.")
    corpus = Corpus.of(texts)
    row_of: dict[str, int] = {}
    rows = [row_of.setdefault(text, len(row_of)) for text in corpus.texts]
    distinct = list(row_of)
    processes = processes or ((os.cpu_count() or 1) if len(distinct) >= _PARALLEL_FROM else 1)
    if processes == 1 or not distinct:
        scores = _score_all(distinct)
    else:
        step = -(-len(distinct) // (4 * processes))
        parts = [distinct[begin : begin + step] for begin in range(0, len(distinct), step)]
        # Not forked: a fork of a process in which JAX runs its threads can hang.
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            scores = [score for part in pool.map(_score_all, parts) for score in part]
    return corpus.by_text(np.array(scores, np.float64)[np.array(rows, np.int64)])


def positivity(texts: Texts, processes: int | None = None) -> ChainValues:
    """Mean VADER compound score, in [-1, 1] (arXiv 2504.03814, positivity): [c] float64.

    See `positivities`. No texts: 0.
    """
    corpus = Corpus.of(texts)
    scores = positivities(Corpus((tuple(corpus.texts),), single=True), processes)
    return corpus.by_chain(corpus.mean(np.asarray(scores)))


class _Vader(NamedTuple):
    """The package's analyser, and what tells at once that none of its rules can touch a word.

    Attributes:
        triggers: words that change the valence of one of the three words behind them.
        phrases: groups of words that have a valence of their own.
    """

    analyser: Any
    boosters: dict[str, float]
    triggers: frozenset[str]
    phrases: re.Pattern


class _Window(NamedTuple):
    """The words around one, as the analyser's rules read them."""

    words_and_emoticons: list[str]
    is_cap_diff: bool


@cache
def _vader() -> _Vader:
    boosters = package.BOOSTER_DICT
    triggers = (
        frozenset(package.NEGATE)
        | boosters.keys()
        | {"no", "least", "never", "without", "so", "this"}
    )
    phrases = [*package.SPECIAL_CASES, *(words for words in boosters if " " in words), "n't"]
    pattern = re.compile("|".join(map(re.escape, phrases)))
    return _Vader(package.SentimentIntensityAnalyzer(), boosters, triggers, pattern)


def _score_all(texts: Sequence[str]) -> list[float]:
    return [_score(text) for text in texts]


def _score(text: str) -> float:
    """The compound score of a text.

    The package is asked only about words of its lexicon, with the three words before and two after.
    Those are all that its rules look at; every other word has valence 0, and a word without a
    trigger or a phrase around it has the valence of the lexicon. (The package walks over all words
    of the text again for every rule, so it is quadratic in the length.)
    """
    vader = _vader()
    analyser = vader.analyser
    if not text.isascii() and not analyser.emojis.keys().isdisjoint(text):
        text = _spell_emoji(text, analyser.emojis)
    sentence = package.SentiText(text.strip())
    words = sentence.words_and_emoticons
    lower = [word.lower() for word in words]
    lexicon = analyser.lexicon
    in_lexicon = [i for i, w in enumerate(lower) if w in lexicon and w not in vader.boosters]
    if not in_lexicon:
        return 0.0
    valences: dict[int, float] = {}
    for i in in_lexicon:
        if lower[i : i + 2] != ["kind", "of"]:
            valences[i] = _valence(vader, words, lower, i, sentence.is_cap_diff)
    # Words of valence 0 change neither the sum nor what stands before and behind "but".
    if "but" in lower:
        valences[lower.index("but")] = 0.0
        places = sorted(valences)
        # The package has no public name for this rule.
        scores = analyser._but_check(  # noqa: SLF001
            [words[i] for i in places], [valences[i] for i in places]
        )
    else:
        scores = list(valences.values())
    return analyser.score_valence(scores, sentence.text)["compound"]


def _valence(
    vader: _Vader, words: list[str], lower: list[str], i: int, capitals_differ: bool
) -> float:
    """The valence of word i, a word of the lexicon; `lower` are the words in small letters."""
    begin = max(0, i - 3)
    plain = (
        lower[i] != "no"
        and vader.triggers.isdisjoint(lower[begin:i])
        and not vader.phrases.search(" ".join(lower[begin : i + 3]))
    )
    if not plain:
        window = _Window(words[begin : i + 3], capitals_differ)
        return vader.analyser.sentiment_valence(0, window, words[i], i - begin, [])[0]
    valence = vader.analyser.lexicon[lower[i]]
    if words[i].isupper() and capitals_differ:
        valence += package.C_INCR if valence > 0 else -package.C_INCR
    return valence


def _spell_emoji(text: str, names: dict[str, str]) -> str:
    """Emoji as the words of their description, set off from what stands before them by a space."""
    pieces: list[str] = []
    for character in text:
        name = names.get(character)
        if name is None:
            pieces.append(character)
        else:
            pieces.append(f" {name}" if pieces and pieces[-1] != " " else name)
    return "".join(pieces)


METRICS = (Metric("positivity", positivity, TEXTS, (-1, 1), per_text=positivities),)
