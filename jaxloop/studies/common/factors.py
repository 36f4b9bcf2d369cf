"""Factors: fields of a config that a study crosses with its ratios and seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from jaxloop.config import ChainSection, DataConfig, FitConfig, SampleConfig, Section, suggestion
from jaxloop.config.annotations import allowed, field_annotation

# Name of a factor -> the section and field whose values it takes.
FACTORS: dict[str, tuple[type[Section], str]] = {
    "dataset": (DataConfig, "source"),
    "bases": (DataConfig, "source"),
    "size": (ChainSection, "size"),
    "share": (ChainSection, "share"),
    "k": (ChainSection, "window"),
    "start": (ChainSection, "start"),
    **{f"fit.{name}": (FitConfig, name) for name in FitConfig.model_fields if name != "lora"},
    **{f"sample.{name}": (SampleConfig, name) for name in SampleConfig.model_fields},
}


def short_name(base: str) -> str:
    """Return the name of a base model as tables and names of chains show it."""
    return base.rstrip("/").split("/")[-1]


def check_factors(factors: Mapping[str, Sequence[Any]], pool: Sequence[str]) -> None:
    """Raise ValueError for a name or a value that `config.chain.factors` must not hold.

    That is: a name that is not in `FACTORS`, an empty list, a value that the field does not allow,
    a value that is given twice, or a base that is not in the pool.
    """
    for name, values in factors.items():
        _check_factor(name, values, pool)


# Factors that change nothing but with this decoder.
_DECODERS = {
    "sample.num_beams": "beam",
    "sample.temperature": "sample",
    "sample.min_p": "sample",
    "sample.top_p": "sample",
    "sample.top_k": "sample",
}


def check_effects(
    factors: Mapping[str, Sequence[Any]], fit: FitConfig, sample: SampleConfig
) -> None:
    """Raise ValueError for a factor that changes nothing: chains that should differ would be alike.

    Args:
        factors: as `config.chain.factors`.
        fit, sample: the sections of the config.
    """
    decoders, decoder = factors.get("sample.decoder"), f"config.sample.decoder = {sample.decoder!r}"
    if decoders is not None:
        decoder = f"config.chain.factors.sample.decoder = {list(decoders)}"
    for name, needed in _DECODERS.items():
        if name in factors and needed not in (decoders or (sample.decoder,)):
            raise ValueError(
                f"config.chain.factors.{name} changes nothing with {decoder}: it needs {needed!r}"
            )
    steps, all_steps = f"config.fit.steps = {fit.steps}", factors.get("fit.steps")
    if all_steps is not None:
        steps = f"config.chain.factors.fit.steps = {list(all_steps)}"
    if "fit.epochs" in factors and None not in (all_steps or (fit.steps,)):
        raise ValueError(
            f"config.chain.factors.fit.epochs changes nothing with {steps}: fit.steps must be none"
        )


def _check_factor(name: str, values: Sequence[Any], pool: Sequence[str]) -> None:
    if name not in FACTORS:
        raise ValueError(
            f"config.chain.factors.{name} is not a factor; {suggestion(name, FACTORS)}"
        )
    section, field = FACTORS[name]
    annotation = field_annotation(section.model_fields[field])
    for value in values:
        if not _is_value(annotation, value):
            raise ValueError(
                f"config.chain.factors.{name} has {value!r}, which is not allowed: "
                f"{allowed(annotation)}"
            )
    if not values or len(set(values)) < len(values):
        raise ValueError(
            f"config.chain.factors.{name} = {list(values)}: must be a list of at least one "
            "value, no value twice"
        )
    unknown = [value for value in values if value not in pool] if name == "bases" else []
    if unknown:
        raise ValueError(
            f"config.chain.factors.bases has {unknown[0]!r}, which is not in config.models.pool; "
            f"{suggestion(unknown[0], pool)}"
        )


def _is_value(annotation: Any, value: Any) -> bool:
    """Whether a field takes a value as it is: factors are used without being converted."""
    try:
        taken = pydantic.TypeAdapter(annotation).validate_python(value, strict=annotation is bool)
    except pydantic.ValidationError:
        return False
    kinds = (int, float) if isinstance(taken, float) else type(taken)
    # True is an int, too; a float of NumPy is a float.
    same = isinstance(value, kinds) and isinstance(value, bool) == isinstance(taken, bool)
    return same and bool(taken == value)
