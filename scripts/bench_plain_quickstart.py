"""The quickstart beside a plain script of torch, transformers and peft that does the same.

    python scripts/bench_plain_quickstart.py [--generations=4] [--repeats=3]

In turn: `scripts/plain_quickstart.py` (two processes of one thread), the quickstart with empty
caches, and the quickstart again. Both do four chains with the same bases, sizes, lengths and
metrics, each by its own draws. Prints how diversity changed on both sides, a table of seconds,
ratios to the plain script, and one JSON line. Ratios of wall time are left out where other work
took more than half of every core meanwhile. Needs torch, transformers, peft and sacrebleu.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import pandas as pd
from _commands import ROOT, call
from _flags import whole
from _load import MOST_LOAD, metered

from jaxloop.data.sources import load_texts
from jaxloop.metrics.embed import default_model

SIDES = ("plain", "cold", "warm")
Spent = dict[str, float]  # seconds by clock, and the load of other work


def plain(scratch: Path, texts: Path, generations: int) -> tuple[Spent, dict[str, float]]:
    """(seconds, relative change of diversity by ratio) of the plain script."""
    out = scratch / "plain.json"
    command: list[str | Path] = [sys.executable, ROOT / "scripts/plain_quickstart.py"]
    command += [f"--texts={texts}"]
    command += [f"--encoder={default_model()}", f"--generations={generations}", f"--out={out}"]
    return finished(command, os.environ), change(pd.read_json(out))


def ours(folder: Path, cache: Path, generations: int) -> tuple[Spent, dict[str, float]]:
    """The same of the quickstart."""
    command = [sys.executable, "-m", "jaxloop.main", "--config=configs/quickstart.py"]
    command += [f"--workdir={folder}", f"--config.chain.generations={generations}"]
    done = finished(command, os.environ | {"JAXLOOP_CACHE": str(cache)})
    rows = pd.read_csv(folder / "metrics.csv")
    rows = rows.pivot_table(index=["ratio", "seed", "generation"], columns="metric", values="value")
    return done, change(rows.reset_index())


def finished(command: Sequence[str | Path], environment: Mapping[str, str]) -> Spent:
    """Seconds of a command, and the load of other work per core meanwhile."""
    load_of = metered()
    done = call(list(command), 3600, dict(environment))
    if done.code:
        sys.exit(f"ended with {done.code}: {done.said[-2000:]}")
    load = load_of(done.processor)
    return {"wall": done.seconds, "processor": done.processor, "load": load}


def change(rows: pd.DataFrame) -> dict[str, float]:
    """{ratio: diversity of the last generation / that of the first}, means over seeds."""
    means = rows.groupby(["ratio", "generation"])["cosine_diversity"].mean().unstack()
    return {f"{r:g}": float(row.iloc[-1] / row.iloc[0]) for r, row in means.iterrows()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--generations", type=whole(1), default=4)
    parser.add_argument("--repeats", type=whole(1), default=3)
    args = parser.parse_args()
    seconds: dict[str, list[Spent]] = {side: [] for side in SIDES}
    changes: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        texts = scratch / "texts.json"
        texts.write_text(json.dumps(load_texts("docs")["text"].tolist()), encoding="utf-8")
        for i in range(args.repeats):
            found = {
                "plain": plain(scratch, texts, args.generations),
                "cold": ours(scratch / f"cold-{i}", scratch / f"cache-{i}", args.generations),
                "warm": ours(scratch / f"warm-{i}", scratch / f"cache-{i}", args.generations),
            }
            for side, (spent, changed) in found.items():
                seconds[side].append(spent)
                changes[side] = changed
            loads = (f"{side} {spent['load']:.2f}" for side, (spent, _) in found.items())
            print(f"round {i + 1}, other load of a core: {', '.join(loads)}", flush=True)
    load = max(spent["load"] for side in SIDES for spent in seconds[side])
    result: dict[str, Any] = {
        "generations": args.generations,
        "load": load,
        "diversity_kept": changes,
    }
    for side in SIDES:
        kept = ", ".join(f"r = {ratio}: {value:.2f}" for ratio, value in changes[side].items())
        print(f"{side:6} semantic diversity, last / first generation: {kept}")
    for clock in ("wall", "processor"):
        middle = {s: statistics.median(spent[clock] for spent in seconds[s]) for s in SIDES}
        print(f"{clock:10}" + "".join(f"{side:>8}{middle[side]:8.1f} s" for side in SIDES))
        if clock == "processor" or load <= MOST_LOAD:
            for side in SIDES[1:]:
                ratios = [
                    mine[clock] / theirs[clock]
                    for mine, theirs in zip(seconds[side], seconds["plain"], strict=True)
                ]
                result[f"{side}_{clock}"] = statistics.median(ratios)
                print(f"{side} takes {result[f'{side}_{clock}']:.2f} of the plain script's {clock}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
