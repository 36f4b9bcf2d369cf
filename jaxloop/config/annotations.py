"""Reads the type annotations of config fields: unions, sections, allowed values."""

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic.fields import FieldInfo

from jaxloop.config.types import Section


def section_of(annotation: Any) -> type[Section] | None:
    """Return the section class that a field of this type holds, or None."""
    for option in options(annotation):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def options(annotation: Any) -> list[Any]:
    """Return the members of a union, or [annotation] if it is not a union.

    An `Annotated` around the union is removed, one around a member is kept.
    """
    if typing.get_origin(annotation) is Annotated and _is_union(typing.get_args(annotation)[0]):
        annotation = typing.get_args(annotation)[0]
    if _is_union(annotation):
        return [inner for option in typing.get_args(annotation) for inner in options(option)]
    return [annotation]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def option_of(annotation: Any, origin: type) -> Any:
    """Return the member of a union that is a `tuple[...]` or a `dict[...]` (`origin`), or None."""
    return next((o for o in map(bare, options(annotation)) if typing.get_origin(o) is origin), None)


def choices(annotation: Any) -> list[Any]:
    """Return the values of all `Literal` members of a union."""
    literals = [o for o in map(bare, options(annotation)) if typing.get_origin(o) is Literal]
    return [choice for literal in literals for choice in typing.get_args(literal)]


def field_annotation(field: FieldInfo) -> Any:
    """Return the annotation of a section's field, with its ranges (`Annotated`)."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def bare(annotation: Any) -> Any:
    """Return the annotation without the `Annotated` around it."""
    if typing.get_origin(annotation) is Annotated:
        return bare(typing.get_args(annotation)[0])
    return annotation


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether a value, as it is, is of a type; a whole number is a number, true is none."""
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
    try:
        pydantic.TypeAdapter(annotation, config=strict).validate_python(value)
    except pydantic.ValidationError:
        return False
    return True


def allowed(annotation: Any) -> str:
    """Return in words what a field allows, such as `one of sample, greedy, beam`."""
    return " or ".join(dict.fromkeys(_allowed(option) for option in options(annotation)))


def _allowed(annotation: Any) -> str:
    bounds: dict[str, Any] = {}
    while typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
        for item in metadata:
            bounds |= _bounds(item)
    if annotation is type(None):
        return "none"
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(_choice, typing.get_args(annotation)))
    if typing.get_origin(annotation) in (tuple, Sequence, set, frozenset):
        least = " of at least one entry" if bounds.get("min_length") else ""
        return f"a list{least}, each {allowed(typing.get_args(annotation)[0])}"
    if typing.get_origin(annotation) is dict:
        return _allowed_mapping(typing.get_args(annotation)[1])
    if section := section_of(annotation):
        return "a section with " + ", ".join(section.model_fields)
    return _allowed_scalar(annotation, bounds)


def _allowed_scalar(annotation: Any, bounds: dict[str, Any]) -> str:
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "text that is not empty" if bounds.get("min_length") else "text"
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(bounds)
    return getattr(annotation, "__name__", str(annotation))


def _allowed_mapping(value: Any) -> str:
    if section := section_of(value):
        return "a section for each name, with " + ", ".join(section.model_fields)
    if typing.get_origin(bare(value)) is tuple:
        return "a section whose fields are lists of values"
    return "a section whose fields are values"


def _bounds(metadata: Any) -> dict[str, Any]:
    """The limits in one item of an `Annotated`, such as {"ge": 0, "lt": 1}."""
    limits: dict[str, Any] = {}
    for item in (metadata, *getattr(metadata, "metadata", [])):
        for name in ("ge", "gt", "le", "lt", "min_length"):
            if getattr(item, name, None) is not None:
                limits[name] = getattr(item, name)
    return limits


def _choice(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _range(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        low, high = (str(b) if isinstance(b, int) else f"{b:g}" for b in (low, high))
        above = " (more than 0)" if "gt" in bounds else ""
        below = f" (less than {high})" if "lt" in bounds else ""
        return f" from {low} to {high}{above}{below}"
    if low is not None:
        return f" of at least {low:g}" if "ge" in bounds else f" above {low:g}"
    return f" of at most {high:g}" if high is not None else ""
