"""Models whose recursive training has a formula: the simulation and the formula, as tables.

Both tables can be laid side by side: the mean and the variance over the replicates of a simulation
estimate the rows "mean" and "variance" of the formula.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxloop.config.messages import suggestion
from jaxloop.recursion.workflow import BUILDERS, Workflow
from jaxloop.simulators import discrete, gaussian, kde, linear, regression
from jaxloop.simulators import family as array_family
from jaxloop.simulators.family import ArrayFamily
from jaxloop.studies.theory import closed_forms

# {(metric, statistic): [generations + 1] values}
Values = dict[tuple[str, str], np.ndarray]
# A formula of (number of every fit, from 1, items of a fit, options of the model).
Formula = Callable[[np.ndarray, int, Mapping[str, Any]], Values]
LINEAR = "linear"


class _Model(NamedTuple):
    """A model by name.

    Attributes:
        build: makes the family of the options.
        formulas: {name of the workflow: formula}.
    """

    build: Callable[..., ArrayFamily]
    formulas: Mapping[str, Formula]


def simulate(
    model: str | ArrayFamily,
    workflow: Workflow | None = None,
    *,
    generations: int,
    replicates: int = 1000,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Simulate recursive training, all replicates in one compiled program.

    Examples:
        >>> import jaxloop
        >>> chains = jaxloop.simulate(
        ...     "gaussian", jaxloop.workflows.replace(20), generations=3, replicates=50
        ... )
        >>> chains.columns.tolist()
        ['replicate', 'generation', 'entity', 'metric', 'component', 'value']

    Args:
        model: "gaussian", "categorical", "coin", "poisson", "kernel_density", "regression", or a
            family of your own (`jaxloop.simulators.family.ArrayFamily`); "linear" for K entities
            with linear models that train on each other (arXiv 2505.21677).
        workflow: what a generation trains on, from `jaxloop.workflows`; "linear" has none.
        generations: how many follow generation 0.
        replicates: chains that differ in their draws.
        seed: of the draws.
        options: of the model: those of `jaxloop.simulators`' builders, such as `unbiased=False`;
            of "linear" `designs`, `theta`, `alpha`, `beta`, and more of `simulators.linear`.

    Returns:
        One row per replicate, generation, entity, metric and component of the metric.

    Raises:
        ValueError: there is no such model, the workflow is missing, or an option is wrong.
    """
    if model == LINEAR:
        _no_workflow(workflow)
        values = linear.simulate(
            generations=generations, replicates=replicates, seed=seed, **options
        )
        return _long({"theta": values}, entities=values.shape[2])
    chosen = _needed(workflow, model)
    family = _named(model).build(**options) if isinstance(model, str) else model
    out = array_family.run(
        family, chosen, generations=generations, replicates=replicates, seed=seed
    )
    return _long(out, entities=chosen.entities)


def closed_form(
    model: str, workflow: Workflow | None = None, *, generations: int, **options: Any
) -> pd.DataFrame:
    """Return what the formula says of recursive training.

    Examples:
        >>> import jaxloop
        >>> table = jaxloop.closed_form(
        ...     "gaussian", jaxloop.workflows.replace(20), generations=2, unbiased=False
        ... )
        >>> table[table.metric == "var"].value.round(4).tolist()
        [0.95, 0.9025, 0.8574]

    Args:
        model, workflow, generations, options: as of `simulate`.

    Returns:
        One row per generation, entity, metric and statistic: "mean" and "variance" are those over
        the draws of all data. Of "linear" the metrics are `mse` and `relative_efficiency`.

    Raises:
        ValueError: as `simulate`, or there is no formula for the model under the workflow.
    """
    if model == LINEAR:
        _no_workflow(workflow)
        moments = linear.closed_form(generations=generations, **options)
        return _of_entities(
            {
                ("mse", "mean"): moments.mse,
                ("relative_efficiency", "value"): moments.relative_efficiency,
            }
        )
    chosen = _needed(workflow, model)
    known = _named(model).formulas
    size = chosen.initial
    if chosen.name not in known or chosen != BUILDERS[chosen.name](size):
        raise ValueError(
            f"workflow={chosen.name}: model {model!r} has no formula under it with these options; "
            f"it has one under {', '.join(known)}, of a size alone"
        )
    fits = np.arange(1, generations + 2)
    values = known[chosen.name](fits, size, options)
    return _of_entities({name: series[:, None] for name, series in values.items()})


def _named(model: str) -> _Model:
    if model not in MODELS:
        raise ValueError(f"model={model!r}: is not known; {suggestion(model, [*MODELS, LINEAR])}")
    return MODELS[model]


