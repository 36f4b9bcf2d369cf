"""The values that are measured of generated articles, and their means.

They are label shares, text quality, perplexities and the bias projection (arXiv 2410.15234).
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxloop.lm import family as lm
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.training import gradient_constraint
from jaxloop.metrics import registry
from jaxloop.metrics.classifiers import Classifier, Known, probabilities
from jaxloop.metrics.quality import text_quality_variants
from jaxloop.runtime.devices import concurrent_map
from jaxloop.studies.bias_amplification.articles import body_of
from jaxloop.studies.bias_amplification.auxiliary import AuxiliaryModels
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.family import (
    base_weights,
    on_token_ids,
    training_examples,
)
from jaxloop.studies.bias_amplification.prepare import Prepared

# Column of an article -> metric that is its mean.
MEANS = {
    "quality": "text_quality_index",
    "quality_released": "text_quality_index(released)",
    "perplexity_base": "perplexity_base",
    "perplexity_own": "perplexity_own",
}
# Tokens of a text that a perplexity is of, at most.
PERPLEXITY_LENGTH = 1024

# Columns of values: [n] each.
Columns = dict[str, np.ndarray]


class Generated(NamedTuple):
    """The articles of one chain.

    Attributes:
        texts: the articles.
        weights: those that generated them; None: the base's.
        upcoming: what the next generation trains on.
    """

    texts: Sequence[str]
    weights: Any
    upcoming: Sequence[str] = ()


# What the values of a chain under its own weights depend on.
ChainKey = tuple[int, tuple[str, ...]]


def _chain_key(chain: Generated) -> ChainKey:
    return id(chain.weights), tuple(chain.texts)


def _next_key(chain: Generated) -> ChainKey:
    return id(chain.weights), tuple(chain.upcoming)


class ArticleScores(NamedTuple):
    """What is measured of the articles of one chain.

    Attributes:
        columns: values of every article [n]: label (the classifier's); p(LABEL), its probability;
            quality, the mean over the sentences of the body from 3 clean to 0 noise;
            quality_released, the released code's variant of it; perplexity_base and
            perplexity_own, under the base and under the weights, of the article or, in variant
            "released", the mean over its paragraphs.
        means: {metric: value}.
    """

    columns: dict[str, Any]
    means: dict[str, float]


@dataclass(frozen=True, eq=False)
class Scorer:
    """Measures articles.

    Attributes:
        config: of the study.
        prepared: of the study.
        auxiliary: classifier and bias direction.
        model: the base, with token ids in place of texts.
        base_weights: the base's, as a chain has them.
        known: what the classifier found for articles of earlier generations.
    """

    config: BiasConfig
    prepared: Prepared
    auxiliary: AuxiliaryModels
    model: Model
    base_weights: Any
    known: Known

    def score(self, chains: Sequence[Generated]) -> list[ArticleScores]:
        """Return the values of the articles of several chains. Articles that occur more than once
        are measured once.
        """
        texts = list(dict.fromkeys(text for chain in chains for text in chain.texts))
        row_of = {text: row for row, text in enumerate(texts)}
        by_text = self._columns(texts, chains)
        registered = self._registered(chains)
        own = self._own_perplexities(chains)
        projections = self._projections(chains)
        scores = []
        for number, chain in enumerate(chains):
            rows = [row_of[text] for text in chain.texts]
            columns = {name: values[rows] for name, values in by_text.items()}
            if chain.weights is not None:
                columns["perplexity_own"] = np.array(own[_chain_key(chain)])
            means = self._means(columns) | projections.get(_next_key(chain), {})
            means |= {name: float(values[number]) for name, values in registered.items()}
            scores.append(ArticleScores(columns | {"label": columns["label"].tolist()}, means))
        return scores

    def _own_perplexities(self, chains: Sequence[Generated]) -> dict[ChainKey, list[float]]:
        """Perplexities of the articles of every chain under its own weights; in generation 0
        several chains share both.
        """
        own = {_chain_key(chain): chain for chain in chains if chain.weights is not None}
        found = self._perplexities([(chain.weights, chain.texts) for chain in own.values()])
        return dict(zip(own, found, strict=True))

    def _projections(self, chains: Sequence[Generated]) -> dict[ChainKey, dict[str, float]]:
        own = {_next_key(chain): chain for chain in chains if chain.weights is not None}
        if self.auxiliary.direction is None:
            return {}
        return dict(zip(own, concurrent_map(self._projection, own.values()), strict=True))

    def _columns(self, texts: list[str], chains: Sequence[Generated]) -> Columns:
        """The values of each text that do not depend on a chain's weights."""
        columns = label_columns(self.auxiliary.classifier, texts, self.known)
        if self.config.measure.quality:
            count = self.config.measure.quality_articles
            measured = {text for chain in chains for text in chain.texts[:count]}
            columns |= self._quality_columns(texts, measured)
        (perplexities,) = self._perplexities([(self.base_weights, texts)])
        columns["perplexity_base"] = np.array(perplexities)
        return columns

    def _quality_columns(self, texts: list[str], measured: set[str]) -> Columns:
        """Text quality of the texts in `measured`, NaN of the others."""
        rows = [row for row, text in enumerate(texts) if text in measured]
        bodies = [body_of(texts[row]) for row in rows]
        detector = self.config.measure.detector
        found = text_quality_variants(
            [bodies], detector, [("class", "sentence"), ("confidence", "period")]
        )
        columns = {}
        for name, (values,) in zip(("quality", "quality_released"), found, strict=True):
            columns[name] = np.full(len(texts), np.nan)
            columns[name][rows] = values
        return columns

    def _registered(self, chains: Sequence[Generated]) -> Mapping[str, np.ndarray]:
        """The further metrics of the config: {metric: [chains]}."""
        names = registry.with_unparsable(self.config.measure.metrics)
        if not names:
            return {}
        later = {
            name for name in names if self.config.judge == "later" and registry.asks_endpoint(name)
        }
        bodies = [[body_of(text) for text in chain.texts] for chain in chains]
        found = registry.evaluate([name for name in names if name not in later], texts=bodies)
        return found | {name: np.full(len(chains), np.nan) for name in later}

    def _perplexities(self, sets: Sequence[tuple[Any, Sequence[str]]]) -> list[list[float]]:
        """The mean perplexity of each text's chunks, for every (weights, texts); NaN of a text
        without tokens to predict.
        """
        chunks_of = [[self._chunks(text) for text in texts] for _, texts in sets]
        distinct = [
            list(dict.fromkeys(chunk for of_text in of_set for chunk in of_text))
            for of_set in chunks_of
        ]
        weights = [of_set for of_set, _ in sets]
        found = self._chunk_perplexities(weights, distinct)
        return [
            [_mean([perplexity[chunk] for chunk in of_text]) for of_text in of_set]
            for of_set, perplexity in zip(chunks_of, found, strict=True)
        ]

    def _chunks(self, text: str) -> list[str]:
        """The parts of a text that have a perplexity each."""
        if self.config.chain.variant == "paper":
            return [text]
        return [paragraph for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]

    def _chunk_perplexities(
        self, weights: Sequence[Any], chunks: Sequence[list[str]]
    ) -> list[dict[str, float]]:
        """The perplexity of every chunk under its weights, all in one call."""
        codec, every = self.prepared.codec, dict.fromkeys(itertools.chain(*chunks))
        ids = {
            chunk: (*codec.start, *tokens)
            for chunk, tokens in zip(every, codec.encode(list(every)), strict=True)
        }
        tasks, scored = [], []
        for of_set, own in zip(chunks, weights, strict=True):
            # A single token has nothing to be predicted.
            scored.append([chunk for chunk in of_set if len(ids[chunk]) > 1])
            bodies = [ids[chunk][1:] for chunk in scored[-1]]
            heads = [ids[chunk][:1] for chunk in scored[-1]]
            # The stand-in tokenizer of `on_token_ids` takes ids for texts.
            tasks.append(lm.LossTask(own, bodies, heads))  # type: ignore[arg-type]
        length = min(PERPLEXITY_LENGTH, self.model.config.max_seq_len)
        results = lm.loss(self.model, tasks, self.prepared.driver.fit.replace(max_length=length))
        found = []
        for of_set, kept, result in zip(chunks, scored, results, strict=True):
            values = np.exp(result.nll / np.maximum(result.tokens, 1))
            perplexity = dict.fromkeys(of_set, math.nan)
            found.append(perplexity | dict(zip(kept, map(float, values), strict=True)))
        return found

    def _means(self, columns: Columns) -> dict[str, float]:
        labels = self.auxiliary.classifier.labels
        means = {f"share({label})": float((columns["label"] == label).mean()) for label in labels}
        for name, values in columns.items():
            if name in MEANS:
                is_defined = bool(np.isfinite(values).any())
                means[MEANS[name]] = float(np.nanmean(values)) if is_defined else math.nan
        return means

    def _projection(self, chain: Generated) -> dict[str, float]:
        """c = u' grad L on the articles that the next generation trains on, at the weights that it
        starts from; and u' (weights - base).
        """
        direction, weights = self.auxiliary.direction, chain.weights
        count = min(len(chain.upcoming), self.config.gradient_constraint.texts)
        spaced = np.linspace(0, len(chain.upcoming), count, endpoint=False, dtype=np.int64)
        texts = [chain.upcoming[row] for row in spaced]
        bodies, heads = training_examples(texts, self.config.chain.variant, self.prepared.codec)
        start = self.model.params
        if self.config.fit.mode == "lora":
            start = jax.tree.map(np.zeros_like, weights)
        coefficient = gradient_constraint.coefficient(
            self.model,
            weights,
            direction,
            bodies,  # type: ignore[arg-type]  # `on_token_ids` takes ids for texts
            heads,  # type: ignore[arg-type]
            self.prepared.driver.fit,
        )
        return {
            "projection": coefficient,
            "bias_component": gradient_constraint.component(weights, start, direction),
        }


def make_scorer(
    config: BiasConfig,
    prepared: Prepared,
    auxiliary: AuxiliaryModels,
    model: Model,
    known: Known | None = None,
) -> Scorer:
    """Make the scorer of a study with a base model. Scorers with the same `known` read an article
    once.
    """
    return Scorer(
        config=config,
        prepared=prepared,
        auxiliary=auxiliary,
        model=on_token_ids(model, ends=False),
        base_weights=base_weights(config, model),
        known={} if known is None else known,
    )


def label_columns(
    classifier: Classifier, texts: Sequence[str], known: Known | None = None
) -> Columns:
    """Return the label of each text, and the probability of every label; `known` as in
    `classifiers.probabilities`.
    """
    shares = probabilities(classifier, texts, known=known)
    columns: Columns = {
        f"p({label})": shares[:, i].astype(np.float64) for i, label in enumerate(classifier.labels)
    }
    columns["label"] = np.array(classifier.labels, object)[shares.argmax(1)]
    return columns


def _mean(values: list[float]) -> float:
    """The mean of those that are finite; NaN if none is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan
