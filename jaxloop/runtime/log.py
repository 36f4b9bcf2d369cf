"""run.log, with secrets left out."""

import contextlib
import logging
import os
import re
import sys
from pathlib import Path

LOGGER = logging.getLogger("jaxloop")
HIDDEN = "(hidden)"
_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|secret|password|passwd|credentials?|auth|bearer|token|access_?key|private_?key)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(?:sk-|hf_|ghp_|github_pat_|xox[bap]-|AKIA)[A-Za-z0-9_\-]{12,}")


def is_secret_name(name: str) -> bool:
    """Whether a config field or environment variable of this name holds a secret ("api_key",
    "HF_TOKEN"; not "max_new_tokens").
    """
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """The text without keys: values of secret environment variables, and what looks like a
    well-known kind of key.
    """
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret_name(name):
            text = text.replace(value, HIDDEN)
    return _SECRET_VALUE.sub(HIDDEN, text)


class _Plain(logging.Formatter):
    def format(self, record):
        return redact(super().format(record))


class _Quiet(logging.FileHandler):
    def handleError(self, record):
        # A disk that is full is reported once by the writer that matters; run.log must not add a
        # traceback per line.
        self.setLevel(logging.CRITICAL + 1)


class _Console(logging.StreamHandler):
    # Looked up at every line: a progress bar puts its own stream in place of standard error while
    # it is shown.
    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, value):
        pass


@contextlib.contextmanager
def run_log(path: Path, *, console: bool = True):
    """Appends everything that the "jaxloop" logger says to a file while the context lasts, and
    warnings and infos to standard error.
    """
    handlers = [_Quiet(path, encoding="utf-8", errors="backslashreplace")]
    handlers[0].setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s"))
    if console:
        handlers.append(_Console())
        handlers[1].setFormatter(_Plain("%(message)s"))
    before, propagate = LOGGER.level, LOGGER.propagate
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    for handler in handlers:
        LOGGER.addHandler(handler)
    try:
        yield LOGGER
    finally:
        for handler in handlers:
            LOGGER.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()
        LOGGER.setLevel(before)
        LOGGER.propagate = propagate
