"""The kernel of `ring_attention` (Pallas, compiled by Mosaic, for a TPU).

It reads of rings only the blocks that the oldest text of `TOGETHER` slots has reached. Queries come
side by side as the projection gives them, n heads in a row of E numbers; each is put into the place
of its key/value head, with zeros in the others', so that products with cached rows, in which heads
stand side by side too, are those of that head.

Dimensions: as in `ring_attention`.
"""

import functools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxloop.lm.generation.row_attention import RowStep

LANES = 128  # numbers in a row of a TPU's registers
TOGETHER = 8  # slots of one program of the kernel
BLOCK = 128  # cached tokens read at a time, at most
HIDDEN = -1e30  # score of what a query does not see


class _Sizes(NamedTuple):
    """Sizes of a program of the kernel."""

    slots: int
    sets: int
    size: int  # of a head
    blocks: int  # of a ring
    block: int  # tokens of one
    prompt_blocks: int
    prompt_block: int
    rotary: bool


def attend(
    q_SHK: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    ring_k: jax.Array,
    ring_v: jax.Array,
    step: RowStep,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Return the attended values [S, H, K] of one new token in every slot.

    Args:
        q_SHK: queries, not rotated.
        prompt_k, prompt_v: [S, F, P, E], of the slots' prompts.
        ring_k, ring_v: [S, F, M, E], with the new key and value at `step.at`.
        step: age, prompt and rotary tables of every slot.
        interpret: run the kernel step by step on any platform, for tests.
    """
    slots, sets, longest, width = ring_k.shape
    together, prompt_len = math.gcd(TOGETHER, slots), prompt_k.shape[2]
    block, prompt_block = math.gcd(BLOCK, longest), math.gcd(BLOCK // 2, prompt_len)
    sizes = _Sizes(
        slots=together,
        sets=sets,
        size=q_SHK.shape[2],
        blocks=longest // block,
        block=block,
        prompt_blocks=prompt_len // prompt_block,
        prompt_block=prompt_block,
        rotary=step.cos is not None,
    )
    q = q_SHK.reshape(slots * sets, -1, width)
    rows, tables = together * sets, _tables(step, width)
    numbers = [
        jnp.broadcast_to(x[:, None, None], (slots, 1, LANES)) for x in (step.age, step.length)
    ]
    scalars, caches = _scalars(sizes, step), [prompt_k, prompt_v, ring_k, ring_v]
    caches = [x.reshape(-1, *x.shape[2:]) for x in caches]
    of_sets = pl.BlockSpec((rows, *q.shape[1:]), _all_of_it)
    of_slots = [pl.BlockSpec((together, *x.shape[1:]), _all_of_it) for x in (*numbers, *tables)]
    of_prompts = pl.BlockSpec((rows, prompt_block, width), _block_of_prompt)
    of_rings = pl.BlockSpec((rows, block, width), functools.partial(_block_of_ring, sizes))
    tile = width // sizes.size * q.shape[1]
    out = pl.pallas_call(
        functools.partial(_kernel, sizes),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(slots // together, sizes.prompt_blocks + sizes.blocks),
            in_specs=[of_sets, *of_slots, of_prompts, of_prompts, of_rings, of_rings],
            out_specs=of_sets,
            scratch_shapes=[
                pltpu.VMEM((rows, tile, width), q.dtype),
                *(pltpu.VMEM((rows, tile, columns), jnp.float32) for columns in (1, 1, width)),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="attend_ring",
    )(*scalars, q, *numbers, *tables, *caches)
    return out.reshape(q_SHK.shape)


def _tables(step: RowStep, width: int) -> list[jax.Array]:
    """Cosines and signed sines of every place of heads side by side, [S, 1, E]."""
    if step.cos is None or step.sin is None:
        return []
    times = (1, width // (2 * step.cos.shape[1]))
    halves = (step.cos, step.cos), (-step.sin, step.sin)
    return [jnp.tile(jnp.concatenate(x, -1), times)[:, None] for x in halves]


def _scalars(sizes: _Sizes, step: RowStep) -> tuple[jax.Array, ...]:
    """Place and block of the new token, and the last blocks that programs read.

    Blocks of a ring are counted from the newest back. That one holds the tokens up to the new one
    and, behind it, the ring's oldest.
    """
    assert step.at is not None
    oldest, prompt_len = (x.reshape(-1, sizes.slots).max(-1) for x in (step.age, step.length))
    before = jnp.maximum(oldest - step.at % sizes.block, 0)
    last = jnp.minimum(-(-before // sizes.block), sizes.blocks - 1)
    last_of_prompt = jnp.maximum(-(-prompt_len // sizes.prompt_block), 1) - 1
    return jnp.stack([step.at, step.at // sizes.block]), last, last_of_prompt


def _all_of_it(i, j, *scalars):
    return i, 0, 0


# Where nothing is needed of a block, the index is that of the one before, which is not read again.
def _block_of_prompt(i, j, at, last, last_of_prompt):
    return i, jnp.minimum(j, last_of_prompt[i]), 0


def _block_of_ring(sizes, i, j, at, last, last_of_prompt):
    back = jnp.clip(j - sizes.prompt_blocks, 0, last[i])
    return i, _from_newest(sizes, at, back), 0


def _from_newest(sizes, at, back):
    block = at[1] - back
    return jnp.where(block < 0, block + sizes.blocks, block)


def _kernel(sizes, at, last, last_of_prompt, q, age, length, *refs):
    """Add one block to the softmax sums of the slots of a program: of their prompts, then rings."""
    tables, refs = (refs[:2], refs[2:]) if sizes.rotary else ((), refs)
    prompt_k, prompt_v, ring_k, ring_v, out, queries, top, total, value = refs
    i, j = pl.program_id(0), pl.program_id(1)
    back = j - sizes.prompt_blocks

    def add(keys, values, seen):
        """Softmax sums with a block of keys, seen where `seen` [slots, 1, count] says so."""
        seen = _for_sets(sizes, seen.astype(jnp.int32)) > 0
        scores = jnp.where(seen, _product(queries[...], keys[...], 2) * sizes.size**-0.5, HIDDEN)
        largest = jnp.maximum(top[...], scores.max(-1, keepdims=True))
        weight, rescale = jnp.exp(scores - largest), jnp.exp(top[...] - largest)
        top[...] = largest
        total[...] = total[...] * rescale + weight.sum(-1, keepdims=True)
        added = _product(weight.astype(values.dtype), values[...], 1)
        value[...] = value[...] * rescale + added

    def places(block, count):
        return block * count + jax.lax.broadcasted_iota(jnp.int32, (1, 1, count), 2)

    @pl.when(j == 0)
    def _():
        queries[...] = _apart(sizes, _rotated(sizes, q[...], tables))
        top[...] = jnp.full_like(top, HIDDEN)
        total[...] = jnp.zeros_like(total)
        value[...] = jnp.zeros_like(value)

    @pl.when(j <= last_of_prompt[i])
    def _():
        count = sizes.prompt_block
        add(prompt_k, prompt_v, places(j, count) < length[:, :, :count])

    @pl.when((back >= 0) & (back <= last[i]))
    def _():
        count = sizes.block
        steps_back = at[0] - places(_from_newest(sizes, at, back), count)
        steps_back = jnp.where(steps_back < 0, steps_back + sizes.blocks * count, steps_back)
        add(ring_k, ring_v, steps_back <= age[:, :, :count])

    @pl.when(back == sizes.blocks - 1)
    def _():
        out[...] = _beside(sizes, value[...] / total[...]).astype(out.dtype)


def _for_sets(sizes, x):
    """What is the same for all sets of a slot: [slots, ...] to [slots F, ...]."""
    every = jnp.broadcast_to(x[:, None], (x.shape[0], sizes.sets, *x.shape[1:]))
    return every.reshape(-1, *x.shape[1:])


def _rotated(sizes, q, tables):
    """Queries side by side with their rotary positions, which each head has for itself."""
    if not tables:
        return q
    half, width = sizes.size // 2, q.shape[-1]
    x = q.astype(jnp.float32)
    left = quotient(jax.lax.broadcasted_iota(jnp.int32, x.shape, 2), half) & 1 == 0
    other = jnp.where(left, pltpu.roll(x, width - half, 2), pltpu.roll(x, half, 2))
    cos, sin = (_for_sets(sizes, table[...]) for table in tables)
    return (x * cos + other * sin).astype(q.dtype)


def _own_places(sizes, x):
    """Where in [..., rows, E] a row's key/value head has its place."""
    rows, width = x.shape[-2:]
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in (1, 2))
    return quotient(lane, sizes.size) == quotient(row * (width // sizes.size), rows)


def _apart(sizes, q):
    """Queries side by side, n in a row, to rows of one query each, in its key/value head's place.

    First those that stand in that place, then those that stand one before it, and so on.
    """
    x, width = q.astype(jnp.float32), q.shape[-1]
    own = _own_places(sizes, x)
    shifted = [pltpu.roll(x, by, 2) if by else x for by in range(0, width, sizes.size)]
    return jnp.concatenate([jnp.where(own, y, 0.0) for y in shifted], 1).astype(q.dtype)


def _beside(sizes, values):
    """The inverse of `_apart`."""
    width = values.shape[-1]
    parts = jnp.split(values, width // sizes.size, 1)
    own = _own_places(sizes, parts[0])
    back = [
        pltpu.roll(jnp.where(own, part, 0.0), (width - n * sizes.size) % width, 2)
        for n, part in enumerate(parts)
    ]
    return functools.reduce(operator.add, back)


def quotient(x: jax.Array, y: int) -> jax.Array:
    """Return x // y of numbers from 0 up; Python's own asks for the kind of device."""
    return jax.lax.div(x, jnp.full_like(x, y))


def _product(x, y, axis):
    """Products of x [F, R, N] and y, whose `axis` is summed, for each of F in float32."""
    axes = ((2,), (axis,)), ((0,), (0,))
    return jax.lax.dot_general(x, y, axes, preferred_element_type=jnp.float32)
