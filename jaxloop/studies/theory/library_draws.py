"""Closed forms that are about no chain, each against draws of its own."""

from typing import NamedTuple

import numpy as np

from jaxloop.studies.theory import closed_forms
from jaxloop.studies.theory.compare import Experiment, Quantity
from jaxloop.studies.theory.config import TheoryConfig


def experiments(config: TheoryConfig) -> list[Experiment]:
    """Return the comparisons of the config."""
    return [
        _fresh_real_data(config),
        _wishart(config),
        _overparametrised(),
        Experiment("ridge", (_ridge_quantity(),), _ridge_errors),
    ]


def _fresh_real_data(config: TheoryConfig) -> Experiment:
    """A mean that is refitted on fresh real data and on its own draws."""
    weights = np.array([0.3, 0.45, closed_forms.GOLDEN_WEIGHT, 0.8, 1.0])

    def draw(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        mean = np.zeros((config.library.batch, len(weights)))
        for _ in range(60):
            real = rng.normal(size=mean.shape)
            mean = weights * real + (1 - weights) * (mean + rng.normal(size=mean.shape))
        return [mean**2]

    quantity = Quantity.of(
        "Variance with fresh real data",
        weights,
        closed_forms.fresh_real_variance(weights),
        axis="weight of real data",
    )
    return Experiment("fresh_real_data", (quantity,), draw)


def _wishart(config: TheoryConfig) -> Experiment:
    s = config.library
    rows = np.array([s.n, 2 * s.n, 4 * s.n])

    def draw(seed: int) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        traces = []
        for n in rows:
            x = rng.normal(size=(s.batch, n, s.dim))
            inverse = np.linalg.inv(np.einsum("rnx,rny->rxy", x, x))
            traces.append(np.trace(inverse, axis1=1, axis2=2))
        return [np.stack(traces, 1)]

    quantity = Quantity.of(
        "Trace of an inverse Wishart matrix",
        rows,
        [closed_forms.wishart_trace(s.dim, int(n)) for n in rows],
        axis="samples",
    )
    return Experiment("wishart", (quantity,), draw)


def _overparametrised() -> Experiment:
    """Noiseless minimum-norm generators: w is projected on the rows of each design."""
    ratios = (2.0, 1.0, 4 / 3)

    def draw(seed: int) -> list[np.ndarray]:
        rng, d, count = np.random.default_rng(seed), 60, 100
        w, norms = rng.normal(size=(count, d)), []
        start = (w**2).sum(1)
        for ratio in ratios:
            if ratio > 1:
                x = rng.normal(size=(count, round(d / ratio), d))
                gram, labels = x @ x.swapaxes(1, 2), np.einsum("rnx,rx->rn", x, w)
                inside = np.linalg.solve(gram, labels[:, :, None])[:, :, 0]
                w = np.einsum("rnx,rn->rx", x, inside)
            norms.append((w**2).sum(1) / start)
        return [np.stack(norms, 1)]

    norm = Quantity.of(
        "Norm left by overparametrised generators",
        np.arange(1, len(ratios) + 1),
        closed_forms.overparametrised_norm(ratios),
        axis="fit",
        line="d / T = 2, 1, 4/3",
    )
    return Experiment("overparametrised", (norm,), draw)


class _Ridge(NamedTuple):
    ridge: float
    samples: int
    first_samples: int
    sigma2: float
    first_sigma2: float


RIDGE = _Ridge(ridge=0.3, samples=120, first_samples=150, sigma2=0.25, first_sigma2=0.5)
GENERATORS = (0, 1, 2, 3)


def _ridge_model() -> tuple[np.ndarray, np.ndarray]:
    """(eigenvalues of the covariance, coefficients)."""
    scales = np.geomspace(2, 0.2, 60)
    return scales, np.random.default_rng(5).normal(size=60) / np.sqrt(60)


def _ridge_quantity() -> Quantity:
    """The formula is asymptotic in proportion: at this size it is 0.1-4 % off."""
    scales, w0 = _ridge_model()
    values = [
        closed_forms.ridge(n, covariance=scales, coefficients=w0, **RIDGE._asdict()).error
        for n in GENERATORS
    ]
    return Quantity.of(
        "Test error of ridge regression after generators",
        GENERATORS,
        values,
        axis="generators",
        tolerance=0.04,
    )


def _ridge_errors(seed: int) -> list[np.ndarray]:
    rng, count, (scales, w0) = np.random.default_rng(seed), 50, _ridge_model()
    errors, w = [], np.tile(w0, (count, 1))

    def fit(w: np.ndarray, rows: int, noise: float, penalty: float) -> np.ndarray:
        x = rng.normal(size=(count, rows, 60)) * np.sqrt(scales)
        y = np.einsum("rnx,rx->rn", x, w) + np.sqrt(noise) * rng.normal(size=(count, rows))
        gram = x.swapaxes(1, 2) @ x / rows + penalty * np.eye(60)
        return np.linalg.solve(gram, np.einsum("rnx,rn->rx", x, y)[:, :, None] / rows)[:, :, 0]

    for _ in GENERATORS:
        last = fit(w, RIDGE.samples, RIDGE.sigma2, RIDGE.ridge)
        errors.append((scales * (last - w0) ** 2).sum(1))
        w = fit(w, RIDGE.first_samples, RIDGE.first_sigma2, 0.0)
    return [np.stack(errors, 1)]
