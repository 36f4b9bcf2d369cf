"""Models whose recursive training has a formula: the simulation and the formula, as tables.

Both tables can be laid side by side: the mean and the variance over the replicates of a simulation
estimate the rows "mean" and "variance" of the formula.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxloop.config.messages import suggestion
from jaxloop.core.checks import check_whole
from jaxloop.recursion.workflow import Workflow
from jaxloop.simulators import family as array_family
from jaxloop.simulators import linear
from jaxloop.simulators.family import ArrayFamily
from jaxloop.studies.theory.models import MODELS, Model, formula_of

LINEAR = "linear"


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
        model: "gaussian", "categorical", "coin", "poisson", "kernel_density", "gmm", "ngram",
            "regression", or a family of your own (`jaxloop.simulators.family.ArrayFamily`);
            "linear" for K entities with linear models that train on each other (arXiv 2505.21677).
        workflow: what a generation trains on, from `jaxloop.workflows`; "linear" has none.
        generations: how many follow generation 0.
        replicates: chains that differ in their draws.
        seed: of the draws.
        options: of the model, by name; `jaxloop.simulators` says what they mean.
            "gaussian": dim, mean, sd, unbiased; "categorical": probabilities, smoothing, bias;
            "coin": p; "poisson": rate; "kernel_density": dim, bandwidth, kernel, sd, centres,
            heldout; "gmm": means, weights, sds, iterations, ridge; "ngram": tokens, order, length,
            smoothing, symbols; "regression": coefficients, sigma, design; "linear": designs, theta,
            alpha, beta, sigma2, mixing, joins, batch_size, mesh, dtype.

    Returns:
        One row per replicate, generation, entity, metric and component of the metric.

    Raises:
        ValueError: there is no such model, the workflow is missing, or an option is wrong.
    """
    if _is_linear(model):
        _no_workflow(workflow)
        _check_options(linear.simulate, LINEAR, options)
        values = linear.simulate(
            generations=generations, replicates=replicates, seed=seed, **options
        )
        return _long({"theta": values}, entities=values.shape[2])
    chosen = _needed(workflow, model)
    out = array_family.run(
        _family(model, options),
        chosen,
        generations=generations,
        replicates=replicates,
        seed=seed,
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
        model: as of `simulate`, and so are `workflow`, `generations` and `options`, but for
            "linear", which has `form` in the place of the last three.

    Returns:
        One row per generation, entity, metric and statistic: "mean" and "variance" are those over
        the draws of all data. Of "linear" the metrics are `mse` and `relative_efficiency`.

    Raises:
        ValueError: as `simulate`, or there is no formula for the model under the workflow.
    """
    if _is_linear(model):
        _no_workflow(workflow)
        _check_options(linear.closed_form, LINEAR, options)
        moments = linear.closed_form(generations=generations, **options)
        return _of_entities(
            {
                ("mse", "mean"): moments.mse,
                ("relative_efficiency", "value"): moments.relative_efficiency,
            }
        )
    chosen = _needed(workflow, model)
    if chosen.name in _named(model).formulas:
        # The formulas read some options only: the model itself refuses what makes no sense.
        generations = check_whole("generations", generations)
        array_family.check_sizes(_family(model, options), chosen, generations)
    values = formula_of(model, chosen, generations, options)
    return _of_entities({name: series[:, None] for name, series in values.items()})


def _is_linear(model: object) -> bool:
    return isinstance(model, str) and model == LINEAR


def _family(model: str | ArrayFamily, options: Mapping[str, Any]) -> ArrayFamily:
    """The model with its options. Raises ValueError where it has no such options."""
    if isinstance(model, ArrayFamily):
        if options:
            raise ValueError(
                f"{next(iter(options))}: is no argument of simulate; a model of your own has its "
                "options already"
            )
        return model
    build = _named(model).build
    _check_options(build, model, options)
    return build(**options)


def _check_options(function: Callable[..., Any], model: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the function of a model does not have, and those that are missing."""
    known = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in ("generations", "replicates", "seed")
    }
    for name in options:
        if name not in known:
            raise ValueError(
                f"{name}: is no argument and no option of model {model!r}; "
                f"{suggestion(name, known)}"
            )
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in options:
            raise ValueError(f"{name}: is missing; model {model!r} needs it")


def _named(model: object) -> Model:
    if not isinstance(model, str):
        raise ValueError(
            f"model: is of type {type(model).__name__}; must be a name, or for `simulate` an "
            "ArrayFamily"
        )
    if model not in MODELS:
        raise ValueError(f"model={model!r}: is not known; {suggestion(model, [*MODELS, LINEAR])}")
    return MODELS[model]


def _needed(workflow: Workflow | None, model: object) -> Workflow:
    if workflow is None:
        raise ValueError(
            f"workflow: is missing; model {model!r} needs one, such as "
            "jaxloop.workflows.replace(100)"
        )
    if not isinstance(workflow, Workflow):
        raise ValueError(
            f"workflow: is of type {type(workflow).__name__}; must be one of jaxloop.workflows, "
            "such as jaxloop.workflows.replace(100)"
        )
    return workflow


def _no_workflow(workflow: Workflow | None) -> None:
    if workflow is not None:
        raise ValueError(
            f"workflow={getattr(workflow, 'name', workflow)}: model 'linear' takes none; alpha, "
            "beta and mixing say what its entities train on"
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
