"""Positivity: the VADER compound score, with the lexicon and the rules of the `vaderSentiment`
package.
"""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics.corpus import Corpus

_PARALLEL_FROM = 200_000  # distinct texts from which starting processes (seconds each) pays


def positivities(
    texts: Sequence[str] | Sequence[Sequence[str]] | Corpus, processes: int | None = None
):
    """VADER compound score of each text, [n] in [-1, 1] (for a sequence of chains, a list of
    arrays); 0 for a text without known words.

    Equal to `SentimentIntensityAnalyzer().polarity_scores(text)["compound"]` of vaderSentiment 3.3
    (Hutto and Gilbert 2014): four decimals. Equal texts are scored once. `processes` shares the
    work out; None takes one per core from 200,000 different texts on.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}, at least 1 is needed.")
    corpus = Corpus.of(texts)
    table: dict[str, int] = {}
    index = [table.setdefault(text, len(table)) for text in corpus.texts]
    distinct = list(table)
    processes = processes or ((os.cpu_count() or 1) if len(distinct) >= _PARALLEL_FROM else 1)
    if processes == 1 or not distinct:
        scores = _score_all(distinct)
    else:
        step = -(-len(distinct) // (4 * processes))
        parts = [distinct[begin : begin + step] for begin in range(0, len(distinct), step)]
        # Not forked: a fork of a process in which JAX runs its threads can hang.
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            scores = [score for part in pool.map(_score_all, parts) for score in part]
    return corpus.by_text(np.array(scores, np.float64)[np.array(index, np.int64)])


def positivity(
    texts: Sequence[str] | Sequence[Sequence[str]] | Corpus, processes: int | None = None
):
    """Mean VADER compound score, in [-1, 1] (arXiv 2504.03814, positivity); see `positivities`. A
    float, or [c] float64. No texts: 0.
    """
    corpus = Corpus.of(texts)
    flat = positivities(Corpus((tuple(corpus.texts),), single=True), processes)
    return corpus.by_chain(corpus.mean(flat))


class _Vader(NamedTuple):
    """The package's analyser and tables, and what tells at once that none of its rules can touch a
    word.
    """

    analyser: Any
    sentences: type
    boosters: dict[str, float]
    capitals: float
    triggers: frozenset[str]  # words that change the valence of one of the three words behind them
    phrases: re.Pattern


@cache
def _vader() -> _Vader:
    from vaderSentiment import vaderSentiment as package

    boosters = package.BOOSTER_DICT
    triggers = (
        frozenset(package.NEGATE)
        | boosters.keys()
        | {"no", "least", "never", "without", "so", "this"}
    )
    phrases = [*package.SPECIAL_CASES, *(words for words in boosters if " " in words), "n't"]
    pattern = re.compile("|".join(map(re.escape, phrases)))
    return _Vader(
        package.SentimentIntensityAnalyzer(),
        package.SentiText,
        boosters,
        package.C_INCR,
        triggers,
        pattern,
    )


def _score_all(texts: Sequence[str]) -> list[float]:
    return [_score(text) for text in texts]


def _score(text: str) -> float:
    """The compound score, asking the package only about words of its lexicon, with the three words
    before and two after.

    Those are all that its rules look at; every other word has valence 0, and a word without a
    trigger or a phrase around it has the valence of the lexicon. (The package walks over all words
    of the text again for every rule, so it is quadratic in the length.)
    """
    vader = _vader()
    analyser = vader.analyser
    if not text.isascii() and not analyser.emojis.keys().isdisjoint(text):
        text = _spell_emoji(text, analyser.emojis)
    sentences = vader.sentences(text.strip())
    words = sentences.words_and_emoticons
    lower = [word.lower() for word in words]
    lexicon = analyser.lexicon
    found = [i for i, word in enumerate(lower) if word in lexicon and word not in vader.boosters]
    if not found:
        return 0.0
    valences: dict[int, float] = {}
    for i in found:
        if lower[i] == "kind" and i + 1 < len(lower) and lower[i + 1] == "of":
            continue
        begin = max(0, i - 3)
        plain = (
            lower[i] != "no"
            and vader.triggers.isdisjoint(lower[begin:i])
            and not vader.phrases.search(" ".join(lower[begin : i + 3]))
        )
        if plain:
            valence = lexicon[lower[i]]
            if words[i].isupper() and sentences.is_cap_diff:
                valence += vader.capitals if valence > 0 else -vader.capitals
            valences[i] = valence
        else:
            window = SimpleNamespace(
                words_and_emoticons=words[begin : i + 3], is_cap_diff=sentences.is_cap_diff
            )
            valences[i] = analyser.sentiment_valence(0, window, words[i], i - begin, [])[0]
    # Words of valence 0 change neither the sum nor what stands before and behind "but".
    if "but" in lower:
        valences[lower.index("but")] = 0.0
        kept = sorted(valences)
        scores = analyser._but_check([words[i] for i in kept], [valences[i] for i in kept])
    else:
        scores = list(valences.values())
    return analyser.score_valence(scores, sentences.text)["compound"]


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
