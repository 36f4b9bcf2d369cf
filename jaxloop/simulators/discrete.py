"""Families of models on discrete data: categorical, Bernoulli and Poisson."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloop.core.checks import check_not_negative, check_positive
from jaxloop.simulators.family import ArrayFamily, Scalar, choose, weighted_mean


def discrete_family(
    probabilities: ArrayLike, *, smoothing: Scalar = 0.0, bias: ArrayLike | None = None
) -> ArrayFamily:
    """V categories; the model is the (weighted) histogram plus `smoothing` per category, times
    `bias` [V] if given, normalised.

    Items are category numbers (int32), params the probabilities [V]. Metrics: entropy (nats), zeros
    (categories of probability 0), heterozygosity (1 - sum p^2) and unique (different categories
    among the generated items).

    Raises:
        ValueError: probabilities are negative or sum to nothing, smoothing is negative, or bias is
            not one number per category, none of them negative.
    """
    real = _checked("probabilities", probabilities)
    check_not_negative("smoothing", smoothing)
    size = real.shape[0]
    if bias is not None and not isinstance(bias, jax.Array):
        bias = _checked_bias(bias, size)

    def draw(key: jax.Array, n: int) -> jax.Array:
        # Hidden from the compiler, which would else sum the same numbers for every item of every
        # chain itself: half a minute for a few thousand chains.
        weights = jax.lax.optimization_barrier(jnp.asarray(real, jnp.result_type(float)))
        return choose(key, weights, n)

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> jax.Array:
        counts = jnp.zeros(size, weights.dtype).at[items].add(weights) + smoothing
        counts = counts if bias is None else counts * bias
        return counts / counts.sum()

    def sample(key: jax.Array, params: jax.Array, n: int) -> jax.Array:
        return choose(key, params, n)

    def measure(params: jax.Array, items: jax.Array) -> dict[str, jax.Array]:
        seen = jnp.zeros(size, jnp.int32).at[items].set(1)
        return {
            "entropy": entropy(params),
            "zeros": (params == 0).sum().astype(jnp.int32),
            "heterozygosity": 1 - (params * params).sum(),
            "unique": seen.sum(),
        }

    return ArrayFamily(draw, fit, sample, measure)


def entropy(p: jax.Array) -> jax.Array:
    """Shannon entropy in nats of probabilities [V], 0 log 0 = 0."""
    return -(p * jnp.log(jnp.where(p > 0, p, 1))).sum()


def bernoulli_family(p: Scalar) -> ArrayFamily:
    """Coin flips; metrics: p (the estimate) and var (p (1 - p)). Raises ValueError for p outside
    [0, 1].
    """
    if not isinstance(p, jax.Array) and not 0 <= p <= 1:
        raise ValueError(f"p={p}: must lie in [0, 1]")

    def sample(key: jax.Array, p: Scalar, n: int) -> jax.Array:
        return (jax.random.uniform(key, (n,)) < p).astype(jnp.result_type(float))

    return _mean_family(p, sample, lambda mean: {"p": mean, "var": mean * (1 - mean)})


def poisson_family(rate: Scalar) -> ArrayFamily:
    """Counts; metric: rate (the estimate). Raises ValueError for a rate that is not positive."""
    check_positive("rate", rate)

    def sample(key: jax.Array, rate: Scalar, n: int) -> jax.Array:
        return jax.random.poisson(key, rate, (n,)).astype(jnp.result_type(float))

    return _mean_family(rate, sample, lambda mean: {"rate": mean})


def _mean_family(
    real: Scalar,
    sample: Callable[[jax.Array, Scalar, int], jax.Array],
    metrics: Callable[[jax.Array], dict[str, jax.Array]],
) -> ArrayFamily:
    """An exponential family in one dimension whose maximum-likelihood estimate is the mean."""

    def draw(key: jax.Array, n: int) -> jax.Array:
        return sample(key, real, n)

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> jax.Array:
        return weighted_mean(items, weights)

    def measure(params: jax.Array, items: jax.Array) -> dict[str, jax.Array]:
        return metrics(params)

    return ArrayFamily(draw, fit, sample, measure)


def _checked(name: str, values: ArrayLike) -> jax.Array | np.ndarray:
    if isinstance(values, jax.Array):
        return values
    shares = np.asarray(values, float)
    if shares.ndim != 1 or not (shares >= 0).all() or not 0 < shares.sum() < np.inf:
        raise ValueError(
            f"{name}={shares.tolist()}: must be non-negative numbers with a positive sum"
        )
    return shares / shares.sum()


def _checked_bias(bias: ArrayLike, size: int) -> np.ndarray:
    factors = np.asarray(bias, float)
    fits = factors.shape == (size,) and (factors >= 0).all()
    if not fits or not 0 < factors.sum() < np.inf:
        raise ValueError(
            f"bias={factors.tolist()}: must be {size} non-negative numbers with a positive sum, "
            "one per category"
        )
    return factors
