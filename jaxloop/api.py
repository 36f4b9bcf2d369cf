"""Run studies from Python: what the command line does, as functions.

import jaxloop

settings = jaxloop.load_config("quickstart", {"chain.generations": 3})
jaxloop.run(settings, "runs/first")
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxloop import config, studies


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> config.Section:
    """Return the settings of a config file.

    Args:
        name: what stands after `--config=`: `path.py`, `path.py:argument`, or the name of a shipped
            config, such as "quickstart".
        changes: {dotted field: value}, such as {"chain.ratios": (0.125, 1)}.

    Raises:
        ValueError: the file, a field or a value is wrong; the sentence says which.
    """
    raw = config.read_file(name)
    schema = studies.config_of(raw.get("study"))
    return config.build(schema, config.change(raw, changes or {}, schema))


def check(settings: config.Section) -> list[str]:
    """Read all data and models that a run would read first, and return lines about them.

    Raises:
        ValueError: a run cannot succeed; the sentence says why.
    """
    return _study(settings).check(settings)


def plan(settings: config.Section, target: str | None = None) -> list[tuple[str, str]]:
    """Return the (what, amount) rows of `--plan`.

    Args:
        target: hardware that need not be here, as `--for` takes it; none: this machine.

    Raises:
        ValueError: a run cannot succeed, or the study has no plan for absent hardware.
    """
    if target is not None:
        studies.check_target(_name(settings), target)
    return _study(settings).plan(settings, target)


def run(settings: config.Section, workdir: str | os.PathLike[str]) -> int:
    """Run a study, or the rest of one, in a run directory.

    Returns:
        The exit code of the command line: 0, 3 where some chains failed, 4 where a formula and a
        simulation disagree.

    Raises:
        ValueError: the run cannot succeed, or the directory is another run's.
        SystemExit: after SIGTERM or Ctrl-C; what was finished is on disk.
    """
    return _study(settings).run(settings, pathlib.Path(workdir))


def _name(settings: config.Section) -> object:
    return getattr(settings, "study", None)


def _study(settings: config.Section) -> studies.Study:
    return studies.load(_name(settings))
