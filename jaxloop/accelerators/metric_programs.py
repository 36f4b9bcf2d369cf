"""The metrics' own compiled kernels as programs, at the sizes of a generation.

N texts have embeddings of D numbers, and places on a two-dimensional map.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxloop.lm.programs import Program, places
from jaxloop.metrics import distances, semantic, umap


def kernels(
    devices: Sequence[jax.Device] | None = None, *, texts: int = 4000, width: int = 384
) -> list[Program]:
    """Return the programs of the metrics, on one device.

    They are the mean similarity of neighbours, neighbours in the embedding and on the map, kernel
    distances, projections, and nearest points of a map.

    Args:
        devices: the first is used; none: JAX's default.
        texts: N.
        width: D.
    """
    at = places(None if devices is None else list(devices)[:1])

    def array(*shape: int, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=at.replicated)

    def array64(*shape: int) -> jax.ShapeDtypeStruct:
        return array(*shape, dtype=jnp.float64)

    rows = min(texts, 1024, max(1, semantic.BLOCK_ELEMENTS // texts))
    points, flat = array(texts, width), array64(texts, 2)
    blocks = -(-texts // rows)
    index = array(2 * texts, dtype=jnp.int64)
    wide = (array64(texts, width), array64(texts, width), array64(width, 128))
    pairs = (
        array64(blocks, rows, width),
        array(blocks, rows, dtype=jnp.bool_),
        array64(texts, width),
    )
    return [
        Program("metric: similarity", semantic.mean_similarity, (points, 5, rows), {}),
        Program("metric: neighbours", semantic.ranked_neighbours, (points, 40, 60, rows), {}),
        Program(
            "metric: map distances", semantic.kth_by_difference, (flat, 50, rows), {}, x64=True
        ),
        Program(
            "metric: kernel distance",
            distances.kernel_sum,
            (*pairs, array64(), "gaussian"),
            {},
            x64=True,
        ),
        Program(
            "metric: projections",
            distances.sliced_distance,
            (*wide, index, index, array64(2 * texts), array64()),
            {},
            x64=True,
        ),
        Program("metric: map", umap.nearest_points, (points, array(blocks, rows, width), 15), {}),
    ]
