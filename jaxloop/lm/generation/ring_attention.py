"""Attention of one new token in every slot on a TPU, over cache rows that are rings.

All slots write at the same place of their rows, which XLA does without a scatter. A text's oldest
entry may lie anywhere in its ring, so sums are in another order than in `row_attention` and round
differently.

A TPU's registers have rows of 128 numbers, and it keeps arrays in such rows. So n heads that
together are that wide lie side by side; a query stands in its head's place, with zeros in the
others'. `ring_kernel` reads of a row only the blocks that texts have reached; without it XLA reads
whole rows.

Dimensions: S slots, H query heads, G key/value heads, F sets of heads side by side, E their width
(n K), K head size, R queries of a set, M cached tokens of a slot, P prompt cache length, Z cached
prompts.
"""

import math

import jax
import jax.numpy as jnp

from jaxloop.lm.generation import ring_kernel
from jaxloop.lm.generation.ring_kernel import HIDDEN, LANES
from jaxloop.lm.generation.row_attention import RowStep, rotate
from jaxloop.lm.model.config import ModelConfig


def shape(slots: int, kv_heads: int, longest: int, size: int) -> tuple[int, int, int, int]:
    """Return the shape of `side_by_side` of a cache [slots, kv_heads, longest, size]."""
    beside = math.gcd(kv_heads, max(1, LANES // size))
    return slots, kv_heads // beside, longest, beside * size


def side_by_side(cache_SGMK: jax.Array) -> jax.Array:
    """Return a cache with heads side by side, [S, F, M, E]."""
    slots, _, longest, size = cache_SGMK.shape
    _, sets, _, width = shape(*cache_SGMK.shape)
    apart = cache_SGMK.reshape(slots, sets, width // size, longest, size)
    return apart.swapaxes(2, 3).reshape(slots, sets, longest, width)


def fits(config: ModelConfig, dtype: str) -> bool:
    """Return whether the kernel can be made for this architecture.

    Heads side by side must fill registers, and each row of queries side by side belong to one
    key/value head.
    """
    _, sets, _, width = shape(1, config.num_kv_heads, 1, config.head_dim)
    queries, beside = config.num_heads // config.num_kv_heads, config.num_kv_heads // sets
    return width % LANES == 0 and queries % beside == 0 and dtype == "bfloat16"


def attend(
    q_SHK: jax.Array,
    k_SGK: jax.Array,
    v_SGK: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    step: RowStep,
    *,
    implementation: str = "ring_pallas",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`row_attention.attend` with rings.

    Args:
        q_SHK, k_SGK, v_SGK: of the new tokens, not rotated.
        cache_k, cache_v: [S, F, M, E]; the new key (rotated) and value are written at `step.at`.
        prompt_k, prompt_v: [Z, F, P, E], keys rotated.
        step: age, prompt and rotary tables of every slot.
        implementation: "ring_pallas", "ring_interpret" (the kernel run by the interpreter, on any
            device) or "ring" (jax.numpy); "ring_fused" and "ring_fused_interpret" are the first two
            here.
    """
    assert step.at is not None
    slots, sets, _, width = cache_k.shape
    at, k_SE = (0, 0, step.at, 0), _rotated(k_SGK, step)
    cache_k = jax.lax.dynamic_update_slice(cache_k, k_SE.reshape(slots, sets, 1, width), at)
    cache_v = jax.lax.dynamic_update_slice(cache_v, v_SGK.reshape(slots, sets, 1, width), at)
    caches = prompt_k[step.prompt], prompt_v[step.prompt], cache_k, cache_v
    if implementation == "ring":
        out = _attend_plain(q_SHK, *caches, step)
    else:
        interpret = implementation.endswith("interpret")
        out = ring_kernel.attend(q_SHK, *caches, step, interpret=interpret)
    return out.reshape(slots, -1), cache_k, cache_v


def _rotated(k_SGK: jax.Array, step: RowStep) -> jax.Array:
    """Keys with their rotary positions, [S, G K].

    Heads stay in one row. With an axis of their own, and halves of them, a TPU would copy the keys
    from one arrangement of registers to another. A product with a permutation is exact.
    """
    slots, heads, size = k_SGK.shape
    k_SE = k_SGK.reshape(slots, heads * size)
    if step.cos is None or step.sin is None:
        return k_SE
    place = jnp.arange(heads * size)
    partner = place + jnp.where(place % size < size // 2, size // 2, -(size // 2))
    swap_EE = (place[:, None] == partner[None]).astype(k_SE.dtype)
    exact = jax.lax.Precision.HIGHEST
    other_SE = jnp.dot(k_SE, swap_EE, precision=exact, preferred_element_type=jnp.float32)
    cos_SE = jnp.tile(jnp.concatenate([step.cos, step.cos], -1), (1, heads))
    sin_SE = jnp.tile(jnp.concatenate([-step.sin, step.sin], -1), (1, heads))
    rotated_SE = k_SE.astype(jnp.float32) * cos_SE + other_SE * sin_SE
    return rotated_SE.astype(k_SGK.dtype)


def _attend_plain(
    q_SHK: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    step: RowStep,
) -> jax.Array:
    """Attended values [S, H, K]; `prompt_k` and `prompt_v` are those of the slots' prompts."""
    assert step.at is not None
    slots, sets, longest, width = cache_k.shape
    size = q_SHK.shape[-1]
    beside = width // size
    if step.cos is not None and step.sin is not None:
        q_SHK = rotate(q_SHK, step.cos, step.sin)
    own = jnp.eye(beside, dtype=bool)[None, None, :, None, :, None]
    q = jnp.where(own, q_SHK.reshape(slots, sets, beside, -1, 1, size), jnp.zeros((), q_SHK.dtype))
    q_SFRE = q.reshape(slots, sets, -1, width)
    steps_back = (step.at - jnp.arange(longest, dtype=jnp.int32)) % longest
    in_prompt = jnp.arange(prompt_k.shape[2])[None] < step.length[:, None]
    stretches = (
        (prompt_k, prompt_v, in_prompt),
        (cache_k, cache_v, steps_back[None] <= step.age[:, None]),
    )
    scores = []
    for keys, _, seen in stretches:
        raw = jnp.einsum("sfre,sfme->sfrm", q_SFRE, keys, preferred_element_type=jnp.float32)
        scores.append(jnp.where(seen[:, None, None], raw * size**-0.5, HIDDEN))
    largest = jnp.maximum(*(x.max(-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - largest) for x in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    of_prompt, of_cache = (
        jnp.einsum(
            "sfrm,sfme->sfre", w.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        for w, (_, values, _) in zip(weights, stretches, strict=True)
    )
    out = ((of_prompt + of_cache) / total).reshape(slots, sets, beside, -1, beside, size)
    return jnp.where(own, out, 0.0).sum(4).astype(cache_k.dtype).reshape(q_SHK.shape)
