"""Refusals of numbers that are given from Python, in one sentence each.

NumPy's numbers are numbers too. What JAX traces is let through: its value is not known.
"""

import math
import numbers
from typing import Any

import jax


def check_whole(name: str, value: Any, low: int = 1) -> int:
    """Return a whole number as a plain one.

    Raises:
        ValueError: it is no whole number, or below `low`.
    """
    if not is_whole(value, low):
        raise ValueError(f"{name}={value!r}: must be an integer of at least {low}")
    return int(value)


def is_whole(value: Any, low: int = 1) -> bool:
    """Whether a value is a whole number of at least `low`; True and False are none."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= low


def check_share(name: str, value: Any) -> None:
    """Raise ValueError for what is no number in [0, 1]."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r}: must lie in [0, 1]")


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError for what is no finite number above 0."""
    if not isinstance(value, jax.Array) and not (_is_finite(value) and value > 0):
        raise ValueError(f"{name}={value!r}: must be positive and finite")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError for what is no finite number of at least 0."""
    if not isinstance(value, jax.Array) and not (_is_finite(value) and value >= 0):
        raise ValueError(f"{name}={value!r}: must be at least 0 and finite")


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
