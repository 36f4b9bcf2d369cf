"""Text classifiers: loaded from directories (toxicity, political bias, gibberish), or trained here
on labelled texts.

Dimensions: n texts, C classes, E size of an embedding.
"""

import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics.corpus import Corpus
from jaxloop.metrics.tokens import check_texts


class Classifier(NamedTuple):
    """Classes with what tells them apart: a fine-tuned encoder with its own head, or a linear head
    on frozen sentence embeddings.

    encoder   a `jaxloop.lm.encoder.encoder.Encoder`
    labels    names of the classes, in the order of the outputs
    head      {"w" [E, C], "bias" [C]} on embeddings of length sqrt(E); None where the encoder has the head of its architecture
    """

    encoder: Any
    labels: tuple[str, ...]
    head: dict[str, np.ndarray] | None = None


class Fitted(NamedTuple):
    """A trained classifier, and the report of how it was trained and what it reaches (plain values,
    ready for JSON).
    """

    classifier: Classifier
    report: dict[str, Any]


# ---- loading, saving, predicting
# --------------------------------------------------------------------------------------


def load_classifier(
    path: str, *, labels: Sequence[str] | None = None, max_length: int | None = None
) -> Classifier:
    """A classifier from a directory or hub id: one that `save_classifier` wrote, or a
    sequence-classification model of Hugging Face.

    labels      names of the classes in the order of the outputs, where the config's own (LABEL_0, …) say nothing
    max_length  tokens of a text that are read
    BERT, RoBERTa, MPNet, DistilBERT and the decoders of `jaxloop.lm` are read. ValueError for
    others, and for a path that does not exist.
    """
    from jaxloop.lm.encoder import encoder as encoders

    folder = Path(path).expanduser()
    if not (folder / "classifier.json").exists():
        encoder = encoders.load_classifier(path, labels=labels, max_length=max_length)
        return Classifier(encoder, encoder.spec.labels)
    settings = json.loads((folder / "classifier.json").read_text(encoding="utf8"))
    names = tuple(settings["labels"] if labels is None else map(str, labels))
    if len(names) != len(settings["labels"]):
        raise ValueError(
            f"labels: {len(names)} names for the {len(settings['labels'])} classes of {path}; "
            "one each is needed"
        )
    from safetensors.numpy import load_file

    return Classifier(
        _encoder(settings["encoder"], max_length or settings["max_length"]),
        names,
        load_file(folder / "head.safetensors"),
    )


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier as a directory: a fine-tuned one in Hugging Face's form, a head with the
    name of the encoder that it stands on.
    """
    from jaxloop.lm.encoder import encoder as encoders

    if classifier.head is None:
        encoders.save_classifier(classifier.encoder, path)
        return
    from safetensors.numpy import save

    from jaxloop.metrics.embed import default_model
    from jaxloop.runtime.atomic_io import write_atomic

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    name = None if classifier.encoder.name == str(default_model()) else classifier.encoder.name
    settings = dict(encoder=name, max_length=classifier.encoder.limit, labels=classifier.labels)
    write_atomic(folder / "head.safetensors", save(classifier.head))
    write_atomic(folder / "classifier.json", json.dumps(settings, indent=2).encode())


def _encoder(name: str | None, max_length: int | None):
    from jaxloop.lm.encoder import encoder as encoders
    from jaxloop.metrics.embed import default_model

    return encoders.load_encoder(
        str(default_model()) if name is None else name, max_length=max_length
    )


def probabilities(
    classifier: Classifier, texts: Sequence[str], *, batch: int | None = None
) -> np.ndarray:
    """Probability of every class for every text, [n, C] float32: rows sum to 1, or are independent
    where classes do not exclude each other (as in the pipelines of transformers: sigmoids where
    problem_type is multi_label_classification, and where there is one output).

    batch is in padded tokens; None chooses for the device. No texts: [0, C]. A row depends on its
    own text alone.
    """
    from jaxloop.lm.encoder import encoder as encoders
    from jaxloop.lm.target import target_of

    texts, encoder = check_texts(texts), classifier.encoder
    if not texts:
        return np.zeros((0, len(classifier.labels)), np.float32)
    if classifier.head is not None:
        logits = _features(encoder, texts, batch) @ classifier.head["w"] + classifier.head["bias"]
        share = np.exp(logits - logits.max(1, keepdims=True))
        return share / share.sum(1, keepdims=True)
    target = target_of(encoder.spec.core, encoder.params)
    run = functools.partial(
        encoders.class_probabilities, encoder.spec, encoder.params, target=target
    )
    return encoders.over_batches(
        run,
        encoders.token_ids(encoder, texts),
        limit=encoder.limit,
        batch=batch or encoders.default_batch(encoder.params),
    )


def predict(classifier: Classifier, texts: Sequence[str], *, batch: int | None = None) -> list[str]:
    """The likeliest class of every text. ValueError where there is only one."""
    if len(classifier.labels) == 1:
        raise ValueError(
            f"the classifier has one output, {classifier.labels[0]!r}, so it chooses between no "
            "classes; take its probabilities."
        )
    return [classifier.labels[i] for i in probabilities(classifier, texts, batch=batch).argmax(1)]


def _features(encoder, texts, batch=None) -> np.ndarray:
    """Embeddings [n, E] with a root mean square of 1."""
    from jaxloop.lm.encoder import encoder as encoders
    from jaxloop.lm.target import target_of

    target = target_of(encoder.spec.core, encoder.params)
    run = functools.partial(
        encoders.sentence_embedding,
        encoder.spec,
        encoder.readout._replace(normalize=True),
        encoder.params,
        target=target,
    )
    values = encoders.over_batches(
        run,
        encoders.token_ids(encoder, texts),
        limit=encoder.limit,
        batch=batch or encoders.default_batch(encoder.params),
    )
    return values * np.float32(values.shape[1] ** 0.5)


# ---- training
# ---------------------------------------------------------------------------------------------------------


def fit_classifier(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    encoder: str | None = None,
    train: str | int = "head",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    max_length: int | None = None,
    balanced: bool = True,
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> Fitted:
    """Train a classifier on labelled texts, and report what it reaches on texts that it never saw.

    texts, labels  n texts and the class of each
    encoder        directory or hub id of the encoder; None is MiniLM
    train          "head": a linear head on frozen sentence embeddings; "all": fine-tune all of the encoder with its architecture's head;
                   a number k: only the last k blocks and the head
    epochs, batch_size, learning_rate   None: 30, 64, 3e-3 for a head; 5, 16, 2e-5 for fine-tuning (arXiv 2410.15234, 4.3)
    balanced       every batch draws the classes equally often (a weighted sampler, with replacement)
    shares         of training, validation and test, stratified by class
    AdamW with a linear decay; after every epoch the macro-F1 on the validation texts decides which
    weights are kept. The report has the
    counts, the loss and validation macro-F1 of every epoch and, on the test texts, accuracy,
    macro-F1, precision and recall by class, the
    confusion matrix (rows are true classes) and what always guessing the largest class would reach.
    ValueError for lists of unequal lengths, fewer than two classes, or a class too small to be in
    all three parts.
    """
    texts, labels = check_texts(texts), [str(label) for label in labels]
    names = _check_labels(texts, labels, shares)
    if train not in ("head", "all") and (
        isinstance(train, bool) or not isinstance(train, int) or train < 1
    ):
        raise ValueError(
            f"train is {train!r}; allowed are 'head', 'all' and a number of blocks, at least 1."
        )
    target = np.array([names.index(label) for label in labels], np.int32)
    parts = _split(target, shares, seed)
    head = train == "head"
    model = _encoder(encoder, max_length)
    settings = dict(
        epochs=epochs or (30 if head else 5), batch_size=batch_size or (64 if head else 16), rate=learning_rate or (3e-3 if head else 2e-5),
        decay=weight_decay, balanced=balanced, seed=seed,
    )  # fmt: skip
    from jaxloop.metrics import classifier_fit

    if head:
        classifier, epochs_log = classifier_fit.fit_head(
            model, _features(model, texts), target, names, parts, **settings
        )
    else:
        classifier, epochs_log = classifier_fit.fit_encoder(
            model, texts, target, names, parts, blocks=train, **settings
        )
    test = parts[2]
    found = probabilities(classifier, [texts[i] for i in test]).argmax(1)
    best = max(range(len(epochs_log)), key=lambda i: epochs_log[i]["macro_f1"])
    report = dict(
        encoder=model.name, train=train, labels=list(names), **settings, counts=dict(Counter(labels)), split=[len(p) for p in parts],
        log=epochs_log, best_epoch=best + 1, test=evaluation(target[test], found, names), majority=_majority(target, parts, names),
    )  # fmt: skip
    return Fitted(classifier, report)


def _check_labels(texts, labels, shares) -> tuple[str, ...]:
    if len(labels) != len(texts):
        raise ValueError(
            f"labels: {len(labels)} labels for {len(texts)} texts; one each is needed."
        )
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ValueError(
            f"shares is {tuple(shares)}; three positive shares that sum to 1 are needed."
        )
    counts = Counter(labels)
    if len(counts) < 2:
        raise ValueError(
            f"labels: {len(counts)} different class{'' if len(counts) == 1 else 'es'}; at least "
            "2 are needed."
        )
    rarest, least = min(counts, key=counts.get), int(np.ceil(1 / min(shares)))
    if counts[rarest] < least:
        raise ValueError(
            f"labels: the class {rarest!r} has {counts[rarest]} texts; at least {least} are "
            "needed, so that every part has one."
        )
    return tuple(sorted(counts))


def _split(target: np.ndarray, shares, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of training, validation and test, each with the classes in the same proportions."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(
        np.arange(len(target)), test_size=shares[2], stratify=target, random_state=seed
    )
    training, validation = train_test_split(
        rest,
        test_size=shares[1] / (shares[0] + shares[1]),
        stratify=target[rest],
        random_state=seed,
    )
    return training, validation, test


def evaluation(target: np.ndarray, found: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, scores by class and confusion matrix (rows: true classes) of class
    indices [n], by scikit-learn.
    """
    from sklearn.metrics import (
        accuracy_score,
        confusion_matrix,
        f1_score,
        precision_recall_fscore_support,
    )

    classes = np.arange(len(names))
    columns = precision_recall_fscore_support(target, found, labels=classes, zero_division=0)
    by_class = {
        name: dict(precision=float(p), recall=float(r), f1=float(f), texts=int(n))
        for name, p, r, f, n in zip(names, *columns, strict=True)
    }
    return dict(
        accuracy=float(accuracy_score(target, found)), macro_f1=float(f1_score(target, found, labels=classes, average="macro", zero_division=0)),
        by_class=by_class, confusion=confusion_matrix(target, found, labels=classes).tolist(),
    )  # fmt: skip


