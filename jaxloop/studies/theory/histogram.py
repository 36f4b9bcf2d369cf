"""The U-shape toy in both variants: literally, where the bias has nothing to act on, and with a
little mass added, where the U-shape appears.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from jax.sharding import Mesh
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxloop.reporting import figures, report
from jaxloop.reporting.scores import share
from jaxloop.simulators import histogram
from jaxloop.studies.theory import closed_forms
from jaxloop.studies.theory.compare import Check, Claim, Conclusion, Experiment, Quantity
from jaxloop.studies.theory.config import TheoryConfig

ROWS = {False: "no accumulation", True: "accumulation"}
VARIANTS = ("literal", "smoothed")
WIDE = 4.0  # standard errors that an arm of the U must rise by


class NamedColumn(NamedTuple):
    """A column of the paper's figure in one variant."""

    variant: str
    name: str
    column: histogram.Column


def columns(config: TheoryConfig) -> list[NamedColumn]:
    """Return the paper's three columns in both variants, and a weaker bias."""
    section = config.histogram
    # Name, factors, whether people write even numbers too.
    settings: tuple[tuple[str, histogram.Bias, bool], ...] = (
        ("unbiased", 1.0, False),
        ("biased, overlap", section.bias, True),
        ("biased, no overlap", section.bias, False),
        (f"bias {section.weak:g}, no overlap", section.weak, False),
    )
    return [
        NamedColumn(variant, name, histogram.Column(bias, smoothing, overlap))
        for variant, smoothing in zip(VARIANTS, (0.0, section.smoothing), strict=True)
        for name, bias, overlap in settings
    ]


def _draw(
    config: TheoryConfig, accumulate: bool, mesh: Mesh | None, seed: int
) -> dict[str, np.ndarray]:
    """Metrics {name: [columns, ratios, R, T+1]} of a batch."""
    section = config.histogram
    return histogram.simulate_columns(
        [column.column for column in columns(config)],
        seed=seed * 64,  # every ratio has a seed of its own, counted from this one
        size=section.size,
        ratios=section.ratios,
        accumulate=accumulate,
        generations=section.generations,
        replicates=section.batch,
        mesh=mesh,
    )


def acts_on_human(config: TheoryConfig) -> bool:
    """Return whether the factors differ among the numbers that people write, so that the bias acts
    without smoothing too.
    """
    bias = config.histogram.bias
    return isinstance(bias, tuple) and len(set(bias[1::2])) > 1


