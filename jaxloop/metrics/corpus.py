"""The texts of many chains, tokenised once for all the metrics that read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from jaxloop.metrics.tokens import Tokens, check_texts, per_chain, tokens_13a
from jaxloop.metrics.words import words

# What a metric of texts takes: the texts of one chain, or of several.
Texts: TypeAlias = "Sequence[str] | Sequence[Sequence[str]] | Corpus"
# What it returns, per chain: a float for one chain, [c] float64 for several; and per text: [n] for
# one chain, a list of arrays for several.
ChainValues = float | np.ndarray
TextValues = np.ndarray | list[np.ndarray]


@dataclass(frozen=True, eq=False)
class Corpus:
    """n texts of c chains; they are tokenised on first use, and the tokens are kept.

    Attributes:
        chains: the texts of each chain.
        single: whether it was made of the texts of one chain, without a chain axis.
    """

    chains: tuple[tuple[str, ...], ...]
    single: bool = False

    @classmethod
    def of(cls, texts: Texts) -> "Corpus":
        """Return a corpus of the texts of one chain, or of a sequence of chains.

        Raises:
            ValueError: a text is no string.
        """
        if isinstance(texts, Corpus):
            return texts
        listed: list[Any] = [] if isinstance(texts, str | bytes) else list(texts)
        if listed and all(map(_is_chain, listed)):
            chains = (check_texts(chain, f"texts[{c}]") for c, chain in enumerate(listed))
            return cls(tuple(map(tuple, chains)))
        one: Any = texts if isinstance(texts, str | bytes) else listed
        return cls((tuple(check_texts(one)),), single=True)

    @cached_property
    def texts(self) -> list[str]:
        """All texts, chain after chain: [n]."""
        return [text for chain in self.chains for text in chain]

    @cached_property
    def sizes(self) -> np.ndarray:
        """Texts in each chain: [c] int64."""
        return np.fromiter(map(len, self.chains), np.int64, len(self.chains))

    @cached_property
    def owners(self) -> np.ndarray:
        """The chain of each text: [n] int32."""
        return np.repeat(np.arange(len(self.chains), dtype=np.int32), self.sizes)

    @cached_property
    def tokens(self) -> Tokens:
        """13a tokens; equal tokens of different chains share a code."""
        return tokens_13a(self.texts)

    @cached_property
    def chain_tokens(self) -> Tokens:
        """13a tokens coded chain by chain (see `tokens.per_chain`)."""
        return per_chain(self.tokens, self.owners)

    @cached_property
    def words(self) -> Tokens:
        """NLTK words of each chain's texts joined by spaces, one row a chain, coded by chain."""
        return per_chain(
            words([" ".join(chain) for chain in self.chains]),
            np.arange(len(self.chains), dtype=np.int32),
        )

    @cached_property
    def _prefixes(self) -> dict[int, Tokens]:
        return {}

    def prefix_words(self, characters: int) -> Tokens:
        """NLTK words of the first `characters` characters of each text."""
        if characters not in self._prefixes:
            self._prefixes[characters] = words([text[:characters] for text in self.texts])
        return self._prefixes[characters]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over the texts of each chain, [c] float64; 0 for a chain without texts."""
        total = np.bincount(self.owners, values, minlength=len(self.chains))
        return total / np.maximum(self.sizes, 1)

    def by_chain(self, values: np.ndarray) -> ChainValues:
        """Return values of chains [c] in the form of the input: a float for a single chain."""
        return float(values[0]) if self.single else values

    def by_text(self, values: np.ndarray) -> TextValues:
        """Return values of texts [n] in the form of the input: `split`, or [n] for one chain."""
        return values if self.single else self.split(values)

    def split(self, values: np.ndarray) -> list[np.ndarray]:
        """Return values of texts [n] as a list of arrays, one for each chain."""
        return np.split(values, np.cumsum(self.sizes)[:-1]) if len(self.chains) else []


def _is_chain(texts: object) -> bool:
    return hasattr(texts, "__iter__") and not isinstance(texts, str | bytes)


def check_reference(reference: Corpus, corpus: Corpus) -> None:
    """Refuse a reference that is neither one set of texts nor one for each chain.

    Raises:
        ValueError: the numbers of chains differ.
    """
    if not reference.single and len(reference.chains) != len(corpus.chains):
        raise ValueError(
            f"reference_texts has {len(reference.chains)} chains, texts has "
            f"{len(corpus.chains)}: the same number is needed."
        )


def chain_means(values: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of each chain's values [n_c], nan for a chain without texts: [c] float64."""
    return np.array([v.mean() if len(v) else np.nan for v in values], np.float64)
