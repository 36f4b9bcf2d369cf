"""What the regressions of a study found, and what they cannot tell at this number of chains, in
sentences.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from jaxloop.studies.recursive_loops.analysis import overlap, regression_honest
from jaxloop.studies.recursive_loops.analysis.overlap import Overlaps
from jaxloop.studies.recursive_loops.analysis.regression import title
from jaxloop.studies.recursive_loops.analysis.regression_tables import Tables
from jaxloop.studies.recursive_loops.analysis.regression_tasks import ALL, Tasks


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def spread(values: Sequence[int]) -> str:
    """`5`, or `3 to 5`."""
    return (
        f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"
    )


def chance(p: float) -> str:
    """`p = .03`, `p < .001`."""
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _main(fits: pd.DataFrame, dependent: str) -> str:
    """The fit that speaks for a dependent: over all chains where there is one."""
    columns = fits[fits["dependent"] == dependent]["column"]
    return ALL if ALL in set(columns) else str(columns.iloc[0])


def found(tasks: Tasks, tables: Tables) -> list[str]:
    """What the fits say, and for every association whether it stands with other errors, other forms
    and after correction.
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
    classical, honest = (relative[relative["errors"] == kind] for kind in ("classical", "overlap"))
    count, tests = int((classical["p"] < 0.05).sum()), len(classical)
    sentences.append(
        f"Counted as in the paper, {count} of {tests} coefficients have p < .05; "
        f"{0.05 * tests:.1f} would by chance alone "
        f"({chance(regression_honest.by_chance(count, tests))}, were they independent). After "
        f"Benjamini-Hochberg {int((classical['q'] < 0.05).sum())} are left"
        + (
            f", with overlap-aware errors {int((honest['p'] < 0.05).sum())} and "
            f"{int((honest['q'] < 0.05).sum())} of {len(honest)}."
            if len(honest)
            else "."
        )
    )
    flips = _sign_changes(classical)
    if flips:
        sentences.append(
            f"Among significant coefficients the sign differs between fits for {listed(flips)}."
        )
    return sentences


def _associations(tables: Tables, dependent: str) -> list[str]:
    column = _main(tables.fits, dependent)
    own = tables.coefficients[
        (tables.coefficients["dependent"] == dependent) & (tables.coefficients["column"] == column)
    ]
    fit = tables.fits[
        (tables.fits["dependent"] == dependent) & (tables.fits["column"] == column)
    ].iloc[0]
    best = own[(own["form"] == "relative") & (own["errors"] == "classical")]
    significant = best[best["p"] < 0.05]
    what = dependent.replace("@", " of ")
    head = (
        f"Relative {what} ({column}, {int(fit['n'])} chains): R2 = {fit['r2']:.2f}, adjusted "
        f"{fit['adjusted_r2']:.2f}"
    )
    if fit["cv_r2"] == fit["cv_r2"]:
        head += f", on chains left out {fit['cv_r2']:.2f}"
    if significant.empty:
        return [f"{head}. No property has a coefficient with p < .05."]
    groups: dict[str, list[str]] = {}
    for _, row in significant.iterrows():
        groups.setdefault(_stands(own, row["term"]), []).append(
            f"{title(row['term'])} {row['coefficient']:+.4f} [{row['low']:.4f}, {row['high']:.4f}]"
        )
    ordered = sorted(groups, key=lambda stands: stands != _ALWAYS)
    return [
        f"{head}. Per standard deviation of the property: "
        f"{'; '.join(f'{listed(groups[stands])} ({stands})' for stands in ordered)}."
    ]


_ALWAYS = "under every reading below as well"


def _stands(own: pd.DataFrame, term: str) -> str:
    """Under which other readings the association is still significant, with the same sign, and
    under which not.
    """

    def p_of(shape: str, errors: str, value: str = "p") -> tuple[float, float] | None:
        row = own[(own["form"] == shape) & (own["errors"] == errors) & (own["term"] == term)]
        return (float(row[value].iloc[0]), float(row["coefficient"].iloc[0])) if len(row) else None

    sign = p_of("relative", "classical")
    aware = "overlap" if p_of("relative", "overlap") else "classical"
    readings = {
        "overlap-aware errors": p_of("relative", "overlap"),
        "Benjamini-Hochberg": p_of("relative", aware, "q"),
        "differences": p_of("difference", aware),
        "ANCOVA": p_of("ancova", aware),
    }
    known = {
        name: result[0] < 0.05 and result[1] * sign[1] > 0
        for name, result in readings.items()
        if result is not None
    }
    lost = [name for name, stands in known.items() if not stands]
    if not lost:
        return _ALWAYS
    return "under no other reading" if len(lost) == len(known) else f"not under {listed(lost)}"


def _sign_changes(classical: pd.DataFrame) -> list[str]:
    significant = classical[classical["p"] < 0.05]
    signs = significant.groupby(["dependent", "term"])["coefficient"].agg(
        lambda b: len(set(np.sign(b)))
    )
    return [
        f"{title(term)} ({dependent})" for (dependent, term), count in signs.items() if count > 1
    ]


