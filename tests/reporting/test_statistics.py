"""Corrections for many tests, intervals and rank correlations, against scipy and statsmodels."""

import itertools

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from jaxloop.reporting.statistics import (
    benjamini_hochberg,
    benjamini_hochberg_rejects,
    kendall,
    share_se,
    spearman,
    t_interval,
)


def test_benjamini_hochberg_is_scipys():
    p = np.random.default_rng(0).random(40) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), scipy.stats.false_discovery_control(p))
    with_nan = benjamini_hochberg([0.01, np.nan, 0.2])
    np.testing.assert_allclose(with_nan, [0.02, np.nan, 0.2])


def test_rejections_are_those_of_the_adjusted_values():
    p = np.random.default_rng(1).random(200) ** 3
    rejected = benjamini_hochberg_rejects(p, 0.05)
    np.testing.assert_array_equal(rejected, multipletests(p, 0.05, "fdr_bh")[0])
    np.testing.assert_array_equal(rejected, benjamini_hochberg(p) <= 0.05)
    assert 0 < rejected.sum() < 200


@pytest.mark.parametrize("n", [3, 40, 384])
def test_where_all_units_agree_the_interval_is_the_exact_one(n):
    exact = scipy.stats.binomtest(n, n).proportion_ci(method="exact")
    half = scipy.stats.t.ppf(0.975, n - 1) * share_se(1.0, n)
    np.testing.assert_allclose(1 - half, exact.low, rtol=1e-12)
    assert share_se(0.0, n) == share_se(1.0, n)


def test_a_share_has_the_standard_error_of_the_mean_of_zeros_and_ones():
    hits = [1.0] * 51 + [0.0] * 9
    assert share_se(51 / 60, 60) == pytest.approx(scipy.stats.sem(hits), rel=1e-12)
    assert np.isnan([share_se(1.0, 1), share_se(np.nan, 0), share_se(np.nan, 5)]).all()


def test_a_t_interval_is_scipys():
    values = np.random.default_rng(0).normal(0.3, 1, 6)
    expected = scipy.stats.ttest_1samp(values, 0.1)
    found = t_interval(values, 0.1)
    low, high = expected.confidence_interval(0.95)
    assert tuple(found) == pytest.approx(
        (scipy.stats.sem(values), low, high, expected.pvalue), rel=1e-12
    )
    assert np.isnan(t_interval(values[:1], 0.1)).all()
    with np.errstate(invalid="ignore"):
        assert np.isnan(t_interval(np.array([1.0, np.inf]), 0.1).p)
        assert np.isnan(t_interval(np.array([1.0, np.inf]), 0.1).se)


# The standard deviation of the first is not 0 but for rounding, that of the second is.
@pytest.mark.parametrize("value", [0.1, 0.5])
def test_equal_values_have_no_p(value):
    values = np.full(3, value)
    assert (values.std() > 0) == (value == 0.1)
    for null in (value, 0.0):
        found = t_interval(values, null)
        assert found[:3] == pytest.approx((0, value, value)) and np.isnan(found.p)


def exact(statistic, a, b):
    """Twice the smaller share of orders of b with a statistic beyond that of a and b, at most 1."""
    found = statistic(a, b).statistic
    all_of = np.array([statistic(a, order).statistic for order in itertools.permutations(b)])
    tails = (all_of >= found - 1e-9).mean(), (all_of <= found + 1e-9).mean()
    return min(1.0, 2 * min(tails))


@pytest.mark.parametrize(
    ("ours", "scipys"),
    [(spearman, scipy.stats.spearmanr), (kendall, scipy.stats.kendalltau)],
)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.0, 0.5, 1.0], [1.0, 0.9, 0.8]),
        ([0.0, 0.0, 0.5, 1.0], [3.0, 2.0, 2.0, 1.0]),
        ([0.0, 0.5, 1.0, 2.0, 3.0], [2.0, 1.0, 3.0, 3.0, 5.0]),
    ],
)
def test_rank_correlations_of_few_pairs_have_exact_p(ours, scipys, a, b):
    found = ours(np.array(a), np.array(b))
    assert found.value == pytest.approx(scipys(a, b).statistic, rel=1e-12)
    assert found.p == pytest.approx(exact(scipys, a, b), rel=1e-12)


@pytest.mark.parametrize(
    ("ours", "scipys"),
    [(spearman, scipy.stats.spearmanr), (kendall, scipy.stats.kendalltau)],
)
def test_rank_correlations_of_many_pairs_are_scipys(ours, scipys):
    a, b = np.random.default_rng(2).normal(size=(2, 30))
    assert tuple(ours(a, b)) == pytest.approx(tuple(scipys(a, b)), rel=1e-12)
    assert np.isnan(ours(a, np.full(30, 0.1))).all() and np.isnan(ours(a[:1], b[:1])).all()
    few = np.array([1.0, np.nan, 2.0])
    assert np.isnan([ours(few, few[::-1]), ours(np.arange(3.0), few)]).all()
    assert ours(np.arange(3.0), np.array([1.0, 2.0, np.inf])).value == pytest.approx(1)
