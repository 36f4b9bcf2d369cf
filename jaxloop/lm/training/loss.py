"""Next-token losses, without holding float32 logits of a whole batch where the vocabulary is large.

Dimensions: C chains, B rows a chain, T time, N tokens, D model, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxloop.core.likelihood import weighted_mean_loss
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import Spec
from jaxloop.lm.target import Target

CHUNK = 1 << 26  # logits held at once, as a count of floats
LEAN_CHUNK = 1 << 29  # the same of bfloat16 on an accelerator: 1 GB


def token_nll(spec: Spec, params: dict, x_ND, targets_N):
    """-log p(target) [N] in float32 from final hidden states, a chunk of tokens at a time. Where
    the head is frozen its part of the gradient is made with the loss, from the same logits; where
    it is trained and there are several chunks, logits are made again in the gradient.
    """
    n = x_ND.shape[0]
    x_ND, head_VD = transformer.finish(spec, params, x_ND), transformer.head(spec, params)
    chunks = -(-n * spec.vocab // CHUNK)
    if chunks == 1:
        return _nll(False, x_ND, head_VD, targets_N)
    size = -(-n // chunks)
    pad = chunks * size - n
    x = jnp.pad(x_ND, ((0, pad), (0, 0))).reshape(chunks, size, -1)
    t = jnp.pad(targets_N, (0, pad)).reshape(chunks, size)
    return jax.lax.map(lambda xt: _nll(True, xt[0], head_VD, xt[1]), (x, t)).reshape(-1)[:n]


def _plain_nll(x_ND, head_VD, targets_N):
    logits = transformer.logits(x_ND, head_VD)
    return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, targets_N[:, None], 1)[:, 0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _nll(again, x_ND, head_VD, targets_N):
    """`again`: logits are made again in the gradient of a head that is trained, instead of being
    kept.
    """
    return _plain_nll(x_ND, head_VD, targets_N)


@functools.partial(_nll.defjvp, symbolic_zeros=True)
def _nll_jvp(again, at, moved):
    x_ND, head_VD, targets_N = at
    dx_ND, dhead_VD, _ = moved
    if not isinstance(dhead_VD, SymbolicZero):
        dx_ND = jnp.zeros_like(x_ND) if isinstance(dx_ND, SymbolicZero) else dx_ND
        plain = functools.partial(_plain_nll, targets_N=targets_N)
        return jax.jvp(
            jax.checkpoint(plain) if again else plain, (x_ND, head_VD), (dx_ND, dhead_VD)
        )
    logits = transformer.logits(x_ND, head_VD)
    most_N1 = logits.max(-1, keepdims=True)
    share_NV = jnp.exp(logits - most_N1)
    sum_N1 = share_NV.sum(-1, keepdims=True)
    nll_N = (most_N1 + jnp.log(sum_N1) - jnp.take_along_axis(logits, targets_N[:, None], 1))[:, 0]
    hit_NV = jnp.arange(head_VD.shape[0], dtype=targets_N.dtype)[None] == targets_N[:, None]
    dlogits_NV = (share_NV / sum_N1 - hit_NV.astype(jnp.float32)).astype(head_VD.dtype)
    gradient_ND = jnp.einsum("nv,vd->nd", dlogits_NV, head_VD, preferred_element_type=jnp.float32)
    return nll_N, (gradient_ND * dx_ND.astype(jnp.float32)).sum(-1)


def lean_nll(spec: Spec, params: dict, x_ND, targets_N):
    """-log p(target) [N] in float32 from final hidden states in bfloat16, for training with a
    frozen head on an accelerator: logits are rounded to bfloat16 and read twice, once for their
    largest and their sum, which are taken in float32, once for the gradient of the states.
    """
    return _lean_nll(
        transformer.finish(spec, params, x_ND), transformer.head(spec, params), targets_N
    )


@jax.custom_vjp
def _lean_nll(x_ND, head_VD, targets_N):
    return _by_chunk(_chunk_nll, x_ND, head_VD, targets_N)


def _lean_forward(x_ND, head_VD, targets_N):
    return _by_chunk(_chunk_nll_and_gradient, x_ND, head_VD, targets_N)


def _lean_backward(gradient_ND, weight_N):
    return (
        (gradient_ND.astype(jnp.float32) * weight_N[:, None]).astype(gradient_ND.dtype),
        None,
        None,
    )


_lean_nll.defvjp(_lean_forward, _lean_backward)


def _by_chunk(function, x_ND, head_VD, targets_N):
    """function(x, head, targets) of chunks of tokens whose logits are `LEAN_CHUNK` numbers or
    fewer, in turn.
    """
    n = x_ND.shape[0]
    chunks = -(-n * head_VD.shape[0] // LEAN_CHUNK)
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
    """log sum exp [N, 1] in float32, in one pass: (largest so far, sum of exp(x - largest)) of two
    runs give that of both.
    """

    def both(a, b):
        most = jnp.maximum(a[0], b[0])
        return most, a[1] * jnp.exp(a[0] - most) + b[1] * jnp.exp(b[0] - most)

    x_NV = x_NV.astype(jnp.float32)
    least = np.float32(np.finfo(np.float32).min)
    most_N, sum_N = jax.lax.reduce((x_NV, jnp.ones_like(x_NV)), (least, np.float32(0)), both, (1,))
    return (most_N + jnp.log(sum_N))[:, None]


def row_nll(
    spec: Spec,
    params: dict,
    tokens_RT,
    *,
    fused=None,
    dropout=None,
    remat: bool = False,
    narrow: bool = False,
    target: Target = Target(),
):
    """-log p of each token given those before it, [R, T - 1]: entry t belongs to token t + 1.
    `narrow`: by `lean_nll`.
    """
    rows, time = tokens_RT.shape
    x = transformer.hidden(
        spec, params, tokens_RT, fused=fused, dropout=dropout, remat=remat, target=target
    )
    if narrow:
        # The last token of a row has none to predict; leaving it out would copy all others.
        following = jnp.roll(tokens_RT, -1, 1).reshape(-1)
        return lean_nll(spec, params, x.reshape(rows * time, -1), following).reshape(rows, time)[
            :, :-1
        ]
    return token_nll(
        spec, params, x[:, :-1].reshape(rows * (time - 1), -1), tokens_RT[:, 1:].reshape(-1)
    ).reshape(rows, time - 1)


def chain_losses(
    spec: Spec, params: dict, tokens_CBT, mask_CBT, weights_CB, *, fused=None, dropout=None, remat: bool = False, narrow: bool = False,
    target: Target = Target(),
):  # fmt: skip
    """Mean loss [C] of each chain over its tokens with `mask` True (a token is learned where its
    own mask is), weighted by sample.
    """
    chains, rows, time = tokens_CBT.shape
    how = dict(fused=fused, dropout=dropout, remat=remat, narrow=narrow, target=target)
    nll = row_nll(spec, params, tokens_CBT.reshape(-1, time), **how).reshape(chains, rows, time - 1)
    weights = jnp.broadcast_to(weights_CB[:, :, None], nll.shape)
    return weighted_mean_loss(nll, weights, mask_CBT[:, :, 1:], axis=(1, 2))
