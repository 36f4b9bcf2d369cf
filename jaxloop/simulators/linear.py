"""Linear models of K entities that train on each other's output: moments in closed form,
simulation, sweeps (multi_entity.md, section 1).

Every entity k fits theta_tk by weighted least squares, sums of squares weighted (1-alpha) beta on
its private data, (1-alpha)(1-beta) on the public data and alpha who_kj on the synthetic data of
entity j, whose labels entity j's last model wrote with fresh noise; real labels are drawn once and
used again. alpha is 0 at t = 0; a singular problem has its minimum-norm solution. One theta is
behind all real data.

All results are float64 NumPy arrays; 64-bit arithmetic is switched on here and only here.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.keys import chain_key, phase_key
from jaxloop.core.map_chains import map_chains, whole
from jaxloop.runtime.devices import side_by_side
from jaxloop.runtime.setup_jit import setup_jit
from jaxloop.simulators import linear_forms as forms
from jaxloop.simulators.linear_designs import (
    Designs,
    Setting,
    check_unit,
    low_rank_designs,
    setting,
)

BATCH_BYTES = 5 << 19  # of the result of the replicates that run together

__all__ = [
    "Designs",
    "Limit",
    "Moments",
    "Sweep",
    "closed_form",
    "limit",
    "low_rank_designs",
    "simulate",
    "sweep",
]


class Limit(NamedTuple):
    """Limits for t -> infinity: mean [K, d], cov [Kd, Kd], mse [K], mspe [K, K],
    relative_efficiency [K], disagreement ().
    """

    mean: np.ndarray
    cov: np.ndarray
    mse: np.ndarray
    mspe: np.ndarray
    relative_efficiency: np.ndarray
    disagreement: float


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments over the draws of all labels; entries of entities that have not joined are NaN.

    mean                 [T+1, K, d] expectation of theta_hat
    cov                  [T+1, Kd, Kd]
    mse                  [T+1, K] E|theta_hat_k - theta|^2
    mspe                 [T+1, K, K] E|X~_m (theta_hat_k - theta)|^2 at [:, k, m], summed over the rows of task m, not averaged
    disagreement         [T+1] E (1/K) sum_k |theta_hat_k - mean over entities|^2
    relative_efficiency  [T+1, K] error of the best unbiased estimate from all real data / mse (NaN
    where those leave theta undetermined)
    spectral_radius      of Q in the last generation
    limit                a `Limit`, or None
    no_limit             why there is none, else None
    """

    mean: np.ndarray
    cov: np.ndarray
    mse: np.ndarray
    mspe: np.ndarray
    disagreement: np.ndarray
    relative_efficiency: np.ndarray
    spectral_radius: float
    limit: Limit | None
    no_limit: str | None


def closed_form(
    designs: Designs,
    theta,
    *,
    alpha,
    beta,
    sigma2: float = 1.0,
    generations: int,
    mixing=None,
    joins=None,
    form: str = "auto",
) -> Moments:
    """Exact moments of theta_hat for t = 0..T (Theorems 1 and 2 with the transpose and the sigma2
    that the printed version lacks).

    theta [d]; alpha, beta in [0, 1]: numbers, [T+1] per generation, or [T+1, K] / [1, K] per
    entity; mixing [K, K] row-stochastic (default: everyone reads everyone, the paper); joins [K]:
    generation in which an entity first fits (see `linear_designs.setting`). form: "block" (Kd x Kd,
    any mixing), "reduced" (d x d, where all entities read the same mixture) or "auto". Raises
    ValueError for weights outside [0, 1], a mixing matrix that is not row-stochastic, theta of
    another length, and form="reduced" where entities read different mixtures.
    """
    w, theta, reduced = _checked(
        designs, theta, alpha, beta, sigma2, generations, mixing, joins, form
    )
    with jax.enable_x64(True):
        moments = _message_moments if reduced else _block_moments
        mean, cov = moments(
            *_arrays(designs, w, generations), jnp.asarray(theta), jnp.float64(sigma2)
        )
        mean, cov = np.array(mean), np.array(cov)
    radius = _spectral_radius(designs, w, reduced)
    mse, mspe, disagreement = _summaries(designs, theta, mean, cov, w.present)
    absent = ~w.present
    mean[absent], mse[absent], mspe[absent] = np.nan, np.nan, np.nan
    wide = np.repeat(absent, designs.dim, axis=1)
    cov[wide[:, :, None] | wide[:, None, :]] = np.nan
    why = _no_limit(designs, w, radius)
    end = None if why else _limit(designs, w, theta, sigma2, reduced)
    return Moments(
        mean, cov, mse, mspe, disagreement, designs.mvue_mse(sigma2) / mse, radius, end, why
    )


