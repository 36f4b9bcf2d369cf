"""What the annotation of a config field says: its options, the section it holds, and what it
allows, in words.
"""

import types
import typing
from typing import Annotated, Any, Literal

import pydantic


def section_of(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The section that a field holds, if it holds one."""
    return next(
        (
            o
            for o in options(annotation)
            if isinstance(o, type) and issubclass(o, pydantic.BaseModel)
        ),
        None,
    )


def options(annotation: Any) -> list[Any]:
    """The members of a union, without Annotated wrappers around the union itself."""
    if typing.get_origin(annotation) is Annotated and typing.get_origin(
        typing.get_args(annotation)[0]
    ) in (typing.Union, types.UnionType):
        annotation = typing.get_args(annotation)[0]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for option in typing.get_args(annotation) for inner in options(option)]
    return [annotation]


def bare(annotation: Any) -> Any:
    """The annotation without Annotated around it."""
    return (
        bare(typing.get_args(annotation)[0])
        if typing.get_origin(annotation) is Annotated
        else annotation
    )


def allowed(annotation: Any) -> str:
    """What a field takes, in words: `a whole number of at least 1`, `one of sample, greedy, beam`,
    …
    """
    said = [_allowed(option) for option in options(annotation)]
    return " or ".join(dict.fromkeys(said))


def _allowed(annotation: Any) -> str:
    bounds: dict[str, Any] = {}
    while typing.get_origin(annotation) is Annotated:
        annotation, *extras = typing.get_args(annotation)
        for extra in extras:
            for item in [extra, *getattr(extra, "metadata", [])]:
                bounds |= {
                    k: getattr(item, k)
                    for k in ("ge", "gt", "le", "lt", "min_length")
                    if getattr(item, k, None) is not None
                }
    if annotation is type(None):
        return "none"
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        return (
            f"a list{' of at least one entry' if bounds.get('min_length') else ''}, each "
            f"{allowed(typing.get_args(annotation)[0])}"
        )
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return "a section with " + ", ".join(annotation.model_fields)
    if annotation is bool:
        return "true or false"
    if annotation is str:
        return "text" if not bounds.get("min_length") else "text that is not empty"
    if typing.get_origin(annotation) is dict:
        value = typing.get_args(annotation)[1]
        if section := section_of(value):
            return "a section for each name, with " + ", ".join(section.model_fields)
        return (
            "a section whose fields are lists of values"
            if typing.get_origin(bare(value)) is tuple
            else "a section whose fields are values"
        )
    if annotation in (int, float):
        return ("a whole number" if annotation is int else "a number") + _range(bounds)
    return getattr(annotation, "__name__", str(annotation))


def _range(bounds: dict[str, Any]) -> str:
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        low, high = (str(b) if isinstance(b, int) else f"{b:g}" for b in (low, high))
        return (
            f" from {low} to {high}"
            + (" (more than 0)" if "gt" in bounds else "")
            + (f" (less than {high})" if "lt" in bounds else "")
        )
    if "ge" in bounds:
        return f" of at least {low:g}"
    if "gt" in bounds:
        return f" above {low:g}"
    return f" of at most {high:g}" if high is not None else ""
