"""The config of a pretraining study."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field

from jaxloop.config import (
    Count,
    DataConfig,
    FitConfig,
    Probability,
    RunConfig,
    Section,
    Seed,
    Text,
)


class PretrainData(DataConfig):
    """Where text comes from."""

    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of the texts that is held out, chosen by their content"
    )


# Fields of it that are about prompts or lengths.
_UNREAD = ("prompt_column", "instruction", "long_prompts", "min_tokens", "max_tokens")


class Base(Section):
    """Sizes of a decoder."""

    architecture: Literal["llama", "qwen2", "gpt2", "opt"] = Field(
        "llama", description="block, positions, biases and names"
    )
    width: Count = Field(160, description="model width")
    layers: Count = Field(4, description="blocks")
    heads: Count = Field(5, description="query heads; width / heads is their size")
    kv_heads: Count = Field(5, description="key/value heads (llama, qwen2)")
    mlp: Count = Field(432, description="width inside the mlp")
    steps: Count | None = Field(None, description="optimiser steps of this base; none: `fit.steps`")

    @pydantic.model_validator(mode="after")
    def _check_divides(self) -> "Base":
        if self.width % self.heads or self.heads % self.kv_heads:
            raise ValueError(
                f"heads = {self.heads} and kv_heads = {self.kv_heads} do not fit width "
                f"{self.width}: width must be a multiple of heads, heads of kv_heads"
            )
        return self


class PretrainConfig(Section):
    """The config of a pretraining study."""

    study: Literal["pretrain"] = Field("pretrain", description="which study this is a config of")
    title: Text = Field("Bases from scratch", description="first line of the model cards")
    data: PretrainData = PretrainData()
    bases: dict[str, Base] = Field(
        {"llama": Base()}, description="name -> sizes; one model is made for each"
    )
    vocab: Annotated[int, Field(ge=258)] = Field(
        3072, description="tokens of the byte-level BPE that all bases share"
    )
    context: Count = Field(
        256, description="tokens per block, and the longest sequence of the models"
    )
    seed: Seed = Field(0, description="of weights and order; base k uses seed + k")
    optimizer: Literal["adamw", "muon"] = Field(
        "adamw",
        description="`muon`: the matrices of layers by Muon, at AdamW's rate and weight decay; all "
        "else by AdamW",
    )
    adam_b2: Probability = Field(0.98, description="AdamW's second decay")
    fit: FitConfig = FitConfig(mode="scratch", steps=1000)
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="number format of the files"
    )
    run: RunConfig = RunConfig()

    @pydantic.model_validator(mode="after")
    def _check_data(self) -> "PretrainConfig":
        for name in _UNREAD:
            value = getattr(self.data, name)
            if value != PretrainData.model_fields[name].default:
                raise ValueError(
                    f"config.data.{name} = {value!r} changes nothing here: bases are trained on "
                    "whole texts without prompts, of any length"
                )
        return self


CONFIG = PretrainConfig
