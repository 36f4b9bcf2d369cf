"""Files that are whole or absent: atomic writes, checksums, contained paths, full disks."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_SPACE = re.compile(r"no space left|disk is full", re.IGNORECASE)
# Of what writes a file; a service on the network says it of something else.
_FULL_TEXT = re.compile(r"quota exceeded|file too large", re.IGNORECASE)


class DiskFull(OSError):
    """The disk or the quota is full; the message says what is needed and what is free.

    Everything that was written before is intact.
    """

    def __str__(self) -> str:
        return self.strerror or ""


def cache_folder() -> Path:
    """Return the user's folder for what can be computed again.

    It is $JAXLOOP_CACHE, else $XDG_CACHE_HOME/jaxloop, else ~/.cache/jaxloop.
    """
    if os.environ.get("JAXLOOP_CACHE"):
        return Path(os.environ["JAXLOOP_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME", "")
    return Path(base if os.path.isabs(base) else "~/.cache").expanduser() / "jaxloop"


def human_size(count: float) -> str:
    """Return a number of bytes as text, "1.2 MB" for 1234567 (powers of ten)."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def existing_parent(path: Path) -> Path:
    """Return the path itself, or the nearest directory above it that exists."""
    path = Path(path).absolute()
    return path if path.exists() or path.parent == path else existing_parent(path.parent)


def names_in(path: Path) -> list[str]:
    """Return the names in a directory, sorted; none where it is not there, or goes meanwhile.

    `Path.iterdir` and `Path.glob` raise where a directory goes after they have looked for it.
    """
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_in(path: Path) -> dict[Path, os.stat_result]:
    """Return all files below a directory with what the system says of them.

    The directory need not exist, and files may vanish meanwhile.
    """
    found = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found[Path(folder, name)] = os.lstat(os.path.join(folder, name))
    return found


def bytes_in(path: Path) -> int:
    """Return the bytes of all files below a directory, which need not exist."""
    return sum(file.st_size for file in files_in(path).values())


def require_space(path: Path, needed: int, what: str) -> None:
    """Raise DiskFull where fewer than `needed` bytes are free at `path`, which need not exist."""
    free = shutil.disk_usage(existing_parent(path)).free
    if free < needed:
        raise DiskFull(
            errno.ENOSPC,
            f"disk full: {what} needs {human_size(needed)}, {human_size(free)} are free in {path}",
        )


def is_disk_full(error: BaseException) -> bool:
    """Say whether an exception, of any library, is one for lack of space."""
    return getattr(error, "errno", None) in _FULL or bool(_NO_SPACE.search(str(error)))


@contextlib.contextmanager
def raise_disk_full(path: Path, needed: int, what: str) -> Iterator[None]:
    """Turn any library's error for lack of space into DiskFull, inside this context.

    Args:
        needed: bytes that are to be written, for the message.
        what: what is written, for the message.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_disk_full(error) and not _FULL_TEXT.search(str(error)):
            raise
        free = shutil.disk_usage(existing_parent(path)).free
        limit = " (or the limit on file size or quota is reached)" if free >= needed else ""
        message = (
            f"disk full: {what} needs {human_size(needed)}, {human_size(free)} are free in "
            f"{Path(path).parent}{limit}"
        )
        raise DiskFull(errno.ENOSPC, message) from error


def sync(path: Path) -> None:
    """Flush the content of a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file so that readers and killed runs see the old bytes or the new ones, never a part.

    Args:
        durable: whether that holds when the machine loses power too; otherwise nothing waits for
            the disk.

    Raises:
        DiskFull: the bytes do not fit; the old file is still there.
    """
    path = Path(path)
    # Two processes, also of two machines, may write one file of a cache at the same time.
    temporary = path.with_name(f"{TEMPORARY}{os.urandom(4).hex()}-{path.name}")
    with raise_disk_full(path, len(data), path.name):
        try:
            with open(temporary, "wb") as stream:
                stream.write(data)
                if durable:
                    stream.flush()
                    os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    if durable:
        sync(path.parent)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inside(root: Path, *parts: str) -> Path:
    """Return `root/parts`.

    Raises:
        ValueError: the path would leave `root` or pass through a symbolic link.
    """
    relative = Path(*parts)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise ValueError(f"path {str(relative)!r}: must be relative and stay inside {root}")
    here = Path(root)
    for part in relative.parts:
        here = here / part
        if here.is_symlink():
            raise ValueError(
                f"path {str(here)!r}: is a symbolic link, which is not followed inside {root}"
            )
    return here


def remove(root: Path, *parts: str) -> None:
    """Delete one file or directory inside `root` (see `inside`), if it is there.

    Links inside it are unlinked, not followed.
    """
    target = inside(root, *parts)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
