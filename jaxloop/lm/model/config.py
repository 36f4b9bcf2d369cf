"""Architectures as data: a frozen `ModelConfig`, and one table that names every parameter.

The table gives each parameter's shape, initialiser, sharding and Hugging Face name. Loading,
saving, initialising, sharding and counting all read it; adding an architecture is adding to the
table (and, in `io/config_json.py`, the reading of its config.json).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxloop.core.keys import fold_in
from jaxloop.lm.model.dropout import DropoutRates
from jaxloop.lm.model.rope_scaling import RopeScaling


@dataclass(frozen=True)
class ModelConfig:
    """Everything static about a decoder. Hashable, so it can be a static argument of `jax.jit`."""

    architecture: str  # llama | qwen2 | gpt2 | opt
    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int  # longest sequence, in tokens
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-5
    norm_first: bool = True
    final_norm: bool = True
    activation: str = "silu"  # silu | gelu_new | gelu | relu
    gated: bool = True
    positions: str = "rope"  # rope | learned
    position_offset: int = 0  # OPT's table starts two rows late
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = True
    embed_dim: int = 0  # 0: equal to d_model
    init_scale: float = 0.02
    dropout: DropoutRates = DropoutRates()  # of training

    @property
    def qkv_dim(self) -> int:
        """Output width of the projection of queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


class Source(NamedTuple):
    """One Hugging Face tensor that supplies `width` columns of a parameter; `{i}` is the layer."""

    name: str
    width: int


class Param(NamedTuple):
    """A parameter: its path in the pytree, shape without the layer axis, and tensors in files.

    `transposed`: the file holds [out, in] (torch.nn.Linear) and we hold [in, out]. `shard` is the
    axis that is sharded over the mesh axis "model"; None: it is replicated.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    init: str = "normal"  # normal | zeros | ones
    transposed: bool = False
    shard: int | None = None
    residual: bool = False  # writes into the residual stream: initialised smaller by sqrt(2 layers)


class LoraTarget(NamedTuple):
    """One target of LoRA adapters inside a fused projection.

    Attributes:
        name: our name, such as "q".
        width: width of its output.
        module: its name in Hugging Face's files within a layer, such as "self_attn.q_proj".
    """

    name: str
    width: int
    module: str


def fused_projections(config: ModelConfig) -> dict[str, tuple[LoraTarget, ...]]:
    """Return the four fused projections of a block with their LoRA targets, in column order."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    d_model, d_ff = config.d_model, config.d_ff
    if config.architecture == "gpt2":
        return {
            "qkv": (LoraTarget("qkv", q + 2 * kv, "attn.c_attn"),),
            "o": (LoraTarget("o", d_model, "attn.c_proj"),),
            "up": (LoraTarget("up", d_ff, "mlp.c_fc"),),
            "down": (LoraTarget("down", d_model, "mlp.c_proj"),),
        }
    out = "out_proj" if config.architecture == "opt" else "o_proj"
    if config.gated:
        up: tuple[LoraTarget, ...] = (
            LoraTarget("gate", d_ff, "mlp.gate_proj"),
            LoraTarget("up", d_ff, "mlp.up_proj"),
        )
        down = LoraTarget("down", d_model, "mlp.down_proj")
    else:
        up = (LoraTarget("up", d_ff, "fc1"),)
        down = LoraTarget("down", d_model, "fc2")
    return {
        "qkv": (
            LoraTarget("q", q, "self_attn.q_proj"),
            LoraTarget("k", kv, "self_attn.k_proj"),
            LoraTarget("v", kv, "self_attn.v_proj"),
        ),
        "o": (LoraTarget("o", d_model, f"self_attn.{out}"),),
        "up": up,
        "down": (down,),
    }


