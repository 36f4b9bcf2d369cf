"""Measures of a run that a claim can be about.

A measure is a table of fields in the file of expectations. Its form follows from its fields:

    {file, where, value}           a number in a CSV of the run: the one row that `where` selects;
                                   `se` and `count` name the columns of its standard error and of
                                   the units behind it; `low` and `high` in the place of `se` those
                                   of its 95 % t-interval, with count - 1 degrees of freedom;
                                   without them the number is exact
    {metric, at}                   a metric of metrics.csv, or the mean of a list of metrics: mean
                                   over seeds of the mean over the rows that `at` selects
    {metric, at, minus}            the difference of two such selections, seed by seed
    {metric, at, over}             the same as a ratio less 1: a relative change
    {metric, at, slope}            the slope of the metric against the column `slope`, seed by seed

`at`, `minus` and `over` are tables {column: value or list of values}; `minus` and `over` name only
what differs from `at`. `generation = "last"` is the last one of the run, `"late"` the last five. A
unit with a chain that lacks one of the selected generations has no value, nor has one that lacks a
level of another column that is selected, unless each unit has just one. `over` needs values of one
sign. `unit` names the column of the independent units, `seed` by default; `scale` multiplies a
measure, `units` is what its units are called on the page. Where a page is of several runs, `run`
says which of their directories the measure is of.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from jaxloop.config import suggestion
from jaxloop.reporting import run_files
from jaxloop.results.verdict import Estimate

LATE = 5  # generations
# How far the middle of a t-interval may lie from its estimate, in half widths: tables are rounded.
_MIDDLE = 0.01
_OF_FILE = ("file", "where", "value", "se", "low", "high", "count", "scale", "units", "run")
_OF_METRIC = ("metric", "at", "minus", "over", "slope", "unit", "units", "scale", "run")


def measure(root: Path, fields: Mapping[str, Any]) -> Estimate:
    """Return a measure of the run in a directory.

    Raises:
        ValueError: a field is missing or unknown, or the run does not have what it names.
    """
    of_file = "file" in fields
    allowed = _OF_FILE if of_file else _OF_METRIC
    for name in fields:
        if name not in allowed:
            raise ValueError(f"measure.{name}: unknown field; {suggestion(name, allowed)}")
    needed = ("file", "where", "value") if of_file else ("metric", "at")
    for name in needed:
        if name not in fields:
            raise ValueError(f"measure: the field {name!r} is missing")
    root = root / str(fields.get("run", ""))
    estimate = _of_file(root, fields) if of_file else _of_metric(root, fields)
    scale = float(fields.get("scale", 1.0))
    return estimate._replace(value=estimate.value * scale, se=estimate.se * abs(scale))


def _of_file(root: Path, fields: Mapping[str, Any]) -> Estimate:
    path = root / str(fields["file"])
    if not path.is_file():
        raise ValueError(f"measure.file={fields['file']!r}: the run has no such file")
    table = pd.read_csv(path, keep_default_na=False, na_values={fields["value"]: ["", "nan"]})
    rows = _selected(table, fields["where"], "where")
    if len(rows) != 1:
        raise ValueError(
            f"measure.where={dict(fields['where'])}: selects {len(rows)} rows of {fields['file']}; "
            "it must be one"
        )
    row = rows.iloc[0]

    def number(field: str) -> float:
        column = str(fields[field])
        if column not in rows.columns:
            raise ValueError(
                f"measure.{field}={column!r}: {fields['file']} has no such column"
                f"; {suggestion(column, list(rows.columns))}"
            )
        return _number(row[column], f"measure.{field}={column!r}: {fields['file']}")

    if ("low" in fields) != ("high" in fields):
        raise ValueError("measure: an interval needs both of the fields 'low' and 'high'")
    if not {"se", "low", "high"} & set(fields):
        return Estimate(number("value"), 0.0, 0, "")
    if "count" not in fields:
        raise ValueError("measure: a standard error or an interval needs the field 'count'")
    units, count = str(fields.get("units", "replicates")), number("count")
    if not count >= 1:
        raise ValueError(
            f"measure.count={fields['count']!r}: {fields['file']} has no {units} behind this number"
        )
    count = int(count)
    if "se" in fields:
        return Estimate(number("value"), number("se"), count, units)
    value = number("value")
    return Estimate(value, _interval_se(value, number("low"), number("high"), count), count, units)


def _interval_se(value: float, low: float, high: float, count: int) -> float:
    """The standard error of which [low, high] is the 95 % t-interval; nan for one unit."""
    half = (high - low) / 2
    if abs((low + high) / 2 - value) > _MIDDLE * half + 1e-9 * abs(value):
        raise ValueError(
            f"measure.low, high: [{low:g}, {high:g}] is no t-interval of {value:g}, which is not "
            "its middle; name the column of the standard error with the field 'se'"
        )
    return half / float(scipy.stats.t.ppf(0.975, count - 1)) if count > 1 else math.nan


def _number(cell: Any, where: str) -> float:
    """The number in a cell; nan for an empty one, which tables have for what is missing."""
    if isinstance(cell, str) and not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{where} has {cell!r} there, which is no number") from None


def _of_metric(root: Path, fields: Mapping[str, Any]) -> Estimate:
    if sum(name in fields for name in ("minus", "over", "slope")) > 1:
        raise ValueError("measure: only one of minus, over and slope can be given")
    if not (root / "metrics.csv").exists():
        raise ValueError("measure.metric: the run has no metrics.csv")
    table = run_files.read_metrics(root)
    names = list(dict.fromkeys(table["metric"]))
    metrics = fields["metric"] if isinstance(fields["metric"], list) else [fields["metric"]]
    for metric in metrics:
        if metric not in names:
            raise ValueError(
                f"measure.metric={metric!r}: the run has no such metric; "
                f"{suggestion(str(metric), names)}"
            )
    table = table[table["metric"].isin(metrics)]
    unit = str(fields.get("unit", "seed"))
    at = _selected(table, fields["at"], "at")
    if "slope" in fields:
        values = _slopes(at, str(fields["slope"]), unit)
    else:
        levels = ["metric", *(name for name in fields["at"] if name not in ("chain", "seed", unit))]
        values = _complete_means(at, unit, levels)
        for name in ("minus", "over"):
            if name in fields:
                rows = _selected(table, {**fields["at"], **fields[name]}, name)
                other = _complete_means(rows, unit, levels)
                values = values - other if name == "minus" else _relative(values, other)
    return _over_units(values, str(fields.get("units", f"{unit}s")))


def _over_units(values: pd.Series, units: str) -> Estimate:
    finite = values[np.isfinite(values)]
    count = len(finite)
    if not count:
        raise ValueError("measure: no unit has a value in every selection")
    se = float(finite.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Estimate(float(finite.mean()), se, count, units)


def _means(rows: pd.DataFrame, unit: str) -> pd.Series:
    """The mean of every unit (of every value of a column); missing where one of its values is."""
    return rows.groupby(unit)["value"].agg(lambda values: values.mean(skipna=False))


def _complete_means(rows: pd.DataFrame, unit: str, levels: Sequence[str]) -> pd.Series:
    """`_means`; missing too for a unit that lacks a combination of `levels` that others have.

    A column of which every unit has one level, as a chain has of its settings, says which units are
    selected, and none lacks the levels of others.
    """
    most = rows.groupby(unit)[list(levels)].nunique().max()
    within = [name for name in levels if name == "metric" or most[name] > 1]
    combinations = rows[[unit, *within]].drop_duplicates()
    has = combinations.groupby(unit).size()
    return _means(rows, unit).where(has == len(combinations[within].drop_duplicates()))


def _relative(values: pd.Series, first: pd.Series) -> pd.Series:
    """The change of every unit as a share of its first value."""
    if not ((first > 0) | first.isna()).all() and not ((first < 0) | first.isna()).all():
        raise ValueError(
            "measure.over: is not allowed where it selects 0, or values on both sides of 0, which "
            "have no relative change; take minus"
        )
    return values / first - 1


def _slopes(rows: pd.DataFrame, column: str, unit: str) -> pd.Series:
    if column not in rows.columns:
        raise ValueError(
            f"measure.slope={column!r}: metrics.csv has no such column"
            f"; {suggestion(column, list(rows.columns))}"
        )
    numbers = pd.to_numeric(rows[column], errors="coerce")
    if numbers.isna().any():
        raise ValueError(f"measure.slope={column!r}: has a value that is no number")
    levels = np.unique(numbers)
    if len(levels) < 2:
        raise ValueError(f"measure.slope={column!r}: has one value only; two are needed")
    slopes = {}
    for name, part in rows.groupby(unit):
        means = _means(part, column)
        if len(means) < len(levels):
            slopes[name] = math.nan
            continue
        centred = np.asarray(means.index, float) - levels.mean()
        slopes[name] = float((centred * means.to_numpy()).sum() / (centred**2).sum())
    return pd.Series(slopes, dtype=float)


def _selected(table: pd.DataFrame, where: Any, field: str) -> pd.DataFrame:
    if not isinstance(where, Mapping):
        raise ValueError(f"measure.{field}: is not allowed; a table of columns and their values")
    for column in where:
        if column not in table.columns:
            raise ValueError(
                f"measure.{field}.{column}: there is no such column"
                f"; {suggestion(column, list(table.columns))}"
            )
    # The last generations are those of the run, not of the rows that are left.
    wanted = {column: _wanted(table, column, value) for column, value in where.items()}
    for column in sorted(where, key=lambda name: name == "generation"):
        kept = table[table[column].map(functools.partial(_one_of, wanted[column]))]
        lasts = column == "generation" and where[column] in ("last", "late")
        if not len(kept) and not lasts:
            raise ValueError(f"measure.{field}.{column}={where[column]!r}: no row has it")
        if column == "generation" and field != "where" and "chain" in table:
            kept = _with_stopped(table, kept, wanted[column])
        table = kept
    if "generation" not in where and field != "where" and {"chain", "generation"} <= set(table):
        return _with_stopped(table, table, [int(table["generation"].max())])
    return table


def _with_stopped(
    table: pd.DataFrame, kept: pd.DataFrame, generations: Sequence[int]
) -> pd.DataFrame:
    """The kept rows, and one without a value for each chain that lacks some that others have.

    kept: rows of metrics `table`, of the selected generations.
    """
    wanted = kept.groupby("metric")["generation"].nunique()
    has = kept.groupby(["chain", "metric"])["generation"].nunique()
    once = table.drop_duplicates(["chain", "metric"])
    lacks = [
        has.get((chain, metric), 0) < wanted.get(metric, 1)
        for chain, metric in zip(once["chain"], once["metric"], strict=True)
    ]
    if not any(lacks):
        return kept
    stopped = once[lacks].assign(value=math.nan, generation=generations[-1])
    return pd.concat([kept, stopped])


def _wanted(table: pd.DataFrame, column: str, value: Any) -> Sequence[Any]:
    """The values that a column may have."""
    # A table without chains is one of results, which may have a row called so.
    if column == "generation" and value in ("last", "late") and "chain" in table:
        last = int(table["generation"].max())
        return list(range(max(last - LATE + 1, 1), last + 1)) if value == "late" else [last]
    return value if isinstance(value, list) else [value]


def _one_of(values: Sequence[Any], cell: Any) -> bool:
    return any(_equal(cell, value) for value in values)


def _equal(cell: Any, value: Any) -> bool:
    try:
        return math.isclose(float(cell), float(value), rel_tol=1e-9, abs_tol=1e-12)
    except (TypeError, ValueError):
        return str(cell) == str(value)
