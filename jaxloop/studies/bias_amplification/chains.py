"""The chains of the bias-amplification study: one for each setup and seed.

Source: arXiv 2410.15234, section 4.
"""

from typing import Any

from jaxloop.lm.training.gradient_constraint import Brake, GradientConstraint
from jaxloop.recursion import workflow as workflows
from jaxloop.recursion.chains import ChainSpec, make_chain
from jaxloop.recursion.workflow import Workflow
from jaxloop.studies.bias_amplification.config import BiasConfig


def setup_workflow(config: BiasConfig, setup: str, size: int) -> Workflow:
    """Return what the generations of a setup train on, `size` articles being generated each time.

    Every generation starts from the weights of the one before.
    """
    if setup == "preserve":
        return workflows.preserve(size, config.chain.share, start="previous")
    if setup == "accumulate":
        return workflows.accumulate(size, start="previous")
    if setup == "accumulate_matched":
        return workflows.accumulate_subsample(size, start="previous")
    return workflows.replace(size, start="previous")


def setup_changes(config: BiasConfig, setup: str) -> dict[str, Any]:
    """Return the fields "fit.NAME" and "sample.NAME" in which a setup differs from the config."""
    chain = config.chain
    if setup == "beam":
        return {"sample.decoder": "beam", "sample.num_beams": chain.beams}
    if setup == "nucleus":
        return {"sample.decoder": "sample", "sample.top_p": chain.top_p}
    if setup == "penalty":
        return {
            "sample.decoder": "beam",
            "sample.num_beams": chain.penalty_beams,
            "sample.repetition_penalty": chain.penalty,
        }
    if setup == "overfit":
        return {"fit.epochs": chain.overfit_epochs, "fit.weight_decay": 0.0}
    if setup == "constrained":
        section = config.gradient_constraint
        constraint = GradientConstraint(lam=section.lam, gam=section.gam, per=section.per)
        return {"fit.constraint": constraint}
    if setup == "braked":
        return {"fit.constraint": Brake(config.gradient_constraint.brake)}
    return {}


def make_chains(config: BiasConfig, size: int) -> list[ChainSpec]:
    """Make one chain per setup and seed, of `size` articles.

    Chains of one seed share all random draws of generation 0, so setups that train alike have the
    same model there.
    """
    return [
        make_chain(
            {
                "dataset": "articles",
                "bases": config.models.pool,
                **setup_changes(config, setup),
                "workflow": setup_workflow(config, setup, size),
                "seed": seed,
            },
            factors={"setup": setup, "seed": seed},
        )
        for setup in config.chain.setups
        for seed in config.chain.seeds
    ]


def setup_of(chain: ChainSpec) -> str:
    """Return the setup of a chain."""
    return str(dict(chain.factors)["setup"])


def distinct_models(chains: list[ChainSpec], generations: int) -> int:
    """Return how many of the models of the chains differ.

    Chains of one seed that train generation 0 alike share its model: of the paper's 66 versions 62
    differ.
    """
    first = len({(chain.seed, chain.fit) for chain in chains})
    return first + len(chains) * (generations - 1)


def chains_line(config: BiasConfig) -> str:
    """Return what the study consists of, in words."""
    chain = config.chain
    seeds = f"{len(chain.seeds)} seed{'s' if len(chain.seeds) > 1 else ''}"
    return (
        f"{len(chain.setups) * len(chain.seeds)} chains: {', '.join(chain.setups)}, {seeds}, "
        f"{chain.generations} generations"
    )
