"""Sentences on what the regressions of a study found.

And on what they cannot tell with this number of chains.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxloop.studies.recursive_loops.analysis import overlap, regression_robust
from jaxloop.studies.recursive_loops.analysis.overlap import Overlap, Overlaps
from jaxloop.studies.recursive_loops.analysis.regression import title
from jaxloop.studies.recursive_loops.analysis.regression_tables import Tables
from jaxloop.studies.recursive_loops.analysis.regression_tasks import ALL, Tasks


def listed(parts: Sequence[str]) -> str:
    """Return a list in words: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def spread(values: Iterable[int]) -> str:
    """Return the range of some numbers: `5`, or `3 to 5`."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def chance(p: float) -> str:
    """Return a p value as it is printed: `p = .03`, `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _main(fits: pd.DataFrame, dependent: str) -> str:
    """The column of a dependent's main fit: the one over all chains if there is one."""
    columns = fits[fits["dependent"] == dependent]["column"]
    return ALL if ALL in set(columns) else str(columns.iloc[0])


def conclusions(tasks: Tasks, tables: Tables) -> list[str]:
    """Return sentences on what the fits say.

    For every association they say whether it remains with other standard errors, with other forms
    of the outcome, and after correction for the number of tests.
    """
    if tables.fits.empty:
        return ["No regression could be fitted; the reasons are listed below."]
    aware = "overlap-aware errors, " if (tables.coefficients["errors"] == "overlap").any() else ""
    sentences = [
        "Significant below is p < .05 with classical errors, as in the paper; the other "
        f"readings are {aware}Benjamini-Hochberg over all coefficients, "
        "the difference late - generation 0, and the ANCOVA late ~ generation 0 + properties."
    ]
    for dependent in dict.fromkeys(tables.fits["dependent"]):
        sentences += _associations(tables, dependent)
    relative = tables.coefficients[tables.coefficients["form"] == "relative"]
    classical, overlap_aware = (
        relative[relative["errors"] == errors] for errors in ("classical", "overlap")
    )
    count, tests = int((classical["p"] < 0.05).sum()), len(classical)
    corrected = f"Benjamini-Hochberg {int((classical['q'] < 0.05).sum())} are left"
    if len(overlap_aware):
        corrected += (
            f", with overlap-aware errors {int((overlap_aware['p'] < 0.05).sum())} and "
            f"{int((overlap_aware['q'] < 0.05).sum())} of {len(overlap_aware)}"
        )
    sentences.append(
        f"Counted as in the paper, {count} of {tests} coefficients have p < .05; "
        f"{0.05 * tests:.1f} would by chance alone "
        f"({chance(regression_robust.by_chance(count, tests))}, were they independent). After "
        f"{corrected}."
    )
    flips = _sign_changes(classical)
    if flips:
        sentences.append(
            f"Among significant coefficients the sign differs between fits for {listed(flips)}."
        )
    return sentences


def _associations(tables: Tables, dependent: str) -> list[str]:
    column = _main(tables.fits, dependent)
    rows = tables.coefficients[
        (tables.coefficients["dependent"] == dependent) & (tables.coefficients["column"] == column)
    ]
    fit = tables.fits[
        (tables.fits["dependent"] == dependent) & (tables.fits["column"] == column)
    ].iloc[0]
    paper_fit = rows[(rows["form"] == "relative") & (rows["errors"] == "classical")]
    significant = paper_fit[paper_fit["p"] < 0.05]
    what = dependent.replace("@", " of ")
    head = (
        f"Relative {what} ({column}, {int(fit['n'])} chains): R2 = {fit['r2']:.2f}, adjusted "
        f"{fit['adjusted_r2']:.2f}"
    )
    if not np.isnan(fit["cv_r2"]):
        head += f", on chains left out {fit['cv_r2']:.2f}"
    if significant.empty:
        return [f"{head}. No property has a coefficient with p < .05."]
    # Robustness, in words -> the associations that have it.
    groups: dict[str, list[str]] = {}
    for _, row in significant.iterrows():
        groups.setdefault(_robustness(rows, row["term"]), []).append(
            f"{title(row['term'])} {row['coefficient']:+.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        )
    ordered = sorted(groups, key=lambda robustness: not robustness.startswith(_ALWAYS))
    parts = [f"{listed(groups[robustness])} ({robustness})" for robustness in ordered]
    return [f"{head}. Per standard deviation of the property: {'; '.join(parts)}."]


_ALWAYS = "under every reading below as well"


class _Estimate(NamedTuple):
    coefficient: float
    p: float
    q: float


def _robustness(rows: pd.DataFrame, term: str) -> str:
    """Under which other analyses the association is no longer significant with the same sign.

    Forms that could not be fitted are named. rows: coefficients of one fit in all forms and with
    all errors.
    """

    def estimate(form: str, errors: str) -> _Estimate | None:
        row = rows[(rows["form"] == form) & (rows["errors"] == errors) & (rows["term"] == term)]
        if not len(row):
            return None
        return _Estimate(*(float(row[name].iloc[0]) for name in _Estimate._fields))

    paper, overlap_aware = estimate("relative", "classical"), estimate("relative", "overlap")
    errors = "overlap" if overlap_aware else "classical"
    corrected = estimate("relative", errors)
    analyses = {
        "overlap-aware errors": overlap_aware,
        "Benjamini-Hochberg": corrected and corrected._replace(p=corrected.q),
        "differences": estimate("difference", errors),
        "ANCOVA": estimate("ancova", errors),
    }
    computed = {name: result for name, result in analyses.items() if result is not None}
    lost = [
        name
        for name, result in computed.items()
        if paper is None or not (result.p < 0.05 and result.coefficient * paper.coefficient > 0)
    ]
    words = "under no other reading" if len(lost) == len(computed) else f"not under {listed(lost)}"
    absent = [name for name in ("differences", "ANCOVA") if name not in computed]
    note = f"; {listed(absent)} could not be computed" if absent else ""
    return (words if lost else _ALWAYS) + note


def _sign_changes(classical: pd.DataFrame) -> list[str]:
    significant = classical[classical["p"] < 0.05]
    return [
        f"{title(str(term))} ({dependent})"
        for (dependent, term), rows in significant.groupby(["dependent", "term"])
        if np.sign(rows["coefficient"]).nunique() > 1
    ]


def limits(
    tasks: Tasks,
    tables: Tables,
    overlaps: Overlaps | None,
    *,
    planned: int,
    seeds: int,
    bound: float,
    effect: float,
) -> list[str]:
    """Return sentences on limits of the design, which hold whatever the coefficients are.

    Args:
        tasks: the regressions of the study.
        tables: their results.
        overlaps: how the clusters overlap; None where that is not known.
        planned: number of planned chains.
        seeds: the largest number of chains of one cluster and ratio.
        bound: as in `regression_tables.evaluate`.
        effect: as in `regression_tables.evaluate`.
    """
    sentences = _chains(tasks, planned, seeds)
    sentences += _power(tables, effect)
    sentences += _equivalences(tables, bound)
    sentences += _overlap(tasks, overlaps)
    sentences.append(
        "Relative scores divide by generation 0, which the same properties may drive: part of a "
        "coefficient may be regression to the mean. Where an "
        "association vanishes in the ANCOVA form, a property explains how chains start and not "
        "how they change; that form, in turn, adjusts for a "
        "generation 0 that is measured with error."
    )
    sentences.append(
        "Gaussianity is the paper's name for the AIC of one Gaussian, which is the logarithm of "
        "the spread of the cluster's map and says nothing "
        "of its shape; negentropy, which takes its place in the form of that name where it was "
        "measured, does."
    )
    sentences.append(
        "The properties were observed, not set: an association is not an effect of the property, "
        "and clusters may differ in more than these."
    )
    for name in tasks.absent:
        sentences.append(
            f"{title(name)} was not measured, so no fit adjusts for it, and coefficients differ "
            "from the paper's also for that reason."
        )
    return sentences


def _power(tables: Tables, effect: float) -> list[str]:
    out = []
    for dependent in dict.fromkeys(tables.power["dependent"]):
        column = _main(tables.fits, dependent)
        rows = tables.power[
            (tables.power["dependent"] == dependent) & (tables.power["column"] == column)
        ]
        if len(rows):
            out.append(
                f"{dependent.replace('@', ' of ').capitalize()} ({column}, "
                f"{int(rows['n'].iloc[0])} chains): found in four of five cases is an effect "
                f"per standard deviation of at least {rows['least'].min():.3f} to "
                f"{rows['least'].max():.3f}, by property; one of {effect:g} would need "
                f"{spread([int(rows['needed'].min()), int(rows['needed'].max())])} chains."
            )
    if out:
        out[-1] += " A coefficient without a star is no evidence of no effect."
    thin = tables.fits[tables.fits["n"] - tables.fits["predictors"] - 1 < 10]
    if len(thin):
        least = tables.power.merge(thin[["dependent", "column"]], on=["dependent", "column"])[
            "least"
        ]
        out.append(
            f"{len(thin)} of {len(tables.fits)} fits have fewer than ten degrees of freedom "
            "(chains - predictors - 1); single coefficients of theirs "
            f"should not be read: they find effects from {least.median():.2f} on (median)."
        )
    return out


def _chains(tasks: Tasks, planned: int, seeds: int) -> list[str]:
    chains: dict[str, set[str]] = {}
    for task in tasks.tasks:
        chains.setdefault(task.dependent, set()).update(task.rows["chain"])
    counts = listed(
        [f"{len(used)} for {name.replace('@', ' of ')}" for name, used in chains.items()]
    )
    out = [f"Of {planned} planned chains, those with a value and all properties are {counts}."]
    if len(tasks.skipped):
        out[0] += (
            f" {tasks.skipped['chain'].nunique()} were skipped for one outcome or more and are "
            "listed with the reason."
        )
    if seeds <= 1:
        out.append(
            "Every cluster and ratio has one chain: what differs between clusters and what "
            "differs between two runs on one cluster cannot be told apart."
        )
    return out


def _equivalences(tables: Tables, bound: float) -> list[str]:
    table = tables.equivalence
    if table.empty:
        return []
    errors = "overlap" if (table["errors"] == "overlap").any() else "classical"
    table = table[table["errors"] == errors]
    cross = _cross(table)
    if cross.any():
        table, what = table[cross], "from one domain's properties to another's text"
    else:
        what = "of a property"
    within = int((table["p"] < 0.05).sum())
    return [
        f"Effects {what} that can be excluded: {within} of {len(table)} are shown to lie within "
        f"± {bound:g} (two one-sided tests, each at 5 %, {errors} errors); "
        f"all of them together only within ± {table['least'].max():.3f}."
    ]


def _cross(table: pd.DataFrame) -> pd.Series:
    """Rows of a multi-domain study in which property and outcome are of different domains."""
    outcome, predictor = (
        table[name].astype(str).str.partition("@")[2] for name in ("dependent", "term")
    )
    return (outcome != "") & (predictor != "") & (outcome != predictor)


def influence_table(tables: Tables) -> pd.DataFrame:
    """Return how often properties of a domain influence its own text and that of other domains.

    A row for each kind of errors, outcome ("diversity", "quality") and influence ("own", "other"),
    in the relative form. Columns: errors, outcome, influence, tests (coefficients), significant
    (how many have p < .05), share (significant / tests), within (share that two one-sided tests
    show to lie inside the bound), largest (the smallest bound that all lie inside).
    """
    keys = ["dependent", "term", "errors"]
    effects = tables.coefficients[tables.coefficients["form"] == "relative"]
    both = effects[[*keys, "p"]].merge(
        tables.equivalence[[*keys, "p", "least"]], on=keys, suffixes=("", "_bound")
    )
    both["outcome"] = both["dependent"].str.partition("@")[0]
    both["influence"] = np.where(_cross(both), "other", "own")
    kinds = ["errors", "outcome", "influence"]
    rows = [
        {
            "errors": errors,
            "outcome": outcome,
            "influence": influence,
            "tests": len(part),
            "significant": int((part["p"] < 0.05).sum()),
            "share": (part["p"] < 0.05).mean(),
            "within": (part["p_bound"] < 0.05).mean(),
            "largest": part["least"].max(),
        }
        for (errors, outcome, influence), part in both.groupby(kinds, sort=True)
    ]
    names = [*kinds, "tests", "significant", "share", "within", "largest"]
    return pd.DataFrame(rows, columns=names)


def cross_domain(tasks: Tasks, tables: Tables) -> list[str]:
    """Return sentences on whether the properties of one domain affect the text of another.

    They count significant coefficients, test them jointly, and bound them.
    """
    rows = tables.coefficients[
        (tables.coefficients["form"] == "relative") & (tables.coefficients["errors"] == "classical")
    ]
    if rows.empty:
        return []
    cross = _cross(rows)
    count, tests = int((rows[cross]["p"] < 0.05).sum()), int(cross.sum())
    inside = int((rows[~cross]["p"] < 0.05).sum())
    out = [
        f"{inside} of {int((~cross).sum())} coefficients of a domain's own properties and "
        f"{count} of {tests} of other domains' have p < .05; by chance "
        f"{0.05 * tests:.1f} of the latter would "
        f"({chance(regression_robust.by_chance(count, tests))} for so many). The paper counts "
        "18 of 36 and 3 of 72, "
        f"which is what no influence gives (p = .70), but counts no bound."
    ]
    parts = []
    for task in tasks.tasks:
        y, x = task.data("relative")
        terms = [t for t in task.shown if t.partition("@")[2] != task.column]
        try:
            f, p, restrictions = regression_robust.joint_f(y, x, terms)
        except ValueError:
            continue
        parts.append(
            f"{task.dependent.replace('@', ' of ')} F({restrictions}, {len(y) - x.shape[1] - 1}) "
            f"= {f:.2f}, {chance(p)}"
        )
    if parts:
        out.append(
            f"All coefficients of other domains being 0, tested jointly: {'; '.join(parts)}."
        )
    return out


def _overlap(tasks: Tasks, overlaps: Overlaps | None) -> list[str]:
    if not overlaps:
        return [
            "The run does not say which texts its clusters share, so only chains on one and the "
            "same cluster are treated as dependent; "
            "overlap between clusters makes the intervals too short."
        ]
    values = np.concatenate(
        [o.jaccard[np.triu_indices(len(o.names), 1)] for o in overlaps.values()]
    )
    if not len(values) or not (values > 0).any():
        return ["The clusters share no texts."]
    group_counts = [len(set(task.groups)) for task in tasks.tasks]
    return [
        f"Clusters of a dataset share texts: {100 * (values > 0).mean():.0f} % of pairs do, with "
        f"a mean Jaccard index of {values.mean():.2f} and a largest of "
        f"{values.max():.2f}. Chains on them are no independent samples; a fit has "
        f"{spread(group_counts)} groups of clusters that share less than half."
    ]


def overlap_table(overlaps: Overlaps) -> Mapping[str, list]:
    """Return the columns of the table on overlap, with a row for each dataset.

    They are dataset, clusters, mean and largest Jaccard index, share of pairs that overlap, and
    number of groups of clusters that share less than half of their texts.
    """
    rows = [_overlap_row(dataset, clusters) for dataset, clusters in overlaps.items()]
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _overlap_row(dataset: str, clusters: Overlap) -> dict[str, object]:
    pairs = clusters.jaccard[np.triu_indices(len(clusters.names), 1)]
    return {
        "dataset": dataset,
        "clusters": len(clusters.names),
        "mean_jaccard": pairs.mean() if len(pairs) else 0.0,
        "largest_jaccard": pairs.max(initial=0.0),
        "overlapping_pairs": (pairs > 0).mean() if len(pairs) else 0.0,
        "groups": int(overlap.groups(clusters.cosine).max()) + 1,
    }
