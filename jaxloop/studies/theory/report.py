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
from jaxloop.studies.theory.agreement import FEW
from jaxloop.studies.theory.config import TheoryConfig

# Rows of the table of the largest |z|.
WORST = 12
FILES = (
    "import pandas as pd\n"
    'table = pd.read_csv("table.csv")    # study, quantity, line, axis, at, analytic, empirical, '
    "se, z, replicates, tolerance, flag\n"
    'claims = pd.read_csv("claims.csv")  # statement, numbers, holds, theorem'
)


def verdict(curves: pd.DataFrame, claims: Sequence[compare.Claim], level: float) -> str:
    """Return one sentence about all curves and claims."""
    if not len(curves) and not claims:
        return "Simulated curves; nothing has a formula here"
    flags, false = int(curves["flag"].sum()), sum(not c.holds for c in claims)
    text = (
        f"{flags} of {len(curves)} curves differ from their formula (p <= {level:g} for the whole "
        "table)"
    )
    return f"{text}, {len(claims) - false} of {len(claims)} statements hold" if claims else text


def write(
    root: Path,
    config: TheoryConfig,
    rows: pd.DataFrame,
    curves: pd.DataFrame,
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
        curves: `compare.curves` of them.
        checks: all comparisons.
        conclusion: what the kind of models adds.
        page: what the page shows of the run.
    """
    claims = pd.DataFrame(conclusion.claims, columns=list(compare.Claim._fields))
    for name, frame in {
        "table": rows,
        "curves": curves,
        "claims": claims,
        **conclusion.tables,
    }.items():
        columns = {str(column): values.tolist() for column, values in frame.items()}
        write_atomic(root / f"{name}.csv", to_csv(columns))
    sections = [
        *_statements(conclusion.claims),
        *conclusion.sections,
        *([_comparisons(config, rows, curves, checks)] if checks else []),
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
        subtitle=verdict(curves, conclusion.claims, config.level),
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
    config: TheoryConfig,
    rows: pd.DataFrame,
    curves: pd.DataFrame,
    checks: Sequence[compare.Check],
) -> report.Section:
    summary = compare.summary(curves)
    drawings = [
        report.Drawing(name, _note(summary, name), compare.figure(group))
        for name, group in compare.groups(checks).items()
    ]
    tables = (_summary(summary), _worst(rows))
    return report.Section("Analytic and empirical", _how(config, rows, curves), drawings, tables)


def of_skewness(curves: pd.DataFrame) -> str:
    """Return how skewed the samples are, and what the p-values are worth with that.

    curves: what `compare.curves` returns, at least one row.
    """
    worst = curves.sort_values("skew").iloc[-1]
    text = (
        f"The largest skewness of an entry is {worst['skew']:.2g}, with "
        f"{int(worst['replicates']):,} replicates; statistics are shrunk by Hall's transformation "
        "with the skewness of their samples. "
    )
    few = curves[curves["replicates"] < FEW]
    if len(few):
        text += (
            f"{len(few)} curves have fewer than {FEW} replicates (at least "
            f"{few['replicates'].min():,}), which do not tell their skewness: their p holds for "
            "samples that are about normal, and may be far too small for others. "
        )
    return text


def _how(config: TheoryConfig, rows: pd.DataFrame, curves: pd.DataFrame) -> str:
    few, sure = compare.imprecise(curves), f"with probability {config.power:g}"
    text = (
        "Lines: the formula; dots: means over replicates, with a band of two standard errors; "
        f"below: z, dotted at ±{compare.BAND:g}. Neighbouring dots err together, so that whole "
        f"curves are tested, {len(curves)} of them with {len(rows)} entries. Each has one p-value: "
        "of a factor on the whole formula (t, weighted by the covariance of the entries), of all "
        "entries together (Hotelling's T², F) and of the largest |z| (t), three times the "
        f"smallest. Adjusted for the {len(curves)} curves (Holm), a curve is flagged at "
        f"p <= {config.level:g}: if every formula is right, at most {config.level:.1%} of such "
        "tables have any flag. "
    )
    text += of_skewness(curves)
    if config.replicates is None:
        text += f"Replicates were drawn to find an error of {config.detect:.2%} in a formula {sure}"
        if len(few):
            return (
                f"{text}; {len(few)} curves would need more than {config.most:,}; what is found "
                "in them stands in the table."
            )
        return f"{text} (where a formula is right to a tolerance only, half of that beyond it)."
    if len(few):
        text += (
            f"In {len(few)} curves an error of {config.detect:.2%} is not found {sure}: more "
            "replicates would say more."
        )
    return text


def _note(summary: pd.DataFrame, name: str) -> str:
    row = summary[summary["quantity"] == name].iloc[0]
    text = (
        f"{row['replicates']:,.0f} replicates; largest |z| {row['largest_z']:.1f} of "
        f"{row['entries']:.0f}, p = {row['adjusted']:.2g} adjusted"
    )
    if row["left_out"]:
        text += f"; {row['left_out']:,.0f} replicates left out, a fit of theirs did not converge"
    if row["tolerance"]:
        text += f"; {row['tolerance']:.2%} allowed to the formula"
    return text


def _claims(claims: Sequence[compare.Claim]) -> report.Table:
    rows = [
        (c.statement, c.numbers, c.theorem or "this run's chains", "yes" if c.holds else "NO")
        for c in claims
    ]
    return report.Table("", "", ("statement", "numbers", "rests on", "holds"), rows)


def _summary(summary: pd.DataFrame) -> report.Table:
    header = (
        "quantity",
        "curves",
        "entries",
        "replicates",
        "left out",
        "largest error of a formula, estimated",
        "error that is found",
        "largest |z|",
        "largest skewness",
        "smallest p, adjusted",
        "allowed to the formula",
        "flags",
    )
    rows = [
        (
            row["quantity"],
            int(row["curves"]),
            int(row["entries"]),
            f"{row['replicates']:,}",
            f"{row['left_out']:,}",
            *("–" if np.isnan(row[name]) else f"{row[name]:.2%}" for name in ("error", "finds")),
            f"{row['largest_z']:.2f}",
            f"{row['skew']:.2g}",
            f"{row['adjusted']:.2g}",
            f"{row['tolerance']:.2%}",
            int(row["flags"]),
        )
        for _, row in summary.iterrows()
    ]
    return report.Table(
        "By quantity", "Every curve is in curves.csv, every entry in table.csv.", header, rows
    )


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
