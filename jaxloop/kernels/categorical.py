"""Draws from unnormalised weights by inverting the cumulative sum: one uniform a row, no sort, no Gumbel field.

S rows, V categories, G blocks of W categories.
"""

import jax
import jax.numpy as jnp


def inverse_cdf(weights_SV: jax.Array, u_S: jax.Array) -> jax.Array:
    """Index [S] drawn with probability `weights / sum(weights)` from uniforms `u_S` in [0, 1).

    The cumulative sum is taken over about sqrt(V) blocks and then inside the chosen block, so it reads the weights once and
    holds no [S, V] cumulative array. A category of weight zero is never drawn: block and category are chosen among those
    with weight, whatever the cumulative sums round to. Rows whose weights are all zero (or so small that the device takes
    them for zero, below 1.2e-38) give index 0.
    """
    rows, size = weights_SV.shape
    width = max(8, 1 << ((size - 1).bit_length() + 1) // 2)
    blocks = -(-size // width)
    padded = jnp.pad(weights_SV, ((0, 0), (0, blocks * width - size))) if blocks * width != size else weights_SV
    w_SGW = padded.reshape(rows, blocks, width)
    sums_SG = w_SGW.sum(-1)
    upto_SG = jnp.cumsum(sums_SG, -1)
    target_S = u_S * upto_SG[:, -1]
    block_S = _with_weight(sums_SG, _first_above(upto_SG, target_S))
    before_S = jnp.where(block_S > 0, _take(upto_SG, jnp.maximum(block_S - 1, 0)), 0)
    w_SW = _block(weights_SV if size >= width else padded, block_S * width, width)
    inside_S = _first_above(jnp.cumsum(w_SW, -1), target_S - before_S)
    return block_S * width + _with_weight(w_SW, inside_S)


def _block(weights_SV, start_S, width):
    """The entries [S, W] of each row from its start on, zeros where the row has ended.

    Sliced out of the weights as they lie: to gather from the padded blocks, CPU and TPU copy all the weights first.
    """
    beyond_S = jnp.maximum(start_S - (weights_SV.shape[1] - width), 0)
    w_SW = _slices(weights_SV, start_S - beyond_S, width)
    return w_SW if weights_SV.shape[1] % width == 0 else _slices(jnp.pad(w_SW, ((0, 0), (0, width))), beyond_S, width)


def _slices(x_SV, start_S, width):
    return jax.vmap(lambda x_V, start: jax.lax.dynamic_slice(x_V, (start,), (width,)))(x_SV, start_S)


def _first_above(upto_SG, target_S):
    """First index whose cumulative weight exceeds the target, clipped to the last one that adds weight."""
    index = (upto_SG <= target_S[:, None]).sum(-1).astype(jnp.int32)
    reached = (upto_SG < upto_SG[:, -1:]).sum(-1).astype(jnp.int32)
    return jnp.minimum(index, reached)


def _with_weight(w_SG, index_S):
    """The first index from the given one on that has weight, else the last one before it, else 0.

    XLA adds up prefixes in a tree, so they move by a rounding over entries of weight zero: the index alone may name one.
    """
    size = w_SG.shape[-1]
    place_G = jnp.arange(size, dtype=jnp.int32)[None]
    # One reduction for both directions: entries from the index on come first, in order, then those before it, nearest first.
    order_SG = jnp.where(place_G >= index_S[:, None], place_G, 2 * size - place_G)
    nearest_S = jnp.where(w_SG > 0, order_SG, 2 * size).min(-1)
    return jnp.where(nearest_S < size, nearest_S, 2 * size - nearest_S)


def _take(x_SG, index_S):
    return jnp.take_along_axis(x_SG, index_S[:, None], 1)[:, 0]
