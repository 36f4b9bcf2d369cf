"""The programs as (function, abstract arguments): the same that training runs, lowered for other
platforms, and what chooses their size.
"""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import pytest

from jaxloop.accelerators import absent, cards
from jaxloop.config import FitConfig, LoraConfig, SampleConfig
from jaxloop.lm import family, programs, sharding
from jaxloop.lm.encoder.config import EncoderConfig
from jaxloop.lm.family import FitTask, GenerateOptions, TrainOptions
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.target import Target, complete, target_of
from jaxloop.lm.training import autotune
from jaxloop.lm.training import fit as fitting
from jaxloop.lm.training.step import train_steps

LORA = LoraConfig(rank=4, alpha=4.0)
FIT = FitConfig(lora=LORA, batch_size=2, max_length=32, length_buckets=1, dtype="bfloat16")
TRAIN = TrainOptions(steps_per_call=2)
CONFIG = ModelConfig(
    "llama",
    vocab_size=512,
    d_model=128,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=64,
    d_ff=256,
    max_seq_len=128,
)
ENCODER = EncoderConfig(
    ModelConfig(
        "bert",
        vocab_size=256,
        d_model=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        d_ff=128,
        max_seq_len=64,
        norm="layer",
        positions="learned",
        gated=False,
        activation="gelu",
        norm_first=False,
        final_norm=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
    ),
    token_types=2,
)
WRITE = SampleConfig(max_new_tokens=24, slots=16, texts_per_call=32, chains_per_call=2)
GENERATE = GenerateOptions(lora=LORA, dtype="bfloat16", window=8)
TARGETS = {"cuda": complete("gpu"), "tpu": complete("tpu")}


@pytest.fixture(scope="module")
def model():
    tokenizer = bpe.train(["The quick brown fox jumps over the lazy dog."], 264)
    config = ModelConfig(
        "llama",
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=16,
        d_ff=64,
        max_seq_len=64,
    )
    return Model(config, init(jax.random.key(0), config, jnp.bfloat16), tokenizer)


def made(platform: str) -> list[programs.Program]:
    common = dict(dtype="bfloat16", target=TARGETS[platform])
    return [
        programs.training(CONFIG, FIT, 2, 32, options=TRAIN, **common),
        programs.loss(CONFIG, FIT, 32, rows=4, **common),
        programs.prefill(CONFIG, WRITE, 16, options=GENERATE, **common),
        programs.decoding(CONFIG, WRITE, 16, options=GENERATE, **common),
        programs.beams(CONFIG, WRITE, 16, options=GENERATE, rows=2, dtype="bfloat16"),
        programs.encoding(ENCODER, 32, rows=4, target=TARGETS[platform]),
    ]


@pytest.mark.parametrize("platform", list(TARGETS))
def test_every_program_is_lowered_for_hardware_that_is_absent(platform):
    """For a GPU with cuDNN's attention in training, loss and prefill; for a TPU without. Nothing is
    compiled.
    """
    attention = {}
    with absent.as_card(cards.CARDS["h100"] if platform == "cuda" else None):
        for program in made(platform):
            text = program.lower((platform,)).as_text()
            assert "stablehlo.dot_general" in text
            attention[program.name] = len(re.findall("cudnn", text)) > 0
    assert (
        attention
        == {
            name: platform == "cuda" and name in ("training", "loss", "prefill")
            for name in attention
        }
        and len(attention) == 6
    )


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_training_program_is_the_one_that_a_fit_runs(model, devices, monkeypatch):
    """So what was compiled to see its size is found in the cache of compiled programs."""
    where = jax.devices()[:devices]
    model = sharding.replicate(model, where)
    ran = []
    real = fitting.run_steps

    def seen(*args, **kwargs):
        ran.append(train_steps.lower(*args, **kwargs).as_text())
        return real(*args, **kwargs)

    monkeypatch.setattr(fitting, "run_steps", seen)
    fit, options = FIT.replace(steps=2), dataclasses.replace(TRAIN, chains_per_program=2)
    family.fit(
        model,
        [FitTask(jax.random.key(i), ["a dog"] * 4, [""] * 4) for i in range(2 * devices)],
        fit,
        options,
    )
    time = 16
    found = programs.training_of(model, fit, options, 2, time)
    assert train_steps.lower(*found.args, **found.kwargs).as_text() in ran
    given = programs.training(
        model.config,
        fit,
        2,
        time,
        dtype="bfloat16",
        target=target_of(model.config, model.params),
        options=options,
        devices=where,
    )
    assert train_steps.lower(*given.args, **given.kwargs).as_text() in ran


