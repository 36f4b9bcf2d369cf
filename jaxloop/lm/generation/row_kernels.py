"""Whether the kernels of decoding serve a model and this GPU or TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.categorical import masked_block
from jaxloop.lm.generation import ring_attention, ring_blocks, row_attention
from jaxloop.lm.generation.row_adapters import GroupAdapter, RowAdapter, adapt, project
from jaxloop.lm.generation.row_attention import LEAST, RowStep, attend
from jaxloop.lm.model.config import ModelConfig, fused_projections


def fits(config: ModelConfig, dtype: str = "bfloat16", shared_memory: int | None = None) -> bool:
    """Return whether the kernels can be made for this architecture.

    The head size must be a power of two, widths multiples of 16, and what attention keeps in the
    shared memory of a GPU must fit.

    Args:
        config: the architecture.
        dtype: of the cache, "float32" or "bfloat16".
        shared_memory: bytes of it that a block of threads has; None: not asked.
    """
    queries, itemsize = config.num_heads // config.num_kv_heads, jnp.dtype(dtype).itemsize
    needed = row_attention.shared_memory(config.head_dim, queries, itemsize)
    if shared_memory is not None and needed > shared_memory:
        return False
    power = config.head_dim & (config.head_dim - 1) == 0 and config.head_dim >= 2 * LEAST
    widths = [
        config.d_model,
        config.d_ff,
        config.num_heads * config.head_dim,
        *(part.width for parts in fused_projections(config).values() for part in parts),
    ]
    return power and all(width % LEAST == 0 for width in widths)


@functools.cache
def works(dtype: str, head_dim: int, queries: int) -> bool:
    """Return whether this process's GPU compiles the kernels and they agree with jax.numpy.

    queries: query heads of a key/value head, which with the head size decide how much shared memory
    the kernel of attention needs.
    """
    try:
        device = jax.local_devices(backend="gpu")[0]
        return agree(dtype, head_dim, "pallas", device, queries)
    except Exception:  # any failure of the probe means the same: use what XLA compiles
        return False


def agree(
    dtype: str, head_dim: int, implementation: str, device: jax.Device, queries: int = 2
) -> bool:
    """Return whether the kernels agree with jax.numpy on random numbers.

    The tolerance is 2e-2 in bfloat16 and 1e-3 in float32.

    Args:
        dtype: "float32" or "bfloat16".
        head_dim: head size.
        implementation: "pallas" or "interpret".
        device: where they run.
        queries: query heads of a key/value head.
    """
    rng = np.random.default_rng(0)
    draw = functools.partial(_draw, rng, dtype, device)
    slots, heads, kv_heads, width = 16, 2 * queries, 2, 64
    step = _step(rng, jax.device_put(jnp.arange(slots, dtype=jnp.int32) * 8, device), head_dim)
    attended = functools.partial(
        probe_attend,
        draw(slots, heads + 2 * kv_heads, head_dim),
        draw(slots, kv_heads, 128, head_dim),
        draw(slots, kv_heads, 128, head_dim),
        draw(1, kv_heads, 16, head_dim),
        draw(1, kv_heads, 16, head_dim),
        step,
        heads=heads,
    )
    adapter = RowAdapter(draw(2, 1, width, 16) / 8, draw(2, 16, width))
    adapted = functools.partial(probe_adapt, draw(slots, width), draw(slots, width), adapter)
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-3
    pairs = [(run(implementation), run("plain")) for run in (attended, adapted)]
    return all(
        bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), tolerance, tolerance))
        for a, b in pairs
    )


def _draw(rng: np.random.Generator, dtype: str, device: jax.Device, *shape: int) -> jax.Array:
    """Standard normal numbers on a device."""
    return jax.device_put(jnp.asarray(rng.standard_normal(shape), jnp.dtype(dtype)), device)


def _step(rng: np.random.Generator, age: jax.Array, head_dim: int) -> RowStep:
    """A step of slots of these ages, all on one prompt, with random rotary angles."""
    angle = rng.standard_normal((age.shape[0], head_dim // 2)).astype(np.float32)
    return RowStep(
        age=age,
        length=age // 8,
        prompt=jnp.zeros_like(age),
        cos=jnp.cos(angle),
        sin=jnp.sin(angle),
    )


@functools.cache
def products_work(dtype: str, platform: str = "gpu") -> bool:
    """Return whether this process's GPU compiles `row_products`, or its TPU `ring_products` and
    `ring_blocks`, and they agree with jax.numpy.
    """
    try:
        device = jax.local_devices(backend=platform)[0]
        if platform == "gpu":
            return products_agree(dtype, "fused", device)
        return products_agree(dtype, "ring_fused", device) and blocks_agree(device)
    except Exception:  # any failure of the probe means the same: use the other kernel
        return False


def products_agree(dtype: str, implementation: str, device: jax.Device) -> bool:
    """Return whether `row_products`, or `ring_products`, agrees with jax.numpy on random numbers.

    The tolerance is 2e-2 in bfloat16 and 1e-3 in float32.

    Args:
        dtype: "float32" or "bfloat16".
        implementation: "fused", "fused_interpret", "ring_fused" or "ring_fused_interpret".
        device: where it runs.
    """
    draw = functools.partial(_draw, np.random.default_rng(0), dtype, device)
    x, w, a, b = (
        draw(*shape) / 8 for shape in ((256, 128), (128, 256), (4, 2, 128, 16), (4, 16, 256))
    )
    entry = jax.device_put(jnp.arange(16, dtype=jnp.int32) % 4, device)
    ours, theirs = (
        probe_gate(x, w, RowAdapter(a, b), entry, how).astype(jnp.float32)
        for how in (implementation, "plain")
    )
    tolerance = 2e-2 if dtype == "bfloat16" else 1e-3
    return bool(jnp.allclose(ours, theirs, tolerance, tolerance))


def blocks_agree(device: jax.Device, *, interpret: bool = False) -> bool:
    """Return whether `ring_blocks` takes the logits of each slot's block, to the bit."""
    rng = np.random.default_rng(0)
    z = _draw(rng, "bfloat16", device, 5, 32, 256)
    block = jax.device_put(jnp.asarray(rng.integers(0, 5, 256), jnp.int32), device)
    ours = jax.jit(functools.partial(ring_blocks.pick, interpret=interpret))(z, block)
    return bool((ours == masked_block(z, block).astype(jnp.float32)).all())


