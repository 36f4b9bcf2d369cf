"""Work of which one process on this machine does at most one at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock

from jaxloop.runtime.log import LOGGER


@contextlib.contextmanager
def alone(lock_file: Path, what: str) -> Iterator[None]:
    """Context of one process at a time; another one says that it waits, and waits.

    Args:
        lock_file: which they share; its folder must exist.
        what: the first one does, such as "computes these embeddings".
    """
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        LOGGER.info("another run %s; waiting for it", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
