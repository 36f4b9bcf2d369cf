"""What a paper claims and what was expected of a run, written down before the run: a TOML file.

    title = "Chains of Beta fits"
    paper = "arXiv 2410.15234"
    config = "wmle"

    [[claim]]
    name = "mean_shifts"
    says = "The mean of the fitted distribution moves towards that of the pre-trained model"
    where = "section 3.2, figure 1"
    number = "0.5 to 0.6"
    expect = "above"
    by = 0.05
    measure = {file = "table.csv", where = {quantity = "Mean", generation = 10}, value = "mean"}

`expect` is `above` or `below` (the measure is above or below `value`, 0 if none is given; `by` is
the smallest distance that counts) or `near` (the measure is within `by` of `value`). Where a closed
form predicts the measure, `formula` is a measure of what it predicts, and `value = "formula"`
compares with it.

A page can be of several runs: `runs = ["two", "three"]` names directories below the one that is
given, the fields `figures` and `tables` begin with one of these names, and every measure and
formula says with `run = "two"` which run it is of.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxloop.config import suggestion

FORMULA = "formula"
ABOVE, BELOW, NEAR = KINDS = ("above", "below", "near")
_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, and what a run must show for it to count as replicated.

    Attributes:
        name: short, different for every claim of a file.
        says: the claim, one sentence.
        where: section, table or figure of the paper.
        expect: one of `KINDS`.
        measure: which measure of a run it is about (see `jaxloop.results.measures`).
        number: what the paper prints, in its words; "" where it prints none.
        value: what the measure is compared with: a number, or `FORMULA` for what `formula` gives.
        by: smallest distance from `value` that counts (`above`, `below`), or the largest that is
            allowed (`near`); in the units of the measure.
        formula: a measure of what a closed form predicts, {} where there is none.
        note: why this size is expected.
    """

    name: str
    says: str
    where: str
    expect: str
    measure: Mapping[str, Any]
    number: str = ""
    value: float | str = 0.0
    by: float = 0.0
    formula: Mapping[str, Any] = field(default_factory=lambda: _NONE)
    note: str = ""


@dataclass(frozen=True)
class Expectations:
    """The expectations of one run.

    Attributes:
        title: of the page.
        paper: such as `arXiv 2410.15234`.
        config: the config that makes the run.
        claims: in the order of the page.
        confidence: of every interval.
        setting: paragraphs about what is run and how its size was chosen.
        limits: sentences about what cannot be concluded.
        figures: {file in the run directory: caption}.
        tables: files in the run directory whose rows are shown beside the page.
        runs: directories of the runs, below the one that is given; () where that is the run.
        beside: caption of a figure of the claims that have a formula, with what it gives; "": no
            such figure.
    """

    title: str
    paper: str
    config: str
    claims: Sequence[Claim]
    confidence: float = 0.95
    setting: Sequence[str] = ()
    limits: Sequence[str] = ()
    figures: Mapping[str, str] = field(default_factory=lambda: _NONE)
    tables: Sequence[str] = ()
    runs: Sequence[str] = ()
    beside: str = ""


_TEXTS = ("title", "paper", "config")
_LISTS = ("setting", "limits", "tables", "runs")
_CLAIM_TEXTS = ("name", "says", "where", "expect", "number", "note")
_CLAIM_NEEDS = ("name", "says", "where", "expect", "measure")


