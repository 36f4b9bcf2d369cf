"""Human text of the recursive-loops experiments, with the scores and embeddings of each text.

A dataset is cleaned once, into rows.parquet in the cache folder, and read from there as a `Source`.
Quality, political leaning and embeddings of its texts are computed once too and kept beside it.
Experiments on the same data share all of this.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import dialect
from jaxloop.data import sources as data_sources
from jaxloop.data.batches import Columns, Shard, all_names, chosen, count_of
from jaxloop.data.digest import digest_texts
from jaxloop.lm.generation.prompt import render
from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry, umap
from jaxloop.metrics.base import Unavailable
from jaxloop.runtime import waiting
from jaxloop.runtime.atomic_io import bytes_in, cache_folder, require_space, write_atomic
from jaxloop.runtime.environment import how_to_install
from jaxloop.runtime.log import LOGGER
from jaxloop.studies import JudgeSilent
from jaxloop.studies.common import identity
from jaxloop.studies.common import models as base_models
from jaxloop.studies.recursive_loops import first_rows
from jaxloop.studies.recursive_loops.config import Domain, LoopsConfig
from jaxloop.studies.recursive_loops.data import clean_files, cleaning, recipes, sampling
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer, remembered, unknown
from jaxloop.studies.recursive_loops.data.cleaning import Counter
from jaxloop.studies.recursive_loops.data.embedding_cache import cached_embeddings
from jaxloop.studies.recursive_loops.data.texts import Texts, text_column

# Bytes of files that `--validate` cleans; more are only looked at.
_QUICK = 20_000_000


class Source(NamedTuple):
    """A cleaned dataset.

    Attributes:
        name: the domain, as in `config.domains`.
        texts: the cleaned texts.
        prompt: the rendered prompt, the same for every text.
        report: what the cleaning dropped.
        fingerprint: SHA-256 of the texts.
        folder: the cache folder, which also holds scores and embeddings of the texts.
        table: the columns beside the text.
    """

    name: str
    texts: Texts
    prompt: str
    report: cleaning.Report
    fingerprint: str
    folder: Path
    table: pa.Table

    def column(self, name: str) -> list[Any]:
        """Return the values of a column beside the text.

        Raises ValueError where there is none of that name.
        """
        if name not in self.table.column_names:
            raise ValueError(
                f"config.domains.{self.name}: has no column {name!r}; there are "
                f"{', '.join(self.table.column_names)}"
            )
        return self.table[name].to_pylist()


def instruction(domain: Domain) -> str:
    """Return the instruction that all texts of a domain answer."""
    return domain.instruction or recipes.RECIPES[domain.recipe].instruction


def source_line(source: Source) -> str:
    """Return a line that says how many texts were read, kept, and dropped by each rule."""
    dropped = ", ".join(
        f"{rule}: {counts['dropped']:,}"
        for rule, counts in source.report.items()
        if counts["dropped"]
    )
    rows = next(iter(source.report.values()))["in"] if source.report else len(source.texts)
    return f"{len(source.texts):,} of {rows:,} texts ({dropped or 'none dropped'})"


def read(config: LoopsConfig, name: str, count_model: Counter | None = None) -> Source:
    """Return the cleaned texts of a domain, from the cache folder or, the first time, its source.

    count_model: counts tokens as the first model of the pool does. Raises ValueError, one sentence,
    for a source that cannot be read, and where a rule drops everything.
    """
    domain = config.domains[name]
    folder = _folder(config, name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    with waiting.alone(folder / ".lock", f"cleans config.domains.{name}"):
        if not path.exists():
            check_room(config, name)
            _clean(config, name, domain, _counter(config, domain, count_model), path)
    names = [column for column in pq.read_schema(path).names if column != "text"]
    table = pq.read_table(path, columns=names, memory_map=True)
    report = json.loads((pq.read_metadata(path).metadata or {}).get(b"cleaning", b"{}"))
    texts = Texts(text_column(path))
    return Source(
        name=name,
        texts=texts,
        prompt=render(instruction(domain)),
        report=report,
        fingerprint=_fingerprint(folder, texts),
        folder=folder,
        table=table,
    )


def _folder(config: LoopsConfig, name: str) -> Path:
    """The cache folder of a domain's clean texts."""
    key = _key(config, config.domains[name])
    return cache_folder() / "datasets" / f"{name}-{key}"


def is_clean(config: LoopsConfig, name: str) -> bool:
    """Return whether the clean texts of a domain are in the cache folder."""
    return (_folder(config, name) / "rows.parquet").exists()


