"""Beam search for many prompts and chains at once.

It is equal, token for token, to `transformers.generate(num_beams=k, do_sample=False)`.

No cache is ever copied. The beams of a prompt share its prefilled cache. Each beam writes its keys
and values at its own index, and a table of ancestors says which beam wrote the entry of each step
of a text. A step's attention is one product of a prompt's beams with the entries of all of them,
masked by that table. A prompt's result does not depend on the other prompts of its program, and
equal prompts of a chain are searched once.

Dimensions: C chains, R prompts in a program (chain-major), B beams, E tokens that end a text, X =
max(2, 1 + E) B candidates, M most new tokens, P prompt cache length, G key/value heads, Q query
heads per key/value head, K head size, V vocabulary.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm.generation.prefill import prefill, unstack_layers
from jaxloop.lm.generation.slots import PromptCache
from jaxloop.lm.model import rotary, transformer
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.lora import Adapter, num_chains, pack_adapters
from jaxloop.lm.training.batching import bucket

# A program's arguments may come from the host.
Array = jax.Array | Any
# The score of what may not be chosen, as in transformers: it is added, never assigned.
NEVER = -1.0e9


@dataclass(frozen=True)
class BeamSettings:
    """How a search goes. Hashable.

    Attributes:
        num_beams: at least 2; one beam is greedy decoding.
        max_new_tokens: at least 1.
        length_penalty: a finished text's score is its log-probability divided by length **
            length_penalty, the length in generated tokens with EOS.
        early_stopping: False stops when the best open beam, scored at its present length, is no
            better than the worst of `num_beams` finished texts; True as soon as `num_beams` texts
            are finished; "never" scores the open beam at the most favourable length.
        repetition_penalty: multiplies the log-probability of tokens already in the text, > 0.

    Raises:
        ValueError: a value outside its range.
    """

    num_beams: int
    max_new_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        allowed = {}
        if not _is_whole(self.num_beams, 2):
            allowed["num_beams"] = "an integer from 2 up; one beam is greedy decoding"
        if not _is_whole(self.max_new_tokens, 1):
            allowed["max_new_tokens"] = "an integer from 1 up"
        if not _is_finite(self.length_penalty):
            allowed["length_penalty"] = "a finite number"
        if not (isinstance(self.early_stopping, bool) or self.early_stopping == "never"):
            allowed["early_stopping"] = "True, False or 'never'"
        if not _is_finite(self.repetition_penalty) or self.repetition_penalty <= 0:
            allowed["repetition_penalty"] = "a finite number above 0"
        for name, text in allowed.items():
            raise ValueError(f"{name}: {getattr(self, name)!r} is not allowed; it must be {text}")


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_whole(value: Any, low: int) -> bool:
    return _is_finite(value) and value == int(value) and value >= low


def beam_search(
    config: ModelConfig,
    params: dict[str, Any],
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int,
    max_new_tokens: int,
    eos: int | tuple[int, ...],
    pad: int = 0,
    adapters: Adapter | None = None,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    repetition_penalty: float = 1.0,
    rows: int = 16,
    prompt_len: int = 0,
) -> list[list[int]]:
    """Return the generated tokens of each prompt's best continuation, with the EOS that ends it.

    One program is compiled for every padded prompt length, whatever the number of prompts, which
    tokens end a text, the penalties and early_stopping.

    Args:
        config: config of the model.
        params: weights, as loaded or from `unstack_layers`.
        prompts: token ids, ragged, at least one each. With adapters of C chains, the first 1 / C
            of the prompts belong to the first chain, the next to the second, and so on.
        num_beams: as in `BeamSettings`.
        max_new_tokens: as in `BeamSettings`.
        eos: token or tokens that end a text.
        pad: token of the padding.
        adapters: with a leading chain axis C, or None.
        length_penalty: as in `BeamSettings`.
        early_stopping: as in `BeamSettings`.
        repetition_penalty: as in `BeamSettings`.
        rows: prompts of a chain in one program.
        prompt_len: tokens that prompts are padded to at least.

    Raises:
        ValueError: settings out of range, an empty prompt, a number of prompts that the chains do
            not divide, or prompts that leave no room for max_new_tokens in the model's context.
    """
    settings = BeamSettings(
        num_beams, max_new_tokens, length_penalty, early_stopping, repetition_penalty
    )
    chains = 1 if adapters is None else num_chains(adapters)
    _check(config, settings, prompts, chains, rows)
    ends = np.array(eos, np.int32).reshape(-1)
    search = functools.partial(
        beam_program,
        config,
        num_beams,
        repetition_penalty != 1,
        beam_rules(settings, ends),
        params,
        adapters,
    )
    queues = _queues(config, prompts, chains, prompt_len)
    best: list[list[int]] = [[]] * len(prompts)
    for cache_len, queues_C in sorted(queues.items()):
        waiting_C = [list(queue.items()) for queue in queues_C]
        for start in range(0, max(map(len, waiting_C)), rows):
            tokens_RP = np.full((chains * rows, cache_len + 1), pad, np.int32)
            length_R = np.zeros(chains * rows, np.int32)
            owners = {}
            for c, queue in enumerate(waiting_C):
                for r, (prompt, indices) in enumerate(queue[start : start + rows], c * rows):
                    tokens_RP[r, : len(prompt)], length_R[r] = prompt, len(prompt)
                    owners[r] = indices
            found_RM = np.asarray(search(tokens_RP, length_R))
            for r, indices in owners.items():
                text = _until_end(found_RM[r], ends)
                for i in indices:
                    best[i] = list(text)
    return best


def _queues(
    config: ModelConfig, prompts: Sequence[Sequence[int]], chains: int, prompt_len: int
) -> dict[int, list[dict[tuple[int, ...], list[int]]]]:
    """The distinct prompts of each chain with the indices of each, by padded length of the cache.

    The search is deterministic, so equal prompts of a chain share one. Programs are per padded
    length; chains without a prompt of that length are idle there.
    """
    per_chain = len(prompts) // chains
    queues: dict[int, list[dict[tuple[int, ...], list[int]]]] = {}
    for i, prompt in enumerate(prompts):
        cache_len = max(bucket(len(prompt) - 1, config.max_seq_len), prompt_len - 1)
        queues_C = queues.setdefault(cache_len, [{} for _ in range(chains)])
        key = tuple(int(token) for token in prompt)
        queues_C[i // per_chain].setdefault(key, []).append(i)
    return queues


def _until_end(tokens_M: np.ndarray, ends: np.ndarray) -> list[int]:
    """Tokens up to and with the first that ends a text."""
    end = np.flatnonzero(np.isin(tokens_M, ends))
    return tokens_M[: end[0] + 1 if len(end) else None].tolist()


def check_beams(config: ModelConfig, num_beams: int) -> None:
    """Check that a model can be searched with so many beams.

    Raises:
        ValueError: fewer than 2, or more than half the vocabulary.
    """
    BeamSettings(num_beams, 1)
    if 2 * num_beams > config.vocab_size:
        raise ValueError(
            f"num_beams: {num_beams} is more than half the model's vocabulary of "
            f"{config.vocab_size}; use fewer"
        )


def _check(
    config: ModelConfig,
    settings: BeamSettings,
    prompts: Sequence[Sequence[int]],
    chains: int,
    rows: int,
) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows: {rows!r} is not allowed; it must be an integer from 1 up")
    check_beams(config, settings.num_beams)
    if len(prompts) % chains:
        raise ValueError(
            f"prompts: {len(prompts)} prompts are not divisible among {chains} chains; give "
            "every chain equally many"
        )
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompts: prompt {i} has no tokens; give at least one, such as BOS")
        # The last token is generated but never read.
        if len(prompt) + settings.max_new_tokens > config.max_seq_len + 1:
            raise ValueError(
                f"prompts: prompt {i} has {len(prompt)} tokens, which with max_new_tokens = "
                f"{settings.max_new_tokens} exceeds the model's context of {config.max_seq_len}"
            )


class BeamRules(NamedTuple):
    """Settings that are data, not part of a program."""

    ends: Array  # [E]
    divisor: Array  # [M + 1] length ** length_penalty
    # [M + 1] divisor with which an open beam of each length is compared with the finished texts
    reach: Array
    until_full: Array  # [] stop when B texts are finished, whatever the open beams promise
    penalty: Array  # [] repetition penalty


def beam_rules(settings: BeamSettings, ends: np.ndarray) -> BeamRules:
    """Return the rules of a search whose texts end with any of `ends` [E]."""
    lengths = np.arange(settings.max_new_tokens + 1, dtype=np.float64).clip(1)
    divisor = lengths**settings.length_penalty
    reach = divisor
    if settings.early_stopping == "never" and settings.length_penalty > 0:  # the longest is best
        reach = np.full_like(divisor, divisor[-1])
    return BeamRules(
        ends=ends,
        divisor=divisor.astype(np.float32),
        reach=reach.astype(np.float32),
        until_full=np.bool_(settings.early_stopping is True),
        penalty=np.float32(settings.repetition_penalty),
    )


class _Open(NamedTuple):
    """The open beams: texts that have not ended."""

    tokens: jax.Array  # [R, B, M]
    score: jax.Array  # [R, B] log-probability
    last: jax.Array  # [R, B] next input
    ancestor: jax.Array  # [R, B, M] the beam that wrote the entry of each step
    seen: jax.Array | None  # [R, B, V] tokens already in the text, for the repetition penalty


class _Finished(NamedTuple):
    """The best finished texts, best first."""

    tokens: jax.Array  # [R, B, M]
    score: jax.Array  # [R, B] log-probability / length ** length_penalty
    real: jax.Array  # [R, B] False: only a placeholder


class _Search(NamedTuple):
    """What a search carries from step to step."""

    step: jax.Array  # []
    keys: list[jax.Array]  # L x [R, G, B, M, K]
    values: list[jax.Array]
    opened: _Open
    finished: _Finished
    improvable: jax.Array  # [R] whether open beams can still beat finished texts


@functools.partial(jax.jit, static_argnames=("config", "num_beams", "penalised"))
def beam_program(
    config: ModelConfig,
    num_beams: int,
    penalised: bool,
    rules: BeamRules,
    params: dict[str, Any],
    adapters: Adapter | None,
    tokens_RP: jax.Array,
    length_R: jax.Array,
) -> jax.Array:
    """Return the best text [R, M] of each prompt.

    Args:
        config: config of the model.
        num_beams: B.
        penalised: whether there is a repetition penalty.
        rules: rules of the search.
        params: weights.
        adapters: with a leading chain axis, or None.
        tokens_RP: [R, P + 1] prompts, right-padded.
        length_R: tokens of each prompt; 0 for an idle row.
    """
    if not isinstance(params["layers"], list):
        params = unstack_layers(params)
    dtype = params["embed"].dtype
    packed = None
    if adapters is not None:
        packed = pack_adapters(config, adapters, dtype, "block_diagonal")
    prompts = prefill(config, params, packed, tokens_RP, jnp.maximum(length_R, 1))
    m = rules.divisor.shape[0] - 1
    first = _first_search(config, prompts, length_R > 0, num_beams, m, dtype)
    if penalised:
        seen = _seen_in_prompts(tokens_RP, length_R, num_beams, config.vocab_size)
        first = first._replace(opened=first.opened._replace(seen=seen))

    def goes_on(search: _Search) -> jax.Array:
        full_R = search.finished.real.all(-1)
        return (search.step < m) & (search.improvable & ~(rules.until_full & full_R)).any()

    def step(search: _Search) -> _Search:
        ancestor = search.opened.ancestor.at[:, :, search.step].set(jnp.arange(num_beams)[None])
        search = search._replace(opened=search.opened._replace(ancestor=ancestor))
        logits_RBV, search = _model_step(config, params, packed, prompts, search)
        return _select(rules, logits_RBV, search)

    return jax.lax.while_loop(goes_on, step, first).finished.tokens[:, 0]


def _first_search(
    config: ModelConfig,
    prompts: PromptCache,
    busy_R: jax.Array,
    num_beams: int,
    max_new_tokens: int,
    dtype: jnp.dtype,
) -> _Search:
    """A search before its first step. All beams start alike: only the first may be continued."""
    rows = busy_R.shape[0]
    cache_size = (rows, config.num_kv_heads, num_beams, max_new_tokens, config.head_dim)
    empty = jnp.zeros(cache_size, dtype)
    none = jnp.zeros((rows, num_beams, max_new_tokens), jnp.int32)
    score_B = jnp.where(jnp.arange(num_beams) == 0, 0.0, NEVER)
    return _Search(
        step=jnp.int32(0),
        keys=[empty] * config.num_layers,
        values=[empty] * config.num_layers,
        opened=_Open(
            tokens=none,
            score=jnp.broadcast_to(score_B[None], (rows, num_beams)).astype(jnp.float32),
            last=jnp.repeat(prompts.last[:, None], num_beams, 1),
            ancestor=none,
            seen=None,
        ),
        finished=_Finished(
            tokens=none,
            score=jnp.full((rows, num_beams), NEVER, jnp.float32),
            real=jnp.zeros((rows, num_beams), bool),
        ),
        improvable=busy_R,
    )


def _seen_in_prompts(tokens_RP, length_R, num_beams, vocab_size):
    """Which tokens [R, B, V] each beam's prompt holds."""
    rows = tokens_RP.shape[0]
    real_RP = jnp.arange(tokens_RP.shape[1])[None] < length_R[:, None]
    column_RP = jnp.where(real_RP, tokens_RP, vocab_size)
    none_RV = jnp.zeros((rows, vocab_size), bool)
    seen_RV = none_RV.at[jnp.arange(rows)[:, None], column_RP].set(True, mode="drop")
    return jnp.repeat(seen_RV[:, None], num_beams, 1)


