"""Dropout: where it is applied, against transformers with our masks in the place of torch's; how it
is drawn; and that nothing of it is in a program whose rates are 0.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxloop.config import FitConfig, LoraConfig
from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder.config import encoder_config_fields, read_encoder_config
from jaxloop.lm.encoder.tables import encoder_table
from jaxloop.lm.io import huggingface, safetensors_files
from jaxloop.lm.io.config_json import config_fields, parse_config
from jaxloop.lm.io.huggingface import to_tensors
from jaxloop.lm.io.peft_files import save_peft
from jaxloop.lm.model import dropout as dropouts
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import abstract, table
from jaxloop.lm.model.dropout import Dropout, DropoutRates
from jaxloop.lm.model.lora import Adapter, split, target_names
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, losses, train_steps
from tests.lm import conftest
from tests.lm.random_adapters import random_adapters
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")
peft = peer("peft", "torch")

FIT = FitConfig(mode="full")
# What transformers' classes take, and the sites they drop at, in their order.
GPT2 = ("attention", "attention_output", "mlp_output")
DECODERS = {
    "gpt2": (dict(embd_pdrop=0.1, attn_pdrop=0.2, resid_pdrop=0.3), ("embedding",), GPT2),
    "opt": (dict(attention_dropout=0.2, dropout=0.3), (), GPT2),
    "llama": (dict(attention_dropout=0.2), (), ("attention",)),
    "qwen2": (dict(attention_dropout=0.2), (), ("attention",)),
}
BATCH, TIME = 3, 9
MASK = jax.jit(dropouts.drop, static_argnums=0)


class OurMasks:
    """Stands in for torch's dropout: applies ours, site after site."""

    def __init__(self, keys, sites):
        self.keys, self.sites, self.calls = keys, iter(sites), 0

    def __call__(self, x, p=0.5, training=True, inplace=False):
        if not training or p == 0:
            return x
        layer, site = next(self.sites)
        self.calls += 1
        # The numbers of a row in another layout: torch's [B, H, T, T] and [B, T, D] are ours.
        number = np.uint32(layer * len(dropouts.SITES) + dropouts.SITES.index(site))
        mask = MASK(p, self.keys, number, np.ones(tuple(x.shape), np.float32))
        return x * torch.from_numpy(np.array(mask))


def with_our_masks(monkeypatch, keys, before, of_layer, layers, after=()):
    """Makes torch drop what we drop; returns what counts the calls."""
    sites = [(0, site) for site in before]
    sites += [(layer, site) for layer in range(layers) for site in of_layer]
    masks = OurMasks(keys, sites + [(0, site) for site in after])
    monkeypatch.setattr(torch.nn.functional, "dropout", masks)
    return masks, len(sites) + len(after)


def read(folder, parameters, layers):
    return safetensors_files.read(
        safetensors_files.weights(folder), parameters, layers, jnp.float32
    )


def batch_of(tokens):
    """The arguments of `losses` for one chain whose tokens all count."""
    shape = tokens.shape
    return jnp.asarray(tokens, jnp.int32), jnp.ones(shape, bool), jnp.ones(shape[:2])


