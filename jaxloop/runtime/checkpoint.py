"""Finished generations: a directory each, sealed by a SHA-256 manifest over all of its files,
verified before any of them is used.

`checkpoints/unfinished-generation=0003/` is filled first, in parts that are sealed one by one, so
that a killed run keeps the parts that it had finished. The manifest of the whole is written last
and the directory renamed to `checkpoints/generation=0003/`: from then on it counts.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from jaxloop.runtime.atomic_io import inside, sha256, sync, write_atomic
from jaxloop.runtime.environment import code, version
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.workdir import delete

DIRECTORY, MANIFEST, PARTS = "checkpoints", "manifest.json", "parts"
_STUDY = "study.json"
_FINISHED = re.compile(r"generation=(\d{4,})")
_LIBRARIES = ("jax", "jaxlib", "numpy", "flax", "optax", "transformers", "tokenizers", "jaxloop")


class Damaged(ValueError):
    """A manifest, or a file that it lists, is missing or not what it was; the message names the
    file.
    """


def finished(generation: int) -> str:
    """Directory of a finished generation, relative to the run directory."""
    return f"{DIRECTORY}/generation={generation:04d}"


def unfinished(generation: int) -> str:
    """Directory in which a generation is being made, relative to the run directory."""
    return f"{DIRECTORY}/unfinished-generation={generation:04d}"


def seal(
    root: Path,
    manifest: str,
    files: Iterable[str],
    about: Mapping | None = None,
    *,
    moved: Mapping[str, str] | None = None,
    durable: bool = False,
) -> None:
    """Writes a manifest: size and SHA-256 of each file (paths relative to the run directory), and
    `about` (JSON values).

    moved: {old prefix: new prefix} of paths that are to be renamed right after. durable: all of
    them survive a power cut, the manifest last.
    """
    listed, directories = {}, set()
    for name in sorted(files):
        path = inside(root, name)
        for old, new in (moved or {}).items():
            name = new + name[len(old) :] if name.startswith(old + "/") else name
        listed[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if durable:
            sync(path)
            directories.add(path.parent)
    for directory in sorted(directories):
        sync(directory)
    inside(root, manifest).parent.mkdir(parents=True, exist_ok=True)
    _write_manifest(
        root, manifest, {"format": 1, "about": dict(about or {}), "files": listed}, durable
    )


def _write_manifest(root, manifest, content, durable=True):
    write_atomic(
        inside(root, manifest),
        _with_checksum(json.dumps(content, indent=1)).encode(),
        durable=durable,
    )


def _with_checksum(body):
    return f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n"


def verify(root: Path, manifest: str) -> dict:
    """The manifest {"about", "files"}, after every file in it has been read and compared. Raises
    Damaged at the first that differs.
    """
    content = read_manifest(root, manifest)
    for name, entry in content["files"].items():
        try:
            path = inside(root, name)
            size = path.stat().st_size
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None
        except ValueError as error:
            raise Damaged(str(error)) from None
        if size != entry["bytes"]:
            raise Damaged(f"{name} has {size} bytes instead of {entry['bytes']}")
        if sha256(path) != entry["sha256"]:
            raise Damaged(f"{name} fails its SHA-256 checksum")
    return content


def read_manifest(root: Path, manifest: str) -> dict:
    """The manifest alone, its own checksum compared. Raises Damaged."""
    try:
        text = inside(root, manifest).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Damaged(f"{manifest} is missing") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise Damaged(f"{manifest} cannot be read ({error})") from None
    body = text.removesuffix("\n").rpartition("\n")[0]
    if text != _with_checksum(body):
        raise Damaged(f"{manifest} fails its own checksum")
    return json.loads(body)


def commit(root: Path, generation: int, files: Iterable[str], about: Mapping | None = None) -> None:
    """Makes a generation count: seals `files` (those in `unfinished(generation)` and those
    elsewhere in the run directory) and renames.
    """
    source, target = unfinished(generation), finished(generation)
    seal(root, f"{source}/{MANIFEST}", files, about, moved={source: target}, durable=True)
    delete(root, target)
    os.rename(inside(root, source), inside(root, target))
    sync(inside(root, DIRECTORY))
    _tidy(root, generation, read_manifest(root, f"{target}/{MANIFEST}")["files"])


class Found(NamedTuple):
    """State of the generations of a run directory. `last`: the last one up to which everything
    verifies (None: nothing was ever finished), `manifests`: of generations 0..last, `lost`: later
    ones that were finished once, `empty`: directories without content, `fault`: why.
    """

    last: int | None
    manifests: list[dict]
    lost: list[int]
    empty: list[int]
    fault: str | None


def find(root: Path) -> Found:
    """Verifies generation after generation and changes nothing. Raises Damaged where generations
    were finished but not even generation 0 can be used: a run never starts over silently.
    """
    place = Path(root) / DIRECTORY
    names = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    there = {int(m[1]) for m in map(_FINISHED.fullmatch, names) if m}
    manifests: list[dict] = []
    fault = None
    while len(manifests) in there and fault is None:
        try:
            manifests.append(verify(root, f"{finished(len(manifests))}/{MANIFEST}"))
        except Damaged as error:
            fault = str(error)
    later = sorted(g for g in there if g >= len(manifests))
    lost = [g for g in later if any((Path(root) / finished(g)).iterdir())]
    if lost and fault is None:
        fault = f"{finished(len(manifests))} is missing"
    if not manifests and (lost or (Path(root) / "ledger.parquet").exists()):
        raise Damaged(
            f"workdir={root}: generation 0 cannot be used ({fault or 'its checkpoint is gone'}), "
            "so nothing here can be continued; "
            "restore its files, or give a new workdir"
        )
    return Found(
        len(manifests) - 1 if manifests else None,
        manifests,
        lost,
        [g for g in later if g not in lost],
        fault,
    )


def settle(root: Path, found: Found) -> None:
    """Prepares a run directory for going on: generations that cannot be used are set aside as
    `damaged-generation=…`, with one warning that says what is lost; empty ones are named and
    removed, and so are unfinished ones other than the next; what a run that was killed right after
    a commit had no time to remove is removed.
    """
    for generation in found.empty:
        LOGGER.info("ignored the empty directory %s", finished(generation))
        delete(root, finished(generation))
    following = 0 if found.last is None else found.last + 1
    if found.lost:
        lost = found.lost
        shown = (
            f"generation {lost[0]}" if len(lost) == 1 else f"generations {lost[0]} to {lost[-1]}"
        )
        LOGGER.warning(
            "%s; %s will be computed again, going on after generation %d",
            found.fault,
            shown,
            found.last,
        )
        for generation in lost:
            aside = f"{DIRECTORY}/damaged-generation={generation:04d}"
            delete(root, aside)
            os.rename(inside(root, finished(generation)), inside(root, aside))
        sync(Path(root) / DIRECTORY)
    for path in sorted((Path(root) / DIRECTORY).glob("unfinished-generation=*")):
        if path.name != Path(unfinished(following)).name:
            LOGGER.info("removed %s, which is not the generation that comes next", path.name)
            delete(root, f"{DIRECTORY}/{path.name}")
    for generation, content in enumerate(found.manifests):
        _tidy(root, generation, content["files"])


def _tidy(root, generation, listed):
    """Removes what is left of the making of a finished generation: files that its manifest does not
    list, and a damaged copy.
    """
    place = finished(generation)
    delete(root, f"{place}/{PARTS}")
    delete(root, f"{DIRECTORY}/damaged-generation={generation:04d}")
    for path in sorted((Path(root) / place).rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_dir() and path.name != MANIFEST and name not in listed:
            delete(root, name)


def name_parts(root: Path, generation: int, about: Mapping) -> None:
    """Notes beside the parts of a generation that begins which study makes them, so that no other
    one takes them for its own.
    """
    place = f"{unfinished(generation)}/{PARTS}"
    (Path(root) / place).mkdir(parents=True, exist_ok=True)
    if not (Path(root) / place / _STUDY).exists():
        seal(root, f"{place}/{_STUDY}", [], about)


def study_of_parts(root: Path, generation: int) -> dict | None:
    """What `name_parts` noted of an unfinished generation; None where there is none, or nothing
    noted that is whole.
    """
    try:
        return verify(root, f"{unfinished(generation)}/{PARTS}/{_STUDY}")["about"]
    except Damaged:
        return None


def keep_parts(root: Path, generation: int, *, clean: bool = True) -> dict[str, dict]:
    """{part: manifest} of the sealed parts of an unfinished generation that verify. The rest is
    named and, with `clean`, deleted.
    """
    place = Path(root) / unfinished(generation)
    if not place.is_dir():
        return {}
    kept, files = {}, set()
    for path in sorted((place / PARTS).glob("*.json")):
        try:
            kept[path.stem] = verify(root, f"{unfinished(generation)}/{PARTS}/{path.name}")
            files |= {str(path.relative_to(root)), *kept[path.stem]["files"]}
        except Damaged as error:
            LOGGER.info(
                "part %s of unfinished generation %d is not used: %s", path.stem, generation, error
            )
    for path in sorted(place.rglob("*")) if clean else ():
        name = str(path.relative_to(root))
        if not path.is_dir() and name not in files:
            delete(root, name)
    return kept


def add(root: Path, generation: int, files: Iterable[str]) -> None:
    """Takes new files into a finished generation. They are on the disk already; they count as soon
    as the manifest lists them.
    """
    manifest = f"{finished(generation)}/{MANIFEST}"
    content = read_manifest(root, manifest)
    for name in files:
        path = inside(root, name)
        sync(path)
        sync(path.parent)
        content["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    _write_manifest(root, manifest, content)


def forget(root: Path, generation: int, files: Iterable[str]) -> None:
    """Takes files (adapters that no later generation needs) out of a finished generation, manifest
    first, so that it stays whole.
    """
    manifest = f"{finished(generation)}/{MANIFEST}"
    content = read_manifest(root, manifest)
    gone = set(files) & set(content["files"])
    if not gone:
        return
    content["files"] = {name: entry for name, entry in content["files"].items() if name not in gone}
    _write_manifest(root, manifest, content)
    for name in sorted(gone):
        delete(root, name)


def environment() -> dict[str, str]:
    """Versions and hardware that can change a result, for the manifest and the ledger."""
    device = jax.devices()[0]
    found = {
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
    }
    return found | {name: version(name) for name in _LIBRARIES} | {"code": code()[:16]}


def warn_of_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Warns, once, of libraries or hardware that differ from those of the generations before;
    returns the differences.
    """
    changed = [
        f"{k} {before.get(k, 'absent')} -> {now.get(k, 'absent')}"
        for k in sorted({*before, *now})
        if before.get(k) != now.get(k)
    ]
    if changed:
        LOGGER.warning(
            "versions or hardware differ from the generations before (%s); results may differ in "
            "rounding",
            ", ".join(changed),
        )
    return changed
