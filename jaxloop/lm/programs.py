"""The programs that training, generating and measuring compile, as (jitted function, abstract
arguments), for devices that need not be there.

Each is called as `training.fit`, `training.evaluate`, `generation.scheduler` and `metrics.embed`
call it. Nothing is allocated.

Dimensions: C chains, S steps of a call, B rows of a chain, T tokens, N texts of a call, J jobs,
Z cached prompts, P prompt, R rows.
"""

import contextlib
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from jaxloop.config.sections import FitConfig, LoraConfig, SampleConfig
from jaxloop.core.map_chains import AXIS, chain_mesh
from jaxloop.lm.encoder import encoder
from jaxloop.lm.encoder.config import EncoderConfig
from jaxloop.lm.encoder.tables import encoder_table
from jaxloop.lm.generation import beam, decode_loop, row_adapters
from jaxloop.lm.generation import prefill as prefilling
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.sampling import sampler_of
from jaxloop.lm.generation.slot_plan import SlotPlan, plan_slots
from jaxloop.lm.generation.slots import DecodeShape, Jobs, PromptCache, Requests
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.config import ModelConfig, abstract, nest
from jaxloop.lm.sharding import devices_of, mesh_of, param_shardings
from jaxloop.lm.target import Target, target_of
from jaxloop.lm.training.evaluate import batch_nll
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, train_steps


class Program(NamedTuple):
    """A jitted function and its arguments, whose arrays are `jax.ShapeDtypeStruct`s. x64: whether
    it runs with 64-bit numbers.
    """

    name: str
    function: Any  # as from `jax.jit`
    args: tuple
    kwargs: dict[str, Any]
    x64: bool = False

    def lower(self, platforms: tuple[str, ...] | None = None) -> jax.stages.Lowered:
        """Return the program before XLA compiles it: for the devices of its arguments, or for
        `platforms` ("cuda", "tpu"), which need not be there.
        """
        with jax.enable_x64(True) if self.x64 else contextlib.nullcontext():
            if platforms is None:
                return self.function.lower(*self.args, **self.kwargs)
            return self.function.trace(*self.args, **self.kwargs).lower(
                lowering_platforms=platforms
            )


class Places(NamedTuple):
    """Where arrays lie.

    mesh        of several devices that share out the chains, or None
    replicated  the sharding of what each device holds all of
    by_chain    the sharding of what is sharded by chain
    base        the devices over which the base is sharded, where it is: nothing else has a place
    """

    mesh: Mesh | None = None
    replicated: Sharding | None = None
    by_chain: Sharding | None = None
    base: tuple[jax.Device, ...] = ()

    @property
    def num_devices(self) -> int:
        """The devices that share out the chains."""
        return 1 if self.mesh is None else self.mesh.size


def places(devices: Iterable[jax.Device] | None, shard_base: bool = False) -> Places:
    """Places of chains shared out over `devices`, as `sharding.replicate` makes them, or of a base
    that is sharded over them, as by `sharding.shard`; None: wherever the program is compiled.
    """
    if devices is None:
        return Places()
    devices = list(devices)
    if shard_base and len(devices) > 1:
        return Places(base=tuple(devices))
    if len(devices) == 1:
        only = SingleDeviceSharding(devices[0])
        return Places(None, only, only)
    mesh = chain_mesh(devices)
    replicated = NamedSharding(mesh, PartitionSpec())
    return Places(mesh, replicated, NamedSharding(mesh, PartitionSpec(AXIS)))


def memory(compiled: jax.stages.Compiled) -> int:
    """Return the bytes that a compiled program needs on each device while it runs: arguments,
    results that are no argument's memory, temporary arrays, code.
    """
    m: Any = compiled.memory_analysis()
    return (
        m.argument_size_in_bytes
        + m.output_size_in_bytes
        - m.alias_size_in_bytes
        + m.temp_size_in_bytes
        + m.generated_code_size_in_bytes
    )


