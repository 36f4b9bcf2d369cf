"""From subsets and factors to chains, with the table of all chains that were planned."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxloop.studies.recursive_loops.config import Settings
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset, placeholders

# Factors of the tables that are no field of a chain's workflow or settings.
OWN = ("gen0_size", "models", "bases", "selection")


class Planned(NamedTuple):
    """A chain of the study, or why there is none. spec: None for a chain that was left out; data:
    name of its data set.
    """

    id: str
    factors: Mapping[str, Any]
    subset: Subset
    needed: int
    data: str
    spec: Any
    reason: str = ""


def combinations(settings: Settings) -> list[dict[str, Any]]:
    """Values of every factor beside the subset, one dict per chain of a subset. Only what is varied
    is named, but for ratio and seed.
    """
    c, others = settings.chain, {}
    if c.gen0_sizes:
        others["gen0_size"] = c.gen0_sizes
    if c.models:
        others["models"] = c.models
    if settings.lean.homogeneous and settings.kind == "political":
        others["bases"] = ("mixed", *settings.models.pool)
    if settings.interventions.policies:
        others["selection"] = settings.interventions.policies
    others |= c.factors
    axes = {"ratio": c.ratios, **others, "seed": c.seeds}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def expected(settings: Settings) -> list[Planned]:
    """Every chain of the study, before its clusters and splits are made. Raises ValueError as
    `plan` does.
    """
    return plan(settings, placeholders(settings), sized=False)


def plan(settings: Settings, subsets: Sequence[Subset], *, sized: bool = True) -> list[Planned]:
    """Every chain of the study.

    sized: leave out, with a reason, the chains for which a subset has too few texts. (Without it,
    the subsets have no rows yet.) Raises ValueError where nothing is left, or a whole dataset is
    too small.
    """
    from jaxloop.recursion.chains import chain_id, make_chain
    from jaxloop.recursion.workflow import human_needed

    varied = {name for name, values in _values(combinations(settings)).items() if len(values) > 1}
    out = []
    for subset, values in itertools.product(subsets, combinations(settings)):
        flow = workflow(settings, values)
        factors = {"dataset": subset.dataset, **subset.factors, **values}
        short = ({"subset": subset.name} if len(subsets) > 1 else {}) | {
            name: _short(name, values[name]) for name in values if name in varied
        }
        name = chain_id(short or {"subset": subset.name})
        needed = human_needed(flow, settings.chain.generations) * flow.entities
        data = subset.name if len(subset.parts) < 2 else f"{subset.name}.{needed}"
        factors["bases"] = _base_name(values["bases"]) if "bases" in values else None
        factors = {k: v for k, v in factors.items() if v is not None}
        reason = (
            f"{subset.name} has {subset.size:,} texts, the chain needs {needed:,}"
            if sized and subset.size < needed
            else ""
        )
        chosen = (
            settings.models.pool if values.get("bases", "mixed") == "mixed" else (values["bases"],)
        )
        given = {
            "workflow": flow,
            "dataset": data,
            "bases": chosen,
            "seed": _seed(settings, subset, values),
        }
        given |= {
            name: _value(name, v)
            for name, v in values.items()
            if name.startswith(("fit.", "sample."))
        }
        spec = None if reason else make_chain(given, factors=factors, id=name)
        out.append(Planned(name, factors, subset, needed, data, spec, reason))
    if sized:
        _refuse(settings, out)
    return out


def _values(rows):
    return {name: {repr(row[name]) for row in rows} for name in rows[0]}


def _short(name: str, value: Any) -> Any:
    return _base_name(value) if name == "bases" else value


def _base_name(value: str) -> str:
    return value.rstrip("/").split("/")[-1]


def _value(name: str, value: Any) -> Any:
    from jaxloop.studies.chain import prepare

    return prepare._value(name, value)


def _refuse(settings: Settings, planned: Sequence[Planned]) -> None:
    short = [p for p in planned if p.spec is None]
    strict = settings.kind in ("whole", "clusters", "mixtures")
    if short and (strict or len(short) == len(planned)):
        more = f" (and {len(short) - 1} more chains like it)" if len(short) > 1 else ""
        raise ValueError(
            f"config.chain: chain {short[0].id}: {short[0].reason}; take more data, fewer "
            f"generations or a smaller size{more}"
        )


def _seed(settings: Settings, subset: Subset, values: Mapping[str, Any]) -> int:
    """The seed of all draws of a chain. Independent chains have one each (the released code does
    not seed at all); paired ones share it with all chains of the same subset and seed.
    """
    if settings.chain.seeding == "paired":
        values = {name: values[name] for name in ("seed",)}
    text = repr((subset.name, sorted((name, repr(value)) for name, value in values.items())))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def workflow(settings: Settings, values: Mapping[str, Any]):
    """The training sets of a chain with these factors (recursive_loops.md, section 1; several
    models: C.1).
    """
    from jaxloop.recursion.selection import Selection
    from jaxloop.recursion.workflow import Workflow, fresh_human

    c = settings.chain
    initial = values.get("gen0_size", c.first_size or c.size)
    start = values.get("start", c.start)
    if "models" in values:
        new = max(1, round(c.contribution * c.size))
        synthetic = int(values["ratio"] * new)
        shared = {"entities": values["models"], "shared": True, "start": start, "train": c.size}
        return Workflow(
            "fresh_human", initial=initial, synthetic=synthetic, human=new - synthetic, **shared
        )
    synthetic = int(values["ratio"] * c.size)
    chosen = None
    if "selection" in values:
        options = settings.interventions
        threshold = options.threshold if values["selection"] == "quality" else None
        chosen = Selection(
            values["selection"], max(1, round(options.written * synthetic)), threshold
        )
    return fresh_human(c.size, values["ratio"], initial=initial, start=start, selection=chosen)


def datasets(
    settings: Settings, planned: Sequence[Planned], sources: Mapping[str, Source]
) -> dict[str, Any]:
    """The data sets of the chains: a subset's texts, or, of several domains, equally many rows of
    each, shuffled with their prompts.
    """
    from jaxloop.recursion.sources import Dataset

    out: dict[str, Any] = {}
    for one in planned:
        if one.spec is None or one.data in out:
            continue
        if len(one.subset.parts) == 1:
            ((name, rows),) = one.subset.parts
            source = sources[name]
            out[one.data] = Dataset(
                source.texts.take(rows), source.prompt, fingerprint=_fingerprint([(source, rows)])
            )
        else:
            out[one.data] = _mixed(one, sources)
    return out


def _mixed(one: Planned, sources: Mapping[str, Source]):
    """ceil(needed / domains) rows of each domain's cluster (section 1, multi-domain); which ones
    depends on the mixture alone.
    """
    from jaxloop.recursion.sources import Dataset

    each = -(-one.needed // len(one.subset.parts))
    chosen = []
    for name, rows in one.subset.parts:
        rng = np.random.default_rng(
            int.from_bytes(hashlib.sha256(f"{one.data}:{name}".encode()).digest()[:8], "little")
        )
        chosen.append((sources[name], rng.permutation(rows)[:each]))
    texts = [text for source, rows in chosen for text in source.texts.take(rows)]
    prompts = [source.prompt for source, rows in chosen for _ in rows]
    turns = tuple(source.prompt for source, _ in chosen)
    return Dataset(texts, prompts, sample_prompts=turns, fingerprint=_fingerprint(chosen))


def _fingerprint(parts) -> str:
    digest = hashlib.sha256()
    for source, rows in parts:
        digest.update(f"{source.fingerprint}:{source.prompt}:{len(rows)}".encode())
        digest.update(np.ascontiguousarray(rows, np.int64).tobytes())
    return digest.hexdigest()


def table(planned: Sequence[Planned], failed: Mapping[str, Mapping]) -> dict[str, list]:
    """Columns of chains.csv: every planned chain with its factors, and what became of it."""
    names = list(dict.fromkeys(name for p in planned for name in p.factors))
    out: dict[str, list] = {"chain": [p.id for p in planned]}
    out |= {name: [p.factors.get(name) for p in planned] for name in names}
    out["human_texts"] = [p.needed for p in planned]
    out["status"] = [
        p.reason
        or (
            f"generation {failed[p.id]['generation']}: {failed[p.id]['reason']}"
            if p.id in failed
            else "ok"
        )
        for p in planned
    ]
    return out
