"""Encoders: sentence embeddings and class probabilities, without torch.

Dimensions: R rows, T time, N = R T tokens, D width, E size of an embedding, C classes. Rows are
padded on the right; every row depends on its own text alone, and on the shape [R, T], which follows
from its own length.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxloop.lm.encoder.config import EncoderConfig
from jaxloop.lm.io.tokenizer import clean
from jaxloop.lm.model import attention, rotary, transformer
from jaxloop.lm.model import dropout as dropouts
from jaxloop.lm.model.dropout import Dropout
from jaxloop.lm.target import Target
from jaxloop.runtime.devices import platform_of, programs_at_once, run_concurrently

# Padded lengths, one program each: sixteen tokens apart, later at most a quarter of the length, so
# that little of a batch is padding.
LENGTHS = (16, 32, 48, 64, 80, 96, 112, 128, *(k << i for i in range(5, 11) for k in (5, 6, 7, 8)))

DENSE_ACTIVATIONS = {
    "Identity": lambda x: x,
    "Tanh": jnp.tanh,
    "ReLU": jax.nn.relu,
    "GELU": transformer.ACTIVATIONS["gelu"],
    "Sigmoid": jax.nn.sigmoid,
}


class Readout(NamedTuple):
    """How token states become an embedding: poolings joined in order, then dense layers (names of
    their activations), then length one.
    """

    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[str, ...] = ()
    normalize: bool = False


class Encoder(NamedTuple):
    """An encoder with its weights and tokenizer. limit: tokens of a text that are read, special
    ones included; prefix: put before every text.
    """

    config: EncoderConfig
    params: dict
    tokenizer: tokenizers.Tokenizer
    limit: int
    readout: Readout = Readout()
    prefix: str = ""
    name: str = ""


@functools.cache
def relative_buckets(time: int, buckets: int, distance: int) -> np.ndarray:
    """MPNet's bucket [T, T] of each (query, key) pair: half of the buckets per direction, exact to
    a quarter, then logarithmic to `distance`.
    """
    apart = np.arange(time)[None] - np.arange(time)[:, None]
    half, exact = buckets // 2, buckets // 4
    far = np.abs(apart).astype(np.float32)
    with np.errstate(divide="ignore"):
        grown = exact + (
            np.log(far / np.float32(exact))
            / np.float32(np.log(distance / exact))
            * np.float32(half - exact)
        ).astype(np.float32)
    index = np.where(far < exact, far, np.minimum(np.floor(np.maximum(grown, 0)), half - 1)).astype(
        np.int32
    )
    return index + np.where(apart > 0, half, 0).astype(np.int32)


def hidden(
    config: EncoderConfig,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    length_R: jax.Array,
    target: Target = Target(),
    dropout: Dropout | None = None,
) -> jax.Array:
    """Return the last hidden states [R, T, D] of right-padded tokens.

    `length_R` are the real tokens of each row; the states of padding are arbitrary. `dropout` is
    that of a step of training.
    """
    core, (rows, time) = config.core, tokens_RT.shape
    mask = jnp.arange(time)[None] < length_R[:, None]
    positions = jnp.broadcast_to(jnp.arange(time)[None], (rows, time)).reshape(-1)
    x = transformer.embed(core, params, tokens_RT.reshape(-1), positions)
    if config.token_types:
        x = x + params["token_type"][:1]
    if config.embed_norm:
        x = transformer.norm(core, x, params["embed_norm_scale"], params["embed_norm_bias"])
    x = dropouts.apply(dropouts.drops_of_layer(dropout, 0), "embedding", x)
    if config.embedding_size:
        x = x @ params["embed_map"] + params["embed_map_bias"][None]
    tables = rotary.rope_tables(core, positions)
    if config.causal:
        attend = attention.causal(core, rows, time, tables, target=target)
    else:
        bias = None
        if config.relative_buckets:
            bias = params["relative"][
                relative_buckets(time, config.relative_buckets, config.relative_distance)
            ].transpose(2, 0, 1)
        attend = attention.bidirectional(core, rows, time, tables, mask, bias)
    for i in range(core.num_layers):
        drops = dropouts.drops_of_layer(dropout, i)
        x = transformer.block(core, params["layers"][config.layer_of(i)], None, x, attend, drops)
    return transformer.final_norm(core, params, x).reshape(rows, time, -1)


def pool(mode: str, x_RTD: jax.Array, length_R: jax.Array) -> jax.Array:
    """Return one vector a row [R, D], float32, as sentence-transformers' pooling of that name."""
    x = x_RTD.astype(jnp.float32)
    time = x.shape[1]
    real = (jnp.arange(time)[None] < length_R[:, None])[:, :, None]
    count = jnp.maximum(length_R, 1).astype(jnp.float32)[:, None]
    if mode == "cls":
        return x[:, 0]
    if mode == "lasttoken":
        return jnp.take_along_axis(x, jnp.maximum(length_R - 1, 0)[:, None, None], 1)[:, 0]
    if mode == "max":
        return jnp.where(real, x, -jnp.inf).max(1)
    if mode == "weightedmean":
        weight = jnp.where(real, jnp.arange(1, time + 1, dtype=jnp.float32)[None, :, None], 0)
        return (x * weight).sum(1) / jnp.maximum(weight.sum(1), 1)
    total = jnp.where(real, x, 0).sum(1)
    return total / (jnp.sqrt(count) if mode == "mean_sqrt_len_tokens" else count)


