"""The U-shape toy in both readings: literally, where the bias has nothing to act on, and with a
little mass added, where the U-shape appears.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.reporting import figures, report
from jaxloop.reporting.scores import share
from jaxloop.simulators import histogram
from jaxloop.studies.theory import closed_forms, compare

if TYPE_CHECKING:
    from jaxloop.studies.theory.run import Settings

ROWS = {False: "no accumulation", True: "accumulation"}
READINGS = ("literal", "smoothed")
WIDE = 4.0  # standard errors that an arm of the U must rise by


class _Column(NamedTuple):
    reading: str
    name: str
    column: histogram.Column


def columns(settings: "Settings") -> list[_Column]:
    """The paper's three columns in both readings, and a weaker bias."""
    h, found = settings.histogram, []
    for reading, smoothing in zip(READINGS, (0.0, h.smoothing), strict=True):
        found += [
            _Column(reading, "unbiased", histogram.Column(1.0, smoothing, False)),
            _Column(reading, "biased, overlap", histogram.Column(h.bias, smoothing, True)),
            _Column(reading, "biased, no overlap", histogram.Column(h.bias, smoothing, False)),
            _Column(
                reading, f"bias {h.weak:g}, no overlap", histogram.Column(h.weak, smoothing, False)
            ),
        ]
    return found


def _draw(settings, accumulate, mesh, seed):
    """Metrics {name: [columns, ratios, R, T+1]} of a batch."""
    h = settings.histogram
    options = dict(
        size=h.size,
        ratios=h.ratios,
        accumulate=accumulate,
        generations=h.generations,
        replicates=h.batch,
        mesh=mesh,
    )
    # Every ratio has a seed of its own, counted from this one.
    return histogram.simulate_columns(
        [c.column for c in columns(settings)], seed=seed * 64, **options
    )


def experiments(settings: "Settings", mesh=None) -> list[compare.Experiment]:
    """What has a formula: sum p^2 in the literal reading without accumulation, and the entropy
    where no item is synthetic.
    """
    h, t = settings.histogram, np.arange(settings.histogram.generations + 1)
    all_columns = columns(settings)
    place = {(c.reading, c.name): i for i, c in enumerate(all_columns)}
    plain = [place[reading, "biased, no overlap"] for reading in READINGS]
    human = np.where(np.arange(h.size + 1) % 2 == 0, 0.0, 1.0)
    human, vector = human / human.sum(), np.where(np.arange(h.size + 1) % 2 == 0, h.bias, 1.0)
    entropies = [
        closed_forms.histogram_entropy(
            n=h.size, source=human, smoothing=all_columns[i].column.smoothing, bias=vector
        )
        for i in plain
    ]
    found = []
    for accumulate, row in ROWS.items():
        name = "Entropy without synthetic items"
        quantities = [
            compare.Quantity(name, t, np.full(len(t), e), line=f"{r}, {row}")
            for e, r in zip(entropies, READINGS, strict=True)
        ]
        mixed = [] if accumulate else [i for i, r in enumerate(h.ratios) if r > 0][:6]
        for i in mixed:
            exact = closed_forms.mixed_homozygosity(
                t + 1, n=h.size, synthetic=int(h.ratios[i] * h.size), source=human
            )
            quantities.append(
                compare.Quantity(
                    "Heterozygosity, literal reading",
                    t,
                    1 - exact,
                    line=f"r = {share(h.ratios[i])}",
                )
            )

        def draw(seed, accumulate=accumulate, mixed=mixed):
            out = _draw(settings, accumulate, mesh, seed)
            return [
                *(out["entropy"][i, 0] for i in plain),
                *(out["heterozygosity"][plain[0], i] for i in mixed),
            ]

        found.append(compare.Experiment(row.replace(" ", "_"), tuple(quantities), draw))
    return found


