"""What it costs to run on two machines without a common disk.

    python scripts/bench_store.py --repeats 3

Two processes with a disk of their own each, over an S3 server on this machine (moto's), against the
same two processes on one disk, in turn. The study is the quickstart with four times as many texts
per generation. Prints the wall and processor seconds of each run, the medians, the bytes that
were sent to the store for a generation against those that the run keeps of it, and, as its last
line, one JSON object. Needs the extras `store-tests` and `test`.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import _root
from _flags import whole

from tests import store_servers

PLACES = ("one disk", "store")


def fields_of(config: str, generations: int, times: int) -> list[str]:
    """The words that say what is run; times: so many of the quickstart's texts."""
    return [
        f"--config={config}",
        f"--config.chain.generations={generations}",
        f"--config.chain.size={256 * times}",
        f"--config.chain.eval_texts={96 * times}",
        f"--config.fit.steps={20 * times}",
        "--config.run.keep=none",  # nothing is pruned, so what is kept can be counted at the end
    ]


def start_server() -> tuple[subprocess.Popen, str]:
    """An S3 server in a process of its own, so that its processor time is not the runs', and its
    endpoint; the bucket is called "bench".
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            request = urllib.request.Request(f"{endpoint}/bench", method="PUT")
            urllib.request.urlopen(request, timeout=20).read()
            return server, endpoint
        except OSError:
            time.sleep(0.1)
    server.kill()
    sys.exit("the S3 server did not start; it needs the extra `store-tests`")


def run(fields: Sequence[str], workdir: str, scratch: Path, cache: Path, store: bool) -> dict:
    """Seconds of the clock and of the processors of a run of two processes."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, processes = time.perf_counter(), []
    for process in range(2):
        disk = scratch / f"machine-{process}"
        environment = os.environ | {
            "JAXLOOP_COORDINATOR": coordinator,
            "JAXLOOP_PROCESSES": "2",
            "JAXLOOP_PROCESS": str(process),
            # A disk each; what was compiled before lies in a folder that all runs have.
            "JAXLOOP_CACHE": str(disk if store else scratch / "cache"),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
        }
        command = [sys.executable, "-m", "jaxloop.main", *fields, f"--workdir={workdir}"]
        errors = open(scratch / f"errors-{process}", "w+")  # noqa: SIM115  # read when it has ended
        processes.append(
            (
                subprocess.Popen(
                    command,
                    cwd=_root.ROOT,
                    env=environment,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                ),
                errors,
            )
        )
    for one, errors in processes:
        code = one.wait()
        if code:
            errors.seek(0)
            sys.exit(f"a process ended with {code}: {errors.read()[-2000:]}")
        errors.close()
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": spent}


def count_bytes(fields: Sequence[str], scratch: Path, endpoint: str) -> tuple[int, int]:
    """Bytes that a run keeps, and that it sends to the store: seen by a proxy, in a run of its
    own, as the proxy takes time.
    """
    behaviour = store_servers.Behaviour()
    with store_servers.proxy(endpoint, behaviour) as through:
        os.environ["AWS_ENDPOINT_URL"] = through
        here = scratch / "counted"
        here.mkdir()
        run(fields, "s3://bench/counted", here, scratch / "compiled", store=True)
    # Each machine has the weights that it trained, and all of the rest.
    kept: dict[Path, int] = {}
    for machine in sorted(here.glob("machine-*")):
        for root in machine.rglob("run"):
            kept |= {p.relative_to(root): p.stat().st_size for p in root.rglob("*") if p.is_file()}
    return sum(kept.values()), behaviour.sent


def main() -> None:
    """Run both in turn and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--repeats", type=whole(1), default=3)
    parser.add_argument("--generations", type=whole(1), default=3)
    parser.add_argument(
        "--times", type=whole(1), default=4, help="quickstart's texts, so many times"
    )
    args = parser.parse_args()
    fields = fields_of(args.config, args.generations, args.times)
    server, endpoint = start_server()
    os.environ |= {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    found: dict[str, list[dict]] = {place: [] for place in PLACES}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        try:
            for turn in range(-1, args.repeats):
                for place in PLACES:
                    here = scratch / f"{place}-{turn}"
                    here.mkdir()
                    workdir = str(here / "run") if place == "one disk" else f"s3://bench/{turn}"
                    one = run(fields, workdir, here, scratch / "compiled", place == "store")
                    print(f"{place}, turn {turn}: {one['wall']:.1f} s", file=sys.stderr)
                    if turn < 0:
                        continue  # it compiles
                    found[place].append(one)
                    shutil.rmtree(here)
            kept, sent = count_bytes(fields, scratch, endpoint)
        finally:
            server.terminate()
            server.wait()
    report(found, kept, sent, args.generations)


def report(found: dict, kept: int, sent: int, generations: int) -> None:
    """Print the table, and the JSON object with the ratios."""
    print(f"{'':10}{'turn':>6}{'wall':>10}{'processor':>11}")
    middle = {}
    for place in PLACES:
        for turn, one in enumerate(found[place]):
            print(f"{place:10}{turn:>6}{one['wall']:>9.1f}s{one['processor']:>10.1f}s")
        middle[place] = {
            kind: statistics.median(one[kind] for one in found[place])
            for kind in ("wall", "processor")
        }
        print(
            f"{place:10}{'median':>6}{middle[place]['wall']:>9.1f}s"
            f"{middle[place]['processor']:>10.1f}s"
        )
    ratio = middle["store"]["wall"] / middle["one disk"]["wall"]
    bytes_ratio = sent / kept
    print(f"bytes per generation: {sent / generations:.0f} sent, {kept / generations:.0f} kept")
    print(
        json.dumps(
            {
                "value": ratio,
                "unit": "wall time over a store / on one disk",
                "processor_ratio": middle["store"]["processor"] / middle["one disk"]["processor"],
                "bytes_ratio": bytes_ratio,
                "wall_s": {place: middle[place]["wall"] for place in PLACES},
                "processor_s": {place: middle[place]["processor"] for place in PLACES},
            }
        )
    )


if __name__ == "__main__":
    main()
