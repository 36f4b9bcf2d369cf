"""LoRA adapters as a pytree with a leading chain axis; fusing them for compute; peft's file format.

Dimensions: C chains, L layers, D input width, O output width, R rank.
An adapter is {target: {"a": [C, L, D, R], "b": [C, L, R, O]}} and adds `(alpha / R) (x a) b` to its projection.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxloop.lm.spec import Spec, layer_prefix, site_widths, sites
from jaxloop.runtime.setup_jit import setup_jit


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters. `targets`: "all-linear" (every projection of the block) or names, ours (q, k, v, o, gate, up, down, qkv)
    or Hugging Face's (q_proj, c_attn, fc1, ...). `dropout` acts on the adapter's input, in training only."""

    rank: int = 16
    alpha: float = 16.0
    targets: tuple[str, ...] | str = "all-linear"
    dropout: float = 0.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def target_names(spec: Spec, lora: Lora) -> tuple[str, ...]:
    """Our names of the targeted projections.

    Raises ValueError for a name that the architecture does not have."""
    parts = [part for group in sites(spec).values() for part in group]
    if lora.targets == "all-linear":
        return tuple(p.name for p in parts)
    wanted = (lora.targets,) if isinstance(lora.targets, str) else tuple(lora.targets)
    known = {alias: p.name for p in parts for alias in (p.name, p.module, p.module.split(".")[-1])}
    # GPT-2 calls both writers c_proj; peft matches both, and so do we.
    several = {"c_proj": ("o", "down")} if spec.architecture == "gpt2" else {}
    bad = [name for name in wanted if name not in known and name not in several]
    if bad:
        raise ValueError(f"lora.targets: {bad[0]!r} is not a projection of {spec.architecture}; allowed are 'all-linear' or some of {sorted(known)}")
    chosen = {n for name in wanted for n in several.get(name, (known.get(name),))}
    return tuple(p.name for p in parts if p.name in chosen)


@setup_jit(static_argnums=(1, 2))
def init(keys: jax.Array, spec: Spec, lora: Lora) -> dict:
    """Fresh adapters for the chains of `keys` [C]: a uniform in +-1/sqrt(D) (peft's Kaiming rule), b zero; float32."""
    names = target_names(spec, lora)
    tree = {}
    for site, parts in sites(spec).items():
        inside, _ = site_widths(spec)[site]
        for part in parts:
            if part.name not in names:
                continue
            number = sum(ord(c) << (8 * i) for i, c in enumerate(part.name[:3]))

            def draw(key, number=number, shape=(spec.layers, inside, lora.rank), limit=inside**-0.5):
                return jax.random.uniform(jax.random.fold_in(key, number), shape, minval=-limit, maxval=limit)

            tree[part.name] = {"a": jax.vmap(draw)(keys), "b": jnp.zeros((keys.shape[0], spec.layers, lora.rank, part.width))}
    return tree


class Summed(NamedTuple):
    """A site's adapter which `transformer.linear` may add to the base's weights, where that is less work: in float32, as bfloat16 would lose it.

    `a` [C, L, n R, D] is transposed: its gradient is then a product with few rows, which takes a half to a quarter of the time of one with few columns.
    `b` has one [C, L, R, O], or None, for each part."""

    a: jax.Array
    b: tuple


class Parts(NamedTuple):
    """A site's adapter as `lean.linear` takes it, float32: `a` [C, L, D, n R] of all its targets, and `b` with one [C, L, n R, O] for each part,
    whose rows of other targets are zero (None where a part is not targeted). No product then needs a slice of x A."""

    a: jax.Array
    b: tuple


def fuse(
    spec: Spec, adapters: dict, lora: Lora, dtype, *, block_diagonal: bool = False, summed: bool = False, parts: bool = False
) -> dict:
    """Adapters grouped by fused projection: {site: {"a": [C, L, D, n R], "b": ..., }} with the scale folded into b.

    One product with `a` serves all targets of a site. `b` is a tuple with one entry per part (None where it is not targeted), or,
    with `block_diagonal`, one matrix [C, L, n R, O], which costs a few more multiplications and far fewer kernels: for decoding.
    With `summed` and in float32, {site: `Summed`}: for training. With `parts`, {site: `Parts`}: for training in bfloat16 on an accelerator.
    """
    fused = {}
    for site, group in sites(spec).items():
        present = [p for p in group if p.name in adapters]
        if not present:
            continue
        if parts:
            fused[site] = _parts(adapters, group, present, lora)
            continue
        a = jnp.concatenate([adapters[p.name]["a"] for p in present], -1).astype(dtype)
        b = tuple((adapters[p.name]["b"] * lora.scale).astype(dtype) if p.name in adapters else None for p in group)
        if summed and dtype == jnp.float32:
            fused[site] = Summed(a.swapaxes(-1, -2), b)
            continue
        if block_diagonal:
            rows = []
            start = np.cumsum([0] + [p.width for p in group])
            for p, w, left in zip(group, b, start[:-1], strict=True):
                if w is not None:
                    rows.append(jnp.pad(w, ((0, 0), (0, 0), (0, 0), (int(left), int(start[-1] - left - p.width)))))
            b = jnp.concatenate(rows, -2)
        fused[site] = {"a": a, "b": b}
    return fused


