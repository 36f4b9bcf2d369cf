"""Old names of config fields: accepted with a warning wherever a field can be named.

That is in config files, in overrides, as factors (`chain.factors.fit.clip`) and in the config.json
of stored runs. A section lists them as `OLD_NAMES` (see `types.Section`).
"""

import functools
import json
import logging
import typing
from collections.abc import Callable, Mapping
from typing import Any

from jaxloop.config.annotations import field_annotation, option_of, section_of
from jaxloop.config.types import FieldNames, Rename, Section, flatten

# The logger of `runtime.log`, which this package does not import.
LOGGER = logging.getLogger("jaxloop")


def old_names(section: type[Section]) -> dict[str, Rename]:
    """Return {old name: rename} of a section, those of its base classes included."""
    renames: dict[str, Rename] = {}
    for cls in reversed(section.__mro__):
        for old, current in cls.__dict__.get("OLD_NAMES", {}).items():
            renames[old] = current if isinstance(current, Rename) else Rename(current)
    return renames


def current_names(
    schema: type[Section], config: Mapping[str, Any], *, quiet: bool = False
) -> dict[str, Any]:
    """Return `config` with every field of `schema` under its current name.

    Names that are not fields of the schema are left unchanged.

    Args:
        config: nested dict, as a config file or a stored config.json gives it.
        quiet: whether to log no warning, for a stored config that the user did not type.

    Raises:
        ValueError: a field is given under its old and its current name, or has an old value that
            has no current one.
    """
    return _section(schema, config, "", schema, quiet)


def stored_names(schema: type[Section]) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that renames the fields of a stored config.json to their current names."""
    return functools.partial(current_names, schema, quiet=True)


def _section(
    section: type[Section],
    config: Mapping[str, Any],
    prefix: str,
    schema: type[Section],
    quiet: bool,
) -> dict[str, Any]:
    renames = old_names(section)
    current: dict[str, Any] = {}
    for name, value in config.items():
        if rename := renames.get(name):
            typed, path = prefix + name, prefix + rename.name
            if rename.name in config:
                raise ValueError(both_names(typed, path, path))
            if not quiet:
                warn(typed, path)
            name, value = rename.name, current_value(rename, value, typed, path)
        field = section.model_fields.get(name)
        if field is not None and any(isinstance(m, FieldNames) for m in field.metadata):
            value = _factors(value, f"{prefix}{name}.", schema, quiet)
        elif field is not None:
            value = _value(field_annotation(field), value, f"{prefix}{name}.", schema, quiet)
        current[name] = value
    return current


def _value(annotation: Any, value: Any, prefix: str, schema: type[Section], quiet: bool) -> Any:
    """The value of a field that may be a section, or a mapping or a list of sections."""
    if section := section_of(annotation):
        if isinstance(value, Mapping):
            return _section(section, value, prefix, schema, quiet)
    elif (mapping := option_of(annotation, dict)) and isinstance(value, Mapping):
        inner = typing.get_args(mapping)[1]
        return {k: _value(inner, v, f"{prefix}{k}.", schema, quiet) for k, v in value.items()}
    elif (sequence := option_of(annotation, tuple)) and isinstance(value, list | tuple):
        inner = typing.get_args(sequence)[0]
        return [_value(inner, v, f"{prefix}{i}.", schema, quiet) for i, v in enumerate(value)]
    return value


def _factors(value: Any, prefix: str, schema: type[Section], quiet: bool) -> Any:
    """A mapping whose keys are dotted names of fields of the schema, nested or flat."""
    flat = flatten(value)
    if not isinstance(flat, dict):
        return value
    current: dict[str, Any] = {}
    for name, levels in flat.items():
        path, rename = current_path(schema, name)
        typed = prefix + name
        if path != name:
            if path in flat:
                raise ValueError(both_names(typed, prefix + path, prefix + path))
            if not quiet:
                warn(typed, prefix + path)
        if rename and isinstance(levels, list | tuple):
            levels = [current_value(rename, level, typed, prefix + path) for level in levels]
        current[path] = levels
    return current


def current_path(schema: type[Section], path: str) -> tuple[str, Rename | None]:
    """Return a dotted path with current names, and the rename of its last part if there is one.

    Parts that the schema does not have are left unchanged.
    """
    section: type[Section] | None = schema
    annotation: Any = None
    current: list[str] = []
    rename = None
    parts = path.split(".")
    for i, part in enumerate(parts):
        rename = old_names(section).get(part) if section else None
        part = rename.name if rename else part
        current.append(part)
        field = section.model_fields.get(part) if section else None
        if field is not None and any(isinstance(m, FieldNames) for m in field.metadata):
            rest, rename = current_path(schema, ".".join(parts[i + 1 :]))
            return ".".join([*current, *([rest] if rest else [])]), rename
        if field is not None:
            annotation = field_annotation(field)
        elif mapping := option_of(annotation, dict):
            annotation = typing.get_args(mapping)[1]
        else:
            annotation = None
        section = section_of(annotation)
    return ".".join(current), rename


def current_value(rename: Rename, value: Any, typed: str, path: str) -> Any:
    """Return the current value for an old one.

    Args:
        typed: dotted old name, for the error message.
        path: dotted current name.

    Raises:
        ValueError: the old field did not allow this value.
    """
    if not rename.values:
        return value
    for old, current in rename.values.items():
        if value == old and type(value) is type(old):
            return current
    allowed = ", ".join(map(shown, rename.values))
    raise ValueError(
        f"config.{typed} = {value!r} is not allowed: one of {allowed}; the field is now "
        f"config.{path}"
    )


def shown(value: Any) -> str:
    """Return a value as it is typed on a command line: `none`, `true`, text without quotes."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def warn(typed: str, path: str) -> None:
    """Log that a field was given under its old name."""
    LOGGER.warning(
        "config.%s is now called config.%s; the next release refuses the old name", typed, path
    )


def both_names(first: str, second: str, path: str) -> str:
    """Return the error message for a field that is given under its old and its current name."""
    return (
        f"config.{first} and config.{second} are the old and the current name of one field: give "
        f"config.{path} alone"
    )
