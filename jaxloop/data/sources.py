"""Loads texts from any source, as one table with a report and a fingerprint.

A source is a corpus that comes with jaxloop, a local file or folder, or a dataset on the Hugging
Face hub.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.data import containers, corpora, docs, filters, folders, hub, reading
from jaxloop.data.batches import Batch, Columns, Report, Row, Shard, grouped, rows_of
from jaxloop.data.columns import Wanted, wanted_columns
from jaxloop.data.dialect import Dialect
from jaxloop.data.digest import update_digest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")


def load_texts(
    source: str | Path,
    *,
    text_column: str = "text",
    prompt_column: str | None = None,
    domain_column: str | None = None,
    domains: Sequence[str] = (),
    keep_columns: Sequence[str] = (),
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    limit: int | None = None,
    min_tokens: int | None = None,
    max_tokens: int | None = None,
    count_tokens: Callable[[list[str]], Sequence[int]] | None = None,
    dialect: Dialect = Dialect(),
) -> pd.DataFrame:
    """Return the texts of a source that pass the filters, in the order of the source.

    Args:
        source: `jaxloop:NAME` (a corpus that comes with jaxloop, see `corpora`), `docs` (the
            embedded dataset; `docs:scipy,numpy` for some of its libraries, `docs:installed` for the
            libraries as they are installed here), a file (`reading.EXTENSIONS`), a folder that
            `datasets` wrote or can read, or a Hugging Face dataset id.
        text_column: the column that holds the text. A dotted name is a path into nested columns, as
            in `answers.text.0`. The default is also found in `messages` (or `conversations`) of
            turns with role and content, whose last answer is the text and what stands before it the
            prompt, and in `completion` with `prompt`.
        prompt_column: the column that holds the instruction of a text, if it has its own.
        domain_column: the column that holds the domain; without one, the domain of every row is the
            name of the source.
        domains: keep only rows of these domains; empty: all.
        keep_columns: further columns to carry along.
        split, name, revision, streaming: of a Hugging Face dataset (`name` is its configuration).
            Streaming reads rows as they are needed; a limit implies it.
        limit: stop after this many rows have passed the filters; no more is read, or downloaded.
        min_tokens, max_tokens: keep texts with min_tokens < tokens < max_tokens, both bounds strict
            as in the paper.
        count_tokens: the number of tokens of each text of a list; required by the two filters.
        dialect: of a csv or tsv file.

    Returns:
        Columns text, domain, prompt (with `prompt_column`), then `keep_columns`, of dtype object,
        which unlike pandas' string type holds every Python string. `frame.attrs` has `source`,
        `fingerprint` (SHA-256 over the texts) and `report` (rows read and what each filter
        dropped). Rows without a text (null, or no such key in a JSON row) are dropped; empty texts
        are texts.

    Raises:
        ValueError: in one sentence: a source that does not exist, cannot be reached, is empty or
            malformed; a column that it does not have; a text that is not a string; or filters that
            leave nothing.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit = {limit}: must be at least 1.")
    lengths = _lengths(min_tokens, max_tokens, count_tokens)
    libraries = None
    if docs.is_docs(source) and domain_column in (None, "domain"):
        domain_column, libraries = "domain", list(domains) or None
    wanted = Wanted(text_column, prompt_column, domain_column, tuple(keep_columns))
    stream: Iterator[Batch]
    if libraries and docs.parse(source)[1] is None:
        # Asked of the dataset itself, which refuses a library that it has not before it reads the
        # others.
        stream = iter([_columns_of(docs.read(source, libraries))])
    else:
        stream = batches(
            source,
            columns=wanted.names(),
            split=split,
            name=name,
            revision=revision,
            streaming=streaming or limit is not None,
            dialect=dialect,
        )
    report: Report = {"rows": 0, "no text": 0}
    if domains:
        report["other domains"] = 0
    texts = wanted_columns(stream, source, wanted, report)
    texts = filters.with_texts(texts, source, text_column, report)
    of_rows = filters.Domains(domain_column, label(source), frozenset(domains))
    texts = filters.with_domains(texts, source, of_rows, report)
    if lengths is not None:
        lengths.start(report)
        texts = filters.in_length(texts, lengths, report)
    table, fingerprint = _first_rows(texts, limit)
    _check_left(table, source, report)
    if "prompt" in table:
        filters.check_prompts(table["prompt"], source, prompt_column or "prompt")
    order = ("text", "domain", "prompt", *keep_columns)
    frame = _frame({column: table[column] for column in order if column in table})
    frame.attrs = {
        "source": source,
        "fingerprint": fingerprint,
        "report": {**report, "kept": len(frame)},
    }
    return frame


def _lengths(
    least: int | None, most: int | None, count_tokens: filters.CountTokens | None
) -> filters.Lengths | None:
    if least is None and most is None:
        return None
    if count_tokens is None:
        raise ValueError(
            "data.min_tokens and data.max_tokens need count_tokens, a function that counts the "
            "tokens of a list of texts."
        )
    return filters.Lengths(least, most, count_tokens)


def _columns_of(frame: pd.DataFrame) -> Columns:
    return {str(name): list(frame[name].astype(object)) for name in frame}


def _first_rows(stream: Iterable[Columns], limit: int | None) -> tuple[Columns, str]:
    """The rows of a stream, `limit` at most, and the fingerprint of their texts."""
    table: Columns = {}
    digest = hashlib.sha256()
    for batch in stream:
        if limit is not None:
            room = limit - len(table.get("text", ()))
            batch = {column: values[:room] for column, values in batch.items()}
        for column, values in batch.items():
            table.setdefault(column, []).extend(values)
        # While they are in the processor's cache.
        update_digest(digest, batch["text"])
        if limit is not None and len(table["text"]) >= limit:
            break
    return table, digest.hexdigest()


