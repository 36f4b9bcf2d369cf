"""Adapters against `peft`: logits, gradients, files; and their chain axis."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxloop import lm
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import fused_projections
from jaxloop.lm.model.linear import fused_linear
from tests.compiler import as_for_users
from tests.lm.random_adapters import random_adapters
from tests.peers import peer

peft = peer("peft", "torch")
torch = peer("torch")
torch_files = peer("safetensors.torch", "torch")

LORA = lm.LoraConfig(rank=4, alpha=10.0)
TOLERANCE = 2e-4  # absolute, float32 logits
TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "opt": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "opt-350m": ["q_proj", "v_proj"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "falcon3": ["k_proj", "o_proj", "up_proj"],
    "qwen2": "all-linear",
}

forward = jax.jit(lm.forward, static_argnames="config")


def tokens(rows=3, time=12):
    return np.random.default_rng(1).integers(3, 320, (rows, time)).astype(np.int32)


def with_peft(base, targets, seed, path):
    """A peft model on a copy of `base` with random factors, also written to `path` by peft."""
    config = peft.LoraConfig(
        r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    model.save_pretrained(path)
    return model


@pytest.fixture
def base(checkpoint):
    """A fresh copy of the torch model: peft changes modules in place."""
    return lambda name: type(checkpoint(name).torch).from_pretrained(checkpoint(name).path).eval()


@pytest.mark.parametrize("name", as_for_users(TARGETS, "qwen2"))
def test_two_chains_compute_what_peft_computes_for_each(name, base, loaded, tmp_path):
    """Files written by peft; logits; gradients of the loss with respect to the factors."""
    model, t = loaded(name), tokens()
    theirs, read = [], []
    for chain in range(2):
        theirs.append(with_peft(base(name), TARGETS[name], chain, tmp_path / str(chain)))
        read.append(lm.load_peft(tmp_path / str(chain), model.config))
    assert all((adapter.config.rank, adapter.config.alpha) == (4, 10) for adapter in read)
    stacked = adapters.stack(read)
    both = np.stack([t, t[::-1]])

    @jax.jit
    def loss_and_grad(stacked):
        def loss(a):
            logits = lm.forward(model.config, model.params, both, adapters=a)
            nll = -jnp.take_along_axis(
                jax.nn.log_softmax(logits[:, :, :-1]), both[:, :, 1:, None], -1
            )
            return nll.mean((1, 2, 3)).sum(), logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(stacked)
        return logits, gradient

    logits, gradient = loss_and_grad(stacked)
    for chain in range(2):
        ids = torch.from_numpy(both[chain].copy()).long()
        out = theirs[chain](input_ids=ids)
        np.testing.assert_allclose(
            logits[chain], out.logits.detach().numpy(), atol=TOLERANCE, rtol=0
        )
        torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        ).backward()
        # under peft's names
        lm.save_peft(tmp_path / "gradient", model.config, adapters.split(gradient, chain))
        ours = load_file(tmp_path / "gradient" / "adapter_model.safetensors")
        named = {
            n.replace(".default", ""): p
            for n, p in theirs[chain].named_parameters()
            if "lora_" in n
        }
        assert set(ours) == set(named)
        for key, p in named.items():
            expected = p.grad.numpy()
            assert np.linalg.norm(ours[key] - expected) <= 1e-3 * np.linalg.norm(expected), key
    assert np.abs(logits[0] - logits[1][::-1]).max() > 0.1  # the same tokens under two adapters


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_peft_loads_what_we_save(name, targets, base, checkpoint, loaded, tmp_path):
    model = loaded(name)
    if name == "gpt2" and targets != "all-linear":
        targets = ("attn.c_proj", "mlp.c_fc")
    lora = lm.LoraConfig(rank=3, alpha=7.0, targets=targets, dropout=0.1)
    adapter = random_adapters(model.config, lora, 1)
    lm.save_peft(tmp_path, model.config, adapters.split(adapter, 0), base=str(name))
    theirs = peft.PeftModel.from_pretrained(base(name), tmp_path).eval()
    with torch.no_grad():
        expected = theirs(input_ids=torch.from_numpy(tokens()).long()).logits.numpy()
    ours = forward(model.config, model.params, tokens()[None], adapters=adapter)[0]
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
    assert (
        np.abs(
            ours - checkpoint(name).torch(torch.from_numpy(tokens()).long()).logits.detach().numpy()
        ).max()
        > 0.1
    )
    again = lm.load_peft(tmp_path, model.config)
    told = again.config
    jax.tree.map(np.testing.assert_array_equal, again.weights, adapters.split(adapter, 0).weights)
    assert (told.rank, told.alpha, told.dropout) == (3, 7, 0.1)
    assert adapters.target_names(model.config, told) == adapters.target_names(model.config, lora)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_fresh_adapters_change_nothing_and_start_as_peft_does(name, base, loaded):
    model, t = loaded(name), tokens()
    fresh = adapters.init(jax.random.split(jax.random.key(3), 2), model.config, LORA)
    both = forward(model.config, model.params, np.stack([t, t]), adapters=fresh)
    plain = base(name)(torch.from_numpy(t).long()).logits.detach().numpy()
    np.testing.assert_allclose(both[1], plain, atol=TOLERANCE, rtol=0)
    theirs = peft.get_peft_model(
        base(name), peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    bounds = {}
    for key, p in theirs.named_parameters():
        if "lora_A" in key and ".0." in key:
            bounds[re.search(r"\.0\.(.*)\.lora_A", key).group(1)] = (p.detach().numpy(), p.shape[1])
    for part in (p for parts in fused_projections(model.config).values() for p in parts):
        sample, inside = bounds.pop(part.module)
        ours = np.asarray(fresh[part.name]["a"])
        assert ours.shape == (2, model.config.num_layers, inside, 4)
        limit = inside**-0.5
        for values in (ours, sample):
            assert 0.9 * limit < np.abs(values).max() <= limit
            assert abs(values.std() / (limit / 3**0.5) - 1) < 0.2
        assert not np.asarray(fresh[part.name]["b"]).any()
    assert not bounds  # "all-linear" is the same set of projections
    first = [np.asarray(v["a"]).ravel()[:8] for v in fresh.values()]
    assert len({tuple(x) for x in first}) == len(first)  # no two projections share their draws
    assert not np.array_equal(fresh["o"]["a"][0], fresh["o"]["a"][1])


def test_a_chain_is_initialised_by_its_own_key_alone(loaded):
    config = loaded("llama").config
    keys = jax.random.split(jax.random.key(0), 5)
    together, alone = (adapters.init(k, config, LORA) for k in (keys, keys[3:4]))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(a[3], b[0])


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon3"])
@pytest.mark.parametrize("targets", ["all-linear", "partial"])
@pytest.mark.parametrize("rows", ["few", "many"])
def test_the_forms_of_an_adapter_compute_the_same(name, targets, rows, loaded):
    model = loaded(name)
    parts = [p.name for group in fused_projections(model.config).values() for p in group]
    lora = lm.LoraConfig(
        rank=3, alpha=5.0, targets="all-linear" if targets == "all-linear" else tuple(parts[1::2])
    )
    adapter = random_adapters(model.config, lora, 2)
    w = transformer.layer(model.params["layers"], 1)
    each = {
        projection: 3 if rows == "few" else w[projection].shape[0]
        for projection in fused_projections(model.config)
    }
    inputs = {
        projection: np.random.default_rng(2)
        .standard_normal((2 * n, w[projection].shape[0]))
        .astype(np.float32)
        for projection, n in each.items()
    }

    @functools.partial(jax.jit, static_argnums=0)
    def apply(layout, inputs):
        packed = adapters.pack_adapters(model.config, adapter, jnp.float32, layout)
        parts = {
            projection: fused_linear(
                model.config, projection, w, transformer.adapter_layer(packed, 1), x
            )
            for projection, x in inputs.items()
        }
        assert all(
            [y.shape[1] for y in parts[projection]] == [p.width for p in group]
            for projection, group in fused_projections(model.config).items()
        )
        return {projection: jnp.concatenate(each, -1) for projection, each in parts.items()}

    forms = [apply(layout, inputs) for layout in ("split", "block_diagonal", "mergeable")]
    for projection, x in inputs.items():
        # By hand, in float64: the first half of the rows are chain 0's, the others chain 1's.
        n = each[projection]
        expected, at = (
            x.astype(np.float64) @ np.asarray(w[projection])
            + np.asarray(w.get(f"{projection}_bias", 0)),
            0,
        )
        for p in fused_projections(model.config)[projection]:
            if p.name in adapter:
                f = jax.tree.map(lambda leaf: np.asarray(leaf[:, 1]), adapter[p.name])
                for part, chain in ((slice(0, n), 0), (slice(n, 2 * n), 1)):
                    expected[part, at : at + p.width] += (
                        5 / 3 * x[part] @ f["a"][chain] @ f["b"][chain]
                    )
            at += p.width
        for form in forms:
            np.testing.assert_allclose(form[projection], expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_adapters_are_not_added_to_the_weights(loaded):
    """A sum in bfloat16 would lose adapters that are small against the weights."""
    model = loaded("llama")
    packed = adapters.pack_adapters(
        model.config, random_adapters(model.config, LORA, 1), jnp.bfloat16, "mergeable"
    )
    assert not any(isinstance(projection, adapters.PackedLora) for projection in packed.values())


def test_scanned_layers_apply_each_layer_its_own_adapter(loaded, monkeypatch):
    model, t = loaded("deep"), tokens()[None]
    adapter = random_adapters(model.config, LORA, 1)
    scanned = forward(model.config, model.params, t, adapters=adapter)
    monkeypatch.setattr(transformer, "UNROLL", model.config.num_layers)
    unrolled = jax.jit(functools.partial(lm.forward, model.config))(
        model.params, t, adapters=adapter
    )
    np.testing.assert_allclose(scanned, unrolled, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "targets", "expected"),
    [
        ("llama", "all-linear", ("q", "k", "v", "o", "gate", "up", "down")),
        ("llama", ("v_proj", "q"), ("q", "v")),
        ("llama", "o_proj", ("o",)),
        ("gpt2", ("c_proj",), ("o", "down")),
        ("gpt2", ("attn.c_proj",), ("o",)),
        ("gpt2", ("c_attn", "mlp.c_proj"), ("qkv", "down")),
        ("opt", ("fc2", "out_proj"), ("o", "down")),
    ],
)
def test_targets_are_named_as_in_the_paper_or_as_in_the_file(name, targets, expected, loaded):
    assert adapters.target_names(loaded(name).config, lm.LoraConfig(targets=targets)) == expected


def test_adapters_of_other_settings_are_not_stacked():
    """Nor are those that adapt other projections; dropout, which is of training, may differ."""

    def adapter(rank=2, alpha=8.0, dropout=0.0, targets=("q", "v")):
        factors = {"a": jnp.zeros((2, 8, rank)), "b": jnp.zeros((2, rank, 8))}
        config = lm.LoraConfig(rank=rank, alpha=alpha, dropout=dropout, targets=targets)
        return lm.Adapter(dict.fromkeys(targets, factors), config)

    assert adapters.stack([adapter(), adapter(dropout=0.5)])["q"]["a"].shape == (2, 2, 8, 2)
    for other, message in (
        (adapter(alpha=64.0), "adapters: lora.alpha is 8.0 of one chain and 64.0 of another"),
        (adapter(rank=4), "adapters: lora.rank is 2 of one chain and 4 of another"),
        (adapter(targets=("q",)), r"adapters: lora.targets are \['q', 'v'\] of one chain"),
    ):
        with pytest.raises(ValueError, match=message):
            adapters.stack([adapter(), other])
    plain = adapter().weights
    assert adapters.as_adapter(plain, adapter(alpha=3.0).config).config.alpha == 3
    assert adapters.as_adapter(adapter(), adapter(alpha=3.0).config).config.alpha == 8
    with pytest.raises(
        ValueError, match="lora.rank: 4 is not allowed for weights of q with rank 2"
    ):
        adapters.as_adapter(plain, adapter(rank=4).config)


def test_unknown_targets_and_mismatched_chains_are_refused(loaded):
    model = loaded("gpt2")
    with pytest.raises(
        ValueError,
        match="lora.targets: 'q_proj' is not a projection of gpt2; allowed are 'all-linear' or "
        "some of .*c_attn",
    ):
        adapters.target_names(model.config, lm.LoraConfig(targets=("c_attn", "q_proj")))
    adapter = random_adapters(model.config, LORA, 2)
    for shape in ((3, 1, 4), (2, 4)):
        with pytest.raises(ValueError, match="adapters: 2 chains do not match tokens of shape"):
            lm.forward(model.config, model.params, jnp.ones(shape, jnp.int32), adapters=adapter)


@pytest.fixture
def saved(loaded, tmp_path):
    model = loaded("llama")
    adapter = random_adapters(model.config, LORA, 1)
    lm.save_peft(tmp_path, model.config, adapters.split(adapter, 0))
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "ADALORA"),
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("init_lora_weights", "pissa"),
    ],
)
def test_other_methods_than_plain_lora_are_refused(field, value, saved, loaded):
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=f"adapter: {field} = .* is not supported"):
        lm.load_peft(saved, loaded("llama").config)


def test_files_that_do_not_fit_the_architecture_are_refused(saved, loaded):
    config = loaded("llama").config
    with pytest.raises(ValueError, match="is not a projection of gpt2"):
        lm.load_peft(saved, loaded("gpt2").config)
    file = saved / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: v for k, v in tensors.items() if "layers.1.self_attn.q_proj" not in k}, file)
    with pytest.raises(ValueError, match="layers.1.self_attn.q_proj has no factors"):
        lm.load_peft(saved, config)
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file(tensors | {key: tensors[key][:-1].copy()}, file)
    with pytest.raises(ValueError, match="up_proj.* has shape"):
        lm.load_peft(saved, config)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        lm.load_peft(saved, config)
    file.rename(saved / "adapter_model.bin")
    with pytest.raises(ValueError, match="pickled adapters are refused"):
        lm.load_peft(saved, config)
    with pytest.raises(ValueError, match="no adapter_model.safetensors"):
        lm.load_peft(saved / "nothing", config)


def test_bfloat16_adapters_of_peft_are_read(saved, loaded):
    config = loaded("llama").config
    exact = lm.load_peft(saved, config)
    file = saved / "adapter_model.safetensors"
    torch_files.save_file(
        {k: torch.from_numpy(v).bfloat16() for k, v in load_file(file).items()},
        file,
        metadata={"format": "pt"},
    )
    rounded = lm.load_peft(saved, config)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16).astype(jnp.float32)),
        rounded,
        exact,
    )
