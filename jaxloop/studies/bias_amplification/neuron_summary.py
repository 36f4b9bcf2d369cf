"""The files of a neuron study, and what it found in words."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxloop.runtime import tables
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.studies.bias_amplification.neuron_study import MODES, NeuronStudy

# Scheme -> what changes places.
_UNITS = {
    "seeds": "the outcomes of {seeds} seeds, each with all its setups and generations",
    "chains": "the outcomes of {seeds} seeds in each setup apart, each with all its generations",
    "signs": "the signs by which {seeds} seeds, each with all its setups and generations, deviate",
}
_RULE_WORDS = {
    "p<alpha": "at p < {alpha:g}",
    "bonferroni": "after Bonferroni",
    "bh": "after Benjamini-Hochberg",
}


def write(study: NeuronStudy, folder: Path) -> list[Path]:
    """Write neurons_tests.parquet, neurons_counts.csv, neurons_overlap.csv and neurons_layers.csv
    into `folder` (made if missing) and return their paths.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {name: str(value) for name, value in study.settings.items()}
    tests = folder / "neurons_tests.parquet"
    tables.write_parquet(tests, _columns(study.tests), metadata)
    paths = [tests]
    for name, table in (
        ("counts", study.counts),
        ("overlap", study.overlap),
        ("layers", study.layers),
    ):
        path = folder / f"neurons_{name}.csv"
        write_atomic(path, tables.to_csv(_columns(table)), durable=False)
        paths.append(path)
    return paths


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    return {
        str(name): values.tolist() if values.dtype == object else values.to_numpy()
        for name, values in table.items()
    }


def sentences(study: NeuronStudy, modes: Sequence[str] = MODES) -> list[str]:
    """Return what the study found in these modes and what it cannot say, one sentence each, for a
    report.
    """
    alpha = study.settings["alpha"]
    counts = study.counts[study.counts["mode"].isin(modes)]
    overlap = study.overlap[study.overlap["mode"].isin(modes)]
    return [
        _of_design(study),
        *(
            _of_relation(str(mode), str(relation), rows.set_index("rule"), alpha)
            for (mode, relation), rows in counts.groupby(["mode", "relation"], sort=False)
        ),
        *(_of_overlap(row, alpha) for _, row in overlap[overlap["rule"] == "p<alpha"].iterrows()),
        *_cautions(study),
    ]


def _of_design(study: NeuronStudy) -> str:
    settings = study.settings
    lags = f"{settings['lags']} lag{'s' * (settings['lags'] != 1)}"
    text = (
        f"{settings['versions']} versions of {settings['setups']} setups give "
        f"{settings['differences']} differences; Newey-West errors with {lags}"
    )
    if settings["permutations"]:
        text += (
            f"; exchanged: mean and 95th percentile of {settings['permutations']:,} other "
            f"arrangements of {_UNITS[settings['scheme']].format(seeds=settings['seeds'])}"
        )
    return f"{text}."


def _of_relation(mode: str, relation: str, by_rule: pd.DataFrame, alpha: float) -> str:
    rows = {str(rule): row for rule, row in by_rule.iterrows()}
    parts = [
        f"{_passes(rows[rule])} {words.format(alpha=alpha)}{_by_chance(rows[rule])}"
        for rule, words in _RULE_WORDS.items()
    ]
    first = by_rule.iloc[0]
    text = f"{relation}, {mode}, {first['tests']:,} neurons: {'; '.join(parts)}"
    if not np.isnan(first["p"]):
        verdict = "beyond" if first["p_together"] < alpha else "not told apart from"
        text += (
            f"; {verdict} what exchanged outcomes give (p = {first['p_together']:.2g} for all "
            f"neurons together, {first['p']:.2g} for the count at p < {alpha:g}); "
            f"{rows['familywise']['observed']:,} singled out by their familywise p"
        )
    return f"{text}; {first['flat']:,} do not vary and have p = 1." if first["flat"] else f"{text}."


def _of_overlap(row: pd.Series, alpha: float) -> str:
    p = _two_sided(row["p_more"], row["p_fewer"])
    side = "about as many as"
    if p < alpha:
        side = "more than" if row["p_more"] < row["p_fewer"] else "fewer than"
    text = (
        f"{row['first']} and {row['second']}, {row['mode']}: {row['observed']:,} neurons in both "
        f"sets (p < {alpha:g}), {side} independent sets would share "
        f"({_number(row['expected'])}; two-sided p = {p:.2g})"
    )
    if not np.isnan(row["null_mean"]):
        found = _two_sided(row["null_p"], row["null_p_fewer"])
        text += f"; exchanged outcomes share {_number(row['null_mean'])} (p = {found:.2g})"
    return f"{text}."


def _two_sided(more: float, fewer: float) -> float:
    """The p of a count that is looked at from both sides."""
    return float(np.minimum(1.0, 2 * np.minimum(more, fewer)))


def _cautions(study: NeuronStudy) -> list[str]:
    """What the study cannot say."""
    cautions = []
    if "levels" in study.settings["modes"]:
        cautions.append(
            "Two series that drift pass tests in levels more often than nominally, related or not "
            "(spurious regression: Granger and Newbold 1974)."
        )
    if study.settings["permutations"]:
        least = 1 / (1 + study.settings["permutations"])
        cautions.append(
            f"No permutation p can be below {least:.2g}: a single neuron is singled out only by "
            "its familywise p."
        )
        cautions.append(
            "What all seeds have in common, such as a course over generations, stays where it is: "
            "an association that lies in nothing else is not told apart from chance."
        )
    elif study.settings["no_verdict"]:
        cautions.append(f"No verdict on chance: {study.settings['no_verdict']}.")
    cautions.append(
        "Counts say how often an association appears, not how many independent ones there are: "
        "neurons of one model need not move independently."
    )
    return cautions


def _passes(row: pd.Series) -> str:
    return f"{row['observed']:,} pass" if row["observed"] != 1 else "1 passes"


def _by_chance(row: pd.Series) -> str:
    parts = []
    if not np.isnan(row["nominal"]):
        parts.append(f"nominally {_number(row['nominal'])}")
    if not np.isnan(row["null_mean"]):
        parts.append(f"exchanged {_number(row['null_mean'])} and {_number(row['null_high'])}")
    return f" ({', '.join(parts)})" if parts else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
