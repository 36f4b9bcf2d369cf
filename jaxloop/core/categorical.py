"""Draws from unnormalised weights by inverting the cumulative sum: one uniform per row.

S rows, V categories, G blocks of W categories.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

# Numbers in a row of a TPU's registers, and rows of bfloat16 in one.
LANES, SUBLANES = 128, 16

PickBlock = Callable[[jax.Array, jax.Array], jax.Array]


def inverse_cdf(weights_SV: jax.Array, u_S: jax.Array) -> jax.Array:
    """Return indices [S] drawn with probability `weights / sum(weights)`.

    The cumulative sum is taken over about sqrt(V) blocks and then inside the chosen block, so that
    the weights are read once and no [S, V] cumulative array is held. A category of weight zero is
    never drawn: block and category are chosen among those with weight, whatever the cumulative sums
    round to. Rows whose weights are all zero (or so small that the device takes them for zero,
    below 1.2e-38) give index 0.

    Args:
        weights_SV: non-negative.
        u_S: uniform in [0, 1).
    """
    return jax.lax.platform_dependent(weights_SV, u_S, tpu=_on_tpu, default=_draw)


def inverse_cdf_of(
    weigh: Callable[[jax.Array, jax.Array], jax.Array],
    z_SV: jax.Array,
    row_S: jax.Array,
    u_S: jax.Array,
    pick: PickBlock | None = None,
) -> jax.Array:
    """`inverse_cdf(weigh(z, row), u)`, which on a TPU never holds the weights.

    There they are computed twice from `z_SV`, once for the sums of blocks and once in the chosen
    block.

    Args:
        weigh: elementwise, of `z_SV` and one number for each row; 0 for -inf.
        z_SV: on a TPU best the transpose of an array [V, S].
        row_S: the rows' numbers.
        u_S: uniform in [0, 1).
        pick: as `masked_block`, which it replaces on a TPU; None: that.
    """
    return jax.lax.platform_dependent(
        z_SV,
        row_S,
        u_S,
        tpu=functools.partial(_weighed_on_tpu, weigh, pick=pick or masked_block),
        default=functools.partial(_weighed, weigh),
    )


def _weighed(
    weigh: Callable[[jax.Array, jax.Array], jax.Array],
    z_SV: jax.Array,
    row_S: jax.Array,
    u_S: jax.Array,
) -> jax.Array:
    return _draw(weigh(z_SV, row_S[:, None]), u_S)


def _weighed_on_tpu(
    weigh: Callable[[jax.Array, jax.Array], jax.Array],
    z_SV: jax.Array,
    row_S: jax.Array,
    u_S: jax.Array,
    pick: PickBlock,
) -> jax.Array:
    """Rows lie in the lanes of registers, so that blocks are sums over the other two axes.

    Blocks that fill V and whole registers need no padding, which would be a copy.
    """
    width = _width(z_SV.shape[1])
    filling = math.gcd(width, z_SV.shape[1])
    width = filling if filling >= SUBLANES else width
    z_VS = jnp.pad(z_SV.T, ((0, -z_SV.shape[1] % width), (0, 0)), constant_values=-jnp.inf)
    z_GWS = z_VS.reshape(-1, width, z_SV.shape[0])
    # Otherwise XLA computes weights where it makes `z_SV`, and holds them in float32.
    z_GWS, row_S = jax.lax.optimization_barrier((z_GWS, row_S))
    row_11S = row_S[None, None]
    block_S, rest_S = _choose_block(weigh(z_GWS, row_11S).sum(1).T, u_S)
    w_SW = weigh(pick(z_GWS, block_S), row_11S[0]).T
    return block_S * width + _with_weight(w_SW, _first_above(jnp.cumsum(w_SW, -1), rest_S))


def masked_block(z_GWS: jax.Array, block_S: jax.Array) -> jax.Array:
    """Return `z_GWS[block_S[s], :, s]` of every row s, [W, S]; it reads all blocks."""
    block_G = jnp.arange(z_GWS.shape[0], dtype=jnp.int32)
    chosen_GS = block_G[:, None] == block_S[None]
    return jnp.where(chosen_GS[:, None], z_GWS, -jnp.inf).max(0)


def _draw(weights_SV: jax.Array, u_S: jax.Array) -> jax.Array:
    return _by_blocks(weights_SV, u_S, _width(weights_SV.shape[1]), _sliced)


def _on_tpu(weights_SV: jax.Array, u_S: jax.Array) -> jax.Array:
    """`_draw` for a TPU, which slices rows one after another: blocks are chosen by a mask instead.

    Blocks that fill V need no padding, which would be a copy.
    """
    width = _width(weights_SV.shape[1])
    filling = math.gcd(width, weights_SV.shape[1])
    return _by_blocks(weights_SV, u_S, filling if filling >= LANES else width, _masked)


def _by_blocks(
    weights_SV: jax.Array,
    u_S: jax.Array,
    width: int,
    entries: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """`inverse_cdf` with blocks of `width` categories.

    `entries(weights_SV, w_SGW, block_S)` is `_sliced` or `_masked`: it gives the weights [S, W] of
    each row's chosen block.
    """
    padded_SV = _pad_to_blocks(weights_SV, width)
    w_SGW = padded_SV.reshape(padded_SV.shape[0], -1, width)
    block_S, rest_S = _choose_block(w_SGW.sum(-1), u_S)
    w_SW = entries(weights_SV if weights_SV.shape[1] >= width else padded_SV, w_SGW, block_S)
    return block_S * width + _with_weight(w_SW, _first_above(jnp.cumsum(w_SW, -1), rest_S))


def _sliced(weights_SV: jax.Array, w_SGW: jax.Array, block_S: jax.Array) -> jax.Array:
    return _block(weights_SV, block_S * w_SGW.shape[-1], w_SGW.shape[-1])


def _masked(weights_SV: jax.Array, w_SGW: jax.Array, block_S: jax.Array) -> jax.Array:
    chosen_SG = jnp.arange(w_SGW.shape[1], dtype=jnp.int32)[None] == block_S[:, None]
    return jnp.where(chosen_SG[:, :, None], w_SGW, 0).sum(1)


def _width(size: int) -> int:
    """Categories in a block of about sqrt(size), a power of two."""
    return max(8, 1 << ((size - 1).bit_length() + 1) // 2)


def _pad_to_blocks(weights_SV: jax.Array, width: int) -> jax.Array:
    """The weights with zeros up to a whole number of blocks."""
    more = -weights_SV.shape[1] % width
    return jnp.pad(weights_SV, ((0, 0), (0, more))) if more else weights_SV


def _choose_block(sums_SG: jax.Array, u_S: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The block in which the cumulative sum reaches its target, and the target inside it."""
    upto_SG = jnp.cumsum(sums_SG, -1)
    target_S = u_S * upto_SG[:, -1]
    block_S = _with_weight(sums_SG, _first_above(upto_SG, target_S))
    before_S = jnp.where(block_S > 0, _take(upto_SG, jnp.maximum(block_S - 1, 0)), 0)
    return block_S, target_S - before_S