def limit(
    designs: Designs, theta, *, alpha, beta, sigma2: float = 1.0, mixing=None, form: str = "auto"
) -> Limit:
    """Limit of constant weights and designs (Theorem 3). Raises ValueError where rho(Q) >= 1, and
    as `closed_form` does.
    """
    w, theta, reduced = _checked(designs, theta, alpha, beta, sigma2, 1, mixing, None, form)
    why = _no_limit(designs, w, _spectral_radius(designs, w, reduced))
    if why:
        raise ValueError(f"no limit exists: {why}")
    return _limit(designs, w, theta, sigma2, reduced)


def simulate(
    designs: Designs,
    theta,
    *,
    alpha,
    beta,
    sigma2: float = 1.0,
    generations: int,
    replicates: int,
    seed: int,
    mixing=None,
    joins=None,
    micro_batch: int | None = None,
    mesh=None,
    dtype: str = "float64",
) -> np.ndarray:
    """Draws every label and refits every entity in every generation; theta_hat [R, T+1, K, d], NaN
    where an entity has not joined.

    Designs are fixed, so the matrix of each fit is inverted once for all replicates; what is random
    are the labels: those of the real rows once per replicate, those of the synthetic rows in every
    generation. Arguments as `closed_form`; replicate r draws from fold_in(seed, r), whatever the
    number of replicates; micro_batch: replicates that run together (default: what a cache holds);
    mesh: devices to share them out over (without one a CPU's cores share them); dtype: "float64" or
    "float32" (the noise itself is drawn in float32, see `standard_normals`).
    """
    w, theta, _ = _checked(designs, theta, alpha, beta, sigma2, generations, mixing, joins, "auto")
    if replicates < 1:
        raise ValueError(f"replicates={replicates}: must be at least 1")
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype={dtype!r}: must be float64 or float32")
    with jax.enable_x64(True):
        maps = _label_maps(designs, w, theta, sigma2, generations, np.dtype(dtype))
        most = BATCH_BYTES // (
            np.dtype(dtype).itemsize * (generations + 1) * theta.size * designs.entities
        )
        batch = micro_batch or 1 << max(0, most.bit_length() - 1)
        if mesh is None:
            out = _in_batches(maps, seed, replicates, generations, batch)
        else:
            keys = _replicate_keys(chain_key(seed), whole(replicates, micro_batch=batch, mesh=mesh))
            out = np.asarray(_simulate(maps, keys, generations, batch, mesh))[:replicates]
        out = out.reshape(replicates, generations + 1, designs.entities, designs.dim)
    return out if w.present.all() else np.where(w.present[:, :, None], out, np.nan).astype(dtype)


def _in_batches(maps, seed, replicates, generations, batch):
    """`_simulate` a batch a call, some calls at a time. A large study's result is hundreds of
    megabytes: a program that made all of it would spend more on pages of memory that it touches
    first than on arithmetic.
    """
    key = chain_key(seed)
    out = np.empty((replicates, generations + 1, maps[0].shape[1]), maps[0].dtype)

    def simulate_from(first):
        with jax.enable_x64(True):  # holds for one thread
            return _simulate_batch(maps, key, np.uint32(first), batch, generations)

    def take(first, found):
        out[first : first + batch] = found[: replicates - first]

    side_by_side(simulate_from, take, range(0, replicates, batch))
    return out


class Sweep(NamedTuple):
    """Limits on a grid; NaN where rho(Q) >= 1.

    alpha [A], beta [B], spectral_radius [A, B], mse [A, B, K], relative_efficiency [A, B, K],
    disagreement [A, B].
    """

    alpha: np.ndarray
    beta: np.ndarray
    spectral_radius: np.ndarray
    mse: np.ndarray
    relative_efficiency: np.ndarray
    disagreement: np.ndarray

    def best(self) -> tuple[float, float, float]:
        """(alpha, beta, relative efficiency) where the relative efficiency, averaged over the
        entities, is largest.
        """
        score = np.nan_to_num(self.relative_efficiency.mean(2), nan=-np.inf)
        i, j = np.unravel_index(score.argmax(), score.shape)
        return float(self.alpha[i]), float(self.beta[j]), float(score[i, j])


