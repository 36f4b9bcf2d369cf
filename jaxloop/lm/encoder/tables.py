"""The parameters of every encoder and of its classification head: their places, shapes and names in
Hugging Face's files.
"""

from typing import Any

import jax

from jaxloop.core.keys import fold_in
from jaxloop.lm.encoder.config import EncoderConfig
from jaxloop.lm.model.config import Param, Source, nest, table

# Names of one layer's modules (qkv, o, norm1, up, down, norm2), the layer's prefix, and the prefix
# of the whole encoder.
_BERT: dict[str, Any] = dict(
    layer="encoder.layer.{i}.",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    o="attention.output.dense",
    norm1="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm2="output.LayerNorm",
)
_MODULES: dict[str, dict[str, Any]] = {
    "bert": _BERT | dict(prefix="bert.", pooler="pooler.dense"),
    "albert": dict(
        prefix="albert.",
        layer="encoder.albert_layer_groups.{i}.albert_layers.0.",
        qkv=("attention.query", "attention.key", "attention.value"),
        o="attention.dense",
        norm1="attention.LayerNorm",
        up="ffn",
        down="ffn_output",
        norm2="full_layer_layer_norm",
        pooler="pooler",
    ),
    "roberta": _BERT | dict(prefix="roberta."),
    "mpnet": _BERT
    | dict(
        prefix="mpnet.",
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        o="attention.attn.o",
        norm1="attention.LayerNorm",
    ),
    "distilbert": dict(
        prefix="distilbert.",
        layer="transformer.layer.{i}.",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        o="attention.out_lin",
        norm1="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm2="output_layer_norm",
    ),
}


def encoder_table(config: EncoderConfig) -> tuple[Param, ...]:
    """Return every parameter of the encoder and of its classification head; paths that start with
    "layers" carry a leading layer axis.
    """
    kind = config.core.architecture
    params = (
        _block_table(config)
        if kind in _MODULES
        else tuple(p for p in table(config.core) if p.path != ("head",))
    )
    return (*params, *_head_table(config))


def _block_table(config: EncoderConfig) -> tuple[Param, ...]:
    core, names = config.core, _MODULES[config.core.architecture]
    d, inner = core.d_model, core.num_heads * core.head_dim
    width = config.embedding_size or d
    before, layer = names["prefix"] + "embeddings.", names["prefix"] + names["layer"]
    params = [
        Param(
            ("embed",),
            (core.vocab_size, width),
            (Source(before + "word_embeddings.weight", width),),
            shard=0,
        ),
        Param(
            ("position",),
            (core.max_seq_len + core.position_offset, width),
            (Source(before + "position_embeddings.weight", width),),
        ),
    ]
    if config.token_types:
        params.append(
            Param(
                ("token_type",),
                (config.token_types, width),
                (Source(before + "token_type_embeddings.weight", width),),
            )
        )
    params += _norm(("embed_norm",), before + "LayerNorm", width)
    if config.embedding_size:
        name = names["prefix"] + "encoder.embedding_hidden_mapping_in"
        params += _linear(("embed_map",), [name], width, d)
    if config.relative_buckets:
        name = names["prefix"] + "encoder.relative_attention_bias.weight"
        params.append(
            Param(
                ("relative",),
                (config.relative_buckets, core.num_heads),
                (Source(name, core.num_heads),),
            )
        )
    params += _linear(("layers", "qkv"), [layer + name for name in names["qkv"]], d, inner)
    params += _linear(("layers", "o"), [layer + names["o"]], inner, d)
    params += _norm(("layers", "norm1"), layer + names["norm1"], d)
    params += _linear(("layers", "up"), [layer + names["up"]], d, core.d_ff)
    params += _linear(("layers", "down"), [layer + names["down"]], core.d_ff, d)
    params += _norm(("layers", "norm2"), layer + names["norm2"], d)
    return tuple(params)


def _head_table(config: EncoderConfig) -> tuple[Param, ...]:
    d, classes = config.core.d_model, len(config.labels)
    dense, out = {
        "": (None, None),
        "pooler": (_pooler(config), "classifier"),
        "dense": ("classifier.dense", "classifier.out_proj"),
        "relu": ("pre_classifier", "classifier"),
        "last": (None, "score"),
    }[config.head]
    params = _linear(("head", "dense"), [dense], d, d) if dense else []
    if out:
        params += _linear(("head", "out"), [out], d, classes)[: 1 if config.head == "last" else 2]
    return tuple(params)


def _pooler(config: EncoderConfig) -> str:
    names = _MODULES.get(config.core.architecture, _MODULES["bert"])
    return names["prefix"] + names.get("pooler", "")


def _linear(path: tuple[str, ...], names: list[str], inside: int, out: int) -> list[Param]:
    *above, last = path
    weights, biases = (
        tuple(Source(f"{name}.{kind}", out) for name in names) for kind in ("weight", "bias")
    )
    return [
        Param(path, (inside, out * len(names)), weights, transposed=True, shard=1),
        Param((*above, f"{last}_bias"), (out * len(names),), biases, "zeros"),
    ]


def _norm(path: tuple[str, ...], name: str, width: int) -> list[Param]:
    *above, last = path
    return [
        Param((*above, f"{last}_scale"), (width,), (Source(f"{name}.weight", width),), "ones"),
        Param((*above, f"{last}_bias"), (width,), (Source(f"{name}.bias", width),), "zeros"),
    ]


def init_head(key: jax.Array, config: EncoderConfig) -> dict:
    """Return a random classification head, as the architecture's own code initialises it: normal(0,
    init_scale), biases zero.
    """
    flat = {}
    for i, p in enumerate(_head_table(config)):
        scale = config.core.init_scale if p.init == "normal" else 0.0
        flat[p.path] = scale * jax.random.normal(fold_in(key, i), p.shape)
    return nest(flat)["head"]
