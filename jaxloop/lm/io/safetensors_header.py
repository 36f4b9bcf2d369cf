"""The header of a safetensors file: its tensors' names, types, shapes and places, checked against
the size of the file before any weight is read.
"""

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxloop.lm.io import json_fields
from jaxloop.lm.io.json_fields import Refused

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_BITS = {
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
    "F16": 16,
    "BF16": 16,
    "I16": 16,
    "U16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I8": 8,
    "U8": 8,
    "BOOL": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
}


class Stored(NamedTuple):
    """A tensor in a file: its type by the format's name, and its bytes [start, stop)."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header(file: Path) -> list[Stored]:
    """Return the tensors of one file. Raises `Refused` where its header does not fit the file."""

    def damaged(reason):
        return Refused(f"model: the safetensors of {file} cannot be read ({reason})")

    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if len(start) < 8 or length + 8 > size or length > 100_000_000:
                beginning = (start + opened.read(200)).decode("utf8", "replace")
                what = json_fields.what_it_is(beginning)
                raise damaged(what or "it is cut short, or no such file")
            text = opened.read(length)
    except OSError as error:
        raise damaged(error.strerror) from None
    try:
        entries = json.loads(text, object_pairs_hook=_once)
        entries.pop("__metadata__", None)
        out = [_entry(file, name, entry, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged("its header is damaged") from None
    end = 8 + length
    for tensor in sorted(out, key=lambda t: (t.start, t.stop)):
        if tensor.start != end or (tensor.stop - tensor.start) * 8 != math.prod(
            tensor.shape
        ) * _BITS.get(tensor.dtype, 0):
            raise damaged(f"the bytes of tensor {tensor.name} are not where its header says")
        end = tensor.stop
    if end != size:
        raise damaged(f"it has {size:,} bytes and its header speaks of {end:,}")
    return out


def _once(pairs):
    out = dict(pairs)
    if len(out) < len(pairs):
        raise ValueError("a name twice")
    return out


def _entry(file: Path, name: str, entry: dict[str, Any], base: int) -> Stored:
    dtype, shape, (start, stop) = (
        entry["dtype"],
        tuple(map(int, entry["shape"])),
        entry["data_offsets"],
    )
    if dtype not in _BITS or min(shape, default=0) < 0 or not 0 <= start <= stop:
        raise ValueError("an entry that is none")
    return Stored(file, name, dtype, shape, base + start, base + stop)
