"""Texts to study, from a corpus that comes with jaxloop, a local file or the Hugging Face hub, as
one table with a report and a fingerprint.
"""

import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.data import chat, containers, corpora, delimited, docs, folders, reading
from jaxloop.data.delimited import Dialect
from jaxloop.data.docs import fingerprint

__all__ = [
    "count_safely",
    "fingerprint",
    "identity",
    "is_here",
    "is_local",
    "label",
    "load_texts",
    "rows",
]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_BATCH = 1024
Batch = Mapping[str, list]


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
    """The texts of a source that pass the filters, in the order of the source.

    Args:
      source: `jaxloop:NAME` (a corpus that comes with jaxloop, see `corpora`), `docs` (the embedded
      dataset;
        `docs:scipy,numpy` for some of its libraries, `docs:installed` for the libraries as they are
        installed here), a file (`reading.EXTENSIONS`), a folder that `datasets` wrote or can read,
        or a Hugging Face dataset id.
      text_column: the column that holds the text. A dotted name is a path into nested columns, as
      in `answers.text.0`. The default is also
        found in `messages` (or `conversations`) of turns with role and content, whose last answer
        is the text and what stands before it the prompt, and in `completion` with `prompt`.
      prompt_column: the column that holds the instruction of a text, if it has its own.
      domain_column: the column that holds the domain; without one, the domain of every row is the
      name of the source.
      domains: keep only rows of these domains; empty: all.
      keep_columns: further columns to carry along.
      split, name, revision, streaming: of a Hugging Face dataset (`name` is its configuration).
      Streaming reads rows as they are needed.
      limit: stop after this many rows have passed the filters.
      min_tokens, max_tokens: keep texts with min_tokens < tokens < max_tokens, both bounds strict
      as in the paper.
      count_tokens: the number of tokens of each text of a list; required by the two filters.
      dialect: of a csv or tsv file.

    Returns: DataFrame with columns text, domain, prompt (with `prompt_column`), then
    `keep_columns`, of dtype object, which unlike pandas'
      string type holds every Python string. `frame.attrs` has `source`, `fingerprint` (SHA-256 over
      the texts) and `report` (rows read and what each filter dropped). Rows without a text (null,
      or no such key in a JSON row) are dropped; empty texts are texts.

    Raises: ValueError, in one sentence, for a source that does not exist, cannot be reached, is
    empty or malformed; a column that it
      does not have; a text that is not a string; or filters that leave nothing.
    """
    source = str(source)
    if count_tokens is None and (min_tokens is not None or max_tokens is not None):
        raise ValueError(
            "data.min_tokens and data.max_tokens need count_tokens, a function that counts the "
            "tokens of a list of texts."
        )
    if limit is not None and limit < 1:
        raise ValueError(f"data.limit = {limit}: must be at least 1.")
    libraries = None
    if docs.is_docs(source) and domain_column in (None, "domain"):
        domain_column, libraries = "domain", list(domains) or None
    wanted = {
        "data.text_column": [text_column],
        "data.prompt_column": [prompt_column],
        "data.domain_column": [domain_column],
    }
    wanted = {field: [c for c in named if c is not None] for field, named in wanted.items()} | {
        "data.keep_columns": list(keep_columns)
    }
    columns = list(dict.fromkeys(itertools.chain(*wanted.values())))
    if libraries and docs.parse(source)[1] is None:
        # Asked of the dataset itself, which refuses a library that it has not before it reads the
        # others.
        stream = iter([docs.read(source, libraries).astype(object).to_dict("list")])
    else:
        hub = dict(split=split, name=name, revision=revision, streaming=streaming)
        stream = batches(source, columns=columns, dialect=dialect, **hub)
    report = {"rows": 0, "no text": 0}
    texts = _with_texts(_checked(stream, source, wanted, report), source, text_column, report)
    default_domain = label(source)
    report |= {"other domains": 0} if domains else {}
    low, high = f"at most {min_tokens} tokens", f"at least {max_tokens} tokens"
    report |= {low: 0} if min_tokens is not None else {}
    report |= {high: 0} if max_tokens is not None else {}
    texts = _with_domains(texts, source, set(domains), domain_column, default_domain, report)
    if min_tokens is not None or max_tokens is not None:
        texts = _in_length(texts, min_tokens, max_tokens, count_tokens, report, low, high)
    table: dict[str, list] = {}
    digest = docs.digest_texts(())
    for batch in texts:
        if limit is not None:
            room = limit - len(table.get("text", ()))
            batch = {column: values[:room] for column, values in batch.items()}
        for column, values in batch.items():
            table.setdefault(column, []).extend(values)
        # While they are in the processor's cache.
        docs.digest_texts(batch["text"], digest)
        if limit is not None and len(table["text"]) >= limit:
            break
    if report["rows"] == 0:
        raise ValueError(f"data.source = '{source}': the dataset is empty.")
    if not table.get("text"):
        lost = ", ".join(
            f"{reason}: {count}" for reason, count in report.items() if reason != "rows" and count
        )
        raise ValueError(
            f"data.source = '{source}': the filters drop all of its {report['rows']} rows ({lost})."
        )
    if "prompt" in table:
        _need_strings(table["prompt"], source, prompt_column or "prompt")
    frame = _frame(
        {
            column: table[column]
            for column in ("text", "domain", "prompt", *keep_columns)
            if column in table
        }
    )
    frame.attrs = {
        "source": source,
        "fingerprint": digest.hexdigest(),
        "report": {**report, "kept": len(frame)},
    }
    return frame


