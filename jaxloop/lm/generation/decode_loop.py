"""Decoding: many texts of many chains through a fixed set of slots, in one compiled loop.

Slots come in lanes. A lane holds one adapter and works through one job: a run of requests (texts to
write) of one chain, whose order and timing depend on nothing outside the job. A slot whose text
ends takes its job's next request in the same step; a lane whose job is done takes the next job at
the next window.

The cache is written without scatters. Time is cut into windows of W steps; all slots write step t
of the current window at index t (one `dynamic_update_slice`), and a finished window goes whole into
a ring of windows. A row sees an entry if it lies no more than `age` steps back, so a slot needs no
clearing when it starts a new text. A row's share of a window is a block. At each window's start the
blocks that some row is old enough to see are listed, oldest rows having most, and gathered behind
the S blocks of the current window; attention is one product over that list, whose padded length is
the smallest of a few `capacities` that suffices. So short texts do not pay for long ones. A row's
sums run over its own blocks in their order in time, wherever they stand in the list, so they do not
depend on the other rows.

Dimensions: A lanes, B slots a lane, S = A B slots, W steps a window, M most new tokens, N requests,
J jobs, C chains, L layers, D model, G key/value heads, Q query heads per key/value head, K head
size, P prompt cache length, Z cached prompts, V vocabulary, R windows in the ring, T blocks read.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec as P

from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation import sampling
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.model import attention, transformer
from jaxloop.lm.model.config import Spec
from jaxloop.lm.target import Target

HIDDEN = -1e9


@dataclass(frozen=True)
class Shape:
    """Compiled shape of a decoding program. `shared_prompt`: all requests of a job continue one
    prompt, whose cache the lane holds once; otherwise each slot holds its own, and slots are
    refilled at window boundaries only.
    """

    lanes: int
    slots: int
    window: int
    max_new_tokens: int
    prompt: int
    shared_prompt: bool = True

    @property
    def rows(self) -> int:
        return self.lanes * self.slots


class Prompts(NamedTuple):
    """Cached prompts, all but their last token: that one is the first input of the loop."""

    keys: list  # L x [Z, G, P, K], rotated
    values: list  # L x [Z, G, P, K]
    length: jax.Array  # [Z] cached tokens
    last: jax.Array  # [Z] last prompt token
    tokens: jax.Array  # [Z, P + 1] whole prompt, padded with `last`


class Requests(NamedTuple):
    """Texts to write, in the order of their jobs."""

    prompt: jax.Array  # [N] index of its prompt
    key: jax.Array  # [N, 2] threefry key data
    limit: jax.Array  # [N] most new tokens


class Jobs(NamedTuple):
    """Runs of requests [first, end) that one lane writes with one chain's adapter; empty runs are
    padding.
    """

    first: jax.Array  # [J]
    end: jax.Array  # [J]
    chain: jax.Array  # [J]


class Written(NamedTuple):
    """What a call wrote. `steps` counts loop steps: useful share = length.sum() / (steps.sum() *
    S).
    """

    tokens: jax.Array  # [N, M]
    length: jax.Array  # [N] sampled tokens, EOS included
    ended: jax.Array  # [N] whether it ended with EOS
    steps: jax.Array  # [1], or one per device


@struct.dataclass
class Slots:
    """The texts that are being written."""

    token: jax.Array  # [S] next input
    age: jax.Array  # [S] tokens of the row before it, prompt cache not counted
    request: jax.Array  # [S] -1 when idle
    seen: jax.Array | None  # [S, V] tokens already in the text, for the repetition penalty


@struct.dataclass
class _Lanes:
    job: jax.Array  # [A]
    next: jax.Array  # [A] next request of the job
    end: jax.Array  # [A]
    prompt: jax.Array  # [A] or [S] prompt whose cache is held
    keys: list  # L x [A or S, G, P, K]
    values: list
    adapter: list  # L x {site: {"a": [A, D, nR], "b": [A, nR, O]}}


@struct.dataclass
class _State:
    slots: Slots
    lanes: _Lanes
    next_job: jax.Array
    windows: jax.Array  # windows finished
    store_k: list  # L x [windows, S, G, W, K]
    store_v: list
    tokens: jax.Array  # [N + 1, M]
    length: jax.Array  # [N + 1]
    ended: jax.Array  # [N + 1]
    steps: jax.Array


def ring(shape: Shape) -> int:
    """Windows that a row can look back on."""
    return -(-(shape.max_new_tokens - 1) // shape.window)


def capacities(shape: Shape) -> tuple[int, ...]:
    """Blocks of earlier windows that a program may read, fewest first; the last one holds every row
    at its oldest and always suffices.

    On the mix of lengths of the papers (mean a fifth of the longest, long tail) rows need a fifth
    of all blocks, give or take a tenth of that; texts that all run to the end need half, and more
    only while they start together. One block more stands for "none".
    """
    full = shape.rows * ring(shape)
    shares = (
        (1.0,) if ring(shape) < 3 else (0.5, 1.0) if ring(shape) < 6 else (0.2, 0.28, 0.55, 1.0)
    )
    return tuple(math.ceil(full * share) + 1 for share in shares)


def is_end(token, eos: int | tuple[int, ...] | None):
    """Whether each token is (one of) `eos`, in the shape of `token`."""
    ends = eos if isinstance(eos, tuple) else () if eos is None else (eos,)
    return functools.reduce(
        jnp.logical_or, [token == end for end in ends], jnp.zeros(token.shape, bool)
    )


def unstack(params: dict) -> dict:
    """Weights with "layers" as a list: sliced once, outside the loop."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [transformer.layer(params["layers"], i) for i in range(count)]}


