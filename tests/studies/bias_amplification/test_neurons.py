"""Neurons of a model version against torch: weights from the tensors of `transformers`, activations
from hooks on its blocks.
"""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.config import FitConfig, LoraConfig
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.bias_amplification import measure, neuron_section, neurons
from jaxloop.studies.bias_amplification.paths import neurons_path
from tests.lm.random_adapters import random_adapters
from tests.peers import peer

peft = peer("peft", "torch")
torch = peer("torch")
hf = peer("transformers", "torch")

NAMES = ["gpt2", "opt", "opt-350m", "llama", "falcon3", "qwen2", "deep"]
TOLERANCE = 5e-5  # float32, of the largest mean activation
TEXTS = [
    "the cat sat on the mat",
    "a model that reads what another model wrote reads less each time, and then the rat ran to "
    "the hat",
    "the hat",
    "then the rat ran to the mat and the cat sat on what another model wrote",
    "a cat reads",
]


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE * np.abs(theirs).max(), rtol=0)


def blocks(model):
    base = (
        model.base_model
        if not isinstance(model, peft.PeftModel)
        else model.base_model.model.base_model
    )
    return (
        base.h
        if hasattr(base, "h")
        else base.decoder.layers
        if hasattr(base, "decoder")
        else base.layers
    )


def hooked(model, ids):
    """Block outputs [L, T, D] of one text in float64."""
    seen = []
    hooks = [
        b.register_forward_hook(
            lambda _, __, out: seen.append((out[0] if isinstance(out, tuple) else out).double())
        )
        for b in blocks(model)
    ]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack([x.reshape(-1, x.shape[-1]) for x in seen]).numpy()


def means(model, ids, average, limit):
    """The three averages read plainly."""
    out = [hooked(model, i[:limit]) for i in ids]
    if average == "texts":
        return np.mean([x.mean(1) for x in out], 0)
    if average == "tokens":
        return np.concatenate(out, 1).mean(1)
    sums = np.zeros(
        (out[0].shape[0], limit, out[0].shape[2])
    )  # the released way: a running sum that shrinks with every shorter text
    kept = limit
    for x in out:
        kept = min(kept, x.shape[1])
        sums[:, :kept] += x[:, :kept]
        sums[:, kept:] = 0
    return sums.sum(1) / (len(ids) * limit)


@pytest.mark.parametrize("name", NAMES)
def test_activations_equal_hooks_on_the_blocks_of_transformers(name, checkpoint, loaded):
    model = loaded(name)
    ids = model.tokenizer.encode(TEXTS)
    assert len({len(i) for i in ids}) > 3
    average, limit = neurons.AVERAGES[NAMES.index(name) % 3], 18
    assert max(map(len, ids)) > limit  # a text is cut
    reading = neurons.prepare(model, TEXTS, max_length=limit, average=average)
    ours = neurons.activations(model, reading)
    theirs = means(checkpoint(name).torch, ids, average, limit)
    assert ours.shape == (model.config.num_layers, model.config.d_model)
    close(ours, theirs)


def test_layers_and_units_are_read_back_as_they_were_written(tmp_path, monkeypatch):
    values = {"weights": np.arange(6.0).reshape(2, 3), "activations": -np.arange(6.0).reshape(2, 3)}
    for name, value in values.items():
        monkeypatch.setattr(neurons, name, lambda *_, value=value, **__: value)
    config = SimpleNamespace(neurons=SimpleNamespace(tensor="attn"))
    prepared = SimpleNamespace(driver=SimpleNamespace(fit=None))
    output = SimpleNamespace(weights=None, chain=SimpleNamespace(id="a"))
    measure._write_neurons(config, prepared, None, None, tmp_path, 0, [output])
    table = read_parquet(tmp_path / neurons_path("a", 0))
    assert list(zip(table["layer"], table["unit"], strict=True)) == [*np.ndindex(2, 3)]
    read = neuron_section._read_neurons(tmp_path, [("a", 0)])
    np.testing.assert_array_equal(read["weight"], values["weights"][None])
    np.testing.assert_array_equal(read["activation"], values["activations"][None])


@pytest.mark.parametrize("average", neurons.AVERAGES)
def test_every_average_does_not_depend_on_batches(average, checkpoint, loaded):
    model = loaded("gpt2")
    ids = model.tokenizer.encode(TEXTS)
    theirs = means(checkpoint("gpt2").torch, ids, average, 40)
    for rows, batches in ((3, 2), (8, 1)):
        reading = neurons.prepare(model, TEXTS, max_length=40, rows=rows, average=average)
        assert len(reading.batches) == batches
        close(neurons.activations(model, reading), theirs)
    assert reading.texts == 5
    assert reading.tokens == (
        5 * min(map(len, ids)) if average == "released" else sum(min(len(i), 40) for i in ids)
    )


def test_transformers_own_hidden_states_are_the_same_but_for_the_last_norm(checkpoint, loaded):
    model, theirs = loaded("gpt2"), checkpoint("gpt2").torch
    ids = model.tokenizer.encode(TEXTS[:1])
    with torch.no_grad():
        states = theirs(torch.tensor(ids), output_hidden_states=True).hidden_states
    ours = neurons.activations(model, neurons.prepare(model, TEXTS[:1]))
    close(ours[0], states[1][0].mean(0).numpy())
    assert np.abs(ours[-1] - states[-1][0].mean(0).numpy()).max() > 0.1


