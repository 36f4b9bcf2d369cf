"""The devices of a run: those that were asked for, or a refusal."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxloop.runtime.log import LOGGER

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