@functools.partial(jax.jit, static_argnames=("spec", "mesh", "target"))
def prefill(
    spec: Spec, params: dict, fused, tokens, length, mesh=None, target: Target = Target()
) -> Prompts:
    """Cache prompts. tokens [Z, P + 1] right-padded, length [Z] real tokens (at least 1); `fused`
    adapters have C chains and Z is C equal runs.

    Padding beyond a prompt's length is cached too and hidden by `Prompts.length`. With `mesh`
    chains and prompts are shared out over devices.
    """
    return over_devices(functools.partial(_prefill, spec, target), mesh, 1)(
        params, fused, tokens, length
    )


def over_devices(run, mesh, shared):
    """`run` on every device of the mesh: the first `shared` arguments whole, the others and the
    results cut on their leading axis.
    """
    if mesh is None:
        return run

    def mapped(*args):
        specs = (P(),) * shared + (P(AXIS),) * (len(args) - shared)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)(
            *args
        )

    return mapped


def _prefill(spec, target, params, fused, tokens, length) -> Prompts:
    rows, time = tokens.shape[0], tokens.shape[1] - 1
    last = jnp.take_along_axis(tokens, (length - 1)[:, None], 1)[:, 0]
    k_L, v_L = [], []
    if time:
        positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
        x = transformer.embed(spec, params, tokens[:, :time].reshape(-1), positions)
        tables = transformer.rope_tables(spec, positions)
        # A TPU's kernel wants whole blocks of tokens, which few prompts have.
        whole = attention.causal(
            spec, rows, time, None, None, dataclasses.replace(target, splash=False)
        )
        for i in range(spec.layers):

            def attend(q, k, v):
                if tables is not None:
                    q, k = transformer.rotate(q, *tables), transformer.rotate(k, *tables)
                for store, x in ((k_L, k), (v_L, v)):
                    store.append(
                        x.reshape(rows, time, spec.kv_heads, spec.head_size).swapaxes(1, 2)
                    )
                return whole(q, k, v)

            x = transformer.block(
                spec,
                _layer(params, i),
                None if fused is None else transformer.adapter_layer(fused, i),
                x,
                attend,
            )
    else:
        k_L = v_L = [
            jnp.zeros((rows, spec.kv_heads, 0, spec.head_size), params["embed"].dtype)
        ] * spec.layers
    return Prompts(k_L, v_L, length - 1, last, tokens)