def cannot(
    tasks: Tasks,
    tables: Tables,
    overlaps: Overlaps | None,
    *,
    planned: int,
    seeds: int,
    bound: float,
    effect: float,
) -> list[str]:
    """What follows from the design and the number of chains whatever the coefficients are."""
    sentences = _chains(tasks, planned, seeds)
    sentences += _power(tables, effect)
    sentences += _equivalences(tables, bound)
    sentences += _overlap(tasks, overlaps)
    sentences.append(
        "Relative scores divide by generation 0, which the same properties drive: part of every "
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
        "and clusters differ in more than these."
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
        own = tables.power[
            (tables.power["dependent"] == dependent) & (tables.power["column"] == column)
        ]
        if len(own):
            out.append(
                f"{dependent.replace('@', ' of ').capitalize()} ({column}, "
                f"{int(own['n'].iloc[0])} chains): found in four of five cases is an effect "
                "per "
                f"standard deviation of at least {own['least'].min():.3f} to "
                f"{own['least'].max():.3f}, by property; one of {effect:g} would need "
                f"{spread([int(own['needed'].min()), int(own['needed'].max())])} chains."
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
    used = {
        name: len(set(pd.concat([t.rows["chain"] for t in tasks.tasks if t.dependent == name])))
        for name in dict.fromkeys(t.dependent for t in tasks.tasks)
    }
    counts = listed([f"{n} for {name.replace('@', ' of ')}" for name, n in used.items()])
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
        f"± {bound:g} (two one-sided tests, {errors} errors); "
        f"all of them together only within ± {table['least'].max():.3f}."
    ]


def _cross(table: pd.DataFrame) -> pd.Series:
    """Rows of a study of domains whose property belongs to another domain than the outcome."""
    own, of = (
        table["dependent"].astype(str).str.partition("@")[2],
        table["term"].astype(str).str.partition("@")[2],
    )
    return (own != "") & (of != "") & (own != of)


def cross_domain(tasks: Tasks, tables: Tables) -> list[str]:
    """Whether domains influence each other: counted, tested jointly, and bounded."""
    rows = tables.coefficients[
        (tables.coefficients["form"] == "relative") & (tables.coefficients["errors"] == "classical")
    ]
    if rows.empty:
        return []
    cross = _cross(rows)
    count, tests, inside = (
        int((rows[cross]["p"] < 0.05).sum()),
        int(cross.sum()),
        int((rows[~cross]["p"] < 0.05).sum()),
    )
    out = [
        f"{inside} of {int((~cross).sum())} coefficients of a domain's own properties and "
        f"{count} of {tests} of other domains' have p < .05; by chance "
        f"{0.05 * tests:.1f} of the latter would "
        f"({chance(regression_honest.by_chance(count, tests))} for so many). The paper counts "
        "18 of 36 and 3 of 72, "
        f"which is what no influence gives (p = .70), but counts no bound."
    ]
    parts = []
    for task in tasks.tasks:
        y, x = task.data("relative")
        terms = [t for t in task.shown if t.partition("@")[2] != task.column]
        try:
            f, p, restrictions = regression_honest.joint_f(y, x, terms)
        except ValueError:
            continue
        parts.append(
            f"{task.dependent.replace('@', ' of ')} F({restrictions}, {len(y) - x.shape[1] - 1}) "
            f"= {f:.2f}, {chance(p)}"
        )
    return out + (
        [f"All coefficients of other domains being 0, tested jointly: {'; '.join(parts)}."]
        if parts
        else []
    )


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
    factor = [len(set(t.groups)) for t in tasks.tasks]
    return [
        f"Clusters of a dataset share texts: {100 * (values > 0).mean():.0f} % of pairs do, with "
        f"a mean Jaccard index of {values.mean():.2f} and a largest of "
        f"{values.max():.2f}. Chains on them are no independent samples; a fit has "
        f"{spread(factor)} groups of clusters that share less than half."
    ]


def overlap_table(overlaps: Overlaps) -> Mapping[str, list]:
    """Columns dataset, clusters, mean and largest Jaccard index, share of pairs that overlap."""
    out: dict[str, list] = {
        name: []
        for name in (
            "dataset",
            "clusters",
            "mean_jaccard",
            "largest_jaccard",
            "overlapping_pairs",
            "groups",
        )
    }
    for dataset, found in overlaps.items():
        values = found.jaccard[np.triu_indices(len(found.names), 1)]
        row = (
            dataset,
            len(found.names),
            values.mean() if len(values) else 0.0,
            values.max(initial=0.0),
            (values > 0).mean() if len(values) else 0.0,
        )
        for name, value in zip(
            out, (*row, int(overlap.groups(found.cosine).max()) + 1), strict=True
        ):
            out[name].append(value)
    return out
