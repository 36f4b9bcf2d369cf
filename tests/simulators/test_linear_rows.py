"""Moments where a weight is tiny: against 60 digits, and against the forms of Gram matrices where
those hold.
"""

import numpy as np
import pytest

from jaxloop.simulators import linear, linear_rows
from jaxloop.simulators.linear import Designs
from tests.peers import peer

mp = peer("mpmath")


def _hidden(seed=0):
    """Two entities whose real rows leave one direction to each other's synthetic rows."""
    rng = np.random.default_rng(seed)
    private = (rng.normal(size=(2, 3)), rng.normal(size=(3, 3)))
    return Designs(private, None, (rng.normal(size=(3, 3)), rng.normal(size=(4, 3))))


def _exact(designs, theta, alpha, beta, sigma2, generations):
    """E|theta_hat_k - theta|^2 [T+1][K] by the paper's recursion, in mpmath's digits."""
    k, d = designs.entities, designs.dim
    grams = [mp.matrix((x.T).tolist()) * mp.matrix(x.tolist()) for x in designs.private]
    exact = [mp.matrix(x.tolist()) for x in designs.synthetic_groups[0]]
    heard = [x.T * x for x in exact]
    truth = mp.matrix(theta.tolist())
    out, maps, spread = [], None, None
    for t in range(generations + 1):
        a = mp.mpf(alpha) if t else mp.mpf(0)
        own = (1 - a) * mp.mpf(beta)
        new_maps, q = [], mp.zeros(k * d)
        for i in range(k):
            g = own * grams[i] + (a / k) * (heard[0] + heard[1])
            inverse = _pseudo_inverse(g) if t == 0 else g**-1
            new_maps.append(own * inverse)
            for j in range(k):
                block = (a / k) * inverse * heard[j]
                q[i * d : (i + 1) * d, j * d : (j + 1) * d] = block
        fresh = mp.zeros(k * d)
        real = mp.zeros(k * d)
        for i in range(k):
            real[i * d : (i + 1) * d, i * d : (i + 1) * d] = new_maps[i]
        if t:
            noise = mp.zeros(k * d)
            for j in range(k):
                noise[j * d : (j + 1) * d, j * d : (j + 1) * d] = heard[j] ** -1
            fresh = mp.mpf(sigma2) * q * noise * q.T
        maps = real if t == 0 else real + q * maps
        spread = fresh if t == 0 else q * spread * q.T + fresh
        whole = mp.zeros(k * d)
        for i in range(k):
            whole[i * d : (i + 1) * d, i * d : (i + 1) * d] = grams[i]
        cov = mp.mpf(sigma2) * maps * whole * maps.T + spread
        tall = mp.matrix([truth[i % d] for i in range(k * d)])
        bias = maps * whole * tall - tall
        out.append(
            [
                float(sum(cov[n, n] + bias[n] ** 2 for n in range(i * d, (i + 1) * d)))
                for i in range(k)
            ]
        )
    return np.array(out)


def _pseudo_inverse(g):
    values, vectors = mp.eigsy(g)
    top = max(abs(v) for v in values)
    inverse = mp.diag([1 / v if abs(v) > top * mp.mpf(10) ** -40 else mp.mpf(0) for v in values])
    return vectors * inverse * vectors.T


@pytest.mark.parametrize("alpha", [0.4, 1e-4, 1e-8, 1e-9, 1e-12])
def test_a_direction_that_only_a_tiny_weight_shows(alpha):
    designs, theta = _hidden(), np.array([1.0, -2.0, 0.5])
    ours = linear.closed_form(designs, theta, alpha=alpha, beta=1.0, sigma2=0.7, generations=3)
    with mp.workdps(60):
        exact = _exact(designs, theta, alpha, 1.0, 0.7, 3)
    # eps times the condition number of the rows, the root of G's.
    np.testing.assert_allclose(ours.mse, exact, rtol=max(1e-12, 1e-14 / alpha**0.5))
    assert (ours.mse > 0).all()
    simulated = linear.simulate(
        designs, theta, alpha=alpha, beta=1.0, sigma2=0.7, generations=3, replicates=4000, seed=1
    )
    squares = ((simulated - theta) ** 2).sum(-1)
    se = squares.std(0) / np.sqrt(len(squares))
    assert (np.abs(squares.mean(0) - exact) < 4.5 * se + 1e-4 * exact).all()