def _layer(params, i):
    return (
        params["layers"][i]
        if isinstance(params["layers"], list)
        else transformer.layer(params["layers"], i)
    )


@functools.partial(jax.jit, static_argnames=("spec", "sampler", "shape", "eos", "mesh", "platform"))
def decode(
    spec: Spec, sampler: Sampler, shape: Shape, eos: int | tuple[int, ...] | None, params: dict, fused, prompts: Prompts, requests: Requests,
    jobs: Jobs, mesh=None, platform="cpu",
) -> Written:  # fmt: skip
    """Write every request. `params` as from `unstack` (or stacked), `fused` adapters with
    block-diagonal b and C chains, or None.

    `requests` and `jobs` may be padded: requests outside every job are not written, jobs with first
    == end are skipped for nothing.
    A text ends with `eos` (any of several; None: never) or at its limit. At the same (shape,
      sampler, padded sizes), a job's texts do not
    depend on the other jobs.
    With `mesh`, everything but `params` is cut on its leading axis into one equal piece per device,
    with indices that count inside the
    piece; each device runs its own loop of `shape` slots and stops by itself. `platform`: what the
    program is made for.
    """
    if not isinstance(params["layers"], list):
        params = unstack(params)
    return over_devices(functools.partial(_decode, spec, sampler, shape, eos, platform), mesh, 1)(
        params, fused, prompts, requests, jobs
    )


def _decode(spec, sampler, shape, eos, platform, params, fused, prompts, requests, jobs) -> Written:
    n = requests.limit.shape[0]
    if fused is not None and shape.lanes == 1 and jax.tree.leaves(fused)[0].shape[0] == 1:
        params, fused = _merged(params, fused), None
    depth, dtype = len(params["layers"]), params["embed"].dtype
    empty = jnp.zeros(
        (max(1, ring(shape)), shape.rows, spec.kv_heads, shape.window, spec.head_size), dtype
    )
    holders = shape.lanes if shape.shared_prompt else shape.rows
    cache = jnp.zeros((holders, *prompts.keys[0].shape[1:]), dtype)
    idle = jnp.zeros((shape.lanes,), jnp.int32)
    none = jnp.full((shape.rows,), -1, jnp.int32)
    seen = jnp.zeros((shape.rows, spec.vocab), bool) if sampler.needs_seen else None
    lanes = _Lanes(
        job=idle,
        next=idle,
        end=idle,
        prompt=jnp.full((holders,), -1, jnp.int32),
        keys=[cache] * depth,
        values=[cache] * depth,
        adapter=_lane_adapters(fused, idle, depth),
    )
    state = _State(
        slots=Slots(token=jnp.zeros_like(none), age=jnp.zeros_like(none), request=none, seen=seen),
        lanes=lanes,
        next_job=jnp.int32(0),
        windows=jnp.int32(0),
        store_k=[empty] * depth,
        store_v=[empty] * depth,
        tokens=jnp.zeros((n + 1, shape.max_new_tokens), jnp.int32),
        length=jnp.zeros((n + 1,), jnp.int32),
        ended=jnp.zeros((n + 1,), bool),
        steps=jnp.int32(0),
    )
    # Sines and cosines are looked up: XLA would fuse them into their readers and take each anew for
    # every head of every layer.
    rope = transformer.rope_tables(spec, jnp.arange(shape.prompt + shape.max_new_tokens + 1))
    advance = functools.partial(
        _window, spec, sampler, shape, eos, platform, params, rope, prompts, requests
    )
    assign = functools.partial(_assign, sampler, shape, fused, prompts, requests, jobs)
    state = jax.lax.while_loop(
        lambda s: (s.slots.request >= 0).any(), lambda s: assign(advance(s)), assign(state)
    )
    return Written(state.tokens[:n], state.length[:n], state.ended[:n], state.steps[None])


