"""Summaries of a tidy metrics table: means over seeds, and scores relative to generation 0.

A metrics table has the columns chain, generation, metric, value and one column per factor (ratio,
seed, …). Chains that differ only in `seed` are replicates of one *line* (a curve of a figure);
lines differ in the other factors that have more than one value. If a chain has several entities,
the mean over them is taken. A mean over entities or over generations of which some have no value
has none itself: it is never the mean of those that happen to be there.
"""

import fractions
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

FIXED = ("study", "chain", "entity", "generation", "metric", "value")
LAST = 5
# Metrics whose value for a collapsed set of texts is infinite or undefined (see their docstrings).
COLLAPSING = ("kl_entropy", "negentropy")


def factors(metrics: pd.DataFrame) -> list[str]:
    """Return the factor columns in which lines differ.

    They are those with several values, without `seed`; `ratio` alone if there are none.
    """
    names = [c for c in metrics.columns if c not in FIXED and c != "seed"]
    varying = [c for c in names if metrics[c].nunique(dropna=False) > 1]
    return varying or [c for c in names if c == "ratio"]


def label(factor: str, value: Any) -> str:
    """Return a factor with its value as text: `r = 1/8`, `dataset = docs`."""
    if factor == "ratio":
        return f"r = {share(float(value))}"
    return f"{factor} = {value:g}" if isinstance(value, float) else f"{factor} = {value}"


def share(value: float) -> str:
    """Return a ratio as text: 0.125 as `1/8`, a decimal number where no short fraction fits."""
    if not math.isfinite(value):
        return str(value)
    nearest = fractions.Fraction(value).limit_denominator(64)
    return str(nearest) if abs(float(nearest) - value) < 1e-9 else f"{value:g}"


def averaged_over(names: Sequence[str]) -> str:
    """Return the end of a sentence that says over which factors curves are means; "" for none."""
    if not names:
        return ""
    return f"; curves are means over {', '.join(name.replace('_', ' ') for name in names)}"


