"""The bias projection c = u' grad L(theta) on a direction u of weight space, and a loss that
constrains it (bias_amplification.md, section 5).

c < 0: a gradient step increases the weights' component along u. The direction is the user's: the
difference of adapters, or of weights, that were fine-tuned on two groups of texts. Nothing here
forms a Hessian: the gradient of the constraint is one Hessian-vector product.

Dimensions: C chains, B rows, T time. Directions are trees like a chain's weights, without a chain
axis.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.model import lora as adapters
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.loss import row_nll

PER = ("dimension", "direction")


@dataclass(frozen=True)
class Constraint:
    """L_new = L - lam sum_i max(0, c_i)^2 + gam sum_i min(0, c_i)^2, with lam, gam >= 0 (section
    5).

    per "dimension": c_i = u_i g_i, whose sum is c, as the paper writes it; "direction": the one
    number c. gam penalises steps towards the bias. lam rewards steps away from it and has no lower
    bound, so that 0 is the only value under which the loss is a pure constraint.
    """

    lam: float = 0.0
    gam: float = 1.0
    per: str = "dimension"

    def __post_init__(self):
        for name in ("lam", "gam"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"constraint.{name}: {getattr(self, name)} is not allowed; a finite number "
                    "of at least 0 is needed"
                )
        if self.per not in PER:
            raise ValueError(
                f"constraint.per: {self.per!r} is not allowed; choose one of {', '.join(PER)}"
            )


def difference(toward, away) -> Any:
    """u = (toward - away) / ||toward - away||, a tree of float32 NumPy arrays: the direction in
    which weights fine-tuned on one group of texts differ from those fine-tuned on another. Raises
    ValueError where the trees have other leaves or shapes, or are equal.
    """
    if jax.tree.structure(toward) != jax.tree.structure(away):
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
    return unit(
        jax.tree.map(
            lambda a, b: np.asarray(a, np.float32) - np.asarray(b, np.float32), toward, away
        )
    )


def unit(tree) -> Any:
    """The tree divided by its Euclidean norm, float32. Raises ValueError where the norm is 0 or not
    finite.
    """
    norm = float(
        np.sqrt(
            sum(float(np.square(np.asarray(x, np.float64)).sum()) for x in jax.tree.leaves(tree))
        )
    )
    if not 0 < norm < float("inf"):
        raise ValueError(
            f"direction: its norm is {norm}; the two sets of weights must differ, by finite numbers"
        )
    return jax.tree.map(lambda x: (np.asarray(x, np.float64) / norm).astype(np.float32), tree)


def check(direction, weights) -> None:
    """Raises ValueError where a direction is no tree like these weights (leaves may be
    `jax.ShapeDtypeStruct`).
    """
    of = lambda tree: {
        jax.tree_util.keystr(path): tuple(np.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    mine, wanted = of(direction), of(weights)
    wrong = next(
        (name for name in sorted({*mine, *wanted}) if mine.get(name) != wanted.get(name)), None
    )
    if wrong is not None:
        raise ValueError(
            f"direction: {wrong} has shape {mine.get(wrong, 'none')}, the model's weights have "
            f"{wanted.get(wrong, 'none')} there"
        )


def component(weights, start, direction) -> float:
    """u' (weights - start): how far weights have moved along the direction."""
    leaves = map(jax.tree.leaves, (weights, start, direction))
    return float(
        sum(
            np.vdot(
                np.asarray(u, np.float64), np.asarray(w, np.float64) - np.asarray(s, np.float64)
            )
            for w, s, u in zip(*leaves, strict=True)
        )
    )


def gradient(objective: Callable, weights, direction, constraint: Constraint) -> tuple[Any, Any]:
    """Gradient [C, ...] of L_new of every chain, and what `objective` returns beside the loss.

    objective: weights [C, ...] -> (sum over chains of the chain's own loss, anything). With v_i =
    u_i (2 gam min(0, c_i) - 2 lam max(0, c_i)) it is g + H v: d c_i / d theta = u_i H_i, and the
    chains' losses do not meet in H.
    """
    gradients = jax.grad(objective, has_aux=True)
    grads, _ = gradients(weights)
    push = lambda c: (
        2.0 * (constraint.gam * jnp.minimum(c, 0.0) - constraint.lam * jnp.maximum(c, 0.0))
    )
    each = jax.tree.map(lambda u, g: u[None].astype(g.dtype) * g, direction, grads)
    if constraint.per == "dimension":
        v = jax.tree.map(lambda u, c: u[None].astype(c.dtype) * push(c), direction, each)
    else:
        c_C = sum(c.reshape(c.shape[0], -1).sum(-1) for c in jax.tree.leaves(each))
        v = jax.tree.map(
            lambda u, g: (
                u[None].astype(g.dtype)
                * push(c_C).reshape((-1,) + (1,) * (g.ndim - 1)).astype(g.dtype)
            ),
            direction,
            grads,
        )
    grads, turned, aux = jax.jvp(gradients, (weights,), (v,), has_aux=True)
    return jax.tree.map(jnp.add, grads, turned), aux


def slope(loss: Callable, weights, direction) -> jax.Array:
    """c = u' grad L of a loss (weights -> number): the derivative of L along the direction, without
    forming the gradient.
    """
    return jax.jvp(loss, (weights,), (direction,))[1]


def coefficient(
    model, weights, direction, texts: Sequence, prompts: Sequence, settings, *, rows: int = 16
) -> float:
    """c = u' grad L at `weights`, where L is the mean loss over all tokens of the texts after their
    prompts, cut as in training.

    settings: `FitSettings`; the arithmetic is float32 whatever its dtype. No token: nan.
    """
    limit = min(settings.max_length, model.spec.context)
    examples = batching.encode_examples(
        model.tokenizer, texts, prompts, max_length=limit, loss_on=settings.loss_on
    )
    order = np.argsort(examples.lengths, kind="stable")
    whole, target = "embed" in weights, target_of(model.spec, model.params)
    total, tokens = 0.0, 0
    for at in range(0, len(order), rows):
        chosen = np.concatenate(
            [order[at : at + rows], np.full(max(0, rows - len(order[at:])), -1, np.int64)]
        )
        time = batching.bucket(int(examples.lengths[chosen[chosen >= 0]].max()), limit)
        batch, mask = batching.fill(
            examples, batching.Dispatch(time, chosen[None]), 1, model.tokenizer.pad
        )
        total += float(
            _slope(
                model.spec,
                settings.lora,
                whole,
                target,
                None if whole else model.params,
                weights,
                direction,
                batch[0],
                mask[0],
            )
        )
        tokens += int(mask[0, :, 1:].sum())
    return total / tokens if tokens else float("nan")


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _slope(spec, lora, whole, target, base, weights, direction, tokens_BT, mask_BT):
    """Derivative of the summed loss along `direction`, float32."""

    def total(weights):
        fused = (
            None
            if whole
            else adapters.fuse(spec, jax.tree.map(lambda x: x[None], weights), lora, jnp.float32)
        )
        nll = row_nll(spec, weights if whole else base, tokens_BT, fused=fused, target=target)
        return jnp.where(mask_BT[:, 1:], nll, 0.0).sum()

    single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    return slope(total, single(weights), single(direction))