@jax.named_scope("decode_step")
def _model_step(
    config: ModelConfig,
    params: dict[str, Any],
    adapters: dict[str, Any] | None,
    prompts: PromptCache,
    search: _Search,
) -> tuple[jax.Array, _Search]:
    """Logits [R, B, V] after each beam's last token, and the search with its keys and values."""
    opened, t = search.opened, search.step
    rows, b, m = opened.tokens.shape
    position = jnp.repeat(prompts.length + t, b)
    x_ND = transformer.embed(config, params, opened.last.reshape(-1), position)
    rope = rotary.rope_tables(config, position)
    visible = _visible(prompts, opened, t)
    keys, values = list(search.keys), list(search.values)

    def heads_first(x):
        by_beam = x.reshape(rows, b, config.num_kv_heads, -1, config.head_dim)
        return by_beam.swapaxes(1, 2)  # [R, G, B, Q, K]

    def attend(i, q, k, v):
        if rope is not None:
            q, k = rotary.rotate(q, *rope), rotary.rotate(k, *rope)
        q, k, v = heads_first(q), heads_first(k), heads_first(v)
        keys[i] = jax.lax.dynamic_update_slice(keys[i], k, (0, 0, 0, t, 0))
        values[i] = jax.lax.dynamic_update_slice(values[i], v, (0, 0, 0, t, 0))
        flat = (rows, config.num_kv_heads, b * m, config.head_dim)
        stretches = (
            (prompts.keys[i], prompts.values[i]),
            (keys[i].reshape(flat), values[i].reshape(flat)),
        )
        scores = [
            jnp.einsum("rgbqk,rgtk->rgbqt", q, k, preferred_element_type=jnp.float32)
            for k, _ in stretches
        ]
        scores = jnp.concatenate(scores, -1) * config.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(visible, scores, NEVER), -1).astype(v.dtype)
        of_stretch = jnp.split(weights, [prompts.keys[i].shape[2]], -1)
        of_prompt, of_beams = (
            jnp.einsum("rgbqt,rgtk->rgbqk", w, v)
            for w, (_, v) in zip(of_stretch, stretches, strict=True)
        )
        out = of_prompt + of_beams
        return out.swapaxes(1, 2).reshape(rows * b, -1)

    for i, layer in enumerate(params["layers"]):
        adapter = None if adapters is None else transformer.adapter_layer(adapters, i)
        x_ND = transformer.block(config, layer, adapter, x_ND, functools.partial(attend, i))
    x_ND = transformer.final_norm(config, params, x_ND)
    logits_RBV = transformer.lm_logits(config, params, x_ND).reshape(rows, b, config.vocab_size)
    return logits_RBV, search._replace(keys=keys, values=values)


