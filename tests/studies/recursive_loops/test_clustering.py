"""Clusterings, their labels and the clusters drawn from them, against scikit-learn, SciPy and brute
force.
"""

import itertools
import random
import zipfile

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn import cluster, mixture
from sklearn.metrics import adjusted_rand_score, jaccard_score

from jaxloop.studies.recursive_loops.data import cluster_choice, clustering
from jaxloop.studies.recursive_loops.data.cluster_choice import Cluster
from jaxloop.studies.recursive_loops.data.clustering import NOISE, Configuration, Method

RNG = np.random.default_rng(0)
CENTERS = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 6.0]])
TRUTH = np.arange(400) % 4
POINTS = (CENTERS[TRUTH] + RNG.normal(size=(400, 2)) * 0.4).astype(np.float32)


def test_the_papers_120_clusterings():
    every = clustering.configurations()
    assert len(every) == len({c.name for c in every}) == 120
    parameters = {m.name: dict(m.parameters) for m in clustering.methods()}
    for kind in ("gmm", "kmeans"):
        assert [parameters[f"{kind}-{k}"]["components"] for k in (5, 10, 25, 50, 100, 1000)] == [
            5,
            10,
            25,
            50,
            100,
            1000,
        ]
    assert parameters["dbscan-0.1-50"] == {"eps": 0.1, "min_samples": 50}
    assert parameters["dbscan-0.2-100"] == {"eps": 0.2, "min_samples": 100}
    hdbscan = [
        (p["min_cluster_size"], p["min_samples"], p["selection"])
        for n, p in parameters.items()
        if n.startswith("hdbscan")
    ]
    assert hdbscan == [
        (5, 1, "eom"),
        (100, 1, "leaf"),
        (1000, 100, "leaf"),
        (1000, 1, "leaf"),
        (3000, 1, "leaf"),
        (3000, 100, "leaf"),
    ]
    assert {c.min_dist for c in every} == {1e-4, 1e-3, 1e-2} and {c.noise for c in every} == {
        "kept",
        "removed",
    }
    small = {m.name: dict(m.parameters) for m in clustering.methods(900)}
    assert small.keys() == parameters.keys()
    assert (
        small["gmm-1000"]["components"] == 90
        and small["hdbscan-1000-100-leaf"]["min_cluster_size"] == 10
    )


def reference(method):
    p = dict(method.parameters)
    if method.kind == "gmm":
        return mixture.GaussianMixture(p["components"], random_state=3).fit_predict(
            POINTS.astype(np.float64)
        )
    if method.kind == "kmeans":
        return cluster.MiniBatchKMeans(p["components"], random_state=3).fit_predict(POINTS)
    return cluster.DBSCAN(eps=p["eps"], min_samples=p["min_samples"]).fit_predict(POINTS)


@pytest.mark.parametrize(
    "method", [m for m in clustering.methods(400) if m.kind != "hdbscan"], ids=lambda m: m.name
)
def test_methods_are_those_of_scikit_learn(method):
    labels = clustering.cluster_points(POINTS, method, seed=3)
    expected = reference(method)
    # The same partition and the same noise; numbers run from 0 without gaps.
    assert np.array_equal(labels == NOISE, expected == -1)
    pairs = set(zip(labels.tolist(), expected.tolist(), strict=True))
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    assert sorted(set(labels.tolist()) - {NOISE}) == list(range(labels.max() + 1))


def mutual_reachability_clusters(points, neighbours, cut):
    """Components of the graph of pairs that are at most `cut` apart in mutual reachability, core
    distances to the given neighbour (the point itself not counted, as in the hdbscan package).
    """
    distance = cdist(points, points)
    core = np.sort(distance, axis=1)[:, neighbours]
    reach = np.maximum(distance, np.maximum(core[:, None], core[None, :]))
    from scipy.sparse.csgraph import connected_components

    return connected_components(reach <= cut)[1]


