"""What a diversity study would cost, counted from its config; models and data that are not here are
taken from tables and assumptions, and named.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxloop.studies.chain import prepare as chain_setup
from jaxloop.studies.common import cost as chain_plan
from jaxloop.studies.diversity import prepare as diversity_setup
from jaxloop.studies.diversity.prepare import short

if TYPE_CHECKING:
    from jaxloop.lm.model.config import Spec
    from jaxloop.studies.diversity.config import Settings


def known_specs() -> dict[str, "Spec"]:
    """Shapes of the paper's five models, by the last part of their hub ids, from their config.json
    files.
    """
    from jaxloop.lm.model.config import RopeScaling, Spec

    old = {
        "norm": "layer",
        "gated": False,
        "positions": "learned",
        "qkv_bias": True,
        "o_bias": True,
        "mlp_bias": True,
    }
    gpt2 = {
        "architecture": "gpt2",
        "vocab": 50257,
        "context": 1024,
        "head_size": 64,
        "activation": "gelu_new",
        **old,
    }
    llama = {
        "architecture": "llama",
        "vocab": 128256,
        "context": 131072,
        "kv_heads": 8,
        "rope_theta": 500000.0,
    }
    return {
        "gpt2": Spec(width=768, layers=12, heads=12, kv_heads=12, mlp=3072, **gpt2),
        "gpt2-xl": Spec(width=1600, layers=48, heads=25, kv_heads=25, mlp=6400, **gpt2),
        "Llama-3.2-1B": Spec(width=2048, layers=16, heads=32, head_size=64, mlp=8192, rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), **llama),
        "Llama-3.1-8B": Spec(width=4096, layers=32, heads=32, head_size=128, mlp=14336, tied=False, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), **llama),
        "opt-1.3b": Spec(
            architecture="opt", vocab=50272, context=2048, width=2048, layers=24, heads=32, kv_heads=32, head_size=64, mlp=8192, activation="relu",
            position_offset=2, **old,
        ),
    }  # fmt: skip


def spec_of(settings: "Settings", name: str) -> tuple["Spec", bool]:
    """(shapes of a model, whether its files are here). Raises ValueError for a model that is
    neither here nor known.
    """
    try:
        return diversity_setup.describe(settings, name)[0], True
    except ValueError:
        found = known_specs().get(short(name))
        if found is None:
            raise
        return found, False


def mean_tokens(settings: "Settings", task: str) -> tuple[float, bool]:
    """(tokens of a training text with prompt and EOS, cut to fit.max_length; whether they were
    counted rather than assumed).
    """
    from jaxloop.lm.io import tokenizer as tokenize

    section = getattr(settings, task)
    try:
        _, tokenizer = diversity_setup.describe(settings, settings.models.pool[0])
    except ValueError:
        tokenizer = tokenize.load(chain_setup.model_path("jaxloop/assets/bases/gpt2"))
    try:
        some = diversity_setup.read(settings, task, tokenizer.count).train.iloc[:1000]
    except ValueError:
        return float(min(section.expected_tokens, settings.fit.max_length)), False
    whole = [
        f"{p} {t}"
        for p, t in zip(diversity_setup.prompts(settings, task, some), some["text"], strict=True)
    ]
    counts = [min(n + 1, settings.fit.max_length) for n in tokenizer.count(whole)]
    return sum(counts) / len(counts), True


def requests(settings: "Settings") -> dict[str, int]:
    """Requests to writers, at one answer each, by task; 0 where the control stands in."""
    cells, g, k = diversity_setup.all_cells(settings), settings.generator, settings.qa.per_context
    found = {}
    for task in settings.tasks:
        sizes = diversity_setup.needed(cells, task)
        if getattr(g, task) == "control" or not sizes:
            found[task] = 0
        elif task == "story":
            topics = 0 if g.topics else -(-2 * max(g.topic_sizes[level] for level in sizes) // 100)
            found[task] = sum(sizes.values()) + topics
        else:
            documents = -(-max(sizes.values()) // k)
            found[task] = documents * (
                1 + -(-max(g.replaced[level] for level in sizes) // g.versions)
            )
    return found


def table(settings: "Settings") -> list[tuple[str, str]]:
    """(what, amount) rows: records, requests, tokens, FLOPs, memory, disk, and the time that this
    device would take.
    """
    from jaxloop.config import Fit
    from jaxloop.lm.model.config import count_parameters
    from jaxloop.lm.training.autotune import default
    from jaxloop.runtime import roofline
    from jaxloop.runtime.devices import platform_of

    cells, fit = diversity_setup.all_cells(settings), settings.fit
    specs = {name: spec_of(settings, name) for name in settings.models.pool}
    lengths = {task: mean_tokens(settings, task) for task in settings.tasks}
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
    train, test, memory = {}, {}, 0.0
    for name, (spec, here) in specs.items():
        sizes = chain_setup.sizes(fit, spec)
        mine = [cell for cell in cells if cell.base == name]
        frozen = fit.mode == "lora"
        train[name] = sum(
            roofline.training_flops(
                sizes,
                int(_read(cell, fit, lengths[cell.task][0])),
                lengths[cell.task][0],
                frozen=frozen,
            )
            for cell in mine
        )
        # One forward pass: two of the six (frozen: four) products per weight.
        test[name] = sum(
            2
            * (sizes.body + sizes.head)
            * getattr(settings, cell.task).test
            * lengths[cell.task][0]
            for cell in mine
        )
        together = min(settings.run.micro_batch or default(platform_of()), max(len(mine), 1))
        memory = max(
            memory,
            chain_setup.training_bytes(fit, settings.models.dtype, spec, together, frozen=frozen),
        )
        where = "" if here else ", shapes from a table: its files are not here"
        rows.append(
            (
                f"model {name}",
                f"{count_parameters(spec):,} parameters, {len(mine):,} models to train, "
                f"{chain_plan.big(train[name])}FLOP{where}",
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
            f"{chain_plan.big(sum(train.values()))}FLOP to train, "
            f"{chain_plan.big(sum(test.values()))}FLOP to test",
        )
    )
    rows.append(("memory", f"{chain_plan.big(memory)}B to train one program of chains"))
    adapters = max(
        chain_setup.sizes(fit, spec).adapter if fit.mode == "lora" else count_parameters(spec)
        for spec, _ in specs.values()
    )
    rows.append(("disk", f"{4 * adapters * len(cells) / 1e9:,.2f} GB at most for what is trained"))
    rate = measured(settings, Fit(batch_size=8, steps=16, max_length=64))
    rows.append(
        (
            "measured with",
            f"a tiny base on {chain_setup.device_name()}: {chain_plan.big(rate)}FLOP/s trained; "
            "larger models come nearer to a device's limit",
        )
    )
    return [
        *rows,
        (
            "time",
            f"about {chain_plan.duration((sum(train.values()) + sum(test.values())) / rate)} at "
            "that rate, writers not counted",
        ),
    ]


def _read(cell, fit, length: float) -> float:
    """Tokens that one fit reads."""
    records = (
        fit.steps * fit.batch_size
        if fit.steps is not None
        else sum(cell.counts) * (fit.epochs or 1)
    )
    return records * length


def measured(
    settings: "Settings",
    fit,
    texts: Sequence[str] = (
        "A short record to time a moment of training with, again and again. " * 3,
    ),
) -> float:
    """FLOP/s that training a tiny base on this device gives; nothing of it is kept."""
    import dataclasses
    from types import SimpleNamespace

    import jax

    from jaxloop.config import Sample
    from jaxloop.lm import family
    from jaxloop.lm.model.sizes import sizes_of
    from jaxloop.runtime import roofline

    model = family.load(chain_setup.model_path("jaxloop/assets/bases/llama"))
    chosen = chain_setup.family_settings(
        SimpleNamespace(fit=fit, sample=Sample(), run=settings.run)
    )[0]
    chosen = dataclasses.replace(chosen, length_classes=1)
    task = family.FitTask(jax.random.key(0), list(texts) * 128, [""] * 128 * len(texts))
    family.fit(model, [task], chosen)
    start = time.perf_counter()
    result = family.fit(model, [task], chosen)[0]
    seconds = time.perf_counter() - start
    return (
        roofline.training_flops(sizes_of(model.spec, chosen.lora), result.tokens, fit.max_length)
        / seconds
    )
