"""What is measured of every generation: the values of its articles, and the neurons of its models.

They lie in articles/chain=…/generation=….parquet and neurons/chain=…/…, so that errors can be
paired over articles; means go to metrics.csv.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxloop.core.keys import chain_key
from jaxloop.lm.io.huggingface import Model
from jaxloop.metrics import registry
from jaxloop.metrics.classifiers import Known, predict
from jaxloop.recursion.family import GenerateTask
from jaxloop.recursion.generation import ModelOutput
from jaxloop.recursion.sources import upcoming_texts
from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import inside, write_atomic
from jaxloop.runtime.devices import concurrent_map
from jaxloop.studies.bias_amplification import neurons
from jaxloop.studies.bias_amplification.article_scores import (
    ArticleScores,
    Generated,
    make_scorer,
)
from jaxloop.studies.bias_amplification.articles import body_of
from jaxloop.studies.bias_amplification.auxiliary import AuxiliaryModels
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.family import ArticleFamily, base_weights
from jaxloop.studies.bias_amplification.paths import articles_path, neurons_path
from jaxloop.studies.bias_amplification.prepare import Prepared
from jaxloop.studies.common import missing

# Means of what the base generates before any fine-tuning.
BASE_MEANS = "base.json"

Measured = dict[tuple[str, int], dict[str, float]]
# (base, generation, what the models generated) -> {(chain id, entity): {metric: value}}
Measure = Callable[[Model, int, Sequence[ModelOutput]], Measured]


def make_measure(
    config: BiasConfig, prepared: Prepared, auxiliary: AuxiliaryModels, root: Path
) -> Measure:
    """Make the driver's `measure`, which writes the values of every chain's articles and neurons
    and returns the means of the articles.
    """
    real_articles: list[neurons.TokenBatches] = []  # tokenised once
    known: Known = {}
    directed = auxiliary.direction is not None

    def _generated(output: ModelOutput, generation: int) -> Generated:
        upcoming: Sequence[str] = ()
        if directed:
            upcoming = upcoming_texts(
                output, generation, prepared.data, root, config.chain.generations
            )
        return Generated(output.texts, output.weights, upcoming)

    def measure(model: Model, generation: int, outputs: Sequence[ModelOutput]) -> Measured:
        scorer = make_scorer(config, prepared, auxiliary, model, known)
        scores = scorer.score([_generated(output, generation) for output in outputs])
        for output, score in zip(outputs, scores, strict=True):
            _write_articles(root, generation, output, score)
        if config.neurons.measure:
            if not real_articles:
                real_articles.append(_real_articles(config, prepared, model))
            _write_neurons(config, prepared, model, real_articles[0], root, generation, outputs)
        return {
            (output.chain.id, output.entity): (
                score.means | {"finished": float(output.finished.mean())}
            )
            for output, score in zip(outputs, scores, strict=True)
        }

    return measure


def measure_named(
    model: Any, generation: int, outputs: Sequence[ModelOutput], names: Sequence[str], /
) -> Measured:
    """Return the named metrics of the registry of what models wrote, as a run measures them."""
    unavailable: dict[str, str] = {}
    bodies = [[body_of(text) for text in output.texts] for output in outputs]
    values = registry.evaluate(names, unavailable=unavailable, texts=bodies)
    found = missing.known(values, unavailable, len(outputs))
    return {
        (output.chain.id, output.entity): of_output
        for output, of_output in zip(outputs, found, strict=True)
    }


def _write_articles(root: Path, generation: int, output: ModelOutput, score: ArticleScores) -> None:
    _write(
        inside(root, articles_path(output.chain.id, generation)),
        {"id": output.prompts, **score.columns, "tokens": output.tokens},
    )


def _write_neurons(
    config: BiasConfig,
    prepared: Prepared,
    model: Model,
    articles: neurons.TokenBatches,
    root: Path,
    generation: int,
    outputs: Sequence[ModelOutput],
) -> None:
    """The neurons of every model; those of weights that several chains share are computed once."""
    fit = prepared.driver.fit
    distinct = {id(output.weights): output.weights for output in outputs}

    def read(weights: Any) -> dict[str, np.ndarray]:
        return {
            "weight": neurons.weights(model, weights, tensor=config.neurons.tensor, fit=fit),
            "activation": neurons.activations(model, articles, weights, fit=fit),
        }

    by_weights = dict(zip(distinct, concurrent_map(read, distinct.values()), strict=True))
    for output in outputs:
        values = by_weights[id(output.weights)]
        place = np.indices(values["weight"].shape, np.int32)
        columns = {"layer": place[0], "unit": place[1], **values}
        _write(
            inside(root, neurons_path(output.chain.id, generation)),
            {name: column.ravel() for name, column in columns.items()},
        )


def _write(path: Path, table: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_parquet(path, table, durable=True)


def _real_articles(config: BiasConfig, prepared: Prepared, model: Model) -> neurons.TokenBatches:
    """The real articles on which activations are averaged."""
    section, articles = config.neurons, prepared.articles
    count = min(len(articles.chosen), section.texts or len(articles.chosen))
    return neurons.prepare(
        model,
        [articles.text(row) for row in range(count)],
        max_length=min(section.max_length, model.config.max_seq_len),
        average=section.average,
    )


def measure_base(
    config: BiasConfig,
    prepared: Prepared,
    auxiliary: AuxiliaryModels,
    family: ArticleFamily,
    root: Path,
    *,
    fill: bool = False,
) -> dict[str, float]:
    """Return the means of what the base generates, greedily, before any fine-tuning.

    They are measured once and kept in the run directory, but for those of a judge that did not
    answer. fill: measure those too, if it answers now.
    """
    path = root / BASE_MEANS
    if not config.measure.base:
        return {}
    if not path.exists():
        model, texts = _base_texts(config, prepared, family)
        scorer = make_scorer(config, prepared, auxiliary, model)
        (score,) = scorer.score([Generated(texts, weights=None)])
        asked = {name for name in _further(config) if registry.asks_endpoint(name)}
        known = {
            name: value
            for name, value in score.means.items()
            if name not in asked or value == value
        }
        _write_base(path, known)
    lacking = base_lacks(config, root)
    if fill and lacking and not registry.ask_judges(lacking):
        unavailable: dict[str, str] = {}
        bodies = [[body_of(text) for text in _base_texts(config, prepared, family)[1]]]
        values = registry.evaluate(lacking, unavailable=unavailable, texts=bodies)
        (found,) = missing.known(values, unavailable, 1)
        _write_base(path, _read_base(path) | found)
    return {name: value for name, value in _read_base(path).items() if math.isfinite(value)}


def base_lacks(config: BiasConfig, root: Path) -> list[str]:
    """Return the further metrics of what the base generates that no judge has answered yet."""
    if not config.measure.base:
        return []
    known = _read_base(root / BASE_MEANS)
    return [name for name in _further(config) if name not in known]


def _further(config: BiasConfig) -> list[str]:
    return registry.with_unparsable(config.measure.metrics)


def _base_texts(
    config: BiasConfig, prepared: Prepared, family: ArticleFamily
) -> tuple[Model, list[str]]:
    model = family.load(config.models.pool[0])
    names = prepared.articles.chosen["id"].tolist()
    task = GenerateTask(chain_key(0), base_weights(config, model), names, np.arange(len(names)))
    (result,) = family.generate(model, [task], prepared.driver.sample)
    return model, list(result.texts)


def _read_base(path: Path) -> dict[str, float]:
    """The means of the base; nan of a metric that has no value there."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: math.nan if value is None else value for name, value in found.items()}


def _write_base(path: Path, means: Mapping[str, float]) -> None:
    plain = {name: value if math.isfinite(value) else None for name, value in means.items()}
    write_atomic(path, json.dumps(plain, sort_keys=True).encode())


def real_shares(prepared: Prepared, auxiliary: AuxiliaryModels) -> dict[str, float]:
    """Return the label shares that the classifier finds among the real articles."""
    labels = predict(auxiliary.classifier, prepared.articles.texts())
    return {
        f"share({label})": labels.count(label) / len(labels)
        for label in auxiliary.classifier.labels
    }
