"""Political leaning of texts, from 0 (left) to 100 (right).

It is given by a classifier that is fitted on labelled human texts, or by a judge.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxloop.metrics import classifier_training, classifiers
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.common import identity
from jaxloop.studies.recursive_loops import sources
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer, remembered
from jaxloop.studies.recursive_loops.sources import Source


def human(config: LoopsConfig, source: Source, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the row numbers [n] of the texts that chains may use, and the leaning of each [n].

    The leaning is -1 for a text that a judge finds not political, nan where its reply is no score.
    The texts that the classifier was fitted on are left out. folder: the run directory, which gets
    the classifier's report. Raises ValueError where the labels are missing or too few.
    """
    if config.political_leaning.judge is not None:
        rows = np.arange(len(source.texts))
    else:
        fitted_on, _ = _labelled(config, source)
        rows = np.setdiff1d(np.arange(len(source.texts)), fitted_on)
        _classifier(config, source, folder)
    texts, judge = source.texts.take(rows), config.political_leaning.judge
    if judge is not None:
        return rows, sources.scored(judge, source, texts, "political leaning")
    return rows, scorer(config, source, folder)(texts)


def scorer(config: LoopsConfig, source: Source, folder: Path) -> TextScorer:
    """Return the function that gives the leaning [n] of n texts.

    It is -1 for a text that a judge finds not political, nan where its reply is no score. The
    leanings are cached in the dataset's folder. folder: the run directory, which gets the
    classifier's report.
    """
    if config.political_leaning.judge is not None:
        return sources.score(config.political_leaning.judge, source.folder)
    place = _classifier(config, source, folder)
    classifier = classifiers.load_classifier(str(place))
    right = classifier.labels.index("right")

    def leaning(texts: list[str]) -> np.ndarray:
        return 100.0 * classifiers.probabilities(classifier, texts)[:, right].astype(np.float64)

    name = f"lean {hashlib.sha256((place / 'report.json').read_bytes()).hexdigest()[:16]}"
    return remembered(leaning, source.folder / "answers.sqlite", name=name)


def _labelled(config: LoopsConfig, source: Source) -> tuple[np.ndarray, list[str]]:
    """Row numbers of the texts that the classifier is fitted on, and their labels.

    There are as many of the left as of the right.
    """
    check_labels(config, source)
    sides = _sides(config, source)
    each = _each(config, sides)
    rng = np.random.default_rng(0)
    chosen = {side: np.sort(rng.permutation(rows)[:each]) for side, rows in sides.items()}
    return np.concatenate(list(chosen.values())), [
        side for side, rows in chosen.items() for _ in rows
    ]


def _sides(config: LoopsConfig, source: Source) -> dict[str, np.ndarray]:
    """Row numbers of the texts of each side."""
    options = config.political_leaning
    labels = np.array([str(value) for value in source.column(options.label_column)], object)
    return {
        "left": np.flatnonzero(labels == options.left),
        "right": np.flatnonzero(labels == options.right),
    }


def _each(config: LoopsConfig, sides: Mapping[str, np.ndarray]) -> int:
    """How many texts of a side the classifier is fitted on."""
    most = config.political_leaning.fit_texts // 2
    return min(most, *(len(rows) // 2 for rows in sides.values()))


def check_labels(config: LoopsConfig, source: Source) -> None:
    """Raise ValueError where too few texts have a label to fit the classifier on."""
    options, sides = config.political_leaning, _sides(config, source)
    if _each(config, sides) < 10:
        raise ValueError(
            f"config.political_leaning: column '{options.label_column}' of {source.name} has "
            f"{len(sides['left'])} texts labelled '{options.left}' and "
            f"{len(sides['right'])} labelled '{options.right}'; at least 20 of each are needed"
        )


def _classifier(config: LoopsConfig, source: Source, folder: Path) -> Path:
    """Fit the classifier if there is none yet, and return its directory.

    A copy of its report is written into the run directory `folder`.
    """
    fields = config.political_leaning.model_dump(
        include={"label_column", "left", "right", "fit_texts", "train"}
    )
    key = hashlib.sha256(
        json.dumps([fields, identity.cache_key_of_model(config.embedder)]).encode()
    )
    place = source.folder / f"lean-{key.hexdigest()[:12]}"
    if not (place / "report.json").exists():
        rows, labels = _labelled(config, source)
        LOGGER.info(
            "fitting a classifier of political lean on %s texts of %s",
            f"{len(rows):,}",
            source.name,
        )
        fitted = classifier_training.fit_classifier(
            list(source.texts.take(rows)),
            labels,
            encoder=config.embedder,
            train=config.political_leaning.train,
        )
        classifiers.save_classifier(fitted.classifier, place)
        write_atomic(place / "report.json", json.dumps(fitted.report, indent=1).encode())
    write_atomic(
        folder / "lean_classifier.json", (place / "report.json").read_bytes(), durable=False
    )
    return place
