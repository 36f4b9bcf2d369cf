"""Decoding: many texts of many chains through a fixed set of slots, in one compiled loop.

Slots come in lanes. A lane holds one adapter and works through one job: a run of requests (texts to write) of one chain, whose order and
timing depend on nothing outside the job. A slot whose text ends takes its job's next request in the same step; a lane whose job is done
takes the next job at the next window.

The cache is written without scatters. Time is cut into windows of W steps; all slots write step t of the current window at index t (one
`dynamic_update_slice`), and a finished window goes whole into a ring of windows. A row sees an entry if it lies no more than `age` steps
back, so a slot needs no clearing when it starts a new text. Earlier windows are read in levels, twice as wide the further back they lie,
and a level is read only by the rows old enough to need it: at each window's start the smallest `profile` of rows per level that suffices is
chosen, so short texts do not pay for long ones. Which levels other rows read does not change a row's own sums: an unread or masked
level adds exactly zero.

Dimensions: A lanes, B slots a lane, S = A B slots, W steps a window, M most new tokens, N requests, J jobs, C chains, L layers, D model,
G key/value heads, Q query heads per key/value head, K head size, P prompt cache length, Z cached prompts, V vocabulary, E levels.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxloop.kernels.map_chains import AXIS
from jaxloop.lm import attention, sampling, transformer
from jaxloop.lm.sampling import Sampler
from jaxloop.lm.spec import Spec

HIDDEN = -1e9


@dataclass(frozen=True)
class Shape:
    """Compiled shape of a decoding program. `shared_prompt`: all requests of a job continue one prompt, whose cache the lane holds
    once; otherwise each slot holds its own, and slots are refilled at window boundaries only."""

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
    """Runs of requests [first, end) that one lane writes with one chain's adapter; empty runs are padding."""

    first: jax.Array  # [J]
    end: jax.Array  # [J]
    chain: jax.Array  # [J]


class Written(NamedTuple):
    """What a call wrote. `steps` counts loop steps: useful share = length.sum() / (steps.sum() * S)."""

    tokens: jax.Array  # [N, M]
    length: jax.Array  # [N] sampled tokens, EOS included
    ended: jax.Array  # [N] whether it ended with EOS
    steps: jax.Array  # [1], or one per device


class _Slots(NamedTuple):
    token: jax.Array  # [S] next input
    age: jax.Array  # [S] tokens of the row before it, prompt cache not counted
    request: jax.Array  # [S] -1 when idle
    seen: jax.Array | None  # [S, V] tokens already in the text, for the repetition penalty


class _Lanes(NamedTuple):
    job: jax.Array  # [A]
    next: jax.Array  # [A] next request of the job
    end: jax.Array  # [A]
    prompt: jax.Array  # [A] or [S] prompt whose cache is held
    keys: list  # L x [A or S, G, P, K]
    values: list
    adapter: list  # L x {site: {"a": [A, D, nR], "b": [A, nR, O]}}


class _State(NamedTuple):
    slots: _Slots
    lanes: _Lanes
    next_job: jax.Array
    windows: jax.Array  # windows finished
    store_k: list  # L x [windows, S, G, W, K]
    store_v: list
    tokens: jax.Array  # [N + 1, M]
    length: jax.Array  # [N + 1]
    ended: jax.Array  # [N + 1]
    steps: jax.Array


