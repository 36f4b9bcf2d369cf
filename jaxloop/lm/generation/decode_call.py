"""One call of a decoding program: its input arrays are made here, and its outputs become texts.

Dimensions: N texts of a call on one device, Z cached prompts, P prompt cache length.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxloop.config.sections import SampleConfig
from jaxloop.core.keys import row_keys
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation import row_adapters
from jaxloop.lm.generation.decode_loop import decode
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.jobs import DeviceCall, PromptIds
from jaxloop.lm.generation.options import GenerateOptions
from jaxloop.lm.generation.prefill import prefill
from jaxloop.lm.generation.sampling import sampler_of
from jaxloop.lm.generation.slot_plan import SlotPlan
from jaxloop.lm.generation.slots import Completions, DecodeShape, Jobs, PromptCache, Requests
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora
from jaxloop.recursion.family import GenerateTask
from jaxloop.runtime.devices import platform_of
from jaxloop.runtime.setup_jit import setup_jit

# Packed adapters of a call, as its engine takes them, {projection: ...}.
CallAdapters = dict[str, Any]


@dataclass(frozen=True, eq=False)
class DecodeBatch:
    """Tasks that one decoding program generates for, in one or several calls.

    Attributes:
        model: the base model.
        params: the weights that all tasks use, layers unstacked.
        adapted: whether each task has an adapter beside them.
        tasks: all tasks of one `generate`; a call generates for some of them.
        prompt_ids: token ids of their prompts.
        sample: how texts are drawn.
        options: what `generate` was given beside `sample`.
        plan: number of slots and adapter groups, and sizes of calls.
        prompt_len: padded length of prompts, the last token included.
        shared_prompts: whether the rows of a chain share a few prompt caches.
        mesh: devices over which the chains are distributed, or None.
    """

    model: Model
    params: dict[str, Any]
    adapted: bool
    tasks: Sequence[GenerateTask]
    prompt_ids: PromptIds
    sample: SampleConfig
    options: GenerateOptions
    plan: SlotPlan
    prompt_len: int
    shared_prompts: bool
    mesh: Mesh | None

    @property
    def num_devices(self) -> int:
        return 1 if self.mesh is None else self.mesh.size

    @property
    def shape(self) -> DecodeShape:
        plan = self.plan
        return DecodeShape(
            num_groups=plan.num_groups,
            slots_per_group=-(-plan.slots // plan.num_groups),
            window=self.options.window or plan.window,
            max_new_tokens=self.sample.max_new_tokens,
            prompt_len=self.prompt_len - 1,
            shared_prompt=self.shared_prompts,
        )


class GeneratedText(NamedTuple):
    """A text of a task."""

    task: int
    row: int
    tokens: np.ndarray  # sampled tokens, EOS included
    ended: bool  # whether it ended with EOS

    @property
    def without_eos(self) -> list[int]:
        """Its tokens, but for the EOS that ended it."""
        tokens = self.tokens[:-1] if self.ended else self.tokens
        return tokens.tolist()


class CachedPrompts(NamedTuple):
    """The cached prompts of a call, and which of them each row of each job continues."""

    cache: PromptCache
    positions: list[list[np.ndarray]]  # [device][job]: [n] in the device's part


def pack_call_adapters(batch: DecodeBatch, devices: Sequence[DeviceCall]) -> CallAdapters:
    """Pack the adapters of a call's chains as its engine takes them.

    Every device has the same number of places for adapters; empty places repeat one of the
    adapters.
    """
    plan, model = batch.plan, batch.model
    some_chain = next(device.chains[0] for device in devices if device.chains)
    chains = []
    for device in devices:
        unused = plan.places_per_call - len(device.chains)
        chains += [*device.chains, *([some_chain] * unused)]
    adapters = [lora.as_adapter(batch.tasks[chain].weights, batch.options.lora) for chain in chains]
    stacked = lora.stack(adapters, np)
    if batch.mesh is not None:
        stacked = jax.device_put(stacked, NamedSharding(batch.mesh, PartitionSpec(AXIS)))
    if plan.engine == "rows":
        return _pack_for_rows(model.config, stacked, model.params["embed"].dtype)
    lora.check_dtype(model.params, batch.options.dtype, field="dtype")
    dtype = jnp.dtype(batch.options.dtype)
    return _pack_block_diagonal(model.config, stacked, dtype)


_pack_block_diagonal = setup_jit(
    functools.partial(lora.pack_adapters, layout="block_diagonal"), static_argnums=(0, 2)
)
_pack_for_rows = setup_jit(row_adapters.pack_for_rows, static_argnums=(0, 2))


def start_call(
    batch: DecodeBatch, adapters: CallAdapters | None, call: Sequence[DeviceCall]
) -> Completions:
    """Start one program on all devices, every array padded to the same size on each of them."""
    plan, model, shape = batch.plan, batch.model, batch.shape
    num_texts = _padded_texts(plan, call)
    if shape.shared_prompt:
        prompts = _cache_shared_prompts(batch, adapters, call)
    else:
        prompts = _cache_own_prompts(batch, adapters, call, num_texts)
    num_jobs = max(plan.jobs_per_call, max(len(device.jobs) for device in call))
    requests, jobs = _requests_and_jobs(batch, call, prompts.positions, num_texts, num_jobs)
    arrays = (model.config, batch.params, adapters, prompts.cache, requests, jobs)
    static = dict(
        sampler=sampler_of(batch.sample),
        shape=shape,
        eos=model.tokenizer.ends,
        mesh=batch.mesh,
    )
    if plan.engine == "rows":
        return decode_rows(*arrays, **static, implementation=plan.implementation)
    return decode(*arrays, **static, platform=platform_of(batch.params))


def _padded_texts(plan: SlotPlan, call: Sequence[DeviceCall]) -> int:
    """The number of texts to which a call's arrays are padded.

    Up to 4096 texts all calls of a plan have one size, so that they share a compiled program. Above
    that, a smaller call is padded to the next power of two.
    """
    most = max(device.num_texts for device in call)
    size = plan.texts_per_call
    if size > 4096:
        size = min(size, max(4096, 1 << (most - 1).bit_length()))
    return max(size, most)


def _requests_and_jobs(
    batch: DecodeBatch,
    call: Sequence[DeviceCall],
    prompt_index: list[list[np.ndarray]],
    num_texts: int,
    num_jobs: int,
) -> tuple[Requests, Jobs]:
    """The texts of a call and the jobs that they belong to, device after device."""
    num_devices = len(call)
    key = np.zeros((num_devices, num_texts, 2), np.uint32)
    prompt = np.zeros((num_devices, num_texts), np.int32)
    first, end, chain = (np.zeros((num_devices, num_jobs), np.int32) for _ in range(3))
    for d, device in enumerate(call):
        at = 0
        for j, job in enumerate(device.jobs):
            after, task = at + len(job.rows), batch.tasks[job.task]
            row_numbers = np.asarray(task.rows)[job.rows].astype(np.uint32)
            key[d, at:after] = np.asarray(_row_key_data(task.key, row_numbers))
            prompt[d, at:after] = prompt_index[d][j]
            first[d, j], end[d, j], chain[d, j] = at, after, device.chains.index(job.task)
            at = after
    limit = np.full(num_devices * num_texts, batch.sample.max_new_tokens, np.int32)
    requests = Requests(prompt=prompt.reshape(-1), key=key.reshape(-1, 2), limit=limit)
    return requests, Jobs(first=first.reshape(-1), end=end.reshape(-1), chain=chain.reshape(-1))


def _row_key_data(key, rows):
    return jax.random.key_data(row_keys(key, rows))


def texts_of_call(call: Sequence[DeviceCall], completions: Completions) -> Iterator[GeneratedText]:
    """Return the texts that a call generated."""
    texts_per_device = len(completions.length) // len(call)
    for d, device in enumerate(call):
        at = d * texts_per_device
        for job in device.jobs:
            for row in job.rows:
                tokens = np.asarray(completions.tokens[at, : completions.length[at]])
                yield GeneratedText(job.task, int(row), tokens, bool(completions.ended[at]))
                at += 1


def _prompt_table(
    batch: DecodeBatch, prompts: Mapping[int, Sequence[int]], count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [count, P + 1] and lengths [count] of prompts {row: token ids}.

    A prompt is padded with its last token. Rows without a prompt hold the padding token.
    """
    tokens = np.full((count, batch.prompt_len), batch.model.tokenizer.pad, np.int32)
    length = np.ones(count, np.int32)
    for row, prompt in prompts.items():
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) :] = prompt[-1]
        length[row] = len(prompt)
    return tokens, length


