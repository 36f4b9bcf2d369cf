"""What measuring a bias-amplification study costs, at two commits: the texts and models of one
finished run, measured again by each.

    python -m jaxloop.main --config=configs/bias_amplification.py:tiny --config.run.keep=none \\
        --workdir=RUN
    python scripts/bench_measuring.py RUN --before=CHECKOUT

RUN must have kept the weights of every generation. CHECKOUT is a folder with the program to compare
with; without it only this one is timed. Each side measures all generations, group by group as the
study did, in a process of its own that reads compiled programs from the cache, `--repeats` times in
turn; the first time of each side fills the cache and is not counted. The values must agree:
metrics to --tolerance relatively, labels and texts exactly. Prints a table and, as its last line,
one JSON object. Seconds are of the processor (all threads) and of the wall, without loading.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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


def difference(before: Path, after: Path) -> float:
    """The largest relative difference of any metric; stops where names differ."""
    old, new = (json.loads((folder / "values.json").read_text()) for folder in (before, after))
    worst = 0.0
    for name, metrics in old.items():
        if sorted(metrics) != sorted(new[name]):
            sys.exit(f"{name}: the metrics differ, {sorted(set(metrics) ^ set(new[name]))}")
        for metric, value in metrics.items():
            other = new[name][metric]
            if value != other and not (value != value and other != other):
                worst = max(worst, abs(value - other) / max(abs(value), abs(other), 1e-30))
    return worst


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="directory of a finished study")
    parser.add_argument("--before", type=Path, help="checkout to compare with")
    parser.add_argument("--generations", help="numbers with commas; none: all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of any metric")
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
        worst = None
        if args.before:
            places = [Path(folder) / name / "0" for name in ("before", "after")]
            worst = difference(places[0], places[1])
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
            f"metrics differ by {worst:.1e} at most"
        )
    print(json.dumps(result))
    return 0 if worst is None or worst <= args.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
