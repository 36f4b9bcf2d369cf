"""Analytic against empirical: quantities with a formula, measured on replicates until an error of
a formula would be found, with one test per curve and figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxloop.reporting import figures
from jaxloop.reporting.report import Section
from jaxloop.studies.theory import agreement as agreements
from jaxloop.studies.theory.agreement import Moments, Power

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
    "p",
    "flag",
)
# One row per curve; `skew` is that of its most skewed entry, `directions` and `freedom` are the
# degrees of freedom of f.
CURVES = (
    "quantity",
    "line",
    "entries",
    "replicates",
    "left_out",
    "error",
    "t",
    "f",
    "directions",
    "freedom",
    "largest",
    "skew",
    "p",
    "adjusted",
    "finds",
    "wanted",
    "tolerance",
    "flag",
)
BAND = 4.0  # of the figures: dotted lines of z, which decide nothing


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
            off the differences before they are tested.
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
    """A quantity with the moments of its samples [R, n], one independent row per replicate.

    left_out: replicates that were drawn beside these R and are in no number.
    """

    quantity: Quantity
    moments: Moments
    left_out: int = 0

    @property
    def replicates(self) -> int:
        """R."""
        return self.moments.replicates

    @property
    def empirical(self) -> np.ndarray:
        """Mean [n]."""
        return self.moments.mean

    @property
    def se(self) -> np.ndarray:
        """Standard error [n] of the mean."""
        return np.sqrt(np.diag(self.moments.cov) / self.moments.replicates)

    @property
    def z(self) -> np.ndarray:
        """Return [n] (empirical - analytic) / se beyond the tolerance: Student's t with R - 1
        degrees of freedom.

        It is 0 where both agree to rounding, inf where they differ without any spread.
        """
        return agreements.entries(self.quantity.analytic, self.moments, self.quantity.tolerance)

    def agreement(self) -> agreements.Agreement:
        """Return how the whole curve compares."""
        return agreements.agreement(self.quantity.analytic, self.moments, self.quantity.tolerance)


def check(quantity: Quantity, samples: np.ndarray) -> Check:
    """Measure a quantity on samples [R, n], one independent row per replicate.

    Raises ValueError for another shape or a single replicate.
    """
    return Check(quantity, _moments(quantity, np.asarray(samples, float)))


def _moments(quantity: Quantity, samples: np.ndarray) -> Moments:
    if samples.ndim != 2 or samples.shape[1:] != quantity.analytic.shape:
        raise ValueError(
            f"{quantity.name}: samples {samples.shape} must be [R, {len(quantity.analytic)}], "
            "one row per replicate"
        )
    if len(samples) < 2:
        raise ValueError(
            f"{quantity.name}: {len(samples)} replicate, a standard error needs at least 2"
        )
    return agreements.moments(samples)


class Experiment(NamedTuple):
    """Quantities that are measured on the same replicates.

    Attributes:
        name: of the experiment, and of its file.
        quantities: what is measured.
        draw: seed -> samples [R, n] of every quantity, R of about the same size for every seed;
            different seeds are independent.
        left_out: share of the replicates that may be left out: those all of whose values are NaN.
        why: what a replicate is left out for.
    """

    name: str
    quantities: tuple[Quantity, ...]
    draw: Callable[[int], Sequence[np.ndarray]]
    left_out: float = 0.0
    why: str = ""


def measure(
    experiment: Experiment,
    *,
    seed: int,
    replicates: int | None = None,
    most: int,
    power: Power,
) -> list[Check]:
    """Measure the quantities of an experiment.

    Batch after batch is drawn until every formula has as many replicates as `power` needs, or
    there are `replicates`, where that is given; at most `most`. Equal arguments give equal results.

    Raises ValueError where more replicates than the experiment allows are left out.
    """
    found: list[Moments] = []
    batch = left_out = 0
    while True:
        samples, gone = _kept(experiment, experiment.draw(seed + batch))
        left_out += gone
        parts = [
            _moments(quantity, np.asarray(x, float))
            for quantity, x in zip(experiment.quantities, samples, strict=True)
        ]
        if found:
            parts = [agreements.merge(*pair) for pair in zip(found, parts, strict=True)]
        found = parts
        batch += 1
        checks = [Check(*pair, left_out) for pair in zip(experiment.quantities, found, strict=True)]
        done = min(check.replicates for check in checks)
        if done >= min(replicates or replicates_for(checks, power), most):
            return checks


def _kept(
    experiment: Experiment, samples: Sequence[np.ndarray]
) -> tuple[Sequence[np.ndarray], int]:
    """Samples without the replicates that are left out, and how many these are."""
    if not experiment.left_out:
        return samples, 0
    gone = np.logical_and.reduce([np.isnan(x).all(1) for x in samples])
    if gone.mean() > experiment.left_out or (~gone).sum() < 2:
        raise ValueError(
            f"{experiment.name}: {gone.mean():.0%} of the replicates would be left out "
            f"({experiment.why}), at most {experiment.left_out:.0%} may be"
        )
    return [x[~gone] for x in samples], int(gone.sum())


def replicates_for(checks: Sequence[Check], power: Power) -> int:
    """Return the replicates that find every formula's error, judged by those drawn so far."""
    return max(
        (agreements.needed(c.agreement(), power, c.quantity.tolerance) for c in checks), default=0
    )


