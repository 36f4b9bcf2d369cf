"""What the chains of a study would cost.

Texts, tokens, FLOPs and bytes are counted from a `Workload`; speed is measured by training one of
its models and generating with it for a moment.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxloop.accelerators import cards
from jaxloop.config import FitConfig, ModelsConfig, RunConfig, SampleConfig
from jaxloop.lm import family
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.programs import generation_plan
from jaxloop.lm.target import complete
from jaxloop.lm.training import autotune
from jaxloop.recursion import driver, progress
from jaxloop.recursion.chains import ChainSpec
from jaxloop.recursion.run import effective, sample_rows
from jaxloop.recursion.sources import Dataset
from jaxloop.recursion.workflow import train_size
from jaxloop.runtime import devices, environment, roofline
from jaxloop.studies.common import card_hours, disk
from jaxloop.studies.common import models as base_models
from jaxloop.studies.common.factors import short_name

# Chains that the measurement runs together, at most: what one program holds by default.
MEASURED_CHAINS = 16
# Texts that mean lengths are taken over, and prompts that the measurement generates from, at most.
COUNTED_TEXTS = 1000
MEASURED_TEXTS = 128

Rows = list[tuple[str, str]]


class TokenCounter(Protocol):
    """The part of a tokenizer that counting uses."""

    def count(self, texts: Sequence[str]) -> Sequence[float]:
        """Return the tokens of each text."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""


@dataclasses.dataclass(frozen=True)
class Workload:
    """Everything that decides the cost of a study's chains.

    Attributes:
        models: section of the study's config, as are `fit`, `sample` and `run`.
        start: the weights that a generation starts from, as `config.chain.start`.
        generation_size: texts of a generation.
        chains: the chains as `recursion.driver.run` is given them.
        driver: the settings that `recursion.driver.run` is given.
        bases: {model of the pool: (its shapes, its tokenizer or assumed lengths)}.
        dataset: lengths are counted on its texts and its first prompt.
    """

    models: ModelsConfig
    fit: FitConfig
    sample: SampleConfig
    run: RunConfig
    start: str
    generation_size: int
    chains: Sequence[ChainSpec]
    driver: driver.RunSettings
    bases: Mapping[str, tuple[ModelConfig, TokenCounter]]
    dataset: Dataset

    @property
    def frozen(self) -> bool:
        """Whether adapters are trained beside a frozen base."""
        return base_models.trains_adapters(self.fit, self.start)


def variants(work: Workload) -> list[tuple[str, Workload]]:
    """Return (values that tell its chains from others, their part of the workload) pairs.

    In a part all chains train the same models and generate in the same way: its `fit`, `sample` and
    `start` are those of its chains. A study without such factors has one part, called "".
    """
    chains: dict[tuple[Any, ...], list[ChainSpec]] = {}
    for chain in work.chains:
        key = chain.fit, chain.sample, chain.workflow.start, chain.bases
        chains.setdefault(key, []).append(chain)
    parts = []
    for (fit, sample, start, _), members in chains.items():
        own_fit = effective(work.fit, fit, start == "scratch")
        own_sample = effective(work.sample, sample)
        own_driver = dataclasses.replace(work.driver, fit=own_fit, sample=own_sample)
        part = dataclasses.replace(
            work, fit=own_fit, sample=own_sample, start=start, chains=members, driver=own_driver
        )
        parts.append(part)
    settings = [
        {"start": part.start, "bases": "+".join(short_name(b) for b in part.chains[0].bases)}
        | {f"fit.{name}": value for name, value in part.fit}
        | {f"sample.{name}": value for name, value in part.sample}
        for part in parts
    ]
    varied = [name for name in settings[0] if len({repr(s[name]) for s in settings}) > 1]
    labels = [", ".join(f"{name}={values[name]}" for name in varied) for values in settings]
    return list(zip(labels, parts, strict=True))


class Cost(NamedTuple):
    """What one base model costs over all generations of a study.

    Each generation draws its base from the pool, so this is an expectation; with one base it is
    exact.

    Attributes:
        train_texts: items of its training sets.
        train_tokens: tokens that training reads from them.
        generated_texts: texts that it generates.
        generated_tokens: tokens of these texts.
        train_flops: FLOPs of training.
        decode_flops: FLOPs of generating.
        decode_bytes: bytes that generating reads from memory.
    """

    train_texts: float
    train_tokens: float
    generated_texts: float
    generated_tokens: float
    train_flops: float
    decode_flops: float
    decode_bytes: float


