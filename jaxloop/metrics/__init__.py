"""Every measure of what a chain wrote: lexical, semantic, distances, losses; `registry` gives them
names.
"""

from jaxloop.metrics.registry import (
    REGISTRY,
    Metric,
    Unavailable,
    available,
    evaluate,
    evaluate_texts,
    needs,
    validate,
)

__all__ = [
    "REGISTRY",
    "Metric",
    "Unavailable",
    "available",
    "evaluate",
    "evaluate_texts",
    "needs",
    "validate",
]
