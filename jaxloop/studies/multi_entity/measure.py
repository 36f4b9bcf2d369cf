"""What a multi-entity study measures: every model's loss on every task, and how alike the entities'
completions are (multi_entity.md, section 3).
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxloop.studies.multi_entity import prepare

if TYPE_CHECKING:
    from jaxloop.studies.multi_entity.run import Settings

FOLDER = "similarity"


def task_loss(task: str) -> str:
    """Name of the metric: token-mean test loss on a task."""
    return f"task_loss(task={task})"


def base_loss(task: str) -> str:
    """Name of the metric: the same of the base model, before any training; in generation 0 alone."""
    return f"base_loss(task={task})"


def measure(settings: "Settings", prepared: prepare.Prepared) -> Callable:
    """The driver's `measure`: for every model `task_loss` of every test set, in nats per token, and
    the chosen metrics of what it wrote.
    """
    from jaxloop.lm import family
    from jaxloop.metrics import registry

    texts = [text for some, _ in prepared.tests.values() for text in some]
    prompts = [prompt for _, some in prepared.tests.values() for prompt in some]
    ends = np.cumsum([len(some) for some, _ in prepared.tests.values()])
    fit = dataclasses.replace(
        prepared.driver.fit, loss_on=settings.measure.loss_on or settings.fit.loss_on
    )
    # Similarity is one number for all entities of a chain, whose models need not be measured
    # together: see `write_similarity`.
    chosen = settings.measure.metrics
    names = [
        name
        for name, (metric, _) in zip(chosen, registry.validate(chosen), strict=True)
        if metric.needs == ("texts",)
    ]

    def losses(model, weights: Sequence) -> list[list[float]]:
        tasks = [family.LossTask(one, texts, prompts) for one in weights]
        # All models score the same rows: what tells the tasks apart is their weights.
        found = _by_weights(lambda some: family.loss(model, some, fit), tasks)
        pieces = lambda x: np.split(np.asarray(x, np.float64), ends[:-1])
        return [
            [
                n.sum() / max(t.sum(), 1)
                for n, t in zip(pieces(r.nats), pieces(r.tokens), strict=True)
            ]
            for r in found
        ]

    def run(model, generation: int, outcomes: Sequence) -> dict:
        own = losses(model, [o.weights for o in outcomes])
        written = [o.texts[: o.chain.workflow.synthetic] for o in outcomes]
        values = registry.evaluate(names, texts=written) if names else {}
        bases = losses(model, [None])[0] if generation == 0 else []
        out = {}
        for i, o in enumerate(outcomes):
            row = {
                task_loss(name): value for name, value in zip(prepared.tests, own[i], strict=True)
            }
            row |= {
                base_loss(name): value for name, value in zip(prepared.tests, bases, strict=False)
            }
            row |= {name: float(found[i]) for name, found in values.items()}
            row["finished"] = float(o.finished[: o.chain.workflow.synthetic].mean())
            out[o.chain.id, o.entity] = row
        return out

    return run


def _by_weights(work, tasks):
    marks = [prepare.fingerprint(task.weights) for task in tasks]
    chosen = {mark: task for mark, task in zip(reversed(marks), reversed(tasks), strict=True)}
    found = dict(zip(chosen, work(list(chosen.values())), strict=True))
    return [found[mark] for mark in marks]


# ---- output similarity
# ------------------------------------------------------------------------------------------------


class Completions(NamedTuple):
    """What the entities of a chain made of the probes in one generation: corpus ->
    [entities][prompts] texts.
    """

    chain: object
    by_set: dict[str, list[list[str]]]


def generations_of(settings: "Settings", last: int) -> list[int]:
    """Generations whose similarity is measured."""
    return sorted({*range(0, last + 1, settings.measure.similarity_every), last})


def completions(root: Path, chain, generation: int) -> Completions | None:
    """The completions of one chain, from texts/; None where the chain had stopped."""
    from jaxloop.recursion.sources import probe_rows, texts_path
    from jaxloop.runtime.tables import read_parquet

    path = root / texts_path(chain, generation)
    if not path.exists():
        return None
    table = read_parquet(path, ["entity", "row", "text"])
    mine: list[list[str]] = [[] for _ in range(chain.workflow.entities)]
    for entity, text in zip(table["entity"], table["text"], strict=True):
        mine[int(entity)].append(text)
    total = probe_rows(chain)
    answers, at, out = [texts[len(texts) - total :] for texts in mine], 0, {}
    for name, count in chain.probes:
        out[name] = [texts[at : at + count] for texts in answers]
        at += count
    return Completions(chain, out)


def embeddings(settings: "Settings", found: Sequence[Completions]) -> list[dict[str, np.ndarray]]:
    """corpus -> [entities, prompts, d] of each; equal texts are embedded once."""
    from jaxloop.metrics.embed import embed

    distinct = list(
        dict.fromkeys(
            t for c in found for texts in c.by_set.values() for some in texts for t in some
        )
    )
    points = embed(distinct, model=settings.measure.embedder)
    place = {text: i for i, text in enumerate(distinct)}
    return [
        {
            name: np.stack([points[[place[t] for t in some]] for some in texts])
            for name, texts in c.by_set.items()
        }
        for c in found
    ]


def write_similarity(settings: "Settings", prepared: prepare.Prepared, root: Path, result) -> None:
    """similarity/generation=*.parquet: mean cosine between two entities' completions, by chain,
    corpus and pair; what is there is kept.
    """
    from jaxloop.metrics.distances import output_similarity
    from jaxloop.runtime.log import LOGGER
    from jaxloop.runtime.tables import write_parquet

    if not prepared.chains[0].probes:
        return
    (root / FOLDER).mkdir(exist_ok=True)
    for generation in generations_of(settings, result.generations - 1):
        path = root / FOLDER / f"generation={generation:04d}.parquet"
        if path.exists():
            continue
        found = [
            c
            for chain in prepared.chains
            if (c := completions(root, chain, generation)) is not None
        ]
        LOGGER.info("output similarity of generation %d", generation)
        columns: dict[str, list] = {name: [] for name in ("chain", "set", "one", "other", "value")}
        for c, points in zip(found, embeddings(settings, found) if found else (), strict=True):
            for name, array in points.items():
                matrix = output_similarity(array)
                for i, j in zip(*np.triu_indices(len(matrix), 1), strict=True):
                    for column, value in zip(
                        columns,
                        (c.chain.id, name, int(i), int(j), float(matrix[i, j])),
                        strict=True,
                    ):
                        columns[column].append(value)
        write_parquet(path, columns)


def principal_components(settings: "Settings", prepared: prepare.Prepared, root: Path, last: int):
    """Completions of the private corpora's probes in two dimensions: (panels, share of variance),
    or None.

    panels: [(alpha label, generation, [entities] points [n, 2])] of the first seed at the beta
    nearest to 1/2, in generation 0 and `last`; one pair of axes for all, from the principal
    components of everything shown (the paper's figure 3).
    """
    from sklearn.decomposition import PCA

    seed, betas = prepared.chains[0].seed, {}
    for chain in prepared.chains:
        beta = dict(chain.factors)["beta"]
        betas[chain.id] = float("inf") if isinstance(beta, str) else abs(beta - 0.5)
    nearest = min(betas.values())
    chosen = [
        chain
        for chain in prepared.chains
        if chain.seed == seed and betas[chain.id] == nearest and chain.probes
    ]
    found = [
        (c, g)
        for g in sorted({0, last})
        for chain in chosen
        if (c := completions(root, chain, g)) is not None
    ]
    if not found:
        return None
    arrays = [
        np.concatenate(
            [p for name, p in points.items() if name != prepare.PUBLIC] or [*points.values()],
            axis=1,
        )
        for points in embeddings(settings, [c for c, _ in found])
    ]
    flat = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
    if len(flat) < 3:
        return None
    pca = PCA(2).fit(flat)
    panels = [
        (dict(c.chain.factors)["alpha"], g, [pca.transform(points) for points in array])
        for (c, g), array in zip(found, arrays, strict=True)
    ]
    return panels, pca.explained_variance_ratio_
