"""A run directory kept in an object store, for hosts without a common disk.

Every host works in a local copy of the run directory. `meet` makes the copies equal, but for
weights (`mirror_weights`), where the processes of a run wait for each other anyway
(`cluster.barrier`). The store gets what a machine that has nothing needs to go on:

    blobs/SHA-256        content of files, each content once: a renamed file is not sent again
    states/SHA-256.json  {path: [size, SHA-256]} of all files of the run at one moment
    head.json            which state is the newest, and the one before; written last
    sync/N/K.json        what process K changed before meeting number N; deleted two meetings later,
                         at the end of the run, and at the start of the next after one that died
    lease.json           which run holds the address, and until when

Objects are put whole and read by name: no rename, and no list that matters. What is read is
compared with its SHA-256; where the newest state is damaged, the one before is used. A thread sends
what is finished while the run goes on (`_background`): with several processes weights, which
nothing waits for.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from jaxloop.runtime import checkpoint, lease, mirror_weights, object_store
from jaxloop.runtime.atomic_io import TEMPORARY, names_in
from jaxloop.runtime.cluster import (
    NOTICE_SECONDS,
    RESERVE_SECONDS,
    barrier,
    before_leaving,
    initialise_distributed,
    last_barrier,
    processes,
    sent_by_all,
    tell_sent,
    wait_for_sent,
)
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror_copy import (
    INDEX,
    RUN,
    Mirror,
    changes_since,
    folder_of,
    publish,
    read_index,
    restore_copy,
    scan,
    send,
    take,
    to_json,
    walk,
    write_index,
)
from jaxloop.runtime.object_store import open_store
from jaxloop.runtime.signals import EXIT_REFUSED, Stopped
from jaxloop.runtime.workdir import MARKER, clean_temporary, is_open, is_workdir

# How often a run looks for what is finished, and one of one process sends its log and report.
LOOK_SECONDS, SEND_SECONDS = 2.0, 60.0


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
    folder = folder_of(address)
    process, count = processes()
    if count > 1:
        # Processes on one machine have a copy each.
        folder = folder / f"process-{process}"
    mirror = Mirror(store, folder)
    mirror.root.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if process == 0:
            stack.enter_context(_held(mirror))
        barrier("the address is held")
        for unfinished in mirror.folder.glob(f"{TEMPORARY}*"):  # of a process that was killed
            unfinished.unlink(missing_ok=True)
        restore_copy(mirror)
        if process == 0 and read_index(mirror).head:
            _forget_meetings(mirror)  # the others wait below, so that none has met yet
        if count > 1:
            if is_workdir(mirror.root):  # the first process cleans its copy with its run directory
                clean_temporary(mirror.root)
            mirror_weights.begin(mirror, read_index(mirror))
            tell_sent(0)
        barrier("the copy is restored")
        stack.enter_context(_sent_at_the_end(mirror, several=count > 1, first=process == 0))
        stack.enter_context(_background(mirror, _send_weights if count > 1 else _send_whole))
        yield mirror.root


def restore(address: str) -> Path:
    """Return a local copy of the run directory at an address, for reading.

    Raises:
        ValueError: the store cannot be used, or holds no run.
    """
    store = open_store(address)
    mirror = Mirror(store, folder_of(address))
    # A run that goes on here is further than the store.
    if not is_open(mirror.root):
        restore_copy(mirror)
    if not is_workdir(mirror.root):
        raise ValueError(f"workdir={address}: holds no run")
    return mirror.root


def of(root: Path) -> Mirror | None:
    """Return the mirror whose copy a run directory is; None for one that is no copy."""
    index = root.parent / INDEX
    if root.name != RUN or not index.is_file():
        return None
    address = json.loads(index.read_text(encoding="utf-8"))["address"]
    return Mirror(_open_once(address), root.parent)


# A run asks for its mirror at every meeting.
_open_once = lru_cache(maxsize=8)(open_store)


def meet(name: str, root: Path) -> None:
    """Wait until every process is here, and give each what the others have written in the run.

    Weights are not given: see `fetch`. On a disk that all share there is nothing to give.
    """
    if processes()[1] == 1:
        return
    mirror = of(root)
    if mirror is None:
        barrier(name)
    else:
        _exchange(mirror, name, barrier)


def fetch(root: Path, stem: str) -> None:
    """Make sure that a model's weights lie here, also those that another process has trained.

    stem: their path without extension, relative to the run directory.
    """
    mirror = of(root) if processes()[1] > 1 else None
    if mirror is not None:
        mirror_weights.fetch(mirror, stem)


def elsewhere(root: Path, listed: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the entries of weights that lie on another host, which has no disk in common.

    listed: {path: {"bytes", "sha256"}}, as manifests list them.
    """
    mirror = of(root) if processes()[1] > 1 else None
    if mirror is None:
        return {}
    absent = mirror_weights.told_of(mirror_weights.elsewhere(root, listed), read_index(mirror))
    return {path: listed[path] for path in absent}


