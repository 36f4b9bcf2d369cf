"""What a call of `generate` needs beside a config's `sample` section."""

from dataclasses import dataclass

from jaxloop.config.sections import LoraConfig


@dataclass(frozen=True)
class GenerateOptions:
    """How texts are generated, for what a config's `sample` section does not say.

    Only `lora` changes which texts are drawn. The other fields change speed, memory and rounding.

    Attributes:
        lora: settings of adapters that are plain pytrees, as checkpoints hold them; an `Adapter`
            has its own.
        dtype: "float32" or "bfloat16", for adapters and for full weights of a chain.
        window: steps between two assignments of jobs to adapter groups, at least 1; None: planned.
        concurrent_programs: programs that run at the same time on one device, each with its own
            slots; None: one for every core of a CPU, at most 8, and 1 elsewhere.
        prompt_len: tokens that prompts are padded to; None: the smallest bucket that holds them.
    """

    lora: LoraConfig = LoraConfig()
    dtype: str = "float32"
    window: int | None = None
    concurrent_programs: int | None = None
    prompt_len: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(
                f"dtype: {self.dtype!r} is not allowed; choose one of float32, bfloat16"
            )
        for name in ("window", "concurrent_programs", "prompt_len"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not allowed; at least 1")
