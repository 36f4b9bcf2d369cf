"""Chains of language models: human text in, driver, metrics per generation, figures and a report out (recursive_loops.md, section 1)."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from jaxloop.config import Chain, Data, Fit, Models, Run, Sample, Section, Text

METRICS = ("cosine_diversity", "distinct_1", "distinct_2", "self_bleu", "text_length")


class Settings(Section):
    """The config of a chain study."""

    study: Literal["chain"] = Field("chain", description="which study this is a config of")
    data: Data = Data()
    models: Models = Models()
    chain: Chain = Chain()
    fit: Fit = Fit()
    sample: Sample = Sample()
    metrics: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(METRICS, description="names of metrics; held-out loss is always measured")
    run: Run = Run()

    @pydantic.model_validator(mode="after")
    def _together(self) -> "Settings":
        data, fit, chain, models = self.data, self.fit, self.chain, self.models
        if data.min_tokens >= data.max_tokens:
            raise ValueError(f"config.data.min_tokens = {data.min_tokens} leaves no text: must be below data.max_tokens = {data.max_tokens}")
        if fit.steps is None and fit.epochs is None:
            raise ValueError("config.fit.steps and config.fit.epochs are both none: one of them must be a number")
        if models.revisions and len(models.revisions) != len(models.pool):
            raise ValueError(f"config.models.revisions has {len(models.revisions)} entries: must be empty or one per model ({len(models.pool)})")
        for name in ("ratios", "seeds"):
            values = getattr(chain, name)
            if len(set(values)) < len(values):
                raise ValueError(f"config.chain.{name} = {values} repeats a value: every entry must differ")
        if chain.workflow == "external" and chain.external is None:
            raise ValueError("config.chain.external is missing: workflow 'external' needs a file of texts")
        return self