def levels(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(windows before it, windows in it) of each level behind the current window: widths 1, 1, 2, 4, ..., the last one absorbing what is left."""
    total = -(-(shape.max_new_tokens - 1) // shape.window)
    out, start = [], 0
    while start < total:
        width = max(1, start)
        width = total - start if total - start < 2 * width else width
        out.append((start, width))
        start += width
    return tuple(out)


def profiles(shape: Shape) -> tuple[tuple[int, ...], ...]:
    """Rows read per level, cheapest first; the last one reads every row at every level and therefore always suffices.

    The first one fits a mix of lengths whose mean is a fifth of the longest (ages then fall off exponentially), with room for its
    fluctuations; the second one a mean of two fifths. Few levels are not worth more than one program."""
    plan, rows = levels(shape), shape.rows
    if len(plan) < 4:
        return ((rows,) * len(plan),)
    total = plan[-1][0] + plan[-1][1]
    out = []
    for decay in (4.2, 1.8):
        shares = [min(1.0, 1.1 * math.exp(-decay * start / total) + 0.03) for start, _ in plan]
        out.append(tuple(min(rows, -(-math.ceil(rows * share) // 4) * 4) for share in shares))
    return tuple(dict.fromkeys([*out, (rows,) * len(plan)]))


def unstack(params: dict) -> dict:
    """Weights with "layers" as a list: sliced once, outside the loop."""
    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [transformer.layer(params["layers"], i) for i in range(count)]}


@functools.partial(jax.jit, static_argnames=("spec", "mesh"))
def prefill(spec: Spec, params: dict, fused, tokens, length, mesh=None) -> Prompts:
    """Cache prompts. tokens [Z, P + 1] right-padded, length [Z] real tokens (at least 1); `fused` adapters have C chains and Z is C equal runs.

    Padding beyond a prompt's length is cached too and hidden by `Prompts.length`. With `mesh` chains and prompts are shared out over devices."""
    return _over_devices(functools.partial(_prefill, spec), mesh, 1)(params, fused, tokens, length)


def _over_devices(run, mesh, shared):
    """`run` on every device of the mesh: the first `shared` arguments whole, the others and the results cut on their leading axis."""
    if mesh is None:
        return run

    def mapped(*args):
        specs = (P(),) * shared + (P(AXIS),) * (len(args) - shared)
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=P(AXIS), check_vma=False)(*args)

    return mapped


def _prefill(spec, params, fused, tokens, length) -> Prompts:
    rows, time = tokens.shape[0], tokens.shape[1] - 1
    last = jnp.take_along_axis(tokens, (length - 1)[:, None], 1)[:, 0]
    k_L, v_L = [], []
    if time:
        positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
        x = transformer.embed(spec, params, tokens[:, :time].reshape(-1), positions)
        tables = transformer.rope_tables(spec, positions) if spec.positions == "rope" else None
        whole = attention.causal(spec, rows, time, None)
        for i in range(spec.layers):

            def attend(q, k, v):
                if tables is not None:
                    q, k = transformer.rotate(q, *tables), transformer.rotate(k, *tables)
                for store, x in ((k_L, k), (v_L, v)):
                    store.append(x.reshape(rows, time, spec.kv_heads, spec.head_size).swapaxes(1, 2))
                return whole(q, k, v)

            x = transformer.block(spec, _layer(params, i), None if fused is None else transformer.adapter_layer(fused, i), x, attend)
    else:
        k_L = v_L = [jnp.zeros((rows, spec.kv_heads, 0, spec.head_size), params["embed"].dtype)] * spec.layers
    return Prompts(k_L, v_L, length - 1, last, tokens)


def _layer(params, i):
    return params["layers"][i] if isinstance(params["layers"], list) else transformer.layer(params["layers"], i)


@functools.partial(jax.jit, static_argnames=("spec", "sampler", "shape", "eos", "mesh"))
def decode(spec: Spec, sampler: Sampler, shape: Shape, eos: int, params: dict, fused, prompts: Prompts, requests: Requests, jobs: Jobs, mesh=None) -> Written:
    """Write every request. `params` as from `unstack` (or stacked), `fused` adapters with block-diagonal b and C chains, or None.

    `requests` and `jobs` may be padded: requests outside every job are not written, jobs with first == end are skipped for nothing.
    A text ends with EOS or at its limit. At the same (shape, sampler, padded sizes), a job's texts do not depend on the other jobs.
    With `mesh`, everything but `params` is cut on its leading axis into one equal piece per device, with indices that count inside the
    piece; each device runs its own loop of `shape` slots and stops by itself.
    """
    if not isinstance(params["layers"], list):
        params = unstack(params)
    return _over_devices(functools.partial(_decode, spec, sampler, shape, eos), mesh, 1)(params, fused, prompts, requests, jobs)


