"""The language-model family: `fit`, `sample` and `loss` of many chains of one base at once.
`recursion.driver` calls nothing else of `lm`.

Weights of a chain are plain pytrees without a chain axis: an adapter ({target: {"a", "b"}}) or, in
modes "full" and "scratch", all weights. What a chain gets back depends on its own task alone as
long as the compiled shapes are the same; these come from the settings.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxloop.core.keys import fold_each, stack_keys
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation.scheduler import SampleResult, SampleSettings, SampleTask, sample
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.huggingface import load as load_model
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import init
from jaxloop.lm.sharding import cut, devices_of, like, mesh_of, programs_on, spread
from jaxloop.lm.target import target_of
from jaxloop.lm.training import autotune, batching, gradient_constraint
from jaxloop.lm.training import step as train_step
from jaxloop.lm.training.loss import row_nll
from jaxloop.lm.training.step import FitSettings
from jaxloop.runtime.devices import side_by_side
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.setup_jit import setup_jit

__all__ = [
    "FitResult",
    "FitSettings",
    "FitTask",
    "LossResult",
    "LossTask",
    "SampleResult",
    "SampleSettings",
    "SampleTask",
    "fit",
    "load",
    "loss",
    "sample",
]


class FitTask(NamedTuple):
    """What one chain trains on: texts [n] after their prompts [n]; `sample_weights` [n] or None;
    `start`: weights to go on from, or None.
    """

    key: jax.Array
    texts: Sequence[str]
    prompts: Sequence[str]
    sample_weights: np.ndarray | None = None
    start: Any = None


class FitResult(NamedTuple):
    """Trained weights (NumPy, float32), updates made, tokens read (padding not counted), loss of
    every update, whether all is finite, and how many texts or prompts hold the name of a special
    token, which was read as text.
    """

    weights: Any
    steps: int
    tokens: int
    loss: np.ndarray
    finite: bool
    special: int = 0


class LossTask(NamedTuple):
    """Texts [n] to score after their prompts [n] under `weights` (None: the base)."""

    weights: Any
    texts: Sequence[str]
    prompts: Sequence[str]


class LossResult(NamedTuple):
    """-log p in nats [n] of each text (and its EOS where it fits), how many tokens [n] that is, and
    the nats of each token: n arrays [tokens].
    """

    nats: np.ndarray
    tokens: np.ndarray
    token_nats: Sequence[np.ndarray]


def load(
    base: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
    whole: bool = True,
) -> Model:
    """The base model at a directory or hub id, on one device or, where there are several, on each
    of `devices`: chains are then shared out over them. Without `whole` it is cut over them instead,
    for a base that fits no single one.
    """
    model = load_model(base, revision=revision, dtype=jnp.dtype(dtype))
    if model.tokenizer.other_ends:
        LOGGER.info("%s: %s", base, model.tokenizer.describe_ends())
    return (
        spread(model, devices)
        if whole or devices is None or len(devices) == 1
        else cut(model, devices)
    )


@dataclass(frozen=True)
class _Work:
    """A chain's fit, prepared: its examples, dispatches and sample weights."""

    examples: batching.Examples
    dispatches: list[batching.Dispatch]
    sample: np.ndarray
    special: int

    @property
    def signature(self):
        return tuple((d.time, d.rows.shape) for d in self.dispatches)


def fit(
    model: Model, tasks: Sequence[FitTask], settings: FitSettings, *, direction=None
) -> list[FitResult]:
    """Train every task from `start`, or from the base ("lora": a fresh adapter; "scratch": random
    weights).

    Chains whose batches have the same shapes run in one program, `settings.chains_at_once` at a
    time; on a CPU several such programs run side by
    side. Raises ValueError for a task without texts, texts and prompts of different numbers,
    weights that are not one per text, and a
    max_length beyond the model's context.
    `direction`: of `settings.constraint`, a tree like a chain's weights; ValueError where one is
    given without the other.
    """
    limit = min(settings.max_length, model.spec.context)
    if settings.max_length > model.spec.context and settings.max_length != FitSettings().max_length:
        raise ValueError(
            f"fit.max_length: {settings.max_length} tokens exceed the context of "
            f"{model.name or model.spec.architecture}, {model.spec.context}"
        )
    if (direction is None) != (settings.constraint is None):
        raise ValueError(
            "fit.constraint: a constraint and a direction belong together; one of them is missing"
        )
    works = [_prepare(model, task, settings, limit) for task in tasks]
    if not works:
        return []
    groups: dict[tuple, list[int]] = {}
    for i, work in enumerate(works):
        groups.setdefault(work.signature, []).append(i)
    mesh = mesh_of(model)
    devices = 1 if mesh is None else mesh.size
    programs = programs_on(model)
    size = settings.chains_at_once or autotune.choose(model, settings, *_largest(works), len(works))
    results: dict[int, FitResult] = {}

    def start(lot):
        return _start_together(
            model,
            [tasks[i] for i in lot],
            [works[i] for i in lot],
            size * devices,
            settings,
            mesh,
            direction,
        )

    def take(lot, made):
        results.update(zip(lot, _results([works[i] for i in lot], *made), strict=True))

    while len(results) < len(tasks):
        left = [[i for i in members if i not in results] for members in groups.values()]
        lots = [
            members[at : at + size * devices]
            for members in left
            for at in range(0, len(members), size * devices)
        ]
        try:
            side_by_side(start, take, lots, programs)
        except jax.errors.JaxRuntimeError as error:
            if not autotune.is_out_of_memory(error):
                raise
            size = autotune.halved(
                error,
                size,
                "run.micro_batch",
                "lower fit.batch_size or fit.max_length, or set fit.remat=true",
            )
    return [results[i] for i in range(len(tasks))]


