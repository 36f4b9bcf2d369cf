"""Human text of the recursive-loops experiments, with the scores and embeddings of each text.

A dataset is cleaned once, into rows.parquet in the cache folder, and read from there as a `Source`.
Quality, political leaning and embeddings of its texts are computed once too and kept beside it.
Experiments on the same data share all of this.
"""

import contextlib
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import dialect
from jaxloop.data import sources as data_sources
from jaxloop.data.digest import digest_texts
from jaxloop.lm.generation.prompt import render
from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry, umap
from jaxloop.metrics.base import Unavailable
from jaxloop.runtime.atomic_io import cache_folder, write_atomic
from jaxloop.runtime.environment import how_to_install
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import unescape
from jaxloop.studies import JudgeSilent
from jaxloop.studies.recursive_loops.config import Domain, LoopsConfig
from jaxloop.studies.recursive_loops.data import cleaning, recipes
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer, remembered, unknown
from jaxloop.studies.recursive_loops.data.embedding_cache import cached_embeddings

# Bytes of files that `--validate` cleans; more are only looked at.
_QUICK = 20_000_000
Row = dict[str, Any]
# {rule: {"in": rows, "dropped": rows, "out": rows}}
CleaningReport = dict[str, dict[str, int]]
# A function from texts to their numbers of tokens.
Counter = Callable[[list[str]], Sequence[int]]