def is_quick(config: LoopsConfig, name: str) -> bool:
    """Return whether the clean texts of a domain are there, or take seconds to clean."""
    if is_clean(config, name):
        return True
    places = config.domains[name].source
    sizes = [Path(place).stat().st_size for place in places if Path(place).is_file()]
    here = bool(places) and all(map(data_sources.is_here, places))
    folders = any(Path(place).is_dir() for place in places)
    return here and not folders and sum(sizes) < _QUICK and config.language is None


def check(config: LoopsConfig, name: str) -> str:
    """Read the first row of every source of a domain, and return a line about the domain.

    Nothing is cleaned or written. Raises ValueError, one sentence, for a source that cannot be read
    or lacks a column that its recipe, or the experiment, needs.
    """
    domain = config.domains[name]
    if is_clean(config, name):
        return source_line(read(config, name))
    with _of_domain(name):
        _steps(config, domain, _any_length, None)
        places: Sequence[str | Path] = domain.source
        if not places:
            places = recipes.own_places(domain.recipe)
        for place in places:
            # Of several splits the first row is that of the first.
            one = domain.model_copy(update={"source": (str(place),), "splits": domain.splits[:1]})
            if not domain.source and domain.recipe != "plain":
                own = recipes.RECIPES[domain.recipe]
                source = () if place == own.source else (str(place),)
                one = one.model_copy(update={"source": source})
            for shard in _shards(config, one):
                first_rows.check(config, domain, _labels(config), next(shard.read(), {}))
                break
    return f"first row of {', '.join(map(str, places))} read; cleaned when a run begins"


def check_room(config: LoopsConfig, name: str) -> None:
    """Raise DiskFull where the clean rows of a domain surely do not fit the cache folder's disk.

    They are estimated from its files; what is on the hub is not known before it is read.
    """
    if not is_clean(config, name):
        domain = config.domains[name]
        places = domain.source
        if not places and recipes.RECIPES[domain.recipe].files:
            places = tuple(map(str, recipes.own_places(domain.recipe)))
        folder = _folder(config, name)
        needed = clean_files.room_needed(places, first_rows.columns(domain), domain.limit)
        # Parts that a stopped run has cleaned are kept.
        require_space(folder, needed - bytes_in(folder), f"cleaning config.domains.{name}")


def _any_length(texts: list[str]) -> Sequence[int]:
    return [100] * len(texts)


def check_counter(config: LoopsConfig, name: str) -> None:
    """Raise ValueError where the tokens of a domain's texts cannot be counted as config says."""
    if config.tokens == "cl100k" and not is_clean(config, name):
        _counter(config, config.domains[name], None)


def _fingerprint(folder: Path, texts: Texts) -> str:
    """SHA-256 of the texts in their order; kept in a file, since many texts take long to hash."""
    path = folder / "fingerprint"
    if not path.exists():
        write_atomic(path, digest_texts(texts).encode())
    return path.read_text()


def _counter(config: LoopsConfig, domain: Domain, count_model: Counter | None) -> Counter | None:
    """The function that counts tokens; None for a dataset whose rules need no token counts."""
    if domain.recipe in ("plain", "senator_tweets") and not _limits_length(domain):
        return None
    if config.tokens == "model":
        return count_model
    try:
        return recipes.cl100k_counter()
    except ValueError as error:
        reason = str(error).removeprefix("count_tokens: ").split(";")[0]
        install = f"{how_to_install('tiktoken')} (it downloads the encoding)"
        raise ValueError(
            f"config.tokens = 'cl100k': {reason}; {install}, or set config.tokens=model"
        ) from error


def _limits_length(domain: Domain) -> bool:
    return domain.min_tokens is not None or domain.max_tokens is not None


def _key(config: LoopsConfig, domain: Domain) -> str:
    """A hash of everything that the clean rows depend on."""
    own = () if domain.recipe == "plain" else recipes.RECIPES[domain.recipe].files
    places = domain.source or [name for name in own if Path(name).is_file()][:1]
    files = [data_sources.identity(source) for source in places]
    counted: str = config.tokens
    if config.tokens == "model":
        counting = config.models.pool[0]
        revision = base_models.revision_of(config.models, counting)
        counted = identity.cache_key_of_tokenizer(counting, revision)
    fields = domain.model_dump(mode="json", exclude={"instruction", "source"})
    if labels := _labels(config):
        fields["labels"] = labels
    language = config.language and identity.cache_key_of_metric(config.language)
    return hashlib.sha256(
        json.dumps(["distinct", fields, files, counted, language], sort_keys=True).encode()
    ).hexdigest()[:12]


