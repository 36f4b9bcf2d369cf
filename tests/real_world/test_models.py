"""Model directories as people bring them: each is computed as `transformers` computes it, or
refused in one sentence.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxloop import lm
from jaxloop.lm.io import huggingface
from tests.lm.conftest import make as torch_model
from tests.lm.conftest import write_tokenizer
from tests.peers import peer
from tests.real_world.support import (
    RIGHT,
    TOLERANCE,
    Row,
    config,
    edit,
    forward,
    make,
    refusal,
    remove,
    tensors,
    write,
)

torch = peer("torch")
hf = peer("transformers", "torch")

Q = "model.layers.0.self_attn.q_proj"
PLAIN = dict(rope_type="default", rope_theta=10000.0)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
LONG = dict(
    rope_type="longrope", short_factor=[1.0, 1.5, 2.0, 4.0], long_factor=[2.0, 3.0, 4.0, 8.0]
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)


def new(**parameters):
    """Positions as transformers 5 writes them."""
    return config(
        rope_parameters=dict(rope_theta=10000.0) | parameters, rope_scaling=..., rope_theta=...
    )


def old(theta=10000.0, **scaling):
    """Positions as transformers 4 writes them, with `type` as its older versions call it."""
    if "rope_type" in scaling:
        scaling["type"] = scaling.pop("rope_type")
    return config(rope_parameters=..., rope_scaling=scaling or None, rope_theta=theta)


def without(*names):
    return tensors(lambda t: {k: v for k, v in t.items() if k not in names})


def added(**more):
    """Adds tensors; names with __ for dots."""
    return tensors(lambda t: t | {k.replace("__", "."): v for k, v in more.items()})


def quantised(suffixes, dtype=np.int8, keep=False):
    """The first query projection in the layout of a quantisation library."""

    def change(t):
        weight = t[f"{Q}.weight"]
        out = dict(t) if keep else {k: v for k, v in t.items() if k != f"{Q}.weight"}
        return out | {f"{Q}.{suffix}": np.ones((weight.shape[0], 4), dtype) for suffix in suffixes}

    return tensors(change)


def int8(t):
    return {
        k: (
            np.clip(np.round(v / np.abs(v).max() * 127), -127, 127).astype(np.int8)
            if v.ndim == 2
            else v
        )
        for k, v in t.items()
    }


def head(seed=0):
    """Another output matrix than the embeddings, which config.json ties."""
    return tensors(
        lambda t: (
            t
            | {
                "lm_head.weight": np.random.default_rng(seed).standard_normal(
                    t["model.embed_tokens.weight"].shape, np.float32
                )
            }
        )
    )


def head_only(t):
    return {("lm_head.weight" if "embed_tokens" in k else k): v for k, v in t.items()}


def split(path):
    """Two numbered files, no index."""
    t = load_file(path / "model.safetensors")
    names = sorted(t)
    for i, some in enumerate((names[::2], names[1::2]), 1):
        save_file(
            {k: t[k] for k in some},
            path / f"model-{i:05d}-of-00002.safetensors",
            metadata={"format": "pt"},
        )
    (path / "model.safetensors").unlink()


def indexed(path):
    split(path)
    where = {k: f.name for f in sorted(path.glob("model-*.safetensors")) for k in load_file(f)}
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


def backup(name):
    return tensors(lambda t: {k: v + 1 for k, v in t.items()}, to=name)


def bare_copies(t):
    return t | {
        k.removeprefix("model."): v + 1 for k, v in t.items() if k.startswith("model.layers.1.")
    }


QUANTISED = "is stored as I8, as quantised weights are|quantised"
METHODS = [
    dict(quant_method="bitsandbytes", load_in_8bit=True),
    dict(quant_method="gptq", bits=4),
    dict(quant_method="awq", bits=4),
    dict(quant_method="fp8", weight_block_size=[128, 128]),
    dict(quant_method="compressed-tensors", format="int-quantized"),
    dict(quant_method="torchao"),
    dict(quant_method="hqq"),
    dict(load_in_4bit=True),
]
LAYOUTS = {
    "bitsandbytes int8": (["weight", "SCB", "weight_format"], np.int8),
    "bitsandbytes nf4": (["weight", "weight.absmax", "weight.quant_map"], np.uint8),
    "gptq": (["qweight", "qzeros", "scales", "g_idx"], np.int32),
    "awq": (["qweight", "qzeros", "scales"], np.int32),
    "fp8 with scales": (["weight", "weight_scale_inv"], ml_dtypes.float8_e4m3fn),
    "compressed-tensors": (["weight_packed", "weight_scale", "weight_shape"], np.int32),
    "torchao": (["weight_qdata", "weight_scale"], np.int8),
    "hqq": (["W_q", "scale", "zero"], np.uint8),
}

ROWS = [
    # Quantised weights.
    Row(
        "int8 weights without a word about it",
        "llama",
        (tensors(int8),),
        QUANTISED,
        "casts them, other logits",
    ),
    Row("int8 weights of GPT-2", "gpt2", (tensors(int8),), QUANTISED, "casts them, other logits"),
    *(
        Row(
            f"quantization_config {m}",
            "llama",
            (config(quantization_config=m),),
            "quantization_config .* quantised",
            "asks for the library",
        )
        for m in METHODS
    ),
    *(
        Row(
            f"layout of {n}",
            "llama",
            (quantised(*a),),
            "quantised",
            "new random weights, and a warning",
        )
        for n, a in LAYOUTS.items()
    ),
    Row(
        "scales beside weights in full",
        "qwen2",
        (quantised(["weight_scale"], np.float32, True),),
        "belongs to no weight",
        "ignores them, a warning",
    ),
    Row(
        "fields of MLX",
        "llama",
        (config(quantization=dict(bits=4, group_size=64)),),
        "quantization of .* quantised",
        "ignores the field",
    ),
    Row("quantization_config is null", "llama", (config(quantization_config=None),), RIGHT),
    # Stored types that are numbers.
    Row(
        "double precision",
        "llama",
        (tensors(lambda t: {k: v.astype(np.float64) for k, v in t.items()}),),
        RIGHT,
    ),
    Row(
        "half precision",
        "gpt2",
        (
            tensors(lambda t: {k: v.astype(np.float16) for k, v in t.items()}),
            config(dtype="float32"),
        ),
        RIGHT,
    ),
    Row(
        "mixed types",
        "llama",
        (
            tensors(
                lambda t: {
                    k: v.astype(ml_dtypes.bfloat16) if "mlp" in k else v for k, v in t.items()
                }
            ),
        ),
        RIGHT,
    ),
    # Positions.
    Row("positions: default", "smollm", (new(rope_type="default"),), RIGHT),
    Row("positions: theta outside", "smollm", (old(5e5),), RIGHT),
    Row("positions: linear", "llama", (new(rope_type="linear", factor=2.5),), RIGHT),
    Row("positions: linear, older", "qwen2", (old(1e6, rope_type="linear", factor=4),), RIGHT),
    Row("positions: dynamic", "llama", (new(rope_type="dynamic", factor=2.0),), RIGHT),
    Row("positions: llama3", "qwen2", (new(**LLAMA3),), RIGHT),
    Row("positions: llama3, older", "llama", (old(5e5, **LLAMA3),), RIGHT),
    Row("positions: yarn", "llama", (new(**YARN),), RIGHT),
    Row("positions: yarn, older", "qwen2", (old(1e6, **YARN),), RIGHT),
    Row(
        "positions: yarn without original length",
        "qwen2",
        (new(rope_type="yarn", factor=2.0),),
        RIGHT,
    ),
    Row(
        "positions: yarn with every setting",
        "llama",
        (new(**YARN | dict(beta_fast=20, beta_slow=2, attention_factor=0.8, truncate=False)),),
        RIGHT,
    ),
    Row(
        "positions: yarn with mscale",
        "falcon3",
        (new(**YARN | dict(mscale=0.7, mscale_all_dim=1.2)),),
        RIGHT,
    ),
    Row("positions: yarn added by hand", "smollm", (config(rope_scaling=YARN),), RIGHT),
    Row(
        "positions: yarn by hand, theta outside",
        "qwen2",
        (config(rope_parameters=PLAIN, rope_scaling=YARN, rope_theta=1e4),),
        RIGHT,
    ),
    Row(
        "positions: yarn by hand, theta would be lost",
        "qwen2",
        (config(rope_parameters=PLAIN | dict(rope_theta=1e6), rope_scaling=YARN),),
        "rope_scaling takes the place of rope_parameters, whose rope_theta = 1000000.0 would be "
        "lost",
        "takes 10,000 without a word",
    ),
    Row(
        "positions: longrope",
        "smollm",
        (new(**LONG | dict(factor=4.0, original_max_position_embeddings=64)),),
        RIGHT,
    ),
    Row(
        "positions: longrope, longer than its training",
        "smollm",
        (
            config(max_position_embeddings=256),
            new(**LONG | dict(original_max_position_embeddings=64)),
        ),
        RIGHT,
    ),
    Row(
        "positions: rope_type of another generation",
        "llama",
        (new(rope_type="su", factor=2.0),),
        "rope_type = 'su' is not supported",
        "a key is missing",
    ),
    Row(
        "positions: mrope",
        "qwen2",
        (new(rope_type="default", mrope_section=[2, 1, 1]),),
        "mrope_section = .* is not a field of rope_type 'default'",
    ),
    Row(
        "positions: part of each head",
        "llama",
        (config(partial_rotary_factor=0.5),),
        "partial_rotary_factor = 0.5 is not supported",
        "ignores it",
    ),
    Row(
        "positions: part of each head, inside",
        "llama",
        (new(rope_type="linear", factor=2.0, partial_rotary_factor=0.5),),
        "partial_rotary_factor = 0.5",
        "shapes do not fit",
    ),
    Row(
        "positions: yarn of base one",
        "qwen2",
        (new(**YARN | dict(rope_theta=1)),),
        "rope_theta = 1.0 is not supported",
        "divides by zero",
    ),
    Row(
        "positions: a factor without a kind",
        "llama",
        (new(factor=2.0),),
        "factor = 2.0 is not a field of rope_type 'default'",
        "ignores it, a warning",
    ),
    Row(
        "positions: by kind of layer",
        "llama",
        (new(full_attention=PLAIN),),
        "full_attention",
        "ignores it, a warning",
    ),
    Row(
        "positions: factor as text",
        "llama",
        (new(rope_type="linear", factor="2.0"),),
        "factor = '2.0' is not supported; allowed: a number",
    ),
    Row(
        "positions: rope_scaling as text",
        "llama",
        (config(rope_scaling="dynamic"),),
        "rope_scaling = 'dynamic' is not supported; allowed: an object",
    ),
    # Other fields that change the logits.
    Row(
        "an attention window",
        "qwen2",
        (config(use_sliding_window=True, layer_types=..., sliding_window=16, max_window_layers=1),),
        "sliding_window = 16 is not supported",
        "attends within it",
    ),
    Row(
        "a window for no layer",
        "qwen2",
        (config(use_sliding_window=True, layer_types=..., sliding_window=16, max_window_layers=2),),
        RIGHT,
    ),
    Row(
        "a window that holds the context",
        "qwen2",
        (config(use_sliding_window=True, layer_types=..., sliding_window=64, max_window_layers=0),),
        RIGHT,
    ),
    Row(
        "kinds of layers",
        "qwen2",
        (
            config(
                use_sliding_window=True,
                sliding_window=16,
                layer_types=["full_attention", "sliding_attention"],
            ),
        ),
        "sliding_window",
    ),
    Row(
        "linear attention in a layer",
        "qwen2",
        (config(layer_types=["full_attention", "linear_attention"]),),
        "layer_types = ",
    ),
    Row(
        "a window in Llama's config",
        "llama",
        (config(sliding_window=16),),
        "sliding_window = 16",
        "ignores it",
    ),
    *(
        Row(
            f"{k} = {v}",
            "llama",
            (config(**{k: v}),),
            f"{k} = .* not (supported|a field)",
            "ignores it",
        )
        for k, v in dict(
            attn_logit_softcapping=50.0,
            final_logit_softcapping=30.0,
            embedding_multiplier=12.0,
            residual_multiplier=0.22,
            attention_multiplier=0.0078,
            logits_scaling=8.0,
            qk_layernorm=True,
            use_qk_norm=True,
            query_pre_attn_scalar=256,
            rope_interleaved=True,
            no_rope_layers=[1, 0],
            num_local_experts=8,
            layer_norm_eps=1e-3,
            is_causal=False,
            is_encoder_decoder=True,
            something_new="yes",
        ).items()
    ),
    Row(
        "the same, switched off",
        "llama",
        (
            config(
                rope_interleaved=False,
                use_qk_norm=False,
                embedding_multiplier=1.0,
                attn_logit_softcapping=None,
            ),
        ),
        RIGHT,
    ),
    Row(
        "fields that change nothing",
        "llama",
        (
            config(
                _name_or_path="x",
                torch_dtype="float32",
                use_cache=False,
                pretraining_tp=2,
                task_specific_params={"a": {"max_length": 5}},
                attention_dropout=0.3,
                transformers_version="4.31.0",
                max_length=20,
                temperature=0.7,
                unsloth_version="2024.9",
                is_llama_config=True,
                id2label={"0": "a"},
                **{"transformers.js_config": {"dtype": "q4"}},
            ),
        ),
        RIGHT,
    ),
    Row(
        "GPT-2's fields of all versions",
        "gpt2",
        (
            config(
                n_ctx=64,
                summary_type="cls_index",
                summary_use_proj=True,
                attn_pdrop=0.1,
                gradient_checkpointing=False,
                reorder_and_upcast_attn=True,
            ),
        ),
        RIGHT,
    ),
    Row(
        "GPT-2's fields of DistilGPT2",
        "gpt2",
        (
            config(
                _num_labels=1,
                id2label={"0": "LABEL_0"},
                label2id={"LABEL_0": 0},
                summary_activation=None,
            ),
        ),
        RIGHT,
    ),
    Row(
        "GPT-2's fields of its medium and larger models",
        "gpt2",
        (config(n_special=0, predict_special_tokens=True, output_past=True),),
        RIGHT,
    ),
    Row(
        "GPT-2: rows of special tokens",
        "gpt2",
        (config(n_special=3),),
        "n_special = 3 is not supported; allowed: 0",
        "ignores it",
    ),
    Row(
        "GPT-2 under other models' names",
        "gpt2",
        (
            config(
                n_embd=...,
                hidden_size=32,
                n_layer=...,
                num_hidden_layers=2,
                n_head=...,
                num_attention_heads=4,
            ),
        ),
        RIGHT,
    ),
    Row(
        "GPT-2: scale_attn_weights",
        "gpt2",
        (config(scale_attn_weights=False),),
        "scale_attn_weights = False is not supported; allowed: True",
    ),
    Row(
        "GPT-2: scaled by layer",
        "gpt2",
        (config(scale_attn_by_inverse_layer_idx=True),),
        "scale_attn_by_inverse_layer_idx = True",
    ),
    Row(
        "GPT-2: an eps by another name",
        "gpt2",
        (config(layer_norm_eps=1e-3),),
        "layer_norm_eps = 0.001 is not a field of gpt2",
        "ignores it",
    ),
    Row(
        "GPT-2: cross-attention",
        "gpt2",
        (config(add_cross_attention=True),),
        "add_cross_attention = True",
    ),
    Row(
        "OPT: fields of all versions",
        "opt",
        (config(activation_dropout=0.0, layerdrop=0.0, prefix="</s>", dropout=0.1),),
        RIGHT,
    ),
    Row(
        "OPT: fields of Galactica",
        "opt",
        (config(learned_embeddings=True, scale_embeddings=False),),
        RIGHT,
    ),
    Row(
        "OPT: scaled embeddings",
        "opt",
        (config(scale_embeddings=True),),
        "scale_embeddings = True is not supported",
    ),
    Row(
        "OPT: an eps",
        "opt",
        (config(layer_norm_eps=1e-3),),
        "layer_norm_eps = 0.001 is not a field of opt",
        "ignores it",
    ),
    *(
        Row(f"activation {a}", "llama", (config(hidden_act=a),), RIGHT)
        for a in (
            "gelu",
            "gelu_new",
            "gelu_fast",
            "gelu_pytorch_tanh",
            "gelu_python",
            "relu",
            "silu",
        )
    ),
    *(
        Row(
            f"activation {a}",
            "gpt2",
            (config(activation_function=a),),
            f"activation_function = '{a}'",
        )
        for a in ("relu2", "quick_gelu", "mish")
    ),
    # Types of fields.
    Row(
        "an eps as text",
        "llama",
        (config(rms_norm_eps="1e-5"),),
        "rms_norm_eps = '1e-5' is not supported; allowed: a number of at least 0",
    ),
    *(
        Row(f"{k} = {v!r}", "llama", (config(**{k: v}),), f"{k} = ")
        for k, v in dict(
            num_hidden_layers=2.0,
            hidden_size="32",
            num_attention_heads=True,
            vocab_size=0,
            tie_word_embeddings="true",
            max_position_embeddings=[64],
            rms_norm_eps=float("nan"),
            attention_bias=1,
            num_key_value_heads=3,
        ).items()
    ),
    Row(
        "a heading of config.json twice",
        "llama",
        (write("config.json", '{"model_type": "llama", "hidden_size": 32, "hidden_size": 64}'),),
        "'hidden_size' stands there twice",
        "takes the last",
    ),
    Row(
        "a list as config.json",
        "llama",
        (write("config.json", "[]"),),
        "it holds a list, not an object",
    ),
    Row(
        "an empty config.json",
        "llama",
        (write("config.json", ""),),
        "config.json cannot be read .it is empty",
    ),
    Row(
        "a web page as config.json",
        "llama",
        (write("config.json", "<!DOCTYPE html><html>"),),
        "it is a web page",
    ),
    Row(
        "a Git LFS pointer as weights",
        "llama",
        (
            write(
                "model.safetensors",
                "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            ),
        ),
        "it is a Git LFS pointer",
    ),
    Row(
        "an empty generation_config.json",
        "llama",
        (write("generation_config.json", ""),),
        "generation_config.json cannot be read .it is empty",
    ),
    Row(
        "a byte-order mark in config.json",
        "llama",
        (
            lambda p: (
                (p / "config.json").write_bytes(b"\xef\xbb\xbf" + (p / "config.json").read_bytes())
                and None
            ),
        ),
        "reads",
        "cannot read it",
    ),
    # Tied, and not equal.
    Row("another head than the tied embeddings", "llama", (head(),), RIGHT),
    Row("another head, of Qwen", "qwen2", (head(1),), RIGHT),
    Row(
        "the same head twice",
        "llama",
        (tensors(lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"]}),),
        RIGHT,
    ),
    Row(
        "a quantised head beside tied embeddings",
        "llama",
        (added(lm_head__weight=np.ones((320, 32), np.int8)),),
        "tensor lm_head.weight of .* is stored as I8",
        "casts it",
    ),
    Row("only the head is stored", "llama", (tensors(head_only),), RIGHT),
    Row(
        "only the head of GPT-2",
        "gpt2",
        (tensors(lambda t: {("lm_head.weight" if "wte" in k else k): v for k, v in t.items()}),),
        RIGHT,
    ),
    Row(
        "no head and not tied",
        "llama",
        (config(tie_word_embeddings=False),),
        "tensor lm_head.weight is missing .* no language model",
        "random head, a warning",
    ),
    Row("tied is null", "gpt2", (config(tie_word_embeddings=...),), RIGHT),
    # Copies.
    Row(
        "a backup, no index",
        "llama",
        (
            backup("model_backup.safetensors"),
            lambda p: (p / "model.safetensors").rename(p / "weights.safetensors") and None,
        ),
        r"is in model_backup.safetensors and in weights.safetensors",
        "finds no weights",
    ),
    Row("an EMA copy beside model.safetensors", "llama", (backup("ema.safetensors"),), RIGHT),
    Row(
        "an index and a whole model",
        "llama",
        (
            tensors(lambda t: t, to="keep.safetensors"),
            indexed,
            lambda p: (p / "keep.safetensors").rename(p / "model.safetensors") and None,
        ),
        "two sets of weights, model.safetensors and model-00001-of-00002",
        "takes model.safetensors",
    ),
    Row(
        "prefixed and bare copies",
        "llama",
        (tensors(bare_copies),),
        "two copies of a tensor, model.layers.1.* and layers.1.",
        "the last one wins",
    ),
    Row("numbered files with an index", "llama", (indexed,), RIGHT),
    Row("numbered files without index", "llama", (split,), "reads", "finds no weights"),
    Row(
        "a numbered file is missing",
        "llama",
        (split, remove("model-00002-of-00002.safetensors")),
        "model-00002-of-00002.safetensors, which belongs to",
    ),
    Row(
        "an index without weight_map",
        "llama",
        (indexed, write("model.safetensors.index.json", "{}")),
        "has no weight_map",
    ),
    Row(
        "an adapter beside the model",
        "llama",
        (edit("adapter_config.json", peft_type="LORA", r=4, base_model_name_or_path="x"),),
        "holds an adapter too",
        "loads the adapter's base",
    ),
    Row(
        "an adapter alone",
        "llama",
        (edit("adapter_config.json", peft_type="LORA"), remove("config.json")),
        "holds an adapter .adapter_config.json. without its base",
        "loads the adapter's base",
    ),
    Row(
        "GPT-2 without prefix",
        "gpt2",
        (tensors(lambda t: {k.removeprefix("transformer."): v for k, v in t.items()}),),
        RIGHT,
    ),
    # Tensors that are not read.
    Row(
        "tables of old versions",
        "llama",
        (added(model__layers__0__self_attn__rotary_emb__inv_freq=np.ones(4, np.float32)),),
        RIGHT,
    ),
    Row(
        "masks of GPT-2",
        "gpt2",
        (
            added(
                transformer__h__0__attn__bias=np.ones((1, 1, 8, 8), np.uint8),
                transformer__h__0__attn__masked_bias=np.zeros((), np.float32),
            ),
        ),
        RIGHT,
    ),
    Row(
        "a value head of TRL",
        "llama",
        (added(v_head__summary__weight=np.ones((1, 32), np.float32)),),
        RIGHT,
    ),
    Row("more layers than config.json says", "llama", (config(num_hidden_layers=1),), RIGHT),
    Row(
        "norms of queries",
        "llama",
        (added(model__layers__0__self_attn__q_norm__weight=np.ones(8, np.float32)),),
        "belongs to no weight",
        "ignores them, a warning",
    ),
    Row(
        "biases that config.json denies",
        "llama",
        (tensors(lambda t: t | {f"{Q}.bias": np.ones(32, np.float32)}),),
        "belongs to no weight",
        "ignores them",
    ),
    Row(
        "a bias of the head",
        "qwen2",
        (added(lm_head__bias=np.ones(320, np.float32)),),
        "lm_head.bias .* belongs to no weight",
        "ignores it",
    ),
    Row(
        "an unmerged adapter",
        "llama",
        (
            tensors(
                lambda t: {
                    k.replace("q_proj.weight", "q_proj.base_layer.weight"): v for k, v in t.items()
                }
            ),
        ),
        "q_proj.weight is missing .* save them dequantised and merged",
    ),
    *(
        Row(
            f"saved with its wrapper, {prefix}",
            "llama",
            (tensors(lambda t, prefix=prefix: {prefix + k: v for k, v in t.items()}),),
            f"{prefix}model.embed_tokens.weight is there instead, so a wrapper was saved",
            "new random weights, and a warning",
        )
        for prefix in ("_orig_mod.", "module.", "pretrained_model.")
    ),
    Row(
        "a model of answers to questions",
        "llama",
        (tensors(lambda t: {k.replace("model.", "transformer."): v for k, v in t.items()}),),
        "transformer.embed_tokens.weight is there instead, so a wrapper was saved",
        "new random weights, and a warning",
    ),
    Row(
        "biases that are missing",
        "qwen2",
        (without("model.layers.0.self_attn.k_proj.bias"),),
        "k_proj.bias is missing from [^;]*$",
        "zeros, a warning",
    ),
    # Vocabulary.
    Row(
        "a token beyond the table",
        "llama",
        (
            config(vocab_size=300),
            tensors(lambda t: {k: v[:300] if "embed" in k else v for k, v in t.items()}),
        ),
        r"has token '.*' with id 310, the model's embeddings have 300 rows",
        "an index error, or a token of another",
    ),
    Row(
        "a padding token beyond the table",
        "llama",
        (edit("generation_config.json", pad_token_id=320), config(pad_token_id=320)),
        "reads",
        "an index error",
    ),
    Row(
        "a first token beyond the table",
        "llama",
        (edit("generation_config.json", bos_token_id=320),),
        "BOS token 320 .* vocabulary of 320",
    ),
    Row(
        "a table with rows to spare",
        "llama",
        (
            config(vocab_size=384),
            tensors(
                lambda t: {
                    k: np.pad(v, ((0, 64), (0, 0))) if "embed" in k else v for k, v in t.items()
                }
            ),
        ),
        RIGHT,
    ),
    Row(
        "a table that config.json does not know",
        "llama",
        (
            tensors(
                lambda t: {
                    k: np.pad(v, ((0, 64), (0, 0))) if "embed" in k else v for k, v in t.items()
                }
            ),
        ),
        r"has shape \(384, 32\); \(320, 32\) is expected",
    ),
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """`folder("llama")`: a saved random model; made once."""
    made = {}

    def get(name):
        if name not in made:
            model = torch_model(name)  # without torch the test is skipped here, and so is the next
            place = tmp_path_factory.mktemp("real") / name
            model.save_pretrained(place)
            write_tokenizer(place)
            made[name] = place
        return made[name]

    return get


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_model_is_right_or_refused(row, folder, tmp_path):
    path = make(row, folder(row.model), tmp_path / "model")
    if row.ours not in (RIGHT, "reads"):
        for read in (
            lm.load,
            lambda path: huggingface.describe(huggingface.locate(str(path))),
        ):  # --validate refuses what a run would
            with pytest.raises(ValueError) as caught:
                read(path)
            refusal(caught.value, row.ours)
        return
    ours = lm.load(path)
    assert (
        huggingface.describe(path)[0] == ours.config and ours.tokenizer.pad < ours.config.vocab_size
    )
    tokens = np.random.default_rng(0).integers(3, 320, (3, 60)).astype(np.int32)
    found = np.asarray(forward(ours.config, ours.params, tokens))
    if row.ours == "reads":
        path = folder(row.model)
    theirs = hf.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    assert np.ptp(expected) > 2
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
    lm.save(ours, tmp_path / "saved")  # and what we write of it is read alike
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    with torch.no_grad():
        np.testing.assert_allclose(
            again(torch.from_numpy(tokens).long()).logits.numpy(), expected, atol=TOLERANCE, rtol=0
        )


def test_rows_do_not_share_names():
    assert len({row.name + row.model for row in ROWS}) == len(ROWS)
