"""Losses of texts under trained weights, with the template and truncation of training.

Dimensions: B rows of a batch, T tokens, n texts.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config.sections import FitConfig
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.sharding import place_like
from jaxloop.lm.target import Target, target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.loss import row_nll
from jaxloop.runtime.setup_jit import setup_jit

# A program's arguments may come from the host.
Array = jax.Array | Any


class LossTask(NamedTuple):
    """Texts [n] to score after their prompts [n] under `weights`; None: the base."""

    weights: Any
    texts: Sequence[str]
    prompts: Sequence[str]


class LossResult(NamedTuple):
    """Losses of the texts of a task.

    nll        [n] -log p in nats of each text, and of its EOS where it fits
    tokens     [n] how many tokens that is
    token_nll  n arrays [tokens]: those of each token
    """

    nll: np.ndarray
    tokens: np.ndarray
    token_nll: Sequence[np.ndarray]


class _PendingBatch(NamedTuple):
    """A batch whose losses are being computed."""

    texts: np.ndarray  # [B] which text each row is, -1 for an empty row
    mask_BT: np.ndarray  # [B, T - 1] tokens that count
    nll_BT: jax.Array  # [B, T - 1]


def loss(
    model: Model, tasks: Sequence[LossTask], fit: FitConfig, *, rows: int = 32
) -> list[LossResult]:
    """Score texts under each task's weights, `rows` texts at a time.

    `fit.completion_only` says whether the tokens of prompts count.
    """
    limit = min(fit.max_length, model.config.max_seq_len)
    encoded: dict[tuple, batching.Examples] = {}
    pending = []
    for task in tasks:
        source = (tuple(task.texts), tuple(task.prompts))
        if source not in encoded:
            encoded[source] = batching.encode_examples(
                model.tokenizer,
                task.texts,
                task.prompts,
                max_length=limit,
                completion_only=fit.completion_only,
            )
        params, adapter = params_of(model, task.weights, fit)
        pending.append(_start(model, params, adapter, encoded[source], rows, limit))
    return [_result(batches) for batches in pending]


def _start(
    model: Model,
    params: dict[str, Any],
    adapter: dict[str, Any] | None,
    examples: batching.Examples,
    rows: int,
    limit: int,
) -> list[_PendingBatch]:
    target = target_of(model.config, params)
    pending = []
    for batch in batching.evaluation_batches(examples.lengths, rows, limit):
        tokens_SBT, mask_SBT = batching.fill(examples, batch, 1, model.tokenizer.pad)
        nll_BT = batch_nll(model.config, params, adapter, tokens_SBT[0], target)
        pending.append(_PendingBatch(batch.rows[0], mask_SBT[0, :, 1:], nll_BT))
    return pending


def _result(batches: Sequence[_PendingBatch]) -> LossResult:
    by_text: dict[int, np.ndarray] = {}
    for batch in batches:
        nll_BT = np.asarray(batch.nll_BT, np.float64)
        for row, text in enumerate(batch.texts):
            if text >= 0:
                by_text[int(text)] = nll_BT[row, batch.mask_BT[row]]
    token_nll = [by_text[text] for text in range(len(by_text))]
    return LossResult(
        nll=np.array([x.sum() for x in token_nll]),
        tokens=np.array([len(x) for x in token_nll], np.int64),
        token_nll=token_nll,
    )


def params_of(
    model: Model, weights: Any, fit: FitConfig
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the parameters and the packed adapter that a chain's weights stand for.

    Args:
        model: the base model.
        weights: an adapter, all weights (a tree with "embed"), or None for the base model itself.
        fit: settings of the adapter, and the dtype that weights are cast to.

    Returns:
        The parameters, and the adapter packed for one chain (C = 1); None where there is none.
    """
    dtype = jnp.dtype(fit.dtype)
    if weights is None:
        return model.params, None
    if "embed" in weights:
        cast = jax.tree.map(lambda w: jnp.asarray(w).astype(dtype), weights)
        return place_like(model, cast), None
    return model.params, _pack(model.config, dtype, lora.as_adapter(weights, fit.lora))


@setup_jit(static_argnums=(0, 1))
def _pack(config, dtype, adapter):
    return lora.pack_adapters(config, lora.stack([adapter]), dtype, "mergeable")


@functools.partial(jax.jit, static_argnums=(0, 4))
def batch_nll(
    config: ModelConfig,
    params: dict[str, Any],
    adapter: dict[str, Any] | None,
    tokens_BT: Array,
    target: Target,
) -> jax.Array:
    """-log p [B, T - 1] of each token given those before it."""
    return row_nll(config, params, tokens_BT, packed=adapter, target=target)
