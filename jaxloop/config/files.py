"""Config files: Python with `get_config(argument=None) -> ml_collections.ConfigDict`."""

import inspect
import pathlib
import types
from typing import Any

import ml_collections

from jaxloop.config import catalogue
from jaxloop.config.messages import nearest


def read_file(spec: str) -> dict[str, Any]:
    """Return the ConfigDict of a config file as a plain dict.

    Args:
        spec: `path.py`, `path.py:argument`, or the name of a shipped config (see
            `catalogue.locate`).

    Raises:
        ValueError: the file is missing, is not UTF-8 or not Python, or its `get_config` is missing
            or fails.
    """
    path, argument = catalogue.locate(spec)
    flag = f"--config={spec}"
    _check_exists(path, flag)
    config = _get_config(path, _read_source(path, flag), argument, flag)
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{flag}: get_config() must return an ml_collections.ConfigDict, got "
            f"{type(config).__name__}"
        )
    return config.to_dict()


def _check_exists(path: pathlib.Path, flag: str) -> None:
    if not path.exists():
        # Paths are alike by their folder and ending: names alone are compared.
        files = reversed(catalogue.siblings(path))  # of one name the first counts
        by_name = {pathlib.Path(file).stem: file for file in files}
        near = nearest(path.stem, by_name)
        hint = f"did you mean {by_name[near]}?" if near else ""
        if not near:
            hint = "a Python file of yours, or one of those that --list shows"
        raise ValueError(f"{flag}: there is no file {path}; {hint}")
    if path.is_dir() or path.suffix != ".py":
        raise ValueError(f"{flag}: must be a Python file (.py) with get_config()")


def _read_source(path: pathlib.Path, flag: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{flag}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ValueError(f"{flag}: cannot be read: {error.strerror}") from None


def _get_config(path: pathlib.Path, source: str, argument: str | None, flag: str) -> Any:
    """Execute the file and return what its `get_config` returns."""
    module = types.ModuleType("config")
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
        get_config = module.__dict__.get("get_config")
        if not callable(get_config):
            raise ValueError(f"{flag}: defines no get_config()")
        if argument is not None and not inspect.signature(get_config).parameters:
            raise ValueError(f"{flag}: get_config() takes no argument, got ':{argument}'")
        return get_config() if argument is None else get_config(argument)
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(flag):
            raise
        raise ValueError(f"{flag}: {_describe_failure(error, path)}") from error


def _describe_failure(error: Exception, path: pathlib.Path) -> str:
    """Say where in the file an exception was raised, and which."""
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    else:
        line, message = _line_in(error, str(path)), str(error)
    place = f"{path}, line {line}" if line else f"{path}"
    words = " ".join(message.split())
    if type(error) is ValueError:  # a sentence of the file's own, such as about its argument
        return f"{words} ({place})"
    return f"{place}: {type(error).__name__}: {words}"


def _line_in(error: BaseException, filename: str) -> int | None:
    """The innermost line of `filename` in an exception's traceback."""
    line, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
