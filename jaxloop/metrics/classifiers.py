"""Text classifiers (toxicity, political bias, gibberish) and the metrics that ask them.

They are loaded from directories; `classifier_training` trains them.

Dimensions: n texts, C classes, E size of an embedding.
"""

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder import files as encoder_files
from jaxloop.lm.encoder.encoder import Encoder
from jaxloop.lm.target import target_of
from jaxloop.metrics.base import TEXTS, UNIT_INTERVAL, Metric
from jaxloop.metrics.corpus import Corpus, Texts, chain_means
from jaxloop.metrics.embed import default_model
from jaxloop.metrics.tokens import check_texts
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.user_path import user_path

# What a classifier found for texts: {digest: probabilities [C]}.
Known = dict[bytes, np.ndarray]
KNOWN_TEXTS = 1 << 17


class Classifier(NamedTuple):
    """A fine-tuned encoder with its own head, or a linear head on frozen sentence embeddings.

    Attributes:
        labels: names of the classes, in the order of the outputs.
        head: {"w" [E, C], "bias" [C]} on embeddings of length sqrt(E); None where the encoder has
            the head of its architecture.
    """

    encoder: Encoder
    labels: tuple[str, ...]
    head: dict[str, np.ndarray] | None = None


# ---- loading, saving, predicting


def load_classifier(
    path: str, *, labels: Sequence[str] | None = None, max_length: int | None = None
) -> Classifier:
    """Load a classifier from a directory or hub id.

    It is one that `save_classifier` wrote, or a sequence-classification model of Hugging Face:
    BERT, ALBERT, RoBERTa, MPNet, DistilBERT or a decoder of `jaxloop.lm`.

    Args:
        labels: names of the classes in the order of the outputs, where the config's own (LABEL_0,
            …) say nothing.
        max_length: tokens of a text that are read.

    Raises:
        ValueError: the path does not exist, or holds no such model.
    """
    folder = user_path(path)
    if not (folder / "classifier.json").exists():
        encoder = encoder_files.load_classifier(path, labels=labels, max_length=max_length)
        return Classifier(encoder, encoder.config.labels)
    settings = json.loads((folder / "classifier.json").read_text(encoding="utf8"))
    names = tuple(settings["labels"] if labels is None else map(str, labels))
    if len(names) != len(settings["labels"]):
        raise ValueError(
            f"labels: {len(names)} names for the {len(settings['labels'])} classes of {path}; "
            "one each is needed"
        )
    encoder = load_encoder(settings["encoder"], max_length or settings["max_length"])
    return Classifier(encoder, names, load_file(folder / "head.safetensors"))


def save_classifier(classifier: Classifier, path: str | Path) -> None:
    """Write a classifier as a directory.

    A fine-tuned one is written in Hugging Face's form, a head with the name of the encoder that it
    stands on.
    """
    encoder = classifier.encoder
    if classifier.head is None:
        encoder_files.save_classifier(encoder, path)
        return
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "encoder": None if encoder.name == str(default_model()) else encoder.name,
        "max_length": encoder.limit,
        "labels": classifier.labels,
    }
    write_atomic(folder / "head.safetensors", save(classifier.head))
    write_atomic(folder / "classifier.json", json.dumps(settings, indent=2).encode())


def load_encoder(name: str | None, max_length: int | None) -> Encoder:
    """Load the encoder of a directory or hub id; None is MiniLM."""
    path = str(default_model()) if name is None else name
    return encoder_files.load_encoder(path, max_length=max_length)


def probabilities(
    classifier: Classifier,
    texts: Sequence[str],
    *,
    batch: int | None = None,
    known: Known | None = None,
) -> np.ndarray:
    """Return the probability of every class for every text, [n, C] float32.

    Rows sum to 1, or are independent where classes do not exclude each other (as in the pipelines
    of transformers: sigmoids where problem_type is multi_label_classification, and where there is
    one output). A row depends on its own text alone,
    and a text that comes again is read once.

    Args:
        batch: in padded tokens; None chooses for the device.
        known: rows of texts that the same classifier read before, to which those read now are
            added, with the oldest of more than `KNOWN_TEXTS` left out.
    """
    texts = check_texts(texts)
    if not texts:
        return np.zeros((0, len(classifier.labels)), np.float32)
    # Models that collapse repeat themselves, and from one generation to the next.
    digests = [_digest(text) for text in texts]
    kept = {} if known is None else known
    # Several threads may share what is kept.
    found = {digest: row for digest in digests if (row := kept.get(digest)) is not None}
    unread = {d: text for d, text in zip(digests, texts, strict=True) if d not in found}
    if unread:
        rows = _probabilities(classifier, list(unread.values()), batch)
        read = dict(zip(unread, rows, strict=True))
        found |= read
        kept |= read
        for digest in list(kept)[: max(0, len(kept) - KNOWN_TEXTS)]:
            kept.pop(digest, None)
    return np.stack([found[digest] for digest in digests])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _probabilities(classifier: Classifier, texts: list[str], batch: int | None) -> np.ndarray:
    encoder = classifier.encoder
    if classifier.head is not None:
        features_nE = embedding_features(encoder, texts, batch)
        logits_nC = features_nE @ classifier.head["w"] + classifier.head["bias"]
        share_nC = np.exp(logits_nC - logits_nC.max(1, keepdims=True))
        return share_nC / share_nC.sum(1, keepdims=True)
    run = functools.partial(
        encoders.class_probabilities,
        encoder.config,
        encoder.params,
        target=target_of(encoder.config.core, encoder.params),
    )
    return encoders.over_batches(
        run,
        encoders.token_ids(encoder, texts),
        limit=encoder.limit,
        batch=batch or encoders.default_batch(encoder.params),
    )


