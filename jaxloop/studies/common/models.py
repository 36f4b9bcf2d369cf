"""The base models of a study: where they are, whether they fit, and the family that trains them.

Every function takes sections of a config, never a whole config.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxloop.config import FitConfig, ModelsConfig, RunConfig, SampleConfig
from jaxloop.lm import Model, sharding
from jaxloop.lm import family as lm
from jaxloop.lm.family import GenerateOptions, LanguageModelFamily, TrainOptions
from jaxloop.lm.generation.beam import check_beams
from jaxloop.lm.generation.prompt import render
from jaxloop.lm.io import config_json, huggingface, tokenizer_files
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig, count_parameters
from jaxloop.lm.model.lora import Adapter, target_names
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.runtime import roofline
from jaxloop.runtime.atomic_io import human_size
from jaxloop.runtime.devices import select_devices
from jaxloop.runtime.problems import named
from jaxloop.runtime.user_path import user_path
from jaxloop.studies.common import published_models

_ASSETS = Path(__file__).parents[2] / "assets" / "bases"
_INSIDE = "jaxloop/assets/bases/"


class BaseModel(NamedTuple):
    """A model's shapes and its tokenizer, without its weights."""

    config: ModelConfig
    tokenizer: Tokenizer


def model_path(name: str) -> str:
    """Return the path or hub id of a model.

    Names under jaxloop/assets/bases/ become paths into the installed package.
    """
    if name.startswith(_INSIDE) and not Path(name).is_dir():
        return str(_ASSETS / name.removeprefix(_INSIDE))
    return name


def is_shipped(path: Path) -> bool:
    """Return whether a model's directory is one of those that come with jaxloop."""
    return path.resolve().is_relative_to(_ASSETS.resolve())


def revision_of(models: ModelsConfig, name: str) -> str | None:
    """Return the hub revision that a config gives a model of its pool."""
    return dict(zip(models.pool, models.revisions, strict=False)).get(name)


def describe(models: ModelsConfig, name: str) -> BaseModel:
    """Read a model's config.json and tokenizer. Raises ValueError where a run could not load it."""
    path = huggingface.locate(model_path(name), revision_of(models, name))
    return BaseModel(*huggingface.describe(path))


def model_shapes(models: ModelsConfig, name: str) -> tuple[ModelConfig, Tokenizer | None]:
    """Return a model's shapes, and its tokenizer if all of its files are on this machine.

    The shapes come from its directory (config.json is enough), from `published_models`, or from
    the hub's cache. Raises ValueError where none of them has the model.
    """
    path = user_path(model_path(name))
    published = published_models.by_hub_id(name)
    if not path.is_dir() and published is not None:
        return config_json.parse_config(published), None
    path = huggingface.locate(str(path), revision_of(models, name))
    if any(path.glob("*.safetensors")) and tokenizer_files.is_there(path):
        return huggingface.describe(path)
    return huggingface.read_model_config(path), None


def my_devices(run: RunConfig) -> list[jax.Device]:
    """Return the devices of this process that the run may use."""
    devices = select_devices(run.platform, run.devices)
    return [device for device in devices if device.process_index == jax.process_index()]


def load_model(models: ModelsConfig, run: RunConfig, name: str) -> Model:
    """Load a base model on every device that this process may use.

    Each device holds the whole model and trains some of the chains; with `run.shard_base` the
    model is sharded over the devices.
    """
    return lm.load(
        model_path(name),
        revision=revision_of(models, name),
        dtype=models.dtype,
        devices=my_devices(run),
        shard_base=run.shard_base,
    )


def trains_adapters(fit: FitConfig, start: str) -> bool:
    """Return whether chains train adapters on a frozen base; start: as `config.chain.start`."""
    return fit.mode == "lora" and start != "scratch"


def sizes(fit: FitConfig, config: ModelConfig) -> roofline.Sizes:
    """Count the weights of a model, with the adapters that a `fit` section asks for."""
    return sizes_of(config, fit.lora)


def dtype_bytes(dtype: str) -> int:
    """Return the bytes of one number of a dtype that a config names."""
    return {"bfloat16": 2, "float32": 4}[dtype]


def training_bytes(
    fit: FitConfig, dtype: str, config: ModelConfig, chains: int, *, frozen: bool
) -> float:
    """Estimate the bytes of the program that trains `chains` chains of a model kept in `dtype`."""
    return roofline.training_memory(
        sizes(fit, config),
        chains,
        fit.batch_size,
        fit.max_length,
        base_width=dtype_bytes(dtype),
        frozen=frozen,
        width=dtype_bytes(fit.dtype),
        remat=fit.remat,
    )


