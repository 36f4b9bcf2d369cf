"""Reads and checks what a chain study needs, before anything is compiled or written.

That is the data, the models, the chains and the driver's settings.
"""

import bisect
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.lm.io import huggingface
from jaxloop.metrics import registry
from jaxloop.metrics.embed import check_embedder
from jaxloop.recursion import driver
from jaxloop.recursion.chains import ChainSpec, product
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import human_needed
from jaxloop.reporting.scores import share
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.studies.chain import data as chain_data
from jaxloop.studies.chain.config import ChainConfig
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.models import BaseModel
from jaxloop.studies.common.run import chain_settings

# Workflows whose new items are a mixture of synthetic and fresh human text.
MIXED = ("fresh_human", "window", "external")
# The data set of workflow `external`.
EXTERNAL = "external"
# What a chain study can hand to a metric (see metrics.base.INPUTS).
INPUTS = (
    "texts",
    "contexts",
    "embeddings",
    "projection",
    "reference_texts",
    "reference_embeddings",
    "losses",
    "own_losses",
    "reference_losses",
    "token_nll",
)
# Inputs that it cannot give, with the reason and the study that can.
ELSEWHERE = {
    "entity_embeddings": "it compares models that complete the same prompts, as the entities of "
    "study 'multi_entity' do"
}


class Prepared(NamedTuple):
    """What a chain study needs, read and checked.

    Attributes:
        chains: every chain of the study.
        sources: the human texts, by name of their data set.
        external: synthetic texts from elsewhere, for workflow `external`; else None.
        bases: the models of the pool by name, without their weights.
        driver: what `recursion.driver.run` is given.
    """

    chains: list[ChainSpec]
    sources: dict[str, chain_data.Source]
    external: chain_data.Source | None
    bases: dict[str, BaseModel]
    driver: driver.RunSettings

    @property
    def data(self) -> dict[str, Dataset]:
        """The data sets of the chains by name."""
        return {name: source.dataset for name, source in self._all.items()}

    @property
    def data_lines(self) -> list[tuple[str, str]]:
        """A line about every data set, by its name."""
        return [(name, source.line) for name, source in self._all.items()]

    @property
    def _all(self) -> dict[str, chain_data.Source]:
        more = {} if self.external is None else {EXTERNAL: self.external}
        return self.sources | more


def prepare(config: ChainConfig, *, here: bool = True) -> Prepared:
    """Read the data and the models' config.json and tokenizers, and plan the chains.

    here: whether the study is to run on this machine, so that its devices and memory are checked.
    Raises ValueError, one sentence, if a run could not succeed.
    """
    problems: list[ValueError] = []
    bases: dict[str, BaseModel] = {}
    check_metrics(config, problems)
    if here:
        with noted(problems):
            select_devices(config.run.platform, config.run.devices)
    for name in config.models.pool:
        with noted(problems), named("config.models.pool"):
            bases[name] = base_models.describe(config.models, name)
    _check_models(config, bases, here, problems)
    paths = config.chain.factors.get("dataset", (config.data.source,))
    names = _names(paths, {EXTERNAL} if config.chain.workflow == "external" else set())
    sources: dict[str, chain_data.Source] = {}
    external = None
    if len(bases) == len(config.models.pool):
        for name, path in zip(names, paths, strict=True):
            with noted(problems):
                sources[name] = chain_data.read(config, path, bases)
        if config.chain.workflow == "external" and config.chain.external is not None:
            with noted(problems):
                external = chain_data.read(config, config.chain.external, bases, whole=True)
    else:
        # Texts are counted in tokens of the models, but whether a file is there can be said.
        for path in paths:
            with noted(problems):
                chain_data.first_row(config, path)
    raise_all(problems)
    prepared = Prepared(
        chains=_chains(config, names),
        sources=sources,
        external=external,
        bases=bases,
        driver=chain_settings(
            config.chain,
            config.fit,
            config.sample,
            config.run,
            {name: base.config for name, base in bases.items()},
            study="chain",
        ),
    )
    _check_enough(config, names, prepared)
    driver.check(prepared.chains, prepared.data, prepared.driver)
    return prepared


def _check_enough(config: ChainConfig, names: Sequence[str], prepared: Prepared) -> None:
    """Raise ValueError, with what would fit, where a chain reads more human texts than there are.

    names: of the data sets.
    """
    generations = config.chain.generations
    for chain in prepared.chains:
        source = prepared.sources[str(chain.dataset)]
        there, needed = len(source.dataset.texts), human_needed(chain.workflow, generations)
        if needed > there:
            raise ValueError(
                f"config.data: '{chain.dataset}' has {source.line}, but chain {chain.id} needs "
                f"{needed:,} in {generations} generations; {_what_fits(config, names, there)}"
            )


