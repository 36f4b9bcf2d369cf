"""Chooses how many chains train in one program.

On a CPU that is measured once per shape and kept on disk; on an accelerator it is as many as fit,
according to the compiler.

More chains fill an accelerator; on a CPU they fall out of its caches. The number changes no result
beyond rounding. Where memory runs out all the same, it is halved.
"""

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxloop.config.sections import FitConfig
from jaxloop.lm import programs
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import init
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.sharding import device_bytes, devices_of, mesh_of
from jaxloop.lm.target import target_of
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, run_steps
from jaxloop.runtime import roofline
from jaxloop.runtime.atomic_io import cache_folder, human_size, write_atomic
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.memory import is_out_of_memory

# FLOPs of one `fit` above which measuring, which compiles several programs, pays: about a minute's
# work of a CPU.
WORTH_MEASURING = 5e12
MAX_CHAINS = {"cpu": 4, "other": 64}
USABLE_SHARE = 0.95  # of an accelerator's memory: its allocator cannot fill every gap


def default(platform: str) -> int:
    """Return the chains in one program before anything is measured or compiled.

    It is one on a CPU, whose caches hold no more, and sixteen elsewhere.
    """
    return 1 if platform == "cpu" else 16


def choose(
    model: Model, fit: FitConfig, options: TrainOptions, seq_len: int, steps: int, chains: int
) -> int:
    """Chains in one program, on one device.

    On an accelerator: as many as fit (see `fitting`). On a CPU: as measured before; measured now,
    where it is worth it; else `default`. A number that took work is kept in the user's cache
    folder, so that a run that is resumed takes the same one.

    Args:
        model: the base model.
        fit: how chains are trained.
        options: everything else about the training.
        seq_len: tokens of a padded row.
        steps: number of updates of each chain.
        chains: number of chains that are to be trained, on all devices.
    """
    platform = platform_of(model.params)
    name, kept = _name(model, fit, options, seq_len), _read_kept()
    if name in kept:
        return kept[name]
    if platform != "cpu":
        mesh = mesh_of(model)
        per_device = -(-chains // (1 if mesh is None else mesh.size))
        most = min(MAX_CHAINS["other"], per_device)
        best, compiled = fitting(model, fit, options, seq_len, most, room(model))
        return _keep(name, best) if compiled else best
    sizes = sizes_of(model.config, fit.lora)
    tokens = chains * steps * fit.batch_size * seq_len
    work = roofline.training_flops(sizes, tokens, seq_len, frozen=fit.mode == "lora")
    if work < WORTH_MEASURING or chains < 2:
        return default(platform)
    seconds = measure(model, fit, options, seq_len, min(MAX_CHAINS["cpu"], chains))
    best = min(seconds, key=seconds.__getitem__)
    LOGGER.info(
        "chains per program: %d train fastest here (%s)",
        best,
        ", ".join(f"{c}: {1e3 * s:.1f} ms" for c, s in seconds.items()),
    )
    return _keep(name, best)


def room(model: Model) -> int:
    """Return the bytes that a training program may use on a device, the base model included.

    It is the least over the accelerators that hold the base. Memory that other arrays take is
    subtracted.
    """
    rooms = []
    for device in devices_of(model):
        base = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(model.params)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        used = (device.memory_stats() or {}).get("bytes_in_use", base)
        rooms.append(int(USABLE_SHARE * device_bytes(device)) - max(0, used - base))
    return min(rooms)


def fitting(
    model: Model, fit: FitConfig, options: TrainOptions, seq_len: int, most: int, room: int
) -> tuple[int, int]:
    """Find the number of chains, from 1 to `most`, whose program fits in `room` bytes of a device.

    The compiler says what a program needs before it runs, and the program that is chosen is then in
    the cache of compiled programs. Where an estimate says that `most` chains need less than a
    quarter of the room, nothing is compiled. 1 is returned even if its program does not fit:
    running it will tell.

    Returns:
        The number of chains, and how many programs were compiled.
    """
    if most == 1:
        return most, 0
    estimate = roofline.training_memory(
        sizes_of(model.config, fit.lora),
        most,
        fit.batch_size,
        seq_len,
        base_width=max(leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)),
        frozen=fit.mode == "lora",
        width=4 if fit.dtype == "float32" else 2,
        remat=fit.remat,
    )
    if 4 * estimate < room:
        return most, 0
    of_program = functools.partial(program_bytes, model, fit, options, seq_len)
    best, compiled = largest(of_program, room, most)
    LOGGER.info(
        "chains per program: %d fit the %s that are free (%s)",
        max(1, best),
        human_size(room),
        ", ".join(f"{c}: {human_size(size)}" for c, size in sorted(compiled.items())),
    )
    return max(1, best), len(compiled)


