"""Weights in a run of several processes without a common disk: each process keeps those it trained.

Nobody waits until weights are sent, and while a run goes on no process takes those of another one,
unless it goes on training them (`fetch`): all know them from the manifests, which name size and
SHA-256. A thread sends them beside the run. What is waited for are weights that were trained before
the meeting before the last, so that a store that is slower than training holds the run up instead
of falling behind it.

    sent.json      contents of this process's weights that the store has; see `Sent`
    waiting.json   in process 0: states of meetings that the store does not have yet, as some of
                   their weights are being sent
"""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from jaxloop.runtime import checkpoint, object_store
from jaxloop.runtime.atomic_io import inside, write_atomic
from jaxloop.runtime.mirror_copy import (
    Index,
    Mirror,
    State,
    digest,
    forget_old,
    put_new,
    read_blob,
    read_index,
    read_state,
    scan,
    to_json,
    walk,
    write_head,
)

SENT, WAITING = "sent.json", "waiting.json"
# Weights that were announced at a meeting are in the store two meetings later: in a generation.
MEETINGS_TO_SEND = 2
# Seconds between questions for weights that another process is sending. Where that one is gone this
# one leaves (`channel`), so they are waited for as long as a generation may take.
_WAITS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, *[60.0] * 240)
# One thread of the process sends weights at a time, so that no content is sent by two.
_SENDING = threading.Lock()
# One thread of the process changes which states wait, and the newest state.
_PUBLISHING = threading.Lock()


@dataclass(frozen=True)
class Waiting:
    """What process 0 knows of states.

    Attributes:
        head: names of the newest state of the store, and of those before.
        waiting: (meeting, state) of later ones, whose weights are being sent.
        skipped: states that were never the newest, of which the store has contents.
    """

    head: list[str]
    waiting: list[tuple[int, State]]
    skipped: list[State]


@dataclass(frozen=True)
class Sent:
    """What this process has sent.

    Attributes:
        meeting: the last meeting before it was sent.
        contents: of weights that the store had then. Later ones that no state names may be deleted.
        hashes: {path: [size, time of change, SHA-256]} of weights, which are read once.
    """

    meeting: int
    contents: set[str]
    hashes: dict[str, list[Any]]


def is_weights(path: str) -> bool:
    """Say whether a file of a run directory holds weights of a generation's models."""
    folder, name = path.split("/", 1)[0], path.rsplit("/", 1)[-1]
    return folder == checkpoint.DIRECTORY and "/adapters/" in path and name != checkpoint.MANIFEST


# ---- which weights there are


def elsewhere(root: Path, listed: Mapping[str, Mapping[str, Any]]) -> State:
    """Return the weights that do not lie in this copy.

    Args:
        root: the run directory.
        listed: {path: {"bytes", "sha256"}}, as a manifest lists them.
    """
    return {
        path: (entry["bytes"], entry["sha256"])
        for path, entry in listed.items()
        if is_weights(path) and not inside(root, path).exists()
    }


def all_elsewhere(root: Path) -> State:
    """Return the weights that manifests of this copy list and that do not lie here."""
    found: State = {}
    place = root / checkpoint.DIRECTORY
    for pattern in (
        f"generation=*/{checkpoint.MANIFEST}",
        f"unfinished-*/{checkpoint.PARTS}/*.json",
    ):
        for path in sorted(place.glob(pattern)):
            try:
                content = checkpoint.read_manifest(root, str(path.relative_to(root)))
            except checkpoint.CorruptCheckpointError:
                continue
            found |= elsewhere(root, content["files"])
    return found


def told_of(absent: State, index: Index) -> State:
    """Return the weights of which another process has told this one, under whatever name."""
    told = _contents(index.state)
    return {path: entry for path, entry in absent.items() if entry[1] in told}


def known_elsewhere(mirror: Mirror, index: Index) -> State:
    """Return `all_elsewhere` of which another process has told this one."""
    return told_of(all_elsewhere(mirror.root), index)


# ---- sending


def begin(mirror: Mirror, index: Index) -> None:
    """Forget what an earlier run has sent: the store has what its newest state names.

    What else of that run is in the store, as far as this machine knows, is deleted in its time.
    """
    with _SENDING:
        _write_sent(mirror, Sent(index.meeting, _contents(index.state), {}))
    with _PUBLISHING:
        known = _read_waiting(mirror)
        # A store without a head is a new one, whatever lay at its address before.
        head = list(dict.fromkeys([*index.head, *known.head])) if index.head else []
        skipped = [*known.skipped, *(state for _, state in known.waiting)]
        _write_waiting(mirror, Waiting(head, [], skipped))


def send_weights(mirror: Mirror) -> Index:
    """Put the weights that lie here and that the store does not have yet.

    Returns:
        The index as it was when they were looked for.
    """
    with _SENDING:
        index = read_index(mirror)
        known = _read_sent(mirror)
        index.hashes |= known.hashes
        here = scan(mirror, index, only=filter(is_weights, walk(mirror.root)))
        before = _in_store(known, index, index.meeting)
        put = put_new(mirror, here, there=before)
        # A content that no state needs any more is deleted from the store.
        contents = (before & (_contents(here) | _contents(index.state))) | _contents(put)
        hashes = {path: index.hashes[path] for path in here}
        _note_sent(mirror, Sent(index.meeting, contents, hashes), known)
        return index


def announce(mirror: Mirror, index: Index, here: State, *, all_now: bool) -> int:
    """Note which weights the others are told of, and send those that are overdue.

    Args:
        mirror: the copy.
        index: of this meeting; `index.announced` is changed.
        here: files that lie here.
        all_now: send all of them.

    Returns:
        The last meeting whose weights of this process are all in the store.
    """
    _note(mirror, index, here)
    overdue = index.meeting if all_now else index.meeting - MEETINGS_TO_SEND
    if any(meeting <= overdue for meeting in index.announced.values()):
        send_weights(mirror)
        _note(mirror, index, here)
    return min(index.announced.values(), default=index.meeting + 1) - 1