def experiments(config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
    """Return what has a formula: sum p^2 in the literal variant without accumulation, and the
    entropy where no item is synthetic.

    Where the bias acts on what people write, they are those of the unbiased column.
    """
    h, t = config.histogram, np.arange(config.histogram.generations + 1)
    all_columns = columns(config)
    place = {(c.variant, c.name): i for i, c in enumerate(all_columns)}
    name = "unbiased" if acts_on_human(config) else "biased, no overlap"
    plain = [place[variant, name] for variant in VARIANTS]
    entropies = [_entropy(h.size, all_columns[i].column) for i in plain]
    human, _, _ = histogram.vectors(h.size, *all_columns[plain[0]].column)
    experiments = []
    for accumulate, row in ROWS.items():
        name = "Entropy without synthetic items"
        quantities = [
            Quantity.of(name, t, np.full(len(t), e), line=f"{r}, {row}")
            for e, r in zip(entropies, VARIANTS, strict=True)
        ]
        mixed = [] if accumulate else [i for i, r in enumerate(h.ratios) if r > 0][:6]
        for i in mixed:
            exact = closed_forms.mixed_homozygosity(
                t + 1, n=h.size, synthetic=int(h.ratios[i] * h.size), source=human
            )
            quantities.append(
                Quantity.of(
                    "Heterozygosity, literal reading",
                    t,
                    1 - exact,
                    line=f"r = {share(h.ratios[i])}",
                )
            )

        def draw(
            seed: int, accumulate: bool = accumulate, mixed: list[int] = mixed
        ) -> list[np.ndarray]:
            out = _draw(config, accumulate, mesh, seed)
            return [
                *(out["entropy"][i, 0] for i in plain),
                *(out["heterozygosity"][plain[0], i] for i in mixed),
            ]

        experiments.append(Experiment(row.replace(" ", "_"), tuple(quantities), draw))
    return experiments


def _entropy(size: int, column: histogram.Column) -> float:
    human, smoothing, vector = histogram.vectors(size, *column)
    return closed_forms.histogram_entropy(n=size, source=human, smoothing=smoothing, bias=vector)


def _u_shape(config: TheoryConfig, mesh: Mesh | None) -> pd.DataFrame:
    """Relative entropy of the last generation, one row per curve and ratio."""
    h, rows = config.histogram, []
    for accumulate, row in ROWS.items():
        parts = [
            _draw(config, accumulate, mesh, (config.seed + 1) * 100_000 + i)["relative_entropy"][
                ..., -1
            ]
            for i in range(-(-h.replicates // h.batch))
        ]
        last = np.concatenate(parts, 2)
        se = last.std(2, ddof=1) / np.sqrt(last.shape[2])
        for i, c in enumerate(columns(config)):
            for j, ratio in enumerate(h.ratios):
                rows.append(
                    (row, c.variant, c.name, ratio, last[i, j].mean(), se[i, j], last.shape[2])
                )
    return pd.DataFrame(
        rows, columns=["row", "reading", "column", "ratio", "relative_entropy", "se", "replicates"]
    )


def arms(curve: pd.DataFrame) -> tuple[float, float, float]:
    """Return (fall, rise, ratio of the minimum): how many standard errors the ends of a curve lie
    above its lowest inner point.
    """
    mean, se = curve["relative_entropy"].to_numpy(), curve["se"].to_numpy()
    low = 1 + int(mean[1:-1].argmin())

    def above_lowest(end: int) -> float:
        return float((mean[end] - mean[low]) / max(np.hypot(se[end], se[low]), 1e-12))

    return above_lowest(0), above_lowest(-1), float(curve["ratio"].to_numpy()[low])


def conclude(config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]) -> Conclusion:
    """Return both variants side by side, which of them has a U, and that the bias does nothing in
    the literal one.
    """
    table = _u_shape(config, mesh)
    claims = [claim for row in ROWS.values() for claim in _claims(config, table, row)]
    note = (
        "Relative entropy: entropy of the last generation over that of generation 0. The paper's "
        "text does not say how a number that was never seen can be favoured. Taken literally, in "
        f"the upper row of panels, {_where_it_is(table, 'literal')}. With "
        f"{config.histogram.smoothing:g} added to every number and {_factors(config)}, "
        f"{_where_it_is(table, 'smoothed')}; this is a reading of the paper, not its program, "
        "which is not public."
    )
    drawing = report.Drawing("U-shape", "± 2 standard errors", _figure(config, table), True)
    section = report.Section("Two readings of the U-shape", note, (drawing,))
    return Conclusion(claims, (section,), {"u_shape": table})


def _claims(config: TheoryConfig, table: pd.DataFrame, row: str) -> list[Claim]:
    """What is expected of the paper's bias, one factor on even numbers; of other factors only what
    follows from their places.
    """
    literal = [] if acts_on_human(config) else [_literal_claim(table, row)]
    if isinstance(config.histogram.bias, tuple):
        return literal
    return [*literal, _smoothed_claim(table, row), _no_other_claim(config, table, row)]


def _factors(config: TheoryConfig) -> str:
    bias = config.histogram.bias
    if isinstance(bias, tuple):
        return f"a factor of its own on each, from {min(bias):g} to {max(bias):g}"
    return f"a factor of {bias:g} on even ones"


def _where_it_is(table: pd.DataFrame, variant: str) -> str:
    """Where the biased column of a variant has a U, by its arms."""
    rows = [
        row
        for row in ROWS.values()
        if min(arms(_curve(table, row, variant, "biased, no overlap"))[:2]) > WIDE
    ]
    return f"there is a U with {' and with '.join(rows)}" if rows else "there is no U"


def _curve(table: pd.DataFrame, row: str, variant: str, column: str) -> pd.DataFrame:
    is_row, is_column = table["row"] == row, table["column"] == column
    return table[is_row & (table["reading"] == variant) & is_column]


def _literal_claim(table: pd.DataFrame, row: str) -> Claim:
    biased = _curve(table, row, "literal", "biased, no overlap")
    unbiased = _curve(table, row, "literal", "unbiased")
    difference = biased["relative_entropy"].to_numpy() - unbiased["relative_entropy"].to_numpy()
    spread = np.hypot(biased["se"].to_numpy(), unbiased["se"].to_numpy())
    gap = float((np.abs(difference) / np.maximum(spread, 1e-12)).max())
    _, rise, _ = arms(biased)
    return Claim(
        f"Literal reading, {row}: numbers that people never write have probability 0 for ever, so "
        "that the bias changes nothing and there is no U",
        f"biased and unbiased differ by at most {gap:.1f} standard errors; r = 1 lies {rise:+.1f} "
        "standard errors above the lowest inner point",
        gap < WIDE and rise < WIDE,
    )


def _smoothed_claim(table: pd.DataFrame, row: str) -> Claim:
    fall, rise, low = arms(_curve(table, row, "smoothed", "biased, no overlap"))
    return Claim(
        f"Smoothed reading, {row}: the relative entropy has a U between only human and only "
        "synthetic numbers",
        f"lowest at r = {share(low)}, the ends {fall:.0f} and {rise:.0f} standard errors above it",
        fall > WIDE and rise > WIDE,
    )


def _no_other_claim(config: TheoryConfig, table: pd.DataFrame, row: str) -> Claim:
    names = ("unbiased", "biased, overlap", f"bias {config.histogram.weak:g}, no overlap")
    rises = {name: arms(_curve(table, row, "smoothed", name))[1] for name in names}
    return Claim(
        f"Smoothed reading, {row}: no U without bias, with a weaker one, or where people write all "
        "numbers",
        "; ".join(
            f"{name}: r = 1 lies {z:+.1f} standard errors above the lowest inner point"
            for name, z in rises.items()
        ),
        max(rises.values()) < WIDE,
    )


def _figure(config: TheoryConfig, table: pd.DataFrame) -> Figure:
    names = [column.name for column in columns(config)[:3]]
    with figures.style():
        drawing, axes = figures.panels(2, 3, sharex=True, sharey=True)
        for i, variant in enumerate(VARIANTS):
            for j, name in enumerate(names):
                _draw_panel(axes[i, j], table, variant, name)
                if i:
                    axes[i, j].set_xlabel("r, synthetic share")
            axes[i, 0].set_ylabel("relative entropy")
        axes[0, 0].legend(frameon=False, fontsize=8)
        return drawing


def _draw_panel(axes: Axes, table: pd.DataFrame, variant: str, name: str) -> None:
    for row, (colour, _) in zip(ROWS.values(), figures.palette(len(ROWS)), strict=True):
        curve = _curve(table, row, variant, name)
        ratio, mean, se = (
            curve[column].to_numpy(float) for column in ("ratio", "relative_entropy", "se")
        )
        low, high = mean - 2 * se, mean + 2 * se
        axes.fill_between(ratio, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(ratio, mean, color=colour, marker="o", markersize=3.4, label=row)
    axes.set_title(f"{variant}: {name}", loc="left", fontsize=9)
