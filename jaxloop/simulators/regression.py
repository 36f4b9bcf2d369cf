"""Least squares of one model on its own labels (Gerstgrasser et al., arXiv 2404.01413): the
covariates fixed, or drawn afresh.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_not_negative
from jaxloop.simulators.family import ArrayFamily
from jaxloop.simulators.small_linalg import spd_inverse


def regression_family(
    coefficients: ArrayLike, *, sigma: float = 1.0, design: ArrayLike | None = None
) -> ArrayFamily:
    """Return the model y = x'w + N(0, sigma^2).

    Items are rows (x, y) [d + 1], params w [d]; metric: error = |w - coefficients|^2.

    Args:
        coefficients: [d] of the real source.
        sigma: standard deviation of the noise.
        design: [T, d]; row i of every set of items has covariates i, so T must be at least as many
            as a set has. None: x ~ N(0, I) afresh.

    Raises:
        ValueError: there are no coefficients, `sigma` is negative, or the design has another width
            or a rank below d.
    """
    truth = np.asarray(coefficients, float)
    if truth.ndim != 1 or not len(truth) or not np.isfinite(truth).all():
        raise ValueError(
            f"coefficients={truth.tolist()}: must be a list of finite numbers, at least one"
        )
    check_not_negative("sigma", sigma)
    d = len(truth)
    x_TD = None if design is None else np.asarray(design, float)
    if x_TD is not None:
        _check_design(x_TD, d)

    def sample(key: jax.Array, w: jax.Array, n: int) -> jax.Array:
        covariates, noise = jax.random.split(key)
        if x_TD is None:
            x = jax.random.normal(covariates, (n, d))
        elif n > len(x_TD):
            raise ValueError(f"design: has {len(x_TD)} rows, a set of items has {n}")
        else:
            x = jnp.asarray(x_TD[:n], jnp.result_type(float))
        return jnp.concatenate([x, (x @ w + sigma * jax.random.normal(noise, (n,)))[:, None]], 1)

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> jax.Array:
        x, y = items[:, :d], items[:, d]
        gram = (weights[:, None] * x).T @ x
        scale = jnp.trace(gram) / d
        return spd_inverse(gram / scale) @ (x.T @ (weights * y)) / scale

    def real() -> jax.Array:
        return jnp.asarray(truth, jnp.result_type(float))

    def draw(key: jax.Array, n: int) -> jax.Array:
        return sample(key, real(), n)

    def measure(w: jax.Array, items: jax.Array) -> dict[str, jax.Array]:
        return {"error": ((w - real()) ** 2).sum()}

    return ArrayFamily(draw, fit, sample, measure, least=d)


def _check_design(x_TD: np.ndarray, d: int) -> None:
    if x_TD.ndim != 2 or x_TD.shape[1] != d:
        raise ValueError(
            f"design: shape is {x_TD.shape}, must be [T, {d}], a column per coefficient"
        )
    if not np.isfinite(x_TD).all():
        raise ValueError("design: holds values that are not finite")
    if np.linalg.matrix_rank(x_TD) < d:
        raise ValueError(f"design: rank is {np.linalg.matrix_rank(x_TD)}, least squares needs {d}")
