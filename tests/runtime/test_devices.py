"""Devices: what was asked for or a refusal; a cluster that does not answer is named."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxloop.runtime import devices

ROOT = Path(__file__).parents[2]


def test_devices_that_are_there():
    assert devices.select_devices() == jax.devices() == devices.select_devices("cpu")
    assert devices.select_devices("cpu", 2) == jax.devices()[:2]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_absent_accelerator_is_refused_and_never_the_cpu(platform):
    if any(d.platform == platform for d in jax.devices()):
        assert {d.platform for d in devices.select_devices(platform)} == {platform}
    else:
        with pytest.raises(
            ValueError,
            match=f"platform={platform}: this machine has none that JAX can use; install",
        ):
            devices.select_devices(platform)


BAD = [
    ("cuda", None, "platform='cuda': must be one of"),
    ("cpu", 9, "devices=9: .* 1 to 4 cpu"),
    ("cpu", 0, "devices=0"),
]


@pytest.mark.parametrize(("platform", "count", "message"), BAD)
def test_bad_requests_are_refused(platform, count, message):
    with pytest.raises(ValueError, match=message):
        devices.select_devices(platform, count)


REFUSED = {
    "give all three or none": {"coordinator": "host:1"},
    "coordinator='host': must be host:port": {"coordinator": "host", "processes": 2, "process": 0},
    "process=2: must lie in": {"coordinator": "host:1", "processes": 2, "process": 2},
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_incomplete_clusters_are_refused(message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        devices.initialise_distributed(**REFUSED[message])


def test_alone_nothing_is_joined(monkeypatch):
    assert devices.initialise_distributed() is False
    monkeypatch.setenv("JAXLOOP_PROCESS", "one")
    with pytest.raises(ValueError, match="process='one': must be an integer"):
        devices.initialise_distributed()


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "8"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"JAXLOOP_COORDINATOR": "auto"},
    ],
)
def test_under_a_launcher_jax_finds_the_others_by_itself(monkeypatch, variables):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **kwargs: asked.append(args))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    devices.initialise_distributed()
    assert asked == [(None, None, None)]


def test_one_task_of_a_launcher_is_alone(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", None)
    for name, value in {
        "SLURM_STEP_NUM_TASKS": "1",
        "OMPI_COMM_WORLD_SIZE": "1",
        "TPU_WORKER_HOSTNAMES": "a",
    }.items():
        monkeypatch.setenv(name, value)
    assert devices.initialise_distributed() is False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_named():
    address, start = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(ValueError, match=f"coordinator={address}: does not answer within 0.5 s"):
        devices.initialise_distributed(address, 2, 1, timeout=0.5)
    assert time.monotonic() - start < 20


def test_processes_that_never_arrive_end_the_first_with_one_sentence():
    address = f"127.0.0.1:{free_port()}"
    script = (
        f"from jaxloop.runtime.devices import initialise_distributed as go; go({address!r}, 2, 0, "
        "timeout=2)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    assert (
        f"coordinator={address}: not all processes arrived within 2 s" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_two_processes_join():
    address = f"127.0.0.1:{free_port()}"
    script = (
        "import jax; from jaxloop.runtime.devices import initialise_distributed as go; "
        "print(go(), jax.process_count(), jax.process_index())"
    )
    started = []
    for process in range(2):
        variables = os.environ | {
            "JAXLOOP_COORDINATOR": address,
            "JAXLOOP_PROCESSES": "2",
            "JAXLOOP_PROCESS": str(process),
            "JAX_PLATFORMS": "cpu",
        }
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", script],
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    assert [p.communicate(timeout=120)[0].split() for p in started] == [
        ["True", "2", str(i)] for i in range(2)
    ]
