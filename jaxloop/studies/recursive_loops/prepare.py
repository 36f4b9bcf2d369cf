"""Reads and checks what an experiment needs, before anything is compiled or written.

That is the models, the cleaned data, the planned chains and the driver's settings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxloop.config import suggestion
from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry
from jaxloop.recursion import driver
from jaxloop.runtime.devices import select_devices
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.models import BaseModel
from jaxloop.studies.common.run import chain_settings
from jaxloop.studies.recursive_loops import chains, properties, subsets
from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data import token_counts
from jaxloop.studies.recursive_loops.sources import Source


class Prepared(NamedTuple):
    """What an experiment needs before its subsets are made, read and checked.

    Attributes:
        sources: cleaned data by domain.
        bases: the models of the pool by name, without their weights.
        planned: every chain. The rows of its subset are known only where that is a whole dataset.
        driver: what `recursion.driver.run` is given.
    """

    sources: Mapping[str, Source]
    bases: Mapping[str, BaseModel]
    planned: Sequence[Planned]
    driver: driver.RunSettings


def prepare(config: LoopsConfig) -> Prepared:
    """Read the models' config.json and tokenizers, clean the data and plan the chains.

    Raises ValueError, one sentence, if a run could not begin, or there are too few data for any
    choice of subsets.
    """
    check_metrics(config)
    if config.subset_kind in ("clusters", "mixtures"):
        subsets.check_size(config)
        subsets.clustering_methods(config, config.clusters.fit_rows)
    planned = chains.plan(config, subsets.placeholders(config))
    select_devices(config.run.platform, config.run.devices)
    embedding.load_embedder(config.embedder)
    bases = {name: base_models.describe(config.models, name) for name in config.models.pool}
    for prompt in dict.fromkeys(map(loops_data.instruction, config.domains.values())):
        base_models.check_lengths(bases, config.fit, config.sample, prompt)
    count_tokens = token_counts.counter(next(iter(bases.values())).tokenizer)
    sources = {name: loops_data.read(config, name, count_tokens) for name in config.domains}
    if config.subset_kind in ("clusters", "mixtures"):
        _check_cluster_size(config, sources)
        _check_regressions(config)
    if config.subset_kind == "whole":
        rows = {one.name: one for one in subsets.build(config, sources, Path())}
        with_rows = [one._replace(subset=rows[one.subset.name]) for one in planned]
        planned = chains.leave_out_short(config, with_rows)
    return Prepared(
        sources=sources,
        bases=bases,
        planned=planned,
        driver=chain_settings(
            config.chain,
            config.fit,
            config.sample,
            config.run,
            {name: base.config for name, base in bases.items()},
            study="loops",
        ),
    )


def check_metrics(config: LoopsConfig) -> None:
    """Raise ValueError for a metric that needs more than generated texts.

    And for one of `language`, `quality` and `political_leaning.judge` that has no value for single
    texts.
    """
    for name, (metric, _) in zip(config.metrics, registry.validate(config.metrics), strict=True):
        if missing := [need for need in metric.needs if need not in ("texts", "embeddings")]:
            raise ValueError(
                f"config.metrics has '{name}', which needs {missing[0]}: these experiments "
                "measure generated texts alone"
            )
    scorers = {
        "language": config.language,
        "quality": config.quality,
        "political_leaning.judge": config.political_leaning.judge,
    }
    of_texts = [metric.name for metric in registry.REGISTRY.values() if metric.per_text]
    for field, scorer in scorers.items():
        if scorer is not None and registry.validate([scorer])[0][0].per_text is None:
            raise ValueError(
                f"config.{field} = '{scorer}': must be a metric of single texts; "
                f"{suggestion(scorer, of_texts)}"
            )


def _check_cluster_size(config: LoopsConfig, sources: Mapping[str, Source]) -> None:
    for name, source in sources.items():
        if len(source.texts) < config.clusters.min_size:
            raise ValueError(
                f"config.clusters.min_size = {config.clusters.min_size}: {name} has "
                f"{len(source.texts):,} texts; must be at most that"
            )


def _check_regressions(config: LoopsConfig) -> None:
    """Raise ValueError if a study has too few clusters for the largest of its regressions.

    That is the regression over all chains; with mixtures there is one for each domain's outcome.
    """
    domains, predictors = len(config.domains), len(properties.FINAL)
    clusters = config.clusters.count
    if config.subset_kind == "mixtures":
        predictors *= domains
    else:
        clusters, predictors = clusters * domains, predictors + domains - 1
    # Chains of one cluster that differ in their ratio have the same properties: only more clusters
    # tell properties apart.
    _check_rows(config, clusters, "clusters", predictors, "properties")
    several_ratios = len(config.chain.ratios) > 1
    all_chains = clusters * len(chains.combinations(config))
    _check_rows(config, all_chains, "chains", predictors + several_ratios, "predictors")


def _check_rows(config: LoopsConfig, rows: int, what: str, needed: int, predictors: str) -> None:
    if rows < needed + 2:
        raise ValueError(
            f"config.clusters.count = {config.clusters.count}: that makes {rows} {what} "
            f"for a regression on {needed} {predictors} and an intercept; must "
            f"make at least {needed + 2}"
        )
