"""Plans the sizes of decoding: slots, adapter groups, jobs and calls.

On a CPU the numbers are fixed. On an accelerator they follow from the device and the work: a slot
is of use only while there are texts for it, and as a chain's last texts end, its slots become idle
one by one, so that few texts get few slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp

from jaxloop.config.sections import SampleConfig
from jaxloop.lm.generation import ring_attention, row_kernels
from jaxloop.lm.generation.row_attention import cache_length
from jaxloop.lm.model.config import ModelConfig
from jaxloop.lm.model.sizes import sizes_of
from jaxloop.lm.target import Target

# With more slots, products with the weights get no faster on an H100; only the cache grows.
MAX_SLOTS = 1024
MIN_SLOTS = 64  # a step takes the same time with fewer
# Least texts per slot: slots that are idle at the end of a call then cost a tenth of its time.
TEXTS_PER_SLOT = {"rows": 24, "blocks": 48}
# Slots of an adapter group where there are no more chains than groups. A group that changes chains
# waits for its last text, and its other slots are idle meanwhile.
SLOTS_PER_ADAPTER = {"rows": 16, "blocks": 8}
# Most distinct prompts of a chain for which its rows share prompt caches.
MAX_SHARED_PROMPTS = 8
# On a CPU: parameters of a base whose adapters are small enough for many of them in a call.
SMALL_BASE = 20_000_000
# Steps of a window. In "blocks" a text waits for the next one, and caches are copied in each.
WINDOW = {"rows": 16, "blocks": 8}
# On a CPU, short texts of a base with so many parameters: a step takes so long that waiting costs
# more than copying and one more part of a sum.
SHORT_WINDOW = 4
SHORT_TEXT = 64
SLOW_BASE = 2_500_000
# On a CPU, (parameters of a base, texts per slot below which one program on all cores beats several
# side by side): each of several has idle slots of its own at the end, and the larger the products,
# the better they use all cores.
TEXTS_PER_SLOT_OF_A_PROGRAM = ((30_000_000, 7), (10_000_000, 4), (0, 1))
SLOT_CACHE_SHARE = 0.6  # share of a device's memory for the caches of slots
PROMPT_CACHE_SHARE = 0.1  # share for the caches of prompts that only one text has


@dataclass(frozen=True)
class SlotPlan:
    """The sizes of a `SampleConfig`, with a number for each that it leaves open (None).

    Attributes:
        target: device and kernels that all programs are compiled for.
        engine: "rows" (`decode_rows`) or "blocks" (`decode_loop`).
        implementation: implementation of the kernels of "rows" (see `decode_rows`); "" for
            "blocks".
        slots: texts generated at the same time, on one device by one program.
        slots_per_adapter: slots of an adapter group.
        texts_per_call: most texts of one call of a program.
        chains_per_call: most chains of one call.
        window: steps between two assignments of jobs to groups.
        texts_per_program: fewest texts for which one of several programs at a time is worth while.
    """

    target: Target
    engine: str
    implementation: str
    slots: int
    slots_per_adapter: int
    texts_per_call: int
    chains_per_call: int
    window: int
    texts_per_program: int

    @property
    def jobs_per_call(self) -> int:
        """Most jobs of a call, on one device."""
        return self.chains_per_call * (1 if self.engine == "rows" else MAX_SHARED_PROMPTS)

    @property
    def num_groups(self) -> int:
        return max(1, self.slots // self.slots_per_adapter)

    @property
    def places_per_call(self) -> int:
        """Places for adapters in a call, on one device.

        There are at least two where there are several groups, so that one chain alone runs the same
        program as among others.
        """
        return max(2, self.chains_per_call) if self.num_groups > 1 else 1


def plan_slots(
    sample: SampleConfig,
    config: ModelConfig,
    target: Target,
    texts: Sequence[int],
    *,
    dtype: str,
    memory: int | None = None,
    own_prompt_len: int = 0,
) -> SlotPlan:
    """Plan the decoding of chains that generate `texts` texts each on one device.

    Args:
        sample: every number that it gives is kept.
        config: config of the model.
        target: what the programs are made for.
        texts: texts of each chain.
        dtype: dtype of the cache.
        memory: bytes that programs may use on the device; None: not a limit.
        own_prompt_len: padded length of the prompts where each text has its own, whose cache a call
            holds until it ends; 0 where texts share a few prompts.
    """
    engine, implementation = choose_engine(sample, config, target, dtype)
    fixed = _is_fixed(target, engine)
    sizes = sizes_of(config)
    cache_bytes = sizes.cache * jnp.dtype(dtype).itemsize  # of a token
    chains, total = max(1, len(texts)), max(1, sum(texts))

    texts_per_call = sample.texts_per_call
    if texts_per_call is None:
        texts_per_call = 4096 if fixed else 65536
        if own_prompt_len and not fixed:
            texts_per_call = _texts_with_prompts(cache_bytes * own_prompt_len, memory)

    chains_per_call = sample.chains_per_call
    if chains_per_call is None:
        chains_per_call = min(64, _power_of_two_from(chains))
        if fixed:
            many = 64 if sizes.total <= SMALL_BASE else 16
            chains_per_call = min(many, 16 * -(-chains // 16))

    slots = sample.slots
    if slots is None:
        slots = 64
        if not fixed:
            slot_bytes = cache_bytes * cache_length(sample.max_new_tokens)
            slots = _worthwhile_slots(engine, min(total, texts_per_call), slot_bytes, memory)

    slots_per_adapter = sample.slots_per_adapter
    if slots_per_adapter is None:
        wanted = 8
        if not fixed:
            wanted = max(4, min(SLOTS_PER_ADAPTER[engine], slots // chains_per_call))
        slots_per_adapter = min(slots, wanted)

    return SlotPlan(
        target=target,
        engine=engine,
        implementation=implementation,
        slots=slots,
        slots_per_adapter=slots_per_adapter,
        texts_per_call=texts_per_call,
        chains_per_call=chains_per_call,
        window=window_of(config, target, engine, sample.max_new_tokens),
        texts_per_program=slots * (_texts_per_slot(sizes.total) if fixed else 1),
    )


def _texts_per_slot(parameters: int) -> int:
    return next(texts for least, texts in TEXTS_PER_SLOT_OF_A_PROGRAM if parameters >= least)


def window_of(config: ModelConfig, target: Target, engine: str, max_new_tokens: int) -> int:
    """Steps of a window of `engine` for texts of at most so many tokens."""
    short = max_new_tokens <= SHORT_TEXT and sizes_of(config).total >= SLOW_BASE
    return SHORT_WINDOW if short and _is_fixed(target, engine) else WINDOW[engine]


def _is_fixed(target: Target, engine: str) -> bool:
    """Whether sizes are those of a CPU, which do not follow the device. Of the two engines there
    "blocks" is the one that is used, "rows" is for tests.
    """
    return target.platform == "cpu" and engine == "blocks"


def _worthwhile_slots(engine: str, texts: int, slot_bytes: int, memory: int | None) -> int:
    """A power of two of slots for so many texts.

    It is no more than have room in `memory` with a cache of `slot_bytes` each.
    """
    wanted = _power_of_two_to(texts // TEXTS_PER_SLOT[engine])
    wanted = max(MIN_SLOTS, min(MAX_SLOTS, wanted))
    if memory is None:
        return wanted
    # The blocks of the other engine lie in a ring and are gathered beside it.
    copies = 1 if engine == "rows" else 2
    fitting = int(SLOT_CACHE_SHARE * memory // (slot_bytes * copies))
    return max(1, min(wanted, _power_of_two_to(fitting)))


def _texts_with_prompts(prompt_bytes: int, memory: int | None) -> int:
    """Texts of a call whose prompts have caches of their own, of so many bytes each."""
    fitting = math.inf if memory is None else PROMPT_CACHE_SHARE * memory / prompt_bytes
    return max(MIN_SLOTS, int(min(4096, fitting)))


def _power_of_two_from(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def _power_of_two_to(n: int) -> int:
    """The largest power of two that is at most `n`; 0 for 0."""
    return _power_of_two_from(n + 1) // 2


def choose_engine(
    sample: SampleConfig, config: ModelConfig, target: Target, dtype: str
) -> tuple[str, str]:
    """Return the engine that `sample.engine` means for a target, and the implementation of its
    kernels.

    Raises:
        ValueError: "rows" was asked for on a GPU whose kernels do not serve this model.
    """
    if target.platform == "tpu":
        kernel = target.rows and ring_attention.fits(config, dtype)
        rings = "ring"
        if kernel:
            rings = "ring_fused" if target.products else "ring_pallas"
        return ("blocks", "") if sample.engine == "blocks" else ("rows", rings)
    if sample.engine == "rows" and target.platform == "cpu":
        return "rows", "plain"
    possible = target.rows and row_kernels.fits(config, dtype, target.shared_memory)
    if sample.engine == "rows" and not possible:
        raise ValueError(
            "sample.engine: 'rows' is not possible with this model on this GPU (head size "
            f"{config.head_dim}, {dtype}); choose auto or blocks"
        )
    if possible and sample.engine != "blocks":
        return "rows", "fused" if target.products else "pallas"
    return "blocks", ""
