"""Turns texts into integer-coded tokens and n-grams, a whole corpus at a time.

A corpus is one buffer of UTF-8 bytes; token boundaries are found by comparisons on that buffer,
tokens and n-grams get integer codes from hash tables over 64-bit keys. No Python object is made per
token, so millions of texts take seconds and every code is exact: two tokens share a code only where
all their bytes agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

_PLAIN, _SPACE, _ISOLATED, _PERIOD, _DIGIT, _DASH = range(6)


def _byte_classes() -> np.ndarray:
    """Class of every byte under the 13a rules (mteval-v13a, as in sacrebleu): [256] uint8."""
    classes = np.full(256, _PLAIN, np.uint8)
    for first, last in (("{", "~"), ("[", "`"), (" ", "&"), ("(", "+"), (":", "@"), ("/", "/")):
        classes[ord(first) : ord(last) + 1] = _ISOLATED
    classes[ord("0") : ord("9") + 1] = _DIGIT
    classes[[ord("."), ord(",")]] = _PERIOD
    classes[ord("-")] = _DASH
    classes[[9, 10, 11, 12, 13, 28, 29, 30, 31, 32]] = _SPACE
    return classes


_CLASSES = _byte_classes()
# Characters beyond ASCII at which str.split() cuts, by their UTF-8 bytes: lead byte -> the
# continuations.
_WIDE_SPACES = (
    (0xC2, ((0x85,), (0xA0,))),
    (0xE1, ((0x9A, 0x80),)),
    (
        0xE2,
        tuple((0x80, last) for last in (*range(0x80, 0x8B), 0xA8, 0xA9, 0xAF)) + ((0x81, 0x9F),),
    ),
    (0xE3, ((0x80, 0x80),)),
)
_PADDING = 16  # bytes behind the buffer, so that an eight-byte read at its last byte stays inside


@dataclass(frozen=True)
class Tokens:
    """Coded tokens of n texts, T tokens in all.

    Attributes:
        codes: [T] int32 in [0, size): equal codes, equal tokens.
        offsets: [n + 1] int64: text i holds codes[offsets[i] : offsets[i + 1]].
        size: how many different tokens there are.
    """

    codes: np.ndarray
    offsets: np.ndarray
    size: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each text: [n] int64."""
        return np.diff(self.offsets)

    @property
    def owners(self) -> np.ndarray:
        """The text that each token is in: [T] int32."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int32), self.lengths)


@dataclass(frozen=True)
class Spans:
    """Byte ranges of the tokens of n texts inside one buffer.

    Token t is buffer[starts[t] : ends[t]]. Text i begins at byte begins[i] and has the tokens
    offsets[i] to offsets[i + 1]; both arrays are [n + 1].
    """

    buffer: np.ndarray
    begins: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray

    def strings(self, index: np.ndarray) -> list[str]:
        """Return the tokens at `index` as strings."""
        raw = self.buffer.tobytes()
        return [
            raw[a:b].decode("utf-8", "surrogatepass")
            for a, b in zip(self.starts[index].tolist(), self.ends[index].tolist(), strict=True)
        ]


def check_texts(texts: Sequence[str], name: str = "texts") -> list[str]:
    """Return `texts` as a list.

    Raises:
        ValueError: it is one string, or holds anything but strings.
    """
    if isinstance(texts, str | bytes):
        raise ValueError(f"{name} is one string, a sequence of strings is needed.")
    texts = list(texts)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(
                f"{name}[{index}] is {type(text).__name__} {text!r:.40}, a string is needed."
            )
    return texts


def _buffer(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts joined by spaces as bytes [B], and where each text begins [n + 1].

    The last entry is behind the last text.
    """
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    begins = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)) + 1, out=begins[1:])
    return np.frombuffer(b" ".join([*encoded, b" " * _PADDING]), np.uint8), begins


def _classify(buffer: np.ndarray) -> np.ndarray:
    """Class of every byte, wide spaces included: [B] uint8."""
    classes = _CLASSES[buffer]
    for lead, tails in _WIDE_SPACES:
        at = np.flatnonzero(buffer == lead)
        for tail in tails if len(at) else ():
            hit = at
            for step, value in enumerate(tail, 1):
                hit = hit[buffer[hit + step] == value]
            for step in range(len(tail) + 1):
                classes[hit + step] = _SPACE
    return classes


def _cut(
    buffer: np.ndarray, begins: np.ndarray, space: np.ndarray, isolated: np.ndarray | None
) -> Spans:
    """Maximal runs of bytes that are no space, cut on both sides of isolated bytes."""
    solid = ~space
    opens = solid.copy()
    opens[1:] &= space[:-1] if isolated is None else (space | isolated)[:-1] | isolated[1:]
    closes = solid
    closes[:-1] &= space[1:] if isolated is None else (space | isolated)[1:] | isolated[:-1]
    starts = np.flatnonzero(opens)
    return Spans(
        buffer, begins, starts, np.flatnonzero(closes) + 1, np.searchsorted(starts, begins)
    )


def split_spaces(texts: Sequence[str]) -> Spans:
    """Return `str.split()` of every text."""
    buffer, begins = _buffer(texts)
    return _cut(buffer, begins, _classify(buffer) == _SPACE, None)


