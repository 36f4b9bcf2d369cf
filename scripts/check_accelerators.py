"""What XLA makes of our programs for accelerators that are not here: does it compile, does it fit,
does a step do only what it must.

    # every program for an H100 and eight TPU v5e, one and eight devices
    python scripts/check_accelerators.py --layers=2
    # all 16 layers of Llama-3.2-1B's shapes
    python scripts/check_accelerators.py --targets=h100 --only=training --devices=1 --layers=0
    python scripts/check_accelerators.py --list

Needs the compilers: pip install 'jaxloop-lm[plan-gpu]' or [plan-tpu]; no accelerator. Each program
is made by the package's own code, compiled, and read as `jaxloop.accelerators.account` does. A row
fails where the program does not compile, needs more memory than its bound, holds float32 logits of
the whole batch, copies a whole layer's cache inside a step, scatters into a cache, or has a
collective in a loop. Prints a table and, as its last line, one JSON object. Exit codes: 0 all
passed, 1 not all did, 2 bad input or a missing compiler. Two layers take minutes, all of them an
hour.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import _root  # noqa: F401

from jaxloop.accelerators import cards

if TYPE_CHECKING:  # they import jax, which `keep_to_the_cpu` comes before
    from jaxloop.lm.model.config import ModelConfig
    from jaxloop.lm.target import Target

# GB of one device that a program may need, at 2 and at 16 layers, by platform; lines between. What
# is not named may need what the card gives.
BOUNDS = {
    ("gpu", "training"): (9.5, 55.0),
    ("gpu", "loss"): (2.2, 4.2),
    ("gpu", "prefill"): (0.9, 3.3),
    ("gpu", "decoding"): (3.0, 18.0),
    ("gpu", "beam"): (1.3, 5.8),
    ("gpu", "encoder"): (1.3, 1.3),
    ("tpu", "training"): (3.5, 13.0),
    ("tpu", "prefill"): (0.9, 3.3),
    ("tpu", "encoder"): (1.9, 1.9),
}
NAMES = ("training", "loss", "prefill", "decoding", "beam", "encoder", "metrics")


class Case(NamedTuple):
    """One program to compile: the elements of its whole batch's logits (0: it has none, or, beam
    search, adds float32 log-probabilities of few rows) and the bytes of one layer's cache (0: it
    has none).
    """

    make: Callable
    logits: int = 0
    cache: int = 0


def sizes(layers: int) -> "ModelConfig":
    """Llama-3.2-1B's shapes with so many layers (0: all 16)."""
    from jaxloop.studies.bench import setup
    from jaxloop.studies.bench.config import BenchConfig

    model_config = setup.model_config_of(BenchConfig(size="llama-1b"))
    return dataclasses.replace(model_config, num_layers=layers) if layers else model_config


def cases(layers: int, target: "Target", devices: Sequence) -> dict[str, list[Case]]:
    """The programs by name: training of 8 chains of 8 rows of 512 tokens on a GPU, of one on a TPU;
    writing at the defaults of a study, 1,024 slots and 300 tokens.
    """
    from jaxloop.accelerators.metric_programs import kernels
    from jaxloop.config import FitConfig, LoraConfig, SampleConfig
    from jaxloop.lm import programs
    from jaxloop.lm.encoder.config import read_encoder_config
    from jaxloop.lm.generation.options import GenerateOptions
    from jaxloop.metrics.embed import default_model

    model_config, lora, gpu = (
        sizes(layers),
        LoraConfig(rank=16, alpha=16.0),
        target.platform == "gpu",
    )
    fit = FitConfig(lora=lora, batch_size=8, dtype="bfloat16", max_length=512)
    sample, options = SampleConfig(), GenerateOptions(lora=lora, dtype="bfloat16")
    many: dict[str, Any] = dict(dtype="bfloat16", target=target, devices=devices)
    one = many | dict(devices=devices[:1])
    chains = 8 if gpu else 1
    writing = programs.generation_plan(model_config, sample, target, dtype="bfloat16")
    slots, window = (
        writing.slots,
        2 * writing.slots * model_config.num_kv_heads * writing.window * model_config.head_dim,
    )
    searched = (
        2
        * 16
        * model_config.num_kv_heads
        * sample.num_beams
        * sample.max_new_tokens
        * model_config.head_dim
    )
    encoder = read_encoder_config(default_model())
    return {
        "training": [
            Case(
                lambda: programs.training(model_config, fit, chains, 512, **many),
                chains * 8 * 511 * model_config.vocab_size,
            )
        ],
        "loss": [
            Case(
                lambda: programs.loss(model_config, fit, 512, **one),
                32 * 511 * model_config.vocab_size,
            )
        ],
        "prefill": [
            Case(lambda: programs.prefill(model_config, sample, 32, options=options, **many))
        ],
        "decoding": [
            Case(
                lambda: programs.decoding(model_config, sample, 32, options=options, **many),
                slots * model_config.vocab_size,
                window,
            )
        ],
        "beam": [
            Case(
                lambda: programs.beams(
                    model_config,
                    sample,
                    32,
                    dtype="bfloat16",
                    options=options,
                    devices=devices[:1],
                ),
                0,
                searched,
            )
        ],
        "encoder": [
            Case(lambda: programs.encoding(encoder, 128, target=target, devices=devices[:1]))
        ],
        "metrics": [Case(lambda program=program: program) for program in kernels(devices[:1])],
    }


def bound(card: cards.Card, name: str, layers: int) -> float:
    """Bytes that a program may need."""
    few, all_of_them = BOUNDS.get((card.platform, name), (0, 0))
    stated = 1e9 * (few + (all_of_them - few) * ((layers or 16) - 2) / 14)
    return min(stated, card.room) if few else card.room


