"""Embeddings of a dataset kept on disk: computed once, in batches, going on after an interruption."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jaxloop.data.docs import digest_texts
from jaxloop.runtime.atomic_io import require_space, write_atomic


def cached_embeddings(
    texts: Sequence[str],
    embed: Callable[[list[str]], np.ndarray],
    folder: str | Path,
    *,
    name: str,
    batch: int = 1024,
) -> np.ndarray:
    """The embedding of every text, [N, D] float32, as a read-only memory map.

    Args:
      texts: N texts, at least one.
      embed: embeddings [n, D] of a list of n texts; each row must depend on its text alone.
      folder: the cache. A file belongs to one sequence of texts and one `name`.
      name: of the encoder, with whatever changes its result (revision, precision, maximum length).
      batch: texts per call of `embed`; what a kill can lose.

    Raises: ValueError where there are no texts, or `embed` gives another number of rows, another
    width than before, or no finite numbers.
    """
    if not len(texts):
        raise ValueError("embeddings: there are no texts.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{name}\n{digest_texts(texts).hexdigest()}".encode()).hexdigest()[:16]
    path, state_path = folder / f"embeddings-{key}.f32", folder / f"embeddings-{key}.json"
    state = _read_state(state_path, path)
    width, done = (state["width"], state["done"]) if state else (None, 0)
    digest = None
    if state and done == len(texts):
        digest = _digest(path, done, width)
        if digest == state["sha256"]:
            return np.memmap(path, np.float32, "r", shape=(done, width))
        width, done = None, 0  # damaged: computed anew
    for start in range(done, len(texts), batch):
        part = np.asarray(embed(list(texts[start : start + batch])), np.float32)
        expected = min(batch, len(texts) - start)
        if (
            part.ndim != 2
            or len(part) != expected
            or (width is not None and part.shape[1] != width)
        ):
            wanted = f"({expected}, {width or 'D'})"
            raise ValueError(
                f"embeddings: the encoder {name!r} gave the shape {part.shape} for {expected} "
                f"texts; it must give {wanted}."
            )
        if not np.isfinite(part).all():
            raise ValueError(
                f"embeddings: the encoder {name!r} gave a number that is not finite for the "
                f"texts from {start} on."
            )
        if width is None:
            width = part.shape[1]
            require_space(path, 4 * width * len(texts), "the embeddings")
        with open(path, "r+b" if path.exists() else "w+b") as stream:
            stream.seek(4 * width * start)
            stream.write(part.tobytes())
            stream.truncate()
        done = start + expected
        if done < len(texts):
            write_atomic(
                state_path, json.dumps({"name": name, "width": width, "done": done}).encode()
            )
    digest = _digest(path, done, width)
    write_atomic(
        state_path,
        json.dumps({"name": name, "width": width, "done": done, "sha256": digest}).encode(),
    )
    return np.memmap(path, np.float32, "r", shape=(done, width))


def _read_state(state_path, path):
    """What was done, where the file has at least that much; None otherwise."""
    try:
        state = json.loads(state_path.read_bytes())
        return state if path.stat().st_size >= 4 * state["width"] * state["done"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(path, rows, width):
    digest = hashlib.sha256()
    left = 4 * rows * width
    with open(path, "rb") as stream:
        while left and (block := stream.read(min(left, 1 << 24))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
