"""Bases cut over a `model` axis, micro-batches that are measured, and memory that runs out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.lm import family, sharding
from jaxloop.lm.family import FitSettings, FitTask, LossTask, SampleSettings, SampleTask
from jaxloop.lm.generation import decode_loop
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import Spec, init, table
from jaxloop.lm.model.lora import Lora
from jaxloop.lm.training import autotune
from jaxloop.runtime.log import LOGGER

TEXTS = [
    f"The {a} {b} near the old house."
    for a in ("cat", "dog", "bird", "fish")
    for b in ("sat", "ran", "slept")
]
PROMPTS = ["### User:\nWrite.\n### Assistant:\n"] * len(TEXTS)
FIT = FitSettings(
    lora=Lora(rank=4, alpha=8.0),
    epochs=1,
    batch_size=4,
    learning_rate=1e-2,
    steps_per_dispatch=4,
    length_classes=1,
)
SAMPLE = SampleSettings(
    lora=FIT.lora,
    max_new_tokens=12,
    slots=8,
    lane_slots=4,
    window=4,
    texts_per_call=16,
    chains_per_call=2,
)


@pytest.fixture(scope="module")
def model():
    tokenizer = bpe.train(TEXTS, 264)
    spec = Spec(
        "llama",
        vocab=tokenizer.vocab_size,
        width=32,
        layers=2,
        heads=4,
        kv_heads=4,
        head_size=8,
        mlp=48,
        context=96,
        init_scale=0.2,
    )
    return Model(spec, init(jax.random.key(0), spec), tokenizer, "tiny")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path))
    return tmp_path / "micro_batch.json"


@pytest.fixture
def warned(monkeypatch):
    said = []
    monkeypatch.setattr(LOGGER, "warning", lambda text, *values: said.append(text % values))
    return said


def test_a_cut_base_holds_a_quarter_a_device_and_gives_the_same_logits(model):
    """Four devices, float32: logits within 1e-5 of one device, though each holds a quarter of every
    projection and of the vocabulary.
    """
    four = sharding.cut(model, jax.devices()[:4])
    assert sharding.mesh_of(four) is None
    for p in table(model.spec):
        leaf = four.params
        for name in p.path:
            leaf = leaf[name]
        local = leaf.addressable_shards[0].data.size
        assert local * (4 if p.shard is not None else 1) == leaf.size, p.path
    tokens = np.arange(40).reshape(2, 20) % 250
    one = transformer.forward(model.spec, model.params, jnp.asarray(tokens))
    many = jax.jit(transformer.forward, static_argnums=0)(
        model.spec, four.params, jnp.asarray(tokens)
    )
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_a_cut_base_trains_writes_and_scores(model, mode):
    """The whole family runs on a cut base; losses within 1e-4 of one device, greedy texts equal."""
    settings = FitSettings(**{**FIT.__dict__, "mode": mode})
    found = []
    for base in (model, sharding.cut(model, jax.devices()[:4])):
        fits = family.fit(
            base, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(2)], settings
        )
        writes = [SampleTask(jax.random.key(9), f.weights, PROMPTS[:3], np.arange(3)) for f in fits]
        texts = family.sample(
            base, writes, SampleSettings(**{**SAMPLE.__dict__, "decoder": "greedy"})
        )
        losses = family.loss(base, [LossTask(f.weights, TEXTS, PROMPTS) for f in fits], settings)
        found.append(
            (
                np.concatenate([f.loss for f in fits]),
                [t.texts for t in texts],
                np.concatenate([x.nats for x in losses]),
            )
        )
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    assert found[0][1] == found[1][1]
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-4)


def test_an_axis_that_the_devices_do_not_divide_stays_whole(model):
    three = sharding.cut(model, jax.devices()[:3])
    assert (
        three.params["layers"]["o"].addressable_shards[0].data.shape
        == model.params["layers"]["o"].shape
    )
    assert (
        three.params["layers"]["up"].addressable_shards[0].data.shape[-1]
        == model.params["layers"]["up"].shape[-1] // 3
    )


def test_memory_that_runs_out_halves_the_chains_in_one_program(model, monkeypatch, warned):
    """Results are those of the smaller number to the bit; the log says what happened; with one
    chain left it is an error that says what to do.
    """
    tasks = [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(3)]
    expected = family.fit(model, tasks, FitSettings(**{**FIT.__dict__, "chains_at_once": 1}))
    real, room = family._start_together, 1

    def scarce(model, tasks, works, size, *rest):
        if size > room:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."
            )
        return real(model, tasks, works, size, *rest)

    monkeypatch.setattr(family, "_start_together", scarce)
    made = family.fit(model, tasks, FitSettings(**{**FIT.__dict__, "chains_at_once": 4}))
    assert [line.split(" with ", 1)[1] for line in warned] == [
        "run.micro_batch = 4; going on with 2",
        "run.micro_batch = 2; going on with 1",
    ]
    assert "8589934592 bytes" in warned[0]
    for a, b in zip(
        jax.tree.leaves([r.weights for r in expected]), jax.tree.leaves([r.weights for r in made])
    ):
        np.testing.assert_array_equal(a, b)
    room = 0
    with pytest.raises(
        ValueError,
        match="run.micro_batch = 1 already, and the device is out of "
        "memory.*fit.batch_size.*fit.remat",
    ):
        family.fit(model, tasks, FitSettings(**{**FIT.__dict__, "chains_at_once": 4}))


def test_memory_that_runs_out_halves_the_slots(model, monkeypatch, warned):
    real = decode_loop.decode

    def scarce(spec, sampler, shape, *rest, **more):
        if shape.rows > 4:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."
            )
        return real(spec, sampler, shape, *rest, **more)

    write = [SampleTask(jax.random.key(0), None, PROMPTS, np.arange(len(PROMPTS)))]
    expected = family.sample(model, write, SampleSettings(**{**SAMPLE.__dict__, "slots": 4}))
    monkeypatch.setattr(decode_loop, "decode", scarce)
    made = family.sample(model, write, SampleSettings(**{**SAMPLE.__dict__, "slots": 16}))
    assert [line.split(" with ", 1)[1] for line in warned] == [
        "sample.slots = 16; going on with 8",
        "sample.slots = 8; going on with 4",
    ]
    assert made[0].texts == expected[0].texts


def test_another_error_is_not_taken_for_a_lack_of_memory(model, monkeypatch):
    def broken(*args):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(family, "_start_together", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        family.fit(model, [FitTask(jax.random.key(0), TEXTS, PROMPTS)], FIT)


def test_the_micro_batch_is_measured_once_and_kept(model, monkeypatch, cache):
    """Worth it or not is decided by the work; what was measured is read again, another shape is
    another entry, a broken file is no file.
    """
    assert (
        autotune.choose(model, FIT, 32, 10, 4) == autotune.default("cpu") == 1
        and not cache.exists()
    )
    monkeypatch.setattr(autotune, "WORTH", 0)
    times = {1: 1.0, 2: 1.5, 4: 3.5}
    asked = []

    def seconds(model, settings, time_, chains, repeats):
        asked.append(chains)
        return times[chains]

    monkeypatch.setattr(autotune, "_seconds", seconds)
    assert autotune.choose(model, FIT, 32, 10, 4) == 2 and asked == [1, 2, 4]
    assert autotune.choose(model, FIT, 32, 99, 64) == 2 and asked == [1, 2, 4]
    assert list(json.loads(cache.read_text()).values()) == [2]
    assert autotune.choose(model, FIT, 64, 10, 2) == 2 and asked == [1, 2, 4, 1, 2]
    cache.write_text("{")
    assert autotune.choose(model, FIT, 64, 10, 2) == 2


def test_a_measurement_takes_real_steps(model):
    found = autotune.measure(model, FIT, 24, 2, repeats=1)
    assert set(found) == {1, 2} and all(0 < s < 60 for s in found.values())
