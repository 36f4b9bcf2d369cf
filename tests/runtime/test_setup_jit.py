"""Set-up programs: compiled the short way with the bits of the long way, the values of always, and
the usual way where there is no other.
"""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import FitConfig, LoraConfig
from jaxloop.core import keys
from jaxloop.lm.generation import decode_call, scheduler
from jaxloop.lm.io.huggingface import read_model_config
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import init
from jaxloop.lm.training import evaluate
from jaxloop.lm.training import step as train_step
from jaxloop.recursion import plan, workflow
from jaxloop.recursion.plan import human_rows
from jaxloop.runtime import setup_jit as module
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.setup_jit import setup_jit
from jaxloop.simulators import family as simulated
from jaxloop.simulators import linear_simulation
from tests.lm.tiny import opt_shapes

pytestmark = pytest.mark.optimised

ROOT = Path(__file__).resolve().parents[2]
BASES = ROOT / "jaxloop" / "assets" / "bases"
KEY = keys.chain_key(7)
FLOWS = dict(
    fresh_human=workflow.fresh_human(64, 0.25),
    replace=workflow.replace(16),
    accumulate=workflow.accumulate(16),
    accumulate_subsample=workflow.accumulate_subsample(64),
    preserve=workflow.preserve(40, 0.1),
    window=workflow.window(16, 2, ratio=0.5),
    external=workflow.external(16, 0.25, ratio=0.5),
    mixed=workflow.replace(16, entities=2, mixing=((0.5, 0.5), (0.25, 0.75))),
    exchange=workflow.exchange(
        32,
        alpha=0.3,
        beta=0.6,
        private=(20, 30),
        public=10,
        synthetic=16,
        entities=2,
        mixing=((0.5, 0.5), (0.5, 0.5)),
        past=2,
    ),
)


@functools.cache
def model_config_of(base):
    return opt_shapes() if base == "opt" else read_model_config(BASES / base)


def adapters_of(base, chains, lora=LoraConfig()):
    return adapters._init_program(
        keys.stack_keys([keys.chain_key(seed) for seed in range(chains)]),
        model_config_of(base),
        lora,
    )


def given(base, chains, lora=LoraConfig()):
    """Adapters that were drawn on the host, for programs that only read them."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda keys: adapters.init(keys, model_config_of(base), lora), jax.random.split(KEY, chains)
    )
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


def weights_of(base):
    return setup_jit(init, static_argnums=1)(KEY, model_config_of(base))


def weights_given(base):
    """Weights that were drawn on the host."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: weights_of(base))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes)


PROGRAMS = {
    "fold_in": lambda: jax.random.key_data(keys._fold_in(KEY, np.uint32(3))),
    "row_keys": lambda: jax.random.key_data(keys._row_keys(KEY, np.arange(300, dtype=np.uint32))),
    "fold_each": lambda: jax.random.key_data(
        keys._fold_each(keys.row_keys(KEY, np.arange(5)), np.uint32(0))
    ),
    "random_bits": lambda: [keys._random_bits(KEY, n) for n in (1, 7, 1000, 100_003)],
    "random_below": lambda: [keys._random_below(KEY, n) for n in (1, 4, 1000, 2**31 - 1)],
    "rows_below": lambda: [
        keys._rows_below(KEY, np.arange(n, dtype=np.uint32), 977) for n in (1, 96)
    ],
    "random_order": lambda: [keys._random_order(KEY, n) for n in (1, 20, 5000)],
    "replicate_keys": lambda: jax.random.key_data(linear_simulation.replicate_keys(KEY, 37)),
    "simulated_keys": lambda: [jax.random.key_data(simulated._keys(KEY, 11, n)) for n in (None, 3)],
    "ranks": lambda: [
        adapters_of("llama", 2, LoraConfig(rank=rank, alpha=8.0, targets=("q", "v")))
        for rank in (1, 3, 4, 8, 10)
    ],
    "one product": lambda: adapters_of("gpt2", 1, LoraConfig(rank=4, targets=("c_attn",))),
    "together": lambda: adapters_of("gpt2", 4),
    "fresh": lambda: train_step._init_optimizer(
        FitConfig(), train_step.TrainOptions(), given("gpt2", 2).weights
    ),
    "fuse": lambda: decode_call._pack_block_diagonal(
        model_config_of("llama"),
        given("llama", 2, LoraConfig(alpha=10.0)),
        jnp.dtype("bfloat16"),
    ),
    "fused": lambda: evaluate._pack(
        model_config_of("gpt2"),
        jnp.dtype("float32"),
        adapters.split(given("gpt2", 1, LoraConfig(alpha=10.0)), 0),
    ),
    "unstack": lambda: scheduler._unstack_program(weights_given("opt")),
    **{
        f"adapters {base}": functools.partial(adapters_of, base, 1)
        for base in ("llama", "qwen2", "gpt2", "opt")
    },
    **{
        f"plan {name}": lambda flow=flow: [
            plan._plan_program(flow, 4, KEY, np.int32(g), np.int32(0)) for g in (0, 1, 3)
        ]
        for name, flow in FLOWS.items()
    },
}


