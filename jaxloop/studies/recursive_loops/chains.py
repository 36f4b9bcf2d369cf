"""Plans the chains: every subset with every combination of factors; and the table chains.csv."""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxloop.recursion.chains import ChainSpec, chain_id, make_chain
from jaxloop.recursion.selection import Selection
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import Workflow, fresh_human, human_needed
from jaxloop.reporting.scores import share
from jaxloop.studies.common.factors import short_name
from jaxloop.studies.recursive_loops.config import LoopsConfig
from jaxloop.studies.recursive_loops.sources import Source
from jaxloop.studies.recursive_loops.subsets import Subset

# What a subset is called in the log and the report: singular, plural.
_SUBSET_NAMES = {
    "whole": ("dataset", "datasets"),
    "clusters": ("cluster", "clusters"),
    "mixtures": ("mixture", "mixtures"),
    "quality": ("split", "splits"),
    "length": ("split", "splits"),
    "political": ("mix", "mixes"),
}

Combination = Mapping[str, Any]


class Planned(NamedTuple):
    """A chain of the study, or the reason why it is left out.

    Attributes:
        id: its name in tables and files.
        factors: {factor: value}, as the tables name them.
        subset: the human texts that it may draw from.
        needed: how many human texts it reads.
        data: key of its data set in what `datasets` returns.
        spec: what the driver runs; None for a chain that is left out.
        reason: why it is left out; "" if it is not.
    """

    id: str
    factors: Mapping[str, Any]
    subset: Subset
    needed: int
    data: str
    spec: ChainSpec | None
    reason: str = ""


def combinations(config: LoopsConfig) -> list[Combination]:
    """Return every combination of factors, {factor: value}; each subset has a chain for each.

    Ratio and seed are always among the factors, others only where the config varies them.
    """
    chain = config.chain
    axes: dict[str, Sequence[Any]] = {"ratio": chain.ratios}
    if chain.gen0_sizes:
        axes["gen0_size"] = chain.gen0_sizes
    if chain.models:
        axes["models"] = chain.models
    if config.experiment == "political_bases":
        axes["bases"] = config.models.pool
    elif config.crosses_bases:
        axes["bases"] = ("mixed", *config.models.pool)
    if config.interventions.policies:
        axes["selection"] = config.interventions.policies
    axes |= chain.factors
    axes["seed"] = chain.seeds
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def plan(config: LoopsConfig, subsets: Sequence[Subset]) -> list[Planned]:
    """Return every chain of the study, whether or not its subset has enough texts.

    The subsets may be `subsets.placeholders`. Raises ValueError for a combination of factors that
    no chain can have.
    """
    crossed = combinations(config)
    varied = {name for name in crossed[0] if len({repr(values[name]) for values in crossed}) > 1}
    return [
        _chain(config, subset, values, varied, named_by_subset=len(subsets) > 1)
        for subset, values in itertools.product(subsets, crossed)
        if subset.ratios is None or values["ratio"] in subset.ratios
    ]


def _chain(
    config: LoopsConfig,
    subset: Subset,
    values: Combination,
    varied: set[str],
    *,
    named_by_subset: bool,
) -> Planned:
    flow = workflow(config, values)
    label: dict[str, Any] = {"subset": subset.name} if named_by_subset else {}
    label |= {name: _table_value(name, values[name]) for name in values if name in varied}
    name = chain_id(label or {"subset": subset.name})
    factors = {"dataset": subset.dataset, **subset.factors}
    factors |= {factor: _table_value(factor, value) for factor, value in values.items()}
    factors = {factor: value for factor, value in factors.items() if value is not None}
    needed = human_needed(flow, config.chain.generations) * flow.entities
    data = subset.name if len(subset.parts) < 2 else f"{subset.name}.{needed}"
    base = values.get("bases", "mixed")
    fields: dict[str, Any] = {
        "workflow": flow,
        "dataset": data,
        "bases": config.models.pool if base == "mixed" else (base,),
        "seed": _seed(config, subset, values),
    }
    for factor, value in values.items():
        if factor.startswith(("fit.", "sample.")):
            fields[factor] = value
    return Planned(
        id=name,
        factors=factors,
        subset=subset,
        needed=needed,
        data=data,
        spec=make_chain(fields, factors=factors, id=name),
    )


def _table_value(factor: str, value: Any) -> Any:
    """A factor's value as tables and names of chains show it; a base by its short name."""
    return short_name(value) if factor == "bases" else value


def _seed(config: LoopsConfig, subset: Subset, values: Combination) -> int:
    """The seed of all draws of a chain.

    Independent chains have one each (the released code does not seed at all). Paired chains share
    it with all chains of the same subset and seed.
    """
    if config.chain.seeding == "paired":
        values = {"seed": values["seed"]}
    text = repr((subset.name, sorted((name, repr(value)) for name, value in values.items())))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")


def workflow(config: LoopsConfig, values: Combination) -> Workflow:
    """Return the workflow of a chain with these factors.

    Source: the released code of arXiv 2504.03814; several models per generation: its appendix C.1.
    """
    chain = config.chain
    initial = values.get("gen0_size", chain.first_size or chain.size)
    start = values.get("start", chain.start)
    if "models" in values:
        new = max(1, round(chain.contribution * chain.size))
        synthetic = int(values["ratio"] * new)
        return Workflow(
            "fresh_human",
            initial=initial,
            synthetic=synthetic,
            human=new - synthetic,
            entities=values["models"],
            shared=True,
            start=start,
            train=chain.size,
        )
    selection = None
    if "selection" in values:
        synthetic = int(values["ratio"] * chain.size)
        options, policy = config.interventions, values["selection"]
        selection = Selection(
            policy,
            max(1, round(options.written * synthetic)),
            options.threshold if policy == "quality" else None,
        )
    return fresh_human(
        chain.size, values["ratio"], initial=initial, start=start, selection=selection
    )


