"""Moments of the linear dynamics, in the block form of the paper and in an equal form of d x d
matrices (arXiv 2505.21677).

Dimensions: K entities, d features. All functions are pure jnp on float64 arrays and trace under
`jax.enable_x64(True)`.

`z` stands for the real statistics (X~_1'y~_1, ..., X~_K'y~_K, X_*'y_*), (K+1)d numbers with mean Sz
theta and covariance sigma2 Sz, Sz = blkdiag(S~, S_*). Writing the fits as linear maps of z needs no
pseudo-inverse of a Gram matrix: the paper's M_t blkdiag(S~^+, S_*^+) M_t' is (map) Sz (map)', and
its Q S^+ Q' is the covariance of the synthetic label noise below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.simulators.small_linalg import spd_inverse

SPECTRAL_LIMIT = 1 - 1e-10  # a larger spectral radius counts as 1


class Grams(NamedTuple):
    """S~ [K, d, d], S_* [d, d] and the S_t [K, d, d] of one generation."""

    private: jax.Array
    public: jax.Array
    synthetic: jax.Array


class Weights(NamedTuple):
    """One generation of a `linear_designs.Setting`: a, b, alpha [K], who [K, K], null [K, d, d]."""

    a: jax.Array
    b: jax.Array
    alpha: jax.Array
    who: jax.Array
    null: jax.Array


def generalised_inverses(w: Weights, s: Grams) -> jax.Array:
    """Moore-Penrose inverses [K, d, d] of G_k = a_k S~_k + b_k S_* + alpha_k sum_j who_kj S_j."""
    mixed = jnp.einsum("kj,jxy->kxy", w.alpha[:, None] * w.who, s.synthetic)
    g = w.a[:, None, None] * s.private + w.b[:, None, None] * s.public[None] + mixed
    scale = jnp.trace(g, axis1=1, axis2=2) / g.shape[1]
    scale = jnp.where(scale > 0, scale, 1.0)[:, None, None]
    # G is zero on the range of `null` and regular on its complement: filling the gap and taking the
    # filling back is exact.
    return (jax.vmap(spd_inverse)(g / scale + w.null) - w.null) / scale


def block_step(
    w: Weights, s: Grams, sigma2: float | jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(P, Q, N): theta_t = P z + Q theta_{t-1} + noise of covariance N; shapes [K, d, K+1, d], [K,
    d, K, d], [K, d, K, d] (eq. 4).
    """
    k = w.a.shape[0]
    inverse = generalised_inverses(w, s)
    eye = jnp.eye(k, dtype=inverse.dtype)
    p_private = jnp.einsum("k,kj,kxy->kxjy", w.a, eye, inverse)
    p_public = (w.b[:, None, None] * inverse)[:, :, None]
    q = jnp.einsum("kj,kxz,jzy->kxjy", w.alpha[:, None] * w.who, inverse, s.synthetic)
    noise = sigma2 * jnp.einsum("kxjy,lj,lyz->kxlz", q, w.alpha[:, None] * w.who, inverse)
    return jnp.concatenate([p_private, p_public], 2), q, noise


