"""How fast files are read, beside pandas, in one process.

    python scripts/bench_reading.py [--rows=1000000] [--formats csv jsonl]

Writes a file of made-up posts (a text and a label a row) to a temporary folder and reads it in turn
with jaxloop and with pandas; `MAKES` says what each makes. Like is compared with like: `load_texts`
with pandas and the same fingerprint, and the reading alone (`read_batches`) with pandas told to
give Python strings. Prints a table (least and median of the repeats after one warm-up) and, as its
last line, one JSON object. --clock=cpu compares processor time of all threads, which waiting for a
core does not lengthen.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import _root  # noqa: F401
import pandas as pd
from _flags import whole

from jaxloop.data import fingerprint, load_texts
from jaxloop.data.reading import read_batches

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def write(path: Path, rows: int, words: int, seed: int = 0) -> None:
    """A file of posts, some with commas, quotation marks, line ends and letters outside ASCII."""
    draw = random.Random(seed)
    known = [f"word{i}" for i in range(500)] + [
        "the",
        "of",
        "and",
        "said,",
        '"quoted"',
        "naïve",
        "two\nlines",
    ]
    texts = [" ".join(draw.choices(known, k=words)) for _ in range(rows)]
    frame = pd.DataFrame({"text": texts, "label": draw.choices("ab", k=rows)})
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)


MAKES = {
    "load_texts": "texts as Python strings, their domain, the SHA-256 of the texts; every row "
    "checked",
    "pandas, the same": "every column as Python strings (dtype=object), the SHA-256 of the texts",
    "read_batches": "every column as Python strings; every row checked",
    "pandas, object": "every column as Python strings",
    "pandas": "as it comes: of csv, text stays in Arrow and is made a Python string whenever it "
    "is asked for",
}


def readers(path: Path) -> dict:
    """name (of `MAKES`) -> a call that reads the file and gives a column text."""
    if path.suffix == ".csv":
        plain, strings = (
            (lambda: pd.read_csv(path)),
            (lambda: pd.read_csv(path, dtype=object, keep_default_na=False)),
        )
    else:
        plain, strings = (
            (lambda: pd.read_json(path, lines=True)),
            (lambda: pd.read_json(path, lines=True, dtype={"text": object, "label": object})),
        )
    calls = (
        lambda: load_texts(path),
        lambda: marked(strings()),
        lambda: gathered(path),
        strings,
        plain,
    )
    return dict(zip(MAKES, calls, strict=True))


def marked(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the fingerprint that `load_texts` gives."""
    frame.attrs["fingerprint"] = fingerprint(frame)
    return frame


def gathered(path: Path) -> dict[str, list]:
    """The columns of a file, whose batches are columns or rows."""
    columns: dict[str, list] = {"text": [], "label": []}
    for batch in read_batches(path):
        for name, values in columns.items():
            values += batch[name] if isinstance(batch, dict) else [row[name] for row in batch]
    return columns


def measure(path: Path, repeats: int, now: Callable[[], float]) -> list[dict]:
    """Seconds of every reader, in turn, each with nothing in memory that another has read. Ends
    where texts or fingerprints differ.
    """
    calls = readers(path)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    prints: set[str] = set()
    for number in range(repeats + 1):
        for name, call in calls.items():
            start = now()
            frame = call()
            if number:
                seconds[name].append(now() - start)
            else:
                found = fingerprint(frame)
                prints |= {found, getattr(frame, "attrs", {}).get("fingerprint", found)}
                if len(prints) > 1:
                    raise SystemExit(
                        f"{path.name}: the texts that {name} gives are not those of load_texts"
                    )
            del frame
    return [
        {"reader": name, "makes": MAKES[name], "least": min(s), "median": statistics.median(s)}
        for name, s in seconds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=whole(1), default=1_000_000)
    parser.add_argument("--words", type=whole(1), default=12, help="words of a text")
    parser.add_argument("--repeats", type=whole(1), default=3)
    parser.add_argument("--formats", nargs="+", choices=("csv", "jsonl"), default=("csv", "jsonl"))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    args = parser.parse_args()
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in args.formats:
            path = Path(folder) / f"posts.{kind}"
            write(path, args.rows, args.words)
            found = measure(path, args.repeats, CLOCKS[args.clock])
            ours = found[0]["least"]
            print(f"{kind}, {args.rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB")
            for row in found:
                row |= {"format": kind, "bytes": path.stat().st_size, "ratio": row["least"] / ours}
                print(
                    f"    {row['reader']:<20}{row['least']:>8.2f} s{row['median']:>10.2f} "
                    f"s{row['ratio']:>10.2f}x  {row['makes']}"
                )
            out += found
            path.unlink()
    versions = {p: version(p) for p in ("pandas", "pyarrow", "numpy")}
    print(
        json.dumps(
            {
                "benchmark": "reading",
                "clock": args.clock,
                "rows": args.rows,
                "versions": versions,
                "results": out,
            }
        )
    )


if __name__ == "__main__":
    main()
