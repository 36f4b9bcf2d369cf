"""Diversity of embeddings: spread, neighbour distances, entropy.

Every function takes points [n, d] and returns a float, or [c, n, d] and returns [c] float64; chains
do not influence each other. Distances are computed blockwise, so that no n x n matrix is ever held.

Dimensions: N rows of all points, B rows of one block, D dimensions, K neighbours.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import KDTree
from scipy.special import digamma, gammaln

from jaxloop.core.checks import is_whole
from jaxloop.metrics.base import EMBEDDINGS, PROJECTION, Metric
from jaxloop.metrics.chain_points import by_chain, more_than_k
from jaxloop.metrics.corpus import ChainValues
from jaxloop.runtime.devices import platform_of

BLOCK_ELEMENTS = 1 << 25  # distances held at a time
# Above this many neighbours XLA's top_k on a CPU loses to a partition in NumPy.
_SELECT_IN_GRAPH = 128
_TREE_DIMENSIONS = 8
_MARGIN = 8  # ranks on either side of k among which float32 may have misplaced the k-th neighbour
_RANKABLE = 1e-2  # squared distances below this share of the squared norms are ranked in float64
Constant = Literal["package", "textbook"]
CONSTANTS = get_args(Constant)

Points = np.ndarray | jax.Array


def check_points(points: Points, name: str = "points") -> tuple[np.ndarray, bool]:
    """Return points as floating point [c, n, d], and whether they came without the chain axis.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    array = np.asarray(points)
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{name} has shape {list(array.shape)}, [n, d] or [chains, n, d] is needed."
        )
    if array.dtype.kind not in "fiu":
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        array = array.astype(np.float64)
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    single = array.ndim == 2
    array = array[None] if single else array
    bad = ~np.isfinite(array).all((1, 2))
    if bad.any():
        where = "" if single else f" of chain {int(bad.argmax())}"
        raise ValueError(f"{name}{where} hold NaN or infinity, finite numbers are needed.")
    return array, single


def _check_k(k: int, n: int) -> int:
    if not is_whole(k) or k >= n:
        raise ValueError(f"k is {k!r}, a whole number from 1 to n - 1 = {n - 1} is needed.")
    return int(k)


def fold(values: Sequence[float] | np.ndarray, single: bool) -> ChainValues:
    """Return values of chains [c] as float64; as a float where the chain axis was absent."""
    return float(values[0]) if single else np.asarray(values, np.float64)


def cosine_diversity(points: Points) -> ChainValues:
    """Mean cosine distance 1 - cos(x_i, x_j) over all pairs i < j, in [0, n / (n - 1)].

    Source: arXiv 2504.03814. Not by pairs: sum_{i != j} cos = |sum_i u_i|^2 - sum_i |u_i|^2 with
    u = x / |x|, so the time is linear in n. A zero vector has cosine 0 to everything, as in
    scikit-learn. Fewer than two points: 0. All identical: 0. ValueError for NaN or infinity.
    """
    array, single = check_points(points)
    n = array.shape[1]
    if n < 2:
        return fold(np.zeros(len(array)), single)
    values = []
    for chain in array:  # float64 sums, from the float32 numbers as they are
        total, squares = np.zeros(chain.shape[1]), 0.0
        for begin in range(0, n, 8192):
            block = chain[begin : begin + 8192].astype(np.float64)
            norm = np.sqrt(np.einsum("nd,nd->n", block, block))
            total += np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0) @ block
            squares += (norm > 0).sum()
        values.append(1 - (total @ total - squares) / (n * (n - 1)))
    return fold(np.maximum(values, 0.0), single)


def knn_cosine_diversity(points: Points, k: int = 5) -> ChainValues:
    """Mean over points of the mean cosine distance to the k nearest others, in [0, 2].

    Source: arXiv 2504.03814. The nearest others are those of largest cosine; a point itself is
    never among them, its duplicates are. A zero vector has cosine 0 to everything. ValueError for k
    >= n, NaN or infinity.
    """
    array, single = check_points(points)
    k = _check_k(k, array.shape[1])
    if k <= _SELECT_IN_GRAPH or platform_of() != "cpu":
        means = [
            np.asarray(mean_similarity(jnp.asarray(chain, jnp.float32), k, _rows(chain)))
            for chain in array
        ]
    else:
        means = [_mean_similarity_on_host(chain.astype(np.float32), k) for chain in array]
    # The cosine of a point and its copy is 1 up to rounding, on either side.
    return fold(np.maximum(1 - np.stack(means).mean(1, dtype=np.float64), 0.0), single)