@functools.partial(jax.jit, static_argnames="implementation")
def probe_gate(
    x: jax.Array, w: jax.Array, adapter: RowAdapter, entry: jax.Array, implementation: str
) -> jax.Array:
    """`project` with a gate, as the probe compiles it."""
    if implementation.startswith("ring"):
        adapter = RowAdapter(adapter.a[entry], adapter.b[entry])
    width = w.shape[1] // 2
    return project(x, w, GroupAdapter(adapter, entry, implementation), (width, width), gated=True)


@functools.cache
def rings_work(heads: int, kv_heads: int, head_dim: int) -> bool:
    """Return whether this process's TPU compiles `ring_kernel` and it agrees with jax.numpy."""
    try:
        device = jax.local_devices(backend="tpu")[0]
        return rings_agree(heads, kv_heads, head_dim, "ring_pallas", device)
    except Exception:  # any failure of the probe means the same: use what XLA compiles
        return False


def rings_agree(
    heads: int, kv_heads: int, head_dim: int, implementation: str, device: jax.Device
) -> bool:
    """Return whether the kernel agrees with jax.numpy on random numbers in bfloat16, within 2e-2.

    Args:
        heads: query heads.
        kv_heads: key/value heads.
        head_dim: head size.
        implementation: "ring_pallas" or "ring_interpret".
        device: where they run.
    """
    rng = np.random.default_rng(0)
    draw = functools.partial(_draw, rng, "bfloat16", device)
    slots = 16
    step = _step(rng, jax.device_put(jnp.arange(slots, dtype=jnp.int32) * 12, device), head_dim)
    step = step._replace(at=jax.device_put(jnp.int32(70), device))
    new = [draw(slots, n, head_dim) for n in (heads, kv_heads, kv_heads)]
    caches = [
        ring_attention.side_by_side(draw(rows, kv_heads, longest, head_dim))
        for rows, longest in ((slots, 192), (slots, 192), (1, 32), (1, 32))
    ]
    ours, theirs = (
        probe_ring(*new, *caches, step, how).astype(jnp.float32) for how in (implementation, "ring")
    )
    return bool(jnp.allclose(ours, theirs, atol=2e-2, rtol=2e-2))


@functools.partial(jax.jit, static_argnames="implementation")
def probe_ring(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    step: RowStep,
    implementation: str,
) -> jax.Array:
    """`ring_attention.attend`, as the probe compiles it."""
    out, _, _ = ring_attention.attend(
        q, k, v, cache_k, cache_v, prompt_k, prompt_v, step, implementation=implementation
    )
    return out


@functools.partial(jax.jit, static_argnames=("implementation", "heads"))
def probe_attend(
    qkv: jax.Array,
    cache_k: jax.Array,
    cache_v: jax.Array,
    prompt_k: jax.Array,
    prompt_v: jax.Array,
    step: RowStep,
    implementation: str,
    *,
    heads: int,
) -> jax.Array:
    """`attend`, as the probe compiles it."""
    out, _, _ = attend(
        qkv, cache_k, cache_v, prompt_k, prompt_v, step, heads, implementation=implementation
    )
    return out


@functools.partial(jax.jit, static_argnames="implementation")
def probe_adapt(x: jax.Array, y: jax.Array, adapter: RowAdapter, implementation: str) -> jax.Array:
    """`adapt` of one group, as the probe compiles it."""
    one_group = GroupAdapter(adapter, jnp.zeros((1,), jnp.int32), implementation)
    return adapt(x, y, one_group, (y.shape[1],))
