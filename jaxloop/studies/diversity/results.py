"""Gathers the measurements of a diversity study from its run, and writes them as tables."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.studies.common import report as common_report
from jaxloop.studies.diversity import measure
from jaxloop.studies.diversity.cells import chain_name
from jaxloop.studies.diversity.config import DiversityConfig
from jaxloop.studies.diversity.prepare import Prepared
from jaxloop.studies.diversity.records import TokenCounter


class Results(NamedTuple):
    """What the page shows.

    pools: `measure.describe` of the real and generated sets; distances, clouds: of
    `measure.distances`; cells: `model_table`; fits: `measure.regressions`; checks:
    `measure.checks`; count_tokens: texts -> tokens of each.
    """

    pools: pd.DataFrame
    distances: pd.DataFrame
    clouds: dict[str, np.ndarray]
    cells: pd.DataFrame
    fits: pd.DataFrame
    checks: list[measure.Check]
    count_tokens: TokenCounter


def gather(
    root: Path,
    settings: DiversityConfig,
    prepared: Prepared,
    pools: Mapping[str, pd.DataFrame],
    sets: Mapping[str, pd.DataFrame],
) -> Results:
    """Measure the sets, write sets.csv, distances.csv and regressions.csv, and return all results.

    pools, sets: generated and training sets by name.
    """
    count = next(iter(prepared.models.values()))[1].count
    tables = prepared.tables
    by_pool = {f"{task}-real": (task, tables[task].train) for task in tables} | {
        name: (name.split("-")[0], table) for name, table in pools.items()
    }
    about_pools = measure.describe(by_pool, count).assign(kind="source")
    task_of = {cell.set_name: cell.task for cell in prepared.cells}
    about_sets = measure.describe(
        {name: (task_of[name], table) for name, table in sets.items()}, count
    ).assign(kind="training set")
    about = pd.concat([about_pools, about_sets], ignore_index=True)
    about.to_csv(root / "sets.csv", index=False)

    alone = {cell.set_name for cell in prepared.cells if cell.counts.real == 0}
    compared = {f"{task}-test": (task, tables[task].test) for task in tables} | {
        name: entry for name, entry in by_pool.items() if not name.endswith("-real")
    }
    compared |= {name: (task_of[name], sets[name]) for name in sets if name in alone}
    distances, clouds = measure.distances(
        compared, {task: t.train for task, t in tables.items()}, settings
    )
    distances.to_csv(root / "distances.csv", index=False)

    cells = model_table(root, prepared, about_sets, distances)
    generated = cells[cells["set"].isin(alone)].assign(
        kind=lambda t: np.where(t["level"] == "crossed", "crossed", "levels")
    )
    generated["group"] = measure.groups(generated)
    fits = measure.regressions(generated) if len(generated) else pd.DataFrame()
    fits.to_csv(root / "regressions.csv", index=False)
    entries = {name: entry for name, entry in by_pool.items() if not name.endswith("-real")}
    checks = measure.checks(settings, entries, about_pools)
    return Results(
        pools=about_pools,
        distances=distances,
        clouds=clouds,
        cells=cells,
        fits=fits,
        checks=checks,
        count_tokens=count,
    )


def model_table(
    root: Path, prepared: Prepared, about: pd.DataFrame, distances: pd.DataFrame
) -> pd.DataFrame:
    """Return one row per model: its factors, test losses and the measures of its training set."""
    metrics = common_report.read_metrics(root)
    losses = metrics.pivot_table(index="chain", columns="metric", values="value", aggfunc="first")
    rows = []
    several = len({cell.base for cell in prepared.cells}) > 1
    for cell in prepared.cells:
        chain = chain_name(cell, several_bases=several)
        if chain in losses.index:
            rows.append(
                {
                    "chain": chain,
                    "set": cell.set_name,
                    **cell.factors,
                    **{str(name): loss for name, loss in losses.loc[chain].to_dict().items()},
                }
            )
    table = pd.DataFrame(rows)
    table = table.merge(about.drop(columns=["task", "kind"]), on="set", how="left")
    return table.merge(distances.drop(columns=["task", "points"]), on="set", how="left")


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Return the rows as named tuples, whose fields the stubs of pandas type as any scalar."""
    return table.itertuples()
