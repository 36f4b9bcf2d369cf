"""Decoding on accelerators: `decode.decode` with each slot's cache in a row of its own. On a GPU
kernels write it in place and read it as far as it has come; on a TPU XLA alone writes all rows at
one place, as rings, and reads them whole.

Where `decode.py` cuts time into windows that all slots share, here nothing of a text depends on
when it starts: token `age` of a slot lies at place `age` of its row. So slots of all lanes that
hold one chain's adapter take texts from one queue, at any step, and only the end of a chain's texts
leaves slots idle. Windows remain for what need not happen in every step: lanes change chains, and
tokens are filed.

Dimensions: A lanes, B slots a lane, S = A B slots, W steps a window, N requests, J jobs, C chains,
L layers, D model, H query heads, G key/value heads, K head size, M cached tokens of a slot, P
prompt cache length, Z cached prompts, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxloop.lm.generation import decode_loop, row_kernels
from jaxloop.lm.generation.decode_loop import Jobs, Prompts, Requests, Shape, Slots, Written
from jaxloop.lm.generation.row_kernels import LaneAdapter, Pool, Step
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import Spec, sites


@struct.dataclass
class _State:
    slots: Slots
    prompt: jax.Array  # [S] prompt of the slot's text
    job_A: jax.Array  # -1 when free
    next_J: jax.Array  # next request of each job
    keys: list  # L x [S, G, M, K]
    values: list
    tokens: jax.Array  # [N + 1, most new tokens]
    length: jax.Array  # [N + 1]
    ended: jax.Array  # [N + 1]
    steps: jax.Array


@functools.partial(jax.jit, static_argnames=("spec", "sampler", "shape", "eos", "mesh", "how"))
def decode_rows(
    spec: Spec,
    sampler: Sampler,
    shape: Shape,
    eos,
    params: dict,
    pool,
    prompts: Prompts,
    requests: Requests,
    jobs: Jobs,
    mesh=None,
    how: str = "pallas",
) -> Written:
    """Write every request; the arguments of `decode.decode`, but for these.

    Args:
      pool: adapters as `row_kernels.pool` lays them out, or None.
      jobs: one for each chain that writes; several lanes may work on one job.
      how: "pallas", "interpret", "plain" or "ring", as in `row_kernels.attend`.
    Requests of one job may continue different prompts, whatever `shape.shared_prompt` says.
    """
    if not isinstance(params["layers"], list):
        params = decode_loop.unstack(params)
    run = functools.partial(_decode, spec, sampler, shape, eos, how)
    return decode_loop.over_devices(run, mesh, 1)(params, pool, prompts, requests, jobs)


def _decode(spec, sampler, shape, eos, how, params, pool, prompts, requests, jobs) -> Written:
    n, depth, dtype = requests.limit.shape[0], len(params["layers"]), params["embed"].dtype
    if pool is not None and shape.lanes == 1 and jax.tree.leaves(pool)[0].shape[0] == 1:
        params, pool = _merged(spec, params, pool), None
    prompts = prompts._replace(keys=_padded(prompts.keys), values=_padded(prompts.values))
    idle_S, free_A = jnp.full((shape.rows,), -1, jnp.int32), jnp.full((shape.lanes,), -1, jnp.int32)
    longest = row_kernels.cache_length(shape.max_new_tokens)
    empty = [
        jnp.zeros((shape.rows, spec.kv_heads, longest, spec.head_size), dtype)
        for _ in range(2 * depth)
    ]
    seen = jnp.zeros((shape.rows, spec.vocab), bool) if sampler.needs_seen else None
    state = _State(
        slots=Slots(
            token=jnp.zeros_like(idle_S), age=jnp.zeros_like(idle_S), request=idle_S, seen=seen
        ),
        prompt=jnp.zeros_like(idle_S),
        job_A=free_A,
        next_J=jobs.first,
        keys=empty[:depth],
        values=empty[depth:],
        tokens=jnp.zeros((n + 1, shape.max_new_tokens), jnp.int32),
        length=jnp.zeros((n + 1,), jnp.int32),
        ended=jnp.zeros((n + 1,), bool),
        steps=jnp.int32(0),
    )
    rope = _rope_halves(spec, shape)
    assign = functools.partial(_assign, sampler, shape, prompts, requests, jobs)
    window = functools.partial(
        _window, spec, sampler, shape, eos, how, params, pool, rope, prompts, requests, jobs
    )
    state = jax.lax.while_loop(
        lambda s: (s.slots.request >= 0).any(), lambda s: assign(window(s)), assign(state)
    )
    return Written(state.tokens[:n], state.length[:n], state.ended[:n], state.steps[None])


def _padded(caches):
    """Prompt caches of whole blocks."""
    more = row_kernels.prompt_length(caches[0].shape[2]) - caches[0].shape[2]
    return [jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))) if more else x for x in caches]


def _rope_halves(spec, shape):
    """cos and sin [positions, K / 2], or None: both halves of `transformer.rope_tables` are equal."""
    tables = transformer.rope_tables(spec, jnp.arange(shape.prompt + shape.max_new_tokens + 1))
    return None if tables is None else tuple(table[:, : spec.head_size // 2] for table in tables)


def _merged(spec, params, pool):
    """Weights of the one chain that a call writes for, W + a b."""
    widths = {site: tuple(part.width for part in parts) for site, parts in sites(spec).items()}

    def add(w, i):
        return w | {
            site: row_kernels.merged(w[site], one.a[0, i], one.b[0, i], widths[site])
            for site, one in pool.items()
        }

    return params | {"layers": [add(w, i) for i, w in enumerate(params["layers"])]}


def _logits(spec, params, x_SE):
    """Logits [S, V] in float32, rounded to the model's dtype as those of `transformers` are: in
    bfloat16 half the bytes, which a step writes once and reads twice.
    """
    return jnp.einsum("se,ve->sv", x_SE, transformer.head(spec, params)).astype(jnp.float32)


def _flat(one: Pool) -> Pool:
    """Chains and layers in one axis."""
    return Pool(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in one))


def _assign(sampler, shape, prompts, requests, jobs, s: _State) -> _State:
    """At a window's start: lanes whose job has no texts left, and none in their slots, go to where
    most texts are left for each lane.
    """
    busy_A = (s.slots.request.reshape(shape.lanes, shape.slots) >= 0).any(-1)
    waiting_J = jobs.end - s.next_J
    keep_A = busy_A | ((s.job_A >= 0) & (waiting_J[jnp.maximum(s.job_A, 0)] > 0))
    job_A = jnp.where(keep_A, s.job_A, -1)
    numbers_J = jnp.arange(waiting_J.shape[0], dtype=jnp.int32)

    def choose():
        lanes_J = (job_A[:, None] == numbers_J[None]).sum(0, dtype=jnp.int32)

        def one(a, carry):
            job_A, lanes_J = carry
            share_J = waiting_J.astype(jnp.float32) / (lanes_J + 1).astype(jnp.float32)
            best = jnp.argmax(share_J).astype(jnp.int32)
            takes = (job_A[a] < 0) & (share_J[best] > 0)
            job_A = job_A.at[a].set(jnp.where(takes, best, job_A[a]))
            return job_A, lanes_J.at[best].add(takes.astype(jnp.int32))

        return jax.lax.fori_loop(0, shape.lanes, one, (job_A, lanes_J))[0]

    job_A = jax.lax.cond((job_A < 0).any() & (waiting_J > 0).any(), choose, lambda: job_A)
    return _refill(sampler, shape, prompts, requests, jobs, s.replace(job_A=job_A))


def _refill(sampler, shape, prompts, requests, jobs, s: _State) -> _State:
    """Idle slots take the next texts of their lanes' jobs, in slot order."""
    idle_AB = (s.slots.request < 0).reshape(shape.lanes, shape.slots) & (s.job_A >= 0)[:, None]
    before_BB = jnp.tril(jnp.ones((shape.slots, shape.slots), bool), -1)
    same_AA = s.job_A[:, None] == s.job_A[None]
    earlier_AA = same_AA & (jnp.arange(shape.lanes)[:, None] > jnp.arange(shape.lanes)[None])
    idle_A = idle_AB.sum(-1, dtype=jnp.int32)
    rank_AB = (idle_AB[:, None, :] & before_BB[None]).sum(-1, dtype=jnp.int32)
    rank_AB = rank_AB + jnp.where(earlier_AA, idle_A[None], 0).sum(-1, dtype=jnp.int32)[:, None]
    job_A = jnp.maximum(s.job_A, 0)
    wanted_AB = s.next_J[job_A][:, None] + rank_AB
    fresh_S = (idle_AB & (wanted_AB < jobs.end[job_A][:, None])).reshape(-1)
    request = jnp.where(fresh_S, wanted_AB.reshape(-1), s.slots.request)
    prompt = jnp.where(fresh_S, requests.prompt[jnp.maximum(request, 0)], s.prompt)
    numbers_J = jnp.arange(jobs.end.shape[0], dtype=jnp.int32)
    taken_A = fresh_S.reshape(idle_AB.shape).sum(-1, dtype=jnp.int32)
    taken_AJ = jnp.where(s.job_A[:, None] == numbers_J[None], taken_A[:, None], 0)
    slots = decode_loop.begin(sampler, prompts, s.slots.replace(request=request), fresh_S, prompt)
    return s.replace(slots=slots, prompt=prompt, next_J=s.next_J + taken_AJ.sum(0, dtype=jnp.int32))