def program_bytes(
    model: Model, fit: FitConfig, options: TrainOptions, seq_len: int, chains: int
) -> int:
    """Return the bytes of a device that a training program of `chains` chains needs.

    The compiler says how many; where compiling fails for lack of memory it is 2^62.
    """
    options = dataclasses.replace(options, constraint=None)
    program = programs.training_of(model, fit, options, chains, seq_len)
    try:
        return programs.memory(program.lower().compile())
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1 << 62


def largest(memory: Callable[[int], int], room: int, most: int) -> tuple[int, dict[int, int]]:
    """Find the largest number of chains whose program fits in `room` bytes.

    It is `most`, or a power of two below it; 0 where not even one chain fits.

    The programs of one and two chains are compiled first. From them follows how many chains should
    fit, and that number is compiled to see whether it does.

    Args:
        memory: compiles the program of a number of chains and returns its bytes.
        room: bytes that a program may use.
        most: most chains.

    Returns:
        The number, and {chains: bytes} of the programs that were compiled.
    """
    compiled = {1: memory(1)}
    if compiled[1] > room:
        return 0, compiled
    if most < 2:
        return 1, compiled
    compiled[2] = memory(2)
    more = (room - compiled[1]) // max(1, compiled[2] - compiled[1])
    chains = most if 1 + more >= most else _power_of_two_to(1 + more)
    while chains > 2:
        compiled[chains] = memory(chains)
        if compiled[chains] <= room:
            return chains, compiled
        chains = _power_of_two_to(chains - 1)
    return (2 if compiled[2] <= room else 1), compiled


def _power_of_two_to(number: int) -> int:
    """The largest power of two that is at most `number`."""
    return 1 << (number.bit_length() - 1)


def measure(
    model: Model,
    fit: FitConfig,
    options: TrainOptions,
    seq_len: int,
    most: int,
    *,
    repeats: int = 3,
) -> dict[int, float]:
    """Return {chains in one program: seconds per step and chain} for 1, 2, 4, ... up to `most`.

    It stops early when more chains are not faster (by 3%), or when memory runs out.
    """
    seconds: dict[int, float] = {}
    chains = 1
    while chains <= most:
        try:
            step = _seconds_of_step(model, fit, options, seq_len, chains, repeats)
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error) or not seconds:
                raise
            break
        seconds[chains] = step / chains
        if chains > 1 and seconds[chains] > 0.97 * seconds[chains // 2]:
            break
        chains *= 2
    return seconds


def _seconds_of_step(
    model: Model, fit: FitConfig, options: TrainOptions, seq_len: int, chains: int, repeats: int
) -> float:
    options = dataclasses.replace(options, constraint=None)
    steps = options.steps_per_call
    shape = (steps, chains, fit.batch_size, seq_len)
    batch = StepArrays(
        tokens=np.zeros(shape, np.int32),
        mask=np.ones(shape, bool),
        weights=np.ones(shape[:3], np.float32),
    )
    keys = jax.random.split(jax.random.key(0), chains)
    if fit.mode == "lora":
        base, weights = model.params, lora.init(keys, model.config, fit.lora).weights
    else:
        base, weights = None, jax.vmap(functools.partial(init, config=model.config))(keys)
    state = init_state(fit, options, weights, keys)
    target = target_of(model.config, model.params)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, losses = run_steps(
            model.config,
            fit,
            options,
            base,
            state,
            batch,
            np.int32(steps),
            np.int32(10**6),
            target=target,
        )
        jax.block_until_ready(losses)
        best = min(best, time.perf_counter() - start)
    return best / steps


def _name(model: Model, fit: FitConfig, options: TrainOptions, seq_len: int) -> str:
    """The key in the cache file: the device, and a hash of all that the number depends on."""
    device = jax.local_devices()[0].device_kind
    about = [
        repr(model.config),
        str(model.params["embed"].dtype),
        # over how many devices one copy is sharded
        1 if mesh_of(model) is not None else len(devices_of(model)),
        repr(fit.replace(steps=None, epochs=1.0, learning_rate=1.0)),
        repr(dataclasses.replace(options, constraint=None)),
        seq_len,
        jax.__version__,
    ]
    return f"{device} {hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"


def _file() -> Path:
    return cache_folder() / "micro_batch.json"


def _keep(name: str, chains: int) -> int:
    """Store `chains` in the cache file, where it can be written, under a name, and return it."""
    text = json.dumps(_read_kept() | {name: chains}, indent=1)
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_atomic(_file(), text.encode(), durable=False)
    except OSError as error:  # a cache that cannot be written costs time, not the run
        LOGGER.warning("chains per program are not kept: %s (%s)", _file(), error.strerror or error)
    return chains


def _read_kept() -> dict[str, int]:
    try:
        kept = json.loads(_file().read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(kept, dict):
        return {}
    return {name: n for name, n in kept.items() if isinstance(n, int) and n > 0}
