"""The training step: many chains in one program, and many steps in one call.

The state is donated: its memory is used again for the result.

Dimensions: C chains, S steps of a call, B rows of a chain, T tokens, G groups of chains. Trainable
leaves are [C, ...]: adapters ("lora"), or every weight of each chain ("full" and "scratch").
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxloop.config.sections import FitConfig
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.model import lora as lora_adapters
from jaxloop.lm.model import split_layers
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.dropout import Dropout, keys_of_step
from jaxloop.lm.target import Target
from jaxloop.lm.training import gradient_constraint
from jaxloop.lm.training.gradient_constraint import Brake, GradientConstraint
from jaxloop.lm.training.loss import chain_losses
from jaxloop.runtime.setup_jit import fast_forms, setup_jit, understood

# A program's arguments may come from the host.
Array = jax.Array | Any


@dataclass(frozen=True)
class TrainOptions:
    """How training runs, for what a config's `fit` section does not say.

    Attributes:
        steps_per_call: most steps in one call of the program.
        chains_per_program: chains of one program on one device; None: chosen for the device.
        optimizer: "adamw", or "muon": the matrices of the layers, as they are stored (q, k and v
            side by side), by Muon, scaled so that AdamW's learning rate and weight decay fit them
            (Liu et al. 2025), everything else by AdamW; not of adapters.
        adam_betas: AdamW's decay rates.
        adam_epsilon: AdamW's epsilon.
        constraint: the paper's loss on the slope along the `direction` that `fit` is given, or a
            brake of the component along it.
    """

    steps_per_call: int = 16
    chains_per_program: int | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-8
    constraint: GradientConstraint | Brake | None = None

    def __post_init__(self) -> None:
        for name in ("steps_per_call", "chains_per_program"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not allowed; at least 1")
        if self.optimizer not in ("adamw", "muon"):
            raise ValueError(f"optimizer: {self.optimizer!r} is not allowed; 'adamw' or 'muon'")


class StepArrays(NamedTuple):
    """The batches of one call, a step of every chain at each index of S."""

    tokens: Array  # [S, C, B, T]
    mask: Array  # [S, C, B, T] tokens that the loss counts
    weights: Array  # [S, C, B] of the rows


class TrainState(struct.PyTreeNode):
    """What a step updates. Every leaf has a leading chain axis C, `step` included.

    `component` is how far the weights have moved along the direction of a brake; None: no brake.
    """

    weights: dict[str, Any]
    optimizer: optax.OptState
    key: jax.Array
    step: jax.Array
    component: jax.Array | None = None


class _Call(NamedTuple):
    """Scalars and trees that all steps and chains of a call read."""

    base: dict[str, Any] | None
    num_steps: Array  # [] steps to run
    total: Array  # [] updates of the whole fit
    direction: Any


def learning_rate(fit: FitConfig, step: jax.Array, total: Array) -> jax.Array:
    """Return the float32 learning rate of 0-based update `step` of `total`.

    The schedules are those of transformers: with one warm-up step the first rate is 0.
    """
    step, total = step.astype(jnp.float32), total.astype(jnp.float32)
    warmup = float(fit.warmup_steps)
    left = jnp.clip((total - step) / jnp.maximum(1.0, total - warmup), 0.0, 1.0)
    share = left
    if fit.schedule == "cosine":
        share = 0.5 * (1 + jnp.cos(jnp.pi * (1 - left)))
    elif fit.schedule == "constant":
        share = jnp.ones_like(left)
    return fit.learning_rate * jnp.where(step < warmup, step / max(1.0, warmup), share)


def _decayed(weights: dict[str, Any]) -> Any:
    """Which weights AdamW decays: all but biases and norms, as transformers' trainer."""
    return traverse_util.path_aware_map(_is_decayed, weights)


def _is_decayed(path: tuple[Any, ...], _: Any) -> bool:
    return not str(path[-1]).endswith(("_bias", "_scale"))


