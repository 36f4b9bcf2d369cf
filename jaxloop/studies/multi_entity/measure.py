"""What a multi-entity study measures (arXiv 2505.21677).

It is every model's loss on every task, and how similar the entities' completions are.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.lm import family
from jaxloop.metrics import registry
from jaxloop.metrics.distances import output_similarity
from jaxloop.metrics.embed import embed
from jaxloop.recursion.backfill import MeasureNamed
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.sources import probe_rows, texts_path
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import read_parquet, write_parquet
from jaxloop.studies.common import missing
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import prepare
from jaxloop.studies.multi_entity.config import EntitiesConfig

FOLDER = "similarity"
# (alpha label, generation, [entities] points [n, 2]).
Panel = tuple[float | str, int, list[np.ndarray]]


def task_loss(task: str) -> str:
    """Return the metric's name of the token-mean test loss on a task."""
    return f"task_loss(task={task})"


def base_loss(task: str) -> str:
    """Return the metric's name of the untrained base model's task loss, in generation 0 only."""
    return f"base_loss(task={task})"


def text_metrics(settings: EntitiesConfig) -> list[str]:
    """Return the metrics of what a model wrote.

    Similarity is not among them: it is one number for all entities of a chain, whose models need
    not be measured together, see `write_similarity`.
    """
    chosen = settings.measure.metrics
    return registry.with_unparsable(
        [
            name
            for name, (metric, _) in zip(chosen, registry.validate(chosen), strict=True)
            if metric.needs == ("texts",)
        ]
    )


def of_weights(prepared: prepare.Prepared) -> list[str]:
    """Return the metrics that need the models that wrote the texts."""
    return [name(task) for name in (task_loss, base_loss) for task in prepared.tests]


def names_of(
    settings: EntitiesConfig, prepared: prepare.Prepared, chain: ChainSpec, generation: int
) -> list[str]:
    """Return the metrics of a chain in a generation."""
    kinds = (task_loss, base_loss) if generation == 0 else (task_loss,)
    return [*text_metrics(settings), *(kind(task) for kind in kinds for task in prepared.tests)]


def measure(settings: EntitiesConfig, prepared: prepare.Prepared) -> MeasureNamed:
    """Return the function that computes the named metrics of models.

    They are the `task_loss` of every test set in nats per token, and the config's metrics of texts.
    """
    texts = [text for some, _ in prepared.tests.values() for text in some]
    prompts = [prompt for _, some in prepared.tests.values() for prompt in some]
    ends = np.cumsum([len(some) for some, _ in prepared.tests.values()])
    completion_only = settings.measure.completion_only
    if completion_only is None:
        completion_only = settings.fit.completion_only
    fit = settings.fit.replace(completion_only=completion_only)
    of_texts = text_metrics(settings)

    def losses(model: Any, weights: Sequence[Any]) -> list[list[float]]:
        tasks = [family.LossTask(one, texts, prompts) for one in weights]
        # All models score the same rows: what tells the tasks apart is their weights.
        results = _by_weights(lambda some: family.loss(model, some, fit), tasks)
        return [_mean_losses(result, ends) for result in results]

    def run(
        model: Any, generation: int, outcomes: Sequence[ModelOutput], names: Sequence[str], /
    ) -> dict[tuple[str, int], dict[str, float]]:
        tasks = list(prepared.tests)
        of_weights = bool({*map(task_loss, tasks), *map(base_loss, tasks)} & set(names))
        own = losses(model, [o.weights for o in outcomes]) if of_weights else []
        bases = losses(model, [None])[0] if of_weights and generation == 0 else []
        written = [o.texts[: o.chain.workflow.synthetic] for o in outcomes]
        chosen, unavailable = [name for name in of_texts if name in names], dict[str, str]()
        values = registry.evaluate(chosen, unavailable=unavailable, texts=written) if chosen else {}
        found = missing.known(values, unavailable, len(outcomes))
        out = {}
        for i, o in enumerate(outcomes):
            row = dict(zip(map(task_loss, tasks), own[i], strict=True)) if own else {}
            row |= dict(zip(map(base_loss, tasks), bases, strict=False))
            row |= found[i]
            row["finished"] = float(o.finished[: o.chain.workflow.synthetic].mean())
            out[o.chain.id, o.entity] = row
        return out

    return run


def _mean_losses(result: family.LossResult, ends: np.ndarray) -> list[float]:
    """Token-mean loss of each test set; set i ends before row ends[i]."""
    nll, tokens = (
        np.split(np.asarray(rows, np.float64), ends[:-1]) for rows in (result.nll, result.tokens)
    )
    return [n.sum() / max(t.sum(), 1) for n, t in zip(nll, tokens, strict=True)]


def _by_weights(
    work: Callable[[list[family.LossTask]], Sequence[family.LossResult]],
    tasks: Sequence[family.LossTask],
) -> list[family.LossResult]:
    marks = [prepare.fingerprint(task.weights) for task in tasks]
    chosen = {mark: task for mark, task in zip(reversed(marks), reversed(tasks), strict=True)}
    results = dict(zip(chosen, work(list(chosen.values())), strict=True))
    return [results[mark] for mark in marks]