@pytest.mark.parametrize("neighbours", [1, 8, 20])
def test_hdbscan_counts_neighbours_as_the_hdbscan_package_does(neighbours, monkeypatch):
    fitted = []
    original = cluster.HDBSCAN.fit_predict
    monkeypatch.setattr(
        cluster.HDBSCAN, "fit_predict", lambda self, x: (fitted.append(self), original(self, x))[1]
    )
    parameters = (("min_cluster_size", 20), ("min_samples", neighbours), ("selection", "leaf"))
    labels = clustering.cluster_points(POINTS, Method("h", "hdbscan", parameters))
    kept = labels != NOISE
    assert adjusted_rand_score(TRUTH[kept], labels[kept]) > 0.9 or neighbours == 1
    for cut in (0.15, 0.25, 0.4, 0.8):
        ours = fitted[0].dbscan_clustering(cut, min_cluster_size=1)
        expected = mutual_reachability_clusters(POINTS.astype(np.float64), neighbours, cut)
        assert adjusted_rand_score(ours[ours >= 0], expected[ours >= 0]) == 1.0


@pytest.mark.parametrize("noise", ["kept", "removed"])
def test_rows_get_the_label_of_the_nearest_fitted_row(noise):
    fitted = TRUTH[:150].copy().astype(np.int32)
    fitted[::7] = NOISE
    labels = clustering.nearest_labels(POINTS, fitted, noise)
    allowed = np.arange(150) if noise == "kept" else np.flatnonzero(fitted != NOISE)
    nearest = allowed[cdist(POINTS, POINTS[allowed]).argmin(axis=1)]
    assert np.array_equal(labels, fitted[nearest])
    assert (noise == "kept") == bool((labels == NOISE).any())


def test_without_any_cluster_all_rows_are_noise():
    for noise in ("kept", "removed"):
        assert (
            clustering.nearest_labels(POINTS, np.full(50, NOISE, np.int32), noise) == NOISE
        ).all()
    assert clustering.centroids(POINTS, np.full(400, NOISE, np.int32)).shape == (0, 2)
    assert (
        cluster_choice.select("c", np.full(400, NOISE, np.int32), np.zeros((0, 2)), min_size=5)
        == []
    )


def test_centroids():
    labels = np.where(np.arange(400) < 20, NOISE, TRUTH + (TRUTH > 1)).astype(np.int32)
    found = clustering.centroids(POINTS, labels)
    for k in (0, 1, 3, 4):
        np.testing.assert_allclose(
            found[k], POINTS[labels == k].astype(np.float64).mean(axis=0), rtol=1e-12
        )
    assert np.isnan(found[2]).all()


def random_labels(seed, sizes):
    labels = np.repeat(np.arange(-1, len(sizes) - 1), sizes)
    np.random.default_rng(seed).shuffle(labels)
    return labels.astype(np.int32)


def far_order(first, others, centers, sizes, least):
    """The far merge of the paper's code, written with sets and loops."""
    taken, left = [first], set(others)
    while sum(sizes[k] for k in taken) < least:
        taken.append(
            max(left, key=lambda k: sum(np.linalg.norm(centers[k] - centers[t]) for t in taken))
        )
        left.remove(taken[-1])
    return taken


@pytest.mark.parametrize("seed", range(8))
def test_selection_follows_the_code_of_the_paper(seed):
    draw = np.random.default_rng(seed)
    sizes = np.concatenate([[500], draw.integers(1, 400, 40), [900, 1000, 1001, 1200]])
    labels = random_labels(seed, sizes)
    centers = draw.normal(size=(len(sizes) - 1, 2))
    sizes = sizes[1:]
    found = cluster_choice.select("some", labels, centers, min_size=1000, count=10, seed=seed)
    direct = [c for c in found if c.kind == "direct"]
    assert sorted(c.labels for c in direct) == [(42,), (43,)], "strictly more than min_size"
    merged = found[2:]
    assert [c.kind for c in merged] == ["far", "random"] * (len(merged) // 2) + ["far"] * (
        len(merged) % 2
    )
    used = list(itertools.chain.from_iterable(c.labels for c in found))
    assert len(used) == len(set(used)) and NOISE not in used
    left = set(range(len(sizes))) - {42, 43}
    for c in merged:
        assert c.size == sizes[list(c.labels)].sum() >= 1000 > sizes[list(c.labels[:-1])].sum()
        if c.kind == "far":
            assert list(c.labels) == far_order(
                c.labels[0], left - {c.labels[0]}, centers, sizes, 1000
            )
        left -= set(c.labels)
    # It stops at ten clusters, or when what is left is too little for one more.
    assert len(found) == 10 or sizes[list(left)].sum() < 1000
    for c in found:
        assert len(cluster_choice.members(c, labels)) == c.size
    assert found == cluster_choice.select(
        "some", labels, centers, min_size=1000, count=10, seed=seed
    )
    assert found != cluster_choice.select(
        "other", labels, centers, min_size=1000, count=10, seed=seed
    )


