"""NLTK's word tokens for whole corpora at a time; and other tokenisers that work on chunks.

A chunk is what stands between two spaces, and these tokenisers never look across a space. So they
are run once for every *distinct* chunk, and the tokens of a text are looked up. On tweets that is
ten times less work than a call per text, and the tokens are those of NLTK's own code.
"""

import re
import string
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jaxloop.metrics.tokens import Spans, Tokens, encode_spans, factorize, split_spaces

_QUOTES = ('"', "''")
_CLOSERS = "])}>\"'»”’"
_FINAL_PERIOD = re.compile(rf"(?s)(^|[^.])\.([{re.escape(_CLOSERS)} ]*)\Z")
_ASCII_WORD_PUNCT = re.compile(r"\w+|[^\w\s]+")
# Chunks whose tokens these patterns give; all others go through NLTK.
_EASY = re.compile(r"([#@]?)([A-Za-z0-9]+)([,;:?!]?)")
_LINK = re.compile(r"(https?)(:)(//t\.co/[A-Za-z0-9]+)")
_CONTRACTED = {"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"}
_BATCH = 20_000  # characters handed to NLTK in one call
# How a chunk begins decides how NLTK reads a quotation mark in front of it.
_AFTER_SPACE, _AT_START, _AFTER_OTHER = range(3)

# Periods behind these do not end a sentence. Punkt learns such a list from text; this one is fixed,
# so that counts do not depend on whether its model files are installed.
_ABBREVIATIONS = frozenset(
    "mr mrs ms messrs dr prof rev hon gen col lt sgt capt cmdr maj adm gov sen rep pres supt jr "
    "sr st mt ft ave blvd rd "
    "vs etc al e.g i.e cf viz ca approx dept univ assn inc corp co ltd bros llc nos vol vols pp "
    "fig figs ed eds est "
    "a.m p.m b.c a.d u.s u.k u.n e.u d.c u.s.a u.s.s.r n.y l.a ph.d m.d b.a m.a r.i.p "
    "jan feb apr jun jul aug sep sept oct nov dec mon tue tues thu thur thurs fri".split()
)


