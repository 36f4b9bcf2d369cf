"""Linear dynamics: against the algorithm written out in NumPy, against least squares on
drawn labels, against printed figures.
"""

import jax
import numpy as np
import pytest
import scipy.linalg

from jaxloop.core import mixing
from jaxloop.core.map_chains import chain_mesh
from jaxloop.simulators import linear, linear_forms
from jaxloop.simulators.linear import Designs, closed_form, low_rank_designs, simulate, sweep

T = 5  # generations of most tests, so that they share compiled programs


def _designs(k=3, d=4, private=2, public=3, synthetic=3, generations=None, seed=0):
    rng = np.random.default_rng(seed)

    def draw(n):
        return tuple(rng.normal(size=(n + i, d)) for i in range(k))

    fakes = (
        draw(synthetic)
        if generations is None
        else tuple(draw(synthetic) for _ in range(generations))
    )
    return Designs(draw(private), rng.normal(size=(public, d)), fakes), rng.normal(size=d)


def _paper(designs, theta, alpha, beta, sigma2, generations, matrix=None):
    """The algorithm with pseudo-inverses, the transpose and sigma2 in place; alpha, beta
    are numbers.
    """
    k, d = designs.entities, designs.dim
    matrix = np.full((k, k), 1 / k) if matrix is None else matrix
    s_private = scipy.linalg.block_diag(*(x.T @ x for x in designs.private))
    s_public = designs.public.T @ designs.public
    sz = scipy.linalg.block_diag(s_private, s_public)
    z = np.concatenate([np.linalg.pinv(x) @ x @ theta for x in (*designs.private, designs.public)])
    means, covs, q = [], [], None
    for t in range(generations + 1):
        a = alpha if t else 0.0
        group = designs.synthetic[0 if designs.fixed else max(t - 1, 0)]
        s_t = scipy.linalg.block_diag(*(x.T @ x for x in group))
        read = np.kron(matrix, np.eye(d)) @ s_t
        mixed = scipy.linalg.block_diag(
            *(sum(matrix[i, j] * group[j].T @ group[j] for j in range(k)) for i in range(k))
        )
        g = (
            (1 - a) * beta * s_private
            + (1 - a) * (1 - beta) * np.kron(np.eye(k), s_public)
            + a * mixed
        )
        inverse = np.linalg.pinv(g, hermitian=True)
        p = (
            (1 - a)
            * inverse
            @ np.hstack([beta * s_private, (1 - beta) * np.kron(np.ones((k, 1)), s_public)])
        )
        q = a * inverse @ read
        if t == 0:
            m, c = p, np.zeros((k * d, k * d))
        else:
            m, c = p + q @ m, q @ (sigma2 * np.linalg.pinv(s_t) + c) @ q.T
        means.append((m @ z).reshape(k, d))
        covs.append(sigma2 * m @ np.linalg.pinv(sz) @ m.T + c)
    return np.array(means), np.array(covs), q


def _least_squares(
    designs, theta, alpha, beta, sigma2, generations, replicates, seed, matrix=None, joins=None
):
    """The experiment itself: np.linalg.lstsq on rows scaled by sqrt(weight), one right-hand side
    per replicate. [R, T+1, K, d]
    """
    rng, k, d = np.random.default_rng(seed), designs.entities, designs.dim
    matrix = np.full((k, k), 1 / k) if matrix is None else matrix
    joins = np.zeros(k, int) if joins is None else joins
    alpha = np.broadcast_to(alpha, (generations + 1, k))
    out = np.full((replicates, generations + 1, k, d), np.nan)

    def noisy(x, w):
        return x @ np.broadcast_to(w, (replicates, d)).T + np.sqrt(sigma2) * rng.normal(
            size=(len(x), replicates)
        )

    y, y_public = [noisy(x, theta) for x in designs.private], noisy(designs.public, theta)
    for t in range(generations + 1):
        group = designs.synthetic[0 if designs.fixed else max(t - 1, 0)]
        readable = joins < t
        written = [noisy(x, out[:, t - 1, j]) if readable[j] else None for j, x in enumerate(group)]
        for i in np.flatnonzero(joins <= t):
            share = matrix[i] * readable
            a = alpha[t, i] if share.sum() else 0.0
            parts = [
                (designs.private[i], y[i], (1 - a) * beta),
                (designs.public, y_public, (1 - a) * (1 - beta)),
            ]
            parts += [
                (group[j], written[j], a * share[j] / share.sum())
                for j in range(k)
                if share.sum() and share[j]
            ]
            rows, labels = (
                np.concatenate([np.sqrt(w) * part[n] for *part, w in parts]) for n in (0, 1)
            )
            out[:, t, i] = np.linalg.lstsq(rows, labels, rcond=1e-10)[0].T
    return out


