"""The embedded dataset `docs`: human prose about software, which comes with jaxloop and is the same
on every machine.

Its records are the paragraphs in the docstrings of the Python standard library and of jaxloop's
dependencies, of the versions that jaxloop/assets/corpora/ORIGIN.md names. They were read from the
`.py` files with `ast` (nothing is imported), cleaned of code and mark-up (`prose.py`), and rid of
near-duplicates across all libraries, so that a held-out library shares no templated sentence with
the libraries that models were pretrained on. The domain of a record is its library.

`docs:installed` is the same extraction from the libraries that are installed here: with other
versions, other texts.
"""

import ast
import difflib
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from jaxloop.data import corpora, prose
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

_SKIPPED_FOLDERS = frozenset(
    "tests test testing _testing idle_test _vendor vendor vendored extern externals "
    "site-packages dist-packages __pycache__ _bundled "
    "lib2to3 idlelib turtledemo encodings".split()
)
# transformers repeats one set of docstrings in each of its hundreds of model files.
_SKIPPED_FILES = ("test_", "conftest", "modeling_", "modular_", "convert_")
# Below so many a process takes longer to start than to read them.
FILES_WORTH_A_PROCESS = 300
_SHINGLE = 5
_MAX_SEEN_SHARE = 0.4
_OPENING_WORDS = 8
_WORDS = re.compile(r"[a-z]+")


def load(libraries=None):
    """The dataset as it comes with jaxloop, or the part of it from some libraries, none of which
    need be installed.

    Args:
      libraries: names out of `LIBRARIES`; all when None. Rows keep the dataset's order, whatever
      the order here, and a
        paragraph that an earlier library of `LIBRARIES` holds too is not repeated, whether or not
        that one is asked for.

    Returns: DataFrame with columns text, domain (the library), module (where it was found) and id
    (of the text).

    Raises: ValueError for a library that is unknown.
    """
    wanted = set(_known(libraries, "docs"))
    parts = [
        name
        for name, part in zip(corpora.DOCS, (HELD_OUT, PRETRAIN), strict=True)
        if wanted & set(part)
    ]
    table = pd.concat(
        [corpora.read(name).to_pandas() for name in reversed(parts)], ignore_index=True
    ).astype("str")
    return _with_ids(table[table["domain"].isin(wanted)].reset_index(drop=True))


def load_installed(libraries=None, *, cache=None):
    """The dataset, or the part of it that comes from some libraries, from their sources as they are
    installed here.

    Args:
      libraries: as in `load`; all that are installed when None.
      cache: folder for the extracted table; `cache_folder()` when None, no cache when False.

    Returns: as `load`. The same versions of the libraries give the same rows in the same order.

    Raises: ValueError, before anything is read, for a library that is unknown or not installed.
    """
    there = versions()
    if libraries is not None:
        libraries = _known(libraries, "docs:installed")
        absent = [name for name in libraries if name not in there]
        if absent:
            one = len(absent) == 1
            is_not = (
                f"{'the library' if one else 'the libraries'} {', '.join(absent)} "
                f"{'is' if one else 'are'} not installed here"
            )
            raise ValueError(
                f"docs:installed: {is_not}; install {'it' if one else 'them'}, or read 'docs', "
                "which needs none."
            )
    table = _cached(there, cache)
    return (
        table
        if libraries is None
        else table[table["domain"].isin(libraries)].reset_index(drop=True)
    )


def is_docs(source):
    """Whether a source names this dataset: `docs`, `docs:scipy,numpy`, `docs:installed`,
    `docs:installed:scipy`, each also after `jaxloop:`.
    """
    return re.fullmatch(r"(jaxloop:)?docs(:.*)?", str(source), re.DOTALL) is not None


def parse(source):
    """(whether the installed libraries are to be read, the libraries that are named or None) of a
    source that `is_docs`.
    """
    parts = str(source).removeprefix(corpora.PREFIX).split(":", 1)
    rest = parts[1].strip() if len(parts) == 2 else ""
    installed = rest == INSTALLED or rest.startswith(f"{INSTALLED}:")
    rest = rest.removeprefix(INSTALLED).removeprefix(":") if installed else rest
    return installed, [part.strip() for part in rest.split(",") if part.strip()] or None


