"""Losses of texts under trained weights, with the template and truncation of training.

Dimensions: B rows of a batch, T tokens, n texts.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config.sections import FitConfig
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.sharding import place_like, programs_on
from jaxloop.lm.target import Target, target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.loss import forward_nll
from jaxloop.runtime.devices import programs_at_once, run_concurrently
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


class _Job(NamedTuple):
    """A batch of a task whose losses are computed by one program."""

    task: int
    examples: batching.Examples
    batch: batching.StepBatch


def loss(
    model: Model, tasks: Sequence[LossTask], fit: FitConfig, *, rows: int = 32
) -> list[LossResult]:
    """Score texts under each task's weights, at most `rows` texts at a time.

    `fit.completion_only` says whether the tokens of prompts count. Several batches are under
    way at the same time.
    """
    limit = min(fit.max_length, model.config.max_seq_len)
    target = target_of(model.config, model.params)
    encoded: dict[tuple, batching.Examples] = {}
    jobs = []
    for number, task in enumerate(tasks):
        source = (tuple(task.texts), tuple(task.prompts))
        if source not in encoded:
            encoded[source] = batching.encode_examples(
                model.tokenizer,
                task.texts,
                task.prompts,
                max_length=limit,
                completion_only=fit.completion_only,
            )
        examples = encoded[source]
        batches = batching.evaluation_batches(
            examples.lengths, rows, limit, target.platform, predicted=True
        )
        jobs += [_Job(number, examples, batch) for batch in batches]
    token_nll: list[dict[int, np.ndarray]] = [{} for _ in tasks]
    # The weights of one task at a time are on the device, but for those of programs that run.
    loaded: dict[int, Any] = {}

    def start(job: _Job) -> jax.Array:
        if job.task not in loaded:
            loaded.clear()
            loaded[job.task] = params_of(model, tasks[job.task].weights, fit)
        params, adapter = loaded[job.task]
        tokens_SBT, _ = batching.fill(job.examples, job.batch, 1, model.tokenizer.pad)
        own = target_of(model.config, params)
        return batch_nll(model.config, params, adapter, tokens_SBT[0], own)

    def take(job: _Job, nll_BT: np.ndarray) -> None:
        _, mask_SBT = batching.fill(job.examples, job.batch, 1, model.tokenizer.pad)
        for row, text in enumerate(job.batch.rows[0]):
            if text >= 0:
                counted = mask_SBT[0, row, 1:]
                token_nll[job.task][int(text)] = nll_BT[row, counted].astype(np.float64)

    # Two on an accelerator: the next batch is filled while one is computed.
    programs = max(2, programs_at_once(target.platform))
    run_concurrently(start, take, jobs, programs_on(model, programs))
    return [_result(of_task) for of_task in token_nll]


def _result(by_text: Mapping[int, np.ndarray]) -> LossResult:
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

    Raises:
        ValueError: an adapter in a wider number format than that of the base.
    """
    dtype = jnp.dtype(fit.dtype)
    if weights is None:
        return model.params, None
    if "embed" in weights:
        cast = jax.tree.map(lambda w: jnp.asarray(w).astype(dtype), weights)
        return place_like(model, cast), None
    lora.check_dtype(model.params, fit.dtype)
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
    return forward_nll(config, params, tokens_BT, packed=adapter, target=target)