def check(card: cards.Card, name: str, case: Case, layers: int, devices: int) -> dict:
    """One row: what the compiler says, and `faults`, empty where all is well."""
    from jaxloop.accelerators import absent, account

    row: dict[str, Any] = dict(target=card.name, devices=devices, program=name, layers=layers or 16)
    start = time.perf_counter()
    try:
        program = case.make()
        row["program"] = program.name
        compiled = absent.compile_program(program, card)
    except Exception as error:  # whatever the compiler raises is a row that fails
        return row | dict(
            seconds=time.perf_counter() - start,
            faults=[f"does not compile: {str(error).splitlines()[0][:200]}"],
        )
    found = account.account(compiled.text, account.rates_of(card))
    faults, most = [], bound(card, name, layers)
    if compiled.memory > most:
        faults.append(f"needs {compiled.memory / 1e9:.2f} GB, more than {most / 1e9:.2f}")
    if case.logits and account.widest(compiled.text, "f32") >= case.logits:
        faults.append("holds float32 logits of the whole batch")
    copies = [c for c in found.copies if c.place == "step" and case.cache and c.bytes >= case.cache]
    faults += [f"copies a cache in its step: {c.shape}" for c in copies[:1]]
    scattered = [
        s
        for s in found.scatters
        if case.cache and s.bytes >= case.cache and not s.shape.startswith("s32")
    ]
    faults += [f"scatters into a cache: {s.shape}" for s in scattered[:1]]
    faults += [f"{c.op} in a loop: {c.shape}" for c in found.collectives[:1]]
    cycles = account.seconds_of_cycles(found.step, card.clock)
    return row | dict(
        memory=compiled.memory,
        bound=int(most),
        compile_s=round(compiled.seconds, 1),
        cycles_ms=round(1e3 * cycles, 4),
        **account.as_row(found),
        faults=faults,
    )


def line(row: dict) -> str:
    """A row of the table."""
    head = f"{row['target']:<7}{row['devices']:>3}  {row['program']:<24}"
    if "step" not in row:
        return f"{head}{'; '.join(row['faults'])}"
    step = row["step"]
    numbers = (
        f"{row['memory'] / 1e9:>8.2f}{row['compile_s']:>8.1f}{step['kernels']:>9,}"
        f"{step['bytes'] / 1e9:>10.3f}{step['flops'] / 1e12:>10.3f}"
    )
    return (
        f"{head}{numbers}{step['roofline_ms']:>10.3f}{row['cycles_ms']:>10.3f}  "
        f"{'; '.join(row['faults']) or 'ok'}"
    )


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises ValueError, in one sentence, for what it does not know."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default="h100,v5e-8", help=f"of {', '.join(cards.CARDS)}")
    parser.add_argument("--only", default=",".join(NAMES), help=f"programs, of {', '.join(NAMES)}")
    parser.add_argument(
        "--devices",
        default="1,8",
        help="numbers of devices; only training, prefill and decoding are shared out",
    )
    parser.add_argument("--layers", type=int, default=2, help="layers of the decoder; 0: all 16")
    parser.add_argument("--list", action="store_true", help="say what would be compiled")
    found = parser.parse_args(argv)
    found.targets, found.only = found.targets.split(","), found.only.split(",")
    for name in found.targets:
        if name not in cards.CARDS:
            raise ValueError(f"--targets={name}: must be of {', '.join(cards.CARDS)}")
    for name in found.only:
        if name not in NAMES:
            raise ValueError(f"--only={name}: must be of {', '.join(NAMES)}")
    try:
        found.devices = [int(count) for count in found.devices.split(",")]
    except ValueError:
        raise ValueError(f"--devices={found.devices}: must be whole numbers with commas") from None
    if min(found.devices) < 1 or found.layers < 0:
        raise ValueError(
            "--devices and --layers: numbers of at least 1, and 0 for all layers, are allowed"
        )
    return found


def planned(asked: argparse.Namespace) -> list[tuple[str, int, str]]:
    """(target, devices, program) of every row group."""
    shared = ("training", "prefill", "decoding")
    return [
        (target, count, name)
        for target in asked.targets
        for count in asked.devices
        for name in asked.only
        if count == asked.devices[0] or name in shared
    ]


def main(argv: Sequence[str]) -> int:
    """Compile what the command line names; print each row when it is there."""
    try:
        asked = arguments(argv)
        work = planned(asked)
        if asked.list:
            print("\n".join(f"{target} x {count}: {name}" for target, count, name in work))
            return 0
        cards.keep_to_the_cpu()
        from jaxloop.accelerators import absent

        for target in asked.targets:
            absent.check(cards.CARDS[target].platform)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    from jaxloop.lm.target import complete

    print(
        f"{'target':<7}{'dev':>3}  "
        f"{'program':<24}{'GB':>8}{'compile':>8}{'kernels':>9}{'GB/step':>10}{'TFLOP':>10}"
        f"{'roof ms':>10}{'cycles':>10}  verdict"
    )
    rows = []
    for name, count, program in work:
        card = cards.CARDS[name]
        count = min(count, card.devices) if card.platform == "tpu" else count
        target = complete(card.platform, card.shared_memory)
        for case in cases(asked.layers, target, absent.devices(card, count))[program]:
            rows.append(check(card, program, case, asked.layers, count))
            print(line(rows[-1]), flush=True)
    failed = [row for row in rows if row["faults"]]
    print(
        json.dumps(
            dict(what="accelerators", layers=asked.layers or 16, rows=rows, failed=len(failed))
        )
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
