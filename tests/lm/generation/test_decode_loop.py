"""The decoding loop against `forward`, and the promise that a job's texts do not depend on the
other jobs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import LoraConfig
from jaxloop.lm.generation import decode_loop, kv_blocks
from jaxloop.lm.generation.prefill import prefill, unstack_layers
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slots import DecodeShape, Jobs, Requests
from jaxloop.lm.model import config as model_config
from jaxloop.lm.model import lora, transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.runtime.setup_jit import setup_jit

# What is only read here: drawn by programs that are compiled the short way.
init = setup_jit(model_config.init, static_argnums=1)
normal = setup_jit(jax.random.normal, static_argnums=1)

# One layer, which compiles in half the time; GPT2 has two.
LLAMA = ModelConfig(
    "llama",
    vocab_size=97,
    d_model=32,
    num_layers=1,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_seq_len=128,
    init_scale=0.3,
)
GPT2 = ModelConfig(
    "gpt2",
    vocab_size=97,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=8,
    d_ff=64,
    max_seq_len=128,
    norm="layer",
    activation="gelu_new",
    gated=False,
    positions="learned",
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    init_scale=0.3,
)
LORA = LoraConfig(rank=4, alpha=8.0)
GREEDY = Sampler(greedy=True)


@functools.cache
def strong_adapters(config, chains, seed=1):
    """Adapters whose b is as large as the base, so that chains differ strongly."""
    tree = lora.init(jax.random.split(jax.random.key(seed), chains), config, LORA)
    rng = np.random.default_rng(seed)
    weights = {
        name: {"a": f["a"], "b": 0.5 * rng.standard_normal(f["b"].shape).astype(np.float32)}
        for name, f in tree.items()
    }
    return lora.Adapter(weights, LORA)


def packed(config, tree):
    return lora.pack_adapters(config, tree, jnp.float32, "block_diagonal")


def decode(config, sampler, shape, eos, *arrays, loop=decode_loop.decode, **more):
    """The texts of a decoding loop; `arrays`: weights, adapters, prompts, requests, jobs."""
    return loop(config, *arrays, sampler=sampler, shape=shape, eos=eos, **more)


def jobs_of(runs, padding=2):
    """Jobs from (first, end, chain) rows."""
    table = np.array([*runs, *([(0, 0, 0)] * padding)], np.int32)
    return Jobs(*(jnp.asarray(c) for c in table.T))


def requests_of(prompt, limit, seed=0):
    keys = jax.random.key_data(jax.random.split(jax.random.key(seed), len(prompt)))
    return Requests(jnp.asarray(prompt, jnp.int32), keys, jnp.asarray(limit, jnp.int32))


def prompt_table(prompts, width):
    table = np.array([p + [p[-1]] * (width - len(p)) for p in prompts], np.int32)
    return jnp.asarray(table), jnp.asarray([len(p) for p in prompts], jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens, tree):
    return transformer.forward(config, params, tokens, adapters=tree)


def greedy_by_forward(config, params, prompt, count, tree=None):
    ids = list(prompt)
    for _ in range(count):
        padded = np.zeros((1, 1, 48) if tree is not None else (1, 48), np.int32)
        padded[..., : len(ids)] = ids
        ids.append(
            int(
                np.asarray(forward(config, params, padded, tree))
                .reshape(48, -1)[len(ids) - 1]
                .argmax()
            )
        )
    return ids[len(prompt) :]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_greedy_equals_forward_with_refills_windows_and_adapters(config):
    """Ragged limits force refills at every phase of a window; texts outlive all levels; each chain
    has its own prompt and adapter.
    """
    params, tree = init(jax.random.key(0), config), strong_adapters(config, 3)
    shape = DecodeShape(num_groups=2, slots_per_group=3, window=4, max_new_tokens=33, prompt_len=7)
    prompts = [[1, 2, 3], [5, 6, 7, 8, 9, 10, 11, 12], [20]]
    cached = prefill(config, params, packed(config, tree), *prompt_table(prompts, 8))
    limit = [33, 3, 17, 9, 1, 26, 31, 5, 12, 33, 2]
    chain = [0] * 5 + [1] * 4 + [2] * 2
    runs = [(0, 5, 0), (5, 9, 1), (9, 11, 2)]
    out = decode(
        config,
        GREEDY,
        shape,
        -1,
        params,
        packed(config, tree),
        cached,
        requests_of(chain, limit),
        jobs_of(runs),
    )
    assert out.length.tolist() == limit
    for row, (c, n) in enumerate(zip(chain, limit)):
        one = jax.tree.map(lambda leaf: leaf[c : c + 1], tree)  # noqa: B023
        assert out.tokens[row, :n].tolist() == greedy_by_forward(
            config, params, prompts[c], n, one
        ), row


# Prompts of different lengths, one for each row.
RAGGED = [[3], [4, 5], [6, 7, 8, 9, 10, 11], [1, 2, 3], [9, 9], [12, 13, 14, 15]]
RAGGED_SHAPE = DecodeShape(
    num_groups=1, slots_per_group=4, window=4, max_new_tokens=11, prompt_len=5, shared_prompt=False
)


def test_per_row_prompts_equal_forward():
    """Ragged prompts, one per row, and a base without adapters."""
    params = init(jax.random.key(0), LLAMA)
    cached = prefill(LLAMA, params, None, *prompt_table(RAGGED, 6))
    limit = [11, 2, 7, 11, 5, 9]
    out = decode(
        LLAMA,
        GREEDY,
        RAGGED_SHAPE,
        -1,
        params,
        None,
        cached,
        requests_of(range(6), limit),
        jobs_of([(0, 6, 0)]),
    )
    for row, n in enumerate(limit):
        assert out.tokens[row, :n].tolist() == greedy_by_forward(LLAMA, params, RAGGED[row], n)


def sampled(config, params, tree, shape, runs, rows, eos=5):
    """Texts of every row of `rows` (row -> chain) written under `runs`."""
    chains = jax.tree.leaves(tree)[0].shape[0]
    cached = prefill(config, params, packed(config, tree), *prompt_table([[1, 2, 3]] * chains, 4))
    requests = requests_of([rows.get(r, 0) for r in range(48)], [shape.max_new_tokens] * 48)
    out = decode(
        config,
        Sampler(temperature=1.5, min_p=0.05),
        shape,
        eos,
        params,
        packed(config, tree),
        cached,
        requests,
        jobs_of(runs, 6 - len(runs)),
    )
    return {r: (out.tokens[r, : out.length[r]].tolist(), bool(out.ended[r])) for r in rows}


@pytest.mark.optimised
def test_a_job_writes_the_same_texts_alone_and_among_others():
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 4)
    shape = DecodeShape(num_groups=2, slots_per_group=4, window=4, max_new_tokens=40, prompt_len=3)
    runs = [(0, 16, 2), (16, 26, 0), (26, 33, 1), (33, 44, 3)]
    rows = {r: c for first, end, c in runs for r in range(first, end)}
    together = sampled(LLAMA, params, tree, shape, runs, rows)
    assert (
        len({str(t) for t, _ in together.values()}) > 30
        and len({len(t) for t, _ in together.values()}) > 5
    )
    for run in runs:
        mine = {r: run[2] for r in range(run[0], run[1])}
        alone = sampled(LLAMA, params, tree, shape, [run], mine)
        assert alone == {r: together[r] for r in mine}
    # Nor does it matter where a queue is cut, or in which order queues come.
    parts = [(38, 44, 3), (16, 22, 0), (5, 16, 2)]
    rows = {r: c for first, end, c in parts for r in range(first, end)}
    cut = sampled(LLAMA, params, tree, shape, parts, rows)
    assert cut == {r: together[r] for r in rows}


@pytest.mark.optimised  # the program of the test before
def test_no_recompile_for_other_contents():
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 4)
    shape = DecodeShape(num_groups=2, slots_per_group=4, window=4, max_new_tokens=40, prompt_len=3)
    sampled(LLAMA, params, tree, shape, [(0, 5, 1)], {0: 1})
    before = decode_loop.decode._cache_size()
    sampled(LLAMA, params, tree, shape, [(0, 9, 3), (9, 12, 2)], {3: 3, 10: 2})
    assert decode_loop.decode._cache_size() == before


def test_the_last_bucket_holds_every_block():
    for window, longest in ((4, 1), (4, 5), (16, 300), (32, 300), (32, 33), (8, 64)):
        shape = DecodeShape(
            num_groups=1,
            slots_per_group=10,
            window=window,
            max_new_tokens=longest,
            prompt_len=0,
        )
        assert (
            kv_blocks.ring_windows(shape) * window
            >= longest - 1
            > (kv_blocks.ring_windows(shape) - 1) * window - 1
        )
        found = kv_blocks.block_count_buckets(shape)
        assert found[-1] == 10 * kv_blocks.ring_windows(shape) + 1 and list(found) == sorted(
            set(found)
        )


@functools.cache
def decode_again(sampler, shape):
    """The loop as a program of its own, which is traced where it is first called."""
    static = dict(sampler=sampler, shape=shape, eos=-1)
    return jax.jit(functools.partial(decode_loop.decode.__wrapped__, LLAMA, **static))


@pytest.mark.parametrize("lengths", [[1, 2, 3, 38] * 3, [38] * 12], ids=["few old rows", "all old"])
def test_every_bucket_writes_the_same(lengths, monkeypatch):
    """Padding the list of blocks changes nothing: with room for all blocks always, texts are the
    same to the last token.
    """
    params, tree = init(jax.random.key(0), LLAMA), strong_adapters(LLAMA, 2)
    shape = DecodeShape(num_groups=2, slots_per_group=4, window=4, max_new_tokens=40, prompt_len=3)
    pool = packed(LLAMA, tree)
    cached = prefill(LLAMA, params, pool, *prompt_table([[1, 2, 3], [4, 5]], 4))
    asked = requests_of([0] * 6 + [1] * 6, lengths), jobs_of([(0, 6, 0), (6, 12, 1)])
    sampler = Sampler(temperature=1.5, min_p=0.05)
    several = decode(LLAMA, sampler, shape, -1, params, pool, cached, *asked)
    every_block = shape.num_slots * kv_blocks.ring_windows(shape) + 1
    monkeypatch.setattr(kv_blocks, "block_count_buckets", lambda shape: (every_block,))
    whole = decode_again(sampler, shape)(unstack_layers(params), pool, cached, *asked)
    np.testing.assert_array_equal(several.tokens, whole.tokens)
    assert several.length.tolist() == lengths


def test_bfloat16():
    """The loop stays in bfloat16 and picks tokens that a bfloat16 forward pass finds likeliest, to
    its precision (0.05 of logits near 1).
    """
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), init(jax.random.key(0), LLAMA))
    shape = DecodeShape(num_groups=1, slots_per_group=2, window=4, max_new_tokens=20, prompt_len=3)
    cached = prefill(LLAMA, params, None, *prompt_table([[1, 2, 3]], 4))
    assert cached.keys[-1].dtype == jnp.bfloat16
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
    )
    whole = jnp.concatenate([jnp.array([1, 2, 3]), out.tokens[0]])
    logits = forward(LLAMA, params, whole[None], None)[0, 2:-1]
    chosen = jnp.take_along_axis(logits, out.tokens[0][:, None], 1)[:, 0]
    assert (chosen >= logits.max(-1) - 0.05).all()
