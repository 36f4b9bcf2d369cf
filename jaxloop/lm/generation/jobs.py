"""How the texts of many chains are distributed: rows to jobs, jobs to devices and to calls."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from jaxloop.lm.generation.slot_plan import SlotPlan

T = TypeVar("T")
# Token ids of the prompts of each task: [task][row][token].
PromptIds = Sequence[Sequence[Sequence[int]]]


class Job(NamedTuple):
    """Texts of one chain: rows [n] of a task."""

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
    """Cut the rows of a chain (a task) into jobs.

    For the engine "rows" a job is as long as a call allows. For "blocks", rows with the same prompt
    are in one job where prompt caches are shared (`shared`), and the length is a compromise: with
    short jobs a chain that generates alone fills all groups, with long ones fewer slots are idle at
    the end of a job. Job boundaries depend only on this chain's number of texts, so that other
    chains do not move them; a chain with few texts is assumed to run beside others.
    """
    num_rows = len(prompt_ids[task])
    if plan.engine == "rows":
        size = plan.texts_per_call
        return [Job(task, np.arange(a, min(a + size, num_rows))) for a in range(0, num_rows, size)]
    size = plan.texts_per_job or _job_size(num_rows, plan)
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompt_ids[task]):
        by_prompt.setdefault(tuple(prompt) if shared else (), []).append(row)
    return [
        Job(task, np.array(rows[at : at + size]))
        for rows in by_prompt.values()
        for at in range(0, len(rows), size)
    ]


def _job_size(num_rows: int, plan: SlotPlan) -> int:
    texts_per_slot = num_rows // plan.slots
    if texts_per_slot == 0:
        return 8 * plan.slots_per_adapter
    return min(8, max(2, texts_per_slot)) * plan.slots_per_adapter


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
    devices: Sequence[DeviceCall], max_texts: int, num_groups: int, concurrent: int
) -> list[list[DeviceCall]]:
    """Cut every device's jobs into calls of at most `max_texts` texts, as even as possible.

    A job is never cut, even if it has more texts.

    Args:
        devices: all jobs of each device.
        max_texts: most texts of a call on one device.
        num_groups: adapter groups of the program. Jobs are only split over several concurrent calls
            if there are more jobs than groups.
        concurrent: most calls that run at the same time.
    """
    most_jobs = max(len(device.jobs) for device in devices)
    concurrent = min(concurrent, -(-most_jobs // num_groups))
    count = concurrent
    while True:
        pieces = [_deal(device.jobs, lambda job: len(job.rows), count) for device in devices]
        calls = [
            [DeviceCall(device.chains, jobs[k]) for device, jobs in zip(devices, pieces)]
            for k in range(count)
        ]
        fits = all(device.num_texts <= max_texts for call in calls for device in call)
        if fits or count >= most_jobs:
            return calls
        count = min(count + concurrent, most_jobs)


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
