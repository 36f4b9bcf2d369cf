"""Clusters a dataset by 120 clusterings of its embeddings.

They are 20 methods x 3 projections x 2 treatments of noise, as in arXiv 2504.03814, section 4.2,
and its released code. Every clustering projects the embeddings to two dimensions (UMAP fitted on
the first rows), clusters the projection of those rows, and gives every row of the dataset the label
of its nearest clustered row. `cluster_all` does this on several processes, with a file for each
clustering, and goes on where it was stopped; `cluster_choice` chooses among the clusters.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import joblib
import numpy as np
from scipy.spatial import cKDTree
from sklearn import cluster, mixture

from jaxloop.runtime.atomic_io import write_atomic

T = TypeVar("T")
Kind = Literal["gmm", "kmeans", "dbscan", "hdbscan"]

# Label of points that belong to no cluster.
NOISE = -1
FIT_ROWS = 90_000
MIN_DISTANCES = (1e-4, 1e-3, 1e-2)
_TRANSFORM_ROWS = 10_000
_SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class Method:
    """A clustering algorithm of scikit-learn with its parameters.

    Attributes:
        name: its name in tables, made of the paper's parameters.
        kind: which algorithm.
        parameters: sorted (name, value) pairs.
    """

    name: str
    kind: Kind
    parameters: tuple[tuple[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The settings of one clustering.

    Attributes:
        method: the algorithm.
        min_dist: UMAP's min_dist.
        noise: "kept": noise points are a class of their own when rows are labelled; "removed":
            every row gets a cluster.
    """

    method: Method
    min_dist: float
    noise: str

    @property
    def name(self) -> str:
        """The name of its file, unique among configurations."""
        return f"{self.method.name}_{self.min_dist:g}_{self.noise}"


