"""The base class of config sections, and the types of their fields."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Self

import pydantic
from pydantic import Field


@dataclass(frozen=True)
class Rename:
    """The current name of a renamed field whose values changed too.

    Attributes:
        name: the current name.
        values: {old value: current value}; no other old value is allowed.
    """

    name: str
    values: Mapping[Any, Any] = field(default_factory=dict)


class Section(pydantic.BaseModel):
    """Base class: a frozen group of config fields; an unknown name is an error.

    `OLD_NAMES` of a subclass lists the old names of renamed fields, {old: current name}; those of
    its base classes hold too. They are accepted with a warning (see `renames`).
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    OLD_NAMES: ClassVar[Mapping[str, str | Rename]] = {}

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields, checked like all values.

        Fields that were left to their defaults still count as not set (`model_fields_set`).

        Raises:
            ValueError: a value that the field does not allow, or a name that is no field.
        """
        set_here = {name: getattr(self, name) for name in self.model_fields_set}
        try:
            return type(self).model_validate(set_here | changes)
        except pydantic.ValidationError as error:
            problem = error.errors(include_url=False)[0]
            name = ".".join(map(str, problem["loc"]))
            reason = problem["msg"][:1].lower() + problem["msg"][1:]
            value = problem["input"]
        raise ValueError(f"{name}: {value!r} is not allowed; {reason}")


@dataclass(frozen=True)
class FieldNames:
    """Annotates a mapping whose keys are dotted names of fields of the whole config."""


def flatten(value: Any) -> Any:
    """Return nested mappings as one: {"fit.steps": [1, 2]} for {"fit": {"steps": [1, 2]}}.

    Keys of a ConfigDict cannot have dots, so config files nest them.
    """
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= {f"{name}.{inner_name}": v for inner_name, v in flatten(inner).items()}
        else:
            flat[str(name)] = inner
    return flat


def fraction(value: Any) -> Any:
    """Return 0.125 for the text `1/8`, and every other value unchanged."""
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are not numbers")
    return value


Share = Annotated[
    float,
    pydantic.BeforeValidator(fraction),
    pydantic.BeforeValidator(_not_bool),
    Field(ge=0, le=1),
]
Count = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=1)]
Whole = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=0)]
# The largest seed that every generator of random numbers here takes: those of scikit-learn and
# pandas stop at 32 bits.
Seed = Annotated[int, pydantic.BeforeValidator(_not_bool), Field(ge=0, le=2**32 - 1)]
Positive = Annotated[float, pydantic.BeforeValidator(_not_bool), Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[
    float, pydantic.BeforeValidator(_not_bool), Field(ge=0, allow_inf_nan=False)
]
Probability = Annotated[float, pydantic.BeforeValidator(_not_bool), Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
# Values of several fields, {dotted name of a field: its values}.
Factors = Annotated[dict[str, tuple[Any, ...]], pydantic.BeforeValidator(flatten), FieldNames()]
