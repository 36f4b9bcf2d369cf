"""What a chain study stands on, read and checked before anything is compiled or written: data,
models, chains, the driver's settings.
"""

import pathlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxloop.studies.chain import data as chain_data
from jaxloop.studies.common import run as running

if TYPE_CHECKING:
    from jaxloop.studies.chain.run import Settings

# Workflows whose new items are a mixture of synthetic and fresh human text.
MIXED = ("fresh_human", "window", "external")


class Prepared(NamedTuple):
    """Everything that can be refused, read and checked; nothing compiled or written.

    data: name -> recursion Dataset; heldout: name -> human texts that no chain trains on; human:
    name -> human texts that are measured like a generation; found: lines about the data; models:
    name -> (spec, tokenizer); heldout_prompts: name -> the prompt of each held-out text.
    """

    chains: list
    data: dict
    heldout: dict[str, list[str]]
    human: dict[str, list[str]]
    found: list[tuple[str, str]]
    models: dict[str, tuple]
    driver: Any
    heldout_prompts: dict[str, list[str]]


def prepare(settings: "Settings", *, here: bool = True) -> Prepared:
    """Reads the data and the models' descriptions. Raises ValueError, one sentence, for anything
    with which a run could not succeed; unless it is to run `here`, this machine's devices do not
    count.
    """
    from jaxloop.recursion import driver
    from jaxloop.runtime.devices import select_devices
    from jaxloop.studies.chain import measure

    measure.check(settings)
    if here:
        select_devices(settings.run.platform, settings.run.devices)
    models = {name: _describe(settings, name) for name in settings.models.pool}
    _check_models(settings, models)
    if here:
        check_memory(settings, models)
    data, heldout, human, prompts, found = {}, {}, {}, {}, []
    sources = settings.chain.factors.get("dataset", (settings.data.source,))
    for name, source in zip(_names(sources), sources, strict=True):
        data[name], heldout[name], human[name], prompts[name], line = chain_data.read(
            settings, source, models
        )
        found.append((name, line))
    if settings.chain.workflow == "external":
        data["external"], *_, line = chain_data.read(
            settings, settings.chain.external, models, whole=True
        )
        found.append(("external", line))
    chains = _chains(settings, dict(zip(sources, _names(sources), strict=True)))
    common = driver.Settings(
        settings.chain.generations, *family_settings(settings), evaluate=settings.chain.eval_texts, keep=settings.run.keep, free=("fit.chains_at_once",),
        measure_beside=running.measures_beside(settings.run),
    )  # fmt: skip
    driver.check(chains, data, common)
    return Prepared(chains, data, heldout, human, found, models, common, prompts)


def _names(sources: Sequence[str]) -> list[str]:
    """Short names of data sets: of a corpus its own, the stem of a file, the id of a hub data set;
    numbered where two would be the same.
    """
    short = [
        pathlib.Path(s).stem if pathlib.Path(s).suffix else s.removeprefix("jaxloop:")
        for s in sources
    ]
    return [name if short.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(short)]


def model_path(name: str) -> str:
    """Where a model of the pool lies: names under jaxloop/assets/bases/ are found wherever the
    package is installed.
    """
    inside = "jaxloop/assets/bases/"
    if name.startswith(inside) and not pathlib.Path(name).is_dir():
        return str(
            pathlib.Path(__file__).parents[2] / "assets" / "bases" / name.removeprefix(inside)
        )
    return name


def device_name() -> str:
    """The devices of this process in words."""
    from jaxloop.runtime.environment import devices

    return devices()


def _revision(settings: "Settings", name: str) -> str | None:
    return dict(zip(settings.models.pool, settings.models.revisions, strict=False)).get(name)


def load_model(settings: "Settings", name: str):
    """A base model on every device that this process may use: chains are shared out over them, or,
    with `run.cut_base`, it is itself.
    """
    from jaxloop.lm import family

    where = dict(devices=my_devices(settings), whole=not settings.run.cut_base)
    return family.load(
        model_path(name), revision=_revision(settings, name), dtype=settings.models.dtype, **where
    )


def my_devices(settings: "Settings") -> list:
    """The devices of this process that the run may use."""
    import jax

    from jaxloop.runtime.devices import select_devices

    return [
        d
        for d in select_devices(settings.run.platform, settings.run.devices)
        if d.process_index == jax.process_index()
    ]


def trains_adapters(settings: "Settings") -> bool:
    """Whether the chains of a config train adapters beside a frozen base."""
    return settings.fit.mode == "lora" and settings.chain.start != "scratch"


def sizes(fit, spec):
    """`lm.model.sizes.Sizes` of a model with the adapters of a `fit` section."""
    from jaxloop.lm import Lora
    from jaxloop.lm.model.sizes import sizes_of

    return sizes_of(spec, Lora(**fit.lora.model_dump()))


def width(dtype: str) -> int:
    """Bytes of a number of a config's dtype."""
    return {"bfloat16": 2, "float32": 4}[dtype]


