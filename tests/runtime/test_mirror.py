"""A run directory in an object store: here one made of files, and an S3 server on this machine."""

import json
import os
import shutil
import socket
import time

import filelock
import pytest

from jaxloop.runtime import checkpoint, lease, mirror, mirror_copy, object_store
from jaxloop.runtime.atomic_io import TEMPORARY
from jaxloop.runtime.signals import Stopped
from jaxloop.runtime.workdir import LOCK, MARKER


@pytest.fixture
def place(tmp_path, monkeypatch):
    """(address of a store of files, its folder)."""
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "here"))
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.3)
    folder = tmp_path / "store"
    folder.mkdir()
    return f"file://{folder}", folder


def another_machine(monkeypatch, tmp_path, name="there"):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / name))


def begin(root):
    (root / MARKER).write_text("{}")
    (root / "config.json").write_text("{}")


def finish_generation(root, generation):
    """A generation with an adapter and a text, finished as the driver does it."""
    place = checkpoint.unfinished(generation)
    for name in (f"{place}/adapters/a.safetensors", f"texts/chain=a/generation={generation:04d}"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"content {generation} of {path.name}".encode())
    files = [f"{place}/adapters/a.safetensors", f"texts/chain=a/generation={generation:04d}"]
    checkpoint.finalise(root, generation, files)


def files_of(root):
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def run(address, generations, stop=None):
    """Make generations up to `generations`, going on where the copy is."""
    with mirror.mirrored(address) as root:
        begin(root)
        state = checkpoint.scan(root)
        for generation in range(0 if state.last is None else state.last + 1, generations):
            finish_generation(root, generation)
        if stop is not None:
            raise stop
        return files_of(root)


def test_a_machine_that_has_nothing_goes_on(place, tmp_path, monkeypatch):
    address, folder = place
    run(address, 2)
    another_machine(monkeypatch, tmp_path)
    resumed = run(address, 3)
    assert {name.split("/")[1] for name in resumed if name.startswith("checkpoints/")} == {
        f"generation={g:04d}" for g in range(3)
    }
    assert checkpoint.scan(mirror.restore(address)).last == 2
    assert not (folder / "lease.json").exists()


def test_after_an_error_or_a_signal_what_is_finished_is_there(place, tmp_path, monkeypatch):
    address, _ = place
    with pytest.raises(SystemExit):
        run(address, 2, stop=SystemExit(143))
    another_machine(monkeypatch, tmp_path)
    assert checkpoint.scan(mirror.restore(address)).last == 1


def test_what_a_killed_process_was_writing_is_deleted(place):
    address, _ = place
    run(address, 1)
    copy = mirror.folder_of(address)
    unfinished = copy / f"{TEMPORARY}0a1b2c3d-mirror.json"
    unfinished.write_text("half of a fi")
    run(address, 2)
    assert not unfinished.exists() and (copy / "mirror.json").exists()


def test_a_finished_generation_is_sent_while_the_run_goes_on(place, tmp_path, monkeypatch):
    address, folder = place
    with mirror.mirrored(address) as root:
        begin(root)
        finish_generation(root, 0)
        unfinished = root / checkpoint.unfinished(1) / "parts" / "x"
        unfinished.parent.mkdir(parents=True)
        unfinished.write_text("not finished")
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if (folder / "head.json").exists():
                head = json.loads((folder / "head.json").read_text())["states"][0]
                state = json.loads((folder / "states" / f"{head}.json").read_text())
                if any("generation=0000/manifest.json" in name for name in state):
                    break
            time.sleep(0.05)
        assert "texts/chain=a/generation=0000" in state
        assert not any("unfinished" in name for name in state)


