"""`jaxloop cache --info` and `--clear`: what jaxloop keeps in the user's cache folder.

Only what jaxloop itself puts there is counted or deleted, by its name; links are neither followed
nor deleted.
"""

import contextlib
import difflib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxloop.runtime.atomic_io import cache_folder, files_in, human_size, names_in

ACTIONS = ("--info", "--clear")
_PROGRAM = re.compile(r".+-(cache|atime)")
_ENVIRONMENT = re.compile(r"python3\.\d+-jax[^-]+-jaxlib[^-]+-\w+-[0-9a-f]{8}")
_DATASET = re.compile(r".+-[0-9a-f]{12}")
# Answers of judges may have cost money and cannot be computed again: they are counted, not deleted.
_ANSWERS = re.compile(r"(judges|answers)\.sqlite(-wal|-shm|-journal)?")
# A run may be going on in it, and may be further than what the store has: counted, not deleted.
_COPY = "copy of a run"
# What a file of the folder itself holds, by its name.
_FILES = (
    (re.compile(r"docs-[0-9a-f]{16}\.parquet(.*\.tmp)?"), "text of the installed documentation"),
    (re.compile(r"judges\.sqlite(-wal|-shm|-journal)?"), "answers of judges"),
    (re.compile(r"(\.tmp-([0-9a-f]{8}-)?)?micro_batch\.json"), "chains in one program"),
)


@dataclass(frozen=True)
class Entry:
    """One kind of thing in the folder.

    Attributes:
        what: kind of thing, such as "compiled programs".
        where: the environment or data set that it belongs to, or "".
        files: its files.
        count: number of programs, or of files where the kind is another.
        size: bytes of all files.
        used: time of the last use, in seconds since the epoch.
        folders: folders of ours that are deleted too once they are empty.
    """

    what: str
    where: str
    files: tuple[Path, ...]
    count: int
    size: int
    used: float
    folders: tuple[Path, ...] = ()


def requested_action(words: Sequence[str]) -> str:
    """Return the action that follows `jaxloop cache`.

    Raises:
        ValueError: it is not exactly one of `ACTIONS`.
    """
    if len(words) == 1 and words[0] in ACTIONS:
        return words[0]
    allowed = "--info (what is kept) or --clear (delete it)"
    unknown = [word for word in words if word not in ACTIONS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], ACTIONS, 1)
        hint = f"did you mean {near[0]}?" if near else f"allowed is {allowed}"
        raise ValueError(f"cache {unknown[0]}: is not understood; {hint}")
    raise ValueError(f"cache {' '.join(words)}".rstrip() + f": needs exactly one of {allowed}")


def run_action(words: Sequence[str], folder: Path | None = None) -> str:
    """Return what `jaxloop cache WORDS` prints, after doing it.

    Args:
        folder: the cache folder; None: `cache_folder()`.

    Raises:
        ValueError: as `requested_action` and `clear` raise it.
    """
    action = requested_action(words)
    folder = cache_folder() if folder is None else folder
    return info(folder) if action == "--info" else clear(folder)