def _clean(
    config: LoopsConfig, name: str, domain: Domain, counter: Counter | None, path: Path
) -> None:
    """Write the clean rows of a domain as a parquet file, with the report of the cleaning.

    Rules that look at one row at a time are applied in parts, which are kept until all is done.
    """
    by_row: cleaning.Report = {}
    rest: cleaning.Report = {}
    report: cleaning.Report = {}
    parts = path.parent / "parts"
    with _of_domain(name):
        steps = _steps(config, domain, counter, path.parent)
        alone = list(itertools.takewhile(lambda step: step.by_row, steps))
        shards = _shards(config, domain)
        stream = clean_files.clean_parts(shards, alone, by_row, parts, limit=domain.limit)
        stream = cleaning.apply(stream, steps[len(alone) :], rest)
        clean_files.write_parquet(path, _reported(stream, report, by_row, rest), report)
    shutil.rmtree(parts)


@contextlib.contextmanager
def _of_domain(name: str) -> Iterator[None]:
    """Context whose refusals name the domain."""
    try:
        yield
    except ValueError as error:
        text = dialect.in_section(str(error), f"domains.{name}")
        if not text.startswith(("data.", "config.")):
            text = f"config.domains.{name}: {text}"
        raise ValueError(text) from error


def _steps(
    config: LoopsConfig, domain: Domain, counter: Counter | None, folder: Path | None
) -> list[cleaning.Step]:
    """All rules of a domain.

    folder: keeps the answers of a judge of language; None: it is not asked.
    """
    steps: list[cleaning.Step]
    if domain.recipe == "plain":
        steps = [cleaning.texts_from(domain.text_column)]
        if domain.text_column != "text":
            steps.append(cleaning.without([domain.text_column]))
        steps.append(cleaning.distinct(content=True))
    else:
        options = dict(domain.options)
        judged = config.language is not None and domain.recipe == "100M_tweets"
        if judged and folder is not None:
            options["is_english"] = _is_english(config.language or "", folder)
        steps = list(recipes.steps_of(domain.recipe, counter, **options))
    if counter is not None and _limits_length(domain):
        least = -1 if domain.min_tokens is None else domain.min_tokens
        unit = f"tokens of {config.tokens}"
        steps.append(cleaning.length(counter, least, domain.max_tokens, unit))
    if domain.keep is not None:
        last = sampling.sample(domain.keep, 0)
        if last.name in {step.name for step in steps}:
            last = dataclasses.replace(last, name=f"{last.name}, again")
        steps.append(last)
    return steps


