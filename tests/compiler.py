"""The compiler's short way, for tests that compile far longer than they run, and who leaves it."""

import importlib.metadata

import pytest
from packaging.version import Version


def short_flags() -> str:
    """What XLA_FLAGS adds to JAX's own `jax_disable_most_optimizations`.

    Up to jaxlib 0.11.0 without XLA:CPU's emitters of fused loops, which take as long as the rest of
    the compiler where it takes its short way, and without cutting a program into parts to be
    compiled beside each other: the parts take a quarter more processor time than the whole, and the
    cores have the other worker's tests to compile. From 0.11.1 on XLA knows no emitters' flag, and
    ends a process that sets it.
    """
    if Version(importlib.metadata.version("jaxlib")) < Version("0.11.1"):
        return "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    return ""


def as_for_users(names, *full):
    """`names` as parameters: those of `full` are compiled as for users, and come first, so that no
    program is dropped in between. The others differ from them in what is computed alone.
    """
    return [
        *(pytest.param(name, marks=pytest.mark.optimised) for name in names if name in full),
        *(name for name in names if name not in full),
    ]


def short_way() -> dict[str, str]:
    """Environment variables of a process whose numbers are not looked at, which compiles so."""
    return {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": short_flags()}