def _merged(params, fused):
    """Weights of the one chain that a call writes for, W + a b: with a single adapter nothing is
    shared, and the sum costs one step or two.
    """

    def add(w, i):
        return w | {
            site: (
                w[site]
                + jnp.einsum(
                    "dr,ro->do", f["a"][0, i], f["b"][0, i], preferred_element_type=jnp.float32
                )
            ).astype(w[site].dtype)
            for site, f in fused.items()
        }

    return params | {"layers": [add(w, i) for i, w in enumerate(params["layers"])]}


def _lane_adapters(fused, chain_A, depth):
    """Adapters of the lanes by layer. One chain needs no copies: its adapter serves all rows in one
    product.
    """
    if fused is None:
        return [None] * depth
    single = jax.tree.leaves(fused)[0].shape[0] == 1
    mine = fused if single else jax.tree.map(lambda leaf: leaf[chain_A], fused)
    return [transformer.adapter_layer(mine, i) for i in range(depth)]


def _assign(sampler, shape, fused, prompts, requests, jobs, s: _State) -> _State:
    """At a window's start: free lanes take jobs, idle slots take requests, and the lanes' adapters
    and prompt caches follow.
    """
    lanes, slots = s.lanes, s.slots
    busy_A = (slots.request.reshape(shape.lanes, shape.slots) >= 0).any(-1) | (
        lanes.next < lanes.end
    )
    # Skip empty (padding) jobs by counting real ones only: padding is always at the end.
    real = (jobs.end > jobs.first).sum(dtype=jnp.int32)
    take_A = ~busy_A & (s.next_job + _rank(~busy_A) < real)
    job_A = jnp.where(
        take_A, jnp.minimum(s.next_job + _rank(~busy_A), jobs.first.shape[0] - 1), lanes.job
    )
    next_A = jnp.where(take_A, jobs.first[job_A], lanes.next)
    end_A = jnp.where(take_A, jobs.end[job_A], lanes.end)
    slots, next_A, fresh_S = _refill(shape, slots, slots.request < 0, next_A, end_A)
    if shape.shared_prompt:
        held = jnp.where(take_A, requests.prompt[jobs.first[job_A]], lanes.prompt)
        start_S = jnp.repeat(held, shape.slots)
    else:
        held = jnp.where(fresh_S, requests.prompt[jnp.maximum(slots.request, 0)], lanes.prompt)
        start_S = held
    slots = begin(sampler, prompts, slots, fresh_S, start_S)
    depth = len(lanes.keys)
    keys, values = jax.lax.cond(
        (held != lanes.prompt).any(),
        lambda: ([k[held] for k in prompts.keys], [v[held] for v in prompts.values]),
        lambda: (lanes.keys, lanes.values),
    )
    adapter = lanes.adapter
    if fused is not None and jax.tree.leaves(fused)[0].shape[0] > 1:
        adapter = jax.lax.cond(
            take_A.any(),
            lambda: _lane_adapters(fused, jobs.chain[job_A], depth),
            lambda: lanes.adapter,
        )
    lanes = _Lanes(
        job=job_A, next=next_A, end=end_A, prompt=held, keys=keys, values=values, adapter=adapter
    )
    return s.replace(slots=slots, lanes=lanes, next_job=s.next_job + take_A.sum(dtype=jnp.int32))


def _rank(flag):
    """Position of each True among the Trues of the last axis."""
    return jnp.cumsum(flag.astype(jnp.int32), -1) - 1


def _refill(shape, slots, free_S, next_A, end_A):
    """Free slots take their lane's next requests in slot order. Returns slots (request set, -1
    where none is left), next, and who took one.
    """
    free = free_S.reshape(shape.lanes, shape.slots)
    wanted = next_A[:, None] + _rank(free)
    got = free & (wanted < end_A[:, None])
    request = jnp.where(
        got, wanted, jnp.where(free, -1, slots.request.reshape(free.shape))
    ).reshape(-1)
    return slots.replace(request=request), next_A + got.sum(-1, dtype=jnp.int32), got.reshape(-1)


