"""The text quality index of arXiv 2410.15234: every sentence is clean, mildly wrong, word salad or
noise, by a detector.

The detector is any sequence classifier with these four classes, such as the paper's
(madhurjindal/autonlp-Gibberish-Detector-492513457), or one that this module trains on real
sentences and three controlled corruptions of them.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxloop.metrics.classifiers import (
    Classifier,
    Fitted,
    fit_classifier,
    load_classifier,
    probabilities,
)
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.tokens import check_texts

CLASSES = ("clean", "mild gibberish", "word salad", "noise")
VALUES = {"clean": 3.0, "mild gibberish": 2.0, "mild": 2.0, "word salad": 1.0, "noise": 0.0}

_SWAPS = {
    "is": "are", "are": "is", "was": "were", "were": "was", "has": "have", "have": "has", "do": "does", "does": "do", "a": "an", "an": "a", "the": "a",
    "this": "these", "these": "this", "that": "those", "in": "of", "of": "to", "to": "for", "for": "at", "on": "by", "at": "on", "by": "with", "with": "in",
    "from": "to", "and": "but", "it": "its", "its": "it's", "they": "them", "he": "him", "she": "her", "we": "us", "I": "me", "you": "your", "not": "no",
}  # fmt: skip
_DROPPED = frozenset(
    "a an the is are was were be been to of in on at by with for from and that this which it has "
    "have had will can".split()
)


# ---- sentences and their corruptions
# ----------------------------------------------------------------------------------


def sentences(text: str, split: str = "sentence") -> list[str]:
    """The sentences of a text: cut behind . ! ? and at line ends; or, with split = "period", at
    every full stop, as the paper's code cuts.
    """
    if split not in ("sentence", "period"):
        raise ValueError(f"split is {split!r}; allowed are 'sentence' and 'period'.")
    pieces = (
        text.split(".") if split == "period" else re.split(r"(?<=[.!?…])[\"')\]]*\s+|[\r\n]+", text)
    )
    return [piece for piece in (p.strip() for p in pieces) if piece]


def corrupt(sentence: str, kind: str, rng: np.random.Generator) -> str:
    """A sentence made worse, as a class of `CLASSES`.

    mild gibberish  a quarter of the words, at least two changes: function words dropped or
    exchanged, neighbours swapped, words doubled, endings
                    changed
    word salad      its words in random order, no two neighbours left together where that is possible
    noise           every word is random letters, as many as it had
    "clean" returns it as it is. ValueError for another kind.
    """
    if kind == "clean":
        return sentence
    if kind not in CLASSES:
        raise ValueError(f"kind is {kind!r}; allowed are {', '.join(CLASSES)}.")
    words = sentence.split()
    if kind == "mild gibberish":
        return " ".join(_perturb(words, rng))
    if kind == "word salad":
        return " ".join(_shuffle(words, rng))
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    return " ".join("".join(rng.choice(letters, len(word))) for word in words)


def _perturb(words: list[str], rng: np.random.Generator) -> list[str]:
    words, changes = list(words), 0
    for _ in range(8 * len(words) + 16):
        if changes >= max(2, round(len(words) / 4)) or not words:
            break
        i, way = int(rng.integers(len(words))), int(rng.integers(5))
        word = words[i]
        if way == 0 and word.lower() in _DROPPED and len(words) > 2:
            del words[i]
        elif way == 1 and word in _SWAPS:
            words[i] = _SWAPS[word]
        elif way == 2 and i + 1 < len(words) and word != words[i + 1]:
            words[i : i + 2] = words[i + 1], word
        elif way == 3 and word.isalpha():
            words.insert(i, word)
        elif way == 4 and word.isalpha() and len(word) > 3 and word.lower() not in _SWAPS:
            words[i] = _ending(word)
        else:
            continue
        changes += 1
    return words


def _ending(word: str) -> str:
    for old, new in (("ing", "ed"), ("ed", "ing"), ("ies", "y"), ("s", "")):
        if word.endswith(old) and len(word) > len(old) + 2:
            return word[: -len(old)] + new
    return word + "s"


def _shuffle(words: list[str], rng: np.random.Generator) -> list[str]:
    """The order, of a few random ones, in which fewest neighbours stay together."""
    orders = [rng.permutation(len(words)) for _ in range(8)]
    together = [int((np.diff(order) == 1).sum()) for order in orders]
    return [words[i] for i in orders[int(np.argmin(together))]]


def corrupted(real: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """(texts, labels): every class from sentences of its own, so that a detector never sees one
    sentence in two states.
    """
    texts, labels = [], []
    for i, sentence in enumerate(real):
        kind = CLASSES[i % len(CLASSES)]
        texts.append(corrupt(sentence, kind, np.random.default_rng((seed, i))))
        labels.append(kind)
    return texts, labels


# ---- the detector
# -----------------------------------------------------------------------------------------------------


def fit_detector(
    real: Sequence[str],
    *,
    encoder: str | None = None,
    train: str | int = 2,
    seed: int = 0,
    **settings,
) -> Fitted:
    """Train a detector on real sentences and corruptions of them; the report has its confusion
    matrix on held-out ones.

    real      sentences of at least four words, a hundred or more; shorter ones are left out
    encoder, train, settings   as in `classifiers.fit_classifier`
    ValueError where fewer than 100 sentences are left.
    """
    kept = [s for s in dict.fromkeys(check_texts(real, "real")) if len(s.split()) >= 4]
    if len(kept) < 100:
        raise ValueError(
            f"real: {len(kept)} different sentences of four words or more; at least 100 are needed."
        )
    return fit_classifier(
        *corrupted(kept, seed), encoder=encoder, train=train, seed=seed, **settings
    )


@functools.lru_cache(maxsize=2)
def _detector(path: str | None) -> Classifier:
    found = load_classifier(str(default_detector()) if path is None else path)
    if unknown := [label for label in found.labels if label not in VALUES]:
        raise ValueError(
            f"detector: the class {unknown[0]!r} of {path} has no quality value; known are "
            f"{', '.join(VALUES)}."
        )
    return found


def default_detector() -> Path:
    """The directory of the detector that comes with the toolkit: trained by `fit_detector` on the
    prose of `data.docs` (see its README.md).
    """
    return Path(__file__).parent.parent / "assets" / "detector"


# ---- the index
# --------------------------------------------------------------------------------------------------------


def text_qualities(texts, detector=None, reading="class", split="sentence"):
    """The quality of each text, in [0, 3]: the mean over its sentences (see `text_quality_index`):
    [chains] arrays [n]. No sentence: 0.
    """
    if reading not in ("class", "confidence"):
        raise ValueError(f"reading is {reading!r}; allowed are 'class' and 'confidence'.")
    sentences("", split)  # refuses what is no split, whatever the texts
    corpus = Corpus.of(texts)
    pieces = [sentences(text, split) for text in corpus.texts]
    flat = list(dict.fromkeys(piece for text in pieces for piece in text))
    classifier = _detector(detector)
    values = np.array([VALUES[label] for label in classifier.labels])
    shares = probabilities(classifier, flat).astype(np.float64)
    best = shares.argmax(1)
    score = values[best] * (shares.max(1, initial=0) if reading == "confidence" else 1)
    known = dict(zip(flat, score.tolist(), strict=True))
    means = np.array(
        [np.mean([known[p] for p in text]) if text else 0.0 for text in pieces], np.float64
    )
    return [means] if corpus.single else corpus.by_text(means)


def text_quality_index(texts, detector=None, reading="class", split="sentence"):
    """Mean quality of the texts' sentences, from 0 (noise) to 3 (clean) (arXiv 2410.15234, section
    4.3): [c] float64.

    A sentence that the detector finds clean counts 3, mildly wrong 2, word salad 1, noise 0.
    reading "confidence" multiplies this by the probability of the class, as the paper's code does,
    so that a clean sentence of probability 0.9 counts 2.7; split "period" cuts texts at full stops
    only, as that code does. Texts count equally, by the mean over their sentences; a text without
    any counts 0. detector is a directory or hub id of a classifier with these classes; None takes
    the one that comes with the toolkit. No text: nan.
    """
    return np.array(
        [v.mean() if len(v) else np.nan for v in text_qualities(texts, detector, reading, split)],
        np.float64,
    )
