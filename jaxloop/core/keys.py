"""Every random draw is a `fold_in` of (chain seed, generation, phase, row): never of a slot, a
batch position or a device.

Threefry only: with `rbg` a vmapped draw differs from the same draw in a loop, so results would
depend on grouping.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.runtime.setup_jit import setup_jit


def chain_key(seed: int) -> jax.Array:
    """Root key of a chain from its seed: all 64 bits of it, where `jax.random.key` reads 32 and
    makes one chain of 1 and 2^32 + 1.

    Raises ValueError unless it is a whole number from 0 to 2^64 - 1. Below 2^32 it is the key that
    `jax.random.key` makes.
    """
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**64:
        raise ValueError(
            f"seed={seed!r} is not allowed; it must be a whole number from 0 to 2**64 - 1"
        )
    high, low = divmod(int(seed), 2**32)
    if not high:
        return jax.random.key(low, impl="threefry2x32")
    return jax.random.wrap_key_data(np.array([high, low], np.uint32), impl="threefry2x32")


def fold_in(key: jax.Array, number) -> jax.Array:
    """`jax.random.fold_in`, compiled once for all numbers: key [] and number [], an integer that
    may be traced.
    """
    return _fold_in(key, number if isinstance(number, jax.Array) else np.uint32(number))


def phase_key(key: jax.Array, generation, phase: str) -> jax.Array:
    """Key of one phase ("plan", "fit", "sample", ...) of one generation; `generation` may be
    traced.
    """
    return fold_in(fold_in(key, generation), zlib.crc32(phase.encode()))


def row_keys(key: jax.Array, rows) -> jax.Array:
    """Keys [n] of the rows (item ids, [n] integers) of a phase."""
    return _row_keys(key, jnp.asarray(rows, jnp.uint32))


def stack_keys(keys) -> jax.Array:
    """Keys [] of one kind as one array [n], without a program."""
    data = np.stack([np.asarray(jax.random.key_data(key)) for key in keys])
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys[0]))


# Inlined, so that a program that derives keys is the same as if it had called jax.random itself.
_fold_in = setup_jit(jax.random.fold_in, inline=True)


@setup_jit(inline=True)
def _row_keys(key, rows):
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


@setup_jit(static_argnums=1, inline=True)
def random_bits(key: jax.Array, count: int) -> jax.Array:
    """32 random bits for each of `count` items: [count] uint32."""
    return jax.random.bits(key, (count,), jnp.uint32)


@setup_jit(inline=True)
def random_below(key: jax.Array, limit) -> jax.Array:
    """A uniform integer [] in [0, limit), int32 (limit of at least 1)."""
    return jax.random.randint(key, (), 0, limit)


@setup_jit(inline=True)
def fold_each(keys: jax.Array, number) -> jax.Array:
    """`fold_in` of `number` [] uint32 into each of the keys [n]."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


@setup_jit(inline=True)
def rows_below(key: jax.Array, rows, limit) -> jax.Array:
    """`random_below` of each of `row_keys(key, rows)`: [n] int32 for rows [n] uint32."""
    return jax.vmap(lambda row: jax.random.randint(jax.random.fold_in(key, row), (), 0, limit))(
        rows
    )


@setup_jit(static_argnums=1, inline=True)
def random_order(key: jax.Array, count: int) -> jax.Array:
    """A uniform permutation of range(count): [count] int32."""
    return jax.random.permutation(key, count)