def methods(fit_rows: int = FIT_ROWS) -> tuple[Method, ...]:
    """Return the 20 methods of the paper, for projections of `fit_rows` points.

    Below 90,000 points, the sizes that HDBSCAN and DBSCAN ask for shrink in proportion, and
    mixtures and k-means have at most one component per ten points. Everything else is the paper's.
    """
    scale = min(1.0, fit_rows / FIT_ROWS)

    def scaled(size: int, least: int) -> int:
        return max(least, round(size * scale))

    def method(kind: Kind, label: str, **parameters: Any) -> Method:
        return Method(f"{kind}-{label}", kind, tuple(sorted(parameters.items())))

    counts = (5, 10, 25, 50, 100, 1000)
    kinds: tuple[Kind, ...] = ("gmm", "kmeans")
    paper_methods = [
        method(kind, str(k), components=min(k, max(2, fit_rows // 10)))
        for kind in kinds
        for k in counts
    ]
    paper_methods += [
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
        paper_methods.append(method("hdbscan", f"{size}-{samples}-{selection}", **parameters))
    return tuple(paper_methods)


def configurations(
    chosen: Sequence[Method] | None = None,
    min_distances: Sequence[float] = MIN_DISTANCES,
    noise: Sequence[str] = ("kept", "removed"),
) -> tuple[Configuration, ...]:
    """Return every combination of method, projection and treatment of noise; default: the paper's.

    The paper has 120 (the authors' script has 126 jobs, since it lists one command twice).
    """
    for value in noise:
        if value not in ("kept", "removed"):
            raise ValueError(f"clusters.noise = {value!r} is not one of 'kept', 'removed'.")
    crossed = itertools.product(methods() if chosen is None else chosen, min_distances, noise)
    return tuple(Configuration(*values) for values in crossed)


def project(
    embeddings: np.ndarray,
    min_dist: float,
    *,
    fit_rows: int = FIT_ROWS,
    seed: int = 0,
    neighbors: int = 5,
) -> np.ndarray:
    """Return the positions [N, 2] float32 of embeddings [N, D] under UMAP with the cosine metric.

    UMAP is fitted on the first `fit_rows` of them.
    """
    # umap loads numba, which takes seconds.
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
    """Return labels [n] of points [n, 2]: 0, 1, ... for clusters, `NOISE` for noise."""
    p = dict(method.parameters)
    with warnings.catch_warnings():
        # Fewer distinct points than clusters, a mixture that did not converge: as in the paper's
        # code.
        warnings.simplefilter("ignore")
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
    """Return the labels [N] of all points [N, 2], given the labels [n] of the first n points.

    A point gets the label of the nearest of the first n points. noise: "kept" gives it the label
    `NOISE` if the nearest point is noise; "removed" takes the nearest point that is not noise.
    Without any cluster all points are noise.
    """
    index = np.arange(len(fitted_labels))
    if noise != "kept":
        index = np.flatnonzero(fitted_labels != NOISE)
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
    """Return the mean of the points [N, 2] of every cluster: [K, 2] float64.

    It is NaN for a label that no row has.
    """
    clustered = labels != NOISE
    size = int(labels.max(initial=NOISE)) + 1
    counts = np.bincount(labels[clustered], minlength=size)
    columns = [points[clustered, axis].astype(np.float64) for axis in (0, 1)]
    sums = np.stack([np.bincount(labels[clustered], x, size) for x in columns], axis=1)
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
    """Compute the clusterings of a dataset that are missing; return the names of all, in order.

    Each is a file in `folder/labels`.

    Args:
        embeddings: [N, D] float, finite; an array or a memory map (it is then read by every
            process, never copied whole).
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

    Raises ValueError for embeddings that are no finite matrix, fewer than 10 rows, or a folder made
    with other settings.
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
    work = _Work(embeddings, folder, fit_rows, projections == "shared", seed)
    missing = [c for c in chosen if not _is_stored(folder, c)]
    if work.shared:
        distances = sorted({c.min_dist for c in missing})
        absent = [d for d in distances if _load(_projection_path(folder, d), "points") is None]
        for _ in _parallel([functools.partial(_project_to_file, work, d) for d in absent], jobs):
            pass
    tasks = [functools.partial(_cluster_to_file, work, c) for c in missing]
    before = len(chosen) - len(missing)
    for done, name in enumerate(_parallel(tasks, jobs), before + 1):
        if progress is not None:
            progress(done, len(chosen), name)
    return names


def load_labels(folder: str | Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return labels [N] int32 and centroids [K, 2] of one clustering that `cluster_all` has made.

    Raises ValueError where it is missing or damaged.
    """
    path = Path(folder) / "labels" / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"clusters: {name!r} is not among the clusterings in {path.parent}.")
    arrays = _load(path, "labels", "centroids")
    if arrays is None:
        raise ValueError(f"clusters: {path} is damaged; run the clustering again.")
    labels, centers = arrays
    return labels, centers


def _is_stored(folder: Path, configuration: Configuration) -> bool:
    try:
        load_labels(folder, configuration.name)
    except ValueError:
        return False
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """What all clusterings of a dataset share: see `cluster_all`.

    shared: whether clusterings of one min_dist share a projection, which lies in the folder.
    """

    embeddings: np.ndarray
    folder: Path
    fit_rows: int
    shared: bool
    seed: int


def _cluster_to_file(work: _Work, configuration: Configuration) -> str:
    seed = fold_seed(work.seed, configuration.name)
    if work.shared:
        points = _shared_projection(work.folder, configuration.min_dist)
    else:
        points = project(work.embeddings, configuration.min_dist, fit_rows=work.fit_rows, seed=seed)
    fitted = cluster_points(points[: work.fit_rows], configuration.method, seed)
    labels = nearest_labels(points, fitted, configuration.noise)
    _save(
        work.folder / "labels" / f"{configuration.name}.npz",
        labels=labels,
        centroids=centroids(points, labels),
    )
    return configuration.name


def _project_to_file(work: _Work, min_dist: float) -> None:
    seed = fold_seed(work.seed, f"projection {min_dist:g}")
    points = project(work.embeddings, min_dist, fit_rows=work.fit_rows, seed=seed)
    _save(_projection_path(work.folder, min_dist), points=points)


def _projection_path(folder: Path, min_dist: float) -> Path:
    return folder / f"projection_{min_dist:g}.npz"


def _shared_projection(folder: Path, min_dist: float) -> np.ndarray:
    path = _projection_path(folder, min_dist)
    arrays = _load(path, "points")
    if arrays is None:
        raise ValueError(f"clusters: {path} is damaged; run the clustering again.")
    return arrays[0]


def _load(path: Path, *names: str) -> tuple[np.ndarray, ...] | None:
    """The arrays of these names in a file, checked by CRC-32; None if it is missing or damaged."""
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


def _save(path: Path, **arrays: np.ndarray) -> None:
    stream = io.BytesIO()
    # The stubs of numpy take the arrays for its option `allow_pickle`.
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    write_atomic(path, stream.getvalue())


def _parallel(tasks: Sequence[Callable[[], T]], jobs: int) -> Iterator[T]:
    """Yield the results of tasks as they are finished, from one process or from several."""
    if jobs <= 1 or len(tasks) <= 1:
        yield from (task() for task in tasks)
        return
    yield from joblib.Parallel(n_jobs=min(jobs, len(tasks)), return_as="generator_unordered")(
        joblib.delayed(task)() for task in tasks
    )


def fold_seed(seed: int, name: str) -> int:
    """Return a seed that is derived from a common seed and a name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4], "little")


def _check(embeddings: np.ndarray) -> int:
    """The number of rows. Raises ValueError where the embeddings cannot be clustered."""
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


def _digest(embeddings: np.ndarray) -> str:
    digest = hashlib.sha256(str((np.shape(embeddings), str(embeddings.dtype))).encode())
    for start in range(0, len(embeddings), _TRANSFORM_ROWS):
        digest.update(np.ascontiguousarray(embeddings[start : start + _TRANSFORM_ROWS]).tobytes())
    return digest.hexdigest()


def _remember(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the clusterings of a folder were made with, or refuse to mix them with others."""
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
