"""n-gram models of characters, trained on windows of real text and then on their own (Suresh et
al.: vocabulary dies out by fixation).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxloop.core.categorical import inverse_cdf
from jaxloop.core.checks import check_not_negative, check_whole
from jaxloop.simulators.discrete import entropy
from jaxloop.simulators.family import ArrayFamily


def encode(
    texts: Sequence[str], *, symbols: int = 40, alphabet: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """(ids int32 [characters], alphabet): the texts joined by newlines, lower-cased, as the
    `symbols` - 1 commonest characters and one, the last of the alphabet, for all others; or as
    another text's `alphabet`. Raises ValueError where there is no text or fewer than 2 symbols.
    """
    joined = "\n".join(texts).lower()
    if not joined or symbols < 2:
        raise ValueError(
            f"texts, symbols={symbols}: need at least one character of text and 2 symbols"
        )
    characters = np.array(list(joined))
    found, counts = np.unique(characters, return_counts=True)
    commonest = found[np.argsort(-counts, kind="stable")][: symbols - 1].tolist()
    known = commonest if alphabet is None else list(alphabet)[:-1]
    place = {c: i for i, c in enumerate(known)}
    return np.array([place.get(c, len(known)) for c in joined], np.int32), [*known, "\ufffd"]


# Counts of first contexts [contexts], and of the symbol after each context [contexts, V].
Params = tuple[jax.Array, jax.Array]


def ngram_family(
    tokens: ArrayLike,
    *,
    order: int = 2,
    length: int = 64,
    smoothing: float = 0.0,
    symbols: int | None = None,
) -> ArrayFamily:
    """Items are windows of `length` symbols [n, length] (int32), drawn from `tokens` [N] at random
    places; V = symbols, or largest + 1.

    The model has the distribution of the first order - 1 symbols of a window and, for every such
    context, that of the next symbol (counts plus `smoothing`, falling back on single symbols where
    a context was never seen). Metrics: entropy (nats per symbol given its context, contexts
    weighted as in training), unigram_entropy, grams (different n-grams of positive count),
    vocabulary (different symbols), and cross_entropy of real windows (the same for all chains)
    under the model mixed with 1e-3 of the uniform distribution. Raises ValueError for an order
    below 1, windows longer than the text or not longer than the order, V^order above 2^24, and
    negative smoothing.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or len(tokens) == 0 or tokens.min() < 0:
        raise ValueError("tokens: must be a list of at least one non-negative integer")
    size = int(tokens.max()) + 1 if symbols is None else check_whole("symbols", symbols)
    check_whole("order", order)
    check_whole("length", length)
    check_not_negative("smoothing", smoothing)
    _check_sizes(tokens, order=order, length=length, size=size)
    contexts = size ** (order - 1)
    stream = jnp.asarray(tokens, jnp.int32)
    heldout = jnp.asarray(
        _windows(tokens, np.linspace(0, len(tokens) - length, 64).astype(int), length), jnp.int32
    )

    def draw(key: jax.Array, n: int) -> jax.Array:
        start = jax.random.randint(key, (n,), 0, len(tokens) - length + 1, jnp.int32)
        return stream[start[:, None] + jnp.arange(length, dtype=jnp.int32)[None, :]]

    def context_of(items: jax.Array) -> jax.Array:
        """Number of the context before each symbol from `order - 1` on, [n, length - order + 1]."""
        number = jnp.zeros((items.shape[0], length - order + 1), jnp.int32)
        for i in range(order - 1):
            number = number * size + items[:, i : i + length - order + 1]
        return number

    def fit(key: jax.Array, items: jax.Array, weights: jax.Array) -> Params:
        before, after = context_of(items), items[:, order - 1 :]
        each = jnp.broadcast_to(weights[:, None], before.shape)
        counts = jnp.zeros((contexts, size), weights.dtype).at[before, after].add(each)
        first = jnp.zeros(contexts, weights.dtype).at[before[:, 0]].add(weights)
        return first, counts

    def probabilities(params: Params) -> jax.Array:
        _, counts = params
        single = counts.sum(0) + smoothing
        single = single / single.sum()
        rows = counts + smoothing
        total = rows.sum(1, keepdims=True)
        return jnp.where(total > 0, rows / jnp.where(total > 0, total, 1), single[None, :])

    def sample(key: jax.Array, params: Params, n: int) -> jax.Array:
        p = probabilities(params)
        u = jax.random.uniform(key, (n, length - order + 2), p.dtype)
        context = inverse_cdf(jnp.broadcast_to(params[0][None], (n, contexts)), u[:, 0]).astype(
            jnp.int32
        )
        digits = [(context // size**i) % size for i in reversed(range(order - 1))]

        def step(context: jax.Array, u_n: jax.Array) -> tuple[jax.Array, jax.Array]:
            symbol = inverse_cdf(p[context], u_n).astype(jnp.int32)
            return (context * size + symbol) % contexts, symbol

        _, rest = jax.lax.scan(step, context, u[:, 1:].T)
        return jnp.concatenate([*(x[:, None] for x in digits), rest.T], 1)

    def measure(params: Params, items: jax.Array) -> dict[str, jax.Array]:
        _, counts = params
        p = probabilities(params)
        single = counts.sum(0)
        share = counts.sum(1) / counts.sum()
        q = 0.999 * p + 0.001 / size
        before, after = context_of(heldout), heldout[:, order - 1 :]
        return {
            "entropy": share @ jax.vmap(entropy)(p),
            "unigram_entropy": entropy(single / single.sum()),
            "grams": (counts > 0).sum().astype(jnp.int32),
            "vocabulary": (single > 0).sum().astype(jnp.int32),
            "cross_entropy": -jnp.log(q[before, after]).mean(),
        }

    return ArrayFamily(draw, fit, sample, measure)


def _check_sizes(tokens: np.ndarray, *, order: int, length: int, size: int) -> None:
    if not order < length <= len(tokens):
        raise ValueError(
            f"order={order}, length={length}: must be 1 <= order < length <= {len(tokens)}, the "
            "symbols of the text"
        )
    if tokens.max() >= size or size**order > 2**24:
        raise ValueError(
            f"symbols={size}, order={order}: must exceed the largest token {tokens.max()}, with "
            "symbols^order at most 2^24"
        )


def _windows(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    return tokens[starts[:, None] + np.arange(length)[None, :]]
