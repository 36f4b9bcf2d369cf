"""The next token from logits.

Repetition penalty, temperature, top_k, top_p and min_p are applied in the order of `transformers`;
then one token is drawn.

No step sorts the vocabulary: min_p is a comparison with the row's maximum, top_k and top_p search
for their threshold by bisection on the bits of the logits, and the draw inverts the cumulative sum
with one uniform a row. A row's arithmetic never reads another row.

Dimensions: S rows (slots), V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxloop.config.sections import SampleConfig
from jaxloop.core.categorical import PickBlock, inverse_cdf, inverse_cdf_of

# Below this temperature logits are so large that their rounding shifts all weights of a row, which
# `exp` and min_p do not bear; below the other one all but the largest have no weight.
COLD, COLDEST = 1e-2, 1e-30


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn. Hashable, so it can be a static argument of `jax.jit`.

    Attributes:
        temperature: divides the logits, > 0.
        min_p: tokens below min_p times the largest probability are cut (Nguyen et al. 2024), in
            [0, 1].
        top_p: the smallest set of most probable tokens whose mass is at least top_p is kept
            (Holtzman et al. 2020), in (0, 1]; 1 is off.
        top_k: the k most probable tokens, and those that tie with the last of them, are kept; 0 is
            off.
        repetition_penalty: logits of tokens already in the text, prompt included, are divided by it
            where positive and multiplied where negative (Keskar et al. 2019), > 0; 1 is off.
        greedy: take the most probable token after the repetition penalty; the other fields are then
            not used.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 1.0
    min_p: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        hint = "; for the most probable token use greedy decoding" if self.temperature == 0 else ""
        self._require("temperature", f"a finite number above 0{hint}", lambda x: x > 0)
        self._require("min_p", "a number in [0, 1]", lambda x: 0 <= x <= 1)
        self._require("top_p", "a number in (0, 1]", lambda x: 0 < x <= 1)
        self._require("top_k", "an integer from 0 (off) up", lambda x: x == int(x) and x >= 0)
        self._require("repetition_penalty", "a finite number above 0", lambda x: x > 0)

    def _require(self, field: str, allowed: str, in_range: Callable[[float], bool]) -> None:
        value = getattr(self, field)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not in_range(value):
            raise ValueError(f"{field}: {value!r} is not allowed; it must be {allowed}")

    @property
    def needs_seen(self) -> bool:
        """Whether `seen_SV` must be given: which tokens each row's text already holds."""
        return self.repetition_penalty != 1

    @property
    def is_elementwise(self) -> bool:
        """Whether a token's weight depends only on its logit and the largest of its row."""
        ranked = self.top_k > 0 or self.top_p < 1
        return not (self.greedy or self.needs_seen or ranked)


def sampler_of(sample: SampleConfig) -> Sampler:
    """Return the sampler of a config's `sample` section."""
    return Sampler(
        temperature=sample.temperature,
        min_p=sample.min_p,
        top_p=sample.top_p,
        top_k=sample.top_k,
        repetition_penalty=sample.repetition_penalty,
        greedy=sample.decoder == "greedy",
    )


def next_token(
    sampler: Sampler,
    logits_SV: jax.Array,
    u_S: jax.Array,
    seen_SV: jax.Array | None = None,
    *,
    pick: PickBlock | None = None,
) -> jax.Array:
    """Return the next token [S] (int32) of each row.

    Args:
        sampler: how it is drawn.
        logits_SV: of any dtype; what is computed from them is float32.
        u_S: uniform in [0, 1).
        seen_SV: as in `weights`.
        pick: as in `inverse_cdf_of`.
    """
    if sampler.is_elementwise:
        weigh = functools.partial(_elementwise_weights, sampler)
        return inverse_cdf_of(weigh, logits_SV, logits_SV.max(-1), u_S, pick).astype(jnp.int32)
    logits_SV = logits_SV.astype(jnp.float32)
    if sampler.greedy:
        return jnp.argmax(_penalised(sampler, logits_SV, seen_SV), -1).astype(jnp.int32)
    return inverse_cdf(weights(sampler, logits_SV, seen_SV), u_S).astype(jnp.int32)


def weights(sampler: Sampler, logits_SV: jax.Array, seen_SV: jax.Array | None = None) -> jax.Array:
    """Return the unnormalised probabilities [S, V] of the next token.

    They are 1 for the most probable token and 0 for tokens that are cut. Once normalised, they
    equal the softmax of what the logits processors of `transformers` return.

    Args:
        sampler: how tokens are drawn.
        logits_SV: float32, finite or -inf, with at least one finite in a row.
        seen_SV: bool, tokens already in the row's text; needed where `sampler.needs_seen`.

    Raises:
        ValueError: `seen_SV` is needed and None.
    """
    z_SV = _penalised(sampler, logits_SV, seen_SV)
    if sampler.greedy:
        best_S = jnp.argmax(z_SV, -1)
        return (jnp.arange(z_SV.shape[-1])[None] == best_S[:, None]).astype(z_SV.dtype)
    if sampler.temperature < COLD:
        z_SV = _chilled(sampler, z_SV, z_SV.max(-1, keepdims=True))
    elif sampler.temperature != 1:
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


def _elementwise_weights(sampler: Sampler, z: jax.Array, top: jax.Array) -> jax.Array:
    """`weights` of logits `z` in rows whose largest are `top`."""
    z, top = z.astype(jnp.float32), top.astype(jnp.float32)
    if sampler.temperature < COLD:
        z, top = _chilled(sampler, z, top), jnp.zeros_like(top)
    elif sampler.temperature != 1:
        z, top = z / sampler.temperature, top / sampler.temperature
    w = jnp.exp(z - top)
    return jnp.where(w >= sampler.min_p, w, 0) if sampler.min_p > 0 else w


def _chilled(sampler: Sampler, z: jax.Array, top: jax.Array) -> jax.Array:
    """Logits below the largest, divided by a temperature below `COLD`."""
    return (z - top) / max(sampler.temperature, COLDEST)


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
    """Integers in the same order as the floats x.

    They are the bits, with those of negative numbers flipped; both zeros are the same integer.
    """
    bits = jax.lax.bitcast_convert_type(jnp.where(x_SV == 0, 0, x_SV), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _edge(order_SV, mass_SV, target_S):
    """The largest integer of each row such that the entries from it up have the target's mass.

    Each pass over a row of `order_SV` finds two of its bits.
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
    """Keep the weights of the smallest set of most probable tokens with at least top_p of the mass.

    Where some of several equally probable tokens are needed, the last of them are kept.
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
