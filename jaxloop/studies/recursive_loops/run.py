"""The experiments of "Recursive Training Loops in LLMs" (arXiv 2504.03814), one config for each.

The steps are: `sources` cleans the data, `subsets` cuts them (splits, clusters, mixtures), `chains`
plans the chains, `recursion.driver.run` runs them and writes metrics.csv; chains.csv is written
too, and for clusters properties.csv and members.parquet. Then `analysis` writes tables, figures and
the report.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry
from jaxloop.recursion import driver
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as common
from jaxloop.studies.common import start_adapter
from jaxloop.studies.recursive_loops import (
    chains,
    cost,
    input_tables,
    judge_study,
    measure,
    political_leaning,
    subsets,
    toy,
)
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import CONFIG, LoopsConfig
from jaxloop.studies.recursive_loops.prepare import Prepared, prepare
from jaxloop.studies.recursive_loops.sources import source_line

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[LoopsConfig, Prepared]


class Untrained(Protocol):
    """What the module of an experiment without language models offers."""

    def prepare(self, config: LoopsConfig) -> Any:
        """Read what it needs; raises ValueError for what cannot be run."""

    def lines(self, config: LoopsConfig) -> list[str]:
        """Return the lines of `--validate`."""

    def plan_rows(self, config: LoopsConfig) -> list[tuple[str, str]]:
        """Return the rows of `--plan`."""

    def disk_bytes(self, config: LoopsConfig, prepared: Any) -> int:
        """Return an upper bound on the bytes that a run leaves."""

    def execute(self, context: Any) -> common.Outcome:
        """Do the work."""


UNTRAINED: dict[str, Untrained] = {"toy": toy, "judge_validation": judge_study}


def check(config: LoopsConfig) -> list[str]:
    """Check the data and the chains, and return lines that describe them.

    Clusters and splits are not made here.
    """
    if config.experiment in UNTRAINED:
        return UNTRAINED[config.experiment].lines(config)
    config = start_adapter.with_its_settings(config)
    prepared = prepare(config)
    needed = max(one.needed for one in prepared.planned)
    return [
        *(f"data {name}: {source_line(source)}" for name, source in prepared.sources.items()),
        f"{chains.chains_line(config, prepared.planned)}; the longest needs {needed:,} human texts",
    ]


def plan(config: LoopsConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return (what, amount) rows: what a run would do and how long it would take.

    The time is measured on this machine if the models are here, else it is in hours of
    `config.plan.device`. For the absent hardware `target` it is an estimate of the compiler.
    """
    if config.experiment in UNTRAINED:
        return UNTRAINED[config.experiment].plan_rows(config)
    return cost.table(start_adapter.with_its_settings(config), target)


def run(config: LoopsConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run the whole experiment, or the rest of one.

    Returns 0, or `FAILED_CHAINS` where some chains stopped or were left out.
    """
    free_fields = ("run", "title", "plan")
    if config.experiment in UNTRAINED:
        other = UNTRAINED[config.experiment]
        untrained: common.Steps[LoopsConfig, Any] = common.Steps(
            other.prepare,
            other.disk_bytes,
            other.execute,
            free_fields=free_fields,
            identify_models=False,
        )
        return common.run_study(untrained, config, workdir, argv=argv)
    steps = common.Steps(prepare, cost.disk_bytes, _execute, free_fields=free_fields)
    config = start_adapter.with_its_settings(config)
    return common.run_study(steps, config, workdir, argv=argv)


def _execute(context: Context) -> common.Outcome:
    """Run the chains from the generation that they have reached to the last; write the tables."""
    config, prepared = context.config, context.prepared
    for name, source in prepared.sources.items():
        LOGGER.info("data %s: %s", name, source_line(source))
    planned = _plan_chains(context)
    for one in planned:
        if one.reason:
            LOGGER.warning("chain %s is left out: %s", one.id, one.reason)
    specs = chains.specs(planned)
    data = chains.datasets(planned, prepared.sources)
    leaning = None
    if config.subset_kind == "political":
        (source,) = prepared.sources.values()
        leaning = political_leaning.scorer(config, source, context.root)
    result = driver.run(
        base_models.family(config.models, config.fit, config.run, start_adapter.load(config)),
        specs,
        data,
        context.driver_settings(prepared.driver),
        context.root,
        measure=measure.measure(config, leaning),
        features=features(config) if config.interventions.policies else None,
        command=context.command,
        watch=context.watch,
    )
    if context.is_first_process:
        count = result.generations
        measure.measure_shared(config, specs, context.root, count, leaning)
        driver.write_tables(context.root, count)
        if leaning is not None:
            measure.write_text_scores(config, specs, data, context.root, count, leaning)
    return common.trained(
        result,
        run_info=_run_info(context, planned),
        write_report=functools.partial(_write_report, context, planned, result.failed),
        all_chains=len(specs) == len(planned),
    )


def _plan_chains(context: Context) -> list[Planned]:
    """Make the subsets, plan the chains and write the tables that exist before a run.

    The first process makes the subsets; the others wait and read what it has cached.
    """
    config, sources = context.config, context.prepared.sources
    if not context.is_first_process:
        meet("subsets are made", context.root)
    all_subsets = subsets.build(config, sources, context.root)
    planned = chains.leave_out_short(config, chains.plan(config, all_subsets))
    if context.is_first_process:
        input_tables.write(config, sources, all_subsets, planned, context.root)
        meet("subsets are made", context.root)
    return planned


def _run_info(context: Context, planned: Sequence[Planned]) -> common.RunInfo:
    config, sources = context.config, context.prepared.sources
    return [
        ("chains", chains.chains_line(config, planned)),
        *((f"data: {name}", source_line(source)) for name, source in sources.items()),
        ("models", ", ".join(config.models.pool)),
    ]


def _write_report(
    context: Context,
    planned: Sequence[Planned],
    failed: Mapping[str, Mapping[str, Any]],
    page: common.PageInputs,
) -> Path:
    # matplotlib and statsmodels take seconds to load, which a check or a plan does not need.
    from jaxloop.studies.recursive_loops import report

    return report.write(context.config, planned, failed, context.root, page)


def features(config: LoopsConfig) -> Callable[[str, Sequence[str]], np.ndarray]:
    """Return the function that computes features of texts for selection policies.

    It takes a name and n texts: "quality" gives [n], by the config's metric; "embeddings" [n, d].
    """

    def features_of(name: str, texts: Sequence[str]) -> np.ndarray:
        if name == "quality":
            scores = registry.evaluate_texts([config.quality], texts=[list(texts)])
            return scores[config.quality][0]
        return embedding.embed(list(texts), model=config.embedder)

    return features_of