def _block(weights_SV: jax.Array, start_S: jax.Array, width: int) -> jax.Array:
    """The entries [S, W] of each row from its start on, zeros after its end.

    They are sliced out of the unpadded weights: CPU and TPU would copy all weights to gather from
    the padded blocks.
    """
    beyond_S = jnp.maximum(start_S - (weights_SV.shape[1] - width), 0)
    w_SW = _slices(weights_SV, start_S - beyond_S, width)
    if weights_SV.shape[1] % width == 0:
        return w_SW
    return _slices(jnp.pad(w_SW, ((0, 0), (0, width))), beyond_S, width)


def _slices(x_SV: jax.Array, start_S: jax.Array, width: int) -> jax.Array:
    def slice_row(x_V: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(x_V, (start,), (width,))

    return jax.vmap(slice_row)(x_SV, start_S)


def _first_above(upto_SG: jax.Array, target_S: jax.Array) -> jax.Array:
    """The first index whose cumulative weight exceeds the target, at most the last with weight."""
    index = (upto_SG <= target_S[:, None]).sum(-1).astype(jnp.int32)
    reached = (upto_SG < upto_SG[:, -1:]).sum(-1).astype(jnp.int32)
    return jnp.minimum(index, reached)


def _with_weight(w_SG: jax.Array, index_S: jax.Array) -> jax.Array:
    """The first index from the given one on that has weight, else the last one before it, else 0.

    XLA adds up prefixes in a tree, so they move by a rounding over entries of weight zero: the
    index alone may name one.
    """
    size = w_SG.shape[-1]
    place_G = jnp.arange(size, dtype=jnp.int32)[None]
    # One reduction for both directions: entries from the index on come first, in order, then those
    # before it, nearest first.
    order_SG = jnp.where(place_G >= index_S[:, None], place_G, 2 * size - place_G)
    nearest_S = jnp.where(w_SG > 0, order_SG, 2 * size).min(-1)
    return jnp.where(nearest_S < size, nearest_S, 2 * size - nearest_S)


def _take(x_SG: jax.Array, index_S: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_SG, index_S[:, None], 1)[:, 0]
