"""Bytes and FLOPs of our own kernels, for which the compiler counts every array whole.

Of a slot's cache a decoding step reads the tokens that are there, `MEAN_CACHED` on average.
"""

import math
import re
from collections.abc import Sequence

from jaxloop.core.categorical import LANES
from jaxloop.lm.generation import ring_products

# Tokens in a slot's cache: texts of mixed lengths with mean 60 and a long tail hold 50 to 80.
MEAN_CACHED = 80
# Share of a ring that a program of several slots reads, for the oldest of them, at that mean.
RING_SHARE = 0.85

NAMES = (
    *("attend_rows", "adapt_groups", "adapt_inputs", "gate_groups"),
    *("attend_ring", "gate_rings", "pick_blocks"),
)

Operand = tuple[tuple[int, ...], float]  # dimensions, bytes


def name_of(operation: str) -> str | None:
    """Return which of our kernels a JAX operation is, or None."""
    match = re.search(rf"\b({'|'.join(NAMES)})\b", operation)
    return match[1] if match else None


def moved(name: str, operands: Sequence[Operand], results: Sequence[float]) -> tuple[float, float]:
    """Return (bytes read, bytes written) by one run of a kernel.

    Args:
        operands: (dimensions, bytes) of what it takes.
        results: bytes of what it gives.
    """
    if name == "attend_rows":
        *small, cache_k, cache_v = operands
        caches = cache_k[1] + cache_v[1]
        longest = cache_k[0][2]
        read = sum(size for _, size in small) + caches * min(1.0, MEAN_CACHED / longest)
        return read, results[0] + caches / longest
    if name == "attend_ring":
        *small, (_, keys), (_, values) = operands
        return sum(size for _, size in small) + RING_SHARE * (keys + values), sum(results)
    if name == "pick_blocks":
        # It gives one slot's block of float32, and reads `LANES` slots' in bfloat16.
        return operands[0][1] + LANES / 2 * sum(results), sum(results)
    if name == "gate_rings":
        x, w, _, z, b, _ = operands  # weights and adapters come as gate's and as up's
        tiling = _tiling_of_gate(operands)
        # Inputs that are one tile stay; more of them are read again for each tile of columns.
        tiles = x[0][0] // tiling.rows, w[0][1] // (2 * tiling.columns)
        again = tiles[1] if tiles[0] > 1 else 1
        return again * (x[1] + z[1]) + w[1] + b[1], sum(results)
    if name in ("adapt_inputs", "gate_groups"):
        *rest, adapters = operands
        share = _share_of_adapters(operands[0], adapters)
        return sum(size for _, size in rest) + share * adapters[1], sum(results)
    entry, x, a, b, *others = operands
    share = _share_of_adapters(entry, a)
    read = entry[1] + x[1] + share * (a[1] + b[1]) + sum(size for _, size in others)
    return read, sum(results)


def _share_of_adapters(entry: Operand, adapters: Operand) -> float:
    """The share of all adapters that groups use."""
    return min(1.0, entry[0][0] / adapters[0][0])


def computed(name: str, operands: Sequence[Operand]) -> float:
    """Return the FLOPs of the products of one run of a kernel; `operands` as for `moved`."""
    if name == "attend_rows":
        (slots, heads, size), groups = operands[0][0], operands[-1][0][1]
        return 4.0 * slots * (heads - 2 * groups) * size * MEAN_CACHED
    if name == "attend_ring":
        return 4.0 * math.prod(operands[3][0]) * MEAN_CACHED
    if name == "pick_blocks":
        return 0.0
    if name == "gate_rings":
        (rows, inside), (_, outside) = operands[0][0], operands[1][0]
        rank = operands[3][0][2]
        return 2.0 * rows * outside * (inside + _tiling_of_gate(operands).together * rank)
    rows, inside = operands[1][0]
    if name == "adapt_inputs":
        _, parts, _, rank = operands[2][0]
        return 2.0 * rows * inside * parts * rank
    if name == "gate_groups":
        rank, outside = operands[4][0][1:]
        return 2.0 * rows * outside * (inside + rank)
    (_, parts, _, rank), outside = operands[2][0], operands[3][0][-1]
    return 2.0 * rows * rank * (parts * inside + outside)


def _tiling_of_gate(operands: Sequence[Operand]) -> ring_products.Tiling:
    """How `ring_products` divided operands of these dimensions."""
    (rows, inputs), (_, outside), _, (_, _, rank), (ranks, _), _ = (size for size, _ in operands)
    found = ring_products.tiling(rows, ranks // rank, inputs, outside // 2, rank)
    assert found is not None, "the kernel is only made where it fits"
    return found