def _note(mirror: Mirror, index: Index, here: State) -> None:
    sent = _in_store(_read_sent(mirror), index, index.meeting - 1)
    shas = {sha for path, (_, sha) in here.items() if is_weights(path)} - sent
    index.announced = {sha: index.announced.get(sha, index.meeting) for sha in sorted(shas)}


def sent_until(mirror: Mirror, index: Index) -> int:
    """Return the last meeting whose weights of this process are all in the store."""
    sent = _in_store(_read_sent(mirror), index, index.meeting)
    missing = [meeting for sha, meeting in index.announced.items() if sha not in sent]
    return min(missing, default=index.meeting + 1) - 1


# ---- taking


def fetch(mirror: Mirror, stem: str) -> None:
    """Take a model's weights from the store if they do not lie here.

    They are waited for where another process is sending them.

    Raises:
        DamagedObject: they do not come.
    """
    if any(inside(mirror.root, f"{stem}.{kind}").exists() for kind in ("safetensors", "orbax")):
        return
    files = {
        path: entry
        for path, entry in all_elsewhere(mirror.root).items()
        if path == f"{stem}.safetensors" or path.startswith(f"{stem}.orbax/")
    }
    for path, (size, sha) in files.items():
        data = _wait_for(mirror, size, sha)
        target = inside(mirror.root, path)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data, durable=False)
    with _SENDING:
        known = _read_sent(mirror)
        contents = known.contents | _contents(files)
        _note_sent(mirror, replace(known, contents=contents), known)


def _wait_for(mirror: Mirror, size: int, sha: str) -> bytes:
    for wait in _WAITS:
        data = object_store.get(mirror.store, f"blobs/{sha}")
        if data is not None:
            return data if digest(data) == sha else read_blob(mirror.store, size, sha)
        time.sleep(wait)
    return read_blob(mirror.store, size, sha)


# ---- which state is the newest


def wait_for_weights(mirror: Mirror, meeting: int, state: State) -> None:
    """Keep the state of a meeting until the store has all of its weights."""
    with _PUBLISHING:
        known = _read_waiting(mirror)
        _write_waiting(mirror, replace(known, waiting=[*known.waiting, (meeting, state)]))


def publish_until(mirror: Mirror, meeting: int) -> None:
    """Make the last state whose weights are all in the store the newest.

    Args:
        mirror: the copy, of process 0.
        meeting: the last one whose weights all processes have sent.
    """
    with _PUBLISHING:
        known = _read_waiting(mirror)
        whole = [state for number, state in known.waiting if number <= meeting]
        if whole:
            head = write_head(mirror, whole[-1], known.head)
            later = [one for one in known.waiting if one[0] > meeting]
            _write_waiting(mirror, Waiting(head, later, [*known.skipped, *whole[:-1]]))


def forget(mirror: Mirror) -> list[str]:
    """Delete what no state needs any more, while nobody sends files other than weights.

    Returns:
        Names of the newest state and of the one before.
    """
    with _PUBLISHING:
        known = _read_waiting(mirror)
        later = [state for _, state in known.waiting]
        head = forget_old(mirror, known.head, skipped=known.skipped, later=later)
        _write_waiting(mirror, Waiting(head, known.waiting, []))
        return head


def is_whole(mirror: Mirror, state: State, head: Sequence[str]) -> bool:
    """Say whether the store has all weights of a state that do not lie here.

    It is said to have what its newest state names.
    """
    absent = {
        sha
        for path, (_, sha) in state.items()
        if is_weights(path) and not (mirror.root / path).exists()
    }
    if not absent:
        return True
    newest = read_state(mirror.store, head[0]) if head else None
    return newest is not None and absent <= {sha for _, sha in newest.values()}


# ---- files beside the copy


def _read_sent(mirror: Mirror) -> Sent:
    try:
        content = json.loads((mirror.folder / SENT).read_bytes())
        return Sent(content["meeting"], set(content["contents"]), content["hashes"])
    except (OSError, ValueError, KeyError, TypeError):
        return Sent(0, set(), {})


def _write_sent(mirror: Mirror, sent: Sent) -> None:
    content = asdict(sent) | {"contents": sorted(sent.contents)}
    write_atomic(mirror.folder / SENT, to_json(content), durable=False)


def _note_sent(mirror: Mirror, sent: Sent, before: Sent) -> None:
    if sent != before:
        _write_sent(mirror, sent)


def _in_store(sent: Sent, index: Index, meeting: int) -> set[str]:
    """Contents of weights that the store has for sure, before the meeting that follows this one."""
    if sent.meeting == meeting:
        return sent.contents
    # What no state named may have been deleted, and was announced as missing if it came back.
    return (sent.contents & _contents(index.state)) - index.announced.keys()


def _contents(state: State) -> set[str]:
    return {sha for _, sha in state.values()}


def _read_waiting(mirror: Mirror) -> Waiting:
    try:
        content = json.loads((mirror.folder / WAITING).read_bytes())
    except (OSError, ValueError):
        return Waiting([], [], [])
    waiting = [(number, _state(files)) for number, files in content["waiting"]]
    return Waiting(content["head"], waiting, [_state(files) for files in content["skipped"]])


def _state(files: Mapping[str, Sequence[Any]]) -> State:
    return {path: (size, sha) for path, (size, sha) in files.items()}


def _write_waiting(mirror: Mirror, known: Waiting) -> None:
    write_atomic(mirror.folder / WAITING, to_json(asdict(known)), durable=False)
