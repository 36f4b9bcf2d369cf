"""The decoding loop with a cache in rows: `decode_loop.decode` for accelerators.

Each slot has a cache row of its own. On a GPU, kernels write the row in place and read only the
part that is filled (`row_attention`, `row_adapters`). On a TPU XLA writes all rows at the same
index, so that each row is a ring (`ring_attention`).

A text does not depend on the step at which it starts: on a GPU, token `age` of a slot lies at index
`age` of its row. So the slots of all adapter groups that hold one chain's adapter take texts from
one queue, at any step, and slots are idle only when a chain has no more texts. What need not happen
in every step happens at the end of a window: groups change chains, and the sampled tokens are
copied to the outputs.

Dimensions: A adapter groups, B slots of a group, S = A B slots, W steps of a window, N requests,
J jobs, C chains, L layers, D model, H query heads, G key/value heads, K head size, M cached tokens
of a slot, P prompt cache length, Z cached prompts, V vocabulary.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxloop.core.categorical import PickBlock
from jaxloop.lm.generation import (
    queues,
    ring_attention,
    ring_blocks,
    row_adapters,
    row_attention,
    slots,
)
from jaxloop.lm.generation.prefill import unstack_layers
from jaxloop.lm.generation.row_adapters import GroupAdapter, RowAdapter
from jaxloop.lm.generation.row_attention import RowStep
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
from jaxloop.lm.model.config import ModelConfig, fused_projections
from jaxloop.lm.model.lora import num_chains


class _State(struct.PyTreeNode):
    """What the loop carries from step to step."""

    slots: Slots
    prompt: jax.Array  # [S] prompt of the slot's text
    job_A: jax.Array  # -1 when free
    next_J: jax.Array  # next request of each job
    keys: list[jax.Array]  # L x [S, G, M, K]; of rings as `ring_attention.side_by_side` has them
    values: list[jax.Array]
    outputs: Outputs


@dataclass(frozen=True)
class _Static:
    """What is fixed when the program is compiled."""

    config: ModelConfig
    sampler: Sampler
    shape: DecodeShape
    eos: int | tuple[int, ...] | None
    implementation: str

    @property
    def rings(self) -> bool:
        """Whether all slots write at the same place of their rows."""
        return self.implementation.startswith("ring")

    @property
    def pick(self) -> PickBlock | None:
        """How sampling reads the logits of each slot's block; None: as XLA does."""
        if not self.implementation.startswith("ring_fused"):
            return None
        interpret = self.implementation.endswith("interpret")
        return functools.partial(ring_blocks.pick, interpret=interpret)


class _Inputs(NamedTuple):
    """Arrays that the loop only reads."""

    params: dict[str, Any]
    adapters: dict[str, RowAdapter] | None
    rope: tuple[jax.Array, ...] | None  # cosines and sines [positions, K / 2]
    prompts: PromptCache
    requests: Requests
    jobs: Jobs


class _GroupAdapters(NamedTuple):
    """The adapters that a window's groups use."""

    flat: dict[str, RowAdapter]  # chains and layers in one axis
    chain_A: jax.Array
    depth: int
    copies_L: list[dict[str, RowAdapter]] | None  # [A, ...] of each layer, for rings


class _StepCarry(NamedTuple):
    """What the steps of a window carry."""

    step: jax.Array  # [] steps of the window done
    state: _State
    log: StepLog


@functools.partial(
    jax.jit, static_argnames=("config", "sampler", "shape", "eos", "mesh", "implementation")
)
def decode_rows(
    config: ModelConfig,
    params: dict[str, Any],
    adapters: dict[str, RowAdapter] | None,
    prompts: PromptCache,
    requests: Requests,
    jobs: Jobs,
    *,
    sampler: Sampler,
    shape: DecodeShape,
    eos: int | tuple[int, ...] | None,
    mesh: Mesh | None = None,
    implementation: str = "pallas",
) -> Completions:
    """Generate the text of every request.

    The arguments are those of `decode_loop.decode`, except for these.

    Args:
        adapters: adapters of C chains as `row_adapters.pack_for_rows` packs them, or None.
        jobs: one for each chain that generates; several groups may work on one job. Requests of a
            job may continue different prompts, whatever `shape.shared_prompt` says.
        implementation: of attention and adapters: "pallas", "interpret" or "plain" as in
            `row_attention.attend`, or "ring", "ring_pallas" or "ring_interpret" as in
            `ring_attention.attend`. With "fused" in it gate and up are in one kernel
            (`row_products`, `ring_products`), and for rings sampling has one (`ring_blocks`).
    """
    if not isinstance(params["layers"], list):
        params = unstack_layers(params)
    static = _Static(config, sampler, shape, eos, implementation)
    run = slots.map_over_devices(functools.partial(_decode, static), mesh, 1)
    return run(params, adapters, prompts, requests, jobs)


