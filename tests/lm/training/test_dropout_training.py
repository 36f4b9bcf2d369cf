"""Training with dropout: losses as transformers draws them, its training curves, and draws that are
a chain's own.
"""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop.config import FitConfig
from jaxloop.lm import family
from jaxloop.lm.family import FitTask, LossTask, TrainOptions
from jaxloop.lm.model.dropout import DropoutRates
from jaxloop.lm.training import gradient_constraint
from jaxloop.lm.training.batching import encode_examples
from jaxloop.lm.training.gradient_constraint import GradientConstraint
from jaxloop.lm.training.step import losses
from tests.lm.tiny import same
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

FULL = FitConfig(mode="full", batch_size=2, epochs=2.0, learning_rate=1e-3, completion_only=False)
TEXTS = [f"a cat that sat on mat number {i} and ran" for i in range(6)]
BASE = Path("jaxloop/assets/bases/gpt2")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _drawn(config, fit, weights, tokens_1BT, steps_N):
    """The loss of one batch at each of N steps."""
    shape = tokens_1BT.shape
    key = jax.random.key(11)[None]

    def at(step):
        batch = tokens_1BT, jnp.ones(shape, bool), jnp.ones(shape[:2])
        return losses(config, fit, None, weights, *batch, key, step[None])[0]

    return jax.lax.map(at, steps_N)


@pytest.mark.slow
def test_losses_are_distributed_as_those_of_transformers(loaded, checkpoint):
    """Mean and variance over 2,000 draws each: z below 4, variances within 15 %."""
    model = loaded("gpt2")
    draws, rows, time = 2000, 2, 12
    rates = DropoutRates(0.1, 0.2, 0.3, 0.3)
    config = dataclasses.replace(model.config, dropout=rates)
    tokens = np.random.default_rng(3).integers(3, 300, (rows, time)).astype(np.int32)
    weights = jax.tree.map(lambda x: x[None] * 4, model.params)  # far from uniform
    found = np.asarray(_drawn(config, FULL, weights, jnp.asarray(tokens)[None], jnp.arange(draws)))

    settings = checkpoint("gpt2").torch.config.to_dict()
    settings |= dict(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3)
    network = hf.GPT2LMHeadModel(hf.GPT2Config.from_dict(settings)).train()
    network.load_state_dict(
        {name: value * 4 for name, value in checkpoint("gpt2").torch.state_dict().items()}
    )
    torch.manual_seed(0)
    many = torch.from_numpy(np.tile(tokens, (draws, 1))).long()
    with torch.no_grad():
        logits = network(input_ids=many).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), many[:, 1:], reduction="none"
        )
    theirs = nll.reshape(draws, -1).mean(1).numpy()
    se = np.sqrt((found.var() + theirs.var()) / draws)
    assert abs(found.mean() - theirs.mean()) < 4 * se
    assert 0.85 < found.var() / theirs.var() < 1.15
    # The comparison could tell a rate of 0.3 from one of 0.25, and dropout from none.
    weaker = dataclasses.replace(config, dropout=DropoutRates(0.1, 0.2, 0.25, 0.25))
    other = np.asarray(_drawn(weaker, FULL, weights, jnp.asarray(tokens)[None], jnp.arange(draws)))
    ratio = other.var() / theirs.var()
    assert abs(other.mean() - theirs.mean()) > 4 * se or not 0.85 < ratio < 1.15


def test_a_chain_with_dropout_trains_the_same_alone_and_among_others(loaded):
    """Bit for bit, and otherwise than without dropout; another chain draws otherwise."""
    model = loaded("gpt2")
    model = model._replace(
        config=dataclasses.replace(model.config, dropout=DropoutRates(0.1, 0.1, 0.1, 0.1))
    )
    options = TrainOptions(chains_per_program=3, steps_per_call=4)

    def fit(keys, settings=FULL):
        tasks = [FitTask(jax.random.key(key), TEXTS, [""] * len(TEXTS)) for key in keys]
        return [result.weights for result in family.fit(model, tasks, settings, options)]

    (alone,), among = fit([1]), fit([0, 1, 2])
    assert same(alone, among[1]) and not same(among[0], among[1])
    (again,) = fit([1])
    assert same(alone, again)
    (without,) = fit([1], FULL.replace(dropout="none"))
    assert not same(alone, without)


