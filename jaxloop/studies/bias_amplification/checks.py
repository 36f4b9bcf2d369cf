"""What a bias-amplification study cannot run with, refused before anything is compiled."""

import json
from collections.abc import Sequence
from typing import Any

import jax
import pandas as pd

from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, abstract
from jaxloop.lm.training import gradient_constraint
from jaxloop.metrics import classifiers, quality, registry
from jaxloop.metrics.classifiers import Classifier
from jaxloop.recursion.chains import ChainSpec
from jaxloop.runtime.problems import named, noted, raise_all
from jaxloop.runtime.user_path import user_path
from jaxloop.runtime.weights_io import load_tree
from jaxloop.studies.bias_amplification import neuron_design, neuron_exchange, neurons
from jaxloop.studies.bias_amplification.articles import Articles
from jaxloop.studies.bias_amplification.chains import setup_of
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.common import identity
from jaxloop.studies.common.models import model_path

# Texts of a class that fit_classifier needs for a split of 70/15/15.
MIN_CLASS_TEXTS = 7


def check_metrics(config: BiasConfig) -> None:
    """Raise ValueError for a metric that needs more than texts."""
    names = config.measure.metrics
    for name, (metric, _) in zip(names, registry.validate(names), strict=True):
        if metric.needs != ("texts",):
            raise ValueError(
                f"config.measure.metrics has '{name}', which needs {metric.needs[-1]}: only "
                "metrics of texts alone are taken here"
            )


def check_files(config: BiasConfig) -> None:
    """Raise ValueError for a classifier, or a model of a metric, that cannot be loaded."""
    problems: list[ValueError] = []
    with noted(problems), named("config.measure.metrics"):
        registry.check(config.measure.metrics)
    if config.classifier.model is not None:
        with noted(problems), named("config.classifier.model"):
            classifiers.load_classifier(
                model_path(config.classifier.model),
                labels=config.classifier.labels or None,
                max_length=config.classifier.max_length,
            )
    raise_all(problems)


def check_model(config: BiasConfig, model_config: ModelConfig, prompt_len: int) -> None:
    """Raise ValueError where prompts or training examples do not fit the context of the base."""
    name, context = config.models.pool[0], model_config.max_seq_len
    if prompt_len + config.sample.max_new_tokens > context:
        raise ValueError(
            f"config.chain.block = {config.chain.block}: prompts of up to {prompt_len} tokens and "
            f"{config.sample.max_new_tokens} new ones do not fit the context of {name}, which is "
            f"{context} tokens"
        )
    if config.fit.max_length > context:
        raise ValueError(
            f"config.fit.max_length = {config.fit.max_length}: exceeds the context of {name}, "
            f"which is {context} tokens"
        )


def check_classifier(config: BiasConfig, articles: Articles) -> Classifier | None:
    """Return the ready-made classifier, or None where one is to be fitted.

    Raises:
        ValueError: its classes are not the labels of the articles, there are too few articles to
            fit one, the target is no label, or there is no detector of text quality.
    """
    section = config.classifier
    labels = ", ".join(map(repr, articles.labels))
    if section.target not in articles.labels:
        raise ValueError(
            f"config.classifier.target = {section.target!r} is not a label of the data; there are "
            f"{labels}"
        )
    check_detector(config)
    if section.model is None:
        _check_class_sizes(config, articles)
        return None
    classifier = classifiers.load_classifier(
        model_path(section.model), labels=section.labels or None, max_length=section.max_length
    )
    if set(classifier.labels) != set(articles.labels):
        classes = ", ".join(map(repr, classifier.labels))
        raise ValueError(
            f"config.classifier.model = {section.model!r}: its classes are {classes}, the data's "
            f"labels are {labels}; name them with classifier.labels"
        )
    return classifier


def check_detector(config: BiasConfig) -> None:
    measure = config.measure
    if measure.quality and measure.detector is None and not quality.default_detector().is_dir():
        raise ValueError(
            "config.measure.detector = none: no detector came with this installation; name one, "
            "or set measure.quality to false"
        )


def _check_class_sizes(config: BiasConfig, articles: Articles) -> None:
    counts = classifier_articles(config, articles)["label"].value_counts()
    for label in articles.labels:
        if counts.get(label, 0) < MIN_CLASS_TEXTS:
            raise ValueError(
                f"config.classifier.model = none: {counts.get(label, 0)} articles labelled "
                f"{label!r} are left to fit a classifier on, at least {MIN_CLASS_TEXTS} are "
                "needed; lower data.per_label or name a ready classifier"
            )


def check_adapt(config: BiasConfig, articles: Articles) -> None:
    """Raise ValueError where too few articles are left to adapt the base to."""
    wanted = config.adapt.articles
    left = len(articles.rest) - len(classifier_articles(config, articles))
    if wanted is not None and left < wanted:
        raise ValueError(
            f"config.adapt.articles = {wanted}: {left} articles are left that neither a chain "
            "nor the classifier sees"
        )


