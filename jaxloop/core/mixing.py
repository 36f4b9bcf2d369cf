"""Mixing matrices: which entity trains on the text of which, and the mixing step.

Row k of a mixing matrix [K, K] sums to 1: its entries are the shares of entity k's synthetic data
that each entity generated. `complete` is the setting of arXiv 2505.21677 (weight alpha / K on every
entity's synthetic set); `self_only` is K separate chains.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_share

NAMES = ("complete", "ring", "star", "blocks", "self_only")


def complete(entities: int) -> np.ndarray:
    """Return [K, K]: every entity reads all equally."""
    return np.full((entities, entities), 1.0 / entities)


def self_only(entities: int) -> np.ndarray:
    """Return [K, K]: every entity reads itself only."""
    return np.eye(entities)


def ring(entities: int, *, own: float = 1 / 3) -> np.ndarray:
    """Return [K, K]: `own` on itself, the rest halved between the two neighbours on a circle."""
    check_share("own", own)
    eye = np.eye(entities)
    return own * eye + (1 - own) / 2 * (np.roll(eye, 1, axis=1) + np.roll(eye, -1, axis=1))


def star(entities: int, *, own: float = 1 / 2, hub: int = 0) -> np.ndarray:
    """Return [K, K]: the hub reads all equally, every other entity itself (`own`) and the hub.

    Raises:
        ValueError: `hub` is no entity, or `own` is no share.
    """
    check_share("own", own)
    if not 0 <= hub < entities:
        raise ValueError(f"hub={hub}: must be one of the {entities} entities, 0 to {entities - 1}")
    matrix = own * np.eye(entities)
    matrix[:, hub] += 1 - own
    matrix[hub] = 1.0 / entities
    return matrix


def blocks(sizes: Sequence[int]) -> np.ndarray:
    """Return [K, K], K = sum(sizes): complete inside each block, nothing between blocks."""
    if len(sizes) == 0 or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}: every block needs at least one entity")
    matrix = np.zeros((sum(sizes),) * 2)
    ends = np.cumsum(sizes)
    for size, end in zip(sizes, ends, strict=True):
        matrix[end - size : end, end - size : end] = 1.0 / size
    return matrix


def named(name: str, entities: int) -> np.ndarray:
    """Return the matrix of a name in `NAMES` at its defaults.

    "blocks" is two blocks, the first one the larger where K is odd.

    Raises:
        ValueError: the name is another one.
    """
    if name not in NAMES:
        raise ValueError(f"mixing={name!r}: must be one of {', '.join(NAMES)}")
    if name == "blocks":
        return blocks([size for size in (-(-entities // 2), entities // 2) if size])
    makers: dict[str, Callable[[int], np.ndarray]] = {
        "complete": complete,
        "ring": ring,
        "star": star,
        "self_only": self_only,
    }
    return makers[name](entities)


def check_mixing(matrix: ArrayLike, entities: int) -> np.ndarray:
    """Return the matrix as float64 [K, K].

    Raises:
        ValueError: it is not K by K, or its rows do not sum to 1.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (entities, entities):
        raise ValueError(
            f"mixing: shape is {matrix.shape}, must be {(entities, entities)}, a row and a "
            "column per entity"
        )
    sums = matrix.sum(1)
    if not (matrix >= 0).all() or np.abs(sums - 1).max() > 1e-9:
        raise ValueError(
            "mixing: rows must be non-negative and sum to 1 (row-stochastic), sums are "
            f"{sums.round(6).tolist()}"
        )
    return matrix


def mix(matrix: jax.Array, messages: jax.Array) -> jax.Array:
    """Return what each entity reads, `sum_j matrix[k, j] messages[j]`: [K, ...] as `messages`."""
    return jnp.tensordot(matrix, messages, axes=1)
