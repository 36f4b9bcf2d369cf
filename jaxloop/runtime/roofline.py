"""What a training or decoding step must do at least: FLOPs, bytes, memory; and what this machine
can do at most, measured.

Shares of the limit quoted in BENCHMARKS.md (MFU for training, bandwidth share for decoding) are
ratios of these. Everything here takes plain sizes, so that it stands below the models; `Sizes` of a
decoder come from its parameter table.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.runtime.devices import platform_of


@dataclass(frozen=True)
class Sizes:
    """A decoder in numbers. body: weights of all linear projections in the blocks; head: vocabulary
    x embedding; rank_weights: adapter weights of one chain; width_kv: numbers cached per token
    (keys and values, all layers); layers, heads x head size for attention.
    """

    body: int
    head: int
    total: int
    adapter: int
    cache: int
    layers: int
    attention_width: int


def training_flops(sizes: Sizes, tokens: int, length: float, *, frozen: bool = True) -> float:
    """FLOPs of `tokens` trained tokens in rows of `length`: 2 per weight forward, 2 for the input
    gradient, and 2 for the weight gradient of what is trained (adapters, or everything); causal
    attention counts half of the full square, twice as much again backward.
    """
    dense = sizes.body + sizes.head
    attention = 2 * 2 * sizes.layers * sizes.attention_width * length / 2
    return tokens * (
        (4 if frozen else 6) * dense + 6 * (sizes.adapter if frozen else 0) + 3 * attention
    )


def decoding_flops(sizes: Sizes, tokens: int, context: float, *, adapted: bool = True) -> float:
    """FLOPs to write `tokens` tokens after `context` cached ones on average."""
    return tokens * (
        2 * (sizes.body + sizes.head + (sizes.adapter if adapted else 0))
        + 4 * sizes.layers * sizes.attention_width * context
    )


def decoding_bytes(
    sizes: Sizes, steps: int, rows: int, context: float, *, chains: int, width: int
) -> float:
    """Bytes that `steps` decoding steps of `rows` rows must read: all weights and the adapters once
    a step, each row's live cache; `width` bytes a number.
    """
    return (
        width
        * steps
        * (sizes.body + sizes.head + chains * sizes.adapter + rows * context * sizes.cache)
    )


def training_memory(
    sizes: Sizes,
    chains: int,
    rows: int,
    length: int,
    *,
    base_width: int,
    frozen: bool = True,
    width: int = 4,
    remat: bool = False,
) -> float:
    """Bytes of a training program of `chains` chains of [rows, length] tokens: weights, gradients
    and AdamW moments in float32, and the activations kept for the gradient (numbers of the model's
    width per token and layer: about 34 without remat, 2 with; in bfloat16, as accelerators are
    programmed, about 24 without).
    """
    trained = chains * (sizes.adapter if frozen else sizes.total)
    base = base_width * sizes.total if frozen else 0
    kept = 2 if remat else 34 if width > 2 else 24
    width_model = sizes.attention_width
    return base + 16 * trained + width * chains * rows * length * sizes.layers * width_model * kept


@dataclass(frozen=True)
class Limits:
    """Measured ceilings of one device: FLOP/s of a large matrix product and bytes/s of a large copy
    (read plus written).
    """

    flops: float
    bandwidth: float

    def or_better(self, other: "Limits") -> "Limits":
        """The higher of two measurements."""
        return Limits(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


@dataclass(frozen=True)
class Work:
    """What a program did in each second: FLOPs, and bytes that it had to read (0: not counted)."""

    flops: float
    bytes: float = 0.0

    def share(self, limits: Limits) -> float:
        """Of the limit that is nearer: 1 at the roofline."""
        return max(self.flops / limits.flops, self.bytes / limits.bandwidth)


def measure_limits(dtype=jnp.float32, *, size: int | None = None, seconds: float = 0.5) -> Limits:
    """Time a [size, size] product and a copy of about half a gigabyte (64 MiB on a CPU) for about
    `seconds` each; the best repeat counts.
    """
    large = platform_of() != "cpu"
    size = size or (8192 if large else 1536)
    key = jax.random.key(0)
    a, b = (
        jax.random.normal(jax.random.fold_in(key, i), (size, size)).astype(dtype) for i in (1, 2)
    )
    flops = 2 * size**3 / _best(jax.jit(jnp.matmul), (a, b), seconds)
    long = jax.random.normal(key, ((1 << 27) if large else (1 << 24),))
    bandwidth = 2 * long.nbytes / _best(jax.jit(lambda x: x + 1.0), (long,), seconds)
    return Limits(flops, bandwidth)


def _best(run, args, seconds: float) -> float:
    jax.block_until_ready(run(*args))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        best = min(best, time.perf_counter() - start)
    return best
