"""Draws on the host: the bits of `jax.random` under Threefry, without a program to compile.

Compiling takes a second for what NumPy draws in a millisecond. Keys are arrays of uint32 here, as
`jax.random.key_data` returns them, and each function is the one of `jax.random` with that name for
the types that are drawn on the host: uint32, float32 and int32.

Source: Salmon et al. 2011 (Threefry-2x32 with 20 rounds); counters as JAX's
`jax_threefry_partitionable` has them.
"""

import jax
import numpy as np

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def key_data(key: jax.Array) -> np.ndarray | None:
    """Return the data [..., 2] uint32 of keys whose draws can be made here.

    None: the keys are being traced, or draws of theirs are not those of this module.
    """
    # jax adds its options as attributes at run time.
    if not jax.config.jax_threefry_partitionable:  # type: ignore[attr-defined]
        return None
    if isinstance(key, jax.core.Tracer) or str(jax.random.key_impl(key)) != "threefry2x32":
        return None
    data = jax.random.key_data(key)
    return None if isinstance(data, jax.core.Tracer) else np.asarray(data)


def fold_in(key: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """Return a key [..., 2] for keys [..., 2] and numbers [...], which are broadcast."""
    low = np.asarray(number).astype(np.uint32)
    return np.stack(_threefry(key, np.zeros_like(low), low), axis=-1)


def split(key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two keys [..., 2]."""
    return fold_in(key, 0), fold_in(key, 1)


def bits(key: np.ndarray, count: int) -> np.ndarray:
    """Return [..., count] uint32 for keys [..., 2]."""
    low = np.arange(count, dtype=np.uint32)
    first, second = _threefry(key[..., None, :], np.zeros_like(low), low)
    return first ^ second


def uniform(key: np.ndarray, count: int) -> np.ndarray:
    """Return [..., count] float32 in [0, 1) for keys [..., 2]."""
    mantissa = bits(key, count) >> np.uint32(9)
    return (mantissa | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)


def randint(key: np.ndarray, count: int, limit: int | np.ndarray) -> np.ndarray:
    """Return [..., count] int32 in [0, limit) for keys [..., 2] and limits of at least 1."""
    high, low = (bits(k, count) for k in split(key))
    span = np.asarray(limit).astype(np.uint32)
    half = np.asarray(2**16, np.uint32) % span
    offset = _times(high % span, _times(half, half) % span) + low % span
    return (offset % span).astype(np.int32)


def permutation(key: np.ndarray, count: int) -> np.ndarray:
    """Return a permutation of range(count): [count] int32, for a key [2]."""
    order = np.arange(count, dtype=np.int32)
    # As many sorts by random numbers as make ties in all of them improbable.
    for _ in range(int(np.ceil(3 * np.log(max(1, count)) / np.log(2**32 - 1)))):
        key, own = split(key)
        order = order[np.argsort(bits(own, count), kind="stable")]
    return order


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product modulo 2^32, of single numbers too, for which NumPy warns."""
    with np.errstate(over="ignore"):
        return np.multiply(a, b)


def _threefry(key: np.ndarray, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encrypt the counters (high, low) with keys [..., 2]."""
    parity = np.uint32(0x1BD11BDA)
    words = (key[..., 0], key[..., 1], key[..., 0] ^ key[..., 1] ^ parity)
    with np.errstate(over="ignore"):
        a, b = high + words[0], low + words[1]
        for i in range(5):
            for rotation in _ROTATIONS[i % 2]:
                a = a + b
                b = a ^ ((b << np.uint32(rotation)) | (b >> np.uint32(32 - rotation)))
            a = a + words[(i + 1) % 3]
            b = b + words[(i + 2) % 3] + np.uint32(i + 1)
    return a, b
