"""What a bias-amplification study would cost: models, tokens, arithmetic, disk.

It is counted from the config and the articles; nothing is run. Of models and articles that are not
on this machine, published shapes and assumed lengths are counted, and the rows say so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxloop.lm.programs import generation_plan
from jaxloop.lm.target import complete
from jaxloop.recursion import driver
from jaxloop.recursion.workflow import train_size
from jaxloop.runtime import roofline
from jaxloop.studies.bias_amplification.chains import chains_line, distinct_models
from jaxloop.studies.bias_amplification.config import BiasConfig
from jaxloop.studies.bias_amplification.family import block_count, training_examples
from jaxloop.studies.bias_amplification.plan_inputs import plan_inputs
from jaxloop.studies.bias_amplification.prepare import Prepared, work_of_a_chain
from jaxloop.studies.common import calls, card_hours, target_plan
from jaxloop.studies.common import models as base_models

Rows = list[tuple[str, str]]


class _Tokens(NamedTuple):
    """Tokens of all chains and generations. `in_beams`: generated in the beams beside the first."""

    trained: float
    generated: int
    in_beams: int
    mean_example: float


def absent_table(config: BiasConfig, target: str) -> Rows:
    """Return the (what, amount) rows of `--plan --for` of hardware that is absent."""
    inputs, assumed = plan_inputs(config)
    programs = target_plan.Programs(
        models=config.models,
        fit=config.fit,
        sample=config.sample,
        run=config.run,
        prompt=config.chain.block,
    )
    chains = len(config.chain.setups) * len(config.chain.seeds)
    counted, work = _counted(config, inputs)
    return [
        *counted,
        *(("assumed", line) for line in assumed),
        *target_plan.rows(programs, target, chains=chains),
        *card_hours.rows(work, target),
    ]


def table(config: BiasConfig) -> Rows:
    """Return the (what, amount) rows of `--plan`."""
    inputs, assumed = plan_inputs(config)
    counted, work = _counted(config, inputs)
    return [*counted, *(("assumed", line) for line in assumed), *card_hours.rows(work)]


def _counted(config: BiasConfig, prepared: Prepared) -> tuple[Rows, card_hours.Arithmetic]:
    """Rows of what is counted, and the arithmetic.

    A generated article is taken to be as long as its blocks can make it.
    """
    sizes = base_models.sizes(config.fit, prepared.model_config)
    frozen = config.fit.mode == "lora"
    tokens = _count_tokens(config, prepared)
    train = roofline.training_flops(sizes, int(tokens.trained), tokens.mean_example, frozen=frozen)
    generate = roofline.decoding_flops(
        sizes, tokens.generated + tokens.in_beams, config.chain.block, adapted=frozen
    )
    generations = prepared.driver.generations
    models = len(prepared.chains) * generations
    distinct = distinct_models(prepared.chains, generations)
    written = tokens.generated + tokens.in_beams
    slots = generation_plan(
        prepared.model_config, prepared.driver.sample, complete("gpu"), dtype=config.fit.dtype
    ).slots
    read = roofline.decoding_bytes(
        sizes,
        written / slots,
        slots,
        config.chain.block,
        chains=1,
        width=base_models.dtype_bytes(config.fit.dtype),
    )
    work = card_hours.Arithmetic(
        train,
        decode_flops=generate,
        decode_bytes=read,
        dtype=config.fit.dtype,
    )
    rows = [
        ("chains", chains_line(config)),
        ("models", f"{models:,} versions, {distinct:,} of them different"),
        (
            "articles",
            f"{len(prepared.articles.chosen):,} in every generation, "
            f"{block_count(prepared.prompts):,} prompts",
        ),
        ("tokens to train on", f"{tokens.trained:,.0f}, padding not counted"),
        (
            "tokens to write",
            f"{tokens.generated:,.0f} at most, {tokens.in_beams:,.0f} more in other beams",
        ),
        ("arithmetic", f"{train:.3g} FLOP to train, {generate:.3g} FLOP to write"),
        (
            "not counted",
            "padding, compiling, and measuring: classifier, detector, perplexities, neurons",
        ),
        calls.plan_row(
            {
                config.models.pool[0]: (
                    prepared.model_config,
                    work_of_a_chain(config, prepared.prompts),
                )
            },
            config.fit,
        ),
        ("disk", f"{disk_bytes(config, prepared) / 1e9:,.2f} GB at most"),
    ]
    return rows, work


def _count_tokens(config: BiasConfig, prepared: Prepared) -> _Tokens:
    bodies, _ = training_examples(
        prepared.data["articles"].texts, config.chain.variant, prepared.codec
    )
    lengths = [min(len(ids) + 1, config.fit.max_length) for ids in bodies]
    mean_example = sum(lengths) / len(lengths)
    generated = block_count(prepared.prompts) * config.sample.max_new_tokens
    generations = prepared.driver.generations
    beams = sum(_changed(chain.sample, "num_beams", 1) - 1 for chain in prepared.chains)
    return _Tokens(
        trained=_trained_tokens(config, prepared, sum(lengths), generated, mean_example),
        generated=generated * len(prepared.chains) * generations,
        in_beams=beams * generated * generations,
        mean_example=mean_example,
    )


def _changed(changes: Sequence[tuple[str, object]], field: str, otherwise: Any) -> Any:
    """The value of a field of a chain."""
    return dict(changes).get(field, otherwise)


def _trained_tokens(
    config: BiasConfig, prepared: Prepared, real: int, generated: int, mean_example: float
) -> float:
    """Tokens that all chains train on. real, generated: tokens of all articles of a generation."""
    articles = len(prepared.articles.chosen)
    real_article, new_article = real / articles, generated / articles
    if config.chain.variant == "paper":
        new_article = min(new_article, config.fit.max_length)
    tokens, trained_alike = 0.0, set()
    for chain in prepared.chains:
        epochs = _changed(chain.fit, "epochs", config.fit.epochs)
        for generation in range(prepared.driver.generations):
            if generation == 0 and (chain.seed, chain.fit) in trained_alike:
                continue
            trained_alike.add((chain.seed, chain.fit))
            if config.fit.steps is not None:
                tokens += config.fit.steps * config.fit.batch_size * mean_example
                continue
            article = real_article if generation == 0 else new_article
            tokens += epochs * train_size(chain.workflow, generation) * article
    return tokens


def disk_bytes(config: BiasConfig, prepared: Prepared) -> int:
    """Return an upper bound on the bytes that the run leaves on the disk."""
    sizes = base_models.sizes(config.fit, prepared.model_config)
    weights = 4 * (sizes.adapter if config.fit.mode == "lora" else sizes.total)
    new_tokens = config.sample.max_new_tokens * block_count(prepared.prompts)
    text_bytes = 6 * new_tokens // len(prepared.articles.chosen) + 300
    total = driver.disk_needed(prepared.chains, prepared.driver, weights, text_bytes=text_bytes)
    if config.neurons.measure:
        shape = prepared.model_config
        models = len(prepared.chains) * prepared.driver.generations
        total += 32 * shape.num_layers * shape.d_model * models
    if config.gradient_constraint.direction is not None:
        total += weights
    return total
