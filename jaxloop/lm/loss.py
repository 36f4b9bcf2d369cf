"""Next-token losses, without holding float32 logits of a whole batch where the vocabulary is large.

Dimensions: C chains, B rows a chain, T time, N tokens, D model, V vocabulary.
"""

import jax
import jax.numpy as jnp

from jaxloop.kernels.likelihood import weighted_mean_loss
from jaxloop.lm import transformer
from jaxloop.lm.spec import Spec

CHUNK = 1 << 26  # logits held at once, as a count of floats


def token_nll(spec: Spec, params: dict, x_ND, targets_N):
    """-log p(target) [N] in float32 from final hidden states. Logits are made, and made again in the gradient, a chunk of tokens at a time."""
    n = x_ND.shape[0]
    x_ND = transformer.finish(spec, params, x_ND)

    def nll(x, target):
        logits = transformer.project(spec, params, x)
        return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, target[:, None], 1)[:, 0]

    chunks = -(-n * spec.vocab // CHUNK)
    if chunks == 1:
        return nll(x_ND, targets_N)
    size = -(-n // chunks)
    pad = chunks * size - n
    x = jnp.pad(x_ND, ((0, pad), (0, 0))).reshape(chunks, size, -1)
    t = jnp.pad(targets_N, (0, pad)).reshape(chunks, size)
    return jax.lax.map(lambda xt: jax.checkpoint(nll)(*xt), (x, t)).reshape(-1)[:n]


def row_nll(spec: Spec, params: dict, tokens_RT, *, fused=None, dropout=None, remat: bool = False):
    """-log p of each token given those before it, [R, T - 1]: entry t belongs to token t + 1."""
    rows, time = tokens_RT.shape
    x = transformer.hidden(spec, params, tokens_RT, fused=fused, dropout=dropout, remat=remat)[:, :-1]
    return token_nll(spec, params, x.reshape(rows * (time - 1), -1), tokens_RT[:, 1:].reshape(-1)).reshape(rows, time - 1)


def chain_losses(spec: Spec, params: dict, tokens_CBT, mask_CBT, weights_CB, *, fused=None, dropout=None, remat: bool = False):
    """Mean loss [C] of each chain over its tokens with `mask` True (a token is learned where its own mask is), weighted by sample."""
    chains, rows, time = tokens_CBT.shape
    nll = row_nll(spec, params, tokens_CBT.reshape(-1, time), fused=fused, dropout=dropout, remat=remat).reshape(chains, rows, time - 1)
    weights = jnp.broadcast_to(weights_CB[:, :, None], nll.shape)
    return weighted_mean_loss(nll, weights, mask_CBT[:, :, 1:], axis=(1, 2))