def read(source, libraries=None):
    """The dataset as a source names it; libraries: those that are read where the source names none.
    Raises ValueError as `load` and `load_installed`.
    """
    installed, named = parse(source)
    return (load_installed if installed else load)(named or libraries)


def default_libraries(source):
    """The libraries that studies read of a source: those that the bases never saw, where it is this
    dataset and names none; else ().
    """
    return HELD_OUT if is_docs(source) and parse(source)[1] is None else ()


def identity(source):
    """What the texts of a source that `is_docs` depend on, in one word."""
    installed, named = parse(source)
    of = json.dumps(versions()) if installed else "+".join(map(corpora.identity, corpora.DOCS))
    return f"{source} {hashlib.sha256(of.encode()).hexdigest()[:16]}"


def _known(libraries, source):
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


def fingerprint(frame):
    """SHA-256 (hex) over the texts of a frame: equal texts in equal order, and nothing else, give
    equal fingerprints.
    """
    return digest_texts(frame["text"]).hexdigest()


def build(libraries):
    """The dataset of these libraries from their sources, deduplicated in the order given; half a
    minute of processor time for all of them.
    """
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; the collector would take a quarter of the time
    try:
        table = pd.DataFrame(
            list(deduplicate(_records(libraries))),
            columns=["text", "domain", "module"],
            dtype="str",
        )
    finally:
        if collecting:
            gc.enable()
    return _with_ids(table)


def _with_ids(table):
    # Not in the file: hashes cannot be compressed.
    ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in table["text"]]
    return table.assign(id=pd.Series(ids, dtype="str"))


def _records(libraries):
    """(text, library, module) of every paragraph, in order. Files are shared out to a process for
    each core.
    """
    files = [(library, module, path) for library in libraries for module, path in _sources(library)]
    shares = min(os.cpu_count() or 1, 8, len(files) // FILES_WORTH_A_PROCESS + 1)
    with ExitStack() as stack:
        waits = [
            _read_beside([str(path) for _, _, path in files[i::shares]], stack)
            for i in range(1, shares)
        ]
        found = [_paragraphs(path) for _, _, path in files[::shares]]
        # Where a process failed its files are read here.
        parts = [
            found,
            *(
                wait() or [_paragraphs(path) for _, _, path in files[i::shares]]
                for i, wait in enumerate(waits, 1)
            ),
        ]
    for k, (library, module, _) in enumerate(files):
        for text in parts[k % shares][k // shares]:
            yield text, library, module


def _read_beside(paths, stack):
    """Start a process that reads these files; the function returned waits for their paragraphs
    (None where it failed).

    Not by multiprocessing: a script of a user's that loads the dataset without a guard would run
    again in every process.
    """
    asked, said = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
    asked.write(json.dumps(paths).encode())
    asked.seek(0)
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _answer; _answer()"
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=asked, stdout=said, stderr=subprocess.DEVNULL
        )
    )
    stack.callback(process.kill)

    def wait():
        process.wait()
        said.seek(0)
        return json.load(said) if process.returncode == 0 else None

    return wait


def _answer():
    """What a process of `_read_beside` does: paths in, lists of paragraphs out."""
    gc.disable()
    json.dump([_paragraphs(Path(path)) for path in json.load(sys.stdin)], sys.stdout)


def digest_texts(texts, digest=None):
    """SHA-256 object over texts, each with its length in bytes of UTF-8 (eight, little-endian)
    before it, lone surrogates included; `digest` is that of the texts before them.
    """
    digest, texts, heads = digest or hashlib.sha256(), iter(texts), {}
    # A character of Latin-1 for each byte: texts of ASCII, which are most, are those already, and
    # one encoding serves thousands.
    while data := [
        t if t.isascii() else t.encode("utf-8", "surrogatepass").decode("latin-1")
        for t in itertools.islice(texts, 1024)
    ]:
        lengths = list(map(len, data))
        heads |= {n: n.to_bytes(8, "little").decode("latin-1") for n in set(lengths) - heads.keys()}
        both = [None] * (2 * len(data))
        both[0::2], both[1::2] = map(heads.__getitem__, lengths), data
        digest.update("".join(both).encode("latin-1"))
    return digest


def distribution(library):
    """The name under which a library is installed."""
    return _DISTRIBUTIONS.get(library, library)