# ---- tables


def curves(checks: Sequence[Check], power: Power) -> pd.DataFrame:
    """Return one row per check, columns `CURVES`: the combined test of every curve.

    adjusted is p for the number of rows (Holm); flag is True where that is at or below the level.
    """
    agreed = [check.agreement() for check in checks]
    adjusted = agreements.holm(np.array([a.p for a in agreed]))
    rows = [
        (
            check.quantity.name,
            check.quantity.line,
            len(check.quantity.at),
            check.replicates,
            check.left_out,
            a.error,
            a.t,
            a.f,
            a.directions,
            a.freedom,
            a.largest,
            a.skew,
            a.p,
            adjusted_p,
            agreements.finds(a, power, check.replicates),
            agreements.wanted_error(power, check.quantity.tolerance),
            check.quantity.tolerance,
            bool(adjusted_p <= power.level),
        )
        for check, a, adjusted_p in zip(checks, agreed, adjusted, strict=True)
    ]
    return pd.DataFrame(rows, columns=list(CURVES)).astype({"flag": bool})


def table(checks: Sequence[Check], power: Power, *, study: str = "") -> pd.DataFrame:
    """Return one row per entry of every check, columns `COLUMNS`; p and flag are those of its
    curve.
    """
    found = curves(checks, power)
    parts = [
        _rows(check, study, adjusted, flag)
        for check, adjusted, flag in zip(checks, found["adjusted"], found["flag"], strict=True)
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


def _rows(check: Check, study: str, adjusted: float, flag: bool) -> pd.DataFrame:
    quantity = check.quantity
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
            "z": check.z,
            "replicates": check.replicates,
            "tolerance": quantity.tolerance,
            "p": adjusted,
            "flag": flag,
        }
    )
    return rows[list(COLUMNS)]


def disagreements(found: pd.DataFrame) -> pd.DataFrame:
    """Return the flagged rows of `curves`, the smallest p first."""
    return found[found["flag"]].sort_values("p")


def imprecise(found: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `curves` whose replicates find no error as small as is wanted."""
    return found[found["finds"] > found["wanted"]]


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Return one row per quantity of `curves`: its curves, entries, replicates, the largest
    estimated error of a formula, the error that is found for sure, the largest |z|, the smallest
    adjusted p, tolerance, flags.
    """
    by_quantity = found.assign(size=found["error"].abs()).groupby("quantity", sort=False)
    return by_quantity.agg(
        curves=("flag", "size"),
        entries=("entries", "sum"),
        replicates=("replicates", "min"),
        left_out=("left_out", "max"),
        error=("size", "max"),
        finds=("finds", "max"),
        largest_z=("largest", "max"),
        skew=("skew", "max"),
        adjusted=("adjusted", "min"),
        tolerance=("tolerance", "max"),
        flags=("flag", "sum"),
    ).reset_index()


# ---- claims


class Claim(NamedTuple):
    """A statement, the numbers that it rests on, and whether they bear it out.

    theorem: the source of what is proved and only evaluated here; empty where the numbers are
    those of the run's simulations.
    """

    statement: str
    numbers: str
    holds: bool
    theorem: str = ""


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
    standard errors; z below.

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
        for limit in (-BAND, BAND):
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
