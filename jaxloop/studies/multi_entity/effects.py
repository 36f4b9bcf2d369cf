"""Transfer, damage and homogenisation of a multi-entity study, and the paper's values of them.

Intervals are over seeds. Everything is paired within a seed, at the last generation, and has two
readings. The paper's is the difference to alpha = 0 at the same beta, where no synthetic text is
read at all. It holds what an entity's own synthetic text does to it as well. The other is the
difference to the setting's control (module `chains`), which reads as much synthetic text, all of
it the entity's own: what is left is due to the text of the others.
    transfer         loss on the other entities' tasks there minus with exchange: positive where
                     reading the others helps
    transfer_share   transfer / (loss on the others' tasks minus on the own task there): 0 where
                     nothing is transferred, 1 where a model becomes as good at the others' tasks
                     as it was at its own. It has no unit, so the linear model predicts it. There
                     is none in a setting in one of whose seeds the gap is 0 or less
    damage           loss on the own task with exchange minus there: positive where it hurts
    alike_losses     standard deviation over the models of the loss on a task, mean over tasks,
                     there minus with exchange: positive where reading each other makes the models
                     alike
    alike_outputs    output similarity with exchange minus there, mean over corpora and pairs:
                     positive where reading each other makes them alike
And of every setting, without exchange too:
    alike_since      output similarity at the last generation minus at generation 0 (the paper's
                     table 4)
Losses are in nats per token. Where entities do not read all others, the first two are given also
over the tasks of those that they read (`transfer_read`, `transfer_share_read`) and of those that
they do not (`_unread`), whose text reaches them through others; `transfer_nearer` is the first of
these transfers minus the second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from jaxloop.reporting.scores import complete_means
from jaxloop.reporting.statistics import t_interval
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.multi_entity.measure import FOLDER, task_loss

SETTING = ["alpha", "beta"]
# (alpha, beta, seed)
Key = tuple[Any, Any, Any]
# What tells the chains of a table apart, and its rows by generation.
KEYS = ["chain", *SETTING, "control", "seed", "generation"]
# What an effect is a difference to: the paper's reading, the control, and generation 0.
NO_EXCHANGE, OWN_TEXT, START = "alpha = 0", "own text", "generation 0"
# Suffix of an effect -> the tasks that it is a mean over, a column of `by_chain`.
TASKS_OF = {"": "cross", "_read": "read", "_unread": "unread"}
# A gap that is this small a share of the losses is rounding.
_NO_GAP = 1e-9


def losses(metrics: pd.DataFrame, entities: Sequence[str], tasks: Sequence[str]) -> pd.DataFrame:
    """Return one row per chain, generation, model and task.

    Columns: chain, alpha, beta, control, seed, generation, model, task, own, value.
    """
    task_of = {task_loss(task): task for task in tasks}
    table = metrics[metrics["metric"].isin(task_of)]
    out = table[KEYS].assign(
        model=[entities[int(k)] for k in table["entity"]],
        task=table["metric"].map(task_of),
        value=table["value"].astype(float),
    )
    return out.assign(own=out["model"] == out["task"])


def similarities(root: Path, metrics: pd.DataFrame) -> pd.DataFrame:
    """Return one row per chain, generation and corpus.

    Columns: chain, alpha, beta, control, seed, generation, set, value (mean over pairs). Empty if
    none was measured.
    """
    frames = []
    for path in sorted((root / FOLDER).glob("generation=*.parquet")):
        frames.append(
            pd.DataFrame(read_parquet(path)).assign(generation=int(path.stem.split("=")[1]))
        )
    columns = [*KEYS, "set", "value"]
    if not frames:
        return pd.DataFrame(columns=columns)
    table = complete_means(pd.concat(frames), ["chain", "generation", "set"]).reset_index()
    return table.merge(metrics[KEYS[:-1]].drop_duplicates(), on="chain")[columns]


def of_exchange(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a table that are of no control."""
    return table[~table["control"].astype(bool)]


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float, int]:
    """Return (mean, low, high, n) of a 95 % t-interval; low and high are NaN for one value."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    found = t_interval(finite, 0.0)
    mean = float(finite.mean()) if len(finite) else float("nan")
    return mean, found.low, found.high, len(finite)


def by_chain(
    losses: pd.DataFrame,
    similarity: pd.DataFrame,
    entities: Sequence[str],
    mixing: Sequence[Sequence[float]] = (),
) -> pd.DataFrame:
    """Return one row per chain and generation.

    Columns: own, cross, spread (over the entities' tasks), public (NaN if not measured), similarity
    (mean over corpora); a mean over entities of which some have no value has none. If `mixing`
    [K][K] has an entity that does not read all others, also read and unread: cross, over tasks of
    entities that are read and that are not.
    """
    private = losses[losses["task"].isin(entities)]

    def mean(rows: pd.DataFrame, name: str) -> pd.Series:
        return complete_means(rows, KEYS).rename(name)

    of_task = private.groupby([*KEYS, "task"], sort=False)["value"]
    deviations = of_task.std(ddof=0).where(of_task.count() == of_task.size())
    parts = [
        mean(private[private["own"]], "own"),
        mean(private[~private["own"]], "cross"),
        mean(deviations.reset_index(), "spread"),
        mean(losses[~losses["task"].isin(entities)], "public"),
    ]
    others = private[~private["own"]]
    unread = {(entities[k], entities[j]) for k, j in unread_pairs(mixing)}
    if unread:
        pairs = zip(others["model"], others["task"], strict=True)
        is_unread = np.array([pair in unread for pair in pairs], bool)
        parts += [mean(others[~is_unread], "read"), mean(others[is_unread], "unread")]
    parts.append(
        mean(similarity, "similarity")
        if len(similarity)
        else pd.Series(dtype=float, name="similarity")
    )
    table = pd.concat(parts, axis=1)
    table.index = table.index.set_names(KEYS)
    return table.astype(float).reset_index()


def unread_pairs(mixing: Sequence[Sequence[float]]) -> frozenset[tuple[int, int]]:
    """Return the pairs (k, j), k != j, of a mixing matrix [K][K] in which k does not read j.

    Empty where no entity reads another, as in K separate chains.
    """
    weights = {(k, j): w for k, row in enumerate(mixing) for j, w in enumerate(row) if k != j}
    unread = frozenset(pair for pair, weight in weights.items() if weight == 0)
    return unread if len(unread) < len(weights) else frozenset()


def effects(chains: pd.DataFrame, final: int) -> pd.DataFrame:
    """Return one row per setting, effect, reading and seed that reached generation `final`.

    Columns: alpha, beta, seed, effect, against, value.
    """
    rows, without_gap = [], set()
    starts = of_exchange(chains[chains["generation"] == 0]).set_index([*SETTING, "seed"])
    ends = chains[chains["generation"] == final]
    # The index has three levels, which the stubs of pandas do not know.
    exchanged, controlled = (
        dict(zip(cast("list[Key]", part.index.tolist()), part.to_dict("records"), strict=True))
        for part in (
            of_exchange(ends).set_index([*SETTING, "seed"]),
            ends[ends["control"].astype(bool)].set_index([*SETTING, "seed"]),
        )
    )
    for at, end in exchanged.items():
        alpha, beta, seed = at
        start = starts["similarity"].get(at, np.nan)
        found = [("alike_since", START, end["similarity"] - start)]
        if not _is_zero(alpha):
            without = next(
                (
                    other
                    for (a, b, s), other in exchanged.items()
                    if _is_zero(a) and b == beta and s == seed
                ),
                None,
            )
            for base, against in ((without, NO_EXCHANGE), (controlled.get(at), OWN_TEXT)):
                found += _differences(end, base, against)
                without_gap |= {(alpha, beta, name, against) for name in _without_gap(base)}
        rows += [
            dict(
                zip([*SETTING, "seed"], at, strict=True),
                effect=name,
                against=against,
                value=float(value),
            )
            for name, against, value in found
        ]
    table = pd.DataFrame(rows, columns=[*SETTING, "seed", "effect", "against", "value"])
    names = table[[*SETTING, "effect", "against"]].itertuples(index=False, name=None)
    # Seeds whose gap is wide enough are not chosen: a mean over them would be too.
    absent = np.array([name in without_gap for name in names], bool)
    return table.assign(value=table["value"].mask(absent))


def _differences(
    end: Mapping[Any, float], base: Mapping[Any, float] | None, against: str
) -> list[tuple[str, str, float]]:
    """(effect, against, value) of a chain beside what it is compared with; none without that."""
    if base is None:
        return []
    transfers = [
        found
        for suffix, column in TASKS_OF.items()
        if column in end
        for found in (
            (f"transfer{suffix}", against, base[column] - end[column]),
            (f"transfer_share{suffix}", against, share(base[column], base["own"], end[column])),
        )
    ]
    if "unread" in end:
        read, unread = (base[name] - end[name] for name in ("read", "unread"))
        transfers.append(("transfer_nearer", against, read - unread))
    return [
        *transfers,
        ("damage", against, end["own"] - base["own"]),
        ("alike_losses", against, base["spread"] - end["spread"]),
        ("alike_outputs", against, end["similarity"] - base["similarity"]),
    ]


def _without_gap(base: Mapping[Any, float] | None) -> list[str]:
    """The shares of a gap for which the chain that is compared with has none."""
    if base is None:
        return []
    return [
        f"transfer_share{suffix}"
        for suffix, column in TASKS_OF.items()
        if column in base and _no_gap(base[column], base["own"])
    ]


def share(before: float, own: float, after: float) -> float:
    """Return which share of `before - own` is gone in `after`; NaN where that is not above 0."""
    return float("nan") if _no_gap(before, own) else (before - after) / (before - own)


def _no_gap(before: float, own: float) -> bool:
    """Whether a loss is not above the one on the own task, but for rounding."""
    return before - own <= _NO_GAP * abs(own)


def _is_zero(alpha: object) -> bool:
    try:
        # Not a number: refused by float, and so no zero.
        return float(cast(Any, alpha)) == 0
    except (TypeError, ValueError):
        return False


def summary(effects: pd.DataFrame) -> pd.DataFrame:
    """Return 95 % t-intervals over seeds: columns effect, against, alpha, beta, mean, low, high,
    n.
    """
    names = ["effect", "against", *SETTING]
    rows = [
        (*key, *interval(part["value"].to_numpy(float)))
        for key, part in effects.groupby(names, sort=False)
    ]
    table = pd.DataFrame(rows, columns=[*names, "mean", "low", "high", "n"])
    return table.astype({"mean": float, "low": float, "high": float, "n": int})


def settings_by_generation(chains: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return columns alpha, beta, generation, mean, low, high, n of a column of `by_chain`."""
    rows = []
    for (alpha, beta, generation), part in chains.dropna(subset=[column]).groupby(
        [*SETTING, "generation"], sort=False
    ):
        mean, low, high, n = interval(part[column].to_numpy(float))
        rows.append(
            {
                "alpha": alpha,
                "beta": beta,
                "generation": generation,
                "mean": mean,
                "low": low,
                "high": high,
                "n": n,
            }
        )
    return pd.DataFrame(rows, columns=[*SETTING, "generation", "mean", "low", "high", "n"])


def means(table: pd.DataFrame) -> dict[tuple[Any, Any], float]:
    """Return (alpha, beta) -> mean of a table with these columns."""
    keys = zip(table["alpha"].tolist(), table["beta"].tolist(), strict=True)
    return dict(zip(keys, table["mean"].tolist(), strict=True))


# ---- the paper

GRID = [(alpha, beta) for beta in (0.0, 0.5, 1.0) for alpha in (0.0, 0.5, 1.0)]
# (model, task) -> loss at t = 0, then at the end for beta = 0, 1/2, 1 and within each alpha = 0,
# 1/2, 1; models by the name of their task. Tables 3, 6 and 7 (K = 2), and figure 7 (K = 3),
# digitised.
PAPER: Mapping[str, Mapping[tuple[str, str], Sequence[float]]] = {
    "Llama 3.2 1B, K = 2": {
        ("sciq", "sciq"): (2.8, 4.5, 3.2, 3.1, 2.9, 2.9, 3.0, 2.8, 2.8, 3.2),
        ("gsm8k", "gsm8k"): (1.2, 2.0, 1.9, 1.8, 1.2, 1.3, 1.9, 1.2, 1.2, 1.8),
        ("sciq", "gsm8k"): (2.0, 2.9, 1.9, 1.7, 2.5, 1.4, 1.8, 2.6, 1.3, 1.7),
        ("gsm8k", "sciq"): (3.7, 5.0, 3.1, 3.1, 4.2, 3.0, 3.0, 4.4, 2.9, 3.1),
    },
    "OPT-350m, K = 2": {
        ("sciq", "sciq"): (3.3, 4.8, 3.6, 3.5, 3.3, 3.3, 3.5, 3.1, 3.2, 3.5),
        ("gsm8k", "gsm8k"): (1.8, 2.6, 2.2, 2.1, 1.7, 1.7, 2.2, 1.5, 1.8, 2.2),
        ("sciq", "gsm8k"): (3.1, 3.7, 2.2, 2.2, 3.5, 1.8, 2.2, 3.4, 1.8, 2.2),
        ("gsm8k", "sciq"): (5.1, 5.6, 3.6, 3.5, 5.1, 3.5, 3.5, 5.4, 3.5, 3.4),
    },
    "OPT-350m, K = 3": {
        ("sciq", "sciq"): (3.29, 4.85, 3.63, 3.50, 3.26, 3.33, 3.53, 3.10, 3.22, 3.54),
        ("gsm8k", "sciq"): (5.08, 5.65, 3.61, 3.54, 5.32, 3.49, 3.53, 5.35, 3.48, 3.55),
        ("arc", "sciq"): (3.70, 5.13, 3.65, 3.56, 3.89, 3.50, 3.57, 3.94, 3.48, 3.54),
        ("sciq", "gsm8k"): (3.06, 3.69, 2.23, 2.26, 3.51, 1.88, 2.25, 3.38, 1.84, 2.26),
        ("gsm8k", "gsm8k"): (1.79, 2.59, 2.20, 2.20, 1.59, 1.68, 2.29, 1.53, 1.60, 2.21),
        ("arc", "gsm8k"): (2.98, 3.73, 2.26, 2.24, 3.44, 1.88, 2.24, 3.44, 1.84, 2.23),
        ("sciq", "arc"): (3.30, 4.44, 3.20, 3.11, 3.61, 3.03, 3.10, 3.55, 3.00, 3.10),
        ("gsm8k", "arc"): (3.97, 4.68, 3.21, 3.10, 4.22, 3.06, 3.09, 4.25, 3.07, 3.10),
        ("arc", "arc"): (2.89, 4.29, 3.20, 3.07, 2.90, 2.90, 3.08, 2.87, 2.84, 3.06),
    },
}
# Table -> (model, generations).
PAPER_RUNS = {
    "Llama 3.2 1B, K = 2": ("Llama-3.2-1B", 15),
    "OPT-350m, K = 2": ("opt-350m", 15),
    "OPT-350m, K = 3": ("opt-350m", 15),
}
# Table 4: Llama, K = 2, beta = 1/2: corpus -> alpha -> (t = 0, t = 15).
PAPER_SIMILARITY = {
    "private 1": {0.0: (0.73, 0.70), 0.5: (0.73, 0.88), 1.0: (0.73, 0.86)},
    "private 2": {0.0: (0.88, 0.79), 0.5: (0.88, 0.93), 1.0: (0.88, 0.94)},
    "public": {0.0: (0.50, 0.59), 0.5: (0.50, 0.64), 1.0: (0.50, 0.58)},
}


def paper_changes(name: str, own: bool) -> dict[tuple[float, float], float]:
    """Return (alpha, beta) -> mean change of the loss since t = 0 in one of the paper's tables.

    Over the own tasks, or over the others'.
    """
    rows = [
        np.asarray(row[1:]) - row[0]
        for (model, task), row in PAPER[name].items()
        if (model == task) == own
    ]
    return dict(zip(GRID, np.mean(rows, axis=0).tolist(), strict=True))


def changes(chains: pd.DataFrame, column: str, final: int) -> pd.DataFrame:
    """Return columns alpha, beta, mean, low, high, n of a column's change since generation 0.

    Changes are taken within a chain.
    """
    ends, starts = (
        chains[chains["generation"] == g].set_index("chain")[column] for g in (final, 0)
    )
    settings = chains[["chain", *SETTING]].drop_duplicates().set_index("chain")
    table = settings.assign(value=(ends - starts).reindex(settings.index)).dropna(subset=["value"])
    rows = []
    for (alpha, beta), part in table.groupby(SETTING, sort=False):
        rows.append(
            dict(
                zip(
                    (*SETTING, "mean", "low", "high", "n"),
                    (alpha, beta, *interval(part["value"].to_numpy(float))),
                    strict=True,
                )
            )
        )
    return pd.DataFrame(rows, columns=[*SETTING, "mean", "low", "high", "n"])
