"""Human text of the recursive-loops experiments, with the scores and embeddings of each text.

A dataset is cleaned once, into rows.parquet in the cache folder, and read from there as a `Source`.
Quality, political leaning and embeddings of its texts are computed once too and kept beside it.
Experiments on the same data share all of this.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxloop.data import dialect
from jaxloop.data import sources as data_sources
from jaxloop.data.batches import Columns, Shard, all_names, chosen, count_of
from jaxloop.data.digest import digest_texts
from jaxloop.lm.generation.prompt import render
from jaxloop.metrics import embed as embedding
from jaxloop.metrics import registry, umap
from jaxloop.runtime.atomic_io import cache_folder, write_atomic
from jaxloop.runtime.environment import how_to_install
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.tables import unescape
from jaxloop.studies.recursive_loops.config import Domain, LoopsConfig
from jaxloop.studies.recursive_loops.data import clean_files, cleaning, recipes, sampling
from jaxloop.studies.recursive_loops.data.answer_cache import TextScorer, remembered
from jaxloop.studies.recursive_loops.data.cleaning import Counter
from jaxloop.studies.recursive_loops.data.embedding_cache import cached_embeddings


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
    folder = cache_folder() / "datasets" / f"{name}-{_key(config, domain)}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    with filelock.FileLock(folder / ".lock"):
        if not path.exists():
            _clean(config, name, domain, _counter(config, domain, count_model), path)
    names = [column for column in pq.read_schema(path).names if column != "text"]
    table = pq.read_table(path, columns=names, memory_map=True)
    report = json.loads((pq.read_metadata(path).metadata or {}).get(b"cleaning", b"{}"))
    texts = Texts(_text_column(path))
    return Source(
        name=name,
        texts=texts,
        prompt=render(instruction(domain)),
        report=report,
        fingerprint=_fingerprint(folder, texts),
        folder=folder,
        table=table,
    )


def _text_column(path: Path) -> pa.LargeStringArray:
    """The texts of clean rows, read in two passes into memory of their size: these are the largest
    arrays of a run, which must not be there twice.
    """
    count = pq.read_metadata(path).num_rows
    lengths = [pc.binary_length(texts) for texts in _text_batches(path)]
    ends_N = np.zeros(count + 1, np.int64)
    if lengths:
        np.cumsum(pa.chunked_array(lengths).fill_null(0).to_numpy(), out=ends_N[1:])
    data = np.empty(int(ends_N[-1]), np.uint8)
    row = 0
    for texts in _text_batches(path):
        values = np.frombuffer(b"".join(texts.cast("binary").to_pylist()), np.uint8)
        data[ends_N[row] : ends_N[row + len(texts)]] = values
        row += len(texts)
    return pa.LargeStringArray.from_buffers(count, pa.py_buffer(ends_N), pa.py_buffer(data))


def _text_batches(path: Path) -> Iterator[pa.StringArray]:
    with pq.ParquetFile(path, buffer_size=1 << 22) as file:
        for batch in file.iter_batches(16_384, columns=["text"]):
            yield batch.column(0)


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
    counted = config.tokens if config.tokens == "cl100k" else config.models.pool[0]
    fields = domain.model_dump(mode="json", exclude={"instruction", "source"})
    if labels := _labels(config):
        fields["labels"] = labels
    return hashlib.sha256(
        json.dumps(["distinct", fields, files, counted, config.language], sort_keys=True).encode()
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
    try:
        steps = _steps(config, domain, counter, path.parent)
        alone = list(itertools.takewhile(lambda step: step.by_row, steps))
        shards = _shards(config, domain)
        stream = clean_files.clean_parts(shards, alone, by_row, parts, limit=domain.limit)
        stream = cleaning.apply(stream, steps[len(alone) :], rest)
        clean_files.write_parquet(path, _reported(stream, report, by_row, rest), report)
    except ValueError as error:
        text = dialect.in_section(str(error), f"domains.{name}")
        if not text.startswith(("data.", "config.")):
            text = f"config.domains.{name}: {text}"
        raise ValueError(text) from error
    shutil.rmtree(parts)


def _steps(
    config: LoopsConfig, domain: Domain, counter: Counter | None, folder: Path
) -> list[cleaning.Step]:
    """All rules of a domain; folder: where answers about its texts are kept."""
    steps: list[cleaning.Step]
    if domain.recipe == "plain":
        steps = [cleaning.texts_from(domain.text_column)]
        if domain.text_column != "text":
            steps.append(cleaning.without([domain.text_column]))
        steps.append(cleaning.distinct(content=True))
    else:
        options = dict(domain.options)
        if config.language is not None and domain.recipe == "100M_tweets":
            options["is_english"] = _is_english(config.language, folder)
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
    is_one = score(metric, folder)

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
        rows += len(batch) if isinstance(batch, list) else count_of(batch)
        yield columns


# ---- scores and embeddings of each text


def score(metric: str, folder: Path) -> TextScorer:
    """Return the metric of single texts that has this name; its values are cached in `folder`."""

    def ask(texts: list[str]) -> np.ndarray:
        return registry.evaluate_texts([metric], texts=[texts])[metric][0]

    return remembered(ask, folder / "answers.sqlite", name=metric)


def quality(config: LoopsConfig, source: Source) -> np.ndarray:
    """Return the quality of every text of a dataset, [n] float64; nan for a text without one."""
    LOGGER.info("quality of the %s texts of %s", f"{len(source.texts):,}", source.name)
    return score(config.quality, source.folder)(source.texts)


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
