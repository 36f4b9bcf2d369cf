"""Which of the texts that a model generated enter the pool.

These are interventions on synthetic text, which arXiv 2504.03814 leaves open.

A model generates `candidates` texts, of which a policy picks as many as the workflow takes.
Whatever the policy, the same number is generated and the same number enters the pool, so that
"random" is the matched control of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from jaxloop.core.checks import check_whole
from jaxloop.core.keys import fold_in, phase_key, random_order

POLICIES = ("random", "quality", "diversity")
# The feature of texts by which a policy chooses.
FEATURE_OF: dict[str, str | None] = {
    "random": None,
    "quality": "quality",
    "diversity": "embeddings",
}


@dataclass(frozen=True)
class Selection:
    """How texts are chosen from the first `candidates` that a model generates.

    policy     "random": a uniform draw; "quality": those of at least `threshold` in random order,
               then the others, best first; "diversity": greedily the text farthest (in cosine
               distance) from all chosen before
    threshold  lowest quality that policy "quality" prefers; None: it takes the best
    """

    policy: str
    candidates: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(
                f"selection.policy={self.policy!r}: must be one of {', '.join(POLICIES)}"
            )
        candidates = check_whole("selection.candidates", self.candidates)
        object.__setattr__(self, "candidates", candidates)


def choose(
    selection: Selection, key: jax.Array, count: int, features: np.ndarray | None = None
) -> np.ndarray:
    """Choose `count` candidates; return their numbers [count] (int64) in the order of the pool.

    Ties are broken at random.

    Args:
        selection: how, and from how many candidates n.
        key: JAX key.
        count: at most n.
        features: quality [n] (nan counts as the worst), or embeddings [n, D]; None for "random".

    Raises:
        ValueError: `count` is too large, or the features do not fit.
    """
    n = selection.candidates
    if not 0 <= count <= n:
        raise ValueError(f"selection: {count} of {n} candidates cannot be chosen")
    shuffled = np.asarray(random_order(key, n)).astype(np.int64)
    if selection.policy == "random":
        return shuffled[:count]
    features = np.asarray(features, np.float64)
    dimensions = 1 if selection.policy == "quality" else 2
    if features.ndim != dimensions or len(features) != n:
        raise ValueError(
            f"selection: policy {selection.policy!r} got features of shape {features.shape} for "
            f"{n} candidates"
        )
    if selection.policy == "diversity":
        return shuffled[_farthest(features[shuffled], count)]
    quality = np.where(np.isnan(features), -np.inf, features)[shuffled]
    rank = -quality
    if selection.threshold is not None:
        rank = np.where(quality >= selection.threshold, -np.inf, rank)
    return shuffled[np.argsort(rank, kind="stable")[:count]]


def _farthest(points_ND: np.ndarray, count: int) -> np.ndarray:
    """Numbers [count] of points in Gonzalez' greedy order.

    It begins with the first point; then comes always the one whose nearest chosen point is
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
    features: Callable[[str, Sequence[str]], np.ndarray] | None,
) -> np.ndarray:
    """Place in the pool of each text [n] that an entity generated: int64 [n], -1 if left out.

    Only the first `candidates` are eligible.

    Args:
        selection: how `count` texts are chosen.
        chain_key: key of the chain.
        generation, entity: generation and entity of the model that generated the texts.
        count: places in the pool.
        texts: all that were generated.
        features: (name, texts [n]) -> quality [n] or embeddings [n, D]; may be None where the
            policy needs none.
    """
    name = FEATURE_OF[selection.policy]
    values = None
    if name is not None and features is not None:
        values = features(name, list(texts[: selection.candidates]))
    key = fold_in(phase_key(chain_key, generation, "select"), entity)
    places = np.full(len(texts), -1, np.int64)
    places[choose(selection, key, count, values)] = np.arange(count)
    return places
