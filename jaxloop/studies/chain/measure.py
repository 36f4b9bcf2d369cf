"""The metrics of a chain study: the inputs that they are given, during a run and afterwards.

Inputs come from the models, from the generated texts and from the human data.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxloop.config import FitConfig
from jaxloop.lm import Model, family
from jaxloop.metrics import registry, umap
from jaxloop.metrics.embed import embed
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.run import effective
from jaxloop.runtime.atomic_io import inside
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.chain.config import ChainConfig
from jaxloop.studies.chain.prepare import Prepared
from jaxloop.studies.common import missing
from jaxloop.studies.common.models import load_model

# Inputs of metrics that need the model that generated the texts.
OF_WEIGHTS = frozenset({"losses", "own_losses", "token_nll"})

Values = dict[tuple[str, int], dict[str, float]]


class Measure(Protocol):
    """Computes the named metrics of models, during a run and afterwards."""

    def __call__(
        self,
        model: Model | None,
        generation: int,
        outputs: Sequence[ModelOutput],
        names: Sequence[str],
        /,
    ) -> Values:
        """Return {(chain id, entity): {metric: value}}, without metrics that are unavailable.

        Args:
            model: the base that the weights of `outputs` belong to; None if no metric needs it.
            generation: its number, from 0.
            outputs: texts and weights of the models that were trained together.
            names: the metrics.
        """


class HumanInputs(Protocol):
    """A function that gives the inputs of metrics that need no trained model."""

    def __call__(self, needed: set[str], datasets: Sequence[str]) -> dict[str, Any]:
        """Return {input: one value for each of `datasets`, or a function}."""


def of_weights(names: Sequence[str]) -> list[str]:
    """Return those metrics that need the model that generated the texts."""
    return [
        name
        for name, (metric, _) in zip(names, registry.validate(names), strict=True)
        if OF_WEIGHTS & set(metric.needs)
    ]


def human_inputs(config: ChainConfig, prepared: Prepared, root: Path) -> HumanInputs:
    """Return a function that gives metrics the inputs that are made from human data.

    Each input is computed once, and only if a metric needs it.
    """
    embed_texts = functools.partial(embed, model=config.embedder)

    @functools.cache
    def reference(name: str) -> np.ndarray:
        return embed_texts(prepared.sources[name].human)

    @functools.cache
    def projection(name: str) -> umap.EvaluationMap:
        texts = prepared.data[name].texts
        return _map(root, name, lambda limit: embed_texts(texts[:limit]))

    def inputs(needed: set[str], datasets: Sequence[str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        if "reference_texts" in needed:
            values["reference_texts"] = [prepared.sources[name].human for name in datasets]
        if needed & {"embeddings", "reference_embeddings"}:
            values["embeddings"] = embed_texts
        if "reference_embeddings" in needed:
            values["reference_embeddings"] = [reference(name) for name in datasets]
        if "projection" in needed:
            values["projection"] = [projection(name) for name in datasets]
        return values

    return inputs


def _map(root: Path, name: str, embeddings: Callable[[int], np.ndarray]) -> umap.EvaluationMap:
    """The evaluation UMAP of a data set.

    It is read from maps/ in the run directory, or fitted on the first texts and written there.
    embeddings: function(n) -> embeddings [n, d] of the first n texts.
    """
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


def measuring(config: ChainConfig, prepared: Prepared, root: Path) -> Measure:
    """Return the function that computes the metrics of every model of a generation.

    It adds the value `finished`: the share of the model's texts that ended by themselves. The
    evaluation UMAPs are made here, before any training.
    """
    human = human_inputs(config, prepared, root)
    human(registry.needs(config.metrics) & {"projection"}, list(prepared.sources))
    count = config.chain.eval_texts

    @functools.cache
    def reference() -> Model:
        name = config.reference or config.models.pool[0]
        return load_model(config.models, config.run, name)

    def measure(
        model: Model | None,
        generation: int,
        outputs: Sequence[ModelOutput],
        names: Sequence[str],
        /,
    ) -> Values:
        needed = registry.needs(names)
        datasets = [output.chain.dataset_of(output.entity) for output in outputs]
        texts = [output.texts[:count] for output in outputs]
        prompts = [output.prompts[:count] for output in outputs]
        inputs = human(needed, datasets) | {"texts": texts, "contexts": prompts}
        # Models that are measured together were trained together, with the same settings.
        chain = outputs[0].chain
        fit = effective(prepared.driver.fit, chain.fit, chain.workflow.start == "scratch")
        weights = [output.weights for output in outputs]
        if {"losses", "token_nll"} & needed:
            sources = [prepared.sources[name] for name in datasets]
            inputs["losses"] = _losses(
                model,
                weights,
                [source.heldout for source in sources],
                [source.heldout_prompts for source in sources],
                fit,
            )
            inputs["token_nll"] = [loss.token_nll for loss in inputs["losses"]]
        if "own_losses" in needed:
            inputs["own_losses"] = _losses(model, weights, texts, prompts, fit)
        if "reference_losses" in needed:
            base = [None] * len(outputs)
            inputs["reference_losses"] = _losses(reference(), base, texts, prompts, fit)
        unavailable: dict[str, str] = {}
        found = registry.evaluate(names, unavailable=unavailable, **inputs)
        values = missing.known(found, unavailable, len(outputs))
        for output, of_output in zip(outputs, values, strict=True):
            of_output["finished"] = (
                float(output.finished.mean()) if len(output.finished) else float("nan")
            )
        return {
            (output.chain.id, output.entity): of_output
            for output, of_output in zip(outputs, values, strict=True)
        }

    return measure


def _losses(
    model: Model | None,
    weights: Sequence[Any],
    texts: Sequence[Sequence[str]],
    prompts: Sequence[Sequence[str]],
    fit: FitConfig,
) -> list[family.LossResult]:
    """Losses of each list of texts after its prompts, under its weights (None: the base's own)."""
    if model is None:
        raise ValueError("metrics: losses need the model that generated the texts")
    tasks = [family.LossTask(*task) for task in zip(weights, texts, prompts, strict=True)]
    return family.loss(model, tasks, fit)


def references(config: ChainConfig, prepared: Prepared, root: Path) -> dict[str, float]:
    """Return {metric: its value on human text}, for the metrics that need no trained model.

    As many texts are measured as of a generation. Empty where there are several data sets, since
    the report has room for one value per metric only.
    """
    if len(prepared.sources) > 1:
        return {}
    not_here = OF_WEIGHTS | {"reference_losses", "contexts"}
    names = [name for name in config.metrics if not registry.needs([name]) & not_here]
    if config.judge == "later" and config.only is None:
        names = [name for name in names if not registry.asks_endpoint(name)]
    inputs = human_inputs(config, prepared, root)(registry.needs(names), list(prepared.sources))
    texts = [source.human for source in prepared.sources.values()]
    values = registry.evaluate(names, texts=texts, **inputs)
    return {name: float(value[0]) for name, value in values.items()}
