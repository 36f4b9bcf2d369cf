"""Which texts are the same text: by their content, not by their bytes."""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

_BETWEEN = re.compile(r"[\W_]+")


def content(text: str) -> str:
    """What a text says: its letters and digits in Unicode's compatible form, small, with one space
    for what stands between them.

    A text of signs alone is its signs. Texts of one content differ in case, spaces, punctuation and
    Unicode form at most.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _BETWEEN.sub(" ", plain).strip() or " ".join(plain.split())


def keys(texts: Sequence[str], prompts: Sequence[str] | None = None) -> list[bytes]:
    """A key of 128 bits of the content of each text, with its prompt where there are prompts: equal
    keys, one text.
    """
    parts = [texts] if prompts is None else [texts, prompts]
    return [_digest("\x00".join(map(content, row))) for row in zip(*parts, strict=True)]


def _digest(text):
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def firsts(found: Sequence[bytes]) -> list[bool]:
    """True for the first row of each key."""
    seen: set[bytes] = set()
    return [key not in seen and not seen.add(key) for key in found]


def counted(
    texts: Sequence[str], found: Sequence[bytes], prompts: Sequence[str] | None = None
) -> dict[str, int]:
    """How many rows repeat an earlier one to the letter, and how many in content alone."""
    rows = len(set(texts)) if prompts is None else len(set(zip(texts, prompts, strict=True)))
    return {"exact duplicates": len(texts) - rows, "near duplicates": rows - len(set(found))}
