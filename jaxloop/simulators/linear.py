"""Linear models of K entities that train on each other's output: moments in closed form,
simulation, sweeps (arXiv 2505.21677).

Every entity k fits theta_tk by weighted least squares, sums of squares weighted (1-alpha) beta on
its private data, (1-alpha)(1-beta) on the public data and alpha who_kj on the synthetic data of
entity j, whose labels entity j's last model wrote with fresh noise; real labels are drawn once and
used again. alpha is 0 at t = 0; a singular problem has its minimum-norm solution. One theta is
behind all real data.

All results are float64 NumPy arrays; 64-bit arithmetic is switched on here and only here.
"""

from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_whole
from jaxloop.core.keys import chain_key
from jaxloop.core.map_chains import map_chains, padded_count
from jaxloop.simulators import linear_forms as forms
from jaxloop.simulators import linear_rows as rows
from jaxloop.simulators.linear_designs import (
    Designs,
    Setting,
    check_unit,
    low_rank_designs,
    setting,
)
from jaxloop.simulators.linear_results import Limit, Moments, Sweep
from jaxloop.simulators.linear_simulation import (
    label_maps,
    replicate_keys,
    simulate_in_batches,
    simulate_replicates,
)

# Of G, above which a form of Gram matrices is refused; a sweep goes to rows above the second.
FORM_CONDITION, SWEEP_CONDITION = 1e6, 1e4
# Of G, above which more than 2e-4 of a simulated fit would be rounding.
SIMULATION_CONDITION = 1e12
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


def closed_form(
    designs: Designs,
    theta: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    sigma2: float = 1.0,
    generations: int,
    mixing: ArrayLike | None = None,
    joins: ArrayLike | None = None,
    form: str = "auto",
) -> Moments:
    """Exact moments of theta_hat for t = 0..T (Theorems 1 and 2 with the transpose and the sigma2
    that the printed version lacks).

    theta [d]; alpha, beta in [0, 1]: numbers, [T+1] per generation, or [T+1, K] / [1, K] per
    entity; mixing [K, K] row-stochastic (default: everyone reads everyone, the paper); joins [K]:
    generation in which an entity first fits (see `linear_designs.setting`). form: "block" (Kd x Kd,
    any mixing), "reduced" (d x d, where all entities read the same mixture) or "auto", which goes
    to the rows themselves where Gram matrices would lose digits (`linear_rows`). Raises ValueError
    where a weight is too small for float64, for weights outside [0, 1], a mixing matrix that is not
    row-stochastic, theta of another length, and form="reduced" where entities read different
    mixtures.
    """
    w, theta, reduced = _checked(
        designs, theta, alpha, beta, sigma2, generations, mixing, joins, form
    )
    by_rows = _by_rows(designs, w, form)
    if by_rows:
        mean, cov = rows.moments(designs, w, theta, sigma2)
    else:
        with jax.enable_x64(True):
            moments = _message_moments if reduced else _block_moments
            mean, cov = moments(
                *_arrays(designs, w, generations), jnp.asarray(theta), jnp.float64(sigma2)
            )
            mean, cov = np.array(mean), np.array(cov)
    radius = _spectral_radius(designs, w, reduced, by_rows)
    mse, mspe, disagreement = _summaries(designs, theta, mean, cov, w.present)
    absent = ~w.present
    mean[absent], mse[absent], mspe[absent] = np.nan, np.nan, np.nan
    wide = np.repeat(absent, designs.dim, axis=1)
    cov[wide[:, :, None] | wide[:, None, :]] = np.nan
    why = _no_limit(designs, w, radius)
    end = None if why else _limit(designs, w, theta, sigma2, reduced, by_rows)
    return Moments(
        mean, cov, mse, mspe, disagreement, designs.mvue_mse(sigma2) / mse, radius, end, why
    )


def limit(
    designs: Designs,
    theta: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    sigma2: float = 1.0,
    mixing: ArrayLike | None = None,
    form: str = "auto",
) -> Limit:
    """Limit of constant weights and designs (Theorem 3). Raises ValueError where rho(Q) >= 1, and
    as `closed_form` does.
    """
    w, theta, reduced = _checked(designs, theta, alpha, beta, sigma2, 1, mixing, None, form)
    by_rows = _by_rows(designs, w, form)
    why = _no_limit(designs, w, _spectral_radius(designs, w, reduced, by_rows))
    if why:
        raise ValueError(f"no limit exists: {why}")
    return _limit(designs, w, theta, sigma2, reduced, by_rows)