def _u_shape(settings, mesh) -> pd.DataFrame:
    """Relative entropy of the last generation: row, reading, column, ratio, mean, se, replicates."""
    h, rows = settings.histogram, []
    for accumulate, row in ROWS.items():
        parts = [
            _draw(settings, accumulate, mesh, (settings.seed + 1) * 100_000 + i)[
                "relative_entropy"
            ][..., -1]
            for i in range(-(-h.replicates // h.batch))
        ]
        last = np.concatenate(parts, 2)
        se = last.std(2, ddof=1) / np.sqrt(last.shape[2])
        for i, c in enumerate(columns(settings)):
            for j, ratio in enumerate(h.ratios):
                rows.append(
                    (row, c.reading, c.name, ratio, last[i, j].mean(), se[i, j], last.shape[2])
                )
    return pd.DataFrame(
        rows, columns=["row", "reading", "column", "ratio", "relative_entropy", "se", "replicates"]
    )


def arms(curve: pd.DataFrame) -> tuple[float, float, float]:
    """(fall, rise, ratio of the minimum): how many standard errors the ends of a curve lie above
    its lowest inner point.
    """
    mean, se = curve["relative_entropy"].to_numpy(), curve["se"].to_numpy()
    low = 1 + int(mean[1:-1].argmin())
    z = lambda end: float((mean[end] - mean[low]) / max(np.hypot(se[end], se[low]), 1e-12))
    return z(0), z(-1), float(curve["ratio"].to_numpy()[low])


def conclude(settings: "Settings", mesh, checks):
    """Both readings side by side, which of them has a U, and that the bias does nothing in the
    literal one.
    """
    from jaxloop.studies.theory.run import Conclusion

    table = _u_shape(settings, mesh)
    curve = lambda row, reading, column: table[
        (table["row"] == row) & (table["reading"] == reading) & (table["column"] == column)
    ]
    claims = []
    for row in ROWS.values():
        biased, unbiased = (
            curve(row, "literal", name)["relative_entropy"].to_numpy()
            for name in ("biased, no overlap", "unbiased")
        )
        spread = np.hypot(
            *(
                curve(row, "literal", name)["se"].to_numpy()
                for name in ("biased, no overlap", "unbiased")
            )
        )
        gap = float((np.abs(biased - unbiased) / np.maximum(spread, 1e-12)).max())
        _, rise, _ = arms(curve(row, "literal", "biased, no overlap"))
        claims.append(
            compare.Claim(
                f"Literal reading, {row}: numbers that people never write have probability 0 for "
                "ever, so that the bias changes nothing and there is no U",
                f"biased and unbiased differ by at most {gap:.1f} standard errors; r = 1 lies "
                f"{rise:+.1f} standard errors above the lowest inner point",
                gap < WIDE and rise < WIDE,
            )
        )
        fall, rise, low = arms(curve(row, "smoothed", "biased, no overlap"))
        claims.append(
            compare.Claim(
                f"Smoothed reading, {row}: the relative entropy has a U between only human and "
                "only synthetic numbers",
                f"lowest at r = {share(low)}, the ends {fall:.0f} and {rise:.0f} standard errors "
                "above it",
                fall > WIDE and rise > WIDE,
            )
        )
        rises = {
            name: arms(curve(row, "smoothed", name))[1]
            for name in (
                "unbiased",
                "biased, overlap",
                f"bias {settings.histogram.weak:g}, no overlap",
            )
        }
        claims.append(
            compare.Claim(
                f"Smoothed reading, {row}: no U without bias, with a weaker one, or where people "
                "write all numbers",
                "; ".join(
                    f"{name}: r = 1 lies {z:+.1f} standard errors above the lowest inner point"
                    for name, z in rises.items()
                ),
                max(rises.values()) < WIDE,
            )
        )
    note = (
        "Relative entropy: entropy of the last generation over that of generation 0. The paper's "
        "text does not say how a number that was never seen "
        "can be favoured. Taken literally it cannot: the upper row of panels has no U. With "
        f"{settings.histogram.smoothing:g} added to every number and a factor of "
        f"{settings.histogram.bias:g} on even ones it has; this is a reading of "
        "the paper, not its program, which is not public."
    )
    section = report.Section(
        "Two readings of the U-shape",
        note,
        (report.Drawing("U-shape", "± 2 standard errors", _figure(settings, table), True),),
    )
    return Conclusion(claims, (section,), {"u_shape": table})


def _figure(settings, table):
    names = [c.name for c in columns(settings)[:3]]
    with figures.style():
        drawing, axes = figures.panels(2, 3, sharex=True, sharey=True)
        for i, reading in enumerate(READINGS):
            for j, name in enumerate(names):
                top = axes[i, j]
                for row, (colour, _) in zip(ROWS.values(), figures.palette(len(ROWS)), strict=True):
                    c = table[
                        (table["row"] == row)
                        & (table["reading"] == reading)
                        & (table["column"] == name)
                    ]
                    x, mean, se = (
                        c[k].to_numpy(float) for k in ("ratio", "relative_entropy", "se")
                    )
                    top.fill_between(
                        x, mean - 2 * se, mean + 2 * se, color=colour, alpha=0.25, linewidth=0
                    )
                    top.plot(x, mean, color=colour, marker="o", markersize=3.4, label=row)
                top.set_title(f"{reading}: {name}", loc="left", fontsize=9)
                if i:
                    top.set_xlabel("r, synthetic share")
            axes[i, 0].set_ylabel("relative entropy")
        axes[0, 0].legend(frameon=False, fontsize=8)
        return drawing
