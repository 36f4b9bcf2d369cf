"""Attention over rings, plain and by the kernel under Pallas's interpreter, against the same over
rows in order.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.lm.generation import ring_attention, ring_blocks, row_kernels
from jaxloop.lm.generation.row_adapters import GroupAdapter, RowAdapter, project, project_targets
from jaxloop.lm.generation.row_attention import RowStep, attend_plain
from tests.lm.generation.test_decode_loop import LLAMA

SLOTS, LONGEST = 16, 192
HEADS = {
    "two side by side": (8, 2, 64, True),
    "without positions": (8, 2, 64, False),
    "of a register": (6, 2, 128, True),
    "of two": (4, 2, 256, False),
}


def in_order(ring_SGMK, at, age_S):
    """Rows as `row_attention` has them: a text begins at 0, and its new token is at its age."""
    return jax.vmap(lambda ring_GMK, age: jnp.roll(ring_GMK, age - at, 1))(ring_SGMK, age_S)


@pytest.mark.parametrize(
    "sizes, dtype",
    [
        (HEADS["two side by side"], jnp.bfloat16),
        pytest.param(HEADS["two side by side"], jnp.float32, marks=pytest.mark.slow),
        *((x, jnp.float32) for name, x in HEADS.items() if name != "two side by side"),
    ],
    ids=["bfloat16", *HEADS],
)
def test_rings_are_rows_turned(sizes, dtype):
    """Within 2e-6 (float32) and 2e-2 (bfloat16) of values of up to 4. Ages from 0 to a whole ring,
    places on both sides of blocks' edges, prompts empty, partial and whole.
    """
    heads, groups, size, rotary = sizes
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    angle = rng.standard_normal((SLOTS, size // 2)).astype(np.float32)
    new = [draw(SLOTS, n, size) for n in (heads, groups, groups)]
    rings = [draw(SLOTS, groups, LONGEST, size) for _ in range(2)]
    prompts = [draw(3, groups, 32, size) for _ in range(2)]
    run = jax.jit(ring_attention.attend, static_argnames="implementation")
    in_rows = jax.jit(attend_plain, static_argnums=6)
    for at in (0, 63, 150):
        step = RowStep(
            age=jnp.asarray(rng.permutation(np.linspace(0, LONGEST - 1, SLOTS).astype(np.int32))),
            length=jnp.asarray(rng.integers(0, 33, SLOTS), jnp.int32),
            prompt=jnp.asarray(rng.integers(0, 3, SLOTS), jnp.int32),
            cos=jnp.cos(angle) if rotary else None,
            sin=jnp.sin(angle) if rotary else None,
            at=jnp.int32(at),
        )
        rows = [in_order(ring, at, step.age) for ring in rings]
        theirs, keys, _ = in_rows(jnp.concatenate(new, 1), *rows, *prompts, step, heads)
        caches = [ring_attention.side_by_side(x) for x in (*rings, *prompts)]
        for how in ("ring", "ring_interpret"):
            ours, ring_k, _ = run(*new, *caches, step, implementation=how)
            difference = ours.astype(jnp.float32) - theirs.astype(jnp.float32)
            assert float(jnp.abs(difference).max()) < (2e-6 if dtype == jnp.float32 else 2e-2)
            written = jnp.take_along_axis(keys, step.age[:, None, None, None], 2)
            np.testing.assert_array_equal(
                ring_k[:, :, at].reshape(SLOTS, groups, size).astype(jnp.float32),
                written[:, :, 0].astype(jnp.float32),
            )


def test_what_the_kernel_fits():
    def fits(heads, groups, size, dtype="bfloat16"):
        config = dataclasses.replace(LLAMA, num_heads=heads, num_kv_heads=groups, head_dim=size)
        return ring_attention.fits(config, dtype)

    assert fits(32, 8, 64) and fits(24, 8, 128) and fits(4, 1, 256)
    # a row of two queries would belong to two key/value heads; three heads do not fill a register
    assert not fits(14, 2, 64) and not fits(12, 12, 64) and not fits(9, 3, 64)
    assert not fits(32, 8, 64, "float32")


def test_the_probe_of_a_tpu_finds_that_the_kernel_agrees(monkeypatch):
    """With the interpreter in place of a TPU; and not where the kernel is wrong."""
    device = jax.devices()[0]
    assert row_kernels.rings_agree(8, 2, 64, "ring_interpret", device)
    assert not row_kernels.rings_work(8, 2, 64)  # no TPU here
    real = ring_attention.ring_kernel.attend
    monkeypatch.setattr(
        ring_attention.ring_kernel, "attend", lambda *args, **more: 1.5 * real(*args, **more)
    )
    row_kernels.probe_ring.clear_cache()
    assert not row_kernels.rings_agree(8, 2, 64, "ring_interpret", device)
    row_kernels.probe_ring.clear_cache()


def test_the_probe_of_a_tpu_finds_that_each_slots_block_is_taken(monkeypatch):
    """As above, for the logits of sampling."""
    device = jax.devices()[0]
    assert row_kernels.blocks_agree(device, interpret=True)
    real = ring_blocks.pick
    monkeypatch.setattr(
        ring_blocks, "pick", lambda z, block, **more: real(z, jnp.roll(block, 1), **more)
    )
    assert not row_kernels.blocks_agree(device, interpret=True)


@pytest.mark.parametrize("more", ["nothing", "gated", "added"])
def test_targets_one_by_one_are_the_fused_projection(more):
    """Within 1e-5 of the largest value, float32."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    parts, widths = {"nothing": (3, (64, 32, 32)), "gated": (2, (64, 64)), "added": (1, (128,))}[
        more
    ]
    x, w, entry = draw(12, 96), draw(96, 128), jnp.arange(3)
    adapter = RowAdapter(draw(3, parts, 96, 16), draw(3, 16, 128))
    options = {"gated": dict(gated=True), "added": dict(added_NO=draw(12, 128))}.get(more, {})
    one_by_one, fused = (
        project(x, w, GroupAdapter(adapter, entry, how), widths, **options)
        for how in ("ring", "plain")
    )
    np.testing.assert_allclose(one_by_one, fused, atol=1e-5 * float(jnp.abs(fused).max()))
    if more == "nothing":
        targets = project_targets(x, w, GroupAdapter(adapter, entry, "ring"), widths)
        np.testing.assert_array_equal(jnp.concatenate(targets, 1), one_by_one)


@pytest.mark.parametrize("blocks, width, slots", [(5, 32, 256), (3, 16, 128), (7, 8, 12)])
def test_the_logits_of_each_slots_block(blocks, width, slots):
    """To the bit; the last sizes do not fill registers."""
    rng = np.random.default_rng(blocks)
    z = jnp.asarray(rng.standard_normal((blocks, width, slots)), jnp.bfloat16)
    block = jnp.asarray(rng.integers(0, blocks, slots), jnp.int32)
    ours = ring_blocks.pick(z, block, interpret=True)
    theirs = np.asarray(z.astype(jnp.float32))[np.asarray(block), :, np.arange(slots)].T
    np.testing.assert_array_equal(ours, theirs)
