"""The one transformer block, and the decoder around it.

Training, prefill and decoding differ in the `attend` they pass in.

Dimensions: C chains, B rows a chain, T tokens of a row, N = C B T tokens in one axis, D model, E
embedding, H query heads, G key/value heads, K head size, V vocabulary, L layers. Tokens stay
flattened to [N, D] so that every base projection is one large product over chains, rows and time;
only the adapter's product sees the chain axis.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxloop.lm.generation.row_adapters import project
from jaxloop.lm.model import attention, rotary, split_layers
from jaxloop.lm.model import dropout as dropouts
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.dropout import NO_DROPS, Dropout, Drops
from jaxloop.lm.model.linear import (
    LayerParams,
    fused_linear,
    joined_linear,
    split_columns,
    uses_row_kernels,
)
from jaxloop.lm.model.lora import Adapter, PackedAdapters, num_chains, pack_adapters
from jaxloop.lm.target import Target

# Most layers that are unrolled, not scanned: faster to train and on an accelerator, slower to
# compile.
UNROLL = 8

Params = dict[str, Any]


def norm(
    config: ModelConfig, x: jax.Array, scale: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Apply RMS or layer normalisation over the last axis, in float32; return x's dtype."""
    y = x.astype(jnp.float32)
    if config.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + config.norm_eps)
    if config.norm == "rms":
        y = y.astype(x.dtype) * _row(scale, y)
    else:
        y = y * _row(scale.astype(jnp.float32), y)
    if bias is not None:
        y = y + _row(bias.astype(y.dtype), y)
    return y.astype(x.dtype)


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def block(
    config: ModelConfig,
    layer: LayerParams,
    adapter: PackedAdapters | None,
    x_ND: jax.Array,
    attend: Callable[..., jax.Array],
    drops: Drops = NO_DROPS,
    target: Target = Target(),
    *,
    joined: bool = False,
) -> jax.Array:
    """Apply one transformer block.

    Args:
        config: the architecture.
        layer: weights of the layer.
        adapter: adapters of this layer as `lora.pack_adapters` packs them; None: the base alone.
        x_ND: the residual stream.
        attend: `attend(q [N, H, K], k [N, G, K], v [N, G, K])` gives [N, H K]; rotary positions,
            masks and caches are its business.
        drops: what is dropped at the sites of this layer, in training.
        target: device and kernels that the program is compiled for.
        joined: `attend` takes q, k and v as one array [N, H + 2 G, K].

    Returns:
        The residual stream [N, D] after the block.
    """
    normalise: Callable[..., jax.Array] = functools.partial(norm, config)
    activate: Callable[..., jax.Array] = functools.partial(_activated, config)
    if split_layers.are_laid_out(layer):
        normalise, activate = jax.checkpoint(normalise), jax.checkpoint(activate)
    norm1, norm2 = _norm_weights(layer, "norm1"), _norm_weights(layer, "norm2")
    with jax.named_scope("attention"):
        h_ND = normalise(x_ND, *norm1) if config.norm_first else x_ND
        attended = _attention(config, layer, adapter, h_ND, attend, drops, joined)
        x_ND = _added(config, "o", layer, adapter, attended, drops, x_ND)
        if not config.norm_first:
            x_ND = normalise(x_ND, *norm1)
    with jax.named_scope("mlp"):
        h_ND = normalise(x_ND, *norm2) if config.norm_first else x_ND
        if split_layers.gates(config, layer, adapter, x_ND.shape[0], drops, target):
            return _gated_by_kernel(config, layer, adapter, h_ND, x_ND)
        h_NF = _mlp_hidden(config, layer, adapter, h_ND, drops, activate)
        x_ND = _added(config, "down", layer, adapter, h_NF, drops, x_ND)
        return x_ND if config.norm_first else normalise(x_ND, *norm2)


def _norm_weights(layer: LayerParams, name: str) -> list[jax.Array]:
    return [layer[key] for key in (f"{name}_scale", f"{name}_bias") if key in layer]


def _added(config, projection, layer, adapter, h, drops, x_ND):
    """x plus a projection that writes into the residual stream, after its dropout."""
    site = {"o": "attention_output", "down": "mlp_output"}[projection]
    if site not in drops:
        return fused_linear(config, projection, layer, adapter, h, drops, x_ND)[0]
    return x_ND + drops[site](fused_linear(config, projection, layer, adapter, h, drops)[0])