@functools.partial(jax.jit, static_argnames=("config", "readout", "target"))
def sentence_embedding(
    config: EncoderConfig,
    readout: Readout,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    length_R: jax.Array,
    target: Target = Target(),
) -> jax.Array:
    """Return embeddings [R, E] float32 of right-padded tokens.

    They are pooled, pass through the dense layers, and have length one if the readout says so.
    """
    with jax.default_matmul_precision(
        "highest" if params["embed"].dtype == jnp.float32 else "default"
    ):
        x = hidden(config, params, tokens_RT, length_R, target)
        x = jnp.concatenate([pool(mode, x, length_R) for mode in readout.pooling], -1)
        for name, layer in zip(readout.dense, params["dense"], strict=True):
            x = DENSE_ACTIVATIONS[name](
                x @ layer["w"].astype(jnp.float32) + layer["bias"].astype(jnp.float32)[None]
            )
        return unit(x) if readout.normalize else x


def unit(x_RE: jax.Array) -> jax.Array:
    """Return rows of length one; as in torch's `normalize`, those below 1e-12 are divided by it."""
    return x_RE / jnp.maximum(jnp.sqrt((x_RE * x_RE).sum(-1, keepdims=True)), 1e-12)


def dropout_rates(config: EncoderConfig) -> dict[str, float]:
    """Return {site: rate} of all that the architecture drops in training, rates above 0 alone."""
    head = dict.fromkeys(("head_input", "head_output"), config.head_dropout)
    return config.core.dropout.by_site() | (head if config.head_dropout > 0 else {})


def class_logits(
    config: EncoderConfig,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    length_R: jax.Array,
    dropout: Dropout | None = None,
    target: Target = Target(),
) -> jax.Array:
    """Scores [R, C] float32 of each class before the softmax (or sigmoids). `dropout` is that of a
    step of training, in the blocks and in the head.
    """
    x = hidden(config, params, tokens_RT, length_R, target, dropout)
    drops = dropouts.drops_of_layer(dropout, 0)
    head = params["head"]
    x = pool("lasttoken" if config.head == "last" else "cls", x, length_R)
    if "dense" in head:
        x = dropouts.apply(drops, "head_input", x) if config.head == "dense" else x
        x = x @ head["dense"].astype(jnp.float32) + head["dense_bias"].astype(jnp.float32)[None]
        x = jax.nn.relu(x) if config.head == "relu" else jnp.tanh(x)
    x = dropouts.apply(drops, "head_output", x) @ head["out"].astype(jnp.float32)
    return x + head["out_bias"].astype(jnp.float32)[None] if "out_bias" in head else x


