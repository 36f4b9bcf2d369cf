"""Training beside what a user could write instead: `bench_train.py --peer=torch|torch-compile|trl`.

Both sides train adapters of the same rank on the same weights and tokens, each in a process of its
own on the same cores, in turn; rows are full, so every token counts. The first losses must agree.
Every setting of both sides is tried and the best of each is measured: of ours, programs at the same
time and chains in each; of torch, processes (with the cores shared out among them) and rows of a
batch at a time. A job is chains x steps.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _peer_environments as environments
import numpy as np
from _decode_peer import SIZES, TOKENIZER, Timed, Worker, in_turn
from _flags import lists, whole
from _peer_pairs import line_of, row_of

from jaxloop.lm.io import huggingface
from jaxloop.lm.io.huggingface import Model
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import bench_model

# The worker of each peer.
PEERS = {
    "torch": "_worker_torch.py",
    "torch-compile": "_worker_torch.py",
    "trl": "_worker_trl.py",
}
TOLERANCE = 1e-3  # of the first losses, in nats


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=tuple(PEERS), required=True)
    parser.add_argument("--make-peer", action="store_true", help="make the peer's environment")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--jobs", default="1x16,4x8", help="chains x steps, with commas")
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--length", type=whole(1), default=64)
    parser.add_argument("--threads", type=whole(1), default=2)
    parser.add_argument(
        "--ours",
        type=lists(2, ":", "2:1,1:2"),
        default="2:1,1:2",
        help="programs:chains in each, with commas",
    )
    parser.add_argument(
        "--theirs",
        type=lists(2, ":", "2:16,1:16"),
        default="2:16,1:16,2:8",
        help="processes:rows at a time",
    )
    parser.add_argument("--repeats", type=whole(1), default=3)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the comparison; 2 after a refusal."""
    flags = read_flags(argv)
    try:
        jobs = [_job(job) for job in flags.jobs.split(",")]
        if flags.make_peer:
            environments.make(flags.peer)
        python = environments.python_of(flags.peer)
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = Path(name)
            write_work(flags, folder)
            sides = {
                "jaxloop": Worker(
                    sys.executable, "_worker_train_jaxloop.py", folder, flags.threads
                ),
                flags.peer: Worker(python, PEERS[flags.peer], folder, flags.threads),
            }
            for worker in sides.values():
                stack.callback(worker.close)
            rows = [_compare(flags, folder, job, sides) for job in jobs]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"what": "training beside a peer", "peer": flags.peer, "rows": rows}))
    return 0


def _job(job: str) -> str:
    counts = job.split("x")
    if len(counts) != 2 or not all(n.isdecimal() and int(n) for n in counts):
        raise ValueError(f"--jobs: {job!r} is not allowed; chains x steps, such as 4x8")
    return job


def write_work(flags: argparse.Namespace, folder: Path) -> None:
    """The base model, and work.json."""
    model = bench_model(BenchConfig(size=flags.size), 1)
    # Its tokenizer is never asked: texts are numbers.
    tokenizer = huggingface.load(TOKENIZER).tokenizer
    huggingface.save(Model(model.config, model.base, tokenizer, "bench"), folder / "model")
    work = {
        "peer": flags.peer,
        "size": flags.size,
        "rank": model.lora.rank,
        "vocab": model.config.vocab_size,
        "batch_size": flags.batch_size,
        "length": flags.length,
    }
    (folder / "work.json").write_text(json.dumps(work), encoding="utf8")


def _compare(
    flags: argparse.Namespace, folder: Path, job: str, sides: dict[str, Worker]
) -> dict[str, Any]:
    """The row of a job, which is printed too."""
    settings = {"jaxloop": flags.ours, flags.peer: flags.theirs}
    best: dict[str, str] = {}
    first: dict[tuple[str, str], Timed] = {}
    for name, worker in sides.items():
        tried = {}
        for setting in _that_divide(settings[name].split(","), job, name == "jaxloop"):
            start, tried[setting] = worker.write(job, setting), worker.write(job, setting)
            first[name, setting] = start
        best[name] = min(tried, key=lambda setting: tried[setting].cpu)  # noqa: B023
    losses = [
        json.loads((folder / f"losses.{side}.json").read_text()) for side in ("jaxloop", "peer")
    ]
    apart = float(np.abs(np.subtract(*losses)).max())
    if not apart <= TOLERANCE:
        raise ValueError(f"the first losses of both sides are {apart:.2g} nats apart")
    pairs = in_turn(sides, job, best, flags.repeats)
    row = _row(flags, job, sides, best, first, pairs)
    print(_line(flags, row), flush=True)
    return row


def _that_divide(settings: list[str], job: str, ours: bool) -> list[str]:
    """The settings with no more processes than chains, whose programs' chains divide a job's."""
    chains = int(job.split("x")[0])
    kept = []
    for setting in settings:
        count, size = map(int, setting.split(":"))
        if chains % size == 0 if ours else count <= chains:
            kept.append(setting)
    if not kept:
        raise ValueError(f"--jobs: none of the settings {', '.join(settings)} fits {job}")
    return kept


def _row(
    flags: argparse.Namespace,
    job: str,
    sides: dict[str, Worker],
    best: dict[str, str],
    first: dict[tuple[str, str], Timed],
    pairs: list[dict[str, Timed]],
) -> dict[str, Any]:
    about = {"size": flags.size, "job": job, "threads": flags.threads}
    row = row_of(about, flags.peer, best, pairs)
    for name, worker in sides.items():
        start = first[name, best[name]]
        row[name] |= {
            "start_s": worker.start_cpu + start.prepared["cpu"],
            "compile_s": max(0.0, start.cpu - statistics.median(pair[name].cpu for pair in pairs)),
        }
    return row


def _line(flags: argparse.Namespace, row: dict[str, Any]) -> str:
    sides = [
        f"{name} ({row[name]['setting']}) {row[name]['us_per_token']:,.1f} us a token, start "
        f"{row[name]['start_s']:.1f} s + compile {row[name]['compile_s']:.1f} s = "
        f"{row[name]['start_s'] + row[name]['compile_s']:.1f} s"
        for name in ("jaxloop", flags.peer)
    ]
    return line_of(row, sides)