def _decode(spec, sampler, shape, eos, params, fused, prompts, requests, jobs) -> Written:
    n = requests.limit.shape[0]
    depth, dtype = len(params["layers"]), params["embed"].dtype
    ring = max(1, sum(width for _, width in levels(shape)))
    empty = jnp.zeros((ring, shape.rows, spec.kv_heads, shape.window, spec.head_size), dtype)
    holders = shape.lanes if shape.shared_prompt else shape.rows
    cache = jnp.zeros((holders, *prompts.keys[0].shape[1:]), dtype)
    idle = jnp.zeros((shape.lanes,), jnp.int32)
    none = jnp.full((shape.rows,), -1, jnp.int32)
    seen = jnp.zeros((shape.rows, spec.vocab), bool) if sampler.needs_seen else None
    lanes = _Lanes(idle, idle, idle, jnp.full((holders,), -1, jnp.int32), [cache] * depth, [cache] * depth, _lane_adapters(fused, idle, depth))
    state = _State(
        _Slots(jnp.zeros_like(none), jnp.zeros_like(none), none, seen), lanes, jnp.int32(0), jnp.int32(0), [empty] * depth, [empty] * depth,
        jnp.zeros((n + 1, shape.max_new_tokens), jnp.int32), jnp.zeros((n + 1,), jnp.int32), jnp.zeros((n + 1,), bool), jnp.int32(0),
    )  # fmt: skip
    advance = functools.partial(_window, spec, sampler, shape, eos, params, prompts, requests)
    assign = functools.partial(_assign, sampler, shape, fused, prompts, requests, jobs)
    state = jax.lax.while_loop(lambda s: (s.slots.request >= 0).any(), lambda s: assign(advance(s)), assign(state))
    return Written(state.tokens[:n], state.length[:n], state.ended[:n], state.steps[None])


def _lane_adapters(fused, chain_A, depth):
    """Adapters of the lanes by layer. One chain needs no copies: its adapter serves all rows in one product."""
    if fused is None:
        return [None] * depth
    single = jax.tree.leaves(fused)[0].shape[0] == 1
    mine = fused if single else jax.tree.map(lambda leaf: leaf[chain_A], fused)
    return [transformer.adapter_layer(mine, i) for i in range(depth)]


def _assign(sampler, shape, fused, prompts, requests, jobs, s: _State) -> _State:
    """At a window's start: free lanes take jobs, idle slots take requests, and the lanes' adapters and prompt caches follow."""
    lanes, slots = s.lanes, s.slots
    busy_A = (slots.request.reshape(shape.lanes, shape.slots) >= 0).any(-1) | (lanes.next < lanes.end)
    # Skip empty (padding) jobs by counting real ones only: padding is always at the end.
    real = (jobs.end > jobs.first).sum(dtype=jnp.int32)
    take_A = ~busy_A & (s.next_job + _rank(~busy_A) < real)
    job_A = jnp.where(take_A, jnp.minimum(s.next_job + _rank(~busy_A), jobs.first.shape[0] - 1), lanes.job)
    next_A = jnp.where(take_A, jobs.first[job_A], lanes.next)
    end_A = jnp.where(take_A, jobs.end[job_A], lanes.end)
    slots, next_A, fresh_S = _refill(shape, slots, slots.request < 0, next_A, end_A)
    if shape.shared_prompt:
        held = jnp.where(take_A, requests.prompt[jobs.first[job_A]], lanes.prompt)
        start_S = jnp.repeat(held, shape.slots)
    else:
        held = jnp.where(fresh_S, requests.prompt[jnp.maximum(slots.request, 0)], lanes.prompt)
        start_S = held
    slots = _begin(sampler, prompts, slots, fresh_S, start_S)
    depth = len(lanes.keys)
    keys, values = jax.lax.cond(
        (held != lanes.prompt).any(),
        lambda: ([k[held] for k in prompts.keys], [v[held] for v in prompts.values]),
        lambda: (lanes.keys, lanes.values),
    )
    adapter = lanes.adapter
    if fused is not None and jax.tree.leaves(fused)[0].shape[0] > 1:
        adapter = jax.lax.cond(take_A.any(), lambda: _lane_adapters(fused, jobs.chain[job_A], depth), lambda: lanes.adapter)
    return s._replace(slots=slots, lanes=_Lanes(job_A, next_A, end_A, held, keys, values, adapter), next_job=s.next_job + take_A.sum(dtype=jnp.int32))


