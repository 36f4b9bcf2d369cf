"""WMLE of Beta distributions.

Against SciPy's optimiser and quadrature, a table of the population limit, and its own asymptotic
covariance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from jaxloop.recursion import workflow as wf
from jaxloop.simulators import beta

NEWTON = jax.jit(beta.newton)

# Population limit: t, alpha, beta, mean, P(X > .5).
TABLE = [
    (0, 4, 3, 0.57143, 0.6562),
    (1, 7, 5, 0.58333, 0.7256),
    (2, 13, 9, 0.59091, 0.8083),
    (4, 49, 33, 0.59756, 0.9626),
    (10, 3073, 2049, 0.59996, 1.0),
]


def test_population_table_pure_sharpening():
    path = beta.population(generations=10)
    for t, a, b, mean, above in TABLE:
        np.testing.assert_allclose(path[t], (a, b), rtol=1e-12)
        assert a / (a + b) == pytest.approx(mean, abs=5e-6)
        assert scipy.stats.beta.sf(0.5, a, b) == pytest.approx(above, abs=5e-5)
    mode = (path[:, 0] - 1) / (path.sum(1) - 2)
    np.testing.assert_allclose(mode, 0.6, rtol=1e-12)
    mean, above = path[:, 0] / path.sum(1), scipy.stats.beta.sf(0.5, *path.T)
    assert (mean < 0.6).all() and (np.diff(mean) > 0).all(), (
        "the mean climbs back to the pre-trained one from below"
    )
    assert above[0] < scipy.stats.beta.sf(0.5, 3, 2) < above[1], (
        "P(X > 1/2) passes the pre-trained one at generation 1"
    )


def test_population_of_the_other_readings():
    fixed = beta.population(generations=10, weighting="pretrained")
    np.testing.assert_allclose(fixed, [(4 + 2 * t, 3 + t) for t in range(11)])
    assert fixed[10, 0] / fixed[10].sum() == pytest.approx(0.6486, abs=5e-5)
    np.testing.assert_allclose(
        beta.population(generations=3, weighting="none"), np.full((4, 2), 2.0)
    )
    np.testing.assert_allclose(
        beta.population(generations=2, exponent=0.5)[:, 0], 1 + np.array([2, 3, 4.5])
    )
    other = beta.population(generations=30, real=(5, 5))[-1]
    assert (other[0] - 1) / (other.sum() - 2) == pytest.approx(6 / 11)


@pytest.mark.parametrize(
    "weighting,exponent", [("model", 1.0), ("pretrained", 1.0), ("model", 0.5)]
)
def test_population_is_the_projection_of_the_weighted_density(weighting, exponent):
    """Quadrature of the weighted score, solved by SciPy: nothing but densities is assumed."""
    path = beta.population(generations=2, weighting=weighting, exponent=exponent)
    source = np.vstack([[2.0, 2.0], path[:-1]])
    for t in range(3):
        weigh = (3.0, 2.0) if weighting == "pretrained" or t == 0 else path[t - 1]

        def density(x, t=t, weigh=weigh):
            return scipy.stats.beta.pdf(x, *source[t]) * scipy.stats.beta.pdf(x, *weigh) ** exponent

        def integral(g, density=density):
            return scipy.integrate.quad(
                lambda x: density(x) * g(x), 0, 1, epsabs=1e-13, epsrel=1e-13, limit=200
            )[0]

        total = integral(lambda x: 1.0)
        stats = np.array([integral(np.log), integral(lambda x: np.log1p(-x))]) / total
        with jax.enable_x64(True):
            found = NEWTON(jnp.asarray(stats))
        assert bool(found.converged)
        np.testing.assert_allclose(found.theta, path[t], rtol=1e-9)


@pytest.mark.parametrize("a,b,n", [(2, 2, 300), (0.3, 0.6, 200), (400, 150, 50), (1, 30, 100)])
def test_fit_maximises_the_weighted_likelihood(a, b, n):
    rng = np.random.default_rng(0)
    x = np.clip(rng.beta(a, b, n), 1e-12, 1 - 1e-12)
    w = rng.uniform(0, 2, n)
    found = beta.fit(x, w)
    assert found.converged and found.steps < 12

    def objective(p):
        return -(w * scipy.stats.beta.logpdf(x, *np.exp(p))).sum() / w.sum()

    best = scipy.optimize.minimize(
        objective,
        np.log(found.theta) + 0.3,
        method="Nelder-Mead",
        # A value of some hundreds less some hundreds is rounded to about 1e-13.
        options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 4000},
    )
    np.testing.assert_allclose(found.theta, np.exp(best.x), rtol=1e-5)
    assert objective(np.log(found.theta)) <= best.fun + 1e-12
    np.testing.assert_allclose(
        beta.fit(np.repeat(x, 2)).theta, beta.fit(x, np.full(n, 7.0)).theta, rtol=1e-9
    )


@pytest.fixture(scope="module")
def chains():
    return beta.simulate(n=1000, replicates=600, generations=4, seed=3, report=True)


def test_chains_follow_the_population_and_its_covariance(chains):
    theta, converged, steps = chains
    assert (
        theta.shape == (600, 5, 2)
        and theta.dtype == np.float64
        and converged.all()
        and steps.max() < 12
    )
    path, cov = beta.population(generations=4), beta.asymptotic_cov(1000, generations=4)
    sd = np.sqrt(np.diagonal(cov, axis1=1, axis2=2))
    # Estimates of order n are biased by order 1/n: 2% of the value at n = 1000, doubled as the
    # chain is.
    assert (np.abs(theta.mean(0) - path) < 4.5 * sd / np.sqrt(600) + 0.02 * path).all()
    for t in range(5):
        ratio = np.cov(theta[:, t].T) / cov[t]
        assert np.abs(ratio - 1).max() < 0.25, (t, ratio)
    mode = (theta[..., 0] - 1) / (theta.sum(2) - 2)
    assert np.abs(mode.mean(0) - 0.6).max() < 5 * 0.0051 * np.sqrt(5) / np.sqrt(600)
    assert (np.diff(theta.sum(2), axis=1) > 0).all(), (
        "the concentration rises in every generation of every chain"
    )


@pytest.mark.parametrize(
    "weighting,exponent",
    [("pretrained", 1.0), ("model", 0.4), pytest.param("none", 1.0, marks=pytest.mark.slow)],
)
def test_covariance_of_the_other_readings(weighting, exponent):
    theta = beta.simulate(
        n=500, replicates=600, generations=3, weighting=weighting, exponent=exponent, seed=4
    )
    cov = beta.asymptotic_cov(500, generations=3, weighting=weighting, exponent=exponent)
    for t in range(4):
        assert np.abs(np.cov(theta[:, t].T) / cov[t] - 1).max() < 0.25, t


def test_a_chain_is_the_same_among_others_and_under_the_plan_of_replace(chains):
    many, options = chains[0], dict(n=1000, replicates=2, seed=3)
    np.testing.assert_array_equal(beta.simulate(generations=4, **options), many[:2])
    assert jnp.zeros(1).dtype == np.float32
    mixed = beta.simulate(generations=1, workflow=wf.accumulate(1000), **options)
    np.testing.assert_allclose(mixed[:, 0], many[:2, 0], rtol=1e-12)
    assert np.abs(mixed[:, 1] - many[:2, 1]).min() > 1e-6


def _statistics(theta):
    return beta.population_statistics(jnp.asarray(theta, float))


def test_bias_projection_coefficient():
    """Section 5: positive at the pre-trained model (the first round reduces its bias), negative
    ever after.
    """
    path = beta.population(generations=6)
    with jax.enable_x64(True):

        def project(theta, target):
            return beta.bias_projection(jnp.asarray(theta, float), _statistics(target))

        c, parts = project((3.0, 2.0), (4.0, 3.0))
        assert float(c) == pytest.approx(0.0333, abs=5e-5) and float(parts.sum()) == pytest.approx(
            float(c)
        )
        assert float(project((3.0, 2.0), (2.0, 2.0))[0]) == pytest.approx(0.25)
        later = [float(project(path[t], path[t + 1])[0]) for t in range(6)]
        np.testing.assert_allclose(
            later, [-0.0479, -0.0284, -0.01564, -0.00823, -0.00422, -0.00214], atol=6e-5
        )
        assert later[5] * path[5].sum() == pytest.approx(-0.346, abs=2e-3)
        assert float(project((2.0, 2.0), (4.0, 3.0))[0]) == 0


def test_constrained_loss_leads_to_the_same_place_and_there_sooner(chains):
    """Its penalty is smallest where the gradient vanishes, which is at the unconstrained, biased
    fit.
    """
    target = (7.0, 5.0)
    with jax.enable_x64(True):
        start, stats = jnp.asarray([4.0, 3.0]), _statistics(target)

        def away(**options):
            return float(
                jnp.linalg.norm(
                    beta.descend(start, stats, beta.Constraint(steps=30, rate=2.0, **options)).theta
                    - 2
                )
            )

        hurried = [away(gam=g) for g in (0.0, 1.0, 5.0)]
        assert (
            np.all(np.diff(hurried) > 1e-3) and hurried[0] > float(jnp.linalg.norm(start - 2)) + 0.5
        )
        done = beta.descend(start, stats, beta.Constraint(gam=1.0, steps=20000, rate=2.0))
        assert bool(done.converged)
        np.testing.assert_allclose(done.theta, target, rtol=1e-5)
        # One step of length rate is the numerical gradient of the loss.
        u = np.array([2.0, 1.0]) / np.sqrt(5)

        def value(theta, lam, gam):
            return float(beta.constrained_loss(jnp.asarray(theta), stats, jnp.asarray(u), lam, gam))

        for lam, gam in ((0.0, 3.0), (2.0, 0.0)):
            for place in ((4.0, 3.0), (9.0, 6.0)):
                away = np.array(place) - u
                one = beta.descend(
                    jnp.asarray(place),
                    stats,
                    beta.Constraint(lam, gam, tuple(away), steps=1, rate=1.0),
                ).theta
                slope = [
                    (value(place + 1e-5 * e, lam, gam) - value(place - 1e-5 * e, lam, gam)) / 2e-5
                    for e in np.eye(2)
                ]
                np.testing.assert_allclose(
                    np.array(place) - np.asarray(one), slope, rtol=1e-4, atol=1e-8
                )
    options = dict(n=400, replicates=8, generations=3, seed=6, batch_size=8)
    hurried = beta.simulate(constraint=beta.Constraint(gam=5.0, steps=10, rate=2.0), **options)
    plain = beta.simulate(constraint=beta.Constraint(gam=0.0, steps=10, rate=2.0), **options)

    def reach(theta):
        return np.linalg.norm(theta - 2, axis=2).mean(0)

    assert (reach(hurried)[1:] > reach(plain)[1:]).all() and (
        reach(plain)[1:] < reach(chains[0])[1:4]
    ).all()


@pytest.mark.parametrize(
    "call,sentence",
    [
        (lambda: beta.fit([0.2, 1.0]), "x=1.0: a Beta fit needs data strictly between 0 and 1"),
        (lambda: beta.fit([0.0, 0.5]), "x=0.0: a Beta fit"),
        (lambda: beta.fit([0.2, np.nan]), "x=nan: a Beta fit"),
        (lambda: beta.fit([0.5]), "n=1: a Beta fit needs at least 2 observations"),
        (lambda: beta.fit([0.5, 0.5]), "at least 2 distinct values"),
        (lambda: beta.fit([0.5, 0.6], [1.0, -1.0]), "weights: must be finite"),
        (lambda: beta.fit([0.5, 0.6], [1.0]), r"shapes are \(2,\) and \(1,\)"),
        (lambda: beta.simulate(n=1, replicates=1, generations=1), "n=1: a Beta fit needs"),
        (
            lambda: beta.simulate(n=5, replicates=1, generations=0),
            "generations=0: must be an integer of at least 1",
        ),
        (
            lambda: beta.simulate(n=5, replicates=0, generations=1),
            "replicates=0: must be an integer of at least 1",
        ),
        (
            lambda: beta.simulate(
                n=5, replicates=1, generations=1, constraint=beta.Constraint(steps=0)
            ),
            "constraint.steps=0: must be an integer of at least 1",
        ),
        (
            lambda: beta.simulate(
                n=5, replicates=1, generations=1, constraint=beta.Constraint(unbiased=(2.0,))
            ),
            r"constraint.unbiased=\(2.0,\): must be two positive numbers",
        ),
        (
            lambda: beta.simulate(n=5, replicates=1, generations=1, real=(0, 1)),
            r"real=\(0, 1\): must be two positive numbers",
        ),
        (
            lambda: beta.simulate(n=5, replicates=1, generations=1, weighting="half"),
            "weighting='half': must be one of model",
        ),
        (
            lambda: beta.simulate(n=5, replicates=1, generations=1, exponent=-1),
            "exponent=-1: must be at least 0 and finite",
        ),
        (
            lambda: beta.simulate(n=5, replicates=1, generations=1, workflow=wf.replace(6)),
            "generation 0 has 6 items, must have n=5",
        ),
        (
            lambda: beta.population(generations=2, real=(0.5, 0.5), pretrained=(0.5, 0.5)),
            "weighted density of generation 0 is not integrable",
        ),
        (
            lambda: beta.asymptotic_cov(
                10, generations=1, real=(0.8, 1), pretrained=(0.5, 1), exponent=0.9
            ),
            "generation 1 is not integrable",
        ),
        (
            lambda: beta.asymptotic_cov(
                9, generations=2, pretrained=(0.5, 0.5), weighting="pretrained"
            ),
            "weights of generation 2 have no second moment",
        ),
    ],
)
def test_refusals(call, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        call()
    assert "\n" not in str(error.value)


def test_fits_of_a_few_draws_converge_or_say_that_they_do_not():
    """Three draws in ten generations: fits stay maxima until rounding is all that is left of them,
    beyond 1e10.
    """
    theta, converged, _ = beta.simulate(n=3, replicates=128, seed=1, report=True, generations=10)
    assert 0 < (~converged).sum() < 0.06 * converged.size
    # A fit beyond all numbers has none, and the fits of its chain after it have none either.
    beyond = theta[~converged].sum(-1)
    assert np.nanmin(beyond) > 1e10 and np.isfinite(theta[converged]).all()
