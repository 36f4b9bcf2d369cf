"""Metrics of generated texts: lexical, semantic, distances, losses, classifiers, judges.

`registry` finds and evaluates them by name; `base` says how to add one.
"""

from jaxloop.metrics.base import Metric, Unavailable
from jaxloop.metrics.registry import (
    REGISTRY,
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