# Llama drops as Qwen2 does, and OPT where GPT-2 does; its rates are read with the adapters below.
@pytest.mark.parametrize(
    "name", ["gpt2", "llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("opt", "qwen2"))]
)
@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_losses_and_gradients_are_those_of_transformers_with_the_same_masks(
    name, remat, tmp_path, monkeypatch
):
    """2e-4, float32; every site of every layer, its rate and its scale."""
    rates, before, of_layer = DECODERS[name]
    torch.manual_seed(0)
    theirs = conftest.CONFIGS[name]()
    for field, value in rates.items():
        setattr(theirs, field, value)
    network = hf.AutoModelForCausalLM.from_config(theirs, attn_implementation="eager").train()
    network.save_pretrained(tmp_path)
    config = huggingface.read_model_config(tmp_path)
    params = read(tmp_path, table(config), config.num_layers)
    key = jax.random.key(7)[None]
    step = jnp.array([5], jnp.int32)
    tokens = np.random.default_rng(0).integers(3, 300, (1, BATCH, TIME))
    batch = batch_of(tokens)

    @jax.jit
    @jax.value_and_grad
    def ours(weights):
        fit = FIT.replace(remat=remat)
        return losses(config, fit, None, weights, *batch, key, step)[0]

    loss, grads = ours(jax.tree.map(lambda x: x[None], params))
    keys = dropouts.keys_of_step(key, step, BATCH)
    masks, sites = with_our_masks(monkeypatch, keys, before, of_layer, config.num_layers)
    ids = torch.from_numpy(tokens[0])
    theirs = network(input_ids=ids, labels=ids).loss
    theirs.backward()
    assert masks.calls == sites > 0
    np.testing.assert_allclose(loss, theirs.item(), atol=2e-4)
    found = to_tensors(jax.tree.map(lambda x: x[0], grads), table(config), config.num_layers)
    expected = {key_: parameter.grad.numpy() for key_, parameter in network.named_parameters()}
    assert found.keys() == expected.keys()
    for key_, value in expected.items():
        np.testing.assert_allclose(found[key_], value, atol=2e-4, err_msg=key_)


BLOCK = ("attention", "attention_output", "mlp_output")
SMALL = dict(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=40,
    hidden_dropout_prob=0.3,
    attention_probs_dropout_prob=0.2,
)
ENCODERS = {
    "bert": (lambda: hf.BertConfig(**SMALL, classifier_dropout=0.4), BLOCK, ("head_output",)),
    "roberta": (
        lambda: hf.RobertaConfig(**SMALL, pad_token_id=1, classifier_dropout=0.4),
        BLOCK,
        ("head_input", "head_output"),
    ),
    "mpnet": (lambda: hf.MPNetConfig(**SMALL), BLOCK, ("head_input", "head_output")),
    "distilbert": (
        lambda: hf.DistilBertConfig(
            vocab_size=60,
            dim=16,
            n_layers=2,
            n_heads=2,
            hidden_dim=24,
            max_position_embeddings=40,
            dropout=0.3,
            attention_dropout=0.2,
            seq_classif_dropout=0.4,
        ),
        ("attention", "mlp_output"),
        ("head_output",),
    ),
}


@pytest.mark.parametrize("name", list(ENCODERS))
def test_classifiers_drop_where_transformers_does(name, tmp_path, monkeypatch):
    """Logits in training, within 2e-4, and the rates in a config.json that we write."""
    make, of_layer, head = ENCODERS[name]
    torch.manual_seed(1)
    kind = hf.AutoModelForSequenceClassification
    network = kind.from_config(make(), attn_implementation="eager").train()
    network.save_pretrained(tmp_path)
    config = read_encoder_config(tmp_path, head=True)
    assert config.head_dropout == pytest.approx(0.3 if name == "mpnet" else 0.4)
    params = read(tmp_path, encoder_table(config), 2)
    params["layers"] = [transformer.layer(params["layers"], i) for i in range(2)]
    tokens = np.random.default_rng(1).integers(3, 60, (BATCH, TIME)).astype(np.int32)
    keys = dropouts.keys_of_rows(jax.random.key(3), BATCH)

    @jax.jit
    def logits(params, tokens):
        lengths = jnp.full((BATCH,), TIME, jnp.int32)
        dropout = Dropout(encoders.dropout_rates(config), keys)
        return encoders.class_logits(config, params, tokens, lengths, dropout)

    found = logits(params, tokens)
    # The head's sites are of no layer.
    masks, sites = with_our_masks(monkeypatch, keys, ("embedding",), of_layer, 2, head)
    theirs = network(input_ids=torch.from_numpy(tokens).long()).logits
    assert masks.calls == sites
    np.testing.assert_allclose(found, theirs.detach().numpy(), atol=2e-4)
    (tmp_path / "config.json").write_text(json.dumps(encoder_config_fields(config)))
    assert read_encoder_config(tmp_path, head=True) == config


@pytest.mark.parametrize("targets", ["all-linear", ("q", "down")])
def test_adapters_drop_where_peft_does(targets, tmp_path, monkeypatch):
    """Every target's input by a mask of its own; the model's own dropout below, where asked for."""
    rates, _, _ = DECODERS["opt"]
    torch.manual_seed(2)
    settings = conftest.CONFIGS["opt"]()
    for field, value in rates.items():
        setattr(settings, field, value)
    network = hf.AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    network.save_pretrained(tmp_path)
    config = huggingface.read_model_config(tmp_path)
    params = read(tmp_path, table(config), config.num_layers)
    lora = LoraConfig(rank=2, alpha=4.0, targets=targets, dropout=0.4)
    adapters = random_adapters(config, lora, 1)
    save_peft(tmp_path / "adapter", config, split(adapters, 0))
    network = peft.PeftModel.from_pretrained(network, tmp_path / "adapter", is_trainable=True)
    network.train()
    key, step = jax.random.key(7)[None], jnp.array([2], jnp.int32)
    tokens = np.random.default_rng(0).integers(3, 300, (1, BATCH, TIME))
    batch = batch_of(tokens)
    fit = FitConfig(lora=lora, dropout="model")
    loss, grads = jax.jit(
        jax.value_and_grad(
            lambda weights, base: losses(config, fit, base, weights, *batch, key, step)[0]
        )
    )(adapters.weights, params)
    order = [*"qkv", "attention", "o", "attention_output", "up", "down", "mlp_output"]
    names = target_names(config, lora)
    of_layer = [site for site in order if site in names or site in GPT2]
    keys = dropouts.keys_of_step(key, step, BATCH)
    masks, sites = with_our_masks(monkeypatch, keys, (), of_layer, config.num_layers)
    ids = torch.from_numpy(tokens[0])
    theirs = network(input_ids=ids, labels=ids).loss
    theirs.backward()
    assert masks.calls == sites
    np.testing.assert_allclose(loss, theirs.item(), atol=2e-4)
    save_peft(tmp_path / "gradient", config, split(Adapter(grads, lora), 0))
    found = load_file(tmp_path / "gradient" / "adapter_model.safetensors")
    theirs = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in network.named_parameters()
        if parameter.grad is not None
    }
    assert found.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(found[name], value, atol=5e-4, err_msg=name)


