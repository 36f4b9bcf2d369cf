"""scripts/check_install.py without a network: the environment of its commands, the clock, what it
runs.
"""

import os
import sys

import pytest

from scripts import check_install as ci


def test_nothing_of_this_shell_reaches_the_commands(tmp_path, monkeypatch):
    """A folder of wheels, another index or a path of this machine would hide that a package is not
    to be had elsewhere.
    """
    for name in (
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "PIP_CONSTRAINT",
        "PYTHONPATH",
        "JAXLOOP_SHARED",
        "JAXLOOP_CACHE",
        "XDG_CACHE_HOME",
        "HF_HOME",
    ):
        monkeypatch.setenv(name, "/elsewhere")
    found = ci.bare_environment(tmp_path / "home", tmp_path / "pip")
    assert "/elsewhere" not in found.values()
    assert (
        found["HOME"] == str(tmp_path / "home")
        and found["PIP_CONFIG_FILE"] == os.devnull
        and found["PATH"] == os.environ["PATH"]
    )


def test_the_readmes_two_commands_are_the_parts_of_those_names():
    quickstart, tests = ci.readme_commands(ci.ROOT)
    assert (
        "jaxloop.main" in quickstart.rpartition(" && ")[2]
        and "pytest" in tests.rpartition(" && ")[2]
    )
    assert ci.PARTS.index("quickstart") == 0 and ci.PARTS.index("tests") == 1


def test_the_clock_notes_when_a_mark_was_printed(tmp_path):
    command = (
        "sleep 0.2; echo 'generation 0 of 2: fit'; sleep 0.2; echo 'generation 0 of 2: sample'; "
        "exit 3"
    )
    code, seconds, said = ci.timed(command, tmp_path, dict(os.environ), {"progress": ci.PROGRESS})
    assert (
        code == 3
        and 0.2 <= seconds["progress"] <= seconds["all"] - 0.2
        and said.splitlines()[-1] == "generation 0 of 2: sample"
    )


def test_it_can_stop_at_the_first_line_of_progress(tmp_path):
    code, seconds, _ = ci.timed(
        f"echo '{ci.PROGRESS}'; exec sleep 60",
        tmp_path,
        dict(os.environ),
        {"progress": ci.PROGRESS},
        stop=True,
    )
    assert code == 0 and seconds["all"] < 30


@pytest.mark.skipif(sys.platform != "linux", reason="counts disk blocks")
def test_disk_is_counted_in_blocks(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    assert ci.megabytes(tmp_path) == 3


def test_what_a_wheel_must_hold_lies_in_the_clone():
    """Documents and configs are copied into the package by the build; the rest is there already."""
    for name in ci.INSIDE:
        folder = ci.ROOT / "jaxloop" if name.startswith("assets") else ci.ROOT
        path = (
            folder / name.removeprefix("docs/")
            if name.endswith(".md") and name.startswith("docs")
            else folder / name
        )
        assert path.exists(), name


def test_the_tests_of_the_sdist_are_there():
    assert [name for name in ci.SDIST_TESTS if not (ci.ROOT / name).exists()] == []
