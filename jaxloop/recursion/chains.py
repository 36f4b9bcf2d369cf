"""Chains: a study is a product of factors; each combination is one chain, and all chains of a
generation run together, base by base.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax

from jaxloop.core.keys import chain_key, fold_in, phase_key, random_below
from jaxloop.recursion import workflow as workflows
from jaxloop.recursion.workflow import Workflow

BUILDERS = {
    name: getattr(workflows, name)
    for name in (
        "replace",
        "accumulate",
        "accumulate_subsample",
        "fresh_human",
        "preserve",
        "window",
        "external",
        "exchange",
    )
}
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,~-]*")


@dataclass(frozen=True)
class ChainSpec:
    """One chain. Two chains with equal fields give equal results, whatever else runs beside them.

    id         names its files; letters, digits and . _ + , ~ - only
    workflow   what each generation trains on
    dataset    the human data: one name, or one per entity
    seed       every random draw of the chain comes from it
    bases      names or paths of base models: with `draw_base` each generation (and entity) draws one of them, seeded, as the paper does;
               without it entity k always has bases[k modulo their number]
    factors    (name, value) pairs that tell it apart in tables, sorted by name
    public, external   data sets of workflows that read those sources
    fit, sample        (field, value) pairs that replace fields of the study's settings for this chain
    probes             (data set, n) pairs: prompts of its first n items that every model answers too, after the texts that are trained on
    """

    id: str
    workflow: Workflow
    dataset: str | tuple[str, ...]
    seed: int
    bases: tuple[str, ...]
    draw_base: bool = True
    factors: tuple[tuple[str, object], ...] = ()
    public: str | None = None
    external: str | None = None
    fit: tuple[tuple[str, object], ...] = ()
    sample: tuple[tuple[str, object], ...] = ()
    probes: tuple[tuple[str, int], ...] = ()

    def __post_init__(self):
        if not _SAFE.fullmatch(self.id) or len(self.id) > 200:
            raise ValueError(
                f"chain id {self.id!r}: must be letters, digits and . _ + , ~ - only, at most "
                "200, beginning with a letter or digit"
            )
        if not self.bases:
            raise ValueError(f"bases: chain {self.id} has none, must name at least one base model")
        chain_key(self.seed)
        if not isinstance(self.dataset, str) and len(self.dataset) != self.workflow.entities:
            raise ValueError(
                f"dataset: {len(self.dataset)} names for {self.workflow.entities} entities; give "
                "one, or one per entity"
            )
        if self.workflow.start == "previous" and self.draw_base and len(set(self.bases)) > 1:
            raise ValueError(
                f"start='previous': chain {self.id} draws from {len(self.bases)} base models; "
                "must have one, weights do not carry over"
            )
        for field, needed in (
            ("public", self.workflow.exchange and self.workflow.exchange.public),
            ("external", self.workflow.external),
        ):
            if needed and getattr(self, field) is None:
                raise ValueError(
                    f"{field}: workflow {self.workflow.name} reads a data set that chain "
                    f"{self.id} does not name"
                )

    @property
    def key(self) -> jax.Array:
        """The key that all draws of the chain are folded from."""
        return chain_key(self.seed)

    def dataset_of(self, entity: int) -> str:
        """Name of the human data set that an entity reads."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset[entity]


def base_of(chain: ChainSpec, generation: int, entity: int = 0) -> str:
    """Base model of an entity in a generation: a seeded uniform draw from the chain's pool
    (recursive_loops.md, section 1), or a fixed one.
    """
    if not chain.draw_base or len(chain.bases) == 1:
        return chain.bases[entity % len(chain.bases)]
    key = fold_in(phase_key(chain.key, generation, "base"), entity)
    return chain.bases[int(random_below(key, len(chain.bases)))]


