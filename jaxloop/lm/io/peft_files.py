"""Adapters as `peft` writes and reads them: adapter_config.json and adapter_model.safetensors.

Every field of the config is on a list: it is applied, or only some values of it are allowed, or it
does not change what the adapter computes.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxloop.config.sections import LoraConfig
from jaxloop.lm.io import identity, json_fields, safetensors_files, safetensors_header
from jaxloop.lm.model.config import (
    LoraTarget,
    ModelConfig,
    fused_projections,
    layer_prefix,
    projection_widths,
)
from jaxloop.lm.model.lora import Adapter
from jaxloop.runtime.log import LOGGER

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# A file of ours beside them: which base the adapter belongs to, with the hash of its files.
PROVENANCE = "jaxloop.json"
_PREFIX = "base_model.model."
_KNOWN = frozenset(
    """r lora_alpha lora_dropout target_modules exclude_modules layers_to_transform layers_pattern
    rank_pattern alpha_pattern use_rslora base_model_name_or_path revision inference_mode
    task_type auto_mapping peft_version megatron_core qalora_group_size runtime_config
    fan_in_fan_out eva_config ensure_weight_tying""".split()
)
# Starts that leave the base as it is; pissa, olora, corda and the like subtract from its weights,
# and the adapter is right beside those only.
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_FIXED: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False,),
    "use_qalora": (False,),
    "use_bdlora": (False,),
    "lora_bias": (False,),
    "modules_to_save": ([],),
    "init_lora_weights": _STARTS,
    "loftq_config": ({},),
    "layer_replication": ([],),
    "trainable_token_indices": ([], {}),
    "target_parameters": ([],),
    "alora_invocation_tokens": ([],),
}
# What peft targets where the config names nothing.
_TARGETS = {
    "llama": ["q_proj", "v_proj"],
    "qwen2": ["q_proj", "v_proj"],
    "opt": ["q_proj", "v_proj"],
    "gpt2": ["c_attn"],
}


def save_peft(
    path: str | Path,
    config: ModelConfig,
    adapter: Adapter,
    *,
    base: str = "",
    revision: str | None = None,
) -> None:
    """Write one chain's adapter (no chain axis) as a directory that
    `peft.PeftModel.from_pretrained` loads.

    base, revision: name and commit of the base model, which `AutoPeftModelForCausalLM` loads.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    modules: set[str] = set()
    for parts in fused_projections(config).values():
        for p in parts:
            if p.name not in adapter:
                continue
            modules.add(p.module)
            for i in range(config.num_layers):
                name = "base_model.model." + layer_prefix(config).format(i=i) + p.module
                tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(
                    np.asarray(adapter[p.name]["a"][i], np.float32).T
                )
                tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(
                    np.asarray(adapter[p.name]["b"][i], np.float32).T
                )
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        revision=revision,
        r=adapter.config.rank,
        lora_alpha=adapter.config.alpha,
        lora_dropout=adapter.config.dropout,
        target_modules=sorted(modules),
        bias="none",
        fan_in_fan_out=config.architecture == "gpt2",
        inference_mode=True,
        use_rslora=False,
        use_dora=False,
    )
    (path / "adapter_config.json").write_text(json.dumps(fields, indent=2), encoding="utf8")


