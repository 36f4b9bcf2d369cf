"""The programs that training, writing and measuring compile, as (jitted function, abstract
arguments), for devices that need not be there.

Each is called as `family`, `sample`, `beam` and `metrics.embed` call it. Nothing is allocated.

Dimensions: C chains, S steps of a dispatch, B rows a chain, T time, N texts of a call, Z cached
prompts, P prompt, R rows.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxloop.core.map_chains import AXIS, chain_mesh
from jaxloop.lm import family
from jaxloop.lm.encoder import encoder
from jaxloop.lm.encoder.config import EncoderSpec, encoder_table
from jaxloop.lm.generation import beam, decode_loop, row_kernels
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.scheduler import SampleSettings
from jaxloop.lm.generation.slot_plan import Plan, plan
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import Spec, abstract, nest
from jaxloop.lm.sharding import cuts, devices_of, mesh_of
from jaxloop.lm.target import Target, target_of
from jaxloop.lm.training import step as train_step
from jaxloop.lm.training.step import FitSettings


class Program(NamedTuple):
    """A jitted function and its arguments, whose arrays are `jax.ShapeDtypeStruct`s. x64: whether
    it runs with 64-bit numbers.
    """

    name: str
    function: Callable
    args: tuple
    kwargs: dict
    x64: bool = False

    def lower(self, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
        """The program before XLA compiles it: for the devices of its arguments, or for `platforms`
        ("cuda", "tpu"), which need not be there.
        """
        with jax.enable_x64(True) if self.x64 else contextlib.nullcontext():
            if platforms is None:
                return self.function.lower(*self.args, **self.kwargs)
            return self.function.trace(*self.args, **self.kwargs).lower(
                lowering_platforms=platforms
            )


class Places(NamedTuple):
    """Where arrays lie: the mesh of several devices, the shardings of what is whole on each and of
    what is cut by chain; and the devices over which the base is cut, where it is: nothing else has
    a place then.
    """

    mesh: Mesh | None = None
    whole: Any = None
    cut: Any = None
    base: tuple[jax.Device, ...] = ()


def places(devices: Iterable[jax.Device] | None, cut_base: bool = False) -> Places:
    """Places of chains shared out over `devices`, as `placement.spread` makes them, or of a base
    that is cut over them, as `placement.cut` does; None: wherever the program is compiled.
    """
    if devices is None:
        return Places()
    devices = list(devices)
    if cut_base and len(devices) > 1:
        return Places(base=tuple(devices))
    if len(devices) == 1:
        return Places(None, *[SingleDeviceSharding(devices[0])] * 2)
    mesh = chain_mesh(devices)
    return Places(mesh, *(NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,))))


def memory(compiled) -> int:
    """Bytes that a compiled program needs on each device while it runs: arguments, results that are
    no argument's memory, temporary arrays, code.
    """
    m = compiled.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
        + m.temp_size_in_bytes
        + m.generated_code_size_in_bytes
    )


def _at(tree, sharding):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _array(shape, dtype, sharding):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _base(spec, dtype, at: Places):
    """The weights of a base."""
    tree = abstract(spec, jnp.dtype(dtype))
    if not at.base:
        return _at(tree, at.whole)
    return jax.tree.map(
        lambda x, sharding: _array(x.shape, x.dtype, sharding), tree, cuts(spec, tree, at.base)
    )


def _unstacked(params):
    """`decode.unstack` of weights, each layer's where the stack was."""

    def inside(x):
        at = x.sharding
        return _array(
            x.shape[1:],
            x.dtype,
            NamedSharding(at.mesh, PartitionSpec(*at.spec[1:]))
            if isinstance(at, NamedSharding)
            else at,
        )

    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [jax.tree.map(inside, params["layers"])] * count}


def _adapters(spec, lora, chains):
    return jax.eval_shape(functools.partial(adapters.init, spec=spec, lora=lora), _keys(chains))


def _keys(count):
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def training(
    spec: Spec,
    fit: FitSettings,
    chains: int,
    time: int,
    *,
    dtype: str,
    target: Target,
    devices=None,
    cut_base: bool = False,
) -> Program:
    """`train.train_steps` of `chains` chains a device, rows of `time` tokens; `dtype` is that of
    the base (adapters only). `devices`: a sequence of them, or None; `cut_base`: they hold a part
    of the base each, and the chains are not shared out.
    """
    at = places(devices, cut_base)
    return _training(spec, fit, chains, time, _base(spec, dtype, at), target, at)