class Speed(NamedTuple):
    """Measured speed: seconds of compiling, FLOP/s of training, FLOP/s of generating."""

    compile_seconds: float
    train_flops: float
    decode_flops: float


class Lengths(NamedTuple):
    """Mean tokens of a human text.

    Attributes:
        whole: with its prompt and EOS.
        trained: the same, cut to `fit.max_length`.
        text: with EOS, without its prompt.
    """

    whole: float
    trained: float
    text: float


def count_rows(work: Workload, total: Cost) -> Rows:
    """Return (what, amount) rows: texts, tokens, FLOPs, bytes and the models."""
    longest = total.generated_texts * work.sample.max_new_tokens
    return [
        *text_rows(total),
        ("tokens to train on", f"{total.train_tokens:,.0f}"),
        (
            "tokens to write",
            f"{total.generated_tokens:,.0f} if texts are as long as human ones, {longest:,.0f} at "
            "most",
        ),
        arithmetic_row(total),
        *model_rows(work),
    ]


def text_rows(total: Cost) -> Rows:
    """Return the rows of the texts to train on and to write."""
    return [
        ("texts to train on", f"{total.train_texts:,.0f}"),
        ("texts to write", f"{total.generated_texts:,.0f}"),
    ]


def arithmetic_row(total: Cost, more: str = "") -> tuple[str, str]:
    """Return the row of FLOPs and bytes; more: words that are added at its end."""
    return (
        "arithmetic",
        f"{big(total.train_flops)}FLOP to train, {big(total.decode_flops)}FLOP and "
        f"{big(total.decode_bytes)}B read to write{more}",
    )


def model_rows(work: Workload) -> Rows:
    """Return a row for each base model."""
    return [
        (f"model {name}", described(work.fit, shape)) for name, (shape, _) in work.bases.items()
    ]


def factor_rows(work: Workload, platform: str) -> Rows:
    """Return a row for each way in which chains train and generate; none where there is one."""
    parts = variants(work)
    if len(parts) < 2:
        return []
    rows = []
    for label, part in parts:
        total = total_cost(costs(part, platform))
        rows.append(
            (
                f"with {label}",
                f"{len(part.chains)} chains: {big(memory(part))}B to train one program, "
                f"{disk_bytes(part) / 1e9:,.2f} GB on disk at most, "
                f"{big(total.train_flops)}FLOP to train, {big(total.decode_flops)}FLOP to write",
            )
        )
    return rows


def memory_row(work: Workload, of: str = "chains") -> tuple[str, str]:
    """Return the row of the memory of the largest training program; of: what it trains."""
    return "memory", f"{big(memory(work))}B to train one program of {of}"


def measured_rows(work: Workload, shares: Mapping[str, Cost], not_counted: str) -> Rows:
    """Return the rows of the time that this device would take.

    Only the first model is measured, for a moment; the others are taken to reach the same FLOP/s.
    Where it would take very long here, named cards' hours follow. not_counted: what the time leaves
    out, in words.
    """
    name = work.models.pool[0]
    speed = measure(work, name)
    train = sum(cost.train_flops for cost in shares.values()) / speed.train_flops
    flops = sum(
        cost.generated_tokens * decode_flops_per_token(work, base) for base, cost in shares.items()
    )
    generate = flops / speed.decode_flops
    compiling = speed.compile_seconds * len(shares)
    whole = train + generate + compiling
    if whole > card_hours.LONGEST_HERE:
        return [too_long_here(), *card_hours.rows(arithmetic(work, total_cost(shares)))]
    return [
        (
            "measured with",
            f"{name} on {environment.describe_devices()}: {big(speed.train_flops)}FLOP/s trained, "
            f"{big(speed.decode_flops)}FLOP/s written",
        ),
        (
            "time",
            f"{duration(train)} to train, {duration(generate)} to write, "
            f"{duration(compiling)} to compile",
        ),
        (
            "time in all",
            f"about {duration(whole)}, {not_counted} not counted",
        ),
    ]


def too_long_here() -> tuple[str, str]:
    """Return the row that stands for a time on this machine that nobody would wait for."""
    longest = card_hours.LONGEST_HERE / 3600
    return "time here", f"more than {longest:,.0f} h on {environment.describe_devices()}"


