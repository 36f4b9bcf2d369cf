"""Keys of random draws: each is a `fold_in` of (chain seed, generation, phase, row).

None depends on a slot, a batch position or a device. Outside of programs they are drawn on the host
(`host_draws`), with the same bits and without a program to compile.

Threefry only: with `rbg` a vmapped draw differs from the same draw in a loop, so results would
depend on grouping.
"""

import zlib
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloop.core import host_draws
from jaxloop.runtime.setup_jit import setup_jit

# A number [] that may be traced.
Integer: TypeAlias = int | np.integer | jax.Array
# Of NumPy outside of programs.
Draws: TypeAlias = np.ndarray | jax.Array


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that is not a whole number from 0 to 2^64 - 1."""
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**64:
        raise ValueError(
            f"seed={seed!r} is not allowed; it must be a whole number from 0 to 2**64 - 1"
        )


def chain_key(seed: int) -> jax.Array:
    """Return the root key of a chain, made of all 64 bits of its seed.

    `jax.random.key` reads 32 bits, and so gives the seeds 1 and 2^32 + 1 one key; below 2^32 its
    key is returned.

    Raises:
        ValueError: the seed is not a whole number from 0 to 2^64 - 1.
    """
    check_seed(seed)
    high, low = divmod(int(seed), 2**32)
    if not high:
        return jax.random.key(low, impl="threefry2x32")
    return _wrap_key_data(np.array([high, low], np.uint32), "threefry2x32")


def fold_in(key: jax.Array, number: Integer) -> jax.Array:
    """Return `jax.random.fold_in(key, number)` [], compiled once for all numbers."""
    data = _host_data(key, number)
    if data is not None:
        return _wrap_key_data(
            host_draws.fold_in(data, np.asarray(number)), jax.random.key_impl(key)
        )
    return _fold_in(key, number if isinstance(number, jax.Array) else np.uint32(number))


def phase_key(key: jax.Array, generation: Integer, phase: str) -> jax.Array:
    """Return the key [] of one phase ("plan", "fit", "sample", ...) of one generation."""
    return fold_in(fold_in(key, generation), zlib.crc32(phase.encode()))


def row_keys(key: jax.Array, rows: ArrayLike) -> jax.Array:
    """Return the keys [n] of the rows [n] of a phase, whose ids are integers."""
    data = _host_data(key, rows)
    if data is not None:
        return _wrap_key_data(host_draws.fold_in(data, np.asarray(rows)), jax.random.key_impl(key))
    return _row_keys(key, jnp.asarray(rows, jnp.uint32))


def stack_keys(keys: Sequence[jax.Array]) -> jax.Array:
    """Return n keys [] of one kind as one array [n], without running a program."""
    data = np.stack([np.asarray(jax.random.key_data(key)) for key in keys])
    return _wrap_key_data(data, jax.random.key_impl(keys[0]))


def _wrap_key_data(data: np.ndarray, impl: Any) -> jax.Array:
    # NumPy arrays are taken too, which the annotation of wrap_key_data does not say.
    return jax.random.wrap_key_data(cast(jax.Array, data), impl=impl)


def random_bits(key: jax.Array, count: int) -> Draws:
    """Return 32 random bits for each of `count` items: [count] uint32."""
    data = _host_data(key)
    return _random_bits(key, count) if data is None else host_draws.bits(data, count)


def random_below(key: jax.Array, limit: Integer) -> Draws:
    """Return a uniform integer [] in [0, limit), int32, for a limit of at least 1."""
    data = _host_data(key, limit)
    if data is None:
        return _random_below(key, limit)
    return host_draws.randint(data, 1, np.asarray(limit))[0]


def fold_each(keys: jax.Array, number: Integer) -> jax.Array:
    """Return the keys [n] with `number` [] uint32 folded into each."""
    data = _host_data(keys, number)
    if data is None:
        return _fold_each(keys, number)
    numbers = np.full(len(data), np.asarray(number), np.uint32)
    return _wrap_key_data(host_draws.fold_in(data, numbers), jax.random.key_impl(keys))


def rows_below(key: jax.Array, rows: ArrayLike, limit: Integer) -> Draws:
    """Return `random_below` of each of `row_keys(key, rows)`: [n] int32 for rows [n] uint32."""
    data = _host_data(key, rows, limit)
    if data is None:
        return _rows_below(key, rows, limit)
    keys = host_draws.fold_in(data, np.asarray(rows))
    return host_draws.randint(keys, 1, np.asarray(limit))[:, 0]


def random_order(key: jax.Array, count: int) -> Draws:
    """Return a uniform permutation of range(count): [count] int32."""
    data = _host_data(key)
    return _random_order(key, count) if data is None else host_draws.permutation(data, count)


def _host_data(key: jax.Array, *numbers: ArrayLike) -> np.ndarray | None:
    """The data of a key whose draws are made on the host; None: a program makes them."""
    if any(isinstance(number, jax.core.Tracer) for number in numbers):
        return None
    return host_draws.key_data(key)


# Inlined, so that a program that derives keys is the same as if it had called jax.random itself.
_fold_in = setup_jit(jax.random.fold_in, inline=True)


@setup_jit(inline=True)
def _row_keys(key: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


@setup_jit(static_argnums=1, inline=True)
def _random_bits(key: jax.Array, count: int) -> jax.Array:
    return jax.random.bits(key, (count,), jnp.uint32)


@setup_jit(inline=True)
def _random_below(key: jax.Array, limit: Integer) -> jax.Array:
    return jax.random.randint(key, (), 0, limit)


@setup_jit(inline=True)
def _fold_each(keys: jax.Array, number: Integer) -> jax.Array:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


@setup_jit(inline=True)
def _rows_below(key: jax.Array, rows: jax.Array, limit: Integer) -> jax.Array:
    return jax.vmap(lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 0, limit))(
        rows
    )


@setup_jit(static_argnums=1, inline=True)
def _random_order(key: jax.Array, count: int) -> jax.Array:
    return jax.random.permutation(key, count)
