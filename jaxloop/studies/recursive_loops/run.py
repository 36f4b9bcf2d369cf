"""The experiments of "Recursive Training Loops in LLMs" (arXiv 2504.03814), one config for each.

The steps are: `sources` cleans the data, `subsets` cuts them (splits, clusters, mixtures), `chains`
plans the chains, `recursion.driver.run` runs them and writes metrics.csv; chains.csv is written
too, and for clusters properties.csv and members.parquet. Then `analysis` writes tables, figures and
the report.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry
from jaxloop.metrics.base import Unavailable
from jaxloop.recursion import driver
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet, scan_generations
from jaxloop.runtime.problems import noted, raise_all
from jaxloop.studies.common import disk, missing, start_adapter
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as common
from jaxloop.studies.common.config import UNSTORED
from jaxloop.studies.recursive_loops import (
    chains,
    cost,
    input_tables,
    judge_study,
    measure,
    political_leaning,
    sources,
    subsets,
    toy,
)
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import CONFIG, LoopsConfig
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer
from jaxloop.studies.recursive_loops.prepare import (
    Prepared,
    check_early,
    generated_judges,
    prepare,
)
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


def check(config: LoopsConfig, workdir: Path | None = None) -> list[str]:
    """Check the data, the models, the judges and the chains, and return lines that describe them.

    Texts that take long to clean are not cleaned; clusters and splits are not made here.
    """
    if config.experiment in UNTRAINED:
        return UNTRAINED[config.experiment].lines(config)
    config = start_adapter.with_its_settings(config)
    problems: list[ValueError] = []
    with noted(problems):
        early = check_early(config)
        if all(sources.is_quick(config, name) for name in config.domains):
            prepared = prepare(config)
            lines = {name: source_line(one) for name, one in prepared.sources.items()}
            early = early._replace(planned=prepared.planned, data_lines=lines)
    with noted(problems):
        missing.check_judges(generated_judges(config), config.judge)
    raise_all(problems)
    needed = max(one.needed for one in early.planned)
    return [
        *(f"data {name}: {line}" for name, line in early.data_lines.items()),
        f"{chains.chains_line(config, early.planned)}; the longest needs {needed:,} human texts",
        disk.room_line(cost.disk_bytes(config, early), workdir),
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

    Returns 0, `FAILED_CHAINS` where some chains stopped or were left out, or `MISSING_SCORES`.
    """
    free_fields = ("run", "title", "plan", "judge")
    if config.experiment in UNTRAINED:
        other = UNTRAINED[config.experiment]
        untrained: common.Steps[LoopsConfig, Any] = common.Steps(
            other.prepare,
            other.disk_bytes,
            other.execute,
            free_fields=free_fields,
            unstored_fields=UNSTORED,
            identify_models=False,
        )
        return common.run_study(untrained, config, workdir, argv=argv)
    config = start_adapter.with_its_settings(config)
    missing.check_only(config.only, workdir)
    steps = common.Steps(
        prepare,
        cost.disk_bytes,
        _execute,
        judged=generated_judges,
        free_fields=free_fields,
        changeable_fields=missing.free_metrics("metrics", config.metrics, workdir),
        unstored_fields=UNSTORED,
    )
    if config.only is not None:
        steps = dataclasses.replace(
            steps,
            disk_bytes=lambda config, prepared: 0,
            execute=_measure_again,
            changeable_fields=("metrics",),
            identify_metrics=False,
        )
    return common.run_study(steps, config, workdir, argv=argv)


class _Planned(NamedTuple):
    """The chains of a run, what they read, and how they are measured.

    leaning: scores the political leaning of texts; None: not measured.
    """

    chains: Sequence[Planned]
    scores: missing.Scores
    leaning: TextScorer | None


def _set_up(context: Context) -> _Planned:
    """Make the subsets and plan the chains."""
    config, prepared = context.config, context.prepared
    for name, source in prepared.sources.items():
        LOGGER.info("data %s: %s", name, source_line(source))
    planned = _plan_chains(context)
    for one in planned:
        if one.reason:
            LOGGER.warning("chain %s is left out: %s", one.id, one.reason)
    leaning = None
    if config.subset_kind == "political":
        (source,) = prepared.sources.values()
        leaning = political_leaning.scorer(config, source, context.root)
    scores = missing.Scores(
        family=base_models.family(
            config.models, config.fit, config.run, start_adapter.load(config)
        ),
        chains=chains.specs(planned),
        data=chains.datasets(planned, prepared.sources),
        settings=context.driver_settings(prepared.driver),
        measure=measure.measure(config, leaning),
        names=functools.partial(measure.names_of, config),
        command=context.command,
        judges=measure.judges(config),
    )
    return _Planned(planned, scores, leaning)


