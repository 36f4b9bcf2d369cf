"""Where a base lies: on one device, replicated on every device of a mesh, or sharded over them.

Chains are shared out over devices that each hold the whole base. A base that fits no single device
is sharded over a `model` axis.

Dimensions: D devices.
"""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxloop.core.map_chains import AXIS, chain_mesh
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import ModelConfig, table
from jaxloop.runtime.devices import platform_of, programs_at_once

MODEL = "model"


def replicate(model: Model, devices: Sequence[jax.Device] | None) -> Model:
    """Return `model` with its weights on every one of `devices`; None: where they are.

    `fit` and `generate` map chains over the devices that hold the base.
    """
    if devices is None:
        return model
    place: jax.Device | NamedSharding = devices[0]
    if len(devices) > 1:
        place = NamedSharding(chain_mesh(devices), PartitionSpec())
    return model._replace(params=jax.device_put(model.params, place))


def shard(model: Model, devices: Sequence[jax.Device]) -> Model:
    """Return `model` with each large weight sharded over D devices, for bases larger than a device.

    Projections that read the residual stream are split by their output, those that write into it by
    their input. The same programs then run on all devices together, the chains not shared out, and
    sums go over the devices: results agree with one device to rounding. An axis that D does not
    divide stays whole.
    """
    shardings = param_shardings(model.config, model.params, devices)
    return model._replace(params=jax.tree.map(jax.device_put, model.params, shardings))


def param_shardings(config: ModelConfig, params: Any, devices: Sequence[jax.Device]) -> Any:
    """Return the sharding of each weight of a base, or of its abstract form, as `shard` has it."""
    mesh = Mesh(np.asarray(devices), (MODEL,))
    axes = {
        p.path: None if p.shard is None else p.shard + (p.path[0] == "layers")
        for p in table(config)
    }

    def sharding(path, leaf):
        axis = axes.get(tuple(str(k.key) for k in path))
        spec = PartitionSpec()
        if axis is not None and leaf.shape[axis] % len(devices) == 0:
            spec = PartitionSpec(*[None] * axis, MODEL)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, params)


def place_like(model: Model, weights: Any) -> Any:
    """Return all weights of a chain, placed as those of `model` if these are sharded."""
    first = jax.tree.leaves(model.params)[0].sharding
    if not (isinstance(first, NamedSharding) and MODEL in first.mesh.axis_names):
        return weights
    return jax.tree.map(lambda w, p: jax.device_put(w, p.sharding), weights, model.params)


def device_bytes(device: jax.Device) -> int:
    """Return the bytes that programs on a device may use.

    They are what its allocator may take, or, of a CPU, the machine's memory.
    """
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit:
        return int(limit)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def devices_of(model: Model) -> set[jax.Device]:
    """Return the devices that hold the base."""
    return jax.tree.leaves(model.params)[0].devices()


def programs_on(model: Model, wanted: int = 0) -> int:
    """Return how many programs with this base may run at the same time.

    That is `wanted` (0: `programs_at_once`) where the base lies on one device. Where it lies on
    several it is one: programs share them already, or would wait for each other's sums.
    """
    if len(devices_of(model)) > 1:
        return 1
    return wanted or programs_at_once(platform_of(model.params))


def mesh_of(model: Model) -> Mesh | None:
    """Return the mesh of devices over which chains are shared out.

    None where the base lies on one device or is sharded.
    """
    sharding = jax.tree.leaves(model.params)[0].sharding
    if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
        return None
    several = sharding.mesh.size > 1 and AXIS in sharding.mesh.axis_names
    return sharding.mesh if several else None