def _optimizer(fit: FitConfig, options: TrainOptions) -> optax.GradientTransformation:
    """AdamW or Muon, without its learning rate.

    The rate is applied outside, because it depends on the traced number of steps.
    """
    clip = optax.identity()
    if fit.max_grad_norm is not None:
        clip = optax.clip_by_global_norm(fit.max_grad_norm)
    decay = optax.add_decayed_weights(fit.weight_decay, mask=_decayed)
    adam = optax.scale_by_adam(*options.adam_betas, options.adam_epsilon)
    if options.optimizer == "muon":
        adam = optax.partition({"muon": _muon(), "adam": adam}, _labels)
    return optax.chain(clip, adam, decay)


# The root mean square of AdamW's updates, to which Muon's are scaled (Liu et al. 2025, 2.2).
UPDATE_RMS = 0.2


def _muon() -> optax.GradientTransformation:
    """Muon of matrices [layers, in, out], with an entry of an update as large as AdamW's.

    `optax.contrib.muon` would give all else to Adam with Nesterov's momentum.
    """
    muon = optax.contrib.scale_by_muon(weight_dimension_numbers=_matrices)
    return optax.chain(muon, optax.stateless(_as_large_as_adams))


def _matrices(weights: Any) -> Any:
    axes = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map(lambda _: axes, weights)


def _as_large_as_adams(updates: Any, _: Any) -> Any:
    """A matrix [in, out] whose singular values are 1 has the root mean square 1/sqrt(max)."""
    return jax.tree.map(lambda u: UPDATE_RMS * math.sqrt(max(u.shape[1:])) * u, updates)


def _labels(weights: dict[str, Any]) -> Any:
    return traverse_util.path_aware_map(_label, weights)


def _label(path: tuple[Any, ...], weight: Any) -> str:
    in_layer = path[0] == "layers" and weight.ndim == 3
    return "muon" if in_layer and _is_decayed(path, weight) else "adam"


def init_state(
    fit: FitConfig, options: TrainOptions, weights: dict[str, Any], keys: jax.Array
) -> TrainState:
    """Return the state before the first step.

    It has the weights, leaves [C, ...], an optimiser without history and the `keys` [C] of dropout.
    """
    return TrainState(
        weights=weights,
        optimizer=_init_optimizer(fit, options, weights),
        key=keys,
        step=jnp.asarray(np.zeros(keys.shape, np.int32)),
    )


@setup_jit(static_argnums=(0, 1))
def _init_optimizer(fit, options, weights):
    return jax.vmap(_optimizer(fit, options).init)(weights)


def has_own_dropout(fit: FitConfig) -> bool:
    """Return whether the model's own layers drop, at the rates of its config."""
    return fit.dropout == "model" or fit.dropout == "auto" and fit.mode != "lora"


def dropout_rates(config: ModelConfig, fit: FitConfig) -> dict[str, float]:
    """Return {site: rate} of all that is dropped in training, rates above 0 alone."""
    rates = config.dropout.by_site() if has_own_dropout(fit) else {}
    if fit.mode == "lora" and fit.lora.dropout > 0:
        names = lora_adapters.target_names(config, fit.lora)
        rates |= dict.fromkeys(names, fit.lora.dropout)
    return rates


@jax.named_scope("loss")
def losses(
    config: ModelConfig,
    fit: FitConfig,
    base: dict[str, Any] | None,
    weights: dict[str, Any],
    tokens_CBT: Array,
    mask_CBT: Array,
    weights_CB: Array,
    keys_C: jax.Array | None = None,
    step_C: jax.Array | None = None,
    target: Target = Target(),
) -> jax.Array:
    """Return the mean loss [C] of each chain on its batch.

    Args:
        config: config of the model.
        fit: how it is trained.
        base: the frozen weights below adapters; None in modes "full" and "scratch".
        weights: the trained weights, leaves [C, ...].
        tokens_CBT: token ids.
        mask_CBT: tokens that the loss counts.
        weights_CB: weights of the rows in the loss.
        keys_C: keys of dropout; None: no dropout.
        step_C: number of updates made so far, from which dropout is drawn.
        target: device and kernels that the program is compiled for.
    """
    rates, keys_R2 = dropout_rates(config, fit), None
    if rates and keys_C is not None and step_C is not None:
        keys_R2 = keys_of_step(keys_C, step_C, tokens_CBT.shape[1])
    if fit.mode == "lora":
        bfloat16_logits = split_layers.fits(target, fit.dtype)
        adapters = lora_adapters.Adapter(weights, fit.lora)
        layout: lora_adapters.Layout = "padded" if bfloat16_logits else "mergeable"
        return chain_losses(
            config,
            _laid_out(config, fit, target, base),
            tokens_CBT,
            mask_CBT,
            weights_CB,
            packed=lora_adapters.pack_adapters(config, adapters, fit.dtype, layout),
            dropout=None if keys_R2 is None else Dropout(rates, keys_R2),
            remat=fit.remat,
            bfloat16_logits=bfloat16_logits,
            target=target,
        )
    batch = tokens_CBT, mask_CBT, weights_CB
    return _whole_model_losses(config, fit, weights, batch, rates, keys_R2, target)


