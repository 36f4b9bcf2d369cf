"""Several processes of which one is killed, vanishes or is told to stop: on a disk that they share,
and in a store of files with a disk for each.
"""

import signal
import time

import pytest
from support import contents, start
from test_stores import SECONDS, cluster, ended, on_machine, restored, wait_for_generation

from jaxloop.runtime import checkpoint
from jaxloop.runtime.atomic_io import files_in
from jaxloop.runtime.signals import EXIT_GONE


def place_of(kind, tmp_path):
    return tmp_path / "shared" if kind == "disk" else f"file://{tmp_path / 'store'}"


def finished_there(kind, tmp_path, monkeypatch, name="new"):
    if kind == "disk":
        return contents(tmp_path / "shared")
    return restored(tmp_path, place_of(kind, tmp_path), monkeypatch, name)


def begun(kind, tmp_path, processes, generation=1):
    """Wait until a generation is finished, so that all are in the middle of the next."""
    if kind == "store":
        wait_for_generation(tmp_path / "machine0", generation, processes)
        return
    end = time.monotonic() + SECONDS
    while not (tmp_path / "shared" / f"checkpoints/generation={generation:04d}").is_dir():
        assert all(p.poll() is None for p in processes), processes[0].communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "kind, killed, then",
    [
        ("disk", 1, 1),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("disk", 0, 2), ("store", 1, 1), ("store", 0, 2)]
        ),
    ],
)
def test_a_killed_process_ends_the_others_and_the_same_command_goes_on(
    tmp_path, whole, monkeypatch, kind, killed, then
):
    place = place_of(kind, tmp_path)
    both = cluster(tmp_path, place, 4, 0.5)
    begun(kind, tmp_path, both)
    both[killed].kill()
    at = time.monotonic()
    said = both[1 - killed].communicate(timeout=SECONDS)[1]
    assert both[1 - killed].returncode == EXIT_GONE, said
    assert time.monotonic() - at < 15  # the connection ends at once; no sign of life takes 60 s
    line = f"process {killed} of the run is gone: its connection has ended"
    assert said.count(line) == 1 and line in said.splitlines()[-1] and "Traceback" not in said
    both[killed].communicate()
    if then == 2:
        for process in cluster(tmp_path, place):
            ended(process)
    else:
        ended(start(place, env=on_machine(tmp_path, "machine0")))
    assert finished_there(kind, tmp_path, monkeypatch) == whole[1]


@pytest.mark.slow
def test_a_process_that_only_stands_still_ends_the_others(tmp_path, whole, monkeypatch):
    both = cluster(tmp_path, place_of("disk", tmp_path), 4, 0.5, JAXLOOP_TEST_SILENCE="3")
    begun("disk", tmp_path, both)
    both[1].send_signal(signal.SIGSTOP)
    at = time.monotonic()
    said = both[0].communicate(timeout=SECONDS)[1]
    took = time.monotonic() - at
    both[1].kill()
    both[1].communicate()
    assert both[0].returncode == EXIT_GONE and took < 10
    assert "process 1 of the run is gone: no sign of life for 3 s" in said.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_sigterm_to_one_of_two_machines_seals_and_ends_both_in_time(
    tmp_path, whole, monkeypatch, told
):
    place = place_of("store", tmp_path)
    both = cluster(tmp_path, place, 4, 2.0)
    begun("store", tmp_path, both)
    time.sleep(1.0)  # now both train
    both[told].send_signal(signal.SIGTERM)
    at = time.monotonic()
    said = [process.communicate(timeout=SECONDS)[1] for process in both]
    assert time.monotonic() - at < 30
    assert [process.returncode for process in both] == [143, 143], said
    assert "another process of the run was told to stop" in said[1 - told]
    assert not (tmp_path / "store" / "lease.json").exists()
    sealed = restored(tmp_path, place, monkeypatch, "looks")
    assert any(name.startswith("checkpoints/generation=0001/") for name in sealed)
    # What each had finished of the generation that was under way is there too.
    parts = {n.split("/")[-1] for n in sealed if n.startswith("checkpoints/unfinished-")}
    assert any(n.endswith(".json") and n != "study.json" for n in parts), parts
    # On other machines, which have nothing.
    ended(start(place, env=on_machine(tmp_path, "elsewhere")))
    assert restored(tmp_path, place, monkeypatch, "at last") == whole[1]


@pytest.mark.slow
def test_a_step_that_is_longer_than_the_notice_is_left(tmp_path, whole, monkeypatch):
    place = place_of("store", tmp_path)
    one = start(place, 4, 60.0, env=on_machine(tmp_path, "a"))
    end = time.monotonic() + SECONDS
    name = checkpoint.unfinished(0).split("/")[-1]
    while not any(name in file.parts for file in files_in(tmp_path / "a")):
        assert one.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    one.send_signal(signal.SIGTERM)
    at = time.monotonic()
    said = one.communicate(timeout=SECONDS)[1]
    assert one.returncode == 143 and 20 < time.monotonic() - at < 30, said
    assert not (tmp_path / "store" / "lease.json").exists()
    ended(start(place, env=on_machine(tmp_path, "b")))
    assert restored(tmp_path, place, monkeypatch) == whole[1]


@pytest.mark.slow
def test_stopped_on_four_machines_and_resumed_on_one_and_on_two(tmp_path, whole, monkeypatch):
    place = place_of("store", tmp_path)
    four = cluster(tmp_path, place, 4, 0.5, count=4)
    begun("store", tmp_path, four, 0)
    four[2].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=SECONDS)[1] for process in four]
    assert [process.returncode for process in four] == [143] * 4, said
    one = start(place, 4, 0.5, env=on_machine(tmp_path, "one"))
    wait_for_generation(tmp_path / "one", 1, [one])
    one.send_signal(signal.SIGTERM)
    assert one.wait(SECONDS) == 143
    one.communicate()
    for process in cluster(tmp_path / "two", place):
        ended(process)
    assert restored(tmp_path, place, monkeypatch) == whole[1]
