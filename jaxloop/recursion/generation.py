"""One generation of all chains, group by group; each step of a group is sealed on disk as soon as it is done."""

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxloop.kernels.keys import phase_key
from jaxloop.recursion import ledger
from jaxloop.recursion.chains import ChainSpec, Group, Member, groups
from jaxloop.recursion.progress import now
from jaxloop.recursion.sources import Dataset, materialise, sampling_prompts, texts_path
from jaxloop.recursion.workflow import on_host, plan, train_size
from jaxloop.runtime import checkpoint, tables, trees
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.signals import Stop


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one model made, as `measure` sees it. Texts [n] with the prompts they answer, tokens [n], finished [n]; weights as the family has them."""

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
    """Everything that stays the same from generation to generation."""

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


@dataclass
class History:
    """What earlier generations leave to later ones: chains that stopped, and the lineage share of every writer."""

    failed: dict[str, dict] = field(default_factory=dict)
    lineage: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A trained model: its weights (None where training failed) and the row that the part's manifest keeps."""

    weights: Any
    row: Mapping


def stem(member: Member) -> str:
    """Path of a model's weights inside its generation's directory, without extension."""
    several = f",entity={member.entity}" if member.chain.workflow.entities > 1 else ""
    return f"adapters/chain={member.chain.id}{several}"


def sample_rows(chain: ChainSpec, settings) -> int:
    """Texts that each model writes: what the next generation trains on, or what is measured, whichever is more."""
    return max(chain.workflow.synthetic, settings.evaluate)


def effective(settings, changes: Sequence[tuple[str, object]], scratch: bool = False):
    """The study's settings with a chain's own values; mode "scratch" where the chain starts from random weights."""
    changes = dict(changes)
    if scratch and hasattr(settings, "mode"):
        changes["mode"] = "scratch"
    return dataclasses.replace(settings, **changes) if changes else settings


def run_generation(run: Run, generation: int, history: History) -> None:
    """Fits, samples and measures every living chain, writes its files and commits the generation.

    Raises Stopped at the next sealed step after a signal, DiskFull, and whatever the family raises.
    """
    kept = checkpoint.keep_parts(run.root, generation)
    (run.root / checkpoint.unfinished(generation) / checkpoint.PARTS).mkdir(parents=True, exist_ok=True)
    living = [chain for chain in run.chains if chain.id not in history.failed]
    calls = groups(living, generation)
    plans = {}
    for member in itertools.chain.from_iterable(call.members for call in calls):
        drawn = plan(member.chain.workflow, member.chain.key, generation, generations=run.settings.generations, entity=member.entity)
        plans[member] = on_host(drawn)
    fits, samples, metrics, bases = {}, {}, [], {}
    for call in calls:
        bases |= dict.fromkeys(call.members, call.base)
        fits |= (fitted := _fit(run, generation, call, plans, kept))
        good = [member for member in call.members if fitted[member].row["finite"]]
        samples |= (written := _sample(run, generation, call, good, fitted, kept))
        metrics.append(_measure(run, generation, call, good, fitted, written, kept))
        fits |= {member: Fitted(None, fitted[member].row) for member in call.members}
    for member, fitted in fits.items():
        if not fitted.row["finite"]:
            reason = f"the training loss of entity {member.entity} is not finite ({fitted.row['fault']})"
            history.failed.setdefault(member.chain.id, {"generation": generation, "reason": reason})
            LOGGER.error("chain %s stopped in generation %d: %s; the other chains go on", member.chain.id, generation, reason)
    _commit(run, generation, history, plans, bases, fits, samples, metrics)


def _part(run, generation, call, step, kept):
    """(manifest of a sealed step or None, its manifest's path, path of its table)."""
    name = f"{call.name}.{step}"
    place = f"{checkpoint.unfinished(generation)}/{checkpoint.PARTS}"
    found = kept.get(name)
    if found is not None and found["about"]["members"] != _members(call):
        found = None
    return found, f"{place}/{name}.json", f"{place}/{name}.parquet"


def _members(call):
    return [[member.chain.id, member.entity] for member in call.members]


def _describe(run, generation, call, step):
    count = f"{len(call.members)} chain{'s' if len(call.members) > 1 else ''}"
    return f"generation {generation} of {run.settings.generations}: {step}, {count} on {call.base}"


def _step(run, generation, call, step, units, work):
    """Runs one step, times it, and stops after it if a signal has come."""
    run.stop.doing = f"the {step} step of {call.base} in generation {generation}"
    start = now()
    result = work()
    run.report(step, units, now() - start, _describe(run, generation, call, step))
    run.stop.check()
    return result