def projection_widths(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Return the input and output width of each fused projection."""
    return {
        "qkv": (config.d_model, config.qkv_dim),
        "o": (config.num_heads * config.head_dim, config.d_model),
        "up": (config.d_model, config.d_ff * (2 if config.gated else 1)),
        "down": (config.d_ff, config.d_model),
    }


def layer_prefix(config: ModelConfig) -> str:
    """Return what the Hugging Face names of a layer's tensors start with; `{i}` is the layer."""
    prefixes = {"gpt2": "transformer.h.{i}.", "opt": "model.decoder.layers.{i}."}
    return prefixes.get(config.architecture, "model.layers.{i}.")


def table(config: ModelConfig) -> tuple[Param, ...]:
    """Return every parameter of the architecture.

    Paths that start with "layers" carry a leading layer axis in the pytree.
    """
    prefix, names = layer_prefix(config), _NAMES[config.architecture]
    return (
        *_embedding_params(config, names),
        *_norm_params(config, ("layers", "norm1"), prefix + names["norm1"]),
        *_norm_params(config, ("layers", "norm2"), prefix + names["norm2"]),
        *_projection_params(config, prefix),
    )


def _embedding_params(config: ModelConfig, names: dict[str, str]) -> list[Param]:
    """Parameters outside the layers."""
    d_model, vocab_size = config.d_model, config.vocab_size
    embed = config.embed_dim or d_model
    params = [Param(("embed",), (vocab_size, embed), (Source(names["embed"], embed),), shard=0)]
    if config.positions == "learned":
        rows, source = config.max_seq_len + config.position_offset, names["position"]
        params.append(Param(("position",), (rows, d_model), (Source(source, d_model),)))
    if embed != d_model:
        for path, shape, name in (
            ("embed_in", (embed, d_model), "project_in"),
            ("embed_out", (d_model, embed), "project_out"),
        ):
            source = f"model.decoder.{name}.weight"
            params.append(Param((path,), shape, (Source(source, shape[1]),), transposed=True))
    if config.final_norm:
        params += _norm_params(config, ("norm",), names["norm"])
    if not config.tie_word_embeddings:
        source = "lm_head.weight"
        params.append(Param(("head",), (vocab_size, embed), (Source(source, embed),), shard=0))
    return params


def _projection_params(config: ModelConfig, prefix: str) -> list[Param]:
    """Weights and biases of the fused projections."""
    has_bias = {
        "qkv": config.qkv_bias,
        "o": config.o_bias,
        "up": config.mlp_bias,
        "down": config.mlp_bias,
    }
    params = []
    for projection, targets in fused_projections(config).items():
        inputs, outputs = projection_widths(config)[projection]
        writes_residual = projection in ("o", "down")
        params.append(
            Param(
                path=("layers", projection),
                shape=(inputs, outputs),
                sources=tuple(Source(f"{prefix}{t.module}.weight", t.width) for t in targets),
                transposed=config.architecture != "gpt2",
                shard=0 if writes_residual else 1,
                residual=writes_residual,
            )
        )
        if has_bias[projection]:
            params.append(
                Param(
                    path=("layers", f"{projection}_bias"),
                    shape=(outputs,),
                    sources=tuple(Source(f"{prefix}{t.module}.bias", t.width) for t in targets),
                    init="zeros",
                    shard=None if writes_residual else 0,
                )
            )
    return params


# Hugging Face's names of the tensors that are not projections.
_NAMES = {
    "llama": {
        "embed": "model.embed_tokens.weight",
        "norm": "model.norm",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    },
    "gpt2": {
        "embed": "transformer.wte.weight",
        "position": "transformer.wpe.weight",
        "norm": "transformer.ln_f",
        "norm1": "ln_1",
        "norm2": "ln_2",
    },
    "opt": {
        "embed": "model.decoder.embed_tokens.weight",
        "position": "model.decoder.embed_positions.weight",
        "norm": "model.decoder.final_layer_norm",
        "norm1": "self_attn_layer_norm",
        "norm2": "final_layer_norm",
    },
}
_NAMES["qwen2"] = _NAMES["llama"]
ARCHITECTURES = tuple(_NAMES)


def _norm_params(config: ModelConfig, path: tuple[str, ...], name: str) -> list[Param]:
    *above, last = path
    shape = (config.d_model,)
    weight, bias = (Source(f"{name}.{kind}", config.d_model) for kind in ("weight", "bias"))
    scale = Param((*above, f"{last}_scale"), shape, (weight,), "ones")
    if config.norm == "rms":
        return [scale]
    return [scale, Param((*above, f"{last}_bias"), shape, (bias,), "zeros")]


def nest(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return a nested dict from {path: leaf}."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def init(key: jax.Array, config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Return random parameters as the architecture's own code initialises them.

    Weights are normal(0, init_scale), those that write into the residual stream divided by
    sqrt(2 layers), norms one, biases zero.
    """
    flat = {}
    for i, p in enumerate(table(config)):
        shape = _whole_shape(config, p)
        if p.init == "normal":
            scale = config.init_scale
            if p.residual:
                scale = scale / (2 * config.num_layers) ** 0.5
            flat[p.path] = (scale * jax.random.normal(fold_in(key, i), shape)).astype(dtype)
        else:
            flat[p.path] = (jnp.ones if p.init == "ones" else jnp.zeros)(shape, dtype)
    return nest(flat)


def abstract(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Return the pytree of `jax.ShapeDtypeStruct` that `init` and loading produce."""
    shapes = {p.path: _whole_shape(config, p) for p in table(config)}
    return nest({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in shapes.items()})


def _whole_shape(config: ModelConfig, p: Param) -> tuple[int, ...]:
    """The shape of a parameter in the pytree, with the layer axis where there is one."""
    return (config.num_layers, *p.shape) if p.path[0] == "layers" else p.shape


def count_parameters(config: ModelConfig) -> int:
    """Return the number of weights, a tied head counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(config)))
