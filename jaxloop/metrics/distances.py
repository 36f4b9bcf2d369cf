"""Distances between two sets of points or texts, and similarity between the outputs of entities.

Points are [n, d], or [c, n, d] for many chains against one reference [m, d] or one each [c, m, d];
the result is a float, or [c] float64. All are 0 for two equal sets (up to the bias stated) and are
computed in float64, blockwise, without an n x m matrix.

Dimensions: N and M rows of the two sets, B of a block,
D dimensions, P projections.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.keys import chain_key
from jaxloop.metrics.base import (
    EMBEDDINGS_AND_REFERENCE,
    NOT_NEGATIVE,
    TEXTS_AND_REFERENCE,
    Metric,
)
from jaxloop.metrics.chain_points import by_chain, two_points
from jaxloop.metrics.corpus import ChainValues, Corpus, Texts, check_reference
from jaxloop.metrics.semantic import Points, check_points, fold

Kernel = Literal["gaussian", "laplacian", "polynomial", "linear"]
KERNELS = get_args(Kernel)
_BLOCK_ELEMENTS = 1 << 22

Term = TypeVar("Term")


def _pairs(
    points: Points, reference: Points, least: int = 1
) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    """(points, reference) of every chain in float64, and whether the chain axis was absent."""
    x, single = check_points(points)
    y, shared = check_points(reference, "reference")
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"points have {x.shape[-1]} dimensions and reference has {y.shape[-1]}, the same "
            "number is needed."
        )
    if not shared and (single or len(y) != len(x)):
        raise ValueError(
            f"reference has {len(y)} chains and points have {1 if single else len(x)}, one "
            "reference or one each is needed."
        )
    for name, array in (("points", x), ("reference", y)):
        if array.shape[1] < least:
            raise ValueError(f"{name} are {array.shape[1]}, at least {least} are needed.")
    x, y = x.astype(np.float64), y.astype(np.float64)
    # One object where the reference is shared: `_once_per_reference` then sees that it is.
    references = [y[0]] * len(x) if shared else list(y)
    return list(zip(x, references, strict=True)), single


def _once_per_reference(function: Callable[[np.ndarray], Term]) -> Callable[[np.ndarray], Term]:
    """`function` of a reference, computed anew only where the reference is another object."""
    last: list[tuple[np.ndarray, Term]] = []

    def cached(reference: np.ndarray) -> Term:
        if not last or last[0][0] is not reference:
            last[:] = [(reference, function(reference))]
        return last[0][1]

    return cached


def frechet_distance(points: Points, reference: Points) -> ChainValues:
    """Squared 2-Wasserstein distance of Gaussians with the two sets' means and covariances, >= 0.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), covariances with n - 1 (Dowson and Landau
    1982; FID). The last trace is the nuclear norm of R_x R_y^T for any roots S = R^T R, so no
    square root of the product is taken. ValueError for fewer than two points in a set.
    """
    pairs, single = _pairs(points, reference, least=2)
    reference_root = _once_per_reference(_root)
    values = []
    for x, y in pairs:
        a, b = _root(x), reference_root(y)
        total = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum()
        values.append(total - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum())
    return fold(np.maximum(values, 0.0), single)


def _root(x: np.ndarray) -> np.ndarray:
    """R with R^T R the covariance (n - 1) of the points: the smaller of [n, d] and [d, d]."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return centred
    values, vectors = np.linalg.eigh(centred.T @ centred)
    return np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def mmd2(
    points: Points,
    reference: Points,
    kernel: Kernel = "gaussian",
    bandwidth: float | None = None,
    unbiased: bool = True,
) -> ChainValues:
    """Squared maximum mean discrepancy, E k(x, x') + E k(y, y') - 2 E k(x, y).

    Source: Gretton et al. 2012, equations 3 and 5.

    Args:
        kernel: "gaussian": exp(-|x - y|^2 / (2 h^2)); "laplacian": exp(-|x - y| / h); "polynomial":
            (x.y / d + 1)^3, whose MMD^2 is the kernel inception distance (Binkowski et al. 2018);
            "linear": x.y, whose MMD^2 is the squared distance of the means.
        bandwidth: h; None takes the median distance among up to 1,000 evenly spaced points of the
            reference.
        unbiased: leaves the pairs (i, i) out, so that the expectation is 0 for equal distributions
            and a value can fall below 0; False gives the V-statistic, >= 0.

    Raises:
        ValueError: an unknown kernel, a bandwidth that is not positive, or fewer than two points in
            a set.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}, one of {', '.join(KERNELS)} is needed.")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}, a positive number is needed.")
    pairs, single = _pairs(points, reference, least=2)
    scaled = kernel in ("gaussian", "laplacian")

    def bandwidth_and_term(y: np.ndarray) -> tuple[float, float]:
        h = (bandwidth or median_distance(y)) if scaled else 1.0
        return h, _within(y, kernel, h, unbiased)

    of_reference = _once_per_reference(bandwidth_and_term)
    values = []
    for x, y in pairs:
        h, reference_term = of_reference(y)
        across = _pair_sum(x, y, kernel, h) / (len(x) * len(y))
        values.append(_within(x, kernel, h, unbiased) + reference_term - 2 * across)
    return fold(values, single)


def median_distance(points: np.ndarray, limit: int = 1000) -> float:
    """Return the median Euclidean distance between pairs of up to `limit` evenly spaced points.

    1 where that is 0 (all alike).
    """
    some = np.asarray(points, np.float64)[:: max(1, -(-len(points) // limit))]
    if some.shape[1] <= 4:
        squared = ((some[:, None] - some[None]) ** 2).sum(-1)
    else:
        squared = _squared_distances(some)
    return float(np.sqrt(np.median(squared[np.triu_indices(len(some), 1)]))) or 1.0


def _squared_distances(x: np.ndarray) -> np.ndarray:
    """|x|^2 + |y|^2 - 2 x.y around the mean, [n, n]."""
    centred = x - x.mean(0)
    squares = (centred**2).sum(1)
    return np.maximum(squares[:, None] + squares[None] - 2 * centred @ centred.T, 0)


def energy_distance(points: Points, reference: Points) -> ChainValues:
    """sqrt(2 E|x - y| - E|x - x'| - E|y - y'|) with Euclidean norms over all pairs, >= 0.

    Source: Szekely and Rizzo 2013. In one dimension it equals `scipy.stats.energy_distance`.
    ValueError for an empty set.
    """
    pairs, single = _pairs(points, reference)
    within_reference = _once_per_reference(_mean_distance)
    values = []
    for x, y in pairs:
        across = _pair_sum(x, y, "distance", 1.0) / (len(x) * len(y))
        squared = 2 * across - _mean_distance(x) - within_reference(y)
        values.append(np.sqrt(max(squared, 0.0)))
    return fold(values, single)


def _mean_distance(x: np.ndarray) -> float:
    return _within(x, "distance", 1.0, False)


def _within(x: np.ndarray, kernel: str, h: float, unbiased: bool) -> float:
    """Mean of the kernel over the pairs of one set; unbiased: of different points only."""
    n = len(x)
    total = _pair_sum(x, x, kernel, h)
    if not unbiased:
        return total / n**2
    squares = np.einsum("nd,nd->n", x, x)
    if kernel == "polynomial":
        diagonal = ((squares / x.shape[1] + 1) ** 3).sum()
    elif kernel == "linear":
        diagonal = squares.sum()
    else:
        diagonal = float(n)
    return (total - diagonal) / (n * (n - 1))


def _pair_sum(x_ND: np.ndarray, y_MD: np.ndarray, kernel: str, h: float) -> float:
    """Sum of the kernel over all pairs of two sets."""
    # The origin matters to the inner products only; distances lose fewer digits around the mean.
    if kernel not in ("polynomial", "linear"):
        centre = y_MD.mean(0)
        x_ND, y_MD = x_ND - centre, y_MD - centre
    rows = max(1, min(len(x_ND), _BLOCK_ELEMENTS // max(len(y_MD), 1)))
    padding = -len(x_ND) % rows
    blocks = np.pad(x_ND, ((0, padding), (0, 0))).reshape(-1, rows, x_ND.shape[1])
    counted = (np.arange(len(x_ND) + padding) < len(x_ND)).reshape(-1, rows)
    with jax.enable_x64(True):
        arrays = (jnp.asarray(a) for a in (blocks, counted, y_MD))
        return float(kernel_sum(*arrays, jnp.float64(h), kernel))


@partial(jax.jit, static_argnames="kernel")
def kernel_sum(
    x_KBD: jax.Array, counted_KB: jax.Array, y_MD: jax.Array, h: jax.Array, kernel: str
) -> jax.Array:
    """Return the sum of the kernel over pairs of counted rows [K, B] and points [M]."""
    y2_M = (y_MD * y_MD).sum(-1)

    def block(args):
        x_BD, counted_B = args
        d = x_BD.shape[-1]
        if d <= 4 and kernel not in ("polynomial", "linear"):
            squared_BM = sum((x_BD[:, i][:, None] - y_MD[:, i][None]) ** 2 for i in range(d))
        else:
            product_BM = jnp.matmul(x_BD, y_MD.T, precision="highest")
            squared_BM = jnp.maximum(
                (x_BD * x_BD).sum(-1)[:, None] + y2_M[None] - 2 * product_BM, 0
            )
        match kernel:
            case "gaussian":
                value_BM = jnp.exp(-squared_BM / (2 * h * h))
            case "laplacian":
                value_BM = jnp.exp(-jnp.sqrt(squared_BM) / h)
            case "polynomial":
                value_BM = (product_BM / d + 1) ** 3
            case "linear":
                value_BM = product_BM
            case "distance":
                value_BM = jnp.sqrt(squared_BM)
        return jnp.where(counted_B, value_BM.sum(-1), 0).sum()

    return jax.lax.map(block, (x_KBD, counted_KB)).sum()


def sliced_wasserstein(
    points: Points, reference: Points, projections: int = 128, p: int = 1, seed: int = 0
) -> ChainValues:
    """p-Wasserstein distance of one-dimensional projections, over random directions, >= 0.

    (mean over directions t of W_p(x.t, y.t)^p)^(1/p), exact in each direction for sets of unequal
    sizes (Rabin et al. 2011). In one dimension, p=1, it equals `scipy.stats.wasserstein_distance`.

    Args:
        projections: directions, drawn uniformly from the sphere with `seed`, the same for every
            chain.

    Raises:
        ValueError: an empty set, fewer than one projection, or p < 1.
    """
    if projections < 1 or p < 1:
        raise ValueError(
            f"projections is {projections} and p is {p}, at least 1 of each is needed."
        )
    pairs, single = _pairs(points, reference)
    d = pairs[0][0].shape[1] if pairs else 1
    direction_DP = np.asarray(
        jax.random.normal(chain_key(seed), (d, projections), jnp.float32), np.float64
    )
    direction_DP /= np.linalg.norm(direction_DP, axis=0)
    values = []
    with jax.enable_x64(True):
        for x, y in pairs:
            # The quantile functions of both sets are constant between neighbouring multiples of 1/n
            # and 1/m.
            cuts = np.union1d(np.arange(len(x) + 1) * len(y), np.arange(len(y) + 1) * len(x))
            left, width = cuts[:-1], np.diff(cuts) / (len(x) * len(y))
            value = sliced_distance(
                x, y, direction_DP, left // len(y), left // len(x), width, float(p)
            )
            values.append(float(value) ** (1 / p))
    return fold(values, single)


@jax.jit
def sliced_distance(
    x_ND: jax.Array,
    y_MD: jax.Array,
    direction_DP: jax.Array,
    at_x: jax.Array,
    at_y: jax.Array,
    width: jax.Array,
    p: jax.Array,
) -> jax.Array:
    """Mean over directions of W_p^p.

    The quantile functions take the ranks `at_x`, `at_y` on intervals of these widths.
    """
    x_PN = jnp.sort((x_ND @ direction_DP).T, axis=-1)
    y_PM = jnp.sort((y_MD @ direction_DP).T, axis=-1)
    return (jnp.abs(x_PN[:, at_x] - y_PM[:, at_y]) ** p * width[None]).sum(-1).mean()


def length_kl(
    texts: Texts, reference_texts: Texts, bins: int = 20, smoothing: float = 0.5
) -> ChainValues:
    """KL divergence of the lengths of a chain's texts from those of the reference, in nats, >= 0.

    sum_b p_b ln(p_b / q_b), lengths in 13a tokens, bins cut at the reference's quantiles (the outer
    ones are open). One possible meaning of the unnamed "distribution distance" of arXiv 2506.19262,
    Table 2: it is small where lengths agree and 2 to 3 nats where they do not. No texts: nan.

    Args:
        reference_texts: one list for all chains, or one a chain.
        smoothing: added to every count.
    """
    if bins < 2 or not smoothing > 0:
        raise ValueError(
            f"bins is {bins} and smoothing is {smoothing}, at least 2 and a positive number are "
            "needed."
        )
    corpus, reference = Corpus.of(texts), Corpus.of(reference_texts)
    check_reference(reference, corpus)
    references = reference.split(reference.tokens.lengths)
    if reference.single:
        references = references * len(corpus.chains)
    values = []
    for lengths, others in zip(corpus.split(corpus.tokens.lengths), references, strict=True):
        values.append(_histogram_kl(lengths, others, bins, smoothing))
    return corpus.by_chain(np.array(values))


def _histogram_kl(lengths: np.ndarray, reference: np.ndarray, bins: int, smoothing: float) -> float:
    if not len(lengths) or not len(reference):
        return np.nan
    edges = np.unique(np.quantile(reference, np.arange(1, bins) / bins, method="inverted_cdf"))
    p, q = (
        np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) + smoothing
        for side in (lengths, reference)
    )
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def output_similarity(points: Points) -> np.ndarray:
    """Mean over prompts of the cosine between two entities' outputs: [entities, entities].

    In [-1, 1]. A zero vector has cosine 0 to everything. No prompts: nan.

    Args:
        points: [entities, prompts, d]: row p of every entity is its answer to the same prompt p
            (multi-entity study: completions of the first 200 elements of each private set and of
            the public one).

    Raises:
        ValueError: another shape, NaN or infinity.
    """
    array, single = check_points(points, "entity outputs")
    if single:
        raise ValueError(
            f"entity outputs have shape {list(array.shape[1:])}, [entities, prompts, d] is needed."
        )
    array = array.astype(np.float64)
    norm = np.linalg.norm(array, axis=-1, keepdims=True)
    unit = np.divide(array, norm, out=np.zeros_like(array), where=norm > 0)
    if not array.shape[1]:
        return np.full((len(array), len(array)), np.nan)
    return np.einsum("ipd,jpd->ij", unit, unit) / array.shape[1]


def mean_output_similarity(entity_embeddings: Sequence[Points]) -> np.ndarray:
    """`output_similarity` averaged over the pairs of different entities, in [-1, 1]: [c] float64.

    1 means that all entities write the same. One entity: nan.

    Args:
        entity_embeddings: [c] arrays [entities, prompts, d].
    """
    values = []
    for chain in entity_embeddings:
        matrix = output_similarity(chain)
        values.append(matrix[np.triu_indices(len(matrix), 1)].mean() if len(matrix) > 1 else np.nan)
    return np.array(values)


METRICS = (
    Metric("length_kl", length_kl, TEXTS_AND_REFERENCE, NOT_NEGATIVE, "nats"),
    Metric(
        "frechet_distance",
        by_chain(frechet_distance, two_points),
        EMBEDDINGS_AND_REFERENCE,
        NOT_NEGATIVE,
    ),
    Metric("mmd2", by_chain(mmd2, two_points), EMBEDDINGS_AND_REFERENCE),
    Metric(
        "energy_distance",
        by_chain(energy_distance, two_points),
        EMBEDDINGS_AND_REFERENCE,
        NOT_NEGATIVE,
    ),
    Metric(
        "sliced_wasserstein",
        by_chain(sliced_wasserstein, two_points),
        EMBEDDINGS_AND_REFERENCE,
        NOT_NEGATIVE,
    ),
    Metric("output_similarity", mean_output_similarity, ("entity_embeddings",), (-1, 1)),
)
