"""What is measured of generated text, generation by generation."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry
from jaxloop.recursion import finalise
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.parts import tidy
from jaxloop.recursion.sources import Dataset, human_texts, texts_path
from jaxloop.runtime import checkpoint, tables
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer

# Last generations whose quality is measured if `config.quality_at` is "ends".
LAST = 5
# How many human texts of a chain's generation 0 give its initial leaning (arXiv 2504.03814, x axis
# of figure 5b).
HUMAN_SCORED = 250

Values = dict[str, float]


def names_at(config: LoopsConfig, generation: int) -> list[str]:
    """Return the names of the metrics of a generation.

    With `config.quality_at` = "ends" the generations in between lack the quality metric.
    """
    at_ends = generation == 0 or generation >= config.chain.generations - LAST
    names = list(config.metrics)
    if config.quality not in names and (config.quality_at == "all" or at_ends):
        names.append(config.quality)
    return names


def measure(config: LoopsConfig, leaning: TextScorer | None) -> Callable[..., dict]:
    """Return the driver's `measure`.

    It leaves out chains of several models, which share a pool and are measured together after the
    run (`measure_shared`). leaning: scores the political leaning of texts; None: not measured.
    """

    def run(model: Any, generation: int, outputs: Sequence[ModelOutput]) -> dict:
        alone = [output for output in outputs if output.chain.workflow.entities == 1]
        values = evaluate(config, generation, [output.texts for output in alone], leaning)
        return {
            (output.chain.id, output.entity): measured | {"finished": _mean(output.finished)}
            for output, measured in zip(alone, values, strict=True)
        }

    return run


def evaluate(
    config: LoopsConfig,
    generation: int,
    texts: Sequence[Sequence[str]],
    leaning: TextScorer | None,
) -> list[Values]:
    """Return {metric: value} for each chain's list of texts.

    With several domains every metric is computed for the texts of each domain, and is called
    `<metric>@<domain>`. Text i belongs to domain i modulo the number of domains.
    """
    if not texts:
        return []
    names = names_at(config, generation)
    samples = [list(chain_texts[: config.chain.eval_texts]) for chain_texts in texts]
    if config.subset_kind == "mixtures":
        values = _by_domain(config, names, samples)
    else:
        values = _metrics(config, names, samples)
    if leaning is not None:
        for measured, leanings in zip(values, _leanings(samples, leaning), strict=True):
            measured |= leaning_shares(config, leanings)
    return values


def _metrics(
    config: LoopsConfig, names: Sequence[str], samples: Sequence[Sequence[str]]
) -> list[Values]:
    """Metrics of each list of texts."""
    values = registry.evaluate(
        names,
        texts=samples,
        embeddings=functools.partial(embedding.embed, model=config.embedder),
    )
    return [{name: float(values[name][i]) for name in names} for i in range(len(samples))]


def _by_domain(
    config: LoopsConfig, names: Sequence[str], samples: Sequence[Sequence[str]]
) -> list[Values]:
    """Metrics of each list of texts, separately for the texts of each domain."""
    domains = list(config.domains)
    parts = [sample[i :: len(domains)] for sample in samples for i in range(len(domains))]
    values = iter(_metrics(config, names, parts))
    by_sample = []
    for _ in samples:
        of_domains = {domain: next(values) for domain in domains}
        by_sample.append(
            {f"{name}@{domain}": of_domains[domain][name] for name in names for domain in domains}
        )
    return by_sample


def _leanings(samples: Sequence[Sequence[str]], leaning: TextScorer) -> list[np.ndarray]:
    """The leaning of every text, by list.

    One call for all chains: full batches, and a text that several chains have is scored once.
    """
    scores = leaning([text for sample in samples for text in sample])
    return np.split(scores, np.cumsum([len(sample) for sample in samples])[:-1])


def leaning_shares(config: LoopsConfig, leanings: np.ndarray) -> Values:
    """Return the mean leaning of the political texts, and the shares of each side among all texts.

    The neutral share includes texts that are not political. leanings: [texts], from 0 (left) to 100
    (right); nan for a text that is not political.
    """
    political, neutral = leanings[~np.isnan(leanings)], config.political_leaning.neutral
    count = max(len(leanings), 1)
    left = (political < 50 - neutral).sum() / count
    right = (political > 50 + neutral).sum() / count
    return {
        "political_lean": _mean(political),
        "left_share": float(left),
        "right_share": float(right),
        "neutral_share": float(1 - left - right),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan


# ---- after the chains


class _SharedTexts(NamedTuple):
    """Texts of a chain's models, which share a pool, and whether each text ended by itself."""

    chain: ChainSpec
    texts: list[str]
    finished: np.ndarray


