"""The models that a bias-amplification study needs before its first generation.

They are a base that knows the language of the articles, a classifier, and a bias direction. Each is
read, or fitted once and kept in the run directory.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloop import lm
from jaxloop.core.keys import chain_key
from jaxloop.lm import family as lm_family
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.training import gradient_constraint
from jaxloop.metrics import classifiers
from jaxloop.metrics.classifier_training import FittedClassifier, fit_classifier
from jaxloop.metrics.classifiers import Classifier
from jaxloop.recursion.family import FitTask
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.cluster import processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet
from jaxloop.runtime.weights_io import load_tree, save_tree
from jaxloop.studies.bias_amplification.articles import Articles, article_texts
from jaxloop.studies.bias_amplification.checks import classifier_articles, read_direction
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.family import on_token_ids, training_examples
from jaxloop.studies.bias_amplification.prepare import Prepared
from jaxloop.studies.common import models as base_models

# Where they are kept in the run directory.
BASE, CLASSIFIER, FITS, DIRECTION = "base", "classifier", "classifier/fits.json", "direction"


class AuxiliaryModels(NamedTuple):
    """The models that the measures use.

    Attributes:
        classifier: of labels.
        fits: reports of the classifiers that were fitted here, the chosen one first.
        direction: the bias direction, a tree like a chain's weights, of norm 1; None: there is
            none.
    """

    classifier: Classifier
    fits: list[dict[str, Any]]
    direction: Any


def make_auxiliary_models(config: BiasConfig, prepared: Prepared, root: Path) -> AuxiliaryModels:
    """Read the classifier and the bias direction, or fit what a run directory does not hold yet."""
    if processes()[0] == 0:
        _fit_missing(config, prepared, root)
    meet("base, classifier and direction are ready", root)
    classifier, fits = prepared.classifier, []
    if classifier is None:
        fits = json.loads((root / FITS).read_text(encoding="utf-8"))
        classifier = classifiers.load_classifier(
            str(root / CLASSIFIER), max_length=config.classifier.max_length
        )
    return AuxiliaryModels(classifier, fits, _load_direction(config, root))


def load_base(config: BiasConfig, root: Path) -> Model:
    """Load the base of all chains on every device that this process may use."""
    name = config.models.pool[0] if config.adapt.articles is None else str(root / BASE)
    return base_models.load_model(config.models, config.run, name)


def _fit_missing(config: BiasConfig, prepared: Prepared, root: Path) -> None:
    if config.adapt.articles is not None and not (root / BASE / "config.json").exists():
        _adapt_base(config, prepared, root / BASE)
    if prepared.classifier is None and not (root / FITS).exists():
        _fit_classifiers(config, prepared.articles, root)
    is_fitted = config.gradient_constraint.direction == "fit"
    if is_fitted and not (root / f"{DIRECTION}.safetensors").exists():
        _fit_direction(config, prepared, root)


def _adapt_base(config: BiasConfig, prepared: Prepared, folder: Path) -> None:
    """Fine-tune all weights of the base on articles that nothing else sees, and save it."""
    adapt, articles = config.adapt, prepared.articles
    unseen = articles.rest.drop(classifier_articles(config, articles).index)
    texts = article_texts(unseen.sample(n=adapt.articles, random_state=config.data.seed))
    model = base_models.load_model(config.models, config.run, config.models.pool[0])
    fit = config.fit.replace(
        mode="full",
        steps=None,
        epochs=adapt.epochs,
        batch_size=adapt.batch_size,
        learning_rate=adapt.learning_rate,
    )
    (result,) = lm_family.fit(
        on_token_ids(model, ends=False),
        [_task(config, prepared, texts)],
        fit,
        base_models.train_options(config.run),
    )
    LOGGER.info(
        "the base was fine-tuned on %d articles: loss %.3f at the first step, %.3f at the last",
        len(texts),
        result.loss[0],
        result.loss[-1],
    )
    lm.save(model._replace(params=jax.tree.map(jnp.asarray, result.weights)), folder)


def _task(config: BiasConfig, prepared: Prepared, texts: list[str]) -> FitTask:
    """A fit from the base on articles."""
    bodies, heads = training_examples(texts, config.chain.variant, prepared.codec)
    # The stand-in tokenizer of `on_token_ids` takes ids for texts.
    return FitTask(chain_key(0), bodies, heads)  # type: ignore[arg-type]


def _fit_classifiers(config: BiasConfig, articles: Articles, root: Path) -> None:
    """Fit every encoder on articles that no chain sees; keep the one with the best macro-F1 on the
    validation texts.
    """
    rows = classifier_articles(config, articles)
    texts, labels = article_texts(rows), rows["label"].tolist()
    best, reports = None, []
    for encoder in config.classifier.encoders:
        fitted = _fit_encoder(config, encoder, texts, labels)
        reports.append(fitted.report)
        if best is None or fitted.report["validation"] > best.report["validation"]:
            best = fitted
    assert best is not None  # the config has at least one encoder
    classifiers.save_classifier(best.classifier, root / CLASSIFIER)
    others = [report for report in reports if report is not best.report]
    write_atomic(root / FITS, json.dumps([best.report, *others], indent=1).encode())


def _fit_encoder(
    config: BiasConfig, encoder: str | None, texts: list[str], labels: list[str]
) -> FittedClassifier:
    section = config.classifier
    fitted = fit_classifier(
        texts,
        labels,
        encoder=None if encoder is None else base_models.model_path(encoder),
        train=section.train,
        epochs=section.epochs,
        batch_size=section.batch_size,
        learning_rate=section.learning_rate,
        max_length=section.max_length,
        seed=section.seed,
    )
    best_epoch = fitted.report["log"][fitted.report["best_epoch"] - 1]
    report = fitted.report | {
        "encoder": encoder or "MiniLM",
        "validation": best_epoch["macro_f1"],
    }
    LOGGER.info(
        "classifier on %s: macro-F1 %.3f on validation, %.3f on test texts",
        report["encoder"],
        report["validation"],
        report["test"]["macro_f1"],
    )
    return fitted._replace(report=report)


def _fit_direction(config: BiasConfig, prepared: Prepared, root: Path) -> None:
    """Save the direction from the base fine-tuned on the real articles of label `away` to the base
    fine-tuned on those of `toward`, by the settings of a generation.
    """
    section, articles = config.gradient_constraint, prepared.articles.chosen
    tasks = [
        _task(config, prepared, article_texts(articles[articles["label"] == label]))
        for label in (section.toward, section.away)
    ]
    toward, away = lm_family.fit(
        on_token_ids(load_base(config, root), ends=False),
        tasks,
        config.fit,
        base_models.train_options(config.run),
    )
    save_tree(root, DIRECTION, gradient_constraint.difference(toward.weights, away.weights))


def _load_direction(config: BiasConfig, root: Path) -> Any:
    path = config.gradient_constraint.direction
    if path is None:
        return None
    tree = load_tree(root, DIRECTION) if path == "fit" else read_direction(path)
    return gradient_constraint.unit(tree)
