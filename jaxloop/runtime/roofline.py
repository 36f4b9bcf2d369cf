"""Roofline: the FLOPs and bytes that a step needs at least, and this machine's measured limits.

The shares in BENCHMARKS.md (MFU of training, bandwidth share of decoding) are ratios of these.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxloop.runtime.devices import platform_of


@dataclass(frozen=True)
class Sizes:
    """A decoder in numbers of weights.

    Attributes:
        body: weights of all linear projections in the blocks.
        head: weights of the output matrix, vocabulary x embedding.
        total: weights of the whole model.
        adapter: weights of the adapters of one chain.
        cache: numbers cached per token, keys and values of all layers.
        layers: number of blocks.
        attention_width: heads x head size.
    """

    body: int
    head: int
    total: int
    adapter: int
    cache: int
    layers: int
    attention_width: int


def training_flops(sizes: Sizes, tokens: int, length: float, *, frozen: bool = True) -> float:
    """Return the FLOPs of training on `tokens` tokens in rows of `length`.

    Per weight 2 forward, 2 for the input gradient, and 2 for the weight gradient of what is
    trained: adapters on a `frozen` base, or everything. Causal attention counts half of the full
    square, and twice that again backward.
    """
    dense = sizes.body + sizes.head
    attention = 2 * 2 * sizes.layers * sizes.attention_width * length / 2
    return tokens * (
        (4 if frozen else 6) * dense + 6 * (sizes.adapter if frozen else 0) + 3 * attention
    )


def decoding_flops(sizes: Sizes, tokens: int, context: float, *, adapted: bool = True) -> float:
    """Return the FLOPs of generating `tokens` tokens after `context` cached ones on average."""
    return tokens * (
        2 * (sizes.body + sizes.head + (sizes.adapter if adapted else 0))
        + 4 * sizes.layers * sizes.attention_width * context
    )


def decoding_bytes(
    sizes: Sizes, steps: float, rows: int, context: float, *, chains: int, width: int
) -> float:
    """Return the bytes that `steps` decoding steps of `rows` rows must read.

    Each step reads all weights and adapters, and each row's cache of `context` tokens on average;
    a number has `width` bytes.
    """
    weights = sizes.body + sizes.head + chains * sizes.adapter
    return width * steps * (weights + rows * context * sizes.cache)


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
    """Return the bytes of a training program of `chains` chains of [rows, length] tokens.

    Weights, gradients and AdamW moments are in float32. Activations that are kept for the gradient
    are numbers of the model's width per token and layer: 2 with `remat`, else about 34, or 24 in
    bfloat16 as accelerators are programmed.

    Args:
        base_width: bytes of a number of the frozen base.
        frozen: whether adapters on a frozen base are trained, or everything.
        width: bytes of a number of the computation.
    """
    trained = chains * (sizes.adapter if frozen else sizes.total)
    base = base_width * sizes.total if frozen else 0
    if remat:
        activations = 2
    else:
        activations = 34 if width > 2 else 24
    width_model = sizes.attention_width
    return (
        base
        + 16 * trained
        + width * chains * rows * length * sizes.layers * width_model * activations
    )


@dataclass(frozen=True)
class Limits:
    """Measured limits of one device.

    Attributes:
        flops: FLOP/s of a large matrix product.
        bandwidth: bytes/s of a large copy, read plus written.
    """

    flops: float
    bandwidth: float

    def or_better(self, other: "Limits") -> "Limits":
        """Return the higher of two measurements, of each limit."""
        return Limits(max(self.flops, other.flops), max(self.bandwidth, other.bandwidth))


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes per second that a program needed at least (bytes 0: not counted)."""

    flops: float
    bytes: float = 0.0

    def share(self, limits: Limits) -> float:
        """Return the share that is used of the limit that is nearer; 1 is the roofline."""
        return max(self.flops / limits.flops, self.bytes / limits.bandwidth)


def measure_limits(
    dtype: DTypeLike = jnp.float32, *, size: int | None = None, seconds: float = 0.5
) -> Limits:
    """Measure the limits of JAX's default device; the best repeat counts.

    A [size, size] product and a copy of half a gigabyte (64 MiB on a CPU) run for about `seconds`
    each.
    """
    large = platform_of() != "cpu"
    size = size or (8192 if large else 1536)
    key = jax.random.key(0)
    a, b = (
        jax.random.normal(jax.random.fold_in(key, i), (size, size)).astype(dtype) for i in (1, 2)
    )
    flops = 2 * size**3 / _best(jax.jit(jnp.matmul), (a, b), seconds)
    long = jnp.ones((1 << 27) if large else (1 << 24), jnp.float32)
    bandwidth = 2 * long.nbytes / _best(jax.jit(lambda x: x + 1.0), (long,), seconds)
    return Limits(flops, bandwidth)


def _best(run: Callable, args: Sequence[jax.Array], seconds: float) -> float:
    """The seconds of the fastest repeat."""
    jax.block_until_ready(run(*args))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(run(*args))
        best = min(best, time.perf_counter() - start)
    return best
