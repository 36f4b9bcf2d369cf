"""Decoders against `transformers`: logits, saving, loading, what is refused."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxloop import lm
from jaxloop.lm.model import config as specs
from jaxloop.lm.model import transformer
from tests.compiler import as_for_users
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")

NAMES = [
    "gpt2",
    "gpt2-inner",
    "opt",
    "opt-350m",
    "opt-plain",
    "llama",
    "smollm",
    "falcon3",
    "llama-bias",
    "qwen2",
    "deep",
]
TOLERANCE = 2e-4  # absolute, float32, logits of order one to ten


forward = jax.jit(lm.forward, static_argnums=0)


@functools.cache
def batch(rows=4, time=20, vocab=320):
    """Tokens, and a mask with a full row, two left-padded rows and a right-padded one."""
    tokens = np.random.default_rng(0).integers(3, vocab, (rows, time)).astype(np.int32)
    mask = np.ones((rows, time), bool)
    mask[1, :5] = mask[2, :13] = mask[3, 9:] = False
    return np.where(mask, tokens, 0), mask


def torch_logits(model, tokens, mask=None):
    """Logits of `transformers`, with the positions that its `generate` gives to padded rows."""
    given = {}
    if mask is not None:
        given["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if model.config.model_type != "opt":  # OPT derives them from the mask itself
            given["position_ids"] = torch.from_numpy(np.maximum(mask.cumsum(-1) - 1, 0))
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), **given).logits.float().numpy()


@pytest.mark.parametrize("name", as_for_users(NAMES, "gpt2"))
def test_logits_equal_those_of_transformers_padded_or_not(name, checkpoint, loaded):
    model, (tokens, mask) = loaded(name), batch()
    theirs = torch_logits(checkpoint(name).torch, tokens)
    assert np.ptp(theirs) > 2  # the comparison has something to compare
    np.testing.assert_allclose(
        forward(model.config, model.params, tokens), theirs, atol=TOLERANCE, rtol=0
    )
    ours = np.asarray(forward(model.config, model.params, tokens, mask=mask))
    assert ours.dtype == np.float32
    np.testing.assert_allclose(
        ours[mask], torch_logits(checkpoint(name).torch, tokens, mask)[mask], atol=TOLERANCE, rtol=0
    )
    # Right padding needs no mask: the real part of a right-padded row is the same without one.
    np.testing.assert_allclose(
        forward(model.config, model.params, tokens)[3, :9], ours[3, :9], atol=1e-5, rtol=0
    )


def test_bidirectional_leak_is_absent(loaded):
    model, (tokens, _) = loaded("llama"), batch()
    changed = tokens.copy()
    changed[:, 12:] = 7
    a, b = (np.asarray(forward(model.config, model.params, t)) for t in (tokens, changed))
    np.testing.assert_array_equal(a[:, :12], b[:, :12])
    assert np.abs(a[:, 12:] - b[:, 12:]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_saved_directory_is_read_by_transformers(name, loaded, checkpoint, tmp_path):
    model, (tokens, _) = loaded(name), batch()
    lm.save(model, tmp_path / "saved")
    assert not list(tmp_path.glob("*.tmp"))
    theirs, told = hf.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert theirs.config.eos_token_id == 2
    np.testing.assert_allclose(
        torch_logits(theirs.eval(), tokens),
        torch_logits(checkpoint(name).torch, tokens),
        atol=1e-6,
        rtol=0,
    )
    text = "the cat sat"
    assert (
        hf.AutoTokenizer.from_pretrained(tmp_path / "saved")(text).input_ids
        == model.tokenizer.encode([text])[0]
    )
    again = lm.load(tmp_path / "saved")
    assert again.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_saving_over_an_older_model_leaves_one_model(loaded, checkpoint, tmp_path):
    checkpoint("gpt2").torch.save_pretrained(tmp_path / "m", max_shard_size="30KB")
    lm.save(loaded("qwen2"), tmp_path / "m")
    jax.tree.map(
        np.testing.assert_array_equal, lm.load(tmp_path / "m").params, loaded("qwen2").params
    )
    hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_many_safetensors_files_with_an_index(checkpoint, loaded, tmp_path):
    checkpoint("llama").torch.save_pretrained(tmp_path, max_shard_size="30KB")
    shutil.copy(checkpoint("llama").path / "tokenizer.json", tmp_path)
    assert (
        len(list(tmp_path.glob("*.safetensors"))) > 3
        and (tmp_path / "model.safetensors.index.json").exists()
    )
    jax.tree.map(np.testing.assert_array_equal, lm.load(tmp_path).params, loaded("llama").params)
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ValueError, match="named by model.safetensors.index.json, is missing"):
        lm.load(tmp_path)


def test_other_safetensors_beside_the_model_are_not_read(copy, loaded):
    path = copy("llama")
    weights = load_file(path / "model.safetensors")
    save_file({k: np.zeros_like(v) for k, v in weights.items()}, path / "consolidated.safetensors")
    jax.tree.map(np.testing.assert_array_equal, lm.load(path).params, loaded("llama").params)


def test_config_files_of_older_transformers_are_read_alike(copy, loaded):
    path = copy("llama")
    rope = json.loads((path / "config.json").read_text())["rope_parameters"]
    edit(
        path,
        rope_parameters=...,
        rope_theta=rope.pop("rope_theta"),
        rope_scaling=rope,
        dtype=...,
        torch_dtype="float32",
    )
    assert lm.load(path).config == loaded("llama").config
    edit(path, rope_scaling=None)
    assert lm.load(path).config.rope_scaling is None and lm.load(path).config.rope_theta == 500000


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_checkpoints_of_the_bare_model_have_no_prefix(name, checkpoint, loaded, tmp_path):
    base = checkpoint(name).torch.base_model
    base.save_pretrained(tmp_path)
    config = json.loads((checkpoint(name).path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(checkpoint(name).path / "tokenizer.json", tmp_path)
    jax.tree.map(np.testing.assert_array_equal, lm.load(tmp_path).params, loaded(name).params)


def test_saving_over_a_model_leaves_a_whole_one_at_every_moment(checkpoint, tmp_path, monkeypatch):
    """Cut at each rename, what lies at the path is the old model or the new one, never a mixture; a
    model card stays.
    """
    first, second = lm.load(checkpoint("llama").path), lm.load(checkpoint("gpt2").path)
    real, cut_at = Path.replace, [99]

    def replace(source, target):
        cut_at[0] -= 1
        if cut_at[0] < 0:
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    for moment in range(3):
        place = tmp_path / str(moment) / "model"
        cut_at[0] = 99
        place.parent.mkdir()
        lm.save(first, place)
        (place / "README.md").write_text("card")
        cut_at[0] = moment
        try:
            lm.save(second, place)
            assert moment == 2
        except KeyboardInterrupt:
            assert moment < 2
        there = place if place.exists() else place.with_name("model.old")
        assert lm.load(there).config == (second if moment == 2 else first).config
        assert (there / "README.md").read_text() == "card" and (moment == 1) == (there != place)


def test_bfloat16_is_loaded_and_saved_without_a_detour(checkpoint, tmp_path):
    model = lm.load(checkpoint("llama").path, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    exact = lm.load(checkpoint("llama").path).params
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b).astype(ml_dtypes.bfloat16)
        ),
        model.params,
        exact,
    )
    lm.save(model, tmp_path / "m")
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert theirs.dtype == torch.bfloat16
    tokens, _ = batch()
    ours = np.asarray(forward(model.config, model.params, tokens))
    assert ours.dtype == np.float32
    # Both round every product to 8 bits, in different places: compare with the float32 logits of
    # the same rounded weights.
    reference = torch_logits(theirs.eval().float(), tokens)
    rounding = np.abs(torch_logits(theirs.bfloat16(), tokens) - reference).mean()
    assert np.abs(ours - reference).mean() < 1.5 * rounding
    reread = lm.load(tmp_path / "m", dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, reread.params, model.params)


def test_scanned_layers_equal_unrolled_ones(loaded, monkeypatch):
    model, (tokens, mask) = loaded("deep"), batch()
    assert model.config.num_layers > transformer.UNROLL
    scanned = forward(model.config, model.params, tokens, mask=mask)
    monkeypatch.setattr(transformer, "UNROLL", model.config.num_layers)
    unrolled = jax.jit(functools.partial(lm.forward, model.config))(model.params, tokens, mask=mask)
    np.testing.assert_allclose(scanned, unrolled, atol=1e-5, rtol=0)


def test_rematerialised_layers_give_the_same_gradient(loaded):
    model, (tokens, _) = loaded("llama"), batch()

    @functools.partial(jax.jit, static_argnums=1)
    def grad(params, remat):
        return jax.grad(
            lambda p: (transformer.hidden(model.config, p, tokens, remat=remat) ** 2).sum()
        )(params)

    plain, again = grad(model.params, False), grad(model.params, True)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-4 * float(np.abs(a).max())
        ),
        plain,
        again,
    )


@pytest.mark.parametrize(
    "name", as_for_users(["gpt2", "opt-350m", "llama-bias", "falcon3"], "llama-bias")
)
def test_gradients_of_all_weights_equal_those_of_torch(name, loaded, checkpoint, tmp_path):
    model, (tokens, mask) = loaded(name), batch()
    use = (mask[:, 1:] & mask[:, :-1]).astype(np.float32)

    @jax.jit
    def grad(params):
        def loss(p):
            log_p = jax.nn.log_softmax(lm.forward(model.config, p, tokens, mask=mask)[:, :-1])
            return (
                -(jnp.take_along_axis(log_p, tokens[:, 1:, None], -1)[..., 0] * use).sum()
                / use.sum()
            )

        return jax.grad(loss)(params)

    lm.save(
        model._replace(params=grad(model.params)), tmp_path / "gradient"
    )  # under the names of the file
    ours, theirs = load_file(tmp_path / "gradient" / "model.safetensors"), checkpoint(name).torch
    given = (
        {}
        if name.startswith("opt")
        else dict(position_ids=torch.from_numpy(np.maximum(mask.cumsum(-1) - 1, 0)))
    )
    logits = theirs(
        torch.from_numpy(tokens).long(), attention_mask=torch.from_numpy(mask).long(), **given
    ).logits
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1),
        torch.from_numpy(tokens[:, 1:]).long().flatten(),
        reduction="none",
    )
    theirs.zero_grad()
    ((nll * torch.from_numpy(use).flatten()).sum() / float(use.sum())).backward()
    compared = 0
    for key, p in theirs.named_parameters():
        expected = p.grad.numpy()
        if "embed_tokens" in key or "embed_positions" in key:
            continue  # torch's padding_idx drops the gradient of one row
        assert np.linalg.norm(ours[key] - expected) <= 1e-3 * np.linalg.norm(expected) + 1e-7, key
        compared += 1
    theirs.zero_grad(set_to_none=True)
    assert compared >= 16


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "falcon3", "qwen2"])
def test_random_initialisation_has_the_statistics_of_the_architecture(name, loaded, checkpoint):
    config = loaded(name).config
    params = specs.init(jax.random.key(0), config)
    assert jax.tree.structure(params) == jax.tree.structure(loaded(name).params)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, loaded(name).params)
    assert specs.count_parameters(config) == sum(
        p.numel() for p in checkpoint(name).torch.parameters()
    )
    assert abs(float(params["embed"].std()) / config.init_scale - 1) < 0.05
    assert (
        abs(
            float(params["layers"]["down"].std())
            * (2 * config.num_layers) ** 0.5
            / config.init_scale
            - 1
        )
        < 0.1
    )
    assert float(params["layers"]["norm1_scale"].min()) == 1 and all(
        float(x.max()) == 0 for k, x in params["layers"].items() if k.endswith("_bias")
    )


def test_a_real_pretrained_model_continues_its_own_story(shared):
    path = shared("weights/stories260K")
    model = lm.load(path)
    story = (path / "ORIGIN.md").read_text().split('Greedy continuation of BOS: "')[1].split('"')[0]
    length, tokens = 96, np.zeros((1, 96), np.int32)
    tokens[0, 0] = model.tokenizer.bos
    for t in range(1, length):
        tokens[0, t] = int(forward(model.config, model.params, tokens)[0, t - 1].argmax())
    assert model.tokenizer.decode([tokens[0]])[0].startswith(story)


# What is refused, in one sentence.


@pytest.fixture
def copy(checkpoint, tmp_path):
    def make(name="llama"):
        return shutil.copytree(checkpoint(name).path, tmp_path / "copy", dirs_exist_ok=True)

    return make


def edit(path, **fields):
    file = path / "config.json"
    config = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        lm.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_refused(tmp_path):
    refused(tmp_path / "nothing", "does not exist")
    refused("./nothing", "does not exist")
    refused("~nobody-here/model", "directory ~nobody-here/model does not exist")
    refused(tmp_path, "has no config.json")
    refused("nobody/no-such-model", "neither a directory here nor reachable on the hub")


@pytest.mark.parametrize(
    ("name", "fields", "match"),
    [
        (
            "llama",
            dict(model_type="mamba"),
            "model_type 'mamba' .* is not supported; allowed are .*llama",
        ),
        ("llama", dict(model_type=...), "model_type None"),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="su", factor=2.0, rope_theta=1e4)),
            "rope_type = 'su' is not supported",
        ),
        ("llama", dict(hidden_act="relu6"), "hidden_act = 'relu6' is not supported"),
        (
            "qwen2",
            dict(use_sliding_window=True, layer_types=..., sliding_window=16, max_window_layers=1),
            "sliding_window = 16 is not supported",
        ),
        (
            "gpt2",
            dict(scale_attn_by_inverse_layer_idx=True),
            "scale_attn_by_inverse_layer_idx = True",
        ),
        ("opt", dict(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine = False"),
        ("llama", dict(num_attention_heads=6), "shape"),
        ("llama", dict(hidden_size=...), "has no field 'hidden_size', which llama models need"),
        (
            "llama",
            dict(rope_parameters=dict(rope_type="llama3", rope_theta=1e4)),
            "has no field 'factor'",
        ),
        ("llama", dict(num_hidden_layers=3), r"tensor model\.layers\.2\..* is missing"),
        ("llama", dict(tie_word_embeddings=False), "tensor lm_head.weight is missing"),
        (
            "opt-350m",
            dict(word_embed_proj_dim=32),
            r"tensor .* has shape \(320, 16\); \(320, 32\) is expected",
        ),
    ],
)
def test_a_config_that_would_not_be_computed_exactly_is_refused(name, fields, match, copy):
    path = copy(name)
    edit(path, **fields)
    refused(path, match)


def test_a_broken_config_file_is_refused(copy):
    path = copy()
    (path / "config.json").write_text("{")
    refused(path, "config.json cannot be read")


def test_pickled_weights_are_refused_and_never_opened(copy):
    path = copy()
    (path / "model.safetensors").unlink()
    refused(path, "no \\*.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    refused(path, "but pytorch_model.bin, which is never unpickled")


def test_missing_and_misshapen_tensors_are_refused(copy):
    path = copy()
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, path / "model.safetensors")
    refused(path, f"tensor {name} is missing")
    save_file(tensors | {name: tensors[name][:, :-1].copy()}, path / "model.safetensors")
    refused(path, f"tensor {name} has shape")


@pytest.mark.parametrize("keep", [0, 4, 2000, -100])
def test_truncated_weights_are_refused(keep, copy):
    path = copy()
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[:keep])
    refused(path, "safetensors of .* cannot be read")


def test_a_tokenizer_without_eos_is_refused(copy):
    path = copy()
    for file in path.glob("*config.json"):
        kept = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith("eos")}
        file.write_text(json.dumps(kept))
    refused(path, "has no EOS token")


def test_an_eos_outside_the_vocabulary_is_refused(copy):
    path = copy()
    for file in path.glob("*config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(eos_token_id=999)))
    refused(path, "EOS token 999 .* outside the model's vocabulary of 320")


def test_a_sequence_longer_than_the_context_is_refused(loaded):
    model = loaded("gpt2")
    with pytest.raises(ValueError, match="tokens: 65 tokens exceed the model's context of 64"):
        lm.forward(model.config, model.params, jnp.ones((1, 65), jnp.int32))
