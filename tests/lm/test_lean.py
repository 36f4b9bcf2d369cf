"""Training in bfloat16 as an accelerator runs it, on a CPU: torch in float32 as the referee, and the properties that every layout must keep."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloop import lm
from jaxloop.kernels.map_chains import chain_mesh
from jaxloop.lm import adapters, lean, loss, train
from jaxloop.lm.adapters import Lora
from jaxloop.lm.spec import sites
from jaxloop.lm.target import Target
from jaxloop.lm.train import FitSettings
from tests.lm.random_adapters import random_adapters
from tests.peers import peer

torch = peer("torch")
hf = peer("transformers", "torch")
peft = peer("peft", "torch")

GPU = Target("gpu")
LORA = Lora(rank=4, alpha=8.0)
FIT = FitSettings(lora=LORA, dtype="bfloat16", batch_size=3, learning_rate=1e-2, steps_per_dispatch=4)
FOUR = ["llama", "qwen2", "opt", "gpt2"]


def half(params):
    """Weights rounded to bfloat16."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), params)


def batch(chains, rows=3, time=24, seed=1):
    """Tokens, a mask with some of them left out, and weights of the samples, of every chain."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 320, (chains, rows, time)).astype(np.int32)
    return tokens, rng.random(tokens.shape) < 0.8, (0.5 + rng.random((chains, rows))).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 5))
def gradient(spec, settings, base, weights, batch, target):
    """(losses [C], gradient of their sum)."""

    def total(weights):
        each = train.losses(spec, settings, base, weights, *batch, jax.random.split(jax.random.key(0), len(batch[0])), jnp.zeros(len(batch[0]), jnp.int32), target)
        return each.sum(), each

    grads, each = jax.grad(total, has_aux=True)(weights)
    return each, grads


def far(a, b):
    """||a - b|| / ||b|| over all leaves of two trees."""
    a, b = (np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


