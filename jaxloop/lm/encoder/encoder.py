"""Encoders: sentence embeddings and class probabilities from Hugging Face and sentence-transformers
directories, without torch.

Dimensions: R rows, T time, N = R T tokens, D width, E size of an embedding, C classes. Rows are
padded on the right; every row depends on its own text alone, and on the shape [R, T], which follows
from its own length.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file

from jaxloop.lm.encoder.config import (
    POOLINGS,
    EncoderSpec,
    encoder_config,
    encoder_table,
    read_encoder_spec,
)
from jaxloop.lm.io import huggingface, json_fields, safetensors_files, tokenizer_files
from jaxloop.lm.io.json_fields import optional_json
from jaxloop.lm.io.tokenizer import clean
from jaxloop.lm.model import attention, transformer
from jaxloop.lm.target import Target
from jaxloop.runtime.devices import platform_of

# Padded lengths, one program each: sixteen tokens apart, later at most a quarter of the length, so
# that little of a batch is padding.
LENGTHS = (16, 32, 48, 64, 80, 96, 112, 128, *(k << i for i in range(5, 11) for k in (5, 6, 7, 8)))
DENSE_ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": transformer.ACTIVATIONS["gelu"],
    "Sigmoid": jax.nn.sigmoid,
}


class Unsupported(ValueError):
    """A model that this module does not compute; `metrics.embed` gives it to sentence-transformers."""


class Readout(NamedTuple):
    """How token states become an embedding: poolings joined in order, then dense layers (names of
    their activations), then length one.
    """

    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[str, ...] = ()
    normalize: bool = False


class Encoder(NamedTuple):
    """An encoder with its weights and tokenizer. limit: tokens of a text that are read, special
    ones included; prefix: put before every text.
    """

    spec: EncoderSpec
    params: dict
    tokenizer: tokenizers.Tokenizer
    limit: int
    readout: Readout = Readout()
    prefix: str = ""
    name: str = ""


def load_encoder(
    path_or_hub_id, *, revision: str | None = None, dtype=jnp.float32, max_length: int | None = None
) -> Encoder:
    """The sentence encoder of a Hugging Face or sentence-transformers directory, or of a hub id.

    Architectures: BERT (MiniLM), RoBERTa, MPNet, DistilBERT, and the decoders of `jaxloop.lm`
    (Qwen2 with attention in both directions, as in stella_en_1.5B_v5). Pooling, dense layers,
    normalisation, length limit and default prompt are those that the directory's files declare;
    without such files the mean over tokens is taken. max_length overrides the declared limit.
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
    prefix = json_fields.mapping(settings, "prompts").get(settings.get("default_prompt_name")) or ""
    if prefix and any(
        optional_json(m / "config.json").get("include_prompt") is False for m in modules
    ):
        raise Unsupported(
            f"model: {path} leaves its prompt out of the pooling, which is not supported"
        )
    try:
        spec = read_encoder_spec(folder)
        params = _read(folder, spec, dtype)
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
    limit = _limit(folder, spec, max_length, json_fields.integer(declared, "max_seq_length", None))
    tokenizer = _tokenizer(folder, limit)
    tokenizer_files.check_rows(tokenizer, spec.core.vocab, folder)
    if declared.get("do_lower_case"):
        steps = [
            tokenizers.normalizers.Lowercase(),
            *([tokenizer.normalizer] if tokenizer.normalizer else []),
        ]
        tokenizer.normalizer = tokenizers.normalizers.Sequence(steps)
    return Encoder(spec, params, tokenizer, limit, readout, prefix, str(path_or_hub_id))


def load_classifier(
    path_or_hub_id,
    *,
    labels: Sequence[str] | None = None,
    revision: str | None = None,
    dtype=jnp.float32,
    max_length: int | None = None,
) -> Encoder:
    """An encoder with the sequence-classification head of its directory, or of a hub id.

    labels: names of the classes in the order of the outputs, where the config's own (LABEL_0, …)
    say nothing. max_length: tokens of a text that are read, at most and by default what the model
    can. Raises ValueError for a model that is missing or not supported.
    """
    path = huggingface.locate(str(path_or_hub_id), revision)
    spec = read_encoder_spec(path, head=True, labels=labels)
    limit = _limit(path, spec, max_length, None)
    tokenizer = _tokenizer(path, limit)
    tokenizer_files.check_rows(tokenizer, spec.core.vocab, path)
    return Encoder(spec, _read(path, spec, dtype), tokenizer, limit, name=str(path_or_hub_id))


def save_classifier(encoder: Encoder, path) -> None:
    """Write an encoder with a classification head as a directory that `load_classifier`, and
    `transformers`, load.
    """
    path, spec = Path(path), encoder.spec
    work = path.with_name(path.name + ".tmp")
    work.mkdir(parents=True, exist_ok=True)
    params = {
        **encoder.params,
        "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *encoder.params["layers"]),
    }
    save_file(
        huggingface.to_tensors(params, encoder_table(spec), spec.core.layers),
        work / "model.safetensors",
        metadata={"format": "pt"},
    )
    (work / "config.json").write_text(json.dumps(encoder_config(spec), indent=2), encoding="utf8")
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


