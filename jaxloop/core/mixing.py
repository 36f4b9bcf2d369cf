"""Who reads whom: row-stochastic mixing matrices over K entities, and the mixing step itself.

Row k of a mixing matrix says which share of entity k's synthetic data each entity wrote. `complete`
is the paper's setting (multi_entity.md, section 1.1: weight alpha / K on every entity's synthetic
set); `self_only` is K separate chains.
"""

import jax.numpy as jnp
import numpy as np

NAMES = ("complete", "ring", "star", "blocks", "self_only")


def complete(entities: int) -> np.ndarray:
    """[K, K]: everyone reads everyone equally."""
    return np.full((entities, entities), 1.0 / entities)


def self_only(entities: int) -> np.ndarray:
    """[K, K]: everyone reads only itself."""
    return np.eye(entities)


def ring(entities: int, *, own: float = 1 / 3) -> np.ndarray:
    """[K, K]: `own` on itself, the rest halved between the two neighbours on a circle."""
    _share("own", own)
    eye = np.eye(entities)
    return own * eye + (1 - own) / 2 * (np.roll(eye, 1, axis=1) + np.roll(eye, -1, axis=1))


def star(entities: int, *, own: float = 1 / 2, hub: int = 0) -> np.ndarray:
    """[K, K]: the hub reads everyone equally, every other entity itself (`own`) and the hub.

    Raises ValueError where hub is no entity.
    """
    _share("own", own)
    if not 0 <= hub < entities:
        raise ValueError(f"hub={hub}: must be one of the {entities} entities, 0 to {entities - 1}")
    matrix = own * np.eye(entities)
    matrix[:, hub] += 1 - own
    matrix[hub] = 1.0 / entities
    return matrix


def blocks(sizes) -> np.ndarray:
    """[K, K], K = sum(sizes): complete inside each block, nothing between blocks."""
    if len(sizes) == 0 or min(sizes) < 1:
        raise ValueError(f"sizes={list(sizes)}: every block needs at least one entity")
    matrix = np.zeros((sum(sizes),) * 2)
    ends = np.cumsum(sizes)
    for size, end in zip(sizes, ends, strict=True):
        matrix[end - size : end, end - size : end] = 1.0 / size
    return matrix


def named(name: str, entities: int) -> np.ndarray:
    """The matrix of that name at its defaults; "blocks" is two blocks, the first one the larger
    where K is odd.

    Raises ValueError for another name.
    """
    if name not in NAMES:
        raise ValueError(f"mixing={name!r}: must be one of {', '.join(NAMES)}")
    if name == "blocks":
        return blocks([size for size in (-(-entities // 2), entities // 2) if size])
    return {"complete": complete, "ring": ring, "star": star, "self_only": self_only}[name](
        entities
    )


def check_mixing(matrix, entities: int) -> np.ndarray:
    """The matrix as float64 [K, K]. Raises ValueError where it is not row-stochastic or not K by K."""
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


def mix(matrix, messages):
    """The mixing step: what each entity reads, `sum_j matrix[k, j] messages[j]`; messages [K, ...]
    -> [K, ...].
    """
    return jnp.tensordot(matrix, messages, axes=1)


def allocate(total: int, weights) -> np.ndarray:
    """Integer counts [K] that sum to `total`, as near to `total * weights / sum(weights)` as
    integers get (largest remainder, ties to the lower index), so that no count is off by one or
    more.

    Raises ValueError for a negative total or weights that are negative or all zero.
    """
    weights = np.asarray(weights, np.float64)
    if total < 0:
        raise ValueError(f"total={total}: must be at least 0")
    if (
        weights.ndim != 1
        or not (weights >= 0).all()
        or not weights.sum() > 0
        or not np.isfinite(weights.sum())
    ):
        raise ValueError(
            f"weights={weights.tolist()}: must be non-negative numbers with a positive sum"
        )
    quota = total * (weights / weights.sum())
    counts = np.floor(quota + 1e-9).astype(np.int64)
    rest = total - counts.sum()
    counts[np.argsort(-(quota - counts), kind="stable")[:rest]] += 1
    return counts


def _share(field, value):
    if not 0 <= value <= 1:
        raise ValueError(f"{field}={value}: must lie in [0, 1]")
