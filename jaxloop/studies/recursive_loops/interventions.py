"""Compares each policy that selects synthetic text with random selection, in pairs of chains."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.reporting import scores
from jaxloop.reporting.statistics import t_interval
from jaxloop.studies.common import report as common_report

# Columns of interventions.csv after the metric and the factors of the chains.
COLUMNS = (
    "selection",
    "n",
    "control",
    "policy",
    "difference",
    "se",
    "low",
    "high",
    "p",
)


def paired_differences(root: Path) -> dict[str, list]:
    """Return the columns of interventions.csv, which compares policies with the random control.

    There is a row for every metric, policy and combination of other factors. A chain is paired with
    the control chain of the same dataset, ratio, seed and other factors; the difference is that of
    their scores relative to generation 0.

    Columns: metric, the factors without seed, selection (the policy), n (pairs), control and policy
    (mean relative scores), difference, se, low and high (95 % t interval), p (paired t-test); se to
    p are nan below two pairs, and p where all differences are equal. Metrics whose values in
    generation 0 lie on both sides of 0 have no relative scores and are left out.
    """
    metrics = common_report.read_metrics(root)
    factors = metrics.drop_duplicates("chain").set_index("chain")[
        [c for c in metrics.columns if c not in scores.FIXED]
    ]
    relative = scores.relative_by_chain(metrics)[["metric", "chain", "value"]]
    relative = relative.join(factors, on="chain")
    relative = relative[~relative["metric"].isin(scores.crossing(metrics))]
    keys = ["metric", *(c for c in factors.columns if c not in ("selection", "seed"))]
    by_policy = relative.pivot_table(
        index=[*keys, "seed"], columns="selection", values="value", observed=True
    )
    rows = []
    for key, group in by_policy.groupby(level=list(range(len(keys))), sort=True):
        for policy in [name for name in by_policy.columns if name != "random"]:
            control = group.get("random", pd.Series(np.nan, group.index))
            pairs = pd.DataFrame({"control": control, "policy": group[policy]}).dropna()
            labels = dict(zip(keys, key, strict=True))
            rows.append({**labels, "selection": policy, **_paired(pairs)})
    return {name: [row[name] for row in rows] for name in (*keys, *COLUMNS)}


def _paired(pairs: pd.DataFrame) -> dict[str, float]:
    """The columns n to p of `COLUMNS`; pairs: a row per pair, with columns control and policy."""
    gap = (pairs["policy"] - pairs["control"]).to_numpy(float)
    n = len(gap)
    nan = math.nan
    return {
        "n": n,
        "control": float(pairs["control"].mean()) if n else nan,
        "policy": float(pairs["policy"].mean()) if n else nan,
        "difference": float(gap.mean()) if n else nan,
        **t_interval(gap, 0.0)._asdict(),
    }
