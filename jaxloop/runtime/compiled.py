"""Compiled programs are kept between runs: what took a minute to compile takes a second when the run is resumed or repeated."""

import os
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
