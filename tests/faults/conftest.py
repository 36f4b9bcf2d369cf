"""Fixtures of the tests of faults."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "recursion")]
import study  # noqa: E402
from support import contents  # noqa: E402


@pytest.fixture(autouse=True)
def _no_process_is_left(ends_processes):
    """Also where a test fails between two steps of a process."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed: its directory and its contents. Tests copy it and never write
    to it.
    """
    path = tmp_path_factory.mktemp("whole") / "run"
    study.run(path)
    return path, contents(path)
