"""Cuts English prose into sentences."""

import bisect
import re
from collections.abc import Iterator

_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s+[\"'“‘(\[]*[A-Z0-9]|\s*$)")
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Sr|Jr|Prof|Rev|Hon|Capt|Col|Gen|Lt|Messrs|vs|etc|e\.g|i\.e|No|Mt)"
    r"|\b[A-Z])\.$"
)
_QUOTE = re.compile(r"[\"“”]")
# A longer quotation is a speech, which has sentences of its own.
_LONGEST_QUOTATION = 300
# Who said what is quoted: up to three words and a verb of speech.
_SPEAKER = re.compile(
    r"\s+(?:[\w’'.-]+\s+){1,3}?(?:said|says|asked|asks|told|yelled|shouted|cried|replied|answered"
    r"|exclaimed|screamed|whispered|called|muttered|thought|added|announced|explained|begged"
    r"|declared|responded|joked|laughed|sighed|wondered|warned|insisted|demanded|suggested"
    r"|remarked|repeated|growled|hollered)\b(?P<end>\s*[.!?,]|\s+\w+ly\s*[.!?,])?"
)


def sentences(text: str) -> list[str]:
    """Return the sentences of English prose, with white space collapsed.

    Abbreviations such as "Mr." and initials do not end a sentence, nor does an end inside a
    quotation, or one at its close where the speaker follows ('"Stop!" Tom said.').
    """
    text = " ".join(text.split())
    quotations = list(_quotations(text))
    pieces, begin = [], 0
    for match in _END.finditer(text):
        end = match.end()
        if end == len(text) or not _goes_on(text, begin, end, quotations):
            pieces.append(text[begin:end].strip())
            begin = end
    if text[begin:].strip():
        pieces.append(text[begin:].strip())
    return pieces


def _goes_on(text: str, begin: int, end: int, quotations: list[tuple[int, int]]) -> bool:
    """Whether the sentence that begins at `begin` goes on behind what looks like its end."""
    if _ABBREVIATION.search(text[begin:end]):
        return True
    before = bisect.bisect_left(quotations, (end, 0))
    if before and end < quotations[before - 1][1]:
        return True
    whole = text[begin:end].lstrip()
    if not whole.startswith(('"', "“")) or not whole.endswith(('"', "”")):
        return False
    speaker = _SPEAKER.match(text, end)
    # 'He came. "I am home." Tom said that…' leaves open who spoke.
    return speaker is not None and (whole[-2] in "!?" or speaker["end"] is not None)


def _quotations(text: str) -> Iterator[tuple[int, int]]:
    """Yield (first, last + 1) of every quotation that is closed, but for very long ones."""
    opened: int | None = None
    for match in _QUOTE.finditer(text):
        at = match.start()
        # A straight mark opens a quotation where a space or a bracket stands before it.
        if match[0] == "“" or (match[0] == '"' and (at == 0 or text[at - 1] in " ([—-")):
            opened = at
        elif opened is not None:
            if at - opened <= _LONGEST_QUOTATION:
                yield opened, at + 1
            opened = None