def _whole_model_losses(config, fit, weights, batch, rates, keys_R2, target):
    """`losses` of chains that train all weights: nothing is shared."""
    dtype = jnp.dtype(fit.dtype)
    cast = jax.tree.map(lambda w: w.astype(dtype), weights)

    def of_chain(weights, tokens_BT, mask_BT, weights_B, keys_B2):
        return chain_losses(
            config,
            _laid_out(config, fit, target, weights),
            tokens_BT[None],
            mask_BT[None],
            weights_B[None],
            dropout=None if keys_B2 is None else Dropout(rates, keys_B2),
            remat=fit.remat,
            target=target,
        )[0]

    chains, rows, _ = batch[0].shape
    keys_CB2 = None if keys_R2 is None else keys_R2.reshape(chains, rows, 2)
    inputs = [cast, *batch, keys_CB2]
    if chains == 1:  # a batch axis of one would turn every product into a batched one
        return of_chain(*jax.tree.map(lambda x: x[0], inputs))[None]
    return jax.vmap(of_chain)(*inputs)


def _laid_out(config, fit, target, params):
    """Parameters with their layers as the target's programs take them."""
    if (
        params is None
        or split_layers.are_laid_out(params["layers"])
        or not split_layers.fits(target, fit.dtype)
    ):
        return params
    return params | {"layers": split_layers.layers(config, params["layers"], target)}


_OF_STEPS: dict[str, Any] = dict(
    static_argnames=("config", "fit", "options", "mesh", "vmapped_chains", "target"),
    donate_argnames=("state",),
)


@functools.partial(jax.jit, **_OF_STEPS)
def train_steps(
    config: ModelConfig,
    fit: FitConfig,
    options: TrainOptions,
    base: dict[str, Any] | None,
    state: TrainState,
    batch: StepArrays,
    count: Array,
    total: Array,
    *,
    mesh: Mesh | None = None,
    direction: Any = None,
    vmapped_chains: int | None = None,
    target: Target = Target(),
) -> tuple[TrainState, jax.Array]:
    """Run the first `count` of S steps.

    Args:
        config: config of the model.
        fit: how it is trained.
        options: everything else about the training.
        base: the frozen weights below adapters; None in modes "full" and "scratch".
        state: state of C chains; donated.
        batch: batches of S steps.
        count: number of steps to run, at most S.
        total: number of updates of the whole fit, for the schedule.
        mesh: devices along one axis "chains", over which the chains are sharded; C is a multiple
            of their number. Every device runs the program of C / devices chains and none waits for
            another.
        direction: what `options.constraint` refers to, a tree like one chain's weights.
        vmapped_chains: chains of a device that are vmapped at a time, a divisor of their number;
            such groups run one after another inside the program. None: all at once.
        target: device and kernels that the program is compiled for.

    Returns:
        The new state, and the loss [S, C] of each step before its update, nan for steps not run.
    """
    base = _laid_out(config, fit, target, base)  # once, outside the loop over steps
    steps = functools.partial(_run_steps, config, fit, options, target)
    run = functools.partial(_run_in_groups, vmapped_chains, steps)
    if mesh is not None:
        chains, later = P(AXIS), P(None, AXIS)
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(), chains, later),
            out_specs=(chains, later),
            check_vma=False,
        )
    return run(_Call(base, count, total, direction), state, batch)


_compiled_the_short_way = fast_forms(inspect.unwrap(train_steps), **_OF_STEPS)


