"""What two runs of one study wrote, compared value for value; `compare_results.py` makes the runs.

`LEFT_OUT` names what may differ between two runs of the same program, with the reason. Everything
else must be equal: the set of files, every cell of every table, every array bit for bit, the words
of the report.
"""

import csv
import html.parser
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


class Left(NamedTuple):
    """Something that is not compared: its kind, the pattern that its whole name fits, and why."""

    kind: str  # file, column, fact, section or words
    pattern: str
    reason: str


_MONTH = "(?:Jan|Febr)uary|March|April|May|Ju(?:ne|ly)|August|(?:Septem|Octo|Novem|Decem)ber"
LEFT_OUT = (
    Left(
        "file",
        r"run\.log|\.jaxloop.*",
        "the log and the lock: times, and steps in the order in which they ended",
    ),
    Left(
        "file",
        r"checkpoints/.*/manifest\.json",
        "sizes and digests of files that are compared themselves",
    ),
    Left(
        "file", r".*\.png", "drawn from tables that are compared; holds the version of matplotlib"
    ),
    Left("column", r"environment", "versions, machine, digest of the program's source"),
    Left("column", r"checkpoint_sha256", "digest of a file whose arrays are compared"),
    Left("column", r"(.*_)?(times?|seconds|started|ended|tokens_per_second)", "times"),
    Left("fact", r"command", "paths, and the words that started the run"),
    Left("fact", r"code|commit", "version and commit of the program"),
    Left("fact", r"device", "the machine"),
    Left(
        "fact",
        r"config fingerprint",
        "names of config fields may change; config.json is compared where both have a value",
    ),
    Left("fact", r"files of .*", "digests of the models' files, which not every page listed"),
    Left("fact", r"time", "a time"),
    Left("section", r"Config", "compared as config.json, where both have a value"),
    Left("section", r"Versions", "versions"),
    Left("words", rf"\d+ (?:{_MONTH}) \d{{4}}, \d\d:\d\d", "when the page was written"),
)
# Fields of settings may have another name or be new: the values that both sides have are compared.
SETTINGS_FILES, SETTINGS_COLUMNS = ("config.json",), ("fit", "decoder")
PLANNED = ("slots", "slots_per_adapter", "texts_per_job", "texts_per_call", "chains_per_call")
KINDS = ("texts", "tables", "adapters", "other")
_ABSENT = "(absent)"


class Compared(NamedTuple):
    """Files of a study by kind (how many, how many differ), and what differs, one line each."""

    files: dict[str, int]
    differ: dict[str, int]
    differences: tuple[str, ...]


class Run(NamedTuple):
    """The directory of a run, and the paths it knew: (path, what stands in its place)."""

    folder: Path
    places: tuple[tuple[str, str], ...] = ()


def left_out(kind: str, name: str) -> bool:
    """Whether `LEFT_OUT` has this file, column, fact or section."""
    return any(left.kind == kind and re.fullmatch(left.pattern, name) for left in LEFT_OUT)


def compare(before: Run, after: Run) -> Compared:
    """Compares two run directories file by file."""
    found = [_files(run.folder) for run in (before, after)]
    files, differ, differences = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), []
    for name in sorted(found[0] | found[1]):
        kind = kind_of(name)
        files[kind] += 1
        if name not in found[0] or name not in found[1]:
            difference: str | None = f"is only {'after' if name not in found[0] else 'before'}"
        else:
            difference = next(_compare_file(name, before, after), None)
        if difference is not None:
            differ[kind] += 1
            differences.append(f"{name}: {difference}")
    if not sum(files.values()):
        differences.append("neither side wrote anything that can be compared")
    return Compared(files, differ, tuple(differences))


def kind_of(name: str) -> str:
    """Which of `KINDS` a file of a run directory is, by its path."""
    path = Path(name)
    if path.suffix == ".safetensors":
        return "adapters"
    if path.suffix not in (".csv", ".parquet", ".jsonl"):
        return "other"
    return "texts" if "texts" in path.parts[:-1] else "tables"