def _rank(flag):
    """Position of each True among the Trues of the last axis."""
    return jnp.cumsum(flag.astype(jnp.int32), -1) - 1


def _refill(shape, slots, free_S, next_A, end_A):
    """Free slots take their lane's next requests in slot order. Returns slots (request set, -1 where none is left), next, and who took one."""
    free = free_S.reshape(shape.lanes, shape.slots)
    wanted = next_A[:, None] + _rank(free)
    got = free & (wanted < end_A[:, None])
    request = jnp.where(got, wanted, jnp.where(free, -1, slots.request.reshape(free.shape))).reshape(-1)
    return slots._replace(request=request), next_A + got.sum(-1, dtype=jnp.int32), got.reshape(-1)


def _begin(sampler, prompts, slots, fresh_S, prompt_S):
    """Put the slots in `fresh_S` at the last token of their prompts."""
    token = jnp.where(fresh_S, prompts.last[jnp.maximum(prompt_S, 0)], slots.token)
    seen = slots.seen
    if sampler.needs_seen:
        whole = prompts.tokens[jnp.maximum(prompt_S, 0)]
        rows = jnp.arange(whole.shape[0])[:, None]
        seen = jnp.where(fresh_S[:, None], jnp.zeros_like(seen).at[rows, whole].set(True), seen)
    return slots._replace(token=token, age=jnp.where(fresh_S, 0, slots.age), seen=seen)


def _window(spec, sampler, shape, eos, params, prompts, requests, s: _State) -> _State:
    """Up to W steps. Chooses the profile, gathers the levels it reads, runs the steps, and files the window's cache and tokens."""
    plan, n = levels(shape), requests.limit.shape[0]
    needed_E = [((s.slots.age > start * shape.window) & (s.slots.request >= 0)).sum(dtype=jnp.int32) for start, _ in plan]
    options = profiles(shape)
    fits = [jnp.stack([need <= rows for need, rows in zip(needed_E, option)]).all() if plan else jnp.bool_(True) for option in options]
    choice = jnp.argmax(jnp.stack(fits))
    run = [functools.partial(_steps, spec, sampler, shape, eos, params, prompts, requests, option) for option in options]
    cur_k, cur_v, slots, lane_next, log, steps = jax.lax.switch(choice, run, s)
    at = s.windows % len(s.store_k[0])
    file = lambda store, cur: jax.lax.dynamic_update_slice(store, cur[None], (at, 0, 0, 0, 0))  # noqa: E731
    request, age, token, live, ended = log
    row, column = jnp.where(live, request, n), jnp.where(live, age, 0)
    return _State(
        slots, s.lanes._replace(next=lane_next), s.next_job, s.windows + 1,
        [file(a, b) for a, b in zip(s.store_k, cur_k)], [file(a, b) for a, b in zip(s.store_v, cur_v)],
        s.tokens.at[row, column].set(token), s.length.at[row].max(column + 1), s.ended.at[row].max(ended), s.steps + steps,
    )  # fmt: skip


class _Level(NamedTuple):
    """A level's cache for the rows that read it. `rows` None: all of them, in order."""

    keys: list  # L x [rows, G, w W, K]
    values: list
    back: jax.Array  # [w W] steps from each entry to step 0 of the current window
    rows: jax.Array | None  # [rows]
    inverse: jax.Array | None  # [S] where each row is in `rows`, or the zero row after the last