def test_ten_of_many_large_clusters_are_drawn_without_merging():
    labels = random_labels(0, [5] + [50] * 30)
    found = cluster_choice.select("c", labels, np.zeros((30, 2)), min_size=49)
    assert len(found) == 10 and {c.kind for c in found} == {"direct"}
    assert len({c.labels for c in found}) == 10
    assert {c.kind for c in cluster_choice.select("c", labels, np.zeros((30, 2)), min_size=50)} == {
        "far",
        "random",
    }


def test_final_sample_is_pythons_with_seed_42():
    clusters = [Cluster("c", "direct", (i,), 10) for i in range(500)]
    random.seed(42)
    assert cluster_choice.final_sample(clusters) == random.sample(clusters, 200)
    assert cluster_choice.final_sample(clusters[:5]) == clusters[:5]


def test_jaccard_equals_scikit_learn():
    labels = {"a": random_labels(1, [3, 40, 50, 60]), "b": random_labels(2, [3, 70, 30, 50])}
    clusters = [
        Cluster("b", "direct", (0,), 70),
        Cluster("a", "far", (0, 2), 100),
        Cluster("a", "direct", (1,), 50),
        Cluster("b", "far", (1, 2), 80),
    ]
    overlap = cluster_choice.jaccard(clusters, labels)
    masks = [np.isin(labels[c.clustering], c.labels) for c in clusters]
    expected = [[jaccard_score(a, b) for b in masks] for a in masks]
    np.testing.assert_allclose(overlap, expected, rtol=1e-14)
    summary = cluster_choice.overlap_summary(overlap)
    assert summary["pairs"] == 6 and summary["largest"] == max(
        overlap[i, j] for i in range(4) for j in range(i)
    )
    assert cluster_choice.overlap_summary(np.ones((1, 1)))["pairs"] == 0


FEW = (
    Method("gmm-4", "gmm", (("components", 4),)),
    Method("dbscan-x", "dbscan", (("eps", 0.5), ("min_samples", 5))),
)
EMBEDDINGS = np.concatenate([POINTS, RNG.normal(size=(400, 6)).astype(np.float32) * 0.1], axis=1)


@pytest.fixture
def plain_projection(monkeypatch):
    """The first two columns in place of UMAP (which is tested below, and takes seconds to compile);
    counts the calls.
    """
    calls = []

    def project(embeddings, min_dist, *, fit_rows, seed):
        calls.append((min_dist, seed))
        return np.asarray(embeddings[:, :2], np.float32)

    monkeypatch.setattr(clustering, "project", project)
    return calls


