"""What every run of a study has in common: `run_study`.

A study's `run` passes a `Steps` to `run_study`: how its inputs are read and checked (`prepare`),
how many bytes it leaves on the disk (`disk_bytes`), and its own work (`execute`), which returns an
`Outcome` with a function that writes the report. `run_study` takes care of the run directory, the
manifest, the cache of compiled programs, the hashes of the models' files, the facts about the run
in the report, and the exit code. So a study that trains chains is

    def run(config, workdir, *, argv=()):
        return run_study(Steps(prepare, disk_bytes, execute), config, workdir, argv=argv)

    def execute(context):
        settings = context.driver_settings(...)
        result = driver.run(..., settings, context.root, command=context.command,
                            watch=context.watch)
        return trained(result, run_info=[("chains", ...)], write_report=...)

Studies also differ in which fields of the config may be changed when a run is resumed, which may
be raised, and which are not stored with the run: these are further fields of `Steps`.
"""

import concurrent.futures
import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jaxloop
from jaxloop import trackers
from jaxloop.config import (
    ChainSection,
    FitConfig,
    RunConfig,
    SampleConfig,
    Section,
    fingerprint,
    stored_names,
)
from jaxloop.lm.model.config import ModelConfig
from jaxloop.recursion import driver
from jaxloop.recursion.progress import Watch, duration
from jaxloop.runtime import environment
from jaxloop.runtime.atomic_io import cache_folder
from jaxloop.runtime.cluster import initialise_distributed, processes, watch_silence
from jaxloop.runtime.compile_cache import keep_compiled_programs
from jaxloop.runtime.devices import programs_at_once
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet
from jaxloop.runtime.optional import check_trackers
from jaxloop.runtime.timings import took
from jaxloop.runtime.workdir import open_workdir, stored_form
from jaxloop.studies import FAILED_CHAINS, MISSING_SCORES
from jaxloop.studies.common import calls, identity, live, spent
from jaxloop.studies.common.missing import NOTHING, Missing, warn_of_judges

T = TypeVar("T")
C = TypeVar("C", bound=Section)
P = TypeVar("P")

RunInfo = list[tuple[str, str]]


