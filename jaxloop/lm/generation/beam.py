"""Beam search, equal token for token to `transformers.generate(num_beams=k, do_sample=False)`, for
many prompts and chains at once.

No cache is ever copied. The beams of a prompt share its prefilled cache; what they generate is
written where the beam stands, and a table of ancestors says whose entry belongs to whom. A step's
attention is one product of a prompt's beams with all their entries, masked by it. A prompt's result
does not depend on the other prompts of its program, and equal prompts of a chain are searched once.

Dimensions: C chains, R prompts in a program (chain-major), B beams, E tokens that end a text, X =
max(2, 1 + E) B candidates, M most new tokens, P prompt cache length, G key/value heads, Q query
heads per key/value head, K head size, V vocabulary.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.generation.decode_loop import Prompts, prefill, unstack
from jaxloop.lm.model import transformer
from jaxloop.lm.model.config import Spec
from jaxloop.lm.model.lora import Lora, fuse
from jaxloop.lm.training.batching import bucket

NEVER = (
    -1.0e9
)  # the score of what may not be chosen, as in transformers: it is added, never assigned


@dataclass(frozen=True)
class Beam:
    """Settings of a search, hashable. Raises ValueError for a value outside its range.

    beams: at least 2 (one beam is greedy decoding). length_penalty: a finished text's score is its
    log-probability divided by length ** length_penalty, the length in generated tokens with EOS.
    early_stopping: False stops when the best open beam, scored at its present length, is no better
    than the worst of `beams` finished texts; True as soon as `beams` texts are finished; "never"
    scores the open beam at the most favourable length. repetition_penalty multiplies the
    log-probability of tokens already in the text.
    """

    beams: int
    max_new_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0

    def __post_init__(self):
        number = lambda x: (
            isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
        )  # noqa: E731
        for field, allowed, fine in (
            (
                "beams",
                "an integer from 2 up; one beam is greedy decoding",
                lambda x: number(x) and x == int(x) and x >= 2,
            ),
            (
                "max_new_tokens",
                "an integer from 1 up",
                lambda x: number(x) and x == int(x) and x >= 1,
            ),
            ("length_penalty", "a finite number", number),
            (
                "early_stopping",
                "True, False or 'never'",
                lambda x: x is True or x is False or x == "never",
            ),
            ("repetition_penalty", "a finite number above 0", lambda x: number(x) and x > 0),
        ):
            if not fine(getattr(self, field)):
                raise ValueError(
                    f"{field}: {getattr(self, field)!r} is not allowed; it must be {allowed}"
                )


def beam_search(
    spec: Spec, params: dict, prompts: Sequence[Sequence[int]], *, beams: int, max_new_tokens: int, eos: int | tuple[int, ...], pad: int = 0,
    adapters: dict | None = None, lora: Lora = Lora(), length_penalty: float = 1.0, early_stopping: bool | str = False,
    repetition_penalty: float = 1.0, rows: int = 16, padded: int = 0,
) -> list[list[int]]:  # fmt: skip
    """The best continuation of each prompt: generated tokens, with the closing EOS (one of `eos`)
    where there is one.

    prompts: token ids, ragged, at least one each; with `adapters` (leading chain axis C), C equal
    runs of prompts, one run a chain. params: as loaded, or from `decode.unstack`. rows: prompts of
    a chain in one program; one is compiled for every padded prompt length, whatever the number of
    prompts, which tokens end a text, the penalties and early_stopping. padded: tokens that prompts
    are padded to at least, so that one program serves prompts of many lengths. Other settings as in
    `Beam`. Raises ValueError for settings out of range, an empty prompt, a number of prompts that
    the chains do not divide, and prompts that leave no room for max_new_tokens in the model's
    context.
    """
    settings = Beam(beams, max_new_tokens, length_penalty, early_stopping, repetition_penalty)
    chains = 1 if adapters is None else jax.tree.leaves(adapters)[0].shape[0]
    _check(spec, settings, prompts, chains, rows)
    each = len(prompts) // chains
    # Deterministic, so a chain's equal prompts share one search. Programs are per padded length;
    # chains without work in one are idle there.
    work: dict[int, list[dict]] = {}
    for i, prompt in enumerate(prompts):
        queues = work.setdefault(
            max(bucket(len(prompt) - 1, spec.context), padded - 1), [{} for _ in range(chains)]
        )
        queues[i // each].setdefault(tuple(map(int, prompt)), []).append(i)
    ends = np.array(eos, np.int32).reshape(-1)
    rules = _rules(settings, ends)
    found: list[list[int]] = [[]] * len(prompts)
    for size, queues in sorted(work.items()):
        waiting = [list(q.items()) for q in queues]
        for start in range(0, max(map(len, waiting)), rows):
            tokens, length = (
                np.full((chains * rows, size + 1), pad, np.int32),
                np.zeros(chains * rows, np.int32),
            )
            owners = {}
            for c, queue in enumerate(waiting):
                for r, (prompt, indices) in enumerate(queue[start : start + rows], c * rows):
                    tokens[r, : len(prompt)], length[r], owners[r] = prompt, len(prompt), indices
            best = np.asarray(
                _search(
                    spec,
                    beams,
                    repetition_penalty != 1,
                    lora,
                    rules,
                    params,
                    adapters,
                    tokens,
                    length,
                )
            )
            for r, indices in owners.items():
                end = np.flatnonzero(np.isin(best[r], ends))
                for i in indices:
                    found[i] = best[r, : end[0] + 1 if len(end) else None].tolist()
    return found


def _check(spec, settings, prompts, chains, rows):
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows: {rows!r} is not allowed; it must be an integer from 1 up")
    if 2 * settings.beams > spec.vocab:
        raise ValueError(
            f"beams: {settings.beams} is more than half the model's vocabulary of {spec.vocab}; "
            "use fewer"
        )
    if len(prompts) % chains:
        raise ValueError(
            f"prompts: {len(prompts)} prompts are not divisible among {chains} chains; give "
            "every chain equally many"
        )
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts: prompt {i} has no tokens; give at least one, such as BOS")
        if (
            len(prompt) + settings.max_new_tokens > spec.context + 1
        ):  # the last token is written but never read
            raise ValueError(
                f"prompts: prompt {i} has {len(prompt)} tokens, which with max_new_tokens = "
                f"{settings.max_new_tokens} "
                f"exceeds the model's context of {spec.context}"
            )


class _Rules(NamedTuple):
    """Settings that are data, not part of a program."""

    ends: jax.Array  # [E]
    divisor: jax.Array  # [M + 1] length ** length_penalty
    reach: (
        jax.Array
    )  # [M + 1] divisor with which an open beam of each length is held against the finished texts
    until_full: jax.Array  # [] stop when B texts are finished, whatever the open beams promise
    penalty: jax.Array  # [] repetition penalty


def _rules(settings: Beam, ends: np.ndarray) -> _Rules:
    divisor = (
        np.arange(settings.max_new_tokens + 1, dtype=np.float64).clip(1) ** settings.length_penalty
    )
    longest_is_best = settings.early_stopping == "never" and settings.length_penalty > 0
    reach = np.full_like(divisor, divisor[-1]) if longest_is_best else divisor
    f32 = np.float32
    return _Rules(
        ends,
        divisor.astype(f32),
        reach.astype(f32),
        np.bool_(settings.early_stopping is True),
        f32(settings.repetition_penalty),
    )


class _Open(NamedTuple):
    """Beams that go on."""

    tokens: jax.Array  # [R, B, M]
    score: jax.Array  # [R, B] log-probability
    last: jax.Array  # [R, B] next input
    ancestor: jax.Array  # [R, B, M] the beam that wrote the entry of each step
    seen: jax.Array | None  # [R, B, V] tokens already in the text, for the repetition penalty


class _Done(NamedTuple):
    """The best finished texts, best first."""

    tokens: jax.Array  # [R, B, M]
    score: jax.Array  # [R, B] log-probability / length ** length_penalty
    real: jax.Array  # [R, B] False: only a placeholder


@functools.partial(jax.jit, static_argnames=("spec", "b", "penalised", "lora"))
def _search(
    spec: Spec,
    b: int,
    penalised: bool,
    lora: Lora,
    rules: _Rules,
    params: dict,
    adapters,
    tokens,
    length,
):
    """Best text [R, M] of each prompt; tokens [R, P + 1] right-padded, length [R], 0 for an idle
    row.
    """
    if not isinstance(params["layers"], list):
        params = unstack(params)
    dtype = params["embed"].dtype
    fused = None if adapters is None else fuse(spec, adapters, lora, dtype, block_diagonal=True)
    prompts = prefill(spec, params, fused, tokens, jnp.maximum(length, 1))
    rows, m = tokens.shape[0], rules.divisor.shape[0] - 1
    blank = jnp.zeros((rows, spec.kv_heads, b, m, spec.head_size), dtype)
    none = jnp.zeros((rows, b, m), jnp.int32)
    seen = None
    if penalised:
        real = jnp.arange(tokens.shape[1])[None] < length[:, None]
        column = jnp.where(real, tokens, spec.vocab)
        seen = (
            jnp.zeros((rows, spec.vocab), bool)
            .at[jnp.arange(rows)[:, None], column]
            .set(True, mode="drop")
        )
        seen = jnp.repeat(seen[:, None], b, 1)
    # All beams start alike: only the first may be continued in the first step.
    score = jnp.broadcast_to(jnp.where(jnp.arange(b) == 0, 0.0, NEVER)[None], (rows, b)).astype(
        jnp.float32
    )
    opened = _Open(none, score, jnp.repeat(prompts.last[:, None], b, 1), none, seen)
    done = _Done(none, jnp.full((rows, b), NEVER, jnp.float32), jnp.zeros((rows, b), bool))

    def more(carry):
        t, _, _, _, done, improvable = carry
        return (t < m) & (improvable & ~(rules.until_full & done.real.all(-1))).any()

    def step(carry):
        t, keys, values, opened, done, improvable = carry
        opened = opened._replace(ancestor=opened.ancestor.at[:, :, t].set(jnp.arange(b)[None]))
        logits, keys, values = _logits(spec, params, fused, prompts, opened, keys, values, t)
        opened, done, improvable = _select(rules, logits, opened, done, improvable, t)
        return t + 1, keys, values, opened, done, improvable

    start = (jnp.int32(0), [blank] * spec.layers, [blank] * spec.layers, opened, done, length > 0)
    return jax.lax.while_loop(more, step, start)[4].tokens[:, 0]


def _logits(spec, params, fused, prompts: Prompts, opened: _Open, keys, values, t):
    """Logits [R, B, V] after each beam's last token, whose keys and values are written at step t."""
    rows, b, m = opened.tokens.shape
    position = jnp.repeat(prompts.length + t, b)
    x = transformer.embed(spec, params, opened.last.reshape(-1), position)
    tables = transformer.rope_tables(spec, position)
    mine = (opened.ancestor[:, :, None] == jnp.arange(b)[None, None, :, None]) & (
        jnp.arange(m) <= t
    )[None, None, None]
    prompt = jnp.arange(prompts.keys[0].shape[2])[None] < prompts.length[:, None]
    prompt = jnp.broadcast_to(prompt[:, None], (rows, b, prompt.shape[1]))
    visible = jnp.concatenate([prompt, mine.reshape(rows, b, b * m)], -1)[
        :, None, :, None
    ]  # [R, 1, B, 1, P + B M]
    keys, values = list(keys), list(values)
    for i, w in enumerate(params["layers"]):

        def attend(q, k, v):
            if tables is not None:
                q, k = transformer.rotate(q, *tables), transformer.rotate(k, *tables)
            q, k, v = (
                y.reshape(rows, b, spec.kv_heads, -1, spec.head_size).swapaxes(1, 2)
                for y in (q, k, v)
            )  # q: [R, G, B, Q, K]
            keys[i] = jax.lax.dynamic_update_slice(keys[i], k, (0, 0, 0, t, 0))  # noqa: B023
            values[i] = jax.lax.dynamic_update_slice(values[i], v, (0, 0, 0, t, 0))  # noqa: B023
            flat = lambda cache: cache.reshape(rows, spec.kv_heads, b * m, spec.head_size)  # noqa: E731
            stretches = ((prompts.keys[i], prompts.values[i]), (flat(keys[i]), flat(values[i])))  # noqa: B023
            scores = [
                jnp.einsum("rgbqk,rgtk->rgbqt", q, k, preferred_element_type=jnp.float32)
                for k, _ in stretches
            ]
            scores = jnp.concatenate(scores, -1) * spec.head_size**-0.5
            weights = jax.nn.softmax(jnp.where(visible, scores, NEVER), -1).astype(v.dtype)
            split = jnp.split(weights, [stretches[0][0].shape[2]], -1)
            out = sum(
                jnp.einsum("rgbqt,rgtk->rgbqk", w, v)
                for w, (_, v) in zip(split, stretches, strict=True)
            )
            return out.swapaxes(1, 2).reshape(rows * b, -1)

        x = transformer.block(
            spec, w, None if fused is None else transformer.adapter_layer(fused, i), x, attend
        )
    return (
        transformer.project(spec, params, transformer.finish(spec, params, x)).reshape(
            rows, b, spec.vocab
        ),
        keys,
        values,
    )


