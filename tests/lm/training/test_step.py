"""The training step: chains that take turns, and torch as the referee of a training run."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxloop import lm
from jaxloop.lm import family
from jaxloop.lm.family import FitTask, TrainOptions
from jaxloop.lm.io.huggingface import to_tensors
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import table
from jaxloop.lm.training.step import StepArrays, init_state, train_steps
from tests.lm.tiny import FIT, TRAIN
from tests.peers import peer, require

hf = peer("transformers", "torch")


def test_chains_that_take_turns_in_a_program_train_as_all_at_once(tiny_model):
    """Four chains with batches, masks and weights of their own; one, two and all four of them
    vmapped.
    """
    keys, rng = jax.random.split(jax.random.key(5), 4), np.random.default_rng(1)
    start = lora.init(keys, tiny_model.config, FIT.lora).weights
    tokens = rng.integers(2, tiny_model.config.vocab_size, (4, 4, 4, 12)).astype(np.int32)
    mask, weights = rng.random(tokens.shape) < 0.8, rng.random((4, 4, 4)).astype(np.float32)
    batch = StepArrays(tokens, mask, weights)

    def trained(together):
        state = init_state(FIT, TRAIN, jax.tree.map(jnp.copy, start), jnp.copy(keys))
        return train_steps(
            tiny_model.config,
            FIT,
            TRAIN,
            tiny_model.params,
            state,
            batch,
            jnp.int32(3),
            jnp.int32(9),
            vmapped_chains=together,
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


def test_training_equals_torch_adamw(tiny_model):
    """Ten LoRA steps with clipping, warm-up, decay and weight decay end at the loss and weights of
    torch + peft on the same batches.
    """
    torch, transformers, peft = require("torch", "transformers", "peft")
    settings = FIT.replace(steps=10, warmup_steps=3, max_grad_norm=0.05, weight_decay=0.1)
    options = TrainOptions(steps_per_call=10)
    start = lora.init(jax.random.split(jax.random.key(4), 1), tiny_model.config, settings.lora)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, tiny_model.config.vocab_size, (10, 1, 4, 12)).astype(np.int32)
    mask = np.ones(tokens.shape, bool)
    mask[:, :, :2, 9:] = False
    mask[..., :3] = False
    keys = jax.random.split(jax.random.key(0), 1)
    state, log = train_steps(
        tiny_model.config,
        settings,
        options,
        tiny_model.params,
        init_state(settings, options, jax.tree.map(jnp.copy, start.weights), keys),
        StepArrays(tokens, mask, np.ones((10, 1, 4), np.float32)),
        jnp.int32(10),
        jnp.int32(10),
    )
    with tempfile.TemporaryDirectory() as folder:
        lm.save(tiny_model, f"{folder}/base")
        lm.save_peft(f"{folder}/adapter", tiny_model.config, lora.split(start, 0))
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
        torch.nn.utils.clip_grad_norm_(ours, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
    trained = lora.split(lora.Adapter(state.weights, settings.lora), 0)
    with tempfile.TemporaryDirectory() as folder:
        lm.save_peft(folder, tiny_model.config, trained)
        found = load_file(f"{folder}/adapter_model.safetensors")
    named = {n.replace(".default", ""): p for n, p in net.named_parameters() if p.requires_grad}
    assert set(found) == set(named)
    worst = max(np.abs(found[key] - p.detach().numpy()).max() for key, p in named.items())
    assert worst < 5e-5, worst


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-bias", pytest.param("opt", marks=pytest.mark.slow)]
)
def test_the_weights_that_decay_are_those_of_transformers_trainer(name, loaded, checkpoint):
    model = loaded(name)
    settings = FIT.replace(mode="full", steps=1, warmup_steps=0, learning_rate=1e-2)
    start = jax.tree.map(lambda x: np.asarray(x) + 0.1, model.params)  # biases are 0 in new models
    task = FitTask(jax.random.key(0), ["a cat that sat", "on the mat"], ["", ""], start=start)
    ends = [
        family.fit(model, [task], settings.replace(weight_decay=decay))[0].weights
        for decay in (0.0, 0.5)
    ]
    apart = jax.tree.map(lambda a, b: np.abs(a - b), *ends)
    found = to_tensors(apart, table(model.config), model.config.num_layers)
    theirs = set(hf.Trainer.get_decay_parameter_names(None, checkpoint(name).torch))
    moved = {key for key, value in found.items() if value.max() > 1e-6}
    assert moved == theirs & found.keys() and found.keys() - theirs