def split_13a(texts: Sequence[str]) -> Spans:
    """Return the 13a tokens of every text: sacrebleu's `tokenizer_13a` of `text.rstrip()`.

    The four rewriting rules of 13a, as a statement about bytes: ASCII punctuation other than ' , -
    . is a token of its own. A run of k periods and commas is cut into single ones, but the last of
    them stays on a digit behind it if k is odd and a digit stands before the run, or k is even and
    none does (the rules consume characters in pairs). A dash behind a digit is a token of its own.
    """
    texts = [
        _unescape(text) if "&" in text or "-\n" in text or "<skipped>" in text else text.rstrip()
        for text in texts
    ]
    buffer, begins = _buffer(texts)
    classes = _classify(buffer)
    isolated = classes == _ISOLATED
    period = np.flatnonzero(classes == _PERIOD)
    if len(period):
        first = np.flatnonzero(np.diff(period, prepend=-2) != 1)
        run = np.diff(first, append=len(period))
        last = period[first + run - 1]
        # Byte -1 is the padding behind the buffer, a space: right for a run that opens the corpus.
        digit_before = classes[period[first] - 1] == _DIGIT
        attached = (classes[last + 1] == _DIGIT) & ((run % 2 == 1) == digit_before)
        isolated[period] = True
        isolated[last[attached]] = False
    dash = np.flatnonzero(classes == _DASH)
    isolated[dash[classes[dash - 1] == _DIGIT]] = True
    return _cut(buffer, begins, classes == _SPACE, isolated)


def _unescape(text: str) -> str:
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    return (
        text.replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    )


def encode_spans(spans: Spans) -> tuple[Tokens, np.ndarray]:
    """Return codes of the tokens, and the index of the first token with each code [size].

    Eight bytes at a time: a token's code is the pair (code of its first bytes, its next eight
    bytes), numbered anew. A token's tail is filled with 0xFF, which UTF-8 never holds, so a short
    token is never taken for a longer one with zero bytes.
    """
    words = np.ndarray((len(spans.buffer) - 7,), np.dtype("<u8"), buffer=spans.buffer, strides=(1,))
    lengths = spans.ends - spans.starts
    fill = ~np.uint64(0) << (np.arange(8, dtype=np.uint64) * np.uint64(8))
    fill = np.append(fill, np.uint64(0))
    codes, unique = factorize(words[spans.starts] | fill[np.minimum(lengths, 8)])
    size = len(unique)
    rest = np.flatnonzero(lengths > 8)
    for done in range(8, 65, 8):
        if not len(rest):
            break
        if done == 64:  # long tokens: whole, through a dictionary
            raw = spans.buffer.tobytes()
            table: dict[bytes, int] = {}
            pairs = zip(spans.starts[rest].tolist(), spans.ends[rest].tolist(), strict=True)
            codes[rest] = [size + table.setdefault(raw[a:b], len(table)) for a, b in pairs]
            size += len(table)
            break
        chunk, chunks = factorize(
            words[spans.starts[rest] + done] | fill[np.minimum(lengths[rest] - done, 8)]
        )
        joint, unique = factorize(codes[rest].astype(np.int64) * len(chunks) + chunk)
        codes[rest] = joint + size
        size += len(unique)
        rest = rest[lengths[rest] > done + 8]
    codes, size = _renumber(codes, size)
    first = np.empty(size, np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return Tokens(codes, spans.offsets, size), first


def factorize(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return codes of 64-bit keys in order of first appearance, and the keys by code."""
    codes, unique = pd.factorize(keys)
    return codes.astype(np.int32) if len(keys) < 2**31 else codes, unique


def _renumber(codes: np.ndarray, size: int) -> tuple[np.ndarray, int]:
    """Codes in [0, size) with the unused numbers taken out."""
    used = np.zeros(size, bool)
    used[codes] = True
    number = np.cumsum(used, dtype=np.int32) - np.int32(1)
    return number[codes], int(used.sum())


def tokens_13a(texts: Sequence[str]) -> Tokens:
    """Return the 13a tokens of every text (see `split_13a`), coded."""
    return encode_spans(split_13a(texts))[0]


def group(codes: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort codes [T] stably by counting, in time linear in T + size.

    Returns the order [T] that brings equal codes together, and the edges [size + 1]: code v is at
    the places edges[v] to edges[v + 1] of it.
    """
    index = np.arange(len(codes), dtype=np.int32 if len(codes) < 2**31 else np.int64)
    row = sparse.csr_array(
        (index, codes, np.array([0, len(codes)], index.dtype)), shape=(1, max(size, 1))
    )
    columns = row.tocsc()
    return columns.data, columns.indptr


def ngrams(tokens: Tokens, order: int) -> Tokens:
    """Return the n-grams of every text, coded: text i has max(0, length - order + 1) of them."""
    codes, size = tokens.codes, tokens.size
    lengths = tokens.lengths
    for n in range(2, order + 1):
        left = np.maximum(lengths - n + 2, 0)  # how many (n-1)-grams each text has
        begins = np.cumsum(left) - left
        keep = np.ones(int(left.sum()), bool)
        keep[(begins + left - 1)[left > 0]] = False
        at = np.flatnonzero(keep)
        codes, unique = factorize(codes[at].astype(np.int64) * size + codes[at + 1])
        size = max(len(unique), 1)
    counts = np.maximum(lengths - order + 1, 0)
    return Tokens(codes, np.concatenate([[0], np.cumsum(counts)]), size if len(codes) else 0)


def per_chain(tokens: Tokens, chains: np.ndarray) -> Tokens:
    """Return codes that also tell chains apart: one token in two chains gets two codes.

    Args:
        chains: the chain of each text [n].
    """
    if not len(chains) or not chains.any():
        return tokens
    codes, unique = factorize(chains[tokens.owners].astype(np.int64) * tokens.size + tokens.codes)
    return Tokens(codes, tokens.offsets, len(unique))