def simulate(
    designs: Designs,
    theta: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    sigma2: float = 1.0,
    generations: int,
    replicates: int,
    seed: int,
    mixing: ArrayLike | None = None,
    joins: ArrayLike | None = None,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float64",
) -> np.ndarray:
    """Draws every label and refits every entity in every generation; theta_hat [R, T+1, K, d], NaN
    where an entity has not joined.

    Designs are fixed, so the matrix of each fit is inverted once for all replicates; what is random
    are the labels: those of the real rows once per replicate, those of the synthetic rows in every
    generation. Arguments as `closed_form`; replicate r draws from fold_in(seed, r), whatever the
    number of replicates; batch_size: replicates that run together (default: what a cache holds);
    mesh: devices to share them out over (without one a CPU's cores share them); dtype: "float64" or
    "float32" (the noise itself is drawn in float32, see `linear_simulation.standard_normals`).
    Raises ValueError as `closed_form`, and for weights so small that fits would be rounding.
    """
    w, theta, _ = _checked(designs, theta, alpha, beta, sigma2, generations, mixing, joins, "auto")
    replicates = check_whole("replicates", replicates)
    if batch_size is not None:
        batch_size = check_whole("batch_size", batch_size)
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype={dtype!r}: must be float64 or float32")
    found = rows.condition(designs, w) ** 2
    if found > SIMULATION_CONDITION:
        raise ValueError(
            f"alpha, beta: a fit has a condition number of {found:.1e}, above "
            f"{SIMULATION_CONDITION:.0e} simulated fits are rounding; a positive weight must be "
            "larger (the closed form takes it)"
        )
    with jax.enable_x64(True):
        inverse = np.asarray(_inverses(*_arrays(designs, w, generations)))
        maps = label_maps(designs, w, inverse, theta, sigma2, generations, np.dtype(dtype))
        most = BATCH_BYTES // (
            np.dtype(dtype).itemsize * (generations + 1) * theta.size * designs.entities
        )
        batch = batch_size or 1 << max(0, most.bit_length() - 1)
        if mesh is None:
            out = simulate_in_batches(maps, seed, replicates, generations, batch)
        else:
            keys = replicate_keys(
                chain_key(seed), padded_count(replicates, batch_size=batch, mesh=mesh)
            )
            out = np.asarray(simulate_replicates(maps, keys, generations, batch, mesh))[:replicates]
        out = out.reshape(replicates, generations + 1, designs.entities, designs.dim)
    return out if w.present.all() else np.where(w.present[:, :, None], out, np.nan).astype(dtype)


def sweep(
    designs: Designs,
    theta: ArrayLike,
    *,
    alpha: ArrayLike,
    beta: ArrayLike,
    sigma2: float = 1.0,
    mixing: ArrayLike | None = None,
    batch_size: int = 64,
    mesh: Mesh | None = None,
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
    if not all(map(len, grid)):
        raise ValueError("alpha, beta: a list is empty, a sweep needs one value of each at least")
    batch_size = check_whole("batch_size", batch_size)
    check_unit("alpha", grid[0])
    check_unit("beta", grid[1])

    # What G leaves undetermined depends on which weights are positive: at most nine patterns on any
    # grid.
    def corner(x: np.ndarray) -> np.ndarray:
        return (x > 0).astype(int) + (x == 1).astype(int)

    pairs = [(x, y) for x in (0.0, 0.5, 1.0) for y in (0.0, 0.5, 1.0)]
    corners = [_checked(designs, theta, x, y, sigma2, 1, mixing, None, "auto") for x, y in pairs]
    _, theta, reduced = corners[4]
    null, who = (np.stack([getattr(w, name)[1] for w, _, _ in corners]) for name in ("null", "who"))
    pattern = (3 * corner(grid[0])[:, None] + corner(grid[1])[None, :]).reshape(-1).astype(np.int32)
    alphas, betas = (x.reshape(-1) for x in np.meshgrid(*grid, indexing="ij"))
    # Neighbours on the grid need about as many doublings; dealing them out in turn keeps devices
    # equally busy.
    devices = 1 if mesh is None else mesh.shape["chains"]
    padded = padded_count(len(alphas), batch_size=batch_size, mesh=mesh)
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
            batch_size,
            mesh,
            reduced,
        )
        back = np.argsort(order)[: len(alphas)]
        shape = (len(grid[0]), len(grid[1]))
        radius, mse, disagreement = (np.array(x)[back] for x in out)
    shares = who.max(0)
    for i in np.flatnonzero(rows.conditions(designs, alphas, betas, shares) > SWEEP_CONDITION):
        w = _checked(designs, theta, alphas[i], betas[i], sigma2, 1, mixing, None, "auto")[0]
        radius[i], mse[i], disagreement[i] = _efficiency_by_rows(designs, w, theta, sigma2)
    radius, mse, disagreement = (
        x.reshape(shape + x.shape[1:]) for x in (radius, mse, disagreement)
    )
    return Sweep(
        alpha=grid[0],
        beta=grid[1],
        spectral_radius=radius,
        mse=mse,
        relative_efficiency=designs.mvue_mse(sigma2) / mse,
        disagreement=disagreement,
    )