# ---- reading directories
# ----------------------------------------------------------------------------------------------


def _locate(name: str, revision: str | None) -> Path:
    path = Path(name).expanduser()
    return path if (path / "modules.json").exists() else huggingface.locate(name, revision)


def read_modules(path: Path) -> tuple[Path, Readout, list[Path]]:
    """The transformer's folder, the readout, and the folders of the modules after it, as
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


def _read(folder: Path, spec: EncoderSpec, dtype) -> dict:
    """Weights with "layers" as a list, so that programs take no slices of them."""
    params = safetensors_files.read(
        safetensors_files.weights(folder), encoder_table(spec), spec.core.layers, dtype
    )
    return jax.tree.map(
        jnp.asarray,
        {
            **params,
            "layers": [transformer.layer(params["layers"], i) for i in range(spec.core.layers)],
        },
    )


def _read_dense(folder: Path, dtype) -> dict:
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


def _limit(folder: Path, spec: EncoderSpec, asked: int | None, declared: int | None) -> int:
    if asked is not None and not 3 <= asked <= spec.core.context:
        raise ValueError(
            f"max_length: {asked} tokens are not allowed; 3 to {spec.core.context}, the "
            f"positions of {folder}"
        )
    own = json_fields.number(
        optional_json(folder / "tokenizer_config.json"),
        "model_max_length",
        spec.core.context,
        low=1,
    )
    return int(min(spec.core.context, asked or declared or own))


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


# ---- running
# ----------------------------------------------------------------------------------------------------------


@functools.cache
def relative_buckets(time: int, buckets: int, distance: int) -> np.ndarray:
    """MPNet's bucket [T, T] of each (query, key) pair: half of the buckets per direction, exact to
    a quarter, then logarithmic to `distance`.
    """
    apart = np.arange(time)[None] - np.arange(time)[:, None]
    half, exact = buckets // 2, buckets // 4
    far = np.abs(apart).astype(np.float32)
    with np.errstate(divide="ignore"):
        grown = exact + (
            np.log(far / np.float32(exact))
            / np.float32(np.log(distance / exact))
            * np.float32(half - exact)
        ).astype(np.float32)
    index = np.where(far < exact, far, np.minimum(np.floor(np.maximum(grown, 0)), half - 1)).astype(
        np.int32
    )
    return index + np.where(apart > 0, half, 0).astype(np.int32)


def hidden(spec: EncoderSpec, params: dict, tokens_RT, length_R, target: Target = Target()):
    """Last hidden states [R, T, D] of right-padded tokens with `length_R` real ones each; those of
    padding are arbitrary.
    """
    core, (rows, time) = spec.core, tokens_RT.shape
    mask = jnp.arange(time)[None] < length_R[:, None]
    positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
    x = transformer.embed(core, params, tokens_RT.reshape(-1), positions)
    if spec.token_types:
        x = x + params["token_type"][:1]
    if spec.embed_norm:
        x = transformer.norm(core, x, params["embed_norm_scale"], params["embed_norm_bias"])
    tables = transformer.rope_tables(core, positions)
    if spec.causal:
        attend = attention.causal(core, rows, time, tables, target=target)
    else:
        bias = None
        if spec.relative_buckets:
            bias = params["relative"][
                relative_buckets(time, spec.relative_buckets, spec.relative_distance)
            ].transpose(2, 0, 1)
        attend = attention.bidirectional(core, rows, time, tables, mask, bias)
    for layer in params["layers"]:
        x = transformer.block(core, layer, None, x, attend)
    return transformer.finish(core, params, x).reshape(rows, time, -1)


def pool(mode: str, x_RTD, length_R):
    """One vector a row [R, D], float32, as sentence-transformers' pooling of that name."""
    x = x_RTD.astype(jnp.float32)
    time = x.shape[1]
    real = (jnp.arange(time)[None] < length_R[:, None])[:, :, None]
    count = jnp.maximum(length_R, 1).astype(jnp.float32)[:, None]
    if mode == "cls":
        return x[:, 0]
    if mode == "lasttoken":
        return jnp.take_along_axis(x, jnp.maximum(length_R - 1, 0)[:, None, None], 1)[:, 0]
    if mode == "max":
        return jnp.where(real, x, -jnp.inf).max(1)
    if mode == "weightedmean":
        weight = jnp.where(real, jnp.arange(1, time + 1, dtype=jnp.float32)[None, :, None], 0)
        return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
    total = jnp.where(real, x, 0).sum(1)
    return total / (jnp.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


@functools.partial(jax.jit, static_argnames=("spec", "readout", "target"))
def sentence_embedding(
    spec: EncoderSpec,
    readout: Readout,
    params: dict,
    tokens_RT,
    length_R,
    target: Target = Target(),
):
    """Embeddings [R, E] float32 of right-padded tokens: pooled, through the dense layers, of length
    one if the readout says so.
    """
    with jax.default_matmul_precision(
        "highest" if params["embed"].dtype == jnp.float32 else "default"
    ):
        x = hidden(spec, params, tokens_RT, length_R, target)
        x = jnp.concatenate([pool(mode, x, length_R) for mode in readout.pooling], -1)
        for name, layer in zip(readout.dense, params["dense"], strict=True):
            x = DENSE_ACTIVATIONS[name](
                x @ layer["w"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)[None]
            )
        return unit(x) if readout.normalize else x


def unit(x_RE):
    """Rows of length one; as torch's `normalize`, rows shorter than 1e-12 are divided by that."""
    return x_RE / jnp.maximum(jnp.sqrt((x_RE * x_RE).sum(-1, keepdims=True)), 1e-12)


def class_logits(
    spec: EncoderSpec,
    params: dict,
    tokens_RT,
    length_R,
    dropout: Callable = lambda x: x,
    target: Target = Target(),
):
    """Scores [R, C] float32 of each class before the softmax (or sigmoids). `dropout` is applied
    where the architecture's own code has it.
    """
    x = hidden(spec, params, tokens_RT, length_R, target)
    head = params["head"]
    x = pool("lasttoken" if spec.head == "last" else "cls", x, length_R)
    if "dense" in head:
        x = dropout(x) if spec.head == "dense" else x
        x = x @ head["dense"].astype(jnp.float32) + head["dense_bias"].astype(jnp.float32)[None]
        x = jax.nn.relu(x) if spec.head == "relu" else jnp.tanh(x)
    x = dropout(x) @ head["out"].astype(jnp.float32)
    return x + head["out_bias"].astype(jnp.float32)[None] if "out_bias" in head else x


@functools.partial(jax.jit, static_argnames=("spec", "target"))
def class_probabilities(
    spec: EncoderSpec, params: dict, tokens_RT, length_R, target: Target = Target()
):
    """Probabilities [R, C] float32: a softmax over the classes, or a sigmoid of each where they do
    not exclude each other.
    """
    with jax.default_matmul_precision(
        "highest" if params["embed"].dtype == jnp.float32 else "default"
    ):
        logits = class_logits(spec, params, tokens_RT, length_R, target=target)
    return jax.nn.sigmoid(logits) if spec.multi_label else jax.nn.softmax(logits, -1)


def token_ids(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with its special tokens, cut at the encoder's limit; lone surrogates
    are read as U+FFFD.
    """
    # An encoder without special tokens has none for an empty text either; its first token then
    # stands for "nothing".
    return [
        e.ids or [0]
        for e in encoder.tokenizer.encode_batch_fast(
            [encoder.prefix + clean(text) for text in texts]
        )
    ]


def sizes(limit: int) -> list[int]:
    """The padded lengths of an encoder that reads `limit` tokens."""
    return sorted({min(size, limit) for size in LENGTHS} | {limit})


def fill(
    ids: Sequence[Sequence[int]], limit: int, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [R, T] and lengths [R] of texts, padded to the first of `sizes` that holds the
    longest, and with empty rows to `rows`.
    """
    longest = max(map(len, ids))
    time = next(size for size in sizes(limit) if size >= longest)
    tokens, length = (
        np.zeros((rows or len(ids), time), np.int32),
        np.zeros(rows or len(ids), np.int32),
    )
    for row, text in enumerate(ids):
        tokens[row, : len(text)] = text
    length[: len(ids)] = [len(text) for text in ids]
    return tokens, length


def over_batches(
    run: Callable, ids: Sequence[Sequence[int]], *, limit: int, batch: int
) -> np.ndarray:
    """run(tokens [R, T], length [R]) -> [R, …] over texts of all lengths, rows back in the order of
    `ids`.

    T is the first of `LENGTHS` that holds the text (at most `limit`) and R = batch // T, padded
    with empty rows: few shapes, chosen by each text's own length, so that a row does not depend on
    the others.
    """
    lengths = np.array([len(i) for i in ids], np.int64)
    padded = np.array(sizes(limit))
    bucket = padded[np.searchsorted(padded, lengths)]
    order, pending = [], []
    for time in np.unique(bucket).tolist():
        members, rows = np.flatnonzero(bucket == time), max(1, batch // time)
        for at in range(0, len(members), rows):
            chosen = members[at : at + rows]
            order.append(chosen)
            pending.append(run(*fill([ids[i] for i in chosen], limit, rows)))
    # Cut on the host: on the device every other number of rows would be one more program.
    values = np.concatenate(
        [np.asarray(part)[: len(chosen)] for chosen, part in zip(order, pending, strict=True)]
    )
    out = np.empty_like(values)
    out[np.concatenate(order)] = values
    return out


def default_batch(params) -> int:
    """Padded tokens of a batch with these weights where the caller does not say."""
    return batch_on(platform_of(params))


def batch_on(platform: str) -> int:
    """Padded tokens of a batch: on a CPU, where more are not faster, few, so that last batches are
    not mostly padding; or what fills an accelerator.
    """
    return 512 if platform == "cpu" else 65536