def _gather_levels(shape, option, s: _State) -> list[_Level]:
    out = []
    for (start, width), count in zip(levels(shape), option):
        if count == 0:
            continue
        ago = jnp.arange(start + width, start, -1)  # oldest first
        at = (s.windows - ago) % len(s.store_k[0])
        back = (ago[:, None] * shape.window - jnp.arange(shape.window)[None]).reshape(-1)
        rows = inverse = None
        if count < shape.rows:
            need = (s.slots.age > start * shape.window) & (s.slots.request >= 0)
            rows = jnp.argsort(~need, stable=True)[:count]
            inverse = jnp.full((shape.rows,), count, jnp.int32).at[rows].set(jnp.arange(count, dtype=jnp.int32))

        def read(store):
            part = store[at] if rows is None else store[at[:, None], rows[None]]  # noqa: B023
            w, r, g, t, k = part.shape
            return part.transpose(1, 2, 0, 3, 4).reshape(r, g, w * t, k)

        out.append(_Level([read(k) for k in s.store_k], [read(v) for v in s.store_v], back, rows, inverse))
    return out


def _steps(spec, sampler, shape, eos, params, prompts, requests, option, s: _State):
    """The steps of one window under one profile."""
    older = _gather_levels(shape, option, s)
    lanes, rows, n = s.lanes, shape.rows, requests.limit.shape[0]
    prompt_length = prompts.length[jnp.maximum(lanes.prompt, 0)]  # [A or S]
    length_S = jnp.repeat(prompt_length, shape.slots) if shape.shared_prompt else prompt_length
    blank = jnp.zeros((rows, spec.kv_heads, shape.window, spec.head_size), params["embed"].dtype)
    log = tuple(jnp.zeros((shape.window, rows), t) for t in (jnp.int32, jnp.int32, jnp.int32, jnp.bool_, jnp.bool_))

    def step(carry):
        t, cur_k, cur_v, slots, next_A, log = carry
        age = slots.age
        position = length_S + age
        x = transformer.embed(spec, params, slots.token, position)
        tables = transformer.rope_tables(spec, position) if spec.positions == "rope" else None
        now = (t - jnp.arange(shape.window))[None]
        seen_now = (now >= 0) & (now <= age[:, None])
        new_k, new_v = list(cur_k), list(cur_v)
        for i, w in enumerate(params["layers"]):

            def attend(q, k, v):
                if tables is not None:
                    q, k = transformer.rotate(q, *tables), transformer.rotate(k, *tables)
                new_k[i] = jax.lax.dynamic_update_slice(cur_k[i], k[:, :, None], (0, 0, t, 0))  # noqa: B023
                new_v[i] = jax.lax.dynamic_update_slice(cur_v[i], v[:, :, None], (0, 0, t, 0))  # noqa: B023
                q = q.reshape(rows, spec.kv_heads, -1, spec.head_size)
                parts = [_partial(q, new_k[i], new_v[i], seen_now)]  # noqa: B023
                for level in older:
                    parts.append(_level_partial(q, level, i, t, age))  # noqa: B023
                if prompts.keys[0].shape[2]:
                    parts.append(_prompt_partial(shape, q, lanes.keys[i], lanes.values[i], prompt_length))  # noqa: B023
                return _merge(parts).reshape(rows, -1)

            x = transformer.block(spec, w, lanes.adapter[i], x, attend)
        logits = transformer.project(spec, params, transformer.finish(spec, params, x))
        request = jnp.maximum(slots.request, 0)
        keys = jax.random.wrap_key_data(requests.key[request], impl="threefry2x32")
        u = jax.vmap(lambda key, a: jax.random.uniform(jax.random.fold_in(key, a)))(keys, age)
        token = sampling.next_token(sampler, logits, u, slots.seen)
        live = slots.request >= 0
        ended = live & (token == eos)
        done = live & (ended | (age + 1 >= requests.limit[request]))
        log = tuple(jax.lax.dynamic_update_slice(a, b[None], (t, 0)) for a, b in zip(log, (request, age, token, live, ended)))
        seen = slots.seen
        if sampler.needs_seen:
            seen = seen.at[jnp.arange(rows), token].set(True)
        slots = _Slots(token, age + 1, jnp.where(done, -1, slots.request), seen)
        if shape.shared_prompt:
            slots, next_A, fresh = _refill(shape, slots, slots.request < 0, next_A, lanes.end)
            slots = _begin(sampler, prompts, slots, fresh, jnp.repeat(lanes.prompt, shape.slots))
        return t + 1, new_k, new_v, slots, next_A, log

    def more(carry):
        return (carry[0] < shape.window) & (carry[3].request >= 0).any()

    depth = len(params["layers"])
    t, cur_k, cur_v, slots, next_A, log = jax.lax.while_loop(more, step, (jnp.int32(0), [blank] * depth, [blank] * depth, s.slots, lanes.next, log))
    return cur_k, cur_v, slots, next_A, log, t


