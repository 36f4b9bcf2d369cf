"""Progress over all generations, with the time that is left: a bar on a terminal, plain lines
elsewhere.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxloop.runtime.log import LOGGER


def duration(seconds: float) -> str:
    """`3725` as "1 h 02 min", `125` as "2 min 05 s"."""
    seconds = int(round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"


class Clock:
    """Seconds per unit of work of each kind ("fit", "sample", "measure"), and from them the time
    that the rest takes.

    Of a kind that ran more than once the first time is left out: it holds the compilation.
    """

    def __init__(self, total: Mapping[str, float]):
        self.left = dict(total)
        self.runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in total}
        self.spent = dict.fromkeys(total, 0.0)

    def skip(self, kind: str, units: float) -> None:
        """Work that an earlier run has done."""
        self.left[kind] = max(0.0, self.left[kind] - units)

    def done(self, kind: str, units: float, seconds: float) -> None:
        """Work that was just done."""
        self.skip(kind, units)
        self.spent[kind] += seconds
        if units:
            self.runs[kind].append((units, seconds))

    def seconds_left(self) -> float | None:
        """Estimate; None while a kind that is still to come has not been timed."""
        total = 0.0
        for kind, left in self.left.items():
            if not left:
                continue
            timed = self.runs[kind][1:] or self.runs[kind]
            if not timed:
                return None
            total += left * sum(s for _, s in timed) / sum(u for u, _ in timed)
        return total


@contextlib.contextmanager
def progress(total: Mapping[str, float], generations: int, *, show: bool = True):
    """Context with `report(kind, units, seconds, text)`, called whenever a step is done, by any
    thread; seconds None: it had been done before. At the end a line says how long each kind took in
    all, if anything was done.
    """
    clock, one = Clock(total), threading.Lock()
    whole = sum(total.values()) or 1.0
    live = show and sys.stderr.isatty()
    shown = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*shown, console=Console(stderr=True), disable=not live) as bar:
        task = bar.add_task(f"{generations} generations", total=whole, left="")

        def report(kind: str, units: float, seconds: float | None, text: str) -> None:
            with one:
                clock.skip(kind, units) if seconds is None else clock.done(kind, units, seconds)
                left = clock.seconds_left()
                ahead = (
                    "time left not known yet"
                    if left is None
                    else f"{duration(left)} left"
                    if left
                    else ""
                )
                bar.update(task, advance=units if total[kind] else 0, description=text, left=ahead)
                if show and seconds is not None:
                    LOGGER.info("%s: %s%s", text, duration(seconds), f"; {ahead}" if ahead else "")

        yield report
    if show and any(clock.spent.values()):
        LOGGER.info(
            "in all: %s",
            ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in clock.spent.items()),
        )


def now() -> float:
    """Seconds of a clock that never goes back."""
    return time.monotonic()
