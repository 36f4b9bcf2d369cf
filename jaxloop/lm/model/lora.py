"""LoRA adapters: their weights with their settings, and how they are packed for computing.

`lm/io/peft_files.py` reads and writes them as files of peft.

Dimensions: C chains, L layers, D inputs, O outputs, R rank, n targets with an adapter in a fused
projection.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxloop.config.sections import LoraConfig
from jaxloop.core import host_draws
from jaxloop.lm.model.config import (
    LoraTarget,
    ModelConfig,
    fused_projections,
    projection_widths,
)
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.setup_jit import setup_jit

# Most numbers of a chain's adapter that are drawn on the host, a tenth of a second's work. It does
# not depend on the other chains, nor may it: programs of some processors round twice.
HOST_NUMBERS = 1 << 20

Layout = Literal["split", "mergeable", "block_diagonal", "padded"]


@dataclass(frozen=True, eq=False)
class Adapter(Mapping[str, dict[str, jax.Array]]):
    """The weights of an adapter with the settings that say what they mean.

    It adds `(alpha / rank) (x a) b` to each targeted projection. It is a pytree whose leaves are
    the weights, and a mapping from target to weights, so that it can be saved like any tree of
    weights.

    Attributes:
        weights: {target: {"a": [L, D, R], "b": [L, R, O]}}, or with a leading chain axis C.
        config: rank, alpha, targets and dropout.
    """

    weights: dict[str, dict[str, jax.Array]]
    config: LoraConfig

    def __getitem__(self, target: str) -> dict[str, jax.Array]:
        return self.weights[target]

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


jax.tree_util.register_dataclass(Adapter, data_fields=["weights"], meta_fields=["config"])


def target_names(config: ModelConfig, lora: LoraConfig) -> tuple[str, ...]:
    """Return our names of the targeted projections.

    Raises:
        ValueError: a name that the architecture does not have.
    """
    targets = [target for group in fused_projections(config).values() for target in group]
    if lora.targets == "all-linear":
        return tuple(target.name for target in targets)
    wanted = (lora.targets,) if isinstance(lora.targets, str) else tuple(lora.targets)
    names = {
        alias: target.name
        for target in targets
        for alias in (target.name, target.module, target.module.split(".")[-1])
    }
    aliases: dict[str, tuple[str, ...]] = {alias: (name,) for alias, name in names.items()}
    if config.architecture == "gpt2":
        # GPT-2 calls both modules that write into the residual stream c_proj; peft matches both.
        aliases["c_proj"] = ("o", "down")
    for name in wanted:
        if name not in aliases:
            raise ValueError(
                f"lora.targets: {name!r} is not a projection of {config.architecture}; allowed "
                f"are 'all-linear' or some of {sorted(names)}"
            )
    chosen = {name for alias in wanted for name in aliases[alias]}
    return tuple(target.name for target in targets if target.name in chosen)


def init(keys: jax.Array, config: ModelConfig, lora: LoraConfig) -> Adapter:
    """Return fresh float32 adapters [C, ...] of the chains of `keys` [C].

    a is uniform in +-1/sqrt(D) (peft's Kaiming rule), b is zero. Small adapters of a CPU are drawn
    on the host, without a program to compile.
    """
    targets = _widths_of_targets(config, lora)
    numbers = sum(config.num_layers * inputs * lora.rank for _, inputs in targets)
    data = None
    if numbers <= HOST_NUMBERS:
        data = host_draws.key_data(keys)
    if data is None or platform_of(keys) != "cpu":
        return _init_program(keys, config, lora)
    weights = {}
    for target, inputs in targets:
        shape = (len(data), config.num_layers, inputs, lora.rank)
        own = host_draws.fold_in(data, np.full(len(data), _number(target), np.uint32))
        drawn = host_draws.symmetric(own, math.prod(shape[1:]), inputs**-0.5)
        weights[target.name] = {
            "a": jnp.asarray(drawn.reshape(shape)),
            "b": jnp.asarray(np.zeros((*shape[:2], lora.rank, target.width), np.float32)),
        }
    return Adapter(weights, lora)


@setup_jit(static_argnums=(1, 2))
def _init_program(keys: jax.Array, config: ModelConfig, lora: LoraConfig) -> Adapter:
    weights = {}
    for target, inputs in _widths_of_targets(config, lora):
        shape, limit = (config.num_layers, inputs, lora.rank), inputs**-0.5
        draw = functools.partial(_draw_target, _number(target), shape, limit)
        weights[target.name] = {
            "a": jax.vmap(draw)(keys),
            "b": jnp.zeros((keys.shape[0], config.num_layers, lora.rank, target.width)),
        }
    return Adapter(weights, lora)


def _draw_target(number: int, shape: tuple[int, ...], limit: float, key: jax.Array) -> jax.Array:
    key = jax.random.fold_in(key, number)
    return jax.random.uniform(key, shape, minval=-limit, maxval=limit)


def _widths_of_targets(config: ModelConfig, lora: LoraConfig) -> list[tuple[LoraTarget, int]]:
    """Every target with the width of its input."""
    names = target_names(config, lora)
    widths = projection_widths(config)
    return [
        (target, widths[projection][0])
        for projection, targets in fused_projections(config).items()
        for target in targets
        if target.name in names
    ]


def _number(target: LoraTarget) -> int:
    """The number of a target's stream of draws: the letters of its name."""
    return sum(ord(letter) << (8 * i) for i, letter in enumerate(target.name[:3]))


class SplitLora(NamedTuple):
    """A projection's adapter with a B for each target, the general layout."""

    a: jax.Array  # [C, L, D, n R]
    b: tuple[jax.Array | None, ...]  # [C, L, R, O] of each target; None: it has no adapter


class BlockDiagonalLora(NamedTuple):
    """A projection's adapter with one B for all targets: for generation.

    It costs a few more multiplications than `SplitLora` and far fewer kernels.
    """

    a: jax.Array  # [C, L, D, n R]
    b: jax.Array  # [C, L, n R, sum of O]


class PackedLora(NamedTuple):
    """A projection's adapter that may be merged into the base's weights: for training in float32.

    A is transposed: its gradient is then a product with few rows, which takes a half to a quarter
    of the time of one with few columns.
    """

    a: jax.Array  # [C, L, n R, D]
    b: tuple[jax.Array | None, ...]  # [C, L, R, O] of each target; None: it has no adapter


class PaddedLora(NamedTuple):
    """A projection's float32 adapter for `split_layers.linear`: no product needs a slice of x A."""

    a: jax.Array  # [C, L, D, n R]
    # [C, L, n R, O] of each target, zero in the rows of other targets; None: it has no adapter
    b: tuple[jax.Array | None, ...]


# {projection: its adapter}, of all layers [C, L, ...] or of one [C, ...].
PackedAdapters = Mapping[str, Any]


def pack_adapters(
    config: ModelConfig, adapters: Adapter, dtype: DTypeLike, layout: Layout = "split"
) -> dict[str, Any]:
    """Group adapters by fused projection, with their scale multiplied into b.

    One product with a then serves all targets of a projection.

    Args:
        config: the architecture.
        adapters: those of C chains, leaves [C, L, ...].
        dtype: dtype of the forward pass.
        layout: "split" (general), "block_diagonal" (for generation), "mergeable" (for training; in
            bfloat16, where a merged weight would lose the adapter to rounding, it means "split") or
            "padded" (for training in bfloat16 on an accelerator).

    Returns:
        {projection: `SplitLora`, `BlockDiagonalLora`, `PackedLora` or `PaddedLora`}.
    """
    packed: dict[str, Any] = {}
    for projection, targets in fused_projections(config).items():
        if any(target.name in adapters for target in targets):
            packed[projection] = _pack_projection(adapters, targets, jnp.dtype(dtype), layout)
    return packed


def _pack_projection(
    adapters: Adapter, targets: Sequence[LoraTarget], dtype: jnp.dtype, layout: Layout
) -> SplitLora | BlockDiagonalLora | PackedLora | PaddedLora:
    adapted = [target for target in targets if target.name in adapters]
    a = jnp.concatenate([adapters[target.name]["a"] for target in adapted], -1)
    b = [
        adapters[target.name]["b"] * adapters.config.scale if target in adapted else None
        for target in targets
    ]
    if layout == "padded":
        return PaddedLora(a, _padded(b))
    a = a.astype(dtype)
    b = [None if x is None else x.astype(dtype) for x in b]
    if layout == "mergeable" and dtype == jnp.float32:
        return PackedLora(a.swapaxes(-1, -2), tuple(b))
    if layout == "block_diagonal":
        return BlockDiagonalLora(a, _block_diagonal(b, targets))
    return SplitLora(a, tuple(b))


def _padded(b: Sequence[jax.Array | None]) -> tuple[jax.Array | None, ...]:
    """b of each target with rows for the ranks of all targets, zero in those of the others."""
    total = sum(x.shape[-2] for x in b if x is not None)
    padded: list[jax.Array | None] = []
    start = 0
    for x in b:
        if x is None:
            padded.append(None)
            continue
        end = start + x.shape[-2]
        padded.append(jnp.pad(x, ((0, 0), (0, 0), (start, total - end), (0, 0))))
        start = end
    return tuple(padded)


def _block_diagonal(b: Sequence[jax.Array | None], targets: Sequence[LoraTarget]) -> jax.Array:
    """b of all targets as one matrix, zero outside the block of each target."""
    total = sum(target.width for target in targets)
    rows = []
    start = 0
    for x, target in zip(b, targets, strict=True):
        end = start + target.width
        if x is not None:
            rows.append(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (start, total - end))))
        start = end
    return jnp.concatenate(rows, -2)


