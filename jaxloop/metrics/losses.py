"""Loss, perplexity and tail mass from the nats that a language model gave to texts.

A chain's losses are one object with `nats` and `tokens`, both [n] (such as
`jaxloop.lm.family.LossResult`), or the pair (nats, tokens): the sum of -ln p over the counted
tokens of each text, and how many tokens were counted. Which texts and which model is the caller's
choice: held-out human texts under the generating model, generated texts under a fixed reference
model or under the model that wrote them.
"""

from collections.abc import Sequence

import numpy as np


def _pair(chain, index: int) -> tuple[np.ndarray, np.ndarray]:
    nats, tokens = (chain.nats, chain.tokens) if hasattr(chain, "nats") else chain
    nats, tokens = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
    if nats.shape != tokens.shape or nats.ndim != 1:
        raise ValueError(
            f"losses[{index}] has nats {list(nats.shape)} and tokens {list(tokens.shape)}, one "
            "of each per text is needed."
        )
    return nats, tokens


def held_out_loss(losses: Sequence) -> np.ndarray:
    """Mean cross-entropy per token of each chain, sum of nats / sum of tokens, in nats, >= 0: [c]
    float64. No token at all: nan.
    """
    values = []
    for index, chain in enumerate(losses):
        nats, tokens = _pair(chain, index)
        values.append(nats.sum() / tokens.sum() if tokens.sum() else np.nan)
    return np.array(values)


def perplexity(losses: Sequence) -> np.ndarray:
    """exp(`held_out_loss`) of each chain, >= 1: [c] float64: the perplexity of all texts as one
    stream. No token at all: nan.
    """
    return np.exp(held_out_loss(losses))


def text_perplexities(losses: Sequence) -> list[np.ndarray]:
    """exp(nats / tokens) of each text, >= 1, nan for a text without tokens: a list of [n_c]
    float64.
    """
    pairs = [_pair(chain, index) for index, chain in enumerate(losses)]
    return [
        np.exp(np.divide(nats, tokens, out=np.full_like(nats, np.nan), where=tokens > 0))
        for nats, tokens in pairs
    ]


def mean_text_perplexity(losses: Sequence) -> np.ndarray:
    """Mean over texts of exp(nats / tokens), >= 1: [c] float64 (arXiv 2410.15234, which takes
    chunks for texts).

    Texts without tokens are left out; none left: nan. One text in a rare language can carry this
    mean: see `perplexity`.
    """
    return np.array(
        [
            np.nan if np.isnan(values).all() else np.nanmean(values)
            for values in text_perplexities(losses)
        ]
    )


def tail_mass(token_nats: Sequence[Sequence[np.ndarray]], probability: float = 1e-3) -> np.ndarray:
    """Share of tokens that the model gives less than `probability`, in [0, 1]: [c] float64. No
    token: 0.

    `token_nats` holds, for each chain, an array of -ln p for every text; entries that are nan are
    padding. What a model under recursive training forgets first is the tail (Shumailov et al.
    2024), so on held-out human texts this share grows.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability is {probability}, a number between 0 and 1 is needed.")
    shares = []
    for chain in token_nats:
        nats = np.concatenate(
            [np.zeros(0), *(np.asarray(text, np.float64).reshape(-1) for text in chain)]
        )
        nats = nats[~np.isnan(nats)]
        shares.append(float((nats > -np.log(probability)).mean()) if len(nats) else 0.0)
    return np.array(shares)
