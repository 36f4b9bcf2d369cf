"""Signals are answered at safe points, twice at once, and handlers are put back."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jaxloop.runtime.signals import EXIT_INTERRUPTED, EXIT_TERMINATED, Stopped, stop_safely

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, EXIT_TERMINATED), (signal.SIGINT, EXIT_INTERRUPTED)]
)
def test_a_signal_waits_for_the_next_safe_point(number, code, capfd):
    before = signal.getsignal(number)
    with stop_safely() as stop:
        stop.check()
        stop.doing = "the fit step"
        os.kill(os.getpid(), number)
        done = "work goes on"
        with pytest.raises(Stopped) as stopped:
            stop.check()
    assert done and stopped.value.code == code and stopped.value.name == signal.Signals(number).name
    assert signal.getsignal(number) is before
    assert "stopping after the fit step" in capfd.readouterr().err
    assert (EXIT_TERMINATED, EXIT_INTERRUPTED) == (143, 130)


def test_the_second_signal_leaves_at_once():
    script = (
        "import os, signal, time; from jaxloop.runtime.signals import stop_safely\n"
        "with stop_safely():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); os.kill(os.getpid(), signal.SIGTERM); "
        "time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=240, capture_output=True, text=True
    )
    assert (
        done.returncode == 143
        and "leaving at once" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_outside_the_main_thread_nothing_is_caught():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work():
        with stop_safely() as stop:
            stop.check()
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
