"""The chains of a multi-entity study: one per setting and seed, and the control of each.

A control has what its setting has, the same seeds, steps, rows and prompts, but for whose synthetic
text an entity reads: its own, in place of everyone's. At weight alpha, a difference to alpha = 0
holds both what an entity's own text does to it and what the others' does; a difference to the
control holds the latter alone.
"""

import json
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from jaxloop.core import mixing as mixing_matrices
from jaxloop.recursion.chains import ChainSpec, chain_id
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import Exchange, Workflow, exchange, exchange_weights
from jaxloop.studies.multi_entity.config import EntitiesConfig

PUBLIC = "public"
# Value of the factor `mixing` of a control chain.
CONTROL = "self_only"
# alpha or beta: a number, one per generation, or a row of one per entity per generation.
Weight = float | tuple[float | tuple[float, ...], ...]
# Rows [K][K] that sum to one.
Mixing = tuple[tuple[float, ...], ...]


def mixing_of(settings: EntitiesConfig) -> Mixing:
    """Return the mixing matrix [K][K].

    Raises ValueError for an unknown name, a wrong shape, or a row that does not sum to one.
    """
    chosen, k = settings.exchange.mixing, len(settings.entities)
    try:
        matrix = (
            mixing_matrices.named(chosen, k)
            if isinstance(chosen, str)
            else mixing_matrices.check_mixing(chosen, k)
        )
    except ValueError as error:
        raise ValueError(f"config.exchange.{error}") from None
    return tuple(tuple(row) for row in matrix.tolist())


def weights_of(settings: EntitiesConfig) -> list[tuple[Weight, Weight]]:
    """Return (alpha, beta) of every setting, in order."""
    e = settings.exchange
    if e.weights:
        return [(w[2], w[0] / (w[0] + w[1]) if w[0] + w[1] else 0.0) for w in e.weights]
    return [(alpha, beta) for alpha in e.alphas for beta in e.betas]


def workflow_of(
    settings: EntitiesConfig,
    alpha: Weight,
    beta: Weight,
    private: Sequence[int],
    public: int,
    mixing: Mixing,
) -> Workflow:
    """Return what the entities of one setting train on.

    private, public: sizes of the corpora. Raises ValueError for a weight of the wrong shape.
    """
    e = settings.exchange
    try:
        return exchange(
            e.size,
            alpha=alpha,
            beta=beta,
            initial_beta=e.initial_beta,
            private=private,
            public=public,
            synthetic=e.synthetic,
            past=e.past,
            mixing=mixing,
            start=e.start,
        )
    except ValueError as error:
        raise ValueError(f"config.exchange: {error}") from None


def label(weight: Weight | None) -> float | str:
    """Return a weight as a factor of tables: a number, or text where it changes."""
    return float(weight) if isinstance(weight, int | float) else json.dumps(weight)


def make_chains(
    settings: EntitiesConfig,
    data: Mapping[str, Dataset],
    weights: Sequence[tuple[Weight, Weight]],
    mixing: Mixing,
) -> tuple[list[ChainSpec], dict[str, tuple[Weight, Weight]]]:
    """Return one ChainSpec per setting and seed, then their controls, and {chain id: (alpha,
    beta)}.
    """
    public = len(data[PUBLIC].texts) if PUBLIC in data else 0
    private = [len(data[name].texts) if name in data else 0 for name in settings.entities]
    n = settings.measure.probes
    probes = (
        tuple((name, min(n, len(d.texts))) for name, d in data.items())
        if n and len(settings.entities) > 1
        else ()
    )
    own = _own_text(settings, mixing)
    chains, settings_of = [], {}
    for whom in (mixing,) if own is None else (mixing, own):
        for alpha, beta in weights:
            flow = workflow_of(settings, alpha, beta, private, public, whom)
            if whom is own and not _reads_synthetic(flow, len(settings.entities)):
                continue
            for seed in settings.exchange.seeds:
                names = {"alpha": label(alpha), "beta": label(beta), "seed": seed}
                factors = names if own is None else names | {"mixing": mixing_label(settings)}
                if whom is own:
                    factors = names = names | {"mixing": CONTROL}
                chain = ChainSpec(
                    id=chain_id(names),
                    workflow=flow,
                    dataset=tuple(name if name in data else PUBLIC for name in settings.entities),
                    seed=seed,
                    bases=settings.models.pool,
                    draw_base=False,
                    factors=tuple(sorted(factors.items())),
                    public=PUBLIC if PUBLIC in data else None,
                    probes=probes,
                )
                chains.append(chain)
                settings_of[chain.id] = (alpha, beta)
    return chains, settings_of


def _own_text(settings: EntitiesConfig, mixing: Mixing) -> Mixing | None:
    """Whom entities read in the control chains; None where there is no control to make."""
    own = mixing_matrices.self_only(len(settings.entities))
    if settings.exchange.control is None or np.array_equal(own, np.asarray(mixing)):
        return None
    return tuple(tuple(row) for row in own.tolist())


def _reads_synthetic(flow: Workflow, entities: int) -> bool:
    # `workflow_of` makes workflows of exchange only.
    alpha, _ = exchange_weights(cast(Exchange, flow.exchange), entities)
    return bool(alpha.any())


def mixing_label(settings: EntitiesConfig) -> str:
    """Return the name of the mixing matrix, `given` for one without."""
    chosen = settings.exchange.mixing
    return chosen if isinstance(chosen, str) else "given"


def is_control(chain: ChainSpec) -> bool:
    """Return whether a chain of this study is a control: its entities read their own synthetic
    text where those of the setting read each other's.
    """
    return dict(chain.factors).get("mixing") == CONTROL


def exchanges(chains: Sequence[ChainSpec]) -> list[ChainSpec]:
    """Return the chains that are no controls, in order."""
    return [chain for chain in chains if not is_control(chain)]


def controls(chains: Sequence[ChainSpec]) -> list[ChainSpec]:
    """Return the control chains, in order."""
    return [chain for chain in chains if is_control(chain)]


def distinct_count(settings: EntitiesConfig, chains: Sequence[ChainSpec]) -> int:
    """Return how many of the chains differ in what they train on after generation 0.

    At alpha = 1 in every generation beta has no part where generation 0 does not depend on it.
    """
    kinds = set()
    for chain in chains:
        factors = dict(chain.factors)
        if factors["alpha"] == 1 and settings.exchange.initial_beta is not None:
            factors["beta"] = None
        kinds.add(tuple(sorted(factors.items(), key=lambda item: item[0])))
    return len(kinds)
