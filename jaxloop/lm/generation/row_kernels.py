"""Two kernels of a decoding step on a GPU: attention over each slot's own cache, written in place,
and the adapters of all lanes.

XLA alone writes a step's keys by copying or scattering, reads every cache to its longest row, and
copies a lane's adapter out of the pool. These kernels (Pallas, compiled by Triton) read a row as
far as it has come and an adapter where it lies. `attend_plain` and `adapt_plain` are the same in
jax.numpy: what the kernels are tested against.

Dimensions: S slots, A lanes, B slots a lane, H query heads, G key/value heads, Q = H / G, K head
size, M cached tokens of a slot, P prompt cache length, Z cached prompts, C places of the adapter
pool, n parts of a site, D input width, O output width, R rank.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jaxloop.lm.model.config import Spec, sites

LEAST = 16  # smallest side of a product that the tensor cores take
CACHE_BLOCK = 64  # cached tokens read at a time
IN_BLOCK, OUT_BLOCK = 128, 512  # inputs and outputs of an adapter that are read at a time
SPAN = 2048  # outputs of one program of the adapters' kernel


class Step(NamedTuple):
    """What a step's attention needs to know about the slots, the same in every layer."""

    age: jax.Array  # [S] sampled tokens in the slot's cache, which is where the new one goes
    length: jax.Array  # [S] tokens of its prompt in the prompt cache
    prompt: jax.Array  # [S] which cached prompt
    cos: jax.Array | None  # [S, K / 2], None where positions are not rotary
    sin: jax.Array | None
    at: jax.Array | None = None  # [] place that all slots write, for "ring"


class Pool(NamedTuple):
    """Adapters of a site as the kernel reads them: every chain's, with ranks padded to a product's
    smallest side.
    """

    a: jax.Array  # [C, L, n, D, R], or without the layers, or with chains and layers in one axis
    b: jax.Array  # [C, L, R, O], the parts side by side


class LaneAdapter(NamedTuple):
    """A site's adapters in one layer, for lanes that each use one of them."""

    pool: Pool  # chains and layers in one axis
    entry: jax.Array  # [A] where in it
    how: str  # "pallas", "interpret" or "plain"


def cache_length(max_new_tokens: int) -> int:
    """Tokens that a slot's cache holds, a whole number of blocks."""
    return -(-max_new_tokens // CACHE_BLOCK) * CACHE_BLOCK


def prompt_length(longest: int) -> int:
    """Tokens to which prompt caches are padded: whole blocks, or a power of two below a block."""
    if longest > CACHE_BLOCK:
        return -(-longest // CACHE_BLOCK) * CACHE_BLOCK
    return max(LEAST, pl.next_power_of_2(max(1, longest)))


def fits(spec: Spec) -> bool:
    """Whether the kernels can be made for this architecture: head size a power of two, widths whole
    multiples of 16.
    """
    power = spec.head_size & (spec.head_size - 1) == 0 and spec.head_size >= 2 * LEAST
    widths = [
        spec.width,
        spec.mlp,
        spec.heads * spec.head_size,
        *(part.width for parts in sites(spec).values() for part in parts),
    ]
    return power and all(width % LEAST == 0 for width in widths)


def attend(
    qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step: Step, heads: int, *, how: str = "pallas"
):
    """Attention of one new token a slot.

    Args:
      qkv_SJK: [S, H + 2 G, K], queries, keys and values of the new tokens, not rotated.
      cache_k, cache_v: [S, G, M, K]; the new key (rotated) and value are written at `step.age`, in
      place where XLA may.
      prompt_k, prompt_v: [Z, G, P, K], keys rotated.
      heads: H.
      how: "pallas", "interpret" (the kernel run by the interpreter, on any device), "plain", or
      "ring": by XLA alone, and all slots write at `step.at`
        of their rows, which then are rings. That needs no scatter, but what a row adds up, and so
        its rounding, begins anywhere in the ring.
    Returns: attended [S, H K], cache_k, cache_v.
    """
    if how == "ring":
        return _attend_ring(qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step, heads)
    if how == "plain":
        return attend_plain(qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step, heads)
    rows, groups = cache_k.shape[:2]
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
        functools.partial(_attend_kernel, heads // groups, bool(tables)),
        grid=(rows, groups),
        in_specs=[whole] * len(args),
        out_specs=[whole] * 3,
        out_shape=[
            jax.ShapeDtypeStruct((rows, heads, size), dtype),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (cache_k, cache_v)),
        ],
        input_output_aliases={len(args) - 2: 1, len(args) - 1: 2},
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=2),
        interpret=how == "interpret",
        name="attend_rows",
    )
    out, cache_k, cache_v = call(*args)
    return out.reshape(rows, heads * size), cache_k, cache_v