def _fit(run: Run, generation: int, call: Group, plans, kept) -> dict[Member, Fitted]:
    found, manifest, table = _part(run, generation, call, "fit", kept)
    place = checkpoint.unfinished(generation)
    units = sum(train_size(member.chain.workflow, generation) for member in call.members)
    if found is not None:
        run.report("fit", units, None, _describe(run, generation, call, "fit"))
        rows = found["about"]["rows"]
        return {
            member: Fitted(trees.load_tree(run.root, f"{place}/{stem(member)}") if row["finite"] else None, row)
            for member, row in zip(call.members, rows, strict=True)
        }

    def work():
        tasks = []
        for member in call.members:
            texts, prompts = materialise(plans[member], member.chain, run.data, run.root, run.settings.generations)
            key = jax.random.fold_in(phase_key(member.chain.key, generation, "fit"), member.entity)
            tasks.append(run.family.FitTask(key=key, texts=texts, prompts=prompts, sample_weights=None, start=_start(run, generation, member)))
        settings = effective(run.settings.fit, call.fit, call.scratch)
        results = run.family.fit(run.model(call.base), tasks, settings)
        rows, files, losses = [], [], {"chain": [], "entity": [], "step": [], "loss": []}
        for member, result in zip(call.members, results, strict=True):
            loss = np.asarray(result.loss, np.float32).reshape(-1)
            bad = np.flatnonzero(~np.isfinite(loss))
            finite = bool(result.finite) and not len(bad)
            fault = "" if finite else f"{loss[bad[0]]} at step {bad[0]}" if len(bad) else "the weights are not finite"
            last = float(loss[-1]) if len(loss) else None
            row = {"steps": int(result.steps), "tokens": int(result.tokens), "loss": last, "finite": finite, "fault": fault}
            if finite:
                written = trees.save_tree(run.root, f"{place}/{stem(member)}", result.weights)
                files += written
                row["file"] = written[0]
            rows.append(row)
            losses["chain"] += [member.chain.id] * len(loss)
            losses["entity"] += [member.entity] * len(loss)
            losses["step"] += range(len(loss))
            losses["loss"] += loss.tolist()
        tables.write_parquet(run.root / table, losses)
        checkpoint.seal(run.root, manifest, [*files, table], {"members": _members(call), "rows": rows})
        return {m: Fitted(result.weights if row["finite"] else None, row) for m, result, row in zip(call.members, results, rows, strict=True)}

    return _step(run, generation, call, "fit", units, work)


def _start(run, generation, member):
    if generation == 0 or member.chain.workflow.start != "previous":
        return None
    try:
        return trees.load_tree(run.root, f"{checkpoint.finished(generation - 1)}/{stem(member)}")
    except FileNotFoundError:
        raise ValueError(
            f"chain {member.chain.id}: starts from the weights of generation {generation - 1}, which were not kept; "
            "it cannot go on from here, give a new workdir and keep more generations"
        ) from None


def _sample(run: Run, generation: int, call: Group, good: Sequence[Member], fitted, kept) -> dict[Member, dict]:
    found, manifest, table = _part(run, generation, call, "sample", kept)
    units = sum(sample_rows(member.chain, run.settings) for member in call.members)

    def work():
        tasks = []
        for member in good:
            count = sample_rows(member.chain, run.settings)
            key = jax.random.fold_in(phase_key(member.chain.key, generation, "sample"), member.entity)
            prompts = sampling_prompts(member.chain, run.data, generation, member.entity, count)
            tasks.append(run.family.SampleTask(key=key, weights=fitted[member].weights, prompts=prompts, rows=np.arange(count)))
        settings = effective(run.settings.sample, call.sample)
        results = run.family.sample(run.model(call.base), tasks, settings) if tasks else []
        parts = []
        for member, task, result in zip(good, tasks, results, strict=True):
            count = len(task.prompts)
            parts.append(
                {
                    "chain": [member.chain.id] * count,
                    "entity": np.full(count, member.entity),
                    "row": np.arange(count),
                    "text": list(result.texts),
                    "prompt": list(task.prompts),
                    "tokens": np.asarray(result.tokens, np.int64),
                    "finished": np.asarray(result.finished, bool),
                }
            )
        tables.write_parquet(run.root / table, tables.concatenate(parts))
        checkpoint.seal(run.root, manifest, [table], {"members": _members(call)})

    if found is not None:
        run.report("sample", units, None, _describe(run, generation, call, "sample"))
    else:
        _step(run, generation, call, "sample", units, work)
    written = tables.read_parquet(run.root / table)
    place = {}
    for i, pair in enumerate(zip(written.get("chain", []), np.asarray(written.get("entity", [])).tolist(), strict=True)):
        place.setdefault(pair, []).append(i)
    out = {}
    for member in good:
        at = place.get((member.chain.id, member.entity), [])
        out[member] = {
            name: [written[name][i] for i in at] if name in ("text", "prompt") else np.asarray(written[name])[at]
            for name in ("entity", "row", "text", "prompt", "tokens", "finished")
        }
    return out