def test_clustering_goes_on_where_it_was_stopped(tmp_path, plain_projection, monkeypatch):
    chosen = clustering.configurations(FEW)
    original, started = clustering.cluster_points, []

    def interrupted(points, method, seed):
        started.append(method.name)
        if len(started) == 6:
            raise KeyboardInterrupt
        return original(points, method, seed)

    monkeypatch.setattr(clustering, "cluster_points", interrupted)
    with pytest.raises(KeyboardInterrupt):
        clustering.cluster_all(EMBEDDINGS, tmp_path / "a", chosen, fit_rows=300, seed=1)
    assert len(list((tmp_path / "a" / "labels").iterdir())) == 5
    seen = []
    names = clustering.cluster_all(
        EMBEDDINGS,
        tmp_path / "a",
        chosen,
        fit_rows=300,
        seed=1,
        progress=lambda *state: seen.append(state),
    )
    assert names == [c.name for c in chosen] and len(started) == 6 + 7
    assert [s[:2] for s in seen] == [(done, 12) for done in range(6, 13)]
    clustering.cluster_all(EMBEDDINGS, tmp_path / "b", chosen, fit_rows=300, seed=1)
    for name in names:
        for a, b in zip(
            clustering.load_labels(tmp_path / "a", name),
            clustering.load_labels(tmp_path / "b", name),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
        labels = clustering.load_labels(tmp_path / "a", name)[0]
        kept = labels != NOISE
        assert kept.mean() > 0.9 and adjusted_rand_score(TRUTH[kept], labels[kept]) == 1.0
    # Every clustering had a projection of its own.
    assert len(set(plain_projection)) == 12


def test_a_damaged_file_is_made_again(tmp_path, plain_projection):
    chosen = clustering.configurations(FEW, (0.01,))
    names = clustering.cluster_all(EMBEDDINGS, tmp_path, chosen, fit_rows=300)
    before = [clustering.load_labels(tmp_path, name)[0] for name in names]
    whole = (tmp_path / "labels" / f"{names[0]}.npz").read_bytes()
    other = tmp_path / "labels" / "other.npz"
    with zipfile.ZipFile(tmp_path / "labels" / f"{names[0]}.npz") as archive:
        first, second = archive.infolist()
        data = range(first.header_offset + 30 + len(first.filename) + 20, second.header_offset)
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 16
        other.write_bytes(damaged)
        try:
            # Dates and attributes of the archive may change without notice, the labels never.
            np.testing.assert_array_equal(clustering.load_labels(tmp_path, "other")[0], before[0])
            silent = True
        except ValueError as error:
            assert "other.npz is damaged" in str(error)
            silent = False
        assert not (silent and position in data[:-1]), "the last byte may have unused bits"
    other.unlink()
    (tmp_path / "labels" / f"{names[0]}.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "labels" / f"{names[1]}.npz").unlink()
    done = []
    clustering.cluster_all(
        EMBEDDINGS, tmp_path, chosen, fit_rows=300, progress=lambda *state: done.append(state[2])
    )
    assert done == names[:2]
    for name, labels in zip(names, before, strict=True):
        np.testing.assert_array_equal(clustering.load_labels(tmp_path, name)[0], labels)


def test_shared_projections_are_fitted_once_per_setting(tmp_path, plain_projection):
    clustering.cluster_all(
        EMBEDDINGS, tmp_path, clustering.configurations(FEW), fit_rows=300, projections="shared"
    )
    assert sorted(d for d, _ in plain_projection) == [1e-4, 1e-3, 1e-2]
    more = clustering.configurations((Method("gmm-2", "gmm", (("components", 2),)),))
    clustering.cluster_all(EMBEDDINGS, tmp_path, more, fit_rows=300, projections="shared")
    assert len(plain_projection) == 3


def test_a_folder_of_other_settings_or_data_is_refused(tmp_path, plain_projection):
    chosen = clustering.configurations(FEW, (0.01,))
    clustering.cluster_all(EMBEDDINGS, tmp_path, chosen, fit_rows=300)
    with pytest.raises(ValueError, match="was made with fit_rows = 300, not 200"):
        clustering.cluster_all(EMBEDDINGS, tmp_path, chosen, fit_rows=200)
    with pytest.raises(ValueError, match="was made with seed = 0, not 1"):
        clustering.cluster_all(EMBEDDINGS, tmp_path, chosen, fit_rows=300, seed=1)
    with pytest.raises(ValueError, match="was made with embeddings = "):
        clustering.cluster_all(EMBEDDINGS + np.float32(1), tmp_path, chosen, fit_rows=300)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json is damaged"):
        clustering.cluster_all(EMBEDDINGS, tmp_path, chosen, fit_rows=300)


def test_bad_input_is_refused(tmp_path, plain_projection):
    run = clustering.cluster_all
    with pytest.raises(ValueError, match=r"shape \(400,\); they must be a matrix"):
        run(EMBEDDINGS[:, 0], tmp_path)
    with pytest.raises(ValueError, match=r"shape \(9, 8\)"):
        run(EMBEDDINGS[:9], tmp_path)
    broken = EMBEDDINGS.copy()
    broken[17, 3] = np.nan
    with pytest.raises(ValueError, match="row 17 is not finite"):
        run(broken, tmp_path)
    with pytest.raises(ValueError, match="projections = 'every' is not one of"):
        run(EMBEDDINGS, tmp_path, projections="every")
    with pytest.raises(ValueError, match="fit_rows = 3: must be at least 10"):
        run(EMBEDDINGS, tmp_path, fit_rows=3)
    with pytest.raises(ValueError, match="two clusterings are named 'gmm-4_0.01_kept'"):
        run(EMBEDDINGS, tmp_path, clustering.configurations(FEW, (0.01, 0.01)))
    with pytest.raises(ValueError, match="noise = 'drop' is not one of"):
        clustering.configurations(noise=("drop",))
    with pytest.raises(ValueError, match="'x' is not one of 'gmm'"):
        clustering.cluster_points(POINTS, Method("x", "x", ()))
    assert not (tmp_path / "labels").exists() or not list((tmp_path / "labels").iterdir())


def test_clusters_too_small_for_a_chain_are_refused(tmp_path, plain_projection):
    names = clustering.cluster_all(
        EMBEDDINGS, tmp_path, clustering.configurations(FEW, (0.01,)), fit_rows=300
    )
    clusters = cluster_choice.select_all(tmp_path, names, min_size=60, needed=60)
    assert len(clusters) == 16 and min(c.size for c in clusters) >= 60
    assert len({c.name for c in clusters}) == 16
    with pytest.raises(ValueError, match="clusters.min_size = 60: a chain needs 70500 human texts"):
        cluster_choice.select_all(tmp_path, names, min_size=60, needed=70_500)
    with pytest.raises(
        ValueError,
        match=r"min_size = 500: no cluster of the 4 clusterings, .* \(the dataset has 400 rows\)",
    ):
        cluster_choice.select_all(tmp_path, names, min_size=500)
    with pytest.raises(ValueError, match="'nothing' is not among the clusterings"):
        clustering.load_labels(tmp_path, "nothing")


def blobs(count, seed=1):
    draw = np.random.default_rng(seed)
    centers = draw.normal(size=(6, 24))
    truth = np.arange(count) % 6
    return truth, (centers[truth] + 0.3 * draw.normal(size=(count, 24))).astype(np.float32)


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_places_later_rows_among_them():
    import umap

    truth, embeddings = blobs(700)
    points = clustering.project(embeddings, 1e-3, fit_rows=500, seed=4)
    own = umap.UMAP(
        n_components=2, metric="cosine", n_neighbors=5, min_dist=1e-3, random_state=4
    ).fit_transform(embeddings[:500])
    np.testing.assert_array_equal(points[:500], own)
    labels = clustering.nearest_labels(points, truth[:500].astype(np.int32), "kept")
    assert (labels == truth).mean() > 0.99
    np.testing.assert_array_equal(
        points, clustering.project(embeddings, 1e-3, fit_rows=500, seed=4)
    )


@pytest.mark.slow
def test_several_processes_give_what_one_gives(tmp_path):
    _, embeddings = blobs(400)
    chosen = (Configuration(FEW[0], 1e-3, "kept"), Configuration(FEW[0], 1e-2, "kept"))
    one = clustering.cluster_all(embeddings, tmp_path / "one", chosen, fit_rows=300, jobs=1)
    two = clustering.cluster_all(embeddings, tmp_path / "two", chosen, fit_rows=300, jobs=2)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(
            clustering.load_labels(tmp_path / "one", a)[0],
            clustering.load_labels(tmp_path / "two", b)[0],
        )


@pytest.mark.slow
def test_real_texts_to_clusters(shared, tmp_path):
    """Three real datasets in one: the clusters of the whole path tell them apart far better than
    chance.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    from jaxloop.data import load_texts

    names = (
        "reddit_top/selfposts.jsonl",
        "senate_tweets/tweets.jsonl",
        "wikipedia_boolq/paragraphs.jsonl",
    )
    texts = [load_texts(shared(f"data/{name}"), limit=600)["text"].tolist() for name in names]
    order = np.random.default_rng(0).permutation(1800)
    source = np.repeat(np.arange(3), 600)[order]
    tfidf = TfidfVectorizer(min_df=3, sublinear_tf=True).fit_transform(
        [(texts[0] + texts[1] + texts[2])[i] for i in order]
    )
    embeddings = TruncatedSVD(32, random_state=0).fit_transform(tfidf).astype(np.float32)
    chosen = clustering.configurations(clustering.methods(1000), (1e-3,))
    made = clustering.cluster_all(
        embeddings, tmp_path, chosen, fit_rows=1000, projections="shared", seed=2
    )
    clusters = cluster_choice.select_all(tmp_path, made, min_size=80)
    assert len(clusters) > 200
    final = cluster_choice.final_sample(clusters, 24)
    overlap = cluster_choice.jaccard(final, lambda name: clustering.load_labels(tmp_path, name)[0])
    assert cluster_choice.overlap_summary(overlap)["overlapping"] > 0.1
    purity = []
    for c in final:
        rows = cluster_choice.members(c, clustering.load_labels(tmp_path, c.clustering)[0])
        assert len(rows) == c.size >= 80
        if c.kind == "direct":
            purity.append(np.bincount(source[rows], minlength=3).max() / len(rows))
    assert np.mean(purity) > 0.6