def with_lines(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return `metrics` with an ordered categorical column `line`.

    Lines are in the order of the factors' values. Values that are not finite become NaN.
    """
    names = factors(metrics)
    table = metrics.assign(
        value=pd.to_numeric(metrics["value"], errors="coerce").replace([np.inf, -np.inf], np.nan)
    )
    if "entity" in table and table["entity"].nunique() > 1:
        keys = [c for c in table.columns if c not in ("entity", "value")]
        table = complete_means(table, keys).reset_index()
    if not names:
        return table.assign(line=pd.Categorical(["all chains"] * len(table), ordered=True))
    settings = table[names].drop_duplicates().sort_values(names, key=_sortable)
    line_of = {}
    for row in settings.itertuples(index=False, name=None):
        line_of[row] = ", ".join(map(label, names, row))
    lines = [line_of[row] for row in table[names].itertuples(index=False, name=None)]
    categories = list(dict.fromkeys(line_of.values()))
    return table.assign(line=pd.Categorical(lines, categories=categories, ordered=True))


def complete_means(table: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Return the mean of `value` of every group; NaN for a group that has a NaN."""
    groups = table.groupby(list(keys), sort=False, dropna=False, observed=True)["value"]
    return groups.mean().where(groups.count() == groups.size())


def _sortable(column: pd.Series) -> pd.Series:
    """Numbers as they are, everything else as text."""
    return column if column.dtype.kind in "biuf" else column.astype(str)


def mean_se(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return mean, number and standard error (sd / sqrt(n), ddof 1; NaN for n = 1) of `value`."""
    groups = table.groupby(list(by), observed=True, sort=True)
    table = groups["value"].agg(["mean", "count", "std"]).rename(columns={"count": "n"})
    table["se"] = np.where(table["n"] > 1, table["std"] / np.sqrt(table["n"].clip(lower=1)), np.nan)
    return table.drop(columns="std").reset_index()


def by_generation(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard error over replicates, by generation.

    Returns:
        Columns metric, line, generation, mean, n, se (sd / sqrt(n), ddof 1; NaN for n = 1) and
        collapsed: how many replicates have the value of a collapsed set of texts (see
        `collapsed`); the mean is without them.
    """
    by = ["metric", "line", "generation"]
    table = mean_se(with_lines(metrics), by)
    flags = with_lines(metrics.assign(value=collapsed(metrics).astype(float)))
    flags = flags.assign(value=(flags["value"] > 0).astype(int))
    return table.assign(
        collapsed=flags.groupby(by, observed=True, sort=True)["value"].sum().to_numpy()
    )


def collapsed(metrics: pd.DataFrame) -> pd.Series:
    """Return for each value whether it is that of a collapsed set of texts.

    Such a value is infinite, or NaN for the entropies that are undefined there (`COLLAPSING`).
    """
    value = pd.to_numeric(metrics["value"], errors="coerce")
    name = metrics["metric"].map(lambda metric: str(metric).partition("(")[0])
    return name.isin(COLLAPSING) & ~np.isfinite(value)


def collapsed_chains(metrics: pd.DataFrame, last: int = LAST) -> pd.Series:
    """Return how many chains have no relative value since their texts had collapsed.

    In generation 0, or in one of the last that are averaged, whether or not in the same one. The
    index is metric and line.
    """
    flags = with_lines(metrics.assign(value=collapsed(metrics).astype(float)))
    final = int(flags["generation"].max()) if len(flags) else 0
    flags = flags[(flags["generation"] == 0) | (flags["generation"] > final - last)]
    of_chain = flags.groupby(["metric", "line", "chain"], observed=True)["value"].max() > 0
    return of_chain.groupby(level=["metric", "line"], observed=True).sum()


def relative_by_chain(metrics: pd.DataFrame, last: int = LAST) -> pd.DataFrame:
    """Return the mean over the last `last` generations / generation 0, for each chain.

    Columns metric, line, chain, value; as in the released code of arXiv 2504.03814. With fewer than
    last + 1 generations, all but generation 0 are averaged. The value is NaN for a chain that lacks
    generation 0, has 0 there, stopped before the study's last generation, or lacks one of those
    that are averaged.
    """
    table = with_lines(metrics)
    # pandas 3.1.1 cannot look up a level of few categories in one of more than 127.
    plain = table.astype({"line": str})
    ends = first_and_late(plain, ["metric", "line", "chain"], last)
    values = (ends["late"] / ends["first"].where(ends["first"] != 0)).rename("value")
    return values.reset_index().astype({"line": table["line"].dtype})


def crossing(metrics: pd.DataFrame) -> list[str]:
    """Return the metrics whose values in generation 0 lie on both sides of 0.

    A score relative to such values has no meaning. Values that are not finite are on no side.
    """
    first = metrics[metrics["generation"] == 0]
    values = pd.to_numeric(first["value"], errors="coerce")
    first = first.assign(value=values.where(np.isfinite(values)))
    ends = first.groupby("metric", sort=False)["value"].agg(["min", "max"])
    return list(ends.index[(ends["min"] < 0) & (ends["max"] > 0)])


def first_and_late(table: pd.DataFrame, keys: list[str], last: int = LAST) -> pd.DataFrame:
    """Return the first and the late value of every chain that has a generation 0.

    The index is `keys`. Columns: `first`, the value of generation 0, and `late`, the mean over the
    last `last` generations without generation 0; late is NaN for a chain that lacks a value in one
    of those in which its metric was measured.
    """
    final = int(table["generation"].max()) if len(table) else 0
    last = min(last, max(final, 1))
    first = table[table["generation"] == 0].set_index(keys)["value"]
    late = table[(table["generation"] > final - last) & (table["generation"] > 0)]
    groups = late.groupby(keys, observed=True)["value"]
    if "metric" in keys:
        measured = late.groupby("metric", observed=True)["generation"].nunique().to_dict()
        names = groups.count().index.get_level_values("metric")
        wanted = np.array([measured[name] for name in names])
    else:
        wanted = np.array(late["generation"].nunique())
    mean = groups.mean().where(groups.count() == wanted).reindex(first.index)
    ends = table[table["generation"] == final].set_index(keys)["value"]
    mean = mean.where(ends.reindex(first.index).notna())
    return pd.DataFrame({"first": first, "late": mean})


def relative(metrics: pd.DataFrame, last: int = LAST) -> pd.DataFrame:
    """Return columns metric, line, mean, n, se of `relative_by_chain` over replicates."""
    return mean_se(relative_by_chain(metrics, last), ["metric", "line"])
