"""Compiled modules for the processes of a test run, where Python keeps none."""

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path


def share_bytecode() -> None:
    """Let the processes of this run share compiled modules, in a folder that is removed after it.

    Only where Python is told to write none (PYTHONDONTWRITEBYTECODE) and the packages were
    installed without (`pip install --no-compile`): each process would then compile JAX and the rest
    anew, seven of the nine seconds of processor time that it takes to import a small study.
    """
    jax = importlib.util.find_spec("jax")
    if not sys.dont_write_bytecode or jax is None or Path(jax.cached).exists():
        return
    folder = tempfile.mkdtemp(prefix="jaxloop-bytecode-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sys.dont_write_bytecode, sys.pycache_prefix = False, folder
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = folder
