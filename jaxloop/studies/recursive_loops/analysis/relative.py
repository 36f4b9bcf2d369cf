"""What became of each chain: its late value of a metric, against generation 0 of the same chain,
joined to the table of planned chains.

A chain that gives no value is never dropped in silence: it is listed with the reason.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import LAST, first_and_late


class Outcomes(NamedTuple):
    """table: the rows of the chains table that have a value, with `first` (generation 0), `late`
    (mean of the last generations), `relative` (late / first) and `difference` (late - first);
    skipped: columns chain, reason.
    """

    table: pd.DataFrame
    skipped: pd.DataFrame


def find_metric(
    metrics: pd.DataFrame, names: tuple[str, ...] | str, domain: str | None = None
) -> str | None:
    """The first metric of the table that is called one of `names`, whatever its options; `domain`:
    as `name@domain`. None if there is none.
    """
    held = list(dict.fromkeys(metrics["metric"]))
    for name in (names,) if isinstance(names, str) else names:
        for metric in held:
            called, _, place = metric.partition("@")
            if (metric == name or called.partition("(")[0] == name or called == name) and (
                place or None
            ) == domain:
                return metric
    return None


def outcomes(
    metrics: pd.DataFrame, chains: pd.DataFrame, metric: str, *, last: int = LAST
) -> Outcomes:
    """Late and relative values of one metric for every planned chain (recursive_loops, section 5:
    mean of generations 15 to 19 over generation 0).

    metrics: chain, generation, metric, value, and perhaps entity (the mean over entities is taken);
    chains: one row per planned chain, perhaps
    with a column status, which is quoted where it is not ok.
    ValueError for a metric that the table does not hold, or a chain that is listed twice.
    """
    rows = metrics[metrics["metric"] == metric]
    if rows.empty:
        held = ", ".join(dict.fromkeys(metrics["metric"])) or "nothing"
        raise ValueError(f"metric {metric!r} is not in metrics.csv, which holds {held}")
    twice = chains["chain"][chains["chain"].duplicated()]
    if len(twice):
        raise ValueError(
            f"chains.csv lists chain {twice.iloc[0]!r} twice, one row for each chain is needed"
        )
    values = pd.to_numeric(rows["value"], errors="coerce").replace([np.inf, -np.inf], np.nan)
    by_generation = (
        rows.assign(value=values)
        .groupby(["chain", "generation"], sort=False, as_index=False)["value"]
        .mean()
    )
    ends = first_and_late(by_generation, ["chain"], last).reindex(chains["chain"])
    final = int(metrics["generation"].max())
    reached = by_generation.dropna(subset="value").groupby("chain")["generation"].max()
    first, late = ends["first"].to_numpy(), ends["late"].to_numpy()
    known = chains["status"].astype(str) if "status" in chains else pd.Series("", chains.index)
    reasons = [
        _reason(chain, f, m, reached, final, metric, status)
        for chain, f, m, status in zip(chains["chain"], first, late, known, strict=True)
    ]
    kept = np.array([not reason for reason in reasons], bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        table = chains.assign(
            first=first, late=late, relative=late / first, difference=late - first
        )
    skipped = [
        (chain, reason) for chain, reason in zip(chains["chain"], reasons, strict=True) if reason
    ]
    return Outcomes(
        table[kept].reset_index(drop=True), pd.DataFrame(skipped, columns=["chain", "reason"])
    )


def _reason(
    chain: str, first: float, late: float, reached: pd.Series, final: int, metric: str, status: str
) -> str:
    said = "" if status in ("", "ok", "None", "nan") else f" ({status})"
    if chain not in reached.index:
        return f"metrics.csv has no value of {metric} for it{said}"
    if final == 0:
        return "the study has generation 0 only"
    if not np.isfinite(first):
        return f"it has no value of {metric} in generation 0"
    if first == 0:
        return f"{metric} is 0 in generation 0, so there is no relative value"
    if not np.isfinite(late):
        return (
            f"it has values of {metric} to generation {int(reached[chain])} only, of {final}{said}"
        )
    return ""
