"""Devices, processes and compilations of a whole run of language models, on the devices that
JAX_PLATFORMS names (the CPU if none).
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxloop import cli, config, main
from jaxloop.lm import family, sharding
from jaxloop.studies.chain import prepare
from jaxloop.studies.chain import run as chain

ROOT = Path(__file__).resolve().parents[2]


def settings(place, *assignments):
    raw = config.override(config.read_file(str(place / "study.py")), assignments, chain.CONFIG)
    return config.build(chain.CONFIG, raw)


def start(place, workdir, *flags, **variables):
    words = [f"--config={place / 'study.py'}", f"--workdir={workdir}", *flags]
    environment = os.environ | variables
    command = [sys.executable, "-m", "jaxloop.main", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def processes_share_devices():
    """Two processes that run at once on this machine, each with devices: so it is on a CPU, while
    an accelerator belongs to one process.
    """
    if jax.default_backend() != "cpu":
        pytest.skip(
            "on the CPU only: two processes cannot both have the memory of this "
            f"{jax.default_backend()}"
        )


def test_a_coordinator_that_does_not_answer_is_named(place, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    cluster = {
        "JAXLOOP_COORDINATOR": address,
        "JAXLOOP_PROCESSES": "2",
        "JAXLOOP_PROCESS": "1",
        "JAXLOOP_TIMEOUT": "2",
    }
    process = start(place, tmp_path / "run", **cluster)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 2 and said.count("\n") == 1, said
    assert (
        f"coordinator={address}: does not answer within 2 s" in said
        and not (tmp_path / "run").exists()
    )


def test_more_devices_than_there_are(place, tmp_path, capsys):
    words = [
        "jaxloop",
        f"--config={place / 'study.py'}",
        f"--workdir={tmp_path / 'run'}",
        "--config.run.devices=99",
    ]
    with pytest.raises(SystemExit) as end:
        cli.guarded(main.main, cli.parse(words))
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    said = capsys.readouterr().err
    there = f"1 to {jax.local_device_count()} {jax.local_devices()[0].platform} devices"
    assert f"devices=99: this run can use {there}" in said and said.count("\n") == 1


def test_a_chain_too_large_for_a_device_says_what_is_missing(place, monkeypatch):
    monkeypatch.setattr(sharding, "device_bytes", lambda device: 10_000)
    with pytest.raises(
        ValueError,
        match=r"one chain of .*base needs [\d.]+ .?B of .* on a device, .* too many; lower "
        r"config.fit.batch_size.*shard_base",
    ):
        prepare.prepare(settings(place))


def test_measuring_beside_and_a_cut_base_exclude_each_other(place):
    with pytest.raises(
        ValueError,
        match="config.run.overlap_eval = true with config.run.shard_base = true: .*one after "
        "another",
    ):
        settings(place, ("run.overlap_eval", "true"), ("run.shard_base", "true"))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("beside", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nothing_is_compiled_after_the_first_generation(place, tmp_path, monkeypatch, beside):
    """Counted over a whole run of four generations, metrics included, which are measured while the
    next generation is trained, or before.
    """
    events, real = [], family.fit
    monkeypatch.setattr(
        family, "fit", lambda *a, **k: (events.append("generation"), real(*a, **k))[1]
    )

    def listen(name, seconds, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            events.append("compiled")

    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        chosen = settings(
            place,
            ("chain.generations", "4"),
            ("run.devices", "1"),
            ("run.overlap_eval", str(beside).lower()),
        )
        assert chain.run(chosen, tmp_path / "run") == 0
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    starts = [i for i, e in enumerate(events) if e == "generation"]
    assert len(starts) == 4 and "compiled" in events[: starts[1]]
    assert "compiled" not in events[starts[1 + beside] :], events


def result(workdir):
    return {
        str(f.relative_to(workdir)): f.read_bytes()
        for f in [workdir / "metrics.csv", *sorted((workdir / "texts").rglob("*.parquet"))]
    }


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.usefixtures("processes_share_devices")
def test_two_processes_write_what_one_does_and_go_on_after_one_is_killed(place, tmp_path):
    """Two processes on loopback share the chains; both end with the files of one process, also when
    one of them dies on the way.
    """
    cache = {"JAXLOOP_CACHE": str(tmp_path / "cache")}
    flags = ("--config.chain.generations=4", "--config.run.devices=1")
    alone = start(place, tmp_path / "alone", *flags, **cache)
    _, said = alone.communicate(timeout=900)
    assert alone.returncode == 0, said
    expected = result(tmp_path / "alone")

    def both(where):
        common = cache | {
            "JAXLOOP_COORDINATOR": f"127.0.0.1:{free_port()}",
            "JAXLOOP_PROCESSES": "2",
        }
        return [start(place, where, *flags, **common, JAXLOOP_PROCESS=str(i)) for i in range(2)]

    said = [process.communicate(timeout=900)[1] for process in both(tmp_path / "pair")]
    assert result(tmp_path / "pair") == expected, said
    pair = both(tmp_path / "killed")
    while not (
        (tmp_path / "killed" / "run.log").exists()
        and "generation 1 of 4" in (tmp_path / "killed" / "run.log").read_text()
    ):
        assert pair[0].poll() is None, pair[0].communicate()[1]
        time.sleep(0.05)
    pair[1].send_signal(signal.SIGKILL)
    time.sleep(2)
    pair[0].send_signal(signal.SIGKILL)
    for process in pair:
        process.communicate()
    again = start(place, tmp_path / "killed", *flags, **cache)
    _, said = again.communicate(timeout=900)
    assert again.returncode == 0, said
    assert result(tmp_path / "killed") == expected
