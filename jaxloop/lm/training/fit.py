"""Fits many chains of one base: which of them share a program, how it is called, what comes back.

Dimensions: C chains, S steps of a call, B rows of a chain, T tokens, n texts.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxloop.config.sections import FitConfig, LoraConfig
from jaxloop.core.keys import fold_each, stack_keys
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import init
from jaxloop.lm.sharding import devices_of, mesh_of, programs_on
from jaxloop.lm.target import target_of
from jaxloop.lm.training import autotune, batching, gradient_constraint
from jaxloop.lm.training.gradient_constraint import Brake, GradientConstraint
from jaxloop.lm.training.step import (
    StepArrays,
    TrainOptions,
    TrainState,
    has_own_dropout,
    init_state,
    run_steps,
)
from jaxloop.recursion.family import FitResult, FitTask
from jaxloop.runtime.devices import run_concurrently
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.memory import halve_after_out_of_memory, is_out_of_memory


@dataclass(frozen=True)
class _ChainBatches:
    """What one chain trains on."""

    task: FitTask
    examples: batching.Examples
    batches: list[batching.StepBatch]
    text_weights: np.ndarray  # [n]
    special: int  # texts or prompts with the name of a special token

    @property
    def signature(self) -> tuple:
        """The shapes of all batches. Chains of one signature can share a program."""
        return tuple((batch.seq_len, batch.rows.shape) for batch in self.batches)

    @property
    def num_steps(self) -> int:
        return sum(batch.num_steps for batch in self.batches)


@dataclass(frozen=True, eq=False)
class _Setting:
    """What all programs of a fit share."""

    model: Model
    fit: FitConfig
    options: TrainOptions
    direction: Any
    mesh: Mesh | None


def fit(
    model: Model,
    tasks: Sequence[FitTask],
    fit: FitConfig,
    options: TrainOptions = TrainOptions(),
    *,
    direction: Any = None,
) -> list[FitResult]:
    """Train every task from its `start`, or from the base.

    A task without `start` begins with a fresh adapter (mode "lora"), with the base's weights
    ("full") or with random weights ("scratch").

    Chains whose batches have the same shapes run in one program, `options.chains_per_program` at a
    time. On a CPU several such programs run at the same time. What a chain gets depends on its own
    task alone as long as the compiled shapes are the same; these come from the settings.

    Args:
        model: the base model.
        tasks: one per chain.
        fit: how they are trained.
        options: everything else about the training.
        direction: what `options.constraint` refers to, a tree like one chain's weights.

    Returns:
        One result per task, whose weights are NumPy arrays in float32.

    Raises:
        ValueError: a task without texts, texts and prompts of different numbers, weights that are
            not one per text, a max_length beyond the model's context, texts without a token to
            learn, adapters in a wider number format than the base, an adapter to go on from of
            other settings, or a direction without a constraint or a constraint without a
            direction.
    """
    _check(model, fit, options, direction)
    chains = [_prepare(model, task, fit, options) for task in tasks]
    if not chains:
        return []
    if fit.warmup_steps and any(chain.num_steps == 1 for chain in chains):
        LOGGER.warning(
            "fit.warmup_steps = %d with a single update: its learning rate is 0 and nothing is "
            "learned; set it to 0, or train for more steps",
            fit.warmup_steps,
        )
    by_signature: dict[tuple, list[int]] = {}
    for i, chain in enumerate(chains):
        by_signature.setdefault(chain.signature, []).append(i)
    mesh = mesh_of(model)
    setting = _Setting(model, fit, options, lora.plain_weights(direction), mesh)
    num_devices = 1 if mesh is None else mesh.size
    size = options.chains_per_program or _choose_size(setting, chains)
    results: dict[int, FitResult] = {}
    adapter_config = fit.lora if fit.mode == "lora" else None
    while len(results) < len(tasks):
        groups = _split_unfinished(by_signature, results, size * num_devices)
        start = functools.partial(_start_group, setting, chains, size * num_devices)
        take = functools.partial(_take_group, chains, results, adapter_config)
        try:
            run_concurrently(start, take, groups, programs_on(model))
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            size = halve_after_out_of_memory(
                error,
                size,
                "run.chains_per_program",
                "lower fit.batch_size or fit.max_length, or set fit.remat=true",
            )
    return [results[i] for i in range(len(tasks))]


def _check(model: Model, fit: FitConfig, options: TrainOptions, direction: Any) -> None:
    context = model.config.max_seq_len
    # With the default length a smaller context is no mistake: texts are cut to it silently.
    if fit.max_length > context and fit.max_length != FitConfig().max_length:
        raise ValueError(
            f"fit.max_length: {fit.max_length} tokens exceed the context of "
            f"{model.name or model.config.architecture}, {context}"
        )
    if has_own_dropout(fit) and model.config.dropout.layers > 0:
        raise ValueError(
            f"fit.dropout: {fit.dropout} is not allowed for {model.name or 'a model'} whose "
            f"config.json has layerdrop = {model.config.dropout.layers}, which is not computed; "
            "'none' is"
        )
    if (direction is None) != (options.constraint is None):
        raise ValueError(
            "fit.constraint: a constraint and a direction belong together; one of them is missing"
        )
    if isinstance(options.constraint, GradientConstraint) and fit.dtype != "float32":
        raise ValueError(
            f"fit.dtype: {fit.dtype} is not allowed with a constraint, whose gradient needs float32"
        )
    if fit.mode == "lora":
        if options.optimizer != "adamw":
            raise ValueError(
                f"optimizer: {options.optimizer!r} is not allowed in mode 'lora'; adapters are "
                "trained by 'adamw'"
            )
        lora.check_dtype(model.params, fit.dtype)


def _prepare(model: Model, task: FitTask, fit: FitConfig, options: TrainOptions) -> _ChainBatches:
    n = len(task.texts)
    if n == 0:
        raise ValueError(
            "fit: a chain has no texts to train on; every generation needs at least one"
        )
    if len(task.prompts) != n:
        raise ValueError(
            f"fit: {len(task.prompts)} prompts for {n} texts; one prompt per text is needed"
        )
    text_weights = np.ones(n, np.float32)
    if task.sample_weights is not None:
        text_weights = np.asarray(task.sample_weights, np.float32)
    fine = text_weights.shape == (n,) and np.isfinite(text_weights).all()
    if not fine or (text_weights < 0).any():
        raise ValueError(
            f"fit.sample_weights: shape {text_weights.shape} for {n} texts; one finite weight of "
            "at least 0 per text is needed"
        )
    limit = min(fit.max_length, model.config.max_seq_len)
    examples = batching.encode_examples(
        model.tokenizer,
        task.texts,
        task.prompts,
        max_length=limit,
        completion_only=fit.completion_only,
    )
    if (np.maximum(examples.prompt, 1) >= examples.lengths).all():
        raise ValueError(
            f"fit.max_length: {limit} tokens leave none of a text to learn after its prompt, in "
            f"all {n} texts of a chain; raise it or shorten the prompts"
        )
    rng = np.random.default_rng(np.asarray(jax.random.key_data(task.key)).tolist())
    batches = batching.plan_batches(
        examples.lengths,
        rng,
        batch_size=fit.batch_size,
        steps=fit.steps,
        epochs=1.0 if fit.epochs is None else fit.epochs,
        length_buckets=fit.length_buckets,
        steps_per_call=options.steps_per_call,
        limit=limit,
    )
    in_text = model.tokenizer.names_special(task.texts)
    in_prompt = model.tokenizer.names_special(task.prompts)
    special = sum(a or b for a, b in zip(in_text, in_prompt, strict=True))
    return _ChainBatches(task, examples, batches, text_weights, special)


def _choose_size(setting: _Setting, chains: Sequence[_ChainBatches]) -> int:
    """Chains of one program on one device, for the longest fit."""
    seq_len = max(batch.seq_len for chain in chains for batch in chain.batches)
    steps = max(chain.num_steps for chain in chains)
    return autotune.choose(setting.model, setting.fit, setting.options, seq_len, steps, len(chains))


def _split_unfinished(
    by_signature: dict[tuple, list[int]], results: dict[int, FitResult], size: int
) -> list[list[int]]:
    """Chains without a result, in groups of one signature and of at most `size`."""
    groups = []
    for chains in by_signature.values():
        left = [i for i in chains if i not in results]
        groups += [left[at : at + size] for at in range(0, len(left), size)]
    return groups


def _start_group(
    setting: _Setting, chains: Sequence[_ChainBatches], size: int, group: Sequence[int]
) -> tuple[Any, list[jax.Array]]:
    """Start training a group of chains, padded to `size` with repeats of its first.

    Returns the weights [size, ...] and the losses [S, size] of every call, which may still be
    being computed.
    """
    filled = [*group, *[group[0]] * (size - len(group))]
    chains_C = [chains[i] for i in filled]
    model, fit, options, mesh = setting.model, setting.fit, setting.options, setting.mesh
    state = _first_state(setting, [chain.task for chain in chains_C])
    base = model.params if fit.mode == "lora" else None
    target = target_of(model.config, model.params, mesh)
    total = np.int32(chains_C[0].num_steps)
    losses = []
    for call in range(len(chains_C[0].batches)):
        state, loss_SC = run_steps(
            model.config,
            fit,
            options,
            base,
            state,
            _step_arrays(setting, chains_C, call),
            np.int32(chains_C[0].batches[call].num_steps),
            total,
            mesh=mesh,
            direction=setting.direction,
            target=target,
        )
        losses.append(loss_SC)
    return state.weights, losses


def _first_state(setting: _Setting, tasks_C: Sequence[FitTask]) -> TrainState:
    """Weights to start from and a fresh optimiser, on the devices that hold the base."""
    keys_C = stack_keys([task.key for task in tasks_C])
    weights = _first_weights(setting, tasks_C, keys_C)
    if setting.direction is not None:
        one_chain = jax.tree.map(lambda leaf: leaf[0], weights)
        gradient_constraint.check(setting.direction, one_chain)
    state = init_state(setting.fit, setting.options, weights, keys_C)
    if isinstance(setting.options.constraint, Brake):
        state = state.replace(component=_first_components(setting, tasks_C, weights))
    if setting.mesh is not None:
        return jax.device_put(state, NamedSharding(setting.mesh, PartitionSpec(AXIS)))
    devices = devices_of(setting.model)
    if len(devices) == 1:
        # Weights from the base are committed to a device, fresh ones and those of an earlier
        # generation are not: jit would compile the same steps twice.
        return jax.device_put(state, next(iter(devices)))
    return state


def _first_components(setting: _Setting, tasks_C: Sequence[FitTask], weights: Any) -> jax.Array:
    """How far the weights [C, ...] lie from the base's along the direction, float32 [C]."""
    adapted, base = setting.fit.mode == "lora", setting.model.params
    components = []
    for c, task in enumerate(tasks_C):
        if setting.fit.mode == "full" and task.start is None:
            components.append(0.0)
            continue
        one = jax.tree.map(functools.partial(_of_chain, c), jax.device_get(weights))
        reference = jax.tree.map(np.zeros_like, one) if adapted else base
        components.append(gradient_constraint.component(one, reference, setting.direction))
    return jnp.asarray(np.array(components, np.float32))