def classifier_articles(config: BiasConfig, articles: Articles) -> pd.DataFrame:
    """Return the rows of `articles.rest` that the classifier is fitted on; none where it is
    ready-made.
    """
    section, rest = config.classifier, articles.rest
    if section.model is not None or rest.empty:
        return rest.iloc[:0]
    if section.texts is not None:
        parts = [
            of_label.sample(n=min(len(of_label), section.texts), random_state=section.seed)
            for _, of_label in rest.groupby("label")
        ]
        return pd.concat(parts)
    if config.adapt.articles is None:
        return rest
    return rest.sample(frac=1, random_state=section.seed).iloc[config.adapt.articles :]


def check_direction(config: BiasConfig, model_config: ModelConfig, articles: Articles) -> None:
    """Raise ValueError where the bias direction is no file of weights of this model, or one of its
    labels has no articles.
    """
    section = config.gradient_constraint
    if section.direction is None:
        return
    if section.direction == "fit":
        labels = set(articles.chosen["label"])
        for name, label in (("toward", section.toward), ("away", section.away)):
            if label not in labels:
                raise ValueError(
                    f"config.gradient_constraint.{name} = {label!r}: no chosen article has this "
                    "label"
                )
        return
    direction = read_direction(section.direction)
    _check_origin(config, section.direction)
    try:
        gradient_constraint.check(direction, _weights_like(config, model_config))
        gradient_constraint.unit(direction)
    except ValueError as error:
        raise ValueError(
            f"config.gradient_constraint.direction = {section.direction!r}: {error}"
        ) from None


def _check_origin(config: BiasConfig, path: str) -> None:
    """Raise ValueError for the direction of a run with another base, which may have equal shapes.

    Only of a file that lies where a run left it is its base known.
    """
    try:
        stored = json.loads((user_path(path).parent / "config.json").read_bytes())
        theirs = identity.bases(stored["identity"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return
    ours = identity.bases(identity.of(config, metrics=False))
    if theirs and ours and not set(theirs.values()) & set(ours.values()):
        (name, value), own = next(iter(theirs.items())), next(iter(ours.values()))
        raise ValueError(
            f"config.gradient_constraint.direction = {path!r}: is of a run with another base, "
            f"{name} (SHA-256 {value[:12]}, this run's has {own[:12]}); fit it anew with 'fit', "
            "or take that base"
        )


def _weights_like(config: BiasConfig, model_config: ModelConfig) -> Any:
    """The shapes of a chain's weights."""
    if config.fit.mode == "full":
        return abstract(model_config)

    def adapter() -> adapters.Adapter:
        keys = jax.random.split(jax.random.key(0), 1)
        return adapters.split(adapters.init(keys, model_config, config.fit.lora), 0)

    return jax.eval_shape(adapter)


def read_direction(path: str) -> Any:
    """Read a bias direction, a tree like a chain's weights. Raises ValueError for what is no file
    of weights.
    """
    file = user_path(path)
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(
            f"config.gradient_constraint.direction = {path!r}: is no .safetensors file of "
            "weights, nor 'fit'"
        )
    return load_tree(file.parent, file.stem)


def check_neurons(
    config: BiasConfig, model_config: ModelConfig, chains: Sequence[ChainSpec]
) -> None:
    """Raise ValueError for a tensor that the model lacks, and for fewer generations than the lags
    need.
    """
    section, generations = config.neurons, range(config.chain.generations)
    neurons.check(
        model_config,
        tensor=section.tensor,
        average=section.average,
        max_length=min(section.max_length, model_config.max_seq_len),
    )
    versions = [(chain, generation) for chain in chains for generation in generations]
    neuron_design.check_design(
        [setup_of(chain) for chain, _ in versions],
        [generation for _, generation in versions],
        seeds=[chain.seed for chain, _ in versions],
        lags=section.lags,
    )
    _check_exchange(config)


def _check_exchange(config: BiasConfig) -> None:
    """Raise ValueError for a named scheme of exchange that cannot give a verdict."""
    section, chain = config.neurons, config.chain
    if section.scheme in ("auto", "none"):
        return
    field = f"config.neurons.scheme = '{section.scheme}'"
    if section.scheme == "chains" and len(chain.setups) > 1:
        raise ValueError(
            f"{field}: the setups of one seed share the random numbers of generation 0, so that "
            "they do not change places apart; take 'seeds' or a single setup"
        )
    seeds = [len(chain.seeds)] * len(chain.setups)
    reason = neuron_exchange.too_few(seeds, section.scheme, section.alpha)
    if reason is not None:
        raise ValueError(f"{field}: {reason}; add chain.seeds or set it to 'none'")
