"""The experiments of "Recursive Training Loops in LLMs" (arXiv 2504.03814; recursive_loops.md): one
study, one config each.

settings -> sources (cleaned text) -> subsets (splits, clusters, mixtures) -> chains ->
recursion.driver.run -> metrics.csv, chains.csv and, of clusters, properties.csv and members.parquet
-> the analysis and its page.
"""

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jaxloop
from jaxloop.config import fingerprint
from jaxloop.studies import FAILED_CHAINS
from jaxloop.studies.common import identity
from jaxloop.studies.common import run as running
from jaxloop.studies.recursive_loops.config import Settings, check_metrics, instruction

__all__ = ["Settings", "check", "plan", "run"]


class Prepared(NamedTuple):
    """What is known before subsets are cut: clean sources by domain, models name -> (spec,
    tokenizer), and the driver's settings.
    """

    sources: Mapping[str, Any]
    models: Mapping[str, tuple]
    driver: Any


def prepare(settings: Settings) -> Prepared:
    """Reads models' descriptions and cleans the data. Raises ValueError, one sentence, for anything
    with which a run could not begin.
    """
    from jaxloop.metrics.embed import load_embedder
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import select_devices
    from jaxloop.studies.chain import prepare as chain_setup
    from jaxloop.studies.recursive_loops import chains as loops_chains
    from jaxloop.studies.recursive_loops import sources as loops_data
    from jaxloop.studies.recursive_loops import subsets as loops_subsets

    check_metrics(settings)
    if settings.kind in ("clusters", "mixtures"):
        loops_subsets.check_size(settings)
        loops_subsets.clustering_methods(settings, settings.clusters.fit_rows)
    loops_chains.expected(settings)
    select_devices(settings.run.platform, settings.run.devices)
    load_embedder(settings.embedder)
    models = {name: chain_setup._describe(settings, name) for name in settings.models.pool}
    for text in dict.fromkeys(map(instruction, settings.domains.values())):
        chain_setup._check_models(
            SimpleNamespace(
                fit=settings.fit, sample=settings.sample, data=SimpleNamespace(instruction=text)
            ),
            models,
        )
    count = next(iter(models.values()))[1].count
    sources = {name: loops_data.read(settings, name, count) for name in settings.domains}
    common = driver.Settings(
        settings.chain.generations,
        *chain_setup.family_settings(settings),
        evaluate=settings.chain.eval_texts,
        keep=settings.run.keep,
        study="loops",
        measure_beside=running.measures_beside(settings.run),
        free=("fit.chains_at_once",),
    )
    return Prepared(sources, models, common)


def check(settings: Settings) -> list[str]:
    """Lines about the data, the models and the chains, once all of them have been found good.
    Clusters and splits are not made yet.
    """
    from jaxloop.studies.recursive_loops import chains as loops_chains

    prepared = prepare(settings)
    lines = [_source_line(source) for source in prepared.sources.values()]
    _enough(settings, prepared)
    planned = loops_chains.expected(settings)
    return [
        *lines,
        f"{chains_line(settings, planned)}; the longest needs {max(p.needed for p in planned):,} "
        "human texts",
    ]


def _source_line(source) -> str:
    dropped = ", ".join(
        f"{rule}: {counts['dropped']:,}"
        for rule, counts in source.report.items()
        if counts["dropped"]
    )
    read = next(iter(source.report.values()))["in"] if source.report else len(source.texts)
    return (
        f"data {source.name}: {len(source.texts):,} of {read:,} texts ({dropped or 'none dropped'})"
    )


def _enough(settings: Settings, prepared: Prepared) -> None:
    """Refuses data that are too few whatever the subsets turn out to be: for a chain, or for a
    single cluster.
    """
    from jaxloop.studies.recursive_loops import chains as loops_chains
    from jaxloop.studies.recursive_loops import subsets as loops_subsets

    if settings.kind == "whole":
        loops_chains.plan(settings, loops_subsets.build(settings, prepared.sources, pathlib.Path()))
    if settings.kind in ("clusters", "mixtures"):
        for name, source in prepared.sources.items():
            if len(source.texts) < settings.clusters.min_size:
                raise ValueError(
                    f"config.clusters.min_size = {settings.clusters.min_size}: {name} has "
                    f"{len(source.texts):,} texts; must be at most that"
                )
        _enough_chains(settings)


def _enough_chains(settings: Settings) -> None:
    """Refuses a study of clusters whose largest regression could not be fitted: over all chains (of
    several domains: each domain's outcome).
    """
    from jaxloop.studies.recursive_loops import chains as loops_chains
    from jaxloop.studies.recursive_loops.analysis import regression

    domains, predictors = len(settings.domains), len(regression.PROPERTIES)
    combinations = len(loops_chains.combinations(settings))
    clusters = settings.clusters.count
    if settings.kind == "mixtures":
        predictors *= domains
    else:
        clusters, predictors = clusters * domains, predictors + domains - 1
    # Chains of one cluster that differ in their ratio have the same properties: only more clusters
    # tell properties apart.
    varied = len(settings.chain.ratios) > 1
    for count, what, needed in (
        (clusters, "clusters", predictors),
        (clusters * combinations, "chains", predictors + varied),
    ):
        if count < needed + 2:
            raise ValueError(
                f"config.clusters.count = {settings.clusters.count}: that makes {count} {what} "
                f"for a regression on {needed} "
                f"{'properties' if what == 'clusters' else 'predictors'} and an intercept; must "
                f"make at least {needed + 2}"
            )


