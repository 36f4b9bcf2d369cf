"""Applies command-line overrides, such as `--config.chain.ratios=1/8,1`, to a config's dict."""

import copy
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from jaxloop.config import renames
from jaxloop.config.annotations import (
    bare,
    choices,
    field_annotation,
    option_of,
    options,
    section_of,
)
from jaxloop.config.messages import unknown_field
from jaxloop.config.types import FieldNames, Rename, Section, fraction


def override(
    config: dict[str, Any], assignments: Iterable[tuple[str, str]], schema: type[Section]
) -> dict[str, Any]:
    """Return `config` with every assignment applied, under the current names of its fields.

    Values are read as the type that the schema gives the field: lists are separated by commas
    (`1/8,1`), with or without brackets; `none` empties an optional field.

    Args:
        config: the dict of a config file; it is not changed.
        assignments: (dotted name of a field, value as text) pairs.
        schema: the config's section class.

    Raises:
        ValueError: a name is unknown or names a section, or a field is given under its old and
            its current name.
    """
    config = renames.current_names(schema, copy.deepcopy(config))
    typed_names: dict[str, str] = {}
    for typed, text in assignments:
        path, rename = renames.current_path(schema, typed)
        annotation = annotation_at(schema, path)
        if section := section_of(annotation):
            fields = ", ".join(f"{typed}.{name}" for name in section.model_fields)
            raise ValueError(
                f"--config.{typed}={text}: '{typed}' is a section; set one of {fields}"
            )
        if typed_names.setdefault(path, typed) != typed:
            raise ValueError(renames.both_names(typed_names[path], typed, path))
        if rename and rename.values:
            value = _read_old_text(text, annotation, rename, typed, path)
        else:
            value = read_text(text, annotation)
        if path != typed:
            renames.warn(typed, path)
        _assign(config, path, value)
    return config


def change(
    config: dict[str, Any], changes: Mapping[str, Any], schema: type[Section]
) -> dict[str, Any]:
    """Return `config` with the values at dotted names changed, under the current names.

    Args:
        config: the dict of a config file; it is not changed.
        changes: {dotted name of a field: value}; `validation.build` checks both.
        schema: the config's section class.

    Raises:
        ValueError: a field is given under its old and its current name.
    """
    nested: dict[str, Any] = {}
    for path, value in changes.items():
        _assign(nested, path, value)
    current = renames.current_names(schema, copy.deepcopy(config))
    return _merged(current, renames.current_names(schema, nested))


def _merged(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the changes, section by section."""
    merged = dict(config)
    for name, value in changes.items():
        if isinstance(value, Mapping) and isinstance(merged.get(name), dict):
            value = _merged(merged[name], value)
        merged[name] = value
    return merged


def _assign(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    for part in parents:
        if not isinstance(config.get(part), dict):
            config[part] = {}
        config = config[part]
    config[leaf] = value


def annotation_at(schema: type[Section], path: str) -> Any:
    """Return the type of the field at a dotted path.

    Raises:
        ValueError: there is no such field; the message names the nearest.
    """
    section: type[Section] | None = schema
    annotation: Any = None
    parents: list[str] = []
    names_fields = False
    parts = path.split(".")
    for i, part in enumerate(parts):
        fields = section.model_fields if section else {}
        mapping = option_of(annotation, dict)
        if part in fields:
            annotation = field_annotation(fields[part])
            names_fields = any(isinstance(m, FieldNames) for m in fields[part].metadata)
        elif mapping and section_of(typing.get_args(mapping)[1]):
            # A section for each name, such as `domains`.
            annotation = typing.get_args(mapping)[1]
        elif mapping:
            value = bare(typing.get_args(mapping)[1])
            if typing.get_origin(value) is not tuple:
                return value
            level = _type_of_levels(schema, ".".join(parts[i:])) if names_fields else Any
            return types.GenericAlias(tuple, (level, ...))
        else:
            problem = unknown_field(part, ".".join(parents), section, schema)
            raise ValueError(f"--config.{path}: {problem}")
        parents.append(part)
        section = section_of(annotation)
    return annotation


def _type_of_levels(schema: type[Section], path: str) -> Any:
    """The type of a factor's values: that of the field of its name; any where it is none."""
    try:
        annotation = annotation_at(schema, path)
    except ValueError:  # what is no factor is refused with the whole config
        return Any
    return Any if section_of(annotation) else annotation


def read_text(text: str, annotation: Any) -> Any:
    """Return the value that `text` stands for in a field of this type; its range is not checked."""
    members = [bare(option) for option in options(annotation)]
    may_be_none = type(None) in members or Any in members
    # A space or a tab is a text: the delimiter of a file, for example.
    if may_be_none and (text == "" or text.strip().lower() in ("none", "null")):
        return None
    sequence = option_of(annotation, tuple)
    # A field of one value or several takes text without a comma or brackets as the one.
    takes_one = bool({str, int, float} & set(members))
    if sequence and (not takes_one or "," in text or text.strip()[:1] in ("(", "[")):
        entry = typing.get_args(sequence)[0]
        return [read_text(_unquoted(item), entry) for item in split_list(text)]
    if str in members:
        return text
    takes_bool = bool in members or Any in members
    takes_bool = takes_bool or any(isinstance(choice, bool) for choice in choices(annotation))
    if takes_bool and text.strip().lower() in ("true", "false"):
        return text.strip().lower() == "true"
    return _read_number(text)


def _read_old_text(text: str, annotation: Any, rename: Rename, typed: str, path: str) -> Any:
    """The current value, or list of values if the field is a list, for old values as typed."""
    old_values = {renames.shown(old): old for old in rename.values}

    def current(item: str) -> Any:
        return renames.current_value(rename, old_values.get(item, item), typed, path)

    if option_of(annotation, tuple):
        return [current(_unquoted(item)) for item in split_list(text)]
    return current(text.strip())


def split_list(text: str) -> list[str]:
    """Return the entries of a list as typed, such as `1/8,1`, `(1/8, 1)` or `[a, b]`."""
    inside = text.strip()
    if inside[:1] + inside[-1:] in ("()", "[]"):
        inside = inside[1:-1]
    # A comma inside brackets belongs to its entry: knn_cosine_diversity(k=5),
    # distinct_n_size_matched(n=2, size=500).
    return [item.strip() for item in re.split(r",(?![^()]*\))", inside) if item.strip()]


def _unquoted(item: str) -> str:
    return item[1:-1] if item[:1] + item[-1:] in ("''", '""') else item


def _read_number(text: str) -> Any:
    for read in (int, float, fraction):
        try:
            return read(text)
        except ValueError:
            pass
    return text
