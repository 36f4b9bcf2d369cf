"""Training of text classifiers on labelled texts, with a report of what they reach."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)
from sklearn.model_selection import train_test_split

from jaxloop.data import duplicates
from jaxloop.metrics.classifier_fit import LabelledRows, OptimiserSettings, fit_encoder, fit_head
from jaxloop.metrics.classifiers import Classifier, embedding_features, load_encoder, probabilities
from jaxloop.metrics.tokens import check_texts


class FittedClassifier(NamedTuple):
    """A trained classifier, and a report (plain values, ready for JSON) of its training."""

    classifier: Classifier
    report: dict[str, Any]


def fit_classifier(
    texts: Sequence[str],
    labels: Sequence[str],
    *,
    encoder: str | None = None,
    train: Literal["head", "all"] | int = "head",
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 0.01,
    max_length: int | None = None,
    balanced: bool = True,
    shares: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> FittedClassifier:
    """Train a classifier on labelled texts, and report what it reaches on texts it never saw.

    AdamW with a linear decay; after every epoch the macro-F1 on the validation texts decides which
    weights are kept.

    Args:
        texts: n texts.
        labels: the class of each.
        encoder: directory or hub id of the encoder; None is MiniLM.
        train: "head": a linear head on frozen sentence embeddings; "all": fine-tune all of the
            encoder with its architecture's head; a number k: only the last k blocks and the head.
        epochs: None: 30 for a head, 5 for fine-tuning (arXiv 2410.15234, 4.3).
        batch_size: in texts; None: 64 for a head, 16 for fine-tuning.
        learning_rate: None: 3e-3 for a head, 2e-5 for fine-tuning.
        balanced: every batch draws the classes equally often (a weighted sampler, with
            replacement).
        shares: of training, validation and test, stratified by class. Texts of the same content
            (see `data.duplicates`) are in the same part.

    Returns:
        The classifier and a report: the counts; the loss and validation macro-F1 of every epoch;
        and, on the test texts, accuracy, macro-F1, precision and recall by class, the confusion
        matrix (rows are true classes) and what always guessing the largest class would reach.

    Raises:
        ValueError: lists of unequal lengths, fewer than two classes, a class too small to be in all
            three parts, or a `train` or `shares` that is not allowed.
    """
    texts, labels = check_texts(texts), [str(label) for label in labels]
    blocks = _trained_blocks(train)
    groups = np.array(duplicates.groups(duplicates.keys(texts)), np.int64)
    names = _check_labels(groups, labels, shares)
    target = np.array([names.index(label) for label in labels], np.int32)
    rows = split_rows(target, names, shares, seed, groups)
    model = load_encoder(encoder, max_length)
    head = train == "head"
    settings = OptimiserSettings(
        epochs=epochs or (30 if head else 5),
        batch_size=batch_size or (64 if head else 16),
        rate=learning_rate or (3e-3 if head else 2e-5),
        decay=weight_decay,
        balanced=balanced,
        seed=seed,
    )
    if head:
        classifier, log = fit_head(model, embedding_features(model, texts), rows, settings)
    else:
        classifier, log = fit_encoder(model, texts, rows, settings, blocks=blocks)
    predicted = probabilities(classifier, [texts[i] for i in rows.test]).argmax(1)
    report = {
        "encoder": model.name,
        "train": train,
        "labels": list(names),
        **settings._asdict(),
        "counts": dict(Counter(labels)),
        "split": [len(rows.training), len(rows.validation), len(rows.test)],
        "log": log,
        "best_epoch": 1 + max(range(len(log)), key=lambda epoch: log[epoch]["macro_f1"]),
        "test": evaluation(target[rows.test], predicted, names),
        "majority": _majority(rows),
    }
    return FittedClassifier(classifier, report)


def _trained_blocks(train: str | int) -> int | None:
    """How many of the last blocks are trained; None where that is not a number of blocks."""
    if train in ("head", "all"):
        return None
    if isinstance(train, bool) or not isinstance(train, int) or train < 1:
        raise ValueError(
            f"train is {train!r}; allowed are 'head', 'all' and a number of blocks, at least 1."
        )
    return train


def _check_labels(
    groups: np.ndarray, labels: Sequence[str], shares: Sequence[float]
) -> tuple[str, ...]:
    """The sorted classes of texts with these numbers of their contents."""
    if len(labels) != len(groups):
        raise ValueError(
            f"labels: {len(labels)} labels for {len(groups)} texts; one each is needed."
        )
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6 or min(shares) <= 0:
        raise ValueError(
            f"shares is {tuple(shares)}; three positive shares that sum to 1 are needed."
        )
    counts = dict.fromkeys(labels, 0)
    for row in np.unique(groups, return_index=True)[1].tolist():
        counts[labels[row]] += 1
    if len(counts) < 2:
        raise ValueError(
            f"labels: {len(counts)} different class{'' if len(counts) == 1 else 'es'}; at least "
            "2 are needed."
        )
    rarest, least = min(counts, key=lambda name: counts[name]), int(np.ceil(1 / min(shares)))
    if counts[rarest] < least:
        raise ValueError(
            f"labels: the class {rarest!r} has {counts[rarest]} different texts; at least {least} "
            "are needed, so that every part has one."
        )
    return tuple(sorted(counts))


def split_rows(
    target: np.ndarray,
    names: tuple[str, ...],
    shares: Sequence[float],
    seed: int,
    groups: np.ndarray,
) -> LabelledRows:
    """Split the rows into training, validation and test, the classes in the same proportions.

    Args:
        target: class indices [n].
        shares: of the three parts.
        groups: number of the content of each row [n], in order of first appearance. Rows of one
            content go where the first of them goes, by its class.
    """
    firsts = np.unique(groups, return_index=True)[1]
    others, test = train_test_split(
        firsts, test_size=shares[2], stratify=target[firsts], random_state=seed
    )
    training, validation = train_test_split(
        others,
        test_size=shares[1] / (shares[0] + shares[1]),
        stratify=target[others],
        random_state=seed,
    )
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(groups))[:-1])
    training, validation, test = (
        np.concatenate([members[groups[row]] for row in part])
        for part in (training, validation, test)
    )
    return LabelledRows(target, names, training, validation, test)


def evaluation(target: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Return accuracy, macro-F1, scores by class and confusion matrix, by scikit-learn.

    Args:
        target: true class indices [n], the rows of the confusion matrix.
        predicted: predicted class indices [n].
    """
    classes = np.arange(len(names))
    columns = precision_recall_fscore_support(target, predicted, labels=classes, zero_division=0)
    by_class = {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "texts": int(n)}
        for name, p, r, f, n in zip(names, *columns, strict=True)
    }
    macro_f1 = f1_score(target, predicted, labels=classes, average="macro", zero_division=0)
    return {
        "accuracy": float(accuracy_score(target, predicted)),
        "macro_f1": float(macro_f1),
        "by_class": by_class,
        "confusion": confusion_matrix(target, predicted, labels=classes).tolist(),
    }


def _majority(rows: LabelledRows) -> dict[str, Any]:
    """What always guessing the most frequent class of the training texts reaches."""
    largest = int(np.bincount(rows.target[rows.training]).argmax())
    guesses = np.full(len(rows.test), largest)
    scores = evaluation(rows.target[rows.test], guesses, rows.names)
    return {
        "label": rows.names[largest],
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
    }
