"""WMLE of Beta distributions: the population recursion and its sampling error against chains of
fits, in both readings of the paper.
"""

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.stats

from jaxloop.simulators import beta
from jaxloop.studies.theory import compare

if TYPE_CHECKING:
    from jaxloop.studies.theory.run import Settings

LINES = {
    "model": "weighted by the last fit (released code)",
    "pretrained": "weighted by the pre-trained model",
    "none": "not weighted",
}


def experiments(settings: "Settings", mesh=None) -> list[compare.Experiment]:
    """All comparisons of the config. Raises ValueError as `beta.population` does."""
    w = settings.wmle
    found = [
        make(settings, name, mesh) for name in w.weightings for make in (_chains, _sampling_error)
    ]
    return (
        [*found, _constrained(settings, mesh)]
        if "model" in w.weightings and w.exponent == 1
        else found
    )


def _options(settings, weighting):
    w = settings.wmle
    return dict(
        real=w.real,
        pretrained=w.pretrained,
        generations=w.generations,
        weighting=weighting,
        exponent=w.exponent,
    )


def _shapes(theta):
    """{name: value} of Beta(theta), theta [..., 2]."""
    a, b = theta[..., 0], theta[..., 1]
    return {
        "Parameter alpha": a,
        "Parameter beta": b,
        "Mean": a / (a + b),
        "P(X > 1/2)": scipy.stats.beta.sf(0.5, a, b),
    }


def _modes(theta):
    return (theta[..., 0] - 1) / (theta.sum(-1) - 2)


def _simulated(settings, n, options, mesh, seed):
    """Fits [R, T+1, 2] of a batch. Raises FloatingPointError where Newton did not converge."""
    theta, converged, _ = beta.simulate(
        n=n, replicates=settings.wmle.batch, seed=seed, report=True, mesh=mesh, **options
    )
    if not converged.all():
        raise FloatingPointError(
            f"Newton did not converge in {int((~converged).sum())} of {converged.size} fits"
        )
    return theta


def _chains(settings, weighting, mesh):
    """Where chains are on average."""
    w, line = settings.wmle, LINES[weighting]
    options, t = _options(settings, weighting), np.arange(w.generations + 1)
    path, tolerance = beta.population(**options), w.order / w.n
    quantities = [
        compare.Quantity(name, t, values, line=line, tolerance=tolerance)
        for name, values in _shapes(path).items()
    ]
    peaked, shifts = bool((path > 1).all()), weighting == "model"
    if peaked:
        quantities.append(compare.Quantity("Mode", t, _modes(path), line=line, tolerance=tolerance))
    if shifts:
        quantities.append(
            compare.Quantity(
                "Bias projection coefficient",
                t,
                _coefficients(path, options),
                line=line,
                tolerance=tolerance,
            )
        )

    def draw(seed):
        theta = _simulated(settings, w.n, options, mesh, seed)
        return [
            *_shapes(theta).values(),
            *([_modes(theta)] if peaked else []),
            *([_coefficients(theta, options)] if shifts else []),
        ]

    return compare.Experiment(f"chains__{weighting}", tuple(quantities), draw)


def _sampling_error(settings, weighting, mesh):
    """How far chains are apart."""
    w, options = settings.wmle, _options(settings, weighting)
    sd = np.sqrt(np.diagonal(beta.asymptotic_cov(w.error_n, **options), axis1=1, axis2=2))
    t, tolerance = np.arange(w.generations + 1), w.order / w.error_n
    quantities = [
        compare.Quantity(
            f"Standard deviation of {name} between chains, N = {w.error_n:,}",
            t,
            sd[:, i],
            line=LINES[weighting],
            tolerance=tolerance,
        )
        for i, name in enumerate(("alpha", "beta"))
    ]

    def draw(seed):
        theta = _simulated(settings, w.error_n, options, mesh, seed)
        # Means of these are the standard deviation, to first order in its error; n / (n - 1) is for
        # the mean that is subtracted.
        away = (theta - theta.mean(0)) ** 2 * (w.batch / (w.batch - 1))
        return [sd[:, i] + (away[:, :, i] - sd[:, i] ** 2) / (2 * sd[:, i]) for i in (0, 1)]

    return compare.Experiment(f"sampling_error__{weighting}", tuple(quantities), draw)


