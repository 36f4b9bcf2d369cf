"""Properties of a cluster of human texts, which are the predictors of the regressions.

They are the fourteen candidates of arXiv 2504.03814 (B.3.1), among them the six of its final study,
and negentropy, a measure of Gaussianity in place of what the paper calls so. Every property is a
metric of `jaxloop.metrics`; this module decides on which texts it is computed. As in the paper's
released code these are 10,000 texts drawn with replacement, 500 for self-BLEU, and the whole
cluster for quality.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxloop.metrics import bleu, lexical, semantic, sentiment
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.tokens import check_texts

# What the metrics return for one list of texts: a number, or an array without axes.
Value = float | np.ndarray
# Embeddings [n, d] -> positions [n, 2] on a map.
Projection = Callable[[np.ndarray], np.ndarray]

SAMPLE = 10_000
LEXICAL_SAMPLE = 500
NEAR, FAR = 50, 1000  # neighbours at SAMPLE points
FINAL = (
    "cosine_diversity",
    "lexical_diversity",
    "gaussian_aic",
    "quality",
    "positivity",
    "text_length",
)
NAMES = (
    "text_length",
    "type_token_ratio",
    "vocabulary_size",
    "quality",
    "word_entropy",
    "lexical_diversity",
    "cosine_diversity",
    "knn_cosine_diversity_near",
    "knn_cosine_diversity_far",
    "kl_entropy_near",
    "kl_entropy_far",
    "gaussian_aic",
    "toxicity",
    "positivity",
    "negentropy",
)


def neighbours(n: int) -> tuple[int, int]:
    """Return the numbers of neighbours (near, far) for n points.

    They are 50 and 1000 for 10,000 points or more, and proportionally fewer below, but at least 2
    and 3, and at most n - 1.
    """
    share = min(1.0, n / SAMPLE)
    near = max(2, round(NEAR * share))
    return min(near, n - 1), min(max(near + 1, round(FAR * share)), n - 1)


def draw(rows: int, n: int, rng: np.random.Generator, replace: bool) -> np.ndarray:
    """Return row numbers in [0, rows), a random sample of min(n, rows) of them.

    They are in ascending order if drawn without replacement.
    """
    size = min(n, rows)
    if replace:
        return rng.choice(rows, size, replace=True)
    return np.sort(rng.choice(rows, size, replace=False))


def cluster_properties(
    texts: Sequence[str],
    *,
    embeddings: np.ndarray | None = None,
    projection: Projection | np.ndarray | None = None,
    quality: ArrayLike | None = None,
    toxicity: ArrayLike | None = None,
    sample: int = SAMPLE,
    lexical_sample: int = LEXICAL_SAMPLE,
    replace: bool | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Return the values of `NAMES` for the N texts of one cluster; nan where an input is None.

    Also `sample`, `k_near` and `k_far`, which say how they were measured. Units: characters
    (text_length), words (vocabulary_size), nats (entropies, negentropy), else pure numbers.
    vocabulary_size, word_entropy, gaussian_aic and the k-nn values depend on the size of the
    sample: compare clusters with equal ones.

    Args:
        embeddings: [N, d] of the texts.
        projection: the dataset's evaluation UMAP (`umap.EvaluationMap`), or the positions [N, 2] of
            the texts on it.
        quality: score of each text [N], nan where the judge gave none: the mean over the whole
            cluster, in the scores' unit.
        toxicity: score of each text [N] in [0, 1].
        sample: texts drawn for everything else.
        lexical_sample: texts drawn for self-BLEU.
        replace: draw with replacement; None does so, as the released code does, for samples of its
            size and more from larger clusters. In smaller samples copies of a text fill up the few
            neighbours that k leaves, and the entropy is -inf.

    Raises ValueError for fewer than 4 texts, inputs of other lengths, and a sample below 4.
    """
    texts = check_texts(texts)
    rows = len(texts)
    _check_sizes(rows, sample, lexical_sample)
    positions = None if projection is None or callable(projection) else np.asarray(projection)
    inputs = {
        "embeddings": None if embeddings is None else np.asarray(embeddings),
        "quality": None if quality is None else np.asarray(quality, np.float64),
        "toxicity": None if toxicity is None else np.asarray(toxicity, np.float64),
        "projection": positions,
    }
    _check_lengths(rows, inputs)
    rng = np.random.default_rng(seed)
    if replace is None:
        replace = sample >= SAMPLE and rows > sample
    index = draw(rows, sample, rng, replace)
    few = draw(rows, lexical_sample, rng, replace)
    near, far = neighbours(len(index))
    corpus = Corpus((tuple(texts[i] for i in index),), single=True)
    values: dict[str, Value] = dict.fromkeys(NAMES, float("nan"))
    values |= {
        "text_length": lexical.text_length(corpus),
        "type_token_ratio": lexical.type_token_ratio(corpus),
        "vocabulary_size": lexical.vocabulary_size(corpus),
        "word_entropy": lexical.word_entropy(corpus),
        "lexical_diversity": bleu.lexical_diversity([texts[i] for i in few]),
        "positivity": sentiment.positivity(corpus),
    }
    scores, toxic, points = inputs["quality"], inputs["toxicity"], inputs["embeddings"]
    if scores is not None and np.isfinite(scores).any():
        values["quality"] = float(np.nanmean(np.where(np.isfinite(scores), scores, np.nan)))
    if toxic is not None:
        values["toxicity"] = float(toxic[index].mean())
    if points is not None:
        values |= _semantic(points[index], near, far)
    drawn = None if positions is None else positions[index]
    if points is not None and callable(projection):
        # Equal points get equal positions: each is projected once.
        distinct, where = np.unique(index, return_inverse=True)
        drawn = np.asarray(projection(points[distinct]))[where]
    if drawn is not None:
        values |= _of_positions(drawn, near, far)
    return {name: float(value) for name, value in values.items()} | {
        "sample": float(len(index)),
        "k_near": float(near),
        "k_far": float(far),
    }


def _check_sizes(rows: int, sample: int, lexical_sample: int) -> None:
    if rows < 4:
        raise ValueError(f"texts holds {rows}, the properties of a cluster need at least 4.")
    for name, value in (("sample", sample), ("lexical_sample", lexical_sample)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 4:
            raise ValueError(f"{name} is {value!r}, a whole number of at least 4 is needed.")


def _check_lengths(rows: int, inputs: Mapping[str, np.ndarray | None]) -> None:
    for name, value in inputs.items():
        if value is not None and len(value) != rows:
            raise ValueError(
                f"{name} has {len(value)} rows for {rows} texts, one row each is needed."
            )


def _semantic(points: np.ndarray, near: int, far: int) -> dict[str, Value]:
    """Properties of embeddings [n, d]."""
    return {
        "cosine_diversity": semantic.cosine_diversity(points),
        "knn_cosine_diversity_near": semantic.knn_cosine_diversity(points, near),
        "knn_cosine_diversity_far": semantic.knn_cosine_diversity(points, far),
    }


def _of_positions(positions: np.ndarray, near: int, far: int) -> dict[str, Value]:
    """Properties of positions [n, 2] on the evaluation map."""
    return {
        "kl_entropy_near": semantic.kl_entropy(positions, near),
        "kl_entropy_far": semantic.kl_entropy(positions, far),
        "gaussian_aic": semantic.gaussian_aic(positions),
        "negentropy": semantic.negentropy(positions, near),
    }
