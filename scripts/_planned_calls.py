"""Calls of a decoding program as `scheduler.generate` plans them, for texts of given lengths."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.lm.generation.jobs import share_out, split_into_calls
from jaxloop.lm.generation.slot_plan import SlotPlan
from jaxloop.lm.generation.slots import Jobs, Requests


class PlannedCall(NamedTuple):
    """A call: its arrays, and the length that each text will have [n]."""

    requests: Requests
    jobs: Jobs
    lengths: np.ndarray


def planned_calls(
    plan: SlotPlan, lengths: Sequence[np.ndarray], concurrent: int = 1, padded: bool = False
) -> Iterator[PlannedCall]:
    """The calls of chains whose texts have `lengths`, all of a chain with one prompt.

    Args:
        plan: slots, adapter groups and sizes of calls.
        lengths: of the texts of each chain.
        concurrent: most calls that run at the same time.
        padded: whether all calls have arrays of one size, and so one program.
    """
    ids = [[(1,)] * len(of_chain) for of_chain in lengths]
    for at in range(0, len(lengths), plan.chains_per_call):
        chosen = list(range(at, min(len(lengths), at + plan.chains_per_call)))
        devices = share_out(ids, chosen, True, plan, 1)
        for (device,) in split_into_calls(
            devices, plan.texts_per_call, plan.texts_per_program, concurrent
        ):
            limit = np.concatenate([lengths[job.task][job.rows] for job in device.jobs])
            limit = limit.astype(np.int32)
            sizes = [len(job.rows) for job in device.jobs]
            ends = np.cumsum(sizes).astype(np.int32)
            chain = np.array([device.chains.index(job.task) for job in device.jobs], np.int32)
            columns = (np.concatenate([[0], ends[:-1]]).astype(np.int32), ends, chain)
            prompt = np.repeat(chain, sizes)
            keys = jax.random.key_data(jax.random.split(jax.random.key(at), len(limit)))
            requests = Requests(prompt, np.asarray(keys), limit)
            jobs = Jobs(*columns)
            if padded:
                requests = Requests(*(_padded(x, plan.texts_per_call) for x in requests))
                jobs = Jobs(*(_padded(x, plan.jobs_per_call) for x in jobs))
            yield PlannedCall(requests, jobs, limit)


def _padded(x: ArrayLike, count: int) -> np.ndarray:
    x = np.asarray(x)
    more = max(0, count - len(x))
    return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)])
