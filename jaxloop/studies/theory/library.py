"""The closed forms of module `closed_forms`, each against chains of the family that it is about, or
against draws where it is about no chain.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from jaxloop.recursion import workflow as workflows
from jaxloop.recursion.workflow import Workflow
from jaxloop.simulators import discrete, family, gaussian, kde, linear, regression
from jaxloop.simulators.family import ArrayFamily
from jaxloop.studies.theory import closed_forms, isotropic, library_draws
from jaxloop.studies.theory.compare import Check, Claim, Conclusion, Experiment, Quantity
from jaxloop.studies.theory.config import TheoryConfig

P = np.array([0.5, 0.3, 0.2])
BANDWIDTH, RATE, COIN, SIGMA2 = 0.4, 2.0, 0.3, 2.25
# Metrics of chains {name: [R, T+1, ...]} -> samples of quantities.
Read = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
PROOF = "formulas, whose sources module closed_forms names"
MOST_FITS = 5  # of chains whose squares have heavy tails


def experiments(config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
    """Return all comparisons of the config."""
    return [
        *_regressions(config, mesh),
        *_gaussians(config, mesh),
        *_counts(config, mesh),
        *library_draws.experiments(config),
    ]


def _chain(
    config: TheoryConfig,
    mesh: Mesh | None,
    name: str,
    model: ArrayFamily,
    workflow: Workflow,
    quantities: Sequence[Quantity],
    read: Read,
    fits: int | None = None,
) -> Experiment:
    """Chains of a family under a workflow; `read` turns its metrics {name: [R, T+1, ...]} into the
    samples of the quantities.
    """
    s = config.library

    def draw(seed: int) -> list[np.ndarray]:
        metrics = family.run(
            model,
            workflow,
            generations=(fits or s.fits) - 1,
            replicates=s.batch,
            seed=seed,
            mesh=mesh,
            batch_size=500,
        )
        return read(metrics)

    return Experiment(name, tuple(quantities), draw)


def _of(name: str, values: np.ndarray, line: str = "", tolerance: float = 0.0) -> Quantity:
    """A quantity at fits 1, 2, ..."""
    return Quantity.of(
        name, np.arange(1, len(values) + 1), values, axis="fit", line=line, tolerance=tolerance
    )


# ---- least squares on its own labels


LEAST_SQUARES = "Squared error of least squares on its own labels"


def _regressions(config: TheoryConfig, mesh: Mesh | None) -> list[Experiment]:
    s, fits = config.library, np.arange(1, config.library.fits + 1)
    rng = np.random.default_rng(config.seed)
    design, truth = rng.normal(size=(s.n, s.dim)), rng.normal(size=s.dim)
    trace = float(np.trace(np.linalg.inv(design.T @ design)))
    fixed, fresh = (
        regression.regression_family(truth, sigma=SIGMA2**0.5, design=x) for x in (design, None)
    )

    def chain(
        short: str, model: ArrayFamily, workflow: Workflow, values: np.ndarray, line: str
    ) -> Experiment:
        quantities = [_of(LEAST_SQUARES, values, line)]
        name = f"regression_{short}"
        return _chain(config, mesh, name, model, workflow, quantities, lambda out: [out["error"]])

    return [
        chain(
            "replace",
            fixed,
            workflows.replace(s.n),
            closed_forms.ols_replace(fits, trace=trace, sigma2=SIGMA2),
            "replace",
        ),
        chain(
            "accumulate",
            fixed,
            workflows.accumulate(s.n),
            closed_forms.ols_accumulate(fits, trace=trace, sigma2=SIGMA2),
            "accumulate",
        ),
        chain(
            "fresh",
            fresh,
            workflows.accumulate(s.n),
            closed_forms.ols_accumulate_fresh(fits, d=s.dim, samples=s.n, sigma2=SIGMA2),
            "accumulate, fresh covariates",
        ),
        _multiple(config, design, trace),
    ]


def _multiple(config: TheoryConfig, design: np.ndarray, trace: float) -> Experiment:
    """Fit i sees i sets of labels of the last model, whose mean has i times less noise."""
    s, fits = config.library, np.arange(1, config.library.fits + 1)
    pinv = np.linalg.pinv(design)

    def draw(seed: int) -> list[np.ndarray]:
        noise = np.random.default_rng(seed).normal(size=(s.fits, s.batch, s.n))
        noise = noise * np.sqrt(SIGMA2 / fits)[:, None, None]
        return [(np.cumsum(noise @ pinv.T, 0) ** 2).sum(2).T]

    values = closed_forms.ols_replace_multiple(fits, trace=trace, sigma2=SIGMA2)
    quantity = _of(LEAST_SQUARES, values, "replace, i sets at fit i")
    return Experiment("regression_multiple", (quantity,), draw)


# ---- Gaussian chains and kernel densities


MEAN_ERROR = "Squared error of a Gaussian chain's mean"
VARIANCE = "Variance of a Gaussian chain"
DISTANCE = "Squared Wasserstein distance of a Gaussian chain"


def _gaussians(config: TheoryConfig, mesh: Mesh | None) -> list[Experiment]:
    s = config.library
    fits = np.arange(1, s.fits + 1)
    every = closed_forms.accumulate_variance(fits, n=s.n)
    some = closed_forms.accumulate_subsample(s.fits, n=s.n)
    blurred = closed_forms.kde_variance(fits, n=s.n, bandwidth=BANDWIDTH)
    model = gaussian.gaussian_family(unbiased=False)
    return [
        _gaussian_replace(config, mesh, unbiased=True),
        _gaussian_replace(config, mesh, unbiased=False),
        _chain(
            config,
            mesh,
            "gaussian_accumulate",
            model,
            workflows.accumulate(s.n),
            [_of(VARIANCE, every, "accumulate"), _of(MEAN_ERROR, 1 - every, "accumulate")],
            _variance_and_error,
        ),
        _chain(
            config,
            mesh,
            "gaussian_accumulate_subsample",
            model,
            workflows.accumulate_subsample(s.n),
            [
                _of(VARIANCE, some.variance, "accumulate, subsample"),
                _of(MEAN_ERROR, some.mean_error, "accumulate, subsample"),
            ],
            _variance_and_error,
        ),
        _chain(
            config,
            mesh,
            "kernel_density",
            kde.kde_family(bandwidth=BANDWIDTH, heldout=0),
            workflows.replace(s.n),
            [_of("Variance of a kernel density chain", blurred, f"bandwidth {BANDWIDTH:g}")],
            lambda out: [out["var"][:, :, 0]],
        ),
    ]


def _variance_and_error(out: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [out["var"][:, :, 0], out["mean"][:, :, 0] ** 2]


def _gaussian_replace(config: TheoryConfig, mesh: Mesh | None, *, unbiased: bool) -> Experiment:
    s = config.library
    exact = closed_forms.gaussian_replace(np.arange(1, s.fits + 1), n=s.n, unbiased=unbiased)
    short = "unbiased" if unbiased else "likelihood"
    line = "replace, unbiased" if unbiased else "replace, maximum likelihood"
    quantities = [
        _of(VARIANCE, exact.variance, line),
        _of(MEAN_ERROR, exact.mean_variance, line),
        _of(DISTANCE, exact.w2, line),
    ]
    if unbiased:
        values = closed_forms.data_variance([s.n] * s.fits)[1:]
        quantities.append(
            _of("Variance of a data point along a chain", values, "from generation 1 on")
        )

    def read(out: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        samples = [*_variance_and_error(out), out["w2"]]
        if unbiased:
            samples.append(out["mean"][:, :, 0] ** 2 + out["var"][:, :, 0])
        return samples

    return _chain(
        config,
        mesh,
        f"gaussian_replace_{short}",
        gaussian.gaussian_family(unbiased=unbiased),
        workflows.replace(s.n),
        quantities,
        read,
    )


# ---- counts


HETEROZYGOSITY = "Heterozygosity of a categorical chain"


def _counts(config: TheoryConfig, mesh: Mesh | None) -> list[Experiment]:
    s = config.library
    fits = np.arange(1, s.fits + 1)
    few = fits[:MOST_FITS]
    # The first fit has already drawn once: both laws start from the real probabilities.
    start = 1 - (P**2).sum()
    drift = start * closed_forms.replace_heterozygosity(fits, n=s.n)
    accumulated = start * closed_forms.accumulate_variance(fits, n=s.n)
    coin = closed_forms.bernoulli_variance(few, p=COIN, n=s.n)
    counts = closed_forms.poisson_variance(few, rate=RATE, n=s.n)
    categories = discrete.discrete_family(P)
    return [
        _chain(
            config,
            mesh,
            "categorical_replace",
            categories,
            workflows.replace(s.n),
            [_of(HETEROZYGOSITY, drift, "replace")],
            lambda out: [out["heterozygosity"]],
        ),
        _chain(
            config,
            mesh,
            "categorical_accumulate",
            categories,
            workflows.accumulate(s.n),
            [_of(HETEROZYGOSITY, accumulated, "accumulate")],
            lambda out: [out["heterozygosity"]],
        ),
        _chain(
            config,
            mesh,
            "coin",
            discrete.bernoulli_family(COIN),
            workflows.replace(s.n),
            [_of("Variance of a coin's chain", coin, f"p = {COIN:g}")],
            lambda out: [(out["p"] - COIN) ** 2],
            fits=len(few),
        ),
        _chain(
            config,
            mesh,
            "poisson",
            discrete.poisson_family(RATE),
            workflows.replace(s.n),
            [_of("Variance of a Poisson chain", counts, f"rate {RATE:g}")],
            lambda out: [(out["rate"] - RATE) ** 2],
            fits=len(few),
        ),
    ]


# ---- what is no mean


def conclude(config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]) -> Conclusion:
    """Return what is claimed of limits, bounds and optima, which no replicate measures."""
    formulas = [
        *_accumulation_claims(config.library.n),
        _golden_claim(),
        _contraction_claim(config),
        _isotropic_claim(),
    ]
    proved = [claim._replace(theorem=PROOF) for claim in formulas]
    claims = [*proved, _collapse_claim(config, mesh)]
    return Conclusion(claims, (), {})


def _accumulation_claims(n: int) -> list[Claim]:
    every, limit = closed_forms.accumulate_variance(100_000, n=n), closed_forms.accumulate_limit(n)
    some = closed_forms.accumulate_subsample(100_000, n=n).variance[-1]
    return [
        Claim(
            "The variance of an accumulating Gaussian chain has the limit sin(pi / sqrt n) / (pi "
            "/ sqrt n)",
            f"{every:.6f} after 100,000 fits, limit {limit:.6f}",
            bool(abs(every - limit) < 1e-4),
        ),
        Claim(
            "Drawing n points from all that was accumulated levels off too, lower",
            f"{some:.4f} against {limit:.4f}",
            bool(0 < some < limit),
        ),
    ]


def _golden_claim() -> Claim:
    weights = np.linspace(0.05, 1, 20_001)
    variances = closed_forms.fresh_real_variance(weights)
    best, least = float(weights[variances.argmin()]), float(variances.min())
    golden = closed_forms.GOLDEN_WEIGHT
    return Claim(
        "With fresh real data the best weight is 1 / golden ratio, and the variance there is the "
        "same number",
        f"weight {best:.4f}, variance {least:.6f}",
        abs(best - golden) < 1e-3 and abs(least - golden) < 1e-6,
    )


def _contraction_claim(config: TheoryConfig) -> Claim:
    d = config.library.dim
    x = np.random.default_rng(config.seed).normal(size=(2 * d, d))
    designs = linear.Designs((x,), x, (x,))
    ratios = (0.1, 0.4, 2.0)
    radii = [
        linear.closed_form(
            designs, np.ones(d), alpha=ratio / (1 + ratio), beta=0.5, generations=1
        ).spectral_radius
        for ratio in ratios
    ]
    gap = max(
        abs(radius - closed_forms.contraction_exact(ratio))
        for radius, ratio in zip(radii, ratios, strict=True)
    )
    # The bound has no value for ratios of 1/2 and more.
    bounds = [closed_forms.contraction_bound(ratio, convexity=1.0) for ratio in ratios[:2]]
    return Claim(
        "One entity with equal Gram matrices contracts by lambda / (1 + lambda) for every lambda; "
        "the general bound is larger, and ends at 1/2",
        f"exact to {gap:.0e}; bounds {', '.join(f'{bound:.3f}' for bound in bounds)} against "
        f"{', '.join(f'{radius:.3f}' for radius in radii[:2])}",
        gap < 1e-10 and all(b > radius for b, radius in zip(bounds, radii[:2], strict=True)),
    )


def _isotropic_claim() -> Claim:
    private, public, synthetic = (np.sqrt(scale) * np.eye(2) for scale in (5.0, 7.0, 2.0))
    settled = linear.limit(
        linear.Designs((private,) * 4, public, (synthetic,) * 4), np.ones(2), alpha=0.4, beta=0.3
    )
    exact = isotropic.limit(
        isotropic.Setting(entities=4, d=2, private=5, public=7, synthetic=2, alpha=0.4, beta=0.3)
    )
    difference = float(abs(settled.mse[0] / exact.mse - 1))
    return Claim(
        "Where designs have scaled orthogonal rows the limit for K entities follows from four "
        "numbers",
        f"relative difference {difference:.0e}",
        difference < 1e-10,
    )


def _collapse_claim(config: TheoryConfig, mesh: Mesh | None) -> Claim:
    share = _collapse(config, mesh)
    return Claim(
        "The probability that a Gaussian chain keeps a deviation above a threshold stays below "
        "exp(-k / (4 n - 1)) / threshold",
        f"largest share of the bound {share:.2f}",
        share <= 1,
    )


def _collapse(config: TheoryConfig, mesh: Mesh | None) -> float:
    """Largest ratio of the measured probability to its bound, n = 4, over 60 generations and three
    thresholds.
    """
    n, generations = 4, 60
    metrics = family.run(
        gaussian.gaussian_family(),
        workflows.replace(n),
        generations=generations,
        replicates=config.library.batch,
        seed=config.seed,
        mesh=mesh,
        batch_size=500,
    )
    deviations = np.sqrt(metrics["var"][:, :, 0])
    ratios = [
        (deviations > t).mean(0)
        / closed_forms.collapse_probability(np.arange(generations + 1), n=n, threshold=t)
        for t in (0.1, 0.3, 1.0)
    ]
    return float(np.max(ratios))
