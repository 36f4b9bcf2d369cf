"""config.json of decoders: read to a `ModelConfig`, and written from one.

Every field is on a list: it is applied, or only some values of it are allowed, or it does not
change the logits. All others are refused by name.
"""

from collections.abc import Mapping
from typing import Any

from jaxloop.lm.io import json_fields
from jaxloop.lm.io.rope_json import ROPE_FIELDS, read_rope, rope_parameters
from jaxloop.lm.model.config import ARCHITECTURES, ModelConfig
from jaxloop.lm.model.dropout import DEFAULT_RATES, DropoutRates

# Fields that every architecture may have and that do not change the logits: names and versions,
# what `generate` and the heads of other tasks read, dropout (of training only, see
# `dropout_rate`), how the library computes.
HARMLESS = frozenset(
    """
    model_type architectures auto_map transformers_version _name_or_path name_or_path _commit_hash
    name license tags base_model library_name
    transformers.js_config custom_pipelines model_max_length seq_length max_sequence_length n_ctx
    unsloth_version unsloth_fixed
    unsloth_model_type unsloth_optimized use_flash_attn use_flash_attention use_flash_attention_2
    use_sdpa is_llama_config
    version description author created_date language model_name base_model_name padded_vocab_size
    bos_token eos_token pad_token unk_token cache_implementation
    dtype torch_dtype torchscript use_bfloat16 tf_legacy_loss xla_device pretraining_tp use_cache
    output_past keys_to_ignore_at_inference
    tie_encoder_decoder return_dict return_dict_in_generate output_attentions output_hidden_states
    output_scores tie_last_hidden_states chunk_size_feed_forward
    gradient_checkpointing _gradient_checkpointing attn_implementation _attn_implementation
    _attn_implementation_autoset _attn_implementation_internal
    _flash_attn_2_enabled _experts_implementation _pre_quantization_dtype _flash_attn_version
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id
    decoder_start_token_id tokenizer_class prefix
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p min_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens
    begin_suppress_tokens
    task_specific_params finetuning_task problem_type num_labels _num_labels id2label label2id
    classifier_dropout classifier_dropout_prob sentence_transformers
    initializer_range init_std initializer_factor attention_dropout hidden_dropout attn_dropout
    resid_dropout embd_dropout hidden_dropout_prob
    attention_probs_dropout_prob dropout activation_dropout classif_dropout layerdrop resid_pdrop
    embd_pdrop attn_pdrop neftune_noise_alpha
    """.split()
)
# Fields that change the logits, and the values with which they do not.
FIXED: dict[str, tuple] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({},),
    "use_mrope": (False,),
    "rope_interleaved": (False,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "logit_scale": (1, 1.0),
    "activation": ("swiglu",),
    "bias": (False,),
    "parallel_residual": (False,),
    "use_parallel_residual": (False,),
    "alibi": (False,),
    "quantization_config": ({},),
}

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python_tanh": "gelu_new",
}


def activation(c: Mapping, field: str, default: str) -> str:
    """Return the activation of a field. ValueError for one that is not computed."""
    return _ACTIVATIONS[json_fields.choice(c, field, tuple(_ACTIVATIONS), default)]


def parse_config(
    c: Mapping[str, Any], *, where: str = "config.json", causal: bool = True
) -> ModelConfig:
    """Return the `ModelConfig` of a config.json's fields.

    `where` names the file in messages; with `causal`, is_causal = false is refused.

    Raises ValueError, naming the field, for anything that the decoder would not compute exactly.
    """
    kind = c.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(
            f"model: model_type {kind!r} of {where} is not supported; allowed are "
            f"{', '.join(ARCHITECTURES)}"
        )
    check_quantised(c, where)
    try:
        return _READERS[kind](_aliased(c, kind), causal)
    except KeyError as error:
        raise ValueError(
            f"model: {where} has no field {error.args[0]!r}, which {kind} models need"
        ) from None


