"""One generation, call by call: fit, sample, measure; each step of a call is sealed on the disk as
soon as it is done.

In a cluster every process makes its share of the members of each call, on its own devices; the
first one writes what concerns all.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxloop.core.keys import fold_in, phase_key
from jaxloop.recursion.chains import ChainSpec, Group, Member
from jaxloop.recursion.progress import now
from jaxloop.recursion.selection import ranks
from jaxloop.recursion.sources import (
    Dataset,
    materialise,
    probe_prompts,
    probe_rows,
    sampling_prompts,
)
from jaxloop.recursion.workflow import Plan, on_host, plan, train_size
from jaxloop.runtime import checkpoint, tables, weights_io
from jaxloop.runtime.devices import barrier
from jaxloop.runtime.signals import Stop


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one model made, as `measure` sees it. Texts [n] with the prompts they answer, tokens
    [n], finished [n]; weights as the family has them.
    """

    chain: ChainSpec
    entity: int
    base: str
    weights: Any
    texts: list[str]
    prompts: list[str]
    tokens: np.ndarray
    finished: np.ndarray


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that stays the same from generation to generation. beside(work): a Future of
    `work`, which another thread does; None: nothing is done beside.
    """

    family: Any
    chains: tuple[ChainSpec, ...]
    data: Mapping[str, Dataset]
    settings: Any
    root: Path
    prints: Mapping[str, str]
    environment: Mapping[str, str]
    model: Callable[[str], Any]
    measure: Callable | None
    report: Callable
    stop: Stop
    process: int = 0
    processes: int = 1
    features: Callable | None = None
    beside: Callable | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model: its weights (None where training failed) and the row that the part's
    manifest keeps.
    """

    weights: Any
    row: Mapping


def stem(member: Member) -> str:
    """Path of a model's weights inside its generation's directory, without extension."""
    several = f",entity={member.entity}" if member.chain.workflow.entities > 1 else ""
    return f"adapters/chain={member.chain.id}{several}"


