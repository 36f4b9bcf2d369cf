"""Digests of texts: equal texts in equal order, and nothing else, give equal digests."""

import hashlib
import itertools
from collections.abc import Iterable
from typing import Protocol

import pandas as pd

_TEXTS_AT_A_TIME = 1024


class Digest(Protocol):
    """A hash object of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


def update_digest(digest: Digest, texts: Iterable[str]) -> None:
    """Add texts to a digest, each with its length in bytes of UTF-8 (eight, little-endian) before.

    Lone surrogates are digested too.
    """
    rest = iter(texts)
    heads: dict[int, str] = {}
    # A character of Latin-1 for each byte: texts of ASCII, which are most, are those already, and
    # one encoding serves many.
    while data := list(map(_bytes_as_latin, itertools.islice(rest, _TEXTS_AT_A_TIME))):
        lengths = list(map(len, data))
        for length in set(lengths) - heads.keys():
            heads[length] = length.to_bytes(8, "little").decode("latin-1")
        pieces = [""] * (2 * len(data))
        pieces[0::2], pieces[1::2] = map(heads.__getitem__, lengths), data
        digest.update("".join(pieces).encode("latin-1"))


def _bytes_as_latin(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def digest_texts(texts: Iterable[str]) -> str:
    """Return the SHA-256 (hex) over texts in their order."""
    digest = hashlib.sha256()
    update_digest(digest, texts)
    return digest.hexdigest()


def fingerprint(frame: pd.DataFrame) -> str:
    """Return the SHA-256 (hex) over the texts of a frame."""
    return digest_texts(frame["text"])
