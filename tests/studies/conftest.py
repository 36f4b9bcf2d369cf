"""A small chain study on disk: human posts, a random one-layer model, a config."""

import json

import jax
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from tests import drawings

WORDS = (
    "the array of a function returns values shape matches input unless axis is given and result "
    "masked where data type float order copy view"
)


@pytest.fixture
def undrawn(monkeypatch):
    """A study's reports have no drawings."""
    drawings.leave_out(monkeypatch)


@pytest.fixture
def sketched(monkeypatch):
    """The drawings of a study's pages are not laid out, and files have none."""
    drawings.sketch(monkeypatch)


@pytest.fixture
def undrawn_pages(monkeypatch):
    """A study's pages have no drawings, which are in files alone."""
    drawings.leave_out(monkeypatch, files=False)


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """A folder with human posts (posts.jsonl), a tiny random model (base) and a config of two
    chains (study.py).
    """
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    texts = [
        " ".join(rng.choice(WORDS.split(), rng.integers(6, 20))).capitalize() + "."
        for _ in range(200)
    ]
    (folder / "posts.jsonl").write_text(
        "\n".join(
            json.dumps({"text": t, "kind": "even" if len(t) % 2 == 0 else "odd"}) for t in texts
        )
    )
    tokenizer = bpe.train(texts, 300)
    model_config = ModelConfig(
        "llama",
        vocab_size=300,
        d_model=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        d_ff=32,
        max_seq_len=64,
    )
    lm.save(Model(model_config, init(jax.random.key(0), model_config), tokenizer), folder / "base")
    (folder / "study.py").write_text(f'''"""Two small chains."""
from ml_collections import ConfigDict

def get_config():
    c = ConfigDict()
    c.study = "chain"
    c.title = "Two <small> chains"
    c.data = ConfigDict(
        dict(source="{folder}/posts.jsonl", min_tokens=5, max_tokens=80, instruction="Go.")
    )
    c.models = ConfigDict(dict(pool=("{folder}/base",)))
    c.chain = ConfigDict(
        dict(
            generations=2,
            size=16,
            ratios=("1/2", 1),
            seeds=(0,),
            eval_texts=8,
            heldout_texts=8,
        )
    )
    c.fit = ConfigDict(dict(steps=2, batch_size=4, max_length=48))
    c.sample = ConfigDict(dict(max_new_tokens=8, slots=8))
    c.run = ConfigDict(dict(keep_compiled=False))
    c.metrics = ("self_bleu", "held_out_loss", "text_length", "memorised_ngrams(n=1)")
    return c
''')
    return folder
