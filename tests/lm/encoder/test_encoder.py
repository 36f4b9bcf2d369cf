"""Encoders against torch: every architecture on random weights, whole sentence-transformers
directories, classification heads, refusals.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from jaxloop.lm.encoder import config as encoder_config
from jaxloop.lm.encoder import encoder as E
from jaxloop.lm.encoder import files
from tests.compiler import as_for_users
from tests.peers import peer

sentence_transformers = peer("sentence_transformers")
base = peer("sentence_transformers.base.modules")
readouts = peer("sentence_transformers.sentence_transformer.modules")
torch = peer("torch")
hf = peer("transformers", "torch")

hidden = jax.jit(E.hidden, static_argnums=0)

VOCAB = 300
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=300,
)
QWEN = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=300,
)
CONFIGS = {
    "bert": lambda **k: hf.BertConfig(**SMALL | k),
    # Five blocks of two layers: the first three, and the last two, share their weights.
    "albert": lambda **k: hf.AlbertConfig(
        **SMALL | dict(embedding_size=12, num_hidden_layers=5, num_hidden_groups=2) | k
    ),
    "roberta": lambda **k: hf.RobertaConfig(**SMALL | dict(type_vocab_size=1, pad_token_id=1) | k),
    "mpnet": lambda **k: hf.MPNetConfig(**SMALL | k),
    "distilbert": lambda **k: hf.DistilBertConfig(
        vocab_size=VOCAB,
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=300,
        **k,
    ),
    "qwen2": lambda **k: hf.Qwen2Config(**QWEN | k),
    "qwen2-both": lambda **k: hf.Qwen2Config(**QWEN | dict(is_causal=False) | k),
}
TEXTS = [
    "a cat sat on the mat",
    "the rat",
    "",
    "x",
    "hat " * 40,
    "and then the rat ran to the hat of the cat",
    "é 😀 مرحبا",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`folder("bert")` is the directory of a random model, its torch model in eval mode beside it;
    `classes` adds a classification head.
    """
    made = {}

    def get(name: str, classes: int = 0, **changes):
        key = (name, classes, *changes)
        if key not in made:
            torch.manual_seed(len(made))
            config = CONFIGS[name](**changes)
            if classes:
                config.num_labels = classes
            model = (
                (hf.AutoModelForSequenceClassification if classes else hf.AutoModel)
                .from_config(config)
                .eval()
            )
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(torch.randn(p.shape) * (0.15 if p.ndim > 1 else 0.3))
            path = tmp_path_factory.mktemp("encoders") / name
            model.save_pretrained(path)
            write_tokenizer(path)
            made[key] = path, model
        return made[key]

    return get


def write_tokenizer(path: Path):
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    backend.train_from_iterator(
        ["the cat sat on the mat and then the rat ran to the hat"],
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token="<s>",
        sep_token="</s>",
        model_max_length=64,
    )
    tokenizer.save_pretrained(path)


def batch(rows=3, time=7, seed=0):
    rng = np.random.default_rng(seed)
    length = np.array([time, *rng.integers(1, time, rows - 1)])
    return rng.integers(4, VOCAB, (rows, time)).astype(np.int32), length.astype(np.int32)


def padded(tokens, length, pad=1):
    real = np.arange(tokens.shape[1])[None] < length[:, None]
    return torch.tensor(np.where(real, tokens, pad), dtype=torch.long), torch.tensor(
        real.astype(np.int64)
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_equal_torch(folder, name):
    path, model = folder(name)
    ours = files.load_encoder(path)
    tokens, length = batch()
    ids, mask = padded(tokens, length)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).last_hidden_state.numpy()
    found = np.asarray(hidden(ours.config, ours.params, jnp.asarray(tokens), jnp.asarray(length)))
    real = mask.numpy().astype(bool)
    assert np.abs(found - theirs)[real].max() < 2e-4