class Texts(Sequence[str]):
    """Some rows of a text column, decoded when they are read.

    All subsets of a dataset share one column in memory.
    """

    def __init__(self, column: pa.LargeStringArray, rows: np.ndarray | None = None):
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [unescape(text) for text in self._column.take(self._rows[index]).to_pylist()]
        return unescape(self._column[int(self._rows[index])].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 8192):
            yield from self[start : start + 8192]

    def take(self, rows: np.ndarray) -> "Texts":
        """Return the texts at these positions, as another view of the column."""
        return Texts(self._column, self._rows[rows])


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
    report: CleaningReport
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
    with filelock.FileLock(folder / ".lock"):
        if not path.exists():
            _clean(config, name, domain, _counter(config, domain, count_model), path)
    table = pq.read_table(path, memory_map=True)
    report = json.loads((pq.read_metadata(path).metadata or {}).get(b"cleaning", b"{}"))
    column = table["text"].combine_chunks().cast("large_string")
    texts = Texts(column)
    return Source(
        name=name,
        texts=texts,
        prompt=render(instruction(domain)),
        report=report,
        fingerprint=_fingerprint(folder, texts),
        folder=folder,
        table=table.drop_columns(["text"]),
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


def check(config: LoopsConfig, name: str, columns: Sequence[str] = ()) -> str:
    """Read the first row of every source of a domain, and return a line about the domain.

    Nothing is cleaned or written. Raises ValueError, one sentence, for a source that cannot be read
    or lacks a column that its recipe, or `columns`, needs.
    """
    domain = config.domains[name]
    if is_clean(config, name):
        return source_line(read(config, name))
    # A recipe's own source is a dataset of the hub, of which the recipe knows the columns.
    for place in domain.source or (None,):
        source = () if place is None else (place,)
        one = domain.model_copy(update={"source": source, "limit": 1})
        with _of_domain(name):
            with contextlib.suppress(cleaning.AllDropped):
                for _ in _after_recipe(config, one, _any_length, None, {}):
                    break
            _check_columns(one, columns)
    places = domain.source or (recipes.RECIPES[domain.recipe].source,)
    return f"first row of {', '.join(places)} read; cleaned when a run begins"


def _any_length(texts: list[str]) -> Sequence[int]:
    return [100] * len(texts)


def _check_columns(domain: Domain, columns: Sequence[str]) -> None:
    """Raise ValueError where the first row of a domain's source lacks one of the columns."""
    if not columns or not domain.source:
        return
    row = next(_plain_rows(domain), {})
    present = {domain.rename.get(column, column) for column in row}
    if lacking := [column for column in columns if column not in present]:
        raise ValueError(f"has no column {lacking[0]!r}; there are {', '.join(map(str, row))}")


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
    files = [data_sources.identity(source) for source in domain.source]
    counted = config.tokens if config.tokens == "cl100k" else config.models.pool[0]
    fields = domain.model_dump(mode="json", exclude={"instruction", "source"})
    return hashlib.sha256(
        json.dumps(["distinct", fields, files, counted, config.language], sort_keys=True).encode()
    ).hexdigest()[:12]


def _clean(
    config: LoopsConfig, name: str, domain: Domain, counter: Counter | None, path: Path
) -> None:
    """Write the clean rows of a domain as a parquet file, with the report of the cleaning."""
    first: CleaningReport = {}
    second: CleaningReport = {}
    report: CleaningReport = {}
    with _of_domain(name):
        stream = _after_recipe(config, domain, counter, path.parent, first)
        steps = _common_steps(config, domain, counter)
        stream = cleaning.clean(_scalars(stream), steps, second)
        cleaning.write_parquet(path, _reported(stream, report, first, second), report)


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


def _after_recipe(
    config: LoopsConfig,
    domain: Domain,
    counter: Counter | None,
    folder: Path | None,
    report: CleaningReport,
) -> Iterator[Row]:
    """The rows that the recipe of a domain leaves.

    folder: keeps the answers of a judge of language; None: it is not asked.
    """
    if domain.recipe == "plain":
        return cleaning.clean(_plain_rows(domain), _plain_steps(domain), report)
    options = dict(domain.options)
    if config.language is not None and domain.recipe == "100M_tweets" and folder is not None:
        options["is_english"] = _is_english(config.language, folder)
    return recipes.clean_dataset(
        domain.recipe,
        report,
        count_tokens=counter,
        source=domain.source or None,
        splits=domain.splits or None,
        rename=domain.rename,
        name=domain.name,
        revision=domain.revision,
        limit=domain.limit,
        dialect=_dialect(domain),
        **options,
    )


def _plain_steps(domain: Domain) -> list[cleaning.Step]:
    steps = [cleaning.texts_from(domain.text_column)]
    if domain.text_column != "text":
        steps.append(cleaning.without([domain.text_column]))
    return [*steps, cleaning.distinct(content=True)]


def _common_steps(
    config: LoopsConfig, domain: Domain, counter: Counter | None
) -> list[cleaning.Step]:
    """Steps that follow the rules of every recipe."""
    steps = []
    if counter is not None and _limits_length(domain):
        least = -1 if domain.min_tokens is None else domain.min_tokens
        unit = f"tokens of {config.tokens}"
        steps.append(cleaning.length(counter, least, domain.max_tokens, unit))
    if domain.keep is not None:
        steps.append(cleaning.sample(domain.keep, 0))
    return steps


def _is_english(metric: str, folder: Path) -> Callable[[Sequence[str]], np.ndarray]:
    is_one = insisting(score(metric, folder), "config.language: the cleaning")

    def is_english(texts: Sequence[str]) -> np.ndarray:
        return is_one(texts) == 1

    return is_english


def _reported(
    stream: Iterable[Row], report: CleaningReport, *parts: CleaningReport
) -> Iterator[Row]:
    """The stream unchanged; at its end the parts, then complete, are merged into `report`."""
    yield from stream
    for part in parts:
        report |= part


def _dialect(domain: Domain) -> dialect.Dialect:
    return dialect.Dialect(domain.delimiter, domain.csv_options)


def _plain_rows(domain: Domain) -> Iterator[Row]:
    def rows() -> Iterator[Row]:
        for source in domain.source:
            for split in domain.splits or ("train",):
                yield from data_sources.rows(
                    source,
                    split=split,
                    name=domain.name,
                    revision=domain.revision,
                    streaming=True,
                    dialect=_dialect(domain),
                )
                if data_sources.is_local(source):
                    break

    return itertools.islice(rows(), domain.limit)


def _scalars(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows without values that are neither text nor number, such as embeddings and nested lists.

    The parquet tables of texts cannot hold these.
    """
    for row in rows:
        yield {
            name: value
            for name, value in row.items()
            if name == "text" or value is None or isinstance(value, str | int | float | bool)
        }


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
    return f"{metric} or -1" if metric.startswith("judge_political_lean") else metric


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
        name=config.embedder or "MiniLM",
    )


def evaluation_map(config: LoopsConfig, source: Source, points: np.ndarray) -> umap.EvaluationMap:
    """Return the evaluation map of a dataset: the UMAP for metrics of entropy and Gaussianity.

    It is fitted once on the first `config.properties.map_rows` embeddings, as in the released code
    of arXiv 2504.03814, and kept in the cache folder. points: the embeddings [n, D].
    """
    limit = min(config.properties.map_rows, len(points))
    key = hashlib.sha256(f"{config.embedder}:{limit}".encode()).hexdigest()[:12]
    path = source.folder / f"map-{key}.npz"
    if path.exists():
        try:
            return umap.load_map(path)
        except ValueError:
            path.unlink()
    fitted = umap.fit_map(np.asarray(points[:limit]), umap.MapSettings(limit=limit))
    partial = path.with_name(f".tmp-{path.name}")
    umap.save_map(fitted, partial)
    partial.replace(path)
    return fitted
