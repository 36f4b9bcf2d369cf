"""Gaussian chains: d dimensions, full covariance, maximum likelihood or unbiased variance."""

import jax
import jax.numpy as jnp

from jaxloop.core.checks import check_positive, check_whole
from jaxloop.simulators.family import ArrayFamily, Scalar
from jaxloop.simulators.small_linalg import cholesky

Params = tuple[jax.Array, jax.Array]


def gaussian_family(
    dim: int = 1, *, mean: Scalar = 0.0, sd: Scalar = 1.0, unbiased: bool = True
) -> ArrayFamily:
    """Return a normal distribution N(mean, sd^2 I) in `dim` dimensions; mean and sd may be traced.

    Params are (mean [d], covariance [d, d]). Metrics: mean [d], var [d] (diagonal of the
    covariance), trace (/ (d sd^2)), log_det (of the covariance / sd^2; -inf where singular) and, in
    one dimension, w2 (squared 2-Wasserstein distance to the real distribution).

    Args:
        dim: at least 1.
        mean, sd: of the real distribution.
        unbiased: estimate the covariance with n - 1, else by maximum likelihood, with n.

    Raises:
        ValueError: `dim` is below 1, or `sd` is not positive.
    """
    check_whole("dim", dim)
    check_positive("sd", sd)

    def draw(key: jax.Array, n: int) -> jax.Array:
        return mean + sd * jax.random.normal(key, (n, dim))

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> Params:
        total = weights.sum()
        centre = weights @ items / total
        away = items - centre[None]
        # With weights the number of observations is (sum w)^2 / sum w^2.
        divisor = total - (weights @ weights) / total if unbiased else total
        return centre, (weights[:, None] * away).T @ away / divisor

    def sample(key: jax.Array, params: Params, n: int) -> jax.Array:
        centre, cov = params
        return centre[None] + jax.random.normal(key, (n, dim)) @ cholesky(cov).T

    def measure(params: Params, items: jax.Array) -> dict[str, jax.Array]:
        centre, cov = params
        var = jnp.diagonal(cov)
        out = {
            "mean": centre,
            "var": var,
            "trace": var.sum() / (dim * sd**2),
            "log_det": 2 * jnp.log(jnp.diagonal(cholesky(cov)) / sd).sum(),
        }
        if dim == 1:
            out["w2"] = (centre[0] - mean) ** 2 + (jnp.sqrt(jnp.maximum(var[0], 0)) - sd) ** 2
        return out

    return ArrayFamily(draw, fit, sample, measure, least=2 if unbiased else 1)
