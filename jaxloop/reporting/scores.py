"""Summaries of a tidy metrics table: means over seeds by generation, and scores relative to
generation 0.

A metrics table has the columns chain, generation, metric, value and one column per factor (ratio,
seed, …). Chains that differ only in `seed` are replicates of one *line*; every other factor with
more than one value tells lines apart. Of a chain with several entities the mean over entities is
taken.
"""

import fractions
import math

import numpy as np
import pandas as pd

FIXED = ("study", "chain", "entity", "generation", "metric", "value")
LAST = 5
# Metrics whose value for a collapsed set of texts is infinite or undefined, as their docstrings
# say.
COLLAPSING = ("kl_entropy", "negentropy")


def factors(metrics: pd.DataFrame) -> list[str]:
    """The factor columns that tell lines apart: those that vary, without `seed`; `ratio` alone
    where none does.
    """
    names = [c for c in metrics.columns if c not in FIXED and c != "seed"]
    varying = [c for c in names if metrics[c].nunique(dropna=False) > 1]
    return varying or [c for c in names if c == "ratio"]


def label(factor: str, value: object) -> str:
    """`r = 1/8`, `dataset = docs`."""
    if factor == "ratio":
        return f"r = {share(float(value))}"
    return f"{factor} = {value:g}" if isinstance(value, float) else f"{factor} = {value}"


def share(value: float) -> str:
    """0.125 -> `1/8`; what is no short fraction stays a decimal."""
    if not math.isfinite(value):
        return str(value)
    nearest = fractions.Fraction(value).limit_denominator(64)
    return str(nearest) if abs(float(nearest) - value) < 1e-9 else f"{value:g}"


def with_lines(metrics: pd.DataFrame) -> pd.DataFrame:
    """`metrics` with an ordered categorical column `line`, in the order of the factors' values;
    values that are not finite become NaN.
    """
    names = factors(metrics)
    table = metrics.assign(
        value=pd.to_numeric(metrics["value"], errors="coerce").replace([np.inf, -np.inf], np.nan)
    )
    if "entity" in table and table["entity"].nunique() > 1:
        keys = [c for c in table.columns if c not in ("entity", "value")]
        table = table.groupby(keys, sort=False, dropna=False, as_index=False)["value"].mean()
    if not names:
        return table.assign(line=pd.Categorical(["all chains"] * len(table), ordered=True))
    settings = (
        table[names]
        .drop_duplicates()
        .sort_values(names, key=lambda c: c if c.dtype.kind in "biuf" else c.astype(str))
    )
    texts = [
        ", ".join(label(f, v) for f, v in zip(names, row, strict=True))
        for row in settings.itertuples(index=False, name=None)
    ]
    of = dict(zip(settings.itertuples(index=False, name=None), texts, strict=True))
    rows = [of[row] for row in table[names].itertuples(index=False, name=None)]
    return table.assign(
        line=pd.Categorical(rows, categories=list(dict.fromkeys(texts)), ordered=True)
    )


def _mean_se(groups) -> pd.DataFrame:
    table = groups["value"].agg(["mean", "count", "std"]).rename(columns={"count": "n"})
    table["se"] = np.where(table["n"] > 1, table["std"] / np.sqrt(table["n"].clip(lower=1)), np.nan)
    return table.drop(columns="std").reset_index()


def by_generation(metrics: pd.DataFrame) -> pd.DataFrame:
    """Columns metric, line, generation, mean, n, se, collapsed: mean and standard error (sd /
    sqrt(n), ddof 1; NaN for n = 1) over replicates.

    collapsed: how many replicates have the value of a collapsed set of texts, which is no number
    (`COLLAPSING`); means are without them.
    """
    by = ["metric", "line", "generation"]
    table = _mean_se(with_lines(metrics).groupby(by, observed=True, sort=True))
    flags = with_lines(metrics.assign(value=collapsed(metrics).astype(float)))
    flags = flags.assign(value=(flags["value"] > 0).astype(int))
    return table.assign(
        collapsed=flags.groupby(by, observed=True, sort=True)["value"].sum().to_numpy()
    )


def collapsed(metrics: pd.DataFrame) -> pd.Series:
    """Whether each value is that of a collapsed set: infinite, or for the entropies that are
    undefined there, NaN.
    """
    value = pd.to_numeric(metrics["value"], errors="coerce")
    name = metrics["metric"].map(lambda metric: str(metric).partition("(")[0])
    return name.isin(COLLAPSING) & ~np.isfinite(value)


def relative_by_chain(metrics: pd.DataFrame, last: int = LAST) -> pd.DataFrame:
    """Columns metric, line, chain, value: mean over the last `last` generations / generation 0 of
    the same chain (recursive_loops, sections 0 and 5).

    With fewer than last + 1 generations, all but generation 0 are averaged. A chain that lacks
    generation 0, has 0 there, or stopped before the study's last generation has NaN.
    """
    ends = first_and_late(with_lines(metrics), ["metric", "line", "chain"], last)
    return (ends["late"] / ends["first"].where(ends["first"] != 0)).rename("value").reset_index()


def crossing(metrics: pd.DataFrame) -> list[str]:
    """Metrics whose values of generation 0 lie on both sides of 0: a score relative to them says
    nothing.
    """
    first = metrics[metrics["generation"] == 0].assign(
        value=lambda t: pd.to_numeric(t["value"], errors="coerce")
    )
    ends = first.groupby("metric", sort=False)["value"].agg(["min", "max"])
    return list(ends.index[(ends["min"] < 0) & (ends["max"] > 0)])


def first_and_late(table: pd.DataFrame, keys: list[str], last: int = LAST) -> pd.DataFrame:
    """By `keys`, for chains that have a generation 0: `first`, its value, and `late`, the mean over
    the last `last` generations.

    late is NaN for a chain that has no value in the table's last generation. Generation 0 is never
    part of it.
    """
    final = int(table["generation"].max()) if len(table) else 0
    last = min(last, max(final, 1))
    first = table[table["generation"] == 0].set_index(keys)["value"]
    late = table[(table["generation"] > final - last) & (table["generation"] > 0)].groupby(
        keys, observed=True
    )["value"]
    ends = table[table["generation"] == final].set_index(keys)["value"]
    mean = late.mean().reindex(first.index).where(ends.reindex(first.index).notna())
    return pd.DataFrame({"first": first, "late": mean})


def relative(metrics: pd.DataFrame, last: int = LAST) -> pd.DataFrame:
    """Columns metric, line, mean, n, se of `relative_by_chain` over replicates."""
    return _mean_se(
        relative_by_chain(metrics, last).groupby(["metric", "line"], observed=True, sort=True)
    )
