"""Writing the texts of many chains: requests to jobs, prompts to caches, one decoding program,
tokens to texts.

Dimensions: as in `decode.py`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxloop.core.keys import row_keys
from jaxloop.core.map_chains import AXIS
from jaxloop.lm.generation import decode_loop, row_kernels
from jaxloop.lm.generation.beam import beam_search
from jaxloop.lm.generation.decode_rows import decode_rows
from jaxloop.lm.generation.sampling import Sampler
from jaxloop.lm.generation.slot_plan import ENGINES, Device, Plan, calls, share_out
from jaxloop.lm.generation.slot_plan import plan as plan_of
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.model import lora as adapters
from jaxloop.lm.model.lora import Lora
from jaxloop.lm.sharding import device_bytes, devices_of, like, mesh_of, programs_on
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.autotune import halved, is_out_of_memory
from jaxloop.runtime.devices import platform_of, side_by_side
from jaxloop.runtime.log import LOGGER
from jaxloop.runtime.setup_jit import setup_jit

FEW = 8  # distinct prompts of a chain up to which their caches are shared by its rows


@dataclass(frozen=True)
class SampleSettings:
    """How a generation writes. Defaults follow the code of the recursive-loops study (section 1).

    decoder: "sample", "greedy" or "beam". engine: where caches lie, "rows" (a GPU's kernels),
    "blocks", or "auto". slots: texts written at the same time, in lanes of `lane_slots` that hold
    one adapter each. programs: how many write at the same time on one device, each with its own
    slots (0: one for every core of a CPU, at most 8, and 1 elsewhere). window: steps between two
    refills of lanes. texts_per_job: texts of a chain that one lane writes in a row, in "blocks".
    texts_per_call and chains_per_call are the padded sizes of a program. max_prompt: padded prompt
    length in tokens (0: the smallest bucket that fits). Numbers that are 0 are planned
    (`sample_plan`). None of these changes what is drawn, only how fast; where `slots` is planned,
    products of another height may round differently.
    """

    decoder: str = "sample"
    temperature: float = 1.5
    min_p: float = 0.2
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    beams: int = 4
    max_new_tokens: int = 300
    dtype: str = "float32"
    lora: Lora = Lora()
    engine: str = "auto"
    slots: int = 0
    lane_slots: int = 0
    programs: int = 0
    window: int = 16
    texts_per_job: int = 0
    texts_per_call: int = 0
    chains_per_call: int = 0
    max_prompt: int = 0

    def __post_init__(self):
        if self.decoder not in ("sample", "greedy", "beam"):
            raise ValueError(
                f"sample.decoder: {self.decoder!r} is not allowed; choose one of sample, greedy, "
                "beam"
            )
        if self.engine not in ENGINES:
            raise ValueError(
                f"sample.engine: {self.engine!r} is not allowed; choose one of {', '.join(ENGINES)}"
            )
        for name in ("beams", "max_new_tokens", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample.{name}: {getattr(self, name)} is not allowed; at least 1")
        for name in (
            "slots",
            "lane_slots",
            "programs",
            "texts_per_job",
            "texts_per_call",
            "chains_per_call",
            "max_prompt",
        ):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"sample.{name}: {getattr(self, name)} is not allowed; at least 1, or 0 to "
                    "have it planned"
                )
        _ = self.sampler

    @property
    def sampler(self) -> Sampler:
        return Sampler(
            self.temperature,
            self.min_p,
            self.top_p,
            self.top_k,
            self.repetition_penalty,
            greedy=self.decoder == "greedy",
        )


class SampleTask(NamedTuple):
    """Texts for one chain to write: one per prompt [n]; `rows` [n] name the rows, so that their
    random numbers are their own.
    """

    key: jax.Array
    weights: Any
    prompts: Sequence[str]
    rows: np.ndarray


class SampleResult(NamedTuple):
    """Texts [n] (special tokens dropped, not stripped), sampled tokens [n] (EOS included), and
    whether each ended by itself.
    """

    texts: list[str]
    tokens: np.ndarray
    finished: np.ndarray


def sample(
    model: Model, tasks: Sequence[SampleTask], settings: SampleSettings
) -> list[SampleResult]:
    """Write every task's texts. Raises ValueError where a prompt and `max_new_tokens` do not fit
    the model's context.
    """
    ids = [batching.encode_prompts(model.tokenizer, t.prompts) for t in tasks]
    longest = max((len(p) for task in ids for p in task), default=1)
    if longest + settings.max_new_tokens > model.spec.context:
        raise ValueError(
            f"sample.max_new_tokens: {settings.max_new_tokens} after a prompt of {longest} "
            "tokens exceed the context of "
            f"{model.name or model.spec.architecture}, {model.spec.context} tokens; lower it"
        )
    if 0 < settings.max_prompt < longest:
        raise ValueError(
            f"sample.max_prompt: {settings.max_prompt} is not allowed; the longest prompt has "
            f"{longest} tokens"
        )
    tokens: list[list] = [[None] * len(t.prompts) for t in tasks]
    ended: list[np.ndarray] = [np.zeros(len(t.prompts), bool) for t in tasks]
    if settings.decoder == "beam":
        _beam(model, tasks, ids, settings, tokens, ended)
    else:
        own = [i for i, t in enumerate(tasks) if t.weights is not None and "embed" in t.weights]
        for i in own:  # all weights are the chain's own: nothing to share, one chain after another
            params = like(
                model,
                jax.tree.map(lambda w: jnp.asarray(w).astype(settings.dtype), tasks[i].weights),
            )
            _write(
                model,
                decode_loop.unstack(params),
                False,
                tasks,
                ids,
                [i],
                settings,
                longest,
                tokens,
                ended,
            )
        for adapted in (False, True):
            chosen = [
                i
                for i, t in enumerate(tasks)
                if i not in own and (t.weights is not None) == adapted
            ]
            if chosen:
                _write(
                    model,
                    _unstacked(model.params),
                    adapted,
                    tasks,
                    ids,
                    chosen,
                    settings,
                    longest,
                    tokens,
                    ended,
                )
    out = []
    for i in range(len(tasks)):
        bare = [t[:-1] if done else t for t, done in zip(tokens[i], ended[i])]
        out.append(
            SampleResult(
                model.tokenizer.decode(bare),
                np.array([len(t) for t in tokens[i]], np.int64),
                ended[i],
            )
        )
    return out


_unstacked = setup_jit(decode_loop.unstack)


def _pool(model, tasks, devices: list[Device], settings, plan: Plan):
    """Adapters of a call's chains, `chains_per_call` places a device (at least two, so that one
    chain runs as among others).
    """
    places = max(2, plan.chains_per_call) if plan.lanes > 1 else 1
    some = tasks[next(d.chains[0] for d in devices if d.chains)].weights
    padded = [
        w
        for d in devices
        for w in [*(tasks[i].weights for i in d.chains), *([some] * (places - len(d.chains)))]
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *padded)
    mesh = mesh_of(model)
    if mesh is not None:
        stacked = jax.device_put(stacked, NamedSharding(mesh, PartitionSpec(AXIS)))
    if plan.engine == "rows":
        return _lay_out(model.spec, stacked, settings.lora.scale, model.params["embed"].dtype)
    return _fuse(model.spec, stacked, settings.lora, jnp.dtype(settings.dtype))


_fuse = setup_jit(functools.partial(adapters.fuse, block_diagonal=True), static_argnums=(0, 2, 3))
_lay_out = setup_jit(row_kernels.pool, static_argnums=(0, 2, 3))


def _write(model, params, adapted, tasks, ids, chosen, settings, longest, tokens, ended):
    """`_write_with` as many slots as the device's memory holds: half as many after each lack of it."""
    mesh = mesh_of(model) if params is not None and _on_mesh(params) else None
    devices = 1 if mesh is None else mesh.size
    device = next(iter(devices_of(model)))
    counts = sorted((len(ids[i]) for i in chosen), reverse=True)[::devices]
    shared = all(len(set(map(tuple, ids[i]))) <= FEW for i in chosen)
    length = settings.max_prompt or batching.bucket(longest)
    target, own = target_of(model.spec, model.params, mesh), 0 if shared else length
    plan = plan_of(settings, model.spec, target, counts, device_bytes(device), own)
    while True:
        try:
            return _write_with(
                model,
                params,
                adapted,
                tasks,
                ids,
                chosen,
                settings,
                plan,
                mesh,
                length,
                shared,
                tokens,
                ended,
            )
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fewer = halved(
                error,
                plan.slots,
                "sample.slots",
                "lower sample.max_new_tokens or choose a smaller base",
            )
            plan = dataclasses.replace(plan, slots=fewer, lane_slots=min(plan.lane_slots, fewer))