def versions():
    """The installed ones of `LIBRARIES` with their versions, in order."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = (
                platform.python_version()
                if name == "python"
                else importlib.metadata.version(distribution(name))
            )
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cached(there, cache):
    if cache is False:
        return build(list(there))
    extractor = hashlib.sha256(
        Path(__file__).read_bytes() + Path(prose.__file__).read_bytes()
    ).hexdigest()
    key = hashlib.sha256(json.dumps([extractor, there]).encode()).hexdigest()[:16]
    path = (cache_folder() if cache is None else Path(cache)) / f"docs-{key}.parquet"
    table = _read_cache(path)
    if table is None:
        table = build(list(there))
        _write_cache(table, path)
    return table


def _read_cache(path):
    """The table in a cache file; None where there is none or its content is not what was written."""
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


def _write_cache(table, path):
    """Write a cache file in one step; a folder that cannot be written costs the cache, not the run."""
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


def _content(table):
    """What a cache file is checked against: a digest of all its columns."""
    return "".join(
        digest_texts(table[column]).hexdigest() for column in ("text", "domain", "module", "id")
    ).encode()


def _roots(library):
    """Where a library's sources lie: a list of folders or single files; empty when it is not
    installed.
    """
    if library == "python":
        return [Path(sysconfig.get_path("stdlib"))]
    spec = importlib.util.find_spec(library)
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(p) for p in spec.submodule_search_locations]
    return [Path(spec.origin)]


def _sources(library):
    """(module name, file) of the library's Python files, sorted by path; tests and vendored
    packages are left out.
    """
    for root in _roots(library):
        if root.is_file():
            yield library, root
            continue
        found = []
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
            relative = Path(folder).relative_to(root)
            found += [
                relative / name
                for name in names
                if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)
            ]
        for path in sorted(found, key=lambda p: p.as_posix()):
            parts = [p for p in path.with_suffix("").parts if p != "__init__"]
            yield (
                ".".join([library, *parts] if library != "python" else parts or ["python"]),
                root / path,
            )


def _docstrings(path):
    """The dedented documentation strings of a source file, in no particular nesting but always in
    the same order.

    Beside docstrings proper: multi-line strings that are assigned to a name or handed to a call or
    a decorator (`add_newdoc`, `doc`), which is how NumPy, pandas and torch document what is written
    in C or generated. A file that does not parse has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return
    stack = [tree]
    while stack:
        node = stack.pop()
        for field in ("body", "orelse", "finalbody"):
            stack += reversed(getattr(node, field, ()) if not isinstance(node, ast.Lambda) else ())
        values = list(getattr(node, "decorator_list", ()))
        if isinstance(node, (ast.Expr, ast.Assign)):
            values.append(node.value)
        while values:
            value = values.pop(0)
            if isinstance(value, ast.Constant):
                text = value.value
                if (
                    isinstance(text, str)
                    and len(text) >= prose.MIN_CHARS
                    and ("\n" in text or value is getattr(node, "value", None))
                ):
                    yield inspect.cleandoc(text)
            elif isinstance(value, ast.Call):
                values += [*value.args, *(k.value for k in value.keywords)]
            elif isinstance(value, ast.Dict):
                values += value.values


def extract(library):
    """(text, module) of every prose paragraph of a library, duplicates included."""
    for module, path in _sources(library):
        for text in _paragraphs(path):
            yield text, module


def _paragraphs(path):
    return [text for doc in _docstrings(path) for text in prose.paragraphs(doc)]


def deduplicate(records):
    """Drop each record that repeats an earlier one, whole or nearly; `records` are tuples that
    begin with a text.

    Compared are lower-case words alone (no digits, no punctuation). A record is dropped when its
    first eight words, or more than 40% of its five-word sequences, were seen in a record kept
    before. Yields the records kept, in order.
    """
    # Hashes of integers, not the words: a set of millions of tuples would slow the garbage
    # collector down, and with it the parsing.
    numbers, openings, shingles = {}, set(), set()
    for record in records:
        words = _WORDS.findall(record[0].lower())
        if len(words) < _SHINGLE:
            continue
        words = [numbers.setdefault(word, len(numbers)) for word in words]
        opening = hash(tuple(words[:_OPENING_WORDS]))
        if opening in openings:
            continue
        own = set(map(hash, zip(*(words[k:] for k in range(_SHINGLE)), strict=False)))
        if len(own & shingles) > _MAX_SEEN_SHARE * len(own):
            continue
        openings.add(opening)
        shingles |= own
        yield record