def test_directions_differ(folder):
    """Attention in both directions is read from the config: the first token's state depends on what
    follows, or does not.
    """
    for name, depends in (("qwen2", False), ("qwen2-both", True)):
        ours = files.load_encoder(folder(name)[0])
        tokens, length = batch(rows=1)
        other = tokens.copy()
        other[0, -1] = (other[0, -1] + 1) % VOCAB
        first = [
            np.asarray(hidden(ours.config, ours.params, jnp.asarray(t), jnp.asarray(length)))[0, 0]
            for t in (tokens, other)
        ]
        assert (np.abs(first[0] - first[1]).max() > 1e-4) == depends


def test_gte_code_means_both_directions(folder, tmp_path):
    """stella_en_1.5B_v5 names its own model code, whose attention is never causal, and its config
    says no more.
    """
    path, _ = folder("qwen2")
    config = json.loads((path / "config.json").read_text()) | {
        "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert not encoder_config.read_encoder_config(tmp_path).causal
    assert encoder_config.read_encoder_config(path).causal
    (tmp_path / "config.json").write_text(json.dumps(config | {"is_causal": True}))
    assert encoder_config.read_encoder_config(tmp_path).causal


@pytest.mark.parametrize("time", [2, 17, 260])
def test_relative_buckets_equal_transformers(time):
    mpnet = peer("transformers.models.mpnet.modeling_mpnet", "torch")
    apart = torch.arange(time)[None] - torch.arange(time)[:, None]
    assert (
        E.relative_buckets(time, 32, 128)
        == mpnet.MPNetEncoder.relative_position_bucket(apart).numpy()
    ).all()


@pytest.mark.parametrize("mode", encoder_config.POOLINGS)
def test_pooling_equals_sentence_transformers(mode):
    rng = np.random.default_rng(1)
    x, length = rng.standard_normal((4, 6, 8)).astype(np.float32), np.array([6, 1, 3, 5])
    mask = torch.tensor((np.arange(6)[None] < length[:, None]).astype(np.int64))
    features = {"token_embeddings": torch.tensor(x), "attention_mask": mask}
    theirs = readouts.Pooling(8, pooling_mode=mode)(features)["sentence_embedding"].numpy()
    np.testing.assert_allclose(
        np.asarray(E.pool(mode, jnp.asarray(x), jnp.asarray(length))), theirs, atol=1e-5
    )


MODULES = {
    "bert": lambda: [readouts.Pooling(32, pooling_mode="mean"), base.Normalize()],
    "roberta": lambda: [readouts.Pooling(32, pooling_mode=("cls", "max"))],
    "mpnet": lambda: [
        readouts.Pooling(32, pooling_mode="mean_sqrt_len_tokens"),
        base.Dense(32, 24),
        base.Dense(24, 5, bias=False, activation_function=torch.nn.Identity()),
    ],
    "qwen2-both": lambda: [
        readouts.Pooling(32, pooling_mode="mean"),
        base.Dense(32, 24, activation_function=torch.nn.Identity()),
    ],
}


@pytest.mark.parametrize("name", as_for_users(MODULES, "mpnet"))
def test_directory_equals_sentence_transformers(folder, tmp_path, name):
    path, _ = folder(name)
    transformer = base.Transformer(str(path), max_seq_length=20)
    theirs = sentence_transformers.SentenceTransformer(
        modules=[transformer, *MODULES[name]()], device="cpu"
    )
    theirs.save(str(tmp_path))
    expected = theirs.encode(TEXTS, show_progress_bar=False)
    ours = files.load_encoder(tmp_path)
    assert ours.limit == 20
    ids = E.token_ids(ours, TEXTS)

    def run(tokens, length):
        return E.sentence_embedding(ours.config, ours.readout, ours.params, tokens, length)

    found = E.over_batches(run, ids, limit=ours.limit, batch=40)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_legacy_pooling_file(folder, tmp_path):
    (tmp_path / "modules.json").write_text(
        json.dumps(
            [
                {"path": "", "type": "sentence_transformers.models.Transformer"},
                {"path": "p", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (tmp_path / "p").mkdir()
    (tmp_path / "p/config.json").write_text(
        json.dumps(
            {
                "word_embedding_dimension": 32,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_cls_token": True,
                "pooling_mode_max_tokens": False,
            }
        )
    )
    assert files.read_modules(tmp_path)[1] == E.Readout(("cls", "mean"))


def test_default_prompt_is_put_before_every_text(folder, tmp_path):
    path, _ = folder("bert")
    modules = [base.Transformer(str(path), max_seq_length=20), readouts.Pooling(32)]
    theirs = sentence_transformers.SentenceTransformer(
        modules=modules, device="cpu", prompts={"about": "the mat: "}, default_prompt_name="about"
    )
    theirs.save(str(tmp_path))
    ours = files.load_encoder(tmp_path)
    assert E.token_ids(ours, ["rat"]) == E.token_ids(ours._replace(prefix=""), ["the mat: rat"])
    found = E.sentence_embedding(
        ours.config, ours.readout, ours.params, *_rows(E.token_ids(ours, ["rat"]))
    )
    np.testing.assert_allclose(found, theirs.encode(["rat"], show_progress_bar=False), atol=2e-4)


def _rows(ids):
    return np.array(ids, np.int32), np.array([len(i) for i in ids], np.int32)


@pytest.mark.parametrize("name", ["bert", "albert", "roberta", "mpnet", "distilbert", "qwen2"])
def test_classification_heads_equal_torch(folder, name):
    path, model = folder(name, classes=3, pad_token_id=1)
    ours = files.load_classifier(path)
    tokens, length = batch(seed=2)
    ids, mask = padded(tokens, length)
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).logits
    found = np.asarray(
        E.class_logits(ours.config, ours.params, jnp.asarray(tokens), jnp.asarray(length))
    )
    np.testing.assert_allclose(found, theirs.numpy(), atol=3e-4)
    shares = np.asarray(E.class_probabilities(ours.config, ours.params, tokens, length))
    np.testing.assert_allclose(shares, theirs.softmax(-1).numpy(), atol=1e-4)
    assert ours.config.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and not ours.config.multi_label


def test_gradients_of_shared_layers_equal_torch(folder):
    path, model = folder("albert", classes=3, pad_token_id=1)
    ours = files.load_classifier(path)
    tokens, length = batch(seed=3)
    ids, mask = padded(tokens, length)
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])).backward()
    theirs = {name: p.grad.numpy() for name, p in model.named_parameters()}
    model.zero_grad()

    def loss(params):
        logits = E.class_logits(ours.config, params, jnp.asarray(tokens), jnp.asarray(length))
        return -jax.nn.log_softmax(logits)[jnp.arange(3), jnp.array([0, 2, 1])].mean()

    found = jax.jit(jax.grad(loss))(ours.params)
    assert len(found["layers"]) == 2
    for group, layer in enumerate(found["layers"]):
        of_group = f"albert.encoder.albert_layer_groups.{group}.albert_layers.0."
        wanted = theirs[of_group + "ffn.weight"].T
        np.testing.assert_allclose(layer["up"], wanted, rtol=2e-3, atol=1e-4 * abs(wanted).max())
    wanted = theirs["albert.encoder.embedding_hidden_mapping_in.weight"].T
    np.testing.assert_allclose(found["embed_map"], wanted, rtol=2e-3, atol=1e-4 * abs(wanted).max())


def test_labels_come_from_the_config_or_are_given(folder, tmp_path):
    path, _ = folder("distilbert", classes=3)
    config = json.loads((path / "config.json").read_text()) | {
        "id2label": {"0": "clean", "2": "noise", "1": "mild"},
        "problem_type": "multi_label_classification",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    config = encoder_config.read_encoder_config(tmp_path, head=True)
    assert config.labels == ("clean", "mild", "noise") and config.multi_label
    assert encoder_config.read_encoder_config(
        tmp_path, head=True, labels=["a", "b", "c"]
    ).labels == (
        "a",
        "b",
        "c",
    )
    with pytest.raises(ValueError, match="labels: 2 names for the 3 classes"):
        encoder_config.read_encoder_config(tmp_path, head=True, labels=["a", "b"])


def test_gamma_and_beta_are_read(folder, tmp_path):
    """BERT's first checkpoints call a norm's scale and shift so."""
    from safetensors.numpy import load_file, save_file

    path, _ = folder("bert")
    tensors = load_file(path / "model.safetensors")
    old = {
        f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in tensors.items()
    }
    assert set(old) & {"bert.embeddings.LayerNorm.gamma"}
    save_file(old, tmp_path / "model.safetensors")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    ours, renamed = files.load_encoder(path), files.load_encoder(tmp_path)
    np.testing.assert_array_equal(
        ours.params["embed_norm_scale"], renamed.params["embed_norm_scale"]
    )
    np.testing.assert_array_equal(
        ours.params["layers"][1]["norm2_bias"], renamed.params["layers"][1]["norm2_bias"]
    )


@pytest.mark.optimised
def test_rows_do_not_depend_on_their_neighbours(folder):
    ours = files.load_encoder(folder("bert")[0])

    def run(tokens, length):
        return E.sentence_embedding(ours.config, ours.readout, ours.params, tokens, length)

    ids = E.token_ids(ours, TEXTS)
    together = E.over_batches(run, ids, limit=ours.limit, batch=64)
    for order in (range(len(ids)), reversed(range(len(ids)))):
        for i in order:
            np.testing.assert_array_equal(
                E.over_batches(run, [ids[i]], limit=ours.limit, batch=64)[0], together[i]
            )


def test_long_texts_are_cut_as_the_tokenizer_says(folder):
    ours = files.load_encoder(folder("roberta")[0])
    assert ours.limit == 64  # model_max_length of the tokenizer, below the 298 positions
    (ids,) = E.token_ids(ours, ["cat " * 500])
    assert len(ids) == 64 and ids[0] == 0 and ids[-1] == 2
    assert files.load_encoder(folder("roberta")[0], max_length=9).limit == 9
    with pytest.raises(ValueError, match="max_length: 299 tokens are not allowed; 3 to 298"):
        files.load_encoder(folder("roberta")[0], max_length=299)


def test_eos_is_added_where_the_tokenizer_asks_for_it(folder, tmp_path):
    """gte-Qwen2's tokenizer code appends the EOS token; tokenizer.json alone does not."""
    path, _ = folder("qwen2")
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    backend = json.loads((tmp_path / "tokenizer.json").read_text()) | {"post_processor": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(backend))
    assert E.token_ids(files.load_encoder(tmp_path), ["a cat"])[0][-1] != 2
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {
        "add_eos_token": True
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (ids,) = E.token_ids(
        files.load_encoder(tmp_path, max_length=5), ["a cat sat on the mat and then"]
    )
    assert len(ids) == 5 and ids[-1] == 2


def test_what_is_not_computed_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        files.load_encoder(tmp_path / "none")
    path, _ = folder("bert")
    config = json.loads((path / "config.json").read_text())
    for field, value in dict(
        model_type="t5", position_embedding_type="relative_key", is_decoder=True, hidden_act="mish"
    ).items():
        (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
        with pytest.raises(files.Unsupported, match=str(value)):
            files.load_encoder(tmp_path)
    transformer = base.Transformer(str(path))
    odd = sentence_transformers.SentenceTransformer(
        modules=[transformer, readouts.Pooling(32), readouts.LayerNorm(32)], device="cpu"
    )
    odd.save(str(tmp_path / "odd"))
    with pytest.raises(files.Unsupported, match="LayerNorm"):
        files.load_encoder(tmp_path / "odd")
    even = sentence_transformers.SentenceTransformer(
        modules=[transformer, readouts.Pooling(32)], device="cpu"
    )
    even.save(str(tmp_path / "cut"))
    settings = json.loads((tmp_path / "cut" / "config_sentence_transformers.json").read_text()) | {
        "truncate_dim": 8
    }
    (tmp_path / "cut" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert sentence_transformers.SentenceTransformer(str(tmp_path / "cut"), device="cpu").encode(
        ["a cat"]
    ).shape == (1, 8)
    with pytest.raises(files.Unsupported, match="truncate_dim = 8"):
        files.load_encoder(tmp_path / "cut")
