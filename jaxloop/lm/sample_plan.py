"""How a call's texts are shared out over a device's slots: how many slots, in which lanes, in jobs of what size.

On a CPU the numbers are fixed. On an accelerator they follow the device and the work: slots are worth having only while there are texts for
them, and a chain's last texts leave its slots idle one by one, so few texts get few slots.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm import row_kernels
from jaxloop.lm.sizes import sizes_of
from jaxloop.lm.spec import Spec

ENGINES = ("auto", "rows", "blocks")
MOST = 1024  # slots at which products with the weights are as fast as they get on an H100; more only hold more cache
LEAST = 64  # and below which a step takes the same time whatever it writes
TEXTS_PER_SLOT = {"rows": 24, "blocks": 48}  # so that the end of a call costs a tenth of it
LANE = {"rows": 16, "blocks": 8}  # slots of a lane where there are no more chains than lanes; a lane that changes chains waits for its last text
ROW_SHARE = 0.6  # of a device's memory for the caches of the slots


@dataclass(frozen=True)
class Plan:
    """engine: "rows" (`decode_rows`: a cache row for each slot, written by kernels) or "blocks" (`decode`). how: what computes the kernels of
    "rows". The numbers: as in `SampleSettings`, none of them 0; texts_per_job None: by what each chain writes."""

    engine: str
    how: str
    slots: int
    lane_slots: int
    texts_per_job: int | None
    texts_per_call: int
    chains_per_call: int

    @property
    def lanes(self) -> int:
        return max(1, self.slots // self.lane_slots)


def plan(settings, spec: Spec, platform: str, texts: Sequence[int], memory: int | None = None) -> Plan:
    """The plan for chains that write `texts` texts each on one device.

    Args:
      settings: `SampleSettings`; every number that is not 0 stays.
      platform: of the device, "cpu", "gpu" or "tpu".
      memory: bytes that programs may use on the device (None: not a limit).
    """
    engine, how = engine_of(settings, spec, platform)
    chains, total = max(1, len(texts)), max(1, sum(texts))
    call = settings.texts_per_call or (4096 if platform == "cpu" and engine == "blocks" else 65536)
    fixed = platform == "cpu" and engine == "blocks"
    together = settings.chains_per_call or (16 if fixed else min(64, _power(chains)))
    slots = settings.slots or (64 if fixed else _slots(settings, spec, engine, min(total, call), memory))
    lane_slots = settings.lane_slots or min(slots, 8 if fixed else max(4, min(LANE[engine], slots // together)))
    job = settings.texts_per_job or (None if platform == "cpu" else lane_slots * TEXTS_PER_SLOT["blocks"] // 2)
    return Plan(engine, how, slots, lane_slots, job, call, together)


def _slots(settings, spec, engine, total, memory):
    wanted = max(LEAST, min(MOST, _power(total // TEXTS_PER_SLOT[engine] + 1) // 2))
    if memory is None:
        return wanted
    width = jnp.dtype(settings.dtype).itemsize
    each = sizes_of(spec).cache * width * row_kernels.cache_length(settings.max_new_tokens)
    # The blocks of the other engine lie in a ring and are gathered beside it.
    fit = int(ROW_SHARE * memory // (each * (1 if engine == "rows" else 2)))
    return max(1, min(wanted, _power(fit + 1) // 2))


def _power(n: int) -> int:
    """The least power of two from n up."""
    return 1 << max(0, n - 1).bit_length()


def engine_of(settings, spec: Spec, platform: str) -> tuple[str, str]:
    """The engine that `settings.engine` chooses on this platform, and what computes its kernels."""
    if settings.engine == "rows" and platform != "gpu":
        return "rows", "plain"
    fits = platform == "gpu" and settings.engine != "blocks" and row_kernels.fits(spec) and kernels_work(settings.dtype, spec.head_size)
    if settings.engine == "rows" and not fits:
        raise ValueError(
            f"sample.engine: 'rows' is not possible with this model on this GPU (head size {spec.head_size}, {settings.dtype}); choose auto or blocks"
        )
    return ("rows", "pallas") if fits else ("blocks", "")


@functools.cache
def kernels_work(dtype: str, head_size: int) -> bool:
    """Whether this process's GPU compiles the kernels for this head size and agrees with jax.numpy (2e-2 in bfloat16, 1e-3 in float32)."""
    try:
        device = jax.local_devices(backend="gpu")[0]
        rng = np.random.default_rng(0)
        number = jnp.dtype(dtype)
        draw = lambda *shape: jax.device_put(jnp.asarray(rng.standard_normal(shape), number), device)  # noqa: E731
        slots, heads, groups, wide = 16, 4, 2, 64
        age = jax.device_put(jnp.arange(slots, dtype=jnp.int32) * 8, device)
        angle = rng.standard_normal((slots, head_size // 2)).astype(np.float32)
        step = row_kernels.Step(age, age // 8, jnp.zeros_like(age), jnp.cos(angle), jnp.sin(angle))
        attention = (
            draw(slots, heads + 2 * groups, head_size), draw(slots, groups, 128, head_size), draw(slots, groups, 128, head_size),
            draw(1, groups, 16, head_size), draw(1, groups, 16, head_size), step,
        )  # fmt: skip
        pool, entry = row_kernels.Pool(draw(2, 1, wide, 16) / 8, draw(2, 16, wide)), jnp.zeros((1,), jnp.int32)
        adapted = (draw(slots, wide), draw(slots, wide), pool, entry)
        attend = jax.jit(lambda how, *args: row_kernels.attend(*args, heads, how=how)[0], static_argnums=0)
        adapt = jax.jit(lambda how, x, y, p, e: row_kernels.adapt(x, y, row_kernels.LaneAdapter(p, e, how), (wide,)), static_argnums=0)
        near = lambda a, b: bool(jnp.allclose(a.astype(jnp.float32), b.astype(jnp.float32), atol=tolerance, rtol=tolerance))  # noqa: E731
        tolerance = 2e-2 if number == jnp.bfloat16 else 1e-3
        return all(near(run("pallas", *args), run("plain", *args)) for run, args in ((attend, attention), (adapt, adapted)))
    except Exception:  # any failure of the probe means the same: use what XLA compiles
        return False


class Job(NamedTuple):
    task: int
    rows: np.ndarray  # positions in the task


class Device(NamedTuple):
    """What one device does in a call: its chains (tasks, in the order of its adapter pool) and its jobs."""

    chains: list[int]
    jobs: list[Job]


def jobs_of(ids, task, shared, plan: Plan) -> list[Job]:
    """A chain's rows cut into jobs, rows with one prompt together where caches are shared. With a cache row for each slot a chain is one job.

    Short jobs let a chain that writes alone fill all lanes, long ones leave fewer slots idle at their ends. A chain's jobs must be the same
    among others, so what counts is how much it writes: one that writes few texts has company as a rule."""
    if plan.engine == "rows":
        size = plan.texts_per_call
        return [Job(task, np.arange(at, min(at + size, len(ids[task])))) for at in range(0, len(ids[task]), size)]
    per_slot = len(ids[task]) // plan.slots
    size = plan.texts_per_job or plan.lane_slots * (min(8, max(2, per_slot)) if per_slot else 8)
    runs: dict[tuple, list[int]] = {}
    for row, prompt in enumerate(ids[task]):
        runs.setdefault(tuple(prompt) if shared else (), []).append(row)
    return [Job(task, np.array(rows[at : at + size])) for rows in runs.values() for at in range(0, len(rows), size)]


def share_out(ids, chosen, shared, plan: Plan, devices) -> list[Device]:
    """Chains to devices: always to the one with the fewest texts so far, chains with most texts first; a device's longest jobs come first."""
    sizes = {task: len(ids[task]) for task in chosen}
    jobs = lambda chains: [job for task in chains for job in jobs_of(ids, task, shared, plan)]  # noqa: E731
    shares = _dealt(sorted(chosen, key=lambda i: -sizes[i]), sizes.get, devices, plan.chains_per_call)
    return [Device(chains, sorted(jobs(chains), key=lambda job: -len(job.rows))) for chains in shares]


def calls(devices: list[Device], limit: int, lanes: int, together: int) -> list[list[Device]]:
    """Cut every device's jobs into calls of at most `limit` texts (a single larger job stays whole), as even as can be. A second call beside
    the first begins where the jobs are more than its lanes."""
    most = max(len(device.jobs) for device in devices)
    together = count = min(together, -(-most // lanes))
    while True:
        pieces = [_dealt(device.jobs, lambda job: len(job.rows), count) for device in devices]
        if count >= most or all(sum(len(job.rows) for job in piece) <= limit for mine in pieces for piece in mine):
            return [[Device(d.chains, mine[k]) for d, mine in zip(devices, pieces)] for k in range(count)]
        count = min(count + together, most)


def _dealt(items, texts, count, most=math.inf) -> list[list]:
    """Items, largest first, each to the piece with the fewest texts so far that holds fewer than `most` items."""
    pieces, load = [[] for _ in range(count)], [0] * count
    for item in items:
        k = min((k for k in range(count) if len(pieces[k]) < most), key=load.__getitem__)
        pieces[k].append(item)
        load[k] += texts(item)
    return pieces
