"""Compiled programs: kept between runs (what took a minute to compile takes a second when the run is resumed or repeated), and dropped
from the memory of a process before they are so many that it would die of them."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import jax

from jaxloop.runtime.log import LOGGER


def keep_compiled_programs(folder: Path) -> bool:
    """Turns on JAX's persistent compilation cache in `folder` (made for its owner alone: programs in it are run unchecked).

    Where JAX_COMPILATION_CACHE_DIR is set that one is used, and JAX_ENABLE_COMPILATION_CACHE=false still turns it off. Returns whether a
    cache is in use; a folder that cannot be written costs the cache, not the run.
    """
    if not jax.config.jax_enable_compilation_cache:
        return False
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            LOGGER.warning("compiled programs are not kept: %s cannot be made (%s)", folder, error.strerror or error)
            return False
        if not os.access(folder, os.W_OK | os.X_OK) or folder.stat().st_uid != os.getuid():
            LOGGER.warning("compiled programs are not kept: %s is not a folder of yours that can be written", folder)
            return False
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return True


def mappings() -> tuple[int, int]:
    """(memory mappings of this process, how many the kernel allows); (0, 1) where the system does not say."""
    try:
        with open("/proc/self/maps", "rb") as lines:
            return sum(1 for _ in lines), int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return 0, 1


def make_room(share: float = 0.5, settle: Callable = lambda: None) -> bool:
    """Drops every compiled program of this process if its memory mappings exceed `share` of what the kernel allows; whether it did.

    XLA maps three pieces of memory for each piece of a CPU program and checks none: a process that has compiled some thousands of programs
    dies of a segmentation fault in the compiler at Linux's 65,530 mappings. Programs that are used again are compiled again, or read from
    the cache; results do not change. settle() is called first where that is to happen: afterwards no other thread may compile.
    """
    used, allowed = mappings()
    if used <= share * allowed:
        return False
    settle()
    jax.clear_caches()
    gc.collect()
    LOGGER.info("compiled programs dropped from memory: %d memory mappings of the %d that the system allows, %d now", used, allowed, mappings()[0])
    return True
