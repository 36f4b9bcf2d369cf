"""The decoding loop with a cache in blocks: many texts of many chains in one compiled program.

This is continuous batching with one adapter per chain. A fixed number of slots each generate one
text at a time. Slots come in adapter groups: a group holds the adapter of one chain and takes
requests of one job, a queue of that chain's requests. Each step of the loop runs the model on the
last token of every slot and samples the next one. Every W steps, at a window's start, idle slots
take their jobs' next requests, and groups whose job is done take another job, with its adapter and
its prompt cache.

Every text begins at a window's start. So token `age` of a text lies at step `age` % W of a window,
whenever and wherever the text is generated, and its sums are taken in the same order: a text
depends neither on the other texts nor on when it runs. `kv_blocks` says how keys and values are
kept; `decode_rows` is the engine for accelerators.

Dimensions: A adapter groups, B slots of a group, S = A B slots, W steps of a window, M most new
tokens, N requests, J jobs, C chains, L layers, G key/value heads, Q query heads per key/value head,
K head size, P prompt cache length, V vocabulary, T blocks read.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxloop.lm.generation import kv_blocks, queues, slots
from jaxloop.lm.generation.kv_blocks import KVRing
from jaxloop.lm.generation.prefill import unstack_layers
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slots import (
    Completions,
    DecodeShape,
    Jobs,
    Outputs,
    PromptCache,
    Requests,
    Slots,
    StepLog,
)
from jaxloop.lm.model import rotary, transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.lora import num_chains


class _Groups(struct.PyTreeNode):
    """What each adapter group holds."""

    job: jax.Array  # [A] -1 when free
    prompt: jax.Array  # [A] or [S] prompt whose cache is held, -1 for none
    keys: list[jax.Array]  # L x [A or S, G, P, K]
    values: list[jax.Array]
    adapter: Sequence[dict[str, Any] | None]  # L x {projection: {"a": [A, ...], "b": [A, ...]}}


class _State(struct.PyTreeNode):
    """What the loop carries from window to window."""

    slots: Slots
    groups: _Groups
    next_J: jax.Array  # next request of each job
    ring: KVRing
    outputs: Outputs


@dataclass(frozen=True)
class _Static:
    """What is fixed when the program is compiled."""

    config: ModelConfig
    sampler: Sampler
    shape: DecodeShape
    eos: int | tuple[int, ...] | None
    platform: str


class _Inputs(NamedTuple):
    """Arrays that the loop only reads."""

    params: dict[str, Any]
    adapters: dict[str, Any] | None
    rope: tuple[jax.Array, ...] | None  # cosines and sines of every position
    prompts: PromptCache
    requests: Requests
    jobs: Jobs


class _StepCarry(NamedTuple):
    """What the steps of a window carry."""

    step: jax.Array  # [] steps of the window done
    keys: list[jax.Array]  # L x [T, G, W, K]
    values: list[jax.Array]
    slots: Slots
    log: StepLog


class _WindowResult(NamedTuple):
    """What a window made: keys and values of its own blocks, L x [S, G, W, K]."""

    keys: list[jax.Array]
    values: list[jax.Array]
    slots: Slots
    log: StepLog
    steps: jax.Array


@functools.partial(
    jax.jit, static_argnames=("config", "sampler", "shape", "eos", "mesh", "platform")
)
def decode(
    config: ModelConfig,
    params: dict[str, Any],
    adapters: dict[str, Any] | None,
    prompts: PromptCache,
    requests: Requests,
    jobs: Jobs,
    *,
    sampler: Sampler,
    shape: DecodeShape,
    eos: int | tuple[int, ...] | None,
    mesh: Mesh | None = None,
    platform: str = "cpu",
) -> Completions:
    """Generate the text of every request.

    A text ends with an EOS or at its limit. With the same (shape, sampler, padded sizes), a text
    does not depend on the other requests and jobs.

    Args:
        config: config of the model.
        params: weights, as from `unstack_layers` or stacked.
        adapters: packed adapters of C chains with block-diagonal b, or None.
        prompts: caches, as from `prefill`.
        requests: padded; requests outside every job are not generated.
        jobs: queues of requests of one chain, where prompts are shared also of one prompt; padded
            by jobs with first == end.
        sampler: how a token is drawn.
        shape: static shape of the program.
        eos: token or tokens that end a text; None: none does.
        mesh: devices over which everything but `params` is sharded on its leading axis, with
            indices that count inside a device's piece. Each device runs its own loop of `shape`
            slots and stops by itself.
        platform: what the program is compiled for.
    """
    if not isinstance(params["layers"], list):
        params = unstack_layers(params)
    static = _Static(config, sampler, shape, eos, platform)
    run = slots.map_over_devices(functools.partial(_decode, static), mesh, 1)
    return run(params, adapters, prompts, requests, jobs)


@jax.named_scope("decode")
def _decode(
    static: _Static,
    params: dict[str, Any],
    adapters: dict[str, Any] | None,
    prompts: PromptCache,
    requests: Requests,
    jobs: Jobs,
) -> Completions:
    shape = static.shape
    dtype = params["embed"].dtype
    if adapters is not None and slots.merges(shape, num_chains(adapters), dtype):
        params, adapters = _merge_adapter(params, adapters), None
    # Sines and cosines are looked up: XLA would fuse them into their readers and compute them again
    # for every head of every layer.
    positions = jnp.arange(shape.prompt_len + shape.max_new_tokens + 1)
    inputs = _Inputs(
        params=params,
        adapters=adapters,
        rope=rotary.rope_tables(static.config, positions),
        prompts=prompts,
        requests=requests,
        jobs=jobs,
    )

    def run_and_assign(state):
        return _assign_jobs(static, inputs, _run_window(static, inputs, state))

    state = _assign_jobs(static, inputs, _first_state(static, inputs))
    state = jax.lax.while_loop(lambda s: (s.slots.request >= 0).any(), run_and_assign, state)
    return slots.completions(state.outputs)


def _first_state(static: _Static, inputs: _Inputs) -> _State:
    """All slots and groups idle."""
    config, shape = static.config, static.shape
    depth, dtype = len(inputs.params["layers"]), inputs.params["embed"].dtype
    free_A = jnp.full((shape.num_groups,), -1, jnp.int32)
    holders = shape.num_groups if shape.shared_prompt else shape.num_slots
    cache = jnp.zeros((holders, *inputs.prompts.keys[0].shape[1:]), dtype)
    groups = _Groups(
        job=free_A,
        prompt=jnp.full((holders,), -1, jnp.int32),
        keys=[cache] * depth,
        values=[cache] * depth,
        adapter=_group_adapters(inputs.adapters, jnp.zeros_like(free_A), depth),
    )
    return _State(
        slots=slots.idle_slots(shape, static.sampler, config.vocab_size),
        groups=groups,
        next_J=jnp.asarray(inputs.jobs.first),
        ring=kv_blocks.empty_ring(shape, depth, config.num_kv_heads, config.head_dim, dtype),
        outputs=slots.empty_outputs(inputs.requests.limit.shape[0], shape.max_new_tokens),
    )


def _merge_adapter(params, adapters):
    """Merge the adapter of the only chain that a call generates for: W + a b.

    No other chain needs the base's weights then, and the sum costs only as much as a step or two.
    """

    def merge(weights, i):
        merged = {}
        for projection, adapter in adapters.items():
            a_DR, b_RO = adapter.a[0, i], adapter.b[0, i]
            w_DO = weights[projection]
            delta_DO = jnp.einsum("dr,ro->do", a_DR, b_RO, preferred_element_type=jnp.float32)
            merged[projection] = (w_DO + delta_DO).astype(w_DO.dtype)
        return weights | merged

    return params | {"layers": [merge(weights, i) for i, weights in enumerate(params["layers"])]}


def _group_adapters(adapters, chain_A, depth):
    """Adapters of the groups, by layer.

    The adapter of a single chain needs no copies: it serves all slots in one product.
    """
    if adapters is None:
        return [None] * depth
    if num_chains(adapters) > 1:
        adapters = jax.tree.map(lambda leaf: leaf[chain_A], adapters)
    return [transformer.adapter_layer(adapters, i) for i in range(depth)]


def _assign_jobs(static: _Static, inputs: _Inputs, state: _State) -> _State:
    """Assign work at a window's start.

    Free groups take jobs, idle slots take requests of their groups' jobs, and the adapters and
    prompt caches of the groups are replaced where these changed.
    """
    shape, groups, jobs = static.shape, state.groups, inputs.jobs
    request_S = state.slots.request
    job_A = queues.groups_jobs(shape, request_S, groups.job, state.next_J, jobs)
    request_S, next_J, fresh_S = queues.take_requests(shape, request_S, job_A, state.next_J, jobs)
    takes_A, some_job_A = (job_A >= 0) & (job_A != groups.job), jnp.maximum(job_A, 0)
    if shape.shared_prompt:
        of_job_A = inputs.requests.prompt[jobs.first[some_job_A]]
        prompt = jnp.where(takes_A, of_job_A, groups.prompt)
        prompt_S = jnp.repeat(prompt, shape.slots_per_group)
    else:
        of_request_S = inputs.requests.prompt[jnp.maximum(request_S, 0)]
        prompt = jnp.where(fresh_S, of_request_S, groups.prompt)
        prompt_S = prompt
    started = slots.start_requests(
        inputs.prompts, state.slots.replace(request=request_S), fresh_S, prompt_S
    )
    keys, values = _prompt_caches(inputs.prompts, groups, prompt)
    groups = _Groups(
        job=job_A,
        prompt=prompt,
        keys=keys,
        values=values,
        adapter=_assigned_adapters(inputs, groups, takes_A, some_job_A),
    )
    return state.replace(slots=started, groups=groups, next_J=next_J)


def _prompt_caches(
    prompts: PromptCache, groups: _Groups, prompt: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Keys and values of the prompts [A or S], copied only where one of them changed."""

    def copy():
        return [k[prompt] for k in prompts.keys], [v[prompt] for v in prompts.values]

    def keep():
        return groups.keys, groups.values

    return jax.lax.cond((prompt != groups.prompt).any(), copy, keep)


