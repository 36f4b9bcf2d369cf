"""Architectures as data: a frozen `Spec`, and one table per architecture that names every
parameter.

The table gives each parameter's shape, initialiser, sharding and Hugging Face name. Loading,
saving, initialising, sharding and counting all read it; adding an architecture is adding a table
(and, in `model_config.py`, the reading of its config.json).

Dimensions: D model, E embedding (D except in OPT-350m), F mlp, H query heads, G key/value heads, K
head size, V vocabulary, P positions.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.core.keys import fold_in
from jaxloop.lm.model.rotary import RopeScaling, Scaling

__all__ = ["ARCHITECTURES", "Param", "Part", "RopeScaling", "Source", "Spec", "abstract", "count_parameters", "init", "layer_prefix", "nest",
           "site_widths", "sites", "table"]  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """Everything static about a decoder. Hashable, so it can be a static argument of `jax.jit`."""

    architecture: str  # llama | qwen2 | gpt2 | opt
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    context: int  # longest sequence, in tokens
    norm: str = "rms"  # rms | layer
    norm_eps: float = 1e-5
    norm_first: bool = True
    final_norm: bool = True
    activation: str = "silu"  # silu | gelu_new | gelu | relu
    gated: bool = True
    positions: str = "rope"  # rope | learned
    position_offset: int = 0  # OPT's table starts two rows late
    rope_theta: float = 10000.0
    rope_scaling: Scaling | None = None
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied: bool = True
    embed_width: int = 0  # 0: equal to width
    init_scale: float = 0.02

    @property
    def qkv_width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_size


class Source(NamedTuple):
    """One Hugging Face tensor that supplies `width` columns of a parameter; `{i}` is the layer."""

    name: str
    width: int


class Param(NamedTuple):
    """A parameter: where it lives in the pytree, its shape without the layer axis, and the tensors
    it is made of.

    `transposed`: the file holds [out, in] (torch.nn.Linear) and we hold [in, out]. `shard` names
    the axis that a `model` mesh axis cuts.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    sources: tuple[Source, ...]
    init: str = "normal"  # normal | zeros | ones
    transposed: bool = False
    shard: int | None = None
    residual: bool = False  # writes into the residual stream: initialised smaller by sqrt(2 layers)


class Part(NamedTuple):
    """One adapter target inside a fused projection: our name, its output width, and the module name
    in the file.
    """

    name: str
    width: int
    module: str


def sites(spec: Spec) -> dict[str, tuple[Part, ...]]:
    """The four fused projections of a block and the adapter targets inside each, in column order."""
    q, kv = spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    if spec.architecture == "gpt2":
        return {
            "qkv": (Part("qkv", q + 2 * kv, "attn.c_attn"),),
            "o": (Part("o", spec.width, "attn.c_proj"),),
            "up": (Part("up", spec.mlp, "mlp.c_fc"),),
            "down": (Part("down", spec.width, "mlp.c_proj"),),
        }
    out = "out_proj" if spec.architecture == "opt" else "o_proj"
    up = {True: (("gate", "mlp.gate_proj"), ("up", "mlp.up_proj")), False: (("up", "fc1"),)}[
        spec.gated
    ]
    return {
        "qkv": (
            Part("q", q, "self_attn.q_proj"),
            Part("k", kv, "self_attn.k_proj"),
            Part("v", kv, "self_attn.v_proj"),
        ),
        "o": (Part("o", spec.width, f"self_attn.{out}"),),
        "up": tuple(Part(name, spec.mlp, module) for name, module in up),
        "down": (Part("down", spec.width, "mlp.down_proj" if spec.gated else "fc2"),),
    }


def site_widths(spec: Spec) -> dict[str, tuple[int, int]]:
    """Input and output width of each fused projection."""
    return {
        "qkv": (spec.width, spec.qkv_width),
        "o": (spec.heads * spec.head_size, spec.width),
        "up": (spec.width, spec.mlp * (2 if spec.gated else 1)),
        "down": (spec.mlp, spec.width),
    }


def layer_prefix(spec: Spec) -> str:
    return {"gpt2": "transformer.h.{i}.", "opt": "model.decoder.layers.{i}."}.get(
        spec.architecture, "model.layers.{i}."
    )


