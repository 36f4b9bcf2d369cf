"""Parts: what a step of a group leaves on the disk until the generation is finished.

Also here: the rows of the tables in parts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from jaxloop.recursion.chains import ChainSpec, FitGroup, Member
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.run import Run
from jaxloop.runtime import checkpoint, tables

Columns = dict[str, list[Any]]


class FitRow(TypedDict):
    """What the manifest of a fit says of one model.

    steps, tokens   as in `FitResult`
    loss            loss of the last update; None where there was none
    finite, fault   whether loss and weights are finite, and what is not
    special         as in `FitResult`
    file            first file of the weights, relative to the run directory; absent if not finite
    """

    steps: int
    tokens: int
    loss: float | None
    finite: bool
    fault: str
    special: NotRequired[int]
    file: NotRequired[str]


def process_share(group: FitGroup, process: int, processes: int) -> FitGroup | None:
    """Return the part of a group that one process of a cluster makes; None where there is none."""
    members = group.members[process::processes]
    if not members:
        return None
    if processes == 1:
        return group
    return group._replace(name=f"{group.name}.{process}of{processes}", members=members)


def weights_stem(member: Member) -> str:
    """Return the path of a model's weights inside its generation's directory, without extension."""
    several = f",entity={member.entity}" if member.chain.workflow.entities > 1 else ""
    return f"adapters/chain={member.chain.id}{several}"


def part_path(generation: int, group: FitGroup, step: str, suffix: str) -> str:
    """Return the path of a step's manifest or table, relative to the run directory.

    Args:
        generation: its number.
        group: whose step it is.
        step: "fit", "sample" or "measure".
        suffix: "json" for the manifest, "parquet" for the table.
    """
    return f"{checkpoint.unfinished(generation)}/{checkpoint.PARTS}/{group.name}.{step}.{suffix}"


def rows_by_member(table: Mapping[str, tables.Column]) -> dict[tuple[str, int], Columns]:
    """Return rows of a table by (chain id, entity)."""
    columns: Columns = {
        name: values.tolist() if isinstance(values, np.ndarray) else list(values)
        for name, values in table.items()
    }
    rows: dict[tuple[str, int], list[int]] = {}
    pairs = zip(columns.get("chain", ()), columns.get("entity", ()), strict=True)
    for i, pair in enumerate(pairs):
        rows.setdefault(pair, []).append(i)
    return {
        pair: {name: [values[i] for i in chosen] for name, values in columns.items()}
        for pair, chosen in rows.items()
    }


def no_texts() -> Columns:
    """Return the columns of a table without texts."""
    return {"text": [], "prompt": [], "tokens": [], "finished": []}


def model_output(member: Member, base: str, weights: Any, texts: Columns) -> ModelOutput:
    """Return what `measure` gets of a model, from its columns of the table of texts."""
    return ModelOutput(
        chain=member.chain,
        entity=member.entity,
        base=base,
        weights=weights,
        texts=texts["text"],
        prompts=texts["prompt"],
        tokens=np.asarray(texts["tokens"]),
        finished=np.asarray(texts["finished"]),
    )


def metric_row(
    run: Run, generation: int, member: Member, metric: str, value: float
) -> dict[str, Any]:
    """Return a row of metrics.csv."""
    return {
        "study": run.settings.study,
        "chain": member.chain.id,
        **dict(member.chain.factors),
        "entity": member.entity,
        "generation": generation,
        "metric": metric,
        "value": value,
    }


def tidy(rows: Sequence[Mapping[str, Any]], chains: Sequence[ChainSpec]) -> Columns:
    """Return the columns of a table of metrics with one value per row.

    A factor has one type in all chains of the study: text where any of its values is text.
    """
    factors = list(dict.fromkeys(name for chain in chains for name, _ in chain.factors))
    columns = {}
    for name in ["study", "chain", *factors, "entity", "generation", "metric", "value"]:
        values = [row.get(name) for row in rows]
        kinds = {type(v) for chain in chains for k, v in chain.factors if k == name}
        if name in factors and not kinds <= {int, float}:
            values = [v if v is None else str(v) for v in values]
        elif name in factors and float in kinds:
            values = [v if v is None else float(v) for v in values]
        columns[name] = values
    return columns