def test_a_pruned_file_leaves_the_store_and_a_renamed_one_is_not_sent_again(place):
    address, folder = place
    run(address, 2)
    before = {path.name for path in (folder / "blobs").iterdir()}
    for _ in range(3):  # the two newest states are kept
        with mirror.mirrored(address) as root:
            checkpoint.remove_files(root, 0, [f"{checkpoint.finished(0)}/adapters/a.safetensors"])
            (root / "notes").write_text(str(time.time_ns()))
            if (root / "metrics.csv").exists():
                os.replace(root / "metrics.csv", root / "other.csv")
            else:
                (root / "metrics.csv").write_text("a table")
    after = {path.name for path in (folder / "blobs").iterdir()}
    gone = mirror_copy.digest(b"content 0 of a.safetensors")
    assert gone in before and gone not in after
    assert mirror_copy.digest(b"a table") in after


def test_a_damaged_object_costs_the_newest_state_at_most(place, tmp_path, monkeypatch, caplog):
    address, folder = place
    run(address, 1)
    run(address, 2)
    blob = folder / "blobs" / mirror_copy.digest(b"content 1 of a.safetensors")
    blob.write_bytes(blob.read_bytes()[:-1])
    another_machine(monkeypatch, tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert checkpoint.scan(mirror.restore(address)).last == 0
    # An object that both states need costs its generation.
    blob = folder / "blobs" / mirror_copy.digest(b"content 0 of a.safetensors")
    whole = blob.read_bytes()
    (folder / "blobs" / mirror_copy.digest(b"content 1 of a.safetensors")).unlink()
    blob.unlink()
    another_machine(monkeypatch, tmp_path, "third")
    root = mirror.restore(address)
    assert "neither state is whole; going on without" in caplog.text
    assert not (root / checkpoint.finished(0) / "adapters").exists()
    with pytest.raises(checkpoint.CorruptCheckpointError, match="generation 0 cannot be used"):
        checkpoint.scan(root)
    blob.write_bytes(whole)
    for blob in (folder / "blobs").iterdir():
        blob.write_bytes(b"flipped")
    another_machine(monkeypatch, tmp_path, "elsewhere")
    with pytest.raises(ValueError, match="neither the newest state nor the one before can be"):
        mirror.restore(address)


def test_a_copy_that_is_further_than_the_store_is_kept(place):
    address, _ = place
    run(address, 1)
    root = mirror.restore(address)
    finish_generation(root, 1)  # and the machine lost power before anything was sent
    assert checkpoint.scan(mirror.restore(address)).last == 1


def test_a_copy_that_is_behind_the_store_becomes_what_the_store_has(place, tmp_path, monkeypatch):
    address, _ = place
    run(address, 1)
    another_machine(monkeypatch, tmp_path)
    there = run(address, 3)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "here"))
    root = mirror.restore(address)
    assert files_of(root) == there


def test_a_second_run_is_refused_with_the_holder_named(place):
    address, folder = place
    with mirror.mirrored(address):
        held = json.loads((folder / "lease.json").read_text())
        (folder / "lease.json").write_text(json.dumps(held | {"host": "elsewhere"}))
        said = f"is in use by process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(ValueError, match=said):
            with mirror.mirrored(address):
                pass


def test_a_run_whose_address_is_taken_over_leaves(place, monkeypatch):
    address, folder = place
    left = []
    monkeypatch.setattr(mirror.os, "_exit", left.append)
    with mirror.mirrored(address):
        held = json.loads((folder / "lease.json").read_text())
        (folder / "lease.json").write_text(json.dumps(held | {"token": "another"}))
        end = time.monotonic() + 20
        while not left and time.monotonic() < end:
            time.sleep(0.05)
    assert left and set(left) == {2}


def test_what_another_machine_was_making_stays_when_a_run_is_begun_again(place, tmp_path):
    address, _ = place
    run(address, 1)
    root = mirror.restore(address)
    begun = root / checkpoint.unfinished(1) / "parts" / "x"
    begun.parent.mkdir(parents=True)
    begun.write_text("of a run that was killed")
    (root / "notes").write_text("of the same")
    copy = mirror_copy.Mirror(object_store.open_store(address), root.parent)
    index = mirror_copy.read_index(copy)
    index.head = []  # as where another machine has gone on since
    mirror_copy.write_index(copy, index)
    mirror_copy.restore_copy(copy)
    assert begun.exists() and not (root / "notes").exists()


