"""Shapes of the models that the papers train, for plans on machines without the models.

Each entry of `PUBLISHED` has the fields of the model's config.json that decide shapes and
positions, as its repositories on the hub publish them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxloop.studies.common.factors import short_name


class PublishedModel(NamedTuple):
    """A model on the hub.

    hub_ids: the repositories that hold it, the first one being the source of `config`; config: the
    fields of its config.json.
    """

    hub_ids: tuple[str, ...]
    config: Mapping[str, Any]


def _llama_3(factor: float, **fields: Any) -> dict[str, Any]:
    """The config.json of a Llama 3.1 or 3.2; factor: that of its RoPE scaling."""
    return dict(
        model_type="llama",
        vocab_size=128256,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=factor,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        **fields,
    )


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return dict(
        model_type="gpt2",
        vocab_size=50257,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=1024,
        activation_function="gelu_new",
        layer_norm_epsilon=1e-5,
    )


PUBLISHED: dict[str, PublishedModel] = {
    "Llama-3.2-1B": PublishedModel(
        ("meta-llama/Llama-3.2-1B", "unsloth/Llama-3.2-1B"),
        _llama_3(
            32.0,
            hidden_size=2048,
            num_hidden_layers=16,
            head_dim=64,
            intermediate_size=8192,
            tie_word_embeddings=True,
        ),
    ),
    "Llama-3.1-8B": PublishedModel(
        ("meta-llama/Llama-3.1-8B",),
        _llama_3(
            8.0,
            hidden_size=4096,
            num_hidden_layers=32,
            intermediate_size=14336,
            tie_word_embeddings=False,
        ),
    ),
    # The base models of this family say 131,072 positions, the instruction-tuned ones 32,768.
    "Qwen2.5-1.5B": PublishedModel(
        ("Qwen/Qwen2.5-1.5B", "unsloth/Qwen2.5-1.5B"),
        dict(
            model_type="qwen2",
            vocab_size=151936,
            hidden_size=1536,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            intermediate_size=8960,
            max_position_embeddings=131072,
            rms_norm_eps=1e-6,
            rope_theta=1000000.0,
            tie_word_embeddings=True,
        ),
    ),
    "SmolLM-1.7B": PublishedModel(
        ("HuggingFaceTB/SmolLM-1.7B",),
        dict(
            model_type="llama",
            vocab_size=49152,
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=32,
            num_key_value_heads=32,
            intermediate_size=8192,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            tie_word_embeddings=True,
        ),
    ),
    "Falcon3-1B-Base": PublishedModel(
        ("tiiuae/Falcon3-1B-Base",),
        dict(
            model_type="llama",
            vocab_size=131072,
            hidden_size=2048,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=4,
            head_dim=256,
            intermediate_size=8192,
            max_position_embeddings=4096,
            rms_norm_eps=1e-6,
            rope_theta=1000042.0,
            tie_word_embeddings=False,
        ),
    ),
    "opt-350m": PublishedModel(
        ("facebook/opt-350m",),
        dict(
            model_type="opt",
            vocab_size=50272,
            hidden_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            ffn_dim=4096,
            max_position_embeddings=2048,
            word_embed_proj_dim=512,
            do_layer_norm_before=False,
            _remove_final_layer_norm=False,
            activation_function="relu",
            tie_word_embeddings=True,
        ),
    ),
    "opt-1.3b": PublishedModel(
        ("facebook/opt-1.3b",),
        dict(
            model_type="opt",
            vocab_size=50272,
            hidden_size=2048,
            num_hidden_layers=24,
            num_attention_heads=32,
            ffn_dim=8192,
            max_position_embeddings=2048,
            word_embed_proj_dim=2048,
            do_layer_norm_before=True,
            _remove_final_layer_norm=False,
            activation_function="relu",
            tie_word_embeddings=True,
        ),
    ),
    "gpt2": PublishedModel(
        ("openai-community/gpt2", "gpt2"), _gpt2(width=768, layers=12, heads=12)
    ),
    "gpt2-xl": PublishedModel(
        ("openai-community/gpt2-xl", "gpt2-xl"), _gpt2(width=1600, layers=48, heads=25)
    ),
}


def by_hub_id(name: str) -> Mapping[str, Any] | None:
    """Return the config.json fields of a model by its hub id, or None where it is not listed."""
    return next((model.config for model in PUBLISHED.values() if name in model.hub_ids), None)


def by_short_name(name: str) -> Mapping[str, Any] | None:
    """Return the config.json fields of the model whose name ends a path or hub id.

    None where no model of that name is listed.
    """
    model = PUBLISHED.get(short_name(name))
    return None if model is None else model.config
