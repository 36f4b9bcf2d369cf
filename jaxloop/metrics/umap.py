"""The evaluation UMAP: a two-dimensional map on which entropy and Gaussianity are measured.

There is one per dataset, fitted once on human texts, stored with the run as plain arrays, and
applied to what every generation wrote. Nothing is pickled: a pickled UMAP runs code when it is
read, and does not survive a change of its library. What `transform` needs is the training points
and their positions; the neighbours of new points are searched afresh (exactly, where umap-learn
searches approximately), and the rest is umap-learn's own arithmetic.
"""

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from jaxloop.metrics.semantic import Points, check_points
from jaxloop.runtime.atomic_io import write_atomic

_BLOCK_ELEMENTS = 1 << 25


@dataclass(frozen=True)
class MapSettings:
    """Parameters of the map, with the values of arXiv 2504.03814 (whose map was not seeded).

    Attributes:
        limit: embeddings that the map is fitted on: the first ones.
        neighbours: n_neighbors of UMAP.
        min_dist: least distance between positions.
        seed: of the fit and of every projection.
    """

    limit: int = 90_000
    neighbours: int = 5
    min_dist: float = 0.01
    seed: int = 0


@dataclass(frozen=True, eq=False)
class EvaluationMap:
    """A fitted map: training points [m, d] float32 and their positions [m, 2] float32.

    a, b: of the layout's curve 1 / (1 + a r^(2b)).
    """

    points: np.ndarray
    positions: np.ndarray
    a: float
    b: float
    settings: MapSettings

    def __call__(self, points: Points) -> np.ndarray:
        """Return `project(self, points)`."""
        return project(self, points)


def fit_map(points: Points, settings: MapSettings | None = None) -> EvaluationMap:
    """Fit UMAP to embeddings [n, d] under the cosine metric.

    The same points and settings give the same map on the same versions.

    Raises:
        ValueError: fewer than neighbours + 2 points, NaN, or settings out of range.
    """
    settings = settings or MapSettings()
    if settings.neighbours < 2 or settings.limit < 1 or not 0 <= settings.min_dist <= 1:
        raise ValueError(
            f"{settings} is out of range, neighbours >= 2, limit >= 1 and min_dist in [0, 1] are "
            "needed."
        )
    array, single = check_points(points)
    if not single:
        raise ValueError(f"points have shape {list(array.shape)}, [n, d] is needed to fit a map.")
    array = np.ascontiguousarray(array[0, : settings.limit], np.float32)
    if len(array) < settings.neighbours + 2:
        raise ValueError(
            f"points are {len(array)}, at least neighbours + 2 = {settings.neighbours + 2} are "
            "needed to fit a map."
        )
    # umap compiles with numba, which takes seconds to import.
    import umap

    model = umap.UMAP(
        n_neighbors=settings.neighbours,
        min_dist=settings.min_dist,
        metric="cosine",
        random_state=settings.seed,
        n_jobs=1,
    ).fit(array)
    # UMAP has no public names for what it fitted its curve to.
    a, b = float(model._a), float(model._b)  # noqa: SLF001
    return EvaluationMap(array, np.asarray(model.embedding_, np.float32), a, b, settings)


def project(fitted: EvaluationMap, points: Points) -> np.ndarray:
    """Return positions [n, 2] float32 of embeddings [n, d] on the map.

    They are those of `UMAP.transform` for exact neighbours. A point starts at the mean of its
    neighbours' positions, weighted by membership, and is then moved by the layout's gradient steps
    while the map stays fixed. The schedule depends on the set that is projected together: project
    one chain at a time. Equal points get equal positions. No points: [0, 2].

    Raises:
        ValueError: NaN, or another number of dimensions than the map's.
    """
    array, single = check_points(points)
    if not single or array.shape[2] != fitted.points.shape[1]:
        raise ValueError(
            f"points have shape {list(np.shape(points))}, [n, {fitted.points.shape[1]}] is "
            "needed for this map."
        )
    if not array.shape[1]:
        return np.zeros((0, 2), np.float32)
    # umap compiles with numba, which takes seconds to import.
    from umap.layouts import optimize_layout_euclidean
    from umap.umap_ import (
        INT32_MAX,
        INT32_MIN,
        compute_membership_strengths,
        init_graph_transform,
        make_epochs_per_sample,
        smooth_knn_dist,
    )

    k = fitted.settings.neighbours
    indices, distances = nearest(fitted.points, array[0].astype(np.float32), k)
    sigmas, rhos = smooth_knn_dist(distances, float(k), local_connectivity=0.0)
    rows, columns, weights, _ = compute_membership_strengths(
        indices, distances, sigmas, rhos, bipartite=True
    )
    graph = sparse.coo_matrix((weights, (rows, columns)), shape=(len(indices), len(fitted.points)))
    start = graph.tocsr()
    start.eliminate_zeros()
    positions = init_graph_transform(start, fitted.positions)
    epochs = 100 if len(indices) <= 10_000 else 30
    graph.data[graph.data < graph.data.max() / epochs] = 0.0
    graph.eliminate_zeros()
    state = (
        np.random.RandomState(fitted.settings.seed)
        .randint(INT32_MIN, INT32_MAX, 3)
        .astype(np.int64)
    )
    return optimize_layout_euclidean(
        positions,
        fitted.positions.copy(),
        graph.row,
        graph.col,
        epochs,
        graph.shape[1],
        make_epochs_per_sample(graph.data, epochs),
        fitted.a,
        fitted.b,
        state,
        1.0,  # repulsion strength
        0.25,  # a quarter of UMAP's learning rate of 1, as in its transform
        5,  # negative samples
        False,  # one thread: the steps stay in order, so the result is reproducible
    )


