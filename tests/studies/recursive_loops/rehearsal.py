"""What a rehearsal of the paper-scale configs needs: models and datasets as on the hub, a judge,
and flags that reduce sizes and nothing else.
"""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from jaxloop.data import sources
from jaxloop.studies.recursive_loops import scales
from jaxloop.studies.recursive_loops.data import recipes
from tests import command, dumps, hub

TOXICITY = "unitary/toxic-bert"
TEXTS = 560  # of each dataset, before it is cleaned
# Sizes that all experiments share.
SIZES = (
    "chain.generations=3",
    "chain.size=32",
    "chain.seeds=0",
    "chain.eval_texts=12",
    "fit.max_length=64",
    "fit.length_buckets=1",
    "sample.max_new_tokens=12",
    "properties.texts=60",
    "properties.lexical_texts=20",
    "properties.map_rows=200",
)


class World(NamedTuple):
    """Where the models and datasets lie, and the judge's address.

    Attributes:
        folder: of all files.
        models: {name on the hub: directory}.
        files: {dataset: its files}.
        url: of the judge.
        judge: its model, as the server calls it.
    """

    folder: Path
    models: dict[str, Path]
    files: dict[str, list[Path]]
    url: str
    judge: str


def human_texts(count: int) -> list[str]:
    """Different English texts of twenty words and more, from the corpora in the box."""
    found = {}
    for name in ("speeches", "novels", "emotions"):
        for row in sources.rows(f"jaxloop:{name}"):
            words = row["text"].split()
            for start in range(0, len(words) - 24, 24):
                text = " ".join(words[start : start + 22])
                found[text.replace("#", "").replace("@", "").strip()] = None
                if len(found) >= count:
                    return list(found)
    raise AssertionError(f"the box holds {len(found)} texts, {count} are needed")


def build(folder: Path, url: str, judge: str) -> World:
    """Models and datasets of the paper below a folder."""
    texts = human_texts(len(scales.PAPER) * TEXTS)
    names = (*scales.POOL, scales.ENCODER, TOXICITY)
    models = {
        name: hub.model(folder / "hub", name, texts[:400], width=16, layers=1, vocab=900, seed=i)
        for i, name in enumerate(names)
    }
    files = {
        name: dumps.write(
            folder / "datasets", recipes.RECIPES[name].source, texts[i * TEXTS : (i + 1) * TEXTS]
        )
        for i, name in enumerate(scales.PAPER)
    }
    return World(folder, models, files, url, judge)


def options(world: World) -> str:
    """The options of metrics that ask this world's judge, as the paper's code does."""
    return f"model='{world.judge}',url='{world.url}',reply='first_token'"


def flags(world: World, domains) -> list[str]:
    """The flags that lead a paper-scale config to the files of this world; sizes are reduced."""
    judge = options(world)
    pool = ",".join(str(world.models[name]) for name in scales.POOL)
    places = [
        f"models.pool={pool}",
        "models.revisions=",
        f"embedder={world.models[scales.ENCODER]}",
        f"properties.toxicity={world.models[TOXICITY]}",
        f"language=judge_english({judge})",
        "tokens=model",
    ]
    for name in domains:
        files = ",".join(map(str, world.files[name]))
        places.append(f"domains.{name}.source={files}")
    return [f"--config.{place}" for place in (*places, *SIZES)]


def validate(config: str, workdir: Path, words: Sequence[str]) -> float:
    """The seconds of processor time that `--validate` takes in a process of its own, which must
    find nothing wrong.
    """
    before = _spent()
    command = [sys.executable, "-m", "jaxloop.main", config, f"--workdir={workdir}", *words]
    done = subprocess.run([*command, "--validate"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return _spent() - before


def _spent() -> float:
    """Seconds of processor time of the processes that were started here and have ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def run(capsys, config: str, workdir: Path, words, *, stop_at: str | None = None):
    """(exit code, stdout, stderr) of a run in this process, which gets a SIGTERM as soon as its log
    has the text `stop_at`.
    """
    if stop_at is None:
        return command.call(capsys, config, f"--workdir={workdir}", *words)
    ended = threading.Event()

    def wait():
        log = workdir / "run.log"
        while not ended.is_set():
            if log.exists() and stop_at in log.read_text(errors="replace"):
                os.kill(os.getpid(), signal.SIGTERM)
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    try:
        return command.call(capsys, config, f"--workdir={workdir}", *words)
    finally:
        ended.set()
        thread.join()