def as_adapter(weights: Mapping[str, Any], config: LoraConfig) -> Adapter:
    """Return weights as an `Adapter`.

    An adapter is returned as it is. A plain tree, as checkpoints hold it, gets the settings
    `config`.

    Raises:
        ValueError: the rank of a plain tree differs from that of `config`.
    """
    if isinstance(weights, Adapter):
        return weights
    for target, factors in weights.items():
        rank = factors["a"].shape[-1]
        if rank != config.rank:
            raise ValueError(
                f"lora.rank: {config.rank} is not allowed for weights of {target} with rank {rank}"
            )
    return Adapter(dict(weights), config)


def to_tree(adapter: Adapter) -> dict[str, Any]:
    """Return an adapter as dicts of arrays, numbers and text, with its settings, to be saved."""
    return {"weights": dict(adapter.weights), "lora": adapter.config.model_dump(mode="json")}


def from_tree(tree: Any) -> Any:
    """Return the adapter that `to_tree` was given, and any other tree as it is."""
    if not isinstance(tree, dict) or set(tree) != {"weights", "lora"}:
        return tree
    settings = tree["lora"]
    # Somebody's own weights may have these two names, but not settings behind the second.
    if not isinstance(settings, dict) or not {"rank", "alpha", "targets"} <= set(settings):
        return tree
    return Adapter(tree["weights"], LoraConfig(**settings))


