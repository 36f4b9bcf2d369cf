"""Builds the regressions of a study from its tables.

They are the fits of Table 1 (over all chains, and by dataset and ratio) and Figure 4 (by domain).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import LAST, crossing, share
from jaxloop.studies.recursive_loops.analysis import overlap as overlapping
from jaxloop.studies.recursive_loops.analysis.overlap import Overlaps
from jaxloop.studies.recursive_loops.analysis.regression import (
    PROPERTIES,
    check_outcome,
    dummies,
    property_table,
)
from jaxloop.studies.recursive_loops.analysis.regression_robust import form
from jaxloop.studies.recursive_loops.analysis.relative import find_metric, outcomes

ALL = "All"
_BASE = "100M_tweets"  # whose level the dummies of the paper's fit over all datasets leave out


class Task(NamedTuple):
    """The data of one regression over n chains.

    Attributes:
        dependent: "diversity" or "quality"; in a multi-domain study "diversity@<domain>".
        column: the column of Table 1 that the fit fills.
        rows: the n chains, with the columns first, late, relative, difference.
        x: [n, p], all regressors in their order.
        shown: the regressors that tables show.
        kernels: matrices [n, n], components of the covariance of errors (`overlap.kernel`).
        groups: [n], the groups of the bootstrap.
    """

    dependent: str
    column: str
    rows: pd.DataFrame
    x: pd.DataFrame
    shown: tuple[str, ...]
    kernels: tuple[np.ndarray, ...]
    groups: np.ndarray

    @property
    def name(self) -> str:
        """How sentences refer to the fit."""
        return f"the fit of {self.dependent} ({self.column})"

    def data(self, shape: str) -> tuple[np.ndarray, pd.DataFrame]:
        """Return the outcome [n] and the regressors [n, p] in one of `regression_robust.FORMS`.

        A covariate is the last regressor. shape: the form.
        """
        y, covariates = form(self.rows, shape)
        check_outcome(y, f"{self.name}, {shape}", self.rows["chain"])
        return y, pd.concat([self.x, covariates], axis=1)

    def replacing(self, old: str, new: pd.Series, name: str) -> "Task":
        """Return the task with one property replaced by another (Gaussianity by negentropy).

        Args:
            old: name of the property that is replaced.
            new: values of the other property, by row.
            name: name of the other property.
        """
        x = self.x.assign(**{old: new.loc[self.x.index]}).rename(columns={old: name})
        return self._replace(x=x, shown=tuple(name if term == old else term for term in self.shown))


class Tasks(NamedTuple):
    """The regressions of a study.

    Attributes:
        tasks: one for each fit.
        properties: the properties that have values, in order.
        absent: the properties that have none.
        skipped: chains that are in no fit; columns dependent, chain, reason.
    """

    tasks: list[Task]
    properties: tuple[str, ...]
    absent: tuple[str, ...]
    skipped: pd.DataFrame


def domains_of(chains: pd.DataFrame) -> list[str]:
    """Return the domains of a multi-domain study; an empty list for other studies.

    chains: chains.csv, which has a column `cluster.<domain>` for each domain.
    """
    return [name.removeprefix("cluster.") for name in chains.columns if name.startswith("cluster.")]


def measured(
    properties: pd.DataFrame, names: Sequence[str] = tuple(PROPERTIES)
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (names that have values in a table of properties, names that have none)."""
    has = [
        n
        for n in names
        if n in properties and pd.to_numeric(properties[n], errors="coerce").notna().any()
    ]
    return tuple(has), tuple(n for n in names if n not in has)


def build(
    metrics: pd.DataFrame,
    chains: pd.DataFrame,
    properties: pd.DataFrame,
    overlaps: Overlaps,
    dependents: Mapping[str, Sequence[str]],
    *,
    last: int = LAST,
) -> Tasks:
    """Return the regressions of a cluster study, or of a multi-domain study.

    It is multi-domain if `chains` has columns `cluster.<domain>`. Raises ValueError for tables that
    do not fit each other.

    Args:
        metrics: metrics.csv.
        chains: chains.csv.
        properties: properties.csv.
        overlaps: {dataset: overlap of its clusters}.
        dependents: {"diversity" or "quality": metrics that may stand for it}.
        last: how many last generations are averaged to the late value.
    """
    domains = domains_of(chains)
    names, absent = measured(properties)
    if not names:
        raise ValueError(
            f"properties.csv has values for none of {', '.join(PROPERTIES)}, at least one "
            "predictor is needed"
        )
    tasks: list[Task] = []
    skipped: list[tuple[str, str, str]] = []
    without = crossing(metrics)
    for dependent, called in dependents.items():
        for domain in domains or (None,):
            metric = find_metric(metrics, tuple(called), domain)
            if metric is None:
                continue
            label = f"{dependent}@{domain}" if domain else dependent
            if metric in without:
                reason = f"{metric} lies on both sides of 0 in generation 0: no relative value"
                skipped += [(label, chain, reason) for chain in chains["chain"]]
                continue
            result = outcomes(metrics, chains, metric, last=last)
            x = property_table(result.table, properties, names, domains)
            complete = _complete(result.table, x, metric)
            skipped += [
                (label, chain, reason)
                for chain, reason in [
                    *result.skipped.itertuples(index=False, name=None),
                    *complete.skipped,
                ]
            ]
            if domain:
                tasks.append(
                    _multi(label, domain, domains, complete.rows, complete.predictors, overlaps)
                )
            else:
                tasks += _single(label, complete.rows, complete.predictors, overlaps)
    if not tasks and skipped:
        raise ValueError(f"{skipped[0][2]}, so nothing can be fitted")
    if not tasks:
        wanted = " or ".join(name for called in dependents.values() for name in called)
        raise ValueError(
            f"metrics.csv holds neither {wanted}, one of them is the outcome of the regressions"
        )
    return Tasks(
        tasks=tasks,
        properties=names,
        absent=absent,
        skipped=pd.DataFrame(skipped, columns=["dependent", "chain", "reason"]),
    )


