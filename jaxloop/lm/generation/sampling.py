"""The next token from logits: repetition penalty, temperature, top_k, top_p, min_p, in the order of
`transformers`, then one draw.

No step sorts the vocabulary: min_p is a comparison with the row's maximum, top_k and top_p search
for their threshold by bisection on the bits of the logits, and the draw inverts the cumulative sum
with one uniform a row. A row's arithmetic never reads another row.

Dimensions: S rows (slots), V vocabulary.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.core.categorical import inverse_cdf


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Hashable, so it can be a static argument of `jax.jit`.

    temperature: divides the logits, > 0. min_p: tokens below min_p times the largest probability
    are cut (Nguyen et al. 2024), [0, 1]. top_p: the smallest set of most probable tokens whose mass
    is at least top_p is kept (Holtzman et al. 2020), (0, 1], 1 is off. top_k: the k most probable
    tokens, and those that tie with the last of them, are kept; 0 is off. repetition_penalty: logits
    of tokens already in the text (prompt included) are divided by it where positive and multiplied
    where negative (Keskar et al. 2019), > 0, 1 is off. greedy: the most probable token, after the
    repetition penalty; the rest is not used. Raises ValueError for a value outside its range.
    """

    temperature: float = 1.0
    min_p: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self):
        positive, share = (lambda x: 0 < x < math.inf), (lambda x: 0 <= x <= 1)
        hint = "; for the most probable token use greedy decoding" if self.temperature == 0 else ""
        for field, allowed, fine in (
            ("temperature", f"a finite number above 0{hint}", positive),
            ("min_p", "a number in [0, 1]", share),
            ("top_p", "a number in (0, 1]", lambda x: 0 < x <= 1),
            ("top_k", "an integer from 0 (off) up", lambda x: x == int(x) and x >= 0),
            ("repetition_penalty", "a finite number above 0", positive),
        ):
            value = getattr(self, field)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or math.isnan(value) or math.isinf(value) or not fine(value):
                raise ValueError(f"{field}: {value!r} is not allowed; it must be {allowed}")

    @property
    def needs_seen(self) -> bool:
        """Whether `seen_SV` must be given: which tokens each row's text already holds."""
        return self.repetition_penalty != 1


def next_token(
    sampler: Sampler, logits_SV: jax.Array, u_S: jax.Array, seen_SV: jax.Array | None = None
) -> jax.Array:
    """Token [S] (int32) of each row from float32 logits [S, V] and uniforms [S] in [0, 1);
    `seen_SV` (bool) as in `weights`.
    """
    if sampler.greedy:
        return jnp.argmax(_penalised(sampler, logits_SV, seen_SV), -1).astype(jnp.int32)
    return inverse_cdf(weights(sampler, logits_SV, seen_SV), u_S).astype(jnp.int32)


def weights(sampler: Sampler, logits_SV: jax.Array, seen_SV: jax.Array | None = None) -> jax.Array:
    """Unnormalised probabilities [S, V] of the next token, 1 for the most probable and 0 where cut.

    logits_SV: float32, finite or -inf, with at least one finite in a row. seen_SV: bool, tokens
    already in the row's text; needed where `sampler.needs_seen`. Equal, once normalised, to the
    softmax of what the logits processors of `transformers` return.
    """
    z_SV = _penalised(sampler, logits_SV, seen_SV)
    if sampler.greedy:
        best_S = jnp.argmax(z_SV, -1)
        return (jnp.arange(z_SV.shape[-1])[None] == best_S[:, None]).astype(z_SV.dtype)
    if sampler.temperature != 1:
        z_SV = z_SV / sampler.temperature
    w_SV = jnp.exp(z_SV - z_SV.max(-1, keepdims=True))
    if 0 < sampler.top_k < z_SV.shape[-1]:
        order_SV = _order(z_SV)
        target_S = jnp.full(z_SV.shape[:1], sampler.top_k, jnp.int32)
        edge_S = _edge(order_SV, jnp.ones_like(order_SV), target_S)
        w_SV = jnp.where(order_SV >= edge_S[:, None], w_SV, 0)
    if sampler.top_p < 1:
        w_SV = _nucleus(_order(z_SV), w_SV, sampler.top_p)
    return jnp.where(w_SV >= sampler.min_p, w_SV, 0) if sampler.min_p > 0 else w_SV


def _penalised(sampler, logits_SV, seen_SV):
    if not sampler.needs_seen:
        return logits_SV
    if seen_SV is None:
        raise ValueError(
            f"repetition_penalty: {sampler.repetition_penalty!r} needs to know the tokens "
            "already in each text; pass seen_SV"
        )
    p = sampler.repetition_penalty
    return jnp.where(seen_SV, jnp.where(logits_SV < 0, logits_SV * p, logits_SV / p), logits_SV)


def _order(x_SV):
    """Integers in the order of the floats: the bits, with those of negative numbers flipped; both
    zeros are one.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(x_SV == 0, 0, x_SV), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _edge(order_SV, mass_SV, target_S):
    """Largest value of each row of `order_SV` at and above which the row's mass reaches its target;
    two bits a pass over the row.
    """

    def pass_over(i, edge_S):
        shift = (30 - 2 * i).astype(jnp.uint32)
        reached = jnp.zeros_like(edge_S)
        for digit in (1, 2, 3):
            candidate = edge_S | (jnp.uint32(digit) << shift)
            above_SV = order_SV >= _signed(candidate)[:, None]
            reached += (jnp.where(above_SV, mass_SV, 0).sum(-1) >= target_S).astype(jnp.uint32)
        return edge_S | (reached << shift)

    return _signed(jax.lax.fori_loop(0, 16, pass_over, jnp.zeros(order_SV.shape[:1], jnp.uint32)))


def _signed(x_uint):
    return jax.lax.bitcast_convert_type(x_uint ^ jnp.uint32(1 << 31), jnp.int32)


def _nucleus(order_SV, w_SV, top_p):
    """Weights of the smallest set of most probable tokens with at least top_p of the mass; of equal
    tokens at its edge, the last ones.
    """
    target_S = w_SV.sum(-1) * top_p
    edge_S = _edge(order_SV, w_SV, target_S)
    above_SV, at_SV = order_SV > edge_S[:, None], order_SV == edge_S[:, None]
    missing_S = target_S - jnp.where(above_SV, w_SV, 0).sum(-1)
    each_S = jnp.where(at_SV, w_SV, 0).max(-1)
    wanted_S = jnp.maximum(jnp.ceil(missing_S / jnp.where(each_S > 0, each_S, 1)), 1).astype(
        jnp.int32
    )

    def cut_ties(w_SV):
        from_end_SV = jnp.flip(jnp.cumsum(jnp.flip(at_SV, -1), -1, dtype=jnp.int32), -1)
        return jnp.where(at_SV & (from_end_SV > wanted_S[:, None]), 0, w_SV)

    kept_SV = jnp.where(above_SV | at_SV, w_SV, 0)
    # Ties at the edge are rare, and counting them costs a cumulative sum over the vocabulary. Rows
    # without any pass through unchanged.
    return jax.lax.cond(
        (at_SV.sum(-1, dtype=jnp.int32) > wanted_S).any(), cut_ties, lambda w: w, kept_SV
    )
