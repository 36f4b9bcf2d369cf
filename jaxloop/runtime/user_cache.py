"""`jaxloop cache --info` and `jaxloop cache --clear`: what jaxloop keeps in the user's cache
folder, and taking it away again.

Only what jaxloop itself puts there is counted or deleted, by its name; links are neither followed
nor deleted.
"""

import difflib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxloop.runtime.atomic_io import cache_folder, human_size

ACTIONS = ("--info", "--clear")
_PROGRAM = re.compile(r".+-(cache|atime)")
_ENVIRONMENT = re.compile(r"python3\.\d+-jax[^-]+-jaxlib[^-]+-\w+-[0-9a-f]{8}")
_DATASET = re.compile(r".+-[0-9a-f]{12}")
# Answers of judges may have cost money and cannot be computed again: they are counted, not deleted.
_ANSWERS = re.compile(r"(judges|answers)\.sqlite(-wal|-shm|-journal)?")
# What a file of the folder itself holds, by its name.
_FILES = (
    (re.compile(r"docs-[0-9a-f]{16}\.parquet(.*\.tmp)?"), "text of the installed documentation"),
    (re.compile(r"judges\.sqlite(-wal|-shm|-journal)?"), "answers of judges"),
    (re.compile(r"(\.tmp-)?micro_batch\.json"), "chains in one program"),
)


class Entry(NamedTuple):
    """One kind of thing in the folder: what it is, where it belongs, its files, how many of them
    count, bytes, seconds since the epoch of its last use, and the folders that are ours and may go
    when they are empty.
    """

    what: str
    where: str
    files: tuple[Path, ...]
    count: int
    size: int
    used: float
    folders: tuple[Path, ...] = ()


def asked(words: Sequence[str]) -> str:
    """The action that follows `jaxloop cache`. Raises ValueError, one sentence, unless it is
    exactly one of `ACTIONS`.
    """
    if len(words) == 1 and words[0] in ACTIONS:
        return words[0]
    allowed = "--info (what is kept) or --clear (delete it)"
    unknown = [word for word in words if word not in ACTIONS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], ACTIONS, 1)
        raise ValueError(
            f"cache {unknown[0]}: is not understood; "
            f"{f'did you mean {near[0]}?' if near else f'allowed is {allowed}'}"
        )
    raise ValueError(f"cache {' '.join(words)}".rstrip() + f": needs exactly one of {allowed}")


def act(words: Sequence[str], folder: Path | None = None) -> str:
    """What `jaxloop cache WORDS` prints. folder: `cache_folder()` when None. Raises ValueError as
    `asked` and `clear` do.
    """
    action, folder = asked(words), cache_folder() if folder is None else folder
    return info(folder) if action == "--info" else clear(folder)


def info(folder: Path) -> str:
    """A table of what is kept in `folder`: kind, environment or data set, number, size, last use."""
    found = entries(folder)
    rows = [("kept", "environment", "number", "size", "last use")]
    rows += [
        (
            e.what,
            e.where,
            f"{e.count:,}",
            human_size(e.size),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(e.used)),
        )
        for e in found
    ]
    rows += [
        (
            "in all",
            "",
            f"{sum(e.count for e in found):,}",
            human_size(sum(e.size for e in found)),
            "",
        )
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(w) if i in (2, 3) else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    own = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    note = (
        [
            f"compiled programs are kept in JAX_COMPILATION_CACHE_DIR={own}, which is yours: it "
            "is not counted here and not cleared"
        ]
        if own
        else []
    )
    return "\n".join([f"folder: {folder}", *lines, *note])


def clear(folder: Path) -> str:
    """Deletes every file of `entries(folder)` but the answers of judges, then the folders that are
    empty, and says how much went.

    Raises ValueError where `folder` is a link or belongs to someone else.
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
    count = size = kept = 0
    for entry in entries(folder):
        for path in entry.files:
            if _ANSWERS.fullmatch(path.name):
                kept += 1
                continue
            try:
                freed = path.lstat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            count, size = count + 1, size + freed
        for path in entry.folders:
            if not any(path.iterdir()):
                path.rmdir()
    for path in (folder / "xla", folder / "datasets"):
        if _is_folder(path) and not any(path.iterdir()):
            path.rmdir()
    answers = f"; {kept} with answers of judges, which may have cost money, stay" if kept else ""
    return (
        f"deleted {count:,} file{'' if count == 1 else 's'}, {human_size(size)}, from "
        f"{folder}{answers}"
    )


def entries(folder: Path) -> list[Entry]:
    """What jaxloop keeps in `folder`; empty where that is no folder of its user."""
    if not folder.is_dir():
        return []
    found = []
    if _is_folder(programs := folder / "xla"):
        for path in _sorted(programs):
            if _is_folder(path) and _ENVIRONMENT.fullmatch(path.name):
                found.append(_programs(path, path.name, (path,)))
        found.append(_programs(programs, "an earlier layout", ()))
    if _is_folder(datasets := folder / "datasets"):
        for path in _sorted(datasets):
            if _is_folder(path) and _DATASET.fullmatch(path.name):
                files, folders = _below(path)
                found.append(_entry("data set", path.name, files, len(files), folders))
    here = [path for path in _sorted(folder) if _is_file(path)]
    for pattern, what in _FILES:
        files = [path for path in here if pattern.fullmatch(path.name)]
        found.append(_entry(what, "", files, len(files)))
    return [entry for entry in found if entry.files or entry.folders]


def _programs(folder: Path, where: str, folders: tuple[Path, ...]) -> Entry:
    files = [path for path in _sorted(folder) if _is_file(path) and _PROGRAM.fullmatch(path.name)]
    return _entry(
        "compiled programs",
        where,
        files,
        sum(path.name.endswith("-cache") for path in files),
        folders,
    )


def _entry(what, where, files, count, folders=()) -> Entry:
    stats = [path.lstat() for path in files]
    used = max((max(s.st_atime, s.st_mtime) for s in stats), default=0.0) or max(
        (path.lstat().st_mtime for path in folders), default=0.0
    )
    return Entry(
        what, where, tuple(files), count, sum(s.st_size for s in stats), used, tuple(folders)
    )


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
    return iter(sorted(folder.iterdir()))


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
