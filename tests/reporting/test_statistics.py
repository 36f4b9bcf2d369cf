"""Corrections for many tests, against scipy and statsmodels."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from jaxloop.reporting.statistics import (
    agreeing_se,
    benjamini_hochberg,
    benjamini_hochberg_rejects,
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
    half = scipy.stats.t.ppf(0.975, n - 1) * agreeing_se(n)
    np.testing.assert_allclose(1 - half, exact.low, rtol=1e-12)


def test_one_unit_has_no_standard_error():
    assert np.isnan(agreeing_se(1)) and np.isnan(agreeing_se(0))