def chains_line(settings: Settings, planned: Sequence) -> str:
    """How many chains of what."""
    from jaxloop.reporting.scores import share

    c = settings.chain
    subsets = len({p.subset.name for p in planned})
    cut = {
        "whole": "dataset",
        "clusters": "cluster",
        "mixtures": "mixture",
        "quality": "split",
        "length": "split",
        "political": "mix",
    }[settings.kind]
    parts = [
        f"{subsets} {cut}{'s' if subsets > 1 and cut != 'mix' else 'es' if subsets > 1 else ''}",
        f"r in {{{', '.join(share(r) for r in c.ratios)}}}",
    ]
    ratios = {"dataset", "ratio", "seed"} | {name for p in planned for name in p.subset.factors}
    varied = {
        name: {repr(p.factors[name]) for p in planned if name in p.factors}
        for p in planned
        for name in p.factors
        if name not in ratios
    }
    parts += [f"{len(values)} values of {name}" for name, values in varied.items()]
    parts += [
        f"{len(c.seeds)} seed{'s' if len(c.seeds) > 1 else ''}",
        f"{c.generations} generations",
    ]
    out = sum(1 for p in planned if p.reason)
    return f"{len(planned)} chains: {', '.join(parts)}" + (
        f" ({out} left out, their subsets have too few texts)" if out else ""
    )


def plan(settings: Settings, target: str | None = None) -> list[tuple[str, str]]:
    """What a run would do, counted, and its time: measured here where the models are, in hours of
    `plan.device` where they are not, or by what the compiler says of `target`.
    """
    from jaxloop.studies.recursive_loops import cost

    return cost.table(settings, target)


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """The whole experiment, or the rest of one; 0, or `FAILED_CHAINS` where some chains stopped or
    were left out.
    """
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import barrier, initialise_distributed, processes
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.workdir import open_workdir
    from jaxloop.studies.chain import prepare as chain_setup
    from jaxloop.studies.recursive_loops import chains as loops_chains
    from jaxloop.studies.recursive_loops import cost, measure, political_leaning, report
    from jaxloop.studies.recursive_loops import subsets as loops_subsets

    start = time.monotonic()
    initialise_distributed()
    running.keep_compiled(settings.run)
    prepared = prepare(settings)
    _enough(settings, prepared)
    stored = settings.model_dump(mode="json")
    models = identity.of(settings)
    with open_workdir(
        workdir,
        stored,
        may_change=("run", "title", "plan"),
        needs=cost.disk(settings, prepared),
        identity=models,
    ) as place:
        for source in prepared.sources.values():
            LOGGER.info(_source_line(source))
        if processes()[0] > 0:
            barrier("subsets are made")
        subsets = loops_subsets.build(settings, prepared.sources, place.path)
        planned = loops_chains.plan(settings, subsets)
        if processes()[0] == 0:
            report.write_before(settings, prepared.sources, subsets, planned, place.path)
            barrier("subsets are made")
        for one in planned:
            if one.reason:
                LOGGER.warning("chain %s is left out: %s", one.id, one.reason)
        chains = [p.spec for p in planned if p.spec is not None]
        data = loops_chains.datasets(settings, planned, prepared.sources)
        lean = (
            political_leaning.scorer(settings, next(iter(prepared.sources.values())), place.path)
            if settings.kind == "political"
            else None
        )
        result = driver.run(
            chain_setup.family(settings),
            chains,
            data,
            dataclasses.replace(prepared.driver, identity=identity.bases(models)),
            place.path,
            measure=measure.measure(settings, lean),
            features=features(settings),
            command=running.command_line(argv),
        )
        if processes()[0] == 0:
            measure.merged(settings, chains, place.path, result.generations, lean)
            driver.write_tables(place.path, result.generations)
            if lean is not None:
                measure.text_scores(settings, chains, data, place.path, result.generations, lean)
            facts = [
                ("command", running.command_line(argv)),
                ("chains", chains_line(settings, planned)),
                *(
                    (f"data: {s.name}", _source_line(s).split(": ", 1)[1])
                    for s in prepared.sources.values()
                ),
                ("models", ", ".join(settings.models.pool)),
                ("code", f"jaxloop {jaxloop.__version__}"),
                ("config fingerprint", fingerprint(settings, ignore=("run", "title", "plan"))),
                ("time", running.elapsed(time.monotonic() - start, result.resumed_after)),
            ]
            page = report.write_after(settings, planned, result.failed, place.path, facts, stored)
            LOGGER.info("the report is %s", page)
    left_out = any(p.spec is None for p in planned)
    return FAILED_CHAINS if result.failed or left_out else 0


def features(settings: Settings):
    """What selection policies read of texts: quality by the config's metric, or embeddings."""

    def find(name: str, texts: Sequence[str]):
        from jaxloop.metrics import registry
        from jaxloop.metrics.embed import embed

        if name == "quality":
            return registry.evaluate_texts([settings.quality], texts=[list(texts)])[
                settings.quality
            ][0]
        return embed(list(texts), model=settings.embedder)

    return find if settings.interventions.policies else None
