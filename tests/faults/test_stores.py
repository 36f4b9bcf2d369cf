"""Runs in an object store: machines that come and go, each with a disk of its own. The store is a
folder, and an S3 server on this machine.
"""

import os
import random
import socket
import time
import urllib.request

import pytest
from support import contents, start

from jaxloop.runtime import checkpoint, mirror
from tests.peers import require

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


def ended(process):
    """Wait for a process that must succeed."""
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said


def wait_for_generation(cache, generation, processes):
    """Wait until the copy in a cache folder has finished a generation."""
    end = time.monotonic() + SECONDS
    name = f"checkpoints/{checkpoint.finished(generation).split('/')[-1]}"
    while not list(cache.glob(f"mirrors/*/**/{name}")):
        assert all(p.poll() is None for p in processes), processes[0].communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


# ---- a real server of the protocol


@pytest.fixture(scope="module")
def s3():
    """The environment of a client of an S3 server on this machine."""
    server_module, _ = require("moto.server", "s3fs")
    server = server_module.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
    urllib.request.urlopen(request, timeout=20).read()
    yield {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.mark.slow
def test_a_run_on_s3_ends_and_is_restored(tmp_path, whole, s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    address = "s3://bucket/one"
    one = start(address, env=on_machine(tmp_path, "a", **s3))
    ended(one)
    assert restored(tmp_path, address, monkeypatch) == whole[1]
    both = [p.communicate(timeout=SECONDS)[1] for p in cluster(tmp_path, "s3://bucket/two", **s3)]
    assert restored(tmp_path, "s3://bucket/two", monkeypatch, "b") == whole[1], both


@pytest.mark.slow
def test_killed_at_random_moments_a_run_on_s3_goes_on(tmp_path, whole, s3, monkeypatch):
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    address, chance = "s3://bucket/killed", random.Random(0)
    for attempt in range(8):
        # A machine of its own each time, so that only the store remembers.
        one = start(address, 4, 0.3, env=on_machine(tmp_path, f"m{attempt}", **s3))
        time.sleep(5 + 12 * chance.random())
        one.kill()
        one.communicate()
    last = start(address, env=on_machine(tmp_path, "last", **s3))
    ended(last)
    assert restored(tmp_path, address, monkeypatch) == whole[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "address, change, said",
    [
        ("s3://absent/run", {}, "there is no such bucket"),
        ("s3://bucket/run", {"AWS_ACCESS_KEY_ID": None}, "there are no credentials"),
    ],
)
def test_what_cannot_be_used_on_s3_is_said(tmp_path, s3, address, change, said):
    environment = on_machine(tmp_path, "a", **s3, AWS_EC2_METADATA_DISABLED="true", HOME="/none")
    for name, value in change.items():
        if value is None:
            environment.pop(name)
            environment.pop("AWS_SECRET_ACCESS_KEY")
    one = start(address, env=environment)
    out, error = one.communicate(timeout=SECONDS)
    assert (one.returncode, said in error.splitlines()[-1]) == (2, True), error