def _at(tree, sharding):
    return jax.tree.map(lambda x: _array(x.shape, x.dtype, sharding), tree)


def _array(shape, dtype, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _base(config: ModelConfig, dtype: str, at: Places) -> dict[str, Any]:
    """The weights of a base."""
    tree = abstract(config, jnp.dtype(dtype))
    if not at.base:
        return _at(tree, at.replicated)
    return jax.tree.map(
        lambda x, sharding: _array(x.shape, x.dtype, sharding),
        tree,
        param_shardings(config, tree, at.base),
    )


def _unstacked(params):
    """`unstack_layers` of weights, each layer's where the stack was."""

    def of_layer(x):
        sharding = x.sharding
        if isinstance(sharding, NamedSharding):
            sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
        return _array(x.shape[1:], x.dtype, sharding)

    count = jax.tree.leaves(params["layers"])[0].shape[0]
    return {**params, "layers": [jax.tree.map(of_layer, params["layers"])] * count}


def _adapters(config: ModelConfig, lora: LoraConfig, chains: int) -> adapters.Adapter:
    return jax.eval_shape(functools.partial(adapters.init, config=config, lora=lora), _keys(chains))


def _keys(count: int) -> jax.ShapeDtypeStruct:
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), count))


def _packed(
    config: ModelConfig, lora: LoraConfig, chains: int, dtype: str, layout: adapters.Layout
) -> dict[str, Any]:
    pack = functools.partial(adapters.pack_adapters, config, dtype=dtype, layout=layout)
    return jax.eval_shape(pack, _adapters(config, lora, chains))


def training(
    config: ModelConfig,
    fit: FitConfig,
    chains: int,
    seq_len: int,
    *,
    dtype: str,
    target: Target,
    options: TrainOptions = TrainOptions(),
    devices: Sequence[jax.Device] | None = None,
    shard_base: bool = False,
) -> Program:
    """`train_steps` of `chains` chains a device, rows of `seq_len` tokens.

    Args:
        config: the model's.
        fit: how chains are trained.
        chains: on each device.
        seq_len: padded.
        dtype: of the base below adapters.
        target: what it is compiled for.
        options: of the training.
        devices: that share out the chains, or None.
        shard_base: the devices hold a part of the base each, and the chains are not shared out.
    """
    at = places(devices, shard_base)
    base = _base(config, dtype, at)
    return _training(config, fit, options, chains, seq_len, base, target, at)


def training_of(
    model: Model, fit: FitConfig, options: TrainOptions, chains: int, seq_len: int
) -> Program:
    """`training` with a base that is loaded, as a fit runs it: on the devices that hold it,
    replicated or sharded.
    """
    base = jax.tree.map(lambda x: _array(x.shape, x.dtype, x.sharding), model.params)
    mesh, devices = mesh_of(model), devices_of(model)
    at = Places()
    if mesh is not None:
        at = places(mesh.devices.flat)
    elif len(devices) == 1:
        at = places(devices)
    target = target_of(model.config, model.params, at.mesh)
    return _training(model.config, fit, options, chains, seq_len, base, target, at)


def _training(
    config: ModelConfig,
    fit: FitConfig,
    options: TrainOptions,
    chains: int,
    seq_len: int,
    base: Any,
    target: Target,
    at: Places,
) -> Program:
    count = chains * at.num_devices
    if fit.mode == "lora":
        weights = _adapters(config, fit.lora, count).weights
    else:
        base = None
        weights = jax.tree.map(lambda x: _array((count, *x.shape), jnp.float32), abstract(config))
    first_state = functools.partial(init_state, fit, options)
    state = _at(jax.eval_shape(first_state, weights, _keys(count)), at.by_chain)
    shape = (options.steps_per_call, count, fit.batch_size, seq_len)
    # Batches come from the host, which leaves their place to the compiler.
    batch = StepArrays(
        tokens=_array(shape, jnp.int32),
        mask=_array(shape, jnp.bool_),
        weights=_array(shape[:3], jnp.float32),
    )
    number = _array((), jnp.int32)
    args = (config, fit, options, base, state, batch, number, number)
    return Program("training", train_steps, args, dict(mesh=at.mesh, target=target))