def _coefficients(theta, options):
    """c_t (section 5) at theta [..., 2] for the population that its own next fit has: d -> (1 +
    lambda) d; theta_unb is the real distribution.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        flat = jnp.asarray(theta.reshape(-1, 2), jnp.float64)
        follow = lambda one: beta.population_statistics(1 + (1 + options["exponent"]) * (one - 1))
        found = jax.jit(
            jax.vmap(lambda one: beta.bias_projection(one, follow(one), options["real"])[0])
        )(flat)
    return np.asarray(found).reshape(theta.shape[:-1])


def _constrained(settings, mesh):
    """Training that stops early, with the constrained loss and without: the same recursion on
    expectations, for n -> infinity.
    """
    w = settings.wmle
    options, t = _options(settings, "model"), np.arange(w.generations + 1)
    kinds = {
        f"L_new, gamma = {w.gam:g}": beta.Constraint(0.0, w.gam, w.real, w.steps, w.rate),
        "plain loss": beta.Constraint(0.0, 0.0, w.real, w.steps, w.rate),
    }
    reach = lambda theta: np.linalg.norm(theta - np.asarray(w.real), axis=-1)
    name = f"Distance from the real parameters after {w.steps} gradient steps"
    quantities = [
        compare.Quantity(name, t, reach(_descent(c, options)), line=line, tolerance=w.order / w.n)
        for line, c in kinds.items()
    ]

    def draw(seed):
        return [
            reach(
                beta.simulate(
                    n=w.n, replicates=w.batch, seed=seed, constraint=c, mesh=mesh, **options
                )
            )
            for c in kinds.values()
        ]

    return compare.Experiment("constrained", tuple(quantities), draw)


def _descent(constraint, options):
    """[T+1, 2]: `beta.descend` on the statistics of an infinite sample, from the pre-trained model
    on.
    """
    import jax
    import jax.numpy as jnp

    with jax.enable_x64(True):
        move = jax.jit(
            lambda theta, target: (
                beta.descend(theta, beta.population_statistics(target), constraint).theta
            )
        )
        pre, real = (jnp.asarray(x, jnp.float64) for x in (options["pretrained"], options["real"]))
        path = [move(pre, real + pre - 1)]
        for _ in range(options["generations"]):
            path.append(move(path[-1], 2 * path[-1] - 1))
    return np.asarray(path)


def conclude(settings: "Settings", mesh, checks):
    """What section 1 of the spec proves, with the numbers of this config."""
    from jaxloop.studies.theory.run import Conclusion

    w = settings.wmle
    claims, frames = [], []
    for weighting in w.weightings:
        path = beta.population(**_options(settings, weighting))
        frame = pd.DataFrame(
            {
                "weighting": weighting,
                "generation": np.arange(len(path)),
                "alpha": path[:, 0],
                "beta": path[:, 1],
            }
        )
        frame["mean"], frame["above_half"] = (
            path[:, 0] / path.sum(1),
            scipy.stats.beta.sf(0.5, *path.T),
        )
        frame["kl_to_real"] = [_divergence(p, w.real) for p in path]
        frame["kl_to_pretrained"] = [_divergence(p, w.pretrained) for p in path]
        frames.append(frame)
    population = pd.concat(frames, ignore_index=True)
    if "model" in w.weightings:
        claims += _sharpening(settings)
    if "pretrained" in w.weightings:
        path = beta.population(**_options(settings, "pretrained"))
        steps = np.diff(path, axis=0)
        claims.append(
            compare.Claim(
                "Weighted by the pre-trained model every time, parameters grow by a constant, "
                "not by a factor, and the mean goes to that model's mode",
                f"alpha + {steps[0, 0]:g}, beta + {steps[0, 1]:g} per generation; mean "
                f"{path[0, 0] / path[0].sum():.4f} to {path[-1, 0] / path[-1].sum():.4f}, "
                f"mode of the pre-trained model {_modes(np.array(w.pretrained)):.4f}",
                bool(np.allclose(steps, steps[:1])),
            )
        )
    if "none" in w.weightings:
        path, sd = (
            beta.population(**_options(settings, "none")),
            np.sqrt(
                np.diagonal(
                    beta.asymptotic_cov(w.n, **_options(settings, "none")), axis1=1, axis2=2
                )
            ),
        )
        claims.append(
            compare.Claim(
                "Without weights parameters stay where they are on average only: a chain is a "
                "random walk, its deviation grows with the root of the fits",
                f"alpha {path[-1, 0]:g} ± {sd[0, 0]:.4f} after one fit, ± {sd[-1, 0]:.4f} after "
                f"{len(path)}",
                bool(
                    np.allclose(sd[-1], sd[0] * np.sqrt(len(path))) and np.allclose(path, path[:1])
                ),
            )
        )
    return Conclusion(claims, (), {"population": population})


def _sharpening(settings):
    w = settings.wmle
    path = beta.population(**_options(settings, "model"))
    d, factor = path - 1, 1 + w.exponent
    mode = d[:, 0] / d.sum(1)
    gap = float(np.abs(d[1:] - factor * d[:-1]).max() / np.abs(d).max())
    claims = [
        compare.Claim(
            "Weighting by the last fit is pure sharpening: (alpha - 1, beta - 1) is multiplied "
            f"by {factor:g} in every generation, which is sampling at "
            f"temperature {1 / factor:.3g} and refitting, and nothing else",
            f"largest deviation {gap:.0e}",
            gap < 1e-9,
        ),
        compare.Claim(
            "The mode is fixed from generation 0 on",
            f"{mode[0]:.6f}, largest change {np.ptp(mode):.0e}",
            float(np.ptp(mode)) < 1e-12,
        ),
    ]
    # Proved for real data from Beta(2, 2): elsewhere the fixed mode is not the pre-trained model's
    # mean.
    biased = (
        w.real == (2.0, 2.0)
        and w.exponent == 1
        and w.pretrained[0] != w.pretrained[1]
        and min(w.pretrained) > 1
    )
    return [*claims, *_about_the_mean(w, path)] if biased else claims


def _about_the_mean(w, path):
    """What the default setting is about, on the side of 1/2 that the pre-trained model is biased
    to.
    """
    side = 0 if w.pretrained[0] > w.pretrained[1] else 1
    sided = lambda theta: np.asarray(theta, float)[..., [side, 1 - side]]
    path, pre = sided(path), sided(w.pretrained)
    far = 1 + (path[-1] - 1) * 2.0**40
    mean, above = path[:, 0] / path.sum(1), scipy.stats.beta.sf(0.5, *path.T)
    pre_mean, pre_above, limit = (
        pre[0] / pre.sum(),
        scipy.stats.beta.sf(0.5, *pre),
        far[0] / far.sum(),
    )
    first = np.flatnonzero(above > pre_above)
    tail, below = (("P(X > 1/2)", "below"), ("P(X < 1/2)", "above"))[side]
    shown = (lambda x: f"{x:.5f}") if side == 0 else (lambda x: f"{1 - x:.5f}")
    share = (mean[0] - 0.5) / (limit - 0.5)
    return [
        compare.Claim(
            f"The mean is {below} the pre-trained model's in every generation and reaches it, "
            "the fixed mode, in the limit only: measured by the mean, the "
            "bias never exceeds the pre-trained one",
            f"pre-trained {shown(pre_mean)}; generations {shown(mean[0])} to {shown(mean[-1])}; "
            f"limit {shown(limit)}",
            bool((mean < pre_mean).all() and abs(limit - pre_mean) < 1e-9),
        ),
        compare.Claim(
            f"Measured by {tail} it does exceed the pre-trained one",
            f"pre-trained {pre_above:.4f}; generation 0 {above[0]:.4f}, last {above[-1]:.4f}"
            + (
                f"; first beyond it in generation {first[0]}"
                if len(first)
                else "; beyond it after more generations"
            ),
            bool(scipy.stats.beta.sf(0.5, *far) > pre_above),
        ),
        compare.Claim(
            "Most of the mean's shift happens in generation 0, before any recursion",
            f"{share:.0%} of {limit - 0.5:.3f}",
            bool(share > 0.5),
        ),
    ]


def _divergence(p, q):
    """KL(Beta(p) || Beta(q))."""
    from scipy.special import betaln, digamma

    (a, b), (c, d) = p, q
    return (
        betaln(c, d)
        - betaln(a, b)
        + (a - c) * digamma(a)
        + (b - d) * digamma(b)
        + (c - a + d - b) * digamma(a + b)
    )
