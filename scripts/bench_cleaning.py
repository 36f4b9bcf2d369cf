"""How fast a data set of tweets is cleaned, and in how much memory, beside another commit.

    python scripts/bench_cleaning.py [--rows=1000000] [--before=COMMIT]

Writes made-up tweets (columns as those of 100M_tweets; their words come from a corpus that jaxloop
ships, so that they have the lengths and the languages of people's) to parquet files and cleans them
by the rules of 100M_tweets, as a study does: from the file to the clean texts with their report and
fingerprint. Each run is a process of its own, and the processes come in turn: a tenth of the rows,
all rows, and with --before all rows with the code of a commit, exported to a temporary folder.
Prints a table and, as its last line, one JSON object. Speeds are of wall time and of
the processor time of all threads, which waiting for a core does not lengthen.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import _root  # noqa: F401
import pyarrow as pa
import pyarrow.parquet as pq
from _flags import whole

from jaxloop.data import load_texts

ROOT = Path(__file__).resolve().parents[1]
# What a process runs in the folder of either commit.
CHILD = """
import json, os, resource, sys, time
from jaxloop import config
from jaxloop.lm.io import tokenizer
from jaxloop.studies.recursive_loops import sources
from jaxloop.studies.recursive_loops.config import LoopsConfig

raw = config.read_file("configs/ratio_sweep.py:tiny")
raw["domains"] = {"tweets": {"recipe": "100M_tweets", "source": [sys.argv[1]]}}
settings = config.build(LoopsConfig, raw)
tokens = tokenizer.load("jaxloop/assets/bases/llama")
try:
    from jaxloop.studies.recursive_loops.data import token_counts
    count = token_counts.counter(tokens)
except ImportError:  # the commit has no such module
    count = tokens.count
start, cpu = time.perf_counter(), time.process_time()
source = sources.read(settings, "tweets", count)
wall, cpu = time.perf_counter() - start, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"wall": wall, "cpu": cpu, "peak": peak, "kept": len(source.texts),
                  "fingerprint": source.fingerprint}))
"""


def write(path: Path, rows: int, seed: int = 0) -> None:
    """A file of tweets, some of them answers, with links or hashtags, too late, or too short."""
    draw = random.Random(seed)
    comments = list(load_texts("jaxloop:emotions")["text"])
    writer = None
    for start in range(0, rows, 100_000):
        texts, dates = [], []
        for i in range(start, min(rows, start + 100_000)):
            text = " ".join(draw.choices(comments, k=1 + i % 2))
            if i % 3 == 0:
                text = f"@user{draw.randrange(10**6)} {text}"
            if i % 5 == 0:
                text += f" https://t.co/{draw.randrange(36**6):x}"
            if i % 7 == 0:
                text += f" #{draw.choice(comments).split()[-1]} #{i % 1000}days"
            texts.append(text)
            day = f"{draw.randint(1, 12):02d}-{draw.randint(1, 28):02d}"
            dates.append(f"20{draw.randint(12, 22)}-{day} 12:00:00+00:00")
        count = len(texts)
        columns = {"user": [f"u{i % 5000}" for i in range(count)], "id": list(range(count))}
        columns |= {"tweet": texts}
        columns |= {name: [0] * count for name in ("replies", "retweets", "likes", "quotes")}
        table = pa.table(columns | {"date": dates})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()


def clean(folder: Path, path: Path) -> dict[str, float]:
    """What a process says that cleans the file with the code in a folder, its cache empty."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"PYTHONPATH": str(folder), "JAXLOOP_CACHE": cache}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(path)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def export(commit: str, folder: Path) -> Path:
    """The files of a commit, written into a folder."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return folder


def main() -> None:
    """Clean a tenth of the rows, all of them, and all of them with another commit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=whole(1), default=1_000_000)
    parser.add_argument("--before", help="a commit to compare with")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        small, large = place / "small.parquet", place / "large.parquet"
        write(small, options.rows // 10)
        write(large, options.rows)
        runs = {"a tenth": clean(ROOT, small)}
        if options.before:
            runs["before"] = clean(export(options.before, place / "before"), large)
        runs["all"] = clean(ROOT, large)
    rows = {"a tenth": options.rows // 10, "before": options.rows, "all": options.rows}
    for what, run in runs.items():
        print(
            f"{what:8} {rows[what]:>10,} rows  {rows[what] / run['wall']:>9,.0f} rows/s  "
            f"{rows[what] / run['cpu']:>9,.0f} rows/s of processor time  "
            f"{run['peak'] / 2**20:,.0f} MiB at most  {run['kept']:,} texts kept"
        )
    print(json.dumps(_found(options.rows, options.before, runs)))


def _found(rows: int, before: str | None, runs: dict[str, dict[str, float]]) -> dict[str, object]:
    """The speeds and the memory of the runs, and their ratios."""
    now, tenth = runs["all"], runs["a tenth"]
    found: dict[str, object] = {
        "rows": rows,
        "rows_per_second": round(rows / now["wall"]),
        "rows_per_processor_second": round(rows / now["cpu"]),
        "peak_mib": round(now["peak"] / 2**20),
        "peak_mib_of_a_tenth": round(tenth["peak"] / 2**20),
        "peak_over_a_tenth": round(now["peak"] / tenth["peak"], 3),
    }
    if before is not None:
        then = runs["before"]
        found |= {
            "before": before,
            "rows_per_second_before": round(rows / then["wall"]),
            "rows_per_processor_second_before": round(rows / then["cpu"]),
            "peak_mib_before": round(then["peak"] / 2**20),
            "speed_up": round(then["wall"] / now["wall"], 2),
            "speed_up_of_processor_time": round(then["cpu"] / now["cpu"], 2),
            "same_texts": now["fingerprint"] == then["fingerprint"],
        }
    return found


if __name__ == "__main__":
    main()