def _write_with(
    model,
    params,
    adapted,
    tasks,
    ids,
    chosen,
    settings,
    plan: Plan,
    mesh,
    length,
    shared,
    tokens,
    ended,
):
    """Run the decoding program over the rows of the chosen tasks; `adapted`: their weights are
    adapters.
    """
    devices = 1 if mesh is None else mesh.size
    shape = decode_loop.Shape(
        plan.lanes,
        -(-plan.slots // plan.lanes),
        settings.window,
        settings.max_new_tokens,
        length - 1,
        shared,
    )
    size = (plan.chains_per_call if plan.lanes > 1 or not adapted else 1) * devices
    together = programs_on(model, settings.programs)
    done = _Done(tokens, ended, steps=[])
    for at in range(0, len(chosen), size):
        work = share_out(ids, chosen[at : at + size], shared, plan, devices)
        pool = _pool(model, tasks, work, settings, plan) if adapted else None
        side_by_side(
            functools.partial(_start, model, params, pool, tasks, ids, shape, settings, plan, mesh),
            functools.partial(_take, done),
            calls(work, plan.texts_per_call, plan.lanes, together),
            together,
        )
    _tell(done, [tokens[i] for i in chosen], shape)


class _Done(NamedTuple):
    """Where programs put what they wrote, and the steps that each device ran."""

    tokens: list
    ended: list
    steps: list


def _tell(done: _Done, tokens, shape):
    """The share of the slots' steps that wrote a token of a text, in run.log."""
    steps, texts = sum(done.steps), sum(map(len, tokens))
    useful = sum(len(text) for mine in tokens for text in mine)
    if steps:
        share = useful / (steps * shape.rows)
        LOGGER.info(
            "decoding: %s texts in %d slots, %s steps, occupancy %.2f",
            f"{texts:,}",
            shape.rows,
            f"{steps:,}",
            share,
        )


def _on_mesh(params) -> bool:
    sharding = jax.tree.leaves(params)[0].sharding
    return isinstance(sharding, NamedSharding) and AXIS in sharding.mesh.axis_names


def _start(
    model, params, pool, tasks, ids, shape, settings, plan: Plan, mesh, call: list[Device]
) -> decode_loop.Written:
    """Start one program: all devices' jobs, every array padded to the same size on each device."""
    texts = max(
        [_padded(plan, call), *(sum(len(job.rows) for job in device.jobs) for device in call)]
    )
    prompts, prompt_of = _prompts(model, params, pool, ids, call, shape, texts, plan, mesh)
    keys, which = np.zeros((len(call), texts, 2), np.uint32), np.zeros((len(call), texts), np.int32)
    places = (
        max(plan.chains_per_call, max(len(device.jobs) for device in call))
        if plan.engine == "rows"
        else texts
    )
    first, end, chain = (np.zeros((len(call), places), np.int32) for _ in range(3))
    for d, device in enumerate(call):
        at = 0
        for j, job in enumerate(device.jobs):
            n, task = len(job.rows), tasks[job.task]
            keys[d, at : at + n] = np.asarray(
                _row_key_data(task.key, np.asarray(task.rows)[job.rows].astype(np.uint32))
            )
            which[d, at : at + n] = [prompt_of(d, job.task, row) for row in job.rows]
            first[d, j], end[d, j], chain[d, j] = at, at + n, device.chains.index(job.task)
            at += n
    flat = lambda x: x.reshape(-1, *x.shape[2:])  # noqa: E731
    requests = decode_loop.Requests(
        flat(which), flat(keys), np.full(len(call) * texts, settings.max_new_tokens, np.int32)
    )
    jobs = decode_loop.Jobs(flat(first), flat(end), flat(chain))
    args = (
        model.spec,
        settings.sampler,
        shape,
        model.tokenizer.ends,
        params,
        pool,
        prompts,
        requests,
        jobs,
        mesh,
    )
    if plan.engine == "rows":
        return decode_rows(*args, how=plan.how)
    return decode_loop.decode(*args, platform=platform_of(params))


def _padded(plan: Plan, call: list[Device]) -> int:
    """Texts to which a call's arrays are padded. Calls of a plan have one size where it is small;
    else the next power of two will do.
    """
    most = max(sum(len(job.rows) for job in device.jobs) for device in call)
    return (
        plan.texts_per_call
        if plan.texts_per_call <= 4096
        else min(plan.texts_per_call, max(4096, 1 << (most - 1).bit_length()))
    )


def _take(done: _Done, call: list[Device], made: decode_loop.Written):
    """What a program wrote, to the rows of its tasks."""
    done.steps.extend(made.steps.tolist())
    texts = len(made.length) // len(call)
    for d, device in enumerate(call):
        at = d * texts
        for job in device.jobs:
            for row in job.rows:
                done.tokens[job.task][row] = made.tokens[at, : made.length[at]]
                done.ended[job.task][row] = made.ended[at]
                at += 1


def _row_key_data(key, rows):
    return jax.random.key_data(row_keys(key, rows))


def _prompts(model, params, pool, ids, call: list[Device], shape, texts, plan: Plan, mesh):
    """Cached prompts of a call and a function (device, task, row) -> index on the device.

    Shared: the distinct prompts of each chain, as many places for every chain. Otherwise one per
    request, chain after chain.
    """
    pad, width = model.tokenizer.pad, shape.prompt + 1

    def table(rows, count):
        out, length = np.full((count, width), pad, np.int32), np.ones(count, np.int32)
        for r, prompt in rows:
            out[r, : len(prompt)], out[r, len(prompt) :], length[r] = (
                prompt,
                prompt[-1],
                len(prompt),
            )
        return out, length

    if shape.shared_prompt:
        chains = 1 if pool is None else jax.tree.leaves(pool)[0].shape[0] // len(call)
        found: dict[tuple[int, int], dict[tuple, int]] = {}
        for d, device in enumerate(call):
            for job in device.jobs:
                mine = found.setdefault((d, device.chains.index(job.task) if chains > 1 else 0), {})
                for row in job.rows if plan.engine == "rows" else job.rows[:1]:
                    mine.setdefault(tuple(ids[job.task][row]), len(mine))
        each = 1 << (max(len(m) for m in found.values()) - 1).bit_length()
        rows = [
            ((d * chains + c) * each + z, prompt)
            for (d, c), mine in found.items()
            for prompt, z in mine.items()
        ]
        cached = decode_loop.prefill(
            model.spec, params, pool, *table(rows, len(call) * chains * each), mesh, plan.target
        )

        def shared(d, task, row):
            c = call[d].chains.index(task) if chains > 1 else 0
            return c * each + found[d, c][tuple(ids[task][row])]

        return cached, shared
    index, parts, at = {}, [], 0
    devices = len(call)
    for c in range(max(len(device.chains) for device in call)):
        rows = [
            [
                (job.task, row)
                for job in device.jobs
                if device.chains.index(job.task) == c
                for row in job.rows
            ]
            for device in call
        ]
        one = (
            None
            if pool is None
            else jax.tree.map(lambda leaf: leaf.reshape(devices, -1, *leaf.shape[1:])[:, c], pool)
        )  # noqa: B023
        for start in range(0, max(map(len, rows)), shape.rows):
            some = [mine[start : start + shape.rows] for mine in rows]
            filled = [
                (d * shape.rows + r, ids[task][row])
                for d, mine in enumerate(some)
                for r, (task, row) in enumerate(mine)
            ]
            parts.append(
                decode_loop.prefill(
                    model.spec, params, one, *table(filled, devices * shape.rows), mesh, plan.target
                )
            )
            index.update(
                {(d, *pair): at + r for d, mine in enumerate(some) for r, pair in enumerate(mine)}
            )
            at += shape.rows
    whole = -(-texts // shape.rows + plan.chains_per_call) * shape.rows

    def join(*pieces):
        on_device = jnp.concatenate([x.reshape(devices, -1, *x.shape[1:]) for x in pieces], 1)
        padded = jnp.pad(
            on_device, [(0, 0), (0, max(0, whole - at))] + [(0, 0)] * (on_device.ndim - 2)
        )
        return padded.reshape(-1, *padded.shape[2:])

    return jax.tree.map(join, *parts), lambda d, task, row: index[d, task, row]


def _beam(model, tasks, ids, settings, tokens, ended):
    for i, task in enumerate(tasks):
        own = task.weights is not None and "embed" in task.weights
        params = (
            jax.tree.map(lambda w: jnp.asarray(w).astype(settings.dtype), task.weights)
            if own
            else model.params
        )
        stacked = None if own or task.weights is None else adapters.stack([task.weights])
        made = beam_search(
            model.spec, params, ids[i], adapters=stacked, lora=settings.lora, beams=settings.beams, max_new_tokens=settings.max_new_tokens,
            eos=model.tokenizer.ends, pad=model.tokenizer.pad, repetition_penalty=settings.repetition_penalty,
            rows=min(16, len(set(map(tuple, ids[i])))), padded=settings.max_prompt,
        )  # fmt: skip
        for row, out in enumerate(made):
            tokens[i][row] = np.asarray(out, np.int32)
            ended[i][row] = len(out) > 0 and out[-1] in model.tokenizer.ends
