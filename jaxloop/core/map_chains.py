"""Many chains through one function: vmapped in micro-batches on a device, mapped over the device
mesh.

C chains, D devices, B chains in a micro-batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

AXIS = "chains"


def chain_mesh(devices=None) -> Mesh:
    """One-dimensional mesh with axis "chains" over `devices` (default: all)."""
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def map_chains(fn, args, *, micro_batch: int | None = None, mesh: Mesh | None = None):
    """`fn` of every chain: `fn(one)` where `one` is `args` without its leading chain axis; results
    get a leading axis [C].

    args: pytree, every leaf [C, ...] (PRNG key arrays count as leaves). Call it under `jax.jit`.
    Results are arrays of numbers, and
      are not differentiated through where `micro_batch` is given.
    micro_batch: chains that are vmapped together, so that memory is bounded; the micro-batches of a
    device run one after another.
      Default: all the chains of a device at once.
    mesh: devices along an axis "chains" that share the chains out; each runs at its own pace.

    The number of chains is padded to a multiple of D * B with repeats, which are cut again; on a
    mesh that cut moves rows between devices, the only communication there is, and `whole` avoids
    it. With `micro_batch` given, the arithmetic of a chain runs at the shape [B, ...] whatever C
    is, so that its result does not depend on the other chains, to the last bit. Programs for one
    and for several devices are optimised differently by XLA: between them results agree up to
    rounding.

    Raises ValueError where the leaves disagree on C, C is 0, `micro_batch` is below 1 or the mesh
    has no axis "chains".
    """
    leaves = jax.tree.leaves(args)
    counts = sorted({x.shape[0] if getattr(x, "ndim", 0) else None for x in leaves}, key=str)
    if len(counts) != 1 or not counts[0]:
        raise ValueError(
            f"args: leading axes are {counts}, every leaf must have the same chain axis of at "
            "least 1"
        )
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch={micro_batch}: must be at least 1")
    if mesh is not None and AXIS not in mesh.axis_names:
        raise ValueError(f"mesh: axes are {mesh.axis_names}, one of them must be {AXIS!r}")
    chains = counts[0]
    batch, total = _shape(chains, micro_batch, mesh)
    if total != chains:
        index = jnp.arange(total, dtype=jnp.int32) % chains
        args = jax.tree.map(lambda x: jnp.asarray(x)[index], args)
    local = jax.vmap(fn) if micro_batch is None else partial(_in_micro_batches, fn, batch)
    if mesh is not None:
        spec = PartitionSpec(AXIS)
        local = jax.shard_map(local, mesh=mesh, in_specs=(spec,), out_specs=spec, check_vma=False)
    out = local(args)
    return out if total == chains else jax.tree.map(lambda x: x[:chains], out)


def whole(chains: int, *, micro_batch: int | None = None, mesh: Mesh | None = None) -> int:
    """The number of chains, at least `chains`, at which `map_chains` has nothing to pad."""
    return _shape(chains, micro_batch, mesh)[1]


def _shape(chains, micro_batch, mesh):
    devices = 1 if mesh is None else mesh.shape[AXIS]
    batch = micro_batch or -(-chains // devices)
    return batch, -(-chains // (batch * devices)) * batch * devices


def _in_micro_batches(fn, batch, args):
    blocks = jax.tree.leaves(args)[0].shape[0] // batch
    room = max(blocks, 2)
    block = jax.vmap(fn)
    split = jax.tree.map(lambda x: x.reshape(blocks, batch, *x.shape[1:]), args)
    if room > blocks:
        split = jax.lax.optimization_barrier(
            jax.tree.map(lambda x: x[jnp.zeros(room, jnp.int32)], split)
        )
    take = lambda i: jax.tree.map(
        lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), split
    )

    def step(i, out):
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
