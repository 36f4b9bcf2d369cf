"""From the sealed parts of a generation to a finished one: ledger, tables, texts, manifest; and
back, when a run is resumed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jaxloop.recursion import ledger
from jaxloop.recursion.chains import ChainSpec, Group, Member
from jaxloop.recursion.generation import Run, draw, effective, part_path, share, split, stem, tidy
from jaxloop.recursion.sources import booked, texts_path
from jaxloop.recursion.workflow import Plan
from jaxloop.runtime import checkpoint, tables
from jaxloop.runtime.atomic_io import inside
from jaxloop.runtime.log import LOGGER

TEXT_COLUMNS = ("generation", "entity", "row", "text", "prompt", "tokens", "finished", "selected")
FILLED = "metrics-"  # metrics-0001.parquet and so on: what `fill.fill` found later


@dataclass
class History:
    """What earlier generations leave to later ones: chains that stopped {id: {generation, reason}},
    and the lineage share of every writer.
    """

    failed: dict[str, dict] = field(default_factory=dict)
    lineage: dict[str, dict[tuple[int, int], float]] = field(default_factory=dict)

    def read(self, root: Path, generation: int) -> None:
        """Takes in a finished generation."""
        place = checkpoint.finished(generation)
        self.failed = checkpoint.read_manifest(root, f"{place}/{checkpoint.MANIFEST}")["about"][
            "failed"
        ]
        table = tables.read_parquet(
            root / place / "ledger.parquet", ["chain", "entity", "lineage_share"]
        )
        for chain, entity, value in zip(*table.values(), strict=True):
            self.lineage.setdefault(chain, {})[generation, int(entity)] = float(value)


class Assembled(NamedTuple):
    """A generation that lacks its metrics only: its files, and the chains that have stopped by then
    {id: {generation, reason}}.
    """

    files: list[str]
    failed: dict[str, dict]


def assemble(
    run: Run,
    generation: int,
    history: History,
    calls: Sequence[Group],
    plans: Mapping[Member, Plan],
) -> Assembled:
    """Ledger, losses and texts of a generation from the parts that all processes sealed, in an
    order that does not depend on them.

    Raises DiskFull, and Damaged where a part is not whole. plans: those that are known; the others
    are drawn here.
    """
    run.stop.doing = f"writing generation {generation}"
    fits = _rows(run, generation, calls)
    samples, losses = (_gather(run, generation, calls, step) for step in ("sample", "fit"))
    order = [(member, call.base) for call in calls for member in call.members]
    failed = dict(history.failed)
    for member, _ in order:
        if not fits[member]["finite"] and member.chain.id not in failed:
            reason = (
                f"the training loss of entity {member.entity} is not finite "
                f"({fits[member]['fault']})"
            )
            failed[member.chain.id] = {"generation": generation, "reason": reason}
            LOGGER.error(
                "chain %s stopped in generation %d: %s; the other chains go on",
                member.chain.id,
                generation,
                reason,
            )
    place = checkpoint.unfinished(generation)
    files = [f"{place}/{name}" for name in ("ledger.parquet", "losses.parquet")]
    rows = []
    for member, base in order:
        made = samples.get((member.chain.id, member.entity))
        drawn = plans[member] if member in plans else draw(run, member, generation)
        drawn = booked(drawn, member.chain, run.data, run.settings.generations)
        rows += _ledger_rows(run, generation, history, member, base, drawn, fits[member], made)
        if name := fits[member].get("file"):
            files += (
                [name]
                if name.endswith(".safetensors")
                else _below(run.root, f"{place}/{stem(member)}.orbax")
            )
    for chain in run.chains:
        pieces = [samples.get((chain.id, entity)) for entity in range(chain.workflow.entities)]
        if all(piece is not None for piece in pieces):
            path = inside(run.root, texts_path(chain, generation))
            path.parent.mkdir(parents=True, exist_ok=True)
            wide = [{"generation": [generation] * len(piece["text"]), **piece} for piece in pieces]
            # Chains without a selection have no such column, or, in the table of a call with others
            # that have one, nothing in it.
            kept = [name for name in TEXT_COLUMNS if name != "selected" or chain.workflow.selection]
            tables.write_parquet(
                path, tables.concatenate([{name: piece[name] for name in kept} for piece in wide])
            )
            files.append(texts_path(chain, generation))
    pairs = [(member.chain.id, member.entity) for member, _ in order]
    tables.write_parquet(run.root / files[0], ledger.columns(rows))
    tables.write_parquet(
        run.root / files[1], tables.concatenate([losses[p] for p in pairs if p in losses])
    )
    return Assembled(files, failed)


def finish(run: Run, generation: int, calls: Sequence[Group], made: Assembled) -> None:
    """Adds the metrics to an assembled generation and commits it. Raises DiskFull, and Damaged
    where a part is not whole.
    """
    metrics = _gather(run, generation, calls, "measure") if run.measure is not None else {}
    pairs = [(member.chain.id, member.entity) for call in calls for member in call.members]
    table = f"{checkpoint.unfinished(generation)}/metrics.parquet"
    tables.write_parquet(
        run.root / table,
        tables.concatenate([tidy([], run.chains), *(metrics[p] for p in pairs if p in metrics)]),
    )
    checkpoint.commit(run.root, generation, [*made.files, table], about_run(run, made.failed))


def _parts(run, calls):
    parts = [
        share(call, process, run.processes) for call in calls for process in range(run.processes)
    ]
    return [part for part in parts if part is not None]


def _rows(run, generation, calls):
    """{member: row of its fit} of all parts."""
    rows = {}
    for part in _parts(run, calls):
        manifest = checkpoint.read_manifest(run.root, part_path(generation, part, "fit", "json"))
        rows |= dict(zip(part.members, manifest["about"]["rows"], strict=True))
    return rows


def _gather(run, generation, calls, step):
    """{(chain id, entity): rows} of the tables that a step left in all parts: losses of "fit",
    texts of "sample", metrics of "measure".
    """
    found = {}
    for part in _parts(run, calls):
        found |= split(tables.read_parquet(run.root / part_path(generation, part, step, "parquet")))
    return found


def _ledger_rows(run, generation, history, member, base, drawn, fitted, made):
    chain, entity = member
    place, target = checkpoint.unfinished(generation), checkpoint.finished(generation)
    held = fitted.get("file")
    shares = {
        "real_share_new": ledger.real_share_new(chain.workflow, generation, drawn),
        "real_share_train": ledger.real_share_train(drawn),
        "lineage_share": ledger.lineage_share(drawn, history.lineage.get(chain.id, {})),
    }
    about = {
        "base": base,
        "base_sha256": run.settings.identity.get(base, ""),
        "fit": ledger.describe(
            effective(run.settings.fit, chain.fit, chain.workflow.start == "scratch")
        ),
        "decoder": ledger.describe(effective(run.settings.sample, chain.sample)),
        "steps": fitted["steps"],
        "tokens_trained": fitted["tokens"],
        "loss": fitted["loss"],
        "special_as_text": fitted.get("special", 0),
        "items_sampled": 0 if made is None else len(made["text"]),
        "tokens_sampled": 0 if made is None else sum(made["tokens"]),
        "checkpoint": target + held[len(place) :] if held else "",
        "checkpoint_sha256": checkpoint.sha256(run.root / held) if held else "",
        "status": "ok" if fitted["finite"] else fitted["fault"],
        "environment": json.dumps(dict(run.environment), sort_keys=True),
    }
    return [
        {"study": run.settings.study, **row}
        for row in ledger.rows(chain, generation, entity, drawn, shares, run.prints, about)
    ]


def about_run(run: Run, failed: Mapping[str, Mapping]) -> dict:
    """What a manifest says of the run: enough to refuse another study in the same directory."""
    return {
        "chains": {chain.id: describe_chain(chain) for chain in run.chains},
        "data": dict(run.prints),
        "fit": json.loads(ledger.describe(run.settings.fit)),
        "sample": json.loads(ledger.describe(run.settings.sample)),
        "evaluate": run.settings.evaluate,
        "identity": dict(run.settings.identity),
        "environment": dict(run.environment),
        "failed": dict(failed),
    }


def read_metrics(root: Path, generation: int) -> dict[str, list]:
    """The metrics of a finished generation, tidy columns: those measured when it was made, and
    those that were filled in later in their place.
    """
    place = checkpoint.finished(generation)
    listed = checkpoint.read_manifest(root, f"{place}/{checkpoint.MANIFEST}")["files"]
    names = [
        f"{place}/metrics.parquet",
        *sorted(name for name in listed if name.startswith(f"{place}/{FILLED}")),
    ]
    table = tables.concatenate([tables.read_parquet(root / name) for name in names])
    # A key that comes again keeps its first place and takes its last row.
    rows = {
        key: i
        for i, key in enumerate(zip(table["chain"], table["entity"], table["metric"], strict=True))
    }
    return {name: [values[i] for i in rows.values()] for name, values in table.items()}


def describe_chain(chain: ChainSpec) -> str:
    """The fields of a chain, and of its workflow, that differ from their defaults, as text that
    later versions write alike.
    """

    def given(thing):
        out = {}
        for f in dataclasses.fields(thing):
            value = getattr(thing, f.name)
            if value != f.default:
                out[f.name] = given(value) if dataclasses.is_dataclass(value) else value
        return out

    return json.dumps(given(chain), sort_keys=True, default=repr)


def _below(root, name):
    return sorted(
        str(path.relative_to(root)) for path in (Path(root) / name).rglob("*") if path.is_file()
    )
