"""The relative efficiency of linear models of several entities: its figure, and its optimum."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from jaxloop.reporting import figures, report
from jaxloop.simulators import linear
from jaxloop.studies.theory.compare import Check
from jaxloop.studies.theory.config import TheoryConfig

FAR = 60  # generation at which the dots of the figure are taken


class Optimum(NamedTuple):
    """Where the relative efficiency, averaged over entities and designs, is largest.

    Attributes:
        alpha, beta: the place.
        value: the efficiency there.
        step: of the fine grid.
        centre: the efficiency at (0.5, 0.5).
        along_half: the largest one along beta = 0.5.
        coarse: the best place on the grid {0.1, 0.5, 0.9} squared.
    """

    alpha: float
    beta: float
    value: float
    step: float
    centre: float
    along_half: float
    coarse: tuple[float, float]


def by_design(
    config: TheoryConfig,
    all_designs: Sequence[linear.Designs],
    alpha: ArrayLike,
    beta: ArrayLike,
    mesh: Mesh | None,
) -> np.ndarray:
    """Return the relative efficiency [designs, A, B], averaged over entities."""
    theta = np.zeros(config.linear.dim)
    sweeps = [
        linear.sweep(designs, theta, alpha=alpha, beta=beta, sigma2=config.linear.sigma2, mesh=mesh)
        for designs in all_designs
    ]
    return np.stack([sweep.relative_efficiency.mean(2) for sweep in sweeps])


def _efficiency(
    config: TheoryConfig,
    all_designs: Sequence[linear.Designs],
    alpha: np.ndarray,
    beta: np.ndarray,
    mesh: Mesh | None,
) -> np.ndarray:
    """[A, B] averaged over designs and entities."""
    return by_design(config, all_designs, alpha, beta, mesh).mean(0)


def _best(values: np.ndarray) -> tuple[int, int]:
    """Where values [A, B] are largest, NaN left out."""
    i, j = np.unravel_index(np.nan_to_num(values, nan=-1).argmax(), values.shape)
    return int(i), int(j)


def find_optimum(
    config: TheoryConfig, all_designs: Sequence[linear.Designs], mesh: Mesh | None
) -> tuple[np.ndarray, np.ndarray, Optimum]:
    """Return a grid, the efficiency on it, and where it is largest.

    There are three looks: a coarse one as the paper's, a grid over the square, and a finer one
    around its best point.
    """
    grid = np.linspace(0.01, 0.99, config.linear.grid)
    values = _efficiency(config, all_designs, grid, grid, mesh)
    step = (grid[1] - grid[0]) / 10
    fine_alpha, fine_beta = (
        np.clip(grid[i] + step * np.arange(-11, 12), 0, 1) for i in _best(values)
    )
    refined = _efficiency(config, all_designs, fine_alpha, fine_beta, mesh)
    a, b = _best(refined)
    coarse = np.array([0.1, 0.5, 0.9])
    square = _efficiency(config, all_designs, coarse, coarse, mesh)
    coarse_a, coarse_b = _best(square)
    along = _efficiency(config, all_designs, grid, np.array([0.5]), mesh)[:, 0]
    optimum = Optimum(
        alpha=fine_alpha[a],
        beta=fine_beta[b],
        value=refined[a, b],
        step=step,
        centre=square[1, 1],
        along_half=np.nanmax(along),
        coarse=(coarse[coarse_a], coarse[coarse_b]),
    )
    return grid, values, optimum


def draw_efficiency(
    config: TheoryConfig,
    alphas: np.ndarray,
    curves: np.ndarray,
    grid: np.ndarray,
    values: np.ndarray,
    best: Optimum,
    designs: linear.Designs,
    checks: Sequence[Check],
) -> tuple[report.Drawing, ...]:
    """Draw the relative efficiency.

    Args:
        config: of the study.
        alphas: of the curves.
        curves: efficiency [alphas, betas, entities].
        grid: of alpha and of beta.
        values: efficiency [alpha, beta] on the grid.
        best: the optimum.
        designs: those that were simulated.
        checks: of the simulations.
    """
    with figures.style():
        return (
            report.Drawing(
                "Relative efficiency by alpha",
                "thick: mean over entities; thin: one entity each",
                _draw_curves(config, alphas, curves, best),
            ),
            report.Drawing(
                "The optimum on a fine grid",
                f"dot: alpha {best.alpha:.3f}, beta {best.beta:.3f}; cross: (0.5, 0.5)",
                _draw_plane(grid, values, best),
            ),
            report.Drawing(
                "Simulated and exact",
                f"one draw of the designs; dots: {FAR} generations simulated, mean over entities, "
                "± 2 standard errors",
                _draw_simulated(config, alphas, designs, checks),
            ),
        )


def _panel() -> tuple[Figure, Axes]:
    figure, axes = figures.panels(1, 1, panel=(4.2, 3.6))
    return figure, axes[0, 0]


def _colours(config: TheoryConfig) -> list[tuple[float, str]]:
    """(beta, colour) of every curve."""
    betas = config.linear.betas
    return [(b, colour) for b, (colour, _) in zip(betas, figures.palette(len(betas)), strict=True)]


def _draw_curves(
    config: TheoryConfig, alphas: np.ndarray, curves: np.ndarray, best: Optimum
) -> Figure:
    """The relative efficiency. curves: [alphas, betas, entities]."""
    figure, axes = _panel()
    for n, (b, colour) in enumerate(_colours(config)):
        for i in range(config.linear.entities):
            axes.plot(alphas, curves[:, n, i], color=colour, linewidth=0.7, alpha=0.55)
        mean = curves[:, n].mean(1)
        axes.plot(alphas, mean, color=colour, linewidth=1.9, label=f"beta = {b:g}")
    axes.plot(
        best.alpha,
        best.value,
        "o",
        color=figures.INK,
        markersize=5,
        label=f"optimum: beta = {best.beta:.3f}",
    )
    axes.set_xlabel("alpha")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_simulated(
    config: TheoryConfig, alphas: np.ndarray, designs: linear.Designs, checks: Sequence[Check]
) -> Figure:
    s = config.linear
    figure, axes = _panel()
    exact = linear.sweep(
        designs, np.zeros(s.dim), alpha=alphas, beta=s.betas, sigma2=s.sigma2
    ).relative_efficiency.mean(2)
    far = {c.quantity.line: c for c in checks if c.quantity.name.startswith("Error after")}
    for n, (b, colour) in enumerate(_colours(config)):
        line = f"beta = {b:g}"
        axes.plot(alphas, exact[:, n], color=colour, linewidth=1.4, label=line)
        efficiency = designs.mvue_mse(s.sigma2) / far[line].empirical
        axes.errorbar(
            far[line].quantity.at,
            efficiency,
            2 * efficiency * far[line].se / far[line].empirical,
            fmt="o",
            color=colour,
            markersize=3.4,
            markerfacecolor="none",
            elinewidth=0.9,
        )
    axes.set_xlabel("alpha")
    axes.legend(frameon=False, fontsize=8)
    return figure


def _draw_plane(grid: np.ndarray, values: np.ndarray, best: Optimum) -> Figure:
    """Lines of equal efficiency. values: [alpha, beta] on the grid."""
    figure, axes = _panel()
    levels = np.linspace(0.1, np.nanmax(values), 12)
    colour = figures.palette(1)[0][0]
    lines = axes.contour(grid, grid, values.T, levels=levels, colors=colour, linewidths=0.8)
    axes.clabel(lines, fontsize=7, fmt="%.2f")
    axes.plot(best.alpha, best.beta, "o", color=figures.INK, markersize=5)
    axes.plot(0.5, 0.5, "x", color=figures.MUTED, markersize=6)
    axes.set_xlabel("alpha")
    axes.set_ylabel("beta")
    return figure
