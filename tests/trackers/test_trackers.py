"""Trackers: what TensorBoard's own reader finds, what the others are given, what is refused."""

import json
import sys
import types

import pytest

from jaxloop import cli, main, trackers
from jaxloop.config import RunConfig, Section
from jaxloop.recursion import driver, finalise
from jaxloop.runtime.workdir import open_workdir
from jaxloop.studies.common import run as common
from tests.peers import peer, require
from tests.recursion import unigram as u

accumulator = peer("tensorboard.backend.event_processing.event_accumulator", "tensorboardX")


class ToyConfig(Section):
    title: str = "A toy"
    api_key: str = "hidden-key-1234567890"
    run: RunConfig = RunConfig(keep_compiled=False)


def run(root, names, generations=3):
    """A study of word counts with trackers."""

    def execute(context):
        chains, data, settings = u.study(generations)
        result = driver.run(
            u.Unigram(),
            chains,
            data,
            settings,
            context.root,
            measure=u.measure,
            progress=False,
            watch=context.watch,
        )
        return common.trained(result, run_info=[], write_report=lambda page: root / "none")

    steps = common.Steps(lambda config: None, lambda *_: 0, execute)
    settings = ToyConfig(run=RunConfig(keep_compiled=False, trackers=names))
    return common.run_study(steps, settings, root)


def read(root):
    """(accumulator, {tag: [(step, value)]}) of the event files of a run."""
    events = accumulator.EventAccumulator(str(root / "tensorboard"), {"tensors": 0, "scalars": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    return events, scalars


def values(root, generations):
    """The same from metrics.csv, in single precision as TensorBoard has it."""
    import numpy as np

    found = {}
    for generation in range(generations):
        table = finalise.read_metrics(root, generation)
        for chain, metric, value in zip(table["chain"], table["metric"], table["value"]):
            place = found.setdefault(f"{metric}/{chain}", [])
            place.append((generation, float(np.float32(value))))
    return found


def test_tensorboards_reader_finds_every_value_and_texts(tmp_path):
    require("tensorboard", "tensorboardX")
    assert run(tmp_path / "run", ("tensorboard",)) == 0
    events, scalars = read(tmp_path / "run")
    expected = values(tmp_path / "run", 3)
    assert len(expected) > 3 and scalars == expected
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("texts/")]
    assert tags
    for tag in tags:
        steps = [event.step for event in events.Tensors(tag)]
        text = events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        assert steps == [0, 1, 2] and text.count("---") == trackers.TEXTS - 1
        assert all(line.startswith("    ") for line in text.split("\n") if line and line != "---")


@pytest.mark.slow
def test_a_resumed_run_has_every_value_once(tmp_path):
    require("tensorboard", "tensorboardX")
    run(tmp_path / "run", (), 2)
    assert not (tmp_path / "run" / "tensorboard").exists()
    run(tmp_path / "run", ("tensorboard",), 3)
    assert read(tmp_path / "run")[1] == values(tmp_path / "run", 3)
    run(tmp_path / "run", ("tensorboard",), 4)
    assert read(tmp_path / "run")[1] == values(tmp_path / "run", 4)


# ---- libraries with the interface of wandb


class FakeLibrary(types.ModuleType):
    """Keeps what it is given."""

    def __init__(self, name):
        super().__init__(name)
        self.inits, self.logged, self.finished = [], [], 0
        self.Settings = dict

    def init(self, **options):
        self.inits.append(options)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def Table(self, columns, data):
        return {"columns": columns, "data": data}

    def finish(self):
        self.finished += 1


@pytest.fixture
def library(monkeypatch, request):
    fake = FakeLibrary(request.param)
    fake.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, request.param, fake)
    return fake


@pytest.mark.parametrize("library", ["wandb", "trackio"], indirect=True)
def test_every_generation_is_one_step_and_none_is_sent_twice(library, tmp_path):
    name = library.__name__
    run(tmp_path / "run", (name,), 2)
    assert [step for step, _ in library.logged] == [0, 1] and library.finished == 1
    run(tmp_path / "run", (name,), 4)
    assert [step for step, _ in library.logged] == [0, 1, 2, 3]
    expected = values(tmp_path / "run", 4)
    for _, sent in library.logged:
        texts = sent.pop("texts")
        assert texts["columns"] == ["chain", "text"] and len(texts["data"]) >= trackers.TEXTS
        assert set(sent) == set(expected) and all(isinstance(v, float) for v in sent.values())
    first, second = library.inits
    assert first["resume"] == "allow" and first["project"] == "jaxloop"
    assert first.get("id", first["name"]) == second.get("id", second["name"])
    assert "hidden-key" not in json.dumps(first["config"])


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_a_tracker_that_fails_ends_no_run(library, tmp_path, capsys):
    def fail(values, step):
        raise RuntimeError("no connection")

    library.log = fail
    library.finish = lambda: fail({}, 0)
    assert run(tmp_path / "run", ("wandb",), 2) == 0
    log = (tmp_path / "run" / "run.log").read_text()
    assert "trackers is not current (no connection); the run goes on" in log
    assert "the tracker 'wandb' did not end well (no connection)" in log


def test_a_tracker_that_fails_takes_nothing_from_another(tmp_path, monkeypatch):
    """Nor is anything sent twice to either once it works again, or in another process."""
    first, second = FakeLibrary("trackio"), FakeLibrary("wandb")
    for fake in (first, second):
        fake.__spec__ = types.SimpleNamespace()
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    works = first.log

    def fail_once(values, step):
        if step == 1:
            first.log = works
            raise RuntimeError("no connection")
        works(values, step)

    first.log = fail_once
    monkeypatch.setattr(trackers, "_scalars", lambda root, generation: {})
    monkeypatch.setattr(trackers, "_samples", lambda root, generation: [])
    state = types.SimpleNamespace(finished=3)
    with trackers.opened(("trackio", "wandb"), tmp_path, "T", {}) as send:
        with pytest.raises(RuntimeError, match="no connection"):
            send(state)
        assert [step for step, _ in second.logged] == [0, 1, 2]
    with trackers.opened(("trackio", "wandb"), tmp_path, "T", {}) as send:
        send(state)
    for fake in (first, second):
        assert [step for step, _ in fake.logged] == [0, 1, 2]


@pytest.mark.parametrize("library", ["wandb"], indirect=True)
def test_a_tracker_that_cannot_be_opened_is_refused_before_any_training(library, tmp_path):
    def fail(**options):
        raise RuntimeError("api_key not configured\n(no-tty)")

    library.init = fail
    with pytest.raises(ValueError, match=r"trackers: 'wandb' cannot be used \(api_key not conf"):
        run(tmp_path / "run", ("wandb",), 2)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError) as caught:
        run(tmp_path / "run", ("trackio",), 2)
    assert str(caught.value) == (
        "config.run.trackers has 'trackio', which needs trackio; pip install 'jaxloop-lm[trackio]'"
    )
    assert not (tmp_path / "run").exists()


def test_validate_refuses_it_too(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["jaxloop", "validate", "quickstart", "--run.trackers=tensorboard"]
    with pytest.raises(SystemExit):
        cli.guarded(main.main, cli.parse(words))
    assert "pip install 'jaxloop-lm[tensorboard]'" in capsys.readouterr().err


def test_nothing_is_imported_unless_it_is_asked_for(tmp_path):
    with open_workdir(tmp_path, {}, console=False) as place:
        with trackers.opened((), place.path, "T", {}) as track:
            assert track is None
    assert not (tmp_path / trackers.SENT).exists()
