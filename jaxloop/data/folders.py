"""The data files of a folder: which there are, and whether all of them are read."""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxloop.data import reading

# What lies beside data files and is none: papers that are .txt, and what `datasets` writes about a
# folder.
_PAPERS = {
    "readme",
    "license",
    "licence",
    "notice",
    "copying",
    "changelog",
    "changes",
    "citation",
    "authors",
    "requirements",
    "sources",
}
_NOT_DATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "dataset_dict.json",
    "package.json",
    "croissant.json",
}
_FOREIGN = (".xlsx", ".xls", ".ods", ".feather", ".orc", ".avro")


def data_files(folder: str) -> list[str] | None:
    """The data files of a folder, as paths from it. None where the folder's card lists its files:
    then it decides what is read.

    Raises ValueError where they are of several kinds, of which `datasets` would read the most
    frequent.
    """
    if _lists_files(folder):
        return None
    kinds: dict[str, list[str]] = {}
    for place, inner, files in os.walk(folder):
        inner[:] = sorted(n for n in inner if not n.startswith((".", "__")))
        for file in sorted(files):
            kind, stem = reading.extension(file) or _foreign(file), file.split(".")[0].lower()
            aside = stem in _PAPERS if kind == ".txt" else file in _NOT_DATA
            if kind and not aside and not file.startswith((".", "__")):
                kinds.setdefault({".ndjson": ".jsonl"}.get(kind, kind), []).append(
                    os.path.relpath(os.path.join(place, file), folder)
                )
    if len(kinds) > 1:
        found = " and ".join(
            f"{len(files)} {kind} (as {files[0]})" for kind, files in sorted(kinds.items())
        )
        raise ValueError(
            f"data.source = '{folder}': the folder holds files of several kinds, {found}; name "
            "one file, or a folder of one kind."
        )
    return [name for found in kinds.values() for name in found]


def check_read(
    folder: str, names: Sequence[str] | None, files: Mapping[str, Sequence[str]]
) -> None:
    """Raises ValueError where `datasets`, which sorts files into splits by their names, leaves out
    one of the data files of a folder.

    names: of `data_files`; files: split -> paths, as `datasets` found them.
    """
    read = {
        os.path.realpath(file): os.path.basename(file) for part in files.values() for file in part
    }
    if left := [
        name for name in names or () if os.path.realpath(os.path.join(folder, name)) not in read
    ]:
        others = f" and {len(left) - 1} more" if len(left) > 1 else ""
        known = (
            "of the data files in the folder `datasets` sorts some into splits by their names "
            f"(as {min(read.values())}) and leaves out {left[0]}{others}"
        )
        raise ValueError(
            f"data.source = '{folder}': {known}; name one file, or give all of them names of one "
            "form."
        )


def _foreign(name):
    """The ending of a table of a kind that is not read; None for other files."""
    return next((kind for kind in _FOREIGN if name.lower().endswith(kind)), None)


def _lists_files(folder):
    """Whether the folder's README.md says in its head, as on the hub, which files make up the data
    set.
    """
    try:
        lines = Path(folder, "README.md").read_text(encoding="utf8", errors="replace").splitlines()
    except OSError:
        return False
    return lines[:1] == ["---"] and any(
        line.startswith("configs:")
        for line in itertools.takewhile(lambda line: line != "---", lines[1:])
    )
