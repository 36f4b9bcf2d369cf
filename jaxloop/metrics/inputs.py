"""Checks the inputs of metrics and brings them into the form that metric functions take."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxloop.metrics.base import INPUTS, SHARED_INPUTS, Metric
from jaxloop.metrics.corpus import Corpus

Embed = Callable[[Sequence[str]], np.ndarray]


def prepare_inputs(metrics: Mapping[str, Metric], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return {input: value} for the inputs that the metrics need; texts become a `Corpus`.

    Each is computed once, and only if a metric needs it.

    Args:
        metrics: {name with options: metric}.
        inputs: {name out of `INPUTS`: value}; None for an input that is absent.

    Raises:
        ValueError: an input is missing or malformed, or the inputs have different numbers of
            chains.
    """
    present = {name: value for name, value in inputs.items() if value is not None}
    needed = {need for metric in metrics.values() for need in metric.needs}
    if "reference_embeddings" in needed - present.keys() and "reference_texts" in present:
        if callable(embed := present.get("embeddings")):
            present["reference_embeddings"] = _embed_references(embed, present["reference_texts"])
    for name, metric in metrics.items():
        _check_present(name, metric, present)

    prepared = {name: value for name, value in present.items() if name in needed}
    if "texts" in needed:
        prepared["texts"] = _corpus(present["texts"])
    if needed & {"embeddings", "projection"}:
        corpus = prepared.get("texts")
        prepared["embeddings"] = _chain_embeddings(present["embeddings"], present, corpus)
    if "projection" in needed:
        prepared["projection"] = _project(present["projection"], prepared["embeddings"])
    references = prepared.get("reference_embeddings")
    if isinstance(references, list | tuple):
        prepared["reference_embeddings"] = [np.asarray(chain) for chain in references]
    _check_chain_counts(chain_counts(prepared))
    return prepared


def chain_counts(prepared: Mapping[str, Any]) -> dict[str, int]:
    """Return {input: number of chains} for every prepared input that has a chain axis."""
    counts = {}
    for name, value in prepared.items():
        one_each = name == "reference_embeddings" and isinstance(value, list)
        if one_each or (name in INPUTS and name not in SHARED_INPUTS):
            counts[name] = len(value.chains if isinstance(value, Corpus) else value)
    return counts


def _check_chain_counts(counts: Mapping[str, int]) -> None:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ValueError(f"the inputs have different numbers of chains: {listed}.")


def _check_present(name: str, metric: Metric, present: Mapping[str, Any]) -> None:
    needed = [need for need in metric.needs if need != "projection"]
    if "projection" in metric.needs:
        needed += ["projection", "embeddings"]
    for need in needed:
        if need not in present:
            meaning = INPUTS.get(need, "an input of its own")
            raise ValueError(f"metric {name!r} needs {need} ({meaning}), which was not given.")


def _corpus(texts: Sequence[Sequence[str]]) -> Corpus:
    chains = list(texts)
    if any(isinstance(chain, str) for chain in chains):
        raise ValueError("texts holds strings, one list of strings for each chain is needed.")
    return Corpus.of(chains) if chains else Corpus(())


def _chain_embeddings(
    embeddings: Embed | Sequence[np.ndarray], present: Mapping[str, Any], corpus: Corpus | None
) -> list[np.ndarray]:
    """The embeddings [n_c, d] of each chain."""
    if not callable(embeddings):
        return [np.asarray(chain) for chain in embeddings]
    if "texts" not in present:
        raise ValueError("embeddings is a function, so texts are needed to embed.")
    if corpus is None:
        corpus = _corpus(present["texts"])
    rows = np.zeros((0, 1), np.float32)
    if corpus.texts:
        rows = np.asarray(embeddings(corpus.texts))
    if len(rows) != len(corpus.texts):
        raise ValueError(
            f"embeddings returned {len(rows)} rows for {len(corpus.texts)} texts, one row each is "
            "needed."
        )
    return corpus.split(rows)


def _project(projection: Any, embeddings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The positions [n_c, 2] of each chain's embeddings on its map.

    One chain at a time: where a point lands depends on the set that it is projected with.
    """
    shared = not isinstance(projection, list | tuple)
    maps = [projection] * len(embeddings) if shared else list(projection)
    _check_chain_counts({"projection": len(maps), "embeddings": len(embeddings)})
    positions = []
    for to_map, points in zip(maps, embeddings, strict=True):
        positions.append(np.asarray(to_map(points)) if len(points) else np.zeros((0, 2)))
    return positions


def _embed_references(
    embed: Embed, references: Sequence[str] | Sequence[Sequence[str]]
) -> np.ndarray | list[np.ndarray]:
    """Embeddings of one list of texts, or of one list for each chain.

    Lists that several chains share are embedded once.
    """
    corpus = Corpus.of(references)
    if corpus.single:
        return np.asarray(embed(corpus.texts))
    distinct = {id(chain): list(chain) for chain in references}
    embedded = {key: np.asarray(embed(texts)) for key, texts in distinct.items()}
    return [embedded[id(chain)] for chain in references]
