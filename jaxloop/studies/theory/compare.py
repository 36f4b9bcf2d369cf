"""Analytic against empirical: quantities with a formula, measured on replicates until the standard
error is small, with z and figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import norm

from jaxloop.reporting import figures

FLAG = 4.0  # |z| above which a row counts as a disagreement
WANTED = 0.01  # standard error that replicates are chosen for, relative to the quantity
COLUMNS = (
    "study",
    "quantity",
    "line",
    "axis",
    "at",
    "analytic",
    "empirical",
    "se",
    "z",
    "replicates",
    "tolerance",
    "flag",
)


@dataclass(frozen=True, eq=False)
class Quantity:
    """Something with a formula.

    name       its name; quantities of one name are drawn in one figure
    at         [n] where it is taken (generation, ratio, ...); `axis` says what that is
    analytic   [n]
    line       which curve of the figure this is
    tolerance  relative error that the formula itself is known to have (0: exact); it is taken off
    the difference before z
    """

    name: str
    at: np.ndarray
    analytic: np.ndarray
    axis: str = "generation"
    line: str = ""
    tolerance: float = 0.0

    def __post_init__(self):
        at, analytic = (np.atleast_1d(np.asarray(x, float)) for x in (self.at, self.analytic))
        if at.shape != analytic.shape or at.ndim != 1:
            raise ValueError(
                f"{self.name}: at {at.shape} and analytic {analytic.shape} must be [n] and [n]"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"{self.name}: tolerance={self.tolerance} must be at least 0")
        object.__setattr__(self, "at", at)
        object.__setattr__(self, "analytic", analytic)


@dataclass(frozen=True, eq=False)
class Check:
    """A quantity with its measurement: mean [n] and standard error [n] over `replicates`
    independent replicates.
    """

    quantity: Quantity
    empirical: np.ndarray
    se: np.ndarray
    replicates: int

    @property
    def z(self) -> np.ndarray:
        """[n] (empirical - analytic) / se beyond the tolerance; 0 where both agree to rounding, inf
        where they differ without any spread.
        """
        analytic = self.quantity.analytic
        away = self.empirical - analytic
        beyond = np.sign(away) * np.maximum(
            np.abs(away) - (self.quantity.tolerance + 1e-9) * np.abs(analytic) - 1e-12, 0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(beyond == 0, 0.0, beyond / self.se)


def check(quantity: Quantity, samples) -> Check:
    """The quantity measured on samples [R, n], one independent row per replicate. Raises ValueError
    for another shape or a single replicate.
    """
    samples = np.asarray(samples, float)
    if samples.ndim != 2 or samples.shape[1:] != quantity.analytic.shape:
        raise ValueError(
            f"{quantity.name}: samples {samples.shape} must be [R, {len(quantity.analytic)}], "
            "one row per replicate"
        )
    if len(samples) < 2:
        raise ValueError(
            f"{quantity.name}: {len(samples)} replicate, a standard error needs at least 2"
        )
    return Check(
        quantity, samples.mean(0), samples.std(0, ddof=1) / np.sqrt(len(samples)), len(samples)
    )


class Experiment(NamedTuple):
    """Quantities that are measured on the same replicates.

    name   of the experiment
    draw   seed -> samples [R, n] of every quantity, the same R for every seed; different seeds are independent
    """

    name: str
    quantities: tuple[Quantity, ...]
    draw: Callable[[int], Sequence[np.ndarray]]


def measure(
    experiment: Experiment,
    *,
    seed: int,
    replicates: int | None = None,
    most: int,
    wanted: float = WANTED,
) -> list[Check]:
    """Draws batch after batch until every standard error is below `wanted` of its quantity
    (`replicates_for`), there are `replicates`, or there are `most`. Equal arguments give equal
    results.
    """
    parts = [experiment.draw(seed)]
    while True:
        samples = [np.concatenate(found) for found in zip(*parts, strict=True)]
        done = len(samples[0])
        need = replicates or max(
            replicates_for(x, q.analytic, wanted)
            for x, q in zip(samples, experiment.quantities, strict=True)
        )
        if done >= min(need, most):
            return [check(q, x) for q, x in zip(experiment.quantities, samples, strict=True)]
        parts.append(experiment.draw(seed + len(parts)))


def replicates_for(samples, analytic, wanted: float = WANTED) -> int:
    """Replicates at which the standard error of every mean of samples [R, n] is below `wanted` of
    analytic [n]; entries of value 0 are left out.
    """
    size, sd = np.abs(np.asarray(analytic, float)), np.asarray(samples, float).std(0, ddof=1)
    seen = size > 1e-12
    return int(np.ceil(((sd[seen] / size[seen]) ** 2).max(initial=0.0) / wanted**2))


# ---- tables
# -----------------------------------------------------------------------------------------------------------


def table(checks: Sequence[Check], *, study: str = "") -> pd.DataFrame:
    """One row per entry of every check, columns `COLUMNS`; flag is True where |z| > 4 or z is not a
    number.
    """
    rows = []
    for c in checks:
        q, z = c.quantity, c.z
        for i in range(len(q.at)):
            values = q.analytic[i], c.empirical[i], c.se[i], z[i]
            rows.append(
                (
                    study,
                    q.name,
                    q.line,
                    q.axis,
                    q.at[i],
                    *values,
                    c.replicates,
                    q.tolerance,
                    bool(not abs(z[i]) <= FLAG),
                )
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def disagreements(rows: pd.DataFrame) -> pd.DataFrame:
    """The flagged rows, worst first."""
    return rows[rows["flag"]].sort_values("z", key=lambda z: -z.abs(), na_position="first")


def imprecise(rows: pd.DataFrame, wanted: float = WANTED) -> pd.DataFrame:
    """Rows whose standard error is not below `wanted` of the analytic value (entries whose value is
    0 left out).
    """
    return rows[(rows["se"] > wanted * rows["analytic"].abs()) & (rows["analytic"].abs() > 1e-12)]


def by_chance(comparisons: int) -> float:
    """Flags to expect among so many comparisons where every formula is right and means are normal:
    6.3e-5 each.
    """
    return float(comparisons * 2 * norm.sf(FLAG))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per quantity: comparisons, replicates, largest standard error relative to the
    quantity, largest |z|, tolerance, flags.
    """
    sized = rows.assign(
        relative=(rows["se"] / rows["analytic"].abs()).where(rows["analytic"].abs() > 1e-12),
        size=rows["z"].abs(),
    )
    groups = sized.groupby("quantity", sort=False)
    found = groups.agg(
        comparisons=("z", "size"),
        replicates=("replicates", "max"),
        relative_se=("relative", "max"),
        largest_z=("size", "max"),
        tolerance=("tolerance", "max"),
        flags=("flag", "sum"),
    )
    return found.reset_index()


