"""What `run_study` does around a study's own steps."""

import json
from pathlib import Path
from typing import Literal

import pytest

from jaxloop.config import RunConfig, Section
from jaxloop.recursion import driver
from jaxloop.studies import DISAGREES, FAILED_CHAINS
from jaxloop.studies.common import run as common


class ToyConfig(Section):
    study: Literal["toy"] = "toy"
    title: str = "Toy"
    size: int = 3
    only: str | None = None
    metrics: tuple[str, ...] = ()
    run: RunConfig = RunConfig(keep_compiled=False)


def steps(pages, outcome=None, **fields):
    """A study that keeps what its page is given."""

    def write_report(page):
        pages.append(page)
        return Path("page.html")

    def execute(context):
        (context.root / "made.txt").write_text(str(context.prepared))
        return outcome or common.Outcome(write_report=write_report, run_info=[("size", "three")])

    return common.Steps(
        prepare=lambda config: config.size, disk_bytes=lambda *_: 0, execute=execute, **fields
    )


def test_a_run_leaves_its_config_its_work_and_a_page_that_says_what_was_run(tmp_path):
    pages = []
    command = ["jaxloop", "--config=toy.py", "--workdir=a b"]
    assert common.run_study(steps(pages), ToyConfig(), tmp_path / "run", argv=command) == 0
    assert (tmp_path / "run" / "made.txt").read_text() == "3"
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["size"] == 3 and pages[0].config["size"] == 3
    names = [name for name, _ in pages[0].run_info]
    assert names == ["command", "size", "code", "device", "config fingerprint", "time"]
    lines = dict(pages[0].run_info)
    assert lines["command"] == "python -m jaxloop.main --config=toy.py '--workdir=a b'"
    assert pages[0].versions


def test_what_a_resumed_run_may_change(tmp_path):
    pages = []
    common.run_study(steps(pages), ToyConfig(), tmp_path)
    common.run_study(steps(pages), ToyConfig(title="Other"), tmp_path)
    with pytest.raises(ValueError, match="size"):
        common.run_study(steps(pages), ToyConfig(size=4), tmp_path)
    with pytest.raises(ValueError, match="metrics"):
        common.run_study(steps(pages), ToyConfig(metrics=("a",)), tmp_path)
    changed = ToyConfig(metrics=("a",))
    common.run_study(steps(pages, changeable_fields=("metrics",)), changed, tmp_path)
    raised = changed.model_copy(update={"size": 4})
    common.run_study(steps(pages, raisable_fields=("size",)), raised, tmp_path)
    prints = [dict(page.run_info)["config fingerprint"] for page in pages]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_a_field_of_one_call_is_not_stored_and_not_in_the_fingerprint(tmp_path):
    pages = []
    unstored = {"unstored_fields": frozenset({"only"})}
    common.run_study(steps(pages, **unstored), ToyConfig(), tmp_path)
    common.run_study(steps(pages, **unstored), ToyConfig(only="metrics"), tmp_path)
    assert "only" not in json.loads((tmp_path / "config.json").read_text())
    first, second = (dict(page.run_info)["config fingerprint"] for page in pages)
    assert first == second


def test_nothing_is_written_where_a_study_refuses(tmp_path):
    def refuse(config):
        raise ValueError("config.size = 3: must be 4")

    refused = common.Steps(refuse, lambda *_: 0, lambda context: common.Outcome())
    with pytest.raises(ValueError, match="must be 4"):
        common.run_study(refused, ToyConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_exit_codes(tmp_path):
    outcome = common.Outcome(exit_code=DISAGREES)
    assert common.run_study(steps([], outcome), ToyConfig(), tmp_path) == DISAGREES
    good, bad = (
        driver.RunResult(generations=2, failed=failed, resumed_after=None)
        for failed in ({}, {"a": {"generation": 1, "reason": "not finite"}})
    )
    more = {"run_info": [], "write_report": lambda page: Path()}
    assert common.trained(good, **more).exit_code == 0
    assert common.trained(bad, **more).exit_code == FAILED_CHAINS
    assert common.trained(good, all_chains=False, **more).exit_code == FAILED_CHAINS


def test_elapsed_says_whether_and_after_what_a_run_was_resumed():
    assert "resumed" not in common.elapsed(3.0)
    assert common.elapsed(3.0, resumed=True).endswith(" since it was resumed")
    assert common.elapsed(3.0, 4).endswith(" since it was resumed after generation 4")


def test_a_study_that_cannot_be_shared_is_refused_of_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "processes", lambda: (1, 2))
    with pytest.raises(ValueError, match="'toy' is the work of one process, and these are 2"):
        common.run_study(steps([], shared=False), ToyConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
