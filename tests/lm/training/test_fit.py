"""Fitting many chains: neighbours, failures, modes, weights."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxloop.lm import family, sharding
from jaxloop.lm.family import (
    FitTask,
    GenerateTask,
    LossTask,
)
from jaxloop.lm.model import lora
from jaxloop.lm.training import fit as fitting
from tests.lm.tiny import FIT, PROMPTS, SAMPLE, TEXTS, TRAIN, fit, generate, same

FEW = FIT.lora.replace(targets=("q_proj", "v_proj"))


def test_training_lowers_the_loss_and_counts(tiny_model, fitted):
    assert [r.steps for r in fitted] == [12] * 3 and all(r.finite for r in fitted)
    lengths = [len(i) for i in tiny_model.tokenizer.encode([p + t for p, t in zip(PROMPTS, TEXTS)])]
    assert abs(fitted[0].tokens - 2 * (sum(lengths) + len(lengths))) <= 0.02 * fitted[0].tokens
    before, after = (
        family.loss(tiny_model, [LossTask(w, TEXTS, PROMPTS)], FIT)[0]
        for w in (None, fitted[0].weights)
    )
    assert after.nll.sum() < 0.8 * before.nll.sum() and (after.tokens == before.tokens).all()
    assert not same(fitted[0].weights, fitted[1].weights)


def test_a_chain_trains_the_same_alone_and_among_others(tiny_model, fitted):
    alone = fit(tiny_model, [FitTask(jax.random.key(1), TEXTS, PROMPTS)], FIT)[0]
    assert same(alone.weights, fitted[1].weights)
    four = dataclasses.replace(TRAIN, chains_per_program=4)
    tasks = [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in (1, 2, 0)]
    wide = fit(tiny_model, tasks, FIT, four)[0]
    narrow = fit(tiny_model, tasks[:1], FIT, four)[0]
    assert same(wide.weights, narrow.weights)
    # Another compiled shape rounds differently: same to tolerance only.
    for a, b in zip(jax.tree.leaves(wide.weights), jax.tree.leaves(alone.weights)):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_programs_beside_each_other_train_what_one_after_another_do(tiny_model, monkeypatch):
    """Chains of two signatures: five programs, one at a time and three at a time."""
    tasks = [
        FitTask(jax.random.key(i), TEXTS[: len(TEXTS) - i % 2], PROMPTS[: len(TEXTS) - i % 2])
        for i in range(5)
    ]
    made, used, real = [], [], fitting.run_concurrently
    monkeypatch.setattr(
        fitting,
        "run_concurrently",
        lambda start, take, lots, programs: (
            used.append((len(lots), programs)),
            real(start, take, lots, programs),
        ),
    )
    for programs in (1, 3):
        monkeypatch.setattr(sharding, "programs_at_once", lambda platform, count=programs: count)
        made.append(fit(tiny_model, tasks, FIT))
    assert used == [(5, 1), (5, 3)]
    assert all(
        same(a.weights, b.weights) and same(a.loss, b.loss) and a.tokens == b.tokens
        for a, b in zip(*made, strict=True)
    )


def test_nan_in_one_chain_does_not_touch_the_others(tiny_model, fitted):
    poisoned = jax.tree.map(np.copy, fitted[0].weights)
    poisoned["q"]["b"][:] = np.nan
    four = dataclasses.replace(TRAIN, chains_per_program=4)
    tasks = [
        FitTask(jax.random.key(1), TEXTS, PROMPTS),
        FitTask(jax.random.key(0), TEXTS, PROMPTS, start=poisoned),
    ]
    good, bad = fit(tiny_model, tasks, FIT, four)
    assert not bad.finite and good.finite
    assert same(good.weights, fit(tiny_model, tasks[:1], FIT, four)[0].weights)


def test_zero_weight_samples_have_no_influence(tiny_model):
    """Weights 0 on the second half equal training where those texts are others; weights 2
    everywhere change nothing.
    """
    half = len(TEXTS) // 2
    weights = np.repeat([1.0, 0.0], half)
    # Birds and fish change places: other texts of the same lengths, so batches are the same.
    other = TEXTS[:half] + TEXTS[half + half // 2 :] + TEXTS[half : half + half // 2]
    lengths = [[len(i) for i in tiny_model.tokenizer.encode(t)] for t in (TEXTS, other)]
    assert lengths[0] == lengths[1] and not any(map(str.__eq__, TEXTS[half:], other[half:]))
    two = FIT.replace(length_buckets=2)  # and a program for each of two lengths
    a, b, plain, doubled = (
        fit(tiny_model, [FitTask(jax.random.key(0), texts, PROMPTS, w)], two)[0].weights
        for texts, w in (
            (TEXTS, weights),
            (other, weights),
            (TEXTS, None),
            (TEXTS, np.full(len(TEXTS), 2.0)),
        )
    )
    for pair in ((a, b), (plain, doubled)):
        for x, y in zip(*map(jax.tree.leaves, pair), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_single_update_that_is_all_warm_up_is_said_to_learn_nothing(tiny_model, caplog):
    """As in transformers, the first rate of a warm-up is 0."""
    task, once = FitTask(jax.random.key(0), TEXTS, PROMPTS), FIT.replace(epochs=None, steps=1)
    for warmup, learned in ((1, False), (0, True)):
        caplog.clear()
        (result,) = fit(tiny_model, [task], once.replace(warmup_steps=warmup))
        assert bool(np.any(result.weights["q"]["b"])) is learned
        assert ("nothing is learned" in caplog.text) is not learned


def test_what_cannot_be_trained_is_refused_before_anything_compiles(tiny_model):
    """Adapters wider than the base, other projections than those of the adapter to go on from,
    prompts that leave no token of any text.
    """
    half = tiny_model._replace(
        params=jax.tree.map(lambda w: w.astype("bfloat16"), tiny_model.params)
    )
    few = lora.init(jax.random.split(jax.random.key(0), 1), tiny_model.config, FEW)
    task = FitTask(jax.random.key(0), TEXTS, PROMPTS)
    prompt = len(tiny_model.tokenizer.encode(PROMPTS[:1])[0])
    for model, tried, settings, said in (
        (half, task, FIT, "fit.dtype: float32 is not allowed for adapters of a base in bfloat16"),
        (
            tiny_model,
            task._replace(start=lora.split(few, 0)),
            FIT,
            "fit.lora.targets: q, k, v, o, gate, up, down are not allowed for a chain that goes on "
            "from an adapter of q, v",
        ),
        (
            tiny_model,
            task,
            FIT.replace(max_length=prompt),
            f"fit.max_length: {prompt} tokens leave none of a text to learn after its prompt, in "
            "all 48 texts",
        ),
        (
            tiny_model,
            task,
            FIT.replace(max_length=1, completion_only=False),
            "fit.max_length: 1 tokens leave none of a text",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            fit(model, [tried], settings)
    again = fit(tiny_model, [task._replace(start=lora.split(few, 0))], FIT.replace(lora=FEW))
    assert set(again[0].weights) == {"q", "v"}


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_full_and_scratch_train_all_weights_and_write(tiny_model, mode):
    settings = FIT.replace(mode=mode, epochs=1)
    first = fit(
        tiny_model, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(2)], settings
    )
    assert set(first[0].weights) == set(tiny_model.params) and first[0].finite
    again = fit(
        tiny_model, [FitTask(jax.random.key(9), TEXTS, PROMPTS, start=first[0].weights)], settings
    )[0]
    losses = [
        family.loss(tiny_model, [LossTask(w, TEXTS, PROMPTS)], settings)[0].nll.sum()
        for w in (first[0].weights, again.weights)
    ]
    assert losses[1] < losses[0]
    out = generate(
        tiny_model,
        [GenerateTask(jax.random.key(3), again.weights, PROMPTS[:5], np.arange(5))],
        SAMPLE,
    )[0]
    assert len(out.texts) == 5