class _Complete(NamedTuple):
    """Chains that have every predictor, their predictors, and (chain, reason) of the others."""

    rows: pd.DataFrame
    predictors: pd.DataFrame
    skipped: list[tuple[str, str]]


def _complete(rows: pd.DataFrame, x: pd.DataFrame, metric: str) -> _Complete:
    """Raises ValueError where no chain has every predictor."""
    # A collapsed cluster may have an infinite entropy, which is no value for a regression either.
    x = x.replace([np.inf, -np.inf], np.nan)
    missing = x.isna()
    incomplete = missing.any(axis=1)
    skipped = [
        (
            chain,
            "its cluster has no value of "
            + ", ".join(name for name in x.columns if missing.at[row, name]),
        )
        for row, chain in rows["chain"][incomplete].items()
    ]
    if incomplete.all():
        raise ValueError(
            f"no chain has a relative value of {metric!r} and a cluster with all "
            "properties, so nothing can be fitted"
        )
    return _Complete(
        rows=rows[~incomplete].reset_index(drop=True),
        predictors=x[~incomplete].reset_index(drop=True),
        skipped=skipped,
    )


def _single(dependent: str, rows: pd.DataFrame, x: pd.DataFrame, overlaps: Overlaps) -> list[Task]:
    """One fit for each cell (a dataset at a ratio), and, of several cells, one over all chains."""
    indices: Mapping[Any, Any] = rows.groupby(["dataset", "ratio"], sort=True).indices
    cells = [(str(dataset), float(ratio), i) for (dataset, ratio), i in indices.items()]
    properties = tuple(x.columns)
    tasks = []
    if len(cells) > 1:
        whole = pd.concat([x.assign(**_ratio(rows)), dummies(rows["dataset"], _BASE)], axis=1)
        tasks.append(_task(dependent, ALL, rows, whole, properties, overlaps))
    for dataset, ratio, index in cells:
        tasks.append(
            _task(
                dependent,
                f"{dataset} {share(ratio)}",
                rows.iloc[index].reset_index(drop=True),
                x.iloc[index].reset_index(drop=True),
                properties,
                overlaps,
            )
        )
    return tasks


def _ratio(rows: pd.DataFrame) -> dict[str, pd.Series]:
    return {"ratio": rows["ratio"].astype(float)} if rows["ratio"].nunique() > 1 else {}


def _task(
    dependent: str,
    column: str,
    rows: pd.DataFrame,
    x: pd.DataFrame,
    shown: tuple[str, ...],
    overlaps: Overlaps,
) -> Task:
    def kernel(kind: str) -> np.ndarray:
        return overlapping.kernel(rows["dataset"], rows["cluster"], overlaps, kind)

    return Task(
        dependent=dependent,
        column=column,
        rows=rows,
        x=x,
        shown=shown,
        kernels=_distinct([kernel("texts"), kernel("neighbours")]),
        groups=overlapping.groups(kernel("cosine")),
    )


def _multi(
    label: str,
    domain: str,
    domains: list[str],
    rows: pd.DataFrame,
    x: pd.DataFrame,
    overlaps: Overlaps,
) -> Task:
    """The fit of one domain's outcome.

    Its errors are shared through the domain's own clusters (by texts and by neighbours) and through
    the clusters of the other domains.
    """

    def kernel(name: str, kind: str) -> np.ndarray:
        return overlapping.kernel([name] * len(rows), rows[f"cluster.{name}"], overlaps, kind)

    kernels = [kernel(domain, "texts"), kernel(domain, "neighbours")]
    others = [kernel(name, "texts") for name in domains if name != domain]
    if others:
        kernels.append(sum(others[1:], others[0]) / len(others))
    cosine = np.mean([kernel(name, "cosine") for name in domains], axis=0)
    return Task(
        dependent=label,
        column=domain,
        rows=rows,
        x=x.assign(**_ratio(rows)),
        shown=tuple(x.columns),
        kernels=_distinct(kernels),
        groups=overlapping.groups(cosine),
    )


def _distinct(kernels: Iterable[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The matrices without identity matrices (a chain's own noise) and without repetitions."""
    distinct: list[np.ndarray] = []
    for kernel in kernels:
        is_noise = np.allclose(kernel, np.eye(len(kernel)))
        if not is_noise and not any(np.allclose(kernel, other) for other in distinct):
            distinct.append(kernel)
    return tuple(distinct)
