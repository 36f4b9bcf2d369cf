"""Loss, perplexity and tail mass, from the losses of language models on texts.

The losses of a chain are an object with `nll` and `tokens`, both [n] (such as
`jaxloop.lm.family.LossResult`), or the pair (nll, tokens): for each text the sum of -ln p in nats
over the counted tokens, and how many tokens were counted. The caller chooses texts and model:
held-out human texts under the generating model, or generated texts under a fixed reference model or
under the model that generated them.
"""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxloop.metrics.base import NOT_NEGATIVE, UNIT_INTERVAL, Metric


@runtime_checkable
class TextLosses(Protocol):
    """Negative log-likelihoods in nats [n] of the texts of one chain, and their tokens [n]."""

    @property
    def nll(self) -> np.ndarray: ...

    @property
    def tokens(self) -> np.ndarray: ...


ChainLosses = TextLosses | tuple[Sequence[float], Sequence[int]]


def _nll_and_tokens(chain: ChainLosses, index: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(chain, TextLosses):
        pair: tuple[Any, Any] = chain.nll, chain.tokens
    else:
        pair = chain
    nll, tokens = (np.asarray(values, np.float64) for values in pair)
    if nll.shape != tokens.shape or nll.ndim != 1:
        raise ValueError(
            f"losses[{index}] has nll {list(nll.shape)} and tokens {list(tokens.shape)}, one of "
            "each per text is needed."
        )
    return nll, tokens


def held_out_loss(losses: Sequence[ChainLosses]) -> np.ndarray:
    """Mean cross-entropy per token of each chain, in nats, >= 0: [c] float64.

    The sum of nll divided by the sum of tokens. No token at all: nan.
    """
    values = []
    for index, chain in enumerate(losses):
        nll, tokens = _nll_and_tokens(chain, index)
        values.append(nll.sum() / tokens.sum() if tokens.sum() else np.nan)
    return np.array(values)


def perplexity(losses: Sequence[ChainLosses]) -> np.ndarray:
    """Perplexity of each chain's texts as one stream, >= 1: [c] float64.

    exp(`held_out_loss`). No token at all: nan.
    """
    return np.exp(held_out_loss(losses))


def text_perplexities(losses: Sequence[ChainLosses]) -> list[np.ndarray]:
    """Perplexity of each text, exp(nll / tokens), >= 1: a list of [n_c] float64.

    A text without tokens: nan.
    """
    pairs = [_nll_and_tokens(chain, index) for index, chain in enumerate(losses)]
    return [
        np.exp(np.divide(nll, tokens, out=np.full_like(nll, np.nan), where=tokens > 0))
        for nll, tokens in pairs
    ]


def mean_text_perplexity(losses: Sequence[ChainLosses]) -> np.ndarray:
    """Mean over texts of exp(nll / tokens), >= 1: [c] float64 (arXiv 2410.15234).

    That paper takes chunks for texts. Texts without tokens are left out; none left: nan. One text
    in a rare language can carry this mean: see `perplexity`.
    """
    means = []
    for values in text_perplexities(losses):
        means.append(np.nan if np.isnan(values).all() else np.nanmean(values))
    return np.array(means)


def tail_mass(token_nll: Sequence[Sequence[np.ndarray]], probability: float = 1e-3) -> np.ndarray:
    """Share of tokens that the model gives less than `probability`, in [0, 1]: [c] float64.

    What a model under recursive training forgets first is the tail (Shumailov et al. 2024), so on
    held-out human texts this share grows. No token: 0.

    Args:
        token_nll: for each chain, an array of -ln p for every text; nan is padding.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}, a number between 0 and 1 is needed.")
    shares = []
    for chain in token_nll:
        texts = [np.asarray(text, np.float64).reshape(-1) for text in chain]
        nll = np.concatenate([np.zeros(0), *texts])
        nll = nll[~np.isnan(nll)]
        shares.append(float((nll > -np.log(probability)).mean()) if len(nll) else 0.0)
    return np.array(shares)


_AT_LEAST_ONE = (1, None)

METRICS = (
    Metric("held_out_loss", held_out_loss, ("losses",), NOT_NEGATIVE, "nats/token"),
    Metric(
        "held_out_perplexity", perplexity, ("losses",), _AT_LEAST_ONE, per_text=text_perplexities
    ),
    Metric(
        "own_perplexity", perplexity, ("own_losses",), _AT_LEAST_ONE, per_text=text_perplexities
    ),
    Metric(
        "reference_perplexity",
        perplexity,
        ("reference_losses",),
        _AT_LEAST_ONE,
        per_text=text_perplexities,
    ),
    Metric(
        "mean_text_perplexity",
        mean_text_perplexity,
        ("reference_losses",),
        _AT_LEAST_ONE,
        per_text=text_perplexities,
    ),
    Metric("tail_mass", tail_mass, ("token_nll",), UNIT_INTERVAL),
)
