"""Every closed form against a simulation: the engine's chains where a family exists, NumPy where
the formula is about something else.
"""

import numpy as np
import pytest

from jaxloop.recursion import workflow as wf
from jaxloop.simulators import linear
from jaxloop.simulators.discrete import bernoulli_family, discrete_family, poisson_family
from jaxloop.simulators.family import run
from jaxloop.simulators.gaussian import gaussian_family
from jaxloop.simulators.kde import kde_family
from jaxloop.simulators.regression import regression_family
from jaxloop.studies.theory import closed_forms, isotropic


def agrees(samples, expected, tolerance=0.0):
    """Mean over replicates [R, n] within 4.5 standard errors of expected [n], beyond a relative
    tolerance of the formula.
    """
    samples, expected = np.asarray(samples), np.asarray(expected)
    se = samples.std(0, ddof=1) / np.sqrt(len(samples))
    away = np.maximum(np.abs(samples.mean(0) - expected) - tolerance * np.abs(expected), 0)
    assert (away <= 4.5 * se + 1e-12).all(), (samples.mean(0), expected, se)


@pytest.fixture(scope="module")
def design():
    return np.random.default_rng(0).normal(size=(12, 3))


def test_least_squares_replace_and_accumulate_on_one_design(design):
    trace = np.trace(np.linalg.inv(design.T @ design))
    family = regression_family([1.0, -2.0, 0.5], sigma=1.5, design=design)
    for flow, formula in (
        (wf.replace(12), closed_forms.ols_replace),
        (wf.accumulate(12), closed_forms.ols_accumulate),
    ):
        out = run(family, flow, generations=5, replicates=3000, seed=1)["error"]
        agrees(out, formula(np.arange(1, 7), trace=trace, sigma2=2.25))


def test_least_squares_accumulate_on_fresh_designs():
    out = run(
        regression_family([1.0, 0.0]), wf.accumulate(10), generations=4, replicates=3000, seed=2
    )["error"]
    agrees(out, closed_forms.ols_accumulate_fresh(np.arange(1, 6), d=2, samples=10))
    assert (
        closed_forms.ols_accumulate_fresh(np.arange(1, 400), d=2, samples=10)
        <= np.pi**2 / 6 * closed_forms.wishart_trace(2, 10)
    ).all()


def test_least_squares_replace_multiple(design):
    """Fit i sees i sets of labels of the last model on the same design, so that their mean has i
    times less noise.
    """
    rng, pinv = np.random.default_rng(3), np.linalg.pinv(design)
    errors, w = [], np.zeros((20000, 3))
    for i in range(1, 6):
        w = w + rng.normal(size=(20000, 12)) / np.sqrt(i) @ pinv.T
        errors.append((w**2).sum(1))
    agrees(
        np.array(errors).T,
        closed_forms.ols_replace_multiple(
            np.arange(1, 6), trace=np.trace(np.linalg.inv(design.T @ design))
        ),
    )


def test_wishart_trace():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20000, 14, 3))
    agrees(
        np.trace(np.linalg.inv(np.einsum("rnx,rny->rxy", x, x)), axis1=1, axis2=2)[:, None],
        [closed_forms.wishart_trace(3, 14)],
    )


def _solve(gram, right):
    return np.linalg.solve(gram, right[:, :, None])[:, :, 0]


def _ridge_errors(rng, generators, scales, w0, lam, samples, first, s2, s02, replicates):
    w = np.tile(w0, (replicates, 1))
    for step in range(generators + 1):
        rows, noise, penalty = (samples, s2, lam) if step == generators else (first, s02, 0.0)
        x = rng.normal(size=(replicates, rows, len(w0))) * np.sqrt(scales)
        y = np.einsum("rnx,rx->rn", x, w) + np.sqrt(noise) * rng.normal(size=(replicates, rows))
        gram = np.einsum("rnx,rny->rxy", x, x, optimize=True) / rows + penalty * np.eye(len(w0))
        w = _solve(gram, np.einsum("rnx,rn->rx", x, y) / rows)
    return (scales * (w - w0) ** 2).sum(1, keepdims=True)


