"""Reports without their drawings, for tests that look at what else a study leaves.

Every kind of page and every figure is drawn by the tests that look at it; drawing the same ones
again took longer than the studies.
"""

import pytest


def leave_out(patch: pytest.MonkeyPatch, *, files: bool = True) -> None:
    """Leave the pictures of pages empty, and with `files` those in files too."""
    patch.setattr("jaxloop.reporting.figures.svg", lambda figure, name, alt="": "<svg></svg>")
    if files:
        patch.setattr("jaxloop.reporting.figures.png", lambda figure: b"")
