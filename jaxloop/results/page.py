"""A page of results in Markdown: claims, intervals and verdicts, and how they came about."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxloop.recursion.progress import duration
from jaxloop.results import verdict
from jaxloop.results.expectations import BELOW, NEAR, Claim, Expectations
from jaxloop.results.verdict import Estimate, Interval

# What stands in the place of a section where a claim is ours alone.
OWN = "not in the paper"
_ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5}(?:v\d+)?)")
# The directory of a run is of its machine.
_WORKDIR = re.compile(r"--?workdir(=| +)('[^']*'|\S+)")


@dataclass(frozen=True)
class Finding:
    """What a run shows about one claim.

    Attributes:
        claim: the claim.
        estimate: of the measure.
        interval: of the measure.
        verdict: a key of `verdict.RULES`.
        predicted: what the closed form says; None where there is none.
    """

    claim: Claim
    estimate: Estimate
    interval: Interval
    verdict: str
    predicted: float | None = None


@dataclass(frozen=True)
class Made:
    """How a run came about.

    Attributes:
        name: of its directory, "" where the page is of one run.
        calls: entries of `studies.common.spent` of the run.
        fingerprint: SHA-256 of the run's config.
    """

    name: str
    calls: Sequence[Mapping[str, Any]]
    fingerprint: str


@dataclass(frozen=True)
class Provenance:
    """How a page's numbers came about.

    Attributes:
        command: makes the page from the run.
        runs: that the page is of.
        expected: words about when the expectations were written down, "" where that is unknown.
        source: the file of expectations: its name, or a link to it.
    """

    command: str
    runs: Sequence[Made]
    expected: str
    source: str


def render(
    expectations: Expectations,
    findings: Sequence[Finding],
    provenance: Provenance,
    *,
    figures: Mapping[str, str],
    tables: Sequence[str],
) -> str:
    """Return the page.

    Args:
        expectations: what was expected.
        findings: one for each claim, in order.
        provenance: how the numbers came about.
        figures: {path of a picture, from the page: caption}.
        tables: paths of CSV files, from the page.
    """
    parts = [
        f"# {expectations.title}",
        f"{_linked(expectations.paper)}. {_counted(findings)}",
        *expectations.setting,
        "## Claims",
        _claims(findings, expectations.confidence),
        f"Ours: estimate and {expectations.confidence:.0%} interval, one for each claim and not "
        f"adjusted for their number ({len(findings)}). The verdicts follow a rule that was "
        "written down with the expectations:",
        "\n".join(f"* **{name}**: {rule}." for name, rule in verdict.RULES.items()),
    ]
    if figures:
        parts += ["## Figures", *(f"![{text}]({path})\n\n{text}" for path, text in figures.items())]
    parts += [
        "## How precise",
        f"Found with {verdict.POWER:.0%} power: a true difference of this size from the number "
        "that the claim is compared with would give an interval without that number in "
        f"{verdict.POWER:.0%} of such runs.",
        _precision(findings, expectations.confidence),
        "## What cannot be concluded",
        "\n".join(f"* {sentence}" for sentence in (*expectations.limits, *_undecided(findings)))
        or "Every claim was decided; what they mean beyond this setting is not tested here.",
        "## How it was made",
        _provenance(provenance),
    ]
    if tables:
        links = ", ".join(f"[{path.rsplit('/', 1)[-1]}]({path})" for path in tables)
        parts.append(f"The numbers behind the figures: {links}.")
    return "\n\n".join(parts) + "\n"


def _linked(paper: str) -> str:
    """Return the words about the paper with a link to it, as the beginning of a sentence."""
    words = paper if paper.startswith("arXiv") else f"{paper[:1].upper()}{paper[1:]}"
    return _ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", words)


def _counted(findings: Sequence[Finding]) -> str:
    """Return how many claims there are, with which verdicts, and how many are of no paper."""
    counts = Counter(finding.verdict for finding in findings)
    verdicts = ", ".join(f"{counts[name]} {name}" for name in verdict.RULES if counts[name])
    own = sum(finding.claim.where.startswith(OWN) for finding in findings)
    words = f"{len(findings)} claim{'s' if len(findings) > 1 else ''}: {verdicts}."
    if own:
        words += f" Not in the paper: {own} of them, where *replicated* means *as expected*."
    return words


def _claims(findings: Sequence[Finding], confidence: float) -> str:
    with_formula = any(finding.predicted is not None for finding in findings)
    names = ["claim", "paper", "expected", "ours", "verdict"]
    if with_formula:
        names.insert(4, "formula")
    rows = []
    for finding in findings:
        claim = finding.claim
        cells = [
            f"{claim.says} ({claim.where})",
            claim.number or "no number",
            expected(claim),
            estimate_text(finding),
            f"**{finding.verdict}**",
        ]
        if with_formula:
            predicted = finding.predicted
            cells.insert(4, "" if predicted is None else number(predicted))
        rows.append(cells)
    return _table(names, rows)


def expected(claim: Claim) -> str:
    """Return what was expected of a claim in words."""
    target = claim.value if isinstance(claim.value, str) else number(claim.value)
    if claim.expect == NEAR:
        return f"{target} ± {number(claim.by)}"
    word = "below" if claim.expect == BELOW else "above"
    by = f", by {number(claim.by)} at least" if claim.by else ""
    return f"{word} {target}{by}"


def estimate_text(finding: Finding) -> str:
    """Return an estimate with its interval in words."""
    if not math.isfinite(finding.estimate.value):
        return "no value"
    value = number(finding.estimate.value)
    if finding.estimate.n == 0:
        return f"{value} (exact)"
    if not math.isfinite(finding.interval.low):
        units = f"one of {finding.estimate.unit}"
        if finding.estimate.n > 1:
            units = f"{finding.estimate.n:,} {finding.estimate.unit} without a standard error"
        return f"{value} (no interval: {units})"
    return f"{value} [{number(finding.interval.low)}, {number(finding.interval.high)}]"


def number(value: float) -> str:
    """Return a number with four digits, and no sign of a zero; `–` for nan."""
    if math.isnan(value):
        return "–"
    return f"{value + 0.0:.4g}"


def _precision(findings: Sequence[Finding], confidence: float) -> str:
    rows = []
    for finding in findings:
        estimate = finding.estimate
        least = verdict.smallest_detectable(estimate, confidence)
        units = "exact" if estimate.n == 0 else f"{estimate.n:,} {estimate.unit}"
        exact = estimate.n == 0
        rows.append(
            [
                finding.claim.says,
                units,
                "0" if exact else number(estimate.se),
                "any" if exact else number(least),
                finding.claim.note,
            ]
        )
    found = f"found with {verdict.POWER:.0%} power"
    names = ["claim", "units", "standard error", found, "why this size"]
    return _table(names, rows)


def _undecided(findings: Iterable[Finding]) -> list[str]:
    return [
        f"Undecided: {finding.claim.says[0].lower()}{finding.claim.says[1:]}."
        for finding in findings
        if finding.verdict == verdict.UNDECIDED
    ]


def _provenance(provenance: Provenance) -> str:
    lines = [
        f"* page: `{provenance.command}`",
        f"* expectations: {provenance.source}. {provenance.expected}".rstrip(),
    ]
    runs = [_made(run) for run in provenance.runs]
    if len(runs) == 1:
        first, *others = runs[0]
        return "\n".join([first, *lines, *others])
    named = [
        [f"* run {made.name}:", *(f"    {line}" for line in run)]
        for made, run in zip(provenance.runs, runs, strict=True)
    ]
    return "\n".join([*lines, *(line for run in named for line in run)])


def _made(run: Made) -> list[str]:
    """The lines about a run: its command first, if it has a record of its calls."""
    prints = f"* SHA-256 of its configuration begins with `{run.fingerprint[:16]}`"
    if not run.calls:
        return [prints, "* the run has no record of its calls"]
    last = run.calls[-1]
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    ended = [call for call in run.calls if "wall" in call]
    killed = len(run.calls) - len(ended)
    took = ", ".join(
        f"{duration(sum(call[kind] for call in ended))} of the {kind}"
        for kind in ("wall", "processor")
    )
    calls = f"{len(run.calls)} call{'s' if len(run.calls) > 1 else ''}"
    not_counted = f"; {killed} of them killed, whose time is not counted" if killed else ""
    same = all(call["versions"] == last["versions"] for call in run.calls)
    whose = "" if same else " of the last call"
    place = f"RUN/{run.name}" if run.name else "RUN"
    return [
        f"* run: `{_WORKDIR.sub(f'--workdir={place}', last['command'])}`",
        prints,
        f"* begun {run.calls[0]['began']}, {calls}: {took}{not_counted}",
        f"* code: commit {_each(run, 'commit')}; devices: {_each(run, 'devices')}",
        f"* versions{whose}: {versions}",
    ]


def _each(run: Made, field: str) -> str:
    """What the calls of a run have in a field, in order, each once."""
    return ", then ".join(dict.fromkeys(call[field] for call in run.calls))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(names), line(["---"] * len(names)), *map(line, rows)])
