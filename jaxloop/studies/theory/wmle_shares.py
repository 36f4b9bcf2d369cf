"""How many single chains of a run do in every generation what chains do on average."""

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from jaxloop.reporting.statistics import share_se
from jaxloop.studies.theory.config import TheoryConfig

# Batches of chains; their seeds are far from those of the comparisons.
BATCHES, SEED = 3, 0x5EED << 20
COLUMNS = ("weighting", "line", "quantity", "value", "se", "chains")


def table(
    config: TheoryConfig, lines: Mapping[str, str], draw: Callable[[str, int], np.ndarray]
) -> pd.DataFrame:
    """Return shares of chains, columns `COLUMNS`, for every weighting of the config.

    lines: {weighting: its line}. draw: (weighting, seed) -> fits [R, T+1, 2] of a batch, nan in the
    chains with a fit that did not converge, which are left out.
    """
    rows = []
    for weighting in config.wmle.weightings:
        theta = np.concatenate([draw(weighting, SEED + config.seed + i) for i in range(BATCHES)])
        theta = theta[np.isfinite(theta).all((1, 2))]
        for quantity, has_it in _properties(config, theta).items():
            share, count = float(has_it.mean()), len(has_it)
            se = share_se(share, count)
            rows.append((weighting, lines[weighting], quantity, share, se, count))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _properties(config: TheoryConfig, theta: np.ndarray) -> dict[str, np.ndarray]:
    """{quantity: whether a chain shows it} [R], theta [R, T+1, 2]."""
    w = config.wmle
    mean, kappa = theta[..., 0] / theta.sum(-1), theta.sum(-1)
    pretrained, real = (shape[0] / sum(shape) for shape in (w.pretrained, w.real))
    step = np.diff(mean, axis=1) * np.sign(pretrained - real)
    away = np.abs(mean - pretrained)
    return {
        "the mean moves towards the pre-trained model's side in every generation": (step > 0).all(
            1
        ),
        "the mean ends nearer the pre-trained model's than it begins": away[:, -1] < away[:, 0],
        "the distribution is narrower in every generation": (np.diff(kappa, axis=1) > 0).all(1),
    }
