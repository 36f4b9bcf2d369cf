"""Runs in an object store: machines that come and go, each with a disk of its own. The store is a
folder; `test_servers.py` has real servers.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import contents, start

from jaxloop.runtime import checkpoint, mirror, mirror_copy, object_store
from jaxloop.runtime.atomic_io import files_in

SECONDS = 240


def on_machine(folder, name, **more):
    """The environment of a process on a machine with a disk of its own."""
    return os.environ | {"JAXLOOP_CACHE": str(folder / name)} | more


def cluster(folder, address, *arguments, count=2, **more):
    """Processes on machines of their own."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    variables = {"JAXLOOP_COORDINATOR": coordinator, "JAXLOOP_PROCESSES": str(count)} | more
    environments = [
        on_machine(folder, f"machine{i}", JAXLOOP_PROCESS=str(i), **variables) for i in range(count)
    ]
    return [start(address, *arguments, env=environment) for environment in environments]


def restored(folder, address, monkeypatch, name="new"):
    """What a machine that has nothing finds at the address."""
    monkeypatch.setenv("JAXLOOP_CACHE", str(folder / name))
    return contents(mirror.restore(address))


@pytest.fixture
def address(tmp_path):
    return f"file://{tmp_path / 'store'}"


def test_two_machines_without_a_common_disk_leave_the_same_files(
    tmp_path, whole, address, monkeypatch
):
    ended = [p.communicate(timeout=SECONDS)[1] for p in cluster(tmp_path, address)]
    assert restored(tmp_path, address, monkeypatch) == whole[1], ended
    blobs = sum(p.stat().st_size for p in (tmp_path / "store" / "blobs").iterdir())
    kept = sum(p.stat().st_size for p in whole[0].rglob("*") if p.is_file())
    assert blobs < 1.5 * kept  # what only the state before the newest had is in it
    # Each machine has the weights that it trained, and all of the rest.
    here = [weights_in(tmp_path / f"machine{k}") for k in range(2)]
    assert here[0] and here[1] and not here[0] & here[1]
    assert weights_in(tmp_path / "new") <= here[0] | here[1]


def weights_in(cache):
    """Weights of finished generations in the copies of a cache folder."""
    places = cache.glob("mirrors/**/checkpoints/generation=*/adapters/*")
    return {f"{path.parts[-3]}/{path.name}" for path in places}


@pytest.mark.slow  # piece by piece in `tests/runtime/test_mirror_weights.py`
@pytest.mark.parametrize("killed", [False, True])
def test_no_generation_waits_until_its_weights_are_sent(
    tmp_path, whole, address, monkeypatch, killed
):
    gate = tmp_path / "gate"
    both = cluster(tmp_path, address, JAXLOOP_TEST_GATE=str(gate))
    wait_for_generation(tmp_path / "machine0", 0, both)
    wait_for_generation(tmp_path / "machine1", 0, both)
    # The newest state of the store is one whose contents are all there.
    found = mirror_copy.read_state(*newest(address))
    assert found and not any("/adapters/" in path for path in found)
    if killed:
        for process in both:
            process.kill()
            process.communicate()
        both = cluster(tmp_path, address)
    gate.touch()
    for process in both:
        ended(process)
    assert restored(tmp_path, address, monkeypatch) == whole[1]


def newest(address):
    """(a store, the name of its newest state)."""
    store = object_store.open_store(address)
    return store, json.loads(object_store.get(store, "head.json"))["states"][0]


@pytest.mark.slow
def test_two_machines_that_vanish_are_followed_by_one(tmp_path, whole, address, monkeypatch):
    both = cluster(tmp_path, address, 4, 0.3)
    wait_for_generation(tmp_path / "machine0", 1, both)
    for process in both:
        process.kill()
        process.communicate()
    one = start(address, env=on_machine(tmp_path, "elsewhere"))
    ended(one)
    assert restored(tmp_path, address, monkeypatch) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_machines_that_vanish_at_random_moments_are_followed_by_any_number(
    tmp_path, whole, address, monkeypatch, seed
):
    chance = random.Random(seed)
    for _ in range(5):
        count = chance.choice([2, 3])
        machines = cluster(tmp_path, address, 4, 0.1, count=count)
        time.sleep(chance.uniform(2.0, 9.0))
        for process in chance.sample(machines, count):
            process.kill()
            time.sleep(chance.choice([0.0, 0.3]))
        for process in machines:
            process.communicate()
        if chance.random() < 0.5:  # its disk is lost too
            shutil.rmtree(tmp_path / f"machine{count - 1}", ignore_errors=True)
    for process in cluster(tmp_path, address, count=chance.choice([2, 3])):
        ended(process)
    assert restored(tmp_path, address, monkeypatch) == whole[1]


def ended(process):
    """Wait for a process that must succeed."""
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


def wait_for_generation(cache, generation, processes):
    """Wait until the copy in a cache folder has finished a generation."""
    end = time.monotonic() + SECONDS
    name = checkpoint.finished(generation).split("/")[-1]
    while not any(name in file.parts for file in files_in(cache / "mirrors")):
        assert all(p.poll() is None for p in processes), processes[0].communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


SMALL_STUDY = (
    "--config=configs/quickstart.py:window",
    "--config.chain.generations=4",
    "--config.chain.size=32",
    "--config.chain.eval_texts=8",
    "--config.chain.heldout_texts=8",
    "--config.fit.steps=1",
)


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["none", "1"])
def test_a_study_by_its_command_on_two_machines(tmp_path, address, monkeypatch, keep):
    words = [sys.executable, "-m", "jaxloop.main", *SMALL_STUDY, f"--config.run.keep={keep}"]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    cluster_of = {"JAXLOOP_COORDINATOR": coordinator, "JAXLOOP_PROCESSES": "2"}
    machines = [
        subprocess.Popen(
            [*words, f"--workdir={address}"],
            cwd=Path(__file__).parents[2],
            env=on_machine(tmp_path, f"machine{k}", JAXLOOP_PROCESS=str(k), **cluster_of),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(2)
    ]
    for machine in machines:
        ended(machine)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "new"))
    root = mirror.restore(address)
    state = checkpoint.scan(root)
    assert state.last == 3 and not state.lost
    assert not list(root.glob("checkpoints/damaged-*"))
    assert (root / "report.html").exists()
    generations = {path.parts[-3] for path in root.glob("checkpoints/*/adapters/*")}
    assert len(generations) == (4 if keep == "none" else 1)
