"""Generating the texts of many chains: with which weights, in how many slots, in which calls."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxloop.config.sections import SampleConfig
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation.beam import beam_search
from jaxloop.lm.generation.decode_call import (
    DecodeBatch,
    GeneratedText,
    pack_call_adapters,
    start_call,
    texts_of_call,
)
from jaxloop.lm.generation.jobs import DeviceCall, PromptIds, share_out, split_into_calls
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.prefill import unstack_layers
from jaxloop.lm.generation.slot_plan import MAX_SHARED_PROMPTS, plan_slots
from jaxloop.lm.generation.slots import Completions
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.sharding import device_bytes, devices_of, mesh_of, place_like, programs_on
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.recursion.family import GenerateResult, GenerateTask
from jaxloop.runtime.devices import platform_of, run_concurrently
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.memory import halve_after_out_of_memory, is_out_of_memory
from jaxloop.runtime.setup_jit import setup_jit

_unstack_program = setup_jit(unstack_layers)


def _unstack_base(params: dict[str, Any]) -> dict[str, Any]:
    """`unstack_layers`, on a single CPU by views on the host: no program has to be compiled."""
    stacked = jax.tree.leaves(params["layers"])
    devices = {device for leaf in stacked for device in leaf.devices()}
    if len(devices) > 1 or platform_of(params) != "cpu":
        return _unstack_program(params)

    def layer(i: int, leaf: jax.Array) -> jax.Array:
        piece = np.asarray(leaf)[i]
        return jax.device_put(piece, leaf.sharding if leaf.committed else None)

    count = stacked[0].shape[0]
    layers = [jax.tree.map(functools.partial(layer, i), params["layers"]) for i in range(count)]
    return {**params, "layers": layers}


def generate(
    model: Model,
    tasks: Sequence[GenerateTask],
    sample: SampleConfig,
    options: GenerateOptions = GenerateOptions(),
) -> list[GenerateResult]:
    """Generate every task's texts, one per prompt.

    A text depends on its task's key and weights, its row number and its prompt. `sample.slots` and
    the other sizes change the speed, not what is drawn; but with another number of slots, matrix
    products may round differently.

    Args:
        model: the base model.
        tasks: their weights are None (the base model itself), an adapter as `options.lora`
            describes it, or a tree with "embed", which replaces all weights.
        sample: how texts are drawn.
        options: everything else.

    Raises:
        ValueError: a prompt and `max_new_tokens` do not fit the model's context, or a prompt is
            longer than `options.prompt_len`.
    """
    prompt_ids = [batching.encode_prompts(model.tokenizer, task.prompts) for task in tasks]
    _check_lengths(model, prompt_ids, sample, options)
    if sample.decoder == "beam":
        texts = _search_beams(model, tasks, prompt_ids, sample, options)
    else:
        texts = _decode(model, tasks, prompt_ids, sample, options)
    by_row = {(text.task, text.row): text for text in texts}
    results = []
    for i, task in enumerate(tasks):
        of_task = [by_row[i, row] for row in range(len(task.prompts))]
        results.append(
            GenerateResult(
                texts=model.tokenizer.decode([text.without_eos for text in of_task]),
                tokens=np.array([len(text.tokens) for text in of_task], np.int64),
                finished=np.array([text.ended for text in of_task], bool),
            )
        )
    return results


def _check_lengths(
    model: Model, prompt_ids: PromptIds, sample: SampleConfig, options: GenerateOptions
) -> None:
    longest = _longest(prompt_ids)
    if longest + sample.max_new_tokens > model.config.max_seq_len:
        raise ValueError(
            f"sample.max_new_tokens: {sample.max_new_tokens} after a prompt of {longest} "
            "tokens exceed the context of "
            f"{model.name or model.config.architecture}, {model.config.max_seq_len} tokens; "
            "lower it"
        )
    if options.prompt_len is not None and options.prompt_len < longest:
        raise ValueError(
            f"sample.max_prompt: {options.prompt_len} is not allowed; the longest prompt has "
            f"{longest} tokens"
        )


def _longest(prompt_ids: PromptIds) -> int:
    return max((len(prompt) for task in prompt_ids for prompt in task), default=1)


def has_all_weights(weights: Any) -> bool:
    """Return whether a chain's weights are all of a model's, not an adapter."""
    return weights is not None and "embed" in weights


def _decode(
    model: Model,
    tasks: Sequence[GenerateTask],
    prompt_ids: PromptIds,
    sample: SampleConfig,
    options: GenerateOptions,
) -> list[GeneratedText]:
    """Generate all texts by sampling, or greedily.

    Chains that have full weights of their own share nothing, so they go first, one after another.
    Then come all chains that use the base model as it is, then all that use it with adapters.
    """
    texts: list[GeneratedText] = []
    decode_with = functools.partial(
        _decode_with,
        model=model,
        tasks=tasks,
        prompt_ids=prompt_ids,
        sample=sample,
        options=options,
    )
    complete = [i for i, task in enumerate(tasks) if has_all_weights(task.weights)]
    for i in complete:
        weights = place_like(model, _cast(tasks[i].weights, options.dtype))
        texts += decode_with(unstack_layers(weights), [i], adapted=False)
    others = [i for i in range(len(tasks)) if i not in complete]
    for adapted in (False, True):
        chosen = [i for i in others if (tasks[i].weights is not None) == adapted]
        if chosen:
            texts += decode_with(_unstack_base(model.params), chosen, adapted=adapted)
    return texts


def _cast(weights: Any, dtype: str) -> Any:
    return jax.tree.map(lambda w: jnp.asarray(w).astype(dtype), weights)


def _decode_with(
    params: dict[str, Any],
    chosen: Sequence[int],
    *,
    adapted: bool,
    model: Model,
    tasks: Sequence[GenerateTask],
    prompt_ids: PromptIds,
    sample: SampleConfig,
    options: GenerateOptions,
) -> list[GeneratedText]:
    """Generate the texts of the chosen tasks with `params`.

    The number of slots is halved each time that the device runs out of memory.
    """
    mesh = mesh_of(model) if _on_mesh(params) else None
    num_devices = 1 if mesh is None else mesh.size
    counts = sorted((len(prompt_ids[i]) for i in chosen), reverse=True)[::num_devices]
    shared = all(len(set(map(tuple, prompt_ids[i]))) <= MAX_SHARED_PROMPTS for i in chosen)
    prompt_len = options.prompt_len or batching.bucket(_longest(prompt_ids))
    plan = plan_slots(
        sample,
        model.config,
        target_of(model.config, model.params, mesh),
        counts,
        dtype=options.dtype,
        memory=device_bytes(next(iter(devices_of(model)))),
        own_prompt_len=0 if shared else prompt_len,
    )
    batch = DecodeBatch(
        model=model,
        params=params,
        adapted=adapted,
        tasks=tasks,
        prompt_ids=prompt_ids,
        sample=sample,
        options=options,
        plan=plan,
        prompt_len=prompt_len,
        shared_prompts=shared,
        mesh=mesh,
    )
    while True:
        try:
            return _run_calls(batch, chosen)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            slots = halve_after_out_of_memory(
                error,
                batch.plan.slots,
                "sample.slots",
                "lower sample.max_new_tokens or choose a smaller base",
            )
            plan = dataclasses.replace(
                batch.plan,
                slots=slots,
                slots_per_adapter=min(batch.plan.slots_per_adapter, slots),
            )
            batch = dataclasses.replace(batch, plan=plan)


def _on_mesh(params: dict[str, Any]) -> bool:
    sharding = jax.tree.leaves(params)[0].sharding
    return isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names


def _run_calls(batch: DecodeBatch, chosen: Sequence[int]) -> list[GeneratedText]:
    """Generate the texts of the chosen tasks.

    As many chains run together as a call has places for their adapters, in as many calls as their
    texts need.
    """
    plan = batch.plan
    chains = plan.chains_per_call if plan.num_groups > 1 or not batch.adapted else 1
    chains *= batch.num_devices
    concurrent = programs_on(batch.model, batch.options.concurrent_programs or 0)
    texts: list[GeneratedText] = []
    steps: list[int] = []
    for at in range(0, len(chosen), chains):
        devices = share_out(
            batch.prompt_ids,
            chosen[at : at + chains],
            batch.shared_prompts,
            plan,
            batch.num_devices,
        )
        adapters = pack_call_adapters(batch, devices) if batch.adapted else None

        def take(call: list[DeviceCall], completions: Completions) -> None:
            steps.extend(completions.steps.tolist())
            texts.extend(list(texts_of_call(call, completions)))

        calls = split_into_calls(devices, plan.texts_per_call, plan.texts_per_program, concurrent)
        start = functools.partial(start_call, batch, adapters)
        run_concurrently(start, take, calls, concurrent)
    _log_occupancy(texts, sum(steps), batch.shape.num_slots)
    return texts


def _log_occupancy(texts: Sequence[GeneratedText], steps: int, num_slots: int) -> None:
    """Log the share of slots' steps that sampled a token of a text; in others the slot was idle."""
    if not steps:
        return
    sampled = sum(len(text.tokens) for text in texts)
    LOGGER.info(
        "decoding: %s texts, %d at a time, %s steps; the places were %.0f %% full",
        f"{len(texts):,}",
        num_slots,
        f"{steps:,}",
        100 * sampled / (steps * num_slots),
    )


def _search_beams(
    model: Model,
    tasks: Sequence[GenerateTask],
    prompt_ids: PromptIds,
    sample: SampleConfig,
    options: GenerateOptions,
) -> list[GeneratedText]:
    """All texts, by beam search, one chain after another."""
    texts = []
    for i, task in enumerate(tasks):
        params, adapters = model.params, None
        if has_all_weights(task.weights):
            params = _cast(task.weights, options.dtype)
        elif task.weights is not None:
            adapters = lora.stack([lora.as_adapter(task.weights, options.lora)])
        found = beam_search(
            model.config,
            params,
            prompt_ids[i],
            num_beams=sample.num_beams,
            max_new_tokens=sample.max_new_tokens,
            eos=model.tokenizer.ends,
            pad=model.tokenizer.pad,
            adapters=adapters,
            repetition_penalty=sample.repetition_penalty,
            rows=min(16, len(set(map(tuple, prompt_ids[i])))),
            prompt_len=options.prompt_len or 0,
        )
        for row, tokens in enumerate(found):
            ended = len(tokens) > 0 and tokens[-1] in model.tokenizer.ends
            texts.append(GeneratedText(i, row, np.asarray(tokens, np.int32), ended))
    return texts
