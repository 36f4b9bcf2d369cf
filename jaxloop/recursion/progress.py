"""Progress over all generations with the time left: a bar on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.timings import took


def duration(seconds: float) -> str:
    """Write `3725` as "1 h 02 min", `125` as "2 min 05 s"."""
    seconds = int(round(seconds))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


class Clock:
    """Estimates the time left from the seconds per unit of work of each kind of step.

    The first time of a kind that ran more than once is left out: it includes the compilation.
    """

    def __init__(self, total: Mapping[str, float]) -> None:
        self.left = dict(total)
        self.runs: dict[str, list[tuple[float, float]]] = {kind: [] for kind in total}
        self.spent = dict.fromkeys(total, 0.0)

    def skip(self, kind: str, units: float) -> None:
        """Take off work that an earlier run has done."""
        self.left[kind] = max(0.0, self.left[kind] - units)

    def done(self, kind: str, units: float, seconds: float) -> None:
        """Take off work that was just done, and its time."""
        self.skip(kind, units)
        self.spent[kind] += seconds
        if units:
            self.runs[kind].append((units, seconds))

    def seconds_left(self) -> float | None:
        """Return the estimate; None while a kind that is still to come has not been timed."""
        total = 0.0
        for kind, left in self.left.items():
            if not left:
                continue
            timed = self.runs[kind][1:] or self.runs[kind]
            if not timed:
                return None
            total += left * sum(s for _, s in timed) / sum(u for u, _ in timed)
        return total


class State(NamedTuple):
    """How far a run is.

    last          last finished generation; None: none is
    generations   number of generations of the whole run
    seconds_left  estimate of the time that is left; None: not known yet
    spent         seconds that each kind of step has taken since the run was begun or resumed
    failed        chains that stopped, by id: {"generation": ..., "reason": ...}
    """

    last: int | None
    generations: int
    seconds_left: float | None
    spent: Mapping[str, float]
    failed: Mapping[str, Any]

    @property
    def finished(self) -> int:
        """Return the number of finished generations."""
        return 0 if self.last is None else self.last + 1


# Is told how far a run is: at its start, and after every generation once its files are on the disk.
Watch = Callable[[State], None]


class Report(Protocol):
    """Tells the progress bar that a step is done. Any thread may call it.

    kind     kind of step, a key of the totals
    units    units of work that were done
    seconds  time that they took; None: an earlier run had done them
    text     what is shown
    """

    def __call__(self, kind: str, units: float, seconds: float | None, text: str, /) -> None: ...


@contextlib.contextmanager
def progress(clock: Clock, generations: int, *, show: bool = True) -> Iterator[Report]:
    """Context with a progress bar: yields the function that is called whenever a step is done.

    At the end a line says how long each kind of step took in all, if anything was done.

    Args:
        clock: of the units of work that are to be done.
        generations: for the bar's title.
        show: whether to show anything.
    """
    lock = threading.Lock()
    total = dict(clock.left)
    live = show and sys.stderr.isatty()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not live) as bar:
        task = bar.add_task(f"{generations} generations", total=sum(total.values()) or 1.0, left="")

        def report(kind: str, units: float, seconds: float | None, text: str) -> None:
            with lock:
                if seconds is None:
                    clock.skip(kind, units)
                else:
                    clock.done(kind, units, seconds)
                    took(kind, seconds)
                left = _time_left(clock)
                bar.update(task, advance=units if total[kind] else 0, description=text, left=left)
                if show and seconds is not None:
                    LOGGER.info("%s: %s%s", text, duration(seconds), f"; {left}" if left else "")

        yield report
    if show and any(clock.spent.values()):
        LOGGER.info(
            "in all: %s",
            ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in clock.spent.items()),
        )


def _time_left(clock: Clock) -> str:
    left = clock.seconds_left()
    if left is None:
        return "time left not known yet"
    return f"{duration(left)} left" if left else ""


def now() -> float:
    """Return the seconds of a clock that never goes back."""
    return time.monotonic()