@functools.partial(jax.jit, static_argnames=("config", "target"))
def class_probabilities(
    config: EncoderConfig,
    params: dict[str, Any],
    tokens_RT: jax.Array,
    length_R: jax.Array,
    target: Target = Target(),
) -> jax.Array:
    """Return probabilities [R, C] float32.

    A softmax over the classes, or a sigmoid of each where they do not exclude each other.
    """
    with jax.default_matmul_precision(
        "highest" if params["embed"].dtype == jnp.float32 else "default"
    ):
        logits = class_logits(config, params, tokens_RT, length_R, target=target)
    return jax.nn.sigmoid(logits) if config.multi_label else jax.nn.softmax(logits, -1)


def token_ids(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text with its special tokens, cut at the encoder's limit; lone surrogates
    are read as U+FFFD.
    """
    # An encoder without special tokens has none for an empty text either; its first token then
    # stands for "nothing".
    return [
        e.ids or [0]
        for e in encoder.tokenizer.encode_batch_fast(
            [encoder.prefix + clean(text) for text in texts]
        )
    ]


def sizes(limit: int) -> list[int]:
    """Return the padded lengths of an encoder that reads `limit` tokens."""
    return sorted({min(size, limit) for size in LENGTHS} | {limit})


def fill(
    ids: Sequence[Sequence[int]], limit: int, rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [R, T] and lengths [R] of texts, padded to the first of `sizes` that holds the
    longest, and with empty rows to `rows`.
    """
    longest = max(map(len, ids))
    time = next(size for size in sizes(limit) if size >= longest)
    tokens, length = (
        np.zeros((rows or len(ids), time), np.int32),
        np.zeros(rows or len(ids), np.int32),
    )
    for row, text in enumerate(ids):
        tokens[row, : len(text)] = text
    length[: len(ids)] = [len(text) for text in ids]
    return tokens, length


def over_batches(
    run: Callable, ids: Sequence[Sequence[int]], *, limit: int, batch: int
) -> np.ndarray:
    """run(tokens [R, T], length [R]) -> [R, …] over texts of all lengths, rows back in the order of
    `ids`.

    T is the first of `LENGTHS` that holds the text (at most `limit`) and R = batch // T, padded
    with empty rows: few shapes, chosen by each text's own length, so that a row does not depend on
    the others.
    """
    lengths = np.array([len(i) for i in ids], np.int64)
    padded = np.array(sizes(limit))
    bucket = padded[np.searchsorted(padded, lengths)]
    jobs: list[tuple[np.ndarray, int]] = []
    for time in np.unique(bucket).tolist():
        members, rows = np.flatnonzero(bucket == time), max(1, batch // time)
        jobs += [(members[at : at + rows], rows) for at in range(0, len(members), rows)]
    values: dict[int, np.ndarray] = {}

    def start(job: tuple[np.ndarray, int]) -> Any:
        chosen, rows = job
        return run(*fill([ids[i] for i in chosen], limit, rows))

    def take(job: tuple[np.ndarray, int], part: np.ndarray) -> None:
        # Cut on the host: on the device every other number of rows would be one more program.
        values.update(zip(job[0].tolist(), part, strict=False))

    # Two on an accelerator: the next batch is filled while one is computed.
    run_concurrently(start, take, jobs, max(2, programs_at_once()))
    return np.stack([values[i] for i in range(len(ids))])


def default_batch(params: Any) -> int:
    """Padded tokens of a batch with these weights where the caller does not say."""
    return batch_on(platform_of(params))


def batch_on(platform: str) -> int:
    """Padded tokens of a batch: on a CPU, where more are not faster, few, so that last batches are
    not mostly padding; or what fills an accelerator.
    """
    return 512 if platform == "cpu" else 65536
