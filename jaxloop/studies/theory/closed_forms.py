"""Closed forms about recursive training, each with its source, its domain and (in
tests/studies/theory/test_closed_forms.py) a simulation that agrees.

[D] marks results that were derived for jaxloop; all others are quoted from their source.
All functions take and return NumPy floats; n is a sample size, d a dimension, fits are counted from
1 (the fit of the real data) unless a function says otherwise.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import binom

# A number, or an array of them.
Numbers = float | Sequence[float] | np.ndarray


def _check_positive(**values: Numbers) -> None:
    for name, value in values.items():
        if not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name}={value}: must be positive")


def _check_at_least(low: float, **values: Numbers) -> None:
    for name, value in values.items():
        if not np.all(np.asarray(value) >= low):
            raise ValueError(f"{name}={value}: must be at least {low}")


# ---- least squares on its own labels: Gerstgrasser et al. 2024, arXiv 2404.01413, Theorems 1-2 and
# eq. 4, 9-11 ------------------


def wishart_trace(d: int, samples: int) -> float:
    """Return E tr (X'X)^-1 = d / (T - d - 1) for T rows of N(0, I_d).

    Raises ValueError for T < d + 2, where it is infinite.
    """
    if samples < d + 2:
        raise ValueError(
            f"samples={samples}: must be at least d + 2 = {d + 2}, the expectation is infinite "
            "below"
        )
    return d / (samples - d - 1)


def ols_replace(fits: Numbers, *, trace: float, sigma2: float = 1.0) -> np.ndarray:
    """Return E|w_n - w*|^2 after n = `fits` fits, each on the last one's labels only: sigma2 trace
    n.

    trace = tr (X'X)^-1 of the one design used throughout, or its mean (`wishart_trace`), for fresh
    designs too.
    """
    _check_at_least(1, fits=fits)
    return sigma2 * trace * np.asarray(fits, float)


def ols_accumulate(fits: Numbers, *, trace: float, sigma2: float = 1.0) -> np.ndarray:
    """As `ols_replace`, each fit on the real and all earlier labels.

    With the same design every time it is sigma2 trace sum_{i<=n} 1/i^2 exactly, which stays below
    pi^2/6 sigma2 trace.
    """
    return sigma2 * trace * _partial_sums(fits, lambda i: i**-2.0)


def ols_replace_multiple(fits: Numbers, *, trace: float, sigma2: float = 1.0) -> np.ndarray:
    """As `ols_replace`, fit i on i times as many labels, all of the last model: sigma2 trace
    sum_{i<=n} 1/i.
    """
    return sigma2 * trace * _partial_sums(fits, lambda i: i**-1.0)


def ols_accumulate_fresh(fits: Numbers, *, d: int, samples: int, sigma2: float = 1.0) -> np.ndarray:
    """As `ols_accumulate` with a fresh N(0, I_d) design of T rows for every set of labels: sigma2 d
    sum_i 1 / (i (i T - d - 1)) [D].
    """
    wishart_trace(d, samples)
    return sigma2 * d * _partial_sums(fits, lambda i: 1 / (i * (i * samples - d - 1)))


def _partial_sums(fits: Numbers, term: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    _check_at_least(1, fits=fits)
    n = np.asarray(fits)
    return np.cumsum(term(np.arange(1, n.max() + 1, dtype=float)))[n - 1]


# ---- ridge regression after n generators: Dohmatob et al. 2024, arXiv 2402.07712


class Ridge(NamedTuple):
    """Test error E (x'w - x'w0)^2 as bias + variance + what n synthetic generations add; kappa is
    the effective ridge.
    """

    error: float
    bias: float
    variance: float
    synthetic: float
    kappa: float


def ridge(
    generators: int,
    *,
    covariance: Numbers,
    coefficients: Numbers,
    ridge: float,
    samples: int,
    first_samples: int,
    sigma2: float,
    first_sigma2: float,
) -> Ridge:
    """Return the test error of ridge regression after n least-squares generators.

    The regression (X'X/T + lambda)^-1 X'y/T is on T samples labelled by the last generator, each
    generator on T_0 samples (Theorems 4.3 and 4.6, Corollary 4.7). Valid for T_0 > d and lambda > 0
    (or T > d), asymptotically in proportion: 0.1-4% off at d = 60, T = 120. With lambda = 0 it is
    the closed form of Theorem 4.1 for isotropic covariates.

    Args:
        generators: n.
        covariance: eigenvalues [d] of the covariates' covariance.
        coefficients: [d] in its eigenbasis.
        ridge: lambda.
        samples: T.
        first_samples: T_0.
        sigma2: variance of the labels' noise.
        first_sigma2: that of the generators' labels.
    """
    s, w = np.asarray(covariance, float), np.asarray(coefficients, float)
    d = len(s)
    if first_samples <= d:
        raise ValueError(
            f"first_samples={first_samples}: must exceed d={d}, a generator is undetermined "
            "otherwise"
        )
    if not (ridge > 0 or (ridge == 0 and samples > d)):
        raise ValueError(
            f"ridge={ridge}: must be positive, or 0 where samples={samples} exceed d={d}"
        )

    def degrees(kappa: float, power: int) -> float:
        return float(((s / (s + kappa)) ** power).sum())

    kappa = 0.0
    if ridge > 0:
        top = ridge + s.sum() / samples + 1e-12
        kappa = brentq(
            lambda k: k - ridge - k * degrees(k, 1) / samples, ridge, top, xtol=1e-15, rtol=1e-14
        )
    df2 = degrees(kappa, 2)
    bias = kappa**2 * float((w**2 * s / (s + kappa) ** 2).sum()) / (1 - df2 / samples)
    variance = sigma2 * (df2 / samples) / (1 - df2 / samples)
    rho = df2 / (first_samples - d) + kappa**2 * float(((s + kappa) ** -2.0).sum()) / (
        first_samples - d
    ) * df2 / (samples - df2)
    synthetic = generators * first_sigma2 * rho
    return Ridge(bias + variance + synthetic, bias, variance, synthetic, kappa)


def overparametrised_norm(ratios: Numbers) -> np.ndarray:
    """Return |w_n|^2 / |w0|^2 along noiseless minimum-norm generators: prod min(1 / phi_m, 1).

    They have independent designs of d / T = phi_m = ratios; what is not spanned is forgotten
    (Theorems 4.8 and 4.9).
    """
    _check_positive(ratios=ratios)
    return np.cumprod(np.minimum(1 / np.asarray(ratios, float), 1))


# ---- Gaussian chains


def data_variance(sizes: Numbers) -> np.ndarray:
    """Return Var of a data point of generations 0..n along unbiased Gaussian fits on M_0, M_1, ...
    points.

    Over sigma^2 it is 1 + sum_{i<n} 1/M_i, exactly (Shumailov et al., arXiv 2305.17493, eq. 3-5).
    """
    _check_at_least(2, sizes=sizes)
    return 1 + np.concatenate([[0.0], np.cumsum(1 / np.asarray(sizes, float))])


def w2_first_order(sizes: Numbers) -> np.ndarray:
    """Return E W2^2 to the truth after fits 1..n, over sigma^2, to first order in 1/M.

    It is (3/2) sum_{i<n} 1/M_i (Shumailov et al.).
    """
    _check_at_least(2, sizes=sizes)
    return 1.5 * np.cumsum(1 / np.asarray(sizes, float))


class GaussianChain(NamedTuple):
    """After `fits` fits on n points each, over sigma^2: E of the fitted variance, variance of the
    fitted mean, E W2^2.
    """

    variance: np.ndarray
    mean_variance: np.ndarray
    w2: np.ndarray


def gaussian_replace(fits: Numbers, *, n: int, unbiased: bool = True) -> GaussianChain:
    """Return the moments of a Gaussian chain in one dimension, each fit on n draws of the last [D].

    They are exact: unbiased E s^2 = 1, Var mu = j/n and E W2^2 = j/n + 2 (1 - c4^j); by maximum
    likelihood E s^2 = (1 - 1/n)^j and E s = (c4 sqrt(1 - 1/n))^j.
    """
    _check_at_least(2, n=n)
    _check_at_least(1, fits=fits)
    j = np.asarray(fits, float)
    c4 = math.sqrt(2 / (n - 1)) * math.exp(gammaln(n / 2) - gammaln((n - 1) / 2))
    shrink, root = (1.0, c4) if unbiased else (1 - 1 / n, c4 * math.sqrt(1 - 1 / n))
    variance = shrink**j
    mean_variance = j / n if unbiased else 1 - variance
    return GaussianChain(variance, mean_variance, mean_variance + 1 + variance - 2 * root**j)


def collapse_probability(generations: Numbers, *, n: int, threshold: float) -> np.ndarray:
    """Return an upper bound of P(s_k > threshold sigma_0) for one-dimensional Gaussian chains.

    It is exp(-k / (4 n - 1)) / threshold (Suresh et al., arXiv 2412.17646, Theorem 3).
    """
    _check_positive(threshold=threshold)
    _check_at_least(2, n=n)
    return np.minimum(np.exp(-np.asarray(generations, float) / (4 * n - 1)) / threshold, 1.0)


def accumulate_variance(fits: Numbers, *, n: int) -> np.ndarray:
    """Return E of the fitted (maximum-likelihood) variance over sigma_0^2 when all sets of n points
    are kept: prod_{i<=t} (1 - 1/(n i^2)) [D].

    E (mu_t - mu_0)^2 is 1 minus that. The heterozygosity of categorical chains follows the same
    law. Kazdan et al., arXiv 2410.16713, Theorem 1 has the limit, `accumulate_limit`.
    """
    _check_at_least(2, n=n)
    _check_at_least(1, fits=fits)
    t = np.asarray(fits)
    return np.cumprod(1 - 1 / (n * np.arange(1, t.max() + 1, dtype=float) ** 2))[t - 1]


def accumulate_limit(n: int) -> float:
    """Return the limit of `accumulate_variance`: sin(pi / sqrt n) / (pi / sqrt n).

    Kazdan et al., Theorem 1.
    """
    _check_at_least(2, n=n)
    return math.sin(math.pi / math.sqrt(n)) / (math.pi / math.sqrt(n))


class Subsample(NamedTuple):
    """E of the fitted variance and E (mu - mu_0)^2 at fits 1..t, over sigma_0^2."""

    variance: np.ndarray
    mean_error: np.ndarray


def accumulate_subsample(fits: int, *, n: int) -> Subsample:
    """Return an exact recursion for Gaussian fits (maximum likelihood) on n points drawn without
    replacement from all t n so far [D].

    Its limit is positive (n = 10: .739, against .843 when all are used), so that in expectation it
    levels off.
    """
    _check_at_least(2, n=n)
    _check_at_least(1, fits=fits)
    s, m2 = 1 - 1 / n, 1 / n
    variances, errors = [], []
    for t in range(1, fits + 1):
        pool = t * n
        v = s * (pool - n) / (n * (pool - 1))
        variance = s * pool * (n - 1) / ((pool - 1) * n)
        variances.append(variance)
        errors.append(m2 + v)
        moved = v + variance / n
        s = (t * s + variance * (n - 1) / n) / (t + 1) + t * moved / (t + 1) ** 2
        m2 += moved / (t + 1) ** 2
    return Subsample(np.array(variances), np.array(errors))


# ---- counts and kernels


def replace_heterozygosity(fits: Numbers, *, n: int) -> np.ndarray:
    """Return E (1 - sum p_i^2) over its first value for categorical (or Bernoulli) fits.

    With each on n draws of the last it is (1 - 1/n)^j, genetic drift.
    """
    _check_at_least(1, n=n, fits=fits)
    return (1 - 1 / n) ** np.asarray(fits, float)


def mixed_homozygosity(fits: Numbers, *, n: int, synthetic: int, source: Numbers) -> np.ndarray:
    """Return E sum p_i^2 of categorical fits on `synthetic` draws of the last fit and n - synthetic
    fresh ones of `source` [V] [D].

    Exactly F' = (n + a (a - 1) F + b (2 a + b - 1) Q) / n^2 with a = synthetic, b = n - a, Q = sum
    source^2; the first fit has a = 0.
    """
    _check_at_least(1, n=n, fits=fits)
    if not 0 <= synthetic <= n:
        raise ValueError(f"synthetic={synthetic}: must lie in [0, n={n}]")
    q, a, t = float((np.asarray(source, float) ** 2).sum()), synthetic, np.asarray(fits)
    path = [1 / n + (1 - 1 / n) * q]
    for _ in range(t.max() - 1):
        path.append((n + a * (a - 1) * path[-1] + (n - a) * (n + a - 1) * q) / n**2)
    return np.array(path)[t - 1]


def histogram_entropy(
    *, n: int, source: Numbers, smoothing: float = 0.0, bias: Numbers | None = None
) -> float:
    """Return E of the entropy (nats) of a histogram of n draws of `source` [V] [D].

    The histogram has `smoothing` added per category, is multiplied by `bias` [V] and normalised.

    Exact where bias has one value on all that `source` can draw, so that the normaliser does not
    depend on the draws; ValueError elsewhere.
    """
    _check_at_least(1, n=n)
    _check_at_least(0, smoothing=smoothing)
    shares = np.asarray(source, float)
    strength = np.ones(len(shares)) if bias is None else np.asarray(bias, float)
    if np.ptp(strength[shares > 0]) > 0:
        raise ValueError(
            "bias: must have one value on all categories that the source can draw, the entropy "
            "has no closed form otherwise"
        )
    count = np.arange(n + 1)[:, None]
    mass = strength * (count + smoothing)
    terms = mass * np.log(np.where(mass > 0, mass, 1))
    total = strength[shares > 0][0] * n + smoothing * strength.sum()
    return float(np.log(total) - (binom.pmf(count, n, shares) * terms).sum() / total)


def bernoulli_variance(fits: Numbers, *, p: float, n: int) -> np.ndarray:
    """Return Var of the fitted p after j fits: p (1 - p) (1 - (1 - 1/n)^j)."""
    return p * (1 - p) * (1 - replace_heterozygosity(fits, n=n))


def poisson_variance(fits: Numbers, *, rate: float, n: int) -> np.ndarray:
    """Return Var of the fitted rate after j fits: rate j / n (its mean stays put; 0 absorbs)."""
    _check_positive(rate=rate)
    _check_at_least(1, n=n, fits=fits)
    return rate * np.asarray(fits, float) / n


def kde_variance(fits: Numbers, *, n: int, bandwidth: float) -> np.ndarray:
    """Return E of the variance of a kernel density estimate after j fits on n draws of the last.

    The kernel covariance h^2 is fixed; over sigma^2 = 1 and per dimension v_j = (1 - 1/n) v_{j-1} +
    h^2, v_0 = 1.
    """
    _check_at_least(2, n=n)
    _check_at_least(1, fits=fits)
    keep, j = 1 - 1 / n, np.asarray(fits, float)
    return keep**j + bandwidth**2 * (1 - keep**j) * n


# ---- mixtures of real and synthetic data


def contraction_bound(
    ratio: float, *, convexity: float, smoothness: float = 0.0, distance: float = 0.0
) -> float:
    """Return a bound of the contraction rate per generation: lambda (a + eps L) / (a - lambda (a +
    eps L)).

    lambda = synthetic / real weight, a the convexity of the likelihood, L the smoothness of its
    Hessian, eps the distance of the best model to the data (Bertrand et al., arXiv 2310.00429,
    Theorems 1-2; recalled, not read again). Raises ValueError where lambda (1 + L eps / a) >= 1/2,
    outside its domain.
    """
    _check_positive(convexity=convexity)
    _check_at_least(0, ratio=ratio, smoothness=smoothness, distance=distance)
    strength = convexity + distance * smoothness
    if not ratio * strength / convexity < 0.5:
        raise ValueError(
            f"ratio={ratio}: ratio (1 + L eps / a) is {ratio * strength / convexity:g}, the "
            "bound holds below 1/2 only"
        )
    return ratio * strength / (convexity - ratio * strength)


def contraction_exact(ratio: float) -> float:
    """Return the rate itself for one entity with equal Gram matrices: lambda / (1 + lambda) for
    every lambda [D], 1 for ratio = inf.
    """
    _check_at_least(0, ratio=ratio)
    return 1.0 if math.isinf(ratio) else ratio / (1 + ratio)


def fresh_real_variance(weight: Numbers) -> np.ndarray:
    """Return the stationary variance of a mean that is refitted with weight w on fresh real data
    and 1 - w on as much synthetic data.

    Over that of a fit on the real data alone it is (w^2 + (1-w)^2) / (1 - (1-w)^2) [D], smallest at
    w = 1/golden ratio = .618, where it is .618 itself (He et al. 2502.18049, Garg et al.
    2509.22341). Domain 0 < w <= 1.
    """
    w = np.asarray(weight, float)
    if not ((w > 0) & (w <= 1)).all():
        raise ValueError(
            f"weight={weight}: must lie in (0, 1], without real data there is no stationary state"
        )
    return (w**2 + (1 - w) ** 2) / (1 - (1 - w) ** 2)


GOLDEN_WEIGHT = (math.sqrt(5) - 1) / 2