@pytest.mark.parametrize(
    "alpha,beta", [(0.5, 0.5), (0.9, 0.1), (0.0, 1.0), (1.0, 0.3), (0.3, 0.0), (0.7, 1.0)]
)
@pytest.mark.parametrize("per_generation", [False, True])
def test_moments_equal_the_corrected_theorems(alpha, beta, per_generation):
    designs, theta = _designs(generations=T if per_generation else None)
    ours = closed_form(designs, theta, alpha=alpha, beta=beta, sigma2=0.7, generations=T)
    mean, cov, q = _paper(designs, theta, alpha, beta, 0.7, T)
    np.testing.assert_allclose(ours.mean, mean, atol=1e-9)
    np.testing.assert_allclose(ours.cov, cov, atol=1e-9 * max(1, np.abs(cov).max()))
    assert ours.spectral_radius == pytest.approx(np.abs(np.linalg.eigvals(q)).max(), abs=1e-10)
    bias = mean - theta
    blocks = cov.reshape(T + 1, 3, 4, 3, 4)
    for k in range(3):
        np.testing.assert_allclose(
            ours.mse[:, k],
            (bias[:, k] ** 2).sum(1) + np.trace(blocks[:, k, :, k], axis1=1, axis2=2),
            rtol=1e-8,
        )
        for m, x in enumerate(designs.private):
            second = blocks[:, k, :, k] + bias[:, k, :, None] * bias[:, k, None, :]
            np.testing.assert_allclose(
                ours.mspe[:, k, m], np.einsum("nx,txy,ny->t", x, second, x), rtol=1e-8
            )


@pytest.mark.parametrize("who", ["complete", "weighted"])
def test_reduced_form_equals_block_form(who):
    designs, theta = _designs()
    matrix = None if who == "complete" else np.tile([0.2, 0.3, 0.5], (3, 1))
    options = dict(
        alpha=np.array([[0.3, 0.7, 0.0]]), beta=0.4, sigma2=1.3, generations=T, mixing=matrix
    )
    block, reduced = (
        closed_form(designs, theta, form=form, **options) for form in ("block", "reduced")
    )
    for name in ("mean", "cov", "mse", "mspe", "disagreement", "relative_efficiency"):
        np.testing.assert_allclose(
            getattr(reduced, name), getattr(block, name), rtol=1e-10, atol=1e-10, err_msg=name
        )
        if name in linear.Limit._fields:
            np.testing.assert_allclose(
                getattr(reduced.limit, name),
                getattr(block.limit, name),
                rtol=1e-10,
                atol=1e-10,
                err_msg=name,
            )
    assert reduced.spectral_radius == pytest.approx(block.spectral_radius, abs=1e-12)


