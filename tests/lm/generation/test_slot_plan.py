"""Slots, lanes, jobs and calls: the plan, and that slots are busy where the plan says so."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop.lm.generation.scheduler import SampleSettings, SampleTask, sample
from jaxloop.lm.generation.slot_plan import calls, engine_of, plan, share_out
from jaxloop.lm.model.config import Spec
from jaxloop.lm.target import Target, complete

LLAMA_1B = Spec(
    "llama",
    vocab=128256,
    width=2048,
    layers=16,
    heads=32,
    kv_heads=8,
    head_size=64,
    mlp=8192,
    context=4096,
)
DEFAULT = SampleSettings(dtype="bfloat16")


def test_on_a_cpu_nothing_follows_the_work():
    for texts in ([3], [4000] * 64):
        made = plan(SampleSettings(), LLAMA_1B, Target("cpu"), texts)
        assert (
            made.engine,
            made.slots,
            made.lane_slots,
            made.texts_per_call,
            made.chains_per_call,
        ) == ("blocks", 64, 8, 4096, 16)


@pytest.mark.parametrize(
    "chains, slots, lane_slots",
    [(1, 128, 16), (4, 512, 16), (16, 1024, 16), (64, 1024, 16), (100, 1024, 16)],
)
def test_slots_follow_the_texts(chains, slots, lane_slots):
    made = plan(
        dataclasses.replace(DEFAULT, engine="rows"),
        LLAMA_1B,
        Target("cpu"),
        [4000] * chains,
        memory=80 * 10**9,
    )
    assert (made.slots, made.lane_slots) == (slots, lane_slots) and made.chains_per_call == min(
        64, 1 << (chains - 1).bit_length()
    )


def test_slots_follow_the_memory():
    """A slot of 320 tokens holds 16 layers x 8 heads x 64 x 2 x 2 bytes x 320 = 10.5 MB of cache:
    16 GB hold 512 with 0.6 of it, 80 GB more than are of use.
    """
    rows = dataclasses.replace(DEFAULT, engine="rows")
    assert [
        plan(rows, LLAMA_1B, Target("cpu"), [4000] * 64, memory=m * 10**9).slots
        for m in (4, 16, 80)
    ] == [128, 512, 1024]


def test_calls_are_small_where_every_text_has_its_own_prompt():
    """512 tokens of a prompt are 16.8 MB of cache: a tenth of 80 GB holds 476 of them."""
    made = [
        plan(
            dataclasses.replace(DEFAULT, engine="rows"),
            LLAMA_1B,
            Target(),
            [4000] * 16,
            80 * 10**9,
            own,
        )
        for own in (0, 16, 512)
    ]
    assert [m.texts_per_call for m in made] == [65536, 4096, 476] and made[2].slots == 64


def test_what_is_given_stays():
    asked = dataclasses.replace(
        DEFAULT, slots=96, lane_slots=12, texts_per_job=40, texts_per_call=1000, chains_per_call=3
    )
    made = plan(asked, LLAMA_1B, Target("tpu"), [4000] * 64)
    assert (
        made.slots,
        made.lane_slots,
        made.texts_per_job,
        made.texts_per_call,
        made.chains_per_call,
    ) == (96, 12, 40, 1000, 3)


def test_engines():
    assert (
        engine_of(DEFAULT, LLAMA_1B, Target("cpu"))
        == ("blocks", "")
        == engine_of(DEFAULT, LLAMA_1B, Target("gpu"))
    )
    assert engine_of(DEFAULT, LLAMA_1B, complete("gpu")) == ("rows", "pallas") and engine_of(
        DEFAULT, LLAMA_1B, Target("tpu")
    ) == ("rows", "ring")
    assert engine_of(dataclasses.replace(DEFAULT, engine="rows"), LLAMA_1B, Target("cpu")) == (
        "rows",
        "plain",
    )
    with pytest.raises(
        ValueError, match="sample.engine: 'paged' is not allowed; choose one of auto, rows, blocks"
    ):
        SampleSettings(engine="paged")
    with pytest.raises(
        ValueError, match="sample.engine: 'rows' is not possible with this model on this GPU"
    ):
        engine_of(
            dataclasses.replace(DEFAULT, engine="rows"),
            dataclasses.replace(LLAMA_1B, head_size=80),
            complete("gpu"),
        )


def test_every_text_is_written_once_in_calls_that_are_small_enough():
    made = plan(dataclasses.replace(DEFAULT, engine="rows"), LLAMA_1B, Target("cpu"), [4000] * 20)
    ids = [[(1,)] * 4000] * 20
    parts = calls(
        share_out(ids, list(range(20)), True, made, 1), made.texts_per_call, made.lanes, 1
    )
    rows = sorted(
        (job.task, int(row)) for (device,) in parts for job in device.jobs for row in job.rows
    )
    assert rows == [(task, row) for task in range(20) for row in range(4000)]
    assert (
        max(sum(len(job.rows) for job in device.jobs) for (device,) in parts) <= made.texts_per_call
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "chains, texts, slots, least",
    [(1, 4000, 0, 0.90), (16, 4000, 0, 0.90), (64, 512, 1024, 0.80), (64, 128, 0, 0.80)],
)
def test_slots_are_busy(chains, texts, slots, least):
    """The real decoder on a toy model, lengths with mean 60 and a tail to 300. 64 chains x 4,000
    texts run as calls of 16 chains.
    """
    script = Path(__file__).parents[3] / "scripts" / "bench_occupancy.py"
    flags = [f"--chains={chains}", f"--texts={texts}", f"--slots={slots}"]
    done = subprocess.run(
        [sys.executable, script, *flags], capture_output=True, text=True, check=True
    )
    (row,) = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert row["occupancy"] >= least


def test_a_prompt_longer_than_its_padding_is_refused():
    """Before anything is compiled: a model without weights will do."""
    tokenizer = SimpleNamespace(
        bos=0, eos=0, encode=lambda texts, **_: [[1] * len(text) for text in texts]
    )
    model = SimpleNamespace(tokenizer=tokenizer, spec=LLAMA_1B, name="m", params=None)
    with pytest.raises(
        ValueError, match="^sample.max_prompt: 2 is not allowed; the longest prompt has 5 tokens$"
    ):
        sample(
            model,
            [SampleTask(None, None, ["ab", "abcde"], np.arange(2))],
            SampleSettings(max_prompt=2),
        )