def measure_shared(
    config: LoopsConfig,
    chains: Sequence[ChainSpec],
    root: Path,
    generations: int,
    leaning: TextScorer | None,
) -> None:
    """Measure chains of several models that share a pool, after the run.

    The same number of texts of each model is taken and shuffled; the values are added to the
    finished generations in the run directory `root`. Generations that have them are not read again.
    """
    shared = [chain for chain in chains if chain.workflow.entities > 1]
    for generation in range(generations if shared else 0):
        metrics = finalise.read_metrics(root, generation)
        measured = set(zip(metrics["chain"], metrics["metric"], strict=True))
        first = names_at(config, generation)[0]
        samples = [
            _shared_texts(config, chain, generation, root)
            for chain in shared
            if (chain.id, first) not in measured
            and (root / texts_path(chain.id, generation)).exists()
        ]
        values = evaluate(config, generation, [sample.texts for sample in samples], leaning)
        rows = []
        for sample, of_sample in zip(samples, values, strict=True):
            of_sample["finished"] = _mean(sample.finished)
            rows += _metric_rows(sample.chain, generation, of_sample)
        if samples:
            _add_metrics(root, generation, rows, chains)


def _shared_texts(
    config: LoopsConfig, chain: ChainSpec, generation: int, root: Path
) -> _SharedTexts:
    columns = ["entity", "row", "text", "finished"]
    table = tables.read_parquet(root / texts_path(chain.id, generation), columns)
    each = -(-config.chain.eval_texts // chain.workflow.entities)
    rows = np.flatnonzero(np.asarray(table["row"]) < each)
    shuffled = np.random.default_rng([chain.seed, generation]).permutation(rows)
    chosen = shuffled[: config.chain.eval_texts]
    return _SharedTexts(
        chain=chain,
        texts=[table["text"][i] for i in chosen],
        finished=np.asarray(table["finished"])[chosen],
    )


def _metric_rows(chain: ChainSpec, generation: int, values: Values) -> list[dict[str, Any]]:
    common = {
        "study": "loops",
        "chain": chain.id,
        **dict(chain.factors),
        "entity": 0,
        "generation": generation,
    }
    return [common | {"metric": name, "value": value} for name, value in values.items()]


def _add_metrics(
    root: Path, generation: int, rows: list[dict[str, Any]], chains: Sequence[ChainSpec]
) -> None:
    """Add a file of metrics to a finished generation and its manifest."""
    folder = checkpoint.finished(generation)
    files = checkpoint.read_manifest(root, f"{folder}/{checkpoint.MANIFEST}")["files"]
    prefix = f"{folder}/{finalise.BACKFILLED}"
    number = 1 + sum(name.startswith(prefix) for name in files)
    path = f"{prefix}{number:04d}.parquet"
    tables.write_parquet(root / path, tidy(rows, chains), durable=True)
    checkpoint.add_files(root, generation, [path])


def write_text_scores(
    config: LoopsConfig,
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    root: Path,
    generations: int,
    leaning: TextScorer,
) -> None:
    """Write text_scores.parquet: the leaning of every measured text.

    Generation -1 holds the human texts that a chain began with.
    """
    columns: dict[str, list] = {"chain": [], "generation": [], "metric": [], "value": []}
    for chain in chains:
        for generation, texts in _scored_texts(config, chain, data, root, generations):
            values = leaning(texts).tolist()
            columns["chain"] += [chain.id] * len(values)
            columns["generation"] += [generation] * len(values)
            columns["metric"] += ["political_lean"] * len(values)
            columns["value"] += values
    tables.write_parquet(root / "text_scores.parquet", columns)


def _scored_texts(
    config: LoopsConfig,
    chain: ChainSpec,
    data: Mapping[str, Dataset],
    root: Path,
    generations: int,
) -> Iterable[tuple[int, list[str]]]:
    """(generation, its texts) of a chain; generation -1: its human texts."""
    yield -1, human_texts(chain, data)[:HUMAN_SCORED]
    for generation in range(generations):
        path = root / texts_path(chain.id, generation)
        if path.exists():
            texts = tables.read_parquet(path, ["text"])["text"]
            yield generation, list(texts[: config.chain.eval_texts])
