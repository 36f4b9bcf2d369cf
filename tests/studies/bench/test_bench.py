"""The benchmarks run, count what they say they count, and refuse what cannot be timed."""

import json
import math
from functools import partial

import pytest

from jaxloop import config
from jaxloop.runtime.roofline import measure_limits
from jaxloop.studies.bench import run as bench
from jaxloop.studies.bench.decode import time_decode
from jaxloop.studies.bench.setup import lengths_of, model_config_of
from jaxloop.studies.bench.train import time_train

SMALL = dict(
    size="tiny",
    repeats=1,
    steps=2,
    batch_size=2,
    length=8,
    texts=16,
    slots=4,
    slots_per_adapter=2,
    longest=16,
    mean_length=6,
    prompt=5,
)


def settings(**fields):
    return config.build(bench.CONFIG, {"study": "bench", **SMALL, **fields})


@pytest.mark.parametrize(
    "devices, programs", [(1, 1), (1, 2), pytest.param(2, None, marks=pytest.mark.slow)]
)
def test_a_benchmark_ends_with_one_json_object(devices, programs, monkeypatch):
    # Products and copies that a test has time for; those of a benchmark fill the machine's caches.
    monkeypatch.setattr(bench, "measure_limits", partial(measure_limits, size=64, seconds=0.01))
    said = []
    found = bench.measure(
        settings(what="chains", chains=(2,), devices=devices, programs=programs), said.append
    )
    assert (
        json.loads(said[-1]) == found
        and {"value", "unit", "limit_share", "peer_ratio", "device", "compile_s", "peak_bytes"}
        <= found.keys()
    )
    train, decode = found["rows"]
    assert train["value"] == pytest.approx(train["steps_per_s"] * 2 * 2 * 8 * (programs or 1))
    useful = lengths_of(settings(), 16).sum()
    rows = 4 * devices * (programs or 1)
    steps = useful / (decode["occupancy"] * rows)
    assert math.isclose(steps, round(steps), abs_tol=1e-6) and useful / rows <= steps
    assert decode["value"] == pytest.approx(useful / (steps * decode["ms_per_step"] / 1e3))


@pytest.mark.parametrize("fields", [{"devices": 99}, {"devices": 3}])
def test_devices_that_are_not_there_or_do_not_divide_the_texts_are_refused(fields):
    with pytest.raises(
        ValueError, match=r"devices = \d+: must be at most 4 here, and divide texts = 16"
    ):
        time_decode(settings(what="decode", chains=(1,), **fields), 1)


def test_a_vocabulary_of_another_size_is_that_models():
    small, wide = (
        model_config_of(settings(size="small", **fields)) for fields in ({}, {"vocab": 50257})
    )
    assert (small.vocab_size, wide.vocab_size, wide.d_model) == (4096, 50257, small.d_model)


def test_several_programs_on_several_devices_are_refused():
    with pytest.raises(
        ValueError, match="programs = 2: must be 1 where devices = 2 share the texts"
    ):
        time_decode(settings(what="decode", chains=(1,), devices=2, programs=2), 1)


def test_chains_that_cannot_be_dealt_evenly_are_refused():
    with pytest.raises(ValueError, match="together = 2: must divide chains = 3"):
        time_train(settings(chains=(3,), together=2), 3)


def test_peers_that_are_not_installed_are_refused_before_anything_is_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(
        bench.importlib.util, "find_spec", lambda name: None if name == "peft" else True
    )
    settings = config.build(bench.CONFIG, {"study": "bench", "size": "tiny", "peer": True})
    with pytest.raises(
        ValueError,
        match=r"config.peer = true: peft to compare with: not installed; pip install "
        r"'jaxloop-lm\[peers\]'",
    ):
        bench.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
