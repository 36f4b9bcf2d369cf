"""The directory that an export writes: new or empty, and whole or absent."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxloop.runtime.atomic_io import TEMPORARY, raise_disk_full


def check(directory: Path) -> None:
    """Raise ValueError unless a directory can be made there, or an empty one is there."""
    if directory.is_symlink() or directory.exists() and not directory.is_dir():
        raise ValueError(f"export {directory}: is no directory; give a new one")
    if directory.is_dir() and any(directory.iterdir()):
        raise ValueError(f"export {directory}: is not empty; give a new or an empty directory")
    if directory.resolve() == Path.cwd():
        raise ValueError(
            f"export {directory}: is the current directory, which would be replaced; give a new one"
        )


@contextlib.contextmanager
def written(directory: Path, needed: int = 0) -> Iterator[Path]:
    """Context with a temporary directory that becomes `directory` at its end.

    After an exception nothing is left of it.

    Args:
        directory: where the export is to be.
        needed: bytes that are written at most, for the message of a full disk.

    Raises:
        ValueError: as `check`.
        DiskFull: the files do not fit.
    """
    check(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = directory.with_name(f"{TEMPORARY}{directory.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with raise_disk_full(directory, needed, directory.name):
            yield work
            if directory.is_dir():
                directory.rmdir()  # empty, as checked; anything new in it is an error
            os.replace(work, directory)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
