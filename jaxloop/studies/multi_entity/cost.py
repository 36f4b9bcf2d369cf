"""What a multi-entity study would cost.

The time is measured on this machine if models and data are here, else it is in hours of the device
that the config describes.
"""

from typing import Any

from jaxloop.data.sources import is_here
from jaxloop.recursion import driver
from jaxloop.recursion.sources import Dataset
from jaxloop.runtime.user_path import user_path
from jaxloop.studies.common import (
    calls,
    card_hours,
    cost,
    device_hours,
    target_plan,
)
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.run import overlaps_eval
from jaxloop.studies.multi_entity import chains as plan_chains
from jaxloop.studies.multi_entity import prepare as entities_setup
from jaxloop.studies.multi_entity.config import EntitiesConfig

# Texts of every corpus that lengths are counted on.
COUNTED_TEXTS = 250
# Test rows of a corpus, where the config takes all of them and they are not here.
ASSUMED_TEST_TEXTS = 1000


def table(settings: EntitiesConfig, target: str | None = None) -> cost.Rows:
    """Return (what, amount) rows; with a target, an accelerator that is absent, those for it.

    Raises ValueError, as a run would, if models and data are all here and something is wrong.
    """
    models_here = all(
        user_path(base_models.model_path(name)).is_dir() for name in settings.models.pool
    )
    data_here = all(t.source is not None and is_here(t.source) for t in _tasks(settings))
    if target is not None:
        return _assumed(settings, target)
    return _measured(settings) if models_here and data_here else _assumed(settings)


def _tasks(settings: EntitiesConfig) -> list[Any]:
    tasks = (*(settings.task(name) for name in settings.entities), settings.public)
    return [task for task in tasks if task.task != "none"]


def _workload(settings: EntitiesConfig, **prepared: Any) -> cost.Workload:
    return cost.Workload(
        models=settings.models,
        fit=settings.fit,
        sample=settings.sample,
        run=settings.run,
        start=settings.exchange.start,
        generation_size=settings.exchange.synthetic,
        **prepared,
    )


def _measured(settings: EntitiesConfig) -> cost.Rows:
    """The table of a chain study on a mixture of all corpora, and what this study adds."""
    prepared = entities_setup.prepare(settings)
    texts: list[str] = []
    prompts: list[str] = []
    for dataset in prepared.data.values():
        texts += dataset.texts[:COUNTED_TEXTS]
        prompts += [dataset.prompt(i) for i in range(min(COUNTED_TEXTS, len(dataset.texts)))]
    work = _workload(
        settings,
        chains=prepared.chains,
        driver=prepared.driver,
        bases=prepared.models,
        dataset=Dataset(texts, prompts),
    )
    shares = cost.costs(work)
    scored = sum(len(texts) for texts, _ in prepared.tests.values())
    return [
        ("chains", entities_setup.line(settings, prepared)),
        *_count(settings, prepared),
        *((f"data {name}", line) for name, line in prepared.data_lines),
        *cost.count_rows(work, cost.total_cost(shares)),
        cost.memory_row(work),
        *cost.measured_rows(work, shares, "metrics"),
        *_rest(settings, prepared, scored),
    ]


def _count(settings: EntitiesConfig, prepared: entities_setup.Prepared) -> cost.Rows:
    """How many models there are, and what the controls add to them."""
    k, generations = len(settings.entities), settings.exchange.generations
    members = len(prepared.chains) * k
    rows = [
        (
            "models",
            f"{members} in every generation, {members * generations} in all; equal ones are "
            "trained once",
        )
    ]
    controls = plan_chains.controls(prepared.chains)
    if not controls:
        return rows
    # Generation 0 of a control is that of its setting.
    added, others = (
        k * plan_chains.distinct_count(settings, some)
        for some in (controls, plan_chains.exchanges(prepared.chains))
    )
    rows.append(
        (
            "of these, controls",
            f"{len(controls) * k} in every generation; from generation 1 on {added} differ, "
            f"beside {others} of the others: {added / others:+.0%} to train, write and measure; "
            "config.exchange.control=none leaves them out",
        )
    )
    return rows