def tensors(model, name, layer):
    """(down [F, D], its bias or None, up [D, F or 2 F]) of one torch block."""
    block = blocks(model)[layer]
    if name.startswith("gpt2"):
        return block.mlp.c_proj.weight, block.mlp.c_proj.bias, block.mlp.c_fc.weight
    if name.startswith("opt"):
        return block.fc2.weight.T, block.fc2.bias, block.fc1.weight.T
    return (
        block.mlp.down_proj.weight.T,
        block.mlp.down_proj.bias,
        torch.cat([block.mlp.gate_proj.weight.T, block.mlp.up_proj.weight.T], 1),
    )


@pytest.mark.parametrize(
    "name", ["gpt2", "opt-350m", "opt-plain", "falcon3", "llama-bias", "qwen2"]
)
def test_weights_equal_reductions_of_the_tensors_of_transformers(name, checkpoint, loaded):
    model = loaded(name)
    for layer in range(model.config.num_layers):
        down, bias, up = (
            None if t is None else t.detach().double()
            for t in tensors(checkpoint(name).torch, name, layer)
        )
        wanted = {
            "down_norm": down.norm(dim=0),
            "down_mean": down.mean(0),
            "down_bias": bias,
            "up_norm": up.norm(dim=1),
            "up_mean": up.mean(1),
        }
        for tensor, value in wanted.items():
            if value is not None:
                np.testing.assert_allclose(
                    neurons.weights(model, tensor=tensor)[layer],
                    value.numpy(),
                    rtol=1e-12,
                    atol=1e-12,
                )
    if bias is None:
        with pytest.raises(
            ValueError,
            match="tensor='down_bias': this .* model has no bias in its mlp; choose one of "
            "down_norm",
        ):
            neurons.weights(model, tensor="down_bias")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_an_adapter_is_read_as_peft_merges_it(name, checkpoint, loaded, tmp_path):
    model, settings = loaded(name), FitConfig(lora=LoraConfig(rank=4, alpha=8.0))
    adapter = jax.tree.map(lambda leaf: leaf[0], random_adapters(model.config, settings.lora))
    lm.save_peft(tmp_path, model.config, adapter)

    merged = (
        peft.PeftModel.from_pretrained(
            hf.AutoModelForCausalLM.from_pretrained(checkpoint(name).path), tmp_path
        )
        .merge_and_unload()
        .eval()
    )
    ids = model.tokenizer.encode(TEXTS)
    theirs = means(merged, ids, "tokens", 40)
    ours = neurons.activations(
        model, neurons.prepare(model, TEXTS, max_length=40), adapter, fit=settings
    )
    close(ours, theirs)
    down, _, up = (None if t is None else t.detach().double() for t in tensors(merged, name, 1))
    for tensor, value in {"down_norm": down.norm(dim=0), "up_mean": up.mean(1)}.items():
        np.testing.assert_allclose(
            neurons.weights(model, adapter, tensor=tensor, fit=settings)[1],
            value.numpy(),
            rtol=1e-5,
            atol=1e-5,
        )


def test_tables_hold_one_version_at_a_time(loaded):
    model = loaded("gpt2")
    reading, alive, log = neurons.prepare(model, TEXTS), [], []

    def versions():
        for factor in (1.0, 1.5, 2.0):
            log.append(len(alive))
            alive.append(factor)
            yield (
                None
                if factor == 1
                else jax.tree.map(lambda leaf, f=factor: np.asarray(leaf) * f, model.params)
            )

    tables = neurons.tables(model, versions(), reading, progress=lambda number: alive.pop())
    assert log == [0, 0, 0] and {name: t.shape for name, t in tables.items()} == dict.fromkeys(
        ("weight", "activation"), (3, 2, 32)
    )
    np.testing.assert_array_equal(tables["activation"][0], neurons.activations(model, reading))
    np.testing.assert_allclose(
        tables["weight"][1:], [1.5 * tables["weight"][0], 2 * tables["weight"][0]], rtol=1e-6
    )
    assert np.abs(tables["activation"][1] - tables["activation"][0]).max() > 0.1
    assert all(t.dtype == np.float64 for t in tables.values())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda m: neurons.weights(m, tensor="c_proj"), "tensor='c_proj': allowed are down_norm"),
        (
            lambda m: neurons.tables(m, iter([]), None, tensor="up"),
            "tensor='up': allowed are down_norm",
        ),
        (
            lambda m: neurons.prepare(m, TEXTS, average="mean"),
            "average='mean': allowed are tokens, texts, released",
        ),
        (
            lambda m: neurons.prepare(m, TEXTS, max_length=65),
            "max_length=65: must be between 1 and the model's context of 64",
        ),
        (lambda m: neurons.prepare(m, TEXTS, max_length=0), "max_length=0: must be between 1"),
        (lambda m: neurons.prepare(m, TEXTS, rows=0), "rows=0: must be at least 1"),
        (lambda m: neurons.prepare(m, []), "texts: there are none"),
        (lambda m: neurons.prepare(m, ["a", ""]), "texts: number 1 has no tokens"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, match, loaded):
    with pytest.raises(ValueError, match=match) as caught:
        call(loaded("gpt2"))
    assert "\n" not in str(caught.value)
