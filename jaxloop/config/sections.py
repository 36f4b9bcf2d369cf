"""Sections that several studies share; defaults follow the released code of arXiv 2504.03814."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from jaxloop.config.types import (
    Count,
    Factors,
    NonNegative,
    Positive,
    Probability,
    Rename,
    Section,
    Seed,
    Share,
    Text,
    Whole,
)

# Of every section that names files.
CsvOptions = tuple[
    Literal["no_header", "quotes", "no_quotes", "backslash", "spaces", "short_rows"], ...
]
DELIMITER = Field(
    None,
    description="what parts the cells of a .csv or .tsv file; none: the one that fits, else "
    "comma or tab",
)
CSV_OPTIONS = Field(
    (),
    description="of .csv and .tsv files; a refusal names the one that reads what it found, see "
    "data/dialect.py",
)


class DataConfig(Section):
    """Where human text comes from."""

    source: Text = Field(
        "docs",
        description="`docs` or `jaxloop:NAME` (in the box), a .jsonl, .json, .csv, .tsv, "
        ".parquet or .txt file (also compressed), a folder of files of one kind, or a Hugging Face "
        "dataset id",
    )
    text_column: Text = Field(
        "text",
        description="column that holds the text, dotted where nested; the default also finds "
        "`messages`, and `prompt` with `completion`",
    )
    domain_column: Text | None = Field(
        None,
        description="column that holds the domain; none: the source is one domain (`docs`: the "
        "library)",
    )
    domains: tuple[Text, ...] = Field(
        (),
        description="keep only these domains; empty: all (`docs`: the libraries that the tiny "
        "bases never saw)",
    )
    prompt_column: Text | None = Field(
        None,
        description="column that holds the instruction of a text; none: `instruction` is "
        "everyone's",
    )
    instruction: Text = Field("Write a paragraph.", description="the instruction of every prompt")
    delimiter: Text | None = DELIMITER
    csv_options: CsvOptions = CSV_OPTIONS
    duplicates: Literal["drop", "keep"] = Field(
        "drop",
        description="texts equal but for case, spaces and punctuation: keep the first, or all; "
        "none is ever both held out and trained on",
    )
    long_prompts: Literal["refuse", "drop", "truncate_left"] = Field(
        "refuse",
        description="prompts that leave no token of the answer to learn, or no room to write it: "
        "refused, dropped, or cut from the left",
    )
    name: Text | None = Field(None, description="configuration of a Hugging Face dataset")
    split: Text = Field("train", description="split of a Hugging Face dataset")
    revision: Text | None = Field(None, description="commit of a Hugging Face dataset")
    limit: Count | None = Field(
        None, description="stop reading after this many usable texts; none: read all"
    )
    min_tokens: Whole = Field(
        20,
        description="drop texts with this many tokens or fewer, as the first model of the pool "
        "counts them",
    )
    max_tokens: Count = Field(200, description="drop texts with this many tokens or more")


class ModelsConfig(Section):
    """The base models; every generation of a chain draws one of them, by its seed."""

    pool: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        ("jaxloop/assets/bases/llama_longer",),
        description="directories in Hugging Face format or hub ids",
    )
    revisions: tuple[Text | None, ...] = Field(
        (), description="one hub revision per model of the pool; empty: the latest"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the base weights"
    )


class ChainSection(Section):
    """What a chain is, and which chains the study consists of: every ratio with every seed."""

    generations: Count = Field(
        20, description="number of generations, generation 0 (human text only) included"
    )
    size: Count = Field(
        4000,
        description="texts added per generation, human and synthetic; also the size of a training "
        "set, but of `accumulate` (all so far), `preserve` (more by `share`) and `window` "
        "(`window` times as many)",
    )
    first_size: Count | None = Field(
        None, description="human texts that generation 0 trains on; none: `size`"
    )
    ratios: Annotated[tuple[Share, ...], Field(min_length=1)] = Field(
        (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0),
        description="synthetic share of what a generation adds (`external`: of what it adds beside "
        "the outside source); `1/8` is understood; of no effect under `replace`, `accumulate`, "
        "`accumulate_subsample` and `preserve`",
    )
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        (0, 1, 2, 3, 4), description="one chain per ratio and seed"
    )
    workflow: Literal[
        "fresh_human",
        "replace",
        "accumulate",
        "accumulate_subsample",
        "preserve",
        "window",
        "external",
    ] = Field("fresh_human", description="what a generation trains on; see recursion/workflow.py")
    share: Share = Field(
        0.1,
        description="workflow `preserve`: human texts of generation 0 that a training set has "
        "beside `size` synthetic ones, as a share of `size`; workflow `external`: share of the "
        "outside source in what a generation adds",
    )
    window: Count = Field(1, description="generations that workflow `window` looks back")
    external: Text | None = Field(
        None, description="file of synthetic texts for workflow `external`"
    )
    start: Literal["base", "previous", "scratch"] = Field(
        "base", description="weights that a generation starts from"
    )
    start_adapter: Text | None = Field(
        None,
        description="directory of a peft adapter from which generations of `start = base` start, "
        "and generation 0 of `start = previous`; its rank, alpha and targets are then those of "
        "`fit.lora`; none: a fresh adapter",
    )
    factors: Factors = Field(
        {},
        description="further factors, name -> values, crossed with ratios and seeds: `dataset` "
        "(sources), `bases` (models of the pool, each alone), "
        "`size`, `share`, `k` (`window`), `start`, and fields of `fit` and `sample`, as in "
        "`--config.chain.factors.sample.temperature=1,1.5`",
    )
    eval_texts: Count = Field(250, description="texts of every generation that are measured")
    heldout_texts: Whole = Field(
        250,
        description="human texts, used by no chain, on which every generation's loss is "
        "measured; 0: none",
    )


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: Count = Field(16, description="rank of every adapter")
    alpha: Positive = Field(
        16.0, description="scale: the adapter's output is multiplied by alpha / rank"
    )
    targets: Text | tuple[Text, ...] = Field(
        "all-linear", description="`all-linear`, or names of projections"
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="dropout of the input of every adapter, drawn for each by itself, as peft"
    )

    @property
    def scale(self) -> float:
        """Return what the adapter's output is multiplied by."""
        return self.alpha / self.rank