def _frame(table):
    """A frame of dtype object from equally long lists, filled in the form that pandas keeps, which
    it then need not copy.
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
) -> Iterator[dict]:
    """The rows of any source that `load_texts` knows, one dict each, in order; `columns`, where the
    source has them all, spares it the others.

    Raises ValueError as `load_texts`; nothing is read before the first row is asked for.
    """
    for batch in batches(
        source,
        columns=columns,
        split=split,
        name=name,
        revision=revision,
        streaming=streaming,
        dialect=dialect,
    ):
        if isinstance(batch, list):
            yield from batch
        else:
            for values in zip(*batch.values(), strict=True):
                yield dict(zip(batch, values, strict=True))


def batches(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    split: str = "train",
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    dialect: Dialect = Dialect(),
) -> Iterator[Batch | list[dict]]:
    """The rows of a source, some at a time: columns where all rows have the same, else one dict
    each (`reading.read_batches`).
    """
    source = str(source)
    if docs.is_docs(source):
        yield docs.read(source).astype(object).to_dict("list")
    elif source.startswith(corpora.PREFIX):
        yield from _grouped(corpora.rows(source, columns))
    elif os.path.isdir(source):
        yield from _folder(source, columns, split, name, streaming, dialect)
    elif os.path.exists(source) or reading.extension(source):
        yield from reading.read_batches(source, columns=columns, dialect=dialect)
    elif _HUB_ID.fullmatch(source) and not (Path(source).suffix and "/" not in source):
        yield from _grouped(_hub_rows(source, columns, split, name, revision, streaming))
    else:
        allowed = f"{', '.join(reading.EXTENSIONS)}, also with {', '.join(containers.COMPRESSED)}"
        raise ValueError(
            f"data.source = '{source}': neither 'docs', nor a file that exists ({allowed}), nor "
            "a Hugging Face dataset id."
        )


def _grouped(stream):
    """Rows that all have the same columns, as batches."""
    while rows := list(itertools.islice(stream, _BATCH)):
        yield {column: [row[column] for row in rows] for column in rows[0]}


def is_local(source: str | Path) -> bool:
    """Whether a source has neither splits nor configurations nor revisions: a corpus that comes
    with jaxloop, `docs`, or a file (there or not).
    """
    source = str(source)
    return _in_the_box(source) or reading.extension(source) is not None or Path(source).is_file()


def is_here(source: str | Path) -> bool:
    """Whether a source can be read without a network: one that comes with jaxloop, a file or a
    folder that exists.
    """
    source = str(source)
    return _in_the_box(source) or Path(source).exists()


def _in_the_box(source):
    return docs.is_docs(source) or source.startswith(corpora.PREFIX)


def identity(source: str | Path) -> tuple:
    """What the rows of a source depend on: of corpora and `docs` their content, of a file its
    place, however written, size and time of change.
    """
    source = str(source)
    if docs.is_docs(source):
        return (docs.identity(source),)
    if source.startswith(corpora.PREFIX):
        return (corpora.identity(corpora.name_of(source)),)
    path = Path(source)
    return (
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns)
        if path.is_file()
        else (source,)
    )


def label(source: str | Path) -> str:
    """A short name of a source: of a corpus its own, of a file the name without its endings."""
    source = str(source)
    if source.startswith(corpora.PREFIX):
        return source.removeprefix(corpora.PREFIX)
    name = Path(source).name or source
    while reading.extension(name) or name.lower().endswith(containers.COMPRESSED):
        name = name.rsplit(".", 1)[0]
    return name


def _folder(source, columns, split, name, streaming, dialect):
    """Rows of a folder that `datasets` wrote, or whose files it sorts into splits; the files
    themselves are read as any other file is.
    """
    if any(
        os.path.exists(os.path.join(source, file)) for file in ("state.json", "dataset_dict.json")
    ):
        yield from _grouped(_hub_rows(source, columns, split, name, None, streaming))
        return
    names = folders.data_files(source)
    import datasets

    try:
        config = datasets.load_dataset_builder(source, name).config
        files = dict(config.data_files or {})
        own = not getattr(config, "features", None) and all(
            reading.extension(file) for part in files.values() for file in part
        )
    except Exception as error:
        raise ValueError(
            f"data.source = '{source}': {_hub_problem(error, source, split, name, None, True)}."
        ) from error
    if not own or split not in files:
        yield from _grouped(_hub_rows(source, columns, split, name, None, streaming))
        return
    folders.check_read(source, names, files)
    seen: set[str] = set()
    for file in files[split]:
        for batch in reading.read_batches(file, columns=columns, dialect=dialect):
            if isinstance(batch, Mapping) and (
                lacking := [c for c in columns or () if c in seen and c not in batch]
            ):
                raise ValueError(
                    f"data.source = '{file}': has no column {lacking[0]!r}, which other files of "
                    "its folder have."
                )
            seen |= batch.keys() if isinstance(batch, Mapping) else {}.keys()
            yield batch


def _hub_rows(source, columns, split, name, revision, streaming):
    """Rows of a dataset on the hub, or of a folder that `datasets` reads or has written."""
    import datasets

    local = os.path.isdir(source)
    try:
        if local and any(
            os.path.exists(os.path.join(source, file))
            for file in ("state.json", "dataset_dict.json")
        ):
            data = datasets.load_from_disk(source)
            if isinstance(data, datasets.DatasetDict):
                if split not in data:
                    raise ValueError(f"Unknown split {split!r}. Should be one of {list(data)}.")
                data = data[split]
        else:
            data = datasets.load_dataset(
                source, name, split=split, revision=revision, streaming=streaming
            )
        if columns and set(columns) <= set(data.column_names or ()):
            data = data.select_columns(list(dict.fromkeys(columns)))
        labels = {
            c: f.names
            for c, f in (data.features or {}).items()
            if isinstance(f, datasets.ClassLabel)
        }
        for row in data:
            yield (
                {c: reading.named([v], labels[c])[0] if c in labels else v for c, v in row.items()}
                if labels
                else row
            )
    except GeneratorExit:
        raise
    except Exception as error:
        raise ValueError(
            f"data.source = '{source}': "
            f"{_hub_problem(error, source, split, name, revision, local)}."
        ) from error


def _hub_problem(error, source, split, name, revision, local):
    message = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    kind = type(error).__name__
    if kind == "DatasetNotFoundError":
        at = f" at revision {revision!r}" if revision else ""
        return (
            f"the folder cannot be read ({message})"
            if local
            else f"the Hugging Face hub has no such dataset{at}, or it needs a login"
        )
    if kind == "EmptyDatasetError":
        return "this folder has no data file"
    if "Unknown split" in message or "split" in message and "not found" in message:
        return f"data.split = '{split}' is not one of its splits ({message})"
    if "BuilderConfig" in message or "Config name is missing" in message:
        return f"data.name = {name!r} is not one of its configurations ({message})"
    if "script" in message.lower() and "support" in message.lower():
        return "it is a loading script, and remote code is never run; use a dataset of data files"
    if (
        isinstance(error, ConnectionError | TimeoutError)
        or "reach" in message
        or kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError")
    ):
        return (
            "the Hugging Face hub cannot be reached and the dataset is not in the local cache; "
            "download it first, or give a local file"
        )
    if isinstance(error, UnicodeDecodeError) or "utf-8" in message.lower() or "UTF8" in message:
        return f"not UTF-8 ({message})"
    return f"`datasets` cannot read it ({kind}: {message[:200]})"


def _checked(stream, source, wanted, report):
    """Batches of the wanted columns alone, `text` and, where there is one, `prompt` among them.

    wanted: field of the config -> names of columns. A column that some rows lack has no value
    there; one that no row has is refused, with the columns of all rows. A text that no column is
    named for may be found in turns or completions (`chat`), and is counted.
    """
    seen: dict[str, None] = {}
    missing = {(field, column) for field, columns in wanted.items() for column in columns}
    text, prompt = wanted["data.text_column"][0], wanted["data.prompt_column"][:1]
    others = dict.fromkeys([*wanted["data.domain_column"], *wanted["data.keep_columns"]])
    waiting, form = [], text if text in ("messages", "conversations") else None
    chosen = text != "text" or bool(prompt)
    for batch in stream:
        fixed = not isinstance(batch, list)
        count = len(next(iter(batch.values()), ())) if fixed else len(batch)
        if missing:
            seen |= batch if fixed else dict.fromkeys(c for row in batch for c in row)
            if not chosen and form is None and text not in seen:
                form = chat.form_of(seen)
            missing = {
                (f, c)
                for f, c in missing
                if _found(c, batch, seen) is None and not (form and f == "data.text_column")
            }
            if missing and fixed:
                raise ValueError(_no_column(source, missing, seen, wanted))
        found = {f"_{column}": _column(batch, column, count) for column in others}
        if form:
            parts = {
                column: _column(batch, column, count) for column in ("prompt", "completion", form)
            }
            found["text"], found["prompt"] = chat.pair(form, parts)
            report[f"read from {form}"] = report.get(f"read from {form}", 0) + count
        else:
            found["text"] = _column(batch, text, count)
        if prompt:
            found["prompt"] = _column(batch, prompt[0], count)
        if missing:
            # Nothing is given out before every column was seen in some row, so that a wrong name is
            # not taken for rows without a text.
            waiting.append(found)
            continue
        yield from waiting
        waiting = []
        yield found
    if waiting:
        raise ValueError(_no_column(source, missing, seen, wanted))


def _found(column, batch, seen):
    """How a column is found: by its name, or as a path into nested ones; None where it is not."""
    if column in seen:
        return column
    head = column.split(".")[0]
    if head == column or head not in seen:
        return None
    values = (
        batch.get(head, ()) if not isinstance(batch, list) else (row.get(head) for row in batch)
    )
    return (
        column
        if any(_inside(value, column.split(".")[1:], _NONE) is not _NONE for value in values)
        else None
    )


_NONE = object()


def _inside(value, path, absent=None):
    """What lies at a path of keys and of places in lists; `absent` where nothing does."""
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return absent
    return value


def _column(batch, column, count):
    if not isinstance(batch, list):
        if column in batch:
            return batch[column]
        head, *path = column.split(".")
        return (
            [_inside(value, path) for value in batch[head]]
            if path and head in batch
            else [None] * count
        )
    head, *path = column.split(".")
    if not path:
        return [row.get(column) for row in batch]
    return [row[column] if column in row else _inside(row.get(head), path) for row in batch]


def _no_column(source, missing, seen, wanted):
    """The refusal of the first column, in the order of the fields, that no row has."""
    field, column = next(
        (f, c) for f, columns in wanted.items() for c in columns if (f, c) in missing
    )
    close = difflib.get_close_matches(str(column), list(map(str, seen)), 1, 0.6)
    is_table = reading.extension(source) in (".csv", ".tsv")
    known = (delimited.hint(list(seen)) if is_table else "") or (
        f"; did you mean {close[0]!r}" if close else ""
    )
    names = [name if len(name) <= 40 else f"{name[:40]}…" for name in map(str, seen)]
    return f"{field} = {column!r}: '{source}' has the columns {', '.join(names)}{known}."


def _with_texts(stream, source, column, report):
    """Batches of rows that have a text. Numbers are texts, and counted; what is neither is refused."""
    for batch in stream:
        texts = batch["text"]
        report["rows"] += len(texts)
        if set(map(type, texts)) <= {str}:
            yield batch
            continue
        for place, text in enumerate(texts):
            if isinstance(text, float) and text != text:
                texts[place] = None
            elif isinstance(text, int | float) and not isinstance(text, bool):
                texts[place] = str(text)
                report["numbers read as texts"] = report.get("numbers read as texts", 0) + 1
            elif text is not None and not isinstance(text, str):
                number = report["rows"] - len(texts) + place + 1
                raise ValueError(
                    f"data.text_column = {column!r}: row {number} of '{source}' has "
                    f"{_kind(text)} there; a text must be a string."
                )
        kept = [text is not None for text in texts]
        report["no text"] += kept.count(False)
        yield _filtered(batch, kept)


def _filtered(batch, kept):
    return {column: list(itertools.compress(values, kept)) for column, values in batch.items()}


def _kind(value):
    return "null" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _with_domains(stream, source, domains, column, default, report):
    """Batches with the column `domain`, of these domains if there are any; when the stream has
    ended, a domain that it never had is an error (a typing error would shrink the data).
    """
    seen: dict[str, None] = {}
    asked = {_plain_name(d): d for d in domains}
    for batch in stream:
        values = (
            [default] * len(batch["text"])
            if column is None
            else list(map(_domain, batch[f"_{column}"]))
        )
        kept_columns = {c[1:]: v for c, v in batch.items() if c.startswith("_")}
        batch = (
            kept_columns
            | {c: v for c, v in batch.items() if not c.startswith("_")}
            | {"domain": values}
        )
        if domains:
            # A number or a truth value may be written in several ways: 1 is 1.0, and true is True.
            batch["domain"] = values = [
                v if v in domains else asked.get(_plain_name(v), v) for v in values
            ]
            seen |= dict.fromkeys(values)
            kept = [v in domains for v in values]
            report["other domains"] += kept.count(False)
            batch = _filtered(batch, kept)
        yield batch
    for domain in sorted(domains - set(seen)) if seen else ():
        close = difflib.get_close_matches(domain, list(seen), 1, 0.5)
        known = (
            f"did you mean {close[0]!r}"
            if close
            else "it has "
            f"{', '.join(map(repr, sorted(seen)[:10]))}{', ...' if len(seen) > 10 else ''}"
        )
        raise ValueError(f"data.domains: '{source}' has no row of the domain {domain!r}; {known}.")


def _domain(value):
    """The name of a domain: a whole number without its point, truth in small letters, as JSON and
    most people write them.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _plain_name(name):
    return re.sub(
        r"^(-?\d+)\.0+$", r"\1", name.lower() if name.lower() in ("true", "false") else name
    )


