"""Writes properties.csv (properties of the clusters of human text) and members.parquet (rows)."""

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.metrics import registry
from jaxloop.metrics.umap import EvaluationMap
from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.properties import cluster_properties
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset

_MEMBERS = pa.schema([("dataset", pa.string()), ("cluster", pa.string()), ("row", pa.int64())])


def write_properties(
    config: LoopsConfig,
    clusters: Sequence[Subset],
    sources: Mapping[str, Source],
    root: Path,
    *,
    later: bool = False,
) -> None:
    """Write properties.csv and members.parquet into the run directory `root`.

    The properties of each cluster are saved as soon as they are measured, so that an interrupted
    run goes on from there. later: leave out the quality of texts that a judge at an address has not
    scored yet. Raises `JudgeSilent` where a judge is needed and does not answer.
    """
    rows = []
    for name, source in sources.items():
        properties_of = _measuring(config, source, root, later)
        of_source = [cluster for cluster in clusters if cluster.dataset == name]
        for cluster in of_source:
            about = {"dataset": name, "cluster": cluster.factors["cluster"], **cluster.about}
            rows.append({**about, **properties_of(cluster)})
        LOGGER.info("properties of %d clusters of %s", len(of_source), name)
    ordered = [cluster for name in sources for cluster in clusters if cluster.dataset == name]
    _write_members(ordered, root)
    columns = dict.fromkeys(column for row in rows for column in row)
    table = {column: [row.get(column) for row in rows] for column in columns}
    write_atomic(root / "properties.csv", tables.to_csv(table), durable=False)


def _write_members(clusters: Iterable[Subset], root: Path) -> None:
    partial = root / ".tmp-members.parquet"
    with pq.ParquetWriter(
        partial, _MEMBERS, compression="zstd", write_page_checksum=True
    ) as writer:
        for cluster in clusters:
            ((dataset, members),) = cluster.parts
            columns = {
                "dataset": [dataset] * len(members),
                "cluster": [cluster.factors["cluster"]] * len(members),
                "row": members,
            }
            writer.write_table(pa.table(columns, schema=_MEMBERS))
    partial.replace(root / "members.parquet")


class _Inputs(NamedTuple):
    """What the properties of the clusters of a dataset of n texts are computed from.

    Attributes:
        embeddings: [n, d].
        projection: the dataset's evaluation UMAP.
        quality: [n]; None where a judge is asked later.
        toxicity: [n]; None where it is not measured.
    """

    embeddings: np.ndarray
    projection: EvaluationMap
    quality: np.ndarray | None
    toxicity: np.ndarray | None


def awaits_judge(config: LoopsConfig, source: Source) -> bool:
    """Return whether a judge at an address has yet to score texts of a dataset for quality."""
    return registry.asks_endpoint(config.quality) and loops_data.lacks_scores(
        config.quality, source
    )


def _inputs(config: LoopsConfig, source: Source, later: bool) -> _Inputs:
    points = loops_data.embeddings(config, source)
    projection = loops_data.evaluation_map(config, source, points)
    waits = later and awaits_judge(config, source)
    quality = None if waits else loops_data.quality(config, source)
    toxicity = None
    if config.properties.toxicity:
        metric = f"toxicity(model={config.properties.toxicity!r})"
        toxicity = loops_data.score(metric, source.folder)(source.texts)
    return _Inputs(points, projection, quality, toxicity)


def _measuring(
    config: LoopsConfig, source: Source, root: Path, later: bool
) -> Callable[[Subset], dict[str, float]]:
    """A function that returns the properties of a cluster, read from its file if there is one.

    The inputs are computed when the first cluster without a file comes, quality alone when the
    first comes whose file lacks it.
    """
    folder = root / "properties"
    folder.mkdir(exist_ok=True)
    inputs = functools.cache(functools.partial(_inputs, config, source, later))
    waits = functools.cache(lambda: later and awaits_judge(config, source))
    scores = functools.cache(functools.partial(loops_data.quality, config, source))

    def properties_of(cluster: Subset) -> dict[str, float]:
        path = folder / f"{cluster.name}.json"
        ((_, rows),) = cluster.parts
        if path.exists():
            values = json.loads(path.read_bytes())
            if math.isnan(values["quality"]) and not waits():
                own = scores()[rows]
                values["quality"] = float(np.nanmean(own)) if np.isfinite(own).any() else math.nan
                write_atomic(path, json.dumps(values).encode(), durable=False)
            return values
        embeddings, projection, quality, toxicity = inputs()
        values = cluster_properties(
            list(source.texts.take(rows)),
            embeddings=embeddings[rows],
            projection=projection,
            quality=None if quality is None else quality[rows],
            toxicity=None if toxicity is None else toxicity[rows],
            sample=config.properties.texts,
            lexical_sample=config.properties.lexical_texts,
        )
        write_atomic(path, json.dumps(values).encode(), durable=False)
        return values

    return properties_of


def check_properties(root: Path) -> None:
    """Raise ValueError if a property in properties.csv is the same for every cluster.

    A constant cannot be a predictor of the regressions.
    """
    # pandas and statsmodels take a second to import, which experiments without clusters do not
    # need.
    import pandas as pd

    from jaxloop.studies.recursive_loops.analysis import regression, regression_tasks

    table = pd.read_csv(root / "properties.csv")
    names, _ = regression_tasks.measured(table)
    for name in names:
        values = pd.to_numeric(table[name], errors="coerce").dropna().to_numpy(float)
        if len(values) and regression.is_constant(values):
            raise ValueError(
                f"{root / 'properties.csv'}: {name} is {values[0]:g} for all {len(values)} "
                "clusters; a predictor of the regressions must vary"
            )