@pytest.mark.parametrize("generators,lam", [(0, 0.3), (2, 0.3), (3, 0.0)])
def test_ridge_after_generators(generators, lam):
    """Asymptotic formulas, on the scale where they are 0.1-4% off."""
    rng = np.random.default_rng(5)
    d, samples, first = 60, 120, 150
    scales, w0 = np.geomspace(2, 0.2, d), rng.normal(size=d) / np.sqrt(d)
    ours = closed_forms.ridge(
        generators,
        covariance=scales,
        coefficients=w0,
        ridge=lam,
        samples=samples,
        first_samples=first,
        sigma2=0.25,
        first_sigma2=0.5,
    )
    drawn = _ridge_errors(rng, generators, scales, w0, lam, samples, first, 0.25, 0.5, 150)
    agrees(drawn, [ours.error], tolerance=0.04)
    assert ours.error == pytest.approx(ours.bias + ours.variance + ours.synthetic)
    df1 = (scales / (scales + ours.kappa)).sum()
    assert ours.kappa - lam == pytest.approx(ours.kappa * df1 / samples, abs=1e-10)
    if lam == 0:
        # Theorem 4.1 and eq. 23: least squares on the labels of least-squares generators.
        phi, first_phi = d / samples, d / first
        noise = 0.25 * phi / (1 - phi) + generators * 0.5 * first_phi / (1 - first_phi)
        assert ours.error == pytest.approx(noise, rel=1e-9)


def test_ridge_isotropic_form():
    """Section 4, item 2: rho = phi0/(1-phi0) [1/(1+k)^2 + phi k^2 / ((1+k)^2 ((1+k)^2 - phi))]."""
    d, samples, first = 30, 50, 70
    ours = closed_forms.ridge(
        1,
        covariance=np.ones(d),
        coefficients=np.zeros(d),
        ridge=0.4,
        samples=samples,
        first_samples=first,
        sigma2=1,
        first_sigma2=1,
    )
    k, phi, phi0 = ours.kappa, d / samples, d / first
    assert ours.synthetic == pytest.approx(
        phi0 / (1 - phi0) * (1 / (1 + k) ** 2 + phi * k**2 / (1 + k) ** 2 / ((1 + k) ** 2 - phi)),
        rel=1e-10,
    )


def test_overparametrised_generators_forget():
    rng, d, rows = np.random.default_rng(6), 60, (30, 60, 45)
    w, norms = rng.normal(size=(200, d)), []
    start = (w**2).sum(1)
    for t in rows:
        if t < d:
            x = rng.normal(size=(200, t, d))
            w = np.einsum(
                "rnx,rn->rx",
                x,
                _solve(np.einsum("rnx,rmx->rnm", x, x), np.einsum("rnx,rx->rn", x, w)),
            )
        norms.append((w**2).sum(1) / start)
    agrees(np.transpose(norms), closed_forms.overparametrised_norm([d / t for t in rows]))


@pytest.mark.parametrize("unbiased", [True, False])
def test_gaussian_replace_chain(unbiased):
    n, fits = 6, np.arange(1, 8)
    out = run(
        gaussian_family(unbiased=unbiased), wf.replace(n), generations=6, replicates=20000, seed=7
    )
    expected = closed_forms.gaussian_replace(fits, n=n, unbiased=unbiased)
    agrees(out["var"][:, :, 0], expected.variance)
    agrees(out["mean"][:, :, 0] ** 2, expected.mean_variance)
    agrees(out["w2"], expected.w2)
    if unbiased:
        assert closed_forms.w2_first_order([500] * 7) == pytest.approx(
            closed_forms.gaussian_replace(fits, n=500).w2, rel=0.02
        )
        points = out["mean"][:, :, 0] ** 2 + out["var"][:, :, 0]
        agrees(points, closed_forms.data_variance([n] * 7)[1:])
    deviations = np.sqrt(out["var"][:, :, 0])
    for threshold in (0.3, 1.0):
        assert (
            (deviations > threshold).mean(0)
            <= closed_forms.collapse_probability(np.arange(7), n=n, threshold=threshold)
        ).all()