def _parts(adapters, group, present, lora) -> Parts:
    b, rows = [], [p.name for p in present]
    for p in group:
        if p.name not in adapters:
            b.append(None)
            continue
        at, after = rows.index(p.name) * lora.rank, (len(rows) - 1 - rows.index(p.name)) * lora.rank
        b.append(jnp.pad(adapters[p.name]["b"] * lora.scale, ((0, 0), (0, 0), (at, after), (0, 0))))
    return Parts(jnp.concatenate([adapters[p.name]["a"] for p in present], -1), tuple(b))


def split(adapters: dict, chain: int) -> dict:
    """The adapter of one chain, without the chain axis."""
    return jax.tree.map(lambda leaf: leaf[chain], adapters)


def stack(adapters: list[dict]) -> dict:
    """Adapters of several chains with a leading chain axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *adapters)


def save_peft(path, spec: Spec, adapter: dict, lora: Lora, *, base: str = "") -> None:
    """Write one chain's adapter (no chain axis) as a directory that `peft.PeftModel.from_pretrained` loads."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, {}
    for parts in sites(spec).values():
        for p in parts:
            if p.name not in adapter:
                continue
            modules[p.module] = None
            for i in range(spec.layers):
                name = "base_model.model." + layer_prefix(spec).format(i=i) + p.module
                tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(np.asarray(adapter[p.name]["a"][i], np.float32).T)
                tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(np.asarray(adapter[p.name]["b"][i], np.float32).T)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = dict(
        peft_type="LORA", task_type="CAUSAL_LM", base_model_name_or_path=base, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=sorted(modules), bias="none", fan_in_fan_out=spec.architecture == "gpt2", inference_mode=True,
        use_rslora=False, use_dora=False,
    )  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf8")


def load_peft(path, spec: Spec) -> tuple[dict, Lora]:
    """One chain's adapter and its `Lora` from a peft directory (safetensors only).

    Raises ValueError for pickled weights, another method than plain LoRA, or modules that the architecture does not have."""
    path = Path(path)
    if not (path / "adapter_model.safetensors").exists():
        raise ValueError(f"adapter: {path} has no adapter_model.safetensors; pickled adapters are refused, save it with safe_serialization")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf8"))
        tensors = load_file(path / "adapter_model.safetensors")
    except Exception as error:
        raise ValueError(f"adapter: the files of {path} cannot be read ({error})") from None
    plainly = dict(peft_type="LORA", use_dora=False, use_rslora=False, bias="none", lora_bias=False, rank_pattern={}, alpha_pattern={})
    for field, plain in plainly.items():
        if (config.get(field) or plain) != plain:
            raise ValueError(f"adapter: {field} = {config[field]!r} in {path} is not supported; allowed is {plain!r}")
    adapter, used, rank = {}, set(), config["r"]
    for site, parts in sites(spec).items():
        for p in parts:
            names = ["base_model.model." + layer_prefix(spec).format(i=i) + p.module for i in range(spec.layers)]
            missing = [n for n in names if not {f"{n}.lora_A.weight", f"{n}.lora_B.weight"} <= set(tensors)]
            if len(missing) == spec.layers:
                continue
            if missing:
                raise ValueError(f"adapter: {missing[0]} has no factors in {path}, other layers have; adapters must be in every layer")
            factors = {}
            for factor, end, shape in (("a", "lora_A", (rank, site_widths(spec)[site][0])), ("b", "lora_B", (p.width, rank))):
                keys = [f"{n}.{end}.weight" for n in names]
                bad = [k for k in keys if tensors[k].shape != shape]
                if bad:
                    raise ValueError(f"adapter: tensor {bad[0]} of {path} has shape {tensors[bad[0]].shape}; {shape} is expected of this base model")
                factors[factor] = jnp.asarray(np.stack([tensors[k].astype(np.float32).T for k in keys]))
                used.update(keys)
            adapter[p.name] = factors
    if set(tensors) - used:
        raise ValueError(f"adapter: {sorted(set(tensors) - used)[0]!r} in {path} is not a projection of {spec.architecture}")
    return adapter, Lora(rank=config["r"], alpha=config["lora_alpha"], targets=tuple(adapter), dropout=config.get("lora_dropout", 0.0))