def _assigned_adapters(
    inputs: _Inputs, groups: _Groups, takes_A: jax.Array, job_A: jax.Array
) -> Sequence[dict[str, Any] | None]:
    """The groups' adapters by layer, copied only where a group took a job."""
    adapters, depth = inputs.adapters, len(groups.keys)
    if adapters is None or num_chains(adapters) == 1:
        return groups.adapter

    def copy():
        return _group_adapters(adapters, inputs.jobs.chain[job_A], depth)

    return jax.lax.cond(takes_A.any(), copy, lambda: groups.adapter)


def _run_window(static: _Static, inputs: _Inputs, state: _State) -> _State:
    """Run up to W steps.

    The number of blocks that are read is chosen first, because it is static. Then they are
    gathered, the steps run, and the window's own blocks and tokens are stored.
    """
    shape = static.shape
    earlier_S = -(-state.slots.age // shape.window)
    earlier_S = jnp.where(state.slots.request >= 0, earlier_S, 0)
    buckets = kv_blocks.block_count_buckets(shape)
    too_small = earlier_S.sum(dtype=jnp.int32) >= jnp.array(buckets[:-1], jnp.int32)
    branches = [functools.partial(_steps, static, inputs, bucket) for bucket in buckets]
    window = jax.lax.switch(too_small.sum(dtype=jnp.int32), branches, state, earlier_S)
    return state.replace(
        slots=window.slots,
        ring=kv_blocks.store_window(state.ring, window.keys, window.values),
        outputs=slots.file_log(state.outputs, window.log, window.steps),
    )


def _steps(
    static: _Static, inputs: _Inputs, block_count: int, state: _State, earlier_S: jax.Array
) -> _WindowResult:
    """The steps of one window with room for `block_count` blocks of earlier ones."""
    shape, prompts, groups = static.shape, inputs.prompts, state.groups
    blocks = kv_blocks.gather_blocks(shape, block_count, state.ring, earlier_S)
    prompt_len = prompts.length[jnp.maximum(groups.prompt, 0)]  # [A or S]
    prompt_len_S = prompt_len
    if shape.shared_prompt:
        prompt_len_S = jnp.repeat(prompt_len, shape.slots_per_group)
    model_step = functools.partial(
        _model_step, static, inputs, blocks, groups, prompt_len, prompt_len_S
    )

    def step(carry: _StepCarry) -> _StepCarry:
        logits_SV, keys, values = model_step(carry)
        after, entry = slots.sample_step(
            static.sampler, static.eos, inputs.requests, carry.slots, logits_SV
        )
        log = slots.write_log(carry.log, carry.step, entry)
        return _StepCarry(carry.step + 1, keys, values, after, log)

    def goes_on(carry: _StepCarry) -> jax.Array:
        return (carry.step < shape.window) & (carry.slots.request >= 0).any()

    first = _StepCarry(
        step=jnp.int32(0),
        keys=blocks.keys,
        values=blocks.values,
        slots=state.slots,
        log=slots.empty_log(shape),
    )
    last = jax.lax.while_loop(goes_on, step, first)
    return _WindowResult(
        keys=[k[: shape.num_slots] for k in last.keys],
        values=[v[: shape.num_slots] for v in last.values],
        slots=last.slots,
        log=last.log,
        steps=last.step,
    )


@jax.named_scope("decode_step")
def _model_step(
    static: _Static,
    inputs: _Inputs,
    blocks: kv_blocks.KVBlocks,
    groups: _Groups,
    prompt_len: jax.Array,
    prompt_len_S: jax.Array,
    carry: _StepCarry,
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """Run the model on the last token of every slot.

    Returns logits [S, V], and the blocks of keys and of values with the new ones, by layer.
    """
    config, shape, step = static.config, static.shape, carry.step
    age_S = carry.slots.age
    position_S = prompt_len_S + age_S
    x_SD = transformer.embed(config, inputs.params, carry.slots.token, position_S)
    rope = None
    if inputs.rope is not None:
        rope = tuple(table[position_S] for table in inputs.rope)
    steps_back_TW = blocks.steps_back + step
    seen_TW = (steps_back_TW >= 0) & (steps_back_TW <= age_S[blocks.slot][:, None])
    keys, values = list(carry.keys), list(carry.values)

    def attend(i, q, k, v):
        if rope is not None:
            q, k = rotary.rotate(q, *rope), rotary.rotate(k, *rope)
        keys[i] = jax.lax.dynamic_update_slice(keys[i], k[:, :, None], (0, 0, step, 0))
        values[i] = jax.lax.dynamic_update_slice(values[i], v[:, :, None], (0, 0, step, 0))
        q = _computed_once(static.platform, q)
        q_SGQK = q.reshape(shape.num_slots, config.num_kv_heads, -1, config.head_dim)
        out = kv_blocks.attend_blocks(
            shape,
            blocks,
            q_SGQK,
            keys[i],
            values[i],
            seen_TW,
            kv_blocks.prompt_scores(shape, q_SGQK, groups.keys[i], prompt_len),
            groups.values[i],
        )
        return out.astype(q.dtype).reshape(shape.num_slots, -1)

    for i, weights in enumerate(inputs.params["layers"]):
        attend_i = functools.partial(attend, i)
        x_SD = transformer.block(config, weights, groups.adapter[i], x_SD, attend_i)
    x_SD = transformer.final_norm(config, inputs.params, x_SD)
    return transformer.lm_logits(config, inputs.params, x_SD), keys, values


def _computed_once(platform, x):
    """x, in a form that XLA does not compute again for each of its readers.

    All blocks of a slot read its query, and a CPU would rotate it again for each. There XLA drops
    barriers, but it never fuses a product into its readers.
    """
    if platform != "cpu":
        return jax.lax.optimization_barrier(x)
    return x @ jnp.eye(x.shape[-1], dtype=x.dtype)
