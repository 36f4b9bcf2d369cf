"""Training: many chains in one program, many steps in one dispatch, state donated.

Dimensions: C chains, S steps of a dispatch, B rows a chain, T time. Trainable leaves are [C, ...]:
adapters ("lora"), or every weight of each chain ("full" and "scratch").
"""

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util
from jax.sharding import PartitionSpec as P

from jaxloop.core.map_chains import AXIS
from jaxloop.lm.model import lean
from jaxloop.lm.model import lora as lora_adapters
from jaxloop.lm.model.config import Spec
from jaxloop.lm.model.lora import Lora
from jaxloop.lm.target import Target
from jaxloop.lm.training import gradient_constraint
from jaxloop.lm.training.loss import chain_losses
from jaxloop.runtime.setup_jit import setup_jit


@dataclass(frozen=True)
class FitSettings:
    """How a generation is trained. Defaults follow the code of the recursive-loops study (section
    1).

    mode: "lora" (adapters on a frozen base), "full" (all weights, from the base or the previous
    generation), "scratch" (all, from random). steps (if given) wins over epochs. learning_rate
    decays linearly to 0 after warmup_steps (or "cosine", "constant"), as transformers' schedules
    do. clip: global norm per chain, 0 = off. max_length in tokens, prompt and EOS included. dtype
    of the forward pass. chains_at_once: chains in one program (0 = chosen for the device);
    length_classes: padded lengths per epoch (1: batches are not sorted by length); remat: recompute
    in the gradient. constraint: a penalty on the bias projection, for a direction that `family.fit`
    is given.
    """

    mode: str = "lora"
    lora: Lora = field(default_factory=Lora)
    steps: int | None = None
    epochs: float = 1.0
    batch_size: int = 16
    learning_rate: float = 2e-4
    schedule: str = "linear"
    warmup_steps: int = 1
    weight_decay: float = 0.01
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_length: int = 256
    loss_on: str = "response"
    dtype: str = "float32"
    chains_at_once: int = 0
    steps_per_dispatch: int = 16
    length_classes: int = 4
    remat: bool = False
    constraint: gradient_constraint.Constraint | None = None

    def __post_init__(self):
        for name, allowed in dict(
            mode=("lora", "full", "scratch"),
            loss_on=("response", "all"),
            schedule=("linear", "cosine", "constant"),
            dtype=("float32", "bfloat16"),
        ).items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"fit.{name}: {getattr(self, name)!r} is not allowed; choose one of "
                    f"{', '.join(allowed)}"
                )
        for name in ("batch_size", "max_length", "steps_per_dispatch", "length_classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit.{name}: {getattr(self, name)} is not allowed; at least 1")
        if self.steps is not None and self.steps < 1 or self.epochs <= 0:
            raise ValueError(
                f"fit.steps: {self.steps} steps and {self.epochs} epochs; at least one step is "
                "needed"
            )
        if self.constraint is not None and self.dtype != "float32":
            raise ValueError(
                f"fit.dtype: {self.dtype} is not allowed with a constraint, whose gradient needs "
                "float32"
            )


@struct.dataclass
class TrainState:
    """What a step updates. Every leaf has a leading chain axis C, `step` included."""

    weights: dict
    optimizer: optax.OptState
    key: jax.Array
    step: jax.Array


def learning_rate(settings: FitSettings, step, total):
    """Learning rate of 0-based update `step` of `total`, float32; transformers' schedules (with one
    warm-up step the first rate is 0).
    """
    step, total = step.astype(jnp.float32), total.astype(jnp.float32)
    warm = float(settings.warmup_steps)
    left = jnp.clip((total - step) / jnp.maximum(1.0, total - warm), 0.0, 1.0)
    after = {
        "linear": left,
        "cosine": 0.5 * (1 + jnp.cos(jnp.pi * (1 - left))),
        "constant": jnp.ones_like(left),
    }[settings.schedule]
    return settings.learning_rate * jnp.where(step < warm, step / max(1.0, warm), after)


def _decayed(weights: dict):
    """Which weights AdamW decays: all but biases and norms, as transformers' trainer."""
    return traverse_util.path_aware_map(
        lambda path, _: not path[-1].endswith(("_bias", "_scale")), weights
    )


def _optimizer(settings: FitSettings):
    """AdamW without its learning rate: the rate is applied outside, because it depends on the
    traced number of steps.
    """
    b1, b2 = settings.betas
    return optax.chain(
        optax.clip_by_global_norm(settings.clip) if settings.clip else optax.identity(),
        optax.scale_by_adam(b1, b2, settings.epsilon),
        optax.add_decayed_weights(settings.weight_decay, mask=_decayed),
    )


def init_state(settings: FitSettings, weights: dict, keys: jax.Array) -> TrainState:
    """A fresh optimiser for weights whose leaves are [C, ...]; `keys` [C] drive dropout."""
    step = jnp.asarray(np.zeros(keys.shape, np.int32))
    return TrainState(weights=weights, optimizer=_fresh(settings, weights), key=keys, step=step)


@setup_jit(static_argnums=0)
def _fresh(settings, weights):
    return jax.vmap(_optimizer(settings).init)(weights)


def _dropout(spec: Spec, rate: float, keys_C, step_C):
    """Adapter-input dropout with one mask stream per chain."""
    number = {"qkv": 0, "o": 1, "up": 2, "down": 3}

    def apply(layer, site, x_ND):
        def one(key, step, x):
            key = jax.random.fold_in(jax.random.fold_in(key, step), layer * 4 + number[site])
            return jnp.where(
                jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x)
            )

        return jax.vmap(one)(
            keys_C, step_C, x_ND.reshape(keys_C.shape[0], -1, x_ND.shape[-1])
        ).reshape(x_ND.shape)

    return apply


