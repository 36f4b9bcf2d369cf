"""Weights of several processes: sent beside the run, taken by nobody, and a state once all are."""

import dataclasses

import pytest

from jaxloop.runtime import checkpoint, mirror, mirror_copy, object_store
from jaxloop.runtime import mirror_weights as mw
from jaxloop.runtime.mirror_copy import Index, Mirror, digest
from jaxloop.runtime.workdir import MARKER

A = f"{checkpoint.unfinished(0)}/adapters/chain=a.safetensors"
B = f"{checkpoint.unfinished(0)}/adapters/chain=b.safetensors"


@pytest.fixture
def copy(tmp_path):
    (tmp_path / "store").mkdir()
    copy = Mirror(object_store.open_store(f"file://{tmp_path / 'store'}"), tmp_path / "copy")
    copy.root.mkdir(parents=True)
    (copy.root / MARKER).write_text("{}")
    mw.begin(copy, Index(copy.store.address))
    return copy


def write(copy, path, data):
    file = copy.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def blobs(copy):
    return {path.name for path in (copy.folder.parent / "store" / "blobs").glob("*")}


def state_of(copy, *contents):
    """A state with these contents, which the store has."""
    for data in contents:
        object_store.put(copy.store, f"blobs/{digest(data)}", data)
    return {f"file-{i}": (len(data), digest(data)) for i, data in enumerate(contents)}


def meet(copy, index, all_now=False):
    """Announce what lies here at the next meeting."""
    index.meeting += 1
    here = mirror_copy.scan(copy, index)
    sent_by = mw.announce(copy, index, here, all_now=all_now)
    index.state = here
    mirror_copy.write_index(copy, index)
    return sent_by


def test_weights_are_announced_at_once_and_sent_two_meetings_later(copy):
    index = mirror_copy.read_index(copy)
    write(copy, A, b"weights")
    write(copy, "texts/a", b"a text")
    assert meet(copy, index) == 0 and meet(copy, index) == 0
    assert not blobs(copy)
    # The store has not kept up: now they are waited for.
    assert meet(copy, index) == 3
    assert blobs(copy) == {digest(b"weights")}
    write(copy, B, b"later weights")
    assert meet(copy, index, all_now=True) == 4
    assert digest(b"later weights") in blobs(copy)


def test_weights_that_were_sent_beside_the_run_hold_up_nothing(copy, monkeypatch):
    index = mirror_copy.read_index(copy)
    write(copy, A, b"weights")
    assert meet(copy, index) == 0
    mw.send_weights(copy)
    assert mw.sent_until(copy, mirror_copy.read_index(copy)) == 1
    monkeypatch.setattr(object_store, "put", lambda *args: pytest.fail("is sent again"))
    assert meet(copy, index) == 2
    (copy.root / A).rename(copy.root / "checkpoints" / "moved")
    write(copy, A.replace("unfinished-", ""), b"weights")
    mw.send_weights(copy)
    assert meet(copy, index) == 3


def test_weights_that_vanish_while_they_are_sent_do_not_count_as_sent(copy, monkeypatch):
    index = mirror_copy.read_index(copy)
    write(copy, A, b"weights")
    assert meet(copy, index) == 0
    scan = mirror_copy.scan

    def scan_and_lose(*args, **kwargs):
        found = scan(*args, **kwargs)
        (copy.root / A).unlink(missing_ok=True)
        return found

    monkeypatch.setattr(mw, "scan", scan_and_lose)
    mw.send_weights(copy)
    assert not blobs(copy)
    assert mw.sent_until(copy, mirror_copy.read_index(copy)) == 0


def test_a_content_that_left_the_run_is_sent_again_when_it_comes_back(copy):
    write(copy, A, b"weights")
    mw.send_weights(copy)
    (copy.root / A).unlink()
    mw.send_weights(copy)
    object_store.delete(copy.store, f"blobs/{digest(b'weights')}")
    write(copy, B, b"weights")
    mw.send_weights(copy)
    assert blobs(copy) == {digest(b"weights")}


def test_a_content_that_left_the_run_at_a_meeting_is_not_believed_to_be_there(copy):
    index = mirror_copy.read_index(copy)
    write(copy, A, b"weights")
    mw.send_weights(copy)
    assert meet(copy, index) == 1
    (copy.root / A).unlink()
    assert meet(copy, index) == 2
    # Process 0 has deleted what no state has, and the same weights are trained again.
    object_store.delete(copy.store, f"blobs/{digest(b'weights')}")
    write(copy, A, b"weights")
    assert meet(copy, index) == 2
    mw.send_weights(copy)
    assert blobs(copy) == {digest(b"weights")} and meet(copy, index) == 4


