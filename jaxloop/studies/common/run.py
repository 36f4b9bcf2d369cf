"""What every study does around its own work: the cache of compiled programs, the lines that say how
a run came about, its page.
"""

import concurrent.futures
import contextlib
import datetime
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def keep_compiled(run) -> None:
    """Turns on the cache of compiled programs where the `run` section of a config asks for it."""
    from jaxloop.runtime.atomic_io import cache_folder
    from jaxloop.runtime.compile_cache import keep_compiled_programs

    if run.keep_compiled:
        keep_compiled_programs(cache_folder() / "xla")


def measures_beside(run) -> bool:
    """Whether models are measured while the next ones are trained, as the `run` section says or,
    where it does not, as suits the device: a CPU has cores to spare; on an accelerator both would
    share the memory that training was given.
    """
    from jaxloop.runtime.devices import programs_at_once

    return (
        run.measure_beside
        if run.measure_beside is not None
        else programs_at_once() > 1 and not run.cut_base
    )


@contextlib.contextmanager
def begun(work: Callable, beside: bool):
    """Context with a function that returns what work() returns, which another thread does from now
    on if `beside`; otherwise it is done when the function is called.
    """
    if not beside:
        yield work
        return
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        yield thread.submit(work).result


def command_line(argv: Sequence[str]) -> str:
    """The command that repeats a run, from `sys.argv`; it holds no path of the machine that the
    user did not write.
    """
    return shlex.join(["python", "-m", "jaxloop.main", *argv[1:]])


def elapsed(seconds: float, resumed_after: int | None = None) -> str:
    """ "12 min 3 s since it was resumed after generation 4", in seconds of the clock."""
    from jaxloop.recursion.progress import duration

    return duration(seconds) + (
        f" since it was resumed after generation {resumed_after}"
        if resumed_after is not None
        else ""
    )


def dated(line: str) -> str:
    """A line and the time of now, as the pages show them under their title."""
    now = datetime.datetime.now().astimezone()
    return f"{line} · {now.day} {now:%B %Y, %H:%M}"


def save_drawings(folder: Path, named: Mapping[str, object]) -> None:
    """Writes `named` (file name without suffix -> report.Drawing) as PNG files into a folder, which
    is made.
    """
    from jaxloop.reporting import figures
    from jaxloop.runtime.atomic_io import write_atomic

    folder.mkdir(exist_ok=True)
    for name, drawing in named.items():
        write_atomic(folder / f"{name}.png", figures.png(drawing.figure), durable=False)


def slug(title: str) -> str:
    """A title as a file name: lower case, one underscore for whatever is no letter or digit."""
    return "_".join("".join(ch if ch.isalnum() else " " for ch in title.lower()).split())


def write_page(
    root: Path,
    metrics,
    *,
    subtitle: str,
    facts: Sequence[tuple[str, object]],
    failed: Mapping[str, Mapping] | None = None,
    **page,
) -> Path:
    """Writes report.html into a run directory and returns its path; keys and tokens are left out of
    what is shown.

    metrics: the table behind the curves; failed: chain -> {generation, reason}; page: what else
    `reporting.report.render` takes.
    """
    from jaxloop.reporting import report
    from jaxloop.runtime.atomic_io import write_atomic
    from jaxloop.runtime.log import redact

    failures = [
        report.Failure(chain, int(why["generation"]), str(why["reason"]))
        for chain, why in (failed or {}).items()
    ]
    shown = [(name, redact(str(value))) for name, value in facts]
    path = root / "report.html"
    write_atomic(
        path,
        redact(
            report.render(metrics, subtitle=subtitle, failures=failures, facts=shown, **page)
        ).encode("utf-8"),
    )
    return path
