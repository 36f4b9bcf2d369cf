"""The evaluation UMAP: umap-learn's own positions, reproducible, stored as plain arrays."""

import zipfile

import numpy as np
import pytest

from jaxloop.metrics import umap as um
from jaxloop.metrics.semantic import kl_entropy


def blobs(n, seed):
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((6, 16)) * 2
    return (centres[draw.integers(0, 6, n)] + draw.standard_normal((n, 16))).astype(np.float32)


def random_map(points, neighbours=5):
    positions = np.random.default_rng(1).standard_normal((len(points), 2)).astype(np.float32) * 5
    return um.EvaluationMap(points, positions, 1.9, 0.8, um.MapSettings(neighbours=neighbours))


def test_neighbours_are_scikit_learns():
    from sklearn.neighbors import NearestNeighbors

    points, queries = blobs(300, 1), blobs(70, 2)
    queries[3] = 0
    distances, indices = (
        NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
        .fit(points)
        .kneighbors(queries)
    )
    got_indices, got = um.nearest(points, queries, 7)
    kept = np.arange(70) != 3  # all are equally far from the zero vector
    np.testing.assert_array_equal(got_indices[kept], indices[kept])
    np.testing.assert_allclose(got, distances, atol=1e-6)
    assert got[3].tolist() == [1.0] * 7


def test_a_stored_map_is_read_back_without_pickle(tmp_path):
    fitted = random_map(blobs(200, 1))
    um.save_map(fitted, tmp_path / "map.npz")
    read = um.load_map(tmp_path / "map.npz")
    assert read.settings == fitted.settings and (read.a, read.b) == (fitted.a, fitted.b)
    np.testing.assert_array_equal(read.points, fitted.points)
    np.testing.assert_array_equal(read.positions, fitted.positions)
    with zipfile.ZipFile(tmp_path / "map.npz") as archive:
        assert not any(
            archive.read(name)[:1] == b"\x80" for name in archive.namelist()
        )  # how a pickle opens


@pytest.mark.slow
def test_a_stored_map_projects_the_same(tmp_path):
    fitted = random_map(blobs(200, 1))
    um.save_map(fitted, tmp_path / "map.npz")
    read = um.load_map(tmp_path / "map.npz")
    queries = blobs(40, 2)
    first = um.project(fitted, queries)
    assert first.shape == (40, 2) and np.isfinite(first).all()
    np.testing.assert_array_equal(um.project(read, queries), first)
    np.testing.assert_array_equal(read(queries), first)


@pytest.mark.slow
def test_equal_texts_land_on_one_place_and_nothing_on_no_place():
    fitted = random_map(blobs(200, 1))
    same = um.project(fitted, np.repeat(blobs(1, 3), 60, 0))
    assert np.ptp(same, 0).max() < 1e-5
    assert kl_entropy(same, 50) < -20
    assert um.project(fitted, np.zeros((0, 16))).shape == (0, 2)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda p: um.fit_map(p[:6]), r"points are 6, at least neighbours \+ 2 = 7"),
        (lambda p: um.fit_map(p[None]), r"points have shape \[1, 200, 16\]"),
        (lambda p: um.fit_map(p, um.MapSettings(neighbours=1)), "neighbours=1.*is out of range"),
        (lambda p: um.fit_map(p * np.nan), "points hold NaN"),
        (
            lambda p: um.project(random_map(p), p[:, :5]),
            r"points have shape \[200, 5\], \[n, 16\] is needed",
        ),
        (lambda p: um.nearest(p, p, 201), "k is 201, a number from 1 to the 200 points"),
        (
            lambda p: um.save_map(random_map(p), "map.pkl"),
            "path is 'map.pkl', a name that ends in .npz",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(blobs(200, 1))
    assert str(error.value).endswith(("needed.", "needed for this map.", "needed to fit a map."))


@pytest.mark.parametrize("content", [b"", b"not a map", b"PK\x03\x04broken"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "map.npz").write_bytes(content)
    with pytest.raises(ValueError, match="is not an evaluation map"):
        um.load_map(tmp_path / "map.npz")
    np.savez(tmp_path / "other.npz", points=np.zeros(3))
    with pytest.raises(ValueError, match="is not an evaluation map"):
        um.load_map(tmp_path / "other.npz")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ImportWarning")
def test_fit_and_projection_are_umap_learns(monkeypatch):
    import umap
    from sklearn.metrics import pairwise_distances

    points, queries = blobs(600, 1), blobs(150, 2)
    fitted = um.fit_map(points, um.MapSettings(limit=500))
    reference = umap.UMAP(
        n_neighbors=5, min_dist=0.01, metric="cosine", random_state=0, transform_seed=0, n_jobs=1
    ).fit(points[:500])
    np.testing.assert_array_equal(fitted.positions, reference.embedding_)
    want = reference.transform(queries)
    # Most points land to the bit where umap-learn puts them; a last digit of a distance moves the
    # others inside their neighbourhood ...
    moved = np.linalg.norm(um.project(fitted, queries) - want, axis=1)
    assert (
        np.median(moved) < 1e-5
        and moved.max() < 0.2 * np.linalg.norm(want - want.mean(0), axis=1).mean()
    )

    def same_distances(points, queries, k):
        distances = pairwise_distances(queries, points, metric=reference._input_distance_func)
        indices = np.argsort(distances, 1)[:, :k]
        return indices, np.take_along_axis(distances, indices, 1).astype(np.float32)

    # ... and with umap-learn's own distances, to the bit.
    monkeypatch.setattr(um, "nearest", same_distances)
    np.testing.assert_array_equal(um.project(fitted, queries), want)
