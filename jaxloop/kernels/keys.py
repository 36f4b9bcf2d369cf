"""Every random draw is a `fold_in` of (chain seed, generation, phase, row): never of a slot, a batch position or a device.

Threefry only: with `rbg` a vmapped draw differs from the same draw in a loop, so results would depend on grouping.
"""

import zlib

import jax
import jax.numpy as jnp


def chain_key(seed: int) -> jax.Array:
    """Root key of a chain from its integer seed (any non-negative Python int below 2**63)."""
    return jax.random.key(seed, impl="threefry2x32")


def phase_key(key: jax.Array, generation, phase: str) -> jax.Array:
    """Key of one phase ("plan", "fit", "sample", ...) of one generation; `generation` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(key, generation), zlib.crc32(phase.encode()))


def row_keys(key: jax.Array, rows) -> jax.Array:
    """Keys [n] of the rows (item ids, [n] integers) of a phase."""
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.asarray(rows, jnp.uint32))
