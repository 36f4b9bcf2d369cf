"""K language models (entities) that train on each other's text (arXiv 2505.21677).

They have private corpora and a public one, and any mixing matrix. The steps are: `prepare` reads
data and models, plans the chains and refuses what cannot be run; `recursion.driver.run` runs them
and writes metrics.csv and texts/; then the similarity of what entities write is measured; at the
end effects, the linear model's and the paper's beside them, figures and report.html are written.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from jaxloop.lm.model.config import count_parameters
from jaxloop.recursion import driver
from jaxloop.studies.common import run as common
from jaxloop.studies.multi_entity import cost, measure, report
from jaxloop.studies.multi_entity import prepare as inputs
from jaxloop.studies.multi_entity.config import CONFIG, EntitiesConfig
from jaxloop.studies.multi_entity.prepare import Prepared

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[EntitiesConfig, Prepared]


def check(config: EntitiesConfig) -> list[str]:
    """Return lines about corpora, models and chains. Raises ValueError as a run would."""
    prepared = inputs.prepare(config)
    lines = [f"data {name}: {line}" for name, line in prepared.data_lines]
    lines += [
        f"model {name}: {model_config.architecture}, {count_parameters(model_config):,} parameters"
        for name, (model_config, _) in prepared.models.items()
    ]
    return [*lines, inputs.line(config, prepared)]


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

    Returns 0, or `FAILED_CHAINS` where some chains stopped.
    """
    steps = common.Steps(
        inputs.prepare,
        inputs.disk,
        _train,
        free_fields=("run", "title", "theory", "plan", "together"),
        raisable_fields=("exchange.generations",),
    )
    return common.run_study(steps, config, workdir, argv=argv)


def _train(context: Context) -> common.Outcome:
    config, prepared = context.config, context.prepared
    result = driver.run(
        inputs.family(config),
        prepared.chains,
        prepared.data,
        context.driver_settings(prepared.driver),
        context.root,
        measure=measure.measure(config, prepared),
        command=context.command,
        watch=context.watch,
    )
    if context.is_first_process:
        measure.write_similarity(config, prepared, context.root, result)
    return common.trained(
        result,
        run_info=[
            ("chains", inputs.line(config, prepared)),
            *((f"data: {name}", line) for name, line in prepared.data_lines),
            ("models", ", ".join(config.models.pool)),
        ],
        write_report=functools.partial(_write_report, context, result),
    )


def _write_report(context: Context, result: driver.RunResult, page: common.PageInputs) -> Path:
    return report.write(
        context.config, context.prepared, context.root, page=page, failed=result.failed
    )