def _prefill(
    batch: DecodeBatch,
    adapters: CallAdapters | None,
    prompts: Mapping[int, Sequence[int]],
    count: int,
) -> PromptCache:
    tokens_ZP, length_Z = _prompt_table(batch, prompts, count)
    model, target = batch.model, batch.plan.target
    return prefill(model.config, batch.params, adapters, tokens_ZP, length_Z, batch.mesh, target)


def _cache_shared_prompts(
    batch: DecodeBatch, adapters: CallAdapters | None, call: Sequence[DeviceCall]
) -> CachedPrompts:
    """Cache the distinct prompts of each chain, padded to the same number for every chain."""
    ids = batch.prompt_ids
    places = 1 if adapters is None else lora.num_chains(adapters) // len(call)

    def place_of(device: DeviceCall, task: int) -> int:
        return device.chains.index(task) if places > 1 else 0

    distinct: dict[tuple[int, int], dict[tuple[int, ...], int]] = {}
    for d, device in enumerate(call):
        for job in device.jobs:
            numbers = distinct.setdefault((d, place_of(device, job.task)), {})
            # The rows of a queue of blocks have one prompt.
            rows = job.rows if batch.plan.engine == "rows" else job.rows[:1]
            for row in rows:
                numbers.setdefault(tuple(ids[job.task][row]), len(numbers))
    most = max(len(numbers) for numbers in distinct.values())
    per_place = 1 << (most - 1).bit_length()
    prompts = {
        (d * places + place) * per_place + number: prompt
        for (d, place), numbers in distinct.items()
        for prompt, number in numbers.items()
    }
    cache = _prefill(batch, adapters, prompts, len(call) * places * per_place)
    index: list[list[np.ndarray]] = []
    for d, device in enumerate(call):
        index.append([])
        for job in device.jobs:
            place = place_of(device, job.task)
            numbers = distinct[d, place]
            at = [place * per_place + numbers[tuple(ids[job.task][row])] for row in job.rows]
            index[-1].append(np.array(at, np.int32))
    return CachedPrompts(cache, index)


