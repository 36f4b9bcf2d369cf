"""The log of a run, with secrets left out."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

LOGGER = logging.getLogger("jaxloop")
REDACTED = "(hidden)"
_SECRET_NAME = re.compile(
    r"(^|_)(api_?key|secret|password|passwd|credentials?|auth|bearer|token|access_?key"
    r"|private_?key)$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(r"\b(?:sk-|hf_|ghp_|github_pat_|xox[bap]-|AKIA)[A-Za-z0-9_\-]{12,}")


def is_secret_name(name: str) -> bool:
    """Say whether a field or environment variable of this name holds a secret.

    "api_key" and "HF_TOKEN" do, "max_new_tokens" does not.
    """
    return bool(_SECRET_NAME.search(name))


def redact(text: str) -> str:
    """Return the text without the values of secret environment variables and well-known keys."""
    for name, value in os.environ.items():
        if len(value) >= 8 and is_secret_name(name):
            text = text.replace(value, REDACTED)
    return _SECRET_VALUE.sub(REDACTED, text)


class _RedactingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _SilentFileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        # A disk that is full is reported once by the writer that matters; run.log must not add a
        # traceback per line.
        self.setLevel(logging.CRITICAL + 1)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Looked up at every line: a progress bar replaces sys.stderr while it is shown.
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


@contextlib.contextmanager
def run_log(path: Path, *, console: bool = True) -> Iterator[logging.Logger]:
    """Append what the "jaxloop" logger says, INFO and above, to a file while the context lasts.

    Args:
        console: whether to write it to standard error too.
    """
    file_handler = _SilentFileHandler(path, encoding="utf-8", errors="backslashreplace")
    file_handler.setFormatter(_RedactingFormatter("%(asctime)s %(levelname)s %(message)s"))
    handlers: list[logging.Handler] = [file_handler]
    if console:
        stderr_handler = _StderrHandler()
        stderr_handler.setFormatter(_RedactingFormatter("%(message)s"))
        handlers.append(stderr_handler)
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