def plain_weights(weights: Any) -> Any:
    """Return the weights of an adapter without its settings, and other trees as they are."""
    return weights.weights if isinstance(weights, Adapter) else weights


def num_chains(adapters: Any) -> int:
    """Return the length of the chain axis, the first one, of adapters in any form."""
    return jax.tree.leaves(adapters)[0].shape[0]


def split(adapters: Adapter, chain: int) -> Adapter:
    """Return the adapter of one chain, without the chain axis."""
    return jax.tree.map(lambda leaf: leaf[chain], adapters)


def stack(adapters: Sequence[Adapter], array_module: ModuleType = jnp) -> Adapter:
    """Return adapters of several chains with a leading chain axis.

    Args:
        adapters: one for each chain.
        array_module: `jax.numpy`, or `numpy` to stack on the host.

    Raises:
        ValueError: their ranks, alphas or targets differ.
    """
    config, first = adapters[0].config, adapters[0]
    for adapter in adapters:
        for field in ("rank", "alpha"):
            values = getattr(config, field), getattr(adapter.config, field)
            if values[0] != values[1]:
                raise ValueError(
                    f"adapters: lora.{field} is {values[0]} of one chain and {values[1]} of "
                    "another; chains of one call need the same"
                )
        if set(adapter) != set(first):
            raise ValueError(
                f"adapters: lora.targets are {sorted(first)} of one chain and {sorted(adapter)} "
                "of another; chains of one call need the same"
            )
    weights = jax.tree.map(
        lambda *leaves: array_module.stack(leaves), *[adapter.weights for adapter in adapters]
    )
    return Adapter(weights, config)


