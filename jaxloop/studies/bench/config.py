"""The config of a benchmark."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jaxloop.config import Count, Section, Seed, Text


class BenchConfig(Section):
    """The config of a benchmark."""

    OLD_NAMES: ClassVar = {"lane_slots": "slots_per_adapter"}

    study: Literal["bench"] = Field("bench", description="which study this is a config of")
    what: Literal["train", "decode", "chains"] = Field("train", description="what is timed")
    size: Literal["tiny", "small", "15m", "60m", "124m", "llama-1b"] = Field(
        "small",
        description="model: 3 M, 15 M or 60 M parameters and vocabulary 4,096, the shapes of GPT-2 "
        "(124 M) or of Llama-3.2-1B, or a smoke test",
    )
    vocab: Count | None = Field(None, description="size of the vocabulary (none: the model's)")
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="number format of the base and the computation"
    )
    chains: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        (1, 16), description="numbers of chains to time"
    )
    batch_size: Count = Field(16, description="train: rows per chain and step")
    length: Count = Field(64, description="train: tokens per row")
    steps: Count = Field(8, description="train: steps per dispatch")
    together: Count | None = Field(
        None,
        description="train: chains of a program that are vmapped, a divisor of `chains`; the "
        "others take their turn (none: one on a CPU, else all)",
    )
    texts: Count = Field(1024, description="decode: texts to write, in all")
    slots: Count = Field(64, description="decode: texts written at the same time")
    devices: Count = Field(
        1,
        description="decode: devices that share the texts; each has its own slots and as many "
        "chains as are timed",
    )
    programs: Count | None = Field(
        None,
        description="programs at the same time on one device, each with its own slots (none: as "
        "studies write) or, train, its own chains (none: one)",
    )
    engine: Literal["auto", "rows", "blocks"] = Field(
        "auto", description="decode: where caches lie, as in a study's `sample.engine`"
    )
    products: bool = Field(
        True,
        description="decode: gate and up in one kernel with adapters, on a GPU where it works",
    )
    slots_per_adapter: Count = Field(
        8, description="decode: slots of an adapter group, where there are several chains"
    )
    window: Count | None = Field(
        None, description="decode: steps of a window (none: as studies have)"
    )
    prompt: Count = Field(17, description="decode: tokens of the prompt")
    mean_length: Count = Field(
        60, description="decode: mean length of the log-normal mix of lengths"
    )
    longest: Count = Field(300, description="decode: longest text")
    rank: Count = Field(16, description="rank of the adapters, on every projection")
    remat: bool = Field(False, description="train: compute activations again in the gradient")
    peer: bool = Field(False, description="time torch (transformers, peft) in turn with ours")
    peer_texts: Count = Field(192, description="decode: texts that the peer writes")
    peer_batches: tuple[Count, ...] = Field(
        (64,), description="decode: batch sizes of the peer; its best counts"
    )
    repeats: Count = Field(5, description="timed repeats")
    seed: Seed = Field(0, description="of weights, tokens and lengths")
    profile: Text | None = Field(None, description="folder for a trace of one repeat")


CONFIG = BenchConfig
