"""Run directories made by hand: config.json, metrics.csv, the marker."""

import json

import numpy as np
import pandas as pd

from jaxloop.runtime.workdir import MARKER
from jaxloop.studies.chain.config import ChainConfig

METRICS = ("cosine_diversity", "text_length")


def values(factors, seeds, generations, *, metrics=METRICS, shift=0.0, seed=0, entities=1):
    """A metrics table: a line per dict of `factors`, a chain for each of its seeds."""
    rng = np.random.default_rng(seed)
    rows = [
        {
            "study": "chain",
            "chain": "_".join([*(f"{k}-{v}" for k, v in factor.items()), f"seed-{s}"]),
            **factor,
            "seed": s,
            "entity": e,
            "generation": g,
            "metric": m,
            "value": 5 + k + shift - g / 9 + rng.normal() / 5,
        }
        for factor in factors
        for s in seeds
        for k, m in enumerate(metrics)
        for g in range(generations)
        for e in range(entities)
    ]
    return pd.DataFrame(rows)


def write(path, metrics, config=None, marker=None):
    """A run directory; config: changes of the fields of a chain study."""
    path.mkdir(parents=True)
    (path / MARKER).write_text(json.dumps({"format": 1, **(marker or {})}))
    stored = ChainConfig().model_dump(mode="json")
    for field, value in (config or {}).items():
        *above, last = field.split(".")
        node = stored
        for name in above:
            node = node[name]
        node[last] = value
    (path / "config.json").write_text(json.dumps(stored))
    if metrics is not None:
        metrics.to_csv(path / "metrics.csv", index=False)
    return path