def test_gaussian_accumulate_and_its_limit():
    n = 10
    out = run(
        gaussian_family(unbiased=False), wf.accumulate(n), generations=7, replicates=6000, seed=8
    )
    expected = closed_forms.accumulate_variance(np.arange(1, 9), n=n)
    agrees(out["var"][:, :, 0], expected)
    agrees(out["mean"][:, :, 0] ** 2, 1 - expected)
    assert (
        closed_forms.accumulate_variance(100_000, n=n)
        == pytest.approx(closed_forms.accumulate_limit(n), rel=1e-5)
        == pytest.approx(0.843, abs=1e-3)
    )


def test_gaussian_accumulate_subsample():
    n = 10
    out = run(
        gaussian_family(unbiased=False),
        wf.accumulate_subsample(n),
        generations=7,
        replicates=8000,
        seed=9,
    )
    expected = closed_forms.accumulate_subsample(8, n=n)
    agrees(out["var"][:, :, 0], expected.variance)
    agrees(out["mean"][:, :, 0] ** 2, expected.mean_error)
    assert closed_forms.accumulate_subsample(100_000, n=n).variance[-1] == pytest.approx(
        0.739, abs=1e-3
    )


def test_drift_of_counts():
    n, fits = 8, np.arange(1, 6)
    p = np.array([0.5, 0.3, 0.2])
    # In parts: XLA computes what is the same in every chain while it compiles, once for each chain
    # of a part, slowly.
    out = run(
        discrete_family(p), wf.replace(n), generations=4, replicates=20000, seed=10, batch_size=500
    )
    agrees(
        out["heterozygosity"], (1 - (p**2).sum()) * closed_forms.replace_heterozygosity(fits, n=n)
    )
    out = run(
        discrete_family(p),
        wf.accumulate(n),
        generations=4,
        replicates=6000,
        seed=10,
        batch_size=500,
    )
    agrees(out["heterozygosity"], (1 - (p**2).sum()) * closed_forms.accumulate_variance(fits, n=n))
    out = run(bernoulli_family(0.3), wf.replace(n), generations=4, replicates=20000, seed=11)
    agrees((out["p"] - 0.3) ** 2, closed_forms.bernoulli_variance(fits, p=0.3, n=n))
    out = run(poisson_family(2.0), wf.replace(n), generations=4, replicates=2500, seed=12)
    agrees((out["rate"] - 2.0) ** 2, closed_forms.poisson_variance(fits, rate=2.0, n=n))


def test_kernel_density_chain():
    out = run(
        kde_family(bandwidth=0.4, heldout=0), wf.replace(9), generations=5, replicates=8000, seed=13
    )
    agrees(out["var"][:, :, 0], closed_forms.kde_variance(np.arange(1, 7), n=9, bandwidth=0.4))


def test_fresh_real_data_and_the_golden_ratio():
    rng, weights = np.random.default_rng(14), np.array([0.3, closed_forms.GOLDEN_WEIGHT, 0.9])
    mean = np.zeros((20000, 3))
    for _ in range(60):
        mean = weights * rng.normal(size=mean.shape) + (1 - weights) * (
            mean + rng.normal(size=mean.shape)
        )
    agrees(mean**2, closed_forms.fresh_real_variance(weights))
    grid = np.linspace(0.05, 1, 2000)
    values = closed_forms.fresh_real_variance(grid)
    assert grid[values.argmin()] == pytest.approx(
        closed_forms.GOLDEN_WEIGHT, abs=1e-3
    ) and values.min() == pytest.approx(closed_forms.GOLDEN_WEIGHT, abs=1e-6)


