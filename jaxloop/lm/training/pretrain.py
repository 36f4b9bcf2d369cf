"""Making a base from nothing: a tokenizer, packed blocks of text, next-token training of every
weight, held-out bits per character.

Dimensions: B blocks a step, T tokens a block.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.core.keys import chain_key
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import Spec, init
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training import step as train_step
from jaxloop.lm.training.loss import row_nll


def blocks(
    ids: Sequence[Sequence[int]], groups: Sequence, length: int, eos: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless blocks [T]: texts of a group (a module, an article) stay together, EOS opens each,
    groups and blocks are reshuffled every epoch.
    """
    _, code = np.unique(np.asarray(groups), return_inverse=True)
    while True:
        order = np.argsort(rng.permutation(code.max() + 1)[code], kind="stable")
        flat = np.concatenate([np.array([eos, *ids[i]], np.int32) for i in order])
        shift = int(rng.integers(length))  # epochs cut the stream at different places
        flat = np.roll(flat, shift)
        n = len(flat) // length
        if n == 0:
            raise ValueError(
                f"data: {len(flat)} tokens do not fill one block of {length}; add text or lower "
                "context"
            )
        yield from flat[: n * length].reshape(n, length)[rng.permutation(n)]


def pretrain(
    spec: Spec,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    groups: Sequence,
    settings: train_step.FitSettings,
    *,
    seed: int,
    block: int,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Model:
    """Train `spec` from random weights on packed `texts` for `settings.steps` steps of
    `settings.batch_size` blocks of `block` tokens.

    settings.mode must be "scratch". Deterministic in (texts, seed, settings) on the same hardware.
    Raises ValueError for too little text.
    """
    if settings.mode != "scratch" or settings.steps is None:
        raise ValueError(
            f"fit: mode {settings.mode!r} with steps {settings.steps} cannot pretrain; use mode "
            "'scratch' and a number of steps"
        )
    key = chain_key(seed)
    weights = jax.tree.map(lambda x: x[None], init(key, spec))
    state = train_step.init_state(settings, weights, key[None])
    source = blocks(
        tokenizer.encode(list(texts)), groups, block, tokenizer.eos, np.random.default_rng(seed)
    )
    each, done, size = settings.steps_per_dispatch, 0, settings.batch_size
    ones, weight = np.ones((each, 1, size, block), bool), np.ones((each, 1, size), np.float32)
    while done < settings.steps:
        n = min(each, settings.steps - done)
        tokens = np.zeros((each, 1, size, block), np.int32)
        for s in range(n):
            tokens[s, 0] = [next(source) for _ in range(size)]
        batch = (tokens, ones, weight, jnp.int32(n), jnp.int32(settings.steps))
        state, log = train_step.train_steps(
            spec, settings, None, state, *batch, target=target_of(spec, state.weights)
        )
        done += n
        on_progress(done, float(jnp.nanmean(log)))
    return Model(spec, jax.tree.map(lambda x: x[0], state.weights), tokenizer)


def bits_per_character(model: Model, texts: Sequence[str], *, rows: int = 32) -> float:
    """Held-out code length in bits per character: each text alone after EOS, its own tokens only
    (not the closing EOS).
    """
    ids = [
        [model.tokenizer.eos, *i][: model.spec.context] for i in model.tokenizer.encode(list(texts))
    ]
    order, nats = sorted(range(len(ids)), key=lambda i: len(ids[i])), 0.0
    evaluate = jax.jit(
        functools.partial(row_nll, target=target_of(model.spec, model.params)), static_argnums=0
    )
    for at in range(0, len(order), rows):
        chosen = [ids[i] for i in order[at : at + rows]]
        time = batching.bucket(max(map(len, chosen)), model.spec.context)
        tokens, mask = np.zeros((rows, time), np.int32), np.zeros((rows, time), bool)
        for r, row in enumerate(chosen):
            tokens[r, : len(row)], mask[r, 1 : len(row)] = row, True
        nats += float(
            np.where(mask[:, 1:], np.asarray(evaluate(model.spec, model.params, tokens)), 0).sum()
        )
    return nats / np.log(2) / max(1, sum(map(len, texts)))
