"""What a bias-amplification study stands on before its first generation: a base that knows the
language, a classifier, a bias direction.

Each is read, or fitted once and kept in the run directory; what cannot serve is refused before
anything is compiled or written.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jaxloop.studies.bias_amplification.run import Prepared, Settings

# Texts of a class that fit_classifier needs for 70/15/15.
LEAST = 7
CLASSIFIER, DIRECTION, BASE = "classifier", "direction", "base"


class Ready(NamedTuple):
    """What the measures stand on. fits: reports of the classifiers that were fitted here, the
    chosen one first; direction: tree or None.
    """

    classifier: Any
    fits: list[dict]
    direction: Any


# ---- what can be refused
# -----------------------------------------------------------------------------------------------


def check_classifier(settings: "Settings", articles):
    """The ready classifier, or None where one is to be fitted. Raises ValueError where its classes
    are not the labels of the articles, where there are too few articles to fit one, and where the
    target is no label.
    """
    from jaxloop.metrics import classifiers, quality
    from jaxloop.studies.chain.prepare import model_path

    c, known = settings.classifier, ", ".join(map(repr, articles.labels))
    if c.target not in articles.labels:
        raise ValueError(
            f"config.classifier.target = {c.target!r} is not a label of the data; there are {known}"
        )
    if (
        settings.measure.quality
        and settings.measure.detector is None
        and not quality.default_detector().is_dir()
    ):
        raise ValueError(
            "config.measure.detector = none: no detector came with this installation; name one, "
                "or set measure.quality to false"
        )  # fmt: skip
    if c.model is None:
        counts = classifier_articles(settings, articles)["label"].value_counts()
        for label in articles.labels:
            if counts.get(label, 0) < LEAST:
                raise ValueError(
                    f"config.classifier.model = none: {counts.get(label, 0)} articles labelled "
                        f"{label!r} are left to fit a classifier on, at least "
                    f"{LEAST} are needed; lower data.per_label or name a ready classifier"
                )  # fmt: skip
        return None
    found = classifiers.load_classifier(
        model_path(c.model), labels=c.labels or None, max_length=c.max_length
    )
    if set(found.labels) != set(articles.labels):
        mine = ", ".join(map(repr, found.labels))
        raise ValueError(
            f"config.classifier.model = {c.model!r}: its classes are {mine}, the data's labels "
            f"are {known}; name them with classifier.labels"
        )
    return found


def check_adapt(settings: "Settings", articles) -> None:
    """Raises ValueError where too few articles are left to make a base of."""
    wanted, left = (
        settings.adapt.articles,
        len(articles.rest) - len(classifier_articles(settings, articles)),
    )
    if wanted is not None and left < wanted:
        raise ValueError(
            f"config.adapt.articles = {wanted}: {left} articles are left that neither a chain "
            "nor the classifier sees"
        )


def classifier_articles(settings: "Settings", articles):
    """The rows of `articles.rest` that the classifier is fitted on; none where it is ready."""
    c, rest = settings.classifier, articles.rest
    if c.model is not None:
        return rest.iloc[:0]
    if c.texts is None:
        return (
            rest
            if settings.adapt.articles is None
            else rest.sample(frac=1, random_state=c.seed).iloc[settings.adapt.articles :]
        )
    return rest.groupby("label", group_keys=False)[list(rest.columns)].apply(
        lambda t: t.sample(n=min(len(t), c.texts), random_state=c.seed)
    )


def check_direction(settings: "Settings", spec, articles) -> None:
    """Raises ValueError where the bias direction is no file of weights of this model, or one of its
    labels has no articles.
    """
    p = settings.projection
    if p.direction is None:
        return
    if p.direction == "fit":
        for name in ("toward", "away"):
            if getattr(p, name) not in set(articles.chosen["label"]):
                raise ValueError(
                    f"config.projection.{name} = {getattr(p, name)!r}: no chosen article has "
                    "this label"
                )
        return
    import jax

    from jaxloop.lm import Lora
    from jaxloop.lm.model import lora as adapters
    from jaxloop.lm.model.config import abstract
    from jaxloop.lm.training import gradient_constraint

    tree, lora = _read_direction(p.direction), Lora(**settings.fit.lora.model_dump())
    adapter = lambda: adapters.split(
        adapters.init(jax.random.split(jax.random.key(0), 1), spec, lora), 0
    )
    gradient_constraint.check(
        tree, abstract(spec) if settings.fit.mode == "full" else jax.eval_shape(adapter)
    )


def _read_direction(path: str):
    from jaxloop.runtime.weights_io import load_tree

    file = Path(path).expanduser()
    if not file.is_file() or file.suffix != ".safetensors":
        raise ValueError(
            f"config.projection.direction = {path!r}: is no .safetensors file of weights, nor 'fit'"
        )
    return load_tree(file.parent, file.stem)


def check_neurons(settings: "Settings", spec, chains: Sequence) -> None:
    """Raises ValueError for a tensor that the model lacks, and for fewer generations than the lags
    need.
    """
    from jaxloop.studies.bias_amplification import neuron_study as tests
    from jaxloop.studies.bias_amplification import neurons

    n, count = settings.neurons, settings.chain.generations
    neurons.check(
        spec, tensor=n.tensor, average=n.average, max_length=min(n.max_length, spec.context)
    )
    tests.check_design(
        [c.id for c in chains for _ in range(count)],
        [g for _ in chains for g in range(count)],
        lags=n.lags,
    )


# ---- before the first generation
# ---------------------------------------------------------------------------------------


def make(settings: "Settings", prepared: "Prepared", root: Path) -> Ready:
    """The classifier and the bias direction: read, or fitted once and kept in the run directory."""
    from jaxloop.runtime.devices import barrier, processes

    if processes()[0] == 0:
        if settings.adapt.articles is not None and not (root / BASE / "config.json").exists():
            _adapt(settings, prepared, root / BASE)
        if prepared.classifier is None and not (root / CLASSIFIER / "fits.json").exists():
            _fit_classifiers(settings, prepared.articles, root / CLASSIFIER)
        if (
            settings.projection.direction == "fit"
            and not (root / f"{DIRECTION}.safetensors").exists()
        ):
            _fit_direction(settings, prepared, root)
    barrier("base, classifier and direction are ready")
    classifier, fits = prepared.classifier, []
    if classifier is None:
        from jaxloop.metrics.classifiers import load_classifier

        fits = json.loads((root / CLASSIFIER / "fits.json").read_text(encoding="utf-8"))
        classifier = load_classifier(
            str(root / CLASSIFIER), max_length=settings.classifier.max_length
        )
    return Ready(classifier, fits, _direction(settings, root))


def base_model(settings: "Settings", root: Path):
    """The base of all chains, on every device that this process may use."""
    from jaxloop.studies.chain import prepare

    return prepare.load_model(
        settings, settings.models.pool[0] if settings.adapt.articles is None else str(root / BASE)
    )


def _adapt(settings, prepared, folder: Path) -> None:
    """The base fine-tuned, all weights, on articles that nothing else sees; saved as a model
    directory.
    """
    import jax
    import jax.numpy as jnp

    from jaxloop import lm
    from jaxloop.core.keys import chain_key
    from jaxloop.lm import family
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.bias_amplification import chains as bias_chains
    from jaxloop.studies.bias_amplification.articles import whole
    from jaxloop.studies.chain import prepare

    a, articles = settings.adapt, prepared.articles
    others = articles.rest.drop(classifier_articles(settings, articles).index).sample(
        n=a.articles, random_state=settings.data.seed
    )
    texts = [
        whole(title, body) for title, body in zip(others["title"], others["body"], strict=True)
    ]
    model = prepare.load_model(settings, settings.models.pool[0])
    fit = dataclasses.replace(
        prepared.driver.fit, mode="full", steps=None, epochs=a.epochs, batch_size=a.batch_size, learning_rate=a.learning_rate
    )  # fmt: skip
    examples = bias_chains.training_examples(
        texts, settings.chain.reading, bias_chains.codec(prepared.tokenizer)
    )
    result = family.fit(
        bias_chains.on_ids(model, ends=False), [family.FitTask(chain_key(0), *examples)], fit
    )[0]
    LOGGER.info(
        "the base was fine-tuned on %d articles: loss %.3f at the first step, %.3f at the last",
        len(texts),
        result.loss[0],
        result.loss[-1],
    )
    lm.save(model._replace(params=jax.tree.map(jnp.asarray, result.weights)), folder)


def _direction(settings, root):
    from jaxloop.lm.training import gradient_constraint
    from jaxloop.runtime.weights_io import load_tree

    path = settings.projection.direction
    if path is None:
        return None
    return gradient_constraint.unit(
        load_tree(root, DIRECTION) if path == "fit" else _read_direction(path)
    )


def _fit_classifiers(settings, articles, folder: Path) -> None:
    """Fits every encoder on articles that no chain sees; the one with the best macro-F1 on the
    validation texts is kept.
    """
    from jaxloop.metrics.classifiers import fit_classifier, save_classifier
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.bias_amplification.articles import whole
    from jaxloop.studies.chain.prepare import model_path

    c, rest = settings.classifier, classifier_articles(settings, articles)
    texts = [whole(title, body) for title, body in zip(rest["title"], rest["body"], strict=True)]
    fits, best = [], None
    for name in c.encoders:
        fitted = fit_classifier(
            texts, rest["label"].tolist(), encoder=None if name is None else model_path(name), train=c.train, epochs=c.epochs, batch_size=c.batch_size,
            learning_rate=c.learning_rate, max_length=c.max_length, seed=c.seed,
        )  # fmt: skip
        report = fitted.report | {
            "encoder": name or "MiniLM",
            "validation": fitted.report["log"][fitted.report["best_epoch"] - 1]["macro_f1"],
        }
        LOGGER.info(
            "classifier on %s: macro-F1 %.3f on validation, %.3f on test texts",
            report["encoder"],
            report["validation"],
            report["test"]["macro_f1"],
        )
        fits.append(report)
        if best is None or report["validation"] > best[1]["validation"]:
            best = fitted.classifier, report
    save_classifier(best[0], folder)
    ordered = [best[1], *(report for report in fits if report is not best[1])]
    write_atomic(folder / "fits.json", json.dumps(ordered, indent=1).encode())


def _fit_direction(settings, prepared, root) -> None:
    """The base fine-tuned on the real articles of `toward` minus the base fine-tuned on those of
    `away`, by the settings of a generation.
    """
    from jaxloop.core.keys import chain_key
    from jaxloop.lm import family as lm
    from jaxloop.lm.training import gradient_constraint
    from jaxloop.runtime.weights_io import save_tree
    from jaxloop.studies.bias_amplification import chains as bias_chains

    articles, code, p = (
        prepared.articles,
        bias_chains.codec(prepared.tokenizer),
        settings.projection,
    )
    model = bias_chains.on_ids(base_model(settings, root), ends=False)
    tasks = []
    for label in (p.toward, p.away):
        texts = [
            articles.text(i)
            for i in range(len(articles.chosen))
            if articles.chosen["label"].iloc[i] == label
        ]
        tasks.append(
            lm.FitTask(
                chain_key(0), *bias_chains.training_examples(texts, settings.chain.reading, code)
            )
        )
    toward, away = (result.weights for result in lm.fit(model, tasks, prepared.driver.fit))
    save_tree(root, DIRECTION, gradient_constraint.difference(toward, away))
