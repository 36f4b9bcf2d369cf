"""Gaussian mixtures fitted by EM (peers: two components, squared L2 distance to the real mixture in
closed form).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.simulators.family import Family, choose
from jaxloop.simulators.small_linalg import cholesky, spd_inverse


class Mixture(NamedTuple):
    """weights [k], means [k, d], covs [k, d, d]."""

    weights: jax.Array
    means: jax.Array
    covs: jax.Array


def gmm_family(
    means, *, weights=None, sds=1.0, iterations: int = 50, ridge: float = 1e-6
) -> Family:
    """Real source: a mixture of N(means_j, sds_j^2 I), means [k, d], weights [k] (default: equal),
    sds a number or [k].

    A fit is `iterations` EM steps with full covariances plus `ridge` I, from the last fit where the
    workflow's `start` is "previous", else from the real mixture's parameters (so that labels do not
    switch; the paper's question is what sampling does to a good fit). Metrics: weights [k], means
    [k, d], l2 (squared L2 distance to the real density) and trace (of the mixture's covariance).
    Raises ValueError for shapes that disagree, weights that are negative or all zero, or iterations
    below 1.
    """
    means = np.atleast_2d(np.asarray(means, float))
    k, d = means.shape
    share = np.full(k, 1 / k) if weights is None else np.asarray(weights, float)
    sds = (
        np.broadcast_to(np.asarray(sds, float), (k,))
        if np.ndim(sds) < 2 and np.size(sds) in (1, k)
        else np.asarray(sds)
    )
    if share.shape != (k,) or sds.shape != (k,):
        raise ValueError(
            f"weights, sds: shapes are {share.shape} and {sds.shape}, must be ({k},), one per "
            "row of means"
        )
    if not (share >= 0).all() or not share.sum() > 0 or not (sds > 0).all():
        raise ValueError(
            f"weights={share.tolist()}, sds={sds.tolist()}: weights must be non-negative with a "
            "positive sum, sds positive"
        )
    if iterations < 1:
        raise ValueError(f"iterations={iterations}: must be at least 1")

    def real():
        dtype = jnp.result_type(float)
        covs = np.eye(d)[None] * (sds**2)[:, None, None]
        return Mixture(*(jnp.asarray(x, dtype) for x in (share / share.sum(), means, covs)))

    def sample(key, params, n):
        which, noise = jax.random.split(key)
        z = jax.random.normal(noise, (n, d))
        j = choose(which, params.weights, n)
        return params.means[j] + jnp.einsum("nxy,ny->nx", jax.vmap(cholesky)(params.covs)[j], z)

    def fit(key, items, weights, start):
        step = lambda _, params: em_step(params, items, weights, ridge)
        return jax.lax.fori_loop(0, iterations, step, start)

    def measure(params, items):
        centre = params.weights @ params.means
        away = params.means - centre[None]
        spread = params.weights @ (jnp.trace(params.covs, axis1=1, axis2=2) + (away * away).sum(1))
        return {
            "weights": params.weights,
            "means": params.means,
            "l2": l2_distance(params, real()),
            "trace": spread,
        }

    return Family(
        lambda key, n: sample(key, real(), n),
        fit,
        sample,
        measure,
        base=lambda key: real(),
        continues=True,
        least=2,
    )


def em_step(params: Mixture, items, weights, ridge) -> Mixture:
    """One EM step on items [n, d] of weights [n]."""
    log_p = jax.vmap(lambda m, c: log_normal(items, m, c), out_axes=1)(params.means, params.covs)
    log_p = (
        log_p
        + jnp.log(jnp.maximum(params.weights, 1e-300 if items.dtype == jnp.float64 else 1e-30))[
            None, :
        ]
    )
    r = jax.nn.softmax(log_p, axis=1) * weights[:, None]
    mass = r.sum(0)
    safe = jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)
    means = (r.T @ items) / safe[:, None]

    def scatter(r_j, mean, total):
        away = items - mean[None]
        return (r_j[:, None] * away).T @ away / total + ridge * jnp.eye(
            items.shape[1], dtype=items.dtype
        )

    return Mixture(mass / mass.sum(), means, jax.vmap(scatter)(r.T, means, safe))


def log_normal(x, mean, cov):
    """log N(x; mean, cov) [n] of x [n, d]."""
    d = x.shape[1]
    scale = jnp.trace(cov) / d
    inverse = spd_inverse(cov / scale) / scale
    away = x - mean[None]
    log_det = 2 * jnp.log(jnp.diagonal(cholesky(cov))).sum()
    return -((away @ inverse) * away).sum(1) / 2 - log_det / 2 - d / 2 * jnp.log(2 * jnp.pi)


def l2_distance(p: Mixture, q: Mixture):
    """Integral of (p - q)^2: a sum of Gaussian overlaps N(m_i; m_j, S_i + S_j)."""

    def overlap(p, q):
        pair = lambda m, c: jax.vmap(lambda n, e: log_normal(m[None], n, c + e)[0])(q.means, q.covs)
        return p.weights @ jnp.exp(jax.vmap(pair)(p.means, p.covs)) @ q.weights

    return overlap(p, p) - 2 * overlap(p, q) + overlap(q, q)
