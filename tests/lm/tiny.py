"""A tiny model in code, texts, and settings that the tests of training and generation share."""

import dataclasses

import jax
import numpy as np

from jaxloop.config import FitConfig, LoraConfig, SampleConfig
from jaxloop.lm import family
from jaxloop.lm.family import GenerateOptions, TrainOptions
from jaxloop.lm.io import bpe
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.studies.pretrain.config import Base, PretrainConfig
from jaxloop.studies.pretrain.prepare import model_config

WORDS = [
    (a, b, c)
    for a in ("cat", "dog", "bird", "fish")
    for b in ("sat", "ran", "slept")
    for c in ("down", "away", "well", "late")
]
ENDS = (" and then went home again without a word.", ".", ".")
TEXTS = [f"The {a} {b} {c} near the old house{ENDS[i % 3]}" for i, (a, b, c) in enumerate(WORDS)]
PROMPTS = ["### User:\nWrite.\n### Assistant:\n"] * len(TEXTS)
FIT = FitConfig(
    lora=LoraConfig(rank=4, alpha=8.0),
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
    length_buckets=1,
)
TRAIN = TrainOptions(steps_per_call=4)
SAMPLE = SampleConfig(
    max_new_tokens=24,
    slots=8,
    slots_per_adapter=4,
    texts_per_call=32,
    chains_per_call=4,
)
GENERATE = GenerateOptions(lora=FIT.lora, window=4)


def fit(model, tasks, config=FIT, options=TRAIN):
    return family.fit(model, tasks, config, options)


def generate(model, tasks, sample=SAMPLE, options=GENERATE):
    return family.generate(model, tasks, sample, options)


def first_layer(model: Model) -> Model:
    """The model without its other layers: its programs compile three times as fast."""
    layers = jax.tree.map(lambda leaf: leaf[:1], model.params["layers"])
    config = dataclasses.replace(model.config, num_layers=1)
    return model._replace(config=config, params=model.params | {"layers": layers})


def make_model() -> Model:
    tokenizer = bpe.train(TEXTS + PROMPTS, 320)
    config = ModelConfig(
        "llama",
        vocab_size=tokenizer.vocab_size,
        d_model=32,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=48,
        max_seq_len=96,
        init_scale=0.3,
    )
    return Model(config, init(jax.random.key(0), config), tokenizer, "tiny")


def opt_shapes() -> ModelConfig:
    """An OPT model as small as the bases in the box, of which none is an OPT."""
    base = Base(architecture="opt", width=160, layers=4, heads=5, kv_heads=5, mlp=640)
    return model_config(PretrainConfig(), base)


def with_head(vocab_size: int, d_model: int, **more) -> ModelConfig:
    """A model of which the head alone is read: it has its own output matrix."""
    return ModelConfig(
        "llama",
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=d_model,
        d_ff=d_model,
        max_seq_len=8,
        tie_word_embeddings=False,
        **more,
    )


def same(a, b):
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
