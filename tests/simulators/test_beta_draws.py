"""Draws from Beta distributions against SciPy's distribution function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxloop.simulators import beta_draws

Z = np.linspace(-6.34, 6.34, 801)


@pytest.fixture(scope="module")
def transport():
    return jax.jit(beta_draws.transport)


@pytest.mark.parametrize(
    "a,b,tolerance",
    [
        (0.1, 0.1, 1e-7),
        (0.1, 4, 1e-7),
        (0.3, 1000, 1e-8),
        (0.5, 0.5, 1e-9),
        (1, 1, 1e-9),
        (2, 2, 1e-9),
        (3, 2, 1e-9),
        (1, 50, 1e-9),
    ]
    + [
        (13, 9, 1e-9),
        (3073, 2049, 1e-9),
        (1e5, 2, 1e-9),
        (1e5, 3e4, 1e-9),
        (1e7, 1e7, 1e-9),
        (1e7, 2, 1e-9),
    ],
)
def test_distribution_function(transport, a, b, tolerance):
    with jax.enable_x64(True):
        y = np.asarray(transport(jnp.asarray([a, b], float), jnp.asarray(Z)))
    assert (np.diff(y) > 0).all()
    # Near 1 a double does not resolve x: the upper half is read as 1 - x, which is Beta(b, a).
    low = scipy.stats.beta.cdf(scipy.special.expit(y), a, b) - scipy.stats.norm.cdf(Z)
    high = scipy.stats.beta.cdf(scipy.special.expit(-y), b, a) - scipy.stats.norm.sf(Z)
    assert np.abs(np.where(y < 0, low, high)).max() < tolerance


def test_draws_are_beta_and_do_not_depend_on_how_many_there_are():
    with jax.enable_x64(True):
        draw = jax.jit(beta_draws.draw_logits, static_argnums=2)
        key, theta = jax.random.key(3), jnp.asarray([4.0, 3.0])
        y = np.asarray(draw(key, theta, 20000))
        np.testing.assert_array_equal(draw(key, theta, 500), y[:500])
    assert scipy.stats.kstest(scipy.special.expit(y), scipy.stats.beta(4, 3).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(y[1:], y[:-1])[0, 1]) < 4 / np.sqrt(len(y))
