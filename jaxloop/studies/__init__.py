"""The studies that can be run, and how one adds a study.

A study is a package with the same files as every other:

    config.py    CONFIG, the schema of its config: a `config.Section` with a field `study`. Imports
                 only `jaxloop.config`, `studies.common.config` and `studies.common.factors`, so
                 that `--list`, `--fields` and a typo in a config cost no start-up time
    prepare.py   prepare(config): reads the data and the models' descriptions and refuses what
                 cannot be run; writes nothing
    cost.py      the table that `--plan` prints, and the bytes that a run leaves on the disk
    measure.py   what is measured of a model, a generation or the whole run
    report.py    writes figures/ and report.html into a run directory
    run.py       the functions check, plan and run (see `Study`), kept short

and an entry in `STUDIES`. Its `run` passes its own steps to `studies.common.run.run_study`, which
does what every run has in common: the run directory, the manifest, the facts about the run that the
report shows, the exit code. Code that several studies need is in `studies/common`, which imports no
study; no study imports another. `studies/pretrain` is the shortest one to read first,
`studies/chain` is the typical one.
"""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxloop import config
from jaxloop.runtime.user_path import user_path

# Exit code of a study that finished although some of its chains stopped.
FAILED_CHAINS = 3
# Exit code of a study that finished although a formula and a simulation disagree.
DISAGREES = 4
# Exit code of a study that finished without some of its scores, because a judge did not answer.
MISSING_SCORES = 5


class JudgeSilent(RuntimeError):
    """A study cannot go on, because a judge that it needs now does not answer.

    What the judge has answered is kept.
    """


class Study(Protocol):
    """What a study's `run` module offers; `config` is an instance of its CONFIG."""

    CONFIG: type[config.Section]

    def check(self, config: Any, workdir: Path | None = None) -> list[str]:
        """Read what a run would read first (data, models) and return lines that describe it.

        Writes nothing. Raises ValueError if the run cannot succeed, DiskFull where it would not fit
        the disk of `workdir`.
        """

    def plan(self, config: Any, target: str | None = None) -> list[tuple[str, str]]:
        """Return the (what, amount) rows that `--plan` prints.

        target: None for the hardware of this machine, or the argument of `--for`: hardware that is
        absent. It is given only to studies whose entry has `plans_absent_hardware`.
        """

    def run(self, config: Any, workdir: Path, *, argv: Sequence[str] = ()) -> int:
        """Run the study, or the rest of one, in a run directory, and return the exit code."""


class Entry(NamedTuple):
    """One study in the registry.

    Attributes:
        package: the study's package, dotted.
        line: what the study is, as `--list` prints it.
        plans_absent_hardware: whether `--plan --for` works for the study.
    """

    package: str
    line: str
    plans_absent_hardware: bool = False


STUDIES: dict[str, Entry] = {
    "chain": Entry(
        "jaxloop.studies.chain",
        "language models trained on their predecessors' text, one chain per ratio and seed",
        plans_absent_hardware=True,
    ),
    "bias": Entry(
        "jaxloop.studies.bias_amplification",
        "language models that continue labelled articles, trained on their predecessors' "
        "continuations",
        plans_absent_hardware=True,
    ),
    "loops": Entry(
        "jaxloop.studies.recursive_loops",
        "the recursive-loops experiments: ratios, datasets, clusters, domains, quality, "
        "politics, interventions",
        plans_absent_hardware=True,
    ),
    "multi_entity": Entry(
        "jaxloop.studies.multi_entity",
        "several language models that train on each other's text, with the linear model beside "
        "them",
        plans_absent_hardware=True,
    ),
    "diversity": Entry(
        "jaxloop.studies.diversity",
        "fine-tuning on generated data of seven levels of diversity, alone and mixed with real "
        "data",
        plans_absent_hardware=True,
    ),
    "theory": Entry(
        "jaxloop.studies.theory",
        "models with a formula: what the formulas say beside what simulations give",
    ),
    "pretrain": Entry("jaxloop.studies.pretrain", "tokenizer and tiny base models from scratch"),
    "bench": Entry("jaxloop.studies.bench", "microbenchmarks of training and decoding"),
}


def config_of(name: object) -> type[config.Section]:
    """Return the schema of a study's config, importing nothing heavy.

    Raises ValueError where there is no study of that name.
    """
    return importlib.import_module(f"{_entry(name).package}.config").CONFIG


def load(name: object) -> Study:
    """Return a study. Raises ValueError where there is none of that name."""
    study: Any = importlib.import_module(f"{_entry(name).package}.run")
    return study


def is_address(workdir: str | Path) -> bool:
    """Say whether a work directory is an address of an object store rather than a local path."""
    return "://" in str(workdir)


def place_of(workdir: str | os.PathLike[str]) -> str | Path:
    """Return a work directory as a path with its ~ expanded, or as the address that was given.

    Shells leave the ~ of --workdir=~/run as it is.
    """
    text = os.fspath(workdir)
    return text if is_address(text) else user_path(text)


def run_at(
    study: Study, settings: Any, workdir: str | Path, *, argv: Sequence[str] = ()
) -> tuple[int, Path]:
    """Run a study in a directory, or at an address of an object store such as s3://bucket/run.

    Returns:
        The exit code, and the local run directory: `workdir`, or the copy of what is at the
        address (`runtime.mirror`).

    Raises:
        ValueError: the run cannot succeed, or the store cannot be used.
    """
    if not is_address(workdir):
        return study.run(settings, Path(workdir), argv=argv), Path(workdir)
    mirror = importlib.import_module("jaxloop.runtime.mirror")
    with mirror.mirrored(str(workdir)) as path:
        try:
            return study.run(settings, path, argv=argv), path
        except ValueError as error:
            if str(path) not in str(error):
                raise
            # The user gave the address and need not know of the copy.
            raise ValueError(str(error).replace(str(path), str(workdir))) from error


def check_target(name: object, target: str) -> None:
    """Raise ValueError where a study has no plan for absent hardware; target: that of `--for`."""
    if not _entry(name).plans_absent_hardware:
        able = [study for study, entry in STUDIES.items() if entry.plans_absent_hardware]
        raise ValueError(
            f"--for={target}: a study of kind '{name}' has no plan for hardware that "
            f"is absent; those of kind {', '.join(able)} have"
        )


def _entry(name: object) -> Entry:
    if name is None:
        raise ValueError(f"config.study is missing: one of {', '.join(STUDIES)}")
    if not isinstance(name, str) or name not in STUDIES:
        raise ValueError(
            f"config.study = {name!r} is not a study; {config.suggestion(str(name), STUDIES)}"
        )
    return STUDIES[name]
