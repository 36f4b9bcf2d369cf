"""A language-model study as a process of its own, killed and stopped: the same command ends where
an undisturbed one does.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.usefixtures("ends_processes"),
]


def start(place, workdir, cache):
    words = [
        f"--config={place / 'study.py'}",
        f"--workdir={workdir}",
        "--config.chain.generations=4",
        "--config.run.keep_compiled=true",
    ]
    variables = os.environ | {"JAXLOOP_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "jaxloop.main", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(workdir):
    """Everything that counts of a run: metrics and every text, byte for byte."""
    files = [workdir / "metrics.csv", *sorted((workdir / "texts").rglob("*.parquet"))]
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(place, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    process = start(place, folder / "run", folder / "cache")
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return result(folder / "run"), folder / "cache"


def wait_for_log(workdir, text, process):
    while not ((workdir / "run.log").exists() and text in (workdir / "run.log").read_text()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def test_killed_three_times_at_random_moments(place, tmp_path, undisturbed):
    expected, cache = undisturbed
    draw = random.Random(time.time_ns())
    for _ in range(3):
        process = start(place, tmp_path / "run", cache)
        try:
            process.wait(timeout=draw.uniform(2, 12))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
    process = start(place, tmp_path / "run", cache)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert result(tmp_path / "run") == expected
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_says_how_to_go_on(place, tmp_path, undisturbed, number, code):
    expected, cache = undisturbed
    process = start(place, tmp_path / "run", cache)
    wait_for_log(tmp_path / "run", "generation 0 of 4: fit", process)
    process.send_signal(number)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code and "Traceback" not in said
    assert (
        "to go on: python -m jaxloop.main --config=" in said
        and f"--workdir={tmp_path / 'run'}" in said
    )
    process = start(place, tmp_path / "run", cache)
    _, said = process.communicate(timeout=900)
    assert process.returncode == 0 and result(tmp_path / "run") == expected