@jax.named_scope("decode")
def _decode(
    static: _Static,
    params: dict[str, Any],
    adapters: dict[str, RowAdapter] | None,
    prompts: PromptCache,
    requests: Requests,
    jobs: Jobs,
) -> Completions:
    config, shape = static.config, static.shape
    dtype = params["embed"].dtype
    if adapters is not None and slots.merges(shape, num_chains(adapters), dtype):
        params, adapters = _merge_adapter(config, params, adapters), None
    inputs = _Inputs(
        params=params,
        adapters=adapters,
        rope=_rope_halves(config, shape),
        prompts=prompts._replace(
            keys=_for_attention(static, prompts.keys), values=_for_attention(static, prompts.values)
        ),
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
    cache_len = row_attention.cache_length(shape.max_new_tokens)
    size = (shape.num_slots, config.num_kv_heads, cache_len, config.head_dim)
    if static.rings:
        size = ring_attention.shape(*size)
    idle = slots.idle_slots(shape, static.sampler, config.vocab_size)
    return _State(
        slots=idle,
        prompt=jnp.zeros_like(idle.request),
        job_A=jnp.full((shape.num_groups,), -1, jnp.int32),
        next_J=inputs.jobs.first,
        keys=[jnp.zeros(size, dtype) for _ in range(depth)],
        values=[jnp.zeros(size, dtype) for _ in range(depth)],
        outputs=slots.empty_outputs(inputs.requests.limit.shape[0], shape.max_new_tokens),
    )


def _for_attention(static, caches):
    """Prompt caches of whole blocks, for rings with heads side by side."""
    cache_len = caches[0].shape[2]
    more = row_attention.prompt_length(cache_len) - cache_len
    if more:
        caches = [jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) for x in caches]
    if static.rings:
        caches = [ring_attention.side_by_side(x) for x in caches]
    return caches


