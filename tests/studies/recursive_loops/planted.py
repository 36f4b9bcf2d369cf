"""Tables of a made-up study: items with properties, clusterings that cut them again and again,
chains whose shifts have planted coefficients.
"""

import numpy as np
import pandas as pd

from jaxloop.studies.recursive_loops.analysis.regression import PROPERTIES

GENERATIONS = 8
DEPENDENTS = {"diversity": ("cosine_diversity",), "quality": ("judge_quality",)}
METRICS = {"diversity": "cosine_diversity", "quality": "judge_quality"}


def clusters(rng, *, items=1500, clusterings=8, cells=4, count=24, smallest=60, overlapping=True):
    """Rows of `count` clusters: cells of Voronoi partitions of points in a plane, so that those of
    different partitions overlap.
    """
    place = rng.normal(size=(items, 2))
    if not overlapping:
        return place, np.array_split(rng.permutation(items), count)
    found = []
    for _ in range(clusterings):
        centres = place[rng.choice(items, cells, replace=False)]
        label = ((place[:, None] - centres[None]) ** 2).sum(-1).argmin(1)
        found += [np.flatnonzero(label == cell) for cell in range(cells)]
    found = [rows for rows in found if len(rows) >= smallest]
    return place, [found[i] for i in rng.permutation(len(found))[:count]]


def means(values, rows):
    """Mean of item values [items, k] over the rows of each cluster, [clusters, k]."""
    return np.stack([values[r].mean(0) for r in rows])


def unit(x):
    return (x - x.mean(0)) / x.std(0)


def tidy(chain, first, late, metric, rng, jitter=0.0):
    """metrics.csv of chains that go from `first` to a plateau at `late`, which the mean of the last
    five generations is exactly.
    """
    last = rng.normal(size=(len(first), 5)) * jitter
    values = np.column_stack(
        [
            first,
            (first + late) / 2,
            (first + 3 * late) / 4,
            late[:, None] + last - last.mean(1, keepdims=True),
        ]
    )
    rows = [
        (c, g, metric, v) for c, row in zip(chain, values, strict=True) for g, v in enumerate(row)
    ]
    return pd.DataFrame(rows, columns=["chain", "generation", "metric", "value"])


def single(
    seed=0,
    *,
    datasets=("web", "tweets"),
    ratios=(0.125, 0.25),
    count=24,
    overlapping=True,
    beta=0.0,
    noise=0.02,
    shared=0.0,
    coupling=0.0,
    sizes=None,
):
    """(metrics, chains, properties, members) of a cluster study.

    beta: coefficient per standard deviation of each property in every relative score [6] (or a
    number); noise: sd of a chain's own error; shared: sd of the error that a cluster's texts carry;
    coupling: generation 0 rises by this per sd of the first property, and late does not.
    """
    rng = np.random.default_rng(seed)
    metrics, chains, properties, members = [], [], [], []
    beta = np.broadcast_to(np.asarray(beta, float), (6,))
    for dataset in datasets:
        place, rows = clusters(rng, count=count, overlapping=overlapping, **(sizes or {}))
        x = unit(means(rng.normal(size=(len(place), 6)), rows))
        names = [f"c{i}" for i in range(len(rows))]
        own = {name: 5 + 2 * x[:, k] for k, name in enumerate(PROPERTIES)}
        properties.append(
            pd.DataFrame(
                own | {"dataset": dataset, "cluster": names, "size": [len(r) for r in rows]}
            )
        )
        members.append(
            pd.DataFrame(
                {
                    "dataset": dataset,
                    "cluster": np.repeat(names, [len(r) for r in rows]),
                    "row": np.concatenate(rows),
                }
            )
        )
        shocks = {
            name: unit(means(rng.normal(size=(len(place), 1)), rows))[:, 0] for name in METRICS
        }
        for ratio in ratios:
            chain = [f"{dataset}-{c}-{ratio:g}" for c in names]
            chains.append(
                pd.DataFrame(
                    {
                        "chain": chain,
                        "dataset": dataset,
                        "ratio": ratio,
                        "seed": 0,
                        "cluster": names,
                    }
                )
            )
            for name, metric in METRICS.items():
                error = noise * rng.normal(size=len(rows)) + shared * shocks[name]
                if coupling:
                    first = 1 + coupling * x[:, 0] + 0.01 * rng.normal(size=len(rows))
                    late = 0.8 + error
                else:
                    first = 0.6 + 0.05 * rng.normal(size=len(rows)) ** 2
                    late = first * (0.9 - 0.2 * ratio + x @ beta + error)
                metrics.append(tidy(chain, first, late, metric, rng, 0.01))
    return tuple(
        pd.concat(tables, ignore_index=True) for tables in (metrics, chains, properties, members)
    )


def multi(
    seed=0,
    *,
    domains=("reddit", "twitter", "wiki"),
    ratios=(0.125, 0.25),
    count=40,
    beta=0.0,
    cross=0.0,
    noise=0.02,
    shared=0.0,
    sizes=None,
):
    """The same for a multi-domain study: beta in a chain's own domain, cross from the properties of
    the others.
    """
    rng = np.random.default_rng(seed)
    metrics, chains, properties, members, x, shocks = [], [], [], [], {}, {}
    for domain in domains:
        place, rows = clusters(rng, count=count, **(sizes or {}))
        x[domain] = unit(means(rng.normal(size=(len(place), 6)), rows))
        shocks[domain] = {
            name: unit(means(rng.normal(size=(len(place), 1)), rows))[:, 0] for name in METRICS
        }
        names = [f"c{i}" for i in range(count)]
        own = {name: 5 + 2 * x[domain][:, k] for k, name in enumerate(PROPERTIES)}
        properties.append(
            pd.DataFrame(
                own | {"dataset": domain, "cluster": names, "size": [len(r) for r in rows]}
            )
        )
        members.append(
            pd.DataFrame(
                {
                    "dataset": domain,
                    "cluster": np.repeat(names, [len(r) for r in rows]),
                    "row": np.concatenate(rows),
                }
            )
        )
    pairing = {domain: rng.permutation(count) for domain in domains}
    for ratio in ratios:
        chain = [f"mixed{i}-{ratio:g}" for i in range(count)]
        table = {"chain": chain, "dataset": "", "ratio": ratio, "seed": 0}
        chains.append(
            pd.DataFrame(table | {f"cluster.{d}": [f"c{i}" for i in pairing[d]] for d in domains})
        )
        for domain in domains:
            for name, metric in METRICS.items():
                effect = sum(
                    x[d][pairing[d]].sum(1) * (beta if d == domain else cross) for d in domains
                )
                error = (
                    noise * rng.normal(size=count) + shared * shocks[domain][name][pairing[domain]]
                )
                first = 0.6 + 0.05 * rng.normal(size=count) ** 2
                metrics.append(
                    tidy(
                        chain,
                        first,
                        first * (0.9 - 0.2 * ratio + effect + error),
                        f"{metric}@{domain}",
                        rng,
                        0.01,
                    )
                )
    return tuple(
        pd.concat(tables, ignore_index=True) for tables in (metrics, chains, properties, members)
    )
