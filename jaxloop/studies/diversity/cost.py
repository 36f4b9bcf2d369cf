"""What a diversity study would cost, counted from its config.

For models and data that are not on this machine, tables and assumptions are used; the rows say so.
"""

import time
from collections.abc import Sequence

import jax

from jaxloop.config import FitConfig
from jaxloop.lm import family
from jaxloop.lm.io import config_json
from jaxloop.lm.io import tokenizer as tokenize
from jaxloop.lm.model.config import ModelConfig, count_parameters
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.training.autotune import default
from jaxloop.runtime import environment, roofline
from jaxloop.runtime.devices import platform_of
from jaxloop.studies.common import calls, card_hours, cost, published_models
from jaxloop.studies.common import models as base_models
from jaxloop.studies.diversity import prepare as diversity_setup
from jaxloop.studies.diversity import records
from jaxloop.studies.diversity.cells import Cell, all_cells, needed
from jaxloop.studies.diversity.config import DiversityConfig


def model_config_of(settings: DiversityConfig, name: str) -> tuple[ModelConfig, bool]:
    """Return a model's config and whether its files are here.

    Raises ValueError for a model that is neither here nor in the table of published models.
    """
    try:
        return diversity_setup.describe(settings, name)[0], True
    except ValueError:
        published = published_models.by_short_name(name)
        if published is None:
            raise
        return config_json.parse_config(published), False


def mean_tokens(settings: DiversityConfig, task: str) -> tuple[float, bool]:
    """Return the mean tokens of a training text and whether they were counted.

    A text includes its prompt and EOS, cut to fit.max_length. Tokens are assumed where the data
    cannot be read here.
    """
    section = getattr(settings, task)
    try:
        _, tokenizer = diversity_setup.describe(settings, settings.models.pool[0])
    except ValueError:
        tokenizer = tokenize.load(base_models.model_path("jaxloop/assets/bases/gpt2"))
    try:
        some = records.read(settings, task, tokenizer.count).train.iloc[:1000]
    except ValueError:
        return float(min(section.expected_tokens, settings.fit.max_length)), False
    whole = [
        f"{p} {t}"
        for p, t in zip(diversity_setup.prompts(settings, task, some), some["text"], strict=True)
    ]
    counts = [min(n + 1, settings.fit.max_length) for n in tokenizer.count(whole)]
    return sum(counts) / len(counts), True


