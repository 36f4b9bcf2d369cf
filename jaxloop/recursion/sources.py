"""From index plans to texts: data sets, a chain's own streams through them, and what earlier
generations wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from jaxloop.core.keys import chain_key, fold_in, phase_key, rows_below
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.workflow import (
    EXTERNAL,
    HUMAN,
    PUBLIC,
    SYNTHETIC,
    Plan,
    external_needed,
    human_needed,
    human_rows,
)
from jaxloop.runtime.atomic_io import inside
from jaxloop.runtime.tables import read_parquet


@dataclass(frozen=True, eq=False)
class Dataset:
    """Texts with the prompts that they answer.

    prompts         one for all texts, or one per text (already rendered: the family puts nothing around them)
    sample_prompts  prompts that generations answer, in turn (multi-domain: row i answers prompt i modulo their number);
                    empty: the one prompt, or else prompts of texts drawn at random
                    (multi_entity.md, section 3.1)
    fingerprint     checksum of the data, for the ledger
    outside         rows that no person wrote, of a data set that is a mixture: the ledger books them as `external`
    """

    texts: Sequence[str]
    prompts: str | Sequence[str] = ""
    sample_prompts: tuple[str, ...] = ()
    fingerprint: str = ""
    outside: frozenset[int] = frozenset()

    def prompt(self, row: int) -> str:
        """Prompt that text `row` answers."""
        return self.prompts if isinstance(self.prompts, str) else self.prompts[row]


def check_data(chains: Sequence[ChainSpec], data: Mapping[str, Dataset], generations: int) -> None:
    """Raises ValueError, naming field and numbers, where a chain lacks a data set or the data set
    lacks items.
    """
    for chain in chains:
        flow = chain.workflow
        for field, name in [("dataset", n) for n in _names(chain)] + [
            ("public", chain.public),
            ("external", chain.external),
        ]:
            if name is None:
                continue
            if name not in data:
                raise ValueError(
                    f"{field}={name!r}: no such data set; there are "
                    f"{', '.join(sorted(data)) or 'none'}"
                )
            found = data[name]
            if not len(found.texts):
                raise ValueError(f"{field}={name!r}: the data set is empty")
            if not isinstance(found.prompts, str) and len(found.prompts) != len(found.texts):
                raise ValueError(
                    f"{field}={name!r}: has {len(found.texts)} texts but {len(found.prompts)} "
                    "prompts"
                )
        for name, count in chain.probes:
            if name not in data or len(data[name].texts) < count:
                there = (
                    f"has {len(data[name].texts):,} items" if name in data else "no such data set"
                )
                raise ValueError(
                    f"probes: {name!r}: {there}, chain {chain.id} asks for the first {count:,}"
                )
        for entity in range(flow.entities):
            name, rank, sharing = _place(chain, entity)
            _enough(
                "dataset",
                name,
                len(data[name].texts),
                _stream_length(chain, entity, generations) * sharing,
                chain,
                "human items",
                generations,
            )
        if flow.external:
            needed = external_needed(flow, generations) * flow.entities
            _enough(
                "external",
                chain.external,
                len(data[chain.external].texts),
                needed,
                chain,
                "items",
                generations,
            )
        if flow.exchange is not None and flow.exchange.public:
            _enough(
                "public",
                chain.public,
                len(data[chain.public].texts),
                flow.exchange.public,
                chain,
                "items",
                generations,
            )


def _enough(field, name, available, needed, chain, what, generations):
    if available < needed:
        raise ValueError(
            f"{field}={name!r}: has {available:,} {what}, chain {chain.id} needs {needed:,} in "
            f"{generations} generations; "
            "take more data, fewer generations or a smaller size"
        )


def _names(chain):
    return (chain.dataset,) if isinstance(chain.dataset, str) else chain.dataset


def _place(chain, entity):
    """(data set, rank among the entities that read it, how many read it)."""
    name = chain.dataset_of(entity)
    sharing = [k for k in range(chain.workflow.entities) if chain.dataset_of(k) == name]
    return name, sharing.index(entity), len(sharing)


def _stream_length(chain, entity, generations):
    if chain.workflow.exchange is not None:
        return chain.workflow.exchange.private[entity]
    return human_needed(chain.workflow, generations)


@lru_cache(maxsize=1024)
def _stream(seed: int, available: int, needed: int, rank: int, sharing: int) -> np.ndarray:
    return human_rows(chain_key(seed), available, needed, entity=rank, entities=sharing).astype(
        np.int32
    )


def human_stream(
    chain: ChainSpec, data: Mapping[str, Dataset], generations: int, entity: int = 0
) -> np.ndarray:
    """Rows of the entity's data set in the order in which the chain uses them: generation 0's
    first, then each generation's fresh ones.
    """
    name, rank, sharing = _place(chain, entity)
    return _stream(
        chain.seed, len(data[name].texts), _stream_length(chain, entity, generations), rank, sharing
    )


def human_texts(chain: ChainSpec, data: Mapping[str, Dataset], *, entity: int = 0) -> list[str]:
    """The human texts that generation 0 of an entity trains on."""
    rows = human_stream(chain, data, 1, entity)[: chain.workflow.initial]
    texts = data[chain.dataset_of(entity)].texts
    return [texts[row] for row in rows]


def booked(plan: Plan, chain: ChainSpec, data: Mapping[str, Dataset], generations: int) -> Plan:
    """The plan (NumPy, valid rows only) as the ledger books it: rows of the human stream that are
    `outside` rows of their data set are external.
    """
    source = np.array(plan.source)
    for entity in range(chain.workflow.entities):
        outside = data[chain.dataset_of(entity)].outside
        chosen = np.flatnonzero((plan.source == HUMAN) & (plan.entity == entity)) if outside else ()
        if len(chosen):
            rows = human_stream(chain, data, generations, entity)[plan.index[chosen]]
            source[chosen[np.isin(rows, list(outside))]] = EXTERNAL
    return plan._replace(source=source)


def texts_path(chain: ChainSpec, generation: int) -> str:
    """Where a generation's texts lie, relative to the run directory."""
    return f"texts/chain={chain.id}/generation={generation:04d}.parquet"


