"""The fused projections of a block, with the chains' LoRA adapters.

Dimensions: C chains, N tokens of all chains (C equal runs), D inputs, O outputs, R adapter rank.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloop.lm.generation.row_adapters import (
    GroupAdapter,
    RowAdapter,
    project,
    project_targets,
)
from jaxloop.lm.model import split_layers
from jaxloop.lm.model.config import ModelConfig, fused_projections
from jaxloop.lm.model.dropout import NO_DROPS, Drop, Drops
from jaxloop.lm.model.lora import BlockDiagonalLora, PackedAdapters, PackedLora, SplitLora

# Weights of one layer: arrays, or, where `split_layers.layers` split them, tuples of arrays.
LayerParams = dict[str, Any]


def fused_linear(
    config: ModelConfig,
    projection: str,
    layer: LayerParams,
    adapter: PackedAdapters | None,
    x_ND: jax.Array,
    drops: Drops = NO_DROPS,
    residual_ND: jax.Array | None = None,
) -> list[jax.Array]:
    """Compute one fused projection with its adapter.

    Args:
        config: the architecture.
        projection: "qkv", "o", "up" or "down".
        layer: weights of the layer.
        adapter: adapters of this layer as `lora.pack_adapters` packs them; None: the base alone.
        x_ND: inputs.
        drops: what is dropped at the sites of this layer; those of the targets are applied to
            the inputs of their adapters, as peft does.
        residual_ND: added to the output; only for a projection with one LoRA target.

    Returns:
        The output [N, O] of each of the projection's LoRA targets.
    """
    widths = target_widths(config, projection)
    weight, bias = layer[projection], layer.get(f"{projection}_bias")
    lora = None if adapter is None else adapter.get(projection)
    drop = _adapter_drops(config, projection, drops)
    if isinstance(weight, tuple):
        biases = None if bias is None else tuple(split_columns(bias, widths))
        return split_layers.linear(weight, biases, lora, x_ND, drop, residual_ND)
    if isinstance(lora, GroupAdapter) and lora.by_target and residual_ND is None:
        y = project_targets(x_ND, weight, lora, widths)
        if bias is None:
            return y
        return [a + b[None] for a, b in zip(y, split_columns(bias, widths), strict=True)]
    if isinstance(lora, GroupAdapter | RowAdapter):
        y_NO = joined_linear(config, projection, layer, adapter, x_ND, residual_ND)
        return split_columns(y_NO, widths)
    y = lora_linear(widths, weight, lora, x_ND, drop)
    if bias is not None:
        y = [a + b[None] for a, b in zip(y, split_columns(bias, widths), strict=True)]
    return y if residual_ND is None else [residual_ND + y[0]]


def _adapter_drops(config: ModelConfig, projection: str, drops: Drops) -> tuple[Drop, ...] | None:
    """Dropout of each target with an adapter; None where nothing is dropped."""
    targets = fused_projections(config)[projection]
    return tuple(drops[target.name] for target in targets if target.name in drops) or None


def joined_linear(
    config: ModelConfig,
    projection: str,
    layer: LayerParams,
    adapter: PackedAdapters | None,
    x_ND: jax.Array,
    residual_NO: jax.Array | None = None,
) -> jax.Array:
    """Compute a fused projection for `decode_rows`, its targets side by side [N, O]."""
    lora = None if adapter is None else adapter.get(projection)
    if lora is not None:
        widths = target_widths(config, projection)
        y_NO = project(x_ND, layer[projection], lora, widths, added_NO=residual_NO)
    else:
        y_NO = x_ND @ layer[projection]
        y_NO = y_NO if residual_NO is None else y_NO + residual_NO
    bias = layer.get(f"{projection}_bias")
    return y_NO if bias is None else y_NO + bias[None]


def uses_row_kernels(adapter: PackedAdapters | None, projection: str) -> bool:
    """Return whether the projection's adapter is one for the kernels of `row_adapters`."""
    return adapter is not None and isinstance(adapter.get(projection), GroupAdapter | RowAdapter)


def target_widths(config: ModelConfig, projection: str) -> tuple[int, ...]:
    """Return the output width of each LoRA target of a fused projection."""
    return tuple(target.width for target in fused_projections(config)[projection])


def split_columns(x: jax.Array, widths: Sequence[int]) -> list[jax.Array]:
    """Split x along its last axis.

    The gradient of a split joins those of its pieces; slices would be padded and added instead.
    """
    return list(jax.lax.split(x, widths, axis=x.ndim - 1))


def lora_linear(
    widths: tuple[int, ...],
    w_DO: jax.Array,
    lora: PackedLora | SplitLora | BlockDiagonalLora | None,
    x_ND: jax.Array,
    dropout: Sequence[Drop] | None = None,
) -> list[jax.Array]:
    """Compute x W + (x A) B of each target [N, O], each chain's tokens with its own A and B.

    `dropout` drops of the input of each target's adapter by itself.
    """
    match lora:
        case None:
            return split_columns(x_ND @ w_DO, widths)
        case PackedLora():
            return _packed_linear(widths, w_DO, lora, x_ND, dropout)
        case BlockDiagonalLora():
            y_NO, z_CNR = x_ND @ w_DO, _adapter_inputs(x_ND, lora.a)
            return split_columns(y_NO + _adapter_outputs(z_CNR, lora.b, y_NO), widths)
        case SplitLora():
            return _split_linear(widths, w_DO, lora, x_ND, dropout)


