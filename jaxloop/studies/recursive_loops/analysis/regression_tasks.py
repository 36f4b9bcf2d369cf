"""Which regressions a study asks for, built from its tables: the fits of Table 1 (all, and dataset
by ratio) and of Figure 4 (by domain).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import LAST, share
from jaxloop.studies.recursive_loops.analysis import overlap as overlapping
from jaxloop.studies.recursive_loops.analysis.overlap import Overlaps
from jaxloop.studies.recursive_loops.analysis.regression import (
    PROPERTIES,
    check_outcome,
    dummies,
    property_table,
)
from jaxloop.studies.recursive_loops.analysis.regression_honest import form
from jaxloop.studies.recursive_loops.analysis.relative import find_metric, outcomes

ALL = "All"
_BASE = "100M_tweets"  # whose level the dummies of the paper's fit over all datasets leave out


class Task(NamedTuple):
    """One regression: of which dependent ("diversity", "quality", in a study of domains
    "diversity@<domain>"), in which column of the table.

    rows: the chains with first, late, relative, difference; x: all regressors, in their order;
    shown: those that tables show; kernels: components of the errors (`overlap.kernel`); groups [n]:
    for the bootstrap.
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
        return f"the fit of {self.dependent} ({self.column})"

    def data(self, shape: str) -> tuple[np.ndarray, pd.DataFrame]:
        """Outcome and regressors in one of `regression_honest.FORMS`; a covariate stands last."""
        y, covariates = form(self.rows, shape)
        check_outcome(y, f"{self.name}, {shape}", self.rows["chain"])
        return y, pd.concat([self.x, covariates], axis=1)

    def replacing(self, old: str, new: pd.Series, name: str) -> "Task":
        """The same with another property in the place of one (negentropy for Gaussianity)."""
        x = self.x.assign(**{old: new.loc[self.x.index]}).rename(columns={old: name})
        return self._replace(x=x, shown=tuple(name if term == old else term for term in self.shown))


class Tasks(NamedTuple):
    """tasks; properties: those that have values, in order; absent: those that have none; skipped:
    columns dependent, chain, reason.
    """

    tasks: list[Task]
    properties: tuple[str, ...]
    absent: tuple[str, ...]
    skipped: pd.DataFrame


def domains_of(chains: pd.DataFrame) -> list[str]:
    """Domains of a multi-domain study, from the columns `cluster.<domain>`; empty for a study of
    one.
    """
    return [name.removeprefix("cluster.") for name in chains.columns if name.startswith("cluster.")]


def measured(
    properties: pd.DataFrame, names: Sequence[str] = tuple(PROPERTIES)
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names that have values, names that have none)."""
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
    """The regressions of a cluster study or, where chains have `cluster.<domain>` columns, of a
    multi-domain study.

    dependents: "diversity" -> names under which metrics.csv may hold it. ValueError for tables that
    do not fit each other.
    """
    domains = domains_of(chains)
    names, absent = measured(properties)
    if not names:
        raise ValueError(
            f"properties.csv has values for none of {', '.join(PROPERTIES)}, at least one "
            "predictor is needed"
        )
    found, skipped = [], []
    for dependent, called in dependents.items():
        for domain in domains or [None]:
            metric = find_metric(metrics, tuple(called), domain)
            if metric is None:
                continue
            result = outcomes(metrics, chains, metric, last=last)
            x = property_table(result.table, properties, names, domains)
            # A collapsed cluster may have an infinite entropy, which is no value for a regression
            # either.
            x = x.replace([np.inf, -np.inf], np.nan)
            lost = x.isna().any(axis=1)
            unknown = [
                (c, "its cluster has no value of " + ", ".join(x.columns[x.loc[i].isna()]))
                for i, c in result.table["chain"][lost].items()
            ]
            label = f"{dependent}@{domain}" if domain else dependent
            skipped += [
                (label, chain, reason)
                for chain, reason in [*result.skipped.itertuples(index=False, name=None), *unknown]
            ]
            rows, x = result.table[~lost].reset_index(drop=True), x[~lost].reset_index(drop=True)
            if not len(rows):
                raise ValueError(
                    f"no chain has a relative value of {metric!r} and a cluster with all "
                    "properties, so nothing can be fitted"
                )
            found += (
                [_multi(label, domain, domains, rows, x, overlaps)]
                if domain
                else _single(label, rows, x, overlaps)
            )
    if not found:
        wanted = " or ".join(name for called in dependents.values() for name in called)
        raise ValueError(
            f"metrics.csv holds neither {wanted}, one of them is the outcome of the regressions"
        )
    return Tasks(
        found, names, absent, pd.DataFrame(skipped, columns=["dependent", "chain", "reason"])
    )


def _single(dependent: str, rows: pd.DataFrame, x: pd.DataFrame, overlaps: Overlaps) -> list[Task]:
    cells = rows.groupby(["dataset", "ratio"], sort=True).indices
    whole = x.assign(**_ratio(rows))
    whole = pd.concat([whole, dummies(rows["dataset"], _BASE)], axis=1)
    tasks = (
        [_task(dependent, ALL, np.arange(len(rows)), rows, whole, x.columns, overlaps)]
        if len(cells) > 1
        else []
    )
    for (dataset, ratio), index in cells.items():
        tasks.append(
            _task(
                dependent, f"{dataset} {share(float(ratio))}", index, rows, x, x.columns, overlaps
            )
        )
    return tasks


def _ratio(rows: pd.DataFrame) -> dict[str, pd.Series]:
    return {"ratio": rows["ratio"].astype(float)} if rows["ratio"].nunique() > 1 else {}


def _task(dependent, column, index, rows, x, shown, overlaps: Overlaps) -> Task:
    rows, x = rows.iloc[index].reset_index(drop=True), x.iloc[index].reset_index(drop=True)
    kernels = tuple(
        overlapping.kernel(rows["dataset"], rows["cluster"], overlaps, kind)
        for kind in ("texts", "neighbours")
    )
    groups = overlapping.groups(
        overlapping.kernel(rows["dataset"], rows["cluster"], overlaps, "cosine")
    )
    return Task(dependent, column, rows, x, tuple(shown), _distinct(kernels), groups)


def _multi(
    label: str,
    domain: str,
    domains: list[str],
    rows: pd.DataFrame,
    x: pd.DataFrame,
    overlaps: Overlaps,
) -> Task:
    """Errors shared through the domain's own clusters, texts and neighbours, and through the
    clusters of the other domains.
    """

    def kernel(name, kind):
        return overlapping.kernel([name] * len(rows), rows[f"cluster.{name}"], overlaps, kind)

    others = [kernel(name, "texts") for name in domains if name != domain]
    kernels = [
        kernel(domain, "texts"),
        kernel(domain, "neighbours"),
        *([sum(others) / len(others)] if others else []),
    ]
    cosine = np.mean([kernel(name, "cosine") for name in domains], axis=0)
    return Task(
        label,
        domain,
        rows,
        x.assign(**_ratio(rows)),
        tuple(x.columns),
        _distinct(kernels),
        overlapping.groups(cosine),
    )


def _distinct(kernels: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """Components that are not the chain's own noise, nor another's copy; the first where none is
    left.
    """
    kept: list[np.ndarray] = []
    for k in kernels:
        if not np.allclose(k, np.eye(len(k))) and not any(np.allclose(k, other) for other in kept):
            kept.append(k)
    return tuple(kept)
