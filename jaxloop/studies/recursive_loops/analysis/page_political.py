"""The political part of findings.html: how the lean of every mix changed, and limits of that."""

import json

import pandas as pd

from jaxloop.reporting.report import Section
from jaxloop.studies.recursive_loops.analysis import findings_political, paper_figures_political
from jaxloop.studies.recursive_loops.analysis.findings_regression import spread
from jaxloop.studies.recursive_loops.analysis.output import page_table, save_table
from jaxloop.studies.recursive_loops.analysis.run_tables import Run

# What the names of mixes and columns say.
MIXES = (
    "Of the human texts of mix 75l25r 75 % are of the left and 25 % of the right. Lean goes from 0 "
    "(left) to 100 (right); initial is the mean of a mix before synthetic text has entered, final "
    "that of the last generation, shift their difference with its 95 % interval over chains. p and "
    "bias are of t tests over chains at 5 %, not adjusted for the number of mixes."
)
# Missing chains that a sentence names.
_NAMED = 20


def has_several_bases(run: Run) -> bool:
    """Return whether the run has chains that differ in their base models."""
    return "bases" in run.chains and run.chains["bases"].nunique() > 1


def with_mixed_bases(run: Run) -> Run:
    """Return the chains that draw their base models; all chains where none or all of them do."""
    if "bases" not in run.chains:
        return run
    is_mixed = run.chains["bases"].astype(str) == "mixed"
    return run._replace(chains=run.chains[is_mixed]) if is_mixed.any() else run


def sections(run: Run, *, neutral: tuple[float, float]) -> list[Section]:
    """Write the tables lean, lean_by_generation and lean_bins; return the page's sections.

    neutral: (low, high): leanings in between count as neutral.
    """
    words, table = findings_political.political(run, neutral=neutral)
    leans = paper_figures_political.leans(run)
    by_chain = paper_figures_political.by_chain(leans, neutral)
    save_table(run, "lean", table)
    save_table(run, "lean_by_generation", by_chain)
    save_table(run, "lean_bins", _bins(run))
    is_last = by_chain["generation"] == by_chain["generation"].max()
    scored = set(by_chain[is_last]["chain"])
    missing = [str(chain) for chain in run.chains["chain"] if chain not in scored]
    names = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
    limits = [
        f"{len(run.chains)} chains were planned; {len(missing)} have no scored text in the last "
        "generation" + (f": {names}." if missing else "."),
        f"A mix has {spread(table['n'].tolist())} chains: a shift inside its interval "
        "in the table is not told from none.",
        *_classifier_accuracy(run),
        "The lean is what the scorer says it is. A classifier fitted on party labels measures "
        "which party's texts these are like, not a position; it may "
        "read shorter or plainer text as neutral, which alone gives a shift towards 50.",
        f"Neutral is a score from {neutral[0]:g} to {neutral[1]:g}; shares of neutral text "
        "follow this choice.",
        "The mixes come from one dataset: the regimes (reduced, amplified, reversed) are "
        "described for it alone.",
    ]
    if not (by_chain["generation"] == -1).any():
        limits.append(
            "The human texts were not scored, so the initial lean is that of generation 0, which "
            "already holds a first shift."
        )
    return [
        Section(
            "What was found",
            paragraphs=words or ["No mix has a lean at the start and at the end."],
        ),
        Section("What cannot be concluded", paragraphs=limits),
        Section("Lean of the mixes", note=MIXES, tables=[page_table("", "", table)]),
    ]


def _bins(run: Run) -> pd.DataFrame:
    """The shares of the bins, for every mix and level of what else is varied."""
    leans, keys = paper_figures_political.leans(run), paper_figures_political.cells(run)
    return paper_figures_political.bins(leans, keys)


def _classifier_accuracy(run: Run) -> list[str]:
    """A sentence on the accuracy of the classifier of lean; none where there is no classifier."""
    path = run.root / "lean_classifier.json"
    if not path.exists():
        return []
    report = json.loads(path.read_bytes())
    test, larger = report["test"], report["majority"]["accuracy"]
    texts = sum(scored["texts"] for scored in test["by_class"].values())
    return [
        f"Of {texts} human texts that it never saw the classifier names the side of "
        f"{100 * test['accuracy']:.0f} % ({100 * larger:.0f} % by always naming the "
        "larger): its errors draw every mean towards 50, that of the human texts too."
    ]
