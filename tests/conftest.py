"""Strict numerics for every test, four fake CPU devices, and the optional real data beside the
repository.
"""

import gc
import os
from collections import Counter
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Matrices are small here: threads of BLAS and torch would wait for one another, and for those of
# the other worker, longer than they compute.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest

from jaxloop.runtime.compile_cache import make_room
from tests.compiler import short_flags
from tests.order import starts_first
from tests.processes import ended_with

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_threefry_partitionable", True)
# A study under test may ask for the cache of compiled programs; the process would keep it for all
# later tests.
jax.config.update("jax_enable_compilation_cache", False)

OPTIMISED = os.environ.get("JAXLOOP_TEST_OPTIMISED") == "1"


def _start_jax():
    """Starts JAX with the flags of the compiler's short way.

    XLA reads the variable when JAX is first asked for devices. Subprocesses do not inherit it: they
    run what users run.
    """
    before = os.environ.get("XLA_FLAGS")
    if not OPTIMISED:
        os.environ["XLA_FLAGS"] = f"{before or ''} {short_flags()}".strip()
    jax.devices()
    os.environ.pop("XLA_FLAGS", None)
    if before is not None:
        os.environ["XLA_FLAGS"] = before


_start_jax()
jax.config.update("jax_disable_most_optimizations", not OPTIMISED)
SHARED = Path(os.environ.get("JAXLOOP_SHARED", Path(__file__).resolve().parents[2] / "shared"))


def pytest_configure(config):
    """The workers of xdist take files in the order of collection, which is ours (see below)."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)  # once those that are not asked for are gone
def pytest_collection_modifyitems(items):
    """Long files start first, so that no worker is left alone with one at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        counts = Counter(item.path for item in items)
        items.sort(key=lambda item: starts_first(item.path, counts[item.path]))


def pytest_collection_finish():
    """What the imported libraries consist of is not looked at again, and what programs are traced
    to not after every 700 objects: a twentieth of the processor time went into that.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def _hasty():
    """A killed process loses nothing that it wrote, only a power cut does: no test but the one that
    looks at it waits for the disk.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope are made
def pytest_runtest_setup(item):
    """Most tests compile far longer than they run, so the compiler takes its short way there.
    Tests that hold what users run on a CPU to torch, or to the last bit, are compiled with all
    optimisations: `pytest.mark.optimised`, on a test or a module. Subprocesses run what users run,
    and so do all tests with JAXLOOP_TEST_OPTIMISED=1.
    """
    full = OPTIMISED or item.get_closest_marker("optimised") is not None
    if full == jax.config.values["jax_disable_most_optimizations"]:
        if full:
            jax.clear_caches()  # or a program that was compiled the short way would serve
        jax.config.update("jax_disable_most_optimizations", not full)


@pytest.fixture(autouse=True, scope="module")
def _programs():
    """All tests of a process compile more programs than the system has memory mappings for, so they
    are dropped now and then.
    """
    yield
    make_room(0.2)


@pytest.fixture
def ends_processes(monkeypatch):
    """Every process that the test starts is gone after it."""
    with ended_with(monkeypatch):
        yield


@pytest.fixture
def shared():
    """`shared("data/gsm8k/gsm8k.jsonl")` is the path of optional real data; the test is skipped
    where it is absent.
    """

    def find(relative: str) -> Path:
        path = SHARED / relative
        if not path.exists():
            pytest.skip(f"optional real data {relative} is not beside the repository")
        return path

    return find
