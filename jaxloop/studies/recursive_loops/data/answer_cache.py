"""A cache on disk for functions that give one number for each text, such as judges.

A judge of language or quality, or a classifier, is a function of a list of texts. `remembered`
returns the same function with a file of its earlier answers, so that only new texts are asked
about: by a run that is resumed, by a second experiment on the same texts, or by a rule inside a
cleaning stream (`cleaning.keep_batches`).
"""

import contextlib
import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

# Keys of one query: every SQLite accepts this many values.
_KEYS = 500
# Texts -> one number each, float64 [n]; nan where there is none.
TextScorer = Callable[[Sequence[str]], np.ndarray]


def remembered(
    function: Callable[[list[str]], ArrayLike],
    path: str | Path,
    *,
    name: str,
    batch: int = 1024,
) -> TextScorer:
    """Return `function` with its answers kept in an SQLite file.

    Equal texts are asked once. The returned function raises ValueError where `function` does not
    give one number per text, or the file is no such file.

    Args:
        function: gives one number for each of a list of texts, nan where it has none (which is
            remembered too); each answer must depend on its text alone.
        path: the file; several functions may share it.
        name: of the function, with whatever changes its answers (model, prompt, revision).
        batch: texts per call of `function`; at most so many answers are lost when a run is killed.
    """
    path = Path(path)

    def ask(texts: Sequence[str]) -> np.ndarray:
        keys = [_key(name, text) for text in texts]
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_open(path)) as store:
            answers = _read(store, keys)
            text_of = {k: text for k, text in zip(keys, texts, strict=True) if k not in answers}
            missing = list(text_of)
            for start in range(0, len(missing), batch):
                part = missing[start : start + batch]
                values = np.asarray(function([text_of[key] for key in part]), np.float64)
                if values.shape != (len(part),):
                    raise ValueError(
                        f"annotation {name!r}: gave the shape {values.shape} for {len(part)} "
                        "texts; it must give one number per text."
                    )
                new = dict(zip(part, values.tolist(), strict=True))
                _write(store, new)
                answers |= new
        return np.array([answers[key] for key in keys], np.float64)

    return ask


def unknown(texts: Sequence[str], path: str | Path, *, name: str) -> int:
    """Return how many different texts a file has no answer to; arguments as of `remembered`."""
    keys = {_key(name, text) for text in texts}
    if not Path(path).exists():
        return len(keys)
    with contextlib.closing(_open(Path(path))) as store:
        return len(keys) - len(_read(store, keys))


def _key(name: str, text: str) -> bytes:
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    digest.update(b"\n" + text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _open(path: Path) -> sqlite3.Connection:
    store = sqlite3.connect(path, timeout=600)
    try:
        store.execute(
            "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value REAL) WITHOUT ROWID"
        )
    except sqlite3.DatabaseError as error:
        store.close()
        raise ValueError(
            f"annotation: {path} cannot be used ({error}); delete it to ask again."
        ) from None
    return store


def _read(store: sqlite3.Connection, keys: Iterable[bytes]) -> dict[bytes, float]:
    """{key: answer} of the keys that the file has; nan where the function gave none."""
    answers: dict[bytes, float] = {}
    distinct = list(dict.fromkeys(keys))
    for start in range(0, len(distinct), _KEYS):
        part = distinct[start : start + _KEYS]
        rows = store.execute(
            f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * len(part))})", part
        )
        answers |= {key: math.nan if value is None else value for key, value in rows}
    return answers


def _write(store: sqlite3.Connection, answers: Mapping[bytes, float]) -> None:
    rows = [(key, None if math.isnan(value) else value) for key, value in answers.items()]
    with store:
        store.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