def _measure(run: Run, generation: int, call: Group, good, fitted, written, kept) -> dict[str, list]:
    found, manifest, table = _part(run, generation, call, "measure", kept)

    def work():
        outcomes = [
            Outcome(m.chain, m.entity, call.base, fitted[m].weights, w["text"], w["prompt"], w["tokens"], w["finished"]) for m, w in written.items()
        ]
        values = run.measure(run.model(call.base), generation, outcomes) if outcomes else {}
        rows = []
        for member in good:
            common = {"study": run.settings.study, "chain": member.chain.id, **dict(member.chain.factors)}
            common |= {"entity": member.entity, "generation": generation}
            for metric, value in values.get((member.chain.id, member.entity), {}).items():
                rows.append(common | {"metric": metric, "value": float(value)})
        tables.write_parquet(run.root / table, _columns(rows, run.chains))
        checkpoint.seal(run.root, manifest, [table], {"members": _members(call)})

    if run.measure is None:
        return _columns([], run.chains)
    if found is not None:
        run.report("measure", len(call.members), None, _describe(run, generation, call, "measure"))
    else:
        _step(run, generation, call, "measure", len(call.members), work)
    return tables.read_parquet(run.root / table)


def _columns(rows, chains):
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


def _commit(run: Run, generation: int, history: History, plans, bases, fits, samples, metrics) -> None:
    run.stop.doing = f"writing generation {generation}"
    place, target = checkpoint.unfinished(generation), checkpoint.finished(generation)
    parts = f"{place}/{checkpoint.PARTS}"
    files = [f"{place}/{name}" for name in ("ledger.parquet", "metrics.parquet", "losses.parquet")]
    rows = []
    for member, drawn in plans.items():
        fitted = fits[member].row
        chain, entity = member
        written = history.lineage.setdefault(chain.id, {})
        share = ledger.lineage_share(drawn, written)
        written[generation, entity] = share
        made = samples.get(member)
        held = "file" in fitted
        shares = {
            "real_share_new": ledger.real_share_new(chain.workflow, generation, drawn),
            "real_share_train": ledger.real_share_train(drawn),
            "lineage_share": share,
        }
        about = {
            "base": bases[member],
            "fit": ledger.describe(effective(run.settings.fit, chain.fit, chain.workflow.start == "scratch")),
            "decoder": ledger.describe(effective(run.settings.sample, chain.sample)),
            "steps": fitted["steps"],
            "tokens_trained": fitted["tokens"],
            "loss": fitted["loss"],
            "items_sampled": 0 if made is None else len(made["text"]),
            "tokens_sampled": 0 if made is None else int(made["tokens"].sum()),
            "checkpoint": target + fitted["file"][len(place) :] if held else "",
            "checkpoint_sha256": checkpoint.sha256(run.root / fitted["file"]) if held else "",
            "status": "ok" if fitted["finite"] else fitted["fault"],
            "environment": json.dumps(dict(run.environment), sort_keys=True),
        }
        rows += [{"study": run.settings.study, **row} for row in ledger.rows(chain, generation, entity, drawn, shares, run.prints, about)]
        if held:
            files += [fitted["file"]] if fitted["file"].endswith(".safetensors") else _below(run.root, f"{place}/{stem(member)}.orbax")
    for chain in run.chains:
        mine = [samples[Member(chain, k)] for k in range(chain.workflow.entities) if Member(chain, k) in samples]
        if len(mine) == chain.workflow.entities:
            path = texts_path(chain, generation)
            (run.root / path).parent.mkdir(parents=True, exist_ok=True)
            tables.write_parquet(run.root / path, tables.concatenate(mine))
            files.append(path)
    tables.write_parquet(run.root / files[0], ledger.columns(rows))
    tables.write_parquet(run.root / files[1], tables.concatenate(metrics))
    losses = [tables.read_parquet(path) for path in sorted((run.root / parts).glob("*.fit.parquet"))]
    tables.write_parquet(run.root / files[2], tables.concatenate(losses))
    checkpoint.commit(run.root, generation, files, about_run(run, history))


def about_run(run: Run, history: History) -> dict:
    """What a manifest says of the run: enough to refuse another study in the same directory."""
    return {
        "chains": {chain.id: describe_chain(chain) for chain in run.chains},
        "data": dict(run.prints),
        "fit": json.loads(ledger.describe(run.settings.fit)),
        "sample": json.loads(ledger.describe(run.settings.sample)),
        "evaluate": run.settings.evaluate,
        "environment": dict(run.environment),
        "failed": dict(history.failed),
    }


def describe_chain(chain: ChainSpec) -> str:
    """The fields of a chain, and of its workflow, that differ from their defaults, as text that later versions write alike."""

    def given(thing):
        out = {}
        for f in dataclasses.fields(thing):
            value = getattr(thing, f.name)
            if value != f.default:
                out[f.name] = given(value) if dataclasses.is_dataclass(value) else value
        return out

    return json.dumps(given(chain), sort_keys=True, default=repr)


def _below(root, name):
    return sorted(str(path.relative_to(root)) for path in (Path(root) / name).rglob("*") if path.is_file())
