"""Next-token losses, without holding float32 logits of a whole batch where the vocabulary is large.

Dimensions: C chains, B rows of a chain, R rows, T tokens of a row, N tokens, D model, V vocabulary.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxloop.core.likelihood import weighted_mean_loss
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.dropout import Dropout
from jaxloop.lm.target import Target

CHUNK = 1 << 26  # most logits that are held at once: 256 MB in float32
BFLOAT16_CHUNK = 1 << 29  # the same for `bfloat16_nll`: 1 GB in bfloat16
CACHED_CHUNK = 1 << 20  # logits that stay in the cache of a CPU


def token_nll(
    config: ModelConfig,
    params: dict[str, Any],
    x_ND: jax.Array,
    targets_N: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """-log p(target) [N] in float32 from final hidden states, a chunk of tokens at a time: at most
    `chunk` logits, None: `CHUNK`.

    With a frozen head the gradient of the hidden states is computed in the forward pass, from the
    same logits. With a trained one and several chunks, the logits are computed again in the
    backward pass.
    """
    n = x_ND.shape[0]
    x_ND = transformer.final_norm(config, params, x_ND)
    head_VD = transformer.lm_head(config, params)
    chunks = -(-n * config.vocab_size // (chunk or CHUNK))
    if chunks == 1:
        return _nll(False, x_ND, head_VD, targets_N)
    size = -(-n // chunks)
    pad = chunks * size - n
    x = jnp.pad(x_ND, ((0, pad), (0, 0))).reshape(chunks, size, -1)
    t = jnp.pad(targets_N, (0, pad)).reshape(chunks, size)
    nll = jax.lax.map(lambda chunk: _nll(True, chunk[0], head_VD, chunk[1]), (x, t))
    return nll.reshape(-1)[:n]


def _plain_nll(x_ND, head_VD, targets_N):
    logits = transformer.logits_of_head(x_ND, head_VD)
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets_N[:, None], 1)[:, 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _nll(recompute, x_ND, head_VD, targets_N):
    """-log p(target) [N], whose derivative is computed from the same logits if the head is frozen.

    With `recompute` a trained head's logits are computed again in the backward pass, not kept.
    """
    return _plain_nll(x_ND, head_VD, targets_N)


@functools.partial(_nll.defjvp, symbolic_zeros=True)
def _nll_jvp(recompute, primals, tangents):
    x_ND, head_VD, targets_N = primals
    dx_ND, dhead_VD, _ = tangents
    if not isinstance(dhead_VD, SymbolicZero):
        if isinstance(dx_ND, SymbolicZero):
            dx_ND = jnp.zeros_like(x_ND)
        plain = functools.partial(_plain_nll, targets_N=targets_N)
        return jax.jvp(
            jax.checkpoint(plain) if recompute else plain, (x_ND, head_VD), (dx_ND, dhead_VD)
        )
    logits = transformer.logits_of_head(x_ND, head_VD)
    most_N1 = logits.max(-1, keepdims=True)
    share_NV = jnp.exp(logits - most_N1)
    sum_N1 = share_NV.sum(-1, keepdims=True)
    nll_N = (most_N1 + jnp.log(sum_N1) - jnp.take_along_axis(logits, targets_N[:, None], 1))[:, 0]
    hit_NV = jnp.arange(head_VD.shape[0], dtype=targets_N.dtype)[None] == targets_N[:, None]
    dlogits_NV = (share_NV / sum_N1 - hit_NV.astype(jnp.float32)).astype(head_VD.dtype)
    gradient_ND = jnp.einsum("nv,vd->nd", dlogits_NV, head_VD, preferred_element_type=jnp.float32)
    return nll_N, (gradient_ND * dx_ND.astype(jnp.float32)).sum(-1)


def bfloat16_nll(
    config: ModelConfig, params: dict[str, Any], x_ND: jax.Array, targets_N: jax.Array
) -> jax.Array:
    """-log p(target) [N] in float32, for training with a frozen head on an accelerator.

    The final hidden states are in bfloat16.

    Logits are rounded to bfloat16 and read twice: once for their largest and their sum, which are
    taken in float32, once for the gradient of the hidden states.
    """
    x_ND = transformer.final_norm(config, params, x_ND)
    return _bfloat16_nll(x_ND, transformer.lm_head(config, params), targets_N)


@jax.custom_vjp
def _bfloat16_nll(x_ND, head_VD, targets_N):
    return _by_chunk(_chunk_nll, x_ND, head_VD, targets_N)


def _bfloat16_forward(x_ND, head_VD, targets_N):
    return _by_chunk(_chunk_nll_and_gradient, x_ND, head_VD, targets_N)


def _bfloat16_backward(gradient_ND, weight_N):
    return (
        (gradient_ND.astype(jnp.float32) * weight_N[:, None]).astype(gradient_ND.dtype),
        None,
        None,
    )


_bfloat16_nll.defvjp(_bfloat16_forward, _bfloat16_backward)


def _by_chunk(function, x_ND, head_VD, targets_N):
    """Apply function(x, head, targets) to chunks of tokens in turn.

    The logits of a chunk are `BFLOAT16_CHUNK` numbers or fewer.
    """
    n = x_ND.shape[0]
    chunks = -(-n * head_VD.shape[0] // BFLOAT16_CHUNK)
    size = -(-n // chunks)
    x = jnp.pad(x_ND, ((0, chunks * size - n), (0, 0))).reshape(chunks, size, -1)
    t = jnp.pad(targets_N, (0, chunks * size - n)).reshape(chunks, size)
    made = jax.lax.map(lambda xt: function(xt[0], head_VD, xt[1]), (x, t))
    return jax.tree.map(lambda y: y.reshape(chunks * size, *y.shape[2:])[:n], made)


def _chunk_nll(x_ND, head_VD, targets_N):
    logits = x_ND @ head_VD.T
    return _of_target(logits, _log_sum_exp(logits), targets_N)


def _of_target(logits, total_N1, targets_N):
    return (total_N1 - jnp.take_along_axis(logits, targets_N[:, None], 1).astype(jnp.float32))[:, 0]


def _chunk_nll_and_gradient(x_ND, head_VD, targets_N):
    logits = x_ND @ head_VD.T
    total_N1 = _log_sum_exp(logits)
    hit_NV = jnp.arange(head_VD.shape[0], dtype=targets_N.dtype)[None] == targets_N[:, None]
    dlogits_NV = jnp.exp(logits.astype(jnp.float32) - total_N1) - hit_NV.astype(jnp.float32)
    return _of_target(logits, total_N1, targets_N), dlogits_NV.astype(x_ND.dtype) @ head_VD


def _log_sum_exp(x_NV):
    """log sum exp [N, 1] in float32, in one pass over x.

    (largest, sum of exp(x - largest)) of two runs of numbers give that of both together.
    """

    def both(a, b):
        most = jnp.maximum(a[0], b[0])
        return most, a[1] * jnp.exp(a[0] - most) + b[1] * jnp.exp(b[0] - most)

    x_NV = x_NV.astype(jnp.float32)
    least = np.float32(np.finfo(np.float32).min)
    most_N, sum_N = jax.lax.reduce((x_NV, jnp.ones_like(x_NV)), (least, np.float32(0)), both, (1,))
    return (most_N + jnp.log(sum_N))[:, None]


def row_nll(
    config: ModelConfig,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    *,
    packed: dict[str, Any] | None = None,
    dropout: Dropout | None = None,
    remat: bool = False,
    bfloat16_logits: bool = False,
    target: Target = Target(),
) -> jax.Array:
    """Return -log p of each token given those before it, [R, T - 1]: entry t is for token t + 1.

    Args:
        config: config of the model.
        params: its weights.
        tokens_RT: rows of token ids.
        packed: adapters of C chains, or None; the rows are C equal runs, one per chain.
        dropout: of this step; None: nothing is dropped.
        remat: compute activations again in the backward pass instead of keeping them.
        bfloat16_logits: use `bfloat16_nll` instead of `token_nll`.
        target: device and kernels that the program is compiled for.
    """
    rows, seq_len = tokens_RT.shape
    x_RTD = transformer.hidden(
        config, params, tokens_RT, packed=packed, dropout=dropout, remat=remat, target=target
    )
    if bfloat16_logits:
        # The last token of a row has none to predict; leaving it out would copy all others.
        following_N = jnp.roll(tokens_RT, -1, 1).reshape(-1)
        nll_N = bfloat16_nll(config, params, x_RTD.reshape(rows * seq_len, -1), following_N)
        return nll_N.reshape(rows, seq_len)[:, :-1]
    x_ND = x_RTD[:, :-1].reshape(rows * (seq_len - 1), -1)
    nll_N = token_nll(config, params, x_ND, tokens_RT[:, 1:].reshape(-1))
    return nll_N.reshape(rows, seq_len - 1)


def forward_nll(
    config: ModelConfig,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    *,
    packed: dict[str, Any] | None = None,
    target: Target = Target(),
) -> jax.Array:
    """`row_nll` where nothing is kept for a backward pass.

    On a CPU the last token of a row, which predicts none, is not read, and logits are taken in
    chunks that stay in its cache; of a large vocabulary at least 256 tokens at a time, which share
    one reading of the head. Layers are rolled: as fast, and compiled in half the time.
    """
    if target.platform != "cpu":
        return row_nll(config, params, tokens_RT, packed=packed, target=target)
    read_RT, following_RT = tokens_RT[:, :-1], tokens_RT[:, 1:]
    x_RTD = transformer.hidden(config, params, read_RT, packed=packed, rolled=True, target=target)
    chunk = min(CHUNK, max(CACHED_CHUNK, 256 * config.vocab_size))
    x_ND = x_RTD.reshape(read_RT.size, -1)
    nll_N = token_nll(config, params, x_ND, following_RT.reshape(-1), chunk)
    return nll_N.reshape(read_RT.shape)


def chain_losses(
    config: ModelConfig,
    params: dict[str, Any],
    tokens_CBT: jax.Array,
    mask_CBT: jax.Array,
    weights_CB: jax.Array,
    *,
    packed: dict[str, Any] | None = None,
    dropout: Dropout | None = None,
    remat: bool = False,
    bfloat16_logits: bool = False,
    target: Target = Target(),
) -> jax.Array:
    """Return the mean loss [C] of each chain over its tokens whose mask is True, weighted by row.

    Args:
        config, params: as in `row_nll`.
        tokens_CBT: token ids.
        mask_CBT: tokens that count; the first of a row never does.
        weights_CB: weights of the rows.
        packed, dropout, remat, bfloat16_logits, target: as in `row_nll`.
    """
    chains, rows, seq_len = tokens_CBT.shape
    nll_NT = row_nll(
        config,
        params,
        tokens_CBT.reshape(-1, seq_len),
        packed=packed,
        dropout=dropout,
        remat=remat,
        bfloat16_logits=bfloat16_logits,
        target=target,
    )
    nll_CBT = nll_NT.reshape(chains, rows, seq_len - 1)
    weights_CBT = jnp.broadcast_to(weights_CB[:, :, None], nll_CBT.shape)
    return weighted_mean_loss(nll_CBT, weights_CBT, mask_CBT[:, :, 1:], axis=(1, 2))
