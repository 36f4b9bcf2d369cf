"""Attention over whole sequences, causal or in both directions.

XLA computes it everywhere, cuDNN's or a TPU's kernel where the target has one.

Dimensions: R rows, T tokens of a row, N = R T, H query heads, G key/value heads, K head size.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxloop.lm.model import flash
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.rotary import rotate
from jaxloop.lm.target import Target

MASK_VALUE = -1e9  # score of a key that a query does not see

RopeTables = tuple[jax.Array, jax.Array]
# attend(q [N, H, K], k [N, G, K], v [N, G, K], drop=None) -> [N, H K]; `drop` is the dropout of
# the weights of attention [R, H, T, T]
Attend = Callable[..., jax.Array]


def causal(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    tables: RopeTables | None,
    mask_RT: jax.Array | None = None,
    target: Target = Target(),
) -> Attend:
    """Return the causal `attend` for `transformer.block`, over tokens laid out row by row.

    Args:
        config: the architecture.
        rows: R.
        seq_len: T.
        tables: cosines and sines, as from `rotary.rope_tables`; None: positions are not rotary.
        mask_RT: True at real tokens; None: all are real.
        target: device and kernels that the program is compiled for.
    """
    cudnn = mask_RT is None and target.cudnn
    splash = mask_RT is None and target.splash

    def attend(q, k, v, drop=None):
        if tables is not None:
            q, k = rotate(q, *tables), rotate(k, *tables)
        # The kernels drop nothing.
        if (cudnn or splash) and q.dtype == jnp.bfloat16 and drop is None:
            qkv = [x.reshape(rows, seq_len, -1, config.head_dim) for x in (q, k, v)]
            if splash:
                out = flash.causal(*qkv)
            else:
                out = jax.nn.dot_product_attention(*qkv, is_causal=True, implementation="cudnn")
            return out.reshape(rows * seq_len, -1)
        return _by_heads(config, rows, seq_len, q, k, v, _causal_keys(seq_len, mask_RT), drop=drop)

    return attend


def bidirectional(
    config: ModelConfig,
    rows: int,
    seq_len: int,
    tables: RopeTables | None,
    mask_RT: jax.Array,
    bias_HTT: jax.Array | None = None,
) -> Attend:
    """Return `attend` in which every token sees every real one.

    Args:
        config: the architecture.
        rows: R.
        seq_len: T.
        tables: cosines and sines, as from `rotary.rope_tables`; None: positions are not rotary.
        mask_RT: True at real tokens.
        bias_HTT: added to the scores of all rows.
    """

    def attend(q, k, v, drop=None):
        if tables is not None:
            q, k = rotate(q, *tables), rotate(k, *tables)
        seen = mask_RT[:, None, None, :]
        return _by_heads(config, rows, seq_len, q, k, v, seen, bias_HTT, drop)

    return attend


def _by_heads(config, rows, seq_len, q, k, v, seen, bias_HTT=None, drop=None):
    """Heads before time: the batched products then read contiguous [T, K] panels."""
    groups, size = config.num_kv_heads, config.head_dim
    per_group = config.num_heads // groups
    q = q.reshape(rows, seq_len, groups, per_group, size).transpose(0, 2, 3, 1, 4)
    k = k.reshape(rows, seq_len, groups, size).transpose(0, 2, 1, 3)
    v = v.reshape(rows, seq_len, groups, size).transpose(0, 2, 1, 3)
    if per_group == 1:
        out = _softmax_attention(q[:, :, 0], k, v, seen, bias_HTT, drop)[:, :, None]
    else:
        k, v = (jnp.repeat(x, per_group, axis=1) for x in (k, v))
        q = q.reshape(rows, config.num_heads, seq_len, -1)
        out = _softmax_attention(q, k, v, seen, bias_HTT, drop)
    out = out.reshape(rows, config.num_heads, seq_len, size).transpose(0, 2, 1, 3)
    return out.reshape(rows * seq_len, -1)


def _causal_keys(seq_len: int, mask_RT: jax.Array | None) -> jax.Array:
    """Which keys a query sees: none after itself, none that is padding."""
    seen = jnp.tril(jnp.ones((seq_len, seq_len), bool))[None, None]
    if mask_RT is None:
        return seen
    # A padded query sees itself, so that no row of the softmax is empty.
    return (seen & mask_RT[:, None, None, :]) | jnp.eye(seq_len, dtype=bool)[None, None]


def _softmax_attention(q_RHTK, k_RHTK, v_RHTK, seen, bias_HTT, drop):
    """Scores and softmax in float32."""
    scores_RHTT = jnp.einsum("rhtk,rhsk->rhts", q_RHTK, k_RHTK, preferred_element_type=jnp.float32)
    scores_RHTT = scores_RHTT * q_RHTK.shape[-1] ** -0.5
    if bias_HTT is not None:
        scores_RHTT = scores_RHTT + bias_HTT[None].astype(jnp.float32)
    weights_RHTT = jax.nn.softmax(jnp.where(seen, scores_RHTT, MASK_VALUE), -1)
    if drop is not None:
        weights_RHTT = drop(weights_RHTT)
    return jnp.einsum("rhts,rhsk->rhtk", weights_RHTT.astype(v_RHTK.dtype), v_RHTK)
