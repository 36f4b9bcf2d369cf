"""Dropout as torch's modules apply it, drawn from counters.

Whether a number is kept follows from (chain, step, row, layer, site) and its place in the row, by
two rounds of a 32-bit hash: no state, no stored mask, the same draw on every device and in every
grouping of chains. The gradient draws the mask again instead of keeping it.

Dimensions: R rows of a program (of all its chains), C chains, B rows of a chain.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Where something may be dropped: in the model's own layers, in a classifier's head, and at the
# input of each LoRA target. The order numbers the draws.
SITES = (
    "embedding",
    "attention",
    "attention_output",
    "mlp_output",
    "head_input",
    "head_output",
    "q",
    "k",
    "v",
    "qkv",
    "o",
    "gate",
    "up",
    "down",
)

# Drops numbers of an array whose first axis is R rows, or their tokens one after another.
Drop = Callable[[jax.Array], jax.Array]
# What drops at each site of a layer; a site that is not there drops nothing.
Drops = Mapping[str, Drop]
NO_DROPS: Drops = {}


@dataclass(frozen=True)
class DropoutRates:
    """Rates at which a model's own layers drop numbers in training, as its config.json has them.

    Attributes:
        embedding: of what enters the first layer.
        attention: of the weights of attention, after the softmax.
        attention_output: of what attention adds to the residual stream.
        mlp_output: of what the mlp adds to it.
        layers: of whole layers (OPT's layerdrop), which is not computed: `lm.fit` refuses it.
    """

    embedding: float = 0.0
    attention: float = 0.0
    attention_output: float = 0.0
    mlp_output: float = 0.0
    layers: float = 0.0

    def by_site(self) -> dict[str, float]:
        """Return {site: rate} of the rates above 0."""
        names = ("embedding", "attention", "attention_output", "mlp_output")
        return {name: getattr(self, name) for name in names if getattr(self, name) > 0}


# What transformers takes where a config.json says nothing; OPT drops nothing of its embeddings.
DEFAULT_RATES = {
    "gpt2": DropoutRates(embedding=0.1, attention=0.1, attention_output=0.1, mlp_output=0.1),
    "opt": DropoutRates(attention_output=0.1, mlp_output=0.1),
    "llama": DropoutRates(),
    "qwen2": DropoutRates(),
}


class Dropout(NamedTuple):
    """The dropout of one step.

    Attributes:
        rates: {site: rate}, all above 0.
        keys_R2: what the draws of each row follow from, uint32.
    """

    rates: Mapping[str, float]
    keys_R2: jax.Array


def keys_of_rows(key: jax.Array, rows: int) -> jax.Array:
    """Return `Dropout.keys_R2` [rows, 2] of one chain's step, whose key [] is threefry."""
    of_row = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows, dtype=jnp.uint32))
    return jax.random.key_data(of_row)


def keys_of_step(keys_C: jax.Array, step_C: jax.Array, rows: int) -> jax.Array:
    """Return `Dropout.keys_R2` [C rows, 2] of a step of every chain, chain after chain."""
    of_step_C = jax.vmap(jax.random.fold_in)(keys_C, step_C)
    of_chain = functools.partial(keys_of_rows, rows=rows)
    return jax.vmap(of_chain)(of_step_C).reshape(-1, 2)


def drops_of_layer(dropout: Dropout | None, layer: int | jax.Array) -> Drops:
    """Return what drops at each site of a layer, whose number may be traced."""
    if dropout is None:
        return NO_DROPS
    return {
        site: functools.partial(_drop_at, dropout.keys_R2, layer, site, rate)
        for site, rate in dropout.rates.items()
    }


def apply(drops: Drops, site: str, x: jax.Array) -> jax.Array:
    """Return x after dropout at a site, x itself where nothing is dropped there."""
    return drops[site](x) if site in drops else x


def _drop_at(keys_R2, layer, site, rate, x):
    number = jnp.asarray(layer, jnp.uint32) * np.uint32(len(SITES)) + np.uint32(SITES.index(site))
    return drop(rate, keys_R2, number, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def drop(rate: float, keys_R2: jax.Array, number: jax.Array, x: jax.Array) -> jax.Array:
    """Return x with each number zero with probability `rate`, and divided by 1 - rate elsewhere.

    Args:
        rate: from 0 to below 1.
        keys_R2: uint32 keys of the rows.
        number: uint32 [], of the layer and site.
        x: its first axis is R, or R times as many tokens as a row has.
    """
    return _dropped(rate, keys_R2, number, x)


def _dropped(rate, keys_R2, number, x):
    rows = keys_R2.shape[0]
    x_RN = x.reshape(rows, -1)
    kept_RN = _bits(keys_R2, number, x_RN.shape[1]) >= np.uint32(round(rate * 2**32))
    scale = np.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(kept_RN, x_RN * scale, jnp.zeros_like(x_RN)).reshape(x.shape)


def _forward(rate, keys_R2, number, x):
    return _dropped(rate, keys_R2, number, x), (keys_R2, number)


def _backward(rate, kept, dy):
    keys_R2, number = kept
    return None, None, _dropped(rate, keys_R2, number, dy)


drop.defvjp(_forward, _backward)


def _bits(keys_R2, number, count):
    """Random bits [R, count] uint32.

    The finaliser is C. Wellons' "lowbias32" (nullprogram.com/blog/2018/07/31), with a second key
    between its two rounds, so that no two keys give runs of one sequence.
    """
    first_R = _hash(keys_R2[:, 0] + number * np.uint32(0x9E3779B9), np.uint32(0))
    second_R = _hash(keys_R2[:, 1] ^ (number * np.uint32(0x85EBCA6B)), np.uint32(0))
    counter_1N = jax.lax.broadcasted_iota(jnp.uint32, (1, count), 1)
    return _hash(counter_1N + first_R[:, None], second_R[:, None])


def _hash(x, key):
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15) ^ key) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)
