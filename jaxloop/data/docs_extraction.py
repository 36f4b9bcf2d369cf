"""Extraction of the dataset `docs` from the source files of installed libraries."""

import ast
import gc
import hashlib
import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import pandas as pd

from jaxloop.data import prose

_SKIPPED_FOLDERS = frozenset(
    "tests test testing _testing idle_test _vendor vendor vendored extern externals "
    "site-packages dist-packages __pycache__ _bundled lib2to3 idlelib turtledemo encodings".split()
)
# transformers repeats one set of docstrings in each of its hundreds of model files.
_SKIPPED_FILES = ("test_", "conftest", "modeling_", "modular_", "convert_")
# Below so many a process takes longer to start than to read them.
FILES_WORTH_A_PROCESS = 300
_MOST_PROCESSES = 8
_SHINGLE = 5
_MAX_SEEN_SHARE = 0.4
_OPENING_WORDS = 8
_WORDS = re.compile(r"[a-z]+")

Record = TypeVar("Record", bound=tuple)


class Paragraph(NamedTuple):
    """A paragraph of prose, its library and the module where it was found."""

    text: str
    domain: str
    module: str


class _SourceFile(NamedTuple):
    library: str
    module: str
    path: Path


def build(libraries: Sequence[str]) -> pd.DataFrame:
    """Return the dataset of these libraries, deduplicated in the order given.

    It takes half a minute of processor time for all of them.
    """
    collecting = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles; the collector would take a quarter of the time
    try:
        paragraphs = list(deduplicate(_paragraphs_of(libraries)))
        table = pd.DataFrame(paragraphs, columns=list(Paragraph._fields), dtype="str")
    finally:
        if collecting:
            gc.enable()
    return with_ids(table)


def with_ids(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with the column `id`, a hash of the text.

    Shipped files have none, because hashes cannot be compressed.
    """
    ids = [hashlib.sha256(text.encode()).hexdigest()[:16] for text in table["text"]]
    return table.assign(id=pd.Series(ids, dtype="str"))


def _paragraphs_of(libraries: Sequence[str]) -> Iterator[Paragraph]:
    """Every paragraph, in order. Files are shared out to a process for each core."""
    files = [
        _SourceFile(library, module, path)
        for library in libraries
        for module, path in _sources(library)
    ]
    shares = min(os.cpu_count() or 1, _MOST_PROCESSES, len(files) // FILES_WORTH_A_PROCESS + 1)
    with ExitStack() as stack:
        waits = [_start_reading(files[i::shares], stack) for i in range(1, shares)]
        texts = [_read_here(files[::shares])]
        for i, wait in enumerate(waits, 1):
            # Where a process failed its files are read here.
            texts.append(wait() or _read_here(files[i::shares]))
    for k, file in enumerate(files):
        for text in texts[k % shares][k // shares]:
            yield Paragraph(text, file.library, file.module)


def _read_here(files: Sequence[_SourceFile]) -> list[list[str]]:
    return [_paragraphs(file.path) for file in files]


def _start_reading(
    files: Sequence[_SourceFile], stack: ExitStack
) -> Callable[[], list[list[str]] | None]:
    """Start a process that reads these files.

    The function returned waits for their paragraphs (None where the process failed). Not by
    multiprocessing: a script of a user's that loads the dataset without a guard would run again in
    every process.
    """
    request, reply = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(2))
    request.write(json.dumps([str(file.path) for file in files]).encode())
    request.seek(0)
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import _answer; _answer()"
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", code], stdin=request, stdout=reply, stderr=subprocess.DEVNULL
        )
    )
    stack.callback(process.kill)

    def wait() -> list[list[str]] | None:
        process.wait()
        reply.seek(0)
        return json.load(reply) if process.returncode == 0 else None

    return wait


def _answer() -> None:
    """The work of a process of `_start_reading`: it reads paths and writes lists of paragraphs."""
    gc.disable()
    json.dump([_paragraphs(Path(path)) for path in json.load(sys.stdin)], sys.stdout)


def _roots(library: str) -> list[Path]:
    """The folders or single files with a library's sources; empty if it is not installed."""
    if library == "python":
        return [Path(sysconfig.get_path("stdlib"))]
    spec = importlib.util.find_spec(library)
    if spec is None:
        return []
    if spec.submodule_search_locations:
        return [Path(p) for p in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def _sources(library: str) -> Iterator[tuple[str, Path]]:
    """(module name, file) of the library's Python files, sorted by path.

    Tests and vendored packages are left out.
    """
    for root in _roots(library):
        if root.is_file():
            yield library, root
            continue
        for path in _python_files(root):
            parts = [part for part in path.with_suffix("").parts if part != "__init__"]
            named = [library, *parts] if library != "python" else parts or ["python"]
            yield ".".join(named), root / path


def _python_files(root: Path) -> list[Path]:
    """Python files under a folder, as paths from it, sorted."""
    paths = []
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS]
        relative = Path(folder).relative_to(root)
        for name in names:
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES):
                paths.append(relative / name)
    return sorted(paths, key=Path.as_posix)


def _docstrings(path: Path) -> Iterator[str]:
    """The dedented documentation strings of a source file, always in the same order.

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
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if not isinstance(node, ast.Lambda):
            for name in ("body", "orelse", "finalbody"):
                stack += reversed(getattr(node, name, ()))
        values: list[ast.AST] = list(getattr(node, "decorator_list", ()))
        if isinstance(node, (ast.Expr, ast.Assign)):
            values.append(node.value)
        yield from _long_strings(values, getattr(node, "value", None))


def _long_strings(values: list[ast.AST], of_node: ast.AST | None) -> Iterator[str]:
    """Strings in these values, in the arguments of their calls and in dicts.

    Other strings than the value of the node itself must have several lines.
    """
    while values:
        value = values.pop(0)
        if isinstance(value, ast.Constant):
            text = value.value
            if not isinstance(text, str) or len(text) < prose.MIN_CHARS:
                continue
            if "\n" in text or value is of_node:
                yield inspect.cleandoc(text)
        elif isinstance(value, ast.Call):
            values += [*value.args, *(keyword.value for keyword in value.keywords)]
        elif isinstance(value, ast.Dict):
            values += value.values


def extract(library: str) -> Iterator[tuple[str, str]]:
    """Yield (text, module) of every prose paragraph of a library, duplicates included."""
    for module, path in _sources(library):
        for text in _paragraphs(path):
            yield text, module


def _paragraphs(path: Path) -> list[str]:
    return [text for doc in _docstrings(path) for text in prose.paragraphs(doc)]


def deduplicate(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records, in order, that repeat no earlier one, whole or nearly.

    Only lower-case words are compared (no digits, no punctuation). A record is dropped if its first
    eight words, or more than 40% of its five-word sequences, occur in records kept before.

    Args:
        records: tuples that begin with a text.
    """
    # Hashes of integers, not the words: a set of millions of tuples would slow the garbage
    # collector down, and with it the parsing.
    numbers: dict[str, int] = {}
    seen_openings: set[int] = set()
    seen_shingles: set[int] = set()
    for record in records:
        words = _WORDS.findall(record[0].lower())
        if len(words) < _SHINGLE:
            continue
        coded = [numbers.setdefault(word, len(numbers)) for word in words]
        opening = hash(tuple(coded[:_OPENING_WORDS]))
        if opening in seen_openings:
            continue
        shingles = set(map(hash, zip(*(coded[k:] for k in range(_SHINGLE)), strict=False)))
        if len(shingles & seen_shingles) > _MAX_SEEN_SHARE * len(shingles):
            continue
        seen_openings.add(opening)
        seen_shingles |= shingles
        yield record
