"""A run directory kept in an object store, for hosts without a common disk.

Every host works in a local copy of the run directory. `sync` makes the copies equal where the
processes of a run wait for each other anyway (`devices.barrier`), and puts into the store what a
machine that has nothing needs to go on:

    blobs/SHA-256        content of files, each content once: a renamed file is not sent again
    states/SHA-256.json  {path: [size, SHA-256]} of all files of the run at one moment
    head.json            which state is the newest, and the one before; written last
    sync/N/K.json        what process K changed before meeting number N
    lease.json           which run holds the address, and until when

Objects are put whole and read by name: no listing, no rename. What is read is compared with its
SHA-256; where the newest state is damaged, the one before is used.
"""

import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxloop.runtime import checkpoint, lease, object_store
from jaxloop.runtime.atomic_io import TEMPORARY, cache_folder, inside, write_atomic
from jaxloop.runtime.devices import barrier, initialise_distributed, processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.object_store import Store, open_store
from jaxloop.runtime.workdir import HOLDER, LOCK, MARKER, is_workdir

# {path in the run directory: (size, SHA-256)}
State = dict[str, tuple[int, str]]

RUN, INDEX = "run", "mirror.json"
HEAD = "head.json"
# How often a run of one process looks for a finished generation, and sends its log and report.
LOOK_SECONDS, SEND_SECONDS = 2.0, 60.0
THREADS = 8
_LOCAL = {LOCK, HOLDER}


@dataclass(frozen=True)
class Mirror:
    """A local copy of a run directory and the store that it is a copy of.

    Attributes:
        store: the store.
        folder: local folder that holds the copy (`root`) and what is known of the store.
    """

    store: Store
    folder: Path

    @property
    def root(self) -> Path:
        """The local run directory."""
        return self.folder / RUN


@dataclass
class _Index:
    """What a mirror knows, kept in a file between calls.

    Attributes:
        meeting: number of the last meeting of the processes.
        state: the state of the last meeting.
        head: name of the newest state in the store, and of the one before.
        hashes: {path: [size, time of change, SHA-256]} of local files.
    """

    address: str
    meeting: int = 0
    state: State = dataclasses.field(default_factory=dict)
    head: list[str] = dataclasses.field(default_factory=list)
    hashes: dict[str, list[Any]] = dataclasses.field(default_factory=dict)


@contextmanager
def mirrored(address: str) -> Iterator[Path]:
    """Context that gives the local copy of the run directory at an address.

    The copy is restored first. It is sent to the store when a generation is finished, at every
    meeting of several processes, and at the end, also after an error or a signal.

    Raises:
        ValueError: the store cannot be used, or another run holds the address.
    """
    initialise_distributed()
    store = open_store(address)
    folder = _folder(address)
    process, count = processes()
    if count > 1:
        # Processes on one machine have a copy each.
        folder = folder / f"process-{process}"
    mirror = Mirror(store, folder)
    mirror.root.parent.mkdir(parents=True, exist_ok=True)
    token = lease.acquire(store) if process == 0 else ""
    try:
        barrier("the address is held")
        _restore(mirror)
        barrier("the copy is restored")
        with _background(mirror, token, sends=count == 1):
            yield mirror.root
    finally:
        if count > 1 and process == 0:
            _send_alone(mirror)
        if process == 0:
            lease.release(store, token)


def restore(address: str) -> Path:
    """Return a local copy of the run directory at an address, for reading.

    Raises:
        ValueError: the store cannot be used, or holds no run.
    """
    store = open_store(address)
    mirror = Mirror(store, _folder(address))
    _restore(mirror)
    if not is_workdir(mirror.root):
        raise ValueError(f"workdir={address}: holds no run")
    return mirror.root


def _folder(address: str) -> Path:
    return cache_folder() / "mirrors" / _sha256(address.rstrip("/").encode())[:16]


