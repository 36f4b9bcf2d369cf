"""Processes that tests start, and directories that such processes are writing."""

import contextlib
import os
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


def entries(path):
    """The paths of all directories and files below a directory, as far as they are still there.

    `Path.glob` raises where a directory goes while it is read (Python 3.11 and 3.12).
    """
    found = []
    for folder, folders, files in os.walk(path):
        found += [os.path.join(folder, name) for name in folders + files]
    return found
