"""A world for tests of the recursive-loops experiments: posts of two kinds, a random one-layer
model, an encoder of letters.
"""

import json
from pathlib import Path

import jax
import numpy as np

from jaxloop import config, lm
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.studies.recursive_loops.config import LoopsConfig

CATS = "cat kitten purr whisker fish sofa nap claw basket tail window mouse".split()
STARS = "star orbit planet comet moon telescope gravity dust nebula light rocket sun".split()


def posts(count: int = 240, seed: int = 0) -> list[dict]:
    """Rows with text, party and title; cats are of the left."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        words = CATS if i % 2 else STARS
        text = " ".join(rng.choice(words, rng.integers(6, 18))).capitalize() + f" {i}."
        rows.append({"text": text, "party": "D" if i % 2 else "R", "title": f"Post {i}"})
    return rows


def build(folder: Path, count: int = 240) -> Path:
    """posts.jsonl, other.jsonl and two bases in a folder."""
    for name, seed in (("posts", 0), ("other", 1)):
        (folder / f"{name}.jsonl").write_text(
            "\n".join(json.dumps(row) for row in posts(count, seed))
        )
    tokenizer = bpe.train([row["text"] for row in posts(count)], 300)
    for i, base in enumerate(("base", "second")):
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
        lm.save(
            Model(model_config, init(jax.random.key(i), model_config), tokenizer), folder / base
        )
    return folder


def raw(folder: Path, **changes) -> dict:
    """A config as a dict; changes replace fields of sections: chain={...}."""
    base = {
        "study": "loops",
        "tokens": "model",
        "quality": "type_token_ratio",
        "domains": {"posts": {"source": [f"{folder}/posts.jsonl"], "instruction": "Go."}},
        "models": {"pool": [f"{folder}/base"]},
        "chain": {"generations": 2, "size": 16, "ratios": [0.5], "seeds": [0], "eval_texts": 8},
        "fit": {"steps": 2, "epochs": None, "batch_size": 4, "max_length": 48, "length_buckets": 1},
        "sample": {"max_new_tokens": 8, "slots": 8},
        "run": {"keep_compiled": False},
        "metrics": ["cosine_diversity", "lexical_diversity", "text_length"],
    }
    for name, value in changes.items():
        base[name] = (
            {**base[name], **value}
            if isinstance(value, dict) and name in base and name != "domains"
            else value
        )
    return base


def settings(folder: Path, **changes) -> LoopsConfig:
    return config.build(LoopsConfig, raw(folder, **changes))


def write(path: Path, given: dict) -> Path:
    """A config file of a dict."""
    path.write_text(
        '"""A study of a test."""\nfrom ml_collections import ConfigDict\n\n\ndef '
        f"get_config():\n    return ConfigDict({given!r})\n"
    )
    return path