def _majority(target, parts, names) -> dict[str, Any]:
    common = int(np.bincount(target[parts[0]]).argmax())
    found = evaluation(target[parts[2]], np.full(len(parts[2]), common), names)
    return dict(label=names[common], accuracy=found["accuracy"], macro_f1=found["macro_f1"])


# ---- metrics
# ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _kept(model: str, labels: tuple[str, ...] | None, max_length: int | None) -> Classifier:
    return load_classifier(model, labels=labels, max_length=max_length)


@functools.lru_cache(maxsize=2)
def _shares(
    texts: tuple[str, ...], model: str, labels: tuple[str, ...] | None, max_length: int | None
) -> np.ndarray:
    """Kept, so that the metrics of one classifier run it once."""
    return probabilities(_kept(model, labels, max_length), texts)


def _of_label(texts, model, label, labels, max_length) -> tuple[Corpus, np.ndarray, int]:
    if model is None:
        raise ValueError(
            "the classifier has no model; name one, as in class_share(model='…', label='…')."
        )
    labels = None if labels is None else tuple(map(str, labels))
    names = _kept(model, labels, max_length).labels
    if label not in names:
        raise ValueError(
            f"label is {label!r}; the classes of {model} are {', '.join(map(repr, names))}."
        )
    corpus = Corpus.of(texts)
    return corpus, _shares(tuple(corpus.texts), model, labels, max_length), names.index(label)


