"""Chooses the clusters that a study uses, and measures how far they overlap.

From each clustering, clusters above a minimum size are drawn; where there are too few, small ones
are merged. A study runs its chains on a final sample of all of these. Source: arXiv 2504.03814,
section 4.2 and its released code.
"""

import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxloop.studies.recursive_loops.data.clustering import NOISE, fold_seed, load_labels

# The paper's text says 60,000; its code 80,000, which a chain at r = 1/8 needs (70,500 human
# posts).
MIN_SIZE = 80_000


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster that a study may use.

    Its members are the rows whose label in one clustering is one of `labels`.

    Attributes:
        clustering: the clustering's name.
        kind: "direct" for a single label; "far" or "random" for merged clusters.
        labels: in the order in which they were merged.
        size: number of rows.
    """

    clustering: str
    kind: str
    labels: tuple[int, ...]
    size: int

    @property
    def name(self) -> str:
        """A name that is unique within a dataset."""
        return f"{self.clustering}:{'+'.join(map(str, self.labels))}"


def select(
    clustering: str,
    labels: np.ndarray,
    centers: np.ndarray,
    *,
    min_size: int = MIN_SIZE,
    count: int = 10,
    seed: int = 0,
) -> list[Cluster]:
    """Choose up to `count` clusters of one clustering, of labels [N] and centers [K, 2].

    Direct ones, with more than `min_size` rows, are drawn at random. If there are too few, the
    small ones are merged in turns, "far" and "random", until a merged one has at least `min_size`
    rows, as long as the rows that are left allow it. No cluster is used twice.
    """
    sizes = np.bincount(labels[labels != NOISE], minlength=len(centers))
    draw = random.Random(fold_seed(seed, clustering))
    large = np.flatnonzero(sizes > min_size).tolist()
    chosen = [
        Cluster(clustering, "direct", (k,), int(sizes[k]))
        for k in draw.sample(large, min(count, len(large)))
    ]
    if len(large) >= count:
        return chosen
    rest = np.flatnonzero((sizes <= min_size) & (sizes > 0)).tolist()
    draw.shuffle(rest)
    for turn in range(count - len(large)):
        if sizes[rest].sum() < min_size:
            break
        kind = "random" if turn % 2 else "far"
        merged = _merge(rest, sizes, centers if kind == "far" else None, min_size)
        rest = [k for k in rest if k not in set(merged)]
        chosen.append(Cluster(clustering, kind, tuple(merged), int(sizes[merged].sum())))
    return chosen


def _merge(
    rest: Sequence[int], sizes: np.ndarray, centers: np.ndarray | None, min_size: int
) -> list[int]:
    """Labels that are merged to one cluster of at least `min_size` rows, beginning with `rest[0]`.

    With `centers` the next label is the one with the largest sum of distances to those taken
    before; without, the next of `rest`.
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
    """Return the clusters that `select` chooses from each clustering in a folder.

    names: of the clusterings. needed: rows that a chain needs. Raises ValueError where no
    clustering has a cluster of that size, or `min_size` is less than `needed`.
    """
    if needed is not None and min_size < needed:
        raise ValueError(
            f"clusters.min_size = {min_size}: a chain needs {needed} human texts; choose at "
            f"least {needed}, or shorter chains."
        )
    chosen: list[Cluster] = []
    rows = 0
    for name in names:
        labels, centers = load_labels(folder, name)
        rows = len(labels)
        chosen += select(name, labels, centers, min_size=min_size, count=count, seed=seed)
    if not chosen:
        raise ValueError(
            f"clusters.min_size = {min_size}: no cluster of the {len(names)} clusterings, merged "
            f"or not, is that large (the dataset has {rows} rows); choose a smaller size or more "
            "data."
        )
    return chosen


def final_sample(clusters: Sequence[Cluster], count: int = 200, seed: int = 42) -> list[Cluster]:
    """Return the clusters that a study uses; all if there are no more than `count`.

    They are drawn by Python's `random.sample`, which the released code seeds with 42.
    """
    if len(clusters) <= count:
        return list(clusters)
    return random.Random(seed).sample(list(clusters), count)


def members(cluster: Cluster, labels: np.ndarray) -> np.ndarray:
    """Return the row numbers of a cluster in ascending order; labels [N]: of its clustering."""
    return np.flatnonzero(np.isin(labels, cluster.labels))


def jaccard(
    clusters: Sequence[Cluster], labels: Callable[[str], np.ndarray] | Mapping[str, np.ndarray]
) -> np.ndarray:
    """Return the Jaccard index of every pair of clusters, |A and B| / |A or B|: [C, C] float64.

    labels: {name of a clustering: its labels [N]}, or a function from name to labels, which is
    called once for each clustering.
    """
    look_up = labels.__getitem__ if isinstance(labels, Mapping) else labels
    bits: dict[int, np.ndarray] = {}
    order = sorted(range(len(clusters)), key=lambda i: clusters[i].clustering)
    for name, group in itertools.groupby(order, key=lambda i: clusters[i].clustering):
        labels_of_name = look_up(name)
        for i in group:
            bits[i] = np.packbits(np.isin(labels_of_name, clusters[i].labels))
    return _jaccard_of_bits([bits[i] for i in range(len(clusters))])


def jaccard_of_rows(members: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Return `jaccard` of clusters that are given by row numbers; count: texts of the dataset."""
    bits = []
    for rows in members:
        is_member = np.zeros(count, bool)
        is_member[rows] = True
        bits.append(np.packbits(is_member))
    return _jaccard_of_bits(bits)


def _jaccard_of_bits(bits: Sequence[np.ndarray]) -> np.ndarray:
    """Jaccard index of every pair of sets, each given as packed bits."""
    sizes = np.array([np.bitwise_count(b).sum(dtype=np.int64) for b in bits], np.float64)
    both = np.zeros((len(bits), len(bits)))
    for i, j in itertools.combinations_with_replacement(range(len(bits)), 2):
        both[i, j] = both[j, i] = np.bitwise_count(bits[i] & bits[j]).sum(dtype=np.int64)
    return both / (sizes[:, None] + sizes[None, :] - both)


def overlap_summary(overlap: np.ndarray) -> dict[str, float]:
    """Return the mean, median and largest Jaccard index over pairs of different clusters.

    And the shares of pairs that overlap at all, and by half. overlap: what `jaccard` returned.
    """
    pairs = overlap[np.triu_indices(len(overlap), 1)]
    if not len(pairs):
        names = ("mean", "median", "largest", "overlapping", "by_half")
        return {"pairs": 0} | dict.fromkeys(names, 0.0)
    return {
        "pairs": len(pairs),
        "mean": float(pairs.mean()),
        "median": float(np.median(pairs)),
        "largest": float(pairs.max()),
        "overlapping": float((pairs > 0).mean()),
        "by_half": float((pairs >= 0.5).mean()),
    }
