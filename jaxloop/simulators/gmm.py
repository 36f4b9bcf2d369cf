"""Gaussian mixtures fitted by EM (peers: two components, squared L2 distance to the real mixture in
closed form).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_not_negative, check_whole
from jaxloop.simulators.family import ArrayFamily, choose
from jaxloop.simulators.small_linalg import cholesky, spd_inverse


class Mixture(NamedTuple):
    """weights [k], means [k, d], covs [k, d, d]."""

    weights: jax.Array
    means: jax.Array
    covs: jax.Array


def gmm_family(
    means: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    sds: ArrayLike = 1.0,
    iterations: int = 50,
    ridge: float = 1e-6,
) -> ArrayFamily:
    """Real source: a mixture of N(means_j, sds_j^2 I), means [k, d], weights [k] (default: equal),
    sds a number or [k].

    A fit is `iterations` EM steps with full covariances plus `ridge` I, from the last fit where the
    workflow's `start` is "previous", else from the real mixture's parameters (so that labels do not
    switch; the paper's question is what sampling does to a good fit). Metrics: weights [k], means
    [k, d], l2 (squared L2 distance to the real density) and trace (of the mixture's covariance).
    Raises ValueError for shapes that disagree, weights that are negative or all zero, iterations
    below 1, or a negative ridge.
    """
    centres = np.atleast_2d(np.asarray(means, float))
    if centres.ndim != 2 or not centres.size or not np.isfinite(centres).all():
        raise ValueError(
            f"means: shape is {centres.shape}, must be [k, d], a row of finite numbers per "
            "component"
        )
    k, d = centres.shape
    share = np.full(k, 1 / k) if weights is None else np.asarray(weights, float)
    sd = np.asarray(sds, float)
    if sd.ndim < 2 and sd.size in (1, k):
        sd = np.broadcast_to(sd, (k,))
    _check_source(share, sd, k)
    check_whole("iterations", iterations)
    check_not_negative("ridge", ridge)

    def real() -> Mixture:
        dtype = jnp.result_type(float)
        return Mixture(
            weights=jnp.asarray(share / share.sum(), dtype),
            means=jnp.asarray(centres, dtype),
            covs=jnp.asarray(np.eye(d)[None] * (sd**2)[:, None, None], dtype),
        )

    def draw(key: jax.Array, n: int) -> jax.Array:
        return sample(key, real(), n)

    def sample(key: jax.Array, params: Mixture, n: int) -> jax.Array:
        which, noise = jax.random.split(key)
        z = jax.random.normal(noise, (n, d))
        j = choose(which, params.weights, n)
        return params.means[j] + jnp.einsum("nxy,ny->nx", jax.vmap(cholesky)(params.covs)[j], z)

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array, start: Mixture) -> Mixture:
        def step(_: jax.Array, params: Mixture) -> Mixture:
            return em_step(params, items, weights, ridge)

        return jax.lax.fori_loop(0, iterations, step, start)

    def measure(params: Mixture, items: jax.Array) -> dict[str, jax.Array]:
        centre = params.weights @ params.means
        away = params.means - centre[None]
        spread = params.weights @ (jnp.trace(params.covs, axis1=1, axis2=2) + (away * away).sum(1))
        return {
            "weights": params.weights,
            "means": params.means,
            "l2": l2_distance(params, real()),
            "trace": spread,
        }

    return ArrayFamily(
        draw,
        fit,
        sample,
        measure,
        base=lambda key: real(),
        continues=True,
        least=2,
    )


def _check_source(share: np.ndarray, sd: np.ndarray, k: int) -> None:
    if share.shape != (k,) or sd.shape != (k,):
        raise ValueError(
            f"weights, sds: shapes are {share.shape} and {sd.shape}, must be ({k},), one per "
            "row of means"
        )
    if not (share >= 0).all() or not 0 < share.sum() < np.inf or not _positive(sd):
        raise ValueError(
            f"weights={share.tolist()}, sds={sd.tolist()}: weights must be non-negative with a "
            "positive sum, sds positive"
        )


def _positive(sd: np.ndarray) -> bool:
    return bool(((sd > 0) & np.isfinite(sd)).all())


def em_step(params: Mixture, items: jax.Array, weights: jax.Array, ridge: float) -> Mixture:
    """Return one EM step on items [n, d] of weights [n]."""
    log_p = jax.vmap(lambda m, c: log_normal(items, m, c), out_axes=1)(params.means, params.covs)
    smallest = 1e-300 if items.dtype == jnp.float64 else 1e-30
    log_p = log_p + jnp.log(jnp.maximum(params.weights, smallest))[None, :]
    r = jax.nn.softmax(log_p, axis=1) * weights[:, None]
    mass = r.sum(0)
    safe = jnp.maximum(mass, jnp.finfo(mass.dtype).tiny)
    means = (r.T @ items) / safe[:, None]

    def scatter(r_j: jax.Array, mean: jax.Array, total: jax.Array) -> jax.Array:
        away = items - mean[None]
        eye = jnp.eye(items.shape[1], dtype=items.dtype)
        return (r_j[:, None] * away).T @ away / total + ridge * eye

    return Mixture(mass / mass.sum(), means, jax.vmap(scatter)(r.T, means, safe))


def log_normal(x: jax.Array, mean: jax.Array, cov: jax.Array) -> jax.Array:
    """log N(x; mean, cov) [n] of x [n, d]."""
    d = x.shape[1]
    scale = jnp.trace(cov) / d
    inverse = spd_inverse(cov / scale) / scale
    away = x - mean[None]
    log_det = 2 * jnp.log(jnp.diagonal(cholesky(cov))).sum()
    return -((away @ inverse) * away).sum(1) / 2 - log_det / 2 - d / 2 * jnp.log(2 * jnp.pi)


def l2_distance(p: Mixture, q: Mixture) -> jax.Array:
    """Integral of (p - q)^2: a sum of Gaussian overlaps N(m_i; m_j, S_i + S_j)."""

    def log_overlap(
        mean: jax.Array, cov: jax.Array, other_mean: jax.Array, other_cov: jax.Array
    ) -> jax.Array:
        return log_normal(mean[None], other_mean, cov + other_cov)[0]

    over_second = jax.vmap(log_overlap, in_axes=(None, None, 0, 0))
    over_both = jax.vmap(over_second, in_axes=(0, 0, None, None))

    def overlap(p: Mixture, q: Mixture) -> jax.Array:
        return p.weights @ jnp.exp(over_both(p.means, p.covs, q.means, q.covs)) @ q.weights

    return overlap(p, p) - 2 * overlap(p, q) + overlap(q, q)
