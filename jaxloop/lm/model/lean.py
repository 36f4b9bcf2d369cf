"""The block as training in bfloat16 runs it on an accelerator: few kernels, few bytes, nothing kept
that is wider than bfloat16.

XLA takes the elementwise parts of a program into one kernel, but not into a large product, and
copies what a scan over layers stacks or slices. So layers are unrolled from weights that are cut
once, outside the loop over steps, each part of a site has a product of its own (a cut of one
product's result would be a copy), and a thin product of an adapter is made first: the large one
then adds it to what it writes.

Dimensions: C chains, L layers, N tokens of all chains, D inputs, O outputs, R columns of a site's A
(the ranks of its targets).
"""

import functools

import jax
import jax.numpy as jnp

from jaxloop.lm.model import gate
from jaxloop.lm.model.config import Spec, sites
from jaxloop.lm.target import Target

INTERPRET = False  # kernels run step by step on any platform, for tests


def fits(target: Target, dtype: str) -> bool:
    """Whether a program of this target and dtype is laid out as here: float32 loses nothing by
    being kept, and a CPU has caches.
    """
    return target.platform != "cpu" and dtype == "bfloat16"


def layers(spec: Spec, stacked: dict, target: Target):
    """Weights of the layers from those stacked [L, ...]; projections are cut into their parts:
    {site: tuple of [D, O]}. A tuple of layers, which are then unrolled; for a TPU still stacked, as
    its compiler takes 17 s of processor time for each layer and copies no slices.
    """
    widths = {site: tuple(p.width for p in group) for site, group in sites(spec).items()}
    cut = lambda name, x: (
        tuple(jax.lax.split(x, widths[name], axis=x.ndim - 1)) if name in widths else x
    )
    if target.platform == "tpu":
        return {name: cut(name, x) for name, x in stacked.items()}
    each = {
        name: [part[0] for part in jax.lax.split(x, (1,) * spec.layers)]
        for name, x in stacked.items()
    }
    return tuple({name: cut(name, x[i]) for name, x in each.items()} for i in range(spec.layers))


def are_laid_out(layers) -> bool:
    """Whether `layers` made these."""
    return isinstance(layers, tuple) or isinstance(layers["o"], tuple)


def adapter_layers(fused, count: int) -> tuple:
    """Adapters of each layer from leaves [C, L, ...]. The gradients of the pieces are joined, where
    those of slices would be padded and added.
    """
    leaves, structure = jax.tree.flatten(fused)
    each = ([part[:, 0] for part in jax.lax.split(x, (1,) * count, axis=1)] for x in leaves)
    return tuple(jax.tree.unflatten(structure, of_layer) for of_layer in zip(*each, strict=True))


def linear(w: tuple, bias: tuple | None, adapter, x_ND, dropout=None, onto_NO=None) -> list:
    """x W + (x A) B (+ bias) of every part, in x's dtype, (+ onto, where a site has one part). `w`
    has one [D, O] a part, `bias` one [O]; `adapter` is None or `adapters.Parts` of a layer: A [C,
    D, R], and one B [C, R, O], or None, a part. A, B and their gradients are float32.
    """
    if adapter is None:
        y = [x_ND @ w_DO for w_DO in w]
    elif dropout is None:
        y = _linear(w, *adapter, x_ND, onto_NO)
        onto_NO = None
    else:
        z_CNR = _thin("cnd,cdr->cnr", _by_chain(dropout(x_ND), adapter.a), adapter.a)
        thin = [
            None if b_CRO is None else _flat(_thin("cnr,cro->cno", z_CNR, b_CRO))
            for b_CRO in adapter.b
        ]
        y = [
            x_ND @ w_DO if add is None else x_ND @ w_DO + add
            for w_DO, add in zip(w, thin, strict=True)
        ]
    y = list(y) if bias is None else [y_NO + b_O[None] for y_NO, b_O in zip(y, bias, strict=True)]
    return y if onto_NO is None else [onto_NO + y[0]]


@jax.custom_vjp
def _linear(w, a_CDR, b, x_ND, onto_NO):
    return _forward(w, a_CDR, b, x_ND, onto_NO)[0]


def _forward(w, a_CDR, b, x_ND, onto_NO):
    z_CNR = _thin("cnd,cdr->cnr", _by_chain(x_ND, a_CDR), a_CDR)
    thin = [
        None if b_CRO is None else _flat(_thin("cnr,cro->cno", *_first((z_CNR, b_CRO))))
        for b_CRO in b
    ]
    if onto_NO is not None:
        # The large product reads what it is added to at no cost, and leaves it for others; the thin
        # one is then added in place.
        out = [_first(x_ND @ w[0] + onto_NO) + thin[0]]
    else:
        out = [
            x_ND @ w_DO if add is None else x_ND @ w_DO + _first(add)
            for w_DO, add in zip(w, thin, strict=True)
        ]
    return tuple(out), (w, a_CDR, b, x_ND, z_CNR, None if onto_NO is None else ())


