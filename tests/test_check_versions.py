"""scripts/check_versions.py where pip only answers: environments, pins, table, exit code."""

import argparse
import json
import sys
from pathlib import Path

import _commands as commands
import check_versions as cv
import pytest

PYTHON = Path(sys.executable)
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def done(code, said=""):
    return commands.Done(code, said, 1.0, 0.5)


def row(name, **fields):
    return {"environment": name, "wrong": [], "note": ""} | fields


def test_the_interpreter_that_is_given_is_used_and_another_program_is_refused(tmp_path):
    assert cv.interpreters([PYTHON])[VERSION] == PYTHON
    fake = tmp_path / "python3.12"
    fake.write_text("#!/bin/sh\necho 2.7\n")
    fake.chmod(0o755)
    with pytest.raises(
        ValueError,
        match=f"--python={fake}: must be an interpreter of Python 3.11 to 3.14 .*, got 2.7",
    ):
        cv.interpreters([fake])


def test_environments_without_a_python_are_left_out_unless_they_are_named():
    every = cv.environments({"3.12": PYTHON})
    assert [e.name for e in cv.chosen(every, [])] == ["3.12-pins", "3.12-new", "image"]
    assert [e.name for e in cv.chosen(every, ["3.14-new"])] == ["3.14-new"]
    with pytest.raises(ValueError, match="--only=3.9-new: must be one of 3.11-pins, "):
        cv.chosen(every, ["3.9-new"])


def test_pins_are_those_of_the_constraints_file_or_of_the_image():
    every = {e.name: e for e in cv.environments({})}
    constrained = cv.pins_of(every["3.11-pins"], torch=True)
    assert any(p.startswith("jax==") for p in constrained) and any(
        p.startswith("torch==") for p in constrained
    )
    without = [
        pin for name in ("3.11-pins", "image") for pin in cv.pins_of(every[name], torch=False)
    ]
    assert without and not any(pin.startswith("torch==") for pin in without)
    assert (
        "jax==0.11.2" in cv.pins_of(every["image"], torch=False)
        and cv.pins_of(every["3.13-new"], torch=True) == []
    )


def test_pins_without_a_wheel_are_a_result(tmp_path, monkeypatch):
    """pip names one at a time, with its own spelling of the name."""

    def call(command, limit, environment=None):
        for pin in Path(command[-1]).read_text().splitlines():
            if pin in ("NumPy==2.4.6", "numba==0.68.1"):
                return done(1, f"ERROR: No matching distribution found for {pin.lower()}\n")
        return done(0)

    monkeypatch.setattr(cv, "call", call)
    kept = cv.without_wheels(
        PYTHON, ["jax==0.10.2", "NumPy==2.4.6", "numba==0.68.1"], tmp_path, 10, []
    )
    assert kept == (["jax==0.10.2"], ["NumPy==2.4.6", "numba==0.68.1"])


def test_an_environment_that_cannot_be_made_is_a_row_and_the_next_one_is_checked(
    tmp_path, monkeypatch, capsys
):
    def call(command, limit, environment=None):
        words = " ".join(map(str, command))
        if "-m pytest" in words:
            report = next(w for w in map(str, command) if w.startswith("--junitxml="))
            suite = '<testsuite tests="9" failures="0" errors="0" skipped="2"/>'
            Path(report.partition("=")[2]).write_text(f"<testsuites>{suite}</testsuites>")
        elif "jaxloop.main" in words:
            place = Path(
                next(w for w in map(str, command) if w.startswith("--workdir=")).partition("=")[2]
            )
            place.mkdir()
            for name in ("report.html", "metrics.csv", "ledger.parquet"):
                (place / name).touch()
        elif "3.12-new" in words and "-e" in words:
            return done(1, "ERROR: no space")
        elif "importlib.metadata" in words:
            return done(
                0,
                json.dumps(
                    {"Python": "3.12.1", "jax": "0.11.2", "numpy": "2.5.0", "torch": "none"}
                ),
            )
        return done(0, VERSION)

    monkeypatch.setattr(cv, "call", call)
    monkeypatch.setattr(cv, "interpreters", lambda given: {"3.12": PYTHON})
    page = tmp_path / "BUILD.md"
    page.write_text(f"before\n{cv.START}\n\n{cv.END}\nafter\n")
    words = ["--only=3.12-new", "--only=image", f"--folder={tmp_path / 'made'}", f"--write={page}"]
    assert cv.main(words) == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    broken, image = last["rows"]
    assert (
        broken["wrong"] == ["pip: ERROR: no space"]
        and broken["study"] == "not run"
        and not last["passed"]
    )
    assert (image["passed"], image["skipped"], image["study"], image["wrong"]) == (7, 2, "ok", [])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "| image | 3.12.1 | 0.11.2 | 2.5.0 |" in text and "pip: ERROR: no space" in text
    assert cv.main([*words[1:]]) == 0 and "pip: ERROR: no space" in page.read_text()


