"""Metrics of points for many chains: of one size in one call, of unequal sizes chain by chain."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxloop.core.checks import is_whole

PointsFunction = Callable[..., Any]


def by_chain(
    function: PointsFunction, least: Callable[[dict[str, Any]], int] | None = None
) -> PointsFunction:
    """Return a metric of points [c, n, d] as a function of chains of any sizes.

    Args:
        function: (points [n, d] or [c, n, d], *references, **options) -> a float or [c].
        least: function from the options to the number of points that a chain needs; a chain with
            fewer is nan. None: no limit.

    Returns:
        A function of [c] arrays [n_c, d] that gives [c] float64. A reference that is a list holds
        one array for each chain; any other is shared by all.
    """
    defaults = {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.default is not p.empty
    }

    @functools.wraps(function)
    def evaluate(
        points: Sequence[np.ndarray], *references: np.ndarray | list[np.ndarray], **options: Any
    ) -> np.ndarray:
        needed = least(defaults | options) if least else 0
        chains = [np.asarray(chain) for chain in points]
        one_size = len({chain.shape for chain in chains}) == 1 and len(chains[0]) >= needed
        if one_size and not any(isinstance(reference, list) for reference in references):
            return np.asarray(function(np.stack(chains), *references, **options))
        values = []
        for c, chain in enumerate(chains):
            if len(chain) < needed:
                values.append(np.nan)
                continue
            of_chain = [r[c] if isinstance(r, list) else r for r in references]
            values.append(function(chain, *of_chain, **options))
        return np.array(values, np.float64)

    return evaluate


def more_than_k(options: dict[str, Any]) -> int:
    """Return how many points a metric of the k-th neighbour needs.

    Raises:
        ValueError: k is no whole number of at least 1, which is said for small chains too.
    """
    k = options["k"]
    if not is_whole(k):
        raise ValueError(f"k is {k!r}, a whole number of at least 1 is needed.")
    return int(k) + 1


def two_points(options: dict[str, Any]) -> int:
    """Return how many points a metric with a covariance needs."""
    return 2