class _Factors(NamedTuple):
    """One module's factors as they are stored, A [R, D] and B [O, R], and what their product is
    multiplied by.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float


def load_peft(path: str | Path, config: ModelConfig) -> Adapter:
    """Read one chain's adapter from a peft directory (safetensors only).

    Modules may differ in rank and scale, and layers without an adapter may be among them: ranks are
    padded with zeros, other scales multiplied
    into B, and such layers have zeros, which training leaves as they are.
    Raises ValueError for pickled weights, a field of the config that is not computed as peft does,
    and modules that are not those of its targets.
    """
    path = Path(path)
    if not (path / WEIGHTS).exists():
        raise ValueError(
            f"adapter: {path} has no {WEIGHTS}; pickled adapters are refused, save it with "
            "safe_serialization"
        )
    c = json_fields.read_json(path / CONFIG, "adapter")
    json_fields.check_known(c, _KNOWN, _FIXED, "LoRA adapters", "adapter")
    weights = safetensors_files.Weights(
        path, {tensor.name: tensor for tensor in safetensors_header.header(path / WEIGHTS)}
    )
    places = {
        layer_prefix(config).format(i=i) + p.module: p
        for parts in fused_projections(config).values()
        for p in parts
        for i in range(config.num_layers)
    }
    _check_names(weights, places, config)
    targeted = [module for module in places if _is_target(c, module, config)]
    _check_targets(weights, targeted, places)
    found = {
        module: _factors(weights, c, module, places[module].width, _inside(config, places[module]))
        for module in targeted
    }
    if not found:
        raise ValueError(
            f"adapter: target_modules = {json_fields.short(c.get('target_modules'))} of {path} "
            f"names no projection of {config.architecture}"
        )
    return _stacked(found, c, config)


def check_base(path: str | Path, base: str, directory: Path) -> None:
    """Check that an adapter belongs to a base model, as far as its files say.

    An adapter that jaxloop exported says which files its base had. Others name their base at most:
    another name is a warning, since a copy may have any.

    Args:
        path: the adapter's directory.
        base: name of the base model.
        directory: of the base model.

    Raises:
        ValueError: the adapter was trained on other files.
    """
    path = Path(path)
    made = json_fields.read_json(path / PROVENANCE, "adapter") if _has(path, PROVENANCE) else {}
    expected = made.get("base_sha256")
    if expected and expected != (found := identity.of_directory(directory)):
        raise ValueError(
            f"adapter: {path} was trained on other files of a base ({made.get('base')}, SHA-256 "
            f"{str(expected)[:12]}) than those of {base} ({found[:12]})"
        )
    named = json_fields.read_json(path / CONFIG, "adapter").get("base_model_name_or_path")
    if not made and isinstance(named, str) and named and Path(named).name != Path(base).name:
        LOGGER.warning("adapter: %s names %s as its base, and is used with %s", path, named, base)


def _has(path: Path, name: str) -> bool:
    return (path / name).is_file()


def _inside(config: ModelConfig, part: LoraTarget) -> int:
    return next(
        projection_widths(config)[projection][0]
        for projection, parts in fused_projections(config).items()
        if part in parts
    )


def _check_names(weights: safetensors_files.Weights, places: Mapping, config: ModelConfig) -> None:
    known = {f"{_PREFIX}{module}.lora_{factor}.weight" for module in places for factor in "AB"}
    if others := sorted(set(weights.where) - known):
        raise ValueError(
            f"adapter: {others[0]!r} in {weights.path} is not a projection of {config.architecture}"
        )


def _check_targets(
    weights: safetensors_files.Weights, targeted: list[str], places: Mapping
) -> None:
    """The file must hold the factors of the targets, and no others, which peft would leave out."""
    for module in places:
        there = [f"{_PREFIX}{module}.lora_{factor}.weight" in weights.where for factor in "AB"]
        if module in targeted and not all(there):
            raise ValueError(
                f"adapter: {module} has no factors in {weights.path}, and adapter_config.json "
                "targets it; is it of another base?"
            )
        if module not in targeted and any(there):
            raise ValueError(
                f"adapter: {module} has factors in {weights.path}, and adapter_config.json does "
                "not target it, so peft would leave them out"
            )


def _factors(
    weights: safetensors_files.Weights, c: Mapping, module: str, width: int, inside: int
) -> _Factors:
    rank = json_fields.integer(_pattern(c, "rank_pattern", module, "r", 8), "r", kind="adapter")
    alpha = json_fields.number(
        _pattern(c, "alpha_pattern", module, "lora_alpha", 8), "lora_alpha", above=0, kind="adapter"
    )
    out = []
    for factor, shape in (("A", (rank, inside)), ("B", (width, rank))):
        name = f"{_PREFIX}{module}.lora_{factor}.weight"
        if weights.where[name].shape != shape:
            raise ValueError(
                f"adapter: tensor {name} of {weights.path} has shape "
                f"{weights.where[name].shape}; {shape} is expected of this base model"
            )
        out.append(np.asarray(safetensors_files.tensor(weights, name)).astype(np.float32))
    root = json_fields.truth(c, "use_rslora", False, kind="adapter")
    a, b = out
    return _Factors(a, b, alpha / (math.sqrt(rank) if root else rank))


def _pattern(c: Mapping, field: str, module: str, plain: str, default: int) -> dict[str, Any]:
    """{plain: the value of the first pattern that a module's name ends with, or of the field
    itself}.
    """
    for pattern, value in json_fields.mapping(c, field, kind="adapter").items():
        if _matches(rf"(.*\.)?({pattern})", module, field):
            return {plain: value}
    return {plain: json_fields.given(c, plain, default)}


def _matches(pattern: str, module: str, field: str) -> bool:
    try:
        return re.fullmatch(pattern, module) is not None
    except re.error:
        raise ValueError(
            f"adapter: {field} has a pattern {json_fields.short(pattern)} that is no "
            "regular expression"
        ) from None


def _is_target(c: Mapping, module: str, config: ModelConfig) -> bool:
    """Whether peft puts an adapter on the module of that name."""
    targets = json_fields.given(c, "target_modules", _TARGETS[config.architecture])
    for field, value in (
        ("target_modules", targets),
        ("exclude_modules", c.get("exclude_modules")),
    ):
        if not (
            value is None
            or isinstance(value, str)
            or isinstance(value, list)
            and all(isinstance(x, str) for x in value)
        ):
            json_fields.refuse(field, value, "a list of names, or a pattern", "adapter")
    excluded = json_fields.given(c, "exclude_modules", [])
    if excluded and _is_named(excluded, module, "exclude_modules"):
        return False
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or _matches(targets, module, "target_modules")
    if module in targets:
        return True
    return _is_named(targets, module, "target_modules") and _in_layers(c, module)


def _is_named(names: str | list[str], module: str, field: str) -> bool:
    if isinstance(names, str):
        return _matches(names, module, field)
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(c: Mapping, module: str) -> bool:
    """Whether layers_to_transform, which holds for listed names only, includes the module's."""
    layers, patterns = (
        json_fields.given(c, "layers_to_transform", []),
        json_fields.given(c, "layers_pattern", []),
    )
    layers = [layers] if isinstance(layers, int) and not isinstance(layers, bool) else layers
    if not isinstance(layers, list) or not all(
        isinstance(i, int) and not isinstance(i, bool) for i in layers
    ):
        json_fields.refuse(
            "layers_to_transform", layers, "a number, or a list of numbers", "adapter"
        )
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        json_fields.refuse("layers_pattern", patterns, "a name, or a list of names", "adapter")
    if not layers:
        return True
    for pattern in patterns or [r"[^.]*"]:
        try:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        except re.error:
            raise ValueError(
                f"adapter: layers_pattern has a pattern {json_fields.short(pattern)} that is no "
                "regular expression"
            ) from None
        if found:
            return int(found.groups()[-1]) in layers
    return False


