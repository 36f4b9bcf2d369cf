"""The local copy of a run directory in an object store: what is sent, what is taken, which state.

`mirror` says which objects there are.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxloop.runtime import checkpoint, object_store
from jaxloop.runtime.atomic_io import TEMPORARY, cache_folder, inside, write_atomic
from jaxloop.runtime.cluster import processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.object_store import Store
from jaxloop.runtime.workdir import HOLDER, LOCK

# {path in the run directory: (size, SHA-256)}
State = dict[str, tuple[int, str]]

RUN, INDEX = "run", "mirror.json"
HEAD = "head.json"
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
class Index:
    """What a mirror knows, kept in a file between calls.

    Attributes:
        meeting: number of the last meeting of the processes.
        state: the state of the last meeting.
        head: name of the newest state in the store, and of the one before.
        hashes: {path: [size, time of change, SHA-256]} of local files.
        whole: whether the copy is a state; false while the one is made of the other.
        announced: {SHA-256: meeting} of weights here that the store did not have at the last
            meeting, and the meeting at which the others were told of them.
    """

    address: str
    meeting: int = 0
    state: State = dataclasses.field(default_factory=dict)
    head: list[str] = dataclasses.field(default_factory=list)
    hashes: dict[str, list[Any]] = dataclasses.field(default_factory=dict)
    whole: bool = True
    announced: dict[str, int] = dataclasses.field(default_factory=dict)


def folder_of(address: str) -> Path:
    """Return the folder of the copy of an address on this machine."""
    return cache_folder() / "mirrors" / digest(address.rstrip("/").encode())[:16]


# ---- states


def scan(mirror: Mirror, index: Index, only: Iterable[str] | None = None) -> State:
    """Return the files of the copy. A file is read only where its size or time of change is new."""
    state: State = {}
    for path in walk(mirror.root) if only is None else only:
        file = mirror.root / path
        try:
            about = file.stat()
            known = index.hashes.get(path)
            if known is None or known[:2] != [about.st_size, about.st_mtime_ns]:
                known = [about.st_size, about.st_mtime_ns, digest(file.read_bytes())]
        except FileNotFoundError:
            continue
        index.hashes[path] = known
        state[path] = (known[0], known[2])
    return state


def walk(root: Path) -> Iterator[str]:
    """Yield the files of a copy that belong to the run, not to this machine."""
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith(TEMPORARY) and name not in _LOCAL:
                yield str(Path(folder, name).relative_to(root))


def send(mirror: Mirror, files: State, index: Index) -> State:
    """Put the contents that the state of the index does not have; returns as `put_new`."""
    return put_new(mirror, files, there={sha for _, sha in index.state.values()})


def put_new(mirror: Mirror, files: State, there: Set[str]) -> State:
    """Put the contents that the store does not have.

    Args:
        mirror: the copy.
        files: what is to be sent.
        there: contents that the store has.

    Returns:
        The files, as the store has them now: one that has changed meanwhile, as a log may, with
        the content that was read; one that is gone is left out.
    """
    paths: dict[str, list[str]] = {}
    for path, (_, sha) in files.items():
        paths.setdefault(sha, []).append(path)

    def put_all(item: tuple[str, list[str]]) -> State:
        sha, same = item
        if sha in there:
            return {path: files[path] for path in same}
        now: State = {}
        for path in same:
            try:
                data = (mirror.root / path).read_bytes()
            except FileNotFoundError:
                continue
            entry = len(data), digest(data)
            if entry not in now.values():
                object_store.put(mirror.store, f"blobs/{entry[1]}", data)
            now[path] = entry
        return now

    with ThreadPoolExecutor(THREADS) as threads:
        put: State = {}
        for state in threads.map(put_all, paths.items()):
            put |= state
        return put


def take(
    mirror: Mirror,
    state: State,
    index: Index,
    now: State,
    leave: Callable[[str], bool] = lambda path: False,
) -> None:
    """Make the copy equal to a state. Contents that lie here under another name are not read.

    Args:
        mirror: the copy.
        state: what it is to be.
        index: of the copy; it learns what is taken.
        now: the files that lie here.
        leave: says of a path whether it is left where its content is not here.
    """
    changed = changes_since(now, state)
    # Files that get another content are no source: they may have it before they are read.
    here = {sha: path for path, (_, sha) in now.items() if path not in changed}
    needed = {path: entry for path, entry in changed.items() if entry[1] in here or not leave(path)}

    def take_one(item: tuple[str, tuple[int, str]]) -> None:
        path, (size, sha) = item
        target = inside(mirror.root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha in here:
            data = (mirror.root / here[sha]).read_bytes()
        else:
            data = read_blob(mirror.store, size, sha)
        write_atomic(target, data, durable=False)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(take_one, needed.items()))
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


def read_blob(store: Store, size: int, sha: str) -> bytes:
    """Return a content.

    Raises:
        DamagedObject: it is missing or is not what was put there.
    """
    for wait in (0.2, 1.0, None):
        data = object_store.get(store, f"blobs/{sha}")
        if data is not None and len(data) == size and digest(data) == sha:
            return data
        if wait is not None:
            time.sleep(wait)
    found = "is missing" if data is None else "has another content than was put there"
    raise DamagedObject(f"workdir={store.address}: the object blobs/{sha[:12]}… {found}")


def publish(mirror: Mirror, now: State, index: Index) -> None:
    """Make what lies here the newest state of the store."""
    changed = changes_since(index.state, now)
    sent = send(mirror, changed, index)
    # A file was renamed or pruned, or a manifest lists another one; the next look finds a state
    # that is whole.
    if len(sent) < len(changed) or any(
        sent[path] != entry for path, entry in changed.items() if _is_manifest(path)
    ):
        return
    now = now | sent
    index.head = write_head(mirror, now, index.head)
    index.state = now
    # First, as deleting takes long: `restore` must not take this copy for one behind the store.
    write_index(mirror, index)
    index.head = forget_old(mirror, index.head)
    write_index(mirror, index)


def _is_manifest(path: str) -> bool:
    return path.startswith(f"{checkpoint.DIRECTORY}/") and path.endswith(f"/{checkpoint.MANIFEST}")


def changes_since(before: State, now: State) -> State:
    """Return the entries of a state that are new or differ from those before."""
    return {path: entry for path, entry in now.items() if before.get(path) != entry}


def write_head(mirror: Mirror, state: State, head: Sequence[str]) -> list[str]:
    """Put a state and make it the newest.

    Args:
        mirror: the copy.
        state: the state.
        head: names of the newest state so far and of those before.

    Returns:
        Names of the newest state and of those before. The store keeps two: see `forget_old`.
    """
    data = to_json(state)
    name = digest(data)
    if head[:1] == [name]:
        return list(head)
    object_store.put(mirror.store, f"states/{name}.json", data)
    object_store.put(mirror.store, HEAD, to_json({"format": 1, "states": [name, *head[:1]]}))
    return [name, *head]


def forget_old(
    mirror: Mirror,
    head: Sequence[str],
    *,
    skipped: Sequence[State] = (),
    later: Sequence[State] = (),
) -> list[str]:
    """Delete what only states before the newest two needed. Nobody may send meanwhile.

    Args:
        mirror: the copy.
        head: names of the newest state and of those before.
        skipped: states that were never the newest, of which the store has contents.
        later: states whose contents are to stay.

    Returns:
        Names of the newest two states.
    """
    newest = list(head[:2])
    old = [name for name in head[2:] if name not in newest]
    if old or skipped:
        kept = [read_state(mirror.store, name) for name in newest]
        dropped = [read_state(mirror.store, name) for name in old]
        if None not in kept:
            spare = _contents([*dropped, *skipped]) - _contents([*kept, *later])
            for sha in sorted(spare):
                object_store.delete(mirror.store, f"blobs/{sha}")
        for name in old:
            object_store.delete(mirror.store, f"states/{name}.json")
    return newest


def _contents(states: Sequence[State | None]) -> set[str]:
    return {sha for state in states if state is not None for _, sha in state.values()}


def read_state(store: Store, name: str) -> State | None:
    """Return a state of the store; None where it is missing or damaged."""
    data = object_store.get(store, f"states/{name}.json")
    if data is None or digest(data) != name:
        return None
    return {path: (size, sha) for path, (size, sha) in json.loads(data).items()}


def restore_copy(mirror: Mirror) -> None:
    """Make the local copy the newest usable state of the store.

    A copy that the newest state was made from is kept: it may be further than the store.

    Raises:
        ValueError: the store cannot be read, or has lost the run of which a copy lies here.
    """
    index = read_index(mirror)
    mirror.root.mkdir(parents=True, exist_ok=True)
    data = object_store.get(mirror.store, HEAD)
    if data is None and index.head:
        raise ValueError(
            f"workdir={mirror.store.address}: holds no run any more, but a copy of one lies here; "
            f"restore its objects, or delete {mirror.folder} to begin anew"
        )
    if data is None:
        index = Index(mirror.store.address)
        write_index(mirror, index)
        return
    head = _read_head(mirror.store, data)
    if index.head[:1] == head[:1] and processes()[1] == 1:
        return
    for number, name in enumerate(head):
        state = read_state(mirror.store, name)
        if state is None:
            LOGGER.warning("%s: its state %s… is damaged", mirror.store.address, name[:12])
            continue
        index = _index_of(index, state, name, head)
        try:
            take(mirror, state, index, _without_unfinished(scan(mirror, index), state))
        except DamagedObject as error:
            LOGGER.warning("%s", error)
            continue
        if number:
            LOGGER.warning(
                "%s: the newest state cannot be used; going on from the one before",
                mirror.store.address,
            )
        write_index(mirror, index)
        return
    _restore_what_is_whole(mirror, index, head)


def _index_of(index: Index, state: State, name: str, head: Sequence[str]) -> Index:
    """The index of a copy that is made a state of the store; what it had announced is forgotten.

    The other state of the store stays in its head, so that `forget_old` deletes it in its time.
    """
    others = [other for other in head if other != name]
    return Index(index.address, state=state, head=[name, *others], hashes=index.hashes)


def _restore_what_is_whole(mirror: Mirror, index: Index, head: list[str]) -> None:
    """Take the files of the newest readable state whose contents are whole.

    Both states may need one damaged object. A generation of which a file is missing is made again,
    as on a disk.
    """
    for name in head:
        state = read_state(mirror.store, name) or {}
        found = {path: entry for path, entry in state.items() if _is_whole(mirror.store, *entry)}
        if not found:
            continue
        missing = sorted(state.keys() - found.keys())
        LOGGER.warning(
            "%s: neither state is whole; going on without %s", mirror.store.address, missing
        )
        index = _index_of(index, found, name, head)
        take(mirror, found, index, scan(mirror, index))
        write_index(mirror, index)
        return
    raise ValueError(
        f"workdir={mirror.store.address}: neither the newest state nor the one before can be read; "
        "restore its objects, or give another address"
    )


def _is_whole(store: Store, size: int, sha: str) -> bool:
    try:
        read_blob(store, size, sha)
    except DamagedObject:
        return False
    return True


def _without_unfinished(now: State, state: State) -> State:
    """The files of a copy without what a stopped run has finished of a generation since.

    That stays: every part of it has a manifest with checksums, by which the run judges it.
    """
    begun = f"{checkpoint.DIRECTORY}/unfinished-"
    return {p: entry for p, entry in now.items() if p in state or not p.startswith(begun)}


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


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes, the name of a content."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: Any) -> bytes:
    """Return a value as JSON, the same bytes for the same value."""
    return json.dumps(value, sort_keys=True).encode()


def read_index(mirror: Mirror) -> Index:
    """Return what is known of a mirror."""
    try:
        fields = json.loads((mirror.folder / INDEX).read_bytes())
        index = Index(**fields)
        index.state = {path: (size, sha) for path, (size, sha) in index.state.items()}
    except (OSError, ValueError, TypeError):
        return Index(mirror.store.address)
    return index


def write_index(mirror: Mirror, index: Index) -> None:
    """Keep what is known of a mirror."""
    write_atomic(mirror.folder / INDEX, to_json(dataclasses.asdict(index)), durable=False)
