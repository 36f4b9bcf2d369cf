"""The embedded dataset `docs`: human prose about software, the same on every machine.

Its records are the paragraphs in the docstrings of the Python standard library and of jaxloop's
dependencies, of the versions that jaxloop/assets/corpora/ORIGIN.md names. They were read from the
`.py` files with `ast` (nothing is imported), cleaned of code and mark-up (`prose.py`), and rid of
near-duplicates across all libraries, so that a held-out library shares no templated sentence with
the libraries that models were pretrained on (`docs_extraction.py`). The domain of a record is its
library.

`docs:installed` is the same extraction from the libraries that are installed here: with other
versions, other texts.
"""

import difflib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import corpora, docs_extraction, prose
from jaxloop.data.digest import digest_texts
from jaxloop.runtime.atomic_io import cache_folder

# Bases are pretrained on these (tqdm is not among them: its licence, the MPL, asks more of those
# who pass its text on) ...
PRETRAIN = tuple(
    "python numpy pandas jax transformers sklearn matplotlib mpl_toolkits datasets "
    "huggingface_hub flax optax orbax sentence_transformers "
    "numba pydantic rich jinja2 fsspec etils absl umap pygments patsy joblib dateutil PIL "
    "pyparsing fontTools".split()
)
# ... and studies fine-tune on these, which the bases never saw.
HELD_OUT = ("scipy", "statsmodels", "networkx", "nltk")
# The order of deduplication: a paragraph belongs to the first library that holds it.
LIBRARIES = PRETRAIN + HELD_OUT
INSTALLED = "installed"

# Distributions whose name is not the import name; "python" is the standard library.
_DISTRIBUTIONS = {
    "sklearn": "scikit-learn",
    "mpl_toolkits": "matplotlib",
    "orbax": "orbax-checkpoint",
    "sentence_transformers": "sentence-transformers",
    "absl": "absl-py",
    "umap": "umap-learn",
    "dateutil": "python-dateutil",
    "PIL": "pillow",
}