def of(root: Path) -> Mirror | None:
    """Return the mirror whose copy a run directory is; None for one that is no copy."""
    index = root.parent / INDEX
    if root.name != RUN or not index.is_file():
        return None
    return Mirror(open_store(json.loads(index.read_text(encoding="utf-8"))["address"]), root.parent)


def meet(name: str, root: Path) -> None:
    """Wait until every process is here, and give each what the others have written in the run.

    On a disk that all share there is nothing to give.
    """
    if processes()[1] == 1:
        return
    mirror = of(root)
    if mirror is None:
        barrier(name)
    else:
        _exchange(mirror, name)


# ---- several processes


def _exchange(mirror: Mirror, name: str) -> None:
    """One meeting: send what changed here, take what changed elsewhere, write the new state."""
    process, count = processes()
    index = _read_index(mirror)
    index.meeting += 1
    now = _scan(mirror, index)
    changed = _changed(now, index.state)
    deleted = [path for path in index.state if path not in now]
    changes: dict[str, Any] = {"put": changed, "delete": deleted}
    _send(mirror, changed, known=index.state)
    place = f"sync/{index.meeting}"
    object_store.put(mirror.store, f"{place}/{process}.json", _json(changes))
    barrier(f"{name}: sent")
    state = dict(index.state)
    # Process 0 comes last: where two have written one file, its version counts.
    for other in reversed(range(count)):
        theirs = changes if other == process else _journal(mirror, f"{place}/{other}.json")
        for path in theirs["delete"]:
            state.pop(path, None)
        state |= {path: (size, sha) for path, (size, sha) in theirs["put"].items()}
    _take(mirror, state, index, now)
    if process == 0:
        _write_head(mirror, state, index)
        for other in range(count):
            object_store.delete(mirror.store, f"sync/{index.meeting - 2}/{other}.json")
    index.state = state
    _write_index(mirror, index)
    barrier(f"{name}: taken")


def _send_alone(mirror: Mirror) -> None:
    """Make what this process has the newest state: at the end, when others may be gone already.

    What another process wrote since the last meeting is not in it and is made again.
    """
    index = _read_index(mirror)
    now = _scan(mirror, index)
    _publish(mirror, now, index)


def _journal(mirror: Mirror, name: str) -> dict[str, Any]:
    """What another process changed. It was put before the meeting, so it is there."""
    for wait in (*object_store.WAITS, None):
        data = object_store.get(mirror.store, name)
        if data is not None:
            return json.loads(data)
        if wait is not None:
            time.sleep(wait)
    raise OSError(5, f"{name} is missing, which another process has written", mirror.store.address)


# ---- one process


