"""A process that works when told to: what the workers of `bench_decode.py --peer=…` and of
`bench_train.py --peer=…` share.

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


def serve(
    prepare: Callable[[str], None],
    write: Callable[[str, str], int],
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Answer requests until the input ends.

    Args:
        prepare: makes ready for a setting; its seconds are told apart from those of writing.
        write: does a job with a setting, and returns its tokens.
        clock: processor seconds of this process, and of those that work for it.
    """
    answer({"ready": True, "cpu": clock()})
    for line in sys.stdin:
        asked = json.loads(line)
        prepared = _spent(clock, lambda: prepare(asked["setting"]))  # noqa: B023
        tokens = [0]

        def run():
            tokens[0] = write(asked["job"], asked["setting"])  # noqa: B023

        answer(
            {
                **_spent(clock, run),
                "prepared": prepared,
                "tokens": tokens[0],
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )


def answer(what: dict[str, Any]) -> None:
    """Tell the process that asked."""
    print("worker:" + json.dumps(what), flush=True)


def _spent(clock: Callable[[], float], run: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), clock()
    run()
    return {"wall": time.perf_counter() - wall, "cpu": clock() - cpu}
