"""How many chains train in one program: measured once per device and shape, kept on disk, halved where memory runs out.

More chains fill an accelerator; on a CPU they fall out of its caches. The number changes no result beyond rounding.
"""

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxloop.lm import adapters, train
from jaxloop.lm.huggingface import Model
from jaxloop.lm.sizes import sizes_of
from jaxloop.lm.spec import init
from jaxloop.lm.target import target_of
from jaxloop.lm.train import FitSettings
from jaxloop.runtime import cost
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.files import cache_folder, write_atomic
from jaxloop.runtime.log import LOGGER

# FLOPs of a generation's fits from which a measurement (some compilations) pays: about a minute's work of either kind of device.
WORTH = {"cpu": 5e12, "other": 1e16}
LIMIT = {"cpu": 4, "other": 64}


def default(platform: str) -> int:
    """Chains in one program before anything is measured: one on a CPU, whose caches hold no more, sixteen elsewhere."""
    return 1 if platform == "cpu" else 16


def choose(model: Model, settings: FitSettings, time_: int, steps: int, chains: int) -> int:
    """Chains in one program: as measured before; measured now, where `chains` chains of `steps` steps of rows of `time_` tokens are worth it;
    else `default`. A measurement is kept in the user's cache folder, so that a run that is resumed takes the same number."""
    platform = platform_of(model.params)
    kind = "cpu" if platform == "cpu" else "other"
    name, known = _name(model, settings, time_), _read()
    if name in known:
        return known[name]
    sizes = sizes_of(model.spec, settings.lora)
    work = cost.training_flops(sizes, chains * steps * settings.batch_size * time_, time_, frozen=settings.mode == "lora")
    if work < WORTH[kind] or chains < 2:
        return default(platform)
    found = measure(model, settings, time_, min(LIMIT[kind], chains))
    best = min(found, key=found.get)
    LOGGER.info("micro-batch: %d chains in one program train fastest here (%s)", best, ", ".join(f"{c}: {1e3 * s:.1f} ms" for c, s in found.items()))
    _file().parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_file(), json.dumps(_read() | {name: best}, indent=1).encode(), durable=False)
    return best


def largest(memory: Callable[[int], int], room: int, most: int) -> tuple[int, dict[int, int]]:
    """(the largest power of two, at most `most`, whose program of as many chains fits `room` bytes, 0 where not even one does; the bytes of those
    that were compiled). `memory` compiles a program and gives its bytes: one and two chains, from which the rest follows, and what they say fits."""
    found = {1: memory(1)}
    if found[1] > room:
        return 0, found
    if most < 2:
        return 1, found
    found[2] = memory(2)
    more = (room - found[1]) // max(1, found[2] - found[1])
    chains = 1 << (min(1 + more, most).bit_length() - 1)
    while chains > 2:
        found[chains] = memory(chains)
        if found[chains] <= room:
            return chains, found
        chains //= 2
    return (2 if found[2] <= room else 1), found


def measure(model: Model, settings: FitSettings, time_: int, most: int, *, repeats: int = 3) -> dict[int, float]:
    """{chains in one program: seconds per step and chain} for 1, 2, 4, ... up to `most`, until more of them are slower or memory runs out."""
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
    steps, shape = settings.steps_per_dispatch, (settings.steps_per_dispatch, chains, settings.batch_size, time_)
    tokens, mask = np.zeros(shape, np.int32), np.ones(shape, bool)
    keys = jax.random.split(jax.random.key(0), chains)
    fresh = jax.vmap(lambda key: init(key, model.spec))(keys) if settings.mode != "lora" else adapters.init(keys, model.spec, settings.lora)
    state, best = train.init_state(settings, fresh, keys), float("inf")
    base = model.params if settings.mode == "lora" else None
    for _ in range(repeats + 1):
        start = time.perf_counter()
        batch = (tokens, mask, np.ones(shape[:3], np.float32), np.int32(steps), np.int32(10**6))
        state, log = train.train_steps(model.spec, settings, base, state, *batch, target=target_of(model.spec, model.params))
        jax.block_until_ready(log)
        best = min(best, time.perf_counter() - start)
    return best / steps


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device ran out of memory."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def halved(error: BaseException, size: int, field: str, hint: str) -> int:
    """Half of `size` after an error that was a lack of memory, said in the log; raises ValueError, with what was asked for, where one is too many."""
    asked = re.search(r"allocat\w* ([\d.]+ ?\w*i?B|\d+ bytes)", str(error))
    what = f" ({asked[1]} asked for)" if asked else ""
    if size <= 1:
        raise ValueError(f"{field} = 1 already, and the device is out of memory{what}; {hint}") from error
    LOGGER.warning("out of memory%s with %s = %d; going on with %d", what, field, size, size // 2)
    return size // 2


def _name(model: Model, settings: FitSettings, time_: int) -> str:
    device = jax.local_devices()[0].device_kind
    about = [repr(model.spec), repr(dataclasses.replace(settings, steps=None, epochs=1.0, learning_rate=1.0, constraint=None)), time_, jax.__version__]
    return f"{device} {hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"


def _file() -> Path:
    return cache_folder() / "micro_batch.json"


def _read() -> dict[str, int]:
    try:
        found = json.loads(_file().read_text(encoding="utf8"))
    except (OSError, ValueError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, int) and v > 0} if isinstance(found, dict) else {}
