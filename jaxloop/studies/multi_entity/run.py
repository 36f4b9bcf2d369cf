"""K language models (entities) that train on each other's text (arXiv 2505.21677).

They have private corpora and a public one, and any mixing matrix. The steps are: `prepare` reads
data and models, plans the chains and refuses what cannot be run; `recursion.driver.run` runs them
and writes metrics.csv and texts/; then the similarity of what entities write is measured; at the
end effects, the linear model's and the paper's beside them, figures and report.html are written.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.lm.model.config import count_parameters
from jaxloop.recursion import driver
from jaxloop.runtime.mirror import scan_generations
from jaxloop.runtime.problems import noted, raise_all
from jaxloop.studies.common import disk, missing
from jaxloop.studies.common import run as common
from jaxloop.studies.common.config import UNSTORED
from jaxloop.studies.multi_entity import cost, measure, report
from jaxloop.studies.multi_entity import prepare as inputs
from jaxloop.studies.multi_entity.config import CONFIG, EntitiesConfig
from jaxloop.studies.multi_entity.prepare import Prepared

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[EntitiesConfig, Prepared]


def check(config: EntitiesConfig, workdir: Path | None = None) -> list[str]:
    """Return lines about corpora, models and chains. Raises ValueError as a run would."""
    problems: list[ValueError] = []
    with noted(problems):
        prepared = inputs.prepare(config)
    with noted(problems):
        missing.check_judges(config.measure.metrics, config.judge)
    raise_all(problems)
    lines = [f"data {name}: {line}" for name, line in prepared.data_lines]
    lines += [
        f"model {name}: {model_config.architecture}, {count_parameters(model_config):,} parameters"
        for name, (model_config, _) in prepared.models.items()
    ]
    room = disk.room_line(inputs.disk(config, prepared), workdir)
    return [*lines, inputs.line(config, prepared), room]


def plan(config: EntitiesConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return what a run would cost.

    Timed by a short measurement where models and data are here, else in hours of named cards. With
    `target`: hours there, and what the compiler says of the programs.
    """
    if target is None:
        common.keep_compiled(config.run)
    return cost.table(config, target)


def run(config: EntitiesConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run the whole study, or the rest of it.

    Returns 0, `FAILED_CHAINS` where some chains stopped, or `MISSING_SCORES`.
    """
    missing.check_only(config.only, workdir)
    steps = common.Steps(
        inputs.prepare,
        inputs.disk,
        _train,
        free_fields=("run", "title", "theory", "plan", "together", "judge"),
        raisable_fields=("exchange.generations",),
        changeable_fields=missing.free_metrics("measure.metrics", config.measure.metrics, workdir),
        unstored_fields=UNSTORED,
        judged=lambda config: config.measure.metrics,
    )
    if config.only is not None:
        steps = dataclasses.replace(
            steps,
            disk_bytes=lambda config, prepared: 0,
            execute=_measure_again,
            changeable_fields=("measure.metrics",),
            identify_metrics=False,
        )
    return common.run_study(steps, config, workdir, argv=argv)


def _train(context: Context) -> common.Outcome:
    config, prepared = context.config, context.prepared
    scores = _scores(context)
    result = driver.run(
        inputs.family(config),
        prepared.chains,
        prepared.data,
        context.driver_settings(prepared.driver),
        context.root,
        measure=missing.during_run(scores, config.judge),
        names=scores.names,
        command=context.command,
        watch=context.watch,
    )
    lacks = missing.NOTHING
    if context.is_first_process:
        lacks = missing.fill_judged(scores, context.root)
        measure.write_similarity(config, prepared, context.root, result.generations)
    return common.trained(
        result,
        missing=lacks,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, result.failed),
    )


def _measure_again(context: Context) -> common.Outcome:
    """Compute the metrics that finished generations lack, from the texts and weights on disk."""
    lacks = missing.fill_all(_scores(context), context.root)
    count = len(scan_generations(context.root).manifests)
    measure.write_similarity(context.config, context.prepared, context.root, count)
    return common.measured_again(
        lacks,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, lacks.failed),
    )


def _scores(context: Context) -> missing.Scores:
    config, prepared = context.config, context.prepared
    return missing.Scores(
        family=inputs.family(config),
        chains=prepared.chains,
        data=prepared.data,
        settings=context.driver_settings(prepared.driver),
        measure=measure.measure(config, prepared),
        names=functools.partial(measure.names_of, config, prepared),
        of_weights=measure.of_weights(prepared),
        command=context.command,
    )


def _run_info(context: Context) -> common.RunInfo:
    config, prepared = context.config, context.prepared
    return [
        ("chains", inputs.line(config, prepared)),
        *((f"data: {name}", line) for name, line in prepared.data_lines),
        ("models", ", ".join(config.models.pool)),
    ]


def _write_report(
    context: Context, failed: Mapping[str, Mapping[str, Any]], page: common.PageInputs
) -> Path:
    return report.write(context.config, context.prepared, context.root, page=page, failed=failed)
