"""Bias amplification in language models (arXiv 2410.15234; bias_amplification.md, sections 2-5):
labelled articles, continued and learned again.

settings -> prepare (articles, models, chains; everything that can be refused) -> classifier,
direction -> recursion.driver.run -> articles/, neurons/, metrics.csv, texts/ -> report.html
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pydantic
from pydantic import Field

import jaxloop
from jaxloop import config
from jaxloop.config import (
    CSV_OPTIONS,
    DELIMITER,
    Count,
    CsvOptions,
    NonNegative,
    Positive,
    Probability,
    Run,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)
from jaxloop.studies import FAILED_CHAINS
from jaxloop.studies.common import identity
from jaxloop.studies.common import run as running

if TYPE_CHECKING:
    from jaxloop.metrics.classifiers import Classifier
    from jaxloop.studies.bias_amplification.articles import Articles

SETUPS = ("greedy", "beam", "nucleus", "overfit", "preserve", "accumulate")
Setup = Literal[
    "greedy",
    "beam",
    "nucleus",
    "penalty",
    "overfit",
    "preserve",
    "accumulate",
    "accumulate_matched",
    "constrained",
]


class Data(Section):
    """The labelled articles."""

    source: Text = Field(
        ...,
        description="`jaxloop:NAME`, a .jsonl, .csv, .parquet file, or a Hugging Face dataset id",
    )
    title_column: Text | None = Field(
        "original_title",
        description="column of the title, which every generation keeps; none: the first sentence "
        "of the body is its title",
    )
    body_column: Text = Field(
        "original_body", description="column of the body; of a post, where posts are joined"
    )
    label_column: Text = Field("bias", description="column of the label")
    labels: tuple[Text, ...] = Field(
        (), description="keep only articles of these labels; empty: all"
    )
    only: Text | None = Field(
        None,
        description="the chains see articles of this label alone (the centre-only setup); none: "
        "of every label",
    )
    per_label: Count | None = Field(
        506, description="articles of each label, drawn with `seed`; none: all"
    )
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    seed: Seed = Field(
        42, description="seed of the draw and of the order, the same for every chain"
    )
    short: Literal["refuse", "drop", "keep"] = Field(
        "refuse", description="what becomes of articles whose body is shorter than a block"
    )
    author_column: Text | None = Field(
        None,
        description="rows are posts: those of an author in a week are one article, the first one "
        "its title; none: articles",
    )
    date_column: Text = Field("date", description="date of a post")
    title_tokens: Count | None = Field(
        None, description="cut titles to so many tokens; none: whole"
    )
    body_tokens: Count | None = Field(None, description="cut bodies to so many tokens; none: whole")
    name: Text | None = Field(None, description="configuration of a Hugging Face dataset")
    split: Text = Field("train", description="split of a Hugging Face dataset")
    revision: Text | None = Field(None, description="commit of a Hugging Face dataset")


class Models(config.Models):
    """The base model, one for all chains."""

    pool: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1)] = Field(
        ("gpt2",), description="directory in Hugging Face format or hub id"
    )


class Adapt(Section):
    """A first fine-tuning that makes a base which knows the language of the articles, for bases
    that do not.
    """

    articles: Count | None = Field(
        None,
        description="articles that neither a chain nor the classifier sees, as many; none: the "
        "base stays as it is",
    )
    epochs: Positive = Field(1.0, description="passes over them")
    batch_size: Count = Field(8, description="examples per step")
    learning_rate: Positive = Field(5e-5, description="peak learning rate of AdamW")


class Chain(Section):
    """The setups, and what they share."""

    generations: Count = Field(
        11, description="number of generations, generation 0 (real articles only) included"
    )
    setups: Annotated[tuple[Setup, ...], Field(min_length=1)] = Field(
        SETUPS,
        description="greedy, beam, nucleus and penalty are decoders; overfit, preserve, "
        "accumulate, accumulate_matched and constrained write greedily",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0,), description="replicates of every setup"
    )
    reading: Literal["released", "paper"] = Field(
        "released",
        description="training examples: `released`, every line of an article; `paper`, whole "
        "articles",
    )
    block: Count = Field(
        64, description="tokens of a prompt: articles are continued block by block"
    )
    beams: Count = Field(10, description="beams of setup `beam`")
    top_p: Probability = Field(0.9, description="nucleus of setup `nucleus`")
    penalty: Positive = Field(
        2.0, description="repetition penalty of setup `penalty` (Shumailov et al. 2024)"
    )
    penalty_beams: Count = Field(5, description="beams of setup `penalty`")
    overfit_epochs: Positive = Field(
        25.0, description="epochs of setup `overfit`, which has no weight decay"
    )
    share: Share = Field(
        0.1,
        description="setup `preserve` adds so large a share of the real articles, drawn afresh, "
        "to every generation",
    )


class Fit(config.Fit):
    """How a generation is trained: the defaults of the `transformers` trainer, as the released code
    has them.
    """

    mode: Literal["full", "lora"] = Field("full", description="all weights, or adapters")
    epochs: Positive | None = Field(
        5.0, description="passes over the training set, where `steps` is none"
    )
    batch_size: Count = Field(8, description="examples per step and chain")
    learning_rate: Positive = Field(5e-5, description="peak learning rate of AdamW")
    warmup_steps: Whole = Field(0, description="steps of linear warm-up")
    max_length: Count = Field(512, description="tokens per training example; longer ones are cut")
    loss_on: Literal["all"] = Field("all", description="tokens that the loss counts")
    length_classes: Count = Field(
        1,
        description="padded lengths in one epoch; 1: batches are random, more: sorted by length "
        "and faster",
    )


class Sample(config.Sample):
    """How a block is continued, where a setup does not say otherwise."""

    decoder: Literal["greedy", "sample"] = Field("greedy", description="greedy, or random sampling")
    temperature: Positive = Field(1.0, description="of sampled text")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="drop tokens below this share of the likeliest one's probability"
    )
    max_new_tokens: Count = Field(64, description="tokens that a block is continued by, at most")


class Classify(Section):
    """The classifier of labels: a ready one, or one fitted here on articles that no chain sees."""

    model: Text | None = Field(
        None, description="directory or hub id of a sequence classifier; none: fitted here"
    )
    labels: tuple[Text, ...] = Field(
        (),
        description="names of its classes in the order of its outputs; empty: as its config has "
        "them",
    )
    target: Text = Field(..., description="the label whose share is the bias")
    encoders: Annotated[tuple[Text | None, ...], Field(min_length=1)] = Field(
        (None,),
        description="encoders to fit, compared by macro-F1 on the validation texts; none: "
        "MiniLM, installed with jaxloop",
    )
    train: Literal["head", "all"] = Field(
        "all", description="a linear head on frozen embeddings, or the whole encoder"
    )
    epochs: Count | None = Field(
        None, description="passes over the training texts; none: 5, or 30 for a head"
    )
    batch_size: Count | None = Field(None, description="texts per step; none: 16, or 64 for a head")
    learning_rate: Positive | None = Field(None, description="none: 2e-5, or 3e-3 for a head")
    max_length: Count | None = Field(
        None, description="tokens of a text that are read; none: as many as the encoder can"
    )
    texts: Count | None = Field(
        None, description="articles of each label to fit on, at most; none: all that no chain sees"
    )
    seed: Seed = Field(0, description="seed of the split (70/15/15) and of the training")


class Measure(Section):
    """What is measured of every generation beside label shares and perplexities."""

    quality: bool = Field(True, description="the text quality index, in both readings")
    quality_articles: Count | None = Field(
        None, description="articles of a generation whose quality is measured, at most; none: all"
    )
    detector: Text | None = Field(
        None,
        description="detector of the text quality index; none: the one that comes with jaxloop",
    )
    metrics: tuple[Text, ...] = Field(
        ("self_bleu", "distinct_n(n=2)", "text_length"),
        description="further metrics of the texts, by name",
    )
    base: bool = Field(True, description="measure the base model, before any fine-tuning, too")


class Projection(Section):
    """The bias direction: c = u' grad L is logged at every generation, and setup `constrained`
    penalises it.
    """

    direction: Text | None = Field(
        None,
        description="`fit` (base fine-tuned on `toward` minus base fine-tuned on `away`), or a "
        ".safetensors file of weights; none: no direction",
    )
    toward: Text | None = Field(None, description="label towards which the direction points")
    away: Text | None = Field(None, description="label from which it points away")
    texts: Count = Field(64, description="articles of a generation on which c is measured, at most")
    lam: NonNegative = Field(
        0.0,
        description="reward of steps away from the bias; unbounded below, 0 is the pure constraint",
    )
    gam: NonNegative = Field(1.0, description="penalty on steps towards the bias")
    per: Literal["dimension", "direction"] = Field(
        "dimension", description="c of every weight, as the paper writes, or of the whole direction"
    )


class Neurons(Section):
    """Residual coordinates whose weights and activations are related to the bias."""

    measure: bool = Field(True, description="read them at every generation")
    tensor: Text = Field(
        "down_norm",
        description="which tensor is a neuron's weight: down_norm, down_mean, down_bias, up_norm "
        "or up_mean",
    )
    average: Text = Field(
        "tokens",
        description="mean over tokens, over texts, or as released: tokens, texts or released",
    )
    texts: Count | None = Field(
        None, description="real articles that activations are averaged over, at most; none: all"
    )
    max_length: Count = Field(512, description="tokens of an article that are read")
    lags: Whole = Field(1, description="lags of the Newey-West errors")
    alpha: Probability = Field(0.05, description="level of the tests")
    permutations: Count = Field(999, description="permutations within setups")


class Settings(Section):
    """The config of a bias-amplification study."""

    study: Literal["bias"] = Field("bias", description="which study this is a config of")
    title: Text = Field("Bias amplification", description="heading of the report")
    data: Data
    models: Models = Models()
    adapt: Adapt = Adapt()
    chain: Chain = Chain()
    fit: Fit = Fit()
    sample: Sample = Sample()
    classifier: Classify
    measure: Measure = Measure()
    projection: Projection = Projection()
    neurons: Neurons = Neurons()
    run: Run = Run()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "Settings":
        c, p = self.chain, self.projection
        for name in ("setups", "seeds"):
            values = getattr(c, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"config.chain.{name} = {values} repeats a value: every entry must differ"
                )
        if self.fit.steps is None and self.fit.epochs is None:
            raise ValueError(
                "config.fit.steps and config.fit.epochs are both none: one of them must be a number"
            )
        if "overfit" in c.setups and self.fit.steps is not None:
            raise ValueError(
                f"config.fit.steps = {self.fit.steps}: setup 'overfit' counts epochs; set "
                "fit.steps to none and fit.epochs"
            )
        if "constrained" in c.setups and p.direction is None:
            raise ValueError(
                "config.projection.direction is missing: setup 'constrained' needs a direction"
            )
        if p.direction == "fit" and (p.toward is None or p.away is None or p.toward == p.away):
            raise ValueError(
                f"config.projection.toward = {p.toward!r} and away = {p.away!r}: direction 'fit' "
                "needs two different labels"
            )
        if self.models.revisions and len(self.models.revisions) != 1:
            raise ValueError(
                f"config.models.revisions has {len(self.models.revisions)} entries: must be "
                "empty or one"
            )
        return self


class Prepared(NamedTuple):
    """Everything that can be refused, read and checked; nothing compiled or written."""

    articles: "Articles"
    prompts: dict[str, list[tuple[int, ...]]]
    spec: Any
    tokenizer: Any
    chains: list
    data: dict
    driver: Any
    classifier: "Classifier | None"


def prepare(settings: Settings) -> Prepared:
    """Reads articles, model description and classifier. Raises ValueError, one sentence, for
    anything with which a run could not succeed.
    """
    from jaxloop.lm.io import huggingface
    from jaxloop.metrics import registry
    from jaxloop.recursion import driver
    from jaxloop.recursion.sources import Dataset
    from jaxloop.runtime.devices import select_devices
    from jaxloop.studies.bias_amplification import articles as bias_data
    from jaxloop.studies.bias_amplification import chains as bias_chains
    from jaxloop.studies.bias_amplification import instruments
    from jaxloop.studies.chain import prepare as chain_setup

    for name, (metric, _) in zip(
        settings.measure.metrics, registry.validate(settings.measure.metrics), strict=True
    ):
        if metric.needs != ("texts",):
            raise ValueError(
                f"config.measure.metrics has '{name}', which needs {metric.needs[-1]}: only "
                "metrics of texts alone are taken here"
            )
    select_devices(settings.run.platform, settings.run.devices)
    path = huggingface.locate(
        chain_setup.model_path(settings.models.pool[0]), (settings.models.revisions or (None,))[0]
    )
    spec, tokenizer = huggingface.describe(path)
    code = bias_chains.codec(tokenizer)
    articles = bias_data.read(settings.data, code.encode, code.decode, settings.chain.block)
    classifier = instruments.check_classifier(settings, articles)
    instruments.check_adapt(settings, articles)
    prompts = bias_chains.prompts_of(articles, code, settings.chain.block)
    fit, sample = chain_setup.family_settings(settings)
    sample = bias_chains.sample_settings(settings, spec, prompts, sample)
    _check_model(settings, spec, sample)
    instruments.check_direction(settings, spec, articles)
    size = len(articles.chosen)
    chains = bias_chains.make(settings, size)
    if settings.neurons.measure:
        instruments.check_neurons(settings, spec, chains)
    names = tuple(articles.chosen["id"])
    data = {
        "articles": Dataset(
            [articles.text(i) for i in range(size)], names, names, articles.fingerprint
        )
    }
    common = driver.Settings(
        settings.chain.generations, fit, sample, evaluate=0, keep=settings.run.keep, study="bias", models_in_memory=1,
        measure_beside=running.measures_beside(settings.run),
        free=("fit.chains_at_once", "sample.slots", "sample.texts_per_call"),
    )  # fmt: skip
    driver.check(chains, data, common)
    return Prepared(articles, prompts, spec, tokenizer, chains, data, common, classifier)


def _check_model(settings: Settings, spec, sample) -> None:
    name = settings.models.pool[0]
    needed = sample.max_prompt + settings.sample.max_new_tokens
    if needed > spec.context:
        raise ValueError(
            f"config.chain.block = {settings.chain.block}: prompts of up to {sample.max_prompt} "
                f"tokens and {settings.sample.max_new_tokens} new ones "
            f"do not fit the context of {name}, which is {spec.context} tokens"
        )  # fmt: skip
    if settings.fit.max_length > spec.context:
        raise ValueError(
            f"config.fit.max_length = {settings.fit.max_length}: exceeds the context of {name}, "
            f"which is {spec.context} tokens"
        )


def check(settings: Settings) -> list[str]:
    """Lines about the articles, the model, the classifier and the chains, once all of them have
    been found good.
    """
    from jaxloop.lm.model.config import count_parameters

    p = prepare(settings)
    counts = ", ".join(
        f"{n} {label!r}"
        for label, n in p.articles.chosen["label"].value_counts().sort_index().items()
    )
    blocks = sum(map(len, p.prompts.values()))
    lines = [
        f"data: {len(p.articles.chosen):,} articles ({counts}), {blocks:,} prompts; "
        f"{len(p.articles.rest):,} others, {p.articles.dropped} too short"
    ]
    lines.append(
        f"model {settings.models.pool[0]}: {p.spec.architecture}, {count_parameters(p.spec):,} "
        "parameters"
    )
    lines.append(f"classifier: {settings.classifier.model or 'fitted on the other articles'}")
    return [*lines, chains_line(settings)]


def chains_line(settings: Settings) -> str:
    """What the study consists of, in words."""
    c = settings.chain
    seeds = f"{len(c.seeds)} seed{'s' if len(c.seeds) > 1 else ''}"
    return (
        f"{len(c.setups) * len(c.seeds)} chains: {', '.join(c.setups)}, {seeds}, {c.generations} "
        "generations"
    )


def plan(settings: Settings, target: str | None = None) -> list[tuple[str, str]]:
    """What a run would do, counted, and its arithmetic, or what the compiler says of `target`;
    nothing is run.
    """
    from jaxloop.studies.bias_amplification import cost
    from jaxloop.studies.common import absent_plan

    if target is not None:
        return [
            ("chains", chains_line(settings)),
            *absent_plan.rows(
                settings, target, chains=len(settings.chain.setups) * len(settings.chain.seeds)
            ),
        ]
    return [("chains", chains_line(settings)), *cost.table(settings, prepare(settings))]


def run(settings: Settings, workdir: pathlib.Path, *, argv: Sequence[str] = ()) -> int:
    """The whole study, or the rest of one; 0, or `FAILED_CHAINS` where some chains stopped."""
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import initialise_distributed, processes
    from jaxloop.runtime.environment import commit, devices
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.workdir import open_workdir
    from jaxloop.studies.bias_amplification import chains as bias_chains
    from jaxloop.studies.bias_amplification import cost, instruments, report
    from jaxloop.studies.bias_amplification import measure as bias_measure

    start = time.monotonic()
    initialise_distributed()
    running.keep_compiled(settings.run)
    prepared = prepare(settings)
    stored = settings.model_dump(mode="json")
    models = identity.of(settings)
    with open_workdir(
        workdir,
        stored,
        may_change=("run", "title"),
        needs=cost.disk(settings, prepared),
        identity=models,
    ) as place:
        ready = instruments.make(settings, prepared, place.path)
        code, load = (
            bias_chains.codec(prepared.tokenizer),
            lambda name: instruments.base_model(settings, place.path),
        )
        family = bias_chains.family(
            settings, prepared.articles, prepared.prompts, code, load, ready.direction
        )
        if processes()[0] == 0:
            base = bias_measure.base_values(settings, prepared, ready, family, place.path)
        measure = bias_measure.measuring(settings, prepared, ready, place.path)
        common = dataclasses.replace(prepared.driver, identity=identity.bases(models))
        result = driver.run(
            family,
            prepared.chains,
            prepared.data,
            common,
            place.path,
            measure=measure,
            command=running.command_line(argv),
        )
        if processes()[0] == 0:
            facts = [
                ("command", running.command_line(argv)),
                ("chains", chains_line(settings)),
                (
                    "articles",
                    f"{len(prepared.articles.chosen):,} of {settings.data.source}, fingerprint "
                    f"{prepared.articles.fingerprint[:12]}",
                ),
                ("model", settings.models.pool[0]),
                *((f"files of {name}", value) for name, value in models.items()),
                (
                    "versions",
                    f"{len(prepared.chains) * settings.chain.generations:,}, "
                    f"{cost.distinct(prepared):,} of them different",
                ),
                ("code", f"jaxloop {jaxloop.__version__}, commit {commit()}"),
                ("device", devices()),
                ("config fingerprint", config.fingerprint(settings, ignore=("run", "title"))),
                ("time", running.elapsed(time.monotonic() - start, result.resumed_after)),
            ]
            real = bias_measure.real_values(prepared, ready)
            LOGGER.info(
                "the report is %s",
                report.write(place.path, settings, prepared, ready, base, real, result, facts),
            )
    return FAILED_CHAINS if result.failed else 0
