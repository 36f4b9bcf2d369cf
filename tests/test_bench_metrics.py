"""scripts/bench_metrics.py: the part that runs a study, which no other test goes through."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bench_metrics.py"


@pytest.mark.slow
def test_the_share_of_the_metrics_of_a_generation_of_the_quickstart():
    command = [sys.executable, SCRIPT, "--only=quickstart", "--repeats=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["rows"]
    assert len(rows) == 2 and all(0 < row["share_of_a_generation"] < 1 for row in rows)