def _window(
    spec, sampler, shape, eos, how, params, pool, rope, prompts, requests, jobs, s: _State
) -> _State:
    """Up to W steps, and the filing of their tokens."""
    n, depth = requests.limit.shape[0], len(params["layers"])
    log = tuple(
        jnp.zeros((shape.window, shape.rows), t)
        for t in (jnp.int32, jnp.int32, jnp.int32, jnp.bool_, jnp.bool_)
    )
    chain_A = jobs.chain[jnp.maximum(s.job_A, 0)]
    flat = None if pool is None else {site: _flat(one) for site, one in pool.items()}
    if (
        how == "ring" and pool is not None
    ):  # XLA would copy a lane's adapters out of the pool in every step
        held = [
            jax.tree.map(lambda leaf, i=i: leaf[chain_A * depth + i], flat) for i in range(depth)
        ]
    refill = functools.partial(_refill, sampler, shape, prompts, requests, jobs)

    def adapter(i):
        if pool is None or how == "ring":
            return None if pool is None else held[i]
        return {site: LaneAdapter(one, chain_A * depth + i, how) for site, one in flat.items()}

    def step(carry):
        t, s, log = carry
        live = s.slots.request >= 0
        age = jnp.where(live, s.slots.age, 0)
        length = jnp.where(live, prompts.length[s.prompt], 0)
        cos, sin = (None, None) if rope is None else (table[length + age] for table in rope)
        at = (s.steps + t) % s.keys[0].shape[2] if how == "ring" else None
        now = Step(age=age, length=length, prompt=s.prompt, cos=cos, sin=sin, at=at)
        keys, values = list(s.keys), list(s.values)
        x = transformer.embed(spec, params, s.slots.token, length + age)
        for i, w in enumerate(params["layers"]):

            def attend(qkv_SJK, i=i):
                out, keys[i], values[i] = row_kernels.attend(
                    qkv_SJK,
                    keys[i],
                    values[i],
                    prompts.keys[i],
                    prompts.values[i],
                    now,
                    spec.heads,
                    how=how,
                )
                return out

            x = transformer.block(spec, w, adapter(i), x, attend, joined=True)
        logits = _logits(spec, params, transformer.finish(spec, params, x))
        slots, entry = decode_loop.advance(sampler, eos, requests, s.slots.replace(age=age), logits)
        log = tuple(
            jax.lax.dynamic_update_slice(a, b[None], (t, 0))
            for a, b in zip(log, entry, strict=True)
        )
        return t + 1, refill(s.replace(slots=slots, keys=keys, values=values)), log

    def more(carry):
        return (carry[0] < shape.window) & (carry[1].slots.request >= 0).any()

    t, s, log = jax.lax.while_loop(more, step, (jnp.int32(0), s, log))
    request, age, token, live, ended = log
    row, column = jnp.where(live, request, n), jnp.where(live, age, 0)
    return s.replace(
        tokens=s.tokens.at[row, column].set(token),
        length=s.length.at[row].max(column + 1),
        ended=s.ended.at[row].max(ended),
        steps=s.steps + t,
    )
