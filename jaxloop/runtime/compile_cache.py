"""Compiled programs: kept on disk between runs, dropped from memory before they are too many."""

import gc
import hashlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import jaxlib

from jaxloop.runtime.log import LOGGER


def environment(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the cache folder of this environment; JAX's backend is started.

    It holds Python's minor version, jax, jaxlib, platform, and a hash of the CPU's model and
    features: Python 3.14 packs programs in another way than earlier ones, and code for one CPU may
    be an illegal instruction to another.

    Args:
        cpuinfo: Linux's description of the CPU.
    """
    try:
        backend = jax.default_backend()
    except RuntimeError:  # a platform that is absent is refused later, in one line
        backend = "none"
    kind = hashlib.sha256(repr(_cpu(cpuinfo)).encode()).hexdigest()[:8]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return f"{python}-jax{jax.__version__}-jaxlib{jaxlib.__version__}-{backend}-{kind}"


def _cpu(cpuinfo: Path) -> list[str]:
    """What distinguishes kinds of CPU, without what changes over time (such as frequencies)."""
    machine = [platform.machine(), platform.processor()]
    try:
        first = cpuinfo.read_text(encoding="utf8", errors="replace").split("\n\n")[0]
    except OSError:
        return machine
    names = (
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "flags",
        "Features",
        "CPU implementer",
        "CPU architecture",
        "CPU variant",
        "CPU part",
    )
    lines = re.findall(r"^([^\t:]+?)\s*:\s*(.*)$", first, re.MULTILINE)
    return machine + [
        f"{name}={' '.join(sorted(value.split()))}" for name, value in lines if name in names
    ]


def keep_compiled_programs(folder: Path) -> bool:
    """Turn on JAX's persistent compilation cache in `folder`/`environment()`.

    The folder is made for its owner alone, since programs in it are run unchecked. Where
    JAX_COMPILATION_CACHE_DIR is set, that one is used as it is, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. An entry that cannot be read is compiled
    again, without a warning.

    Returns:
        Whether a cache is in use; a folder that cannot be written costs the cache, not the run.
    """
    # jax adds its options as attributes at run time.
    if not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return False
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        path = folder / environment()
        if not (_made_for_owner(folder) and _made_for_owner(path)):
            return False
        jax.config.update("jax_compilation_cache_dir", str(path))
    hide_unreadable_entries()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return True


def _made_for_owner(path: Path) -> bool:
    """Make a folder for this user alone; whether it can be used."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        LOGGER.warning(
            "compiled programs are not kept: %s cannot be made (%s)", path, error.strerror or error
        )
        return False
    if not os.access(path, os.W_OK | os.X_OK) or path.stat().st_uid != os.getuid():
        LOGGER.warning(
            "compiled programs are not kept: %s is not a folder of yours that can be written", path
        )
        return False
    return True


def hide_unreadable_entries() -> None:
    """Silence JAX's warning of a cache entry that it cannot read.

    Another version of Python may have written it; it is compiled again.
    """
    warnings.filterwarnings(
        "ignore", message="Error reading persistent compilation cache entry", category=UserWarning
    )


def mappings() -> tuple[int, int]:
    """Return (memory mappings of this process, how many the kernel allows).

    (0, 1) where the system does not say.
    """
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines), int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, 1


def make_room(share: float = 0.5, before: Callable[[], object] | None = None) -> bool:
    """Drop all compiled programs of this process where it has too many memory mappings.

    XLA maps three pieces of memory for each piece of a CPU program and does not check that mapping
    works: a process that has compiled some thousands of programs dies of a segmentation fault in
    the compiler at Linux's limit of 65,530 mappings. Programs that are used again are compiled
    again, or read from the cache; results do not change.

    Args:
        share: share of the mappings that the kernel allows, above which programs are dropped.
        before: called before programs are dropped; from then on no other thread may compile.

    Returns:
        Whether they were dropped.
    """
    used, allowed = mappings()
    if used <= share * allowed:
        return False
    if before is not None:
        before()
    jax.clear_caches()
    gc.collect()
    LOGGER.info(
        "compiled programs dropped from memory: %d memory mappings of the %d that the system "
        "allows, %d now",
        used,
        allowed,
        mappings()[0],
    )
    return True
