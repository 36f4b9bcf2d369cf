"""Decoding with a cache row for every slot: the kernels against jax.numpy, the loop against
`forward` and `decode_loop.decode`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.accelerators import absent, cards
from jaxloop.config import LoraConfig
from jaxloop.lm import target as target_module
from jaxloop.lm.generation import decode_loop, row_adapters, row_kernels
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.prefill import prefill
from jaxloop.lm.generation.row_adapters import (
    GroupAdapter,
    RowAdapter,
    adapt,
    pack_for_rows,
    project,
)
from jaxloop.lm.generation.row_attention import RowStep, attend
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slots import DecodeShape
from jaxloop.lm.model import lora
from tests.lm.generation.test_decode_loop import (
    GPT2,
    GREEDY,
    LLAMA,
    decode,
    forward,
    greedy_by_forward,
    init,
    jobs_of,
    normal,
    packed,
    prompt_table,
    requests_of,
    strong_adapters,
)


def pool_of(config, tree):
    return pack_for_rows(config, tree, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention_kernel(dtype, rotary):
    """The kernel under Pallas's interpreter: caches to the last bit, outputs within 1e-6 (float32)
    and 2e-2 (bfloat16) of values near 1.

    Ages stand on both sides of a block's edge; prompts are empty, partial and whole; what lies
    behind a slot's last token is not a number.
    """
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), dtype)

    slots, heads, groups, size, longest, prompt = 6, 6, 2, 32, 128, 16
    age = jnp.asarray([0, 1, 63, 64, 100, 127], jnp.int32)
    nothing = jnp.where(jnp.arange(longest)[None] < age[:, None], 0.0, jnp.nan).astype(dtype)[
        :, None, :, None
    ]
    angle = rng.standard_normal((slots, size // 2)).astype(np.float32)
    step = RowStep(
        age=age,
        length=jnp.asarray([16, 0, 5, 3, 16, 9], jnp.int32),
        prompt=jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32),
        cos=jnp.cos(angle) if rotary else None,
        sin=jnp.sin(angle) if rotary else None,
    )
    args = (
        draw(slots, heads + 2 * groups, size),
        draw(slots, groups, longest, size) + nothing,
        draw(slots, groups, longest, size) + nothing,
        draw(3, groups, prompt, size),
        draw(3, groups, prompt, size),
    )
    run = jax.jit(
        lambda how, *args: attend(*args, step, heads, implementation=how), static_argnums=0
    )
    (plain, *caches), (kernel, *others) = run("plain", *args), run("interpret", *args)
    for a, b in zip(caches, others, strict=True):
        np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
    assert np.isfinite(plain).all()
    np.testing.assert_allclose(
        plain.astype(jnp.float32),
        kernel.astype(jnp.float32),
        atol=1e-6 if dtype == jnp.float32 else 2e-2,
    )


@pytest.mark.parametrize("slots", [1, 5, 16, 24])
def test_adapter_kernel(slots):
    """Parts of several widths, groups that are no power of two: within 1e-4 of sums near 100,
    float32.
    """
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    widths, entry = (64, 32, 32), jnp.asarray([4, 0, 6], jnp.int32)
    pool, x, y = (
        RowAdapter(draw(7, 3, 96, 16), draw(7, 16, 128)),
        draw(3 * slots, 96),
        draw(3 * slots, 128),
    )
    run = jax.jit(lambda how: adapt(x, y, GroupAdapter(pool, entry, how), widths), static_argnums=0)
    plain, kernel = run("plain"), run("interpret")
    by_hand = y[slots] + jnp.concatenate(
        [
            x[slots] @ pool.a[0, p] @ pool.b[0, :, cut]
            for p, cut in enumerate((slice(0, 64), slice(64, 96), slice(96, 128)))
        ]
    )
    np.testing.assert_allclose(plain[slots], by_hand, atol=1e-4)
    np.testing.assert_allclose(plain, kernel, atol=1e-4)


def test_adapter_kernel_in_small_pieces(monkeypatch):
    """A group of more rows than a program takes, of a rank whose blocks are smaller than usual."""
    monkeypatch.setattr(row_adapters, "SLOTS", 16)
    monkeypatch.setattr(row_adapters, "BYTES", 1 << 14)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    pool = RowAdapter(draw(3, 1, 96, 64), draw(3, 64, 128))
    x, y, entry = draw(2 * 24, 96), draw(2 * 24, 128), jnp.asarray([2, 0], jnp.int32)
    plain, kernel = (
        adapt(x, y, GroupAdapter(pool, entry, how), (128,)) for how in ("plain", "interpret")
    )
    np.testing.assert_allclose(plain, kernel, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("card", ["h100", "a100"])
@pytest.mark.parametrize("rank, slots, groups", [(64, 4, 16), (256, 16, 16), (16, 1024, 1)])
def test_adapter_kernels_need_no_more_shared_memory_than_a_gpu_has(card, rank, slots, groups):
    """As the compiler for a GPU says, where it is installed: the plain kernel, with the gate, and
    that of both products, of Llama-3.2-1B's widths in bfloat16.
    """
    try:
        absent.check("gpu")
    except absent.Missing as missing:
        pytest.skip(str(missing))
    found = cards.find(card)
    place = jax.sharding.SingleDeviceSharding(absent.devices(found)[0])

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    rows, inside, outside = slots * groups, 2048, 8192
    entry = array(groups, dtype=jnp.int32)
    for how, gated, widths in (
        ("pallas", False, (inside,)),
        ("pallas", True, (outside, outside)),
        ("fused", True, (outside, outside)),
    ):

        def run(x, w, a, b, entry, how=how, gated=gated, widths=widths):
            adapter = GroupAdapter(RowAdapter(a, b), entry, how)
            return project(x, w, adapter, widths, gated=gated)

        x, w = array(rows, inside), array(inside, sum(widths))
        factors = array(32, len(widths), inside, rank), array(32, rank, sum(widths))
        with absent.as_card(found):
            jax.jit(run).lower(x, w, *factors, entry).compile(absent.GPU_OPTIONS)


def test_adapter_kernel_with_gate_and_with_the_stream():
    """silu(gate) * up and the residual sum inside the kernel: within 1e-5 of the largest value,
    float32.
    """
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    x, y, stream, entry = (
        draw(12, 96),
        draw(12, 128),
        draw(12, 128),
        jnp.asarray([4, 0, 6], jnp.int32),
    )
    two, one = (
        RowAdapter(draw(7, 2, 96, 16), draw(7, 16, 128)),
        RowAdapter(draw(7, 1, 96, 16), draw(7, 16, 128)),
    )
    gated = jax.jit(
        lambda how: adapt(x, y, GroupAdapter(two, entry, how), (64, 64), gated=True),
        static_argnums=0,
    )
    added = jax.jit(
        lambda how: adapt(x, y, GroupAdapter(one, entry, how), (128,), added_NO=stream),
        static_argnums=0,
    )
    gate, up = jnp.split(adapt(x, y, GroupAdapter(two, entry, "plain"), (64, 64)), 2, -1)
    for run, by_hand in (
        (gated, jax.nn.silu(gate) * up),
        (added, stream + adapt(x, y, GroupAdapter(one, entry, "plain"), (128,))),
    ):
        for how in ("plain", "interpret"):
            np.testing.assert_allclose(run(how), by_hand, atol=1e-5 * float(jnp.abs(by_hand).max()))


@pytest.mark.parametrize(
    "config, how",
    [
        *((LLAMA, how) for how in ("plain", "ring_interpret")),
        *(pytest.param(LLAMA, how, marks=pytest.mark.slow) for how in ("interpret", "ring")),
        *((GPT2, how) for how in ("interpret", "ring")),
    ],
    ids=lambda x: x if isinstance(x, str) else x.architecture,
)
def test_greedy_equals_forward(config, how):
    """Ragged limits, prompts and adapters; groups that share a chain, and that change theirs."""
    params, tree = init(jax.random.key(0), config), strong_adapters(config, 3)
    shape = DecodeShape(num_groups=2, slots_per_group=3, window=4, max_new_tokens=33, prompt_len=7)
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 12], [20]]
    cached = prefill(config, params, pool_of(config, tree), *prompt_table(prompts, 8))
    limit = [33, 3, 17, 9, 1, 26, 31, 5, 12, 33, 2]
    chain = [0] * 5 + [1] * 4 + [2] * 2
    runs = [(0, 5, 0), (5, 9, 1), (9, 11, 2)]
    out = decode(
        config,
        GREEDY,
        shape,
        -1,
        params,
        pool_of(config, tree),
        cached,
        requests_of(chain, limit),
        jobs_of(runs),
        loop=decode_rows,
        implementation=how,
    )
    assert out.length.tolist() == limit
    for row, (c, n) in enumerate(zip(chain, limit)):
        one = jax.tree.map(lambda leaf: leaf[c : c + 1], tree)  # noqa: B023
        assert out.tokens[row, :n].tolist() == greedy_by_forward(
            config, params, prompts[c], n, one
        ), row


def test_one_chain_is_merged_and_prompts_may_differ_within_a_job():
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 1)
    shape = DecodeShape(num_groups=1, slots_per_group=4, window=4, max_new_tokens=11, prompt_len=5)
    prompts = [[3], [4, 5], [6, 7, 8, 9, 10, 11], [1, 2, 3], [9, 9], [12, 13, 14, 15]]
    limit = [11, 2, 7, 11, 5, 9]
    for adapter, pool in ((None, None), (tree, pool_of(LLAMA, tree))):
        cached = prefill(LLAMA, params, pool, *prompt_table(prompts, 6))
        out = decode(
            LLAMA,
            GREEDY,
            shape,
            -1,
            params,
            pool,
            cached,
            requests_of(range(6), limit),
            jobs_of([(0, 6, 0)]),
            loop=decode_rows,
            implementation="plain",
        )
        for row, n in enumerate(limit):
            assert out.tokens[row, :n].tolist() == greedy_by_forward(
                LLAMA, params, prompts[row], n, adapter
            )


WIDE = dataclasses.replace(GPT2, activation="relu", d_ff=1024)


def small_beside_the_weights():
    """Weights of +-0.252 in the second product of the mlp and an adapter of a 285th of them, all in
    bfloat16.

    Their sum in bfloat16 is the weights. Over a thousand inputs, none below 0, the adapter adds up
    to a twentieth of the output, as the weights' signs are random.
    """
    base = init(jax.random.key(0), WIDE)
    down = jnp.where(base["layers"]["down"] < 0, -0.251953125, 0.251953125)
    layers = base["layers"] | {"down": down}
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), base | {"layers": layers})
    b = jnp.where(normal(jax.random.key(1), (1, 2, 1, 32)) < 0, -0.9, 0.9) * 2.0**-10
    factors = {"a": jnp.ones((1, 2, 1024, 1)), "b": b}
    return params, lora.Adapter({"down": factors}, LoraConfig(rank=1, alpha=1.0, targets=("down",)))


@pytest.mark.parametrize(
    "loop", [decode_rows, pytest.param(decode_loop.decode, marks=pytest.mark.slow)]
)
def test_in_bfloat16_an_adapter_that_is_small_beside_the_weights_is_not_lost(loop):
    """A call of one chain, in one group and in two: the same texts, other than the base's."""
    rows = loop is decode_rows
    params, tree = small_beside_the_weights()
    cached = prefill(WIDE, params, None, *prompt_table([[1, 2, 3]], 4))
    pack = pack_for_rows if rows else functools.partial(lora.pack_adapters, layout="block_diagonal")
    pool = pack(WIDE, tree, jnp.bfloat16)
    asked = requests_of([0] * 4, [20] * 4), jobs_of([(0, 4, 0)])
    more = dict(loop=loop, implementation="plain") if rows else {}

    def texts(groups, adapters):
        shape = DecodeShape(groups, 4 // groups, window=4, max_new_tokens=20, prompt_len=3)
        out = decode(WIDE, GREEDY, shape, -1, params, adapters, cached, *asked, **more)
        return np.asarray(out.tokens).tolist()

    assert texts(1, pool) == texts(2, pool) != texts(1, None)


SHAPE = DecodeShape(num_groups=3, slots_per_group=4, window=4, max_new_tokens=40, prompt_len=3)
RUNS = [(0, 16, 2), (16, 26, 0), (26, 33, 1), (33, 44, 3)]


def sampled(runs, loop, adapters, seed=1, **more):
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 4, seed)
    pool = adapters(LLAMA, tree)
    chain = np.zeros(48, int)
    for first, end, c in RUNS:
        chain[first:end] = c
    cached = prefill(LLAMA, params, pool, *prompt_table([[1, 2, 3]] * 4, 4))
    asked = requests_of(chain, [SHAPE.max_new_tokens] * 48), jobs_of(runs, 6 - len(runs))
    sampler = Sampler(temperature=1.5, min_p=0.05)
    arrays = (params, pool, cached, *asked)
    out = decode(LLAMA, sampler, SHAPE, 5, *arrays, loop=loop, **more)
    rows = [r for first, end, _ in runs for r in range(first, end)]
    return {r: (out.tokens[r, : out.length[r]].tolist(), bool(out.ended[r])) for r in rows}


