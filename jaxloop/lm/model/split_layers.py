"""The layout of a block's projections for training in bfloat16 on an accelerator.

It needs few kernels and few bytes, and keeps nothing wider than bfloat16 for the gradient.

A *large* product is one with the base's weights, a *thin* one is with an adapter, whose rank is
small. XLA fuses elementwise operations with each other, but not with a large product, and it copies
what a scan over layers stacks or slices. So layers are unrolled, from weights that are split once,
outside the loop over steps. Each LoRA target of a projection has a product of its own, because a
piece of a joint product's result would be a copy. An adapter's thin product is computed first, and
the large product adds it to what it writes.

Dimensions: C chains, L layers, N tokens of all chains, D inputs, O outputs, R columns of a
projection's A (the ranks of its targets).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxloop.lm.model import gate
from jaxloop.lm.model.config import ModelConfig, fused_projections
from jaxloop.lm.model.dropout import Drop, Drops
from jaxloop.lm.model.lora import PackedAdapters, PaddedLora
from jaxloop.lm.target import Target

INTERPRET = False  # kernels run step by step on any platform, for tests


def fits(target: Target, dtype: str) -> bool:
    """Return whether a program of this target and dtype uses the layout of this module.

    It is made for accelerators and for bfloat16; a CPU, or float32, gains nothing by it.
    """
    return target.platform != "cpu" and dtype == "bfloat16"


def layers(config: ModelConfig, stacked: dict[str, jax.Array], target: Target) -> Any:
    """Return the weights of the layers, each projection split into its LoRA targets.

    Args:
        config: the architecture.
        stacked: weights [L, ...].
        target: device and kernels that the program is compiled for.

    Returns:
        A tuple of layers, each {projection: tuple of [D, O], other name: array}. For a TPU one such
        dict with stacked layers, [L, D, O]: its compiler takes 17 s of processor time for each
        unrolled layer, and copies no slices.
    """
    widths = {
        projection: tuple(part.width for part in targets)
        for projection, targets in fused_projections(config).items()
    }

    def split(name: str, x: jax.Array) -> Any:
        if name not in widths:
            return x
        return tuple(jax.lax.split(x, widths[name], axis=x.ndim - 1))

    if target.platform == "tpu":
        return {name: split(name, x) for name, x in stacked.items()}
    each = {
        name: [of_layer[0] for of_layer in jax.lax.split(x, (1,) * config.num_layers)]
        for name, x in stacked.items()
    }
    return tuple(
        {name: split(name, x[i]) for name, x in each.items()} for i in range(config.num_layers)
    )


def are_laid_out(layers: Any) -> bool:
    """Return whether these layers, or this one layer, are in the form that `layers` returns."""
    return isinstance(layers, tuple) or isinstance(layers["o"], tuple)


def adapter_layers(packed: PackedAdapters, count: int) -> tuple[PackedAdapters, ...]:
    """Return the adapters of each of `count` layers, from leaves [C, L, ...].

    The gradient of a split joins those of its pieces; slices would be padded and added instead.
    """
    leaves, structure = jax.tree.flatten(packed)
    each = ([part[:, 0] for part in jax.lax.split(x, (1,) * count, axis=1)] for x in leaves)
    return tuple(jax.tree.unflatten(structure, of_layer) for of_layer in zip(*each, strict=True))


def linear(
    w: tuple[jax.Array, ...],
    bias: tuple[jax.Array, ...] | None,
    adapter: PaddedLora | None,
    x_ND: jax.Array,
    dropout: Sequence[Drop] | None = None,
    residual_NO: jax.Array | None = None,
) -> list[jax.Array]:
    """Compute x W + (x A) B of every LoRA target of a projection, in x's dtype.

    Args:
        w: [D, O] of each target.
        bias: [O] of each target, or None.
        adapter: adapter of the layer, A [C, D, R] and for each target B [C, R, O] or None; they and
            their gradients are float32. None: the base alone.
        x_ND: inputs.
        dropout: of the input of each target's adapter; None: no dropout.
        residual_NO: added to the output; only for a projection with one target.
    """
    if adapter is None:
        y = [x_ND @ w_DO for w_DO in w]
    elif dropout is None:
        y = list(_linear(w, *adapter, x_ND, residual_NO))
        residual_NO = None
    else:
        y = _dropped_linear(w, adapter, x_ND, dropout)
    if bias is not None:
        y = [y_NO + b_O[None] for y_NO, b_O in zip(y, bias, strict=True)]
    return y if residual_NO is None else [residual_NO + y[0]]


def _dropped_linear(w, adapter, x_ND, dropout):
    # B has rows for the ranks of all targets, zero in those of the others: A stays whole.
    y, drops = [], iter(dropout)
    for w_DO, b_CRO in zip(w, adapter.b, strict=True):
        if b_CRO is None:
            y.append(x_ND @ w_DO)
        else:
            dropped_ND = next(drops)(x_ND)
            z_CNR = _thin("cnd,cdr->cnr", _by_chain(dropped_ND, adapter.a), adapter.a)
            y.append(x_ND @ w_DO + _flat(_thin("cnr,cro->cno", z_CNR, b_CRO)))
    return y


@jax.custom_vjp
def _linear(w, a_CDR, b, x_ND, residual_NO):
    return _forward(w, a_CDR, b, x_ND, residual_NO)[0]


def _forward(w, a_CDR, b, x_ND, residual_NO):
    z_CNR = _thin("cnd,cdr->cnr", _by_chain(x_ND, a_CDR), a_CDR)
    thin = [
        None if b_CRO is None else _flat(_thin("cnr,cro->cno", *_materialised((z_CNR, b_CRO))))
        for b_CRO in b
    ]
    if residual_NO is not None:
        # The large product reads what it is added to at no cost, and leaves it for others; the thin
        # one is then added in place.
        out = [_materialised(x_ND @ w[0] + residual_NO) + thin[0]]
    else:
        out = [
            x_ND @ w_DO if add is None else x_ND @ w_DO + _materialised(add)
            for w_DO, add in zip(w, thin, strict=True)
        ]
    return tuple(out), (w, a_CDR, b, x_ND, z_CNR, None if residual_NO is None else ())


def _backward(kept, dy):
    w, a_CDR, b, x_ND, z_CNR, residual = kept
    dy_C = [_by_chain(dy_NO, a_CDR) for dy_NO in dy]
    pairs = [(dy_CNO, b_CRO) for dy_CNO, b_CRO in zip(dy_C, b, strict=True) if b_CRO is not None]
    dz_CNR = sum(
        (_thin("cno,cro->cnr", *pair) for pair in pairs[1:]), _thin("cno,cro->cnr", *pairs[0])
    )
    db = tuple(
        None if b_CRO is None else _exact("cnr,cno->cro", *_materialised((z_CNR, dy_CNO)))
        for dy_CNO, b_CRO in zip(dy_C, b, strict=True)
    )
    da_CDR = _exact("cnd,cnr->cdr", _by_chain(x_ND, a_CDR), dz_CNR)
    dx_ND = _materialised(_flat(_thin("cnr,cdr->cnd", dz_CNR, a_CDR)))
    for dy_NO, w_DO in zip(dy, w, strict=True):
        dx_ND = dy_NO @ w_DO.T + dx_ND
    dw = tuple(x_ND.T @ dy_NO for dy_NO in dy)  # the compiler drops it where the base is frozen
    return dw, da_CDR, db, dx_ND, None if residual is None else dy[0]


_linear.defvjp(_forward, _backward)


def gates(
    config: ModelConfig,
    w: Mapping[str, Any],
    adapter: PackedAdapters | None,
    tokens: int,
    drops: Drops,
    target: Target,
) -> bool:
    """Return whether `gated` computes a block's gated mlp over this many tokens."""
    if not (target.gate and config.gated) or config.mlp_bias:
        return False
    if not drops.keys().isdisjoint(("gate", "up", "down", "mlp_output")):
        return False
    if not isinstance(w["up"], tuple) or w["up"][0].dtype != jnp.bfloat16:
        return False
    if adapter is None or not {"up", "down"} <= set(adapter):
        return False
    up, down = adapter["up"], adapter["down"]
    ranks = up.a.shape[-1], down.a.shape[-1]
    return None not in up.b and gate.fits(up.a.shape[0], tokens, config.d_ff, *ranks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(
    act: Callable[[jax.Array], jax.Array],
    up_w: tuple[jax.Array, ...],
    up: PaddedLora,
    down_w: tuple[jax.Array, ...],
    down: PaddedLora,
    x_ND: jax.Array,
    residual_ND: jax.Array,
) -> jax.Array:
    """Compute residual + down(act(gate(x)) up(x)) by the kernels of `gate`.

    Args:
        act: the activation.
        up_w: [D, F] of gate and up projection.
        up: their adapter, of the layer.
        down_w: [F, D] of the down projection, alone.
        down: its adapter.
        x_ND: inputs.
        residual_ND: added to the output.
    """
    return _gated_forward(act, up_w, up, down_w, down, x_ND, residual_ND)[0]


def _gated_forward(act, up_w, up, down_w, down, x_ND, residual_ND):
    z_CNR = _thin("cnd,cdr->cnr", _by_chain(x_ND, up.a), up.a)
    wide = tuple(x_ND @ w_DF for w_DF in up_w)
    gate_NF, up_NF = wide
    factors = _narrow((*up.b, down.a), x_ND)
    h_NF, z_CNS = gate.forward(act, gate_NF, up_NF, z_CNR, *factors, interpret=INTERPRET)
    out = _materialised(h_NF @ down_w[0] + residual_ND) + _flat(
        _thin("cns,cso->cno", z_CNS, down.b[0])
    )
    return out, (up_w, up, down_w, down, x_ND, wide, z_CNR, h_NF, z_CNS)


def _gated_backward(act, kept, dy_ND):
    up_w, up, down_w, down, x_ND, wide, z_CNR, h_NF, z_CNS = kept
    dy_CND = _by_chain(dy_ND, up.a)
    dz_CNS = _thin("cno,cso->cns", dy_CND, down.b[0])
    factors = _narrow((*up.b, down.a), x_ND)
    gate_NF, up_NF = wide
    dh_NF = dy_ND @ down_w[0].T
    *d, dz_CNR = gate.backward(
        act, dh_NF, gate_NF, up_NF, dz_CNS, z_CNR, *factors, interpret=INTERPRET
    )
    down_grads = type(down)(
        _exact("cnf,cns->cfs", _by_chain(h_NF, up.a), dz_CNS),
        (_exact("cns,cno->cso", z_CNS, dy_CND),),
    )
    db = tuple(_exact("cnr,cnf->crf", *_materialised((z_CNR, _by_chain(d_NF, up.a)))) for d_NF in d)
    up_grads = type(up)(_exact("cnd,cnr->cdr", _by_chain(x_ND, up.a), dz_CNR), db)
    dx_ND = _materialised(_flat(_thin("cnr,cdr->cnd", dz_CNR, up.a)))
    for d_NF, w_DF in zip(d, up_w, strict=True):
        dx_ND = d_NF @ w_DF.T + dx_ND
    return tuple(x_ND.T @ d_NF for d_NF in d), up_grads, (h_NF.T @ dy_ND,), down_grads, dx_ND, dy_ND


gated.defvjp(_gated_forward, _gated_backward)


def _narrow(factors, like):
    return [x.astype(like.dtype) for x in factors]


def _by_chain(x_ND, like):
    """[C, N / C, D], where C is the first axis of `like`."""
    return x_ND.reshape(like.shape[0], -1, x_ND.shape[-1])


def _flat(x_CND):
    return x_CND.reshape(-1, x_CND.shape[-1])


def _thin(form, x, factor):
    """A product with an adapter's float32 factor, cast to x's dtype."""
    return jnp.einsum(form, x, factor.astype(x.dtype))


def _exact(form, x, y):
    """A product with a float32 result, for gradients of adapters."""
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _materialised(x):
    """x behind a barrier, so that XLA computes it on its own.

    Where x is added to a product, XLA then fuses the sum into that product, not into the one that
    computes x. And XLA does not join products that share x, which would copy their other factors
    and split their result.
    """
    return jax.lax.optimization_barrier(x)