def training_bytes(fit, dtype: str, spec, together: int, *, frozen: bool) -> float:
    """Bytes of the program that trains `together` chains of a model kept in `dtype`, by a `fit`
    section.
    """
    from jaxloop.runtime import roofline

    common = dict(base_width=width(dtype), frozen=frozen, width=width(fit.dtype), remat=fit.remat)
    return roofline.training_memory(
        sizes(fit, spec), together, fit.batch_size, fit.max_length, **common
    )


def check_memory(settings: "Settings", models: Mapping[str, tuple]) -> None:
    """Refuses a base with which not even one chain fits a device, with the bytes that are missing
    and what to change.
    """
    from jaxloop.lm.sharding import device_bytes
    from jaxloop.runtime.atomic_io import human_size

    devices = my_devices(settings)
    there = min(map(device_bytes, devices))
    for name, (spec, _) in models.items():
        needed = training_bytes(
            settings.fit, settings.models.dtype, spec, 1, frozen=trains_adapters(settings)
        )
        needed /= len(devices) if settings.run.cut_base else 1
        if needed > there:
            missing = (
                f"{human_size(needed)} of {human_size(there)} on a device, "
                f"{human_size(needed - there)} too many"
            )
            hint = (
                "lower config.fit.batch_size or config.fit.max_length, or set "
                "config.fit.remat=true or config.run.cut_base=true"
            )
            raise ValueError(f"config.models.pool: one chain of {name} needs {missing}; {hint}")


def _describe(settings: "Settings", name: str) -> tuple:
    """(spec, tokenizer) of a model, its weights unread."""
    from jaxloop.lm.io import huggingface

    return huggingface.describe(huggingface.locate(model_path(name), _revision(settings, name)))


def _check_models(settings: "Settings", models: Mapping[str, tuple]) -> None:
    from jaxloop.lm import Lora
    from jaxloop.lm.generation.prompt import render
    from jaxloop.lm.model import lora as adapters

    for name, (spec, tokenizer) in models.items():
        if settings.fit.mode == "lora":
            adapters.target_names(spec, Lora(**settings.fit.lora.model_dump()))
        prompt = len(tokenizer.encode([render(settings.data.instruction)])[0])
        for field, needed, what in (
            (
                "config.sample.max_new_tokens",
                prompt + settings.sample.max_new_tokens,
                f"prompt of {prompt} and text of {settings.sample.max_new_tokens}",
            ),
            ("config.fit.max_length", settings.fit.max_length, "training text"),
        ):
            if needed > spec.context:
                raise ValueError(
                    f"{field}: {what} tokens do not fit the context of {name}, which is "
                    f"{spec.context} tokens"
                )
        if settings.fit.max_length <= prompt:
            raise ValueError(
                f"config.fit.max_length = {settings.fit.max_length} leaves no room for text "
                f"after the prompt of {prompt} tokens of {name}"
            )


def _chains(settings: "Settings", names: Mapping[str, str]) -> list:
    """One ChainSpec per combination of the factors."""
    from jaxloop.recursion.chains import product

    c = settings.chain
    factors: dict[str, Sequence] = {"dataset": tuple(names.values())}
    if c.workflow in MIXED:
        factors["ratio"] = c.ratios
    factors["seed"] = c.seeds
    factors |= {
        name: tuple(_value(name, v) for v in values)
        for name, values in c.factors.items()
        if name != "dataset"
    }
    common: dict[str, Any] = {
        "workflow": c.workflow,
        "size": c.size,
        "start": c.start,
        "bases": settings.models.pool,
    }
    common |= {"share": c.share} if c.workflow in ("preserve", "external") else {}
    common |= {"k": c.window} if c.workflow == "window" else {}
    common |= {"initial": c.first_size} if c.first_size else {}
    common |= {"external": "external"} if c.workflow == "external" else {}
    return product(
        factors, **{name: value for name, value in common.items() if name not in factors}
    )


def _value(name: str, value: Any) -> Any:
    """A factor's value as the family's settings have it."""
    section, _, field = name.partition(".")
    return _plain({field: value})[field] if section in ("fit", "sample") else value


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of ours in the family's terms: no clipping is 0."""
    return fields | {name: 0.0 for name in ("clip",) if name in fields and fields[name] is None}


def family_settings(settings: "Settings") -> tuple:
    """The family's FitSettings and SampleSettings."""
    from jaxloop.lm import Lora, family

    fit = _plain(settings.fit.model_dump(exclude={"lora"}))
    if fit["epochs"] is None:
        del fit["epochs"]
    if settings.run.micro_batch is not None:
        fit["chains_at_once"] = settings.run.micro_batch
    lora = Lora(**settings.fit.lora.model_dump())
    sample = {
        name: 0 if value is None else value for name, value in settings.sample.model_dump().items()
    }
    sample |= {"dtype": settings.fit.dtype, "lora": lora}
    return family.FitSettings(lora=lora, **fit), family.SampleSettings(**sample)


def family(settings: "Settings") -> SimpleNamespace:
    """The language-model family, its models loaded as the config says."""
    from jaxloop.lm import family

    names = ("FitTask", "fit", "SampleTask", "sample")
    return SimpleNamespace(
        load=lambda name: load_model(settings, name),
        **{name: getattr(family, name) for name in names},
    )
