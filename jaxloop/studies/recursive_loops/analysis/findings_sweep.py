"""Sentences and tables on what an experiment that varies a factor found, and on its limits.

A cell is all chains of one level of the factor at one ratio; they are replicates. Intervals are t
intervals over the chains of a cell.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from jaxloop.reporting import figures
from jaxloop.reporting.scores import LAST, share
from jaxloop.reporting.statistics import (
    Interval,
    benjamini_hochberg,
    no_spread,
    spearman,
    t_interval,
)
from jaxloop.studies.recursive_loops.analysis import power
from jaxloop.studies.recursive_loops.analysis.findings_regression import chance, listed
from jaxloop.studies.recursive_loops.analysis.relative import outcomes
from jaxloop.studies.recursive_loops.analysis.run_tables import Run


def cells(
    run: Run, metrics: Sequence[str], factors: Sequence[str], *, last: int = LAST
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of cells and the table of chains that have no value.

    Columns of the cells: metric, factors, ratio, n (chains), absolute (late value), relative (late
    value / generation 0), se, low and high (95 % t interval of the relative value; nan for one
    chain), p (of the hypothesis that nothing changed, relative = 1; nan too where chains are equal)
    and q (Benjamini-Hochberg over all cells). Metrics whose values in generation 0 lie on both
    sides of 0 have no relative value.
    """
    rows, skipped = [], []
    for metric in metrics:
        result = outcomes(run.metrics, run.chains, metric, last=last)
        skipped.append(result.skipped.assign(metric=metric))
        for key, chains in result.table.groupby([*factors, "ratio"], sort=True, dropna=False):
            values = chains["relative"].to_numpy(float)
            interval = t_interval(values, 1.0)
            rows.append(
                (metric, *key, len(values), chains["late"].mean(), values.mean(), *interval)
            )
    names = ["metric", *factors, "ratio", "n", "absolute", "relative", *Interval._fields]
    table = pd.DataFrame(rows, columns=names)
    table["q"] = benjamini_hochberg(table["p"].to_numpy(float)) if len(table) else []
    if not skipped:
        return table, pd.DataFrame(columns=["chain", "reason", "metric"])
    return table, pd.concat(skipped, ignore_index=True)


def _cell_name(factors: Sequence[str], key: Sequence) -> str:
    names = [
        str(level) if factor in ("dataset", "mix", "bases") else f"{_spaced(factor)} {level}"
        for factor, level in zip(factors, key, strict=True)
    ]
    return ", ".join(names) or "all chains"


def _spaced(factor: str) -> str:
    return factor.replace("_", " ")


def _metric_title(metric: object) -> str:
    return figures.title(str(metric))[0]


def conclusions(
    run: Run,
    metrics: Sequence[str],
    factors: Sequence[str],
    table: pd.DataFrame,
    *,
    last: int = LAST,
) -> list[str]:
    """Return a sentence for each metric and level.

    It gives the relative value at the largest ratio, and says whether the relative value falls with
    the ratio and whether it is U-shaped. table: the cells.
    """
    sentences = []
    for metric in metrics:
        chains = outcomes(run.metrics, run.chains, metric, last=last).table
        groups: Iterable[tuple[Any, pd.DataFrame]] = [((), chains)]
        if factors:
            groups = chains.groupby(list(factors), sort=True, dropna=False)
        for key, rows in groups:
            level = table[table["metric"] == metric]
            for factor, value in zip(factors, key, strict=True):
                level = level[level[factor] == value]
            if len(level):
                sentences.append(
                    f"{_metric_title(metric)}, {_cell_name(factors, key)}: {_level(rows, level)}"
                )
    return sentences


