"""Types of the scripts' flags: argparse refuses, in one line, what they cannot be."""

import argparse
import math
from collections.abc import Callable


def whole(least: int) -> Callable[[str], int]:
    """Return the type of a flag that is a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not allowed: a whole number of at least {least}"
            )
        return int(text)

    return read


def positive(text: str) -> float:
    """Return a flag that is a finite number above 0."""
    value = _finite(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number above 0")
    return value


def not_negative(text: str) -> float:
    """Return a flag that is a finite number of at least 0."""
    value = _finite(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: a number of at least 0")
    return value


def _finite(text: str) -> float:
    """A number; nan for everything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def lists(parts: int, separator: str, example: str, least: int = 1) -> Callable[[str], str]:
    """Return the type of a flag that is a list of `parts` whole numbers each, such as 4x8,1x16.

    Args:
        separator: what stands between the parts of an entry.
        example: an allowed value, for the refusal.
        least: the smallest number.
    """

    def read(text: str) -> str:
        for entry in text.split(","):
            numbers = entry.split(separator) if parts > 1 else [entry]
            whole_numbers = all(n.isascii() and n.isdecimal() for n in numbers)
            if len(numbers) != parts or not whole_numbers or min(map(int, numbers)) < least:
                raise argparse.ArgumentTypeError(
                    f"{text!r} is not allowed: whole numbers of at least {least}, as in {example}"
                )
        return text

    return read
