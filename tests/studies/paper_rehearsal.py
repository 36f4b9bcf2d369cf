"""Runs of the papers' configs in a folder that looks like the hub: every model and data set lies
below it under its own name, so a config needs no path changed, only sizes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from jaxloop.data import load_texts
from jaxloop.data.sentences import sentences
from tests import dumps_of_tasks, hub

ROOT = Path(__file__).resolve().parents[2]


def english(count: int) -> list[str]:
    """Sentences of fables and novels, 4 to 16 words each, and no quotation marks."""
    found = []
    for corpus in ("fables", "novels", "adventures"):
        for text in load_texts(f"jaxloop:{corpus}")["text"]:
            found += [re.sub('["“”]', "", s) for s in sentences(text) if 4 <= len(s.split()) <= 16]
            if len(found) >= count:
                return found[:count]
    raise AssertionError(f"there are only {len(found)} sentences")


def build(folder: Path, models: Sequence[str], datasets: Mapping[str, int], **size: int) -> None:
    """Write random models of reduced width, and data sets of so many sentences."""
    texts = english(max([400, *datasets.values()]))
    for seed, name in enumerate(models):
        hub.model(folder, name, texts[:400], seed=seed, **size)
    for name, count in datasets.items():
        dumps_of_tasks.write(folder, name, texts[:count])


def start(folder: Path, config: str, workdir: str, sizes: Mapping[str, object]) -> subprocess.Popen:
    """Start a run of a shipped config, as a user does whose working directory is `folder`."""
    words = [f"--config.{name}={value}" for name, value in sizes.items()]
    command = [sys.executable, "-m", "jaxloop.main", f"--config={ROOT}/configs/{config}"]
    variables = os.environ | {
        "JAXLOOP_CACHE": str(folder / "cache"),
        "JAX_PLATFORMS": "cpu",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "",
    }
    place = ["--validate"] if workdir == "--validate" else [f"--workdir={folder / workdir}"]
    return subprocess.Popen(
        [*command, *place, *words],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    """Wait for a run, and return what it printed."""
    out, said = process.communicate(timeout=3000)
    assert process.returncode == 0, said[-3000:]
    return out


def kill(process: subprocess.Popen, log: Path, text: str) -> None:
    """Kill a run at once when its log has the text."""
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, process.communicate()[1][-3000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def rehearse(
    folder: Path, config: str, sizes: Mapping[str, object], moments: Sequence[str]
) -> Path:
    """Validate a config, run it whole, run it killed at `moments` of its log and resumed; what both
    leave is equal byte for byte. Returns the run directory.
    """
    name = re.sub(r"\W", "_", config)
    finish(start(folder, config, "--validate", sizes))
    finish(start(folder, config, f"{name}-whole", sizes))
    killed = 0
    for text in moments:
        log = folder / f"{name}-killed" / "run.log"
        # A run may get some way further before the signal reaches it.
        if not (log.exists() and text in log.read_text()):
            kill(start(folder, config, f"{name}-killed", sizes), log, text)
            killed += 1
    assert killed, "the run was never killed"
    finish(start(folder, config, f"{name}-killed", sizes))
    whole, resumed = folder / f"{name}-whole", folder / f"{name}-killed"
    assert results(whole) == results(resumed)
    assert (resumed / "report.html").exists() and (whole / "report.html").exists()
    return whole


# Who made what, and when, differs: the ledger has the order of the calls, replies that of arrival.
_OF_A_RUN = ("ledger", "log", "checkpoint", "replies", "weights")


def results(workdir: Path) -> dict[str, bytes]:
    """Tables and texts of a run, {path: bytes}."""
    paths = [p for end in ("csv", "parquet") for p in sorted(workdir.rglob(f"*.{end}"))]
    names = {str(path.relative_to(workdir)): path for path in paths}
    kept = {n: p for n, p in names.items() if not any(part in n for part in _OF_A_RUN)}
    assert any(n.endswith("metrics.csv") for n in kept), sorted(names)
    return {name: path.read_bytes() for name, path in kept.items()}


def values(workdir: Path) -> pd.DataFrame:
    """The table metrics.csv of a run."""
    return pd.read_csv(workdir / "metrics.csv")