@pytest.mark.parametrize(
    "how", ["plain", "ring_interpret", pytest.param("ring", marks=pytest.mark.slow)]
)
def test_a_chain_writes_the_same_texts_alone_and_among_others(how):
    """To the bit with a row for each slot; with rings sums begin elsewhere, which in float32
    changes none of these draws.
    """
    together = sampled(RUNS, decode_rows, pool_of, implementation=how)
    assert (
        len({str(t) for t, _ in together.values()}) > 30
        and len({len(t) for t, _ in together.values()}) > 5
    )
    for run in RUNS:
        alone = sampled([run], decode_rows, pool_of, implementation=how)
        assert alone == {r: together[r] for r in range(run[0], run[1])}


def test_the_same_texts_as_on_a_cpu():
    assert sampled(RUNS, decode_rows, pool_of, implementation="plain") == sampled(
        RUNS, decode_loop.decode, packed
    )


def test_bfloat16():
    """In bfloat16 the loop takes tokens that a bfloat16 forward pass finds likeliest, to its
    precision: logits near 1 are rounded to 0.008, and sums in another order move them by as much
    again; 0.05 holds both.
    """
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), init(jax.random.key(0), LLAMA))
    shape = DecodeShape(num_groups=1, slots_per_group=2, window=4, max_new_tokens=20, prompt_len=3)
    cached = prefill(LLAMA, params, None, *prompt_table([[1, 2, 3]], 4))
    for how in ("plain", "interpret", "ring"):
        out = decode(
            LLAMA,
            GREEDY,
            shape,
            -1,
            params,
            None,
            cached,
            requests_of([0] * 2, [20, 20]),
            jobs_of([(0, 2, 0)]),
            loop=decode_rows,
            implementation=how,
        )
        whole = jnp.concatenate([jnp.array([1, 2, 3]), out.tokens[0]])
        logits = forward(LLAMA, params, whole[None], None)[0, 2:-1]
        chosen = jnp.take_along_axis(logits, out.tokens[0][:, None], 1)[:, 0]
        assert (chosen >= logits.max(-1) - 0.05).all()


