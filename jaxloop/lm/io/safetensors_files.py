"""The safetensors files of a model directory: which of them hold its weights, and reading them.

Headers are read and checked without the weights: missing tensors, other shapes, quantised types and
ambiguous files cost nothing to find. Weights are read with as many bytes beside them as a block of
a tensor has, each written once, to where it stays.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import DTypeLike

from jaxloop.lm.io import json_fields
from jaxloop.lm.io.json_fields import Refused
from jaxloop.lm.io.safetensors_header import DTYPES, Stored, header
from jaxloop.lm.model.config import Param, nest
from jaxloop.runtime.log import LOGGER

WHOLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"

_PREFIXES = (
    "transformer.",
    "model.",
    "model.decoder.",
    "bert.",
    "albert.",
    "roberta.",
    "mpnet.",
    "distilbert.",
)

# Tables that old versions of transformers stored beside the weights, and compute anew today.
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.(masked_)?bias|attention\.bias)$"
)

BLOCK = 8 << 20  # bytes of a tensor that are read, and turned, at once


class Weights(NamedTuple):
    """All tensors of a directory by their names in the files."""

    path: Path
    where: dict[str, Stored]


# ---- which files


def weights(path: Path) -> Weights:
    """Return the tensors of a model directory, headers read. Raises ValueError where there are
    none, `Refused` where the files are damaged, where two of them may be meant, or where an adapter
    lies beside them.
    """
    if (path / ADAPTER).exists():
        raise Refused(
            f"model: {path} holds an adapter too ({ADAPTER}), which transformers would apply; "
            "move it to a directory of its own, or merge it"
        )
    where: dict[str, Stored] = {}
    for file in files(path):
        for tensor in header(file):
            other = where.setdefault(tensor.name, tensor)
            if other is not tensor:
                raise Refused(
                    f"model: tensor {tensor.name} is in {other.file.name} and in {file.name} of "
                    f"{path}; leave only the files that are meant"
                )
    return Weights(path, where)


def files(path: Path) -> list[Path]:
    """Return the safetensors files that hold a model's weights, as `transformers` chooses them:
    model.safetensors, else those of the index, else all.
    """
    found = sorted(path.glob("*.safetensors"))
    index, whole = path / INDEX, path / WHOLE
    if not found and not index.exists():
        pickled = sorted(
            p.name
            for p in path.iterdir()
            if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
        )
        hint = (
            f" but {pickled[0]}, which is never unpickled; convert it"
            if pickled
            else "; put the weights there"
        )
        raise ValueError(
            f"model: {path} has no *.safetensors{hint} with "
            "`save_pretrained(safe_serialization=True)`"
        )
    if not index.exists():
        return [whole] if whole.exists() else _shards(path, found)
    named = json_fields.read_json(index).get("weight_map")
    if (
        not isinstance(named, dict)
        or not named
        or not all(isinstance(name, str) for name in named.values())
    ):
        raise Refused(f"model: {index} has no weight_map, which says the file of each tensor")
    listed = [path / name for name in sorted(set(named.values()))]
    if outside := [f for f in listed if f.parent != path]:
        raise Refused(f"model: {INDEX} names {outside[0]}, which is outside of {path}")
    if whole.exists() and whole not in listed:
        if there := [f.name for f in listed if f.exists()]:
            raise Refused(
                f"model: {path} holds two sets of weights, {WHOLE} and {there[0]} with its "
                "index; leave only the one that is meant"
            )
        return [whole]
    if missing := [f.name for f in listed if not f.exists()]:
        raise ValueError(f"model: {missing[0]}, named by {INDEX}, is missing from {path}")
    return listed


def _shards(path: Path, found: list[Path]) -> list[Path]:
    numbered = [re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.safetensors", f.name) for f in found]
    for match in filter(None, numbered):
        names = [
            f"{match[1]}-{i:05d}-of-{match[3]}.safetensors" for i in range(1, int(match[3]) + 1)
        ]
        if missing := [name for name in names if not (path / name).exists()]:
            raise ValueError(
                f"model: {missing[0]}, which belongs to {match[0]}, is missing from {path}"
            )
    return found


# ---- finding and checking tensors


def find(w: Weights, name: str) -> Stored | None:
    """Return the tensor of that name, under any of the usual prefixes: checkpoints of the bare
    model have no "transformer." or "model.", OPT's own no "model.", BERT's first ones call norms
    gamma and beta. `Refused` where two tensors could be it.
    """
    old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"
    )
    spellings = [
        s
        for n in dict.fromkeys((name, old))
        for s in (n, *(n.removeprefix(prefix) for prefix in _PREFIXES), f"model.{n}")
    ]
    found = [w.where[s] for s in dict.fromkeys(spellings) if s in w.where]
    if len(found) > 1:
        one, two = found[:2]
        places = one.file.name if one.file == two.file else f"{one.file.name} and {two.file.name}"
        raise Refused(
            f"model: {w.path} holds two copies of a tensor, {one.name} and {two.name} "
            f"({places}); leave only the one that is meant"
        )
    return found[0] if found else None


def check(w: Weights, parameters: Sequence[Param], layers: int) -> None:
    """Raises ValueError for a tensor of `parameters` that is missing, of another shape or of a type
    that is no plain number, and for tensors beside them that would change the model: of its blocks,
    or of a module that is read (scales of quantised weights, biases).
    """
    used = set()
    for p, source, name in _names(parameters, layers):
        tensor = _needed(w, name)
        _check_type(w, tensor)
        shape = (*p.shape[:-1], source.width)
        turned = tensor.shape[::-1] if p.transposed and len(tensor.shape) == 2 else tensor.shape
        if turned != shape:
            raise ValueError(
                f"model: tensor {name} has shape {turned}; {shape} is expected from config.json"
            )
        used.add(tensor.name)
    _check_others(w, parameters, layers, used)


def _names(parameters: Sequence[Param], layers: int) -> Iterator[tuple]:
    """(parameter, source, name of a tensor) of all tensors."""
    for p in parameters:
        for i in range(layers if p.path[0] == "layers" else 1):
            for source in p.sources:
                yield p, source, source.name.format(i=i)


def _needed(w: Weights, name: str) -> Stored:
    tensor = find(w, name)
    if tensor is None:
        _missing(w, name)
    return tensor


def _missing(w: Weights, name: str) -> NoReturn:
    bare = _bare(name)
    module, kind = bare.rsplit(".", 1)
    prefixed = next((t for t in w.where if _bare(t) == bare or t.endswith(f".{name}")), None)
    if prefixed:
        raise Refused(
            f"model: tensor {name} is missing from {w.path}; {prefixed} is there instead, so a "
            "wrapper was saved: save the model inside it"
        )
    near = (
        next((t for t in w.where if _bare(t).startswith(f"{module}.")), None)
        if kind == "weight"
        else None
    )
    if near:
        reason = (
            "the weights are quantised or those of an adapter: save them dequantised and merged"
        )
        raise Refused(
            f"model: tensor {name} is missing from {w.path}; {near} is there instead, so {reason}"
        )
    hint = (
        "; config.json does not tie the head to the embeddings, so this is no language model"
        if bare == "lm_head.weight"
        else ""
    )
    raise ValueError(f"model: tensor {name} is missing from {w.path}{hint}")


def _check_type(w: Weights, tensor: Stored) -> None:
    if tensor.dtype not in DTYPES:
        raise Refused(
            f"model: tensor {tensor.name} of {w.path} is stored as {tensor.dtype}, as quantised "
            f"weights are; allowed are {', '.join(DTYPES)}: "
            "save the model dequantised"
        )


def _bare(name: str) -> str:
    while any(name.startswith(prefix) for prefix in _PREFIXES):
        name = next(name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix))
    return name


def _check_others(w: Weights, parameters: Sequence[Param], layers: int, used: set[str]) -> None:
    """What the model does not read must not belong to it."""
    modules = {_bare(name.rsplit(".", 1)[0]) for _, _, name in _names(parameters, layers)} | {
        "lm_head"
    }
    prefixes = [p.sources[0].name.split("{i}")[0] for p in parameters if p.path[0] == "layers"]
    block = re.compile(re.escape(_bare(prefixes[0])) + r"(\d+)\.") if prefixes else None
    more = set()
    for name in w.where.keys() - used:
        bare = _bare(name)
        layer = block.match(bare) if block else None
        if layer and int(layer[1]) >= layers:
            more.add(int(layer[1]))
        elif _BUFFERS.search(bare) or bare == "lm_head.weight":
            continue
        elif layer or any(bare.startswith(f"{module}.") for module in _above(bare) & modules):
            raise Refused(
                f"model: tensor {name} of {w.path} ({w.where[name].dtype}) belongs to no weight "
                "of the architecture that config.json names: "
                "the weights are quantised, or those of another model"
            )
    if more:
        LOGGER.warning(
            "%s holds %d layers more than the %d of config.json; they are not read",
            w.path,
            len(more),
            layers,
        )


def _above(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


# ---- reading


def read(w: Weights, parameters: Sequence[Param], layers: int, dtype: DTypeLike) -> dict[str, Any]:
    """Return the pytree of `parameters` as NumPy arrays, which JAX may take over without a copy.
    Raises as `check`.
    """
    check(w, parameters, layers)
    dtype = np.dtype(dtype)
    out: dict[tuple[str, ...], np.ndarray] = {}
    work: list[tuple[Stored, np.ndarray]] = []
    for p in parameters:
        whole = empty((layers, *p.shape) if p.path[0] == "layers" else p.shape, dtype)
        out[p.path] = whole
        for i in range(layers if p.path[0] == "layers" else 1):
            at = 0
            for source in p.sources:
                part = (whole[i] if p.path[0] == "layers" else whole)[..., at : at + source.width]
                tensor = _needed(w, source.name.format(i=i))
                work.append((tensor, part.T if p.transposed and part.ndim == 2 else part))
                at += source.width
    # In the order of the files, so that a disk reads them from their beginnings to their ends.
    work.sort(key=lambda job: (job[0].file, job[0].start))
    opened = {file: os.open(file, os.O_RDONLY) for file in {tensor.file for tensor, _ in work}}
    try:
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            for _ in pool.map(lambda job: _read_into(opened[job[0].file], *job), work):
                pass
    finally:
        for descriptor in opened.values():
            os.close(descriptor)
    return nest(out)


def tensor(w: Weights, name: str) -> np.ndarray | None:
    """Return one tensor as the file has it; None where there is none of that name. Raises `Refused`
    for a type that is no plain number.
    """
    found = find(w, name)
    if found is None:
        return None
    _check_type(w, found)
    out = empty(found.shape, DTYPES[found.dtype])
    descriptor = os.open(found.file, os.O_RDONLY)
    try:
        _read_into(descriptor, found, out)
    finally:
        os.close(descriptor)
    return out


def same(w: Weights, one: Stored, two: Stored) -> bool:
    """Return whether two tensors hold the same numbers; read block by block. Raises `Refused` for a
    type that is no plain number.
    """
    for tensor in (one, two):
        _check_type(w, tensor)
    if one.shape != two.shape:
        return False
    with one.file.open("rb") as first, two.file.open("rb") as second:
        first.seek(one.start)
        second.seek(two.start)
        count, step = math.prod(one.shape), BLOCK // 8
        for at in range(0, count, step):
            a, b = (
                np.frombuffer(
                    f.read(min(step, count - at) * DTYPES[t.dtype].itemsize), DTYPES[t.dtype]
                )
                for f, t in ((first, one), (second, two))
            )
            if not np.array_equal(a.astype(np.float64), b.astype(np.float64)):
                return False
    return True


def empty(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """Return an array aligned as XLA wants it, so that JAX takes it over on a CPU."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _read_into(descriptor: int, tensor: Stored, out: np.ndarray) -> None:
    """The tensor's numbers to `out`, of its shape, a block of rows at a time."""
    dtype = DTYPES[tensor.dtype]
    if out.flags.c_contiguous and out.dtype == dtype:
        _fill(descriptor, out.reshape(-1).view(np.uint8), tensor)
        return
    flat = out.reshape(1, -1) if out.ndim < 2 else out
    rows, width = len(flat), math.prod(flat.shape[1:]) * dtype.itemsize
    step = max(1, BLOCK // max(1, width))
    step -= step % 8 if step > 8 else 0
    room = np.empty((min(step, rows), *flat.shape[1:]), dtype)
    for at in range(0, rows, step):
        block = room[: min(step, rows - at)]
        _fill(descriptor, block.reshape(-1).view(np.uint8), tensor, at * width)
        _write(block, flat[at : at + len(block)])


def _fill(descriptor: int, buffer: np.ndarray, tensor: Stored, skip: int = 0) -> None:
    view, done = memoryview(buffer.data), 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done : done + (1 << 30)]], tensor.start + skip + done)
        if got == 0:
            raise Refused(
                f"model: the safetensors of {tensor.file} cannot be read (it became shorter "
                "while it was read)"
            )
        done += got