def _first_weights(setting: _Setting, tasks_C: Sequence[FitTask], keys_C: jax.Array) -> Any:
    """Weights [C, ...] to start from, float32."""
    config, fit = setting.model.config, setting.fit
    fresh_keys_C = fold_each(keys_C, np.uint32(0))
    starts = [task.start for task in tasks_C]
    if fit.mode == "lora":
        fresh = lora.init(fresh_keys_C, config, fit.lora).weights
        if all(start is None for start in starts):
            return fresh
        targets = lora.target_names(config, fit.lora)
        # Adapters are small: stacked on the host they need no program.
        fresh = jax.device_get(fresh)
        each = [
            lora.split(fresh, c)
            if start is None
            else _weights_to_go_on_from(start, fit.lora, targets)
            for c, start in enumerate(starts)
        ]
        return jax.tree.map(_stack_on_host, *each)
    if fit.mode == "full":
        each = [setting.model.params if start is None else start for start in starts]
    else:
        each = [init(fresh_keys_C[c], config) if s is None else s for c, s in enumerate(starts)]
    return jax.tree.map(_stack_on_device, *each)


def _weights_to_go_on_from(
    start: Mapping[str, Any], config: LoraConfig, targets: Sequence[str]
) -> dict[str, Any]:
    adapter = lora.as_adapter(start, config)
    for field in ("rank", "alpha"):
        old, new = getattr(adapter.config, field), getattr(config, field)
        if old != new:
            raise ValueError(
                f"fit.lora.{field}: {new} is not allowed for a chain that goes on from an adapter "
                f"of {field} {old}"
            )
    if set(adapter) != set(targets):
        raise ValueError(
            f"fit.lora.targets: {', '.join(targets)} are not allowed for a chain that goes on from "
            f"an adapter of {', '.join(adapter)}"
        )
    return adapter.weights