def _attend_kernel(q_heads, rotary, qkv, age_ref, length_ref, prompt_ref, *refs):
    """One slot and one key/value head: the new token first, from registers, then the cache and the
    prompt, block by block.
    """
    cos, sin = refs[:2] if rotary else (None, None)
    prompt_k, prompt_v, old_k, old_v, out, cache_k, cache_v = refs[2:] if rotary else refs
    slot, group = pl.program_id(0), pl.program_id(1)
    groups, size = old_k.shape[1], old_k.shape[-1]
    half, heads, dtype = size // 2, q_heads * groups, old_k.dtype
    left, right = pl.ds(0, half), pl.ds(half, half)
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    product = functools.partial(plgpu.dot, precision=precision)
    age, length, prompt = age_ref[slot], length_ref[slot], prompt_ref[slot]

    def turned(x_left, x_right):
        if not rotary:
            return x_left, x_right
        c, s = cos[slot, :], sin[slot, :]
        c, s = (t.reshape((1,) * (x_left.ndim - 1) + t.shape) for t in (c, s))
        x_left, x_right = x_left.astype(jnp.float32), x_right.astype(jnp.float32)
        return (x_left * c - x_right * s).astype(dtype), (x_right * c + x_left * s).astype(dtype)

    # Rows of the tile beyond this group's heads repeat its last one: what they store is the same.
    tile = max(LEAST, pl.next_power_of_2(q_heads))
    row = jnp.arange(tile, dtype=jnp.int32)
    head = group * q_heads + jnp.minimum(row, q_heads - 1)
    q_left, q_right = turned(qkv[slot, head, left], qkv[slot, head, right])
    k_left, k_right = turned(qkv[slot, heads + group, left], qkv[slot, heads + group, right])
    v = qkv[slot, heads + groups + group, :]
    cache_k[slot, group, age, left] = k_left
    cache_k[slot, group, age, right] = k_right
    cache_v[slot, group, age, :] = v
    scale = size**-0.5

    def own(q, k):
        return (q.astype(jnp.float32) * k.astype(jnp.float32)[None]).sum(-1)

    top = (own(q_left, k_left) + own(q_right, k_right)) * scale
    total = jnp.ones((tile,), jnp.float32)
    value = jnp.broadcast_to(v.astype(jnp.float32)[None], (tile, size))

    def blocks(keys, values, at, block, count, carry):
        def one(i, carry):
            top, total, value = carry
            place = i * block + jnp.arange(block, dtype=jnp.int32)
            rows = pl.ds(i * block, block)
            scores = product(q_left, keys[*at, rows, left].T) + product(
                q_right, keys[*at, rows, right].T
            )
            scores = jnp.where(place[None] < count, scores * scale, -1e30)
            best = jnp.maximum(top, scores.max(-1))
            weight, kept = jnp.exp(scores - best[:, None]), jnp.exp(top - best)
            read = values[*at, rows, :]
            # What lies behind the last token may be anything, and nothing times infinity is not
            # nothing.
            read = jnp.where((place < count)[:, None], read, jnp.zeros_like(read))
            value = value * kept[:, None] + product(weight.astype(dtype), read)
            return best, total * kept + weight.sum(-1), value

        return jax.lax.fori_loop(0, pl.cdiv(count, block), one, carry)

    carry = blocks(
        prompt_k,
        prompt_v,
        (prompt, group),
        min(CACHE_BLOCK, prompt_k.shape[2]),
        length,
        (top, total, value),
    )
    _, total, value = blocks(old_k, old_v, (slot, group), CACHE_BLOCK, age, carry)
    out[slot, head, :] = (value / total[:, None]).astype(dtype)


