"""The relative-efficiency figure of arXiv 2505.21677 (figure 2), read from its curves, beside the
same curves for the designs of a config.

The paper states four entities, 15 features and rank 5, and neither the designs nor a table.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxloop.reporting import figures, report
from jaxloop.reporting.statistics import share_se
from jaxloop.simulators import linear
from jaxloop.studies.theory.config import TheoryConfig
from jaxloop.studies.theory.linear_efficiency import by_design

# Entities, features and private rows for which the curves were drawn.
SETTING = (4, 15, 5)
ALPHAS = (0.001, 0.103, 0.206, 0.308, 0.410, 0.513, 0.615, 0.717, 0.820, 0.922, 0.990)
# {beta: the curve of each entity}, within 0.003 of the drawn lines.
EFFICIENCY = {
    0.1: (
        (0.149, 0.295, 0.331, 0.341, 0.339, 0.325, 0.301, 0.262, 0.202, 0.109, 0.017),
        (0.122, 0.334, 0.363, 0.366, 0.356, 0.338, 0.309, 0.266, 0.203, 0.109, 0.017),
        (0.075, 0.306, 0.339, 0.348, 0.344, 0.329, 0.303, 0.263, 0.202, 0.109, 0.017),
        (0.056, 0.303, 0.340, 0.348, 0.342, 0.327, 0.300, 0.260, 0.200, 0.108, 0.017),
    ),
    0.5: (
        (0.213, 0.420, 0.536, 0.597, 0.623, 0.621, 0.590, 0.525, 0.415, 0.230, 0.035),
        (0.168, 0.465, 0.575, 0.627, 0.646, 0.639, 0.605, 0.538, 0.423, 0.233, 0.035),
        (0.098, 0.461, 0.561, 0.616, 0.639, 0.635, 0.603, 0.536, 0.423, 0.233, 0.035),
        (0.095, 0.433, 0.558, 0.612, 0.630, 0.621, 0.587, 0.522, 0.413, 0.230, 0.035),
    ),
    0.9: (
        (0.199, 0.542, 0.609, 0.603, 0.568, 0.519, 0.459, 0.388, 0.296, 0.161, 0.024),
        (0.168, 0.611, 0.653, 0.636, 0.595, 0.540, 0.475, 0.397, 0.300, 0.161, 0.024),
        (0.109, 0.565, 0.610, 0.600, 0.570, 0.526, 0.470, 0.399, 0.303, 0.163, 0.024),
        (0.096, 0.532, 0.599, 0.598, 0.567, 0.518, 0.458, 0.385, 0.293, 0.160, 0.024),
    ),
}
# Where the best place is looked for; the nine places of a coarse grid are 0.1, 0.5 and 0.9 of it.
FINE = np.linspace(0.02, 0.98, 49)
COARSE = [4, 24, 44]
COLUMNS = ("beta", "alpha", "published", "ours", "se", "designs", "difference")


def has_setting(config: TheoryConfig) -> bool:
    """Return whether a config has the sizes of the paper's figure."""
    s = config.linear
    return (s.entities, s.dim, s.rank) == SETTING


def curves(
    config: TheoryConfig, all_designs: Sequence[linear.Designs], mesh: Mesh | None
) -> np.ndarray:
    """Return our efficiency at the places of the figure, [designs, alphas, betas]."""
    return by_design(config, all_designs, ALPHAS, tuple(EFFICIENCY), mesh)


def _published() -> np.ndarray:
    """The figure's efficiency, [alphas, betas], mean over entities."""
    return np.array([np.mean(curve, 0) for curve in EFFICIENCY.values()]).T


def table(ours: np.ndarray) -> pd.DataFrame:
    """Return the published efficiency and ours, each the mean over entities.

    Columns: `COLUMNS`; one row per alpha and beta. `se` is over draws of the designs, nan for one.
    ours: what `curves` returns.
    """
    published, mean = _published(), ours.mean(0)
    rows = []
    for j, beta in enumerate(EFFICIENCY):
        for i, alpha in enumerate(ALPHAS):
            se = _se(ours[:, i, j])
            gap = mean[i, j] - published[i, j]
            rows.append((beta, alpha, published[i, j], mean[i, j], se, len(ours), gap))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summary(
    config: TheoryConfig,
    all_designs: Sequence[linear.Designs],
    ours: np.ndarray,
    mesh: Mesh | None,
) -> pd.DataFrame:
    """Return what the figure is said to show, measured on every draw of the designs.

    Columns: quantity, value (mean over draws), se, designs. The quantities are the root of the mean
    squared difference between the published curves and ours; how much more efficient the best place
    of a fine grid is than (0.5, 0.5), and where it is; and the share of draws in which (0.5, 0.5)
    is the best of the nine places {0.1, 0.5, 0.9} squared. ours: what `curves` returns.
    """
    values = by_design(config, all_designs, FINE, FINE, mesh)
    best = [np.unravel_index(np.nanargmax(one), one.shape) for one in values]
    centre = len(FINE) // 2
    coarse = values[:, COARSE][:, :, COARSE].reshape(len(values), -1)
    shown = {
        "rms from the published curves": np.sqrt(((ours - _published()) ** 2).mean((1, 2))),
        "best less (0.5, 0.5)": np.nanmax(values, (1, 2)) - values[:, centre, centre],
        "alpha of the best": FINE[[i for i, _ in best]],
        "beta of the best": FINE[[j for _, j in best]],
        "(0.5, 0.5) is the best of nine": (coarse.argmax(1) == coarse.shape[1] // 2).astype(float),
    }
    rows = [[name, x.mean(), _se(x), len(x)] for name, x in shown.items()]
    # The last one is a share of draws.
    rows[-1][2] = share_se(float(rows[-1][1]), len(values))
    return pd.DataFrame(rows, columns=["quantity", "value", "se", "designs"])


def draw(compared: pd.DataFrame) -> report.Drawing:
    """Return the figure of a `table`: the published points on our curves."""
    with figures.style():
        figure, panels = figures.panels(1, 1, panel=(4.2, 3.6))
        axes = panels[0, 0]
        for (beta, rows), (colour, _) in zip(
            compared.groupby("beta"), figures.palette(len(EFFICIENCY)), strict=True
        ):
            low, high = (rows["ours"] + sign * 2 * rows["se"] for sign in (-1, 1))
            axes.fill_between(rows["alpha"], low, high, color=colour, alpha=0.2, linewidth=0)
            axes.plot(rows["alpha"], rows["ours"], color=colour, label=f"beta = {beta:g}")
            axes.plot(rows["alpha"], rows["published"], "o", color=colour, markersize=3.6)
        axes.set_xlabel("alpha")
        axes.legend(frameon=False, fontsize=8)
    count = int(compared["designs"].iloc[0])
    note = f"dots: read from figure 2 of the paper; lines: ours, {count} draws, ± 2 standard errors"
    return report.Drawing("Published and ours", note, figure)


def _se(values: np.ndarray) -> float:
    """The standard error of a mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")
