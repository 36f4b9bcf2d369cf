"""Writes the two pages of an experiment: report.html and findings.html.

report.html shows what was run, curves and texts; findings.html shows the analysis.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop.reporting import figures, scores
from jaxloop.reporting.report import Section, Table
from jaxloop.runtime.log import LOGGER, redact
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs
from jaxloop.studies.recursive_loops import chains, interventions
from jaxloop.studies.recursive_loops.analysis import findings
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.input_tables import write_csv

# A figure with more lines than this cannot be read: chains are then averaged over their subsets.
LINES = 16
# Rows of a CSV file that the page shows.
_ROWS = 200


def write(
    config: LoopsConfig,
    planned: Sequence[Planned],
    failed: Mapping[str, Mapping[str, Any]],
    root: Path,
    page: PageInputs,
) -> Path:
    """Write the tables, figures and pages of a run; return the path of the page to read first.

    These are chains.csv with the status of every chain, figures/, report.html and, by the analysis,
    tables/ and findings.html.

    Args:
        config: the experiment's config.
        planned: every chain, those that were left out too.
        failed: {chain: {"generation": ..., "reason": ...}}.
        root: the run directory.
        page: what every page shows of its run.
    """
    write_csv(root / "chains.csv", chains.table(planned, failed))
    if config.interventions.policies:
        write_csv(root / "interventions.csv", interventions.paired_differences(root))
    path = _write_page(config, planned, failed, root, page)
    return _analyse(config, root, page) or path


def _write_page(
    config: LoopsConfig,
    planned: Sequence[Planned],
    failed: Mapping[str, Mapping[str, Any]],
    root: Path,
    page: PageInputs,
) -> Path:
    metrics, note = _few_lines(common_report.read_metrics(root), planned)
    figures.write(scores.by_generation(metrics), root / "figures", note=note)
    return common_report.write_page(
        root,
        metrics,
        title=config.title,
        subtitle=common_report.dated(chains.chains_line(config, planned) + note),
        samples=common_report.first_and_last_texts(root, metrics),
        failed=failed,
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        sections=_sections(config, planned, root),
    )


def _few_lines(metrics: pd.DataFrame, planned: Sequence[Planned]) -> tuple[pd.DataFrame, str]:
    """The metrics, and a note that says over what their curves are averaged.

    Columns are left out until the lines are few: those that name subsets, then the dataset, then
    all others but the ratio. The figures of the analysis keep them apart.
    """
    of_subsets = {name for one in planned for name in one.subset.factors}
    others = [name for name in scores.factors(metrics) if name not in {*of_subsets, "ratio"}]
    over: list[str] = []
    for names in (of_subsets, {"dataset"}, set(others)):
        if scores.with_lines(metrics)["line"].nunique() <= LINES:
            break
        dropped = [str(c) for c in metrics.columns if c in names and metrics[c].nunique() > 1]
        metrics = metrics.drop(columns=dropped)
        over += dropped
    return metrics, scores.averaged_over(over)


def _sections(config: LoopsConfig, planned: Sequence[Planned], root: Path) -> list[Section]:
    tables = [
        _csv_table(
            root / "cleaning.csv",
            "Cleaning",
            "Rows that reached each rule, that it dropped, and that it left.",
        ),
        _csv_table(
            root / "overlap_summary.csv",
            "Overlap of clusters",
            "Jaccard index of the pairs of clusters of a dataset, which are no independent "
            "samples.",
        ),
    ]
    if config.subset_kind not in ("whole", "clusters", "mixtures"):
        note = "Texts of each subset, and its mean quality, length or lean."
        tables.append(_csv_table(root / "subsets.csv", "Subsets", note))
    tables += [_left_out(planned), _classifier_table(root / "lean_classifier.json")]
    sections = [Section("Human text", tables=[table for table in tables if table is not None])]
    if config.interventions.policies:
        last = min(scores.LAST, max(config.chain.generations - 1, 1))
        note = (
            f"Score of the last {last} generations relative to generation 0, minus that of the "
            "chain that takes as many texts at random from as many "
            "written ones, with the same human texts, bases and draws; standard error and 95 % "
            "interval over pairs of chains (t)."
        )
        table = _csv_table(root / "interventions.csv", "Difference from the random control", note)
        sections.append(Section("Interventions", tables=[] if table is None else [table]))
    return sections


def _csv_table(path: Path, title: str, note: str) -> Table | None:
    if not path.exists():
        return None
    table = pd.read_csv(path, keep_default_na=False)
    return Table(title, note, list(table.columns), table.head(_ROWS).values.tolist())


def _left_out(planned: Sequence[Planned]) -> Table | None:
    rows = [[one.id, one.reason] for one in planned if one.reason]
    if not rows:
        return None
    note = f"{len(rows)} of {len(planned)} planned chains."
    return Table("Chains left out", note, ["chain", "reason"], rows)


def _classifier_table(path: Path) -> Table | None:
    """A table of how well the classifier of political leaning does; None if there is none."""
    if not path.exists():
        return None
    report = json.loads(path.read_bytes())
    test, larger = report["test"], report["majority"]["accuracy"]
    rows = [
        [side, scored["texts"], scored["precision"], scored["recall"], scored["f1"]]
        for side, scored in test["by_class"].items()
    ]
    note = (
        "Classifier of political lean on labelled texts that it never saw: accuracy "
        f"{test['accuracy']:.3f}, always the larger class {larger:.3f}."
    )
    return Table("Lean", note, ["side", "texts", "precision", "recall", "F1"], rows)


def _analyse(config: LoopsConfig, root: Path, page: PageInputs) -> Path | None:
    """Analyse the files of the run: write tables/, figures/ and findings.html; return the page.

    None where the run is too small for the analysis.
    """
    neutral = config.political_leaning.neutral
    try:
        return findings.write_report(
            root,
            config.experiment,
            quality=config.quality.split("(")[0],
            neutral=(50 - neutral, 50 + neutral),
            title=config.title,
            run_info=[(name, redact(value)) for name, value in page.run_info],
            config=page.config,
            versions=page.versions,
        )
    except ValueError as error:
        LOGGER.warning("no findings.html: %s", error)
        return None