def training_of(model: Model, fit: FitSettings, chains: int, time: int) -> Program:
    """`training` with a base that is loaded, as `family.fit` runs it: on the devices that hold it,
    whole or cut.
    """
    base = jax.tree.map(lambda x: _array(x.shape, x.dtype, x.sharding), model.params)
    mesh, held = mesh_of(model), devices_of(model)
    at = places(mesh.devices.flat if mesh is not None else held if len(held) == 1 else None)
    return _training(
        model.spec, fit, chains, time, base, target_of(model.spec, model.params, at.mesh), at
    )


def _training(spec, fit, chains, time, base, target, at: Places) -> Program:
    count = chains * (1 if at.mesh is None else at.mesh.size)
    if fit.mode == "lora":
        weights = _adapters(spec, fit.lora, count)
    else:
        weights, base = (
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((count, *x.shape), jnp.float32), abstract(spec)
            ),
            None,
        )
    state = _at(
        jax.eval_shape(functools.partial(train_step.init_state, fit), weights, _keys(count)), at.cut
    )
    shape = (fit.steps_per_dispatch, count, fit.batch_size, time)
    # Batches come from the host, which leaves their place to the compiler.
    batch = [
        jax.ShapeDtypeStruct(*one)
        for one in ((shape, jnp.int32), (shape, jnp.bool_), (shape[:3], jnp.float32))
    ]
    numbers = [jax.ShapeDtypeStruct((), jnp.int32)] * 2
    return Program(
        "training",
        train_step.train_steps,
        (spec, fit, base, state, *batch, *numbers),
        dict(mesh=at.mesh, target=target),
    )


def loss(
    spec: Spec,
    fit: FitSettings,
    time: int,
    *,
    dtype: str,
    target: Target,
    rows: int = 32,
    devices=None,
    cut_base: bool = False,
) -> Program:
    """The program of `family.loss`: one chain's adapter, `rows` texts."""
    at = places(devices if cut_base or devices is None else devices[:1], cut_base)
    fused = _at(_fused(spec, fit.lora, 1, fit.dtype, summed=True), at.whole)
    params = _base(spec, dtype, at)
    return Program(
        "loss",
        family._row_nll,
        (spec, params, fused, _array((rows, time), jnp.int32, at.whole), target),
        {},
    )


def _fused(spec, lora, chains, dtype, **how):
    return jax.eval_shape(
        lambda tree: adapters.fuse(spec, tree, lora, jnp.dtype(dtype), **how),
        _adapters(spec, lora, chains),
    )


def writing_plan(
    spec: Spec,
    settings: SampleSettings,
    target: Target,
    texts: Sequence[int] = (4000,) * 16,
    memory: int | None = None,
) -> Plan:
    """How chains that write `texts` texts each are shared out over the slots of a target's device."""
    return plan(settings, spec, target, texts, memory)


def prefill(
    spec: Spec,
    sample: SampleSettings,
    prompt: int,
    *,
    dtype: str,
    target: Target,
    adapted: bool = True,
    devices=None,
    cut_base: bool = False,
) -> Program:
    """`decode.prefill` of one prompt of `prompt` tokens (padded) for each of a call's chains."""
    at, _, chains, params, fused = _writing(
        spec, sample, dtype, adapted, target, places(devices, cut_base)
    )
    count = chains * (1 if at.mesh is None else at.mesh.size)
    args = (
        spec,
        params,
        fused,
        _array((count, prompt), jnp.int32, at.cut),
        _array((count,), jnp.int32, at.cut),
    )
    return Program("prefill", decode_loop.prefill, args, dict(mesh=at.mesh, target=target))


