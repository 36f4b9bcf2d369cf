"""Writes the results of an analysis into tables/ and figures/ of the run directory."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.reporting.report import Table
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies.common import report as common_report
from jaxloop.studies.recursive_loops.analysis.run_tables import Run


def save_table(run: Run, name: str, table: pd.DataFrame) -> None:
    """Write tables/<name>.csv; missing values become empty cells."""
    common_report.save_table(run.root / "tables", name, table)


def save_tex(run: Run, name: str, text: str) -> None:
    """Write tables/<name>.tex."""
    write_atomic(run.root / "tables" / f"{name}.tex", text.encode("utf-8"), durable=False)


def save_figure(run: Run, name: str, drawing: Figure) -> None:
    """Write figures/<name>.png."""
    write_atomic(run.root / "figures" / f"{name}.png", figures.png(drawing), durable=False)


def page_table(title: str, note: str, rows: pd.DataFrame) -> Table:
    """Return a data frame as a table of findings.html, under a title with a note."""
    cells = [
        [value.item() if isinstance(value, np.generic) else value for value in row]
        for row in rows.itertuples(index=False, name=None)
    ]
    return Table(title, note, [str(c) for c in rows.columns], cells)
