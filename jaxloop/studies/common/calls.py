"""How many chains the first calls of a run are for, before any rate is measured."""

import os
from collections.abc import Mapping

from jaxloop.config import ChainSection, FitConfig, SampleConfig
from jaxloop.lm.model.config import ModelConfig
from jaxloop.runtime import roofline
from jaxloop.runtime.devices import platform_of
from jaxloop.studies.common.config import PlanAssumptions
from jaxloop.studies.common.models import dtype_bytes, sizes, trains_adapters

# Seconds that a call may take: what a preempted job loses at most.
SECONDS = 300.0
# FLOP/s of one core of a CPU at the sizes that are trained there; slow ones reach it.
_FLOPS_OF_A_CORE = 2e9
# Texts that an accelerator writes at once, each reading the weights anew.
_WRITTEN_AT_ONCE = 256


def first_chains(
    shapes: Mapping[str, ModelConfig], chain: ChainSection, fit: FitConfig, sample: SampleConfig
) -> int:
    """Return how many chains surely take less than `SECONDS` in one call, at least 1.

    Texts are taken to be as long as they may be, and an accelerator as fast as plans assume; of the
    models the slowest counts.
    """
    slowest = max(_seconds(shape, chain, fit, sample) for shape in shapes.values())
    return max(1, int(SECONDS / slowest))


def _seconds(
    shape: ModelConfig, chain: ChainSection, fit: FitConfig, sample: SampleConfig
) -> float:
    """Seconds of one chain in the slower of its two calls: to train, or to write."""
    counts = sizes(fit, shape)
    frozen = trains_adapters(fit, chain.start)
    texts = max(chain.size, chain.first_size or 0)
    read = texts * (fit.epochs or 1) if fit.steps is None else fit.steps * fit.batch_size
    trained = int(read * fit.max_length)
    train = roofline.training_flops(counts, trained, fit.max_length, frozen=frozen)
    written = max(chain.size, chain.eval_texts) * sample.max_new_tokens
    context = sample.max_new_tokens / 2
    write = roofline.decoding_flops(counts, written, context)
    if platform_of() == "cpu":
        rate = _FLOPS_OF_A_CORE * (os.cpu_count() or 1)
        return max(train, write) / rate
    card = PlanAssumptions()
    moved = roofline.decoding_bytes(
        counts,
        written / _WRITTEN_AT_ONCE,
        _WRITTEN_AT_ONCE,
        context,
        chains=1,
        width=dtype_bytes(fit.dtype),
    )
    writing = max(write / card.flops, moved / card.bandwidth) / card.write_share
    return max(train / (card.flops * card.train_share), writing)