def predict(classifier: Classifier, texts: Sequence[str], *, batch: int | None = None) -> list[str]:
    """Return the likeliest class of every text.

    Raises:
        ValueError: there is only one class.
    """
    if len(classifier.labels) == 1:
        raise ValueError(
            f"the classifier has one output, {classifier.labels[0]!r}, so it chooses between no "
            "classes; take its probabilities."
        )
    return [classifier.labels[i] for i in probabilities(classifier, texts, batch=batch).argmax(1)]


def embedding_features(
    encoder: Encoder, texts: Sequence[str], batch: int | None = None
) -> np.ndarray:
    """Return what a linear head reads: embeddings [n, E] with a root mean square of 1."""
    run = functools.partial(
        encoders.sentence_embedding,
        encoder.config,
        encoder.readout._replace(normalize=True),
        encoder.params,
        target=target_of(encoder.config.core, encoder.params),
    )
    embeddings_nE = encoders.over_batches(
        run,
        encoders.token_ids(encoder, texts),
        limit=encoder.limit,
        batch=batch or encoders.default_batch(encoder.params),
    )
    return embeddings_nE * np.float32(embeddings_nE.shape[1] ** 0.5)


# ---- metrics


@functools.lru_cache(maxsize=4)
def _loaded(model: str, labels: tuple[str, ...] | None, max_length: int | None) -> Classifier:
    return load_classifier(model, labels=labels, max_length=max_length)


@functools.lru_cache(maxsize=4)
def _known(model: str, labels: tuple[str, ...] | None, max_length: int | None) -> Known:
    return {}


class _Scores(NamedTuple):
    """Probabilities [n, C] of the texts of a corpus, and the index of the class asked for.

    independent: whether a text may have several of the classes, or none.
    """

    corpus: Corpus
    probabilities: np.ndarray
    label: int
    independent: bool


def _scores(
    texts: Texts,
    model: str | None,
    label: str | None,
    labels: Sequence[str] | None,
    max_length: int | None,
) -> _Scores:
    if model is None:
        raise ValueError(
            "the classifier has no model; name one, as in class_share(model='…', label='…')."
        )
    named = None if labels is None else tuple(map(str, labels))
    classifier = _loaded(model, named, max_length)
    classes = classifier.labels
    if label not in classes:
        raise ValueError(
            f"label is {label!r}; the classes of {model} are {', '.join(map(repr, classes))}."
        )
    corpus = Corpus.of(texts)
    # So that the metrics of one classifier run it once.
    known = _known(model, named, max_length)
    values = probabilities(classifier, corpus.texts, known=known)
    independent = classifier.head is None and classifier.encoder.config.multi_label
    return _Scores(corpus, values, classes.index(label), independent)


def class_memberships(
    texts: Texts,
    model: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """Whether a classifier gives each text the class `label`, 0 or 1: [chains] arrays [n].

    It does where the class is the likeliest; of classes that do not exclude each other, and of a
    single one, where its probability is at least 1/2.
    """
    corpus, shares, index, independent = _scores(texts, model, label, labels, max_length)
    chosen = shares[:, index] >= 0.5 if independent else shares.argmax(1) == index
    return corpus.split(chosen.astype(np.float64))


def class_share(
    texts: Texts,
    model: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> np.ndarray:
    """Share of the texts that a classifier gives the class `label`, in [0, 1]: [c] float64.

    In arXiv 2410.15234: articles labelled Right. Where classes do not exclude each other, as those
    of unitary/toxic-bert, a text has each that is at least as likely as not. No text: nan.

    Args:
        model: the directory or hub id of a sequence classifier.
        labels: its classes in order, where its config does not name them.
    """
    return chain_means(class_memberships(texts, model, label, labels, max_length))


def class_probabilities(
    texts: Texts,
    model: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """Probability of the class `label` for each text, in [0, 1]: [chains] arrays [n]."""
    corpus, shares, index, _ = _scores(texts, model, label, labels, max_length)
    return corpus.split(shares[:, index].astype(np.float64))


def class_probability(
    texts: Texts,
    model: str | None = None,
    label: str | None = None,
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> np.ndarray:
    """Mean probability that a classifier gives the class `label`, in [0, 1]: [c] float64.

    Options as in `class_share`. No text: nan.
    """
    return chain_means(class_probabilities(texts, model, label, labels, max_length))


def toxicities(
    texts: Texts,
    model: str | None = None,
    label: str = "toxic",
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[np.ndarray]:
    """Toxicity of each text, in [0, 1]: [chains] arrays [n]; see `toxicity`."""
    return class_probabilities(texts, model, label, labels, max_length)


def toxicity(
    texts: Texts,
    model: str | None = None,
    label: str = "toxic",
    labels: Sequence[str] | None = None,
    max_length: int | None = None,
) -> np.ndarray:
    """Mean toxicity, a classifier's probability of the class "toxic", in [0, 1]: [c] float64.

    In arXiv 2504.03814: detoxify's "original" model. No text: nan.

    Args:
        model: a directory or hub id, such as unitary/toxic-bert, whose classes do not exclude each
            other.
    """
    return class_probability(texts, model, label, labels, max_length)


METRICS = (
    Metric("class_share", class_share, TEXTS, UNIT_INTERVAL, per_text=class_memberships),
    Metric(
        "class_probability", class_probability, TEXTS, UNIT_INTERVAL, per_text=class_probabilities
    ),
    Metric("toxicity", toxicity, TEXTS, UNIT_INTERVAL, per_text=toxicities),
)
