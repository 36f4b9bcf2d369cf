"""Measures every generation of a finished bias-amplification study again, for bench_measuring.py:
run by each side with its own package on PYTHONPATH. Prints its seconds as JSON.

    python scripts/_measure_again.py RUN OUT GENERATION,... [PROFILE]
"""

import cProfile
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

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


def measure_again(
    run: Path, out: Path, generations: list[int], profile: Path | None
) -> dict[str, float]:
    """Measure generations of a run and write values.json and articles/ into `out`."""
    keep_compiled_programs(out.parent / "xla")
    # The next generation trains on what is there; links are not followed inside a run.
    shutil.copytree(run / "texts", out / "texts")
    stored = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config = configs.build(CONFIG, stored.get("config", stored))
    prepared = prepare(config)
    auxiliary = make_auxiliary_models(config, prepared, run)
    model = load_base(config, run)
    measure = make_measure(config, prepared, auxiliary, out)
    work = []
    for generation in generations:
        kept = run / "checkpoints" / f"generation={generation:04d}" / "adapters"
        for group in groups(prepared.chains, generation):
            shared: dict[object, Any] = {}
            outputs = []
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
    profiler = cProfile.Profile()
    wall, cpu, values = time.perf_counter(), time.process_time(), {}
    if profile:
        profiler.enable()
    for generation, outputs in work:
        for (name, _), metrics in measure(model, generation, outputs).items():
            values[f"{name}/{generation}"] = metrics
    if profile:
        profiler.disable()
        profiler.dump_stats(profile)
    seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    (out / "values.json").write_text(json.dumps(values))
    return seconds


if __name__ == "__main__":
    folder, target, chosen, *rest = sys.argv[1:]
    numbers = [int(word) for word in chosen.split(",")]
    profile = Path(rest[0]) if rest else None
    print(json.dumps(measure_again(Path(folder), Path(target), numbers, profile)))
