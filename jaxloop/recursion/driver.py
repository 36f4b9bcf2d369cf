"""The generation loop, for any family of models: draw, fit, generate, measure, finalise.

Called again with the same arguments, it goes on where it stopped.

`family.py` says what a family is, `workflow.py` what a generation trains on, `generation.py` makes
one generation, `finalise.py` puts it on the disk. The order of everything depends on the study
alone, so that a run that was killed and resumed repeats the same arithmetic.
"""

import dataclasses
import shlex
import sys
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.recursion import calls
from jaxloop.recursion.chains import ChainSpec, FitGroup, Member, groups
from jaxloop.recursion.family import Family, FamilySettings, FitT, GenerateT, ModelT, field_names
from jaxloop.recursion.finalise import Assembled, History, about_run, assemble, finish, write_tables
from jaxloop.recursion.generation import make
from jaxloop.recursion.old_names import changed_checksums, current_run_info, without_unused
from jaxloop.recursion.parts import weights_stem
from jaxloop.recursion.progress import Clock, State, Watch
from jaxloop.recursion.progress import progress as progress_bar
from jaxloop.recursion.run import (
    Failure,
    Features,
    Measure,
    NamesOf,
    Run,
    RunSettings,
    background_thread,
    check_workdir,
    make_run,
    sample_rows,
)
from jaxloop.recursion.selection import FEATURE_OF
from jaxloop.recursion.sources import Dataset, check_data
from jaxloop.recursion.work import work_of
from jaxloop.runtime import checkpoint
from jaxloop.runtime.atomic_io import require_space
from jaxloop.runtime.cluster import processes, stop_together
from jaxloop.runtime.compile_cache import make_room
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import meet, notice_at, scan_generations
from jaxloop.runtime.signals import Stop, Stopped
from jaxloop.runtime.workdir import delete, differences

__all__ = ["RunResult", "RunSettings", "check", "disk_needed", "refuse_another_study", "run"]

