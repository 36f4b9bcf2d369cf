"""From index plans to texts, which are read from data sets and from earlier generations' texts/.

A chain reads the human data set as a *stream*: rows in a random order of the chain's own, each of
them once. An index plan holds positions in that stream.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxloop.core.keys import chain_key, fold_in, phase_key, rows_below
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.family import ModelOutput
from jaxloop.recursion.plan import IndexPlan, human_rows, index_plan, on_host
from jaxloop.recursion.workflow import (
    EXTERNAL,
    HUMAN,
    PUBLIC,
    SYNTHETIC,
    external_needed,
    human_needed,
)
from jaxloop.runtime.atomic_io import inside
from jaxloop.runtime.tables import read_parquet


@dataclass(frozen=True, eq=False)
class Dataset:
    """Texts with the prompts that they answer.

    prompts         one for all texts, or one per text; final: the family puts nothing around them
    sample_prompts  prompts that generations answer, in turn (multi-domain: row i answers prompt i
                    modulo their number); empty: the one prompt, or else prompts of texts drawn at
                    random (arXiv 2505.21677)
    fingerprint     checksum of the data, for the ledger; "": computed when a run begins
    held_out        checksum of texts beside these that models are measured on; "": there are none
    outside         numbers of the rows that no person wrote, where human and other texts are mixed
                    in one data set: the ledger counts them as `external`
    """

    texts: Sequence[str]
    prompts: str | Sequence[str] = ""
    sample_prompts: tuple[str, ...] = ()
    fingerprint: str = ""
    held_out: str = ""
    outside: frozenset[int] = frozenset()

    def prompt(self, row: int) -> str:
        """Prompt that text `row` answers."""
        return self.prompts if isinstance(self.prompts, str) else self.prompts[row]

    def items(self, rows: np.ndarray) -> Iterator[tuple[str, str]]:
        """Return texts and prompts of rows [n]."""
        for row in rows.tolist():
            yield self.texts[row], self.prompt(row)


def check_data(chains: Sequence[ChainSpec], data: Mapping[str, Dataset], generations: int) -> None:
    """Check that every chain has its data sets and that they hold enough items.

    Raises:
        ValueError: one is missing, empty or too small; the message names the field and the numbers.
    """
    for chain in chains:
        _check_datasets(chain, data)
        _check_sizes(chain, data, generations)


def _check_datasets(chain: ChainSpec, data: Mapping[str, Dataset]) -> None:
    """Raises ValueError where a data set that a chain names is absent, empty or malformed."""
    names = (chain.dataset,) if isinstance(chain.dataset, str) else chain.dataset
    fields: list[tuple[str, str | None]] = [("dataset", name) for name in names]
    fields += [("public", chain.public), ("external", chain.external)]
    for field, name in fields:
        if name is None:
            continue
        if name not in data:
            raise ValueError(
                f"{field}={name!r}: no such data set; there are {', '.join(sorted(data)) or 'none'}"
            )
        dataset = data[name]
        if not len(dataset.texts):
            raise ValueError(f"{field}={name!r}: the data set is empty")
        if not isinstance(dataset.prompts, str) and len(dataset.prompts) != len(dataset.texts):
            raise ValueError(
                f"{field}={name!r}: has {len(dataset.texts)} texts but {len(dataset.prompts)} "
                "prompts"
            )
    for name, count in chain.probes:
        if name not in data or len(data[name].texts) < count:
            available = "no such data set"
            if name in data:
                available = f"has {len(data[name].texts):,} items"
            raise ValueError(
                f"probes: {name!r}: {available}, chain {chain.id} asks for the first {count:,}"
            )


def _check_sizes(chain: ChainSpec, data: Mapping[str, Dataset], generations: int) -> None:
    """Raises ValueError where a data set has fewer items than the chain uses."""
    flow = chain.workflow
    needs: list[tuple[str, str | None, str, int]] = []
    for entity in range(flow.entities):
        reader = _reader(chain, entity)
        needed = _stream_length(chain, entity, generations) * reader.readers
        needs.append(("dataset", reader.dataset, "human items", needed))
    if flow.external:
        needed = external_needed(flow, generations) * flow.entities
        needs.append(("external", chain.external, "items", needed))
    if flow.exchange is not None and flow.exchange.public:
        needs.append(("public", chain.public, "items", flow.exchange.public))
    for field, name, items, needed in needs:
        available = 0 if name is None else len(data[name].texts)
        if available < needed:
            raise ValueError(
                f"{field}={name!r}: has {available:,} {items}, chain {chain.id} needs "
                f"{needed:,} in {generations} generations; "
                "take more data, fewer generations or a smaller size"
            )


class _Reader(NamedTuple):
    """An entity as a reader of its data set.

    dataset  name of the data set
    rank     its rank among the entities that read the same data set
    readers  how many entities read it
    """

    dataset: str
    rank: int
    readers: int


def _reader(chain: ChainSpec, entity: int) -> _Reader:
    name = chain.dataset_of(entity)
    readers = [k for k in range(chain.workflow.entities) if chain.dataset_of(k) == name]
    return _Reader(name, readers.index(entity), len(readers))


def _stream_length(chain: ChainSpec, entity: int, generations: int) -> int:
    if chain.workflow.exchange is not None:
        return chain.workflow.exchange.private[entity]
    return human_needed(chain.workflow, generations)


@lru_cache(maxsize=1024)
def _stream(seed: int, available: int, needed: int, rank: int, readers: int) -> np.ndarray:
    rows = human_rows(chain_key(seed), available, needed, entity=rank, entities=readers)
    return rows.astype(np.int32)


def human_stream(
    chain: ChainSpec, data: Mapping[str, Dataset], generations: int, entity: int = 0
) -> np.ndarray:
    """Return the rows (int32) of an entity's data set in the order in which the chain uses them.

    Generation 0's come first, then each generation's fresh ones.
    """
    reader = _reader(chain, entity)
    available = len(data[reader.dataset].texts)
    needed = _stream_length(chain, entity, generations)
    return _stream(chain.seed, available, needed, reader.rank, reader.readers)


def human_texts(chain: ChainSpec, data: Mapping[str, Dataset], *, entity: int = 0) -> list[str]:
    """Return the human texts that generation 0 of an entity trains on."""
    rows = human_stream(chain, data, 1, entity)[: chain.workflow.initial]
    texts = data[chain.dataset_of(entity)].texts
    return [texts[row] for row in rows]


def with_ledger_sources(
    plan: IndexPlan, chain: ChainSpec, data: Mapping[str, Dataset], generations: int
) -> IndexPlan:
    """Return a plan (as from `on_host`) with the sources that the ledger counts.

    Human rows that are `outside` rows of their data set become external.
    """
    source = np.array(plan.source)
    for entity in range(chain.workflow.entities):
        outside = data[chain.dataset_of(entity)].outside
        if not outside:
            continue
        chosen = _rows_of(plan, HUMAN, entity=entity)
        if len(chosen):
            stream = human_stream(chain, data, generations, entity)
            rows = stream[np.asarray(plan.position)[chosen]]
            source[chosen[np.isin(rows, list(outside))]] = EXTERNAL
    return plan._replace(source=source)


def _rows_of(
    plan: IndexPlan, source: int, *, entity: int | None = None, generation: int | None = None
) -> np.ndarray:
    """Rows of a plan with a source and, where given, an entity or generation."""
    chosen = np.asarray(plan.source) == source
    if entity is not None:
        chosen &= np.asarray(plan.entity) == entity
    if generation is not None:
        chosen &= np.asarray(plan.generation) == generation
    return np.flatnonzero(chosen)


def texts_path(chain: str, generation: int) -> str:
    """Return where the texts of a chain (its id) lie, relative to the run directory."""
    return f"texts/chain={chain}/generation={generation:04d}.parquet"


# {generation: {(entity, row): (text, prompt)}} of texts that are not in texts/ yet.
AtHand = Mapping[int, Mapping[tuple[int, int], tuple[str, str]]]


def materialise(
    plan: IndexPlan,
    chain: ChainSpec,
    data: Mapping[str, Dataset],
    root: Path,
    generations: int,
    *,
    at_hand: AtHand | None = None,
) -> tuple[list[str], list[str]]:
    """Return the texts and prompts of the rows of a plan (as from `on_host`).

    They are read from the data sets and from texts/ in the run directory `root`, but for those of
    the generations in `at_hand`.
    """
    texts, prompts = [""] * len(plan.source), [""] * len(plan.source)

    def put(rows: np.ndarray, items: Iterable[tuple[str, str]]) -> None:
        for row, (text, prompt) in zip(rows.tolist(), items, strict=True):
            texts[row], prompts[row] = text, prompt

    position, entities = np.asarray(plan.position), np.asarray(plan.entity)
    for entity in range(chain.workflow.entities):
        rows = _rows_of(plan, HUMAN, entity=entity)
        if len(rows):
            stream = human_stream(chain, data, generations, entity)
            put(rows, data[chain.dataset_of(entity)].items(stream[position[rows]]))
    synthetic = np.asarray(plan.source) == SYNTHETIC
    for generation in np.unique(np.asarray(plan.generation)[synthetic]).tolist():
        rows = _rows_of(plan, SYNTHETIC, generation=generation)
        if at_hand and generation in at_hand:
            keys = zip(entities[rows].tolist(), position[rows].tolist(), strict=True)
            put(rows, (at_hand[generation][key] for key in keys))
        else:
            put(rows, _generated(chain, generation, root, entities[rows], position[rows]))
    rows = _rows_of(plan, EXTERNAL)
    if len(rows) and chain.external is not None:
        outside = data[chain.external]
        streams = _external_streams(chain, len(outside.texts), generations)
        put(rows, outside.items(streams[entities[rows], position[rows]]))
    rows = _rows_of(plan, PUBLIC)
    if len(rows) and chain.public is not None:
        put(rows, data[chain.public].items(position[rows]))
    return texts, prompts


def upcoming_texts(
    output: ModelOutput, generation: int, data: Mapping[str, Dataset], root: Path, generations: int
) -> list[str]:
    """Return what the generation after `generation` trains on, or would in a longer run.

    `output` is what this generation of a chain with one model and without a selection wrote; it
    need not be in texts/ yet.
    """
    chain, entity = output.chain, output.entity
    longer = max(generations, generation + 2)
    plan = on_host(
        index_plan(chain.workflow, chain.key, generation + 1, generations=longer, entity=entity)
    )
    items = zip(output.texts, output.prompts, strict=True)
    written = {(entity, row): item for row, item in enumerate(items)}
    return materialise(plan, chain, data, root, longer, at_hand={generation: written})[0]


def _generated(
    chain: ChainSpec, generation: int, root: Path, entities: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[str, str]]:
    """Texts and prompts that the models of a generation wrote, by entity and position."""
    number = "row" if chain.workflow.selection is None else "selected"
    path = inside(root, texts_path(chain.id, generation))
    table = read_parquet(path, ["entity", number, "text", "prompt"])
    keys = zip(
        np.asarray(table["entity"]).tolist(), np.asarray(table[number]).tolist(), strict=True
    )
    rows = {key: row for row, key in enumerate(keys)}
    for key in zip(entities.tolist(), positions.tolist(), strict=True):
        yield table["text"][rows[key]], table["prompt"][rows[key]]


def _external_streams(chain: ChainSpec, available: int, generations: int) -> np.ndarray:
    """Rows [K, needed] of the external data set, a stream for each entity."""
    key, entities = phase_key(chain.key, 0, "external"), chain.workflow.entities
    needed = external_needed(chain.workflow, generations)
    return np.stack(
        [human_rows(key, available, needed, entity=k, entities=entities) for k in range(entities)]
    )


def sampling_prompts(
    chain: ChainSpec, data: Mapping[str, Dataset], generation: int, entity: int, count: int
) -> list[str]:
    """Return the prompts [count] that an entity answers in a generation.

    Prompt i does not depend on `count`.
    """
    human = data[chain.dataset_of(entity)]
    in_turn = human.sample_prompts
    if not in_turn and isinstance(human.prompts, str):
        in_turn = (human.prompts,)
    if in_turn:
        return [in_turn[i % len(in_turn)] for i in range(count)]
    key = fold_in(phase_key(chain.key, generation, "prompts"), entity)
    drawn = np.asarray(rows_below(key, np.arange(count, dtype=np.uint32), len(human.texts)))
    return [human.prompt(row) for row in drawn.tolist()]


def probe_rows(chain: ChainSpec) -> int:
    """Return the number of probes that every model of a chain answers."""
    return sum(count for _, count in chain.probes)


def probe_prompts(chain: ChainSpec, data: Mapping[str, Dataset]) -> list[str]:
    """Return the prompts of a chain's probes, the same for every entity and generation.

    They are those of the first items of one data set after another.
    """
    return [data[name].prompt(row) for name, count in chain.probes for row in range(count)]
