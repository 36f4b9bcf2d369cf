"""What both decoding engines work on: cached prompts, requests, jobs, slots and the sampling step.

A request is one text to generate. A job is a run of requests of one chain. A slot generates one
text at a time; slots come in adapter groups, and all slots of a group use the same adapter.

Dimensions: A adapter groups, B slots of a group, S = A B slots, W steps of a window, N requests,
J jobs, L layers, G key/value heads, K head size, P prompt cache length, Z cached prompts, M most
new tokens, V vocabulary.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxloop.core.categorical import PickBlock
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation import sampling
from jaxloop.lm.generation.sampling import Sampler

# A program's arguments may come from the host.
Array = jax.Array | Any


@dataclass(frozen=True)
class DecodeShape:
    """The static shape of a decoding program.

    Attributes:
        num_groups: adapter groups, A.
        slots_per_group: B.
        window: steps between two assignments of jobs to groups, W.
        max_new_tokens: M.
        prompt_len: tokens of the prompt cache, P: all of a prompt but its last token.
        shared_prompt: all requests of a job continue one prompt, whose cache the group holds once.
            Otherwise each slot holds its own prompt.
    """

    num_groups: int
    slots_per_group: int
    window: int
    max_new_tokens: int
    prompt_len: int
    shared_prompt: bool = True

    @property
    def num_slots(self) -> int:
        return self.num_groups * self.slots_per_group


class PromptCache(NamedTuple):
    """Cached prompts without their last token, which is the first input of the decoding loop."""

    keys: list[jax.Array]  # L x [Z, G, P, K], rotated
    values: list[jax.Array]  # L x [Z, G, P, K]
    length: jax.Array  # [Z] cached tokens
    last: jax.Array  # [Z] last prompt token
    tokens: jax.Array  # [Z, P + 1] whole prompt, padded with `last`


class Requests(NamedTuple):
    """Texts to generate, in the order of their jobs."""

    prompt: Array  # [N] index into the prompt cache
    key: Array  # [N, 2] threefry key data
    limit: Array  # [N] most new tokens


class Jobs(NamedTuple):
    """Runs of requests [first, end) of one chain; empty runs at the end are padding."""

    first: Array  # [J]
    end: Array  # [J]
    chain: Array  # [J] index into the adapters


class Completions(NamedTuple):
    """What a call generated.

    The share of slot steps that sampled a token of a text is length.sum() / (steps.sum() * S).
    """

    tokens: Array  # [N, M]
    length: Array  # [N] sampled tokens, EOS included
    ended: Array  # [N] whether the text ended with EOS
    steps: Array  # [1] loop steps, or one number per device


class Slots(struct.PyTreeNode):
    """The texts that are being generated."""

    token: jax.Array  # [S] next input
    age: jax.Array  # [S] tokens of the text so far, its prompt not counted
    request: jax.Array  # [S] -1 when idle
    seen: jax.Array | None  # [S, V] tokens already in the text, for the repetition penalty


class StepLog(NamedTuple):
    """What one step sampled, each [S]; or the steps of a window, each [W, S]."""

    request: jax.Array
    age: jax.Array
    token: jax.Array
    live: jax.Array  # whether the slot was generating a text
    ended: jax.Array  # whether the token was an EOS


class Outputs(struct.PyTreeNode):
    """Generated tokens so far. Row N takes what idle slots write and is never read."""

    tokens: jax.Array  # [N + 1, M]
    length: jax.Array  # [N + 1]
    ended: jax.Array  # [N + 1]
    steps: jax.Array  # []


def merges(shape: DecodeShape, chains: int, dtype: jnp.dtype) -> bool:
    """Return whether a call of so many chains adds its adapter to the weights.

    That is so for a single chain in float32. In bfloat16 the sum would lose what is small against
    the weights.
    """
    return shape.num_groups == 1 and chains == 1 and dtype == jnp.float32


def idle_slots(shape: DecodeShape, sampler: Sampler, vocab_size: int) -> Slots:
    """Slots without a request."""
    none_S = jnp.full((shape.num_slots,), -1, jnp.int32)
    seen_SV = jnp.zeros((shape.num_slots, vocab_size), bool) if sampler.needs_seen else None
    return Slots(
        token=jnp.zeros_like(none_S), age=jnp.zeros_like(none_S), request=none_S, seen=seen_SV
    )


def empty_outputs(num_requests: int, max_new_tokens: int) -> Outputs:
    """Outputs before anything was generated."""
    return Outputs(
        tokens=jnp.zeros((num_requests + 1, max_new_tokens), jnp.int32),
        length=jnp.zeros((num_requests + 1,), jnp.int32),
        ended=jnp.zeros((num_requests + 1,), bool),
        steps=jnp.int32(0),
    )


def completions(outputs: Outputs) -> Completions:
    """Return the outputs of all requests, without the row of idle slots."""
    n = outputs.length.shape[0] - 1
    return Completions(
        tokens=outputs.tokens[:n],
        length=outputs.length[:n],
        ended=outputs.ended[:n],
        steps=outputs.steps[None],
    )


def empty_log(shape: DecodeShape) -> StepLog:
    """Return the log of a window before its first step."""
    size = (shape.window, shape.num_slots)
    return StepLog(
        request=jnp.zeros(size, jnp.int32),
        age=jnp.zeros(size, jnp.int32),
        token=jnp.zeros(size, jnp.int32),
        live=jnp.zeros(size, jnp.bool_),
        ended=jnp.zeros(size, jnp.bool_),
    )


def write_log(log: StepLog, step: jax.Array, entry: StepLog) -> StepLog:
    """Return the log of a window with the entry of one of its steps."""
    rows = [
        jax.lax.dynamic_update_slice(all_steps, one_step[None], (step, 0))
        for all_steps, one_step in zip(log, entry, strict=True)
    ]
    return StepLog(*rows)


def file_log(outputs: Outputs, log: StepLog, steps: jax.Array) -> Outputs:
    """Copy the log of a window that ran `steps` steps to the outputs."""
    n = outputs.length.shape[0] - 1
    row, column = jnp.where(log.live, log.request, n), jnp.where(log.live, log.age, 0)
    return outputs.replace(
        tokens=outputs.tokens.at[row, column].set(log.token),
        length=outputs.length.at[row].max(column + 1),
        ended=outputs.ended.at[row].max(log.ended),
        steps=outputs.steps + steps,
    )


def is_end(token: jax.Array, eos: int | tuple[int, ...] | None) -> jax.Array:
    """Return whether each token is (one of) `eos`, in the shape of `token`."""
    ends: tuple[int, ...] = ()
    if eos is not None:
        ends = eos if isinstance(eos, tuple) else (eos,)
    hits = [token == end for end in ends]
    return functools.reduce(jnp.logical_or, hits, jnp.zeros(token.shape, bool))


@jax.named_scope("sample")
def sample_step(
    sampler: Sampler,
    eos: int | tuple[int, ...] | None,
    requests: Requests,
    slots: Slots,
    logits_SV: jax.Array,
    *,
    pick: PickBlock | None = None,
) -> tuple[Slots, StepLog]:
    """Sample the next token of every slot. A slot whose text ends becomes idle.

    The random number of a token depends only on its request's key and its position in the text.
    `pick` is that of `inverse_cdf_of`.
    """
    age, live, request = slots.age, slots.request >= 0, jnp.maximum(slots.request, 0)
    keys = jax.random.wrap_key_data(requests.key[request], impl="threefry2x32")
    u_S = jax.vmap(lambda key, a: jax.random.uniform(jax.random.fold_in(key, a)))(keys, age)
    token = sampling.next_token(sampler, logits_SV, u_S, slots.seen, pick=pick)
    ended = live & is_end(token, eos)
    done = live & (ended | (age + 1 >= requests.limit[request]))
    seen = slots.seen
    if seen is not None:
        seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
    after = Slots(token=token, age=age + 1, request=jnp.where(done, -1, slots.request), seen=seen)
    return after, StepLog(request=request, age=age, token=token, live=live, ended=ended)


def start_requests(
    prompts: PromptCache, slots: Slots, fresh_S: jax.Array, prompt_S: jax.Array
) -> Slots:
    """Put the slots in `fresh_S` at the last token of their prompts."""
    token = jnp.where(fresh_S, prompts.last[jnp.maximum(prompt_S, 0)], slots.token)
    seen = slots.seen
    if seen is not None:
        tokens_SP = prompts.tokens[jnp.maximum(prompt_S, 0)]
        rows = jnp.arange(tokens_SP.shape[0])[:, None]
        of_prompt = jnp.zeros_like(seen).at[rows, tokens_SP].set(True)
        seen = jnp.where(fresh_S[:, None], of_prompt, seen)
    return slots.replace(token=token, age=jnp.where(fresh_S, 0, slots.age), seen=seen)


def map_over_devices(run: Callable[..., Any], mesh: Mesh | None, shared: int) -> Callable[..., Any]:
    """Return `run` on every device of `mesh`; without a mesh, `run` itself.

    The first `shared` arguments are replicated, the others and the results are sharded on their
    leading axis.
    """
    if mesh is None:
        return run

    def mapped(*args):
        specs = (P(),) * shared + (P(AXIS),) * (len(args) - shared)
        sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)
        return sharded(*args)

    return mapped
