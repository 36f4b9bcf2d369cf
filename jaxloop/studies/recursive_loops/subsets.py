"""The subsets of human text that the chains of an experiment read.

They are whole datasets, clusters, mixtures of clusters, splits, or political mixes.
"""

import hashlib
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxloop.config import suggestion
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.common import identity
from jaxloop.studies.recursive_loops import political_leaning, split_config
from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data import cluster_choice, clustering
from jaxloop.studies.recursive_loops.data.clustering import Method
from jaxloop.studies.recursive_loops.sources import Source


@dataclass(frozen=True, eq=False)
class Subset:
    """Some rows of one domain, or of several.

    Attributes:
        name: unique in the study; files are named after it.
        dataset: the domain; "" if there are several.
        factors: what distinguishes it from the study's other subsets, for the tables.
        parts: (domain, row numbers) pairs; several are mixed in equal shares.
        about: further columns of subsets.csv and properties.csv.
        mixed_of: the clusters of a mixture.
        ratios: ratios of the chains that are run on it; None: all of the experiment.
    """

    name: str
    dataset: str
    factors: Mapping[str, Any]
    parts: tuple[tuple[str, np.ndarray], ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    mixed_of: tuple["Subset", ...] = ()
    ratios: tuple[float, ...] | None = None

    @property
    def clusters(self) -> tuple["Subset", ...]:
        """This subset if it is a cluster, or the clusters of a mixture; empty for other subsets."""
        return self.mixed_of or ((self,) if "cluster" in self.factors else ())

    @property
    def size(self) -> int:
        """How many texts a chain can draw from.

        A mixture takes as many from every part as its smallest part has.
        """
        return len(self.parts) * min((len(rows) for _, rows in self.parts), default=0)


def placeholders(config: LoopsConfig) -> list[Subset]:
    """Return the subsets that the config asks for with names and factors, but without rows.

    No data are read.
    """
    names = list(config.domains)
    if config.subset_kind == "clusters":
        return [_cluster(name, i) for name in names for i in range(config.clusters.count)]
    if config.subset_kind == "mixtures":
        drawn = {name: [_cluster(name, i) for i in range(config.clusters.count)] for name in names}
        return mixtures(config, drawn)
    if config.subset_kind == "political":
        return [
            Subset(_mix_name(left), names[0], {"mix": _mix_name(left)})
            for left in config.political_leaning.mixes
        ]
    if config.subset_kind in ("quality", "length"):
        return [
            _split(config, name, label)
            for name in names
            for label in split_config.labels(config.splits, name, config.subset_kind)
        ]
    return [Subset(name, name, {}) for name in names]


def build(config: LoopsConfig, sources: Mapping[str, Source], folder: Path) -> list[Subset]:
    """Return the subsets with their rows.

    folder: the run directory, for the report of the classifier of political leaning. Raises
    ValueError, one sentence, where the data do not have what the experiment asks for.
    """
    if config.subset_kind == "clusters":
        of_sources = [clusters(config, source) for source in sources.values()]
        return list(itertools.chain.from_iterable(of_sources))
    if config.subset_kind == "mixtures":
        return mixtures(config, {name: clusters(config, s) for name, s in sources.items()})
    if config.subset_kind == "political":
        return mixes(config, next(iter(sources.values())), folder)
    if config.subset_kind in ("quality", "length"):
        return [subset for source in sources.values() for subset in splits(config, source)]
    return [
        Subset(name, name, {}, ((name, np.arange(len(source.texts))),))
        for name, source in sources.items()
    ]


# ---- clusters


def _cluster(dataset: str, i: int) -> Subset:
    return Subset(f"{dataset}.c{i:03d}", dataset, {"cluster": f"c{i:03d}"})


def clusters(config: LoopsConfig, source: Source) -> list[Subset]:
    """Return the clusters of a dataset that chains are run on.

    They are drawn from the clusters of all clusterings that are large enough. Raises ValueError
    where there are too few. Source: arXiv 2504.03814, section 4.2 and its released code.
    """
    options = config.clusters
    needed = check_size(config)
    points = loops_data.embeddings(config, source)
    fit_rows = min(options.fit_rows, len(points))
    configurations = clustering.configurations(
        clustering_methods(config, fit_rows), options.min_distances, options.noise
    )
    encoder = identity.cache_key_of_model(config.embedder)
    key = repr((encoder, fit_rows, options.projections, options.seed))
    folder = source.folder / f"clusters-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    LOGGER.info("%d clusterings of %s", len(configurations), source.name)
    names = clustering.cluster_all(
        points,
        folder,
        configurations,
        fit_rows=fit_rows,
        projections=options.projections,
        seed=options.seed,
        jobs=options.jobs,
        progress=_log_progress(source.name),
    )
    candidates = cluster_choice.select_all(
        folder,
        names,
        min_size=options.min_size,
        count=options.per_clustering,
        seed=options.seed,
        needed=needed,
    )
    chosen = cluster_choice.final_sample(candidates, options.count, options.draw_seed)
    if len(chosen) < options.count:
        raise ValueError(
            f"config.clusters.count = {options.count}: {source.name} has {len(chosen)} clusters "
            f"of at least {options.min_size} texts; ask for fewer or smaller ones"
        )
    subsets = []
    for i, cluster in enumerate(chosen):
        labels, _ = clustering.load_labels(folder, cluster.clustering)
        rows = cluster_choice.members(cluster, labels)
        about = {
            "size": len(rows),
            "kind": cluster.kind,
            "clustering": cluster.clustering,
            "candidates": len(candidates),
        }
        name = _cluster(source.name, i)
        subsets.append(replace(name, parts=((source.name, rows),), about=about))
    return subsets


def texts_needed(config: LoopsConfig) -> int:
    """Return how many human texts a chain takes from one cluster at most.

    With mixtures that is one cluster's share of what the chain needs, rounded up.
    """
    chain = config.chain
    sizes = chain.gen0_sizes or (chain.first_size or chain.size,)
    human = max(chain.size - int(r * chain.size) for r in chain.ratios)
    needed = max(sizes) + (chain.generations - 1) * human
    return -(-needed // len(config.domains)) if config.subset_kind == "mixtures" else needed


def check_size(config: LoopsConfig) -> int:
    """Return `texts_needed`. Raises ValueError where it exceeds `config.clusters.min_size`."""
    needed = texts_needed(config)
    if config.clusters.min_size < needed:
        raise ValueError(
            f"config.clusters.min_size = {config.clusters.min_size}: the longest chain needs "
            f"{needed:,} human texts of a cluster; "
            f"must be at least {needed}, or chains shorter or smaller"
        )
    return needed


def clustering_methods(config: LoopsConfig, fit_rows: int) -> tuple[Method, ...]:
    """Return the clustering methods that the config names, for projections of `fit_rows` points.

    Raises ValueError for a name that no method has.
    """
    methods = {method.name: method for method in clustering.methods(fit_rows)}
    for name in config.clusters.methods:
        if name not in methods:
            raise ValueError(
                f"config.clusters.methods has '{name}', which is no method; "
                f"{suggestion(name, methods)}"
            )
    return tuple(methods[name] for name in config.clusters.methods or methods)


def _log_progress(dataset: str) -> Callable[[int, int, str], None]:
    def log(done: int, total: int, clustering_name: str) -> None:
        if done == total or done % 10 == 0:
            LOGGER.info("%s: %d of %d clusterings", dataset, done, total)

    return log


def overlap(
    subsets: Sequence[Subset], sources: Mapping[str, Source]
) -> dict[str, dict[str, float]]:
    """Return how much the clusters of each dataset overlap (Jaccard).

    {dataset: `cluster_choice.overlap_summary` of its clusters}.
    """
    summaries = {}
    for name, source in sources.items():
        clusters_rows = [subset.parts[0][1] for subset in subsets if subset.dataset == name]
        matrix = cluster_choice.jaccard_of_rows(clusters_rows, len(source.texts))
        summaries[name] = cluster_choice.overlap_summary(matrix)
    return summaries


# ---- mixtures


def _mixture(i: int, parts: Mapping[str, Subset]) -> Subset:
    factors = {f"cluster.{name}": part.factors["cluster"] for name, part in parts.items()}
    return Subset(
        f"m{i:03d}",
        "",
        factors,
        tuple(pair for part in parts.values() for pair in part.parts),
        mixed_of=tuple(parts.values()),
    )


def mixtures(config: LoopsConfig, of_domains: Mapping[str, Sequence[Subset]]) -> list[Subset]:
    """Return mixtures: subsets that each have one cluster of every domain.

    A random order of each domain's clusters, with a seed of its own, decides which meet, or with
    `config.clusters.pairing` = "drawn" the order in which they were drawn. That is no random
    pairing: domains with as many clusters to draw from are drawn alike with one seed, so that
    mixtures join clusters of one clustering and one kind of merge.
    """
    count = config.clusters.count
    order = {name: np.arange(count) for name in of_domains}
    if config.clusters.pairing == "random":
        order = {name: _random_order(config, name) for name in of_domains}
    return [
        _mixture(i, {name: group[int(order[name][i])] for name, group in of_domains.items()})
        for i in range(count)
    ]


def _random_order(config: LoopsConfig, domain: str) -> np.ndarray:
    digest = hashlib.sha256(f"{config.clusters.draw_seed}:{domain}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    return rng.permutation(config.clusters.count)


# ---- splits


def _split(config: LoopsConfig, domain: str, label: str | float) -> Subset:
    """A subset by quality or length, without its rows."""
    factors = {f"{config.subset_kind}_level": label}
    ratios = split_config.ratios(config.splits, domain, label)
    return Subset(f"{domain}.{label}", domain, factors, ratios=ratios)


def splits(config: LoopsConfig, source: Source) -> list[Subset]:
    """Return the subsets of a dataset by quality or by length.

    Quality: texts that have exactly one of a subset's scores, or that lie between quantiles.
    Length: texts between quantiles of the number of characters, without those of the quality
    scores that are left out. Raises ValueError where no text has one of the scores.
    """
    kind: Literal["quality", "length"] = "quality" if config.subset_kind == "quality" else "length"
    labels = split_config.labels(config.splits, source.name, kind)
    values = _split_values(config, source, kind)
    if split_config.quantiles(config.splits, source.name, kind) is None:
        scores = split_config.scores(config.splits, source.name)
        groups = [np.flatnonzero(np.isin(values, chosen)) for chosen in scores.values()]
        if not any(len(rows) for rows in groups):
            raise ValueError(
                f"config.splits: no text of {source.name} has one of the scores "
                f"{', '.join(f'{score:g}' for chosen in scores.values() for score in chosen)} "
                f"under '{config.quality}'; set splits.quantiles for scores that are not round"
            )
    else:
        groups = _between_quantiles(values, len(labels))
    subsets = []
    for label, rows in zip(labels, groups, strict=True):
        mean = float(values[rows].mean()) if len(rows) else float("nan")
        subset = _split(config, source.name, label)
        about = {"size": len(rows), "mean": mean}
        subsets.append(replace(subset, parts=((source.name, rows),), about=about))
    return subsets


def _split_values(
    config: LoopsConfig, source: Source, kind: Literal["quality", "length"]
) -> np.ndarray:
    """What the texts are cut by, [n]; nan for a text that is in no subset."""
    if kind == "quality":
        return loops_data.quality(config, source)
    lengths = np.array([len(text) for text in source.texts], np.float64)
    own = config.splits.domains.get(source.name)
    if own is not None and own.without:
        left_out = np.isin(loops_data.quality(config, source), own.without)
        lengths[left_out] = np.nan
    return lengths


def _between_quantiles(values: np.ndarray, count: int) -> list[np.ndarray]:
    """Row numbers in `count` groups of (nearly) equal size, the smallest values [n] first.

    Equal values keep the order of their rows. Rows whose value is nan are in no group.
    """
    rows = np.flatnonzero(~np.isnan(values))
    by_value = rows[np.argsort(values[rows], kind="stable")]
    return [np.sort(part) for part in np.array_split(by_value, count)]


# ---- political mixes


def _mix_name(left: int) -> str:
    return f"{left}l{100 - left}r"


def mixes(config: LoopsConfig, source: Source, folder: Path) -> list[Subset]:
    """Return mixes of left and right texts, all of the same size.

    They take the first rows of each side without shuffling, as in the released code of arXiv
    2504.03814. Raises ValueError where a side has no text.
    """
    rows, leaning = political_leaning.human(config, source, folder)
    neutral = config.political_leaning.neutral
    left = rows[(leaning >= 0) & (leaning < 50 - neutral)]
    right = rows[leaning > 50 + neutral]
    size = min(len(left), len(right))
    if not size:
        raise ValueError(
            f"config.political_leaning: {source.name} has {len(left)} texts of the left and "
            f"{len(right)} of the right; both sides are needed"
        )
    subsets = []
    for share in config.political_leaning.mixes:
        chosen = np.concatenate([left[: size * share // 100], right[: size * (100 - share) // 100]])
        mean = float(leaning[np.isin(rows, chosen)].mean())
        subsets.append(
            Subset(
                name=_mix_name(share),
                dataset=source.name,
                factors={"mix": _mix_name(share)},
                parts=((source.name, np.sort(chosen)),),
                about={"size": len(chosen), "mean": mean},
            )
        )
    return subsets


def table(subsets: Sequence[Subset]) -> dict[str, list]:
    """Return the columns of subsets.csv: the factors, size and `about` of every subset."""
    names = dict.fromkeys([n for s in subsets for n in (*s.factors, *s.about)] + ["size"])
    rows = [{**subset.factors, "size": subset.size, **subset.about} for subset in subsets]
    columns: dict[str, list] = {
        "subset": [subset.name for subset in subsets],
        "dataset": [subset.dataset for subset in subsets],
    }
    return columns | {name: [row.get(name) for row in rows] for name in names}