def dropout_rate(c: Mapping, field: str, default: float) -> float:
    """Return the rate of a dropout field. ValueError for what is no number from 0 to below 1."""
    rate = json_fields.number(c, field, default, low=0)
    if rate >= 1:
        json_fields.refuse(field, rate, "a number of at least 0, below 1")
    return float(rate)


def check_quantised(c: Mapping[str, Any], where: str) -> None:
    """Raises `Refused` for a config.json that says that the weights are quantised, in the words of
    any of the libraries that do it.
    """
    for field in ("quantization_config", "compression_config", "quantization", "hf_quant_config"):
        settings = c.get(field)
        if settings:
            known = settings if isinstance(settings, dict) else {}
            method = (
                known.get("quant_method")
                or known.get("quantization_method")
                or known.get("quant_algo")
                or "no name given"
            )
            raise json_fields.Refused(
                f"model: {field} of {where} says that the weights are quantised ({method}); save "
                "the model dequantised, without this field"
            )


def _aliased(c: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The fields under the architecture's own names; `transformers` takes GPT-2's under those of
    other models too.
    """
    out = dict(c)
    for other, own in _ALIASES.get(kind, {}).items():
        if out.get(other) is not None and out.get(own) is not None and out[other] != out[own]:
            raise ValueError(
                f"model: {other} = {out[other]!r} and {own} = {out[own]!r} stand for one thing; "
                "leave only the one that is meant"
            )
        if other in out:
            value = out.pop(other)
            out[own] = value if out.get(own) is None else out[own]
    return out


_ALIASES = {
    "gpt2": dict(
        hidden_size="n_embd",
        max_position_embeddings="n_positions",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    )
}


def _heads(c: Mapping, width: str, heads: str) -> tuple[int, int]:
    d, h = json_fields.integer(c, width), json_fields.integer(c, heads)
    if d % h:
        raise ValueError(f"model: {width} = {d} is not a multiple of {heads} = {h}, as it must be")
    return d, h


def _llama(c: Mapping, causal: bool) -> ModelConfig:
    qwen = c["model_type"] == "qwen2"
    known = {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "rms_norm_eps",
        "tie_word_embeddings",
        "sliding_window",
        "layer_types",
        "max_window_layers",
        "use_sliding_window",
        *ROPE_FIELDS,
    }
    known |= set() if qwen else {"attention_bias", "mlp_bias"}
    fixed = {"is_causal": (True,) if causal else (True, False), "is_decoder": (True, False)}
    fixed |= {"attention_bias": (True,), "mlp_bias": (False,)} if qwen else {}
    json_fields.check_known(c, HARMLESS | known, FIXED | fixed, f"{c['model_type']} models")
    heads = json_fields.integer(c, "num_attention_heads")
    width, size = json_fields.integer(c, "hidden_size"), json_fields.integer(c, "head_dim", None)
    if size is None:
        size = _heads(c, "hidden_size", "num_attention_heads")[0] // heads
    if size % 2:
        raise ValueError(
            f"model: head_dim = {size} is not supported; allowed: an even number, as positions "
            "turn pairs"
        )
    kv_heads = json_fields.integer(c, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(
            f"model: num_attention_heads = {heads} is not a multiple of num_key_value_heads = "
            f"{kv_heads}, as it must be"
        )
    layers = json_fields.integer(c, "num_hidden_layers")
    context = json_fields.integer(c, "max_position_embeddings", 32768 if qwen else 2048)
    _check_windows(c, qwen, layers, context)
    bias = qwen or json_fields.truth(c, "attention_bias", False)
    return ModelConfig(
        architecture="qwen2" if qwen else "llama",
        vocab_size=json_fields.integer(c, "vocab_size"),
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        d_ff=json_fields.integer(c, "intermediate_size"),
        norm="rms",
        norm_eps=json_fields.number(c, "rms_norm_eps", 1e-6, low=0),
        activation=activation(c, "hidden_act", "silu"),
        gated=True,
        positions="rope",
        qkv_bias=bias,
        o_bias=bias and not qwen,
        mlp_bias=not qwen and json_fields.truth(c, "mlp_bias", False),
        tie_word_embeddings=json_fields.truth(c, "tie_word_embeddings", False),
        init_scale=json_fields.number(c, "initializer_range", 0.02, low=0),
        dropout=DropoutRates(attention=dropout_rate(c, "attention_dropout", 0.0)),
        **read_rope(c, size, context)._asdict(),
    )


def _check_windows(c: Mapping, qwen: bool, layers: int, context: int) -> None:
    """Attention within a window is not computed, so every window must hold the whole context, or
    serve no layer.
    """
    used = json_fields.truth(c, "use_sliding_window", not qwen)
    window, first = (
        json_fields.integer(c, "sliding_window", None),
        json_fields.integer(c, "max_window_layers", 28 if qwen else 0, low=0),
    )
    types = json_fields.given(c, "layer_types", None)
    if types is not None and (
        not isinstance(types, list)
        or len(types) != layers
        or not set(types) <= {"full_attention", "sliding_attention"}
    ):
        json_fields.refuse("layer_types", types, f"{layers} times 'full_attention'")
    sliding = "sliding_attention" in types if types is not None else used and first < layers
    if not sliding:
        return
    if types is not None and (window is None or not used):
        json_fields.refuse("layer_types", types, f"{layers} times 'full_attention'")
    if window is not None and window < context:
        json_fields.refuse(
            "sliding_window",
            window,
            f"at least max_position_embeddings = {context}, or use_sliding_window = false",
        )


def _gpt2(c: Mapping, causal: bool) -> ModelConfig:
    known = {
        "vocab_size",
        "n_embd",
        "n_layer",
        "n_head",
        "n_inner",
        "n_positions",
        "layer_norm_epsilon",
        "activation_function",
        "tie_word_embeddings",
        "reorder_and_upcast_attn",
        "summary_type",
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
        "predict_special_tokens",
    }
    fixed: dict[str, tuple] = {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "is_causal": (True,),
        "is_decoder": (True, False),
    }
    fixed |= {
        "n_special": (0,)
    }  # rows of special tokens beyond vocab_size, in the files of the first versions
    json_fields.check_known(c, HARMLESS | known, FIXED | fixed, "gpt2 models")
    d, heads = _heads(c, "n_embd", "n_head")
    return ModelConfig(
        architecture="gpt2",
        vocab_size=json_fields.integer(c, "vocab_size"),
        d_model=d,
        num_layers=json_fields.integer(c, "n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        d_ff=json_fields.integer(c, "n_inner", 4 * d),
        max_seq_len=json_fields.integer(c, "n_positions", 1024),
        norm="layer",
        norm_eps=json_fields.number(c, "layer_norm_epsilon", 1e-5, low=0),
        activation=activation(c, "activation_function", "gelu_new"),
        gated=False,
        positions="learned",
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_word_embeddings=json_fields.truth(c, "tie_word_embeddings", True),
        init_scale=json_fields.number(c, "initializer_range", 0.02, low=0),
        dropout=_gpt2_dropout(c),
    )


def _gpt2_dropout(c: Mapping) -> DropoutRates:
    absent = DEFAULT_RATES["gpt2"]
    residual = dropout_rate(c, "resid_pdrop", absent.mlp_output)
    return DropoutRates(
        embedding=dropout_rate(c, "embd_pdrop", absent.embedding),
        attention=dropout_rate(c, "attn_pdrop", absent.attention),
        attention_output=residual,
        mlp_output=residual,
    )


def _opt_dropout(c: Mapping) -> DropoutRates:
    absent = DEFAULT_RATES["opt"]
    residual = dropout_rate(c, "dropout", absent.mlp_output)
    return DropoutRates(
        attention=dropout_rate(c, "attention_dropout", absent.attention),
        attention_output=residual,
        mlp_output=residual,
        layers=dropout_rate(c, "layerdrop", absent.layers),
    )


def _opt(c: Mapping, causal: bool) -> ModelConfig:
    known = {
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
        "max_position_embeddings",
        "do_layer_norm_before",
        "_remove_final_layer_norm",
        "word_embed_proj_dim",
        "activation_function",
        "enable_bias",
        "tie_word_embeddings",
    }
    fixed: dict[str, tuple] = {
        "layer_norm_elementwise_affine": (True,),
        "is_causal": (True,),
        "is_decoder": (True, False),
    }
    fixed |= {"learned_embeddings": (True,), "scale_embeddings": (False,)}
    json_fields.check_known(c, HARMLESS | known, FIXED | fixed, "opt models")
    d, heads = _heads(c, "hidden_size", "num_attention_heads")
    bias, first = (
        json_fields.truth(c, "enable_bias", True),
        json_fields.truth(c, "do_layer_norm_before", True),
    )
    embed = json_fields.integer(c, "word_embed_proj_dim", d)
    return ModelConfig(
        architecture="opt",
        vocab_size=json_fields.integer(c, "vocab_size"),
        d_model=d,
        num_layers=json_fields.integer(c, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=d // heads,
        d_ff=json_fields.integer(c, "ffn_dim"),
        max_seq_len=json_fields.integer(c, "max_position_embeddings", 2048),
        norm="layer",
        norm_first=first,
        final_norm=first and not json_fields.truth(c, "_remove_final_layer_norm", False),
        activation=activation(c, "activation_function", "relu"),
        gated=False,
        positions="learned",
        position_offset=2,
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=json_fields.truth(c, "tie_word_embeddings", True),
        embed_dim=0 if embed == d else embed,
        init_scale=json_fields.number(c, "init_std", 0.02, low=0),
        dropout=_opt_dropout(c),
    )


_READERS = {"llama": _llama, "qwen2": _llama, "gpt2": _gpt2, "opt": _opt}


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """Return the config.json of a config, as `transformers` reads it."""
    if config.architecture == "gpt2":
        return dict(
            model_type="gpt2",
            architectures=["GPT2LMHeadModel"],
            vocab_size=config.vocab_size,
            n_embd=config.d_model,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.d_ff,
            n_positions=config.max_seq_len,
            layer_norm_epsilon=config.norm_eps,
            activation_function=config.activation,
            tie_word_embeddings=config.tie_word_embeddings,
            initializer_range=config.init_scale,
            embd_pdrop=config.dropout.embedding,
            attn_pdrop=config.dropout.attention,
            resid_pdrop=config.dropout.mlp_output,
        )
    if config.architecture == "opt":
        return dict(
            model_type="opt",
            architectures=["OPTForCausalLM"],
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            ffn_dim=config.d_ff,
            max_position_embeddings=config.max_seq_len,
            do_layer_norm_before=config.norm_first,
            _remove_final_layer_norm=config.norm_first and not config.final_norm,
            word_embed_proj_dim=config.embed_dim or config.d_model,
            activation_function=config.activation,
            enable_bias=config.mlp_bias,
            tie_word_embeddings=config.tie_word_embeddings,
            init_std=config.init_scale,
            attention_dropout=config.dropout.attention,
            dropout=config.dropout.mlp_output,
            layerdrop=config.dropout.layers,
        )
    name = {"llama": "Llama", "qwen2": "Qwen2"}[config.architecture]
    bias = (
        {}
        if config.architecture == "qwen2"
        else dict(attention_bias=config.qkv_bias, mlp_bias=config.mlp_bias)
    )
    return dict(
        model_type=config.architecture,
        architectures=[f"{name}ForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_seq_len,
        rms_norm_eps=config.norm_eps,
        hidden_act=config.activation,
        tie_word_embeddings=config.tie_word_embeddings,
        initializer_range=config.init_scale,
        rope_parameters=rope_parameters(config.rope_theta, config.rope_scaling),
        rope_theta=config.rope_theta,
        attention_dropout=config.dropout.attention,
        **bias,
    )