def table(spec: Spec) -> tuple[Param, ...]:
    """Every parameter of the architecture; paths that start with "layers" carry a leading layer
    axis in the pytree.
    """
    d, prefix = spec.width, layer_prefix(spec)
    names = _NAMES[spec.architecture]
    embed = spec.embed_width or d
    params = [Param(("embed",), (spec.vocab, embed), (Source(names["embed"], embed),), shard=0)]
    if spec.positions == "learned":
        params.append(
            Param(
                ("position",),
                (spec.context + spec.position_offset, d),
                (Source(names["position"], d),),
            )
        )
    if embed != d:
        params += [
            Param(
                ("embed_in",),
                (embed, d),
                (Source("model.decoder.project_in.weight", d),),
                transposed=True,
            ),
            Param(
                ("embed_out",),
                (d, embed),
                (Source("model.decoder.project_out.weight", embed),),
                transposed=True,
            ),
        ]
    if spec.final_norm:
        params += _norm(spec, ("norm",), names["norm"])
    if not spec.tied:
        params.append(
            Param(("head",), (spec.vocab, embed), (Source("lm_head.weight", embed),), shard=0)
        )
    params += _norm(spec, ("layers", "norm1"), prefix + names["norm1"])
    params += _norm(spec, ("layers", "norm2"), prefix + names["norm2"])
    biased = {"qkv": spec.qkv_bias, "o": spec.o_bias, "up": spec.mlp_bias, "down": spec.mlp_bias}
    for site, parts in sites(spec).items():
        inside, out = site_widths(spec)[site]
        weights = tuple(Source(f"{prefix}{p.module}.weight", p.width) for p in parts)
        writes = site in ("o", "down")
        params.append(
            Param(
                ("layers", site),
                (inside, out),
                weights,
                transposed=spec.architecture != "gpt2",
                shard=0 if writes else 1,
                residual=writes,
            )
        )
        if biased[site]:
            biases = tuple(Source(f"{prefix}{p.module}.bias", p.width) for p in parts)
            params.append(
                Param(
                    ("layers", f"{site}_bias"), (out,), biases, "zeros", shard=None if writes else 0
                )
            )
    return tuple(params)


_NAMES = {
    "llama": dict(embed="model.embed_tokens.weight", norm="model.norm", norm1="input_layernorm", norm2="post_attention_layernorm"),
    "gpt2": dict(embed="transformer.wte.weight", position="transformer.wpe.weight", norm="transformer.ln_f", norm1="ln_1", norm2="ln_2"),
    "opt": dict(embed="model.decoder.embed_tokens.weight", position="model.decoder.embed_positions.weight", norm="model.decoder.final_layer_norm",
                norm1="self_attn_layer_norm", norm2="final_layer_norm"),
}  # fmt: skip
_NAMES["qwen2"] = _NAMES["llama"]
ARCHITECTURES = tuple(_NAMES)


def _norm(spec, path, name):
    *above, last = path
    scale = Param(
        (*above, f"{last}_scale"), (spec.width,), (Source(f"{name}.weight", spec.width),), "ones"
    )
    if spec.norm == "rms":
        return [scale]
    return [
        scale,
        Param(
            (*above, f"{last}_bias"), (spec.width,), (Source(f"{name}.bias", spec.width),), "zeros"
        ),
    ]


def nest(flat: dict[tuple[str, ...], object]) -> dict:
    """A nested dict from {path: leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = leaf
    return tree


def init(key: jax.Array, spec: Spec, dtype=jnp.float32) -> dict:
    """Random parameters as the architecture's own code initialises them: normal(0, init_scale),
    residual writers divided by sqrt(2 layers), norms one, biases zero.
    """
    flat = {}
    for i, p in enumerate(table(spec)):
        shape = (spec.layers, *p.shape) if p.path[0] == "layers" else p.shape
        if p.init == "normal":
            scale = spec.init_scale / (2 * spec.layers) ** 0.5 if p.residual else spec.init_scale
            flat[p.path] = (scale * jax.random.normal(fold_in(key, i), shape)).astype(dtype)
        else:
            flat[p.path] = (jnp.ones if p.init == "ones" else jnp.zeros)(shape, dtype)
    return nest(flat)


def abstract(spec: Spec, dtype=jnp.float32) -> dict:
    """The pytree of `jax.ShapeDtypeStruct` that `init` and loading produce."""
    return nest(
        {
            p.path: jax.ShapeDtypeStruct(
                (spec.layers, *p.shape) if p.path[0] == "layers" else p.shape, dtype
            )
            for p in table(spec)
        }
    )


def count_parameters(spec: Spec) -> int:
    """Number of weights, tied head counted once."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract(spec)))
