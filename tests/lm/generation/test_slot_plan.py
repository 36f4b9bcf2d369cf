"""Slots, adapter groups, jobs and calls: the plan, and that slots are busy where it says so."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxloop.accelerators import cards
from jaxloop.config import SampleConfig
from jaxloop.lm.generation import row_attention
from jaxloop.lm.generation.jobs import share_out, split_into_calls
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.scheduler import generate
from jaxloop.lm.generation.slot_plan import choose_engine, plan_slots
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.target import Target, complete
from jaxloop.recursion.family import GenerateTask

LLAMA_1B = ModelConfig(
    "llama",
    vocab_size=128256,
    d_model=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    d_ff=8192,
    max_seq_len=4096,
)
TINY = dataclasses.replace(LLAMA_1B, vocab_size=4096, d_model=128, num_layers=4, d_ff=256)
DEFAULT = SampleConfig()
ROWS = SampleConfig(engine="rows")


def plan(sample, target, texts, **more):
    return plan_slots(sample, LLAMA_1B, target, texts, dtype="bfloat16", **more)


def engine(sample, target, config=LLAMA_1B, dtype="bfloat16"):
    return choose_engine(sample, config, target, dtype)


def test_on_a_cpu_only_places_for_adapters_of_small_bases_follow_the_work():
    for config, texts, chains in (
        (LLAMA_1B, [3], 16),
        (LLAMA_1B, [4000] * 64, 16),
        (TINY, [3], 16),
        (TINY, [64] * 36, 48),
        (TINY, [4000] * 100, 64),
    ):
        made = plan_slots(DEFAULT, config, Target("cpu"), texts, dtype="bfloat16")
        assert (
            made.engine,
            made.slots,
            made.slots_per_adapter,
            made.texts_per_call,
            made.chains_per_call,
        ) == ("blocks", 64, 8, 4096, chains)


def test_a_text_waits_less_where_it_begins_at_a_window_only():
    assert plan(DEFAULT, Target("cpu"), [100]).window == 8
    assert plan(ROWS, Target("cpu"), [100]).window == 16


@pytest.mark.parametrize(
    "config, longest, platform, window",
    [
        (LLAMA_1B, 64, "cpu", 4),
        (LLAMA_1B, 65, "cpu", 8),
        (LLAMA_1B, 64, "gpu", 8),
        (dataclasses.replace(TINY, num_layers=1), 64, "cpu", 8),
    ],
    ids=["short", "long", "accelerator", "small base"],
)
def test_short_texts_of_a_slow_base_wait_half_as_long(config, longest, platform, window):
    sample = SampleConfig(max_new_tokens=longest, engine="blocks")
    target = Target(platform)
    made = plan_slots(sample, config, target, [100], dtype="float32", memory=80 * 10**9)
    assert made.window == window


@pytest.mark.parametrize(
    "layers, texts, calls", [(4, 128, 2), (16, 128, 1), (16, 895, 1), (16, 896, 2), (16, 10**4, 4)]
)
def test_few_texts_of_a_large_base_share_one_program(layers, texts, calls):
    config = dataclasses.replace(TINY if layers == 4 else LLAMA_1B, num_layers=layers)
    made = plan_slots(DEFAULT, config, Target("cpu"), [texts], dtype="float32")
    devices = share_out([[(1,)] * texts], [0], True, made, 1)
    parts = split_into_calls(devices, made.texts_per_call, made.texts_per_program, 2)
    assert len(parts) == calls


@pytest.mark.parametrize(
    "chains, slots, slots_per_adapter",
    [(1, 128, 16), (4, 512, 16), (16, 1024, 16), (64, 1024, 16), (100, 1024, 16)],
)
def test_slots_follow_the_texts(chains, slots, slots_per_adapter):
    made = plan(ROWS, Target("cpu"), [4000] * chains, memory=80 * 10**9)
    assert (made.slots, made.slots_per_adapter) == (
        slots,
        slots_per_adapter,
    ) and made.chains_per_call == min(64, 1 << (chains - 1).bit_length())


def test_slots_follow_the_memory():
    """A slot of 320 tokens holds 16 layers x 8 heads x 64 x 2 x 2 bytes x 320 = 10.5 MB of cache:
    16 GB hold 512 with 0.6 of it, 80 GB more than are of use.
    """
    assert [
        plan(ROWS, Target("cpu"), [4000] * 64, memory=m * 10**9).slots for m in (4, 16, 80)
    ] == [128, 512, 1024]


def test_calls_are_small_where_every_text_has_its_own_prompt():
    """512 tokens of a prompt are 16.8 MB of cache: a tenth of 80 GB holds 476 of them."""
    made = [
        plan(ROWS, Target(), [4000] * 16, memory=80 * 10**9, own_prompt_len=own)
        for own in (0, 16, 512)
    ]
    assert [m.texts_per_call for m in made] == [65536, 4096, 476] and made[2].slots == 64


def test_what_is_given_stays():
    asked = DEFAULT.replace(
        slots=96,
        slots_per_adapter=12,
        texts_per_call=1000,
        chains_per_call=3,
    )
    made = plan(asked, Target("tpu"), [4000] * 64)
    assert (
        made.slots,
        made.slots_per_adapter,
        made.texts_per_call,
        made.chains_per_call,
    ) == (96, 12, 1000, 3)


def test_engines():
    assert engine(DEFAULT, Target("cpu")) == ("blocks", "") == engine(DEFAULT, Target("gpu"))
    assert engine(DEFAULT, complete("gpu")) == ("rows", "fused")
    assert engine(DEFAULT, Target("tpu")) == ("rows", "ring")
    assert engine(DEFAULT, complete("tpu")) == ("rows", "ring_fused")
    assert engine(DEFAULT, Target("tpu", rows=True)) == ("rows", "ring_pallas")
    # What XLA's Triton asked for when it refused these on an A100, where a block has 166,912 bytes.
    assert row_attention.shared_memory(256, 32, 4) == 172_160
    assert row_attention.shared_memory(256, 64, 4) == 213_248
    a100, h100 = (complete("gpu", cards.CARDS[name].shared_memory) for name in ("a100", "h100"))
    wide = dataclasses.replace(LLAMA_1B, num_heads=32, num_kv_heads=1, head_dim=256)
    assert engine(DEFAULT, a100, wide, "float32") == ("blocks", "")
    assert engine(DEFAULT, h100, wide, "float32") == ("rows", "fused")
    assert engine(DEFAULT, a100, wide, "bfloat16") == ("rows", "fused")
    three = dataclasses.replace(LLAMA_1B, num_heads=9, num_kv_heads=3)
    assert engine(DEFAULT, complete("tpu"), three) == ("rows", "ring")
    assert engine(ROWS, Target("cpu")) == ("rows", "plain")
    said = "^engine: 'paged' is not allowed; .*'auto', 'rows' or 'blocks'$"
    with pytest.raises(ValueError, match=said):
        DEFAULT.replace(engine="paged")
    with pytest.raises(
        ValueError, match="sample.engine: 'rows' is not possible with this model on this GPU"
    ):
        engine(ROWS, complete("gpu"), dataclasses.replace(LLAMA_1B, head_dim=80))


def test_every_text_is_written_once_in_calls_that_are_small_enough():
    made = plan(ROWS, Target("cpu"), [4000] * 20)
    ids = [[(1,)] * 4000] * 20
    devices = share_out(ids, list(range(20)), True, made, 1)
    parts = split_into_calls(devices, made.texts_per_call, made.texts_per_program, 1)
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
    model = SimpleNamespace(tokenizer=tokenizer, config=LLAMA_1B, name="m", params=None)
    with pytest.raises(
        ValueError, match="^sample.max_prompt: 2 is not allowed; the longest prompt has 5 tokens$"
    ):
        generate(
            model,
            [GenerateTask(None, None, ["ab", "abcde"], np.arange(2))],
            DEFAULT,
            GenerateOptions(prompt_len=2),
        )
