"""Clusters that share texts: how much, and regressions whose errors know it.

Chains run on clusters of one dataset that hold the same texts are not independent. Where the part
of an outcome that the predictors do not explain is a mean over the cluster's texts plus noise of
the chain's own, the shared part of chains i and j has the covariance

    G_ij = |A_i and A_j| / (|A_i| |A_j|)          ("texts"; two chains on one cluster, at two ratios say, share all of it)

and ordinary standard errors are too small wherever predictors overlap as well. Texts that are alike have like effects too, so clusters that
share nothing may correlate; clusters that overlap with the same third ones are near. That is a second component, the correlation matrix of
C C with C_ij = |A_i and A_j| / sqrt(|A_i| |A_j|)          ("neighbours").

`fit_overlap` takes y = X b + e, Cov(e) = s^2 (w_0 I + w_1 K_1 + ...). The weights are unknown: they
are integrated over, uniform on the simplex, with their restricted likelihood, so that an interval
also holds what is not known about them (a plug-in of the best weights would not). In simulations
tests at 5 % reject 1 to 3 % of true null hypotheses where nothing is shared, 5 % where half of the
error variance is, 7 % where nine tenths are; classical ones 5, 13 to 34 and 22 to 42 %.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.linalg
from scipy import sparse, stats

from jaxloop.studies.recursive_loops.analysis.regression import (
    COEFFICIENTS,
    Fit,
    check_rows,
    standardise,
)


class Overlap(NamedTuple):
    """Clusters of one dataset: names, and shared [c, c], how many texts each pair holds in common
    (diagonal: sizes).
    """

    names: tuple[str, ...]
    shared: np.ndarray

    @property
    def cosine(self) -> np.ndarray:
        """C [c, c], 1 on the diagonal."""
        size = np.sqrt(np.diag(self.shared))
        return self.shared / np.outer(size, size)

    @property
    def jaccard(self) -> np.ndarray:
        """|A and B| / |A or B| [c, c]."""
        size = np.diag(self.shared)
        return self.shared / (size[:, None] + size[None] - self.shared)

    @property
    def texts(self) -> np.ndarray:
        """G [c, c], scaled to a mean diagonal of 1."""
        size = np.diag(self.shared)
        gram = self.shared / np.outer(size, size)
        return gram / np.diag(gram).mean()

    @property
    def neighbours(self) -> np.ndarray:
        """Correlation matrix of C C [c, c]."""
        second = self.cosine @ self.cosine
        root = np.sqrt(np.diag(second))
        return second / np.outer(root, root)


Overlaps = Mapping[str, Overlap]


def from_members(members: pd.DataFrame) -> dict[str, Overlap]:
    """dataset -> overlap, from the columns dataset, cluster, row: one line per text of each
    cluster; repeats count once.
    """
    found = {}
    for dataset, rows in members.groupby("dataset", sort=False, observed=True):
        cluster, names = pd.factorize(rows["cluster"], sort=True)
        items, item = np.unique(rows["row"].to_numpy(), return_inverse=True)
        held = sparse.csr_matrix(
            (np.ones(len(rows)), (cluster, item)), shape=(len(names), len(items))
        )
        held.data[:] = 1.0
        found[str(dataset)] = Overlap(tuple(map(str, names)), np.asarray((held @ held.T).todense()))
    return found


def from_pairs(pairs: pd.DataFrame) -> dict[str, Overlap]:
    """The same from the columns dataset, cluster_a, cluster_b, shared, size_a, size_b: one line per
    pair of clusters that share texts.
    """
    found = {}
    for dataset, rows in pairs.groupby("dataset", sort=False):
        a, b = rows["cluster_a"].astype(str), rows["cluster_b"].astype(str)
        sizes = dict(zip(a, rows["size_a"], strict=True)) | dict(
            zip(b, rows["size_b"], strict=True)
        )
        names = sorted(sizes)
        place = {name: i for i, name in enumerate(names)}
        shared = np.diag([float(sizes[name]) for name in names])
        for one, other, count in zip(a, b, rows["shared"], strict=True):
            if one != other:
                shared[place[one], place[other]] = shared[place[other], place[one]] = float(count)
        found[str(dataset)] = Overlap(tuple(names), shared)
    return found


def kernel(
    dataset: Sequence[str], cluster: Sequence[str], overlaps: Overlaps, kind: str = "texts"
) -> np.ndarray:
    """Covariance [n, n] between chains, from the dataset and the cluster of each; zero across
    datasets, mean diagonal about 1.

    kind: a matrix of `Overlap`: "texts", "neighbours" or "cosine". A cluster of which nothing is
    known shares with none but itself.
    """
    keys = list(zip(map(str, dataset), map(str, cluster), strict=True))
    distinct = list(dict.fromkeys(keys))
    small = np.eye(len(distinct))
    for name, overlap in overlaps.items():
        matrix, place = getattr(overlap, kind), {c: i for i, c in enumerate(overlap.names)}
        here = [(i, place[c]) for i, (d, c) in enumerate(distinct) if d == name and c in place]
        if here:
            own, theirs = (np.array(side) for side in zip(*here, strict=True))
            small[np.ix_(own, own)] = matrix[np.ix_(theirs, theirs)]
    index = {key: i for i, key in enumerate(distinct)}
    at = np.array([index[key] for key in keys], int)
    return small[np.ix_(at, at)]


def groups(cosine: np.ndarray, at: float = 0.5) -> np.ndarray:
    """Group [n] of each chain: average linkage on 1 - K, cut where groups share less than `at` on
    average. Two chains on one cluster are always in one group. ValueError for `at` outside (0, 1).
    """
    if not 0 < at < 1:
        raise ValueError(f"at={at}: must lie in (0, 1)")
    if len(cosine) < 2:
        return np.zeros(len(cosine), int)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1 - cosine, 0, 1)
    np.fill_diagonal(distance, 0)
    return fcluster(linkage(squareform(distance, checks=False), "average"), 1 - at, "distance") - 1


# ---- regression with such errors
# --------------------------------------------------------------------------------------


class Mixture(NamedTuple):
    """Posterior of coefficients of S outcomes: over the H points of the grid, weights [H, S], and t
    distributions with `df` degrees of freedom around centres [H, P, S] with scales [H, P, S].
    shared [S]: mean share of the error variance that overlap carries.
    """

    weights: np.ndarray
    centres: np.ndarray
    scales: np.ndarray
    df: int
    shared: np.ndarray

    def mean(self) -> np.ndarray:
        """[P, S]"""
        return np.einsum("hs,hps->ps", self.weights, self.centres)

    def sd(self) -> np.ndarray:
        """[P, S] standard deviation; the t's own variance df / (df - 2) included where there is
        one.
        """
        inner = self.scales**2 * (self.df / (self.df - 2) if self.df > 2 else 1.0)
        return np.sqrt(
            np.einsum("hs,hps->ps", self.weights, inner + (self.centres - self.mean()) ** 2)
        )

    def below(self, value: np.ndarray | float) -> np.ndarray:
        """Probability [P, S] that a coefficient is below `value` [P, S]."""
        return np.einsum(
            "hs,hps->ps", self.weights, stats.t.cdf((value - self.centres) / self.scales, self.df)
        )

    def p(self) -> np.ndarray:
        """Two-sided p [P, S] of no effect."""
        low = self.below(0.0)
        return np.clip(2 * np.minimum(low, 1 - low), 0, 1)

    def quantile(self, q: float) -> np.ndarray:
        """[P, S], by bisection between the largest and the smallest quantile of the components."""
        each = self.centres + stats.t.ppf(q, self.df) * self.scales
        low, high = each.min(0), each.max(0)
        for _ in range(60):
            middle = (low + high) / 2
            under = self.below(middle) < q
            low, high = np.where(under, middle, low), np.where(under, high, middle)
        return (low + high) / 2


def grid(kernels: int) -> np.ndarray:
    """Weights [H, 1 + kernels] (own noise first) that are summed over: centres of cells of equal
    size of the simplex.
    """
    if kernels == 1:
        shared = (np.arange(25) + 0.5) / 25
        return np.stack([1 - shared, shared], axis=1)
    steps = {2: 9, 3: 6}.get(kernels, 4)
    cells = [c for c in np.ndindex(*([steps] * kernels)) if sum(c) < steps]
    shared = (np.array(cells) + 1 / (kernels + 1)) / steps
    return np.column_stack([1 - shared.sum(1), shared])


def mixture(x: np.ndarray, y: np.ndarray, kernels: Sequence[np.ndarray]) -> Mixture:
    """Posterior of the coefficients of y [n, S] on x [n, P] (with its intercept) under errors of
    covariance w_0 I + sum_k w_k K_k.
    """
    n, p = x.shape
    df = n - p
    weights = grid(len(kernels))
    logs, centres, scales = [], [], []
    for w in weights:
        covariance = w[0] * np.eye(n) + sum(v * k for v, k in zip(w[1:], kernels, strict=True))
        factor = np.linalg.cholesky(covariance)
        white = scipy.linalg.solve_triangular(factor, np.concatenate([x, y], axis=1), lower=True)
        q, r = np.linalg.qr(white[:, :p])
        projected = q.T @ white[:, p:]
        rss = np.maximum((white[:, p:] ** 2).sum(0) - (projected**2).sum(0), 1e-300)
        inverse = scipy.linalg.solve_triangular(r, np.eye(p))
        centres.append(inverse @ projected)
        scales.append(np.sqrt((inverse**2).sum(1)[:, None] * rss / df))
        logs.append(
            -np.log(np.diag(factor)).sum() - np.log(np.abs(np.diag(r))).sum() - df / 2 * np.log(rss)
        )
    logs = np.array(logs)
    posterior = np.exp(logs - logs.max(0))
    posterior /= posterior.sum(0)
    return Mixture(
        posterior, np.array(centres), np.array(scales), df, (1 - weights[:, 0]) @ posterior
    )


def fit_overlap(
    y: Sequence[float],
    x: pd.DataFrame,
    kernels: Sequence[np.ndarray],
    *,
    name: str = "the fit",
    shown: Sequence[str] | None = None,
) -> tuple[Fit, Mixture]:
    """As `regression.fit_ols`, with errors that are shared in proportion to the overlap of
    clusters; and the posterior itself.

    kernels: matrices [n, n] with ones on the diagonal (see `kernel`), each a component of the
    errors. R2 and F are nan. The coefficient's degrees of freedom are n - p - 1. Raises ValueError
    as `fit_ols`.
    """
    y = np.asarray(y, float)
    if len(y) < x.shape[1] + 2:
        check_rows(len(y), x, name)
    z = standardise(x, name)
    check_rows(len(y), z, name)
    found = mixture(np.column_stack([z.to_numpy(float), np.ones(len(y))]), y[:, None], kernels)
    mean, sd = found.mean()[:-1, 0], found.sd()[:-1, 0]
    columns = (
        list(x.columns),
        mean,
        sd,
        mean / sd,
        found.p()[:-1, 0],
        found.quantile(0.025)[:-1, 0],
        found.quantile(0.975)[:-1, 0],
    )
    table = pd.DataFrame(dict(zip(COEFFICIENTS, columns, strict=True)))
    kept = table[table["term"].isin(list(x.columns) if shown is None else list(shown))].reset_index(
        drop=True
    )
    nan = float("nan")
    scale = float(np.sqrt(((y - y.mean()) ** 2).sum() / (len(y) - 1)))
    return Fit(name, kept, len(y), tuple(x.columns), nan, nan, nan, nan, nan, scale), found
