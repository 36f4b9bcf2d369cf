"""What the tests of a neuron study give when outcomes change places.

Dimensions: V versions, J neurons, R outcomes, B arrangements.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

RULES = ("p<alpha", "bonferroni", "bh")
# Rules whose p values come from the permutations themselves.
PERMUTATION_RULES = ("permutation", "familywise")

Relation = tuple[str, str]


@dataclass(frozen=True)
class TestGrid:
    """All tests of one mode.

    Attributes:
        relations: (kind of neurons, outcome) of every group of tests.
        columns: of each kind among all neurons.
        shapes: (layers, coordinates) of each kind.
        outcomes: names.
        alpha: level.
    """

    __test__ = False  # not for pytest

    relations: Sequence[Relation]
    columns: dict[str, slice]
    shapes: dict[str, tuple[int, int]]
    outcomes: Sequence[str]
    alpha: float

    @property
    def tests(self) -> int:
        """How many tests there are."""
        return sum(s.stop - s.start for s in self.columns.values()) * len(self.outcomes)

    def of(self, values_RJ: np.ndarray, relation: Relation) -> np.ndarray:
        """Return the part of [..., R, J] that belongs to a relation."""
        kind, outcome = relation
        return values_RJ[..., self.outcomes.index(outcome), self.columns[kind]]

    def pairs(self) -> list[tuple[Relation, Relation]]:
        """Return the pairs of relations over the same grid of neurons."""
        return [
            (first, second)
            for i, first in enumerate(self.relations)
            for second in self.relations[i + 1 :]
            if self.shapes[first[0]] == self.shapes[second[0]]
        ]


class Null(NamedTuple):
    """What B arrangements give.

    Attributes:
        counts: significant tests of a relation by a rule, one number per arrangement.
        overlaps: neurons that are significant in both of two relations, likewise.
        p: [R, J] share of arrangements in which a neuron's own |t| is reached.
        familywise: [R, J] share of arrangements in which any |t| reaches a neuron's.
        together: share of arrangements in which the neurons of a relation, all together, have as
            much to do with the outcome: sum of log(1 + t^2). Counts saturate, this does not.
    """

    counts: dict[tuple[Relation, str], list[int]]
    overlaps: dict[tuple[Relation, Relation, str], list[int]]
    p: np.ndarray
    familywise: np.ndarray
    together: dict[Relation, float]


def gather_null(grid: TestGrid, t_RJ: np.ndarray, pieces: Iterable[np.ndarray]) -> Null:
    """Count what outcomes give that changed places.

    Args:
        grid: of the tests.
        t_RJ: the tests' own t values.
        pieces: squared t values of such outcomes, [b, R, J] each, B rows in all.
    """
    # Equal values that were rounded differently count as reached.
    reached = t_RJ**2 * (1 - 1e-9)
    thresholds = _Thresholds.of(grid)
    counts: dict[tuple[Relation, str], list[int]] = {
        (relation, rule): [] for relation in grid.relations for rule in RULES
    }
    overlaps: dict[tuple[Relation, Relation, str], list[int]] = {
        (first, second, rule): [] for first, second in grid.pairs() for rule in RULES
    }
    exceed, largest = np.zeros(t_RJ.shape, np.int64), []
    sums_Q = _sums(grid, reached)
    as_large_Q = np.zeros(len(grid.relations), np.int64)
    for t2_BRJ in pieces:
        exceed += (t2_BRJ >= reached[None]).sum(0)
        largest.append(t2_BRJ.max((1, 2)))
        as_large_Q += (_sums(grid, t2_BRJ) >= sums_Q).sum(0)
        for t2_RJ in t2_BRJ:
            for rule in RULES:
                hits = {
                    relation: thresholds.hits(rule, grid.of(t2_RJ, relation))
                    for relation in grid.relations
                }
                for relation, hit in hits.items():
                    counts[relation, rule].append(int(hit.sum()))
                for first, second in grid.pairs():
                    overlaps[first, second, rule].append(int((hits[first] & hits[second]).sum()))
    sorted_largest = np.sort(np.concatenate(largest))
    total = 1 + len(sorted_largest)
    below = np.searchsorted(sorted_largest, reached)
    return Null(
        counts=counts,
        overlaps=overlaps,
        p=(1 + exceed) / total,
        familywise=(total - below) / total,
        together=dict(zip(grid.relations, ((1 + as_large_Q) / total).tolist(), strict=True)),
    )


def _sums(grid: TestGrid, t2_RJ: np.ndarray) -> np.ndarray:
    """Sum of log(1 + t^2) over the neurons of every relation: [..., Q] of [..., R, J]."""
    logs = np.log(1 + t2_RJ)
    return np.stack([grid.of(logs, relation).sum(-1) for relation in grid.relations], -1)


class _Thresholds(NamedTuple):
    """Squared t from which on a test is significant. `steps`: those of Benjamini and Hochberg for
    the k-th largest of a relation, by the number of its tests.
    """

    single: float
    bonferroni: float
    steps: dict[int, np.ndarray]

    @classmethod
    def of(cls, grid: TestGrid) -> "_Thresholds":
        sizes = {s.stop - s.start for s in grid.columns.values()}
        return cls(
            single=norm.isf(grid.alpha / 2) ** 2,
            bonferroni=norm.isf(grid.alpha / 2 / grid.tests) ** 2,
            steps={
                size: norm.isf(np.arange(1, size + 1) * grid.alpha / 2 / size) ** 2
                for size in sizes
            },
        )

    def hits(self, rule: str, t2_J: np.ndarray) -> np.ndarray:
        if rule == "p<alpha":
            return t2_J >= self.single
        if rule == "bonferroni":
            return t2_J >= self.bonferroni
        return t2_J >= self._step_up(t2_J)

    def _step_up(self, t2_J: np.ndarray) -> float:
        """The squared t from which on Benjamini and Hochberg reject."""
        steps_J = self.steps[t2_J.size]
        high = t2_J[t2_J > self.single]
        passed = np.flatnonzero(-np.sort(-high) >= steps_J[: len(high)])
        return steps_J[passed[-1]] if len(passed) else np.inf