def losses(
    spec: Spec,
    settings: FitSettings,
    base: dict | None,
    weights: dict,
    tokens_CBT,
    mask_CBT,
    sample_CB,
    keys=None,
    step=None,
    target: Target = Target(),
):
    """Mean loss [C] of each chain on its batch."""
    dtype = jnp.dtype(settings.dtype)
    narrow = lean.fits(target, settings.dtype)
    if settings.mode == "lora":
        fused = lora_adapters.fuse(spec, weights, settings.lora, dtype, summed=True, parts=narrow)
        rate = settings.lora.dropout
        how = dict(
            fused=fused,
            dropout=_dropout(spec, rate, keys, step) if rate and keys is not None else None,
            narrow=narrow,
        )
        return chain_losses(
            spec,
            _laid_out(spec, settings, target, base),
            tokens_CBT,
            mask_CBT,
            sample_CB,
            remat=settings.remat,
            target=target,
            **how,
        )
    cast = jax.tree.map(lambda w: w.astype(dtype), weights)
    laid = functools.partial(_laid_out, spec, settings, target)
    one = lambda w, t, m, s: chain_losses(
        spec, laid(w), t[None], m[None], s[None], remat=settings.remat, target=target
    )[0]  # noqa: E731
    if tokens_CBT.shape[0] == 1:  # a batch axis of one would turn every product into a batched one
        return one(*jax.tree.map(lambda x: x[0], (cast, tokens_CBT, mask_CBT, sample_CB)))[None]
    return jax.vmap(one)(cast, tokens_CBT, mask_CBT, sample_CB)


def _laid_out(spec, settings, target, params):
    """Parameters with their layers as the target's programs take them."""
    if (
        params is None
        or lean.are_laid_out(params["layers"])
        or not lean.fits(target, settings.dtype)
    ):
        return params
    return params | {"layers": lean.layers(spec, params["layers"], target)}


@functools.partial(
    jax.jit,
    static_argnames=("spec", "settings", "mesh", "together", "target"),
    donate_argnames=("state",),
)
def train_steps(
    spec: Spec, settings: FitSettings, base, state: TrainState, tokens_SCBT, mask_SCBT, sample_SCB, count, total, mesh=None, direction=None, together=None,
    target: Target = Target(),
):  # fmt: skip
    """Run the first `count` of S steps. `total` [] is the number of updates of the whole fit, for
    the schedule.

    With `mesh` (one axis, "chains") the C chains are shared out over its devices, C being a
    multiple of their number; every device runs the program of C / devices chains and none waits for
    another. `direction`: of `settings.constraint`, a tree like one chain's weights. `together`:
    chains of a device that are vmapped, a divisor of their number; the others take their turn
    inside the program (None: all are). Returns the state and each step's loss [S, C] (NaN where it
    was idle).
    """
    base = _laid_out(spec, settings, target, base)  # once, outside the loop over steps
    run = functools.partial(_in_turn, together, functools.partial(_steps, spec, settings, target))
    if mesh is not None:
        chains, later = P(AXIS), P(None, AXIS)
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P(), chains, later, later, later, P(), P(), P()),
            out_specs=(chains, later),
            check_vma=False,
        )
    return run(base, state, tokens_SCBT, mask_SCBT, sample_SCB, count, total, direction)


def _in_turn(together, run, base, state, tokens_SCBT, mask_SCBT, sample_SCB, *rest):
    """`run`, with `together` chains at a time."""
    chains = tokens_SCBT.shape[1]
    if together is None or together == chains:
        return run(base, state, tokens_SCBT, mask_SCBT, sample_SCB, *rest)
    lots = lambda axis, tree: jax.tree.map(
        lambda x: x.reshape(*x.shape[:axis], -1, together, *x.shape[axis + 1 :]), tree
    )  # noqa: E731
    batches = jax.tree.map(
        lambda x: jnp.moveaxis(x, 1, 0), lots(1, (tokens_SCBT, mask_SCBT, sample_SCB))
    )
    state, log_GSC = jax.lax.map(
        lambda lot: run(base, lot[0], *lot[1], *rest), (lots(0, state), batches)
    )
    return jax.tree.map(lambda x: x.reshape(chains, *x.shape[2:]), state), jnp.moveaxis(
        log_GSC, 0, 1
    ).reshape(-1, chains)


def _steps(
    spec, settings, target, base, state, tokens_SCBT, mask_SCBT, sample_SCB, count, total, direction
):
    optimizer = _optimizer(settings)

    def step(i, carry):
        state, log = carry
        batch = tuple(
            jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
            for x in (tokens_SCBT, mask_SCBT, sample_SCB)
        )

        def objective(weights):
            each = losses(spec, settings, base, weights, *batch, state.key, state.step, target)
            return each.sum(), each

        if settings.constraint is None:
            grads, each = jax.grad(objective, has_aux=True)(state.weights)
        else:
            grads, each = gradient_constraint.gradient(
                objective, state.weights, direction, settings.constraint
            )
        with jax.numpy_dtype_promotion(
            "standard"
        ):  # optax mixes float and int32 in its bias correction
            updates, optimizer_state = jax.vmap(optimizer.update)(
                grads, state.optimizer, state.weights
            )
        rate = learning_rate(settings, state.step, total)
        scaled = jax.tree.map(
            lambda w, u: w - rate.reshape((-1,) + (1,) * (u.ndim - 1)).astype(u.dtype) * u,
            state.weights,
            updates,
        )
        return state.replace(
            weights=scaled, optimizer=optimizer_state, step=state.step + 1
        ), log.at[i].set(each)

    log = jnp.full(tokens_SCBT.shape[:2], jnp.nan, jnp.float32)
    return jax.lax.fori_loop(0, count, step, (state, log))
