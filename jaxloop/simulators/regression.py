"""Least squares of one model on its own labels (Gerstgrasser et al., arXiv 2404.01413): the
covariates fixed, or drawn afresh.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.simulators.family import Family
from jaxloop.simulators.small_linalg import spd_inverse


def regression_family(coefficients, *, sigma: float = 1.0, design=None) -> Family:
    """y = x'w + N(0, sigma^2). Items are rows (x, y) [d + 1]; params w [d]; metric error = |w -
    coefficients|^2.

    design [T, d]: row i of every set of items has covariates i (T must be at least as many as a set
    has); None: x ~ N(0, I) afresh. Raises ValueError where the design has another width or rank
    below d.
    """
    truth = np.asarray(coefficients, float)
    d = len(truth)
    if design is not None:
        design = np.asarray(design, float)
        if design.ndim != 2 or design.shape[1] != d:
            raise ValueError(
                f"design: shape is {design.shape}, must be [T, {d}], a column per coefficient"
            )
        if np.linalg.matrix_rank(design) < d:
            raise ValueError(
                f"design: rank is {np.linalg.matrix_rank(design)}, least squares needs {d}"
            )

    def write(key, w, n):
        covariates, noise = jax.random.split(key)
        if design is None:
            x = jax.random.normal(covariates, (n, d))
        elif n > len(design):
            raise ValueError(f"design: has {len(design)} rows, a set of items has {n}")
        else:
            x = jnp.asarray(design[:n], jnp.result_type(float))
        return jnp.concatenate([x, (x @ w + sigma * jax.random.normal(noise, (n,)))[:, None]], 1)

    def fit(key, items, weights):
        x, y = items[:, :d], items[:, d]
        gram = (weights[:, None] * x).T @ x
        scale = jnp.trace(gram) / d
        return spd_inverse(gram / scale) @ (x.T @ (weights * y)) / scale

    real = lambda: jnp.asarray(truth, jnp.result_type(float))
    measure = lambda w, items: {"error": ((w - real()) ** 2).sum()}
    return Family(lambda key, n: write(key, real(), n), fit, write, measure, least=d)
