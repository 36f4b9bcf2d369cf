"""What is measured of generated text, generation by generation, and of the human text that a
cluster holds.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxloop.studies.recursive_loops import sources as loops_data
from jaxloop.studies.recursive_loops.config import Settings
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset

LAST = 5
# Human texts of a chain's generation 0 whose lean is the chain's initial one (recursive_loops.md,
# section 6.2).
HUMAN_SCORED = 250


def names_at(settings: Settings, generation: int) -> list[str]:
    """Metrics of a generation: quality is left out of the middle where the config says so (section
    1, evaluation sample).
    """
    ends = generation == 0 or generation >= settings.chain.generations - LAST
    quality = settings.quality_at == "all" or ends
    return [
        *settings.metrics,
        *([settings.quality] if quality and settings.quality not in settings.metrics else []),
    ]


def measure(settings: Settings, lean: Callable | None):
    """The driver's `measure`. Chains of several models that share a pool are measured together,
    later (`merged`).
    """

    def run(model, generation: int, outcomes: Sequence) -> dict:
        alone = [o for o in outcomes if o.chain.workflow.entities == 1]
        found = evaluate(settings, generation, [o.texts for o in alone], lean)
        return {
            (o.chain.id, o.entity): values | {"finished": _mean(o.finished)}
            for o, values in zip(alone, found, strict=True)
        }

    return run


def evaluate(
    settings: Settings, generation: int, texts: Sequence[Sequence[str]], lean: Callable | None
) -> list[dict[str, float]]:
    """Metrics of each of [chains] lists of texts. Of several domains, each metric of the texts of
    each: `<metric>@<domain>` (text i answers the prompt of domain i modulo their number).
    """
    from jaxloop.metrics import registry
    from jaxloop.metrics.embed import embed

    if not texts:
        return []
    names, domains = names_at(settings, generation), list(settings.domains)
    several = settings.kind == "mixtures"
    cut = [list(t[: settings.chain.eval_texts]) for t in texts]
    pieces = [
        part
        for t in cut
        for part in ([t[i :: len(domains)] for i in range(len(domains))] if several else [t])
    ]
    values = registry.evaluate(
        names, texts=pieces, embeddings=functools.partial(embed, model=settings.embedder)
    )
    # One question for all chains: full batches, and each text of several chains asked once.
    leans = (
        None
        if lean is None
        else np.split(
            lean([text for t in cut for text in t]), np.cumsum([len(t) for t in cut])[:-1]
        )
    )
    out = []
    for i in range(len(texts)):
        if several:
            at = range(i * len(domains), (i + 1) * len(domains))
            out.append(
                {
                    f"{name}@{domain}": float(values[name][j])
                    for name in names
                    for j, domain in zip(at, domains, strict=True)
                }
            )
        else:
            out.append({name: float(values[name][i]) for name in names})
        if leans is not None:
            out[-1] |= leaning(settings, leans[i])
    return out


def leaning(settings: Settings, values: np.ndarray) -> dict[str, float]:
    """Mean lean of the texts that have one, and the shares of left, right and neutral or
    non-political texts among all.
    """
    known, band = values[~np.isnan(values)], settings.lean.neutral
    count = max(len(values), 1)
    left, right = (known < 50 - band).sum() / count, (known > 50 + band).sum() / count
    return {
        "political_lean": _mean(known),
        "left_share": float(left),
        "right_share": float(right),
        "neutral_share": float(1 - left - right),
    }


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else math.nan


# ---- after the chains
# -------------------------------------------------------------------------------------------------


def merged(
    settings: Settings, chains: Sequence, root: Path, generations: int, lean: Callable | None
) -> None:
    """Measures the texts of models that share a pool together, as many of each model, shuffled;
    seals what a generation lacks.

    Generations that are measured already are not read again.
    """
    from jaxloop.recursion import finalise
    from jaxloop.recursion.sources import texts_path
    from jaxloop.runtime import tables

    shared = [chain for chain in chains if chain.workflow.entities > 1]
    for generation in range(generations if shared else 0):
        known = finalise.read_metrics(root, generation)
        done = set(zip(known["chain"], known["metric"], strict=True))
        first = names_at(settings, generation)[0]
        todo = [
            c
            for c in shared
            if (c.id, first) not in done and (root / texts_path(c, generation)).exists()
        ]
        texts, ended = [], []
        for chain in todo:
            table = tables.read_parquet(
                root / texts_path(chain, generation), ["entity", "row", "text", "finished"]
            )
            each = -(-settings.chain.eval_texts // chain.workflow.entities)
            rows = np.flatnonzero(np.asarray(table["row"]) < each)
            rows = np.random.default_rng([chain.seed, generation]).permutation(rows)[
                : settings.chain.eval_texts
            ]
            texts.append([table["text"][i] for i in rows])
            ended.append(_mean(np.asarray(table["finished"])[rows]))
        found = evaluate(settings, generation, texts, lean)
        if todo:
            _seal(
                root,
                generation,
                [(c, v | {"finished": e}) for c, v, e in zip(todo, found, ended, strict=True)],
                chains,
            )


def _seal(
    root: Path, generation: int, found: Sequence[tuple[Any, Mapping[str, float]]], chains: Sequence
) -> None:
    from jaxloop.recursion import finalise
    from jaxloop.recursion.generation import tidy
    from jaxloop.runtime import checkpoint, tables

    rows = []
    for chain, values in found:
        common = {
            "study": "loops",
            "chain": chain.id,
            **dict(chain.factors),
            "entity": 0,
            "generation": generation,
        }
        rows += [common | {"metric": name, "value": value} for name, value in values.items()]
    place = checkpoint.finished(generation)
    listed = checkpoint.read_manifest(root, f"{place}/{checkpoint.MANIFEST}")["files"]
    number = 1 + sum(name.startswith(f"{place}/{finalise.FILLED}") for name in listed)
    path = f"{place}/{finalise.FILLED}{number:04d}.parquet"
    tables.write_parquet(root / path, tidy(rows, chains), durable=True)
    checkpoint.add(root, generation, [path])


def text_scores(
    settings: Settings,
    chains: Sequence,
    data: Mapping[str, Any],
    root: Path,
    generations: int,
    lean: Callable,
) -> None:
    """text_scores.parquet: the lean of every measured text, and, as generation -1, of the human
    texts that a chain began with.
    """
    from jaxloop.recursion.sources import human_texts, texts_path
    from jaxloop.runtime import tables

    out: dict[str, list] = {"chain": [], "generation": [], "metric": [], "value": []}

    def add(chain, generation, values):
        out["chain"] += [chain.id] * len(values)
        out["generation"] += [generation] * len(values)
        out["metric"] += ["political_lean"] * len(values)
        out["value"] += values.tolist()

    for chain in chains:
        add(chain, -1, lean(human_texts(chain, data)[:HUMAN_SCORED]))
        for generation in range(generations):
            if (path := root / texts_path(chain, generation)).exists():
                add(
                    chain,
                    generation,
                    lean(tables.read_parquet(path, ["text"])["text"][: settings.chain.eval_texts]),
                )
    tables.write_parquet(root / "text_scores.parquet", out)


# ---- properties of clusters
# -------------------------------------------------------------------------------------------


def properties(
    settings: Settings, subsets: Sequence[Subset], sources: Mapping[str, Source], root: Path
) -> None:
    """properties.csv and members.parquet of clusters; each cluster's row is kept as soon as it is
    measured.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from jaxloop.runtime import tables
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.runtime.log import LOGGER

    rows, partial = [], root / ".tmp-members.parquet"
    schema = pa.schema([("dataset", pa.string()), ("cluster", pa.string()), ("row", pa.int64())])
    with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
        for name, source in sources.items():
            mine = [s for s in subsets if s.dataset == name]
            row_of = _Properties(settings, source, root)
            for subset in mine:
                (_, members) = subset.parts[0]
                rows.append(
                    {
                        "dataset": name,
                        "cluster": subset.factors["cluster"],
                        **subset.about,
                        **row_of(subset),
                    }
                )
                labels = {
                    "dataset": [name] * len(members),
                    "cluster": [subset.factors["cluster"]] * len(members),
                }
                writer.write_table(pa.table({**labels, "row": members}, schema=schema))
            LOGGER.info("properties of %d clusters of %s", len(mine), name)
    partial.replace(root / "members.parquet")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    write_atomic(
        root / "properties.csv",
        tables.to_csv({c: [row.get(c) for row in rows] for c in columns}),
        durable=False,
    )


