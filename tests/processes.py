"""Processes that tests start."""

import contextlib
import subprocess


@contextlib.contextmanager
def ended_with(monkeypatch):
    """Whatever is started within is ended and closed on leaving, also after a failure: what a
    failed test leaves would disturb a later one.
    """
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", Noted)
        try:
            yield
        finally:
            for process in started:
                with process:
                    process.kill()