def arithmetic(work: Workload, total: Cost, score_flops: float = 0.0) -> card_hours.Arithmetic:
    """Return what hours of named cards are counted from; total: of all models of the pool."""
    return card_hours.Arithmetic(
        train_flops=total.train_flops,
        score_flops=score_flops,
        decode_flops=total.decode_flops,
        decode_bytes=total.decode_bytes,
        dtype=work.fit.dtype,
    )


# ---- counting


def platform_of(target: str | None) -> str:
    """Return the platform ("cpu", "gpu", "tpu") of a target; None: of this process."""
    if target is None:
        return devices.platform_of()
    card = cards.find(target)
    return "cpu" if card is None else card.platform


def costs(work: Workload, platform: str | None = None) -> dict[str, Cost]:
    """Return {model of the pool: its cost}.

    platform: whose number of decoding slots counts; None: the platform of this process.
    """
    where = platform or platform_of(None)
    parts = [part for _, part in variants(work)]
    return {
        name: Cost(*map(sum, zip(*(_cost(part, name, where) for part in parts), strict=True)))
        for name in work.models.pool
    }


def total_cost(shares: Mapping[str, Cost]) -> Cost:
    """Return the sum of the models' costs; shares: what `costs` returned."""
    return Cost(*map(sum, zip(*shares.values(), strict=True)))


def _cost(work: Workload, name: str, platform: str) -> Cost:
    generations = range(work.driver.generations)
    # (chain, the part of its generations that train this model)
    parts = [
        (chain, chain.bases.count(name) / len(chain.bases))
        for chain in work.chains
        if name in chain.bases
    ]
    train_texts = sum(
        part * chain.workflow.entities * train_size(chain.workflow, g)
        for chain, part in parts
        for g in generations
    )
    generated = sum(
        part * chain.workflow.entities * sample_rows(chain, work.driver) for chain, part in parts
    ) * len(generations)
    if work.fit.steps is None:
        read = train_texts * (work.fit.epochs or 1)
    else:
        fits = sum(part * chain.workflow.entities for chain, part in parts) * len(generations)
        read = fits * work.fit.steps * work.fit.batch_size
    shape, tokens = work.bases[name][0], lengths(work, name)
    sizes = base_models.sizes(work.fit, shape)
    train_tokens = read * tokens.trained
    generated_tokens = generated * min(tokens.text, work.sample.max_new_tokens)
    context = tokens.whole - tokens.text + tokens.text / 2
    planned = generation_plan(shape, work.driver.sample, complete(platform), dtype=work.fit.dtype)
    return Cost(
        train_texts=train_texts,
        train_tokens=train_tokens,
        generated_texts=generated,
        generated_tokens=generated_tokens,
        train_flops=roofline.training_flops(
            sizes, int(train_tokens), tokens.trained, frozen=work.frozen
        ),
        decode_flops=roofline.decoding_flops(sizes, int(generated_tokens), context),
        decode_bytes=roofline.decoding_bytes(
            sizes,
            generated_tokens / planned.slots,
            planned.slots,
            context,
            chains=planned.num_groups,
            width=base_models.dtype_bytes(work.fit.dtype),
        ),
    )


def lengths(work: Workload, name: str) -> Lengths:
    """Return the mean lengths of the texts that a model trains on, as its tokenizer counts them."""
    tokenizer, data = work.bases[name][1], work.dataset
    counts = tokenizer.count(list(data.texts[:COUNTED_TEXTS]))
    prompt = len(tokenizer.encode([data.prompt(0)])[0])
    cut = [min(count + prompt + 1, work.fit.max_length) for count in counts]
    text = sum(counts) / len(counts) + 1
    return Lengths(whole=text + prompt, trained=sum(cut) / len(cut), text=text)


def memory(work: Workload) -> float:
    """Return the bytes of the largest training program, whatever its factors."""
    return max(_memory(part) for _, part in variants(work))


def _memory(work: Workload) -> float:
    together = min(
        work.run.chains_per_program or autotune.default(platform_of(None)), len(work.chains)
    )
    return max(
        base_models.training_bytes(work.fit, work.models.dtype, shape, together, frozen=work.frozen)
        for shape in (work.bases[name][0] for name in _used(work))
    )


