"""Which texts are English, by py3langid: without a network, in place of the paper's judge.

py3langid reads a text byte by byte in Python. Here a batch of texts is read at once, the next byte
of each, with py3langid's own tables. Where two languages are so close that the order of a sum could
decide, py3langid itself is asked: the answers are its own.
"""

import functools
import importlib.metadata
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

_ENGLISH = "en"
# Scores are sums in float32 of a few hundred terms; relative to their size, no order of the terms
# changes them by more.
_CLOSE = 1e-4
# Bytes of a text that is read with others; the memory of a batch grows with its longest text.
_LONGEST = 4096
# The version whose tables are read here; any other is asked text by text.
_KNOWN = "0.4."


class _Tables(NamedTuple):
    """py3langid's model.

    Attributes:
        rows: [S] int64, where the row of a state begins in `moves`.
        moves: [rows * 256], the next state.
        features: [S], the feature that is counted in a state, or -1.
        weights: [F, L] float32, log-probabilities of the features.
        priors: [L] float32.
        english: [L] whether a column is English.
    """

    rows: np.ndarray
    moves: np.ndarray
    features: np.ndarray
    weights: np.ndarray
    priors: np.ndarray
    english: np.ndarray


def english_by_langid(texts: Sequence[str]) -> list[bool]:
    """Return for each text whether py3langid takes it for English.

    It replaces the paper's Llama-3.3-70B without a network, and is reliable from 20 words on.
    """
    # It loads its model, which few recipes need.
    import py3langid

    plain = [text.encode("utf-8", "replace").decode() for text in texts]
    tables = _tables()
    if tables is None:
        return [py3langid.classify(text)[0] == _ENGLISH for text in plain]
    read = [_bytes(text) for text in plain]
    scores_NL = _scores(tables, [text if len(text) <= _LONGEST else b"" for text in read])
    best_N = scores_NL[:, tables.english].max(axis=1)
    others_N = scores_NL[:, ~tables.english].max(axis=1)
    # A text of which no byte was read here has the priors alone, which say nothing.
    close_N = np.abs(best_N - others_N) <= _CLOSE * np.abs(scores_NL).max(axis=1)
    close_N |= (scores_NL == tables.priors).all(axis=1)
    return [
        py3langid.classify(text)[0] == _ENGLISH if close else bool(english)
        for text, english, close in zip(plain, best_N > others_N, close_N, strict=True)
    ]


@functools.cache
def _tables() -> _Tables | None:
    """py3langid's tables; None where its version is one whose tables may mean something else."""
    if not importlib.metadata.version("py3langid").startswith(_KNOWN):
        return None
    # It loads its model, which few recipes need.
    from py3langid import langid

    model: Any = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    return _Tables(
        rows=np.asarray(model.tk_row, np.int64) << 8,
        moves=np.asarray(model.tk_nextmove),
        features=np.asarray(model.tk_output, np.int64),
        weights=np.asarray(model.nb_ptc, np.float32),
        priors=np.asarray(model.nb_pc, np.float32),
        english=np.array([name == _ENGLISH for name in model.nb_classes]),
    )


def _bytes(text: str) -> bytes:
    """The bytes that py3langid reads of a text: a text in capitals is read in lower case."""
    if text.isupper():
        text = text.lower()
    return unicodedata.normalize("NFC", text).encode()


def _scores(tables: _Tables, texts: Sequence[bytes]) -> np.ndarray:
    """The log-posterior of each language, [texts, L]: log(1 + counts) of the features, weighted."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    lengths_N = np.array([len(texts[i]) for i in order])
    longest = int(lengths_N[0]) if len(order) else 0
    bytes_TN = np.zeros((longest, len(order)), np.uint8)
    for column, i in enumerate(order):
        bytes_TN[: len(texts[i]), column] = np.frombuffer(texts[i], np.uint8)
    state_N = np.zeros(len(order), np.int64)
    features_TN = np.full((longest, len(order)), -1, np.int64)
    # Texts are in the order of their length: those that have ended are behind the others.
    active_T = np.searchsorted(-lengths_N, -np.arange(longest), side="left")
    for time in range(longest):
        active = active_T[time]
        state_N = tables.moves[tables.rows[state_N[:active]] + bytes_TN[time, :active]].astype(
            np.int64
        )
        features_TN[time, :active] = tables.features[state_N]
    times, columns = np.nonzero(features_TN >= 0)
    counts = scipy.sparse.csr_matrix(
        (
            np.ones(len(times), np.float32),
            (np.asarray(order, np.int64)[columns], features_TN[times, columns]),
        ),
        shape=(len(texts), len(tables.weights)),
    )
    counts.sum_duplicates()
    counts.data = np.log1p(counts.data)
    return counts @ tables.weights + tables.priors
