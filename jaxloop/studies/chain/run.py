"""Chains of language models, each trained on its predecessors' text (arXiv 2504.03814).

The steps are: `prepare` reads data and models, plans the chains and refuses what cannot be run;
`recursion.driver.run` trains, generates and measures, and writes metrics.csv and texts/; at the end
figures and report.html are written.
"""

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.recursion import driver
from jaxloop.recursion.backfill import backfill
from jaxloop.runtime.devices import processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet
from jaxloop.runtime.workdir import is_workdir
from jaxloop.studies import FAILED_CHAINS
from jaxloop.studies.chain import cost, measure
from jaxloop.studies.chain.config import CONFIG, ChainConfig
from jaxloop.studies.chain.prepare import Prepared, chains_line, prepare, texts_needed
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as common
from jaxloop.studies.common import start_adapter

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[ChainConfig, Prepared]
# Fields of the config that belong to one call and are not stored with the run.
UNSTORED = frozenset({"only"})


def check(config: ChainConfig) -> list[str]:
    """Check the data, the models and the chains, and return lines that describe them."""
    config = start_adapter.with_its_settings(config)
    prepared = prepare(config)
    return [
        *(f"data {name}: {line}" for name, line in prepared.data_lines),
        *(base_models.model_line(name, base.config) for name, base in prepared.bases.items()),
        f"{chains_line(config, prepared.chains)}; the longest needs "
        f"{texts_needed(prepared):,} human texts",
    ]


def plan(config: ChainConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return (what, amount) rows: what a run would do and how long it would take.

    The time is measured on this machine for a moment, or is an estimate of the compiler for the
    absent hardware `target`.
    """
    common.keep_compiled(config.run)
    config = start_adapter.with_its_settings(config)
    return cost.table(config, prepare(config, here=target is None), target)


def run(config: ChainConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run the whole study, or the rest of it; with `config.only` compute missing metrics alone.

    Returns 0, or `FAILED_CHAINS` where some chains stopped.
    """
    config = start_adapter.with_its_settings(config)
    if config.only is None:
        steps = common.Steps(prepare, cost.disk_bytes, _train, unstored_fields=UNSTORED)
    else:
        _check_backfill(config, workdir)
        steps = common.Steps(
            prepare,
            lambda config, prepared: 0,
            _backfill,
            # Texts on the disk may be measured with other metrics; a run that is resumed keeps its
            # own.
            changeable_fields=("metrics", "reference"),
            unstored_fields=UNSTORED,
            identify_metrics=False,
        )
    return common.run_study(steps, config, workdir, argv=argv)


def _check_backfill(config: ChainConfig, workdir: Path) -> None:
    count = processes()[1]
    if count > 1:
        raise ValueError(
            f"config.only = '{config.only}' is the work of one process, and these are {count}: "
            "start it without the others"
        )
    if not is_workdir(workdir):
        raise ValueError(
            f"config.only = '{config.only}': {workdir} holds no run whose metrics could be "
            "filled in"
        )


def _train(context: Context) -> common.Outcome:
    """Train the chains from the generation that they have reached to the last one."""
    config, prepared = context.config, context.prepared
    if not context.is_first_process:
        meet("the maps are made", context.root)
    measured = measure.measuring(config, prepared, context.root)
    if context.is_first_process:
        meet("the maps are made", context.root)

    def references() -> dict[str, float]:
        # Importing matplotlib and pandas takes as long as drawing the report. Done here, while
        # models train, it costs no time.
        importlib.import_module("jaxloop.studies.chain.report")
        return measure.references(config, prepared, context.root)

    in_background = prepared.driver.overlap_eval and context.is_first_process
    with common.started(references, in_background) as human_values:
        result = driver.run(
            base_models.family(config.models, config.fit, config.run, start_adapter.load(config)),
            prepared.chains,
            prepared.data,
            context.driver_settings(prepared.driver),
            context.root,
            measure=measured,
            command=context.command,
            watch=context.watch,
        )
    return common.trained(
        result,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, human_values, result.failed),
    )


def _backfill(context: Context) -> common.Outcome:
    """Compute the metrics that finished generations lack, from the texts and weights on disk."""
    config, prepared = context.config, context.prepared
    done = backfill(
        base_models.family(config.models, config.fit, config.run, start_adapter.load(config)),
        prepared.chains,
        prepared.data,
        context.driver_settings(prepared.driver),
        context.root,
        measure=measure.measuring(config, prepared, context.root),
        names=config.metrics,
        of_weights=measure.of_weights(config.metrics),
        command=context.command,
    )
    LOGGER.info(
        "filled in %d values of %d finished generations; %d are missing",
        done.computed,
        done.generations,
        done.missing,
    )
    if done.unavailable:
        LOGGER.warning(
            "%s: the weights of older generations are not kept (config.run.keep), so these stay "
            "missing there",
            ", ".join(done.unavailable),
        )
    human_values = functools.partial(measure.references, config, prepared, context.root)
    return common.Outcome(
        write_report=functools.partial(_write_report, context, human_values, done.failed),
        run_info=_run_info(context),
        exit_code=FAILED_CHAINS if done.failed else 0,
    )


def _run_info(context: Context) -> common.RunInfo:
    config, prepared = context.config, context.prepared
    return [
        ("chains", chains_line(config, prepared.chains)),
        *(
            (f"data: {name}", f"{line}, fingerprint {prepared.data[name].fingerprint[:12]}")
            for name, line in prepared.data_lines
        ),
        ("models", ", ".join(config.models.pool)),
        *(
            (f"end of text: {name}", base.tokenizer.describe_ends())
            for name, base in prepared.bases.items()
        ),
    ]


def _write_report(
    context: Context,
    human_values: Callable[[], dict[str, float]],
    failed: Mapping[str, Mapping[str, Any]],
    page: common.PageInputs,
) -> Path:
    # matplotlib and pandas take seconds to load, which a check or a plan does not need.
    from jaxloop.studies.chain import report

    return report.write(
        context.root,
        title=context.config.title,
        subtitle=chains_line(context.config, context.prepared.chains),
        page=page,
        failed=failed,
        references=human_values(),
    )
