"""What runs differ in: fields of their configs, and values of their metrics with intervals.

A *line* is a setting of the factors that vary within a run (as in `reporting.scores`). The first
run is the baseline. A line of another run is compared with the baseline's lines that agree with
it in every factor that both have; a run that does not have a factor agrees with all of its values.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.compare.reading import ComparedRun, config_value
from jaxloop.reporting import scores

# Of every interval.
LEVEL = 0.95
COLUMNS = (
    "what",
    "metric",
    "line",
    "generations",
    "baseline",
    "run",
    "value_of_baseline",
    "value_of_run",
    "difference",
    "low",
    "high",
    "n",
    "paired",
)
ABSENT = "(absent)"
Line = tuple[tuple[str, Any], ...]


def of_configs(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return {dotted field: its value in every run, as text} of the fields that differ."""
    flat = [_flat(run.config) for run in runs]
    fields = dict.fromkeys(name for one in flat for name in one)
    rows = {name: [one.get(name, ABSENT) for one in flat] for name in fields}
    return {name: values for name, values in rows.items() if len(set(values)) > 1}


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(node, Mapping) and node:
        parts = (_flat(value, f"{prefix}{name}.") for name, value in node.items())
        return {name: value for part in parts for name, value in part.items()}
    name = prefix.removesuffix(".")
    if name.startswith("identity."):
        return {f"files of {name.removeprefix('identity.')}": str(node)[:12]}
    return {name: json.dumps(node, ensure_ascii=False)}


