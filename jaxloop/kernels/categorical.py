"""Draws from unnormalised weights by inverting the cumulative sum: one uniform a row, no sort, no Gumbel field.

S rows, V categories, G blocks of V / G categories.
"""

import jax
import jax.numpy as jnp


def inverse_cdf(weights_SV: jax.Array, u_S: jax.Array) -> jax.Array:
    """Index [S] drawn with probability `weights / sum(weights)` from uniforms `u_S` in [0, 1).

    The cumulative sum is taken over about sqrt(V) blocks and then inside the chosen block, so it reads the weights once and
    holds no [S, V] cumulative array. A category of weight zero is never drawn; rows whose weights are all zero give index 0.
    """
    rows, size = weights_SV.shape
    width = max(8, 1 << ((size - 1).bit_length() + 1) // 2)
    blocks = -(-size // width)
    padded = jnp.pad(weights_SV, ((0, 0), (0, blocks * width - size))) if blocks * width != size else weights_SV
    w_SGW = padded.reshape(rows, blocks, width)
    upto_SG = jnp.cumsum(w_SGW.sum(-1), -1)
    target_S = u_S * upto_SG[:, -1]
    block_S = _first_above(upto_SG, target_S)
    before_S = jnp.where(block_S > 0, _take(upto_SG, jnp.maximum(block_S - 1, 0)), 0)
    w_SW = jnp.take_along_axis(w_SGW, block_S[:, None, None], 1)[:, 0]
    inside_S = _first_above(jnp.cumsum(w_SW, -1), target_S - before_S)
    # The two cumulative sums round differently: step back to a category with weight where the target fell past the last one.
    last_S = width - 1 - jnp.argmax((w_SW > 0)[:, ::-1], -1).astype(inside_S.dtype)
    return block_S * width + jnp.minimum(inside_S, jnp.where((w_SW > 0).any(-1), last_S, 0))


def _first_above(upto_SG, target_S):
    """First index whose cumulative weight exceeds the target, clipped to the last one that adds weight."""
    index = (upto_SG <= target_S[:, None]).sum(-1).astype(jnp.int32)
    reached = (upto_SG < upto_SG[:, -1:]).sum(-1).astype(jnp.int32)
    return jnp.minimum(index, reached)


def _take(x_SG, index_S):
    return jnp.take_along_axis(x_SG, index_S[:, None], 1)[:, 0]
