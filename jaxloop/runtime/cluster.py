"""The processes of a run: how they find each other, wait for each other, and leave together.

Process 0 listens at the coordinator's address, and every other process keeps a connection to it.
What they say are lines of JSON: that they live, that they wait, that a signal came. A process whose
connection ends, or that is silent for too long, is gone, and all the others leave with one line and
`EXIT_GONE`. The process that waits for a device leaves too: threads of its own listen.

Processes share out chains, not arrays, so no program runs on devices of several of them, and JAX's
distributed runtime is not started. It would end the others too, but with SIGABRT and a stack trace
at once where its service is gone, and after its own time elsewhere. JAX is only asked who is who
where a launcher knows it.
"""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import jax

from jaxloop.runtime.channel import Channel, accept_all, connect
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop, Stopped, stop_safely

# The processes of which this one is a member: at most one entry. A process joins once in its life,
# as it has one set of devices.
_JOINED: list[Channel] = []
# What is done before the process leaves without unwinding its stack.
_BEFORE_LEAVING: list[Callable[[], None]] = []
# Seconds from SIGTERM to the kill where nobody says otherwise: what spot machines give.
NOTICE_SECONDS = 30.0
# Of the notice, what is kept for sending what is finished.
RESERVE_SECONDS = 5.0
_LOOK_SECONDS = 0.1


def initialise_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float | None = None,
) -> bool:
    """Join the processes of a pod or cluster and say whether there is more than one.

    To be called before any other use of JAX. Where no setting is given, the environment of SLURM,
    Open MPI or a GKE TPU pod says who is who, or, if the coordinator is "auto", that of other TPU
    pods; otherwise nothing is done.

    Args:
        coordinator: "host:port"; None: $JAXLOOP_COORDINATOR.
        processes: their number; None: $JAXLOOP_PROCESSES.
        process: the index of this one; None: $JAXLOOP_PROCESS.
        timeout: seconds; None: $JAXLOOP_TIMEOUT, else 300.

    Raises:
        ValueError: the settings are incomplete, or the coordinator or other processes, which are
            named, do not answer in time.
    """
    if _JOINED:
        return _JOINED[0].count > 1
    coordinator = coordinator or os.environ.get("JAXLOOP_COORDINATOR")
    processes = _integer("processes", processes, "JAXLOOP_PROCESSES")
    process = _integer("process", process, "JAXLOOP_PROCESS")
    if timeout is None:
        timeout = float(_integer("timeout", None, "JAXLOOP_TIMEOUT") or 300)
    nothing_given = coordinator is None and processes is None and process is None
    if coordinator == "auto" or (nothing_given and _launched_with_others()):
        coordinator, processes, process = _ask_launcher(timeout)
    elif nothing_given:
        return False
    elif coordinator is None or processes is None or process is None:
        raise ValueError("coordinator, processes and process: give all three or none")
    if processes == 1:
        return False
    host, port = _checked(coordinator, processes, process)
    if process == 0:
        channel = accept_all(coordinator, port, processes, timeout)
    else:
        channel = connect(coordinator, host, port, process, processes, timeout)
    channel.before_leaving = run_before_leaving
    channel.start()
    atexit.register(channel.say_goodbye)
    _JOINED.append(channel)
    return True


def processes() -> tuple[int, int]:
    """Return (index of this process, number of processes); (0, 1) where no cluster was joined."""
    return (_JOINED[0].index, _JOINED[0].count) if _JOINED else (0, 1)


def barrier(name: str) -> None:
    """Wait until every process of the cluster is here; a process that is alone goes on.

    Where a process is gone this one leaves with exit code `EXIT_GONE`.

    Raises:
        Stopped: a process was told to stop, so that not all of them will come.
    """
    if _JOINED:
        _JOINED[0].barrier(name)


def last_barrier(name: str, until: float) -> bool:
    """Wait for the other processes after `Stopped`, and say whether all came.

    until: by time.monotonic().
    """
    return _JOINED[0].last_barrier(name, until) if _JOINED else True


def tell_sent(meeting: int) -> None:
    """Tell process 0 that the object store has this process's weights of a meeting."""
    if _JOINED:
        _JOINED[0].tell_sent(meeting)


def sent_by_all() -> int:
    """Return the last meeting whose weights all processes have sent, as process 0 was told."""
    channel = _JOINED[0]
    return min(channel.sent.get(process, 0) for process in range(channel.count))


def wait_for_sent(meeting: int) -> None:
    """In process 0, wait until the others have sent their weights of a meeting, or have ended.

    Raises:
        Stopped: a process was told to stop.
    """
    _JOINED[0].wait_for_sent(meeting)


