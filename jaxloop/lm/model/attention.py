"""Attention over whole sequences, causal or in both directions: XLA everywhere, cuDNN's or a TPU's
kernel where the target has it.

Dimensions: R rows, T time, H query heads, G key/value heads, Q = H / G, K head size.
"""

import jax
import jax.numpy as jnp

from jaxloop.lm.model import flash
from jaxloop.lm.model.config import Spec
from jaxloop.lm.target import Target


def causal(spec: Spec, rows: int, time: int, tables, mask=None, target: Target = Target()):
    """`attend` for `transformer.block` over [rows, time] tokens laid out row by row. `tables` are
    the rotary cos and sin or None.
    """
    from jaxloop.lm.model.transformer import rotate

    cudnn, splash = mask is None and target.cudnn, mask is None and target.splash

    def attend(q, k, v):
        if tables is not None:
            q, k = rotate(q, *tables), rotate(k, *tables)
        if (cudnn or splash) and q.dtype == jnp.bfloat16:
            qkv = (x.reshape(rows, time, -1, spec.head_size) for x in (q, k, v))
            out = (
                flash.causal(*qkv)
                if splash
                else jax.nn.dot_product_attention(*qkv, is_causal=True, implementation="cudnn")
            )
            return out.reshape(rows * time, -1)
        return _by_heads(spec, rows, time, q, k, v, _causal_keys(time, mask))

    return attend


def bidirectional(spec: Spec, rows: int, time: int, tables, mask_RT, bias_HTT=None):
    """`attend` in which every token sees every real one. `mask_RT` is True at real tokens;
    `bias_HTT` is added to the scores of all rows.
    """
    from jaxloop.lm.model.transformer import rotate

    def attend(q, k, v):
        if tables is not None:
            q, k = rotate(q, *tables), rotate(k, *tables)
        return _by_heads(spec, rows, time, q, k, v, mask_RT[:, None, None, :], bias_HTT)

    return attend


def _by_heads(spec, rows, time, q, k, v, seen, bias_HTT=None):
    """Heads before time: the batched products then read contiguous [T, K] panels."""
    q_heads = spec.heads // spec.kv_heads
    q = q.reshape(rows, time, spec.kv_heads, q_heads, spec.head_size).transpose(0, 2, 3, 1, 4)
    k = k.reshape(rows, time, spec.kv_heads, spec.head_size).transpose(0, 2, 1, 3)
    v = v.reshape(rows, time, spec.kv_heads, spec.head_size).transpose(0, 2, 1, 3)
    if q_heads == 1:
        out = _softmax_attention(q[:, :, 0], k, v, seen, bias_HTT)[:, :, None]
    else:
        k, v = (jnp.repeat(x, q_heads, axis=1) for x in (k, v))
        out = _softmax_attention(q.reshape(rows, spec.heads, time, -1), k, v, seen, bias_HTT)
    return (
        out.reshape(rows, spec.heads, time, spec.head_size)
        .transpose(0, 2, 1, 3)
        .reshape(rows * time, -1)
    )


def _causal_keys(time: int, mask_RT):
    """Which keys a query sees: none after itself, none that is padding."""
    seen = jnp.tril(jnp.ones((time, time), bool))[None, None]
    if mask_RT is None:
        return seen
    # A padded query sees itself, so that no row of the softmax is empty.
    return (seen & mask_RT[:, None, None, :]) | jnp.eye(time, dtype=bool)[None, None]


def _softmax_attention(q_RHTK, k_RHTK, v_RHTK, seen, bias_HTT=None):
    """Scores and softmax in float32; keys that are not seen are hidden."""
    scores = (
        jnp.einsum("rhtk,rhsk->rhts", q_RHTK, k_RHTK, preferred_element_type=jnp.float32)
        * q_RHTK.shape[-1] ** -0.5
    )
    if bias_HTT is not None:
        scores = scores + bias_HTT[None].astype(jnp.float32)
    weights = jax.nn.softmax(jnp.where(seen, scores, -1e9), -1).astype(v_RHTK.dtype)
    return jnp.einsum("rhts,rhsk->rhtk", weights, v_RHTK)