def make_chain(
    values: Mapping[str, object],
    *,
    factors: Mapping[str, object] | None = None,
    id: str | None = None,
) -> ChainSpec:
    """A chain from plain values.

    Fields of ChainSpec go by their names, "fit.x" and "sample.x" replace settings, "workflow" names
    a builder of workflow.py (default "fresh_human"), and everything else is an argument of that
    builder (size, ratio, share, k, start, ...). factors: the values that tell chains apart
    (default: all); the id is made of them unless given. Raises ValueError naming the field.
    """
    factors = dict(values if factors is None else factors)
    name = values.get("workflow", "fresh_human")
    if isinstance(name, Workflow):
        flow, name = name, None
    elif name not in BUILDERS:
        raise ValueError(f"workflow={name!r}: must be one of {', '.join(BUILDERS)}")
    own, settings, arguments = {}, {"fit": {}, "sample": {}}, {}
    for field, value in values.items():
        head, _, tail = field.partition(".")
        if tail and head in settings:
            settings[head][tail] = value
        elif field in ("dataset", "bases", "seed", "draw_base", "public", "external", "probes"):
            own[field] = tuple(value) if isinstance(value, list) else value
        elif field != "workflow":
            arguments[field] = value
    if isinstance(own.get("bases"), str):
        own["bases"] = (own["bases"],)
    if name is not None:
        try:
            flow = BUILDERS[name](**arguments)
        except TypeError as error:
            raise ValueError(
                f"workflow={name!r}: {str(error).removeprefix(f'{name}() ')}"
            ) from error
    elif arguments:
        raise ValueError(f"{next(iter(arguments))}: not a field of a chain")
    missing = [field for field in ("dataset", "bases", "seed") if field not in own]
    if missing:
        raise ValueError(f"{missing[0]}: every chain needs one")
    pairs = {head: tuple(sorted(fields.items())) for head, fields in settings.items()}
    shown = {
        k: "+".join(map(str, v)) if isinstance(v, list | tuple) else v
        for k, v in factors.items()
        if not isinstance(v, Workflow)
    }
    return ChainSpec(
        id=id or chain_id(shown),
        workflow=flow,
        factors=tuple(sorted(shown.items())),
        **own,
        **pairs,
    )


def chain_id(factors: Mapping[str, object]) -> str:
    """File name of a combination of factors: "dataset-docs_ratio-0.125_seed-0"; long or unsafe ones
    are cut and marked with a checksum.
    """
    text = (
        "_".join(
            f"{name}-{f'{value:g}' if isinstance(value, float) else value}"
            for name, value in factors.items()
        )
        or "chain"
    )
    safe = re.sub(r"[^A-Za-z0-9._+,~-]+", "~", text).lstrip("._+,~-")[:120] or "chain"
    exact = all(not isinstance(v, float) or float(f"{v:g}") == v for v in factors.values())
    return (
        safe
        if safe == text and exact
        else f"{safe}~{hashlib.sha256(repr(sorted(factors.items())).encode()).hexdigest()[:8]}"
    )


def product(factors: Mapping[str, Sequence], **common) -> list[ChainSpec]:
    """All combinations of the factors' values, each one chain; `common` holds what all chains share
    (see `make_chain`).

    Only factors with more than one value enter the id; all enter the tables. Raises ValueError
    where a factor has no value.
    """
    for name, values in factors.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"factors.{name}={values!r}: must be a list of at least one value")
    several = [name for name, values in factors.items() if len(values) > 1] or list(factors)
    chains = []
    for combination in itertools.product(*factors.values()):
        values = dict(zip(factors, combination, strict=True))
        short = {
            name: "+".join(map(str, values[name]))
            if isinstance(values[name], list | tuple)
            else values[name]
            for name in several
        }
        chains.append(make_chain({**common, **values}, factors=values, id=chain_id(short)))
    return chains


class Member(NamedTuple):
    """One model to be fitted: an entity of a chain."""

    chain: ChainSpec
    entity: int


class Group(NamedTuple):
    """The members of one generation that share a base model and settings: one call of the family."""

    name: str
    base: str
    scratch: bool
    fit: tuple[tuple[str, object], ...]
    sample: tuple[tuple[str, object], ...]
    members: tuple[Member, ...]


def groups(chains: Sequence[ChainSpec], generation: int, most: int | None = None) -> list[Group]:
    """The calls of one generation, in an order that depends on nothing but the chains: base by
    base, members in the order of the study.

    most: members of a call at most, None: no limit.
    """
    found: dict[tuple, list[Member]] = {}
    for chain in chains:
        for entity in range(chain.workflow.entities):
            scratch = chain.workflow.start == "scratch"
            found.setdefault(
                (base_of(chain, generation, entity), scratch, chain.fit, chain.sample), []
            ).append(Member(chain, entity))
    out = []
    for (base, scratch, fit, sample), members in sorted(
        found.items(), key=lambda item: repr(item[0])
    ):
        about = json.dumps([base, scratch, repr(fit), repr(sample)])
        label = (
            re.sub(r"[^A-Za-z0-9._-]+", "~", base.rstrip("/").split("/")[-1])[:40].lstrip(".")
            or "base"
        )
        name = f"{label}~{hashlib.sha256(about.encode()).hexdigest()[:8]}"
        size = most or len(members)
        for number, at in enumerate(range(0, len(members), size)):
            part = name if most is None else f"{name}.{number:04d}"
            out.append(Group(part, base, scratch, fit, sample, tuple(members[at : at + size])))
    return out