def decoding(
    spec: Spec,
    sample: SampleSettings,
    prompt: int,
    *,
    dtype: str,
    target: Target,
    adapted: bool = True,
    devices=None,
    cut_base: bool = False,
) -> Program:
    """`decode.decode` of a call of `sample.texts_per_call` texts, a device its own."""
    at, planned, chains, params, fused = _writing(
        spec, sample, dtype, adapted, target, places(devices, cut_base)
    )
    many = 1 if at.mesh is None else at.mesh.size
    rows, n = planned.engine == "rows", planned.texts_per_call
    how = decode_loop.Shape(
        planned.lanes,
        planned.slots // planned.lanes,
        sample.window,
        sample.max_new_tokens,
        prompt - 1,
    )
    one = [
        jax.ShapeDtypeStruct((chains, prompt), jnp.int32),
        jax.ShapeDtypeStruct((chains,), jnp.int32),
    ]
    plain = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        for tree in (params, fused)
    ]
    each = (
        None
        if fused is None
        else jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((x.shape[0] // many, *x.shape[1:]), x.dtype), plain[1]
        )
    )
    prompts = jax.eval_shape(
        lambda p, f, t, m: decode_loop.prefill(spec, p, f, t, m, None), plain[0], each, *one
    )
    requests = decode_loop.Requests(
        *(
            jax.ShapeDtypeStruct(s, d)
            for s, d in (((n,), jnp.int32), ((n, 2), jnp.uint32), ((n,), jnp.int32))
        )
    )
    jobs = decode_loop.Jobs(
        *[jax.ShapeDtypeStruct((planned.chains_per_call if rows else n,), jnp.int32)] * 3
    )
    later = [
        _at(
            jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((many * x.shape[0], *x.shape[1:]), x.dtype), tree
            ),
            at.cut,
        )
        for tree in (prompts, requests, jobs)
    ]
    args = (spec, sample.sampler, how, 0, params, fused, *later)
    if rows:
        return Program("decoding", decode_rows, args, dict(mesh=at.mesh, how=planned.how))
    return Program(
        "decoding", decode_loop.decode, args, dict(mesh=at.mesh, platform=target.platform)
    )


def _writing(spec, sample, dtype, adapted, target, at: Places):
    """(places, plan, chains of a call, weights, adapters as the engine has them or None), as
    `sample._write_with` has them.
    """
    planned = writing_plan(spec, sample, target)
    chains = (max(2, planned.chains_per_call) if planned.lanes > 1 else 1) if adapted else 1
    many = 1 if at.mesh is None else at.mesh.size
    params = _unstacked(_base(spec, dtype, at))
    if not adapted:
        return at, planned, chains, params, None
    if planned.engine == "rows":
        tree, scale, number = (
            _adapters(spec, sample.lora, chains * many),
            sample.lora.scale,
            jnp.dtype(sample.dtype),
        )
        fused = jax.eval_shape(lambda tree: row_kernels.pool(spec, tree, scale, number), tree)
    else:
        fused = _fused(spec, sample.lora, chains * many, sample.dtype, block_diagonal=True)
    return at, planned, chains, params, _at(fused, at.cut)


def beams(
    spec: Spec,
    sample: SampleSettings,
    prompt: int,
    *,
    dtype: str,
    rows: int = 16,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """`beam.beam_search` of one chain's adapter for `rows` prompts of `prompt` tokens (padded), on
    one device.
    """
    at = places(None if devices is None else devices[:1])
    rules = beam._rules(beam.Beam(sample.beams, sample.max_new_tokens), np.zeros(1, np.int32))
    rules = _at(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), rules), at.whole)
    params, tree = (
        _at(abstract(spec, jnp.dtype(dtype)), at.whole),
        _at(_adapters(spec, sample.lora, 1), at.whole),
    )
    tokens, length = (
        _array((rows, prompt), jnp.int32, at.whole),
        _array((rows,), jnp.int32, at.whole),
    )
    return Program(
        "beam",
        beam._search,
        (spec, sample.beams, False, sample.lora, rules, params, tree, tokens, length),
        {},
    )


def encoding(
    spec: EncoderSpec,
    time: int,
    *,
    target: Target,
    rows: int | None = None,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """`encoder.sentence_embedding` with mean pooling of a batch as the metrics take it: `rows`
    texts of `time` tokens.
    """
    at = places(None if devices is None else devices[:1])
    layers, flat = spec.core.layers, {}
    for p in encoder_table(spec):
        flat[p.path] = _array(p.shape, jnp.dtype(dtype), at.whole)
    params = nest(flat)
    params = params | {"layers": [params["layers"]] * layers, "dense": []}
    rows = rows or max(1, encoder.batch_on(target.platform) // time)
    args = (
        spec,
        encoder.Readout(normalize=True),
        params,
        _array((rows, time), jnp.int32, at.whole),
        _array((rows,), jnp.int32, at.whole),
        target,
    )
    return Program("encoder", encoder.sentence_embedding, args, {})