def _is_english(metric: str, folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    is_one = insisting(score(metric, folder), "config.language: the cleaning")

    def is_english(texts: Sequence[str]) -> np.ndarray:
        return is_one(texts) == 1

    return is_english


def _reported(
    stream: Iterable[Columns], report: cleaning.Report, *parts: cleaning.Report
) -> Iterator[Columns]:
    """The stream unchanged; at its end the parts, then complete, are merged into `report`.

    Raises ValueError where they say that nothing is left.
    """
    yield from stream
    for part in parts:
        report |= part
    cleaning.check_left(report)


def _labels(config: LoopsConfig) -> tuple[str, ...]:
    """The columns beside the recipe's that the experiment reads."""
    leaning = config.political_leaning
    is_read = config.subset_kind == "political" and leaning.judge is None
    return (leaning.label_column,) if is_read else ()


def _shards(config: LoopsConfig, domain: Domain) -> Iterator[Shard]:
    """The parts of a domain's source, with the columns that are read."""
    origin = recipes.Origin(
        source=domain.source,
        splits=domain.splits,
        rename=domain.rename,
        name=domain.name,
        revision=domain.revision,
        dialect=dialect.Dialect(domain.delimiter, domain.csv_options),
        keep_columns=_labels(config),
    )
    if domain.recipe != "plain":
        yield from recipes.shards_of(domain.recipe, origin)
        return
    for source in domain.source:
        for split in domain.splits or ("train",):
            for shard in data_sources.shards(
                source,
                columns=[domain.text_column, *origin.keep_columns],
                split=split,
                name=domain.name,
                revision=domain.revision,
                streaming=True,
                dialect=origin.dialect,
            ):
                names = (domain.text_column, *origin.keep_columns)
                yield Shard(shard.name, functools.partial(_plain_batches, shard, names))
            if data_sources.is_local(source):
                break


def _plain_batches(shard: Shard, names: Sequence[str]) -> Iterator[Columns]:
    """The rows of a shard with these columns alone; its text column holds text."""
    rows = 0
    for batch in shard.read():
        columns = chosen(batch, names)
        if names[0] not in columns and rows == 0:
            columns = chosen(batch, list(batch) if isinstance(batch, dict) else all_names(batch))
        cleaning.check_texts(columns.get(names[0], ()), names[0], shard.name, rows)
        for label in names[1:]:
            if label in columns:
                columns[label] = cleaning.check_labels(columns[label], label, shard.name, rows)
        rows += len(batch) if isinstance(batch, list) else count_of(batch)
        yield columns


# ---- scores and embeddings of each text


def score(metric: str, folder: Path) -> TextScorer:
    """Return the metric of single texts that has this name; its values are cached in `folder`.

    The function raises `metrics.base.Unavailable` where a judge does not answer; what it answered
    is kept.
    """

    def ask(texts: list[str]) -> np.ndarray:
        return registry.evaluate_texts([metric], texts=[texts])[metric][0]

    return remembered(ask, _answers(folder), name=_scorer_name(metric))


def _answers(folder: Path) -> Path:
    return folder / "answers.sqlite"


def _scorer_name(metric: str) -> str:
    """What a metric's answers are kept under.

    Those of a judge of political leaning used not to tell "not political" from "no score".
    """
    name = identity.cache_key_of_metric(metric)
    return f"{name} or -1" if metric.startswith("judge_political_lean") else name


def lacks_scores(metric: str, source: Source) -> bool:
    """Return whether a metric has not been computed of some text of a dataset."""
    path = _answers(source.folder)
    return bool(unknown(source.texts, path, name=_scorer_name(metric)))


def scored(metric: str, source: Source, texts: Sequence[str], what: str) -> np.ndarray:
    """Return a metric of human texts of a dataset, [n]; what: its name in messages.

    Raises `JudgeSilent` where its judge stops answering.
    """
    LOGGER.info("%s of %s texts of %s", what, f"{len(texts):,}", source.name)
    ask = insisting(score(metric, source.folder), f"the {what} of the texts of {source.name}")
    values = ask(texts)
    if without := int(np.isnan(values).sum()):
        LOGGER.warning("%s texts of %s have no %s", f"{without:,}", source.name, what)
    return values


def insisting(scorer: Callable[[Any], np.ndarray], what: str) -> Callable[[Any], np.ndarray]:
    """Return a scorer that raises `JudgeSilent` where its judge does not answer.

    what: what cannot go on then.
    """

    def insist(texts: Any) -> np.ndarray:
        try:
            return scorer(texts)
        except Unavailable as error:
            raise JudgeSilent(
                f"{what} cannot go on: {str(error).rstrip('.')}; the same command goes on from "
                "there"
            ) from None

    return insist


def quality(config: LoopsConfig, source: Source) -> np.ndarray:
    """Return the quality of every text of a dataset, [n] float64; nan for a text without one."""
    return scored(config.quality, source, source.texts, "quality")


def embeddings(config: LoopsConfig, source: Source) -> np.ndarray:
    """Return the embeddings of every text of a dataset, [n, D] float32, as a memory map."""
    LOGGER.info("embeddings of the %s texts of %s", f"{len(source.texts):,}", source.name)
    return cached_embeddings(
        source.texts,
        functools.partial(embedding.embed, model=config.embedder),
        source.folder,
        name=identity.cache_key_of_model(config.embedder) or "MiniLM",
    )


def evaluation_map(config: LoopsConfig, source: Source, points: np.ndarray) -> umap.EvaluationMap:
    """Return the evaluation map of a dataset: the UMAP for metrics of entropy and Gaussianity.

    It is fitted once on the first `config.properties.map_rows` embeddings, as in the released code
    of arXiv 2504.03814, and kept in the cache folder. points: the embeddings [n, D].
    """
    limit = min(config.properties.map_rows, len(points))
    encoder = identity.cache_key_of_model(config.embedder)
    key = hashlib.sha256(f"{encoder}:{limit}".encode()).hexdigest()[:12]
    path = source.folder / f"map-{key}.npz"
    if path.exists():
        try:
            return umap.load_map(path)
        except ValueError:
            path.unlink(missing_ok=True)
    fitted = umap.fit_map(np.asarray(points[:limit]), umap.MapSettings(limit=limit))
    umap.save_map(fitted, path)
    return fitted
