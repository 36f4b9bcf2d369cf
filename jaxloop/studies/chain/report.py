"""figures/ and report.html of a chain study, from the files of its run directory alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from jaxloop.reporting import figures, scores
from jaxloop.reporting.report import Section
from jaxloop.runtime.tables import read_parquet
from jaxloop.studies.common import beside_gaussian, report
from jaxloop.studies.common.run import PageInputs


def write(
    root: Path,
    *,
    title: str,
    subtitle: str,
    page: PageInputs,
    failed: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, float] | None = None,
    formula: bool = False,
) -> Path:
    """Write figures/*.png and report.html into a run directory and return the page's path.

    Args:
        root: the run directory.
        title: heading of the report.
        subtitle: the line under it; the time is added.
        page: what every report shows of its run.
        failed: {chain: {"generation": ..., "reason": ...}}.
        references: {metric: its value on human text}.
        formula: show the loss of diversity beside that of a refitted Gaussian.
    """
    metrics = report.read_metrics(root)
    known = {name: value for name, value in (references or {}).items() if math.isfinite(value)}
    figures.write(scores.by_generation(metrics), root / "figures", known)
    return report.write_page(
        root,
        metrics,
        later=[_beside_gaussian(root, metrics)] if formula else [],
        title=title,
        subtitle=report.dated(subtitle),
        samples=report.first_and_last_texts(root, metrics),
        failed=failed,
        **page._asdict(),
        references=known,
    )


def _beside_gaussian(root: Path, metrics: pd.DataFrame) -> Section:
    varied = [name.replace("_", " ") for name in scores.factors(metrics) if name != "ratio"]
    if varied:
        # The formula knows of none of them, and an interval over their levels is of no replicates.
        why = f"Not compared: chains of one ratio differ in {', '.join(varied)}."
        return Section(beside_gaussian.TITLE, paragraphs=[why])
    path = root / "ledger.parquet"
    ledger = pd.DataFrame(read_parquet(path)) if path.exists() else None
    values = metrics[metrics["metric"] == beside_gaussian.METRIC]
    return beside_gaussian.section(root, values, ledger, scores.LAST)