def _what_fits(config: ChainConfig, names: Sequence[str], there: int) -> str:
    """Say with which size, or how many generations, no chain needs more than `there` texts."""

    def needed(size: int, generations: int) -> int:
        chains = _chains(config, names, size)
        return max(human_needed(chain.workflow, generations) for chain in chains)

    size, last = config.chain.size, config.chain.generations
    # Both grow with what they are asked for, so the number of values that fit is the largest one.
    smaller = bisect.bisect(range(1, size), there, key=lambda size: needed(size, last))
    fewer = bisect.bisect(range(1, last), there, key=lambda last: needed(size, last))
    found = {"config.chain.size": smaller, "config.chain.generations": fewer if fewer > 1 else 0}
    fitting = " or ".join(f"{field}={value}" for field, value in found.items() if value)
    return f"{fitting} would fit" if fitting else "take more text"


def _check_models(
    config: ChainConfig, bases: Mapping[str, BaseModel], here: bool, problems: list[ValueError]
) -> None:
    """Add to `problems` what the bases cannot take: of every chain, whatever its factors are."""
    chain = config.chain
    starts = chain.factors.get("start", (chain.start,))
    for fit, sample in base_models.variants(config.fit, config.sample, chain.factors):
        with noted(problems):
            base_models.check_lengths(bases, fit, sample, config.data.instruction)
        for start in starts if here and bases else ():
            frozen = base_models.trains_adapters(fit, start)
            with noted(problems):
                base_models.check_memory(bases, config.models, fit, config.run, frozen=frozen)


def check_metrics(config: ChainConfig, problems: list[ValueError]) -> None:
    """Add to `problems` what is wrong with metrics that a chain study is to compute.

    It is unknown, or needs an input that a chain study does not have, or its options, its model or
    the address of its endpoint are wrong.
    """
    with noted(problems):
        registry.validate(config.metrics)
    if problems:
        return
    for name, (metric, _) in zip(config.metrics, registry.validate(config.metrics), strict=True):
        with noted(problems):
            _check_inputs(name, metric.needs, config)
        with noted(problems):
            registry.check([name])
    needed = registry.needs(config.metrics)
    if needed & {"embeddings", "reference_embeddings"}:
        with noted(problems), named("config.embedder"):
            check_embedder(config.embedder)
    if "reference_losses" in needed and config.reference is not None:
        with noted(problems), named("config.reference"):
            huggingface.describe(huggingface.locate(base_models.model_path(config.reference)))


def _check_inputs(name: str, needs: Sequence[str], config: ChainConfig) -> None:
    missing = [need for need in needs if need not in INPUTS]
    if missing:
        raise ValueError(
            f"config.metrics has '{name}', which needs {missing[0]}: "
            f"{ELSEWHERE.get(missing[0], 'a chain study cannot give it')}"
        )
    if {"losses", "token_nll"} & set(needs) and not config.chain.heldout_texts:
        raise ValueError(f"config.chain.heldout_texts = 0: metric '{name}' needs held-out texts")


def _names(sources: Sequence[str], taken: Set[str]) -> list[str]:
    """Short names of data sets: the name of a corpus, the stem of a file, the id on the hub.

    They are numbered where two would be the same, or one that is taken.
    """
    short = [
        Path(source).stem if Path(source).suffix else source.removeprefix("jaxloop:")
        for source in sources
    ]
    return [
        name if short.count(name) == 1 and name not in taken else f"{name}-{i}"
        for i, name in enumerate(short)
    ]


def _chains(
    config: ChainConfig, datasets: Sequence[str], size: int | None = None
) -> list[ChainSpec]:
    """One chain per combination of the factors; of another size than the config's if one is given.

    A factor `size` comes before both.
    """
    chain = config.chain
    factors: dict[str, Sequence[Any]] = {"dataset": tuple(datasets)}
    if chain.workflow in MIXED:
        factors["ratio"] = chain.ratios
    factors["seed"] = chain.seeds
    factors |= {name: tuple(values) for name, values in chain.factors.items() if name != "dataset"}
    fields: dict[str, Any] = {
        "workflow": chain.workflow,
        "size": size or chain.size,
        "start": chain.start,
        "bases": config.models.pool,
    }
    if chain.workflow in ("preserve", "external"):
        fields["share"] = chain.share
    if chain.workflow == "window":
        fields["k"] = chain.window
    if chain.first_size:
        fields["initial"] = chain.first_size
    if chain.workflow == "external":
        fields["external"] = EXTERNAL
    return product(
        factors, **{name: value for name, value in fields.items() if name not in factors}
    )


# ---- words


def texts_needed(prepared: Prepared) -> int:
    """Return how many human texts the chain that needs most of them reads."""
    generations = prepared.driver.generations
    return max(human_needed(chain.workflow, generations) for chain in prepared.chains)


def chains_line(config: ChainConfig, chains: Sequence[ChainSpec]) -> str:
    """Return a line that says how many chains there are and what they differ in."""
    chain = config.chain
    if chain.workflow in MIXED:
        parts = [f"r in {{{', '.join(share(ratio) for ratio in chain.ratios)}}}"]
    else:
        parts = [chain.workflow]
    parts += [f"{len(values)} values of {name}" for name, values in chain.factors.items()]
    parts += [_counted(len(chain.seeds), "seed"), _counted(chain.generations, "generation")]
    return f"{_counted(len(chains), 'chain')}: {', '.join(parts)}"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
