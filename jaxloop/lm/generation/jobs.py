"""How the texts of many chains are distributed: to queues (jobs), devices and calls."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxloop.lm.generation.slot_plan import SlotPlan

T = TypeVar("T")
# Token ids of the prompts of each task: [task][row][token].
PromptIds = Sequence[Sequence[Sequence[int]]]


class Job(NamedTuple):
    """A queue of texts of one chain: rows [n] of a task."""

    task: int
    rows: np.ndarray


class DeviceCall(NamedTuple):
    """What one device does in a call.

    Attributes:
        chains: its chains (numbers of tasks) in the order of their adapters.
        jobs: its jobs.
    """

    chains: list[int]
    jobs: list[Job]

    @property
    def num_texts(self) -> int:
        return sum(len(job.rows) for job in self.jobs)


def jobs_of_task(prompt_ids: PromptIds, task: int, shared: bool, plan: SlotPlan) -> list[Job]:
    """Return the queues of a chain (a task).

    That is one, but where the engine is "blocks" and prompt caches are shared (`shared`): there
    the rows of a queue have the same prompt.
    """
    num_rows = len(prompt_ids[task])
    if plan.engine == "rows" or not shared:
        return [Job(task, np.arange(num_rows))] if num_rows else []
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompt_ids[task]):
        by_prompt.setdefault(tuple(prompt), []).append(row)
    return [Job(task, np.array(rows)) for rows in by_prompt.values()]


def share_out(
    prompt_ids: PromptIds, tasks: Sequence[int], shared: bool, plan: SlotPlan, num_devices: int
) -> list[DeviceCall]:
    """Give each device its chains and their jobs.

    The chain with most texts goes first, always to the device with the fewest texts so far. A
    device's longest jobs come first.
    """

    def texts_of(task: int) -> int:
        return len(prompt_ids[task])

    by_size = sorted(tasks, key=lambda task: -texts_of(task))
    shares = _deal(by_size, texts_of, num_devices, plan.chains_per_call)
    devices = []
    for chains in shares:
        jobs = [job for task in chains for job in jobs_of_task(prompt_ids, task, shared, plan)]
        devices.append(DeviceCall(chains, sorted(jobs, key=lambda job: -len(job.rows))))
    return devices


def split_into_calls(
    devices: Sequence[DeviceCall], max_texts: int, fewest: int, concurrent: int
) -> list[list[DeviceCall]]:
    """Cut every device's queues into calls of equally many texts.

    A queue is cut where a call is full, so that most chains are in one call only.

    Args:
        devices: all jobs of each device.
        max_texts: most texts of a call on one device.
        fewest: fewest texts of a call that runs beside others.
        concurrent: most calls that run at the same time.
    """
    most = max(device.num_texts for device in devices)
    concurrent = max(1, min(concurrent, most // fewest))
    count = concurrent * max(1, -(-most // (concurrent * max_texts)))
    pieces = [_cut(device.jobs, count) for device in devices]
    return [
        [DeviceCall(device.chains, jobs[k]) for device, jobs in zip(devices, pieces, strict=True)]
        for k in range(count)
    ]


def _cut(jobs: Sequence[Job], count: int) -> list[list[Job]]:
    """Cut jobs, in their order, into `count` pieces whose numbers of texts differ by 1 at most."""
    ends = np.cumsum([len(job.rows) for job in jobs], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    bounds = [total * k // count for k in range(count + 1)]
    pieces = []
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        parts = [
            Job(job.task, job.rows[max(0, first - start) : max(0, last - start)])
            for job, start in zip(jobs, ends - [len(job.rows) for job in jobs], strict=True)
        ]
        pieces.append([part for part in parts if len(part.rows)])
    return pieces


def _deal(
    items: Sequence[T], size: Callable[[T], int], count: int, most: float = math.inf
) -> list[list[T]]:
    """Deal items, largest first, into `count` pieces of similar size.

    Each item goes to the piece with the smallest sum so far that holds fewer than `most` items.
    """
    pieces: list[list[T]] = [[] for _ in range(count)]
    load = [0] * count
    for item in items:
        k = min((k for k in range(count) if len(pieces[k]) < most), key=load.__getitem__)
        pieces[k].append(item)
        load[k] += size(item)
    return pieces
