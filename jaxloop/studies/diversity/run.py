"""How the diversity of generated data affects fine-tuning (arXiv 2506.19262).

Seven levels of diversity, mixtures, sizes, models, and distances to real data are compared. The
steps are: `prepare` reads data and models, plans the cells (models to train) and refuses what
cannot be run; the sets are generated; `recursion.driver.run` trains one generation, with a chain
for each cell; then sets.csv, distances.csv, regressions.csv, metrics.csv and report.html are
written.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop.lm.model.config import count_parameters
from jaxloop.recursion import driver
from jaxloop.runtime.cluster import stop_together
from jaxloop.runtime.mirror import meet, notice_at
from jaxloop.runtime.signals import Stop
from jaxloop.studies.common import disk, missing, target_plan
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as common
from jaxloop.studies.common.config import UNSTORED
from jaxloop.studies.diversity import cost, generate, measure, report
from jaxloop.studies.diversity import prepare as inputs
from jaxloop.studies.diversity.cells import all_cells, experiments
from jaxloop.studies.diversity.config import CONFIG, DiversityConfig
from jaxloop.studies.diversity.prepare import Prepared

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[DiversityConfig, Prepared]
Tables = Mapping[str, pd.DataFrame]


def check(config: DiversityConfig, workdir: Path | None = None) -> list[str]:
    """Return lines about the data, the models and the cells. Raises ValueError as a run would."""
    prepared = inputs.prepare(config)
    lines = [f"data {task}: {tables.summary}" for task, tables in prepared.tables.items()]
    lines += [
        f"model {name}: {model_config.architecture}, {count_parameters(model_config):,} parameters"
        for name, (model_config, _) in prepared.models.items()
    ]
    return [*lines, _cells_line(config), disk.room_line(_disk_bytes(config, prepared), workdir)]


def plan(config: DiversityConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return what a run would cost, counted from the config.

    Models and data that are not here are assumed, and named. With `target`: hours there, and what
    the compiler says of the programs.
    """
    models = ("models to train", _cells_line(config))
    counted = [models, *cost.table(config, target)]
    if target is None:
        return counted
    programs = target_plan.Programs(
        models=config.models, fit=config.fit, sample=None, run=config.run
    )
    return [*counted, *target_plan.rows(programs, target)]


def run(config: DiversityConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run the whole study, or the rest of it.

    With `config.only` losses that are missing are computed where the weights are kept, and all
    tables anew. Returns 0, or `FAILED_CHAINS` where some models did not train.
    """
    missing.check_only(config.only, workdir)
    steps = common.Steps(
        inputs.prepare,
        _disk_bytes,
        _generate_and_train,
        raisable_fields=(),
        unstored_fields=UNSTORED,
    )
    if config.only is not None:
        steps = dataclasses.replace(
            steps, disk_bytes=lambda config, prepared: 0, execute=_measure_again
        )
    return common.run_study(steps, config, workdir, argv=argv)


def _generate_and_train(context: Context) -> common.Outcome:
    config, prepared = context.config, context.prepared
    with stop_together(notice_at(context.root, config.run.notice_seconds)) as stop:
        pools = _pools(context, stop)
        sets = generate.training_sets(config, prepared, pools)
        result = driver.run(
            inputs.family(config),
            inputs.chains(config, prepared.cells),
            inputs.datasets(config, prepared.cells, sets, pools),
            context.driver_settings(prepared.driver),
            context.root,
            measure=measure.measure(config, prepared),
            stop=stop,
            command=context.command,
            watch=context.watch,
        )
    return common.trained(
        result,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, pools, sets, result.failed),
    )


def _measure_again(context: Context) -> common.Outcome:
    """Compute the losses that are missing where the weights are kept, and write all tables anew."""
    config, prepared = context.config, context.prepared
    with stop_together(notice_at(context.root, config.run.notice_seconds)) as stop:
        pools = _pools(context, stop)
    sets = generate.training_sets(config, prepared, pools)
    measured = measure.measure(config, prepared)
    scores = missing.Scores(
        family=inputs.family(config),
        chains=inputs.chains(config, prepared.cells),
        data=inputs.datasets(config, prepared.cells, sets, pools),
        settings=context.driver_settings(prepared.driver),
        measure=lambda model, generation, outputs, names: measured(model, generation, outputs),
        names=missing.same_names(measure.LOSSES),
        of_weights=measure.LOSSES,
        command=context.command,
    )
    lacks = missing.fill_all(scores, context.root)
    return common.measured_again(
        lacks,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, pools, sets, lacks.failed),
    )


def _run_info(context: Context) -> common.RunInfo:
    config = context.config
    writers = (f"{task}: {getattr(config.generator, task)}" for task in config.tasks)
    return [
        ("models trained", _cells_line(config)),
        *((f"data: {task}", tables.summary) for task, tables in context.prepared.tables.items()),
        ("bases", ", ".join(config.models.pool)),
        ("writers", ", ".join(writers)),
    ]


def _pools(context: Context, stop: Stop) -> dict[str, pd.DataFrame]:
    """The generated sets, which the first process writes and the others read."""
    if not context.is_first_process:
        meet("generated sets", context.root)
    pools = generate.pools(context.config, context.prepared, context.root, stop)
    if context.is_first_process:
        generate.save(context.root, pools)
        meet("generated sets", context.root)
    return pools


def _write_report(
    context: Context,
    pools: Tables,
    sets: Tables,
    failed: Mapping[str, Mapping[str, Any]],
    page: common.PageInputs,
) -> Path:
    return report.write(
        context.root,
        context.config,
        context.prepared,
        pools,
        sets,
        failed=failed,
        page=page,
    )


def _disk_bytes(config: DiversityConfig, prepared: Prepared) -> int:
    chains = inputs.chains(config, prepared.cells)
    return driver.disk_needed(chains, prepared.driver, _weights_bytes(config, prepared))


def _cells_line(config: DiversityConfig) -> str:
    """How many models each experiment trains."""
    counts = {name: len(cells) for name, cells in experiments(config).items()}
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    total = len(all_cells(config))
    return f"{total:,} models to train ({parts}; shared ones counted once)"


def _weights_bytes(config: DiversityConfig, prepared: Prepared) -> int:
    """Bytes of one trained model on disk, of the largest base."""
    sizes = [
        base_models.sizes(config.fit, model_config) for model_config, _ in prepared.models.values()
    ]
    return 4 * max(s.adapter if config.fit.mode == "lora" else s.total for s in sizes)
