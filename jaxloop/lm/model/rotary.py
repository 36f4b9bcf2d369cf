"""Rotary positions: the ways in which `transformers` scales their frequencies, read from both
generations of config.json, and written.

Dimensions: K head size.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxloop.lm.io import json_fields


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class Linear:
    """All frequencies divided by `factor`: positions are interpolated (`rope_type: linear`)."""

    factor: float


@dataclass(frozen=True)
class Dynamic:
    """Frequencies that change beyond the model's context only, so within it those of the plain
    model (`rope_type: dynamic`).
    """

    factor: float


@dataclass(frozen=True)
class Yarn:
    """Low frequencies interpolated, high ones kept, cosines and sines multiplied by
    `attention_factor` (arXiv 2309.00071; `rope_type: yarn`).
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class LongRope:
    """A factor for each frequency (arXiv 2402.13753; `rope_type: longrope`). Up to
    `original_context` tokens, which is then the context of the model here, the short factors hold;
    beyond, `transformers` changes to the long ones in the middle of a text.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_context: int
    attention_factor: float


Scaling = RopeScaling | Linear | Dynamic | Yarn | LongRope


def frequencies(theta: float, size: int, scaling: Scaling | None):
    """Angular frequency [K / 2] of each rotated pair, float32; `size` is K."""
    f = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    match scaling:
        case RopeScaling() as s:
            length = 2 * jnp.pi / f
            smooth = (s.original_context / length - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            mixed = (1 - smooth) * f / s.factor + smooth * f
            low, high = (
                s.original_context / s.low_freq_factor,
                s.original_context / s.high_freq_factor,
            )
            return jnp.where(length > low, f / s.factor, jnp.where(length < high, f, mixed))
        case Linear() as s:
            return f / s.factor
        case Yarn() as s:
            kept = 1 - _ramp(theta, size, s)
            return f / s.factor * (1 - kept) + f * kept
        case LongRope() as s:
            return f / jnp.array(s.short, jnp.float32)
        case _:
            return f


def _ramp(theta: float, size: int, s: Yarn):
    """0 where a frequency is kept, 1 where it is interpolated [K / 2]."""

    def dimension(rotations):
        return (
            size * math.log(s.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))
        )

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    low, high = (math.floor(low), math.ceil(high)) if s.truncate else (low, high)
    low, high = max(low, 0), min(high, size - 1)
    high = high + 0.001 if low == high else high
    return jnp.clip((jnp.arange(size // 2, dtype=jnp.float32) - low) / (high - low), 0, 1)


def attention_factor(scaling: Scaling | None) -> float:
    """What cosines and sines are multiplied by."""
    return getattr(scaling, "attention_factor", 1.0)


# ---- config.json
# ------------------------------------------------------------------------------------------------------

_PLAIN = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"),
    "longrope": ("factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor"),
}  # fmt: skip
CONFIG = (
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)


def read(c: Mapping[str, Any], size: int, context: int) -> dict[str, Any]:
    """The fields rope_theta, rope_scaling and context of a `Spec` from a config.json of either
    generation, as `transformers` 5 takes it.

    `rope_scaling`, where it is there, stands in place of all of `rope_parameters`. size: of a head;
    context: max_position_embeddings. Raises ValueError for a kind, a setting or a value that would
    not be computed as `transformers` does, and KeyError for a missing setting.
    """
    new, old = json_fields.mapping(c, "rope_parameters"), json_fields.mapping(c, "rope_scaling")
    r = old or new
    kind = r.get("rope_type") or r.get("type") or "default"
    json_fields.choice({"rope_type": kind}, "rope_type", tuple(_KEYS))
    json_fields.check_known(r, (*_PLAIN, *_KEYS[kind]), {}, f"rope_type {kind!r}")
    theta = float(
        json_fields.number(
            {"rope_theta": 10000.0, **_some(c, "rope_theta"), **_some(r, "rope_theta")},
            "rope_theta",
            above=0,
        )
    )
    if kind == "yarn" and theta == 1:
        json_fields.refuse(
            "rope_theta",
            theta,
            "any other positive number with yarn, which divides by its logarithm",
        )
    if old and new.get("rope_theta", theta) != theta:
        raise ValueError(
            "model: rope_scaling takes the place of rope_parameters, whose rope_theta = "
            f"{new['rope_theta']!r} would be lost; "
            "put the settings of rope_scaling into rope_parameters"
        )
    for where in (c, r):
        json_fields.number(where, "partial_rotary_factor", 1.0)
        if where.get("partial_rotary_factor", 1.0) not in (None, 1):
            json_fields.refuse("partial_rotary_factor", where["partial_rotary_factor"], "1")
    original = json_fields.integer(r, "original_max_position_embeddings", context)
    if c.get("original_max_position_embeddings") not in (None, original):
        json_fields.refuse(
            "original_max_position_embeddings",
            c["original_max_position_embeddings"],
            f"{original}, as in rope_parameters",
        )
    if kind == "dynamic" and original != context:
        json_fields.refuse(
            "original_max_position_embeddings",
            original,
            f"{context}, which is max_position_embeddings",
        )
    scaling, context = _scaling(kind, r, size, context, original)
    return dict(rope_theta=theta, rope_scaling=scaling, context=context)


def _some(c: Mapping, field: str) -> dict:
    return {field: c[field]} if c.get(field) is not None else {}


def _scaling(
    kind: str, r: Mapping, size: int, context: int, original: int
) -> tuple[Scaling | None, int]:
    """(scaling, context)."""
    factor = None
    if kind in ("linear", "dynamic", "llama3"):
        factor = float(json_fields.number(r, "factor", above=0))
    elif "factor" in r or kind == "longrope":
        factor = float(json_fields.number(r, "factor", context / original, above=0))
    elif kind == "yarn":
        raise KeyError("factor")
    if kind == "linear":
        return Linear(factor), context
    if kind == "dynamic":
        return Dynamic(factor), context
    if kind == "llama3":
        low, high = (
            float(json_fields.number(r, name, above=0))
            for name in ("low_freq_factor", "high_freq_factor")
        )
        if low == high:
            json_fields.refuse("high_freq_factor", high, "a number above low_freq_factor")
        return RopeScaling(factor, low, high, original), context
    if kind == "yarn":
        fast, slow = (
            float(json_fields.number(r, name, default, low=0)) or default
            for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0))
        )
        return Yarn(
            factor,
            original,
            _yarn_attention(r, factor),
            fast,
            slow,
            json_fields.truth(r, "truncate", True),
        ), context
    if kind == "longrope":
        attention = json_fields.number(r, "attention_factor", None, low=0)
        if attention is None:
            attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
        short, long = (
            json_fields.numbers(r, name, size // 2) for name in ("short_factor", "long_factor")
        )
        return LongRope(short, long, original, float(attention)), min(context, original)
    return None, context


def _yarn_attention(r: Mapping, factor: float) -> float:
    def scale(weight):
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    asked = json_fields.number(r, "attention_factor", None, low=0)
    one, all_dim = (json_fields.number(r, name, None) for name in ("mscale", "mscale_all_dim"))
    if asked is not None:
        return float(asked)
    return scale(one) / scale(all_dim) if one and all_dim else scale(1)


def config(theta: float, scaling: Scaling | None) -> dict[str, Any]:
    """`rope_parameters` of a config.json, as `transformers` 5 reads it."""
    out: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    match scaling:
        case RopeScaling() as s:
            return out | dict(
                rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor, high_freq_factor=s.high_freq_factor,
                original_max_position_embeddings=s.original_context,
            )  # fmt: skip
        case Linear() as s:
            return out | dict(rope_type="linear", factor=s.factor)
        case Dynamic() as s:
            return out | dict(rope_type="dynamic", factor=s.factor)
        case Yarn() as s:
            return out | dict(
                rope_type="yarn", factor=s.factor, original_max_position_embeddings=s.original_context, attention_factor=s.attention_factor,
                beta_fast=s.beta_fast, beta_slow=s.beta_slow, truncate=s.truncate,
            )  # fmt: skip
        case LongRope() as s:
            return out | dict(
                rope_type="longrope", short_factor=list(s.short), long_factor=list(s.long), original_max_position_embeddings=s.original_context,
                attention_factor=s.attention_factor,
            )  # fmt: skip
        case _:
            return out