def sample_rows(chain: ChainSpec, settings) -> int:
    """Texts that each model writes: what the next generation trains on (or chooses from), or what
    is measured, whichever is more. The models that share a pool are measured together, each with
    its part.
    """
    flow = chain.workflow
    measured = -(-settings.evaluate // flow.entities) if flow.shared else settings.evaluate
    return max(
        flow.selection.candidates if flow.selection else flow.synthetic, measured
    ) + probe_rows(chain)


def effective(settings, changes: Sequence[tuple[str, object]], scratch: bool = False):
    """The study's settings with a chain's own values; mode "scratch" where the chain starts from
    random weights.
    """
    changes = dict(changes)
    if scratch and hasattr(settings, "mode"):
        changes["mode"] = "scratch"
    return dataclasses.replace(settings, **changes) if changes else settings


def share(call: Group, process: int, processes: int) -> Group | None:
    """The part of a call that one process of a cluster makes; None where nothing is left for it."""
    members = call.members[process::processes]
    if not members:
        return None
    return (
        call
        if processes == 1
        else call._replace(name=f"{call.name}.{process}of{processes}", members=members)
    )


class Made(NamedTuple):
    """A generation whose models are trained and have written: the plans of this process's members,
    and measurements still under way.
    """

    plans: dict[Member, Plan]
    measuring: list[Future]


def make(
    run: Run, generation: int, calls: Sequence[Group], between: Callable = lambda: None
) -> Made:
    """Fits, samples and measures this process's share of the calls of a generation; what they made
    lies in sealed parts on the disk.

    between() is called whenever models are trained and whenever they have written. Raises Stopped
    at the next sealed step after a signal, DiskFull, and whatever the family raises.
    """
    if run.process == 0:
        kept = checkpoint.keep_parts(run.root, generation)
        (run.root / checkpoint.unfinished(generation) / checkpoint.PARTS).mkdir(
            parents=True, exist_ok=True
        )
    barrier(f"generation {generation} begins")
    if run.process > 0:
        kept = checkpoint.keep_parts(run.root, generation, clean=False)
    made = Made({}, [])
    for call in calls:
        mine = share(call, run.process, run.processes)
        if mine is None:
            continue
        made.plans.update({member: draw(run, member, generation) for member in mine.members})
        fitted = _fit(run, generation, mine, made.plans, kept)
        between()
        good = [member for member in mine.members if fitted[member].row["finite"]]
        written = _sample(run, generation, mine, good, fitted, kept)
        between()
        if run.measure is not None:
            made.measuring.extend(_measure(run, generation, mine, good, fitted, written, kept))
    barrier(f"generation {generation} is made")
    return made


def draw(run: Run, member: Member, generation: int) -> Plan:
    """The plan of a member, valid rows only, as NumPy arrays."""
    chain, entity = member
    return on_host(
        plan(
            chain.workflow,
            chain.key,
            generation,
            generations=run.settings.generations,
            entity=entity,
        )
    )


def part_path(generation: int, call: Group, step: str, suffix: str) -> str:
    """Where a step ("fit", "sample", "measure") of a call leaves its manifest ("json") or table
    ("parquet"), relative to the run directory.
    """
    return f"{checkpoint.unfinished(generation)}/{checkpoint.PARTS}/{call.name}.{step}.{suffix}"


def split(table: Mapping[str, Sequence]) -> dict[tuple[str, int], dict[str, list]]:
    """Rows of a table by (chain id, entity)."""
    columns = {
        name: values.tolist() if isinstance(values, np.ndarray) else list(values)
        for name, values in table.items()
    }
    place: dict[tuple[str, int], list[int]] = {}
    for i, pair in enumerate(zip(columns.get("chain", ()), columns.get("entity", ()), strict=True)):
        place.setdefault(pair, []).append(i)
    return {
        pair: {name: [values[i] for i in at] for name, values in columns.items()}
        for pair, at in place.items()
    }


def _part(run, generation, call, step, kept):
    """(manifest of a sealed step or None, its manifest's path, path of its table)."""
    found = kept.get(f"{call.name}.{step}")
    if found is not None and found["about"]["members"] != _members(call):
        found = None
    return (
        found,
        part_path(generation, call, step, "json"),
        part_path(generation, call, step, "parquet"),
    )


def _members(call):
    return [[member.chain.id, member.entity] for member in call.members]


def _describe(run, generation, call, step):
    count = f"{len(call.members)} chain{'s' if len(call.members) > 1 else ''}"
    return (
        f"generation {generation} of {run.settings.generations}: {step}, {count} on "
        f"{Path(call.base).name}"
    )


def _step(run, generation, call, step, units, work):
    """Runs one step, times it, and stops after it if a signal has come."""
    run.stop.doing = f"the {step} step of {call.base} in generation {generation}"
    result = _timed(run, generation, call, step, units, work)
    run.stop.check()
    return result


def _timed(run, generation, call, step, units, work):
    start = now()
    result = work()
    run.report(step, units, now() - start, _describe(run, generation, call, step))
    return result


def _fit(run: Run, generation: int, call: Group, plans, kept) -> dict[Member, Fitted]:
    found, manifest, table = _part(run, generation, call, "fit", kept)
    place = checkpoint.unfinished(generation)
    units = sum(train_size(member.chain.workflow, generation) for member in call.members)
    if found is not None:
        run.report("fit", units, None, _describe(run, generation, call, "fit"))
        rows = found["about"]["rows"]
        return {
            member: Fitted(
                weights_io.load_tree(run.root, f"{place}/{stem(member)}")
                if row["finite"]
                else None,
                row,
            )
            for member, row in zip(call.members, rows, strict=True)
        }

    def work():
        tasks = []
        for member in call.members:
            texts, prompts = materialise(
                plans[member], member.chain, run.data, run.root, run.settings.generations
            )
            key = fold_in(phase_key(member.chain.key, generation, "fit"), member.entity)
            tasks.append(
                run.family.FitTask(
                    key=key,
                    texts=texts,
                    prompts=prompts,
                    sample_weights=None,
                    start=_start(run, generation, member),
                )
            )
        settings = effective(run.settings.fit, call.fit, call.scratch)
        results = run.family.fit(run.model(call.base), tasks, settings)
        rows, files, losses = [], [], {"chain": [], "entity": [], "step": [], "loss": []}
        for member, result in zip(call.members, results, strict=True):
            loss = np.asarray(result.loss, np.float32).reshape(-1)
            bad = np.flatnonzero(~np.isfinite(loss))
            finite = bool(result.finite) and not len(bad)
            fault = (
                ""
                if finite
                else f"{loss[bad[0]]} at step {bad[0]}"
                if len(bad)
                else "the weights are not finite"
            )
            last = float(loss[-1]) if len(loss) else None
            row = {
                "steps": int(result.steps),
                "tokens": int(result.tokens),
                "loss": last,
                "finite": finite,
                "fault": fault,
            }
            row["special"] = int(getattr(result, "special", 0))
            if finite:
                written = weights_io.save_tree(run.root, f"{place}/{stem(member)}", result.weights)
                files += written
                row["file"] = written[0]
            rows.append(row)
            losses["chain"] += [member.chain.id] * len(loss)
            losses["entity"] += [member.entity] * len(loss)
            losses["step"] += range(len(loss))
            losses["loss"] += loss.tolist()
        tables.write_parquet(run.root / table, losses)
        checkpoint.seal(
            run.root, manifest, [*files, table], {"members": _members(call), "rows": rows}
        )
        return {
            m: Fitted(result.weights if row["finite"] else None, row)
            for m, result, row in zip(call.members, results, rows, strict=True)
        }

    return _step(run, generation, call, "fit", units, work)


def _start(run, generation, member):
    if generation == 0 or member.chain.workflow.start != "previous":
        return None
    # The generation before may still wait for its measurements.
    waiting = (run.root / checkpoint.unfinished(generation - 1)).is_dir()
    place = (
        checkpoint.unfinished(generation - 1) if waiting else checkpoint.finished(generation - 1)
    )
    try:
        return weights_io.load_tree(run.root, f"{place}/{stem(member)}")
    except FileNotFoundError:
        raise ValueError(
            f"chain {member.chain.id}: starts from the weights of generation {generation - 1}, "
            "which were not kept; "
            "it cannot go on from here, give a new workdir and keep more generations"
        ) from None


def _sample(
    run: Run, generation: int, call: Group, good: Sequence[Member], fitted, kept
) -> dict[Member, dict]:
    found, manifest, table = _part(run, generation, call, "sample", kept)
    units = sum(sample_rows(member.chain, run.settings) for member in call.members)

    def work():
        tasks = []
        for member in good:
            count = sample_rows(member.chain, run.settings)
            key = fold_in(phase_key(member.chain.key, generation, "sample"), member.entity)
            written = count - probe_rows(member.chain)
            prompts = sampling_prompts(
                member.chain, run.data, generation, member.entity, written
            ) + probe_prompts(member.chain, run.data)
            tasks.append(
                run.family.SampleTask(
                    key=key, weights=fitted[member].weights, prompts=prompts, rows=np.arange(count)
                )
            )
        settings = effective(run.settings.sample, call.sample)
        results = run.family.sample(run.model(call.base), tasks, settings) if tasks else []
        parts = []
        for member, task, result in zip(good, tasks, results, strict=True):
            count = len(task.prompts)
            part = {
                "chain": [member.chain.id] * count,
                "entity": np.full(count, member.entity),
                "row": np.arange(count),
                "text": list(result.texts),
                "prompt": list(task.prompts),
                "tokens": np.asarray(result.tokens, np.int64),
                "finished": np.asarray(result.finished, bool),
            }
            flow = member.chain.workflow
            if flow.selection is not None:
                part["selected"] = ranks(
                    flow.selection,
                    member.chain.key,
                    generation,
                    member.entity,
                    flow.synthetic,
                    part["text"],
                    run.features,
                )
            parts.append(part)
        tables.write_parquet(run.root / table, tables.concatenate(parts))
        checkpoint.seal(run.root, manifest, [table], {"members": _members(call)})

    if found is not None:
        run.report("sample", units, None, _describe(run, generation, call, "sample"))
    else:
        _step(run, generation, call, "sample", units, work)
    written = split(tables.read_parquet(run.root / table))
    return {
        member: written.get(
            (member.chain.id, member.entity),
            {"text": [], "prompt": [], "tokens": [], "finished": []},
        )
        for member in good
    }


def _measure(run: Run, generation: int, call: Group, good, fitted, written, kept) -> list[Future]:
    found, manifest, table = _part(run, generation, call, "measure", kept)
    step = run, generation, call, "measure", len(call.members)
    if found is not None:
        run.report("measure", len(call.members), None, _describe(run, generation, call, "measure"))
        return []
    model = run.model(call.base) if written else None

    def work():
        outcomes = [
            Outcome(
                m.chain,
                m.entity,
                call.base,
                fitted[m].weights,
                w["text"],
                w["prompt"],
                np.asarray(w["tokens"]),
                np.asarray(w["finished"]),
            )
            for m, w in written.items()
        ]
        values = run.measure(model, generation, outcomes) if outcomes else {}
        rows = []
        for member in good:
            common = {
                "study": run.settings.study,
                "chain": member.chain.id,
                **dict(member.chain.factors),
            }
            common |= {"entity": member.entity, "generation": generation}
            for metric, value in values.get((member.chain.id, member.entity), {}).items():
                rows.append(common | {"metric": metric, "value": float(value)})
        tables.write_parquet(run.root / table, tidy(rows, run.chains))
        checkpoint.seal(run.root, manifest, [table], {"members": _members(call)})

    if run.beside is not None:
        return [run.beside(lambda: _timed(*step, work))]
    _step(*step, work)
    return []


def tidy(rows: Sequence[Mapping], chains: Sequence[ChainSpec]) -> dict[str, list]:
    """Tidy columns; a factor has one type in all chains of the study, text where any value is text."""
    names = list(dict.fromkeys(name for chain in chains for name, _ in chain.factors))
    out = {}
    for name in ["study", "chain", *names, "entity", "generation", "metric", "value"]:
        values = [row.get(name) for row in rows]
        kinds = {type(v) for chain in chains for k, v in chain.factors if k == name}
        if name in names and not kinds <= {int, float}:
            values = [v if v is None else str(v) for v in values]
        elif name in names and float in kinds:
            values = [v if v is None else float(v) for v in values]
        out[name] = values
    return out
