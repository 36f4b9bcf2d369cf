"""Human text of the recursive-loops experiments: cleaned once, kept in the cache folder, read as
columns; and what is known of each text.

clean -> rows.parquet (with its report) -> `Source`: texts, labels -> quality, lean and embeddings,
all asked for once and kept. Several experiments on the same data share all of it.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.runtime.environment import how_to_install
from jaxloop.studies.recursive_loops.config import Domain, Settings, instruction


class Texts(Sequence):
    """Some rows of a text column, decoded when they are asked for: what many subsets of one dataset
    share is held once.
    """

    def __init__(self, column, rows: np.ndarray | None = None):
        self._column = column
        self._rows = np.arange(len(column)) if rows is None else np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        from jaxloop.runtime.tables import unescape

        if isinstance(index, slice):
            return [unescape(text) for text in self._column.take(self._rows[index]).to_pylist()]
        return unescape(self._column[int(self._rows[index])].as_py())

    def __iter__(self):
        for start in range(0, len(self), 8192):
            yield from self[start : start + 8192]

    def take(self, rows: np.ndarray) -> "Texts":
        """The texts at these places."""
        return Texts(self._column, self._rows[rows])


class Source(NamedTuple):
    """A clean dataset. name: of the domain; prompt: rendered; report: {rule: {in, dropped, out}};
    folder: where what is known of it is kept; table: all its columns (Arrow).
    """

    name: str
    texts: Texts
    prompt: str
    report: dict[str, dict[str, int]]
    fingerprint: str
    folder: Path
    table: Any

    def column(self, name: str) -> list:
        """The values of a column beside the text. Raises ValueError where there is none of that
        name.
        """
        if name not in self.table.column_names:
            raise ValueError(
                f"config.domains.{self.name}: has no column {name!r}; there are "
                f"{', '.join(self.table.column_names)}"
            )
        return self.table[name].to_pylist()


def read(settings: Settings, name: str, count_model=None) -> Source:
    """The clean rows of a domain, from the cache folder or, the first time, from its source.

    count_model: counts tokens of the first model of the pool. Raises ValueError, one sentence, for
    a source that cannot be read, and where a rule drops everything.
    """
    import filelock
    import pyarrow.parquet as pq

    from jaxloop.lm.generation.prompt import render
    from jaxloop.runtime.atomic_io import cache_folder

    domain = settings.domains[name]
    folder = cache_folder() / "datasets" / f"{name}-{_key(settings, domain)}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.parquet"
    with filelock.FileLock(folder / ".lock"):
        if not path.exists():
            _clean(settings, name, domain, _counter(settings, domain, count_model), path)
    table = pq.read_table(path, memory_map=True)
    report = json.loads((pq.read_metadata(path).metadata or {}).get(b"cleaning", b"{}"))
    column = table["text"].combine_chunks().cast("large_string")
    texts = Texts(column)
    return Source(
        name,
        texts,
        render(instruction(domain)),
        report,
        _fingerprint(folder, texts),
        folder,
        table.drop_columns(["text"]),
    )


def _fingerprint(folder: Path, texts: Texts) -> str:
    """SHA-256 of the texts, in order; kept, for it takes a while where they are many."""
    from jaxloop.data.docs import digest_texts
    from jaxloop.runtime.atomic_io import write_atomic

    path = folder / "fingerprint"
    if not path.exists():
        write_atomic(path, digest_texts(texts).hexdigest().encode())
    return path.read_text()


def _counter(settings: Settings, domain: Domain, count_model):
    """What lengths are counted with; None for a dataset whose rules count no tokens."""
    from jaxloop.studies.recursive_loops.data import recipes

    if (
        domain.recipe in ("plain", "senator_tweets")
        and domain.min_tokens is None
        and domain.max_tokens is None
    ):
        return None
    if settings.tokens == "model":
        return count_model
    try:
        return recipes.cl100k_counter()
    except ValueError as error:
        reason = str(error).removeprefix("count_tokens: ").split(";")[0]
        install = f"{how_to_install('tiktoken')} (it downloads the encoding)"
        raise ValueError(
            f"config.tokens = 'cl100k': {reason}; {install}, or set config.tokens=model"
        ) from error


def _key(settings: Settings, domain: Domain) -> str:
    """What the clean rows depend on."""
    from jaxloop.data import sources

    files = [sources.identity(source) for source in domain.source]
    counted = settings.tokens if settings.tokens == "cl100k" else settings.models.pool[0]
    fields = domain.model_dump(mode="json", exclude={"instruction", "source"})
    return hashlib.sha256(
        json.dumps(["distinct", fields, files, counted, settings.language], sort_keys=True).encode()
    ).hexdigest()[:12]


def _clean(settings: Settings, name: str, domain: Domain, counter, path: Path) -> None:
    from jaxloop.data import delimited
    from jaxloop.studies.recursive_loops.data import cleaning, recipes

    first, second, report = {}, {}, {}
    try:
        if domain.recipe == "plain":
            stream = _plain_rows(domain)
            steps = [cleaning.texts_from(domain.text_column)]
            steps += (
                [cleaning.without([domain.text_column])] if domain.text_column != "text" else []
            )
            steps.append(cleaning.distinct(content=True))
            stream = cleaning.clean(stream, steps, first)
        else:
            options = dict(domain.options)
            if settings.language is not None and domain.recipe == "100M_tweets":
                options["is_english"] = lambda texts: (
                    score(settings, settings.language, path.parent)(texts) == 1
                )
            stream = recipes.clean_dataset(
                domain.recipe,
                first,
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
        steps = []
        if domain.min_tokens is not None or domain.max_tokens is not None:
            steps.append(
                cleaning.length(
                    counter,
                    -1 if domain.min_tokens is None else domain.min_tokens,
                    domain.max_tokens,
                    f"tokens of {settings.tokens}",
                )
            )
        steps += [cleaning.sample(domain.keep, 0)] if domain.keep is not None else []
        stream = cleaning.clean(_scalars(stream), steps, second)
        cleaning.write_parquet(path, _reported(stream, report, first, second), report)
    except ValueError as error:
        text = delimited.in_section(str(error), f"domains.{name}")
        raise ValueError(
            text if text.startswith(("data.", "config.")) else f"config.domains.{name}: {text}"
        ) from error


def _reported(stream, report, *parts):
    """The stream; the reports of its parts are complete, and one, when it has ended."""
    yield from stream
    for part in parts:
        report |= part


def _dialect(domain: Domain):
    from jaxloop.data.delimited import Dialect

    return Dialect(domain.delimiter, domain.csv_options)


def _plain_rows(domain: Domain):
    from jaxloop.data import sources

    def rows():
        for source in domain.source:
            for split in domain.splits or ("train",):
                yield from sources.rows(
                    source,
                    split=split,
                    name=domain.name,
                    revision=domain.revision,
                    streaming=True,
                    dialect=_dialect(domain),
                )
                if sources.is_local(source):
                    break

    return itertools.islice(rows(), domain.limit)


def _scalars(rows):
    """Rows without what is neither text nor number (embeddings, nested lists), which parquet tables
    of texts do not hold.
    """
    for row in rows:
        yield {
            name: value
            for name, value in row.items()
            if name == "text" or value is None or isinstance(value, str | int | float | bool)
        }


# ---- what is known of each text
# ---------------------------------------------------------------------------------------


def score(settings: Settings, metric: str, folder: Path):
    """A metric of single texts, by its name, whose answers are kept in `folder`: texts -> float64
    [n], nan where there is none.
    """
    from jaxloop.metrics import registry
    from jaxloop.studies.recursive_loops.data.answer_cache import remembered

    def ask(texts):
        return registry.evaluate_texts([metric], texts=[texts])[metric][0]

    return remembered(ask, folder / "answers.sqlite", name=metric)


def quality(settings: Settings, source: Source) -> np.ndarray:
    """Quality of every text of a dataset: float64 [n], nan where the judge gives none."""
    from jaxloop.runtime.log import LOGGER

    LOGGER.info("quality of the %s texts of %s", f"{len(source.texts):,}", source.name)
    return score(settings, settings.quality, source.folder)(source.texts)


def embeddings(settings: Settings, source: Source) -> np.ndarray:
    """Embeddings of every text of a dataset, [n, D] float32, a memory map."""
    from jaxloop.metrics.embed import embed
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.recursive_loops.data.embedding_cache import cached_embeddings

    LOGGER.info("embeddings of the %s texts of %s", f"{len(source.texts):,}", source.name)
    return cached_embeddings(
        source.texts,
        lambda texts: embed(texts, model=settings.embedder),
        source.folder,
        name=settings.embedder or "MiniLM",
    )


def evaluation_map(settings: Settings, source: Source, points: np.ndarray):
    """The evaluation map of a dataset (recursive_loops.md, section 3.10), fitted once on its first
    embeddings and kept.
    """
    from jaxloop.metrics import umap

    limit = min(settings.properties.map_rows, len(points))
    path = (
        source.folder
        / f"map-{hashlib.sha256(f'{settings.embedder}:{limit}'.encode()).hexdigest()[:12]}.npz"
    )
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
