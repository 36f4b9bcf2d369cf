"""The one transformer block, and the decoder around it. Training, prefill and decoding differ in
the `attend` they pass in.

Dimensions: C chains, B rows a chain, T time, N = C B T tokens in one axis, D model, F mlp, H query
heads, G key/value heads, K head size, V vocabulary, R adapter rank. Tokens stay flattened to [N, D]
so that every base projection is one large product over chains, rows and time; only the adapter's
product sees the chain axis.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloop.lm.generation.row_kernels import LaneAdapter, Pool, adapt
from jaxloop.lm.model import attention, lean, rotary
from jaxloop.lm.model.config import Spec, sites
from jaxloop.lm.model.lora import Lora, Summed, fuse
from jaxloop.lm.target import Target

UNROLL = 8  # layers up to which the stack is unrolled: faster to run, slower to compile


def norm(spec: Spec, x, scale, bias=None):
    """RMS or layer normalisation over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    if spec.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + spec.norm_eps)
    y = (
        y.astype(x.dtype) * _row(scale, y)
        if spec.norm == "rms"
        else (y * _row(scale.astype(jnp.float32), y))
    )
    return (y if bias is None else y + _row(bias.astype(y.dtype), y)).astype(x.dtype)


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def rope_tables(spec: Spec, positions_N):
    """cos and sin [N, K] (each half repeated) at integer positions [N], float32; None where
    positions are not rotary.
    """
    if spec.positions != "rope":
        return None
    angle = (
        positions_N.astype(jnp.float32)[:, None]
        * rotary.frequencies(spec.rope_theta, spec.head_size, spec.rope_scaling)[None]
    )
    angle, factor = jnp.concatenate([angle, angle], -1), rotary.attention_factor(spec.rope_scaling)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return (cos, sin) if factor == 1 else (cos * factor, sin * factor)


def pieces(x, *widths: int):
    """x cut along its last axis. The gradient joins the pieces' gradients, where that of a slice
    would pad each with zeros and add them.
    """
    return jax.lax.split(x, widths, axis=x.ndim - 1)