def requests(settings: DiversityConfig) -> dict[str, int]:
    """Return {task: requests to its writer}, at one answer each. The control makes none."""
    cells, g, k = all_cells(settings), settings.generator, settings.qa.per_context
    counts: dict[str, int] = {}
    for task in settings.tasks:
        sizes = needed(cells, task)
        if getattr(g, task) == "control" or not sizes:
            counts[task] = 0
        elif task == "story":
            topics = 0 if g.topics else -(-2 * max(g.topic_sizes[level] for level in sizes) // 100)
            counts[task] = sum(sizes.values()) + topics
        else:
            documents = -(-max(sizes.values()) // k)
            counts[task] = documents * (
                1 + -(-max(g.replaced[level] for level in sizes) // g.versions)
            )
    return counts


def table(settings: DiversityConfig, target: str | None = None) -> list[tuple[str, str]]:
    """Return (what, amount) rows: records, requests, tokens, FLOPs, memory, disk and time.

    The time is that of this machine where models and data are here and it is no more than some
    days; else it is in hours of named cards, or of the `target`.
    """
    cells, fit = all_cells(settings), settings.fit
    specs = {name: model_config_of(settings, name) for name in settings.models.pool}
    lengths: dict[str, tuple[float, bool]] = {
        task: mean_tokens(settings, task) for task in settings.tasks
    }
    rows = [
        (
            "writer requests",
            ", ".join(f"{task} {number:,}" for task, number in requests(settings).items()),
        )
    ]
    for task, (length, counted) in lengths.items():
        rows.append(
            (
                f"tokens of a record, {task}",
                f"{length:,.0f}, "
                f"{'counted' if counted else 'assumed: the data cannot be read here'}",
            )
        )
    train: dict[str, float] = {}
    test: dict[str, float] = {}
    memory = 0.0
    for name, (model_config, here) in specs.items():
        sizes = base_models.sizes(fit, model_config)
        base_cells = [cell for cell in cells if cell.base == name]
        frozen = fit.mode == "lora"
        train[name] = sum(
            roofline.training_flops(
                sizes,
                int(_read(cell, fit, lengths[cell.task][0])),
                lengths[cell.task][0],
                frozen=frozen,
            )
            for cell in base_cells
        )
        # One forward pass: two of the six (frozen: four) products per weight.
        test[name] = sum(
            2
            * (sizes.body + sizes.head)
            * getattr(settings, cell.task).test
            * lengths[cell.task][0]
            for cell in base_cells
        )
        together = min(
            settings.run.chains_per_program or default(platform_of()), max(len(base_cells), 1)
        )
        memory = max(
            memory,
            base_models.training_bytes(
                fit, settings.models.dtype, model_config, together, frozen=frozen
            ),
        )
        where = "" if here else ", shapes from a table: its files are not here"
        rows.append(
            (
                f"model {name}",
                f"{count_parameters(model_config):,} parameters, "
                f"{len(base_cells):,} models to train, {cost.big(train[name])}FLOP{where}",
            )
        )
    rows.append(
        (
            "tokens to train on",
            f"{sum(_read(cell, fit, lengths[cell.task][0]) for cell in cells):,.0f}",
        )
    )
    rows.append(
        (
            "arithmetic",
            f"{cost.big(sum(train.values()))}FLOP to train, "
            f"{cost.big(sum(test.values()))}FLOP to test",
        )
    )
    largest = {
        name: max(
            (_read(cell, fit, lengths[cell.task][0]) for cell in cells if cell.base == name),
            default=1.0,
        )
        for name in specs
    }
    rows.append(
        calls.plan_row(
            {
                name: (
                    model_config,
                    calls.Work(largest[name], fit.max_length, frozen=fit.mode == "lora"),
                )
                for name, (model_config, _) in specs.items()
            },
            fit,
        )
    )
    rows.append(("memory", f"{cost.big(memory)}B to train one program of chains"))
    adapters = max(
        base_models.sizes(fit, model_config).adapter
        if fit.mode == "lora"
        else count_parameters(model_config)
        for model_config, _ in specs.values()
    )
    rows.append(("disk", f"{4 * adapters * len(cells) / 1e9:,.2f} GB at most for what is trained"))
    work = card_hours.Arithmetic(
        sum(train.values()), score_flops=sum(test.values()), dtype=fit.dtype
    )
    all_here = all(here for _, here in specs.values()) and all(c for _, c in lengths.values())
    if target is not None or not all_here:
        return [*rows, *card_hours.rows(work, target)]
    rate = measured(settings, FitConfig(batch_size=8, steps=16, max_length=64))
    seconds = (sum(train.values()) + sum(test.values())) / rate
    if seconds > card_hours.LONGEST_HERE:
        return [*rows, cost.too_long_here(), *card_hours.rows(work)]
    rows.append(
        (
            "measured with",
            f"a tiny base on {environment.describe_devices()}: {cost.big(rate)}FLOP/s trained; "
            "larger models come nearer to a device's limit",
        )
    )
    return [
        *rows,
        (
            "time",
            f"about {cost.duration(seconds)} at that rate, writers not counted",
        ),
    ]


def _read(cell: Cell, fit: FitConfig, length: float) -> float:
    """Tokens that one fit trains on."""
    records = (
        fit.steps * fit.batch_size
        if fit.steps is not None
        else sum(cell.counts) * (fit.epochs or 1)
    )
    return records * length


def measured(
    settings: DiversityConfig,
    fit: FitConfig,
    texts: Sequence[str] = (
        "A short record to time a moment of training with, again and again. " * 3,
    ),
) -> float:
    """Return the FLOP/s of training a tiny base on this device. Nothing is written."""
    model = family.load(base_models.model_path("jaxloop/assets/bases/llama"))
    chosen, options = fit.replace(length_buckets=1), base_models.train_options(settings.run)
    task = family.FitTask(jax.random.key(0), list(texts) * 128, [""] * 128 * len(texts))
    family.fit(model, [task], chosen, options)
    start = time.perf_counter()
    result = family.fit(model, [task], chosen, options)[0]
    seconds = time.perf_counter() - start
    return (
        roofline.training_flops(sizes_of(model.config, chosen.lora), result.tokens, fit.max_length)
        / seconds
    )