@pytest.mark.slow
def test_the_papers_loss_and_dropout_go_together(loaded):
    """The gradient of L_new with weights of 0 is that of L, with the same masks."""
    model = loaded("gpt2")
    config = dataclasses.replace(model.config, dropout=DropoutRates(0.1, 0.1, 0.1, 0.1))
    weights = jax.tree.map(lambda x: x[None], model.params)
    batch = jnp.full((1, 2, 8), 5, jnp.int32), jnp.ones((1, 2, 8), bool), jnp.ones((1, 2))

    def objective(weights):
        key, step = jax.random.key(1)[None], jnp.zeros(1, jnp.int32)
        each = losses(config, FULL, None, weights, *batch, key, step)
        return each.sum(), each

    direction = gradient_constraint.unit(model.params)
    plain = jax.grad(objective, has_aux=True)(weights)[0]
    for weight, far in ((0.0, False), (100.0, True)):
        constraint = GradientConstraint(weight, weight, "direction")
        grads, _ = gradient_constraint.gradient(objective, weights, direction, constraint)
        apart = [
            np.abs(a - b).max()
            for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(plain), strict=True)
        ]
        assert np.isfinite(apart).all() and (max(apart) > 1e-5) == far


def _theirs(texts, heldout, rates, seed, epochs, rate, rows):
    """(last training loss, held-out loss) by transformers, as its trainer takes its steps."""
    config = hf.GPT2Config.from_pretrained(BASE)
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        setattr(config, name, rates)
    network = hf.GPT2LMHeadModel.from_pretrained(BASE, config=config, dtype=torch.float32)
    network.train()
    plain = [p for n, p in network.named_parameters() if n.endswith("bias") or ".ln_" in n]
    decayed = [p for p in network.parameters() if not any(p is q for q in plain)]
    optimiser = torch.optim.AdamW(
        [dict(params=decayed, weight_decay=0.01), dict(params=plain, weight_decay=0.0)], lr=rate
    )
    torch.manual_seed(seed)
    steps = epochs * (len(texts) // rows)
    done, last = 0, []
    for epoch in range(epochs):
        order = torch.randperm(len(texts)).reshape(-1, rows)
        for chosen in order:
            for group in optimiser.param_groups:
                group["lr"] = rate * (1 - done / steps)
            loss = _loss(network, [texts[i] for i in chosen])
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            done += 1
            if epoch == epochs - 1:
                last.append(loss.item())
    network.eval()
    with torch.no_grad():
        total = [(_loss(network, [ids]).item() * (len(ids) - 1), len(ids) - 1) for ids in heldout]
    return np.mean(last), sum(a for a, _ in total) / sum(b for _, b in total)


def _loss(network, rows):
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    labels = torch.tensor([[*row, *[-100] * (longest - len(row))] for row in rows])
    mask = (labels >= 0).long()
    return network(input_ids=ids, attention_mask=mask, labels=labels).loss


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.timeout(1800)
def test_training_curves_are_those_of_transformers(shared):
    """16 posts, 25 epochs, four seeds: last training loss and held-out loss, with dropout and
    without; within 4 standard errors and 0.05.
    """
    torch.set_num_threads(1)  # its threads would wait for each other
    with shared("data/senate_tweets/tweets.jsonl").open(encoding="utf-8") as file:
        posts = [json.loads(line)["text"] for line, _ in zip(file, range(80))]
    model = family.load(str(BASE))
    training, heldout = posts[:16], posts[16:]
    examples = [
        encode_examples(
            model.tokenizer, texts, [""] * len(texts), max_length=256, completion_only=False
        ).ids
        for texts in (training, heldout)
    ]
    ids = [[row.tolist() for row in rows] for rows in examples]
    fit = FitConfig(
        mode="full",
        batch_size=4,
        epochs=25.0,
        learning_rate=1e-3,
        warmup_steps=0,
        completion_only=False,
        length_buckets=1,
    )
    ends = {}
    for dropout, rate in (("auto", 0.1), ("none", 0.0)):
        settings = fit.replace(dropout=dropout)
        tasks = [FitTask(jax.random.key(i), training, [""] * 16) for i in range(4)]
        ours = []
        for result in family.fit(model, tasks, settings):
            task = LossTask(result.weights, heldout, [""] * len(heldout))
            (loss,) = family.loss(model, [task], settings)
            ours.append((result.loss[-4:].mean(), loss.nll.sum() / loss.tokens.sum()))
        theirs = [_theirs(*ids, rate, seed, 25, 1e-3, 4) for seed in range(4)]
        a, b = np.array(ours), np.array(theirs)
        ends[dropout] = a.mean(0), b.mean(0)
        allowed = 4 * np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 4) + 0.05
        assert (abs(a.mean(0) - b.mean(0)) < allowed).all(), ends
    print(ends)
    # Dropout learns the posts less by heart, and generalises better.
    for i in range(2):
        assert ends["auto"][i][0] > ends["none"][i][0] + 0.1
        assert ends["auto"][i][1] < ends["none"][i][1] - 0.02
