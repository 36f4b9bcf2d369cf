"""Training of the detector of `quality`: real sentences and controlled corruptions of them."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxloop.metrics.classifier_training import FittedClassifier, fit_classifier
from jaxloop.metrics.tokens import check_texts

CLASSES = ("clean", "mild gibberish", "word salad", "noise")

# Function words and what each is exchanged for.
_SWAPS = dict(
    pair.split(">")
    for pair in (
        "is>are are>is was>were were>was has>have have>has do>does does>do a>an an>a the>a "
        "this>these these>this that>those in>of of>to to>for for>at on>by at>on by>with with>in "
        "from>to and>but it>its its>it's they>them he>him she>her we>us I>me you>your not>no "
    ).split()
)
_DROPPED = frozenset(
    "a an the is are was were be been to of in on at by with for from and that this which it has "
    "have had will can".split()
)


def corrupt(sentence: str, kind: str, rng: np.random.Generator) -> str:
    """Return a sentence made worse, as a class of `CLASSES`.

    Args:
        kind: "mild gibberish": a quarter of the words, at least two changes: function words dropped
            or exchanged, neighbours swapped, words doubled, endings changed. "word salad": its
            words in random order, no two neighbours left together where that is possible. "noise":
            every word is random letters, as many as it had. "clean": as it is.

    Raises:
        ValueError: `kind` is no class.
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
    """The words in that of a few random orders in which the fewest neighbours stay together."""
    orders = [rng.permutation(len(words)) for _ in range(8)]
    together = [int((np.diff(order) == 1).sum()) for order in orders]
    return [words[i] for i in orders[int(np.argmin(together))]]


def corrupted(real: Sequence[str], seed: int = 0) -> tuple[list[str], list[str]]:
    """Return texts of every class, and their labels.

    Every class has sentences of its own, so that a detector never sees one sentence in two states.
    """
    texts, labels = [], []
    for i, sentence in enumerate(real):
        kind = CLASSES[i % len(CLASSES)]
        texts.append(corrupt(sentence, kind, np.random.default_rng((seed, i))))
        labels.append(kind)
    return texts, labels


def fit_detector(
    real: Sequence[str],
    *,
    encoder: str | None = None,
    train: Literal["head", "all"] | int = 2,
    seed: int = 0,
    **settings: Any,
) -> FittedClassifier:
    """Train a detector on real sentences and corruptions of them.

    Args:
        real: a hundred sentences or more, of at least four words; shorter ones are left out.
        encoder, train, settings: as in `classifier_training.fit_classifier`, whose report has the
            confusion matrix on held-out sentences.

    Raises:
        ValueError: fewer than 100 sentences are left.
    """
    distinct = dict.fromkeys(check_texts(real, "real"))
    long = [sentence for sentence in distinct if len(sentence.split()) >= 4]
    if len(long) < 100:
        raise ValueError(
            f"real: {len(long)} different sentences of four words or more; at least 100 are needed."
        )
    texts, labels = corrupted(long, seed)
    return fit_classifier(texts, labels, encoder=encoder, train=train, seed=seed, **settings)
