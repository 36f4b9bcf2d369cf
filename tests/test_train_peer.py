"""`bench_train.py --peer=…`: what it refuses, and both sides of it on one small job."""

import sys
from pathlib import Path

import pytest

from tests.peers import require

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def peer(monkeypatch, tmp_path):
    """The script's module, with an empty cache folder."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setenv("JAXLOOP_CACHE", str(tmp_path))
    import _train_peer  # a script, found through the path above

    return _train_peer


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "--peer=torch: its environment is not there yet; add --make-peer\n"),
        (["--jobs=4y8"], "--jobs: '4y8' is not allowed; chains x steps, such as 4x8\n"),
    ],
)
def test_what_it_cannot_do_is_one_line(peer, capsys, flags, said):
    assert peer.main(["--peer=torch", *flags]) == 2
    assert capsys.readouterr().err == said


def test_settings_are_those_that_a_job_has_chains_for(peer):
    assert peer._that_divide(["2:1", "1:2"], "1x8", True) == ["2:1"]
    assert peer._that_divide(["2:16", "1:8"], "1x8", False) == ["1:8"]
    with pytest.raises(ValueError, match="--jobs: none of the settings 2:16 fits 1x8"):
        peer._that_divide(["2:16"], "1x8", False)


def test_other_work_is_not_what_is_timed(peer):
    from _load import metered  # found through the path that `peer` adds

    load_of = metered()
    sum(range(10_000_000))
    assert load_of(0.0) > load_of(1e9) == 0.0


@pytest.mark.slow
def test_both_sides_train_the_same(peer, capsys, monkeypatch):
    """It refuses to time sides whose first losses differ."""
    require("torch", "peft", "transformers")
    monkeypatch.setattr(peer.environments, "python_of", lambda name: sys.executable)
    flags = ["--peer=torch", "--size=tiny", "--jobs=2x2", "--repeats=1"]
    assert peer.main(flags) == 0
    assert "tiny 2x2, 2 thread(s): jaxloop" in capsys.readouterr().out
    monkeypatch.setattr(peer, "TOLERANCE", -1.0)
    assert peer.main(flags) == 2
