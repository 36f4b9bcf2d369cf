"""Political lean of texts from 0 (left) to 100 (right): by a classifier fitted on the labels of
some human texts, or by a judge.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

from jaxloop.studies.recursive_loops import sources
from jaxloop.studies.recursive_loops.config import Settings
from jaxloop.studies.recursive_loops.sources import Source


def human(settings: Settings, source: Source, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(rows that chains may use, lean of each): the texts that the classifier was fitted on are
    left out.

    Raises ValueError where the labels are missing or too few.
    """
    if settings.lean.judge is not None:
        rows = np.arange(len(source.texts))
    else:
        used, _ = _labelled(settings, source)
        rows = np.setdiff1d(np.arange(len(source.texts)), used)
        _classifier(settings, source, folder)
    lean = scorer(settings, source, folder)
    return rows, lean(source.texts.take(rows))


def scorer(settings: Settings, source: Source, folder: Path):
    """texts -> lean [n], nan where a judge finds a text not political; what human texts were found
    is kept with the dataset.
    """
    from jaxloop.studies.recursive_loops.data.answer_cache import remembered

    if settings.lean.judge is not None:
        return sources.score(settings, settings.lean.judge, source.folder)
    from jaxloop.metrics import classifiers

    place = _classifier(settings, source, folder)
    found = classifiers.load_classifier(str(place))
    right = found.labels.index("right")
    name = f"lean {hashlib.sha256((place / 'report.json').read_bytes()).hexdigest()[:16]}"
    return remembered(
        lambda texts: 100.0 * classifiers.probabilities(found, texts)[:, right].astype(np.float64),
        source.folder / "answers.sqlite",
        name=name,
    )


def _labelled(settings: Settings, source: Source) -> tuple[np.ndarray, list[str]]:
    """Rows that the classifier is fitted on, as many of each side, and their classes."""
    lean = settings.lean
    labels = np.array([str(value) for value in source.column(lean.label_column)], object)
    sides = {
        "left": np.flatnonzero(labels == lean.left),
        "right": np.flatnonzero(labels == lean.right),
    }
    each = min(lean.fit_texts // 2, *(len(rows) // 2 for rows in sides.values()))
    if each < 10:
        raise ValueError(
            f"config.lean: column '{lean.label_column}' of {source.name} has "
            f"{len(sides['left'])} texts labelled '{lean.left}' and "
            f"{len(sides['right'])} labelled '{lean.right}'; at least 20 of each are needed"
        )
    rng = np.random.default_rng(0)
    chosen = {side: np.sort(rng.permutation(rows)[:each]) for side, rows in sides.items()}
    return np.concatenate(list(chosen.values())), [
        side for side, rows in chosen.items() for _ in rows
    ]


def _classifier(settings: Settings, source: Source, folder: Path) -> Path:
    """The directory of the classifier, fitted where it is not there yet; a copy of its report lies
    in the run's folder.
    """
    from jaxloop.metrics import classifiers
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.runtime.log import LOGGER

    key = hashlib.sha256(
        json.dumps(
            [
                settings.lean.model_dump(
                    include={"label_column", "left", "right", "fit_texts", "train"}
                ),
                settings.embedder,
            ]
        ).encode()
    )
    place = source.folder / f"lean-{key.hexdigest()[:12]}"
    if not (place / "report.json").exists():
        rows, labels = _labelled(settings, source)
        LOGGER.info(
            "fitting a classifier of political lean on %s texts of %s",
            f"{len(rows):,}",
            source.name,
        )
        fitted = classifiers.fit_classifier(
            list(source.texts.take(rows)),
            labels,
            encoder=settings.embedder,
            train=settings.lean.train,
        )
        classifiers.save_classifier(fitted.classifier, place)
        write_atomic(place / "report.json", json.dumps(fitted.report, indent=1).encode())
    write_atomic(
        folder / "lean_classifier.json", (place / "report.json").read_bytes(), durable=False
    )
    return place