def _largest(works) -> tuple[int, int]:
    """(longest padded length, steps) of the longest fit."""
    return max(d.time for w in works for d in w.dispatches), max(
        sum(len(d.rows) for d in w.dispatches) for w in works
    )


def _prepare(model, task, settings, limit) -> _Work:
    n = len(task.texts)
    if n == 0:
        raise ValueError(
            "fit: a chain has no texts to train on; every generation needs at least one"
        )
    if len(task.prompts) != n:
        raise ValueError(
            f"fit: {len(task.prompts)} prompts for {n} texts; one prompt per text is needed"
        )
    sample = (
        np.ones(n, np.float32)
        if task.sample_weights is None
        else np.asarray(task.sample_weights, np.float32)
    )
    if sample.shape != (n,) or not np.isfinite(sample).all() or (sample < 0).any():
        raise ValueError(
            f"fit.sample_weights: shape {sample.shape} for {n} texts; one finite weight of at "
            "least 0 per text is needed"
        )
    examples = batching.encode_examples(
        model.tokenizer, task.texts, task.prompts, max_length=limit, loss_on=settings.loss_on
    )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key)).tolist())
    dispatches = batching.plan_dispatches(
        examples.lengths, rng, batch_size=settings.batch_size, steps=settings.steps, epochs=settings.epochs,
        classes=settings.length_classes, per_dispatch=settings.steps_per_dispatch, limit=limit,
    )  # fmt: skip
    named = model.tokenizer.names_special(task.texts), model.tokenizer.names_special(task.prompts)
    return _Work(examples, dispatches, sample, sum(a or b for a, b in zip(*named, strict=True)))


def _start_together(model, tasks, works, size, settings, mesh, direction):
    """(weights, losses of every dispatch), on their way, of one program for up to `size` chains of
    one signature; idle places repeat the first.
    """
    fill = [0] * (size - len(tasks))
    tasks_C, works_C = [*tasks, *(tasks[i] for i in fill)], [*works, *(works[i] for i in fill)]
    keys = stack_keys([t.key for t in tasks_C])
    state = train_step.init_state(settings, _initial(model, tasks_C, keys, settings), keys)
    if mesh is not None:
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec(AXIS)))
    elif len(places := devices_of(model)) == 1:
        # Weights from the base have a place, those of a generation before or fresh ones have none:
        # two compiled programs of the same steps.
        state = jax.device_put(state, next(iter(places)))
    base = model.params if settings.mode == "lora" else None
    if direction is not None:
        gradient_constraint.check(direction, jax.tree.map(lambda leaf: leaf[0], state.weights))
    total = sum(len(d.rows) for d in works[0].dispatches)
    logs = []
    steps = settings.steps_per_dispatch
    for number in range(len(works[0].dispatches)):
        parts = [
            batching.fill(w.examples, w.dispatches[number], steps, model.tokenizer.pad)
            for w in works_C
        ]
        sample = np.zeros((steps, len(works_C), settings.batch_size), np.float32)
        for c, w in enumerate(works_C):
            rows = w.dispatches[number].rows
            sample[: len(rows), c] = np.where(rows < 0, 0, w.sample[np.maximum(rows, 0)])
        batch, mask = (np.stack(x, 1) for x in zip(*parts))
        count = len(works[0].dispatches[number].rows)
        args = (state, batch, mask, sample, np.int32(count), np.int32(total), mesh, direction)
        state, log = train_step.train_steps(
            model.spec, settings, base, *args, target=target_of(model.spec, model.params, mesh)
        )
        logs.append(log)
    return state.weights, logs


