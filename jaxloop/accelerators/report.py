"""The lines of `--plan --for`: memory, chains that fit, compile seconds and rooflines."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.accelerators import absent, account
from jaxloop.accelerators.account import Account, Rates, Totals
from jaxloop.accelerators.cards import Card
from jaxloop.config import FitConfig, SampleConfig
from jaxloop.lm import programs
from jaxloop.lm.encoder.config import EncoderConfig
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.slot_plan import SlotPlan
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.programs import Program
from jaxloop.lm.sharding import device_bytes
from jaxloop.lm.target import Target, complete
from jaxloop.lm.training import autotune
from jaxloop.lm.training.step import TrainOptions
from jaxloop.runtime import roofline
from jaxloop.runtime.atomic_io import human_size
from jaxloop.runtime.log import LOGGER

Rows = list[tuple[str, str]]


class Shapes(NamedTuple):
    """The programs of one base model.

    Attributes:
        dtype: of the base.
        sample: None where nothing is generated.
        time: tokens of a training row.
        prompt: tokens of a padded prompt.
        chains: how many a program may hold at most.
        shard_base: whether the base is sharded over all devices of a target.
    """

    name: str
    model_config: ModelConfig
    dtype: str
    fit: FitConfig
    sample: SampleConfig | None
    time: int
    prompt: int
    chains: int
    shard_base: bool = False
    train_options: TrainOptions = TrainOptions()
    generate_options: GenerateOptions = GenerateOptions()


class Device(NamedTuple):
    """A target as a plan uses it.

    Attributes:
        card: None for this CPU.
        devices: for the compiler.
        room: bytes that programs may use on one device.
    """

    name: str
    card: Card | None
    devices: list[Any]
    room: int
    rates: Rates
    target: Target


class Best(NamedTuple):
    """The fastest that a target can be, by rooflines.

    Attributes:
        trained: tokens/s of training on one device.
        written: tokens/s of generation on one device; 0: not counted.
        seconds: of compiling.
    """

    trained: float
    written: float
    seconds: float


def device(name: str, card: Card | None, dtype: str) -> Device:
    """Return the target of a name; None for the card: this CPU, measured in `dtype`.

    Raises:
        absent.Missing: the compiler for the card is not installed.
    """
    devices = absent.devices(card)
    if card is not None:
        rates = account.rates_of(card)
        target = complete(card.platform, card.shared_memory)
        return Device(name, card, devices, card.room, rates, target)
    limits = roofline.measure_limits(jnp.dtype(dtype))
    rates = Rates(limits.bandwidth, limits.flops, limits.flops, limits.flops)
    return Device(name, None, devices, device_bytes(devices[0]), rates, Target("cpu"))


def target_row(at: Device) -> tuple[str, str]:
    """Return the line that says what a target is."""
    if at.card is None:
        return (
            "target",
            f"this CPU: {human_size(at.room)}, {at.rates.bandwidth / 1e9:,.1f} GB/s and "
            f"{at.rates.peak / 1e9:,.0f} GFLOP/s, measured",
        )
    card = at.card
    count = f"{card.devices} x " if card.devices > 1 else ""
    rates = (
        f"{card.bandwidth / 1e12:.3g} TB/s, {card.peak / 1e12:,.0f} TFLOP/s in bfloat16, "
        f"{card.peak32 / 1e12:,.0f} in float32"
    )
    return (
        "target",
        f"{count}{card.kind}, absent: {human_size(at.room)} of {human_size(card.memory)} for "
        f"programs, {rates}; compiled by jax {jax.__version__}",
    )


def compiled(program: Program, at: Device) -> tuple[absent.Compiled, Account]:
    """Return what the compiler says of a program for a target, and the program's account.

    Raises:
        absent.TooLarge: the compiler refuses the program for memory.
    """
    LOGGER.info("compiling %s for %s", program.name, at.name)
    result = absent.compile_program(program, at.card)
    return result, account.account(result.text, at.rates)


def model_rows(shapes: Shapes, at: Device) -> tuple[Rows, Best]:
    """Return the lines of all programs of a base model, and the best that they allow.

    Raises:
        ValueError: not one chain fits; the sentence says what would help.
    """
    rows, trained, seconds = _training(shapes, at)
    written = 0.0
    for program in _other_programs(shapes, at):
        lines, counted, compile_seconds = _lines(program.name, program, at)
        rows, seconds = rows + lines, seconds + compile_seconds
        if program.name == "decoding" and counted is not None and shapes.sample is not None:
            target = _placement(shapes, at)["target"]
            slots = _generation_plan(shapes, shapes.sample, target).slots
            written = slots / counted.step.seconds
            label, amount = rows[-1]
            rows[-1] = (label, f"{amount}; {slots} slots, {written:,.0f} tokens/s at best")
    return rows, Best(trained, written, seconds)


def _other_programs(shapes: Shapes, at: Device) -> list[Program]:
    """The programs of a base model beside training: of the loss, and of generation."""
    placement = _placement(shapes, at)
    loss = programs.loss(shapes.model_config, shapes.fit, shapes.time, **placement)
    if shapes.sample is None:
        return [loss]
    generation = (shapes.model_config, shapes.sample, shapes.prompt)
    options = shapes.generate_options
    if shapes.sample.decoder == "beam":
        return [
            loss,
            programs.beams(*generation, dtype=shapes.dtype, options=options, devices=at.devices),
        ]
    adapted = shapes.fit.mode == "lora"
    return [
        loss,
        programs.prefill(*generation, adapted=adapted, options=options, **placement),
        programs.decoding(*generation, adapted=adapted, options=options, **placement),
    ]


def _generation_plan(shapes: Shapes, sample: SampleConfig, target: Target) -> SlotPlan:
    dtype = shapes.generate_options.dtype
    return programs.generation_plan(shapes.model_config, sample, target, dtype=dtype)


def _lines(label: str, program: Program, at: Device) -> tuple[Rows, Account | None, float]:
    """(lines, account, compile seconds) of a program; one line where it does not fit."""
    try:
        result, counted = compiled(program, at)
    except absent.TooLarge as error:
        return [(label, f"does not fit: {error}")], None, 0.0
    over = ""
    if result.memory > at.room:
        over = f", {human_size(result.memory - at.room)} more than there is"
    parts = f"arguments {human_size(result.arguments)}, temporary {human_size(result.temporary)}"
    amount = (
        f"{human_size(result.memory)} a device{over} ({parts}), compiled in {result.seconds:,.0f} s"
    )
    rows = [(label, amount), (f"{label} step", step(counted.step, at))]
    return rows, counted, result.seconds


def _number(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def step(totals: Totals, at: Device) -> str:
    """Return a step in words: its roofline, by kinds, and what it moves."""
    kinds = ", ".join(f"{kind} {_number(1e3 * s)}" for kind, s in totals.kinds.most_common())
    cycles = ""
    if totals.cycles and at.card:
        milliseconds = 1e3 * account.seconds_of_cycles(totals, at.card.clock)
        cycles = f"; {_number(milliseconds)} ms by XLA's cycles"
    return (
        f"at least {_number(1e3 * totals.seconds)} ms ({kinds}){cycles}; {totals.kernels:,} "
        f"kernels, {_number(totals.bytes / 1e9)} GB"
    )


def _training(shapes: Shapes, at: Device) -> tuple[Rows, float, float]:
    """(lines, best tokens/s, compile seconds) of training with as many chains as fit."""
    results: dict[int, tuple[absent.Compiled, Account]] = {}

    def memory(chains: int) -> int:
        try:
            results[chains] = compiled(training(shapes, chains, at), at)
        except absent.TooLarge as error:
            return max(error.needed, at.room + 1)
        return results[chains][0].memory

    if wanted := shapes.train_options.chains_per_program:
        needed = {wanted: memory(wanted)}
        most = wanted if needed[wanted] <= at.room else 0
    else:
        most, needed = autotune.largest(memory, at.room, shapes.chains)
    if not most:
        least = min(needed.values())
        raise ValueError(refusal(shapes, at, least, lambda other: training_bytes(other, at)))
    result, counted = results[most]
    each = ", ".join(f"{chains}: {human_size(size)}" for chains, size in sorted(needed.items()))
    tokens_per_second = most * shapes.fit.batch_size * shapes.time / counted.step.seconds
    rows = [
        (
            "training",
            f"{most} chain{'s' * (most > 1)} in a program of {shapes.fit.batch_size} x "
            f"{shapes.time} tokens each fit ({each}), compiled in {result.seconds:,.0f} s",
        ),
        (
            "training step",
            f"{step(counted.step, at)}; {tokens_per_second:,.0f} tokens/s at best",
        ),
    ]
    return rows, tokens_per_second, sum(compilation.seconds for compilation, _ in results.values())


def training(shapes: Shapes, chains: int, at: Device) -> Program:
    """Return the training program of `chains` chains."""
    placement = _placement(shapes, at)
    return programs.training(
        shapes.model_config,
        shapes.fit,
        chains,
        shapes.time,
        options=shapes.train_options,
        **placement,
    )


def _placement(shapes: Shapes, at: Device) -> dict[str, Any]:
    """The devices of a program, as keyword arguments of the makers in `lm.programs`.

    One device of a target, as chains on other devices need no communication; all of them where the
    base is sharded.
    """
    devices, target = at.devices, at.target
    if shapes.shard_base:
        target = target.for_sharded_base
        if at.card is not None:
            devices = absent.devices(at.card, at.card.devices)
    return {
        "dtype": shapes.dtype,
        "target": target,
        "devices": devices,
        "shard_base": shapes.shard_base,
    }


def training_bytes(shapes: Shapes, at: Device) -> int:
    """Return the bytes that training one chain needs on a target."""
    try:
        return absent.compile_program(training(shapes, 1, at), at.card).memory
    except absent.TooLarge as error:
        return max(error.needed, at.room + 1)


def refusal(shapes: Shapes, at: Device, needed: int, memory: Callable[[Shapes], int]) -> str:
    """Return the sentence for a model of which not even one chain fits.

    It says what is missing, and which single change would make it fit; they are tried one by one.

    Args:
        needed: bytes of one chain.
        memory: gives the bytes of one chain with other shapes.
    """
    helps = [name for name, other in _changes(shapes, at).items() if memory(other) <= at.room]
    if helps:
        advice = f"{' or '.join(helps)} would make it fit"
    else:
        advice = f"no single one of {', '.join(_CHANGEABLE)} makes it fit"
    return (
        f"config.models.pool: one chain of {shapes.name} needs {human_size(needed)} of "
        f"{human_size(at.room)} on {at.name}, {human_size(needed - at.room)} too many; {advice}"
    )


_CHANGEABLE = ("fit.remat", "fit.dtype", "fit.lora.rank", "fit.max_length", "run.shard_base")


def _changes(shapes: Shapes, at: Device) -> dict[str, Shapes]:
    """{what to set: the shapes with it} of single changes that may need less memory."""
    fit, rank, shorter = shapes.fit, shapes.fit.lora.rank, max(1, shapes.time // 2)
    changes: dict[str, Shapes] = {}
    if not fit.remat:
        less = fit.replace(remat=True)
        changes["config.fit.remat=true"] = shapes._replace(fit=less)
    if fit.dtype != "bfloat16":
        less = fit.replace(dtype="bfloat16")
        changes["config.fit.dtype=bfloat16 with config.models.dtype=bfloat16"] = shapes._replace(
            fit=less, dtype="bfloat16"
        )
    if fit.mode == "lora" and rank > 1:
        less = fit.replace(lora=fit.lora.replace(rank=rank // 2))
        changes[f"config.fit.lora.rank={rank // 2}"] = shapes._replace(fit=less)
    less = fit.replace(max_length=shorter)
    changes[f"config.fit.max_length={shorter}"] = shapes._replace(fit=less, time=shorter)
    several = at.card is not None and at.card.devices > 1
    if several and fit.mode == "lora" and not shapes.shard_base:
        changes["config.run.shard_base=true"] = shapes._replace(shard_base=True)
    return changes


def encoder_rows(encoder_config: EncoderConfig, at: Device, time: int = 256) -> Rows:
    """Return the lines of a batch of the sentence encoder, of `time` tokens at most."""
    length = min(time, encoder_config.core.max_seq_len)
    program = programs.encoding(encoder_config, length, target=at.target, devices=at.devices)
    return _lines("encoder", program, at)[0]


def estimate(shapes: Shapes, card: Card) -> Rows:
    """Return the arithmetic where there is no compiler.

    It is the memory of the usual number of chains, or of as many as fit, and the least time of a
    step.
    """
    rows = [_estimated_training(shapes, card)]
    if shapes.sample is not None:
        rows.append(_estimated_decoding(shapes, shapes.sample, card))
    return rows


def _estimated_training(shapes: Shapes, card: Card) -> tuple[str, str]:
    sizes, fit = sizes_of(shapes.model_config, shapes.fit.lora), shapes.fit
    frozen = fit.mode == "lora"

    def memory(chains: int) -> float:
        return roofline.training_memory(
            sizes,
            chains,
            fit.batch_size,
            shapes.time,
            base_width=jnp.dtype(shapes.dtype).itemsize,
            frozen=frozen,
            width=jnp.dtype(fit.dtype).itemsize,
            remat=fit.remat,
        )

    wanted = shapes.train_options.chains_per_program
    chains = min(wanted or autotune.default(card.platform), shapes.chains)
    while memory(chains) > card.room and chains > 1 and not wanted:
        chains = chains // 2
    needed = memory(chains)
    over = f", {human_size(needed - card.room)} more than there is" if needed > card.room else ""
    tokens = chains * fit.batch_size * shapes.time
    peak = card.peak if fit.dtype == "bfloat16" else card.peak32
    seconds = roofline.training_flops(sizes, tokens, shapes.time, frozen=frozen) / peak
    return (
        "training",
        f"{chains} chain{'s' * (chains > 1)} in a program: about {human_size(needed)} of "
        f"{human_size(card.room)}{over}, a step at least {_number(1e3 * seconds)} ms",
    )


def _estimated_decoding(shapes: Shapes, sample: SampleConfig, card: Card) -> tuple[str, str]:
    plan = _generation_plan(shapes, sample, complete(card.platform, card.shared_memory))
    moved = roofline.decoding_bytes(
        sizes_of(shapes.model_config, shapes.fit.lora),
        steps=1,
        rows=plan.slots,
        context=shapes.prompt + sample.max_new_tokens / 2,
        chains=plan.num_groups if shapes.fit.mode == "lora" else 0,
        width=jnp.dtype(shapes.generate_options.dtype).itemsize,
    )
    return (
        "decoding",
        f"{plan.slots} slots: a step at least {_number(1e3 * moved / card.bandwidth)} ms, "
        f"{_number(moved / 1e9)} GB read",
    )


def rows_of_model(rows: Sequence[tuple[str, str]], name: str) -> Rows:
    """Return the lines of one of several models, with its name in each."""
    return [(f"{label}, {name}", amount) for label, amount in rows]
