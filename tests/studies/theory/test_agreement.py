"""The test of a curve against its formula: exact cases by SciPy, false alarms and power by
counting, and every shipped formula with an error planted in it.
"""

import numpy as np
import pytest
import scipy.stats

from jaxloop import config
from jaxloop.studies.theory import agreement as ag
from jaxloop.studies.theory import compare
from jaxloop.studies.theory import run as study

N = 12


def walks(rng, replicates, dims=None):
    """Curves whose entries err together: random walks, or their squares in `dims` dimensions."""
    steps = rng.normal(size=(replicates, N, dims or 1))
    walk = steps.cumsum(1)
    return 10 + walk[:, :, 0] if dims is None else (walk**2).sum(2)


def test_merged_moments_are_those_of_all_samples():
    x = walks(np.random.default_rng(0), 70)
    merged = ag.merge(ag.moments(x[:20]), ag.moments(x[20:]))
    assert merged.replicates == 70
    np.testing.assert_allclose(merged.mean, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(merged.cov, np.cov(x.T), rtol=1e-12)


def test_statistics_by_scipy():
    """One entry is Student's t, but for what its skewness takes (test_skewed.py); more are
    Hotelling's T^2 and the t of the regression on what should be zero.
    """
    x = walks(np.random.default_rng(1), 100)
    one = ag.agreement(np.array([10.0]), ag.moments(x[:, :1])._replace(third=np.zeros(1)))
    theirs = scipy.stats.ttest_1samp(x[:, 0], 10.0)
    assert one.p == pytest.approx(theirs.pvalue, rel=1e-6)
    analytic = np.full(N, 10.0)
    found = ag.agreement(analytic, ag.moments(x))
    away = x.mean(0) - analytic
    t2 = len(x) * away @ np.linalg.solve(np.cov(x.T), away)
    assert found.f == pytest.approx(t2 * (100 - N) / (N * 99), rel=1e-9)
    # Covariance adjustment: the mean of one entry, given the differences to it, whose mean is 0.
    covariates = np.column_stack([np.ones(len(x)), x[:, 1:] - x[:, :1]])
    fitted, squares, *_ = np.linalg.lstsq(covariates, x[:, 0], rcond=None)
    variance = squares[0] / (100 - N) * np.linalg.inv(covariates.T @ covariates)[0, 0]
    assert found.error == pytest.approx(fitted[0] / 10 - 1, rel=1e-6)
    assert found.t == pytest.approx((fitted[0] - 10) / np.sqrt(variance), rel=1e-6)


@pytest.mark.parametrize("replicates", [2, 3, 7, 30, 200])
def test_false_alarms_are_as_rare_as_the_level_says(replicates):
    """Also from two replicates on."""
    rng, tries = np.random.default_rng(replicates), 400
    p = np.array(
        [ag.agreement(np.full(N, 10.0), ag.moments(walks(rng, replicates))).p for _ in range(tries)]
    )
    for level in (0.1, 0.02):
        assert (p <= level).sum() <= scipy.stats.binom.isf(1e-4, tries, level)
    tolerated = [
        ag.agreement(np.full(N, 10.1), ag.moments(walks(rng, replicates)), 0.01).p
        for _ in range(100)
    ]
    assert (np.array(tolerated) <= 0.1).sum() <= scipy.stats.binom.isf(1e-4, 100, 0.1)


def test_an_error_is_found_as_often_as_was_asked_for():
    """Replicates are chosen from what is drawn; the error is then planted at its smallest, in a
    table of 20 skewed curves.
    """
    rng, power = np.random.default_rng(5), ag.Power(0.05, 0.95, 0.01, 20)
    truth, found = 4.0 * np.arange(1, N + 1), 0
    for _ in range(120):
        moments = ag.moments(walks(rng, 200, dims=4))
        while moments.replicates < ag.needed(ag.agreement(truth * 1.05, moments), power):
            moments = ag.merge(moments, ag.moments(walks(rng, 200, dims=4)))
        found += ag.agreement(truth * 1.05, moments).p <= power.level / power.curves
    assert found >= scipy.stats.binom.ppf(1e-3, 120, 0.95)


def test_holm_by_its_definition():
    p = np.array([0.03, 0.001, 0.5, 0.01])
    np.testing.assert_allclose(ag.holm(p), [0.06, 0.004, 0.5, 0.03])
    assert ag.holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def _study(kind, seed, **fields):
    made = config.build(study.CONFIG, {"what": kind, "seed": seed, **fields})
    experiments = study.KINDS[kind].experiments(made)
    curves = sum(len(e.quantities) for e in experiments)
    power = ag.Power(made.detect, made.power, made.level, curves)
    checks = []
    for i, experiment in enumerate(experiments):
        checks += compare.measure(
            experiment, seed=(seed + 1) << 20 | i, most=made.most, power=power
        )
    return checks, power


LINEAR = {"entities": 2, "dim": 3, "rank": 2, "public": 3, "generations": 3, "batch": 20_000}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "kind,fields",
    [
        ("library", {"library": {"n": 12, "fits": 3, "dim": 2, "batch": 20_000}}),
        ("linear", {"linear": LINEAR}),
        ("wmle", {"wmle": {"n": 2000, "error_n": 300, "generations": 2}, "most": 200_000}),
        ("histogram", {"histogram": {"generations": 3}}),
    ],
)
def test_planted_errors_of_half_a_percent_are_found_in_every_formula(kind, fields):
    checks, power = _study(kind, 3, **fields)
    assert not compare.curves(checks, power)["flag"].any()
    hits = tries = 0
    for i, check in enumerate(checks):
        quantity = check.quantity
        for sign in (1, -1):
            error = quantity.tolerance + ag.wanted_error(power, quantity.tolerance)
            planted = quantity.analytic / (1 + sign * error)
            wrong = compare.Check(
                compare.Quantity.of(
                    quantity.name, quantity.at, planted, tolerance=quantity.tolerance
                ),
                check.moments,
            )
            flags = compare.curves([*checks[:i], wrong, *checks[i + 1 :]], power)["flag"]
            hits += int(flags[i])
            tries += 1
            assert flags.sum() == flags[i]
    assert hits >= scipy.stats.binom.ppf(1e-3, tries, 0.95)
