"""The key/value cache of `decode_loop`: blocks in a ring of windows, and attention over them.

Time is cut into windows of W steps. All slots write step t of the current window at index t, in one
`dynamic_update_slice`, so that the cache needs no scatter. A slot's share of a window is a block. A
finished window goes into a ring of windows. A slot sees an entry if it lies no more than `age`
steps back, so that nothing has to be cleared when the slot starts a new text.

At each window's start the blocks that some slot is old enough to see are gathered behind the S
blocks of the current window. Attention is one product over that list of T blocks, whose padded
length is the smallest of a few `block_count_buckets` that suffices: short texts do not pay for long
ones. A slot's sums run over its own blocks in their order in time, wherever they stand in the list,
so they do not depend on the other slots.

Dimensions: A adapter groups, B slots of a group, S = A B slots, W steps of a window, R windows in
the ring, T blocks read, L layers, G key/value heads, Q query heads per key/value head, K head size,
P prompt cache length.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.lm.generation.slots import DecodeShape

MASK_VALUE = -1e9


class KVRing(NamedTuple):
    """The blocks of finished windows."""

    keys: list[jax.Array]  # L x [R, S, G, W, K]
    values: list[jax.Array]
    windows: jax.Array  # [] windows finished so far


class KVBlocks(NamedTuple):
    """The blocks that a window reads.

    First comes every slot's own block of the current window, then those of earlier windows, slot by
    slot, latest first.
    """

    keys: list[jax.Array]  # L x [T, G, W, K]
    values: list[jax.Array]
    slot: jax.Array  # [T] whose it is
    steps_back: jax.Array  # [T, W] from step 0 of the current window to each entry; < 0 inside it
    # [S, 1 + R] where a slot's blocks stand in the list, latest first. Where it has no block, the
    # index of the last one, which no slot sees.
    table: jax.Array


def ring_windows(shape: DecodeShape) -> int:
    """Earlier windows that a slot can look back on."""
    return -(-(shape.max_new_tokens - 1) // shape.window)


def block_count_buckets(shape: DecodeShape) -> tuple[int, ...]:
    """Return the padded numbers of earlier blocks that a program may read, fewest first.

    The last one is enough for every slot at its oldest.

    On the mix of lengths of the papers (mean a fifth of the longest, long tail) slots need a fifth
    of all blocks, give or take a tenth of that. Texts that all run to the end need half, and more
    only while they start together. One block more stands for "none".
    """
    windows = ring_windows(shape)
    shares: tuple[float, ...] = (0.24, 0.5, 1.0)
    if windows < 3:
        shares = (1.0,)
    elif windows * shape.window < 96:  # each bucket is compiled, and short texts are little work
        shares = (0.5, 1.0) if windows < 6 else (0.3, 1.0)
    every_block = shape.num_slots * windows
    return tuple(math.ceil(every_block * share) + 1 for share in shares)


def empty_ring(
    shape: DecodeShape, num_layers: int, num_kv_heads: int, head_dim: int, dtype: jnp.dtype
) -> KVRing:
    """Return the ring before the first window."""
    size = (max(1, ring_windows(shape)), shape.num_slots, num_kv_heads, shape.window, head_dim)
    empty = jnp.zeros(size, dtype)
    return KVRing([empty] * num_layers, [empty] * num_layers, jnp.int32(0))


def store_window(ring: KVRing, keys: list[jax.Array], values: list[jax.Array]) -> KVRing:
    """Return the ring with the blocks of one more window, L x [S, G, W, K]."""
    at = ring.windows % len(ring.keys[0])

    def store(cache, window):
        return jax.lax.dynamic_update_slice(cache, window[None], (at, 0, 0, 0, 0))

    return KVRing(
        keys=[store(*pair) for pair in zip(ring.keys, keys, strict=True)],
        values=[store(*pair) for pair in zip(ring.values, values, strict=True)],
        windows=ring.windows + 1,
    )


def gather_blocks(
    shape: DecodeShape, block_count: int, ring: KVRing, blocks_per_slot_S: jax.Array
) -> KVBlocks:
    """Gather the blocks that a window reads.

    They are one block of the current window for each slot, and the latest `blocks_per_slot_S`
    earlier ones of each slot.

    The earlier ones are padded to `block_count`; there must be fewer of them than that.
    """
    num_slots, last = shape.num_slots, shape.num_slots + block_count - 1
    end_S = jnp.cumsum(blocks_per_slot_S, dtype=jnp.int32)
    start_S = end_S - blocks_per_slot_S
    listed = jnp.arange(block_count, dtype=jnp.int32)
    slot = (end_S[None] <= listed[:, None]).sum(-1, dtype=jnp.int32)
    slot = jnp.minimum(slot, num_slots - 1)
    unseen = 2 * shape.max_new_tokens
    windows_ago = jnp.where(listed < end_S[-1], listed - start_S[slot] + 1, unseen)
    current = jnp.arange(num_slots, dtype=jnp.int32)
    slot = jnp.concatenate([current, slot])
    windows_ago = jnp.concatenate([jnp.zeros_like(current), windows_ago])
    # The current window starts from whatever the ring holds at its place: finite numbers, seen by
    # nobody before they are overwritten.
    at = (ring.windows - windows_ago) % len(ring.keys[0]) * num_slots + slot
    step = jnp.arange(shape.window, dtype=jnp.int32)[None]
    steps_back = windows_ago[:, None] * shape.window - step
    order = jnp.arange(ring_windows(shape), dtype=jnp.int32)[None]
    earlier = num_slots + start_S[:, None] + order
    table = jnp.where(order < blocks_per_slot_S[:, None], earlier, last)

    def read(cache):
        return cache.reshape(-1, *cache.shape[2:])[at]

    return KVBlocks(
        keys=[read(cache) for cache in ring.keys],
        values=[read(cache) for cache in ring.values],
        slot=slot,
        steps_back=steps_back,
        table=jnp.concatenate([current[:, None], table], 1),
    )


def attend_blocks(
    shape: DecodeShape,
    blocks: KVBlocks,
    q_SGQK: jax.Array,
    keys_TGWK: jax.Array,
    values_TGWK: jax.Array,
    seen_TW: jax.Array,
    prompt_scores_SGQP: jax.Array,
    prompt_values: jax.Array,
) -> jax.Array:
    """Attention output [S, G, Q, K] in float32 over a slot's blocks and its prompt.

    Args:
        shape: static shape of the program.
        blocks: which block belongs to which slot.
        q_SGQK: queries of the new tokens.
        keys_TGWK: one layer's keys, the new tokens' included.
        values_TGWK: the values.
        seen_TW: which entries their slot sees.
        prompt_scores_SGQP: masked, as from `prompt_scores`.
        prompt_values: [A or S, G, P, K].
    """
    scale = q_SGQK.shape[-1] ** -0.5
    queries_TGQK = q_SGQK[blocks.slot]
    scores = jnp.einsum(
        "tgqk,tgwk->tgqw", queries_TGQK, keys_TGWK, preferred_element_type=jnp.float32
    )
    scores = jnp.where(seen_TW[:, None, None], scores * scale, MASK_VALUE)
    largest = jnp.maximum(
        _combine_by_slot(blocks, scores.max(-1), jnp.maximum),
        prompt_scores_SGQP.max(-1, initial=MASK_VALUE),
    )
    weight = jnp.exp(scores - largest[blocks.slot][..., None])
    value = jnp.einsum(
        "tgqw,tgwk->tgqk",
        weight.astype(values_TGWK.dtype),
        values_TGWK,
        preferred_element_type=jnp.float32,
    )
    total = _combine_by_slot(blocks, weight.sum(-1), jnp.add)
    value = _combine_by_slot(blocks, value, jnp.add)
    if prompt_scores_SGQP.shape[-1]:
        weight = jnp.exp(prompt_scores_SGQP - largest[..., None])
        total = total + weight.sum(-1)

        def of_prompt(w):
            return jnp.einsum(
                "agxp,agpk->agxk", w, prompt_values, preferred_element_type=jnp.float32
            )

        value = value + _by_group(shape, weight.astype(prompt_values.dtype), of_prompt)
    return value / total[..., None]


def _combine_by_slot(blocks: KVBlocks, x: jax.Array, combine: Callable) -> jax.Array:
    """Combine values [T, ...] of blocks to values [S, ...] of slots, in the order of time.

    A chain of gathers is fused by XLA; a scatter would add in any order on a GPU.
    """
    windows = blocks.table.shape[1]
    return functools.reduce(combine, (x[blocks.table[:, j]] for j in range(windows)))


def prompt_scores(
    shape: DecodeShape, q_SGQK: jax.Array, keys: jax.Array, length: jax.Array
) -> jax.Array:
    """Return the masked scores [S, G, Q, P] of queries against cached prompts.

    The prompt caches are [A or S, G, P, K], of `length` [A or S] tokens: one for each group, which
    all its slots read in one product, or one for each slot.
    """
    seen = jnp.arange(keys.shape[2])[None] < length[:, None]
    scale = q_SGQK.shape[-1] ** -0.5

    def score(q):
        raw = jnp.einsum("agxk,agpk->agxp", q, keys, preferred_element_type=jnp.float32)
        return jnp.where(seen[:, None, None], raw * scale, MASK_VALUE)

    return _by_group(shape, q_SGQK, score)


def _by_group(shape: DecodeShape, x: jax.Array, run: Callable) -> jax.Array:
    """Apply `run` to x [S, G, Q, ...], group by group where slots share a prompt cache.

    The slots of a group are then side by side: `run` gets [A, G, B Q, ...].
    """
    if not shape.shared_prompt:
        return run(x)
    s, g, q = x.shape[:3]
    groups, slots = shape.num_groups, shape.slots_per_group
    y = run(x.reshape(groups, slots, g, q, -1).swapaxes(1, 2).reshape(groups, g, slots * q, -1))
    return y.reshape(groups, g, slots, q, -1).swapaxes(1, 2).reshape(s, g, q, -1)
