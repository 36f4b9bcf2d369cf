"""Properties of a cluster of human texts, the predictors of the regressions: the fourteen
candidates of arXiv 2504.03814 (B.3.1), among them the six of its final study, and negentropy beside
what the paper calls Gaussianity.

Every property is a function of `metrics`; here is only which texts it is taken on
(recursive_loops.md, section 3: 10,000 draws with replacement, 500 for self-BLEU, quality over the
whole cluster).
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxloop.metrics import bleu, lexical, semantic, sentiment
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.tokens import check_texts

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
    """(near, far) numbers of neighbours for n points: 50 and 1000 at 10,000, in proportion below,
    at least 2 and 3, at most n - 1.
    """
    share = min(1.0, n / SAMPLE)
    near = max(2, round(NEAR * share))
    return min(near, n - 1), min(max(near + 1, round(FAR * share)), n - 1)


def draw(rows: int, n: int, rng: np.random.Generator, replace: bool) -> np.ndarray:
    """Row numbers of a sample of min(n, rows); all rows once where there are no more than n and
    none is put back.
    """
    size = min(n, rows)
    return (
        rng.choice(rows, size, replace=True)
        if replace
        else np.sort(rng.choice(rows, size, replace=False))
    )


def cluster_properties(
    texts: Sequence[str],
    *,
    embeddings=None,
    projection: Callable | np.ndarray | None = None,
    quality: Sequence[float] | None = None,
    toxicity: Sequence[float] | None = None,
    sample: int = SAMPLE,
    lexical_sample: int = LEXICAL_SAMPLE,
    replace: bool | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Values of `NAMES` for the N texts of one cluster, and `sample`, `k_near`, `k_far`, which say
    how they were taken; nan for what was not given.

    embeddings        [N, d] of the texts
    projection        the dataset's evaluation UMAP (`umap.EvaluationMap`), or the positions [N, 2] of the texts on it
    quality           score of each text, nan where the judge gave none: the mean over the whole cluster, in the scores' unit
    toxicity          score of each text in [0, 1]
    sample            texts drawn for everything else, lexical_sample for self-BLEU
    replace           draw with replacement; None does so, as the released code does, for samples of its size and more from larger clusters. In
                      smaller samples copies of a text fill up the few neighbours that k leaves, and
                      the entropy is -inf
    Units: characters (text_length), words (vocabulary_size), nats (entropies, negentropy), else
    pure numbers. vocabulary_size, word_entropy, gaussian_aic and the k-nn values depend on the size
    of the sample: compare clusters with equal ones. ValueError for fewer than 4 texts, inputs of
    other lengths, and a sample below 4.
    """
    texts = check_texts(texts)
    rows = len(texts)
    if rows < 4:
        raise ValueError(f"texts holds {rows}, the properties of a cluster need at least 4.")
    for name, value in (("sample", sample), ("lexical_sample", lexical_sample)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 4:
            raise ValueError(f"{name} is {value!r}, a whole number of at least 4 is needed.")
    given = {
        "embeddings": embeddings,
        "quality": quality,
        "toxicity": toxicity,
        "projection": None if callable(projection) else projection,
    }
    given = {
        name: np.asarray(value, np.float64 if name in ("quality", "toxicity") else None)
        for name, value in given.items()
        if value is not None
    }
    for name, value in given.items():
        if len(value) != rows:
            raise ValueError(
                f"{name} has {len(value)} rows for {rows} texts, one row each is needed."
            )
    rng = np.random.default_rng(seed)
    replace = sample >= SAMPLE and rows > sample if replace is None else replace
    index = draw(rows, sample, rng, replace)
    few = draw(rows, lexical_sample, rng, replace)
    corpus = Corpus((tuple(texts[i] for i in index),), single=True)
    near, far = neighbours(len(index))
    found = dict.fromkeys(NAMES, float("nan")) | {
        "text_length": lexical.text_length(corpus),
        "type_token_ratio": lexical.type_token_ratio(corpus),
        "vocabulary_size": lexical.vocabulary_size(corpus),
        "word_entropy": lexical.word_entropy(corpus),
        "lexical_diversity": bleu.lexical_diversity([texts[i] for i in few]),
        "positivity": sentiment.positivity(corpus),
    }
    if "quality" in given and np.isfinite(given["quality"]).any():
        found["quality"] = float(
            np.nanmean(np.where(np.isfinite(given["quality"]), given["quality"], np.nan))
        )
    if "toxicity" in given:
        found["toxicity"] = float(given["toxicity"][index].mean())
    positions = given["projection"][index] if "projection" in given else None
    if "embeddings" in given:
        points = given["embeddings"][index]
        found["cosine_diversity"] = semantic.cosine_diversity(points)
        found["knn_cosine_diversity_near"] = semantic.knn_cosine_diversity(points, near)
        found["knn_cosine_diversity_far"] = semantic.knn_cosine_diversity(points, far)
        if callable(projection):
            # Equal points get equal positions: each is projected once.
            distinct, where = np.unique(index, return_inverse=True)
            positions = np.asarray(projection(given["embeddings"][distinct]))[where]
    if positions is not None:
        found["kl_entropy_near"] = semantic.kl_entropy(positions, near)
        found["kl_entropy_far"] = semantic.kl_entropy(positions, far)
        found["gaussian_aic"] = semantic.gaussian_aic(positions)
        found["negentropy"] = semantic.negentropy(positions, near)
    return {name: float(value) for name, value in found.items()} | {
        "sample": float(len(index)),
        "k_near": float(near),
        "k_far": float(far),
    }
