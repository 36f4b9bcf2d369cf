"""Results pages: what a paper claims, what was expected, and what a run shows, with a verdict.

`jaxloop results RUN --expect=FILE.toml --out=DIR` writes DIR/NAME.md (NAME is that of the file),
with the figures and tables that the file names beside it.
"""

import datetime
import math
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.recursion import saved_run
from jaxloop.reporting.figures import png
from jaxloop.results import beside, measures, page, verdict
from jaxloop.results.expectations import Claim, Expectations, decisions, read
from jaxloop.results.page import Finding, Made, Provenance
from jaxloop.runtime.atomic_io import inside, sha256, write_atomic
from jaxloop.runtime.environment import git_output
from jaxloop.studies.common import spent

__all__ = ["findings", "run_action", "write"]

USAGE = "results RUN --expect=FILE.toml [--out=DIR], which writes DIR/FILE.md"


class ResultsPage(NamedTuple):
    """A page that was written, and what it says."""

    path: Path
    findings: Sequence[Finding]


def findings(run: Path, expectations: Expectations) -> list[Finding]:
    """Return what a run shows about every claim.

    Raises:
        ValueError: a measure is not understood, or the run does not have what it names; the claim
            is named.
    """
    for one in directories(run, expectations):
        saved_run.require_run(one)
    return [_finding(run, claim, expectations.confidence) for claim in expectations.claims]


def directories(run: Path, expectations: Expectations) -> list[Path]:
    """Return the directories of the runs that a page is of: `run`, or those below it."""
    return [run / name for name in expectations.runs] or [run]


def _finding(run: Path, claim: Claim, confidence: float) -> Finding:
    try:
        estimate = measures.measure(run, claim.measure)
        predicted = measures.measure(run, claim.formula).value if claim.formula else None
    except ValueError as error:
        raise ValueError(f"claim {claim.name!r}: {error}") from None
    interval = verdict.interval(estimate, confidence)
    target = predicted if isinstance(claim.value, str) else claim.value
    # A claim about the formula has one: `expectations.read` has checked it.
    judged = verdict.judge(claim, interval, math.nan if target is None else target)
    return Finding(claim, estimate, interval, judged, predicted)


def write(run: Path, expect: Path, out: Path) -> ResultsPage:
    """Write the page of a run, with its figures and tables in a folder beside it.

    Raises:
        ValueError: as `findings` and `expectations.read`, or a figure or table is missing; nothing
            is written then.
    """
    expectations = read(expect)
    judged = findings(run, expectations)
    files = [*expectations.figures, *expectations.tables]
    for name in files:
        if not inside(run, name).is_file():
            raise ValueError(f"expect={expect}: the run has no file {name!r}")
    folder = out / expect.stem
    folder.mkdir(parents=True, exist_ok=True)
    places = {name: f"{expect.stem}/{_file_name(name, expectations)}" for name in files}
    for name, place in places.items():
        shutil.copyfile(inside(run, name), out / place)
    figures = {places[name]: caption for name, caption in expectations.figures.items()}
    if expectations.beside:
        picture = f"{expect.stem}/beside.png"
        write_atomic(out / picture, png(beside.draw(judged)), durable=False)
        figures[picture] = expectations.beside
    command = shlex.join(["jaxloop", "results", "RUN", f"--expect={expect}", f"--out={out}"])
    made = [
        Made(one.name if expectations.runs else "", spent.read(one), sha256(one / "config.json"))
        for one in directories(run, expectations)
    ]
    provenance = Provenance(
        command=command,
        runs=made,
        expected=_written_down(expect, [one.calls for one in made]),
        source=_link(expect, out),
    )
    text = page.render(
        expectations,
        judged,
        provenance,
        figures=figures,
        tables=[places[name] for name in expectations.tables],
    )
    path = out / f"{expect.stem}.md"
    write_atomic(path, text.encode("utf-8"))
    return ResultsPage(path, judged)


def _link(expect: Path, out: Path) -> str:
    """The name of the file of expectations, with a link where it lies beside or below the page."""
    try:
        place = expect.resolve().relative_to(out.resolve())
    except ValueError:
        return expect.name
    return f"[{expect.name}]({place.as_posix()})"


def _file_name(name: str, expectations: Expectations) -> str:
    """The name of a file of the run beside the page: of several runs, that of the run is in it."""
    parts = Path(name).parts
    return f"{parts[0]}_{parts[-1]}" if expectations.runs else parts[-1]


def _written_down(expect: Path, calls: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """A sentence that says whether the file was committed before the first run began.

    calls: of every run.
    """
    folder = expect.parent.resolve()
    try:
        committed = git_output(folder, "log", "-1", "--format=%cI %h", "--", expect.name)
        changed = git_output(folder, "status", "--porcelain", "--", expect.name)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if not committed or not all(calls):
        return "Whether they were written down before the run is not known."
    when, commit = committed.split()
    if changed:
        return f"They were changed after commit {commit} and not committed again."
    began = min(str(of_run[0]["began"]) for of_run in calls)
    moment, start = (datetime.datetime.fromisoformat(text) for text in (when, began))
    what = "the run" if len(calls) == 1 else "the first run"
    changed_last = f"Last changed in commit {commit} of {when[:16]}"
    if moment <= start:
        return f"{changed_last}, before {what} began."
    words = _same_before(expect, began)
    return f"{changed_last}, AFTER {what} began{words}."


def _same_before(expect: Path, began: str) -> str:
    """Words that what decides the verdicts was committed before a time; "" where it was not."""
    folder = expect.parent.resolve()
    log = ("log", "-1", f"--before={began}", "--format=%cI %h", "--", expect.name)
    earlier = git_output(folder, *log)
    if not earlier:
        return ""
    when, commit = earlier.split()
    before = git_output(folder, "show", f"{commit}:./{expect.name}")
    if decisions(before) != decisions(expect.read_text(encoding="utf-8")):
        return ""
    return f", in words alone: what decides the verdicts is that of commit {commit} of {when[:16]}"


def run_action(words: Sequence[str]) -> str:
    """Return what `jaxloop results WORDS` prints, after doing it.

    Raises:
        ValueError: as `write`, or a word is not understood.
    """
    runs, options = [], {"expect": "", "out": "docs/results"}
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in options and value:
            options[name] = value
        elif word.startswith("-"):
            raise ValueError(f"results {word}: is not understood; it is {USAGE}")
        else:
            runs.append(word)
    if len(runs) != 1 or not options["expect"]:
        raise ValueError(f"results: one run directory and --expect are needed; it is {USAGE}")
    written = write(*(Path(x).expanduser() for x in (runs[0], options["expect"], options["out"])))
    lines = [f"{finding.verdict}: {finding.claim.name}" for finding in written.findings]
    return "\n".join([*lines, str(written.path)])
