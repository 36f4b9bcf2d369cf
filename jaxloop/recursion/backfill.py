"""Computes metrics that the finished generations of a run lack, from the texts on disk.

Nothing is trained and nothing is generated.
"""

import math
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jaxloop.recursion import driver, saved_run
from jaxloop.recursion.chains import ChainSpec, FitGroup, Member, groups
from jaxloop.recursion.family import Family, FitT, GenerateT, ModelOutput, ModelT
from jaxloop.recursion.finalise import BACKFILLED, about_run, read_metrics, write_tables
from jaxloop.recursion.parts import (
    metric_row,
    model_output,
    no_texts,
    rows_by_member,
    tidy,
    weights_stem,
)
from jaxloop.recursion.progress import Clock, now
from jaxloop.recursion.progress import progress as progress_bar
from jaxloop.recursion.run import (
    Failure,
    NamesOf,
    Run,
    RunSettings,
    Values,
    check_workdir,
    make_run,
)
from jaxloop.recursion.sources import Dataset, texts_path
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import scan_generations
from jaxloop.runtime.signals import Stop, Stopped, stop_safely


class MeasureNamed(Protocol):
    """Computes the named metrics of models of one base in one generation.

    `model` is the base model; None where none of the names is in `of_weights`. A metric that could
    not be asked for is left out of what is returned; one that is nan has no value, and is not
    missing.
    """

    def __call__(
        self, model: Any, generation: int, outputs: Sequence[ModelOutput], names: Sequence[str], /
    ) -> Values: ...


class BackfillResult(NamedTuple):
    """What `backfill` did.

    generations  number of finished generations
    failed       chains that stopped in them, by id
    computed     number of values that were computed
    missing      number of values that are still missing
    missing_of   the same by metric, where it is not 0
    unavailable  metrics (sorted) that need weights which are not on the disk any more
    """

    generations: int
    failed: Mapping[str, Failure]
    computed: int
    missing: int
    unavailable: tuple[str, ...]
    missing_of: Mapping[str, int] = {}


def lacking(root: Path, chains: Sequence[ChainSpec], names: NamesOf) -> Counter[str]:
    """Return how many values of each metric the finished generations lack, where it is not 0.

    A metric is lacking where it has no row or is nan. Chains are counted as long as they lived.
    """
    counts: Counter[str] = Counter()
    failed: Mapping[str, Failure] = {}
    for generation, manifest in enumerate(scan_generations(root).manifests):
        failed = {**failed, **manifest["about"]["failed"]}
        known = _known(root, generation)
        for chain in chains:
            if chain.id not in failed:
                for entity in range(chain.workflow.entities):
                    counts.update(
                        name
                        for name in names(chain, generation)
                        if not _is_known(known.get((chain.id, entity, name)))
                    )
    return counts


def measured(root: Path) -> list[str]:
    """Return the metrics of which finished generations have values, in order."""
    names: dict[str, None] = {}
    for generation in range(len(scan_generations(root).manifests)):
        known = _known(root, generation).items()
        names |= dict.fromkeys(name for (_, _, name), value in known if _is_known(value))
    return list(names)


def recorded(root: Path) -> set[str] | None:
    """Return the metrics of which every finished generation has rows, if only nan.

    None where no generation is finished, or what a finished one says cannot be read.
    """
    found: set[str] | None = None
    for generation in saved_run.finished_generations(root):
        try:
            names = set(read_metrics(root, generation)["metric"])
        except (OSError, ValueError, KeyError):  # the run itself says what is damaged
            return None
        found = names if found is None else found & names
    return found


def _known(root: Path, generation: int) -> dict[tuple[str, int, str], float]:
    table = read_metrics(root, generation)
    keys = zip(table["chain"], table["entity"], table["metric"], strict=True)
    return dict(zip(keys, table["value"], strict=True))


def backfill(
    family: Family[ModelT, FitT, GenerateT],
    chains: Sequence[ChainSpec],
    data: Mapping[str, Dataset],
    settings: RunSettings[FitT, GenerateT],
    workdir: str | Path,
    *,
    measure: MeasureNamed,
    names: Sequence[str] | NamesOf,
    of_weights: Collection[str] = (),
    progress: bool = True,
    stop: Stop | None = None,
    command: str | None = None,
) -> BackfillResult:
    """Compute the metrics among `names` that finished generations lack, and write metrics.csv anew.

    A metric is lacking where it has no row or is nan. The new values of a generation are on the
    disk before the next generation is measured.

    Args:
        workdir: a run directory that the caller opened with `open_workdir`.
        measure: computes the named metrics of models.
        names: the metrics that are wanted, or a function that gives those of a chain in a
            generation.
        of_weights: those of them that need the model that generated the texts; they are computed
            only where its weights are still on the disk.
        family, chains, data, settings, progress, stop, command: as in `driver.run`.

    Raises:
        ValueError: the directory holds no finished generation, or another study.
        Stopped: a signal came; what is done is on disk.
    """
    root = Path(workdir)
    check_workdir(root)
    driver.check(chains, data, settings)
    state = scan_generations(root)
    if state.last is None:
        raise ValueError(
            f"workdir={root}: has no finished generation, so there are no texts to measure; run "
            "the study first"
        )
    finished = len(state.manifests)
    models = sum(chain.workflow.entities for chain in chains)
    with ExitStack() as stack:
        stop = stop or stack.enter_context(stop_safely())
        report = stack.enter_context(
            progress_bar(Clock({"measure": models * finished}), finished, show=progress)
        )
        run = make_run(family, chains, data, settings, root, report=report, stop=stop)
        about = state.manifests[-1]["about"]
        driver.refuse_another_study(run, about, about_run(run, about["failed"]))
        checkpoint.recover(root, state)
        wanted = names if callable(names) else _same(names)
        tally = _Tally(measure, wanted, frozenset(of_weights))
        failed: Mapping[str, Failure] = {}
        try:
            for generation, manifest in enumerate(state.manifests):
                living = [chain for chain in chains if chain.id not in failed]
                failed = manifest["about"]["failed"]
                measurable = _Generation(run, generation, living, failed)
                if rows := _backfill_generation(measurable, tally):
                    _write(run, generation, rows)
                stop.check()
        except Stopped as signal:
            LOGGER.warning(
                "stopped by %s; what was filled in is on disk, to go on: %s",
                signal.name,
                command or shlex.join(sys.orig_argv),
            )
            raise
        finally:
            write_tables(root, finished)
    return BackfillResult(
        generations=finished,
        failed=dict(failed),
        computed=tally.computed,
        missing=tally.missing.total(),
        unavailable=tuple(sorted(tally.unavailable)),
        missing_of=dict(tally.missing),
    )


