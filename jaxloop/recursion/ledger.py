"""The ledger: which data, from where, trained which checkpoint, for how many steps.

One row per generation, chain, entity and origin of items (source, generation and entity that they
come from). The columns:

study, chain, generation, entity
    the model that was trained
source, from_generation, from_entity, count
    how many items of its training set came from there
dataset, data_sha256
    the data set of a source that is not synthetic, and its fingerprint
real_share_new
    share of human items among the new ones of this generation (h / N, exact)
real_share_train
    share of human items in the training set that was drawn
lineage_share
    share of the training set's ancestry that is human data from after generation 0: a human item
    counts 1 (0 if from generation 0), a synthetic item counts what the training set of the model
    that generated it has
base, base_sha256
    base model, and the hash of its files (weights, tokenizer, configs)
start, fit, decoder
    what the weights started from, settings of training and of sampling (JSON)
steps, tokens_trained, loss, items_sampled, tokens_sampled
    what was done (loss: the last step's)
special_as_text
    rows of the training set that hold the name of a special token (such as "</s>"), which was read
    as text
checkpoint, checkpoint_sha256
    the weights, relative to the run directory ("" where training failed), and their checksum; the
    file itself stays for as many generations as the study keeps
status
    "ok" or why the chain stopped
environment
    versions and hardware (JSON)
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxloop.config.types import Section
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.plan import IndexPlan
from jaxloop.recursion.workflow import HUMAN, PUBLIC, SOURCES, SYNTHETIC, Workflow


def real_share_new(workflow: Workflow, generation: int, plan: IndexPlan) -> float:
    """Return the share of human (private or public) items among a generation's new items.

    For generation 0 and for an exchange it is the share in the training set.
    """
    if generation == 0 or workflow.exchange is not None:
        return real_share_train(plan)
    return workflow.human / (workflow.synthetic + workflow.human + workflow.external)


def real_share_train(plan: IndexPlan) -> float:
    """Share of human (private or public) items in a training set."""
    return float(np.isin(plan.source, (HUMAN, PUBLIC)).mean()) if len(plan.source) else 0.0


def lineage_share(plan: IndexPlan, of_models: Mapping[tuple[int, int], float]) -> float:
    """Share of a training set's ancestry that is human data from after generation 0.

    of_models: {(generation, entity): that share of the training set of each earlier model}.
    """
    if not len(plan.source):
        return 0.0
    real = np.isin(plan.source, (HUMAN, PUBLIC)) & (plan.generation > 0)
    total = float(real.sum())
    cells, counts = np.unique(
        np.stack([plan.generation, plan.entity])[:, plan.source == SYNTHETIC],
        axis=1,
        return_counts=True,
    )
    for (generation, entity), count in zip(cells.T.tolist(), counts.tolist(), strict=True):
        total += count * of_models[generation, entity]
    return total / len(plan.source)


def origins(plan: IndexPlan) -> list[dict[str, Any]]:
    """Return rows {source, from_generation, from_entity, count} of a training set.

    They are in the order of source, generation and entity.
    """
    cells, counts = np.unique(
        np.stack([plan.source, plan.generation, plan.entity]), axis=1, return_counts=True
    )
    return [
        {
            "source": SOURCES[source],
            "from_generation": generation,
            "from_entity": entity,
            "count": count,
        }
        for (source, generation, entity), count in zip(
            cells.T.tolist(), counts.tolist(), strict=True
        )
    ]


def rows(
    chain: ChainSpec,
    generation: int,
    entity: int,
    plan: IndexPlan,
    shares: Mapping[str, float],
    fingerprints: Mapping[str, str],
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the ledger rows of one model: one for each origin of its items.

    A model that trained on nothing has one row, with source "".

    Args:
        chain, generation, entity: the model.
        plan: its training set, as `sources.with_ledger_sources` returns it.
        shares: the columns real_share_new, real_share_train and lineage_share.
        fingerprints: fingerprint of each data set, by name.
        about: further columns, the same in all rows of the model.
    """
    model = {"chain": chain.id, "generation": generation, "entity": entity}
    common = {**shares, "start": chain.workflow.start, **about}
    nothing = {"source": "", "from_generation": -1, "from_entity": -1, "count": 0}
    ledger_rows = []
    for origin in origins(plan) or [nothing]:
        datasets: dict[str, str | None] = {
            "human": chain.dataset_of(origin["from_entity"]),
            "public": chain.public,
            "external": chain.external,
        }
        # None for the `outside` rows of a chain that reads no external data set.
        name = datasets.get(origin["source"], "")
        dataset = {"dataset": name, "data_sha256": fingerprints.get(name, "") if name else ""}
        ledger_rows.append(model | origin | dataset | common)
    return ledger_rows


def describe(settings: Any) -> str:
    """Settings as JSON with sorted keys: a config's section, a dataclass, a mapping, or a repr."""
    if isinstance(settings, Section):
        settings = settings.model_dump()
    elif dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    return json.dumps(settings, sort_keys=True, default=repr)


def fingerprint(texts: Sequence[str], prompts: str | Sequence[str] = "") -> str:
    """SHA-256 of a data set's texts (and prompts), in order."""
    digest = hashlib.sha256()
    for group in (texts, [prompts] if isinstance(prompts, str) else prompts):
        digest.update(f"{len(group)}\n".encode())
        for text in group:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(f"{len(data)}\n".encode() + data)
    return digest.hexdigest()


def columns(ledger_rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return rows as columns, for the table writer."""
    names = list(dict.fromkeys(name for row in ledger_rows for name in row))
    return {name: [row.get(name) for row in ledger_rows] for name in names}
