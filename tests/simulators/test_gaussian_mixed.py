"""The expected variance and shift of Gaussian chains on real and own samples, by simulation, by the
exact cases, and by another formula of this package.
"""

import numpy as np
import pytest

from jaxloop.simulators.gaussian_mixed import mixed_chain

CHAINS = 40_000


def simulate(generations, *, n, synthetic, first, pooled, seed=0):
    """(variance, shift) [chains, T] of chains in two dimensions, in units of the real variance."""
    rng = np.random.default_rng(seed)

    def fit(x):
        centre = x.mean(1)
        return centre, ((x - centre[:, None]) ** 2).mean(1)

    centre, var = fit(rng.normal(size=(CHAINS, first, 2)))
    found, pool = [(var.mean(1), (centre**2).mean(1))], np.empty((CHAINS, 0, 2))
    for _ in range(generations - 1):
        own = centre[:, None] + np.sqrt(var)[:, None] * rng.normal(size=(CHAINS, synthetic, 2))
        new = np.concatenate([own, rng.normal(size=(CHAINS, n - synthetic, 2))], 1)
        pool = np.concatenate([pool, new], 1) if pooled else new
        chosen = rng.random(pool.shape[:2]).argsort(1)[:, :n, None]
        centre, var = fit(np.take_along_axis(pool, chosen, 1))
        found.append((var.mean(1), (centre**2).mean(1)))
    variance, shift = zip(*found, strict=True)
    return np.array(variance).T, np.array(shift).T


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(("synthetic", "first"), [(4, 4), (3, 9), (1, 4), (0, 4)])
def test_by_simulation(synthetic, first, pooled):
    """Within 4.5 standard errors: 80 comparisons, 5e-4 of a false alarm."""
    setting = {"n": 4, "synthetic": synthetic, "first": first, "pooled": pooled}
    ours = mixed_chain(5, **setting)
    for samples, formula in zip(simulate(5, **setting), ours, strict=True):
        error = samples.std(0, ddof=1) / np.sqrt(CHAINS)
        np.testing.assert_array_less(np.abs(samples.mean(0) - formula), 4.5 * error)


def test_exact_cases():
    alone = mixed_chain(6, n=10, synthetic=10)
    np.testing.assert_allclose(alone.variance, 0.9 ** np.arange(1, 7), rtol=1e-13)
    real = mixed_chain(6, n=10, synthetic=0, first=5)
    np.testing.assert_allclose(real.variance[1:], 0.9, rtol=1e-13)
    assert real.variance[0] == pytest.approx(0.8)
    pooled = mixed_chain(6, n=10, synthetic=0, pooled=True)
    np.testing.assert_allclose(pooled.shift, 0.1, rtol=1e-13)
    # One sample has no spread, whatever it is drawn from.
    np.testing.assert_allclose(
        mixed_chain(4, n=1, synthetic=1, pooled=True).variance, 0, atol=1e-15
    )


def test_what_is_kept_loses_less():
    replaced = mixed_chain(15, n=48, synthetic=48).variance
    kept = mixed_chain(15, n=48, synthetic=48, pooled=True).variance
    assert (kept[2:] > replaced[2:]).all()
    half = mixed_chain(15, n=48, synthetic=24).variance
    assert (half[2:] > replaced[2:]).all()


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"n": 0, "synthetic": 0}, "n=0: must be an integer of at least 1"),
        ({"n": 4.5, "synthetic": 0}, "n=4.5: must be an integer of at least 1"),
        ({"n": 4, "synthetic": -1}, "synthetic=-1: must be an integer of at least 0"),
        ({"n": 4, "synthetic": 5}, "synthetic=5: must lie between 0 and n = 4"),
        ({"n": 4, "synthetic": 0, "first": 0}, "first=0: must be an integer of at least 1"),
    ],
)
def test_bad_input(setting, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        mixed_chain(3, **setting)
