"""Decoding, timed: useful tokens/s, texts/s, occupancy, the ratio to transformers."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxloop.config import SampleConfig
from jaxloop.core.map_chains import chain_mesh
from jaxloop.lm.generation import row_adapters
from jaxloop.lm.generation.decode_loop import decode
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.prefill import prefill, unstack_layers
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slot_plan import choose_engine, window_of
from jaxloop.lm.generation.slots import DecodeShape, Jobs, Requests
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.target import target_of
from jaxloop.runtime.devices import platform_of, programs_at_once, run_concurrently
from jaxloop.runtime.roofline import Work, decoding_bytes, decoding_flops
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import (
    BenchModel,
    Measurement,
    Times,
    bench_model,
    lengths_of,
    peak_bytes,
    time_in_turn,
)

SAMPLER = Sampler(temperature=1.5, min_p=0.2)


class _Layout(NamedTuple):
    """How the slots of a device are shared out.

    programs: at the same time on one device; num_groups: of slots that share a chain's adapter;
    engine and implementation: as `slot_plan.choose_engine` says.
    """

    mesh: Mesh | None
    programs: int
    num_groups: int
    engine: str
    implementation: str


class _Inputs(NamedTuple):
    """Arguments of the decoding programs. shares: the jobs of each program."""

    packed: Any
    prompts: np.ndarray
    requests: Requests
    shares: list[Jobs]


def time_decode(config: BenchConfig, chains: int) -> Measurement:
    """Time so many chains that generate `config.texts` texts of the mix.

    Raises ValueError for devices that are not here or cannot share the texts.
    """
    if config.devices > len(jax.devices()) or config.texts % config.devices:
        raise ValueError(
            f"devices = {config.devices}: must be at most {len(jax.devices())} here, and "
            f"divide texts = {config.texts}"
        )
    model = bench_model(config, chains)
    layout = _layout(config, model, chains)
    lengths = lengths_of(config, config.texts)
    inputs = _inputs(config, model, layout, chains, lengths)
    results: list[Any] = []
    runs = {"jaxloop": _generation(config, model, layout, inputs, results)}
    peer_lengths = lengths[: config.peer_texts]
    if config.peer:
        # torch and peft are optional, and slow to load.
        from jaxloop.studies.bench import peers

        for batch in config.peer_batches:
            runs[f"transformers, batch {batch}"] = peers.generate(
                model, inputs.prompts[0], peer_lengths, batch, config
            )
    times = time_in_turn(runs, config.repeats)
    useful, rows = int(lengths.sum()), config.slots * config.devices * layout.programs
    seconds = statistics.median(times.repeats["jaxloop"])
    steps = max(int(result.steps.max()) for result in results)
    row = {
        "what": "decode",
        "engine": layout.engine,
        "chains": chains,
        "value": useful / seconds,
        "unit": "useful tokens/s",
        "texts_per_s": config.texts / seconds,
        "occupancy": useful / (steps * rows),
        "ms_per_step": 1e3 * seconds / steps,
        "compile_s": times.first["jaxloop"],
        "peak_bytes": peak_bytes(),
    }
    if config.peer:
        row |= _peer_columns(times, useful, int(peer_lengths.sum()))
    sizes = sizes_of(model.config, model.lora)
    context = float((lengths.astype(float) ** 2).sum() / lengths.sum() / 2 + config.prompt)
    flops = decoding_flops(sizes, useful, context)
    read = decoding_bytes(
        sizes,
        -(-useful // rows),
        rows,
        context,
        chains=min(chains, layout.num_groups),
        width=jnp.dtype(config.dtype).itemsize,
    )
    return Measurement(row, Work(flops / seconds, read / seconds))


def _layout(config: BenchConfig, model: BenchModel, chains: int) -> _Layout:
    mesh = chain_mesh(jax.devices()[: config.devices]) if config.devices > 1 else None
    programs = config.programs or (programs_at_once() if mesh is None else 1)
    if mesh is not None and programs > 1:
        raise ValueError(
            f"programs = {programs}: must be 1 where devices = {config.devices} share the texts"
        )
    target = target_of(model.config, model.base)
    target = dataclasses.replace(target, products=target.products and config.products)
    engine, implementation = choose_engine(
        SampleConfig(engine=config.engine), model.config, target, config.dtype
    )
    num_groups = 1 if chains == 1 else config.slots // config.slots_per_adapter
    return _Layout(mesh, programs, num_groups, engine, implementation)


def _inputs(
    config: BenchConfig, model: BenchModel, layout: _Layout, chains: int, lengths: np.ndarray
) -> _Inputs:
    dtype = jnp.dtype(config.dtype)
    if layout.engine == "rows":
        packed = row_adapters.pack_for_rows(model.config, model.adapters, dtype)
    else:
        packed = adapters.pack_adapters(model.config, model.adapters, dtype, "block_diagonal")
    random = np.random.default_rng(config.seed)
    prompt = random.integers(0, model.config.vocab_size, (1, config.prompt)).astype(np.int32)
    prompts = prompt.repeat(chains, 0)
    # Slots with a cache row of their own share a chain's texts; groups of blocks have a run of them
    # each.
    count = chains if layout.engine == "rows" else max(chains, layout.num_groups * layout.programs)
    count = -(-count // layout.programs) * layout.programs
    bounds = np.linspace(0, config.texts // config.devices, count + 1).astype(np.int32)
    owner = np.arange(count, dtype=np.int32) % chains
    keys = jax.random.key_data(jax.random.split(jax.random.key(5), config.texts))
    # Indices count inside a device's piece, and every device holds the same chains.
    packed, prompts, first, end, owner, prompt_of = jax.tree.map(
        lambda x: np.concatenate([x] * config.devices),
        (packed, prompts, bounds[:-1], bounds[1:], owner, np.repeat(owner, np.diff(bounds))),
    )
    return _Inputs(
        packed,
        prompts,
        Requests(prompt_of, keys, lengths.astype(np.int32)),
        [
            Jobs(*(x[i :: layout.programs] for x in (first, end, owner)))
            for i in range(layout.programs)
        ],
    )


def _generation(
    config: BenchConfig, model: BenchModel, layout: _Layout, inputs: _Inputs, results: list[Any]
) -> Callable[[], None]:
    """A function that generates all texts and leaves what the programs gave in `results`."""
    target = target_of(model.config, model.base, layout.mesh)
    shape = DecodeShape(
        num_groups=layout.num_groups,
        slots_per_group=config.slots // layout.num_groups,
        window=config.window or window_of(model.config, target, layout.engine, config.longest),
        max_new_tokens=config.longest,
        prompt_len=config.prompt - 1,
    )
    params = unstack_layers(model.base)
    prompt_lengths = np.full(len(inputs.prompts), config.prompt, np.int32)
    nothing = [Jobs(*map(np.zeros_like, inputs.shares[0]))]
    calls = 0

    def run() -> None:
        nonlocal calls
        # The first call has nothing to generate: what it takes is compiling.
        jobs, calls = (inputs.shares if calls else nothing), calls + 1
        cached = prefill(
            model.config,
            params,
            inputs.packed,
            inputs.prompts,
            prompt_lengths,
            layout.mesh,
            target,
        )

        def generate(share: Jobs) -> Any:
            arrays = (model.config, params, inputs.packed, cached, inputs.requests, share)
            if layout.engine == "rows":
                return decode_rows(
                    *arrays,
                    sampler=SAMPLER,
                    shape=shape,
                    eos=-1,
                    mesh=layout.mesh,
                    implementation=layout.implementation,
                )
            return decode(
                *arrays,
                sampler=SAMPLER,
                shape=shape,
                eos=-1,
                mesh=layout.mesh,
                platform=platform_of(model.base),
            )

        results.clear()
        run_concurrently(generate, lambda _, result: results.append(result), jobs, layout.programs)

    return run


def _peer_columns(times: Times, useful: int, peer_useful: int) -> dict[str, Any]:
    """The peer's best batch size, and how much faster we are."""
    rates = {
        name: statistics.median(peer_useful / seconds for seconds in repeats)
        for name, repeats in times.repeats.items()
        if name != "jaxloop"
    }
    best = max(rates, key=lambda name: rates[name])
    pairs = zip(times.repeats["jaxloop"], times.repeats[best], strict=True)
    return {
        "peer": f"{best}, adapter merged",
        "peer_value": rates[best],
        "peer_ratio": statistics.median(
            useful / ours * theirs / peer_useful for ours, theirs in pairs
        ),
    }
