"""The directory of a run: one process at a time, one config for good, nothing deleted that a run
did not make.
"""

import contextlib
import datetime
import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import filelock

from jaxloop.runtime.atomic_io import (
    TEMPORARY,
    existing_parent,
    remove,
    require_space,
    write_atomic,
)
from jaxloop.runtime.devices import barrier, processes
from jaxloop.runtime.log import HIDDEN, LOGGER, is_secret_name, redact, run_log

MARKER, LOCK, HOLDER, CONFIG, LOG = (
    ".jaxloop",
    ".jaxloop.lock",
    ".jaxloop.holder",
    "config.json",
    "run.log",
)
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "beegfs", "9p")


@dataclass(frozen=True)
class Workdir:
    """An open run directory. `config` is what config.json holds; `resumed` says that it was there
    before.
    """

    path: Path
    config: dict
    resumed: bool


@contextlib.contextmanager
def open_workdir(
    path: str | Path,
    config: Mapping,
    *,
    may_change: Sequence[str] = (),
    may_raise: Sequence[str] = ("chain.generations",),
    needs: int = 0,
    console: bool = True,
    identity: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Workdir]:
    """Opens (or makes) a run directory, holds its lock and writes its log for as long as the
    context lasts.

    config: nested dict of JSON values; secrets in it are never written. may_change: dotted fields
    that a later run may set otherwise; may_raise: number fields that a later run may raise. needs:
    bytes that the run will write at most. identity: {model: hash of its files}, kept in config.json
    under that name; a model that the run before had must be the same. Raises ValueError, one
    sentence, before anything is written, where the directory is not one of ours, cannot be written,
    is in use by another process (named), or was made with another config (the difference is shown);
    DiskFull where `needs` does not fit.
    """
    if processes()[0] > 0:
        # The first process of a cluster holds the directory for all of them.
        barrier("workdir")
        yield Workdir(
            Path(path).absolute(), stored_form(config), (Path(path) / "ledger.parquet").exists()
        )
        return
    path = _checked(Path(path))
    if needs:
        require_space(path, needs, "this run")
    wanted = _with_identity(path, stored_form(config), identity)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"workdir={path}: is in use by {_holder(path)}") from None
    except OSError as error:
        raise ValueError(
            f"workdir={path}: cannot be written ({error.strerror or error})"
        ) from error
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        before = _read_config(path, wanted, may_change, may_raise)
        try:
            (path / MARKER).touch()
            stack.enter_context(run_log(path / LOG, console=console))
        except OSError as error:
            raise ValueError(
                f"workdir={path}: cannot be written ({error.strerror or error})"
            ) from error
        _take(path)
        stack.callback((path / HOLDER).unlink, missing_ok=True)
        if before != wanted:
            write_atomic(path / CONFIG, json.dumps(wanted, indent=2).encode())
            if before == {}:
                LOGGER.warning(
                    "%s was damaged; it is written again from this run's config, which has the "
                    "recorded checksum",
                    path / CONFIG,
                )
            elif before is not None:
                LOGGER.info(
                    "config changed where it may: %s",
                    "; ".join(differences(before, wanted).values()),
                )
        write_atomic(
            path / MARKER, json.dumps({"format": 1, "config_sha256": _digest(wanted)}).encode()
        )
        clean_temporary(path)
        if (kind := _filesystem(path)) in _NETWORK:
            LOGGER.warning(
                "workdir is on a network file system (%s): its lock may not hold between machines",
                kind,
            )
        barrier("workdir")
        yield Workdir(path, wanted, before is not None)


def _with_identity(path: Path, wanted: dict, identity: Mapping[str, str]) -> dict:
    """The config with the models of the run before and of this one. ValueError where one of them
    has other files by now.
    """
    try:
        before = json.loads((path / CONFIG).read_bytes()).get("identity") or {}
    except (OSError, ValueError, AttributeError):
        before = {}
    for name, value in identity.items():
        if before.get(name, value) != value:
            old, new = (text.split()[0][:12] for text in (before[name], value))
            raise ValueError(
                f"workdir={path}: was made with other files of {name} (SHA-256 {old}, now "
                f"{new}); restore them, or use another workdir"
            )
    known = {**before, **identity}
    return wanted | ({"identity": known} if known else {})


def is_workdir(path: Path) -> bool:
    """Whether the directory was made by a run."""
    return (Path(path) / MARKER).is_file()


def delete(path: Path, *parts: str) -> None:
    """Deletes `path/parts`; ValueError unless `path` is a run directory and the target lies inside
    it.
    """
    if not is_workdir(path):
        raise ValueError(f"workdir={path}: has no {MARKER} file, so nothing in it is deleted")
    if parts and parts[0] in (MARKER, LOCK, CONFIG):
        raise ValueError(
            f"path {parts[0]!r}: belongs to the run directory itself and is not deleted"
        )
    remove(path, *parts)


