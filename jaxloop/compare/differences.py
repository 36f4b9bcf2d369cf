"""What runs differ in: fields of their configs, and values of their metrics with intervals.

A *line* is a setting of the factors that vary within a run (as in `reporting.scores`). The first
run is the baseline. A line of another run is compared with the baseline's lines that agree with
it in every factor that both have; a run that does not have a factor agrees with all of its values.
"""

import functools
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
    "n_of_baseline",
    "n_of_run",
    "paired",
)
ABSENT = "(absent)"
# What `scores.crossing` reads of a table.
CROSSING = ["generation", "metric", "value"]
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
    """Return the metrics of the first run, in its order; every other run has some of them.

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
    """A difference run - baseline, with its interval (nan where there is too little).

    n_baseline, n_run: seeds behind the two means, the same ones where they are paired.
    """

    baseline: float
    run: float
    difference: float
    low: float
    high: float
    n_baseline: int
    n_run: int
    paired: bool


def estimate(baseline: np.ndarray, run: np.ndarray) -> Estimate | None:
    """Return the difference of two sets of replicates, None where one is empty.

    Args:
        baseline, run: values [S] of the same seeds (nan: it has none).

    Where two seeds or more are in both, differences are taken seed by seed, and the interval is
    Student's of their mean. Otherwise it is Welch's of two independent samples, or none where one
    has a single value.
    """
    both = np.isfinite(baseline) & np.isfinite(run)
    a, b = baseline[np.isfinite(baseline)], run[np.isfinite(run)]
    if not len(a) or not len(b):
        return None
    paired = bool(both.sum() >= 2 or len(a) == len(b) == both.sum())
    if paired:
        a, b = baseline[both], run[both]
    middle = float((b - a).mean() if paired else b.mean() - a.mean())
    half = _students(b - a) if paired else _welch(a, b)
    ends = float(a.mean()), float(b.mean())
    return Estimate(*ends, middle, middle - half, middle + half, len(a), len(b), paired)


@functools.cache
def _quantile(freedom: float) -> float:
    # scipy takes a moment to import.
    from scipy import stats

    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


def _students(change: np.ndarray) -> float:
    """Half the width of Student's interval of a mean; nan for a single value."""
    if len(change) < 2:
        return math.nan
    return _quantile(len(change) - 1) * float(change.std(ddof=1)) / math.sqrt(len(change))


def _welch(a: np.ndarray, b: np.ndarray) -> float:
    """Half the width of Welch's interval of a difference of means; nan for a single value."""
    if min(len(a), len(b)) < 2:
        return math.nan
    of_a, of_b = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    if of_a + of_b == 0:
        return 0.0
    freedom = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    return _quantile(freedom) * math.sqrt(of_a + of_b)


def of_values(runs: Sequence[ComparedRun]) -> pd.DataFrame:
    """Return the differences of every run from the first, as a table with `COLUMNS`.

    `what` is "generation" (values of one generation that both have), "late" (mean over those of the
    last `scores.LAST` generations, without generation 0, in which both runs have the metric; none
    for a seed that lacks one of them) or "relative" (late / generation 0 of the same seed; not for
    metrics with values on both sides of 0 there).
    """
    factors = line_factors(runs)
    tables = [with_lines(run, factors) for run in runs]
    rows: list[dict[str, Any]] = []
    for run, table in zip(runs[1:], tables[1:], strict=True):
        last = min(runs[0].last, run.last)
        pair = [t[t["generation"] <= last] for t in (tables[0], table)]
        sides = [_by_seed(t, last) for t in pair]
        crossing = set(scores.crossing(pd.concat([t[CROSSING] for t in pair])))
        for metric in (m for m in common_metrics(runs) if m in set(table["metric"])):
            ours, theirs = (side.get(metric, {}) for side in sides)
            for row in _of_metric(ours, theirs, last, metric not in crossing):
                rows.append({"metric": metric, "baseline": runs[0].name, "run": run.name, **row})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _by_seed(table: pd.DataFrame, last: int) -> dict[str, dict[Line, pd.DataFrame]]:
    """{metric: {line: values, a row per seed and a column per generation to `last`}}."""
    lines = list(dict.fromkeys(table["line"]))
    numbers = {line: i for i, line in enumerate(lines)}
    seed = "seed" if "seed" in table else "chain"
    keys = ["metric", "number", seed, "generation"]
    numbered = table.assign(number=[numbers[line] for line in table["line"]])
    means = numbered.groupby(keys, sort=False)["value"].mean().unstack("generation")
    means = means.reindex(columns=range(last + 1))
    found: dict[str, dict[Line, pd.DataFrame]] = {}
    group: Any  # (metric, number)
    for group, values in means.groupby(level=[0, 1], sort=False):
        found.setdefault(group[0], {})[lines[group[1]]] = values.droplevel([0, 1])
    return found


def _of_metric(
    ours: Mapping[Line, pd.DataFrame],
    theirs: Mapping[Line, pd.DataFrame],
    last: int,
    relative: bool,
) -> Iterator[dict[str, Any]]:
    for mine, baseline in ours.items():
        for other, run in theirs.items():
            if agree(mine, other):
                words = label(mine if len(mine) >= len(other) else other)
                seeds = baseline.index.union(run.index, sort=False)
                pair = [side.reindex(seeds).to_numpy(float) for side in (baseline, run)]
                for row in _of_line(pair, last, relative):
                    yield {"line": words, **row}


def _of_line(pair: Sequence[np.ndarray], last: int, relative: bool) -> Iterator[dict[str, Any]]:
    """Rows of a line; pair: values [S, G] of the same seeds."""
    for generation in range(last + 1):
        yield from _row("generation", str(generation), [side[:, generation] for side in pair])
    first = max(last - scores.LAST + 1, 1)
    # A metric may be measured at other generations in one run than in the other.
    measured = np.all([np.isfinite(side).any(0) for side in pair], axis=0)
    window = [g for g in range(first, last + 1) if measured[g]]
    if last not in window:
        return
    late = [side[:, window].mean(1) for side in pair]
    yield from _row("late", _spelled(window), late)
    if relative:
        starts = [np.where(side[:, 0] == 0, math.nan, side[:, 0]) for side in pair]
        shares = [end / start for end, start in zip(late, starts, strict=True)]
        yield from _row("relative", _spelled(window), shares)


def _spelled(generations: Sequence[int]) -> str:
    """Generations as text: `4 to 8`, or `3, 5` where some in between are not among them."""
    ends = generations[0], generations[-1]
    if len(generations) > 1 and ends[1] - ends[0] == len(generations) - 1:
        return f"{ends[0]} to {ends[1]}"
    return ", ".join(map(str, generations))


def _row(what: str, generations: str, pair: Sequence[np.ndarray]) -> Iterator[dict[str, Any]]:
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
            "n_of_baseline": found.n_baseline,
            "n_of_run": found.n_run,
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
