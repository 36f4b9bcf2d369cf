"""Finds the data files of a folder, and checks that all of them are read."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jaxloop.data import containers, reading

# Files beside data files that are not data: .txt documents, and what `datasets` writes about a
# folder.
_PAPERS = frozenset(
    "readme license licence notice copying changelog changes citation authors requirements "
    "sources".split()
)
_NOT_DATA = frozenset(
    "dataset_info.json dataset_infos.json state.json dataset_dict.json package.json "
    "croissant.json".split()
)
# Files that `save_to_disk` writes into its folder.
_SAVED = ("state.json", "dataset_dict.json")
_FOREIGN = (".xlsx", ".xls", ".ods", ".feather", ".orc", ".avro")


def data_files(folder: str) -> list[str] | None:
    """Return the data files of a folder, as paths from it.

    None if the folder's card (README.md) lists its files: then the card decides what is read.

    Raises:
        ValueError: the files are of several kinds; `datasets` would read only the most frequent.
    """
    if _card_has(folder, "configs:"):
        return None
    kinds: dict[str, list[str]] = {}
    for path in _files(folder):
        if kind := _kind(os.path.basename(path)):
            kinds.setdefault(kind, []).append(path)
    if len(kinds) > 1:
        listed = " and ".join(
            f"{len(files)} {kind} (as {files[0]})" for kind, files in sorted(kinds.items())
        )
        raise ValueError(
            f"data.source = '{folder}': the folder holds files of several kinds, {listed}; name "
            "one file, or a folder of one kind."
        )
    return [name for files in kinds.values() for name in files]


def deciding_files(folder: str) -> list[str]:
    """Return the files that decide what the rows of a folder are, as paths from it.

    These are its data files, archives, and what was written about them. They are all files where
    `datasets` wrote the folder, where its card (README.md) says how the data are read, and where no
    data file is found.
    """
    found = list(_files(folder))
    if is_saved(folder) or _card_has(folder, "configs:", "dataset_info:"):
        return found
    names = {path: os.path.basename(path) for path in found}
    if not any(map(_kind, names.values())):
        return found
    return [
        path
        for path, name in names.items()
        if _kind(name) or name in _NOT_DATA or name.lower().endswith(containers.COMPRESSED)
    ]


def is_saved(folder: str) -> bool:
    """Return whether `datasets` wrote a folder, by `save_to_disk`."""
    return any(os.path.exists(os.path.join(folder, file)) for file in _SAVED)


def _files(folder: str) -> Iterator[str]:
    """Yield the files of a folder that `datasets` would look at, as paths from it."""
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not _is_hidden(name))
        for file in sorted(files):
            if not _is_hidden(file):
                yield os.path.relpath(os.path.join(place, file), folder)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _kind(file: str) -> str | None:
    """The kind of a data file, by its name; None for a file that is not data."""
    kind = reading.extension(file) or _foreign(file)
    if kind == ".txt":
        is_data = file.split(".")[0].lower() not in _PAPERS
    else:
        is_data = file not in _NOT_DATA
    if not is_data:
        return None
    return ".jsonl" if kind == ".ndjson" else kind


def check_read(
    folder: str, names: Sequence[str] | None, files: Mapping[str, Sequence[str]]
) -> None:
    """Check that `datasets`, which sorts files into splits by their names, leaves out none.

    Args:
        folder: the folder.
        names: what `data_files` returned.
        files: {split: paths}, as `datasets` found them.

    Raises:
        ValueError: a file is left out; the message names the first.
    """
    read = {
        os.path.realpath(file): os.path.basename(file) for part in files.values() for file in part
    }
    left_out = [
        name for name in names or () if os.path.realpath(os.path.join(folder, name)) not in read
    ]
    if left_out:
        others = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        raise ValueError(
            f"data.source = '{folder}': of the data files in the folder `datasets` sorts some into "
            f"splits by their names (as {min(read.values())}) and leaves out {left_out[0]}"
            f"{others}; name one file, or give all of them names of one form."
        )


def _foreign(name: str) -> str | None:
    """The extension of a table whose kind cannot be read; None for other files."""
    return next((kind for kind in _FOREIGN if name.lower().endswith(kind)), None)


def _card_has(folder: str, *fields: str) -> bool:
    """Whether the head of a folder's README.md has one of these fields, as "configs:".

    With "configs:" it says which files make up the data set, with "dataset_info:" what they hold.
    """
    try:
        lines = Path(folder, "README.md").read_text(encoding="utf8", errors="replace").splitlines()
    except OSError:
        return False
    if lines[:1] != ["---"]:
        return False
    head = itertools.takewhile(lambda line: line != "---", lines[1:])
    return any(line.startswith(fields) for line in head)