# Files take whole blocks of the disk.
BLOCK = 4096
# Columns of metrics.csv that are no factors.
RESERVED = ("study", "chain", "entity", "generation", "metric", "value")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended.

    generations    number of finished generations
    failed         chains that stopped, by id
    resumed_after  last generation that an earlier run had finished; None: the run began anew
    """

    generations: int
    failed: Mapping[str, Failure]
    resumed_after: int | None


def run(
    family: Family[ModelT, FitT, GenerateT],
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    settings: RunSettings[FitT, GenerateT],
    workdir: str | Path,
    *,
    measure: Measure | None = None,
    names: NamesOf | None = None,
    features: Features | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    command: str | None = None,
    watch: Watch | None = None,
) -> RunResult:
    """Run a study to its last generation, or go on with one.

    Leaves ledger.parquet, metrics.csv, losses.parquet, texts/ and checkpoints/ in `workdir`.

    Args:
        family: loads, fits and generates with one kind of model.
        chains: all chains of the study.
        data: data sets by name.
        settings: what all chains share.
        workdir: a run directory that the caller opened with `open_workdir`.
        measure: computes metrics; None: nothing is measured.
        names: the metrics that `measure` gives, if only nan. Where they are known, what an earlier
            run measured of an unfinished generation without one of them is measured again.
        features: computes the features of texts by which selection policies choose.
        progress: show a progress bar (where stderr is no terminal, a line per step).
        stop: the caller's `stop_together()`; made here if not given.
        command: shell command that resumes the run, for the message after a signal; default: the
            command of this process.
        watch: is told how far the run is, in the first process; it must return at once.

    Raises:
        ValueError: the study cannot run, or is not the one in `workdir`; nothing was done.
        Stopped: a signal came (exit code 143 or 130).
        DiskFull: the disk is full.
        CorruptCheckpointError: nothing that was finished can be used.
    """
    root = Path(workdir)
    check_workdir(root)
    check(chains, data, settings)
    _check_features(chains, features)
    process, process_count = processes()
    if process > 0:
        meet("settled", root)
    state = scan_generations(root)
    first = 0 if state.last is None else state.last + 1
    history = History()
    for generation in range(first):
        history.read(root, generation)
    overlap = settings.overlap_eval and measure is not None and process_count == 1
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_together(notice_at(root, settings.notice)))
        # What is measured in the background takes no time of its own.
        timed, share = bool(measure and not overlap), (process, process_count)
        # Only the first process says what is left.
        counted = _living(chains, history.failed) if process == 0 else []
        clock = Clock(work_of(counted, settings, first, timed, *share))
        bar = progress_bar(clock, settings.generations, show=progress and process == 0)
        this = make_run(
            family,
            chains,
            data,
            settings,
            root,
            report=stack.enter_context(bar),
            stop=stop,
            measure=measure,
            names=names,
            features=features,
            first=first,
            process=process,
            processes=process_count,
            in_background=stack.enter_context(background_thread()) if overlap else None,
        )
        _resume(this, state, history)
        tell = _teller(watch if process == 0 else None, clock, settings.generations, history)
        tell(state.last)
        pending = PendingGeneration(this, history, tell)
        try:
            _run_generations(this, first, history, pending)
        except Stopped as signal:
            pending.finish()
            LOGGER.warning(
                "stopped by %s; what was finished is on disk, to go on: %s",
                signal.name,
                command or shlex.join(sys.orig_argv),
            )
            raise
    return RunResult(_finished_count(root), dict(history.failed), state.last)


class PendingGeneration:
    """Holds the newest generation until its models are measured, then finalises it.

    With `overlap_eval` they are measured while the models of the next generation are trained.
    """

    def __init__(self, run: Run, history: History, tell: Callable[[int], None]):
        self._run = run
        self._history = history
        self._tell = tell
        self._stopped = set(history.failed)
        self._pending: _Pending | None = None

    def hold(
        self,
        generation: int,
        fit_groups: Sequence[FitGroup],
        assembled: Assembled | None,
        measuring: list[Future],
    ) -> None:
        """Take a generation that only lacks its metrics and its final manifest.

        `assembled` is None in every process but process 0.
        """
        self._pending = _Pending(generation, fit_groups, assembled, measuring)

    def finish_if_measured(self) -> None:
        """Finish the generation, if there is one, unless measurements are under way."""
        if self._pending and all(future.done() for future in self._pending.measuring):
            self.finish()

    def finish(self) -> None:
        """Wait for the measurements of the generation, if there is one, and finalise it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        run, generation = self._run, pending.generation
        for future in pending.measuring:
            future.result()
        if pending.assembled is not None:
            finish(run, generation, pending.fit_groups, pending.assembled)
            write_tables(run.root, generation + 1)
        meet(f"generation {generation} is finished", run.root)
        self._history.read(run.root, generation)
        if run.process == 0:
            _prune_weights(run, generation, self._history)
        self._take_off_stopped(generation)
        self._tell(generation)

    def _take_off_stopped(self, generation: int) -> None:
        """Take the work of chains that stopped in a generation off what is left."""
        run, failed = self._run, set(self._history.failed)
        if failed == self._stopped or run.process > 0:
            return
        timed, share = run.measure and not run.in_background, (run.process, run.processes)
        before, after = (
            work_of(_living(run.chains, gone), run.settings, generation + 1, bool(timed), *share)
            for gone in (self._stopped, failed)
        )
        self._stopped = failed
        for kind, units in before.items():
            run.report(kind, units - after[kind], None, f"generation {generation} is finished")


def _teller(
    watch: Watch | None, clock: Clock, generations: int, history: History
) -> Callable[[int | None], None]:
    """A function of the last finished generation that tells `watch`, if there is one, of it."""

    def tell(last: int | None) -> None:
        if watch is not None:
            left, spent = clock.seconds_left(), dict(clock.spent)
            watch(State(last, generations, left, spent, dict(history.failed)))

    return tell


class _Pending(NamedTuple):
    generation: int
    fit_groups: Sequence[FitGroup]
    assembled: Assembled | None
    measuring: list[Future]


def _living(chains: Sequence[ChainSpec], stopped: Container[str]) -> list[ChainSpec]:
    return [chain for chain in chains if chain.id not in stopped]