def rotate(x_NHK, cos_NK, sin_NK):
    """Rotary embedding in the half-split layout of Hugging Face checkpoints."""
    left, right = pieces(x_NHK, x_NHK.shape[-1] // 2, x_NHK.shape[-1] // 2)
    turned = jnp.concatenate([-right, left], -1)
    return (
        x_NHK.astype(jnp.float32) * cos_NK[:, None] + turned.astype(jnp.float32) * sin_NK[:, None]
    ).astype(x_NHK.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def adapted(widths, x_ND, w_DO, a_RD, b):
    """x (W + A B), cut into parts of `widths`. Where there are more tokens than inputs that is less
    work than x W + (x A) B: no sum over tokens.

    `a_RD` is A transposed, one part's rows after another's; `b` has a part's own B [R, O] or, where
    it has no adapter, None. The derivative reads x A and what comes back times B', part by part,
    never the derivative of the sum, which is as large as W.
    """
    return pieces(x_ND @ _summed(widths, w_DO, a_RD, b), *widths)


def _ranks(b):
    return [b_RO.shape[0] for b_RO in b if b_RO is not None]


def _summed(widths, w_DO, a_RD, b):
    """W + A B."""
    each = iter(jax.lax.split(a_RD, _ranks(b)))
    parts = [
        jnp.zeros((w_DO.shape[0], n), w_DO.dtype) if b_RO is None else next(each).T @ b_RO
        for n, b_RO in zip(widths, b, strict=True)
    ]
    return w_DO + jnp.concatenate(parts, -1)


@functools.partial(adapted.defjvp, symbolic_zeros=True)
def _adapted_jvp(widths, at, moved):
    (x_ND, w_DO, a_RD, b), (dx_ND, dw_DO, da_RD, db) = at, moved
    moves = lambda d: not isinstance(d, SymbolicZero)  # noqa: E731
    sum_DO = _summed(widths, w_DO, a_RD, b)
    y = pieces(x_ND @ sum_DO, *widths)
    terms = [[] for _ in widths]
    for d, product in ((dx_ND, lambda: dx_ND @ sum_DO), (dw_DO, lambda: x_ND @ dw_DO)):
        if moves(d):
            terms = [
                [*own, term] for own, term in zip(terms, pieces(product(), *widths), strict=True)
            ]
    z = iter(pieces(x_ND @ a_RD.T, *_ranks(b)))
    dz = iter(pieces(x_ND @ da_RD.T, *_ranks(b))) if moves(da_RD) else None
    for own, b_RO, db_RO in zip(terms, b, db, strict=True):
        if b_RO is not None:
            z_NR = next(z)
            own += ([next(dz) @ b_RO] if dz else []) + ([z_NR @ db_RO] if moves(db_RO) else [])
    return y, [
        sum(own[1:], own[0]) if own else jnp.zeros_like(part)
        for own, part in zip(terms, y, strict=True)
    ]


def linear(
    spec: Spec, site: str, w: dict, adapter: dict | None, x_ND, dropout=None, onto_ND=None
) -> list:
    """One fused projection with its adapter: [N, D] to its parts, [N, O] each. N is C equal runs of
    rows; `adapter` holds what `adapters.fuse` made of a layer: C chains' A and B. `onto_ND` is
    added, where the site has one part. Weights that are cut into parts take `lean.linear`.
    """
    if isinstance(w[site], tuple):
        bias = w.get(f"{site}_bias")
        bias = None if bias is None else pieces(bias, *(part.width for part in sites(spec)[site]))
        drop = None if dropout is None else functools.partial(dropout, site)
        return lean.linear(
            w[site], bias, None if adapter is None else adapter.get(site), x_ND, drop, onto_ND
        )
    if _in_lanes(adapter, site):
        return list(
            pieces(
                _whole(spec, site, w, adapter, x_ND, onto_ND),
                *(part.width for part in sites(spec)[site]),
            )
        )
    parts = _linear(spec, site, w, adapter, x_ND, dropout)
    return parts if onto_ND is None else [onto_ND + parts[0]]


def _linear(spec, site, w, adapter, x_ND, dropout):
    widths = tuple(part.width for part in sites(spec)[site])
    bias = w.get(f"{site}_bias")
    biased = lambda parts: (
        list(parts)
        if bias is None
        else [y + b[None] for y, b in zip(parts, pieces(bias, *widths), strict=True)]
    )  # noqa: E731
    if adapter is None or site not in adapter:
        return biased(pieces(x_ND @ w[site], *widths))
    if isinstance(adapter[site], Summed):
        a_CRD, b = adapter[site]
        chains = a_CRD.shape[0]
        if dropout is None and x_ND.shape[0] >= chains * x_ND.shape[1]:
            if chains == 1:  # a batch axis of one would turn every product into a batched one
                return biased(
                    adapted(widths, x_ND, w[site], *jax.tree.map(lambda leaf: leaf[0], (a_CRD, b)))
                )
            each = jax.vmap(functools.partial(adapted, widths), (0, None, 0, 0))(
                x_ND.reshape(chains, -1, x_ND.shape[1]), w[site], a_CRD, b
            )
            return biased([y_CNO.reshape(x_ND.shape[0], -1) for y_CNO in each])
        a = a_CRD.swapaxes(1, 2)
    else:
        a, b = adapter[site]["a"], adapter[site]["b"]
    y = x_ND @ w[site]
    x_CND = (x_ND if dropout is None else dropout(site, x_ND)).reshape(
        a.shape[0], -1, x_ND.shape[-1]
    )
    z = jnp.einsum("cnd,cdr->cnr", x_CND, a)
    if not isinstance(b, tuple):
        return biased(pieces(y + jnp.einsum("cnr,cro->cno", z, b).reshape(y.shape), *widths))
    z_each = iter(pieces(z, *(w_CRO.shape[1] for w_CRO in b if w_CRO is not None)))
    parts = zip(pieces(y, *widths), b, strict=True)
    return biased(
        [
            y
            if w_CRO is None
            else y + jnp.einsum("cnr,cro->cno", next(z_each), w_CRO).reshape(y.shape)
            for y, w_CRO in parts
        ]
    )


def _whole(spec: Spec, site: str, w: dict, adapter: dict | None, x_ND, onto_ND=None):
    """`linear` for decoding and prefill on a GPU: the parts side by side, [N, sum of O], as the
    product leaves them.
    """
    y_NO = x_ND @ w[site]
    found = None if adapter is None else adapter.get(site)
    if found is not None:
        y_NO = adapt(
            x_ND, y_NO, found, tuple(part.width for part in sites(spec)[site]), added_NO=onto_ND
        )
    elif onto_ND is not None:
        y_NO = y_NO + onto_ND
    bias = w.get(f"{site}_bias")
    return y_NO if bias is None else y_NO + bias[None]


def _in_lanes(adapter: dict | None, site: str) -> bool:
    return adapter is not None and isinstance(adapter.get(site), (LaneAdapter, Pool))


def block(
    spec: Spec,
    w: dict,
    adapter: dict | None,
    x_ND,
    attend,
    dropout=None,
    target: Target = Target(),
    *,
    joined: bool = False,
):
    """One transformer block. `attend(q [N, H, K], k [N, G, K], v [N, G, K]) -> [N, H K]` owns
    positions, masks and caches; where `joined`, it takes all three as one array [N, H + 2 G, K].
    """
    n, hk, gk = x_ND.shape[0], spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    again = jax.checkpoint if isinstance(w["o"], tuple) else (lambda part: part)
    normed, activated = (
        again(functools.partial(norm, spec)),
        again(functools.partial(_activated, spec)),
    )
    norm1, norm2 = (
        [w[name] for name in (f"{which}_scale", f"{which}_bias") if name in w]
        for which in ("norm1", "norm2")
    )
    h = normed(x_ND, *norm1) if spec.norm_first else x_ND
    if joined:
        attended = attend(_whole(spec, "qkv", w, adapter, h).reshape(n, -1, spec.head_size))
    else:
        qkv = _cut(linear(spec, "qkv", w, adapter, h, dropout), hk, gk, gk)
        attended = attend(*(part.reshape(n, -1, spec.head_size) for part in qkv))
    x_ND = linear(spec, "o", w, adapter, attended, dropout, x_ND)[0]
    if not spec.norm_first:
        x_ND = normed(x_ND, *norm1)
    h = normed(x_ND, *norm2) if spec.norm_first else x_ND
    if lean.gates(spec, w, adapter, n, dropout, target):
        return lean.gated(
            ACTIVATIONS[spec.activation],
            w["up"],
            adapter["up"],
            w["down"],
            adapter["down"],
            h,
            x_ND,
        )
    if spec.gated and spec.activation == "silu" and not spec.mlp_bias and _in_lanes(adapter, "up"):
        h = adapt(h, h @ w["up"], adapter["up"], (spec.mlp, spec.mlp), gated=True)
    else:
        h = activated(
            *_cut(linear(spec, "up", w, adapter, h, dropout), *[spec.mlp] * (1 + spec.gated))
        )
    x_ND = linear(spec, "down", w, adapter, h, dropout, x_ND)[0]
    return x_ND if spec.norm_first else normed(x_ND, *norm2)


def _activated(spec, gate, *up):
    h = ACTIVATIONS[spec.activation](gate)
    return h * up[0] if up else h


def _cut(parts: list, *widths: int):
    """GPT-2 has one module, and so one adapter, where others have one for each of q, k and v."""
    return parts if len(parts) == len(widths) else pieces(parts[0], *widths)


def embed(spec: Spec, params: dict, tokens_N, positions_N):
    """Token (and learned position) embeddings [N, D]."""
    x = params["embed"][tokens_N]
    if "embed_in" in params:
        x = x @ params["embed_in"]
    if spec.positions == "learned":
        x = x + params["position"][positions_N + spec.position_offset]
    return x


def finish(spec: Spec, params: dict, x_ND):
    """What precedes the head: final norm and OPT-350m's output projection."""
    if spec.final_norm:
        x_ND = norm(spec, x_ND, params["norm_scale"], params.get("norm_bias"))
    return x_ND @ params["embed_out"] if "embed_out" in params else x_ND


def head(spec: Spec, params: dict):
    """The output matrix [V, E]."""
    return params["embed"] if spec.tied else params["head"]


def logits(x_ND, head_VD):
    """Logits [N, V] in float32."""
    return jnp.einsum("nd,vd->nv", x_ND, head_VD, preferred_element_type=jnp.float32)


def project(spec: Spec, params: dict, x_ND):
    """Logits [N, V] in float32, of states that `finish` returned."""
    return logits(x_ND, head(spec, params))


def layer(tree, i: int):
    """Layer i of a stacked pytree whose leaves are [L, ...]."""
    return jax.tree.map(lambda leaf: leaf[i], tree)


def adapter_layer(fused, i: int):
    """Layer i of fused adapters, whose leaves are [C, L, ...]."""
    return jax.tree.map(lambda leaf: leaf[:, i], fused)


def hidden(
    spec: Spec,
    params: dict,
    tokens,
    *,
    fused=None,
    mask=None,
    dropout=None,
    remat: bool = False,
    watch=None,
    target: Target = Target(),
):
    """Last hidden states [rows, T, D] of tokens [rows, T] (rows = C B), before the final norm.

    Without `mask`, rows are real from the start (right padding needs no mask under causal
    attention). With `mask` [rows, T] (True = real), padded keys are hidden and positions count real
    tokens, so left padding works. With `watch`, a function of each block's output [N, D], its
    values [L, ...] are returned too. Layers that `lean.layers` made take adapters that
    `adapters.fuse` made with `parts`.
    """
    rows, time = tokens.shape
    if mask is None:
        positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
    else:
        positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0).reshape(-1)
    x = embed(spec, params, tokens.reshape(-1), positions)
    tables = rope_tables(spec, positions)
    attend = attention.causal(spec, rows, time, tables, mask, target)

    def one(x, w, adapter, i):
        drop = None if dropout is None else (lambda site, y: dropout(i, site, y))
        return block(spec, w, adapter, x, attend, drop, target)

    unroll = isinstance(params["layers"], tuple) or spec.layers <= UNROLL
    if remat:
        one = jax.checkpoint(one, static_argnums=(3,) if unroll else ())
    look = watch or (lambda x: None)
    if unroll:
        seen = []
        for i, (w, adapter) in enumerate(_each_layer(spec, params["layers"], fused)):
            x = one(x, w, adapter, i)
            seen.append(look(x))
        seen = jax.tree.map(lambda *values: jnp.stack(values), *seen)
    else:
        by_layer = (
            None if fused is None else jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), fused)
        )

        def step(x, wai):
            x = one(x, *wai)
            return x, look(x)

        x, seen = jax.lax.scan(step, x, (params["layers"], by_layer, jnp.arange(spec.layers)))
    x = x.reshape(rows, time, -1)
    return x if watch is None else (x, seen)


