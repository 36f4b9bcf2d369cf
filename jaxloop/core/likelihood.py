"""The weighted likelihood: WMLE in the simulators, the weighted loss of language models."""

import jax.numpy as jnp


def weighted_mean_loss(nll, weights=None, mask=None, axis=None):
    """`sum(w m nll) / sum(w m)` over `axis` (default: all), 0 where the weights sum to zero.

    nll, weights and mask broadcast by shape beforehand (equal shapes); sums are taken in nll's own
    precision, at least float32. Weighted maximum likelihood (bias_amplification, eq. 2) is its
    minimiser; unit weights give the mean log-loss.
    """
    nll = nll.astype(jnp.promote_types(nll.dtype, jnp.float32))
    w = jnp.ones_like(nll) if weights is None else weights.astype(nll.dtype)
    if mask is not None:
        w = w * mask.astype(nll.dtype)
    total = w.sum(axis)
    return (w * nll).sum(axis) / jnp.where(total == 0, jnp.ones_like(total), total)
