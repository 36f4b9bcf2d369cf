"""Reads and checks what a bias-amplification study needs, before anything is compiled or written.

That is the articles, the base's config.json and tokenizer, the classifier, the chains and the
driver's settings.
"""

from typing import NamedTuple

from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.metrics.classifiers import Classifier
from jaxloop.recursion import driver
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.studies.bias_amplification import checks, family
from jaxloop.studies.bias_amplification.articles import Articles, read_articles
from jaxloop.studies.bias_amplification.chains import chains_line, make_chains
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.run import overlaps_eval


class Prepared(NamedTuple):
    """What a bias-amplification study needs, read and checked.

    Attributes:
        articles: of the source.
        prompts: token ids of the blocks of every chosen article, by its name.
        model_config: the base's.
        tokenizer: the base's.
        chains: of the study.
        data: the data set of the chains, by name.
        driver: what `recursion.driver.run` is given.
        classifier: the ready-made one; None: it is fitted in the run.
    """

    articles: Articles
    prompts: dict[str, list[family.Ids]]
    model_config: ModelConfig
    tokenizer: Tokenizer
    chains: list[ChainSpec]
    data: dict[str, Dataset]
    driver: driver.RunSettings
    classifier: Classifier | None

    @property
    def codec(self) -> family.TokenCodec:
        """The base's tokens."""
        return family.token_codec(self.tokenizer)


def prepare(config: BiasConfig) -> Prepared:
    """Read articles, the base's description and the classifier.

    Raises ValueError, one sentence, if a run could not succeed.
    """
    problems: list[ValueError] = []
    for check in (checks.check_metrics, checks.check_detector, checks.check_files):
        with noted(problems):
            check(config)
    with noted(problems):
        select_devices(config.run.platform, config.run.devices)
    with noted(problems), named("config.models.pool"):
        model_config, tokenizer = base_models.describe(config.models, config.models.pool[0])
        codec = family.token_codec(tokenizer)
    if problems:
        with noted(problems):
            checks.check_source(config)
    raise_all(problems)
    articles = read_articles(config.data, codec, config.chain.block)
    classifier = checks.check_classifier(config, articles)
    checks.check_adapt(config, articles)
    prepared = assemble(config, model_config, tokenizer, articles, classifier)
    checks.check_model(config, model_config, family.prompt_len(prepared.prompts))
    checks.check_direction(config, model_config, articles)
    if config.neurons.measure:
        checks.check_neurons(config, model_config, prepared.chains)
    driver.check(prepared.chains, prepared.data, prepared.driver)
    return prepared


def assemble(
    config: BiasConfig,
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    articles: Articles,
    classifier: Classifier | None,
) -> Prepared:
    """Return what follows from articles and a model: prompts, chains, the driver's settings."""
    prompts = family.prompts_of(articles, family.token_codec(tokenizer), config.chain.block)
    return Prepared(
        articles=articles,
        prompts=prompts,
        model_config=model_config,
        tokenizer=tokenizer,
        chains=make_chains(config, len(articles.chosen)),
        data={"articles": _dataset(articles)},
        driver=_driver_settings(config, model_config, prompts),
        classifier=classifier,
    )


def _dataset(articles: Articles) -> Dataset:
    names = tuple(articles.chosen["id"])
    return Dataset(
        articles.texts(), prompts=names, sample_prompts=names, fingerprint=articles.fingerprint
    )


def _driver_settings(
    config: BiasConfig, model_config: ModelConfig, prompts: family.Prompts
) -> driver.RunSettings:
    return driver.RunSettings(
        generations=config.chain.generations,
        fit=family.ChainFit(**dict(config.fit)),
        sample=family.sample_settings(config, model_config, prompts),
        evaluate=0,
        keep=config.run.keep,
        study="bias",
        models_in_memory=1,
        overlap_eval=overlaps_eval(config.run),
        resumable_fields=("sample.slots", "sample.texts_per_call"),
    )


def lines(config: BiasConfig, prepared: Prepared) -> list[str]:
    """Return lines about the articles, the model, the classifier and the chains."""
    articles = prepared.articles
    counts = articles.chosen["label"].value_counts().sort_index()
    by_label = ", ".join(f"{count} {label!r}" for label, count in counts.items())
    classifier = config.classifier.model or "fitted on the other articles"
    return [
        f"data: {len(articles.chosen):,} articles ({by_label}), "
        f"{family.block_count(prepared.prompts):,} prompts; {len(articles.rest):,} others, "
        f"{articles.dropped} too short",
        base_models.model_line(config.models.pool[0], prepared.model_config),
        f"classifier: {classifier}",
        chains_line(config),
    ]
