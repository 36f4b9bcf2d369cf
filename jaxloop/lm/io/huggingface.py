"""Reading and writing Hugging Face model directories: config.json, safetensors, tokenizer.json.
Weights are never unpickled.

Dimensions: as in `config.py`.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from safetensors.numpy import save_file

from jaxloop.lm.io import hub_files, identity, json_fields, safetensors_files, tokenizer_files
from jaxloop.lm.io import tokenizer as tokenize
from jaxloop.lm.io.config_json import config_fields, parse_config
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig, Param, table
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.user_path import user_path

HEAD = "lm_head.weight"


class Model(NamedTuple):
    """A base model: its static description, its weights, its tokenizer, and where it came from.

    revision: its commit on the hub; None where it came from a directory. chat_template: that of its
    files, or their list of named ones.
    """

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer
    name: str = ""
    revision: str | None = None
    chat_template: Any = None


def load(
    path_or_hub_id: str | Path, *, revision: str | None = None, dtype: DTypeLike = jnp.float32
) -> Model:
    """Load a decoder from a local directory or the Hugging Face hub.

    path_or_hub_id: a directory, or an id such as "HuggingFaceTB/SmolLM-1.7B" (then `revision` picks
    a commit; cached by huggingface_hub). dtype: of the weights in memory. Raises ValueError for a
    missing or unsupported model, pickled or quantised weights, files of which it is not clear which
    are meant, tensors that are missing or of the wrong shape, a tokenizer without EOS or with ids
    beyond the embeddings.
    """
    path = locate(str(path_or_hub_id), revision)
    opened = _open(path)
    arrays = safetensors_files.read(
        opened.weights, opened.parameters, opened.config.num_layers, jnp.dtype(dtype)
    )
    return Model(
        opened.config,
        jax.tree.map(jax.device_put, arrays),
        opened.tokenizer,
        name=str(path_or_hub_id),
        revision=identity.commit_on_hub(str(path_or_hub_id), path),
        chat_template=tokenizer_files.chat_template(path),
    )


def locate(name: str, revision: str | None = None) -> Path:
    """Return the local directory of a model; where it is not a path, what is read of it is
    downloaded from the hub.

    Raises ValueError where there is neither, as `hub_files.download`.
    """
    path = user_path(name)
    if path.is_dir():
        if not (path / "config.json").exists() and (path / safetensors_files.ADAPTER).exists():
            raise ValueError(
                f"model: {name} holds an adapter ({safetensors_files.ADAPTER}) without its base; "
                "merge it into its base, and give that directory"
            )
        if not (path / "config.json").exists():
            raise ValueError(
                f"model: {name} has no config.json; a Hugging Face model directory is needed"
            )
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 and "/" in name:
        raise ValueError(f"model: directory {name} does not exist")
    return hub_files.download(name, revision)


def read_model_config(path: str | Path, *, causal: bool = True) -> ModelConfig:
    """Read the config.json of a model directory, whatever weights lie beside it.

    With `causal`, is_causal = false is refused.

    Raises ValueError, naming the field, for anything that the decoder would not compute exactly.
    """
    file = Path(path) / "config.json"
    return parse_config(json_fields.read_json(file), where=str(file), causal=causal)


class _Opened(NamedTuple):
    """A model directory, its weights unread: what they are read with."""

    config: ModelConfig
    tokenizer: Tokenizer
    weights: safetensors_files.Weights
    parameters: tuple[Param, ...]


def describe(path: str | Path) -> tuple[ModelConfig, Tokenizer]:
    """Return config and tokenizer of a model directory.

    Everything is checked that `load` would refuse; of the weights only the headers are read, so
    that it takes no time. Raises as `load`.
    """
    opened = _open(Path(path))
    return opened.config, opened.tokenizer


def _open(path: Path) -> _Opened:
    config = read_model_config(path)
    weights = safetensors_files.weights(path)
    config, parameters = _tied(config, weights)
    safetensors_files.check(weights, parameters, config.num_layers)
    tokenizer = tokenize.load(path)
    check_vocabulary(tokenizer, config, path)
    if tokenizer.pad >= config.vocab_size:  # never read, but looked up
        tokenizer = dataclasses.replace(tokenizer, pad=tokenizer.eos)
    return _Opened(config, tokenizer, weights, parameters)


def _tied(
    config: ModelConfig, weights: safetensors_files.Weights
) -> tuple[ModelConfig, tuple[Param, ...]]:
    """The config, and its parameters, with the output matrix that the file holds: as in
    `transformers` 5, a head beside other embeddings is read although config.json ties them, and one
    that stands for both is both.
    """
    parameters = table(config)
    head = safetensors_files.find(weights, HEAD) if config.tie_word_embeddings else None
    if head is None:
        return config, parameters
    embed = next(p for p in parameters if p.path == ("embed",))
    there = safetensors_files.find(weights, embed.sources[0].name)
    if there is None:
        only = embed._replace(sources=(embed.sources[0]._replace(name=HEAD),))
        return config, tuple(only if p is embed else p for p in parameters)
    if safetensors_files.same(weights, there, head):
        return config, parameters
    LOGGER.warning(
        "%s holds another lm_head.weight than its embeddings although its config.json ties them; "
        "the head is read",
        weights.path,
    )
    own = dataclasses.replace(config, tie_word_embeddings=False)
    return own, table(own)


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, path: str | Path) -> None:
    """Raises ValueError where the tokenizer has ids for which the model has no row."""
    for name, number in (("EOS", tokenizer.eos), ("BOS", tokenizer.bos)):
        if number is not None and number >= config.vocab_size:
            field = f"{name.lower()}_token_id"
            raise ValueError(
                f"model: {name} token {number} of {path} is outside the model's vocabulary of "
                f"{config.vocab_size}; "
                f"set {field} in its config.json and generation_config.json, which may have a "
                "library's default"
            )
    tokenizer_files.check_rows(tokenizer.backend, config.vocab_size, path)


def save(model: Model, path: str | Path) -> None:
    """Write `model` as a directory (config.json, model.safetensors, tokenizer files) that
    `transformers` loads.

    Weights keep their dtype, and the tokenizer the chat template of the model that was loaded.
    Everything is written to a temporary directory first and renamed, so a killed save leaves no
    half model.
    """
    path = Path(path)
    work = path.with_name(path.name + ".tmp")
    work.mkdir(parents=True, exist_ok=True)
    config = model.config
    save_file(
        to_tensors(model.params, table(config), config.num_layers),
        work / "model.safetensors",
        metadata={"format": "pt"},
    )
    t = model.tokenizer
    ids = dict(
        eos_token_id=list(t.ends) if t.other_ends else t.eos, bos_token_id=t.bos, pad_token_id=t.pad
    )
    (work / "config.json").write_text(
        json.dumps(
            config_fields(config)
            | ids
            | {"dtype": str(np.asarray(jax.tree.leaves(model.params)[0]).dtype)},
            indent=2,
        ),
        encoding="utf8",
    )
    t.backend.save(str(work / "tokenizer.json"))
    special = {
        f"{k}_token": t.backend.id_to_token(v)
        for k, v in dict(eos=t.eos, bos=t.bos, pad=t.pad).items()
        if v is not None
    }
    if model.chat_template is not None:
        special["chat_template"] = model.chat_template
    (work / "tokenizer_config.json").write_text(
        json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", **special), indent=2),
        encoding="utf8",
    )
    (work / "generation_config.json").write_text(
        json.dumps({k: v for k, v in ids.items() if v is not None}), encoding="utf8"
    )
    move_into(work, path)


def to_tensors(params: dict, parameters: Sequence[Param], layers: int) -> dict[str, np.ndarray]:
    """Return the tensors of a file, by their Hugging Face names, from the pytree of `parameters`:
    the inverse of `safetensors_files.read`.
    """
    tensors = {}
    for p in parameters:
        node: Any = params
        for name in p.path:
            node = node[name]
        leaf = np.asarray(node)
        for i in range(layers if p.path[0] == "layers" else 1):
            value, at = (leaf[i] if p.path[0] == "layers" else leaf), 0
            for source in p.sources:
                part = value[..., at : at + source.width]
                tensors[source.name.format(i=i)] = np.ascontiguousarray(
                    part.T if p.transposed and part.ndim == 2 else part
                )
                at += source.width
    return tensors


def move_into(work: Path, path: Path) -> None:
    """Make the finished directory `work` the directory `path`. What lay there besides weights and
    files of the same names stays.

    A whole model is at `path` at every moment but between two renames; killed just there, the old
    one lies beside it, named .old.
    """
    if not path.exists():
        work.replace(path)
        return
    weights = {
        f.name
        for pattern in ("*.safetensors", "*.safetensors.index.json")
        for f in path.glob(pattern)
    }
    for kept in path.iterdir():
        if kept.name not in weights and not (work / kept.name).exists():
            (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, work / kept.name)
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    path.replace(old)
    work.replace(path)
    shutil.rmtree(old)