def _efficiency_by_rows(designs, w, theta, sigma2):
    """(rho(Q), mse [K], disagreement) of the limit, NaN where there is none."""
    rows.check_condition(rows.condition(designs, w))
    radius = _spectral_radius(designs, w, reduced=False, by_rows=True)
    if radius >= forms.SPECTRAL_LIMIT:
        return radius, np.full(designs.entities, np.nan), np.nan
    end = _limit(designs, w, theta, sigma2, reduced=False, by_rows=True)
    return radius, end.mse, end.disagreement


@partial(jax.jit, static_argnames=("batch_size", "mesh", "reduced"))
def _sweep(settings, tables, grams, theta, sigma2, batch_size, mesh, reduced):
    def one(setting):
        alpha, beta, pattern = setting
        null, who = tables[0][pattern], tables[1][pattern]

        def wide(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, who.shape[:1])

        w = forms.Weights(
            wide((1 - alpha) * beta), wide((1 - alpha) * (1 - beta)), wide(alpha), who, null
        )
        return (forms.message_efficiency if reduced else forms.block_efficiency)(
            w, grams, theta, sigma2
        )

    return map_chains(one, settings, batch_size=batch_size, mesh=mesh)


def _checked(
    designs: Designs,
    theta: ArrayLike,
    alpha: ArrayLike,
    beta: ArrayLike,
    sigma2: float,
    generations: int,
    mixing: ArrayLike | None,
    joins: ArrayLike | None,
    form: str,
) -> tuple[Setting, np.ndarray, bool]:
    if not isinstance(designs, Designs):
        raise ValueError(
            f"designs: is of type {type(designs).__name__}; must be `simulators.linear.Designs`, "
            "such as low_rank_designs returns"
        )
    theta = np.asarray(theta, np.float64)
    if theta.shape != (designs.dim,):
        raise ValueError(
            f"theta: shape is {theta.shape}, must be ({designs.dim},), one coefficient per "
            "column of the designs"
        )
    if not np.isfinite(theta).all():
        raise ValueError("theta: holds values that are not finite")
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
    def square(matrices: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack([x.T @ x for x in matrices])

    synthetic = [square(group) for group in designs.synthetic_groups]
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
    def of_generation(w: forms.Weights, synthetic: jax.Array) -> jax.Array:
        return forms.generalised_inverses(w, grams._replace(synthetic=synthetic))

    return jax.vmap(of_generation)(weights, grams.synthetic)


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


def _by_rows(designs: Designs, w: Setting, form: str) -> bool:
    """Whether Gram matrices would lose too many digits, so that moments are computed from rows.

    Raises ValueError where these do not hold either, or the form asked for does not.
    """
    found = rows.condition(designs, w)
    rows.check_condition(found)
    if form != "auto" and found**2 > FORM_CONDITION:
        raise ValueError(
            f"form={form!r}: a fit has a condition number of {found**2:.1e}, above "
            f"{FORM_CONDITION:.0e} only form='auto' holds"
        )
    return form == "auto" and found**2 > rows.GRAM_CONDITION


def _spectral_radius(designs, w, reduced, by_rows):
    """Eigenvalues of Q in the last generation: with one message for all, its non-zero ones are
    those of a d x d matrix.
    """
    if by_rows:
        q = rows.fits_of(designs, w, len(w.a) - 1).q
        return float(np.abs(np.linalg.eigvals(q)).max())
    with jax.enable_x64(True):
        weights, grams = _last(designs, w)
        q, r = (np.asarray(x) for x in _transition(weights, grams, weights))
    matrix = r if reduced else q.reshape(designs.entities * designs.dim, -1)
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def _no_limit(designs: Designs, w: Setting, radius: float) -> str | None:
    if not designs.fixed:
        return "the synthetic designs change with the generation"
    everyone = np.flatnonzero(w.present.all(1))[0] + 1
    if everyone >= w.present.shape[0]:
        return "an entity joins in the last generation"
    if any((x[everyone:] != x[-1:]).any() for x in (w.a, w.b, w.alpha, w.who)):
        return "alpha or beta changes with the generation"
    if radius >= forms.SPECTRAL_LIMIT:
        why = f"the spectral radius of Q is {radius:.6g} and must be below 1"
        cause = rows.absorbed(designs, w)
        return f"{why}: {cause}" if cause else why
    return None


def _limit(designs, w, theta, sigma2, reduced, by_rows):
    if by_rows:
        mean, cov = rows.limit(designs, w, theta, sigma2)
    else:
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