def _attention(config, layer, adapter, h_ND, attend, drops, joined):
    tokens, size = h_ND.shape[0], config.head_dim
    if joined:
        qkv = joined_linear(config, "qkv", layer, adapter, h_ND)
        return attend(qkv.reshape(tokens, -1, size))
    parts = fused_linear(config, "qkv", layer, adapter, h_ND, drops)
    widths = config.num_heads * size, config.num_kv_heads * size, config.num_kv_heads * size
    q, k, v = (x.reshape(tokens, -1, size) for x in _split_once(parts, widths))
    return attend(q, k, v, drops["attention"]) if "attention" in drops else attend(q, k, v)


def _gated_by_kernel(config, layer, adapter, h_ND, x_ND):
    act = ACTIVATIONS[config.activation]
    return split_layers.gated(
        act, layer["up"], adapter["up"], layer["down"], adapter["down"], h_ND, x_ND
    )


def _mlp_hidden(config, layer, adapter, h_ND, drops, activate):
    """act(gate) up, or act(up), [N, F]."""
    silu_gate = config.gated and config.activation == "silu" and not config.mlp_bias
    if silu_gate and uses_row_kernels(adapter, "up"):
        widths = config.d_ff, config.d_ff
        return project(h_ND, layer["up"], adapter["up"], widths, gated=True)
    parts = fused_linear(config, "up", layer, adapter, h_ND, drops)
    return activate(*_split_once(parts, [config.d_ff] * (1 + config.gated)))


def _activated(config, gate, *up):
    h = ACTIVATIONS[config.activation](gate)
    return h * up[0] if up else h


def _split_once(parts, widths):
    """Split a projection's output by `widths`, unless it is split already.

    GPT-2 has one module, and so one adapter and one output, where other architectures have one for
    each of q, k and v.
    """
    return parts if len(parts) == len(widths) else split_columns(parts[0], widths)


@jax.named_scope("embed")
def embed(
    config: ModelConfig, params: Params, tokens_N: jax.Array, positions_N: jax.Array
) -> jax.Array:
    """Return token (and learned position) embeddings [N, D]."""
    x = params["embed"][tokens_N]
    if "embed_in" in params:
        x = x @ params["embed_in"]
    if config.positions == "learned":
        x = x + params["position"][positions_N + config.position_offset]
    return x


@jax.named_scope("final_norm")
def final_norm(config: ModelConfig, params: Params, x_ND: jax.Array) -> jax.Array:
    """Return what the head reads [N, E]: after the final norm and OPT-350m's output projection."""
    if config.final_norm:
        x_ND = norm(config, x_ND, params["norm_scale"], params.get("norm_bias"))
    return x_ND @ params["embed_out"] if "embed_out" in params else x_ND


def lm_head(config: ModelConfig, params: Params) -> jax.Array:
    """Return the output matrix [V, E]."""
    return params["embed"] if config.tie_word_embeddings else params["head"]


@jax.named_scope("lm_head")
def logits_of_head(x_NE: jax.Array, head_VE: jax.Array) -> jax.Array:
    """Return logits [N, V] in float32."""
    return jnp.einsum("nd,vd->nv", x_NE, head_VE, preferred_element_type=jnp.float32)


def lm_logits(config: ModelConfig, params: Params, x_NE: jax.Array) -> jax.Array:
    """Return logits [N, V] in float32 of states that `final_norm` returned."""
    return logits_of_head(x_NE, lm_head(config, params))


