"""What measuring a bias-amplification study costs, at two commits: the texts and models of one
finished run, measured again by each.

    python -m jaxloop.main --config=configs/bias_amplification.py:tiny --config.run.keep=none \\
        --workdir=RUN
    python scripts/bench_measuring.py RUN --before=CHECKOUT

RUN must have kept the weights of every generation. CHECKOUT is a folder with the program to compare
with; without it only this one is timed. Each side measures all generations, group by group as the
study did, in a process of its own that reads compiled programs from the cache, `--repeats` times in
turn; the first time of each side fills the cache and is not counted. The values of every chain,
article and neuron must agree: to --tolerance of the largest of a column, labels exactly. Prints a
table and, as its last line, one JSON object. Seconds are of the processor (all threads) and of the
wall, without loading.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from _flags import lists, not_negative, whole

ROOT = Path(__file__).resolve().parents[1]
WORKER = ROOT / "scripts" / "_measure_again.py"


def side(tree: Path, run: Path, out: Path, generations: str) -> dict[str, float]:
    """The seconds of one side, in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(WORKER), str(run), str(out), generations]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{tree}: measuring failed, exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def difference(before: Path, after: Path, changed: Sequence[str]) -> tuple[float, str]:
    """The largest relative difference of any metric and of any value of an article or a neuron,
    with its name; stops where names or labels differ.
    """
    worst = (0.0, "nothing")
    old, new = (json.loads((folder / "values.json").read_text()) for folder in (before, after))
    check_names("values.json", old, new)
    for name, metrics in old.items():
        check_names(name, metrics, new[name])
        for metric in set(metrics) - set(changed):
            values = np.array([metrics[metric]]), np.array([new[name][metric]])
            worst = max(worst, (apart(*values), f"{metric} of {name}"))
    for path in sorted(before.glob("*/chain=*/*.parquet")):
        if path.parts[-3] == "texts":
            continue
        place = path.relative_to(before)
        table, other = pd.read_parquet(path), pd.read_parquet(after / place)
        check_names(str(place), map(str, table), map(str, other))
        for column in set(table) - set(changed):
            if table[column].dtype.kind == "f":
                pair = table[column].to_numpy(), other[column].to_numpy()
                worst = max(worst, (apart(*pair), f"{column} of {place}"))
            elif table[column].tolist() != other[column].tolist():
                sys.exit(f"{place}: column {column} differs")
    return worst


def check_names(where: str, before: Iterable[str], after: Iterable[str]) -> None:
    """Stop where names differ."""
    if different := set(before) ^ set(after):
        sys.exit(f"{where}: the names differ, {sorted(different)}")


def apart(before: np.ndarray, after: np.ndarray) -> float:
    """The largest difference over the largest value, since means near 0 are sums that cancel;
    infinite where one is NaN and the other is not.
    """
    if (np.isnan(before) != np.isnan(after)).any():
        return math.inf
    scale = max(np.nanmax(abs(before), initial=0.0), 1e-30)
    return float(np.nanmax(abs(before - after), initial=0.0) / scale)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a finished study")
    parser.add_argument("--before", type=Path, help="checkout to compare with")
    parser.add_argument(
        "--generations", type=lists(1, ",", "0,3", 0), help="numbers with commas; none: all"
    )
    parser.add_argument("--repeats", type=whole(1), default=3)
    parser.add_argument(
        "--tolerance", type=not_negative, default=1e-4, help="relative, of any metric"
    )
    parser.add_argument(
        "--changed", nargs="*", default=(), help="metrics and columns that are of other texts since"
    )
    args = parser.parse_args()
    run = args.run.resolve()
    chosen = args.generations or ",".join(
        str(int(path.name.split("=")[1])) for path in sorted((run / "checkpoints").iterdir())
    )
    sides = {"after": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats + 1):
            for name, tree in sides.items():
                seconds[name].append(side(tree, run, Path(folder) / name / f"{repeat}", chosen))
        worst, where = None, ""
        if args.before:
            before, after = (Path(folder) / name / "0" for name in ("before", "after"))
            worst, where = difference(before, after, args.changed)
    table = {
        name: {
            clock: statistics.median(row[clock] for row in rows[1:]) for clock in ("cpu", "wall")
        }
        for name, rows in seconds.items()
    }
    for name, row in table.items():
        print(f"{name:<8} {row['cpu']:>8.1f} s of the processor {row['wall']:>8.1f} s wall")
    result = {"benchmark": "measuring", "repeats": args.repeats, **table}
    if args.before:
        result |= {
            "ratio_cpu": table["after"]["cpu"] / table["before"]["cpu"],
            "ratio_wall": table["after"]["wall"] / table["before"]["wall"],
            "difference": worst,
        }
        print(
            f"ratio    {result['ratio_cpu']:>8.2f}                {result['ratio_wall']:>8.2f}; "
            f"values differ by {worst:.1e} at most ({where})"
        )
    print(json.dumps(result))
    return 0 if worst is None or worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