def _files(folder: Path) -> set[str]:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in names if not left_out("file", name)}


def _compare_file(name: str, before: Run, after: Run) -> Iterator[str]:
    if _bytes(before.folder / name) == _bytes(after.folder / name):
        return  # also of a form that no reader here knows
    read, differences = _READERS.get(Path(name).suffix, (_bytes, _in_bytes))
    sides = []
    for which, run in (("before", before), ("after", after)):
        try:
            sides.append(_in_place(read(run.folder / name), run.places))
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            yield f"cannot be read {which} ({str(error).splitlines()[0]})"
            return
    if name in SETTINGS_FILES:
        sides = [_shared(*sides), _shared(*reversed(sides))]
    yield from differences(*sides)


def _in_place(value, places):
    """The value with the paths of its run replaced, in every text that it holds."""
    if isinstance(value, str):
        for path, stands in places:
            value = value.replace(path, stands)
        return value
    if isinstance(value, Mapping):
        return {_in_place(k, places): _in_place(v, places) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_in_place(v, places) for v in value]
    return value


def _shared(one, other):
    """`one` without the fields that `other` lacks, at every depth."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return {name: _shared(one[name], other[name]) for name in one if name in other}
    return one


# ---- tables -------------------------------------------------------------------------------------


def _csv(path: Path) -> dict[str, list]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    if not rows:
        return {}
    if len({len(row) for row in rows}) > 1:
        raise ValueError("rows differ in their number of cells")
    return {name: [row[i] for row in rows[1:]] for i, name in enumerate(rows[0])}


def _parquet(path: Path) -> dict[str, list]:
    table = pq.ParquetFile(path).read()
    return {name: table[name].to_pylist() for name in table.column_names}


def _jsonl(path: Path) -> dict[str, list]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name, _ABSENT) for row in rows] for name in names}


def _in_tables(before: Mapping[str, list], after: Mapping[str, list]) -> Iterator[str]:
    """Columns by name, whatever their order; rows in order."""
    names = [name for name in dict.fromkeys([*before, *after]) if not left_out("column", name)]
    for name in names:
        if name not in before or name not in after:
            yield f"column {name} is only {'after' if name not in before else 'before'}"
    rows = [len(next(iter(table.values()), ())) for table in (before, after)]
    if rows[0] != rows[1]:
        yield f"{rows[0]:,} rows before, {rows[1]:,} after"
    for row in range(min(rows)):
        for name in names:
            if name in before and name in after:
                cells = before[name][row], after[name][row]
                if name in SETTINGS_COLUMNS:
                    cells = _shared_settings(*cells)
                if not same(*cells):
                    was, now = map(_short, cells)
                    yield f"column {name}, row {row}: {was} before, {now} after"


def _shared_settings(before, after):
    try:
        loaded = json.loads(before), json.loads(after)
    except (TypeError, ValueError):
        return before, after
    loaded = tuple(_unplanned(settings) for settings in loaded)
    return _shared(*loaded), _shared(*reversed(loaded))


def _unplanned(settings):
    """The settings with None where 0 says that a number is planned, as it did in version 0.1.0."""
    if not isinstance(settings, Mapping):
        return settings
    return {name: None if name in PLANNED and not v else v for name, v in settings.items()}


def same(one: object, other: object) -> bool:
    """Equal values of equal structure; a number that is not one equals itself."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return json.dumps(text if len(text) <= 60 else text[:57] + "...", ensure_ascii=False)


# ---- arrays -------------------------------------------------------------------------------------


