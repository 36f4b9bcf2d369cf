"""The generation loop, for any family: plan, gather texts, fit, sample, measure, write, seal; the
same command goes on where it stopped.

A family is an object (or module) with
    load(base) -> model
    FitTask(key, texts, prompts, sample_weights, start), fit(model, tasks, settings) -> results with
    weights, steps, tokens, loss, finite
    SampleTask(key, weights, prompts, rows), sample(model, tasks, settings) -> results with texts,
    tokens, finished
All members of a generation that share a base model go into one call, in an order that depends on
the study alone, so that a run that was killed and resumed repeats the same arithmetic.
"""

import dataclasses
import shlex
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.recursion import ledger
from jaxloop.recursion.chains import ChainSpec, Member, groups
from jaxloop.recursion.finalise import History, about_run, assemble, finish, read_metrics
from jaxloop.recursion.generation import Run, make, sample_rows, stem
from jaxloop.recursion.progress import progress as progress_bar
from jaxloop.recursion.selection import NEEDS
from jaxloop.recursion.sources import Dataset, check_data
from jaxloop.recursion.workflow import train_size
from jaxloop.runtime import checkpoint, tables
from jaxloop.runtime.atomic_io import require_space, write_atomic
from jaxloop.runtime.compile_cache import make_room
from jaxloop.runtime.devices import barrier, processes
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop, Stopped, stop_safely
from jaxloop.runtime.workdir import MARKER, delete, differences

# Files take whole blocks of the disk.
BLOCK = 4096
RESERVED = ("study", "chain", "entity", "generation", "metric", "value")


@dataclass(frozen=True)
class Settings:
    """What all chains of a study share.

    generations  G, generation 0 included
    fit, sample  the family's own settings (frozen dataclasses)
    evaluate     texts that each model writes at least, for `measure`
    keep         newest generations whose weights stay on disk (at least 1; None: all); those of a chain that failed stay too
    models_in_memory   base models held at once
    members_per_call   models of one base and settings that are fitted before anything of them is sealed; None: all
    measure_beside     measure models while the next ones are trained (in one process; not with bases that are cut over devices)
    identity     {name of a base model: hash of its files}, for the ledger and the check when a run goes on
    free         fields of `fit` and `sample`, as "fit.x" and "sample.x", that may differ when a run is resumed
    """

    generations: int
    fit: Any
    sample: Any
    evaluate: int = 250
    keep: int | None = 2
    study: str = "chain"
    models_in_memory: int = 4
    members_per_call: int | None = None
    measure_beside: bool = False
    free: tuple[str, ...] = ()
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self):
        for field, low in (
            ("generations", 1),
            ("evaluate", 0),
            ("models_in_memory", 1),
            ("members_per_call", 1),
            ("keep", 1),
        ):
            value = getattr(self, field)
            if field in ("keep", "members_per_call") and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{field}={value!r}: must be an integer of at least {low}")


@dataclass(frozen=True)
class Result:
    """How a run ended: generations that are on disk, chains that stopped {id: {generation,
    reason}}, the generation it was resumed after.
    """

    generations: int
    failed: Mapping[str, Mapping]
    resumed_after: int | None


