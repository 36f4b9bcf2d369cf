"""How a call's texts are shared out over a device's slots: how many slots, in which lanes, in jobs
of what size.

On a CPU the numbers are fixed. On an accelerator they follow the device and the work: slots are
worth having only while there are texts for them, and a chain's last texts leave its slots idle one
by one, so few texts get few slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxloop.lm.generation import row_kernels
from jaxloop.lm.model.config import Spec
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.target import Target

ENGINES = ("auto", "rows", "blocks")
# slots at which products with the weights are as fast as they get on an H100; more only hold more
# cache
MOST = 1024
LEAST = 64  # and below which a step takes the same time whatever it writes
TEXTS_PER_SLOT = {"rows": 24, "blocks": 48}  # so that the end of a call costs a tenth of it
LANE = {
    "rows": 16,
    "blocks": 8,
}  # slots of a lane where there are no more chains than lanes; a lane that changes chains waits for its last text
ROW_SHARE = 0.6  # of a device's memory for the caches of the slots
PROMPT_SHARE = 0.1  # and for those of prompts that only one text has


@dataclass(frozen=True)
class Plan:
    """engine: "rows" (`decode_rows`: a cache row for each slot) or "blocks" (`decode`). how: what
    computes the kernels of "rows". The numbers: as in `SampleSettings`, none of them 0;
    texts_per_job None: by what each chain writes. target: of all its programs.
    """

    target: Target
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


def plan(
    settings,
    spec: Spec,
    target: Target,
    texts: Sequence[int],
    memory: int | None = None,
    own_prompts: int = 0,
) -> Plan:
    """The plan for chains that write `texts` texts each on one device.

    Args:
      settings: `SampleSettings`; every number that is not 0 stays.
      target: what the programs are made for.
      memory: bytes that programs may use on the device (None: not a limit).
      own_prompts: tokens (padded) of the texts' prompts where each has its own, whose cache a call
      holds until it ends; 0 where they share a few.
    """
    engine, how = engine_of(settings, spec, target)
    fixed = target.platform == "cpu" and engine == "blocks"
    chains, total = max(1, len(texts)), max(1, sum(texts))
    call = settings.texts_per_call or (4096 if fixed else 65536)
    if own_prompts and not fixed and not settings.texts_per_call:
        call = _calls_with_prompts(settings, spec, own_prompts, memory)
    together = settings.chains_per_call or (16 if fixed else min(64, _power(chains)))
    slots = settings.slots or (
        64 if fixed else _slots(settings, spec, engine, min(total, call), memory)
    )
    lane_slots = settings.lane_slots or min(
        slots, 8 if fixed else max(4, min(LANE[engine], slots // together))
    )
    job = settings.texts_per_job or (
        None if target.platform == "cpu" else lane_slots * TEXTS_PER_SLOT["blocks"] // 2
    )
    return Plan(target, engine, how, slots, lane_slots, job, call, together)


def _slots(settings, spec, engine, total, memory):
    wanted = max(LEAST, min(MOST, _power(total // TEXTS_PER_SLOT[engine] + 1) // 2))
    if memory is None:
        return wanted
    width = jnp.dtype(settings.dtype).itemsize
    each = sizes_of(spec).cache * width * row_kernels.cache_length(settings.max_new_tokens)
    # The blocks of the other engine lie in a ring and are gathered beside it.
    fit = int(ROW_SHARE * memory // (each * (1 if engine == "rows" else 2)))
    return max(1, min(wanted, _power(fit + 1) // 2))


def _calls_with_prompts(settings, spec, tokens, memory):
    """Texts of a call whose prompts have caches of their own."""
    fit = (
        math.inf
        if memory is None
        else PROMPT_SHARE
        * memory
        / (sizes_of(spec).cache * jnp.dtype(settings.dtype).itemsize * tokens)
    )
    return max(LEAST, int(min(4096, fit)))


def _power(n: int) -> int:
    """The least power of two from n up."""
    return 1 << max(0, n - 1).bit_length()


def engine_of(settings, spec: Spec, target: Target) -> tuple[str, str]:
    """The engine that `settings.engine` chooses for a target, and what computes its kernels."""
    if target.platform == "tpu":
        return ("blocks", "") if settings.engine == "blocks" else ("rows", "ring")
    if settings.engine == "rows" and target.platform == "cpu":
        return "rows", "plain"
    fits = settings.engine != "blocks" and target.rows and row_kernels.fits(spec)
    if settings.engine == "rows" and not fits:
        raise ValueError(
            "sample.engine: 'rows' is not possible with this model on this GPU (head size "
            f"{spec.head_size}, {settings.dtype}); choose auto or blocks"
        )
    return ("rows", "pallas") if fits else ("blocks", "")


class Job(NamedTuple):
    task: int
    rows: np.ndarray  # positions in the task


class Device(NamedTuple):
    """What one device does in a call: its chains (tasks, in the order of its adapter pool) and its
    jobs.
    """

    chains: list[int]
    jobs: list[Job]


def jobs_of(ids, task, shared, plan: Plan) -> list[Job]:
    """A chain's rows cut into jobs, rows with one prompt together where caches are shared. With a
    cache row for each slot a chain is one job.

    Short jobs let a chain that writes alone fill all lanes, long ones leave fewer slots idle at
    their ends. A chain's jobs must be the same among others, so what counts is how much it writes:
    one that writes few texts has company as a rule.
    """
    if plan.engine == "rows":
        size = plan.texts_per_call
        return [
            Job(task, np.arange(at, min(at + size, len(ids[task]))))
            for at in range(0, len(ids[task]), size)
        ]
    per_slot = len(ids[task]) // plan.slots
    size = plan.texts_per_job or plan.lane_slots * (min(8, max(2, per_slot)) if per_slot else 8)
    runs: dict[tuple, list[int]] = {}
    for row, prompt in enumerate(ids[task]):
        runs.setdefault(tuple(prompt) if shared else (), []).append(row)
    return [
        Job(task, np.array(rows[at : at + size]))
        for rows in runs.values()
        for at in range(0, len(rows), size)
    ]


def share_out(ids, chosen, shared, plan: Plan, devices) -> list[Device]:
    """Chains to devices: always to the one with the fewest texts so far, chains with most texts
    first; a device's longest jobs come first.
    """
    sizes = {task: len(ids[task]) for task in chosen}
    jobs = lambda chains: [job for task in chains for job in jobs_of(ids, task, shared, plan)]  # noqa: E731
    shares = _dealt(
        sorted(chosen, key=lambda i: -sizes[i]), sizes.get, devices, plan.chains_per_call
    )
    return [
        Device(chains, sorted(jobs(chains), key=lambda job: -len(job.rows))) for chains in shares
    ]


def calls(devices: list[Device], limit: int, lanes: int, together: int) -> list[list[Device]]:
    """Cut every device's jobs into calls of at most `limit` texts (a single larger job stays
    whole), as even as can be. A second call beside the first begins where the jobs are more than
    its lanes.
    """
    most = max(len(device.jobs) for device in devices)
    together = count = min(together, -(-most // lanes))
    while True:
        pieces = [_dealt(device.jobs, lambda job: len(job.rows), count) for device in devices]
        if count >= most or all(
            sum(len(job.rows) for job in piece) <= limit for mine in pieces for piece in mine
        ):
            return [
                [Device(d.chains, mine[k]) for d, mine in zip(devices, pieces)]
                for k in range(count)
            ]
        count = min(count + together, most)


def _dealt(items, texts, count, most=math.inf) -> list[list]:
    """Items, largest first, each to the piece with the fewest texts so far that holds fewer than
    `most` items.
    """
    pieces, load = [[] for _ in range(count)], [0] * count
    for item in items:
        k = min((k for k in range(count) if len(pieces[k]) < most), key=load.__getitem__)
        pieces[k].append(item)
        load[k] += texts(item)
    return pieces