def _stacked(found: Mapping[str, _Factors], c: Mapping, config: ModelConfig) -> Adapter:
    """The adapter with one rank and one scale for all modules."""
    rank = max(f.a.shape[0] for f in found.values())
    plain_rank, plain_alpha = json_fields.given(c, "r", 8), json_fields.given(c, "lora_alpha", 8)
    root = json_fields.given(c, "use_rslora", False)
    scales = [f.scale for f in found.values()]
    plain = plain_alpha / (math.sqrt(plain_rank) if root else plain_rank)
    scale = plain if plain in scales else scales[0]
    alpha = (
        float(plain_alpha) if rank == plain_rank and scale == plain and not root else scale * rank
    )
    if scale <= 0:  # kept in b: a config's alpha is above 0
        scale, alpha = 1.0, float(rank)
    adapter = {}
    for projection, parts in fused_projections(config).items():
        for p in parts:
            names = [layer_prefix(config).format(i=i) + p.module for i in range(config.num_layers)]
            if not any(name in found for name in names):
                continue
            a = np.zeros(
                (config.num_layers, projection_widths(config)[projection][0], rank), np.float32
            )
            b = np.zeros((config.num_layers, rank, p.width), np.float32)
            for i, name in enumerate(names):
                if name in found:
                    f = found[name]
                    a[i, :, : f.a.shape[0]] = f.a.T
                    b[i, : f.a.shape[0]] = (
                        f.b.T if f.scale == scale else f.b.T * np.float32(f.scale / scale)
                    )
            adapter[p.name] = {"a": jnp.asarray(a), "b": jnp.asarray(b)}
    dropout = json_fields.number(c, "lora_dropout", 0.0, low=0, kind="adapter")
    if dropout >= 1:
        json_fields.refuse("lora_dropout", dropout, "a number of at least 0, below 1", "adapter")
    lora = LoraConfig(rank=rank, alpha=alpha, targets=tuple(adapter), dropout=dropout)
    return Adapter(adapter, lora)
