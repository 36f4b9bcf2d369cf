"""Commands that a script runs in the repository's root, and what their output says."""

import dataclasses
import re
import resource
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Done:
    """What a command left: exit code (None: it ran past its limit), output, wall and processor
    seconds.
    """

    code: int | None
    said: str
    seconds: float
    processor: float


def call(command: list, limit: float, environment: dict | None = None) -> Done:
    """Runs a command in the repository's root for at most `limit` seconds."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            timeout=limit,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        code, said = (
            None,
            (error.stdout or b"").decode(errors="replace") + f"\nstopped after {limit:g} s",
        )
    except OSError as error:
        code, said = 127, str(error)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Done(code, said, time.monotonic() - start, sum(after[:2]) - sum(before[:2]))


def last_line(said: str) -> str:
    """The last line that says what is wrong, else the last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    wrong = [
        line
        for line in lines
        if re.match(r"(ERROR|E |[\w.]*Error)\b", line) and "resolver" not in line
    ]
    return (wrong or lines or ["no output"])[-1]


def counts(report: Path) -> dict[str, int] | None:
    """Tests passed, failed (errors too) and skipped in a JUnit file; None where there is none that
    can be read.
    """
    try:
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        total = {key: 0 for key in ("tests", "failures", "errors", "skipped")}
        for suite in suites:
            total = {key: n + int(suite.get(key, 0)) for key, n in total.items()}
    except (OSError, ElementTree.ParseError):
        return None
    failed = total["failures"] + total["errors"]
    return {
        "passed": total["tests"] - failed - total["skipped"],
        "failed": failed,
        "skipped": total["skipped"],
    }
