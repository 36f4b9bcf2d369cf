"""Where a base lies: on one device, whole on every device of a mesh (chains are shared out), or cut
over a `model` axis (it fits no single one).

Dimensions: D devices.
"""

import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxloop.core.map_chains import AXIS, chain_mesh
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model.config import Spec, table
from jaxloop.runtime.devices import platform_of, programs_at_once

MODEL = "model"


def spread(model: Model, devices: Sequence[jax.Device] | None) -> Model:
    """`model` with its weights on every one of `devices`: `fit` and `sample` map chains over the
    devices that hold the base.
    """
    if devices is None or len(devices) == 1:
        return (
            model
            if devices is None
            else model._replace(params=jax.device_put(model.params, devices[0]))
        )
    return model._replace(
        params=jax.device_put(model.params, NamedSharding(chain_mesh(devices), PartitionSpec()))
    )


def cut(model: Model, devices: Sequence[jax.Device]) -> Model:
    """`model` with each large weight cut into D pieces, one a device: projections into the stream
    by their input, the others by their output.

    For bases larger than a device. The same programs then run on all devices together, the chains
    not shared out, and sums go over the devices: results agree with one device to rounding. An axis
    that D does not divide stays whole.
    """
    return model._replace(
        params=jax.tree.map(jax.device_put, model.params, cuts(model.spec, model.params, devices))
    )


def cuts(spec: Spec, params, devices: Sequence[jax.Device]):
    """The sharding of each weight of a base, or of its abstract form, that is cut over devices."""
    mesh = Mesh(np.asarray(devices), (MODEL,))

    def place(path, leaf):
        axis = shards.get(tuple(str(k.key) for k in path))
        whole = axis is None or leaf.shape[axis] % len(devices)
        return NamedSharding(
            mesh, PartitionSpec() if whole else PartitionSpec(*[None] * axis, MODEL)
        )

    shards = {
        p.path: None if p.shard is None else p.shard + (p.path[0] == "layers") for p in table(spec)
    }
    return jax.tree_util.tree_map_with_path(place, params)


def like(model: Model, weights):
    """All weights of a chain, placed as those of `model` where these are cut; elsewhere as they
    are.
    """
    first = jax.tree.leaves(model.params)[0].sharding
    if not (isinstance(first, NamedSharding) and MODEL in first.mesh.axis_names):
        return weights
    return jax.tree.map(lambda w, p: jax.device_put(w, p.sharding), weights, model.params)


def device_bytes(device: jax.Device) -> int:
    """Memory that programs on a device may use: what its allocator may take, or the machine's for a
    CPU.
    """
    found = (device.memory_stats() or {}).get("bytes_limit")
    return int(found) if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def devices_of(model: Model) -> set[jax.Device]:
    """The devices that hold the base."""
    return jax.tree.leaves(model.params)[0].devices()


def programs_on(model: Model, wanted: int = 0) -> int:
    """Programs with this base that may run at the same time: `wanted` (0: `programs_at_once`) where
    it lies on one device; one where it lies on several, which programs share already or on which
    they would wait for each other's sums.
    """
    return (
        (wanted or programs_at_once(platform_of(model.params)))
        if len(devices_of(model)) == 1
        else 1
    )


def mesh_of(model: Model) -> Mesh | None:
    """The mesh of devices over which chains are shared out; None where the base lies on one device
    or is cut.
    """
    sharding = jax.tree.leaves(model.params)[0].sharding
    if (
        isinstance(sharding, NamedSharding)
        and sharding.mesh.size > 1
        and AXIS in sharding.mesh.axis_names
    ):
        return sharding.mesh
    return None
