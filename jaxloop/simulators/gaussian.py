"""Gaussian chains: d dimensions, full covariance, maximum likelihood or unbiased variance
(multi_entity.md, section 4, items 3 and 4).
"""

import jax
import jax.numpy as jnp

from jaxloop.simulators.family import Family
from jaxloop.simulators.small_linalg import cholesky


def gaussian_family(dim: int = 1, *, mean=0.0, sd=1.0, unbiased: bool = True) -> Family:
    """N(mean, sd^2 I) in `dim` dimensions; mean and sd may be traced. unbiased: divide by n - 1,
    else maximum likelihood (by n).

    Metrics: mean [d], var [d] (diagonal of the covariance), trace (/ (d sd^2)), log_det (of the
    covariance / sd^2; -inf where singular) and, in one dimension, w2 (squared 2-Wasserstein
    distance to the real distribution). Raises ValueError for dim below 1.
    """
    if dim < 1:
        raise ValueError(f"dim={dim}: must be at least 1")

    def draw(key, n):
        return mean + sd * jax.random.normal(key, (n, dim))

    def fit(key, items, weights):
        total = weights.sum()
        centre = weights @ items / total
        away = items - centre[None]
        # With weights the number of observations is (sum w)^2 / sum w^2.
        divisor = total - (weights @ weights) / total if unbiased else total
        return centre, (weights[:, None] * away).T @ away / divisor

    def sample(key, params, n):
        centre, cov = params
        return centre[None] + jax.random.normal(key, (n, dim)) @ cholesky(cov).T

    def measure(params, items):
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

    return Family(draw, fit, sample, measure, least=2 if unbiased else 1)