def _backward(kept, dy):
    w, a_CDR, b, x_ND, z_CNR, onto = kept
    dy_C = [_by_chain(dy_NO, a_CDR) for dy_NO in dy]
    pairs = [(dy_CNO, b_CRO) for dy_CNO, b_CRO in zip(dy_C, b, strict=True) if b_CRO is not None]
    dz_CNR = sum(
        (_thin("cno,cro->cnr", *pair) for pair in pairs[1:]), _thin("cno,cro->cnr", *pairs[0])
    )
    db = tuple(
        None if b_CRO is None else _exact("cnr,cno->cro", *_first((z_CNR, dy_CNO)))
        for dy_CNO, b_CRO in zip(dy_C, b, strict=True)
    )
    da_CDR = _exact("cnd,cnr->cdr", _by_chain(x_ND, a_CDR), dz_CNR)
    dx_ND = _first(_flat(_thin("cnr,cdr->cnd", dz_CNR, a_CDR)))
    for dy_NO, w_DO in zip(dy, w, strict=True):
        dx_ND = dy_NO @ w_DO.T + dx_ND
    dw = tuple(x_ND.T @ dy_NO for dy_NO in dy)  # the compiler drops it where the base is frozen
    return dw, da_CDR, db, dx_ND, None if onto is None else dy[0]


_linear.defvjp(_forward, _backward)


def gates(spec: Spec, w: dict, adapter: dict | None, tokens: int, dropout, target: Target) -> bool:
    """Whether a block's gated mlp, over this many tokens, is one that `gated` computes."""
    laid_out = (
        isinstance(w["up"], tuple)
        and w["up"][0].dtype == jnp.bfloat16
        and {"up", "down"} <= set(adapter or ())
    )
    if not (target.gate and laid_out and spec.gated and dropout is None and not spec.mlp_bias):
        return False
    up, down = adapter["up"], adapter["down"]
    return None not in up.b and gate.fits(
        up.a.shape[0], tokens, spec.mlp, up.a.shape[-1], down.a.shape[-1]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(act, up_w: tuple, up, down_w: tuple, down, x_ND, onto_ND):
    """onto + down(act(gate(x)) up(x)) with adapters (`adapters.Parts` of a layer) on all three
    projections, by the kernels of `gate`.
    """
    return _gated_forward(act, up_w, up, down_w, down, x_ND, onto_ND)[0]


def _gated_forward(act, up_w, up, down_w, down, x_ND, onto_ND):
    z_CNR = _thin("cnd,cdr->cnr", _by_chain(x_ND, up.a), up.a)
    wide = tuple(x_ND @ w_DF for w_DF in up_w)
    h_NF, z_CNS = gate.forward(
        act, *wide, z_CNR, *_narrow((*up.b, down.a), x_ND), interpret=INTERPRET
    )
    out = _first(h_NF @ down_w[0] + onto_ND) + _flat(_thin("cns,cso->cno", z_CNS, down.b[0]))
    return out, (up_w, up, down_w, down, x_ND, wide, z_CNR, h_NF, z_CNS)


def _gated_backward(act, kept, dy_ND):
    up_w, up, down_w, down, x_ND, wide, z_CNR, h_NF, z_CNS = kept
    dy_CND = _by_chain(dy_ND, up.a)
    dz_CNS = _thin("cno,cso->cns", dy_CND, down.b[0])
    factors = _narrow((*up.b, down.a), x_ND)
    *d, dz_CNR = gate.backward(
        act, dy_ND @ down_w[0].T, *wide, dz_CNS, z_CNR, *factors, interpret=INTERPRET
    )
    down_grads = type(down)(
        _exact("cnf,cns->cfs", _by_chain(h_NF, up.a), dz_CNS),
        (_exact("cns,cno->cso", z_CNS, dy_CND),),
    )
    db = tuple(_exact("cnr,cnf->crf", *_first((z_CNR, _by_chain(d_NF, up.a)))) for d_NF in d)
    up_grads = type(up)(_exact("cnd,cnr->cdr", _by_chain(x_ND, up.a), dz_CNR), db)
    dx_ND = _first(_flat(_thin("cnr,cdr->cnd", dz_CNR, up.a)))
    for d_NF, w_DF in zip(d, up_w, strict=True):
        dx_ND = d_NF @ w_DF.T + dx_ND
    return tuple(x_ND.T @ d_NF for d_NF in d), up_grads, (h_NF.T @ dy_ND,), down_grads, dx_ND, dy_ND


gated.defvjp(_gated_forward, _gated_backward)


def _narrow(factors, like):
    return [x.astype(like.dtype) for x in factors]


def _by_chain(x_ND, like):
    return x_ND.reshape(like.shape[0], -1, x_ND.shape[-1])


def _flat(x_CND):
    return x_CND.reshape(-1, x_CND.shape[-1])


def _thin(form, x, factor):
    return jnp.einsum(form, x, factor.astype(x.dtype))


def _exact(form, x, y):
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _first(x):
    """x as it is, made on its own: a product that x is added to takes it in, where XLA would let x
    take in the product, and products that share x are not joined, which would copy their other
    factors and cut their result.
    """
    return jax.lax.optimization_barrier(x)
