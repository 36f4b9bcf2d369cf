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
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.models import BaseModel
from jaxloop.studies.common.run import chain_settings
from jaxloop.studies.recursive_loops import chains, political_leaning, properties, subsets
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


class Early(NamedTuple):
    """What is known before any text is cleaned.

    Attributes:
        bases: as in `Prepared`.
        planned: every chain, of subsets without rows.
        data_lines: a line about the sources of every domain, by its name.
        driver: as in `Prepared`.
    """

    bases: Mapping[str, BaseModel]
    planned: Sequence[Planned]
    data_lines: Mapping[str, str]
    driver: driver.RunSettings


def check_early(config: LoopsConfig) -> Early:
    """Check all that a run will need before it is needed, from cheap to dear; read no weights.

    That is metrics with their models, optional packages, devices, base models, the first row of
    every source, and judges that human texts wait for. Raises ValueError, one sentence or
    `Problems` with all of them, for what is wrong.
    """
    problems: list[ValueError] = []
    bases: dict[str, BaseModel] = {}
    planned: Sequence[Planned] = ()
    data_lines: dict[str, str] = {}
    with noted(problems):
        check_metrics(config)
    if config.subset_kind in ("clusters", "mixtures"):
        with noted(problems):
            subsets.check_size(config)
        with noted(problems):
            subsets.clustering_methods(config, config.clusters.fit_rows)
        with noted(problems):
            _check_regressions(config)
    with noted(problems):
        planned = chains.plan(config, subsets.placeholders(config))
    with noted(problems):
        select_devices(config.run.platform, config.run.devices)
    for name in config.domains:
        with noted(problems):
            loops_data.check_counter(config, name)
    for name in config.models.pool:
        with noted(problems), named("config.models.pool"):
            bases[name] = base_models.describe(config.models, name)
    for prompt in dict.fromkeys(map(loops_data.instruction, config.domains.values())):
        for fit, sample in base_models.variants(config.fit, config.sample, config.chain.factors):
            with noted(problems):
                base_models.check_lengths(bases, fit, sample, prompt)
    for name in _scorers(config):
        with noted(problems):
            _check_model(name, config)
    with noted(problems), named("config.embedder"):
        embedding.check_embedder(config.embedder)
    for name in config.domains:
        with noted(problems):
            data_lines[name] = loops_data.check(config, name)
        with noted(problems):
            loops_data.check_room(config, name)
    raise_all(problems)
    with noted(problems):
        _check_human_judges(config)
    raise_all(problems)
    shapes = {name: base.config for name, base in bases.items()}
    settings = chain_settings(
        config.chain, config.fit, config.sample, config.run, shapes, study="loops"
    )
    return Early(bases, planned, data_lines, settings)


def _scorers(config: LoopsConfig) -> dict[str, str]:
    """{metric: field that names it} of all metrics that the experiment computes."""
    named = {name: "metrics" for name in config.metrics} | {config.quality: "quality"}
    if config.subset_kind in ("clusters", "mixtures") and config.properties.toxicity:
        named[f"toxicity(model={config.properties.toxicity!r})"] = "properties.toxicity"
    if config.language is not None and _asks_language(config):
        named[config.language] = "language"
    if config.subset_kind == "political" and config.political_leaning.judge is not None:
        named[config.political_leaning.judge] = "political_leaning.judge"
    return named


def _asks_language(config: LoopsConfig) -> bool:
    """Whether the language of texts that are not clean yet is asked for."""
    return any(
        domain.recipe == "100M_tweets" and not loops_data.is_clean(config, name)
        for name, domain in config.domains.items()
    )


def _check_model(name: str, config: LoopsConfig) -> None:
    with named(f"config.{_scorers(config)[name]}"):
        registry.check([name])


def generated_judges(config: LoopsConfig) -> list[str]:
    """Return the metrics of generated text that ask a judge at an address."""
    judged = [name for name in (*config.metrics, config.quality) if registry.asks_endpoint(name)]
    leaning = config.political_leaning.judge
    if config.subset_kind == "political" and leaning and registry.asks_endpoint(leaning):
        judged.append(leaning)
    return judged


def _check_human_judges(config: LoopsConfig) -> None:
    """Raise ValueError where a judge does not answer without whom the chains cannot begin."""
    for metric, what in _human_judged(config).items():
        silent = registry.ask_judges([metric])
        if silent and any(
            not loops_data.is_clean(config, name)
            or loops_data.lacks_scores(metric, loops_data.read(config, name))
            for name in config.domains
        ):
            raise ValueError(
                f"{silent[0]}, and {what}; start it, or give the address at which it is"
            )


def _human_judged(config: LoopsConfig) -> dict[str, str]:
    """{metric of human texts that asks a judge: why chains cannot begin without it}."""
    needed = {}
    kind = config.subset_kind
    without = kind == "length" and any(own.without for own in config.splits.domains.values())
    if kind == "quality" or without:
        needed[config.quality] = "the splits are made of the quality of human texts"
    if kind in ("clusters", "mixtures") and config.judge == "now":
        needed[config.quality] = (
            "the quality of human texts is a property of clusters (config.judge=later asks for it "
            "after the chains)"
        )
    if config.interventions.policies and "quality" in config.interventions.policies:
        needed[config.quality] = "chains choose texts by their quality"
    if kind == "political" and config.political_leaning.judge is not None:
        needed[config.political_leaning.judge] = "the mixes are made of the lean of human texts"
    if config.language is not None and _asks_language(config):
        needed[config.language] = "the cleaning asks for the language of the texts"
    return {name: why for name, why in needed.items() if registry.asks_endpoint(name)}


def prepare(config: LoopsConfig) -> Prepared:
    """Read the models' config.json and tokenizers, clean the data and plan the chains.

    Raises ValueError, one sentence, if a run could not begin, or there are too few data for any
    choice of subsets.
    """
    early = check_early(config)
    bases, planned = early.bases, early.planned
    count_tokens = token_counts.counter(next(iter(bases.values())).tokenizer)
    sources = {name: loops_data.read(config, name, count_tokens) for name in config.domains}
    if config.subset_kind in ("clusters", "mixtures"):
        _check_cluster_size(config, sources)
    if config.subset_kind == "political" and config.political_leaning.judge is None:
        for source in sources.values():
            political_leaning.check_labels(config, source)
    if config.subset_kind == "whole":
        rows = {one.name: one for one in subsets.build(config, sources, Path())}
        with_rows = [one._replace(subset=rows[one.subset.name]) for one in planned]
        planned = chains.leave_out_short(config, with_rows)
    return Prepared(
        sources=sources,
        bases=bases,
        planned=planned,
        driver=early.driver,
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
