"""tables, figures/ and report.html of a diversity study: the paper's figures, its Table 2 beside
five labelled distances, diversity against shift.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jaxloop.reporting import report
from jaxloop.studies.common import report as chain_report
from jaxloop.studies.common import run as running
from jaxloop.studies.diversity import figures, measure, prepare
from jaxloop.studies.diversity.measure import DISTANCES

if TYPE_CHECKING:
    from jaxloop.studies.diversity.config import Settings
    from jaxloop.studies.diversity.prepare import Prepared

# Table 2 of arXiv 2506.19262: an unnamed distance to real data, D0 to D6.
PAPER_TABLE_2 = {
    "qa": (0.0057, 0.0078, 0.0089, 0.0088, 0.0111, 0.0095, 0.0099),
    "story": (2.4507, 2.5120, 2.5651, 2.7896, 2.7827, 2.7635, 3.0178),
}
NAMES = {"qa": "Question answering", "story": "Stories"}


def gather(
    root: Path,
    settings: "Settings",
    prepared: "Prepared",
    pools: Mapping[str, pd.DataFrame],
    sets: Mapping[str, pd.DataFrame],
) -> dict:
    """Measures the sets and writes sets.csv, distances.csv and regressions.csv; everything that the
    page shows.

    pools, sets: generated and training sets by name. Of every model's losses, joined with its set:
    `cells`.
    """
    count = next(iter(prepared.models.values()))[1].count
    tables = prepared.tables
    by_pool = {f"{task}-real": (task, tables[task].train) for task in tables} | {
        name: (name.split("-")[0], table) for name, table in pools.items()
    }
    about_pools = measure.describe(by_pool, count).assign(kind="source")
    task_of = {cell.set_name: cell.task for cell in prepared.cells}
    about_sets = measure.describe(
        {name: (task_of[name], table) for name, table in sets.items()}, count
    ).assign(kind="training set")
    about = pd.concat([about_pools, about_sets], ignore_index=True)
    about.to_csv(root / "sets.csv", index=False)

    alone = {cell.set_name for cell in prepared.cells if cell.counts.real == 0}
    compared = {f"{task}-test": (task, tables[task].test) for task in tables} | {
        name: entry for name, entry in by_pool.items() if not name.endswith("-real")
    }
    compared |= {name: (task_of[name], sets[name]) for name in sets if name in alone}
    distances, clouds = measure.distances(
        compared, {task: t.train for task, t in tables.items()}, settings
    )
    distances.to_csv(root / "distances.csv", index=False)

    cells = model_table(root, prepared, about_sets, distances)
    generated = cells[cells["set"].isin(alone)].assign(
        kind=lambda t: np.where(t["level"] == "crossed", "crossed", "levels")
    )
    fits = measure.regressions(generated) if len(generated) else pd.DataFrame()
    fits.to_csv(root / "regressions.csv", index=False)
    entries = {name: entry for name, entry in by_pool.items() if not name.endswith("-real")}
    checked = measure.checks(settings, prepared, entries, about_pools)
    return {
        "pools": about_pools,
        "sets": about_sets,
        "distances": distances,
        "clouds": clouds,
        "cells": cells,
        "fits": fits,
        "checks": checked,
        "count": count,
    }


def model_table(
    root: Path, prepared: "Prepared", about: pd.DataFrame, distances: pd.DataFrame
) -> pd.DataFrame:
    """One row per trained model: its factors, its test losses, and the measures of its training
    set.
    """
    metrics = chain_report.read_metrics(root)
    losses = metrics.pivot_table(index="chain", columns="metric", values="value", aggfunc="first")
    rows = []
    several = {name for name in ("base",) if len({cell.base for cell in prepared.cells}) > 1}
    for cell, chain in zip(prepared.cells, _chain_ids(prepared, several), strict=True):
        if chain in losses.index:
            rows.append(
                {
                    "chain": chain,
                    "set": cell.set_name,
                    **cell.factors,
                    **losses.loc[chain].to_dict(),
                }
            )
    table = pd.DataFrame(rows)
    table = table.merge(about.drop(columns=["task", "kind"]), on="set", how="left")
    return table.merge(distances.drop(columns=["task", "points"]), on="set", how="left")


def _chain_ids(prepared, several):
    from jaxloop.recursion.chains import chain_id

    return [
        (chain_id({"base": prepare.short(c.base)}) + "_" if several else "") + c.set_name
        for c in prepared.cells
    ]


def write(
    root: Path,
    settings: "Settings",
    prepared: "Prepared",
    pools: Mapping[str, pd.DataFrame],
    sets: Mapping[str, pd.DataFrame],
    result,
    facts: Sequence[tuple[str, str]],
) -> Path:
    """Writes the tables, figures/*.png and report.html into a run directory and returns the page's
    path.
    """
    from jaxloop.runtime.environment import versions
    from jaxloop.runtime.workdir import stored_form

    found = gather(root, settings, prepared, pools, sets)
    sections = [_checks(found)]
    for name, make in (
        ("Levels (section 4.2)", _levels), ("Mixtures of one size (section 4.3)", _fixed), ("Generated data added to real data (section 4.3)", _variable),
        ("Sizes (section 4.4)", _sizes), ("Architectures (appendix D.1)", _architectures), ("Diversity against shift", _disentangled),
    ):  # fmt: skip
        drawings, tables, note = make(settings, prepared, found)
        if drawings or tables:
            sections.append(report.Section(name, note, drawings, tables))
    sections.append(_sources(settings, prepared, pools, found))
    named = {
        f"{running.slug(s.title)}-{running.slug(d.title)}": d for s in sections for d in s.drawings
    }
    running.save_drawings(root / "figures", named)
    return running.write_page(
        root,
        pd.DataFrame({name: [] for name in ("chain", "generation", "metric", "value")}),
        title=settings.title,
        subtitle=running.dated(f"{len(prepared.cells):,} models fine-tuned"),
        failed=result.failed,
        facts=facts,
        config=stored_form(settings.model_dump(mode="json")),
        versions=versions(),
        sections=sections,
    )


def _of(found: Mapping, settings: "Settings", name: str) -> pd.DataFrame:
    """The rows of an experiment's models."""
    from jaxloop.recursion.chains import chain_id

    cells = prepare.experiments(settings).get(name, [])
    several = len({c.base for c in prepare.all_cells(settings)}) > 1
    ids = [
        (chain_id({"base": prepare.short(c.base)}) + "_" if several else "") + c.set_name
        for c in cells
    ]
    return found["cells"][found["cells"]["chain"].isin(ids)]


def _checks(found) -> report.Section:
    rows = [
        (what, value, "holds" if ok else "does not hold") for what, value, ok in found["checks"]
    ]
    note = (
        "What must be true of the sets whoever writes them, found on the sets of this run. Sizes "
        "are matched where they differ."
    )
    return report.Section(
        "Checks",
        note,
        tables=[report.Table("Checks of the sets", "", ("check", "found", ""), rows)],
    )


def _levels(settings, prepared, found):
    rows = _of(found, settings, "generated")
    drawings = []
    for task in settings.tasks:
        mine = rows[rows["task"] == task]
        for size in sorted(set((mine["real"] + mine["generated"]).tolist())):
            group = mine[(mine["real"] + mine["generated"]) == size]
            if group["level"].str.startswith("D").any():
                drawings.append(
                    report.Drawing(
                        f"{NAMES[task]}, {size:,} records", "Bars: Distinct-5 of the level, divided by the largest. Lines: test "
                            "loss on answers, "
                        "mean and standard error over seeds; dotted: fine-tuned on real data.", figures.levels(group, found["pools"], task),
                    )
                )  # fmt: skip
    return (
        drawings,
        _loss_tables(rows, "level"),
        "Nothing but generated data, D0 (least diverse) to D6, and real data alone.",
    )


def _loss_tables(rows: pd.DataFrame, by: str) -> list[report.Table]:
    tables = []
    for task in dict.fromkeys(rows["task"]) if len(rows) else ():
        mine = rows[rows["task"] == task]
        keys = (
            ["base", "real", "generated", by]
            if by not in ("real", "generated")
            else ["base", "level", "real", "generated"]
        )
        lines = []
        for key, group in mine.groupby(keys, sort=True):
            values = [_pair(group[m]) for m in measure.LOSSES]
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


def _pair(values: pd.Series) -> str:
    mean, error = (
        values.mean(),
        values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan"),
    )
    return f"{mean:.4f}" + (f" ± {error:.4f}" if error == error else "")


def _fixed(settings, prepared, found):
    rows = _of(found, settings, "fixed")
    drawings = figures.by_ratio(rows, settings.tasks, NAMES)
    return (
        drawings,
        _loss_tables(rows, "level"),
        "Test loss on answers by mixing ratio rho = generated / all records; the number of "
        "records stays the same.",
    )


def _variable(settings, prepared, found):
    rows = _of(found, settings, "variable")
    drawings = figures.by_ratio(rows, settings.tasks, NAMES)
    drawings += figures.by_ratio(
        rows,
        settings.tasks,
        NAMES,
        value="distinct",
        label="Distinct-5 of the mixture, not normalised",
    )
    drawings += figures.scatter(rows, settings.tasks, NAMES)
    return (
        drawings,
        _loss_tables(rows, "level"),
        "The number of real records stays the same; generated ones are added up to the ratio rho.",
    )


def _sizes(settings, prepared, found):
    rows = _of(found, settings, "sizes")
    return (
        figures.by_size(rows, settings.tasks, NAMES),
        _loss_tables(rows, "level"),
        "Generated data alone, in sets of several sizes.",
    )


def _architectures(settings, prepared, found):
    rows = _of(found, settings, "architectures")
    note = (
        "Test loss on answers relative to the same base fine-tuned on real data, where that was "
        "run; else as it is."
    )
    return figures.by_base(rows, settings.tasks, NAMES), _loss_tables(rows, "level"), note


def _disentangled(settings, prepared, found):
    rows, fits = found["cells"], found["fits"]
    drawings = (
        figures.crossed(rows[rows["level"] == "crossed"], settings.tasks, NAMES)
        if len(rows)
        else []
    )
    tables = []
    if len(fits) and "diversity_together" in fits:
        lines = []
        for r in fits.itertuples():
            if r.sets < 6 or r.diversity_together != r.diversity_together:
                lines.append(
                    (
                        NAMES[r.task],
                        r.kind,
                        r.shift,
                        r.models,
                        r.sets,
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
                (NAMES[r.task], r.kind, r.shift, r.models, r.sets, r.correlation, r.vif, f"{r.diversity_alone:+.4f}",
                 f"{r.diversity_together:+.4f} ({r.diversity_low:+.4f} to "
                     f"{r.diversity_high:+.4f})", f"{r.shift_alone:+.4f}",
                 f"{r.shift_together:+.4f} ({r.shift_low:+.4f} to {r.shift_high:+.4f})")
            )  # fmt: skip
        header = ("task", "sets of", "shift is", "models", "sets", "correlation", "VIF", "diversity alone", "diversity, shift held (95 %)", "shift alone",
                  "shift, diversity held (95 %)")  # fmt: skip
        note = (
            "Ordinary least squares of the test loss on answers on size-matched Distinct-5 and "
            "on a distance to real data: nats per standard deviation, errors "
            "clustered by training set. Among the levels both move together (correlation, VIF), "
            "so that neither effect can be told from the other; in the "
            "crossed sets they are set apart by design."
        )
        tables.append(report.Table("Regression on both", note, header, lines))
    note = (
        "Models that were fine-tuned on generated data only. Crossed sets: shares of "
        "near-duplicates and of records from elsewhere, imposed on real data."
    )
    return drawings, tables, note


def _sources(settings, prepared, pools, found) -> report.Section:
    drawings = []
    for task in settings.tasks:
        mine = {
            name.split("-")[1]: table
            for name, table in pools.items()
            if name.startswith(f"{task}-")
        }
        if not mine:
            continue
        real = prepared.tables[task].train
        drawings.append(
            report.Drawing(
                f"{NAMES[task]}: length of answers", "Tokens of the answer (the last sentence), "
                    "share of records; grey: real data.",
                figures.lengths({"real": real, **mine}, found["count"]),
            )
        )  # fmt: skip
        names = [
            f"{task}-real",
            *(f"{task}-{level}" for level in ("D0", "D3", "D6") if level in mine),
        ]
        names += (
            [f"{task}-{level}" for level in mine if f"{task}-{level}" not in names]
            if len(names) == 1
            else []
        )
        flat = measure.flat(found["clouds"], names, settings.distances.picture)
        how = "two principal components" if settings.distances.picture == "pca" else "UMAP"
        note = (
            f"Sentence embeddings of whole records, {how} of all sets together; the paper does "
            "not say how it drew them."
        )
        drawings.append(report.Drawing(f"{NAMES[task]}: embeddings", note, figures.clouds(flat)))
    lines = []
    for r in found["distances"].itertuples():
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
        "The paper names neither its distance nor its space, and no distance here claims to be "
        "it. The first row of a task is what sampling alone makes."
    )
    about = found["pools"]
    rows = []
    for r in about.itertuples():
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
    told = (
        "Distinct-5 as each task defines it: question answering sums over contexts (equation 5), "
        "stories are one corpus (equation 6)."
    )
    tables = [
        report.Table("Distances to real data (Table 2)", note, header, lines),
        report.Table("Diversity of the sources", told, columns, rows),
    ]
    return report.Section(
        "The generated sets",
        "What was written, before any model was trained on it.",
        drawings,
        tables,
    )
