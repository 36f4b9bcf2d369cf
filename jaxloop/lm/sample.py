"""Writing the texts of many chains: requests to jobs, prompts to caches, one decoding program, tokens to texts.

Dimensions: as in `decode.py`.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.lm import adapters, batching, decode
from jaxloop.lm.adapters import Lora
from jaxloop.lm.huggingface import Model
from jaxloop.lm.sampling import Sampler

FEW = 8  # distinct prompts of a chain up to which their caches are shared by its rows


@dataclass(frozen=True)
class SampleSettings:
    """How a generation writes. Defaults follow the code of the recursive-loops study (section 1).

    decoder: "sample", "greedy" or "beam". slots: texts written at the same time (0: 64 on a CPU, 512 elsewhere), in lanes of `lane_slots`
    that hold one adapter each. window: steps between two refills of lanes. texts_per_job: texts of a chain that one lane writes in a row
    (0: 8 per slot). texts_per_call and chains_per_call are the padded sizes of a program. max_prompt: padded prompt length in tokens
    (0: the smallest bucket that fits). None of these changes what is drawn, only how fast.
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
    slots: int = 0
    lane_slots: int = 8
    window: int = 16
    texts_per_job: int = 0
    texts_per_call: int = 4096
    chains_per_call: int = 16
    max_prompt: int = 0

    def __post_init__(self):
        if self.decoder not in ("sample", "greedy", "beam"):
            raise ValueError(f"sample.decoder: {self.decoder!r} is not allowed; choose one of sample, greedy, beam")
        for name in ("beams", "max_new_tokens", "lane_slots", "window", "texts_per_call", "chains_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"sample.{name}: {getattr(self, name)} is not allowed; at least 1")
        _ = self.sampler

    @property
    def sampler(self) -> Sampler:
        return Sampler(self.temperature, self.min_p, self.top_p, self.top_k, self.repetition_penalty, greedy=self.decoder == "greedy")


class SampleTask(NamedTuple):
    """Texts for one chain to write: one per prompt [n]; `rows` [n] name the rows, so that their random numbers are their own."""

    key: jax.Array
    weights: Any
    prompts: Sequence[str]
    rows: np.ndarray


class SampleResult(NamedTuple):
    """Texts [n] (special tokens dropped, not stripped), sampled tokens [n] (EOS included), and whether each ended by itself."""

    texts: list[str]
    tokens: np.ndarray
    finished: np.ndarray


class _Job(NamedTuple):
    task: int
    rows: np.ndarray  # positions in the task


def sample(model: Model, tasks: Sequence[SampleTask], settings: SampleSettings) -> list[SampleResult]:
    """Write every task's texts. Raises ValueError where a prompt and `max_new_tokens` do not fit the model's context."""
    ids = [batching.encode_prompts(model.tokenizer, t.prompts) for t in tasks]
    longest = max((len(p) for task in ids for p in task), default=1)
    if longest + settings.max_new_tokens > model.spec.context:
        raise ValueError(
            f"sample.max_new_tokens: {settings.max_new_tokens} after a prompt of {longest} tokens exceed the context of {model.name or model.spec.architecture}, {model.spec.context} tokens; lower it"
        )
    tokens: list[list] = [[None] * len(t.prompts) for t in tasks]
    ended: list[np.ndarray] = [np.zeros(len(t.prompts), bool) for t in tasks]
    if settings.decoder == "beam":
        _beam(model, tasks, ids, settings, tokens, ended)
    else:
        own = [i for i, t in enumerate(tasks) if t.weights is not None and "embed" in t.weights]
        for i in own:  # all weights are the chain's own: nothing to share, one chain after another
            params = jax.tree.map(lambda w: jnp.asarray(w).astype(settings.dtype), tasks[i].weights)
            _write(model, decode.unstack(params), None, tasks, ids, [i], settings, longest, tokens, ended)
        for kind in (True, False):
            chosen = [i for i, t in enumerate(tasks) if i not in own and (t.weights is None) == kind]
            for at in range(0, len(chosen), settings.chains_per_call):
                part = chosen[at : at + settings.chains_per_call]
                pool = None if kind else _pool(model, [tasks[i].weights for i in part], settings)
                _write(model, _unstacked(model.params), pool, tasks, ids, part, settings, longest, tokens, ended)
    out = []
    for i in range(len(tasks)):
        bare = [t[:-1] if done else t for t, done in zip(tokens[i], ended[i])]
        out.append(SampleResult(model.tokenizer.decode(bare), np.array([len(t) for t in tokens[i]], np.int64), ended[i]))
    return out


_unstacked = jax.jit(decode.unstack)


def _pool(model, weights, settings):
    """Adapters of the chains of a call, padded to `chains_per_call` places (at least two, so that one chain runs as among others)."""
    places = max(2, settings.chains_per_call) if _lanes(settings) > 1 else 1
    padded = [*weights, *([weights[0]] * (places - len(weights)))]
    fuse = functools.partial(adapters.fuse, model.spec, lora=settings.lora, dtype=jnp.dtype(settings.dtype), block_diagonal=True)
    return jax.jit(lambda tree: fuse(tree))(adapters.stack(padded))


def slots(settings: SampleSettings) -> int:
    """Texts written at the same time."""
    return settings.slots or (64 if jax.default_backend() == "cpu" else 512)


def _lanes(settings) -> int:
    return max(1, slots(settings) // settings.lane_slots)


def _jobs(tasks, ids, chosen, shared, settings) -> list[_Job]:
    """Each chain's rows cut into jobs, rows with one prompt together where caches are shared; longest first."""
    size = settings.texts_per_job or 8 * settings.lane_slots
    out = []
    for i in chosen:
        runs: dict[tuple, list[int]] = {}
        for row, prompt in enumerate(ids[i]):
            runs.setdefault(tuple(prompt) if shared else (), []).append(row)
        for rows in runs.values():
            out += [_Job(i, np.array(rows[at : at + size])) for at in range(0, len(rows), size)]
    return sorted(out, key=lambda job: -len(job.rows))


def _write(model, params, pool, tasks, ids, chosen, settings, longest, tokens, ended):
    """Run the decoding program over the rows of the chosen tasks, `texts_per_call` at a time."""
    shared = all(len(set(map(tuple, ids[i]))) <= FEW for i in chosen)
    lanes = _lanes(settings)
    length = settings.max_prompt or batching.bucket(longest)
    shape = decode.Shape(lanes, -(-slots(settings) // lanes), settings.window, settings.max_new_tokens, length - 1, shared)
    jobs = _jobs(tasks, ids, chosen, shared, settings)
    calls, count = [[]], 0
    for job in jobs:
        if count + len(job.rows) > settings.texts_per_call and calls[-1]:
            calls.append([])
            count = 0
        calls[-1].append(job)
        count += len(job.rows)
    for call in calls:
        _run(model, params, pool, tasks, ids, chosen, call, shape, settings, tokens, ended)


def _run(model, params, pool, tasks, ids, chosen, call, shape, settings, tokens, ended):
    place = {task: c for c, task in enumerate(chosen)}
    total = sum(len(job.rows) for job in call)
    texts = max(settings.texts_per_call, total)
    prompts, prompt_of = _prompts(model, params, pool, ids, call, place, shape, texts, settings)
    keys = np.zeros((texts, 2), np.uint32)
    which = np.zeros(texts, np.int32)
    first, end, chain = (np.zeros(texts, np.int32) for _ in range(3))
    at = 0
    for j, job in enumerate(call):
        n, task = len(job.rows), tasks[job.task]
        keys[at : at + n] = np.asarray(_row_key_data(task.key, jnp.asarray(np.asarray(task.rows)[job.rows], jnp.uint32)))
        which[at : at + n] = [prompt_of(job.task, row) for row in job.rows]
        first[j], end[j], chain[j] = at, at + n, place[job.task]
        at += n
    limit = np.full(texts, settings.max_new_tokens, np.int32)
    requests = decode.Requests(jnp.asarray(which), jnp.asarray(keys), jnp.asarray(limit))
    made = decode.decode(
        model.spec, settings.sampler, shape, model.tokenizer.eos, params, pool, prompts, requests, decode.Jobs(*map(jnp.asarray, (first, end, chain)))
    )
    made = jax.device_get(made)
    at = 0
    for job in call:
        for row in job.rows:
            tokens[job.task][row] = made.tokens[at, : made.length[at]]
            ended[job.task][row] = made.ended[at]
            at += 1


@jax.jit
def _row_key_data(key, rows):
    return jax.random.key_data(jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))


def _prompts(model, params, pool, ids, call, place, shape, texts, settings):
    """Cached prompts of a call and a function (task, row) -> index. Shared: `FEW`-padded distinct prompts per chain; else one per request."""
    pad, width = model.tokenizer.pad, shape.prompt + 1
    chains = 1 if pool is None else jax.tree.leaves(pool)[0].shape[0]

    def table(rows, count):
        out, length = np.full((count, width), pad, np.int32), np.ones(count, np.int32)
        for r, prompt in rows:
            out[r, : len(prompt)], length[r] = prompt, len(prompt)
            out[r, len(prompt) :] = prompt[-1]
        return jnp.asarray(out), jnp.asarray(length)

    if shape.shared_prompt:
        found: dict[int, dict[tuple, int]] = {}
        for job in call:
            mine = found.setdefault(place[job.task] if chains > 1 else 0, {})
            mine.setdefault(tuple(ids[job.task][job.rows[0]]), len(mine))
        each = 1 << (max(len(m) for m in found.values()) - 1).bit_length()
        rows = [(c * each + z, prompt) for c, mine in found.items() for prompt, z in mine.items()]
        cached = decode.prefill(model.spec, params, pool, *table(rows, chains * each))
        return cached, lambda task, row: (place[task] if chains > 1 else 0) * each + found[place[task] if chains > 1 else 0][tuple(ids[task][row])]
    index, parts, at = {}, [], 0
    for c in dict.fromkeys(place[job.task] if chains > 1 else 0 for job in call):
        rows = [(job.task, row) for job in call if chains == 1 or place[job.task] == c for row in job.rows]
        one = None if pool is None else jax.tree.map(lambda leaf: leaf[c : c + 1], pool)  # noqa: B023
        for start in range(0, len(rows), shape.rows):
            some = rows[start : start + shape.rows]
            parts.append(decode.prefill(model.spec, params, one, *table([(r, ids[t][row]) for r, (t, row) in enumerate(some)], shape.rows)))
            index.update({pair: at + r for r, pair in enumerate(some)})
            at += shape.rows
    whole = -(-max(at, texts) // shape.rows) * shape.rows
    return jax.tree.map(lambda *x: jnp.pad(jnp.concatenate(x), [(0, whole - at)] + [(0, 0)] * (x[0].ndim - 1)), *parts), lambda task, row: index[task, row]


def _beam(model, tasks, ids, settings, tokens, ended):
    from jaxloop.lm.beam import beam_search

    for i, task in enumerate(tasks):
        params, chain = (task.weights, None) if task.weights is not None and "embed" in task.weights else (model.params, task.weights)
        stacked = None if chain is None else adapters.stack([chain])
        made = beam_search(
            model.spec, jax.tree.map(jnp.asarray, params), ids[i], adapters=stacked, lora=settings.lora, beams=settings.beams,
            max_new_tokens=settings.max_new_tokens, eos=model.tokenizer.eos, pad=model.tokenizer.pad,
        )  # fmt: skip
        for row, out in enumerate(made):
            tokens[i][row] = np.asarray(out, np.int32)
            ended[i][row] = len(out) > 0 and out[-1] == model.tokenizer.eos
