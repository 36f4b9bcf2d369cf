"""Collecting everything that is wrong, to say it at once."""

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxloop.runtime.atomic_io import DiskFull

_PACKAGE = Path(__file__).parents[1]


class Problems(ValueError):
    """Several things are wrong; `lines` holds a sentence on each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = tuple(lines)


@contextlib.contextmanager
def noted(problems: list[ValueError]) -> Iterator[None]:
    """Context that adds a refusal of ours to `problems`, so that the checks after it are made too.

    A disk that is too small is a refusal. Other exceptions pass.
    """
    try:
        yield
    except DiskFull as error:
        refusal = ValueError(str(error))
        refusal.__cause__ = error
        problems.append(refusal)
    except ValueError as error:
        if not is_refusal(error):
            raise
        problems.append(error)


@contextlib.contextmanager
def named(field: str) -> Iterator[None]:
    """Context whose refusals begin with a field of the config, where they name none."""
    try:
        yield
    except ValueError as error:
        if not is_refusal(error) or isinstance(error, Problems) or str(error).startswith("config."):
            raise
        raise ValueError(f"{field}: {str(error).rstrip('.')}") from None


def raise_all(problems: Sequence[ValueError]) -> None:
    """Raise what was noted: the one refusal as it is, or all of them as `Problems`."""
    lines = list(dict.fromkeys(line for error in problems for line in lines_of(error)))
    if len(lines) == 1:
        cause = problems[0].__cause__
        raise cause if isinstance(cause, DiskFull) else problems[0]
    if lines:
        raise Problems(lines)


def lines_of(error: BaseException) -> tuple[str, ...]:
    """Return the sentences of an exception: one, or those of `Problems`."""
    return error.lines if isinstance(error, Problems) else (" ".join(str(error).split()),)


def is_refusal(error: BaseException) -> bool:
    """Return whether jaxloop or the file system raised it, not a library called wrongly."""
    if isinstance(error, OSError):
        return error.filename is not None
    origin = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(origin).is_relative_to(_PACKAGE)
