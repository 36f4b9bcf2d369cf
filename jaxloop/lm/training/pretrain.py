"""Pretrains a base model from random weights on packed blocks of text, and measures it.

Dimensions: B blocks a step, T tokens a block.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxloop.config.sections import FitConfig
from jaxloop.core.keys import chain_key
from jaxloop.lm.io.huggingface import Model
from jaxloop.lm.io.tokenizer import Tokenizer
from jaxloop.lm.model.config import ModelConfig, init
from jaxloop.lm.target import target_of
from jaxloop.lm.training import batching
from jaxloop.lm.training.evaluate import batch_nll
from jaxloop.lm.training.step import StepArrays, TrainOptions, init_state, run_steps


def blocks(
    ids: Sequence[Sequence[int]], groups: Sequence, length: int, eos: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield blocks [T] of token ids without end.

    The texts of a group (such as a module or an article) stay together and each begins with EOS.
    Groups and blocks are shuffled anew in every epoch.

    Args:
        ids: token ids of each text.
        groups: the group of each text.
        length: T, tokens of a block.
        eos: id of EOS.
        rng: shuffles.

    Raises:
        ValueError: all texts together do not fill one block.
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
    config: ModelConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    groups: Sequence,
    fit: FitConfig,
    options: TrainOptions = TrainOptions(),
    *,
    seed: int,
    block: int,
    on_progress: Callable[[int, float], None] | None = None,
) -> Model:
    """Train a model from random weights on packed texts.

    It takes `fit.steps` steps of `fit.batch_size` blocks, and is deterministic in (texts, seed,
    settings) on the same hardware.

    Args:
        config: config of the model.
        tokenizer: tokenizer of the model.
        texts: to train on.
        groups: group of each text; texts of a group stay together.
        fit: mode must be "scratch".
        options: everything else about the training.
        seed: seed of the weights and of the order of texts.
        block: tokens of a block.
        on_progress: called with the steps done and the mean loss of the last ones.

    Raises:
        ValueError: another mode, no number of steps, or too little text.
    """
    if fit.mode != "scratch" or fit.steps is None:
        raise ValueError(
            f"fit: mode {fit.mode!r} with steps {fit.steps} cannot pretrain; use mode 'scratch' "
            "and a number of steps"
        )
    key = chain_key(seed)
    weights = jax.tree.map(lambda x: x[None], init(key, config))
    state = init_state(fit, options, weights, key[None])
    rng = np.random.default_rng(seed)
    source = blocks(tokenizer.encode(list(texts)), groups, block, tokenizer.eos, rng)
    shape = (options.steps_per_call, 1, fit.batch_size, block)
    mask, row_weights = np.ones(shape, bool), np.ones(shape[:3], np.float32)
    target = target_of(config, state.weights)
    done = 0
    while done < fit.steps:
        steps = min(options.steps_per_call, fit.steps - done)
        tokens = np.zeros(shape, np.int32)
        for s in range(steps):
            tokens[s, 0] = [next(source) for _ in range(fit.batch_size)]
        state, losses = run_steps(
            config,
            fit,
            options,
            None,
            state,
            StepArrays(tokens, mask, row_weights),
            jnp.int32(steps),
            jnp.int32(fit.steps),
            target=target,
        )
        done += steps
        if on_progress is not None:
            on_progress(done, float(jnp.nanmean(losses)))
    return Model(config, jax.tree.map(lambda x: x[0], state.weights), tokenizer)


def bits_per_character(model: Model, texts: Sequence[str], *, rows: int = 32) -> float:
    """Return the mean code length of texts in bits per character.

    Each text is scored by itself after EOS, cut at the model's context; a closing EOS is not
    counted.
    """
    context, target = model.config.max_seq_len, target_of(model.config, model.params)
    ids = [
        np.array([model.tokenizer.eos, *text_ids][:context], np.int32)
        for text_ids in model.tokenizer.encode(list(texts))
    ]
    examples = batching.Examples(ids, np.ones(len(ids), np.int64))  # EOS is not counted
    nll = 0.0
    for batch in batching.evaluation_batches(
        examples.lengths, rows, context, target.platform, predicted=True
    ):
        tokens_SBT, mask_SBT = batching.fill(examples, batch, 1, pad=0)
        nll_BT = batch_nll(model.config, model.params, None, tokens_SBT[0], target)
        nll += float(np.where(mask_SBT[0, :, 1:], np.asarray(nll_BT), 0).sum())
    return nll / np.log(2) / max(1, sum(map(len, texts)))
