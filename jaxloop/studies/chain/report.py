"""figures/ and report.html of a chain study, from the files of its run directory alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxloop.reporting import figures, scores
from jaxloop.studies.common import report
from jaxloop.studies.common.run import PageInputs


def write(
    root: Path,
    *,
    title: str,
    subtitle: str,
    page: PageInputs,
    failed: Mapping[str, Mapping[str, Any]],
    references: Mapping[str, float] | None = None,
) -> Path:
    """Write figures/*.png and report.html into a run directory and return the page's path.

    Args:
        root: the run directory.
        title: heading of the report.
        subtitle: the line under it; the time is added.
        page: what every report shows of its run.
        failed: {chain: {"generation": ..., "reason": ...}}.
        references: {metric: its value on human text}.
    """
    metrics = report.read_metrics(root)
    known = {name: value for name, value in (references or {}).items() if math.isfinite(value)}
    figures.write(scores.by_generation(metrics), root / "figures", known)
    return report.write_page(
        root,
        metrics,
        title=title,
        subtitle=report.dated(subtitle),
        samples=report.first_and_last_texts(root, metrics),
        failed=failed,
        **page._asdict(),
        references=known,
    )