def materialise(
    plan: Plan, chain: ChainSpec, data: Mapping[str, Dataset], root: Path, generations: int
) -> tuple[list[str], list[str]]:
    """Texts and prompts of the rows of a plan (NumPy, valid rows only), read from the data sets and
    from texts/ in the run directory.
    """
    texts, prompts = [""] * len(plan.source), [""] * len(plan.source)

    def fill(chosen, rows, found, prompt_of):
        for i, row in zip(chosen, rows, strict=True):
            texts[i], prompts[i] = found[row], prompt_of(row)

    for entity in np.unique(plan.entity[plan.source == HUMAN]).tolist():
        chosen = np.flatnonzero((plan.source == HUMAN) & (plan.entity == entity))
        human = data[chain.dataset_of(entity)]
        stream = human_stream(chain, data, generations, entity)
        fill(chosen, stream[plan.index[chosen]].tolist(), human.texts, human.prompt)
    for generation in np.unique(plan.generation[plan.source == SYNTHETIC]).tolist():
        row = "row" if chain.workflow.selection is None else "selected"
        written = read_parquet(
            inside(root, texts_path(chain, generation)), ["entity", row, "text", "prompt"]
        )
        place = {
            pair: i
            for i, pair in enumerate(
                zip(written["entity"].tolist(), written[row].tolist(), strict=True)
            )
        }
        chosen = np.flatnonzero((plan.source == SYNTHETIC) & (plan.generation == generation))
        rows = [
            place[pair]
            for pair in zip(plan.entity[chosen].tolist(), plan.index[chosen].tolist(), strict=True)
        ]
        fill(chosen, rows, written["text"], written["prompt"].__getitem__)
    if chain.external is not None and (plan.source == EXTERNAL).any():
        chosen = np.flatnonzero(plan.source == EXTERNAL)
        outside, flow = data[chain.external], chain.workflow
        key = phase_key(chain.key, 0, "external")
        needed, sharing = external_needed(flow, generations), flow.entities
        streams = [
            human_rows(key, len(outside.texts), needed, entity=k, entities=sharing)
            for k in range(sharing)
        ]
        fill(
            chosen,
            [
                int(streams[k][i])
                for k, i in zip(plan.entity[chosen], plan.index[chosen], strict=True)
            ],
            outside.texts,
            outside.prompt,
        )
    if chain.public is not None and (plan.source == PUBLIC).any():
        chosen = np.flatnonzero(plan.source == PUBLIC)
        fill(
            chosen, plan.index[chosen].tolist(), data[chain.public].texts, data[chain.public].prompt
        )
    return texts, prompts


def sampling_prompts(
    chain: ChainSpec, data: Mapping[str, Dataset], generation: int, entity: int, count: int
) -> list[str]:
    """The prompts [count] that an entity answers in a generation; prompt i does not depend on
    `count`.
    """
    human = data[chain.dataset_of(entity)]
    turns = human.sample_prompts or ((human.prompts,) if isinstance(human.prompts, str) else ())
    if turns:
        return [turns[i % len(turns)] for i in range(count)]
    key = fold_in(phase_key(chain.key, generation, "prompts"), entity)
    drawn = np.asarray(rows_below(key, np.arange(count, dtype=np.uint32), len(human.texts)))
    return [human.prompt(row) for row in drawn.tolist()]


def probe_rows(chain: ChainSpec) -> int:
    """Number of probes that every model of a chain answers."""
    return sum(count for _, count in chain.probes)


def probe_prompts(chain: ChainSpec, data: Mapping[str, Dataset]) -> list[str]:
    """The probes of a chain, the same for every entity and generation: set after set, the prompts
    of its first items.
    """
    return [data[name].prompt(row) for name, count in chain.probes for row in range(count)]
