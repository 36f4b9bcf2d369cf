"""Which devices a run uses: those that were asked for, or a clear refusal, never a silent fall to
the CPU.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from jax.experimental import multihost_utils

from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import EXIT_REFUSED

PLATFORMS = ("auto", "cpu", "gpu", "tpu")
_INSTALL = {
    "gpu": "install jaxloop[cuda] and check nvidia-smi",
    "tpu": "install jaxloop[tpu] on a TPU machine",
    "cpu": "unset JAX_PLATFORMS",
}


def select_devices(platform: str = "auto", count: int | None = None) -> list[jax.Device]:
    """This process's devices of a platform, all of them or the first `count`. (The processes of a
    cluster share out the chains, not arrays.)

    "auto" is what JAX prefers; it warns where an accelerator is in the machine but JAX cannot use
    it. Raises ValueError where the platform is unknown or absent, or has fewer devices.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform={platform!r}: must be one of {', '.join(PLATFORMS)}")
    if platform == "auto":
        devices = jax.local_devices()
        if devices[0].platform == "cpu" and Path("/proc/driver/nvidia/version").exists():
            LOGGER.warning(
                "this machine has an NVIDIA driver but JAX found no GPU and uses the CPU; %s",
                _INSTALL["gpu"],
            )
    else:
        try:
            devices = jax.local_devices(backend=platform)
        except RuntimeError as error:
            raise ValueError(
                f"platform={platform}: this machine has none that JAX can use; {_INSTALL[platform]}"
            ) from error
        if devices[0].platform != jax.default_backend():
            jax.config.update("jax_default_device", devices[0])
    if count is not None:
        if count < 1 or count > len(devices):
            raise ValueError(
                f"devices={count}: this run can use 1 to {len(devices)} {devices[0].platform} "
                "devices"
            )
        devices = devices[:count]
    return devices


def platform_of(tree=None) -> str:
    """The platform ("cpu", "gpu" or "tpu") on which a program with these arguments runs: that of
    the first array in them, else JAX's own choice.
    """
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            return next(iter(leaf.devices())).platform
    chosen = jax.config.jax_default_device
    return getattr(chosen, "platform", chosen) or jax.default_backend()


def programs_at_once(platform: str | None = None) -> int:
    """Programs that may run at the same time on one device of a platform (None: the process's own):
    one for every core of a CPU, at most 8, where many operations are too small to be shared out
    over cores; one on an accelerator.
    """
    return min(8, os.cpu_count() or 1) if (platform or platform_of()) == "cpu" else 1


def side_by_side(
    start: Callable, take: Callable, items: Iterable, programs: int | None = None
) -> None:
    """take(item, result on the host) for every item, where start(item) starts a compiled program;
    `programs` run at the same time (default: `programs_at_once`). Raises what start or take raises.

    JAX runs what one thread starts one after another, what several start side by side. `start` is
    called by one thread at a time: who waits finds the program compiled.
    """
    starting = threading.Lock()

    def run(item):
        with starting:
            made = start(item)
        take(item, jax.device_get(made))

    with ThreadPoolExecutor(programs or programs_at_once()) as threads:
        list(threads.map(run, items))


def initialise_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float | None = None,
) -> bool:
    """Joins the processes of a pod or cluster (jax.distributed) and says whether there is more than
    one.

    coordinator ("host:port"), processes and process default to JAXLOOP_COORDINATOR,
    JAXLOOP_PROCESSES and JAXLOOP_PROCESS. Where none is
    given, JAX finds them by itself if the environment is that of several processes under SLURM,
    Open MPI or on a GKE TPU pod, or if the
    coordinator is "auto" (other TPU pods); otherwise nothing is done. Call it before any other use
    of JAX.
    Raises ValueError, naming the address, where the settings are incomplete or the coordinator does
    not answer within `timeout` seconds
    (default: JAXLOOP_TIMEOUT, else 300);
    where other processes never arrive, the process says so and ends with exit code 2.
    """
    coordinator = coordinator or os.environ.get("JAXLOOP_COORDINATOR")
    processes = _integer("processes", processes, "JAXLOOP_PROCESSES")
    process = _integer("process", process, "JAXLOOP_PROCESS")
    timeout = (
        float(_integer("timeout", None, "JAXLOOP_TIMEOUT") or 300) if timeout is None else timeout
    )
    given = [value is not None for value in (coordinator, processes, process)]
    if coordinator == "auto" or (not any(given) and _several()):
        coordinator, processes, process, given = None, None, None, []
    elif not any(given):
        return False
    if any(given) and not all(given):
        raise ValueError("coordinator, processes and process: give all three or none")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"coordinator={coordinator!r}: must be host:port")
        if not 0 <= process < processes:
            raise ValueError(f"process={process}: must lie in [0, {processes})")
        if process > 0:
            _wait_for(host, int(port), timeout)
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
    """(index of this process, number of processes) of a cluster that was joined; (0, 1) otherwise.
    Starts no backend when alone.
    """
    return (
        (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)
    )


def barrier(name: str) -> None:
    """Waits until every process of the cluster is here; nothing when alone."""
    if processes()[1] > 1:
        multihost_utils.sync_global_devices(name)


def _integer(field, value, variable):
    value = os.environ.get(variable) if value is None else value
    try:
        return None if value is None else int(value)
    except ValueError:
        raise ValueError(f"{field}={value!r}: must be an integer") from None


def _several():
    """Whether this process is one of several that a launcher started together."""
    sizes = [os.environ.get(name, "") for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")]
    return any(size.isdigit() and int(size) > 1 for size in sizes) or "," in os.environ.get(
        "TPU_WORKER_HOSTNAMES", ""
    )


def _wait_for(host, port, timeout):
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


def _leave(message):
    print(message, file=sys.stderr, flush=True)
    os._exit(EXIT_REFUSED)