def merge(config: ModelConfig, params: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Return a model's parameters with one chain's adapter added to them, in their own dtype."""
    layers = dict(params["layers"])
    for projection, targets in fused_projections(config).items():
        w_LDO = layers[projection]
        parts_LDO = []
        for target in targets:
            part_LDO = jnp.zeros((*w_LDO.shape[:2], target.width), jnp.float32)
            if target.name in adapter:
                a_LDR, b_LRO = (jnp.asarray(adapter[target.name][factor]) for factor in "ab")
                # An accelerator's default would round both factors, and the weights are kept.
                part_LDO = jnp.einsum("ldr,lro->ldo", a_LDR, b_LRO, precision="highest")
                part_LDO = part_LDO * adapter.config.scale
            parts_LDO.append(part_LDO)
        added_LDO = jnp.concatenate(parts_LDO, axis=-1)
        layers[projection] = (w_LDO.astype(jnp.float32) + added_LDO).astype(w_LDO.dtype)
    return {**params, "layers": layers}


def check_dtype(params: Mapping[str, Any], dtype: str, *, field: str = "fit.dtype") -> None:
    """Check that adapters are computed in the number format of a base, or in a narrower one.

    Wider ones would widen all that follows them, layer after layer.

    Args:
        params: weights of the base.
        dtype: in which adapters are computed.
        field: that says so.

    Raises:
        ValueError: the format is wider than that of the base.
    """
    base = params["embed"].dtype
    if jnp.dtype(dtype).itemsize > base.itemsize:
        raise ValueError(
            f"{field}: {dtype} is not allowed for adapters of a base in {base}; choose {base}, or "
            f"load the base in {dtype}"
        )


def check_fits(config: ModelConfig, adapter: Adapter, *, model: str = "") -> None:
    """Check that an adapter without a chain axis is one of a model.

    Raises:
        ValueError: it has other targets, or factors of other shapes.
    """
    name = model or config.architecture
    inputs = {
        target.name: (projection_widths(config)[projection][0], target.width)
        for projection, targets in fused_projections(config).items()
        for target in targets
    }
    for target, factors in adapter.items():
        if target not in inputs:
            raise ValueError(
                f"adapter: is of another model; {name} has no projection {target!r}, only "
                f"{', '.join(inputs)}"
            )
        rank = factors["a"].shape[-1]
        expected = {
            "a": (config.num_layers, inputs[target][0], rank),
            "b": (config.num_layers, rank, inputs[target][1]),
        }
        for factor, shape in expected.items():
            if factors[factor].shape != shape:
                raise ValueError(
                    f"adapter: is of another model; {factor} of {target} has shape "
                    f"{factors[factor].shape}, and {name} needs {shape}"
                )
