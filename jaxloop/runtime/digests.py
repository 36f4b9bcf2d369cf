"""SHA-256 of files that rarely change, kept while path, size, times and inode are the same."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from jaxloop.runtime.atomic_io import cache_folder, sha256, write_atomic

# A file of at most so many bytes is read each time, and its digest is not kept.
SMALL = 1 << 20


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal; OSError where it cannot be read."""
    file = Path(file).resolve()
    state = file.stat()
    if state.st_size <= SMALL:
        return sha256(file)
    # ctime too: copying over a file and setting its old date back leaves size, mtime and inode as
    # they were.
    current = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    cached = cache_folder() / "digests" / f"{hashlib.sha256(str(file).encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(cached.read_bytes())
        if record["state"] == current:
            return record["sha256"]
    computed = sha256(file)
    with contextlib.suppress(OSError, ValueError):  # a cache that cannot be written only costs time
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            cached,
            json.dumps({"file": str(file), "state": current, "sha256": computed}).encode(),
            durable=False,
        )
    return computed


def of_files(root: Path, names: Iterable[str]) -> str:
    """Return the SHA-256 of several files of a directory with their names, sorted."""
    whole = hashlib.sha256()
    for name in sorted(names):
        whole.update(f"{name}\n{digest(root / name)}\n".encode())
    return whole.hexdigest()