def _rows(points_ND: np.ndarray) -> int:
    """Rows of a block: as many as keep the block's distances within `BLOCK_ELEMENTS`."""
    n = len(points_ND)
    return int(min(n, 1024, max(1, BLOCK_ELEMENTS // n)))


def _unit(x_ND: jax.Array) -> jax.Array:
    norm_N = jnp.sqrt((x_ND * x_ND).sum(-1))
    return x_ND * jnp.where(norm_N > 0, 1 / jnp.where(norm_N > 0, norm_N, 1), 0)[:, None]


def _over_blocks(fn: Callable[[jax.Array], jax.Array], n: int, rows: int) -> jax.Array:
    """fn(row indices [rows]) -> [rows, ...], for all n rows, a block at a time.

    The last block overlaps the one before.
    """
    begins = jnp.minimum(jnp.arange(-(-n // rows)) * rows, n - rows)
    index = begins[:, None] + jnp.arange(rows)[None]
    values = jax.lax.map(fn, index)
    tail = values.shape[2:]
    return jnp.zeros((n, *tail), values.dtype).at[index.reshape(-1)].set(values.reshape(-1, *tail))


def _top(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    # A slice of top_k's result makes XLA on a CPU fall back to a full sort, twenty times slower:
    # keep the slice out of its sight.
    return jax.lax.optimization_barrier(jax.lax.top_k(x, k))


@partial(jax.jit, static_argnames=("k", "rows"))
def mean_similarity(x_ND: jax.Array, k: int, rows: int) -> jax.Array:
    """Mean of the k largest cosines of each point to the others: [N]."""
    u_ND = _unit(x_ND)

    def block(index_B):
        similarity_BN = jnp.matmul(u_ND[index_B], u_ND.T, precision="highest")
        similarity_BN = similarity_BN.at[jnp.arange(rows), index_B].set(-jnp.inf)
        return jax.lax.top_k(similarity_BN, k)[0].mean(-1)

    return _over_blocks(block, x_ND.shape[0], rows)


def _mean_similarity_on_host(x_ND: np.ndarray, k: int) -> np.ndarray:
    norm = np.sqrt((x_ND * x_ND).sum(-1, keepdims=True))
    u_ND = np.divide(x_ND, norm, out=np.zeros_like(x_ND), where=norm > 0)
    means, rows = [], _rows(x_ND)
    for begin in range(0, len(u_ND), rows):
        similarity = u_ND[begin : begin + rows] @ u_ND.T
        similarity[np.arange(len(similarity)), np.arange(begin, begin + len(similarity))] = -np.inf
        means.append(np.partition(similarity, similarity.shape[1] - k, 1)[:, -k:].mean(1))
    return np.concatenate(means)


def kth_neighbour_distances(points: Points, k: int) -> np.ndarray:
    """Return the Euclidean distance of each point to its k-th nearest other, [n] or [c, n] float64.

    At most eight dimensions: a k-d tree on a CPU, blocks of coordinate differences elsewhere. In
    more: candidates around rank k from |x|^2 + |y|^2 - 2 x.y in float32, whose distances are then
    computed from differences in float64; where a point's k-th distance is so small that this
    product cannot rank its neighbours, all its distances are computed in float64.

    Raises:
        ValueError: k >= n, or a point is not finite.
    """
    array, single = check_points(points)
    n, d = array.shape[1:]
    k = _check_k(k, n)
    on_cpu = platform_of() == "cpu"
    array = array.astype(np.float64)
    if d <= _TREE_DIMENSIONS and on_cpu:
        distances = [KDTree(chain).query(chain, [k + 1], workers=-1)[0][:, 0] for chain in array]
    elif d <= _TREE_DIMENSIONS:
        with jax.enable_x64(True):
            distances = [
                np.asarray(kth_by_difference(jnp.asarray(chain), k, _rows(chain)))
                for chain in array
            ]
    elif k <= _SELECT_IN_GRAPH or not on_cpu:
        distances = [_kth_by_candidates(chain, k) for chain in array]
    else:
        distances = [_kth_on_host(chain - chain.mean(0), k, np.arange(n)) for chain in array]
    return distances[0] if single else np.stack(distances)


@partial(jax.jit, static_argnames=("k", "rows"))
def kth_by_difference(x_ND: jax.Array, k: int, rows: int) -> jax.Array:
    """Return the distance of each point to its k-th nearest other, from differences: [N]."""

    def block(index_B):
        squares = (
            (x_ND[index_B, i][:, None] - x_ND[:, i][None]) ** 2 for i in range(x_ND.shape[1])
        )
        squared_BN = jnp.asarray(sum(squares))
        squared_BN = squared_BN.at[jnp.arange(rows), index_B].set(jnp.inf)
        return jnp.sqrt(-_top(-squared_BN, k)[0][:, -1])

    return _over_blocks(block, x_ND.shape[0], rows)


def _kth_by_candidates(x_ND: np.ndarray, k: int) -> np.ndarray:
    n = len(x_ND)
    # Distances do not change with the origin, the cancellation in |x|^2 + |y|^2 - 2 x.y does: least
    # around the mean.
    x_ND = x_ND - x_ND.mean(0)
    first, last = max(0, k - 1 - _MARGIN), min(n - 1, k + _MARGIN)
    candidates_NW = np.asarray(
        ranked_neighbours(jnp.asarray(x_ND, jnp.float32), first, last, _rows(x_ND))
    )
    distance = np.empty(n)
    for begin in range(0, n, 512):
        rows = slice(begin, begin + 512)
        away = x_ND[rows, None] - x_ND[candidates_NW[rows]]
        distance[rows] = np.sqrt(np.sort(np.einsum("nwd,nwd->nw", away, away), 1)[:, k - 1 - first])
    squares = np.einsum("nd,nd->n", x_ND, x_ND)
    close = np.flatnonzero(distance**2 < _RANKABLE * (squares + squares.mean()))
    distance[close] = _kth_on_host(x_ND, k, close)
    return distance


@partial(jax.jit, static_argnames=("first", "last", "rows"))
def ranked_neighbours(x_ND: jax.Array, first: int, last: int, rows: int) -> jax.Array:
    """Indices of each point's others of rank first to last - 1 (0: the nearest): [N, W]."""
    squares_N = (x_ND * x_ND).sum(-1)

    def block(index_B):
        near_BN = 2 * jnp.matmul(x_ND[index_B], x_ND.T, precision="highest") - squares_N[None]
        near_BN = near_BN.at[jnp.arange(rows), index_B].set(-jnp.inf)
        return _top(near_BN, last)[1][:, first:]

    return _over_blocks(block, x_ND.shape[0], rows)


def _kth_on_host(x_ND: np.ndarray, k: int, index: np.ndarray) -> np.ndarray:
    """Distance of the points `index` to their k-th nearest other, by products in float64.

    `x_ND` should be centred.
    """
    squares, rows, kth = np.einsum("nd,nd->n", x_ND, x_ND), _rows(x_ND), [np.zeros(0)]
    for begin in range(0, len(index), rows):
        at = index[begin : begin + rows]
        squared = squares[at, None] + squares[None] - 2 * (x_ND[at] @ x_ND.T)
        squared[np.arange(len(at)), at] = np.inf
        kth.append(np.sqrt(np.maximum(np.partition(squared, k - 1, 1)[:, k - 1], 0)))
    return np.concatenate(kth)


def kl_entropy(points: Points, k: int = 50, constant: Constant = "package") -> ChainValues:
    """Kozachenko-Leonenko estimate of the differential entropy, in nats, any real number.

    Source: arXiv 2504.03814. constant="textbook": psi(n) - psi(k) + ln V_d + (d / n) sum_i ln r_i,
    with r_i the Euclidean distance to the k-th nearest other point and V_d the volume of the unit
    ball. constant="package": the value of the package `entropy_estimators` that the paper used,
    with ln(2 r_i), which is d ln 2 more. At least k + 1 copies of one point: -inf, as for a point
    mass; metrics.csv holds `-inf`, and reports show it as collapsed. ValueError for k >= n or NaN.
    """
    if constant not in CONSTANTS:
        raise ValueError(f"constant is {constant!r}, one of {', '.join(CONSTANTS)} is needed.")
    array, single = check_points(points)
    n, d = array.shape[1:]
    distance = kth_neighbour_distances(array, k)
    with np.errstate(divide="ignore"):
        spread = d * np.log(distance).mean(1)
    ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
    doubled = d * np.log(2) if constant == "package" else 0.0
    return fold(digamma(n) - digamma(k) + ball + spread + doubled, single)


def _covariances(array: np.ndarray) -> np.ndarray:
    """Maximum-likelihood covariance of each chain: [c, d, d] float64."""
    centred = array.astype(np.float64)
    centred = centred - centred.mean(1, keepdims=True)
    return np.einsum("cni,cnj->cij", centred, centred) / array.shape[1]


def gaussian_aic(points: Points, regularisation: float = 1e-6) -> ChainValues:
    """Akaike's criterion of one Gaussian with full covariance fitted to the points.

    Any real number (arXiv 2504.03814): n (d ln 2 pi + ln det S + tr(S^-1 S_0)) + 2 p with S_0 the
    maximum-likelihood covariance, S = S_0 + regularisation * 1 and p = d + d (d + 1) / 2:
    scikit-learn's `GaussianMixture(1, reg_covar=1e-6).aic`. The paper calls it Gaussianity, but it
    is 2 n times the entropy of the moment-matched Gaussian, so a measure of spread and not of
    shape: see `negentropy`. No points: nan. With regularisation=0, points whose covariance is
    singular up to rounding (equal ones, on a hyperplane, at most d of them): -inf. ValueError for a
    negative one.
    """
    if not regularisation >= 0:
        raise ValueError(f"regularisation is {regularisation}, at least 0 is needed.")
    array, single = check_points(points)
    n, d = array.shape[1:]
    if n == 0:
        return fold(np.full(len(array), np.nan), single)
    plain = _covariances(array)
    covariance = plain + regularisation * np.eye(d)
    sign, logdet = np.linalg.slogdet(covariance)
    whole = sign > 0
    if regularisation == 0:
        whole &= np.linalg.matrix_rank(covariance, hermitian=True) == d
    regular = np.where(whole[:, None, None], covariance, np.eye(d))
    trace = np.trace(np.linalg.solve(regular, plain), axis1=1, axis2=2)
    deviance = n * (d * np.log(2 * np.pi) + logdet + trace)
    return fold(np.where(whole, deviance, -np.inf) + 2 * (d + d * (d + 1) // 2), single)


def negentropy(points: Points, k: int = 50) -> ChainValues:
    """Entropy of the Gaussian with the points' mean and covariance minus their own, in nats.

    It is 0 for a Gaussian, else > 0. 1/2 ln det(2 pi e S) - `kl_entropy(points, k, "textbook")`:
    what a measure of Gaussianity should be. Invariant to affine maps in the limit; the estimate can
    fall below 0 by sampling error. Collapsed sets: inf with at least k + 1 copies of one point
    among others (the points' own entropy is -inf, the Gaussian's is not), nan with all points
    identical or on a hyperplane (neither has one). metrics.csv holds `inf` and `nan`, reports show
    both as collapsed. ValueError for k >= n or NaN.
    """
    array, single = check_points(points)
    entropy = np.atleast_1d(kl_entropy(array, k, "textbook"))
    sign, logdet = np.linalg.slogdet(2 * np.pi * np.e * _covariances(array))
    with np.errstate(invalid="ignore"):
        return fold(np.where(sign > 0, logdet / 2, np.nan) - entropy, single)


METRICS = (
    Metric("cosine_diversity", by_chain(cosine_diversity), EMBEDDINGS, (0, 2)),
    Metric("knn_cosine_diversity", by_chain(knn_cosine_diversity, more_than_k), EMBEDDINGS, (0, 2)),
    Metric("kl_entropy", by_chain(kl_entropy, more_than_k), PROJECTION, unit="nats"),
    Metric("gaussian_aic", by_chain(gaussian_aic), PROJECTION),
    Metric("negentropy", by_chain(negentropy, more_than_k), PROJECTION, unit="nats"),
)
