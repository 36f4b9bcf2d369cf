"""Words as NLTK cuts them, and other tokenisers that never look across a space, for whole corpora
at a time.

All of them are run once per *distinct* chunk between spaces; the tokens of a text are then looked
up. On tweets that is ten times less work than a call per text, and the tokens are those of NLTK's
own code.
"""

import re
import string
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from jaxloop.metrics.tokens import Spans, Tokens, encode_spans, factorize, split_spaces

_CLOSERS = "])}>\"'»”’"
_FINAL_PERIOD = re.compile(rf"(?s)(^|[^.])\.([{re.escape(_CLOSERS)} ]*)\Z")
_ASCII_WORD_PUNCT = re.compile(r"\w+|[^\w\s]+")
# Chunks whose tokens are plain to see; all others go through NLTK.
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
    """NLTK's word tokens of every text, coded. (The ASCII control characters 28 to 31 count as
    white space, as in `str.split`.)

    sentences=False: exactly `NLTKWordTokenizer().tokenize(text)`, which takes a text for one
    sentence, so that of all periods only those at the very end become tokens ("It rained. We left."
    -> It rained. We left .). sentences=True: as `word_tokenize`, which first cuts sentences with
    the Punkt model, so that the period of every sentence becomes a token (It rained . We left .).
    Punkt's English model is a download, not part of NLTK; here a word's final period ends a
    sentence unless the word is an initial or a known abbreviation, which is Punkt's rule without
    what it learnt from text: it differs where Punkt knows another abbreviation, or takes a word in
    capitals behind an abbreviation for the start of a sentence.
    """
    spans = split_spaces(texts)
    chunks, first = encode_spans(spans)
    names = np.array(spans.strings(first) + [""], object)[:-1]
    final = np.zeros(len(chunks.codes), bool)
    last = spans.offsets[1:][chunks.lengths > 0] - 1
    final[last] = True
    start = np.zeros(len(chunks.codes), bool)
    head = spans.offsets[:-1][chunks.lengths > 0]
    start[head] = sentences | (spans.starts[head] == spans.begins[:-1][chunks.lengths > 0])
    if sentences:
        inner = np.flatnonzero(
            np.array([_ends_sentence(name) for name in names], bool)[chunks.codes] & ~final
        )
        final[inner] = True
        start[inner + 1] = True
    quoted = np.array([name.startswith(('"', "''")) for name in names], bool)[chunks.codes]
    lead = _lead(spans, start)
    variant, unique = factorize(
        chunks.codes.astype(np.int64) * 6 + final * 3 + np.where(quoted, lead, _AFTER_SPACE)
    )
    keys = [(names[key // 6], bool(key // 3 % 2), int(key % 3)) for key in unique.tolist()]
    # A final period is cut off too where only closing marks follow it as chunks of their own: they
    # make one chunk with its word.
    closing = np.array(
        [
            bool(name) and not name.startswith(('"', "''")) and not name.strip(_CLOSERS)
            for name in names
        ],
        bool,
    )
    ends = closing[chunks.codes[last]]
    for stop, end in zip(head[ends].tolist(), last[ends].tolist(), strict=True):
        begin = end
        while begin > stop and closing[chunks.codes[begin]] and not start[begin]:
            if (spans.buffer[spans.ends[begin - 1] : spans.starts[begin]] != ord(" ")).any():
                break
            begin -= 1
        if begin < end:
            merged = " ".join(names[chunks.codes[begin : end + 1]])
            variant[begin : end + 1] = len(keys) + 1
            variant[begin] = len(keys)
            keys += [
                (merged, True, int(lead[begin]) if quoted[begin] else _AFTER_SPACE),
                ("", False, _AFTER_SPACE),
            ]
    return _look_up(variant, spans.offsets, _nltk_chunks(keys))


def word_punct(texts: Sequence[str], lower: bool = True, punctuation: bool = False) -> Tokens:
    """Runs of word characters and runs of other characters (NLTK's WordPunctTokenizer), coded.

    punctuation=False drops tokens that are one ASCII punctuation character, as Guo et al. (arXiv
    2311.09807) do.
    """
    from nltk.tokenize import WordPunctTokenizer

    tokenizer = WordPunctTokenizer()
    marks = set() if punctuation else set(string.punctuation)

    def cut(chunk):
        # NLTK's engine counts combining marks as word characters, `re` does not: plain ASCII only
        # takes the quick way.
        tokens = _ASCII_WORD_PUNCT.findall(chunk) if chunk.isascii() else tokenizer.tokenize(chunk)
        return [token.lower() if lower else token for token in tokens if token not in marks]

    return map_chunks(texts, lambda chunks: [cut(chunk) for chunk in chunks])


def map_chunks(texts: Sequence[str], cut: Callable[[list[str]], list[list[str]]]) -> Tokens:
    """Coded tokens of a tokeniser that never looks across white space: `cut` gets every distinct
    chunk once.
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
    """How each chunk begins: at the start of a sentence, behind a plain space, behind other white
    space.
    """
    return np.where(
        start,
        _AT_START,
        np.where(spans.buffer[spans.starts - 1] == ord(" "), _AFTER_SPACE, _AFTER_OTHER),
    )


@cache
def _nltk():
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def _nltk_chunks(keys: list[tuple[str, bool, int]]) -> list[list[str]]:
    """NLTK's tokens of chunks (text, ends a sentence, how it begins)."""
    pieces: list[list[str]] = [[]] * len(keys)
    batch = []
    for index, (chunk, final, lead) in enumerate(keys):
        easy = _EASY.fullmatch(chunk) or _LINK.fullmatch(chunk)
        if easy and easy[2].lower() not in _CONTRACTED:
            pieces[index] = [token for token in easy.groups() if token]
            continue
        if final and "." in chunk:
            chunk = _FINAL_PERIOD.sub(r"\1 .\2", chunk)
        if lead == _AFTER_SPACE:
            batch.append((index, chunk))
        else:
            before = "" if lead == _AT_START else "x\n"
            pieces[index] = _nltk().tokenize(f"{before}{chunk} x")[bool(before) : -1]
    mark = "x0x"
    while any(mark in chunk for _, chunk in batch):
        mark += "0x"
    begin = 0
    while begin < len(batch):
        end, size = begin, 0
        while end < len(batch) and size < _BATCH:
            size += len(batch[end][1])
            end += 1
        # The mark stands on both sides, so that no chunk is at the start or the end of what NLTK
        # takes for the sentence.
        tokens = _nltk().tokenize(
            f"{mark} " + f" {mark} ".join(chunk for _, chunk in batch[begin:end]) + f" {mark}"
        )
        cuts = [at for at, token in enumerate(tokens) if token == mark]
        for (index, _), left, right in zip(batch[begin:end], cuts[:-1], cuts[1:], strict=True):
            pieces[index] = tokens[left + 1 : right]
        begin = end
    return pieces
