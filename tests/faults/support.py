"""What the tests of faults share: a run as a process, what it leaves, and its log."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

from jaxloop.runtime import workdir

HERE = Path(__file__).resolve().parent
LAST = "checkpoints/generation=0003"
PARTS = {
    "weights": f"{LAST}/adapters/chain=ratio-1_seed-0.safetensors",
    "ledger": f"{LAST}/ledger.parquet",
    "metrics": f"{LAST}/metrics.parquet",
    "losses": f"{LAST}/losses.parquet",
    "manifest": f"{LAST}/manifest.json",
    "texts": "texts/chain=ratio-0.25_seed-1/generation=0003.parquet",
}

FREE = (workdir.LOG, workdir.LOCK, workdir.HOLDER)


def contents(path):
    """{file: SHA-256} of everything a run leaves except its log and lock."""
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file() and p.name not in FREE
    }


def start(path, *arguments, **options):
    command = [sys.executable, str(HERE / "study.py"), str(path), *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def log(path):
    return (path / "run.log").read_text()


def warnings(path):
    return [line for line in log(path).splitlines() if " WARNING " in line]


def wait_for(condition, process, seconds=280):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
