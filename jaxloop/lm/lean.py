"""The block as training in bfloat16 runs it on an accelerator: few kernels, few bytes, nothing kept that is wider than bfloat16.

XLA takes the elementwise parts of a program into one kernel, but not into a large product, and copies what a scan over layers stacks or slices.
So layers are unrolled from weights that are cut once, outside the loop over steps, each part of a site has a product of its own (a cut of one
product's result would be a copy), and a thin product of an adapter is made first: the large one then adds it to what it writes.

Dimensions: C chains, L layers, N tokens of all chains, D inputs, O outputs, R columns of a site's A (the ranks of its targets).
"""

import jax
import jax.numpy as jnp

from jaxloop.lm.spec import Spec, sites
from jaxloop.lm.target import Target


def fits(target: Target, dtype: str) -> bool:
    """Whether a program of this target and dtype is laid out as here: float32 loses nothing by being kept, and a CPU has caches."""
    return target.platform != "cpu" and dtype == "bfloat16"


def layers(spec: Spec, stacked: dict) -> tuple:
    """Weights of each layer from those stacked [L, ...]; projections are cut into their parts: {site: tuple of [D, O]}."""
    widths = {site: tuple(p.width for p in group) for site, group in sites(spec).items()}
    each = {name: [part[0] for part in jax.lax.split(x, (1,) * spec.layers)] for name, x in stacked.items()}
    cut = lambda name, x: tuple(jax.lax.split(x, widths[name], axis=1)) if name in widths else x
    return tuple({name: cut(name, x[i]) for name, x in each.items()} for i in range(spec.layers))


def adapter_layers(fused, count: int) -> tuple:
    """Adapters of each layer from leaves [C, L, ...]. The gradients of the pieces are joined, where those of slices would be padded and added."""
    each = jax.tree.map(lambda x: [part[:, 0] for part in jax.lax.split(x, (1,) * count, axis=1)], fused)
    return tuple(jax.tree.map(lambda x: x[i], each, is_leaf=lambda x: isinstance(x, list)) for i in range(count))


def linear(w: tuple, bias: tuple | None, adapter, x_ND, dropout=None, onto_NO=None) -> list:
    """x W + (x A) B (+ bias) of every part, in x's dtype, (+ onto, where a site has one part). `w` has one [D, O] a part, `bias` one [O];
    `adapter` is None or `adapters.Parts` of a layer: A [C, D, R], and one B [C, R, O], or None, a part. A, B and their gradients are float32."""
    if adapter is None:
        y = [x_ND @ w_DO for w_DO in w]
    elif dropout is None:
        y = _linear(w, *adapter, x_ND, onto_NO)
        onto_NO = None
    else:
        z_CNR = _thin("cnd,cdr->cnr", _by_chain(dropout(x_ND), adapter.a), adapter.a)
        thin = [None if b_CRO is None else _flat(_thin("cnr,cro->cno", z_CNR, b_CRO)) for b_CRO in adapter.b]
        y = [x_ND @ w_DO if add is None else x_ND @ w_DO + add for w_DO, add in zip(w, thin, strict=True)]
    y = list(y) if bias is None else [y_NO + b_O[None] for y_NO, b_O in zip(y, bias, strict=True)]
    return y if onto_NO is None else [onto_NO + y[0]]


@jax.custom_vjp
def _linear(w, a_CDR, b, x_ND, onto_NO):
    return _forward(w, a_CDR, b, x_ND, onto_NO)[0]


def _forward(w, a_CDR, b, x_ND, onto_NO):
    z_CNR = _thin("cnd,cdr->cnr", _by_chain(x_ND, a_CDR), a_CDR)
    thin = [None if b_CRO is None else _flat(_thin("cnr,cro->cno", *_first((z_CNR, b_CRO)))) for b_CRO in b]
    if onto_NO is not None:
        # The large product reads what it is added to at no cost, and leaves it for others; the thin one is then added in place.
        out = [_first(x_ND @ w[0] + onto_NO) + thin[0]]
    else:
        out = [x_ND @ w_DO if add is None else x_ND @ w_DO + _first(add) for w_DO, add in zip(w, thin, strict=True)]
    return tuple(out), (w, a_CDR, b, x_ND, z_CNR, None if onto_NO is None else ())


def _backward(kept, dy):
    w, a_CDR, b, x_ND, z_CNR, onto = kept
    dy_C = [_by_chain(dy_NO, a_CDR) for dy_NO in dy]
    pairs = [(dy_CNO, b_CRO) for dy_CNO, b_CRO in zip(dy_C, b, strict=True) if b_CRO is not None]
    dz_CNR = sum((_thin("cno,cro->cnr", *pair) for pair in pairs[1:]), _thin("cno,cro->cnr", *pairs[0]))
    db = tuple(None if b_CRO is None else _exact("cnr,cno->cro", *_first((z_CNR, dy_CNO))) for dy_CNO, b_CRO in zip(dy_C, b, strict=True))
    da_CDR = _exact("cnd,cnr->cdr", _by_chain(x_ND, a_CDR), dz_CNR)
    dx_ND = _first(_flat(_thin("cnr,cdr->cnd", dz_CNR, a_CDR)))
    for dy_NO, w_DO in zip(dy, w, strict=True):
        dx_ND = dy_NO @ w_DO.T + dx_ND
    dw = tuple(x_ND.T @ dy_NO for dy_NO in dy)  # the compiler drops it where the base is frozen
    return dw, da_CDR, db, dx_ND, None if onto is None else dy[0]


_linear.defvjp(_forward, _backward)


def _by_chain(x_ND, like):
    return x_ND.reshape(like.shape[0], -1, x_ND.shape[-1])


def _flat(x_CND):
    return x_CND.reshape(-1, x_CND.shape[-1])


def _thin(form, x, factor):
    return jnp.einsum(form, x, factor.astype(x.dtype))


def _exact(form, x, y):
    return jnp.einsum(form, x, y, preferred_element_type=jnp.float32)


def _first(x):
    """x as it is, made on its own: a product that x is added to takes it in, where XLA would let x take in the product, and products that share
    x are not joined, which would copy their other factors and cut their result."""
    return jax.lax.optimization_barrier(x)