def test_failed_tests_and_a_failed_study_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cv, "call", lambda *a: done(1, "FAILED tests/a.py::test_b - AssertionError\n1 failed in 2s")
    )
    found, wrong = cv.run_tests(PYTHON, tmp_path, [], 2, 10)
    assert wrong == "tests: tests/a.py::test_b" and found["failures"] == ["tests/a.py::test_b"]
    assert cv.run_study(PYTHON, tmp_path, 10).startswith("study: exit code 1, ")
    monkeypatch.setattr(cv, "call", lambda *a: done(0))
    assert (
        cv.run_tests(PYTHON, tmp_path, [], 1, 10)[1] == "tests: no output"
    )  # no passed test is no success
    assert cv.run_study(PYTHON, tmp_path, 10) == "study: wrote no report.html"


def test_counts_of_a_junit_file(tmp_path):
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite tests="10" failures="1" errors="2" skipped="3"/></testsuites>'
    )
    assert commands.counts(path) == {"passed": 4, "failed": 3, "skipped": 3}
    assert commands.counts(tmp_path / "none.xml") is None


def test_the_table_is_renewed_row_by_row_between_its_markers():
    text = f"a\n{cv.START}\n{cv.END}\nb\n"
    once = cv.renewed(
        text, [cv.line(row("image", jax="0.11.2")), cv.line(row("3.11-pins", jax="0.10.2"))]
    )
    again = cv.renewed(once, [cv.line(row("image", jax="0.11.3"))])
    rows = [r.split("|")[1].strip() for r in again.splitlines() if r.startswith("|")]
    assert rows == ["environment", "---", "3.11-pins", "image"]
    assert "0.11.3" in again and "0.11.2" not in again and cv.renewed(again, []) == again
    with pytest.raises(ValueError, match="must hold the lines"):
        cv.renewed("no markers", [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tests=tests/nowhere"], "--tests=tests/nowhere: must be a file or folder in "),
        (["--only=3.12"], "--only=3.12: must be one of "),
        (["--write=README.md"], "--write=README.md: must hold the lines "),
    ],
)
def test_bad_input_is_one_sentence_and_makes_nothing(monkeypatch, capsys, words, said):
    monkeypatch.setattr(cv, "interpreters", lambda given: {})
    monkeypatch.setattr(cv, "check", None)
    monkeypatch.chdir(cv.ROOT)
    assert cv.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1


def test_the_list_makes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(cv, "interpreters", lambda given: {"3.12": PYTHON})
    monkeypatch.setattr(cv, "check", None)
    assert cv.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 and f"3.12-new   run      {PYTHON}: newest" in lines
    assert "3.14-new   left out no Python 3.14: newest" in lines


def test_build_md_holds_the_table():
    assert cv.renewed((cv.ROOT / "BUILD.md").read_text(), []) == (cv.ROOT / "BUILD.md").read_text()
    assert isinstance(cv.parse([]), argparse.Namespace) and cv.parse([]).torch == "cpu"
