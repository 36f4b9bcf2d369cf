"""Attention of a decoding step over each slot's own cache row, which is written in place.

Without a kernel, XLA writes a step's keys by copying or scattering, and reads every row to the
length of the longest. The kernel (Pallas, compiled by Triton, for a GPU) reads only the filled part
of a row. `attend_plain` is the same in jax.numpy, and the kernel is tested against it.

Dimensions: S slots, H query heads, G key/value heads, Q = H / G, K head size, M cached tokens of a
slot, P prompt cache length, Z cached prompts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from jaxloop.lm.triton import plgpu

LEAST = 16  # smallest side of a product that the tensor cores take
CACHE_BLOCK = 64  # cached tokens read at a time


class RowStep(NamedTuple):
    """What a step's attention needs to know about the slots, the same in every layer."""

    age: jax.Array  # [S] sampled tokens in the slot's cache, which is where the new one goes
    length: jax.Array  # [S] tokens of its prompt in the prompt cache
    prompt: jax.Array  # [S] which cached prompt
    cos: jax.Array | None  # [S, K / 2], None where positions are not rotary
    sin: jax.Array | None
    at: jax.Array | None = None  # [] place that all slots write, for `ring_attention`


def cache_length(max_new_tokens: int) -> int:
    """Tokens that a slot's cache holds, a whole number of blocks."""
    return -(-max_new_tokens // CACHE_BLOCK) * CACHE_BLOCK


def prompt_length(longest: int) -> int:
    """Tokens to which prompt caches are padded: whole blocks, or a power of two below a block."""
    if longest > CACHE_BLOCK:
        return -(-longest // CACHE_BLOCK) * CACHE_BLOCK
    return max(LEAST, pl.next_power_of_2(max(1, longest)))


def shared_memory(head_dim: int, queries: int, itemsize: int) -> int:
    """Return the bytes of shared memory that Triton takes for a program of the kernel.

    A block of keys and one of values, the tile of queries, its weights of a block and its factors
    lie there.

    Args:
        head_dim: head size.
        queries: query heads of a key/value head.
        itemsize: bytes of a cached number.
    """
    tile = _tile(queries)
    blocks = (2 * CACHE_BLOCK + tile) * head_dim + tile * CACHE_BLOCK
    return blocks * itemsize + 4 * tile


def _tile(queries: int) -> int:
    return max(LEAST, pl.next_power_of_2(queries))


def attend(
    qkv_SJK: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    step: RowStep,
    heads: int,
    *,
    implementation: str = "pallas",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute the attention of one new token in every slot, and cache its key and value.

    Args:
        qkv_SJK: [S, H + 2 G, K], queries, keys and values of the new tokens, not rotated.
        cache_k, cache_v: [S, G, M, K]; the new key (rotated) and value are written at `step.age`,
            in place where XLA can.
        prompt_k, prompt_v: [Z, G, P, K], keys rotated.
        step: age, prompt and rotary tables of every slot.
        heads: H.
        implementation: "pallas", "interpret" (the kernel run by the interpreter, on any device) or
            "plain" (jax.numpy); "fused" and "fused_interpret" are the first two here.

    Returns:
        The attended values [S, H K], cache_k and cache_v.
    """
    if implementation == "plain":
        return attend_plain(qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step, heads)
    rows, kv_heads = cache_k.shape[:2]
    size, dtype = qkv_SJK.shape[-1], cache_k.dtype
    tables = [] if step.cos is None else [step.cos, step.sin]
    args = (
        qkv_SJK,
        step.age,
        step.length,
        step.prompt,
        *tables,
        prompt_k,
        prompt_v,
        cache_k,
        cache_v,
    )
    whole = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        functools.partial(_attend_kernel, heads // kv_heads, bool(tables)),
        grid=(rows, kv_heads),
        in_specs=[whole] * len(args),
        out_specs=[whole] * 3,
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, size), dtype),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (cache_k, cache_v)),
        ],
        input_output_aliases={len(args) - 2: 1, len(args) - 1: 2},
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=2),
        interpret=implementation.endswith("interpret"),
        name="attend_rows",
    )
    out, cache_k, cache_v = call(*args)
    return out.reshape(rows, heads * size), cache_k, cache_v


def _attend_kernel(q_heads, rotary, qkv, age_ref, length_ref, prompt_ref, *refs):
    """Compute one slot and one key/value head.

    The new token comes first, from registers, then the cache and the prompt, block by block.
    """
    cos, sin = refs[:2] if rotary else (None, None)
    prompt_k, prompt_v, old_k, old_v, out, cache_k, cache_v = refs[2:] if rotary else refs
    slot, kv_head = pl.program_id(0), pl.program_id(1)
    kv_heads, size = old_k.shape[1], old_k.shape[-1]
    half, heads, dtype = size // 2, q_heads * kv_heads, old_k.dtype
    left, right = pl.ds(0, half), pl.ds(half, half)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = functools.partial(plgpu.dot, precision=precision)
    age, length, prompt = age_ref[slot], length_ref[slot], prompt_ref[slot]

    def rotate(x_left, x_right):
        if not rotary:
            return x_left, x_right
        c, s = cos[slot, :], sin[slot, :]
        c, s = (t.reshape((1,) * (x_left.ndim - 1) + t.shape) for t in (c, s))
        x_left, x_right = x_left.astype(jnp.float32), x_right.astype(jnp.float32)
        return (x_left * c - x_right * s).astype(dtype), (x_right * c + x_left * s).astype(dtype)

    # Rows of the tile beyond this key/value head's queries repeat the last one, and store the same.
    tile = _tile(q_heads)
    row = jnp.arange(tile, dtype=jnp.int32)
    head = kv_head * q_heads + jnp.minimum(row, q_heads - 1)
    q_left, q_right = rotate(qkv[slot, head, left], qkv[slot, head, right])
    k_left, k_right = rotate(qkv[slot, heads + kv_head, left], qkv[slot, heads + kv_head, right])
    v = qkv[slot, heads + kv_heads + kv_head, :]
    cache_k[slot, kv_head, age, left] = k_left
    cache_k[slot, kv_head, age, right] = k_right
    cache_v[slot, kv_head, age, :] = v
    scale = size**-0.5

    def dot(q, k):
        return (q.astype(jnp.float32) * k.astype(jnp.float32)[None]).sum(-1)

    top = (dot(q_left, k_left) + dot(q_right, k_right)) * scale
    total = jnp.ones((tile,), jnp.float32)
    value = jnp.broadcast_to(v.astype(jnp.float32)[None], (tile, size))

    def add_blocks(keys, values, at, block, count, carry):
        """Softmax sums with `count` more entries of a cache, `block` entries at a time."""

        def add_block(i, carry):
            top, total, value = carry
            place = i * block + jnp.arange(block, dtype=jnp.int32)
            rows = pl.ds(i * block, block)
            scores = product(q_left, keys[*at, rows, left].T) + product(
                q_right, keys[*at, rows, right].T
            )
            scores = jnp.where(place[None] < count, scores * scale, -1e30)
            largest = jnp.maximum(top, scores.max(-1))
            weight, rescale = jnp.exp(scores - largest[:, None]), jnp.exp(top - largest)
            read = values[*at, rows, :]
            # Entries behind the last token may be anything, also infinite or nan: 0 times
            # them is not 0.
            read = jnp.where((place < count)[:, None], read, jnp.zeros_like(read))
            value = value * rescale[:, None] + product(weight.astype(dtype), read)
            return largest, total * rescale + weight.sum(-1), value

        return jax.lax.fori_loop(0, pl.cdiv(count, block), add_block, carry)

    carry = add_blocks(
        prompt_k,
        prompt_v,
        (prompt, kv_head),
        min(CACHE_BLOCK, prompt_k.shape[2]),
        length,
        (top, total, value),
    )
    _, total, value = add_blocks(old_k, old_v, (slot, kv_head), CACHE_BLOCK, age, carry)
    out[slot, head, :] = (value / total[:, None]).astype(dtype)


def attend_plain(
    qkv_SJK: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    step: RowStep,
    heads: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`attend` in jax.numpy, over the whole cache."""
    rows, kv_heads, longest, size = cache_k.shape
    q, k, v = jnp.split(qkv_SJK, [heads, heads + kv_heads], 1)
    if step.cos is not None and step.sin is not None:
        q, k = rotate(q, step.cos, step.sin), rotate(k, step.cos, step.sin)
    slot = jnp.arange(rows)
    cache_k, cache_v = cache_k.at[slot, :, step.age].set(k), cache_v.at[slot, :, step.age].set(v)
    keys = jnp.concatenate([prompt_k[step.prompt], cache_k], 2)
    values = jnp.concatenate([prompt_v[step.prompt], cache_v], 2)
    in_prompt = jnp.arange(prompt_k.shape[2])[None] < step.length[:, None]
    seen = jnp.concatenate([in_prompt, jnp.arange(longest)[None] <= step.age[:, None]], 1)
    q = q.reshape(rows, kv_heads, -1, size)
    scores = jnp.einsum("sgqk,sgmk->sgqm", q, keys, preferred_element_type=jnp.float32) * size**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), -1)
    values = jnp.where(seen[:, None, :, None], values, jnp.zeros_like(values))
    out = jnp.einsum(
        "sgqm,sgmk->sgqk", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return out.astype(cache_k.dtype).reshape(rows, heads * size), cache_k, cache_v


def rotate(x_SHK: jax.Array, cos_SK: jax.Array, sin_SK: jax.Array) -> jax.Array:
    """Heads with their rotary positions."""
    left, right = jnp.split(x_SHK.astype(jnp.float32), 2, -1)
    c, s = cos_SK[:, None], sin_SK[:, None]
    return jnp.concatenate([left * c - right * s, right * c + left * s], -1).astype(x_SHK.dtype)
