"""Curves of skewed samples: false alarms by counting, and what is shrunk for them."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from jaxloop.studies.theory import agreement as ag
from jaxloop.studies.theory import report
from tests.studies.theory.test_agreement import N, walks

# Skewed samples, and the means of their entries.
CASES = {
    "squares": (lambda rng, runs: walks(rng, runs, dims=1), np.arange(1.0, N + 1)),
    "waiting times": (lambda rng, runs: rng.exponential(size=(runs, N)), np.ones(N)),
    "one square": (lambda rng, runs: rng.normal(size=(runs, 1)) ** 2, np.ones(1)),
}


@pytest.mark.parametrize(
    "replicates, tries", [(50, 800), pytest.param(250, 2000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", CASES)
def test_false_alarms_of_skewed_samples_are_as_rare_as_the_level_says(name, replicates, tries):
    """At p <= 0.01; with Student's t as it is they come 20, 7 and 3 times as often at 50
    replicates, 5, 3 and 1.7 times at 200.
    """
    draw, truth = CASES[name]
    rng = np.random.default_rng(replicates)
    found = [ag.agreement(truth, ag.moments(draw(rng, replicates))) for _ in range(tries)]
    flags = sum(one.p <= 0.01 for one in found)
    assert flags <= scipy.stats.binom.isf(1e-3, tries, 0.01)
    if name == "squares" and replicates == 50:
        plain = [2 * scipy.stats.t.sf(one.largest, replicates - 1) * N * ag.TESTS for one in found]
        assert np.mean(np.array(plain) <= 0.01) > 0.05


def test_skewness_by_scipy_and_merged():
    x = walks(np.random.default_rng(0), 90, dims=1)
    whole = ag.moments(x)
    np.testing.assert_allclose(ag.skewness(whole), scipy.stats.skew(x), rtol=1e-9)
    merged = ag.merge(ag.merge(ag.moments(x[:11]), ag.moments(x[11:40])), ag.moments(x[40:]))
    np.testing.assert_allclose(merged.third, whole.third, rtol=1e-9)
    assert ag.skewness(ag.moments(np.ones((5, 2)))).tolist() == [0, 0]


def test_what_is_shrunk():
    t = np.linspace(0, 40, 400)
    for skew in (0.5, 3.0):
        left = ag.shrunk(t, skew, 60)
        assert (np.diff(left) >= -1e-12).all() and (left <= t).all() and left[-1] > 5
        np.testing.assert_allclose(ag.shrunk(-t, -skew, 60), left)
        # Hall's transformation of the heavier tail.
        a = skew / (3 * np.sqrt(60))
        hall = ((1 - a * 3.0) ** 3 - 1) / (3 * a) + skew / (6 * np.sqrt(60))
        assert float(ag.shrunk(3.0, skew, 60)) == pytest.approx(-hall)
    np.testing.assert_allclose(ag.shrunk(t, 0.0, 60), t, atol=1e-5)
    np.testing.assert_allclose(ag.shrunk(4.0, 3.0, 1e10), 4.0, rtol=1e-4)
    assert ag.shrunk(np.inf, 1.0, 60) == np.inf


def test_an_error_is_found_in_skewed_samples_and_what_it_takes_is_asked_for():
    rng, truth = np.random.default_rng(1), np.arange(1.0, N + 1)
    found = ag.agreement(truth * 1.3, ag.moments(walks(rng, 4000, dims=1)))
    assert found.skew > 2 and found.p < 1e-4
    power = ag.Power(0.05, 0.95, 0.01, 20)
    plain = found._replace(skew=0.0)
    assert ag.needed(found, power) > ag.needed(plain, power)
    assert ag.finds(found, power, 4000) > ag.finds(plain, power, 4000)
    count = ag.needed(found, power)
    assert ag.finds(found, power, count) <= power.detect
    # What is found is what leaves the limit after it was shrunk.
    for replicates in (100, 4000):
        t = ag.finds(found, power, replicates) / found.unit * np.sqrt(replicates)
        share = power.level / power.curves / ag.TESTS
        beyond = scipy.stats.t.ppf(power.power, found.freedom)
        limit = scipy.stats.t.isf(share / 2, found.freedom)
        left = float(ag.shrunk(t - beyond, found.skew, replicates))
        assert left == pytest.approx(limit, rel=1e-6)


@pytest.mark.parametrize(
    "replicates, expected, absent",
    [
        ((4000, 90), "skewness of an entry is 2.8, with 90 replicates", "about normal"),
        ((4000, 12), "1 curves have fewer than 50 replicates (at least 12)", "2 curves"),
        ((3, 12), "2 curves have fewer than 50 replicates (at least 3)", "1 curves"),
    ],
)
def test_the_page_says_what_p_is_worth(replicates, expected, absent):
    curves = pd.DataFrame({"skew": [0.3, 2.8], "replicates": replicates})
    said = report.of_skewness(curves)
    assert expected in said and absent not in said
