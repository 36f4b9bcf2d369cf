"""Weights on disk: nested dicts, lists and tuples of arrays, as safetensors, or through orbax where
they are sharded over devices.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxloop.runtime.atomic_io import full_disk_named, remove, require_space, write_atomic

# NumPy has no name for these; safetensors' NumPy reader refuses them, so their bits travel as
# unsigned integers.
_CARRIED = {
    name: np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}


def save_tree(root: Path, stem: str, tree) -> list[str]:
    """Writes a tree of weights to `root/stem.safetensors`, or to the directory `root/stem.orbax`
    where a leaf lies on several devices.

    Returns the files written, relative to `root`; whoever lists them in a manifest syncs them.
    Raises TypeError for a node that is not a dict with string keys, a list, a tuple, None, a number
    or an array, DiskFull where it does not fit.
    """
    leaves: dict = {}
    skeleton = _encode(tree, "", leaves)
    Path(root, stem).parent.mkdir(parents=True, exist_ok=True)
    if any(isinstance(x, jax.Array) and len(x.sharding.device_set) > 1 for x in leaves.values()):
        return _save_orbax(root, stem, skeleton, leaves)
    arrays, kinds = {}, {}
    for name, leaf in leaves.items():
        array = np.asarray(leaf, order="C")
        kinds[name] = array.dtype.name
        arrays[name] = (
            array.view(np.dtype(f"uint{8 * array.dtype.itemsize}"))
            if array.dtype.name in _CARRIED
            else array
        )
    # One entry only: safetensors writes several in an order that changes from file to file, and
    # equal weights must give equal bytes.
    data = save(arrays, {"jaxloop": json.dumps({"tree": skeleton, "dtypes": kinds})})
    write_atomic(Path(root, f"{stem}.safetensors"), data, durable=False)
    return [f"{stem}.safetensors"]


def load_tree(root: Path, stem: str):
    """The tree that `save_tree` wrote, with NumPy leaves. Raises FileNotFoundError where there is
    none, ValueError where it is damaged.
    """
    path = Path(root, f"{stem}.safetensors")
    if not path.exists():
        return _load_orbax(root, stem)
    try:
        with safe_open(path, framework="numpy") as stream:
            about = json.loads((stream.metadata() or {})["jaxloop"])
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as weights ({error})") from error
    kinds = about["dtypes"]
    return _decode(
        about["tree"],
        {
            name: a.view(_CARRIED[kinds[name]]) if kinds[name] in _CARRIED else a
            for name, a in arrays.items()
        },
    )


def _encode(node, path, leaves):
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


def _decode(node, arrays):
    if node is None:
        return None
    ((kind, value),) = node.items()
    if kind == "dict":
        return {key: _decode(child, arrays) for key, child in value.items()}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_decode(child, arrays) for child in value)
    return arrays[value] if kind == "array" else value


def _save_orbax(root, stem, skeleton, leaves):
    import orbax.checkpoint as ocp

    target = Path(root, f"{stem}.orbax").absolute()
    needed = sum(x.nbytes for x in leaves.values() if hasattr(x, "nbytes"))
    require_space(target, needed, target.name)
    numbered = dict(zip(map(str, range(len(leaves))), leaves.values(), strict=True))
    with full_disk_named(target, needed, target.name):
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


def _load_orbax(root, stem):
    import orbax.checkpoint as ocp

    target = Path(root, f"{stem}.orbax").absolute()
    about = json.loads((target / "tree.json").read_bytes())
    numbered = {str(i): 0 for i in range(len(about["names"]))}
    as_numpy = {key: ocp.RestoreArgs(restore_type=np.ndarray) for key in numbered}
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            state = checkpointer.restore(target / "state", restore_args=as_numpy)
    except Exception as error:
        raise ValueError(
            f"{target}: cannot be read as weights ({str(error).splitlines()[0]})"
        ) from error
    return _decode(
        about["tree"], {name: np.asarray(state[str(i)]) for i, name in enumerate(about["names"])}
    )
