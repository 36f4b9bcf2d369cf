"""The late value of a metric relative to generation 0, for every planned chain.

A chain without a value is never dropped silently: it is listed with the reason.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import LAST, complete_means, crossing, first_and_late


class Outcomes(NamedTuple):
    """Values of one metric.

    Attributes:
        table: the rows of chains.csv whose chain has a value, with the columns `first` (generation
            0), `late` (mean of the last generations), `relative` (late / first) and `difference`
            (late - first). relative is nan for all where the metric's values in generation 0 lie
            on both sides of 0: a share of such values has no meaning.
        skipped: the other chains; columns chain, reason.
    """

    table: pd.DataFrame
    skipped: pd.DataFrame


def find_metric(
    metrics: pd.DataFrame, names: tuple[str, ...] | str, domain: str | None = None
) -> str | None:
    """Return the first of `names` that the table has, as the table calls it (with its options).

    None if it has none of them. domain: look for the metrics `name@domain` of this domain.
    """
    metric_names = list(dict.fromkeys(metrics["metric"]))
    for name in (names,) if isinstance(names, str) else names:
        for metric in metric_names:
            plain, _, place = metric.partition("@")
            if name in (metric, plain, plain.partition("(")[0]) and (place or None) == domain:
                return metric
    return None


def outcomes(
    metrics: pd.DataFrame, chains: pd.DataFrame, metric: str, *, last: int = LAST
) -> Outcomes:
    """Return late and relative values of one metric for every planned chain.

    As in the released code of arXiv 2504.03814, the late value is the mean of the last generations
    (15 to 19), and the relative value is late / generation 0.

    Args:
        metrics: columns chain, generation, metric, value, and perhaps entity, over which the mean
            is taken.
        chains: a row per planned chain; if it has a column status that is not "ok", the status is
            the reason why a chain is skipped.
        metric: the metric's name in `metrics`.
        last: how many last generations are averaged.

    Raises ValueError for a metric that the table does not have, or a chain that is listed twice.
    """
    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        listed = ", ".join(dict.fromkeys(metrics["metric"])) or "nothing"
        raise ValueError(f"metric {metric!r} is not in metrics.csv, which holds {listed}")
    twice = chains["chain"][chains["chain"].duplicated()]
    if len(twice):
        raise ValueError(
            f"chains.csv lists chain {twice.iloc[0]!r} twice, one row for each chain is needed"
        )
    values = pd.to_numeric(rows["value"], errors="coerce").replace([np.inf, -np.inf], np.nan)
    by_generation = complete_means(rows.assign(value=values), ["chain", "generation"]).reset_index()
    ends = first_and_late(by_generation, ["chain"], last).reindex(chains["chain"])
    final = int(metrics["generation"].max())
    reached = by_generation.dropna(subset="value").groupby("chain")["generation"].max()
    first, late = ends["first"].to_numpy(), ends["late"].to_numpy()
    statuses = chains["status"].astype(str) if "status" in chains else pd.Series("", chains.index)
    reasons = [
        _reason(chain, before, after, reached, final, metric, status)
        for chain, before, after, status in zip(chains["chain"], first, late, statuses, strict=True)
    ]
    has_value = np.array([not reason for reason in reasons], bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        table = chains.assign(
            first=first, late=late, relative=late / first, difference=late - first
        )
    if crossing(rows):
        table["relative"] = np.nan
    skipped = [
        (chain, reason) for chain, reason in zip(chains["chain"], reasons, strict=True) if reason
    ]
    return Outcomes(
        table[has_value].reset_index(drop=True), pd.DataFrame(skipped, columns=["chain", "reason"])
    )


def _reason(
    chain: str, first: float, late: float, reached: pd.Series, final: int, metric: str, status: str
) -> str:
    """The reason why a chain has no value; "" if it has one."""
    note = "" if status in ("", "ok", "None", "nan") else f" ({status})"
    if chain not in reached.index:
        return f"metrics.csv has no value of {metric} for it{note}"
    if final == 0:
        return "the study has generation 0 only"
    if not np.isfinite(first):
        return f"it has no value of {metric} in generation 0"
    if first == 0:
        return f"{metric} is 0 in generation 0, so there is no relative value"
    if not np.isfinite(late) and reached[chain] == final:
        return f"it lacks {metric} in one of the last generations, of which the mean is taken{note}"
    if not np.isfinite(late):
        return (
            f"it has values of {metric} to generation {int(reached[chain])} only, of {final}{note}"
        )
    return ""
