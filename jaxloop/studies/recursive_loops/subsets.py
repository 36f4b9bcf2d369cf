"""The subsets of human text that chains of an experiment read: whole datasets, clusters, mixtures
of them, splits, political mixes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.config import Settings, cluster_needed
from jaxloop.studies.recursive_loops.sources import Source


@dataclass(frozen=True, eq=False)
class Subset:
    """Rows of one domain, or of several.

    name       unique in the study; names files
    dataset    the domain, "" for several
    factors    what tells it from the others of its kind, for the tables
    parts      (domain, rows) pairs; several are mixed in equal shares
    about      further columns of the table of clusters
    mixed_of   the clusters of a mixture
    """

    name: str
    dataset: str
    factors: Mapping[str, Any]
    parts: tuple[tuple[str, np.ndarray], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    mixed_of: tuple["Subset", ...] = ()

    @property
    def clusters(self) -> tuple["Subset", ...]:
        """The clusters that it is, or is mixed of."""
        return self.mixed_of or ((self,) if "cluster" in self.factors else ())

    @property
    def size(self) -> int:
        """Texts that a chain can draw from: of a mixture, as many from every part as the smallest
        has.
        """
        return len(self.parts) * min((len(rows) for _, rows in self.parts), default=0)


def placeholders(settings: Settings) -> list[Subset]:
    """The subsets that the config asks for, before any data are read: names and factors alone.
    Splits may turn out to be fewer.
    """
    names = list(settings.domains)
    if settings.kind == "clusters":
        return [_cluster(name, i) for name in names for i in range(settings.clusters.count)]
    if settings.kind == "mixtures":
        return [
            _mixture(i, {name: _cluster(name, i) for name in names})
            for i in range(settings.clusters.count)
        ]
    if settings.kind == "political":
        return [
            Subset(_mix_name(left), names[0], {"mix": _mix_name(left)})
            for left in settings.lean.mixes
        ]
    if settings.kind in ("quality", "length"):
        factor = f"{settings.kind}_level"
        return [
            Subset(f"{name}.{label}", name, {factor: label})
            for name in names
            for label in _labels(settings)
        ]
    return [Subset(name, name, {}) for name in names]


def build(settings: Settings, sources: Mapping[str, Source], folder: Path) -> list[Subset]:
    """The subsets with their rows. `folder` (of the run) gets the classifier of political lean.

    Raises ValueError, one sentence, where the data do not have what the experiment asks for.
    """
    if settings.kind in ("clusters", "mixtures"):
        found = {name: clusters(settings, source) for name, source in sources.items()}
        return (
            [c for group in found.values() for c in group]
            if settings.kind == "clusters"
            else mixtures(settings, found)
        )
    if settings.kind == "political":
        return mixes(settings, next(iter(sources.values())), folder)
    if settings.kind in ("quality", "length"):
        return [subset for source in sources.values() for subset in splits(settings, source)]
    return [
        Subset(name, name, {}, ((name, np.arange(len(source.texts))),))
        for name, source in sources.items()
    ]


# ---- clusters
# ---------------------------------------------------------------------------------------------------------


def _cluster(dataset: str, i: int, **known) -> Subset:
    return Subset(f"{dataset}.c{i:03d}", dataset, {"cluster": f"c{i:03d}"}, **known)


def clusters(settings: Settings, source: Source) -> list[Subset]:
    """The clusters of a dataset (recursive_loops.md, section 4): all clusterings, those that are
    large enough, the final draw.
    """
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.recursive_loops.data import clustering

    c = settings.clusters
    needed = check_size(settings)
    points = loops_data.embeddings(settings, source)
    fit_rows = min(c.fit_rows, len(points))
    chosen = clustering.configurations(
        clustering_methods(settings, fit_rows), c.min_distances, c.noise
    )
    key = hashlib.sha256(
        repr((settings.embedder, fit_rows, c.projections, c.seed)).encode()
    ).hexdigest()[:12]
    place = source.folder / f"clusters-{key}"
    LOGGER.info("%d clusterings of %s", len(chosen), source.name)
    names = clustering.cluster_all(
        points,
        place,
        chosen,
        fit_rows=fit_rows,
        projections=c.projections,
        seed=c.seed,
        jobs=c.jobs,
        progress=_progress(source.name),
    )
    candidates = clustering.select_all(
        place, names, min_size=c.min_size, count=c.per_clustering, seed=c.seed, needed=needed
    )
    final = clustering.final_sample(candidates, c.count, c.draw_seed)
    if len(final) < c.count:
        raise ValueError(
            f"config.clusters.count = {c.count}: {source.name} has {len(final)} clusters of at "
            f"least {c.min_size} texts; ask for fewer or smaller ones"
        )
    out = []
    for i, one in enumerate(final):
        rows = clustering.members(one, clustering.load_labels(place, one.clustering)[0])
        about = {
            "size": len(rows),
            "kind": one.kind,
            "clustering": one.clustering,
            "candidates": len(candidates),
        }
        out.append(_cluster(source.name, i, parts=((source.name, rows),), about=about))
    return out


def check_size(settings: Settings) -> int:
    """Texts that the longest chain of a cluster needs. Raises ValueError where a cluster of the
    smallest size has fewer.
    """
    needed = cluster_needed(settings)
    if settings.clusters.min_size < needed:
        raise ValueError(
            f"config.clusters.min_size = {settings.clusters.min_size}: the longest chain needs "
            f"{needed:,} human texts of a cluster; "
            f"must be at least {needed}, or chains shorter or smaller"
        )
    return needed


def clustering_methods(settings: Settings, fit_rows: int):
    """The chosen methods. Raises ValueError for a name that is none."""
    from jaxloop.config import suggestion
    from jaxloop.studies.recursive_loops.data import clustering

    known = {method.name: method for method in clustering.methods(fit_rows)}
    for name in settings.clusters.methods:
        if name not in known:
            raise ValueError(
                f"config.clusters.methods has '{name}', which is no method; "
                f"{suggestion(name, known)}"
            )
    return tuple(known[name] for name in settings.clusters.methods or known)


def _progress(name):
    from jaxloop.runtime.log import LOGGER

    def say(done, total, clustering):
        if done == total or done % 10 == 0:
            LOGGER.info("%s: %d of %d clusterings", name, done, total)

    return say


def overlap(
    subsets: Sequence[Subset], sources: Mapping[str, Source]
) -> dict[str, dict[str, float]]:
    """Of each dataset, how much its clusters overlap (Jaccard): see `clustering.overlap_summary`."""
    from jaxloop.studies.recursive_loops.data import clustering

    out = {}
    for name, source in sources.items():
        mine = [subset.parts[0][1] for subset in subsets if subset.dataset == name]
        labels = {str(i): np.zeros(len(source.texts), np.int8) for i in range(len(mine))}
        for i, rows in enumerate(mine):
            labels[str(i)][rows] = 1
        own = [clustering.Cluster(str(i), "direct", (1,), len(rows)) for i, rows in enumerate(mine)]
        out[name] = clustering.overlap_summary(clustering.jaccard(own, labels))
    return out


# ---- mixtures
# ---------------------------------------------------------------------------------------------------------


def _mixture(i: int, parts: Mapping[str, Subset]) -> Subset:
    factors = {f"cluster.{name}": part.factors["cluster"] for name, part in parts.items()}
    return Subset(
        f"m{i:03d}",
        "",
        factors,
        tuple(pair for part in parts.values() for pair in part.parts),
        mixed_of=tuple(parts.values()),
    )


def mixtures(settings: Settings, found: Mapping[str, Sequence[Subset]]) -> list[Subset]:
    """One cluster of every domain each, paired at random: each domain's clusters are in the random
    order of their draw.
    """
    return [
        _mixture(i, {name: group[i] for name, group in found.items()})
        for i in range(settings.clusters.count)
    ]


# ---- splits
# -----------------------------------------------------------------------------------------------------------


def _labels(settings: Settings) -> list:
    s = settings.splits
    if settings.kind == "length":
        count = s.quantiles or 3
        return {2: ["short", "long"], 3: ["short", "medium", "long"]}.get(count) or [
            f"L{i + 1}" for i in range(count)
        ]
    return (
        [f"Q{i + 1}" for i in range(s.quantiles)]
        if s.quantiles
        else [int(v) if v == int(v) else v for v in s.levels]
    )


def splits(settings: Settings, source: Source) -> list[Subset]:
    """Subsets of a dataset by quality (texts with exactly a score, or between quantiles) or by
    quantiles of length in characters.
    """
    factor, labels = f"{settings.kind}_level", _labels(settings)
    values = (
        loops_data.quality(settings, source)
        if settings.kind == "quality"
        else np.array([len(text) for text in source.texts], np.float64)
    )
    if settings.kind == "quality" and settings.splits.quantiles is None:
        groups = [np.flatnonzero(values == level) for level in settings.splits.levels]
        if not any(len(rows) for rows in groups):
            raise ValueError(
                f"config.splits.levels = {settings.splits.levels}: no text of {source.name} has "
                f"one of these scores under '{settings.quality}'; "
                "set splits.quantiles for scores that are not round"
            )
    else:
        groups = _between_quantiles(values, len(labels))
    about = [
        {"size": len(rows), "mean": float(values[rows].mean()) if len(rows) else float("nan")}
        for rows in groups
    ]
    return [
        Subset(f"{source.name}.{n}", source.name, {factor: n}, ((source.name, r),), a)
        for n, r, a in zip(labels, groups, about, strict=True)
    ]


def _between_quantiles(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows in `count` groups of (nearly) equal size, from the smallest values to the largest; ties
    keep the order of the rows, nan none.
    """
    known = np.flatnonzero(~np.isnan(values))
    return [
        np.sort(part)
        for part in np.array_split(known[np.argsort(values[known], kind="stable")], count)
    ]


