"""Losses of texts against torch and peft."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.config import LoraConfig
from jaxloop.lm import family
from jaxloop.lm.family import FitTask, GenerateOptions, GenerateTask, LossTask
from jaxloop.lm.training import loss
from tests.lm.tiny import FIT, PROMPTS, SAMPLE, TEXTS, fit
from tests.peers import require


def test_loss_equals_torch(tiny_model, fitted, tmp_path):
    torch, transformers, peft = require("torch", "transformers", "peft")
    lm.save(tiny_model, tmp_path / "base")
    lm.save_peft(tmp_path / "adapter", tiny_model.config, fitted[0].weights)
    reference = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter"
    ).eval()
    ours = family.loss(tiny_model, [LossTask(fitted[0].weights, TEXTS[:7], PROMPTS[:7])], FIT)[0]
    for i in range(7):
        prompt, text = (
            tiny_model.tokenizer.encode([PROMPTS[i]])[0],
            tiny_model.tokenizer.encode([TEXTS[i]], special=False)[0],
        )
        ids = torch.tensor([prompt + text + [tiny_model.tokenizer.eos]])
        with torch.no_grad():
            logp = torch.log_softmax(reference(ids).logits[0, :-1], -1)
        nats = -logp[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(prompt) - 1 :]
        assert ours.tokens[i] == len(nats) and abs(ours.nll[i] - float(nats.sum())) < 2e-3
        np.testing.assert_allclose(ours.token_nll[i], nats.numpy(), atol=1e-3)


def test_a_text_scores_the_same_alone_and_among_others(tiny_model, fitted):
    """Texts of many lengths, one token around a padded length among them."""
    words = " ".join(TEXTS).split()
    texts = [" ".join(words[:n]) for n in (1, 2, 3, 5, 8, 12, 16, 20)]
    heads = [""] * len(texts)
    weights = fitted[0].weights
    together = family.loss(tiny_model, [LossTask(weights, texts, heads)], FIT)[0]
    assert len(set(together.tokens.tolist())) > 4
    for i, text in enumerate(texts):
        alone = family.loss(tiny_model, [LossTask(weights, [text], heads[:1])], FIT)[0]
        np.testing.assert_allclose(alone.token_nll[0], together.token_nll[i], atol=2e-5)


@pytest.mark.parametrize("chunk", [1 << 20, 7])
def test_forward_losses_are_those_of_training(tiny_model, monkeypatch, chunk):
    config, params = tiny_model.config, tiny_model.params
    rows, seq_len = 7, 74  # 511 predicted tokens: the last of two chunks is short
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, seq_len))
    monkeypatch.setattr(loss, "CACHED_CHUNK", chunk)
    found, expected = (
        jax.jit(functools.partial(nll, config))(params, jnp.asarray(tokens, jnp.int32))
        for nll in (loss.forward_nll, loss.row_nll)
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_adapters_carry_their_own_scale(tiny_model):
    """An adapter that was trained with alpha 64 is scored, and generates, with alpha 64.

    That holds whatever the settings of the call say. As a plain tree it is one of those settings.
    """
    trained_with = FIT.replace(lora=LoraConfig(rank=4, alpha=64.0), steps=40)
    weights = fit(tiny_model, [FitTask(jax.random.key(0), TEXTS, PROMPTS)], trained_with)[0].weights
    assert weights.config == trained_with.lora

    def nll(weights, lora):
        task = LossTask(weights, TEXTS, PROMPTS)
        return family.loss(tiny_model, [task], FIT.replace(lora=lora))[0].nll

    expected = nll(weights, trained_with.lora)
    np.testing.assert_array_equal(nll(weights, LoraConfig()), expected)
    np.testing.assert_array_equal(nll(weights.weights, trained_with.lora), expected)
    assert nll(weights.weights, LoraConfig(rank=4, alpha=16.0)).sum() > 2 * expected.sum()
    with pytest.raises(ValueError, match="lora.rank: 16 is not allowed for weights of .* rank 4"):
        nll(weights.weights, LoraConfig())
    tasks = [GenerateTask(jax.random.key(0), weights, PROMPTS[:4], np.arange(4))]
    sample = SAMPLE.replace(decoder="greedy")
    texts = [
        family.generate(tiny_model, tasks, sample, GenerateOptions(lora=lora, window=4))[0].texts
        for lora in (LoraConfig(), trained_with.lora)
    ]
    assert texts[0] == texts[1]
    start = FitTask(jax.random.key(0), TEXTS, PROMPTS, start=weights)
    with pytest.raises(
        ValueError, match="fit.lora.alpha: 16.0 is not allowed for a chain that goes"
    ):
        fit(tiny_model, [start], FIT.replace(lora=LoraConfig(rank=4, alpha=16.0)))