def test_a_lease_ends_by_itself_and_that_of_a_dead_process_at_once(place):
    address, folder = place
    store = object_store.open_store(address)
    lease.acquire(store)
    held = json.loads((folder / "lease.json").read_text())
    assert 50 < held["until"] - time.time() <= 60
    for ends_in in (-1, 0.5):  # over, or of a machine that is gone: it is waited for
        end = time.time() + ends_in
        (folder / "lease.json").write_text(json.dumps(held | {"host": "elsewhere"}))
        os.utime(folder / "lease.json", 2 * (end - lease.LEASE_SECONDS,))
        lease.acquire(store)
        assert time.time() >= end - 0.1  # a file system's times are coarse
    (folder / "lease.json").write_text(json.dumps(held | {"pid": 2**22 + 1}))
    token = lease.acquire(store)
    (folder / "lease.json").write_text(json.dumps(held | {"token": "another"}))
    with pytest.raises(ValueError, match="another run has taken it over"):
        lease.renew(store, token)
    lease.release(store, token)
    assert (folder / "lease.json").exists()


@pytest.mark.parametrize(
    "address, said",
    [
        ("gs://bucket/run", r"needs a library that is not installed; pip install 'jaxloop-lm\[gcs"),
        ("nope://bucket/run", r"nope:// is no kind of store; there are s3://, gs://"),
        ("memory://", r"names no place"),
    ],
)
def test_addresses_that_make_no_sense_are_refused(address, said):
    if address.startswith("gs"):
        try:
            import gcsfs  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("gcsfs is installed here")
    with pytest.raises(ValueError, match=said):
        object_store.open_store(address)


def test_a_later_format_and_a_damaged_head_are_said(place):
    address, folder = place
    (folder / "head.json").write_text('{"format": 2, "states": []}')
    with pytest.raises(ValueError, match="has format 2, of a later version"):
        mirror.restore(address)
    (folder / "head.json").write_text("{")
    with pytest.raises(ValueError, match="its head.json is damaged"):
        mirror.restore(address)


class Failing:
    """A store whose operations fail as they are told, one after another."""

    protocol = "s3"

    def __init__(self, files, errors):
        self.files, self.errors = files, list(errors)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            if name in ("pipe_file", "cat_file") and self.errors:
                raise self.errors.pop(0)
            return getattr(self.files, name)(*args, **kwargs)

        return call


def test_what_may_pass_is_tried_again_and_what_may_not_is_said(place, monkeypatch):
    address, folder = place
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    store = object_store.open_store(address)

    def failing(*errors):
        return object_store.Store(address, Failing(store.files, errors), store.root)

    object_store.put(failing(OSError("503 slow down"), TimeoutError()), "a", b"x")
    assert object_store.get(failing(OSError("503 slow down")), "a") == b"x"
    with pytest.raises(OSError, match="writing a failed 6 times .503"):
        object_store.put(failing(*[OSError("503")] * 6), "a", b"y")
    for error, said in (
        (PermissionError("403"), "writing a is not allowed .403.; check the credentials"),
        (FileNotFoundError("NoSuchBucket"), "there is no such bucket"),
        (RuntimeError("Unable to locate credentials"), "there are no credentials"),
    ):
        with pytest.raises(ValueError, match=said):
            object_store.put(failing(error), "a", b"z")
    assert object_store.get(store, "a") == b"x" and object_store.get(store, "b") is None


def states_of(folder):
    return {path.stem for path in (folder / "states").iterdir()}


