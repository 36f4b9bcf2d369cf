"""The directory of a run: one process at a time, one config, and no file of others deleted."""

import contextlib
import datetime
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock

import jaxloop
from jaxloop.runtime.atomic_io import (
    TEMPORARY,
    bytes_in,
    existing_parent,
    remove,
    require_space,
    write_atomic,
)
from jaxloop.runtime.cluster import barrier, processes
from jaxloop.runtime.log import LOGGER, REDACTED, is_secret_name, redact, run_log

MARKER, LOCK, HOLDER, CONFIG, LOG = (
    ".jaxloop",
    ".jaxloop.lock",
    ".jaxloop.holder",
    "config.json",
    "run.log",
)
# Of a run directory. A later number means that an earlier version cannot read it.
FORMAT = 1
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "beegfs", "9p")


@dataclass(frozen=True)
class Workdir:
    """An open run directory.

    Attributes:
        path: its absolute path.
        config: what config.json holds.
        resumed: whether an earlier run has used the directory.
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
    update: Callable[[dict], dict] = dict,
    meet: Callable[[str, Path], None] = lambda name, root: barrier(name),
) -> Iterator[Workdir]:
    """Open or make a run directory; hold its lock and write its log while the context lasts.

    Args:
        config: nested dict of JSON values; secrets in it are never written.
        may_change: dotted fields that a later run may set otherwise.
        may_raise: dotted number fields that a later run may raise.
        needs: bytes that the run will leave at most, with what it has left already.
        console: whether the log goes to standard error too.
        identity: {model: hash of its files}, kept in config.json under "identity"; a model that an
            earlier run had must be the same.
        update: gives the config.json of an earlier version its current field names.
        meet: meet(name, path) waits for the other processes of a run.

    Raises:
        ValueError: the directory is not a run's, cannot be written, is in use by another process,
            which is named, or was made with another config, whose differences are named; nothing
            has been written then.
        DiskFull: `needs` does not fit.
    """
    if processes()[0] > 0:
        # The first process of a cluster holds the directory for all of them.
        meet("workdir", Path(path))
        yield Workdir(
            Path(path).absolute(), stored_form(config), (Path(path) / "ledger.parquet").exists()
        )
        return
    path = _checked(Path(path))
    if needs:
        # What a run that is resumed has written is part of what it needs.
        require_space(path, needs - bytes_in(path), "this run")
    wanted = _with_identity(path, stored_form(config), identity)
    lock = _acquire_lock(path)
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        stored = _read_config(path, wanted, may_change, may_raise, update)
        try:
            (path / MARKER).touch()
            stack.enter_context(run_log(path / LOG, console=console))
        except OSError as error:
            raise _not_writable(path, error) from error
        _write_holder(path)
        stack.callback((path / HOLDER).unlink, missing_ok=True)
        if stored != wanted:
            write_atomic(path / CONFIG, json.dumps(wanted, indent=2).encode())
            _log_config_change(path, update(stored) if stored else stored, wanted)
        marker = json.dumps(
            {"format": FORMAT, "jaxloop": jaxloop.__version__, "config_sha256": _digest(wanted)}
        )
        write_atomic(path / MARKER, marker.encode())
        clean_temporary(path)
        if (kind := _filesystem(path)) in _NETWORK:
            LOGGER.warning(
                "workdir is on a network file system (%s): its lock may not hold between machines",
                kind,
            )
        meet("workdir", path)
        yield Workdir(path, wanted, stored is not None)


def _acquire_lock(path: Path) -> filelock.BaseFileLock:
    """Make the directory and take its lock, or refuse."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise ValueError(f"workdir={path}: is in use by {_holder(path)}") from None
    except OSError as error:
        raise _not_writable(path, error) from error
    return lock


def is_open(path: Path) -> bool:
    """Say whether a run of this machine has the directory open."""
    if not (path / LOCK).exists():
        return False
    try:
        with filelock.FileLock(path / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:
        return False


def _not_writable(path: Path, error: OSError) -> ValueError:
    return ValueError(f"workdir={path}: cannot be written ({error.strerror or error})")


def _log_config_change(path: Path, before: dict | None, wanted: dict) -> None:
    """Log why config.json is written: `before` as `_read_config` returns it, in current names."""
    if before == {}:
        LOGGER.warning(
            "%s was damaged; it is written again from this run's config, which has the recorded "
            "checksum",
            path / CONFIG,
        )
    elif before is not None and before != wanted:
        LOGGER.info(
            "config changed where it may: %s", "; ".join(differences(before, wanted).values())
        )


def _with_identity(path: Path, wanted: dict, identity: Mapping[str, str]) -> dict:
    """The config with the file hashes of the earlier run's models and of this run's.

    Raises:
        ValueError: a model's files have changed since the earlier run.
    """
    try:
        before = json.loads((path / CONFIG).read_bytes()).get("identity") or {}
    except (OSError, ValueError, AttributeError):
        before = {}
    for name, value in identity.items():
        # A commit may follow the hash: a later one can have the same files.
        old, new = (text.split()[0] for text in (before.get(name, value), value))
        if old != new:
            raise ValueError(
                f"workdir={path}: was made with other files of {name} (SHA-256 {old[:12]}, now "
                f"{new[:12]}); restore them, or use another workdir"
            )
    models = {**before, **identity}
    return wanted | ({"identity": models} if models else {})


def is_workdir(path: Path) -> bool:
    """Say whether a run made the directory."""
    return (Path(path) / MARKER).is_file()


def check_format(path: Path) -> None:
    """Check that this version can read a run directory.

    Raises:
        ValueError: a later version wrote it, in another format.
    """
    marker = _marker(path)
    if (found := marker.get("format", FORMAT)) != FORMAT:
        maker = f" ({marker['jaxloop']})" if "jaxloop" in marker else ""
        raise ValueError(
            f"workdir={path}: has format {found}, of a later version of jaxloop{maker}; this one "
            f"({jaxloop.__version__}) reads format {FORMAT}"
        )


def delete(path: Path, *parts: str) -> None:
    """Delete `path/parts`.

    Raises:
        ValueError: `path` is no run directory, or the target lies outside it.
    """
    if not is_workdir(path):
        raise ValueError(f"workdir={path}: has no {MARKER} file, so nothing in it is deleted")
    if parts and parts[0] in (MARKER, LOCK, CONFIG):
        raise ValueError(
            f"path {parts[0]!r}: belongs to the run directory itself and is not deleted"
        )
    remove(path, *parts)


def clean_temporary(path: Path) -> list[str]:
    """Remove what a killed run left half-written, and log it.

    Returns:
        The names, relative to the run directory.
    """
    unfinished = []
    for directory, folders, files in os.walk(path, followlinks=False):
        for name in (*folders, *files):
            if name.startswith(TEMPORARY):
                unfinished.append(str((Path(directory) / name).relative_to(path)))
        folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]
    for name in sorted(unfinished):
        delete(path, name)
        LOGGER.info("removed the unfinished file %s", name)
    return sorted(unfinished)