def test_a_restored_copy_has_announced_nothing(copy):
    write(copy, A, b"weights")
    index = mirror_copy.read_index(copy)
    index.meeting = 36
    assert meet(copy, index) == 36
    mirror_copy.write_head(copy, state_of(copy, b"a text"), [])
    mirror_copy.restore_copy(copy)
    index = mirror_copy.read_index(copy)
    mw.begin(copy, index)
    assert (index.meeting, index.announced) == (0, {})
    write(copy, A, b"weights")
    assert meet(copy, index) == 0


def test_weights_of_others_do_not_make_a_finished_generation_damaged(copy, monkeypatch):
    write(copy, A, b"own")
    write(copy, B, b"of another process")
    (copy.folder / mirror_copy.INDEX).write_bytes(mirror_copy.to_json({"address": ""}))
    checkpoint.finalise(copy.root, 0, [A, B])
    index = Index(copy.store.address)
    index.state = mirror_copy.scan(copy, index)
    mirror_copy.write_index(copy, index)
    b = copy.root / B.replace("unfinished-", "")
    b.unlink()
    with pytest.raises(checkpoint.CorruptCheckpointError, match="b.safetensors is missing"):
        mirror.scan_generations(copy.root)  # of one process, all of them lie here
    monkeypatch.setattr(mirror, "processes", lambda: (0, 2))
    assert mirror.scan_generations(copy.root).last == 0
    # What nobody has told of is missing.
    index.state = {}
    mirror_copy.write_index(copy, index)
    with pytest.raises(checkpoint.CorruptCheckpointError, match="b.safetensors is missing"):
        mirror.scan_generations(copy.root)


def test_a_log_that_grows_while_it_is_sent_is_named_as_it_was_sent(copy):
    write(copy, "run.log", b"one line")
    index = mirror_copy.read_index(copy)
    before = mirror_copy.scan(copy, index)
    write(copy, "run.log", b"one line, two lines")
    write(copy, "gone", b"")
    sent = mirror_copy.send(copy, before | {"gone": (0, digest(b""))}, index)
    (copy.root / "gone").unlink()
    assert sent["run.log"] == (19, digest(b"one line, two lines"))
    assert {sha for _, sha in sent.values()} == blobs(copy)
    late = mirror_copy.send(copy, {"gone": (4, digest(b"lost"))}, index)
    assert late == {}


def test_the_newest_state_is_the_last_whose_weights_are_there(copy):
    states = [state_of(copy, b"always", b"of %d" % i) for i in range(5)]
    for i, state in enumerate(states):
        mw.wait_for_weights(copy, i + 1, state)
    mw.publish_until(copy, 0)
    assert object_store.get(copy.store, mirror_copy.HEAD) is None
    mw.publish_until(copy, 2)
    mw.publish_until(copy, 4)
    # Nothing is deleted before nobody sends.
    assert {digest(b"of %d" % i) for i in range(5)} < blobs(copy)
    head = mw.forget(copy)
    assert [mirror_copy.read_state(copy.store, name) for name in head] == [states[3], states[1]]
    # 0 and 2 were never the newest, 4 still waits.
    assert blobs(copy) == {digest(b"always"), *(digest(b"of %d" % i) for i in (1, 3, 4))}
    mw.publish_until(copy, 5)
    mw.forget(copy)
    assert blobs(copy) == {digest(b"always"), *(digest(b"of %d" % i) for i in (3, 4))}


def test_weights_of_others_are_known_from_manifests_and_left_where_they_are(copy, tmp_path):
    other = dataclasses.replace(copy, folder=tmp_path / "other")
    write(other, A, b"of the other")
    write(copy, B, b"of this one")
    part = f"{checkpoint.unfinished(0)}/parts/other.fit.json"
    checkpoint.write_manifest(other.root, part, [A])
    write(copy, part, (other.root / part).read_bytes())
    there = {A: (12, digest(b"of the other"))}
    assert mw.all_elsewhere(copy.root) == there
    # Only what the other has told of is believed to exist.
    index = mirror_copy.read_index(copy)
    assert mw.known_elsewhere(copy, index) == {}
    index.state = {"under another name": there[A]}
    assert mw.known_elsewhere(copy, index) == there
    # The generation is finished here, without the file.
    (copy.root / checkpoint.unfinished(0) / "parts" / "other.fit.json").unlink()
    entries = checkpoint.read_manifest(other.root, part)["files"]
    checkpoint.finalise(copy.root, 0, [A, B], elsewhere=entries)
    moved = {path.replace("unfinished-", ""): entry for path, entry in there.items()}
    assert mw.known_elsewhere(copy, index) == moved
    with pytest.raises(checkpoint.CorruptCheckpointError, match="chain=a.safetensors is missing"):
        checkpoint.verify(copy.root, f"{checkpoint.finished(0)}/{checkpoint.MANIFEST}")
    # The other one takes over the new names. Its own content is not read from the store.
    state = mirror_copy.scan(copy, index) | moved
    now = mirror_copy.scan(other, Index(copy.store.address))
    for path in ("manifest.json",):
        data = (copy.root / checkpoint.finished(0) / path).read_bytes()
        object_store.put(copy.store, f"blobs/{digest(data)}", data)
    object_store.put(copy.store, f"blobs/{digest(b'{}')}", b"{}")
    mirror_copy.take(other, state, Index(copy.store.address), now, leave=mw.is_weights)
    places = [path.replace("unfinished-", "") for path in (A, B)]
    assert [(other.root / path).exists() for path in places] == [True, False]
    assert not (other.root / checkpoint.unfinished(0)).exists()


