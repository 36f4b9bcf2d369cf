"""Kernels for accelerators, step by step on a CPU, held to the plain path: forward and gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.accelerators import absent, cards
from jaxloop.config import FitConfig, LoraConfig, SampleConfig
from jaxloop.lm import programs
from jaxloop.lm.generation import row_kernels
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.model import attention, flash, gate, split_layers, transformer
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.target import Target, complete
from tests.lm.random_adapters import random_adapters


def draw(seed, *shapes, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(0.5 * rng.standard_normal(shape), dtype) for shape in shapes]


def value_and_gradient(function, *args):
    """function(*args), and the gradient of a sum of it with weights of its own."""
    out = jax.eval_shape(function, *args)
    along = draw(9, *(x.shape for x in jax.tree.leaves(out)))

    def total(*args):
        return sum(
            (y.astype(jnp.float32) * w).sum()
            for y, w in zip(jax.tree.leaves(function(*args)), along, strict=True)
        )

    return jax.jit(
        lambda *args: (function(*args), jax.grad(total, tuple(range(len(args))))(*args))
    )(*args)


@pytest.mark.parametrize(
    "time, heads, groups, width",
    [(200, 2, 2, 64), (40, 4, 1, 128), pytest.param(128, 4, 2, 64, marks=pytest.mark.slow)],
)
def test_splash_attention_is_plain_attention(time, heads, groups, width):
    """Whole blocks, padded lengths, one key for each query and for several: float32 to 1e-4."""
    qkv = draw(0, (2, time, heads, width), (2, time, groups, width), (2, time, groups, width))
    ours = value_and_gradient(functools.partial(flash.causal, interpret=True), *qkv)
    config = ModelConfig(
        "llama",
        vocab_size=8,
        d_model=8,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=width,
        d_ff=8,
        max_seq_len=time,
    )

    def plain(q, k, v):
        flat = (x.reshape(2 * time, -1, width) for x in (q, k, v))
        return attention.causal(config, 2, time, None)(*flat).reshape(q.shape)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
        ours,
        value_and_gradient(plain, *qkv),
    )


def test_splash_attention_is_asked_for_where_the_target_has_it(monkeypatch):
    asked = []
    monkeypatch.setattr(flash, "causal", lambda q, k, v: (asked.append(q.shape), v)[1])
    config = ModelConfig(
        "llama",
        vocab_size=8,
        d_model=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        d_ff=8,
        max_seq_len=8,
    )
    x = jnp.zeros((8, 2, 16), jnp.bfloat16)
    for target, dtype in (
        (Target("tpu"), x.dtype),
        (Target("tpu", splash=True), x.dtype),
        (Target("tpu", splash=True), jnp.float32),
    ):
        attention.causal(config, 2, 4, None, target=target)(*[x.astype(dtype)] * 3)
    attention.causal(config, 2, 4, None, jnp.ones((2, 4), bool), Target("tpu", splash=True))(
        x, x, x
    )
    assert asked == [(2, 4, 2, 16)]


@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
def test_gate_kernels_compute_what_xla_does(activation):
    """float32 to 1e-4 of sums of order ten; two chains with factors of their own."""
    inputs = draw(
        0,
        (256, 192),
        (256, 192),
        (256, 192),
        (2, 128, 16),
        (2, 128, 32),
        (2, 32, 192),
        (2, 32, 192),
        (2, 192, 16),
    )
    act = transformer.ACTIVATIONS[activation]
    ours = gate.forward(act, *inputs[1:3], *inputs[4:], interpret=True) + gate.backward(
        act, *inputs, interpret=True
    )
    for a, b in zip(ours, gate.plainly(act, *inputs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "sizes, fine",
    [
        ((2, 256, 128, 32, 16), True),
        ((2, 192, 128, 32, 16), False),
        ((2, 256, 96, 32, 16), False),
        ((2, 256, 128, 24, 16), False),
        ((1, 64, 64, 16, 8), False),
    ],
)
def test_sizes_that_the_gate_kernels_cannot_tile_are_left_to_xla(sizes, fine):
    assert gate.fits(*sizes) is fine


def test_a_gated_mlp_by_kernels_is_that_of_products():
    """A block in bfloat16, chains with adapters of their own on all projections: outputs and
    gradients as near to float32 as the plain ones.
    """
    config = ModelConfig(
        "llama",
        vocab_size=8,
        d_model=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        d_ff=128,
        max_seq_len=64,
        init_scale=0.2,
    )
    lora, target = LoraConfig(rank=16, alpha=16.0), Target("gpu", gate=True)
    base, weights = init(jax.random.key(0), config), random_adapters(config, lora, 2)
    (x,) = draw(1, (256, 32))

    def block(form, weights, x):
        dtype = jnp.float32 if form == "exact" else jnp.bfloat16
        params = jax.tree.map(lambda w: w.astype(dtype), base)["layers"]
        if form == "exact":
            w, adapter = (
                transformer.layer(params, 0),
                transformer.adapter_layer(adapters.pack_adapters(config, weights, dtype), 0),
            )
        else:
            w = split_layers.layers(config, params, target)[0]
            adapter = split_layers.adapter_layers(
                adapters.pack_adapters(config, weights, dtype, "padded"), 1
            )[0]
        made_for = target if form == "kernels" else Target("gpu")
        return transformer.block(
            config,
            w,
            adapter,
            x.astype(dtype),
            lambda q, k, v: (q + k + v).reshape(len(q), -1),
            target=made_for,
        ).astype(jnp.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(split_layers, "INTERPRET", True)
        exact, parts, kernels = (
            value_and_gradient(functools.partial(block, form), weights, x)
            for form in ("exact", "parts", "kernels")
        )

    def norm(a, b):
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    for a, b, c in zip(*map(jax.tree.leaves, (exact, parts, kernels)), strict=True):
        assert norm(c, a) < 1.2 * norm(b, a) < 2e-2


def _lowered(program, platform):
    """Of a GPU, JAX 0.12 wants to know which one it is."""
    with absent.as_card(cards.CARDS["h100"] if platform == "cuda" else None):
        return program.lower((platform,)).as_text()


@pytest.mark.parametrize(
    "made_for, lowered, call",
    [("gpu", "cuda", "xla.gpu.triton"), ("tpu", "tpu", "tpu_custom_call")],
)
def test_training_programs_of_accelerators_hold_their_kernels(made_for, lowered, call, monkeypatch):
    """Lowered without the hardware or its compiler: a forward and a backward kernel for each layer
    of a GPU's gated mlp, three (the backward one is two) for the scanned attention of a TPU; none
    where the target has none.
    """
    monkeypatch.setattr(transformer, "UNROLL", 1)
    config = ModelConfig(
        "llama",
        vocab_size=64,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=64,
        d_ff=64,
        max_seq_len=128,
    )
    fit = FitConfig(lora=LoraConfig(rank=16), batch_size=1, dtype="bfloat16", max_length=128)

    def calls(target):
        made = programs.training(config, fit, 2, 128, dtype="bfloat16", target=target)
        return _lowered(made, lowered).count(call)

    assert calls(dataclasses.replace(complete(made_for), cudnn=False)) == (
        4 if made_for == "gpu" else 3
    )
    assert calls(Target(made_for)) == 0


@pytest.mark.parametrize(
    "made_for, lowered, names",
    [
        ("gpu", "cuda", {"attend_rows": 2, "adapt_groups": 6, "adapt_inputs": 2, "gate_groups": 2}),
        ("tpu", "tpu", {"attend_ring": 2, "gate_rings": 2, "pick_blocks": 1}),
    ],
)
def test_decoding_programs_of_accelerators_hold_their_kernels(made_for, lowered, names):
    """Lowered as above; so many kernels in two layers, none where the target has none."""
    config = ModelConfig(
        "llama",
        vocab_size=256,
        d_model=128,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        d_ff=128,
        max_seq_len=128,
    )
    sample = SampleConfig(slots=128, slots_per_adapter=16, texts_per_call=256, max_new_tokens=64)
    options = GenerateOptions(lora=LoraConfig(rank=16), dtype="bfloat16")

    def text(target):
        made = programs.decoding(
            config, sample, 16, dtype="bfloat16", target=target, options=options
        )
        return _lowered(made, lowered)

    whole = text(complete(made_for))
    assert {name: whole.count(f'"{name}"') for name in names} == names
    plain = text(Target(made_for))
    assert not any(name in plain for name in names)


def test_without_the_hardware_the_probes_say_no():
    if not any(d.platform == "gpu" for d in jax.devices()):
        assert gate.works() is False
    if not any(d.platform == "tpu" for d in jax.devices()):
        assert flash.works(64) is False
        assert row_kernels.rings_work(8, 2, 64) is False
