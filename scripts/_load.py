"""The load of other work on this machine while something is timed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

MOST_LOAD = 0.5  # of other work, per core, above which no ratio of wall clocks is given


def metered() -> Callable[[float], float]:
    """Begin to read the processor time that the machine spends.

    Load averages count what is timed too, and the minutes before it.

    Returns:
        load(spent): other work from then to now, in cores per core, where ours spent so many
        processor seconds.
    """
    busy, start = _busy_seconds(), time.perf_counter()

    def load(spent: float) -> float:
        others = _busy_seconds() - busy - spent
        return max(0.0, others / (time.perf_counter() - start)) / (os.cpu_count() or 1)

    return load


def _busy_seconds() -> float:
    """Processor seconds that the machine has spent on anything."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, *_ = map(int, words)
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
