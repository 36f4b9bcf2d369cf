"""Compiled programs: kept between runs (what took a minute to compile takes a second when the run
is resumed or repeated), and dropped from the memory of a process before they are so many that it
would die of them.
"""

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
    """Name of the folder for programs of this environment: Python's minor version, jax, jaxlib,
    platform, and a hash of the CPU's model and features.

    Python 3.14 packs programs in another way than earlier ones, and code for one CPU may be an
    illegal instruction to another. Starts JAX's backend. `cpuinfo`: Linux's description of the CPU.
    """
    try:
        backend = jax.default_backend()
    except RuntimeError:  # a platform that is absent is refused later, in one line
        backend = "none"
    kind = hashlib.sha256(repr(_cpu(cpuinfo)).encode()).hexdigest()[:8]
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return f"{python}-jax{jax.__version__}-jaxlib{jaxlib.__version__}-{backend}-{kind}"


def _cpu(cpuinfo: Path) -> list[str]:
    """What tells kinds of CPU apart: the machine, its model and what it can do, without what
    changes from minute to minute.
    """
    found = [platform.machine(), platform.processor()]
    try:
        first = cpuinfo.read_text(encoding="utf8", errors="replace").split("\n\n")[0]
    except OSError:
        return found
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
    return found + [
        f"{name}={' '.join(sorted(value.split()))}" for name, value in lines if name in names
    ]


def keep_compiled_programs(folder: Path) -> bool:
    """Turns on JAX's persistent compilation cache in `folder`/`environment()` (made for its owner
    alone: programs in it are run unchecked).

    Where JAX_COMPILATION_CACHE_DIR is set that one is used as it is, and
    JAX_ENABLE_COMPILATION_CACHE=false still turns it off. An entry that cannot be read is compiled
    again, without a warning. Returns whether a cache is in use; a folder that cannot be written
    costs the cache, not the run.
    """
    if not jax.config.jax_enable_compilation_cache:
        return False
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        for path in (folder, folder / environment()):
            try:
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError as error:
                LOGGER.warning(
                    "compiled programs are not kept: %s cannot be made (%s)",
                    path,
                    error.strerror or error,
                )
                return False
            if not os.access(path, os.W_OK | os.X_OK) or path.stat().st_uid != os.getuid():
                LOGGER.warning(
                    "compiled programs are not kept: %s is not a folder of yours that can be "
                    "written",
                    path,
                )
                return False
        jax.config.update("jax_compilation_cache_dir", str(path))
    hide_unreadable_entries()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return True


def hide_unreadable_entries() -> None:
    """Silences JAX's warning of an entry that it cannot read: another version of Python may have
    written it, and it is compiled again.
    """
    warnings.filterwarnings(
        "ignore", message="Error reading persistent compilation cache entry", category=UserWarning
    )


def mappings() -> tuple[int, int]:
    """(memory mappings of this process, how many the kernel allows); (0, 1) where the system does
    not say.
    """
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines), int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, 1


def make_room(share: float = 0.5, settle: Callable = lambda: None) -> bool:
    """Drops every compiled program of this process if its memory mappings exceed `share` of what
    the kernel allows; whether it did.

    XLA maps three pieces of memory for each piece of a CPU program and checks none: a process that
    has compiled some thousands of programs dies of a segmentation fault in the compiler at Linux's
    65,530 mappings. Programs that are used again are compiled again, or read from the cache;
    results do not change. settle() is called first where that is to happen: afterwards no other
    thread may compile.
    """
    used, allowed = mappings()
    if used <= share * allowed:
        return False
    settle()
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
