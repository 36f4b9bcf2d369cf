"""The text quality index of arXiv 2410.15234, by a detector of gibberish.

The detector finds every sentence clean, mildly wrong, word salad or noise. It is any sequence
classifier with these four classes, such as the paper's
(madhurjindal/autonlp-Gibberish-Detector-492513457), or one that `detector_training` trains.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxloop.metrics.base import TEXTS, Metric
from jaxloop.metrics.classifiers import Classifier, Known, load_classifier, probabilities
from jaxloop.metrics.corpus import Corpus, Texts, chain_means

VALUES = {"clean": 3.0, "mild gibberish": 2.0, "mild": 2.0, "word salad": 1.0, "noise": 0.0}
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|[\r\n]+")


def sentences(text: str, split: str = "sentence") -> list[str]:
    """Cut a text into sentences.

    Args:
        split: "sentence" cuts behind . ! ? and at line ends; "period" at every full stop, as the
            paper's code does.
    """
    if split not in ("sentence", "period"):
        raise ValueError(f"split is {split!r}; allowed are 'sentence' and 'period'.")
    pieces = text.split(".") if split == "period" else _SENTENCE_END.split(text)
    return [piece for piece in map(str.strip, pieces) if piece]


def default_detector() -> Path:
    """Return the directory of the detector that comes with the toolkit.

    `detector_training.fit_detector` trained it on the prose of `data.docs` (see its README.md).
    """
    return Path(__file__).parent.parent / "assets" / "detector"


@functools.lru_cache(maxsize=2)
def _detector(path: str | None) -> Classifier:
    detector = load_classifier(str(default_detector()) if path is None else path)
    if unknown := [label for label in detector.labels if label not in VALUES]:
        raise ValueError(
            f"detector: the class {unknown[0]!r} of {path} has no quality value; known are "
            f"{', '.join(VALUES)}."
        )
    return detector


@functools.lru_cache(maxsize=2)
def _known(path: str | None) -> Known:
    return {}


def text_qualities(
    texts: Texts, detector: str | None = None, variant: str = "class", split: str = "sentence"
) -> list[np.ndarray]:
    """Quality of each text, in [0, 3]: [chains] arrays [n].

    The mean over the text's sentences, see `text_quality_index`. No sentence: 0.
    """
    (values,) = text_quality_variants(texts, detector, [(variant, split)])
    return values


def text_quality_variants(
    texts: Texts, detector: str | None, variants: Sequence[tuple[str, str]]
) -> list[list[np.ndarray]]:
    """`text_qualities` of several (variant, split): the detector reads all their sentences at once,
    each of them once.
    """
    for variant, split in variants:
        if variant not in ("class", "confidence"):
            raise ValueError(f"variant is {variant!r}; allowed are 'class' and 'confidence'.")
        sentences("", split)  # raises for an unknown `split` even if there are no texts
    corpus = Corpus.of(texts)
    pieces = {
        split: [sentences(text, split) for text in corpus.texts]
        for split in dict.fromkeys(split for _, split in variants)
    }
    distinct = dict.fromkeys(
        piece for of_split in pieces.values() for text in of_split for piece in text
    )
    loaded = _detector(detector)
    shares = probabilities(loaded, list(distinct), known=_known(detector)).astype(np.float64)
    found = []
    for variant, split in variants:
        scores = _sentence_scores(loaded, shares, variant)
        score_of = dict(zip(distinct, scores.tolist(), strict=True))
        means = [np.mean([score_of[p] for p in text]) if text else 0.0 for text in pieces[split]]
        found.append(corpus.split(np.array(means, np.float64)))
    return found


def _sentence_scores(detector: Classifier, shares: np.ndarray, variant: str) -> np.ndarray:
    values = np.array([VALUES[label] for label in detector.labels])
    scores = values[shares.argmax(1)]
    return scores * shares.max(1, initial=0) if variant == "confidence" else scores


def text_quality_index(
    texts: Texts, detector: str | None = None, variant: str = "class", split: str = "sentence"
) -> np.ndarray:
    """Mean quality of the texts' sentences, from 0 (noise) to 3 (clean): [c] float64.

    A sentence that the detector finds clean counts 3, mildly wrong 2, word salad 1, noise 0 (arXiv
    2410.15234, section 4.3). Texts count equally, by the mean over their sentences; a text without
    any counts 0. No text: nan.

    Args:
        detector: directory or hub id of a classifier with these classes; None takes the one that
            comes with the toolkit.
        variant: "confidence" multiplies by the probability of the class, as the paper's code does,
            so that a clean sentence of probability 0.9 counts 2.7.
        split: "period" cuts texts at full stops only, as that code does.
    """
    return chain_means(text_qualities(texts, detector, variant, split))


METRICS = (
    Metric(
        "text_quality_index",
        text_quality_index,
        TEXTS,
        (0, 3),
        per_text=text_qualities,
        old_options={"reading": "variant"},
    ),
)