def _used(work: Workload) -> set[str]:
    """The models that some chain trains."""
    return {base for chain in work.chains for base in chain.bases} or set(work.bases)


def disk_bytes(work: Workload) -> int:
    """Return an upper bound on the bytes that a run leaves on the disk.

    Every chain counts with the largest model that it may train.
    """
    total = 0
    for _, part in variants(work):
        size = {
            name: disk.model_bytes(part.fit, part.start, shape)
            for name, (shape, _) in part.bases.items()
        }
        text_bytes = disk.text_bytes(part.sample.max_new_tokens)
        for chain in part.chains:
            largest = max(size[base] for base in chain.bases)
            total += driver.disk_needed([chain], part.driver, largest, text_bytes=text_bytes)
    return total


def decode_flops_per_token(work: Workload, name: str) -> float:
    """Return the FLOPs of generating one token in the middle of a text."""
    tokens = lengths(work, name)
    sizes = base_models.sizes(work.fit, work.bases[name][0])
    return roofline.decoding_flops(sizes, 1, tokens.whole - tokens.text / 2)


# ---- measuring


def measure(work: Workload, name: str) -> Speed:
    """Train one model and generate with it for a moment, and return the speed of both.

    It uses as many chains as would run together. Nothing of it is kept.
    """
    model = base_models.load_model(work.models, work.run, name)
    data = work.dataset
    together = MEASURED_CHAINS if platform_of(None) != "cpu" else max(2, devices.programs_at_once())
    count = min(together, len(work.chains))
    fit, options = work.fit, base_models.train_options(work.run)
    if fit.steps is not None:
        fit = fit.replace(steps=min(fit.steps, options.steps_per_call))
    rows = min(len(data.texts), options.steps_per_call * fit.batch_size)
    texts, prompts = list(data.texts[:rows]), [data.prompt(i) for i in range(rows)]
    keys = jax.random.split(jax.random.key(0), count)
    fit_tasks = [
        family.FitTask(key=key, texts=texts, prompts=prompts, sample_weights=None, start=None)
        for key in keys
    ]
    fitted = _timed(lambda: family.fit(model, fit_tasks, fit, options))
    asked = [data.prompt(0)] * min(work.generation_size, MEASURED_TEXTS)
    sample_tasks = [
        family.GenerateTask(
            key=key, weights=result.weights, prompts=asked, rows=np.arange(len(asked))
        )
        for key, result in zip(keys, fitted.results, strict=True)
    ]
    generate_options = base_models.generate_options(work.fit)
    sampled = _timed(
        lambda: family.generate(model, sample_tasks, work.driver.sample, generate_options)
    )
    sizes = base_models.sizes(work.fit, work.bases[name][0])
    train_flops = roofline.training_flops(
        sizes,
        sum(result.tokens for result in fitted.results),
        lengths(work, name).trained,
        frozen=work.frozen,
    )
    generated = sum(int(result.tokens.sum()) for result in sampled.results)
    return Speed(
        compile_seconds=fitted.compile_seconds + sampled.compile_seconds,
        train_flops=train_flops / fitted.seconds,
        decode_flops=generated * decode_flops_per_token(work, name) / sampled.seconds,
    )


class _Timed(NamedTuple):
    compile_seconds: float
    seconds: float
    results: Sequence[Any]


def _timed(call: Callable[[], Sequence[Any]]) -> _Timed:
    """Call twice. The second call is timed; what the first one took longer is compiling."""
    start = time.perf_counter()
    call()
    middle = time.perf_counter()
    results = call()
    seconds = time.perf_counter() - middle
    return _Timed(max(0.0, middle - start - seconds), seconds, results)


# ---- words


def described(fit: FitConfig, shape: ModelConfig) -> str:
    """Return a model in words, such as "llama, 1.7 M parameters"."""
    total = base_models.sizes(fit, shape).total
    return f"{shape.architecture}, {total / 1e6:,.1f} M parameters"


def big(value: float) -> str:
    """Return `3.2e12` as "3.2 T", for a unit to follow."""
    for unit in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.0f} E"


def duration(seconds: float) -> str:
    """Return seconds as hours where they are many, else as the progress lines say them.

    Fractions of a second have one digit.
    """
    if 0 < seconds < 0.5:
        return f"{seconds:.1g} s"
    return f"{seconds / 3600:,.0f} h" if seconds > 360_000 else progress.duration(seconds)
