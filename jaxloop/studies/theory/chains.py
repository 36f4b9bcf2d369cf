"""Chains of any model with a simulator under any workflow: the simulated curves side by side, each
with its formula where there is one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.stats
from jax.sharding import Mesh
from matplotlib.figure import Figure

from jaxloop.data.sources import load_texts
from jaxloop.recursion.workflow import BUILDERS, Workflow
from jaxloop.reporting import figures, report
from jaxloop.simulators import family, ngram
from jaxloop.simulators.family import ArrayFamily, choose
from jaxloop.studies.theory.compare import Check, Conclusion, Experiment, Quantity
from jaxloop.studies.theory.config import ChainsConfig, TheoryConfig
from jaxloop.studies.theory.models import MODELS, NoFormulaError, formula_of

# Components of a metric that are drawn; all are in the table.
DRAWN = 4
INTERVAL = 0.95
Draw = Callable[[jax.Array, int], jax.Array]
TOGETHER = 500  # chains in one step of the program


def experiments(config: TheoryConfig, mesh: Mesh | None = None) -> list[Experiment]:
    """Return the comparisons of the workflows under which the model has a formula.

    Raises ValueError for options that the model refuses, and sets too small to be fitted.
    """
    s = config.chains
    for workflow in _workflows(s):
        family.check_sizes(model_of(s), workflow, s.generations)
    return [e for workflow in _workflows(s) for e in _compared(config, workflow, mesh)]


def conclude(config: TheoryConfig, mesh: Mesh | None, checks: Sequence[Check]) -> Conclusion:
    """Return the simulated curves, as figures and as a table."""
    s = config.chains
    parts = [
        pd.concat(rows_of(workflow.name, _simulated(config, workflow, mesh)), ignore_index=True)
        for workflow in _workflows(s)
    ]
    table = pd.concat(parts, ignore_index=True)
    note = (
        f"{s.replicates:,} chains of a {s.model} model under every workflow, {s.size:,} items a "
        f"generation: means with {INTERVAL:.0%} intervals of the mean (Student's t)."
    )
    return Conclusion((), (report.Section("Simulated", note, _drawings(table)),), {"chains": table})


def counted(section: ChainsConfig) -> str:
    """Return in words what is simulated beside the comparisons."""
    s = section
    return (
        f"{s.replicates:,} chains of {s.generations + 1} generations under each of "
        f"{', '.join(s.workflows)}"
    )


# ---- the model and its workflows


# One family object per section: programs are compiled once per object.
@lru_cache(maxsize=2)
def model_of(section: ChainsConfig) -> ArrayFamily:
    """Return the model of a section, with an external source where a workflow has one."""
    model = MODELS[section.model].build(**_options(section))
    if "external" not in section.workflows:
        return model
    return model._replace(outside=_outside(section, model))


@lru_cache(maxsize=2)
def _options(section: ChainsConfig) -> Mapping[str, Any]:
    """Options of the model's builder."""
    s = section
    if s.model == "gmm":
        means = np.zeros((len(s.centres), s.dim))
        means[:, 0] = s.centres
        return {"means": means, "sds": s.sd}
    if s.model == "categorical":
        return {"probabilities": s.probabilities, "smoothing": s.smoothing}
    if s.model == "ngram":
        tokens, _ = _encoded(s, "text")
        names = ("order", "length", "smoothing", "symbols")
        return {"tokens": tokens, **{name: getattr(s, name) for name in names}}
    own = ("unbiased",) if s.model == "gaussian" else ("bandwidth", "kernel")
    return {name: getattr(s, name) for name in ("dim", "sd", *own)}