def _each_layer(spec, layers, fused):
    """(weights, adapter) of each layer."""
    if isinstance(layers, tuple):
        return zip(
            layers,
            [None] * spec.layers if fused is None else lean.adapter_layers(fused, spec.layers),
            strict=True,
        )
    return (
        (layer(layers, i), None if fused is None else adapter_layer(fused, i))
        for i in range(spec.layers)
    )


def forward(spec: Spec, params: dict, tokens, *, adapters=None, lora: Lora = Lora(), mask=None):
    """Next-token logits, float32, [B, T, V] or [C, B, T, V].

    tokens: integers [B, T], or [C, B, T] with `adapters` whose leaves have a leading chain axis C.
    mask: same shape, True at real tokens; None means that padding, if any, is on the right. Logits
    at padded positions are arbitrary. Raises ValueError where the chain axes differ or T exceeds
    the model's context.
    """
    shape, (*_, time) = tokens.shape, tokens.shape
    if time > spec.context:
        raise ValueError(f"tokens: {time} tokens exceed the model's context of {spec.context}")
    chains = None if adapters is None else jax.tree.leaves(adapters)[0].shape[0]
    if chains is not None and (shape[0] if len(shape) == 3 else 1) != chains:
        raise ValueError(
            f"adapters: {chains} chains do not match tokens of shape {shape}; tokens are "
            "[chains, rows, time]"
        )
    fused = None if adapters is None else fuse(spec, adapters, lora, params["embed"].dtype)
    flat = tokens.reshape(-1, time)
    x = hidden(
        spec, params, flat, fused=fused, mask=None if mask is None else mask.reshape(-1, time)
    )
    return project(spec, params, finish(spec, params, x.reshape(flat.size, -1))).reshape(
        *shape, spec.vocab
    )