# ---- claims
# -----------------------------------------------------------------------------------------------------------


class Claim(NamedTuple):
    """A statement that a study makes, the numbers that it rests on, and whether they bear it out."""

    statement: str
    numbers: str
    holds: bool


# ---- figures
# ----------------------------------------------------------------------------------------------------------


def groups(checks: Sequence[Check]) -> Mapping[str, list[Check]]:
    """The checks by name of their quantity, in order of first appearance."""
    found: dict[str, list[Check]] = {}
    for c in checks:
        found.setdefault(c.quantity.name, []).append(c)
    return found


def figure(checks: Sequence[Check], *, size: tuple[float, float] = (4.2, 3.6)) -> Figure:
    """The checks of one quantity: analytic as lines, empirical as dots with a band of two standard
    errors; z and its limits below.

    Raises ValueError where there are none.
    """
    if not checks:
        raise ValueError("checks: there are none to draw")
    values = np.concatenate([c.quantity.analytic for c in checks])
    with figures.style():
        drawing = Figure(figsize=size, layout="constrained")
        top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for c, (colour, _) in zip(checks, figures.palette(len(checks)), strict=True):
            q = c.quantity
            top.fill_between(
                q.at,
                c.empirical - 2 * c.se,
                c.empirical + 2 * c.se,
                color=colour,
                alpha=0.25,
                linewidth=0,
            )
            top.plot(q.at, q.analytic, color=colour, linewidth=1.4, label=figures.printable(q.line))
            top.plot(
                q.at,
                c.empirical,
                "o",
                color=colour,
                markersize=3.4,
                markerfacecolor="none",
                markeredgewidth=0.9,
            )
            bottom.plot(
                q.at, np.clip(np.nan_to_num(c.z, nan=8.0), -8, 8), "o", color=colour, markersize=2.4
            )
        if (values > 0).all() and values.max() > 30 * values.min():
            top.set_yscale("log")
            top.yaxis.set_major_formatter("{x:g}")
            top.yaxis.set_minor_formatter("")
        if len(checks) > 1:
            top.legend(frameon=False, fontsize=8, labelcolor=figures.INK)
        for limit in (-FLAG, FLAG):
            bottom.axhline(limit, color=figures.MUTED, linewidth=1, linestyle=(0, (1, 2)))
        bottom.set_ylim(-8.5, 8.5)
        bottom.set_yticks([-4, 0, 4])
        bottom.set_ylabel("z")
        bottom.set_xlabel(checks[0].quantity.axis)
        for axes in (top, bottom):
            axes.tick_params(length=0)
        return drawing