def stored_form(config: Mapping) -> dict:
    """Return the config as config.json gives it back, with secrets hidden."""

    def hide(value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            return {str(k): hide(v, str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [hide(v, name) for v in value]
        if isinstance(value, str):
            return REDACTED if value and is_secret_name(name) else redact(value)
        return value

    return json.loads(json.dumps(hide(config)))


def differences(old: Mapping, new: Mapping, prefix: str = "") -> dict[str, str]:
    """Return {dotted field: "field old -> new"} of every field whose value differs.

    A field that one side lacks is "(absent)" there.
    """
    out: dict[str, str] = {}
    for name in dict.fromkeys([*old, *new]):
        a, b = old.get(name, "(absent)"), new.get(name, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out |= differences(a, b, f"{prefix}{name}.")
        elif json.dumps(a) != json.dumps(b):
            out[prefix + name] = f"{prefix}{name} {_short(a)} -> {_short(b)}"
    return out


def _short(value: Any) -> str:
    text = value if value == "(absent)" else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _checked(path: Path) -> Path:
    """The absolute path of a directory that a run may write to."""
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
    check_format(path)
    if not os.access(existing_parent(path), os.W_OK | os.X_OK):
        raise ValueError(f"workdir={path}: cannot be written (permission denied)")
    return path


def _read_config(
    path: Path,
    wanted: dict,
    may_change: Sequence[str],
    may_raise: Sequence[str],
    update: Callable[[dict], dict],
) -> dict | None:
    """The stored config, None where there is none, {} where it must be written again.

    One that differs where it may not is refused.
    """
    changes: dict[str, str] = {}
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
        current = update(stored)
        changes = {
            field: text
            for field, text in differences(
                _without_identity(current), _without_identity(wanted)
            ).items()
            if not _may_differ(field, current, wanted, may_change, may_raise)
            and not _is_new_and_off(field, current, wanted)
        }
        if not changes:
            return stored
    if _marked_digest(path) == _digest(wanted):
        return {}
    if stored is None:
        raise ValueError(
            f"workdir={path}: its {CONFIG} is missing or damaged and this run's config is not "
            "the one recorded; restore the file"
        )
    shown = "; ".join(list(changes.values())[:5])
    if len(changes) > 5:
        shown += f"; and {len(changes) - 5} more"
    raise ValueError(
        f"workdir={path}: was made with another config ({shown}); use another workdir, or the "
        "old values"
    )


def _is_new_and_off(field: str, stored: dict, wanted: dict) -> bool:
    """Whether a later version added the field, and this run leaves it out."""
    above, _, name = field.rpartition(".")
    section = _at(stored, above) if above else stored
    return isinstance(section, Mapping) and name not in section and _at(wanted, field) is None


def _without_identity(config: dict) -> dict:
    """The config without the hashes of its models, which `_with_identity` has compared already."""
    return {name: value for name, value in config.items() if name != "identity"}


def _may_differ(
    field: str, stored: dict, wanted: dict, may_change: Sequence[str], may_raise: Sequence[str]
) -> bool:
    if any(field == name or field.startswith(name + ".") for name in may_change):
        return True
    if field not in may_raise:
        return False
    old, new = _at(stored, field), _at(wanted, field)
    return (
        all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
        and new >= old
    )


def _at(config: Any, field: str) -> Any:
    """The value at a dotted field, or None."""
    for name in field.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _digest(config: Mapping) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _marked_digest(path: Path) -> str | None:
    """The checksum of the config that the marker file holds."""
    return _marker(path).get("config_sha256")


def _marker(path: Path) -> dict[str, Any]:
    """What the marker file holds; nothing where it is empty or damaged."""
    try:
        content = json.loads((path / MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_holder(path: Path) -> None:
    """Write who holds the lock, and warn where the last holder did not end properly."""
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


def _holder(path: Path) -> str:
    try:
        who = json.loads((path / HOLDER).read_bytes())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _filesystem(path: Path) -> str:
    """Type of the file system on Linux, "" elsewhere."""
    best, kind = "", ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text(errors="replace").splitlines():
            _, mount, name, *_ = line.split(" ")
            mount = mount.replace("\\040", " ")
            if len(mount) >= len(best) and Path(path).is_relative_to(mount):
                best, kind = mount, name
    return kind
