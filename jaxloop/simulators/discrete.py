"""Categorical, Bernoulli and Poisson chains (multi_entity.md, section 4, item 3; peers: entropy
until it dies out).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.simulators.family import Family, choose, weighted_mean


def discrete_family(probabilities, *, smoothing: float = 0.0, bias=None) -> Family:
    """V categories; the model is the (weighted) histogram plus `smoothing` per category, times
    `bias` [V] if given, normalised.

    Items are category numbers (int32), params the probabilities [V]. Metrics: entropy (nats), zeros
    (categories of probability 0), heterozygosity (1 - sum p^2) and unique (different categories
    among the written items). Raises ValueError for probabilities that are negative or sum to
    nothing, and negative smoothing.
    """
    real = _checked("probabilities", probabilities)
    if not isinstance(smoothing, jax.Array) and smoothing < 0:
        raise ValueError(f"smoothing={smoothing}: must be at least 0")
    size = real.shape[0]

    def draw(key, n):
        return choose(key, jnp.asarray(real, jnp.result_type(float)), n)

    def fit(key, items, weights):
        counts = jnp.zeros(size, weights.dtype).at[items].add(weights) + smoothing
        counts = counts if bias is None else counts * bias
        return counts / counts.sum()

    def sample(key, params, n):
        return choose(key, params, n)

    def measure(params, items):
        seen = jnp.zeros(size, jnp.int32).at[items].set(1)
        return {
            "entropy": entropy(params),
            "zeros": (params == 0).sum().astype(jnp.int32),
            "heterozygosity": 1 - (params * params).sum(),
            "unique": seen.sum(),
        }

    return Family(draw, fit, sample, measure)


def entropy(p):
    """Shannon entropy in nats of probabilities [V], 0 log 0 = 0."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1))).sum()


def bernoulli_family(p) -> Family:
    """Coin flips; metrics: p (the estimate) and var (p (1 - p)). Raises ValueError for p outside
    [0, 1].
    """
    if not isinstance(p, jax.Array) and not 0 <= p <= 1:
        raise ValueError(f"p={p}: must lie in [0, 1]")
    flip = lambda key, p, n: (jax.random.uniform(key, (n,)) < p).astype(jnp.result_type(float))
    return _mean_family(
        lambda key, n: flip(key, p, n), flip, lambda m: {"p": m, "var": m * (1 - m)}
    )


def poisson_family(rate) -> Family:
    """Counts; metric: rate (the estimate). Raises ValueError for a rate that is not positive."""
    if not isinstance(rate, jax.Array) and not rate > 0:
        raise ValueError(f"rate={rate}: must be positive")
    count = lambda key, rate, n: jax.random.poisson(key, rate, (n,)).astype(jnp.result_type(float))
    return _mean_family(lambda key, n: count(key, rate, n), count, lambda m: {"rate": m})


def _mean_family(draw, write, metrics):
    """Exponential families in one dimension whose maximum-likelihood estimate is the weighted mean."""
    fit = lambda key, items, weights: weighted_mean(items, weights)
    return Family(draw, fit, write, lambda params, items: metrics(params))


def _checked(name, values):
    if isinstance(values, jax.Array):
        return values
    values = np.asarray(values, float)
    if values.ndim != 1 or not (values >= 0).all() or not values.sum() > 0:
        raise ValueError(
            f"{name}={values.tolist()}: must be non-negative numbers with a positive sum"
        )
    return values / values.sum()
