"""Bias amplification in language models (arXiv 2410.15234).

Models continue labelled articles, and the next models are trained on the continuations.

The steps are: `prepare` reads articles and models, plans the chains and refuses what cannot be run;
the classifier and the bias direction are read or fitted; `recursion.driver.run` runs the chains and
writes articles/, neurons/, metrics.csv and texts/; at the end report.html is written.
"""

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.metrics import registry
from jaxloop.recursion import driver
from jaxloop.runtime.problems import noted, raise_all
from jaxloop.studies.bias_amplification import cost, measure
from jaxloop.studies.bias_amplification import prepare as preparation
from jaxloop.studies.bias_amplification.auxiliary import (
    AuxiliaryModels,
    load_base,
    make_auxiliary_models,
)
from jaxloop.studies.bias_amplification.chains import chains_line, distinct_models
from jaxloop.studies.bias_amplification.config import CONFIG, BiasConfig
from jaxloop.studies.bias_amplification.family import ArticleFamily
from jaxloop.studies.bias_amplification.prepare import Prepared, prepare
from jaxloop.studies.common import disk, missing
from jaxloop.studies.common import run as common
from jaxloop.studies.common.config import UNSTORED

__all__ = ["CONFIG", "check", "plan", "run"]

Context = common.RunContext[BiasConfig, Prepared]


def check(config: BiasConfig, workdir: Path | None = None) -> list[str]:
    """Check articles, model, classifier and chains, and return lines that describe them."""
    problems: list[ValueError] = []
    with noted(problems):
        prepared = prepare(config)
    with noted(problems):
        missing.check_judges(config.measure.metrics, config.judge)
    raise_all(problems)
    room = disk.room_line(cost.disk_bytes(config, prepared), workdir)
    return [*preparation.lines(config, prepared), room]


def plan(config: BiasConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return (what, amount) rows: what a run would do and what it would cost; nothing is run.

    With a `target`, an estimate of the compiler for this absent hardware.
    """
    if target is not None:
        return cost.absent_table(config, target)
    return cost.table(config)


def run(config: BiasConfig, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run the whole study, or the rest of it.

    Returns 0, `FAILED_CHAINS` where some chains stopped, or `MISSING_SCORES`.
    """
    missing.check_only(config.only, workdir)
    steps = common.Steps(
        prepare,
        cost.disk_bytes,
        _train,
        free_fields=("run", "title", "judge"),
        raisable_fields=(),
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
    """Train the chains from the generation that they have reached to the last one."""
    config, prepared, root = context.config, context.prepared, context.root
    auxiliary = make_auxiliary_models(config, prepared, root)
    family = _family(context, auxiliary)
    base_means: dict[str, float] = {}
    if context.is_first_process:
        measure.measure_base(config, prepared, auxiliary, family, root)
    result = driver.run(
        family,
        prepared.chains,
        prepared.data,
        context.driver_settings(prepared.driver),
        root,
        measure=measure.make_measure(config, prepared, auxiliary, root),
        names=_scores(context, family).names,
        command=context.command,
        watch=context.watch,
    )
    lacks = missing.NOTHING
    if context.is_first_process:
        filled = missing.fill_judged(_scores(context, family), root)
        lacks, base_means = _with_base(context, auxiliary, family, filled)
    return common.trained(
        result,
        missing=lacks,
        run_info=_run_info(config, prepared),
        write_report=functools.partial(
            _write_report, context, auxiliary, base_means, result.failed
        ),
    )


def _measure_again(context: Context) -> common.Outcome:
    """Compute the further metrics that finished generations lack, from the texts on disk."""
    config, prepared, root = context.config, context.prepared, context.root
    auxiliary = make_auxiliary_models(config, prepared, root)
    family = _family(context, auxiliary)
    filled = missing.fill_all(_scores(context, family), root)
    lacks, base_means = _with_base(context, auxiliary, family, filled)
    return common.measured_again(
        lacks,
        run_info=_run_info(config, prepared),
        write_report=functools.partial(_write_report, context, auxiliary, base_means, lacks.failed),
    )


def _with_base(
    context: Context, auxiliary: AuxiliaryModels, family: ArticleFamily, filled: missing.Missing
) -> tuple[missing.Missing, dict[str, float]]:
    """What is missing with what is missing of the base, and the base's means."""
    config, root = context.config, context.root
    means = measure.measure_base(config, context.prepared, auxiliary, family, root, fill=True)
    counts = Counter(filled.counts) + Counter(measure.base_lacks(config, root))
    return missing.of(counts, context.command)._replace(failed=filled.failed), means


def _family(context: Context, auxiliary: AuxiliaryModels) -> ArticleFamily:
    config, prepared, root = context.config, context.prepared, context.root
    return ArticleFamily(
        config,
        prepared.articles,
        prepared.prompts,
        prepared.codec,
        load=lambda name: load_base(config, root),
        direction=auxiliary.direction,
    )


def _scores(context: Context, family: ArticleFamily) -> missing.Scores:
    prepared = context.prepared
    return missing.Scores(
        family=family,
        chains=prepared.chains,
        data=prepared.data,
        settings=context.driver_settings(prepared.driver),
        measure=measure.measure_named,
        names=missing.same_names(registry.with_unparsable(context.config.measure.metrics)),
        command=context.command,
    )


def _run_info(config: BiasConfig, prepared: Prepared) -> common.RunInfo:
    articles, generations = prepared.articles, prepared.driver.generations
    models = len(prepared.chains) * generations
    return [
        ("chains", chains_line(config)),
        (
            "articles",
            f"{len(articles.chosen):,} of {config.data.source}, fingerprint "
            f"{articles.fingerprint[:12]}",
        ),
        ("model", config.models.pool[0]),
        (
            "versions",
            f"{models:,}, {distinct_models(prepared.chains, generations):,} of them different",
        ),
    ]


def _write_report(
    context: Context,
    auxiliary: AuxiliaryModels,
    base_means: Mapping[str, float],
    failed: Mapping[str, Mapping[str, Any]],
    page: common.PageInputs,
) -> Path:
    # matplotlib and statsmodels take seconds to load, which a check or a plan does not need.
    from jaxloop.studies.bias_amplification import report

    return report.write(
        context.root,
        context.config,
        context.prepared,
        page=page,
        classifier_fits=auxiliary.fits,
        base=base_means,
        real=measure.real_shares(context.prepared, auxiliary),
        failed=failed,
    )
