"""JSON files of models, read by typed fields: what a field may hold is said where it is read, and
no field is skipped.

Every function raises ValueError, one sentence with the field and its value, where a file does not
hold what is asked for.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn


class Refused(ValueError):
    """Files that nobody should guess about, another library neither: quantised, ambiguous or
    damaged.
    """


NEEDED = object()  # the default of a field that has none: KeyError where it is missing


def read_json(path: Path, kind: str = "model") -> dict[str, Any]:
    """Return the object in a JSON file (a byte-order mark is skipped); `kind` begins the message
    where it is none.
    """
    value = read_value(path, kind)
    if not isinstance(value, dict):
        raise ValueError(
            f"{kind}: {path} cannot be read (it holds a {_kind(value)}, not an object)"
        )
    return value


def read_value(path: Path, kind: str = "model") -> Any:
    """Return what a JSON file holds, of whatever kind."""
    text = text_of(path, kind)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{kind}: {path} cannot be read (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(
            f"{kind}: {path} cannot be read "
            f"({what_it_is(text[:200]) or f'it is not JSON: {error}'})"
        ) from None


def optional_json(path: Path, kind: str = "model") -> dict[str, Any]:
    """As `read_json`; {} where the file is missing."""
    return read_json(path, kind) if path.exists() else {}


def what_it_is(start: str) -> str | None:
    """In words, what a file that begins so is, where it is something that people have in place of
    the real file.
    """
    head = start.lstrip("\ufeff \t\r\n").lower()
    if not head:
        return "it is empty"
    if head.startswith("version https://git-lfs"):
        return "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"
    if head.startswith(("<!doctype", "<html", "<?xml")):
        return "it is a web page, not the file: download it again"
    return None


def text_of(path: Path, kind: str = "model") -> str:
    """Return the text of a file. Raises ValueError where it cannot be read, or is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ValueError(f"{kind}: {path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"{kind}: {path} cannot be read (it is not text in UTF-8)") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands there twice")
    return out


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "number")


def refuse(field: str, value: Any, allowed: str, kind: str = "model") -> NoReturn:
    """Raise ValueError with the sentence for a value that is not allowed."""
    raise ValueError(f"{kind}: {field} = {short(value)} is not supported; allowed: {allowed}")


def short(value: Any) -> str:
    """Return a value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def given(c: Mapping, field: str, default: Any) -> Any:
    """Return the value of a field; null is the default.

    Raises KeyError, with the field's name, if the default is `NEEDED` and there is no value.
    """
    value = c.get(field)
    if value is None:
        if default is NEEDED:
            raise KeyError(field)
        return default
    return value


def integer(
    c: Mapping, field: str, default: Any = NEEDED, *, low: int = 1, kind: str = "model"
) -> Any:
    """Return a whole number of at least `low`."""
    value = given(c, field, default)
    if value is default:
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        refuse(field, value, f"a whole number of at least {low}", kind)
    return value


def number(
    c: Mapping,
    field: str,
    default: Any = NEEDED,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    kind: str = "model",
) -> Any:
    """Return a finite number, at least `low` and greater than `above`."""
    value = given(c, field, default)
    if value is default:
        return value
    fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fine or value < low or value <= above:
        limit = (
            f" of at least {low:g}"
            if low > -math.inf
            else f" above {above:g}"
            if above > -math.inf
            else ""
        )
        refuse(field, value, f"a number{limit}", kind)
    return value


def truth(c: Mapping, field: str, default: Any = NEEDED, *, kind: str = "model") -> Any:
    """True or False."""
    value = given(c, field, default)
    if not isinstance(value, bool) and value is not default:
        refuse(field, value, "true, false", kind)
    return value


def choice(
    c: Mapping, field: str, allowed: Sequence, default: Any = NEEDED, *, kind: str = "model"
) -> Any:
    """Return one of the values `allowed`, of the same type."""
    value = given(c, field, default)
    if value is not default and not any(type(value) is type(a) and value == a for a in allowed):
        refuse(field, value, ", ".join(map(repr, allowed)), kind)
    return value


def mapping(c: Mapping, field: str, *, kind: str = "model") -> dict[str, Any]:
    """Return an object; {} where it is missing or null."""
    value = given(c, field, {})
    if not isinstance(value, dict):
        refuse(field, value, "an object", kind)
    return value


def numbers(c: Mapping, field: str, count: int, *, kind: str = "model") -> tuple[float, ...]:
    """Return a list of `count` positive numbers."""
    value = given(c, field, NEEDED)
    fine = isinstance(value, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) and 0 < x < math.inf for x in value
    )
    if not fine or len(value) != count:
        refuse(field, value, f"a list of {count} positive numbers", kind)
    return tuple(float(x) for x in value)


def check_known(
    c: Mapping, known: Collection[str], fixed: Mapping[str, tuple], owner: str, kind: str = "model"
) -> None:
    """Refuses every field that is neither in `known` nor null, and values of `fixed` fields that
    are not among those allowed.
    """
    for field, value in c.items():
        if value is None or field in known:
            continue
        if field not in fixed:
            raise ValueError(
                f"{kind}: {field} = {short(value)} is not a field of {owner} that jaxloop knows, "
                "so what it changes would be lost; "
                "take it out if it changes nothing"
            )
        choice(c, field, fixed[field], kind=kind)
