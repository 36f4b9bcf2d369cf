"""Processes of a run: who they are, how they wait for each other, and what a gone one causes.

Here the processes are threads of one, each with its own end of a connection.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from jax._src import clusters

from jaxloop.runtime import channel, cluster, signals

# A thread that would end its process here ends itself.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
ROOT = Path(__file__).parents[2]
SECONDS = 20

REFUSED = {
    "give all three or none": {"coordinator": "host:1"},
    "coordinator='host': must be host:port": {"coordinator": "host", "processes": 2, "process": 0},
    "process=2: must lie in": {"coordinator": "host:1", "processes": 2, "process": 2},
}


@pytest.mark.parametrize("message", list(REFUSED))
def test_incomplete_clusters_are_refused(message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        cluster.initialise_distributed(**REFUSED[message])


def test_alone_nothing_is_joined(monkeypatch):
    assert cluster.initialise_distributed() is False
    assert cluster.processes() == (0, 1)
    cluster.barrier("nobody else")
    monkeypatch.setenv("JAXLOOP_PROCESS", "one")
    with pytest.raises(ValueError, match="process='one': must be an integer"):
        cluster.initialise_distributed()


SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "127.0.0.[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def set_all(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [SLURM, {"OMPI_COMM_WORLD_SIZE": "8"}, {"TPU_WORKER_HOSTNAMES": "a,b"}],
    ids=["slurm", "mpi", "tpu"],
)
def test_under_a_launcher_its_environment_is_asked(monkeypatch, variables):
    asked = []
    monkeypatch.setattr(cluster, "_ask_launcher", lambda timeout: asked.append(1) or ("a:1", 1, 0))
    set_all(monkeypatch, variables)
    assert cluster.initialise_distributed() is False and asked
    asked.clear()
    monkeypatch.setenv("JAXLOOP_COORDINATOR", "auto")
    assert cluster.initialise_distributed() is False and asked


def test_the_variables_of_slurm_say_who_is_who(monkeypatch):
    shown = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: shown.append((name, value)))
    set_all(monkeypatch, SLURM)
    # The first host of the list; the port is JAX's own, made of the job's number.
    assert cluster._ask_launcher(1.0) == ("127.0.0.1:61440", 2, 1)
    # One process on a host has all its devices, which JAX's own start does not do.
    assert shown == []
    set_all(monkeypatch, {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_LOCALID": "3"})
    cluster._ask_launcher(1.0)
    assert shown[0] == ("jax_cuda_visible_devices", "3")


def test_an_environment_that_says_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", [])
    with pytest.raises(ValueError, match="set JAXLOOP_COORDINATOR, JAXLOOP_PROCESSES and JAXLOOP_"):
        cluster.initialise_distributed("auto")


def test_one_task_of_a_launcher_is_alone(monkeypatch):
    monkeypatch.setattr(cluster, "_ask_launcher", None)
    set_all(
        monkeypatch,
        {
            "SLURM_STEP_NUM_TASKS": "1",
            "OMPI_COMM_WORLD_SIZE": "1",
            "TPU_WORKER_HOSTNAMES": "a",
        },
    )
    assert cluster.initialise_distributed() is False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_coordinator_that_does_not_answer_is_named():
    address, start = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(ValueError, match=f"coordinator={address}: does not answer within 0.5 s"):
        cluster.initialise_distributed(address, 2, 1, timeout=0.5)
    assert time.monotonic() - start < 20


def test_processes_that_never_arrive_are_named():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ValueError, match="not all processes arrived within 0.3 s .missing: 1, 2"):
        cluster.initialise_distributed(address, 3, 0, timeout=0.3)


def test_an_address_that_is_taken_or_of_another_run_is_refused():
    with socket.create_server(("", free_port())) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"coordinator={address}: process 0 cannot listen"):
            cluster.initialise_distributed(address, 2, 0, timeout=0.3)
    address = f"127.0.0.1:{free_port()}"
    first = threading.Thread(target=quietly, args=(address, 2, 0))
    first.start()
    with pytest.raises(ValueError, match="waits for processes 1 to 1, this is 2 of 3"):
        cluster.initialise_distributed(address, 3, 2, timeout=10)
    first.join()


def quietly(address, count, process):
    with pytest.raises(ValueError):
        cluster.initialise_distributed(address, count, process, timeout=2)


# ---- what they say to each other


@pytest.fixture
def three(monkeypatch, caplog):
    """Three processes, and what each of them said when it left."""
    left = {}

    def leave(index, code):
        left[index] = code
        raise SystemExit  # which ends the thread

    monkeypatch.setattr(channel, "SIGN_SECONDS", 0.05)
    port = free_port()
    address = f"127.0.0.1:{port}"
    channels = [None] * 3

    def join(index):
        channels[index] = (
            channel.accept_all(address, port, 3, 30.0)
            if index == 0
            else channel.connect(address, "127.0.0.1", port, index, 3, 30.0)
        )

    in_threads(join, range(3))
    for one in channels:
        one.end = functools.partial(leave, one.index)
        one.start()
    yield channels, left
    for one in channels:
        one.silence = 1e9
        one.say_goodbye()
        one.close()


def in_threads(work, items):
    """Do the work for all items at the same time; return what came of each, errors too."""
    found = {}

    def one(item):
        try:
            found[item] = work(item)
        except BaseException as error:
            found[item] = error

    threads = [threading.Thread(target=one, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive()
    return found


def begin(work, items):
    """Begin the work for all items in threads that nobody waits for."""
    for item in items:
        threading.Thread(target=work, args=(item,), daemon=True).start()


def wait_until(condition):
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_nobody_passes_a_barrier_before_the_last_one_is_there(three):
    channels, left = three
    order = []

    def work(index):
        for turn in range(3):
            time.sleep(0.02 * ((index + turn) % 3))
            order.append((turn, "comes"))
            channels[index].barrier(f"turn {turn}")
            order.append((turn, "passes"))

    assert in_threads(work, range(3)) == dict.fromkeys(range(3)) and not left
    for turn in range(3):
        last = max(i for i, what in enumerate(order) if what == (turn, "comes"))
        assert last < min(i for i, what in enumerate(order) if what == (turn, "passes"))


@pytest.mark.parametrize("gone", [0, 2])
def test_a_connection_that_ends_lets_all_others_leave(three, gone, caplog):
    channels, left = three
    for connection in channels[gone]._others.values():
        connection.shutdown(socket.SHUT_RDWR)
    others = {0, 1, 2} - {gone}
    wait_until(lambda: others <= set(left))
    assert {left[index] for index in others} == {signals.EXIT_GONE}
    assert f"process {gone} of the run is gone: its connection has ended" in caplog.text


def test_one_that_is_silent_lets_all_others_leave(three, monkeypatch, caplog):
    channels, left = three
    monkeypatch.setattr(channels[1], "_say", lambda other, what: None)
    channels[0].silence = 0.5
    wait_until(lambda: {0, 2} <= set(left))
    assert "process 1 of the run is gone: no sign of life for 0.5 s" in caplog.text


def test_one_that_has_ended_in_good_order_is_missed_at_the_next_barrier(three, caplog):
    channels, left = three
    channels[1].say_goodbye()
    time.sleep(0.3)
    assert not left
    begin(lambda index: channels[index].barrier("later"), (0, 2))
    wait_until(lambda: {0, 2} <= set(left))
    assert "process 1 of the run has ended before the others" in caplog.text


def test_a_signal_to_one_stops_all_and_they_meet_once_more(three):
    channels, left = three
    waiting = threading.Timer(0.2, channels[2].tell_stop, [signal.SIGTERM])
    waiting.start()
    stopped = in_threads(lambda index: channels[index].barrier("not all come"), (0, 1))
    assert {type(error) for error in stopped.values()} == {signals.Stopped}
    assert [channels[2].stopped, stopped[1].code] == [15, 143]
    with pytest.raises(signals.Stopped):
        channels[2].barrier("not all come")
    end = time.monotonic() + SECONDS
    came = in_threads(lambda index: channels[index].last_barrier("sealed", end), range(3))
    assert came == dict.fromkeys(range(3), True)
    assert channels[1].last_barrier("alone", time.monotonic() + 0.1) is False
    assert not left


def test_processes_that_are_out_of_step_leave(three, caplog):
    channels, left = three
    begin(lambda index: channels[index].barrier(f"step of {index % 2}"), (0, 1))
    wait_until(lambda: {0, 1, 2} <= set(left))
    assert "waits at '1 step of" in caplog.text


def test_what_is_no_process_of_ours_is_sent_away():
    port = free_port()
    address = f"127.0.0.1:{port}"

    def other(said):
        with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as connection:
            connection.sendall(said)
            connection.settimeout(SECONDS)
            return connection.recv(1000)

    def visit(index):
        if index == 0:
            return channel.accept_all(address, port, 2, 30.0).close()
        time.sleep(0.3)
        answers = [other(said) for said in (b"GET / HTTP/1.1\n", b"[1]\n", b'{"process": [1]}\n')]
        channel.connect(address, "127.0.0.1", port, 1, 2, 30.0).close()
        return answers

    found = in_threads(visit, range(2))
    assert found[0] is None
    assert all(b"refused" in answer for answer in found[1])


# ---- the time that SIGTERM gives


def run_in_a_process(script):
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_step_that_is_too_long_is_left_in_time():
    done = run_in_a_process(
        "import os, signal, time\n"
        "from jaxloop.runtime import cluster\n"
        "with cluster.stop_together(6.0) as stop, cluster.before_leaving(lambda: print('sealed', "
        "flush=True)):\n"
        "    start = time.monotonic()\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(100)\n"
    )
    assert (done.returncode, done.stdout) == (143, "sealed\n"), done.stderr
    assert "the time that SIGTERM gives is over" in done.stderr and "Trace" not in done.stderr


def test_a_step_that_ends_in_time_is_kept():
    with pytest.raises(signals.Stopped) as stopped, cluster.stop_together(1e4) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_until(lambda: stop.number is not None)
        stop.check()
    assert stopped.value.code == 143
    assert 9000 < stopped.value.until - time.monotonic() < 1e4
