"""The corpora that come with jaxloop: real human text under free licences, cleaned.

They are the same on every machine. Wherever a source is asked for, `jaxloop:NAME` is one of them.
Where each is from, under what licence, and how it was cleaned: jaxloop/assets/corpora/ORIGIN.md;
scripts/make_corpora.py makes them again.
"""

import difflib
import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data.batches import ROWS_OF_A_BATCH, Row

PREFIX = "jaxloop:"
FOLDER = Path(__file__).resolve().parents[1] / "assets" / "corpora"
# The embedded documentation lies in two files, which `data.docs` reads as one dataset.
DOCS = ("docs", "docs_pretrain")


@functools.cache
def index() -> Mapping[str, Mapping[str, Any]]:
    """Return {name of a file: facts about it}.

    The facts are rows, columns, fingerprint (SHA-256 over the texts, as `digest.fingerprint`),
    bytes, and sha256 (of the file).
    """
    return json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))


def names() -> tuple[str, ...]:
    """Return the names that may follow `jaxloop:`."""
    return tuple(name for name in index() if name != DOCS[1])


def name_of(source: str) -> str:
    """Return the name in `jaxloop:NAME`.

    Raises:
        ValueError: the name is not known; the message lists the names and the nearest one.
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
    """Return a word that identifies a corpus and its content.

    Another release of jaxloop may have other texts under the same name.
    """
    return f"{PREFIX}{name}@{index()[name]['fingerprint'][:16]}"


def licence(source: str) -> str | None:
    """Return the licence of a corpus in words, as ORIGIN.md has it; None for other sources."""
    name = source.removeprefix(PREFIX)
    if name not in names() or not (source.startswith(PREFIX) or source == DOCS[0]):
        return None
    for line in (FOLDER / "ORIGIN.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == name and len(cells) > 5:
            return cells[5].removesuffix(", see below")
    return None


def read(name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table of a file in `index`, or some of its columns.

    Raises:
        ValueError: the file is absent or not what was shipped.
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
    """Return a corpus as a table: str columns of dtype object, numbers as they are.

    Raises:
        ValueError: as `name_of` and `read`.
    """
    frame = read(name_of(name)).to_pandas()
    texts = [column for column in frame if not pd.api.types.is_numeric_dtype(frame[column])]
    return frame.astype(dict.fromkeys(texts, object))


def rows(source: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of `jaxloop:NAME`, one dict each, in order.

    Args:
        columns: if the corpus has all of these, only they are read.

    Raises:
        ValueError: as `load`.
    """
    name = name_of(source)
    chosen = columns if columns and set(columns) <= set(index()[name]["columns"]) else None
    for batch in read(name, chosen).to_batches(ROWS_OF_A_BATCH):
        yield from batch.to_pylist()