def sweep(
    designs: Designs,
    theta,
    *,
    alpha,
    beta,
    sigma2: float = 1.0,
    mixing=None,
    micro_batch: int = 64,
    mesh=None,
) -> Sweep:
    """Limits of every pair of `alpha` [A] and `beta` [B], constant over generations and entities,
    in one compiled call.

    Raises ValueError as `closed_form` does.
    """
    grid = [np.atleast_1d(np.asarray(x, np.float64)) for x in (alpha, beta)]
    if max(x.ndim for x in grid) > 1:
        raise ValueError(
            f"alpha, beta: shapes are {grid[0].shape} and {grid[1].shape}, a sweep takes two lists"
        )
    check_unit("alpha", grid[0])
    check_unit("beta", grid[1])
    # What G leaves undetermined depends on which weights are positive: at most nine patterns on any
    # grid.
    corner = lambda x: (x > 0).astype(int) + (x == 1).astype(int)
    pairs = [(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
    corners = [_checked(designs, theta, x, y, sigma2, 1, mixing, None, "auto") for x, y in pairs]
    _, theta, reduced = corners[4]
    null, who = (np.stack([getattr(w, name)[1] for w, _, _ in corners]) for name in ("null", "who"))
    pattern = (3 * corner(grid[0])[:, None] + corner(grid[1])[None, :]).reshape(-1).astype(np.int32)
    alphas, betas = (x.reshape(-1) for x in np.meshgrid(*grid, indexing="ij"))
    # Neighbours on the grid need about as many doublings; dealing them out in turn keeps devices
    # equally busy.
    devices = 1 if mesh is None else mesh.shape["chains"]
    padded = whole(len(alphas), micro_batch=micro_batch, mesh=mesh)
    order = np.concatenate([np.arange(i, padded, devices) for i in range(devices)])
    with jax.enable_x64(True):
        grams = forms.Grams(*(jnp.asarray(x) for x in _grams(designs, 1)))
        tables = jnp.asarray(null), jnp.asarray(who)
        settings = tuple(
            jnp.asarray(x[np.minimum(order, len(x) - 1)]) for x in (alphas, betas, pattern)
        )
        out = _sweep(
            settings,
            tables,
            forms.Grams(*grams[:2], grams.synthetic[1]),
            jnp.asarray(theta),
            jnp.float64(sigma2),
            micro_batch,
            mesh,
            reduced,
        )
        back = np.argsort(order)[: len(alphas)]
        shape = (len(grid[0]), len(grid[1]))
        radius, mse, disagreement = (np.array(x)[back].reshape(shape + x.shape[1:]) for x in out)
    return Sweep(*grid, radius, mse, designs.mvue_mse(sigma2) / mse, disagreement)


@partial(jax.jit, static_argnames=("micro_batch", "mesh", "reduced"))
def _sweep(settings, tables, grams, theta, sigma2, micro_batch, mesh, reduced):
    def one(setting):
        alpha, beta, pattern = setting
        null, who = tables[0][pattern], tables[1][pattern]
        wide = lambda x: jnp.broadcast_to(x, who.shape[:1])
        w = forms.Weights(
            wide((1 - alpha) * beta), wide((1 - alpha) * (1 - beta)), wide(alpha), who, null
        )
        return (forms.message_efficiency if reduced else forms.block_efficiency)(
            w, grams, theta, sigma2
        )

    return map_chains(one, settings, micro_batch=micro_batch, mesh=mesh)


@setup_jit(static_argnames="count", inline=True)
def _replicate_keys(key, count, start=np.uint32(0)):
    return jax.vmap(partial(jax.random.fold_in, key))(start + jnp.arange(count, dtype=jnp.uint32))


@partial(jax.jit, static_argnames=("count", "generations"))
def _simulate_batch(maps, key, start, count, generations):
    return _simulate(maps, _replicate_keys(key, count, start), generations, None, None)


@partial(jax.jit, static_argnames=("generations", "micro_batch", "mesh"))
def _simulate(maps, keys, generations, micro_batch, mesh):
    first, real, refit, first_on, real_on, refit_on, expected, scale = maps
    known, rows = expected.shape[0], first_on.shape[1]
    along = lambda x: jnp.broadcast_to(x, (generations, *x.shape[1:]))

    def one(key):
        noise = scale * standard_normals(
            phase_key(key, 0, "labels"), known + generations * rows
        ).astype(scale.dtype)
        labels, fresh = expected + noise[:known], noise[known:].reshape(generations, rows)

        def step(said, now):
            noise_t, on_t, *real_t = now
            written = said + noise_t
            return (
                fixed_on if fixed_on is not None else labels @ real_t[0]
            ) + written @ on_t, written

        # Real weights that do not change with t are multiplied out once, not once per generation.
        fixed_on = labels @ real_on[0] if real_on.shape[0] == 1 else None
        xs = (fresh, along(refit_on)) if fixed_on is not None else (fresh, along(refit_on), real_on)
        _, written = jax.lax.scan(step, labels @ first_on, xs, unroll=5)
        fixed = labels @ real[0] if real.shape[0] == 1 else jnp.einsum("n,tnx->tx", labels, real)
        heard = (
            written @ refit[0] if refit.shape[0] == 1 else jnp.einsum("tn,tnx->tx", written, refit)
        )
        return jnp.concatenate(
            [(labels @ first)[None], heard + (fixed[None] if fixed.ndim == 1 else fixed)]
        )

    return map_chains(one, keys, micro_batch=micro_batch, mesh=mesh)


def standard_normals(key, count: int):
    """`count` standard normal numbers, float32, draw i whatever `count` is: 23 bits each,
    symmetric, the largest is 5.3.

    Two come from one block of the generator, which `jax.random.normal` spends on one; call it where
    64-bit types are enabled.
    """
    words = jax.lax.bitcast_convert_type(
        jax.random.bits(key, (count // 2 + count % 2,), jnp.uint64), jnp.uint32
    ).reshape(-1)[:count]
    middle = (words >> np.uint32(9)).astype(jnp.float32) + np.float32(0.5)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(middle * np.float32(2.0**-22) - np.float32(1))


def _label_maps(designs, w, theta, sigma2, generations, dtype):
    """Matrices of the fits as maps of label rows. One for all generations where nothing changes.

    theta_0 = labels @ first, theta_t = labels @ real_t + written_t @ refit_t, and what the next
    labels are before their noise, `write` being the synthetic rows of the next generation: first_on
    = first @ write_1, real_on_t = real_t @ write_t+1, refit_on_t = refit_t @ write_t+1. A fit reads
    the labels of a design X = QR through R'(Q'y) only, so that a design with more rows than columns
    stands as R.
    """
    k, d = designs.entities, designs.dim
    weights, grams = _arrays(designs, w, generations)
    inverse = np.asarray(_inverses(weights, grams))
    rows = [_triangle(x) for x in (*designs.private, designs.public)]
    own = np.concatenate([w.a[:, :, None] * np.eye(k), w.b[:, :, None]], 2)
    real = np.concatenate(
        [np.einsum("tk,nx,tkxy->tnky", own[:, :, j], x, inverse) for j, x in enumerate(rows)], 1
    )
    real = real.reshape(generations + 1, -1, k * d)
    groups = [[_triangle(x) for x in group] for group in designs.synthetic]
    group = lambda t: groups[0 if designs.fixed else t - 1]
    write = (
        [_block_columns(group(t)) for t in range(1, generations + 1)]
        if not designs.fixed
        else [_block_columns(groups[0])] * generations
    )
    refit = []
    for t in range(1, generations + 1):
        parts = [
            np.einsum("k,nx,kxy->nky", w.alpha[t] * w.who[t, :, j], x, inverse[t])
            for j, x in enumerate(group(t))
        ]
        refit.append(np.concatenate(parts).reshape(-1, k * d))
    once = lambda x: x[:1] if (x == x[:1]).all() else x
    # Nothing is written after the last generation: its map only gives the arrays their shape.
    following = [*write[1:], write[-1]]
    on = lambda fits: once(np.stack([fit @ x for fit, x in zip(fits, following, strict=True)]))
    expected = np.concatenate(rows) @ theta
    arrays = (
        real[0],
        once(real[1:]),
        once(np.stack(refit)),
        real[0] @ write[0],
        on(real[1:]),
        on(refit),
        expected,
        np.sqrt(sigma2),
    )
    return tuple(jnp.asarray(x, dtype) for x in arrays)


def _triangle(x):
    return np.linalg.qr(x, mode="r") if x.shape[0] > x.shape[1] else x


def _block_columns(matrices):
    """[K d, rows] with X_k' in block k."""
    out = np.zeros((sum(x.shape[1] for x in matrices), sum(x.shape[0] for x in matrices)))
    i = j = 0
    for x in matrices:
        out[i : i + x.shape[1], j : j + x.shape[0]] = x.T
        i, j = i + x.shape[1], j + x.shape[0]
    return out


def _checked(designs, theta, alpha, beta, sigma2, generations, mixing, joins, form):
    theta = np.asarray(theta, np.float64)
    if theta.shape != (designs.dim,):
        raise ValueError(
            f"theta: shape is {theta.shape}, must be ({designs.dim},), one coefficient per "
            "column of the designs"
        )
    if not (np.isfinite(sigma2) and sigma2 >= 0):
        raise ValueError(f"sigma2={sigma2}: must be a finite number of at least 0")
    if form not in ("auto", "block", "reduced"):
        raise ValueError(f"form={form!r}: must be auto, block or reduced")
    w = setting(
        designs, alpha=alpha, beta=beta, generations=generations, mixing=mixing, joins=joins
    )
    if form == "reduced" and not w.one_message:
        raise ValueError(
            "form='reduced': entities read different mixtures here, which only the block form "
            "describes"
        )
    return w, theta, form == "reduced" or (form == "auto" and w.one_message)


def _grams(designs, generations):
    square = lambda matrices: np.stack([x.T @ x for x in matrices])
    synthetic = [square(group) for group in designs.synthetic]
    # Generation 0 reads no synthetic data: its entry only gives the arrays their shape.
    along = (
        synthetic * (generations + 1) if designs.fixed else [synthetic[0], *synthetic[:generations]]
    )
    return square(designs.private), designs.public.T @ designs.public, np.stack(along)


def _arrays(designs, w, generations):
    weights = forms.Weights(*(jnp.asarray(x) for x in (w.a, w.b, w.alpha, w.who, w.null)))
    return weights, forms.Grams(*(jnp.asarray(x) for x in _grams(designs, generations)))


_block_moments, _message_moments = jax.jit(forms.block_moments), jax.jit(forms.message_moments)
_block_limit, _message_limit = jax.jit(forms.block_limit), jax.jit(forms.message_limit)


@jax.jit
def _inverses(weights, grams):
    return jax.vmap(lambda w, s: forms.generalised_inverses(w, forms.Grams(*grams[:2], s)))(
        weights, grams.synthetic
    )


@jax.jit
def _transition(w, s, previous):
    inverse = forms.generalised_inverses(w, s)
    return forms.block_step(w, s, 1.0)[1], forms.message_step(w, previous, inverse, s)[0]


def _last(designs, w):
    with jax.enable_x64(True):
        weights = forms.Weights(*(jnp.asarray(x[-1]) for x in (w.a, w.b, w.alpha, w.who, w.null)))
        private, public, synthetic = _grams(designs, w.a.shape[0] - 1)
        return weights, forms.Grams(
            jnp.asarray(private), jnp.asarray(public), jnp.asarray(synthetic[-1])
        )


def _spectral_radius(designs, w, reduced):
    """Eigenvalues of Q in the last generation: with one message for all, its non-zero ones are
    those of a d x d matrix.
    """
    with jax.enable_x64(True):
        weights, grams = _last(designs, w)
        q, r = (np.asarray(x) for x in _transition(weights, grams, weights))
    matrix = r if reduced else q.reshape(designs.entities * designs.dim, -1)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _no_limit(designs, w: Setting, radius):
    if not designs.fixed:
        return "the synthetic designs change with the generation"
    everyone = np.flatnonzero(w.present.all(1))[0] + 1
    if everyone >= w.present.shape[0]:
        return "an entity joins in the last generation"
    if any((x[everyone:] != x[-1:]).any() for x in (w.a, w.b, w.alpha, w.who)):
        return "alpha or beta changes with the generation"
    if radius >= forms.SPECTRAL_LIMIT:
        return f"the spectral radius of Q is {radius:.6g} and must be below 1"
    return None


def _limit(designs, w, theta, sigma2, reduced):
    with jax.enable_x64(True):
        weights, grams = _last(designs, w)
        mean, cov = (_message_limit if reduced else _block_limit)(
            weights, grams, jnp.asarray(theta), jnp.float64(sigma2)
        )
        mean, cov = np.array(mean), np.array(cov)
    mse, mspe, disagreement = (
        x[0] for x in _summaries(designs, theta, mean[None], cov[None], w.present[-1:])
    )
    return Limit(mean, cov, mse, mspe, designs.mvue_mse(sigma2) / mse, float(disagreement))


def _summaries(designs, theta, mean, cov, present):
    k, d = designs.entities, designs.dim
    wide = cov.reshape(-1, k, d, k, d)
    second = np.einsum("tkxky->tkxy", wide)
    bias = mean - theta
    private = np.stack([x.T @ x for x in designs.private])
    mse = np.einsum("tkxx->tk", second) + (bias**2).sum(2)
    mspe = np.einsum("mxy,tkyx->tkm", private, second) + np.einsum(
        "tkx,mxy,tky->tkm", bias, private, bias, optimize=True
    )
    share = present / np.maximum(present.sum(1, keepdims=True), 1)
    total = np.einsum("tkxx->tk", second) + (mean**2).sum(2)
    centre = np.einsum("tk,tl,tkxlx->t", share, share, wide, optimize=True) + (
        np.einsum("tk,tkx->tx", share, mean) ** 2
    ).sum(1)
    return mse, mspe, (share * total).sum(1) - centre
