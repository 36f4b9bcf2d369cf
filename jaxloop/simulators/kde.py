"""Kernel density estimates: every generation draws a training point and adds kernel noise (peers:
Gaussian and tophat kernels).
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_positive, check_whole
from jaxloop.simulators.family import ArrayFamily, Scalar, choose
from jaxloop.simulators.small_linalg import cholesky

RULES = ("scott", "silverman")
KERNELS = ("gaussian", "tophat")
# Training points [n, d], their weights [n], and the square root of the kernel's covariance [d, d].
Params = tuple[jax.Array, jax.Array, jax.Array]


def kde_family(
    dim: int = 1,
    *,
    bandwidth: Scalar | str = 0.3,
    kernel: str = "gaussian",
    sd: Scalar = 1.0,
    centres: ArrayLike | None = None,
    heldout: int = 64,
) -> ArrayFamily:
    """Return a kernel density estimate of normal data in `dim` dimensions.

    Metrics: mean [d], var [d] (of the density: the data's, by n, plus the kernel's) and nll, the
    mean negative log-density at `heldout` real points, the same for all chains.

    Args:
        dim: number of dimensions d.
        bandwidth: a number h (kernel covariance h^2 I), or "scott" / "silverman" (the data's
            covariance times the rule's factor squared, as SciPy has it).
        kernel: "gaussian", or "tophat" (uniform in a ball of radius h, or its image under the
            data's covariance).
        sd: of the real source N(0, sd^2 I).
        centres: [m, d]; the real source is an even mixture of such normals around them.
        heldout: number of real points for nll; 0: no nll.

    Raises:
        ValueError: the rule or kernel is unknown, `bandwidth` or `sd` is not positive, a number is
            too small, or `centres` have another width than `dim`.
    """
    _check(kernel, bandwidth)
    _check_source(dim, sd, centres)
    check_whole("heldout", heldout, 0)

    def draw(key: jax.Array, n: int) -> jax.Array:
        noise, which = jax.random.split(key)
        x = sd * jax.random.normal(noise, (n, dim))
        if centres is None:
            return x
        means = jnp.asarray(centres, x.dtype)
        return x + means[jax.random.randint(which, (n,), 0, len(means), jnp.int32)]

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> Params:
        share = weights / weights.sum()
        centre = share @ items
        away = items - centre[None]
        cov = (share[:, None] * away).T @ away
        if not isinstance(bandwidth, str):
            return items, weights, jnp.eye(dim, dtype=items.dtype) * bandwidth
        count = 1 / (share @ share)
        rule = 1.0 if bandwidth == "scott" else ((dim + 2) / 4) ** (-1 / (dim + 4))
        factor = count ** (-1 / (dim + 4)) * rule
        return items, weights, cholesky(cov * count / (count - 1)) * factor

    def sample(key: jax.Array, params: Params, n: int) -> jax.Array:
        items, weights, root = params
        which, noise = jax.random.split(key)
        return items[choose(which, weights, n)] + kernel_noise(noise, n, items.dtype) @ root.T

    def kernel_noise(key: jax.Array, n: int, dtype: np.dtype) -> jax.Array:
        z = jax.random.normal(key, (n, dim), dtype)
        if kernel == "gaussian":
            return z
        u = jax.random.uniform(jax.random.fold_in(key, 1), (n, 1), dtype)
        return z / jnp.sqrt((z * z).sum(1, keepdims=True)) * u ** (1 / dim)

    def measure(params: Params, items: jax.Array) -> dict[str, jax.Array]:
        points, weights, root = params
        share = weights / weights.sum()
        centre = share @ points
        spread = (root * root).sum(1) * (1.0 if kernel == "gaussian" else 1 / (dim + 2))
        out = {"mean": centre, "var": share @ (points - centre[None]) ** 2 + spread}
        if heldout:
            real = draw(jax.random.key(0), heldout)
            out["nll"] = -_log_density(real, points, share, root, kernel).mean()
        return out

    return ArrayFamily(draw, fit, sample, measure, least=2)


def _check(kernel: str, bandwidth: Scalar | str) -> None:
    """Refuse an unknown kernel or rule, and a bandwidth that is not positive."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}: must be one of {', '.join(KERNELS)}")
    if isinstance(bandwidth, str) and bandwidth not in RULES:
        raise ValueError(f"bandwidth={bandwidth!r}: must be a number, {' or '.join(RULES)}")
    if not isinstance(bandwidth, str):
        check_positive("bandwidth", bandwidth)


def _check_source(dim: int, sd: Scalar, centres: ArrayLike | None) -> None:
    """Refuse a real source that is no density in `dim` dimensions."""
    check_whole("dim", dim)
    check_positive("sd", sd)
    if centres is None:
        return
    centres = np.asarray(centres, float)
    if centres.ndim != 2 or centres.shape[1] != dim or not len(centres):
        raise ValueError(
            f"centres: shape is {centres.shape}, must be [m, {dim}], a row per normal distribution"
        )
    if not np.isfinite(centres).all():
        raise ValueError("centres: holds values that are not finite")


def _log_density(
    at: jax.Array, points: jax.Array, share: jax.Array, root: jax.Array, kernel: str
) -> jax.Array:
    """Return log-densities [m] at `at` [m, d], from points [n, d], shares [n] and root [d, d]."""
    dim = points.shape[1]
    # Rows of root^-1 (x - y), by forward substitution: root is triangular and small.
    z = jnp.zeros((at.shape[0], points.shape[0], dim), at.dtype)
    away = at[:, None, :] - points[None, :, :]
    for i in range(dim):
        z = z.at[:, :, i].set((away[:, :, i] - (z * root[i][None, None, :]).sum(2)) / root[i, i])
    square = (z * z).sum(2)
    if kernel == "gaussian":
        log_kernel = -square / 2 - dim / 2 * jnp.log(2 * jnp.pi)
    else:
        log_ball = dim / 2 * jnp.log(jnp.pi) - jax.scipy.special.gammaln(
            jnp.asarray(dim / 2 + 1, at.dtype)
        )
        log_kernel = jnp.where(square <= 1, -log_ball, -jnp.inf)
    log_share = jnp.log(share)[None, :]
    return (
        jax.scipy.special.logsumexp(log_kernel + log_share, axis=1)
        - jnp.log(jnp.diagonal(root)).sum()
    )