def check(chains: Sequence[ChainSpec], data: Mapping[str, Dataset], settings: Settings) -> None:
    """Raises ValueError, one sentence naming the field, where a study cannot run: no chain, two
    with one id, data missing or too few.
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
        for field, changes in (("fit", chain.fit), ("sample", chain.sample)):
            known = (
                {f.name for f in dataclasses.fields(getattr(settings, field))} if changes else set()
            )
            for name, _ in changes:
                if name not in known:
                    raise ValueError(
                        f"{field}.{name}: not a field of the {field} settings; these are "
                        f"{', '.join(sorted(known))}"
                    )
    check_data(chains, data, settings.generations)


def run(
    family,
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    settings: Settings,
    workdir: str | Path,
    *,
    measure: Callable | None = None,
    features: Callable | None = None,
    progress: bool = True,
    stop: Stop | None = None,
    command: str | None = None,
) -> Result:
    """Runs a study to its last generation, or goes on with one; leaves ledger.parquet, metrics.csv,
    texts/ and checkpoints/ in `workdir`.

    workdir: a run directory (`open_workdir`), held by the caller. measure(model, generation,
    outcomes: list[Outcome]) returns
    {(chain id, entity): {metric: value}}. features(name, texts): what selection policies need of
    texts (see selection.NEEDS). progress:
    show a bar (a line per step off a terminal). stop: the caller's `stop_safely()`; made here if
    not given. command: what resumes the run,
    for the message after a signal (default: the command of this process).
    Raises ValueError before any work where the study cannot run or is not the one in `workdir`,
    Stopped (exit code 143 or 130) after a
    signal, DiskFull where it does not fit, Damaged where nothing that was finished can be used.
    """
    root = Path(workdir)
    if not (root / MARKER).is_file():
        raise ValueError(f"workdir={root}: is not an open run directory")
    check(chains, data, settings)
    for chain in chains:
        if chain.workflow.selection and NEEDS[chain.workflow.selection.policy] and features is None:
            raise ValueError(
                f"selection.policy={chain.workflow.selection.policy!r}: chain {chain.id} needs "
                "features of texts, which the study does not give"
            )
    process, count = processes()
    if process > 0:
        barrier("settled")
    found = checkpoint.find(root)
    last, first = found.last, 0 if found.last is None else found.last + 1
    history = History()
    for generation in range(first):
        history.read(root, generation)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_safely())
        beside = (
            stack.enter_context(one_thread())
            if settings.measure_beside and measure is not None and count == 1
            else None
        )
        # What is measured beside takes no time of its own.
        work = _work(chains, settings, first, history, measure if beside is None else None)
        totals = {kind: units / count for kind, units in work.items()}
        this = Run(
            family=family,
            chains=tuple(chains),
            data=data,
            settings=settings,
            root=root,
            prints={
                name: d.fingerprint or ledger.fingerprint(d.texts, d.prompts)
                for name, d in data.items()
            },
            environment=checkpoint.environment(),
            model=models_of(family, settings),
            measure=measure,
            report=stack.enter_context(
                progress_bar(totals, settings.generations, show=progress and process == 0)
            ),
            stop=stop,
            process=process,
            processes=count,
            features=features,
            beside=beside,
        )
        if found.manifests:
            refuse_another(
                root, found.manifests[-1]["about"], about_run(this, history.failed), settings.free
            )
        if begun := checkpoint.study_of_parts(root, first):
            refuse_another(root, begun, about_run(this, history.failed), settings.free)
        if process == 0:
            _settle(this, found, history)
            barrier("settled")
        waiting: list[_Waiting] = []

        def end(at_once=True):
            while waiting and (at_once or all(future.done() for future in waiting[0].measuring)):
                waiting.pop().end()

        try:
            for generation in range(first, settings.generations):
                living = [chain for chain in chains if chain.id not in history.failed]
                if not living:
                    LOGGER.error(
                        "every chain has stopped; generations %d to %d are not run",
                        generation,
                        settings.generations - 1,
                    )
                    break
                waiting.append(
                    _generation(
                        this,
                        generation,
                        history,
                        groups(living, generation, settings.members_per_call),
                        end,
                    )
                )
                if beside is None:
                    end()
                make_room(settle=end)
                stop.check()
            end()
        except Stopped as signal:
            end()
            LOGGER.warning(
                "stopped by %s; what was finished is on disk, to go on: %s",
                signal.name,
                command or shlex.join(sys.orig_argv),
            )
            raise
    return Result(_done(root), dict(history.failed), last)


def _settle(this, found, history):
    checkpoint.settle(this.root, found)
    if found.manifests:
        checkpoint.warn_of_changes(found.manifests[-1]["about"]["environment"], this.environment)
        LOGGER.info("going on after generation %d", found.last)
        _prune(this, found.last, history)
        write_tables(this.root, found.last + 1)


class _Waiting(NamedTuple):
    """A generation that is made but for measurements under way: `end()` waits for them and finishes
    it.
    """

    measuring: list[Future]
    end: Callable


def _generation(this, generation, history, calls, end_before) -> _Waiting:
    """Makes a generation. end_before(at_once) ends the one before: at once, or if it is measured by
    now.
    """
    if generation:
        require_space(this.root, _size(this.root), f"generation {generation}")
    if this.process == 0:
        checkpoint.name_parts(this.root, generation, about_run(this, history.failed))
    plans, measuring = make(this, generation, calls, partial(end_before, False))
    end_before()
    assembled = assemble(this, generation, history, calls, plans) if this.process == 0 else None
    if this.beside is not None:
        history.failed = assembled.failed

    def end():
        for future in measuring:
            future.result()
        if this.process == 0:
            finish(this, generation, calls, assembled)
            write_tables(this.root, generation + 1)
        barrier(f"generation {generation} is finished")
        history.read(this.root, generation)
        if this.process == 0:
            _prune(this, generation, history)

    return _Waiting(measuring, end)


@contextmanager
def one_thread():
    """Context with `beside(work)` of a `Run`: one thread, for which at most two pieces of work
    wait.
    """
    queue: list[Future] = []
    with ThreadPoolExecutor(1) as thread:

        def beside(work):
            while len(queue) > 2:
                wait([queue.pop(0)])
            queue.append(thread.submit(work))
            return queue[-1]

        yield beside


def disk_needed(
    chains: Sequence[ChainSpec], settings: Settings, weights_bytes: int, *, text_bytes: int = 300
) -> int:
    """Bytes that a run leaves at most, for the check before it starts: the weights that are kept
    (one generation more while it is being made) and the texts. weights_bytes: of one model;
    text_bytes: of one text, its prompt and numbers.
    """
    members = sum(chain.workflow.entities for chain in chains)
    held = (
        settings.generations
        if settings.keep is None
        else min(settings.keep + 1, settings.generations)
    )
    texts = sum(sample_rows(chain, settings) * chain.workflow.entities for chain in chains)
    return members * weights_bytes * held + (settings.generations + 1) * texts * text_bytes


def models_of(family, settings):
    """base -> model, the last few of them held."""
    held: OrderedDict[str, Any] = OrderedDict()

    def model(base):
        if base not in held:
            while len(held) >= settings.models_in_memory:
                held.popitem(last=False)
            held[base] = family.load(base)
        held.move_to_end(base)
        return held[base]

    return model


def _work(chains, settings, first, history, measure):
    """Units of each kind of step from generation `first` on: rows to train on, rows to write,
    models to measure.
    """
    living = [c for c in chains if c.id not in history.failed]
    span = range(first, settings.generations)
    return {
        "fit": sum(train_size(c.workflow, g) * c.workflow.entities for c in living for g in span),
        "sample": sum(sample_rows(c, settings) * c.workflow.entities for c in living) * len(span),
        "measure": sum(c.workflow.entities for c in living) * len(span) * (measure is not None),
    }


def refuse_another(root, before, now, free):
    """Another study must not be continued in this directory, whatever config.json says."""
    changed = []
    for field in ("chains", "data"):
        for name in sorted({*before[field], *now[field]}):
            if before[field].get(name) != now[field].get(name):
                old, new = (side[field].get(name, "absent") for side in (before, now))
                changed.append(f"{field}.{name} {old[:200]} -> {new[:200]}")
    for field in ("fit", "sample"):
        found = differences({field: before[field]}, {field: now[field]})
        changed += [
            text
            for name, text in found.items()
            if not any(name == f or name.startswith(f + ".") for f in free)
        ]
    held = before.get("identity", {})  # a run from before it was kept has none
    changed += [
        f"the files of {name} {held[name][:12]} -> {value[:12]}"
        for name, value in now["identity"].items()
        if held.get(name, value) != value
    ]
    if before["evaluate"] != now["evaluate"]:
        changed.append(f"evaluate {before['evaluate']} -> {now['evaluate']}")
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"workdir={root}: holds another study ({'; '.join(changed[:3])}{more}); use another "
            "workdir, or what it was made with"
        )


def write_tables(root, count):
    """ledger.parquet, metrics.csv and losses.parquet of generations 0..count-1, made anew from the
    sealed parts of each.
    """
    places = [root / checkpoint.finished(generation) for generation in range(count)]
    read = lambda name: tables.concatenate([tables.read_parquet(place / name) for place in places])  # noqa: E731
    metrics = tables.concatenate([read_metrics(root, generation) for generation in range(count)])
    tables.write_parquet(root / "ledger.parquet", read("ledger.parquet"))
    tables.write_parquet(root / "losses.parquet", read("losses.parquet"))
    write_atomic(root / "metrics.csv", tables.to_csv(metrics), durable=False)


def _done(root):
    """Generations that are finished."""
    return len(list((root / checkpoint.DIRECTORY).glob("generation=*")))


def _size(root):
    """Bytes that a generation needs while it is being made: half as much again as the last one that
    was finished, whose texts lie twice on the disk for a moment, and the tables of the run, which
    are written anew before the old ones go.
    """
    done = _done(root)
    if not done:
        return 0
    content = checkpoint.read_manifest(
        root, f"{checkpoint.finished(done - 1)}/{checkpoint.MANIFEST}"
    )
    made = sum(-(-entry["bytes"] // BLOCK) * BLOCK for entry in content["files"].values())
    return int(1.5 * made) + sum(
        (root / name).stat().st_size for name in ("ledger.parquet", "losses.parquet", "metrics.csv")
    )


def _prune(this, generation, history):
    """Weights of older generations go, except the last good ones of chains that have stopped."""
    if this.settings.keep is None:
        return
    for old in range(generation - this.settings.keep + 1):
        place = f"{checkpoint.finished(old)}/adapters/"
        if not (this.root / place).is_dir():
            continue
        held = {
            f"{checkpoint.finished(old)}/{stem(Member(chain, entity))}."
            for chain in this.chains
            if history.failed.get(chain.id, {}).get("generation") == old + 1
            for entity in range(chain.workflow.entities)
        }
        names = checkpoint.read_manifest(
            this.root, f"{checkpoint.finished(old)}/{checkpoint.MANIFEST}"
        )["files"]
        checkpoint.forget(
            this.root,
            old,
            [n for n in names if n.startswith(place) and not any(n.startswith(h) for h in held)],
        )
        if not held:
            delete(this.root, place)
