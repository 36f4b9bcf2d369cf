"""A figure of the claims that a closed form predicts: what was measured, and what it gives."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from jaxloop.reporting import figures
from jaxloop.results.page import Finding

_WIDE = 58  # characters of a line of a claim


def draw(findings: Sequence[Finding]) -> Figure:
    """Draw every finding that has a prediction: estimate and interval, and the prediction.

    They share one axis, so their measures must have one unit. At least one has a prediction.
    """
    drawn = [finding for finding in findings if finding.predicted is not None]
    at = np.arange(len(drawn))[::-1]
    values = np.array([finding.estimate.value for finding in drawn])
    limits = np.array([finding.interval for finding in drawn])
    bars = np.nan_to_num(np.abs(limits.T - values))
    colour = figures.palette(6)[5][0]
    with figures.style():
        figure, axes = figures.panels(1, 1, panel=(7.5, 1.0 + 0.5 * len(drawn)))
        one = axes[0, 0]
        one.axvline(0, color=figures.MUTED, linewidth=0.8)
        one.errorbar(
            values, at, xerr=bars, fmt="o", color=colour, markersize=5, capsize=3, label="measured"
        )
        predicted = [finding.predicted for finding in drawn]
        one.plot(predicted, at, "D", color=figures.INK, fillstyle="none", label="formula")
        says = [figures.printable(textwrap.fill(f.claim.says, _WIDE)) for f in drawn]
        one.set_yticks(at, says, fontsize=7.5)
        one.set_ylim(-0.6, len(drawn) - 0.4)
        one.legend(
            frameon=False, fontsize=7.5, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2
        )
    return figure
