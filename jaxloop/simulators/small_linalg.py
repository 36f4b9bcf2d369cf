"""Factorisations of one small symmetric matrix, for functions that are vmapped over thousands.

Not `jnp.linalg`: on CPU the batched LAPACK calls of jaxlib 0.10 wait for the thread pool that runs
them and deadlock when two devices call them at once. These are rank-one updates, which vectorise
over whatever they are vmapped over.
"""

import jax
import jax.numpy as jnp


def spd_inverse(x: jax.Array) -> jax.Array:
    """Inverse of a symmetric positive definite [d, d] with entries of order 1, without pivoting."""
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)

    def eliminate(i: jax.Array, x: jax.Array) -> jax.Array:
        # A rank-one update: [i, i] -> -1/p, [i, j] -> x_ij / p, [j, k] -> x_jk - x_ji x_ik / p.
        # After all of them x is -inverse.
        column = x[:, i] - eye[i]
        return (
            x
            - (column / x[i, i])[:, None] * column[None, :]
            - 2 * eye[i][:, None] * eye[i][None, :]
        )

    return -jax.lax.fori_loop(0, x.shape[-1], eliminate, x)


def cholesky(x: jax.Array) -> jax.Array:
    """Lower triangular L [d, d] with L L' = x, for a symmetric positive semi-definite x of any rank
    (zero columns where a pivot vanishes).
    """
    d = x.shape[-1]
    below = jnp.arange(d)
    floor = jnp.finfo(x.dtype).eps * d * jnp.max(jnp.diagonal(x), initial=0)

    def column(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, factor = state
        pivot = rest[i, i]
        good = pivot > floor
        c = jnp.where((below >= i) & good, rest[:, i] / jnp.sqrt(jnp.where(good, pivot, 1)), 0)
        return rest - c[:, None] * c[None, :], factor.at[:, i].set(c)

    return jax.lax.fori_loop(0, d, column, (x, jnp.zeros_like(x)))[1]
