"""Analytic against empirical: quantities with a formula, measured on replicates until the standard
error is small, with z and figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.stats import norm

from jaxloop.reporting import figures
from jaxloop.reporting.report import Section

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

    Attributes:
        name: quantities of one name are drawn in one figure.
        at: [n] where it is taken (generation, ratio, ...).
        analytic: [n] what the formula says.
        axis: what `at` is.
        line: which curve of the figure this is.
        tolerance: relative error that the formula itself is known to have (0: exact); it is taken
            off the difference before z.
    """

    name: str
    at: np.ndarray
    analytic: np.ndarray
    axis: str = "generation"
    line: str = ""
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if self.at.shape != self.analytic.shape or self.at.ndim != 1:
            raise ValueError(
                f"{self.name}: at {self.at.shape} and analytic {self.analytic.shape} must be [n] "
                "and [n]"
            )
        if not self.tolerance >= 0:
            raise ValueError(f"{self.name}: tolerance={self.tolerance} must be at least 0")

    @classmethod
    def of(
        cls,
        name: str,
        at: ArrayLike,
        analytic: ArrayLike,
        *,
        axis: str = "generation",
        line: str = "",
        tolerance: float = 0.0,
    ) -> "Quantity":
        """Make a quantity of anything that is an array of numbers [n], or one number.

        Raises ValueError where `at` and `analytic` differ in shape, or the tolerance is negative.
        """
        return cls(
            name=name,
            at=np.atleast_1d(np.asarray(at, float)),
            analytic=np.atleast_1d(np.asarray(analytic, float)),
            axis=axis,
            line=line,
            tolerance=tolerance,
        )


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
        """Return [n] (empirical - analytic) / se beyond the tolerance.

        It is 0 where both agree to rounding, inf where they differ without any spread.
        """
        analytic = self.quantity.analytic
        away = self.empirical - analytic
        beyond = np.sign(away) * np.maximum(
            np.abs(away) - (self.quantity.tolerance + 1e-9) * np.abs(analytic) - 1e-12, 0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(beyond == 0, 0.0, beyond / self.se)


def check(quantity: Quantity, samples: np.ndarray) -> Check:
    """Measure a quantity on samples [R, n], one independent row per replicate.

    Raises ValueError for another shape or a single replicate.
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
        quantity,
        empirical=samples.mean(0),
        se=samples.std(0, ddof=1) / np.sqrt(len(samples)),
        replicates=len(samples),
    )


class Experiment(NamedTuple):
    """Quantities that are measured on the same replicates.

    Attributes:
        name: of the experiment, and of its file.
        quantities: what is measured.
        draw: seed -> samples [R, n] of every quantity, with the same R for every seed; different
            seeds are independent.
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
    """Measure the quantities of an experiment.

    Batch after batch is drawn until every standard error is below `wanted` of its quantity
    (`replicates_for`), or there are `replicates`, where that is given; at most `most`. Equal
    arguments give equal results.
    """
    parts = [experiment.draw(seed)]
    while True:
        samples = [np.concatenate(batches) for batches in zip(*parts, strict=True)]
        done = len(samples[0])
        need = replicates or max(
            replicates_for(x, q.analytic, wanted)
            for x, q in zip(samples, experiment.quantities, strict=True)
        )
        if done >= min(need, most):
            return [check(q, x) for q, x in zip(experiment.quantities, samples, strict=True)]
        parts.append(experiment.draw(seed + len(parts)))


def replicates_for(samples: np.ndarray, analytic: np.ndarray, wanted: float = WANTED) -> int:
    """Return the replicates at which every standard error is small enough.

    That of every mean of samples [R, n] is then below `wanted` of analytic [n]; entries of value 0
    are left out.
    """
    size, sd = np.abs(np.asarray(analytic, float)), np.asarray(samples, float).std(0, ddof=1)
    nonzero = size > 1e-12
    return int(np.ceil(((sd[nonzero] / size[nonzero]) ** 2).max(initial=0.0) / wanted**2))


# ---- tables


def table(checks: Sequence[Check], *, study: str = "") -> pd.DataFrame:
    """Return one row per entry of every check, columns `COLUMNS`; flag is True where |z| > 4 or z
    is not a number.
    """
    parts = [_rows(check, study) for check in checks]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def _rows(check: Check, study: str) -> pd.DataFrame:
    quantity, z = check.quantity, check.z
    rows = pd.DataFrame(
        {
            "study": study,
            "quantity": quantity.name,
            "line": quantity.line,
            "axis": quantity.axis,
            "at": quantity.at,
            "analytic": quantity.analytic,
            "empirical": check.empirical,
            "se": check.se,
            "z": z,
            "replicates": check.replicates,
            "tolerance": quantity.tolerance,
            "flag": ~(np.abs(z) <= FLAG),
        }
    )
    return rows[list(COLUMNS)]


def disagreements(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the flagged rows, worst first."""
    return rows[rows["flag"]].sort_values("z", key=lambda z: -z.abs(), na_position="first")


def imprecise(rows: pd.DataFrame, wanted: float = WANTED) -> pd.DataFrame:
    """Return the rows whose standard error is not below `wanted` of the analytic value, entries of
    value 0 left out.
    """
    return rows[(rows["se"] > wanted * rows["analytic"].abs()) & (rows["analytic"].abs() > 1e-12)]


def by_chance(comparisons: int) -> float:
    """Return the flags to expect among so many comparisons: 6.3e-5 each, where every formula is
    right and means are normal.
    """
    return float(comparisons * 2 * norm.sf(FLAG))


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per quantity: comparisons, replicates, largest standard error relative to the
    quantity, largest |z|, tolerance, flags.
    """
    sized = rows.assign(
        relative=(rows["se"] / rows["analytic"].abs()).where(rows["analytic"].abs() > 1e-12),
        size=rows["z"].abs(),
    )
    groups = sized.groupby("quantity", sort=False)
    by_quantity = groups.agg(
        comparisons=("z", "size"),
        replicates=("replicates", "max"),
        relative_se=("relative", "max"),
        largest_z=("size", "max"),
        tolerance=("tolerance", "max"),
        flags=("flag", "sum"),
    )
    return by_quantity.reset_index()


# ---- claims


class Claim(NamedTuple):
    """A statement, the numbers that it rests on, and whether they bear it out."""

    statement: str
    numbers: str
    holds: bool


class Conclusion(NamedTuple):
    """What a kind of models adds to its comparisons.

    Attributes:
        claims: statements, in the order of the page.
        sections: of the report.
        tables: further ones, by the name of their file without suffix.
    """

    claims: Sequence[Claim]
    sections: Sequence[Section]
    tables: Mapping[str, pd.DataFrame]


# ---- figures


def groups(checks: Sequence[Check]) -> Mapping[str, list[Check]]:
    """Return the checks by name of their quantity, in order of first appearance."""
    by_name: dict[str, list[Check]] = {}
    for check in checks:
        by_name.setdefault(check.quantity.name, []).append(check)
    return by_name


def figure(checks: Sequence[Check], *, size: tuple[float, float] = (4.2, 3.6)) -> Figure:
    """Draw the checks of one quantity: analytic as lines, empirical as dots with a band of two
    standard errors; z and its limits below.

    Raises ValueError where there are none.
    """
    if not checks:
        raise ValueError("checks: there are none to draw")
    values = np.concatenate([check.quantity.analytic for check in checks])
    with figures.style():
        drawing = Figure(figsize=size, layout="constrained")
        top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        for check, (colour, _) in zip(checks, figures.palette(len(checks)), strict=True):
            _draw_check(top, bottom, check, colour)
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


def _draw_check(top: Axes, bottom: Axes, check: Check, colour: str) -> None:
    quantity = check.quantity
    top.fill_between(
        quantity.at,
        check.empirical - 2 * check.se,
        check.empirical + 2 * check.se,
        color=colour,
        alpha=0.25,
        linewidth=0,
    )
    line = figures.printable(quantity.line)
    top.plot(quantity.at, quantity.analytic, color=colour, linewidth=1.4, label=line)
    top.plot(
        quantity.at,
        check.empirical,
        "o",
        color=colour,
        markersize=3.4,
        markerfacecolor="none",
        markeredgewidth=0.9,
    )
    z = np.clip(np.nan_to_num(check.z, nan=8.0), -8, 8)
    bottom.plot(quantity.at, z, "o", color=colour, markersize=2.4)
