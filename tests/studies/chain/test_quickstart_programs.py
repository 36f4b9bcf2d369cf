"""How many programs the quickstart compiles: each costs a user seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Of one model: padded lengths of training, of losses; the encoder's lengths.
MOST = {
    "train_steps": 2,
    "batch_nll": 4,
    "decode": 1,
    "prefill": 1,
    "sentence_embedding": 6,
    "all programs": 36,
}


@pytest.mark.slow
def test_the_quickstart_compiles_so_many_programs(tmp_path):
    """Three generations with all its sizes, but fewer steps, compiled the shortest way."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "jaxloop.main", "--config=configs/quickstart.py", "--timings"),
            *(f"--workdir={tmp_path / 'run'}", "--config.chain.generations=3"),
            "--config.fit.steps=6",
        ],
        cwd=ROOT,
        env=os.environ
        | {"JAXLOOP_CACHE": str(tmp_path / "cache"), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout + done.stderr
    counts = {
        name: int(re.search(rf"^{name} +(\d+) ", said, re.MULTILINE).group(1)) for name in MOST
    }
    assert all(counts[name] <= most for name, most in MOST.items()), counts
