"""Results pages: what a paper claims, what was expected, and what a run shows, with a verdict.

`jaxloop results RUN --expect=FILE.toml --out=DIR` writes DIR/NAME.md (NAME is that of the file),
with the figures and tables that the file names beside it.
"""

import math
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.recursion import saved_run
from jaxloop.reporting.figures import png
from jaxloop.results import beside, history, measures, page, verdict
from jaxloop.results.expectations import Claim, Expectations, read
from jaxloop.results.page import Finding, Made, Provenance
from jaxloop.runtime.atomic_io import inside, sha256, write_atomic
from jaxloop.runtime.user_path import user_path
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
        expected=history.written_down(
            expect,
            _began([one.calls for one in made]),
            "the first run" if len(made) > 1 else "the run",
        ),
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


def _began(calls: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """When the first of several runs began, "" where that of one is unknown.

    calls: of every run.
    """
    return min(str(of_run[0]["began"]) for of_run in calls) if all(calls) else ""


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
    written = write(*(user_path(x) for x in (runs[0], options["expect"], options["out"])))
    lines = [f"{finding.verdict}: {finding.claim.name}" for finding in written.findings]
    return "\n".join([*lines, str(written.path)])
