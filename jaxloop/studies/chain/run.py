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

from jaxloop.metrics import registry
from jaxloop.recursion import backfill, driver, saved_run
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet
from jaxloop.runtime.problems import noted, raise_all
from jaxloop.studies.chain import cost, measure
from jaxloop.studies.chain.config import CONFIG, ChainConfig
from jaxloop.studies.chain.prepare import MIXED, Prepared, chains_line, prepare, texts_needed
from jaxloop.studies.common import disk, missing, start_adapter
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common import run as common
from jaxloop.studies.common.config import UNSTORED

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[ChainConfig, Prepared]


def check(config: ChainConfig, workdir: Path | None = None) -> list[str]:
    """Check the data, the models and the chains, and return lines that describe them."""
    config = start_adapter.with_its_settings(config)
    problems: list[ValueError] = []
    with noted(problems):
        prepared = prepare(config)
    with noted(problems):
        missing.check_judges(config.metrics, config.judge)
    raise_all(problems)
    workflow = config.chain.workflow
    ignored = f"chain.ratios: of no effect under workflow '{workflow}'"
    return [
        *(f"data {name}: {line}" for name, line in prepared.data_lines),
        *(base_models.model_line(name, base.config) for name, base in prepared.bases.items()),
        f"{chains_line(config, prepared.chains)}; the longest needs "
        f"{texts_needed(prepared):,} human texts",
        *([] if workflow in MIXED else [ignored]),
        disk.room_line(cost.disk_bytes(config, prepared), workdir),
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

    Returns 0, `FAILED_CHAINS` where some chains stopped, or `MISSING_SCORES`.
    """
    config = start_adapter.with_its_settings(config)
    missing.check_only(config.only, workdir)
    if config.only is not None:
        config = _with_reference(config, workdir)
    elif not any(map(_is_of_reference, config.metrics)):
        # A call that measured may have named one, which changes nothing here.
        config = config.replace(reference=_stored_reference(workdir, config.reference))
    free = ("run", "title", "judge")
    if config.only is None:
        steps = common.Steps(
            prepare,
            cost.disk_bytes,
            _train,
            free_fields=free,
            changeable_fields=missing.free_metrics("metrics", config.metrics, workdir),
            unstored_fields=UNSTORED,
            judged=lambda config: config.metrics,
        )
    else:
        steps = common.Steps(
            prepare,
            lambda config, prepared: 0,
            _backfill,
            free_fields=free,
            # Texts on the disk may be measured with other metrics than the run's own.
            changeable_fields=("metrics", "reference"),
            unstored_fields=UNSTORED,
            identify_metrics=False,
        )
    return common.run_study(steps, config, workdir, argv=argv)


def _with_reference(config: ChainConfig, workdir: Path) -> ChainConfig:
    """Return the config of a call that measures, so that one reference is that of all values.

    config.json holds the reference of the values that the run has: a call that needs none keeps
    what is stored, and one that needs another is refused.
    """
    stored = saved_run.read_config(workdir).get("reference")
    if not any(map(_is_of_reference, config.metrics)):
        return config.replace(reference=stored)
    first = config.models.pool[0]
    if (stored or first) != (config.reference or first):
        for name in backfill.measured(workdir):
            if _is_of_reference(name):
                raise ValueError(
                    f"config.reference = {config.reference or first!r}: the values of {name} in "
                    f"{workdir} are of {stored or first!r}; leave the reference as it was"
                )
    return config


def _stored_reference(workdir: Path, otherwise: str | None) -> str | None:
    try:
        return saved_run.read_config(workdir).get("reference")
    except ValueError:  # there is no run yet, or `open_workdir` says what is wrong with it
        return otherwise


def _is_of_reference(name: str) -> bool:
    """Whether a metric scores texts with the reference; one that the registry lacks does not."""
    try:
        return "reference_losses" in registry.needs([name])
    except ValueError:
        return False


def _train(context: Context) -> common.Outcome:
    """Train the chains from the generation that they have reached to the last one."""
    config, prepared = context.config, context.prepared
    if not context.is_first_process:
        meet("the maps are made", context.root)
    measured = measure.measuring(config, prepared, context.root)
    if context.is_first_process:
        meet("the maps are made", context.root)

    scores = _scores(context, measured)
    if context.is_first_process and not context.resumed:
        for name, line in prepared.data_lines:
            LOGGER.info("data %s: %s", name, line)
        LOGGER.info("%s", chains_line(config, prepared.chains))

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
            measure=missing.during_run(scores, config.judge),
            names=scores.names,
            command=context.command,
            watch=context.watch,
        )
    lacks = missing.NOTHING
    if context.is_first_process:
        lacks = missing.fill_judged(scores, context.root)
    return common.trained(
        result,
        missing=lacks,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, human_values, result.failed),
    )


def _backfill(context: Context) -> common.Outcome:
    """Compute the metrics that finished generations lack, from the texts and weights on disk."""
    config, prepared = context.config, context.prepared
    measured = measure.measuring(config, prepared, context.root)
    lacks = missing.fill_all(_scores(context, measured), context.root)
    human_values = functools.partial(measure.references, config, prepared, context.root)
    return common.measured_again(
        lacks,
        run_info=_run_info(context),
        write_report=functools.partial(_write_report, context, human_values, lacks.failed),
    )


def _names(config: ChainConfig) -> missing.NamesOf:
    return missing.same_names(registry.with_unparsable(config.metrics))


def _scores(context: Context, measured: measure.Measure) -> missing.Scores:
    config, prepared = context.config, context.prepared
    return missing.Scores(
        family=base_models.family(
            config.models, config.fit, config.run, start_adapter.load(config)
        ),
        chains=prepared.chains,
        data=prepared.data,
        settings=context.driver_settings(prepared.driver),
        measure=measured,
        names=_names(config),
        of_weights=measure.of_weights(config.metrics),
        command=context.command,
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
        formula=_has_a_formula(context.config),
    )


def _has_a_formula(config: ChainConfig) -> bool:
    """Whether `simulators.gaussian_mixed` is about these chains."""
    measured = any(name.partition("(")[0] == "cosine_diversity" for name in config.metrics)
    return config.chain.workflow == "fresh_human" and config.chain.start == "base" and measured
