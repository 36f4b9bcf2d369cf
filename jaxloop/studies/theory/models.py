"""The models of recursive training by name: what builds them, and the formulas that they have."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxloop.recursion.workflow import BUILDERS, Workflow
from jaxloop.simulators import discrete, gaussian, gmm, kde, ngram, regression
from jaxloop.simulators.family import ArrayFamily
from jaxloop.studies.theory import closed_forms

# {(metric, statistic): [generations + 1] values}
Values = dict[tuple[str, str], np.ndarray]
# A formula of (number of every fit, from 1, items of a fit, options of the model).
Formula = Callable[[np.ndarray, int, Mapping[str, Any]], Values]


class NoFormulaError(ValueError):
    """A model has no formula under a workflow, or with these options."""


class Model(NamedTuple):
    """A model by name.

    Attributes:
        build: makes the family of the options.
        formulas: {name of the workflow: formula}; of a metric with components, of each of them.
    """

    build: Callable[..., ArrayFamily]
    formulas: Mapping[str, Formula]


def formula_of(
    model: str, workflow: Workflow, generations: int, options: Mapping[str, Any]
) -> Values:
    """Return what the formula of a model of `MODELS` says of generations 0 to `generations`.

    Raises:
        NoFormulaError: there is none under the workflow, or with these options.
    """
    known, size = MODELS[model].formulas, workflow.initial
    if workflow.name not in known or workflow != BUILDERS[workflow.name](size):
        under = f"; it has one under {', '.join(known)}, of a size alone" if known else ""
        raise NoFormulaError(
            f"workflow={workflow.name}: model {model!r} has no formula under it with these "
            f"options{under}"
        )
    return known[workflow.name](np.arange(1, generations + 2), size, options)


# ---- the formulas


def _gaussian_replace(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    scale = _gaussian_scale(options)
    chain = closed_forms.gaussian_replace(fits, n=n, unbiased=options.get("unbiased", True))
    values = {
        ("var", "mean"): scale * chain.variance,
        ("mean", "variance"): scale * chain.mean_variance,
    }
    # The distance of d dimensions needs the square root of a matrix.
    return values if options.get("dim", 1) != 1 else values | {("w2", "mean"): scale * chain.w2}


def _gaussian_accumulate(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    scale = _gaussian_scale(options, unbiased=False)
    variance = closed_forms.accumulate_variance(fits, n=n)
    return {
        ("var", "mean"): scale * variance,
        ("mean", "variance"): scale * (1 - variance),
    }


def _gaussian_subsample(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    scale = _gaussian_scale(options, unbiased=False)
    chain = closed_forms.accumulate_subsample(len(fits), n=n)
    return {
        ("var", "mean"): scale * chain.variance,
        ("mean", "variance"): scale * chain.mean_error,
    }


def _gaussian_scale(options: Mapping[str, Any], unbiased: bool | None = None) -> float:
    """The real variance. Raises NoFormulaError where no formula holds.

    In d dimensions every coordinate of the mean, and of the diagonal of the covariance, is a chain
    of its own, with the formula of one dimension.
    """
    if unbiased is not None and options.get("unbiased", True) != unbiased:
        raise NoFormulaError(
            f"unbiased={not unbiased}: the formula of this workflow is for unbiased={unbiased}"
        )
    return float(options.get("sd", 1.0)) ** 2


def _categorical(law: Callable[..., np.ndarray]) -> Formula:
    def formula(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
        for name in ("smoothing", "bias"):
            if np.any(options.get(name, 0)):
                raise NoFormulaError(f"{name}: the formula is for models without it")
        shares = np.asarray(options["probabilities"], float)
        start = 1 - ((shares / shares.sum()) ** 2).sum()
        return {("heterozygosity", "mean"): start * law(fits, n=n)}

    return formula


def _coin_replace(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    return {("p", "variance"): closed_forms.bernoulli_variance(fits, p=options["p"], n=n)}


def _poisson_replace(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    rate = options["rate"]
    return {("rate", "variance"): closed_forms.poisson_variance(fits, rate=rate, n=n)}


def _kde_replace(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    bandwidth, sd = options.get("bandwidth", 0.3), float(options.get("sd", 1.0))
    plain = options.get("kernel", "gaussian") == "gaussian" and options.get("centres") is None
    if not plain or isinstance(bandwidth, str) or options.get("dim", 1) != 1:
        raise NoFormulaError(
            "bandwidth, kernel, centres, dim: the formula is for a Gaussian kernel of fixed "
            "bandwidth in one dimension, without centres"
        )
    relative = closed_forms.kde_variance(fits, n=n, bandwidth=bandwidth / sd)
    return {("var", "mean"): sd**2 * relative}


def _least_squares(law: Callable[..., np.ndarray]) -> Formula:
    def formula(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
        design = options.get("design")
        if design is None:
            raise NoFormulaError("design: the formula is for a fixed design [n, d]")
        rows = np.asarray(design, float)[:n]
        if len(rows) < n:
            raise ValueError(f"design: has {len(rows)} rows, a set of items has {n}")
        if np.linalg.matrix_rank(rows) < rows.shape[1]:
            raise ValueError(f"design: its first {n} rows leave a coefficient undetermined")
        trace = float(np.trace(np.linalg.inv(rows.T @ rows)))
        sigma2 = float(options.get("sigma", 1.0)) ** 2
        return {("error", "mean"): law(fits, trace=trace, sigma2=sigma2)}

    return formula


MODELS: Mapping[str, Model] = {
    "gaussian": Model(
        gaussian.gaussian_family,
        {
            "replace": _gaussian_replace,
            "accumulate": _gaussian_accumulate,
            "accumulate_subsample": _gaussian_subsample,
        },
    ),
    "categorical": Model(
        discrete.discrete_family,
        {
            "replace": _categorical(closed_forms.replace_heterozygosity),
            "accumulate": _categorical(closed_forms.accumulate_variance),
        },
    ),
    "coin": Model(discrete.bernoulli_family, {"replace": _coin_replace}),
    "poisson": Model(discrete.poisson_family, {"replace": _poisson_replace}),
    "kernel_density": Model(kde.kde_family, {"replace": _kde_replace}),
    "gmm": Model(gmm.gmm_family, {}),
    "ngram": Model(ngram.ngram_family, {}),
    "regression": Model(
        regression.regression_family,
        {
            "replace": _least_squares(closed_forms.ols_replace),
            "accumulate": _least_squares(closed_forms.ols_accumulate),
        },
    ),
}
