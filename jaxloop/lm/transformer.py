"""The one transformer block, and the decoder around it. Training, prefill and decoding differ in the `attend` they pass in.

Dimensions: C chains, B rows a chain, T time, N = C B T tokens in one axis, D model, F mlp, H query heads, G key/value heads, K head size,
V vocabulary, R adapter rank. Tokens stay flattened to [N, D] so that every base projection is one large product over chains, rows and time;
only the adapter's product sees the chain axis.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxloop.lm import attention
from jaxloop.lm.adapters import Lora, Summed, fuse
from jaxloop.lm.spec import Spec, sites

UNROLL = 8  # layers up to which the stack is unrolled: faster to run, slower to compile


def norm(spec: Spec, x, scale, bias=None):
    """RMS or layer normalisation over the last axis, in float32, returned in x's dtype."""
    y = x.astype(jnp.float32)
    if spec.norm == "layer":
        y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + spec.norm_eps)
    y = y.astype(x.dtype) * _row(scale, y) if spec.norm == "rms" else (y * _row(scale.astype(jnp.float32), y))
    return (y if bias is None else y + _row(bias.astype(y.dtype), y)).astype(x.dtype)


def _row(vector, like):
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


def rope_frequencies(spec: Spec):
    """Angular frequency [K / 2] of each rotated pair, with Llama 3.1's scaling where the spec has it."""
    f = spec.rope_theta ** (-jnp.arange(0, spec.head_size, 2, dtype=jnp.float32) / spec.head_size)
    s = spec.rope_scaling
    if s is None:
        return f
    length = 2 * jnp.pi / f
    smooth = (s.original_context / length - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    mixed = (1 - smooth) * f / s.factor + smooth * f
    low, high = s.original_context / s.low_freq_factor, s.original_context / s.high_freq_factor
    return jnp.where(length > low, f / s.factor, jnp.where(length < high, f, mixed))


def rope_tables(spec: Spec, positions_N):
    """cos and sin [N, K] (each half repeated) at integer positions [N], float32."""
    angle = positions_N.astype(jnp.float32)[:, None] * rope_frequencies(spec)[None]
    angle = jnp.concatenate([angle, angle], -1)
    return jnp.cos(angle), jnp.sin(angle)


def pieces(x, *widths: int):
    """x cut along its last axis. The gradient joins the pieces' gradients, where that of a slice would pad each with zeros and add them."""
    return jax.lax.split(x, widths, axis=x.ndim - 1)


def rotate(x_NHK, cos_NK, sin_NK):
    """Rotary embedding in the half-split layout of Hugging Face checkpoints."""
    left, right = pieces(x_NHK, x_NHK.shape[-1] // 2, x_NHK.shape[-1] // 2)
    turned = jnp.concatenate([-right, left], -1)
    return (x_NHK.astype(jnp.float32) * cos_NK[:, None] + turned.astype(jnp.float32) * sin_NK[:, None]).astype(x_NHK.dtype)


@jax.custom_jvp
def adapted(x_ND, w_DO, a_DR, b_RO):
    """x (W + A B). Where there are more tokens than inputs that is less work than x W + (x A) B: no sum over tokens, forth or back.

    Its derivative reads x A and what comes back times B', never the derivative of the sum, which is as large as W."""
    return x_ND @ (w_DO + a_DR @ b_RO)


@functools.partial(adapted.defjvp, symbolic_zeros=True)
def _adapted_jvp(at, moved):
    x_ND, w_DO, a_DR, b_RO = at
    sum_DO, z_NR = w_DO + a_DR @ b_RO, x_ND @ a_DR
    terms = (lambda dx: dx @ sum_DO, lambda dw: x_ND @ dw, lambda da: (x_ND @ da) @ b_RO, lambda db: z_NR @ db)
    y = x_ND @ sum_DO
    return y, sum((term(d) for term, d in zip(terms, moved, strict=True) if not isinstance(d, SymbolicZero)), jnp.zeros_like(y))


def linear(spec: Spec, site: str, w: dict, adapter: dict | None, x_ND, dropout=None):
    """One fused projection with its adapter: [N, D] -> [N, O]. `adapter` leaves are [C, D, n R] and [C, R, O]; N is C equal runs of rows."""
    bias = w.get(f"{site}_bias")
    biased = lambda y: y if bias is None else y + bias[None]  # noqa: E731
    if adapter is None or site not in adapter:
        return biased(x_ND @ w[site])
    a, b = adapter[site]["a"], adapter[site]["b"]
    if isinstance(b, Summed):
        b, chains = b.b, a.shape[0]
        if dropout is None and x_ND.shape[0] >= chains * x_ND.shape[1]:
            if chains == 1:  # a batch axis of one would turn every product into a batched one
                return biased(adapted(x_ND, w[site], a[0], b[0]))
            y_CNO = jax.vmap(adapted, (0, None, 0, 0))(x_ND.reshape(chains, -1, x_ND.shape[1]), w[site], a, b)
            return biased(y_CNO.reshape(x_ND.shape[0], -1))
    y = biased(x_ND @ w[site])
    x_CND = (x_ND if dropout is None else dropout(site, x_ND)).reshape(a.shape[0], -1, x_ND.shape[-1])
    z = jnp.einsum("cnd,cdr->cnr", x_CND, a)
    if not isinstance(b, tuple):
        return y + jnp.einsum("cnr,cro->cno", z, b).reshape(y.shape)
    z_each = iter(pieces(z, *(w_CRO.shape[1] for w_CRO in b if w_CRO is not None)))
    out = pieces(y, *(part.width for part in sites(spec)[site]))
    out = [y if w_CRO is None else y + jnp.einsum("cnr,cro->cno", next(z_each), w_CRO).reshape(y.shape) for y, w_CRO in zip(out, b, strict=True)]
    return out[0] if len(out) == 1 else jnp.concatenate(out, -1)


def block(spec: Spec, w: dict, adapter: dict | None, x_ND, attend, dropout=None):
    """One transformer block. `attend(q [N, H, K], k [N, G, K], v [N, G, K]) -> [N, H K]` owns positions, masks and caches."""
    n, hk, gk = x_ND.shape[0], spec.heads * spec.head_size, spec.kv_heads * spec.head_size
    h = norm(spec, x_ND, w["norm1_scale"], w.get("norm1_bias")) if spec.norm_first else x_ND
    qkv = linear(spec, "qkv", w, adapter, h, dropout)
    q, k, v = (part.reshape(n, -1, spec.head_size) for part in pieces(qkv, hk, gk, gk))
    x_ND = x_ND + linear(spec, "o", w, adapter, attend(q, k, v), dropout)
    if not spec.norm_first:
        x_ND = norm(spec, x_ND, w["norm1_scale"], w.get("norm1_bias"))
    h = norm(spec, x_ND, w["norm2_scale"], w.get("norm2_bias")) if spec.norm_first else x_ND
    h = linear(spec, "up", w, adapter, h, dropout)
    if spec.gated:
        gate, up = pieces(h, spec.mlp, spec.mlp)
        h = ACTIVATIONS[spec.activation](gate) * up
    else:
        h = ACTIVATIONS[spec.activation](h)
    x_ND = x_ND + linear(spec, "down", w, adapter, h, dropout)
    return x_ND if spec.norm_first else norm(spec, x_ND, w["norm2_scale"], w.get("norm2_bias"))


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


def hidden(spec: Spec, params: dict, tokens, *, fused=None, mask=None, dropout=None, remat: bool = False, watch=None):
    """Last hidden states [rows, T, D] of tokens [rows, T] (rows = C B), before the final norm.

    Without `mask`, rows are real from the start (right padding needs no mask under causal attention). With `mask` [rows, T] (True = real),
    padded keys are hidden and positions count real tokens, so left padding works. With `watch`, a function of each block's output [N, D],
    its values [L, ...] are returned too.
    """
    rows, time = tokens.shape
    if mask is None:
        positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
    else:
        positions = jnp.maximum(jnp.cumsum(mask.astype(jnp.int32), -1) - 1, 0).reshape(-1)
    x = embed(spec, params, tokens.reshape(-1), positions)
    tables = rope_tables(spec, positions) if spec.positions == "rope" else None
    attend = attention.causal(spec, rows, time, tables, mask)

    def one(x, w, adapter, i):
        drop = None if dropout is None else (lambda site, y: dropout(i, site, y))
        return block(spec, w, adapter, x, attend, drop)

    if remat:
        one = jax.checkpoint(one, static_argnums=() if spec.layers > UNROLL else (3,))
    look = watch or (lambda x: None)
    if spec.layers <= UNROLL:
        seen = []
        for i in range(spec.layers):
            x = one(x, layer(params["layers"], i), None if fused is None else adapter_layer(fused, i), i)
            seen.append(look(x))
        seen = jax.tree.map(lambda *values: jnp.stack(values), *seen)
    else:
        by_layer = None if fused is None else jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), fused)

        def step(x, wai):
            x = one(x, *wai)
            return x, look(x)

        x, seen = jax.lax.scan(step, x, (params["layers"], by_layer, jnp.arange(spec.layers)))
    x = x.reshape(rows, time, -1)
    return x if watch is None else (x, seen)


