"""table.csv, claims.csv, figures/ and report.html of a comparison of formulas with simulations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs
from jaxloop.studies.theory import compare
from jaxloop.studies.theory.config import TheoryConfig

# Rows of the table of the largest |z|.
WORST = 12
FILES = (
    "import pandas as pd\n"
    'table = pd.read_csv("table.csv")    # study, quantity, line, axis, at, analytic, empirical, '
    "se, z, replicates, tolerance, flag\n"
    'claims = pd.read_csv("claims.csv")  # statement, numbers, holds'
)


def verdict(rows: pd.DataFrame, claims: Sequence[compare.Claim]) -> str:
    """Return one sentence about all comparisons and claims."""
    flags, false = int(rows["flag"].sum()), sum(not c.holds for c in claims)
    chance = compare.by_chance(len(rows))
    text = (
        f"{flags} of {len(rows)} comparisons have |z| > {compare.FLAG:g} ({chance:.2g} expected "
        "by chance)"
    )
    return f"{text}, {len(claims) - false} of {len(claims)} statements hold" if claims else text


def write(
    root: Path,
    config: TheoryConfig,
    rows: pd.DataFrame,
    checks: Sequence[compare.Check],
    conclusion: compare.Conclusion,
    *,
    page: PageInputs,
) -> Path:
    """Write everything into a run directory and return the page's path.

    Args:
        root: the run directory.
        config: of the study.
        rows: `compare.table` of the checks.
        checks: all comparisons.
        conclusion: what the kind of models adds.
        page: what the page shows of the run.
    """
    claims = pd.DataFrame(conclusion.claims, columns=list(compare.Claim._fields))
    for name, frame in {"table": rows, "claims": claims, **conclusion.tables}.items():
        columns = {str(column): values.tolist() for column, values in frame.items()}
        write_atomic(root / f"{name}.csv", to_csv(columns))
    sections = [
        *_statements(conclusion.claims),
        *conclusion.sections,
        _comparisons(config, rows, checks),
    ]
    common_report.save_drawings(
        root / "figures",
        {
            common_report.slug(drawing.title): drawing
            for section in sections
            for drawing in section.drawings
        },
    )
    return common_report.write_page(
        root,
        pd.DataFrame(columns=["chain", "generation", "metric", "value"]),
        title=config.title,
        subtitle=verdict(rows, conclusion.claims),
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        sections=sections,
        files=FILES
        + "".join(f'\n{name} = pd.read_csv("{name}.csv")' for name in conclusion.tables),
    )


def _statements(claims: Sequence[compare.Claim]) -> list[report.Section]:
    return [report.Section("Statements", tables=(_claims(claims),))] if claims else []


def _comparisons(
    config: TheoryConfig, rows: pd.DataFrame, checks: Sequence[compare.Check]
) -> report.Section:
    summary = compare.summary(rows)
    drawings = [
        report.Drawing(name, _note(summary, name), compare.figure(group))
        for name, group in compare.groups(checks).items()
    ]
    tables = (_summary(summary), _worst(rows))
    return report.Section("Analytic and empirical", _how(config, rows), drawings, tables)


def _how(config: TheoryConfig, rows: pd.DataFrame) -> str:
    flags, imprecise = compare.by_chance(len(rows)), compare.imprecise(rows, config.wanted)
    text = (
        "Lines: the formula; dots: means over replicates, with a band of two standard errors; "
        f"below: z, dotted at ±{compare.FLAG:g}, where a row is flagged. "
        f"There are {len(rows)} comparisons: if every formula is right, {flags:.2g} flags are "
        "to be expected by chance. "
        "Rows of one experiment share their replicates, so that neighbouring dots err together."
    )
    if config.replicates is None:
        text += (
            f" Replicates were drawn until the standard error was below {config.wanted:.1%} of "
            "the quantity"
        )
        if len(imprecise):
            return (
                f"{text}, but for {len(imprecise)} rows, which would need more than "
                f"{config.most:,}."
            )
        return f"{text} in every row."
    if len(imprecise):
        text += (
            f" In {len(imprecise)} rows the standard error is above {config.wanted:.1%} of the "
            "quantity: more replicates would say more."
        )
    return text


def _note(summary: pd.DataFrame, name: str) -> str:
    row = summary[summary["quantity"] == name].iloc[0]
    text = (
        f"{row['replicates']:,.0f} replicates; largest |z| {row['largest_z']:.1f} of "
        f"{row['comparisons']:.0f}"
    )
    if row["tolerance"]:
        text += f"; {row['tolerance']:.2%} allowed to the formula"
    return text


def _claims(claims: Sequence[compare.Claim]) -> report.Table:
    rows = [(c.statement, c.numbers, "yes" if c.holds else "NO") for c in claims]
    return report.Table("", "", ("statement", "numbers", "holds"), rows)


def _summary(summary: pd.DataFrame) -> report.Table:
    header = (
        "quantity",
        "comparisons",
        "replicates",
        "largest standard error",
        "largest |z|",
        "allowed to the formula",
        "flags",
    )
    rows = [
        (
            row["quantity"],
            int(row["comparisons"]),
            f"{row['replicates']:,}",
            "–" if np.isnan(row["relative_se"]) else f"{row['relative_se']:.2%}",
            f"{row['largest_z']:.2f}",
            f"{row['tolerance']:.2%}",
            int(row["flags"]),
        )
        for _, row in summary.iterrows()
    ]
    return report.Table("By quantity", "Every row is in table.csv.", header, rows)


def _worst(rows: pd.DataFrame) -> report.Table:
    worst = rows.sort_values("z", key=lambda z: -z.abs(), na_position="first").head(WORST)
    cells = [
        (
            f"{row['quantity']} ({row['line']})" if row["line"] else row["quantity"],
            f"{row['axis']} {row['at']:g}",
            f"{row['analytic']:.6g}",
            f"{row['empirical']:.6g}",
            f"{row['se']:.2g}",
            f"{row['z']:.2f}",
            "flagged" if row["flag"] else "",
        )
        for _, row in worst.iterrows()
    ]
    header = ("quantity", "at", "analytic", "empirical", "standard error", "z", "")
    return report.Table(f"The {len(worst)} largest |z|", "", header, cells)
