"""Reports without their drawings, for tests that look at what else a study leaves.

Every kind of page and every figure is drawn by the tests that look at it; drawing the same ones
again took longer than the studies.
"""

import pytest

from jaxloop.reporting import figures


def leave_out(patch: pytest.MonkeyPatch, *, files: bool = True) -> None:
    """Leave the pictures of pages empty, and with `files` those in files too."""
    patch.setattr("jaxloop.reporting.figures.svg", lambda figure, name, alt="": "<svg></svg>")
    if files:
        patch.setattr("jaxloop.reporting.figures.png", lambda figure: b"")


def sketch(patch: pytest.MonkeyPatch) -> None:
    """Draw the pictures of pages, so that one which cannot be drawn fails, but do not lay them out,
    which takes longer than to draw them, and leave those in files empty.
    """
    whole = figures.svg

    def svg(figure, name, alt=""):
        figure.set_layout_engine("none")
        return whole(figure, name, alt)

    patch.setattr("jaxloop.reporting.figures.svg", svg)
    patch.setattr("jaxloop.reporting.figures.png", lambda figure: b"")