def watch_silence(seconds: float) -> None:
    """Let another process count as gone after this time without a sign of life."""
    if _JOINED:
        _JOINED[0].silence = seconds


@contextlib.contextmanager
def before_leaving(work: Callable[[], None]) -> Iterator[None]:
    """Context in which `work` is done before the process leaves without unwinding its stack."""
    _BEFORE_LEAVING.append(work)
    try:
        yield
    finally:
        _BEFORE_LEAVING.remove(work)


def run_before_leaving() -> None:
    """Do what `before_leaving` has been given, the last first, for `RESERVE_SECONDS` at most."""

    def work() -> None:
        for step in reversed(_BEFORE_LEAVING):
            with contextlib.suppress(OSError, ValueError):
                step()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(RESERVE_SECONDS)


@contextlib.contextmanager
def stop_together(notice: float | None = None) -> Iterator[Stop]:
    """`stop_safely` for all processes of a cluster: a signal to one of them stops them all.

    Args:
        notice: seconds from SIGTERM to the kill. The process leaves before they are over, with the
            step that is running or without it; None: it waits for the step.
    """
    channel = _JOINED[0] if _JOINED else None
    over = threading.Event()
    with stop_safely() as stop:
        stop.notice = None if notice is None else max(0.0, notice - RESERVE_SECONDS)
        thread = threading.Thread(target=_follow, args=(stop, over), name="signals", daemon=True)
        if channel is not None or notice is not None:
            thread.start()
        try:
            yield stop
        except Stopped as stopped:
            # One that a barrier raised knows nothing of our notice.
            if stop.number is None:
                _take_from_others(stop, stopped.number)
            stopped.until = stop.until
            if channel is not None:
                channel.tell_stop(stopped.number)
            raise
        finally:
            over.set()
            if thread.is_alive():
                thread.join()


def _take_from_others(stop: Stop, number: int) -> None:
    LOGGER.warning("another process of the run was told to stop; this one stops too")
    stop.take(number)


def _follow(stop: Stop, over: threading.Event) -> None:
    """Tell the others of a signal, and take theirs; leave when the time is over."""
    channel = _JOINED[0] if _JOINED else None
    while not over.wait(_LOOK_SECONDS):
        if channel is not None:
            if stop.number is None and channel.stopped is not None:
                _take_from_others(stop, channel.stopped)
            elif stop.number is not None and channel.stopped is None:
                channel.tell_stop(stop.number)
        if stop.number is not None and stop.until is not None and time.monotonic() > stop.until:
            LOGGER.warning(
                "the time that SIGTERM gives is over; the step that is running is left, what was "
                "finished is kept"
            )
            run_before_leaving()
            os._exit(128 + stop.number)


def _ask_launcher(timeout: float) -> tuple[str, int, int]:
    """(coordinator, processes, process) as the launcher's environment says them."""
    try:
        # JAX has no public name for what a launcher's environment says, and may move this one.
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        raise ValueError(
            f"coordinator=auto: jax {jax.__version__} does not say who is who; set "
            "JAXLOOP_COORDINATOR, JAXLOOP_PROCESSES and JAXLOOP_PROCESS"
        ) from None
    try:
        coordinator, count, index, devices = detect(None, None, None, None, None, int(timeout))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"coordinator=auto: the launcher's environment cannot be read ({error})"
        ) from error
    if coordinator is None or count is None or index is None:
        raise ValueError(
            "coordinator=auto: this environment does not say who is who; set JAXLOOP_COORDINATOR, "
            "JAXLOOP_PROCESSES and JAXLOOP_PROCESS"
        )
    if devices and not _alone_on_its_host():
        visible = ",".join(str(device) for device in devices)
        for option in ("jax_cuda_visible_devices", "jax_rocm_visible_devices"):
            jax.config.update(option, visible)
    return coordinator, count, index


def _alone_on_its_host() -> bool:
    """Whether the launcher started one process on this host, which then has all its devices."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    return (
        tasks == "1"
        or tasks.startswith("1(")
        or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    )


def _checked(coordinator: str, processes: int, process: int) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={coordinator!r}: must be host:port")
    if not 0 <= process < processes:
        raise ValueError(f"process={process}: must lie in [0, {processes})")
    return host.strip("[]"), int(port)


def _integer(field: str, value: int | None, variable: str) -> int | None:
    text = os.environ.get(variable) if value is None else value
    try:
        return None if text is None else int(text)
    except ValueError:
        raise ValueError(f"{field}={text!r}: must be an integer") from None


def _launched_with_others() -> bool:
    """Whether this process is one of several that a launcher started together."""
    sizes = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return any(size.isdigit() and int(size) > 1 for size in sizes) or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )
