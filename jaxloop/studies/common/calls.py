"""How many chains the first calls of a run are for, before any rate is measured.

A call can be for one model at least: where training that takes longer, so does the call, and plans
say it.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from jaxloop.config import ChainSection, FitConfig, SampleConfig
from jaxloop.lm.model.config import ModelConfig
from jaxloop.recursion.progress import duration
from jaxloop.runtime import roofline
from jaxloop.runtime.devices import platform_of
from jaxloop.studies.common.config import PlanAssumptions
from jaxloop.studies.common.factors import short_name
from jaxloop.studies.common.models import dtype_bytes, sizes, trains_adapters, variants

# Seconds that a call may take: what a preempted job loses at most.
SECONDS = 300.0
# FLOP/s of one core of a CPU at the sizes that are trained there; slow ones reach it.
_FLOPS_OF_A_CORE = 2e9
# Texts that an accelerator writes at once, each reading the weights anew.
_WRITTEN_AT_ONCE = 256


class Work(NamedTuple):
    """What one chain does in a generation.

    Attributes:
        read: tokens that it is trained on.
        length: tokens of a training text, at most.
        written: tokens that it writes.
        context: tokens before a written one, on average.
        frozen: whether only adapters are trained.
    """

    read: float
    length: int
    written: float = 0.0
    context: float = 0.0
    frozen: bool = False


def first_chains(
    shapes: Mapping[str, ModelConfig], chain: ChainSection, fit: FitConfig, sample: SampleConfig
) -> int:
    """Return how many chains surely take less than `SECONDS` in one call, at least 1.

    Texts are taken to be as long as they may be, and an accelerator as fast as plans assume; of the
    models, and of the levels of factors, the slowest counts.
    """
    size = max(chain.factors.get("size", (chain.size,)))
    starts = chain.factors.get("start", (chain.start,))
    found = []
    for own_fit, own_sample in variants(fit, sample, chain.factors):
        work = Work(
            read=trained_tokens(own_fit, max(size, chain.first_size or 0)),
            length=own_fit.max_length,
            written=max(size, chain.eval_texts) * own_sample.max_new_tokens,
            context=own_sample.max_new_tokens / 2,
            frozen=all(trains_adapters(own_fit, start) for start in starts),
        )
        found += [chains_in_time(shape, work, own_fit) for shape in shapes.values()]
    return min(found)


def trained_tokens(fit: FitConfig, texts: int) -> int:
    """Return the tokens that a chain is trained on, of `texts` texts as long as they may be."""
    read = texts * (fit.epochs or 1) if fit.steps is None else fit.steps * fit.batch_size
    return int(read * fit.max_length)


def chains_in_time(shape: ModelConfig, work: Work, fit: FitConfig) -> int:
    """Return how many chains on a model surely take less than `SECONDS` in one call, at least 1."""
    return max(1, int(SECONDS / seconds_of(shape, work, fit, platform_of())))


def seconds_of(shape: ModelConfig, work: Work, fit: FitConfig, platform: str) -> float:
    """Return the seconds of one chain in the slower of its two calls: to train, or to write.

    platform: "cpu", or one that is as fast as the card that plans assume.
    """
    counts = sizes(fit, shape)
    train = roofline.training_flops(counts, int(work.read), work.length, frozen=work.frozen)
    write = roofline.decoding_flops(counts, int(work.written), work.context)
    if platform == "cpu":
        rate = _FLOPS_OF_A_CORE * (os.cpu_count() or 1)
        return max(train, write) / rate
    card = PlanAssumptions()
    moved = roofline.decoding_bytes(
        counts,
        work.written / _WRITTEN_AT_ONCE,
        _WRITTEN_AT_ONCE,
        work.context,
        chains=1,
        width=dtype_bytes(fit.dtype),
    )
    writing = max(write / card.flops, moved / card.bandwidth) / card.write_share
    return max(train / (card.flops * card.train_share), writing)


def plan_row(models: Mapping[str, tuple[ModelConfig, Work]], fit: FitConfig) -> tuple[str, str]:
    """Return the row of a plan about the longest calls on the card that plans assume.

    models: {model: its shape, what a chain on it does}.
    """
    parts = []
    for name, (shape, work) in models.items():
        one = seconds_of(shape, work, fit, "gpu")
        members = max(1, int(SECONDS / one))
        parts.append(f"{members:,} of {short_name(name)} (about {duration(members * one)})")
    what = f"models in a call, which a signal waits for, on an {PlanAssumptions().device}"
    return "calls", f"{what}: {', '.join(parts)}, at most"
