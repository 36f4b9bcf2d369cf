"""What is kept current while a run goes on: report.html, the time left, and the trackers.

All of it is done in a thread of its own, and none of it can end a run: what fails is logged. A page
takes at most a twentieth of one core: the next one waits for nineteen times as long as the last
one took, and is then of the newest generation.
"""

import contextlib
import datetime
import functools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxloop.recursion.progress import State, Watch, duration, now
from jaxloop.reporting.run_files import PROGRESS, read_spent
from jaxloop.runtime.atomic_io import write_atomic
from jaxloop.runtime.log import LOGGER, redact
from jaxloop.runtime.signals import Stopped

# Seconds after which a browser loads the page of a running study again.
RELOAD = 30
# Seconds that a run waits at its end for a page that is being drawn, or a tracker that sends.
PATIENCE = 120
# A page may take this share of the time.
SHARE = 1 / 20

# Does something about a state in the background, and may raise.
Work = Callable[[State], None]


@contextlib.contextmanager
def watching(
    root: Path,
    *,
    title: str,
    command: str,
    page: Mapping[str, Any],
    track: Work | None = None,
) -> Iterator[Watch]:
    """Context that gives the driver's `watch`, and keeps a run's page current while it lasts.

    After an exception, Ctrl-C and SIGTERM included, the page says that the run was stopped. After
    a normal end it is left as it is: the study writes its own report then. Of the time that a
    signal leaves at most half is used.

    Args:
        root: the run directory.
        title: heading of the page.
        command: the command that goes on with the run.
        page: further arguments of `report.write_page`.
        track: is called for every state, in order.
    """
    states: queue.SimpleQueue[State | None] = queue.SimpleQueue()
    write = functools.partial(_write_page, root, title=title, command=command, page=page)
    last: list[State] = []
    save = functools.partial(_save, root, read_spent(root))
    follow = functools.partial(_follow, states, last, root / "report.html", write, [save], track)
    thread = threading.Thread(target=follow, name="live report", daemon=True)
    thread.start()
    try:
        yield states.put
    except BaseException as error:
        until = None
        if isinstance(error, Stopped) and error.until is not None:
            # The other half is for sending what is finished.
            until = (now() + error.until) / 2
        _end(states, thread, until)
        if last:
            work = functools.partial(write, stopped=_reason(error))
            _within(until, functools.partial(_logged, "report.html", work, last[-1]))
        raise
    _end(states, thread)


def _end(
    states: "queue.SimpleQueue[State | None]", thread: threading.Thread, until: float | None = None
) -> None:
    states.put(None)
    seconds = PATIENCE if until is None else min(PATIENCE, max(0.0, until - now()))
    thread.join(seconds)
    if thread.is_alive():
        LOGGER.warning("the page or a tracker did not end within %.0f s; it is left", seconds)


def _within(until: float | None, work: Callable[[], None]) -> None:
    """Do the work, and leave it where it takes longer than until then."""
    if until is None:
        work()
        return
    thread = threading.Thread(target=work, name="last page", daemon=True)
    thread.start()
    thread.join(max(0.0, until - now()))


def _follow(
    states: "queue.SimpleQueue[State | None]",
    last: list[State],
    page: Path,
    write: Work,
    always: Sequence[Work],
    track: Work | None,
) -> None:
    """Do the work of every state until None comes; pages may be left out, the newest never."""
    waiting: State | None = None
    due = 0.0
    while True:
        try:
            state = states.get(timeout=None if waiting is None else max(0.0, due - now()))
        except queue.Empty:
            assert waiting is not None  # else there was no time limit
            start = now()
            _logged("report.html", write, waiting)
            due = now() + (now() - start) * (1 / SHARE - 1)
            waiting = None
            continue
        if state is None:
            return
        if not last:
            LOGGER.info("while it runs, open %s in a browser", page)
        last[:] = [state]
        for work in always:
            _logged(PROGRESS, work, state)
        if track is not None:
            _logged("trackers", track, state)
        waiting = state


def _logged(what: str, work: Work, state: State) -> None:
    """Do the work; an exception becomes a warning."""
    try:
        work(state)
    except Exception as error:  # a run must not end for the sake of its page
        LOGGER.warning("%s is not current (%s); the run goes on", what, redact(str(error)))


def _reason(error: BaseException) -> str:
    if isinstance(error, Stopped):
        return f"by {error.name}"
    if isinstance(error, KeyboardInterrupt):
        return "by Ctrl-C"
    return f"by an error: {redact(str(error)) or type(error).__name__}"


def _save(root: Path, before: Mapping[str, float], state: State) -> None:
    """Write how far the run is, and what it has cost since it was begun."""
    kinds = dict.fromkeys([*before, *state.spent])
    content = {
        "finished": state.finished,
        "generations": state.generations,
        "seconds_left": state.seconds_left,
        "spent": {kind: before.get(kind, 0.0) + state.spent.get(kind, 0.0) for kind in kinds},
        "at": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    write_atomic(root / PROGRESS, json.dumps(content).encode(), durable=False)


def _write_page(
    root: Path,
    state: State,
    *,
    title: str,
    command: str,
    page: Mapping[str, Any],
    stopped: str | None = None,
) -> None:
    # matplotlib and pandas take a second to load, which the run need not wait for.
    import pandas as pd

    from jaxloop.reporting.report import Progress
    from jaxloop.studies.common import report

    columns = ["chain", "generation", "metric", "value"]
    metrics = pd.DataFrame(columns=columns)
    if (root / "metrics.csv").exists():
        metrics = report.read_metrics(root)
    running = stopped is None
    progress = Progress(
        title="This run is going on" if running else f"This run was stopped {stopped}",
        lines=[_words(state, running), _advice(command, running)],
        done=state.finished,
        total=state.generations,
        reload=RELOAD if running else None,
    )
    report.write_page(
        root,
        metrics,
        title=title,
        subtitle=report.dated(f"{state.finished} of {state.generations} generations"),
        samples=report.first_and_last_texts(root, metrics),
        failed=state.failed,
        progress=progress,
        **page,
    )


def _words(state: State, running: bool) -> str:
    """How far the run is, in a sentence."""
    words = f"{state.finished} of {state.generations} generations are finished"
    if not running or state.finished == state.generations:
        return f"{words}."
    left = state.seconds_left
    return f"{words}; {'time left not known yet' if left is None else duration(left) + ' left'}."


def _advice(command: str, running: bool) -> str:
    at = datetime.datetime.now().astimezone()
    moment = f"{at.day} {at:%B %Y, %H:%M:%S}"
    again = f"the same command goes on with it: {command}"
    if not running:
        return f"Written at {moment}; {again}"
    return (
        f"As of {moment}; the page changes after every generation and loads itself again every "
        f"{RELOAD} seconds. If the process is gone, {again}"
    )