def common_metrics(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the metrics of the first run that every other has too, in its order.

    Raises:
        ValueError: another run has none of the first one's.
    """
    first = list(dict.fromkeys(runs[0].values["metric"]))
    for run in runs[1:]:
        theirs = dict.fromkeys(run.values["metric"])
        if not set(first) & set(theirs):
            raise ValueError(
                f"compare: {runs[0].name} and {run.name} have no metric in common "
                f"({', '.join(first)}; {', '.join(theirs)})"
            )
    return first


# ---- lines


def line_factors(runs: Sequence[ComparedRun]) -> list[str]:
    """Return the factors that vary within a run, in the order of their first appearance."""
    names = []
    for run in runs:
        columns = [c for c in run.values.columns if c not in scores.FIXED and c != "seed"]
        names += [c for c in columns if run.values[c].nunique(dropna=False) > 1]
    return list(dict.fromkeys(names))


def with_lines(run: ComparedRun, factors: Sequence[str]) -> pd.DataFrame:
    """Return the values of a run with a column `line`, and a column for every one of `factors`.

    A factor that the run does not vary has the value of its config, None where it has none.
    """
    table = run.values
    missing = {name: config_value(run.config, name) for name in factors if name not in table}
    table = table.assign(**{name: [value] * len(table) for name, value in missing.items()})
    lines: list[Any] = list(_lines(table, factors))
    return table.assign(line=lines)


def _lines(table: pd.DataFrame, factors: Sequence[str]) -> Iterator[Line]:
    columns = [table[name].tolist() for name in factors]
    for row in zip(*columns, strict=True) if columns else [()] * len(table):
        yield tuple(
            (name, value) for name, value in zip(factors, row, strict=True) if not _is_none(value)
        )


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def of_line(table: pd.DataFrame, line: Line) -> pd.DataFrame:
    """Return the rows of a line in a table of `with_lines`."""
    return table[np.array([one == line for one in table["line"]], bool)]


def label(line: Line) -> str:
    """Return a line as text, "all chains" for one without factors."""
    return ", ".join(scores.label(name, value) for name, value in line) or "all chains"


def agree(one: Line, other: Line) -> bool:
    """Return whether two lines have the same values of all factors that both have."""
    theirs = dict(other)
    return all(name not in theirs or _same(value, theirs[name]) for name, value in one)


def _same(a: Any, b: Any) -> bool:
    numbers = all(isinstance(x, int | float) for x in (a, b))
    return math.isclose(a, b, rel_tol=1e-9) if numbers else str(a) == str(b)


# ---- values


class Estimate(NamedTuple):
    """A difference run - baseline, with its interval (nan where there is too little)."""

    baseline: float
    run: float
    difference: float
    low: float
    high: float
    n: int
    paired: bool


def estimate(baseline: pd.Series, run: pd.Series) -> Estimate | None:
    """Return the difference of two sets of replicates, None where one is empty.

    Args:
        baseline, run: values by seed (nan: no value).

    Where two seeds or more are in both, differences are taken seed by seed, and the interval is
    Student's of their mean. Otherwise it is Welch's of two independent samples, or none where one
    has a single value.
    """
    baseline, run = baseline.dropna(), run.dropna()
    if not len(baseline) or not len(run):
        return None
    seeds = baseline.index.intersection(run.index)
    if len(seeds) >= 2 or (len(seeds) == 1 and len(baseline) == len(run) == 1):
        a, b = baseline[seeds], run[seeds]
        change = (b - a).to_numpy(float)
        half = _students(change)
        middle = float(change.mean())
        return Estimate(
            float(a.mean()),
            float(b.mean()),
            middle,
            middle - half,
            middle + half,
            len(change),
            True,
        )
    middle = float(run.mean() - baseline.mean())
    half = _welch(baseline.to_numpy(float), run.to_numpy(float))
    return Estimate(
        float(baseline.mean()),
        float(run.mean()),
        middle,
        middle - half,
        middle + half,
        min(len(baseline), len(run)),
        False,
    )


def _half_width(error: float, freedom: float) -> float:
    # scipy takes a moment to import.
    from scipy import stats

    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error


def _students(change: np.ndarray) -> float:
    """Half the width of Student's interval of a mean; nan for a single value."""
    if len(change) < 2:
        return math.nan
    return _half_width(change.std(ddof=1) / math.sqrt(len(change)), len(change) - 1)


def _welch(a: np.ndarray, b: np.ndarray) -> float:
    """Half the width of Welch's interval of a difference of means; nan for a single value."""
    if min(len(a), len(b)) < 2:
        return math.nan
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if of_a + of_b == 0:
        return 0.0
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return _half_width(math.sqrt(of_a + of_b), freedom)


def of_values(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Return the differences of every run from the first, as a table with `COLUMNS`.

    `what` is "generation" (values of one generation that both have), "late" (mean over the last
    generations that both have, `scores.LAST` at most, generation 0 not among them) or "relative"
    (late / generation 0 of the same chain; not for metrics with values on both sides of 0 there).
    """
    factors = line_factors(runs)
    tables = [with_lines(run, factors) for run in runs]
    rows: list[dict[str, Any]] = []
    for run, table in zip(runs[1:], tables[1:], strict=True):
        last = min(runs[0].last, run.last)
        pair = [t[t["generation"] <= last] for t in (tables[0], table)]
        for metric in (m for m in common_metrics(runs) if m in set(table["metric"])):
            of_metric = [t[t["metric"] == metric] for t in pair]
            for row in _of_metric(of_metric, last):
                rows.append({"metric": metric, "baseline": runs[0].name, "run": run.name, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_metric(pair: Sequence[pd.DataFrame], last: int) -> Iterator[dict[str, Any]]:
    ours, theirs = (list(dict.fromkeys(table["line"])) for table in pair)
    relative = not any(scores.crossing(table) for table in pair)
    for mine in ours:
        for other in theirs:
            if agree(mine, other):
                lines = [of_line(pair[0], mine), of_line(pair[1], other)]
                words = label(mine if len(mine) >= len(other) else other)
                for row in _rows_of_line(lines, last, relative):
                    yield {"line": words, **row}


def _rows_of_line(
    pair: Sequence[pd.DataFrame], last: int, relative: bool
) -> Iterator[dict[str, Any]]:
    for generation in range(last + 1):
        found = [_by_seed(t[t["generation"] == generation]) for t in pair]
        yield from _row("generation", str(generation), found)
    if not last:
        return
    first = max(last - scores.LAST + 1, 1)
    window = f"{first} to {last}" if last > first else str(last)
    ends = [_ends(table, last) for table in pair]
    yield from _row("late", window, [end["late"] for end in ends])
    if relative:
        shares = [end["late"] / end["first"].where(end["first"] != 0) for end in ends]
        yield from _row("relative", window, shares)


def _ends(table: pd.DataFrame, last: int) -> pd.DataFrame:
    """The first and the late value by seed, of chains that have a value in generation `last`."""
    seed = "seed" if "seed" in table else "chain"
    # The value of a missing last generation is nan: the chain stopped before.
    ends = scores.first_and_late(table[table["generation"] <= last], ["chain"], scores.LAST)
    if int(table["generation"].max()) < last:
        ends = ends.assign(late=math.nan)
    seeds = table.drop_duplicates("chain").set_index("chain")[seed]
    return ends.groupby(seeds.reindex(ends.index)).mean()


def _by_seed(table: pd.DataFrame) -> pd.Series:
    return table.groupby("seed" if "seed" in table else "chain")["value"].mean()


def _row(what: str, generations: str, pair: Sequence[pd.Series]) -> Iterator[dict[str, Any]]:
    found = estimate(*pair)
    if found is not None:
        yield {
            "what": what,
            "generations": generations,
            "value_of_baseline": found.baseline,
            "value_of_run": found.run,
            "difference": found.difference,
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "paired": found.paired,
        }


def of_costs(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Return the costs of every run beside the first one's, as a table with `COLUMNS`."""
    rows = []
    for run in runs[1:]:
        for what in dict.fromkeys([*runs[0].costs, *run.costs]):
            a, b = (one.costs.get(what, math.nan) for one in (runs[0], run))
            row = {"what": "cost", "metric": what, "baseline": runs[0].name, "run": run.name}
            values = {"value_of_baseline": a, "value_of_run": b, "difference": b - a}
            rows.append(row | values)
    return pd.DataFrame(rows, columns=list(COLUMNS))