def _visible(prompts: PromptCache, opened: _Open, t: jax.Array) -> jax.Array:
    """Which entries each beam sees, [R, 1, B, 1, P + B M]: its prompt's, its own, ancestors'."""
    rows, b, m = opened.tokens.shape
    wrote = opened.ancestor[:, :, None] == jnp.arange(b)[None, None, :, None]
    wrote = wrote & (jnp.arange(m) <= t)[None, None, None]
    in_prompt = jnp.arange(prompts.keys[0].shape[2])[None] < prompts.length[:, None]
    in_prompt = jnp.broadcast_to(in_prompt[:, None], (rows, b, in_prompt.shape[1]))
    visible = jnp.concatenate([in_prompt, wrote.reshape(rows, b, b * m)], -1)
    return visible[:, None, :, None]


def _pick(x, index):
    """x [R, n, ...] at index [R, k] of its second axis."""
    return jnp.take_along_axis(x, index.reshape(index.shape + (1,) * (x.ndim - 2)), 1)


@jax.named_scope("select_beams")
def _select(rules: BeamRules, logits_RBV: jax.Array, search: _Search) -> _Search:
    """Choose the beams and finished texts after a step, from the logits of its next tokens."""
    opened, finished, t = search.opened, search.finished, search.step
    rows, b, m = opened.tokens.shape
    log_p = jax.nn.log_softmax(logits_RBV, -1)
    if opened.seen is not None:
        log_p = jnp.where(opened.seen, log_p * rules.penalty, log_p)
    # Of the X best candidates at most E B end a text (one per beam and EOS), so at least B go on.
    candidates = max(2, 1 + rules.ends.shape[0]) * b
    best_log_p, token = jax.lax.top_k(log_p, min(candidates, log_p.shape[-1]))
    score, index = jax.lax.top_k(
        (best_log_p + opened.score[..., None]).reshape(rows, -1), candidates
    )
    parent, token = index // best_log_p.shape[-1], _pick(token.reshape(rows, -1), index)
    tokens = _pick(opened.tokens, parent).at[:, :, t].set(token)
    ends = (token[..., None] == rules.ends[None, None]).any(-1) | (t + 1 >= m)

    open_score, best = jax.lax.top_k(score + ends.astype(jnp.float32) * NEVER, b)
    from_beam, last = _pick(parent, best), _pick(token, best)
    seen = opened.seen
    if seen is not None:
        at = (jnp.arange(rows)[:, None], jnp.arange(b)[None], last)
        seen = _pick(seen, from_beam).at[at].set(True)
    ancestor = _pick(opened.ancestor, from_beam)
    opened = _Open(_pick(tokens, best), open_score, last, ancestor, seen)

    # Only the B best candidates may finish a text. The others are there to go on in place of those
    # that end.
    finishes = ends & (jnp.arange(candidates) < b)[None]
    full = finished.real.all(-1, keepdims=True)
    closed = ~search.improvable[:, None] | (rules.until_full & full)
    final = (
        score / rules.divisor[t + 1]
        + closed.astype(jnp.float32) * NEVER
        + (~finishes).astype(jnp.float32) * NEVER
    )
    all_tokens = jnp.concatenate([finished.tokens, tokens], 1)
    all_real = jnp.concatenate([finished.real, finishes], 1)
    score, best = jax.lax.top_k(jnp.concatenate([finished.score, final], 1), b)
    finished = _Finished(_pick(all_tokens, best), score, _pick(all_real, best))

    worst = jnp.where(finished.real, finished.score.min(-1, keepdims=True), NEVER)
    better = (opened.score[:, :1] / rules.reach[t + 1] > worst).any(-1)
    return search._replace(
        step=t + 1, opened=opened, finished=finished, improvable=search.improvable & better
    )