def read(path: Path) -> Expectations:
    """Read a file of expectations.

    Raises:
        ValueError: one sentence about the first thing that is missing or not allowed.
    """
    try:
        stored = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ValueError(f"expect={path}: there is no such file that can be read") from None
    except ValueError as error:
        raise ValueError(f"expect={path}: is not TOML ({error})") from None
    claims = stored.pop("claim", [])
    if not isinstance(claims, list) or not claims:
        raise ValueError(f"expect={path}: has no [[claim]]; at least one is needed")
    allowed = (*_TEXTS, *_LISTS, "beside", "confidence", "figures")
    _check_names(str(path), stored, allowed, needed=_TEXTS)
    _check_types(
        str(path), stored, texts=(*_TEXTS, "beside"), lists=_LISTS, numbers=("confidence",)
    )
    if not 0.5 <= stored.get("confidence", 0.95) < 1:
        raise ValueError(
            f"expect={path}: confidence={stored['confidence']} is not allowed; from 0.5 to below 1"
        )
    read_claims = [_claim(f"{path}, claim {i + 1}", one) for i, one in enumerate(claims)]
    names = [claim.name for claim in read_claims]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"expect={path}: the name {twice!r} is used for two claims")
    for claim in read_claims:
        _check_run(f"{path}, claim {claim.name!r}", claim, stored.get("runs", []))
    if stored.get("beside") and not any(claim.formula for claim in read_claims):
        raise ValueError(f"expect={path}: beside needs a claim with the field 'formula'")
    return Expectations(claims=tuple(read_claims), **stored)


def _check_run(place: str, claim: Claim, runs: Sequence[str]) -> None:
    """Raise ValueError where a measure does not say which of several runs it is of."""
    for field_name in ("measure", "formula"):
        fields = getattr(claim, field_name)
        given = fields.get("run")
        if not runs and given is not None:
            raise ValueError(
                f"expect={place}: {field_name}.run={given!r} is not allowed; the file has no `runs`"
            )
        if runs and fields and given not in runs:
            raise ValueError(
                f"expect={place}: {field_name}.run={given!r} is not allowed; one of "
                f"{', '.join(runs)}"
            )


def _claim(place: str, stored: Any) -> Claim:
    if not isinstance(stored, dict):
        raise ValueError(f"expect={place}: is no table of fields")
    allowed = tuple(Claim.__dataclass_fields__)
    _check_names(place, stored, allowed, needed=_CLAIM_NEEDS)
    of_formula = stored.get("value") == FORMULA
    numbers = ("by",) if of_formula else ("value", "by")
    _check_types(place, stored, texts=_CLAIM_TEXTS, numbers=numbers, tables=("measure", "formula"))
    if of_formula and not stored.get("formula"):
        raise ValueError(f"expect={place}: value='formula' needs the field 'formula'")
    claim = Claim(**stored)
    if claim.expect not in KINDS:
        raise ValueError(
            f"expect={place}: expect={claim.expect!r} is not allowed; one of {', '.join(KINDS)}"
        )
    if claim.by < 0 or (claim.expect == NEAR and claim.by == 0):
        lowest = "above 0" if claim.expect == NEAR else "0 or above"
        raise ValueError(f"expect={place}: by={claim.by:g} is not allowed; {lowest}")
    return claim


def _check_names(
    place: str, stored: Mapping[str, Any], allowed: Sequence[str], needed: Sequence[str]
) -> None:
    for name in stored:
        if name not in allowed:
            raise ValueError(f"expect={place}: unknown field {name!r}; {suggestion(name, allowed)}")
    for name in needed:
        if name not in stored:
            raise ValueError(f"expect={place}: the field {name!r} is missing")


def _check_types(
    place: str,
    stored: Mapping[str, Any],
    *,
    texts: Sequence[str],
    lists: Sequence[str] = (),
    numbers: Sequence[str] = (),
    tables: Sequence[str] = (),
) -> None:
    for name in set(stored) & set(texts):
        if not isinstance(stored[name], str) or not stored[name].strip():
            raise ValueError(f"expect={place}: {name}={stored[name]!r} is not allowed; a text")
    for name in set(stored) & set(lists):
        of_texts = isinstance(stored[name], list) and all(isinstance(x, str) for x in stored[name])
        if not of_texts:
            raise ValueError(f"expect={place}: {name} is not allowed; a list of texts")
    for name in set(stored) & set(numbers):
        value = stored[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            raise ValueError(f"expect={place}: {name}={value!r} is not allowed; a finite number")
    for name in set(stored) & {*tables, "figures"}:
        if not isinstance(stored[name], dict):
            raise ValueError(f"expect={place}: {name} is not allowed; a table of fields")
