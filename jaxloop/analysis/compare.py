"""Analytic against empirical: a table of quantities with standard errors and z, and the two as curves with bands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FLAG = 4.0  # |z| above which a row counts as a disagreement
WANTED = 0.01  # standard error that replicates are chosen for, relative to the quantity
COLUMNS = ("study", "quantity", "at", "analytic", "empirical", "se", "z", "replicates", "flag")


@dataclass(frozen=True, eq=False)
class Check:
    """A quantity with a formula, measured on replicates.

    quantity   its name; curves of one name are drawn in one figure
    at         [n] where it was taken (generation, ratio, ...); `axis` says what that is
    analytic   [n]
    samples    [R, n], one independent row per replicate
    tolerance  relative error that the formula itself is known to have (0: exact); it is taken off the difference before z
    line       which curve of the figure this is
    """

    quantity: str
    at: np.ndarray
    analytic: np.ndarray
    samples: np.ndarray
    axis: str = "generation"
    line: str = ""
    tolerance: float = 0.0
    empirical: np.ndarray = field(init=False)
    se: np.ndarray = field(init=False)

    def __post_init__(self):
        samples = np.asarray(self.samples, float)
        at, analytic = np.atleast_1d(self.at), np.atleast_1d(np.asarray(self.analytic, float))
        if samples.ndim != 2 or samples.shape[1:] != analytic.shape or at.shape != analytic.shape:
            raise ValueError(f"{self.quantity}: samples {samples.shape}, analytic {analytic.shape} and at {at.shape} must be [R, n], [n] and [n]")
        if len(samples) < 2:
            raise ValueError(f"{self.quantity}: {len(samples)} replicate, a standard error needs at least 2")
        if not self.tolerance >= 0:
            raise ValueError(f"{self.quantity}: tolerance={self.tolerance} must be at least 0")
        for name, value in (("at", at), ("analytic", analytic), ("samples", samples)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "empirical", samples.mean(0))
        object.__setattr__(self, "se", samples.std(0, ddof=1) / np.sqrt(len(samples)))

    @property
    def z(self) -> np.ndarray:
        """[n] (empirical - analytic) / se beyond the tolerance; 0 where both agree exactly, inf where they differ without any spread."""
        away = self.empirical - self.analytic
        beyond = np.sign(away) * np.maximum(np.abs(away) - self.tolerance * np.abs(self.analytic) - 1e-9 * np.abs(self.analytic) - 1e-12, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(beyond == 0, np.where(np.isnan(beyond), np.nan, 0.0), beyond / self.se)


def table(checks: Sequence[Check], *, study: str = "") -> pd.DataFrame:
    """One row per entry of every check, columns `COLUMNS`; flag is True where |z| > 4 or z is not a number."""
    rows = []
    for c in checks:
        name = f"{c.quantity} ({c.line})" if c.line else c.quantity
        for i in range(len(c.at)):
            z = c.z[i]
            rows.append((study, name, c.at[i], c.analytic[i], c.empirical[i], c.se[i], z, len(c.samples), bool(not abs(z) <= FLAG)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def disagreements(rows: pd.DataFrame) -> pd.DataFrame:
    """The flagged rows, worst first."""
    return rows[rows["flag"]].sort_values("z", key=lambda z: -z.abs(), na_position="first")


def imprecise(rows: pd.DataFrame, wanted: float = WANTED) -> pd.DataFrame:
    """Rows whose standard error is not below `wanted` of the analytic value (entries whose value is 0 left out)."""
    return rows[(rows["se"] > wanted * rows["analytic"].abs()) & (rows["analytic"].abs() > 1e-12)]


def replicates_for(samples: np.ndarray, wanted: float = WANTED) -> int:
    """Replicates at which every mean of pilot samples [R, n] has a standard error below `wanted` of itself, with a margin of 20 %;
    entries whose mean the pilot cannot tell from 0 are left out."""
    samples = np.asarray(samples, float)
    mean, sd = np.abs(samples.mean(0)), samples.std(0, ddof=1)
    seen = (mean > 3 * sd / np.sqrt(len(samples))) & (sd > 0)
    return int(np.ceil(1.2 * ((sd[seen] / mean[seen]) ** 2).max(initial=1.0) / wanted**2))


def figure(checks: Sequence[Check], *, title: str, log: bool = False) -> Figure:
    """The checks of one quantity: analytic as lines, empirical as dots with a band of two standard errors, z below."""
    if not checks:
        raise ValueError("checks: there are none to draw")
    drawing = Figure(figsize=(7.0, 5.2), layout="constrained")
    FigureCanvasAgg(drawing)
    top, bottom = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for i, c in enumerate(checks):
        colour = f"C{i % 10}"
        top.plot(c.at, c.analytic, color=colour, linewidth=1.5, label=c.line or "analytic")
        top.fill_between(c.at, c.empirical - 2 * c.se, c.empirical + 2 * c.se, color=colour, alpha=0.25, linewidth=0)
        top.plot(c.at, c.empirical, "o", color=colour, markersize=3.5, fillstyle="none")
        bottom.plot(c.at, np.clip(c.z, -8, 8), "o", color=colour, markersize=3)
    if log:
        top.set_yscale("log")
    top.set_title(title)
    top.set_ylabel(checks[0].quantity)
    top.legend(title="line: analytic, dots: empirical, band: ± 2 se", fontsize=8, title_fontsize=8, frameon=False)
    bottom.axhspan(-FLAG, FLAG, color="0.9", zorder=0)
    bottom.set_ylim(-8.5, 8.5)
    bottom.set_ylabel("z")
    bottom.set_xlabel(checks[0].axis)
    return drawing


def save_figures(checks: Sequence[Check], folder: Path, *, title: str = "") -> list[Path]:
    """One PNG per quantity in `folder` (made if missing); the paths, in order of first appearance."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[str, list[Check]] = {}
    for c in checks:
        groups.setdefault(c.quantity, []).append(c)
    paths = []
    for name, group in groups.items():
        values = np.concatenate([c.analytic for c in group])
        wide = (values > 0).all() and values.max() > 100 * values.min()
        path = folder / f"{''.join(ch if ch.isalnum() else '_' for ch in name).strip('_').lower()}.png"
        figure(group, title=f"{title}: {name}" if title else name, log=bool(wide)).savefig(path, dpi=110)
        paths.append(path)
    return paths
