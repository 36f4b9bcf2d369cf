"""Answers about texts, one number each, kept on disk: asked once, going on after an interruption.

A judge of language or quality, or a classifier, is a function of a list of texts. `remembered` puts
a file before it, so that a run that was stopped, a second experiment on the same texts, or a rule
inside a cleaning stream (`cleaning.keep_batches`) asks for what is new alone.
"""

import contextlib
import hashlib
import math
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

# SQLite takes this many values in one question.
_QUESTION = 500


def remembered(
    function: Callable[[list[str]], Sequence[float]],
    path: str | Path,
    *,
    name: str,
    batch: int = 1024,
) -> Callable[[Sequence[str]], np.ndarray]:
    """`function`, whose answers are kept in an SQLite file: texts -> float64 [n].

    Args:
      function: one number for each of a list of texts, nan where it has none (which is remembered
      too); each answer must depend on its text
        alone.
      path: the file; several functions may share it.
      name: of the function, with whatever changes its answers (model, prompt, revision).
      batch: texts per call; what a kill can lose.

    Equal texts are asked once. The returned function raises ValueError where `function` does not
    give one number per text, or the file is no such file.
    """
    path = Path(path)

    def ask(texts: Sequence[str]) -> np.ndarray:
        texts = list(texts)
        keys = [_key(name, text) for text in texts]
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_open(path)) as store:
            known = _read(store, keys)
            todo = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
            missing = list(todo)
            for start in range(0, len(missing), batch):
                part = missing[start : start + batch]
                values = np.asarray(function([todo[key] for key in part]), np.float64)
                if values.shape != (len(part),):
                    raise ValueError(
                        f"annotation {name!r}: gave the shape {values.shape} for {len(part)} "
                        "texts; it must give one number per text."
                    )
                known |= zip(part, values.tolist(), strict=True)
                with store:
                    store.executemany(
                        "INSERT OR REPLACE INTO answers VALUES (?, ?)",
                        [
                            (k, None if math.isnan(v) else v)
                            for k, v in zip(part, values.tolist(), strict=True)
                        ],
                    )
        return np.array([known[key] for key in keys], np.float64)

    return ask


def _key(name, text):
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    digest.update(b"\n" + text.encode("utf-8", "surrogatepass"))
    return digest.digest()


def _open(path):
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


def _read(store, keys):
    found = {}
    wanted = list(dict.fromkeys(keys))
    for start in range(0, len(wanted), _QUESTION):
        part = wanted[start : start + _QUESTION]
        rows = store.execute(
            f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * len(part))})", part
        )
        found |= {key: math.nan if value is None else value for key, value in rows}
    return found