def test_rows_and_gram_matrices_agree_where_both_hold():
    rng = np.random.default_rng(3)
    designs = Designs(
        tuple(rng.normal(size=(6 + k, 4)) for k in range(3)),
        rng.normal(size=(5, 4)),
        tuple(rng.normal(size=(5, 4)) for _ in range(3)),
    )
    theta = rng.normal(size=4)
    matrix = np.array([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.2, 0.2, 0.6]])
    options = dict(alpha=[0.0, 0.3, 0.6, 0.6], beta=0.4, generations=3, mixing=matrix)
    today = linear.closed_form(designs, theta, joins=[0, 1, 0], form="block", **options)
    w = linear.setting(
        designs, alpha=options["alpha"], beta=0.4, generations=3, mixing=matrix, joins=[0, 1, 0]
    )
    mean, cov = linear_rows.moments(designs, w, theta, 1.0)
    here = ~np.isnan(today.mean)
    np.testing.assert_allclose(mean[here], today.mean[here], rtol=1e-12, atol=1e-13)
    known = ~np.isnan(today.cov)
    np.testing.assert_allclose(cov[known], today.cov[known], rtol=1e-11, atol=1e-13)
    assert linear_rows.condition(designs, w) ** 2 < linear_rows.GRAM_CONDITION
    settled = linear.limit(designs, theta, alpha=0.5, beta=0.4, form="block")
    same = linear.setting(designs, alpha=0.5, beta=0.4, generations=1)
    for got, expected in zip(
        linear_rows.limit(designs, same, theta, 1.0), (settled.mean, settled.cov), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-13)


def test_limits_and_sweeps_at_tiny_weights():
    """The limit exists where the other entity's real rows show the direction; a sweep's point is
    that limit, and the closed form goes to it.
    """
    designs, theta = _hidden(), np.zeros(3)
    for alpha in (1e-8, 1e-3):
        end = linear.limit(designs, theta, alpha=alpha, beta=1.0)
        far = linear.closed_form(designs, theta, alpha=alpha, beta=1.0, generations=200)
        point = linear.sweep(designs, theta, alpha=[alpha, 0.5], beta=[1.0])
        np.testing.assert_allclose(far.mse[-1], end.mse, rtol=1e-8)
        np.testing.assert_allclose(point.mse[0, 0], end.mse, rtol=1e-9)
        assert point.spectral_radius[0, 0] == pytest.approx(far.spectral_radius, rel=1e-9)


def test_what_no_float_holds_is_refused():
    designs, theta = _hidden(), np.zeros(3)
    with pytest.raises(ValueError, match="condition number of .*, above 1e.20 its moments"):
        linear.closed_form(designs, theta, alpha=1e-24, beta=1.0, generations=2)
    with pytest.raises(ValueError, match="form='block': a fit has a condition number"):
        linear.closed_form(designs, theta, alpha=1e-9, beta=1.0, generations=2, form="block")
    draws = dict(beta=1.0, generations=1, replicates=1, seed=0)
    with pytest.raises(ValueError, match="above 1e.12 simulated fits are rounding"):
        linear.simulate(designs, theta, alpha=1e-14, **draws)
    assert np.isfinite(linear.simulate(designs, theta, alpha=1e-8, **draws)).all()


def test_who_only_reads_itself_is_named_where_a_limit_is_asked_for():
    """Entity 1's two real rows leave a direction free: alone it has no limit, with entity 2's text
    it has one.
    """
    designs, theta = _hidden(), np.zeros(3)
    alone = np.array([[1.0, 0.0], [0.5, 0.5]])
    said = "no limit exists: .* entity 1 reads only itself, whose real rows leave a direction free"
    with pytest.raises(ValueError, match=said):
        linear.limit(designs, theta, alpha=0.5, beta=1.0, mixing=alone)
    made = linear.closed_form(designs, theta, alpha=0.5, beta=1.0, generations=3, mixing=alone)
    assert made.limit is None and "entity 1 reads only itself" in made.no_limit
    linear.limit(designs, theta, alpha=0.5, beta=1.0, mixing=[[0.5, 0.5], [0.0, 1.0]])
    with pytest.raises(ValueError, match="entity 1 reads only entities 2 and itself"):
        linear.limit(designs, theta, alpha=1.0, beta=1.0)