# Adapters take the compiler of this process half a minute the long way, without XLA's emitters of
# fused loops (see conftest.py), and users' compiler one: a process as users start it compiles them.
AS_USERS = (
    "ranks",
    "one product",
    "together",
    *(f"adapters {base}" for base in ("llama", "qwen2", "gpt2", "opt")),
)
# Up to ten seconds each with later versions; one of their kind is always tried.
LONG = tuple(name for name in AS_USERS if name != "one product")
# Made of what the plans of the other workflows are made of.
LONG += tuple(
    f"plan {name}" for name in ("accumulate_subsample", "preserve", "window", "external", "mixed")
)
CASES = [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in PROGRAMS]


def both_ways(name):
    """The values of a program, compiled the short way and the long way."""
    assert module.understood("cpu"), (
        "the compiler takes the short way, or this test compares nothing"
    )
    short = jax.device_get(PROGRAMS[name]())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "understood", lambda platform: False)
        return short, jax.device_get(PROGRAMS[name]())


def write_both_ways(name, path):
    short, long = both_ways(name)
    assert jax.tree.structure(short) == jax.tree.structure(long)
    np.savez(path / "short.npz", *jax.tree.leaves(short))
    np.savez(path / "long.npz", *jax.tree.leaves(long))


def both_ways_as_users(name, path):
    code = (
        "import pathlib, sys; from tests.runtime import test_setup_jit as t; "
        "t.write_both_ways(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [dict(np.load(path / f"{way}.npz")) for way in ("short", "long")]


@pytest.mark.parametrize("name", CASES)
def test_the_short_way_has_the_bits_of_the_long_way(tmp_path, name):
    short, long = both_ways_as_users(name, tmp_path) if name in AS_USERS else both_ways(name)
    assert jax.tree.structure(short) == jax.tree.structure(long) and jax.tree.leaves(short)
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.array_equal(a.view(np.uint8) if a.ndim else a, b.view(np.uint8) if b.ndim else b)


def test_draws_are_those_of_always():
    """Values of the release before; whoever changes them changes every chain."""
    assert jax.random.key_data(keys.phase_key(KEY, 3, "fit")).tolist() == [1426861124, 3625248749]
    assert human_rows(KEY, 1000, 8).tolist() == [938, 999, 784, 247, 249, 760, 530, 468]
    assert keys.random_order(KEY, 40)[:8].tolist() == [10, 9, 17, 12, 30, 37, 4, 33]
    found = {
        base: np.asarray(jax.tree.leaves(adapters_of_two(base))[0]).ravel()[:3]
        for base in ("llama", "qwen2", "gpt2")
    }
    np.testing.assert_allclose(
        found["llama"], [-0.010727936401963234, 0.0358898788690567, 0.019316546618938446], rtol=3e-7
    )
    np.testing.assert_allclose(
        found["qwen2"], [-0.009854238480329514, 0.03296696022152901, 0.01774338074028492], rtol=3e-7
    )
    np.testing.assert_allclose(
        found["gpt2"], [-0.008813899010419846, 0.02948654443025589, 0.01587016135454178], rtol=3e-7
    )
    written = np.asarray(weights_of("llama")["embed"]).ravel()[:3]
    np.testing.assert_allclose(
        written, [0.022280942648649216, 0.002832625759765506, -0.010449083521962166], rtol=1e-6
    )


def adapters_of_two(base):
    return adapters.init(
        keys.stack_keys([KEY, keys.chain_key(8)]), model_config_of(base), LoraConfig()
    )


def test_derived_keys_are_those_of_jax_random():
    def own(*path):
        return functools.reduce(jax.random.fold_in, path, KEY)

    def data(key):
        return jax.random.key_data(key).tolist()

    assert all(
        data(keys.fold_in(KEY, n)) == data(own(n)) for n in (0, 1, 2**31 - 1, 2**31, 2**32 - 1)
    )
    rows = np.array([0, 5, 2**32 - 1], np.uint32)
    assert data(keys.row_keys(KEY, rows)) == [data(own(row)) for row in rows]
    assert keys.rows_below(KEY, rows, 977).tolist() == [
        int(jax.random.randint(own(row), (), 0, 977)) for row in rows
    ]
    stacked = keys.stack_keys([KEY, own(1)])
    assert stacked.dtype == KEY.dtype and data(stacked) == [data(KEY), data(own(1))]


def test_it_is_a_part_of_the_program_around_it():
    draw = setup_jit(lambda key, n: jax.random.bits(key, (n,)), static_argnums=1)
    alone = draw(KEY, 4).tolist()
    assert jax.jit(lambda key: draw(key, 4))(KEY).tolist() == alone
    assert jax.jit(lambda: draw(KEY, 4))().tolist() == alone  # constants are traced too
    assert jax.vmap(lambda key: draw(key, 4))(KEY[None]).tolist() == [alone]
    assert jax.lax.map(lambda key: draw(key, 4), KEY[None]).tolist() == [alone]


def test_it_is_a_part_of_a_program_whose_constants_are_computed_while_it_is_traced():
    """Constants are no tracers there, which once sent a set-up program inside another to the
    compiler with options of its own.
    """

    def outer(x):
        with jax.ensure_compile_time_eval():
            return x + keys._random_order(KEY, 6)[0]

    expected = keys.random_order(KEY, 6)[0]
    assert int(jax.jit(outer)(jnp.int32(3))) == 3 + int(expected)
    assert int(jax.vmap(outer)(jnp.arange(2, dtype=jnp.int32))[1]) == 1 + int(expected)


def test_the_options_reach_the_compiler(monkeypatch):
    monkeypatch.setattr(module, "FAST_COMPILE", {"cpu": {"xla_no_such_option": 1}})
    monkeypatch.setattr(module, "understood", lambda platform: True)
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        setup_jit(lambda x: x + 1)(jnp.ones(3))


def test_a_compiler_that_does_not_know_the_options_is_asked_once(monkeypatch, caplog):
    module.understood.cache_clear()
    monkeypatch.setattr(module, "FAST_COMPILE", {"cpu": {"xla_no_such_option": 1}})
    try:
        with caplog.at_level("INFO", module.LOGGER.name):
            monkeypatch.setattr(module.LOGGER, "propagate", True)
            add = setup_jit(lambda x: x + 1)
            assert add(jnp.ones(3)).tolist() == [2, 2, 2] and add(jnp.ones(4)).tolist() == [
                2,
                2,
                2,
                2,
            ]
        assert [
            record.message for record in caplog.records if "set-up programs" in record.message
        ] == [caplog.records[0].message]
    finally:
        module.understood.cache_clear()


def test_other_platforms_compile_as_usual():
    assert not module.understood("gpu") and not module.understood("tpu")


def test_the_platform_is_that_of_the_arguments():
    assert (
        platform_of([1, None, KEY]) == "cpu"
        and platform_of([2]) == platform_of() == jax.default_backend()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_drawn_on_the_host_are_those_of_the_program(name, monkeypatch):
    """To one rounding of the largest number, and the same however many chains there are."""
    config, settings = model_config_of(name), LoraConfig(rank=4)
    many = keys.stack_keys([keys.chain_key(seed) for seed in range(3)])
    here = adapters.init(many, config, settings)
    program = adapters._init_program(many, config, settings)
    assert jax.tree.structure(here) == jax.tree.structure(program)
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(program), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2.0**-23)
    alone = adapters.init(many[1:2], config, settings)
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(ours[1:2], theirs)
    monkeypatch.setattr(adapters, "_init_program", lambda *given: "a program")
    assert adapters.init(many, config, settings) != "a program"
    monkeypatch.setattr(adapters, "HOST_NUMBERS", 100)
    assert adapters.init(many, config, settings) == "a program"


def test_layers_are_taken_apart_on_the_host_as_by_the_program(monkeypatch):
    stacked = weights_of("gpt2")
    program = scheduler._unstack_program(stacked)
    monkeypatch.setattr(scheduler, "_unstack_program", lambda params: "a program")
    here = scheduler._unstack_base(stacked)
    assert jax.tree.structure(here) == jax.tree.structure(program)
    for ours, theirs in zip(jax.tree.leaves(here), jax.tree.leaves(program), strict=True):
        assert isinstance(ours, jax.Array) and ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    other = jax.devices()[1]
    moved = scheduler._unstack_base(jax.device_put(stacked, other))
    assert {d for leaf in jax.tree.leaves(moved) for d in leaf.devices()} == {other}
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    assert scheduler._unstack_base(jax.device_put(stacked, everywhere)) == "a program"
