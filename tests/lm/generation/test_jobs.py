"""How texts are cut into jobs, and jobs into calls."""

import numpy as np
import pytest

from jaxloop.lm.generation import jobs
from jaxloop.lm.generation.slot_plan import plan_slots
from jaxloop.lm.target import Target
from tests.lm.tiny import SAMPLE


@pytest.mark.parametrize(
    "limit, groups, concurrent, calls",
    [(64, 2, 1, 3), (64, 2, 2, 4), (400, 2, 3, 3), (400, 8, 3, 2), (400, 12, 3, 1)],
)
def test_jobs_are_dealt_to_calls_that_are_even_and_small_enough(limit, groups, concurrent, calls):
    some_jobs = [jobs.Job(0, np.arange(n)) for n in (16,) * 9 + (8, 8, 8)]
    device = jobs.DeviceCall([0], some_jobs)
    made = jobs.split_into_calls([device], limit, groups, concurrent)
    sizes = [sum(len(job.rows) for job in device.jobs) for (device,) in made]
    assert (
        len(made) == calls
        and sum(sizes) == 168
        and max(sizes) <= limit
        and max(sizes) - min(sizes) <= 16
    )


@pytest.mark.parametrize(
    "texts, sizes", [(7, {7}), (8, {8}), (20, {8, 4}), (63, {28, 7}), (400, {32, 16})]
)
def test_a_chain_that_writes_more_than_there_are_slots_is_cut_into_jobs(tiny_model, texts, sizes):
    sample = SAMPLE.replace(texts_per_job=None)
    plan = plan_slots(sample, tiny_model.config, Target(), [texts], dtype="float32")
    found = jobs.jobs_of_task([[(1,)] * texts], 0, True, plan)
    assert {len(job.rows) for job in found} == sizes