def check_memory(
    bases: Mapping[str, BaseModel],
    models: ModelsConfig,
    fit: FitConfig,
    run: RunConfig,
    *,
    frozen: bool,
) -> None:
    """Raise ValueError for a base of which not even one chain fits into a device's memory.

    The message says how many bytes are missing and what to change.
    """
    devices = my_devices(run)
    available = min(map(sharding.device_bytes, devices))
    for name, base in bases.items():
        needed = training_bytes(fit, models.dtype, base.config, 1, frozen=frozen)
        needed /= len(devices) if run.shard_base else 1
        if needed > available:
            raise ValueError(
                f"config.models.pool: one chain of {name} needs {human_size(needed)} of "
                f"{human_size(available)} on a device, {human_size(needed - available)} too many; "
                "lower config.fit.batch_size or config.fit.max_length, or set "
                "config.fit.remat=true or config.run.shard_base=true"
            )


def variants(
    fit: FitConfig, sample: SampleConfig, factors: Mapping[str, Sequence[Any]]
) -> list[tuple[FitConfig, SampleConfig]]:
    """Return the settings of every chain, as `config.chain.factors` crosses their fields."""
    names = [name for name in factors if name.startswith(("fit.", "sample."))]
    pairs = []
    for values in itertools.product(*(factors[name] for name in names)):
        changes: dict[str, dict[str, Any]] = {"fit": {}, "sample": {}}
        for name, value in zip(names, values, strict=True):
            section, field = name.split(".")
            changes[section][field] = value
        pairs.append((fit.replace(**changes["fit"]), sample.replace(**changes["sample"])))
    return pairs


def check_lengths(
    bases: Mapping[str, BaseModel], fit: FitConfig, sample: SampleConfig, instruction: str
) -> None:
    """Raise ValueError for a base that cannot take the lengths, adapters or beams of the config.

    Its context must hold the prompt with the text that is generated after it, and a training text;
    with LoRA it must have the projections that are to be adapted, with beam search a vocabulary of
    twice the beams.
    """
    for name, (config, tokenizer) in bases.items():
        if fit.mode == "lora":
            target_names(config, fit.lora)
        if sample.decoder == "beam":
            with named("config.sample"):
                check_beams(config, sample.num_beams)
        prompt = len(tokenizer.encode([render(instruction)])[0])
        if prompt + sample.max_new_tokens > config.max_seq_len:
            raise ValueError(
                f"config.sample.max_new_tokens: prompt of {prompt} and text of "
                f"{sample.max_new_tokens} tokens do not fit the context of {name}, which is "
                f"{config.max_seq_len} tokens"
            )
        if fit.max_length > config.max_seq_len:
            raise ValueError(
                f"config.fit.max_length: training text tokens do not fit the context of {name}, "
                f"which is {config.max_seq_len} tokens"
            )
        if fit.max_length <= prompt:
            raise ValueError(
                f"config.fit.max_length = {fit.max_length} leaves no room for text "
                f"after the prompt of {prompt} tokens of {name}"
            )


def model_line(name: str, config: ModelConfig) -> str:
    """Return a line about a model: its architecture and the number of its parameters."""
    return f"model {name}: {config.architecture}, {count_parameters(config):,} parameters"


# ---- the family


def train_options(run: RunConfig) -> TrainOptions:
    """Return the options of training that the `run` section of a config sets."""
    return TrainOptions(chains_per_program=run.chains_per_program)


def generate_options(fit: FitConfig) -> GenerateOptions:
    """Return the options of generating with models that a `fit` section trained."""
    return GenerateOptions(lora=fit.lora, dtype=fit.dtype)


def family(
    models: ModelsConfig, fit: FitConfig, run: RunConfig, start: Adapter | None = None
) -> LanguageModelFamily:
    """Return the language-model family, its models loaded as the config says.

    start: as `LanguageModelFamily` takes it (see `start_adapter`).
    """
    return LanguageModelFamily(
        start=start,
        load=functools.partial(load_model, models, run),
        train_options=train_options(run),
        generate_options=generate_options(fit),
    )


def one_token(texts: Sequence[str]) -> list[int]:
    """Return 1 for each text: stands in for the counts of a tokenizer that cannot be read, where
    only what is wrong with the data is to be said.
    """
    return [1] * len(texts)
