"""What our own kernels move and compute, which the compiler does not know: it counts whole every
array that a kernel may reach into.

Of a slot's cache a step reads what the slot has written, and how much that is depends on the texts:
`AGE` tokens on average.
"""

import re
from collections.abc import Sequence

AGE = (
    80  # tokens in a slot's cache: a mix of lengths with mean 60 and a long tail stands at 50 to 80
)


def name_of(operation: str) -> str | None:
    """Which of our kernels a custom call runs, from the name of its JAX operation."""
    found = re.search(r"\b(attend_rows|adapt_lanes)\b", operation)
    return found[1] if found else None


def moved(
    name: str, operands: Sequence[tuple[tuple[int, ...], float]], results: Sequence[float]
) -> tuple[float, float]:
    """(bytes read, bytes written) by one run of a kernel: `operands` as (dimensions, bytes) and the
    bytes of `results`.
    """
    if name == "attend_rows":
        *small, cache_k, cache_v = operands
        caches = cache_k[1] + cache_v[1]
        longest = cache_k[0][2]
        return sum(size for _, size in small) + caches * min(1.0, AGE / longest), results[
            0
        ] + caches / longest
    entry, x, a, b, *others = operands
    share = min(1.0, entry[0][0] / a[0][0])
    return entry[1] + x[1] + share * (a[1] + b[1]) + sum(size for _, size in others), sum(results)


def computed(name: str, operands: Sequence[tuple[tuple[int, ...], float]]) -> float:
    """FLOPs of its products."""
    if name == "attend_rows":
        (slots, heads, size), groups = operands[0][0], operands[-1][0][1]
        return 4.0 * slots * (heads - 2 * groups) * size * AGE
    rows, inside = operands[1][0]
    (_, parts, _, rank), outside = operands[2][0], operands[3][0][-1]
    return 2.0 * rows * rank * (parts * inside + outside)
