"""Distances against scipy and scikit-learn, their behaviour on equal and shifted sets, and
refusals.
"""

import numpy as np
import pytest
from scipy import linalg, stats
from scipy.spatial.distance import cdist, pdist
from sklearn.metrics.pairwise import cosine_similarity, polynomial_kernel

from jaxloop.metrics import distances as ds


@pytest.fixture
def sets():
    """Two chains of 150 points and a reference of 90, in 6 dimensions."""
    draw = np.random.default_rng(0)
    return draw.standard_normal((2, 150, 6)), draw.standard_normal((90, 6)) * 1.3 + 0.2


@pytest.mark.parametrize("n, m, d", [(150, 90, 6), (20, 15, 40), (150, 15, 40)])
def test_frechet_distance_is_the_formula_with_a_matrix_square_root(n, m, d):
    draw = np.random.default_rng(1)
    x, y = draw.standard_normal((n, d)), draw.standard_normal((m, d)) * 1.2 + 0.1
    a, b = np.cov(x.T), np.cov(y.T)
    if min(n, m) > d:
        cross = np.trace(linalg.sqrtm(a @ b).real)
    else:  # a singular product has no stable sqrtm: the symmetric form
        values, vectors = np.linalg.eigh(a)
        root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert ds.frechet_distance(x, y) == pytest.approx(want, rel=1e-7)


def test_frechet_distance_of_shifted_and_scaled_copies_is_known(sets):
    x = sets[0][0]
    assert ds.frechet_distance(x, x + 3) == pytest.approx(9 * 6, rel=1e-9)
    spread = ((x - x.mean(0)) ** 2).sum() / (len(x) - 1)
    assert ds.frechet_distance(x - x.mean(0), 2 * (x - x.mean(0))) == pytest.approx(
        spread, rel=1e-9
    )


KERNELS = {
    "gaussian": lambda a, b, h: np.exp(-cdist(a, b, "sqeuclidean") / (2 * h * h)),
    "laplacian": lambda a, b, h: np.exp(-cdist(a, b) / h),
    "polynomial": lambda a, b, h: polynomial_kernel(a, b, degree=3),
    "linear": lambda a, b, h: a @ b.T,
}


@pytest.mark.parametrize("kernel", ds.KERNELS)
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("bandwidth", [None, 0.7])
def test_mmd2_is_the_mean_over_kernel_matrices(sets, kernel, unbiased, bandwidth):
    chains, y = sets
    h = bandwidth or np.median(pdist(y))
    want = []
    for x in chains:
        within = 0.0
        for z in (x, y):
            k = KERNELS[kernel](z, z, h)
            within += (k.sum() - np.trace(k)) / (len(z) * (len(z) - 1)) if unbiased else k.mean()
        want.append(within - 2 * KERNELS[kernel](x, y, h).mean())
    np.testing.assert_allclose(
        ds.mmd2(chains, y, kernel, bandwidth, unbiased), want, rtol=1e-8, atol=1e-9
    )


def test_linear_mmd2_is_the_squared_distance_of_the_means(sets):
    x, y = sets[0][0], sets[1]
    assert ds.mmd2(x, y, "linear", unbiased=False) == pytest.approx(
        ((x.mean(0) - y.mean(0)) ** 2).sum(), rel=1e-10
    )


def test_unbiased_mmd2_of_equal_distributions_is_zero_on_average():
    draw = np.random.default_rng(2)
    values = ds.mmd2(
        draw.standard_normal((200, 30, 2)), draw.standard_normal((200, 40, 2)), bandwidth=1.0
    )
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert (
        ds.mmd2(
            draw.standard_normal((200, 30, 2)),
            draw.standard_normal((200, 40, 2)),
            bandwidth=1.0,
            unbiased=False,
        ).min()
        > 0
    )


@pytest.mark.parametrize("n, m", [(150, 150), (151, 90), (1, 7)])
def test_energy_and_sliced_wasserstein_are_scipys_in_one_dimension(n, m):
    draw = np.random.default_rng(3)
    x, y = draw.standard_normal(n), draw.standard_normal(m) * 2 + 1
    assert ds.energy_distance(x[:, None], y[:, None]) == pytest.approx(
        stats.energy_distance(x, y), rel=1e-8
    )
    assert ds.sliced_wasserstein(x[:, None], y[:, None]) == pytest.approx(
        stats.wasserstein_distance(x, y), rel=1e-10
    )


def test_energy_distance_is_the_mean_over_pairs(sets):
    chains, y = sets
    want = [
        np.sqrt(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean()) for x in chains
    ]
    np.testing.assert_allclose(ds.energy_distance(chains, y), want, rtol=1e-8)


