"""The closed forms of `studies.theory.closed_forms`, each against chains of the family that it is about, or
against draws where it is about no chain.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from jaxloop.recursion import workflow as workflows
from jaxloop.simulators import discrete, family, gaussian, kde, linear, regression
from jaxloop.studies.theory import closed_forms, compare

if TYPE_CHECKING:
    from jaxloop.studies.theory.run import Settings

P = np.array([0.5, 0.3, 0.2])
BANDWIDTH, RATE, COIN, SIGMA2 = 0.4, 2.0, 0.3, 2.25
MOST_FITS = 5  # of chains whose squares have heavy tails


def experiments(settings: "Settings", mesh=None) -> list[compare.Experiment]:
    """All comparisons of the config."""
    return [
        *_regressions(settings, mesh),
        *_gaussians(settings, mesh),
        *_counts(settings, mesh),
        *_draws(settings),
    ]


def _chain(
    settings, mesh, name, model, flow, quantities, read: Callable, fits=None
) -> compare.Experiment:
    """Chains of a family under a workflow; `read` turns its metrics {name: [R, T+1, ...]} into the
    samples of the quantities.
    """
    s = settings.library

    def draw(seed):
        options = dict(
            generations=(fits or s.fits) - 1,
            replicates=s.batch,
            seed=seed,
            mesh=mesh,
            micro_batch=500,
        )
        return read(family.run(model, flow, **options))

    return compare.Experiment(name, tuple(quantities), draw)


def _of(name, values, line="", tolerance=0.0):
    """A quantity at fits 1, 2, ..."""
    return compare.Quantity(
        name, np.arange(1, len(values) + 1), values, axis="fit", line=line, tolerance=tolerance
    )


# ---- least squares on its own labels
# ------------------------------------------------------------------------------------


def _regressions(settings, mesh):
    s, fits, rng = (
        settings.library,
        np.arange(1, settings.library.fits + 1),
        np.random.default_rng(settings.seed),
    )
    design, truth = rng.normal(size=(s.n, s.dim)), rng.normal(size=s.dim)
    trace = float(np.trace(np.linalg.inv(design.T @ design)))
    fixed, fresh = (
        regression.regression_family(truth, sigma=SIGMA2**0.5, design=x) for x in (design, None)
    )
    error, name = lambda out: [out["error"]], "Squared error of least squares on its own labels"
    cases = (
        (
            "replace",
            fixed,
            workflows.replace(s.n),
            closed_forms.ols_replace(fits, trace=trace, sigma2=SIGMA2),
            "replace",
        ),
        (
            "accumulate",
            fixed,
            workflows.accumulate(s.n),
            closed_forms.ols_accumulate(fits, trace=trace, sigma2=SIGMA2),
            "accumulate",
        ),
        (
            "fresh",
            fresh,
            workflows.accumulate(s.n),
            closed_forms.ols_accumulate_fresh(fits, d=s.dim, samples=s.n, sigma2=SIGMA2),
            "accumulate, fresh covariates",
        ),
    )
    found = [
        _chain(settings, mesh, f"regression_{short}", model, flow, [_of(name, values, line)], error)
        for short, model, flow, values, line in cases
    ]
    pinv = np.linalg.pinv(design)

    def multiple(seed):
        """Fit i sees i sets of labels of the last model, whose mean has i times less noise."""
        noise = (
            np.random.default_rng(seed).normal(size=(s.fits, s.batch, s.n))
            * np.sqrt(SIGMA2 / fits)[:, None, None]
        )
        return [(np.cumsum(noise @ pinv.T, 0) ** 2).sum(2).T]

    found.append(
        compare.Experiment(
            "regression_multiple",
            (
                _of(
                    name,
                    closed_forms.ols_replace_multiple(fits, trace=trace, sigma2=SIGMA2),
                    "replace, i sets at fit i",
                ),
            ),
            multiple,
        )
    )
    return found


# ---- Gaussian chains and kernel densities
# -------------------------------------------------------------------------------


def _gaussians(settings, mesh):
    s = settings.library
    fits = np.arange(1, s.fits + 1)
    mean, variance, distance = (
        "Squared error of a Gaussian chain's mean",
        "Variance of a Gaussian chain",
        "Squared Wasserstein distance of a Gaussian chain",
    )
    read = lambda out: [out["var"][:, :, 0], out["mean"][:, :, 0] ** 2]
    found = []
    for unbiased, line in ((True, "replace, unbiased"), (False, "replace, maximum likelihood")):
        exact = closed_forms.gaussian_replace(fits, n=s.n, unbiased=unbiased)
        quantities = [
            _of(variance, exact.variance, line),
            _of(mean, exact.mean_variance, line),
            _of(distance, exact.w2, line),
        ]
        if unbiased:
            quantities.append(
                _of(
                    "Variance of a data point along a chain",
                    closed_forms.data_variance([s.n] * s.fits)[1:],
                    "from generation 1 on",
                )
            )
        extra = (
            (lambda out: [out["mean"][:, :, 0] ** 2 + out["var"][:, :, 0]])
            if unbiased
            else (lambda out: [])
        )
        all_of = lambda out, extra=extra: [*read(out), out["w2"], *extra(out)]
        name = f"gaussian_replace_{'unbiased' if unbiased else 'likelihood'}"
        found.append(
            _chain(
                settings,
                mesh,
                name,
                gaussian.gaussian_family(unbiased=unbiased),
                workflows.replace(s.n),
                quantities,
                all_of,
            )
        )
    kept = closed_forms.accumulate_variance(fits, n=s.n)
    some = closed_forms.accumulate_subsample(s.fits, n=s.n)
    model = gaussian.gaussian_family(unbiased=False)
    for name, flow, values, errors in (
        ("accumulate", workflows.accumulate(s.n), kept, 1 - kept),
        (
            "accumulate, subsample",
            workflows.accumulate_subsample(s.n),
            some.variance,
            some.mean_error,
        ),
    ):
        quantities = [_of(variance, values, name), _of(mean, errors, name)]
        found.append(
            _chain(
                settings, mesh, f"gaussian_{name.replace(', ', '_')}", model, flow, quantities, read
            )
        )
    blurred = closed_forms.kde_variance(fits, n=s.n, bandwidth=BANDWIDTH)
    quantities = [_of("Variance of a kernel density chain", blurred, f"bandwidth {BANDWIDTH:g}")]
    density = kde.kde_family(bandwidth=BANDWIDTH, heldout=0)
    return [
        *found,
        _chain(
            settings,
            mesh,
            "kernel_density",
            density,
            workflows.replace(s.n),
            quantities,
            lambda out: [out["var"][:, :, 0]],
        ),
    ]


# ---- counts
# ---------------------------------------------------------------------------------------------------------------


def _counts(settings, mesh):
    s, fits, few = (
        settings.library,
        np.arange(1, settings.library.fits + 1),
        np.arange(1, min(settings.library.fits, MOST_FITS) + 1),
    )
    start, name = 1 - (P**2).sum(), "Heterozygosity of a categorical chain"
    # The first fit has already drawn once: both laws start from the real probabilities.
    categories, read = discrete.discrete_family(P), lambda out: [out["heterozygosity"]]
    drift = _of(name, start * closed_forms.replace_heterozygosity(fits, n=s.n), "replace")
    kept = _of(name, start * closed_forms.accumulate_variance(fits, n=s.n), "accumulate")
    coin = _of(
        "Variance of a coin's chain",
        closed_forms.bernoulli_variance(few, p=COIN, n=s.n),
        f"p = {COIN:g}",
    )
    counts = _of(
        "Variance of a Poisson chain",
        closed_forms.poisson_variance(few, rate=RATE, n=s.n),
        f"rate {RATE:g}",
    )
    return [
        _chain(
            settings, mesh, "categorical_replace", categories, workflows.replace(s.n), [drift], read
        ),
        _chain(
            settings,
            mesh,
            "categorical_accumulate",
            categories,
            workflows.accumulate(s.n),
            [kept],
            read,
        ),
        _chain(
            settings,
            mesh,
            "coin",
            discrete.bernoulli_family(COIN),
            workflows.replace(s.n),
            [coin],
            lambda out: [(out["p"] - COIN) ** 2],
            len(few),
        ),
        _chain(
            settings,
            mesh,
            "poisson",
            discrete.poisson_family(RATE),
            workflows.replace(s.n),
            [counts],
            lambda out: [(out["rate"] - RATE) ** 2],
            len(few),
        ),
    ]


# ---- draws
# ----------------------------------------------------------------------------------------------------------------


def _draws(settings):
    s = settings.library
    weights = np.array([0.3, 0.45, closed_forms.GOLDEN_WEIGHT, 0.8, 1.0])

    def fresh(seed):
        rng, mean = np.random.default_rng(seed), np.zeros((s.batch, len(weights)))
        for _ in range(60):
            mean = weights * rng.normal(size=mean.shape) + (1 - weights) * (
                mean + rng.normal(size=mean.shape)
            )
        return [mean**2]

    golden = compare.Quantity(
        "Variance with fresh real data",
        weights,
        closed_forms.fresh_real_variance(weights),
        axis="weight of real data",
    )
    rows = np.array([s.n, 2 * s.n, 4 * s.n])
    wishart = [closed_forms.wishart_trace(s.dim, int(n)) for n in rows]

    def designs(seed):
        rng = np.random.default_rng(seed)
        each = []
        for n in rows:
            x = rng.normal(size=(s.batch, n, s.dim))
            each.append(np.trace(np.linalg.inv(np.einsum("rnx,rny->rxy", x, x)), axis1=1, axis2=2))
        return [np.stack(each, 1)]

    ratios = (2.0, 1.0, 4 / 3)

    def forgetful(seed):
        """Noiseless minimum-norm generators: w is projected on the rows of each design."""
        rng, d, count = np.random.default_rng(seed), 60, 100
        w, norms = rng.normal(size=(count, d)), []
        start = (w**2).sum(1)
        for ratio in ratios:
            if ratio > 1:
                x = rng.normal(size=(count, round(d / ratio), d))
                inside = np.linalg.solve(
                    x @ x.swapaxes(1, 2), np.einsum("rnx,rx->rn", x, w)[:, :, None]
                )[:, :, 0]
                w = np.einsum("rnx,rn->rx", x, inside)
            norms.append((w**2).sum(1) / start)
        return [np.stack(norms, 1)]

    kept = _of(
        "Norm left by overparametrised generators",
        closed_forms.overparametrised_norm(ratios),
        "d / T = 2, 1, 4/3",
    )
    return [
        compare.Experiment("fresh_real_data", (golden,), fresh),
        compare.Experiment(
            "wishart",
            (
                compare.Quantity(
                    "Trace of an inverse Wishart matrix", rows, wishart, axis="samples"
                ),
            ),
            designs,
        ),
        compare.Experiment("overparametrised", (kept,), forgetful),
        compare.Experiment("ridge", (_ridge_quantity(),), _ridge_errors),
    ]


RIDGE = dict(ridge=0.3, samples=120, first_samples=150, sigma2=0.25, first_sigma2=0.5)
GENERATORS = (0, 1, 2, 3)


def _ridge_model():
    scales = np.geomspace(2, 0.2, 60)
    return scales, np.random.default_rng(5).normal(size=60) / np.sqrt(60)


def _ridge_quantity():
    """Asymptotic in proportion: the spec found 0.1-4 % between formula and simulation at this size."""
    scales, w0 = _ridge_model()
    values = [
        closed_forms.ridge(n, covariance=scales, coefficients=w0, **RIDGE).error for n in GENERATORS
    ]
    return compare.Quantity(
        "Test error of ridge regression after generators",
        GENERATORS,
        values,
        axis="generators",
        tolerance=0.04,
    )


def _ridge_errors(seed):
    rng, count, (scales, w0) = np.random.default_rng(seed), 50, _ridge_model()
    errors, w = [], np.tile(w0, (count, 1))

    def fit(w, rows, noise, penalty):
        x = rng.normal(size=(count, rows, 60)) * np.sqrt(scales)
        y = np.einsum("rnx,rx->rn", x, w) + np.sqrt(noise) * rng.normal(size=(count, rows))
        gram = x.swapaxes(1, 2) @ x / rows + penalty * np.eye(60)
        return np.linalg.solve(gram, np.einsum("rnx,rn->rx", x, y)[:, :, None] / rows)[:, :, 0]

    for _ in GENERATORS:
        last = fit(w, RIDGE["samples"], RIDGE["sigma2"], RIDGE["ridge"])
        errors.append((scales * (last - w0) ** 2).sum(1))
        w = fit(w, RIDGE["first_samples"], RIDGE["first_sigma2"], 0.0)
    return [np.stack(errors, 1)]


# ---- what is no mean
# ------------------------------------------------------------------------------------------------------


def conclude(settings: "Settings", mesh, checks):
    """Limits, bounds and optima, which no replicate measures."""
    from jaxloop.studies.theory.run import Conclusion

    s = settings.library
    far = closed_forms.accumulate_variance(100_000, n=s.n), closed_forms.accumulate_limit(s.n)
    some = closed_forms.accumulate_subsample(100_000, n=s.n).variance[-1]
    grid = np.linspace(0.05, 1, 20_001)
    values = closed_forms.fresh_real_variance(grid)
    best = float(grid[values.argmin()])
    x = np.random.default_rng(settings.seed).normal(size=(2 * s.dim, s.dim))
    ratios = (0.1, 0.4, 2.0)
    radii = [
        linear.closed_form(
            linear.Designs((x,), x, (x,)),
            np.ones(s.dim),
            alpha=r / (1 + r),
            beta=0.5,
            generations=1,
        ).spectral_radius
        for r in ratios
    ]
    gap = max(
        abs(found - closed_forms.contraction_exact(r))
        for found, r in zip(radii, ratios, strict=True)
    )
    bounds = [closed_forms.contraction_bound(r, convexity=1.0) for r in ratios if r < 0.5]
    eye = lambda scale: np.sqrt(scale) * np.eye(2)
    settled = linear.limit(
        linear.Designs((eye(5.0),) * 4, eye(7.0), (eye(2.0),) * 4), np.ones(2), alpha=0.4, beta=0.3
    )
    isotropic = closed_forms.isotropic_limit(
        entities=4, d=2, private=5, public=7, synthetic=2, alpha=0.4, beta=0.3
    )
    apart = float(abs(settled.mse[0] / isotropic.mse - 1))
    deviations = _collapse(settings, mesh)
    claims = [
        compare.Claim(
            "The variance of an accumulating Gaussian chain has the limit sin(pi / sqrt n) / (pi "
            "/ sqrt n)",
            f"{far[0]:.6f} after 100,000 fits, limit {far[1]:.6f}",
            abs(far[0] - far[1]) < 1e-4,
        ),
        compare.Claim(
            "Drawing n points from all that was accumulated levels off too, lower",
            f"{some:.4f} against {far[1]:.4f}",
            0 < some < far[1],
        ),
        compare.Claim(
            "With fresh real data the best weight is 1 / golden ratio, and the variance there is "
            "the same number",
            f"weight {best:.4f}, variance {values.min():.6f}",
            abs(best - closed_forms.GOLDEN_WEIGHT) < 1e-3
            and abs(values.min() - closed_forms.GOLDEN_WEIGHT) < 1e-6,
        ),
        compare.Claim(
            "One entity with equal Gram matrices contracts by lambda / (1 + lambda) for every "
            "lambda; the general bound is larger, and ends at 1/2",
            f"exact to {gap:.0e}; bounds {', '.join(f'{b:.3f}' for b in bounds)} against "
            f"{', '.join(f'{r:.3f}' for r in radii[:2])}",
            gap < 1e-10 and all(b > r for b, r in zip(bounds, radii, strict=False)),
        ),
        compare.Claim(
            "Where designs have scaled orthogonal rows the limit for K entities follows from "
            "four numbers",
            f"relative difference {apart:.0e}",
            apart < 1e-10,
        ),
        compare.Claim(
            "The probability that a Gaussian chain keeps a deviation above a threshold stays "
            "below exp(-k / (4 n - 1)) / threshold",
            f"largest share of the bound {deviations:.2f}",
            deviations <= 1,
        ),
    ]
    return Conclusion(claims, (), {})


def _collapse(settings, mesh):
    """Largest ratio of the measured probability to its bound, n = 4, over 60 generations and three
    thresholds.
    """
    n, generations = 4, 60
    options = dict(
        generations=generations,
        replicates=settings.library.batch,
        seed=settings.seed,
        mesh=mesh,
        micro_batch=500,
    )
    deviations = np.sqrt(
        family.run(gaussian.gaussian_family(), workflows.replace(n), **options)["var"][:, :, 0]
    )
    ratios = [
        (deviations > t).mean(0)
        / closed_forms.collapse_probability(np.arange(generations + 1), n=n, threshold=t)
        for t in (0.1, 0.3, 1.0)
    ]
    return float(np.max(ratios))
