"""report.html while a run goes on: current after every generation, and what it says at a stop."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Literal

import pytest

from jaxloop.config import RunConfig, Section
from jaxloop.recursion import driver
from jaxloop.recursion.progress import State
from jaxloop.reporting import run_files
from jaxloop.runtime.signals import Stopped
from jaxloop.studies.common import live
from jaxloop.studies.common import run as common
from tests.recursion import unigram as u

GENERATIONS = 4


class ToyConfig(Section):
    study: Literal["toy"] = "toy"
    title: str = "A toy"
    run: RunConfig = RunConfig(keep_compiled=False)


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)
    return found


def page_of(root):
    path = root / "report.html"
    return path.read_text() if path.exists() else ""


def study(root, seen, at=lambda generation: None, settings=None):
    """A study of word counts; before each measurement it waits for the page of the generations
    before, and keeps it in `seen`.
    """
    chains, data, plain = u.study(GENERATIONS)

    def measure(model, generation, outputs):
        words = f"{generation} of {GENERATIONS} generations are finished"

        def current():
            page = page_of(root)
            return page if words in page and "This run is going on" in page else ""

        seen[generation] = wait_for(current)
        at(generation)
        return u.measure(model, generation, outputs)

    def execute(context):
        result = driver.run(
            u.Unigram(),
            chains,
            data,
            settings or plain,
            context.root,
            measure=measure,
            progress=False,
            watch=context.watch,
        )
        return common.trained(result, run_info=[], write_report=lambda page: Path("none"))

    return common.Steps(prepare=lambda config: None, disk_bytes=lambda *_: 0, execute=execute)


def run(root, seen, **options):
    argv = ["jaxloop", "--config=toy.py", f"--workdir={root.name}"]
    return common.run_study(study(root, seen, **options), ToyConfig(), root, argv=argv)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """Pages follow each other at once, so that the test need not wait."""
    monkeypatch.setattr(live, "SHARE", 1)


def test_the_page_is_current_after_every_generation(tmp_path):
    seen = {}
    assert run(tmp_path / "run", seen) == 0
    assert sorted(seen) == list(range(GENERATIONS))
    for generation, page in seen.items():
        assert "This run is going on" in page and 'http-equiv="refresh" content="30"' in page
        assert f'<progress max="{GENERATIONS}" value="{generation}"' in page
        assert ("left" in page) and "--config=toy.py" in page
        assert page.count("<svg") == (2 if generation else 0)
        assert not re.search(r"(?:src|href)=\"(?!#)", page)
    log = (tmp_path / "run" / "run.log").read_text()
    assert log.count(f"while it runs, open {tmp_path / 'run' / 'report.html'} in a browser") == 1
    # Every page shows the values so far and no others.
    assert f'<th scope="row">{GENERATIONS - 2}</th>' in seen[GENERATIONS - 1]
    assert f'<th scope="row">{GENERATIONS - 1}</th>' not in seen[GENERATIONS - 1]
    assert not list((tmp_path / "run").glob(".tmp-*"))


@pytest.mark.usefixtures("undrawn")
def test_it_knows_the_time_left_once_every_step_was_timed(tmp_path):
    seen = {}
    run(tmp_path / "run", seen)
    assert "time left not known yet" in seen[0]
    assert re.search(r"finished; \d+ s left", seen[GENERATIONS - 1])
    spent = run_files.read_spent(tmp_path / "run")
    assert set(spent) == {"fit", "sample", "measure"} and min(spent.values()) >= 0
    stored = json.loads((tmp_path / "run" / run_files.PROGRESS).read_text())
    assert (stored["finished"], stored["generations"]) == (GENERATIONS, GENERATIONS)


@pytest.mark.usefixtures("undrawn")
def test_what_was_spent_before_a_stop_is_counted(tmp_path):
    def stop(generation):
        if generation == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run(tmp_path / "run", {}, at=stop)
    page = page_of(tmp_path / "run")
    assert "This run was stopped by SIGTERM" in page and "refresh" not in page
    assert "of 4 generations are finished." in page and "--workdir=run" in page
    before = run_files.read_spent(tmp_path / "run")
    path = tmp_path / "run" / run_files.PROGRESS
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"spent": {kind: 1000.0 for kind in before}}))
    finished = stored["finished"]
    seen = {}
    run(tmp_path / "run", seen)
    assert min(seen) == finished and "This run is going on" in seen[finished]
    assert all(1000 <= s < 1100 for s in run_files.read_spent(tmp_path / "run").values())


def test_the_page_does_not_use_up_the_time_that_a_signal_gives(tmp_path, monkeypatch):
    """Pages are being drawn when the signal comes, which then has other work for the time."""
    drawing, go_on = threading.Event(), threading.Event()

    def draw(*arguments, **options):
        drawing.set()
        go_on.wait(30)

    monkeypatch.setattr(live, "_write_page", draw)
    start = time.monotonic()
    with pytest.raises(Stopped):
        with live.watching(tmp_path, title="", command="", page={}) as watch:
            watch(State(None, GENERATIONS, None, {}, {}))
            assert drawing.wait(30)
            raise Stopped(signal.SIGTERM, time.monotonic() + 0.1)
    assert time.monotonic() - start < 10
    go_on.set()


@pytest.mark.usefixtures("undrawn")
def test_an_error_of_the_run_stands_on_the_page(tmp_path):
    def fail(generation):
        if generation == 1:
            raise RuntimeError("the disk is on <fire>")

    with pytest.raises(RuntimeError):
        run(tmp_path / "run", {}, at=fail)
    assert "stopped by an error: the disk is on &lt;fire&gt;" in page_of(tmp_path / "run")


@pytest.mark.usefixtures("undrawn")
def test_a_page_that_cannot_be_written_ends_no_run(tmp_path, caplog):
    state = State(0, 2, None, {}, {})
    (tmp_path / "report.html").mkdir()
    with live.watching(tmp_path, title="T", command="c", page={"run_info": []}) as watch:
        watch(state)
        wait_for(lambda: "report.html is not current" in caplog.text)


@pytest.mark.usefixtures("undrawn")
def test_pages_take_a_small_share_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "SHARE", 1 / 20)
    wrote, tracked, done = [], [], threading.Event()

    def slow(root, state, **options):
        time.sleep(0.05)
        wrote.append((state.last, options.get("stopped")))
        if state.last == 7:
            done.set()

    monkeypatch.setattr(live, "_write_page", slow)
    start = time.monotonic()
    with live.watching(tmp_path, title="T", command="c", page={}, track=tracked.append) as watch:
        for last in (None, *range(8)):
            watch(State(last, 8, None, {}, {}))
            time.sleep(0.02)
        assert done.wait(30)
    # The first page and the newest, and few between; trackers miss no generation.
    assert wrote[-1][0] == 7 and len(wrote) <= 3 and time.monotonic() - start > 0.9
    assert [state.last for state in tracked] == [None, *range(8)]


@pytest.mark.usefixtures("undrawn")
def test_failed_chains_stand_on_the_page(tmp_path):
    failed = {"r1": {"generation": 2, "reason": "the loss is not finite"}}
    with live.watching(tmp_path, title="T", command="c", page={"run_info": []}) as watch:
        watch(State(2, 5, 61.0, {}, failed))
        page = wait_for(lambda: page_of(tmp_path))
    assert "1 of 1 chain did not finish" in page and "1 min 01 s left" in page