def info(folder: Path) -> str:
    """Return a table of what is kept in `folder`."""
    kinds = entries(folder)
    rows = [("kept", "environment", "number", "size", "last use")]
    for entry in kinds:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        rows.append((entry.what, entry.where, f"{entry.count:,}", human_size(entry.size), used))
    count, size = sum(e.count for e in kinds), sum(e.size for e in kinds)
    rows.append(("in all", "", f"{count:,}", human_size(size), ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"folder: {folder}", *(_aligned(row, widths) for row in rows)]
    if jax_folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        lines.append(
            f"compiled programs are kept in JAX_COMPILATION_CACHE_DIR={jax_folder}, which is "
            "yours: it is not counted here and not cleared"
        )
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    """A line of the table; its third and fourth column are numbers."""
    cells = [
        cell.rjust(width) if column in (2, 3) else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def clear(folder: Path) -> str:
    """Delete what is kept in `folder`, and say how much that was.

    Answers of judges and copies of runs stay.

    Raises:
        ValueError: `folder` is a link or belongs to someone else.
    """
    if folder.is_symlink():
        raise ValueError(
            f"cache folder {folder}: is a link, which is not followed; name the folder itself in "
            "JAXLOOP_CACHE"
        )
    if folder.exists() and folder.stat().st_uid != os.getuid():
        raise ValueError(
            f"cache folder {folder}: belongs to another user; only a folder of your own can be "
            "cleared"
        )
    count = size = answers = copies = 0
    for entry in entries(folder):
        if entry.what == _COPY:
            copies += 1
            continue
        paid = [path for path in entry.files if _ANSWERS.fullmatch(path.name)]
        freed = [_delete(path) for path in entry.files if path not in paid]
        answers += len(paid)
        count += sum(deleted for deleted, _ in freed)
        size += sum(freed_bytes for _, freed_bytes in freed)
        for path in entry.folders:
            _remove_if_empty(path)
    for path in (folder / "xla", folder / "datasets"):
        if _is_folder(path):
            _remove_if_empty(path)
    stay = f"; {answers} with answers of judges, which may have cost money, stay" if answers else ""
    if copies:
        stay += f"; copies of runs in object stores stay in {folder / 'mirrors'}: {copies}"
    files = "file" if count == 1 else "files"
    return f"deleted {count:,} {files}, {human_size(size)}, from {folder}{stay}"


def _delete(path: Path) -> tuple[int, int]:
    """(1, its bytes), or (0, 0) where another process deleted the file before."""
    try:
        size = path.lstat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0, 0
    return 1, size


def _remove_if_empty(path: Path) -> None:
    # Another run may put something there, or delete it, at the same moment.
    if not names_in(path):
        with contextlib.suppress(OSError):
            path.rmdir()


def entries(folder: Path) -> list[Entry]:
    """Return what jaxloop keeps in `folder`; nothing where that is no folder."""
    if not folder.is_dir():
        return []
    kinds: list[Entry] = []
    if _is_folder(programs := folder / "xla"):
        for path in _sorted(programs):
            if _is_folder(path) and _ENVIRONMENT.fullmatch(path.name):
                kinds.append(_programs(path, path.name, (path,)))
        kinds.append(_programs(programs, "an earlier layout", ()))
    if _is_folder(datasets := folder / "datasets"):
        for path in _sorted(datasets):
            if _is_folder(path) and _DATASET.fullmatch(path.name):
                files, folders = _below(path)
                kinds.append(_entry("data set", path.name, files, len(files), folders))
    kinds += _copies(folder / "mirrors")
    if _is_folder(digests := folder / "digests"):
        files, folders = _below(digests)
        kinds.append(_entry("checksums of files", "", files, len(files), folders))
    here = [path for path in _sorted(folder) if _is_file(path)]
    for pattern, what in _FILES:
        files = [path for path in here if pattern.fullmatch(path.name)]
        kinds.append(_entry(what, "", files, len(files)))
    return [entry for entry in kinds if entry.files or entry.folders]


def _copies(folder: Path) -> list[Entry]:
    """The copies of runs in object stores (see `mirror_copy`), by their addresses."""
    kinds = []
    for path in _sorted(folder) if _is_folder(folder) else ():
        if _is_folder(path):
            # Its run may be going on, which renames and deletes files all the time.
            files = files_in(path)
            size = sum(file.st_size for file in files.values())
            used = max((file.st_mtime for file in files.values()), default=0.0)
            entry = Entry(_COPY, _address(path), tuple(files), len(files), size, used)
            kinds.append(entry)
    return kinds


def _address(copy: Path) -> str:
    """The address of which a folder is a copy, or the name of one that does not say it."""
    parts = [copy, *(path for path in _sorted(copy) if path.name.startswith("process-"))]
    for part in parts:
        try:
            return str(json.loads((part / "mirror.json").read_bytes())["address"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return copy.name


def _programs(folder: Path, where: str, folders: tuple[Path, ...]) -> Entry:
    files = [path for path in _sorted(folder) if _is_file(path) and _PROGRAM.fullmatch(path.name)]
    return _entry(
        "compiled programs",
        where,
        files,
        sum(path.name.endswith("-cache") for path in files),
        folders,
    )


def _entry(
    what: str, where: str, files: Sequence[Path], count: int, folders: Sequence[Path] = ()
) -> Entry:
    stats = _stats(files)
    used = max((max(s.st_atime, s.st_mtime) for s in stats), default=0.0)
    used = used or max((s.st_mtime for s in _stats(folders)), default=0.0)
    return Entry(
        what=what,
        where=where,
        files=tuple(files),
        count=count,
        size=sum(s.st_size for s in stats),
        used=used,
        folders=tuple(folders),
    )


def _stats(paths: Sequence[Path]) -> list[os.stat_result]:
    """What the system says of files, those excepted that another process has deleted."""
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append(path.lstat())
    return found


def _below(folder: Path) -> tuple[list[Path], list[Path]]:
    """All files in a folder and below, and the folders themselves, deepest first; no links."""
    files: list[Path] = []
    folders: list[Path] = []
    for path in _sorted(folder):
        if _is_folder(path):
            more, inner = _below(path)
            files, folders = files + more, folders + inner
        elif _is_file(path):
            files.append(path)
    return files, [*folders, folder]


def _sorted(folder: Path) -> Iterator[Path]:
    return (folder / name for name in names_in(folder))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
