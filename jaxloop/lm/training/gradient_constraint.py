"""The bias projection, the paper's loss on it, and a brake (arXiv 2410.15234, section 3.1).

The projection is c = u' grad L(theta), on a direction u of weight space.

c < 0: a gradient step increases the weights' component along u. The direction is the user's: the
difference of adapters, or of weights, that were fine-tuned on two groups of texts.

The paper's loss L_new penalises the *slope* c, not the component: what it adds to a descent step
goes along +Hu, towards where the slope vanishes, which is the minimum of L along u. On a convex
loss the component therefore gets there sooner, the sooner the larger the weight. Nothing here forms
a Hessian: its gradient is one Hessian-vector product.

The brake is a penalty on the component itself, w/2 max(0, b)^2 with b = u' (theta - theta_0), taken
after every step of the optimiser as decoupled weight decay is:

    b <- b / (1 + rate w) where b > 0,

which is the penalty's proximal step. Three facts make it one. After any step of any optimiser, what
it leaves of a component towards the bias falls with w, and is none in the limit. Under gradient
descent the points at rest are those of L + w/2 max(0, b)^2; and if theta_1, theta_2 minimise it for
w_1 < w_2, adding the two inequalities of the minima gives max(0, b_2) <= max(0, b_1), whatever L.
Of a quadratic L with Hessian H that pulls to b* > 0, b = b* / (1 + w u' H^-1 u).

Dimensions: C chains, B rows, T tokens. Directions are trees like a chain's weights, without a chain
axis.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config.sections import FitConfig
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.loss import forward_nll

PER = ("dimension", "direction")
# Numbers that `component` reads at once.
_BLOCK = 1 << 14


@dataclass(frozen=True)
class GradientConstraint:
    """The paper's constrained loss, L_new = L - lam sum_i max(0, c_i)^2 + gam sum_i min(0, c_i)^2.

    It flattens the loss along the direction. It does not hold the component back: see the module.

    Attributes:
        lam: at least 0; rewards a slope that leads away from the bias. Its term has no lower
            bound.
        gam: at least 0; penalises a slope that leads towards the bias, by moving to where the
            slope is smaller, which mostly lies further along the direction.
        per: "dimension": c_i = u_i g_i, whose sum is c, as the paper writes it; "direction": the
            one number c.

    Raises:
        ValueError: a value outside its range.
    """

    lam: float = 0.0
    gam: float = 1.0
    per: str = "dimension"

    def __post_init__(self):
        for name in ("lam", "gam"):
            _check_weight(name, getattr(self, name))
        if self.per not in PER:
            raise ValueError(
                f"constraint.per: {self.per!r} is not allowed; choose one of {', '.join(PER)}"
            )


@dataclass(frozen=True)
class Brake:
    """A penalty w/2 max(0, b)^2 on the component b = u' (weights - reference); see the module.

    The reference is the base's weights, or zero where a chain is an adapter.

    Attributes:
        weight: w, at least 0, as AdamW's weight decay per unit of the learning rate.

    Raises:
        ValueError: a value outside its range.
    """

    weight: float

    def __post_init__(self):
        _check_weight("weight", self.weight)


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < float("inf"):
        raise ValueError(
            f"constraint.{name}: {value} is not allowed; a finite number of at least 0 is needed"
        )


def difference(toward: Any, away: Any) -> Any:
    """Return u = (toward - away) / ||toward - away||, a tree of float32 NumPy arrays.

    It is the direction in which weights that were fine-tuned on one group of texts differ from
    those fine-tuned on another.

    Raises:
        ValueError: the trees have different leaves or shapes, or are equal.
    """
    toward, away = adapters.plain_weights(toward), adapters.plain_weights(away)
    structures: list[Any] = [jax.tree.structure(tree) for tree in (toward, away)]
    if structures[0] != structures[1]:
        raise ValueError(
            "direction: the two sets of weights have different leaves; both must be adapters, or "
            "both all weights, of one model"
        )
    for a, b in zip(jax.tree.leaves(toward), jax.tree.leaves(away), strict=True):
        if np.shape(a) != np.shape(b):
            raise ValueError(
                f"direction: leaves of shapes {np.shape(a)} and {np.shape(b)}; both sets of "
                "weights must be of one model"
            )

    def subtract(a, b):
        return np.asarray(a, np.float32) - np.asarray(b, np.float32)

    return unit(jax.tree.map(subtract, toward, away))


def unit(tree: Any) -> Any:
    """Return the tree divided by its Euclidean norm, in float32.

    Raises:
        ValueError: the norm is 0 or not finite.
    """
    squares = [np.square(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(tree)]
    norm = float(np.sqrt(sum(float(square) for square in squares)))
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"direction: its norm is {norm}; it must point somewhere, so the two sets of weights "
            "that it is between must differ, by finite numbers"
        )
    return jax.tree.map(lambda x: (np.asarray(x, np.float64) / norm).astype(np.float32), tree)


def check(direction: Any, weights: Any) -> None:
    """Check that a direction is a tree like these weights, whose leaves may be `ShapeDtypeStruct`.

    Raises:
        ValueError: a leaf is missing or has another shape; the message names it.
    """
    given, wanted = _shapes(direction), _shapes(weights)
    for name in sorted({*given, *wanted}):
        if given.get(name) != wanted.get(name):
            raise ValueError(
                f"direction: {name} has shape {given.get(name, 'none')}, the model's weights have "
                f"{wanted.get(name, 'none')} there"
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {
        jax.tree_util.keystr(path): tuple(np.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(adapters.plain_weights(tree))
    }


def component(weights: Any, start: Any, direction: Any) -> float:
    """u' (weights - start): how far weights have moved along the direction."""
    total = 0.0
    leaves = map(jax.tree.leaves, (weights, start, direction))
    for leaf in zip(*leaves, strict=True):
        w, s, u = (np.asarray(x).reshape(-1) for x in leaf)
        # A block at a time: copies of whole leaves in float64 would leave the cache, and a product
        # of BLAS would wait for the threads of others.
        for at in range(0, w.size, _BLOCK):
            of_block = slice(at, at + _BLOCK)
            moved = w[of_block].astype(np.float64) - s[of_block]
            total += float((moved * u[of_block]).sum())
    return total