def test_a_machine_that_goes_on_forgets_what_only_older_states_needed(place, tmp_path, monkeypatch):
    """Each time a spot machine is replaced, the state before the newest must go in its time."""
    address, folder = place
    monkeypatch.setattr(mirror, "LOOK_SECONDS", 60)
    for number in range(4):
        another_machine(monkeypatch, tmp_path, f"machine-{number}")
        with mirror.mirrored(address) as root:
            begin(root)
            (root / "run.log").write_text(f"of machine {number}")
    blobs = {path.name for path in (folder / "blobs").iterdir()}
    logs = [mirror_copy.digest(b"of machine %d" % number) for number in range(4)]
    assert [sha in blobs for sha in logs] == [False, False, True, True]
    assert len(states_of(folder)) == 2


def test_a_run_that_is_read_here_while_it_forgets_an_old_state_is_left_alone(place, monkeypatch):
    address, _ = place
    run(address, 1)
    forget_old, read = mirror_copy.forget_old, []

    def forget_and_be_read(copy, head, **more):
        unfinished = copy.root / "texts" / "chain=a" / "generation=0002"
        unfinished.write_text("of the generation that is being made")
        mirror.restore(address)
        read.append(unfinished.exists())
        unfinished.unlink(missing_ok=True)
        return forget_old(copy, head, **more)

    monkeypatch.setattr(mirror_copy, "forget_old", forget_and_be_read)
    run(address, 2)
    assert read and all(read)


def test_a_run_that_is_read_here_before_it_notes_its_new_state_is_left_alone(place, monkeypatch):
    """The store names the state already; the directory is locked, as `open_workdir` locks it."""
    address, _ = place
    write_head, read = mirror_copy.write_head, []

    def write_and_be_read(copy, *arguments):
        head = write_head(copy, *arguments)
        unfinished = copy.root / "texts" / "chain=a" / "generation=0002"
        unfinished.write_text("of the generation that is being made")
        with filelock.FileLock(copy.root / LOCK):
            mirror.restore(address)
        read.append(unfinished.exists())
        return head

    monkeypatch.setattr(mirror_copy, "write_head", write_and_be_read)
    run(address, 2)
    assert read and all(read)


@pytest.mark.parametrize("module, work", [(mirror, "scan"), (mirror_copy, "send")])
def test_a_state_has_the_files_that_its_manifests_list(place, tmp_path, monkeypatch, module, work):
    """Metrics are added to a finished generation while it is sent, and the process is killed."""
    address, _ = place
    run(address, 1)
    copy = mirror_copy.Mirror(object_store.open_store(address), mirror_copy.folder_of(address))
    table = f"{checkpoint.finished(0)}/metrics-0001.parquet"
    working = getattr(module, work)

    def added_meanwhile(*arguments, **options):
        (copy.root / table).write_bytes(b"values")
        checkpoint.add_files(copy.root, 0, [table])
        return working(*arguments, **options)

    (copy.root / "texts/more").write_text("something to send")
    checkpoint.add_files(copy.root, 0, ["texts/more"])
    monkeypatch.setattr(module, work, added_meanwhile)
    mirror._send_whole(copy)
    monkeypatch.setattr(module, work, working)
    for there in (False, True):
        another_machine(monkeypatch, tmp_path, f"there {there}")
        root = mirror.restore(address)
        assert checkpoint.scan(root).last == 0 and (root / table).exists() == there
        mirror._send_whole(copy)


def test_contents_that_change_places_are_not_mixed_up(place, tmp_path, monkeypatch):
    address, folder = place
    monkeypatch.setattr(mirror_copy, "THREADS", 1)
    copy = mirror_copy.Mirror(object_store.open_store(address), tmp_path / "copy")
    copy.root.mkdir(parents=True)
    (copy.root / "a").write_text("")
    (copy.root / "b").write_text("old")
    index = mirror_copy.Index(address)
    now = mirror_copy.scan(copy, index)
    contents = {"a": b"old", "b": b"new", "c": b""}
    state = {name: (len(data), mirror_copy.digest(data)) for name, data in contents.items()}
    for data in contents.values():
        object_store.put(copy.store, f"blobs/{mirror_copy.digest(data)}", data)
    mirror_copy.take(copy, state, index, now)
    assert {path: (copy.root / path).read_bytes() for path in state} == contents


