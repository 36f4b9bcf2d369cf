"""Clusters of a dataset by 120 clusterings of its embeddings (arXiv 2504.03814, section 4.2 and its
code): 20 methods x 3 projections x 2 treatments of noise.

Every clustering projects the embeddings to two dimensions (UMAP fitted on the first rows), clusters
the projection of those rows, and gives every row of the dataset the label of its nearest clustered
row. Out of each, clusters above a minimum size are drawn, and where there are too few, small ones
are merged; a final subsample of all of them is what a study runs its chains on.

`cluster_all` does the long part, on several processes, one file per clustering, and goes on where
it was stopped; `select`, `final_sample` and `jaccard` are quick and write nothing.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import random
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxloop.runtime.atomic_io import write_atomic

NOISE = -1
FIT_ROWS = 90_000
MIN_DISTANCES = (1e-4, 1e-3, 1e-2)
# The paper's text says 60,000; its code 80,000, which a chain at r = 1/8 needs (70,500 human
# posts).
MIN_SIZE = 80_000
_TRANSFORM_ROWS = 10_000
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Method:
    """A clustering algorithm of scikit-learn with its parameters, as sorted pairs.

    kind: "gmm", "kmeans", "dbscan" or "hdbscan"; name: as in the tables of a study, after the
    paper's parameters.
    """

    name: str
    kind: str
    parameters: tuple[tuple[str, object], ...]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """One clustering: a method, UMAP's min_dist, and whether noise points are "kept" as a class of
    their own when rows are labelled, or "removed", so that every row gets a cluster.
    """

    method: Method
    min_dist: float
    noise: str

    @property
    def name(self) -> str:
        """Unique among configurations; the name of its file."""
        return f"{self.method.name}_{self.min_dist:g}_{self.noise}"


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that a study may use: rows of a dataset whose label in one clustering is one of
    `labels`.

    kind: "direct" for one label, "far" or "random" for merged ones (the order of `labels` is that
    of the merging); size: in rows.
    """

    clustering: str
    kind: str
    labels: tuple[int, ...]
    size: int

    @property
    def name(self) -> str:
        """Unique within a dataset."""
        return f"{self.clustering}:{'+'.join(map(str, self.labels))}"


