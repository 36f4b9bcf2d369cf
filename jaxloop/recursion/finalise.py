"""Finalising a generation: its parts become ledger, losses, texts, metrics and a manifest.

Also here: what is read back from finished generations when a run is resumed (`History`), and the
tables of a whole run (`write_tables`).
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxloop.recursion import ledger
from jaxloop.recursion.chains import ChainSpec, FitGroup, Member
from jaxloop.recursion.generation import draw_plan
from jaxloop.recursion.parts import (
    Columns,
    FitRow,
    part_path,
    process_share,
    rows_by_member,
    tidy,
)
from jaxloop.recursion.plan import IndexPlan
from jaxloop.recursion.run import Failure, Run, effective
from jaxloop.recursion.sources import texts_path, with_ledger_sources
from jaxloop.runtime import checkpoint, tables
from jaxloop.runtime.atomic_io import inside, write_atomic
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.mirror import elsewhere

TEXT_COLUMNS = ("generation", "entity", "row", "text", "prompt", "tokens", "finished", "selected")
# metrics-0001.parquet and so on: what `backfill` added to a finished generation.
BACKFILLED = "metrics-"


@dataclasses.dataclass
class History:
    """What earlier generations leave to later ones.

    failed   chains that have stopped, by id
    lineage  {chain id: {(generation, entity): share}}: see `ledger.lineage_share`
    """

    failed: dict[str, Failure] = dataclasses.field(default_factory=dict)
    lineage: dict[str, dict[tuple[int, int], float]] = dataclasses.field(default_factory=dict)

    def read(self, root: Path, generation: int) -> None:
        """Add a finished generation, read from its files."""
        place = checkpoint.finished(generation)
        manifest = checkpoint.read_manifest(root, f"{place}/{checkpoint.MANIFEST}")
        self.failed = manifest["about"]["failed"]
        table = tables.read_parquet(
            root / place / "ledger.parquet", ["chain", "entity", "lineage_share"]
        )
        for chain, entity, value in zip(*table.values(), strict=True):
            self.lineage.setdefault(chain, {})[generation, int(entity)] = float(value)


class Assembled(NamedTuple):
    """A generation that lacks only its metrics.

    files      its files, relative to the run directory
    failed     chains that have stopped by then, by id
    elsewhere  entries of weights on other hosts' disks; see `checkpoint.write_manifest`
    """

    files: list[str]
    failed: dict[str, Failure]
    elsewhere: dict[str, Mapping[str, Any]]


def assemble(
    run: Run,
    generation: int,
    history: History,
    groups: Sequence[FitGroup],
    plans: Mapping[Member, IndexPlan],
) -> Assembled:
    """Write ledger, losses and texts of a generation from the parts of all processes.

    The order of rows depends on the chains alone.

    Args:
        run: the run.
        generation: its number.
        history: what earlier generations left.
        groups: all groups of the generation.
        plans: index plans that were drawn already; those of other processes' members are drawn
            here.

    Raises:
        DiskFull: the disk is full.
        CorruptCheckpointError: a part is missing or damaged.
    """
    run.stop.doing = f"writing generation {generation}"
    fits, trained = _fit_rows(run, generation, groups)
    texts = _gather_tables(run, generation, groups, "sample")
    losses = _gather_tables(run, generation, groups, "fit")
    members = [(member, group.base) for group in groups for member in group.members]
    failed = _failures(generation, history, {member: fits[member] for member, _ in members})
    place = checkpoint.unfinished(generation)
    files = [f"{place}/ledger.parquet", f"{place}/losses.parquet"]
    rows: list[dict[str, Any]] = []
    for member, base in members:
        plan = plans[member] if member in plans else draw_plan(run, member, generation)
        booked = with_ledger_sources(plan, member.chain, run.data, run.settings.generations)
        generated = texts.get((member.chain.id, member.entity))
        rows += _ledger_rows(
            run, generation, history, member, base, booked, fits[member], trained, generated
        )
    files += trained
    for chain in run.chains:
        files += _write_texts(run, generation, chain, texts)
    names = [(member.chain.id, member.entity) for member, _ in members]
    tables.write_parquet(run.root / files[0], ledger.columns(rows))
    tables.write_parquet(
        run.root / files[1],
        tables.concatenate([losses[name] for name in names if name in losses]),
    )
    return Assembled(files, failed, elsewhere(run.root, trained))


def finish(run: Run, generation: int, groups: Sequence[FitGroup], assembled: Assembled) -> None:
    """Add the metrics to an assembled generation and finalise it.

    Raises:
        DiskFull: the disk is full.
        CorruptCheckpointError: a part is missing or damaged.
    """
    metrics: dict[tuple[str, int], Columns] = {}
    if run.measure is not None:
        metrics = _gather_tables(run, generation, groups, "measure")
    names = [(member.chain.id, member.entity) for group in groups for member in group.members]
    table = f"{checkpoint.unfinished(generation)}/metrics.parquet"
    measured = [metrics[name] for name in names if name in metrics]
    tables.write_parquet(run.root / table, tables.concatenate([tidy([], run.chains), *measured]))
    checkpoint.finalise(
        run.root,
        generation,
        [*assembled.files, table],
        about_run(run, assembled.failed),
        assembled.elsewhere,
    )


def about_run(run: Run, failed: Mapping[str, Failure]) -> dict[str, Any]:
    """Return what a manifest says of the run: enough to refuse another study in its directory."""
    return {
        "chains": {chain.id: describe_chain(chain) for chain in run.chains},
        "data": dict(run.fingerprints),
        "held_out": {name: data.held_out for name, data in run.data.items() if data.held_out},
        "fit": json.loads(ledger.describe(run.settings.fit)),
        "sample": json.loads(ledger.describe(run.settings.sample)),
        "evaluate": run.settings.evaluate,
        "identity": dict(run.settings.identity),
        "environment": dict(run.environment),
        "failed": dict(failed),
    }


def describe_chain(chain: ChainSpec) -> str:
    """Return the fields of a chain, and of its workflow, that differ from their defaults, as JSON.

    A field that a later version adds changes nothing as long as it has its default.
    """
    return json.dumps(_changed_fields(chain), sort_keys=True, default=repr)


def read_metrics(root: Path, generation: int) -> Columns:
    """Return the metrics of a finished generation, as columns with one value per row.

    Values that were backfilled replace those measured when the generation was made.
    """
    place = checkpoint.finished(generation)
    files = checkpoint.read_manifest(root, f"{place}/{checkpoint.MANIFEST}")["files"]
    backfilled = sorted(name for name in files if name.startswith(f"{place}/{BACKFILLED}"))
    table = tables.concatenate(
        [tables.read_parquet(root / name) for name in (f"{place}/metrics.parquet", *backfilled)]
    )
    # Duplicate keys: the last value wins, the first position is kept.
    keys = zip(table["chain"], table["entity"], table["metric"], strict=True)
    rows = {key: i for i, key in enumerate(keys)}
    return {name: [values[i] for i in rows.values()] for name, values in table.items()}


def write_tables(root: Path, count: int) -> None:
    """Write ledger.parquet, losses.parquet and metrics.csv of a run anew.

    They hold the finished generations 0 to count-1.
    """
    for name in ("ledger.parquet", "losses.parquet"):
        parts = [
            tables.read_parquet(root / checkpoint.finished(generation) / name)
            for generation in range(count)
        ]
        tables.write_parquet(root / name, tables.concatenate(parts))
    write_metrics(root, count)


def write_metrics(root: Path, count: int) -> None:
    """Write metrics.csv of the run anew, from the finished generations 0 to count-1."""
    metrics = tables.concatenate([read_metrics(root, generation) for generation in range(count)])
    write_atomic(root / "metrics.csv", tables.to_csv(metrics), durable=False)


# ---- parts


def _all_parts(run: Run, groups: Sequence[FitGroup]) -> list[FitGroup]:
    """The groups as the processes of the cluster shared them."""
    shares = [
        process_share(group, process, run.processes)
        for group in groups
        for process in range(run.processes)
    ]
    return [share for share in shares if share is not None]


def _fit_rows(
    run: Run, generation: int, groups: Sequence[FitGroup]
) -> tuple[dict[Member, FitRow], dict[str, dict[str, Any]]]:
    """Rows of the manifests of all fits, and {file: {"bytes", "sha256"}} of the weights."""
    rows: dict[Member, FitRow] = {}
    trained: dict[str, dict[str, Any]] = {}
    for part in _all_parts(run, groups):
        manifest = checkpoint.read_manifest(run.root, part_path(generation, part, "fit", "json"))
        rows |= dict(zip(part.members, manifest["about"]["rows"], strict=True))
        table = part_path(generation, part, "fit", "parquet")
        trained |= {name: entry for name, entry in manifest["files"].items() if name != table}
    return rows, trained


def _gather_tables(
    run: Run, generation: int, groups: Sequence[FitGroup], step: str
) -> dict[tuple[str, int], Columns]:
    """Rows of the tables that a step left in all parts, by (chain id, entity).

    They are losses of "fit", texts of "sample", metrics of "measure".
    """
    rows: dict[tuple[str, int], Columns] = {}
    for part in _all_parts(run, groups):
        path = run.root / part_path(generation, part, step, "parquet")
        rows |= rows_by_member(tables.read_parquet(path))
    return rows


def _failures(
    generation: int, history: History, fits: Mapping[Member, FitRow]
) -> dict[str, Failure]:
    """Chains that have stopped, those that stop in this generation included, which are logged."""
    failed = dict(history.failed)
    for (chain, entity), row in fits.items():
        if row["finite"] or chain.id in failed:
            continue
        reason = f"the training loss of entity {entity} is not finite ({row['fault']})"
        failed[chain.id] = {"generation": generation, "reason": reason}
        LOGGER.error(
            "chain %s stopped in generation %d: %s; the other chains go on",
            chain.id,
            generation,
            reason,
        )
    return failed


# ---- files of a generation


def _write_texts(
    run: Run,
    generation: int,
    chain: ChainSpec,
    texts: Mapping[tuple[str, int], Columns],
) -> list[str]:
    """Write the texts of a chain, where all of its models have generated; return the file."""
    pieces = [texts.get((chain.id, entity)) for entity in range(chain.workflow.entities)]
    # Chains without a selection have no such column or, in the table of a group with others that
    # have one, nothing in it.
    names = [name for name in TEXT_COLUMNS if name != "selected" or chain.workflow.selection]
    columns: list[Columns] = []
    for piece in pieces:
        if piece is None:
            return []
        piece = {"generation": [generation] * len(piece["text"]), **piece}
        columns.append({name: piece[name] for name in names})
    name = texts_path(chain.id, generation)
    path = inside(run.root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_parquet(path, tables.concatenate(columns))
    return [name]


def _ledger_rows(
    run: Run,
    generation: int,
    history: History,
    member: Member,
    base: str,
    plan: IndexPlan,
    fit: FitRow,
    trained: Mapping[str, Mapping[str, Any]],
    texts: Columns | None,
) -> list[dict[str, Any]]:
    chain, entity = member
    settings = run.settings
    shares = {
        "real_share_new": ledger.real_share_new(chain.workflow, generation, plan),
        "real_share_train": ledger.real_share_train(plan),
        "lineage_share": ledger.lineage_share(plan, history.lineage.get(chain.id, {})),
    }
    file = fit.get("file", "")
    # The directory of the generation is renamed when it is finalised.
    final_file = file.replace(checkpoint.unfinished(generation), checkpoint.finished(generation), 1)
    scratch = chain.workflow.start == "scratch"
    about = {
        "base": base,
        "base_sha256": settings.identity.get(base, ""),
        "fit": ledger.describe(effective(settings.fit, chain.fit, scratch)),
        "decoder": ledger.describe(effective(settings.sample, chain.sample)),
        "steps": fit["steps"],
        "tokens_trained": fit["tokens"],
        "loss": fit["loss"],
        "special_as_text": fit.get("special", 0),
        "items_sampled": 0 if texts is None else len(texts["text"]),
        "tokens_sampled": 0 if texts is None else sum(texts["tokens"]),
        "checkpoint": final_file,
        "checkpoint_sha256": trained[file]["sha256"] if file else "",
        "status": "ok" if fit["finite"] else fit["fault"],
        "environment": json.dumps(dict(run.environment), sort_keys=True),
    }
    rows = ledger.rows(chain, generation, entity, plan, shares, run.fingerprints, about)
    return [{"study": settings.study, **row} for row in rows]


def _changed_fields(thing: Any) -> dict[str, Any]:
    """Fields of a dataclass that differ from their defaults, nested dataclasses likewise."""
    changed = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if value != field.default:
            changed[field.name] = (
                _changed_fields(value) if dataclasses.is_dataclass(value) else value
            )
    return changed
