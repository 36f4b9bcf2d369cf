"""A small study as a program of its own, so that it can be killed: `python study.py WORKDIR
[GENERATIONS [PAUSE [DIE_AT [BESIDE]]]]`.

DIE_AT: the process kills itself with SIGKILL just before its DIE_AT-th change of the disk (rename,
atomic write or removal). BESIDE: 1 measures models while the next ones are trained.
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[2]),
    str(Path(__file__).resolve().parents[1] / "recursion"),
]
import unigram  # noqa: E402

from jaxloop.recursion import driver  # noqa: E402
from jaxloop.runtime import mirror, object_store  # noqa: E402
from jaxloop.runtime.atomic_io import DiskFull  # noqa: E402
from jaxloop.runtime.cluster import initialise_distributed, watch_silence  # noqa: E402
from jaxloop.runtime.signals import EXIT_DISK_FULL, EXIT_REFUSED  # noqa: E402
from jaxloop.runtime.workdir import open_workdir  # noqa: E402


def run(path, generations=4, pause=0.0, console=False, beside=False):
    """The study in a run directory or at an address, started or resumed."""
    chains, data, settings = unigram.study(generations, bases=("large", "small"))
    settings = dataclasses.replace(settings, overlap_eval=beside)
    config = {"chain": {"generations": generations}, "seed": 0}
    is_address = "://" in str(path)
    place = mirror.mirrored(path) if is_address else contextlib.nullcontext(path)
    with place as root, open_workdir(root, config, console=console, meet=mirror.meet) as workdir:
        return driver.run(
            unigram.Unigram(pause),
            chains,
            data,
            settings,
            workdir.path,
            measure=unigram.measure,
            progress=console,
        )


def count_changes(at_change):
    """Calls `at_change(n)` before the n-th change of the disk, from now on; returns what undoes
    this. No other thread renames or removes anything meanwhile.
    """
    originals = os.replace, os.rename, os.unlink, os.rmdir
    seen, one_at_a_time = [0], threading.Lock()

    def counted(function):
        def wrapper(*args, **kwargs):
            with one_at_a_time:
                seen[0] += 1
                at_change(seen[0])
                return function(*args, **kwargs)

        return wrapper

    os.replace, os.rename, os.unlink, os.rmdir = map(counted, originals)

    def undo():
        os.replace, os.rename, os.unlink, os.rmdir = originals

    return undo, seen


def hold_back_weights(gate):
    """From now on weights are sent to the store only once the file `gate` exists."""
    put = object_store.put

    def put_later(store, name, data):
        while b"__metadata__" in data[:300] and not gate.exists():
            time.sleep(0.02)
        put(store, name, data)

    object_store.put = put_later


def main(path, generations=4, pause=0.0, die_at=0, beside=0):
    # A process that is killed loses nothing that it wrote; only a power cut does, so nothing here
    # waits for the disk.
    os.fsync = lambda handle: None
    initialise_distributed(timeout=200)
    watch_silence(float(os.environ.get("JAXLOOP_TEST_SILENCE", 60)))
    if gate := os.environ.get("JAXLOOP_TEST_GATE"):
        hold_back_weights(Path(gate))
    if int(die_at):
        count_changes(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == int(die_at) else None)
    try:
        run(path, int(generations), float(pause), console=True, beside=bool(int(beside)))
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except DiskFull as error:
        print(error, file=sys.stderr)
        return EXIT_DISK_FULL
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