def _rest(settings: EntitiesConfig, prepared: entities_setup.Prepared, scored: int) -> cost.Rows:
    members = len(prepared.chains) * len(settings.entities)
    # Those that a call goes on from, and those that it made.
    weight_bytes = (
        2
        * min(members, settings.together or members)
        * max(
            entities_setup.weights_bytes(settings, model_config)
            for model_config, _ in prepared.models.values()
        )
    )
    return [
        calls.plan_row(
            {
                name: (model_config, entities_setup.work_of_a_model(settings))
                for name, (model_config, _) in prepared.models.items()
            },
            settings.fit,
        ),
        ("test rows to score", f"{scored * members * settings.exchange.generations:,}"),
        ("host memory", f"{weight_bytes / 1e9:,.2f} GB of weights at most"),
        ("disk", f"{entities_setup.disk(settings, prepared) / 1e9:,.2f} GB at most"),
    ]


def _assumed(settings: EntitiesConfig, target: str | None = None) -> cost.Rows:
    """The table counted from the config, texts as long as it assumes."""
    weights, mixing = plan_chains.weights_of(settings), plan_chains.mixing_of(settings)
    names = [
        *(n for n in settings.entities if settings.task(n).task != "none"),
        plan_chains.PUBLIC,
    ]
    sizes = dict.fromkeys(names, max(settings.exchange.size, settings.measure.probes))
    chains, settings_of = plan_chains.make_chains(
        settings,
        {name: Dataset([""] * size, "") for name, size in sizes.items()},
        weights,
        mixing,
    )
    common = driver.RunSettings(
        settings.exchange.generations,
        settings.fit,
        settings.sample,
        evaluate=0,
        keep=settings.run.keep,
        overlap_eval=overlaps_eval(settings.run),
    )
    assumed = settings.plan
    lengths = device_hours.AssumedLengths(assumed.text_tokens, assumed.prompt_tokens)
    models = settings.models
    bases = {name: (base_models.model_shapes(models, name)[0], lengths) for name in models.pool}
    prepared = entities_setup.Prepared(chains, {}, {}, [], bases, common, settings_of, mixing)
    work = _workload(
        settings, chains=chains, driver=common, bases=bases, dataset=Dataset(("",), "")
    )
    # The hours are those of cards, whatever this machine is.
    total = cost.total_cost(cost.costs(work, cost.platform_of(target or card_hours.NAMED[0])))
    # Scoring is the forward pass, a third of what full fine-tuning does with a token.
    scored = (settings.measure.test_texts or ASSUMED_TEST_TEXTS) * len(names)
    members = len(chains) * len(settings.entities) * settings.exchange.generations
    per_token = total.train_flops / max(1.0, total.train_tokens) / 3
    score = members * scored * (assumed.text_tokens + assumed.prompt_tokens) * per_token
    hours = device_hours.device_hours(assumed, total)
    score_hours = score / (assumed.flops * assumed.train_share) / 3600
    all_hours = hours.train + hours.generate + score_hours
    on_cards = card_hours.rows(cost.arithmetic(work, total, score), target)
    compiled: cost.Rows = []
    if target is not None:
        programs = target_plan.Programs(
            models=settings.models, fit=settings.fit, sample=settings.sample, run=settings.run
        )
        compiled = target_plan.rows(programs, target, chains=len(chains), total=total)
    return [
        ("chains", entities_setup.line(settings, prepared)),
        *_count(settings, prepared),
        (
            "rows drawn",
            f"{total.train_texts:,.0f}, of which {settings.fit.steps or 0} x "
            f"{settings.fit.batch_size} are trained on by each model",
        ),
        ("texts to write", f"{total.generated_texts:,.0f}"),
        (
            "tokens",
            f"{total.train_tokens:,.0f} to train on, {total.generated_tokens:,.0f} to write "
            f"(assumed: {assumed.text_tokens:g} per text, {assumed.prompt_tokens:g} per prompt)",
        ),
        cost.arithmetic_row(total, f", {cost.big(score)}FLOP to score"),
        *cost.model_rows(work),
        cost.memory_row(work, of="models"),
        *_rest(settings, prepared, scored),
        ("assumed", device_hours.device_line(assumed)),
        (
            "device-hours",
            f"{hours.train:,.1f} to train, {hours.generate:,.1f} to write, {score_hours:,.1f} to "
            f"score: about {all_hours:,.0f} {assumed.device}-hours",
        ),
        *compiled,
        *on_cards,
    ]
