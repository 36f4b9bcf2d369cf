"""Map one function over many chains: vmapped in batches on a device, sharded over a mesh.

C chains, D devices, B chains in a batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "chains"


def chain_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a one-dimensional mesh with axis "chains" over `devices` (None: all)."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def map_chains(
    fn: Callable[[Any], Any],
    args: Any,
    *,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Apply `fn` to every chain and return the results with a leading axis [C].

    To be called under `jax.jit`. The number of chains is padded to a multiple of D * B with
    repeats, which are cut off again. On a mesh that cut moves rows between devices, which is the
    only communication; with a number of chains from `padded_count` there is none.

    With `batch_size` the arithmetic of a chain runs at the shape [B, ...] whatever C is, so that
    its result does not depend on the other chains, to the last bit. XLA optimises programs for one
    and for several devices differently: between them results agree up to rounding.

    Args:
        fn: takes `args` without the leading chain axis and returns arrays of numbers.
        args: pytree, every leaf [C, ...]; PRNG key arrays count as leaves.
        batch_size: chains that are vmapped together, which bounds the memory; the batches of a
            device run one after another, and gradients do not flow through them. None: all the
            chains of a device at once.
        mesh: devices along an axis "chains" over which the chains are distributed; each runs at
            its own pace.

    Raises:
        ValueError: the leaves disagree on C, C is 0, `batch_size` is below 1, or the mesh has no
            axis "chains".
    """
    leaves = jax.tree.leaves(args)
    counts = sorted({x.shape[0] if getattr(x, "ndim", 0) else None for x in leaves}, key=str)
    if len(counts) != 1 or not counts[0]:
        raise ValueError(
            f"args: leading axes are {counts}, every leaf must have the same chain axis of at "
            "least 1"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    if mesh is not None and AXIS not in mesh.axis_names:
        raise ValueError(f"mesh: axes are {mesh.axis_names}, one of them must be {AXIS!r}")
    chains = counts[0]
    batch, total = _shape(chains, batch_size, mesh)
    if total != chains:
        index = jnp.arange(total, dtype=jnp.int32) % chains
        args = jax.tree.map(lambda x: jnp.asarray(x)[index], args)
    local = jax.vmap(fn) if batch_size is None else partial(_in_batches, fn, batch)
    if mesh is not None:
        spec = PartitionSpec(AXIS)
        local = jax.shard_map(local, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False)
    out = local(args)
    return out if total == chains else jax.tree.map(lambda x: x[:chains], out)


def padded_count(chains: int, *, batch_size: int | None = None, mesh: Mesh | None = None) -> int:
    """Return the number of chains, at least `chains`, at which `map_chains` pads nothing."""
    return _shape(chains, batch_size, mesh)[1]


def _shape(chains: int, batch_size: int | None, mesh: Mesh | None) -> tuple[int, int]:
    """(B, number of chains with padding)."""
    devices = 1 if mesh is None else mesh.shape[AXIS]
    batch = batch_size or -(-chains // devices)
    return batch, -(-chains // (batch * devices)) * batch * devices


def _in_batches(fn: Callable[[Any], Any], batch: int, args: Any) -> Any:
    """`jax.vmap(fn)` of batches of `batch` chains, one after another."""
    blocks = jax.tree.leaves(args)[0].shape[0] // batch
    room = max(blocks, 2)
    # Jitted, so that it is traced once for its shapes and for the loop, and not twice.
    block = jax.jit(jax.vmap(fn), inline=True)
    split = jax.tree.map(lambda x: x.reshape(blocks, batch, *x.shape[1:]), args)
    if room > blocks:
        split = jax.lax.optimization_barrier(
            jax.tree.map(lambda x: x[jnp.zeros(room, jnp.int32)], split)
        )

    def take(i: Any) -> Any:
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), split)

    def step(i: Any, out: Any) -> Any:
        return jax.tree.map(
            lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, i, 0), out, block(take(i))
        )

    out = jax.tree.map(
        lambda s: jnp.zeros((room, *s.shape), s.dtype), jax.eval_shape(block, take(0))
    )
    # A single block keeps room for two, and the trip count is hidden from the compiler: it would
    # otherwise drop the loop, fuse its body differently, and a chain alone would round differently
    # from the same chain among others.
    out = jax.lax.fori_loop(0, jax.lax.optimization_barrier(jnp.int32(blocks)), step, out)
    return jax.tree.map(lambda x: x[:blocks].reshape(blocks * batch, *x.shape[2:]), out)