def check_properties(root: Path) -> None:
    """Raises ValueError for a predictor of the regressions that is the same for every cluster in
    properties.csv: no fit could have it.
    """
    import pandas as pd

    from jaxloop.studies.recursive_loops.analysis import regression_tasks

    table = pd.read_csv(root / "properties.csv")
    names, _ = regression_tasks.measured(table)
    for name in names:
        values = pd.to_numeric(table[name], errors="coerce").dropna().to_numpy(float)
        if np.ptp(values) <= 1e-12 * max(1.0, np.abs(values).max()):
            raise ValueError(
                f"{root / 'properties.csv'}: {name} is {values[0]:g} for all {len(values)} "
                "clusters; a predictor of the regressions must vary"
            )


class _Properties:
    """Properties of the clusters of one dataset; what they share is made when the first of them is
    not on disk yet.
    """

    def __init__(self, settings: Settings, source: Source, root: Path):
        self.settings, self.source, self.folder = settings, source, root / "properties"
        self.folder.mkdir(exist_ok=True)

    @functools.cached_property
    def shared(self):
        points = loops_data.embeddings(self.settings, self.source)
        toxic = self.settings.properties.toxicity
        name = toxic and f"toxicity(model={toxic!r})"
        return (
            points,
            loops_data.evaluation_map(self.settings, self.source, points),
            loops_data.quality(self.settings, self.source),
            loops_data.score(self.settings, name, self.source.folder)(self.source.texts)
            if name
            else None,
        )

    def __call__(self, subset: Subset) -> dict[str, float]:
        from jaxloop.runtime.atomic_io import write_atomic
        from jaxloop.studies.recursive_loops.properties import cluster_properties

        path = self.folder / f"{subset.name}.json"
        if path.exists():
            return json.loads(path.read_bytes())
        points, projection, quality, toxicity = self.shared
        rows = subset.parts[0][1]
        found = cluster_properties(
            list(self.source.texts.take(rows)),
            embeddings=points[rows],
            projection=projection,
            quality=quality[rows],
            toxicity=None if toxicity is None else toxicity[rows],
            sample=self.settings.properties.texts,
            lexical_sample=self.settings.properties.lexical_texts,
        )
        write_atomic(path, json.dumps(found).encode(), durable=False)
        return found