def test_a_base_that_is_cut_is_smaller_on_every_device(model):
    """Four devices: the program of a fit, and those of the rest, with a quarter of the large
    weights each.
    """
    four = jax.devices()[:4]
    config = ModelConfig(
        "llama",
        vocab_size=512,
        d_model=128,
        num_layers=1,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        d_ff=256,
        max_seq_len=64,
    )
    common, write = (
        dict(dtype="float32", target=Target("cpu")),
        (config, WRITE, 16),
    )
    fit, generate = FIT.replace(dtype="float32"), dataclasses.replace(GENERATE, dtype="float32")
    training = functools.partial(programs.training, options=TRAIN)
    prefill = functools.partial(programs.prefill, options=generate)
    decoding = functools.partial(programs.decoding, options=generate)
    for make, args in ((training, (config, fit, 1, 16)), (prefill, write)):
        whole, cut = (
            make(*args, devices=devices, shard_base=len(devices) > 1, **common).lower().compile()
            for devices in (four[:1], four)
        )
        # A quarter and what is not cut: norms, and adapters where the compiler leaves them whole.
        assert (
            cut.memory_analysis().argument_size_in_bytes
            < 0.5 * whole.memory_analysis().argument_size_in_bytes
        )
    for make, args in ((programs.loss, (config, fit, 16)), (decoding, write)):
        assert (
            "sdy.sharding" in make(*args, devices=four, shard_base=True, **common).lower().as_text()
        )
    there = sharding.shard(model, four)
    found = programs.training_of(there, FIT, TRAIN, 1, 16)
    given = programs.training(
        model.config,
        FIT,
        1,
        16,
        dtype="bfloat16",
        target=Target("cpu"),
        options=TRAIN,
        devices=four,
        shard_base=True,
    )
    assert found.lower().as_text() == given.lower().as_text()


def test_as_many_chains_as_the_compiler_says_fit(model, monkeypatch, tmp_path):
    """With a limit of memory that is made up: the largest number that fits, and a fit of that many
    chains needs no more.
    """
    known = functools.cache(functools.partial(autotune.program_bytes, model, FIT, TRAIN, 16))
    monkeypatch.setattr(autotune, "program_bytes", lambda *args: known(args[-1]))
    bytes_of = {c: autotune.program_bytes(model, FIT, TRAIN, 16, c) for c in (1, 2, 4, 8)}
    assert sorted(bytes_of.values()) == list(bytes_of.values())
    for room, best in (
        (bytes_of[8], 8),
        (bytes_of[8] - 1, 4),
        (bytes_of[2], 2),
        (bytes_of[1], 1),
        (bytes_of[1] - 1, 1),
    ):
        assert autotune.fitting(model, FIT, TRAIN, 16, 8, room)[0] == best
    assert (
        autotune.fitting(model, FIT, TRAIN, 16, 6, bytes_of[8])[0] == 6
    )  # no more than there are chains
    assert autotune.fitting(model, FIT, TRAIN, 16, 8, 1 << 40) == (
        8,
        0,
    )  # fits by far: nothing is compiled
    monkeypatch.setattr(autotune, "platform_of", lambda params: "gpu")
    monkeypatch.setattr(autotune, "room", lambda model: bytes_of[4])
    monkeypatch.setattr(autotune, "cache_folder", lambda: tmp_path)
    assert (
        autotune.choose(model, FIT, TRAIN, 16, 10, 8) == 4
        and (tmp_path / "micro_batch.json").exists()
    )
    monkeypatch.setattr(autotune, "fitting", None)  # the second time it is read
    assert autotune.choose(model, FIT, TRAIN, 16, 10, 8) == 4
    other = "float32" if model.params["embed"].dtype == "bfloat16" else "bfloat16"
    wider = model._replace(params=jax.tree.map(lambda w: w.astype(other), model.params))
    monkeypatch.setattr(autotune, "fitting", lambda *args: (2, 0))  # another base is another entry
    assert autotune.choose(wider, FIT, TRAIN, 16, 10, 8) == 2


def test_room_is_what_other_arrays_leave(model):
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(model.params))
    whole = autotune.USABLE_SHARE * sharding.device_bytes(jax.devices()[0])
    assert held > 0 and autotune.room(sharding.replicate(model, jax.devices()[:1])) == int(
        whole
    )  # a CPU does not say what is in use


@pytest.mark.parametrize(
    "each, most, room, best",
    [
        (10, 64, 5, 0),
        (10, 64, 105, 8),
        (10, 8, 1000, 8),
        (10, 1, 1000, 1),
        (10, 6, 70, 6),
        (10, 64, 15, 1),
    ],
)
def test_the_largest_number_is_found_with_few_programs(each, most, room, best):
    asked = []

    def memory(chains):
        asked.append(chains)
        return each * chains

    assert (
        autotune.largest(memory, room, most)[0] == best
        and len(asked) <= 3
        and len(set(asked)) == len(asked)
    )


def test_a_program_that_needs_more_than_its_neighbours_promise_is_halved():
    assert autotune.largest({1: 10, 2: 20, 16: 400, 8: 150}.__getitem__, 165, 64)[0] == 8
    assert autotune.largest({1: 10, 2: 20, 4: 50}.__getitem__, 45, 64) == (
        2,
        {1: 10, 2: 20, 4: 50},
    )
