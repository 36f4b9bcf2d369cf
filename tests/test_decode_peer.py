"""`bench_decode.py --peer=…`: what it refuses, its calls, and our side of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxloop.config import SampleConfig
from jaxloop.lm.generation.slot_plan import plan_slots
from jaxloop.lm.target import Target
from jaxloop.studies.bench.config import BenchConfig
from jaxloop.studies.bench.setup import model_config_of

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def peer(monkeypatch, tmp_path):
    """The script's module, with an empty cache folder."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path))
    import _decode_peer  # a script, found through the path above

    return _decode_peer


def test_an_environment_that_was_not_made_is_one_line(peer, capsys):
    assert peer.main(["--peer=openvino"]) == 2
    assert capsys.readouterr().err == (
        "--peer=openvino: its environment is not there yet; add --make-peer\n"
    )


@pytest.mark.parametrize("jobs", ["4y250", "0x3", "x3", "4x", "4x2x1"])
def test_a_job_is_chains_times_texts(peer, tmp_path, jobs):
    flags = peer.read_flags(["--peer=openvino", f"--jobs={jobs}"])
    with pytest.raises(ValueError, match=f"--jobs: '{jobs}' is not allowed; chains x texts"):
        peer.write_work(flags, tmp_path)


@pytest.mark.parametrize("chains, texts", [(1, 250), (4, 250), (36, 64)])
def test_planned_calls_write_every_text_once(peer, chains, texts):
    from _planned_calls import planned_calls  # found through the path that `peer` adds

    config = model_config_of(BenchConfig())
    plan = plan_slots(SampleConfig(), config, Target("cpu"), [texts] * chains, dtype="float32")
    lengths = [np.arange(texts) + 1000 * c for c in range(chains)]
    calls = list(planned_calls(plan, lengths, concurrent=2, padded=True))
    assert len(calls) == 2 and len({len(call.requests.limit) for call in calls}) == 1
    written = []
    for call in calls:
        for first, end, chain in zip(*call.jobs, strict=True):
            assert (call.requests.prompt[first:end] == chain).all()
            written += call.requests.limit[first:end].tolist()
    assert sorted(written) == sorted(n for chain in lengths for n in chain.tolist())


@pytest.mark.slow
def test_our_side_writes_texts_of_the_lengths_asked_for(peer, tmp_path):
    flags = ["--peer=openvino", "--size=tiny", "--jobs=2x20", "--longest=24", "--mean-length=12"]
    peer.write_work(peer.read_flags(flags), tmp_path)
    worker = peer.Worker(sys.executable, "_worker_jaxloop.py", tmp_path, 1)
    timed = worker.write("2x20", "16")
    worker.close()
    lengths = json.loads((tmp_path / "work.json").read_text())["jobs"]["2x20"]
    assert timed.tokens == sum(map(sum, lengths)) and timed.cpu > 0