def methods(fit_rows: int = FIT_ROWS) -> tuple[Method, ...]:
    """The 20 methods of the paper, for projections of `fit_rows` points.

    Below 90,000 points, the sizes that HDBSCAN and DBSCAN ask for shrink in proportion, and
    mixtures and k-means have at most one component per ten points. Everything else is the paper's.
    """
    scale = min(1.0, fit_rows / FIT_ROWS)

    def scaled(size, least):
        return max(least, round(size * scale))

    def method(kind, label, **parameters):
        return Method(f"{kind}-{label}", kind, tuple(sorted(parameters.items())))

    counts = (5, 10, 25, 50, 100, 1000)
    found = [
        method(kind, k, components=min(k, max(2, fit_rows // 10)))
        for kind in ("gmm", "kmeans")
        for k in counts
    ]
    found += [
        method("dbscan", f"{eps}-{m}", eps=eps, min_samples=scaled(m, 3))
        for eps, m in ((0.1, 50), (0.2, 100))
    ]
    sizes = (
        (5, 1, "eom"),
        (100, 1, "leaf"),
        (1000, 100, "leaf"),
        (1000, 1, "leaf"),
        (3000, 1, "leaf"),
        (3000, 100, "leaf"),
    )
    for size, samples, selection in sizes:
        parameters = {
            "min_cluster_size": scaled(size, 5),
            "min_samples": scaled(samples, 1),
            "selection": selection,
        }
        found.append(method("hdbscan", f"{size}-{samples}-{selection}", **parameters))
    return tuple(found)


def configurations(
    chosen: Sequence[Method] | None = None,
    min_distances: Sequence[float] = MIN_DISTANCES,
    noise: Sequence[str] = ("kept", "removed"),
) -> tuple[Configuration, ...]:
    """All clusterings: every method with every projection and treatment of noise; by default the
    paper's 120.

    (The authors' script lists one command twice, 126 jobs in all, which leaves the same 120.)
    """
    for value in noise:
        if value not in ("kept", "removed"):
            raise ValueError(f"clusters.noise = {value!r} is not one of 'kept', 'removed'.")
    return tuple(
        Configuration(*c)
        for c in itertools.product(methods() if chosen is None else chosen, min_distances, noise)
    )


def project(
    embeddings: np.ndarray,
    min_dist: float,
    *,
    fit_rows: int = FIT_ROWS,
    seed: int = 0,
    neighbors: int = 5,
) -> np.ndarray:
    """UMAP to two dimensions, cosine, fitted on the first `fit_rows` of the embeddings [N, D]; all
    rows projected: [N, 2] float32.
    """
    import umap

    fit = np.asarray(embeddings[:fit_rows], np.float32)
    with warnings.catch_warnings():
        # What is said here concerns speed, or rows without neighbours in a cosine graph, which UMAP
        # places at random.
        warnings.simplefilter("ignore")
        reducer = umap.UMAP(
            n_components=2,
            metric="cosine",
            n_neighbors=neighbors,
            min_dist=min_dist,
            random_state=seed,
            n_jobs=1,
        )
        out = np.empty((len(embeddings), 2), np.float32)
        out[:fit_rows] = reducer.fit_transform(fit)
        for start in range(fit_rows, len(embeddings), _TRANSFORM_ROWS):
            part = np.asarray(embeddings[start : start + _TRANSFORM_ROWS], np.float32)
            out[start : start + _TRANSFORM_ROWS] = reducer.transform(part)
    return out


def cluster_points(points: np.ndarray, method: Method, seed: int = 0) -> np.ndarray:
    """Labels [n] of points [n, 2]: 0, 1, ... for clusters, `NOISE` for noise."""
    from sklearn import cluster, mixture

    p = dict(method.parameters)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # fewer distinct points than clusters, a mixture not converged: as in the paper's code
        if method.kind == "gmm":
            labels = mixture.GaussianMixture(p["components"], random_state=seed).fit_predict(
                points.astype(np.float64)
            )
        elif method.kind == "kmeans":
            labels = cluster.MiniBatchKMeans(p["components"], random_state=seed).fit_predict(points)
        elif method.kind == "dbscan":
            labels = cluster.DBSCAN(eps=p["eps"], min_samples=p["min_samples"]).fit_predict(points)
        elif method.kind == "hdbscan":
            # scikit-learn counts the point itself among its samples, the hdbscan package, whose
            # numbers these are, does not.
            labels = cluster.HDBSCAN(
                min_cluster_size=p["min_cluster_size"],
                min_samples=min(p["min_samples"] + 1, len(points)),
                cluster_selection_method=p["selection"],
                copy=True,
            ).fit_predict(points.astype(np.float64))
        else:
            raise ValueError(
                f"clusters.methods: {method.kind!r} is not one of 'gmm', 'kmeans', 'dbscan', "
                "'hdbscan'."
            )
    return np.unique(np.append(labels, NOISE), return_inverse=True)[1][:-1].astype(np.int32) - 1


def nearest_labels(points: np.ndarray, fitted_labels: np.ndarray, noise: str) -> np.ndarray:
    """Labels [N] of all points [N, 2]: that of the nearest of the first n points, whose labels [n]
    are given.

    noise: "kept" gives the label `NOISE` where the nearest point is noise, "removed" looks for the
    nearest point that is none. Without any cluster, all are noise.
    """
    from scipy.spatial import cKDTree

    index = (
        np.arange(len(fitted_labels)) if noise == "kept" else np.flatnonzero(fitted_labels != NOISE)
    )
    if not len(index):
        return np.full(len(points), NOISE, np.int32)
    out = np.empty(len(points), np.int32)
    out[: len(fitted_labels)] = fitted_labels
    tree = cKDTree(points[index])
    unknown = np.flatnonzero(np.arange(len(points)) >= len(fitted_labels))
    if noise == "removed":
        unknown = np.concatenate([np.flatnonzero(fitted_labels == NOISE), unknown])
    if len(unknown):
        out[unknown] = fitted_labels[index[tree.query(points[unknown])[1]]]
    return out


def centroids(points: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean projection of the rows of every cluster: [K, 2] float64, NaN for a label that no row
    has.
    """
    kept = labels != NOISE
    size = int(labels.max(initial=NOISE)) + 1
    counts = np.bincount(labels[kept], minlength=size)
    sums = np.stack(
        [np.bincount(labels[kept], points[kept, axis].astype(np.float64), size) for axis in (0, 1)],
        axis=1,
    )
    return np.divide(
        sums, counts[:, None], out=np.full((size, 2), np.nan), where=counts[:, None] > 0
    )


def cluster_all(
    embeddings: np.ndarray,
    folder: str | Path,
    chosen: Sequence[Configuration] | None = None,
    *,
    fit_rows: int = FIT_ROWS,
    projections: str = "each",
    seed: int = 0,
    jobs: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[str]:
    """Compute what is missing of the clusterings of a dataset, one file each in `folder/labels`;
    the names of all, in order.

    Args:
      embeddings: [N, D] float, finite; an array or a memory map (it is then read by every process,
      never copied whole).
      folder: where the results go. It remembers the settings and a digest of the embeddings, and
      refuses others.
      chosen: the clusterings; the paper's 120, their sizes scaled to `fit_rows`, when None. More
      may be asked for later.
      fit_rows: how many rows UMAP and the clustering are fitted on (the first ones); at most N.
      projections: "each" fits UMAP anew for every clustering, as the code does for the sake of
      diversity; "shared" once per min_dist.
      seed: of every projection and clustering, folded with its name.
      jobs: processes.
      progress: called with (done, total, name) after each.

    Raises: ValueError for embeddings that are no finite matrix, fewer than 10 rows, or a folder
    made with other settings.
    """
    if projections not in ("each", "shared"):
        raise ValueError(f"clusters.projections = {projections!r} is not one of 'each', 'shared'.")
    rows = _check(embeddings)
    if fit_rows < 10:
        raise ValueError(f"clusters.fit_rows = {fit_rows}: must be at least 10.")
    fit_rows = min(fit_rows, rows)
    chosen = configurations(methods(fit_rows)) if chosen is None else tuple(chosen)
    names = [configuration.name for configuration in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"clusters: two clusterings are named {name!r}; give the methods different names."
            )
    folder = Path(folder)
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    _remember(
        folder,
        {
            "embeddings": _digest(embeddings),
            "rows": rows,
            "fit_rows": fit_rows,
            "projections": projections,
            "seed": seed,
        },
    )
    missing = [c for c in chosen if _stored(folder, c) is None]
    done = len(chosen) - len(missing)
    shared = sorted({c.min_dist for c in missing}) if projections == "shared" else []
    tasks = [
        functools.partial(_project_to_file, embeddings, folder, d, fit_rows, seed)
        for d in shared
        if _projection(folder, d) is None
    ]
    for _ in _parallel(tasks, jobs):
        pass
    tasks = [
        functools.partial(_cluster_to_file, embeddings, folder, c, fit_rows, projections, seed)
        for c in missing
    ]
    for name in _parallel(tasks, jobs):
        done += 1
        if progress is not None:
            progress(done, len(chosen), name)
    return names


def load_labels(folder: str | Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] int32 and centroids [K, 2] of one clustering that `cluster_all` has made.

    Raises ValueError where it is missing or damaged."""
    path = Path(folder) / "labels" / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"clusters: {name!r} is not among the clusterings in {path.parent}.")
    arrays = _load(path, "labels", "centroids")
    if arrays is None:
        raise ValueError(f"clusters: {path} is damaged; run the clustering again.")
    return arrays


def _stored(folder, configuration):
    try:
        return load_labels(folder, configuration.name)
    except ValueError:
        return None


def _cluster_to_file(embeddings, folder, configuration, fit_rows, projections, seed):
    own = _seed(seed, configuration.name)
    if projections == "each":
        points = project(embeddings, configuration.min_dist, fit_rows=fit_rows, seed=own)
    else:
        points = _projection(folder, configuration.min_dist)
    fitted = cluster_points(points[:fit_rows], configuration.method, own)
    labels = nearest_labels(points, fitted, configuration.noise)
    _save(
        folder / "labels" / f"{configuration.name}.npz",
        labels=labels,
        centroids=centroids(points, labels),
    )
    return configuration.name


def _project_to_file(embeddings, folder, min_dist, fit_rows, seed):
    points = project(
        embeddings, min_dist, fit_rows=fit_rows, seed=_seed(seed, f"projection {min_dist:g}")
    )
    _save(folder / f"projection_{min_dist:g}.npz", points=points)


def _projection(folder, min_dist):
    arrays = _load(folder / f"projection_{min_dist:g}.npz", "points")
    return None if arrays is None else arrays[0]


def _load(path, *names):
    """Arrays of a file by their names, each byte checked against its CRC-32; None where the file is
    missing or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        with np.load(path, allow_pickle=False) as file:
            return tuple(file[name] for name in names)
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None


def _save(path, **arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    write_atomic(path, stream.getvalue())


def _parallel(tasks, jobs):
    """Results in the order in which they come; with several processes, each task in one of them."""
    if jobs <= 1 or len(tasks) <= 1:
        yield from (task() for task in tasks)
        return
    import joblib

    yield from joblib.Parallel(n_jobs=min(jobs, len(tasks)), return_as="generator_unordered")(
        joblib.delayed(task)() for task in tasks
    )


def _seed(seed, name):
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def _check(embeddings):
    shape = np.shape(embeddings)
    if len(shape) != 2 or shape[0] < 10 or shape[1] < 2:
        raise ValueError(
            f"embeddings: have the shape {shape}; they must be a matrix with a row for each of "
            "at least 10 texts."
        )
    for start in range(0, shape[0], _TRANSFORM_ROWS):
        bad = ~np.isfinite(np.asarray(embeddings[start : start + _TRANSFORM_ROWS])).all(axis=1)
        if bad.any():
            raise ValueError(f"embeddings: row {start + int(np.argmax(bad))} is not finite.")
    return shape[0]


def _digest(embeddings):
    digest = hashlib.sha256(str((np.shape(embeddings), str(embeddings.dtype))).encode())
    for start in range(0, len(embeddings), _TRANSFORM_ROWS):
        digest.update(np.ascontiguousarray(embeddings[start : start + _TRANSFORM_ROWS]).tobytes())
    return digest.hexdigest()


def _remember(folder, settings):
    path = folder / _SETTINGS
    if not path.exists():
        write_atomic(path, json.dumps(settings, indent=1).encode())
        return
    try:
        before = json.loads(path.read_bytes())
    except ValueError:
        raise ValueError(
            f"clusters: {path} is damaged; delete the folder to cluster again."
        ) from None
    for name, value in settings.items():
        if before.get(name) != value:
            raise ValueError(
                f"clusters: {folder} was made with {name} = {before.get(name)!r}, not {value!r}; "
                "use another folder."
            )


def select(
    clustering: str,
    labels: np.ndarray,
    centers: np.ndarray,
    *,
    min_size: int = MIN_SIZE,
    count: int = 10,
    seed: int = 0,
) -> list[Cluster]:
    """Up to `count` clusters of one clustering [N labels, K centroids].

    Direct ones, with more than `min_size` rows, are drawn at random. If there are too few, the
    small ones are merged in turns, "far" and "random", until a merged one has at least `min_size`
    rows, as long as the rows that are left allow it. No cluster is used twice.
    """
    sizes = (
        np.bincount(labels[labels != NOISE], minlength=len(centers))
        if len(centers)
        else np.zeros(0, int)
    )
    draw = random.Random(_seed(seed, clustering))
    large = np.flatnonzero(sizes > min_size).tolist()
    found = [
        Cluster(clustering, "direct", (k,), int(sizes[k]))
        for k in draw.sample(large, min(count, len(large)))
    ]
    if len(large) >= count:
        return found
    rest = np.flatnonzero((sizes <= min_size) & (sizes > 0)).tolist()
    draw.shuffle(rest)
    for turn in range(count - len(large)):
        if sizes[rest].sum() < min_size:
            break
        kind = "random" if turn % 2 else "far"
        merged = _merge(rest, sizes, centers if kind == "far" else None, min_size)
        rest = [k for k in rest if k not in set(merged)]
        found.append(Cluster(clustering, kind, tuple(merged), int(sizes[merged].sum())))
    return found


def _merge(rest, sizes, centers, min_size):
    """The first of `rest` and then, until they have `min_size` rows, the next (no centers) or that
    with the largest sum of distances to all taken before.
    """
    merged, total = [rest[0]], int(sizes[rest[0]])
    others = list(rest[1:])
    distance = np.zeros(len(others))
    while total < min_size:
        if centers is None:
            position = 0
        else:
            distance += np.linalg.norm(centers[others] - centers[merged[-1]], axis=1)
            position = int(np.argmax(distance))
            distance = np.delete(distance, position)
        merged.append(others.pop(position))
        total += int(sizes[merged[-1]])
    return merged


def select_all(
    folder: str | Path,
    names: Sequence[str],
    *,
    min_size: int = MIN_SIZE,
    count: int = 10,
    seed: int = 0,
    needed: int | None = None,
) -> list[Cluster]:
    """`select` for each of the clusterings in a folder, one after the other.

    Raises ValueError where no clustering has a cluster of that size, or `min_size` is less than the
    rows `needed` by a chain.
    """
    if needed is not None and min_size < needed:
        raise ValueError(
            f"clusters.min_size = {min_size}: a chain needs {needed} human texts; choose at "
            f"least {needed}, or shorter chains."
        )
    found, rows = [], 0
    for name in names:
        labels, centers = load_labels(folder, name)
        rows = len(labels)
        found += select(name, labels, centers, min_size=min_size, count=count, seed=seed)
    if not found:
        raise ValueError(
            f"clusters.min_size = {min_size}: no cluster of the {len(names)} clusterings, merged "
            "or not, is that large "
            f"(the dataset has {rows} rows); choose a smaller size or more data."
        )
    return found


def final_sample(clusters: Sequence[Cluster], count: int = 200, seed: int = 42) -> list[Cluster]:
    """The clusters that a study uses: `random.sample` with Python's generator, seeded with 42 as in
    the code. All where there are fewer.
    """
    return (
        list(clusters)
        if len(clusters) <= count
        else random.Random(seed).sample(list(clusters), count)
    )


def members(cluster: Cluster, labels: np.ndarray) -> np.ndarray:
    """Row numbers of a cluster, given the labels of its clustering, in increasing order."""
    return np.flatnonzero(np.isin(labels, cluster.labels))


def jaccard(
    clusters: Sequence[Cluster], labels: Callable[[str], np.ndarray] | Mapping[str, np.ndarray]
) -> np.ndarray:
    """Overlap of every pair of clusters, |A and B| / |A or B|: [C, C] float64 with ones on the
    diagonal.

    labels: the labels [N] of a clustering by its name (`lambda name: load_labels(folder,
    name)[0]`), each asked for once.
    """
    look_up = labels.__getitem__ if isinstance(labels, Mapping) else labels
    bits = [None] * len(clusters)
    order = sorted(range(len(clusters)), key=lambda i: clusters[i].clustering)
    for name, group in itertools.groupby(order, key=lambda i: clusters[i].clustering):
        own = look_up(name)
        for i in group:
            bits[i] = np.packbits(np.isin(own, clusters[i].labels))
    sizes = np.array([np.bitwise_count(b).sum(dtype=np.int64) for b in bits], np.float64)
    both = np.zeros((len(clusters), len(clusters)))
    for i in range(len(clusters)):
        for j in range(i, len(clusters)):
            both[i, j] = both[j, i] = np.bitwise_count(bits[i] & bits[j]).sum(dtype=np.int64)
    return both / (sizes[:, None] + sizes[None, :] - both)


def overlap_summary(overlap: np.ndarray) -> dict[str, float]:
    """Of the pairs of different clusters: mean, median, largest overlap, and the share of pairs
    that overlap at all or by half.
    """
    pairs = overlap[np.triu_indices(len(overlap), 1)]
    if not len(pairs):
        return {
            "pairs": 0,
            "mean": 0.0,
            "median": 0.0,
            "largest": 0.0,
            "overlapping": 0.0,
            "by_half": 0.0,
        }
    return {
        "pairs": len(pairs),
        "mean": float(pairs.mean()),
        "median": float(np.median(pairs)),
        "largest": float(pairs.max()),
        "overlapping": float((pairs > 0).mean()),
        "by_half": float((pairs >= 0.5).mean()),
    }