def test_a_store_that_cannot_be_used_for_a_while_does_not_end_a_run(place, monkeypatch, caplog):
    """Such as where the credentials of a machine are being renewed."""
    address, _ = place
    left = []
    monkeypatch.setattr(mirror.os, "_exit", left.append)
    with mirror.mirrored(address) as root:
        begin(root)
        put = object_store.put

        def refused(store, name, data):
            raise ValueError(f"writing {name} is not allowed (ExpiredToken)")

        monkeypatch.setattr(object_store, "put", refused)
        end = time.monotonic() + 20
        while "the lease of the address is not renewed" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.05)
        monkeypatch.setattr(object_store, "put", put)
    assert left == []


@pytest.mark.parametrize("stop", [Stopped(15), KeyError("of the run")])
def test_a_store_that_fails_at_the_end_does_not_hide_why_the_run_ends(
    place, monkeypatch, caplog, stop
):
    address, _ = place

    def refused(*args):
        raise OSError(5, "503 slow down", address)

    with pytest.raises(type(stop)) as error:
        with mirror.mirrored(address) as root:
            begin(root)
            finish_generation(root, 0)
            monkeypatch.setattr(object_store, "put", refused)
            monkeypatch.setattr(object_store, "get", refused)
            raise stop
    assert error.value is stop
    assert "what was finished lies in the copy on this machine alone" in caplog.text
    assert "the lease of the address ends in 60 s" in caplog.text


def test_the_lease_of_a_machine_whose_clock_was_wrong_is_not_waited_for_long(place, monkeypatch):
    address, folder = place
    store = object_store.open_store(address)
    lease.acquire(store)
    held = json.loads((folder / "lease.json").read_text())
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    ahead = held | {"host": "elsewhere", "until": time.time() + 86400}
    (folder / "lease.json").write_text(json.dumps(ahead))
    start = time.monotonic()
    lease.acquire(store)
    assert 0.4 < time.monotonic() - start < 20


def test_a_clock_that_is_ahead_takes_over_no_lease_that_lives(place, monkeypatch):
    """What the own clock says of it does not count, but how old it is in the store."""
    address, folder = place
    store = object_store.open_store(address)
    lease.acquire(store)
    held = json.loads((folder / "lease.json").read_text()) | {"host": "elsewhere"}
    (folder / "lease.json").write_text(json.dumps(held | {"until": time.time() - 3600}))
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.5)
    start = time.monotonic()
    lease.acquire(store)
    assert time.monotonic() - start > 0.3  # it was given the time to renew it
    assert [path.name for path in folder.iterdir()] == ["lease.json"]


def test_what_a_dead_run_left_of_its_meetings_is_deleted(place):
    """And nothing else that lies beside it."""
    address, folder = place
    run(address, 1)
    for name in ("sync/7/0.json", "sync/7/1.json", "sync/notes.txt", "sync/7/a.json"):
        object_store.put(object_store.open_store(address), name, b"{}")
    run(address, 2)
    left = {str(path.relative_to(folder)) for path in folder.glob("sync/**/*") if path.is_file()}
    assert left == {"sync/notes.txt", "sync/7/a.json"}


def test_a_run_that_was_deleted_from_the_store_is_not_gone_on_with_from_its_copy(place):
    address, folder = place
    run(address, 1)
    shutil.rmtree(folder)
    folder.mkdir()
    for use in (lambda: run(address, 2), lambda: mirror.restore(address)):
        with pytest.raises(ValueError, match=r"holds no run any more, .* delete .* to begin anew"):
            use()
    assert [path.name for path in folder.iterdir()] == []
    copy = mirror_copy.folder_of(address)
    shutil.rmtree(copy)
    assert len(run(address, 1)) > 3
