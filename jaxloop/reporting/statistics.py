"""Statistics that several studies report."""

from collections.abc import Sequence

import numpy as np


def benjamini_hochberg(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return adjusted p values [n] (Benjamini and Hochberg 1995).

    Rejecting the tests whose adjusted value is at most q keeps the expected share of false
    rejections at most q. nan stays nan and is not counted as a test.
    """
    # statsmodels takes a second to import.
    from statsmodels.stats.multitest import multipletests

    values = np.asarray(p, float)
    tested = np.isfinite(values)
    adjusted = np.full(values.shape, np.nan)
    if tested.any():
        adjusted[tested] = multipletests(values[tested], method="fdr_bh")[1]
    return adjusted


def benjamini_hochberg_rejects(p: np.ndarray, alpha: float) -> np.ndarray:
    """Return which of the tests Benjamini and Hochberg reject at the level alpha: [n] bool."""
    # statsmodels takes a second to import.
    from statsmodels.stats.multitest import multipletests

    return multipletests(p, alpha, method="fdr_bh")[0]
