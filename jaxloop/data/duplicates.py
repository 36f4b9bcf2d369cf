"""Finds duplicate texts by their content, not by their bytes."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

_BETWEEN = re.compile(r"[\W_]+")
_ASCII_BETWEEN = {sign: " " for sign in range(128) if not chr(sign).isalnum()}


def content(text: str) -> str:
    """Return the content of a text: its letters and digits in lower case, with single spaces.

    They are in Unicode's compatibility form (NFKC). The content of a text that has neither letters
    nor digits is its signs. Texts with equal content differ only in case, spaces, punctuation or
    Unicode form.
    """
    if text.isascii():  # the same, several times as fast
        plain = text.lower()
        return " ".join(plain.translate(_ASCII_BETWEEN).split() or plain.split())
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _BETWEEN.sub(" ", plain).strip() or " ".join(plain.split())


def keys(texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[bytes]:
    """Return a 128-bit hash of the content of each text; equal texts have equal keys.

    If there are prompts, the content includes that of the prompt.
    """
    parts = [texts] if prompts is None else [texts, prompts]
    return [_digest("\x00".join(map(content, row))) for row in zip(*parts, strict=True)]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def firsts(keys: Sequence[bytes]) -> list[bool]:
    """Return True for the first row of each key."""
    seen: set[bytes] = set()
    first = []
    for key in keys:
        first.append(key not in seen)
        seen.add(key)
    return first


def groups(keys: Sequence[bytes]) -> list[int]:
    """Return the number of each row's key, in order of first appearance."""
    number: dict[bytes, int] = {}
    return [number.setdefault(key, len(number)) for key in keys]


def counted(
    texts: Sequence[str], keys: Sequence[bytes], prompts: Sequence[str] | None = None
) -> dict[str, int]:
    """Return how many rows repeat an earlier one exactly, and how many only in content."""
    rows = len(set(texts)) if prompts is None else len(set(zip(texts, prompts, strict=True)))
    return {"exact duplicates": len(texts) - rows, "near duplicates": rows - len(set(keys))}