def _encoded(
    section: ChainsConfig, field: str, alphabet: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """The symbols of the text that a field names, and their alphabet. Raises ValueError where it
    cannot be read.
    """
    source = getattr(section, field)
    try:
        texts = load_texts(source)["text"].tolist()
    except ValueError as error:
        # The reader knows the fields of a chain study.
        reason = str(error).removeprefix(f"data.source = '{source}': ")
        reason = reason.replace("data.text_column = 'text': ", "a column 'text' is needed; ")
        raise ValueError(f"config.chains.{field} = '{source}': {reason}") from None
    return ngram.encode(texts, symbols=section.symbols, alphabet=alphabet)


def _outside(section: ChainsConfig, model: ArrayFamily) -> Draw:
    """The external source: other text, all categories alike, or the real source moved."""
    if section.model == "ngram":
        _, alphabet = _encoded(section, "text")
        tokens, _ = _encoded(section, "external_text", alphabet)
        return ngram.ngram_family(**{**_options(section), "tokens": tokens}).draw

    def alike(key: jax.Array, n: int) -> jax.Array:
        return choose(key, jnp.ones(len(section.probabilities), jnp.result_type(float)), n)

    def moved(key: jax.Array, n: int) -> jax.Array:
        return model.draw(key, n) + section.shift

    return alike if section.model == "categorical" else moved


def _workflows(section: ChainsConfig) -> list[Workflow]:
    s = section
    needs: Mapping[str, tuple[float, ...]] = {
        "fresh_human": (s.ratio,),
        "preserve": (s.share,),
        "window": (s.window,),
        "external": (s.share,),
    }
    mixed = {"ratio": s.ratio}
    more: Mapping[str, Mapping[str, Any]] = {"window": mixed, "external": mixed}
    return [
        BUILDERS[name](s.size, *needs.get(name, ()), **more.get(name, {})) for name in s.workflows
    ]


# ---- what is simulated


def _drawn(
    config: TheoryConfig, workflow: Workflow, mesh: Mesh | None, seed: int
) -> dict[str, np.ndarray]:
    """Metrics {name: [R, T+1, components]} of a batch."""
    s = config.chains
    out = family.run(
        model_of(s),
        workflow,
        generations=s.generations,
        replicates=s.batch,
        seed=seed,
        mesh=mesh,
        batch_size=min(s.batch, TOGETHER),
    )
    return {name: x.reshape(*x.shape[:2], -1) for name, x in out.items()}


def _compared(config: TheoryConfig, workflow: Workflow, mesh: Mesh | None) -> list[Experiment]:
    """The experiment of a workflow, or none where nothing has a formula under it."""
    s = config.chains
    try:
        values = formula_of(s.model, workflow, s.generations, _options(s))
    except NoFormulaError:
        return []
    at = np.arange(s.generations + 1)
    quantities = [
        Quantity.of(f"{statistic} of {metric}".capitalize(), at, series, line=workflow.name)
        for (metric, statistic), series in values.items()
    ]

    def draw(seed: int) -> list[np.ndarray]:
        out = _drawn(config, workflow, mesh, seed)
        # Every component of a metric has the formula. What has a variance is 0 in the real source.
        return [
            (out[metric] ** (2 if statistic == "variance" else 1)).mean(2)
            for metric, statistic in values
        ]

    return [Experiment(workflow.name, tuple(quantities), draw)]


def _simulated(
    config: TheoryConfig, workflow: Workflow, mesh: Mesh | None
) -> dict[str, np.ndarray]:
    """Metrics {name: [R, T+1, components]} of all replicates."""
    s = config.chains
    parts = [
        _drawn(config, workflow, mesh, config.seed * s.replicates + i)
        for i in range(-(-s.replicates // s.batch))
    ]
    return {name: np.concatenate([p[name] for p in parts])[: s.replicates] for name in parts[0]}


def rows_of(workflow: str, metrics: Mapping[str, np.ndarray]) -> list[pd.DataFrame]:
    """Return one row per metric, component and generation of metrics {name: [R, T+1, components]};
    what is not finite is left out of the means, and counted.
    """
    tables = []
    for metric, values in metrics.items():
        finite = np.isfinite(values)
        count = finite.sum(0)
        kept = np.where(finite, values, 0)
        mean = np.where(count > 0, kept.sum(0) / np.maximum(count, 1), np.nan)
        square = (np.where(finite, values - mean[None], 0) ** 2).sum(0)
        se = np.where(count > 1, np.sqrt(square / np.maximum(count - 1, 1) / count.clip(1)), np.nan)
        half = scipy.stats.t.ppf((1 + INTERVAL) / 2, np.maximum(count - 1, 1)) * se
        generation, component = np.indices(mean.shape)
        columns = {
            "workflow": workflow,
            "metric": metric,
            "component": component,
            "generation": generation,
            "mean": mean,
            "se": se,
            "low": mean - half,
            "high": mean + half,
            "replicates": count,
            "infinite": len(values) - count,
        }
        flat = {k: v.T.reshape(-1) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
        tables.append(pd.DataFrame(flat))
    return tables


# ---- figures


def _drawings(table: pd.DataFrame) -> list[report.Drawing]:
    drawings = []
    for _, rows in table.groupby(["metric", "component"], sort=False):
        metric, component = str(rows["metric"].iloc[0]), int(rows["component"].iloc[0])
        if component >= DRAWN:
            continue
        several = (table.loc[table["metric"] == metric, "component"] > 0).any()
        title = f"{metric} {component + 1}" if several else metric
        infinite = int(rows["infinite"].max())
        note = f"up to {infinite:,} chains have no finite value and are left out" * bool(infinite)
        drawings.append(report.Drawing(title, note, _figure(rows)))
    return drawings


def _figure(rows: pd.DataFrame) -> Figure:
    names = list(dict.fromkeys(rows["workflow"]))
    with figures.style():
        drawing, axes = figures.panels(1, 1, panel=(4.2, 3.2))
        for name, (colour, _) in zip(names, figures.palette(len(names)), strict=True):
            curve = rows[rows["workflow"] == name]
            at, mean, low, high = (
                curve[column].to_numpy(float) for column in ("generation", "mean", "low", "high")
            )
            axes[0, 0].fill_between(at, low, high, color=colour, alpha=0.25, linewidth=0)
            axes[0, 0].plot(at, mean, color=colour, linewidth=1.4, label=name)
        axes[0, 0].set_xlabel("generation")
        if len(names) > 1:
            axes[0, 0].legend(frameon=False, fontsize=8)
        return drawing
