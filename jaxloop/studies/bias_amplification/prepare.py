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
from jaxloop.studies.bias_amplification.articles import AnyLength, Articles, read_articles
from jaxloop.studies.bias_amplification.chains import chains_line, make_chains
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.common import calls
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
    base: base_models.BaseModel | None = None
    with noted(problems), named("config.models.pool"):
        base = base_models.describe(config.models, config.models.pool[0])
    # What is wrong with the articles is said beside what is wrong with models.
    block = config.chain.block
    codec = AnyLength(block) if base is None else family.token_codec(base.tokenizer)
    with noted(problems):
        articles = read_articles(config.data, codec, block)
        with noted(problems), named("config.classifier.model"):
            classifier = checks.check_classifier(config, articles)
        checks.check_adapt(config, articles)
    raise_all(problems)
    assert base is not None
    prepared = assemble(config, base.config, base.tokenizer, articles, classifier)
    with noted(problems):
        checks.check_model(config, base.config, family.prompt_len(prepared.prompts))
    with noted(problems):
        checks.check_direction(config, base.config, articles)
    if config.neurons.measure:
        with noted(problems):
            checks.check_neurons(config, base.config, prepared.chains)
    raise_all(problems)
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
    fit = family.ChainFit(**dict(config.fit))
    return driver.RunSettings(
        generations=config.chain.generations,
        fit=fit,
        sample=family.sample_settings(config, model_config, prompts),
        evaluate=0,
        keep=config.run.keep,
        study="bias",
        models_in_memory=1,
        members_per_group=config.run.chains_per_call,
        seconds_per_call=calls.SECONDS,
        first_members=calls.chains_in_time(model_config, work_of_a_chain(config, prompts), fit),
        overlap_eval=overlaps_eval(config.run),
        resumable_fields=("sample.slots", "sample.texts_per_call"),
    )


def work_of_a_chain(config: BiasConfig, prompts: family.Prompts) -> calls.Work:
    """Return what the slowest chain does in a generation."""
    chain, sample = config.chain, config.sample
    blocks = family.block_count(prompts)
    epochs = max(config.fit.epochs or 1.0, chain.overfit_epochs if "overfit" in chain.setups else 0)
    tokens = blocks * chain.block * (1 + chain.share) * epochs
    if config.fit.steps is not None:
        tokens = config.fit.steps * config.fit.batch_size * config.fit.max_length
    return calls.Work(
        read=tokens,
        length=config.fit.max_length,
        written=blocks * sample.max_new_tokens * _beams(config),
        context=family.prompt_len(prompts) + sample.max_new_tokens / 2,
        frozen=config.fit.mode == "lora",
    )


def _beams(config: BiasConfig) -> int:
    """The beams of the setup that has the most."""
    chain, sample = config.chain, config.sample
    own = sample.num_beams if sample.decoder == "beam" else 1
    beams = {"beam": chain.beams, "penalty": chain.penalty_beams}
    return max(own, *(beams.get(setup, 1) for setup in chain.setups))


def lines(config: BiasConfig, prepared: Prepared) -> list[str]:
    """Return lines about the articles, the model, the classifier and the chains."""
    articles = prepared.articles
    counts = articles.chosen["label"].value_counts().sort_index()
    by_label = ", ".join(f"{count} {label!r}" for label, count in counts.items())
    copies = f" without {articles.copies:,} copies" if articles.copies else ""
    classifier = config.classifier.model or "fitted on the other articles"
    return [
        f"data: {len(articles.chosen):,} articles ({by_label}), "
        f"{family.block_count(prepared.prompts):,} prompts; {len(articles.rest):,} others{copies}, "
        f"{articles.dropped} too short",
        base_models.model_line(config.models.pool[0], prepared.model_config),
        f"classifier: {classifier}",
        chains_line(config),
    ]
