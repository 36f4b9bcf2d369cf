"""One generation: groups of models are fitted, generate texts and are measured.

Each of these steps leaves a *part* on the disk as soon as it is done: a table, and a manifest with
checksums. A run that is resumed in the middle of a generation repeats only the steps whose part is
missing. In a cluster every process makes its share of the members of each group, on its own
devices; `finalise` puts the parts of all processes together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxloop.core.keys import fold_in, phase_key
from jaxloop.recursion.calls import Call
from jaxloop.recursion.chains import FitGroup, Member
from jaxloop.recursion.family import FitResult, FitTask, GenerateResult, GenerateTask, ModelOutput
from jaxloop.recursion.parts import (
    Columns,
    FitRow,
    metric_row,
    model_output,
    no_texts,
    part_path,
    process_share,
    rows_by_member,
    tidy,
    weights_stem,
)
from jaxloop.recursion.plan import IndexPlan, index_plan, on_host
from jaxloop.recursion.progress import now
from jaxloop.recursion.run import Run, effective, sample_rows
from jaxloop.recursion.selection import ranks
from jaxloop.recursion.sources import (
    materialise,
    probe_prompts,
    probe_rows,
    sampling_prompts,
)
from jaxloop.recursion.workflow import train_size
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.mirror import elsewhere, fetch, meet

# {"GROUP.STEP": manifest} of the parts that an earlier run has left.
Parts = Mapping[str, dict[str, Any]]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class FittedModel:
    """A trained model: its weights (None where training failed) and its row in the manifest."""

    weights: Any
    row: FitRow


class Generated(NamedTuple):
    """A generation whose models are trained and have generated their texts.

    plans      index plans of this process's members
    measuring  measurements that may still be running in the background
    """

    plans: dict[Member, IndexPlan]
    measuring: list[Future]


def make(
    run: Run,
    generation: int,
    groups: Sequence[FitGroup],
    after_step: Callable[[], None] = lambda: None,
) -> Generated:
    """Fit, generate and measure this process's share of the groups of a generation.

    The results are parts on the disk. `after_step` is called after each group's fit and after each
    group's generation of texts.

    Raises:
        Stopped: after the step in which a signal came.
        DiskFull: the disk is full.
    """
    parts = _begin(run, generation)
    plans: dict[Member, IndexPlan] = {}
    measuring: list[Future] = []
    for whole_group in groups:
        group = process_share(whole_group, run.process, run.processes)
        if group is None:
            continue
        plans |= {member: draw_plan(run, member, generation) for member in group.members}
        fitted = _fit(run, generation, group, plans, parts)
        after_step()
        finite = {member: model for member, model in fitted.items() if model.row["finite"]}
        texts = _generate(run, generation, group, finite, parts)
        after_step()
        measuring += _measure(run, generation, group, finite, texts, parts)
    meet(f"generation {generation} is made", run.root)
    return Generated(plans, measuring)


def _begin(run: Run, generation: int) -> Parts:
    """The usable parts that an earlier run has left. Only process 0 deletes the others."""
    folder = run.root / checkpoint.unfinished(generation) / checkpoint.PARTS
    if generation > run.first:
        # Nothing is left of a later generation, so nobody has to wait.
        folder.mkdir(parents=True, exist_ok=True)
        return {}
    parts: Parts = {}
    if run.process == 0:
        there = partial(elsewhere, run.root)
        parts = checkpoint.verified_parts(run.root, generation, elsewhere=there)
        folder.mkdir(parents=True, exist_ok=True)
    meet(f"generation {generation} begins", run.root)
    if run.process > 0:
        parts = checkpoint.verified_parts(run.root, generation, clean=False)
    return parts


def draw_plan(run: Run, member: Member, generation: int) -> IndexPlan:
    """Return the index plan of a member: valid rows only, as NumPy arrays."""
    chain, entity = member
    return on_host(
        index_plan(
            chain.workflow,
            chain.key,
            generation,
            generations=run.settings.generations,
            entity=entity,
        )
    )


# ---- steps


class _Step(NamedTuple):
    """A step of a group.

    name      "fit", "sample" or "measure"
    manifest  path of its manifest, relative to the run directory
    table     path of its table, relative to the run directory
    units     how much work it is, for the progress bar
    title     what the progress bar shows
    done      its manifest, read from the disk, where an earlier run has done it; else None
    """

    name: str
    manifest: str
    table: str
    units: int
    title: str
    done: dict[str, Any] | None


def _step(run: Run, generation: int, group: FitGroup, name: str, units: int, parts: Parts) -> _Step:
    done = parts.get(f"{group.name}.{name}")
    if done is not None and done["about"]["members"] != _member_names(group):
        done = None
    count = f"{len(group.members)} chain{'s' if len(group.members) > 1 else ''}"
    step = _Step(
        name=name,
        manifest=part_path(generation, group, name, "json"),
        table=part_path(generation, group, name, "parquet"),
        units=units,
        title=(
            f"generation {generation} of {run.settings.generations}: {name}, {count} on "
            f"{Path(group.base).name}"
        ),
        done=done,
    )
    if done is not None:
        run.report(name, units, None, step.title)
    return step


def _member_names(group: FitGroup) -> list[list[Any]]:
    return [[member.chain.id, member.entity] for member in group.members]


def _timed(run: Run, step: _Step, work: Callable[[], T]) -> T:
    start = now()
    result = work()
    run.report(step.name, step.units, now() - start, step.title)
    return result


def _stoppable(
    run: Run,
    generation: int,
    group: FitGroup,
    step: _Step,
    work: Callable[[], T],
    weights: Callable[[T], Iterable[Any]],
) -> T:
    """Do the work of a step, and stop after it if a signal has come.

    weights: those of the group's models, given what the work returned; those of equal models, which
    a family makes once, are one object.
    """
    run.stop.doing = f"the {step.name} step of {group.base} in generation {generation}"
    start = now()
    result = _timed(run, step, work)
    kind = step.name, group.base, group.scratch, group.fit, group.sample
    distinct = len({id(tree) for tree in weights(result)})
    run.calls.append(Call(kind, max(1, distinct), now() - start))
    run.stop.check()
    return result


def _weights_of(fitted: Mapping[Member, FittedModel]) -> list[Any]:
    return [model.weights for model in fitted.values()]


def _known(weights: Sequence[Any], result: object) -> Sequence[Any]:
    return weights


# ---- fit


def _fit(
    run: Run,
    generation: int,
    group: FitGroup,
    plans: Mapping[Member, IndexPlan],
    parts: Parts,
) -> dict[Member, FittedModel]:
    units = sum(train_size(member.chain.workflow, generation) for member in group.members)
    step = _step(run, generation, group, "fit", units, parts)
    if step.done is not None:
        return _load_fitted(run, generation, group, step.done["about"]["rows"])
    work = partial(_fit_and_save, run, generation, group, plans, step)
    return _stoppable(run, generation, group, step, work, _weights_of)


def _load_fitted(
    run: Run, generation: int, group: FitGroup, rows: Sequence[FitRow]
) -> dict[Member, FittedModel]:
    fitted = {}
    for member, row in zip(group.members, rows, strict=True):
        place = f"{checkpoint.unfinished(generation)}/{weights_stem(member)}"
        weights = weights_io.load_tree(run.root, place) if row["finite"] else None
        fitted[member] = FittedModel(weights, row)
    return fitted


def _fit_and_save(
    run: Run,
    generation: int,
    group: FitGroup,
    plans: Mapping[Member, IndexPlan],
    step: _Step,
) -> dict[Member, FittedModel]:
    tasks = [_fit_task(run, generation, member, plans[member]) for member in group.members]
    settings = effective(run.settings.fit, group.fit, group.scratch)
    results = run.family.fit(run.load(group.base), tasks, settings)
    fitted: dict[Member, FittedModel] = {}
    files: list[str] = []
    for member, result in zip(group.members, results, strict=True):
        row = _fit_row(result)
        if row["finite"]:
            place = f"{checkpoint.unfinished(generation)}/{weights_stem(member)}"
            saved = weights_io.save_tree(run.root, place, result.weights)
            files += saved
            row["file"] = saved[0]
        fitted[member] = FittedModel(result.weights if row["finite"] else None, row)
    tables.write_parquet(run.root / step.table, _losses(group.members, results))
    rows = [model.row for model in fitted.values()]
    about = {"members": _member_names(group), "rows": rows}
    checkpoint.write_manifest(run.root, step.manifest, [*files, step.table], about)
    return fitted


def _fit_task(run: Run, generation: int, member: Member, plan: IndexPlan) -> FitTask:
    chain = member.chain
    texts, prompts = materialise(plan, chain, run.data, run.root, run.settings.generations)
    return FitTask(
        key=fold_in(phase_key(chain.key, generation, "fit"), member.entity),
        texts=texts,
        prompts=prompts,
        sample_weights=None,
        start=_previous_weights(run, generation, member),
    )


def _previous_weights(run: Run, generation: int, member: Member) -> Any:
    """Weights to go on from; None where the chain starts every generation afresh."""
    if generation == 0 or member.chain.workflow.start != "previous":
        return None
    # The generation before is not finished while its models are still being measured.
    place = checkpoint.unfinished(generation - 1)
    if not (run.root / place).is_dir():
        place = checkpoint.finished(generation - 1)
    stem = f"{place}/{weights_stem(member)}"
    fetch(run.root, stem)
    try:
        return weights_io.load_tree(run.root, stem)
    except FileNotFoundError:
        raise ValueError(
            f"chain {member.chain.id}: starts from the weights of generation {generation - 1}, "
            "which were not kept; "
            "it cannot go on from here, give a new workdir and keep more generations"
        ) from None


def _fit_row(result: FitResult) -> FitRow:
    """What the manifest says of a fitted model, its file excepted."""
    loss = _loss(result)
    bad = np.flatnonzero(~np.isfinite(loss))
    fault = ""
    if len(bad):
        fault = f"{loss[bad[0]]} at step {bad[0]}"
    elif not result.finite:
        fault = "the weights are not finite"
    return {
        "steps": int(result.steps),
        "tokens": int(result.tokens),
        "loss": float(loss[-1]) if len(loss) else None,
        "finite": not fault,
        "fault": fault,
        "special": int(result.special),
    }


def _losses(members: Sequence[Member], results: Sequence[FitResult]) -> Columns:
    """Table of the training loss of every update of every model."""
    columns: Columns = {"chain": [], "entity": [], "step": [], "loss": []}
    for member, result in zip(members, results, strict=True):
        loss = _loss(result).tolist()
        columns["chain"] += [member.chain.id] * len(loss)
        columns["entity"] += [member.entity] * len(loss)
        columns["step"] += range(len(loss))
        columns["loss"] += loss
    return columns


def _loss(result: FitResult) -> np.ndarray:
    return np.asarray(result.loss, np.float32).reshape(-1)


# ---- generate


def _generate(
    run: Run,
    generation: int,
    group: FitGroup,
    finite: Mapping[Member, FittedModel],
    parts: Parts,
) -> dict[Member, Columns]:
    """The columns of the table of texts, of every model."""
    units = sum(sample_rows(member.chain, run.settings) for member in group.members)
    # Parts, like the phase of the key and the config section, are called "sample".
    step = _step(run, generation, group, "sample", units, parts)
    if step.done is None:
        work = partial(_generate_and_save, run, generation, group, finite, step)
        weights = partial(_known, _weights_of(finite))
        _stoppable(run, generation, group, step, work, weights)
    saved = rows_by_member(tables.read_parquet(run.root / step.table))
    return {member: saved.get((member.chain.id, member.entity), no_texts()) for member in finite}


def _generate_and_save(
    run: Run,
    generation: int,
    group: FitGroup,
    finite: Mapping[Member, FittedModel],
    step: _Step,
) -> None:
    tasks = [
        _generate_task(run, generation, member, model.weights) for member, model in finite.items()
    ]
    settings = effective(run.settings.sample, group.sample)
    results: Sequence[GenerateResult] = []
    if tasks:
        results = run.family.generate(run.load(group.base), tasks, settings)
    texts = [
        _text_columns(run, generation, member, task, result)
        for member, task, result in zip(finite, tasks, results, strict=True)
    ]
    tables.write_parquet(run.root / step.table, tables.concatenate(texts))
    about = {"members": _member_names(group)}
    checkpoint.write_manifest(run.root, step.manifest, [step.table], about)


def _generate_task(run: Run, generation: int, member: Member, weights: Any) -> GenerateTask:
    chain, entity = member
    count = sample_rows(chain, run.settings)
    prompts = sampling_prompts(chain, run.data, generation, entity, count - probe_rows(chain))
    return GenerateTask(
        key=fold_in(phase_key(chain.key, generation, "sample"), entity),
        weights=weights,
        prompts=prompts + probe_prompts(chain, run.data),
        rows=np.arange(count),
    )


def _text_columns(
    run: Run, generation: int, member: Member, task: GenerateTask, result: GenerateResult
) -> dict[str, tables.Column]:
    chain, entity = member
    count = len(task.prompts)
    texts = list(result.texts)
    columns: dict[str, tables.Column] = {
        "chain": [chain.id] * count,
        "entity": np.full(count, entity),
        "row": np.arange(count),
        "text": texts,
        "prompt": list(task.prompts),
        "tokens": np.asarray(result.tokens, np.int64),
        "finished": np.asarray(result.finished, bool),
    }
    flow = chain.workflow
    if flow.selection is not None:
        columns["selected"] = ranks(
            flow.selection, chain.key, generation, entity, flow.synthetic, texts, run.features
        )
    return columns


# ---- measure


def _measure(
    run: Run,
    generation: int,
    group: FitGroup,
    finite: Mapping[Member, FittedModel],
    texts: Mapping[Member, Columns],
    parts: Parts,
) -> list[Future]:
    """Measure the models of a group, or have them measured in the background."""
    if run.measure is None:
        return []
    if _lacks_metrics(run, generation, group, texts, parts):
        parts = {}
    step = _step(run, generation, group, "measure", len(group.members), parts)
    if step.done is not None:
        return []
    model = run.load(group.base) if texts else None
    outputs = [
        model_output(member, group.base, finite[member].weights, columns)
        for member, columns in texts.items()
    ]
    work = partial(_measure_and_save, run, generation, group, model, outputs, step)
    if run.in_background is not None:
        return [run.in_background(partial(_timed, run, step, work))]
    weights = partial(_known, [output.weights for output in outputs])
    _stoppable(run, generation, group, step, work, weights)
    return []


def _lacks_metrics(
    run: Run, generation: int, group: FitGroup, texts: Iterable[Member], parts: Parts
) -> bool:
    """Whether a group was measured with other metrics than those that are wanted now."""
    if run.names is None or f"{group.name}.measure" not in parts:
        return False
    table = tables.read_parquet(run.root / part_path(generation, group, "measure", "parquet"))
    there = set(zip(table["chain"], table["entity"], table["metric"], strict=True))
    return any(
        (member.chain.id, member.entity, name) not in there
        for member in texts
        for name in run.names(member.chain, generation)
    )


def _measure_and_save(
    run: Run,
    generation: int,
    group: FitGroup,
    model: Any,
    outputs: Sequence[ModelOutput],
    step: _Step,
) -> None:
    values = run.measure(model, generation, outputs) if run.measure and outputs else {}
    rows = [
        metric_row(run, generation, Member(output.chain, output.entity), metric, float(value))
        for output in outputs
        for metric, value in values.get((output.chain.id, output.entity), {}).items()
    ]
    tables.write_parquet(run.root / step.table, tidy(rows, run.chains))
    about = {"members": _member_names(group)}
    checkpoint.write_manifest(run.root, step.manifest, [step.table], about)
