"""SIGTERM and Ctrl-C: finish and keep the running step, then leave with a documented code.

A second signal leaves at once.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

EXIT_REFUSED = 2
EXIT_GONE = 6
EXIT_DISK_FULL = 28
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class Stopped(SystemExit):
    """Raised at the first safe point after SIGTERM (exit code 143) or Ctrl-C (130).

    Attributes:
        number, name: 15 and "SIGTERM", or 2 and "SIGINT".
        until: when the process must have left, by time.monotonic(); None: no limit.
    """

    def __init__(self, number: int, until: float | None = None):
        super().__init__(128 + number)
        self.number = number
        self.name = signal.Signals(number).name
        self.until = until


class Stop:
    """Whether a signal has arrived.

    Attributes:
        number: the signal's number, or None.
        doing: what is under way, for the message of the first signal.
        notice: seconds that SIGTERM gives; None: no limit.
        until: when they are over, by time.monotonic().
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.doing: str | None = None
        self.notice: float | None = None
        self.until: float | None = None

    def take(self, number: int) -> None:
        """Note a signal."""
        if number == signal.SIGTERM and self.notice is not None:
            self.until = time.monotonic() + self.notice
        self.number = number

    def check(self) -> None:
        """Raise Stopped if a signal has arrived; to be called where all work done is on disk."""
        if self.number is not None:
            raise Stopped(self.number, self.until)


@contextlib.contextmanager
def stop_safely() -> Iterator[Stop]:
    """Record signals in a `Stop` while the context lasts.

    Outside the main thread signals cannot be caught and stay as they were.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if stop.number is not None:
            _write_stderr(f"{name} again: leaving at once; what was finished is on disk")
            os._exit(128 + number)
        stop.take(number)
        _write_stderr(
            f"{name}: stopping after {stop.doing or 'the step that is running'}; a second signal "
            "leaves at once"
        )

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_stderr(text: str) -> None:
    # print() may not be entered again from a handler that interrupted it; a plain write may.
    with contextlib.suppress(OSError):
        os.write(
            sys.stderr.fileno() if hasattr(sys.stderr, "fileno") else 2, f"\n{text}\n".encode()
        )