@contextmanager
def _background(mirror: Mirror, token: str, *, sends: bool) -> Iterator[None]:
    """Context in which a thread keeps the lease and, with `sends`, sends what is finished."""
    done = threading.Event()
    lock = threading.Lock()

    def work() -> None:
        renewed = sent = time.monotonic()
        finished: list[str] = []
        while not done.wait(LOOK_SECONDS):
            now = time.monotonic()
            if token and now - renewed > lease.RENEW_SECONDS:
                lease.renew(mirror.store, token)
                renewed = now
            if sends and (_finished(mirror.root) != finished or now - sent > SEND_SECONDS):
                finished = _finished(mirror.root)
                sent = now
                with lock:
                    _send_whole(mirror)

    def guarded() -> None:
        try:
            work()
        except (OSError, ValueError) as error:
            LOGGER.warning("%s; it is tried again when the run ends", error)

    thread = threading.Thread(target=guarded, name="object store", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if sends:
            with lock:
                _send_whole(mirror)


def _finished(root: Path) -> list[str]:
    """The finished generations, and whether there is a run at all."""
    names = [p.name for p in (root / checkpoint.DIRECTORY).glob("generation=*")]
    return sorted([*names, *([MARKER] if is_workdir(root) else [])])


def _send_whole(mirror: Mirror) -> None:
    """Put a state into the store: finished generations that are whole, and the run's own files."""
    if not is_workdir(mirror.root):
        return
    index = _read_index(mirror)
    wanted = _whole_files(mirror.root)
    now = _scan(mirror, index, only=wanted)
    # A file may be renamed or pruned meanwhile; the next look finds a state that is whole.
    if len(now) == len(wanted) and not (now == index.state and index.head):
        _publish(mirror, now, index)


def _whole_files(root: Path) -> list[str]:
    """Files that a machine needs to go on: all but parts of generations that are not finished."""
    files = {
        path for path in _walk(root) if not path.startswith((f"{checkpoint.DIRECTORY}/", "texts/"))
    }
    for place in sorted((root / checkpoint.DIRECTORY).glob("generation=*")):
        name = f"{checkpoint.DIRECTORY}/{place.name}/{checkpoint.MANIFEST}"
        try:
            listed = checkpoint.read_manifest(root, name)["files"]
        except (checkpoint.CorruptCheckpointError, OSError):
            break
        files |= {name, *listed}
    return sorted(files)


# ---- states


def _scan(mirror: Mirror, index: _Index, only: Iterable[str] | None = None) -> State:
    """The files of the copy. A file is read only where its size or time of change is new."""
    state: State = {}
    for path in _walk(mirror.root) if only is None else only:
        file = mirror.root / path
        try:
            about = file.stat()
            known = index.hashes.get(path)
            if known is None or known[:2] != [about.st_size, about.st_mtime_ns]:
                known = [about.st_size, about.st_mtime_ns, _sha256(file.read_bytes())]
        except FileNotFoundError:
            continue
        index.hashes[path] = known
        state[path] = (known[0], known[2])
    return state


def _walk(root: Path) -> Iterator[str]:
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith(TEMPORARY) and name not in _LOCAL:
                yield str(Path(folder, name).relative_to(root))


def _send(mirror: Mirror, files: Mapping[str, tuple[int, str]], known: State) -> None:
    """Put the contents that the store does not have yet."""
    there = {sha for _, sha in known.values()}
    new = {sha: path for path, (_, sha) in files.items() if sha not in there}

    def send(item: tuple[str, str]) -> None:
        sha, path = item
        try:
            data = (mirror.root / path).read_bytes()
        except FileNotFoundError:
            return
        if _sha256(data) == sha:
            object_store.put(mirror.store, f"blobs/{sha}", data)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(send, new.items()))


def _take(mirror: Mirror, state: State, index: _Index, now: State) -> None:
    """Make the copy equal to a state. Contents that lie here under another name are not read."""
    here = {sha: path for path, (_, sha) in now.items()}
    needed = _changed(state, now)

    def take(item: tuple[str, tuple[int, str]]) -> None:
        path, (size, sha) = item
        target = inside(mirror.root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha in here:
            data = (mirror.root / here[sha]).read_bytes()
        else:
            data = _read_blob(mirror.store, size, sha)
        write_atomic(target, data, durable=False)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(take, needed.items()))
    for path in [path for path in now if path not in state]:
        (mirror.root / path).unlink(missing_ok=True)
        index.hashes.pop(path, None)
    for path in needed:
        about = (mirror.root / path).stat()
        index.hashes[path] = [about.st_size, about.st_mtime_ns, state[path][1]]
    _remove_empty_folders(mirror.root)


def _remove_empty_folders(root: Path) -> None:
    for folder, _, _ in os.walk(root, topdown=False):
        if folder != str(root) and not os.listdir(folder):
            os.rmdir(folder)


class DamagedObject(ValueError):
    """An object of the store is missing, or is not what was put there."""


def _read_blob(store: Store, size: int, sha: str) -> bytes:
    for wait in (0.2, 1.0, None):
        data = object_store.get(store, f"blobs/{sha}")
        if data is not None and len(data) == size and _sha256(data) == sha:
            return data
        if wait is not None:
            time.sleep(wait)
    found = "is missing" if data is None else "has another content than was put there"
    raise DamagedObject(f"workdir={store.address}: the object blobs/{sha[:12]}… {found}")