def layer(tree: Any, i: int) -> Any:
    """Return layer i of a stacked pytree whose leaves are [L, ...]."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def adapter_layer(packed: PackedAdapters, i: int) -> PackedAdapters:
    """Return layer i of packed adapters, whose leaves are [C, L, ...]."""
    return jax.tree.map(lambda leaf: leaf[:, i], packed)


def hidden(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    packed: PackedAdapters | None = None,
    mask: jax.Array | None = None,
    dropout: Dropout | None = None,
    remat: bool = False,
    watch: Callable[[jax.Array], Any] | None = None,
    rolled: bool = False,
    target: Target = Target(),
) -> Any:
    """Return the last hidden states [rows, T, D] (rows = C B), before the final norm.

    Args:
        config: the architecture.
        params: weights, their layers stacked or as `split_layers.layers` returns them.
        tokens: [rows, T].
        packed: adapters as `lora.pack_adapters` packs them, with layout "padded" where layers are
            those of `split_layers.layers`; None: the base alone.
        mask: [rows, T], True at real tokens. Padded keys are hidden and positions count real
            tokens, so left padding works. None: every row begins with a real token; right padding
            needs no mask under causal attention.
        dropout: of this step; None: nothing is dropped.
        remat: recompute blocks in the gradient.
        watch: a function of each block's output [N, D], whose values are returned too.
        rolled: stacked layers are scanned, however few: as fast without a gradient on a CPU.
        target: device and kernels that the program is compiled for.

    Returns:
        The states; with `watch` also its values [L, ...].
    """
    rows, seq_len = tokens.shape
    if mask is None:
        positions = jnp.broadcast_to(jnp.arange(seq_len)[None], (rows, seq_len)).reshape(-1)
    else:
        positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0).reshape(-1)
    x_ND = embed(config, params, tokens.reshape(-1), positions)
    x_ND = dropouts.apply(dropouts.drops_of_layer(dropout, 0), "embedding", x_ND)
    tables = rotary.rope_tables(config, positions)
    attend = attention.causal(config, rows, seq_len, tables, mask, target)
    run = functools.partial(_numbered_block, config, attend, dropout, target)
    few = config.num_layers <= UNROLL and not rolled
    if isinstance(params["layers"], tuple) or few:
        once = target.platform == "cpu" and dropout is None and isinstance(x_ND, jax.core.Tracer)
        x_ND, watched = _unrolled(config, params["layers"], packed, x_ND, run, remat, watch, once)
    else:
        x_ND, watched = _scanned(config, params["layers"], packed, x_ND, run, remat, watch)
    x_RTD = x_ND.reshape(rows, seq_len, -1)
    return x_RTD if watch is None else (x_RTD, watched)


def _numbered_block(config, attend, dropout, target, x_ND, weights, adapter, i):
    """`block` of layer i, whose number tells dropout which layer it is in."""
    drops = dropouts.drops_of_layer(dropout, i)
    return block(config, weights, adapter, x_ND, attend, drops, target)


def _unrolled(config, layers, packed, x_ND, run, remat, watch, once):
    """`once`: layers do not know their numbers, and one is traced for all; XLA inlines it."""
    if remat:
        run = jax.checkpoint(run, static_argnums=(3,))
    if once:
        run = jax.jit(run, static_argnums=(3,))
    watched = []
    for i, (weights, adapter) in enumerate(_each_layer(config, layers, packed)):
        x_ND = run(x_ND, weights, adapter, 0 if once else i)
        if watch is not None:
            watched.append(watch(x_ND))
    return x_ND, jax.tree.map(lambda *values: jnp.stack(values), *watched) if watched else None


def _scanned(config, layers, packed, x_ND, run, remat, watch):
    if remat:
        run = jax.checkpoint(run)
    by_layer = None
    if packed is not None:
        by_layer = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), packed)

    def step(x_ND, of_layer):
        x_ND = run(x_ND, *of_layer)
        return x_ND, None if watch is None else watch(x_ND)

    return jax.lax.scan(step, x_ND, (layers, by_layer, jnp.arange(config.num_layers)))


def _each_layer(
    config: ModelConfig, layers: Any, packed: PackedAdapters | None
) -> Iterable[tuple[LayerParams, PackedAdapters | None]]:
    numbers = range(config.num_layers)
    if isinstance(layers, tuple):
        if packed is None:
            return [(weights, None) for weights in layers]
        return zip(layers, split_layers.adapter_layers(packed, config.num_layers), strict=True)
    if packed is None:
        return ((layer(layers, i), None) for i in numbers)
    return ((layer(layers, i), adapter_layer(packed, i)) for i in numbers)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: jax.Array,
    *,
    adapters: Adapter | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Return next-token logits, float32, [B, T, V] or [C, B, T, V].

    Args:
        config: the architecture.
        params: weights.
        tokens: integers [B, T], or [C, B, T] with adapters.
        adapters: adapters of C chains, leaves [C, ...]; None: the base alone.
        mask: same shape as tokens, True at real ones; None: padding, if any, is on the right.
            Logits at padded positions are arbitrary.

    Raises:
        ValueError: the chain axes differ, or T exceeds the longest sequence of the model.
    """
    shape, seq_len = tokens.shape, tokens.shape[-1]
    if seq_len > config.max_seq_len:
        raise ValueError(
            f"tokens: {seq_len} tokens exceed the model's context of {config.max_seq_len}"
        )
    packed = None
    if adapters is not None:
        chains = num_chains(adapters)
        if chains != (shape[0] if len(shape) == 3 else 1):
            raise ValueError(
                f"adapters: {chains} chains do not match tokens of shape {shape}; tokens are "
                "[chains, rows, time]"
            )
        packed = pack_adapters(config, adapters, params["embed"].dtype)
    rows, row_mask = tokens.reshape(-1, seq_len), None
    if mask is not None:
        row_mask = mask.reshape(-1, seq_len)
    x_RTD = hidden(config, params, rows, packed=packed, mask=row_mask)
    x_NE = final_norm(config, params, x_RTD.reshape(rows.size, -1))
    return lm_logits(config, params, x_NE).reshape(*shape, config.vocab_size)