def test_weights_of_a_chain_whose_name_begins_alike_are_not_taken_for_those_asked_for(copy):
    names = [A.replace("chain=a", "chain=ratio-0"), A.replace("chain=a", "chain=ratio-0.5")]
    for name in names:
        write(copy, name, name.encode())
    checkpoint.finalise(copy.root, 0, names)
    mw.send_weights(copy)
    lost = copy.root / names[0].replace("unfinished-", "")
    lost.unlink()
    mw.fetch(copy, f"{checkpoint.finished(0)}/adapters/chain=ratio-0")
    assert lost.read_bytes() == names[0].encode()


def test_weights_of_another_process_are_fetched_where_they_are_needed(copy, monkeypatch):
    write(copy, A, b"weights")
    write(copy, B, b"more weights")
    checkpoint.finalise(copy.root, 0, [A, B])
    mw.send_weights(copy)
    stem = f"{checkpoint.finished(0)}/adapters/chain=a"
    for name in ("a", "b"):
        (copy.root / checkpoint.finished(0) / f"adapters/chain={name}.safetensors").unlink()
    mw.fetch(copy, stem)
    assert (copy.root / f"{stem}.safetensors").read_bytes() == b"weights"
    assert len(mw.all_elsewhere(copy.root)) == 1
    # Those that another process is sending are waited for.
    sha, sleeps = digest(b"more weights"), []
    object_store.delete(copy.store, f"blobs/{sha}")

    def sleep(seconds):
        sleeps.append(seconds)
        if len(sleeps) == 2:
            object_store.put(copy.store, f"blobs/{sha}", b"more weights")

    monkeypatch.setattr(mw.time, "sleep", sleep)
    mw.fetch(copy, stem[:-1] + "b")
    assert sleeps == [0.5, 1.0] and not mw.all_elsewhere(copy.root)


def test_a_state_is_whole_where_the_newest_one_has_the_weights_of_others(copy):
    write(copy, B, b"own")
    mine = mirror_copy.scan(copy, Index(copy.store.address))
    state = mine | {A: (5, digest(b"other"))}
    assert mw.is_whole(copy, mine, [])
    assert not mw.is_whole(copy, state, [])
    other = mirror_copy.write_head(copy, state_of(copy, b"a text"), [])
    assert not mw.is_whole(copy, state, other)
    assert mw.is_whole(copy, state, mirror_copy.write_head(copy, state_of(copy, b"other"), other))


def test_what_a_run_that_died_had_sent_is_deleted_by_the_next_one_here(copy):
    states = [state_of(copy, b"always", b"of %d" % i) for i in range(5)]
    mw.wait_for_weights(copy, 1, states[0])
    mw.publish_until(copy, 1)
    mw.wait_for_weights(copy, 2, states[1])
    mw.wait_for_weights(copy, 3, states[2])
    mw.publish_until(copy, 3)  # state 1 was never the newest
    mw.wait_for_weights(copy, 4, states[3])  # and it dies before the next meeting
    mirror_copy.restore_copy(copy)
    mw.begin(copy, mirror_copy.read_index(copy))
    mw.wait_for_weights(copy, 1, states[4])
    mw.publish_until(copy, 1)
    head = mw.forget(copy)
    assert [mirror_copy.read_state(copy.store, name) for name in head] == [states[4], states[2]]
    assert blobs(copy) == {digest(b"always"), *(digest(b"of %d" % i) for i in (2, 4))}


def test_a_new_store_at_an_address_knows_nothing_of_the_one_before(copy):
    mw.wait_for_weights(copy, 1, state_of(copy, b"a text"))
    mw.publish_until(copy, 1)
    object_store.delete(copy.store, mirror_copy.HEAD)
    mirror_copy.restore_copy(copy)
    mw.begin(copy, mirror_copy.read_index(copy))
    mw.wait_for_weights(copy, 1, state_of(copy, b"a text"))
    mw.publish_until(copy, 1)
    assert object_store.get(copy.store, mirror_copy.HEAD) is not None
