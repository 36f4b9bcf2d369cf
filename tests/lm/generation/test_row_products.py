"""Gate and up with their adapters in one kernel, under Pallas's interpreter, against jax.numpy."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.lm.generation import ring_products, row_kernels, row_products
from jaxloop.lm.generation.row_adapters import GroupAdapter, RowAdapter, project


@pytest.mark.parametrize(
    "slots, groups, dtype",
    [(4, 64, jnp.float32), (16, 16, jnp.bfloat16), (256, 1, jnp.float32)],
)
def test_gate_kernel(slots, groups, dtype):
    """Several groups in a tile, several tiles in a group: within 1e-5 (float32) and 2e-2 (bfloat16,
    where the product is not rounded before the adapter is added) of the largest value.
    """
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / 4, dtype)

    x, w = draw(slots * groups, 128), draw(128, 256)
    adapter = RowAdapter(draw(7, 2, 128, 32), draw(7, 32, 256))
    entry = jnp.asarray(rng.integers(0, 7, groups), jnp.int32)
    assert row_products.fits(slots * groups, groups, 128, 128)

    def run(how):
        def gated(x, w, adapter, entry):  # what is no argument is folded while it is compiled
            return project(x, w, GroupAdapter(adapter, entry, how), (128, 128), gated=True)

        return jax.jit(gated)(x, w, adapter, entry).astype(jnp.float32)

    ours, theirs = run("fused_interpret"), run("plain")
    share = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(ours, theirs, atol=share * float(jnp.abs(theirs).max()))


@pytest.mark.parametrize(
    "slots, groups, rank, dtype",
    [(2, 8, 16, jnp.float32), (64, 16, 32, jnp.float32), (16, 16, 16, jnp.bfloat16)],
)
def test_gate_kernel_of_a_tpu(slots, groups, rank, dtype):
    """One tile, and several of rows and of columns; tolerances as above."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape) / 4, dtype)

    x, w = draw(slots * groups, 128), draw(128, 1024)
    adapter = RowAdapter(draw(groups, 2, 128, rank), draw(groups, rank, 1024))
    assert ring_products.fits(slots * groups, groups, 128, 512, rank)

    def run(how):
        def gated(x, w, adapter):
            of_groups = GroupAdapter(adapter, jnp.arange(groups), how)
            return project(x, w, of_groups, (512, 512), gated=True)

        return jax.jit(gated)(x, w, adapter)

    ours, theirs = (run(how).astype(jnp.float32) for how in ("ring_fused_interpret", "plain"))
    share = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(ours, theirs, atol=share * float(jnp.abs(theirs).max()))


def test_sizes_that_do_not_divide_take_the_other_kernel():
    fits = row_products.fits
    assert fits(1024, 64, 2048, 8192) and fits(64, 4, 128, 64)
    assert not fits(96, 6, 128, 64)  # rows
    assert not fits(36, 3, 128, 64)  # slots of a group
    assert not fits(64, 4, 96, 64) and not fits(64, 4, 128, 96)
    fits = ring_products.fits
    assert fits(1024, 64, 2048, 8192, 16) and fits(64, 4, 128, 128, 16)
    assert fits(768, 48, 128, 128, 16) and fits(1024, 64, 4096, 14336, 16)
    assert not fits(600, 4, 128, 128, 16) and not fits(1024, 1, 128, 128, 16)  # rows
    assert not fits(1024, 64, 16384, 128, 16)  # too wide for the memory of a core
    assert fits(1024, 512, 2048, 8192, 16) and not fits(1024, 64, 2048, 8192, 512)  # room for B
    assert ring_products.tiling(1024, 64, 2048, 8192, 128).rows == 128  # as much of it
    assert not fits(8, 2, 128, 128, 16)  # slots of the groups taken together
    assert not fits(64, 4, 96, 128, 16) and not fits(64, 4, 128, 192, 16)
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((12, 96), (96, 128)))
    a, b = (
        jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 2, 96, 16), (2, 16, 128))
    )
    one, other = (
        project(x, w, GroupAdapter(RowAdapter(a, b), jnp.arange(2), how), (64, 64), gated=True)
        for how in ("fused_interpret", "plain")
    )
    np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    "kernel, implementation, platform",
    [
        (row_products, "fused_interpret", "gpu"),
        (ring_products, "ring_fused_interpret", "tpu"),
    ],
)
def test_the_probe_finds_that_the_kernel_agrees(monkeypatch, kernel, implementation, platform):
    """With the interpreter in place of a GPU or TPU; and not where the kernel is wrong."""
    device = jax.devices()[0]
    assert row_kernels.products_agree("bfloat16", implementation, device)
    assert not row_kernels.products_work("bfloat16", platform)  # there is none here
    real = kernel.gate
    monkeypatch.setattr(kernel, "gate", lambda *args, **more: 1.5 * real(*args, **more))
    row_kernels.probe_gate.clear_cache()
    assert not row_kernels.products_agree("bfloat16", implementation, device)
    row_kernels.probe_gate.clear_cache()


GONE = """
import sys
sys.modules["jax.experimental.pallas.triton"] = None
import jaxloop.lm
from jaxloop.lm.target import Target, complete
assert complete("gpu") == Target("gpu", cudnn=True)
"""


def test_without_jaxs_backend_for_triton_programs_are_xlas_alone():
    """As a version of JAX that has removed it: what is imported, and what a GPU's programs use."""
    subprocess.run([sys.executable, "-c", GONE], check=True)
