"""The devices and processes of a run: those that were asked for, or a refusal."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils

from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import EXIT_REFUSED

Item = TypeVar("Item")
Result = TypeVar("Result")

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
_INSTALL = {
    "gpu": "install 'jaxloop-lm[cuda]' and check nvidia-smi",
    "tpu": "install 'jaxloop-lm[tpu]' on a TPU machine",
    "cpu": "unset JAX_PLATFORMS",
}


def select_devices(platform: str = "auto", count: int | None = None) -> list[jax.Device]:
    """Return this process's devices of a platform, all of them or the first `count`.

    The processes of a cluster distribute chains, not arrays. With "auto" JAX chooses, and a
    warning is logged where the machine has an accelerator that JAX cannot use.

    Raises:
        ValueError: the platform is unknown or absent, or has fewer devices.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform={platform!r}: must be one of {', '.join(PLATFORMS)}")
    devices = jax.local_devices() if platform == "auto" else _devices_of(platform)
    driver = Path("/proc/driver/nvidia/version")
    if platform == "auto" and devices[0].platform == "cpu" and driver.exists():
        LOGGER.warning(
            "this machine has an NVIDIA driver but JAX found no GPU and uses the CPU; %s",
            _INSTALL["gpu"],
        )
    if count is not None:
        if count < 1 or count > len(devices):
            raise ValueError(
                f"devices={count}: this run can use 1 to {len(devices)} {devices[0].platform} "
                "devices"
            )
        devices = devices[:count]
    return devices


def _devices_of(platform: str) -> list[jax.Device]:
    try:
        devices = jax.local_devices(backend=platform)
    except RuntimeError as error:
        raise ValueError(
            f"platform={platform}: this machine has none that JAX can use; {_INSTALL[platform]}"
        ) from error
    if devices[0].platform != jax.default_backend():
        jax.config.update("jax_default_device", devices[0])
    return devices


def platform_of(tree: Any = None) -> str:
    """Return the platform ("cpu", "gpu" or "tpu") on which a program with these arguments runs.

    It is that of the first array in `tree`, else JAX's own choice.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            return next(iter(leaf.devices())).platform
    # jax adds its options as attributes at run time.
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    return getattr(default, "platform", default) or jax.default_backend()


def programs_at_once(platform: str | None = None) -> int:
    """Return how many programs may run at the same time on one device of a platform.

    On a CPU, where many operations are too small to use all cores, that is one for every core, at
    most 8; on an accelerator it is one. Without a platform, that of this process counts.
    """
    return min(8, os.cpu_count() or 1) if (platform or platform_of()) == "cpu" else 1


def run_concurrently(
    start: Callable[[Item], Any],
    take: Callable[[Item, Any], Any],
    items: Iterable[Item],
    programs: int | None = None,
) -> None:
    """Run a program for every item, several at the same time, and take each result on the host.

    JAX runs the programs that one thread starts one after another, and those of several threads
    concurrently. `start` runs under a lock, so that only the first call compiles.

    Args:
        start: `start(item)` starts a compiled program and returns its arrays.
        take: `take(item, arrays)` gets them as NumPy arrays; it may run in several threads at once.
        items: what `start` is called with.
        programs: how many run at the same time; None: `programs_at_once()`.

    Raises:
        Exception: whatever `start` or `take` raises.
    """
    starting = threading.Lock()

    def run(item: Item) -> None:
        with starting:
            arrays = start(item)
        take(item, jax.device_get(arrays))

    with ThreadPoolExecutor(programs or programs_at_once()) as threads:
        list(threads.map(run, items))


def concurrent_map(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return function(item) of every item, several at the same time where the platform runs several
    programs at once (`programs_at_once`).

    The first is computed alone, so that what it compiles is compiled once.
    """
    todo = list(items)
    results = [function(item) for item in todo[:1]]
    with ThreadPoolExecutor(programs_at_once()) as threads:
        return results + list(threads.map(function, todo[1:]))


def initialise_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float | None = None,
) -> bool:
    """Join the processes of a pod or cluster and say whether there is more than one.

    To be called before any other use of JAX. Where no setting is given, JAX finds the processes by
    itself in an environment of SLURM, Open MPI or a GKE TPU pod, or if the coordinator is "auto"
    (other TPU pods); otherwise nothing is done. Where other processes never arrive, this one says
    so and ends with exit code 2.

    Args:
        coordinator: "host:port"; None: $JAXLOOP_COORDINATOR.
        processes: their number; None: $JAXLOOP_PROCESSES.
        process: the index of this one; None: $JAXLOOP_PROCESS.
        timeout: seconds; None: $JAXLOOP_TIMEOUT, else 300.

    Raises:
        ValueError: the settings are incomplete, or the coordinator, which is named, does not
            answer in time.
    """
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    coordinator = coordinator or os.environ.get("JAXLOOP_COORDINATOR")
    processes = _integer("processes", processes, "JAXLOOP_PROCESSES")
    process = _integer("process", process, "JAXLOOP_PROCESS")
    if timeout is None:
        timeout = float(_integer("timeout", None, "JAXLOOP_TIMEOUT") or 300)
    nothing_given = coordinator is None and processes is None and process is None
    if coordinator == "auto" or (nothing_given and _launched_with_others()):
        coordinator, processes, process = None, None, None
    elif nothing_given:
        return False
    elif coordinator is None or processes is None or process is None:
        raise ValueError("coordinator, processes and process: give all three or none")
    else:
        _check_coordinator(coordinator, processes, process, timeout)
    where = coordinator or "the address in this cluster's environment"
    # JAX ends the process with a stack trace when its own limit is reached, so ours comes first and
    # is one sentence.
    late = threading.Timer(
        timeout, _leave, [f"coordinator={where}: not all processes arrived within {timeout:g} s"]
    )
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=int(timeout) + 60
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"coordinator={where}: could not be joined ({str(error).splitlines()[0]})"
        ) from error
    finally:
        late.cancel()
    return jax.process_count() > 1


def processes() -> tuple[int, int]:
    """Return (index of this process, number of processes); (0, 1) where no cluster was joined.

    Where no cluster was joined, the call does not start JAX's backend.
    """
    if not jax.distributed.is_initialized():
        return 0, 1
    return jax.process_index(), jax.process_count()


def barrier(name: str) -> None:
    """Wait until every process of the cluster is here; a process that is alone goes on."""
    if processes()[1] > 1:
        multihost_utils.sync_global_devices(name)


def _check_coordinator(coordinator: str, processes: int, process: int, timeout: float) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"coordinator={coordinator!r}: must be host:port")
    if not 0 <= process < processes:
        raise ValueError(f"process={process}: must lie in [0, {processes})")
    if process > 0:
        _wait_for(host, int(port), timeout)


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


def _wait_for(host: str, port: int, timeout: float) -> None:
    end = time.monotonic() + timeout
    while True:
        try:
            with socket.create_connection(
                (host, port), timeout=max(0.1, min(5.0, end - time.monotonic()))
            ):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise ValueError(
                    f"coordinator={host}:{port}: does not answer within {timeout:g} s ({error})"
                ) from error
        time.sleep(0.2)


def _leave(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_REFUSED)
