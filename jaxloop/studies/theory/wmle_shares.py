"""How many single chains of a run do in every generation what chains do on average."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxloop.simulators import beta
from jaxloop.studies.theory.config import TheoryConfig

# Batches of chains; their seeds are far from those of the comparisons.
BATCHES, SEED = 3, 0x5EED << 20
COLUMNS = ("weighting", "line", "quantity", "value", "se", "chains")


def table(config: TheoryConfig, lines: Mapping[str, str], mesh: Mesh | None) -> pd.DataFrame:
    """Return shares of chains, columns `COLUMNS`, for every weighting of the config.

    A chain with a fit that did not converge is left out. lines: {weighting: its line}.
    """
    rows = []
    for weighting in config.wmle.weightings:
        theta = _chains(config, weighting, mesh)
        for quantity, has_it in _properties(config, theta).items():
            share, count = float(has_it.mean()), len(has_it)
            se = float(np.sqrt(share * (1 - share) / max(count - 1, 1)))
            rows.append((weighting, lines[weighting], quantity, share, se, count))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _chains(config: TheoryConfig, weighting: str, mesh: Mesh | None) -> np.ndarray:
    """Fits [R, T+1, 2] of the chains that converged."""
    w, batches = config.wmle, []
    for i in range(BATCHES):
        theta, converged, _ = beta.simulate(
            n=w.n,
            replicates=w.batch,
            seed=SEED + config.seed + i,
            report=True,
            mesh=mesh,
            real=w.real,
            pretrained=w.pretrained,
            generations=w.generations,
            weighting=weighting,
            exponent=w.exponent,
        )
        batches.append(theta[np.asarray(converged).all(1)])
    return np.concatenate(batches)


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
