"""How fast files are read, beside pandas, in one process.

    python scripts/bench_reading.py [--rows=1000000] [--formats csv jsonl]

Writes a file of made-up posts (a text and a label a row) to a temporary folder and reads it in turn
with `load_texts`, which checks every row, and with pandas: as `read_csv` and `read_json` come, and
told to give Python strings (dtype=object), as `load_texts` does. Prints a table (least and median
of the repeats after one warm-up) and, as its last line, one JSON object. --clock=cpu compares
processor time, which waiting for a core does not lengthen.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import _root  # noqa: F401
import pandas as pd

from jaxloop.data import load_texts

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


def readers(path: Path) -> dict:
    """name -> a call that reads the file."""
    ours = {"load_texts": lambda: load_texts(path)}
    if path.suffix == ".csv":
        return ours | {
            "pandas": lambda: pd.read_csv(path),
            "pandas, object": lambda: pd.read_csv(path, dtype=object, keep_default_na=False),
        }
    return ours | {
        "pandas": lambda: pd.read_json(path, lines=True),
        "pandas, object": lambda: pd.read_json(path, lines=True, dtype=object),
    }


def measure(path: Path, repeats: int, now) -> list[dict]:
    """Seconds of every reader, in turn, and whether the texts are the same."""
    calls = readers(path)
    seconds = {name: [] for name in calls}
    for number in range(repeats + 1):
        texts = {}
        for name, call in calls.items():
            start = now()
            frame = call()
            if number:
                seconds[name].append(now() - start)
            texts[name] = frame["text"]
        if not number and any(list(found) != list(texts["load_texts"]) for found in texts.values()):
            raise SystemExit(f"{path.name}: the texts are not those that pandas reads")
    return [
        {"reader": name, "least": min(s), "median": statistics.median(s)}
        for name, s in seconds.items()
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--words", type=int, default=12, help="words of a text")
    parser.add_argument("--repeats", type=int, default=3)
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
                    f"s{row['ratio']:>10.2f}x"
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
