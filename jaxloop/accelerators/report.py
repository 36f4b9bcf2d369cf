"""What a target would do with a study's programs: memory, chains that fit, compile seconds and
rooflines, as lines of a plan.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxloop.accelerators import absent, account
from jaxloop.accelerators.account import Account, Rates, Totals
from jaxloop.accelerators.cards import Card
from jaxloop.lm import programs
from jaxloop.lm.encoder.config import EncoderSpec
from jaxloop.lm.generation.scheduler import SampleSettings
from jaxloop.lm.model.config import Spec
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.programs import Program
from jaxloop.lm.sharding import device_bytes
from jaxloop.lm.target import Target, complete
from jaxloop.lm.training import autotune
from jaxloop.lm.training.step import FitSettings
from jaxloop.runtime import roofline
from jaxloop.runtime.atomic_io import human_size
from jaxloop.runtime.log import LOGGER

Rows = list[tuple[str, str]]


class Shapes(NamedTuple):
    """The programs of one base model. time: tokens of a training row, prompt: of a padded prompt;
    chains: how many a program may hold at most; dtype: of the base. sample: None where nothing is
    written. cut_base: the base is cut over all devices of a target.
    """

    name: str
    spec: Spec
    dtype: str
    fit: FitSettings
    sample: SampleSettings | None
    time: int
    prompt: int
    chains: int
    cut_base: bool = False


class Device(NamedTuple):
    """A target as a plan uses it: its card (None: this CPU), a device for the compiler, the bytes
    that programs may use, and its rates.
    """

    name: str
    card: Card | None
    devices: list
    room: int
    rates: Rates
    target: Target


class Best(NamedTuple):
    """The fastest that a target can be, by rooflines: tokens/s of training and of writing on one
    device (0: not counted), compile seconds.
    """

    trained: float
    written: float
    seconds: float


def device(name: str, card: Card | None, dtype: str) -> Device:
    """The target of that name. Raises `absent.Missing` where its compiler is not installed."""
    found = absent.devices(card)
    if card is None:
        limits = roofline.measure_limits(jnp.dtype(dtype))
        return Device(
            name,
            None,
            found,
            device_bytes(found[0]),
            Rates(limits.bandwidth, limits.flops, limits.flops, limits.flops),
            Target("cpu"),
        )
    return Device(name, card, found, card.room, account.rates_of(card), complete(card.platform))


def told(at: Device) -> tuple[str, str]:
    """The line that says what a target is."""
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
    """What the compiler says of a program for a target, and the program's account. Raises
    `absent.TooLarge`.
    """
    LOGGER.info("compiling %s for %s", program.name, at.name)
    found = absent.compile_program(program, at.card)
    return found, account.account(found.text, at.rates)


def model_rows(shapes: Shapes, at: Device) -> tuple[Rows, Best]:
    """Lines of all programs of a base model, and the best that they allow. Raises ValueError where
    not one chain fits, with what would help.
    """
    rows, trained, seconds = _training(shapes, at)
    common = _where(shapes, at)
    others = [programs.loss(shapes.spec, shapes.fit, shapes.time, **common)]
    written = 0.0
    if shapes.sample is not None:
        adapted = shapes.fit.mode == "lora"
        if shapes.sample.decoder == "beam":
            others.append(
                programs.beams(
                    shapes.spec,
                    shapes.sample,
                    shapes.prompt,
                    dtype=shapes.dtype,
                    devices=at.devices,
                )
            )
        else:
            writing = (shapes.spec, shapes.sample, shapes.prompt)
            others += [
                make(*writing, adapted=adapted, **common)
                for make in (programs.prefill, programs.decoding)
            ]
    for program in others:
        more, found, spent = _lines(program.name, program, at)
        rows, seconds = rows + more, seconds + spent
        if program.name == "decoding" and found is not None:
            slots = programs.writing_plan(shapes.spec, shapes.sample, common["target"]).slots
            written = slots / found.step.seconds
            rows[-1] = (
                rows[-1][0],
                f"{rows[-1][1]}; {slots} slots, {written:,.0f} tokens/s at best",
            )
    return rows, Best(trained, written, seconds)


def _lines(label: str, program: Program, at: Device) -> tuple[Rows, Account | None, float]:
    """(lines, account, compile seconds) of a program; one line where it does not fit."""
    try:
        found, counted = compiled(program, at)
    except absent.TooLarge as error:
        return [(label, f"does not fit: {error}")], None, 0.0
    fits = (
        ""
        if found.memory <= at.room
        else f", {human_size(found.memory - at.room)} more than there is"
    )
    parts = f"arguments {human_size(found.arguments)}, temporary {human_size(found.temporary)}"
    rows = [
        (
            label,
            f"{human_size(found.memory)} a device{fits} ({parts}), compiled in "
            f"{found.seconds:,.0f} s",
        ),
        (f"{label} step", step(counted.step, at)),
    ]
    return rows, counted, found.seconds


def _number(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def step(totals: Totals, at: Device) -> str:
    """A step in words: its roofline, by kinds, and what it moves."""
    kinds = ", ".join(f"{kind} {_number(1e3 * s)}" for kind, s in totals.kinds.most_common())
    clock = (
        f"; {_number(1e3 * account.seconds_of_cycles(totals, at.card.clock))} ms by XLA's cycles"
        if totals.cycles and at.card
        else ""
    )
    return (
        f"at least {_number(1e3 * totals.seconds)} ms ({kinds}){clock}; {totals.kernels:,} "
        f"kernels, {_number(totals.bytes / 1e9)} GB"
    )


def _training(shapes: Shapes, at: Device) -> tuple[Rows, float, float]:
    """(lines, best tokens/s, compile seconds) of training with as many chains as fit."""
    made: dict[int, tuple[absent.Compiled, Account]] = {}

    def memory(chains: int) -> int:
        try:
            made[chains] = compiled(training(shapes, chains, at), at)
        except absent.TooLarge as error:
            return max(error.needed, at.room + 1)
        return made[chains][0].memory

    if shapes.fit.chains_at_once:
        most, found = (
            shapes.fit.chains_at_once,
            {shapes.fit.chains_at_once: memory(shapes.fit.chains_at_once)},
        )
        most = most if found[most] <= at.room else 0
    else:
        most, found = autotune.largest(memory, at.room, shapes.chains)
    if not most:
        raise ValueError(
            refusal(shapes, at, min(found.values()), lambda changed: training_bytes(changed, at))
        )
    program, counted = made[most]
    each = ", ".join(f"{chains}: {human_size(size)}" for chains, size in sorted(found.items()))
    tokens = most * shapes.fit.batch_size * shapes.time
    rows = [
        ("training", f"{most} chain{'s' * (most > 1)} in a program of {shapes.fit.batch_size} x "
            f"{shapes.time} tokens each fit ({each}), "
         f"compiled in {program.seconds:,.0f} s"),
        ("training step", f"{step(counted.step, at)}; {tokens / counted.step.seconds:,.0f} "
            "tokens/s at best"),
    ]  # fmt: skip
    return rows, tokens / counted.step.seconds, sum(c.seconds for c, _ in made.values())


def training(shapes: Shapes, chains: int, at: Device) -> Program:
    """The training program of `chains` chains."""
    return programs.training(shapes.spec, shapes.fit, chains, shapes.time, **_where(shapes, at))


def _where(shapes: Shapes, at: Device) -> dict:
    """On one device of a target, as chains that are shared out need no other; on all where the base
    is cut.
    """
    devices = (
        absent.devices(at.card, at.card.devices)
        if shapes.cut_base and at.card is not None
        else at.devices
    )
    target = at.target.for_a_cut_base if shapes.cut_base else at.target
    return dict(dtype=shapes.dtype, target=target, devices=devices, cut_base=shapes.cut_base)


def training_bytes(shapes: Shapes, at: Device) -> int:
    """Bytes that training one chain needs on a target."""
    try:
        return absent.compile_program(training(shapes, 1, at), at.card).memory
    except absent.TooLarge as error:
        return max(error.needed, at.room + 1)


def refusal(shapes: Shapes, at: Device, needed: int, memory: Callable[[Shapes], int]) -> str:
    """The sentence for a model that does not fit with one chain: what is missing, and which single
    change, tried one by one, would make it fit. `memory`: bytes of one chain with other shapes.
    """
    fit, rank = shapes.fit, shapes.fit.lora.rank
    short, lower = max(1, shapes.time // 2), fit.mode == "lora" and rank > 1
    changed = {
        "config.fit.remat=true": None if fit.remat else dataclasses.replace(fit, remat=True),
        "config.fit.dtype=bfloat16 with config.models.dtype=bfloat16": None if fit.dtype == "bfloat16" else dataclasses.replace(fit, dtype="bfloat16"),
        f"config.fit.lora.rank={rank // 2}": dataclasses.replace(fit, lora=dataclasses.replace(fit.lora, rank=rank // 2)) if lower else None,
        f"config.fit.max_length={short}": dataclasses.replace(fit, max_length=short),
    }  # fmt: skip
    helps = []
    for name, other in changed.items():
        if other is not None:
            dtype = "bfloat16" if "models.dtype" in name else shapes.dtype
            time = short if "max_length" in name else shapes.time
            helps += (
                [name]
                if memory(shapes._replace(fit=other, dtype=dtype, time=time)) <= at.room
                else []
            )
    several = (
        at.card is not None and at.card.devices > 1 and fit.mode == "lora" and not shapes.cut_base
    )
    if several and memory(shapes._replace(cut_base=True)) <= at.room:
        helps.append("config.run.cut_base=true")
    missing = (
        f"one chain of {shapes.name} needs {human_size(needed)} of {human_size(at.room)} on "
        f"{at.name}, {human_size(needed - at.room)} too many"
    )
    return (
        f"config.models.pool: {missing}; "
        f"{' or '.join(helps) + ' would make it fit' if helps else 'no single one of ' + ', '.join(_ALL) + ' makes it fit'}"
    )


_ALL = ("fit.remat", "fit.dtype", "fit.lora.rank", "fit.max_length", "run.cut_base")


def encoder_rows(spec: EncoderSpec, at: Device, time: int = 256) -> Rows:
    """Lines of a batch of the sentence encoder."""
    return _lines(
        "encoder",
        programs.encoding(spec, min(time, spec.core.context), target=at.target, devices=at.devices),
        at,
    )[0]


def estimate(shapes: Shapes, card: Card) -> Rows:
    """The arithmetic where there is no compiler: memory of the usual number of chains, or of as
    many as fit, and the least a step takes.
    """
    sizes, fit = sizes_of(shapes.spec, shapes.fit.lora), shapes.fit
    chains = min(fit.chains_at_once or autotune.default(card.platform), shapes.chains)
    frozen, width = fit.mode == "lora", jnp.dtype(fit.dtype).itemsize
    common = dict(
        base_width=jnp.dtype(shapes.dtype).itemsize, frozen=frozen, width=width, remat=fit.remat
    )
    needed = roofline.training_memory(sizes, chains, fit.batch_size, shapes.time, **common)
    while needed > card.room and chains > 1 and not fit.chains_at_once:
        chains = chains // 2
        needed = roofline.training_memory(sizes, chains, fit.batch_size, shapes.time, **common)
    over = f", {human_size(needed - card.room)} more than there is" if needed > card.room else ""
    tokens, peak = (
        chains * fit.batch_size * shapes.time,
        card.peak if fit.dtype == "bfloat16" else card.peak32,
    )
    seconds = roofline.training_flops(sizes, tokens, shapes.time, frozen=frozen) / peak
    memory = f"about {human_size(needed)} of {human_size(card.room)}{over}"
    rows = [
        (
            "training",
            f"{chains} chain{'s' * (chains > 1)} in a program: {memory}, a step at least "
            f"{_number(1e3 * seconds)} ms",
        )
    ]
    if shapes.sample is not None:
        writing, context = (
            programs.writing_plan(shapes.spec, shapes.sample, complete(card.platform)),
            shapes.prompt + shapes.sample.max_new_tokens / 2,
        )
        slots, lanes = writing.slots, writing.lanes if frozen else 0
        moved = roofline.decoding_bytes(
            sizes, 1, slots, context, chains=lanes, width=jnp.dtype(shapes.sample.dtype).itemsize
        )
        rows.append(
            (
                "decoding",
                f"{slots} slots: a step at least {_number(1e3 * moved / card.bandwidth)} ms, "
                f"{_number(moved / 1e9)} GB read",
            )
        )
    return rows


def unique(rows: Sequence[tuple[str, str]], name: str) -> Rows:
    """Lines of one of several models, said so."""
    return [(f"{label}, {name}", amount) for label, amount in rows]