def _execute(context: Context) -> common.Outcome:
    """Run the chains from the generation that they have reached to the last; write the tables."""
    config = context.config
    run = _set_up(context)
    scores = run.scores
    result = driver.run(
        scores.family,
        scores.chains,
        scores.data,
        scores.settings,
        context.root,
        measure=missing.during_run(scores, config.judge),
        names=scores.names,
        features=features(config) if config.interventions.policies else None,
        command=context.command,
        watch=context.watch,
    )
    lacks = missing.NOTHING
    if context.is_first_process:
        filled = missing.fill_judged(scores, context.root)
        lacks = _after_chains(context, run, result.generations, filled)
    return common.trained(
        result,
        missing=lacks,
        run_info=_run_info(context, run.chains),
        write_report=functools.partial(_write_report, context, run.chains, result.failed),
        all_chains=len(scores.chains) == len(run.chains),
    )


def _measure_again(context: Context) -> common.Outcome:
    """Compute the metrics that finished generations lack, from the texts on disk."""
    run = _set_up(context)
    filled = missing.fill_all(run.scores, context.root)
    count = len(scan_generations(context.root).manifests)
    lacks = _after_chains(context, run, count, filled)
    return common.measured_again(
        lacks,
        run_info=_run_info(context, run.chains),
        write_report=functools.partial(_write_report, context, run.chains, filled.failed),
    )


def _after_chains(
    context: Context, run: _Planned, count: int, filled: missing.Missing
) -> missing.Missing:
    """Measure what is measured after the chains, in the first `count` generations.

    filled: what is missing of the other metrics. Returns what is missing of all.
    """
    config, scores = context.config, run.scores
    counts = Counter(filled.counts)
    counts += measure.measure_shared(config, scores.chains, context.root, count, run.leaning)
    driver.write_tables(context.root, count)
    judges = dict(scores.judges)
    if run.leaning is not None:
        try:
            measure.write_text_scores(
                config, scores.chains, scores.data, context.root, count, run.leaning
            )
        except Unavailable:
            counts["text_scores.parquet"] += 1
            judges["text_scores.parquet"] = str(config.political_leaning.judge)
    used = {one.subset.name: one.subset for one in run.chains}
    lacking = input_tables.fill_quality(
        config, list(used.values()), context.prepared.sources, context.root
    )
    if lacking:
        counts["quality in properties.csv"] += lacking
        judges["quality in properties.csv"] = config.quality
    return missing.of(counts, context.command, judges)._replace(failed=filled.failed)


def _plan_chains(context: Context) -> list[Planned]:
    """Make the subsets, plan the chains and write the tables that exist before a run.

    The first process makes the subsets; the others wait and read what it has cached.
    """
    config, data = context.config, context.prepared.sources
    if not context.is_first_process:
        meet("subsets are made", context.root)
    all_subsets = subsets.build(config, data, context.root)
    planned = chains.leave_out_short(config, chains.plan(config, all_subsets))
    if context.is_first_process:
        input_tables.write(config, data, all_subsets, planned, context.root)
        meet("subsets are made", context.root)
    return planned


def _run_info(context: Context, planned: Sequence[Planned]) -> common.RunInfo:
    config, data = context.config, context.prepared.sources
    return [
        ("chains", chains.chains_line(config, planned)),
        *((f"data: {name}", source_line(source)) for name, source in data.items()),
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

    def ask_quality(texts: Sequence[str]) -> np.ndarray:
        return registry.evaluate_texts([config.quality], texts=[texts])[config.quality][0]

    def features_of(name: str, texts: Sequence[str]) -> np.ndarray:
        if name == "quality":
            ask = sources.insisting(ask_quality, "choosing texts by quality")
            return ask(list(texts))
        return embedding.embed(list(texts), model=config.embedder)

    return features_of
