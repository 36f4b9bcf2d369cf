"""The tables of a neuron study (see `neuron_study`)."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import hypergeom

from jaxloop.reporting.statistics import benjamini_hochberg_rejects
from jaxloop.studies.bias_amplification.neuron_null import (
    PERMUTATION_RULES,
    RULES,
    Null,
    Relation,
    TestGrid,
)
from jaxloop.studies.bias_amplification.neuron_regression import Fit

OVERLAP = (
    "mode",
    "rule",
    "first",
    "second",
    "neurons",
    "size_first",
    "size_second",
    "observed",
    "expected",
    "p_more",
    "p_fewer",
    "null_mean",
    "null_p",
    "null_p_fewer",
)


class Tables(NamedTuple):
    """The tables of one mode."""

    tests: pd.DataFrame
    counts: pd.DataFrame
    overlap: pd.DataFrame
    layers: pd.DataFrame


class _Verdicts(NamedTuple):
    """What tests say, [R, J] each: significant by a rule; p values of the permutations, NaN where
    there are none.
    """

    significant: dict[str, np.ndarray]
    p: dict[str, np.ndarray]


def make_tables(grid: TestGrid, mode: str, fit: Fit, null: Null | None) -> Tables:
    """Make the tables of one mode from its regressions and what exchanged outcomes gave, if any."""
    verdicts = _verdicts(grid, fit, null)
    tests, counts, layers = [], [], []
    for relation in grid.relations:
        head = {"mode": mode, "relation": "-".join(relation)}
        tests.append(_tests(grid, relation, head, fit, verdicts))
        for rule, significant in verdicts.significant.items():
            hit = grid.of(significant, relation)
            drawn = None
            if null is not None and rule in RULES:
                drawn = null.counts[relation, rule]
            flat = int(grid.of(fit.flat, relation).sum())
            together = np.nan if null is None else null.together[relation]
            counts.append(head | _count(grid, rule, hit, flat, drawn) | {"p_together": together})
            layers.append(_layers(grid, relation, head | {"rule": rule}, hit, fit))
    overlap = [
        _overlap_row(grid, mode, rule, pair, verdicts.significant[rule], null)
        for rule in RULES
        for pair in grid.pairs()
    ]
    return Tables(
        tests=pd.concat(tests),
        counts=pd.DataFrame(counts),
        overlap=pd.DataFrame(overlap, columns=list(OVERLAP)),
        layers=pd.concat(layers),
    )


def _verdicts(grid: TestGrid, fit: Fit, null: Null | None) -> _Verdicts:
    bh = np.zeros(fit.p.shape, bool)
    for relation in grid.relations:
        # A view: its values are those of `bh`.
        grid.of(bh, relation)[:] = benjamini_hochberg_rejects(grid.of(fit.p, relation), grid.alpha)
    significant = {
        "p<alpha": fit.p < grid.alpha,
        "bonferroni": fit.p < grid.alpha / grid.tests,
        "bh": bh,
    }
    if null is None:
        return _Verdicts(
            significant, dict.fromkeys(PERMUTATION_RULES, np.full(fit.p.shape, np.nan))
        )
    p = {"permutation": null.p, "familywise": null.familywise}
    return _Verdicts(significant | {rule: p[rule] < grid.alpha for rule in p}, p)


def _tests(
    grid: TestGrid, relation: Relation, head: Mapping[str, str], fit: Fit, verdicts: _Verdicts
) -> pd.DataFrame:
    kind, outcome = relation
    depth, width = grid.shapes[kind]
    columns: dict[str, Any] = {
        **head,
        "neurons": kind,
        "outcome": outcome,
        "layer": np.repeat(np.arange(1, depth + 1), width),
        "unit": np.tile(np.arange(width), depth),
    }
    for name in ("r", "slope", "se", "t", "p", "flat"):
        columns[name] = grid.of(getattr(fit, name), relation)
    for rule in RULES[1:]:
        columns[rule] = grid.of(verdicts.significant[rule], relation)
    for rule in PERMUTATION_RULES:
        columns[f"p_{rule}"] = grid.of(verdicts.p[rule], relation)
    return pd.DataFrame(columns)


def _count(
    grid: TestGrid, rule: str, hit: np.ndarray, flat: int, drawn: list[int] | None
) -> dict[str, Any]:
    observed = int(hit.sum())
    return {
        "rule": rule,
        "tests": hit.size,
        "flat": flat,
        "observed": observed,
        "nominal": _nominal(grid, rule, hit.size),
        **_against(observed, drawn),
    }


def _nominal(grid: TestGrid, rule: str, tests: int) -> float:
    """Tests that pass by chance if every p is uniform; NaN for Benjamini-Hochberg and the
    familywise rule, which have no fixed number.
    """
    if rule in ("p<alpha", "permutation"):
        return grid.alpha * tests
    return grid.alpha * tests / grid.tests if rule == "bonferroni" else np.nan


def _against(observed: int, drawn: list[int] | None) -> dict[str, float]:
    """A count beside those of permutations."""
    if drawn is None:
        return {"null_mean": np.nan, "null_high": np.nan, "p": np.nan}
    counts = np.asarray(drawn)
    return {
        "null_mean": counts.mean(),
        "null_high": np.quantile(counts, 0.95),
        "p": (1 + (counts >= observed).sum()) / (1 + len(counts)),
    }


def _layers(
    grid: TestGrid, relation: Relation, head: Mapping[str, str], hit: np.ndarray, fit: Fit
) -> pd.DataFrame:
    depth, width = grid.shapes[relation[0]]
    positive = hit & (grid.of(fit.slope, relation) > 0)
    return pd.DataFrame(
        {
            **head,
            "layer": np.arange(1, depth + 1),
            "significant": hit.reshape(depth, width).sum(1),
            "positive": positive.reshape(depth, width).sum(1),
        }
    )


def _overlap_row(
    grid: TestGrid,
    mode: str,
    rule: str,
    pair: tuple[Relation, Relation],
    significant: np.ndarray,
    null: Null | None,
) -> dict[str, Any]:
    first, second = (grid.of(significant, relation) for relation in pair)
    shared = int((first & second).sum())
    overlaps = None if null is None else null.overlaps[pair[0], pair[1], rule]
    drawn = _against(shared, overlaps)
    chance = hypergeometric(first.size, int(first.sum()), int(second.sum()), shared)
    return {
        "mode": mode,
        "rule": rule,
        "first": "-".join(pair[0]),
        "second": "-".join(pair[1]),
        "neurons": first.size,
        **chance._asdict(),
        "null_mean": drawn["null_mean"],
        "null_p": drawn["p"],
        "null_p_fewer": _p_fewer(shared, overlaps),
    }


def _p_fewer(observed: int, drawn: list[int] | None) -> float:
    """The share of permutations with at most as many, this one among them."""
    return np.nan if drawn is None else float(np.mean(np.append(drawn, observed) <= observed))


class Overlap(NamedTuple):
    """Two sets of neurons: sizes, how many they share, how many they would if drawn independently,
    and P(at least, at most as many).
    """

    size_first: int
    size_second: int
    observed: int
    expected: float
    p_more: float
    p_fewer: float


def hypergeometric(neurons: int, first: int, second: int, shared: int) -> Overlap:
    """Compare the overlap of two sets of `first` and `second` out of `neurons` neurons with that of
    independent draws without replacement.

    Neurons of one model are not independent of each other, so p is a description; `neuron_study`
    gives the permutation null beside it. Raises ValueError for numbers that no two sets can have.
    """
    if (
        not 0 <= shared <= min(first, second)
        or max(first, second) > neurons
        or first + second - shared > neurons
    ):
        raise ValueError(
            f"overlap: sets of {first} and {second} out of {neurons} neurons cannot share {shared}"
        )
    law = neurons, first, second
    return Overlap(
        size_first=first,
        size_second=second,
        observed=shared,
        expected=first * second / neurons,
        p_more=float(hypergeom.sf(shared - 1, *law)),
        p_fewer=float(hypergeom.cdf(shared, *law)),
    )