def scan_generations(root: Path) -> checkpoint.CheckpointState:
    """Return `checkpoint.scan` of a run, of whose weights some may lie on other hosts."""
    return checkpoint.scan(root, partial(elsewhere, root))


def notice_at(root: Path, notice: float | None) -> float | None:
    """Return the seconds from SIGTERM to the kill: what was given, or what spot machines give.

    One process on a disk of its own that is told nothing has all the time it needs: None.
    """
    spot = processes()[1] > 1 or of(root) is not None
    return NOTICE_SECONDS if notice is None and spot else notice


# ---- the address


@contextmanager
def _held(mirror: Mirror) -> Iterator[None]:
    """Context in which this run holds the address; a thread renews the lease."""
    token = lease.acquire(mirror.store)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(lease.RENEW_SECONDS):
            try:
                lease.renew(mirror.store, token)
            except lease.TakenOver as error:
                # What this run writes from now on would be mixed with what the other writes.
                LOGGER.error("%s; this one leaves", error)
                os._exit(EXIT_REFUSED)
            except (OSError, ValueError) as error:  # such as credentials that are being renewed
                LOGGER.warning("%s; the lease of the address is not renewed", error)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    with before_leaving(lambda: lease.release(mirror.store, token)):
        try:
            yield
        finally:
            done.set()
            thread.join()
            lease.release(mirror.store, token)


@contextmanager
def _sent_at_the_end(mirror: Mirror, *, several: bool, first: bool) -> Iterator[None]:
    """Context at whose end the store gets what is finished, in the time that a signal gives."""
    try:
        yield
        if several:
            _send_the_last(mirror, first=first)
    except Stopped as stopped:
        with _leaving_in_time(stopped), _a_warning_at_most():
            if several:
                _seal(mirror, stopped.until, first=first)
            else:
                _send_whole(mirror)
        raise
    except BaseException:
        with _a_warning_at_most():
            _send_what_is_here(mirror, several=several, first=first)
        raise
    _send_what_is_here(mirror, several=several, first=first)
    if several and first:
        _forget_meetings(mirror)


def _forget_meetings(mirror: Mirror) -> None:
    """Delete what earlier meetings left: nobody reads it once they are over."""
    object_store.delete_matching(mirror.store, "sync", r"\d+/\d+\.json")


@contextmanager
def _a_warning_at_most() -> Iterator[None]:
    """Context in which a store that fails does not hide why the run ends."""
    try:
        yield
    except (OSError, ValueError) as error:
        LOGGER.warning("%s; what was finished lies in the copy on this machine alone", error)


def _send_what_is_here(mirror: Mirror, *, several: bool, first: bool) -> None:
    if not several:
        _send_whole(mirror)
    elif first:
        _send_alone(mirror)


def _send_the_last(mirror: Mirror, *, first: bool) -> None:
    """Send the weights of a run that has ended. Process 0 waits for those of the others."""
    _send_weights(mirror)
    if first:
        wait_for_sent(read_index(mirror).meeting)


@contextmanager
def _leaving_in_time(stopped: Stopped) -> Iterator[None]:
    """Context that ends the process where sending takes longer than the signal gives."""
    if stopped.until is None:
        yield
        return
    left = max(0.0, stopped.until + RESERVE_SECONDS / 2 - time.monotonic())
    timer = threading.Timer(left, os._exit, [128 + stopped.number])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# ---- several processes


def _exchange(
    mirror: Mirror, name: str, wait: Callable[[str], None], *, all_now: bool = False
) -> None:
    """One meeting: send what changed here, take what changed elsewhere, keep the new state.

    Weights are sent beside the run, with `all_now` at once.
    """
    process, count = processes()
    index = read_index(mirror)
    index.meeting += 1
    here = scan(mirror, index)
    now = here | mirror_weights.known_elsewhere(mirror, index)
    changed = changes_since(index.state, now)
    weights = {p: entry for p, entry in changed.items() if mirror_weights.is_weights(p)}
    small = {p: entry for p, entry in changed.items() if p not in weights}
    sent = send(mirror, small, index)
    here |= sent
    changes: dict[str, Any] = {
        "put": weights | sent,
        "delete": [path for path in index.state if path not in now],
        "sent": mirror_weights.announce(mirror, index, here, all_now=all_now),
    }
    place = f"sync/{index.meeting}"
    object_store.put(mirror.store, f"{place}/{process}.json", to_json(changes))
    wait(f"{name}: sent")
    state = dict(index.state)
    sent_by = index.meeting
    # Process 0 comes last: where two have written one file, its version counts.
    for other in reversed(range(count)):
        theirs = changes if other == process else _journal(mirror, f"{place}/{other}.json")
        for path in theirs["delete"]:
            state.pop(path, None)
        state |= {path: (size, sha) for path, (size, sha) in theirs["put"].items()}
        sent_by = min(sent_by, theirs["sent"])
    index.state, index.whole = state, False
    write_index(mirror, index)
    take(mirror, state, index, here, leave=mirror_weights.is_weights)
    index.whole = True
    if process == 0:
        mirror_weights.wait_for_weights(mirror, index.meeting, state)
        mirror_weights.publish_until(mirror, sent_by)
        index.head = mirror_weights.forget(mirror)
        for other in range(count):
            object_store.delete(mirror.store, f"sync/{index.meeting - 2}/{other}.json")
    write_index(mirror, index)
    wait(f"{name}: taken")


