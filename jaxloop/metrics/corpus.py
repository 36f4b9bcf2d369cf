"""The texts of many chains, tokenised once for all the metrics that read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxloop.metrics.tokens import Tokens, check_texts, per_chain, tokens_13a
from jaxloop.metrics.words import words


@dataclass(frozen=True, eq=False)
class Corpus:
    """n texts of c chains. Tokens are coded on first use and kept; `single` remembers that one
    chain came without a chain axis.
    """

    chains: tuple[tuple[str, ...], ...]
    single: bool = False

    @classmethod
    def of(cls, texts: "Sequence[str] | Sequence[Sequence[str]] | Corpus") -> "Corpus":
        """A corpus from the texts of one chain, or from a sequence of chains. ValueError for
        anything but strings.
        """
        if isinstance(texts, Corpus):
            return texts
        if not isinstance(texts, str | bytes):
            texts = list(texts)
            if texts and all(
                hasattr(chain, "__iter__") and not isinstance(chain, str | bytes) for chain in texts
            ):
                return cls(
                    tuple(
                        tuple(check_texts(chain, f"texts[{index}]"))
                        for index, chain in enumerate(texts)
                    )
                )
        return cls((tuple(check_texts(texts)),), single=True)

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
        """NLTK words of each chain's texts joined by spaces: one row a chain (see `words.words`),
        coded chain by chain.
        """
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

    def by_chain(self, values: np.ndarray):
        """Values of chains [c] as they are asked for: a float for a single chain, else the array."""
        return float(values[0]) if self.single else values

    def by_text(self, values: np.ndarray):
        """Values of texts [n] as they are asked for: the array for a single chain, else a list of
        arrays, one a chain.
        """
        if self.single:
            return values
        return np.split(values, np.cumsum(self.sizes)[:-1]) if len(self.chains) else []