def block_moments(
    w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Theorems 1 and 2 with the missing transpose and sigma2 put back; leaves of w and s have a
    leading generation axis (public has none).

    Returns mean [T+1, K, d] and cov [T+1, Kd, Kd].
    """
    k, d = w.a.shape[1], theta.shape[0]

    def step(carry, now):
        real, spread = carry
        p, q, noise = block_step(now[0], Grams(s.private, s.public, now[1]), sigma2)
        real = p.reshape(k * d, -1) + q.reshape(k * d, k * d) @ real
        spread = _sandwich(q.reshape(k * d, k * d), spread) + noise.reshape(k * d, k * d)
        return (real, spread), _moments_of(real, spread, s, theta, sigma2)

    start = jnp.zeros((k * d, (k + 1) * d), theta.dtype), jnp.zeros((k * d, k * d), theta.dtype)
    return jax.lax.scan(step, start, (w, s.synthetic))[1]


def block_limit(
    w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Limit of constant weights where rho(Q) < 1: M = (I - Q)^-1 P and C = Q C Q' + N. Returns mean
    [K, d], cov [Kd, Kd].
    """
    k, d = w.a.shape[0], theta.shape[0]
    p, q, noise = block_step(w, s, sigma2)
    resolvent, spread, _ = doubling(q.reshape(k * d, k * d), noise.reshape(k * d, k * d))
    return _moments_of(resolvent @ p.reshape(k * d, -1), spread, s, theta, sigma2)


def _moments_of(real, spread, s, theta, sigma2):
    k, d = s.private.shape[0], theta.shape[0]
    blocks = jnp.concatenate([s.private, s.public[None]])
    wide = real.reshape(k * d, k + 1, d)
    mean = jnp.einsum("xjy,jyz,z->x", wide, blocks, theta)
    cov = sigma2 * jnp.einsum("xjy,jyz,wjz->xw", wide, blocks, wide) + spread
    return mean.reshape(k, d), (cov + cov.T) / 2


def message_step(
    w: Weights, previous: Weights, inverse: jax.Array, s: Grams
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return one message m_t = sum_j w_j X_tj'y_tj that all entities read, as m_t = R m_{t-1} + B z
    + noise of covariance sigma2 W.

    inverse: the generalised inverses [K, d, d] of the generation before. Returns R [d, d], B [d,
    K+1, d], W [d, d].
    """
    share = w.who.max(0)
    reads = share[:, None, None] * jnp.matmul(s.synthetic, inverse)
    r = jnp.einsum("j,jxy->xy", previous.alpha, reads)
    private = (previous.a[:, None, None] * reads).swapaxes(0, 1)
    public = jnp.einsum("j,jxy->xy", previous.b, reads)[:, None]
    return r, jnp.concatenate([private, public], 1), jnp.einsum("j,jxy->xy", share**2, s.synthetic)


def message_moments(
    w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `block_moments`, from d x d matrices, where all entities read the same mixture.

    This form is derived here; the paper has the block form.
    """
    k, d = w.a.shape[1], theta.shape[0]

    def step(carry, now):
        before, inverse, real, spread = carry
        r, b, noise = message_step(now[0], before, inverse, Grams(s.private, s.public, now[1]))
        real = jnp.einsum("xy,yjz->xjz", r, real) + b
        spread = _sandwich(r, spread) + sigma2 * noise
        inverse = generalised_inverses(now[0], Grams(s.private, s.public, now[1]))
        return (now[0], inverse, real, spread), _from_message(
            now[0], inverse, real, spread, s, theta, sigma2
        )

    zero = jax.tree.map(lambda x: jnp.zeros_like(x[0]), w)
    start = (
        zero,
        jnp.zeros((k, d, d), theta.dtype),
        jnp.zeros((d, k + 1, d), theta.dtype),
        jnp.zeros((d, d), theta.dtype),
    )
    return jax.lax.scan(step, start, (w, s.synthetic))[1]


def message_limit(
    w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """As `block_limit`, from d x d matrices."""
    inverse = generalised_inverses(w, s)
    r, b, noise = message_step(w, w, inverse, s)
    resolvent, spread, _ = doubling(r, sigma2 * noise)
    return _from_message(
        w, inverse, jnp.einsum("xy,yjz->xjz", resolvent, b), spread, s, theta, sigma2
    )


def _from_message(w, inverse, real, spread, s, theta, sigma2):
    """Fits G_k^+ (a_k z_k + b_k z_* + alpha_k m) of the message m = real z + noise of covariance
    spread.
    """
    k, d = w.a.shape[0], theta.shape[0]
    own = jnp.concatenate([w.a[:, None] * jnp.eye(k, dtype=w.a.dtype), w.b[:, None]], 1)
    read = (
        jnp.einsum("kj,xy->kxjy", own, jnp.eye(d, dtype=w.a.dtype))
        + w.alpha[:, None, None, None] * real[None]
    )
    fit = jnp.einsum("kxz,kzjy->kxjy", inverse, read)
    heard = (w.alpha[:, None, None] * inverse).reshape(k * d, d)
    return _moments_of(fit.reshape(k * d, -1), _sandwich(heard, spread), s, theta, sigma2)


class Efficiency(NamedTuple):
    """rho(Q) [] and, where it is below 1, the limits mse [K] and disagreement [], else NaN."""

    spectral_radius: jax.Array
    mse: jax.Array
    disagreement: jax.Array


def message_efficiency(w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array) -> Efficiency:
    """Only the error and the disagreement of the limit, in fewer products than `message_limit` and
    without covariances between entities.
    """
    k = w.a.shape[0]
    inverse = generalised_inverses(w, s)
    r, b, noise = message_step(w, w, inverse, s)
    resolvent, spread, last = doubling(r, sigma2 * noise)
    radius = spectral_radius(*last)
    real = jnp.matmul(resolvent[None], b.swapaxes(0, 1))
    blocks = jnp.concatenate([s.private, s.public[None]])
    moved = jnp.matmul(real, blocks)
    heard = sigma2 * jnp.einsum("jxy,jzy->xz", moved, real) + spread
    a, b_, alpha = (x[:, None, None] for x in (w.a, w.b, w.alpha))
    cross = sigma2 * alpha * (a * moved[:k] + b_ * moved[k:])
    inner = (
        sigma2 * (a**2 * s.private + b_**2 * s.public[None])
        + cross
        + cross.mT
        + alpha**2 * heard[None]
    )
    mean = jnp.matmul(
        inverse, jnp.einsum("kxy,y->kx", a * s.private + b_ * s.public[None], theta)[:, :, None]
    )
    mean = mean[:, :, 0] + jnp.einsum(
        "kxy,y->kx", inverse * alpha, jnp.einsum("jxy,y->x", moved, theta)
    )
    spread_k = jnp.einsum("kxy,kyx->k", jnp.matmul(inverse, inverse), inner)
    joint = jnp.einsum("kxy->xy", alpha * inverse) / k
    average = jnp.matmul(joint[None], real)
    average = jnp.concatenate(
        [
            average[:k] + a * inverse / k,
            (average[k] + jnp.einsum("kxy->xy", b_ * inverse) / k)[None],
        ]
    )
    spread_mean = sigma2 * jnp.einsum(
        "jxy,jxy->", jnp.matmul(average, blocks), average
    ) + jnp.einsum("xy,zy,zx->", spread, joint, joint)
    centre = mean.mean(0)
    disagreement = spread_k.mean() - spread_mean + ((mean - centre[None]) ** 2).sum(1).mean()
    mse = spread_k + ((mean - theta[None]) ** 2).sum(1)
    settled = radius < SPECTRAL_LIMIT
    return Efficiency(
        radius, jnp.where(settled, mse, jnp.nan), jnp.where(settled, disagreement, jnp.nan)
    )


def block_efficiency(w: Weights, s: Grams, theta: jax.Array, sigma2: jax.Array) -> Efficiency:
    """As `message_efficiency`, for any mixing matrix."""
    k, d = w.a.shape[0], theta.shape[0]
    p, q, noise = block_step(w, s, sigma2)
    resolvent, spread, last = doubling(q.reshape(k * d, k * d), noise.reshape(k * d, k * d))
    radius = spectral_radius(*last)
    mean, cov = _moments_of(resolvent @ p.reshape(k * d, -1), spread, s, theta, sigma2)
    wide = cov.reshape(k, d, k, d)
    total = jnp.einsum("kxkx->k", wide)
    disagreement = (
        total.mean()
        - jnp.einsum("kxlx->", wide) / k**2
        + ((mean - mean.mean(0)[None]) ** 2).sum(1).mean()
    )
    mse = total + ((mean - theta[None]) ** 2).sum(1)
    settled = radius < SPECTRAL_LIMIT
    return Efficiency(
        radius, jnp.where(settled, mse, jnp.nan), jnp.where(settled, disagreement, jnp.nan)
    )


# i, M and log |r^(2^i)|, where r^(2^i) = |r^(2^i)| M.
Power = tuple[jax.Array, jax.Array, jax.Array]


def doubling(
    r: jax.Array, noise: jax.Array, *, most: int = 40
) -> tuple[jax.Array, jax.Array, Power]:
    """Resolvent (I - r)^-1 = prod_i (I + r^(2^i)) and V = r V r' + noise by Smith's doubling, for a
    spectral radius below 1.

    The power of r is carried as (unit matrix, log of its norm), so that a radius above 1 ends the
    loop without an overflow (the results are then meaningless). The last power is returned for
    `spectral_radius`.
    """
    eye = jnp.eye(r.shape[0], dtype=r.dtype)

    def unfinished(state):
        i, _, log_norm, _, _ = state
        return (i < most) & (log_norm > -42.0) & (log_norm < 30.0)

    def double(state):
        i, unit, log_norm, resolvent, v = state
        scale = jnp.exp(log_norm)
        power = scale * unit
        resolvent = resolvent + power @ resolvent
        v = v + _sandwich(power, v)
        unit, log_norm = _square(unit, log_norm)
        return i + 1, unit, log_norm, resolvent, v

    start = (jnp.int32(0), *_normalised(r), eye, noise)
    i, unit, log_norm, resolvent, v = jax.lax.while_loop(unfinished, double, start)
    return resolvent, v, (i, unit, log_norm)


def spectral_radius(
    i: jax.Array, unit: jax.Array, log_norm: jax.Array, *, most: int = 40
) -> jax.Array:
    """lim |r^n|^(1/n), n = 2^i, from a power of r as `doubling` leaves it.

    The ratio of successive norms converges like (second / largest eigenvalue)^n; where the two are
    complex conjugates it is bounded by a constant^(1/n) instead: 1e-11 at i = 40.
    """

    def unfinished(state):
        i, _, _, rate, old = state
        return (i < most) & (jnp.abs(rate - old) > 1e-13)

    def square(state):
        i, unit, log_norm, rate, _ = state
        unit, squared = _square(unit, log_norm)
        # 2^-i as a float: an integer power would overflow at i = 31.
        return i + 1, unit, squared, (squared - log_norm) * jnp.exp2(-i.astype(unit.dtype)), rate

    first = (i, unit, log_norm, jnp.asarray(jnp.inf, unit.dtype), jnp.asarray(-jnp.inf, unit.dtype))
    rate = jax.lax.while_loop(unfinished, square, square(square(first)))[3]
    return jnp.where(rate > -jnp.inf, jnp.exp(rate), 0.0)


def _normalised(x):
    norm = jnp.sqrt((x * x).sum())
    return x / jnp.where(norm > 0, norm, 1.0), jnp.log(norm)


def _square(unit, log_norm):
    unit, extra = _normalised(unit @ unit)
    return unit, 2 * log_norm + extra


def _sandwich(m, x):
    return m @ x @ m.T