def _same(names: Sequence[str]) -> NamesOf:
    def names_of(chain: ChainSpec, generation: int) -> Sequence[str]:
        return names

    return names_of


@dataclass
class _Tally:
    """Which metrics are wanted, and how many values were computed or are still missing."""

    measure: MeasureNamed
    names: NamesOf
    of_weights: frozenset[str]
    computed: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    unavailable: set[str] = field(default_factory=set)


class _Generation(NamedTuple):
    """A finished generation with the chains that were alive in it.

    `failed` holds those that had failed by its end.
    """

    run: Run
    number: int
    living: Sequence[ChainSpec]
    failed: Mapping[str, Failure]


def _backfill_generation(generation: _Generation, tally: _Tally) -> list[dict[str, Any]]:
    """Rows of the metrics that were computed, and of those that had no row and could not be."""
    run, number = generation.run, generation.number
    before = _known(run.root, number)
    rows: list[dict[str, Any]] = []
    for group in groups(generation.living, number):
        start = now()
        lacking = _lacking(generation, group, before, tally)
        for names, outputs in lacking.items():
            run.stop.doing = f"measuring generation {number}"
            model = run.load(group.base) if set(names) & tally.of_weights else None
            values = tally.measure(model, number, outputs, names)
            rows += _new_rows(generation, outputs, names, values, before, tally)
        run.report(
            "measure",
            len(group.members),
            now() - start,
            f"generation {number}: measure, {len(group.members)} models of {group.base}",
        )
    return rows


def _lacking(
    generation: _Generation,
    group: FitGroup,
    before: Mapping[tuple[str, int, str], float],
    tally: _Tally,
) -> dict[tuple[str, ...], list[ModelOutput]]:
    """Models of a group by the names of the metrics that they lack and that can be computed."""
    run, number = generation.run, generation.number
    lacking: dict[tuple[str, ...], list[ModelOutput]] = {}
    for member in group.members:
        chain, entity = member
        if chain.id in generation.failed:
            continue
        names = [
            name
            for name in tally.names(chain, number)
            if not _is_known(before.get((chain.id, entity, name)))
        ]
        of_weights = tally.of_weights & set(names)
        weights = _weights(run.root, number, member) if of_weights else None
        if weights is None:
            tally.unavailable |= of_weights
            tally.missing.update(of_weights)
            names = [name for name in names if name not in of_weights]
        if names:
            output = _read_output(run.root, number, group.base, member, weights)
            lacking.setdefault(tuple(names), []).append(output)
    return lacking


def _new_rows(
    generation: _Generation,
    outputs: Sequence[ModelOutput],
    names: Sequence[str],
    values: Values,
    before: Mapping[tuple[str, int, str], float],
    tally: _Tally,
) -> Iterator[dict[str, Any]]:
    for output in outputs:
        member = Member(output.chain, output.entity)
        computed = values.get((output.chain.id, output.entity), {})
        for name in names:
            value = float(computed.get(name, math.nan))
            if _is_known(value):
                tally.computed += 1
            elif name not in computed:
                tally.missing[name] += 1
            if _is_known(value) or (output.chain.id, output.entity, name) not in before:
                yield metric_row(generation.run, generation.number, member, name, value)


def _is_known(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _weights(root: Path, generation: int, member: Member) -> Any:
    """A model's weights; None where they are not on the disk any more."""
    place = checkpoint.finished(generation)
    try:
        return weights_io.load_tree(root, f"{place}/{weights_stem(member)}")
    except FileNotFoundError:
        return None


def _read_output(
    root: Path, generation: int, base: str, member: Member, weights: Any
) -> ModelOutput:
    chain, entity = member
    path = root / texts_path(chain.id, generation)
    # Models that write nothing leave no file; one that is lost is missed by the manifest.
    if not path.exists():
        return model_output(member, base, weights, no_texts())
    table = tables.read_parquet(path)
    rows = rows_by_member({"chain": [chain.id] * len(table["text"]), **table})
    return model_output(member, base, weights, rows.get((chain.id, entity), no_texts()))


def _write(run: Run, generation: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add a table of metrics to a finished generation."""
    place = checkpoint.finished(generation)
    files = checkpoint.read_manifest(run.root, f"{place}/{checkpoint.MANIFEST}")["files"]
    number = 1 + sum(name.startswith(f"{place}/{BACKFILLED}") for name in files)
    path = f"{place}/{BACKFILLED}{number:04d}.parquet"
    tables.write_parquet(run.root / path, tidy(rows, run.chains), durable=True)
    checkpoint.add_files(run.root, generation, [path])
