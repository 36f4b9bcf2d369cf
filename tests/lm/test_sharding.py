"""Bases cut over a `model` axis, micro-batches that are measured, and memory that runs out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import FitConfig, LoraConfig, SampleConfig
from jaxloop.lm import family, sharding
from jaxloop.lm.family import FitTask, GenerateOptions, GenerateTask, LossTask, TrainOptions
from jaxloop.lm.generation import decode_call
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import ModelConfig, init, table
from jaxloop.lm.training import autotune
from jaxloop.lm.training import fit as fitting
from jaxloop.runtime.log import LOGGER

TEXTS = [
    f"The {a} {b} near the old house."
    for a in ("cat", "dog", "bird", "fish")
    for b in ("sat", "ran", "slept")
]
PROMPTS = ["### User:\nWrite.\n### Assistant:\n"] * len(TEXTS)
FIT = FitConfig(
    lora=LoraConfig(rank=4, alpha=8.0),
    epochs=1,
    batch_size=4,
    learning_rate=1e-2,
    length_buckets=1,
)
TRAIN = TrainOptions(steps_per_call=4)
SAMPLE = SampleConfig(
    max_new_tokens=12, slots=8, slots_per_adapter=4, texts_per_call=16, chains_per_call=2
)
GENERATE = GenerateOptions(lora=FIT.lora, window=4)


@pytest.fixture(scope="module")
def model():
    tokenizer = bpe.train(TEXTS, 264)
    config = ModelConfig(
        "llama",
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        d_ff=48,
        max_seq_len=96,
        init_scale=0.2,
    )
    return Model(config, init(jax.random.key(0), config), tokenizer, "tiny")


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
    four = sharding.shard(model, jax.devices()[:4])
    assert sharding.mesh_of(four) is None
    for p in table(model.config):
        leaf = four.params
        for name in p.path:
            leaf = leaf[name]
        local = leaf.addressable_shards[0].data.size
        assert local * (4 if p.shard is not None else 1) == leaf.size, p.path
    tokens = np.arange(40).reshape(2, 20) % 250
    forward = jax.jit(transformer.forward, static_argnums=0)
    one, many = (forward(model.config, m.params, jnp.asarray(tokens)) for m in (model, four))
    np.testing.assert_allclose(one, many, atol=1e-5)


@pytest.mark.parametrize("mode", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_cut_base_trains_writes_and_scores(model, mode):
    """The whole family runs on a cut base; losses within 1e-4 of one device, greedy texts equal."""
    settings = FIT.replace(mode=mode)
    found = []
    for base in (model, sharding.shard(model, jax.devices()[:4])):
        fits = family.fit(
            base, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(2)], settings, TRAIN
        )
        writes = [
            GenerateTask(jax.random.key(9), f.weights, PROMPTS[:3], np.arange(3)) for f in fits
        ]
        texts = family.generate(base, writes, SAMPLE.replace(decoder="greedy"), GENERATE)
        losses = family.loss(base, [LossTask(f.weights, TEXTS, PROMPTS) for f in fits], settings)
        found.append(
            (
                np.concatenate([f.loss for f in fits]),
                [t.texts for t in texts],
                np.concatenate([x.nll for x in losses]),
            )
        )
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-4)
    assert found[0][1] == found[1][1]
    np.testing.assert_allclose(found[0][2], found[1][2], rtol=1e-4)


def test_an_axis_that_the_devices_do_not_divide_stays_whole(model):
    three = sharding.shard(model, jax.devices()[:3])
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
    expected = family.fit(model, tasks, FIT, TrainOptions(4, chains_per_program=1))
    real, room = fitting.run_steps, 1

    def scarce(*args, **more):
        size = args[5].tokens.shape[1]
        if size > room:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes."
            )
        return real(*args, **more)

    monkeypatch.setattr(fitting, "run_steps", scarce)
    made = family.fit(model, tasks, FIT, TrainOptions(4, chains_per_program=4))
    assert [line.split(" with ", 1)[1] for line in warned] == [
        "run.chains_per_program = 4; going on with 2",
        "run.chains_per_program = 2; going on with 1",
    ]
    assert "8589934592 bytes" in warned[0]
    for a, b in zip(
        jax.tree.leaves([r.weights for r in expected]), jax.tree.leaves([r.weights for r in made])
    ):
        np.testing.assert_array_equal(a, b)
    room = 0
    with pytest.raises(
        ValueError,
        match="run.chains_per_program = 1 already, and the device is out of "
        "memory.*fit.batch_size.*fit.remat",
    ):
        family.fit(model, tasks, FIT, TrainOptions(4, chains_per_program=4))


def test_memory_that_runs_out_halves_the_slots(model, monkeypatch, warned):
    real = decode_call.decode

    def scarce(*args, shape, **more):
        if shape.num_slots > 4:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."
            )
        return real(*args, shape=shape, **more)

    write = [GenerateTask(jax.random.key(0), None, PROMPTS, np.arange(len(PROMPTS)))]
    expected = family.generate(model, write, SAMPLE.replace(slots=4), GENERATE)
    monkeypatch.setattr(decode_call, "decode", scarce)
    made = family.generate(model, write, SAMPLE.replace(slots=16), GENERATE)
    assert [line.split(" with ", 1)[1] for line in warned] == [
        "sample.slots = 16; going on with 8",
        "sample.slots = 8; going on with 4",
    ]
    assert made[0].texts == expected[0].texts


def test_another_error_is_not_taken_for_a_lack_of_memory(model, monkeypatch):
    def broken(*args, **more):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(fitting, "run_steps", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        family.fit(model, [FitTask(jax.random.key(0), TEXTS, PROMPTS)], FIT, TRAIN)


def test_the_chains_per_program_are_measured_once_and_kept(model, monkeypatch, cache):
    """Worth it or not is decided by the work; what was measured is read again, another shape is
    another entry, a broken file is no file.
    """
    assert (
        autotune.choose(model, FIT, TRAIN, 32, 10, 4) == autotune.default("cpu") == 1
        and not cache.exists()
    )
    monkeypatch.setattr(autotune, "WORTH_MEASURING", 0)
    times = {1: 1.0, 2: 1.5, 4: 3.5}
    asked = []

    def seconds(model, fit, options, seq_len, chains, repeats):
        asked.append(chains)
        return times[chains]

    monkeypatch.setattr(autotune, "_seconds_of_step", seconds)
    assert autotune.choose(model, FIT, TRAIN, 32, 10, 4) == 2 and asked == [1, 2, 4]
    assert autotune.choose(model, FIT, TRAIN, 32, 99, 64) == 2 and asked == [1, 2, 4]
    assert list(json.loads(cache.read_text()).values()) == [2]
    assert autotune.choose(model, FIT, TRAIN, 64, 10, 2) == 2 and asked == [1, 2, 4, 1, 2]
    cache.write_text("{")
    assert autotune.choose(model, FIT, TRAIN, 64, 10, 2) == 2


def test_a_measurement_takes_real_steps(model):
    found = autotune.measure(model, FIT, TRAIN, 24, 2, repeats=1)
    assert set(found) == {1, 2} and all(0 < s < 60 for s in found.values())


def test_a_cache_that_cannot_be_written_costs_no_run(model, tmp_path, monkeypatch, warned):
    monkeypatch.setattr(autotune, "platform_of", lambda params: "gpu")
    monkeypatch.setattr(autotune, "room", lambda model: 1)
    monkeypatch.setattr(autotune, "fitting", lambda *args: (4, 1))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path / "file" / "cache"))
    assert autotune.choose(model, FIT, TrainOptions(), 16, 10, 8) == 4
    assert "are not kept" in warned[0]
