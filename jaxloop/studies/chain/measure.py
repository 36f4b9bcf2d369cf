"""The metrics of a chain study: what each of them is given, of the models, of the texts and of the
human data; in a run, and afterwards.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxloop.studies.chain import prepare

if TYPE_CHECKING:
    from jaxloop.studies.chain.run import Settings

# What a chain study can hand to a metric (see metrics.registry.INPUTS).
INPUTS = (
    "texts",
    "contexts",
    "embeddings",
    "projection",
    "reference_texts",
    "reference_embeddings",
    "losses",
    "own_losses",
    "reference_losses",
    "token_nats",
)
# What it cannot, because the models of different chains have nothing in common: which study can.
ELSEWHERE = {
    "entity_embeddings": "it compares models that complete the same prompts, as the entities of "
    "study 'multi_entity' do"
}
# Of these, what needs the model that wrote the texts.
OF_WEIGHTS = frozenset({"losses", "own_losses", "token_nats"})


def check(settings: "Settings") -> None:
    """Raises ValueError, one sentence, for a metric that is none, that a chain study cannot feed,
    or whose options, model or address are wrong.
    """
    from jaxloop.metrics import registry

    for name, (metric, _) in zip(
        settings.metrics, registry.validate(settings.metrics), strict=True
    ):
        if missing := [need for need in metric.needs if need not in INPUTS]:
            raise ValueError(
                f"config.metrics has '{name}', which needs {missing[0]}: "
                f"{ELSEWHERE.get(missing[0], 'a chain study cannot give it')}"
            )
        if {"losses", "token_nats"} & set(metric.needs) and not settings.chain.heldout_texts:
            raise ValueError(
                f"config.chain.heldout_texts = 0: metric '{name}' needs held-out texts"
            )
    registry.check(settings.metrics)
    needed = registry.needs(settings.metrics)
    if needed & {"embeddings", "reference_embeddings"}:
        from jaxloop.metrics.embed import load_embedder

        load_embedder(settings.embedder)
    if "reference_losses" in needed and settings.reference is not None:
        from jaxloop.lm.io import huggingface

        huggingface.describe(huggingface.locate(prepare.model_path(settings.reference)))


def of_weights(names: Sequence[str]) -> list[str]:
    """Those metrics that need the model that wrote the texts."""
    from jaxloop.metrics import registry

    return [
        name
        for name, (metric, _) in zip(names, registry.validate(names), strict=True)
        if OF_WEIGHTS & set(metric.needs)
    ]


def human_inputs(settings: "Settings", prepared: prepare.Prepared, root: Path) -> Callable:
    """inputs(needed, names [chains] of data sets): the inputs of metrics that come from no model,
    each made once and only if needed.
    """
    from jaxloop.metrics.embed import embed

    by = functools.partial(embed, model=settings.embedder)
    reference = functools.cache(lambda name: by(prepared.human[name]))
    projection = functools.cache(
        lambda name: _map(root, name, lambda limit: by(prepared.data[name].texts[:limit]))
    )

    def inputs(needed: set[str], names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "reference_texts" in needed:
            found["reference_texts"] = [prepared.human[name] for name in names]
        if needed & {"embeddings", "reference_embeddings"}:
            found["embeddings"] = by
        if "reference_embeddings" in needed:
            found["reference_embeddings"] = [reference(name) for name in names]
        if "projection" in needed:
            found["projection"] = [projection(name) for name in names]
        return found

    return inputs


def _map(root: Path, name: str, embeddings: Callable):
    """The evaluation UMAP of a data set: the one in the run directory (maps/), or one fitted on its
    first texts and left there.
    """
    from jaxloop.metrics import umap
    from jaxloop.runtime.atomic_io import inside
    from jaxloop.runtime.log import LOGGER

    path = inside(root, "maps", f"{name.replace('/', '~')}.npz")
    if path.exists():
        try:
            return umap.load_map(path)
        except ValueError as error:
            LOGGER.warning("%s; it is fitted again", str(error).rstrip("."))
    settings = umap.MapSettings()
    fitted = umap.fit_map(embeddings(settings.limit), settings)
    path.parent.mkdir(exist_ok=True)
    umap.save_map(fitted, path)
    return fitted


def measuring(settings: "Settings", prepared: prepare.Prepared, root: Path) -> Callable:
    """measure(model, generation, outcomes, names=settings.metrics), as `recursion.driver` and
    `recursion.backfill` call it: the metrics of every model of a generation, and the share of its texts
    that ended by themselves. The evaluation UMAPs are made here, before any training.
    """
    from jaxloop.lm import family
    from jaxloop.metrics import registry
    from jaxloop.recursion.generation import effective

    human = human_inputs(settings, prepared, root)
    human(registry.needs(settings.metrics) & {"projection"}, list(prepared.human))
    reference = functools.cache(
        lambda: prepare.load_model(settings, settings.reference or settings.models.pool[0])
    )
    count = settings.chain.eval_texts

    def measure(
        model, generation: int, outcomes: Sequence, names: Sequence[str] = settings.metrics
    ) -> dict:
        needed = registry.needs(names)
        sets = [o.chain.dataset_of(o.entity) for o in outcomes]
        inputs: dict[str, Any] = human(needed, sets)
        inputs["texts"] = [o.texts[:count] for o in outcomes]
        inputs["contexts"] = prompts = [o.prompts[:count] for o in outcomes]
        # Models that are measured together were trained together, with the same settings.
        fit = effective(
            prepared.driver.fit,
            outcomes[0].chain.fit,
            outcomes[0].chain.workflow.start == "scratch",
        )

        def losses(judge, weights, texts, prompts):
            tasks = [
                family.LossTask(w, t, p) for w, t, p in zip(weights, texts, prompts, strict=True)
            ]
            return family.loss(judge, tasks, fit)

        own = [o.weights for o in outcomes]
        if {"losses", "token_nats"} & needed:
            inputs["losses"] = losses(
                model,
                own,
                *zip(
                    *((prepared.heldout[name], prepared.heldout_prompts[name]) for name in sets),
                    strict=True,
                ),
            )
            inputs["token_nats"] = [found.token_nats for found in inputs["losses"]]
        if "own_losses" in needed:
            inputs["own_losses"] = losses(model, own, inputs["texts"], prompts)
        if "reference_losses" in needed:
            inputs["reference_losses"] = losses(
                reference(), [None] * len(outcomes), inputs["texts"], prompts
            )
        values = registry.evaluate(names, **inputs)
        values["finished"] = [
            o.finished.mean() if len(o.finished) else float("nan") for o in outcomes
        ]
        return {
            (o.chain.id, o.entity): {name: float(found[i]) for name, found in values.items()}
            for i, o in enumerate(outcomes)
        }

    return measure


def references(settings: "Settings", prepared: prepare.Prepared, root: Path) -> dict[str, float]:
    """The metrics of texts on human text, as many as are measured of a generation; where there are
    several data sets there is no one value.
    """
    from jaxloop.metrics import registry

    names = [
        name
        for name in settings.metrics
        if not registry.needs([name]) & (OF_WEIGHTS | {"reference_losses", "contexts"})
    ]
    if len(prepared.human) > 1:
        return {}
    inputs = human_inputs(settings, prepared, root)(registry.needs(names), list(prepared.human))
    found = registry.evaluate(names, texts=list(prepared.human.values()), **inputs)
    return {name: float(value[0]) for name, value in found.items()}
