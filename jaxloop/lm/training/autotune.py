"""How many chains train in one program: on a CPU measured once per shape and kept on disk; on an
accelerator as many as the compiler says fit.

More chains fill an accelerator; on a CPU they fall out of its caches. The number changes no result
beyond rounding. Where memory runs out all the same, it is halved.
"""

import dataclasses
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.lm.model.config import init
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.sharding import device_bytes, devices_of, mesh_of
from jaxloop.lm.target import target_of
from jaxloop.lm.training import step as train_step
from jaxloop.lm.training.step import FitSettings
from jaxloop.runtime import roofline
from jaxloop.runtime.atomic_io import cache_folder, human_size, write_atomic
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.log import LOGGER

# FLOPs of a generation's fits from which a measurement (some compilations) pays: about a minute's
# work of a CPU.
WORTH = 5e12
LIMIT = {"cpu": 4, "other": 64}
SPARE = 0.95  # of an accelerator's memory: its allocator cannot fill every gap


def default(platform: str) -> int:
    """Chains in one program before anything is measured or compiled: one on a CPU, whose caches
    hold no more, sixteen elsewhere.
    """
    return 1 if platform == "cpu" else 16


def choose(model: Model, settings: FitSettings, time_: int, steps: int, chains: int) -> int:
    """Chains in one program. On an accelerator: as many as fit (see `fitting`). On a CPU: as
    measured before; measured now, where `chains` chains of `steps` steps of rows of `time_` tokens
    are worth it; else `default`. A number that took work is kept in the user's cache folder, so
    that a run that is resumed takes the same one.
    """
    platform = platform_of(model.params)
    name, known = _name(model, settings, time_), _read()
    if name in known:
        return known[name]
    if platform != "cpu":
        mesh = mesh_of(model)
        most = min(LIMIT["other"], -(-chains // (1 if mesh is None else mesh.size)))
        best, compiled = fitting(model, settings, time_, most, room(model))
        return _keep(name, best) if compiled else best
    sizes = sizes_of(model.spec, settings.lora)
    work = roofline.training_flops(
        sizes, chains * steps * settings.batch_size * time_, time_, frozen=settings.mode == "lora"
    )
    if work < WORTH or chains < 2:
        return default(platform)
    found = measure(model, settings, time_, min(LIMIT["cpu"], chains))
    best = min(found, key=found.get)
    LOGGER.info(
        "micro-batch: %d chains in one program train fastest here (%s)",
        best,
        ", ".join(f"{c}: {1e3 * s:.1f} ms" for c, s in found.items()),
    )
    return _keep(name, best)


def room(model: Model) -> int:
    """Bytes of each accelerator that holds the base, for a training program and the base itself:
    what other arrays have there is not among them.
    """
    found = []
    for device in devices_of(model):
        base = sum(
            s.data.nbytes
            for leaf in jax.tree.leaves(model.params)
            for s in leaf.addressable_shards
            if s.device == device
        )
        used = (device.memory_stats() or {}).get("bytes_in_use", base)
        found.append(int(SPARE * device_bytes(device)) - max(0, used - base))
    return min(found)


def fitting(
    model: Model, settings: FitSettings, time_: int, most: int, room: int
) -> tuple[int, int]:
    """(chains in one program, at most `most`, whose compiled program needs no more than `room`
    bytes a device; how many programs were compiled).

    The compiler says what a program needs before it runs, and the one that is chosen is in the
    cache of compiled programs when training asks for it. Where `most` chains fit by far, by
    arithmetic, nothing is compiled. At least 1: whether that fits too is seen when it runs.
    """
    common = dict(
        base_width=max(leaf.dtype.itemsize for leaf in jax.tree.leaves(model.params)),
        frozen=settings.mode == "lora",
        remat=settings.remat,
    )
    width, sizes = (
        np.dtype(settings.dtype).itemsize if settings.dtype == "float32" else 2,
        sizes_of(model.spec, settings.lora),
    )
    if (
        most == 1
        or 4
        * roofline.training_memory(sizes, most, settings.batch_size, time_, width=width, **common)
        < room
    ):
        return most, 0
    best, found = largest(functools.partial(_program_bytes, model, settings, time_), room, most)
    said = ", ".join(f"{c}: {human_size(size)}" for c, size in sorted(found.items()))
    LOGGER.info(
        "micro-batch: %d chains in one program fit the %s that are free (%s)",
        max(1, best),
        human_size(room),
        said,
    )
    return max(1, best), len(found)


def _program_bytes(model, settings, time_, chains) -> int:
    """Bytes of a device that the training program of `chains` chains needs, by the compiler; more
    than there can be where it refuses for memory.
    """
    from jaxloop.lm import programs  # which imports this module

    program = programs.training_of(
        model, dataclasses.replace(settings, constraint=None), chains, time_
    )
    try:
        return programs.memory(program.lower().compile())
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return 1 << 62


def _keep(name: str, best: int) -> int:
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_file(), json.dumps(_read() | {name: best}, indent=1).encode(), durable=False)
    return best


def largest(memory: Callable[[int], int], room: int, most: int) -> tuple[int, dict[int, int]]:
    """(`most`, or the largest power of two below it, whose program of as many chains fits `room`
    bytes, 0 where not even one does; the bytes of those that were compiled). `memory` compiles a
    program and gives its bytes: one and two chains, from which the rest follows, and what they say
    fits.
    """
    found = {1: memory(1)}
    if found[1] > room:
        return 0, found
    if most < 2:
        return 1, found
    found[2] = memory(2)
    more = (room - found[1]) // max(1, found[2] - found[1])
    chains = most if 1 + more >= most else _power(1 + more)
    while chains > 2:
        found[chains] = memory(chains)
        if found[chains] <= room:
            return chains, found
        chains = _power(chains - 1)
    return (2 if found[2] <= room else 1), found


def _power(number: int) -> int:
    """The largest power of two that is no larger."""
    return 1 << (number.bit_length() - 1)


def measure(
    model: Model, settings: FitSettings, time_: int, most: int, *, repeats: int = 3
) -> dict[int, float]:
    """{chains in one program: seconds per step and chain} for 1, 2, 4, ... up to `most`, until more
    of them are slower or memory runs out.
    """
    found: dict[int, float] = {}
    chains = 1
    while chains <= most:
        try:
            found[chains] = _seconds(model, settings, time_, chains, repeats) / chains
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error) or not found:
                raise
            break
        if len(found) > 1 and found[chains] > 0.97 * found[chains // 2]:
            break
        chains *= 2
    return found


def _seconds(model, settings, time_, chains, repeats):
    settings = dataclasses.replace(settings, constraint=None)
    steps, shape = (
        settings.steps_per_dispatch,
        (settings.steps_per_dispatch, chains, settings.batch_size, time_),
    )
    tokens, mask = np.zeros(shape, np.int32), np.ones(shape, bool)
    keys = jax.random.split(jax.random.key(0), chains)
    fresh = (
        jax.vmap(lambda key: init(key, model.spec))(keys)
        if settings.mode != "lora"
        else lora.init(keys, model.spec, settings.lora)
    )
    state, best = train_step.init_state(settings, fresh, keys), float("inf")
    base = model.params if settings.mode == "lora" else None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        batch = (tokens, mask, np.ones(shape[:3], np.float32), np.int32(steps), np.int32(10**6))
        state, log = train_step.train_steps(
            model.spec, settings, base, state, *batch, target=target_of(model.spec, model.params)
        )
        jax.block_until_ready(log)
        best = min(best, time.perf_counter() - start)
    return best / steps


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def halved(error: BaseException, size: int, field: str, hint: str) -> int:
    """Half of `size` after an error that was a lack of memory, said in the log; raises ValueError,
    with what was asked for, where one is too many.
    """
    asked = re.search(r"allocat\w* ([\d.]+ ?\w*i?B|\d+ bytes)", str(error))
    what = f" ({asked[1]} asked for)" if asked else ""
    if size <= 1:
        raise ValueError(
            f"{field} = 1 already, and the device is out of memory{what}; {hint}"
        ) from error
    LOGGER.warning("out of memory%s with %s = %d; going on with %d", what, field, size, size // 2)
    return size // 2


def _name(model: Model, settings: FitSettings, time_: int) -> str:
    device = jax.local_devices()[0].device_kind
    about = [
        repr(model.spec),
        repr(
            dataclasses.replace(
                settings, steps=None, epochs=1.0, learning_rate=1.0, constraint=None
            )
        ),
        time_,
        jax.__version__,
    ]
    return f"{device} {hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"


def _file() -> Path:
    return cache_folder() / "micro_batch.json"


def _read() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return (
        {k: v for k, v in found.items() if isinstance(v, int) and v > 0}
        if isinstance(found, dict)
        else {}
    )