def test_idle_slots_are_few_where_groups_share_a_chain():
    """8 slots in 2 groups, one chain of 64 texts of 1 to 30 tokens: nothing idles before the last
    text has begun, windows aside.
    """
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 2)
    shape = DecodeShape(num_groups=2, slots_per_group=4, window=4, max_new_tokens=30, prompt_len=3)
    pool, limit = pool_of(LLAMA, tree), np.random.default_rng(0).integers(1, 31, 64)
    cached = prefill(LLAMA, params, pool, *prompt_table([[1, 2, 3]] * 2, 4))
    out = decode(
        LLAMA,
        GREEDY,
        shape,
        -1,
        params,
        pool,
        cached,
        requests_of([1] * 64, limit),
        jobs_of([(0, 64, 1)]),
        loop=decode_rows,
        implementation="plain",
    )
    assert out.length.tolist() == limit.tolist()
    assert int(out.steps[0]) <= limit.sum() / 8 + 30


def test_architectures_that_the_kernels_do_not_fit():
    assert row_kernels.fits(LLAMA) is False  # heads of 8


def test_a_gpu_is_probed_with_the_models_own_queries_of_a_key(monkeypatch):
    """32 of them need twice the shared memory of 16: what compiles with few may not with many."""
    tried = []
    monkeypatch.setattr(target_module, "platform_of", lambda params: "gpu")
    monkeypatch.setattr(row_kernels, "works", lambda *shape: tried.append(shape) and False)
    config = dataclasses.replace(LLAMA, num_heads=64, num_kv_heads=2, head_dim=256)
    target_module.target_of(config, {"w": jnp.zeros(1)})
    assert tried == [("float32", 256, 32)]


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)])
def test_the_probe_of_a_gpu_finds_that_the_kernels_agree(dtype, monkeypatch):
    """With the interpreter in place of a GPU; and not where a kernel is wrong."""
    device = jax.devices()[0]
    assert row_kernels.agree(dtype, 32, "interpret", device)
    real = row_kernels.attend

    def wrong(*args, **more):
        out, *caches = real(*args, **more)
        return (out * (1.5 if more["implementation"] == "interpret" else 1.0), *caches)

    monkeypatch.setattr(row_kernels, "attend", wrong)
    row_kernels.probe_attend.clear_cache()
    assert not row_kernels.agree(dtype, 32, "interpret", device)
    row_kernels.probe_attend.clear_cache()
