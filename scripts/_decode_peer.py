"""Decoding beside an engine that a user could pick instead: `bench_decode.py --peer=…`.

Both sides write texts of the same lengths with the same weights at temperature 1.5 and min_p 0.2,
each in a process of its own on the same cores, in turn. Ours has an adapter for every chain; the
peer has the first chain's merged into its weights, for all texts. Only tokens of texts count. Every
setting of both sides is tried once and the best of each is measured.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _peer_environments as environments
import numpy as np
from _flags import lists, whole
from _load import metered
from _peer_pairs import line_of, row_of

from jaxloop.lm.io import huggingface
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import bench_model, lengths_of

SCRIPTS = Path(__file__).parent
SIZES = ("tiny", "small", "15m", "60m", "124m")
SETTINGS = {
    "openvino": "64:f32,256:f32,64:u8,256:u8",
    "transformers": "32,64,128",
    "transformers-continuous": "64,256",
    "jaxloop": "planned,128",
}
EXPORT = """
import sys
from optimum.exporters.openvino import main_export
main_export(sys.argv[1], sys.argv[2], task="text-generation-with-past")
"""
TOKENIZER = Path(__file__).parents[1] / "jaxloop" / "assets" / "bases" / "llama"


class Timed(NamedTuple):
    """One writing of a job: seconds, and the load of other work per core meanwhile."""

    wall: float
    cpu: float
    tokens: int
    peak_mb: float
    prepared: dict[str, float]
    load: float


class Worker:
    """A process that writes texts when asked; it may use so many of this machine's cores."""

    def __init__(self, python: Path | str, script: str, folder: Path, threads: int) -> None:
        self._log = folder / f"{script}.{threads}.log"
        start = time.perf_counter()
        self._process = self._started(python, script, folder, threads)
        asked, answers = self._process.stdin, self._process.stdout
        assert asked is not None and answers is not None, "both are pipes"
        self._asked, self._answers = asked, answers
        self.start_cpu = self._answer()["cpu"]
        self.start_wall = time.perf_counter() - start

    def _started(
        self, python: Path | str, script: str, folder: Path, threads: int
    ) -> subprocess.Popen[str]:
        with self._log.open("w", encoding="utf8") as log:
            return subprocess.Popen(
                [python, SCRIPTS / script, folder, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def write(self, job: str, setting: str) -> Timed:
        """Write the texts of a job with a setting."""
        load_of = metered()
        self._asked.write(json.dumps({"job": job, "setting": setting}) + "\n")
        self._asked.flush()
        answer = self._answer()
        spent = answer["cpu"] + answer["prepared"]["cpu"]
        return Timed(**answer, load=load_of(spent))

    def close(self) -> None:
        """End the process."""
        self._asked.close()
        self._process.wait()
        self._answers.close()

    def _answer(self) -> dict[str, Any]:
        for line in self._answers:
            if line.startswith("worker:"):
                return json.loads(line.removeprefix("worker:"))
        raise ValueError("a worker ended: " + self._log.read_text()[-600:].strip())


def read_flags(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", choices=sorted(SETTINGS.keys() - {"jaxloop"}), required=True)
    parser.add_argument("--make-peer", action="store_true", help="make the peer's environment")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--jobs", default="4x250,1x2048", help="chains x texts, with commas")
    parser.add_argument("--mean-length", type=whole(1), default=60)
    parser.add_argument("--longest", type=whole(1), default=300)
    parser.add_argument("--threads", type=lists(1, ",", "1,2"), default="1,2")
    parser.add_argument("--slots", default=SETTINGS["jaxloop"], help="settings of ours")
    parser.add_argument("--batches", default="", help="settings of the peer")
    parser.add_argument("--repeats", type=whole(1), default=3)
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the comparison; 2 after a refusal."""
    flags = read_flags(argv)
    try:
        if flags.make_peer:
            environments.make(flags.peer)
        python = environments.python_of(flags.peer)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            jobs = write_work(flags, folder)
            if flags.peer == "openvino":
                _export(python, folder)
            rows = []
            for threads in map(int, flags.threads.split(",")):
                rows += _compare(flags, python, folder, jobs, threads)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps({"what": "decode beside a peer", "peer": flags.peer, "rows": rows}))
    return 0


def write_work(flags: argparse.Namespace, folder: Path) -> list[str]:
    """The model with the first adapter merged, and work.json; the names of the jobs."""
    jobs = flags.jobs.split(",")
    for job in jobs:
        counts = job.split("x")
        if len(counts) != 2 or not all(n.isdecimal() and int(n) for n in counts):
            raise ValueError(f"--jobs: {job!r} is not allowed; chains x texts, such as 4x250")
    fields = dict(size=flags.size, mean_length=flags.mean_length, longest=flags.longest)
    config, lengths = BenchConfig(**fields), {}
    for job in jobs:
        chains, texts = map(int, job.split("x"))
        lengths[job] = lengths_of(config, chains * texts).reshape(chains, texts).tolist()
    model = bench_model(config, 1)
    merged = lora.merge(model.config, model.base, lora.split(model.adapters, 0))
    # Its tokenizer is never asked: prompts and texts are numbers.
    tokenizer = huggingface.load(TOKENIZER).tokenizer
    huggingface.save(Model(model.config, merged, tokenizer, "bench"), folder / "model")
    prompt = np.random.default_rng(0).integers(2, 512, config.prompt).tolist()
    work = {"model": fields, "jobs": lengths, "prompt": prompt}
    (folder / "work.json").write_text(json.dumps(work), encoding="utf8")
    return jobs


def _export(python: Path, folder: Path) -> None:
    done = subprocess.run(
        [python, "-c", EXPORT, folder / "model", folder / "openvino"],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise ValueError(f"--peer=openvino: the model was not exported: {done.stderr[-600:]}")


def _compare(
    flags: argparse.Namespace, python: Path, folder: Path, jobs: list[str], threads: int
) -> list[dict[str, Any]]:
    """Rows of all jobs with so many threads; each is printed when it is there."""
    with contextlib.ExitStack() as stack:
        sides = {}
        for name, side_python in (("jaxloop", sys.executable), (flags.peer, python)):
            sides[name] = Worker(
                side_python, f"_worker_{name.replace('-', '_')}.py", folder, threads
            )
            stack.callback(sides[name].close)
        return _timed_jobs(flags, jobs, threads, sides)


def in_turn(
    sides: dict[str, Worker], job: str, settings: dict[str, str], repeats: int
) -> list[dict[str, Timed]]:
    """Return {side: what it took} of each repeat of a job, which the sides do in turn.

    settings: {side: its best setting}.
    """
    return [
        {name: worker.write(job, settings[name]) for name, worker in sides.items()}
        for _ in range(repeats)
    ]


def _timed_jobs(
    flags: argparse.Namespace, jobs: list[str], threads: int, sides: dict[str, Worker]
) -> list[dict[str, Any]]:
    settings = {
        "jaxloop": flags.slots.split(","),
        flags.peer: (flags.batches or SETTINGS[flags.peer]).split(","),
    }
    rows = []
    for job in jobs:
        best: dict[str, str] = {}
        first: dict[tuple[str, str], float] = {}
        for name, worker in sides.items():
            tried = {}
            for setting in settings[name]:
                start = worker.write(job, setting)
                again = worker.write(job, setting) if name == "jaxloop" else start
                tried[setting] = again
                first[name, setting] = start.cpu + start.prepared["cpu"] - again.cpu
                if name != "jaxloop":
                    first[name, setting] = start.prepared["cpu"]
            best[name] = min(tried, key=lambda setting: tried[setting].cpu)  # noqa: B023
        pairs = in_turn(sides, job, best, flags.repeats)
        rows.append(_row(flags, job, threads, sides, best, first, pairs))
        print(_line(rows[-1]), flush=True)
    return rows


def _row(
    flags: argparse.Namespace,
    job: str,
    threads: int,
    sides: dict[str, Worker],
    best: dict[str, str],
    first: dict[tuple[str, str], float],
    pairs: list[dict[str, Timed]],
) -> dict[str, Any]:
    about = {"size": flags.size, "job": job, "threads": threads}
    row = row_of(about, flags.peer, best, pairs)
    for name, worker in sides.items():
        row[name] |= {
            "start_s": worker.start_cpu,
            "compile_s": first[name, best[name]],
            "peak_mb": max(pair[name].peak_mb for pair in pairs),
        }
    return row


def _line(row: dict[str, Any]) -> str:
    sides = [
        f"{name} ({side['setting']}) {side['us_per_token']:,.1f} us a token, start "
        f"{side['start_s']:.1f} s + compile {side['compile_s']:.1f} s, {side['peak_mb']:,.0f} MB"
        for name, side in row.items()
        if isinstance(side, dict)
    ]
    return line_of(row, sides)
