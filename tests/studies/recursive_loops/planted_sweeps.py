"""Tables of made-up experiments that vary a factor: ratios, quality levels, models, political
mixes, and the toy; values are known.
"""

import itertools

import numpy as np
import pandas as pd

RATIOS = (0.0625, 0.125, 0.25, 0.5, 0.75, 1.0)
GENERATIONS = 8


def loss(ratio, level):
    """Relative late value of a chain without noise."""
    return 1 - 0.3 * min(ratio, 0.5) * (1 + level)


def sweep(
    seed=0,
    *,
    factor="dataset",
    levels=("100M_tweets", "wikipedia"),
    ratios=RATIOS,
    seeds=5,
    noise=0.01,
    dataset="100M_tweets",
    shape=loss,
):
    """(metrics, chains): quality starts at 60 and diversity at .7, and both end at `shape(ratio,
    number of the level)` of that.
    """
    rng = np.random.default_rng(seed)
    chains, rows = [], []
    for (i, level), ratio, s in itertools.product(enumerate(levels), ratios, range(seeds)):
        chain = f"{level}-r{ratio:g}-s{s}"
        chains.append(
            {"chain": chain, "dataset": dataset, "ratio": ratio, "seed": s} | {factor: level}
        )
        for metric, first in (("judge_quality", 60.0), ("cosine_diversity", 0.7)):
            start, end = first * (1 + 0.01 * rng.normal()), shape(ratio, i) + noise * rng.normal()
            path = [start, start * (1 + end) / 2, start * (1 + 3 * end) / 4, *[start * end] * 5]
            about = {
                "study": "loops",
                "chain": chain,
                factor: level,
                "ratio": ratio,
                "seed": s,
                "metric": metric,
            }
            rows += [about | {"generation": g, "value": v} for g, v in enumerate(path)]
    return pd.DataFrame(rows), pd.DataFrame(chains)


def political(
    seed=0,
    *,
    mixes=("100l0r", "50l50r", "0l100r"),
    bases=("mixed",),
    seeds=5,
    texts=60,
    ends=None,
    neutral=20,
):
    """(metrics, chains, scores): leans of mixes at 20, 50 and 80 that shrink to half their distance
    from 50 over 8 generations.
    """
    rng = np.random.default_rng(seed)
    start = dict(zip(mixes, np.linspace(20, 80, len(mixes)), strict=True))
    ends = ends or {mix: 50 + (lean - 50) / 2 for mix, lean in start.items()}
    chains, rows, scores = [], [], []
    for mix, base, s in itertools.product(mixes, bases, range(seeds)):
        chain = f"{mix}-{base}-s{s}"
        chains.append(
            {
                "chain": chain,
                "dataset": "senator_tweets",
                "ratio": 0.75,
                "seed": s,
                "mix": mix,
                "bases": base,
            }
        )
        for g in range(-1, GENERATIONS):
            share = (g + 1) / GENERATIONS
            lean = np.clip(
                start[mix] * (1 - share) + ends[mix] * share + 6 * rng.normal(size=texts), 0, 100
            )
            lean[: int(6 * share)] = -1  # not political
            lean[10 : 10 + int(neutral * share)] = 50.0
            scores.append(
                pd.DataFrame(
                    {"chain": chain, "generation": g, "metric": "political_lean", "value": lean}
                )
            )
            if g >= 0:
                about = {
                    "chain": chain,
                    "mix": mix,
                    "bases": base,
                    "ratio": 0.75,
                    "seed": s,
                    "generation": g,
                }
                rows.append(about | {"metric": "political_lean", "value": lean[lean >= 0].mean()})
    return pd.DataFrame(rows), pd.DataFrame(chains), pd.concat(scores, ignore_index=True)


def toy(seed=0, *, ratios=(0.0, 0.125, 0.25, 0.5, 1.0), chains=4):
    """(metrics, chains) of the histogram toy: a U-shape for the biased one without overlap, a fall
    elsewhere.
    """
    rng = np.random.default_rng(seed)
    table, rows = [], []
    for accumulate, (bias, overlap), ratio, s in itertools.product(
        (True, False), ((False, True), (True, True), (True, False)), ratios, range(chains)
    ):
        chain = f"a{accumulate:d}-b{bias:d}-o{overlap:d}-r{ratio:g}-{s}"
        table.append(
            {
                "chain": chain,
                "dataset": "",
                "ratio": ratio,
                "seed": s,
                "bias": bias,
                "overlap": overlap,
                "accumulate": accumulate,
            }
        )
        depth = 1.6 * ratio * (1.35 - ratio) if bias and not overlap else 0.4 * ratio
        for g in range(GENERATIONS):
            rows.append(
                {
                    "chain": chain,
                    "generation": g,
                    "metric": "entropy",
                    "value": 4.6 * (1 - depth * g / 7) + 0.01 * rng.normal(),
                }
            )
    return pd.DataFrame(rows), pd.DataFrame(table)


def ledger(chains, size=400):
    """What chains at their ratio train on: new items in generation 1, later also older ones, in the
    design's proportions.
    """
    rows = []
    for (_, chain), g in itertools.product(chains.iterrows(), range(GENERATIONS)):
        synthetic = 0 if g == 0 else round(size * chain["ratio"])
        for source, count in (("human", size - synthetic), ("synthetic", synthetic)):
            ages = range(1, g + 1) if source == "synthetic" else [0]
            rows += [
                {
                    "chain": chain["chain"],
                    "generation": g,
                    "source": source,
                    "from_generation": max(g - a, 0),
                    "count": count // len(ages),
                }
                for a in ages
            ]
    return pd.DataFrame(rows)