def loss(
    config: ModelConfig,
    fit: FitConfig,
    seq_len: int,
    *,
    dtype: str,
    target: Target,
    rows: int = 32,
    devices: Sequence[jax.Device] | None = None,
    shard_base: bool = False,
) -> Program:
    """Return the program of `training.evaluate.loss`: one chain's adapter, `rows` texts."""
    at = _one_place(devices, shard_base)
    packed = _at(_packed(config, fit.lora, 1, fit.dtype, "mergeable"), at.replicated)
    tokens = _array((rows, seq_len), jnp.int32, at.replicated)
    args = (config, _base(config, dtype, at), packed, tokens, target)
    return Program("loss", batch_nll, args, {})


def _one_place(devices: Sequence[jax.Device] | None, shard_base: bool = False) -> Places:
    """The first of `devices`, or all of them where the base is sharded."""
    if devices is None or shard_base:
        return places(devices, shard_base)
    return places(devices[:1])


def generation_plan(
    config: ModelConfig,
    sample: SampleConfig,
    target: Target,
    texts: Sequence[int] = (4000,) * 16,
    *,
    dtype: str = "float32",
    memory: int | None = None,
) -> SlotPlan:
    """Return how chains that generate `texts` texts each are shared out over a target's slots."""
    return plan_slots(sample, config, target, texts, dtype=dtype, memory=memory)


class _Call(NamedTuple):
    """What the programs of a call of `generate` share."""

    at: Places
    plan: SlotPlan
    chains: int  # adapters on each device
    params: Any
    adapters: Any  # as the engine has them, of all devices, or None


def prefill(
    config: ModelConfig,
    sample: SampleConfig,
    prompt_len: int,
    *,
    dtype: str,
    target: Target,
    options: GenerateOptions = GenerateOptions(),
    adapted: bool = True,
    devices: Sequence[jax.Device] | None = None,
    shard_base: bool = False,
) -> Program:
    """`prefill` of one prompt of `prompt_len` tokens (padded) for each of a call's chains."""
    call = _call(config, sample, options, dtype, adapted, target, places(devices, shard_base))
    count = call.chains * call.at.num_devices
    tokens = _array((count, prompt_len), jnp.int32, call.at.by_chain)
    length = _array((count,), jnp.int32, call.at.by_chain)
    args = (config, call.params, call.adapters, tokens, length)
    return Program("prefill", prefilling.prefill, args, dict(mesh=call.at.mesh, target=target))


def decoding(
    config: ModelConfig,
    sample: SampleConfig,
    prompt_len: int,
    *,
    dtype: str,
    target: Target,
    options: GenerateOptions = GenerateOptions(),
    adapted: bool = True,
    devices: Sequence[jax.Device] | None = None,
    shard_base: bool = False,
) -> Program:
    """Return the decoding program of a call of `sample.texts_per_call` texts on each device."""
    call = _call(config, sample, options, dtype, adapted, target, places(devices, shard_base))
    plan, num_texts = call.plan, call.plan.texts_per_call
    requests = Requests(
        prompt=_array((num_texts,), jnp.int32),
        key=_array((num_texts, 2), jnp.uint32),
        limit=_array((num_texts,), jnp.int32),
    )
    job_numbers = _array((plan.jobs_per_call,), jnp.int32)
    jobs = Jobs(first=job_numbers, end=job_numbers, chain=job_numbers)
    of_device = (_prompt_caches(config, call, prompt_len), requests, jobs)

    def of_all_devices(x):
        shape = (call.at.num_devices * x.shape[0], *x.shape[1:])
        return _array(shape, x.dtype, call.at.by_chain)

    args = (config, call.params, call.adapters, *jax.tree.map(of_all_devices, of_device))
    static = dict(
        sampler=sampler_of(sample),
        shape=DecodeShape(
            num_groups=plan.num_groups,
            slots_per_group=plan.slots // plan.num_groups,
            window=options.window or plan.window,
            max_new_tokens=sample.max_new_tokens,
            prompt_len=prompt_len - 1,
        ),
        eos=0,
        mesh=call.at.mesh,
    )
    if plan.engine == "rows":
        static["implementation"] = plan.implementation
        return Program("decoding", decode_rows, args, static)
    static["platform"] = target.platform
    return Program("decoding", decode_loop.decode, args, static)


