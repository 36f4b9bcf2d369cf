"""Gradient steps of classifier training: a linear head on frozen embeddings, or an encoder.

The epoch with the best macro-F1 on the validation texts is kept. `classifier_training` splits the
texts, calls this and reports.

Dimensions: N texts, B texts of a batch, S batches of an epoch, C classes, T tokens, E size of an
embedding.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.metrics import f1_score

from jaxloop.core.keys import chain_key, fold_in, random_order
from jaxloop.lm.encoder import encoder as encoders
from jaxloop.lm.encoder.config import EncoderConfig, head_kind
from jaxloop.lm.encoder.encoder import Encoder
from jaxloop.lm.encoder.tables import init_head
from jaxloop.lm.model.dropout import Dropout, keys_of_rows
from jaxloop.lm.target import Target, target_of
from jaxloop.metrics.classifiers import Classifier

# Largest gradient norm of an encoder's fine-tuning: the default of transformers' trainer.
MAX_GRAD_NORM = 1.0

Weights = Any  # a tree of arrays
EpochLog = list[dict[str, float]]


class OptimiserSettings(NamedTuple):
    """Settings of AdamW on batches.

    Attributes:
        epochs: passes over the training texts.
        batch_size: in texts.
        rate: peak learning rate, which falls linearly to 0.
        decay: weight decay; biases and norms have none.
        balanced: whether batches draw the classes equally often, with replacement.
        seed: seed of all draws.
    """

    epochs: int
    batch_size: int
    rate: float
    decay: float
    balanced: bool
    seed: int


class LabelledRows(NamedTuple):
    """Class indices [N] of all texts, names of the classes, and the rows [n] of each part."""

    target: np.ndarray
    names: tuple[str, ...]
    training: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class Schedule(NamedTuple):
    """AdamW's peak rate and weight decay, the steps over which the rate falls to 0, and the largest
    gradient norm (None: no clipping).
    """

    rate: float
    decay: float
    steps: int
    max_grad_norm: float | None = None


class TrainState(NamedTuple):
    """Trained weights, and the state of the optimiser."""

    weights: Weights
    optimiser: Any


def _schedule(settings: OptimiserSettings, texts: int) -> Schedule:
    steps = settings.epochs * max(1, texts // settings.batch_size)
    return Schedule(settings.rate, settings.decay, steps)


def _decayed(weights: Weights) -> Weights:
    """A tree of truth values: whether weight decay applies to a leaf (not to biases and norms)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not str(getattr(path[-1], "key", "")).endswith(("bias", "scale")), weights
    )


def _optimizer(schedule: Schedule) -> optax.GradientTransformation:
    adamw = optax.adamw(
        optax.linear_schedule(schedule.rate, 0.0, schedule.steps),
        weight_decay=schedule.decay,
        mask=_decayed,
    )
    if schedule.max_grad_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(schedule.max_grad_norm), adamw)


