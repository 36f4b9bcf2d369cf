"""The bias of a fit against the second-order expansion of the fit, taken by finite differences."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jaxloop.simulators.beta_bias import first_order_bias


def _fit(means, start):
    """The Beta distribution whose mean logarithms are `means`."""

    def gap(theta):
        return scipy.special.digamma(theta) - scipy.special.digamma(theta.sum()) - means

    return scipy.optimize.fsolve(gap, start, xtol=1e-13)


@pytest.mark.parametrize("theta", [(2.0, 2.0), (3.0, 2.0), (0.7, 5.0)])
def test_it_is_half_the_curvature_of_the_fit_times_the_covariance(theta):
    """Within 1e-3: the step of the differences."""
    theta = np.array(theta)
    means = scipy.special.digamma(theta) - scipy.special.digamma(theta.sum())
    covariance = np.diag(scipy.special.polygamma(1, theta)) - scipy.special.polygamma(
        1, theta.sum()
    )
    values, vectors = np.linalg.eigh(covariance)
    curvature = np.zeros(2)
    for value, vector in zip(values, vectors.T, strict=True):
        step = 1e-3 * np.sqrt(value)
        there, back = (_fit(means + sign * step * vector, theta) for sign in (1, -1))
        curvature += value * (there - 2 * theta + back) / step**2
    np.testing.assert_allclose(first_order_bias(theta, 1), curvature / 2, rtol=1e-3)


def test_it_falls_with_the_draws():
    np.testing.assert_allclose(first_order_bias((2, 2), 500), first_order_bias((2, 2), 50) / 10)
