"""Runs on real servers of the protocols of object stores, whole, damaged, slow, busy and closed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import start
from test_stores import SECONDS, cluster, ended, on_machine, restored, wait_for_generation

from jaxloop.runtime import checkpoint, mirror, object_store
from tests import store_servers
from tests.store_servers import Behaviour

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def s3():
    with store_servers.s3_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def gcs():
    with store_servers.gcs_server() as environment:
        yield environment


@pytest.fixture(params=["s3", "gs"])
def place(request, monkeypatch):
    """(an address of its own for each test, the environment of a client)."""
    if request.param == "s3":
        environment = store_servers.s3_environment(request.getfixturevalue("s3"))
    else:
        environment = request.getfixturevalue("gcs")
    set_all(monkeypatch, environment)
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    return f"{request.param}://bucket/{name}", environment


@pytest.fixture
def behind_proxy(s3, monkeypatch):
    """(behaviour of a proxy before the S3 server, environment of a client that goes through it).

    The tests themselves go to the server directly.
    """
    behaviour = Behaviour()
    with store_servers.proxy(s3, behaviour) as endpoint:
        set_all(monkeypatch, store_servers.s3_environment(s3))
        yield behaviour, store_servers.s3_environment(endpoint)


def set_all(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def newest(store):
    """The newest state in a store: {path: (size, SHA-256)}."""
    head = json.loads(object_store.get(store, "head.json"))["states"]
    return json.loads(object_store.get(store, f"states/{head[0]}.json"))


def test_a_run_ends_and_is_found_by_a_machine_that_has_nothing(tmp_path, whole, place, monkeypatch):
    address, environment = place
    ended(start(address, env=on_machine(tmp_path, "a", **environment)))
    assert restored(tmp_path, address, monkeypatch) == whole[1]


def test_two_machines_that_are_stopped_are_followed_by_one(tmp_path, whole, place, monkeypatch):
    address, environment = place
    both = cluster(tmp_path, address, 4, 0.5, **environment)
    wait_for_generation(tmp_path / "machine0", 1, both)
    both[1].send_signal(signal.SIGTERM)
    said = [p.communicate(timeout=SECONDS)[1] for p in both]
    assert [p.returncode for p in both] == [143, 143], said
    ended(start(address, env=on_machine(tmp_path, "one", **environment)))
    assert restored(tmp_path, address, monkeypatch) == whole[1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "deleted"])
def test_a_damaged_object_is_never_used(tmp_path, whole, place, monkeypatch, damage, caplog):
    address, environment = place
    one = start(address, 4, 0.5, env=on_machine(tmp_path, "a", **environment))
    wait_for_generation(tmp_path / "a", 2, [one])
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=SECONDS)
    store = object_store.open_store(address)
    state = newest(store)
    last = max(path for path in state if path.startswith("texts/"))
    name = f"blobs/{state[last][1]}"
    data = object_store.get(store, name)
    if damage == "deleted":
        object_store.delete(store, name)
    else:
        flipped = bytes([data[0] ^ 1]) + data[1:]
        object_store.put(store, name, data[:-1] if damage == "truncated" else flipped)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "looks"))
    before = checkpoint.scan(mirror.restore(address)).last
    assert before < int(last.split("=")[-1].split(".")[0]) and "going on" in caplog.text
    ended(start(address, env=on_machine(tmp_path, "b", **environment)))
    assert restored(tmp_path, address, monkeypatch) == whole[1]


@pytest.mark.parametrize("killed_while", ["sending", "restoring"])
def test_killed_at_random_moments_a_run_goes_on(
    tmp_path, whole, behind_proxy, monkeypatch, killed_while
):
    behaviour, environment = behind_proxy
    # Slow enough that most moments lie in the middle of sending or restoring.
    behaviour.delay = 0.05
    address, chance = f"s3://bucket/{killed_while}", random.Random(1)
    if killed_while == "restoring":
        first = start(address, 3, env=on_machine(tmp_path, "first", **environment))
        ended(first)
    for attempt in range(6):
        before = behaviour.requests
        one = start(address, 4, 0.3, env=on_machine(tmp_path, f"m{attempt}", **environment))
        end, wanted = time.monotonic() + SECONDS, before + chance.randint(3, 60)
        while behaviour.requests < wanted and one.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        one.kill()
        one.communicate()
    ended(start(address, env=on_machine(tmp_path, "last", **environment)))
    assert restored(tmp_path, address, monkeypatch) == whole[1]


@pytest.mark.parametrize(
    "wrong, name",
    [({"busy": 0.2}, "busy"), ({"delay": 0.3}, "slow"), ({"stale": 1e9}, "lags")],
)
def test_a_server_that_is_busy_slow_or_lags_changes_nothing(
    tmp_path, whole, behind_proxy, monkeypatch, wrong, name
):
    behaviour, environment = behind_proxy
    for field, value in wrong.items():
        setattr(behaviour, field, value)
    address = f"s3://bucket/{name}"
    one = start(address, 4, 0.3, env=on_machine(tmp_path, "a", **environment))
    wait_for_generation(tmp_path / "a", 1, [one])
    one.send_signal(signal.SIGTERM)
    one.communicate(timeout=SECONDS)
    assert one.returncode == 143
    ended(start(address, env=on_machine(tmp_path, "b", **environment)))
    assert restored(tmp_path, address, monkeypatch) == whole[1]
    if name == "busy":
        assert behaviour.busy_answers > 5


def test_a_slow_server_does_not_hold_up_training(tmp_path, whole, behind_proxy, monkeypatch):
    behaviour, environment = behind_proxy
    behaviour.delay = 1.0
    one = start("s3://bucket/very-slow", 4, 0.0, env=on_machine(tmp_path, "a", **environment))
    # All generations are made while hardly anything has been sent.
    wait_for_generation(tmp_path / "a", 3, [one])
    store = object_store.open_store("s3://bucket/very-slow")
    assert not any("generation=0003/manifest" in path for path in newest_or_none(store))
    ended(one)
    assert restored(tmp_path, "s3://bucket/very-slow", monkeypatch) == whole[1]


def newest_or_none(store):
    return {} if object_store.get(store, "head.json") is None else newest(store)


def test_a_refused_write_is_said_before_anything_compiles(tmp_path, behind_proxy):
    behaviour, environment = behind_proxy
    behaviour.read_only = True
    one = start("s3://bucket/closed", env=on_machine(tmp_path, "a", **environment))
    said = one.communicate(timeout=SECONDS)[1]
    assert one.returncode == 2
    assert said.splitlines()[-1].startswith(
        "workdir=s3://bucket/closed: writing lease.json is not allowed"
    )
    assert "generation" not in said and "Traceback" not in said


def test_a_server_that_closes_in_the_middle_costs_nothing_that_is_finished(
    tmp_path, whole, behind_proxy, monkeypatch
):
    behaviour, environment = behind_proxy
    one = start("s3://bucket/later", 4, 0.3, env=on_machine(tmp_path, "a", **environment))
    wait_for_generation(tmp_path / "a", 1, [one])
    behaviour.read_only = True
    said = one.communicate(timeout=SECONDS)[1]
    assert "is not allowed" in said.splitlines()[-1] and one.returncode == 2, said
    behaviour.read_only = False
    ended(start("s3://bucket/later", env=on_machine(tmp_path, "a", **environment)))
    assert restored(tmp_path, "s3://bucket/later", monkeypatch) == whole[1]


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path, place):
    address, environment = place
    one = start(address, 4, 10.0, env=on_machine(tmp_path, "a", **environment))
    store, end = object_store.open_store(address), time.monotonic() + SECONDS
    while object_store.get(store, "lease.json") is None:
        assert one.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    second = start(address, env=on_machine(tmp_path, "b", **environment))
    said = second.communicate(timeout=SECONDS)[1]
    one.kill()
    one.communicate()
    assert second.returncode == 2
    assert f"workdir={address}: is in use by process {one.pid} on " in said.splitlines()[-1]


# ---- bad input, by the command itself


def command(tmp_path, address, environment, *fields, name="a"):
    """`jaxloop run` of a small study in a process of its own: (exit code, what it says)."""
    words = [sys.executable, "-m", "jaxloop.main", "--config=configs/quickstart.py:window"]
    done = subprocess.run(
        [*words, f"--workdir={address}", *fields],
        cwd=ROOT,
        env=on_machine(tmp_path, name, HOME=str(tmp_path / "home"), **environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    return done.returncode, done.stderr


BAD = {
    "no bucket": ("s3://absent/run", {}, "there is no such bucket"),
    "no credentials": (
        "s3://bucket/run",
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        "there are no credentials for this store",
    ),
    "read-only": ("s3://bucket/run", {"read_only": True}, "writing lease.json is not allowed"),
    "no library": ("abfs://bucket/run", {}, "pip install"),
    "no kind": ("s4://bucket/run", {}, "s4:// is no kind of store"),
    "no place": ("s3://", {}, "names no place, such as s3://bucket/run"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_one_sentence_before_anything_compiles(
    tmp_path, behind_proxy, monkeypatch, case
):
    behaviour, environment = behind_proxy
    address, change, said = BAD[case]
    change = dict(change)
    behaviour.read_only = change.pop("read_only", False)
    environment = {k: v for k, v in environment.items() if k not in change}
    for name in change:
        monkeypatch.delenv(name)
    code, error = command(tmp_path, address, environment)
    assert (code, len(error.strip().splitlines())) == (2, 1), error
    assert error.startswith(f"jaxloop: workdir={address}: ") and said in error
    assert not list((tmp_path / "a").glob("xla/*"))  # nothing was compiled


def test_a_store_that_holds_the_run_of_another_config_is_refused(tmp_path, behind_proxy):
    _, environment = behind_proxy
    small = [
        "--config.chain.generations=1",
        "--config.chain.size=32",
        "--config.chain.eval_texts=8",
        "--config.chain.heldout_texts=8",
        "--config.fit.steps=1",
    ]
    address = "s3://bucket/another"
    code, error = command(tmp_path, address, environment, *small)
    assert code == 0, error
    code, error = command(
        tmp_path, address, environment, *small, "--config.fit.learning_rate=1e-4", name="b"
    )
    line = error.strip().splitlines()[-1]
    assert (code, "Traceback" in error) == (2, False), error
    assert line.startswith(f"jaxloop: workdir={address}: ") and "learning_rate" in line