def forward(spec: Spec, params: dict, tokens, *, adapters=None, lora: Lora = Lora(), mask=None):
    """Next-token logits, float32, [B, T, V] or [C, B, T, V].

    tokens: integers [B, T], or [C, B, T] with `adapters` whose leaves have a leading chain axis C.
    mask: same shape, True at real tokens; None means that padding, if any, is on the right. Logits at padded positions are arbitrary.
    Raises ValueError where the chain axes differ or T exceeds the model's context.
    """
    shape, (*_, time) = tokens.shape, tokens.shape
    if time > spec.context:
        raise ValueError(f"tokens: {time} tokens exceed the model's context of {spec.context}")
    chains = None if adapters is None else jax.tree.leaves(adapters)[0].shape[0]
    if chains is not None and (shape[0] if len(shape) == 3 else 1) != chains:
        raise ValueError(f"adapters: {chains} chains do not match tokens of shape {shape}; tokens are [chains, rows, time]")
    fused = None if adapters is None else fuse(spec, adapters, lora, params["embed"].dtype)
    flat = tokens.reshape(-1, time)
    x = hidden(spec, params, flat, fused=fused, mask=None if mask is None else mask.reshape(-1, time))
    return project(spec, params, finish(spec, params, x.reshape(flat.size, -1))).reshape(*shape, spec.vocab)
