"""fit / sample / loss as the driver calls them: neighbours, failures, modes, weights, and torch as
the referee of a training run.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.lm import family, sharding
from jaxloop.lm.family import FitSettings, FitTask, LossTask, SampleSettings, SampleTask
from jaxloop.lm.generation import slot_plan
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import Spec, init
from jaxloop.lm.model.lora import Lora
from jaxloop.lm.target import Target
from jaxloop.lm.training import batching
from jaxloop.lm.training import step as train_step
from tests.peers import require

WORDS = [
    (a, b, c)
    for a in ("cat", "dog", "bird", "fish")
    for b in ("sat", "ran", "slept")
    for c in ("down", "away", "well", "late")
]
ENDS = (" and then went home again without a word.", ".", ".")
TEXTS = [f"The {a} {b} {c} near the old house{ENDS[i % 3]}" for i, (a, b, c) in enumerate(WORDS)]
PROMPTS = ["### User:\nWrite.\n### Assistant:\n"] * len(TEXTS)
FIT = FitSettings(
    lora=Lora(rank=4, alpha=8.0),
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    steps_per_dispatch=4,
    length_classes=2,
)
SAMPLE = SampleSettings(
    lora=FIT.lora,
    max_new_tokens=24,
    slots=8,
    lane_slots=4,
    window=4,
    texts_per_call=32,
    chains_per_call=4,
    texts_per_job=8,
)


@pytest.fixture(scope="module")
def model():
    tokenizer = bpe.train(TEXTS + PROMPTS, 320)
    spec = Spec(
        "llama",
        vocab=tokenizer.vocab_size,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_size=8,
        mlp=48,
        context=96,
        init_scale=0.3,
    )
    return Model(spec, init(jax.random.key(0), spec), tokenizer, "tiny")


@pytest.fixture(scope="module")
def fitted(model):
    return family.fit(model, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(3)], FIT)


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_training_lowers_the_loss_and_counts(model, fitted):
    assert [r.steps for r in fitted] == [12] * 3 and all(r.finite for r in fitted)
    lengths = [len(i) for i in model.tokenizer.encode([p + t for p, t in zip(PROMPTS, TEXTS)])]
    assert abs(fitted[0].tokens - 2 * (sum(lengths) + len(lengths))) <= 0.02 * fitted[0].tokens
    before, after = (
        family.loss(model, [LossTask(w, TEXTS, PROMPTS)], FIT)[0] for w in (None, fitted[0].weights)
    )
    assert after.nats.sum() < 0.8 * before.nats.sum() and (after.tokens == before.tokens).all()
    assert not same(fitted[0].weights, fitted[1].weights)


def test_a_chain_trains_the_same_alone_and_among_others(model, fitted):
    alone = family.fit(model, [FitTask(jax.random.key(1), TEXTS, PROMPTS)], FIT)[0]
    assert same(alone.weights, fitted[1].weights)
    four = dataclasses.replace(FIT, chains_at_once=4)
    wide = family.fit(model, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in (1, 2, 0)], four)[
        0
    ]
    narrow = family.fit(model, [FitTask(jax.random.key(1), TEXTS, PROMPTS)], four)[0]
    assert same(wide.weights, narrow.weights)
    # Another compiled shape rounds differently: same to tolerance only.
    for a, b in zip(jax.tree.leaves(wide.weights), jax.tree.leaves(alone.weights)):
        np.testing.assert_allclose(a, b, atol=2e-3)


def test_programs_beside_each_other_train_what_one_after_another_do(model, monkeypatch):
    """Chains of two signatures: five programs, one at a time and three at a time."""
    tasks = [
        FitTask(jax.random.key(i), TEXTS[: len(TEXTS) - i % 2], PROMPTS[: len(TEXTS) - i % 2])
        for i in range(5)
    ]
    made, used, real = [], [], family.side_by_side
    monkeypatch.setattr(
        family,
        "side_by_side",
        lambda start, take, lots, programs: (
            used.append((len(lots), programs)),
            real(start, take, lots, programs),
        ),
    )
    for programs in (1, 3):
        monkeypatch.setattr(sharding, "programs_at_once", lambda platform, count=programs: count)
        made.append(family.fit(model, tasks, FIT))
    assert used == [(5, 1), (5, 3)]
    assert all(
        same(a.weights, b.weights) and same(a.loss, b.loss) and a.tokens == b.tokens
        for a, b in zip(*made, strict=True)
    )


def test_a_chain_writes_the_same_alone_and_among_others(model, fitted):
    tasks = [
        SampleTask(jax.random.key(50 + i), r.weights, PROMPTS[: 6 + 9 * i], np.arange(6 + 9 * i))
        for i, r in enumerate(fitted)
    ]
    together = family.sample(model, tasks, SAMPLE)
    for task, result in zip(tasks, together):
        assert len(result.texts) == len(task.prompts) == len(result.tokens)
        assert family.sample(model, [task], SAMPLE)[0].texts == result.texts
    assert len(set(together[2].texts)) > 12


def test_programs_beside_each_other_write_what_one_does(model, fitted):
    tasks = [
        SampleTask(jax.random.key(70 + i), r.weights, ["Write."] * 40, np.arange(40))
        for i, r in enumerate(fitted)
    ]
    tasks.append(SampleTask(jax.random.key(7), None, ["Write.", "Read."] * 9, np.arange(18)))
    one, three = (
        family.sample(model, tasks, dataclasses.replace(SAMPLE, programs=count)) for count in (1, 3)
    )
    assert [r.texts for r in one] == [r.texts for r in three] and len(
        {t for r in one for t in r.texts}
    ) > 40


@pytest.mark.parametrize(
    "limit, lanes, together, calls",
    [(64, 2, 1, 3), (64, 2, 2, 4), (400, 2, 3, 3), (400, 8, 3, 2), (400, 12, 3, 1)],
)
def test_jobs_are_dealt_to_calls_that_are_even_and_small_enough(limit, lanes, together, calls):
    jobs = [slot_plan.Job(0, np.arange(n)) for n in (16,) * 9 + (8, 8, 8)]
    made = slot_plan.calls([slot_plan.Device([0], jobs)], limit, lanes, together)
    sizes = [sum(len(job.rows) for job in device.jobs) for (device,) in made]
    assert (
        len(made) == calls
        and sum(sizes) == 168
        and max(sizes) <= limit
        and max(sizes) - min(sizes) <= 16
    )


@pytest.mark.parametrize(
    "texts, sizes", [(7, {7}), (8, {8}), (20, {8, 4}), (63, {28, 7}), (400, {32, 16})]
)
def test_a_chain_that_writes_more_than_there_are_slots_is_cut_into_jobs(model, texts, sizes):
    plan = slot_plan.plan(
        dataclasses.replace(SAMPLE, texts_per_job=0), model.spec, Target(), [texts]
    )
    assert {len(job.rows) for job in slot_plan.jobs_of([[(1,)] * texts], 0, True, plan)} == sizes


@pytest.mark.parametrize("adapted", [True, False])
def test_cache_rows_write_what_blocks_do_alone_and_among_others(model, fitted, adapted):
    """The engine of GPUs, here computed by jax.numpy; slots, lanes and calls are planned from the
    work, alone and together.
    """
    tasks = [
        SampleTask(
            jax.random.key(70 + i),
            r.weights if adapted else None,
            ["Write.", "Read."] * 30,
            np.arange(60),
        )
        for i, r in enumerate(fitted)
    ]
    planned = SampleSettings(lora=FIT.lora, max_new_tokens=24, window=4, engine="rows")
    blocks, rows = (family.sample(model, tasks, settings) for settings in (SAMPLE, planned))
    assert [r.texts for r in rows] == [r.texts for r in blocks] and len(
        {t for r in rows for t in r.texts}
    ) > 40
    for task, result in zip(tasks, rows, strict=True):
        assert family.sample(model, [task], planned)[0].texts == result.texts


def test_greedy_samples_equal_greedy_with_per_row_prompts(model, fitted):
    """The shared-prompt path and the per-row path write the same greedy text for the same prompt."""
    settings = dataclasses.replace(SAMPLE, decoder="greedy")
    prompts = [f"The {a} {b}" for a in ("cat", "dog", "bird") for b in ("sat", "ran", "slept")]
    many = family.sample(
        model, [SampleTask(jax.random.key(0), fitted[0].weights, prompts, np.arange(9))], settings
    )[0]
    for i in (0, 4, 8):
        few = family.sample(
            model,
            [SampleTask(jax.random.key(0), fitted[0].weights, [prompts[i]], np.arange(1))],
            settings,
        )[0]
        assert few.texts[0] == many.texts[i]


def test_nan_in_one_chain_does_not_touch_the_others(model, fitted):
    poisoned = jax.tree.map(np.copy, fitted[0].weights)
    poisoned["q"]["b"][:] = np.nan
    four = dataclasses.replace(FIT, chains_at_once=4)
    tasks = [
        FitTask(jax.random.key(1), TEXTS, PROMPTS),
        FitTask(jax.random.key(0), TEXTS, PROMPTS, start=poisoned),
    ]
    good, bad = family.fit(model, tasks, four)
    assert not bad.finite and good.finite
    assert same(good.weights, family.fit(model, tasks[:1], four)[0].weights)


def test_zero_weight_samples_have_no_influence(model):
    """Weights 0 on the second half equal training where those texts are others; weights 2
    everywhere change nothing.
    """
    weights = np.repeat([1.0, 0.0], len(TEXTS) // 2)
    other = TEXTS[: len(TEXTS) // 2] + [
        t.replace("house", "horse") for t in TEXTS[len(TEXTS) // 2 :]
    ]
    a, b = (
        family.fit(model, [FitTask(jax.random.key(0), texts, PROMPTS, weights)], FIT)[0]
        for texts in (TEXTS, other)
    )
    lengths = [[len(i) for i in model.tokenizer.encode(t)] for t in (TEXTS, other)]
    if lengths[0] == lengths[1]:
        for x, y in zip(jax.tree.leaves(a.weights), jax.tree.leaves(b.weights)):
            np.testing.assert_allclose(x, y, atol=1e-6)
    plain, doubled = (
        family.fit(model, [FitTask(jax.random.key(0), TEXTS, PROMPTS, w)], FIT)[0]
        for w in (None, np.full(len(TEXTS), 2.0))
    )
    for x, y in zip(jax.tree.leaves(plain.weights), jax.tree.leaves(doubled.weights)):
        np.testing.assert_allclose(x, y, atol=1e-6)


@pytest.mark.parametrize("mode", ["full", "scratch"])
def test_full_and_scratch_train_all_weights_and_write(model, mode):
    settings = dataclasses.replace(FIT, mode=mode, epochs=1)
    first = family.fit(
        model, [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(2)], settings
    )
    assert set(first[0].weights) == set(model.params) and first[0].finite
    again = family.fit(
        model, [FitTask(jax.random.key(9), TEXTS, PROMPTS, start=first[0].weights)], settings
    )[0]
    losses = [
        family.loss(model, [LossTask(w, TEXTS, PROMPTS)], settings)[0].nats.sum()
        for w in (first[0].weights, again.weights)
    ]
    assert losses[1] < losses[0]
    out = family.sample(
        model, [SampleTask(jax.random.key(3), again.weights, PROMPTS[:5], np.arange(5))], SAMPLE
    )[0]
    assert len(out.texts) == 5


def test_loss_equals_torch(model, fitted, tmp_path):
    torch, transformers, peft = require("torch", "transformers", "peft")
    from jaxloop import lm

    lm.save(model, tmp_path / "base")
    lm.save_peft(tmp_path / "adapter", model.spec, fitted[0].weights, FIT.lora)
    reference = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    ours = family.loss(model, [LossTask(fitted[0].weights, TEXTS[:7], PROMPTS[:7])], FIT)[0]
    for i in range(7):
        prompt, text = (
            model.tokenizer.encode([PROMPTS[i]])[0],
            model.tokenizer.encode([TEXTS[i]], special=False)[0],
        )
        ids = torch.tensor([prompt + text + [model.tokenizer.eos]])
        with torch.no_grad():
            logp = torch.log_softmax(reference(ids).logits[0, :-1], -1)
        nats = -logp[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(prompt) - 1 :]
        assert ours.tokens[i] == len(nats) and abs(ours.nats[i] - float(nats.sum())) < 2e-3
        np.testing.assert_allclose(ours.token_nats[i], nats.numpy(), atol=1e-3)


def test_chains_that_take_turns_in_a_program_train_as_all_at_once(model):
    """Four chains with batches, masks and weights of their own; one, two and all four of them
    vmapped.
    """
    keys, rng = jax.random.split(jax.random.key(5), 4), np.random.default_rng(1)
    start = lora.init(keys, model.spec, FIT.lora)
    tokens = rng.integers(2, model.spec.vocab, (4, 4, 4, 12)).astype(np.int32)
    mask, weights = rng.random(tokens.shape) < 0.8, rng.random((4, 4, 4)).astype(np.float32)

    def trained(together):
        state = train_step.init_state(FIT, jax.tree.map(jnp.copy, start), jnp.copy(keys))
        return train_step.train_steps(
            model.spec,
            FIT,
            model.params,
            state,
            tokens,
            mask,
            weights,
            jnp.int32(3),
            jnp.int32(9),
            together=together,
        )

    state, log = trained(None)
    assert np.isnan(log[3]).all() and len({float(x) for x in log[2]}) == 4
    for together in (1, 2):
        other, losses = trained(together)
        np.testing.assert_allclose(losses, log, atol=1e-5)
        for a, b in zip(
            jax.tree.leaves((state.weights, state.step)),
            jax.tree.leaves((other.weights, other.step)),
            strict=True,
        ):
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=1e-3)


def test_training_equals_torch_adamw(model):
    """Ten LoRA steps with clipping, warm-up, decay and weight decay end at the loss and weights of
    torch + peft on the same batches.
    """
    torch, transformers, peft = require("torch", "transformers", "peft")
    import tempfile

    from jaxloop import lm

    settings = dataclasses.replace(
        FIT, steps=10, warmup_steps=3, clip=0.05, weight_decay=0.1, steps_per_dispatch=10
    )
    start = lora.init(jax.random.split(jax.random.key(4), 1), model.spec, settings.lora)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, model.spec.vocab, (10, 1, 4, 12)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[:, :, :2, 9:] = False
    mask[..., :3] = False
    state = train_step.init_state(
        settings, jax.tree.map(jnp.copy, start), jax.random.split(jax.random.key(0), 1)
    )
    state, log = train_step.train_steps(
        model.spec,
        settings,
        model.params,
        state,
        tokens,
        mask,
        np.ones((10, 1, 4), np.float32),
        jnp.int32(10),
        jnp.int32(10),
    )
    with tempfile.TemporaryDirectory() as folder:
        lm.save(model, f"{folder}/base")
        lm.save_peft(f"{folder}/adapter", model.spec, lora.split(start, 0), settings.lora)
        net = peft.PeftModel.from_pretrained(
            transformers.AutoModelForCausalLM.from_pretrained(f"{folder}/base"),
            f"{folder}/adapter",
            is_trainable=True,
        )
    ours = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        ours, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, 3, 10)
    for step in range(10):
        ids, keep = torch.tensor(tokens[step, 0]).long(), torch.tensor(mask[step, 0])
        logp = torch.log_softmax(net(ids).logits[:, :-1], -1)
        loss = -logp.gather(-1, ids[:, 1:, None])[..., 0][keep[:, 1:]].mean()
        assert abs(float(loss.detach()) - float(log[step, 0])) < 1e-4, step
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ours, settings.clip)
        optimizer.step()
        schedule.step()


def test_batches_cover_every_example_once_per_epoch():
    lengths = np.random.default_rng(1).integers(5, 90, 50)
    plans = batching.plan_dispatches(
        lengths,
        np.random.default_rng(0),
        batch_size=8,
        steps=None,
        epochs=2,
        classes=3,
        per_dispatch=2,
        limit=96,
    )
    rows = np.concatenate([d.rows.reshape(-1) for d in plans])
    assert sum(len(d.rows) for d in plans) == 14
    assert (np.bincount(rows[rows >= 0], minlength=50) == 2).all() and (rows == -1).sum() == 12
    assert (
        all(lengths[d.rows[d.rows >= 0]].max() <= d.time for d in plans)
        and len({d.time for d in plans}) > 1
    )
    short = batching.plan_dispatches(
        lengths,
        np.random.default_rng(0),
        batch_size=8,
        steps=9,
        epochs=1,
        classes=3,
        per_dispatch=2,
        limit=96,
    )
    assert sum(len(d.rows) for d in short) == 9


def test_refusals(model):
    with pytest.raises(ValueError, match="no texts"):
        family.fit(model, [FitTask(jax.random.key(0), [], [])], FIT)
    with pytest.raises(ValueError, match="one prompt per text"):
        family.fit(model, [FitTask(jax.random.key(0), TEXTS, PROMPTS[:2])], FIT)
    with pytest.raises(ValueError, match="weight"):
        family.fit(
            model, [FitTask(jax.random.key(0), TEXTS, PROMPTS, np.full(len(TEXTS), np.nan))], FIT
        )
    with pytest.raises(ValueError, match="max_new_tokens.*context"):
        family.sample(
            model,
            [SampleTask(jax.random.key(0), None, PROMPTS[:1], np.arange(1))],
            dataclasses.replace(SAMPLE, max_new_tokens=95),
        )
    with pytest.raises(ValueError, match="fit.mode"):
        FitSettings(mode="qlora")
    with pytest.raises(ValueError, match="temperature"):
        SampleSettings(temperature=0.0)


def test_four_devices_write_and_train_what_one_does(model, fitted):
    """Same shapes per device: equal texts, with shared prompts and with prompts of each row's own.
    Weights agree to rounding: XLA compiles the program for several devices separately and fuses it
    differently.
    """
    four = family.spread(model, jax.devices()[:4])
    tasks = [FitTask(jax.random.key(i), TEXTS, PROMPTS) for i in range(3)]
    for ours, theirs in zip(fitted, family.fit(four, tasks, FIT)):
        for a, b in zip(jax.tree.leaves(ours.weights), jax.tree.leaves(theirs.weights)):
            np.testing.assert_allclose(a, b, atol=2e-5)
    ragged = [f"The {w}" + " cat" * (i % 3) for i, w in enumerate("abcdefghijkl")]
    for prompts in (PROMPTS[:10], ragged):
        writes = [
            SampleTask(jax.random.key(50 + i), r.weights, prompts, np.arange(len(prompts)))
            for i, r in enumerate(fitted)
        ]
        one, many = family.sample(model, writes, SAMPLE), family.sample(four, writes, SAMPLE)
        assert [r.texts for r in one] == [r.texts for r in many]
