"""WMLE of Beta distributions: the population recursion and its sampling error against chains of
fits, in both variants of the paper.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.special
import scipy.stats
from jax.sharding import Mesh

from jaxloop.simulators import beta, beta_expansion
from jaxloop.studies.theory import wmle_measured, wmle_shares
from jaxloop.studies.theory.compare import Check, Claim, Conclusion, Experiment, Quantity
from jaxloop.studies.theory.config import TheoryConfig, WmleConfig

LINES = {
    "model": "weighted by the last fit (released code)",
    "pretrained": "weighted by the pre-trained model",
    "none": "not weighted",
}

PROOF = "for infinitely many draws: densities of Beta distributions multiply (simulators/beta.py)"
WHY = "a fit of theirs did not converge"


def experiments(config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
    """Return all comparisons of the config. Raises ValueError as `beta.population` does."""
    w = config.wmle
    experiments = [
        make(config, name, mesh) for name in w.weightings for make in (_chains, _sampling_error)
    ]
    if "model" in w.weightings and w.exponent == 1:
        experiments.append(_constrained(config, mesh))
    return experiments


def _options(config: TheoryConfig, weighting: str) -> dict[str, Any]:
    w = config.wmle
    return dict(
        real=w.real,
        pretrained=w.pretrained,
        generations=w.generations,
        weighting=weighting,
        exponent=w.exponent,
    )


def _mean(theta: np.ndarray) -> np.ndarray:
    return theta[..., 0] / theta.sum(-1)


def _above_half(theta: np.ndarray) -> np.ndarray:
    return scipy.stats.beta.sf(0.5, theta[..., 0], theta[..., 1])


def _modes(theta: np.ndarray) -> np.ndarray:
    return (theta[..., 0] - 1) / (theta.sum(-1) - 2)


# Of Beta(theta), theta [..., 2].
_SHAPES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "Parameter alpha": lambda theta: theta[..., 0],
    "Parameter beta": lambda theta: theta[..., 1],
    "Mean": _mean,
    "P(X > 1/2)": _above_half,
}


def _simulated(
    config: TheoryConfig, n: int, options: Mapping[str, Any], mesh: Mesh | None, seed: int
) -> np.ndarray:
    """Fits [R, T+1, 2] of a batch; NaN in the chains with one that did not converge."""
    theta, converged, _ = beta.simulate(
        n=n, replicates=config.wmle.batch, seed=seed, report=True, mesh=mesh, **options
    )
    return np.where(converged.all(1)[:, None, None], theta, np.nan)


def _chains(config: TheoryConfig, weighting: str, mesh: Mesh | None) -> Experiment:
    """Where chains are on average."""
    w, line = config.wmle, LINES[weighting]
    options, t = _options(config, weighting), np.arange(w.generations + 1)
    path, tolerance = beta.population(**options), w.order / w.n
    # Every fit adds its bias, and nothing takes it back: over generations it is not small.
    around = beta_expansion.expand(w.n, **options)
    peaked, shifts = bool((path > 1).all()), weighting == "model"
    values = dict(_SHAPES)
    if peaked:
        values["Mode"] = _modes
    if shifts:
        values["Bias projection coefficient"] = lambda theta: _coefficients(theta, options)
    quantities = [
        Quantity.of(
            name,
            t,
            beta_expansion.expected(value, path, around),
            line=line,
            tolerance=tolerance,
        )
        for name, value in values.items()
    ]

    def draw(seed: int) -> list[np.ndarray]:
        theta = _simulated(config, w.n, options, mesh, seed)
        return [value(theta) for value in values.values()]

    return Experiment(f"chains__{weighting}", tuple(quantities), draw, w.left_out, WHY)


def _sampling_error(config: TheoryConfig, weighting: str, mesh: Mesh | None) -> Experiment:
    """How far chains are apart."""
    w, options = config.wmle, _options(config, weighting)
    around = beta_expansion.expand(w.error_n, **options)
    sd = np.sqrt(np.diagonal(around.first + around.second, axis1=1, axis2=2))
    t, tolerance = np.arange(w.generations + 1), w.order / w.error_n
    quantities = [
        Quantity.of(
            f"Standard deviation of {name} between chains, N = {w.error_n:,}",
            t,
            sd[:, i],
            line=LINES[weighting],
            tolerance=tolerance,
        )
        for i, name in enumerate(("alpha", "beta"))
    ]

    def draw(seed: int) -> list[np.ndarray]:
        theta = _simulated(config, w.error_n, options, mesh, seed)
        # Means of these are the standard deviation, to first order in its error; n / (n - 1) is for
        # the mean that is subtracted.
        kept = np.isfinite(theta).all((1, 2)).sum()
        away = (theta - np.nanmean(theta, 0)) ** 2 * (kept / max(kept - 1, 1))
        return [sd[:, i] + (away[:, :, i] - sd[:, i] ** 2) / (2 * sd[:, i]) for i in (0, 1)]

    return Experiment(f"sampling_error__{weighting}", tuple(quantities), draw, w.left_out, WHY)


def _coefficients(theta: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """The bias projection c_t (arXiv 2410.15234, section 3.1) at theta [..., 2].

    It is that of the population which its own next fit has: d -> (1 + lambda) d; theta_unb is the
    real distribution.
    """

    with jax.enable_x64(True):
        flat = jnp.asarray(theta.reshape(-1, 2), jnp.float64)
        values = _coefficients_of(flat, options["exponent"], options["real"])
    return np.asarray(values).reshape(theta.shape[:-1])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _coefficients_of(theta_N2: jax.Array, exponent: float, real: tuple[float, float]) -> jax.Array:
    """What `_coefficients` returns of theta [N, 2]: [N]."""

    def coefficient(one: jax.Array) -> jax.Array:
        next_fit = 1 + (1 + exponent) * (one - 1)
        statistics = beta.population_statistics(next_fit)
        return beta.bias_projection(one, statistics, real)[0]

    return jax.vmap(coefficient)(theta_N2)


def _constrained(config: TheoryConfig, mesh: Mesh | None) -> Experiment:
    """Training that stops early, with the constrained loss and without: the same recursion on
    expectations, for n -> infinity.
    """
    w = config.wmle
    options, t = _options(config, "model"), np.arange(w.generations + 1)
    real = (w.real[0], w.real[1])
    kinds = {
        f"L_new, gamma = {w.gam:g}": beta.Constraint(0.0, w.gam, real, w.steps, w.rate),
        "plain loss": beta.Constraint(0.0, 0.0, real, w.steps, w.rate),
    }

    def reach(theta: np.ndarray) -> np.ndarray:
        return np.linalg.norm(theta - np.asarray(w.real), axis=-1)

    name = f"Distance from the real parameters after {w.steps} gradient steps"
    quantities = [
        Quantity.of(name, t, reach(_descent(c, options)), line=line, tolerance=w.order / w.n)
        for line, c in kinds.items()
    ]

    def draw(seed: int) -> list[np.ndarray]:
        return [
            reach(
                beta.simulate(
                    n=w.n, replicates=w.batch, seed=seed, constraint=c, mesh=mesh, **options
                )
            )
            for c in kinds.values()
        ]

    return Experiment("constrained", tuple(quantities), draw)


def _descent(constraint: beta.Constraint, options: Mapping[str, Any]) -> np.ndarray:
    """[T+1, 2]: `beta.descend` on the statistics of an infinite sample, from the pre-trained model
    on.
    """

    @jax.jit
    def move(theta: jax.Array, target: jax.Array) -> jax.Array:
        return beta.descend(theta, beta.population_statistics(target), constraint).theta

    with jax.enable_x64(True):
        pre, real = (jnp.asarray(x, jnp.float64) for x in (options["pretrained"], options["real"]))
        path = [move(pre, real + pre - 1)]
        for _ in range(options["generations"]):
            path.append(move(path[-1], 2 * path[-1] - 1))
    return np.asarray(path)


def conclude(config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]) -> Conclusion:
    """Return what the chains show, and beside it what is proved, with the numbers of this
    config.
    """
    weightings = config.wmle.weightings
    claims: list[Claim] = []
    if "model" in weightings:
        claims += _sharpening(config)
    if "pretrained" in weightings:
        claims.append(_constant_growth(config))
    if "none" in weightings:
        claims.append(_random_walk(config))
    proved = [claim._replace(theorem=PROOF) for claim in claims]
    claims = [*wmle_measured.claims(config, checks, LINES), *proved]
    frames = [_population_table(config, weighting) for weighting in weightings]

    def draw(weighting: str, seed: int) -> np.ndarray:
        return _simulated(config, config.wmle.n, _options(config, weighting), mesh, seed)

    tables = {
        "population": pd.concat(frames, ignore_index=True),
        "single_chains": wmle_shares.table(config, LINES, draw),
    }
    return Conclusion(claims, (), tables)


def _population_table(config: TheoryConfig, weighting: str) -> pd.DataFrame:
    path = beta.population(**_options(config, weighting))
    return pd.DataFrame(
        {
            "weighting": weighting,
            "generation": np.arange(len(path)),
            "alpha": path[:, 0],
            "beta": path[:, 1],
            "mean": path[:, 0] / path.sum(1),
            "above_half": scipy.stats.beta.sf(0.5, *path.T),
            "kl_to_real": [_divergence(shape, config.wmle.real) for shape in path],
            "kl_to_pretrained": [_divergence(shape, config.wmle.pretrained) for shape in path],
        }
    )


def _constant_growth(config: TheoryConfig) -> Claim:
    path = beta.population(**_options(config, "pretrained"))
    steps = np.diff(path, axis=0)
    mode = _modes(np.array(config.wmle.pretrained))
    return Claim(
        "Weighted by the pre-trained model every time, parameters grow by a constant, not by a "
        "factor, and the mean goes to that model's mode",
        f"alpha + {steps[0, 0]:g}, beta + {steps[0, 1]:g} per generation; mean "
        f"{path[0, 0] / path[0].sum():.4f} to {path[-1, 0] / path[-1].sum():.4f}, mode of the "
        f"pre-trained model {mode:.4f}",
        bool(np.allclose(steps, steps[:1])),
    )


def _random_walk(config: TheoryConfig) -> Claim:
    options = _options(config, "none")
    path = beta.population(**options)
    covariance = beta.asymptotic_cov(config.wmle.n, **options)
    sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    grows_with_root = np.allclose(sd[-1], sd[0] * np.sqrt(len(path)))
    return Claim(
        "Without weights parameters stay where they are on average only: a chain is a random walk, "
        "its deviation grows with the root of the fits",
        f"alpha {path[-1, 0]:g} ± {sd[0, 0]:.4f} after one fit, ± {sd[-1, 0]:.4f} after "
        f"{len(path)}",
        bool(grows_with_root and np.allclose(path, path[:1])),
    )


def _sharpening(config: TheoryConfig) -> list[Claim]:
    w = config.wmle
    path = beta.population(**_options(config, "model"))
    d, factor = path - 1, 1 + w.exponent
    mode = d[:, 0] / d.sum(1)
    gap = float(np.abs(d[1:] - factor * d[:-1]).max() / np.abs(d).max())
    claims = [
        Claim(
            "Weighting by the last fit is pure sharpening: (alpha - 1, beta - 1) is multiplied "
            f"by {factor:g} in every generation, which is sampling at "
            f"temperature {1 / factor:.3g} and refitting, and nothing else",
            f"largest deviation {gap:.0e}",
            gap < 1e-9,
        ),
        Claim(
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


def _about_the_mean(w: WmleConfig, path: np.ndarray) -> list[Claim]:
    """The claims about the side of 1/2 to which the pre-trained model is biased."""
    side = 0 if w.pretrained[0] > w.pretrained[1] else 1
    path, pre = (np.asarray(theta, float)[..., [side, 1 - side]] for theta in (path, w.pretrained))
    far = 1 + (path[-1] - 1) * 2.0**40
    mean, above = path[:, 0] / path.sum(1), scipy.stats.beta.sf(0.5, *path.T)
    pre_mean, pre_above = pre[0] / pre.sum(), scipy.stats.beta.sf(0.5, *pre)
    limit = far[0] / far.sum()
    beyond = np.flatnonzero(above > pre_above)
    when = "beyond it after more generations"
    if len(beyond):
        when = f"first beyond it in generation {beyond[0]}"
    tail, below = (("P(X > 1/2)", "below"), ("P(X < 1/2)", "above"))[side]

    def shown(mean: float) -> str:
        return f"{mean if side == 0 else 1 - mean:.5f}"

    share = (mean[0] - 0.5) / (limit - 0.5)
    return [
        Claim(
            f"The mean is {below} the pre-trained model's in every generation and reaches it, "
            "the fixed mode, in the limit only: measured by the mean, the "
            "bias never exceeds the pre-trained one",
            f"pre-trained {shown(pre_mean)}; generations {shown(mean[0])} to {shown(mean[-1])}; "
            f"limit {shown(limit)}",
            bool((mean < pre_mean).all() and abs(limit - pre_mean) < 1e-9),
        ),
        Claim(
            f"Measured by {tail} it does exceed the pre-trained one",
            f"pre-trained {pre_above:.4f}; generation 0 {above[0]:.4f}, last {above[-1]:.4f}; "
            f"{when}",
            bool(scipy.stats.beta.sf(0.5, *far) > pre_above),
        ),
        Claim(
            "Most of the mean's shift happens in generation 0, before any recursion",
            f"{share:.0%} of {limit - 0.5:.3f}",
            bool(share > 0.5),
        ),
    ]


def _divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """KL(Beta(p) || Beta(q))."""
    (a, b), (c, d) = p, q
    return (
        scipy.special.betaln(c, d)
        - scipy.special.betaln(a, b)
        + (a - c) * scipy.special.digamma(a)
        + (b - d) * scipy.special.digamma(b)
        + (c - a + d - b) * scipy.special.digamma(a + b)
    )
