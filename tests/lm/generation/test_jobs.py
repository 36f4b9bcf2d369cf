"""How texts become queues, and queues calls."""

import numpy as np
import pytest

from jaxloop.lm.generation import jobs
from jaxloop.lm.generation.slot_plan import plan_slots
from jaxloop.lm.target import Target
from tests.lm.tiny import SAMPLE


@pytest.mark.parametrize(
    "limit, fewest, concurrent, calls",
    [
        (64, 16, 1, 3),
        (64, 16, 2, 4),
        (400, 16, 3, 3),
        (400, 64, 3, 2),
        (400, 100, 3, 1),
        (400, 300, 3, 1),
    ],
)
def test_calls_are_even_and_small_enough_and_cut_few_queues(limit, fewest, concurrent, calls):
    queues = [jobs.Job(i, np.arange(n)) for i, n in enumerate((16,) * 9 + (8, 8, 8))]
    device = jobs.DeviceCall(list(range(12)), queues)
    made = jobs.split_into_calls([device], limit, fewest, concurrent)
    sizes = [device.num_texts for (device,) in made]
    assert len(made) == calls and max(sizes) <= limit and max(sizes) - min(sizes) <= 1
    parts = [job for (device,) in made for job in device.jobs]
    assert len(parts) <= len(queues) + calls - 1
    rows = sorted((job.task, row) for job in parts for row in job.rows.tolist())
    assert rows == [(job.task, row) for job in queues for row in job.rows.tolist()]


def test_a_queue_has_one_prompt_where_groups_hold_one(tiny_model):
    ids = [[(1,), (2,), (1,), (1,), (2,)]]
    blocks, rows = (
        plan_slots(settings, tiny_model.config, Target("cpu"), [5], dtype="float32")
        for settings in (SAMPLE, SAMPLE.replace(engine="rows"))
    )

    def found(plan, shared):
        return [job.rows.tolist() for job in jobs.jobs_of_task(ids, 0, shared, plan)]

    assert found(blocks, True) == [[0, 2, 3], [1, 4]]
    assert found(blocks, False) == found(rows, True) == [[0, 1, 2, 3, 4]]