def attend_plain(qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step: Step, heads: int):
    """`attend` in jax.numpy, over the whole cache."""
    rows, groups, longest, size = cache_k.shape
    q, k, v = jnp.split(qkv_SJK, [heads, heads + groups], 1)
    if step.cos is not None:
        q, k = _turned(q, step), _turned(k, step)
    slot = jnp.arange(rows)
    cache_k, cache_v = cache_k.at[slot, :, step.age].set(k), cache_v.at[slot, :, step.age].set(v)
    keys = jnp.concatenate([prompt_k[step.prompt], cache_k], 2)
    values = jnp.concatenate([prompt_v[step.prompt], cache_v], 2)
    in_prompt = jnp.arange(prompt_k.shape[2])[None] < step.length[:, None]
    seen = jnp.concatenate([in_prompt, jnp.arange(longest)[None] <= step.age[:, None]], 1)
    q = q.reshape(rows, groups, -1, size)
    scores = jnp.einsum("sgqk,sgmk->sgqm", q, keys, preferred_element_type=jnp.float32) * size**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), -1)
    values = jnp.where(seen[:, None, :, None], values, jnp.zeros_like(values))
    out = jnp.einsum(
        "sgqm,sgmk->sgqk", weights.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    return out.astype(cache_k.dtype).reshape(rows, heads * size), cache_k, cache_v


def _attend_ring(qkv_SJK, cache_k, cache_v, prompt_k, prompt_v, step: Step, heads: int):
    rows, groups, longest, size = cache_k.shape
    q, k, v = jnp.split(qkv_SJK, [heads, heads + groups], 1)
    if step.cos is not None:
        q, k = _turned(q, step), _turned(k, step)
    cache_k, cache_v = (
        jax.lax.dynamic_update_slice(x, new[:, :, None], (0, 0, step.at, 0))
        for x, new in ((cache_k, k), (cache_v, v))
    )
    q = q.reshape(rows, groups, -1, size)
    back = (step.at - jnp.arange(longest, dtype=jnp.int32)) % longest
    parts = (
        (
            prompt_k[step.prompt],
            prompt_v[step.prompt],
            jnp.arange(prompt_k.shape[2])[None] < step.length[:, None],
        ),
        (cache_k, cache_v, back[None] <= step.age[:, None]),
    )
    scores = []
    for keys, _, seen in parts:
        raw = (
            jnp.einsum("sgqk,sgmk->sgqm", q, keys, preferred_element_type=jnp.float32) * size**-0.5
        )
        scores.append(jnp.where(seen[:, None, None], raw, -1e30))
    top = jnp.maximum(*(x.max(-1, keepdims=True) for x in scores))
    weights = [jnp.exp(x - top) for x in scores]
    total = sum(w.sum(-1, keepdims=True) for w in weights)
    made = [
        jnp.einsum(
            "sgqm,sgmk->sgqk", w.astype(values.dtype), values, preferred_element_type=jnp.float32
        )
        for w, (_, values, _) in zip(weights, parts, strict=True)
    ]
    return (
        ((made[0] + made[1]) / total).astype(cache_k.dtype).reshape(rows, heads * size),
        cache_k,
        cache_v,
    )


def _turned(x_SHK, step: Step):
    left, right = jnp.split(x_SHK.astype(jnp.float32), 2, -1)
    c, s = step.cos[:, None], step.sin[:, None]
    return jnp.concatenate([left * c - right * s, right * c + left * s], -1).astype(x_SHK.dtype)


@functools.cache
def works(dtype: str, head_size: int) -> bool:
    """Whether this process's GPU compiles the kernels for this head size and agrees with jax.numpy
    (2e-2 in bfloat16, 1e-3 in float32).
    """
    try:
        device = jax.local_devices(backend="gpu")[0]
        rng = np.random.default_rng(0)
        number = jnp.dtype(dtype)
        draw = lambda *shape: jax.device_put(
            jnp.asarray(rng.standard_normal(shape), number), device
        )  # noqa: E731
        slots, heads, groups, wide = 16, 4, 2, 64
        age = jax.device_put(jnp.arange(slots, dtype=jnp.int32) * 8, device)
        angle = rng.standard_normal((slots, head_size // 2)).astype(np.float32)
        step = Step(age, age // 8, jnp.zeros_like(age), jnp.cos(angle), jnp.sin(angle))
        attention = (
            draw(slots, heads + 2 * groups, head_size), draw(slots, groups, 128, head_size), draw(slots, groups, 128, head_size),
            draw(1, groups, 16, head_size), draw(1, groups, 16, head_size), step,
        )  # fmt: skip
        pool, entry = Pool(draw(2, 1, wide, 16) / 8, draw(2, 16, wide)), jnp.zeros((1,), jnp.int32)
        adapted = (draw(slots, wide), draw(slots, wide), pool, entry)
        attend = jax.jit(lambda how, *args: attend(*args, heads, how=how)[0], static_argnums=0)
        adapt = jax.jit(
            lambda how, x, y, p, e: adapt(x, y, LaneAdapter(p, e, how), (wide,)), static_argnums=0
        )
        near = lambda a, b: bool(
            jnp.allclose(
                a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance
            )
        )  # noqa: E731
        tolerance = 2e-2 if number == jnp.bfloat16 else 1e-3
        return all(
            near(run("pallas", *args), run("plain", *args))
            for run, args in ((attend, attention), (adapt, adapted))
        )
    except Exception:  # any failure of the probe means the same: use what XLA compiles
        return False


def pool(spec: Spec, adapters: dict, scale: float, dtype) -> dict:
    """Adapters {name: {"a": [C, L, D, R], "b": [C, L, R, O]}} as {site: `Pool`}, with `scale` in b;
    parts without an adapter have zeros.
    """
    found = {}
    for site, parts in sites(spec).items():
        present = [p for p in parts if p.name in adapters]
        if not present:
            continue
        some = adapters[present[0].name]["a"]
        chains, layers, inside, rank = some.shape
        more = max(LEAST, pl.next_power_of_2(rank)) - rank
        a, b = [], []
        for p in parts:
            mine = adapters.get(p.name) or {
                "a": jnp.zeros_like(some),
                "b": jnp.zeros((chains, layers, rank, p.width), some.dtype),
            }
            a.append(jnp.pad(mine["a"].astype(dtype), ((0, 0), (0, 0), (0, 0), (0, more))))
            b.append(
                jnp.pad((mine["b"] * scale).astype(dtype), ((0, 0), (0, 0), (0, more), (0, 0)))
            )
        found[site] = Pool(jnp.stack(a, 2), jnp.concatenate(b, -1))
    return found


def adapt(
    x_ND,
    y_NO,
    site: LaneAdapter | Pool,
    widths: tuple[int, ...],
    *,
    added_NO=None,
    gated: bool = False,
):
    """y + (x a) b, each run of rows with its own adapter, and what follows it in a block.

    Args:
      x_ND, y_NO: [N, D] and [N, O]; N rows in equal runs, one for each lane of a `LaneAdapter` or
      each chain of a `Pool` without layers.
      widths: of the site's parts, O in all.
      added_NO: [N, O], the residual stream, added to the result.
      gated: there are two parts of one width; the result is silu(first) * second, [N, O / 2].
    """
    if isinstance(site, Pool):
        return adapt_plain(x_ND, y_NO, site, widths, added_NO, gated)
    (pool, entry_A, how) = site
    if how == "plain":
        return adapt_plain(
            x_ND, y_NO, Pool(pool.a[entry_A], pool.b[entry_A]), widths, added_NO, gated
        )
    lanes, inside = entry_A.shape[0], x_ND.shape[1]
    slots, outside = x_ND.shape[0] // lanes, widths[0] if gated else sum(widths)
    tile = max(LEAST, pl.next_power_of_2(slots))
    span = math.gcd(SPAN, *widths)
    block = min(span, max(LEAST, OUT_BLOCK * LEAST // tile))
    starts = tuple(int(end) for end in np.cumsum(widths)[:-1])
    args = (entry_A, x_ND, pool.a, pool.b, y_NO, *([] if added_NO is None else [added_NO]))
    whole = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        functools.partial(
            _adapt_kernel, slots, tile, span, block, math.gcd(IN_BLOCK, inside), starts, gated
        ),
        grid=(lanes, outside // span),
        in_specs=[whole] * len(args),
        out_specs=whole,
        out_shape=jax.ShapeDtypeStruct((y_NO.shape[0], outside), y_NO.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        interpret=how == "interpret",
        name="adapt_lanes",
    )
    return call(*args)


def _adapt_kernel(slots, tile, span, block, chunk, starts, gated, entry_ref, x, a, b, y, *refs):
    """One lane and a span of output columns, all of one part: x a once, then the span block by
    block.
    """
    *added, out = refs
    lane, first = pl.program_id(0), pl.program_id(1) * span
    entry, part = entry_ref[lane], jnp.int32(0)
    for start in starts:
        part += (first >= start).astype(jnp.int32)
    # Beyond the lane's slots a row of the tile repeats the last one, and stores the same.
    rows = lane * slots + jnp.minimum(jnp.arange(tile, dtype=jnp.int32), slots - 1)
    inside, rank = a.shape[-2:]
    product = functools.partial(
        plgpu.dot, precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    )

    def narrow(part):
        def add(i, z):
            at = pl.ds(i * chunk, chunk)
            return z + product(x[rows, at], a[entry, part, at, :])

        return jax.lax.fori_loop(
            0, inside // chunk, add, jnp.zeros((tile, rank), jnp.float32)
        ).astype(x.dtype)

    def wide(z, at):
        return y[rows, at].astype(jnp.float32) + product(z, b[entry, :, at])

    z = narrow(jnp.int32(0) if gated else part)
    z_up = narrow(jnp.int32(1)) if gated else None

    def write(i, carry):
        at = pl.ds(first + i * block, block)
        made = wide(z, at)
        if gated:
            made = jax.nn.silu(made) * wide(z_up, pl.ds(starts[0] + first + i * block, block))
        if added:
            made = made + added[0][rows, at].astype(jnp.float32)
        out[rows, at] = made.astype(out.dtype)
        return carry

    jax.lax.fori_loop(0, span // block, write, 0)


def adapt_plain(x_ND, y_NO, each: Pool, widths, added_NO=None, gated=False):
    """`adapt` in jax.numpy: a [A, n, D, R] and b [A, R, O] are the adapters of the runs of rows."""
    x_AND = x_ND.reshape(each.a.shape[0], -1, x_ND.shape[1])
    z_APNR = jnp.einsum("and,apdr->apnr", x_AND, each.a, preferred_element_type=jnp.float32).astype(
        x_ND.dtype
    )
    parts = jnp.split(each.b, np.cumsum(widths)[:-1], -1)
    more = [
        jnp.einsum("anr,aro->ano", z_APNR[:, p], b, preferred_element_type=jnp.float32)
        for p, b in enumerate(parts)
    ]
    made = y_NO.astype(jnp.float32) + jnp.concatenate(more, -1).reshape(y_NO.shape)
    if gated:
        gate, up = jnp.split(made, 2, -1)
        made = jax.nn.silu(gate) * up
    if added_NO is not None:
        made = made + added_NO.astype(jnp.float32)
    return made.astype(y_NO.dtype)


def merged(w_DO, a_PDR, b_RO, widths):
    """W + a b of one chain and layer."""
    parts = jnp.split(b_RO, np.cumsum(widths)[:-1], -1)
    more = [
        jnp.einsum("dr,ro->do", a, b, preferred_element_type=jnp.float32)
        for a, b in zip(a_PDR, parts, strict=True)
    ]
    return (w_DO.astype(jnp.float32) + jnp.concatenate(more, -1)).astype(w_DO.dtype)