def _results(works, weights, logs) -> list[FitResult]:
    """What `_start_together` made, on the host, chain by chain."""
    loss = np.concatenate(
        [log[: len(d.rows)] for log, d in zip(logs, works[0].dispatches, strict=True)]
    )
    out = []
    for c, work in enumerate(works):
        mine = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[c]), weights)  # noqa: B023
        finite = bool(np.isfinite(loss[:, c]).all()) and all(
            bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(mine)
        )
        read = np.concatenate([d.rows[d.rows >= 0] for d in work.dispatches])
        out.append(
            FitResult(
                mine,
                len(loss),
                int(work.examples.lengths[read].sum()),
                loss[:, c],
                finite,
                work.special,
            )
        )
    return out


def _initial(model, tasks, keys, settings):
    """Weights [C, ...] to start from, float32."""
    fresh = fold_each(keys, np.uint32(0))
    if settings.mode == "lora":
        if all(t.start is None for t in tasks):
            return adapters.init(fresh, model.spec, settings.lora)
        # Adapters are small: stacked on the host they need no program.
        new = jax.device_get(adapters.init(fresh, model.spec, settings.lora))
        each = [adapters.split(new, c) if t.start is None else t.start for c, t in enumerate(tasks)]
        return jax.tree.map(
            lambda *leaves: jnp.asarray(
                np.stack([np.asarray(leaf, np.float32) for leaf in leaves])
            ),
            *each,
        )
    if settings.mode == "full":
        each = [model.params if t.start is None else t.start for t in tasks]
    else:
        each = [
            init(fresh[c], model.spec) if t.start is None else t.start for c, t in enumerate(tasks)
        ]
    return jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves]), *each
    )


def loss(
    model: Model, tasks: Sequence[LossTask], settings: FitSettings, *, rows: int = 32
) -> list[LossResult]:
    """Score texts under each task's weights, with the template and truncation of training;
    `settings.loss_on` says which tokens count.
    """
    parts, known = [], {}
    limit = min(settings.max_length, model.spec.context)
    for task in tasks:
        source = (tuple(task.texts), tuple(task.prompts))
        if source not in known:
            known[source] = batching.encode_examples(
                model.tokenizer,
                task.texts,
                task.prompts,
                max_length=limit,
                loss_on=settings.loss_on,
            )
        examples = known[source]
        params, fused = place(model, task.weights, settings)
        order = np.argsort(examples.lengths, kind="stable")
        pending = []
        for at in range(0, len(order), rows):
            chosen = np.concatenate(
                [order[at : at + rows], np.full(max(0, rows - len(order[at:])), -1, np.int64)]
            )
            time = batching.bucket(int(examples.lengths[chosen[chosen >= 0]].max()), limit)
            tokens, mask = batching.fill(
                examples, batching.Dispatch(time, chosen[None]), 1, model.tokenizer.pad
            )
            pending.append(
                (
                    chosen[chosen >= 0],
                    mask[0, :, 1:],
                    _row_nll(model.spec, params, fused, tokens[0], target_of(model.spec, params)),
                )
            )
        parts.append(pending)
    return [_gathered(pending) for pending in parts]


def _gathered(pending) -> LossResult:
    """One task's losses from its batches: (texts [rows], mask [rows, T-1], nats [rows, T-1] on
    their way).
    """
    each: dict[int, np.ndarray] = {}
    for chosen, mask, nats in pending:
        value = np.asarray(nats, np.float64)
        each |= {int(text): value[row, mask[row]] for row, text in enumerate(chosen)}
    found = [each[text] for text in range(len(each))]
    return LossResult(
        np.array([x.sum() for x in found]), np.array([len(x) for x in found], np.int64), found
    )


def place(model: Model, weights, settings: FitSettings):
    """(params, fused adapters with C = 1 or None) for a chain's weights."""
    dtype = jnp.dtype(settings.dtype)
    if weights is None:
        return model.params, None
    if "embed" in weights:
        return like(model, jax.tree.map(lambda w: jnp.asarray(w).astype(dtype), weights)), None
    return model.params, _fused(model.spec, settings.lora, dtype, weights)


@setup_jit(static_argnums=(0, 1, 2))
def _fused(spec, lora, dtype, weights):
    return adapters.fuse(spec, adapters.stack([weights]), lora, dtype, summed=True)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _row_nll(spec, params, fused, tokens_BT, target):
    return row_nll(spec, params, tokens_BT, fused=fused, target=target)