def advance(sampler, eos, requests: Requests, slots: Slots, logits_SV):
    """The slots after a step, and what it wrote: request, age, token, whether the slot is live and
    whether its text ended, each [S].
    """
    age, live, request = slots.age, slots.request >= 0, jnp.maximum(slots.request, 0)
    keys = jax.random.wrap_key_data(requests.key[request], impl="threefry2x32")
    u = jax.vmap(lambda key, a: jax.random.uniform(jax.random.fold_in(key, a)))(keys, age)
    token = sampling.next_token(sampler, logits_SV, u, slots.seen)
    ended = live & is_end(token, eos)
    done = live & (ended | (age + 1 >= requests.limit[request]))
    seen = slots.seen
    if sampler.needs_seen:
        seen = seen.at[jnp.arange(token.shape[0]), token].set(True)
    after = Slots(token=token, age=age + 1, request=jnp.where(done, -1, slots.request), seen=seen)
    return after, (request, age, token, live, ended)


def begin(sampler, prompts, slots, fresh_S, prompt_S):
    """Put the slots in `fresh_S` at the last token of their prompts."""
    token = jnp.where(fresh_S, prompts.last[jnp.maximum(prompt_S, 0)], slots.token)
    seen = slots.seen
    if sampler.needs_seen:
        whole = prompts.tokens[jnp.maximum(prompt_S, 0)]
        rows = jnp.arange(whole.shape[0])[:, None]
        seen = jnp.where(fresh_S[:, None], jnp.zeros_like(seen).at[rows, whole].set(True), seen)
    return slots.replace(token=token, age=jnp.where(fresh_S, 0, slots.age), seen=seen)