def gradient(
    objective: Callable, weights: Any, direction: Any, constraint: GradientConstraint
) -> tuple[Any, Any]:
    """Return the gradient [C, ...] of every chain's L_new, and the second result of `objective`.

    The gradient is g + H v with v_i = u_i (2 gam min(0, c_i) - 2 lam max(0, c_i)), because
    d c_i / d theta = u_i H_i. One product serves all chains: H is block-diagonal over them.

    Args:
        objective: weights [C, ...] -> (sum over chains of the chain's own loss, anything).
        weights: weights of C chains, leaves [C, ...].
        direction: u.
        constraint: lam, gam, and whether c_i are the dimensions of c or c itself.
    """
    gradients = jax.grad(objective, has_aux=True)
    grads, _ = gradients(weights)
    v = _push(grads, direction, constraint)
    grads, turned, aux = jax.jvp(gradients, (weights,), (v,), has_aux=True)
    return jax.tree.map(jnp.add, grads, turned), aux


def _push(grads: Any, direction: Any, constraint: GradientConstraint) -> Any:
    """v [C, ...] of `gradient`."""

    def push(c):
        toward, away = jnp.minimum(c, 0.0), jnp.maximum(c, 0.0)
        return 2.0 * (constraint.gam * toward - constraint.lam * away)

    each = jax.tree.map(lambda u, g: u[None].astype(g.dtype) * g, direction, grads)
    if constraint.per == "dimension":
        return jax.tree.map(lambda u, c: u[None].astype(c.dtype) * push(c), direction, each)
    c_C = sum(c.reshape(c.shape[0], -1).sum(-1) for c in jax.tree.leaves(each))

    def along(u, g):
        push_C = push(c_C).reshape((-1,) + (1,) * (g.ndim - 1))
        return u[None].astype(g.dtype) * push_C.astype(g.dtype)

    return jax.tree.map(along, direction, grads)


