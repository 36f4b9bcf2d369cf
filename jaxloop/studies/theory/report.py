"""table.csv, claims.csv, figures/ and report.html of a comparison of formulas with simulations."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxloop.reporting import report
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.tables import to_csv
from jaxloop.studies.common import run as running
from jaxloop.studies.theory import compare

WORST = 12
FILES = """import pandas as pd
table = pd.read_csv("table.csv")    # study, quantity, line, axis, at, analytic, empirical, se, z, replicates, tolerance, flag
claims = pd.read_csv("claims.csv")  # statement, numbers, holds"""


def verdict(rows: pd.DataFrame, claims: Sequence[compare.Claim]) -> str:
    """One sentence about all comparisons and claims."""
    flags, false = int(rows["flag"].sum()), sum(not c.holds for c in claims)
    chance = compare.by_chance(len(rows))
    text = (
        f"{flags} of {len(rows)} comparisons have |z| > {compare.FLAG:g} ({chance:.2g} expected "
        "by chance)"
    )
    return f"{text}, {len(claims) - false} of {len(claims)} statements hold" if claims else text


def write(
    root: Path,
    settings,
    rows: pd.DataFrame,
    checks: Sequence[compare.Check],
    conclusion,
    *,
    facts,
    config: Mapping,
    versions,
) -> Path:
    """Writes everything into a run directory and returns the page's path."""
    for name, frame in {
        "table": rows,
        "claims": pd.DataFrame(conclusion.claims, columns=list(compare.Claim._fields)),
        **conclusion.tables,
    }.items():
        write_atomic(
            root / f"{name}.csv", to_csv({column: frame[column].tolist() for column in frame})
        )
    summary = compare.summary(rows)
    found = compare.groups(checks)
    drawings = [
        report.Drawing(name, _note(summary, name), compare.figure(group))
        for name, group in found.items()
    ]
    sections = [
        *(
            [report.Section("Statements", tables=(_claims(conclusion.claims),))]
            if conclusion.claims
            else []
        ),
        *conclusion.sections,
        report.Section(
            "Analytic and empirical",
            _how(settings, rows),
            drawings,
            (_summary(summary), _worst(rows)),
        ),
    ]
    running.save_drawings(
        root / "figures", {running.slug(d.title): d for s in sections for d in s.drawings}
    )
    return running.write_page(
        root,
        pd.DataFrame(columns=["chain", "generation", "metric", "value"]),
        title=settings.title,
        subtitle=verdict(rows, conclusion.claims),
        facts=facts,
        config=config,
        versions=versions,
        sections=sections,
        files=FILES
        + "".join(f'\n{name} = pd.read_csv("{name}.csv")' for name in conclusion.tables),
    )


def _how(settings, rows: pd.DataFrame) -> str:
    chance, few = compare.by_chance(len(rows)), compare.imprecise(rows, settings.wanted)
    text = (
        "Lines: the formula; dots: means over replicates, with a band of two standard errors; "
        f"below: z, dotted at ±{compare.FLAG:g}, where a row is flagged. "
        f"There are {len(rows)} comparisons: if every formula is right, {chance:.2g} flags are "
        "to be expected by chance. "
        f"Rows of one experiment share their replicates, so that neighbouring dots err together."
    )
    if settings.replicates is None:
        text += (
            f" Replicates were drawn until the standard error was below {settings.wanted:.1%} of "
            "the quantity"
        )
        text += (
            f", but for {len(few)} rows, which would need more than {settings.most:,}."
            if len(few)
            else " in every row."
        )
    elif len(few):
        text += (
            f" In {len(few)} rows the standard error is above {settings.wanted:.1%} of the "
            "quantity: more replicates would say more."
        )
    return text


def _note(summary: pd.DataFrame, name: str) -> str:
    row = summary.set_index("quantity").loc[name]
    text = (
        f"{row.replicates:,.0f} replicates; largest |z| {row.largest_z:.1f} of "
        f"{row.comparisons:.0f}"
    )
    return f"{text}; {row.tolerance:.2%} allowed to the formula" if row.tolerance else text


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
            r.quantity,
            r.comparisons,
            f"{r.replicates:,}",
            "–" if r.relative_se != r.relative_se else f"{r.relative_se:.2%}",
            f"{r.largest_z:.2f}",
            f"{r.tolerance:.2%}",
            r.flags,
        )
        for r in summary.itertuples()
    ]
    return report.Table("By quantity", "Every row is in table.csv.", header, rows)


def _worst(rows: pd.DataFrame) -> report.Table:
    worst = rows.sort_values("z", key=lambda z: -z.abs(), na_position="first").head(WORST)
    cells = [
        (
            f"{r.quantity}{f' ({r.line})' if r.line else ''}",
            f"{r.axis} {r.at:g}",
            f"{r.analytic:.6g}",
            f"{r.empirical:.6g}",
            f"{r.se:.2g}",
            f"{r.z:.2f}",
            "flagged" if r.flag else "",
        )
        for r in worst.itertuples()
    ]
    return report.Table(
        f"The {len(worst)} largest |z|",
        "",
        ("quantity", "at", "analytic", "empirical", "standard error", "z", ""),
        cells,
    )
