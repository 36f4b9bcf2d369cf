"""Distances between two sets of points or texts, and similarity between the outputs of entities.

Points are [n, d], or [c, n, d] for many chains against one reference [m, d] or one each [c, m, d];
the result is a float, or [c] float64. All are 0 for two equal sets (up to the bias stated) and are
computed in float64, blockwise, without an n x m matrix. N and M rows of the two sets, B of a block,
D dimensions, P projections.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.keys import chain_key
from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.semantic import check_points, fold

KERNELS = ("gaussian", "laplacian", "polynomial", "linear")
_BLOCK_ELEMENTS = 1 << 22


def _pairs(points, reference, least: int = 1) -> tuple[list[tuple[np.ndarray, np.ndarray]], bool]:
    """(points, reference) of every chain in float64, and whether the chain axis was absent.
    ValueError if the shapes do not match.
    """
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
    references = (
        [y[0]] * len(x) if shared else list(y)
    )  # one object where it is shared: its own term is computed once
    return list(zip(x, references, strict=True)), single


def frechet_distance(points, reference):
    """Squared 2-Wasserstein distance of the Gaussians with the two sets' means and covariances, >=
    0 (Dowson and Landau 1982; FID).

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)), covariances with n - 1. The last trace is the nuclear norm of R_x R_y^T for any
    roots S = R^T R, so no square root of the product is taken. ValueError for fewer than two points in a set.
    """
    pairs, single = _pairs(points, reference, least=2)
    values, known = [], {}
    for x, y in pairs:
        if id(y) not in known:
            known = {id(y): _root(y)}
        a, b = _root(x), known[id(y)]
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
    points,
    reference,
    kernel: str = "gaussian",
    bandwidth: float | None = None,
    unbiased: bool = True,
):
    """Squared maximum mean discrepancy, E k(x, x') + E k(y, y') - 2 E k(x, y) (Gretton et al. 2012,
    equations 3 and 5).

    kernel     gaussian    exp(-|x - y|^2 / (2 h^2))
               laplacian   exp(-|x - y| / h)
               polynomial  (x.y / d + 1)^3, whose MMD^2 is the kernel inception distance (Binkowski
               et al. 2018)
               linear      x.y, whose MMD^2 is the squared distance of the means
    bandwidth  h; None takes the median distance among up to 1,000 evenly spaced points of the reference
    unbiased   leaves the pairs (i, i) out, so that the expectation is 0 for equal distributions and a value can fall below 0;
               False gives the V-statistic, >= 0
    ValueError for an unknown kernel, a bandwidth that is not positive, or fewer than two points in
    a set.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}, one of {', '.join(KERNELS)} is needed.")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth is {bandwidth}, a positive number is needed.")
    pairs, single = _pairs(points, reference, least=2)
    values, known = [], {}
    for x, y in pairs:
        if id(y) not in known:
            h = (bandwidth or median_distance(y)) if kernel in ("gaussian", "laplacian") else 1.0
            known = {id(y): (h, _within(y, kernel, h, unbiased))}
        h, own = known[id(y)]
        values.append(
            _within(x, kernel, h, unbiased)
            + own
            - 2 * _pair_sum(x, y, kernel, h) / (len(x) * len(y))
        )
    return fold(values, single)


