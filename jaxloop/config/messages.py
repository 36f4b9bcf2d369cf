"""Texts about config fields: the reference table, suggested names, a sentence for each mistake."""

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic_core import ErrorDetails

from jaxloop.config.annotations import (
    allowed,
    choices,
    field_annotation,
    option_of,
    section_of,
)
from jaxloop.config.types import Section


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the name out of `names` that was probably meant by `name`; None if none is near."""
    by_case = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), by_case, n=1, cutoff=0.6)
    return by_case[close[0]] if close else None


def suggestion(name: str, names: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the list of all names if none is near."""
    names = list(names)
    near = nearest(name, names)
    return f"did you mean '{near}'?" if near else f"there are: {', '.join(names)}"


def field_names(schema: type[Section], prefix: str = "") -> list[str]:
    """Return the dotted names of all fields of a schema and of its sections."""
    names = []
    for name, field in schema.model_fields.items():
        inner = section_of(field.annotation)
        names += field_names(inner, f"{prefix}{name}.") if inner else [prefix + name]
    return names


def unknown_field(
    name: str, parent: str, section: type[Section] | None, schema: type[Section]
) -> str:
    """Return a sentence that `parent.name` does not exist, with the field that was probably meant.

    A near name is looked for in `section` first, then in the whole `schema`.
    """
    path = f"{parent}.{name}" if parent else name
    if section is None:
        return f"'{parent}' has no fields, so '{path}' cannot be set"
    if near := nearest(name, section.model_fields):
        meant = f"{parent}.{near}" if parent else near
        return f"unknown field '{path}'; did you mean '{meant}'?"
    elsewhere = {full.split(".")[-1]: full for full in field_names(schema)}
    if near := nearest(name, elsewhere):
        return f"unknown field '{path}'; did you mean '{elsewhere[near]}'?"
    return f"unknown field '{path}'; there are: {', '.join(section.model_fields)}"


def reference(schema: type[Section]) -> str:
    """Return a Markdown table of all fields: name, default, what is allowed, meaning."""
    rows = ["| field | default | allowed | meaning |", "|---|---|---|---|"]
    for name in field_names(schema):
        section: type[Section] = schema
        *parents, leaf = name.split(".")
        for part in parents:
            section = typing.cast(type[Section], section_of(section.model_fields[part].annotation))
        field = section.model_fields[leaf]
        rows.append(
            f"| `{name}` | {_shown(field.get_default())} | {allowed(field_annotation(field))} | "
            f"{field.description} |"
        )
    return "\n".join(rows)


def _shown(value: Any) -> str:
    """A default as the reference table shows it."""
    if isinstance(value, dict):
        return ", ".join(value) or "empty"
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "empty"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def refusal(problems: list[ErrorDetails], schema: type[Section]) -> str:
    """Return one sentence about the first of pydantic's error records, and how many more."""
    sentences = [_sentence(problem, schema) for problem in problems]
    fields = {name.split("[")[0] for name, _ in sentences}
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return sentences[0][1] + more


def _sentence(problem: ErrorDetails, schema: type[Section]) -> tuple[str, str]:
    """(name of the field, sentence) of one of pydantic's error records."""
    # pydantic adds the name of a union's branch to the location; those parts are not ours.
    annotation: Any = schema
    parts: list[str] = []
    for part in problem["loc"]:
        section = section_of(annotation)
        if section and part in section.model_fields:
            annotation = field_annotation(section.model_fields[str(part)])
            parts.append(str(part))
        elif isinstance(part, int):
            sequence = option_of(annotation, tuple)
            annotation = typing.get_args(sequence)[0] if sequence else Any
            parts[-1] += f"[{part}]"
        elif mapping := option_of(annotation, dict):
            annotation = typing.get_args(mapping)[1]
            parts.append(str(part))
        elif problem["type"] == "extra_forbidden":
            name = f"config.{'.'.join([*parts, str(part)])}"
            return name, f"{name}: {unknown_field(str(part), '.'.join(parts), section, schema)}"
    return _sentence_of_value(problem, ".".join(["config", *parts]), annotation)


def _sentence_of_value(problem: ErrorDetails, name: str, annotation: Any) -> tuple[str, str]:
    if problem["type"] == "missing":
        return name, f"{name} is missing: {allowed(annotation)}"
    if problem["type"] == "value_error" and not isinstance(problem["input"], bool):
        message = str(problem["ctx"]["error"])
        # The validator of a whole config names the fields itself.
        return name, message if name == "config" else f"{name}: {message}"
    value = problem["input"]
    shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
    text = f"{name} = {shown} is not allowed: {allowed(annotation)}"
    near = nearest(value, map(str, choices(annotation))) if isinstance(value, str) else None
    return name, f"{text}; did you mean '{near}'?" if near else text