class PageInputs(NamedTuple):
    """What every report shows of its run.

    Attributes:
        run_info: (name, value) lines.
        config: the config as it is stored in config.json.
        versions: (library, version) pairs.
    """

    run_info: RunInfo
    config: Mapping[str, Any]
    versions: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a study's own work ended.

    Attributes:
        write_report: writes the report and returns its path; None: there is no report.
        run_info: (name, value) lines that the study adds to the report.
        exit_code: 0, `FAILED_CHAINS` or `DISAGREES` (see `jaxloop.studies`).
        resumed_after: the last generation that was finished when the run was resumed; None: it
            was not resumed, or has no generations.
        resumed: whether a run without generations was resumed.
        summary: words for the log, in front of the report's path.
        missing: scores that are missing; the exit code is then `MISSING_SCORES`.
    """

    write_report: Callable[[PageInputs], Path] | None = None
    run_info: Sequence[tuple[str, str]] = ()
    exit_code: int = 0
    resumed_after: int | None = None
    resumed: bool = False
    summary: str = ""
    missing: Missing = NOTHING


@dataclasses.dataclass(frozen=True)
class RunContext(Generic[C, P]):
    """An open run: the argument of a study's `execute`.

    Attributes:
        config: the study's config.
        prepared: what `Steps.prepare` returned.
        root: the run directory.
        command: the command that repeats the run.
        models: {model: hash of its files}.
        resumed: whether the run was begun before.
        is_first_process: whether this process writes the files of the study.
        watch: what the driver tells how far the run is (see `live`).
    """

    config: C
    prepared: P
    root: Path
    command: str
    models: Mapping[str, str]
    resumed: bool
    is_first_process: bool
    watch: Watch | None = None

    def driver_settings(self, settings: driver.RunSettings) -> driver.RunSettings:
        """Return a driver's settings with what the config says of signals and the bases' hashes."""
        return dataclasses.replace(
            settings,
            identity=identity.bases(self.models),
            notice=self.config.run.notice_seconds,  # type: ignore[attr-defined]  # as below
        )


@dataclasses.dataclass(frozen=True)
class Steps(Generic[C, P]):
    """A study's own part of a run.

    Attributes:
        prepare: function(config) that reads the inputs and raises ValueError for what cannot be
            run; it writes nothing.
        disk_bytes: function(config, prepared) -> an upper bound on the bytes that the run leaves.
        execute: does the work; it is called in every process of a cluster.
        free_fields: dotted fields that change no result: a resumed run may change them, and the
            config's fingerprint ignores them.
        changeable_fields: further fields that a resumed run may change.
        raisable_fields: numbers that a resumed run may raise.
        unstored_fields: fields that belong to one call and are not stored with the run.
        judged: function(config) -> the metrics of generated text that may ask a judge.
        identify_metrics: whether the models of metrics must be the same when the run is resumed.
        identify_models: whether any model must; false for a study that reads none.
        shared: whether several processes can share the work.
    """

    prepare: Callable[[C], P]
    disk_bytes: Callable[[C, P], int]
    execute: Callable[[RunContext[C, P]], Outcome]
    free_fields: Sequence[str] = ("run", "title")
    changeable_fields: Sequence[str] = ()
    raisable_fields: Sequence[str] = ("chain.generations",)
    unstored_fields: frozenset[str] = frozenset()
    identify_metrics: bool = True
    identify_models: bool = True
    shared: bool = True
    judged: Callable[[C], Sequence[str]] = lambda config: ()


def run_study(steps: Steps[C, P], config: C, workdir: Path, *, argv: Sequence[str] = ()) -> int:
    """Run a study, or the rest of one, and return its exit code.

    Raises ValueError before anything is written if the run cannot succeed or is not the one in
    `workdir`, DiskFull where it does not fit the disk.
    """
    start = time.monotonic()
    initialise_distributed()
    if not steps.shared and processes()[1] > 1:
        raise ValueError(
            f"a study of kind '{getattr(config, 'study', '')}' is the work of one process, and "
            f"these are {processes()[1]}: start it without the others"
        )
    # The simulations have no such field.
    silence = getattr(config.run, "silence_seconds", None)  # type: ignore[attr-defined]  # as below
    if silence is not None:
        watch_silence(silence)
    keep_compiled(config.run)  # type: ignore[attr-defined]  # every study has a section `run`
    # Studies without generations have no trackers.
    check_trackers(getattr(config.run, "trackers", ()))  # type: ignore[attr-defined]
    began = time.monotonic()
    prepared = steps.prepare(config)
    took("read and check", time.monotonic() - began)
    stored = config.model_dump(mode="json", exclude=set(steps.unstored_fields))
    models = {}
    if steps.identify_models:
        models = identity.of(config, metrics=steps.identify_metrics)
    with (
        open_workdir(
            workdir,
            stored,
            may_change=(*steps.free_fields, *steps.changeable_fields),
            may_raise=steps.raisable_fields,
            needs=steps.disk_bytes(config, prepared),
            identity=models,
            update=stored_names(type(config)),
            meet=meet,
        ) as place,
        _recorded(place.path, argv),
    ):
        page = PageInputs(
            run_info=_facts(steps, config, models, argv),
            config=stored_form(stored),
            versions=environment.versions(),
        )
        with _watching(place.path, config, page, argv) as watch:
            context = RunContext(
                config=config,
                prepared=prepared,
                root=place.path,
                command=command_line(argv),
                models=models,
                resumed=place.resumed,
                is_first_process=processes()[0] == 0,
                watch=watch,
            )
            if context.is_first_process:
                warn_of_judges(steps.judged(config), getattr(config, "judge", "later"))
            outcome = steps.execute(context)
        if context.is_first_process and outcome.write_report is not None:
            seconds = time.monotonic() - start
            facts = _with_outcome(page.run_info, outcome, seconds)
            began = time.monotonic()
            path = outcome.write_report(page._replace(run_info=facts))
            took("report", time.monotonic() - began)
            summary = f"{outcome.summary}; " if outcome.summary else ""
            LOGGER.info("%sthe report is %s", summary, path)
        if outcome.missing.line:
            LOGGER.warning("%s", outcome.missing.line)
    return MISSING_SCORES if outcome.missing.line else outcome.exit_code


def _facts(
    steps: Steps[C, P], config: C, models: Mapping[str, str], argv: Sequence[str]
) -> RunInfo:
    """The (name, value) lines that are known of a run from its start."""
    ignored = {*steps.free_fields, *steps.unstored_fields}
    return [
        ("command", command_line(argv)),
        *((f"files of {name}", value) for name, value in models.items()),
        ("code", f"jaxloop {jaxloop.__version__}, commit {environment.git_commit()}"),
        ("device", environment.describe_devices()),
        ("config fingerprint", fingerprint(config, ignore=ignored)),
    ]


def _with_outcome(facts: RunInfo, outcome: Outcome, seconds: float) -> RunInfo:
    """The lines of the final report: those of the study after the command, the time at the end."""
    command, *others = facts
    took = elapsed(seconds, outcome.resumed_after, resumed=outcome.resumed)
    lacks = [("missing", outcome.missing.line)] if outcome.missing.line else []
    return [command, *outcome.run_info, *lacks, *others, ("time", took)]


def _recorded(root: Path, argv: Sequence[str]) -> contextlib.AbstractContextManager[None]:
    """Context that records what this call takes; in the first process of a cluster only."""
    if processes()[0] > 0:
        return contextlib.nullcontext()
    return spent.recorded(root, command_line(argv))


@contextlib.contextmanager
def _watching(
    root: Path, config: Section, page: PageInputs, argv: Sequence[str]
) -> Iterator[Watch | None]:
    """Context that gives the driver's `watch` for a study: the page, and the trackers it names.

    None in all processes of a cluster but the first.
    """
    if processes()[0] > 0:
        yield None
        return
    title = getattr(config, "title", None) or f"A study of kind {getattr(config, 'study', '')}"
    names = getattr(config.run, "trackers", ())  # type: ignore[attr-defined]  # as above
    with (
        trackers.opened(names, root, title, page.config) as track,
        live.watching(
            root, title=title, command=command_line(argv), page=page._asdict(), track=track
        ) as watch,
    ):
        yield watch


def trained(
    result: driver.RunResult,
    *,
    run_info: Sequence[tuple[str, str]],
    write_report: Callable[[PageInputs], Path],
    all_chains: bool = True,
    missing: Missing = NOTHING,
) -> Outcome:
    """Return the outcome of a study from what the driver returned.

    Its exit code is `FAILED_CHAINS` if some chains stopped, or not `all_chains` were run.
    """
    return Outcome(
        write_report=write_report,
        run_info=run_info,
        exit_code=FAILED_CHAINS if result.failed or not all_chains else 0,
        resumed_after=result.resumed_after,
        missing=missing,
    )


def measured_again(
    missing: Missing, *, run_info: RunInfo, write_report: Callable[[PageInputs], Path]
) -> Outcome:
    """Return the outcome of `config.only = 'metrics'`."""
    return Outcome(
        write_report=write_report,
        run_info=run_info,
        exit_code=FAILED_CHAINS if missing.failed else 0,
        missing=missing,
    )


def keep_compiled(run: RunConfig) -> None:
    """Turn on the cache of compiled programs where the `run` section of a config asks for it."""
    if run.keep_compiled:
        keep_compiled_programs(cache_folder() / "xla")


def overlaps_eval(run: RunConfig) -> bool:
    """Return whether models are measured while the next ones are trained.

    `run.overlap_eval` decides; if it is none, the device does: a CPU has cores to spare, but on an
    accelerator both would share the memory that training was given.
    """
    if run.overlap_eval is not None:
        return run.overlap_eval
    return programs_at_once() > 1 and not run.shard_base


def chain_settings(
    chain: ChainSection,
    fit: FitConfig,
    sample: SampleConfig,
    run: RunConfig,
    shapes: Mapping[str, ModelConfig],
    *,
    study: str,
) -> driver.RunSettings:
    """Return what the driver needs of a study whose config has the section `chain`.

    shapes: of the models of the pool.
    """
    return driver.RunSettings(
        generations=chain.generations,
        fit=fit,
        sample=sample,
        evaluate=chain.eval_texts,
        keep=run.keep,
        study=study,
        overlap_eval=overlaps_eval(run),
        members_per_group=run.chains_per_call,
        seconds_per_call=calls.SECONDS,
        first_members=calls.first_chains(shapes, chain, fit, sample),
    )


@contextlib.contextmanager
def started(work: Callable[[], T], in_background: bool) -> Iterator[Callable[[], T]]:
    """Context that gives a function which returns what work() returns.

    With `in_background` another thread starts the work at once; otherwise it is done when the
    function is called.
    """
    if not in_background:
        yield work
        return
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        yield thread.submit(work).result


def command_line(argv: Sequence[str]) -> str:
    """Return the command that repeats a run; argv: `sys.argv`.

    It contains no path of the machine that the user did not type.
    """
    return shlex.join(["python", "-m", "jaxloop.main", *argv[1:]])


def elapsed(seconds: float, after: int | None = None, *, resumed: bool = False) -> str:
    """Return a duration in words: "12 min 3 s since it was resumed after generation 4".

    after: the generation after which the run was resumed; resumed: whether a run without
    generations was.
    """
    words = duration(seconds)
    if resumed or after is not None:
        words += " since it was resumed"
    return words if after is None else f"{words} after generation {after}"