def median_distance(points, limit: int = 1000) -> float:
    """Median Euclidean distance between pairs of up to `limit` evenly spaced points; 1 where that
    is 0 (all alike).
    """
    some = np.asarray(points, np.float64)[:: max(1, -(-len(points) // limit))]
    squared = ((some[:, None] - some[None]) ** 2).sum(-1) if some.shape[1] <= 4 else _squared(some)
    return float(np.sqrt(np.median(squared[np.triu_indices(len(some), 1)]))) or 1.0


def _squared(x):
    centred = x - x.mean(0)
    squares = (centred**2).sum(1)
    return np.maximum(squares[:, None] + squares[None] - 2 * centred @ centred.T, 0)


def energy_distance(points, reference):
    """sqrt(2 E|x - y| - E|x - x'| - E|y - y'|) with Euclidean norms over all pairs, >= 0 (Szekely
    and Rizzo 2013).

    In one dimension it equals `scipy.stats.energy_distance`. ValueError for an empty set.
    """
    pairs, single = _pairs(points, reference)
    values, known = [], {}
    for x, y in pairs:
        if id(y) not in known:
            known = {id(y): _within(y, "distance", 1.0, False)}
        across = _pair_sum(x, y, "distance", 1.0) / (len(x) * len(y))
        values.append(
            np.sqrt(max(2 * across - _within(x, "distance", 1.0, False) - known[id(y)], 0.0))
        )
    return fold(values, single)


def _within(x, kernel, h, unbiased) -> float:
    """Mean of the kernel over the pairs of one set, with or without the pairs of a point and
    itself.
    """
    n = len(x)
    total = _pair_sum(x, x, kernel, h)
    if not unbiased:
        return total / n**2
    squares = np.einsum("nd,nd->n", x, x)
    diagonal = {"polynomial": ((squares / x.shape[1] + 1) ** 3).sum(), "linear": squares.sum()}.get(
        kernel, float(n)
    )
    return (total - diagonal) / (n * (n - 1))


def _pair_sum(x_ND, y_MD, kernel, h) -> float:
    # The origin matters to the inner products only; distances lose fewer digits around the mean.
    if kernel not in ("polynomial", "linear"):
        centre = y_MD.mean(0)
        x_ND, y_MD = x_ND - centre, y_MD - centre
    rows = max(1, min(len(x_ND), _BLOCK_ELEMENTS // max(len(y_MD), 1)))
    padding = -len(x_ND) % rows
    blocks = np.pad(x_ND, ((0, padding), (0, 0))).reshape(-1, rows, x_ND.shape[1])
    counted = (np.arange(len(x_ND) + padding) < len(x_ND)).reshape(-1, rows)
    with jax.enable_x64(True):
        return float(
            _kernel_sum(
                jnp.asarray(blocks), jnp.asarray(counted), jnp.asarray(y_MD), jnp.float64(h), kernel
            )
        )


@partial(jax.jit, static_argnames="kernel")
def _kernel_sum(x_KBD, counted_KB, y_MD, h, kernel):
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


def sliced_wasserstein(points, reference, projections: int = 128, p: int = 1, seed: int = 0):
    """p-Wasserstein distance of one-dimensional projections, averaged over random directions, >= 0
    (Rabin et al. 2011).

    (mean over directions t of W_p(x.t, y.t)^p)^(1/p), exact in each direction for sets of unequal
    sizes; `projections` directions drawn uniformly from the sphere with `seed`, the same for every
    chain. In one dimension, p=1, it equals `scipy.stats.wasserstein_distance`. ValueError for an
    empty set, or fewer than one projection, or p < 1.
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
            value = _sliced(x, y, direction_DP, left // len(y), left // len(x), width, float(p))
            values.append(float(value) ** (1 / p))
    return fold(values, single)


@jax.jit
def _sliced(x_ND, y_MD, direction_DP, at_x, at_y, width, p):
    x_PN = jnp.sort((x_ND @ direction_DP).T, axis=-1)
    y_PM = jnp.sort((y_MD @ direction_DP).T, axis=-1)
    return (jnp.abs(x_PN[:, at_x] - y_PM[:, at_y]) ** p * width[None]).sum(-1).mean()


def length_kl(texts, reference_texts, bins: int = 20, smoothing: float = 0.5):
    """KL divergence of the length histogram of a chain's texts from that of the reference, in nats,
    >= 0. A float, or [c] float64.

    sum_b p_b ln(p_b / q_b), lengths in 13a tokens, bins cut at the reference's quantiles (the outer
    ones are open), `smoothing` added to every count. One reading of the unnamed "distribution
    distance" of arXiv 2506.19262, Table 2: it is small where lengths agree and 2 to 3 nats where
    they do not. No texts: nan. `reference_texts` is one list for all chains, or one a chain.
    """
    if bins < 2 or not smoothing > 0:
        raise ValueError(
            f"bins is {bins} and smoothing is {smoothing}, at least 2 and a positive number are "
            "needed."
        )
    corpus, reference = Corpus.of(texts), Corpus.of(reference_texts)
    if not reference.single and len(reference.chains) != len(corpus.chains):
        raise ValueError(
            f"reference_texts has {len(reference.chains)} chains, texts has "
            f"{len(corpus.chains)}: the same number is needed."
        )
    mine = (
        np.split(corpus.tokens.lengths, np.cumsum(corpus.sizes)[:-1]) if len(corpus.chains) else []
    )
    theirs = np.split(reference.tokens.lengths, np.cumsum(reference.sizes)[:-1])
    values = []
    for chain, lengths in enumerate(mine):
        other = theirs[0 if reference.single else chain]
        if not len(lengths) or not len(other):
            values.append(np.nan)
            continue
        edges = np.unique(np.quantile(other, np.arange(1, bins) / bins, method="inverted_cdf"))
        p, q = (
            np.bincount(np.searchsorted(edges, side), minlength=len(edges) + 1) + smoothing
            for side in (lengths, other)
        )
        p, q = p / p.sum(), q / q.sum()
        values.append(float((p * np.log(p / q)).sum()))
    return corpus.by_chain(np.array(values))


def output_similarity(points) -> np.ndarray:
    """Mean over prompts of the cosine between two entities' outputs: points [entities, prompts, d]
    -> [entities, entities] in [-1, 1].

    Row p of every entity is its answer to the same prompt p (multi-entity study: completions of the
    first 200 elements of each private set and of the public one). A zero vector has cosine 0 to
    everything. No prompts: nan. ValueError for NaN or infinity.
    """
    array, single = check_points(points, "entity outputs")
    if single:
        raise ValueError(
            f"entity outputs have shape {list(array.shape[1:])}, [entities, prompts, d] is needed."
        )
    array = array.astype(np.float64)
    norm = np.linalg.norm(array, axis=-1, keepdims=True)
    unit = np.divide(array, norm, out=np.zeros_like(array), where=norm > 0)
    return (
        np.einsum("ipd,jpd->ij", unit, unit) / array.shape[1]
        if array.shape[1]
        else np.full((len(array), len(array)), np.nan)
    )


def mean_output_similarity(entity_embeddings: Sequence) -> np.ndarray:
    """`output_similarity` averaged over the pairs of different entities of each chain: [c] arrays
    [entities, prompts, d] -> [c] in [-1, 1].

    1 means that all entities write the same. One entity: nan.
    """
    values = []
    for chain in entity_embeddings:
        matrix = output_similarity(chain)
        values.append(matrix[np.triu_indices(len(matrix), 1)].mean() if len(matrix) > 1 else np.nan)
    return np.array(values)