def _arrays(path: Path) -> dict[str, tuple[str, list, bytes]]:
    """{name: (number format, shape, bytes)} of a safetensors file, without its metadata."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    header.pop("__metadata__", None)
    out = {}
    for name, about in header.items():
        start, end = about["data_offsets"]
        if end > len(body):
            raise ValueError(f"array {name} is cut off")
        out[name] = (about["dtype"], about["shape"], body[start:end])
    return out


def _in_arrays(before: Mapping, after: Mapping) -> Iterator[str]:
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            yield f"array {name} is only {'after' if name not in before else 'before'}"
            continue
        (kind, shape, one), (other_kind, other_shape, other) = before[name], after[name]
        if (kind, shape) != (other_kind, other_shape):
            yield f"array {name}: {kind}{shape} before, {other_kind}{other_shape} after"
        elif one != other:
            width = max(1, len(one) // max(1, math.prod(shape)))
            cells = [np.frombuffer(data, np.uint8).reshape(-1, width) for data in (one, other)]
            where = np.flatnonzero((cells[0] != cells[1]).any(axis=1))
            count = f"{len(where):,} of {len(cells[0]):,} numbers differ"
            yield f"array {name}: {count}, the first at {where[0]}"


# ---- pages and other files ----------------------------------------------------------------------


class _Words(html.parser.HTMLParser):
    """Collects the words of a page, without drawings and the facts and sections of `LEFT_OUT`."""

    def __init__(self):
        super().__init__()
        self.words, self.open, self.fact, self.skipped = [], [], "", 0

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style", "svg"):
            self.skipped += 1
        if tag in ("dt", "dd", "summary", "details"):
            self.open.append([tag, ""])

    def handle_endtag(self, tag):
        if tag in ("script", "style", "svg"):
            self.skipped -= 1
        if tag in ("dt", "dd", "summary", "details") and self.open:
            _, text = self.open.pop()
            if tag == "dt":
                self.fact = text.strip()
            elif tag == "dd" and not left_out("fact", self.fact):
                self._say(f"{self.fact} {text}")
            elif tag == "summary" and self.open:
                self.open[-1][1] = f"{text.strip()}\n"
            elif tag == "details" and not left_out("section", text.split("\n")[0]):
                self._say(text)

    def handle_data(self, data):
        if not self.skipped:
            self._say(data)

    def _say(self, text):
        if self.open:
            self.open[-1][1] += f" {text}" if self.open[-1][0] == "details" else text
        else:
            self.words.append(text)


def words(page: str) -> list[str]:
    """The words of an HTML page that must be the same in two runs."""
    reader = _Words()
    reader.feed(page)
    reader.close()
    text = " ".join(reader.words)
    for left in LEFT_OUT:
        text = re.sub(left.pattern, " ", text) if left.kind == "words" else text
    return text.split()


def _page(path: Path) -> str:
    return " ".join(words(path.read_text(encoding="utf-8")))


def _in_words(before: str, after: str) -> Iterator[str]:
    """From the first word that differs, with the words before it to find the place."""
    one, other = before.split(), after.split()
    for i in range(max(len(one), len(other))):
        if one[i : i + 1] != other[i : i + 1]:
            place, first = " ".join(one[max(0, i - 3) : i]), slice(i, i + 6)
            was, now = (_short(" ".join(side[first])) for side in (one, other))
            yield f"word {i}, after {_short(place)}: {was} before, {now} after"
            return
    if before != after:
        yield "differs in its spaces"


def _json(path: Path) -> object:
    return json.loads(path.read_text(encoding="utf-8"))


def _in_json(before: object, after: object, place: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in dict.fromkeys([*before, *after]):
            if not left_out("column", name):
                inside = f"{place}.{name}" if place else name
                yield from _in_json(before.get(name, _ABSENT), after.get(name, _ABSENT), inside)
    elif not same(before, after):
        yield f"{place or 'content'}: {_short(before)} before, {_short(after)} after"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


def _in_bytes(before: Sequence, after: Sequence) -> Iterator[str]:
    if before != after:
        yield f"differs ({len(before):,} bytes before, {len(after):,} after)"


_READERS: dict[str, tuple[Callable, Callable]] = {
    ".csv": (_csv, _in_tables),
    ".parquet": (_parquet, _in_tables),
    ".jsonl": (_jsonl, _in_tables),
    ".safetensors": (_arrays, _in_arrays),
    ".html": (_page, _in_words),
    ".json": (_json, _in_json),
    ".md": (_text, _in_words),
    ".txt": (_text, _in_words),
}