def contrasts(
    run: Run, metrics: Sequence[str], factor: str, factors: Sequence[str], *, last: int = LAST
) -> pd.DataFrame:
    """Compare the levels of one factor with its first level, at equal ratio and other factors.

    The first level is that of the first planned chain. Columns: metric, other factors, ratio,
    level, against (the first level), n, n_against, difference of the mean relative values, low and
    high (95 % interval, Welch), p, q (Benjamini-Hochberg over all rows). Metrics without relative
    values (`relative.outcomes`) are left out.
    """
    others, rows = [name for name in factors if name != factor], []
    reference = run.chains[factor].iloc[0]
    for metric in metrics:
        chains = outcomes(run.metrics, run.chains, metric, last=last).table
        chains = chains.dropna(subset="relative")
        for key, cell in chains.groupby([*others, "ratio"], sort=True, dropna=False):
            base = cell[cell[factor] == reference]["relative"].to_numpy(float)
            for level, group in cell[cell[factor] != reference].groupby(factor, sort=True):
                values = group["relative"].to_numpy(float)
                contrast = {
                    "level": level,
                    "against": reference,
                    "n": len(values),
                    "n_against": len(base),
                    "difference": values.mean() - base.mean() if len(base) else np.nan,
                    **_welch(values, base),
                }
                labels = zip([*others, "ratio"], key, strict=True)
                rows.append({"metric": metric, **dict(labels), **contrast})
    names = ["metric", *others, "ratio", *_CONTRAST]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(q=benjamini_hochberg(table["p"].to_numpy(float)) if len(table) else [])


_CONTRAST = ("level", "against", "n", "n_against", "difference", "low", "high", "p")


def _welch(values: np.ndarray, base: np.ndarray) -> dict[str, float]:
    """low, high (95 %) and p of the difference of two means; nan without replicates or spread."""
    if min(len(values), len(base)) < 2 or (no_spread(values) and no_spread(base)):
        return dict.fromkeys(("low", "high", "p"), float("nan"))
    test = stats.ttest_ind(values, base, equal_var=False)
    interval = test.confidence_interval()
    return {"low": float(interval.low), "high": float(interval.high), "p": float(test.pvalue)}


def differ(table: pd.DataFrame, factor: str) -> list[str]:
    """Return sentences on whether the levels of a factor differ; table: that of `contrasts`."""
    if table.empty:
        return []
    what = f"Levels of {_spaced(factor)} against {table['against'].iloc[0]}, at the same ratio"
    tested = table.dropna(subset="p")
    if tested.empty:
        return [f"{what}: no test, where a cell has one chain or chains do not differ."]
    clear = tested[tested["q"] < 0.05].sort_values("p")
    varied = _varied(table, before="level")
    shown = [
        f"{_metric_title(row['metric']).lower()} of {row['level']} at {_place(row, varied)} "
        f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        for _, row in clear.head(6).iterrows()
    ]
    return [
        f"{what}: {len(clear)} of {len(tested)} differences of relative values have q < .05 "
        "(Welch, Benjamini-Hochberg)" + (f": {listed(shown)}." if shown else ".")
    ]


def against_control(table: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """Return sentences on the selection policies; table: interventions.csv.

    They give the paired differences of relative values from the random control, with the levels of
    the factors (columns before the policy) in which pairs differ.
    """
    varied = _varied(table, before="selection")
    tested = table[table["metric"].isin(metrics) & (table["n"] > 1)]
    if tested.empty:
        return ["No policy has two pairs with its random control, so none has an interval."]
    out = []
    for (metric, policy), pairs in tested.groupby(["metric", "selection"], sort=False):
        parts = [
            f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}] at "
            f"{_place(row, varied)} ({int(row['n'])} pairs, {_chance_of_pairs(row['p'])})"
            for _, row in pairs.iterrows()
        ]
        out.append(
            f"{_metric_title(metric)}, selection by {policy} minus the matched random "
            f"control, relative to generation 0: {listed(parts)}."
        )
    return out


def _varied(table: pd.DataFrame, before: str) -> list[str]:
    """The factors, among the columns before one, in which rows differ; without the ratio."""
    names = [str(name) for name in table.columns[: list(table.columns).index(before)]]
    return [
        name
        for name in names
        if name not in ("metric", "ratio") and table[name].astype(str).nunique() > 1
    ]


def _place(row: pd.Series, factors: Sequence[str]) -> str:
    """The levels of these factors, and the ratio."""
    ratio = f"r = {share(float(row['ratio']))}"
    return f"{_cell_name(factors, [row[name] for name in factors])}, {ratio}" if factors else ratio


def _chance_of_pairs(p: float) -> str:
    return chance(p) if np.isfinite(p) else "all alike"


