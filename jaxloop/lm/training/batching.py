"""Texts to token batches: the template, the loss mask, and length classes with a handful of padded
shapes.

A chain's batches depend on its own texts and key alone, so that its neighbours in a program cannot
change its arithmetic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxloop.lm.io.tokenizer import Tokenizer

BUCKETS = (
    16,
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
)


def bucket(length: int, limit: int | None = None) -> int:
    """The smallest padded length that holds `length` tokens, at most `limit`."""
    size = next((b for b in BUCKETS if b >= length), -(-length // 1024) * 1024)
    return size if limit is None else max(min(size, limit), length)


@dataclass(frozen=True)
class Examples:
    """Tokenised training texts of one chain: ids of each, and how many leading tokens (the prompt)
    carry no loss.
    """

    ids: list[np.ndarray]
    prompt: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(i) for i in self.ids], np.int64)


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of prompts, each distinct prompt encoded once. An empty prompt is BOS, or EOS where
    the model has no BOS.
    """
    distinct = list(dict.fromkeys(prompts))
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    known = dict(zip(distinct, (ids or [start] for ids in tokenizer.encode(distinct))))
    return [known[p] for p in prompts]


def encode_examples(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompts: Sequence[str],
    *,
    max_length: int,
    loss_on: str = "response",
) -> Examples:
    """`prompt + text + EOS`, cut at `max_length` tokens (a cut text loses its EOS, as in the
    paper's code); no EOS where the tokenizer has none.

    loss_on: "response" (the text and EOS) or "all" (the prompt too).
    """
    heads = encode_prompts(tokenizer, prompts)
    bodies = tokenizer.encode(texts, special=False)
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    ids = [np.array((h + b + end)[:max_length], np.int32) for h, b in zip(heads, bodies)]
    skipped = np.array(
        [0 if loss_on == "all" else min(len(h), max_length) for h in heads], np.int64
    )
    return Examples(ids, skipped)


@dataclass(frozen=True)
class Dispatch:
    """Steps that run in one program: padded length, and the example of each row (-1: an empty row),
    [steps, B].
    """

    time: int
    rows: np.ndarray


def plan_dispatches(
    lengths: np.ndarray,
    rng: np.random.Generator,
    *,
    batch_size: int,
    steps: int | None,
    epochs: float,
    classes: int,
    per_dispatch: int,
    limit: int,
) -> list[Dispatch]:
    """Batches for all steps of a fit: every epoch shuffles, sorts by length into batches, and
    groups these into `classes` padded lengths; with one class nothing is sorted and the batches are
    random, as a plain data loader draws them.

    Chains with equally many examples and the same padded lengths get the same sequence of shapes,
    so they can share programs.
    """
    n = len(lengths)
    per_epoch = -(-n // batch_size)
    total = steps if steps is not None else max(1, round(per_epoch * epochs))
    out, done, epoch = [], 0, 0
    while done < total:
        order = rng.permutation(n)
        order = np.concatenate([order, np.full(per_epoch * batch_size - n, -1)])
        if total - done < per_epoch:
            order = order[: (total - done) * batch_size]
        length = np.where(order < 0, 0, lengths[order])
        batches = (order if classes == 1 else order[np.argsort(-length, kind="stable")]).reshape(
            -1, batch_size
        )
        groups = [g for g in np.array_split(batches, min(classes, len(batches))) if len(g)]
        cycles = max(-(-len(g) // per_dispatch) for g in groups)
        # The order of the classes is the same for every chain: chains in step must ask for the same
        # shapes.
        visit = np.random.default_rng((7919, epoch))
        chunks = [np.array_split(rng.permutation(g, axis=0), cycles) for g in groups]
        times = [bucket(int(lengths[g[g >= 0]].max()), limit) for g in groups]
        for cycle in range(cycles):
            for k in visit.permutation(len(groups)):
                if len(chunks[k][cycle]):
                    out.append(Dispatch(times[k], chunks[k][cycle]))
        done += len(batches)
        epoch += 1
    return out


def fill(
    examples: Examples, dispatch: Dispatch, steps: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss mask [steps, B, T] of a dispatch, right-padded, with idle steps at the end."""
    n, rows = dispatch.rows.shape
    tokens = np.full((steps, rows, dispatch.time), pad, np.int32)
    mask = np.zeros((steps, rows, dispatch.time), bool)
    for s in range(n):
        for b, example in enumerate(dispatch.rows[s]):
            if example >= 0:
                ids = examples.ids[example]
                tokens[s, b, : len(ids)] = ids
                mask[s, b, examples.prompt[example] : len(ids)] = True
    return tokens, mask
