"""How long the quickstart takes, and how much of that is neither training nor writing.

    python scripts/bench_quickstart.py

Runs the README's command --repeats times in a process of its own and a new run directory each,
after one run that fills the caches (the first of all is also reported, if they were empty: --cold
points them to a new folder). The clock is that of the whole command, interpreter included. Prints a
table and, as its last line, one JSON object.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _root  # noqa: F401
from _flags import whole

STEP = re.compile(r"(fit|sample|measure) ([\d.]+) s")


def run(config: str, folder: Path, environment: dict) -> dict[str, float]:
    """Seconds of one run: in all, in each kind of step, and of waiting for neither training nor
    writing ("rest").
    """
    command = [sys.executable, "-m", "jaxloop.main", f"--config={config}", f"--workdir={folder}"]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=_root.ROOT, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    line = next(
        line for line in (folder / "run.log").read_text().splitlines() if " in all: " in line
    )
    spent = {kind: float(seconds) for kind, seconds in STEP.findall(line)}
    return {"wall": wall, **spent, "rest": wall - spent["fit"] - spent["sample"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=whole(1), default=3)
    parser.add_argument(
        "--cold",
        action="store_true",
        help="start from empty caches, in a folder that is removed afterwards",
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        environment = dict(os.environ) | (
            {"JAXLOOP_CACHE": f"{scratch}/cache"} if args.cold else {}
        )
        found = [
            run(args.config, Path(scratch) / f"run-{i}", environment)
            for i in range(args.repeats + 1)
        ]
    kinds = ("wall", "fit", "sample", "measure", "rest")
    middle = {kind: statistics.median(f[kind] for f in found[1:]) for kind in kinds}
    share = statistics.median(f["rest"] / f["wall"] for f in found[1:])
    print(f"{'':12}" + "".join(f"{kind:>10}" for kind in kinds) + f"{'rest/wall':>11}")
    for name, f in [
        *((("first", "again")[i > 0], f) for i, f in enumerate(found)),
        ("median", middle),
    ]:
        print(
            f"{name:12}"
            + "".join(f"{f[kind]:>9.1f}s" for kind in kinds)
            + f"{f['rest'] / f['wall']:>11.1%}"
        )
    print(
        "measuring goes on beside training; rest is what neither trains nor writes: start, "
        "waiting for measurements, files, the report"
    )
    print(
        json.dumps(
            {
                "value": share,
                "unit": "share of the wall time",
                "first_s": found[0]["wall"],
                "cold": args.cold,
                **{f"{k}_s": middle[k] for k in kinds},
            }
        )
    )


if __name__ == "__main__":
    main()