def _run_generations(run: Run, first: int, history: History, pending: PendingGeneration) -> None:
    """Make the generations from `first` on, until the last or until no chain is left."""
    settings = run.settings
    for generation in range(first, settings.generations):
        living = _living(run.chains, history.failed)
        if not living:
            LOGGER.error(
                "every chain has stopped; generations %d to %d are not run",
                generation,
                settings.generations - 1,
            )
            break
        fit_groups = groups(living, generation, calls.most_members(run, generation))
        _make_generation(run, generation, fit_groups, history, pending)
        if run.in_background is None:
            pending.finish()
        make_room(before=pending.finish)
        run.stop.check()
    pending.finish()


def _make_generation(
    run: Run,
    generation: int,
    fit_groups: Sequence[FitGroup],
    history: History,
    pending: PendingGeneration,
) -> None:
    """Make a generation up to its measurements, while the one before is finished."""
    if generation:
        require_space(run.root, _disk_of_generation(run.root), f"generation {generation}")
    if run.process == 0:
        checkpoint.write_run_info(run.root, generation, about_run(run, history.failed))
    made = make(run, generation, fit_groups, after_step=pending.finish_if_measured)
    pending.finish()
    assembled = None
    if run.process == 0:
        assembled = assemble(run, generation, history, fit_groups, made.plans)
        if run.in_background is not None:
            history.failed = assembled.failed
    pending.hold(generation, fit_groups, assembled, made.measuring)


def _resume(run: Run, state: checkpoint.CheckpointState, history: History) -> None:
    """Refuse another study's directory, and prepare it for going on."""
    now = about_run(run, history.failed)
    if state.manifests:
        refuse_another_study(run, state.manifests[-1]["about"], now)
    if begun := checkpoint.read_run_info(run.root, len(state.manifests)):
        refuse_another_study(run, begun, now)
    if run.process > 0:
        return
    calls.agree(run)
    checkpoint.recover(run.root, state)
    if state.last is not None:
        before = state.manifests[-1]["about"]["environment"]
        checkpoint.warn_of_changes(before, run.environment)
        LOGGER.info("going on after generation %d", state.last)
        _prune_weights(run, state.last, history)
        write_tables(run.root, state.last + 1)
    meet("settled", run.root)


# ---- what is refused


def check(
    chains: Sequence[ChainSpec], data: Mapping[str, Dataset], settings: RunSettings[Any, Any]
) -> None:
    """Check that a study can run.

    Raises:
        ValueError: there is no chain, two chains have one id, a factor or a field has a name that
            is not allowed, or a data set is missing or too small.
    """
    if not chains:
        raise ValueError("chains: there are none; every factor needs at least one value")
    seen: set[str] = set()
    for chain in chains:
        if chain.id in seen:
            raise ValueError(
                f"chain id {chain.id!r}: stands for two chains; give a factor that tells them apart"
            )
        seen.add(chain.id)
        for name, _ in chain.factors:
            if name in RESERVED:
                raise ValueError(
                    f"factors.{name}: is a column of metrics.csv already; choose another name "
                    f"than {', '.join(RESERVED)}"
                )
        if chain.fit:
            _check_fields("fit", settings.fit, chain.fit)
        if chain.sample:
            _check_fields("sample", settings.sample, chain.sample)
    check_data(chains, data, settings.generations)


def _check_fields(
    section: str, settings: FamilySettings, changes: Sequence[tuple[str, object]]
) -> None:
    fields = field_names(settings)
    for name, _ in changes:
        if name not in fields:
            raise ValueError(
                f"{section}.{name}: not a field of the {section} settings; these are "
                f"{', '.join(sorted(fields))}"
            )


def _check_features(chains: Sequence[ChainSpec], features: Features | None) -> None:
    for chain in chains:
        selection = chain.workflow.selection
        if selection and FEATURE_OF[selection.policy] and features is None:
            raise ValueError(
                f"selection.policy={selection.policy!r}: chain {chain.id} needs "
                "features of texts, which the study does not give"
            )


