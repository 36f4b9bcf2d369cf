"""Weighted maximum likelihood of Beta distributions, generation after generation
(arXiv 2410.15234, sections 3.1 and 3.2, appendix A).

Generation 0 fits N real draws weighted by the density of a pre-trained model; every later one fits
N draws of the last fit, weighted by the last fit's own density (weighting="model", what the
released code does), by the pre-trained model's again ("pretrained", the other reading of the
paper's appendix) or not at all ("none", the control). A weight exponent lambda raises the density.

With d = (alpha - 1, beta - 1) the weighted population is a Beta distribution again, d -> d + lambda
d_weight, so that "model" doubles d every generation: it is sampling at temperature 1 / (1 + lambda)
and fitting, pure sharpening. The mode stays where it is from generation 0 on; the mean climbs to it
from below.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxloop.core.checks import check_not_negative, check_positive, check_whole
from jaxloop.recursion import workflow as workflows
from jaxloop.simulators import family as families
from jaxloop.simulators.beta_draws import draw_logits

WEIGHTINGS = ("model", "pretrained", "none")
# Of the rounding of a fit: eps (alpha + beta) times this; and where it is too coarse to be a fit.
ROUNDING, COARSE = 50.0, 1e-3


class Fit(NamedTuple):
    """A maximum-likelihood estimate: theta [2] = (alpha, beta), Newton steps taken, and whether the
    last one was below 1e-9 relative.
    """

    theta: jax.Array
    steps: jax.Array
    converged: jax.Array


class Constraint(NamedTuple):
    """The paper's constrained loss (section 3.1) instead of maximum likelihood: L_new = L - lam sum
    max(0, c_i)^2 + gam sum min(0, c_i)^2.

    c_i = u_i dL/dtheta_i is the bias projection per coordinate, u the direction of theta - unbiased
    at the start of a generation. At the minimum of L every c_i is 0, so with lam = 0 a converged
    fit is the unconstrained one: the loss only acts on training that stops early, which is why it
    comes as `steps` of gradient descent at rate `rate` from the model that the workflow's `start`
    names ("previous": the last fit). And since its penalty vanishes at the biased minimum,
    descending it leads there sooner, not later. For lam > 0 it has no lower bound.
    """

    lam: float = 0.0
    gam: float = 1.0
    unbiased: tuple[float, float] = (2.0, 2.0)
    steps: int = 20
    rate: float = 1.0


def population(
    *,
    real: Sequence[float] = (2.0, 2.0),
    pretrained: Sequence[float] = (3.0, 2.0),
    generations: int,
    weighting: str = "model",
    exponent: float = 1.0,
) -> np.ndarray:
    """(alpha, beta) [T+1, 2] for N -> infinity. Raises ValueError where a weighted density cannot
    be normalised.
    """
    _check(real, pretrained, generations, weighting, exponent)
    d, d_pre = np.asarray(real, float) - 1, np.asarray(pretrained, float) - 1
    t = np.arange(generations + 1)[:, None]
    with np.errstate(over="ignore"):
        if weighting == "model":
            path = (d + exponent * d_pre) * (1 + exponent) ** t
        else:
            path = d + (t + 1) * exponent * d_pre * (weighting == "pretrained")
    theta = 1 + path
    check_integrable(theta, "the weighted density of generation {} is not integrable")
    return theta


def asymptotic_cov(
    n: int,
    *,
    real: Sequence[float] = (2.0, 2.0),
    pretrained: Sequence[float] = (3.0, 2.0),
    generations: int,
    weighting: str = "model",
    exponent: float = 1.0,
) -> np.ndarray:
    """Covariance [T+1, 2, 2] of the fits for large N (delta method): V' = (1 +
    lambda)^2 V + S / N and its like.

    S = A^-1 B A^-1 with A = E[w] I(g), B = E[w^2] (I(h) + d d'), where g and h are the densities
    weighted once and twice and d = E_h - E_g of the sufficient statistics. Raises ValueError for n
    < 2 and where weights have no second moment.
    """
    _check(real, pretrained, generations, weighting, exponent)
    check_n(n)
    theta = population(
        real=real,
        pretrained=pretrained,
        generations=generations,
        weighting=weighting,
        exponent=exponent,
    )
    pre = np.asarray(pretrained, float)
    source = np.concatenate([np.asarray(real, float)[None], theta[:-1]])
    weight = {
        "model": np.concatenate([pre[None], theta[:-1]]) - 1,
        "pretrained": np.broadcast_to(pre - 1, theta.shape),
    }.get(weighting, 0 * theta)
    check_integrable(
        source + 2 * exponent * weight, "weights of generation {} have no second moment"
    )
    with jax.enable_x64(True):
        noise = np.asarray(_sandwich(*(jnp.asarray(x) for x in (source, exponent * weight)))) / n
        of_base = np.linalg.inv(np.asarray(_information(jnp.asarray(pre)))) / n
    out, share = [], 0.0
    spread = np.zeros((2, 2))
    for t in range(generations + 1):
        growth = (1 + exponent) if weighting == "model" and t else 1.0
        spread = growth**2 * spread + noise[t]
        # The error of the pre-trained fit enters every weight it is used for, always with the same
        # sign.
        share = (
            0.0
            if weighting == "none"
            else growth * share + (exponent if weighting == "pretrained" or t == 0 else 0.0)
        )
        out.append(spread + share**2 * of_base)
    return np.array(out)


def simulate(
    *,
    n: int,
    replicates: int,
    generations: int,
    real: Sequence[float] = (2.0, 2.0),
    pretrained: Sequence[float] = (3.0, 2.0),
    weighting: str = "model",
    exponent: float = 1.0,
    seed: int = 0,
    constraint: Constraint | None = None,
    workflow: workflows.Workflow | None = None,
    report: bool = False,
    batch_size: int | None = 32,
    mesh: Mesh | None = None,
) -> Any:
    """Fits of R chains, [R, T+1, 2] (alpha, beta); index 0 is generation 0. float64.

    workflow: what a generation trains on (default: `replace(n)`, the paper, from the last fit where
    there is a constraint); report: also return converged [R, T+1] (bool) and the Newton steps [R,
    T+1]. Raises ValueError for n < 2, parameters that are not positive, a constraint of no steps or
    of negative strength, and a workflow of another size.
    """
    _check(real, pretrained, generations, weighting, exponent)
    check_n(n)
    if constraint is not None:
        _check_constraint(constraint)
    rule = (
        workflows.replace(n, start="base" if constraint is None else "previous")
        if workflow is None
        else workflow
    )
    if rule.initial != n:
        raise ValueError(f"workflow: generation 0 has {rule.initial} items, must have n={n}")
    made = beta_family(
        tuple(map(float, real)),
        tuple(map(float, pretrained)),
        n,
        weighting,
        float(exponent),
        constraint,
    )
    out = families.run(
        made,
        rule,
        generations=generations,
        replicates=replicates,
        seed=seed,
        batch_size=batch_size,
        mesh=mesh,
    )
    return (out["theta"], out["converged"], out["steps"]) if report else out["theta"]


@lru_cache(maxsize=64)
def beta_family(
    real: tuple[float, ...],
    pretrained: tuple[float, ...],
    n: int,
    weighting: str = "model",
    exponent: float = 1.0,
    constraint: Constraint | None = None,
) -> families.ArrayFamily:
    """Beta distributions as an `ArrayFamily`.

    Items are logits log(x / (1 - x)), so that neither tail is rounded to 0 or 1.

    n: draws that the pre-trained model is fitted on, without weights.
    """

    def draw_from(theta: tuple[float, ...], key: jax.Array, count: int) -> jax.Array:
        return draw_logits(key, jnp.asarray(theta, jnp.result_type(float)), count)

    def base(key: jax.Array) -> Fit:
        return fit_logits(draw_from(pretrained, key, n))

    def weigh(base: Fit, previous: Fit, items: jax.Array) -> jax.Array:
        model = {"model": previous, "pretrained": base}[weighting].theta
        log_x, log_rest = _logs(items)
        log_w = exponent * ((model[0] - 1) * log_x + (model[1] - 1) * log_rest)
        return jnp.exp(log_w - log_w.max())

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array, start: Fit | None = None) -> Fit:
        if start is None or constraint is None:
            return fit_logits(items, weights)
        return descend(start.theta, _statistics(items, weights), constraint)

    def sample(key: jax.Array, params: Fit, count: int) -> jax.Array:
        return draw_logits(key, params.theta, count)

    def measure(params: Fit, items: jax.Array) -> dict[str, jax.Array]:
        return {"theta": params.theta, "steps": params.steps, "converged": params.converged}

    return families.ArrayFamily(
        draw=partial(draw_from, real),
        fit=fit,
        sample=sample,
        measure=measure,
        base=base,
        weigh=None if weighting == "none" else weigh,
        continues=constraint is not None,
        least=2,
    )


def fit(x: ArrayLike, weights: ArrayLike | None = None) -> Fit:
    """Weighted maximum-likelihood fit of data x [n] in (0, 1), weights [n] non-negative (default
    1); float64 NumPy values.

    Raises ValueError for fewer than 2 distinct values of positive weight, data at or beyond 0 or 1,
    and bad weights.
    """
    x = np.asarray(x, np.float64)
    weights = np.ones_like(x) if weights is None else np.asarray(weights, np.float64)
    if x.ndim != 1 or x.shape != weights.shape:
        raise ValueError(
            f"x, weights: shapes are {x.shape} and {weights.shape}, must be one list of the same "
            "length each"
        )
    check_n(len(x))
    outside = ~((x > 0) & (x < 1))
    if outside.any():
        raise ValueError(f"x={x[outside][0]}: a Beta fit needs data strictly between 0 and 1")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError("weights: must be finite numbers of at least 0")
    if len(np.unique(x[weights > 0])) < 2:
        raise ValueError(
            "x: needs at least 2 distinct values of positive weight, the likelihood has no "
            "maximum otherwise"
        )
    with jax.enable_x64(True):
        fitted = jax.jit(fit_logits)(jnp.asarray(np.log(x) - np.log1p(-x)), jnp.asarray(weights))
        return jax.tree.map(np.asarray, fitted)


def fit_logits(items: jax.Array, weights: jax.Array | None = None) -> Fit:
    """As `fit`, pure jnp, from logits [n]: the sufficient statistics are weighted means of log x
    and log(1 - x).
    """
    return newton(_statistics(items, weights))


def _statistics(items, weights):
    return jnp.stack([families.weighted_mean(x, weights) for x in _logs(items)])


def newton(stats: jax.Array, *, most: int = 50) -> Fit:
    """Solves psi(alpha) - psi(alpha + beta) = E log x, psi(beta) - psi(alpha + beta) = E log(1 - x)
    for stats [2].

    The negative log-likelihood is convex: a step after which its slope along the step is steeper
    than before, and points back, has overshot and is halved. A fit has converged where a step is
    below 1e-9 of it, or below what rounding of stats leaves of it: eps (alpha + beta) each.
    Samples of a few almost equal points have their maximum beyond 1e10, where that is all of it;
    they do not converge.
    """
    p = jnp.exp(stats)
    # psi(x) is close to log(x - 1/2): with it the two equations are linear in alpha + beta.
    total = (1 - p.sum() / 2) / jnp.maximum(1 - p.sum(), jnp.finfo(p.dtype).tiny)
    start = 0.5 + p * jnp.maximum(total - 0.5, 0)

    def unfinished(state):
        return (state.fit.steps < most) & ~state.fit.converged

    def step(state):
        theta = state.fit.theta
        gradient = population_statistics(theta) - stats
        overshot = (gradient * state.shift).sum() < -state.slope
        move = _solve(_information(theta), gradient)
        newton_shift = theta - jnp.maximum(theta - move, theta / 10)
        shift = jnp.where(overshot, state.shift / 2, newton_shift)
        base = jnp.where(overshot, state.base, theta)
        slope = jnp.where(overshot, state.slope, (gradient * shift).sum())
        new = base - shift
        rounding = ROUNDING * jnp.finfo(theta.dtype).eps * theta.sum()
        within = jnp.maximum(1e-9, rounding) * theta
        done = ~overshot & (rounding < COARSE) & (jnp.abs(new - theta) <= within).all()
        return _Search(Fit(new, state.fit.steps + 1, done), base, shift, slope)

    first = Fit(start, jnp.int32(0), jnp.asarray(False))
    zero = jnp.zeros_like(start)
    return jax.lax.while_loop(unfinished, step, _Search(first, start, zero, zero.sum())).fit


class _Search(NamedTuple):
    """A fit that is being found: the last accepted point, the step from it that gave `fit`, and the
    slope along that step where it began.
    """

    fit: Fit
    base: jax.Array
    shift: jax.Array
    slope: jax.Array


def loss(theta: jax.Array, stats: jax.Array) -> jax.Array:
    """Return the mean negative log-likelihood of Beta(theta) where the (weighted) means of log x
    and log(1 - x) are stats [2].
    """
    return _betaln(theta) - ((theta - 1) * stats).sum()


def bias_projection(
    theta: jax.Array, stats: jax.Array, unbiased: Sequence[float] = (2.0, 2.0)
) -> tuple[jax.Array, jax.Array]:
    """(c, c_i [2]): projection of the gradient of `loss` at theta on the direction of theta -
    unbiased, and its parts (section 3.1).

    A negative c says that a gradient step lengthens the biased component. Pure jnp.
    """
    parts = _direction(theta, jnp.asarray(unbiased, theta.dtype)) * (
        population_statistics(theta) - stats
    )
    return parts.sum(), parts


def population_statistics(theta: jax.Array) -> jax.Array:
    """E log x and E log(1 - x) [2] of Beta(theta): `stats` of an infinite sample."""
    value = polygammas(jnp.append(theta, theta.sum()))[0]
    return value[:2] - value[2]


def constrained_loss(
    theta: jax.Array, stats: jax.Array, direction: jax.Array, lam: float, gam: float
) -> jax.Array:
    """L_new (see `Constraint`) with the unit vector `direction` [2] held fixed."""
    parts = direction * (population_statistics(theta) - stats)
    return (
        loss(theta, stats)
        - lam * (jnp.maximum(parts, 0) ** 2).sum()
        + gam * (jnp.minimum(parts, 0) ** 2).sum()
    )


def descend(theta: jax.Array, stats: jax.Array, constraint: Constraint) -> Fit:
    """`constraint.steps` steps of gradient descent on the constrained loss from theta; `converged`
    where the last one was below 1e-9.
    """
    direction = _direction(theta, jnp.asarray(constraint.unbiased, theta.dtype))

    def slope(theta):
        gradient = population_statistics(theta) - stats
        parts = direction * gradient
        penalty = 2 * (
            constraint.gam * jnp.minimum(parts, 0) - constraint.lam * jnp.maximum(parts, 0)
        )
        return gradient + _information(theta) @ (penalty * direction)

    def step(_, state):
        new = jnp.maximum(state.theta - constraint.rate * slope(state.theta), state.theta / 10)
        return Fit(new, state.steps + 1, (jnp.abs(new - state.theta) <= 1e-9 * state.theta).all())

    return jax.lax.fori_loop(
        0, constraint.steps, step, Fit(theta, jnp.int32(0), jnp.asarray(False))
    )


def _direction(theta, unbiased):
    away = theta - unbiased
    length = jnp.sqrt((away * away).sum())
    return away / jnp.where(length > 0, length, 1)


def _logs(items):
    """log x and log(1 - x) of logits."""
    log_rest = -jax.nn.softplus(items)
    return items + log_rest, log_rest


def _information(theta):
    slope = polygammas(jnp.append(theta, theta.sum()))[1]
    return jnp.diag(slope[:2]) - slope[2]


def polygammas(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Digamma and trigamma of x > 0, right to 1e-14: eight recurrence steps up, then the asymptotic
    series.

    XLA's own take longer to compile than the rest of a Beta chain.
    """
    value, slope = jnp.zeros_like(x), jnp.zeros_like(x)
    for _ in range(8):
        value, slope, x = value - 1 / x, slope + 1 / (x * x), x + 1
    r = 1 / (x * x)
    value += (
        jnp.log(x)
        - 0.5 / x
        - r
        * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r * (1 / 132 - r * 691 / 32760)))))
    )
    slope += (
        1 / x
        + 0.5 * r
        + r
        / x
        * (1 / 6 - r * (1 / 30 - r * (1 / 42 - r * (1 / 30 - r * (5 / 66 - r * 691 / 2730)))))
    )
    return value, slope