# ---- output similarity


class Completions(NamedTuple):
    """The entities' completions of the probes of a chain in one generation.

    by_set: corpus -> [entities][prompts] texts.
    """

    chain: ChainSpec
    by_set: dict[str, list[list[str]]]


def generations_of(settings: EntitiesConfig, last: int) -> list[int]:
    """Return the generations whose similarity is measured."""
    return sorted({*range(0, last + 1, settings.measure.similarity_every), last})


def completions(root: Path, chain: ChainSpec, generation: int) -> Completions | None:
    """Return the completions of a chain from texts/; None where the chain had stopped."""
    path = root / texts_path(chain.id, generation)
    if not path.exists():
        return None
    table = read_parquet(path, ["entity", "row", "text"])
    texts_of: list[list[str]] = [[] for _ in range(chain.workflow.entities)]
    for entity, text in zip(table["entity"], table["text"], strict=True):
        texts_of[int(entity)].append(text)
    total = probe_rows(chain)
    answers, at, out = [texts[len(texts) - total :] for texts in texts_of], 0, {}
    for name, count in chain.probes:
        out[name] = [texts[at : at + count] for texts in answers]
        at += count
    return Completions(chain, out)


def embeddings(
    settings: EntitiesConfig, completed: Sequence[Completions]
) -> list[dict[str, np.ndarray]]:
    """Return corpus -> embeddings [entities, prompts, d] of each. Equal texts are embedded once."""
    distinct = list(
        dict.fromkeys(
            t for c in completed for texts in c.by_set.values() for some in texts for t in some
        )
    )
    points = embed(distinct, model=settings.measure.embedder)
    place = {text: i for i, text in enumerate(distinct)}
    return [
        {
            name: np.stack([points[[place[t] for t in some]] for some in texts])
            for name, texts in c.by_set.items()
        }
        for c in completed
    ]


def write_similarity(
    settings: EntitiesConfig, prepared: prepare.Prepared, root: Path, count: int
) -> None:
    """Write similarity/generation=*.parquet of the first `count` generations, unless it exists.

    Mean cosine between two entities' completions, by chain, corpus and pair.
    """
    if not prepared.chains[0].probes:
        return
    (root / FOLDER).mkdir(exist_ok=True)
    for generation in generations_of(settings, count - 1):
        path = root / FOLDER / f"generation={generation:04d}.parquet"
        if path.exists():
            continue
        completed = [
            c
            for chain in prepared.chains
            if (c := completions(root, chain, generation)) is not None
        ]
        LOGGER.info("output similarity of generation %d", generation)
        columns: dict[str, list] = {name: [] for name in ("chain", "set", "one", "other", "value")}
        for c, points in zip(
            completed, embeddings(settings, completed) if completed else (), strict=True
        ):
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


def pictured(prepared: prepare.Prepared) -> list[ChainSpec]:
    """Return the chains of the picture of completions: the first seed's at the beta nearest to 1/2,
    controls excepted.
    """
    chains = plan_chains.exchanges(prepared.chains)
    distance_to_half: dict[str, float] = {}
    for chain in chains:
        beta = plan_chains.label(prepared.settings_of[chain.id][1])
        # A beta that changes over generations is no point to be near.
        distance_to_half[chain.id] = float("inf") if isinstance(beta, str) else abs(beta - 0.5)
    nearest = min(distance_to_half.values())
    return [
        chain
        for chain in chains
        if chain.seed == chains[0].seed and distance_to_half[chain.id] == nearest
    ]


def principal_components(
    settings: EntitiesConfig, prepared: prepare.Prepared, root: Path, last: int
) -> tuple[list[Panel], np.ndarray] | None:
    """Return the private probes' completions in two dimensions: (panels, share of variance), or
    None.

    panels: [(alpha label, generation, [entities] points [n, 2])] of the chains that are `pictured`,
    in generation 0 and `last`; one pair of axes for all, from the principal
    components of everything shown (the paper's figure 3).
    """
    # scikit-learn takes seconds to import, and most calls draw nothing.
    from sklearn.decomposition import PCA

    chosen = [chain for chain in pictured(prepared) if chain.probes]
    completed = [
        (c, g)
        for g in sorted({0, last})
        for chain in chosen
        if (c := completions(root, chain, g)) is not None
    ]
    if not completed:
        return None
    arrays = [
        np.concatenate(
            [p for name, p in points.items() if name != plan_chains.PUBLIC] or [*points.values()],
            axis=1,
        )
        for points in embeddings(settings, [c for c, _ in completed])
    ]
    flat = np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
    if len(flat) < 3:
        return None
    pca = PCA(2).fit(flat)
    panels = [
        (
            plan_chains.label(prepared.settings_of[c.chain.id][0]),
            g,
            [pca.transform(points) for points in array],
        )
        for (c, g), array in zip(completed, arrays, strict=True)
    ]
    return panels, pca.explained_variance_ratio_