def nearest(points_MD: np.ndarray, queries_ND: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k points of smallest cosine distance to each query, nearest first.

    Indices [n, k] int32 and distances [n, k] float32. Blockwise, so that no n x m matrix is held.
    The distances found are computed again in float64: the layout's steps amplify a last digit, and
    so the map of a text would depend on the hardware. A zero vector is at distance 1 from
    everything. ValueError for k > m.
    """
    if not 1 <= k <= len(points_MD):
        raise ValueError(f"k is {k}, a number from 1 to the {len(points_MD)} points is needed.")
    rows = int(max(1, min(len(queries_ND), _BLOCK_ELEMENTS // len(points_MD))))
    padded = np.pad(queries_ND, ((0, -len(queries_ND) % rows), (0, 0))).reshape(
        -1, rows, queries_ND.shape[1]
    )
    indices = np.asarray(
        nearest_points(jnp.asarray(points_MD, jnp.float32), jnp.asarray(padded, jnp.float32), k)
    )
    indices = indices.reshape(-1, k)[: len(queries_ND)].astype(np.int32)
    distances = np.empty(indices.shape)
    for begin in range(0, len(indices), 4096):
        block = slice(begin, begin + 4096)
        query = queries_ND[block].astype(np.float64)
        point = points_MD[indices[block]].astype(np.float64)
        norms = np.linalg.norm(query, axis=-1)[:, None] * np.linalg.norm(point, axis=-1)
        products = np.einsum("nd,nkd->nk", query, point)
        distances[block] = 1 - np.divide(
            products, norms, out=np.zeros_like(products), where=norms > 0
        )
    order = np.argsort(distances, axis=1, kind="stable")
    distances = np.take_along_axis(np.clip(distances, 0, None), order, 1)
    return np.take_along_axis(indices, order, 1), distances.astype(np.float32)


@partial(jax.jit, static_argnames="k")
def nearest_points(points_MD: jax.Array, queries_KND: jax.Array, k: int) -> jax.Array:
    """Indices [K, N, k] of the k nearest points to each query, blocks K at a time."""

    def unit(x):
        norm = jnp.sqrt((x * x).sum(-1, keepdims=True))
        return jnp.where(norm > 0, x / jnp.where(norm > 0, norm, 1), 0)

    unit_MD = unit(points_MD)

    def of_block(queries_ND):
        return jax.lax.top_k(jnp.matmul(unit(queries_ND), unit_MD.T, precision="highest"), k)[1]

    return jax.lax.map(of_block, queries_KND)


def save_map(fitted: EvaluationMap, path: str | Path) -> None:
    """Write a map, whole or not at all, as an .npz of plain arrays. The path must end in .npz."""
    if Path(path).suffix != ".npz":
        raise ValueError(f"path is {str(path)!r}, a name that ends in .npz is needed.")
    header = json.dumps({"a": fitted.a, "b": fitted.b, "settings": asdict(fitted.settings)})
    stream = io.BytesIO()
    np.savez(
        stream,
        points=fitted.points,
        positions=fitted.positions,
        header=np.frombuffer(header.encode(), np.uint8),
    )
    write_atomic(Path(path), stream.getvalue())


def load_map(path: str | Path) -> EvaluationMap:
    """Read a map that `save_map` wrote. ValueError if the file is not one."""
    try:
        # numpy leaves a file open that it opened itself and found damaged
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            return EvaluationMap(
                file["points"],
                file["positions"],
                header["a"],
                header["b"],
                MapSettings(**header["settings"]),
            )
    except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not an evaluation map: {error}.") from error