def _pick(x, index):
    """x [R, n, ...] at index [R, k] of its second axis."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), 1)


def _select(rules: _Rules, logits, opened: _Open, done: _Done, improvable, t):
    """One step of the search on logits [R, B, V]: the open beams, the finished texts, and which
    rows can still improve on them.
    """
    rows, b, m = opened.tokens.shape
    log_p = jax.nn.log_softmax(logits, -1)
    if opened.seen is not None:
        log_p = jnp.where(opened.seen, log_p * rules.penalty, log_p)
    # A beam gives at most X candidates to the X best of all, and one for each EOS: so at least B of
    # them go on.
    candidates = max(2, 1 + rules.ends.shape[0]) * b
    each, token = jax.lax.top_k(log_p, min(candidates, log_p.shape[-1]))
    score, index = jax.lax.top_k((each + opened.score[..., None]).reshape(rows, -1), candidates)
    parent, token = index // each.shape[-1], _pick(token.reshape(rows, -1), index)
    tokens = _pick(opened.tokens, parent).at[:, :, t].set(token)
    ends = (token[..., None] == rules.ends[None, None]).any(-1) | (t + 1 >= m)

    going, best = jax.lax.top_k(score + ends.astype(jnp.float32) * NEVER, b)
    from_beam, last = _pick(parent, best), _pick(token, best)
    seen = opened.seen
    if seen is not None:
        seen = (
            _pick(seen, from_beam)
            .at[jnp.arange(rows)[:, None], jnp.arange(b)[None], last]
            .set(True)
        )
    opened = _Open(_pick(tokens, best), going, last, _pick(opened.ancestor, from_beam), seen)

    # Candidates beyond the first B only stand by for those that end; they finish nothing
    # themselves.
    finishes = ends & (jnp.arange(candidates) < b)[None]
    closed = ~improvable[:, None] | (rules.until_full & done.real.all(-1, keepdims=True))
    final = (
        score / rules.divisor[t + 1]
        + closed.astype(jnp.float32) * NEVER
        + (~finishes).astype(jnp.float32) * NEVER
    )
    both = [
        jnp.concatenate(pair, 1)
        for pair in ((done.tokens, tokens), (done.score, final), (done.real, finishes))
    ]
    score, kept = jax.lax.top_k(both[1], b)
    done = _Done(_pick(both[0], kept), score, _pick(both[2], kept))

    worst = jnp.where(done.real, done.score.min(-1, keepdims=True), NEVER)
    return opened, done, improvable & (opened.score[:, :1] / rules.reach[t + 1] > worst).any(-1)
