"""What is measured of generated text, generation by generation."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry
from jaxloop.metrics.base import Unavailable
from jaxloop.recursion import finalise
from jaxloop.recursion.backfill import MeasureNamed
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.parts import tidy
from jaxloop.recursion.sources import Dataset, human_texts, texts_path
from jaxloop.runtime import checkpoint, tables
from jaxloop.runtime.log import LOGGER
from jaxloop.studies.common import missing
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer

# Last generations whose quality is measured if `config.quality_at` is "ends".
LAST = 5
# How many human texts of a chain's generation 0 give its initial leaning (arXiv 2504.03814, x axis
# of figure 5b).
HUMAN_SCORED = 250

Values = dict[str, float]


# What is measured of the political leaning of texts.
LEANING_NAMES = (
    "political_lean",
    "left_share",
    "right_share",
    "neutral_share",
    "not_political_share",
    "unparsable_share",
)


def _of_texts(config: LoopsConfig, generation: int) -> list[str]:
    """The metrics of a generation's texts.

    With `config.quality_at` = "ends" the generations in between lack the quality metric.
    """
    at_ends = generation == 0 or generation >= config.chain.generations - LAST
    names = list(config.metrics)
    if config.quality not in names and (config.quality_at == "all" or at_ends):
        names.append(config.quality)
    return registry.with_unparsable(names)


def names_at(config: LoopsConfig, generation: int) -> list[str]:
    """Return the names of the metrics of a chain in a generation, as metrics.csv has them.

    With several domains every metric is computed for the texts of each domain, and is called
    `<metric>@<domain>`.
    """
    names = _of_texts(config, generation)
    if config.subset_kind == "mixtures":
        names = [f"{name}@{domain}" for name in names for domain in config.domains]
    return names + (list(LEANING_NAMES) if config.subset_kind == "political" else [])


def names_of(config: LoopsConfig, chain: ChainSpec, generation: int) -> list[str]:
    """Return `names_at` of a chain of one model; none of chains that `measure_shared` measures."""
    return names_at(config, generation) if chain.workflow.entities == 1 else []


def judges(config: LoopsConfig) -> dict[str, str]:
    """Return {a name of `names_at` that is no metric of the registry: the metric that it asks}."""
    named = {
        f"{name}@{domain}": name
        for name in _of_texts(config, 0)
        for domain in config.domains
        if config.subset_kind == "mixtures"
    }
    if config.political_leaning.judge is not None:
        named |= dict.fromkeys(LEANING_NAMES, config.political_leaning.judge)
    return named


def measure(config: LoopsConfig, leaning: TextScorer | None) -> MeasureNamed:
    """Return the function that computes the named metrics of models.

    It leaves out metrics whose judge does not answer, and chains of several models, which share a
    pool and are measured together after the run (`measure_shared`). leaning: scores the political
    leaning of texts; None: not measured.
    """

    def run(
        model: Any, generation: int, outputs: Sequence[ModelOutput], names: Sequence[str], /
    ) -> dict:
        alone = [output for output in outputs if output.chain.workflow.entities == 1]
        values = evaluate(config, names, [output.texts for output in alone], leaning)
        return {
            (output.chain.id, output.entity): measured | {"finished": _mean(output.finished)}
            for output, measured in zip(alone, values, strict=True)
        }

    return run


def evaluate(
    config: LoopsConfig,
    names: Sequence[str],
    texts: Sequence[Sequence[str]],
    leaning: TextScorer | None,
) -> list[Values]:
    """Return {metric: value} for each chain's list of texts, without metrics that are unavailable.

    With several domains text i belongs to domain i modulo the number of domains. names: out of
    `names_at`.
    """
    if not texts:
        return []
    samples = [list(chain_texts[: config.chain.eval_texts]) for chain_texts in texts]
    of_texts = [name for name in names if name not in LEANING_NAMES]
    if config.subset_kind == "mixtures":
        values = _by_domain(config, of_texts, samples)
    else:
        values = _metrics(config, of_texts, samples)
    if leaning is not None and len(of_texts) < len(names):
        for measured, leanings in zip(values, _leanings(samples, leaning), strict=False):
            measured |= leaning_shares(config, leanings)
    return values


def _metrics(
    config: LoopsConfig, names: Sequence[str], samples: Sequence[Sequence[str]]
) -> list[Values]:
    """Metrics of each list of texts."""
    unavailable: dict[str, str] = {}
    values = registry.evaluate(
        names,
        unavailable=unavailable,
        texts=samples,
        embeddings=functools.partial(embedding.embed, model=config.embedder),
    )
    return missing.known(values, unavailable, len(samples))


def _by_domain(
    config: LoopsConfig, names: Sequence[str], samples: Sequence[Sequence[str]]
) -> list[Values]:
    """Metrics of each list of texts, separately for the texts of each domain."""
    domains = list(config.domains)
    plain = list(dict.fromkeys(name.rpartition("@")[0] for name in names))
    parts = [sample[i :: len(domains)] for sample in samples for i in range(len(domains))]
    values = iter(_metrics(config, plain, parts))
    by_sample = []
    for _ in samples:
        of_domains = {domain: next(values) for domain in domains}
        found = {
            f"{name}@{domain}": of_domain[name]
            for domain, of_domain in of_domains.items()
            for name in of_domain
        }
        by_sample.append({name: found[name] for name in names if name in found})
    return by_sample


def _leanings(samples: Sequence[Sequence[str]], leaning: TextScorer) -> list[np.ndarray]:
    """The leaning of every text, by list; no list at all where the judge does not answer.

    One call for all chains: full batches, and a text that several chains have is scored once.
    """
    try:
        scores = leaning([text for sample in samples for text in sample])
    except Unavailable as error:
        LOGGER.warning("the political leaning is missing: %s", error)
        return []
    return np.split(scores, np.cumsum([len(sample) for sample in samples])[:-1])


def leaning_shares(config: LoopsConfig, leanings: np.ndarray) -> Values:
    """Return the mean leaning of the political texts, and shares of the texts.

    The shares of each side, of neutral and of not political texts are shares of the texts whose
    reply is a score; neutral ones include those that are not political. unparsable_share is a share
    of all texts. leanings: [texts], from 0 (left) to 100 (right); -1 for a text that is not
    political, nan for one whose reply is no score.
    """
    read, neutral = leanings[~np.isnan(leanings)], config.political_leaning.neutral
    political = read[read >= 0]
    left = _mean((read >= 0) & (read < 50 - neutral))
    right = _mean(read > 50 + neutral)
    return {
        "political_lean": _mean(political),
        "left_share": left,
        "right_share": right,
        "neutral_share": 1 - left - right,
        "not_political_share": _mean(read < 0),
        "unparsable_share": _mean(np.isnan(leanings)),
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
) -> Counter[str]:
    """Measure chains of several models that share a pool, after the run.

    The same number of texts of each model is taken and shuffled; the values are added to the
    finished generations in the run directory `root`. Generations that have them are not read again.
    Returns how many values of each metric are missing, because a judge does not answer.
    """
    shared = [chain for chain in chains if chain.workflow.entities > 1]
    lacks: Counter[str] = Counter()
    for generation in range(generations if shared else 0):
        metrics = finalise.read_metrics(root, generation)
        keys = zip(metrics["chain"], metrics["metric"], strict=True)
        known = dict(zip(keys, metrics["value"], strict=True))
        names = names_at(config, generation)
        samples: dict[tuple[str, ...], list[_SharedTexts]] = {}
        for chain in shared:
            lacking = tuple(n for n in names if math.isnan(known.get((chain.id, n), math.nan)))
            if lacking and (root / texts_path(chain.id, generation)).exists():
                sample = _shared_texts(config, chain, generation, root)
                samples.setdefault(lacking, []).append(sample)
        rows = []
        for lacking, group in samples.items():
            values = evaluate(config, lacking, [sample.texts for sample in group], leaning)
            for sample, of_sample in zip(group, values, strict=True):
                lacks.update(name for name in lacking if name not in of_sample)
                found = dict.fromkeys(lacking, math.nan) | of_sample
                if (sample.chain.id, "finished") not in known:
                    found["finished"] = _mean(sample.finished)
                new = {
                    name: value
                    for name, value in found.items()
                    if not math.isnan(value) or (sample.chain.id, name) not in known
                }
                rows += _metric_rows(sample.chain, generation, new)
        if rows:
            _add_metrics(root, generation, rows, chains)
    return lacks


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

    It is -1 for a text that is not political, and empty where the reply was no score. Generation -1
    holds the human texts that a chain began with. Raises `metrics.base.Unavailable` where the judge
    does not answer.
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
