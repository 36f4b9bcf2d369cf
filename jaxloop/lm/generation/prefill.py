"""Filling the caches of prompts before decoding.

Dimensions: Z prompts, P prompt cache length, L layers, G key/value heads, K head size, C chains.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxloop.lm.generation.slots import PromptCache, map_over_devices
from jaxloop.lm.model import attention, rotary, transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.target import Target


def unstack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """Weights with "layers" as a list: sliced once, outside the loop."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [transformer.layer(params["layers"], i) for i in range(count)]}


@functools.partial(jax.jit, static_argnames=("config", "mesh", "target"))
def prefill(
    config: ModelConfig,
    params: dict[str, Any],
    adapters: dict[str, Any] | None,
    tokens_ZP: jax.Array,
    length_Z: jax.Array,
    mesh: Mesh | None = None,
    target: Target = Target(),
) -> PromptCache:
    """Compute the keys and values of prompts.

    Args:
        config: config of the model.
        params: weights, layers stacked or as a list.
        adapters: packed adapters of C chains, or None. The first Z / C prompts belong to the first
            chain, the next to the second, and so on.
        tokens_ZP: [Z, P + 1], right-padded. Padding is cached too and masked by the length.
        length_Z: [Z] real tokens of each prompt, at least 1.
        mesh: the devices over which chains and prompts are sharded, or None.
        target: what the program is compiled for.
    """
    run = functools.partial(_prefill, config, target)
    return map_over_devices(run, mesh, 1)(params, adapters, tokens_ZP, length_Z)


@jax.named_scope("prefill")
def _prefill(
    config: ModelConfig,
    target: Target,
    params: dict[str, Any],
    adapters: dict[str, Any] | None,
    tokens_ZP: jax.Array,
    length_Z: jax.Array,
) -> PromptCache:
    rows, seq_len = tokens_ZP.shape[0], tokens_ZP.shape[1] - 1
    last_Z = jnp.take_along_axis(tokens_ZP, (length_Z - 1)[:, None], 1)[:, 0]
    if not seq_len:
        empty = jnp.zeros((rows, config.num_kv_heads, 0, config.head_dim), params["embed"].dtype)
        caches = [empty] * config.num_layers
        return PromptCache(caches, caches, length_Z - 1, last_Z, tokens_ZP)
    keys_L: list[jax.Array] = []
    values_L: list[jax.Array] = []
    positions = jnp.broadcast_to(jnp.arange(seq_len)[None], (rows, seq_len)).reshape(-1)
    x_ND = transformer.embed(config, params, tokens_ZP[:, :seq_len].reshape(-1), positions)
    rope = rotary.rope_tables(config, positions)
    # A TPU's kernel wants whole blocks of tokens, which few prompts have.
    without_splash = dataclasses.replace(target, splash=False)
    causal = attention.causal(config, rows, seq_len, None, None, without_splash)

    def attend_and_cache(q, k, v):
        if rope is not None:
            q, k = rotary.rotate(q, *rope), rotary.rotate(k, *rope)
        for cache_L, x in ((keys_L, k), (values_L, v)):
            by_row = x.reshape(rows, seq_len, config.num_kv_heads, config.head_dim)
            cache_L.append(by_row.swapaxes(1, 2))
        return causal(q, k, v)

    for i in range(config.num_layers):
        adapter = None if adapters is None else transformer.adapter_layer(adapters, i)
        x_ND = transformer.block(config, _layer(params, i), adapter, x_ND, attend_and_cache)
    return PromptCache(keys_L, values_L, length_Z - 1, last_Z, tokens_ZP)


def _layer(params, i):
    if isinstance(params["layers"], list):
        return params["layers"][i]
    return transformer.layer(params["layers"], i)
