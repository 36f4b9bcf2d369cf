"""Rows of the tables: an input that people bring, how it is made from random weights, and what
becomes of it.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxloop import lm

RIGHT = "right"
TOLERANCE = 2e-4  # absolute, float32 logits of order one to ten


class Row(NamedTuple):
    """An input: its name, the random model it is made from, the changes to that model's directory,
    and what we do: `RIGHT` (what transformers computes) or a pattern of the one sentence that
    refuses it. `theirs`: what transformers does where it is not the judge.
    """

    name: str
    model: str
    changes: tuple[Callable[[Path], None], ...]
    ours: str
    theirs: str = "the judge"


def config(**changes):
    """Changes fields of config.json; ... takes a field out."""
    return edit("config.json", **changes)


def edit(file, **changes):
    """Changes fields of a JSON file, which is made where it is missing; ... takes a field out."""

    def change(path: Path) -> None:
        place = path / file
        before = json.loads(place.read_text()) if place.exists() else {}
        place.write_text(json.dumps({k: v for k, v in (before | changes).items() if v is not ...}))

    return change


def write(file, text):
    """Writes a file."""
    return lambda path: (
        (path / file).write_bytes(text if isinstance(text, bytes) else text.encode()) and None
    )


def tensors(function, file="model.safetensors", to=None):
    """`function` of all tensors of a file, {name: array} to {name: array}, written to `to` (else in
    place).
    """

    def change(path: Path) -> None:
        save_file(
            {k: np.ascontiguousarray(v) for k, v in function(load_file(path / file)).items()},
            path / (to or file),
            metadata={"format": "pt"},
        )

    return change


def remove(*files):
    """Removes files."""
    return lambda path: [(path / file).unlink() for file in files] and None


def make(row: Row, folder: Path, to: Path) -> Path:
    """The row's directory: a copy of the model's, changed."""
    shutil.copytree(folder, to)
    for change in row.changes:
        change(to)
    return to


def refusal(error: ValueError, pattern: str) -> None:
    """The refusal is one sentence that says what the row expects, and no exception's name."""
    text = str(error)
    assert re.search(pattern, text), text
    assert "\n" not in text and not re.search(r"\b\w*(Error|Exception)\b", text), text


forward = jax.jit(lm.forward, static_argnames="config")