def test_contraction_of_one_entity_with_equal_designs():
    x = np.random.default_rng(15).normal(size=(6, 3))
    for ratio in (0.1, 0.4, 2.0):
        found = linear.closed_form(
            linear.Designs((x,), x, (x,)),
            np.ones(3),
            alpha=ratio / (1 + ratio),
            beta=0.5,
            generations=1,
        )
        assert found.spectral_radius == pytest.approx(
            closed_forms.contraction_exact(ratio), rel=1e-10
        )
        if ratio < 0.5:
            assert (
                closed_forms.contraction_bound(ratio, convexity=1.0)
                == pytest.approx(ratio / (1 - ratio))
                and ratio / (1 - ratio) > found.spectral_radius
            )
    assert closed_forms.contraction_exact(np.inf) == 1.0
    assert closed_forms.contraction_bound(
        0.2, convexity=2.0, smoothness=1.0, distance=0.5
    ) == pytest.approx(0.5 / (2 - 0.5))


@pytest.mark.parametrize("entities,alpha,beta", [(4, 0.4, 0.3), (1, 0.5, 1.0), (3, 0.0, 0.0)])
def test_isotropic_designs(entities, alpha, beta):
    private, public, synthetic = (np.sqrt(scale) * np.eye(2) for scale in (5.0, 7.0, 2.0))
    found = linear.limit(
        linear.Designs((private,) * entities, public, (synthetic,) * entities),
        np.ones(2),
        alpha=alpha,
        beta=beta,
        sigma2=1.7,
    )
    ours = isotropic.limit(
        isotropic.Setting(
            entities=entities,
            d=2,
            private=5,
            public=7,
            synthetic=2,
            alpha=alpha,
            beta=beta,
            sigma2=1.7,
        )
    )
    np.testing.assert_allclose(found.mse, ours.mse, rtol=1e-10)
    assert found.disagreement == pytest.approx(ours.disagreement, rel=1e-9, abs=1e-12)


def test_best_share_of_synthetic_data():
    best = isotropic.best_q(entities=4, private=5, synthetic=2, weight=1.0)
    alphas = np.linspace(0.001, 0.99, 4001)
    values = [
        isotropic.limit(
            isotropic.Setting(entities=4, d=1, private=5, public=7, synthetic=2, alpha=a, beta=1.0)
        )
        for a in alphas
    ]
    assert values[np.argmin([v.mse for v in values])].spectral_radius == pytest.approx(
        best, abs=1e-3
    )
    assert isotropic.best_q(entities=1, private=5, synthetic=2, weight=1.0) == 0


RIDGE = dict(covariance=[1], coefficients=[1], sigma2=1, first_sigma2=1)


@pytest.mark.parametrize(
    "call,sentence",
    [
        (lambda: closed_forms.wishart_trace(5, 6), r"samples=6: must be at least d \+ 2 = 7"),
        (lambda: closed_forms.ols_replace(0, trace=1), "fits=0: must be at least 1"),
        (
            lambda: closed_forms.ridge(1, ridge=0, samples=1, first_samples=3, **RIDGE),
            "ridge=0: must be positive",
        ),
        (
            lambda: closed_forms.ridge(1, ridge=1, samples=1, first_samples=1, **RIDGE),
            "first_samples=1: must exceed",
        ),
        (lambda: closed_forms.gaussian_replace(1, n=1), "n=1: must be at least 2"),
        (lambda: closed_forms.accumulate_limit(1), "n=1: must be at least 2"),
        (lambda: closed_forms.contraction_bound(0.6, convexity=1.0), "holds below 1/2 only"),
        (lambda: closed_forms.fresh_real_variance(0.0), r"weight=0.0: must lie in \(0, 1\]"),
        (
            lambda: isotropic.limit(
                isotropic.Setting(
                    entities=1, d=1, private=1, public=1, synthetic=1, alpha=1.0, beta=1
                )
            ),
            r"alpha=1.0: must lie in \[0, 1\)",
        ),
        (
            lambda: closed_forms.collapse_probability(1, n=5, threshold=0),
            "threshold=0: must be positive",
        ),
        (lambda: closed_forms.poisson_variance(1, rate=-1, n=5), "rate=-1: must be positive"),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