@pytest.mark.parametrize("p", [1, 2])
def test_sliced_wasserstein_of_a_shift_is_the_mean_projected_shift(sets, p):
    x, shift = sets[0][0], np.array([3.0, 0, 0, 0, 0, 0])
    # E |t . s|^p over the sphere in d dimensions: |s| Gamma(d/2) / (sqrt(pi) Gamma((d+1)/2)) for p
    # = 1, |s|^2 / d for p = 2.
    from scipy.special import gamma

    want = 3 * gamma(3) / (np.sqrt(np.pi) * gamma(3.5)) if p == 1 else np.sqrt(9 / 6)
    assert ds.sliced_wasserstein(x, x + shift, projections=4000, p=p) == pytest.approx(
        want, rel=0.03
    )
    assert (
        ds.sliced_wasserstein(x, x + shift, seed=1)
        == ds.sliced_wasserstein(x, x + shift, seed=1)
        != ds.sliced_wasserstein(x, x + shift)
    )


@pytest.mark.parametrize(
    "distance", [ds.frechet_distance, ds.mmd2, ds.energy_distance, ds.sliced_wasserstein]
)
def test_distances_vanish_on_equal_sets_grow_with_a_shift_and_keep_chains_apart(sets, distance):
    chains, y = sets
    far = [distance(y, y + s) for s in (0, 0.5, 1, 2)]
    assert far[0] < 0.01 * far[1] and np.all(np.diff(far) > 0)
    together = distance(chains, y)
    assert together.dtype == np.float64
    np.testing.assert_array_equal(together, [distance(chain, y) for chain in chains])
    np.testing.assert_array_equal(
        distance(chains, np.stack([y, y + 1])), [distance(chains[0], y), distance(chains[1], y + 1)]
    )


def test_blocks_change_nothing(sets, monkeypatch):
    chains, y = sets
    before = ds.mmd2(chains, y), ds.energy_distance(chains, y)
    monkeypatch.setattr(ds, "_BLOCK_ELEMENTS", 90 * 17)
    np.testing.assert_allclose(
        (ds.mmd2(chains, y), ds.energy_distance(chains, y)), before, rtol=1e-9
    )


def test_length_kl_is_the_divergence_of_smoothed_histograms():
    reference = ["a b c"] * 20 + ["a b"] * 30 + ["a b c d"] * 10
    texts = ["a"] * 5 + ["a b c d e f"] * 5
    counts, other = (
        np.array([5, 0, 0, 5]),
        np.array([30, 20, 10, 0]),
    )  # bins: up to 2 tokens, 3, 4, more
    p, q = (counts + 0.5) / (counts + 0.5).sum(), (other + 0.5) / (other + 0.5).sum()
    assert ds.length_kl(texts, reference) == pytest.approx(stats.entropy(p, q), rel=1e-12)
    values = ds.length_kl([reference, texts, []], reference)
    assert (
        values[0] == 0 and values[1] == pytest.approx(stats.entropy(p, q)) and np.isnan(values[2])
    )


def test_output_similarity_is_the_mean_cosine_of_answers_to_the_same_prompt():
    x = np.random.default_rng(4).standard_normal((3, 50, 8))
    want = [[np.diag(cosine_similarity(a, b)).mean() for b in x] for a in x]
    np.testing.assert_allclose(ds.output_similarity(x), want, atol=1e-12)
    means = ds.mean_output_similarity([x, x[[0, 0]], x[:1]])
    assert means[0] == pytest.approx(np.mean([want[0][1], want[0][2], want[1][2]]), abs=1e-12)
    assert means[1] == pytest.approx(1, abs=1e-12) and np.isnan(means[2])


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x, y: ds.mmd2(x, y, "cubic"), "kernel is 'cubic', one of gaussian"),
        (lambda x, y: ds.mmd2(x, y, bandwidth=0), "bandwidth is 0, a positive"),
        (
            lambda x, y: ds.frechet_distance(x, y[:, :3]),
            "points have 6 dimensions and reference has 3",
        ),
        (lambda x, y: ds.frechet_distance(x, y[:1]), "reference are 1, at least 2"),
        (lambda x, y: ds.energy_distance(x, y[:0]), "reference are 0, at least 1"),
        (
            lambda x, y: ds.energy_distance(x, np.stack([y] * 3)),
            "reference has 3 chains and points have 2",
        ),
        (lambda x, y: ds.energy_distance(x[0], y * np.nan), "reference hold NaN"),
        (lambda x, y: ds.sliced_wasserstein(x, y, projections=0), "projections is 0"),
        (lambda x, y: ds.length_kl(["a"], ["b"], bins=1), "bins is 1"),
        (
            lambda x, y: ds.length_kl([["a"]], [["b"], ["c"]]),
            "reference_texts has 2 chains, texts has 1",
        ),
        (lambda x, y: ds.output_similarity(y), r"entity outputs have shape \[90, 6\]"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(sets, call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(*sets)
    assert str(error.value).endswith("needed.")
