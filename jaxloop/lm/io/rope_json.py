"""Rotary positions in config.json: both generations of it read, and the newer one written."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxloop.lm.io import json_fields
from jaxloop.lm.model.rope_scaling import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

_PLAIN = ("type", "rope_type", "rope_theta", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"
# Fields of each kind, beside the plain ones.
_KINDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", _ORIGINAL),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": (
        *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
        *("mscale", "mscale_all_dim", "truncate", "finetuned"),
    ),
    "longrope": ("factor", "short_factor", "long_factor", _ORIGINAL, "attention_factor"),
}
# Fields of config.json that `read_rope` reads.
ROPE_FIELDS = (
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "partial_rotary_factor",
    _ORIGINAL,
)


class Rope(NamedTuple):
    """What config.json says of rotary positions, as `ModelConfig` holds it."""

    rope_theta: float
    rope_scaling: RopeScaling | None
    max_seq_len: int


def read_rope(c: Mapping[str, Any], head_dim: int, max_seq_len: int) -> Rope:
    """Read the rotary positions of a config.json of either generation, as `transformers` 5 does.

    `rope_scaling`, where it is there, stands in place of all of `rope_parameters`.

    Args:
        c: the fields of config.json.
        head_dim: K.
        max_seq_len: max_position_embeddings.

    Raises:
        ValueError: a kind, a setting or a value that would not be computed as `transformers` does.
        KeyError: a setting is missing.
    """
    newer, older = json_fields.mapping(c, "rope_parameters"), json_fields.mapping(c, "rope_scaling")
    r = older or newer
    kind = r.get("rope_type") or r.get("type") or "default"
    json_fields.choice({"rope_type": kind}, "rope_type", tuple(_KINDS))
    json_fields.check_known(r, (*_PLAIN, *_KINDS[kind]), {}, f"rope_type {kind!r}")
    theta = _theta(c, r, kind)
    if older and newer.get("rope_theta", theta) != theta:
        raise ValueError(
            "model: rope_scaling takes the place of rope_parameters, whose rope_theta = "
            f"{newer['rope_theta']!r} would be lost; "
            "put the settings of rope_scaling into rope_parameters"
        )
    _check_whole_head(c, r)
    original = _original(c, r, kind, max_seq_len)
    scaling = _scaling(kind, r, head_dim, max_seq_len, original)
    if kind == "longrope":
        max_seq_len = min(max_seq_len, original)
    return Rope(theta, scaling, max_seq_len)


def _theta(c: Mapping, r: Mapping, kind: str) -> float:
    theta = 10000.0
    for fields in (c, r):
        if fields.get("rope_theta") is not None:
            theta = fields["rope_theta"]
    theta = _number({"rope_theta": theta}, "rope_theta")
    if kind == "yarn" and theta == 1:
        json_fields.refuse(
            "rope_theta",
            theta,
            "any other positive number with yarn, which divides by its logarithm",
        )
    return theta


def _check_whole_head(c: Mapping, r: Mapping) -> None:
    for fields in (c, r):
        json_fields.number(fields, "partial_rotary_factor", 1.0)
        if fields.get("partial_rotary_factor", 1.0) not in (None, 1):
            json_fields.refuse("partial_rotary_factor", fields["partial_rotary_factor"], "1")


def _original(c: Mapping, r: Mapping, kind: str, max_seq_len: int) -> int:
    """Return the longest sequence of the model before its frequencies were scaled."""
    original = json_fields.integer(r, _ORIGINAL, max_seq_len)
    if c.get(_ORIGINAL) not in (None, original):
        json_fields.refuse(_ORIGINAL, c[_ORIGINAL], f"{original}, as in rope_parameters")
    if kind == "dynamic" and original != max_seq_len:
        json_fields.refuse(_ORIGINAL, original, f"{max_seq_len}, which is max_position_embeddings")
    return original


def _number(r: Mapping, name: str, *default: float, above: float = 0) -> float:
    return float(json_fields.number(r, name, *default, above=above))


def _scaling(
    kind: str, r: Mapping, head_dim: int, max_seq_len: int, original: int
) -> RopeScaling | None:
    match kind:
        case "linear":
            return LinearScaling(_number(r, "factor"))
        case "dynamic":
            return DynamicScaling(_number(r, "factor"))
        case "llama3":
            return _llama3(r, original)
        case "yarn":
            return _yarn(r, max_seq_len, original)
        case "longrope":
            return _longrope(r, head_dim, max_seq_len, original)
        case _:
            return None


def _llama3(r: Mapping, original: int) -> Llama3Scaling:
    factor = _number(r, "factor")
    low, high = _number(r, "low_freq_factor"), _number(r, "high_freq_factor")
    if low == high:
        json_fields.refuse("high_freq_factor", high, "a number above low_freq_factor")
    return Llama3Scaling(factor, low, high, original)


def _yarn(r: Mapping, max_seq_len: int, original: int) -> YarnScaling:
    if "factor" not in r:
        raise KeyError("factor")
    factor = _number(r, "factor", max_seq_len / original)
    # transformers takes 0 for a missing value.
    fast = float(json_fields.number(r, "beta_fast", 32.0, low=0)) or 32.0
    slow = float(json_fields.number(r, "beta_slow", 1.0, low=0)) or 1.0
    return YarnScaling(
        factor=factor,
        original_max_seq_len=original,
        attention_factor=_yarn_attention(r, factor),
        beta_fast=fast,
        beta_slow=slow,
        truncate=json_fields.truth(r, "truncate", True),
    )


def _yarn_attention(r: Mapping, factor: float) -> float:
    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    asked = json_fields.number(r, "attention_factor", None, low=0)
    one, all_dim = (json_fields.number(r, name, None) for name in ("mscale", "mscale_all_dim"))
    if asked is not None:
        return float(asked)
    return scale(one) / scale(all_dim) if one and all_dim else scale(1)


def _longrope(r: Mapping, head_dim: int, max_seq_len: int, original: int) -> LongRopeScaling:
    factor = _number(r, "factor", max_seq_len / original)
    attention = json_fields.number(r, "attention_factor", None, low=0)
    if attention is None:
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRopeScaling(
        short=json_fields.numbers(r, "short_factor", head_dim // 2),
        long=json_fields.numbers(r, "long_factor", head_dim // 2),
        original_max_seq_len=original,
        attention_factor=float(attention),
    )


def rope_parameters(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Return `rope_parameters` of a config.json, as `transformers` 5 reads it."""
    out: dict[str, Any] = {"rope_theta": theta, "rope_type": "default"}
    match scaling:
        case Llama3Scaling() as s:
            return out | {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                _ORIGINAL: s.original_max_seq_len,
            }
        case LinearScaling() as s:
            return out | {"rope_type": "linear", "factor": s.factor}
        case DynamicScaling() as s:
            return out | {"rope_type": "dynamic", "factor": s.factor}
        case YarnScaling() as s:
            return out | {
                "rope_type": "yarn",
                "factor": s.factor,
                _ORIGINAL: s.original_max_seq_len,
                "attention_factor": s.attention_factor,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
                "truncate": s.truncate,
            }
        case LongRopeScaling() as s:
            return out | {
                "rope_type": "longrope",
                "short_factor": list(s.short),
                "long_factor": list(s.long),
                _ORIGINAL: s.original_max_seq_len,
                "attention_factor": s.attention_factor,
            }
        case _:
            return out