def _chains(corpus: Corpus, values: np.ndarray) -> list[np.ndarray]:
    return [values] if corpus.single else corpus.by_text(values)


def _means(chains) -> np.ndarray:
    return np.array([v.mean() if len(v) else np.nan for v in chains], np.float64)


def class_memberships(texts, model=None, label=None, labels=None, max_length=None):
    """Whether a classifier gives each text the class `label`, 0 or 1: it is the likeliest, or, the
    only one, has half: [chains] arrays [n].
    """
    corpus, shares, index = _of_label(texts, model, label, labels, max_length)
    chosen = shares.argmax(1) == index if shares.shape[1] > 1 else shares[:, 0] >= 0.5
    return _chains(corpus, chosen.astype(np.float64))


def class_share(texts, model=None, label=None, labels=None, max_length=None):
    """Share of the texts that a classifier gives the class `label`, in [0, 1] (arXiv 2410.15234:
    articles labelled Right): [c] float64.

    model is the directory or hub id of a sequence classifier; labels names its classes in order
    where its config does not. No text: nan.
    """
    return _means(class_memberships(texts, model, label, labels, max_length))


def class_probabilities(texts, model=None, label=None, labels=None, max_length=None):
    """A classifier's probability of the class `label` for each text, in [0, 1]: [chains] arrays
    [n].
    """
    corpus, shares, index = _of_label(texts, model, label, labels, max_length)
    return _chains(corpus, shares[:, index].astype(np.float64))


def class_probability(texts, model=None, label=None, labels=None, max_length=None):
    """Mean probability that a classifier gives the class `label`, in [0, 1]: [c] float64. Options
    as in `class_share`. No text: nan.
    """
    return _means(class_probabilities(texts, model, label, labels, max_length))


def toxicities(texts, model=None, label="toxic", labels=None, max_length=None):
    """Toxicity of each text, in [0, 1]: [chains] arrays [n]; see `toxicity`."""
    return class_probabilities(texts, model, label, labels, max_length)


def toxicity(texts, model=None, label="toxic", labels=None, max_length=None):
    """Mean toxicity, a classifier's probability of the class "toxic", in [0, 1] (arXiv 2504.03814:
    detoxify's "original" model): [c] float64.

    model is a directory or hub id, such as unitary/toxic-bert, whose classes do not exclude each
    other. No text: nan.
    """
    return class_probability(texts, model, label, labels, max_length)
