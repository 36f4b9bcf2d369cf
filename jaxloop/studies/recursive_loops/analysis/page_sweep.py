"""The part of findings.html on a factor that is varied.

It shows relative values by cell, and compares the levels of the factor.
"""

from collections.abc import Sequence

import pandas as pd

from jaxloop.reporting.report import Section, Table
from jaxloop.reporting.scores import LAST
from jaxloop.studies.common import beside_gaussian
from jaxloop.studies.recursive_loops.analysis import findings_sweep, paper_figures
from jaxloop.studies.recursive_loops.analysis.output import page_table, save_table
from jaxloop.studies.recursive_loops.analysis.paper_figures import FigureOptions
from jaxloop.studies.recursive_loops.analysis.relative import find_metric
from jaxloop.studies.recursive_loops.analysis.run_tables import TOY_FACTORS, Run, factors


def sections(run: Run, options: FigureOptions, *, factor: str | None) -> list[Section]:
    """Write the tables cells, skipped and contrasts; return the page's sections.

    factor: what the experiment varies. Raises ValueError where chains.csv has no such column.
    """
    metrics = [metric for _, metric in paper_figures.dependents(run, options)]
    if factor is not None and factor not in run.chains:
        raise ValueError(f"chains.csv has no column {factor!r}, which this experiment varies")
    levels = factors(run)
    sections = _sections(run, metrics, levels, factor=factor, last=options.last)
    if not levels:
        sections.insert(1, _beside_gaussian(run, options))
    return sections


def _beside_gaussian(run: Run, options: FigureOptions) -> Section:
    metric = find_metric(run.metrics, beside_gaussian.METRIC)
    values = run.metrics[run.metrics["metric"] == metric].merge(
        run.chains[["chain", "ratio"]].drop_duplicates("chain"), on="chain", suffixes=("_", "")
    )
    return beside_gaussian.section(run.root, values, run.ledger, options.last)


def toy_sections(run: Run) -> list[Section]:
    """Return the sections for a run of the histogram simulation.

    The late value is that of the last generation alone.
    """
    names = list(dict.fromkeys(run.metrics["metric"]))
    metrics = [name for name in names if name.startswith("entropy")] or names[:1]
    levels = [factor for factor in TOY_FACTORS if factor in run.chains] + factors(run)
    return _sections(run, metrics, levels, factor=None, last=1)


def _sections(
    run: Run,
    metrics: Sequence[str],
    levels: Sequence[str],
    *,
    factor: str | None,
    last: int = LAST,
) -> list[Section]:
    """levels: columns of chains.csv whose values make cells."""
    all_metrics = list(dict.fromkeys(run.metrics["metric"]))
    everything, skipped = findings_sweep.cells(run, all_metrics, levels, last=last)
    table = everything[everything["metric"].isin(metrics)]
    save_table(run, "cells", everything)
    save_table(run, "skipped", skipped)
    words = findings_sweep.conclusions(run, metrics, levels, table, last=last)
    skipped = skipped[skipped["metric"].isin(metrics)]
    comparison, tables = _compare_levels(run, metrics, levels, factor=factor, last=last)
    words = comparison + words
    sections = [
        Section(
            "What was found",
            "In brackets: 95 % intervals over chains.",
            paragraphs=words or ["No chain has a relative value."],
        ),
        Section(
            "What cannot be concluded",
            paragraphs=findings_sweep.limits(table, len(run.chains), skipped, levels),
        ),
        Section(
            "Relative values",
            "Late over generation 0, mean over chains with a 95 % t interval; p of no change, q "
            "after Benjamini-Hochberg over the cells of all metrics (tables/cells.csv).",
            tables=[page_table("", "", table), *tables],
        ),
    ]
    if len(skipped):
        sections.append(
            Section(
                "Chains that were skipped",
                f"{skipped['chain'].nunique()} of {len(run.chains)} planned chains.",
                tables=[page_table("", "", skipped)],
            )
        )
    return sections


def _compare_levels(
    run: Run,
    metrics: Sequence[str],
    levels: Sequence[str],
    *,
    factor: str | None,
    last: int,
) -> tuple[list[str], list[Table]]:
    """Sentences and tables that compare the levels of the experiment's own factor."""
    path = run.root / "interventions.csv"
    if factor == "selection" and path.exists():
        # Chains of one seed share their human texts, bases and draws: the study compares them in
        # pairs.
        paired = pd.read_csv(path)
        note = "Paired t, not corrected for the number of tests."
        table = page_table("Policies against the random control", note, paired)
        return findings_sweep.against_control(paired, metrics), [table]
    if factor is None:
        others = [name for name in levels if name not in ("dataset", *TOY_FACTORS)]
        factor = others[0] if others else None
    if factor is None or factor not in levels:
        return [], []
    contrasts = findings_sweep.contrasts(run, metrics, factor, levels, last=last)
    save_table(run, "contrasts", contrasts)
    note = (
        "Difference of relative values at the same ratio, 95 % interval (Welch), q after "
        "Benjamini-Hochberg."
    )
    table = page_table(f"Levels of {factor.replace('_', ' ')}", note, contrasts)
    return findings_sweep.differ(contrasts, factor), [table]