def _needed(workflow: Workflow | None, model: object) -> Workflow:
    if workflow is None:
        raise ValueError(
            f"workflow: is missing; model {model!r} needs one, such as "
            "jaxloop.workflows.replace(100)"
        )
    return workflow


def _no_workflow(workflow: Workflow | None) -> None:
    if workflow is not None:
        raise ValueError(
            f"workflow={workflow.name}: model 'linear' takes none; alpha, beta and mixing say what "
            "its entities train on"
        )


def _long(values: Mapping[str, np.ndarray], *, entities: int) -> pd.DataFrame:
    """Arrays [R, T+1, ...], or [R, T+1, K, ...] of K > 1 entities, as one row per number."""
    tables = []
    for metric, array in values.items():
        has_entities = entities > 1 or (metric == "theta" and array.ndim == 4)
        wide = array if has_entities else array[:, :, None]
        flat = wide.reshape(*wide.shape[:3], -1)
        indices = np.indices(flat.shape).reshape(4, -1)
        columns = dict(
            zip(("replicate", "generation", "entity", "component"), indices, strict=True)
        )
        tables.append(pd.DataFrame({**columns, "metric": metric, "value": flat.reshape(-1)}))
    order = ["replicate", "generation", "entity", "metric", "component", "value"]
    return pd.concat(tables, ignore_index=True)[order]


def _of_entities(values: Mapping[tuple[str, str], np.ndarray]) -> pd.DataFrame:
    """Arrays [T+1, K] as one row per number."""
    tables = []
    for (metric, statistic), array in values.items():
        generation, entity = np.indices(array.shape).reshape(2, -1)
        tables.append(
            pd.DataFrame(
                {
                    "generation": generation,
                    "entity": entity,
                    "metric": metric,
                    "statistic": statistic,
                    "value": array.reshape(-1),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


# ---- the formulas


def _gaussian_replace(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
    scale = _gaussian_scale(options)
    chain = closed_forms.gaussian_replace(fits, n=n, unbiased=options.get("unbiased", True))
    return {
        ("var", "mean"): scale * chain.variance,
        ("mean", "variance"): scale * chain.mean_variance,
        ("w2", "mean"): scale * chain.w2,
    }


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
    """The real variance. Raises ValueError where no formula holds."""
    if options.get("dim", 1) != 1:
        raise ValueError(f"dim={options['dim']}: the formula is for one dimension")
    if unbiased is not None and options.get("unbiased", True) != unbiased:
        raise ValueError(
            f"unbiased={not unbiased}: the formula of this workflow is for unbiased={unbiased}"
        )
    return float(options.get("sd", 1.0)) ** 2


def _categorical(law: Callable[..., np.ndarray]) -> Formula:
    def formula(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
        for name in ("smoothing", "bias"):
            if options.get(name):
                raise ValueError(f"{name}: the formula is for models without it")
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
        raise ValueError(
            "bandwidth, kernel, centres, dim: the formula is for a Gaussian kernel of fixed "
            "bandwidth in one dimension, without centres"
        )
    relative = closed_forms.kde_variance(fits, n=n, bandwidth=bandwidth / sd)
    return {("var", "mean"): sd**2 * relative}


def _least_squares(law: Callable[..., np.ndarray]) -> Formula:
    def formula(fits: np.ndarray, n: int, options: Mapping[str, Any]) -> Values:
        design = options.get("design")
        if design is None:
            raise ValueError("design: the formula is for a fixed design [n, d]")
        rows = np.asarray(design, float)[:n]
        trace = float(np.trace(np.linalg.inv(rows.T @ rows)))
        sigma2 = float(options.get("sigma", 1.0)) ** 2
        return {("error", "mean"): law(fits, trace=trace, sigma2=sigma2)}

    return formula


MODELS: Mapping[str, _Model] = {
    "gaussian": _Model(
        gaussian.gaussian_family,
        {
            "replace": _gaussian_replace,
            "accumulate": _gaussian_accumulate,
            "accumulate_subsample": _gaussian_subsample,
        },
    ),
    "categorical": _Model(
        discrete.discrete_family,
        {
            "replace": _categorical(closed_forms.replace_heterozygosity),
            "accumulate": _categorical(closed_forms.accumulate_variance),
        },
    ),
    "coin": _Model(discrete.bernoulli_family, {"replace": _coin_replace}),
    "poisson": _Model(discrete.poisson_family, {"replace": _poisson_replace}),
    "kernel_density": _Model(kde.kde_family, {"replace": _kde_replace}),
    "regression": _Model(
        regression.regression_family,
        {
            "replace": _least_squares(closed_forms.ols_replace),
            "accumulate": _least_squares(closed_forms.ols_accumulate),
        },
    ),
}