def _packed_linear(
    widths: tuple[int, ...],
    w_DO: jax.Array,
    lora: PackedLora,
    x_ND: jax.Array,
    dropout: Sequence[Drop] | None,
) -> list[jax.Array]:
    chains, _, inputs = lora.a.shape
    # Merging costs one product of the weights' size: less than two thin ones over many tokens.
    if dropout is not None or x_ND.shape[0] < chains * inputs:
        split = SplitLora(lora.a.swapaxes(1, 2), lora.b)
        return _split_linear(widths, w_DO, split, x_ND, dropout)
    if chains == 1:  # a batch axis of one would turn every product into a batched one
        a_RD, b = jax.tree.map(lambda leaf: leaf[0], (lora.a, lora.b))
        return list(lora_linear_merged(widths, x_ND, w_DO, a_RD, b))
    of_chain = jax.vmap(functools.partial(lora_linear_merged, widths), (0, None, 0, 0))
    y_CNO = of_chain(x_ND.reshape(chains, -1, inputs), w_DO, lora.a, lora.b)
    return [y.reshape(x_ND.shape[0], -1) for y in y_CNO]


def _split_linear(
    widths: tuple[int, ...],
    w_DO: jax.Array,
    lora: SplitLora,
    x_ND: jax.Array,
    dropout: Sequence[Drop] | None,
) -> list[jax.Array]:
    y_NO = x_ND @ w_DO
    ranks = [b_CRO.shape[1] for b_CRO in lora.b if b_CRO is not None]
    if dropout is None:
        z_of_target = iter(split_columns(_adapter_inputs(x_ND, lora.a), ranks))
    else:
        a_of_target = split_columns(lora.a, ranks)
        z_of_target = iter(
            [
                _adapter_inputs(drop(x_ND), a_CDR)
                for drop, a_CDR in zip(dropout, a_of_target, strict=True)
            ]
        )
    return [
        y if b_CRO is None else y + _adapter_outputs(next(z_of_target), b_CRO, y)
        for y, b_CRO in zip(split_columns(y_NO, widths), lora.b, strict=True)
    ]


def _adapter_inputs(x_ND, a_CDR):
    """x A [C, N / C, R]."""
    x_CND = x_ND.reshape(a_CDR.shape[0], -1, x_ND.shape[-1])
    return jnp.einsum("cnd,cdr->cnr", x_CND, a_CDR)


def _adapter_outputs(z_CNR, b_CRO, y_NO):
    """(x A) B, shaped like y [N, O]."""
    return jnp.einsum("cnr,cro->cno", z_CNR, b_CRO).reshape(y_NO.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def lora_linear_merged(
    widths: tuple[int, ...],
    x_ND: jax.Array,
    w_DO: jax.Array,
    a_RD: jax.Array,
    b: tuple[jax.Array | None, ...],
) -> list[jax.Array]:
    """Compute x (W + A B) of each target [N, O], of one chain.

    Where there are more tokens than inputs, this is less work than x W + (x A) B. The derivative is
    computed target by target from x A and from the output's gradient times B', so that the
    gradient of the merged weights, which is as large as W, is never formed.

    Args:
        widths: output width of each target.
        x_ND: inputs.
        w_DO: base weights.
        a_RD: A transposed, the rows of one target after another's.
        b: B [R, O] of each target; None where it has no adapter.
    """
    return split_columns(x_ND @ _merged(widths, w_DO, a_RD, b), widths)


def _ranks(b):
    return [b_RO.shape[0] for b_RO in b if b_RO is not None]


def _merged(widths, w_DO, a_RD, b):
    """W + A B."""
    a_of_target = iter(jax.lax.split(a_RD, _ranks(b)))
    products = []
    for width, b_RO in zip(widths, b, strict=True):
        if b_RO is None:
            products.append(jnp.zeros((w_DO.shape[0], width), w_DO.dtype))
        else:
            products.append(next(a_of_target).T @ b_RO)
    return w_DO + jnp.concatenate(products, -1)


@functools.partial(lora_linear_merged.defjvp, symbolic_zeros=True)
def _lora_linear_merged_jvp(widths, primals, tangents):
    (x_ND, w_DO, a_RD, b), (dx_ND, dw_DO, da_RD, db) = primals, tangents
    merged_DO = _merged(widths, w_DO, a_RD, b)
    y = split_columns(x_ND @ merged_DO, widths)
    terms: list[list[jax.Array]] = [[] for _ in widths]
    if _varies(dx_ND):
        _append(terms, split_columns(dx_ND @ merged_DO, widths))
    if _varies(dw_DO):
        _append(terms, split_columns(x_ND @ dw_DO, widths))
    z = iter(split_columns(x_ND @ a_RD.T, _ranks(b)))
    dz = iter(split_columns(x_ND @ da_RD.T, _ranks(b))) if _varies(da_RD) else None
    for of_target, b_RO, db_RO in zip(terms, b, db, strict=True):
        if b_RO is None:
            continue
        z_NR = next(z)
        if dz is not None:
            of_target.append(next(dz) @ b_RO)
        if _varies(db_RO):
            of_target.append(z_NR @ db_RO)
    dy = [
        functools.reduce(operator.add, of_target) if of_target else jnp.zeros_like(y_NO)
        for of_target, y_NO in zip(terms, y, strict=True)
    ]
    return y, dy


def _varies(tangent: Any) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _append(terms, of_targets):
    for of_target, term in zip(terms, of_targets, strict=True):
        of_target.append(term)
