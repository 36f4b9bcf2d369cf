"""Writes tables, figures/ and report.html of a diversity study.

They show the paper's figures, its Table 2 beside five named distances, and diversity against shift.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.studies.common import report as common_report
from jaxloop.studies.common.run import PageInputs
from jaxloop.studies.diversity import figures, measure, prepare, sentences
from jaxloop.studies.diversity.cells import all_cells, chain_name, experiments
from jaxloop.studies.diversity.config import DiversityConfig, Grid
from jaxloop.studies.diversity.measure import DISTANCES
from jaxloop.studies.diversity.prepare import Prepared
from jaxloop.studies.diversity.results import Results, gather, rows_of

# Table 2 of arXiv 2506.19262: an unnamed distance to real data, D0 to D6.
PAPER_TABLE_2 = {
    "qa": (0.0057, 0.0078, 0.0089, 0.0088, 0.0111, 0.0095, 0.0099),
    "story": (2.4507, 2.5120, 2.5651, 2.7896, 2.7827, 2.7635, 3.0178),
}
NAMES = {"qa": "Question answering", "story": "Stories"}


class Parts(NamedTuple):
    """What a section shows."""

    drawings: list[report.Drawing]
    tables: list[report.Table]
    note: str
    paragraphs: Sequence[str] = ()


def write(
    root: Path,
    settings: DiversityConfig,
    prepared: Prepared,
    pools: Mapping[str, pd.DataFrame],
    sets: Mapping[str, pd.DataFrame],
    *,
    failed: Mapping[str, Mapping],
    page: PageInputs,
) -> Path:
    """Write the tables, figures/*.png and report.html into a run directory and return the page's
    path.
    """

    results = gather(root, settings, prepared, pools, sets)
    sections = [_checks(results)]
    titles = sentences.mixture_titles(
        {name: measure.settings_mixing(settings, name) for name in ("fixed", "variable")}
    )
    for name, make in (
        ("Levels (section 4.2)", _levels),
        (titles["fixed"], _fixed),
        (titles["variable"], _variable),
        ("Sizes (section 4.4)", _sizes),
        ("Architectures (appendix D.1)", _architectures),
        ("Diversity against shift", _disentangled),
    ):
        made = make(settings, results)
        if made.drawings or made.tables:
            sections.append(
                report.Section(name, made.note, made.drawings, made.tables, made.paragraphs)
            )
    sections.append(_sources(settings, prepared, pools, results))
    named = {
        f"{common_report.slug(s.title)}-{common_report.slug(d.title)}": d
        for s in sections
        for d in s.drawings
    }
    common_report.save_drawings(root / "figures", named)
    return common_report.write_page(
        root,
        pd.DataFrame({name: [] for name in ("chain", "generation", "metric", "value")}),
        title=settings.title,
        subtitle=common_report.dated(
            f"{len(results.cells):,} of {len(prepared.cells):,} models fine-tuned"
        ),
        failed=failed,
        run_info=page.run_info,
        config=page.config,
        versions=page.versions,
        sections=sections,
    )


def _of(results: Results, settings: DiversityConfig, name: str) -> pd.DataFrame:
    """The rows of an experiment's models."""
    cells = experiments(settings).get(name, [])
    several = len({c.base for c in all_cells(settings)}) > 1
    ids = [chain_name(cell, several_bases=several) for cell in cells]
    return results.cells[results.cells["chain"].isin(ids)]


def _checks(results: Results) -> report.Section:
    rows = [(what, value, "holds" if ok else "does not hold") for what, value, ok in results.checks]
    note = (
        "What the way in which the sets are made should lead to, whoever writes them, and whether "
        "it did. Sizes are matched where they differ."
    )
    return report.Section(
        "Checks",
        note,
        tables=[report.Table("Checks of the sets", "", ("check", "found", ""), rows)],
    )


def _levels(settings: DiversityConfig, results: Results) -> Parts:
    rows = _of(results, settings, "generated")
    drawings = []
    for task in settings.tasks:
        task_rows = rows[rows["task"] == task]
        for size in sorted(set((task_rows["real"] + task_rows["generated"]).tolist())):
            of_size = task_rows[(task_rows["real"] + task_rows["generated"]) == size]
            for setting, group in figures.settings_of(of_size, ["rho"]):
                if not group["level"].str.startswith("D").any():
                    continue
                drawings.append(
                    report.Drawing(
                        f"{NAMES[task]}, {size:,} records" + (setting and f", {setting}"),
                        "Bars: Distinct-5 of the level, divided by the largest. Lines: test "
                        "loss on answers, "
                        "mean and standard error over seeds; dotted: fine-tuned on real data.",
                        figures.levels(group, results.pools, task),
                    )
                )
    return Parts(
        drawings,
        _loss_tables(rows, "level"),
        "Nothing but generated data, of levels whose diversity is meant to rise from D0 to D6, and "
        "real data alone.",
        sentences.of_levels(results.pools, NAMES),
    )


def _loss_tables(rows: pd.DataFrame, by: str) -> list[report.Table]:
    tables = []
    for task in dict.fromkeys(rows["task"]) if len(rows) else ():
        task_rows = rows[rows["task"] == task]
        keys = (
            ["base", "real", "generated", by]
            if by not in ("real", "generated")
            else ["base", "level", "real", "generated"]
        )
        lines = []
        for key, group in task_rows.groupby(keys, sort=True):
            values = [pair(group[m]) for m in measure.LOSSES]
            lines.append(
                (
                    *key,
                    len(group),
                    *values,
                    float(group["distinct"].mean()),
                    float(group["distinct_matched"].mean()),
                )
            )
        header = (
            *keys,
            "models",
            "answer tokens",
            "all tokens",
            "Distinct-5",
            "Distinct-5, size matched",
        )
        tables.append(
            report.Table(
                f"{NAMES[task]}: test loss",
                "Nats per token on real test records, mean ± standard error over seeds.",
                header,
                lines,
            )
        )
    return tables


def pair(values: pd.Series) -> str:
    """Return the mean of the values that there are, with its standard error, as text."""
    known = values.dropna().to_numpy(float)
    if not len(known):
        return "–"
    mean = known.mean()
    error = known.std(ddof=1) / np.sqrt(len(known)) if len(known) > 1 else np.nan
    return f"{mean:.4f}" + (f" ± {error:.4f}" if np.isfinite(error) else "")


def _size(grid: Grid) -> str:
    """The column of the size that a grid keeps over its mixing ratios."""
    return "real" if grid.mixing == "variable" else "records"


def _fixed(settings: DiversityConfig, results: Results) -> Parts:
    rows = _of(results, settings, "fixed")
    drawings = figures.by_ratio(rows, settings.tasks, NAMES, size=_size(settings.fixed))
    note = sentences.of_mixture(rows, settings.fixed.mixing)
    return Parts(drawings, _loss_tables(rows, "level"), note)


def _variable(settings: DiversityConfig, results: Results) -> Parts:
    rows = _of(results, settings, "variable")
    size = _size(settings.variable)
    drawings = figures.by_ratio(rows, settings.tasks, NAMES, size=size)
    drawings += figures.by_ratio(
        rows,
        settings.tasks,
        NAMES,
        size=size,
        value="distinct",
        label="Distinct-5 of the mixture, not normalised",
    )
    drawings += figures.scatter(rows, settings.tasks, NAMES)
    note = sentences.of_mixture(rows, settings.variable.mixing)
    return Parts(drawings, _loss_tables(rows, "level"), note)


def _sizes(settings: DiversityConfig, results: Results) -> Parts:
    rows = _of(results, settings, "sizes")
    return Parts(
        figures.by_size(rows, settings.tasks, NAMES),
        _loss_tables(rows, "level"),
        sentences.of_sizes(rows),
    )


def _architectures(settings: DiversityConfig, results: Results) -> Parts:
    rows = _of(results, settings, "architectures")
    drawings = figures.by_base(rows, settings.tasks, NAMES)
    return Parts(drawings, _loss_tables(rows, "level"), sentences.of_bases(rows))


def _disentangled(settings: DiversityConfig, results: Results) -> Parts:
    rows, fits = results.cells, results.fits
    drawings = (
        figures.crossed(rows[rows["level"] == "crossed"], settings.tasks, NAMES)
        if len(rows)
        else []
    )
    tables = []
    if len(fits) and "diversity_together" in fits:
        lines = []
        for r in rows_of(fits):
            if r.diversity_together != r.diversity_together:
                lines.append(
                    (
                        NAMES[r.task],
                        r.kind,
                        r.shift,
                        r.models,
                        r.sets,
                        r.clusters,
                        r.correlation,
                        r.vif,
                        "–",
                        "–",
                        "–",
                        "–",
                    )
                )
                continue
            lines.append(
                (
                    NAMES[r.task],
                    r.kind,
                    r.shift,
                    r.models,
                    r.sets,
                    r.clusters,
                    r.correlation,
                    r.vif,
                    f"{r.diversity_alone:+.4f}",
                    f"{r.diversity_together:+.4f} ({r.diversity_low:+.4f} to "
                    f"{r.diversity_high:+.4f})",
                    f"{r.shift_alone:+.4f}",
                    f"{r.shift_together:+.4f} ({r.shift_low:+.4f} to {r.shift_high:+.4f})",
                )
            )
        header = (
            "task",
            "sets of",
            "shift is",
            "models",
            "sets",
            "groups",
            "correlation",
            "VIF",
            "diversity alone",
            "diversity, shift held (95 %)",
            "shift alone",
            "shift, diversity held (95 %)",
        )
        note = (
            "Ordinary least squares of the test loss on answers on size-matched Distinct-5 and "
            "on a distance to real data: nats per standard deviation. Errors by a jackknife over "
            "groups of sets that share records: those of one generated set, and crossed sets of "
            "one seed."
        )
        tables.append(report.Table("Regression on both", note, header, lines))
    note = (
        "Models that were fine-tuned on generated data only. Crossed sets: shares of "
        "near-duplicates and of records from elsewhere, imposed on real data."
    )
    said = sentences.of_fits(list(rows_of(fits)), NAMES) if tables else []
    return Parts(drawings, tables, note, said)


def _sources(
    settings: DiversityConfig,
    prepared: prepare.Prepared,
    pools: Mapping[str, pd.DataFrame],
    results: Results,
) -> report.Section:
    drawings = []
    for task in settings.tasks:
        task_pools = {
            name.split("-")[1]: table
            for name, table in pools.items()
            if name.startswith(f"{task}-")
        }
        if not task_pools:
            continue
        real = prepared.tables[task].train
        drawings.append(
            report.Drawing(
                f"{NAMES[task]}: length of answers",
                sentences.of_lengths(task),
                figures.lengths({"real": real, **task_pools}, results.count_tokens),
            )
        )
        names = [
            f"{task}-real",
            *(f"{task}-{level}" for level in ("D0", "D3", "D6") if level in task_pools),
        ]
        names += (
            [f"{task}-{level}" for level in task_pools if f"{task}-{level}" not in names]
            if len(names) == 1
            else []
        )
        flat = measure.flat(results.clouds, names, settings.distances.picture)
        how = "two principal components" if settings.distances.picture == "pca" else "UMAP"
        note = (
            f"Sentence embeddings of whole records, {how} of all sets together; the paper does "
            "not say how it drew them."
        )
        drawings.append(report.Drawing(f"{NAMES[task]}: embeddings", note, figures.clouds(flat)))
    lines = []
    for r in rows_of(results.distances):
        if r.set.endswith("-test") or r.set in pools:
            level = "real test records" if r.set.endswith("-test") else r.set.split("-")[1]
            paper = PAPER_TABLE_2[r.task][int(level[1])] if level[0] == "D" else float("nan")
            lines.append((NAMES[r.task], level, *(float(getattr(r, d)) for d in DISTANCES), paper))
    header = (
        "task",
        "source",
        "KL of lengths",
        "Fréchet",
        "MMD²",
        "energy",
        "sliced W1",
        "the paper's, unnamed",
    )
    note = (
        f"To the real training records, at most {settings.distances.points:,} records a side. KL "
        "of answer-length histograms, the others between embeddings. "
        "The paper names neither its distance nor its space, and no distance here claims to be it."
    )
    about = results.pools
    rows = []
    for r in rows_of(about):
        group = about[(about["task"] == r.task) & (about["set"] != f"{r.task}-real")]["distinct"]
        share = (
            r.distinct / group.max() if len(group) and not r.set.endswith("-real") else float("nan")
        )
        rows.append(
            (
                NAMES[r.task],
                r.set.split("-")[1],
                r.records,
                r.contexts,
                r.distinct,
                share,
                r.distinct_mean,
                r.distinct_matched,
                r.answer_tokens,
            )
        )
    columns = (
        "task",
        "source",
        "records",
        "contexts",
        "Distinct-5",
        "over the maximum",
        "per context",
        "size matched",
        "tokens of an answer",
    )
    matched_note = (
        "Distinct-5 as each task defines it: question answering sums over contexts (equation 5), "
        "stories are one corpus (equation 6)."
    )
    tables = [
        report.Table("Distances to real data (Table 2)", note, header, lines),
        report.Table("Diversity of the sources", matched_note, columns, rows),
    ]
    return report.Section(
        "The generated sets",
        "What was written, before any model was trained on it.",
        drawings,
        tables,
        sentences.of_distances(results.distances, NAMES),
    )