def leave_out_short(config: LoopsConfig, planned: Sequence[Planned]) -> list[Planned]:
    """Return the chains; those whose subset has too few texts get a reason instead of a spec.

    Raises ValueError where no chain is left, or a dataset, cluster or mixture is too small.
    """
    checked = [_without_spec_if_short(one) for one in planned]
    short = [one for one in checked if one.spec is None]
    strict = config.subset_kind in ("whole", "clusters", "mixtures")
    if short and (strict or len(short) == len(checked)):
        more = f" (and {len(short) - 1} more chains like it)" if len(short) > 1 else ""
        raise ValueError(
            f"config.chain: chain {short[0].id}: {short[0].reason}; take more data, fewer "
            f"generations or a smaller size{more}"
        )
    return checked


def _without_spec_if_short(one: Planned) -> Planned:
    texts = one.subset.size
    if texts >= one.needed:
        return one
    reason = f"{one.subset.name} has {texts:,} texts, the chain needs {one.needed:,}"
    return one._replace(spec=None, reason=reason)


def specs(planned: Iterable[Planned]) -> list[ChainSpec]:
    """Return the chains that are not left out, as the driver takes them."""
    return [one.spec for one in planned if one.spec is not None]


def chains_line(config: LoopsConfig, planned: Sequence[Planned]) -> str:
    """Return a line that says how many chains there are and what they differ in."""
    chain = config.chain
    subsets = len({one.subset.name for one in planned})
    singular, plural = _SUBSET_NAMES[config.subset_kind]
    parts = [
        f"{subsets} {plural if subsets > 1 else singular}",
        f"r in {{{', '.join(share(ratio) for ratio in chain.ratios)}}}",
    ]
    counted = {"dataset", "ratio", "seed"} | {
        name for one in planned for name in one.subset.factors
    }
    names = dict.fromkeys(name for one in planned for name in one.factors if name not in counted)
    for name in names:
        values = {repr(one.factors[name]) for one in planned if name in one.factors}
        parts.append(f"{len(values)} values of {name}")
    parts.append(f"{len(chain.seeds)} seed{'s' if len(chain.seeds) > 1 else ''}")
    parts.append(f"{chain.generations} generations")
    left_out = sum(1 for one in planned if one.reason)
    note = f" ({left_out} left out, their subsets have too few texts)" if left_out else ""
    return f"{len(planned)} chains: {', '.join(parts)}{note}"


def datasets(planned: Sequence[Planned], sources: Mapping[str, Source]) -> dict[str, Dataset]:
    """Return {data set's name: data set} of the chains that are not left out.

    A data set is the texts of a subset; if it has several domains, as many texts of each, shuffled
    together with their prompts.
    """
    data: dict[str, Dataset] = {}
    for one in planned:
        if one.spec is not None and one.data not in data:
            data[one.data] = (
                _mixed(one, sources) if len(one.subset.parts) > 1 else _single(one.subset, sources)
            )
    return data


def _single(subset: Subset, sources: Mapping[str, Source]) -> Dataset:
    ((name, rows),) = subset.parts
    source = sources[name]
    return Dataset(
        source.texts.take(rows), source.prompt, fingerprint=_fingerprint([(source, rows)])
    )


def _mixed(one: Planned, sources: Mapping[str, Source]) -> Dataset:
    """ceil(needed / domains) rows of each domain's cluster, as in the released code.

    Which rows are drawn depends only on the mixture and on how many are needed.
    """
    each = -(-one.needed // len(one.subset.parts))
    chosen = []
    for name, rows in one.subset.parts:
        digest = hashlib.sha256(f"{one.data}:{name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        chosen.append((sources[name], rng.permutation(rows)[:each]))
    texts = [text for source, rows in chosen for text in source.texts.take(rows)]
    prompts = [source.prompt for source, rows in chosen for _ in rows]
    turns = tuple(source.prompt for source, _ in chosen)
    return Dataset(texts, prompts, sample_prompts=turns, fingerprint=_fingerprint(chosen))


def _fingerprint(parts: Iterable[tuple[Source, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for source, rows in parts:
        digest.update(f"{source.fingerprint}:{source.prompt}:{len(rows)}".encode())
        digest.update(np.ascontiguousarray(rows, np.int64).tobytes())
    return digest.hexdigest()


def table(planned: Sequence[Planned], failed: Mapping[str, Mapping[str, Any]]) -> dict[str, list]:
    """Return the columns of chains.csv: every planned chain with its factors and its status.

    failed: {chain: {"generation": ..., "reason": ...}}.
    """
    names = dict.fromkeys(name for one in planned for name in one.factors)
    columns: dict[str, list] = {"chain": [one.id for one in planned]}
    columns |= {name: [one.factors.get(name) for one in planned] for name in names}
    columns["human_texts"] = [one.needed for one in planned]
    columns["status"] = [one.reason or _status(failed.get(one.id)) for one in planned]
    return columns


def _status(failure: Mapping[str, Any] | None) -> str:
    if failure is None:
        return "ok"
    return f"generation {failure['generation']}: {failure['reason']}"