def _rope_halves(config, shape):
    """cos and sin [positions, K / 2], or None: half of `rope_tables`, whose halves are equal."""
    positions = jnp.arange(shape.prompt_len + shape.max_new_tokens + 1)
    tables = rotary.rope_tables(config, positions)
    if tables is None:
        return None
    return tuple(table[:, : config.head_dim // 2] for table in tables)


def _merge_adapter(config, params, adapters):
    """Weights W + a b of the one chain that a call generates for."""
    widths = {
        projection: tuple(target.width for target in targets)
        for projection, targets in fused_projections(config).items()
    }

    def merge(weights, i):
        merged = {
            projection: row_adapters.merge(
                weights[projection], adapter.a[0, i], adapter.b[0, i], widths[projection]
            )
            for projection, adapter in adapters.items()
        }
        return weights | merged

    return params | {"layers": [merge(weights, i) for i, weights in enumerate(params["layers"])]}


def _logits(static, params, x_SE):
    """Logits [S, V], rounded to the model's dtype, as those of `transformers` are.

    In bfloat16 that is half the bytes, which a step writes once and reads twice. On a TPU slots lie
    in the lanes, as `inverse_cdf_of` wants them.
    """
    head_VE = transformer.lm_head(static.config, params)
    if static.rings:
        return jnp.einsum("ve,se->vs", head_VE, x_SE).T
    return jnp.einsum("se,ve->sv", x_SE, head_VE)


def _chains_and_layers_in_one_axis(adapter: RowAdapter) -> RowAdapter:
    return RowAdapter(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in adapter))


def _assign_jobs(static: _Static, inputs: _Inputs, state: _State) -> _State:
    """Assign groups to jobs at a window's start."""
    job_A = queues.groups_jobs(
        static.shape, state.slots.request, state.job_A, state.next_J, inputs.jobs
    )
    return _refill(static, inputs, state.replace(job_A=job_A))


def _refill(static: _Static, inputs: _Inputs, state: _State) -> _State:
    """Idle slots take the next texts of their groups' jobs."""
    request, next_J, fresh_S = queues.take_requests(
        static.shape, state.slots.request, state.job_A, state.next_J, inputs.jobs
    )
    prompt = jnp.where(fresh_S, inputs.requests.prompt[jnp.maximum(request, 0)], state.prompt)
    after = slots.start_requests(
        inputs.prompts, state.slots.replace(request=request), fresh_S, prompt
    )
    return state.replace(slots=after, prompt=prompt, next_J=next_J)


def _run_window(static: _Static, inputs: _Inputs, state: _State) -> _State:
    """Run up to W steps, and copy their tokens to the outputs."""
    shape = static.shape
    adapters = _group_adapters(static, inputs, state)

    def step(carry: _StepCarry) -> _StepCarry:
        state = carry.state
        live_S = state.slots.request >= 0
        age_S = jnp.where(live_S, state.slots.age, 0)
        logits_SV, keys, values = _model_step(static, inputs, adapters, carry, live_S, age_S)
        after, entry = slots.sample_step(
            static.sampler,
            static.eos,
            inputs.requests,
            state.slots.replace(age=age_S),
            logits_SV,
            pick=static.pick,
        )
        log = slots.write_log(carry.log, carry.step, entry)
        state = _refill(static, inputs, state.replace(slots=after, keys=keys, values=values))
        return _StepCarry(carry.step + 1, state, log)

    def goes_on(carry: _StepCarry) -> jax.Array:
        return (carry.step < shape.window) & (carry.state.slots.request >= 0).any()

    first = _StepCarry(jnp.int32(0), state, slots.empty_log(shape))
    last = jax.lax.while_loop(goes_on, step, first)
    outputs = slots.file_log(last.state.outputs, last.log, last.step)
    return last.state.replace(outputs=outputs)


def _group_adapters(static: _Static, inputs: _Inputs, state: _State) -> _GroupAdapters | None:
    """The adapters of a window's groups; None: there are none.

    For rings they are copied once a window, since XLA would copy them in every step.
    """
    if inputs.adapters is None:
        return None
    depth = len(inputs.params["layers"])
    chain_A = inputs.jobs.chain[jnp.maximum(state.job_A, 0)]
    flat = {
        projection: _chains_and_layers_in_one_axis(adapter)
        for projection, adapter in inputs.adapters.items()
    }
    copies_L = None
    if static.rings:
        copies_L = [_entries(flat, chain_A * depth + i) for i in range(depth)]
    return _GroupAdapters(flat, chain_A, depth, copies_L)


def _entries(adapters, entry_A):
    return jax.tree.map(lambda leaf: leaf[entry_A], adapters)


def _layer_adapter(
    static: _Static, adapters: _GroupAdapters | None, i: int
) -> dict[str, Any] | None:
    """The groups' adapters in one layer."""
    if adapters is None:
        return None
    entry_A = adapters.chain_A * adapters.depth + i
    of_layer = adapters.flat if adapters.copies_L is None else adapters.copies_L[i]
    return {
        projection: GroupAdapter(adapter, entry_A, static.implementation)
        for projection, adapter in of_layer.items()
    }


@jax.named_scope("decode_step")
def _model_step(
    static: _Static,
    inputs: _Inputs,
    adapters: _GroupAdapters | None,
    carry: _StepCarry,
    live_S: jax.Array,
    age_S: jax.Array,
) -> tuple[jax.Array, list[jax.Array], list[jax.Array]]:
    """The model on the last token of every slot: logits [S, V], keys and values."""
    config, params, prompts = static.config, inputs.params, inputs.prompts
    state = carry.state
    length_S = jnp.where(live_S, prompts.length[state.prompt], 0)
    cos, sin = None, None
    if inputs.rope is not None:
        cos, sin = (table[length_S + age_S] for table in inputs.rope)
    at = None
    if static.rings:
        at = (state.outputs.steps + carry.step) % state.keys[0].shape[2]
    now = RowStep(age=age_S, length=length_S, prompt=state.prompt, cos=cos, sin=sin, at=at)
    keys, values = list(state.keys), list(state.values)

    attention: Callable[..., Any] = ring_attention.attend
    if not static.rings:
        attention = functools.partial(row_attention.attend, heads=config.num_heads)

    def attend(i, *qkv):
        out, keys[i], values[i] = attention(
            *qkv,
            keys[i],
            values[i],
            prompts.keys[i],
            prompts.values[i],
            now,
            implementation=static.implementation,
        )
        return out

    x_SD = transformer.embed(config, params, state.slots.token, length_S + age_S)
    for i, weights in enumerate(params["layers"]):
        attend_i = functools.partial(attend, i)
        adapter = _layer_adapter(static, adapters, i)
        x_SD = transformer.block(config, weights, adapter, x_SD, attend_i, joined=not static.rings)
    logits_SV = _logits(static, params, transformer.final_norm(config, params, x_SD))
    return logits_SV, keys, values
