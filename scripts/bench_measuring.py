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
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def measure_again(run: Path, out: Path, profile: Path | None) -> dict[str, float]:
    """Measure every generation of a run and write values.json and articles/ into `out`."""
    # From the side's own tree, which PYTHONPATH names.
    import cProfile

    import numpy as np

    from jaxloop import config as configs
    from jaxloop.recursion.chains import groups
    from jaxloop.recursion.family import ModelOutput
    from jaxloop.runtime.compile_cache import keep_compiled_programs
    from jaxloop.runtime.tables import read_parquet
    from jaxloop.runtime.weights_io import load_tree
    from jaxloop.studies.bias_amplification.auxiliary import load_base, make_auxiliary_models
    from jaxloop.studies.bias_amplification.config import CONFIG
    from jaxloop.studies.bias_amplification.measure import make_measure
    from jaxloop.studies.bias_amplification.prepare import prepare

    keep_compiled_programs(out.parent / "xla")
    stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config = configs.build(CONFIG, stored.get("config", stored))
    prepared = prepare(config)
    auxiliary = make_auxiliary_models(config, prepared, run)
    model = load_base(config, run)
    measure = make_measure(config, prepared, auxiliary, out)
    work = []
    for generation in range(config.chain.generations):
        kept = run / "checkpoints" / f"generation={generation:04d}" / "adapters"
        for group in groups(prepared.chains, generation):
            shared, outputs = {}, []
            for chain, entity in group.members:
                path = run / "texts" / f"chain={chain.id}" / f"generation={generation:04d}.parquet"
                table = read_parquet(path)
                tree = load_tree(kept, f"chain={chain.id}")
                # As in the study, chains that share generation 0 share one object.
                same = repr((chain.seed, chain.fit)) if generation == 0 else chain.id
                outputs.append(
                    ModelOutput(
                        chain,
                        entity,
                        group.base,
                        shared.setdefault(same, tree),
                        list(table["text"]),
                        list(table["prompt"]),
                        np.asarray(table["tokens"]),
                        np.asarray(table["finished"]),
                    )
                )
            work.append((generation, outputs))
    profiler = cProfile.Profile() if profile else None
    wall, cpu, values = time.perf_counter(), time.process_time(), {}
    if profiler:
        profiler.enable()
    for generation, outputs in work:
        for (chain, _), metrics in measure(model, generation, outputs).items():
            values[f"{chain}/{generation}"] = metrics
    if profiler:
        profiler.disable()
        profiler.dump_stats(profile)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    (out / "values.json").write_text(json.dumps(values))
    return seconds


def side(tree: Path, run: Path, out: Path) -> dict[str, float]:
    """The seconds of one side, in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), str(run), f"--worker={out}"]
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
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="relative, of any metric")
    parser.add_argument("--profile", type=Path, help="file for cProfile's numbers of this side")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    run = args.run.resolve()
    if args.worker:
        print(json.dumps(measure_again(run, args.worker, args.profile)))
        return 0
    sides = {"after": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats + 1):
            for name, tree in sides.items():
                seconds[name].append(side(tree, run, Path(folder) / name / f"{repeat}"))
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