def _level(chains: pd.DataFrame, level: pd.DataFrame) -> str:
    """A sentence on the chains of one level; level: their cells, one for each ratio."""
    top = level.sort_values("ratio").iloc[-1]
    if np.isnan(top["relative"]):
        return (
            f"{top['absolute']:.3f} at r = {share(float(top['ratio']))}; generation 0 lies on both "
            "sides of 0, so there is no relative value."
        )
    text = f"at r = {share(float(top['ratio']))}: {top['relative']:.3f} of generation 0"
    if top["n"] > 1:
        text += f" [{top['low']:.3f}, {top['high']:.3f}; {int(top['n'])} chains]"
    else:
        text += " (one chain)"
    if level["ratio"].nunique() > 2:
        text += _trend(chains) + _u_shape(chains, level)
    return text + "."


def _trend(chains: pd.DataFrame) -> str:
    """Whether the relative value falls or rises with the ratio (Spearman)."""
    rho, p = spearman(chains["ratio"].to_numpy(float), chains["relative"].to_numpy(float))
    if not np.isfinite(p):
        return ""
    if p >= 0.05:
        return f"; no trend over ratios is shown ({chance(p)})"
    direction = "falls" if rho < 0 else "rises"
    return f"; {direction} with the ratio (rho = {rho:.2f}, {chance(p)})"


def _u_shape(chains: pd.DataFrame, level: pd.DataFrame) -> str:
    """Words on whether the relative value is U-shaped in the ratio.

    It is if the lowest mean lies at an inner ratio and is significantly below both ends: Welch's
    test, the larger of the two p, Bonferroni over inner ratios.
    """
    ordered = level.sort_values("ratio")
    low = ordered["relative"].to_numpy().argmin()
    if low in (0, len(ordered) - 1):
        return ""
    at = ordered["ratio"].to_numpy()
    samples = [
        chains[chains["ratio"] == r]["relative"].to_numpy(float) for r in (at[0], at[low], at[-1])
    ]
    if min(map(len, samples)) < 2 or any(map(no_spread, samples)):
        return f"; lowest at r = {share(float(at[low]))}"
    p = max(
        stats.ttest_ind(samples[1], end, equal_var=False, alternative="less").pvalue
        for end in (samples[0], samples[2])
    )
    p = min(1.0, p * (len(at) - 2))
    shown = "below both ends" if p < 0.05 else "which is not shown to be below both ends"
    return f"; lowest at r = {share(float(at[low]))}, {shown} ({chance(p)})"


def limits(
    table: pd.DataFrame, planned: int, skipped: pd.DataFrame, factors: Sequence[str]
) -> list[str]:
    """Return sentences on what this number of seeds cannot show.

    Args:
        table: the cells.
        planned: number of planned chains.
        skipped: the table of chains that have no value.
        factors: columns of chains.csv that make cells.
    """
    lost = skipped["chain"].nunique()
    outcome = "all gave values."
    if lost:
        outcome = f"{lost} gave no value of one metric or more and are listed with the reason."
    out = [f"{planned} chains were planned; {outcome}"]
    single = int((table["n"] < 2).sum())
    if single:
        out.append(
            f"{single} of {len(table)} cells have one chain: there is no standard error, and a "
            "difference between such cells may be chance."
        )
    for metric, rows in table[table["n"] > 1].groupby("metric", sort=False):
        variance = ((rows["se"] ** 2 * rows["n"]) * (rows["n"] - 1)).sum() / (rows["n"] - 1).sum()
        n = float(rows["n"].median())
        if variance > 0:
            # Two cells of n chains are a regression of 2n chains on one predictor whose values are
            # 1 and -1.
            least = 2 * power.least_effect(int(2 * n), 1, float(np.sqrt(variance)))
            out.append(
                f"{_metric_title(metric)}: chains of one cell differ by a standard "
                f"deviation of {np.sqrt(variance):.3f}; between two cells of "
                f"{n:g} chains a difference of {least:.3f} is found in four of five cases, "
                "smaller ones mostly not."
            )
    if "dataset" in factors and table["dataset"].nunique() > 1:
        out.append(
            "Datasets differ in many ways at once: that one shifts more than another does not "
            "say by which property."
        )
    if "accumulate" not in factors:
        out.append(
            "The seeds vary bases, draws of data and of training; the human dataset is one, so "
            "intervals do not speak of other datasets."
        )
    return out