class FitConfig(Section):
    """How a generation is trained."""

    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {
        "clip": "max_grad_norm",
        "length_classes": "length_buckets",
        "loss_on": Rename("completion_only", {"response": True, "all": False}),
    }

    mode: Literal["lora", "full", "scratch"] = Field(
        "lora", description="adapters, all weights, or all weights from random ones"
    )
    lora: LoraConfig = Field(LoraConfig(), description="see below")
    steps: Count | None = Field(
        None, description="optimiser steps per generation; none: `epochs` decides"
    )
    epochs: Positive | None = Field(
        1.0, description="passes over the training set, where `steps` is none"
    )
    batch_size: Count = Field(16, description="texts per step and chain")
    learning_rate: Positive = Field(2e-4, description="peak learning rate of AdamW")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="how the learning rate falls to 0 after warm-up"
    )
    warmup_steps: Whole = Field(1, description="steps of linear warm-up")
    weight_decay: NonNegative = Field(0.01, description="AdamW's weight decay")
    max_grad_norm: Positive | None = Field(
        1.0, description="largest gradient norm, per chain; none: no clipping"
    )
    max_length: Count = Field(
        256, description="tokens per training text, prompt included; longer ones are cut"
    )
    completion_only: bool = Field(
        True, description="count the loss on a text alone; false: on its prompt too"
    )
    length_buckets: Count = Field(
        4,
        description="padded lengths in one epoch, each compiled once: more of them waste less "
        "padding; 1 or 2: of powers of two and `max_length`, so that later generations have the "
        "same",
    )
    dropout: Literal["auto", "model", "none"] = Field(
        "auto",
        description="dropout of the model's own layers, at the rates of its config.json: `auto`, "
        "in modes full and scratch; `model`, below adapters too; `none`",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="number format of the computation; below adapters the base is computed in its "
        "own, `models.dtype`, which must not be narrower",
    )
    remat: bool = Field(
        False, description="compute activations again in the backward pass: less memory, more time"
    )


