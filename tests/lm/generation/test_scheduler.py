"""Texts of many chains: neighbours, programs beside each other, engines, prompts."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxloop.config import SampleConfig
from jaxloop.lm.family import (
    GenerateTask,
)
from tests.lm.tiny import GENERATE, PROMPTS, SAMPLE, generate


def test_a_chain_writes_the_same_alone_and_among_others(tiny_model, fitted):
    tasks = [
        GenerateTask(jax.random.key(50 + i), r.weights, PROMPTS[: 6 + 9 * i], np.arange(6 + 9 * i))
        for i, r in enumerate(fitted)
    ]
    together = generate(tiny_model, tasks, SAMPLE)
    for task, result in zip(tasks, together):
        assert len(result.texts) == len(task.prompts) == len(result.tokens)
        assert generate(tiny_model, [task], SAMPLE)[0].texts == result.texts
    assert len(set(together[2].texts)) > 12


def test_programs_beside_each_other_write_what_one_does(tiny_model, fitted):
    tasks = [
        GenerateTask(jax.random.key(70 + i), r.weights, ["Write."] * 40, np.arange(40))
        for i, r in enumerate(fitted)
    ]
    tasks.append(GenerateTask(jax.random.key(7), None, ["Write.", "Read."] * 9, np.arange(18)))
    one, three = (
        generate(
            tiny_model, tasks, SAMPLE, dataclasses.replace(GENERATE, concurrent_programs=count)
        )
        for count in (1, 3)
    )
    assert [r.texts for r in one] == [r.texts for r in three] and len(
        {t for r in one for t in r.texts}
    ) > 40


@pytest.mark.parametrize("adapted", [True, False])
def test_cache_rows_write_what_blocks_do_alone_and_among_others(tiny_model, fitted, adapted):
    """The engine of GPUs, here computed by jax.numpy; slots, groups and calls are planned from the
    work, alone and together.
    """
    tasks = [
        GenerateTask(
            jax.random.key(70 + i),
            r.weights if adapted else None,
            ["Write.", "Read."] * 30,
            np.arange(60),
        )
        for i, r in enumerate(fitted)
    ]
    planned = SampleConfig(max_new_tokens=24, engine="rows")
    blocks, rows = (generate(tiny_model, tasks, settings) for settings in (SAMPLE, planned))
    assert [r.texts for r in rows] == [r.texts for r in blocks] and len(
        {t for r in rows for t in r.texts}
    ) > 40
    for task, result in zip(tasks, rows, strict=True):
        assert generate(tiny_model, [task], planned)[0].texts == result.texts


def test_greedy_samples_equal_greedy_with_per_row_prompts(tiny_model, fitted):
    """Shared prompts and per-row prompts give the same greedy text for the same prompt."""
    settings = SAMPLE.replace(decoder="greedy")
    prompts = [f"The {a} {b}" for a in ("cat", "dog", "bird") for b in ("sat", "ran", "slept")]
    many = generate(
        tiny_model,
        [GenerateTask(jax.random.key(0), fitted[0].weights, prompts, np.arange(9))],
        settings,
    )[0]
    for i in (0, 4, 8):
        few = generate(
            tiny_model,
            [GenerateTask(jax.random.key(0), fitted[0].weights, [prompts[i]], np.arange(1))],
            settings,
        )[0]
        assert few.texts[0] == many.texts[i]
