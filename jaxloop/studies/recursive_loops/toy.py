"""The histogram toy of arXiv 2504.03814 (C.3, figure 12), as an experiment of its own.

It trains no language model: `simulators.histogram` draws all chains at once. The run
directory gets metrics.csv and chains.csv as the chains of the other experiments leave them, and
the same analysis reads them. N, the strength of the bias and what favours a number that was never
seen are a reading of the paper, which does not say them.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.devices import select_devices
from jaxloop.simulators import histogram
from jaxloop.studies.common import run as common
from jaxloop.studies.recursive_loops.config import LoopsConfig

METRICS = ("relative_entropy", "entropy", "unique")
# Columns of figure 12: (biased, whether human numbers overlap with the favoured ones).
COLUMNS = ((False, True), (True, True), (True, False))
# An upper bound on the bytes of one value in metrics.csv.
_ROW_BYTES = 256


class Prepared(NamedTuple):
    """Nothing is read: the number of chains."""

    chains: int


def prepare(config: LoopsConfig) -> Prepared:
    """Count the chains. Raises ValueError where the device that the config asks for is absent."""
    select_devices(config.run.platform, config.run.devices)
    chain, toy = config.chain, config.toy
    return Prepared(len(toy.accumulate) * len(COLUMNS) * len(chain.ratios) * len(chain.seeds))


def lines(config: LoopsConfig) -> list[str]:
    """Return lines that describe the experiment."""
    return [chains_line(config, prepare(config))]


def plan_rows(config: LoopsConfig) -> list[tuple[str, str]]:
    """Return the rows of `--plan`."""
    return [
        ("chains", chains_line(config, prepare(config))),
        ("time", "about a minute of a CPU, most of it to compile"),
    ]


def chains_line(config: LoopsConfig, prepared: Prepared) -> str:
    """Return a line that says how many chains there are and what they are of."""
    return (
        f"{prepared.chains:,} chains of histograms of {config.toy.size} numbers: with and without "
        f"bias and overlap, {len(config.chain.ratios)} ratios, {len(config.chain.seeds)} seeds, "
        f"{config.chain.generations} generations"
    )


def disk_bytes(config: LoopsConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that a run leaves on the disk."""
    return prepared.chains * config.chain.generations * len(METRICS) * _ROW_BYTES


def execute(context: common.RunContext[LoopsConfig, Prepared]) -> common.Outcome:
    """Simulate all chains and write their tables."""
    config = context.config
    if context.is_first_process:
        metrics, chains = simulate(config)
        write_atomic(context.root / "metrics.csv", tables.to_csv(metrics), durable=False)
        write_atomic(context.root / "chains.csv", tables.to_csv(chains), durable=False)

    def write_report(page: common.PageInputs) -> Path:
        # matplotlib takes seconds to load, which a check or a plan does not need.
        from jaxloop.studies.recursive_loops.analysis import findings

        return findings.write_report(
            context.root,
            config.experiment,
            title=config.title,
            run_info=page.run_info,
            config=page.config,
            versions=page.versions,
        )

    return common.Outcome(
        write_report=write_report,
        run_info=[("chains", chains_line(config, context.prepared))],
        resumed=context.resumed,
    )


def simulate(config: LoopsConfig) -> tuple[dict[str, list], dict[str, list]]:
    """Return the columns of metrics.csv and of chains.csv."""
    chain, toy = config.chain, config.toy
    rows: list[Mapping[str, Any]] = []
    chains: list[Mapping[str, Any]] = []
    for accumulate in toy.accumulate:
        values = histogram.simulate_columns(
            [
                histogram.Column(toy.bias if biased else 1.0, toy.smoothing, overlap)
                for biased, overlap in COLUMNS
            ],
            size=toy.size,
            ratios=chain.ratios,
            accumulate=accumulate,
            generations=chain.generations - 1,
            replicates=len(chain.seeds),
            seed=chain.seeds[0],
        )
        for (i, column), (j, ratio), (k, seed) in itertools.product(
            enumerate(COLUMNS), enumerate(chain.ratios), enumerate(chain.seeds)
        ):
            factors = _factors(accumulate, column, ratio, seed)
            chains.append(factors | {"status": "ok"})
            of_chain = {name: values[name][i, j, k] for name in METRICS}
            rows += _rows(factors, of_chain)
    return _columns(rows), _columns(chains)


def _factors(
    accumulate: bool, column: tuple[bool, bool], ratio: float, seed: int
) -> dict[str, Any]:
    biased, overlap = column
    name = f"a{accumulate:d}-b{biased:d}-o{overlap:d}-r{ratio:g}-s{seed}"
    return {
        "chain": name,
        "dataset": "",
        "ratio": ratio,
        "seed": seed,
        "bias": biased,
        "overlap": overlap,
        "accumulate": accumulate,
    }


def _rows(factors: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """A row for every metric and generation of a chain; values: {metric: [generations]}."""
    return [
        {
            "study": "loops",
            **factors,
            "entity": 0,
            "generation": generation,
            "metric": name,
            "value": float(value),
        }
        for name, of_metric in values.items()
        for generation, value in enumerate(of_metric)
    ]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}