def _check_left(table: Columns, source: str, report: Report) -> None:
    if report["rows"] == 0:
        raise ValueError(f"data.source = '{source}': the dataset is empty.")
    if not table.get("text"):
        dropped = [
            f"{reason}: {rows}" for reason, rows in report.items() if reason != "rows" and rows
        ]
        parted = "; in a .txt file an empty line parts two texts" if ".txt" in source else ""
        raise ValueError(
            f"data.source = '{source}': the filters drop all of its {report['rows']} rows "
            f"({', '.join(dropped)}){parted}."
        )


def _frame(table: Columns) -> pd.DataFrame:
    """A frame of dtype object from equally long lists.

    It is filled in the form that pandas keeps, which it then need not copy.
    """
    cells_CN = np.empty((len(table), len(table["text"])), object)
    for row_N, values in zip(cells_CN, table.values(), strict=True):
        # Unlike an assignment of the list, this never looks into lists among the values.
        row_N[:] = np.fromiter(values, object, len(values))
    return pd.DataFrame(cells_CN.T, columns=list(table), dtype=object, copy=False)


def rows(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    dialect: Dialect = Dialect(),
) -> Iterator[Row]:
    """Yield the rows of any source that `load_texts` knows, one dict each, in order.

    Nothing is read before the first row is asked for.

    Args:
        columns: if the source has all of these, the others may be left unread.

    Raises:
        ValueError: as `load_texts`.
    """
    return rows_of(
        batches(
            source,
            columns=columns,
            split=split,
            name=name,
            revision=revision,
            streaming=streaming,
            dialect=dialect,
        )
    )


def batches(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    dialect: Dialect = Dialect(),
) -> Iterator[Batch]:
    """Yield the rows of a source in batches; arguments as of `rows` and `shards`."""
    for shard in shards(
        source,
        columns=columns,
        optional=optional,
        split=split,
        name=name,
        revision=revision,
        streaming=streaming,
        dialect=dialect,
    ):
        yield from shard.read()


def shards(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    optional: Sequence[str] = (),
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    dialect: Dialect = Dialect(),
) -> Iterator[Shard]:
    """Yield the parts of a source, in the order of its rows, each to be read when it is needed.

    A part is a file of a folder or of a dataset that is streamed from the hub; any other source is
    one part. Arguments as of `rows`.

    Args:
        optional: columns that are read too where the source has them.
    """
    source = str(source)
    if docs.is_docs(source):
        yield Shard(source, lambda: iter([_columns_of(docs.read(source))]))
    elif source.startswith(corpora.PREFIX):
        yield Shard(source, lambda: grouped(corpora.rows(source, columns)))
    elif os.path.isdir(source):
        dataset = hub.Dataset(source, split, name, None, streaming)
        yield from hub.folder_shards(dataset, columns, optional, dialect)
    elif os.path.exists(source) or reading.extension(source):
        yield Shard(
            source,
            functools.partial(
                reading.read_batches, source, columns=columns, optional=optional, dialect=dialect
            ),
        )
    elif _HUB_ID.fullmatch(source) and not (Path(source).suffix and "/" not in source):
        dataset = hub.Dataset(source, split, name, revision, streaming)
        yield from hub.dataset_shards(dataset, columns, optional)
    else:
        allowed = f"{', '.join(reading.EXTENSIONS)}, also with {', '.join(containers.COMPRESSED)}"
        raise ValueError(
            f"data.source = '{source}': neither 'docs', nor a file that exists ({allowed}), nor "
            "a Hugging Face dataset id."
        )


def is_local(source: str | Path) -> bool:
    """Return whether a source has neither splits nor configurations nor revisions.

    It is a corpus that comes with jaxloop, `docs`, or a file (whether or not it exists).
    """
    source = str(source)
    return _is_shipped(source) or reading.extension(source) is not None or Path(source).is_file()


def is_here(source: str | Path) -> bool:
    """Return whether a source can be read without a network.

    It is one that comes with jaxloop, or a file or a folder that exists.
    """
    source = str(source)
    return _is_shipped(source) or Path(source).exists()


def _is_shipped(source: str) -> bool:
    return docs.is_docs(source) or source.startswith(corpora.PREFIX)


def identity(source: str | Path) -> tuple[str | int, ...]:
    """Return a tuple that changes when the rows of a source may have changed.

    For corpora and `docs` it depends on their content; for a file on its absolute path, its size
    and its time of modification; for a folder on those of its data files.
    """
    source = str(source)
    if docs.is_docs(source):
        return (docs.identity(source),)
    if source.startswith(corpora.PREFIX):
        return (corpora.identity(corpora.name_of(source)),)
    path = Path(source)
    if path.is_dir():
        return (str(path.resolve()), *_of_files(path))
    if not path.is_file():
        return (source,)
    return (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)


def _of_files(folder: Path) -> Iterator[str | int]:
    """Path, size and time of modification of the files that decide a folder's rows."""
    for name in folders.deciding_files(str(folder)):
        file = folder / name
        if file.is_file():
            about = file.stat()
            yield from (name, about.st_size, about.st_mtime_ns)


def label(source: str | Path) -> str:
    """Return a short name of a source: the corpus's name, or the file's name without extensions."""
    source = str(source)
    if source.startswith(corpora.PREFIX):
        return source.removeprefix(corpora.PREFIX)
    name = Path(source).name or source
    while reading.extension(name) or name.lower().endswith(containers.COMPRESSED):
        name = name.rsplit(".", 1)[0]
    return name
