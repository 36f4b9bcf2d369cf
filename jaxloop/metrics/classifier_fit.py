"""Training of classifiers: a linear head on frozen embeddings, or an encoder with its head. The
epoch with the best macro-F1 is kept.

Dimensions: n texts, B texts of a batch, C classes, E size of an embedding.
"""

import functools
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.metrics import f1_score

from jaxloop.core.keys import chain_key, fold_in, random_order
from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder.config import head_kind, init_head
from jaxloop.lm.target import target_of
from jaxloop.metrics.classifiers import Classifier

_DROPOUT = 0.1


class Schedule(NamedTuple):
    """AdamW's peak rate and weight decay, and the steps over which the rate falls to 0."""

    rate: float
    decay: float
    steps: int


def _optimizer(schedule: Schedule):
    """Biases and norms are not decayed."""
    weights = lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: not str(getattr(path[-1], "key", "")).endswith(("bias", "scale")), tree
    )  # noqa: E731
    return optax.adamw(
        optax.linear_schedule(schedule.rate, 0.0, schedule.steps),
        weight_decay=schedule.decay,
        mask=weights,
    )


def _draws(key, target: np.ndarray, batch_size: int, balanced: bool) -> np.ndarray:
    """Rows of every batch of an epoch, [steps, B]: a permutation, or draws with replacement in
    which classes are equally likely.
    """
    n = len(target)
    steps = max(1, n // batch_size)
    if balanced:
        weight = 1.0 / np.bincount(target)[target]
        rows = np.asarray(
            jax.random.choice(
                key, n, (steps * batch_size,), p=jnp.asarray(weight / weight.sum(), jnp.float32)
            )
        )
    else:
        rows = np.resize(np.asarray(random_order(key, n)), steps * batch_size)
    return rows.reshape(steps, batch_size)


def _cross_entropy(logits_BC, target_B):
    return optax.softmax_cross_entropy_with_integer_labels(logits_BC, target_B).mean()


def _best(evaluate, epoch_losses, epochs: int):
    """Runs the epochs; returns the weights of the one with the highest macro-F1 (the earliest of
    equals) and the log of all.
    """
    log, kept, best = [], None, -1.0
    for epoch in range(epochs):
        weights, loss = epoch_losses(epoch)
        score = evaluate(weights)
        log.append(dict(loss=float(loss), macro_f1=score))
        if score > best:
            kept, best = jax.device_get(weights), score
    return kept, log


def _macro_f1(target, found, classes: int) -> float:
    return float(
        f1_score(target, found, labels=np.arange(classes), average="macro", zero_division=0)
    )


# ---- a head on frozen embeddings
# --------------------------------------------------------------------------------------


def fit_head(
    model, features_NE, target, names, parts, *, epochs, batch_size, rate, decay, balanced, seed
):
    """(Classifier, log) of a linear head trained on embeddings [n, E]."""
    key = chain_key(seed)
    training, validation, _ = parts
    classes = len(names)
    head = nn.Dense(classes, kernel_init=nn.initializers.zeros)
    weights = head.init(key, features_NE[:1])["params"]
    schedule = Schedule(rate, decay, epochs * max(1, len(training) // batch_size))
    x_NE, y_N = jnp.asarray(features_NE[training]), jnp.asarray(target[training])
    held = {"weights": weights, "state": _optimizer(schedule).init(weights)}

    def run(number):
        rows = _draws(fold_in(key, number), target[training], batch_size, balanced)
        held["weights"], held["state"], loss = _head_epoch(
            head, schedule, held["weights"], held["state"], x_NE, y_N, rows
        )
        return held["weights"], loss

    def evaluate(weights):
        found = (
            features_NE[validation] @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])
        ).argmax(1)
        return _macro_f1(target[validation], found, classes)

    kept, log = _best(evaluate, run, epochs)
    return Classifier(
        model, tuple(names), {"w": np.asarray(kept["kernel"]), "bias": np.asarray(kept["bias"])}
    ), log


@functools.partial(jax.jit, static_argnames=("head", "schedule"))
def _head_epoch(head, schedule, weights, state, x_NE, y_N, rows_SB):
    def step(carry, rows_B):
        weights, state = carry
        loss, grads = jax.value_and_grad(
            lambda w: _cross_entropy(head.apply({"params": w}, x_NE[rows_B]), y_N[rows_B])
        )(weights)
        return _update(schedule, weights, state, grads), loss

    (weights, state), losses = jax.lax.scan(step, (weights, state), rows_SB)
    return weights, state, losses.mean()


def _update(schedule, weights, state, grads):
    with jax.numpy_dtype_promotion("standard"):  # optax mixes float and int32 in its schedule
        updates, state = _optimizer(schedule).update(grads, state, weights)
    return optax.apply_updates(weights, updates), state


# ---- an encoder
# -------------------------------------------------------------------------------------------------------


def fit_encoder(
    model, texts, target, names, parts, *, blocks, epochs, batch_size, rate, decay, balanced, seed
):
    """(Classifier, log) of an encoder fine-tuned with its architecture's head: all of it, or its
    last `blocks` blocks.

    Dropout is on what the head reads only, not inside the blocks.
    """
    key, model = (
        chain_key(seed),
        model._replace(prefix=""),
    )  # a prompt for sentence embeddings says nothing to a head of its own
    training, validation, _ = parts
    spec = replace(model.spec, head=head_kind(model.spec), labels=tuple(names), multi_label=False)
    count = spec.core.layers if blocks == "all" else min(blocks, spec.core.layers)
    params = {k: v for k, v in model.params.items() if k != "dense"}
    made_for = target_of(spec.core, model.params)
    frozen, weights = _divide(
        params | {"head": init_head(fold_in(key, 1), spec)}, count, blocks == "all"
    )
    ids = encoders.token_ids(model, texts)
    schedule = Schedule(rate, decay, epochs * max(1, len(training) // batch_size))
    held = {"weights": weights, "state": _optimizer(schedule).init(weights)}
    step = functools.partial(_step, spec, schedule, made_for, frozen)

    def run(number):
        losses = []
        rows_SB = training[
            _draws(fold_in(key, 2 * number + 2), target[training], batch_size, balanced)
        ]
        for i, rows in enumerate(rows_SB):
            tokens, length = encoders.fill([ids[r] for r in rows], model.limit)
            noise = fold_in(fold_in(key, 2 * number + 3), i)
            held["weights"], held["state"], loss = step(
                held["weights"], held["state"], noise, tokens, length, target[rows]
            )
            losses.append(loss)
        return held["weights"], np.mean([float(loss) for loss in losses])

    def evaluate(weights):
        run_batch = functools.partial(
            encoders.class_probabilities, spec, _join(frozen, weights), target=made_for
        )
        chosen = [ids[i] for i in validation]
        found = encoders.over_batches(
            run_batch, chosen, limit=model.limit, batch=encoders.default_batch(weights)
        ).argmax(1)
        return _macro_f1(target[validation], found, len(names))

    kept, log = _best(evaluate, run, epochs)
    params = jax.tree.map(jnp.asarray, _join(frozen, kept))
    return Classifier(model._replace(spec=spec, params=params), tuple(names)), log


def _divide(params: dict, count: int, whole: bool) -> tuple[dict, dict]:
    """What stays and what is trained: all, or the last `count` blocks and the head."""
    if whole:
        return {"layers": []}, params
    layers = params["layers"]
    cut = len(layers) - count
    return {k: v for k, v in params.items() if k not in ("layers", "head")} | {
        "layers": layers[:cut]
    }, {"layers": layers[cut:], "head": params["head"]}


def _join(frozen: dict, weights: dict) -> dict:
    return {**frozen, **weights, "layers": [*frozen["layers"], *weights["layers"]]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _step(spec, schedule, made_for, frozen, weights, state, key, tokens_BT, length_B, target_B):
    def dropout(x):
        return jnp.where(jax.random.bernoulli(key, 1 - _DROPOUT, x.shape), x / (1 - _DROPOUT), 0.0)

    def objective(weights):
        return _cross_entropy(
            encoders.class_logits(
                spec, _join(frozen, weights), tokens_BT, length_B, dropout, made_for
            ),
            target_B,
        )

    loss, grads = jax.value_and_grad(objective)(weights)
    return *_update(schedule, weights, state, grads), loss