def run_steps(*args: Any, target: Target = Target(), **kwargs: Any) -> tuple[TrainState, jax.Array]:
    """`train_steps`, on a CPU compiled with level 1 of XLA's optimisations: in 0.7 of the time.

    Steps are as fast, since products are not compiled and all else is bound by memory. Where a
    model has an activation with tanh or erf, weights differ in the last digits.
    """
    run: Any = train_steps
    # Where the compiler is told to optimise nothing, it shall.
    nothing = jax.config.values["jax_disable_most_optimizations"]
    if not nothing and understood(target.platform):
        run = _compiled_the_short_way[target.platform]
    return run(*args, target=target, **kwargs)


def _run_in_groups(
    vmapped_chains: int | None,
    run: Callable,
    call: _Call,
    state: TrainState,
    batch: StepArrays,
) -> tuple[TrainState, jax.Array]:
    """`run`, with `vmapped_chains` chains at a time."""
    chains = batch.tokens.shape[1]
    if vmapped_chains is None or vmapped_chains == chains:
        return run(call, state, batch)

    def run_group(group):
        return run(call, *group)

    state_G = jax.tree.map(functools.partial(_group_chains, 0, vmapped_chains), state)
    batch_SG = jax.tree.map(functools.partial(_group_chains, 1, vmapped_chains), batch)
    batch_G = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), batch_SG)
    state_G, log_GSC = jax.lax.map(run_group, (state_G, batch_G))
    state = jax.tree.map(lambda x: x.reshape(chains, *x.shape[2:]), state_G)
    return state, jnp.moveaxis(log_GSC, 0, 1).reshape(-1, chains)


def _group_chains(axis, size, x):
    """[..., C, ...] to [..., C / size, size, ...]."""
    return x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1 :])


def _run_steps(
    config: ModelConfig,
    fit: FitConfig,
    options: TrainOptions,
    target: Target,
    call: _Call,
    state: TrainState,
    batch: StepArrays,
) -> tuple[TrainState, jax.Array]:
    """`call.num_steps` steps of all chains together."""

    def step(i, carry):
        state, log = carry
        batch_i = StepArrays(
            *(jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) for x in batch)
        )
        state, loss_C = _step(config, fit, options, target, call, state, batch_i)
        return state, log.at[i].set(loss_C)

    log_SC = jnp.full(batch.tokens.shape[:2], jnp.nan, jnp.float32)
    return jax.lax.fori_loop(0, call.num_steps, step, (state, log_SC))


@jax.named_scope("train_step")
def _step(
    config: ModelConfig,
    fit: FitConfig,
    options: TrainOptions,
    target: Target,
    call: _Call,
    state: TrainState,
    batch: StepArrays,
) -> tuple[TrainState, jax.Array]:
    """One update of all chains, and the loss [C] of each before it."""

    def objective(weights):
        loss_C = losses(
            config,
            fit,
            call.base,
            weights,
            tokens_CBT=batch.tokens,
            mask_CBT=batch.mask,
            weights_CB=batch.weights,
            keys_C=state.key,
            step_C=state.step,
            target=target,
        )
        return loss_C.sum(), loss_C

    if not isinstance(options.constraint, GradientConstraint):
        grads, loss_C = jax.grad(objective, has_aux=True)(state.weights)
    else:
        grads, loss_C = gradient_constraint.gradient(
            objective, state.weights, call.direction, options.constraint
        )
    return _update(fit, options, state, grads, call), loss_C


@jax.named_scope("optimizer")
def _update(
    fit: FitConfig, options: TrainOptions, state: TrainState, grads: Any, call: _Call
) -> TrainState:
    update = jax.vmap(_optimizer(fit, options).update)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes float and int32 in bias correction
        updates, optimizer = update(grads, state.optimizer, state.weights)
    rate_C = learning_rate(fit, state.step, call.total)

    def descend(w, u):
        return w - rate_C.reshape((-1,) + (1,) * (u.ndim - 1)).astype(u.dtype) * u

    weights = jax.tree.map(descend, state.weights, updates)
    if isinstance(options.constraint, Brake) and state.component is not None:
        weights, component_C = gradient_constraint.hold(
            options.constraint, state.weights, weights, state.component, rate_C, call.direction
        )
        state = state.replace(component=component_C)
    return state.replace(weights=weights, optimizer=optimizer, step=state.step + 1)