# ---- political mixes
# --------------------------------------------------------------------------------------------------


def _mix_name(left: int) -> str:
    return f"{left}l{100 - left}r"


def mixes(settings: Settings, source: Source, folder: Path) -> list[Subset]:
    """Mixes of left and right texts of one size (recursive_loops.md, section 6.2): the first rows
    of each side, not shuffled.
    """
    from jaxloop.studies.recursive_loops import political_leaning

    rows, lean = political_leaning.human(settings, source, folder)
    band = settings.lean.neutral
    left, right = rows[lean < 50 - band], rows[lean > 50 + band]
    size = min(len(left), len(right))
    if not size:
        raise ValueError(
            f"config.lean: {source.name} has {len(left)} texts of the left and {len(right)} of "
            "the right; both sides are needed"
        )
    out = []
    for share in settings.lean.mixes:
        chosen = np.concatenate([left[: size * share // 100], right[: size * (100 - share) // 100]])
        about = {"size": len(chosen), "mean": float(lean[np.isin(rows, chosen)].mean())}
        out.append(
            Subset(
                _mix_name(share),
                source.name,
                {"mix": _mix_name(share)},
                ((source.name, np.sort(chosen)),),
                about,
            )
        )
    return out


def table(subsets: Sequence[Subset]) -> dict[str, list]:
    """Columns of subsets.csv: every subset with its factors, size and what else is known of it."""
    names = list(dict.fromkeys(name for s in subsets for name in (*s.factors, *s.about)))
    out: dict[str, list] = {
        "subset": [s.name for s in subsets],
        "dataset": [s.dataset for s in subsets],
    }
    return out | {
        name: [{**s.factors, "size": s.size, **s.about}.get(name) for s in subsets]
        for name in dict.fromkeys([*names, "size"])
    }
