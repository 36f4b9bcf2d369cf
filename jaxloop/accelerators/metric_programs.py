"""The metrics' own kernels as programs, at the sizes of a generation: N texts with embeddings of D
numbers, and their two-dimensional map.
"""

import jax
import jax.numpy as jnp

from jaxloop.lm.programs import Program, places
from jaxloop.metrics import distances, semantic, umap


def kernels(devices=None, *, texts: int = 4000, width: int = 384) -> list[Program]:
    """Mean similarity of neighbours, neighbours in the embedding and on the map, kernel distances,
    projections, nearest points of a map; on one device.
    """
    at = places(None if devices is None else list(devices)[:1])

    def array(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at.whole)

    rows = min(texts, 1024, max(1, semantic._BLOCK_ELEMENTS // texts))
    points, flat = array(texts, width), array(texts, 2, dtype=jnp.float64)
    blocks = -(-texts // rows)
    cuts = [
        array(2 * texts, dtype=jnp.int64),
        array(2 * texts, dtype=jnp.int64),
        array(2 * texts, dtype=jnp.float64),
    ]
    wide = [
        array(texts, width, dtype=jnp.float64),
        array(texts, width, dtype=jnp.float64),
        array(width, 128, dtype=jnp.float64),
    ]
    kernel = [
        array(blocks, rows, width, dtype=jnp.float64),
        array(blocks, rows, dtype=jnp.bool_),
        array(texts, width, dtype=jnp.float64),
    ]
    return [
        Program("metric: similarity", semantic._mean_similarity, (points, 5, rows), {}),
        Program("metric: neighbours", semantic._ranked_neighbours, (points, 40, 60, rows), {}),
        Program(
            "metric: map distances", semantic._kth_by_difference, (flat, 50, rows), {}, x64=True
        ),
        Program(
            "metric: kernel distance",
            distances._kernel_sum,
            (*kernel, array(dtype=jnp.float64), "gaussian"),
            {},
            x64=True,
        ),
        Program(
            "metric: projections",
            distances._sliced,
            (*wide, *cuts, array(dtype=jnp.float64)),
            {},
            x64=True,
        ),
        Program("metric: map", umap._nearest, (points, array(blocks, rows, width), 15), {}),
    ]