def _partial(q_SGQK, k_SGTK, v_SGTK, seen_ST):
    """Softmax numerator and its parts over one stretch of cache: maximum and sum [S, G, Q], weighted values [S, G, Q, K], in float32."""
    scores = jnp.einsum("sgqk,sgtk->sgqt", q_SGQK, k_SGTK, preferred_element_type=jnp.float32) * q_SGQK.shape[-1] ** -0.5
    scores = jnp.where(seen_ST[:, None, None], scores, HIDDEN)
    top = scores.max(-1)
    weight = jnp.exp(scores - top[..., None])
    value = jnp.einsum("sgqt,sgtk->sgqk", weight.astype(v_SGTK.dtype), v_SGTK, preferred_element_type=jnp.float32)
    return top, weight.sum(-1), value


def _level_partial(q, level: _Level, i, t, age_S):
    """`_partial` for the rows that read a level; the others get the neutral element."""
    if level.rows is None:
        return _partial(q, level.keys[i], level.values[i], (level.back + t)[None] <= age_S[:, None])
    seen = (level.back + t)[None] <= age_S[level.rows][:, None]
    parts = _partial(q[level.rows], level.keys[i], level.values[i], seen)
    neutral = (HIDDEN, 0.0, 0.0)
    return tuple(jnp.concatenate([x, jnp.full((1, *x.shape[1:]), e, x.dtype)])[level.inverse] for x, e in zip(parts, neutral))


def _prompt_partial(shape, q_SGQK, keys, values, length):
    """`_partial` over the prompt cache: one per lane, read by all its slots in one product, or one per slot."""
    seen = jnp.arange(keys.shape[2])[None] < length[:, None]
    if not shape.shared_prompt:
        return _partial(q_SGQK, keys, values, seen)
    s, g, qs, k = q_SGQK.shape
    q = q_SGQK.reshape(shape.lanes, shape.slots, g, qs, k).swapaxes(1, 2).reshape(shape.lanes, g, shape.slots * qs, k)
    back = lambda x: x.reshape(shape.lanes, g, shape.slots, qs, *x.shape[3:]).swapaxes(1, 2).reshape(s, g, qs, *x.shape[3:])  # noqa: E731
    return tuple(back(x) for x in _partial(q, keys, values, seen))


def _merge(parts):
    """Attention output [S, G, Q, K] from the partial softmaxes of all stretches, in the dtype of the values."""
    top = functools.reduce(jnp.maximum, (m for m, _, _ in parts))
    scale = [jnp.exp(m - top) for m, _, _ in parts]
    total = sum(a * w for a, (_, w, _) in zip(scale, parts))
    value = sum(a[..., None] * v for a, (_, _, v) in zip(scale, parts))
    return value / total[..., None]