def words(texts: Sequence[str], sentences: bool = True) -> Tokens:
    """Return NLTK's word tokens of every text, coded.

    The ASCII control characters 28 to 31 count as white space, as in `str.split`.

    Args:
        sentences: False: exactly `NLTKWordTokenizer().tokenize(text)`, which takes a text for one
            sentence, so that of all periods only those at the very end become tokens ("It rained.
            We left." -> It rained. We left .). True: as `word_tokenize`, which first cuts sentences
            with the Punkt model, so that the period of every sentence becomes a token (It rained .
            We left .). Punkt's English model is a download, not part of NLTK; here a word's final
            period ends a sentence unless the word is an initial or a known abbreviation, which is
            Punkt's rule without what it learnt from text: it differs where Punkt knows another
            abbreviation, or takes a word in capitals behind an abbreviation for the start of a
            sentence.
    """
    spans = split_spaces(texts)
    chunks, first = encode_spans(spans)
    names = np.array([*spans.strings(first), ""], object)[:-1]
    filled = chunks.lengths > 0
    head, last = spans.offsets[:-1][filled], spans.offsets[1:][filled] - 1
    final = np.zeros(len(chunks.codes), bool)
    final[last] = True
    start = np.zeros(len(chunks.codes), bool)
    start[head] = sentences | (spans.starts[head] == spans.begins[:-1][filled])
    if sentences:
        ends = np.array([_ends_sentence(name) for name in names], bool)
        inner = np.flatnonzero(ends[chunks.codes] & ~final)
        final[inner] = True
        start[inner + 1] = True
    quoted = np.array([name.startswith(_QUOTES) for name in names], bool)[chunks.codes]
    lead = np.where(quoted, _lead(spans, start), _AFTER_SPACE)
    variant, unique = factorize(chunks.codes.astype(np.int64) * 6 + final * 3 + lead)
    keys = [_Chunk(names[key // 6], bool(key // 3 % 2), int(key % 3)) for key in unique.tolist()]
    closing = np.array([_is_closing(name) for name in names], bool)[chunks.codes]
    ended = closing[last]
    for stop, end in zip(head[ended].tolist(), last[ended].tolist(), strict=True):
        begin = _closed_word(spans, closing, start, stop, end)
        if begin < end:
            merged = " ".join(names[chunks.codes[begin : end + 1]])
            variant[begin] = len(keys)
            variant[begin + 1 : end + 1] = len(keys) + 1
            keys += [_Chunk(merged, True, int(lead[begin])), _Chunk("", False, _AFTER_SPACE)]
    return _look_up(variant, spans.offsets, _nltk_chunks(keys))


class _Chunk(NamedTuple):
    """A chunk between spaces, whether it ends a sentence, and how it begins."""

    text: str
    final: bool
    lead: int


def _is_closing(chunk: str) -> bool:
    """Whether a chunk is closing marks alone."""
    return bool(chunk) and not chunk.startswith(_QUOTES) and not chunk.strip(_CLOSERS)


def _closed_word(spans: Spans, closing: np.ndarray, start: np.ndarray, stop: int, end: int) -> int:
    """The chunk whose word the closing marks up to chunk `end` belong to, at least `stop`.

    NLTK cuts a final period off too where only closing marks follow it as chunks of their own: they
    make one chunk with its word.
    """
    begin = end
    while begin > stop and closing[begin] and not start[begin]:
        if (spans.buffer[spans.ends[begin - 1] : spans.starts[begin]] != ord(" ")).any():
            break
        begin -= 1
    return begin


def word_punct(texts: Sequence[str], lower: bool = True, punctuation: bool = False) -> Tokens:
    """Return runs of word characters and of other characters (NLTK's WordPunctTokenizer), coded.

    Args:
        punctuation: False drops tokens that are one ASCII punctuation character, as Guo et al.
            (arXiv 2311.09807) do.
    """
    # nltk takes more than a second to import.
    from nltk.tokenize import WordPunctTokenizer

    tokenizer = WordPunctTokenizer()
    marks = set() if punctuation else set(string.punctuation)

    def cut(chunk: str) -> list[str]:
        # NLTK's engine counts combining marks as word characters, `re` does not: plain ASCII only
        # takes the quick way.
        tokens = _ASCII_WORD_PUNCT.findall(chunk) if chunk.isascii() else tokenizer.tokenize(chunk)
        return [token.lower() if lower else token for token in tokens if token not in marks]

    return map_chunks(texts, lambda chunks: [cut(chunk) for chunk in chunks])


def map_chunks(texts: Sequence[str], cut: Callable[[list[str]], list[list[str]]]) -> Tokens:
    """Return coded tokens of a tokeniser that never looks across white space.

    Args:
        cut: gets every distinct chunk once.
    """
    spans = split_spaces(texts)
    chunks, first = encode_spans(spans)
    return _look_up(chunks.codes, spans.offsets, cut(spans.strings(first)))


def _look_up(chunk_codes: np.ndarray, offsets: np.ndarray, pieces: list[list[str]]) -> Tokens:
    """Tokens of texts given as chunk codes, where chunk code v stands for the tokens pieces[v]."""
    table: dict[str, int] = {}
    flat = np.array(
        [table.setdefault(token, len(table)) for piece in pieces for token in piece], np.int32
    )
    width = np.fromiter(map(len, pieces), np.int64, len(pieces))
    begin = np.cumsum(width) - width
    widths = width[chunk_codes]
    upto = np.concatenate([[0], np.cumsum(widths)])
    index = np.arange(upto[-1]) + np.repeat(begin[chunk_codes] - upto[:-1], widths)
    return Tokens(flat[index], upto[offsets], len(table))


def _ends_sentence(chunk: str) -> bool:
    match = "." in chunk and _FINAL_PERIOD.search(chunk)
    if not match:
        return False
    word = chunk[: match.start() + len(match[1])].lower().lstrip("([{<\"'“‘«`")
    return not (
        word in _ABBREVIATIONS
        or word.rsplit("-", 1)[-1] in _ABBREVIATIONS
        or (len(word) == 1 and word.isalpha())
    )


def _lead(spans: Spans, start: np.ndarray) -> np.ndarray:
    """How each chunk begins: `_AT_START` of a sentence, `_AFTER_SPACE`, `_AFTER_OTHER`."""
    behind_space = spans.buffer[spans.starts - 1] == ord(" ")
    return np.where(start, _AT_START, np.where(behind_space, _AFTER_SPACE, _AFTER_OTHER))


@cache
def _nltk() -> Any:
    # nltk takes more than a second to import.
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _nltk_chunks(chunks: list[_Chunk]) -> list[list[str]]:
    """NLTK's tokens of chunks."""
    pieces: list[list[str]] = [[]] * len(chunks)
    plain = []
    for index, (text, final, lead) in enumerate(chunks):
        easy = _EASY.fullmatch(text) or _LINK.fullmatch(text)
        if easy and easy[2].lower() not in _CONTRACTED:
            pieces[index] = [token for token in easy.groups() if token]
            continue
        if final and "." in text:
            text = _FINAL_PERIOD.sub(r"\1 .\2", text)
        if lead == _AFTER_SPACE:
            plain.append((index, text))
        else:
            before = "" if lead == _AT_START else "x\n"
            pieces[index] = _nltk().tokenize(f"{before}{text} x")[bool(before) : -1]
    mark = "x0x"
    while any(mark in text for _, text in plain):
        mark += "0x"
    for batch in _batches(plain):
        # The mark stands on both sides, so that no chunk is at the start or the end of what NLTK
        # takes for the sentence.
        joined = f" {mark} ".join(text for _, text in batch)
        tokens = _nltk().tokenize(f"{mark} {joined} {mark}")
        cuts = [at for at, token in enumerate(tokens) if token == mark]
        for (index, _), left, right in zip(batch, cuts[:-1], cuts[1:], strict=True):
            pieces[index] = tokens[left + 1 : right]
    return pieces


def _batches(chunks: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Chunks in groups of at least `_BATCH` characters, but for the last."""
    batch: list[tuple[int, str]] = []
    size = 0
    for index, text in chunks:
        batch.append((index, text))
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
