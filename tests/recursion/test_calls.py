"""The size of calls: short enough that a signal loses minutes, and the same when a run goes on."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import pandas as pd
import pytest

from jaxloop.recursion import calls, driver
from jaxloop.recursion.calls import Call
from jaxloop.runtime.signals import Stop, Stopped
from jaxloop.runtime.workdir import open_workdir
from tests.recursion import unigram


def test_the_rate_is_of_the_slowest_kind_without_its_compiling():
    found = [Call(("fit", "a"), 2, 100.0), Call(("fit", "a"), 2, 10.0), Call(("fit", "b"), 1, 8.0)]
    assert calls.rate(found) == 8.0 and calls.rate(found[:2]) == 5.0 and calls.rate([]) is None


@pytest.fixture
def study():
    """(family, chains, data, settings) of a small study of unigram models."""
    return unigram.Unigram(), *unigram.study(4)


def run(study, root, stop=None, **changes):
    family, chains, data, settings = study
    settings = dataclasses.replace(settings, **changes)
    with open_workdir(root, {}, console=False) as place:
        driver.run(family, chains, data, settings, place.path, progress=False, stop=stop)
    return [pd.read_parquet(path) for path in sorted((root / "texts").rglob("*.parquet"))]


class Counting:
    """The family, with the number of models of every fit; sends a signal in the `last` one."""

    def __init__(self, family, stop=None, last=None):
        self.family, self.stop, self.last, self.fits = family, stop, last, []

    def __getattr__(self, name):
        return getattr(self.family, name)

    def fit(self, model, tasks, settings):
        self.fits.append(len(tasks))
        if self.stop is not None and len(self.fits) == self.last:
            self.stop.number = signal.SIGTERM
        return self.family.fit(model, tasks, settings)


def test_calls_get_the_size_that_the_measured_rate_asks_for(study, tmp_path, monkeypatch):
    family, *rest = study
    models = sum(chain.workflow.entities for chain in rest[0])
    assert models >= 4
    whole = run(study, tmp_path / "whole")
    assert not (tmp_path / "whole" / calls.FILE).exists()
    monkeypatch.setattr(calls, "rate", lambda found: 100.0 if found else None)
    counting = Counting(family)
    parts = run((counting, *rest), tmp_path / "parts", seconds_per_call=200.0, first_members=1)
    generations = rest[-1].generations
    sizes = json.loads((tmp_path / "parts" / calls.FILE).read_text())
    assert sizes == {"0": 1} | {str(g): 2 for g in range(1, generations)}
    assert set(counting.fits) == {1, 2} and sum(counting.fits) == models * generations
    for one, other in zip(whole, parts, strict=True):
        pd.testing.assert_frame_equal(one, other)


def test_a_signal_is_obeyed_after_the_call_and_loses_nothing(study, tmp_path):
    family, *rest = study
    models = sum(chain.workflow.entities for chain in rest[0])
    stop = Stop()
    counting = Counting(family, stop, last=3)
    options = dict(seconds_per_call=1e-9, first_members=1)
    with pytest.raises(Stopped) as stopped:
        run((counting, *rest), tmp_path / "run", stop, **options)
    assert stopped.value.code == 143 and counting.fits == [1, 1, 1]
    again = Counting(family)
    run((again, *rest), tmp_path / "run", **options)
    # The three fits are not made again.
    assert sum(again.fits) == models * rest[-1].generations - 3


def test_a_number_of_models_overrules_the_rate(study, tmp_path):
    family, *rest = study
    counting = Counting(family)
    run((counting, *rest), tmp_path / "run", members_per_group=2, seconds_per_call=1e-9)
    assert max(counting.fits) == 2 and not (tmp_path / "run" / calls.FILE).exists()


def test_processes_on_different_machines_make_calls_of_one_size(tmp_path):
    """How many models are surely made in time follows from the cores of a machine."""
    settings = driver.RunSettings(2, None, None, seconds_per_call=300.0, first_members=4)
    first = SimpleNamespace(root=tmp_path, settings=settings, processes=2)
    slower = dataclasses.replace(settings, first_members=1)
    second = SimpleNamespace(root=tmp_path, settings=slower, processes=2)
    for first_one in (first, second):  # the run is resumed with the other as the first process
        calls.agree(first_one)
        assert [calls.most_members(one, 0) for one in (first, second)] == [4, 4]


def test_equal_models_that_were_made_once_count_once(study, tmp_path, monkeypatch):
    """A family may make equal models once: a call of three of them is a call of one."""
    family, *rest = study
    found = []

    class Once(Counting):
        def fit(self, model, tasks, settings):
            return super().fit(model, tasks[:1], settings) * len(tasks)

    monkeypatch.setattr(calls, "rate", lambda calls: found.extend(calls))
    run((Once(family), *rest), tmp_path / "run", seconds_per_call=1e9)
    assert {call.members for call in found if call.kind[0] == "fit"} == {1}


def test_every_base_has_a_size_of_its_own(study, tmp_path):
    family, chains, data, settings = study
    chains = [
        dataclasses.replace(chain, bases=(base,), draw_base=False)
        for chain, base in zip(chains, ("a", "b") * len(chains), strict=False)
    ]
    counting = Counting(family)
    first = {"a": 1, "b": 5}
    run(
        (counting, chains, data, settings),
        tmp_path / "run",
        seconds_per_call=1e9,
        first_members=first,
    )
    of_base = sum(chain.workflow.entities for chain in chains) // 2
    assert of_base > 1
    # In generation 0 one model of `a` at a time, all of `b` in one call.
    assert sorted(counting.fits[: of_base + 1]) == [1] * of_base + [of_base]
    assert json.loads((tmp_path / "run" / calls.FILE).read_text())["0"] == first