def test_theorem_2_mean_from_a_rank_deficient_start():
    """E theta_t = (I - Q^t (I - G_0 G_0^+)) (1 (x) theta): bias only where generation 0 was
    singular.
    """
    designs, theta = _designs(private=1, public=1)
    ours = closed_form(designs, theta, alpha=0.5, beta=0.5, generations=T)
    _, _, q = _paper(designs, theta, 0.5, 0.5, 1.0, T)
    g0 = scipy.linalg.block_diag(
        *(0.5 * x.T @ x + 0.5 * designs.public.T @ designs.public for x in designs.private)
    )
    start = np.eye(12) - g0 @ np.linalg.pinv(g0, hermitian=True)
    assert np.abs(start).max() > 0.1
    for t in range(T + 1):
        expected = np.tile(theta, 3) - np.linalg.matrix_power(q, t) @ start @ np.tile(theta, 3)
        np.testing.assert_allclose(ours.mean[t].reshape(-1), expected, atol=1e-10)


def test_limit_is_reached_and_solves_the_lyapunov_equation():
    designs, theta = _designs()
    ours = closed_form(designs, theta, alpha=0.6, beta=0.5, sigma2=2.0, generations=400)
    for name in ("mean", "cov", "mse", "mspe", "relative_efficiency", "disagreement"):
        np.testing.assert_allclose(
            getattr(ours, name)[-1], getattr(ours.limit, name), rtol=1e-8, atol=1e-10, err_msg=name
        )
    _, _, q = _paper(designs, theta, 0.6, 0.5, 2.0, 1)
    s = scipy.linalg.block_diag(*(x.T @ x for x in designs.synthetic[0]))
    noise = 2.0 * q @ np.linalg.pinv(s) @ q.T
    spread = scipy.linalg.solve_discrete_lyapunov(q, noise)
    with jax.enable_x64(True):
        resolvent, v, last = linear_forms.doubling(jax.numpy.asarray(q), jax.numpy.asarray(noise))
        radius = linear_forms.spectral_radius(*last)
    np.testing.assert_allclose(v, spread, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(resolvent, np.linalg.inv(np.eye(12) - q), rtol=1e-9, atol=1e-12)
    assert float(radius) == pytest.approx(np.abs(np.linalg.eigvals(q)).max(), abs=1e-11)


@pytest.mark.parametrize(
    "matrix,radius",
    [
        (np.diag([0.3, 0.3, 0.1]), 0.3),
        ([[0, -0.5], [0.5, 0]], 0.5),
        ([[0.2, 5], [0, 0.2]], 0.2),
        ([[0, 1], [0, 0]], 0),
        (np.diag([3.0, -3.0]), 3),
    ],
)
def test_spectral_radius_of_repeated_complex_defective_nilpotent_and_large(matrix, radius):
    with jax.enable_x64(True):
        matrix = jax.numpy.asarray(np.asarray(matrix, float))
        _, _, last = linear_forms.doubling(matrix, matrix)
        assert float(linear_forms.spectral_radius(*last)) == pytest.approx(radius, abs=1e-9)


def test_synthetic_data_can_diverge():
    """An exact counterexample: rho(Q) = 1.15 and the variance explodes; the same
    private data with equal synthetic designs settle.
    """
    roots = [
        np.linalg.cholesky(np.array(s) / 3).T
        for s in ([[13.0, -28], [-28, 61]], [[61.0, -28], [-28, 13]])
    ]
    bad = Designs(
        tuple(roots),
        None,
        (np.array([[np.sqrt(2), 0], [0, 0]]), np.array([[0, 0], [0, np.sqrt(2)]])),
    )
    ours = closed_form(bad, np.zeros(2), alpha=0.5, beta=1.0, generations=30)
    assert ours.spectral_radius == pytest.approx(1.15, abs=0.005)
    assert ours.limit is None and "spectral radius of Q is 1.1" in ours.no_limit
    np.testing.assert_allclose(
        ours.mse[[0, 10, 20, 30], :].sum(1), [49, 628, 11143, 185864], rtol=0.02
    )
    good = Designs(tuple(roots), None, (np.eye(2), np.eye(2)))
    assert closed_form(
        good, np.zeros(2), alpha=0.5, beta=1.0, generations=30
    ).spectral_radius == pytest.approx(0.85, abs=0.005)
    with pytest.raises(
        ValueError,
        match="no limit exists: the spectral radius of Q is 1.1[0-9]+ and must be below 1",
    ):
        linear.limit(bad, np.zeros(2), alpha=0.5, beta=1.0)


def test_isotropic_closed_form():
    """Section 1.7: MSE and disagreement of K entities with scaled orthogonal designs."""
    k, d, n, public, m, alpha, beta, sigma2 = 4, 3, 5.0, 7.0, 2.0, 0.4, 0.3, 1.7

    def eye(s):
        return np.sqrt(s) * np.eye(d)

    ours = linear.limit(
        Designs((eye(n),) * k, eye(public), (eye(m),) * k),
        np.ones(d),
        alpha=alpha,
        beta=beta,
        sigma2=sigma2,
    )
    a, b, c = (1 - alpha) * beta * n, (1 - alpha) * (1 - beta) * public, alpha * m
    w, q = a / (a + b), c / (a + b + c)
    mse = (
        (w**2 / n) * (1 / k + (1 - 1 / k) * (1 - q) ** 2)
        + (1 - w) ** 2 / public
        + q**2 / (m * k * (1 - q**2))
    )
    np.testing.assert_allclose(ours.mse, d * sigma2 * mse, rtol=1e-10)
    assert ours.disagreement == pytest.approx(
        d * sigma2 * (w**2 / n) * (1 - 1 / k) * (1 - q) ** 2, rel=1e-10
    )


def test_alpha_one_grows_linearly_and_k_times_slower():
    designs, theta = _designs()
    ours = closed_form(designs, theta, alpha=1.0, beta=0.5, sigma2=1.5, generations=T)
    average = sum(x.T @ x for x in designs.synthetic[0]) / 3
    np.testing.assert_allclose(
        np.diff(ours.mse[1:], axis=0), 1.5 / 3 * np.trace(np.linalg.inv(average)), rtol=1e-9
    )
    np.testing.assert_allclose(ours.disagreement[1:], 0, atol=1e-10)
    assert ours.limit is None and ours.spectral_radius == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("kind", ["complete", "ring", "star", "blocks", "self_only"])
def test_moments_of_least_squares_on_drawn_labels(kind):
    """Nothing shared with the closed form: lstsq of NumPy, rank-deficient start, unequal alpha, a
    late entity.
    """
    designs, theta = _designs(private=1, public=1, synthetic=2)
    matrix, joins, alpha = mixing.named(kind, 3), np.array([0, 2, 0]), np.array([[0.5, 0.8, 0.3]])
    ours = closed_form(
        designs, theta, alpha=alpha, beta=0.6, sigma2=0.5, generations=T, mixing=matrix, joins=joins
    )
    theirs = _least_squares(designs, theta, alpha, 0.6, 0.5, T, 6000, 3, matrix, joins)
    drawn = simulate(
        designs,
        theta,
        alpha=alpha,
        beta=0.6,
        sigma2=0.5,
        generations=T,
        mixing=matrix,
        joins=joins,
        replicates=6000,
        seed=3,
    )
    assert np.isnan(ours.mean[:2, 1]).all() and np.isfinite(ours.mean[2:]).all()
    for sample in (theirs, drawn):
        np.testing.assert_array_equal(np.isnan(sample).any(0), np.isnan(ours.mean))
        errors = ((sample - theta) ** 2).sum(-1)
        z = (errors.mean(0) - ours.mse) / (errors.std(0) / np.sqrt(len(errors)))
        assert np.nanmax(np.abs(z)) < 4.5
        z = (sample.mean(0) - ours.mean) / (sample.std(0) / np.sqrt(len(sample)))
        assert np.nanmax(np.abs(z)) < 4.5
        flat = sample[:, -1].reshape(len(sample), -1)
        scale = np.sqrt(np.diag(ours.cov[-1]))
        assert np.abs((np.cov(flat.T) - ours.cov[-1]) / scale[:, None] / scale).max() < 6 / np.sqrt(
            len(sample)
        )


def test_self_only_is_k_separate_chains():
    designs, theta = _designs()
    together = closed_form(
        designs, theta, alpha=0.5, beta=0.5, generations=T, mixing=mixing.self_only(3)
    )
    for k in range(3):
        alone = Designs(designs.private[k : k + 1], designs.public, designs.synthetic[0][k : k + 1])
        np.testing.assert_allclose(
            together.mse[:, k],
            closed_form(alone, theta, alpha=0.5, beta=0.5, generations=T).mse[:, 0],
            rtol=1e-10,
        )
        across = together.cov.reshape(T + 1, 3, 4, 3, 4)[:, k, :, (k + 1) % 3]
        public_only = (
            closed_form(designs, theta, alpha=0.0, beta=0.0, generations=T)
            .cov[0]
            .reshape(3, 4, 3, 4)[0, :, 1]
        )
        assert np.abs(across).max() > 0 and np.linalg.norm(across[-1]) < np.linalg.norm(public_only)


def test_simulation_does_not_depend_on_neighbours_or_devices():
    designs, theta = _designs(d=3)
    options = dict(alpha=np.linspace(0, 0.9, 4), beta=0.5, generations=3, seed=11, batch_size=8)
    many = simulate(designs, theta, replicates=21, **options)
    np.testing.assert_array_equal(simulate(designs, theta, replicates=3, **options), many[:3])
    np.testing.assert_allclose(
        simulate(designs, theta, replicates=21, mesh=chain_mesh(), **options), many, rtol=1e-10
    )
    single = simulate(designs, theta, replicates=21, dtype="float32", **options)
    assert single.dtype == np.float32 and single.shape == many.shape
    assert jax.numpy.zeros(1).dtype == np.float32, "64-bit arithmetic must not leak out"


@pytest.mark.optimised  # devices are compared to ten digits
def test_sweep_equals_single_settings_and_devices_agree():
    designs, theta = _designs(k=2, private=1, public=2)
    grid = dict(alpha=[0.0, 0.001, 0.4, 0.95, 1.0], beta=[0.0, 0.3, 1.0])
    for matrix in (None, mixing.ring(2)):
        ours = sweep(designs, theta, mixing=matrix, batch_size=4, **grid)
        if matrix is None:
            spread = sweep(designs, theta, batch_size=4, mesh=chain_mesh(), **grid)
            for name, values in ours._asdict().items():
                np.testing.assert_allclose(getattr(spread, name), values, rtol=1e-10, atol=1e-15)
        for i, alpha in enumerate(grid["alpha"]):
            for j, beta in enumerate(grid["beta"]):
                one = closed_form(
                    designs, theta, alpha=alpha, beta=beta, generations=1, mixing=matrix
                )
                assert ours.spectral_radius[i, j] == pytest.approx(one.spectral_radius, abs=1e-10)
                # Private or public rows alone do not span the four features: without the other kind
                # nothing real pins theta down and rho = 1.
                diverges = alpha == 1 or (alpha > 0 and beta in (0.0, 1.0))
                assert (one.limit is None) == np.isnan(ours.mse[i, j]).all() == diverges
                if one.limit:
                    np.testing.assert_allclose(ours.mse[i, j], one.limit.mse, rtol=1e-8)
                    np.testing.assert_allclose(
                        ours.disagreement[i, j], one.limit.disagreement, rtol=1e-8, atol=1e-10
                    )


# Section 1.8, digitised: relative efficiency at alpha .001, .103, ..., .99 of models 1 to 4, one in
# a line, for beta = .1, .5, .9.
FIGURE_2 = np.loadtxt(
    """
    0.149 0.295 0.331 0.341 0.339 0.325 0.301 0.262 0.202 0.109 0.017
    0.122 0.334 0.363 0.366 0.356 0.338 0.309 0.266 0.203 0.109 0.017
    0.075 0.306 0.339 0.348 0.344 0.329 0.303 0.263 0.202 0.109 0.017
    0.056 0.303 0.340 0.348 0.342 0.327 0.300 0.260 0.200 0.108 0.017
    0.213 0.420 0.536 0.597 0.623 0.621 0.590 0.525 0.415 0.230 0.035
    0.168 0.465 0.575 0.627 0.646 0.639 0.605 0.538 0.423 0.233 0.035
    0.098 0.461 0.561 0.616 0.639 0.635 0.603 0.536 0.423 0.233 0.035
    0.095 0.433 0.558 0.612 0.630 0.621 0.587 0.522 0.413 0.230 0.035
    0.199 0.542 0.609 0.603 0.568 0.519 0.459 0.388 0.296 0.161 0.024
    0.168 0.611 0.653 0.636 0.595 0.540 0.475 0.397 0.300 0.161 0.024
    0.109 0.565 0.610 0.600 0.570 0.526 0.470 0.399 0.303 0.163 0.024
    0.096 0.532 0.599 0.598 0.567 0.518 0.458 0.385 0.293 0.160 0.024
    """.splitlines()
).reshape(3, 4, 11)


def test_relative_efficiency_figure():
    """The setting that was inferred, averaged over designs, against the digitised figure; and
    where the optimum lies on a fine grid.
    """
    grid = np.linspace(0.001, 0.99, 30)[[0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29]]
    curves = np.mean(
        [
            sweep(
                low_rank_designs(s), np.zeros(15), alpha=grid, beta=[0.1, 0.5, 0.9]
            ).relative_efficiency.mean(2)
            for s in range(6)
        ],
        axis=0,
    )
    rms = np.sqrt(((curves - FIGURE_2.mean(1).T)[1:] ** 2).mean())
    assert rms < 0.03
    fine = sweep(
        low_rank_designs(0),
        np.zeros(15),
        alpha=np.linspace(0.02, 0.98, 25),
        beta=np.linspace(0.02, 0.98, 25),
        mesh=chain_mesh(),
    )
    alpha, beta, best = fine.best()
    assert 0.25 < alpha < 0.5 and 0.55 < beta < 0.85
    centre = fine.relative_efficiency[12, 12].mean()
    assert fine.alpha[12] == fine.beta[12] == 0.5 and best > centre


D, THETA = _designs()


@pytest.mark.parametrize(
    "call,sentence",
    [
        (
            lambda: closed_form(D, THETA, alpha=1.2, beta=0.5, generations=2),
            r"alpha=1.2: must lie in \[0, 1\]",
        ),
        (
            lambda: closed_form(D, THETA, alpha=0.5, beta=[0.1, -0.2, 0.1], generations=2),
            r"beta=-0.2: must lie in \[0, 1\]",
        ),
        (
            lambda: closed_form(D, THETA, alpha=np.nan, beta=0.5, generations=2),
            "alpha=nan: must lie",
        ),
        (
            lambda: closed_form(D, THETA, alpha=[0.5, 0.5], beta=0.5, generations=4),
            r"alpha: shape is \(2,\), must be \(\) or \(5,\) per generation",
        ),
        (
            lambda: closed_form(D, THETA, alpha=0.5, beta=0.5, generations=0),
            "generations=0: must be an integer of at least 1",
        ),
        (
            lambda: closed_form(D, THETA[:2], alpha=0.5, beta=0.5, generations=1),
            r"theta: shape is \(2,\), must be \(4,\)",
        ),
        (
            lambda: closed_form(D, THETA, alpha=0.5, beta=0.5, sigma2=-1, generations=1),
            "sigma2=-1: must be a finite number",
        ),
        (
            lambda: closed_form(
                D, THETA, alpha=0.5, beta=0.5, generations=1, mixing=np.ones((3, 3))
            ),
            "row-stochastic",
        ),
        (
            lambda: closed_form(D, THETA, alpha=0.5, beta=0.5, generations=1, joins=[0, 0]),
            "joins=.*one per entity",
        ),
        (
            lambda: closed_form(
                D, THETA, alpha=0.5, beta=0.5, generations=1, mixing=np.eye(3), form="reduced"
            ),
            "only the block form",
        ),
        (
            lambda: closed_form(D, THETA, alpha=0.5, beta=0.5, generations=1, form="dense"),
            "form='dense': must be auto",
        ),
        (lambda: sweep(D, THETA, alpha=[0.5, 1.5], beta=[0.5]), r"alpha=1.5: must lie in \[0, 1\]"),
        (lambda: sweep(D, THETA, alpha=[[0.5]], beta=[0.5]), "a sweep takes two lists"),
        (
            lambda: simulate(D, THETA, alpha=0.5, beta=0.5, generations=1, replicates=0, seed=0),
            "replicates=0",
        ),
        (
            lambda: simulate(
                D, THETA, alpha=0.5, beta=0.5, generations=1, replicates=4, seed=0, batch_size=-1
            ),
            "batch_size=-1: must be an integer of at least 1",
        ),
        (
            lambda: closed_form(D, THETA * np.nan, alpha=0.5, beta=0.5, generations=1),
            "theta: holds values that are not finite",
        ),
        (
            lambda: closed_form([D.private], THETA, alpha=0.5, beta=0.5, generations=1),
            "designs: is of type list; must be",
        ),
        (lambda: sweep(D, THETA, alpha=[], beta=[0.5]), "alpha, beta: a list is empty"),
        (lambda: sweep(D, THETA, alpha=[1.0], beta=[0.5]).best(), "no setting of the sweep has a"),
        (
            lambda: linear.low_rank_designs(0, public=-1),
            "public=-1: must be an integer of at least 0",
        ),
        (
            lambda: simulate(
                D, THETA, alpha=0.5, beta=0.5, generations=1, replicates=1, seed=0, dtype="f8"
            ),
            "dtype='f8'",
        ),
        (
            lambda: Designs((np.ones((2, 3)), np.ones((2, 4)))),
            "private: a design has 4 columns, all must have the 3",
        ),
        (lambda: Designs((np.ones((2, 3)),), np.ones((2, 4))), "public: a design has 4 columns"),
        (
            lambda: Designs((np.ones((2, 3)),), None, (np.ones((2, 2)),)),
            "synthetic: a design has 2 columns",
        ),
        (
            lambda: Designs((np.ones((2, 3)),) * 2, None, (np.ones((2, 3)),)),
            "synthetic: 1 matrices for 2 entities",
        ),
        (lambda: Designs(()), "private: holds no matrix"),
        (lambda: Designs((np.ones(3),)), r"private: a design has shape \(3,\)"),
        (lambda: Designs((np.full((2, 2), np.inf),)), "not finite"),
        (
            lambda: closed_form(
                _designs(generations=2)[0], THETA, alpha=0.5, beta=0.5, generations=3
            ),
            "given for 2 generations only",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_why_there_is_no_limit():
    varying = closed_form(D, THETA, alpha=[0, 0.5, 0.6, 0.6, 0.6, 0.6], beta=0.5, generations=T)
    assert varying.limit is None and varying.no_limit == "alpha or beta changes with the generation"
    assert (
        "synthetic designs change"
        in closed_form(
            _designs(generations=T)[0], THETA, alpha=0.5, beta=0.5, generations=T
        ).no_limit
    )
    assert (
        "joins in the last"
        in closed_form(D, THETA, alpha=0.5, beta=0.5, generations=T, joins=[0, 0, T]).no_limit
    )
    late = closed_form(D, THETA, alpha=0.5, beta=0.5, generations=T, joins=[0, 0, 1])
    np.testing.assert_allclose(
        late.limit.mse, linear.limit(D, THETA, alpha=0.5, beta=0.5).mse, rtol=1e-12
    )
