"""Texts to token batches: prompt and text joined, the loss mask, and a few padded lengths.

A chain's batches depend on its own texts and key alone, so that its neighbours in a program cannot
change its arithmetic.
"""

from collections.abc import Iterator, Sequence
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
# Of a fit with at most so many padded lengths an epoch these are powers of two and the longest
# allowed, so that the texts of all generations and chains have the same few.
FEW_LENGTHS = 2
COARSE = tuple(1 << power for power in range(4, 14))
# Rows of a batch that is only evaluated, on a CPU: what more need between layers leaves the cache,
# and more of short texts are hardly faster (1.1x of 48 tokens, 1.15x of 32) for a program more.
TIGHT_ROWS = 8


def bucket(length: int, limit: int | None = None, ladder: Sequence[int] = BUCKETS) -> int:
    """Return the smallest padded length that holds `length` tokens, at most `limit`."""
    size = next((b for b in ladder if b >= length), -(-length // 1024) * 1024)
    return size if limit is None else max(min(size, limit), length)


@dataclass(frozen=True)
class Examples:
    """Tokenised training texts of one chain.

    Attributes:
        ids: token ids of each text with its prompt.
        prompt: [n] how many leading tokens of each carry no loss.
    """

    ids: list[np.ndarray]
    prompt: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(i) for i in self.ids], np.int64)


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of prompts; each distinct prompt is encoded once.

    An empty prompt becomes BOS, or EOS where the model has no BOS.
    """
    distinct = list(dict.fromkeys(prompts))
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    encoded = [ids or [start] for ids in tokenizer.encode(distinct)]
    ids_of = dict(zip(distinct, encoded, strict=True))
    return [ids_of[prompt] for prompt in prompts]


def encode_examples(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    prompts: Sequence[str],
    *,
    max_length: int,
    completion_only: bool = True,
) -> Examples:
    """Encode each text as prompt + text + EOS, cut at `max_length` tokens.

    A text that is cut loses its EOS, as in the paper's code. There is none where the tokenizer has
    none.

    Args:
        tokenizer: tokenizer of the model.
        texts: [n].
        prompts: [n], which the texts follow.
        max_length: most tokens of an example.
        completion_only: whether the loss counts the text and EOS only, not the prompt.
    """
    prompt_ids = encode_prompts(tokenizer, prompts)
    text_ids = tokenizer.encode(texts, special=False)
    end = [] if tokenizer.eos is None else [tokenizer.eos]
    ids = [
        np.array((prompt + text + end)[:max_length], np.int32)
        for prompt, text in zip(prompt_ids, text_ids)
    ]
    skipped = np.zeros(len(ids), np.int64)
    if completion_only:
        skipped = np.array([min(len(prompt), max_length) for prompt in prompt_ids], np.int64)
    return Examples(ids, skipped)


@dataclass(frozen=True)
class StepBatch:
    """Steps that run in one call of a program.

    Attributes:
        seq_len: padded length.
        rows: [steps, B] the example of each row, -1 for an empty row.
    """

    seq_len: int
    rows: np.ndarray

    @property
    def num_steps(self) -> int:
        return len(self.rows)


def plan_batches(
    lengths: np.ndarray,
    rng: np.random.Generator,
    *,
    batch_size: int,
    steps: int | None,
    epochs: float,
    length_buckets: int,
    steps_per_call: int,
    limit: int,
) -> list[StepBatch]:
    """Plan the batches of all steps of a fit.

    Every epoch shuffles, sorts by length into batches, and groups these into `length_buckets`
    padded lengths. With one bucket nothing is sorted and the batches are random, as a plain data
    loader draws them. Chains with equally many examples and the same padded lengths get the same
    sequence of shapes, so they can share programs.

    Args:
        lengths: [n] tokens of each example.
        rng: the chain's; it shuffles the examples.
        batch_size: examples of a step, B.
        steps: number of steps of the fit; None: `epochs` decides.
        epochs: passes over the examples.
        length_buckets: number of padded lengths in one epoch; with `FEW_LENGTHS` or fewer, of
            the ladder `COARSE`.
        steps_per_call: most steps of a `StepBatch`.
        limit: largest padded length, unless an example is longer.
    """
    n = len(lengths)
    ladder = COARSE if length_buckets <= FEW_LENGTHS else BUCKETS
    per_epoch = -(-n // batch_size)
    total = steps if steps is not None else max(1, round(per_epoch * epochs))
    planned: list[StepBatch] = []
    done, epoch = 0, 0
    while done < total:
        order = rng.permutation(n)
        order = np.concatenate([order, np.full(per_epoch * batch_size - n, -1)])
        if total - done < per_epoch:
            order = order[: (total - done) * batch_size]
        if length_buckets > 1:
            length = np.where(order < 0, 0, lengths[order])
            order = order[np.argsort(-length, kind="stable")]
        batches = order.reshape(-1, batch_size)
        buckets = np.array_split(batches, min(length_buckets, len(batches)))
        buckets = [b for b in buckets if len(b)]
        cycles = max(-(-len(b) // steps_per_call) for b in buckets)
        # The order of the buckets is the same for every chain: chains in step must ask for the same
        # shapes.
        visit = np.random.default_rng((7919, epoch))
        chunks = [np.array_split(rng.permutation(b, axis=0), cycles) for b in buckets]
        seq_lens = [bucket(int(lengths[b[b >= 0]].max()), limit, ladder) for b in buckets]
        for cycle in range(cycles):
            for k in visit.permutation(len(buckets)):
                if len(chunks[k][cycle]):
                    planned.append(StepBatch(seq_lens[k], chunks[k][cycle]))
        done += len(batches)
        epoch += 1
    return planned


def evaluation_batches(
    lengths: np.ndarray, rows: int, limit: int, platform: str, *, predicted: bool = False
) -> Iterator[StepBatch]:
    """Yield all examples once, at most `rows` at a time in the order of their lengths [n].

    Each batch has one step and is padded with empty rows: to `rows` and a length of `BUCKETS`,
    so that there are few programs. On a CPU, where padding is not free, to `TIGHT_ROWS` and a
    length at most a quarter too long. With `predicted` the last token of a row is predicted and
    not read, so that there the tokens before it have that length.
    """
    order = np.argsort(lengths, kind="stable")
    tight = platform == "cpu"
    size = min(rows, TIGHT_ROWS) if tight else rows
    for at in range(0, len(order), size):
        members = order[at : at + size]
        longest = int(lengths[members].max())
        if tight:
            seq_len = _tight_length(max(1, longest - predicted), limit - predicted) + predicted
        else:
            seq_len = bucket(longest, limit)
        empty = np.full(size - len(members), -1, np.int64)
        yield StepBatch(seq_len, np.concatenate([members, empty])[None])


def _tight_length(length: int, limit: int) -> int:
    """The smallest multiple of 16 that holds `length` tokens; of an eighth of its power of two
    where that is more; at most `limit`.
    """
    step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
    return max(min(-(-length // step) * step, limit), length)


def fill(
    examples: Examples, batch: StepBatch, steps: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and loss mask [steps, B, T] of a batch, right-padded, with idle steps at the end."""
    n, rows = batch.rows.shape
    tokens = np.full((steps, rows, batch.seq_len), pad, np.int32)
    mask = np.zeros((steps, rows, batch.seq_len), bool)
    for s in range(n):
        for b, example in enumerate(batch.rows[s]):
            if example >= 0:
                ids = examples.ids[example]
                tokens[s, b, : len(ids)] = ids
                mask[s, b, examples.prompt[example] : len(ids)] = True
    return tokens, mask
