"""Measures of embeddings against scikit-learn, scipy, NumPy brute force and distributions whose
entropy is known.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import digamma, gamma
from sklearn.metrics.pairwise import cosine_distances
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from jaxloop.metrics import semantic as sm


@pytest.fixture
def points():
    """Three chains of 400 points in 24 dimensions: off centre, duplicates, a zero vector."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3, 400, 24)).astype(np.float32) + 0.4
    x[1, 7] = 0
    x[2, 3] = x[2, 9]
    return x


def test_cosine_diversity_is_the_mean_over_pairs(points):
    pairs = np.triu_indices(400, 1)
    want = [cosine_distances(chain.astype(np.float64))[pairs].mean() for chain in points]
    np.testing.assert_allclose(sm.cosine_diversity(points), want, atol=1e-12)
    assert sm.cosine_diversity(points[0]) == pytest.approx(want[0], abs=1e-12)
    np.testing.assert_allclose(
        sm.cosine_diversity(jnp.asarray(points, jnp.bfloat16)), want, atol=1e-3
    )


@pytest.mark.parametrize("k", [1, 5, 50, 150, 399])
def test_knn_cosine_diversity_drops_the_point_itself_and_keeps_its_duplicates(points, k):
    want = []
    for chain in points.astype(np.float64):
        distances = cosine_distances(chain)
        np.fill_diagonal(distances, np.inf)
        want.append(np.sort(distances, 1)[:, :k].mean())
    np.testing.assert_allclose(sm.knn_cosine_diversity(points, k), want, atol=2e-7)


def test_knn_cosine_diversity_is_scikit_learns(points):
    near = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(points[0])
    assert sm.knn_cosine_diversity(points[0], 5) == pytest.approx(
        near.kneighbors(points[0])[0][:, 1:].mean(), abs=1e-6
    )


@pytest.mark.parametrize("k", [1, 50, 200])
@pytest.mark.parametrize("d", [1, 2, 9, 24])
def test_neighbour_distances_are_scikit_learns(points, k, d):
    x = points[..., :d].astype(np.float64)
    want = [
        NearestNeighbors(n_neighbors=k + 1).fit(chain).kneighbors(chain)[0][:, k] for chain in x
    ]
    np.testing.assert_allclose(sm.kth_neighbour_distances(x, k), want, rtol=1e-7, atol=1e-7)


def test_blocks_of_differences_give_the_distances_of_the_tree(points):
    # What a GPU runs in few dimensions, run here; 37 rows a block leave a last block that overlaps.
    x = points[0, :, :2].astype(np.float64) + 100
    with jax.enable_x64(True):
        got = sm.kth_by_difference(jnp.asarray(x), 5, 37)
    np.testing.assert_allclose(got, sm.kth_neighbour_distances(x, 5), rtol=1e-12)


@pytest.mark.parametrize("jitter", [0.0, 1e-6, 1e-3, 0.1])
def test_near_duplicates_are_ranked_exactly(jitter):
    """120 texts that say almost the same, far from the mean: float32 products cannot rank them."""
    draw = np.random.default_rng(5)
    x = np.concatenate(
        [draw.standard_normal((80, 30)) * 5, 20 + jitter * draw.standard_normal((120, 30))]
    )
    r = np.sort(np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)), 1)
    for k in (1, 30, 100):
        # Products in float64 leave an absolute error of about 1e-16 |x|^2 in the squared distance.
        np.testing.assert_allclose(sm.kth_neighbour_distances(x, k), r[:, k], rtol=1e-6, atol=3e-6)


def test_blocks_change_nothing(points, monkeypatch):
    whole = (
        sm.knn_cosine_diversity(points, 5),
        sm.knn_cosine_diversity(points, 200),
        sm.kth_neighbour_distances(points, 5),
    )
    monkeypatch.setattr(sm, "BLOCK_ELEMENTS", 400 * 33)
    for before, after in zip(
        whole,
        (
            sm.knn_cosine_diversity(points, 5),
            sm.knn_cosine_diversity(points, 200),
            sm.kth_neighbour_distances(points, 5),
        ),
        strict=True,
    ):
        np.testing.assert_allclose(after, before, rtol=1e-6)


@pytest.mark.parametrize("d, k", [(2, 1), (2, 50), (3, 10), (12, 5)])
def test_kl_entropy_is_its_formula_with_both_constants(points, d, k):
    x = points[0, :, :d].astype(np.float64)
    n = len(x)
    r = np.sort(np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1)), 1)[:, k]
    textbook = (
        digamma(n) - digamma(k) + np.log(np.pi ** (d / 2) / gamma(d / 2 + 1)) + d * np.log(r).mean()
    )
    package = (
        digamma(n)
        - digamma(k)
        + np.log(np.pi ** (d / 2) / gamma(d / 2 + 1))
        + d / n * np.log(2 * r).sum()
    )
    assert sm.kl_entropy(x, k, "textbook") == pytest.approx(textbook, rel=1e-6)
    assert sm.kl_entropy(x, k) == pytest.approx(package, rel=1e-6)
    assert sm.kl_entropy(x, k) - sm.kl_entropy(x, k, "textbook") == pytest.approx(
        d * np.log(2), abs=1e-12
    )


