"""Reading and writing Hugging Face model directories: config.json, safetensors, tokenizer.json. Weights are never unpickled.

Dimensions: as in `spec.py`.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxloop.lm import tokenize
from jaxloop.lm.spec import ARCHITECTURES, Param, RopeScaling, Spec, nest, table
from jaxloop.lm.tokenize import Tokenizer


class Model(NamedTuple):
    """A base model: its static description, its weights, its tokenizer, and where it came from."""

    spec: Spec
    params: dict
    tokenizer: Tokenizer
    name: str = ""


def load(path_or_hub_id, *, revision: str | None = None, dtype=jnp.float32) -> Model:
    """Load a decoder from a local directory or the Hugging Face hub.

    path_or_hub_id: a directory, or an id such as "HuggingFaceTB/SmolLM-1.7B" (then `revision` picks a commit; cached by huggingface_hub).
    dtype: of the weights in memory. Raises ValueError for a missing or unsupported model, pickled weights, tensors that are missing or of the
    wrong shape, and a tokenizer without EOS.
    """
    path = locate(str(path_or_hub_id), revision)
    spec = read_spec(path)
    tokenizer = tokenize.load(path)
    if tokenizer.eos >= spec.vocab:
        raise ValueError(f"model: EOS token {tokenizer.eos} of {path} is outside the model's vocabulary of {spec.vocab}")
    return Model(spec, read_params(path, table(spec), spec.layers, dtype), tokenizer, str(path_or_hub_id))


def locate(name: str, revision: str | None = None) -> Path:
    """The local directory of a model, downloading configuration, tokenizer and safetensors from the hub where it is not a path.

    Raises ValueError where there is neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ValueError(f"model: {name} has no config.json; a Hugging Face model directory is needed")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1 and "/" in name:
        raise ValueError(f"model: directory {name} does not exist")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "vocab.json"])
    except Exception as error:
        raise ValueError(
            f"model: {name!r} is neither a directory here nor reachable on the hub ({type(error).__name__}); give a path to a downloaded model"
        ) from None
    return Path(found)


