"""Which of the texts that a generation wrote enter the pool: the interventions on synthetic text
that arXiv 2504.03814 leaves open.

A generation writes `candidates` texts, of which a policy picks as many as the workflow takes.
Whatever the policy, the same number is written and the same number enters the pool, so that
"random" is the matched control of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxloop.core.keys import fold_in, phase_key, random_order

POLICIES = ("random", "quality", "diversity")
# What a policy must know of each text: `features(name, texts)` gives it.
NEEDS = {"random": None, "quality": "quality", "diversity": "embeddings"}


@dataclass(frozen=True)
class Selection:
    """How texts are chosen from `candidates` written ones.

    policy     "random": a uniform draw; "quality": those of at least `threshold` in random order, then the best of the others, best first;
               "diversity": greedily the text farthest (in cosine distance) from all chosen before
    threshold  of policy "quality"; None: simply the best
    """

    policy: str
    candidates: int
    threshold: float | None = None

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ValueError(
                f"selection.policy={self.policy!r}: must be one of {', '.join(POLICIES)}"
            )
        if (
            isinstance(self.candidates, bool)
            or not isinstance(self.candidates, int)
            or self.candidates < 1
        ):
            raise ValueError(
                f"selection.candidates={self.candidates!r}: must be an integer of at least 1"
            )


def choose(
    selection: Selection, key: jax.Array, count: int, features: np.ndarray | None = None
) -> np.ndarray:
    """`count` of the `selection.candidates` candidates [n], in the order in which they enter the
    pool: int64 [count].

    features: quality [n] (nan, where there is none, counts as the worst) or embeddings [n, D]; None
    for "random". Ties are broken at random. Raises ValueError for more than there are, or features
    that do not fit.
    """
    n = selection.candidates
    if not 0 <= count <= n:
        raise ValueError(f"selection: {count} of {n} candidates cannot be chosen")
    shuffled = np.asarray(random_order(key, n)).astype(np.int64)
    if selection.policy == "random":
        return shuffled[:count]
    features = np.asarray(features, np.float64)
    if len(features) != n or features.ndim != (1 if selection.policy == "quality" else 2):
        raise ValueError(
            f"selection: policy {selection.policy!r} got features of shape {features.shape} for "
            f"{n} candidates"
        )
    if selection.policy == "diversity":
        return shuffled[_farthest(features[shuffled], count)]
    quality = np.where(np.isnan(features), -np.inf, features)[shuffled]
    rank = (
        -quality
        if selection.threshold is None
        else np.where(quality >= selection.threshold, -np.inf, -quality)
    )
    return shuffled[np.argsort(rank, kind="stable")[:count]]


def _farthest(points_ND: np.ndarray, count: int) -> np.ndarray:
    """Gonzalez' greedy order: the first point, then always the one whose nearest chosen point is
    farthest.
    """
    norm = np.linalg.norm(points_ND, axis=1, keepdims=True)
    unit = np.divide(points_ND, norm, out=np.zeros_like(points_ND), where=norm > 0)
    chosen, distance = np.zeros(count, np.int64), np.full(len(unit), np.inf)
    for i in range(count):
        chosen[i] = 0 if i == 0 else int(np.argmax(distance))
        distance = np.minimum(distance, 1 - unit @ unit[chosen[i]])
        distance[chosen[: i + 1]] = -np.inf
    return chosen


def ranks(
    selection: Selection,
    chain_key: jax.Array,
    generation: int,
    entity: int,
    count: int,
    texts: Sequence[str],
    features: Callable | None,
):
    """Place in the pool of each text [len(texts)] that an entity wrote, -1 for those left out; only
    the first `candidates` are eligible.

    features(name, texts) gives the quality or the embeddings of the candidates.
    """
    need = NEEDS[selection.policy]
    known = features(need, list(texts[: selection.candidates])) if need else None
    key = fold_in(phase_key(chain_key, generation, "select"), entity)
    places = np.full(len(texts), -1, np.int64)
    places[choose(selection, key, count, known)] = np.arange(count)
    return places
