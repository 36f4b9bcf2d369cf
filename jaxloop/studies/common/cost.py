"""What a chain study would cost: counted from the config and the data, timed by training and
sampling one of its models for a moment.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxloop.studies.chain import prepare
from jaxloop.studies.common import absent_plan

if TYPE_CHECKING:
    from jaxloop.studies.chain.run import Settings

# Chains that the measurement runs together, at most: what one program holds by default.
TOGETHER = 16


class Work(NamedTuple):
    """One base model's share of a study, all generations: items of its training sets and tokens
    read from them, texts and tokens written, FLOPs and bytes of both.

    Each generation draws its base from the pool, so the share is an expectation; with one base it
    is exact.
    """

    texts: float
    tokens: float
    written: float
    tokens_written: float
    train_flops: float
    decode_flops: float
    decode_bytes: float


def table(
    settings: "Settings", prepared: prepare.Prepared, target: str | None = None
) -> list[tuple[str, str]]:
    """(what, amount) rows: texts, tokens, FLOPs, bytes, memory, and the time that this device, or
    `target`, would take.
    """
    platform = platform_of(target)
    shares = {name: work(settings, prepared, name, platform) for name in settings.models.pool}
    whole = Work(*map(sum, zip(*shares.values(), strict=True)))
    rows = [
        ("texts to train on", f"{whole.texts:,.0f}"),
        ("texts to write", f"{whole.written:,.0f}"),
    ]
    rows += [("tokens to train on", f"{whole.tokens:,.0f}")]
    longest = whole.written * settings.sample.max_new_tokens
    rows += [
        (
            "tokens to write",
            f"{whole.tokens_written:,.0f} if texts are as long as human ones, {longest:,.0f} at "
            "most",
        )
    ]
    rows += [
        (
            "arithmetic",
            f"{big(whole.train_flops)}FLOP to train, {big(whole.decode_flops)}FLOP and "
            f"{big(whole.decode_bytes)}B read to write",
        )
    ]
    for name, (spec, _) in prepared.models.items():
        rows.append((f"model {name}", described(settings, spec)))
    if target is not None:
        return [*rows, *absent_plan.rows(settings, target, chains=len(prepared.chains), work=whole)]
    rows += [("memory", f"{big(memory(settings, prepared))}B to train one program of chains")]
    name = settings.models.pool[0]
    first, trained, wrote = measure(settings, prepared, name)
    # The other models are slower in the ratio of their arithmetic.
    train_seconds = sum(s.train_flops for s in shares.values()) / trained
    write_seconds = (
        sum(
            s.tokens_written * decode_flops_per_token(settings, prepared, n)
            for n, s in shares.items()
        )
        / wrote
    )
    compiled = first * len(shares)
    rows += [
        (
            "measured with",
            f"{name} on {prepare.device_name()}: {big(trained)}FLOP/s trained, "
            f"{big(wrote)}FLOP/s written",
        )
    ]
    rows += [
        (
            "time",
            f"{duration(train_seconds)} to train, {duration(write_seconds)} to write, "
            f"{duration(compiled)} to compile",
        )
    ]
    return [
        *rows,
        (
            "time in all",
            f"about {duration(train_seconds + write_seconds + compiled)}, metrics not counted",
        ),
    ]


def platform_of(target: str | None) -> str:
    """The platform of a target, or of the process."""
    from jaxloop.accelerators import cards
    from jaxloop.runtime import devices

    card = None if target is None else cards.find(target)
    return devices.platform_of() if target is None else "cpu" if card is None else card.platform


def work(
    settings: "Settings", prepared: prepare.Prepared, name: str, platform: str | None = None
) -> Work:
    """The share of one model of the pool, written with the slots of a platform (None: the process's
    own).
    """
    from jaxloop.lm.programs import writing_plan
    from jaxloop.lm.target import complete
    from jaxloop.recursion.generation import sample_rows
    from jaxloop.recursion.workflow import train_size
    from jaxloop.runtime import roofline

    generations = range(settings.chain.generations)
    mine = [(chain, 1 / len(chain.bases)) for chain in prepared.chains if name in chain.bases]
    texts = sum(
        part * chain.workflow.entities * train_size(chain.workflow, g)
        for chain, part in mine
        for g in generations
    )
    written = sum(
        part * chain.workflow.entities * sample_rows(chain, prepared.driver) for chain, part in mine
    ) * len(generations)
    fitted, length, bare = _lengths(settings, prepared, name)
    if settings.fit.steps is not None:
        read = (
            sum(part * chain.workflow.entities for chain, part in mine)
            * len(generations)
            * settings.fit.steps
            * settings.fit.batch_size
        )
    else:
        read = texts * (settings.fit.epochs or 1)
    spec, frozen = prepared.models[name][0], prepare.trains_adapters(settings)
    sizes = prepare.sizes(settings.fit, spec)
    tokens = read * length
    out = written * min(bare, settings.sample.max_new_tokens)
    context = fitted - bare + bare / 2
    planned = writing_plan(spec, prepared.driver.sample, complete(platform or platform_of(None)))
    rows = planned.slots
    return Work(
        texts,
        tokens,
        written,
        out,
        roofline.training_flops(sizes, int(tokens), length, frozen=frozen),
        roofline.decoding_flops(sizes, int(out), context),
        roofline.decoding_bytes(
            sizes,
            out / rows,
            rows,
            context,
            chains=planned.lanes,
            width=prepare.width(settings.fit.dtype),
        ),
    )


def memory(settings: "Settings", prepared: prepare.Prepared) -> float:
    """Bytes of the largest training program."""
    from jaxloop.lm.training.autotune import default

    frozen = prepare.trains_adapters(settings)
    together = min(settings.run.micro_batch or default(platform_of(None)), len(prepared.chains))
    return max(
        prepare.training_bytes(settings.fit, settings.models.dtype, spec, together, frozen=frozen)
        for spec, _ in prepared.models.values()
    )


def measure(
    settings: "Settings", prepared: prepare.Prepared, name: str
) -> tuple[float, float, float]:
    """(seconds that compiling took, FLOP/s of training, FLOP/s of writing) of one model, both on as
    many chains as run together.
    """
    import dataclasses

    import jax
    import numpy as np

    from jaxloop.lm import family
    from jaxloop.runtime import roofline
    from jaxloop.runtime.devices import programs_at_once

    model, spec = prepare.load_model(settings, name), prepared.models[name][0]
    data = next(iter(prepared.data.values()))
    count = min(
        TOGETHER if platform_of(None) != "cpu" else max(2, programs_at_once()), len(prepared.chains)
    )
    fit = prepared.driver.fit
    if fit.steps is not None and fit.steps > fit.steps_per_dispatch:
        fit = dataclasses.replace(fit, steps=fit.steps_per_dispatch)
    rows = min(len(data.texts), fit.steps_per_dispatch * fit.batch_size)
    texts, prompts = list(data.texts[:rows]), [data.prompt(i) for i in range(rows)]
    keys = jax.random.split(jax.random.key(0), count)
    tasks = [
        family.FitTask(key=key, texts=texts, prompts=prompts, sample_weights=None, start=None)
        for key in keys
    ]
    fit_first, fit_again, results = _twice(lambda: family.fit(model, tasks, fit))
    tokens = sum(result.tokens for result in results)
    ask = [data.prompt(0)] * min(settings.chain.size, 128)
    writers = [
        family.SampleTask(key=k, weights=r.weights, prompts=ask, rows=np.arange(len(ask)))
        for k, r in zip(keys, results, strict=True)
    ]
    sample_first, sample_again, written = _twice(
        lambda: family.sample(model, writers, prepared.driver.sample)
    )
    frozen = prepare.trains_adapters(settings)
    sizes, (_, length, _) = (
        prepare.sizes(settings.fit, spec),
        _lengths(settings, prepared, name),
    )
    trained = roofline.training_flops(sizes, tokens, length, frozen=frozen) / fit_again
    wrote = (
        sum(int(w.tokens.sum()) for w in written)
        * decode_flops_per_token(settings, prepared, name)
        / sample_again
    )
    return max(0.0, fit_first - fit_again) + max(0.0, sample_first - sample_again), trained, wrote


def _twice(run) -> tuple[float, float, Sequence]:
    """Seconds of the first and of the second call, and what the second gave."""
    start = time.perf_counter()
    run()
    middle = time.perf_counter()
    result = run()
    return middle - start, time.perf_counter() - middle, result


def _lengths(
    settings: "Settings", prepared: prepare.Prepared, name: str
) -> tuple[float, float, float]:
    """Mean tokens of a human text with prompt and EOS, the same cut to `fit.max_length`, and of the
    text with EOS alone.
    """
    tokenizer = prepared.models[name][1]
    data = next(iter(prepared.data.values()))
    counts = tokenizer.count(list(data.texts[:1000]))
    prompt = len(tokenizer.encode([data.prompt(0)])[0])
    cut = [min(c + prompt + 1, settings.fit.max_length) for c in counts]
    bare = sum(counts) / len(counts) + 1
    return bare + prompt, sum(cut) / len(cut), bare


def decode_flops_per_token(settings: "Settings", prepared: prepare.Prepared, name: str) -> float:
    """FLOP of a written token at the middle of a text."""
    from jaxloop.runtime import roofline

    whole, _, bare = _lengths(settings, prepared, name)
    return roofline.decoding_flops(
        prepare.sizes(settings.fit, prepared.models[name][0]), 1, whole - bare / 2
    )


def described(settings: "Settings", spec) -> str:
    """ "llama, 1.7 M parameters" of a model."""
    return f"{spec.architecture}, {prepare.sizes(settings.fit, spec).total / 1e6:,.1f} M parameters"


def big(value: float) -> str:
    """`3.2e12` as "3.2 T", for a unit to follow."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.0f} E"


def duration(seconds: float) -> str:
    """Seconds as hours where they are many, else as the progress lines say them."""
    from jaxloop.recursion import progress

    return f"{seconds / 3600:,.0f} h" if seconds > 360_000 else progress.duration(seconds)