def _window(
    spec, sampler, shape, eos, platform, params, rope, prompts, requests, s: _State
) -> _State:
    """Up to W steps. Chooses the capacity, gathers the blocks that are read, runs the steps, and
    files the window's cache and tokens.
    """
    n = requests.limit.shape[0]
    count_S = jnp.where(s.slots.request >= 0, -(-s.slots.age // shape.window), 0)
    options = capacities(shape)
    choice = (count_S.sum(dtype=jnp.int32) >= jnp.array(options[:-1], jnp.int32)).sum(
        dtype=jnp.int32
    )
    run = [
        functools.partial(
            _steps, spec, sampler, shape, eos, platform, params, rope, prompts, requests, option
        )
        for option in options
    ]
    cur_k, cur_v, slots, lane_next, log, steps = jax.lax.switch(choice, run, s, count_S)
    at = s.windows % len(s.store_k[0])
    file = lambda store, cur: jax.lax.dynamic_update_slice(store, cur[None], (at, 0, 0, 0, 0))  # noqa: E731
    request, age, token, live, ended = log
    row, column = jnp.where(live, request, n), jnp.where(live, age, 0)
    return s.replace(
        slots=slots,
        lanes=s.lanes.replace(next=lane_next),
        windows=s.windows + 1,
        store_k=[file(a, b) for a, b in zip(s.store_k, cur_k)],
        store_v=[file(a, b) for a, b in zip(s.store_v, cur_v)],
        tokens=s.tokens.at[row, column].set(token),
        length=s.length.at[row].max(column + 1),
        ended=s.ended.at[row].max(ended),
        steps=s.steps + steps,
    )


class _Blocks(NamedTuple):
    """The blocks that a window reads: first every row's own of the current window, then those of
    earlier windows, row by row.
    """

    keys: list  # L x [T, G, W, K]
    values: list
    row: jax.Array  # [T] whose it is
    back: (
        jax.Array
    )  # [T, W] steps from each entry to step 0 of the current window; below 0 in the current one
    # [S, 1 + R] where a row's blocks stand, latest first; the last block, which nobody sees, where
    # it has none
    table: jax.Array


def _gather_blocks(shape, capacity, s: _State, count_S) -> _Blocks:
    rows, last = shape.rows, shape.rows + capacity - 1
    end_S = jnp.cumsum(count_S, dtype=jnp.int32)
    listed = jnp.arange(capacity, dtype=jnp.int32)
    row = jnp.minimum((end_S[None] <= listed[:, None]).sum(-1, dtype=jnp.int32), rows - 1)
    ago = jnp.where(
        listed < end_S[-1], listed - (end_S - count_S)[row] + 1, 2 * shape.max_new_tokens
    )
    everyone = jnp.arange(rows, dtype=jnp.int32)
    row, ago = jnp.concatenate([everyone, row]), jnp.concatenate([jnp.zeros_like(everyone), ago])
    # The current window starts from whatever the ring holds at its place: finite numbers, seen by
    # nobody before they are overwritten.
    at = (s.windows - ago) % len(s.store_k[0]) * rows + row
    back = ago[:, None] * shape.window - jnp.arange(shape.window, dtype=jnp.int32)[None]
    ages = jnp.arange(ring(shape), dtype=jnp.int32)[None]
    table = jnp.where(ages < count_S[:, None], rows + (end_S - count_S)[:, None] + ages, last)
    read = lambda store: store.reshape(-1, *store.shape[2:])[at]  # noqa: E731
    return _Blocks(
        [read(k) for k in s.store_k],
        [read(v) for v in s.store_v],
        row,
        back,
        jnp.concatenate([everyone[:, None], table], 1),
    )


def _steps(
    spec,
    sampler,
    shape,
    eos,
    platform,
    params,
    rope,
    prompts,
    requests,
    capacity,
    s: _State,
    count_S,
):
    """The steps of one window with room for `capacity` blocks of earlier ones."""
    blocks = _gather_blocks(shape, capacity, s, count_S)
    lanes, rows = s.lanes, shape.rows
    prompt_length = prompts.length[jnp.maximum(lanes.prompt, 0)]  # [A or S]
    length_S = jnp.repeat(prompt_length, shape.slots) if shape.shared_prompt else prompt_length
    log = tuple(
        jnp.zeros((shape.window, rows), t)
        for t in (jnp.int32, jnp.int32, jnp.int32, jnp.bool_, jnp.bool_)
    )

    def step(carry):
        t, cur_k, cur_v, slots, next_A, log = carry
        age = slots.age
        position = length_S + age
        x = transformer.embed(spec, params, slots.token, position)
        tables = None if rope is None else tuple(table[position] for table in rope)
        far = blocks.back + t
        seen_TW = (far >= 0) & (far <= age[blocks.row][:, None])
        new_k, new_v = list(cur_k), list(cur_v)
        for i, w in enumerate(params["layers"]):

            def attend(q, k, v):
                if tables is not None:
                    q, k = transformer.rotate(q, *tables), transformer.rotate(k, *tables)
                new_k[i] = jax.lax.dynamic_update_slice(cur_k[i], k[:, :, None], (0, 0, t, 0))  # noqa: B023
                new_v[i] = jax.lax.dynamic_update_slice(cur_v[i], v[:, :, None], (0, 0, t, 0))  # noqa: B023
                q = _held(platform, q).reshape(rows, spec.kv_heads, -1, spec.head_size)
                prompt = _prompt_scores(shape, q, lanes.keys[i], prompt_length)  # noqa: B023
                return (
                    _attend(shape, blocks, q, new_k[i], new_v[i], seen_TW, prompt, lanes.values[i])
                    .astype(q.dtype)
                    .reshape(rows, -1)
                )  # noqa: B023

            x = transformer.block(spec, w, lanes.adapter[i], x, attend)
        logits = transformer.project(spec, params, transformer.finish(spec, params, x))
        slots, entry = advance(sampler, eos, requests, slots, logits)
        log = tuple(
            jax.lax.dynamic_update_slice(a, b[None], (t, 0))
            for a, b in zip(log, entry, strict=True)
        )
        if shape.shared_prompt:
            slots, next_A, fresh = _refill(shape, slots, slots.request < 0, next_A, lanes.end)
            slots = begin(sampler, prompts, slots, fresh, jnp.repeat(lanes.prompt, shape.slots))
        return t + 1, new_k, new_v, slots, next_A, log

    def more(carry):
        return (carry[0] < shape.window) & (carry[3].request >= 0).any()

    t, cur_k, cur_v, slots, next_A, log = jax.lax.while_loop(
        more, step, (jnp.int32(0), blocks.keys, blocks.values, s.slots, lanes.next, log)
    )
    return [k[:rows] for k in cur_k], [v[:rows] for v in cur_v], slots, next_A, log, t


def _held(platform, x):
    """x, computed once. All blocks of a row read its query, and a CPU would rotate it again for
    each: XLA drops barriers there, but a product is never fused into its readers.
    """
    if platform != "cpu":
        return jax.lax.optimization_barrier(x)
    return x @ jnp.eye(x.shape[-1], dtype=x.dtype)


def _attend(shape, blocks: _Blocks, q_SGQK, keys, values, seen_TW, prompt, prompt_values):
    """Attention output [S, G, Q, K] in float32 over a row's blocks and its prompt; `prompt`: masked
    scores [S, G, Q, P].
    """
    scores = (
        jnp.einsum("tgqk,tgwk->tgqw", q_SGQK[blocks.row], keys, preferred_element_type=jnp.float32)
        * q_SGQK.shape[-1] ** -0.5
    )
    scores = jnp.where(seen_TW[:, None, None], scores, HIDDEN)
    top = jnp.maximum(
        _over_rows(blocks, scores.max(-1), jnp.maximum), prompt.max(-1, initial=HIDDEN)
    )
    weight = jnp.exp(scores - top[blocks.row][..., None])
    value = jnp.einsum(
        "tgqw,tgwk->tgqk", weight.astype(values.dtype), values, preferred_element_type=jnp.float32
    )
    total, value = _over_rows(blocks, weight.sum(-1), jnp.add), _over_rows(blocks, value, jnp.add)
    if prompt.shape[-1]:
        weight = jnp.exp(prompt - top[..., None])
        total = total + weight.sum(-1)
        value = value + _by_lane(
            shape,
            weight.astype(prompt_values.dtype),
            lambda w: jnp.einsum(
                "agxp,agpk->agxk", w, prompt_values, preferred_element_type=jnp.float32
            ),
        )
    return value / total[..., None]


def _over_rows(blocks: _Blocks, x, combine):
    """[T, ...] of blocks to [S, ...] of rows, block after block in time. A chain of gathers fuses;
    a scatter would add in any order on a GPU.
    """
    return functools.reduce(combine, (x[blocks.table[:, j]] for j in range(blocks.table.shape[1])))


def _prompt_scores(shape, q_SGQK, keys, length):
    """Masked scores [S, G, Q, P] against the prompt cache: one per lane, read by all its slots in
    one product, or one per slot.
    """
    seen = jnp.arange(keys.shape[2])[None] < length[:, None]

    def score(q):
        raw = (
            jnp.einsum("agxk,agpk->agxp", q, keys, preferred_element_type=jnp.float32)
            * q_SGQK.shape[-1] ** -0.5
        )
        return jnp.where(seen[:, None, None], raw, HIDDEN)

    return _by_lane(shape, q_SGQK, score)


def _by_lane(shape, x, run):
    """`run` on [S, G, Q, ...] with the slots of a lane side by side, [A, G, B Q, ...], where they
    share a prompt cache.
    """
    if not shape.shared_prompt:
        return run(x)
    s, g, q = x.shape[:3]
    y = run(
        x.reshape(shape.lanes, shape.slots, g, q, -1)
        .swapaxes(1, 2)
        .reshape(shape.lanes, g, shape.slots * q, -1)
    )
    return y.reshape(shape.lanes, g, shape.slots, q, -1).swapaxes(1, 2).reshape(s, g, q, -1)
