"""Checkpoints of generations: a directory each, with a SHA-256 manifest over all of its files.

The directory is `checkpoints/unfinished-generation=0003/` at first. It is filled in parts with a
manifest each, so that a killed run keeps the parts that it had finished. The manifest of the whole
is written last, and the directory is renamed to `checkpoints/generation=0003/`: only then the
generation is finished. Manifests are verified before their files are used.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from jaxloop.runtime.atomic_io import inside, names_in, sha256, sync, write_atomic
from jaxloop.runtime.environment import source_hash, version
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.workdir import delete

DIRECTORY, MANIFEST, PARTS = "checkpoints", "manifest.json", "parts"
_STUDY = "study.json"
_FINISHED = re.compile(r"generation=(\d{4,})")
_LIBRARIES = ("jax", "jaxlib", "numpy", "flax", "optax", "transformers", "tokenizers", "jaxloop")


class CorruptCheckpointError(ValueError):
    """A manifest, or a file that it lists, is missing or has changed; the file is named."""


def finished(generation: int) -> str:
    """Return the directory of a finished generation, relative to the run directory."""
    return f"{DIRECTORY}/generation={generation:04d}"


def unfinished(generation: int) -> str:
    """Return the directory in which a generation is made, relative to the run directory."""
    return f"{DIRECTORY}/unfinished-generation={generation:04d}"


def write_manifest(
    root: Path,
    manifest: str,
    files: Iterable[str],
    about: Mapping | None = None,
    *,
    moved: Mapping[str, str] | None = None,
    elsewhere: Mapping[str, Mapping] | None = None,
    durable: bool = False,
) -> None:
    """Write a manifest: size and SHA-256 of each file, and `about`.

    Args:
        root: the run directory.
        manifest: path of the manifest, relative to `root`.
        files: paths relative to `root`.
        about: JSON values to keep with it.
        moved: {old prefix: new prefix} of paths that are renamed right after.
        elsewhere: {path: {"bytes", "sha256"}} of files that lie on another host's disk.
        durable: whether all files are flushed to the disk, the manifest last.
    """
    listed: dict[str, dict] = {}
    directories: set[Path] = set()
    for name in sorted(files):
        path, entry = inside(root, name), (elsewhere or {}).get(name)
        for old, new in (moved or {}).items():
            name = new + name[len(old) :] if name.startswith(old + "/") else name
        if entry is not None:
            listed[name] = dict(entry)
            continue
        listed[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        if durable:
            sync(path)
            directories.add(path.parent)
    for directory in sorted(directories):
        sync(directory)
    inside(root, manifest).parent.mkdir(parents=True, exist_ok=True)
    _store_manifest(
        root, manifest, {"format": 1, "about": dict(about or {}), "files": listed}, durable
    )


def _store_manifest(root: Path, manifest: str, content: dict, durable: bool = True) -> None:
    write_atomic(
        inside(root, manifest),
        _with_checksum(json.dumps(content, indent=1)).encode(),
        durable=durable,
    )


def _with_checksum(body: str) -> str:
    return f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n"


# Given the files of a manifest, returns those that lie on another host's disk.
Elsewhere = Callable[[Mapping[str, Mapping]], Container[str]]


def verify(root: Path, manifest: str, elsewhere: Elsewhere = lambda listed: ()) -> dict:
    """Return the manifest {"about", "files"} after comparing every file that it lists.

    Those that lie on another host's disk need not be here.

    Raises:
        CorruptCheckpointError: a file is missing or differs; the first one is named.
    """
    content = read_manifest(root, manifest)
    absent: Container[str] | None = None
    for name, entry in content["files"].items():
        try:
            path = inside(root, name)
            size = path.stat().st_size
        except FileNotFoundError:
            if absent is None:  # asked once: it looks at every file of the manifest
                absent = elsewhere(content["files"])
            if name in absent:
                continue
            raise CorruptCheckpointError(f"{name} is missing") from None
        except ValueError as error:
            raise CorruptCheckpointError(str(error)) from None
        if size != entry["bytes"]:
            raise CorruptCheckpointError(f"{name} has {size} bytes instead of {entry['bytes']}")
        if sha256(path) != entry["sha256"]:
            raise CorruptCheckpointError(f"{name} fails its SHA-256 checksum")
    return content


def read_manifest(root: Path, manifest: str) -> dict:
    """Return the manifest after comparing its own checksum alone.

    Raises:
        CorruptCheckpointError: it is missing or differs.
    """
    try:
        text = inside(root, manifest).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CorruptCheckpointError(f"{manifest} is missing") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise CorruptCheckpointError(f"{manifest} cannot be read ({error})") from None
    body = text.removesuffix("\n").rpartition("\n")[0]
    if text != _with_checksum(body):
        raise CorruptCheckpointError(f"{manifest} fails its own checksum")
    return json.loads(body)


def finalise(
    root: Path,
    generation: int,
    files: Iterable[str],
    about: Mapping | None = None,
    elsewhere: Mapping[str, Mapping] | None = None,
) -> None:
    """Finish a generation: write its manifest, then rename its directory.

    Args:
        root: the run directory.
        generation: its number.
        files: all files of the generation, relative to `root`; they lie in `unfinished(generation)`
            or elsewhere in the run directory, such as texts/.
        about: JSON values to keep in the manifest.
        elsewhere: as in `write_manifest`.
    """
    source, target = unfinished(generation), finished(generation)
    write_manifest(
        root,
        f"{source}/{MANIFEST}",
        files,
        about,
        moved={source: target},
        elsewhere=elsewhere,
        durable=True,
    )
    delete(root, target)
    os.rename(inside(root, source), inside(root, target))
    sync(inside(root, DIRECTORY))
    _tidy(root, generation, read_manifest(root, f"{target}/{MANIFEST}")["files"])


class CheckpointState(NamedTuple):
    """The generations of a run directory.

    Attributes:
        last: the last generation for which it and all earlier ones verify; None: none was finished.
        manifests: manifests of generations 0 to `last`.
        lost: later generations that had been finished but cannot be used.
        empty: later generations whose directory has no content.
        fault: what is wrong with the first generation that cannot be used, or None.
    """

    last: int | None
    manifests: list[dict]
    lost: list[int]
    empty: list[int]
    fault: str | None


def scan(root: Path, elsewhere: Elsewhere = lambda listed: ()) -> CheckpointState:
    """Find the last generation that a run can go on after, by verifying one after another.

    Nothing on the disk is changed. `elsewhere`: as in `verify`.

    Raises:
        CorruptCheckpointError: generations were finished, but not even generation 0 can be used: a
            run never starts over silently.
    """
    names = names_in(Path(root) / DIRECTORY)
    numbers = {int(m[1]) for m in map(_FINISHED.fullmatch, names) if m}
    manifests: list[dict] = []
    fault = None
    while len(manifests) in numbers and fault is None:
        try:
            manifests.append(verify(root, f"{finished(len(manifests))}/{MANIFEST}", elsewhere))
        except CorruptCheckpointError as error:
            fault = str(error)
    later = sorted(g for g in numbers if g >= len(manifests))
    lost = [g for g in later if names_in(Path(root) / finished(g))]
    if lost and fault is None:
        fault = f"{finished(len(manifests))} is missing"
    if not manifests and (lost or (Path(root) / "ledger.parquet").exists()):
        raise CorruptCheckpointError(
            f"workdir={root}: generation 0 cannot be used ({fault or 'its checkpoint is gone'}), "
            "so nothing here can be continued; "
            "restore its files, or give a new workdir"
        )
    return CheckpointState(
        len(manifests) - 1 if manifests else None,
        manifests,
        lost,
        [g for g in later if g not in lost],
        fault,
    )


def recover(root: Path, state: CheckpointState) -> None:
    """Prepare a run directory for going on after `state.last`.

    Generations that cannot be used are renamed to `damaged-generation=…`, with one warning that
    says what is lost. Empty ones are logged and removed, and so are unfinished ones other than the
    next, and what a run that was killed right after `finalise` had no time to remove.
    """
    for generation in state.empty:
        LOGGER.info("ignored the empty directory %s", finished(generation))
        delete(root, finished(generation))
    if state.lost:
        _set_aside(root, state)
    following = 0 if state.last is None else state.last + 1
    for path in sorted((Path(root) / DIRECTORY).glob("unfinished-generation=*")):
        if path.name != Path(unfinished(following)).name:
            LOGGER.info("removed %s, which is not the generation that comes next", path.name)
            delete(root, f"{DIRECTORY}/{path.name}")
    for generation, content in enumerate(state.manifests):
        _tidy(root, generation, content["files"])


def _set_aside(root: Path, state: CheckpointState) -> None:
    first, last = state.lost[0], state.lost[-1]
    LOGGER.warning(
        "%s; %s will be computed again, going on after generation %d",
        state.fault,
        f"generation {first}" if first == last else f"generations {first} to {last}",
        state.last,
    )
    for generation in state.lost:
        aside = f"{DIRECTORY}/damaged-generation={generation:04d}"
        delete(root, aside)
        os.rename(inside(root, finished(generation)), inside(root, aside))
    sync(Path(root) / DIRECTORY)


def _tidy(root: Path, generation: int, listed: Mapping[str, dict]) -> None:
    """Remove what a finished generation does not need any more.

    That is its parts, files that its manifest does not list, and a damaged earlier copy.
    """
    place = finished(generation)
    delete(root, f"{place}/{PARTS}")
    delete(root, f"{DIRECTORY}/damaged-generation={generation:04d}")
    for path in sorted((Path(root) / place).rglob("*")):
        name = str(path.relative_to(root))
        if not path.is_dir() and path.name != MANIFEST and name not in listed:
            delete(root, name)


def write_run_info(root: Path, generation: int, about: Mapping) -> None:
    """Write which study makes a generation, next to its parts and before the first of them.

    Another study that finds the parts is then refused.
    """
    place = f"{unfinished(generation)}/{PARTS}"
    (Path(root) / place).mkdir(parents=True, exist_ok=True)
    if not (Path(root) / place / _STUDY).exists():
        write_manifest(root, f"{place}/{_STUDY}", [], about)


def read_run_info(root: Path, generation: int) -> dict | None:
    """Return what `write_run_info` wrote for an unfinished generation; None if there is none."""
    try:
        return verify(root, f"{unfinished(generation)}/{PARTS}/{_STUDY}")["about"]
    except CorruptCheckpointError:
        return None


def verified_parts(
    root: Path,
    generation: int,
    *,
    clean: bool = True,
    elsewhere: Elsewhere = lambda listed: (),
) -> dict[str, dict]:
    """Return {part: manifest} of the parts of an unfinished generation that verify.

    The other parts are logged and, with `clean`, deleted. `elsewhere`: as in `verify`.
    """
    place = Path(root) / unfinished(generation)
    if not place.is_dir():
        return {}
    verified: dict[str, dict] = {}
    files: set[str] = set()
    for path in sorted((place / PARTS).glob("*.json")):
        try:
            manifest = f"{unfinished(generation)}/{PARTS}/{path.name}"
            verified[path.stem] = verify(root, manifest, elsewhere)
            files |= {str(path.relative_to(root)), *verified[path.stem]["files"]}
        except CorruptCheckpointError as error:
            LOGGER.info(
                "part %s of unfinished generation %d is not used: %s", path.stem, generation, error
            )
    for path in sorted(place.rglob("*")) if clean else ():
        name = str(path.relative_to(root))
        if not path.is_dir() and name not in files:
            delete(root, name)
    return verified


def add_files(root: Path, generation: int, files: Iterable[str]) -> None:
    """List new files, which are on the disk already, in a finished generation's manifest."""
    manifest = f"{finished(generation)}/{MANIFEST}"
    content = read_manifest(root, manifest)
    for name in files:
        path = inside(root, name)
        sync(path)
        sync(path.parent)
        content["files"][name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    _store_manifest(root, manifest, content)


def remove_files(root: Path, generation: int, files: Iterable[str]) -> None:
    """Remove files, such as adapters that no later generation needs, from a finished generation.

    The manifest is written first, so that the generation stays whole.
    """
    manifest = f"{finished(generation)}/{MANIFEST}"
    content = read_manifest(root, manifest)
    removed = set(files) & set(content["files"])
    if not removed:
        return
    content["files"] = {
        name: entry for name, entry in content["files"].items() if name not in removed
    }
    _store_manifest(root, manifest, content)
    for name in sorted(removed):
        delete(root, name)


def environment() -> dict[str, str]:
    """Return the versions and hardware that can change a result, for manifest and ledger."""
    device = jax.devices()[0]
    machine = {
        "python": platform.python_version(),
        "platform": device.platform,
        "device": device.device_kind,
    }
    libraries = {name: version(name) for name in _LIBRARIES}
    return {**machine, **libraries, "code": source_hash()[:16]}


def warn_of_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Log one warning of libraries or hardware that differ from those of earlier generations.

    Returns:
        The differences, "name old -> new".
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
