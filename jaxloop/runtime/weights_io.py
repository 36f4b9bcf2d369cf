"""Pytrees of weights on disk: as safetensors, or through orbax where they are sharded."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxloop.runtime.atomic_io import raise_disk_full, remove, require_space, write_atomic

# Types that NumPy lacks. safetensors' NumPy reader refuses them, so they are stored as unsigned
# integers of the same bits.
_STORED_AS_BITS = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}


def save_tree(root: Path, stem: str, tree: Any) -> list[str]:
    """Write weights to `root/stem.safetensors`, or to `root/stem.orbax/` where a leaf is sharded.

    The files are not flushed to the disk: `checkpoint.write_manifest` does that.

    Args:
        tree: nested dicts with string keys, lists and tuples of None, numbers, text and arrays.

    Returns:
        The files written, relative to `root`.

    Raises:
        TypeError: the tree holds something else.
        DiskFull: it does not fit.
    """
    leaves: dict[str, Any] = {}
    skeleton = _encode(tree, "", leaves)
    Path(root, stem).parent.mkdir(parents=True, exist_ok=True)
    if any(isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 for x in leaves.values()):
        return _save_orbax(root, stem, skeleton, leaves)
    arrays, dtypes = {}, {}
    for name, leaf in leaves.items():
        array = np.asarray(leaf, order="C")
        dtypes[name] = array.dtype.name
        if array.dtype.name in _STORED_AS_BITS:
            array = array.view(np.dtype(f"uint{8 * array.dtype.itemsize}"))
        arrays[name] = array
    # One entry only: safetensors writes several in an order that changes from file to file, and
    # equal weights must give equal bytes.
    data = save(arrays, {"jaxloop": json.dumps({"tree": skeleton, "dtypes": dtypes})})
    write_atomic(Path(root, f"{stem}.safetensors"), data, durable=False)
    return [f"{stem}.safetensors"]


def load_tree(root: Path, stem: str) -> Any:
    """Return the tree that `save_tree` wrote, with NumPy leaves.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its file is damaged.
    """
    path = Path(root, f"{stem}.safetensors")
    if not path.exists():
        return _load_orbax(root, stem)
    try:
        with safe_open(path, framework="numpy") as stream:
            header = json.loads((stream.metadata() or {})["jaxloop"])
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}
    except FileNotFoundError:  # gone meanwhile
        raise
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as weights ({error})") from error
    for name, dtype in header["dtypes"].items():
        if dtype in _STORED_AS_BITS:
            arrays[name] = arrays[name].view(_STORED_AS_BITS[dtype])
    return _decode(header["tree"], arrays)


def _encode(node: Any, path: str, leaves: dict[str, Any]) -> Any:
    """The structure of a tree as JSON values; its arrays are put into `leaves` by name."""
    if node is None:
        return None
    if isinstance(node, Mapping):
        if not all(isinstance(key, str) for key in node):
            raise TypeError(f"weights{path}: keys must be strings, not {sorted(map(str, node))}")
        return {
            "dict": {key: _encode(value, f"{path}/{key}", leaves) for key, value in node.items()}
        }
    if isinstance(node, list) or (isinstance(node, tuple) and not hasattr(node, "_fields")):
        kind = "list" if isinstance(node, list) else "tuple"
        return {kind: [_encode(value, f"{path}/{i}", leaves) for i, value in enumerate(node)]}
    if isinstance(node, bool | int | float | str):
        return {"value": node}
    if isinstance(node, np.ndarray | np.generic | jax.Array):
        name = path.removeprefix("/") or "leaf"
        # "a/b" and {"a": {"b"}} would share a name.
        while name in leaves:
            name += "'"
        leaves[name] = node
        return {"array": name}
    raise TypeError(
        f"weights{path}: {type(node).__name__} cannot be saved; use dicts, lists or tuples of "
        "arrays"
    )


def _decode(node: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Undo `_encode`: the tree, with its arrays taken from `arrays` by name."""
    if node is None:
        return None
    ((kind, value),) = node.items()
    if kind == "dict":
        return {key: _decode(child, arrays) for key, child in value.items()}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode(child, arrays) for child in value)
    return arrays[value] if kind == "array" else value


def _save_orbax(root: Path, stem: str, skeleton: Any, leaves: dict[str, Any]) -> list[str]:
    import orbax.checkpoint as ocp  # slow to import, and for sharded weights only

    target = Path(root, f"{stem}.orbax").absolute()
    needed = sum(x.nbytes for x in leaves.values() if hasattr(x, "nbytes"))
    require_space(target, needed, target.name)
    numbered = dict(zip(map(str, range(len(leaves))), leaves.values(), strict=True))
    with raise_disk_full(target, needed, target.name):
        if jax.process_index() == 0:
            remove(root, f"{stem}.orbax")
            target.mkdir()
            write_atomic(
                target / "tree.json",
                json.dumps({"tree": skeleton, "names": list(leaves)}).encode(),
                durable=False,
            )
        with ocp.PyTreeCheckpointer() as checkpointer:
            checkpointer.save(target / "state", numbered)
    return [
        str(p.relative_to(Path(root).absolute())) for p in sorted(target.rglob("*")) if p.is_file()
    ]


def _load_orbax(root: Path, stem: str) -> Any:
    import orbax.checkpoint as ocp  # slow to import, and for sharded weights only

    target = Path(root, f"{stem}.orbax").absolute()
    header = json.loads((target / "tree.json").read_bytes())
    numbered = {str(i): 0 for i in range(len(header["names"]))}
    as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in numbered}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            state = checkpointer.restore(target / "state", restore_args=as_numpy)
    except Exception as error:
        raise ValueError(
            f"{target}: cannot be read as weights ({str(error).splitlines()[0]})"
        ) from error
    arrays = {name: np.asarray(state[str(i)]) for i, name in enumerate(header["names"])}
    return _decode(header["tree"], arrays)