def _write(block: np.ndarray, out: np.ndarray) -> None:
    """`block` to `out`, which may be turned, with another type."""
    if block.dtype != out.dtype and not out.flags.c_contiguous:
        same_type = np.empty(block.shape, out.dtype)
        _convert(block, same_type)
        block = same_type
    if (
        out.ndim != 2
        or out.flags.c_contiguous
        or block.itemsize not in _JOINED
        or len(block) % _JOINED[block.itemsize][0]
    ):
        _convert(block, out)
        return
    # Turned. Single numbers would be written one by one, each to another line of the cache: eight
    # (or four) rows are joined to wide ones first.
    joined, wide = _JOINED[block.itemsize]
    target = out.T.view(wide)
    columns = max(1, (1 << 18) // (len(block) * block.itemsize))
    room = np.empty((len(block) // joined, columns, joined), block.dtype)
    for at in range(0, block.shape[1], columns):
        piece = block[:, at : at + columns]
        part = room[:, : piece.shape[1]]
        for k in range(joined):
            part[:, :, k] = piece[k::joined]
        target[at : at + piece.shape[1]] = part.view(wide)[:, :, 0].T


_JOINED = {2: (8, np.complex128), 4: (4, np.complex128)}


def _convert(block: np.ndarray, out: np.ndarray) -> None:
    if block.dtype == DTYPES["BF16"] and out.dtype == np.float32:
        np.left_shift(
            block.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32
        )  # the same numbers, sixteen zeros behind
    else:
        out[...] = block.astype(out.dtype, copy=False)
