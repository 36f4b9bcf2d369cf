"""Rotary position embeddings.

Dimensions: N tokens, H heads, K head size.
"""

import math

import jax
import jax.numpy as jnp

from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.rope_scaling import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)


def rope_frequencies(theta: float, head_dim: int, scaling: RopeScaling | None) -> jax.Array:
    """Return the angular frequency [K / 2] of each rotated pair, float32."""
    f = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    match scaling:
        case Llama3Scaling():
            return _llama3_frequencies(f, scaling)
        case LinearScaling():
            return f / scaling.factor
        case YarnScaling():
            kept = 1 - _yarn_ramp(theta, head_dim, scaling)
            return f / scaling.factor * (1 - kept) + f * kept
        case LongRopeScaling():
            return f / jnp.array(scaling.short, jnp.float32)
        case _:
            return f


def _llama3_frequencies(f: jax.Array, s: Llama3Scaling) -> jax.Array:
    wavelength = 2 * jnp.pi / f
    smooth = (s.original_max_seq_len / wavelength - s.low_freq_factor) / (
        s.high_freq_factor - s.low_freq_factor
    )
    mixed = (1 - smooth) * f / s.factor + smooth * f
    longest = s.original_max_seq_len / s.low_freq_factor
    shortest = s.original_max_seq_len / s.high_freq_factor
    within = jnp.where(wavelength < shortest, f, mixed)
    return jnp.where(wavelength > longest, f / s.factor, within)


def _yarn_ramp(theta: float, head_dim: int, s: YarnScaling) -> jax.Array:
    """Return 0 where a frequency is kept, 1 where it is interpolated [K / 2]."""

    def dimension(rotations: float) -> float:
        wavelength = s.original_max_seq_len / (rotations * 2 * math.pi)
        return head_dim * math.log(wavelength) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    steps = jnp.arange(head_dim // 2, dtype=jnp.float32)
    return jnp.clip((steps - low) / (high - low), 0, 1)


def attention_factor(scaling: RopeScaling | None) -> float:
    """Return what cosines and sines are multiplied by."""
    if isinstance(scaling, YarnScaling | LongRopeScaling):
        return scaling.attention_factor
    return 1.0


def rope_tables(config: ModelConfig, positions_N: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Return cosines and sines [N, K] at integer positions, float32.

    Each half of the last axis repeats the other. None where positions are not rotary.
    """
    if config.positions != "rope":
        return None
    frequencies = rope_frequencies(config.rope_theta, config.head_dim, config.rope_scaling)
    angle_NK = positions_N.astype(jnp.float32)[:, None] * frequencies[None]
    angle_NK = jnp.concatenate([angle_NK, angle_NK], -1)
    cos_NK, sin_NK = jnp.cos(angle_NK), jnp.sin(angle_NK)
    factor = attention_factor(config.rope_scaling)
    if factor == 1:
        return cos_NK, sin_NK
    return cos_NK * factor, sin_NK * factor


def rotate(x_NHK: jax.Array, cos_NK: jax.Array, sin_NK: jax.Array) -> jax.Array:
    """Rotate queries or keys, in the half-split layout of Hugging Face checkpoints."""
    half = x_NHK.shape[-1] // 2
    left, right = jax.lax.split(x_NHK, (half, half), axis=x_NHK.ndim - 1)
    turned_NHK = jnp.concatenate([-right, left], -1)
    rotated_NHK = (
        x_NHK.astype(jnp.float32) * cos_NK[:, None]
        + turned_NHK.astype(jnp.float32) * sin_NK[:, None]
    )
    return rotated_NHK.astype(x_NHK.dtype)
