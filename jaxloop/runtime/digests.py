"""SHA-256 of files that rarely change, computed once: a digest is kept for as long as the file's
place, size, times and inode are the same.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from jaxloop.runtime.atomic_io import cache_folder, sha256, write_atomic

SMALL = 1 << 20  # bytes up to which a file is read each time


def digest(file: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. OSError where it cannot be read."""
    file = Path(file).resolve()
    state = file.stat()
    if state.st_size <= SMALL:
        return sha256(file)
    # ctime too: copying over a file and setting its old date back leaves size, mtime and inode as
    # they were.
    now = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    kept = cache_folder() / "digests" / f"{hashlib.sha256(str(file).encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = json.loads(kept.read_bytes())
        if found["state"] == now:
            return found["sha256"]
    made = sha256(file)
    with contextlib.suppress(OSError, ValueError):  # a cache that cannot be written only costs time
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(
            kept,
            json.dumps({"file": str(file), "state": now, "sha256": made}).encode(),
            durable=False,
        )
    return made


def of_files(root: Path, names) -> str:
    """SHA-256 of several files of a directory with their names, in the order of the names."""
    whole = hashlib.sha256()
    for name in sorted(names):
        whole.update(f"{name}\n{digest(root / name)}\n".encode())
    return whole.hexdigest()
