"""The language-model family: many chains of one base at once, as `recursion.family.Family` asks.

Weights of a chain are plain pytrees without a chain axis: an adapter ({target: {"a", "b"}}) or, in
modes "full" and "scratch", all weights. What a chain gets back depends on its own task alone as
long as the compiled shapes are the same; these come from the settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.config.sections import FitConfig, SampleConfig
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.scheduler import generate
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.huggingface import load as load_model
from jaxloop.lm.model.lora import Adapter
from jaxloop.lm.sharding import replicate, shard
from jaxloop.lm.training.evaluate import LossResult, LossTask, loss, params_of
from jaxloop.lm.training.fit import fit
from jaxloop.lm.training.step import TrainOptions
from jaxloop.recursion.family import FitResult, FitTask, GenerateResult, GenerateTask
from jaxloop.runtime.log import LOGGER

__all__ = [
    "FitResult",
    "FitTask",
    "GenerateOptions",
    "GenerateResult",
    "GenerateTask",
    "LanguageModelFamily",
    "LossResult",
    "LossTask",
    "TrainOptions",
    "fit",
    "generate",
    "load",
    "loss",
    "params_of",
]


@dataclass(frozen=True)
class LanguageModelFamily:
    """Language models as a `recursion.family.Family`, which the generation loop can train.

    Its settings are the `fit` and `sample` sections of a config.

    Attributes:
        load: returns the base model of a name or path.
        train_options: what every fit needs beside the section `fit`.
        generate_options: what every generation of texts needs beside the section `sample`.
        start: the adapter that a task without weights to go on from starts from; None: a fresh one.
    """

    load: Callable[[str], Model]
    train_options: TrainOptions = TrainOptions()
    generate_options: GenerateOptions = GenerateOptions()
    start: Adapter | None = None

    def fit(
        self, model: Model, tasks: Sequence[FitTask], settings: FitConfig, /
    ) -> list[FitResult]:
        """Train one model per task."""
        if self.start is not None:
            tasks = [
                task if task.start is not None else task._replace(start=self.start)
                for task in tasks
            ]
        return fit(model, tasks, settings, self.train_options)

    def generate(
        self, model: Model, tasks: Sequence[GenerateTask], settings: SampleConfig, /
    ) -> list[GenerateResult]:
        """Generate the texts of every task."""
        return generate(model, tasks, settings, self.generate_options)


def load(
    base: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
    shard_base: bool = False,
) -> Model:
    """Load a base model from a directory or from the hub.

    Args:
        base: directory in Hugging Face format, or hub id.
        revision: branch, tag or commit of the hub id.
        dtype: dtype of the weights, such as "bfloat16".
        devices: devices that hold the model; None: one. Each of several holds a whole copy, and
            chains are shared out over them.
        shard_base: shard one copy over the devices instead, for a base that fits no single one.
    """
    model = load_model(base, revision=revision, dtype=jnp.dtype(dtype))
    if model.tokenizer.other_ends:
        LOGGER.info("%s: %s", base, model.tokenizer.describe_ends())
    if shard_base and devices is not None and len(devices) > 1:
        return shard(model, devices)
    return replicate(model, devices)