def test_kl_entropy_finds_the_entropy_of_known_distributions():
    draw = np.random.default_rng(1)
    # the estimator's standard error is about sqrt((psi'(k) + var(ln f)) / n) < 0.012 here
    n = 20_000
    gauss = draw.standard_normal((n, 2)) @ np.array([[2.0, 0.3], [0.0, 0.5]])
    assert sm.kl_entropy(gauss, 5, "textbook") == pytest.approx(
        np.log(2 * np.pi * np.e) + np.log(1.0), abs=0.05
    )
    assert sm.kl_entropy(draw.random((n, 2)) * 3, 5, "textbook") == pytest.approx(
        2 * np.log(3), abs=0.05
    )


@pytest.mark.parametrize("d", [1, 2, 5])
def test_gaussian_aic_is_scikit_learns(points, d):
    x = points[..., :d].astype(np.float64)
    want = [GaussianMixture(1).fit(chain).aic(chain) for chain in x]
    np.testing.assert_allclose(sm.gaussian_aic(x), want, rtol=1e-10)


def test_gaussian_aic_cannot_tell_a_square_from_a_gaussian_and_negentropy_can():
    draw = np.random.default_rng(2)
    square, gauss = draw.random((8000, 2)), draw.standard_normal((8000, 2))
    for x in (square, gauss):  # the same covariance: the identity
        x -= x.mean(0)
        x @= np.linalg.inv(np.linalg.cholesky(x.T @ x / len(x))).T
    assert sm.gaussian_aic(square) == pytest.approx(sm.gaussian_aic(gauss), rel=1e-6)
    assert abs(sm.negentropy(gauss, 50)) < 0.05
    assert sm.negentropy(square, 5) == pytest.approx(
        np.log(2 * np.pi * np.e) - np.log(12), abs=0.05
    )
    assert sm.negentropy(square @ np.array([[3.0, 1.0], [0.0, 0.2]]) + 7, 5) == pytest.approx(
        sm.negentropy(square, 5), abs=0.05
    )


@pytest.mark.parametrize(
    "measure",
    [
        sm.cosine_diversity,
        lambda x: sm.knn_cosine_diversity(x, 5),
        lambda x: sm.knn_cosine_diversity(x, 300),
        sm.kl_entropy,
        sm.gaussian_aic,
        sm.negentropy,
    ],
)
def test_a_chain_has_the_same_value_alone_and_among_others(points, measure):
    together = measure(points)
    assert together.shape == (3,) and together.dtype == np.float64
    np.testing.assert_array_equal(together, [measure(chain) for chain in points])


def test_collapsed_output_has_stated_values():
    same, zero = np.ones((60, 4), np.float32), np.zeros((60, 4), np.float32)
    assert (
        sm.cosine_diversity(same) == pytest.approx(0, abs=1e-12) and sm.cosine_diversity(zero) == 1
    )
    assert (
        sm.knn_cosine_diversity(same, 5) == pytest.approx(0, abs=1e-6)
        and sm.knn_cosine_diversity(zero, 5) == 1
    )
    assert sm.kl_entropy(same, 50) == -np.inf and np.isnan(sm.negentropy(same, 50))
    assert sm.gaussian_aic(same) == pytest.approx(
        60 * 4 * (np.log(2 * np.pi) + np.log(1e-6)) + 28, rel=1e-9
    )
    assert sm.gaussian_aic(same, regularisation=0) == -np.inf
    flat = np.random.default_rng(2).normal(size=(40, 3))
    flat = np.c_[flat, flat @ [1.0, -0.3, 0.7]]  # the determinant is rounding, of either sign
    assert (sm.gaussian_aic(np.stack([flat, -2 * flat]), regularisation=0) == -np.inf).all()
    assert np.isfinite(sm.gaussian_aic(flat[:, :3], regularisation=0))
    # Copies of one point far from length 1: rounding is on either side of a cosine of 1.
    copies = np.repeat(np.random.default_rng(0).normal(5, 1e-3, (7, 1, 384)), 60, 1)
    assert sm.knn_cosine_diversity(copies, 5).min() >= 0
    assert sm.cosine_diversity(same[:1]) == sm.cosine_diversity(same[:0]) == 0
    assert np.isnan(sm.gaussian_aic(same[:0]))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x: sm.knn_cosine_diversity(x, 20), "k is 20, a whole number from 1 to n - 1 = 19"),
        (lambda x: sm.kl_entropy(x, 0), "k is 0"),
        (lambda x: sm.kl_entropy(x, 2.5), "k is 2.5"),
        (lambda x: sm.kl_entropy(x, 3, "mine"), "constant is 'mine', one of package, textbook"),
        (lambda x: sm.cosine_diversity(x[0]), r"points has shape \[3\]"),
        (
            lambda x: sm.cosine_diversity(np.where(x > x.max() - 1e-6, np.nan, x)),
            "points hold NaN or infinity",
        ),
        (lambda x: sm.gaussian_aic(np.stack([x, x * np.inf])), "points of chain 1 hold NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(np.random.default_rng(3).standard_normal((20, 3)))
    assert str(error.value).endswith("needed.")


@pytest.mark.slow
def test_a_hundred_thousand_points_need_no_square_matrix():
    import resource

    x = np.random.default_rng(4).standard_normal((100_000, 16)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    value = sm.knn_cosine_diversity(x, 5)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert 0 < value < 0.5 and grown < 4e9  # the matrix alone would be 40 GB
