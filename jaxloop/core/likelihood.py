"""The weighted log-likelihood that simulators and the losses of language models share."""

import jax
import jax.numpy as jnp


def weighted_mean_loss(
    nll: jax.Array,
    weights: jax.Array | None = None,
    mask: jax.Array | None = None,
    axis: int | tuple[int, ...] | None = None,
) -> jax.Array:
    """Return `sum(w m nll) / sum(w m)` over `axis`, and 0 where the weights sum to 0.

    The weighted maximum-likelihood estimate minimises it; unit weights give the mean log-loss. Sums
    are taken in nll's precision, at least float32.

    Args:
        nll: negative log-likelihoods, of any shape.
        weights: w, of the same shape; None: 1 everywhere.
        mask: m, of the same shape; None: 1 everywhere.
        axis: axis or axes to sum over; None: all.

    Source:
        bias_amplification, eq. 2.
    """
    nll = nll.astype(jnp.promote_types(nll.dtype, jnp.float32))
    w = jnp.ones_like(nll) if weights is None else weights.astype(nll.dtype)
    if mask is not None:
        w = w * mask.astype(nll.dtype)
    total = w.sum(axis)
    return (w * nll).sum(axis) / jnp.where(total == 0, jnp.ones_like(total), total)