def hold(
    brake: Brake, before: Any, after: Any, component_C: jax.Array, rate_C: jax.Array, direction: Any
) -> tuple[Any, jax.Array]:
    """Return the weights [C, ...] and components [C] after the brake.

    Args:
        brake: its weight.
        before: weights of C chains before the optimiser's step.
        after: those after it.
        component_C: b before the step.
        rate_C: the learning rate of the step.
        direction: u, of norm 1.
    """

    def moved(u, old, new):
        return (u[None].astype(new.dtype) * (new - old)).reshape(new.shape[0], -1).sum(-1)

    parts = jax.tree.leaves(jax.tree.map(moved, direction, before, after))
    reached_C = component_C + sum(parts)
    strength_C = rate_C * brake.weight
    back_C = jnp.maximum(reached_C, 0.0) * strength_C / (1.0 + strength_C)

    def pull(u, new):
        back = back_C.reshape((-1,) + (1,) * u.ndim).astype(new.dtype)
        return new - back * u[None].astype(new.dtype)

    return jax.tree.map(pull, direction, after), reached_C - back_C


def slope(loss: Callable, weights: Any, direction: Any) -> jax.Array:
    """Return c = u' grad L of a loss (weights -> number), without forming the gradient.

    It is the derivative of L along the direction.
    """
    return jax.jvp(loss, (weights,), (direction,))[1]


def coefficient(
    model: Model,
    weights: Any,
    direction: Any,
    texts: Sequence[str],
    prompts: Sequence[str],
    fit: FitConfig,
    *,
    rows: int = 16,
) -> float:
    """Return c = u' grad L at `weights`.

    L is the mean loss over all tokens of the texts after their prompts, cut as in training.

    The arithmetic is float32 whatever `fit.dtype`. Without any token the result is nan.
    """
    limit = min(fit.max_length, model.config.max_seq_len)
    examples = batching.encode_examples(
        model.tokenizer, texts, prompts, max_length=limit, completion_only=fit.completion_only
    )
    lora_config, whole = fit.lora, "embed" in weights
    if not whole:
        lora_config = adapters.as_adapter(weights, fit.lora).config
    weights, direction = adapters.plain_weights(weights), adapters.plain_weights(direction)
    target = target_of(model.config, model.params)
    base = None if whole else model.params
    total, tokens = 0.0, 0
    for batch in batching.evaluation_batches(
        examples.lengths, rows, limit, target.platform, predicted=True
    ):
        tokens_SBT, mask_SBT = batching.fill(examples, batch, 1, model.tokenizer.pad)
        slope_of_batch = _slope(
            model.config,
            lora_config,
            whole,
            target,
            base,
            weights,
            direction,
            tokens_SBT[0],
            mask_SBT[0],
        )
        total += float(slope_of_batch)
        tokens += int(mask_SBT[0, :, 1:].sum())
    return total / tokens if tokens else float("nan")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _slope(config, lora, whole, target, base, weights, direction, tokens_BT, mask_BT):
    """Derivative of the summed loss along `direction`, float32."""

    def total(weights):
        packed, params = None, weights
        if not whole:
            params = in_float32(base)
            of_one_chain = jax.tree.map(lambda x: x[None], weights)
            packed = adapters.pack_adapters(
                config, adapters.Adapter(of_one_chain, lora), jnp.float32
            )
        nll = forward_nll(config, params, tokens_BT, packed=packed, target=target)
        return jnp.where(mask_BT[:, 1:], nll, 0.0).sum()

    def in_float32(tree):
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    return slope(total, in_float32(weights), in_float32(direction))