def _stack_on_host(*leaves):
    return jnp.asarray(np.stack([np.asarray(leaf, np.float32) for leaf in leaves]))


def _stack_on_device(*leaves):
    return jnp.stack([jnp.asarray(leaf, jnp.float32) for leaf in leaves])


def _step_arrays(setting: _Setting, chains_C: Sequence[_ChainBatches], call: int) -> StepArrays:
    """The batches of one call, of all chains."""
    steps, pad = setting.options.steps_per_call, setting.model.tokenizer.pad
    filled = [batching.fill(chain.examples, chain.batches[call], steps, pad) for chain in chains_C]
    tokens, masks = zip(*filled)
    weights_SCB = np.zeros((steps, len(chains_C), setting.fit.batch_size), np.float32)
    for c, chain in enumerate(chains_C):
        rows = chain.batches[call].rows
        of_rows = chain.text_weights[np.maximum(rows, 0)]
        weights_SCB[: len(rows), c] = np.where(rows < 0, 0, of_rows)
    return StepArrays(np.stack(tokens, 1), np.stack(masks, 1), weights_SCB)


def _take_group(
    chains: Sequence[_ChainBatches],
    results: dict[int, FitResult],
    adapter_config: LoraConfig | None,
    group: Sequence[int],
    trained: tuple[Any, list[np.ndarray]],
) -> None:
    """Add the weights and losses of a group, now on the host, to the results of its chains."""
    weights, losses = trained
    batches = chains[group[0]].batches
    loss_SC = np.concatenate(
        [loss[: batch.num_steps] for loss, batch in zip(losses, batches, strict=True)]
    )
    for c, i in enumerate(group):
        of_chain = functools.partial(_of_chain, c)
        of_one = jax.tree.map(of_chain, weights)
        if adapter_config is not None:
            of_one = lora.Adapter(of_one, adapter_config)
        results[i] = _result(chains[i], of_one, loss_SC[:, c])


def _of_chain(c: int, leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf[c])


def _result(chain: _ChainBatches, weights: Any, loss_S: np.ndarray) -> FitResult:
    rows = np.concatenate([batch.rows[batch.rows >= 0] for batch in chain.batches])
    finite = all(np.isfinite(leaf).all() for leaf in [loss_S, *jax.tree.leaves(weights)])
    return FitResult(
        weights=weights,
        steps=len(loss_S),
        tokens=int(chain.examples.lengths[rows].sum()),
        loss=loss_S,
        finite=bool(finite),
        special=chain.special,
    )