def _prompt_caches(config: ModelConfig, call: _Call, prompt_len: int) -> PromptCache:
    """The caches of one prompt for each of a call's chains, on one device."""

    def on_one_device(leaf):
        return _array((leaf.shape[0] // call.at.num_devices, *leaf.shape[1:]), leaf.dtype)

    return jax.eval_shape(
        functools.partial(prefilling.prefill, config),
        _at(call.params, None),
        jax.tree.map(on_one_device, call.adapters),
        _array((call.chains, prompt_len), jnp.int32),
        _array((call.chains,), jnp.int32),
    )


def _call(
    config: ModelConfig,
    sample: SampleConfig,
    options: GenerateOptions,
    dtype: str,
    adapted: bool,
    target: Target,
    at: Places,
) -> _Call:
    """As `scheduler.generate` calls a program."""
    plan = generation_plan(config, sample, target, dtype=options.dtype)
    params = _unstacked(_base(config, dtype, at))
    if not adapted:
        return _Call(at, plan, 1, params, None)
    chains = plan.places_per_call
    count = chains * at.num_devices
    if plan.engine == "rows":
        pack = functools.partial(
            row_adapters.pack_for_rows,
            config,
            dtype=jnp.dtype(options.dtype),
        )
        packed = jax.eval_shape(pack, _adapters(config, options.lora, count))
    else:
        packed = _packed(config, options.lora, count, options.dtype, "block_diagonal")
    return _Call(at, plan, chains, params, _at(packed, at.by_chain))


def beams(
    config: ModelConfig,
    sample: SampleConfig,
    prompt_len: int,
    *,
    dtype: str,
    options: GenerateOptions = GenerateOptions(),
    rows: int = 16,
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """`beam_program` of one chain's adapter for `rows` prompts of `prompt_len` tokens (padded), on
    one device.
    """
    at = _one_place(devices)
    settings = beam.BeamSettings(sample.num_beams, sample.max_new_tokens)
    args = (
        beam.beam_rules(settings, np.zeros(1, np.int32)),
        abstract(config, jnp.dtype(dtype)),
        _adapters(config, options.lora, 1),
        _array((rows, prompt_len), jnp.int32),
        _array((rows,), jnp.int32),
    )
    static = (config, sample.num_beams, False)
    return Program("beam", beam.beam_program, (*static, *_at(args, at.replicated)), {})


def encoding(
    config: EncoderConfig,
    seq_len: int,
    *,
    target: Target,
    rows: int | None = None,
    dtype: str = "float32",
    devices: Sequence[jax.Device] | None = None,
) -> Program:
    """`encoder.sentence_embedding` with mean pooling of a batch as the metrics take it: `rows`
    texts of `seq_len` tokens.
    """
    at = _one_place(devices)
    flat: dict[tuple[str, ...], object] = {}
    for param in encoder_table(config):
        flat[param.path] = _array(param.shape, jnp.dtype(dtype), at.replicated)
    params = nest(flat)
    params = params | {"layers": [params["layers"]] * config.stored_layers, "dense": []}
    rows = rows or max(1, encoder.batch_on(target.platform) // seq_len)
    args = (
        config,
        encoder.Readout(normalize=True),
        params,
        _array((rows, seq_len), jnp.int32, at.replicated),
        _array((rows,), jnp.int32, at.replicated),
        target,
    )
    return Program("encoder", encoder.sentence_embedding, args, {})
