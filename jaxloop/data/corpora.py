"""The corpora that come with jaxloop: real human text under free licences, cleaned, the same on
every machine.

Wherever a source is asked for, `jaxloop:NAME` is one of them. Where each is from, under what
licence, and how it was cleaned: jaxloop/assets/corpora/ORIGIN.md; scripts/make_corpora.py makes
them again.
"""

import difflib
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

PREFIX = "jaxloop:"
FOLDER = Path(__file__).resolve().parents[1] / "assets" / "corpora"
# The embedded documentation lies in two files, which `data.docs` reads as one dataset.
DOCS = ("docs", "docs_pretrain")
_BATCH = 1024


@functools.cache
def index() -> Mapping[str, Mapping]:
    """What is known of every file: name -> rows, columns, fingerprint (SHA-256 over the texts, as
    `data.fingerprint`), bytes, sha256 (of the file)."""
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """What may stand after `jaxloop:`."""
    return tuple(name for name in index() if name != DOCS[1])


def name_of(source: str) -> str:
    """The name in `jaxloop:NAME`. Raises ValueError, with the names there are and the nearest, for
    one that is not known.
    """
    name = source.removeprefix(PREFIX)
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1, 0.5)
        hint = f"; did you mean '{PREFIX}{close[0]}'" if close else ""
        raise ValueError(
            f"data.source = '{source}': no such corpus comes with jaxloop, "
            f"but {', '.join(PREFIX + n for n in names())}{hint}."
        )
    return name


def identity(name: str) -> str:
    """A corpus and its content, in one word: another release of jaxloop may have other texts under
    the same name.
    """
    return f"{PREFIX}{name}@{index()[name]['fingerprint'][:16]}"


def read(name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The table of a file in `index`, or some of its columns. Raises ValueError where the file is
    absent or not what was shipped.
    """
    path = FOLDER / f"{name}.parquet"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"data.source = '{PREFIX}{name}': {path} cannot be read ({error.strerror or error}); "
            "install jaxloop again."
        ) from error
    if hashlib.sha256(data).hexdigest() != index()[name]["sha256"]:
        raise ValueError(
            f"data.source = '{PREFIX}{name}': {path} is damaged, its checksum is not that of "
            "index.json; "
            "install jaxloop again."
        )
    return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))


def load(name: str) -> pd.DataFrame:
    """A corpus as a table: str columns of dtype object, numbers as they are. Raises ValueError as
    `name_of` and `read`.
    """
    frame = read(name_of(name)).to_pandas()
    return frame.astype(
        {column: object for column in frame if not pd.api.types.is_numeric_dtype(frame[column])}
    )


def rows(source: str, columns: Sequence[str] | None = None) -> Iterator[dict]:
    """The rows of `jaxloop:NAME`, one dict each, in order; `columns`, where it has them all, spares
    the others. Raises ValueError as `load`.
    """
    name = name_of(source)
    chosen = columns if columns and set(columns) <= set(index()[name]["columns"]) else None
    for batch in read(name, chosen).to_batches(_BATCH):
        yield from batch.to_pylist()