def _in_length(stream, low, high, count_tokens, report, too_short, too_long):
    for whole in stream:
        for start in range(0, len(whole["text"]), _BATCH):
            batch = {column: values[start : start + _BATCH] for column, values in whole.items()}
            counts = count_safely(count_tokens, batch["text"])
            short = [low is not None and count <= low for count in counts]
            long = [
                high is not None and count >= high and not less
                for count, less in zip(counts, short, strict=True)
            ]
            for name, dropped in ((too_short, short), (too_long, long)):
                if any(dropped):
                    report[name] += sum(dropped)
            yield _filtered(batch, [not (a or b) for a, b in zip(short, long, strict=True)])


def count_safely(
    count_tokens: Callable[[list[str]], Sequence[int]], texts: Iterable[str]
) -> Sequence[int]:
    """`count_tokens` of texts that may hold lone surrogates, which tokenizers refuse: each is
    counted as U+FFFD.

    Raises ValueError where the function does not return one number per text.
    """
    clean = [
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts
    ]
    counts = count_tokens(clean)
    if len(counts) != len(clean):
        raise ValueError(
            f"count_tokens: gave {len(counts)} numbers for {len(clean)} texts; it must give one "
            "per text."
        )
    return counts


def _need_strings(values, source, column):
    for value in values:
        if not isinstance(value, str):
            raise ValueError(
                f"data.prompt_column = {column!r}: '{source}' has {_kind(value)} there; a prompt "
                "must be a string."
            )
