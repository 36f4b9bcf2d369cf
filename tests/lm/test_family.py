"""The family as the generation loop calls it: its protocol, refusals, several devices."""

import jax
import numpy as np
import pytest

from jaxloop.config import FitConfig, SampleConfig
from jaxloop.lm import sharding
from jaxloop.lm.family import (
    FitTask,
    GenerateOptions,
    GenerateTask,
    LanguageModelFamily,
    TrainOptions,
)
from jaxloop.lm.io.huggingface import Model
from jaxloop.recursion.family import Family
from tests.lm.tiny import FIT, GENERATE, PROMPTS, SAMPLE, TEXTS, TRAIN, fit, generate, same


def test_the_family_is_what_the_generation_loop_asks_for(tiny_model, fitted):
    """Its fits and texts are those of the functions with its options."""
    base: Family[Model, FitConfig, SampleConfig] = LanguageModelFamily(
        load=lambda name: tiny_model, train_options=TRAIN, generate_options=GENERATE
    )
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    (result,) = base.fit(base.load("tiny"), [task], FIT)
    assert same(result.weights, fitted[0].weights)
    asked = [GenerateTask(jax.random.key(1), result.weights, PROMPTS[:4], np.arange(4))]
    assert base.generate(tiny_model, asked, SAMPLE)[0].texts == generate(tiny_model, asked)[0].texts


def test_refusals(tiny_model):
    with pytest.raises(ValueError, match="no texts"):
        fit(tiny_model, [FitTask(jax.random.key(0), [], [])], FIT)
    with pytest.raises(ValueError, match="one prompt per text"):
        fit(tiny_model, [FitTask(jax.random.key(0), TEXTS, PROMPTS[:2])], FIT)
    with pytest.raises(ValueError, match="weight"):
        fit(
            tiny_model,
            [FitTask(jax.random.key(0), TEXTS, PROMPTS, np.full(len(TEXTS), np.nan))],
            FIT,
        )
    with pytest.raises(ValueError, match="max_new_tokens.*context"):
        generate(
            tiny_model,
            [GenerateTask(jax.random.key(0), None, PROMPTS[:1], np.arange(1))],
            SAMPLE.replace(max_new_tokens=95),
        )
    with pytest.raises(ValueError, match="mode"):
        FIT.replace(mode="qlora")
    with pytest.raises(ValueError, match="temperature"):
        SAMPLE.replace(temperature=0.0)
    with pytest.raises(ValueError, match="steps_per_call: 0 is not allowed; at least 1"):
        TrainOptions(steps_per_call=0)
    with pytest.raises(ValueError, match="optimizer: 'sgd' is not allowed; 'adamw' or 'muon'"):
        TrainOptions(optimizer="sgd")
    with pytest.raises(ValueError, match="optimizer: 'muon' is not allowed in mode 'lora'"):
        task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
        fit(tiny_model, [task], FIT, TrainOptions(optimizer="muon"))
    with pytest.raises(ValueError, match="dtype: 'float16' is not allowed"):
        GenerateOptions(dtype="float16")
    with pytest.raises(ValueError, match="prompt_len: 0 is not allowed; at least 1"):
        GenerateOptions(prompt_len=0)


def test_four_devices_train_what_one_does(tiny_model, fitted):
    """To rounding: XLA compiles the program for several devices separately and fuses it
    differently.
    """
    four = sharding.replicate(tiny_model, jax.devices()[:4])
    tasks = [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(3)]
    for ours, theirs in zip(fitted, fit(four, tasks, FIT)):
        for a, b in zip(jax.tree.leaves(ours.weights), jax.tree.leaves(theirs.weights)):
            np.testing.assert_allclose(a, b, atol=2e-5)


RAGGED = [f"The {w}" + " cat" * (i % 3) for i, w in enumerate("abcdefghijkl")]


@pytest.mark.parametrize(
    "prompts",
    [PROMPTS[:10], pytest.param(RAGGED, marks=pytest.mark.slow)],
    ids=["shared", "of each row's own"],
)
def test_four_devices_write_what_one_does(tiny_model, fitted, prompts):
    """Same shapes per device: equal texts."""
    four = sharding.replicate(tiny_model, jax.devices()[:4])
    writes = [
        GenerateTask(jax.random.key(50 + i), r.weights, prompts, np.arange(len(prompts)))
        for i, r in enumerate(fitted)
    ]
    one, many = generate(tiny_model, writes, SAMPLE), generate(four, writes, SAMPLE)
    assert [r.texts for r in one] == [r.texts for r in many]
