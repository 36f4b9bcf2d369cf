"""Texts to study, from a corpus that comes with jaxloop, a local file or the Hugging Face hub, as one table with a
report and a fingerprint."""

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from jaxloop.data import corpora, docs, reading
from jaxloop.data.docs import fingerprint

__all__ = ["count_safely", "fingerprint", "identity", "is_here", "is_local", "label", "load_texts", "rows"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_BATCH = 1024


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
) -> pd.DataFrame:
    """The texts of a source that pass the filters, in the order of the source.

    Args:
      source: `jaxloop:NAME` (a corpus that comes with jaxloop, see `corpora`), `docs` (the embedded dataset;
        `docs:scipy,numpy` for some of its libraries, `docs:installed` for the libraries as they are installed here),
        a file (`reading.EXTENSIONS`), a folder that `datasets` wrote or can read, or a Hugging Face dataset id.
      text_column: the column that holds the text.
      prompt_column: the column that holds the instruction of a text, if it has its own.
      domain_column: the column that holds the domain; without one, the domain of every row is the name of the source.
      domains: keep only rows of these domains; empty: all.
      keep_columns: further columns to carry along.
      split, name, revision, streaming: of a Hugging Face dataset (`name` is its configuration). Streaming reads rows as they are needed.
      limit: stop after this many rows have passed the filters.
      min_tokens, max_tokens: keep texts with min_tokens < tokens < max_tokens, both bounds strict as in the paper.
      count_tokens: the number of tokens of each text of a list; required by the two filters.

    Returns: DataFrame with columns text, domain, prompt (with `prompt_column`), then `keep_columns`, of dtype object, which unlike pandas'
      string type holds every Python string. `frame.attrs` has `source`, `fingerprint` (SHA-256 over the texts) and `report` (rows read
      and what each filter dropped). Rows without a text (null, or no such key in a JSON row) are dropped; empty texts are texts.

    Raises: ValueError, in one sentence, for a source that does not exist, cannot be reached, is empty or malformed; a column that it
      does not have; a text that is not a string; or filters that leave nothing.
    """
    source = str(source)
    if count_tokens is None and (min_tokens is not None or max_tokens is not None):
        raise ValueError("data.min_tokens and data.max_tokens need count_tokens, a function that counts the tokens of a list of texts.")
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit = {limit}: must be at least 1.")
    wanted = [("data.text_column", text_column), ("data.prompt_column", prompt_column), ("data.domain_column", domain_column)]
    wanted += [("data.keep_columns", column) for column in keep_columns]
    wanted = [(field, column) for field, column in wanted if column is not None]
    libraries = None
    if docs.is_docs(source) and domain_column in (None, "domain"):
        domain_column, libraries = "domain", list(domains) or None
    columns = list(dict.fromkeys([column for _, column in wanted] + ([domain_column] if domain_column else [])))
    if libraries and docs.parse(source)[1] is None:
        # Asked of the dataset itself, which refuses a library that it has not before it reads the others.
        stream = iter(docs.read(source, libraries).astype(object).to_dict("records"))
    else:
        stream = rows(source, columns=columns, split=split, name=name, revision=revision, streaming=streaming)
    stream = _checked(stream, source, wanted)
    default_domain = label(source)
    report = {"rows": 0, "no text": 0}
    report |= {"other domains": 0} if domains else {}
    low, high = f"at most {min_tokens} tokens", f"at least {max_tokens} tokens"
    report |= {low: 0} if min_tokens is not None else {}
    report |= {high: 0} if max_tokens is not None else {}
    texts = _with_texts(stream, source, text_column, report)
    if domains:
        texts = _in_domains(texts, source, set(domains), domain_column, default_domain, report)
    if min_tokens is not None or max_tokens is not None:
        texts = _in_length(texts, text_column, min_tokens, max_tokens, count_tokens, report, low, high)
    kept = list(itertools.islice(texts, limit))
    if report["rows"] == 0:
        raise ValueError(f"data.source = '{source}': the dataset is empty.")
    if not kept:
        lost = ", ".join(f"{reason}: {count}" for reason, count in report.items() if reason != "rows" and count)
        raise ValueError(f"data.source = '{source}': the filters drop all of its {report['rows']} rows ({lost}).")
    table = {"text": [row[text_column] for row in kept]}
    table["domain"] = [default_domain if domain_column is None else _domain(row.get(domain_column)) for row in kept]
    if prompt_column is not None:
        table["prompt"] = _strings(kept, source, prompt_column)
    table |= {column: [row.get(column) for row in kept] for column in keep_columns if column not in table}
    frame = pd.DataFrame({column: pd.Series(values, dtype=object) for column, values in table.items()})
    frame.attrs = {"source": source, "fingerprint": fingerprint(frame), "report": {**report, "kept": len(kept)}}
    return frame


