"""Chains: a study is a product of factors, and each combination of their values is one chain.

All chains of a generation run together, base by base.
"""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from jaxloop.core.keys import chain_key, check_seed, fold_in, phase_key, random_below
from jaxloop.recursion.workflow import BUILDERS, Workflow

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+,~-]*")


@dataclass(frozen=True)
class ChainSpec:
    """One chain. Two chains with equal fields give equal results, whatever else is in the study.

    id         names its files; letters, digits and . _ + , ~ - only
    workflow   what each generation trains on
    dataset    the human data: one name, or one per entity
    seed       every random draw of the chain comes from it
    bases      names or paths of base models
    draw_base  each generation (and entity) draws one of the bases, seeded, as the paper does;
               without it entity k always has bases[k modulo their number]
    factors    (name, value) pairs that tell it apart in tables, sorted by name
    public, external   data sets of workflows that read those sources
    fit, sample        (field, value) pairs that replace fields of the study's settings
    probes     (data set, n) pairs: prompts of its first n items that every model answers too, after
               the texts that are trained on

    The names of the fields are stored with a run; renaming one makes its directory another study's.
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

    def __post_init__(self) -> None:
        if not _SAFE.fullmatch(self.id) or len(self.id) > 200:
            raise ValueError(
                f"chain id {self.id!r}: must be letters, digits and . _ + , ~ - only, at most "
                "200, beginning with a letter or digit"
            )
        if not self.bases:
            raise ValueError(f"bases: chain {self.id} has none, must name at least one base model")
        check_seed(self.seed)
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
    """Return the name of the base model that an entity has in a generation.

    With `draw_base` it is a seeded uniform draw from the chain's bases (arXiv 2504.03814),
    otherwise the same in every generation.
    """
    if not chain.draw_base or len(chain.bases) == 1:
        return chain.bases[entity % len(chain.bases)]
    return chain.bases[_drawn_base(chain.seed, generation, entity, len(chain.bases))]


# A draw takes milliseconds, and the work that is left is counted over all generations.
@functools.cache
def _drawn_base(seed: int, generation: int, entity: int, count: int) -> int:
    key = fold_in(phase_key(chain_key(seed), generation, "base"), entity)
    return int(random_below(key, count))


_CHAIN_FIELDS = ("dataset", "bases", "seed", "draw_base", "public", "external", "probes")


def make_chain(
    values: Mapping[str, object],
    *,
    factors: Mapping[str, object] | None = None,
    id: str | None = None,
) -> ChainSpec:
    """Return a chain from plain values.

    Args:
        values: fields of `ChainSpec` go by their names; "fit.x" and "sample.x" replace settings;
            "workflow" names a builder of workflow.py (default "fresh_human"); everything else is
            an argument of that builder (size, ratio, share, k, start, ...).
        factors: the values that tell the study's chains apart; default: all values.
        id: name of the chain's files; default: made from the factors by `chain_id`.

    Raises:
        ValueError: a value is missing or wrong; the message names the field.
    """
    fields: dict[str, Any] = {}
    settings: dict[str, dict[str, object]] = {"fit": {}, "sample": {}}
    arguments: dict[str, object] = {}
    for field, value in values.items():
        section, _, name = field.partition(".")
        if name and section in settings:
            settings[section][name] = value
        elif field in _CHAIN_FIELDS:
            fields[field] = tuple(value) if isinstance(value, list) else value
        elif field != "workflow":
            arguments[field] = value
    if isinstance(fields.get("bases"), str):
        fields["bases"] = (fields["bases"],)
    flow = _build_workflow(values.get("workflow", "fresh_human"), arguments)
    missing = [field for field in ("dataset", "bases", "seed") if field not in fields]
    if missing:
        raise ValueError(f"{missing[0]}: every chain needs one")
    shown = {
        name: _plain(value)
        for name, value in (values if factors is None else factors).items()
        if not isinstance(value, Workflow)
    }
    return ChainSpec(
        id=id or chain_id(shown),
        workflow=flow,
        factors=tuple(sorted(shown.items())),
        fit=tuple(sorted(settings["fit"].items())),
        sample=tuple(sorted(settings["sample"].items())),
        **fields,
    )


def _build_workflow(workflow: object, arguments: Mapping[str, object]) -> Workflow:
    """The workflow of a name and its arguments, or the workflow itself."""
    if isinstance(workflow, Workflow):
        if arguments:
            raise ValueError(f"{next(iter(arguments))}: not a field of a chain")
        return workflow
    if not isinstance(workflow, str) or workflow not in BUILDERS:
        raise ValueError(f"workflow={workflow!r}: must be one of {', '.join(BUILDERS)}")
    try:
        return BUILDERS[workflow](**arguments)
    except TypeError as error:
        reason = str(error).removeprefix(f"{workflow}() ")
        raise ValueError(f"workflow={workflow!r}: {reason}") from error


def _plain(value: object) -> object:
    """A value of a factor as it stands in tables: lists joined by "+"."""
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else value


def chain_id(factors: Mapping[str, object]) -> str:
    """File name of a combination of factors: "dataset-docs_ratio-0.125_seed-0".

    Long names and unsafe characters are cut, and a checksum is added.
    """
    pieces = [
        f"{name}-{value:g}" if isinstance(value, float) else f"{name}-{value}"
        for name, value in factors.items()
    ]
    text = "_".join(pieces) or "chain"
    safe = re.sub(r"[^A-Za-z0-9._+,~-]+", "~", text).lstrip("._+,~-")[:120] or "chain"
    exact = all(not isinstance(v, float) or float(f"{v:g}") == v for v in factors.values())
    if safe == text and exact:
        return safe
    return f"{safe}~{hashlib.sha256(repr(sorted(factors.items())).encode()).hexdigest()[:8]}"


def product(factors: Mapping[str, Sequence[object]], **common: object) -> list[ChainSpec]:
    """Return all combinations of the factors' values, each one chain.

    Only factors with more than one value enter the id; all enter the tables.

    Args:
        factors: values by name.
        common: what all chains share, see `make_chain`.

    Raises:
        ValueError: a factor has no value.
    """
    for name, levels in factors.items():
        if isinstance(levels, str) or not len(levels):
            raise ValueError(f"factors.{name}={levels!r}: must be a list of at least one value")
    several = [name for name, levels in factors.items() if len(levels) > 1] or list(factors)
    chains = []
    for combination in itertools.product(*factors.values()):
        values = dict(zip(factors, combination, strict=True))
        name = chain_id({name: _plain(values[name]) for name in several})
        chains.append(make_chain({**common, **values}, factors=values, id=name))
    return chains


class Member(NamedTuple):
    """One model to be fitted: an entity of a chain."""

    chain: ChainSpec
    entity: int


class FitGroup(NamedTuple):
    """Models of one generation that share a base model and settings: one call of the family.

    name     name of its files
    base     name of the base model
    scratch  whether the models start from random weights
    fit, sample   (field, value) pairs that replace fields of the study's settings
    """

    name: str
    base: str
    scratch: bool
    fit: tuple[tuple[str, object], ...]
    sample: tuple[tuple[str, object], ...]
    members: tuple[Member, ...]


def groups(
    chains: Sequence[ChainSpec],
    generation: int,
    max_members: int | Mapping[str, int] | None = None,
) -> list[FitGroup]:
    """Return the groups of one generation, base by base, members in the order of the study.

    The order depends on the chains alone.

    Args:
        chains: those that have not stopped.
        generation: its number.
        max_members: most members of a group, or of a group of each base; None: no limit.
    """
    members_of: dict[tuple[Any, ...], list[Member]] = {}
    for chain in chains:
        scratch = chain.workflow.start == "scratch"
        for entity in range(chain.workflow.entities):
            key = base_of(chain, generation, entity), scratch, chain.fit, chain.sample
            members_of.setdefault(key, []).append(Member(chain, entity))
    fit_groups = []
    for key in sorted(members_of, key=repr):
        base, scratch, fit, sample = key
        members, name = members_of[key], _group_name(base, scratch, fit, sample)
        most = max_members.get(base) if isinstance(max_members, Mapping) else max_members
        size = most or len(members)
        for number, start in enumerate(range(0, len(members), size)):
            group = FitGroup(
                name=name if max_members is None else f"{name}.{number:04d}",
                base=base,
                scratch=scratch,
                fit=fit,
                sample=sample,
                members=tuple(members[start : start + size]),
            )
            fit_groups.append(group)
    return fit_groups


def _group_name(base: str, scratch: bool, fit: object, sample: object) -> str:
    """File name of a group: the end of the base's name, and a checksum.

    The checksum is of all that tells the groups of a generation apart.
    """
    label = re.sub(r"[^A-Za-z0-9._-]+", "~", base.rstrip("/").split("/")[-1])[:40].lstrip(".")
    content = json.dumps([base, scratch, repr(fit), repr(sample)])
    return f"{label or 'base'}~{hashlib.sha256(content.encode()).hexdigest()[:8]}"