def _cache_own_prompts(
    batch: DecodeBatch, adapters: CallAdapters | None, call: Sequence[DeviceCall], num_texts: int
) -> CachedPrompts:
    """One cache per request, chain after chain: prompts of one chain share a prefill."""
    num_devices, slots = len(call), batch.shape.num_slots
    position: dict[tuple[int, int, int], int] = {}  # of (device, task, row)
    parts: list[PromptCache] = []
    for place in range(max(len(device.chains) for device in call)):
        texts_D = [_rows_of_chain(device, place) for device in call]
        adapter = None
        if adapters is not None:
            adapter = _adapters_at(adapters, num_devices, place)
        for start in range(0, max(map(len, texts_D)), slots):
            prompts = {}
            for d, texts in enumerate(texts_D):
                for r, (task, row) in enumerate(texts[start : start + slots]):
                    prompts[d * slots + r] = batch.prompt_ids[task][row]
                    position[d, task, row] = len(parts) * slots + r
            parts.append(_prefill(batch, adapter, prompts, num_devices * slots))
    filled = len(parts) * slots
    # Calls with fewer prompts are padded to one size, so that they share a compiled program.
    padded = (-(-num_texts // slots) - batch.plan.chains_per_call) * slots
    join = functools.partial(_join_parts, num_devices, max(0, padded - filled))
    index = [
        [
            np.array([position[d, job.task, row] for row in job.rows], np.int32)
            for job in call_d.jobs
        ]
        for d, call_d in enumerate(call)
    ]
    return CachedPrompts(jax.tree.map(join, *parts), index)


def _rows_of_chain(device: DeviceCall, place: int) -> list[tuple[int, int]]:
    """(task, row) of all texts of the chain at a place of a device."""
    if place >= len(device.chains):
        return []
    task = device.chains[place]
    return [(task, row) for job in device.jobs if job.task == task for row in job.rows]


def _adapters_at(adapters: CallAdapters, num_devices: int, place: int) -> CallAdapters:
    """The adapters at one place of every device."""
    return jax.tree.map(
        lambda leaf: leaf.reshape(num_devices, -1, *leaf.shape[1:])[:, place], adapters
    )


def _join_parts(num_devices: int, padding: int, *parts: jax.Array) -> jax.Array:
    """Arrays [devices * n, ...] joined device by device, with padding behind each."""
    by_device = [x.reshape(num_devices, -1, *x.shape[1:]) for x in parts]
    joined = jnp.concatenate(by_device, 1)
    joined = jnp.pad(joined, [(0, 0), (0, padding)] + [(0, 0)] * (joined.ndim - 2))
    return joined.reshape(-1, *joined.shape[2:])