def read_spec(path) -> Spec:
    """The `Spec` of a model directory. Raises ValueError, naming the field, for anything that the decoder would not compute exactly."""
    path = Path(path)
    try:
        c = json.loads((path / "config.json").read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model: config.json of {path} cannot be read ({type(error).__name__})") from None
    kind = c.get("model_type")
    if kind not in _READERS:
        raise ValueError(f"model: model_type {kind!r} of {path} is not supported; allowed are {', '.join(ARCHITECTURES)}")
    try:
        return _READERS[kind](c)
    except KeyError as error:
        raise ValueError(f"model: config.json of {path} has no field {error.args[0]!r}, which {kind} models need") from None


def _refuse(c: dict, field: str, *allowed):
    value = c.get(field, allowed[0])
    if value not in allowed:
        raise ValueError(f"model: {field} = {value!r} is not supported; allowed: {', '.join(map(repr, allowed))}")
    return value


_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_new", "gelu_pytorch_tanh": "gelu_new", "relu": "relu"}


def activation(c: dict, field: str, default: str) -> str:
    name = c.get(field, default)
    if name not in _ACTIVATIONS:
        raise ValueError(f"model: {field} = {name!r} is not supported; allowed: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _rope(c: dict) -> dict:
    r = c.get("rope_parameters") or c.get("rope_scaling") or {}
    kind = r.get("rope_type", r.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"model: rope_type = {kind!r} is not supported; allowed: 'default', 'llama3'")
    out = {"rope_theta": float(r.get("rope_theta", c.get("rope_theta", 10000.0)))}
    if kind == "llama3":
        out["rope_scaling"] = RopeScaling(
            float(r["factor"]), float(r["low_freq_factor"]), float(r["high_freq_factor"]), int(r["original_max_position_embeddings"])
        )
    return out


def _llama(c: dict) -> Spec:
    heads, qwen = c["num_attention_heads"], c["model_type"] == "qwen2"
    _refuse(c, "use_sliding_window", False)
    return Spec(
        architecture="qwen2" if qwen else "llama",
        vocab=c["vocab_size"], width=c["hidden_size"], layers=c["num_hidden_layers"], heads=heads,
        kv_heads=c.get("num_key_value_heads") or heads, head_size=c.get("head_dim") or c["hidden_size"] // heads,
        mlp=c["intermediate_size"], context=c.get("max_position_embeddings", 2048), norm="rms", norm_eps=c.get("rms_norm_eps", 1e-6),
        activation=activation(c, "hidden_act", "silu"), gated=True, positions="rope", qkv_bias=qwen or bool(c.get("attention_bias")),
        o_bias=not qwen and bool(c.get("attention_bias")), mlp_bias=bool(c.get("mlp_bias")), tied=bool(c.get("tie_word_embeddings")),
        init_scale=c.get("initializer_range", 0.02), **_rope(c),
    )  # fmt: skip


def _gpt2(c: dict) -> Spec:
    _refuse(c, "scale_attn_weights", True)
    _refuse(c, "scale_attn_by_inverse_layer_idx", False)
    d, heads = c["n_embd"], c["n_head"]
    return Spec(
        architecture="gpt2", vocab=c["vocab_size"], width=d, layers=c["n_layer"], heads=heads, kv_heads=heads, head_size=d // heads,
        mlp=c.get("n_inner") or 4 * d, context=c.get("n_positions", 1024), norm="layer", norm_eps=c.get("layer_norm_epsilon", 1e-5),
        activation=activation(c, "activation_function", "gelu_new"), gated=False, positions="learned", qkv_bias=True, o_bias=True, mlp_bias=True,
        tied=c.get("tie_word_embeddings", True), init_scale=c.get("initializer_range", 0.02),
    )  # fmt: skip


def _opt(c: dict) -> Spec:
    d, heads, bias = c["hidden_size"], c["num_attention_heads"], c.get("enable_bias", True)
    _refuse(c, "layer_norm_elementwise_affine", True)
    first = c.get("do_layer_norm_before", True)
    embed = c.get("word_embed_proj_dim") or d
    return Spec(
        architecture="opt", vocab=c["vocab_size"], width=d, layers=c["num_hidden_layers"], heads=heads, kv_heads=heads, head_size=d // heads,
        mlp=c["ffn_dim"], context=c.get("max_position_embeddings", 2048), norm="layer", norm_first=first,
        final_norm=first and not c.get("_remove_final_layer_norm", False), activation=activation(c, "activation_function", "relu"), gated=False,
        positions="learned", position_offset=2, qkv_bias=bias, o_bias=bias, mlp_bias=bias, tied=c.get("tie_word_embeddings", True),
        embed_width=0 if embed == d else embed, init_scale=c.get("init_std", 0.02),
    )  # fmt: skip


_READERS = {"llama": _llama, "qwen2": _llama, "gpt2": _gpt2, "opt": _opt}
_PREFIXES = ("transformer.", "model.", "model.decoder.", "bert.", "roberta.", "mpnet.", "distilbert.")


class Tensors:
    """All tensors of a directory's safetensors files by name, read when asked for, under any of the usual prefixes."""

    def __init__(self, path: Path):
        files = sorted(path.glob("*.safetensors"))
        if not files:
            pickled = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5"))
            found = f" but {pickled[0]}, which is never unpickled; convert it" if pickled else "; put the weights there"
            raise ValueError(f"model: {path} has no *.safetensors{found} with `save_pretrained(safe_serialization=True)`")
        index, whole = path / "model.safetensors.index.json", path / "model.safetensors"
        if whole.exists():  # beside it may lie adapters or the same weights under the publisher's own names
            files = [whole]
        elif index.exists():
            files = [path / name for name in sorted(set(json.loads(index.read_text(encoding="utf8"))["weight_map"].values()))]
            missing = [f.name for f in files if not f.exists()]
            if missing:
                raise ValueError(f"model: {missing[0]}, named by model.safetensors.index.json, is missing from {path}")
        try:
            self.files = [safe_open(f, framework="numpy") for f in files]
        except Exception as error:
            raise ValueError(f"model: the safetensors of {path} cannot be read ({error})") from None
        self.where = {name: f for f in self.files for name in f.keys()}

    def get(self, name: str):
        # Checkpoints saved from the bare model have no "transformer."/"model." prefix; OPT's own has no "model.".
        old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")  # BERT's first checkpoints
        for spelled in dict.fromkeys((name, old)):
            for candidate in (spelled, *(spelled.removeprefix(prefix) for prefix in _PREFIXES), f"model.{spelled}"):
                if candidate in self.where:
                    return self.where[candidate].get_tensor(candidate)
        return None


def read_params(path: Path, parameters: Sequence[Param], layers: int, dtype) -> dict:
    """The pytree of `parameters` from the safetensors of `path`. Raises ValueError for a tensor that is missing or of the wrong shape."""
    return jax.tree.map(jnp.asarray, read_arrays(path, parameters, layers, dtype))


def read_arrays(path: Path, parameters: Sequence[Param], layers: int, dtype) -> dict:
    """As `read_params`, as NumPy arrays."""
    tensors, flat = Tensors(path), {}

    def read(p, i):
        columns = []
        for source in p.sources:
            name = source.name.format(i=i)
            value = tensors.get(name)
            if value is None:
                raise ValueError(f"model: tensor {name} is missing from {path}")
            value = value.T if p.transposed and value.ndim == 2 else value
            if value.shape != (*p.shape[:-1], source.width):
                raise ValueError(f"model: tensor {name} has shape {value.shape}; {(*p.shape[:-1], source.width)} is expected from config.json")
            columns.append(np.asarray(value).astype(dtype))
        return columns[0] if len(columns) == 1 else np.concatenate(columns, -1)

    for p in parameters:
        flat[p.path] = np.stack([read(p, i) for i in range(layers)]) if p.path[0] == "layers" else read(p, 0)
    return nest(flat)


def save(model: Model, path) -> None:
    """Write `model` as a directory (config.json, model.safetensors, tokenizer files) that `transformers` loads.

    Weights keep their dtype. Everything is written to a temporary directory first and renamed, so a killed save leaves no half model.
    """
    path = Path(path)
    work = path.with_name(path.name + ".tmp")
    work.mkdir(parents=True, exist_ok=True)
    spec = model.spec
    save_file(to_tensors(model.params, table(spec), spec.layers), work / "model.safetensors", metadata={"format": "pt"})
    t = model.tokenizer
    ids = dict(eos_token_id=t.eos, bos_token_id=t.bos, pad_token_id=t.pad)
    (work / "config.json").write_text(
        json.dumps(config(spec) | ids | {"dtype": str(np.asarray(jax.tree.leaves(model.params)[0]).dtype)}, indent=2), encoding="utf8"
    )
    t.backend.save(str(work / "tokenizer.json"))
    special = {f"{k}_token": t.backend.id_to_token(v) for k, v in dict(eos=t.eos, bos=t.bos, pad=t.pad).items() if v is not None}
    (work / "tokenizer_config.json").write_text(json.dumps(dict(tokenizer_class="PreTrainedTokenizerFast", **special), indent=2), encoding="utf8")
    (work / "generation_config.json").write_text(json.dumps({k: v for k, v in ids.items() if v is not None}), encoding="utf8")
    move_into(work, path)


def to_tensors(params: dict, parameters: Sequence[Param], layers: int) -> dict[str, np.ndarray]:
    """The tensors of a file, by their Hugging Face names, from the pytree of `parameters`: the inverse of `read_params`."""
    tensors = {}
    for p in parameters:
        leaf = params
        for name in p.path:
            leaf = leaf[name]
        leaf = np.asarray(leaf)
        for i in range(layers if p.path[0] == "layers" else 1):
            value, at = (leaf[i] if p.path[0] == "layers" else leaf), 0
            for source in p.sources:
                part = value[..., at : at + source.width]
                tensors[source.name.format(i=i)] = np.ascontiguousarray(part.T if p.transposed and part.ndim == 2 else part)
                at += source.width
    return tensors


def move_into(work: Path, path: Path) -> None:
    """Make the finished directory `work` the directory `path`. What lay there besides weights and files of the same names stays.

    A whole model is at `path` at every moment but between two renames; killed just there, the old one lies beside it, named .old."""
    if not path.exists():
        work.replace(path)
        return
    weights = {f.name for pattern in ("*.safetensors", "*.safetensors.index.json") for f in path.glob(pattern)}
    for kept in path.iterdir():
        if kept.name not in weights and not (work / kept.name).exists():
            (shutil.copytree if kept.is_dir() else shutil.copy2)(kept, work / kept.name)
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    path.replace(old)
    work.replace(path)
    shutil.rmtree(old)


def config(spec: Spec) -> dict:
    """The config.json of a spec, as `transformers` reads it."""
    if spec.architecture == "gpt2":
        return dict(
            model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=spec.vocab, n_embd=spec.width, n_layer=spec.layers, n_head=spec.heads,
            n_inner=spec.mlp, n_positions=spec.context, layer_norm_epsilon=spec.norm_eps, activation_function=spec.activation,
            tie_word_embeddings=spec.tied, initializer_range=spec.init_scale,
        )  # fmt: skip
    if spec.architecture == "opt":
        return dict(
            model_type="opt", architectures=["OPTForCausalLM"], vocab_size=spec.vocab, hidden_size=spec.width, num_hidden_layers=spec.layers,
            num_attention_heads=spec.heads, ffn_dim=spec.mlp, max_position_embeddings=spec.context, do_layer_norm_before=spec.norm_first,
            _remove_final_layer_norm=spec.norm_first and not spec.final_norm, word_embed_proj_dim=spec.embed_width or spec.width,
            activation_function=spec.activation, enable_bias=spec.mlp_bias, tie_word_embeddings=spec.tied, init_std=spec.init_scale,
        )  # fmt: skip
    rope: dict = {"rope_theta": spec.rope_theta, "rope_type": "default"}
    if spec.rope_scaling is not None:
        s = spec.rope_scaling
        rope |= dict(
            rope_type="llama3",
            factor=s.factor,
            low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_context,
        )
    name = {"llama": "Llama", "qwen2": "Qwen2"}[spec.architecture]
    bias = {} if spec.architecture == "qwen2" else dict(attention_bias=spec.qkv_bias, mlp_bias=spec.mlp_bias)
    activation = {v: k for k, v in reversed(_ACTIVATIONS.items())}[spec.activation]
    return dict(
        model_type=spec.architecture, architectures=[f"{name}ForCausalLM"], vocab_size=spec.vocab, hidden_size=spec.width,
        intermediate_size=spec.mlp, num_hidden_layers=spec.layers, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_size, max_position_embeddings=spec.context, rms_norm_eps=spec.norm_eps, hidden_act=activation,
        tie_word_embeddings=spec.tied, initializer_range=spec.init_scale, rope_parameters=rope, rope_theta=spec.rope_theta, **bias,
    )  # fmt: skip