def _betaln(theta):
    # `jax.scipy.special.betaln` is only right to 1e-8 in float64.
    return gammaln(theta).sum() - gammaln(theta.sum())


def _solve(m, v):
    return jnp.stack([m[1, 1] * v[0] - m[0, 1] * v[1], m[0, 0] * v[1] - m[1, 0] * v[0]]) / (
        m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    )


@jax.jit
@partial(jax.vmap, in_axes=(0, 0))
def _sandwich(f, weight):
    g, h = f + weight, f + 2 * weight
    inverse = jnp.stack([_solve(_information(g), e) for e in jnp.eye(2)], 1)
    shift = population_statistics(h) - population_statistics(g)
    scale = jnp.exp(_betaln(h) + _betaln(f) - 2 * _betaln(g))
    return scale * inverse @ (_information(h) + shift[:, None] * shift[None, :]) @ inverse


def _check(real, pretrained, generations, weighting, exponent):
    _check_pair("real", real)
    _check_pair("pretrained", pretrained)
    check_whole("generations", generations)
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting={weighting!r}: must be one of {', '.join(WEIGHTINGS)}")
    check_not_negative("exponent", exponent)


def _check_pair(name, value):
    if len(value) != 2 or not all(np.isfinite(v) and v > 0 for v in value):
        raise ValueError(f"{name}={tuple(value)}: must be two positive numbers, alpha and beta")


def _check_constraint(constraint):
    check_not_negative("constraint.lam", constraint.lam)
    check_not_negative("constraint.gam", constraint.gam)
    _check_pair("constraint.unbiased", constraint.unbiased)
    check_whole("constraint.steps", constraint.steps)
    check_positive("constraint.rate", constraint.rate)


def check_n(n: int) -> None:
    """Raise ValueError for fewer draws than a fit needs."""
    if n < 2:
        raise ValueError(f"n={n}: a Beta fit needs at least 2 observations")


def check_integrable(theta: np.ndarray, message: str) -> None:
    """Raise ValueError, which begins with `message` (`{}` in it is the row), where parameters
    [n, 2] are not those of a Beta distribution.
    """
    bad = np.flatnonzero(~(np.isfinite(theta) & (theta > 0)).all(1))
    if len(bad):
        raise ValueError(
            f"{message.format(bad[0])}: its parameters would be {theta[bad[0]].tolist()}, which "
            "must be positive"
        )