def draw_batches(key: jax.Array, target: np.ndarray, batch_size: int, balanced: bool) -> np.ndarray:
    """Return the rows of every batch of an epoch, [S, B].

    They are a permutation; or, if balanced, draws with replacement in which the classes of `target`
    [N] are equally likely.
    """
    n = len(target)
    steps = max(1, n // batch_size)
    if balanced:
        weight = 1.0 / np.bincount(target)[target]
        share = jnp.asarray(weight / weight.sum(), jnp.float32)
        rows = np.asarray(jax.random.choice(key, n, (steps * batch_size,), p=share))
    else:
        rows = np.resize(np.asarray(random_order(key, n)), steps * batch_size)
    return rows.reshape(steps, batch_size)


def _cross_entropy(logits_BC: jax.Array, target_B: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits_BC, target_B).mean()


def best_epoch(
    train_epoch: Callable[[TrainState, int], tuple[TrainState, float | jax.Array]],
    evaluate: Callable[[Weights], float],
    state: TrainState,
    epochs: int,
) -> tuple[Weights, EpochLog]:
    """Return the weights of the epoch with the highest macro-F1, and the log of all epochs.

    Of equal scores the earliest epoch counts.

    Args:
        train_epoch: function(state, number of the epoch) -> (state, mean loss).
        evaluate: function(weights) -> macro-F1 on the validation texts.
    """
    log, best, highest = [], state.weights, -1.0
    for epoch in range(epochs):
        state, loss = train_epoch(state, epoch)
        score = evaluate(state.weights)
        log.append({"loss": float(loss), "macro_f1": score})
        if score > highest:
            best, highest = jax.device_get(state.weights), score
    return best, log


def _macro_f1(target: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    labels = np.arange(classes)
    return float(f1_score(target, predicted, labels=labels, average="macro", zero_division=0))


# ---- a head on frozen embeddings


def fit_head(
    encoder: Encoder, features_NE: np.ndarray, rows: LabelledRows, settings: OptimiserSettings
) -> tuple[Classifier, EpochLog]:
    """Train a linear head on embeddings [N, E] of the encoder."""
    key = chain_key(settings.seed)
    classes = len(rows.names)
    head = nn.Dense(classes, kernel_init=nn.initializers.zeros)
    weights = head.init(key, features_NE[:1])["params"]
    schedule = _schedule(settings, len(rows.training))
    target = rows.target[rows.training]
    x_NE, y_N = jnp.asarray(features_NE[rows.training]), jnp.asarray(target)

    def train_epoch(state: TrainState, number: int) -> tuple[TrainState, float | jax.Array]:
        batches_SB = draw_batches(
            fold_in(key, number), target, settings.batch_size, settings.balanced
        )
        return _head_epoch(head, schedule, state, x_NE, y_N, batches_SB)

    def evaluate(weights: Weights) -> float:
        kernel, bias = (np.asarray(weights[name]) for name in ("kernel", "bias"))
        predicted = (features_NE[rows.validation] @ kernel + bias).argmax(1)
        return _macro_f1(rows.target[rows.validation], predicted, classes)

    start = TrainState(weights, _optimizer(schedule).init(weights))
    best, log = best_epoch(train_epoch, evaluate, start, settings.epochs)
    kernel, bias = (np.asarray(best[name]) for name in ("kernel", "bias"))
    return Classifier(encoder, rows.names, {"w": kernel, "bias": bias}), log


@functools.partial(jax.jit, static_argnames=("head", "schedule"))
def _head_epoch(
    head: nn.Dense,
    schedule: Schedule,
    state: TrainState,
    x_NE: jax.Array,
    y_N: jax.Array,
    batches_SB: jax.Array,
) -> tuple[TrainState, jax.Array]:
    def step(state, rows_B):
        def objective(weights):
            logits_BC = jnp.asarray(head.apply({"params": weights}, x_NE[rows_B]))
            return _cross_entropy(logits_BC, y_N[rows_B])

        with jax.named_scope("classifier_head_step"):
            loss, grads = jax.value_and_grad(objective)(state.weights)
            return _update(schedule, state, grads), loss

    state, losses = jax.lax.scan(step, state, batches_SB)
    return state, losses.mean()


def _update(schedule: Schedule, state: TrainState, grads: Weights) -> TrainState:
    with jax.numpy_dtype_promotion("standard"):  # optax mixes float and int32 in its schedule
        updates, optimiser = _optimizer(schedule).update(grads, state.optimiser, state.weights)
    return TrainState(optax.apply_updates(state.weights, updates), optimiser)


# ---- an encoder


def fit_encoder(
    encoder: Encoder,
    texts: Sequence[str],
    rows: LabelledRows,
    settings: OptimiserSettings,
    *,
    blocks: int | None,
) -> tuple[Classifier, EpochLog]:
    """Fine-tune an encoder with its architecture's head.

    Dropout is that of its config.json, in all blocks, frozen ones too, and in the head.

    Args:
        blocks: how many of the last blocks are trained; None: all of the encoder.
    """
    key = chain_key(settings.seed)
    # A prompt for sentence embeddings says nothing to a head of its own.
    encoder = encoder._replace(prefix="")
    config = replace(
        encoder.config, head=head_kind(encoder.config), labels=rows.names, multi_label=False
    )
    params = {name: value for name, value in encoder.params.items() if name != "dense"}
    params["head"] = init_head(fold_in(key, 1), config)
    target = target_of(config.core, encoder.params)
    frozen, weights = _divide(params, blocks)
    ids = encoders.token_ids(encoder, texts)
    schedule = _schedule(settings, len(rows.training))._replace(max_grad_norm=MAX_GRAD_NORM)
    step = functools.partial(_encoder_step, config, schedule, target, frozen)
    classes = rows.target[rows.training]

    def train_epoch(state: TrainState, number: int) -> tuple[TrainState, float | jax.Array]:
        losses = []
        batches_SB = draw_batches(
            fold_in(key, 2 * number + 2), classes, settings.batch_size, settings.balanced
        )
        for i, batch in enumerate(rows.training[batches_SB]):
            tokens, length = encoders.fill([ids[row] for row in batch], encoder.limit)
            noise = fold_in(fold_in(key, 2 * number + 3), i)
            state, loss = step(state, noise, tokens, length, rows.target[batch])
            losses.append(loss)
        return state, float(np.mean([float(loss) for loss in losses]))

    def evaluate(weights: Weights) -> float:
        run = functools.partial(
            encoders.class_probabilities, config, _join(frozen, weights), target=target
        )
        predicted = encoders.over_batches(
            run,
            [ids[row] for row in rows.validation],
            limit=encoder.limit,
            batch=encoders.default_batch(weights),
        ).argmax(1)
        return _macro_f1(rows.target[rows.validation], predicted, len(rows.names))

    start = TrainState(weights, _optimizer(schedule).init(weights))
    best, log = best_epoch(train_epoch, evaluate, start, settings.epochs)
    params = jax.tree.map(jnp.asarray, _join(frozen, best))
    return Classifier(encoder._replace(config=config, params=params), rows.names), log


def _divide(params: dict[str, Any], blocks: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stays and what is trained: all, or the last `blocks` blocks and the head."""
    if blocks is None:
        return {"layers": []}, params
    layers = params["layers"]
    first = max(0, len(layers) - blocks)
    frozen = {name: value for name, value in params.items() if name not in ("layers", "head")}
    return frozen | {"layers": layers[:first]}, {"layers": layers[first:], "head": params["head"]}


def _join(frozen: dict[str, Any], weights: dict[str, Any]) -> dict[str, Any]:
    return {**frozen, **weights, "layers": [*frozen["layers"], *weights["layers"]]}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _encoder_step(
    config: EncoderConfig,
    schedule: Schedule,
    target: Target,
    frozen: dict[str, Any],
    state: TrainState,
    key: jax.Array,
    tokens_BT: jax.Array,
    length_B: jax.Array,
    target_B: jax.Array,
) -> tuple[TrainState, jax.Array]:
    rates = encoders.dropout_rates(config)
    dropout = Dropout(rates, keys_of_rows(key, tokens_BT.shape[0])) if rates else None

    def objective(weights):
        logits_BC = encoders.class_logits(
            config, _join(frozen, weights), tokens_BT, length_B, dropout, target
        )
        return _cross_entropy(logits_BC, target_B)

    with jax.named_scope("classifier_step"):
        loss, grads = jax.value_and_grad(objective)(state.weights)
        return _update(schedule, state, grads), loss