def _publish(mirror: Mirror, now: State, index: _Index) -> None:
    """Make what lies here the newest state of the store."""
    _send(mirror, _changed(now, index.state), known=index.state)
    _write_head(mirror, now, index)
    index.state = now
    _write_index(mirror, index)


def _changed(now: State, before: State) -> State:
    return {path: entry for path, entry in now.items() if before.get(path) != entry}


def _write_head(mirror: Mirror, state: State, index: _Index) -> None:
    """Put a state and make it the newest; delete what only older ones needed."""
    data = _json(state)
    name = _sha256(data)
    if index.head[:1] == [name]:
        return
    object_store.put(mirror.store, f"states/{name}.json", data)
    head = [name, *index.head[:1]]
    object_store.put(mirror.store, HEAD, _json({"format": 1, "states": head}))
    for old in index.head[1:]:
        _forget(mirror, old, keep=state, also=index.head[0])
    index.head = head


def _forget(mirror: Mirror, old: str, keep: State, also: str) -> None:
    """Delete a state, and the contents that neither of the two newest states has."""
    states = [_read_state(mirror.store, name) for name in (old, also)]
    if states[0] is not None and states[1] is not None:
        kept = {sha for state in (keep, states[1]) for _, sha in state.values()}
        dropped = {sha for _, sha in states[0].values()} - kept
        for sha in sorted(dropped):
            object_store.delete(mirror.store, f"blobs/{sha}")
    object_store.delete(mirror.store, f"states/{old}.json")


def _read_state(store: Store, name: str) -> State | None:
    data = object_store.get(store, f"states/{name}.json")
    if data is None or _sha256(data) != name:
        return None
    return {path: (size, sha) for path, (size, sha) in json.loads(data).items()}


def _restore(mirror: Mirror) -> None:
    """Make the local copy the newest usable state of the store.

    A copy that the newest state was made from is kept: it may be further than the store.
    """
    index = _read_index(mirror)
    mirror.root.mkdir(parents=True, exist_ok=True)
    data = object_store.get(mirror.store, HEAD)
    if data is None:
        index = _Index(mirror.store.address)
        _write_index(mirror, index)
        return
    head = _read_head(mirror.store, data)
    if index.head[:1] == head[:1] and processes()[1] == 1:
        return
    for number, name in enumerate(head):
        state = _read_state(mirror.store, name)
        if state is None:
            LOGGER.warning("%s: its state %s… is damaged", mirror.store.address, name[:12])
            continue
        index = dataclasses.replace(index, meeting=0, state=state, head=[name])
        try:
            _take(mirror, state, index, _scan(mirror, index))
        except DamagedObject as error:
            LOGGER.warning("%s", error)
            continue
        if number:
            LOGGER.warning(
                "%s: the newest state cannot be used; going on from the one before",
                mirror.store.address,
            )
        _write_index(mirror, index)
        return
    raise ValueError(
        f"workdir={mirror.store.address}: neither the newest state nor the one before can be read "
        "whole; restore its objects, or give another address"
    )


def _read_head(store: Store, data: bytes) -> list[str]:
    try:
        head = json.loads(data)
        found = head["format"]
        states = [str(name) for name in head["states"]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"workdir={store.address}: its {HEAD} is damaged; restore it") from None
    if found != 1:
        raise ValueError(
            f"workdir={store.address}: has format {found}, of a later version of jaxloop; this "
            "one reads format 1"
        )
    return states


# ---- small things


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _read_index(mirror: Mirror) -> _Index:
    try:
        fields = json.loads((mirror.folder / INDEX).read_bytes())
        index = _Index(**fields)
        index.state = {path: (size, sha) for path, (size, sha) in index.state.items()}
    except (OSError, ValueError, TypeError):
        return _Index(mirror.store.address)
    return index


def _write_index(mirror: Mirror, index: _Index) -> None:
    write_atomic(mirror.folder / INDEX, _json(dataclasses.asdict(index)), durable=False)
