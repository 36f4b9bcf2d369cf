"""What a run took so far, call after call of its command: `.jaxloop.calls.json`.

One entry a call: when it began, the seconds of the wall and of the processor (all threads, and
processes that it started), the commit, the versions and the devices. A call that is killed leaves
its entry without seconds. In a cluster the first process writes it, about itself.
"""

import contextlib
import datetime
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxloop.runtime import environment
from jaxloop.runtime.atomic_io import DiskFull, write_atomic
from jaxloop.runtime.log import redact

CALLS = ".jaxloop.calls.json"


@contextlib.contextmanager
def recorded(root: Path, command: str) -> Iterator[None]:
    """Context of one call of a run: writes its entry at the start, and its seconds at the end."""
    earlier = read(root)
    start, cpu = time.monotonic(), _processor_seconds()
    entry: dict[str, Any] = {
        "began": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command,
        "commit": environment.git_commit(),
        "devices": environment.describe_devices(),
        "versions": dict(environment.versions()),
    }
    _write(root, [*earlier, entry])
    try:
        yield
    finally:
        entry["wall"] = round(time.monotonic() - start, 1)
        entry["processor"] = round(_processor_seconds() - cpu, 1)
        _write(root, [*earlier, entry])


def read(root: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's calls, none where the file is absent or damaged."""
    try:
        calls = json.loads((root / CALLS).read_bytes())
    except (OSError, ValueError):
        return []
    return calls if isinstance(calls, list) else []


def _write(root: Path, calls: list[dict[str, Any]]) -> None:
    # A run is worth more than the record of its costs.
    with contextlib.suppress(OSError, DiskFull):
        write_atomic(root / CALLS, redact(json.dumps(calls, indent=1)).encode(), durable=False)


def _processor_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
