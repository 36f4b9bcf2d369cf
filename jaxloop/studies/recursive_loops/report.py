"""What an experiment leaves for the analysis, and its pages: report.html (what was run, curves,
texts) and findings.html (the analysis).
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.studies.common import run as running
from jaxloop.studies.recursive_loops.chains import Planned
from jaxloop.studies.recursive_loops.config import EXPERIMENTS, Settings
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset

LAST = 5
# Above so many lines a curve shows nothing: chains are then averaged over their subsets.
LINES = 16


def write_before(
    settings: Settings,
    sources: Mapping[str, Source],
    subsets: Sequence[Subset],
    planned: Sequence[Planned],
    root: Path,
) -> None:
    """cleaning.csv, subsets.csv and chains.csv; of clusters also properties.csv, members.parquet
    and overlap_summary.csv.
    """
    from jaxloop.runtime import tables
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.studies.recursive_loops import chains, measure
    from jaxloop.studies.recursive_loops import subsets as loops_subsets
    from jaxloop.studies.recursive_loops.data.cleaning import report_table

    cleaning = [
        {"dataset": [s.name] * len(s.report), **report_table(s.report)} for s in sources.values()
    ]
    write_atomic(root / "cleaning.csv", tables.to_csv(tables.concatenate(cleaning)), durable=False)
    write_atomic(root / "subsets.csv", tables.to_csv(loops_subsets.table(subsets)), durable=False)
    write_atomic(root / "chains.csv", tables.to_csv(chains.table(planned, {})), durable=False)
    clusters = [one for subset in subsets for one in subset.clusters]
    if clusters:
        measure.properties(settings, clusters, sources, root)
        measure.check_properties(root)
        found = loops_subsets.overlap(clusters, sources)
        columns = {
            name: [row[name] for row in found.values()] for name in next(iter(found.values()))
        }
        write_atomic(
            root / "overlap_summary.csv",
            tables.to_csv({"dataset": list(found), **columns}),
            durable=False,
        )


def write_after(
    settings: Settings,
    planned: Sequence[Planned],
    failed: Mapping[str, Mapping],
    root: Path,
    facts,
    stored: Mapping,
) -> Path:
    """chains.csv with what became of every chain, figures/, report.html and, by the analysis,
    tables/ and findings.html; the page's path.
    """
    from jaxloop.runtime import tables
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.runtime.environment import commit, devices, versions
    from jaxloop.runtime.log import redact
    from jaxloop.runtime.workdir import stored_form
    from jaxloop.studies.recursive_loops import chains

    write_atomic(root / "chains.csv", tables.to_csv(chains.table(planned, failed)), durable=False)
    if settings.interventions.policies:
        write_atomic(root / "interventions.csv", tables.to_csv(interventions(root)), durable=False)
    facts = [
        (name, redact(str(value)))
        for name, value in [*facts, ("commit", commit()), ("device", devices())]
    ]
    path = _page(settings, planned, failed, root, facts, stored_form(stored), versions())
    return analyse(settings, root, facts, stored_form(stored), versions()) or path


def _page(settings, planned, failed, root, facts, stored, versions) -> Path:
    from jaxloop.reporting import figures, scores
    from jaxloop.studies.common import report as chain_report
    from jaxloop.studies.recursive_loops import run as loops

    metrics = chain_report.read_metrics(root)
    shown = _few_lines(metrics, planned)
    figures.write(scores.by_generation(shown), root / "figures")
    return running.write_page(
        root,
        shown,
        title=settings.title,
        subtitle=running.dated(loops.chains_line(settings, planned)),
        samples=chain_report.side_by_side(root, shown),
        failed=failed,
        facts=facts,
        config=stored,
        versions=versions,
        sections=_sections(settings, planned, root),
    )


def _few_lines(metrics, planned: Sequence[Planned]):
    """The metrics, without the columns that name subsets where their lines would be too many."""
    from jaxloop.reporting import scores

    subset_columns = {name for p in planned for name in p.subset.factors}
    if scores.with_lines(metrics)["line"].nunique() <= LINES:
        return metrics
    return metrics.drop(columns=[name for name in metrics.columns if name in subset_columns])


def _sections(settings: Settings, planned: Sequence[Planned], root: Path) -> list:
    from jaxloop.reporting.report import Section, Table

    def read(name: str, title: str, note: str) -> Table | None:
        import pandas as pd

        path = root / name
        if not path.exists():
            return None
        table = pd.read_csv(path, keep_default_na=False)
        return Table(title, note, list(table.columns), table.head(200).values.tolist())

    tables = [
        read(
            "cleaning.csv",
            "Cleaning",
            "Rows that reached each rule, that it dropped, and that it left.",
        )
    ]
    tables += [
        read(
            "overlap_summary.csv",
            "Overlap of clusters",
            "Jaccard index of the pairs of clusters of a dataset, which are no independent "
            "samples.",
        )
    ]
    if settings.kind not in ("whole", "clusters", "mixtures"):
        tables += [
            read(
                "subsets.csv",
                "Subsets",
                "Texts of each subset, and its mean quality, length or lean.",
            )
        ]
    if left_out := [p for p in planned if p.reason]:
        tables += [
            Table(
                "Chains left out",
                f"{len(left_out)} of {len(planned)} planned chains.",
                ["chain", "reason"],
                [[p.id, p.reason] for p in left_out],
            )
        ]
    if (path := root / "lean_classifier.json").exists():
        tables += [_classifier_table(json.loads(path.read_bytes()))]
    sections = [Section("Human text", tables=[table for table in tables if table is not None])]
    if settings.interventions.policies:
        note = (
            "Score of the last five generations relative to generation 0, minus that of the "
            "chain that takes as many texts at random from as many "
            "written ones, with the same human texts, bases and draws; standard error and 95 % "
            "interval over pairs of chains (t)."
        )
        found = read("interventions.csv", "Difference from the random control", note)
        sections += [Section("Interventions", tables=[found])]
    return sections


def _classifier_table(report: Mapping[str, Any]):
    from jaxloop.reporting.report import Table

    test, rows = report["test"], []
    for name, scored in test["by_class"].items():
        rows.append([name, scored["texts"], scored["precision"], scored["recall"], scored["f1"]])
    known, larger = test["accuracy"], report["majority"]["accuracy"]
    note = (
        f"Classifier of political lean on labelled texts that it never saw: accuracy {known:.3f}, "
        f"always the larger class {larger:.3f}."
    )
    return Table("Lean", note, ["side", "texts", "precision", "recall", "F1"], rows)


def interventions(root: Path) -> dict[str, list]:
    """Columns of interventions.csv: for every metric, policy and other factor, the paired
    difference of relative scores to the random control.

    Metrics that cross 0 in generation 0 have no relative scores and are left out.

    A chain is paired with the control of the same dataset, ratio, seed and other factors. Columns:
    metric, factors but seed, selection, n (pairs), control and policy (mean relative scores),
    difference, se, low, high (95 % t interval), p (paired t-test); nan below two pairs.
    """
    import numpy as np
    import pandas as pd
    from scipy import stats

    from jaxloop.reporting import scores
    from jaxloop.studies.common import report as chain_report

    metrics = chain_report.read_metrics(root)
    factors = metrics.drop_duplicates("chain").set_index("chain")[
        [c for c in metrics.columns if c not in scores.FIXED]
    ]
    relative = scores.relative_by_chain(metrics, LAST)[["metric", "chain", "value"]].join(
        factors, on="chain"
    )
    relative = relative[~relative["metric"].isin(scores.crossing(metrics))]
    others = [c for c in factors.columns if c not in ("selection", "seed")]
    wide = relative.pivot_table(
        index=["metric", *others, "seed"], columns="selection", values="value", observed=True
    )
    rows = []
    for key, group in wide.groupby(level=list(range(1 + len(others))), sort=True):
        for policy in [c for c in wide.columns if c != "random"]:
            pairs = group[["random", policy]].dropna() if "random" in group else pd.DataFrame()
            gap = (pairs[policy] - pairs["random"]).to_numpy() if len(pairs) else np.zeros(0)
            n = len(gap)
            se = float(gap.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
            half = float(stats.t.ppf(0.975, n - 1) * se) if n > 1 else math.nan
            mean = float(gap.mean()) if n else math.nan
            p = float(2 * stats.t.sf(abs(mean) / se, n - 1)) if n > 1 and se > 0 else math.nan
            row = dict(zip(["metric", *others], key, strict=True)) | {"selection": policy, "n": n}
            row |= {
                "control": float(pairs["random"].mean()) if n else math.nan,
                "policy": float(pairs[policy].mean()) if n else math.nan,
            }
            rows.append(
                row
                | {"difference": mean, "se": se, "low": mean - half, "high": mean + half, "p": p}
            )
    names = (
        list(rows[0])
        if rows
        else [
            "metric",
            *others,
            "selection",
            "n",
            "control",
            "policy",
            "difference",
            "se",
            "low",
            "high",
            "p",
        ]
    )
    return {name: [row[name] for row in rows] for name in names}


def analyse(settings: Settings, root: Path, facts, stored: Mapping, versions) -> Path | None:
    """The analysis of the experiment from the files of the run: tables/, figures/ and
    findings.html; None where the run is too small for it.
    """
    from jaxloop.runtime.log import LOGGER
    from jaxloop.studies.recursive_loops.analysis import findings

    page, quality = EXPERIMENTS[settings.experiment].page, settings.quality.split("(")[0]
    neutral = (50 - settings.lean.neutral, 50 + settings.lean.neutral)
    try:
        return findings.write_report(
            root,
            page,
            quality=quality,
            neutral=neutral,
            title=settings.title,
            facts=facts,
            config=stored,
            versions=versions,
        )
    except ValueError as error:
        LOGGER.warning("no findings.html: %s", error)
        return None