def rows(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Iterator[dict]:
    """The rows of any source that `load_texts` knows, one dict each, in order; `columns`, where the source has them all, spares it the others.

    Raises ValueError as `load_texts`; nothing is read before the first row is asked for.
    """
    source = str(source)
    if docs.is_docs(source):
        yield from docs.read(source).astype(object).to_dict("records")
    elif source.startswith(corpora.PREFIX):
        yield from corpora.rows(source, columns)
    elif os.path.isdir(source):
        yield from _hub_rows(source, columns, split, name, None, streaming)
    elif os.path.exists(source) or reading.extension(source):
        yield from reading.read_rows(source, columns=columns)
    elif _HUB_ID.fullmatch(source) and not (Path(source).suffix and "/" not in source):
        yield from _hub_rows(source, columns, split, name, revision, streaming)
    else:
        allowed = ", ".join(reading.EXTENSIONS)
        raise ValueError(f"data.source = '{source}': neither 'docs', nor a file that exists ({allowed}, also with .gz), nor a Hugging Face dataset id.")


def is_local(source: str | Path) -> bool:
    """Whether a source has neither splits nor configurations nor revisions: a corpus that comes with jaxloop,
    `docs`, or a file (there or not)."""
    source = str(source)
    return _in_the_box(source) or reading.extension(source) is not None or Path(source).is_file()


def is_here(source: str | Path) -> bool:
    """Whether a source can be read without a network: one that comes with jaxloop, a file or a folder that exists."""
    source = str(source)
    return _in_the_box(source) or Path(source).exists()


def _in_the_box(source):
    return docs.is_docs(source) or source.startswith(corpora.PREFIX)


def identity(source: str | Path) -> tuple:
    """What the rows of a source depend on: of corpora and `docs` their content, of a file its place, however
    written, size and time of change."""
    source = str(source)
    if docs.is_docs(source):
        return (docs.identity(source),)
    if source.startswith(corpora.PREFIX):
        return (corpora.identity(corpora.name_of(source)),)
    path = Path(source)
    return (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else (source,)


def label(source: str | Path) -> str:
    """A short name of a source: of a corpus its own, of a file the name without its endings."""
    source = str(source)
    if source.startswith(corpora.PREFIX):
        return source.removeprefix(corpora.PREFIX)
    name = Path(source).name or source
    while reading.extension(name) or name.lower().endswith(".gz"):
        name = name.rsplit(".", 1)[0]
    return name


def _hub_rows(source, columns, split, name, revision, streaming):
    """Rows of a dataset on the hub, or of a folder that `datasets` reads or has written."""
    import datasets

    local = os.path.isdir(source)
    try:
        if local and any(os.path.exists(os.path.join(source, file)) for file in ("state.json", "dataset_dict.json")):
            data = datasets.load_from_disk(source)
            if isinstance(data, datasets.DatasetDict):
                if split not in data:
                    raise ValueError(f"Unknown split {split!r}. Should be one of {list(data)}.")
                data = data[split]
        else:
            data = datasets.load_dataset(source, name, split=split, revision=revision, streaming=streaming)
        if columns and set(columns) <= set(data.column_names or ()):
            data = data.select_columns(list(dict.fromkeys(columns)))
        yield from data
    except GeneratorExit:
        raise
    except Exception as error:
        raise ValueError(f"data.source = '{source}': {_hub_problem(error, source, split, name, revision, local)}.") from error


def _hub_problem(error, source, split, name, revision, local):
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    kind = type(error).__name__
    if kind == "DatasetNotFoundError":
        at = f" at revision {revision!r}" if revision else ""
        return f"the folder cannot be read ({message})" if local else f"the Hugging Face hub has no such dataset{at}, or it needs a login"
    if kind == "EmptyDatasetError":
        return "this folder has no data file"
    if "Unknown split" in message or "split" in message and "not found" in message:
        return f"data.split = '{split}' is not one of its splits ({message})"
    if "BuilderConfig" in message or "Config name is missing" in message:
        return f"data.name = {name!r} is not one of its configurations ({message})"
    if "script" in message.lower() and "support" in message.lower():
        return "it is a loading script, and remote code is never run; use a dataset of data files"
    if isinstance(error, ConnectionError | TimeoutError) or "reach" in message or kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
        return "the Hugging Face hub cannot be reached and the dataset is not in the local cache; download it first, or give a local file"
    if isinstance(error, UnicodeDecodeError) or "utf-8" in message.lower() or "UTF8" in message:
        return f"not UTF-8 ({message})"
    return f"`datasets` cannot read it ({kind}: {message[:200]})"


def _checked(stream, source, wanted):
    """The stream, once its first row is seen to have the columns that the arguments name; `wanted` is pairs (field, column)."""
    first = next(stream, None)
    if first is None:
        return
    for field, column in wanted:
        if column not in first:
            present = list(first)
            close = difflib.get_close_matches(str(column), present, 1, 0.6)
            hint = f"; did you mean {close[0]!r}" if close else ""
            raise ValueError(f"{field} = {column!r}: '{source}' has the columns {', '.join(map(str, present))}{hint}.")
    yield first
    yield from stream


def _with_texts(stream, source, text_column, report):
    for row in stream:
        report["rows"] += 1
        text = row.get(text_column)
        if text is None:
            report["no text"] += 1
            continue
        if not isinstance(text, str):
            raise ValueError(f"data.text_column = {text_column!r}: row {report['rows']} of '{source}' has {_kind(text)} there; a text must be a string.")
        yield row


def _kind(value):
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _in_domains(stream, source, domains, column, default, report):
    """Rows of the domains; when the stream has ended, a domain that it never had is an error (a typing error would shrink the data)."""
    seen = set()
    for row in stream:
        domain = default if column is None else _domain(row.get(column))
        seen.add(domain)
        if domain in domains:
            yield row
        else:
            report["other domains"] += 1
    for domain in sorted(domains - seen) if seen else ():
        close = difflib.get_close_matches(domain, seen, 1, 0.5)
        hint = f"did you mean {close[0]!r}" if close else f"it has {', '.join(map(repr, sorted(seen)[:10]))}{', ...' if len(seen) > 10 else ''}"
        raise ValueError(f"data.domains: '{source}' has no row of the domain {domain!r}; {hint}.")


def _in_length(stream, column, low, high, count_tokens, report, too_short, too_long):
    while batch := list(itertools.islice(stream, _BATCH)):
        counts = count_safely(count_tokens, [row[column] for row in batch])
        for row, count in zip(batch, counts, strict=True):
            if low is not None and count <= low:
                report[too_short] += 1
            elif high is not None and count >= high:
                report[too_long] += 1
            else:
                yield row


def count_safely(count_tokens: Callable[[list[str]], Sequence[int]], texts: Iterable[str]) -> Sequence[int]:
    """`count_tokens` of texts that may hold lone surrogates, which tokenizers refuse: each is counted as U+FFFD.

    Raises ValueError where the function does not return one number per text.
    """
    clean = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
    counts = count_tokens(clean)
    if len(counts) != len(clean):
        raise ValueError(f"count_tokens: gave {len(counts)} numbers for {len(clean)} texts; it must give one per text.")
    return counts


def _domain(value):
    return "" if value is None else value if isinstance(value, str) else str(value)


def _strings(kept, source, column):
    values = [row.get(column) for row in kept]
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"data.prompt_column = {column!r}: '{source}' has {_kind(value)} there; a prompt must be a string.")
    return values
