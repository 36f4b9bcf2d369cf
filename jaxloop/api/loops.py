"""The generation loop with a model of your own: two functions, any workflow."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxloop import studies
from jaxloop.api.models import check_texts
from jaxloop.api.runs import PathLike, RunResult
from jaxloop.core.checks import check_whole
from jaxloop.core.keys import random_bits
from jaxloop.lm.model.lora import Adapter, from_tree, to_tree
from jaxloop.recursion import driver
from jaxloop.recursion.chains import ChainSpec, chain_id
from jaxloop.recursion.family import (
    FamilyFunctions,
    FitResult,
    FitTask,
    GenerateResult,
    GenerateTask,
    ModelOutput,
)
from jaxloop.recursion.run import Measure, RunSettings
from jaxloop.recursion.selection import FEATURE_OF
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import Workflow
from jaxloop.runtime.workdir import open_workdir

# Items are texts, or rows of an array.
Items = np.ndarray | Sequence[str]
# A model's weights: nested dicts of arrays, or an adapter.
State = Any
BASE = "model"


@dataclass(frozen=True)
class _Nothing:
    """The settings of a family that has none."""


def loop(
    fit: Callable[..., State],
    sample: Callable[[State, int, int], Items],
    data: Items,
    workflow: Workflow | Mapping[str, Workflow],
    *,
    generations: int,
    workdir: PathLike,
    seeds: Sequence[int] = (0,),
    measure: Callable[[Items], Mapping[str, float]] | None = None,
    external: Items | None = None,
    public: Items | None = None,
    eval_items: int = 0,
    keep: int | None = 2,
    progress: bool = False,
) -> RunResult:
    """Train a model of your own on what its predecessors generated.

    A normal distribution that forgets its spread:

    Examples:
        >>> import jaxloop, numpy as np, tempfile
        >>> def fit(items, seed):
        ...     return {"mean": items.mean(0), "sd": items.std(0)}
        >>> def sample(state, count, seed):
        ...     draws = np.random.default_rng(seed).normal(size=(count, len(state["sd"])))
        ...     return state["mean"] + state["sd"] * draws
        >>> data = np.random.default_rng(0).normal(size=(50, 1))
        >>> result = jaxloop.loop(
        ...     fit, sample, data, jaxloop.workflows.replace(50), generations=5,
        ...     measure=lambda items: {"sd": items.std()}, workdir=tempfile.mkdtemp() + "/run",
        ... )
        >>> len(result.metrics)
        5

    Args:
        fit: fit(items, seed) -> the model's weights, nested dicts of arrays or the adapter that
            `finetune` returned, which are what is saved; fit(items, seed, start) under a workflow
            with start="previous", where `start` is None at first. Items are an array [n, ...] or a
            list of n texts, as in `data`.
        sample: sample(weights, count, seed) -> that many items.
        data: the real items, [n, ...] or n texts; generated items are stored in the dtype of such
            an array. `recursion.workflow.human_needed` says how many a chain needs.
        workflow: what a generation trains on, from `jaxloop.workflows`; or several by name, each
            with all seeds.
        generations: number of generations, generation 0 included.
        workdir: run directory; the same call goes on with a run that was stopped.
        seeds: one chain per workflow and seed.
        measure: measure(items) -> {metric: value} of what a model generated.
        external: items of workflow `external`'s outside source.
        public: items of workflow `exchange`'s public set.
        eval_items: least number of items that every model generates, for `measure`.
        keep: newest generations whose weights stay on disk; none: all.
        progress: show a progress bar.

    Raises:
        ValueError: too few items, items that the type of `data` cannot hold, weights that cannot be
            saved, a workflow that selects by scores, the directory is another run's, or `workdir`
            is no local one.
    """
    path = studies.place_of(workdir)
    if not isinstance(path, Path):
        raise ValueError(f"workdir={path}: a loop of your own writes to a local directory")
    seeds = [int(seed) if isinstance(seed, np.integer) else seed for seed in seeds]
    named = _named_workflows(workflow)
    eval_items = check_whole("eval_items", eval_items, 0)
    for one in named.values():
        if one.selection is not None and FEATURE_OF[one.selection.policy] is not None:
            raise ValueError(
                f"selection.policy={one.selection.policy!r}: a loop of your own has no scores to "
                "select by; write more in `sample` and return the best"
            )
    shape = None if _are_texts(data) else np.asarray(data).shape[1:]
    dtype = None if shape is None else np.asarray(data).dtype
    codec = _Codec(shape, dtype)
    sources = {"data": data, "external": external, "public": public}
    datasets = {
        name: Dataset(codec.encode(items, name))
        for name, items in sources.items()
        if items is not None
    }
    chains = [_chain(name, w, seed, datasets) for name, w in named.items() for seed in seeds]
    family: FamilyFunctions[str, _Nothing, _Nothing] = FamilyFunctions(
        lambda base: base,
        lambda model, tasks, settings: [_fit(fit, codec, task, named) for task in tasks],
        lambda model, tasks, settings: [_generate(sample, codec, task) for task in tasks],
    )
    settings = RunSettings(
        generations=generations,
        fit=_Nothing(),
        sample=_Nothing(),
        evaluate=eval_items,
        keep=keep,
        study="loop",
    )
    # Before the directory is made: a refused call would else leave it to another config.
    driver.check(chains, datasets, settings)
    stored = {
        "study": "loop",
        "generations": settings.generations,
        "workflows": {name: json.loads(json.dumps(asdict(w))) for name, w in named.items()},
        "seeds": list(seeds),
        "eval_items": eval_items,
        "keep": settings.keep,
        "data": {name: _digest(dataset.texts) for name, dataset in datasets.items()},
    }
    with open_workdir(
        path, stored, may_change=("keep",), may_raise=("generations",), console=progress
    ) as place:
        result = driver.run(
            family,
            chains,
            datasets,
            settings,
            place.path,
            measure=None if measure is None else _measuring(measure, codec),
            progress=progress,
        )
    return RunResult(path, studies.FAILED_CHAINS if result.failed else 0)


def _named_workflows(workflow: Workflow | Mapping[str, Workflow]) -> dict[str, Workflow]:
    named = {"": workflow} if isinstance(workflow, Workflow) else workflow
    if not isinstance(named, Mapping) or not all(isinstance(w, Workflow) for w in named.values()):
        raise ValueError(
            f"workflow={workflow!r}: must be one of jaxloop.workflows, such as "
            "jaxloop.workflows.replace(100), or several by name"
        )
    return dict(named)


def _chain(name: str, workflow: Workflow, seed: int, datasets: Mapping[str, Dataset]) -> ChainSpec:
    factors: dict[str, object] = {"workflow": name} if name else {}
    factors["seed"] = seed
    return ChainSpec(
        id=chain_id(factors),
        workflow=workflow,
        dataset="data",
        seed=seed,
        bases=(BASE,),
        factors=tuple(sorted(factors.items())),
        public="public" if "public" in datasets else None,
        external="external" if "external" in datasets else None,
    )


@dataclass(frozen=True)
class _Codec:
    """How items are stored as texts: texts as they are, rows of an array as JSON, without loss.

    Attributes:
        shape: of a row; None: items are texts.
        dtype: of a row.
    """

    shape: tuple[int, ...] | None
    dtype: np.dtype | None

    def encode(self, items: Items, name: str) -> list[str]:
        """Return items as texts.

        Raises:
            ValueError: items of another kind, or that the data's type cannot hold.
        """
        if self.shape is None:
            return check_texts(items, name)  # type: ignore[arg-type]  # refused unless texts
        rows = np.asarray(items)
        if rows.shape[1:] != self.shape or not np.issubdtype(rows.dtype, np.number):
            raise ValueError(
                f"{name}: has items of shape {rows.shape[1:]} and type {rows.dtype}; those of "
                f"data have shape {self.shape} and are numbers"
            )
        with np.errstate(invalid="ignore"):
            stored = rows.astype(self.dtype)
        if stored.dtype.kind in "iu" and not np.array_equal(stored, rows):
            raise ValueError(
                f"{name}: has numbers that the type of data, {self.dtype}, cannot hold; give data "
                "as another type, such as data.astype(float)"
            )
        return [json.dumps(row) for row in stored.tolist()]

    def decode(self, texts: Sequence[str]) -> Items:
        """Return the items that `encode` made these texts of."""
        if self.shape is None:
            return list(texts)
        rows = [json.loads(text) for text in texts]
        return np.asarray(rows, self.dtype).reshape(len(rows), *self.shape)


def _are_texts(items: Items) -> bool:
    return not isinstance(items, np.ndarray) and len(items) > 0 and isinstance(items[0], str)


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _seed(key: jax.Array) -> int:
    return int(random_bits(key, 1)[0])


def _fit(
    fit: Callable[..., State], codec: _Codec, task: FitTask, named: Mapping[str, Workflow]
) -> FitResult:
    looks_back = any(workflow.start == "previous" for workflow in named.values())
    start = (from_tree(task.start),) if looks_back else ()
    state = fit(codec.decode(task.texts), _seed(task.key), *start)
    try:
        finite = all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(state))
    except TypeError:
        raise ValueError(
            f"fit(...): returned a {type(state).__name__} that holds more than numbers; return "
            "nested dicts of arrays (of a model, its `params`), or an adapter"
        ) from None
    # The type of an adapter would be lost on the disk.
    weights = to_tree(state) if isinstance(state, Adapter) else state
    return FitResult(weights, 1, len(task.texts), np.zeros(1, np.float32), finite)


def _generate(
    sample: Callable[[State, int, int], Items], codec: _Codec, task: GenerateTask
) -> GenerateResult:
    count = len(task.rows)
    texts = codec.encode(sample(from_tree(task.weights), count, _seed(task.key)), "sample(...)")
    if len(texts) != count:
        raise ValueError(f"sample(...): returned {len(texts)} items, {count} were asked for")
    return GenerateResult(texts, np.ones(count, np.int64), np.ones(count, bool))


def _measuring(measure: Callable[[Items], Mapping[str, float]], codec: _Codec) -> Measure:
    def measured(
        model: Any, generation: int, outputs: Sequence[ModelOutput], /
    ) -> dict[tuple[str, int], dict[str, float]]:
        values = {}
        for output in outputs:
            found = measure(codec.decode(output.texts))
            values[output.chain.id, output.entity] = {k: float(v) for k, v in found.items()}
        return values

    return measured
