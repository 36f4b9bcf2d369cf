"""A cache on disk for the embeddings of a dataset; an interrupted computation is resumed."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxloop.data.digest import digest_texts
from jaxloop.runtime import waiting
from jaxloop.runtime.atomic_io import require_space, write_atomic


def cached_embeddings(
    texts: Sequence[str],
    embed: Callable[[list[str]], np.ndarray],
    folder: str | Path,
    *,
    name: str,
    batch: int = 1024,
) -> np.ndarray:
    """Return the embedding of every text, [N, D] float32, as a read-only memory map.

    Args:
        texts: N texts, at least one.
        embed: embeddings [n, D] of a list of n texts; each row must depend on its text alone.
        folder: the cache. A file belongs to one sequence of texts and one `name`.
        name: of the encoder, with whatever changes its result (revision, precision, maximum
            length).
        batch: texts per call of `embed`; at most so many are lost when a run is killed.

    A second run that needs the same waits for the first.

    Raises ValueError where there are no texts, or `embed` gives another number of rows, another
    width than before, or no finite numbers.
    """
    if not len(texts):
        raise ValueError("embeddings: there are no texts.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{name}\n{digest_texts(texts)}".encode()).hexdigest()[:16]
    path = folder / f"embeddings-{key}.f32"
    # Each would cut the file off behind what it has computed.
    with waiting.alone(path.with_suffix(".lock"), "computes these embeddings"):
        return _embeddings(texts, embed, path, name, batch)


def _embeddings(
    texts: Sequence[str],
    embed: Callable[[list[str]], np.ndarray],
    path: Path,
    name: str,
    batch: int,
) -> np.ndarray:
    state_path = path.with_suffix(".json")
    state = _read_state(state_path, path)
    if state is not None and state.done == len(texts):
        if _digest(path, state.done, state.width) == state.sha256:
            return _mapped(path, state.done, state.width)
        state = None  # damaged: computed anew
    width, done = (state.width, state.done) if state else (None, 0)
    for start in range(done, len(texts), batch):
        expected = min(batch, len(texts) - start)
        part = np.asarray(embed(list(texts[start : start + batch])), np.float32)
        _check(part, (expected, width), start, name)
        if width is None:
            width = part.shape[1]
            require_space(path, 4 * width * len(texts), "the embeddings")
        with open(path, "r+b" if path.exists() else "w+b") as stream:
            stream.seek(4 * width * start)
            stream.write(part.tobytes())
            stream.truncate()
        done = start + expected
        if done < len(texts):
            _write_state(state_path, {"name": name, "width": width, "done": done})
    assert width is not None  # there is at least one text
    digest = _digest(path, done, width)
    _write_state(state_path, {"name": name, "width": width, "done": done, "sha256": digest})
    return _mapped(path, done, width)


def _check(part: np.ndarray, shape: tuple[int, int | None], start: int, name: str) -> None:
    """Raises ValueError for a batch that has another shape (None: any width) or odd numbers."""
    rows, width = shape
    if part.ndim != 2 or len(part) != rows or (width is not None and part.shape[1] != width):
        raise ValueError(
            f"embeddings: the encoder {name!r} gave the shape {part.shape} for {rows} "
            f"texts; it must give ({rows}, {width or 'D'})."
        )
    if not np.isfinite(part).all():
        raise ValueError(
            f"embeddings: the encoder {name!r} gave a number that is not finite for the "
            f"texts from {start} on."
        )


def _mapped(path: Path, rows: int, width: int) -> np.ndarray:
    return np.memmap(path, dtype=np.float32, mode="r", shape=(rows, width))


class _State(NamedTuple):
    """What a cache file holds: `done` rows of `width` numbers; sha256 of all, "" until then."""

    width: int
    done: int
    sha256: str = ""


def _read_state(state_path: Path, path: Path) -> _State | None:
    """The stored state; None if there is none, or the file has fewer rows than it says."""
    try:
        fields = json.loads(state_path.read_bytes())
        state = _State(fields["width"], fields["done"], fields.get("sha256", ""))
        return state if path.stat().st_size >= 4 * state.width * state.done else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write_state(state_path: Path, fields: dict[str, object]) -> None:
    write_atomic(state_path, json.dumps(fields).encode())


def _digest(path: Path, rows: int, width: int) -> str:
    digest = hashlib.sha256()
    left = 4 * rows * width
    with open(path, "rb") as stream:
        while left and (block := stream.read(min(left, 1 << 24))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()