def refuse_another_study(run: Run, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Check that a run directory holds this study, whatever its config.json says.

    Args:
        run: the run that is to go on.
        before: what `about_run` returned when the directory was written.
        now: what it returns now.

    Raises:
        ValueError: the directory holds another study; the message names the first differences.
    """
    before, now = current_run_info(before), without_unused(now)
    if isinstance(now["fit"], Mapping) and "dropout" not in now["fit"]:
        # What is said of dropout in old runs of language models is no field of another family.
        before["fit"].pop("dropout", None)
    changed = [
        *_changed_entries(before, now),
        *_changed_settings(before, now, run.settings.resumable_fields),
        *changed_checksums(before, now),
    ]
    if before["evaluate"] != now["evaluate"]:
        changed.append(f"evaluate {before['evaluate']} -> {now['evaluate']}")
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"workdir={run.root}: holds another study ({'; '.join(changed[:3])}{more}); use "
            "another workdir, or what it was made with"
        )


def _changed_entries(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Chains and data sets that differ, as text."""
    changed = []
    for field in ("chains", "data"):
        for name in sorted({*before[field], *now[field]}):
            if before[field].get(name) != now[field].get(name):
                old, new = (side[field].get(name, "absent") for side in (before, now))
                changed.append(f"{field}.{name} {old[:200]} -> {new[:200]}")
    return changed


def _changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], resumable_fields: Sequence[str]
) -> list[str]:
    """Settings of the family that differ and may not, as text."""
    changed = []
    for section in ("fit", "sample"):
        for name, text in differences({section: before[section]}, {section: now[section]}).items():
            if not any(name == f or name.startswith(f + ".") for f in resumable_fields):
                changed.append(text)
    return changed


# ---- sizes


def disk_needed(
    chains: Sequence[ChainSpec],
    settings: RunSettings[Any, Any],
    weights_bytes: int,
    *,
    text_bytes: int = 300,
) -> int:
    """Return an upper bound on the bytes that a run needs on the disk.

    Counted are the texts, and the weights that are kept, with those of the generation that is being
    made and, with `overlap_eval`, of the one before, which is being measured.

    Args:
        chains, settings: as in `run`.
        weights_bytes: bytes of one model's weights.
        text_bytes: bytes of one text with its prompt and its numbers.
    """
    models = sum(chain.workflow.entities for chain in chains)
    kept = settings.generations
    if settings.keep is not None:
        kept = min(settings.keep + 1 + settings.overlap_eval, settings.generations)
    texts = sum(sample_rows(chain, settings) * chain.workflow.entities for chain in chains)
    return models * weights_bytes * kept + (settings.generations + 1) * texts * text_bytes


def _finished_count(root: Path) -> int:
    return len(list((root / checkpoint.DIRECTORY).glob("generation=*")))


def _disk_of_generation(root: Path) -> int:
    """Estimate the bytes that a generation needs on the disk while it is being made.

    It needs 1.5 times the size of the last finished generation, because its texts lie on the disk
    twice for a moment, and the size of the run's tables, because each is written anew before the
    old one is deleted. The estimate for generation 0 is 0.
    """
    finished = _finished_count(root)
    if not finished:
        return 0
    last = f"{checkpoint.finished(finished - 1)}/{checkpoint.MANIFEST}"
    files = checkpoint.read_manifest(root, last)["files"].values()
    last_bytes = sum(-(-file["bytes"] // BLOCK) * BLOCK for file in files)
    run_tables = ("ledger.parquet", "losses.parquet", "metrics.csv")
    return int(1.5 * last_bytes) + sum((root / name).stat().st_size for name in run_tables)


def _prune_weights(run: Run, generation: int, history: History) -> None:
    """Delete weights of older generations, except the last good ones of stopped chains."""
    if run.settings.keep is None:
        return
    for old in range(generation - run.settings.keep + 1):
        place = checkpoint.finished(old)
        folder = f"{place}/adapters/"
        if old < generation - run.settings.keep and not (run.root / folder).is_dir():
            continue
        kept = tuple(
            f"{place}/{weights_stem(Member(chain, entity))}{kind}"
            for chain in run.chains
            if chain.id in history.failed and history.failed[chain.id]["generation"] == old + 1
            for entity in range(chain.workflow.entities)
            for kind in (".safetensors", ".orbax/")
        )
        files = checkpoint.read_manifest(run.root, f"{place}/{checkpoint.MANIFEST}")["files"]
        pruned = [n for n in files if n.startswith(folder) and not n.startswith(kept)]
        checkpoint.remove_files(run.root, old, pruned)
        if not kept:
            delete(run.root, folder)