def program(config, fit, *, remat=False, rows=2, time=16):
    """The training program of one chain, before XLA, and its arguments."""
    fit = fit.replace(remat=remat, batch_size=rows)
    options = TrainOptions(steps_per_call=2)
    shape = (2, 1, rows, time)
    batch = StepArrays(
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, jnp.bool_),
        jax.ShapeDtypeStruct(shape[:3], jnp.float32),
    )
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), abstract(config))
    keys = jax.eval_shape(lambda: jax.random.key(0)[None])
    state = jax.eval_shape(functools.partial(init_state, fit, options), weights, keys)
    number = jax.ShapeDtypeStruct((), jnp.int32)
    return train_steps.lower(config, fit, options, None, state, batch, number, number)


def test_a_program_whose_rates_are_zero_holds_nothing_of_dropout(loaded):
    config = dataclasses.replace(loaded("gpt2").config, num_layers=1)
    assert not config.dropout.by_site()
    dropped = dataclasses.replace(config, dropout=DropoutRates(0.1, 0.1, 0.1, 0.1))
    plain = program(config, FIT).as_text()
    assert program(dropped, FIT.replace(dropout="none")).as_text() == plain
    assert program(config, FIT.replace(dropout="model")).as_text() == plain
    everywhere = program(dropped, FIT).as_text()
    assert everywhere != plain
    only = dataclasses.replace(config, dropout=DropoutRates(mlp_output=0.1))
    assert len(program(only, FIT).as_text()) < len(everywhere)


def test_the_gradient_keeps_no_mask(loaded):
    """With blocks computed again, dropout adds less than a tenth of a mask's bytes a layer."""
    config = dataclasses.replace(loaded("gpt2").config, num_layers=12)
    dropped = dataclasses.replace(config, dropout=DropoutRates(0.1, 0.1, 0.1, 0.1))
    rows, time = 8, 64
    size = [
        program(c, FIT, remat=True, rows=rows, time=time).compile().memory_analysis()
        for c in (config, dropped)
    ]
    more = size[1].temp_size_in_bytes - size[0].temp_size_in_bytes
    mask = rows * config.num_heads * time * time
    assert more < 0.1 * mask * config.num_layers, (more, mask)


def test_draws_are_those_of_the_stated_rate_and_independent():
    """Over rows, steps, layers, sites and places: correlations as of independent draws."""
    keys = dropouts.keys_of_step(
        jax.random.split(jax.random.key(0), 3), jnp.array([0, 1, 1], jnp.int32), 4
    )
    ones = jnp.ones((12, 50, 64))
    numbers = range(32)
    kept = np.stack([np.asarray(dropouts.drop(0.1, keys, np.uint32(n), ones)) > 0 for n in numbers])
    flat = (kept.reshape(32 * 12, -1) - 0.9) / 0.3
    assert abs(flat.mean()) < 4 / np.sqrt(flat.size)
    pairs = np.corrcoef(flat)[np.triu_indices(len(flat), 1)] * np.sqrt(flat.shape[1])
    assert abs(pairs.std() - 1) < 0.02 and abs(pairs).max() < 5.5  # 73,536 pairs
    for lag in (1, 2, 3, 4, 8, 16, 64, 128, 1024):
        product = flat[:, lag:] * flat[:, :-lag]
        assert abs(product.mean()) < 4.5 / np.sqrt(product.size), lag
    of_row = kept[0].reshape(12, -1).mean(1)
    assert abs((of_row - 0.9) / np.sqrt(0.09 / 3200)).max() < 4


@pytest.mark.parametrize(
    ("name", "field"), [("gpt2", "attn_pdrop"), ("opt", "dropout"), ("llama", "attention_dropout")]
)
def test_rates_come_from_config_json(name, field, loaded):
    """Absent ones are those of transformers; what is written is read again."""
    fields = config_fields(loaded(name).config)
    config = parse_config(fields | {field: 0.25})
    assert 0.25 in config.dropout.by_site().values()
    assert parse_config(config_fields(config)) == config
    kind = {"gpt2": "GPT2Config", "opt": "OPTConfig", "llama": "LlamaConfig"}[name]
    theirs = getattr(hf, kind)()
    absent = parse_config({n: v for n, v in fields.items() if "drop" not in n}).dropout
    residual = getattr(theirs, "resid_pdrop", getattr(theirs, "dropout", 0.0))
    attention = getattr(theirs, "attn_pdrop", getattr(theirs, "attention_dropout", None))
    embedding = getattr(theirs, "embd_pdrop", 0.0)
    assert absent == DropoutRates(embedding, attention, residual, residual)
    for bad in (1.0, -0.1, "0.1"):
        with pytest.raises(ValueError, match=rf"^model: {field} = .* is not supported; allowed"):
            parse_config(fields | {field: bad})
