"""A process that writes texts when told to: what the workers of `bench_decode.py --peer=…` share.

Only the standard library, since a peer's environment holds nothing of ours. A worker reads one JSON
object a line, {"job", "setting"}, and answers with seconds of the clock and of the processor.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_work() -> tuple[Path, dict[str, Any]]:
    """The folder of the work, and what it says: threads, prompt, jobs.

    The process has as many cores as threads from then on.
    """
    folder = Path(sys.argv[1])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(sys.argv[2])])
    work = json.loads((folder / "work.json").read_text(encoding="utf8"))
    return folder, {**work, "threads": int(sys.argv[2])}


def serve(prepare: Callable[[str], None], write: Callable[[str, str], int]) -> None:
    """Answer requests until the input ends.

    Args:
        prepare: makes ready for a setting; its seconds are told apart from those of writing.
        write: writes a job's texts with a setting, and returns the tokens of their lengths.
    """
    answer({"ready": True, "cpu": time.process_time()})
    for line in sys.stdin:
        asked = json.loads(line)
        prepared = _spent(lambda: prepare(asked["setting"]))  # noqa: B023
        tokens = [0]

        def run():
            tokens[0] = write(asked["job"], asked["setting"])  # noqa: B023

        answer(
            {
                **_spent(run),
                "prepared": prepared,
                "tokens": tokens[0],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )


def answer(what: dict[str, Any]) -> None:
    """Tell the process that asked."""
    print("worker:" + json.dumps(what), flush=True)


def _spent(run: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