class _NotAll(Exception):
    """Not all processes came to the last meeting."""


def _seal(mirror: Mirror, until: float | None, *, first: bool) -> None:
    """After a signal: a last meeting, at which process 0 takes what the others have finished."""
    end = time.monotonic() + lease.LEASE_SECONDS if until is None else until

    def wait(name: str) -> None:
        if not last_barrier(name, end):
            raise _NotAll

    try:
        _exchange(mirror, "stopped", wait, all_now=True)
    except (_NotAll, OSError):
        if first:
            _send_alone(mirror)


def _send_alone(mirror: Mirror) -> None:
    """Make what this process has the newest state: at the end, when others may be gone already.

    What another process wrote since the last meeting is not in it and is made again; so is a
    generation of which another process has not sent all weights.
    """
    index = read_index(mirror)
    mirror_weights.publish_until(mirror, sent_by_all())
    index.head = mirror_weights.forget(mirror)
    now = scan(mirror, index) | mirror_weights.known_elsewhere(mirror, index)
    # A copy that was left while it was changed is not whole; the store has the state before.
    if index.whole and mirror_weights.is_whole(mirror, now, index.head):
        mirror_weights.send_weights(mirror)
        publish(mirror, now, index)


def _send_weights(mirror: Mirror) -> None:
    """Send the weights that lie ready; in process 0 also the newest state that has all of its."""
    index = mirror_weights.send_weights(mirror)
    tell_sent(mirror_weights.sent_until(mirror, index))
    if processes()[0] == 0:
        mirror_weights.publish_until(mirror, sent_by_all())


def _journal(mirror: Mirror, name: str) -> dict[str, Any]:
    """What another process changed. It was put before the meeting, so it is there."""
    for wait in (*object_store.WAITS, None):
        data = object_store.get(mirror.store, name)
        if data is not None:
            return json.loads(data)
        if wait is not None:
            time.sleep(wait)
    raise OSError(5, f"{name} is missing, which another process has written", mirror.store.address)


# ---- beside the run


@contextmanager
def _background(mirror: Mirror, work: Callable[[Mirror], None]) -> Iterator[None]:
    """Context in which a thread sends what is finished."""
    done = threading.Event()
    lock = threading.Lock()
    several = processes()[1] > 1

    def locked() -> None:
        with lock:
            work(mirror)

    def look() -> None:
        sent = time.monotonic()
        finished: list[str] = []
        while not done.wait(LOOK_SECONDS):
            now = time.monotonic()
            if not several:
                if _finished(mirror.root) == finished and now - sent <= SEND_SECONDS:
                    continue
                finished, sent = _finished(mirror.root), now
            try:
                locked()
            except (OSError, ValueError) as error:
                LOGGER.warning("%s; it is tried again", error)

    thread = threading.Thread(target=look, name="object store", daemon=True)
    thread.start()
    # Of several processes only those that meet make a state.
    with nullcontext() if several else before_leaving(locked):
        try:
            yield
        finally:
            done.set()
            thread.join()


def _finished(root: Path) -> list[str]:
    """What is there to send: finished generations, and the run itself."""
    names = [name for name in names_in(root / checkpoint.DIRECTORY) if _is_finished(name)]
    return [*names, *([MARKER] if is_workdir(root) else [])]


def _is_finished(name: str) -> bool:
    return name.startswith("generation=")


def _send_whole(mirror: Mirror) -> None:
    """Put a state into the store: finished generations that are whole, and the run's own files."""
    if not is_workdir(mirror.root):
        return
    index = read_index(mirror)
    listed = _listed_files(mirror.root)
    wanted = sorted(listed | _own_files(mirror.root))
    now = scan(mirror, index, only=wanted)
    if now == index.state and index.head:
        return
    # Meanwhile a file may be renamed or pruned, or a manifest list another one; the next look
    # finds a state that is whole.
    if len(now) == len(wanted) and _listed_files(mirror.root) == listed:
        publish(mirror, now, index)


def _own_files(root: Path) -> set[str]:
    """The files of a run that are of no generation."""
    return {
        path for path in walk(root) if not path.startswith((f"{checkpoint.DIRECTORY}/", "texts/"))
    }


def _listed_files(root: Path) -> set[str]:
    """Files of the finished generations that are whole: a machine needs no others to go on."""
    files: set[str] = set()
    for place in filter(_is_finished, names_in(root / checkpoint.DIRECTORY)):
        name = f"{checkpoint.DIRECTORY}/{place}/{checkpoint.MANIFEST}"
        try:
            listed = checkpoint.read_manifest(root, name)["files"]
        except (checkpoint.CorruptCheckpointError, OSError):
            break
        files |= {name, *listed}
    return files