def load(libraries: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the dataset as it comes with jaxloop, or the part of it from some libraries.

    None of them need be installed.

    Args:
        libraries: names out of `LIBRARIES`; all when None. Rows keep the dataset's order, whatever
            the order here, and a paragraph that an earlier library of `LIBRARIES` holds too is not
            repeated, whether or not that one is asked for.

    Returns:
        Columns text, domain (the library), module (where it was found) and id (of the text).

    Raises:
        ValueError: a library is unknown.
    """
    wanted = set(_check_libraries(libraries, "docs"))
    parts = [
        name
        for name, part in zip(corpora.DOCS, (HELD_OUT, PRETRAIN), strict=True)
        if wanted & set(part)
    ]
    tables = [corpora.read(name).to_pandas() for name in reversed(parts)]
    table = pd.concat(tables, ignore_index=True).astype("str")
    return docs_extraction.with_ids(table[table["domain"].isin(wanted)].reset_index(drop=True))


def load_installed(
    libraries: Sequence[str] | None = None, *, cache: str | Path | Literal[False] | None = None
) -> pd.DataFrame:
    """Return the dataset, or the part from some libraries, from the sources installed here.

    The same versions of the libraries give the same rows in the same order.

    Args:
        libraries: as in `load`; all that are installed when None.
        cache: folder for the extracted table; `cache_folder()` when None, no cache when False.

    Returns:
        As `load`.

    Raises:
        ValueError: before anything is read: a library is unknown or not installed.
    """
    installed = versions()
    if libraries is not None:
        libraries = _check_libraries(libraries, "docs:installed")
        _check_installed(libraries, installed)
    table = _cached(installed, cache)
    if libraries is None:
        return table
    return table[table["domain"].isin(libraries)].reset_index(drop=True)


def _check_installed(libraries: Sequence[str], installed: Mapping[str, str]) -> None:
    absent = [name for name in libraries if name not in installed]
    if len(absent) == 1:
        raise ValueError(
            f"docs:installed: the library {absent[0]} is not installed here; install it, or read "
            "'docs', which needs none."
        )
    if absent:
        raise ValueError(
            f"docs:installed: the libraries {', '.join(absent)} are not installed here; install "
            "them, or read 'docs', which needs none."
        )


def is_docs(source: str | Path) -> bool:
    """Return whether a source names this dataset.

    It is `docs`, `docs:scipy,numpy`, `docs:installed`, `docs:installed:scipy`, each also after
    `jaxloop:`.
    """
    return re.fullmatch(r"(jaxloop:)?docs(:.*)?", str(source), re.DOTALL) is not None


def parse(source: str | Path) -> tuple[bool, list[str] | None]:
    """Take apart a source for which `is_docs` is true.

    Returns:
        Whether the libraries installed here are to be read, and the libraries that it names (None:
        it names none).
    """
    parts = str(source).removeprefix(corpora.PREFIX).split(":", 1)
    rest = parts[1].strip() if len(parts) == 2 else ""
    installed = rest == INSTALLED or rest.startswith(f"{INSTALLED}:")
    rest = rest.removeprefix(INSTALLED).removeprefix(":") if installed else rest
    return installed, [part.strip() for part in rest.split(",") if part.strip()] or None


def read(source: str | Path, libraries: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the dataset as a source names it.

    Args:
        libraries: those that are read where the source names none.

    Raises:
        ValueError: as `load` and `load_installed`.
    """
    installed, named = parse(source)
    return (load_installed if installed else load)(named or libraries)


def default_libraries(source: str | Path) -> tuple[str, ...]:
    """Return the libraries that studies read if a source names none.

    For this dataset they are the ones that the tiny bases were not trained on; else ().
    """
    return HELD_OUT if is_docs(source) and parse(source)[1] is None else ()


def identity(source: str | Path) -> str:
    """Return a word that identifies the texts of a source for which `is_docs` is true."""
    installed, _ = parse(source)
    of = json.dumps(versions()) if installed else "+".join(map(corpora.identity, corpora.DOCS))
    return f"{source} {hashlib.sha256(of.encode()).hexdigest()[:16]}"


def _check_libraries(libraries: str | Sequence[str] | None, source: str) -> list[str]:
    if libraries is None:
        return list(LIBRARIES)
    libraries = [libraries] if isinstance(libraries, str) else list(libraries)
    for name in libraries:
        if name not in LIBRARIES:
            close = difflib.get_close_matches(name, LIBRARIES, 1, 0.6)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(
                f"{source}: {name!r} is not one of its libraries{hint}; they are "
                f"{', '.join(LIBRARIES)}."
            )
    return libraries


def distribution(library: str) -> str:
    """Return the name under which a library is installed."""
    return _DISTRIBUTIONS.get(library, library)


def versions() -> dict[str, str]:
    """Return those of `LIBRARIES` that are installed with their versions, in order."""
    installed = {}
    for name in LIBRARIES:
        if name == "python":
            installed[name] = platform.python_version()
            continue
        try:
            installed[name] = importlib.metadata.version(distribution(name))
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def _cached(
    installed: Mapping[str, str], cache: str | Path | Literal[False] | None
) -> pd.DataFrame:
    if cache is False:
        return docs_extraction.build(list(installed))
    code = [Path(str(module.__file__)).read_bytes() for module in (docs_extraction, prose)]
    extractor = hashlib.sha256(b"".join(code)).hexdigest()
    key = hashlib.sha256(json.dumps([extractor, installed]).encode()).hexdigest()[:16]
    path = (cache_folder() if cache is None else Path(cache)) / f"docs-{key}.parquet"
    table = _read_cache(path)
    if table is None:
        table = docs_extraction.build(list(installed))
        _write_cache(table, path)
    return table


def _read_cache(path: Path) -> pd.DataFrame | None:
    """The table in a cache file; None where there is none or it is not what was written."""
    if not path.exists():
        return None
    try:
        stored = pq.read_table(path, page_checksum_verification=True)
        table = stored.to_pandas()
        if (stored.schema.metadata or {}).get(b"content") == _content(table):
            return table
        problem = "its content does not match its checksum"
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        problem = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(
        f"docs: the cache {path} is damaged ({problem}); extracting the dataset again.",
        stacklevel=2,
    )
    return None


def _write_cache(table: pd.DataFrame, path: Path) -> None:
    """Write a cache file in one step.

    A folder that cannot be written costs the cache, not the run.
    """
    stored = pa.Table.from_pandas(table, preserve_index=False)
    stored = stored.replace_schema_metadata(
        {**(stored.schema.metadata or {}), b"content": _content(table)}
    )
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        os.close(handle)
        pq.write_table(stored, partial, compression="zstd", write_page_checksum=True)
        os.replace(partial, path)
    except OSError as error:
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
        warnings.warn(
            f"docs: no cache at {path} ({error.strerror or error}); the next run extracts the "
            "dataset again.",
            stacklevel=2,
        )


def _content(table: pd.DataFrame) -> bytes:
    """What a cache file is checked against: a digest of all its columns."""
    columns = ("text", "domain", "module", "id")
    return "".join(digest_texts(table[column]) for column in columns).encode()