class SampleConfig(Section):
    """How a generation writes."""

    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {
        "beams": "num_beams",
        "lane_slots": "slots_per_adapter",
    }

    decoder: Literal["sample", "greedy", "beam"] = Field(
        "sample", description="random sampling, greedy, or beam search"
    )
    temperature: Positive = Field(1.5, description="applied before min_p")
    min_p: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="drop tokens below this share of the likeliest one's probability"
    )
    top_p: Probability = Field(
        1.0, description="keep the likeliest tokens of this total probability"
    )
    top_k: Whole = Field(0, description="keep this many tokens; 0: all")
    repetition_penalty: Positive = Field(
        1.0, description="above 1: tokens already written become less likely"
    )
    num_beams: Count = Field(4, description="beams of decoder `beam`")
    max_new_tokens: Count = Field(300, description="longest text, in tokens")
    engine: Literal["auto", "rows", "blocks"] = Field(
        "auto",
        description="where caches lie: `rows` (one for each slot, accelerators), `blocks` (CPUs)",
    )
    slots: Count | None = Field(
        None,
        description="texts written at the same time per program; none: planned from the device "
        "and the work",
    )
    slots_per_adapter: Count | None = Field(
        None, description="slots that share one chain's adapter; none: planned"
    )
    texts_per_call: Count | None = Field(
        None, description="most texts in one call of the decoding program; none: planned"
    )
    chains_per_call: Count | None = Field(
        None, description="most chains in one call of the decoding program; none: planned"
    )


class RunConfig(Section):
    """Where and how it runs; nothing here changes a result beyond rounding."""

    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {
        "cut_base": "shard_base",
        "micro_batch": "chains_per_program",
        "measure_beside": "overlap_eval",
    }

    platform: Literal["auto", "cpu", "gpu", "tpu"] = Field(
        "auto", description="`gpu` and `tpu` are refused where absent"
    )
    devices: Count | None = Field(None, description="devices to use; none: all")
    chains_per_program: Count | None = Field(
        None,
        description="chains in one program per device; none: as many as fit an accelerator, or "
        "measured on a CPU where that is worth it",
    )
    chains_per_call: Count | None = Field(
        None,
        description="chains of one model that are trained, or write, in one call, after which a "
        "signal is obeyed; none: as many as take five minutes by the measured rate",
    )
    shard_base: bool = Field(
        False,
        description="shard the base over all devices instead of distributing the chains: for bases "
        "larger than a device",
    )
    overlap_eval: bool | None = Field(
        None, description="measure models while the next ones are trained; none: on a CPU"
    )
    keep_compiled: bool = Field(
        True,
        description="keep compiled programs in the cache folder (~/.cache/jaxloop, "
        "$JAXLOOP_CACHE) for the next run",
    )
    keep: Count | None = Field(
        2, description="newest generations whose adapters stay on disk; none: all"
    )
    silence_seconds: Positive = Field(
        60.0,
        description="with several processes: after this time without a sign of life one counts as "
        "gone, and the others leave with exit code 6",
    )
    notice_seconds: Positive | None = Field(
        None,
        description="seconds from SIGTERM to the kill: the process leaves 5 s before they end, "
        "with the step that is running or without it; none: 30 in an object store or with several "
        "processes, else it waits for the step",
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        (),
        description="where the values and some texts of every generation are sent too; each needs "
        "its extra (`pip install 'jaxloop-lm[tensorboard]'`)",
    )

    @pydantic.model_validator(mode="after")
    def _apart(self) -> "RunConfig":
        if self.overlap_eval and self.shard_base:
            raise ValueError(
                "config.run.overlap_eval = true with config.run.shard_base = true: programs on a "
                "sharded base run one after another"
            )
        return self