def clean_temporary(path: Path) -> list[str]:
    """Removes, and names in the log, what a killed run left half-written; returns the names,
    relative to the run directory.
    """
    left = []
    for directory, names, files in os.walk(path, followlinks=False):
        found = [n for n in names + files if n.startswith(TEMPORARY)]
        left += [str((Path(directory) / n).relative_to(path)) for n in found]
        names[:] = [n for n in names if not n.startswith(TEMPORARY)]
    for name in sorted(left):
        delete(path, name)
        LOGGER.info("removed the unfinished file %s", name)
    return sorted(left)


def stored_form(config: Mapping) -> dict:
    """The config as config.json gives it back, with secrets hidden."""

    def hide(value, name=""):
        if isinstance(value, Mapping):
            return {str(k): hide(v, str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [hide(v, name) for v in value]
        if isinstance(value, str):
            return HIDDEN if value and is_secret_name(name) else redact(value)
        return value

    return json.loads(json.dumps(hide(config)))


def differences(old: Mapping, new: Mapping, prefix: str = "") -> dict[str, str]:
    """{dotted field: "field old -> new"} for every field whose value differs; a field that one side
    lacks is "(absent)".
    """
    out = {}
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out |= differences(a, b, f"{prefix}{name}.")
        elif json.dumps(a) != json.dumps(b):
            out[prefix + name] = f"{prefix}{name} {_short(a)} -> {_short(b)}"
    return out


def _short(value):
    text = value if value == "(absent)" else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(path):
    if path.is_symlink():
        raise ValueError(
            f"workdir={path}: is a symbolic link; give the directory that it points to"
        )
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise ValueError(f"workdir={path}: is a file, must be a directory")
    if path.is_dir() and not is_workdir(path) and {entry.name for entry in path.iterdir()} - {LOCK}:
        raise ValueError(
            f"workdir={path}: is not empty and was not made by jaxloop; give a new directory"
        )
    if not os.access(existing_parent(path), os.W_OK | os.X_OK):
        raise ValueError(f"workdir={path}: cannot be written (permission denied)")
    return path


def _read_config(path, wanted, may_change, may_raise):
    """The stored config, None where there is none, {} where it must be written again; refuses one
    that differs where it may not.
    """
    try:
        stored = json.loads((path / CONFIG).read_bytes())
        if not isinstance(stored, dict):
            raise ValueError("not an object")
    except FileNotFoundError:
        if not any((path / "checkpoints").glob("*")):
            return None
        stored = None
    except ValueError:
        stored = None
    if stored is not None:
        # Models are compared by now; a run from before they were kept has none.
        bare = [{k: v for k, v in config.items() if k != "identity"} for config in (stored, wanted)]
        found = {
            field: text
            for field, text in differences(*bare).items()
            if not _allowed(field, stored, wanted, may_change, may_raise)
        }
        if not found:
            return stored
    if _marked_digest(path) == _digest(wanted):
        return {}
    if stored is None:
        raise ValueError(
            f"workdir={path}: its {CONFIG} is missing or damaged and this run's config is not "
            "the one recorded; restore the file"
        )
    shown = "; ".join(list(found.values())[:5]) + (
        f"; and {len(found) - 5} more" if len(found) > 5 else ""
    )
    raise ValueError(
        f"workdir={path}: was made with another config ({shown}); use another workdir, or the "
        "old values"
    )


def _allowed(field, stored, wanted, may_change, may_raise):
    if any(field == name or field.startswith(name + ".") for name in may_change):
        return True
    if field not in may_raise:
        return False
    old, new = _at(stored, field), _at(wanted, field)
    return (
        all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
        and new >= old
    )


def _at(config, field):
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _digest(config):
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _marked_digest(path):
    try:
        return json.loads((path / MARKER).read_bytes()).get("config_sha256")
    except (OSError, ValueError, AttributeError):
        return None


def _take(path):
    """Writes who holds the lock; says so where the holder before did not leave it tidily."""
    if (path / HOLDER).exists():
        LOGGER.warning(
            "the last run in this workdir did not end properly (%s); its lock is taken over",
            _holder(path),
        )
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    write_atomic(
        path / HOLDER,
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": now}).encode(),
    )


def _holder(path):
    try:
        who = json.loads((path / HOLDER).read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _filesystem(path):
    """Type of the file system (Linux; "" elsewhere)."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
            _, mount, name, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if len(mount) >= len(best) and Path(path).is_relative_to(mount):
                best, kind = mount, name
    return kind
