"""Encoders from Hugging Face and sentence-transformers directories, and classifiers to them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from jaxloop.lm.encoder.config import (
    POOLINGS,
    EncoderConfig,
    encoder_config_fields,
    read_encoder_config,
)
from jaxloop.lm.encoder.encoder import DENSE_ACTIVATIONS, Encoder, Readout
from jaxloop.lm.encoder.tables import encoder_table
from jaxloop.lm.io import huggingface, json_fields, safetensors_files, tokenizer_files
from jaxloop.lm.io.json_fields import optional_json
from jaxloop.lm.model import transformer
from jaxloop.runtime.user_path import user_path


class Unsupported(ValueError):
    """A model not computed here; `metrics.embed` gives it to sentence-transformers."""


def load_encoder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    max_length: int | None = None,
    weights: bool = True,
) -> Encoder:
    """Return the sentence encoder of a Hugging Face or sentence-transformers directory, or of a hub
    id.

    Architectures: BERT (MiniLM), ALBERT, RoBERTa, MPNet, DistilBERT, and the decoders of
    `jaxloop.lm` (Qwen2 with attention in both directions, as in stella_en_1.5B_v5). Pooling, dense
    layers, normalisation, length limit and default prompt are those that the files declare;
    without such files the mean over tokens is taken. max_length overrides the declared limit. With
    weights=False those of the blocks are checked and not read, which takes no time.
    Raises ValueError for a model that is missing, and `Unsupported` (a ValueError) for one that
    would not be computed exactly.
    """
    path = _locate(str(path_or_hub_id), revision)
    folder, readout, modules = read_modules(path)
    settings = optional_json(path / "config_sentence_transformers.json")
    if (size := settings.get("truncate_dim")) is not None:
        raise Unsupported(
            f"model: truncate_dim = {json_fields.short(size)} of {path}, which cuts embeddings, is "
            "not supported"
        )
    prefix = (
        json_fields.mapping(settings, "prompts").get(str(settings.get("default_prompt_name"))) or ""
    )
    if prefix and any(
        optional_json(m / "config.json").get("include_prompt") is False for m in modules
    ):
        raise Unsupported(
            f"model: {path} leaves its prompt out of the pooling, which is not supported"
        )
    try:
        config = read_encoder_config(folder)
        params = _read(folder, config, dtype) if weights else _checked(folder, config)
    except (Unsupported, json_fields.Refused):
        raise
    except ValueError as error:
        raise Unsupported(str(error)) from None
    params["dense"] = [
        _read_dense(m, dtype)
        for m in modules
        if (m / "config.json").exists() and "in_features" in optional_json(m / "config.json")
    ]
    declared = optional_json(folder / "sentence_bert_config.json")
    limit = _limit(
        folder, config, max_length, json_fields.integer(declared, "max_seq_length", None)
    )
    tokenizer = _tokenizer(folder, limit)
    tokenizer_files.check_rows(tokenizer, config.core.vocab_size, folder)
    if declared.get("do_lower_case"):
        steps = [
            tokenizers.normalizers.Lowercase(),
            *([tokenizer.normalizer] if tokenizer.normalizer else []),
        ]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    return Encoder(config, params, tokenizer, limit, readout, prefix, str(path_or_hub_id))


def load_classifier(
    path_or_hub_id: str | Path,
    *,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    dtype: DTypeLike = jnp.float32,
    max_length: int | None = None,
) -> Encoder:
    """Return an encoder with the sequence-classification head of its directory, or of a hub id.

    labels: names of the classes in the order of the outputs, where the config's own (LABEL_0, …)
    say nothing. max_length: tokens of a text that are read, at most and by default what the model
    can. Raises ValueError for a model that is missing or not supported.
    """
    path = huggingface.locate(str(path_or_hub_id), revision)
    config = read_encoder_config(path, head=True, labels=labels)
    limit = _limit(path, config, max_length, None)
    tokenizer = _tokenizer(path, limit)
    tokenizer_files.check_rows(tokenizer, config.core.vocab_size, path)
    return Encoder(config, _read(path, config, dtype), tokenizer, limit, name=str(path_or_hub_id))


def save_classifier(encoder: Encoder, path: str | Path) -> None:
    """Write an encoder with a classification head as a directory that `load_classifier`, and
    `transformers`, load.
    """
    path, config = Path(path), encoder.config
    work = path.with_name(path.name + ".tmp")
    work.mkdir(parents=True, exist_ok=True)
    params = {
        **encoder.params,
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *encoder.params["layers"]),
    }
    save_file(
        huggingface.to_tensors(params, encoder_table(config), config.stored_layers),
        work / "model.safetensors",
        metadata={"format": "pt"},
    )
    (work / "config.json").write_text(
        json.dumps(encoder_config_fields(config), indent=2), encoding="utf8"
    )
    encoder.tokenizer.save(str(work / "tokenizer.json"))
    special = {f"{name}_token": token for name, token in _special_tokens(encoder.tokenizer).items()}
    settings = dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=encoder.limit, **special
    )
    (work / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf8")
    huggingface.move_into(work, path)


def _special_tokens(backend: tokenizers.Tokenizer) -> dict[str, str]:
    usual = dict(
        pad=("[PAD]", "<pad>"),
        unk=("[UNK]", "<unk>"),
        cls=("[CLS]", "<s>"),
        sep=("[SEP]", "</s>"),
        mask=("[MASK]", "<mask>"),
        eos=("</s>", "<|endoftext|>"),
    )
    found = {
        name: next((t for t in tokens if backend.token_to_id(t) is not None), None)
        for name, tokens in usual.items()
    }
    return {name: token for name, token in found.items() if token}


def _locate(name: str, revision: str | None) -> Path:
    path = user_path(name)
    return path if (path / "modules.json").exists() else huggingface.locate(name, revision)


def read_modules(path: Path) -> tuple[Path, Readout, list[Path]]:
    """Return the transformer's folder, the readout, and the folders of the modules after it, as
    modules.json of sentence-transformers declares them.

    Raises `Unsupported` for a module that is not Transformer, Pooling, Dense or Normalize, or that
    stands in an unusual place.
    """
    if not (path / "modules.json").exists():
        return path, Readout(), []
    listed = json_fields.read_value(path / "modules.json")
    if not isinstance(listed, list) or not all(
        isinstance(m, dict) and isinstance(m.get("type"), str) and isinstance(m.get("path"), str)
        for m in listed
    ):
        raise ValueError(f"model: modules.json of {path} lists no modules with type and path")
    kinds = [m["type"].rsplit(".", 1)[-1] for m in listed]
    folders = [path / m["path"] for m in listed]
    middle = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or set(middle) - {"Dense"}:
        raise Unsupported(
            f"model: the modules {', '.join(kinds)} of {path} are not supported; allowed are "
            "Transformer, Pooling, Dense and Normalize in this order"
        )
    pooling = optional_json(folders[1] / "config.json")
    chosen = pooling.get("pooling_mode")
    if chosen is None:
        old = {
            "cls_token": "cls",
            "max_tokens": "max",
            "mean_tokens": "mean",
            "weightedmean_tokens": "weightedmean",
        }
        chosen = [
            old.get(k, k)
            for k in (
                key.removeprefix("pooling_mode_")
                for key, value in pooling.items()
                if key.startswith("pooling_mode_") and value
            )
        ]
        chosen = sorted(chosen, key=lambda mode: POOLINGS.index(mode) if mode in POOLINGS else 0)
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen) or ("mean",)
    if unknown := [mode for mode in chosen if mode not in POOLINGS]:
        raise Unsupported(
            f"model: pooling {unknown[0]!r} of {path} is not supported; allowed: "
            f"{', '.join(POOLINGS)}"
        )
    activations = []
    for folder, kind in zip(folders, kinds, strict=True):
        if kind == "Dense":
            config = optional_json(folder / "config.json")
            name = str(config.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
            if (
                name not in DENSE_ACTIVATIONS
                or config.get("use_residual")
                or config.get("module_input_name", "sentence_embedding") != "sentence_embedding"
            ):
                raise Unsupported(
                    f"model: the dense layer {folder} is not supported; allowed are the "
                    f"activations {', '.join(DENSE_ACTIVATIONS)}, without a residual"
                )
            activations.append(name)
    return folders[0], Readout(chosen, tuple(activations), kinds[-1] == "Normalize"), folders[1:]


def _read(folder: Path, config: EncoderConfig, dtype: DTypeLike) -> dict[str, Any]:
    """Weights with "layers" as a list, so that programs take no slices of them."""
    params = safetensors_files.read(
        safetensors_files.weights(folder), encoder_table(config), config.stored_layers, dtype
    )
    return jax.tree.map(
        jnp.asarray,
        {
            **params,
            "layers": [transformer.layer(params["layers"], i) for i in range(config.stored_layers)],
        },
    )


def _checked(folder: Path, config: EncoderConfig) -> dict[str, Any]:
    """No weights; raises ValueError where `_read` would."""
    found = safetensors_files.weights(folder)
    safetensors_files.check(found, encoder_table(config), config.stored_layers)
    return {}


def _read_dense(folder: Path, dtype: DTypeLike) -> dict[str, jax.Array]:
    weights = safetensors_files.weights(folder)
    weight, bias = (
        safetensors_files.tensor(weights, name) for name in ("linear.weight", "linear.bias")
    )
    if weight is None:
        raise Unsupported(f"model: tensor linear.weight is missing from {folder}")
    return {
        "w": jnp.asarray(weight.T.astype(dtype)),
        "bias": jnp.zeros(len(weight), dtype) if bias is None else jnp.asarray(bias.astype(dtype)),
    }


def _limit(folder: Path, config: EncoderConfig, asked: int | None, declared: int | None) -> int:
    if asked is not None and not 3 <= asked <= config.core.max_seq_len:
        raise ValueError(
            f"max_length: {asked} tokens are not allowed; 3 to {config.core.max_seq_len}, the "
            f"positions of {folder}"
        )
    own = json_fields.number(
        optional_json(folder / "tokenizer_config.json"),
        "model_max_length",
        config.core.max_seq_len,
        low=1,
    )
    return int(min(config.core.max_seq_len, asked or declared or own))


def _tokenizer(folder: Path, limit: int) -> tokenizers.Tokenizer:
    backend = tokenizer_files.read(folder)
    settings = optional_json(folder / "tokenizer_config.json")
    end = settings.get("eos_token")
    end = end.get("content") if isinstance(end, dict) else end
    if (
        settings.get("add_eos_token")
        and end
        and backend.token_to_id(end) is not None
        and backend.encode("a").tokens[-1] != end
    ):
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, backend.token_to_id(end))]
        )
    backend.encode_special_tokens = True  # texts are measured as texts, see lm/io/tokenizer.py
    backend.enable_truncation(limit)
    return backend
